//! Primaries with replicas and Sentinels from outside: made, used, shown, killed with and without the service, found again,
//! deleted.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use xtask::resp::{Connection, Place, Reply, Target};
use xtask::service::processes_in;

use crate::cluster::ask;
use crate::service::{Caller, Service, wait};

/// A primary with two replicas.
pub const WITH_TWO: &str = "redis.ha.xu1.tiny.r3.128";
/// A primary with one.
const WITH_ONE: &str = "redis.ha.xu1.tiny.r2.128";

/// An instance that runs.
#[track_caller]
pub fn make(caller: &Caller, name: &str, spec: &str, extra: &Value) -> (String, u16) {
    let mut wish = json!({"capacity": 0.125});
    for (field, value) in extra.as_object().unwrap() {
        wish[field] = value.clone();
    }
    let instance = ask(caller, name, spec, &wish);
    let shown = caller.wait_idle(&instance);
    let port = u16::try_from(shown["port"].as_u64().unwrap()).unwrap();
    (instance, port)
}

/// A node as the service shows it.
#[derive(Debug, Clone)]
pub struct Node {
    pub id: String,
    pub ip: String,
    pub is_primary: bool,
}

pub fn nodes(caller: &Caller, instance: &str) -> Vec<Node> {
    let path = format!("/instances/{instance}/logical-nodes");
    let answer = caller.get(&path).expect(200).json();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let nodes = answer["nodes"].as_array().unwrap();
    nodes
        .iter()
        .map(|node| Node {
            id: text(&node["node_id"]),
            ip: text(&node["node_ip"]),
            is_primary: node["node_role"] == "master",
        })
        .collect()
}

pub fn primary(nodes: &[Node]) -> &Node {
    nodes.iter().find(|node| node.is_primary).unwrap()
}

pub fn open(ip: &str, port: u16) -> Option<Connection> {
    let place = Place::Tcp(ip.to_owned(), port);
    Connection::open(&Target {
        place,
        user: None,
        password: None,
    })
    .ok()
}

/// An answer at this address.
#[track_caller]
pub fn says(ip: &str, port: u16, words: &[&str]) -> String {
    let mut connection = open(ip, port).unwrap();
    connection.ask(words).unwrap().text().unwrap().to_owned()
}

/// The directory of a node of this instance.
pub fn home_of(service: &Service, instance: &str, node: &str) -> PathBuf {
    let home = service.data().join("instances").join(instance);
    let parts = std::fs::read_dir(&home).unwrap().flatten();
    let mut found = parts
        .map(|part| part.path().join(node))
        .filter(|path| path.is_dir());
    found.next().unwrap()
}

#[track_caller]
fn signal(directory: &Path, signal: &str) -> u32 {
    let pids = processes_in(directory);
    assert_eq!(pids.len(), 1, "{}", directory.display());
    let sent = Command::new("kill").args([signal, &pids[0].to_string()]).status();
    assert!(sent.unwrap().success());
    pids[0]
}

#[track_caller]
pub fn kill(directory: &Path) {
    let killed = signal(directory, "-9");
    // Another one may have come in its place before we look.
    wait("the end of a process", || {
        (!processes_in(directory).contains(&killed)).then_some(())
    });
}

fn sentinels(service: &Service, instance: &str) -> Vec<PathBuf> {
    let home = service.data().join("instances").join(instance).join("sentinels");
    let mut found: Vec<PathBuf> = std::fs::read_dir(home)
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}

/// What a Sentinel answers; `None` while it does not.
fn sentinel(shown: &Value, number: usize, words: &[&str]) -> Option<Reply> {
    let address = shown["ext"]["sentinels"][number].as_str().unwrap();
    let (ip, port) = address.rsplit_once(':').unwrap();
    open(ip, port.parse().unwrap())?.call(words).ok()
}

/// The address that the Sentinel tells.
pub fn told_primary(shown: &Value, number: usize) -> Option<String> {
    match sentinel(
        shown,
        number,
        &["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster"],
    )? {
        Reply::List(words) => words[0].text().map(str::to_owned),
        _ => None,
    }
}

/// What we tell of the instance beyond DCS.
pub fn shown(caller: &Caller, instance: &str) -> Value {
    caller.get(&format!("/instances/{instance}")).expect(200).json()
}

