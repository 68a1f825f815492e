//! What the tests of the other crates rely on: equal seeds give equal engines, a snapshot taken under the writer is
//! a state of its log, and damage is seen.

use std::process::Command;
use std::time::Duration;

use xtask::fill::damage::damage;
use xtask::fill::{self, Log, Options, Writer, fill, function_code, last_number, replay};
use xtask::plain_engine::PlainEngine;
use xtask::resp::{Connection, Reply};

fn options() -> Options {
    Options {
        keys: 20_000,
        dbs: 3,
        now_ms: fill::now_ms(),
        ..Options::default()
    }
}

fn engine() -> PlainEngine {
    PlainEngine::start(&[("repl-diskless-sync-delay", "0")]).expect("an engine starts")
}

#[test]
fn the_same_seed_fills_two_engines_alike_and_damage_shows() {
    let (one, other) = (engine(), engine());
    let report = fill(&one.target(), &options()).unwrap();
    fill(&other.target(), &options()).unwrap();
    assert_eq!(report.keys, 20_000);
    assert_eq!(one.digest().unwrap(), other.digest().unwrap());
    let third = engine();
    fill(&third.target(), &Options { seed: 2, ..options() }).unwrap();
    assert_ne!(one.digest().unwrap(), third.digest().unwrap());
    let done = damage(&other.target()).unwrap();
    assert!(
        done.deleted > 4_000 && done.overwritten > 1_000 && done.added > 500,
        "{done:?}"
    );
    assert_eq!(done.flushed.map(|(database, _)| database), Some(2));
    assert_ne!(one.digest().unwrap(), other.digest().unwrap());
}

#[test]
fn mixed_data_has_every_type_and_encoding() {
    let engine = engine();
    fill(&engine.target(), &Options { dbs: 1, ..options() }).unwrap();
    let mut connection = Connection::open(&engine.target()).unwrap();
    let count = "local found, cursor = {}, '0' repeat local page = redis.call('SCAN', cursor, 'COUNT', 1000) \
        cursor = page[1] for _, key in ipairs(page[2]) do \
        found[redis.call('TYPE', key).ok .. ' ' .. redis.call('OBJECT', 'ENCODING', key)] = 1 end \
        until cursor == '0' local list = {} for name in pairs(found) do list[#list + 1] = name end \
        table.sort(list) return list";
    let Reply::List(found) = connection.ask(&["EVAL", count, "0"]).unwrap() else {
        panic!("no list")
    };
    let found: Vec<&str> = found.iter().filter_map(Reply::text).collect();
    let expected = [
        "hash hashtable",
        "hash listpack",
        "list quicklist",
        "set hashtable",
        "set intset",
        "stream stream",
        "string embstr",
        "string int",
        "string raw",
        "zset listpack",
        "zset skiplist",
    ];
    assert_eq!(found, expected);
    let expiring: u64 = connection
        .info("keyspace", "db0")
        .unwrap()
        .split(['=', ','])
        .nth(3)
        .unwrap()
        .parse()
        .unwrap();
    assert!((3_000..5_000).contains(&expiring), "{expiring} keys expire");
    let Reply::List(libraries) = connection.ask(&["FUNCTION", "LIST"]).unwrap() else {
        panic!("no list")
    };
    assert_eq!(libraries.len(), 2);
}

#[test]
fn a_snapshot_under_the_writer_is_a_state_of_its_log() {
    let written_to = engine();
    let options = options();
    fill(&written_to.target(), &options).unwrap();
    let log = Log {
        seed: 9,
        dbs: 3,
        key_space: 40,
        now_ms: options.now_ms,
    };
    replay(&log, 4_000, &written_to.target()).unwrap();
    let writer = Writer::start(written_to.target(), log.clone(), 4_000, Duration::ZERO);
    let dump = written_to.folder().join("taken.rdb");
    let taken = Command::new("redis-cli")
        .arg("-s")
        .arg(written_to.socket())
        .arg("--rdb")
        .arg(&dump)
        .output()
        .unwrap();
    assert!(taken.status.success(), "{taken:?}");
    let written = writer.stop();
    assert!(written.failure.is_none(), "{:?}", written.failure);

    let snapshot = PlainEngine::start_on(&dump, &[]).unwrap();
    let last = last_number(&snapshot.target()).unwrap();
    assert!(
        last >= 4_000 && last <= written.acknowledged,
        "{last} of {}",
        written.acknowledged
    );
    let replayed = engine();
    fill(&replayed.target(), &options).unwrap();
    replay(&log, last, &replayed.target()).unwrap();
    assert_eq!(snapshot.digest().unwrap(), replayed.digest().unwrap());
    assert_eq!(
        function_code(&snapshot.target()).unwrap(),
        function_code(&replayed.target()).unwrap()
    );
}
