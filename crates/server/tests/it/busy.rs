//! One management operation on an instance at a time, and which refusal each of the others gets.

use std::sync::Barrier;
use std::time::Duration;

use serde_json::{Value, json};
use xtask::resp::Reply;

use crate::http::Answer;
use crate::service::{Caller, Service, wait};

const UNKNOWN: &str = "f4823e9e-fe9b-4ffd-be79-4e5d6de272bb";

/// Everything that changes an instance, as (name, method, path behind the project, body).
fn operations(instance: &str, backup: &str) -> Vec<(&'static str, &'static str, String, Option<Value>)> {
    let one = format!("/instances/{instance}");
    let act = |action: &str| Some(json!({"instances": [instance], "action": action}));
    vec![
        ("backup", "POST", format!("{one}/backups"), None),
        (
            "restore",
            "POST",
            format!("{one}/restores"),
            Some(json!({"backup_id": backup})),
        ),
        ("restart", "PUT", "/instances/status".to_owned(), act("restart")),
        ("flush", "PUT", "/instances/status".to_owned(), act("flush")),
        (
            "password",
            "POST",
            format!("{one}/password/reset"),
            Some(json!({"new_password": "Abcdefg1"})),
        ),
        ("update", "PUT", one.clone(), Some(json!({"name": "renamed"}))),
        ("delete", "DELETE", one, None),
    ]
}

/// Checks that all but the allowed ones are refused with this code on both versions, and that nothing remains of it.
#[track_caller]
fn all_refused(
    caller: &Caller,
    instance: &str,
    backup: &str,
    code: (&str, &str),
    but: &[(&str, &str, &str)],
) {
    let counted = |caller: &Caller| {
        ["backups", "restores"]
            .map(|what| caller.get(&format!("/instances/{instance}/{what}")).json()["total_num"].clone())
    };
    let before = counted(caller);
    for (name, method, path, body) in operations(instance, backup) {
        let (v2, v1) = match but.iter().find(|(other, ..)| *other == name) {
            Some((_, "", _)) => continue,
            Some((_, v2, v1)) => (*v2, *v1),
            None => code,
        };
        let answer = caller.v2(method, &path, body.as_ref());
        assert_eq!(answer.verdict(), format!("400 {v2}"), "{name}: {}", answer.text());
        assert!(answer.json()["error_msg"].is_string());
        let answer = caller.v1(method, &path, body.as_ref());
        assert_eq!(answer.verdict(), format!("400 {v1}"), "{name}: {}", answer.text());
    }
    let batch = caller
        .v2("DELETE", "/instances", Some(&json!({"instances": [instance]})))
        .expect(200)
        .json();
    assert_eq!(batch["results"][0]["result"], "failed");
    for what in ["", "/backups", "/restores"] {
        caller.get(&format!("/instances/{instance}{what}")).expect(200);
    }
    assert_eq!(counted(caller), before, "a refused call leaves no record");
}

fn shown(caller: &Caller, instance: &str) -> (Value, Value) {
    let shown = caller.get(&format!("/instances/{instance}")).expect(200).json();
    (shown["status"].clone(), shown["task"].clone())
}

