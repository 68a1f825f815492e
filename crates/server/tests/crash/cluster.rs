//! Clusters come whole or not at all, wherever the service is killed while it makes or removes them.

use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use xtask::resp::{Connection, Target};

use crate::checker::{self, Catalogue};
use crate::lifecycle::wait_until;
use crate::world::{PASSWORD, Run, World, text};

/// Three shards with a replica each.
pub const SPEC: &str = "redis.cluster.xu1.large.r2.4";

/// Every place that only the making of a cluster passes.
const MADE: [&str; 3] = [
    "cluster.slots_given",
    "cluster.introduced",
    "cluster.replicas_told",
];

/// Every place that the restore of a cluster passes and no other operation.
const RESTORED: [&str; 11] = [
    "restore.shard_loaded",
    "restore.shard_verified",
    "nodes.promoted",
    "nodes.in_sync",
    "cluster.one_announced",
    "restore.joined",
    "switch.before_all_told",
    "switch.all_told",
    "switch.all_gave_up",
    "switch.one_taken",
    "switch.all_taken",
];

/// Every place that only a restore into another layout passes.
const CUT: [&str; 3] = ["slices.mid_cut", "slices.file_cut", "restore.cut"];

/// Where a cancellation is written.
const CANCELLED: &str = "restore.cancel_asked";

/// Every place that only clusters, their backups, or a cancellation pass.
pub fn places() -> impl Iterator<Item = &'static str> {
    MADE.into_iter().chain(RESTORED).chain(CUT).chain([CANCELLED])
}

/// The ports of the serving generation's nodes.
fn ports(world: &World, id: &str) -> Vec<u16> {
    let shown = world.call("GET", &format!("/v2/{{project}}/instances/{id}"), None);
    let addresses = shown["backend_addrs"].as_str().unwrap().split(',');
    let port = |address: &str| address.rsplit(':').next().unwrap().parse().unwrap();
    addresses.map(port).collect()
}

fn check_whole(world: &World, id: &str, place: &str) {
    let ports = ports(world, id);
    assert_eq!((ports.len(), world.engines().len()), (6, 6), "{place}");
    for port in ports {
        let target = xtask::resp::Target::local(port, Some(PASSWORD));
        let mut client = Connection::open(&target).unwrap();
        let info = client.ask(&["CLUSTER", "INFO"]).unwrap();
        let info = info.text().unwrap();
        for line in [
            "cluster_state:ok",
            "cluster_slots_assigned:16384",
            "cluster_known_nodes:6",
            "cluster_size:3",
        ] {
            assert!(info.contains(line), "{place}: {port}: {info}");
        }
        let followed = client.info("replication", "connected_slaves").unwrap();
        let role = client.info("replication", "role").unwrap();
        let expected = if role == "master" { "1" } else { "0" };
        assert_eq!(followed, expected, "{place}: {port} is a {role}");
    }
}

#[test]
fn a_cluster_is_whole_after_a_kill_at_any_step_of_its_making() {
    let of_every_instance = ["nodes.one_started", "nodes.one_ready", "create.before_settle"];
    for place in of_every_instance.into_iter().chain(MADE) {
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
        world.wait_idle();
        world.learn_instance("one");
        let id = world.id("one");
        let shown = world.call("GET", &format!("/v2/{{project}}/instances/{id}"), None);
        assert_eq!(shown["status"], "RUNNING", "{place}: {shown}");
        check_whole(&world, &id, place);
    }
}

