//! Servers that speak as engines do and lead us elsewhere, or take a restore and answer it with nonsense.

use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::{Value, json};
use xtask::foreign::{Access, Form};

use crate::attach::{ALIKE, Stranger, address, attach, attach_open, forget_peak, peak, resident, start};
use crate::scripted::{as_engine, bulk, list, serve};
use crate::service::{Caller, Service};

/// What `--attach-allow` covers here, and what it does not.
const ALLOWED: [&str; 2] = ["--attach-allow", "127.0.0.1"];
const FORBIDDEN: &str = "127.0.0.2";
const KEYS: u64 = 200;

/// A server that answers this, but for what any engine says.
fn scripted(answer: impl Fn(&[&str], u16) -> Option<String> + Send + Sync + 'static) -> Stranger {
    Stranger::start(move |client: TcpStream| {
        let own = client.local_addr().map_or(0, |at| at.port());
        serve(client, |words, output| {
            let told = answer(words, own).unwrap_or_else(|| as_engine(words));
            output.write_all(told.as_bytes())
        });
    })
}

fn map(fields: &[(&str, &str)]) -> String {
    let words: Vec<String> = fields
        .iter()
        .flat_map(|(name, value)| [bulk(name), bulk(value)])
        .collect();
    list(&words)
}

/// A Sentinel that calls one address the primary, another one a Sentinel too, and hangs up once it is over.
fn sentinel(primary: (&'static str, u16), peer: (&'static str, u16), over: Arc<AtomicBool>) -> Stranger {
    Stranger::start(move |client| {
        serve(client, |words, output| {
            if over.load(Ordering::SeqCst) {
                return Err(std::io::ErrorKind::ConnectionAborted.into());
            }
            let told = match words {
                ["info", "server"] => bulk("redis_mode:sentinel\r\nredis_version:7.0.15\r\n"),
                ["sentinel", "masters"] => list(&[map(&[
                    ("name", "mymaster"),
                    ("ip", primary.0),
                    ("port", primary.1.to_string().as_str()),
                ])]),
                ["sentinel", "sentinels", ..] => {
                    list(&[map(&[("ip", peer.0), ("port", peer.1.to_string().as_str())])])
                }
                _ => as_engine(words),
            };
            output.write_all(told.as_bytes())
        });
    })
}

/// A node of a cluster that says this of its slots and of others.
fn cluster(slots: &'static str, others: String) -> Stranger {
    scripted(move |words, _| match words {
        ["info", "server"] => Some(bulk("redis_mode:cluster\r\nredis_version:7.0.15\r\n")),
        ["cluster", "nodes"] => {
            let own = format!(
                "{} :0@0 myself,master - 0 0 1 connected {slots}\n",
                "a".repeat(40)
            );
            Some(bulk(&format!("{own}{others}")))
        }
        _ => None,
    })
}

#[track_caller]
fn is_told_nothing(caller: &Caller, stranger: &Stranger) {
    let wish = json!({"name": "liar", "addresses": [address(stranger.port)]});
    let refused = caller.ck("POST", "/attachments", Some(&wish)).expect(400).json();
    assert_eq!(refused["error_msg"], ALIKE, "{refused}");
}

#[test]
fn a_sentinel_that_names_a_forbidden_address_leads_nobody_there() {
    let forbidden = Stranger::start_at(FORBIDDEN, drop);
    let foreign = start(Form::Single, Access::Open, &[]);
    let service = Service::start_with(&ALLOWED, &[]);
    let caller = service.caller();
    let elsewhere = (FORBIDDEN, forbidden.port);
    let is_over = Arc::new(AtomicBool::new(false));
    is_told_nothing(&caller, &sentinel(elsewhere, elsewhere, is_over.clone()));
    assert!(service.log().contains("which --attach-allow does not allow"));

    // As a Sentinel it is kept, and asked when the one that named it is gone.
    let liar = sentinel(("127.0.0.1", foreign.nodes[0].port), elsewhere, is_over.clone());
    let id = attach_open(&caller, "led-astray", &[liar.port]);
    let shown = caller
        .ck("GET", &format!("/attachments/{id}"), None)
        .expect(200)
        .json();
    assert!(shown["sentinels"].to_string().contains(FORBIDDEN), "{shown}");
    is_over.store(true, Ordering::SeqCst);
    caller.make_backup(&id, "by what is known besides");
    assert_eq!(forbidden.came(), 0);
}

