//! `export` and `get`: the content of RDB files as JSON.

use std::path::Path;

use serde_json::{Value, json};
use xtask::scratch::Scratch;

use crate::corpus::{bytes, cachekeep};

fn string(text: &[u8]) -> Vec<u8> {
    match text.len() {
        len @ 0..64 => [&[len as u8], text].concat(),
        len => [&[0x80], &(len as u32).to_be_bytes()[..], text].concat(),
    }
}

fn key(code: u8, name: &[u8], value: &[u8]) -> Vec<u8> {
    [&[code], &string(name)[..], value].concat()
}

/// A file without a checksum.
fn file(body: &[Vec<u8>]) -> Vec<u8> {
    [b"REDIS0012", &body.concat()[..], &[255], &[0; 8]].concat()
}

fn exported(folder: &Scratch, content: &[u8], words: &[&str]) -> Value {
    let path = folder.path().join("some.rdb");
    std::fs::write(&path, content).unwrap();
    let output = cachekeep(&[&["export"], words].concat(), &path);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

fn sample() -> Vec<u8> {
    file(&[
        [&[245], &string(b"#!lua name=lib\nreturn 1")[..]].concat(),
        vec![254, 0],
        key(0, b"user:1", b"\x05hello"),
        [&[252], &5000i64.to_le_bytes()[..], &key(0, b"user:2", &[0xc0, 7])].concat(),
        key(1, b"list", b"\x02\x01a\x02\xff\x00"),
        key(5, b"zset", &[&[1, 1, b'm'][..], &1.5f64.to_le_bytes()].concat()),
        key(
            24,
            b"hash",
            &[
                &9000i64.to_le_bytes()[..],
                &[2, 1, 1, b'f', 1, b'v', 0, 1, b'g', 0],
            ]
            .concat(),
        ),
        vec![254, 4],
        key(2, b"user:set", b"\x01\x01m"),
    ])
}

#[test]
fn every_type_is_written_and_selections_select() {
    let folder = Scratch::new("export").unwrap();
    let all = exported(&folder, &sample(), &["--format", "json"]);
    let expected = json!({
        "dbs": {
            "0": [
                {"key": "user:1", "type": "string", "value": "hello"},
                {"key": "user:2", "type": "string", "pexpiretime": 5000, "value": "7"},
                {"key": "list", "type": "list", "value": ["a", {"b64": "/wA="}]},
                {"key": "zset", "type": "zset", "value": [["m", "1.5"]]},
                {"key": "hash", "type": "hash", "value": [["f", "v"], ["g", ""]], "field_pexpiretime": [["f", 9000]]},
            ],
            "4": [{"key": "user:set", "type": "set", "value": ["m"]}],
        },
        "functions": [["library_name", "lib", "engine", "LUA", "library_code", {"b64": "IyFsdWEgbmFtZT1saWIKcmV0dXJuIDE="}]],
        "total_keys": 6,
    });
    assert_eq!(all, expected);
    for (words, keys) in [
        (&["--db", "4"][..], 1),
        (&["--match", "user:*"], 3),
        (&["--type", "string"], 2),
        (&["--match", "user:*", "--db", "0", "--type", "string"], 2),
        (&["--match", "nothing"], 0),
    ] {
        assert_eq!(
            exported(&folder, &sample(), words)["total_keys"],
            keys,
            "{words:?}"
        );
    }
}

#[test]
fn databases_whose_keys_do_not_stand_together_are_each_one_list() {
    let folder = Scratch::new("scattered").unwrap();
    let select = |db| vec![254, db];
    let content = file(&[
        select(1),
        key(0, b"a", b"\x01x"),
        select(0),
        key(0, b"b", b"\x01x"),
        select(1),
        key(0, b"c", b"\x01x"),
    ]);
    let all = exported(&folder, &content, &[]);
    assert_eq!(all["dbs"].as_object().unwrap().len(), 2);
    let names = |db: &str| -> Vec<&str> {
        all["dbs"][db]
            .as_array()
            .unwrap()
            .iter()
            .map(|key| key["key"].as_str().unwrap())
            .collect()
    };
    assert_eq!((names("0"), names("1")), (vec!["b"], vec!["a", "c"]));
}

#[test]
fn nothing_is_written_of_an_invalid_file() {
    let folder = Scratch::new("invalid").unwrap();
    let path = folder.path().join("bad.rdb");
    let mut content = sample();
    let end = content.len();
    content[end - 1] = 1;
    std::fs::write(&path, &content).unwrap();
    let output = cachekeep(&["export"], &path);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    assert!(String::from_utf8_lossy(&output.stderr).contains("offset"));
    let to = folder.path().join("out.json");
    let output = cachekeep(&["export", "--to", to.to_str().unwrap()], &path);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().count(),
        1,
        "only the file itself is there"
    );
    assert_eq!(
        cachekeep(&["export"], Path::new("/dev/null")).status.code(),
        Some(2)
    );
    assert_eq!(
        cachekeep(&["export"], &folder.path().join("missing"))
            .status
            .code(),
        Some(2)
    );
    assert_eq!(cachekeep(&["get", "-"], &path).status.code(), Some(2));
}

#[test]
fn strings_of_any_size_are_written_whole_and_to_a_file() {
    let folder = Scratch::new("long").unwrap();
    let path = folder.path().join("long.rdb");
    for size in [
        16 * 1024,
        16 * 1024 + 1,
        8 * 1024 * 1024,
        8 * 1024 * 1024 + 1,
        20_000_001,
    ] {
        let text: Vec<u8> = (0..size).map(|i| b'a' + (i % 23) as u8).collect();
        let length = (size as u32).to_be_bytes();
        let value = [&[1, 0x80], &length[..], &text].concat();
        std::fs::write(&path, file(&[key(1, b"list", &value)])).unwrap();
        let to = folder.path().join("long.json");
        let output = cachekeep(&["export", "--to", to.to_str().unwrap()], &path);
        assert_eq!(output.status.code(), Some(0));
        let all: Value = serde_json::from_slice(&std::fs::read(&to).unwrap()).unwrap();
        assert!(bytes(&all["dbs"]["0"][0]["value"][0]) == text, "{size}");
    }
}

