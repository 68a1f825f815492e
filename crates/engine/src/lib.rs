//! The data plane: moves the data of one instance.
//!
//! Blocking code on plain threads: one operation owns a handful of threads and bounded buffers, and its watcher
//! holds a [`Control`]. No SQL, no HTTP server, no DCS words; callers pass plain values and get plain reports.

pub mod aof;
pub mod archive;
pub mod backup;
pub mod cluster;
pub mod control;
pub mod defect;
mod direct;
pub mod discover;
pub mod duplicate;
pub mod error;
pub mod failpoint;
pub mod follow;
#[doc(hidden)]
pub mod fuzzing;
pub mod guard;
mod hindrance;
pub mod key_index;
pub mod keys;
pub mod lease;
pub mod node;
mod priority;
pub mod process;
pub mod proof;
pub mod psync;
pub mod replay;
pub mod scan;
pub mod segment;
pub mod selection;
pub mod sentinel;
pub mod sideload;
pub mod slices;
pub mod spool;
pub mod store;
pub mod switch;
pub mod verify;
mod wide_pipe;

pub use archive::Archive;
pub use backup::{BackupPlan, BackupReport, Labels};
pub use control::{Control, Progress};
pub use duplicate::SpillFile;
pub use error::{Error, Kind, chain};
pub use keys::{Identity, Recipient, SigningKey, VerifyingKey};
pub use lease::{Lease, uptime};
pub use node::{Address, Endpoint, Node, Reply, Secret, Tls};
pub use psync::Tuning;
pub use selection::Selection;
pub use store::{Patience, RemoteKind, RemoteSpec, Store};
