//! An engine that breaks in the middle of its life, as the API tells it: what was accepted fails with the right code,
//! what comes later is refused, and once the cause is gone the instance is back with its data.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};
use xtask::resp;
use xtask::service::processes_in;

use crate::service::{Caller, Service, wait};

/// The one engine of the service: its process and its directory.
fn engine_of(service: &Service) -> (u32, PathBuf) {
    let pids = processes_in(&service.data());
    assert_eq!(pids.len(), 1, "{pids:?}");
    let home = std::fs::read_link(format!("/proc/{}/cwd", pids[0])).unwrap();
    (pids[0], home)
}

/// Returns when the process is gone, with its port.
fn kill(pid: u32) {
    Command::new("kill")
        .args(["-9", &pid.to_string()])
        .status()
        .unwrap();
    let stat = format!("/proc/{pid}/stat");
    wait("the end of the engine", || {
        // A dead process may stay listed for a moment, without memory or ports.
        let stat = std::fs::read_to_string(&stat).unwrap_or_default();
        (stat.is_empty() || stat.contains(") Z ")).then_some(())
    });
}

/// An instance with one key that is on disk, and a backup of it.
fn instance_with_a_key(service: &Service, name: &str) -> (String, String) {
    let caller = service.caller();
    let instance = caller.make_instance(name);
    caller.engine(&instance).ask(&["SET", "key", "value"]).unwrap();
    // The backup is over after the engine has synced its file: it does so each second.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let backup = caller.make_backup(&instance, "whole");
    (instance, backup)
}

fn shown(caller: &Caller, instance: &str) -> Value {
    caller.get(&format!("/instances/{instance}")).expect(200).json()
}

#[track_caller]
fn wait_status(caller: &Caller, instance: &str, status: &str) -> Value {
    wait("the status of a broken instance", || {
        let shown = shown(caller, instance);
        (shown["status"] == status).then_some(shown)
    })
}

/// What changes nothing and needs an engine is refused, in both versions, and leaves no record.
#[track_caller]
fn check_refused(caller: &Caller, instance: &str, backup: &str) {
    let (backups, restores) = (
        format!("/instances/{instance}/backups"),
        format!("/instances/{instance}/restores"),
    );
    let count = |path: &str| caller.get(path).expect(200).json()["total_num"].clone();
    let before = (count(&backups), count(&restores));
    let wish = json!({"backup_id": backup});
    caller.v2("POST", &backups, None).refused("400 DCS.4049");
    caller.v1("POST", &backups, None).refused("400 111400026");
    caller.v2("POST", &restores, Some(&wish)).refused("400 DCS.4049");
    caller.v1("POST", &restores, Some(&wish)).refused("400 111400026");
    assert_eq!((count(&backups), count(&restores)), before);
}

/// It runs, with the key, and is backed up again.
#[track_caller]
fn check_back(caller: &Caller, instance: &str) {
    wait_status(caller, instance, "RUNNING");
    let shown = shown(caller, instance);
    assert_eq!(shown["ext"]["failure"], Value::Null, "{shown}");
    let port = u16::try_from(shown["port"].as_u64().unwrap()).unwrap();
    let target = resp::Target::local(port, None);
    let key = wait("clients are let in", || {
        resp::Connection::open(&target).ok()?.ask(&["GET", "key"]).ok()
    });
    assert_eq!(key.text(), Some("value"));
    caller.make_backup(instance, "after");
}

#[test]
fn a_backup_of_an_engine_that_was_killed_is_dcs_08_0001_and_the_instance_comes_back() {
    let service = Service::start();
    let caller = service.caller();
    let (instance, _) = instance_with_a_key(&service, "killed");
    // The reconciler looks every few seconds: it may have been there first.
    let failed = wait("a backup that finds no engine", || {
        caller.wait_idle(&instance);
        kill(engine_of(&service).0);
        let id = caller.start_backup(&instance, "no engine");
        let record = caller.wait_end(&instance, "backups", &id);
        wait("the engine is back", || {
            (processes_in(&service.data()).len() == 1).then_some(())
        });
        (record["status"] == "failed").then_some(record)
    });
    assert_eq!(failed["error_code"], "dcs.08.0001", "{failed}");
    assert_eq!(failed["is_support_restore"], "FALSE", "{failed}");
    assert_ne!(failed["ext"]["failure"], Value::Null, "{failed}");
    check_back(&caller, &instance);
}

#[test]
fn an_engine_whose_files_cannot_be_read_makes_the_instance_error_until_they_can() {
    let mut service = Service::start();
    service.expect_trouble("the engine cannot be brought back");
    let caller = service.caller();
    let (instance, backup) = instance_with_a_key(&service, "unreadable");
    let (engine, home) = engine_of(&service);
    let appended = home.join("appendonlydir");
    let mode = std::fs::metadata(&appended).unwrap().permissions().mode();
    // Root among us reads it all the same; the engine's user does not.
    std::fs::set_permissions(&appended, std::fs::Permissions::from_mode(0o0)).unwrap();
    kill(engine);
    let broken = wait_status(&caller, &instance, "ERROR");
    let why = broken["ext"]["failure"].as_str().unwrap();
    assert!(why.contains("Permission denied"), "{why}");
    assert!(
        !why.contains(service.data().to_str().unwrap()),
        "paths are the log's: {why}"
    );
    let v1 = caller
        .v1("GET", &format!("/instances/{instance}"), None)
        .expect(200)
        .json();
    assert_eq!(v1["status"], "ERROR", "{v1}");
    let listed = caller.get("/instances?status=ERROR").expect(200).json();
    assert_eq!(listed["instances"][0]["instance_id"], json!(instance));
    check_refused(&caller, &instance, &backup);
    std::fs::set_permissions(&appended, std::fs::Permissions::from_mode(mode)).unwrap();
    check_back(&caller, &instance);
}

#[test]
fn a_port_taken_while_the_engine_was_down_makes_the_instance_error_until_it_is_free() {
    let mut service = Service::start();
    service.expect_trouble("the engine cannot be brought back");
    let caller = service.caller();
    let (instance, backup) = instance_with_a_key(&service, "portless");
    let port = u16::try_from(shown(&caller, &instance)["port"].as_u64().unwrap()).unwrap();
    // The service may have started the engine again before the port is ours.
    let stranger = wait("the port of the killed engine", || {
        processes_in(&service.data()).into_iter().for_each(kill);
        TcpListener::bind(("127.0.0.1", port)).ok()
    });
    // Its first reason may be that we killed the engine that it had just started.
    wait("an error that names the port", || {
        let now = shown(&caller, &instance);
        let why = now["ext"]["failure"].as_str()?;
        (now["status"] == "ERROR" && why.contains(&port.to_string())).then_some(())
    });
    check_refused(&caller, &instance, &backup);
    drop(stranger);
    check_back(&caller, &instance);
}
