//! The catalogue is lost, and made anew from what the store holds.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use xtask::object_server::ObjectServer;

use crate::readme;
use crate::service::{Caller, Service, wait};

/// Waits until the store has been told of everything; the number of the newest entry.
#[track_caller]
pub fn mirrored(service: &Service) -> u64 {
    wait("a mirror that is up to date", || {
        let status = service.run_json(&["catalog", "status"]);
        let row = &status[0];
        (row["rows_not_mirrored"] == 0).then(|| row["newest_entry"].as_u64().unwrap())
    })
}

pub fn lose_catalogue(service: &mut Service) {
    service.kill();
    for ending in ["", "-wal", "-shm"] {
        let _not_each_is_there = std::fs::remove_file(service.data().join(format!("catalog.sqlite{ending}")));
    }
}

pub fn lose_machine(service: &mut Service) {
    lose_catalogue(service);
    service.kill_engines();
    std::fs::remove_dir_all(service.data().join("instances")).unwrap();
    std::fs::remove_dir_all(service.data().join("spool")).unwrap();
}

/// All records of an instance as the lists show them, deleted instances too.
pub fn lists(caller: &Caller, instances: &[&String]) -> Value {
    let lists = |id: &String| {
        let list = |of: &str| {
            let path = format!("/instances/{id}/{of}?include_deleted=true&limit=1000");
            (
                caller.get(&path).expect(200).json(),
                caller.v1("GET", &path, None).expect(200).json(),
            )
        };
        json!({"backups": list("backups"), "restores": list("restores")})
    };
    instances.iter().map(|id| lists(id)).collect()
}

/// Takes out what a machine's loss takes away: generations kept for undo.
pub fn without_generations(mut all: Value) -> Value {
    for instance in all.as_array_mut().unwrap() {
        for page in instance["backups"].as_array_mut().unwrap() {
            for row in page["backup_record_response"].as_array_mut().unwrap() {
                if row["ext"]["kind"] == "generation" {
                    for field in ["status", "updated_at", "is_support_restore"] {
                        row[field] = Value::Null;
                    }
                }
            }
        }
        for page in instance["restores"].as_array_mut().unwrap() {
            for row in page["restore_record_response"].as_array_mut().unwrap() {
                row["ext"]["undo_until"] = Value::Null;
            }
        }
    }
    all
}

/// A service with a history: two instances, one of them deleted, backups and restores of all fates.
struct History {
    service: Service,
    kept: String,
    deleted: String,
    backup: String,
}

impl History {
    fn new() -> Self {
        let service = Service::start();
        let caller = service.caller();
        let kept = caller.make_instance("kept");
        caller.engine(&kept).ask(&["SET", "key", "before"]).unwrap();
        let backup = caller.make_backup(&kept, "with a remark");
        caller.engine(&kept).ask(&["SET", "key", "after"]).unwrap();
        let gone = caller.make_backup(&kept, "deleted later");
        caller.make_restore(&kept, &backup, "the first");
        let undone = caller.make_restore(&kept, &gone, "taken back");
        let undo = caller
            .ck("POST", &format!("/instances/{kept}/restores/{undone}/undo"), None)
            .expect(200)
            .json();
        caller.wait_end(&kept, "restores", undo["restore_id"].as_str().unwrap());
        caller
            .v2("DELETE", &format!("/instances/{kept}/backups/{gone}"), None)
            .expect(204);
        let deleted = caller.make_instance("deleted");
        let theirs = caller.make_backup(&deleted, "outlives its instance");
        caller.make_restore(&deleted, &theirs, "");
        caller
            .v2("DELETE", &format!("/instances/{deleted}"), None)
            .expect(204);
        wait("the end of an instance", || {
            let shown = caller.get(&format!("/instances/{deleted}"));
            (shown.status == 404 || shown.status == 400).then_some(())
        });
        Self {
            service,
            kept,
            deleted,
            backup,
        }
    }

    fn lists(&self) -> Value {
        lists(&self.service.caller(), &[&self.kept, &self.deleted])
    }
}

