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
    refused(b"*1\r\n$8\r\nSHUTDOWN\r\n", "commands.aof", "SHUTDOWN");
    let mut longer = whole.clone();
    longer.extend_from_slice(b"*3\r\n$6\r\nconfig\r\n$3\r\nSET\r\n$3\r\ndir\r\n");
    refused(&longer, "mixed.aof", "CONFIG");
    refused(&longer, "mixed.rdb", "offset");

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
fn append_only_files_are_replayed_by_an_engine_that_is_thrown_away() {
    let service = Service::start();
    let caller = service.caller();
    let instance = caller.make_instance("appends");
    let server = PlainEngine::start(&[("appendonly", "yes"), ("auto-aof-rewrite-percentage", "0")]).unwrap();
    let mut client = resp::Connection::open(&server.target()).unwrap();
    client.ask(&["SET", "before", "the base"]).unwrap();
    client.ask(&["BGREWRITEAOF"]).unwrap();
    wait("a base", || {
        let is_done = client.info("persistence", "aof_rewrite_in_progress").unwrap() == "0";
        let scheduled = client.info("persistence", "aof_rewrite_scheduled").unwrap() == "0";
        (is_done && scheduled).then_some(())
    });
    for call in [
        &["RPUSH", "list", "a", "b", "c"][..],
        &["LPOP", "list"],
        &["MULTI"],
        &["HSET", "hash", "f", "v"],
        &["INCRBY", "count", "41"],
        &["EXEC"],
        &["INCR", "count"],
        &["SET", "expires", "x", "EX", "100000"],
        &["ZADD", "sorted", "1.5", "m"],
        &["XADD", "stream", "1-1", "f", "v"],
        &["XGROUP", "CREATE", "stream", "group", "0"],
        &["XREADGROUP", "GROUP", "group", "me", "STREAMS", "stream", ">"],
        &["SELECT", "3"],
        &["SET", "elsewhere", "value"],
        &["COPY", "elsewhere", "again", "DB", "4"],
        &["SELECT", "0"],
        &["DEBUG", "POPULATE", "1000", "lost-with-an-aof", "10"],
    ] {
        client.ask(call).unwrap();
    }
    // DEBUG is not written to the file: what it made is not in the import.
    client
        .ask(&[
            "EVAL",
            "for i = 0, 999 do redis.call('DEL', 'lost-with-an-aof:' .. i) end",
            "0",
        ])
        .unwrap();
    let digest = client.ask(&["DEBUG", "DIGEST"]).unwrap();
    let folder = server.folder().to_str().unwrap().to_owned();
    let made = service.run_json(&["import", "appends", &folder]);
    caller.make_restore(&instance, made["backup_id"].as_str().unwrap(), "");
    assert_eq!(
        caller.engine(&instance).ask(&["DEBUG", "DIGEST"]).unwrap(),
        digest
    );

    // A file of version 6: an RDB, then commands, the last of them cut off by a crash.
    client.ask(&["SAVE"]).unwrap();
    let mut file = std::fs::read(server.folder().join("dump.rdb")).unwrap();
    file.extend_from_slice(
        b"*2\r\n$6\r\nSELECT\r\n$1\r\n0\r\n*3\r\n$3\r\nSET\r\n$5\r\nafter\r\n$1\r\n1\r\n*2\r\n$3\r\nDEL",
    );
    let outside = Scratch::new("foreign").unwrap();
    let path = outside.path().join("appendonly.aof");
    std::fs::write(&path, file).unwrap();
    let output = service.run(&["import", "appends", path.to_str().unwrap(), "-o", "json"]);
    assert!(told(&output).contains("middle of a command"), "{}", told(&output));
    let made: Value = serde_json::from_slice(&output.stdout).unwrap();
    caller.make_restore(&instance, made["backup_id"].as_str().unwrap(), "");
    let mut engine = caller.engine(&instance);
    client.ask(&["SET", "after", "1"]).unwrap();
    assert_eq!(
        engine.ask(&["DEBUG", "DIGEST"]).unwrap(),
        client.ask(&["DEBUG", "DIGEST"]).unwrap()
    );
    let left: Vec<_> = std::fs::read_dir(service.data().join("spool")).unwrap().collect();
    assert!(left.is_empty(), "engine and directory are gone: {left:?}");
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
