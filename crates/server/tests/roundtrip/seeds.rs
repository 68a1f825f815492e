//! The round trip of big random data while clients write, one per seed.
//!
//! A seed decides the data, the changes that a numbered writer makes meanwhile, and how hard it writes. The backup
//! must be one state of that log: the number of its last change is in the data, and a plain redis-server brought to
//! exactly that change is the expectation.

use std::process::Command;
use std::time::Duration;

use xtask::fill::{self, Log, Options, Writer, fill, last_number, replay};
use xtask::plain_engine::PlainEngine;

use crate::portrait::Portrait;
use crate::service::{Instance, Service, wait_until};

const SEEDS: u64 = 8;
const SEEDS_LONG: u64 = 100;
const KEYS: u64 = 50_000;

/// Changes before the backup begins, and again before the writer is stopped.
const CHANGES: u64 = 500;

#[test]
fn an_instance_with_append_only_file_comes_back_as_its_backup_saw_it() {
    go_round("aof", 0);
}

#[test]
fn an_instance_with_snapshots_comes_back_as_its_backup_saw_it() {
    go_round("rdb", 1);
}

#[test]
fn an_instance_without_persistence_comes_back_as_its_backup_saw_it() {
    go_round("none", 2);
}

/// Every third seed.
fn go_round(persistence: &str, first: u64) {
    let long = std::env::var_os("CACHEKEEP_TEST_LONG").is_some_and(|set| set == "1");
    let only = std::env::var("CACHEKEEP_TEST_SEED").ok();
    let only: Option<u64> = only.map(|text| text.parse().expect("CACHEKEEP_TEST_SEED is a number"));
    let seeds = (0..if long { SEEDS_LONG } else { SEEDS }).filter(|seed| only.is_none_or(|one| one == *seed));
    for seed in seeds.filter(|seed| seed % 3 == first) {
        let told = Seed(seed);
        round_trip(seed, persistence);
        drop(told);
    }
}

/// Names the seed where the test fails.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let seed = self.0;
            eprintln!(
                "failed with seed {seed}; CACHEKEEP_TEST_LONG=1 CACHEKEEP_TEST_SEED={seed} runs it alone"
            );
        }
    }
}

fn round_trip(seed: u64, persistence: &str) {
    let dbs = 3 + seed % 4;
    let options = Options {
        seed,
        keys: KEYS,
        dbs,
        ..Options::default()
    };
    let log = Log {
        seed,
        dbs,
        key_space: 20 + seed % 5 * 40,
        now_ms: options.now_ms,
    };
    let service = Service::start();
    let instance = service.instance("round", persistence);
    fill(&instance.target, &options).unwrap();

    // Every fourth seed as hard as one connection can; else change by change.
    let pause = Duration::from_micros(if seed % 4 == 3 { 0 } else { 200 });
    let writer = Writer::start(instance.target.clone(), log.clone(), 0, pause);
    let before_backup = wait_for_change(&instance, CHANGES);
    let backup = instance.back_up();
    let after_backup = last_number(&instance.target).unwrap();
    wait_for_change(&instance, after_backup + CHANGES);
    let written = writer.stop();
    assert!(written.failure.is_none(), "{:?}", written.failure);
    let replaced = Portrait::of(&instance.target);

    let verify = if seed.is_multiple_of(2) { "sample" } else { "full" };
    let record = instance.restore(&backup, verify);
    let last = last_number(&instance.target).unwrap();
    assert!(
        (before_backup..=after_backup).contains(&last),
        "restored up to change {last}; the backup began after {before_backup} and ended before {after_backup}"
    );
    let restored = Portrait::of(&instance.target);
    let expected = expectation(&options, &log, last);
    restored.assert_same(&expected, "restored");
    assert!(expected.keys() > KEYS * 9 / 10 && expected.databases() as u64 == dbs);
    assert!(expected.expiring() > KEYS / 10 && expected.streams() > 200);
    assert_eq!(backup["ext"]["keys"], expected.keys());
    assert_eq!(record["ext"]["keys_applied"], expected.keys());

    let file = service.folder().join("downloaded.rdb");
    instance.download(&backup, &file);
    let checked = Command::new("redis-check-rdb").arg(&file).output().unwrap();
    assert!(checked.status.success(), "{checked:?}");
    let inspected = service.verb(&["inspect", file.to_str().unwrap()]);
    assert_eq!(inspected["valid"], true);
    assert_eq!(inspected["keys"], expected.keys());
    assert_eq!(inspected["expires"], expected.expiring());
    let loaded = PlainEngine::start_on(&file, &[]).unwrap();
    Portrait::of(&loaded.target()).assert_same(&expected, "downloaded and loaded by a plain redis-server");
    drop(loaded);

    let keeps = persistence != "none";
    if keeps {
        instance.restart();
        Portrait::of(&instance.target).assert_same(&expected, "restarted after the restore");
    }
    instance.undo();
    Portrait::of(&instance.target).assert_same(&replaced, "undone");
    if keeps {
        instance.restart();
        Portrait::of(&instance.target).assert_same(&replaced, "restarted after the undo");
    }
    service.assert_untroubled();
}

/// Waits for the change and returns the number of the last one.
fn wait_for_change(instance: &Instance<'_>, number: u64) -> u64 {
    let mut last = 0;
    wait_until(&format!("change {number}"), || {
        last = last_number(&instance.target).unwrap();
        last >= number
    });
    last
}

/// What an engine has that got the same data and the changes up to this one.
fn expectation(options: &Options, log: &Log, upto: u64) -> Portrait {
    let engine = PlainEngine::start(&[]).unwrap();
    fill(&engine.target(), options).unwrap();
    replay(log, upto, &engine.target()).unwrap();
    assert!(
        fill::now_ms() < options.now_ms + 3_600_000,
        "the first keys expire"
    );
    Portrait::of(&engine.target())
}
