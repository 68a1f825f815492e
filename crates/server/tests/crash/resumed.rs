//! Jobs that a crash interrupted, and what clients were told meanwhile: no acknowledged write is lost by finishing them,
//! and none of them fires long after it was asked for.

use std::time::Duration;

use xtask::resp::Reply;

use crate::checker::{self, Catalogue, Form, Restore};
use crate::lifecycle::wait_until;
use crate::world::{Answer, Run, World, kill};

/// A world with one instance, filled; it dies at `place` of what `ask` asks for.
fn died_at(world: &mut World, place: &str, ask: impl FnOnce(&World) -> Answer) {
    world.restart(&Run::armed(place));
    let answer = ask(world);
    if let Ok((status, answer)) = answer {
        assert!(status < 300, "{place}: {status} {answer}");
    }
    assert!(
        world.wait_idle_or_dead(Duration::from_secs(30)),
        "{place}: it lives"
    );
    assert_eq!(world.marks().last().map(String::as_str), Some(place));
    // It is dead already.
    world.kill();
}

/// An instance with data, a backup of that, and other data since.
fn prepared(persistence: &str) -> (World, String) {
    let mut world = World::start(&[]);
    world.create("one", "redis.single.xu1.tiny.128", persistence);
    world.fill("one", 31, 500);
    let backup = world.backup("one");
    world.change("one");
    (world, backup)
}

fn set(world: &World, key: &str) {
    let answer = world.client("one").ask(&["SET", key, "paid"]).unwrap();
    assert_eq!(answer.text(), Some("OK"));
}

fn has(world: &World, key: &str) -> bool {
    world.client("one").ask(&["EXISTS", key]).unwrap() == Reply::Number(1)
}

fn last_restore(world: &World) -> Restore {
    Catalogue::open(world).restores(&world.id("one")).pop().unwrap()
}

#[test]
fn a_flush_that_a_crash_interrupted_is_not_repeated() {
    let (mut world, _) = prepared("aof");
    died_at(&mut world, "operation.before_settle", |world| {
        world.ask_to_flush("one")
    });
    assert_eq!(
        world.client("one").ask(&["DBSIZE"]).unwrap(),
        Reply::Number(0),
        "it was done"
    );
    set(&world, "important");
    let digest = world.note("one");
    world.run(&Run::default());
    checker::check(&mut world, Form::Cheap, "after the crash");
    assert!(has(&world, "important"));
    assert_eq!(world.note("one"), digest);
}

#[test]
fn a_restart_that_a_crash_interrupted_is_not_repeated() {
    let (mut world, _) = prepared("none");
    let before = world.serving_pid("one");
    died_at(&mut world, "operation.before_settle", |world| {
        world.ask_to_restart("one")
    });
    let restarted = world.serving_pid("one");
    assert_ne!(restarted, before, "it was done");
    set(&world, "important");
    world.note("one");
    world.run(&Run::default());
    checker::check(&mut world, Form::Cheap, "after the crash");
    assert!(has(&world, "important"));
    assert_eq!(world.serving_pid("one"), restarted);
}

#[test]
fn a_restart_that_a_crash_interrupted_before_the_engine_ended_is_done() {
    let (mut world, _) = prepared("aof");
    for place in ["operation.intended", "restart.before_stop", "restart.after_stop"] {
        let before = world.serving_pid("one");
        died_at(&mut world, place, |world| world.ask_to_restart("one"));
        world.run(&Run::default());
        checker::check(&mut world, Form::Cheap, place);
        assert_ne!(world.serving_pid("one"), before, "{place}");
    }
}

#[test]
fn what_the_new_generation_acknowledged_stays_whatever_fails_when_the_switch_is_finished() {
    let errors = "restore.claimed:error,restore.switch_intended:error,promote.after_limit:error,\
                  promote.after_primary:error,restore.promoted:error,switch.before_old_port:error,\
                  switch.after_new_port:error,switch.after_kill_replica:error,\
                  restore.switched:error";
    for (persistence, place) in [
        ("aof", "restore.switched"),
        ("aof", "switch.after_new_port"),
        ("none", "switch.after_kill_replica"),
    ] {
        let (mut world, backup) = prepared(persistence);
        died_at(&mut world, place, |world| {
            world.ask_for_restore("one", &backup, false)
        });
        set(&world, "order42");
        let digest = world.digest("one");
        world.run(&Run::armed(errors));
        checker::settle(&mut world, place);
        let last = last_restore(&world);
        assert_eq!(last.status, "succeeded", "{place}: {last:?}");
        assert_eq!(last.failure, None, "{place}: {last:?}");
        assert_eq!(last.unavailable_us, None, "{place}: {last:?}");
        assert!(has(&world, "order42"), "{place}");
        assert_eq!(world.digest("one"), digest, "{place}");
    }
}

