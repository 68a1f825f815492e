//! Import tasks, DCS's way to bring a backup into another instance, and key by key into instances of ours: keys of the same name are
//! overwritten, others stay.

use serde_json::{Value, json};
use xtask::foreign::{Access, Form};
use xtask::resp::{Connection, Reply};

use crate::attach::{LOOPBACK, attach_open, start};
use crate::cluster::{Client, ask, ports};
use crate::service::{Caller, Service, wait};

fn wish(backup: &str, target: &str) -> Value {
    json!({"task_name": "into-another", "description": "a test", "migration_type": "backupfile_import",
           "migration_method": "full_amount_migration", "target_instance": {"id": target},
           "backup_files": {"file_source": "backup_record", "backup_id": backup}})
}

pub fn begin(caller: &Caller, backup: &str, target: &str) -> String {
    let made = caller
        .v2("POST", "/migration-task", Some(&wish(backup, target)))
        .expect(200)
        .json();
    assert_eq!(
        (&made["name"], &made["status"]),
        (&json!("into-another"), &json!("MIGRATING"))
    );
    made["id"].as_str().unwrap().to_owned()
}

pub fn ended(caller: &Caller, task: &str) -> Value {
    wait("the end of an import task", || {
        let shown = caller.get(&format!("/migration-task/{task}")).expect(200).json();
        (shown["status"] != "MIGRATING").then_some(shown)
    })
}

fn text(engine: &mut Connection, key: &str) -> Option<String> {
    engine.ask(&["GET", key]).unwrap().text().map(str::to_owned)
}

#[test]
fn an_import_task_overwrites_keys_of_the_same_name_and_leaves_the_others() {
    let service = Service::start();
    let caller = service.caller();
    let (source, target) = (caller.make_instance("source"), caller.make_instance("target"));
    let mut engine = caller.engine(&source);
    engine
        .ask(&["MSET", "both", "of the backup", "new", "of the backup"])
        .unwrap();
    engine.ask(&["SELECT", "4"]).unwrap();
    engine.ask(&["SADD", "set", "a", "b"]).unwrap();
    let backup = caller.make_backup(&source, "to be imported");
    let mut engine = caller.engine(&target);
    engine.ask(&["MSET", "both", "mine", "other", "mine"]).unwrap();

    let task = begin(&caller, &backup, &target);
    let shown = ended(&caller, &task);
    assert_eq!(shown["status"], "SUCCESS", "{shown}");
    assert_eq!(text(&mut engine, "both").as_deref(), Some("of the backup"));
    assert_eq!(text(&mut engine, "new").as_deref(), Some("of the backup"));
    assert_eq!(text(&mut engine, "other").as_deref(), Some("mine"));
    engine.ask(&["SELECT", "4"]).unwrap();
    assert_eq!(engine.ask(&["SCARD", "set"]).unwrap(), Reply::Number(2));
    assert_eq!(shown["backup_files"]["backup_id"], json!(backup));
    assert_eq!(shown["backup_files"]["backup_record"]["backup_id"], json!(backup));
    assert_eq!(
        (&shown["task_id"], &shown["target_instance"]["id"]),
        (&json!(task), &json!(target))
    );
    assert_eq!(shown["ext"]["keys_applied"], 3);
    // It is no restore, and its safety point is a backup like any.
    let listed = caller
        .get(&format!("/instances/{target}/restores"))
        .expect(200)
        .json();
    assert_eq!(listed["total_num"], 0);
    let safety = caller
        .get(&format!("/instances/{target}/backups"))
        .expect(200)
        .json();
    let safety = safety["backup_record_response"][0]["backup_id"]
        .as_str()
        .unwrap()
        .to_owned();
    caller.make_restore(&target, &safety, "back to before");
    let mut engine = caller.engine(&target);
    assert_eq!(engine.ask(&["DBSIZE"]).unwrap(), Reply::Number(2));
    assert_eq!(text(&mut engine, "both").as_deref(), Some("mine"));

    let listed = caller.get("/migration-tasks?limit=1").expect(200).json();
    assert_eq!(
        (&listed["count"], &listed["migration_tasks"][0]["task_id"]),
        (&json!(1), &json!(task))
    );
    assert_eq!(listed["migration_tasks"][0]["target_instance_name"], "target");
    let gone = json!({"task_id_list": [task]});
    let deleted = caller
        .v2("DELETE", "/migration-tasks/delete", Some(&gone))
        .expect(200)
        .json();
    assert_eq!(deleted, gone);
    for id in [task.as_str(), "00000000-0000-4000-8000-000000000000", "none"] {
        let refused = caller.get(&format!("/migration-task/{id}")).expect(400).json();
        assert_eq!(refused["error_code"], "DCS.4133");
    }
    assert_eq!(caller.get("/migration-tasks").expect(200).json()["count"], 0);
}

