//! The queue between the thread that drains the source and everything behind it.
//!
//! Draining must never wait for the store: a source whose replica does not read grows its output buffer, or
//! stalls the forked child that holds the snapshot in memory. So the queue keeps a few chunks in memory and, when
//! these are full, goes on into an unlinked file in the spool directory, used as a ring of fixed slots. Past the
//! limit of that file the capture is given up with a clear error instead of slowing the source.
//!
//! Memory: [`CHUNKS_IN_MEMORY`] + 2 chunks of [`CHUNK_BYTES`] (one being filled, one being consumed) = 4.5 MiB.

use std::collections::VecDeque;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

use crate::error::{Error, Kind};

/// Bytes of a chunk: large enough that the cost per chunk vanishes, small enough to stay in the second-level
/// cache between the socket and the validator.
pub const CHUNK_BYTES: usize = 256 * 1024;
/// Chunks kept in memory before the file is used: bridges the moments in which all workers sync a segment.
const CHUNKS_IN_MEMORY: usize = 16;

/// See the module. One producer, one consumer.
pub struct Spool {
    state: Mutex<State>,
    changed: Condvar,
    file: File,
    slots: u64,
}

#[derive(Default)]
struct State {
    /// Older than everything in the file.
    memory: VecDeque<Vec<u8>>,
    /// Lengths of the chunks in the file, oldest first. While not empty, new chunks go to the file.
    filed: VecDeque<usize>,
    /// Slot of the oldest and of the next chunk in the file.
    first_slot: u64,
    next_slot: u64,
    /// Emptied chunks for the producer.
    free: Vec<Vec<u8>>,
    bytes_filed: u64,
    end: Option<Result<(), Error>>,
    is_abandoned: bool,
}

