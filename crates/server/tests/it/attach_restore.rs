//! Restores into servers that somebody else runs, as jobs of the service: they are put back, go on after a crash, and say what is
//! true.

use std::time::Duration;

use serde_json::{Value, json};
use xtask::fill::Random;
use xtask::foreign::{Access, Deployment, Form};

use crate::attach::{LOOPBACK, attach_open, start};
use crate::cluster::Client;
use crate::service::{Caller, Service, wait};

/// Fills some databases of a node without a cluster; `seed` tells what is there from what was there.
pub fn fill(foreign: &Deployment, seed: u64, keys: u64) {
    let mut link = foreign.nodes[0].open().unwrap();
    for db in ["0", "3"] {
        link.ask(&["SELECT", db]).unwrap();
        for number in 0..keys {
            link.send(&[
                "SET",
                &format!("key:{number}"),
                &format!("value {seed} of {number}"),
            ])
            .unwrap();
            link.send(&["HSET", &format!("hash:{number}"), "field", &seed.to_string()])
                .unwrap();
        }
        link.send(&["SET", &format!("only:{seed}"), "here", "PXAT", "4000000000000"])
            .unwrap();
        link.settle().unwrap();
    }
    // A database that the other has not.
    link.ask(&["SELECT", &(5 + seed).to_string()]).unwrap();
    link.ask(&["RPUSH", "list", "a", "b"]).unwrap();
}

pub fn ask(caller: &Caller, instance: &str, wish: &Value) -> String {
    let path = format!("/instances/{instance}/restores");
    let started = caller.v2("POST", &path, Some(wish)).expect(200).json();
    started["restore_id"].as_str().unwrap().to_owned()
}

fn shown(caller: &Caller, instance: &str, restore: &str) -> Value {
    let path = format!("/instances/{instance}/restores/{restore}");
    caller.ck("GET", &path, None).expect(200).json()
}

pub fn ended(caller: &Caller, instance: &str, restore: &str) -> Value {
    caller.wait_end(instance, "restores", restore);
    shown(caller, instance, restore)
}

fn undo(caller: &Caller, instance: &str, restore: &str) -> Value {
    let path = format!("/instances/{instance}/restores/{restore}/undo");
    let started = caller.ck("POST", &path, None).expect(200).json();
    ended(caller, instance, started["restore_id"].as_str().unwrap())
}

fn wait_for_state(caller: &Caller, instance: &str, restore: &str, state: &str) {
    wait(state, || {
        let record = shown(caller, instance, restore);
        assert_ne!(record["status"], "succeed", "too fast: {record}");
        (record["ext"]["target_state"] == state && record["ext"]["keys_done"] != 0).then_some(())
    });
}

