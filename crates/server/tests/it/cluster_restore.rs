//! Restores of clusters from outside: what clients see of the switch, what is left afterwards, and what is refused.

use std::collections::BTreeMap;
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use xtask::resp::{Connection, Reply, Target};
use xtask::service::processes_in;

use crate::cluster::{Client, ask, kill_node, nodes, ports, says};
use crate::service::{Caller, Service, wait};

/// Three shards, each a primary and a replica.
const WITH_REPLICAS: &str = "redis.cluster.xu1.large.r2.4";
/// Three primaries.
const WITHOUT: &str = "redis.cluster.xu1.large.r1.4";

/// One key in each third of the slots.
const ERAS: [&str; 3] = ["era:{0}", "era:{1}", "era:{3}"];

pub fn restore(caller: &Caller, instance: &str, wish: &Value) -> Value {
    let started = caller
        .ck("POST", &format!("/instances/{instance}/restores"), Some(wish))
        .expect(200)
        .json();
    let id = started["restore_id"].as_str().unwrap();
    caller.wait_end(instance, "restores", id)
}

pub fn undo(caller: &Caller, instance: &str, restore: &Value) -> Value {
    let id = restore["restore_id"].as_str().unwrap();
    let path = format!("/instances/{instance}/restores/{id}/undo");
    let started = caller.ck("POST", &path, Some(&json!({}))).expect(200).json();
    caller.wait_end(instance, "restores", started["restore_id"].as_str().unwrap())
}

/// `DEBUG DIGEST` of every primary, by the first of its slots.
fn digests(ports: &[u16]) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for port in ports {
        if says(*port, &["INFO", "replication"]).contains("role:master") {
            let nodes = says(*port, &["CLUSTER", "NODES"]);
            let own = nodes.lines().find(|line| line.contains("myself")).unwrap();
            let slots = own.rsplit(' ').next().unwrap().to_owned();
            found.insert(slots, says(*port, &["DEBUG", "DIGEST"]));
        }
    }
    found
}

fn set_era(client: &mut Client, era: &str) {
    for key in ERAS {
        assert_eq!(client.call(&["SET", key, era]), Reply::Status("OK".to_owned()));
    }
}

#[track_caller]
fn wait_in_sync(ports: &[u16]) {
    for port in ports {
        wait("a replica in sync", || {
            let replication = says(*port, &["INFO", "replication"]);
            let done = replication.contains("role:master") && replication.contains("connected_slaves:1")
                || replication.contains("master_link_status:up");
            done.then_some(())
        });
    }
}

/// No replica was copied to again after it had been in sync.
#[track_caller]
fn check_copied_once(ports: &[u16]) {
    for port in ports {
        let stats = says(*port, &["INFO", "stats"]);
        let expected = match says(*port, &["INFO", "replication"]).contains("role:master") {
            true => "sync_full:1\r",
            false => "sync_full:0\r",
        };
        assert!(stats.contains(expected), "{port}: {stats}");
    }
}

/// What a client of the cluster protocol sees that writes and reads in each shard as fast as it can.
struct Seen {
    longest: Duration,
    eras: Vec<String>,
}

fn watch(ports: &[u16], stop: &AtomicBool) -> Seen {
    let mut client = Client::new(ports);
    let mut seen = Seen {
        longest: Duration::ZERO,
        eras: Vec::new(),
    };
    let mut last = Instant::now();
    let mut turn = 0;
    while !stop.load(Ordering::Relaxed) {
        turn += 1;
        let key = ERAS[turn % ERAS.len()];
        let other = format!("written:{turn}");
        let wrote = client.try_call(&["SET", &other, "v"]);
        let read = client.try_call(&["GET", key]);
        if wrote == Some(Reply::Status("OK".to_owned()))
            && let Some(era) = read.as_ref().and_then(Reply::text)
        {
            seen.longest = seen.longest.max(last.elapsed());
            last = Instant::now();
            if seen.eras.last().map(String::as_str) != Some(era) {
                seen.eras.push(era.to_owned());
            }
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    seen
}

/// Does something while a client watches.
fn watched<T>(ports: &[u16], act: impl FnOnce() -> T) -> (T, Seen) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watching = scope.spawn(|| watch(ports, &stop));
        let done = act();
        std::thread::sleep(Duration::from_millis(100));
        stop.store(true, Ordering::Relaxed);
        (done, watching.join().unwrap())
    })
}

