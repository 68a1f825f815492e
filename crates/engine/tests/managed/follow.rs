//! What is written to an engine is followed by another one.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use engine::follow::{Follower, Following};
use engine::process::{self, Engine};
use engine::psync::Handshake;
use engine::{Control, Kind};

use crate::harness::{Home, digest, fill, run, text, wait_until};

/// Two empty engines, and what follows the first one from a snapshot on.
fn pair(home: &Home) -> (Engine, Engine, Follower) {
    let (from, to) = (home.spec("from"), home.spec("to"));
    let (from, to) = (process::start(&from).unwrap(), process::start(&to).unwrap());
    let control = Control::new(None);
    for engine in [&from, &to] {
        engine.wait_loaded(&control).unwrap();
    }
    let handshake = Handshake::begin(from.control().unwrap(), Duration::from_secs(5)).unwrap();
    let snapshot = handshake.started(&control).unwrap().payload(&control).unwrap();
    let follower =
        Follower::attach(&from.endpoint(), &snapshot.replid, snapshot.offset, home.path()).unwrap();
    (from, to, follower)
}

/// Lets it follow until what was written last is there.
fn reach(following: &mut Following, from: &Engine, to: &Engine) {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mark = NEXT.fetch_add(1, Ordering::Relaxed).to_string();
    run(&mut from.control().unwrap(), &format!("SET mark {mark}"));
    wait_until("the last write", || {
        following.catch_up(&Control::new(None)).unwrap();
        run(&mut to.control().unwrap(), "GET mark").text().as_deref() == Some(&mark)
    });
}

#[test]
fn whatever_is_written_is_written_there_too() {
    let home = Home::new();
    let (from, to, follower) = pair(&home);
    let control = Control::new(None);
    let mut following = Following::new(vec![follower], std::slice::from_ref(&to)).unwrap();
    let mut node = from.control().unwrap();
    fill(&mut node);
    reach(&mut following, &from, &to);
    assert_eq!(digest(&to), digest(&from));
    for words in [
        "SELECT 0",
        "MSET a 1 b 2 c 3",
        "MSET {t}1 x {t}2 y",
        "RENAME a d",
        "RPUSH sorted 3 1 2",
        "SORT sorted STORE sorted:stored",
        "ZADD z1 1 a 2 b",
        "ZADD z2 1 a 3 c",
        "ZUNIONSTORE z3 2 z1 z2 WEIGHTS 2 3",
        "GEOADD geo 13.36 38.11 x 15.08 37.50 y",
        "GEORADIUS geo 15 37 200 km STORE geo:near",
        "BITOP NOT bits b",
        "SMOVE set:big elsewhere member-7",
        "LMOVE sorted popped LEFT RIGHT",
        "XGROUP CREATE stream:big readers 0",
        "XREADGROUP GROUP readers one COUNT 3 STREAMS stream:big >",
        "XAUTOCLAIM stream:big readers two 0 0",
        "PFADD hll a b c",
        "COPY b copied DB 5",
        "MOVE c 6",
        "COPY d d:copy",
        "EXPIREAT d 4102444800",
        "GETEX b EX 100000",
        "SPOP set:big 5",
        "HINCRBYFLOAT hash:big field-1x 1.5",
        "SETRANGE string:text 100000 end",
        "UNLINK list:big zset:big",
    ] {
        run(&mut node, words);
    }
    node.run(&["EVAL", "redis.call('SET','s1','1'); redis.call('INCR','s1')", "0"])
        .unwrap();
    for words in [
        "MULTI",
        "SET in:transaction 1",
        "INCR in:transaction",
        "SELECT 3",
        "SET three 3",
        "EXEC",
    ] {
        run(&mut node, words);
    }
    let code = "#!lua name=later\nredis.register_function('g', function() return 1 end)";
    node.run(&["FUNCTION", "LOAD", code]).unwrap();
    following.catch_up(&control).unwrap();
    let halted = following.halt().unwrap();
    assert_eq!(digest(&to), digest(&from));
    let both = [&from, &to].map(|engine| text(&mut engine.control().unwrap(), "INFO keyspace"));
    assert_eq!(both[0].lines().count(), both[1].lines().count());
    // In whatever order each keeps them.
    let list = |engine: &Engine| {
        let mut node = engine.control().unwrap();
        let told = node.run(&["FUNCTION", "LIST", "WITHCODE"]).unwrap();
        let engine::Reply::Array(libraries) = told else {
            panic!("{told:?}");
        };
        let mut libraries: Vec<String> = libraries.iter().map(|one| format!("{one:?}")).collect();
        libraries.sort();
        libraries
    };
    assert_eq!(list(&from), list(&to));
    // Nobody writes now, who reads is answered.
    let mut other = from.control().unwrap();
    other.set_timeout(Duration::from_millis(200)).unwrap();
    assert_eq!(text(&mut other, "GET s1"), "2");
    assert_eq!(other.run(&["SET", "s1", "3"]).unwrap_err().kind, Kind::Idle);
    drop(halted);
    wait_until("the write that waited", || {
        text(&mut from.control().unwrap(), "GET s1") == "3"
    });
    // What empties or swaps all is followed as well.
    for words in ["SELECT 0", "SWAPDB 0 5", "SELECT 6", "FLUSHDB", "SET six 6"] {
        run(&mut node, words);
        reach(&mut following, &from, &to);
    }
    drop(following.halt().unwrap());
    assert_eq!(digest(&to), digest(&from));
    run(&mut node, "FLUSHALL");
    run(&mut node, "SET alone 1");
    reach(&mut following, &from, &to);
    let halted = following.halt().unwrap();
    assert_eq!(digest(&to), digest(&from));
    assert_eq!(run(&mut to.control().unwrap(), "EXISTS s1").int(), Some(0));
    drop(halted);
}

