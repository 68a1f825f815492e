//! `diff`: what two sides do not have in common, whatever they are.

use std::process::Output;

use serde_json::{Value, json};
use xtask::plain_engine::PlainEngine;
use xtask::resp;

use crate::service::Service;

/// The summary, and whether the exit status says "the same".
#[track_caller]
fn told(output: &Output) -> Value {
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let told: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{errors}"));
    let status = if told["same"] == true { 0 } else { 1 };
    assert_eq!(output.status.code(), Some(status), "{errors}");
    told
}

#[test]
fn files_backups_instances_and_servers_are_compared_key_by_key() {
    let service = Service::start();
    let caller = service.caller();
    let instance = caller.make_instance("compared");
    let mut engine = caller.engine(&instance);
    for call in [
        &["DEBUG", "POPULATE", "200000", "key", "20"][..],
        &["HSET", "hash:1", "f", "v"],
        &["RPUSH", "list:1", "a", "b"],
        &["SET", "gone:1", "x"],
        &["SELECT", "3"],
        &["SET", "user:1", "far"],
        &["SELECT", "0"],
    ] {
        engine.ask(call).unwrap();
    }
    let backup = caller.make_backup(&instance, "");
    let diff = |words: &[&str]| service.run(&[&["diff"], words, &["-o", "json"]].concat());
    let same = told(&diff(&[&backup, "compared"]));
    assert_eq!(
        (&same["same"], &same["keys_same"]),
        (&json!(true), &json!(200_004))
    );

    for call in [
        &["SET", "key:7", "other"][..],
        &["DEL", "gone:1"],
        &["EXPIRE", "key:8", "100000"],
        // Another order, another encoding, the same value.
        &["HSET", "hash:1", "g", &"w".repeat(100)],
        &["HDEL", "hash:1", "g"],
        &["DEL", "list:1"],
        &["SADD", "list:1", "a"],
        &["SET", "new:\u{1}", "x"],
        &["SELECT", "5"],
        &["SET", "user:1", "elsewhere"],
    ] {
        engine.ask(call).unwrap();
    }
    let list = service.data().join("list.ndjson");
    let seen = told(&diff(&[&backup, &instance, "--list", list.to_str().unwrap()]));
    assert_eq!(seen["keys_same"], 200_000);
    assert_eq!(seen["added"]["types"], json!({"string": 2}));
    let prefixes = json!([{"prefix": "new:", "keys": 1}, {"prefix": "user:", "keys": 1}]);
    assert_eq!(seen["added"]["prefixes"], prefixes);
    assert_eq!(seen["removed"]["examples"], json!([{"db": 0, "key": "gone:1"}]));
    let changed = &seen["changed"];
    assert_eq!(changed["types"], json!({"set": 1, "string": 2}));
    let counts =
        ["keys", "types_changed", "values_changed", "expiries_changed"].map(|name| changed[name].clone());
    assert_eq!(counts, [3, 1, 1, 1].map(|count| json!(count)));
    let lines = std::fs::read_to_string(&list).unwrap();
    let mut lines: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    lines.sort_by_key(|line| line.to_string());
    assert_eq!(lines.len(), 6);
    let list_one = json!({"what": "changed", "db": 0, "key": "list:1", "type_a": "list", "type_b": "set", "value": true,
                          "expiry": false});
    assert!(lines.contains(&list_one), "{lines:?}");
    let later = json!({"what": "changed", "db": 0, "key": "key:8", "type_a": "string", "type_b": "string", "value": false,
                       "expiry": true});
    assert!(lines.contains(&later), "{lines:?}");

    // A file against a server that we do not run; standard output for people.
    let file = service.data().join("plain.rdb");
    let name = file.to_str().unwrap();
    service.run_json(&["backup", "download", "compared", &backup, "--to", name]);
    let server = PlainEngine::start(&[("repl-diskless-sync-delay", "0")]).unwrap();
    let url = format!("unix:{}", server.socket().display());
    let mut client = resp::Connection::open(&server.target()).unwrap();
    client.ask(&["SET", "gone:1", "x"]).unwrap();
    let table = service.run(&["diff", name, &url]);
    let text = String::from_utf8_lossy(&table.stdout).into_owned();
    assert_eq!(table.status.code(), Some(1));
    assert!(
        text.contains("0 added, 200003 removed, 0 changed, 1 the same"),
        "{text}"
    );

    // What cannot be compared is no difference.
    std::fs::write(service.data().join("bad.rdb"), b"REDIS0009 no").unwrap();
    let bad = service.data().join("bad.rdb");
    for words in [
        &[name, bad.to_str().unwrap()][..],
        &[name, "nobody"],
        &[name],
        &[name, "unix:/nowhere"],
    ] {
        let output = diff(words);
        assert_eq!(
            (output.status.code(), output.stdout.len()),
            (Some(2), 0),
            "{words:?}"
        );
    }
}