#[test]
fn servers_of_somebody_else_hold_the_backup_and_nothing_else_after_a_restore_and_what_they_held_after_its_undo()
 {
    let foreign = start(Form::Single, Access::Open, &[]);
    fill(&foreign, 1, 500);
    let first = foreign.digest().unwrap();
    let service = Service::start_with(&LOOPBACK, &[]);
    let caller = service.caller();
    let id = attach_open(&caller, "foreign", &[foreign.nodes[0].port]);
    let backup = caller.make_backup(&id, "the first data");
    foreign.nodes[0].ask(&["FLUSHALL"]).unwrap();
    fill(&foreign, 2, 300);
    let second = foreign.digest().unwrap();
    assert_ne!(first, second);

    let restore = ask(&caller, &id, &json!({"backup_id": backup, "remark": "back"}));
    let record = ended(&caller, &id, &restore);
    assert_eq!(record["status"], "succeed", "{record}");
    assert_eq!(foreign.digest().unwrap(), first);
    let ext = &record["ext"];
    assert_eq!(
        (&ext["method"], &ext["target_state"], &ext["layout"]),
        (&json!("replay"), &json!("replaced"), &json!("single"))
    );
    let counts = [
        "applied",
        "skipped",
        "conflicting",
        "expired",
        "failed",
        "removed",
    ];
    assert_eq!(
        counts.map(|kind| ext[format!("keys_{kind}")].as_u64().unwrap()),
        [2003, 0, 0, 0, 0, 3],
        "{record}"
    );
    assert_eq!(ext["first"]["applied"].as_array().unwrap().len(), 100);
    assert_eq!(ext["first"]["removed"].as_array().unwrap().len(), 3);
    let safety = ext["safety_backup_id"].as_str().unwrap();
    let safety = caller
        .ck("GET", &format!("/instances/{id}/backups/{safety}"), None)
        .expect(200)
        .json();
    assert_eq!(
        (&safety["status"], &safety["ext"]["kind"]),
        (&json!("succeed"), &json!("safety"))
    );

    let undone = undo(&caller, &id, &restore);
    assert_eq!(undone["status"], "succeed", "{undone}");
    assert_eq!(foreign.digest().unwrap(), second);
    assert_eq!(undone["ext"]["undo_of"], json!(restore));
    let record = shown(&caller, &id, &restore);
    assert_eq!(record["ext"]["undone_by"], undone["restore_id"]);
    let again = undo(&caller, &id, undone["restore_id"].as_str().unwrap());
    assert_eq!(again["status"], "succeed", "{again}");
    assert_eq!(foreign.digest().unwrap(), first);
    let listed = caller
        .get(&format!("/instances/{id}/restores"))
        .expect(200)
        .json();
    assert_eq!(listed["total_num"], 3);
    assert!(!service.data().join("replays").join(&restore).exists());
}

#[test]
fn a_merge_of_chosen_keys_changes_no_other_key_and_neither_does_its_undo() {
    let foreign = start(Form::Single, Access::Open, &[]);
    fill(&foreign, 1, 200);
    let service = Service::start_with(&LOOPBACK, &[]);
    let caller = service.caller();
    let id = attach_open(&caller, "foreign", &[foreign.nodes[0].port]);
    let backup = caller.make_backup(&id, "all");
    let node = &foreign.nodes[0];
    node.ask(&["FLUSHALL"]).unwrap();
    node.ask(&["MSET", "key:1", "mine", "other", "mine", "hash:1", "mine"])
        .unwrap();
    let get = |key: &str| node.ask(&["GET", key]).unwrap().text().map(str::to_owned);
    let output = service.run_json(&[
        "restore", "create", "foreign", "--backup", "latest", "--mode", "merge", "--db", "0", "--prefix",
        "key:", "--wait",
    ]);
    assert_eq!(output["status"], "succeed", "{output}");
    assert_eq!(get("key:1").as_deref(), Some("value 1 of 1"));
    assert_eq!(
        (get("other").as_deref(), get("hash:1").as_deref()),
        (Some("mine"), Some("mine"))
    );
    let restore = output["restore_id"].as_str().unwrap().to_owned();
    let record = shown(&caller, &id, &restore);
    let counts = ["applied", "skipped", "removed"];
    assert_eq!(
        counts.map(|kind| record["ext"][format!("keys_{kind}")].as_u64().unwrap()),
        [200, 603, 0],
        "{record}"
    );
    assert_eq!(record["ext"]["replay"]["select"]["prefix"], "key:");
    // What clients write to other keys meanwhile is theirs.
    node.ask(&["SET", "other", "later"]).unwrap();
    let undone = undo(&caller, &id, &restore);
    assert_eq!(undone["status"], "succeed", "{undone}");
    assert_eq!(get("key:1").as_deref(), Some("mine"));
    assert_eq!((get("key:2"), get("other").as_deref()), (None, Some("later")));

    for (wish, field) in [
        (json!({"mode": "repl"}), "replay"),
        (json!({"select": {"type": ["hash"]}}), "replay.mode"),
        (
            json!({"mode": "merge", "select": {"regex": "("}}),
            "replay.select.regex",
        ),
    ] {
        let wish = json!({"backup_id": backup, "replay": wish});
        let refused = caller
            .v2("POST", &format!("/instances/{id}/restores"), Some(&wish))
            .expect(400)
            .json();
        let text = refused["error_msg"].as_str().unwrap();
        assert!(text.contains(field), "{field}: {refused}");
    }
}

