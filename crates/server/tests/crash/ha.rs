//! Primaries with replicas and Sentinels come whole or not at all, and their clients have all old or all new data, wherever
//! the service is killed.

use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use xtask::resp::{Connection, Place, Reply, Target};

use crate::checker::{self, Catalogue};
use crate::lifecycle::wait_until;
use crate::world::{PASSWORD, Run, World, text};

/// A primary and a replica.
const SPEC: &str = "redis.ha.xu1.tiny.r2.128";
/// Nodes of a generation, and Sentinels.
const NODES: usize = 2;
const SENTINELS: usize = 3;

/// Every place that only the making of such an instance passes.
const MADE: [&str; 2] = ["watched.sentinel_started", "watched.opened"];
/// Every place that its making and its switches pass.
const WATCHED: [&str; 2] = ["sentinel.forgotten", "sentinel.monitored"];
/// Every place that only its switches pass.
const SWITCHED: [&str; 1] = ["watched.forgotten"];

/// Every place that only such instances pass.
pub fn places() -> impl Iterator<Item = &'static str> {
    MADE.into_iter().chain(WATCHED).chain(SWITCHED)
}

/// An instance with some keys and a backup of them.
pub struct Watched {
    pub world: World,
    pub id: String,
    port: u16,
    pub backup: String,
    pub captured: String,
}

impl Watched {
    fn new(persistence: &str) -> Self {
        Self::on(World::start(&[]), persistence)
    }

    /// In this world, which has no instance yet.
    pub fn on(world: World, persistence: &str) -> Self {
        world.ask_for_instance("one", SPEC, persistence).unwrap();
        let mut made = Self {
            world,
            id: String::new(),
            port: 0,
            backup: String::new(),
            captured: String::new(),
        };
        made.learn();
        for number in 0..200 {
            made.set(&format!("key:{number}"), "v");
        }
        made.captured = made.digest();
        let (status, answer) = made.world.ask_for_backup("one").unwrap();
        assert_eq!(status, 200, "{answer}");
        made.backup = text(&answer, "backup_id").unwrap();
        made.world.wait_idle();
        made
    }

    fn learn(&mut self) {
        self.world.wait_idle();
        self.world.learn_instance("one");
        self.id = self.world.id("one");
        let Place::Tcp(_, port) = self.world.target("one").place else {
            panic!("an instance without a port");
        };
        self.port = port;
    }

    fn client(&self) -> Connection {
        Connection::open(&Target::local(self.port, Some(PASSWORD))).unwrap()
    }

    pub fn set(&self, key: &str, value: &str) {
        self.client().ask(&["SET", key, value]).unwrap();
    }

    pub fn digest(&self) -> String {
        let reply = self.client().ask(&["DEBUG", "DIGEST"]).unwrap();
        reply.text().unwrap().to_owned()
    }

    fn shown(&self, what: &str) -> serde_json::Value {
        let path = format!("/v2/{{project}}/instances/{}{what}", self.id);
        self.world.call("GET", &path, None)
    }

