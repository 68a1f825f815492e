//! A backup applied to servers and clusters that are not ours: real ones at both ends, and the binary between.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use xtask::fill::{Options, fill};
use xtask::plain_cluster::PlainCluster;
use xtask::plain_engine::PlainEngine;
use xtask::resp::{Connection, Reply, Target};
use xtask::scratch::Scratch;

/// A restore as a process that can be started.
pub fn command(from: &str, to: &str, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cachekeep"));
    command
        .args([
            "restore",
            "--from",
            from,
            "--to",
            to,
            "-o",
            "json",
            "-q",
            "--data-dir",
            "/nonexistent",
        ])
        .args(words)
        .stdin(Stdio::null());
    command
}

pub fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs one, and returns its exit status and what it told.
pub fn restored(from: &str, to: &str, words: &[&str]) -> (i32, Value) {
    let output = command(from, to, words).output().unwrap();
    let status = output.status.code().unwrap();
    let account = serde_json::from_slice(&output.stdout);
    (
        status,
        account.unwrap_or_else(|_| panic!("{words:?}: {status}: {}", told(&output))),
    )
}

#[track_caller]
pub fn restored_wholly(from: &str, to: &str, words: &[&str]) -> Value {
    let (status, account) = restored(from, to, words);
    assert_eq!(status, 0, "{words:?}: {account:#}");
    account
}

pub fn url(engine: &PlainEngine) -> String {
    format!("unix:{}", engine.socket().display())
}

pub fn cluster_url(cluster: &PlainCluster) -> String {
    format!("redis://127.0.0.1:{}", cluster.port(0))
}

pub fn ask(target: &Target, words: &[&str]) -> Reply {
    Connection::open(target).unwrap().ask(words).unwrap()
}

/// Keys, conflicts and the like of an account.
pub fn count(account: &Value, kind: &str) -> u64 {
    account[kind]
        .as_u64()
        .unwrap_or_else(|| panic!("{kind}: {account:#}"))
}

/// A server with data of every kind, and its file.
pub struct Source {
    pub engine: PlainEngine,
    pub file: PathBuf,
    pub keys: u64,
    pub digest: String,
}

impl Source {
    pub fn new(options: &Options, settings: &[(&str, &str)]) -> Self {
        let engine = PlainEngine::start(settings).unwrap();
        fill(&engine.target(), options).unwrap();
        Self::of(engine)
    }

    pub fn of(engine: PlainEngine) -> Self {
        ask(&engine.target(), &["SAVE"]);
        let keyspace = ask(&engine.target(), &["INFO", "keyspace"]);
        let keys = keyspace
            .text()
            .unwrap()
            .split("keys=")
            .skip(1)
            .map(|rest| rest.split(',').next().unwrap().parse::<u64>().unwrap())
            .sum();
        Self {
            file: engine.folder().join("dump.rdb"),
            digest: engine.digest().unwrap(),
            keys,
            engine,
        }
    }

    pub fn path(&self) -> &str {
        self.file.to_str().unwrap()
    }
}

pub fn mixed(keys: u64, dbs: u64) -> Options {
    Options {
        keys,
        dbs,
        ..Options::default()
    }
}

#[test]
fn a_file_is_applied_to_a_server_by_payloads_and_by_commands() {
    let source = Source::new(
        &Options {
            giant_mb: 9,
            ..mixed(8000, 3)
        },
        &[],
    );
    for words in [
        &[][..],
        &["--commands"],
        &["--connections", "3"],
        &["--functions", "--mode", "replace"],
    ] {
        let target = PlainEngine::start(&[]).unwrap();
        ask(&target.target(), &["SET", "of-another", "old"]);
        let account = restored_wholly(source.path(), &url(&target), words);
        assert_eq!(count(&account, "applied"), source.keys, "{words:?}: {account:#}");
        assert_eq!(count(&account, "keys"), source.keys);
        if words.contains(&"replace") {
            assert_eq!(count(&account, "removed"), 1);
            assert_eq!(count(&account, "functions"), 2);
        } else {
            assert_eq!(ask(&target.target(), &["GET", "of-another"]).text(), Some("old"));
            ask(&target.target(), &["DEL", "of-another"]);
        }
        assert_eq!(target.digest().unwrap(), source.digest, "{words:?}");
        assert_eq!(account["target_state"], "applied");
        let libraries = ask(&target.target(), &["FUNCTION", "LIST"]);
        assert_eq!(
            libraries == Reply::List(Vec::new()),
            !words.contains(&"--functions")
        );
    }
}