#[test]
fn a_restore_that_is_cancelled_while_it_writes_is_put_back_or_said_to_be_partial() {
    let foreign = start(Form::Single, Access::Open, &[]);
    fill(&foreign, 1, 3000);
    let service = Service::start_with(&LOOPBACK, &[]);
    let caller = service.caller();
    let id = attach_open(&caller, "foreign", &[foreign.nodes[0].port]);
    let backup = caller.make_backup(&id, "the first data");
    foreign.nodes[0].ask(&["FLUSHALL"]).unwrap();
    fill(&foreign, 2, 100);
    let before = foreign.digest().unwrap();
    for (safety_point, state) in [(true, "rolled_back"), (false, "partial")] {
        let slow = json!({"max_ops": 2000, "safety_point": safety_point});
        let restore = ask(&caller, &id, &json!({"backup_id": backup, "replay": slow}));
        wait_for_state(&caller, &id, &restore, "loading");
        let cancelled = caller.ck(
            "POST",
            &format!("/instances/{id}/restores/{restore}/cancel"),
            None,
        );
        cancelled.expect(200);
        let record = ended(&caller, &id, &restore);
        assert_eq!(
            (&record["status"], &record["ext"]["target_state"]),
            (&json!("failed"), &json!(state)),
            "{record}"
        );
        assert_eq!(foreign.digest().unwrap() == before, safety_point);
        if !safety_point {
            let applied = record["ext"]["keys_applied"].as_u64().unwrap();
            assert!((1..12_000).contains(&applied), "{record}");
            caller
                .ck("POST", &format!("/instances/{id}/restores/{restore}/undo"), None)
                .expect(400);
        }
    }
}

#[test]
fn a_restore_goes_on_after_the_service_was_killed_with_exact_counts() {
    let foreign = start(Form::Cluster, Access::Open, &[]);
    let ports: Vec<u16> = foreign.nodes.iter().map(|node| node.port).collect();
    let (keys, kills, pace) = match crate::replay::is_long() {
        true => (200_000, 50, 4000),
        false => (12_000, 5, 2000),
    };
    Client::new(&ports).fill(keys);
    foreign.wait_in_sync().unwrap();
    let digest = foreign.digest().unwrap();
    let mut service = Service::start_with(&LOOPBACK, &[]);
    let id = attach_open(&service.caller(), "cluster", &[ports[1]]);
    let backup = service.caller().make_backup(&id, "of three shards");
    for node in foreign.primaries().unwrap() {
        node.ask(&["FLUSHALL"]).unwrap();
    }
    Client::new(&ports).call(&["SET", "another", "key"]);
    let restore = ask(
        &service.caller(),
        &id,
        &json!({"backup_id": backup, "replay": {"max_ops": pace}}),
    );
    wait_for_state(&service.caller(), &id, &restore, "loading");
    let mut random = Random::new(7, 0);
    for _ in 0..kills {
        std::thread::sleep(Duration::from_millis(random.between(50, 900)));
        service.kill();
        service.start_again_with(&LOOPBACK, &[]);
    }
    let record = ended(&service.caller(), &id, &restore);
    assert_eq!(record["status"], "succeed", "{record}");
    assert_eq!(foreign.digest().unwrap(), digest);
    let ext = &record["ext"];
    assert_eq!(
        (&ext["keys_applied"], &ext["keys_removed"]),
        (&json!(keys), &json!(1)),
        "{record}"
    );
    assert!(ext["resumed"].as_u64().unwrap() >= 1, "{record}");
}

