//! Managed instances: a registered engine with a port, a password, a size, and one serving generation.

pub mod command;
pub mod generation;
pub mod job;
pub mod policy;
pub mod record;

pub use record::{Instance, OwnedInstance, Status};
