//! Kills and errors at every named place of restores of an engine whose port cannot be changed while it runs (redis 6.2): the
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

/// `cargo xtask setup test` fetches it.
fn world() -> World {
    let engine = PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../.tools/engines/redis-6.2"
    ));
    let engine = engine.canonicalize();
    World::start_of(engine.expect("redis 6.2: cargo xtask setup test fetches it"))
}

#[test]
fn a_restore_by_restart_hit_anywhere_leaves_all_old_or_all_new_data_whatever_the_persistence() {
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
    let switched = [&RESTARTED[..], &SWITCHED].concat();
    for persistence in ["aof", "none"] {
        hit_these(world(), Operation::Undo, persistence, &switched);
    }
}

#[test]
fn an_in_place_restore_by_restart_hit_anywhere_leaves_all_old_or_all_new_data() {
    let places = [&RESTARTED[..], &SWITCHED, &["restore.old_stopped"]].concat();
    hit_these(world(), Operation::InPlace, "aof", &places);
}