#[test]
fn a_file_is_applied_to_a_cluster_and_comes_back_out_of_it() {
    let source = Source::new(
        &Options {
            giant_mb: 9,
            ..mixed(8000, 1)
        },
        &[],
    );
    let cluster = PlainCluster::start(3, 0, &[]).unwrap();
    let account = restored_wholly(source.path(), &cluster_url(&cluster), &[]);
    assert_eq!(count(&account, "applied"), source.keys, "{account:#}");
    assert_eq!(cluster.digest().unwrap(), source.digest);

    // Other keys go, and the whole is applied once more by commands.
    let key = "of-another";
    let node = (0..3).find(|node| cluster.connect(*node).unwrap().ask(&["SET", key, "old"]).is_ok());
    assert!(node.is_some());
    let account = restored_wholly(
        source.path(),
        &cluster_url(&cluster),
        &["--commands", "--mode", "replace"],
    );
    assert_eq!(
        (count(&account, "applied"), count(&account, "removed")),
        (source.keys, 1)
    );
    assert_eq!(cluster.digest().unwrap(), source.digest);

    let two = Source::new(&mixed(2000, 2), &[]);
    let (status, account) = restored(two.path(), &cluster_url(&cluster), &[]);
    assert_eq!(
        status, 3,
        "keys of another database cannot be in a cluster: {account:#}"
    );
    assert!(
        count(&account, "failed") > 0 && count(&account, "applied") + count(&account, "failed") == two.keys
    );
    let (status, account) = restored(two.path(), &cluster_url(&cluster), &["--map-db", "1:0"]);
    assert_eq!(status, 1, "two databases into one: {account:#}");
    assert_eq!(account["target_state"], "untouched");
}

#[test]
fn a_backup_is_applied_from_its_place() {
    let source = Source::new(&mixed(8000, 2), &[("repl-diskless-sync-delay", "0")]);
    let here = Scratch::new("replay").unwrap();
    let backed_up = Command::new(env!("CARGO_BIN_EXE_cachekeep"))
        .args([
            "backup",
            "--from",
            &url(&source.engine),
            "--to",
            "store",
            "--identity",
            "my.key",
            "-o",
            "json",
        ])
        .current_dir(here.path())
        .output()
        .unwrap();
    assert!(backed_up.status.success(), "{}", told(&backed_up));
    let backed_up: Value = serde_json::from_slice(&backed_up.stdout).unwrap();
    let place = here.path().join(backed_up["backup"].as_str().unwrap());
    let (place, identity) = (place.to_str().unwrap(), here.path().join("my.key"));
    let words = ["--identity", identity.to_str().unwrap()];
    let target = PlainEngine::start(&[]).unwrap();
    let account = restored_wholly(place, &url(&target), &words);
    assert_eq!(count(&account, "applied"), source.keys);
    assert_eq!(target.digest().unwrap(), source.digest);
}

