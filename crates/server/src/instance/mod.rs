//! Instances: of engines that we run, with ports, a password, a size, and one serving generation; or attached, of servers that
//! somebody else runs.

pub mod attachment;
pub mod command;
pub mod generation;
pub mod job;
pub mod layout;
pub mod nodes;
pub mod policy;
pub mod record;
pub mod watched;
pub mod writing;

pub use record::{Instance, OwnedId, OwnedInstance, Status};
