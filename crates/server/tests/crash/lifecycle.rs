//! Processes come, stay and go as they should.

use std::time::{Duration, Instant};

use xtask::service::processes_in;

use crate::checker::{self, Catalogue, Form};
use crate::world::{Run, World, kill, text};

#[test]
fn engines_survive_kills_and_ends_of_the_service_with_their_connections() {
    let mut world = World::start(&[]);
    world.create("one", "redis.single.xu1.tiny.128", "aof");
    world.fill("one", 3, 500);
    let mut client = world.client("one");
    let pid = world.serving_pid("one").unwrap();
    for _ in 0..3 {
        world.restart(&Run::default());
        checker::check(&mut world, Form::Cheap, "killed and started");
        assert_eq!(world.serving_pid("one"), Some(pid));
        client.ask(&["PING"]).unwrap();
    }
    world.end();
    assert_eq!(world.engines().len(), 1, "SIGTERM leaves engines up");
    client.ask(&["INCR", "while:the:service:is:away"]).unwrap();
    world.run(&Run::default());
    world.note("one");
    checker::check(&mut world, Form::Cheap, "ended and started");
    assert_eq!(world.serving_pid("one"), Some(pid));
    client.ask(&["PING"]).unwrap();
}

#[test]
fn an_engine_that_dies_comes_back_with_its_data() {
    let mut world = World::start(&[]);
    world.create("one", "redis.single.xu1.tiny.128", "aof");
    world.fill("one", 4, 1000);
    // The engine syncs its file each second; what is older must be there.
    std::thread::sleep(Duration::from_millis(1100));
    let pid = world.serving_pid("one").unwrap();
    kill(pid);
    wait_until("the engine is back", || {
        world.serving_pid("one").is_some_and(|now| now != pid)
    });
    wait_until("it answers", || world.try_digest("one").is_some());
    checker::check(&mut world, Form::Cheap, "an engine was killed");
}

#[test]
fn after_a_reboot_all_instances_are_back_on_their_ports() {
    let mut world = World::start(&[]);
    for (name, persistence) in [("one", "aof"), ("two", "rdb"), ("three", "none")] {
        world.create(name, "redis.single.xu1.tiny.128", persistence);
        world.fill(name, 5, 500);
    }
    let backup = world.backup("one");
    let (status, _) = world.ask_for_restore("one", &backup, false).unwrap();
    assert_eq!(status, 200);
    checker::check(&mut world, Form::Cheap, "before the reboot");
    world.client("two").ask(&["SAVE"]).unwrap();
    world.kill();
    for pid in processes_in(world.data()) {
        kill(pid);
    }
    wait_until("all are dead", || processes_in(world.data()).is_empty());
    world.run(&Run::default());
    // Without persistence there is nothing to come back with.
    world.instances.get_mut("three").unwrap().digest = None;
    for name in ["one", "two", "three"] {
        wait_until("it answers", || world.try_digest(name).is_some());
    }
    checker::check(&mut world, Form::Cheap, "after the reboot");
    let mut third = world.client("three");
    assert_eq!(third.ask(&["DBSIZE"]).unwrap(), xtask::resp::Reply::Number(0));
    // The retired generation of the first is on disk only, and can be switched back to.
    let id = world.id("one");
    let last = Catalogue::open(&world).restores(&id).pop().unwrap();
    let (status, answer) = world.ask_for_undo("one", &last.id).unwrap();
    assert_eq!(status, 200, "{answer}");
    checker::check(&mut world, Form::Cheap, "an undo after the reboot");
    let undone = Catalogue::open(&world).restores(&id).pop().unwrap();
    assert_eq!(undone.status, "succeeded", "{undone:?}");
}

#[test]
fn a_retired_generation_without_persistence_is_not_offered_once_its_engine_is_gone() {
    let mut world = World::start(&[]);
    world.create("one", "redis.single.xu1.tiny.128", "none");
    world.fill("one", 6, 500);
    let backup = world.backup("one");
    let retired = world.serving_pid("one").unwrap();
    let (_, answer) = world.ask_for_restore("one", &backup, false).unwrap();
    checker::check(&mut world, Form::Cheap, "restored");
    kill(retired);
    let (status, _) = world
        .ask_for_undo("one", &text(&answer, "restore_id").unwrap())
        .unwrap();
    if status == 200 {
        // Asked before the reconciler had seen that it is gone: it fails, and the data stays. The directory is
        // looked at below: the reconciler may begin to remove it at any moment from here on.
        checker::settle(&mut world, "undo without a generation");
        let last = Catalogue::open(&world).restores(&world.id("one")).pop().unwrap();
        assert_eq!(last.status, "failed", "{last:?}");
    }
    wait_until("the record has expired", || {
        Catalogue::open(&world)
            .count("SELECT count(*) FROM backup WHERE kind = 'generation' AND status = 'expired'")
            == 1
    });
    checker::check(&mut world, Form::Cheap, "the retired generation is gone");
}

#[test]
fn a_deleted_instance_leaves_no_process_and_no_directory() {
    let mut world = World::start(&[]);
    let id = world.create("one", "redis.single.xu1.tiny.128", "aof");
    world.fill("one", 7, 500);
    let backup = world.backup("one");
    let (status, _) = world.ask_for_restore("one", &backup, false).unwrap();
    assert_eq!(status, 200);
    checker::check(&mut world, Form::Cheap, "restored");
    assert_eq!(world.engines().len(), 2, "serving and retired");
    let (status, _) = world.ask_to_delete(&id).unwrap();
    assert!(status < 300);
    world.instances.remove("one");
    checker::check(&mut world, Form::Cheap, "deleted");
    assert!(world.engines().is_empty());
    let instances = world.data().join("instances");
    assert_eq!(std::fs::read_dir(instances).unwrap().count(), 0);
}

#[test]
fn a_retired_generation_goes_when_its_time_is_over() {
    let mut world = World::start(&["--undo-keep", "1"]);
    world.create("one", "redis.single.xu1.tiny.128", "aof");
    world.fill("one", 8, 500);
    let backup = world.backup("one");
    let (status, answer) = world.ask_for_restore("one", &backup, false).unwrap();
    assert_eq!(status, 200);
    checker::check(&mut world, Form::Cheap, "restored");
    wait_until("the retired generation is gone", || world.engines().len() == 1);
    checker::check(&mut world, Form::Cheap, "expired");
    let (status, answer) = world
        .ask_for_undo("one", &text(&answer, "restore_id").unwrap())
        .unwrap();
    assert_eq!(status, 400, "{answer}");
}

/// Polls for up to 30 s.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(
            started.elapsed() < Duration::from_secs(30),
            "waited in vain until {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}