#[test]
fn a_key_that_is_there_fails_is_skipped_or_is_replaced_and_a_dry_run_counts_the_same() {
    let source = Source::new(&mixed(3000, 1), &[]);
    let names = keys_of(&source.engine.target());
    for conflict in ["fail", "skip", "replace"] {
        let target = PlainEngine::start(&[]).unwrap();
        let mut link = Connection::open(&target.target()).unwrap();
        for name in names.iter().step_by(3) {
            link.send(&[&b"SET"[..], name, b"mine"]).unwrap();
        }
        link.send(&["SET", "of-another", "mine"]).unwrap();
        link.settle().unwrap();
        let there = names.len().div_ceil(3) as u64;
        let before = target.digest().unwrap();
        let words = ["--on-conflict", conflict];
        let (_, dry) = restored(
            source.path(),
            &url(&target),
            &[&words[..], &["--dry-run"]].concat(),
        );
        assert_eq!(target.digest().unwrap(), before, "a dry run writes nothing");
        let (status, account) = restored(source.path(), &url(&target), &words);
        let counts = |account: &Value| {
            ["applied", "conflicting", "failed", "skipped"].map(|kind| count(account, kind))
        };
        match conflict {
            "fail" => {
                assert_eq!((status, target.digest().unwrap()), (1, before));
                assert_eq!(account["target_state"], "untouched");
                assert_eq!(count(&account, "conflicting"), there);
                assert_eq!(account["first"]["conflicting"].as_array().unwrap().len(), 100);
            }
            "skip" => {
                assert_eq!(
                    (status, counts(&account)),
                    (0, [source.keys - there, there, 0, 0])
                );
                assert_eq!(counts(&dry), counts(&account));
                assert_eq!(link.ask(&[&b"GET"[..], &names[0]]).unwrap().text(), Some("mine"));
            }
            _ => {
                assert_eq!((status, counts(&account)), (0, [source.keys, 0, 0, 0]));
                assert_eq!(counts(&dry), counts(&account));
                link.ask(&["DEL", "of-another"]).unwrap();
                assert_eq!(target.digest().unwrap(), source.digest);
            }
        }
    }
}

#[test]
fn keys_stand_beside_others_under_other_names_in_other_databases_and_expire_as_asked() {
    let engine = PlainEngine::start(&[]).unwrap();
    let mut link = Connection::open(&engine.target()).unwrap();
    for call in [
        &["SET", "user:1", "a"][..],
        &["SET", "user:2", "b", "EX", "1000"],
        &["SET", "u:taken", "c"],
        &["SET", "soon", "d", "PX", "900"],
        &["SELECT", "5"],
        &["SET", "elsewhere", "e"],
    ] {
        link.ask(call).unwrap();
    }
    let source = Source::of(engine);
    std::thread::sleep(std::time::Duration::from_millis(1000));
    let target = PlainEngine::start(&[]).unwrap();
    let mut there = Connection::open(&target.target()).unwrap();
    let mut get = |db: &str, key: &str| {
        there.ask(&["SELECT", db]).unwrap();
        let value = there.ask(&["GET", key]).unwrap().text().map(str::to_owned);
        let ttl = there.ask(&["TTL", key]).unwrap();
        (value, ttl)
    };
    let to = url(&target);
    let account = restored_wholly(
        source.path(),
        &to,
        &["--into-prefix", "old:", "--map-db", "5:0", "--db", "5"],
    );
    assert_eq!((count(&account, "applied"), count(&account, "skipped")), (1, 4));
    assert_eq!(get("0", "old:elsewhere").0.as_deref(), Some("e"));
    let (status, account) = restored(source.path(), &to, &["--rewrite", "user:=u:", "--db", "0"]);
    assert_eq!(status, 3, "{account:#}");
    assert_eq!(
        ["applied", "skipped", "expired", "failed"].map(|kind| count(&account, kind)),
        [2, 1, 1, 1]
    );
    assert_eq!(account["first"]["failed"][0]["key"], "u:taken");
    assert_eq!(get("0", "u:1").0.as_deref(), Some("a"));
    assert!(matches!(get("0", "u:2").1, Reply::Number(1..=999)));
    let account = restored_wholly(source.path(), &to, &["--expiry", "shift", "--db", "0"]);
    assert_eq!((count(&account, "applied"), count(&account, "expired")), (4, 0));
    assert!(matches!(get("0", "user:2").1, Reply::Number(998..=1001)));
    restored_wholly(source.path(), &to, &["--expiry", "strip", "--db", "0"]);
    assert_eq!(get("0", "user:2").1, Reply::Number(-1));
    assert_eq!(
        get("0", "soon").0.as_deref(),
        Some("d"),
        "it was there when the backup was made"
    );
}

