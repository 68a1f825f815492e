//! Files that something else wrote become backups, or are refused with a reason, and the record tells either.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use xtask::plain_engine::PlainEngine;
use xtask::resp;
use xtask::scratch::Scratch;

use crate::service::{Caller, Service, wait};

/// The file of a stock server with keys of several types, and the server's own digest of them.
fn foreign_file(folder: &Path) -> (std::path::PathBuf, resp::Reply) {
    // Large enough for more than one segment.
    let server = PlainEngine::start(&[("rdbcompression", "no")]).unwrap();
    let mut client = resp::Connection::open(&server.target()).unwrap();
    for call in [
        &["SET", "text", "value"][..],
        &["RPUSH", "list", "a", "b"],
        &["HSET", "hash", "f", "v"],
        &["ZADD", "sorted", "1", "m"],
        &["XADD", "stream", "*", "f", "v"],
        &["SELECT", "3"],
        &["SET", "elsewhere", "value"],
        &["DEBUG", "POPULATE", "20000", "key", "600"],
    ] {
        client.ask(call).unwrap();
    }
    let digest = client.ask(&["DEBUG", "DIGEST"]).unwrap();
    client.ask(&["SAVE"]).unwrap();
    let file = folder.join("foreign.rdb");
    std::fs::copy(server.folder().join("dump.rdb"), &file).unwrap();
    (file, digest)
}

