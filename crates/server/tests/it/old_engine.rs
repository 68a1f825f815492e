//! Single instances of redis 6.2, which listens for as long as it lives where it was started to: a restore ends the old
//! engine and starts the new one with the port.

use std::path::PathBuf;

use serde_json::{Value, json};
use xtask::fill::{self, Options};
use xtask::resp::{Connection, Target};

use crate::cluster::{ask, ports, says};
use crate::cluster_restore::{restore, undo};
use crate::service::{Caller, Service, wait};

/// A service that can run it; `cargo xtask setup test` fetches it.
fn service() -> Service {
    let engine = PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../.tools/engines/redis-6.2"
    ));
    let engine = engine.canonicalize();
    let engine = engine.expect("redis 6.2: cargo xtask setup test fetches it");
    Service::start_with(&["--engine", engine.to_str().unwrap()], &[])
}

fn digest(port: u16) -> String {
    says(port, &["DEBUG", "DIGEST"])
}

/// An instance of 6.2 with some thousand keys of every type in three databases, many of which expire in time.
fn filled(caller: &Caller, name: &str, persistence: &str) -> (String, u16) {
    let wish = json!({"engine_version": "6.2", "persistence": persistence});
    let id = ask(caller, name, "redis.single.xu1.large.4", &wish);
    let port = ports(&caller.wait_idle(&id))[0];
    assert!(says(port, &["INFO", "server"]).contains("redis_version:6.2."));
    let options = Options {
        keys: 3000,
        dbs: 3,
        functions: false,
        ..Options::default()
    };
    fill::fill(&Target::local(port, None), &options).unwrap();
    (id, port)
}

fn plan(caller: &Caller, instance: &str, backup: &str) -> Value {
    let path = format!("/instances/{instance}/restores/plan");
    let wish = json!({"backup_id": backup, "verify": "full"});
    caller.ck("POST", &path, Some(&wish)).expect(200).json()
}

#[test]
fn a_restore_and_its_undo_replace_the_process_whatever_the_persistence_and_the_plan_says_for_how_long() {
    let service = service();
    let caller = service.caller();
    for persistence in ["aof", "rdb", "none"] {
        let (id, port) = filled(&caller, &format!("old-{persistence}"), persistence);
        let captured = digest(port);
        let backup = caller.make_backup(&id, "all of it");
        says(port, &["SET", "later", "1"]);
        let changed = digest(port);
        let planned = plan(&caller, &id, &backup);
        let gap = planned["gap_seconds"].as_f64().unwrap();
        let told = planned["gaps"][0].as_str().unwrap();
        assert!(
            gap >= 0.1 && told.contains("cannot change their port"),
            "{planned}"
        );
        let done = restore(
            &caller,
            &id,
            &json!({"backup_id": backup, "verify": "full", "plan_id": planned["plan_id"]}),
        );
        assert_eq!(
            (&done["status"], &done["ext"]["target_state"]),
            (&json!("succeed"), &json!("replaced")),
            "{done}"
        );
        assert_eq!(digest(port), captured, "{persistence}");
        let waited = done["ext"]["unavailable_us"].as_u64().unwrap();
        println!("{persistence}: planned {gap} s, clients waited {waited} us");
        // What is written from now on is kept as its persistence says.
        says(port, &["SET", "written", "after"]);
        let written = digest(port);
        let restart = json!({"instances": [id], "action": "restart"});
        caller.v2("PUT", "/instances/status", Some(&restart)).expect(200);
        caller.wait_idle(&id);
        match persistence {
            "none" => assert_eq!(digest(port), "0".repeat(40)),
            _ => assert_eq!(digest(port), written, "{persistence}"),
        }
        let undone = undo(&caller, &id, &done);
        assert_eq!(undone["status"], "succeed", "{undone}");
        assert_eq!(digest(port), changed, "{persistence}");
    }
}

#[test]
fn a_killed_engine_comes_back_with_its_port_and_clients_have_the_rights_of_any_other_version() {
    let service = service();
    let caller = service.caller();
    let (id, port) = filled(&caller, "killed", "aof");
    let held = digest(port);
    service.kill_engines();
    wait("the engine", || {
        let target = Target::local(port, None);
        let mut connection = Connection::open(&target).ok()?;
        let told = connection.ask(&["DEBUG", "DIGEST"]).ok()?.text()?.to_owned();
        (told == held).then_some(())
    });
    caller.wait_idle(&id);
    for refused in [
        &["CONFIG", "SET", "maxmemory", "0"][..],
        &["CONFIG", "REWRITE"],
        &["ACL", "SETUSER", "default", "off"],
        &["ACL", "DELUSER", "cachekeep"],
        &["SHUTDOWN", "NOSAVE"],
        &["REPLICAOF", "127.0.0.1", "1"],
        &["CLIENT", "PAUSE", "1"],
        &["MODULE", "LIST"],
    ] {
        let mut connection = Connection::open(&Target::local(port, None)).unwrap();
        let why = connection.ask(refused).unwrap_err().to_string();
        assert!(why.contains("NOPERM"), "{refused:?}: {why}");
    }
    for allowed in [
        &["CONFIG", "GET", "maxmemory"][..],
        &["CLIENT", "SETNAME", "me"],
        &["CLIENT", "LIST"],
        &["ACL", "WHOAMI"],
        &["INFO", "server"],
    ] {
        let mut connection = Connection::open(&Target::local(port, None)).unwrap();
        connection.ask(allowed).unwrap();
    }
}

#[test]
fn several_nodes_of_it_are_refused_with_the_reason_and_not_offered() {
    let service = service();
    let caller = service.caller();
    for spec in ["redis.ha.xu1.large.r3.4", "redis.cluster.xu1.large.r1.4"] {
        let wish = json!({"name": "several", "engine": "Redis", "engine_version": "6.2", "spec_code": spec,
            "no_password_access": true});
        let answer = caller.v2("POST", "/instances", Some(&wish));
        let why = answer.json()["error_msg"].as_str().unwrap().to_owned();
        answer.refused("400 DCS.4008");
        assert!(why.contains("single nodes only"), "{why}");
    }
    let flavors = caller.v2("GET", "/flavors", None).expect(200).json();
    let mut seen = 0;
    for flavor in flavors["flavors"].as_array().unwrap() {
        let versions = flavor["engine_version"].as_str().unwrap();
        let is_single = flavor["cache_mode"] == "single";
        assert_eq!(versions.split(';').any(|one| one == "6.2"), is_single, "{flavor}");
        seen += usize::from(is_single);
    }
    assert!(seen > 0);
}
