//! Verification finds every kind of difference.

use engine::process::{self, Engine};
use engine::sideload::Expectation;
use engine::verify::{VerifyLevel, verify};
use engine::{Control, Error, Kind, Node};

use crate::harness::{Home, config, data, fill, run, side_load};

const LEVELS: [VerifyLevel; 2] = [VerifyLevel::Sample, VerifyLevel::Full];

struct Loaded {
    _home: Home,
    engine: Engine,
    expectation: Expectation,
}

fn load(fill: impl FnOnce(&mut Node)) -> Loaded {
    let home = Home::new();
    let (bytes, _) = data(&home, fill);
    let (engine, expectation) = side_load(&home.spec("g1"), &bytes);
    // A standby refuses writes; the tests make some all the same.
    config(&engine, "replica-read-only", "no");
    Loaded {
        _home: home,
        engine,
        expectation,
    }
}

impl Loaded {
    fn verify(&self, level: VerifyLevel) -> Result<(), Error> {
        verify(&self.engine, &self.expectation, level, &Control::new(None)).map(drop)
    }

    /// Makes a change on the engine, expects that both levels find it and say `what`.
    fn finds(&self, change: &str, what: &str) {
        run(&mut self.engine.control().unwrap(), change);
        for level in LEVELS {
            let error = self.verify(level).expect_err(change);
            assert_eq!(error.kind, Kind::Mismatch, "{change}: {error}");
            assert!(error.context.contains(what), "{change}: {error}");
        }
    }
}

#[test]
fn a_missing_key_is_found() {
    load(fill).finds("DEL hash:small", "db 0 has ");
}

#[test]
fn an_extra_key_is_found() {
    load(fill).finds("SET extra v", "db 0 has ");
}

#[test]
fn a_key_under_another_name_is_found() {
    load(fill).finds("RENAME hash:small hash:renamed", "\"hash:small\" (blake3 ");
}

#[test]
fn a_changed_value_is_found_in_every_type() {
    for (change, key) in [
        ("SETRANGE string:big 2000000 z", "string:big"),
        ("INCR string:int", "string:int"),
        ("APPEND string:text z", "string:text"),
        ("LSET list:big 1000 z", "list:big"),
        ("LSET list:small 0 z", "list:small"),
        ("SREM set:big member-7", "set:big"),
        ("SREM set:small a", "set:small"),
        ("SREM intset:small 2", "intset:small"),
        ("ZADD zset:big 7.25 member-7", "zset:big"),
        ("ZADD zset:small 1.5 a", "zset:small"),
        ("HSET hash:big field-7 z", "hash:big"),
        ("HSET hash:small f2 8", "hash:small"),
        ("XACK stream:big group 7-1", "stream:big"),
        ("XDEL stream:big 1500-1", "stream:big"),
    ] {
        load(fill).finds(change, &format!("\"{key}\""));
    }
}

#[test]
fn a_value_of_another_type_is_found() {
    let loaded = load(fill);
    run(&mut loaded.engine.control().unwrap(), "DEL set:small");
    loaded.finds("RPUSH set:small a b c", "is a list, in the backup a set");
}

#[test]
fn a_changed_expiry_is_found() {
    load(fill).finds("PEXPIREAT expires:hash 4102444800124", "expires at 4102444800124");
    load(fill).finds("PERSIST expires:far", "keys that expire");
    load(fill).finds("EXPIRE string:int 1000", "keys that expire");
}

#[test]
fn an_extra_db_is_found() {
    let loaded = load(fill);
    let mut node = loaded.engine.control().unwrap();
    run(&mut node, "SELECT 9");
    run(&mut node, "SET k v");
    loaded.finds("PING", "db 9 has 1 keys, the backup none");
}

#[test]
fn a_key_in_another_db_is_found() {
    load(fill).finds("MOVE string:int 3", "db 0 has ");
}

#[test]
fn a_missing_and_an_altered_function_are_found() {
    load(fill).finds("FUNCTION DELETE lib", "0 function libraries, the backup holds 1");
    let loaded = load(fill);
    let other = crate::harness::LIBRARY.replace("return 1", "return 2");
    loaded
        .engine
        .control()
        .unwrap()
        .run(&["FUNCTION", "LOAD", "REPLACE", &other])
        .unwrap();
    loaded.finds("PING", "the code of a function library");
}

#[test]
fn one_changed_value_among_many_is_found_by_the_full_level_and_named_by_none() {
    let loaded = load(|node| drop(run(node, "DEBUG POPULATE 60000")));
    assert!(loaded.expectation.sample_keys() < 11_000);
    let started = std::time::Instant::now();
    loaded.verify(VerifyLevel::Sample).unwrap();
    println!(
        "{} small keys compared in {:?}",
        loaded.expectation.sample_keys(),
        started.elapsed()
    );
    loaded.verify(VerifyLevel::Full).unwrap();
    // The first key that the sample did not draw; changes that it notices are taken back.
    let mut node = loaded.engine.control().unwrap();
    let undrawn = (0..60_000).find(|number| {
        run(&mut node, &format!("SET key:{number} changed"));
        let unnoticed = loaded.verify(VerifyLevel::Sample).is_ok();
        if !unnoticed {
            run(&mut node, &format!("SET key:{number} value:{number}"));
        }
        unnoticed
    });
    assert!(undrawn.is_some());
    let error = loaded.verify(VerifyLevel::Full).unwrap_err();
    assert_eq!(error.kind, Kind::Mismatch);
    assert!(
        error
            .context
            .contains("db 0: a key, a value or an expiry time differs"),
        "{error}"
    );
}

#[test]
fn verification_may_be_repeated_and_leaves_a_standby_in_which_nothing_expires() {
    let loaded = load(|node| {
        run(node, "DEBUG SET-ACTIVE-EXPIRE 0");
        run(node, "SET gone v PX 1");
        run(node, "SET stays v");
    });
    for level in [VerifyLevel::Full, VerifyLevel::Sample, VerifyLevel::Full] {
        loaded.verify(level).unwrap();
    }
}

#[test]
fn an_engine_that_serves_is_not_verified() {
    let home = Home::new();
    let (bytes, _) = data(&home, |node| drop(run(node, "SET k v")));
    let (engine, expectation) = side_load(&home.spec("g1"), &bytes);
    let serving = process::start(&home.spec("g2")).unwrap();
    let error = verify(&serving, &expectation, VerifyLevel::Sample, &Control::new(None)).unwrap_err();
    assert_eq!(error.kind, Kind::Refused);
    engine.kill().unwrap();
    let error = verify(&engine, &expectation, VerifyLevel::Sample, &Control::new(None)).unwrap_err();
    assert_eq!(error.kind, Kind::EngineExited);
}
