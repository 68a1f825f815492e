//! Clusters from outside: made, used, shown, killed, found again, deleted.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::{Value, json};
use xtask::resp::{Connection, Reply, Target};
use xtask::service::processes_in;

use crate::service::{Caller, Service, wait};

/// Follows `MOVED` as clients of the cluster protocol do.
pub struct Client {
    ports: Vec<u16>,
    pub open: BTreeMap<u16, Connection>,
}

impl Client {
    pub fn new(ports: &[u16]) -> Self {
        Self {
            ports: ports.to_vec(),
            open: BTreeMap::new(),
        }
    }

    /// The answer of whoever has the key; `None` while nobody does.
    pub fn try_call(&mut self, words: &[&str]) -> Option<Reply> {
        let mut port = self.ports[0];
        for at in 0..20 {
            let opened = match self.open.remove(&port) {
                Some(open) => Ok(open),
                None => Connection::open(&Target::local(port, None)),
            };
            let answer = opened.and_then(|mut connection| {
                let reply = connection.call(words)?;
                self.open.insert(port, connection);
                Ok(reply)
            });
            match answer {
                Ok(Reply::Refused(text)) if text.starts_with("MOVED ") => {
                    port = text.rsplit(':').next().unwrap().parse().unwrap();
                }
                Ok(Reply::Refused(text)) if text.starts_with("CLUSTERDOWN") => return None,
                Ok(reply) => return Some(reply),
                Err(_) => port = self.ports[at % self.ports.len()],
            }
        }
        None
    }

    #[track_caller]
    pub fn call(&mut self, words: &[&str]) -> Reply {
        wait("an answer of the cluster", || self.try_call(words))
    }

    #[track_caller]
    pub fn fill(&mut self, count: usize) {
        for number in 0..count {
            let reply = self.call(&["SET", &format!("key:{number}"), &format!("value {number}")]);
            assert_eq!(reply, Reply::Status("OK".to_owned()));
        }
    }

    #[track_caller]
    pub fn check(&mut self, count: usize) {
        for number in 0..count {
            let reply = self.call(&["GET", &format!("key:{number}")]);
            assert_eq!(reply.text(), Some(format!("value {number}").as_str()));
        }
    }
}

pub fn ask(caller: &Caller, name: &str, spec: &str, extra: &Value) -> String {
    let mut wish = json!({"name": name, "engine": "Redis", "capacity": 4, "spec_code": spec, "no_password_access": true});
    for (field, value) in extra.as_object().unwrap() {
        wish[field] = value.clone();
    }
    let made = caller.v2("POST", "/instances", Some(&wish)).expect(200).json();
    made["instances"][0]["instance_id"].as_str().unwrap().to_owned()
}

pub fn ports(shown: &Value) -> Vec<u16> {
    let addresses = shown["backend_addrs"].as_str().unwrap().split(',');
    addresses
        .map(|address| address.rsplit(':').next().unwrap().parse().unwrap())
        .collect()
}

/// Node id, port and role of each node, by group.
pub fn nodes(caller: &Caller, instance: &str) -> Vec<(String, u16, String, String)> {
    let answer = caller
        .get(&format!("/instances/{instance}/logical-nodes"))
        .expect(200)
        .json();
    let nodes = answer["nodes"].as_array().unwrap();
    assert_eq!(answer["total"], json!(nodes.len()));
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    nodes
        .iter()
        .map(|node| {
            let port = node["node_port"].as_str().unwrap().parse().unwrap();
            (
                text(&node["node_id"]),
                port,
                text(&node["node_role"]),
                text(&node["group_id"]),
            )
        })
        .collect()
}

/// Kills the engine of a node.
pub fn kill_node(service: &Service, instance: &str, node: &str) {
    let home = service.data().join("instances").join(instance);
    let generation = std::fs::read_dir(&home)
        .unwrap()
        .flatten()
        .find(|entry| entry.path().join(node).is_dir());
    let directory = generation.unwrap().path().join(node);
    let pids = processes_in(&directory);
    assert_eq!(pids.len(), 1, "{}", directory.display());
    assert!(
        Command::new("kill")
            .args(["-9", &pids[0].to_string()])
            .status()
            .unwrap()
            .success()
    );
    // Another process may have come in its place before we look.
    wait("the end of a node", || {
        (!processes_in(&directory).contains(&pids[0])).then_some(())
    });
}

