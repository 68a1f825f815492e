//! An instance has all of its data and either its old nodes or the wanted ones, wherever the service is killed while it changes
//! them.

use std::time::Duration;

use serde_json::json;
use xtask::resp::{Connection, Reply, Target};

use crate::cluster::SPEC;
use crate::lifecycle::wait_until;
use crate::world::{PASSWORD, Run, World};

/// Every place that only a change of the nodes passes.
const RESIZED: [&str; 12] = [
    "resize.claimed",
    "resize.followed",
    "resize.begun",
    "resize.joined",
    "follow.round",
    "resize.switch_intended",
    "follow.halted",
    "follow.drained",
    "resize.switched",
    "resize.settled",
    "resize.new_removed",
    "resize.before_fail",
];

/// Those of them that one passes which fails.
const GIVEN_UP: [&str; 2] = ["resize.new_removed", "resize.before_fail"];

/// What restores pass as well.
const OF_RESTORES: [&str; 9] = [
    "restore.safety_taken",
    "slices.mid_cut",
    "restore.shard_verified",
    "nodes.in_sync",
    "switch.before_all_told",
    "switch.all_told",
    "switch.all_gave_up",
    "switch.one_taken",
    "switch.all_taken",
];

pub fn places() -> impl Iterator<Item = &'static str> {
    RESIZED.into_iter()
}

/// The digests of all primaries, xored: whatever the shards are, it is that of their keys and of one engine without any, where
/// their number is odd.
fn digest(world: &World, id: &str) -> (usize, Vec<u8>) {
    let shown = world.call("GET", &format!("/v2/{{project}}/instances/{id}"), None);
    assert_eq!(shown["status"], "RUNNING", "{shown}");
    let mut sum = vec![0; 20];
    let mut shards = 0;
    for address in shown["backend_addrs"].as_str().unwrap().split(',') {
        let port = address.rsplit(':').next().unwrap().parse().unwrap();
        let mut client = Connection::open(&Target::local(port, Some(PASSWORD))).unwrap();
        let info = client.ask(&["CLUSTER", "INFO"]).unwrap();
        assert!(info.text().unwrap().contains("cluster_state:ok"));
        if client.info("replication", "role").unwrap() == "master" {
            shards += 1;
            let told = client
                .ask(&["DEBUG", "DIGEST"])
                .unwrap()
                .text()
                .unwrap()
                .to_owned();
            for (at, byte) in sum.iter_mut().enumerate() {
                *byte ^= u8::from_str_radix(&told[2 * at..2 * at + 2], 16).unwrap();
            }
            // No pause of an earlier attempt is left: this would wait with the writes.
            let heard = client.ask(&["PUBLISH", "probe", "1"]).unwrap();
            assert_eq!(heard, Reply::Number(0));
        }
    }
    assert_eq!(shown["sharding_count"], json!(shards));
    (shards, sum)
}

#[test]
fn a_change_of_nodes_hit_anywhere_leaves_all_data_on_the_old_nodes_or_on_the_wanted_ones() {
    let mut world = World::start(&[]);
    let spec = SPEC.replace(".r2.", ".r1.");
    world.ask_for_instance("one", &spec, "aof").unwrap();
    world.wait_idle();
    world.learn_instance("one");
    let id = world.id("one");
    let shown = world.call("GET", &format!("/v2/{{project}}/instances/{id}"), None);
    for address in shown["backend_addrs"].as_str().unwrap().split(',') {
        let port = address.rsplit(':').next().unwrap().parse().unwrap();
        let mut client = Connection::open(&Target::local(port, Some(PASSWORD))).unwrap();
        for number in 0..600 {
            // Those that are another's are refused here.
            let _moved = client.call(&["SET", &format!("key:{number}"), "v"]).unwrap();
        }
    }
    let (mut shards, held) = digest(&world, &id);
    let path = format!("/v2/{{project}}/instances/{id}/resize");
    let mut fired = 0;
    for place in RESIZED.into_iter().chain(OF_RESTORES) {
        for action in ["kill", "error"] {
            let label = format!("{place}:{action}");
            let failure = match GIVEN_UP.contains(&place) {
                true => "follow.drained:error,",
                false => "",
            };
            world.restart(&Run::armed(&format!("{failure}{label}")));
            let wanted = if shards == 3 { 5 } else { 3 };
            let wish = json!({"spec_code": spec, "spec_param": {"sharding_count": wanted}});
            // It may die before it answers.
            let _answer = world.try_call("POST", &path, Some(&wish));
            let died = world.wait_idle_or_dead(Duration::from_secs(60));
            assert!(
                world.marks().iter().any(|mark| mark == place),
                "{label}: not reached"
            );
            assert_eq!(died, action == "kill", "{label}");
            if died {
                world.restart(&Run::default());
            }
            world.wait_idle();
            let (now, holds) = digest(&world, &id);
            assert_eq!(holds, held, "{label}");
            // What a crash cut off is taken up again, as what ended outside of an attempt is; what failed leaves the old nodes.
            let is_outside = ["resize.claimed", "resize.switched", "resize.settled"].contains(&place);
            let is_open = GIVEN_UP.contains(&place) || place.starts_with("switch.");
            let expected = match action {
                "error" if !is_outside => shards,
                _ => wanted,
            };
            assert!(now == expected || is_open, "{label}: {now} shards");
            shards = now;
            wait_until("nothing superfluous", || world.engines().len() == shards);
            fired += 1;
        }
    }
    println!("{fired} hits");
}