#[test]
fn the_readmes_lines_bring_a_lost_machines_records_back_field_for_field_and_a_backup_restores() {
    let mut history = History::new();
    mirrored(&history.service);
    let before = history.lists();
    let outside = xtask::scratch::Scratch::new("keys").unwrap();
    readme::run(&history.service, outside.path(), &readme::block("keep-safe"));
    lose_machine(&mut history.service);
    std::fs::remove_dir_all(history.service.data().join("keys")).unwrap();
    std::fs::remove_file(history.service.data().join("admin.json")).unwrap();
    let told = readme::run(&history.service, outside.path(), &readme::block("rebuild"));
    assert!(told.contains("admin.json work again"), "{told}");
    history.service.start_again();
    assert_eq!(
        without_generations(history.lists()),
        without_generations(before.clone())
    );
    let generations = |all: &Value| -> Vec<String> {
        let rows = all[0]["backups"][0]["backup_record_response"].as_array().unwrap();
        let kept = rows.iter().filter(|row| row["ext"]["kind"] == "generation");
        kept.map(|row| format!("{} {}", row["status"], row["is_support_restore"]))
            .collect()
    };
    assert!(generations(&before).contains(&"\"succeed\" \"TRUE\"".to_owned()));
    assert!(
        generations(&history.lists())
            .iter()
            .all(|row| row == "\"expired\" \"FALSE\""),
        "what was kept in memory is gone"
    );
    let caller = history.service.caller();
    caller.wait_idle(&history.kept);
    let mut engine = caller.engine(&history.kept);
    assert_eq!(engine.ask(&["DBSIZE"]).unwrap(), xtask::resp::Reply::Number(0));
    caller.make_restore(&history.kept, &history.backup, "after the loss");
    let mut engine = caller.engine(&history.kept);
    assert_eq!(engine.ask(&["GET", "key"]).unwrap().text(), Some("before"));
    // A second loss: the rebuilt catalogue is mirrored as the first one was.
    mirrored(&history.service);
    let before = history.lists();
    lose_machine(&mut history.service);
    let report = history
        .service
        .run_json(&["catalog", "rebuild", "--from-store", "local"]);
    assert_eq!(report["journal_lost"], json!([]));
    history.service.start_again();
    assert_eq!(without_generations(history.lists()), without_generations(before));
}

#[test]
fn engines_that_run_on_are_taken_up_with_their_data_and_their_undo() {
    let mut history = History::new();
    mirrored(&history.service);
    let before = history.lists();
    let caller = history.service.caller();
    let shown = caller
        .get(&format!("/instances/{}", history.kept))
        .expect(200)
        .json();
    caller
        .engine(&history.kept)
        .ask(&["SET", "unsaved", "value"])
        .unwrap();
    lose_catalogue(&mut history.service);
    let report = history
        .service
        .run_json(&["catalog", "rebuild", "--from-store", "local", "--prove-all"]);
    assert_eq!(report["instances_kept"], json!(["kept"]), "{report}");
    assert_eq!(report["instances_empty"], json!([]));
    assert_eq!(report["backups_not_taken"], json!([]));
    assert_eq!(report["backups_from_manifest_only"], json!([]));
    history.service.start_again();
    assert_eq!(history.lists(), before);
    let caller = history.service.caller();
    let again = caller
        .get(&format!("/instances/{}", history.kept))
        .expect(200)
        .json();
    assert_eq!(
        (&again["port"], &again["status"]),
        (&shown["port"], &shown["status"])
    );
    let mut engine = caller.engine(&history.kept);
    assert_eq!(engine.ask(&["GET", "unsaved"]).unwrap().text(), Some("value"));
    let undo = history
        .service
        .run_json(&["restore", "undo", "kept", "--wait", "-q"]);
    assert_eq!(undo["status"], "succeed", "{undo}");
    // There is a catalogue: nothing to rebuild.
    let refused = history
        .service
        .run(&["catalog", "rebuild", "--from-store", "local"]);
    assert_eq!(refused.status.code(), Some(1));
}

/// The entries of the only journal, by number.
pub fn entries(service: &Service) -> Vec<(u64, PathBuf)> {
    let journal = service.data().join("store/journal");
    let project = std::fs::read_dir(journal)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let mut found: Vec<(u64, PathBuf)> = std::fs::read_dir(project)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter_map(|path| Some((path.file_stem()?.to_str()?.parse().ok()?, path)))
        .collect();
    found.sort();
    found
}

