//! Verbs on RDB files take a backup in the file's place.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::json;
use xtask::plain_engine::PlainEngine;
use xtask::resp;
use xtask::scratch::Scratch;

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

fn cachekeep(words: &[&str], input: Stdio) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cachekeep"));
    command.args(words).stdin(input);
    command
}

/// What is told of a file by all processors, and of the same bytes from a pipe by one.
fn both_ways(file: &Path) -> (Output, Output) {
    let opened = std::fs::File::open(file).unwrap();
    // A real pipe, which cannot be read again.
    let mut cat = Command::new("cat")
        .stdin(opened)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let piped = cat.stdout.take().unwrap();
    let by_one = cachekeep(&["inspect", "-", "-o", "json"], piped.into())
        .output()
        .unwrap();
    cat.wait().unwrap();
    let named = file.to_str().unwrap();
    let by_all = cachekeep(&["inspect", named, "-o", "json"], Stdio::null())
        .output()
        .unwrap();
    (by_all, by_one)
}

#[test]
fn a_large_file_is_inspected_by_all_processors_as_by_one() {
    let server = PlainEngine::start(&[]).unwrap();
    let mut engine = resp::Connection::open(&server.target()).unwrap();
    engine
        .ask(&["DEBUG", "POPULATE", "150000", "small", "60"])
        .unwrap();
    for number in 0..3000 {
        let name = format!("own{}:x", number % 40);
        engine
            .ask(&[
                "HSET",
                &name,
                &format!("field:{number}"),
                &"v".repeat(number % 90),
            ])
            .unwrap();
        engine
            .ask(&["XADD", "stream:1", "*", "f", &number.to_string()])
            .unwrap();
        engine.ask(&["SELECT", &(number % 3).to_string()]).unwrap();
        engine
            .ask(&[
                "SET",
                &format!("t:{number}"),
                "v",
                "EX",
                &(100 + number * 1000).to_string(),
            ])
            .unwrap();
    }
    engine.ask(&["SET", "huge", &"h".repeat(3_000_000)]).unwrap();
    engine.ask(&["CONFIG", "SET", "rdbcompression", "no"]).unwrap();
    engine.ask(&["SAVE"]).unwrap();
    let folder = Scratch::new("inside").unwrap();
    let file = folder.path().join("dump.rdb");
    std::fs::copy(server.folder().join("dump.rdb"), &file).unwrap();
    let whole = std::fs::read(&file).unwrap();
    assert!(
        whole.len() > 10_000_000,
        "{} bytes are read by one thread",
        whole.len()
    );
    let (by_all, by_one) = both_ways(&file);
    assert_eq!((by_all.status.code(), by_one.status.code()), (Some(0), Some(0)));
    assert_eq!(
        String::from_utf8_lossy(&by_all.stdout),
        String::from_utf8_lossy(&by_one.stdout)
    );

    // What is wrong, and where, is told alike.
    let middle = whole.len() / 2;
    for (name, damaged) in [
        ("cut", whole[..middle].to_vec()),
        (
            "flipped",
            [&whole[..middle], &[whole[middle] ^ 0x55], &whole[middle + 1..]].concat(),
        ),
    ] {
        std::fs::write(&file, damaged).unwrap();
        let (by_all, by_one) = both_ways(&file);
        assert_eq!(
            (by_all.status.code(), by_one.status.code()),
            (Some(1), Some(1)),
            "{name}"
        );
        assert_eq!(by_all.stdout, by_one.stdout, "{name}");
    }
}

#[test]
fn more_prefixes_than_are_counted_apart_are_told_as_one_thread_tells_them() {
    let server = PlainEngine::start(&[]).unwrap();
    let mut engine = resp::Connection::open(&server.target()).unwrap();
    let value = "v".repeat(900);
    for number in 0..12_000 {
        engine.send(&["SET", &format!("p{number}:k"), &value]).unwrap();
    }
    engine.settle().unwrap();
    engine.ask(&["CONFIG", "SET", "rdbcompression", "no"]).unwrap();
    engine.ask(&["SAVE"]).unwrap();
    let (by_all, by_one) = both_ways(&server.folder().join("dump.rdb"));
    assert_eq!(by_all.status.code(), Some(0));
    assert_eq!(
        String::from_utf8_lossy(&by_all.stdout),
        String::from_utf8_lossy(&by_one.stdout)
    );
}

#[test]
fn who_reads_only_the_beginning_is_no_trouble() {
    let server = PlainEngine::start(&[]).unwrap();
    let mut engine = resp::Connection::open(&server.target()).unwrap();
    engine.ask(&["DEBUG", "POPULATE", "20000", "key", "100"]).unwrap();
    engine.ask(&["SAVE"]).unwrap();
    let file = server.folder().join("dump.rdb");
    let named = file.to_str().unwrap();
    for words in [
        &["export", named][..],
        &["export", named, "--format", "rdb"],
        &["export", named, "--format", "aof"],
        &["get", named, "key:1"],
    ] {
        let mut child = cachekeep(words, Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(
            (output.status.code(), told.as_str()),
            (Some(141), ""),
            "{words:?}"
        );
    }
    // Both ends closed, as by `2>&1 | head`: no panic.
    let mut child = cachekeep(&["inspect", "/nothing"], Stdio::null())
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    drop(child.stderr.take());
    let code = child.wait().unwrap().code();
    assert!(matches!(code, Some(2 | 141)), "{code:?}");
}

#[test]
fn what_is_no_backup_is_told_from_one() {
    let folder = Scratch::new("inside").unwrap();
    let file = folder.path().join("dump.rdb");
    std::fs::write(&file, b"REDIS0011").unwrap();
    let (named, to) = (file.to_str().unwrap(), folder.path().join("to"));
    let restore = ["restore", "--from", named, "--to", to.to_str().unwrap()];
    for (words, why) in [
        (&restore[..], "a file, and a backup is a folder"),
        (&["inspect", named, "--shard", "1"], "this is a file"),
    ] {
        let output = cachekeep(words, Stdio::null()).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && told.contains(why), "{told}");
    }
}