impl Spool {
    /// Creates the spool file in `directory`, unlinked at once; it never holds more than `limit_bytes`.
    ///
    /// # Errors
    /// [`Kind::Io`], [`Kind::StoreFull`].
    pub fn create(directory: &Path, limit_bytes: u64) -> Result<Self, Error> {
        use rustix::fs::{Mode, OFlags};
        let failed =
            |e: std::io::Error| Error::io(Kind::Io, "create spool", directory.display().to_string(), e);
        std::fs::create_dir_all(directory).map_err(failed)?;
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file =
            rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR).map_err(|e| failed(e.into()))?;
        Ok(Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            file: File::from(file),
            slots: limit_bytes / CHUNK_BYTES as u64,
        })
    }

    /// A chunk for the producer to overwrite, [`CHUNK_BYTES`] of capacity.
    pub fn take_used(&self) -> Vec<u8> {
        let free = self.lock().free.pop();
        free.unwrap_or_else(|| Vec::with_capacity(CHUNK_BYTES))
    }

    /// Queues a chunk of at most [`CHUNK_BYTES`]. Never waits for the consumer.
    ///
    /// # Errors
    /// [`Kind::StoreFull`] where neither memory nor the file has room; [`Kind::Io`] where the file cannot be
    /// written; [`Kind::Cancelled`] after [`Spool::abandon`].
    pub fn push(&self, chunk: Vec<u8>) -> Result<(), Error> {
        let mut state = self.lock();
        if state.is_abandoned {
            return Err(Error::new(
                Kind::Cancelled,
                "spool snapshot",
                "nobody consumes it",
            ));
        }
        if state.filed.is_empty() && state.memory.len() < CHUNKS_IN_MEMORY {
            state.memory.push_back(chunk);
        } else {
            let slot = state.next_slot;
            if state.filed.len() as u64 >= self.slots {
                return Err(Error::new(
                    Kind::StoreFull,
                    "spool snapshot",
                    format!(
                        "the store is slower than the source and the spool holds its limit of {} bytes",
                        self.slots * CHUNK_BYTES as u64
                    ),
                ));
            }
            // The slot is nobody else's until it is in `filed`: written without holding up the consumer.
            drop(state);
            self.file
                .write_all_at(&chunk, slot * CHUNK_BYTES as u64)
                .map_err(|e| Error::io(Kind::Io, "spool snapshot", "write spool file", e))?;
            state = self.lock();
            state.bytes_filed += chunk.len() as u64;
            state.filed.push_back(chunk.len());
            state.next_slot = (slot + 1) % self.slots;
            state.free.push(chunk);
        }
        drop(state);
        self.changed.notify_one();
        Ok(())
    }

    /// Ends the queue. What was pushed is still delivered, except before an error, which comes at once.
    pub fn close(&self, end: Result<(), Error>) {
        self.lock().end = Some(end);
        self.changed.notify_one();
    }

    /// Tells the producer to stop.
    pub fn abandon(&self) {
        self.lock().is_abandoned = true;
    }

    /// Whether the consumer has gone.
    pub fn is_abandoned(&self) -> bool {
        self.lock().is_abandoned
    }

    /// Bytes that went through the file so far.
    pub fn bytes_filed(&self) -> u64 {
        self.lock().bytes_filed
    }

    /// The next chunk into `chunk`, waiting up to `patience`; the chunk's old buffer is used again.
    ///
    /// # Errors
    /// What [`Spool::close`] was given; [`Kind::Io`] where the file cannot be read.
    pub fn pop(&self, chunk: &mut Vec<u8>, patience: Duration) -> Result<Popped, Error> {
        let mut state = self.lock();
        if state.memory.is_empty() && state.filed.is_empty() && state.end.is_none() {
            let waited = self.changed.wait_timeout(state, patience);
            state = waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
        if matches!(state.end, Some(Err(_)))
            && let Some(Err(e)) = state.end.take()
        {
            return Err(e);
        }
        if let Some(next) = state.memory.pop_front() {
            let used = std::mem::replace(chunk, next);
            if used.capacity() >= CHUNK_BYTES {
                state.free.push(used);
            }
            return Ok(Popped::Chunk);
        }
        if let Some(&len) = state.filed.front() {
            let slot = state.first_slot;
            // Stays in `filed` while it is read: its slot must not be written.
            drop(state);
            chunk.reserve_exact(CHUNK_BYTES.saturating_sub(chunk.len()));
            chunk.resize(len, 0);
            self.file
                .read_exact_at(chunk, slot * CHUNK_BYTES as u64)
                .map_err(|e| Error::io(Kind::Io, "spool snapshot", "read spool file", e))?;
            let mut state = self.lock();
            state.filed.pop_front();
            state.first_slot = (slot + 1) % self.slots;
            return Ok(Popped::Chunk);
        }
        Ok(match state.end {
            None => Popped::Nothing,
            Some(_) => Popped::End,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// What [`Spool::pop`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Popped {
    /// The chunk holds the next bytes.
    Chunk,
    /// Nothing came within the patience.
    Nothing,
    /// Everything was delivered.
    End,
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_millis(1);

    fn numbered(number: u32) -> Vec<u8> {
        number.to_le_bytes().repeat(CHUNK_BYTES / 4 - number as usize % 7)
    }

    #[test]
    fn order_is_kept_over_memory_and_file_and_again() {
        let spool = Spool::create(&std::env::temp_dir(), 60 * CHUNK_BYTES as u64).unwrap();
        let mut chunk = Vec::new();
        let (mut pushed, mut popped) = (0, 0);
        for (pushes, pops) in [(10, 5), (40, 10), (20, 45), (30, 39), (10, 0), (0, 11)] {
            for _ in 0..pushes {
                spool.push(numbered(pushed)).unwrap();
                pushed += 1;
            }
            for _ in 0..pops {
                assert_eq!(spool.pop(&mut chunk, PATIENCE).unwrap(), Popped::Chunk);
                assert!(chunk == numbered(popped), "chunk {popped}");
                popped += 1;
            }
        }
        assert!(spool.bytes_filed() > 0);
        assert_eq!(spool.pop(&mut chunk, PATIENCE).unwrap(), Popped::Nothing);
        spool.close(Ok(()));
        assert_eq!(spool.pop(&mut chunk, PATIENCE).unwrap(), Popped::End);
    }

    #[test]
    fn limit_of_the_file_is_a_clear_error_that_comes_before_what_is_queued() {
        let spool = Spool::create(&std::env::temp_dir(), 3 * CHUNK_BYTES as u64).unwrap();
        for number in 0..CHUNKS_IN_MEMORY as u32 + 3 {
            spool.push(numbered(number)).unwrap();
        }
        let error = spool.push(numbered(0)).unwrap_err();
        assert_eq!(error.kind, Kind::StoreFull);
        spool.close(Err(error));
        let mut chunk = Vec::new();
        assert_eq!(spool.pop(&mut chunk, PATIENCE).unwrap_err().kind, Kind::StoreFull);
    }

    #[test]
    fn abandoned_spool_stops_its_producer() {
        let spool = Spool::create(&std::env::temp_dir(), 0).unwrap();
        spool.push(numbered(1)).unwrap();
        spool.abandon();
        assert_eq!(spool.push(numbered(2)).unwrap_err().kind, Kind::Cancelled);
    }
}
