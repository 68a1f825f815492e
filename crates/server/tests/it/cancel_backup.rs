//! Backups that are given up: they end at once, nothing of them stays, and the source is as it was.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use xtask::foreign::{Access, Deployment, Form};
use xtask::object_server::ObjectServer;
use xtask::throttle::Throttle;

use crate::attach::{LOOPBACK, attach_open, start};
use crate::beside_api::{verify, wait_verified};
use crate::http::Answer;
use crate::service::{Caller, Service, wait};
use crate::storage::{BUCKET, add};

const UNKNOWN: &str = "0e37df36-f698-11e6-8dd4-cb9ced3df976";
/// From the answer to a cancellation to the end of what is at work.
const ENDS_WITHIN: Duration = Duration::from_secs(2);

/// A server of somebody else's with a snapshot of 24 MB that comes so slowly.
fn slow_source(bytes_per_second: u32) -> (Throttle, Deployment) {
    let settings = [("repl-diskless-sync-delay", "1"), ("save", "")];
    let server = start(Form::Single, Access::Open, &settings);
    let populate = ["DEBUG", "POPULATE", "24000", "key", "1000"];
    server.nodes[0].ask(&populate).unwrap();
    let address = ([127, 0, 0, 1], server.nodes[0].port).into();
    (Throttle::start(address, bytes_per_second).unwrap(), server)
}

fn record(caller: &Caller, instance: &str, backup: &str) -> Value {
    let path = format!("/instances/{instance}/backups/{backup}");
    caller.ck("GET", &path, None).expect(200).json()
}

fn cancel(caller: &Caller, instance: &str, backup: &str) -> Answer {
    let path = format!("/instances/{instance}/backups/{backup}/cancel");
    caller.ck("POST", &path, None)
}

#[track_caller]
fn assert_cancelled(record: &Value) {
    assert_eq!(
        (
            &record["status"],
            &record["error_code"],
            &record["ext"]["failure"]
        ),
        (
            &json!("failed"),
            &json!("dcs.08.0001"),
            &json!("it was cancelled")
        ),
        "{record}"
    );
}

/// How many files lie below a folder, which may not be there.
fn files(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let counts = entries.map(|entry| match entry.path() {
        below if below.is_dir() => files(&below),
        _ => 1,
    });
    counts.sum()
}

#[test]
fn a_backup_that_is_cancelled_while_it_captures_ends_at_once_and_leaves_nothing() {
    let (throttle, foreign) = slow_source(5_000_000);
    let service = Service::start_with(&LOOPBACK, &[]);
    let caller = service.caller();
    let instance = attach_open(&caller, "throttled", &[throttle.address().port()]);
    let backup = caller.start_backup(&instance, "given up");
    let store = service.data().join("store").join(&caller.project);
    let folder = store.join(&instance).join(&backup);
    wait("a stored segment", || (files(&folder) > 0).then_some(()));

    let since = Instant::now();
    let asked = cancel(&caller, &instance, &backup).expect(200).json();
    assert_eq!(asked["backup_id"], backup);
    let ended = caller.wait_end(&instance, "backups", &backup);
    let took = since.elapsed();
    assert_cancelled(&ended);
    assert!(took < ENDS_WITHIN, "{took:?}");
    assert_eq!(ended["ext"]["phase"], Value::Null, "{ended}");
    assert_eq!(files(&folder), 0);
    wait("connections to the source to be closed", || {
        (throttle.connections() == 0).then_some(())
    });
    let node = &foreign.nodes[0];
    for (name, before) in [("repl-diskless-sync-delay", "1"), ("rdbcompression", "yes")] {
        assert_eq!(node.setting(name).unwrap(), before, "{name}");
    }
    println!("a capture had ended {took:?} after it was cancelled");

    let second = caller.make_backup(&instance, "after it");
    assert_eq!(record(&caller, &instance, &second)["ext"]["keys"], 24_000);
    for backup in [&backup, &second] {
        let refused = cancel(&caller, &instance, backup).refused("400 DCS.4026");
        assert!(refused.text().contains("it has ended"), "{}", refused.text());
    }
    for nothing in [UNKNOWN, "x"] {
        cancel(&caller, &instance, nothing).refused("400 DCS.4031");
    }
    let entries = service.run_json(&["audit", "list", "--limit", "1000"])["entries"].clone();
    let told: Vec<&Value> = entries
        .as_array()
        .unwrap()
        .iter()
        .filter(|entry| entry["what"] == "CkCancelBackup")
        .map(|entry| &entry["subject"])
        .collect();
    let subject = format!("instance_id={instance} backup_id={backup}");
    assert_eq!(told, [&json!(subject)]);
}

