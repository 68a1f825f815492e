//! The two-way channel between a running operation and whoever watches it: progress out, cancel in.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::error::{Error, Kind};

/// Shared by the threads of one operation and by its watcher. All counters only grow within an attempt.
#[derive(Debug)]
pub struct Control {
    cancelled: AtomicBool,
    deadline: Option<Instant>,
    phase: Mutex<&'static str>,
    /// Plain bytes acknowledged by whatever the phase waits for.
    pub bytes_done: AtomicU64,
    /// Plain bytes expected; 0 while unknown.
    pub bytes_total: AtomicU64,
    /// Keys seen or applied.
    pub keys_done: AtomicU64,
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
            deadline: deadline.and_then(|limit| Instant::now().checked_add(limit)),
            phase: Mutex::new("starting"),
            bytes_done: AtomicU64::new(0),
            bytes_total: AtomicU64::new(0),
            keys_done: AtomicU64::new(0),
        }
    }

    /// Asks the operation to stop at its next check.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Enters a phase and starts its byte counters anew.
    pub fn enter(&self, phase: &'static str, bytes_total: u64) {
        *self.phase.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = phase;
        self.bytes_done.store(0, Ordering::Relaxed);
        self.keys_done.store(0, Ordering::Relaxed);
        self.bytes_total.store(bytes_total, Ordering::Relaxed);
    }

    /// Where the operation stands.
    pub fn progress(&self) -> Progress {
        Progress {
            phase: *self.phase.lock().unwrap_or_else(|poisoned| poisoned.into_inner()),
            bytes_done: self.bytes_done.load(Ordering::Relaxed),
            bytes_total: self.bytes_total.load(Ordering::Relaxed),
            keys_done: self.keys_done.load(Ordering::Relaxed),
        }
    }

    /// Called often by every loop of an operation.
    ///
    /// # Errors
    /// [`Kind::Cancelled`] after [`Control::cancel`], [`Kind::Deadline`] past the deadline.
    pub fn check(&self, operation: &'static str) -> Result<(), Error> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(Error::new(Kind::Cancelled, operation, "asked to stop"));
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