#[test]
fn one_key_is_shown_or_said_to_be_missing() {
    let folder = Scratch::new("get").unwrap();
    let path = folder.path().join("some.rdb");
    std::fs::write(&path, sample()).unwrap();
    let get = |words: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_cachekeep"));
        command.arg("get").arg(&path).args(words).output().unwrap()
    };
    let found = get(&["user:2"]);
    let shown: Value = serde_json::from_slice(&found.stdout).unwrap();
    assert_eq!(
        shown,
        json!({"key": "user:2", "type": "string", "pexpiretime": 5000, "value": "7"})
    );
    assert_eq!(get(&["user:2", "--db", "4"]).status.code(), Some(1));
    assert_eq!(get(&["user:set", "--db", "4"]).status.code(), Some(0));
}

/// What `words` write of a file, and how the program ends.
fn exported_for_engine(folder: &Scratch, content: &[u8], words: &[&str]) -> (Vec<u8>, i32, String) {
    let path = folder.path().join("some.rdb");
    std::fs::write(&path, content).unwrap();
    let output = cachekeep(&[&["export"], words].concat(), &path);
    let told = String::from_utf8(output.stderr).unwrap();
    (output.stdout, output.status.code().unwrap(), told)
}

#[derive(Default)]
struct Keys(Vec<(u32, String, u8)>);

impl rdb::Sink for Keys {
    fn key(&mut self, key: &rdb::KeySummary<'_>) {
        self.0.push((
            key.db,
            String::from_utf8_lossy(key.key).into_owned(),
            key.type_code,
        ));
    }
}

#[test]
fn files_for_engines_hold_what_is_selected_and_what_they_cannot_hold_is_told() {
    let folder = Scratch::new("export-rdb").unwrap();
    let read = |bytes: &[u8]| {
        let (mut validator, mut keys) = (rdb::Validator::new(), Keys::default());
        validator.feed(bytes, &mut keys).unwrap();
        (validator.finish().unwrap(), keys.0)
    };
    let (out, code, told) = exported_for_engine(&folder, &sample(), &["--format", "rdb"]);
    assert_eq!((code, told.as_str()), (0, ""));
    let (report, keys) = read(&out);
    assert_eq!(
        (report.rdb_version, keys.len(), report.functions.len()),
        (12, 6, 1)
    );

    let old = ["--format", "rdb", "--target", "redis-6.2", "--db", "0"];
    let (out, code, told) = exported_for_engine(&folder, &sample(), &old);
    assert_eq!(code, 3, "{told}");
    assert!(
        told.contains("library \"lib\": left out: function libraries need redis-7.0"),
        "{told}"
    );
    assert!(
        told.contains("db 0, key \"hash\": left out: fields that expire"),
        "{told}"
    );
    assert!(told.contains("2 times something is lost"), "{told}");
    let (report, keys) = read(&out);
    assert_eq!((report.rdb_version, keys.len()), (9, 4));

    let slot = rdb::slot_of(b"user:1").to_string();
    for (words, expected) in [
        (["--slots", slot.as_str()], vec!["user:1"]),
        (
            ["--slots", "0-16383"],
            vec!["user:1", "user:2", "list", "zset", "hash", "user:set"],
        ),
        (["--match", "user:*"], vec!["user:1", "user:2", "user:set"]),
        (["--type", "zset"], vec!["zset"]),
    ] {
        let (out, code, _) =
            exported_for_engine(&folder, &sample(), &[&["--format", "rdb"], &words[..]].concat());
        let names: Vec<String> = read(&out).1.into_iter().map(|(_, name, _)| name).collect();
        assert_eq!(
            (code, names),
            (0, expected.iter().map(|name| (*name).to_owned()).collect())
        );
    }
    for words in [
        &["--slots", "5-16384"][..],
        &["--target", "redis-3.0"],
        &["--lzf", "expand"],
    ] {
        let words = [&["--format", "json"], words].concat();
        assert_eq!(exported_for_engine(&folder, &sample(), &words).1, 2, "{words:?}");
    }
    let mut broken = sample();
    broken.truncate(100);
    let (out, code, _) = exported_for_engine(&folder, &broken, &["--format", "rdb"]);
    assert_eq!((out.len(), code), (0, 1));
}

#[test]
fn commands_make_the_keys() {
    let folder = Scratch::new("export-aof").unwrap();
    let to = folder.path().join("appendonly.aof");
    let words = [
        "--format",
        "aof",
        "--match",
        "user:*",
        "--to",
        to.to_str().unwrap(),
    ];
    let (_, code, told) = exported_for_engine(&folder, &sample(), &words);
    assert_eq!((code, told.as_str()), (0, ""));
    let text = String::from_utf8(std::fs::read(&to).unwrap()).unwrap();
    let lines: Vec<&str> = text
        .split("\r\n")
        .filter(|word| !word.starts_with(['*', '$']))
        .collect();
    assert_eq!(
        lines.join(" "),
        "FUNCTION LOAD #!lua name=lib\nreturn 1 SELECT 0 SET user:1 hello SET user:2 7 PEXPIREAT user:2 5000 \
         SELECT 4 SADD user:set m "
    );
}
