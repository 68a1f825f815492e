//! Selectors against a program of another language that knows nothing of RDB files: it asks the source server about every key.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;
use xtask::fill::Options;
use xtask::plain_engine::PlainEngine;
use xtask::resp::{Connection, Reply};

use crate::replay::{Source, count, is_long, mixed, restored, url};

/// The reference, with its words.
fn reference(words: &[&str]) -> Command {
    let program = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/selection/reference.py");
    let mut command = Command::new(xtask::setup::python());
    command.arg(program).args(words).stdin(Stdio::null());
    command
}

/// How many keys a server holds, and what: name, expiry and value of each of them, by the reference.
fn held(server: &PlainEngine) -> Value {
    let output = reference(&["held", server.socket().to_str().unwrap()])
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn each_selector_and_random_combinations_take_what_an_independent_reference_takes() {
    let (keys, combinations) = if is_long() { (2_000_000, 200) } else { (20_000, 20) };
    let options = Options {
        ttl_share: 0.4,
        ..mixed(keys, 2)
    };
    let source = Source::new(&options, &[("rdbcompression", "no")]);
    let socket = source.engine.socket();
    let mut choices = reference(&[
        "choices",
        socket.to_str().unwrap(),
        source.path(),
        &combinations.to_string(),
        "11",
    ])
    .stdout(Stdio::piped())
    .spawn()
    .unwrap();
    let target = PlainEngine::start(&[]).unwrap();
    let (mut done, mut parting, mut applied) = (0, 0, 0);
    for line in BufReader::new(choices.stdout.take().unwrap()).lines() {
        let wanted: Value = serde_json::from_str(&line.unwrap()).unwrap();
        let words: Vec<&str> = wanted["words"]
            .as_array()
            .unwrap()
            .iter()
            .map(|word| word.as_str().unwrap())
            .collect();
        let mut link = Connection::open(&target.target()).unwrap();
        link.ask(&["FLUSHALL"]).unwrap();
        let dry_words = [&words[..], &["--dry-run"]].concat();
        let (dry_status, dry) = restored(source.path(), &url(&target), &dry_words);
        let (status, account) = restored(source.path(), &url(&target), &words);
        assert_eq!((dry_status, status), (0, 0), "{words:?}: {account:#}");
        let counts = |told: &Value| {
            ["applied", "skipped", "conflicting", "expired", "failed"].map(|kind| count(told, kind))
        };
        let taken = count(&wanted, "keys");
        let skipped = source.keys - taken;
        assert_eq!(counts(&account), [taken, skipped, 0, 0, 0], "{words:?}");
        assert_eq!(counts(&dry), counts(&account), "{words:?}");
        let held = held(&target);
        assert_eq!(
            (&held["keys"], &held["digest"]),
            (&wanted["keys"], &wanted["digest"]),
            "{words:?}"
        );
        done += 1;
        applied += taken;
        parting += u64::from(taken > 0 && skipped > 0);
    }
    assert!(choices.wait().unwrap().success());
    println!(
        "{done} choices of {keys} keys, {parting} of which take some and leave some: {applied} keys applied"
    );
    assert_eq!(done, 8 + combinations);
    assert!(
        parting > combinations / 2,
        "{parting} choices take some keys and leave some"
    );
}

#[test]
fn where_others_go_only_what_the_selection_could_have_put_there_goes() {
    let source = Source::new(&mixed(2000, 2), &[]);
    let target = PlainEngine::start(&[]).unwrap();
    let mut link = Connection::open(&target.target()).unwrap();
    for call in [
        &["SET", "u:of-another", "old"][..],
        &["SET", "other", "old"],
        &["SELECT", "1"],
        &["SET", "u:of-another", "old"],
    ] {
        link.ask(call).unwrap();
    }
    let words = [
        "--mode",
        "replace",
        "--db",
        "0",
        "--map-db",
        "0:0",
        "--into-prefix",
        "u:",
    ];
    let (status, account) = restored(source.path(), &url(&target), &words);
    assert_eq!((status, count(&account, "removed")), (0, 1), "{account:#}");
    assert_eq!(account["first"]["removed"][0]["key"], "u:of-another");
    assert_eq!(link.ask(&["DBSIZE"]).unwrap(), Reply::Number(1));
    link.ask(&["SELECT", "0"]).unwrap();
    assert_eq!(link.ask(&["GET", "other"]).unwrap().text(), Some("old"));
}

#[test]
fn where_others_go_a_database_that_no_selected_key_goes_to_keeps_what_it_has() {
    let source = Source::new(&mixed(2000, 2), &[]);
    // Each: words, and of databases 0, 1 and 5 those whose other key goes.
    let cases: [(&[&str], &[&str]); 3] = [
        (&[], &["0", "1"]),
        (&["--map-db", "1:7"], &["0"]),
        (&["--map-db", "0:5", "--map-db", "1:5", "--db", "1"], &["5"]),
    ];
    for (choice, gone) in cases {
        let target = PlainEngine::start(&[]).unwrap();
        let mut link = Connection::open(&target.target()).unwrap();
        for db in ["0", "1", "5"] {
            link.ask(&["SELECT", db]).unwrap();
            link.ask(&["SET", "of-another", "old"]).unwrap();
        }
        let words = [&["--mode", "replace"], choice].concat();
        let (dry_status, dry) = restored(
            source.path(),
            &url(&target),
            &[&words[..], &["--dry-run"]].concat(),
        );
        let (status, account) = restored(source.path(), &url(&target), &words);
        assert_eq!((dry_status, status), (0, 0), "{words:?}: {account:#}");
        let removed = gone.len() as u64;
        assert_eq!(
            (count(&dry, "removed"), count(&account, "removed")),
            (removed, removed),
            "{words:?}"
        );
        for db in ["0", "1", "5"] {
            link.ask(&["SELECT", db]).unwrap();
            let stays = i64::from(!gone.contains(&db));
            let there = link.ask(&["EXISTS", "of-another"]).unwrap();
            assert_eq!(there, Reply::Number(stays), "{words:?}: database {db}");
        }
    }
}
