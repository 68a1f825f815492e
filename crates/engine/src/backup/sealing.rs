//! The threads that compress, encrypt, hash and store segments.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard};
use std::thread::Scope;

use crate::archive::{ObjectRecord, SegmentRecord, shard_segment_name};
use crate::control::Control;
use crate::error::{Error, Kind};
use crate::failpoint;
use crate::key_index::{
    BlockFilter, INDEX_VERSION, IndexObject, OBJECT_FILTER_BYTES, SegmentIndex, object_name,
};
use crate::keys::Recipient;
use crate::priority;
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
    /// The keys that begin in it.
    pub(super) filters: Vec<BlockFilter>,
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
    is_indexed: bool,
    is_stopped: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    stored: Vec<(usize, ObjectRecord)>,
    /// Of segments that are stored, for the next index object.
    index: Vec<SegmentIndex>,
    index_bytes: usize,
    index_begun: usize,
    index_objects: Vec<(usize, ObjectRecord)>,
    failure: Option<Error>,
}

impl<'a> Sealing<'a> {
    /// `is_indexed`: keys are to be found by an index, which an archive of several shards has not.
    pub(super) fn new(
        store: &'a Store,
        prefix: &'a str,
        recipient: &'a Recipient,
        shard: usize,
        is_indexed: bool,
    ) -> Self {
        Self {
            store,
            prefix,
            recipient,
            shard,
            is_indexed,
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
                priority::let_engines_go_first();
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
            let Ok(Job {
                index,
                mut piece,
                filters,
            }) = next
            else {
                return Ok(());
            };
            if self.is_stopped.load(Ordering::Relaxed) {
                return Ok(());
            }
            let name = shard_segment_name(self.shard, index);
            let mut sealed = sealer.seal(&mut piece)?;
            let mut emptied = self
                .store
                .put_buffer(&format!("{}/{name}", self.prefix), piece, &|| self.wanted())?;
            let blocks = std::mem::take(&mut sealed.blocks);
            let record = ObjectRecord::new(name, sealed);
            let due = {
                let mut state = self.lock();
                state.stored.push((index, record));
                match self.is_indexed {
                    true => state.add_to_index(SegmentIndex::new(index, blocks, filters)),
                    false => None,
                }
            };
            if let Some((number, segments)) = due {
                emptied = self.store_index(&mut sealer, number, segments, emptied)?;
            }
            failpoint::hit("backup.first_segment_stored")?;
            // Nobody waits for it where the cutter has gone.
            let _gone = freed.send(emptied);
        }
    }

    /// Stores an index object out of `buffer`, which is empty before and after.
    fn store_index(
        &self,
        sealer: &mut Sealer<'_>,
        number: usize,
        segments: Vec<SegmentIndex>,
        mut buffer: Vec<u8>,
    ) -> Result<Vec<u8>, Error> {
        let object = IndexObject {
            version: INDEX_VERSION,
            segments,
        };
        serde_json::to_writer(&mut buffer, &object)
            .map_err(|e| Error::new(Kind::Store, "write index", "as JSON").because(e))?;
        drop(object);
        let sealed = sealer.seal(&mut buffer)?;
        let name = object_name(number);
        let emptied = self
            .store
            .put_buffer(&format!("{}/{name}", self.prefix), buffer, &|| self.wanted())?;
        let record = ObjectRecord::new(name, sealed);
        self.lock().index_objects.push((number, record));
        Ok(emptied)
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

    /// Waits until every segment and the index are stored and completes their records. Counts the bytes stored.
    pub(super) fn finish(
        &self,
        jobs: Jobs,
        segments: &mut [SegmentRecord],
        index: &mut Vec<ObjectRecord>,
        control: &Control,
    ) -> Result<(), Error> {
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
                break;
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
        // A sealer that has stored a segment may still be at an index object.
        while jobs.free.recv_timeout(PATIENCE) != Err(RecvTimeoutError::Disconnected) {
            control.check("store index")?;
            self.check()?;
        }
        self.check()?;
        let rest = self.lock().rest_of_index();
        if let Some((number, rest)) = rest {
            self.store_index(&mut Sealer::new(self.recipient)?, number, rest, Vec::new())?;
        }
        let mut objects = std::mem::take(&mut self.lock().index_objects);
        objects.sort_by_key(|(number, _)| *number);
        index.extend(objects.into_iter().map(|(_, object)| object));
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl State {
    /// Takes the index of one more segment; what is to be stored now, and as which object.
    fn add_to_index(&mut self, segment: SegmentIndex) -> Option<(usize, Vec<SegmentIndex>)> {
        self.index_bytes += segment.bytes();
        self.index.push(segment);
        match self.index_bytes >= OBJECT_FILTER_BYTES {
            true => self.rest_of_index(),
            false => None,
        }
    }

    fn rest_of_index(&mut self) -> Option<(usize, Vec<SegmentIndex>)> {
        if self.index.is_empty() {
            return None;
        }
        self.index_bytes = 0;
        self.index_begun += 1;
        Some((self.index_begun - 1, std::mem::take(&mut self.index)))
    }
}

fn sealers_gone() -> Error {
    Error::new(Kind::Store, "store segments", "the storing threads ended early")
}