#[test]
fn a_backup_that_waits_for_its_turn_has_ended_when_its_cancellation_is_answered() {
    let (throttle, _foreign) = slow_source(800_000);
    let service = Service::start_with(&[&LOOPBACK[..], &["--jobs", "1"]].concat(), &[]);
    let caller = service.caller();
    let slow = attach_open(&caller, "throttled", &[throttle.address().port()]);
    let other = caller.make_instance("waiting");
    let at_work = caller.start_backup(&slow, "has the only place");
    wait("a backup at work", || {
        (record(&caller, &slow, &at_work)["status"] == "backuping").then_some(())
    });
    let waits = caller.start_backup(&other, "waits");
    cancel(&caller, &other, &waits).expect(200);
    let ended = record(&caller, &other, &waits);
    assert_cancelled(&ended);
    assert_eq!(ended["execution_at"], Value::Null, "{ended}");
    // The instance is free again.
    let next = caller.start_backup(&other, "takes the place");
    let told = service.run_json(&["backup", "cancel", "throttled", "--wait"]);
    assert_eq!(told["backup_id"], at_work, "{told}");
    assert_cancelled(&told);
    let ended = caller.wait_end(&other, "backups", &next);
    assert_eq!(ended["status"], "succeed", "{ended}");
    let refused = service.run(&["backup", "cancel", "throttled"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success(), "{said}");
    assert!(said.contains("there is nothing to cancel"), "{said}");
}

#[test]
fn a_verify_that_is_cancelled_ends_whether_it_waits_or_is_at_work_and_says_nothing_of_its_backup() {
    let objects = ObjectServer::start(BUCKET).unwrap_or_else(|stop| panic!("{stop}"));
    // What is read from the store comes slowly.
    let slow = Throttle::start(objects.address(), 20_000).unwrap();
    let service = Service::start();
    let added = add(&service, "slow", &format!("http://{}", slow.address()), &[]);
    assert!(added.status.success(), "{added:?}");
    service.run_json(&["storage", "default", "slow"]);
    let caller = service.caller();
    let instance = caller.make_instance("looked-at");
    let populate = ["DEBUG", "POPULATE", "60000", "key", "1000"];
    caller.engine(&instance).ask(&populate).unwrap();
    let backups = ["one", "two"].map(|remark| caller.make_backup(&instance, remark));
    let before = backups.each_ref().map(|id| record(&caller, &instance, id));

    let asked = backups
        .each_ref()
        .map(|id| verify(&caller, &instance, id, "stored"));
    let path = format!("/instances/{instance}/backups/{}/verifications", backups[0]);
    wait("a verify at work", || {
        let list = caller.ck("GET", &path, None).expect(200).json();
        (list["verifications"][0]["status"] == "running").then_some(())
    });
    let cancelled = |number: usize| {
        let row = wait_verified(&caller, &instance, &backups[number], &asked[number]);
        assert_eq!(
            (&row["status"], &row["failure"]),
            (&json!("failed"), &json!("it was cancelled")),
            "{row}"
        );
        row
    };
    let waiting = format!("/instances/{instance}/backups/{}/verify/cancel", backups[1]);
    caller.ck("POST", &waiting, None).expect(200);
    assert_eq!(cancelled(1)["started_at"], Value::Null);
    service.run_json(&["backup", "cancel-verify", "looked-at", &backups[0]]);
    let row = cancelled(0);
    assert_ne!(row["started_at"], Value::Null, "{row}");
    for (id, before) in backups.iter().zip(&before) {
        assert_eq!(record(&caller, &instance, id), *before);
    }
    let refused = caller.ck("POST", &waiting, None).refused("400 DCS.4026");
    assert!(
        refused.text().contains("no verify of this backup"),
        "{}",
        refused.text()
    );
}
