//! How far a backup can be trusted: found out beside the service, written on the record, heeded by restores.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use xtask::service::processes_in;

use crate::service::{Caller, Service, wait};

fn proof(caller: &Caller, instance: &str, backup: &str) -> Value {
    let path = format!("/instances/{instance}/backups/{backup}");
    let row = caller.ck("GET", &path, None).expect(200).json();
    json!([row["is_support_restore"], row["ext"]["proof"]])
}

fn fill(caller: &Caller, instance: &str) {
    let mut engine = caller.engine(instance);
    for call in [
        &["DEBUG", "POPULATE", "30000", "key", "400"][..],
        &["HSET", "hash", "f", "v"],
        &["SELECT", "1"],
        &["SET", "short-lived", "value", "PX", "1"],
        &["SET", "elsewhere", "value"],
    ] {
        engine.ask(call).unwrap();
    }
}

/// The stored segments of a backup.
fn segments(service: &Service, caller: &Caller, instance: &str, backup: &str) -> Vec<PathBuf> {
    let folder = service.data().join("store").join(&caller.project).join(instance);
    let folder = folder.join(backup).join("1/shard-0");
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().contains("seg-"))
        .collect();
    found.sort();
    found
}

#[test]
fn each_level_is_written_on_the_record_and_a_lower_one_takes_nothing_back() {
    let service = Service::start();
    let caller = service.caller();
    let instance = caller.make_instance("verified");
    fill(&caller, &instance);
    let backup = caller.make_backup(&instance, "");
    assert_eq!(proof(&caller, &instance, &backup), json!(["TRUE", null]));
    for level in ["stored", "parsed", "proven", "stored"] {
        let told = service.run_json(&["backup", "verify", "verified", "latest", "--level", level, "-q"]);
        assert_eq!(
            (&told["holds"], &told["level"]),
            (&json!(true), &json!(level)),
            "{told}"
        );
        let shown = &proof(&caller, &instance, &backup)[1];
        let kept = if level == "stored" && !shown["engine"].is_null() {
            "proven"
        } else {
            level
        };
        assert_eq!(
            (&shown["level"], &shown["holds"]),
            (&json!(kept), &json!(true)),
            "{shown}"
        );
    }
    let shown = &proof(&caller, &instance, &backup)[1];
    assert!(
        shown["engine"]
            .as_str()
            .unwrap()
            .starts_with(|digit: char| digit.is_ascii_digit()),
        "{shown}"
    );
    assert!(
        shown["load_ms"].as_i64().unwrap() > 0 && shown["verified_at"].is_string(),
        "{shown}"
    );
    let spool = std::fs::read_dir(service.data().join("spool")).unwrap();
    let left: Vec<_> = spool.map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.is_empty(), "a verify leaves nothing behind: {left:?}");
    caller.make_restore(&instance, &backup, "still restorable");
    let none = service.run(&["backup", "verify", "verified", "nothing"]);
    assert_eq!(none.status.code(), Some(1));
}

#[test]
fn a_damaged_backup_is_told_kept_and_not_restored_until_it_is_whole_again() {
    let service = Service::start();
    let caller = service.caller();
    let instance = caller.make_instance("damaged");
    fill(&caller, &instance);
    let backup = caller.make_backup(&instance, "");
    let segment = segments(&service, &caller, &instance, &backup).remove(0);
    let whole = std::fs::read(&segment).unwrap();
    let mut bytes = whole.clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    for level in ["stored", "parsed", "proven"] {
        std::fs::write(&segment, &bytes).unwrap();
        let output = service.run(&["backup", "verify", "damaged", &backup, "--level", level, "-q"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains("cachekeep backup create"));
        let shown = proof(&caller, &instance, &backup);
        assert_eq!((&shown[0], &shown[1]["holds"]), (&json!("FALSE"), &json!(false)));
        assert!(
            shown[1]["failure"].as_str().unwrap().contains("seg-000000"),
            "{shown}"
        );
        caller
            .v2(
                "POST",
                &format!("/instances/{instance}/restores"),
                Some(&json!({"backup_id": backup})),
            )
            .refused("400 DCS.4087");
        assert_eq!(
            std::fs::read(&segment).unwrap(),
            bytes,
            "nothing is mended or removed"
        );
        std::fs::write(&segment, &whole).unwrap();
        // What a lower level cannot see, it does not take back.
        if level == "proven" {
            service.run_json(&["backup", "verify", "damaged", &backup, "--level", "stored", "-q"]);
            assert_eq!(proof(&caller, &instance, &backup)[0], "FALSE");
        }
        service.run_json(&["backup", "verify", "damaged", &backup, "--level", level, "-q"]);
        assert_eq!(proof(&caller, &instance, &backup)[0], "TRUE");
    }
    caller.make_restore(&instance, &backup, "whole again");
}

#[test]
fn an_engine_of_somebodys_choice_that_does_not_load_it_is_not_held_against_the_backup() {
    use std::os::unix::fs::PermissionsExt as _;
    let service = Service::start();
    let caller = service.caller();
    let instance = caller.make_instance("chosen");
    let backup = caller.make_backup(&instance, "");
    let program = service.data().join("redis-server");
    std::fs::write(
        &program,
        "#!/bin/sh\n[ \"$1\" = --version ] && echo 'Redis server v=9.9.9 sha=0 bits=64' && exit\nexit 1\n",
    )
    .unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let words = [
        "backup", "verify", "chosen", &backup, "--level", "proven", "--engine",
    ];
    let output = service.run(&[&words[..], &[program.to_str().unwrap()]].concat());
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.code() == Some(1) && told.contains("not verified"),
        "{told}"
    );
    assert_eq!(proof(&caller, &instance, &backup), json!(["TRUE", null]));
}

#[test]
fn a_verify_waits_for_no_operation_and_the_engine_of_one_that_dies_is_ended() {
    let service = Service::start();
    let caller = service.caller();
    let instance = caller.make_instance("beside");
    let mut engine = caller.engine(&instance);
    engine
        .ask(&["DEBUG", "POPULATE", "200000", "key", "300"])
        .unwrap();
    let backup = caller.make_backup(&instance, "");
    let mut child = Command::new(env!("CARGO_BIN_EXE_cachekeep"))
        .args([
            "backup",
            "verify",
            "beside",
            &backup,
            "--level",
            "proven",
            "--data-dir",
        ])
        .arg(service.data())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let spool = service.data().join("spool");
    wait("a throw-away engine", || {
        assert!(
            child.try_wait().unwrap().is_none(),
            "it was over before it was looked at"
        );
        (!processes_in(&spool).is_empty()).then_some(())
    });
    // Held in the middle: the instance is as free as ever.
    let stopped = Command::new("kill")
        .args(["-STOP", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(stopped.success());
    caller.make_restore(&instance, &backup, "beside a verify");
    child.kill().unwrap();
    child.wait().unwrap();
    wait("the end of its engine and of what it left", || {
        let left = std::fs::read_dir(&spool).unwrap().count();
        (processes_in(&spool).is_empty() && left == 0).then_some(())
    });
    assert_eq!(proof(&caller, &instance, &backup), json!(["TRUE", null]));
}