    /// Waits until the replica follows the primary that has the clients' address, and every Sentinel watches that one.
    pub fn wait_whole(&self, label: &str) {
        let is_whole = || {
            let nodes = self.shown("/logical-nodes");
            let nodes = nodes["nodes"].as_array()?;
            let ip_of = |role: &str| nodes.iter().find(|node| node["node_role"] == role)?["node_ip"].as_str();
            let (primary, replica) = (ip_of("master")?, ip_of("slave")?);
            let open = |ip: &str| {
                let place = Place::Tcp(ip.to_owned(), self.port);
                let password = Some(PASSWORD.to_owned());
                Connection::open(&Target {
                    place,
                    user: None,
                    password,
                })
                .ok()
            };
            let is_linked = open(replica)?.info("replication", "master_link_status").ok()? == "up";
            let same = |mut client: Connection| client.info("server", "run_id").ok();
            let is_reached = same(open(primary)?)? == same(self.client())?;
            let shown = self.shown("");
            let watches = |address: &serde_json::Value| {
                let (ip, port) = address.as_str()?.rsplit_once(':')?;
                let place = Place::Tcp(ip.to_owned(), port.parse().ok()?);
                let mut sentinel = Connection::open(&Target {
                    place,
                    user: None,
                    password: None,
                })
                .ok()?;
                let answer = sentinel.call(&["SENTINEL", "MASTER", "mymaster"]).ok()?;
                let Reply::List(words) = answer else {
                    return None;
                };
                let field = |name: &str| words.chunks(2).find(|pair| pair[0].text() == Some(name))?[1].text();
                // It reaches the primary, knows the others, and would run its script.
                let is_well = field("ip")? == primary
                    && field("flags")? == "master"
                    && field("num-other-sentinels")? == "2"
                    && field("num-slaves")? != "0"
                    && field("client-reconfig-script").is_some();
                is_well.then_some(())
            };
            let sentinels = shown["ext"]["sentinels"].as_array()?;
            let all_watch =
                sentinels.len() == SENTINELS && sentinels.iter().all(|one| watches(one).is_some());
            (is_linked && is_reached && all_watch).then_some(())
        };
        wait_until(&format!("{label}: a whole instance"), || is_whole().is_some());
    }

    /// One operation with one place hit: afterwards clients have the old data or the new, and the record says which.
    fn hit(&mut self, label: &str, kills: bool, new: &str, ask: impl Fn(&World)) {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        self.set("changed", &NEXT.fetch_add(1, Ordering::Relaxed).to_string());
        let old = self.digest();
        let restores_before = Catalogue::open(&self.world).restores(&self.id).len();
        self.world.restart(&Run::armed(label));
        ask(&self.world);
        let died = self.world.wait_idle_or_dead(Duration::from_secs(60));
        let place = label.split(':').next().unwrap();
        assert!(
            self.world.marks().iter().any(|mark| mark == place),
            "{label}: not reached"
        );
        assert_eq!(died, kills, "{label}");
        if died {
            self.world.restart(&Run::default());
        }
        checker::settle(&mut self.world, label);
        self.wait_whole(label);
        let restores = Catalogue::open(&self.world).restores(&self.id);
        assert_eq!(restores.len(), restores_before + 1, "{label}");
        let last = restores.last().unwrap();
        let holds = self.digest();
        match (last.status.as_str(), last.target_state.as_str()) {
            ("succeeded", "replaced") => assert_eq!(holds, new, "{label}"),
            ("failed", "untouched" | "rolled_back") => assert_eq!(holds, old, "{label}"),
            other => panic!("{label}: {other:?}"),
        }
        wait_until("nothing superfluous", || {
            let nodes = self.world.engines().len() - SENTINELS;
            nodes == NODES || nodes == 2 * NODES
        });
    }
}

#[test]
fn a_watched_primary_is_whole_after_a_kill_at_any_step_of_its_making() {
    let of_every_instance = ["nodes.one_started", "nodes.one_ready", "create.before_settle"];
    for place in of_every_instance.into_iter().chain(MADE).chain(WATCHED) {
        let mut world = World::start(&[]);
        world.restart(&Run::armed(&format!("{place}:kill")));
        let (status, answer) = world.ask_for_instance("one", SPEC, "aof").unwrap();
        assert_eq!(status, 200, "{answer}");
        assert!(
            world.wait_idle_or_dead(Duration::from_secs(60)),
            "{place} was not reached"
        );
        assert_eq!(world.marks(), [place]);
        world.restart(&Run::default());
        let mut made = Watched {
            world,
            id: String::new(),
            port: 0,
            backup: String::new(),
            captured: String::new(),
        };
        made.learn();
        assert_eq!(made.shown("")["status"], "RUNNING", "{place}");
        made.wait_whole(place);
        assert_eq!(made.world.engines().len(), NODES + SENTINELS, "{place}");
        // And gone after a kill in the middle of its removal.
        made.world.restart(&Run::armed("generation.killed:kill"));
        made.world.ask_to_delete(&made.id).unwrap();
        assert!(made.world.wait_idle_or_dead(Duration::from_secs(60)));
        made.world.restart(&Run::default());
        made.world.wait_idle();
        wait_until("the end of every process", || made.world.engines().is_empty());
        assert_eq!(
            std::fs::read_dir(made.world.data().join("instances"))
                .unwrap()
                .count(),
            0
        );
    }
}