#[test]
fn a_restore_does_not_end_with_an_empty_engine_where_the_new_one_died_in_the_switch() {
    for place in ["restore.promoted", "switch.after_old_port", "restore.switched"] {
        let (mut world, backup) = prepared("none");
        let old = world.serving_pid("one").unwrap();
        died_at(&mut world, place, |world| {
            world.ask_for_restore("one", &backup, false)
        });
        let new = world.engines().into_iter().find(|(pid, _)| *pid != old);
        kill(new.unwrap().0);
        wait_until("it is dead", || world.engines().len() == 1);
        world.run(&Run::default());
        checker::check(&mut world, Form::Cheap, place);
        let last = last_restore(&world);
        assert_eq!(last.status, "succeeded", "{place}: {last:?}");
        // Then the file of an instance without persistence goes.
        let file = world.serving_home("one").unwrap().join("dump.rdb");
        wait_until("the file is forgotten", || !file.exists());
    }
}

#[test]
fn how_long_clients_waited_is_not_told_where_a_crash_came_in_between() {
    let (mut world, backup) = prepared("aof");
    let (status, _) = world.ask_for_restore("one", &backup, false).unwrap();
    assert_eq!(status, 200);
    checker::check(&mut world, Form::Cheap, "without a crash");
    let gap_us = last_restore(&world).unavailable_us.unwrap();
    assert!((1..2_000_000).contains(&gap_us), "{gap_us}");
    died_at(&mut world, "switch.after_old_port", |world| {
        world.ask_for_restore("one", &backup, false)
    });
    std::thread::sleep(Duration::from_secs(1));
    assert!(world.try_digest("one").is_none(), "nobody serves now");
    world.run(&Run::default());
    checker::check(&mut world, Form::Cheap, "after the crash");
    let last = last_restore(&world);
    assert_eq!(
        (last.status.as_str(), last.unavailable_us),
        ("succeeded", None),
        "{last:?}"
    );
}

#[test]
fn a_failure_that_was_written_past_the_intent_to_switch_is_the_end_of_it() {
    let (mut world, backup) = prepared("aof");
    let places = "switch.after_old_port:error,generation.removing";
    world.restart(&Run::armed(places));
    let (status, _) = world.ask_for_restore("one", &backup, false).unwrap();
    assert_eq!(status, 200);
    assert!(world.wait_idle_or_dead(Duration::from_secs(30)), "it lives");
    world.kill();
    world.run(&Run::default());
    checker::check(&mut world, Form::Cheap, "after the crash");
    let last = last_restore(&world);
    assert_eq!(
        (last.status.as_str(), last.target_state.as_str()),
        ("failed", "rolled_back"),
        "{last:?}"
    );
}

#[test]
fn an_in_place_restore_that_cannot_save_the_old_data_leaves_it_serving() {
    for persistence in ["rdb", "none"] {
        let (mut world, backup) = prepared(persistence);
        world.restart(&Run {
            memory_available: Some(1 << 20),
            ..Run::default()
        });
        let old = world.serving_pid("one");
        // What a save would be named, and what no file can replace.
        let in_the_way = world.serving_home("one").unwrap().join("dump.rdb");
        let _none_yet = std::fs::remove_file(&in_the_way);
        std::fs::create_dir(&in_the_way).unwrap();
        let (status, _) = world.ask_for_restore("one", &backup, true).unwrap();
        assert_eq!(status, 200);
        checker::check(&mut world, Form::Cheap, persistence);
        let last = last_restore(&world);
        assert_eq!(last.status, "failed", "{persistence}: {last:?}");
        assert_eq!(last.method, "in_place", "{persistence}: {last:?}");
        assert_eq!(world.serving_pid("one"), old, "{persistence}: it never ended");
        std::fs::remove_dir(&in_the_way).unwrap();
        let (status, _) = world.ask_for_restore("one", &backup, true).unwrap();
        assert_eq!(status, 200);
        checker::check(&mut world, Form::Full, persistence);
        assert_eq!(last_restore(&world).status, "succeeded", "{persistence}");
    }
}

