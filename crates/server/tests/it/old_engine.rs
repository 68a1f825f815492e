//! Engines before 7.0: redis 6.2 as single instance and as primary with replicas, restored like any other; redis 6.0, which listens
//! for as long as it lives where it was started to, as single instance: its restore ends the old engine and starts the new one.

use std::path::PathBuf;

use serde_json::{Value, json};
use xtask::fill::{self, Options};
use xtask::resp::{Connection, Reply, Target};

use crate::beside_api::{show, verify, wait_verified};
use crate::cluster::{ask, says};
use crate::cluster_restore::{restore, undo};
use crate::service::{Caller, Service, wait};

const SINGLE: &str = "redis.single.xu1.large.4";
const WATCHED: &str = "redis.ha.xu1.large.r3.4";

/// A service that can run this engine, which `cargo xtask setup test` fetches.
fn service(engine: &str) -> Option<Service> {
    let place = format!("{}/../../.tools/engines/{engine}", env!("CARGO_MANIFEST_DIR"));
    let Ok(program) = PathBuf::from(&place).canonicalize() else {
        eprintln!("NOT SHOWN: there is no {engine} at {place}");
        return None;
    };
    Some(Service::start_with(&["--engine", program.to_str().unwrap()], &[]))
}

fn digest(port: u16) -> String {
    says(port, &["DEBUG", "DIGEST"])
}