#[test]
fn a_cluster_is_restored_and_undone_under_clients_that_see_one_change_and_no_gap() {
    let service = Service::start();
    let caller = service.caller();
    let instance = ask(&caller, "restored", WITH_REPLICAS, &json!({}));
    let all = ports(&caller.wait_idle(&instance));
    let mut client = Client::new(&all);
    client.fill(500);
    client.call(&["SET", "late", "v", "PXAT", "4102444800000"]);
    // A replica loads it for so long that it is asked meanwhile.
    let big = "x".repeat(32 * 1024 * 1024);
    client.call(&["SET", "big", &big]);
    set_era(&mut client, "backup");
    // Due before it is restored, as the other one is not.
    client.call(&["SET", "soon", "v", "PX", "1500"]);
    let backup = caller.make_backup(&instance, "three shards");
    set_era(&mut client, "now");
    client.call(&["SET", "key:1", "changed"]);
    let mut idle: Vec<TcpStream> = Vec::new();
    for number in 0..1000 {
        idle.push(TcpStream::connect(("127.0.0.1", all[number % all.len()])).unwrap());
    }
    let mut subscriber = Connection::open(&Target::local(all[0], None)).unwrap();
    subscriber.call(&["SUBSCRIBE", "channel"]).unwrap();
    std::thread::sleep(Duration::from_millis(1500));

    let (done, seen) = watched(&all, || {
        restore(
            &caller,
            &instance,
            &json!({"backup_id": backup, "verify": "full"}),
        )
    });
    println!(
        "restore: {:?}, {} us",
        seen.longest, done["ext"]["unavailable_us"]
    );
    assert_eq!(
        (
            &done["status"],
            &done["ext"]["target_state"],
            &done["ext"]["keys_applied"]
        ),
        (&json!("succeed"), &json!("replaced"), &json!(506)),
        "{done}"
    );
    assert_eq!(seen.eras, ["now", "backup"]);
    assert!(seen.longest < Duration::from_millis(50), "{:?}", seen.longest);
    assert!(subscriber.call(&["PING"]).is_err(), "subscribers are ended");
    client.open.clear();
    client.check(500);
    assert_eq!(client.call(&["GET", "soon"]), Reply::Nil);
    assert_eq!(
        client.call(&["PEXPIRETIME", "late"]),
        Reply::Number(4_102_444_800_000)
    );
    assert_eq!(ports(&caller.wait_idle(&instance)), all, "the same addresses");
    wait_in_sync(&all);
    for port in &all {
        let info = says(*port, &["CLUSTER", "INFO"]);
        assert!(
            info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:6"),
            "{info}"
        );
    }
    for role in nodes(&caller, &instance).chunks(2) {
        assert_eq!((role[0].2.as_str(), role[1].2.as_str()), ("master", "slave"));
    }
    let again = restore(&caller, &instance, &json!({"backup_id": backup}));
    assert_eq!(again["status"], "succeed", "{again}");
    assert_eq!(digests(&all).len(), 3);
    wait_in_sync(&all);
    check_copied_once(&all);

    let (undone, seen) = watched(&all, || undo(&caller, &instance, &again));
    println!("undo: {:?}, {} us", seen.longest, undone["ext"]["unavailable_us"]);
    assert_eq!(
        (
            &undone["status"],
            &undone["ext"]["method"],
            &undone["ext"]["undo_of"]
        ),
        (&json!("succeed"), &json!("switch_back"), &again["restore_id"]),
        "{undone}"
    );
    assert!(seen.longest < Duration::from_millis(50), "{:?}", seen.longest);
    wait_in_sync(&all);
    assert_eq!(seen.eras, ["backup"], "in both generations");
    // Two generations of six, and nothing else.
    assert_eq!(processes_in(&service.data()).len(), 12);
}