#[test]
fn a_failover_of_theirs_in_the_middle_of_a_restore_loses_nothing() {
    let mut foreign = start(Form::Watched, Access::Open, &[]);
    fill(&foreign, 1, 2000);
    foreign.wait_in_sync().unwrap();
    let digest = foreign.digest().unwrap();
    let service = Service::start_with(&LOOPBACK, &[]);
    let caller = service.caller();
    let id = attach_open(&caller, "watched", &[foreign.sentinels[0].port]);
    let backup = caller.make_backup(&id, "all");
    foreign.nodes[0].ask(&["FLUSHALL"]).unwrap();
    let restore = ask(
        &caller,
        &id,
        &json!({"backup_id": backup, "replay": {"max_ops": 2000}}),
    );
    wait_for_state(&caller, &id, &restore, "loading");
    foreign.nodes[0].kill();
    let record = ended(&caller, &id, &restore);
    assert_eq!(record["status"], "succeed", "{record}");
    assert_eq!(record["ext"]["keys_applied"], 8003, "{record}");
    assert!(record["ext"]["resumed"].as_u64().unwrap() >= 1, "{record}");
    assert_eq!(foreign.digest().unwrap(), digest);
}

#[test]
fn servers_that_stay_away_leave_a_record_that_says_so_until_they_answer_again() {
    let foreign = start(Form::Single, Access::Open, &[]);
    fill(&foreign, 1, 3000);
    let service = Service::start_with(&LOOPBACK, &[("CACHEKEEP_BACK_SECONDS", "2")]);
    let caller = service.caller();
    let id = attach_open(&caller, "foreign", &[foreign.nodes[0].port]);
    let backup = caller.make_backup(&id, "the first data");
    foreign.nodes[0].ask(&["FLUSHALL"]).unwrap();
    fill(&foreign, 2, 100);
    let before = foreign.digest().unwrap();
    let slow = json!({"max_ops": 2000, "patience": 1});
    let restore = ask(&caller, &id, &json!({"backup_id": backup, "replay": slow}));
    wait_for_state(&caller, &id, &restore, "loading");
    let signal = |name: &str| {
        let pid = foreign.nodes[0].pid().to_string();
        let sent = std::process::Command::new("kill")
            .args([name, &pid])
            .status()
            .unwrap();
        assert!(sent.success());
    };
    signal("-STOP");
    let record = ended(&caller, &id, &restore);
    assert_eq!(
        (&record["status"], &record["ext"]["target_state"]),
        (&json!("failed"), &json!("unknown")),
        "{record}"
    );
    signal("-CONT");
    wait("a state that is known", || {
        (shown(&caller, &id, &restore)["ext"]["target_state"] == "partial").then_some(())
    });
    assert_ne!(foreign.digest().unwrap(), before);
    let undone = undo(&caller, &id, &restore);
    assert_eq!(undone["status"], "succeed", "{undone}");
    assert_eq!(foreign.digest().unwrap(), before);
}

#[test]
fn servers_that_answer_and_are_not_put_back_in_time_are_said_to_hold_a_part() {
    let foreign = start(Form::Single, Access::Open, &[]);
    fill(&foreign, 1, 300);
    let service = Service::start_with(&LOOPBACK, &[("CACHEKEEP_BACK_SECONDS", "2")]);
    let caller = service.caller();
    let id = attach_open(&caller, "foreign", &[foreign.nodes[0].port]);
    let backup = caller.make_backup(&id, "the first data");
    fill(&foreign, 2, 2000);
    let before = foreign.digest().unwrap();
    let slow = json!({"max_ops": 300, "patience": 1});
    let restore = ask(&caller, &id, &json!({"backup_id": backup, "replay": slow}));
    wait_for_state(&caller, &id, &restore, "loading");
    let path = format!("/instances/{id}/restores/{restore}/cancel");
    caller.ck("POST", &path, None).expect(200);
    let record = ended(&caller, &id, &restore);
    assert_eq!(
        (&record["status"], &record["ext"]["target_state"]),
        (&json!("failed"), &json!("partial")),
        "{record}"
    );
    assert_ne!(foreign.digest().unwrap(), before);
    let undone = undo(&caller, &id, &restore);
    assert_eq!(undone["status"], "succeed", "{undone}");
    assert_eq!(foreign.digest().unwrap(), before);
}

