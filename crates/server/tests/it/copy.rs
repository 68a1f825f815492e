//! A backup's second place: made, proven, used where the first is lost, deleted with the backup, broken off anywhere.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::{Value, json};
use xtask::object_server::ObjectServer;

use crate::rebuild::{lose_machine, mirrored};
use crate::service::{Caller, Service, wait};

const BUCKET: &str = "second-places";

struct World {
    server: ObjectServer,
    service: Service,
    reach: Vec<String>,
}

impl World {
    /// A service with the folder and a bucket.
    fn new() -> Self {
        let server = ObjectServer::start(BUCKET).unwrap_or_else(|stop| panic!("{stop}"));
        let service = Service::start_with(&["--store-patience", "3"], &[]);
        let secret = service.data().join("secret");
        std::fs::write(&secret, "secret").unwrap();
        let endpoint = format!("http://{}", server.address());
        let secret = secret.to_str().unwrap();
        let reach = [
            "--endpoint",
            &endpoint,
            "--access-key",
            "key",
            "--secret-key-file",
            secret,
        ];
        let reach: Vec<String> = reach.iter().map(|word| (*word).to_owned()).collect();
        let world = Self {
            server,
            service,
            reach,
        };
        world.run_json(
            &["storage", "add", "far", "--kind", "s3", "--bucket", BUCKET],
            true,
        );
        world
    }

    fn run_json(&self, words: &[&str], is_far: bool) -> Value {
        let reach = self.reach.iter().map(String::as_str).filter(|_| is_far);
        self.service
            .run_json(&words.iter().copied().chain(reach).collect::<Vec<_>>())
    }

    /// Objects of backups in the bucket.
    fn objects(&self) -> Vec<String> {
        let mut names = self.server.names(BUCKET).unwrap();
        names.retain(|name| !name.contains("journal/") && !name.contains("catalog/"));
        names
    }

    fn folder(&self, caller: &Caller, instance: &str, backup: &str) -> PathBuf {
        let store = self.service.data().join("store");
        store.join(&caller.project).join(instance).join(backup)
    }
}

fn show(caller: &Caller, instance: &str, backup: &str) -> Value {
    let path = format!("/instances/{instance}/backups/{backup}");
    caller.ck("GET", &path, None).expect(200).json()["ext"].clone()
}

