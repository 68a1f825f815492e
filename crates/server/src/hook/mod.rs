//! Telling people: the operator's hooks, each a URL or a program, are told of each end of a backup, restore or verification, of
//! drills that are overdue and of instances in trouble (ADR 72).
//!
//! What is to be told is written by the catalogue's triggers in the transaction in which it happens, so nothing that happened is
//! forgotten, whatever crashes; a delivery is settled after it was answered, so one that a crash interrupts is made again,
//! with the same id.

pub mod job;
pub mod record;
mod send;

pub use send::{Message, send};

/// Everything that is told.
pub const EVENTS: [&str; 10] = [
    "backup.succeeded",
    "backup.failed",
    "restore.succeeded",
    "restore.failed",
    "verification.holds",
    "verification.damaged",
    "verification.failed",
    "drill.overdue",
    "instance.error",
    "instance.running",
];

/// Sent by who adds a hook, to see that it works.
pub const TEST: &str = "test";

/// What the secret of a hook is sealed for.
pub fn secret_place(name: &str) -> String {
    format!("hook.secret:{name}")
}