#[test]
fn nothing_is_left_of_a_cluster_after_a_kill_at_any_step_of_its_removal_or_a_failure_of_its_making() {
    let is_clean = |world: &World| {
        let left = std::fs::read_dir(world.data().join("instances")).unwrap().count();
        world.engines().is_empty() && left == 0
    };
    for place in [
        "delete.before_take_down",
        "generation.removing",
        "generation.killed",
        "generation.directory_removed",
        "delete.before_settle",
    ] {
        let mut world = World::start(&[]);
        let (_, answer) = world.ask_for_instance("one", SPEC, "aof").unwrap();
        world.wait_idle();
        world.restart(&Run::armed(&format!("{place}:kill")));
        let id = answer["instances"][0]["instance_id"].as_str().unwrap().to_owned();
        check_whole(&world, &id, place);
        let (status, _) = world.ask_to_delete(&id).unwrap();
        assert!(status < 300);
        assert!(
            world.wait_idle_or_dead(Duration::from_secs(60)),
            "{place} was not reached"
        );
        world.restart(&Run::default());
        world.wait_idle();
        assert!(is_clean(&world), "{place}");
    }
    let mut world = World::start(&[]);
    world.restart(&Run::armed("cluster.introduced:error"));
    world.ask_for_instance("one", SPEC, "aof").unwrap();
    world.wait_idle();
    let failed = "SELECT count(*) FROM instance WHERE status = 'create_failed'";
    assert_eq!(Catalogue::open(&world).count(failed), 1);
    wait_until("no engine is left", || world.engines().is_empty());
    // Its ports are free again.
    world.ask_for_instance("two", SPEC, "aof").unwrap();
    world.wait_idle();
    world.learn_instance("two");
    check_whole(&world, &world.id("two"), "the second one");
}

/// A cluster of three shards with some keys in each; or another instance beside it, see [`Cluster::turn_to`].
pub struct Cluster {
    pub world: World,
    pub id: String,
    ports: Vec<u16>,
    /// Engines of the other instances.
    others: usize,
    pub backup: String,
    /// What the backup holds.
    pub captured: Vec<String>,
}

/// A hash tag of each shard's slots.
const TAGS: [&str; 3] = ["3", "1", "0"];

impl Cluster {
    fn new(spec: &str, persistence: &str) -> Self {
        Self::on(World::start(&[]), spec, persistence)
    }

    /// In this world, which has no instance yet.
    pub fn on(world: World, spec: &str, persistence: &str) -> Self {
        world.ask_for_instance("one", spec, persistence).unwrap();
        let mut cluster = Self {
            world,
            id: String::new(),
            ports: Vec::new(),
            others: 0,
            backup: String::new(),
            captured: Vec::new(),
        };
        let world = &mut cluster.world;
        world.wait_idle();
        world.learn_instance("one");
        cluster.id = world.id("one");
        cluster.ports = ports(world, &cluster.id);
        for number in 0..200 {
            cluster.set(&format!("key:{number}"), "v");
        }
        cluster.captured = cluster.digests();
        let (status, answer) = cluster.world.ask_for_backup("one").unwrap();
        assert_eq!(status, 200, "{answer}");
        cluster.backup = text(&answer, "backup_id").unwrap();
        cluster.world.wait_idle();
        cluster
    }

    /// From here on it is this single instance that is changed and asked.
    fn turn_to(&mut self, name: &str) {
        let target = self.world.target(name);
        let xtask::resp::Place::Tcp(_, port) = target.place else {
            panic!("an instance without a port");
        };
        self.id = self.world.id(name);
        self.ports = vec![port];
        self.others = self.world.engines().len() - 1;
    }

    /// A client at each primary, shard by shard.
    fn primaries(&self) -> Vec<Connection> {
        let open = |port: &u16| {
            let mut client = Connection::open(&Target::local(*port, Some(PASSWORD))).unwrap();
            (client.info("replication", "role").unwrap() == "master").then_some(client)
        };
        let found: Vec<Connection> = self.ports.iter().filter_map(open).collect();
        assert!(found.len() == 3 || self.ports.len() == 1);
        found
    }

    /// Sets the key in each shard.
    pub fn set(&self, key: &str, value: &str) {
        for (client, tag) in self.primaries().iter_mut().zip(TAGS) {
            client.ask(&["SET", &format!("{key}:{{{tag}}}"), value]).unwrap();
        }
    }

    pub fn digests(&self) -> Vec<String> {
        let digest = |mut client: Connection| {
            let reply = client.ask(&["DEBUG", "DIGEST"]).unwrap();
            reply.text().unwrap().to_owned()
        };
        self.primaries().into_iter().map(digest).collect()
    }

