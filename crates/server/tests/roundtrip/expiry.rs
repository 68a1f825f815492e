//! Keys whose time runs out on the way: they fail nothing, and nobody sees them again.

use xtask::fill::now_ms;
use xtask::resp::{Connection, Reply};

use crate::service::{Instance, Service, wait_until};

const LASTING: u64 = 3_000;
const FADING: u64 = 6_000;

/// Fading keys live one to three seconds.
const LIFE_MS: std::ops::RangeInclusive<u64> = 1_000..=3_000;

#[test]
fn keys_that_expire_on_the_way_neither_fail_a_restore_nor_come_back() {
    go_round("aof");
}

#[test]
fn keys_that_expire_on_the_way_do_not_come_back_without_an_append_only_file() {
    go_round("rdb");
}

fn go_round(persistence: &str) {
    let service = Service::start();
    let instance = service.instance("fading", persistence);
    for verify in ["sample", "full"] {
        instance.flush();
        write_lasting(&mut instance.connect());
        let expiries = write_fading(&mut instance.connect());
        // Some are gone before the capture, some between capture and load, some after the switch.
        let backup = instance.back_up();
        instance.restore(&backup, verify);
        assert_gone_in_time(&instance, &expiries);
        wait_until("the last key has expired", || {
            expiries.iter().all(|at_ms| *at_ms < now_ms())
        });
        assert_gone_in_time(&instance, &expiries);
        wait_until("the engine has removed what expired", || {
            keys(&instance) == LASTING
        });

        // The backup still holds them; now all are due before it is read.
        assert!(backup["ext"]["keys"].as_u64().unwrap() > LASTING, "{backup}");
        instance.restore(&backup, verify);
        assert_gone_in_time(&instance, &expiries);
        wait_until("the engine has removed what expired", || {
            keys(&instance) == LASTING
        });
        instance.restart();
        assert_gone_in_time(&instance, &expiries);
        wait_until("the engine has removed what expired", || {
            keys(&instance) == LASTING
        });
        instance.undo();
        assert_gone_in_time(&instance, &expiries);
        assert_eq!(keys(&instance), LASTING);
    }
    service.assert_untroubled();
}

fn write_lasting(connection: &mut Connection) {
    for number in 0..LASTING {
        connection
            .send(&["SET", &format!("lasting:{number}"), "value"])
            .unwrap();
    }
    connection.settle().unwrap();
}

/// Of every type; returns when each expires.
fn write_fading(connection: &mut Connection) -> Vec<u64> {
    for number in 0..FADING {
        let key = fading(number);
        let words: &[&str] = match number % 6 {
            0 => &["SET", &key, "value"],
            1 => &["HSET", &key, "field", "value", "other", "17"],
            2 => &["RPUSH", &key, "one", "two", "3"],
            3 => &["SADD", &key, "1", "2", "three"],
            4 => &["ZADD", &key, "1", "one", "inf", "two"],
            _ => &["XADD", &key, "1-1", "field", "value"],
        };
        connection.send(words).unwrap();
    }
    connection.settle().unwrap();
    let began_ms = now_ms();
    let spread = LIFE_MS.end() - LIFE_MS.start();
    let mut expiries = Vec::new();
    for number in 0..FADING {
        let at_ms = began_ms + LIFE_MS.start() + number * spread / FADING;
        connection
            .send(&["PEXPIREAT", &fading(number), &at_ms.to_string()])
            .unwrap();
        expiries.push(at_ms);
    }
    connection.settle().unwrap();
    expiries
}

fn fading(number: u64) -> String {
    format!("fading:{number}")
}

/// Lasting keys are there; a fading one is there at most until its time.
fn assert_gone_in_time(instance: &Instance<'_>, expiries: &[u64]) {
    let mut connection = instance.connect();
    for number in 0..LASTING {
        let value = connection.ask(&["GET", &format!("lasting:{number}")]).unwrap();
        assert_eq!(value.text(), Some("value"), "lasting:{number}");
    }
    for (number, at_ms) in (0..).zip(expiries) {
        let asked_ms = now_ms();
        let expiry = connection.ask(&["PEXPIRETIME", &fading(number)]).unwrap();
        match expiry {
            Reply::Number(-2) => {}
            Reply::Number(told_ms) => {
                assert_eq!(told_ms, i64::try_from(*at_ms).unwrap(), "{}", fading(number));
                assert!(asked_ms <= *at_ms, "{} outlived its time", fading(number));
            }
            other => panic!("PEXPIRETIME said {other:?}"),
        }
    }
}

fn keys(instance: &Instance<'_>) -> u64 {
    match instance.connect().ask(&["DBSIZE"]).unwrap() {
        Reply::Number(keys) => keys.try_into().unwrap(),
        other => panic!("DBSIZE said {other:?}"),
    }
}