#[test]
fn a_restore_of_a_watched_primary_hit_anywhere_leaves_all_old_or_all_new_data() {
    let of_nodes = [
        "restore.begun",
        "restore.shard_loaded",
        "restore.shard_verified",
        "nodes.promoted",
        "nodes.one_started",
        "nodes.in_sync",
        "restore.joined",
        "restore.switch_intended",
        "restore.promoted",
        "switch.before_all_told",
        "switch.all_told",
        "switch.all_gave_up",
        "switch.one_taken",
        "switch.all_taken",
        "restore.switched",
        "restore.settled",
    ];
    let mut held = Watched::new("aof");
    let (backup, captured) = (held.backup.clone(), held.captured.clone());
    for place in SWITCHED.into_iter().chain(WATCHED).chain(of_nodes) {
        for action in ["kill", "error"] {
            let label = format!("{place}:{action}");
            let ask = |world: &World| {
                // It may die before it answers.
                let _answer = world.ask_for_restore("one", &backup, false);
            };
            held.hit(&label, action == "kill", &captured, ask);
        }
    }
}

#[test]
fn an_undo_of_a_watched_primary_hit_anywhere_leaves_all_old_or_all_new_data_without_persistence() {
    let mut held = Watched::new("none");
    for place in [
        "restore.switch_intended",
        "watched.forgotten",
        "switch.all_told",
        "switch.all_gave_up",
        "switch.one_taken",
        "sentinel.monitored",
        "restore.settled",
    ] {
        for action in ["kill", "error"] {
            let label = format!("{place}:{action}");
            let before = held.digest();
            held.world.restart(&Run::default());
            let (status, answer) = held.world.ask_for_restore("one", &held.backup, false).unwrap();
            assert_eq!(status, 200, "{answer}");
            checker::settle(&mut held.world, &label);
            assert_eq!(held.digest(), held.captured, "{label}");
            let restore = text(&answer, "restore_id").unwrap();
            let ask = |world: &World| {
                let _answer = world.ask_for_undo("one", &restore);
            };
            held.hit(&label, action == "kill", &before, ask);
        }
    }
}

#[test]
fn a_primary_of_either_generation_that_is_killed_during_a_restore_costs_nothing() {
    for persistence in ["aof", "none"] {
        for of_new in [false, true] {
            let label = format!("{persistence}, of the new one: {of_new}");
            let mut held = Watched::new(persistence);
            held.set("changed", "1");
            held.world.restart(&Run::armed("restore.joined:stall"));
            held.world.ask_for_restore("one", &held.backup, false).unwrap();
            wait_until("the replicas of the new one are in sync", || {
                !held.world.marks().is_empty()
            });
            let old = held.client().info("server", "process_id").unwrap();
            let primary_of = |lane: u16| {
                let place = Place::Tcp(format!("127.100.{lane}.1"), held.port);
                let password = Some(PASSWORD.to_owned());
                let mut client = Connection::open(&Target {
                    place,
                    user: None,
                    password,
                })
                .ok()?;
                client.info("server", "process_id").ok()
            };
            let new = (1..9).filter_map(primary_of).find(|pid| *pid != old).unwrap();
            let killed = if of_new { new } else { old };
            let sent = std::process::Command::new("kill").args(["-9", &killed]).status();
            assert!(sent.unwrap().success());
            assert!(!held.world.wait_idle_or_dead(Duration::from_secs(60)), "{label}");
            checker::settle(&mut held.world, &label);
            held.wait_whole(&label);
            let restores = Catalogue::open(&held.world).restores(&held.id);
            let last = restores.last().unwrap();
            assert_eq!(
                (last.status.as_str(), last.target_state.as_str()),
                ("succeeded", "replaced"),
                "{label}"
            );
            assert_eq!(held.digest(), held.captured, "{label}");
        }
    }
}
