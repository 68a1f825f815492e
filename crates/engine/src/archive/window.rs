//! Pieces that are decoded on several threads and delivered in order.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

use super::lock;
use crate::error::{Error, Kind};

/// How long a wait lasts before the control is asked again.
const PATIENCE: Duration = Duration::from_millis(100);

/// Lets workers run ahead of the delivery by at most `size` pieces.
pub(super) struct Window {
    state: Mutex<WindowState>,
    changed: Condvar,
    count: usize,
    size: usize,
}

#[derive(Default)]
struct WindowState {
    next_claim: usize,
    next_delivery: usize,
    ready: BTreeMap<usize, Result<Vec<u8>, Error>>,
    free: Vec<Vec<u8>>,
    is_stopped: bool,
}

impl Window {
    pub(super) fn new(count: usize, size: usize) -> Self {
        Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            count,
            size,
        }
    }

    /// The next index for a worker and a buffer for it; `None` when there is nothing to do any more.
    pub(super) fn claim(&self) -> Option<(usize, Vec<u8>)> {
        let mut state = self.lock();
        loop {
            if state.is_stopped || state.next_claim == self.count {
                return None;
            }
            if state.next_claim < state.next_delivery + self.size {
                let index = state.next_claim;
                state.next_claim += 1;
                return Some((index, state.free.pop().unwrap_or_default()));
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }

    /// An error once nobody wants pieces any more.
    pub(super) fn wanted(&self) -> Result<(), Error> {
        match self.lock().is_stopped {
            true => Err(Error::new(
                Kind::Cancelled,
                "read archive",
                "nobody wants the rest",
            )),
            false => Ok(()),
        }
    }

    pub(super) fn finish(&self, index: usize, result: Result<Vec<u8>, Error>) {
        self.lock().ready.insert(index, result);
        self.changed.notify_all();
    }

    /// Waits for a piece.
    pub(super) fn wait(
        &self,
        index: usize,
        still_wanted: impl Fn() -> Result<(), Error>,
    ) -> Result<Vec<u8>, Error> {
        let mut state = self.lock();
        loop {
            if let Some(result) = state.ready.remove(&index) {
                return result;
            }
            assert!(!state.is_stopped, "a decoding thread panicked");
            let waited = self.changed.wait_timeout(state, PATIENCE);
            state = waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
            still_wanted()?;
        }
    }

    pub(super) fn delivered(&self, buffer: Vec<u8>) {
        let mut state = self.lock();
        state.next_delivery += 1;
        state.free.push(buffer);
        drop(state);
        self.changed.notify_all();
    }

    pub(super) fn stop(&self) {
        self.lock().is_stopped = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, WindowState> {
        lock(&self.state)
    }
}

/// Ends the workers however the delivery ends.
pub(super) struct StopAtEnd<'a>(pub(super) &'a Window);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Ends the delivery, which would wait for ever, where a worker panics.
pub(super) struct StopAtPanic<'a>(pub(super) &'a Window);

impl Drop for StopAtPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop();
        }
    }
}
