//! Changes of an instance's nodes: more or fewer shards, more or fewer replicas (ADR 42).
//!
//! A backup of the present data is loaded into a second generation of the wanted layout, as a restore does it; what
//! clients write meanwhile is followed. When little is left of that, writes stop, the rest is copied, and the clients move.
//! Nothing written is lost, so what was replaced is not kept.

pub mod job;
pub mod record;
