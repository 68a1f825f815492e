//! The threads that compress, encrypt, hash and store segments.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard};
use std::thread::Scope;

use crate::archive::{ObjectRecord, SegmentRecord, shard_segment_name};
use crate::control::Control;
use crate::error::{Error, Kind};
use crate::failpoint;
use crate::keys::Recipient;
use crate::segment::{SEGMENT_BYTES, Sealer};
use crate::spool::CHUNK_BYTES;
use crate::store::Store;

use super::PATIENCE;

/// Two keep up with the fastest engine measured, and their buffers fit the memory of a backup.
const SEALERS: usize = 2;
/// One plain segment being filled and one in each sealer.
const BUFFERS: usize = SEALERS + 1;

/// A segment to store.
pub(super) struct Job {
    pub(super) index: usize,
    /// Its plain bytes.
    pub(super) piece: Vec<u8>,
}

/// The cutter's end: where segments go and emptied buffers come from.
pub(super) struct Jobs {
    queue: SyncSender<Job>,
    free: Receiver<Vec<u8>>,
    /// Buffers not made yet.
    unmade: usize,
}

impl Jobs {
    pub(super) fn first_buffer(&mut self) -> Vec<u8> {
        self.make_buffer()
    }

    /// An empty buffer for a segment; waits for a sealer to end where all are in use.
    pub(super) fn buffer(&mut self, still_wanted: &impl Fn() -> Result<(), Error>) -> Result<Vec<u8>, Error> {
        if self.unmade > 0 {
            return Ok(self.make_buffer());
        }
        loop {
            match self.free.recv_timeout(PATIENCE) {
                Ok(buffer) => return Ok(buffer),
                Err(RecvTimeoutError::Timeout) => still_wanted()?,
                Err(RecvTimeoutError::Disconnected) => return still_wanted().and(Err(sealers_gone())),
            }
        }
    }

    /// Hands over a segment. There is room for every buffer there is, so this never waits.
    pub(super) fn send(&self, job: Job) -> Result<(), Error> {
        self.queue.send(job).map_err(|_| sealers_gone())
    }

    fn make_buffer(&mut self) -> Vec<u8> {
        self.unmade -= 1;
        // The rest of an earlier cut is below a segment, and a chunk comes on top of it; what does not compress
        // grows by a little more when it is sealed in place.
        Vec::with_capacity(SEGMENT_BYTES + 2 * CHUNK_BYTES)
    }
}

/// Shared by the sealers and their caller.
pub(super) struct Sealing<'a> {
    store: &'a Store,
    prefix: &'a str,
    recipient: &'a Recipient,
    shard: usize,
    is_stopped: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    stored: Vec<(usize, ObjectRecord)>,
    failure: Option<Error>,
}

impl<'a> Sealing<'a> {
    pub(super) fn new(store: &'a Store, prefix: &'a str, recipient: &'a Recipient, shard: usize) -> Self {
        Self {
            store,
            prefix,
            recipient,
            shard,
            is_stopped: AtomicBool::new(false),
            state: Mutex::default(),
        }
    }

    /// Starts the threads; they end when the queue is dropped or on [`Sealing::stop`].
    pub(super) fn start<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) -> Jobs {
        let (queue, jobs) = sync_channel(BUFFERS);
        let (freed, free) = sync_channel(BUFFERS);
        let jobs = std::sync::Arc::new(Mutex::new(jobs));
        for _ in 0..SEALERS {
            let (jobs, freed) = (jobs.clone(), freed.clone());
            scope.spawn(move || {
                if let Err(e) = self.seal_all(&jobs, &freed) {
                    self.stop();
                    self.lock().failure.get_or_insert(e);
                }
            });
        }
        Jobs {
            queue,
            free,
            unmade: BUFFERS,
        }
    }

    fn seal_all(&self, jobs: &Mutex<Receiver<Job>>, freed: &SyncSender<Vec<u8>>) -> Result<(), Error> {
        let mut sealer = Sealer::new(self.recipient)?;
        loop {
            let next = jobs
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner())
                .recv();
            let Ok(Job { index, mut piece }) = next else {
                return Ok(());
            };
            if self.is_stopped.load(Ordering::Relaxed) {
                return Ok(());
            }
            let name = shard_segment_name(self.shard, index);
            let sealed = sealer.seal(&mut piece)?;
            let emptied = self
                .store
                .put_buffer(&format!("{}/{name}", self.prefix), piece, &|| self.wanted())?;
            let record = ObjectRecord::new(name, sealed);
            self.lock().stored.push((index, record));
            failpoint::hit("backup.first_segment_stored")?;
            // Nobody waits for it where the cutter has gone.
            let _gone = freed.send(emptied);
        }
    }

    /// The failure of a sealer, once.
    pub(super) fn check(&self) -> Result<(), Error> {
        self.lock().failure.take().map_or(Ok(()), Err)
    }

    fn wanted(&self) -> Result<(), Error> {
        match self.is_stopped.load(Ordering::Relaxed) {
            true => Err(Error::new(Kind::Cancelled, "store segments", "nobody wants them")),
            false => Ok(()),
        }
    }

    /// Segments that wait are not stored any more, and those that are being sent are given up.
    pub(super) fn stop(&self) {
        self.is_stopped.store(true, Ordering::Relaxed);
    }

    /// Waits until every segment is stored and completes their records. Counts the bytes stored.
    pub(super) fn finish(
        &self,
        jobs: Jobs,
        mut segments: Vec<SegmentRecord>,
        control: &Control,
    ) -> Result<Vec<SegmentRecord>, Error> {
        drop(jobs.queue);
        loop {
            let mut state = self.lock();
            if let Some(e) = state.failure.take() {
                return Err(e);
            }
            let done = state.stored.iter().map(|(_, object)| object.plain_bytes).sum();
            control.bytes_done.store(done, Ordering::Relaxed);
            if state.stored.len() == segments.len() {
                for (index, object) in state.stored.drain(..) {
                    segments[index].object = object;
                }
                return Ok(segments);
            }
            drop(state);
            control.check("store segments")?;
            // A buffer comes back with each segment; when all sealers have ended none comes any more.
            if let Err(RecvTimeoutError::Disconnected) = jobs.free.recv_timeout(PATIENCE) {
                let state = self.lock();
                assert!(
                    state.failure.is_some() || state.stored.len() == segments.len(),
                    "a sealing thread panicked"
                );
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

fn sealers_gone() -> Error {
    Error::new(Kind::Store, "store segments", "the storing threads ended early")
}
