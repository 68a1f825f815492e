//! What survives: kills at named places and at any moment, faults of engines, disks and ports, and how much memory
//! it takes. The names of the tests are the claims.
//!
//! Nothing of the program under test judges itself: [`checker`] reads the catalogue, the store, the engines and the
//! process table on its own. Run with `CACHEKEEP_TEST_LONG=1` for all 200 random kills and the big values, with
//! `CACHEKEEP_TEST_CATALOG=postgres` for the catalogue of every service in a PostgreSQL.

#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a test that cannot go on fails; its names are the claims"
)]

mod attach_failures;
mod attach_imports;
mod attached;
mod attached_restore;
mod beside;
mod catalogue;
mod checker;
mod cluster;
mod deadline;
mod failure_table;
mod faults;
mod ha;
mod kill_points;
mod lifecycle;
mod long_replay;
mod memory;
mod old_engine;
mod out_of_memory;
mod power;
mod random_kills;
mod remote;
mod resize;
mod resumed;
mod torture;
mod world;

/// Whether the long form is wanted.
fn long() -> bool {
    std::env::var_os("CACHEKEEP_TEST_LONG").is_some_and(|value| value == "1")
}
