//! Following what is written to primaries that go on serving, so that other nodes come to hold the same.
//!
//! ```text
//! primary ──replication stream──> Follower (thread) ──file──> Trail: which keys were written
//!                                                                │ database and key
//! primary ──DUMP, PEXPIRETIME────────────────────────────────────┴──> RESTORE or UNLINK ──> the new primaries
//! ```
//!
//! The stream says which keys were written, and not what is to be done to them elsewhere: what a written key *is* is read
//! from the primary, and the new one is given that. So a command may be followed twice, late, or after one that came
//! behind it, and a key that has expired there by a late look and lives on here (its time was put off meanwhile) is given
//! back (ADR 42). What is asked for at last, while nobody may write, makes both the same.
//!
//! Memory: 8 MiB for keys, 1 MiB for each primary and each new one; a value is passed on in pieces. The stream waits in
//! files without names.

mod commands;
mod copy;
mod trail;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::duplicate::nameless;
use crate::error::{Error, Kind};
use crate::node::{Endpoint, Node, Reply};

pub use copy::{Following, Halted};

const FOLLOW: &str = "follow writes";
/// How often the primary hears that we are there: it gives up whom it has not heard of for a minute.
const ALIVE_EVERY: Duration = Duration::from_secs(1);
/// Longest silence of the socket before somebody looks whether the stream is still wanted.
const SLICE: Duration = Duration::from_millis(100);
const READ_BYTES: usize = 256 * 1024;

/// A connection that receives what a primary replicates, from an offset on, into a file without a name.
#[derive(Debug)]
pub struct Follower {
    shared: Arc<Shared>,
    endpoint: Endpoint,
    /// Offset of the byte before the file's first.
    base: i64,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    file: File,
    received: AtomicU64,
    is_unwanted: AtomicBool,
    failure: Mutex<Option<Error>>,
}

impl Shared {
    fn failure(&self) -> MutexGuard<'_, Option<Error>> {
        self.failure
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Follower {
    /// Follows the primary from behind this offset of its history on: that of a snapshot which is being taken of it or of a
    /// replica of it. `directory` is that of the file.
    ///
    /// It never says how far it is, so no client that waits for replicas takes it for one.
    ///
    /// # Errors
    /// [`Kind::Refused`] where the primary does not have any more what came behind the offset, or is none; [`Kind::Io`]; as
    /// [`Node::connect`].
    pub fn attach(primary: &Endpoint, replid: &str, offset: i64, directory: &Path) -> Result<Self, Error> {
        let shared = Arc::new(Shared {
            file: nameless(directory)?,
            received: AtomicU64::new(0),
            is_unwanted: AtomicBool::new(false),
            failure: Mutex::new(None),
        });
        let mut node = Node::connect(primary)?;
        node.run(&["REPLCONF", "capa", "eof", "capa", "psync2"])?;
        match node.run(&["PSYNC", replid, &(offset + 1).to_string()])? {
            Reply::Simple(line) if line.starts_with("CONTINUE") => {}
            other => {
                let context = format!(
                    "{}: what was written since the snapshot is not there any more ({other:?})",
                    node.label()
                );
                return Err(Error::new(Kind::Refused, FOLLOW, context));
            }
        }
        node.set_timeout(SLICE)?;
        let receiving = shared.clone();
        let thread = std::thread::Builder::new()
            .name("follow".to_owned())
            .spawn(move || {
                if let Err(error) = receive(&mut node, &receiving) {
                    *receiving.failure() = Some(error);
                }
            })
            .map_err(|e| Error::io(Kind::Io, FOLLOW, "no thread", e))?;
        Ok(Self {
            shared,
            endpoint: primary.clone(),
            base: offset,
            thread: Some(thread),
        })
    }

    /// The offset up to which everything has been received.
    fn offset(&self) -> i64 {
        self.base + i64::try_from(self.shared.received.load(Ordering::Acquire)).unwrap_or(i64::MAX)
    }

    /// # Errors
    /// Why nothing is received any more: the primary is gone, is none any more, or the disk is full.
    fn check(&self) -> Result<(), Error> {
        match &*self.shared.failure() {
            None => Ok(()),
            Some(error) => Err(Error::new(error.kind, FOLLOW, crate::error::chain(error))),
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.shared.is_unwanted.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

fn receive(node: &mut Node, shared: &Shared) -> Result<(), Error> {
    let mut buffer = vec![0; READ_BYTES];
    let mut said: Option<Instant> = None;
    while !shared.is_unwanted.load(Ordering::Acquire) {
        if said.is_none_or(|at| at.elapsed() >= ALIVE_EVERY) {
            node.send(&[b"REPLCONF", b"ACK", b"0"])?;
            said = Some(Instant::now());
        }
        let count = match node.read_some(&mut buffer) {
            Err(e) if e.kind == Kind::Idle => continue,
            count => count?,
        };
        let at = shared.received.load(Ordering::Relaxed);
        shared.file.write_all_at(&buffer[..count], at).map_err(|e| {
            let kind = match e.kind() {
                std::io::ErrorKind::StorageFull => Kind::StoreFull,
                _ => Kind::Io,
            };
            Error::io(kind, FOLLOW, "writing down what was written", e)
        })?;
        shared.received.store(at + count as u64, Ordering::Release);
    }
    Ok(())
}