#[test]
fn during_a_backup_all_but_a_restart_is_refused_and_the_restart_fails_the_backup() {
    let service = Service::start_with(&[], &[("CACHEKEEP_FAILPOINT", "backup.begun:stall")]);
    let caller = service.caller();
    let instance = caller.make_instance("in-backup");
    let backup = caller.start_backup(&instance, "held");
    let path = format!("/instances/{instance}/backups");
    wait("a running backup", || {
        let record = caller.ck("GET", &format!("{path}/{backup}"), None).json();
        assert_ne!(record["status"], "failed", "{record}");
        (record["status"] == "backuping").then_some(())
    });
    assert_eq!(shown(&caller, &instance), (json!("RUNNING"), json!("BACKUPING")));
    all_refused(
        &caller,
        &instance,
        &backup,
        ("DCS.4096", "111400096"),
        &[("restart", "", "")],
    );
    caller
        .v2("DELETE", &format!("{path}/{backup}"), None)
        .refused("400 DCS.4096");
    caller
        .v1("DELETE", &format!("{path}/{backup}"), None)
        .refused("400 111400096");
    let links = caller.v2(
        "POST",
        &format!("{path}/{backup}/links"),
        Some(&json!({"expiration": 300})),
    );
    links.refused("400 DCS.4087");
    let record = caller.ck("GET", &format!("{path}/{backup}"), None).json();
    assert_eq!(record["is_support_restore"], "FALSE");

    let restart = json!({"instances": [instance], "action": "restart"});
    let results = caller
        .v2("PUT", "/instances/status", Some(&restart))
        .expect(200)
        .json();
    assert_eq!(
        results,
        json!({"results": [{"instance": instance, "result": "success"}]})
    );
    let record = caller.ck("GET", &format!("{path}/{backup}"), None).json();
    assert_eq!(
        (&record["status"], &record["error_code"]),
        (&json!("failed"), &json!("dcs.08.0001"))
    );
    caller.wait_idle(&instance);
    let failed = caller.v2(
        "POST",
        &format!("/instances/{instance}/restores"),
        Some(&json!({"backup_id": backup})),
    );
    failed.refused("400 DCS.4087");
    let failed = caller.v1(
        "POST",
        &format!("/instances/{instance}/restores"),
        Some(&json!({"backup_id": backup})),
    );
    failed.refused("400 111400087");
    caller.make_backup(&instance, "after the restart");
}

#[test]
fn during_a_restore_everything_is_refused_and_the_backup_in_use_is_kept() {
    let service = Service::start_with(&[], &[("CACHEKEEP_FAILPOINT", "restore.begun:stall")]);
    let caller = service.caller();
    let instance = caller.make_instance("in-restore");
    let mut engine = caller.engine(&instance);
    engine.ask(&["SET", "key", "backed up"]).unwrap();
    let (spare, backup) = (
        caller.make_backup(&instance, "spare"),
        caller.make_backup(&instance, "used"),
    );
    engine.ask(&["SET", "key", "later"]).unwrap();
    let restore = caller.start_restore(&instance, &backup, "");
    assert_eq!(
        shown(&caller, &instance),
        (json!("RESTORING"), json!("RESTORING")),
        "before the 200 even"
    );
    all_refused(&caller, &instance, &backup, ("DCS.4097", "111400097"), &[]);
    let path = format!("/instances/{instance}/backups");
    caller
        .v2("DELETE", &format!("{path}/{backup}"), None)
        .refused("400 DCS.4097");
    caller
        .v1("DELETE", &format!("{path}/{backup}"), None)
        .refused("400 111400097");
    caller.v2("DELETE", &format!("{path}/{spare}"), None).expect(204);
    caller
        .v2(
            "POST",
            &format!("{path}/{backup}/links"),
            Some(&json!({"expiration": 300})),
        )
        .expect(200);
    assert_eq!(
        engine.ask(&["GET", "key"]).unwrap().text(),
        Some("later"),
        "the old data serves until the switch"
    );
    let record = caller.wait_end(&instance, "restores", &restore);
    assert_eq!(record["status"], "succeed");
    assert_eq!(
        caller.engine(&instance).ask(&["GET", "key"]).unwrap().text(),
        Some("backed up")
    );
    // The switch has ended the connections to what it replaced.
    assert!(matches!(
        engine.ask(&["GET", "key"]),
        Err(_) | Ok(Reply::Refused(_))
    ));
}