/// What the cluster itself says, asked at a port.
pub fn says(port: u16, words: &[&str]) -> String {
    let mut connection = Connection::open(&Target::local(port, None)).unwrap();
    connection.ask(words).unwrap().text().unwrap().to_owned()
}

#[test]
fn a_cluster_is_made_shown_found_again_after_every_process_was_killed_and_deleted_whole() {
    let mut service = Service::start();
    let caller = service.caller();
    let instance = ask(&caller, "sharded", "redis.cluster.xu1.large.r2.4", &json!({}));
    let shown = caller.wait_idle(&instance);
    assert_eq!(
        (
            &shown["cache_mode"],
            &shown["sharding_count"],
            &shown["replica_count"],
            &shown["db_number"]
        ),
        (&json!("cluster"), &json!(3), &json!(2), &json!(1))
    );
    let all = ports(&shown);
    assert_eq!((all.len(), json!(all[0])), (6, shown["port"].clone()));
    let old = caller
        .v1("GET", &format!("/instances/{instance}"), None)
        .expect(200)
        .json();
    assert_eq!(
        (
            &old["resource_spec_code"],
            old["backend_addrs"].as_array().unwrap().len()
        ),
        (&json!("dcs.cluster"), 6)
    );
    for port in &all {
        let info = says(*port, &["CLUSTER", "INFO"]);
        for line in [
            "cluster_state:ok",
            "cluster_slots_assigned:16384",
            "cluster_known_nodes:6",
            "cluster_size:3",
        ] {
            assert!(info.contains(line), "{port}: {info}");
        }
    }
    let limit = Connection::open(&Target::local(all[0], None))
        .unwrap()
        .ask(&["CONFIG", "GET", "maxmemory"])
        .unwrap();
    let Reply::List(limit) = limit else {
        panic!("{limit:?}")
    };
    assert_eq!(
        limit[1].text(),
        Some((4_u64 * 1024 * 1024 * 1024 / 3).to_string().as_str()),
        "a share for each shard"
    );
    let mut client = Client::new(&all);
    client.fill(300);

    let roles = nodes(&caller, &instance);
    for shard in roles.chunks(2) {
        assert_eq!(
            (shard[0].2.as_str(), shard[1].2.as_str()),
            ("master", "slave"),
            "{roles:?}"
        );
        assert_eq!(shard[0].3, shard[1].3);
    }
    let groups = caller
        .get(&format!("/instance/{instance}/groups"))
        .expect(200)
        .json();
    assert_eq!(groups["group_count"], 3);
    for group in groups["group_list"].as_array().unwrap() {
        let list = group["replication_list"].as_array().unwrap();
        let primaries = list
            .iter()
            .filter(|node| node["replication_role"] == "master")
            .count();
        assert_eq!((list.len(), primaries), (2, 1), "{group}");
    }
    let page = caller.get("/instances-logical-nodes").expect(200).json();
    assert_eq!(
        (
            &page["count"],
            page["instances"][0]["nodes"].as_array().unwrap().len()
        ),
        (&json!(1), 6)
    );

    // The last second may be lost where the kernel goes down too. A killed process loses what it still holds back, which it
    // does for up to two seconds while its file is being synced (aof.c, flushAppendOnlyFile).
    for port in &all {
        wait("the engine's file to have all", || {
            says(*port, &["INFO", "persistence"])
                .contains("aof_buffer_length:0\r")
                .then_some(())
        });
    }
    service.kill();
    service.kill_engines();
    service.start_again();
    let caller = service.caller();
    client.open.clear();
    client.check(300);
    assert_eq!(ports(&caller.wait_idle(&instance)), all);

    // While the service alone is gone its engines go on and are found again.
    let before = processes_in(&service.data());
    service.kill();
    client.check(300);
    service.start_again();
    let caller = service.caller();
    caller.wait_idle(&instance);
    assert_eq!(processes_in(&service.data()), before);

    caller
        .v2("DELETE", &format!("/instances/{instance}"), None)
        .expect(204);
    wait("the end of every engine", || {
        processes_in(&service.data()).is_empty().then_some(())
    });
    wait("the end of its directory", || {
        let home = service.data().join("instances").join(&instance);
        (!home.exists()).then_some(())
    });
    for port in all {
        assert!(Connection::open(&Target::local(port, None)).is_err());
    }
}

