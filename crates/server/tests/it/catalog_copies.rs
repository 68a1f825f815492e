//! The catalogue is lost, and comes back from a copy of all of it.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::rebuild::lose_catalogue;
use crate::service::{Credential, Service, wait};

/// A catalogue in PostgreSQL is copied by that.
fn is_elsewhere() -> bool {
    std::env::var("CACHEKEEP_TEST_CATALOG").is_ok()
}

#[track_caller]
fn refused(service: &Service, words: &[&str]) -> String {
    let output = service.run(words);
    assert_eq!(output.status.code(), Some(1), "{words:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The names of the copies, newest first.
fn listed(service: &Service) -> Vec<String> {
    let rows = service.run_json(&["catalog", "copies"]);
    let name = |row: &Value| row["copy"].as_str().unwrap().to_owned();
    rows.as_array().unwrap().iter().map(name).collect()
}

fn first_copy(service: &Service) -> String {
    wait("the copy of the first start", || listed(service).pop())
}

/// The folder of the copies in the store.
fn folder(service: &Service) -> PathBuf {
    let copies = service.data().join("store/catalog");
    let mut inside = std::fs::read_dir(copies).unwrap();
    inside.next().unwrap().unwrap().path()
}

fn files(folder: &Path, of: &str) -> Vec<PathBuf> {
    let inside = std::fs::read_dir(folder).unwrap();
    let mut found: Vec<PathBuf> = inside.map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.file_name().unwrap().to_string_lossy().starts_with(of));
    found.sort();
    found
}

/// Waits until the stores know of every project all that the catalogue does.
fn mirrored(service: &Service) {
    wait("mirrors that are up to date", || {
        let rows = service.run_json(&["catalog", "status"]);
        let mut rows = rows.as_array().unwrap().iter();
        rows.all(|row| row["rows_not_mirrored"] == 0).then_some(())
    });
}

#[test]
fn a_copy_brings_users_access_keys_hooks_and_the_audit_log_of_a_lost_catalogue_back() {
    if is_elsewhere() {
        return;
    }
    let mut service = Service::start();
    let caller = service.caller();
    let instance = caller.make_instance("copied");
    caller.engine(&instance).ask(&["SET", "key", "value"]).unwrap();
    let backup = caller.make_backup(&instance, "told in the copy");
    let second = service.second_project("team2");
    service.run_json(&["hook", "add", "told", "--exec", "/bin/true"]);
    first_copy(&service);
    mirrored(&service);
    let audit = service.run_json(&["audit", "verify"]);
    assert!(audit["entries"].as_u64().unwrap() >= 5, "{audit}");
    let made = service.run_json(&["catalog", "copy"]);
    let copy = made["copy"].as_str().unwrap().to_owned();
    assert_eq!(listed(&service)[0], copy);
    for left in ["catalog.copy.sqlite", "catalog.copy.part"] {
        assert!(!service.data().join(left).exists(), "{left}");
    }

    lose_catalogue(&mut service);
    let restore = ["catalog", "restore-copy"];
    let nothing_is_written = |service: &Service| {
        for name in ["catalog.sqlite", "catalog.restored"] {
            assert!(!service.data().join(name).exists(), "{name}");
        }
    };
    // Whoever has the store alone has nothing.
    let (keys, away) = (service.data().join("keys"), service.data().join("away"));
    std::fs::rename(&keys, &away).unwrap();
    let said = refused(&service, &restore);
    assert!(said.contains("master.key is missing"), "{said}");
    nothing_is_written(&service);
    std::fs::rename(&away, &keys).unwrap();
    let other = Service::start();
    let master = std::fs::read(keys.join("master.key")).unwrap();
    std::fs::copy(other.data().join("keys/master.key"), keys.join("master.key")).unwrap();
    let said = refused(&service, &restore);
    assert!(said.contains("does not open"), "{said}");
    nothing_is_written(&service);
    std::fs::write(keys.join("master.key"), master).unwrap();

    // Each of its objects, with one byte changed.
    let objects = files(&folder(&service), &copy);
    assert_eq!(objects.len(), 2, "{objects:?}");
    for object in &objects {
        let bytes = std::fs::read(object).unwrap();
        let mut damaged = bytes.clone();
        damaged[bytes.len() / 2] ^= 1;
        std::fs::write(object, &damaged).unwrap();
        let said = refused(&service, &restore);
        assert!(said.contains("--copy takes an older one"), "{said}");
        nothing_is_written(&service);
        std::fs::write(object, &bytes).unwrap();
    }
    let said = refused(&service, &["catalog", "restore-copy", "--copy", "none-such"]);
    assert!(said.contains(&copy), "{said}");

    let restored = service.run_json(&restore);
    assert_eq!(
        (&restored["copy"], &restored["bytes"]),
        (&made["copy"], &made["bytes"])
    );
    let again = refused(&service, &restore);
    assert!(again.contains("catalog.sqlite is there"), "{again}");
    service.start_again();
    service.logged_in().get("/instances").expect(200);
    let theirs = service.caller_with(&second.project, Credential::Key(second.key.clone()));
    theirs.get("/instances").expect(200);
    assert_eq!(service.run_json(&["hook", "list"])[0]["name"], "told");
    assert_eq!(service.run_json(&["audit", "verify"]), audit);
    let caller = service.caller();
    let backups = caller
        .get(&format!("/instances/{instance}/backups"))
        .expect(200)
        .json();
    assert_eq!(backups["backup_record_response"][0]["backup_id"], backup);
    // The engine ran on, and is known.
    let mut engine = caller.engine(&instance);
    assert_eq!(engine.ask(&["GET", "key"]).unwrap().text(), Some("value"));
}

#[test]
fn the_first_start_makes_a_copy_and_of_more_than_seven_the_newest_stay() {
    if is_elsewhere() {
        return;
    }
    let mut service = Service::start();
    let first = first_copy(&service);
    let folder = folder(&service);
    let not_ours = folder.join("notes.json");
    std::fs::write(&not_ours, "{}").unwrap();
    let mut made = vec![first.clone()];
    for _ in 0..7 {
        let copy = service.run_json(&["catalog", "copy"])["copy"].clone();
        made.insert(0, copy.as_str().unwrap().to_owned());
    }
    assert_eq!(listed(&service), made[..7]);
    assert_eq!(files(&folder, &first), Vec::<PathBuf>::new());
    assert!(not_ours.exists());
    // The newest one is not a day old.
    service.kill();
    service.start_again();
    let caller = service.caller();
    caller.make_instance("later");
    assert_eq!(listed(&service), made[..7]);
}

#[test]
fn a_copy_that_is_older_than_the_mirror_is_refused_at_the_start_until_somebody_says_so() {
    if is_elsewhere() {
        return;
    }
    let mut service = Service::start();
    first_copy(&service);
    let second = service.second_project("team2");
    mirrored(&service);
    service.run_json(&["catalog", "copy"]);
    let later = service.caller().make_instance("later");
    mirrored(&service);
    lose_catalogue(&mut service);
    service.run_json(&["catalog", "restore-copy"]);
    let said = refused(&service, &["serve", "--listen", "127.0.0.1:0"]);
    assert!(
        said.contains("older than its mirror in the store local"),
        "{said}"
    );
    service.run_json(&["catalog", "keep-older", "--yes"]);
    service.start_again();
    service.caller().get(&format!("/instances/{later}")).expect(404);
    let theirs = service.caller_with(&second.project, Credential::Key(second.key));
    theirs.get("/instances").expect(200);
}

#[test]
fn a_shredded_projects_keys_are_in_no_copy_any_more() {
    if is_elsewhere() {
        return;
    }
    let service = Service::start();
    service.run_json(&["project", "create", "team2"]);
    first_copy(&service);
    service.run_json(&["catalog", "copy"]);
    let shredded = service.run_json(&["project", "shred", "team2", "--lose-all-backups-of", "team2"]);
    assert_eq!(shredded["shredded"], json!(true));
    assert_eq!(listed(&service), Vec::<String>::new());
    assert_eq!(files(&folder(&service), ""), Vec::<PathBuf>::new());
    service.run_json(&["catalog", "copy"]);
    assert_eq!(listed(&service).len(), 1);
}
