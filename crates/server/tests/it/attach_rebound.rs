//! A name that leads elsewhere than when it was attached: the test writes the hosts file that the whole system asks, one of its own that is
//! mounted over the machine's.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use xtask::foreign::{Access, Form};
use xtask::scratch::Scratch;

use crate::attach::{ALIKE, Stranger, attach, start};
use crate::service::{Caller, Service, wait};

/// Names the hosts file to the test where that is mounted.
const HOSTS: &str = "CACHEKEEP_TEST_HOSTS";
const TEST: &str = "attach_rebound::a_name_that_leads_to_a_forbidden_address_later_on_is_not_followed_there";
const NAME: &str = "moves.test";
const ALLOWED: &str = "127.0.0.1";
const FORBIDDEN: &str = "127.0.0.2";
/// Backups while the name changes all the time.
const BACKUPS: usize = 12;
const BETWEEN_CHANGES: Duration = Duration::from_millis(7);
const CHANGES_MAX: usize = 10_000;

/// Runs the test once more behind a mount of its own, which no other program sees. What says why, where that cannot be.
fn run_behind_a_mount() -> Result<(), String> {
    let scratch = Scratch::new("hosts").map_err(|stop| stop.to_string())?;
    let hosts = scratch.path().join("hosts");
    std::fs::write(&hosts, "").map_err(|error| error.to_string())?;
    let mount = "mount --bind \"$1\" /etc/hosts";
    let ways: [&[&str]; 2] = [&["--mount"], &["--user", "--map-root-user", "--mount"]];
    let run = |way: &[&str], script: &str| {
        let mut command = Command::new("unshare");
        command
            .args(way)
            .args(["sh", "-c", script, "sh"])
            .arg(&hosts)
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", TEST, "--nocapture"])
            .env(HOSTS, &hosts);
        command.output()
    };
    let mut why = String::new();
    for way in ways {
        match run(way, mount) {
            Ok(output) if output.status.success() => {
                let output = run(way, &format!("{mount} && shift && exec \"$@\""))
                    .map_err(|error| error.to_string())?;
                let told = String::from_utf8_lossy(&output.stdout).into_owned();
                print!("{told}{}", String::from_utf8_lossy(&output.stderr));
                // A name that no test has would run none and succeed.
                let has_passed = output.status.success() && told.contains("1 passed");
                assert!(has_passed, "{TEST} failed behind a mount of its own");
                return Ok(());
            }
            Ok(output) => String::from_utf8_lossy(&output.stderr)
                .trim()
                .clone_into(&mut why),
            Err(error) => why = format!("unshare: {error}"),
        }
    }
    Err(why)
}

/// From now on the name has these addresses. The file stays the same one, for it is what is mounted.
fn lead_to(addresses: &[&str]) {
    let lines: Vec<String> = addresses
        .iter()
        .map(|address| format!("{address} {NAME}\n"))
        .collect();
    std::fs::write(std::env::var_os(HOSTS).unwrap(), lines.concat()).unwrap();
}

/// Waits until the instance serves where it was attached, as far as the service has seen.
fn lead_back(caller: &Caller, instance: &str) {
    lead_to(&[ALLOWED]);
    wait("an instance that serves", || {
        let shown = caller.get(&format!("/instances/{instance}")).expect(200).json();
        (shown["status"] == "RUNNING" && shown["task"].is_null()).then_some(())
    });
}

/// The record of what was asked for once it has ended; `None`: it was refused, for the service has seen that nothing serves there.
fn done(caller: &Caller, instance: &str, list: &str, wish: &Value) -> Option<Value> {
    let asked = caller.v2("POST", &format!("/instances/{instance}/{list}"), Some(wish));
    if asked.status != 200 {
        return None;
    }
    let asked = asked.json();
    let id = ["backup_id", "restore_id"]
        .iter()
        .find_map(|name| asked[name].as_str());
    let path = format!("/instances/{instance}/{list}/{}", id.unwrap());
    Some(wait("the end of a record", || {
        let record = caller.ck("GET", &path, None).expect(200).json();
        let has_ended = record["status"] == "succeed" || record["status"] == "failed";
        has_ended.then_some(record)
    }))
}

