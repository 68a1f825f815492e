//! Sentinels and primaries of somebody else's that have not heard of a failover, or are away: captured and written to is the primary
//! of now.

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use xtask::foreign::{Access, Deployment, Form, Node};
use xtask::resp::Reply;

use crate::attach::{LOOPBACK, address, attach, attach_open, start};
use crate::service::{Caller, Service, wait};

/// More than a look takes that waits for a server which does not answer.
const LOOK: Duration = Duration::from_secs(4);
const AWAY: &str = "none of its Sentinels answers";

/// A primary with so many keys, which its replicas have too.
fn filled(keys: usize) -> Deployment {
    let foreign = start(Form::Watched, Access::Open, &[]);
    let pairs = (0..keys).flat_map(|number| [format!("key:{number}"), "value".to_owned()]);
    let words: Vec<String> = std::iter::once("MSET".to_owned()).chain(pairs).collect();
    foreign.nodes[0].open().unwrap().ask(&words).unwrap();
    foreign.wait_in_sync().unwrap();
    foreign
}

fn signal(node: &Node, name: &str) {
    let sent = Command::new("kill")
        .args([name, &node.pid().to_string()])
        .status();
    assert!(sent.unwrap().success());
}

fn keys(node: &Node) -> Reply {
    node.ask(&["DBSIZE"]).unwrap()
}

/// The primary that all these Sentinels have come to name instead of the one at this port.
fn successor(sentinels: &[Node], old: u16) -> u16 {
    wait("a successor that all Sentinels name", || {
        let mut named: Option<u16> = None;
        for sentinel in sentinels {
            let Reply::List(fields) = sentinel.ask(&["SENTINEL", "MASTER", "mymaster"]).ok()? else {
                return None;
            };
            let value = |name: &str| {
                let mut pairs = fields.chunks_exact(2);
                let pair = pairs.find(|pair| pair[0].text() == Some(name));
                pair.and_then(|pair| pair[1].text())
            };
            let port: u16 = value("port")?.parse().ok()?;
            let is_another = named.is_some_and(|known| known != port);
            if port == old || is_another || value("flags") != Some("master") {
                return None;
            }
            named = Some(port);
        }
        named
    })
}

/// A look in the middle of the failover finds nobody, and may be waiting yet for who is stopped.
fn wait_until_usable(caller: &Caller, instance: &str) {
    std::thread::sleep(LOOK);
    wait("servers that can be used", || {
        let shown = caller.get(&format!("/instances/{instance}")).expect(200).json();
        (shown["status"] == "RUNNING").then_some(())
    });
}

/// A record that has ended, whatever has become of the instance.
fn record(caller: &Caller, instance: &str, list: &str, id: &str) -> Option<Value> {
    let path = format!("/instances/{instance}/{list}/{id}");
    let record = caller.ck("GET", &path, None).expect(200).json();
    (record["status"] == "succeed" || record["status"] == "failed").then_some(record)
}

/// The primary that is found by these ports now, and nothing else of before.
fn primary_by(caller: &Caller, ports: &[u16]) -> Value {
    let addresses: Vec<String> = ports.iter().map(|port| address(*port)).collect();
    let wish = json!({"name": "seen", "addresses": addresses, "dry_run": true});
    attach(caller, &wish)["shards"][0]["primary"].clone()
}

#[test]
fn a_sentinel_that_slept_through_a_failover_hides_no_primary() {
    let mut foreign = filled(500);
    let service = Service::start_with(&LOOPBACK, &[]);
    let caller = service.caller();
    let (old, asleep) = (foreign.nodes[0].port, foreign.sentinels[0].port);
    let id = attach_open(&caller, "watched", &[asleep]);
    signal(&foreign.sentinels[0], "-STOP");
    foreign.nodes[0].kill();
    let new = successor(&foreign.sentinels[1..], old);
    let promoted = foreign.nodes.iter().find(|node| node.port == new).unwrap();
    promoted.ask(&["SET", "after", "the failover"]).unwrap();
    wait_until_usable(&caller, &id);
    signal(&foreign.sentinels[0], "-CONT");
    // Of what it tells only its peers are of use yet.
    assert_eq!(primary_by(&caller, &[asleep]), address(new));
    let backup = caller.make_backup(&id, "by who slept");
    let made = record(&caller, &id, "backups", &backup).unwrap();
    assert_eq!(made["ext"]["keys"], 501, "{made}");
    let path = format!("/attachments/{id}");
    let shown = caller.ck("GET", &path, None).expect(200).json();
    assert_eq!(shown["shards"][0]["primary"], address(new), "{shown}");
    assert_eq!(shown["sentinels"].as_array().unwrap().len(), 3, "{shown}");
}

