//! Who can open a project's backups: an operator's own key beside the master key, or nobody any more.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::rebuild::mirrored;
use crate::service::{Credential, Service, wait};

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn opened(key: &Path, object: &Path) -> Option<Vec<u8>> {
    let output = Command::new("age")
        .args(["-d", "-i"])
        .arg(key)
        .arg(object)
        .output()
        .unwrap();
    output.status.success().then_some(output.stdout)
}

/// Where the list says that the first project's key is.
fn whereabouts(service: &Service) -> Value {
    service.run_json(&["project", "list"])[0]["key"].clone()
}

#[test]
fn an_operators_own_key_opens_the_backups_of_every_key_of_the_project_with_stock_programs() {
    let service = Service::start();
    let caller = service.caller();
    let instance = caller.make_instance("escrowed");
    caller.engine(&instance).ask(&["SET", "key", "value"]).unwrap();
    let backup = caller.make_backup(&instance, "");
    let operator = service.data().join("operator.key");
    let made = Command::new("age-keygen")
        .arg("-o")
        .arg(&operator)
        .output()
        .unwrap();
    let recipient = told(&made).trim().rsplit(' ').next().unwrap().to_owned();
    let wrong = service.run(&["project", "escrow", "local", "--recipient", "age1nonsense"]);
    assert_eq!(wrong.status.code(), Some(1));
    let put = service.run_json(&["project", "escrow", "local", "--recipient", &recipient]);
    assert_eq!(put["keys"], 1);
    assert_eq!(whereabouts(&service), "in escrow");
    let folder = service.data().join("store").join("escrow").join(&caller.project);
    let objects = files(&folder);
    assert_eq!(objects.len(), 1, "{objects:?}");
    let key = service.data().join("from-escrow.key");
    std::fs::write(&key, opened(&operator, &objects[0]).unwrap()).unwrap();
    let archive = service.data().join("store").join(&caller.project).join(&instance);
    let segment = archive.join(&backup).join("1/shard-0/seg-000000.rdb.zst.age");
    let packed = service.data().join("segment.zst");
    std::fs::write(&packed, opened(&key, &segment).unwrap()).unwrap();
    let plain = Command::new("zstd").arg("-dc").arg(&packed).output().unwrap();
    assert!(plain.stdout.starts_with(b"REDIS0"), "{}", told(&plain));

    // The next key follows by itself, and both go when the escrow does.
    service.run_json(&["project", "rotate-key", "local", "-q"]);
    wait("the new key in escrow", || {
        (files(&folder).len() == 2).then_some(())
    });
    mirrored(&service);
    service.run_json(&["project", "escrow", "local", "--remove"]);
    assert_eq!(files(&folder), Vec::<PathBuf>::new());
}

#[test]
fn a_key_that_is_nowhere_else_is_told_at_each_start_until_it_was_printed() {
    const REMINDER: &str = "is nowhere but in this data directory";
    let mut service = Service::start();
    assert!(service.log().contains(REMINDER));
    assert!(whereabouts(&service).as_str().unwrap().starts_with("ONLY HERE"));
    service.run_json(&["project", "key", "local"]);
    assert_eq!(whereabouts(&service), "printed");
    service.kill();
    service.start_again();
    assert!(!service.log().contains(REMINDER));
    service.run_json(&["project", "rotate-key", "local", "-q"]);
    assert!(whereabouts(&service).as_str().unwrap().starts_with("ONLY HERE"));
}

#[test]
fn a_shredded_projects_backups_are_read_by_nobody_and_nothing_is_shredded_unconfirmed() {
    let service = Service::start();
    let first = service.caller();
    let kept = first.make_instance("kept");
    let kept_backup = first.make_backup(&kept, "");
    let second = service.second_project("team2");
    let caller = service.caller_with(&second.project, Credential::Key(second.key.clone()));
    let instance = caller.make_instance("to-be-lost");
    caller.engine(&instance).ask(&["SET", "key", "value"]).unwrap();
    let backup = caller.make_backup(&instance, "");
    mirrored(&service);
    let journal = service.data().join("store/journal").join(&second.project);
    let keys = || -> Vec<PathBuf> {
        let is_key = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with("key-");
        files(&journal).into_iter().filter(is_key).collect()
    };
    let signed: Value = serde_json::from_slice(&std::fs::read(&keys()[0]).unwrap()).unwrap();
    let text: Value = serde_json::from_str(signed["text"].as_str().unwrap()).unwrap();
    let sealed = text["identity_sealed"].as_str().unwrap().to_owned();
    assert!(sealed.len() > 100, "{text}");

    let confirmed = ["project", "shred", "team2", "--lose-all-backups-of", "team2"];
    let living = service.run(&confirmed);
    assert!(
        told(&living).contains("delete them first: to-be-lost"),
        "{}",
        told(&living)
    );
    caller
        .v2("DELETE", &format!("/instances/{instance}"), None)
        .expect(204);
    wait("the instance to go", || {
        let shown = service.run(&["project", "shred", "team2"]);
        told(&shown).contains("nothing was done").then_some(())
    });
    for words in [
        &["project", "shred", "team2"][..],
        &["project", "shred", "team2", "--lose-all-backups-of", "local"],
    ] {
        let unconfirmed = service.run(words);
        assert_eq!(unconfirmed.status.code(), Some(1));
        assert!(
            told(&unconfirmed).contains("loses 1 backups"),
            "{}",
            told(&unconfirmed)
        );
    }
    assert_eq!(service.run_json(&["inspect", &backup])["keys"], 1);

    let lost = service.run_json(&confirmed);
    assert_eq!(
        (&lost["shredded"], &lost["backups_lost"]),
        (&json!(true), &json!(1))
    );
    assert_eq!(keys(), Vec::<PathBuf>::new());
    let inspected = service.run(&["inspect", &backup]);
    assert_eq!(inspected.status.code(), Some(2));
    for words in [
        &["project", "key", "team2"][..],
        &["project", "rotate-key", "team2"],
    ] {
        assert!(told(&service.run(words)).contains("were destroyed"));
    }
    caller.get("/instances").expect(401);
    let catalogue = std::fs::read(service.data().join("catalog.sqlite")).unwrap();
    let bytes: Vec<u8> = (0..sealed.len() / 2)
        .map(|at| u8::from_str_radix(&sealed[at * 2..at * 2 + 2], 16).unwrap())
        .collect();
    assert!(!catalogue.windows(bytes.len()).any(|window| window == bytes));
    // Again, and nobody else's.
    service.run_json(&confirmed);
    assert_eq!(service.run_json(&["inspect", &kept_backup])["valid"], true);
    assert_eq!(service.run_json(&["project", "list"])[1]["key"], "destroyed");
}
