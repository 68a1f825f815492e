//! Clusters come whole or not at all, wherever the service is killed while it makes or removes them.

use std::time::Duration;

use xtask::resp::Connection;

use crate::checker::Catalogue;
use crate::lifecycle::wait_until;
use crate::world::{PASSWORD, Run, World};

const SPEC: &str = "redis.cluster.xu1.large.r2.4";

/// Every place that only the making of a cluster passes.
pub const PLACES: [&str; 3] = [
    "cluster.slots_given",
    "cluster.introduced",
    "cluster.replicas_told",
];

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
    for place in of_every_instance.into_iter().chain(PLACES) {
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
