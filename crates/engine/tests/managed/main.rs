//! Managed engines, with real server processes: start and find again, side load, verify, switch.
//!
//! `harness` makes homes that clean up after themselves. A test that needs a process of ours to die runs this very
//! program again with [`child::BEHAVIOUR`] set.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod child;
mod follow;
mod harness;
mod process;
mod sideload;
mod switch;
mod together;
mod verify;