#[test]
fn a_name_that_leads_to_a_forbidden_address_later_on_is_not_followed_there() {
    if std::env::var_os(HOSTS).is_none() {
        if let Err(why) = run_behind_a_mount() {
            eprintln!("\nNOT SHOWN: names that lead elsewhere later on; {why}\n");
        }
        return;
    }
    let foreign = start(Form::Single, Access::Open, &[]);
    let port = foreign.nodes[0].port;
    // The same port, so that nothing but the address tells them apart.
    let stranger = Stranger::start_on((FORBIDDEN, port), drop);
    let service = Service::start_with(&["--attach-allow", ALLOWED], &[]);
    let caller = service.caller();
    let wish = json!({"name": "named", "addresses": [format!("{NAME}:{port}")]});

    lead_to(&[ALLOWED]);
    let id = attach(&caller, &wish)["instance_id"].as_str().unwrap().to_owned();
    let backup = caller.make_backup(&id, "by name");

    let again = json!({"name": "again", "addresses": [format!("{NAME}:{port}")]});
    let mut accepted = 0;
    for addresses in [
        &[FORBIDDEN][..],
        &[ALLOWED, FORBIDDEN],
        &[FORBIDDEN, ALLOWED],
        &["169.254.169.254"],
    ] {
        for (list, wish) in [("backups", json!({})), ("restores", json!({"backup_id": backup}))] {
            lead_back(&caller, &id);
            lead_to(addresses);
            let Some(record) = done(&caller, &id, list, &wish) else {
                continue;
            };
            accepted += 1;
            assert_eq!(record["status"], "failed", "{addresses:?}: {record}");
            let told = record["ext"]["failure"].as_str().unwrap();
            assert!(
                addresses.iter().all(|address| !told.contains(address)),
                "{addresses:?}: {told}"
            );
            if list == "restores" {
                assert_eq!(
                    record["ext"]["target_state"], "untouched",
                    "{addresses:?}: {record}"
                );
            }
        }
        let refused = caller.ck("POST", "/attachments", Some(&again)).expect(400).json();
        assert_eq!(refused["error_msg"], ALIKE, "{addresses:?}");
    }
    assert!(accepted > 0, "nothing was asked of it in time");
    let why = format!("leads to {FORBIDDEN}:{port}, which --attach-allow does not allow");
    assert!(service.log().contains(&why));

    // It changes between any two looks at it.
    let is_over = AtomicBool::new(false);
    let ends: Vec<bool> = std::thread::scope(|scope| {
        scope.spawn(|| {
            for address in [ALLOWED, FORBIDDEN].into_iter().cycle().take(CHANGES_MAX) {
                if is_over.load(Ordering::SeqCst) {
                    break;
                }
                lead_to(&[address]);
                std::thread::sleep(BETWEEN_CHANGES);
            }
        });
        let ends = std::iter::repeat_with(|| done(&caller, &id, "backups", &json!({})))
            .take(BACKUPS)
            .flatten()
            .map(|record| record["status"] == "succeed")
            .collect();
        is_over.store(true, Ordering::SeqCst);
        ends
    });
    let well = ends.iter().filter(|is_well| **is_well).count();
    println!(
        "{} backups while the name changed, {well} of them where they were to be",
        ends.len()
    );
    assert_eq!(stranger.came(), 0);

    lead_back(&caller, &id);
    caller.make_backup(&id, "where it was");
    // The other one would have been reached.
    std::net::TcpStream::connect((FORBIDDEN, port)).unwrap();
    wait("the stranger's count", || (stranger.came() == 1).then_some(()));
}