#[test]
fn a_primary_that_comes_back_after_its_failover_is_neither_captured_nor_written_to() {
    let foreign = filled(500);
    let service = Service::start_with(&LOOPBACK, &[]);
    let caller = service.caller();
    let back = &foreign.nodes[0];
    let seeds = [back.port, foreign.sentinels[0].port];
    let id = attach_open(&caller, "watched", &seeds);
    let backup = caller.make_backup(&id, "of 500 keys");
    let mut link = back.open().unwrap();
    for words in [&["FLUSHALL"][..], &["SET", "of", "old"], &["WAIT", "2", "10000"]] {
        link.ask(words).unwrap();
    }
    signal(back, "-STOP");
    let new = successor(&foreign.sentinels, back.port);
    let promoted = foreign.nodes.iter().find(|node| node.port == new).unwrap();
    promoted.ask(&["SET", "of", "new"]).unwrap();
    promoted.ask(&["SET", "another", "of new"]).unwrap();
    wait_until_usable(&caller, &id);

    signal(back, "-CONT");
    // Sentinels leave it what it takes itself for, for 8 s.
    let held = || {
        let mut link = back.open().ok()?;
        let is_primary = link.info("replication", "role").ok()? == "master";
        let keys = link.ask(&["DBSIZE"]).ok()?;
        let is_primary = is_primary && link.info("replication", "role").ok()? == "master";
        is_primary.then_some(keys)
    };
    assert_eq!(held(), Some(Reply::Number(1)), "it takes itself for the primary");
    assert_eq!(primary_by(&caller, &seeds), address(new));
    let restore = caller.start_restore(&id, &backup, "into the new one");
    let done = wait("the end of the restore", || {
        assert!(
            matches!(held(), None | Some(Reply::Number(1))),
            "it was written to"
        );
        record(&caller, &id, "restores", &restore)
    });
    assert!(
        matches!(held(), None | Some(Reply::Number(1))),
        "it was written to"
    );
    assert_eq!(done["status"], "succeed", "{done}");
    assert_eq!(keys(promoted), Reply::Number(500));
    let safety = done["ext"]["safety_backup_id"].as_str().unwrap();
    let safety = record(&caller, &id, "backups", safety).unwrap();
    assert_eq!(safety["ext"]["keys"], 2, "what the new one held: {safety}");
}

#[test]
fn with_all_sentinels_away_the_only_primary_is_captured_with_a_note_and_not_written_to() {
    let mut foreign = filled(300);
    let service = Service::start_with(&LOOPBACK, &[]);
    let caller = service.caller();
    let id = attach_open(&caller, "watched", &[foreign.sentinels[0].port]);
    for sentinel in &mut foreign.sentinels {
        sentinel.kill();
    }
    let backup = caller.make_backup(&id, "on its own word");
    let made = record(&caller, &id, "backups", &backup).unwrap();
    assert_eq!(made["ext"]["keys"], 300, "{made}");
    let path = format!("/attachments/{id}");
    let shown = caller.ck("GET", &path, None).expect(200).json();
    assert!(shown["notes"].to_string().contains(AWAY), "{shown}");
    assert_eq!(shown["sentinels"].as_array().unwrap().len(), 3, "{shown}");

    let (first, second) = (&foreign.nodes[0], &foreign.nodes[1]);
    first.ask(&["SET", "mine", "value"]).unwrap();
    let restore = caller.start_restore(&id, &backup, "of no avail");
    let refused = wait("the end of the restore", || {
        record(&caller, &id, "restores", &restore)
    });
    assert_eq!(
        (&refused["status"], &refused["ext"]["target_state"]),
        (&json!("failed"), &json!("untouched")),
        "{refused}"
    );
    let why = refused["ext"]["failure"].as_str().unwrap();
    assert!(why.contains(AWAY), "{refused}");
    assert_eq!(keys(first), Reply::Number(301));

    caller.wait_idle(&id);
    second.ask(&["REPLICAOF", "NO", "ONE"]).unwrap();
    let backup = caller.start_backup(&id, "of which");
    let refused = wait("the end of the backup", || {
        record(&caller, &id, "backups", &backup)
    });
    assert_eq!(refused["status"], "failed", "{refused}");
    let why = refused["ext"]["failure"].as_str().unwrap();
    assert!(
        why.contains("2 of its nodes call themselves the primary"),
        "{refused}"
    );
}
