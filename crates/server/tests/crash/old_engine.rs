//! Kills and errors at every named place of restores of an engine whose port cannot be changed while it runs (redis 6.0): the
//! old one ends before the new one is started with the port.

use std::path::PathBuf;

use crate::kill_points::{Operation, hit_these};
use crate::world::World;

/// Places that only such engines pass.
const RESTARTED: [&str; 3] = ["switch.new_started", "switch.new_stopped", "switch.old_stopped"];

/// What else a restore of theirs passes and does differently.
const LOADED: [&str; 5] = [
    "process.after_ready",
    "process.after_spawn",
    "process.before_spawn",
    "restore.loaded",
    "sideload.after_rename",
];
const SWITCHED: [&str; 5] = [
    "process.after_stop",
    "process.before_stop",
    "restore.settled",
    "restore.switch_intended",
    "restore.switched",
];

/// Every place that only such engines pass.
pub fn places() -> impl Iterator<Item = &'static str> {
    RESTARTED.into_iter()
}

/// Its program, which `cargo xtask setup test` fetches.
fn engine() -> Option<PathBuf> {
    let place = concat!(env!("CARGO_MANIFEST_DIR"), "/../../.tools/engines/redis-6.0");
    let engine = PathBuf::from(place).canonicalize().ok();
    if engine.is_none() {
        eprintln!("NOT SHOWN: there is no redis 6.0 at {place}");
    }
    engine
}

#[test]
fn a_restore_by_restart_hit_anywhere_leaves_all_old_or_all_new_data_whatever_the_persistence() {
    let Some(engine) = engine() else { return };
    let world = || World::start_of(engine.clone());
    let switched = [&RESTARTED[..], &SWITCHED].concat();
    hit_these(
        world(),
        Operation::Restore,
        "aof",
        &[&LOADED[..], &switched].concat(),
    );
    for persistence in ["rdb", "none"] {
        hit_these(world(), Operation::Restore, persistence, &switched);
    }
}

#[test]
fn an_undo_by_restart_hit_anywhere_leaves_all_old_or_all_new_data_whatever_the_persistence() {
    let Some(engine) = engine() else { return };
    let switched = [&RESTARTED[..], &SWITCHED].concat();
    for persistence in ["aof", "none"] {
        hit_these(
            World::start_of(engine.clone()),
            Operation::Undo,
            persistence,
            &switched,
        );
    }
}

#[test]
fn an_in_place_restore_by_restart_hit_anywhere_leaves_all_old_or_all_new_data() {
    let Some(engine) = engine() else { return };
    let places = [&RESTARTED[..], &SWITCHED, &["restore.old_stopped"]].concat();
    hit_these(World::start_of(engine), Operation::InPlace, "aof", &places);
}