/// An instance of this version with some thousand keys of every type in three databases, many of which expire in time.
fn filled(caller: &Caller, version: &str, spec: &str, persistence: &str) -> (String, u16) {
    let wish = json!({"engine_version": version, "persistence": persistence});
    let id = ask(caller, &format!("old-{persistence}"), spec, &wish);
    let port = u16::try_from(caller.wait_idle(&id)["port"].as_u64().unwrap()).unwrap();
    assert!(says(port, &["INFO", "server"]).contains(&format!("redis_version:{version}.")));
    let options = Options {
        keys: 3000,
        dbs: 3,
        functions: false,
        idle_consumers: version != "6.0",
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

/// Restores and undoes, and sees what is kept whatever ends the engine in between. What was planned and how long clients waited,
/// in seconds.
fn restored_and_undone(caller: &Caller, version: &str, spec: &str, persistence: &str) -> (Value, f64) {
    let (id, port) = filled(caller, version, spec, persistence);
    let captured = digest(port);
    let backup = caller.make_backup(&id, "all of it");
    let proof = verify(caller, &id, &backup, "proven");
    assert_eq!(wait_verified(caller, &id, &backup, &proof)["status"], "holds");
    let by = show(caller, &id, &backup)["ext"]["proof"]["engine"].clone();
    assert!(by.as_str().unwrap().starts_with(version), "proven by {by}");
    says(port, &["SET", "later", "1"]);
    let changed = digest(port);
    let planned = plan(caller, &id, &backup);
    let wish = json!({"backup_id": backup, "verify": "full", "plan_id": planned["plan_id"]});
    let done = restore(caller, &id, &wish);
    assert_eq!(
        (&done["status"], &done["ext"]["target_state"]),
        (&json!("succeed"), &json!("replaced")),
        "{done}"
    );
    assert_eq!(digest(port), captured, "{persistence}");
    let waited = done["ext"]["unavailable_us"].as_f64().unwrap() / 1e6;
    println!(
        "{version} {persistence}: planned {}, clients waited {waited} s",
        planned["gap_seconds"]
    );
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
    let undone = undo(caller, &id, &done);
    assert_eq!(undone["status"], "succeed", "{undone}");
    assert_eq!(digest(port), changed, "{persistence}");
    caller.v2("DELETE", &format!("/instances/{id}"), None).expect(204);
    (planned, waited)
}

#[test]
fn a_port_that_cannot_move_goes_over_by_a_restart_whatever_the_persistence_and_the_plan_says_for_how_long() {
    let Some(service) = service("redis-6.0") else {
        return;
    };
    let caller = service.caller();
    for persistence in ["aof", "rdb", "none"] {
        let (planned, _) = restored_and_undone(&caller, "6.0", SINGLE, persistence);
        let told = planned["gaps"][0].as_str().unwrap();
        assert!(told.contains("cannot change their port"), "{planned}");
        assert!(planned["gap_seconds"].as_f64().unwrap() >= 0.1, "{planned}");
    }
}

#[test]
fn an_engine_of_6_2_is_restored_like_any_other_alone_and_with_replicas() {
    let Some(service) = service("redis-6.2") else {
        return;
    };
    let caller = service.caller();
    for (spec, persistence) in [
        (SINGLE, "aof"),
        (SINGLE, "rdb"),
        (SINGLE, "none"),
        (WATCHED, "aof"),
    ] {
        let (planned, _) = restored_and_undone(&caller, "6.2", spec, persistence);
        assert_eq!(planned["gaps"], json!([]), "{planned}");
    }
}

#[test]
fn snapshots_of_an_old_engine_are_made_by_itself_too() {
    for (engine, version) in [("redis-6.0", "6.0"), ("redis-6.2", "6.2")] {
        let Some(service) = service(engine) else { return };
        let caller = service.caller();
        let (id, port) = filled(&caller, version, SINGLE, "rdb");
        let mut connection = Connection::open(&Target::local(port, None)).unwrap();
        let points = connection.ask(&["CONFIG", "GET", "save"]).unwrap();
        let Reply::List(points) = points else {
            panic!("{points:?}")
        };
        assert_eq!(points[1].text(), Some("3600 1 300 100 60 10000"));
        // Asked by a signal it saves, where it has save points.
        let held = digest(port);
        service.end_engines();
        wait("the engine", || says_digest(port).filter(|told| *told == held));
        caller.wait_idle(&id);
    }
}

fn says_digest(port: u16) -> Option<String> {
    let mut connection = Connection::open(&Target::local(port, None)).ok()?;
    Some(connection.ask(&["DEBUG", "DIGEST"]).ok()?.text()?.to_owned())
}

#[test]
fn a_killed_engine_comes_back_with_its_port_and_clients_have_the_rights_of_any_other_version() {
    let Some(service) = service("redis-6.0") else {
        return;
    };
    let caller = service.caller();
    let (id, port) = filled(&caller, "6.0", SINGLE, "aof");
    let held = digest(port);
    service.kill_engines();
    wait("the engine", || says_digest(port).filter(|told| *told == held));
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
        &["DEBUG", "SEGFAULT"],
        &["DEBUG", "RELOAD"],
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
fn nodes_that_an_old_engine_cannot_be_are_refused_with_the_reason_and_not_offered() {
    for (engine, version, unfit) in [
        ("redis-6.0", "6.0", &["ha", "cluster"][..]),
        ("redis-6.2", "6.2", &["cluster"]),
    ] {
        let Some(service) = service(engine) else { return };
        let caller = service.caller();
        for (mode, spec) in [("ha", WATCHED), ("cluster", "redis.cluster.xu1.large.r1.4")] {
            if !unfit.contains(&mode) {
                continue;
            }
            let wish = json!({"name": "several", "engine": "Redis", "engine_version": version, "spec_code": spec,
                "no_password_access": true});
            let answer = caller.v2("POST", "/instances", Some(&wish));
            let why = answer.json()["error_msg"].as_str().unwrap().to_owned();
            answer.refused("400 DCS.4008");
            assert!(why.contains("cannot be the nodes of such an instance"), "{why}");
        }
        let flavors = caller.v2("GET", "/flavors", None).expect(200).json();
        let flavors = flavors["flavors"].as_array().unwrap();
        assert!(flavors.len() > 3);
        for flavor in flavors {
            let versions = flavor["engine_version"].as_str().unwrap();
            let is_fit = !unfit.contains(&flavor["cache_mode"].as_str().unwrap());
            assert_eq!(versions.split(';').any(|one| one == version), is_fit, "{flavor}");
        }
    }
}