    /// Waits until every node is there again and the cluster whole, as the reconciler brings about.
    pub fn wait_whole(&self) {
        wait_until("the cluster", || {
            let whole = |port: &u16| {
                let mut client = Connection::open(&Target::local(*port, Some(PASSWORD))).ok()?;
                let info = client.call(&["CLUSTER", "INFO"]).ok()?;
                let is_replica = client.info("replication", "role").ok()? == "slave";
                let is_linked = !is_replica || client.info("replication", "master_link_status").ok()? == "up";
                let is_ok = self.ports.len() == 1 || info.text()?.contains("cluster_state:ok");
                (is_ok && is_linked).then_some(())
            };
            self.ports.iter().all(|port| whole(port).is_some())
        });
    }

    /// One operation with one place hit: afterwards all shards have the old data or all the new, and the record says which.
    fn hit(&mut self, label: &str, failpoints: &str, kills: bool, new: &[String], ask: impl Fn(&World)) {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        self.set("changed", &NEXT.fetch_add(1, Ordering::Relaxed).to_string());
        let old = self.digests();
        let retired_before = Catalogue::open(&self.world).restores(&self.id).len();
        self.world.restart(&Run::armed(failpoints));
        ask(&self.world);
        let died = self.world.wait_idle_or_dead(Duration::from_secs(60));
        let place = failpoints.split(':').next().unwrap();
        assert!(
            self.world.marks().iter().any(|mark| mark == place),
            "{label}: not reached"
        );
        assert_eq!(died, kills, "{label}");
        if died {
            self.world.restart(&Run::default());
        }
        checker::settle(&mut self.world, label);
        self.wait_whole();
        let restores = Catalogue::open(&self.world).restores(&self.id);
        assert_eq!(restores.len(), retired_before + 1, "{label}");
        let last = restores.last().unwrap();
        let holds = self.digests();
        match last.status.as_str() {
            "succeeded" => assert_eq!(
                (holds.as_slice(), last.target_state.as_str()),
                (new, "replaced"),
                "{label}"
            ),
            "failed" => {
                assert_eq!(holds, old, "{label}");
                let states = ["untouched", "rolled_back"];
                assert!(
                    states.contains(&last.target_state.as_str()),
                    "{label}: {}",
                    last.target_state
                );
            }
            other => panic!("{label}: {other}"),
        }
        // The serving generation, and at most one for undo.
        let count = self.ports.len();
        wait_until("nothing superfluous", || {
            let engines = self.world.engines().len() - self.others;
            engines == count || engines == 2 * count
        });
    }
}

#[test]
fn a_restore_of_a_cluster_hit_anywhere_leaves_all_old_or_all_new_data() {
    let of_every_restore = [
        "restore.begun",
        "restore.proven",
        "sideload.mid_place",
        "sideload.after_rename",
        "verify.after",
        "promote.after_primary",
        "nodes.one_started",
        "restore.switch_intended",
        "restore.promoted",
        "switch.after_new_port",
        "restore.switched",
        "restore.settled",
    ];
    let mut cluster = Cluster::new(SPEC, "aof");
    let (backup, captured) = (cluster.backup.clone(), cluster.captured.clone());
    let mut fired = 0;
    for place in of_every_restore.into_iter().chain(MADE).chain(RESTORED) {
        for action in ["kill", "error"] {
            if place == "cluster.slots_given" && action == "error" {
                continue;
            }
            let label = format!("{place}:{action}");
            let ask = |world: &World| {
                // It may die before it answers.
                let _answer = world.ask_for_restore("one", &backup, false);
            };
            cluster.hit(&label, &label, action == "kill", &captured, ask);
            fired += 1;
        }
    }
    println!("{fired} hits");
}

#[test]
fn an_undo_of_a_cluster_hit_anywhere_leaves_all_old_or_all_new_data_whatever_the_persistence() {
    for persistence in ["aof", "none"] {
        let mut cluster = Cluster::new("redis.cluster.xu1.large.r1.4", persistence);
        for place in [
            "restore.switch_intended",
            "restore.promoted",
            "switch.before_all_told",
            "switch.all_told",
            "switch.all_gave_up",
            "switch.one_taken",
            "switch.all_taken",
            "switch.after_kill_replica",
            "restore.settled",
        ] {
            for action in ["kill", "error"] {
                let label = format!("{place}:{action}");
                let before = cluster.digests();
                cluster.world.restart(&Run::default());
                let (status, answer) = cluster
                    .world
                    .ask_for_restore("one", &cluster.backup, false)
                    .unwrap();
                assert_eq!(status, 200, "{answer}");
                checker::settle(&mut cluster.world, &label);
                assert_eq!(cluster.digests(), cluster.captured, "{label}");
                let restore = text(&answer, "restore_id").unwrap();
                let ask = |world: &World| {
                    let _answer = world.ask_for_undo("one", &restore);
                };
                cluster.hit(&label, &label, action == "kill", &before, ask);
            }
        }
    }
}

