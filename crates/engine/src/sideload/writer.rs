//! Writes a file on a thread of its own, so that validating goes on while the disk is written.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use crate::direct::DirectFile;
use crate::error::{Error, Kind};
use crate::priority;

/// Memory: `BUFFER_BYTES` times (`BUFFERS` in flight, one that is filled, one that is written) and the file's own
/// buffer = 4 MiB. Enough to bridge the moments in which the disk is busy with something else.
const BUFFER_BYTES: usize = 512 * 1024;
const BUFFERS: usize = 4;

pub(super) struct Writer {
    filled: Option<SyncSender<Vec<u8>>>,
    emptied: Receiver<Vec<u8>>,
    thread: Option<JoinHandle<std::io::Result<()>>>,
    buffer: Vec<u8>,
    path: PathBuf,
}

impl Writer {
    /// # Errors
    /// [`Kind::Io`] where the file exists already or cannot be made.
    pub(super) fn create(path: &Path) -> Result<Self, Error> {
        let failed = |e| Error::io(Kind::Io, "write placed data", path.display().to_string(), e);
        let file = DirectFile::create(path).map_err(failed)?;
        let (filled, to_write) = sync_channel::<Vec<u8>>(BUFFERS);
        let (give_back, emptied) = sync_channel(BUFFERS + 2);
        let thread = std::thread::Builder::new()
            .name("sideload-write".to_owned())
            .spawn(move || {
                priority::let_engines_go_first();
                write_all(file, &to_write, &give_back)
            })
            .map_err(failed)?;
        Ok(Self {
            filled: Some(filled),
            emptied,
            thread: Some(thread),
            buffer: Vec::with_capacity(BUFFER_BYTES),
            path: path.to_owned(),
        })
    }

    /// # Errors
    /// [`Kind::Io`], [`Kind::StoreFull`]: of this piece or of an earlier one.
    pub(super) fn write(&mut self, mut piece: &[u8]) -> Result<(), Error> {
        while !piece.is_empty() {
            let room = BUFFER_BYTES - self.buffer.len();
            let (now, later) = piece.split_at(room.min(piece.len()));
            self.buffer.extend_from_slice(now);
            piece = later;
            if self.buffer.len() == BUFFER_BYTES {
                self.pass_on()?;
            }
        }
        Ok(())
    }

    /// Returns when all is in the file.
    ///
    /// # Errors
    /// As [`Writer::write`].
    pub(super) fn finish(mut self) -> Result<(), Error> {
        self.pass_on()?;
        self.join()
    }

    fn pass_on(&mut self) -> Result<(), Error> {
        let empty = match self.emptied.try_recv() {
            Ok(buffer) => buffer,
            Err(_none_yet) => Vec::with_capacity(BUFFER_BYTES),
        };
        let full = std::mem::replace(&mut self.buffer, empty);
        match &self.filled {
            Some(filled) if filled.send(full).is_ok() => Ok(()),
            // The thread has ended, so it has failed.
            _ => self.join(),
        }
    }

    fn join(&mut self) -> Result<(), Error> {
        self.filled = None;
        let Some(thread) = self.thread.take() else {
            let context = format!("{}: failed before", self.path.display());
            return Err(Error::new(Kind::Io, "write placed data", context));
        };
        match thread.join() {
            Ok(written) => written
                .map_err(|e| Error::io(Kind::Io, "write placed data", self.path.display().to_string(), e)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

/// An abandoned writer leaves no thread behind that still writes.
impl Drop for Writer {
    fn drop(&mut self) {
        self.filled = None;
        if let Some(thread) = self.thread.take() {
            // The file is abandoned: how its thread ended does not matter.
            let _abandoned = thread.join();
        }
    }
}

fn write_all(
    mut file: DirectFile,
    to_write: &Receiver<Vec<u8>>,
    give_back: &SyncSender<Vec<u8>>,
) -> std::io::Result<()> {
    for mut buffer in to_write {
        file.write(&buffer)?;
        buffer.clear();
        // A full or closed channel: the buffer is simply freed.
        let _freed = give_back.try_send(buffer);
    }
    file.finish().map(drop)
}