#[test]
fn an_import_task_goes_into_attached_servers_and_into_clusters_and_is_stopped() {
    let foreign = start(Form::Single, Access::Open, &[]);
    let node = &foreign.nodes[0];
    node.ask(&["SET", "other", "mine"]).unwrap();
    let mut service = Service::start_with(&LOOPBACK, &[]);
    let caller = service.caller();
    let cluster = ask(
        &caller,
        "cluster",
        "redis.cluster.xu1.large.r1.4",
        &json!({"spec_param": {"sharding_count": 3}}),
    );
    let shown = caller.wait_idle(&cluster);
    Client::new(&ports(&shown)).fill(3000);
    let backup = caller.make_backup(&cluster, "of three shards");
    let attached = attach_open(&caller, "foreign", &[node.port]);
    let task = begin(&caller, &backup, &attached);
    assert_eq!(ended(&caller, &task)["status"], "SUCCESS");
    assert_eq!(node.ask(&["DBSIZE"]).unwrap(), Reply::Number(3001));

    // And the other way round, while the service is killed.
    let backup = caller.make_backup(&attached, "of one");
    let task = begin(&caller, &backup, &cluster);
    service.kill();
    service.start_again_with(&LOOPBACK, &[]);
    let caller = service.caller();
    assert_eq!(ended(&caller, &task)["status"], "SUCCESS");
    let mut client = Client::new(&ports(&shown));
    assert_eq!(client.call(&["GET", "other"]).text(), Some("mine"));

    let digest = foreign.digest().unwrap();
    node.ask(&["DEBUG", "POPULATE", "200000", "more", "100"]).unwrap();
    let backup = caller.make_backup(&attached, "of many");
    node.ask(&["FLUSHALL"]).unwrap();
    node.ask(&["SET", "other", "mine"]).unwrap();
    let before = foreign.digest().unwrap();
    assert_ne!(digest, before);
    let task = begin(&caller, &backup, &attached);
    caller
        .v2("POST", &format!("/migration-task/{task}/stop"), None)
        .expect(200);
    let shown = ended(&caller, &task);
    assert_eq!(shown["status"], "TERMINATED", "{shown}");
    assert_eq!(foreign.digest().unwrap(), before);
}

#[test]
fn what_cannot_be_imported_is_refused_by_the_field_that_is_wrong() {
    let service = Service::start();
    let caller = service.caller();
    let target = caller.make_instance("target");
    let backup = caller.make_backup(&target, "its own");
    let with = |pointer: &str, value: Value| {
        let mut wish = wish(&backup, &target);
        *wish.pointer_mut(pointer).unwrap() = value;
        caller.v2("POST", "/migration-task", Some(&wish))
    };
    for (pointer, value, field) in [
        ("/migration_type", json!("incremental"), "migration_type"),
        (
            "/backup_files/file_source",
            json!("self_build_obs"),
            "file_source",
        ),
        ("/backup_files", json!("none"), "backup_files"),
        ("/target_instance", json!({}), "target_instance"),
        ("/task_name", Value::Null, "task_name"),
    ] {
        let refused = with(pointer, value).expect(400).json();
        assert!(
            refused["error_msg"].as_str().unwrap().contains(field),
            "{field}: {refused}"
        );
    }
    let unknown = json!("00000000-0000-4000-8000-000000000000");
    with("/backup_files/backup_id", unknown.clone()).expect(400);
    with("/target_instance/id", unknown).expect(404);
}

#[test]
fn chosen_keys_of_a_backup_are_merged_into_an_instance_that_goes_on_serving_and_taken_out_again() {
    let service = Service::start();
    let caller = service.caller();
    let id = caller.make_instance("managed");
    let mut engine = caller.engine(&id);
    engine
        .ask(&["MSET", "user:1", "old", "user:2", "old", "cart:1", "old"])
        .unwrap();
    caller.make_backup(&id, "old");
    engine
        .ask(&["MSET", "user:1", "new", "cart:1", "new", "user:3", "new"])
        .unwrap();
    engine.ask(&["DEL", "user:2"]).unwrap();
    let merged = service.run_json(&[
        "restore",
        "create",
        "managed",
        "--backup",
        "latest",
        "--mode",
        "merge",
        "--match",
        "user:*",
        "--into-prefix",
        "old:",
        "--wait",
    ]);
    assert_eq!(merged["status"], "succeed", "{merged}");
    // The same connection: nothing was switched.
    assert_eq!(text(&mut engine, "old:user:2").as_deref(), Some("old"));
    assert_eq!(text(&mut engine, "user:1").as_deref(), Some("new"));
    assert_eq!(engine.ask(&["DBSIZE"]).unwrap(), Reply::Number(5));
    let undone = service.run_json(&["restore", "undo", "managed", "--wait"]);
    assert_eq!(undone["status"], "succeed", "{undone}");
    assert_eq!(engine.ask(&["DBSIZE"]).unwrap(), Reply::Number(3));
    assert_eq!(text(&mut engine, "user:1").as_deref(), Some("new"));
}
