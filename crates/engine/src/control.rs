//! The two-way channel between a running operation and whoever watches it: progress out, cancel in.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use crate::error::{Error, Kind};
use crate::lease::Lease;

/// Shared by the threads of one operation and by its watcher. All counters only grow within an attempt.
#[derive(Debug)]
pub struct Control {
    cancelled: AtomicBool,
    aborted: OnceLock<String>,
    deadline: Option<Instant>,
    lease: Option<Arc<Lease>>,
    phases: Mutex<Phases>,
    /// Plain bytes acknowledged by whatever the phase waits for.
    pub bytes_done: AtomicU64,
    /// Plain bytes expected; 0 while unknown.
    pub bytes_total: AtomicU64,
    /// Keys seen or applied.
    pub keys_done: AtomicU64,
    /// Plain bytes that were captured, in all phases together.
    pub captured_bytes: AtomicU64,
    /// Plain bytes that were loaded or applied, in all phases together.
    pub restored_bytes: AtomicU64,
}

/// The phase that is under way and the time that earlier ones took.
#[derive(Debug)]
struct Phases {
    now: &'static str,
    since: Instant,
    past: Vec<(&'static str, Duration)>,
}

/// A reading of [`Control`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What is going on now, one word of the verb's list of phases.
    pub phase: &'static str,
    /// See [`Control::bytes_done`].
    pub bytes_done: u64,
    /// See [`Control::bytes_total`].
    pub bytes_total: u64,
    /// See [`Control::keys_done`].
    pub keys_done: u64,
}

impl Control {
    /// A fresh channel; `deadline` bounds the whole operation.
    pub fn new(deadline: Option<Duration>) -> Self {
        Self {
            cancelled: AtomicBool::new(false),
            aborted: OnceLock::new(),
            deadline: deadline.and_then(|limit| Instant::now().checked_add(limit)),
            lease: None,
            phases: Mutex::new(Phases {
                now: "starting",
                since: Instant::now(),
                past: Vec::new(),
            }),
            bytes_done: AtomicU64::new(0),
            bytes_total: AtomicU64::new(0),
            keys_done: AtomicU64::new(0),
            captured_bytes: AtomicU64::new(0),
            restored_bytes: AtomicU64::new(0),
        }
    }

    /// As [`Control::new`], of an operation that stops when the lease is over too.
    pub fn leased(deadline: Option<Duration>, lease: Arc<Lease>) -> Self {
        Self {
            lease: Some(lease),
            ..Self::new(deadline)
        }
    }

    /// Asks the operation to stop at its next check.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Ends the operation at its next check, for the sake of its source; the first reason counts.
    pub fn abort(&self, why: String) {
        let _ended_for_another = self.aborted.set(why);
    }

    /// Enters a phase and starts its byte counters anew.
    pub fn enter(&self, phase: &'static str, bytes_total: u64) {
        let mut phases = self.phases();
        let took = phases.since.elapsed();
        let before = phases.now;
        phases.past.push((before, took));
        phases.now = phase;
        phases.since = Instant::now();
        drop(phases);
        self.bytes_done.store(0, Ordering::Relaxed);
        self.keys_done.store(0, Ordering::Relaxed);
        self.bytes_total.store(bytes_total, Ordering::Relaxed);
    }

    /// Where the operation stands.
    pub fn progress(&self) -> Progress {
        Progress {
            phase: self.phases().now,
            bytes_done: self.bytes_done.load(Ordering::Relaxed),
            bytes_total: self.bytes_total.load(Ordering::Relaxed),
            keys_done: self.keys_done.load(Ordering::Relaxed),
        }
    }

    /// How long each phase took, in words: `connecting 2 ms, capturing 4310 ms`. The last one counts up to now.
    pub fn phases_taken(&self) -> String {
        let phases = self.phases();
        let last = (phases.now, phases.since.elapsed());
        let all = phases.past.iter().chain(std::iter::once(&last));
        let words: Vec<String> = all
            .filter(|(_, took)| took.as_millis() > 0)
            .map(|(phase, took)| format!("{phase} {} ms", took.as_millis()))
            .collect();
        words.join(", ")
    }

    fn phases(&self) -> MutexGuard<'_, Phases> {
        self.phases
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Called often by every loop of an operation.
    ///
    /// # Errors
    /// [`Kind::Cancelled`] after [`Control::cancel`] and after the end of its lease, [`Kind::SourceAtRisk`] after [`Control::abort`], [`Kind::Deadline`]
    /// past the deadline.
    pub fn check(&self, operation: &'static str) -> Result<(), Error> {
        if let Some(why) = self.aborted.get() {
            return Err(Error::new(Kind::SourceAtRisk, operation, why));
        }
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(Error::new(Kind::Cancelled, operation, "asked to stop"));
        }
        if self.lease.as_ref().is_some_and(|lease| lease.is_over()) {
            return Err(Error::new(Kind::Cancelled, operation, "its lease is over"));
        }
        if self.deadline.is_some_and(|at| Instant::now() >= at) {
            return Err(Error::new(
                Kind::Deadline,
                operation,
                "took longer than its deadline",
            ));
        }
        Ok(())
    }
}