#[test]
fn a_shard_whose_primary_is_killed_is_served_by_its_replica_whatever_the_persistence_and_without_the_service()
{
    for persistence in ["aof", "none"] {
        let mut service = Service::start();
        let caller = service.caller();
        let extra = json!({"persistence": persistence});
        let instance = ask(&caller, "killed", "redis.cluster.xu1.large.r2.4", &extra);
        let all = ports(&caller.wait_idle(&instance));
        let mut client = Client::new(&all);
        client.fill(100);
        let (primary, port, _, group) = nodes(&caller, &instance).remove(0);
        // What was acknowledged by the replica survives.
        let held = Connection::open(&Target::local(port, None))
            .unwrap()
            .ask(&["WAIT", "1", "5000"])
            .unwrap();
        assert_eq!(held, Reply::Number(1), "{persistence}");
        if persistence == "aof" {
            service.kill();
        }
        kill_node(&service, &instance, &primary);
        let other = all[1];
        wait("a successor", || {
            says(other, &["INFO", "replication"])
                .contains("role:master")
                .then_some(())
        });
        client.check(100);
        if persistence == "aof" {
            service.start_again();
        }
        let caller = service.caller();
        wait("the old primary as a replica", || {
            let nodes = nodes(&caller, &instance);
            let back = nodes.iter().find(|node| node.0 == primary).unwrap();
            let primaries = nodes
                .iter()
                .filter(|node| node.3 == group && node.2 == "master")
                .count();
            let up = Connection::open(&Target::local(port, None))
                .and_then(|mut connection| connection.info("replication", "master_link_status"));
            (back.2 == "slave" && primaries == 1 && up.is_ok_and(|up| up == "up")).then_some(())
        });
        client.open.clear();
        client.check(100);
    }
}

#[test]
fn two_of_three_primaries_killed_at_once_lose_nothing_that_their_replicas_have() {
    let service = Service::start();
    let caller = service.caller();
    let instance = ask(
        &caller,
        "minority",
        "redis.cluster.xu1.large.r2.4",
        &json!({"persistence": "none"}),
    );
    let all = ports(&caller.wait_idle(&instance));
    let mut client = Client::new(&all);
    client.fill(100);
    let before = nodes(&caller, &instance);
    let killed: Vec<_> = before.iter().filter(|node| node.2 == "master").take(2).collect();
    for (_, port, _, _) in &killed {
        let held = Connection::open(&Target::local(*port, None))
            .unwrap()
            .ask(&["WAIT", "1", "5000"])
            .unwrap();
        assert_eq!(held, Reply::Number(1));
    }
    for (node, _, _, _) in &killed {
        kill_node(&service, &instance, node);
    }
    wait("the killed ones as replicas", || {
        let nodes = nodes(&caller, &instance);
        let is_back = |id: &str| nodes.iter().any(|node| node.0 == id && node.2 == "slave");
        killed.iter().all(|(id, _, _, _)| is_back(id)).then_some(())
    });
    client.open.clear();
    client.check(100);
}

