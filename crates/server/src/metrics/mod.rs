//! What an on-call person asks, in numbers: counters of this process, and what the catalogue says now.
//!
//! Counters begin at zero with the process, as Prometheus expects. What must survive a restart (how old the newest backup is)
//! is read from the catalogue when it is asked for, at a cost that does not grow with the records.

pub mod record;

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// A counter's name, and its labels with their values.
pub type Counter = (&'static str, Vec<(&'static str, String)>);

/// Counters by name and labels. Few: labels are words of ours, never what callers send.
#[derive(Default)]
pub struct Counters(Mutex<BTreeMap<Counter, u64>>);

impl Counters {
    /// One more.
    pub fn add(&self, name: &'static str, labels: &[(&'static str, &str)]) {
        let labels = labels
            .iter()
            .map(|(label, value)| (*label, (*value).to_owned()))
            .collect();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *all.entry((name, labels)).or_default() += 1;
    }

    /// All, by name.
    pub fn all(&self) -> Vec<(Counter, u64)> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter()
            .map(|(counter, count)| (counter.clone(), *count))
            .collect()
    }
}

/// Jobs that ended: `kind`, `outcome` (done, failed, lost).
pub const JOBS_ENDED: &str = "cachekeep_jobs_ended_total";
/// Claims of jobs that had been claimed before: `kind`.
pub const TAKEN_OVER: &str = "cachekeep_jobs_taken_over_total";
/// Jobs that stopped because their claim was not theirs any more: `kind`.
pub const CLAIMS_LOST: &str = "cachekeep_claims_lost_total";
/// Backups, imports and restores that failed: `kind`, `code` (dcs.08.000x).
pub const FAILURES: &str = "cachekeep_failures_total";
/// Verifies and drills that ended: `level`, `outcome` (holds, damaged, failed).
pub const VERIFIES_ENDED: &str = "cachekeep_verifications_ended_total";
/// Scheduled backups that did not run: `code`.
pub const SKIPPED: &str = "cachekeep_scheduled_skipped_total";
/// Backups that retention has taken away.
pub const EXPIRED: &str = "cachekeep_backups_expired_total";
/// Remote stores that could not be opened; told as a part of [`STORE_ERRORS`].
pub const STORES_NOT_OPENED: &str = "cachekeep_stores_not_opened_total";
/// Those, and calls to remote stores that failed after all their tries.
pub const STORE_ERRORS: &str = "cachekeep_store_errors_total";
/// Answers of the API: `operation`, `status`.
pub const ANSWERS: &str = "cachekeep_http_answers_total";
/// Tries to tell a hook: `hook`, `outcome` (delivered, refused, given_up).
pub const DELIVERIES: &str = "cachekeep_hook_deliveries_total";
