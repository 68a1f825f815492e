//! Data of unusual shape, each alone: none, one key, the last database, the biggest of everything.

use xtask::fill::{Options, Random, fill};
use xtask::resp::{Connection, Reply, Target};

use crate::portrait::Portrait;
use crate::service::{Instance, Service};

const MEBIBYTE: usize = 1024 * 1024;

/// Backs up, replaces the data by other data, restores, and compares; then takes that back.
fn survives_round_trip(write: impl FnOnce(&Target)) -> Portrait {
    let service = Service::start();
    let instance = service.instance("shape", "aof");
    write(&instance.target);
    let written = Portrait::of(&instance.target);
    let backup = instance.back_up();
    assert_eq!(backup["ext"]["keys"], written.keys());
    instance.flush();
    let mut connection = instance.connect();
    connection.ask(&["SET", "other", "data"]).unwrap();
    connection.ask(&["FUNCTION", "FLUSH"]).unwrap();
    let other = Portrait::of(&instance.target);
    for verify in ["sample", "full"] {
        instance.restore(&backup, verify);
        Portrait::of(&instance.target).assert_same(&written, verify);
        if verify == "sample" {
            instance.undo();
            Portrait::of(&instance.target).assert_same(&other, "undone");
        }
    }
    instance.restart();
    Portrait::of(&instance.target).assert_same(&written, "restarted");
    service.assert_untroubled();
    written
}

#[test]
fn an_empty_instance_is_restored_empty() {
    let written = survives_round_trip(|_| ());
    assert_eq!(written.keys(), 0);
}

#[test]
fn a_single_key_is_restored() {
    let written = survives_round_trip(|target| {
        Connection::open(target)
            .unwrap()
            .ask(&["SET", "only", "value"])
            .unwrap();
    });
    assert_eq!(written.keys(), 1);
}

#[test]
fn the_last_database_is_restored() {
    survives_round_trip(|target| {
        let mut connection = Connection::open(target).unwrap();
        connection.ask(&["SELECT", "255"]).unwrap();
        connection.ask(&["RPUSH", "last", "1", "2", "3"]).unwrap();
        connection.ask(&["PEXPIREAT", "last", "4102444800123"]).unwrap();
    });
}

#[test]
fn a_name_of_a_mebibyte_and_names_that_are_no_text_are_restored() {
    let written = survives_round_trip(|target| {
        let mut connection = Connection::open(target).unwrap();
        let mut name = Vec::new();
        Random::new(1, 1).noise(MEBIBYTE, &mut name);
        connection.ask(&[b"SET", name.as_slice(), b"long"]).unwrap();
        let odd: [&[u8]; 6] = [b"", b"\0", b"\xff\xfe\x80", b"\r\n", b"a\0b", b"\xed\xa0\x80"];
        for name in odd {
            connection.ask(&[b"HSET", name, name, name]).unwrap();
        }
        // Every single byte.
        for byte in 1..=u8::MAX {
            connection
                .ask(&[b"SADD", [byte; 2].as_slice(), &[byte], b"7"])
                .unwrap();
        }
    });
    assert_eq!(written.keys(), 1 + 6 + 255);
}

#[test]
fn a_value_of_a_hundred_megabytes_is_restored() {
    survives_round_trip(|target| {
        let options = Options {
            keys: 100,
            giant_mb: 100,
            ..Options::default()
        };
        fill(target, &options).unwrap();
    });
}

#[test]
fn a_hash_of_a_million_fields_is_restored() {
    survives_round_trip(|target| {
        let mut connection = Connection::open(target).unwrap();
        for hundred in 0..10_000 {
            let mut words = vec!["HSET".to_owned(), "wide".to_owned()];
            for number in 0..100 {
                words.push(format!("field:{hundred}:{number}"));
                words.push(format!("value {}", hundred * number));
            }
            connection.send(&words).unwrap();
        }
        connection.settle().unwrap();
        assert_eq!(
            connection.ask(&["HLEN", "wide"]).unwrap(),
            Reply::Number(1_000_000)
        );
    });
}

#[test]
fn functions_are_restored_and_can_be_called() {
    const LIBRARY: &str = "#!lua name=answers\nredis.register_function('answer', function() return 42 end)";
    let service = Service::start();
    let instance = service.instance("functions", "aof");
    instance.connect().ask(&["FUNCTION", "LOAD", LIBRARY]).unwrap();
    let backup = instance.back_up();
    assert_eq!(backup["ext"]["keys"], 0);
    instance.connect().ask(&["FUNCTION", "FLUSH"]).unwrap();
    let called = |instance: &Instance<'_>| instance.connect().call(&["FCALL", "answer", "0"]).unwrap();
    assert!(matches!(called(&instance), Reply::Refused(_)));
    instance.restore(&backup, "full");
    assert_eq!(called(&instance), Reply::Number(42));
    instance.restart();
    assert_eq!(called(&instance), Reply::Number(42));
    instance.undo();
    assert!(matches!(called(&instance), Reply::Refused(_)));
    service.assert_untroubled();
}
