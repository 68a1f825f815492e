//! An open-loop load generator: requests are due at moments that nothing the service does can move, and a latency is counted
//! from the moment at which its request was due. A service that stalls is charged with every request that it kept from being sent
//! (coordinated omission: ADR 82).
//!
//! One thread, kept connections, a request at a time on each. What is asked for is in [`mix`]; [`run`] paces it.

mod connection;
pub mod mix;
mod report;
pub mod run;

use serde::{Deserialize, Serialize};

pub use report::{Kind, Report, Written};

/// What is to be done.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// Host and port of the service, plain HTTP.
    pub address: String,
    /// Requests due in a second.
    pub rate: f64,
    /// Connections that they share.
    pub connections: usize,
    /// How long requests are due.
    pub seconds: f64,
    /// The same seed asks for the same things in the same order.
    pub seed: u64,
    /// Whether a twentieth of the requests changes something.
    pub writes: bool,
    /// Latencies are counted from when requests were sent, and not from when they were due: for comparisons at rates at which
    /// nothing waits, where the generator's own lateness would hide what is compared.
    #[serde(default)]
    pub from_sent: bool,
    /// Whose requests they are.
    pub tenants: Vec<Tenant>,
    /// Further connections that never end a request's head: a byte every two seconds.
    #[serde(default)]
    pub slow: usize,
    /// What is unanswered so long after the last request was due stays so.
    #[serde(default = "patience")]
    pub patience_seconds: f64,
}

fn patience() -> f64 {
    60.0
}

/// A project with its credentials and what it has.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Tenant {
    /// Its id.
    pub project: String,
    /// A token of it.
    pub token: String,
    /// An access key of it.
    pub ak: String,
    /// The secret half.
    pub sk: String,
    /// The instance with all records.
    pub instance: String,
    /// How many records of each list it has. Their ids are made as `xtask::load::id` does, from 1 on: kind 1 is a backup, 2 a
    /// restore.
    pub records: u32,
    /// An instance that is backed up once.
    pub idle: Option<String>,
}