/// What restores into another instance and layout pass, but for what all restores pass in the same way.
const OF_OTHERS: [&str; 10] = [
    "restore.accepted",
    "restore.begun",
    "sideload.mid_place",
    "sideload.after_rename",
    "verify.after",
    "restore.switch_intended",
    "restore.promoted",
    "switch.after_new_port",
    "restore.switched",
    "restore.settled",
];

fn ask_for_other(world: &World, target: &str, backup: &str, source: &str) {
    let path = format!("/ck/v1/{{project}}/instances/{target}/restores");
    let body = serde_json::json!({"backup_id": backup, "source_instance_id": source});
    // It may die before it answers.
    let _answer = world.try_call("POST", &path, Some(&body));
}

#[test]
fn a_restore_into_another_layout_hit_anywhere_leaves_all_old_or_all_new_data() {
    let mut cluster = Cluster::new("redis.cluster.xu1.large.r2.4", "aof");
    let of_cluster = (cluster.id.clone(), cluster.backup.clone());
    let single = cluster.world.create("two", "redis.single.xu1.large.4", "aof");
    let mut client = cluster.world.client("two");
    for number in 0..500 {
        client
            .ask(&["SET", &format!("key:{number}"), "of the single"])
            .unwrap();
    }
    let captured = cluster.world.digest("two");
    let of_single = cluster.world.backup("two");
    cluster.others = 1;
    // What each shard is to hold of it is what it holds where nothing happens.
    let into_cluster = |world: &World| ask_for_other(world, &of_cluster.0, &of_single, &single);
    into_cluster(&cluster.world);
    checker::settle(&mut cluster.world, "unharmed");
    let expected = cluster.digests();
    assert_ne!(expected, cluster.captured);
    let mut fired = 0;
    for place in CUT.into_iter().chain(OF_OTHERS).chain(RESTORED) {
        for action in ["kill", "error"] {
            // The refusal of a restore that could not be recorded is no restore.
            if place == "restore.accepted" && action == "error" {
                continue;
            }
            let label = format!("{place}:{action} into a cluster");
            cluster.hit(
                &label,
                &format!("{place}:{action}"),
                action == "kill",
                &expected,
                into_cluster,
            );
            fired += 1;
        }
    }
    cluster.turn_to("two");
    let into_single = |world: &World| ask_for_other(world, &single, &of_cluster.1, &of_cluster.0);
    into_single(&cluster.world);
    checker::settle(&mut cluster.world, "unharmed");
    let expected = cluster.digests();
    assert_ne!(expected, [captured]);
    for place in CUT
        .into_iter()
        .chain(["restore.loaded", "restore.verified"])
        .chain(OF_OTHERS)
    {
        for action in ["kill", "error"] {
            if place == "restore.accepted" && action == "error" {
                continue;
            }
            let label = format!("{place}:{action} into a single instance");
            cluster.hit(
                &label,
                &format!("{place}:{action}"),
                action == "kill",
                &expected,
                into_single,
            );
            fired += 1;
        }
    }
    println!("{fired} hits");
}

