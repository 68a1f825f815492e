//! Replays that are interrupted by whatever there is, and go on: the counts are exact and the data equal afterwards.

use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::Value;
use xtask::fill::Random;
use xtask::plain_cluster::PlainCluster;
use xtask::plain_engine::PlainEngine;
use xtask::resp::{Connection, Reply};
use xtask::scratch::Scratch;

use crate::replay::{
    Source, cluster_url, command, count, is_long, keys_of, mixed, restored, restored_wholly, told, url,
};

/// How many keys, and how often they are interrupted.
fn scale() -> (u64, u64) {
    match is_long() {
        true => (2_000_000, 50),
        false => (30_000, 6),
    }
}

/// Keys in a second, so that a replay takes about so many seconds.
fn pace(keys: u64, seconds: u64) -> String {
    (keys / seconds).max(1).to_string()
}

fn start(from: &str, to: &str, words: &[&str]) -> Child {
    command(from, to, words)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn account_of(child: Child) -> Value {
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", told(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Kills it at random moments and starts it again, until it comes to its end.
fn through_kills(from: &str, to: &str, words: &[&str], kills: u64, seed: u64) -> Value {
    let mut random = Random::new(seed, 0);
    let mut killed = 0;
    for _ in 0..kills {
        let mut child = start(from, to, words);
        std::thread::sleep(Duration::from_millis(
            random.between(100, if is_long() { 4000 } else { 1500 }),
        ));
        if child.try_wait().unwrap().is_some() {
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        killed += 1;
    }
    assert!(killed >= kills / 2, "only {killed} of {kills} kills came in time");
    restored_wholly(from, to, words)
}

#[test]
fn a_replay_that_is_killed_at_random_moments_goes_on_with_exact_counts() {
    let (keys, kills) = scale();
    let source = Source::new(&mixed(keys, 1), &[]);
    let cluster = PlainCluster::start(3, 0, &[]).unwrap();
    let here = Scratch::new("replay").unwrap();
    let journal = here.path().join("journal");
    let journal = journal.to_str().unwrap();
    let pace = pace(source.keys, if is_long() { 150 } else { 6 });
    let words = ["--journal", journal, "--max-ops", &pace];
    let account = through_kills(source.path(), &cluster_url(&cluster), &words, kills, 7);
    assert_eq!(
        (count(&account, "applied"), count(&account, "keys")),
        (source.keys, source.keys)
    );
    assert!(count(&account, "resumed") >= 1, "{account:#}");
    assert_eq!(cluster.digest().unwrap(), source.digest);

    // Once more says what was done, and does nothing.
    let again = restored_wholly(source.path(), &cluster_url(&cluster), &words);
    assert_eq!(again["applied"], account["applied"]);
    let other = ["--journal", journal, "--into-prefix", "x"];
    let (status, refused) = restored(source.path(), &cluster_url(&cluster), &other);
    assert_eq!(status, 1);
    assert!(
        refused["failure"].as_str().unwrap().contains("of another backup"),
        "{refused:#}"
    );
}

#[test]
fn keys_that_were_there_are_told_from_our_own_after_kills() {
    let (keys, kills) = scale();
    let source = Source::new(&mixed(keys / 2, 1), &[]);
    let target = PlainEngine::start(&[]).unwrap();
    let mut link = Connection::open(&target.target()).unwrap();
    let names = keys_of(&source.engine.target());
    let taken = names.iter().step_by(4);
    let there = taken.len() as u64;
    for name in taken {
        link.send(&[&b"SET"[..], name, b"mine"]).unwrap();
    }
    link.send(&["SET", "of-another", "mine"]).unwrap();
    link.settle().unwrap();
    let here = Scratch::new("replay").unwrap();
    let journal = here.path().join("journal");
    let pace = pace(source.keys, if is_long() { 100 } else { 4 });
    let words = [
        "--journal",
        journal.to_str().unwrap(),
        "--max-ops",
        &pace,
        "--on-conflict",
        "skip",
        "--mode",
        "replace",
    ];
    let account = through_kills(source.path(), &url(&target), &words, kills / 2, 8);
    let counts = ["applied", "conflicting", "failed", "removed"].map(|kind| count(&account, kind));
    assert_eq!(counts, [source.keys - there, there, 0, 1], "{account:#}");
    assert_eq!(link.ask(&["DBSIZE"]).unwrap(), Reply::Number(source.keys as i64));
    for name in names.iter().step_by(4).take(50) {
        assert_eq!(link.ask(&[&b"GET"[..], name]).unwrap().text(), Some("mine"));
    }
}

#[test]
fn other_keys_are_removed_and_counted_once_whatever_interrupts_that() {
    let source = Source::new(&mixed(500, 1), &[]);
    let target = PlainEngine::start(&[]).unwrap();
    let mut link = Connection::open(&target.target()).unwrap();
    let others = 20_000;
    for number in 0..others {
        link.send(&["SET", &format!("of-another:{number}"), "old"])
            .unwrap();
    }
    link.settle().unwrap();
    let here = Scratch::new("replay").unwrap();
    let journal = here.path().join("journal");
    let words = [
        "--mode",
        "replace",
        "--max-ops",
        "5000",
        "--journal",
        journal.to_str().unwrap(),
    ];
    let dry = restored_wholly(source.path(), &url(&target), &["--mode", "replace", "--dry-run"]);
    let account = through_kills(source.path(), &url(&target), &words, 3, 9);
    for told in [&dry, &account] {
        assert_eq!(
            (count(told, "applied"), count(told, "removed")),
            (source.keys, others),
            "{told:#}"
        );
    }
    assert_eq!(target.digest().unwrap(), source.digest);
}

#[test]
fn a_shard_that_fails_over_in_the_middle_loses_no_key() {
    let (keys, _) = scale();
    let source = Source::new(&mixed(keys, 1), &[]);
    let mut cluster = PlainCluster::start(3, 1, &[]).unwrap();
    let pace = pace(source.keys, if is_long() { 60 } else { 8 });
    let words = ["--max-ops", &pace, "--patience", "60"];
    let child = start(source.path(), &cluster_url(&cluster), &words);
    std::thread::sleep(Duration::from_secs(3));
    cluster.kill(1);
    let account = account_of(child);
    assert_eq!(cluster.serving(), [0, 2, 4], "the replica has taken over");
    assert_eq!(
        (count(&account, "applied"), count(&account, "keys")),
        (source.keys, source.keys)
    );
    assert!(count(&account, "resumed") >= 1, "{account:#}");
    assert_eq!(cluster.digest().unwrap(), source.digest);
}

#[test]
fn slots_that_move_in_the_middle_are_followed() {
    let (keys, _) = scale();
    let source = Source::new(&mixed(keys, 1), &[]);
    let cluster = PlainCluster::start(3, 0, &[]).unwrap();
    let pace = pace(source.keys, if is_long() { 60 } else { 6 });
    let child = start(source.path(), &cluster_url(&cluster), &["--max-ops", &pace]);
    std::thread::sleep(Duration::from_millis(500));
    // Some are moved at once, and one stays between two nodes for a while.
    let (mut from, mut to) = (cluster.connect(0).unwrap(), cluster.connect(1).unwrap());
    let id = |link: &mut Connection| link.ask(&["CLUSTER", "MYID"]).unwrap().text().unwrap().to_owned();
    let (from_id, to_id) = (id(&mut from), id(&mut to));
    to.ask(&["CLUSTER", "SETSLOT", "5000", "IMPORTING", &from_id])
        .unwrap();
    from.ask(&["CLUSTER", "SETSLOT", "5000", "MIGRATING", &to_id])
        .unwrap();
    for slot in 0..200 {
        cluster.move_slot(slot, 0, 2).unwrap();
    }
    std::thread::sleep(Duration::from_secs(1));
    cluster.move_slot(5000, 0, 1).unwrap();
    let account = account_of(child);
    assert_eq!(
        (count(&account, "applied"), count(&account, "failed")),
        (source.keys, 0),
        "{account:#}"
    );
    assert_eq!(cluster.digest().unwrap(), source.digest);
    assert_eq!(cluster.keys().unwrap(), source.keys as i64);
}

#[test]
fn connections_that_are_cut_are_made_again() {
    let (keys, _) = scale();
    let source = Source::new(&mixed(keys, 2), &[]);
    let target = PlainEngine::start(&[]).unwrap();
    let pace = pace(source.keys, if is_long() { 30 } else { 4 });
    for conflict in ["replace", "skip"] {
        let mut link = Connection::open(&target.target()).unwrap();
        link.ask(&["FLUSHALL"]).unwrap();
        let mut child = start(
            source.path(),
            &url(&target),
            &["--max-ops", &pace, "--on-conflict", conflict],
        );
        let mut cuts = 0;
        while child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(400));
            if let Reply::Number(cut) = link.call(&["CLIENT", "KILL", "TYPE", "normal"]).unwrap() {
                cuts += cut;
            }
        }
        let account = account_of(child);
        assert!(
            cuts > 3 && count(&account, "resumed") > 3,
            "{cuts} cuts: {account:#}"
        );
        assert_eq!(count(&account, "applied"), source.keys, "{conflict}: {account:#}");
        assert_eq!(target.digest().unwrap(), source.digest, "{conflict}");
    }
}

#[test]
fn whoever_stops_it_gets_a_true_account_and_can_go_on() {
    let source = Source::new(&mixed(30_000, 1), &[]);
    let target = PlainEngine::start(&[]).unwrap();
    let here = Scratch::new("replay").unwrap();
    let journal = here.path().join("journal");
    let journal = ["--journal", journal.to_str().unwrap()];
    let slow = [&journal[..], &["--max-ops", "5000"]].concat();
    let child = start(source.path(), &url(&target), &slow);
    std::thread::sleep(Duration::from_secs(2));
    let pid = child.id().to_string();
    let asked = std::process::Command::new("kill")
        .args(["-INT", &pid])
        .status()
        .unwrap();
    assert!(asked.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
    assert!(told(&output).contains("holds a part"), "{}", told(&output));
    let stopped: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(stopped["target_state"], "partial");
    let mut link = Connection::open(&target.target()).unwrap();
    let applied = count(&stopped, "applied");
    assert!(applied > 1000 && applied < 20_000, "{applied}");
    assert_eq!(link.ask(&["DBSIZE"]).unwrap(), Reply::Number(applied as i64));
    let account = restored_wholly(source.path(), &url(&target), &journal);
    assert_eq!(
        (count(&account, "applied"), count(&account, "resumed")),
        (source.keys, 1)
    );
    assert_eq!(target.digest().unwrap(), source.digest);
}
