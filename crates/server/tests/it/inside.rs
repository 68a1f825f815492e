//! Verbs on RDB files take a backup in the file's place.

use serde_json::json;

use crate::service::Service;

#[test]
fn a_backups_id_stands_for_its_file_in_inspect_export_and_get() {
    let service = Service::start();
    let caller = service.caller();
    let instance = caller.make_instance("looked-into");
    let mut engine = caller.engine(&instance);
    engine.ask(&["SET", "user:1", "value"]).unwrap();
    engine.ask(&["DEBUG", "POPULATE", "1000", "key", "100"]).unwrap();
    let backup = caller.make_backup(&instance, "");
    let file = service.data().join("plain.rdb");
    let name = file.to_str().unwrap();
    service.run_json(&["backup", "download", "looked-into", &backup, "--to", name]);

    let of = |named: &str| service.run_json(&["inspect", named]);
    assert_eq!(of(&backup), of(name));
    assert_eq!(of(&backup)["keys"], json!(1001));
    for words in [&["export", "", "--format", "json"][..], &["get", "", "user:1"]] {
        let told = |named: &str| {
            let mut words = words.to_vec();
            words[1] = named;
            let output = service.run(&words);
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{words:?}: {errors}");
            output.stdout
        };
        assert!(!told(name).is_empty());
        assert_eq!(told(&backup), told(name), "{words:?}");
    }

    // Of a backup only what may hold a key that is named is read, and told.
    let chosen = service.run(&[
        "export", &backup, "--key", "user:1", "--key", "key:7", "--key", "absent",
    ]);
    let told = String::from_utf8_lossy(&chosen.stderr).into_owned();
    assert!(told.contains("blocks, in 1 of 1 segments"), "{told}");
    let document: serde_json::Value = serde_json::from_slice(&chosen.stdout).unwrap();
    assert_eq!(document["total_keys"], json!(2), "{document}");
    let absent = service.run(&["get", &backup, "absent"]);
    assert_eq!(absent.status.code(), Some(1));

    // The index is no part of the data: without it all is read.
    let folder = service.data().join("store").join(&caller.project).join(&instance);
    let folder = folder.join(&backup).join("1/shard-0");
    std::fs::write(folder.join("keys-000000.json.zst.age"), b"spoilt").unwrap();
    let whole = service.run(&["get", &backup, "user:1"]);
    assert!(whole.status.success());
    assert!(String::from_utf8_lossy(&whole.stderr).contains("its key index cannot be used"));

    // Neither a file nor a backup, and a backup that is damaged.
    let unknown = service.run(&["inspect", "0f8fad5b-d9cb-469f-a165-70867728950e"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("no such backup"));
    let segment = service.data().join("store").join(&caller.project).join(&instance);
    let segment = segment.join(&backup).join("1/shard-0/seg-000000.rdb.zst.age");
    std::fs::write(&segment, b"spoilt").unwrap();
    let damaged = service.run(&["inspect", &backup]);
    assert_eq!(damaged.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&damaged.stderr).contains("seg-000000"));
    let left = std::fs::read_dir(service.data().join("spool")).unwrap().count();
    assert_eq!(left, 0, "nothing decoded is left on disk under a name");
}

#[test]
fn a_backup_is_looked_into_without_room_for_it_on_disk() {
    let service = Service::start();
    let caller = service.caller();
    let instance = caller.make_instance("larger-than-the-disk");
    let mut engine = caller.engine(&instance);
    // A key of three segments between others of one each.
    engine
        .ask(&["DEBUG", "POPULATE", "20", "key", "1000000"])
        .unwrap();
    engine
        .ask(&["DEBUG", "POPULATE", "1", "long", "20000000"])
        .unwrap();
    for item in 10..40 {
        engine
            .ask(&["RPUSH", "list", &item.to_string().repeat(900_000 / 2)])
            .unwrap();
    }
    let backup = caller.make_backup(&instance, "");
    let file = service.data().join("plain.rdb");
    let name = file.to_str().unwrap();
    service.run_json(&[
        "backup",
        "download",
        "larger-than-the-disk",
        &backup,
        "--to",
        name,
    ]);
    // No file may grow beyond 16 MiB: the backup is 67 MB.
    let limited = |words: &[&str]| {
        let output = std::process::Command::new("sh")
            .args([
                "-c",
                "ulimit -f 32768; exec \"$0\" \"$@\"",
                env!("CARGO_BIN_EXE_cachekeep"),
            ])
            .args(words)
            .args(["--data-dir", service.data().to_str().unwrap()])
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{words:?}: {errors}");
        output.stdout
    };
    let whole = std::fs::read(&file).unwrap();
    assert!(whole.len() > 60_000_000);
    assert_eq!(limited(&["inspect", &backup]), limited(&["inspect", name]));
    for words in [
        &["export", "", "--format", "json"][..],
        &["export", "", "--format", "rdb"],
        &["export", "", "--format", "rdb", "--lzf", "compress"],
        &["export", "", "--format", "aof"],
        &["export", "", "--match", "key:1*"],
    ] {
        let of = |named: &str| {
            let mut words = words.to_vec();
            words[1] = named;
            limited(&words)
        };
        assert!(of(&backup) == of(name), "{words:?}");
    }

    // Damage behind what is asked for is found before a byte is written.
    let folder = service.data().join("store").join(&caller.project).join(&instance);
    let last = folder.join(&backup).join("1/shard-0/seg-000005.rdb.zst.age");
    std::fs::write(last, b"spoilt").unwrap();
    let to = service.data().join("out.json");
    let damaged = service.run(&["export", &backup, "--db", "0", "--to", to.to_str().unwrap()]);
    assert_eq!((damaged.status.code(), damaged.stdout.len()), (Some(2), 0));
    let left = std::fs::read_dir(service.data()).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert!(
        left.iter()
            .all(|name| !name.to_string_lossy().starts_with("out.json")),
        "{left:?}"
    );
}