#[track_caller]
pub fn wait_in_sync(caller: &Caller, instance: &str, port: u16, replicas: usize) {
    wait("replicas in sync", || {
        let nodes = nodes(caller, instance);
        let in_sync = |node: &&Node| {
            open(&node.ip, port)
                .and_then(|mut node| node.info("replication", "master_link_status").ok())
                .is_some_and(|status| status == "up")
        };
        let count = nodes
            .iter()
            .filter(|node| !node.is_primary)
            .filter(in_sync)
            .count();
        (count == replicas).then_some(())
    });
}

/// Ends what watches, also where the test fails.
pub struct Stops<'a>(pub &'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What a client sees that writes and reads as fast as it can.
pub struct Seen {
    pub longest: Duration,
    pub eras: Vec<String>,
}

fn watch(stop: &AtomicBool, connect: impl Fn() -> Option<Connection>) -> Seen {
    let (mut longest, mut eras, mut last, mut turn) =
        (Duration::ZERO, Vec::<String>::new(), Instant::now(), 0);
    let mut connection = None;
    while !stop.load(Ordering::Relaxed) {
        turn += 1;
        let Some(mut client) = connection.take().or_else(&connect) else {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        };
        let wrote = client.call(&["SET", &format!("written:{turn}"), "v"]);
        let read = client.call(&["GET", "era"]);
        if let (Ok(Reply::Status(_)), Ok(Reply::Bytes(era))) = (wrote, read) {
            longest = longest.max(last.elapsed());
            last = Instant::now();
            let era = String::from_utf8(era).unwrap();
            if eras.last() != Some(&era) {
                eras.push(era);
            }
            connection = Some(client);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Seen { longest, eras }
}

/// Does something while a client watches at the instance's address and one at what a Sentinel tells.
pub fn watched<T>(told: &Value, port: u16, act: impl FnOnce() -> T) -> (T, [Seen; 2]) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stops = Stops(&stop);
        let at_address = scope.spawn(|| watch(&stop, || open("127.0.0.1", port)));
        let asking = scope.spawn(|| {
            watch(&stop, || {
                let mut told = (0..3).filter_map(|number| told_primary(told, number));
                open(&told.next()?, port)
            })
        });
        let done = act();
        std::thread::sleep(Duration::from_millis(100));
        drop(stops);
        (done, [at_address.join().unwrap(), asking.join().unwrap()])
    })
}

#[test]
fn a_primary_with_replicas_is_made_shown_found_again_after_every_process_was_killed_and_deleted_whole() {
    let mut service = Service::start();
    let caller = service.caller();
    let (instance, port) = make(&caller, "watched", WITH_TWO, &json!({}));
    let told = shown(&caller, &instance);
    assert_eq!(
        (
            &told["cache_mode"],
            &told["replica_count"],
            &told["sharding_count"],
            &told["db_number"]
        ),
        (&json!("ha"), &json!(3), &json!(1), &json!(256))
    );
    assert_eq!(told["backend_addrs"], format!("127.0.0.1:{port}"));
    let old = caller
        .v1("GET", &format!("/instances/{instance}"), None)
        .expect(200)
        .json();
    assert_eq!(old["resource_spec_code"], "dcs.master_standby");
    let before = nodes(&caller, &instance);
    assert_eq!(before.len(), 3);
    assert_eq!(
        before.iter().filter(|node| node.is_primary).count(),
        1,
        "{before:?}"
    );
    let groups = caller
        .get(&format!("/instance/{instance}/groups"))
        .expect(200)
        .json();
    assert_eq!(groups["group_count"], 1);
    assert_eq!(
        groups["group_list"][0]["replication_list"]
            .as_array()
            .unwrap()
            .len(),
        3
    );
    for number in 0..3 {
        assert_eq!(told_primary(&told, number).as_ref(), Some(&primary(&before).ip));
        let agreed = sentinel(&told, number, &["SENTINEL", "CKQUORUM", "mymaster"]).unwrap();
        assert!(agreed.text().unwrap().starts_with("OK 3 usable"), "{agreed:?}");
    }
    // Each node at its own address; at the clients' only the primary.
    let mut client = open("127.0.0.1", port).unwrap();
    assert_eq!(
        client.call(&["SET", "a", "1"]).unwrap(),
        Reply::Status("OK".to_owned())
    );
    assert_eq!(client.call(&["WAIT", "2", "5000"]).unwrap(), Reply::Number(2));
    for node in &before {
        assert_eq!(says(&node.ip, port, &["GET", "a"]), "1");
    }
    service.kill();
    service.kill_engines();
    service.start_again();
    let caller = service.caller();
    wait("the data again", || {
        let mut client = open("127.0.0.1", port)?;
        (client.call(&["GET", "a"]).ok()?.text() == Some("1")).then_some(())
    });
    caller.wait_idle(&instance);
    wait_in_sync(&caller, &instance, port, 2);
    // While the service alone is gone all of it goes on and is found again.
    // One that writes a snapshot has forked for that moment.
    let processes = wait("three nodes and three Sentinels", || {
        let processes = processes_in(&service.data());
        (processes.len() == 6).then_some(processes)
    });
    service.kill();
    assert_eq!(says("127.0.0.1", port, &["GET", "a"]), "1");
    service.start_again();
    let caller = service.caller();
    caller.wait_idle(&instance);
    assert_eq!(processes_in(&service.data()), processes);
    // A restart is one of the nodes.
    service.run_json(&["instance", "restart", "watched"]);
    assert_eq!(says("127.0.0.1", port, &["GET", "a"]), "1");
    service.run_json(&["instance", "flush", "watched"]);
    wait_in_sync(&caller, &instance, port, 2);
    for node in nodes(&caller, &instance) {
        wait("an empty node", || {
            (open(&node.ip, port)?.call(&["DBSIZE"]).ok()? == Reply::Number(0)).then_some(())
        });
    }
    caller
        .v2("DELETE", &format!("/instances/{instance}"), None)
        .expect(204);
    wait("the end of every process", || {
        processes_in(&service.data()).is_empty().then_some(())
    });
    wait("the end of its directory", || {
        let home = service.data().join("instances").join(&instance);
        (!home.exists()).then_some(())
    });
}