/// Asks for a restore that stalls at a place, and cancels it there: what came of it, and the answer.
fn cancel_at(held: &mut Cluster, place: &str, run: &Run, ask: impl Fn(&World)) -> (checker::Restore, u16) {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    held.set("changed", &NEXT.fetch_add(1, Ordering::Relaxed).to_string());
    let old = held.digests();
    held.world.restart(run);
    ask(&held.world);
    wait_until(&format!("{place} is reached"), || {
        held.world.marks().iter().any(|mark| mark == place)
    });
    let restores = Catalogue::open(&held.world).restores(&held.id);
    let path = format!(
        "/ck/v1/{{project}}/instances/{}/restores/{}/cancel",
        held.id,
        restores.last().unwrap().id
    );
    let answer = held.world.try_call("POST", &path, None);
    if held.world.wait_idle_or_dead(Duration::from_secs(60)) {
        held.world.restart(&Run::default());
    }
    checker::settle(&mut held.world, place);
    held.wait_whole();
    let last = Catalogue::open(&held.world).restores(&held.id).pop().unwrap();
    if last.status == "failed" {
        assert_eq!(held.digests(), old, "{place}");
        assert!(
            ["untouched", "rolled_back"].contains(&last.target_state.as_str()),
            "{place}: {}",
            last.target_state
        );
        assert!(
            last.failure.as_deref().unwrap().contains("it was cancelled"),
            "{place}"
        );
    }
    let count = held.ports.len();
    wait_until("nothing superfluous", || {
        let engines = held.world.engines().len() - held.others;
        engines == count || engines == 2 * count
    });
    (last, answer.map_or(0, |(status, _)| status))
}

#[test]
fn a_restore_cancelled_in_any_phase_leaves_the_old_data_served_and_one_that_switches_is_finished() {
    let mut cluster = Cluster::new("redis.cluster.xu1.large.r2.4", "aof");
    let of_cluster = (cluster.id.clone(), cluster.backup.clone());
    let single = cluster.world.create("two", "redis.single.xu1.large.4", "aof");
    cluster
        .world
        .client("two")
        .ask(&["SET", "key", "of the single"])
        .unwrap();
    let of_single = cluster.world.backup("two");
    cluster.others = 1;
    let same = |world: &World| ask_for_other(world, &of_cluster.0, &of_cluster.1, &of_cluster.0);
    let other = |world: &World| ask_for_other(world, &of_cluster.0, &of_single, &single);
    let stalled = |place: &str| Run::armed(&format!("{place}:stall"));
    for place in [
        "restore.claimed",
        "restore.proven",
        "sideload.mid_place",
        "restore.shard_loaded",
        "nodes.in_sync",
    ] {
        let (last, status) = cancel_at(&mut cluster, place, &stalled(place), same);
        assert_eq!((last.status.as_str(), status), ("failed", 200), "{place}");
    }
    for place in ["slices.mid_cut", "restore.cut", "restore.joined"] {
        let (last, status) = cancel_at(&mut cluster, place, &stalled(place), other);
        assert_eq!((last.status.as_str(), status), ("failed", 200), "{place}");
    }
    let place = "restore.switch_intended";
    let (last, status) = cancel_at(&mut cluster, place, &stalled(place), other);
    assert_eq!((last.status.as_str(), status), ("succeeded", 400));

    cluster.turn_to("two");
    let into_single = |world: &World| ask_for_other(world, &single, &of_cluster.1, &of_cluster.0);
    for place in [
        "restore.begun",
        "restore.cut",
        "verify.before",
        "restore.verified",
    ] {
        let (last, status) = cancel_at(&mut cluster, place, &stalled(place), into_single);
        assert_eq!((last.status.as_str(), status), ("failed", 200), "{place}");
    }
    // What was asked for is done after a crash, too.
    let run = Run::armed(&format!("restore.loaded:stall,{CANCELLED}:kill"));
    let (last, status) = cancel_at(&mut cluster, "restore.loaded", &run, into_single);
    assert_eq!((last.status.as_str(), status), ("failed", 0));
    // The old engine is stopped by then, and comes back.
    let in_place = Run {
        failpoints: "restore.old_stopped:stall".to_owned(),
        memory_available: Some(1 << 20),
        ..Run::default()
    };
    let with_downtime = |world: &World| {
        let (status, answer) = world.ask_for_restore("two", &of_single, true).unwrap();
        assert_eq!(status, 200, "{answer}");
    };
    let (last, status) = cancel_at(&mut cluster, "restore.old_stopped", &in_place, with_downtime);
    assert_eq!(
        (last.status.as_str(), last.target_state.as_str(), status),
        ("failed", "rolled_back", 200)
    );
}
