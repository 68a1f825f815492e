//! The data plane: moves the data of one instance.
//!
//! Blocking code on plain threads: one operation owns a handful of threads and bounded buffers, and its watcher
//! holds a [`Control`]. No SQL, no HTTP server, no DCS words; callers pass plain values and get plain reports.

pub mod control;
pub mod error;
pub mod failpoint;
pub mod node;
pub mod process;
pub mod sideload;
pub mod switch;
pub mod verify;

pub use control::{Control, Progress};
pub use error::{Error, Kind, chain};
pub use node::{Address, Endpoint, Node, Reply, Secret};
