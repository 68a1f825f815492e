//! Durable work: a row per unit, claimed with a growing fence, run by the same loop whether it is new, retried or
//! left behind by a crash.

pub mod aside;
pub mod queue;
pub mod worker;

pub use queue::{Claim, JobKind};