#[test]
fn a_killed_primary_is_succeeded_by_a_replica_at_the_same_address_without_the_service() {
    for persistence in ["aof", "none"] {
        let mut service = Service::start();
        let caller = service.caller();
        let (instance, port) = make(&caller, "killed", WITH_TWO, &json!({"persistence": persistence}));
        let before = nodes(&caller, &instance);
        let killed = primary(&before).clone();
        let told = shown(&caller, &instance);
        open("127.0.0.1", port)
            .unwrap()
            .call(&["SET", "era", "one"])
            .unwrap();
        service.kill();
        let ((), [at_address, asking]) = watched(&told, port, || {
            let mut client = open("127.0.0.1", port).unwrap();
            for number in 0..100 {
                client.call(&["SET", &format!("key:{number}"), "v"]).unwrap();
            }
            let held = client.call(&["WAIT", "1", "5000"]).unwrap();
            assert!(matches!(held, Reply::Number(1..)), "{held:?}");
            kill(&home_of(&service, &instance, &killed.id));
            wait("a successor at the clients' address", || {
                let mut client = open("127.0.0.1", port)?;
                (client.call(&["SET", "after", "v"]).ok()? == Reply::Status("OK".to_owned())).then_some(())
            });
            wait("a successor that Sentinels tell", || {
                (0..3)
                    .all(|number| told_primary(&told, number).is_some_and(|ip| ip != killed.ip))
                    .then_some(())
            });
            std::thread::sleep(Duration::from_millis(200));
        });
        // What the second one sees is what any Sentinel costs.
        println!(
            "{persistence}: failover without the service: {:?} at the address, {:?} by asking Sentinels",
            at_address.longest, asking.longest
        );
        assert!(
            at_address.longest < asking.longest + Duration::from_secs(1),
            "{:?}",
            at_address.longest
        );
        assert!(
            at_address.longest < Duration::from_secs(12),
            "{:?}",
            at_address.longest
        );
        let mut client = open("127.0.0.1", port).unwrap();
        for number in 0..100 {
            let kept = client.call(&["GET", &format!("key:{number}")]).unwrap();
            assert_eq!(kept.text(), Some("v"), "key:{number}");
        }
        service.start_again();
        let caller = service.caller();
        wait("the old primary as a replica", || {
            let nodes = nodes(&caller, &instance);
            let back = nodes.iter().find(|node| node.id == killed.id)?;
            let is_up = open(&back.ip, port)?
                .info("replication", "master_link_status")
                .ok()?
                == "up";
            (!back.is_primary && is_up).then_some(())
        });
        let kept = open("127.0.0.1", port).unwrap().call(&["GET", "key:1"]).unwrap();
        assert_eq!(kept.text(), Some("v"));
        // With the service it goes faster, for that sees that the process is gone.
        let now = nodes(&caller, &instance);
        let second = primary(&now).clone();
        assert_ne!(second.id, killed.id);
        caller.wait_idle(&instance);
        wait_in_sync(&caller, &instance, port, 2);
        kill(&home_of(&service, &instance, &second.id));
        wait("all three again", || {
            let now = nodes(&caller, &instance);
            let back = now.iter().find(|node| node.id == second.id)?;
            let is_up = open(&back.ip, port)?
                .info("replication", "master_link_status")
                .ok()?
                == "up";
            (!back.is_primary && is_up).then_some(())
        });
        let kept = open("127.0.0.1", port).unwrap().call(&["GET", "key:1"]).unwrap();
        assert_eq!(kept.text(), Some("v"));
    }
}

