//! A running job whose time is over: it is given up with the code for that, the old data serves, nothing is left, and the
//! instance takes the next operation.

use std::time::{Duration, Instant};

use crate::checker::{self, Catalogue, Form};
use crate::faults::last_restore;
use crate::lifecycle::wait_until;
use crate::world::{Run, World, signal};

/// Long enough for all that comes before a job stands still, even on a busy machine.
const SECONDS: u64 = 4;

/// Jobs get [`SECONDS`], and one stands still for longer than that at this place.
fn late_at(place: &str) -> Run {
    Run {
        failpoints: format!("{place}:stall"),
        operation_seconds: Some(SECONDS),
        ..Run::default()
    }
}

/// The newest backup must have failed for want of time.
fn check_late_backup(world: &World, label: &str) {
    let last = Catalogue::open(world).backups().pop().unwrap();
    assert_eq!(last.status, "failed", "{label}: {last:?}");
    assert_eq!(
        last.error_code.as_deref(),
        Some("dcs.08.0002"),
        "{label}: {last:?}"
    );
    let why = last.failure.unwrap();
    assert!(why.contains("took longer than its deadline"), "{label}: {why}");
}

/// The newest restore must have failed for want of time, with the old data serving in the same process.
fn check_late_restore(world: &World, old: u32, label: &str) {
    let last = last_restore(world);
    assert_eq!(last.status, "failed", "{label}: {last:?}");
    assert_eq!(
        last.error_code.as_deref(),
        Some("dcs.08.0002"),
        "{label}: {last:?}"
    );
    assert_eq!(last.target_state, "rolled_back", "{label}: {last:?}");
    let why = last.failure.unwrap();
    assert!(why.contains("took longer than its deadline"), "{label}: {why}");
    assert_eq!(world.serving_pid("one"), Some(old), "{label}");
    assert_eq!(world.engines().len(), 1, "{label}: the new engine is gone");
}

#[test]
fn a_backup_that_passes_its_deadline_fails_as_timed_out_and_leaves_nothing() {
    let mut world = World::start(&[]);
    world.create("one", "redis.single.xu1.tiny.128", "aof");
    world.fill("one", 41, 500);
    for place in ["backup.mid_capture", "backup.after_last_segment"] {
        world.restart(&late_at(place));
        let (status, answer) = world.ask_for_backup("one").unwrap();
        assert_eq!(status, 200, "{answer}");
        checker::check(&mut world, Form::Cheap, place);
        assert_eq!(world.marks(), [place]);
        check_late_backup(&world, place);
    }
    // The same process: one that was late costs the next nothing.
    world.backup("one");
    checker::check(&mut world, Form::Full, "the next backup");
}

#[test]
fn a_source_that_hangs_is_given_up_at_the_deadline_and_can_be_backed_up_once_it_goes_on() {
    let mut world = World::start(&[]);
    world.create("one", "redis.single.xu1.large.1", "aof");
    // So much that the snapshot takes a good part of a second.
    world
        .client("one")
        .ask(&["DEBUG", "POPULATE", "200000", "key", "1000"])
        .unwrap();
    world.note("one");
    world.restart(&Run {
        operation_seconds: Some(SECONDS),
        ..Run::default()
    });
    let engine = world.serving_pid("one").unwrap();
    let (status, answer) = world.ask_for_backup("one").unwrap();
    assert_eq!(status, 200, "{answer}");
    wait_until("it has forked", || world.child_of(engine).is_some());
    signal(engine, "STOP");
    world.wait_idle();
    check_late_backup(&world, "a source that hangs");
    signal(engine, "CONT");
    wait_until("it answers", || world.try_digest("one").is_some());
    checker::check(&mut world, Form::Cheap, "a source that hung");
    assert_eq!(world.serving_pid("one"), Some(engine), "it was left alone");
    world.restart(&Run::default());
    world.backup("one");
    checker::check(&mut world, Form::Cheap, "the next backup");
}

#[test]
fn a_restore_that_passes_its_deadline_fails_as_timed_out_with_the_old_data_serving() {
    let mut world = World::start(&[]);
    world.create("one", "redis.single.xu1.tiny.128", "aof");
    world.fill("one", 42, 500);
    let backup = world.backup("one");
    world.change("one");
    let old = world.serving_pid("one").unwrap();
    for place in ["sideload.mid_place", "restore.loaded"] {
        world.restart(&late_at(place));
        let (status, answer) = world.ask_for_restore("one", &backup, false).unwrap();
        assert_eq!(status, 200, "{answer}");
        checker::check(&mut world, Form::Cheap, place);
        assert_eq!(world.marks(), [place]);
        check_late_restore(&world, old, place);
    }
    let (status, answer) = world.ask_for_restore("one", &backup, false).unwrap();
    assert_eq!(status, 200, "{answer}");
    checker::check(&mut world, Form::Full, "the next restore");
    assert_eq!(last_restore(&world).status, "succeeded");
}

#[test]
fn a_new_engine_that_hangs_in_mid_load_is_ended_at_the_deadline() {
    let mut world = World::start(&[]);
    world.create("one", "redis.single.xu1.large.1", "aof");
    world
        .client("one")
        .ask(&["DEBUG", "POPULATE", "1000000", "key", "16"])
        .unwrap();
    let backup = world.backup("one");
    world.change("one");
    let old = world.serving_pid("one").unwrap();
    world.restart(&Run {
        operation_seconds: Some(SECONDS),
        ..Run::default()
    });
    let (status, answer) = world.ask_for_restore("one", &backup, false).unwrap();
    assert_eq!(status, 200, "{answer}");
    wait_until("the new engine loads", || {
        let new = world.engines().into_iter().find(|(pid, _)| *pid != old);
        let Some((new, home)) = new else {
            return false;
        };
        let loads = std::fs::metadata(home.join("incoming.rdb")).is_ok_and(|file| file.len() > 0);
        if loads {
            signal(new, "STOP");
        }
        loads
    });
    let stopped = Instant::now();
    world.wait_idle();
    let took = stopped.elapsed();
    assert!(took < Duration::from_secs(SECONDS + 10), "{took:?}");
    checker::check(&mut world, Form::Cheap, "it hung");
    check_late_restore(&world, old, "it hung");
}