#[test]
fn clients_of_a_cluster_cannot_change_who_its_nodes_are() {
    let service = Service::start();
    let made = service.run_json(&[
        "instance",
        "create",
        "--name",
        "closed",
        "--shards",
        "3",
        "--no-password",
    ]);
    let port = u16::try_from(made["port"].as_u64().unwrap()).unwrap();
    let mut client = Connection::open(&Target::local(port, None)).unwrap();
    for words in [
        &["CLUSTER", "RESET"][..],
        &["CLUSTER", "FORGET", "x"],
        &["CLUSTER", "MEET", "127.0.0.1", "1"],
        &["CLUSTER", "FLUSHSLOTS"],
        &["CLUSTER", "DELSLOTSRANGE", "0", "1"],
        &["CLUSTER", "FAILOVER"],
        &["CLUSTER", "SETSLOT", "0", "STABLE"],
    ] {
        match client.call(words).unwrap() {
            Reply::Refused(text) => assert!(text.starts_with("NOPERM"), "{words:?}: {text}"),
            other => panic!("{words:?}: {other:?}"),
        }
    }
    for words in [
        &["CLUSTER", "SLOTS"][..],
        &["CLUSTER", "SHARDS"],
        &["CLUSTER", "KEYSLOT", "a"],
        &["CLUSTER", "NODES"],
    ] {
        client.ask(words).unwrap();
    }
    // Restart, flush and a new password reach every node.
    let instance = made["instance_id"].as_str().unwrap().to_owned();
    let caller = service.caller();
    let all = ports(&caller.wait_idle(&instance));
    assert_eq!(all.len(), 3);
    let mut cluster = Client::new(&all);
    cluster.fill(50);
    let before = processes_in(&service.data());
    service.run_json(&["instance", "restart", "closed"]);
    assert!(
        processes_in(&service.data())
            .iter()
            .all(|pid| !before.contains(pid))
    );
    cluster.open.clear();
    cluster.check(50);
    service.run_json(&["instance", "flush", "closed"]);
    for port in &all {
        let size = Connection::open(&Target::local(*port, None))
            .unwrap()
            .ask(&["DBSIZE"])
            .unwrap();
        assert_eq!(size, Reply::Number(0));
    }
    let wish = json!({"new_password": "Quick-Start-1", "no_password_access": false});
    caller
        .v2(
            "POST",
            &format!("/instances/{instance}/password/reset"),
            Some(&wish),
        )
        .expect(200);
    caller.wait_idle(&instance);
    for port in &all {
        let mut stranger = Connection::open(&Target::local(*port, None)).unwrap();
        assert!(
            matches!(stranger.call(&["PING"]).unwrap(), Reply::Refused(_)),
            "{port}"
        );
        Connection::open(&Target::local(*port, Some("Quick-Start-1"))).unwrap();
    }
}