fn newest(caller: &Caller, instance: &str) -> Value {
    let list = caller
        .get(&format!("/instances/{instance}/backups?limit=1"))
        .expect(200)
        .json();
    list["backup_record_response"][0].clone()
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_foreign_file_becomes_a_backup_that_restores_to_the_same_data() {
    let service = Service::start();
    let caller = service.caller();
    let instance = caller.make_instance("imports");
    let outside = Scratch::new("foreign").unwrap();
    let (file, digest) = foreign_file(outside.path());
    let path = file.to_str().unwrap();
    let made = service.run_json(&["import", "imports", path, "--remark", "from elsewhere"]);
    let id = made["backup_id"].as_str().unwrap();
    let row = newest(&caller, &instance);
    assert_eq!(row["backup_id"], id);
    assert_eq!(
        (
            &row["backup_type"],
            &row["status"],
            &row["remark"],
            &row["is_support_restore"]
        ),
        (
            &json!("manual"),
            &json!("succeed"),
            &json!("from elsewhere"),
            &json!("TRUE")
        )
    );
    assert_eq!(row["ext"]["plain_bytes"], std::fs::metadata(&file).unwrap().len());
    caller.make_restore(&instance, id, "");
    assert_eq!(
        caller.engine(&instance).ask(&["DEBUG", "DIGEST"]).unwrap(),
        digest
    );

    // By standard input, and as a server's folder.
    let input = Command::new(env!("CARGO_BIN_EXE_cachekeep"))
        .args(["import", &instance, "-", "-q", "--data-dir"])
        .arg(service.data())
        .stdin(std::fs::File::open(&file).unwrap())
        .output()
        .unwrap();
    assert!(input.status.success(), "{}", told(&input));
    std::fs::rename(&file, outside.path().join("dump.rdb")).unwrap();
    service.run_json(&["import", "imports", outside.path().to_str().unwrap()]);
    let list = caller
        .get(&format!("/instances/{instance}/backups"))
        .expect(200)
        .json();
    assert_eq!(
        list["total_num"], 4,
        "three imports and what the restore replaced"
    );
}

#[test]
fn what_is_not_valid_or_runs_code_unasked_is_refused_and_leaves_nothing_but_its_record() {
    let service = Service::start();
    let caller = service.caller();
    let instance = caller.make_instance("refuses");
    let outside = Scratch::new("foreign").unwrap();
    let (file, _) = foreign_file(outside.path());
    let whole = std::fs::read(&file).unwrap();
    let refused = |bytes: &[u8], name: &str, why: &str| {
        let path = outside.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let output = service.run(&["import", "refuses", path.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1), "{name}");
        assert!(told(&output).contains(why), "{name}: {}", told(&output));
        let row = newest(&caller, &instance);
        assert_eq!(
            (&row["status"], &row["error_code"]),
            (&json!("failed"), &json!("dcs.08.0001"))
        );
        assert!(
            row["ext"]["failure"].as_str().unwrap().contains("offset") || !why.contains("offset"),
            "{row}"
        );
        assert!(
            !service.data().join("store").join(&caller.project).exists(),
            "{name}: objects are left"
        );
    };
    refused(&whole[..whole.len() / 2], "cut.rdb", "offset");
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 0xff;
    refused(&damaged, "damaged.rdb", "offset");
    refused(b"*1\r\n$4\r\nPING\r\n", "commands.aof", "cachekeep backup");
    let mut longer = whole.clone();
    longer.extend_from_slice(b"*1\r\n$4\r\nPING\r\n");
    refused(&longer, "mixed.aof", "cachekeep backup");

    // A library of functions, which an engine runs when it loads it.
    let server = PlainEngine::start(&[]).unwrap();
    let mut client = resp::Connection::open(&server.target()).unwrap();
    let library = "#!lua name=theirs\nredis.register_function('f', function() return 1 end)";
    client.ask(&["FUNCTION", "LOAD", library]).unwrap();
    client.ask(&["SAVE"]).unwrap();
    let with_code = std::fs::read(server.folder().join("dump.rdb")).unwrap();
    refused(&with_code, "code.rdb", "theirs");
    let path = outside.path().join("code.rdb");
    let made = service.run_json(&["import", "refuses", path.to_str().unwrap(), "--accept-functions"]);
    caller.make_restore(&instance, made["backup_id"].as_str().unwrap(), "");
    let answer = caller.engine(&instance).ask(&["FCALL", "f", "0"]).unwrap();
    assert_eq!(answer, resp::Reply::Number(1));

    // The instance and its remark are checked before anything is read.
    for words in [
        &["import", "nobody", "x"][..],
        &["import", "refuses", "x", "--remark", &"r".repeat(129)],
    ] {
        assert_eq!(service.run(words).status.code(), Some(1));
    }
}

#[test]
fn an_append_only_folder_is_taken_where_its_base_holds_everything() {
    let service = Service::start();
    let caller = service.caller();
    let instance = caller.make_instance("appends");
    let server = PlainEngine::start(&[("appendonly", "yes")]).unwrap();
    let mut client = resp::Connection::open(&server.target()).unwrap();
    client.ask(&["SET", "key", "value"]).unwrap();
    let folder = server.folder().to_str().unwrap().to_owned();
    let refused = service.run(&["import", "appends", &folder]);
    assert!(told(&refused).contains("holds commands"), "{}", told(&refused));
    client.ask(&["BGREWRITEAOF"]).unwrap();
    let made = wait("a base with everything", || {
        let output = service.run(&["import", "appends", &folder, "-o", "json"]);
        output
            .status
            .success()
            .then(|| serde_json::from_slice::<Value>(&output.stdout).unwrap())
    });
    caller.make_restore(&instance, made["backup_id"].as_str().unwrap(), "");
    assert_eq!(
        caller.engine(&instance).ask(&["GET", "key"]).unwrap().text(),
        Some("value")
    );
}

#[test]
fn an_import_that_dies_has_failed_and_its_objects_go() {
    let service = Service::start();
    let caller = service.caller();
    let instance = caller.make_instance("dies");
    let outside = Scratch::new("foreign").unwrap();
    let (file, _) = foreign_file(outside.path());
    let mut child = Command::new(env!("CARGO_BIN_EXE_cachekeep"))
        .args(["import", &instance, "-", "--data-dir"])
        .arg(service.data())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let bytes = std::fs::read(&file).unwrap();
    input.write_all(&bytes[..bytes.len() - 9]).unwrap();
    let id = wait("its record", || {
        let row = newest(&caller, &instance);
        (row["status"] == "backuping").then(|| row["backup_id"].as_str().unwrap().to_owned())
    });
    wait("its first object", || {
        let folder = service.data().join("store").join(&caller.project).join(&instance);
        folder.exists().then_some(())
    });
    // While it lives the record does too, whatever the service does.
    caller.make_backup(&instance, "beside it");
    assert_eq!(newest_of(&caller, &instance, &id)["status"], "backuping");
    let busy = caller.v2("DELETE", &format!("/instances/{instance}/backups/{id}"), None);
    assert_eq!(busy.status, 400);
    child.kill().unwrap();
    child.wait().unwrap();
    let row = wait("its end", || {
        let row = newest_of(&caller, &instance, &id);
        (row["status"] == "failed").then_some(row)
    });
    assert_eq!(row["error_code"], "dcs.08.0002");
    caller
        .v2("DELETE", &format!("/instances/{instance}/backups/{id}"), None)
        .expect(204);
    let folder = service
        .data()
        .join("store")
        .join(&caller.project)
        .join(&instance)
        .join(&id);
    assert!(!folder.exists(), "a deletion takes the objects away");
}

fn newest_of(caller: &Caller, instance: &str, id: &str) -> Value {
    caller
        .ck("GET", &format!("/instances/{instance}/backups/{id}"), None)
        .expect(200)
        .json()
}