#[test]
fn nodes_of_a_cluster_that_are_forbidden_are_not_connected_to() {
    let forbidden = Stranger::start_at(FORBIDDEN, drop);
    let service = Service::start_with(&ALLOWED, &[]);
    let caller = service.caller();
    let other = |what: &str| format!("{} {FORBIDDEN}:{}@1 {what}\n", "b".repeat(40), forbidden.port);
    is_told_nothing(
        &caller,
        &cluster("0-8191", other("master - 0 0 2 connected 8192-16383")),
    );

    let replica = other(&format!("slave {} 0 0 1 connected", "a".repeat(40)));
    let liar = cluster("0-16383", replica);
    let made = attach(
        &caller,
        &json!({"name": "half", "addresses": [address(liar.port)]}),
    );
    let notes = made["notes"].to_string();
    assert!(
        notes.contains("nothing that may be connected to answers there"),
        "{notes}"
    );
    let id = made["instance_id"].as_str().unwrap();
    let backup = caller.start_backup(id, "of the primary alone");
    let record = caller.wait_end(id, "backups", &backup);
    assert_eq!(record["status"], "failed", "it has no PSYNC: {record}");
    assert_eq!(forbidden.came(), 0);
}

/// An instance of ours with some keys, and a backup of it.
fn backed_up(caller: &Caller) -> (String, String) {
    let id = caller.make_instance("honest");
    let mut engine = caller.engine(&id);
    for number in 0..KEYS {
        engine
            .send(&["SET", &format!("key:{number}"), "the value of it"])
            .unwrap();
    }
    engine.settle().unwrap();
    let backup = caller.make_backup(&id, "some keys");
    (id, backup)
}

/// Restores that into these servers, and returns the record.
fn restored(caller: &Caller, from: &(String, String), into: &str, replay: &Value) -> Value {
    let wish = json!({"backup_id": from.1, "source_instance_id": from.0, "replay": replay});
    let path = format!("/instances/{into}/restores");
    let started = caller.ck("POST", &path, Some(&wish)).expect(200).json();
    caller.wait_end(into, "restores", started["restore_id"].as_str().unwrap())
}

#[test]
fn a_redirection_to_a_forbidden_address_is_not_followed() {
    let forbidden = Stranger::start_at(FORBIDDEN, drop);
    let service = Service::start_with(&ALLOWED, &[]);
    let caller = service.caller();
    let from = backed_up(&caller);
    for verb in ["MOVED", "ASK"] {
        let port = forbidden.port;
        let liar = scripted(move |words, own| {
            Some(match words {
                ["info", "server"] => bulk("redis_mode:cluster\r\nredis_version:7.0.15\r\n"),
                ["cluster", "nodes"] => bulk(&format!(
                    "{} :0@0 myself,master - 0 0 1 connected 0-16383\n",
                    "a".repeat(40)
                )),
                ["cluster", "slots"] => {
                    let node = list(&[bulk(""), format!(":{own}\r\n")]);
                    list(&[list(&[":0\r\n".to_owned(), ":16383\r\n".to_owned(), node])])
                }
                ["client", "setname", ..] => "+OK\r\n".to_owned(),
                ["client", "list", ..] => bulk(""),
                ["restore", ..] => format!("-{verb} 77 {FORBIDDEN}:{port}\r\n"),
                _ => return None,
            })
        });
        let id = attach_open(&caller, &format!("sends-on-{verb}"), &[liar.port]);
        let wish = json!({"patience": 1, "safety_point": false});
        let record = restored(&caller, &from, &id, &wish);
        assert_eq!(
            (&record["status"], &record["ext"]["target_state"]),
            (&json!("failed"), &json!("partial")),
            "{verb}: {record}"
        );
        assert_eq!(record["ext"]["keys_applied"], 0, "{verb}: {record}");
    }
    assert_eq!(forbidden.came(), 0);
}