#[test]
fn what_a_cluster_cannot_be_or_do_is_refused() {
    let service = Service::start();
    let caller = service.caller();
    let flavors = caller
        .get("/flavors?cache_mode=cluster&capacity=4")
        .expect(200)
        .json();
    let offered: Vec<&str> = flavors["flavors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|flavor| flavor["spec_code"].as_str().unwrap())
        .collect();
    assert_eq!(offered.len(), 5, "{offered:?}");
    let wish = |spec: &str, param: Value| json!({"name": "refused", "engine": "Redis", "spec_code": spec, "no_password_access": true, "spec_param": param});
    let cluster = "redis.cluster.xu1.large.r1.4";
    for wrong in [
        wish(cluster, json!({"sharding_count": 2})),
        wish(cluster, json!({"sharding_count": 129})),
        wish(cluster, json!({"sharding_count": "many"})),
        wish(cluster, json!({"replica_count": 2})),
        wish(cluster, json!({"cache_mode": "single"})),
        wish(cluster, json!([])),
        wish("redis.single.xu1.tiny.128", json!({"sharding_count": 3})),
    ] {
        caller
            .v2("POST", "/instances", Some(&wrong))
            .refused("400 DCS.4063");
    }
    // The range of the test has 80 ports: 41 nodes need 82.
    let wide = wish(cluster, json!({"sharding_count": 41}));
    caller
        .v2("POST", "/instances", Some(&wide))
        .refused("400 DCS.4039");
    let instance = ask(
        &caller,
        "no-backup",
        cluster,
        &json!({"spec_param": {"sharding_count": "4"}}),
    );
    let shown = caller.wait_idle(&instance);
    assert_eq!(
        (&shown["sharding_count"], &shown["replica_count"]),
        (&json!(4), &json!(1))
    );
    // Its ports are nobody else's, nor those between its nodes.
    let mut taken = wish("redis.single.xu1.tiny.128", Value::Null);
    taken["port"] = json!(ports(&shown)[3]);
    caller
        .v2("POST", "/instances", Some(&taken))
        .refused("400 DCS.4063");
}

/// Loads a file in an engine outside of any cluster, and returns its `DEBUG DIGEST`.
fn digest_of(rdb: &std::path::Path) -> (String, usize) {
    let folder = xtask::scratch::Scratch::new("shard").unwrap();
    std::fs::copy(rdb, folder.path().join("dump.rdb")).unwrap();
    let socket = folder.path().join("s");
    let mut engine = Command::new("redis-server")
        .args([
            "--port",
            "0",
            "--save",
            "",
            "--enable-debug-command",
            "local",
            "--unixsocket",
        ])
        .arg(&socket)
        .arg("--dir")
        .arg(folder.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let target = Target {
        place: xtask::resp::Place::Unix(socket),
        user: None,
        password: None,
    };
    let mut client = wait("an engine with the file", || {
        let mut client = Connection::open(&target).ok()?;
        (client.info("persistence", "loading").ok()? == "0").then_some(client)
    });
    let digest = client
        .ask(&["DEBUG", "DIGEST"])
        .unwrap()
        .text()
        .unwrap()
        .to_owned();
    let Reply::Number(keys) = client.ask(&["DBSIZE"]).unwrap() else {
        panic!()
    };
    engine.kill().unwrap();
    engine.wait().unwrap();
    (digest, usize::try_from(keys).unwrap())
}

#[test]
fn a_backup_of_a_cluster_has_a_file_for_each_shard_with_exactly_its_keys() {
    let service = Service::start();
    let caller = service.caller();
    let instance = ask(&caller, "captured", "redis.cluster.xu1.large.r2.4", &json!({}));
    let all = ports(&caller.wait_idle(&instance));
    let mut client = Client::new(&all);
    client.fill(1000);
    let backup = caller.make_backup(&instance, "three shards");
    let record = caller
        .ck("GET", &format!("/instances/{instance}/backups/{backup}"), None)
        .expect(200)
        .json();
    assert_eq!(
        (&record["is_support_restore"], &record["ext"]["keys"]),
        (&json!("TRUE"), &json!(1000))
    );
    let links = caller
        .v2(
            "POST",
            &format!("/instances/{instance}/backups/{backup}/links"),
            Some(&json!({"expiration": 300})),
        )
        .expect(200)
        .json();
    let names: Vec<&str> = links["links"]
        .as_array()
        .unwrap()
        .iter()
        .map(|link| link["file_name"].as_str().unwrap())
        .collect();
    let slots: Vec<&str> = names.iter().map(|name| name.split('_').nth(3).unwrap()).collect();
    assert_eq!(slots, ["0-5460", "5461-10921", "10922-16383"], "{names:?}");
    let folder = xtask::scratch::Scratch::new("download").unwrap();
    let to = folder.path().join("shards");
    let got = service.run_json(&[
        "backup",
        "download",
        "captured",
        "latest",
        "--to",
        to.to_str().unwrap(),
    ]);
    let files: Vec<std::path::PathBuf> = serde_json::from_value(got["files"].clone()).unwrap();
    let mut keys = 0;
    for (file, port) in files.iter().zip([all[0], all[2], all[4]]) {
        let (digest, count) = digest_of(file);
        assert_eq!(digest, says(port, &["DEBUG", "DIGEST"]), "{}", file.display());
        keys += count;
    }
    assert_eq!((files.len(), keys), (3, 1000));
    for level in ["stored", "parsed"] {
        let verified = service.run_json(&["backup", "verify", "captured", "latest", "--level", level]);
        assert_eq!(
            (&verified["holds"], &verified["shards"]),
            (&json!(true), &json!(3))
        );
        assert!(verified["skew_ms"].as_i64().unwrap() >= 0, "{verified}");
    }
    // Without its replica a shard is captured from its primary.
    let (replica, ..) = nodes(&caller, &instance).remove(1);
    kill_node(&service, &instance, &replica);
    let started = caller
        .v2(
            "POST",
            &format!("/instances/{instance}/backups"),
            Some(&json!({})),
        )
        .expect(200)
        .json();
    let id = started["backup_id"].as_str().unwrap();
    let ended = caller.wait_end(&instance, "backups", id);
    assert_eq!(
        (&ended["status"], &ended["ext"]["keys"]),
        (&json!("succeed"), &json!(1000)),
        "{ended}"
    );
    wait("the replica", || {
        let back = nodes(&caller, &instance)
            .into_iter()
            .find(|node| node.0 == replica)?;
        Connection::open(&Target::local(back.1, None)).ok().map(drop)
    });
    caller
        .v2("DELETE", &format!("/instances/{instance}/backups/{backup}"), None)
        .expect(204);
    wait("the end of its objects", || {
        let output = Command::new("find")
            .arg(service.data().join("store"))
            .args(["-path", &format!("*{backup}*seg-*")])
            .output();
        output.unwrap().stdout.is_empty().then_some(())
    });
}
