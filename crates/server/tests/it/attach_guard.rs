//! A capture ends before its source suffers, and not for what others make it suffer.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::attach::{Stranger, attach_open};
use crate::attach_hostile::for_ever;
use crate::scripted::{as_engine, bulk, serve};
use crate::service::Service;

/// What a server says of itself the more, the more often its memory was asked for; `None`: what any engine says.
type Symptom = fn(&[&str], usize) -> Option<String>;

/// So much more at each look.
const STEP: usize = 100 << 20;
const MACHINE: &str = "used_memory:1000000\r\nmaxmemory:0\r\ntotal_system_memory:1000000000\r\n";

fn memory(more: &str) -> Option<String> {
    Some(bulk(&format!("used_memory:1000000\r\nmaxmemory:0\r\n{more}\r\n")))
}

fn on_a_machine(resident: usize) -> Option<String> {
    Some(bulk(&format!("{MACHINE}used_memory_rss:{resident}\r\n")))
}

/// One connection in `CLIENT LIST`.
fn connection(name: &str, waiting: usize) -> Option<String> {
    Some(bulk(&format!(
        "id=7 addr=127.0.0.1:1 name={name} age=1 omem={waiting} cmd=psync\n"
    )))
}

/// Each is a way to suffer, and why a capture is given up for it.
const SYMPTOMS: [(&str, Symptom, &str); 6] = [
    (
        "the buffers of all replicas grow, of which ours cannot be told",
        |words, looks| match words {
            ["info", "memory"] => memory(&format!("mem_clients_slaves:{}", looks * STEP)),
            _ => None,
        },
        "the buffers of replicas of",
    ),
    (
        "the same in the words of 7.0",
        |words, looks| match words {
            ["info", "memory"] => memory(&format!("mem_total_replication_buffers:{}", looks * STEP)),
            _ => None,
        },
        "the buffers of replicas of",
    ),
    (
        "the buffer of the capture grows",
        |words, looks| match words {
            ["client", "setname", ..] => Some("+OK\r\n".to_owned()),
            ["client", "list", ..] => connection("cachekeep-capture", looks * STEP),
            _ => None,
        },
        "the buffer of the capture in",
    ),
    (
        "98 % of the machine's memory are in use",
        |words, _| match words {
            ["info", "memory"] => on_a_machine(985_000_000),
            _ => None,
        },
        "and its child have 939 MB of memory in use, of 953 MB",
    ),
    (
        "so many pages are copied that 98 % are in use",
        |words, looks| match words {
            ["info", "memory"] => on_a_machine(900_000_000),
            ["info", "persistence"] => {
                let copied = looks * 10_000_000;
                Some(bulk(&format!("loading:0\r\ncurrent_cow_size:{copied}\r\n")))
            }
            _ => None,
        },
        "and its child have",
    ),
    (
        "there is no memory for a child at all",
        |words, _| match words {
            ["info", "memory"] => on_a_machine(999_990_000),
            _ => None,
        },
        "of memory in use while its child writes, and its machine has 953 MB",
    ),
];

/// A server that suffers so, and whose snapshot never begins.
fn sufferer(symptom: Symptom) -> Stranger {
    let looks = AtomicUsize::new(0);
    Stranger::start(move |client| {
        serve(client, |words, output| {
            if let ["psync", ..] = words {
                return for_ever(output, b"\n", Duration::from_millis(20));
            }
            let seen = match words {
                ["info", "memory"] => looks.fetch_add(1, Ordering::SeqCst),
                _ => looks.load(Ordering::SeqCst),
            };
            let told = symptom(words, seen).unwrap_or_else(|| as_engine(words));
            output.write_all(told.as_bytes())
        });
    })
}

#[test]
fn a_capture_is_given_up_where_its_source_runs_out_of_memory() {
    let service = Service::start_with(&["--attach-allow", "127.0.0.1"], &[]);
    let caller = service.caller();
    for (number, (what, symptom, why)) in SYMPTOMS.into_iter().enumerate() {
        let server = sufferer(symptom);
        let id = attach_open(&caller, &format!("sufferer-{number}"), &[server.port]);
        let backup = caller.start_backup(&id, what);
        let record = caller.wait_end(&id, "backups", &backup);
        assert_eq!(record["status"], "failed", "{what}: {record}");
        assert_eq!(record["error_code"], "dcs.08.0001", "{what}: {record}");
        let told = record["ext"]["failure"].as_str().unwrap();
        assert!(told.contains(why), "{what}: {told}");
    }
}

#[test]
fn a_replica_of_somebody_else_that_falls_behind_ends_no_capture() {
    let variables = [("CACHEKEEP_OPERATION_SECONDS", "8")];
    let service = Service::start_with(&["--attach-allow", "127.0.0.1"], &variables);
    let caller = service.caller();
    let server = sufferer(|words, looks| match words {
        ["client", "setname", ..] => Some("+OK\r\n".to_owned()),
        ["client", "list", ..] => connection("", looks * STEP),
        ["info", "memory"] => memory(&format!("mem_total_replication_buffers:{}", looks * STEP)),
        _ => None,
    });
    let id = attach_open(&caller, "busy", &[server.port]);
    let backup = caller.start_backup(&id, "beside a slow replica");
    // Its snapshot never begins: what ends it is the time that it may take.
    let record = caller.wait_end(&id, "backups", &backup);
    let told = record["ext"]["failure"].as_str().unwrap();
    assert!(told.contains("deadline"), "{told}");
}