#[test]
fn a_restart_of_an_engine_that_cannot_save_leaves_it_serving() {
    let (mut world, _) = prepared("rdb");
    let engine = world.serving_pid("one");
    let in_the_way = world.serving_home("one").unwrap().join("dump.rdb");
    let _none_yet = std::fs::remove_file(&in_the_way);
    std::fs::create_dir(&in_the_way).unwrap();
    let (status, _) = world.ask_to_restart("one").unwrap();
    assert!(status < 300);
    checker::check(&mut world, Form::Cheap, "it cannot save");
    assert_eq!(world.serving_pid("one"), engine, "it never ended");
    std::fs::remove_dir(&in_the_way).unwrap();
    let (status, _) = world.ask_to_restart("one").unwrap();
    assert!(status < 300);
    checker::check(&mut world, Form::Cheap, "it can save again");
    assert_ne!(world.serving_pid("one"), engine);
}

#[test]
fn a_restore_that_was_asked_for_yesterday_is_not_done_today() {
    for place in ["restore.claimed", "restore.loaded", "restore.switch_intended"] {
        let (mut world, backup) = prepared("aof");
        died_at(&mut world, place, |world| {
            world.ask_for_restore("one", &backup, false)
        });
        set(&world, "written:today");
        world.note("one");
        world.age_jobs_by_a_day();
        world.run(&Run::default());
        checker::check(&mut world, Form::Cheap, place);
        let last = last_restore(&world);
        assert_eq!(last.status, "failed", "{place}: {last:?}");
        assert_eq!(
            last.error_code.as_deref(),
            Some("dcs.08.0002"),
            "{place}: {last:?}"
        );
        assert!(has(&world, "written:today"), "{place}");
    }
}

#[test]
fn a_backup_or_flush_that_was_asked_for_yesterday_is_not_done_today() {
    let (mut world, _) = prepared("aof");
    died_at(&mut world, "backup.claimed", |world| world.ask_for_backup("one"));
    world.age_jobs_by_a_day();
    world.run(&Run::default());
    checker::check(&mut world, Form::Cheap, "a backup of yesterday");
    let last = Catalogue::open(&world).backups().pop().unwrap();
    assert_eq!(
        (last.status.as_str(), last.error_code.as_deref()),
        ("failed", Some("dcs.08.0002")),
        "{last:?}"
    );
    // A flush that was accepted and never begun.
    world.kill();
    world.database.change(
            "INSERT INTO job (id, instance_id, kind, state, created_at_ms) \
             SELECT '00000000-0000-4000-8000-000000000001', instance_id, 'flush', 'waiting', created_at_ms FROM job WHERE kind = 'backup' LIMIT 1",
        );
    world.age_jobs_by_a_day();
    world.run(&Run::default());
    checker::check(&mut world, Form::Cheap, "a flush of yesterday");
}

#[test]
fn a_restore_that_was_switched_yesterday_is_finished_today() {
    let (mut world, backup) = prepared("aof");
    died_at(&mut world, "restore.switched", |world| {
        world.ask_for_restore("one", &backup, false)
    });
    world.age_jobs_by_a_day();
    world.run(&Run::default());
    checker::check(&mut world, Form::Cheap, "a switch of yesterday");
    assert_eq!(last_restore(&world).status, "succeeded");
}

#[test]
fn a_backup_whose_left_over_objects_do_not_go_fails_and_says_so() {
    let (mut world, _) = prepared("aof");
    died_at(&mut world, "backup.after_manifest", |world| {
        world.ask_for_backup("one")
    });
    world.run(&Run::armed("archive.manifest_deleted:error"));
    checker::settle(&mut world, "left-over objects");
    let last = Catalogue::open(&world).backups().pop().unwrap();
    assert_eq!(
        (last.status.as_str(), last.error_code.as_deref()),
        ("failed", Some("dcs.08.0003")),
        "{last:?}"
    );
    world.restart(&Run::default());
    checker::check(&mut world, Form::Cheap, "swept at the next start");
}

#[test]
fn a_backup_that_a_restart_ended_just_before_its_end_leaves_no_objects() {
    let (mut world, _) = prepared("aof");
    world.restart(&Run::armed("backup.before_settle:stall"));
    let (status, _) = world.ask_for_backup("one").unwrap();
    assert!(status < 300);
    wait_until("it is captured", || !world.marks().is_empty());
    let (status, answer) = world.ask_to_restart("one").unwrap();
    assert!(status < 300, "{answer}");
    checker::check(&mut world, Form::Cheap, "ended by a restart");
    let last = Catalogue::open(&world).backups().pop().unwrap();
    assert_eq!(last.status, "failed", "{last:?}");
}