#[test]
fn of_what_is_not_valid_or_cannot_be_nothing_is_sent() {
    let source = Source::new(&mixed(500, 1), &[]);
    let here = Scratch::new("replay").unwrap();
    let target = PlainEngine::start(&[]).unwrap();
    ask(&target.target(), &["CONFIG", "RESETSTAT"]);
    let connections = || {
        let stats = ask(&target.target(), &["INFO", "stats"]);
        let line = stats
            .text()
            .unwrap()
            .lines()
            .find(|line| line.starts_with("total_connections_received:"));
        line.unwrap()
            .split(':')
            .nth(1)
            .unwrap()
            .trim()
            .parse::<u64>()
            .unwrap()
    };
    let before = connections();
    let mut bytes = std::fs::read(&source.file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    let damaged = here.path().join("damaged.rdb");
    std::fs::write(&damaged, bytes).unwrap();
    let (status, account) = restored(damaged.to_str().unwrap(), &url(&target), &[]);
    assert_eq!(
        (status, &account["target_state"]),
        (1, &Value::from("untouched")),
        "{account:#}"
    );
    assert_eq!(connections(), before + 1, "none but our own question");

    let refused = |words: &[&str], why: &str| {
        let output = command(source.path(), &url(&target), words).output().unwrap();
        assert_ne!(output.status.code(), Some(0), "{words:?}");
        assert!(told(&output).contains(why), "{words:?}: {}", told(&output));
    };
    refused(&["--regex", "("], "unclosed group");
    refused(&["--rewrite", "a"], "beginnings of names");
    refused(&["--ttl", "5"], "none, any");
    refused(&["--size", "9..1"], "bytes are wanted");
    refused(
        &["--mode", "replace", "--type", "list"],
        "no type, size or time to live",
    );
    refused(&["--max-ops", "0"], "--max-ops");
    let replica = PlainEngine::start(&[("replicaof", "127.0.0.1 1")]).unwrap();
    let (status, account) = restored(source.path(), &url(&replica), &[]);
    assert_eq!(status, 1);
    assert!(
        account["failure"].as_str().unwrap().contains("name its primary"),
        "{account:#}"
    );
    let (status, account) = restored(source.path(), "unix:/nonexistent/socket", &["--patience", "0"]);
    assert_eq!((status, &account["target_state"]), (1, &Value::from("untouched")));
    let pipe = command("/dev/null", &url(&target), &[]).output().unwrap();
    assert!(told(&pipe).contains("read twice"), "{}", told(&pipe));
    assert_eq!(ask(&target.target(), &["DBSIZE"]), Reply::Number(0));
}

#[test]
fn a_target_without_memory_ends_it_with_a_true_account_and_no_half_value() {
    let source = Source::new(&mixed(20_000, 1), &[]);
    for words in [&[][..], &["--commands"]] {
        // As large as the backup and more, and full of something else.
        let target = PlainEngine::start(&[]).unwrap();
        ask(&target.target(), &["SET", "ballast", &"x".repeat(40 << 20)]);
        ask(&target.target(), &["CONFIG", "SET", "maxmemory", "44mb"]);
        let (status, account) = restored(source.path(), &url(&target), words);
        assert_eq!(
            (status, &account["target_state"]),
            (1, &Value::from("partial")),
            "{account:#}"
        );
        assert!(
            account["failure"].as_str().unwrap().contains("OOM"),
            "{account:#}"
        );
        ask(&target.target(), &["CONFIG", "SET", "maxmemory", "0"]);
        ask(&target.target(), &["DEL", "ballast"]);
        let names = keys_of(&target.target());
        assert_eq!(names.len() as u64, count(&account, "applied"), "{words:?}");
        let (mut there, mut here) = (
            Connection::open(&target.target()).unwrap(),
            Connection::open(&source.engine.target()).unwrap(),
        );
        for name in &names {
            let length = |link: &mut Connection| {
                let kind = link.ask(&[&b"TYPE"[..], name]).unwrap();
                let verb = match kind.text().unwrap() {
                    "string" => "STRLEN",
                    "list" => "LLEN",
                    "set" => "SCARD",
                    "zset" => "ZCARD",
                    "hash" => "HLEN",
                    _ => "XLEN",
                };
                link.ask(&[verb.as_bytes(), name]).unwrap()
            };
            assert_eq!(length(&mut there), length(&mut here), "{words:?} {name:?}");
        }
    }
}

#[test]
fn a_target_that_can_never_have_as_much_memory_is_refused_before_the_first_key() {
    let source = Source::new(&mixed(20_000, 1), &[]);
    let target = PlainEngine::start(&[("maxmemory", "2mb")]).unwrap();
    for words in [&[][..], &["--dry-run"]] {
        let (status, account) = restored(source.path(), &url(&target), words);
        assert_eq!(
            (status, &account["target_state"]),
            (1, &Value::from("untouched")),
            "{account:#}"
        );
        let why = account["failure"].as_str().unwrap();
        assert!(
            why.contains("MiB in memory at least, and the target may use 2 MiB"),
            "{why}"
        );
    }
    assert_eq!(ask(&target.target(), &["DBSIZE"]), Reply::Number(0));
    // What is chosen of it may be less.
    let (status, account) = restored(source.path(), &url(&target), &["--match", "nothing-of-this-name"]);
    assert_eq!((status, count(&account, "applied")), (0, 0), "{account:#}");
}

#[test]
fn keys_of_a_database_that_the_target_does_not_have_fail_and_go_nowhere_else() {
    let source = Source::new(
        &Options {
            giant_mb: 5,
            ..mixed(3000, 3)
        },
        &[],
    );
    let target = PlainEngine::start(&[("databases", "2")]).unwrap();
    let (status, account) = restored(source.path(), &url(&target), &[]);
    assert_eq!(status, 3, "{account:#}");
    let (applied, failed) = (count(&account, "applied"), count(&account, "failed"));
    assert!(failed > 0 && applied + failed == source.keys, "{account:#}");
    let reason = account["first"]["failed"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("DB index is out of range"), "{reason}");
    let mut here = Connection::open(&source.engine.target()).unwrap();
    here.ask(&["SELECT", "2"]).unwrap();
    here.ask(&["FLUSHDB"]).unwrap();
    assert_eq!(target.digest().unwrap(), source.engine.digest().unwrap());
}

/// All keys of database 0.
pub fn keys_of(target: &Target) -> Vec<Vec<u8>> {
    match ask(target, &["KEYS", "*"]) {
        Reply::List(keys) => keys
            .into_iter()
            .map(|key| match key {
                Reply::Bytes(bytes) => bytes,
                other => panic!("{other:?}"),
            })
            .collect(),
        other => panic!("{other:?}"),
    }
}

/// Whether the long form of a test is wanted.
pub fn is_long() -> bool {
    std::env::var_os("CACHEKEEP_TEST_LONG").is_some()
}

#[test]
fn a_value_that_is_longer_than_the_target_takes_has_failed_and_the_others_are_applied() {
    let engine = PlainEngine::start(&[("rdbcompression", "no")]).unwrap();
    let mut link = Connection::open(&engine.target()).unwrap();
    link.ask(&["SET", "long", &"v".repeat(2 << 20)]).unwrap();
    link.ask(&["SET", "short", "v"]).unwrap();
    let source = Source::of(engine);
    for words in [&[][..], &["--commands"]] {
        let target = PlainEngine::start(&[("proto-max-bulk-len", "1mb")]).unwrap();
        let words = [words, &["--patience", "5"]].concat();
        let (_, dry) = restored(
            source.path(),
            &url(&target),
            &[&words[..], &["--dry-run"]].concat(),
        );
        let (status, account) = restored(source.path(), &url(&target), &words);
        assert_eq!(status, 3, "{words:?}: {account:#}");
        for told in [&dry, &account] {
            assert_eq!(
                (count(told, "applied"), count(told, "failed")),
                (1, 1),
                "{told:#}"
            );
            assert_eq!(told["first"]["failed"][0]["key"], "long");
        }
        assert_eq!(ask(&target.target(), &["GET", "short"]).text(), Some("v"));
    }
}