#[test]
fn what_was_not_mirrored_is_reported_and_never_made_up() {
    let mut history = History::new();
    let caller = history.service.caller();
    let kept = history.kept.clone();
    // Accepted, and its end never told.
    let restore = "11111111-2222-4333-8444-555555555555";
    history.service.sql(&format!(
        "UPDATE instance SET restore_ordinal = restore_ordinal + 1 WHERE id = '{kept}';
         INSERT INTO restore (instance_id, ordinal, id, project_id, name, backup_id, backup_name, status, source_instance_id, \
         source_instance_name, method, verify, target_state, created_at_ms, clock_at_ms, updated_at_ms) \
         SELECT id, restore_ordinal, '{restore}', project_id, 'restore_x', '{}', 'backup_x', 'waiting', id, name, 'side_load', \
         'sample', 'untouched', restore_created_at_ms, restore_created_at_ms, restore_created_at_ms FROM instance WHERE id = '{kept}';",
        history.backup
    ));
    mirrored(&history.service);
    // Two entries with the same row, the second of which names the first.
    let described = |text: &str| {
        history.service.sql(&format!(
            "UPDATE instance SET description = '{text}' WHERE id = '{kept}'"
        ));
        mirrored(&history.service)
    };
    let middle = described("lost");
    let told = described("kept");
    let before = history.lists();
    let unsent = caller.make_backup(&kept, "known from its manifest alone");
    caller.make_restore(&kept, &unsent, "never mirrored");
    mirrored(&history.service);
    // An archive that is not what it was.
    let stored = history
        .service
        .data()
        .join("store")
        .join(&caller.project)
        .join(&kept);
    let damaged = caller.make_backup(&kept, "damaged");
    mirrored(&history.service);
    let objects = files_below(&stored.join(&damaged));
    let segment = objects
        .iter()
        .find(|path| path.to_string_lossy().contains("seg-"))
        .unwrap();
    lose_machine(&mut history.service);
    std::fs::write(segment, b"short").unwrap();
    let all = entries(&history.service);
    for (_, path) in all.iter().filter(|(number, _)| *number > told) {
        std::fs::remove_file(path).unwrap();
    }
    let (_, middle) = all.iter().find(|(number, _)| *number == middle).unwrap();
    std::fs::write(middle, b"{}").unwrap();

    let report = history
        .service
        .run_json(&["catalog", "rebuild", "--from-store", "local"]);
    assert_eq!(report["restores_of_unknown_end"], json!([restore]));
    assert_eq!(report["backups_from_manifest_only"], json!([unsent]));
    let not_taken = &report["backups_not_taken"];
    assert_eq!(
        (&not_taken[0]["backup_id"], &not_taken[1]),
        (&json!(damaged), &Value::Null),
        "{report}"
    );
    assert!(not_taken[0]["why"].as_str().unwrap().contains("bytes instead of"));
    let lost = report["journal_lost"].as_array().unwrap();
    assert_eq!(lost.len(), 2, "once as damaged, once as missing: {lost:?}");

    history.service.start_again();
    let caller = history.service.caller();
    caller.wait_idle(&kept);
    let shown = caller
        .ck("GET", &format!("/instances/{kept}/restores/{restore}"), None)
        .expect(200)
        .json();
    assert_eq!(
        (
            &shown["status"],
            &shown["error_code"],
            &shown["ext"]["target_state"]
        ),
        (&json!("failed"), &json!("dcs.08.0002"), &json!("unknown"))
    );
    assert!(shown["ext"]["failure"].as_str().unwrap().contains("is not known"));
    let total = |all: &Value| all[0]["restores"][0]["total_num"].as_u64().unwrap();
    assert!(
        total(&history.lists()) <= total(&before),
        "the last restore is not made up"
    );
    caller.make_restore(&kept, &unsent, "from its manifest");
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files_below(&path)),
            false => found.push(path),
        }
    }
    found
}