#[test]
fn during_a_restart_and_a_creation_everything_is_refused() {
    let service = Service::start_with(&[], &[("CACHEKEEP_FAILPOINT", "restart.before_stop:stall")]);
    let caller = service.caller();
    let instance = caller.make_instance("in-restart");
    let restart = json!({"instances": [instance], "action": "restart"});
    caller.v2("PUT", "/instances/status", Some(&restart)).expect(200);
    assert_eq!(
        shown(&caller, &instance),
        (json!("RESTARTING"), json!("RESTARTING"))
    );
    all_refused(&caller, &instance, UNKNOWN, ("DCS.4111", "111400111"), &[]);
    caller.wait_idle(&instance);
    drop(caller);
    drop(service);

    let service = Service::start_with(&[], &[("CACHEKEEP_FAILPOINT", "process.before_spawn:stall")]);
    let caller = service.caller();
    let instance = caller.ask_for_instance("in-creation");
    assert_eq!(shown(&caller, &instance).0, json!("CREATING"));
    let delete = [("delete", "DCS.4099", "111400099")];
    all_refused(&caller, &instance, UNKNOWN, ("DCS.4118", "111400118"), &delete);
    caller.wait_idle(&instance);
}

/// Flush and password reset take no time and have no place to stall at: their job row is held instead.
#[test]
fn during_a_flush_and_a_password_reset_everything_is_refused() {
    let service = Service::start();
    let caller = service.caller();
    let instance = caller.make_instance("held");
    let (flush, password) = (("DCS.4026", "111400026"), ("DCS.4121", "111400115"));
    for (kind, codes, status, task) in [
        ("flush", flush, "FLUSHING", "FLUSHING"),
        ("password", password, "RUNNING", "RESETPASSWORD"),
    ] {
        service.sql(&format!(
            "INSERT INTO job (id, instance_id, kind, state, owner, lease_until_ms, created_at_ms) VALUES ('held', '{instance}', '{kind}', 'running', 'a test', 9000000000000000, 1)"
        ));
        assert_eq!(shown(&caller, &instance), (json!(status), json!(task)));
        all_refused(&caller, &instance, UNKNOWN, codes, &[]);
        service.sql("DELETE FROM job WHERE id = 'held'");
        caller.wait_idle(&instance);
    }
    service.sql(&format!(
        "UPDATE instance SET status = 'error', failure = 'a test' WHERE id = '{instance}'"
    ));
    for (name, method, path, body) in operations(&instance, UNKNOWN) {
        let code = match name {
            "backup" | "restore" => "DCS.4049",
            "flush" | "password" => "DCS.4026",
            _ => continue,
        };
        caller
            .v2(method, &path, body.as_ref())
            .refused(&format!("400 {code}"));
        caller.v1(method, &path, body.as_ref()).refused("400 111400026");
    }
}