#[test]
fn what_a_restored_cluster_holds_is_what_was_captured_whatever_the_persistence() {
    for persistence in ["aof", "rdb", "none"] {
        let mut service = Service::start();
        let caller = service.caller();
        let extra = json!({"persistence": persistence});
        let instance = ask(&caller, "persistent", WITHOUT, &extra);
        let all = ports(&caller.wait_idle(&instance));
        let mut client = Client::new(&all);
        client.fill(300);
        let captured = digests(&all);
        assert_eq!(captured.len(), 3);
        let backup = caller.make_backup(&instance, "whole");
        client.call(&["SET", "key:7", "changed"]);
        client.call(&["DEL", "key:8", "key:8"]);
        let changed = digests(&all);
        let done = restore(&caller, &instance, &json!({"backup_id": backup}));
        assert_eq!(done["status"], "succeed", "{done}");
        assert_eq!(digests(&all), captured, "{persistence}");
        let undone = undo(&caller, &instance, &done);
        assert_eq!(undone["status"], "succeed", "{undone}");
        assert_eq!(digests(&all), changed, "{persistence}");
        // The undo can be undone.
        let redone = undo(&caller, &instance, &undone);
        assert_eq!(redone["status"], "succeed", "{redone}");
        assert_eq!(digests(&all), captured, "{persistence}");
        if persistence != "aof" {
            // What the others held is as new as their last snapshot.
            continue;
        }
        // After a reboot both generations are there: the one that serves, and the one that can.
        service.kill();
        service.kill_engines();
        service.start_again();
        let caller = service.caller();
        caller.wait_idle(&instance);
        wait("every node", || {
            let open = |port: &u16| Connection::open(&Target::local(*port, None)).is_ok();
            all.iter().all(open).then_some(())
        });
        wait("the cluster", || {
            let info = says(all[0], &["CLUSTER", "INFO"]);
            info.contains("cluster_state:ok").then_some(())
        });
        assert_eq!(digests(&all), captured, "{persistence}");
        let undone = undo(&caller, &instance, &redone);
        assert_eq!(undone["status"], "succeed", "{undone}");
        assert_eq!(digests(&all), changed, "{persistence}");
    }
}

#[test]
fn a_restore_of_a_cluster_that_fails_leaves_all_of_the_old_data_served() {
    let mut service = Service::start();
    let caller = service.caller();
    let instance = ask(&caller, "unharmed", WITH_REPLICAS, &json!({}));
    let all = ports(&caller.wait_idle(&instance));
    let mut client = Client::new(&all);
    client.fill(200);
    let backup = caller.make_backup(&instance, "whole");
    client.call(&["SET", "key:1", "changed"]);
    let before = digests(&all);

    // A node is gone, and a stranger has its port: the instance does not run, and nothing is restored into it.
    let (replica, port, ..) = nodes(&caller, &instance).remove(1);
    service.kill();
    kill_node(&service, &instance, &replica);
    // A child of it may still be ending.
    let stranger = wait("a free port", || TcpListener::bind(("127.0.0.1", port)).ok());
    service.start_again();
    service.expect_trouble("cannot be brought back");
    let caller = service.caller();
    let is = |status: &str| {
        let shown = caller.get(&format!("/instances/{instance}")).expect(200).json();
        (shown["status"] == status).then_some(())
    };
    wait("a troubled instance", || is("ERROR"));
    caller
        .v2(
            "POST",
            &format!("/instances/{instance}/restores"),
            Some(&json!({"backup_id": backup})),
        )
        .refused("400 DCS.4049");
    assert_eq!(digests(&[all[0], all[2], all[4]]), before);
    drop(stranger);
    wait("a running instance", || is("RUNNING"));

    // A stored byte is another one.
    let output = std::process::Command::new("find")
        .arg(service.data().join("store"))
        .args(["-path", &format!("*{backup}*/shard-1/seg-*")])
        .output()
        .unwrap();
    let segment = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    let mut bytes = std::fs::read(&segment).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&segment, &bytes).unwrap();
    let ended = restore(&caller, &instance, &json!({"backup_id": backup}));
    assert_eq!(
        (&ended["status"], &ended["ext"]["target_state"]),
        (&json!("failed"), &json!("untouched")),
        "{ended}"
    );
    assert_eq!(digests(&all), before);
    bytes[middle] ^= 1;
    std::fs::write(&segment, &bytes).unwrap();
    let ended = restore(&caller, &instance, &json!({"backup_id": backup}));
    assert_eq!(ended["status"], "succeed", "{ended}");
    client.open.clear();
    client.check(200);
}