#[test]
fn a_bucket_and_the_keys_are_enough_and_the_wrong_keys_are_refused() {
    const BUCKET: &str = "elsewhere";
    let server = ObjectServer::start(BUCKET).unwrap_or_else(|stop| panic!("{stop}"));
    let mut service = Service::start();
    let endpoint = format!("http://{}", server.address());
    let secret = service.data().join("secret");
    std::fs::write(&secret, "secret").unwrap();
    let secret = secret.to_str().unwrap().to_owned();
    let reach = [
        "--endpoint",
        &endpoint,
        "--access-key",
        "key",
        "--secret-key-file",
        &secret,
    ];
    let near = service.caller();
    let instance = near.make_instance("in-a-bucket");
    near.engine(&instance).ask(&["SET", "key", "value"]).unwrap();
    // Made before the bucket was the place for backups.
    let local = near.make_backup(&instance, "in the folder");
    service.run_json(
        &[
            &[
                "storage", "add", "far", "--kind", "s3", "--bucket", BUCKET, "--prefix", "one",
            ][..],
            &reach,
        ]
        .concat(),
    );
    service.run_json(&["storage", "default", "far"]);
    let far = near.make_backup(&instance, "in the bucket");
    mirrored(&service);
    let before = lists(&near, &[&instance]);
    lose_machine(&mut service);
    let from = format!("s3://{BUCKET}/one");
    let rebuild = [&["catalog", "rebuild", "--from-store", &from][..], &reach].concat();

    let keys = service.data().join("keys");
    let signing = std::fs::read(keys.join("signing.key")).unwrap();
    for (file, why) in [
        ("signing.key", "another key than keys/signing.key"),
        ("master.key", "does not open"),
    ] {
        let right = std::fs::read(keys.join(file)).unwrap();
        let other = Service::start();
        std::fs::copy(other.data().join("keys").join(file), keys.join(file)).unwrap();
        let refused = service.run(&rebuild);
        let said = String::from_utf8(refused.stderr).unwrap();
        assert!(refused.status.code() == Some(1) && said.contains(why), "{said}");
        assert!(!service.data().join("catalog.sqlite").exists());
        std::fs::write(keys.join(file), right).unwrap();
    }
    std::fs::remove_file(keys.join("signing.key")).unwrap();
    let refused = service.run(&rebuild);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("signing.key is missing"));
    std::fs::write(keys.join("signing.key"), signing).unwrap();

    let report = service.run_json(&rebuild);
    assert_eq!(
        (&report["backups"], &report["instances_empty"]),
        (&json!(2), &json!(["in-a-bucket"]))
    );
    service.start_again();
    let caller = service.caller();
    assert_eq!(lists(&caller, &[&instance]), before);
    caller.wait_idle(&instance);
    for backup in [&far, &local] {
        caller.engine(&instance).ask(&["FLUSHALL"]).unwrap();
        caller.make_restore(&instance, backup, "");
        let mut engine = caller.engine(&instance);
        assert_eq!(engine.ask(&["GET", "key"]).unwrap().text(), Some("value"));
    }
    // Its objects are known to be its own: they go with it.
    caller
        .v2("DELETE", &format!("/instances/{instance}/backups/{far}"), None)
        .expect(204);
    wait("the objects to go", || {
        std::thread::sleep(Duration::from_millis(20));
        let names = server.names(BUCKET).unwrap();
        let is_kept = |name: &String| name.contains("/journal/") || name.contains("/catalog/");
        names.iter().all(is_kept).then_some(())
    });
}

#[test]
fn a_start_without_the_catalogue_ends_no_engine_and_its_old_log_is_not_applied_to_a_new_one() {
    let mut service = Service::start();
    let caller = service.caller();
    let instance = caller.make_instance("stays");
    let mut engine = caller.engine(&instance);
    engine.ask(&["SET", "key", "value"]).unwrap();
    mirrored(&service);
    service.kill();
    let catalog = service.data().join("catalog.sqlite");
    std::fs::remove_file(&catalog).unwrap();
    let said = |words: &[&str]| {
        let refused = service.run(words);
        assert_eq!(refused.status.code(), Some(1));
        String::from_utf8(refused.stderr).unwrap()
    };
    let start = said(&["serve", "--listen", "127.0.0.1:0"]);
    assert!(start.contains("catalog.sqlite is missing"), "{start}");
    assert!(!catalog.exists());
    assert_eq!(engine.ask(&["GET", "key"]).unwrap().text(), Some("value"));

    let rebuild = ["catalog", "rebuild", "--from-store", "local"];
    let refused = said(&rebuild);
    assert!(refused.contains("catalog.sqlite-wal is there"), "{refused}");
    lose_catalogue(&mut service);
    service.run_json(&rebuild);
    service.start_again();
    assert_eq!(engine.ask(&["GET", "key"]).unwrap().text(), Some("value"));
}
