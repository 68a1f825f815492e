//! Managed instances: one or more registered engines with ports, a password, a size, and one serving generation.

pub mod command;
pub mod generation;
pub mod job;
pub mod layout;
pub mod nodes;
pub mod policy;
pub mod record;

pub use record::{Instance, OwnedId, OwnedInstance, Status};