/// What a target answers to each key that is written to it, and all of it is nonsense.
const NONSENSE: [(&str, &[u8]); 7] = [
    ("nil", b"$-1\r\n"),
    ("an empty array", b"*0\r\n"),
    ("an empty line", b"\r\n"),
    ("another protocol", b"HTTP/1.1 200 OK\r\n\r\n"),
    ("a huge bulk", b"$999999999999\r\n"),
    ("a bulk without a number", b"$secret\r\n"),
    ("an array of many huge bulks", b"*1048576\r\n$9999999\r\n"),
];

/// What a target says that is told to take keys: `write` answers to those, and everything else is `+OK`.
fn taker(
    written: Arc<AtomicUsize>,
    write: impl Fn(&mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
) -> Stranger {
    Stranger::start(move |client| {
        serve(client, |words, output| match words {
            ["restore", ..] => {
                written.fetch_add(1, Ordering::SeqCst);
                write(output)
            }
            ["info", ..] | ["ping"] => output.write_all(as_engine(words).as_bytes()),
            ["client", "list", ..] => output.write_all(bulk("").as_bytes()),
            _ => output.write_all(b"+OK\r\n"),
        });
    })
}

#[test]
fn a_target_that_answers_nonsense_ends_the_restore_with_a_true_state_and_costs_little() {
    let service = Service::start_with(&ALLOWED, &[]);
    let caller = service.caller();
    let from = backed_up(&caller);
    let written = Arc::new(AtomicUsize::new(0));
    let unsafe_one = json!({"patience": 1, "safety_point": false});
    let check = |what: &str, target: &Stranger, wish: &Value, state: &str| {
        let name = format!("target-{}", target.port);
        let id = attach_open(&caller, &name, &[target.port]);
        let before = resident(service.pid());
        forget_peak(service.pid());
        let record = restored(&caller, &from, &id, wish);
        let grown = peak(service.pid()).saturating_sub(before);
        assert_eq!(
            (&record["status"], &record["ext"]["target_state"]),
            (&json!("failed"), &json!(state)),
            "{what}: {record}"
        );
        let told = record["ext"]["failure"].to_string();
        assert!(!told.contains("secret"), "{what}: {record}");
        assert!(grown < 64 << 20, "{what}: {grown} bytes");
    };
    for (what, bytes) in NONSENSE {
        let target = taker(written.clone(), move |output| output.write_all(bytes));
        let before = written.load(Ordering::SeqCst);
        check(what, &target, &unsafe_one, "partial");
        assert!(
            written.load(Ordering::SeqCst) > before,
            "{what}: it was written to"
        );
    }
    let endless = taker(written.clone(), |output| {
        let block = [b'a'; 65536];
        output.write_all(b"+")?;
        loop {
            output.write_all(&block)?;
        }
    });
    check("an endless line", &endless, &unsafe_one, "partial");
    let gone = taker(written.clone(), |_| {
        Err(std::io::ErrorKind::ConnectionAborted.into())
    });
    check("the end of the connection", &gone, &unsafe_one, "partial");

    // One that takes everything gives no safety point: nothing is written to it.
    let before = written.load(Ordering::SeqCst);
    let yes = taker(written.clone(), |output| output.write_all(b"+OK\r\n"));
    check("OK to everything", &yes, &json!({"patience": 1}), "untouched");
    assert_eq!(written.load(Ordering::SeqCst), before);
    // Without one the record says what it said: that it has every key.
    let id = attach_open(&caller, "takes-all", &[yes.port]);
    let record = restored(&caller, &from, &id, &unsafe_one);
    let is_whole = record["ext"]["keys_applied"] == KEYS;
    let is_replaced = record["ext"]["target_state"] == "replaced";
    assert_eq!(record["status"] == "succeed", is_replaced, "{record}");
    assert!(is_whole || !is_replaced, "{record}");
}