#[test]
fn flush_restart_and_password_reset_do_what_they_say() {
    let service = Service::start();
    let caller = service.caller();
    let instance = caller.make_instance("acted-on");
    caller.engine(&instance).ask(&["SET", "key", "value"]).unwrap();
    let act = |action: &str| json!({"instances": [instance], "action": action});
    for action in ["restart", "soft_restart"] {
        caller
            .v2("PUT", "/instances/status", Some(&act(action)))
            .expect(200);
        caller.wait_idle(&instance);
        assert_eq!(
            caller.engine(&instance).ask(&["DBSIZE"]).unwrap(),
            Reply::Number(1),
            "{action}"
        );
    }
    caller
        .v1("PUT", "/instances/status", Some(&act("flush")))
        .expect(200);
    caller.wait_idle(&instance);
    assert_eq!(
        caller.engine(&instance).ask(&["DBSIZE"]).unwrap(),
        Reply::Number(0)
    );
    let path = format!("/instances/{instance}/password/reset");
    let answer = caller
        .v2("POST", &path, Some(&json!({"new_password": "Abcdefg1"})))
        .expect(200)
        .json();
    assert_eq!(
        (&answer["retry_times_left"], &answer["code"]),
        (&json!("5"), &json!("1"))
    );
    assert_eq!(caller.wait_idle(&instance)["no_password_access"], "false");
    assert!(caller.engine(&instance).ask(&["DBSIZE"]).is_err());
    caller
        .v2("POST", &path, Some(&json!({"new_password": "weak"})))
        .refused("400 DCS.4019");
    caller
        .v2("POST", &path, Some(&json!({"no_password_access": true})))
        .expect(200);
    assert_eq!(caller.wait_idle(&instance)["no_password_access"], "true");
    caller.engine(&instance).ask(&["DBSIZE"]).unwrap();
    for (wish, verdict) in [
        (json!({"instances": [instance]}), "400 DCS.4064"),
        (
            json!({"instances": [instance], "action": "explode"}),
            "400 DCS.4064",
        ),
        (json!({"action": "restart"}), "400 DCS.4065"),
        (json!({"instances": [], "action": "restart"}), "400 DCS.4065"),
        (
            json!({"instances": vec![UNKNOWN; 51], "action": "restart"}),
            "400 DCS.4100",
        ),
        (json!({"instances": [5], "action": "restart"}), "400 DCS.4063"),
        (
            json!({"instances": [UNKNOWN], "action": "restart"}),
            "404 DCS.3022",
        ),
    ] {
        caller
            .v2("PUT", "/instances/status", Some(&wish))
            .refused(verdict);
    }
    let mixed = json!({"instances": [UNKNOWN, instance], "action": "flush"});
    let results = caller
        .v2("PUT", "/instances/status", Some(&mixed))
        .expect(200)
        .json();
    let words = ["failed", "success"].map(|word| json!(word));
    assert_eq!(
        [&results["results"][0]["result"], &results["results"][1]["result"]],
        [&words[0], &words[1]]
    );
    caller.wait_idle(&instance);
}

/// Sends the same POST from two connections at the same moment.
fn at_once(callers: [&Caller; 2], path: &str, body: &Value) -> [Answer; 2] {
    let barrier = Barrier::new(2);
    std::thread::scope(|scope| {
        let sent = callers.map(|caller| {
            let barrier = &barrier;
            scope.spawn(move || {
                barrier.wait();
                caller.v2("POST", path, Some(body))
            })
        });
        sent.map(|thread| thread.join().unwrap())
    })
}

#[test]
fn of_two_simultaneous_backups_or_restores_one_wins_and_leaves_one_record() {
    let service = Service::start();
    let (one, other) = (service.caller(), service.caller());
    let instance = one.make_instance("contended");
    let source = one.make_backup(&instance, "source");
    for (what, key, code, body) in [
        ("backups", "backup_id", "400 DCS.4096", json!({"remark": "same"})),
        (
            "restores",
            "restore_id",
            "400 DCS.4097",
            json!({"backup_id": source}),
        ),
    ] {
        let path = format!("/instances/{instance}/{what}");
        for round in 0..20 {
            let answers = at_once([&one, &other], &path, &body);
            let (won, lost): (Vec<&Answer>, Vec<&Answer>) =
                answers.iter().partition(|answer| answer.status == 200);
            // Very rarely the first has ended before the second is looked at: then both were alone.
            assert_eq!(
                (won.len(), lost.len()),
                (1, 1),
                "{what}, round {round}: {answers:?}"
            );
            assert_eq!(lost[0].verdict(), code);
            let id = won[0].json()[key].as_str().unwrap().to_owned();
            let record = one.wait_end(&instance, what, &id);
            assert_eq!(record["status"], "succeed", "{record}");
        }
    }
    std::thread::sleep(Duration::from_millis(1));
    let records = one
        .get(&format!("/instances/{instance}/restores?limit=1000"))
        .json();
    assert_eq!(records["total_num"], 20);
    let records = one
        .get(&format!("/instances/{instance}/backups?limit=1000"))
        .json();
    let rows = records["backup_record_response"].as_array().unwrap();
    let manual = rows.iter().filter(|row| row["backup_type"] == "manual").count();
    assert_eq!(manual, 21, "20 and the source");
}