fn value_of(caller: &Caller, instance: &str) -> Option<String> {
    let answer = caller.engine(instance).ask(&["GET", "key"]).unwrap();
    answer.text().map(str::to_owned)
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_copy_serves_where_the_first_place_is_lost_and_goes_with_the_backup() {
    let world = World::new();
    let service = &world.service;
    let caller = service.caller();
    let instance = caller.make_instance("twice");
    caller.engine(&instance).ask(&["SET", "key", "before"]).unwrap();
    let backup = caller.make_backup(&instance, "");
    let first = world.folder(&caller, &instance, &backup);
    let copied = world.run_json(&["backup", "copy", "twice", &backup, "--to", "far"], false);
    let shown = show(&caller, &instance, &backup);
    assert_eq!(
        (&shown["storage"], &shown["copy"]["storage"]),
        (&json!("local"), &json!("far"))
    );
    assert!(shown["copy"]["copied_at"].is_string(), "{shown}");
    let objects = world.objects();
    assert_eq!(objects.len(), 4, "{objects:?}");
    assert!(
        objects
            .iter()
            .all(|name| name.starts_with(copied["prefix"].as_str().unwrap()))
    );

    // Once, into a store that is there, and into another one.
    for (to, why) in [
        ("far", "has a copy already, in far"),
        ("nowhere", "no storage nowhere"),
        ("local", "already"),
    ] {
        let again = service.run(&["backup", "copy", "twice", &backup, "--to", to]);
        assert!(
            again.status.code() == Some(1) && told(&again).contains(why),
            "{}",
            told(&again)
        );
    }

    // A segment is damaged: restored from the copy, read from the copy, and a verify moves the backup there.
    let segment = first.join("1/shard-0/seg-000000.rdb.zst.age");
    let bytes = std::fs::read(&segment).unwrap();
    std::fs::write(&segment, vec![7; bytes.len()]).unwrap();
    caller.engine(&instance).ask(&["SET", "key", "after"]).unwrap();
    caller.make_restore(&instance, &backup, "");
    assert_eq!(value_of(&caller, &instance).as_deref(), Some("before"));
    std::fs::remove_file(&segment).unwrap();
    assert_eq!(world.run_json(&["inspect", &backup], false)["keys"], 1);
    let file = service.data().join("downloaded.rdb");
    service.run_json(&[
        "backup",
        "download",
        "twice",
        &backup,
        "--to",
        file.to_str().unwrap(),
    ]);
    let verified = service.run(&["backup", "verify", "twice", &backup, "-o", "json"]);
    assert!(
        verified.status.success() && told(&verified).contains("its copy holds"),
        "{}",
        told(&verified)
    );
    let shown = show(&caller, &instance, &backup);
    assert_eq!(
        (&shown["storage"], &shown["copy"], &shown["proof"]["holds"]),
        (&json!("far"), &json!(null), &json!(true))
    );
    caller.engine(&instance).ask(&["SET", "key", "after"]).unwrap();
    caller.make_restore(&instance, &backup, "");
    assert_eq!(value_of(&caller, &instance).as_deref(), Some("before"));

    // And back into the folder: the other way round, then removed, then deleted with the backup.
    world.run_json(&["backup", "copy", "twice", "latest", "--to", "local"], false);
    world.run_json(&["backup", "copy", "twice", "latest", "--remove"], false);
    assert_eq!(show(&caller, &instance, &backup)["copy"], json!(null));
    let copied = world.run_json(&["backup", "copy", "twice", &backup, "--to", "local"], false);
    let place = service
        .data()
        .join("store")
        .join(copied["prefix"].as_str().unwrap());
    assert!(place.join("manifest.json").exists());
    caller
        .v2("DELETE", &format!("/instances/{instance}/backups/{backup}"), None)
        .expect(204);
    assert!(!place.exists(), "the copy in the folder goes with the backup");
    wait("the objects to go", || {
        std::thread::sleep(Duration::from_millis(20));
        world.objects().is_empty().then_some(())
    });
}

#[test]
fn a_copys_store_alone_brings_the_backup_back_when_all_else_is_lost() {
    let mut world = World::new();
    let caller = world.service.caller();
    let instance = caller.make_instance("survives");
    caller.engine(&instance).ask(&["SET", "key", "value"]).unwrap();
    let backup = caller.make_backup(&instance, "with a remark");
    let other = caller.make_backup(&instance, "without a copy");
    world.run_json(&["backup", "copy", "survives", &backup, "--to", "far"], false);
    mirrored(&world.service);
    // The folder's own journal knows of both.
    lose_machine(&mut world.service);
    let report = world.run_json(&["catalog", "rebuild", "--from-store", "local"], false);
    assert_eq!(
        (&report["backups"], &report["copies_not_taken"]),
        (&json!(2), &json!([]))
    );
    world.service.start_again();
    let caller = world.service.caller();
    caller.wait_idle(&instance);
    assert_eq!(show(&caller, &instance, &backup)["copy"]["storage"], "far");
    mirrored(&world.service);

    lose_machine(&mut world.service);
    std::fs::remove_dir_all(world.service.data().join("store")).unwrap();
    let from = format!("s3://{BUCKET}");
    let report = world.run_json(&["catalog", "rebuild", "--from-store", &from], true);
    assert_eq!(report["backups"], 1, "{report}");
    world.service.start_again();
    let caller = world.service.caller();
    caller.wait_idle(&instance);
    let path = format!("/instances/{instance}/backups/{backup}");
    let record = caller.ck("GET", &path, None).expect(200).json();
    assert_eq!(
        (&record["remark"], &record["ext"]["storage"]),
        (&json!("with a remark"), &json!("far"))
    );
    caller
        .ck("GET", &format!("/instances/{instance}/backups/{other}"), None)
        .expect(400);
    caller.make_restore(&instance, &backup, "");
    assert_eq!(value_of(&caller, &instance).as_deref(), Some("value"));
    // The sweeper takes nothing that counts.
    world.run_json(&["backup", "verify", "survives", &backup], false);
}

#[test]
fn a_copy_that_is_hit_anywhere_is_whole_or_gone() {
    let world = World::new();
    let service = &world.service;
    let caller = service.caller();
    let instance = caller.make_instance("broken-off");
    caller.engine(&instance).ask(&["SET", "key", "value"]).unwrap();
    let near = caller.make_backup(&instance, "");
    service.run_json(&["storage", "default", "far"]);
    let far = caller.make_backup(&instance, "");
    let mark = service.data().join("mark");
    let before = world.objects().len();
    let places = [
        "begun",
        "mid",
        "before_manifest",
        "after_manifest",
        "before_settle",
        "settled",
    ];
    for (backup, to) in [(&near, "far"), (&far, "local")] {
        // The way into the folder differs by what clears up.
        let tried = places
            .iter()
            .filter(|place| to == "far" || matches!(**place, "mid" | "after_manifest"));
        for place in tried {
            for action in ["kill", "error"] {
                let label = format!("{place} {action} to {to}");
                let hit = Command::new(env!("CARGO_BIN_EXE_cachekeep"))
                    .args(["backup", "copy", "broken-off", backup, "--to", to, "--data-dir"])
                    .arg(service.data())
                    .env("CACHEKEEP_FAILPOINT", format!("copy.{place}:{action}"))
                    .env("CACHEKEEP_FAILPOINT_MARK", &mark)
                    .output()
                    .unwrap();
                assert!(!hit.status.success(), "{label}");
                assert!(std::fs::remove_file(&mark).is_ok(), "{label}: not reached");
                let copy = wait("a copy that is whole or none", || {
                    std::thread::sleep(Duration::from_millis(20));
                    let copy = show(&caller, &instance, backup)["copy"].clone();
                    (copy.is_null() || copy["copied_at"].is_string()).then_some(copy)
                });
                assert_eq!(copy.is_null(), *place != "settled", "{label}");
                if !copy.is_null() {
                    service.run_json(&["backup", "copy", "broken-off", backup, "--remove"]);
                }
                wait("nothing of it to be left", || {
                    std::thread::sleep(Duration::from_millis(20));
                    let folder = world.folder(&caller, &instance, backup);
                    let attempts = std::fs::read_dir(folder).map_or(0, Iterator::count);
                    let own = usize::from(to == "far");
                    (world.objects().len() == before && attempts == own).then_some(())
                });
                let verified = service.run(&["backup", "verify", "broken-off", backup]);
                assert!(verified.status.success(), "{label}: {}", told(&verified));
            }
        }
    }
}