#[test]
fn a_primary_that_hangs_is_succeeded_and_ended_for_it_would_keep_the_address() {
    let mut service = Service::start();
    let caller = service.caller();
    let (instance, port) = make(&caller, "hanging", WITH_ONE, &json!({}));
    let before = nodes(&caller, &instance);
    let hanging = home_of(&service, &instance, &primary(&before).id);
    let mut client = open("127.0.0.1", port).unwrap();
    client.call(&["SET", "a", "1"]).unwrap();
    assert_eq!(client.call(&["WAIT", "1", "5000"]).unwrap(), Reply::Number(1));
    service.kill();
    signal(&hanging, "-STOP");
    wait("the end of the primary", || {
        processes_in(&hanging).is_empty().then_some(())
    });
    wait("a successor at the clients' address", || {
        let mut client = open("127.0.0.1", port)?;
        (client.call(&["SET", "b", "2"]).ok()? == Reply::Status("OK".to_owned())).then_some(())
    });
    assert_eq!(says("127.0.0.1", port, &["GET", "a"]), "1");
    service.start_again();
    let caller = service.caller();
    wait_in_sync(&caller, &instance, port, 1);
}

#[test]
fn a_killed_sentinel_comes_back_with_what_it_knew_and_two_are_enough() {
    let mut service = Service::start();
    let caller = service.caller();
    let (instance, port) = make(&caller, "sentinels", WITH_ONE, &json!({}));
    let told = shown(&caller, &instance);
    let name_of = |number: usize| {
        sentinel(&told, number, &["SENTINEL", "MYID"]).and_then(|name| name.text().map(str::to_owned))
    };
    let names: Vec<_> = (0..3).map(name_of).collect();
    let homes = sentinels(&service, &instance);
    for home in &homes {
        kill(home);
    }
    wait("the Sentinels as they were", || {
        let now: Vec<_> = (0..3).map(name_of).collect();
        (now == names).then_some(())
    });
    wait("a quorum", || {
        let agreed = sentinel(&told, 0, &["SENTINEL", "CKQUORUM", "mymaster"])?;
        agreed.text()?.starts_with("OK 3 usable").then_some(())
    });
    let before = nodes(&caller, &instance);
    service.kill();
    kill(&homes[0]);
    let mut client = open("127.0.0.1", port).unwrap();
    client.call(&["SET", "a", "1"]).unwrap();
    client.call(&["WAIT", "1", "5000"]).unwrap();
    kill(&home_of(&service, &instance, &primary(&before).id));
    wait("a successor at the clients' address", || {
        let mut client = open("127.0.0.1", port)?;
        (client.call(&["GET", "a"]).ok()?.text()? == "1").then_some(())
    });
}