#[test]
fn a_key_whose_time_was_put_off_in_the_last_moment_lives_on_though_the_follower_comes_late() {
    let home = Home::new();
    let (from, to, follower) = pair(&home);
    let control = Control::new(None);
    let mut following = Following::new(vec![follower], std::slice::from_ref(&to)).unwrap();
    let mut node = from.control().unwrap();
    for number in 0..100 {
        run(&mut node, &format!("SET session:{number} v PX 3000"));
        run(&mut node, &format!("SET due:{number} v PX 3000"));
    }
    reach(&mut following, &from, &to);
    assert_eq!(run(&mut to.control().unwrap(), "DBSIZE").int(), Some(201));
    for number in 0..100 {
        run(&mut node, &format!("PEXPIRE session:{number} 100000"));
    }
    let mut late = to.control().unwrap();
    wait_until("their end at the late one", || {
        (0..100).all(|number| run(&mut late, &format!("EXISTS session:{number}")).int() == Some(0))
    });
    following.catch_up(&control).unwrap();
    let halted = following.halt().unwrap();
    for number in 0..100 {
        let told = |words: &str| [&from, &to].map(|engine| run(&mut engine.control().unwrap(), words));
        let [theirs, ours] = told(&format!("PEXPIRETIME session:{number}"));
        assert_eq!(theirs, ours);
        assert!(ours.int().unwrap() > 0);
        assert_eq!(
            told(&format!("EXISTS due:{number}")).map(|told| told.int()),
            [Some(0); 2]
        );
    }
    drop(halted);
}

#[test]
fn no_write_is_lost_while_clients_write_as_fast_as_they_can_and_they_wait_for_the_last_moment_only() {
    let home = Home::new();
    let (from, to, follower) = pair(&home);
    let control = Control::new(None);
    let stop = AtomicBool::new(false);
    let written = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for client in 0..2 {
            let (stop, written, from) = (&stop, &written, &from);
            scope.spawn(move || {
                let mut node = from.control().unwrap();
                let mut number = 0;
                while !stop.load(Ordering::Relaxed) {
                    number += 1;
                    run(&mut node, &format!("INCR counter:{client}"));
                    run(
                        &mut node,
                        &format!("RPUSH list:{client}:{} {number}", number % 50),
                    );
                    run(&mut node, &format!("SET key:{client}:{number} v"));
                    written.fetch_add(3, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_micros(300));
                }
            });
        }
        let mut following = Following::new(vec![follower], std::slice::from_ref(&to)).unwrap();
        wait_until("some writes", || written.load(Ordering::Relaxed) > 3000);
        following.catch_up(&control).unwrap();
        let halted = following.halt().unwrap();
        let waited = halted.waited();
        stop.store(true, Ordering::Relaxed);
        let same = digest(&to) == digest(&from);
        println!(
            "{} writes, they waited for {waited:?}",
            written.load(Ordering::Relaxed)
        );
        drop(halted);
        assert!(same);
        assert!(waited < Duration::from_millis(50), "{waited:?}");
    });
}

#[test]
fn a_primary_that_is_gone_or_has_forgotten_is_not_followed() {
    let home = Home::new();
    let (from, to, follower) = pair(&home);
    let refused = Follower::attach(&from.endpoint(), &"0".repeat(40), 1, home.path());
    assert_eq!(refused.unwrap_err().kind, Kind::Refused);
    let mut following = Following::new(vec![follower], std::slice::from_ref(&to)).unwrap();
    from.kill().unwrap();
    wait_until("the end of the stream", || {
        following.catch_up(&Control::new(None)).is_err()
    });
}