#[test]
fn a_plan_counts_what_becomes_of_every_key_and_the_restore_does_that() {
    let foreign = start(Form::Single, Access::Open, &[]);
    fill(&foreign, 1, 400);
    let service = Service::start_with(&LOOPBACK, &[]);
    let caller = service.caller();
    let id = attach_open(&caller, "foreign", &[foreign.nodes[0].port]);
    let backup = caller.make_backup(&id, "the first data");
    foreign.nodes[0].ask(&["FLUSHALL"]).unwrap();
    fill(&foreign, 2, 100);
    let before = foreign.digest().unwrap();
    let kinds = [
        "applied",
        "skipped",
        "conflicting",
        "expired",
        "failed",
        "removed",
    ];
    for replay in [
        json!({}),
        json!({"on_conflict": "skip", "select": {"db": [0]}}),
        json!({"mode": "merge", "select": {"type": ["hash"]}, "into_prefix": "old:"}),
    ] {
        let mut wish = json!({"backup_id": backup, "replay": replay});
        let path = format!("/instances/{id}/restores");
        let plan = caller
            .ck("POST", &format!("{path}/plan"), Some(&wish))
            .expect(200)
            .json();
        assert_eq!(foreign.digest().unwrap(), before, "a plan changes nothing");
        assert_eq!(
            (&plan["method"], &plan["gaps"]),
            (&json!("replay"), &json!([])),
            "{plan}"
        );
        assert!(plan["undo_until"].is_string(), "{plan}");
        wish["plan_id"] = plan["plan_id"].clone();
        let started = caller.ck("POST", &path, Some(&wish)).expect(200).json();
        let restore = started["restore_id"].as_str().unwrap();
        let record = ended(&caller, &id, restore);
        assert_eq!(record["status"], "succeed", "{record}");
        for kind in kinds {
            let counted = &record["ext"][format!("keys_{kind}")];
            assert_eq!(&plan["counts"][kind], counted, "{kind}: {plan}: {record}");
        }
        assert!(record["ext"]["undo_until"].is_string(), "{record}");
        let undone = undo(&caller, &id, restore);
        assert_eq!(undone["status"], "succeed", "{undone}");
        assert_eq!(foreign.digest().unwrap(), before);
    }
}

#[test]
fn a_backup_of_an_instance_of_ours_goes_into_attached_servers_and_is_taken_back() {
    let foreign = start(Form::Single, Access::Open, &[]);
    fill(&foreign, 1, 50);
    let before = foreign.digest().unwrap();
    let service = Service::start_with(&LOOPBACK, &[]);
    let caller = service.caller();
    let managed = caller.make_instance("managed");
    let mut engine = caller.engine(&managed);
    engine.ask(&["DEBUG", "POPULATE", "2000", "ours", "30"]).unwrap();
    caller.make_backup(&managed, "ours");
    let digest = engine.ask(&["DEBUG", "DIGEST"]).unwrap();
    attach_open(&caller, "foreign", &[foreign.nodes[0].port]);
    let words = [
        "restore", "create", "managed", "--backup", "latest", "--into", "foreign", "--wait",
    ];
    let done = service.run_json(&words);
    assert_eq!(done["status"], "succeed", "{done}");
    assert_eq!(Some(foreign.digest().unwrap().as_str()), digest.text());
    let undone = service.run_json(&["restore", "undo", "foreign", "--wait"]);
    assert_eq!(undone["status"], "succeed", "{undone}");
    assert_eq!(foreign.digest().unwrap(), before);
}
