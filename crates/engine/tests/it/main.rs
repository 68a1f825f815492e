//! Capture and archive against real engine processes: one binary, a module per subject.

#![allow(missing_docs, clippy::unwrap_used)]

mod archive;
mod backup;
mod chosen;
mod damage;
mod failpoints;
mod globs;
mod harness;
mod psync;
mod remote;
mod store;