#[test]
fn clients_of_a_watched_primary_can_neither_pass_for_a_replica_nor_change_what_sentinels_do() {
    let service = Service::start();
    let caller = service.caller();
    let (instance, port) = make(&caller, "closed", WITH_ONE, &json!({}));
    let mut client = open("127.0.0.1", port).unwrap();
    for words in [
        &["REPLCONF", "listening-port", "1"][..],
        &["PSYNC", "?", "-1"],
        &["SYNC"],
        &["CONFIG", "SET", "bind", "127.0.0.1"],
        &["REPLICAOF", "NO", "ONE"],
        &["FAILOVER"],
    ] {
        match client.call(words).unwrap() {
            Reply::Refused(text) => assert!(text.starts_with("NOPERM"), "{words:?}: {text}"),
            other => panic!("{words:?}: {other:?}"),
        }
    }
    let told = shown(&caller, &instance);
    for words in [
        &["SENTINEL", "SET", "mymaster", "quorum", "1"][..],
        &["SENTINEL", "REMOVE", "mymaster"],
        &["SENTINEL", "FAILOVER", "mymaster"],
        &["SENTINEL", "MONITOR", "other", "127.0.0.1", "1", "1"],
        &["SENTINEL", "RESET", "*"],
        &["PUBLISH", "__sentinel__:hello", "x"],
        &["SHUTDOWN"],
    ] {
        match sentinel(&told, 0, words).unwrap() {
            Reply::Refused(text) => assert!(text.starts_with("NOPERM"), "{words:?}: {text}"),
            other => panic!("{words:?}: {other:?}"),
        }
    }
}

#[test]
fn what_a_watched_primary_cannot_be_is_refused() {
    let service = Service::start();
    let caller = service.caller();
    let flavors = caller.get("/flavors?cache_mode=ha&capacity=1").expect(200).json();
    let offered = flavors["flavors"].as_array().unwrap();
    let copies: Vec<&Value> = offered.iter().map(|flavor| &flavor["replica_count"]).collect();
    assert_eq!(copies, [&json!(2), &json!(3), &json!(4), &json!(5)]);
    let wish = |param: Value| json!({"name": "refused", "engine": "Redis", "spec_code": WITH_ONE, "no_password_access": true, "spec_param": param});
    for wrong in [
        json!({"sharding_count": 3}),
        json!({"replica_count": 3}),
        json!({"cache_mode": "single"}),
        json!({"cache_mode": "cluster"}),
    ] {
        caller
            .v2("POST", "/instances", Some(&wish(wrong)))
            .refused("400 DCS.4063");
    }
}

#[test]
fn strict_mode_backs_up_and_restores_what_dcs_does_a_primary_with_a_replica() {
    let service = Service::start_with(&["--strict-dcs"], &[]);
    let caller = service.caller();
    let (instance, port) = make(&caller, "as-dcs-does", WITH_ONE, &json!({}));
    let mut client = open("127.0.0.1", port).unwrap();
    client.call(&["SET", "a", "1"]).unwrap();
    let backup = caller.make_backup(&instance, "one");
    client.call(&["SET", "a", "2"]).unwrap();
    let wish = json!({"backup_id": backup});
    let path = format!("/instances/{instance}/restores");
    let answer = caller.v2("POST", &path, Some(&wish)).expect(200).json();
    let restore = answer["restore_id"].as_str().unwrap();
    caller.wait_end(&instance, "restores", restore);
    let listed = caller.get(&path).expect(200).json();
    let record = &listed["restore_record_response"][0];
    assert_eq!((&record["status"], record.get("ext")), (&json!("succeed"), None));
    assert_eq!(says("127.0.0.1", port, &["GET", "a"]), "1");
}

/// Which node a backup is of.
fn captured_from(caller: &Caller, instance: &str, backup: &str) -> String {
    let path = format!("/instances/{instance}/backups/{backup}");
    let record = caller.ck("GET", &path, None).expect(200).json();
    record["ext"]["captured_from"].as_str().unwrap().to_owned()
}

#[test]
fn a_backup_is_of_a_replica_that_has_caught_up_and_else_of_the_primary_and_says_of_which() {
    let service = Service::start();
    let caller = service.caller();
    let (instance, port) = make(&caller, "captured", WITH_ONE, &json!({}));
    let mut client = open("127.0.0.1", port).unwrap();
    client.call(&["SET", "a", "1"]).unwrap();
    let all = nodes(&caller, &instance);
    let replica = all.iter().find(|node| !node.is_primary).unwrap().clone();
    let backup = caller.make_backup(&instance, "of the replica");
    assert_eq!(
        captured_from(&caller, &instance, &backup),
        format!("replica {}", replica.id)
    );
    // One that does not answer is not in sync.
    let home = home_of(&service, &instance, &replica.id);
    signal(&home, "-STOP");
    client.call(&["SET", "a", "2"]).unwrap();
    let backup = caller.make_backup(&instance, "of the primary");
    assert_eq!(
        captured_from(&caller, &instance, &backup),
        format!("primary {}", primary(&all).id)
    );
    signal(&home, "-CONT");
}
