//! Writes new files past the page cache.
//!
//! What is written here is read again much later or never, by another process: a segment, the file of a generation
//! that has loaded already. Through the page cache every byte would be copied into fresh memory, which on a busy host
//! costs more than all decoding (measured: 1.4 of 12 CPU seconds of a restore), and would push out what is in use.
//! Where the file system cannot do it (tmpfs, some network file systems) the same bytes go the usual way.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

/// Addresses, offsets and lengths of direct writes are multiples of this: the largest logical block in use.
const ALIGNMENT: usize = 4096;
/// Bytes per write: fewer, larger writes keep a disk busy with less work for the processor.
const BUFFER_BYTES: usize = 1024 * 1024;

/// A new file that is written from its start to its end. Memory: 1 MiB.
pub(crate) struct DirectFile {
    file: File,
    /// Longer than [`BUFFER_BYTES`] by the bytes before `start`; never grows, so its address stays.
    buffer: Vec<u8>,
    /// The first aligned place in the buffer.
    start: usize,
    filled: usize,
    written: u64,
}

impl DirectFile {
    /// Creates the file with mode 0600.
    ///
    /// # Errors
    /// It exists already, or cannot be made.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let open = |flags: OFlags| {
            OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .custom_flags(flags.bits().cast_signed())
                .open(path)
        };
        let file = match open(OFlags::DIRECT) {
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => {
                // The kernel has made the file before it found out.
                match std::fs::remove_file(path) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                    _ => open(OFlags::empty())?,
                }
            }
            opened => opened?,
        };
        let buffer = vec![0; BUFFER_BYTES + ALIGNMENT];
        let start = buffer.as_ptr().align_offset(ALIGNMENT);
        Ok(Self {
            file,
            buffer,
            start,
            filled: 0,
            written: 0,
        })
    }

    /// Appends the bytes.
    ///
    /// # Errors
    /// No room, or the disk failed.
    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = BUFFER_BYTES - self.filled;
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            let at = self.start + self.filled;
            self.buffer[at..at + now.len()].copy_from_slice(now);
            self.filled += now.len();
            bytes = later;
            if self.filled == BUFFER_BYTES {
                self.pass_on(BUFFER_BYTES)?;
            }
        }
        Ok(())
    }

    /// Writes what is left; the file has its length then. Nothing is durable before it is synced.
    ///
    /// # Errors
    /// As [`DirectFile::write`].
    pub(crate) fn finish(mut self) -> io::Result<File> {
        if self.filled > 0 {
            let length = self.written + self.filled as u64;
            let whole = self.filled.next_multiple_of(ALIGNMENT);
            self.buffer[self.start + self.filled..self.start + whole].fill(0);
            self.pass_on(whole)?;
            self.file.set_len(length)?;
        }
        Ok(self.file)
    }

    fn pass_on(&mut self, length: usize) -> io::Result<()> {
        self.file
            .write_all(&self.buffer[self.start..self.start + length])?;
        self.written += length as u64;
        self.filled = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_any_length_is_written_as_it_is() {
        let folder = std::env::temp_dir().join(format!("cachekeep-direct-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let bytes: Vec<u8> = (0..3 * BUFFER_BYTES + 5).map(|at| (at % 251) as u8).collect();
        for length in [
            0,
            1,
            4095,
            4096,
            4097,
            BUFFER_BYTES,
            BUFFER_BYTES + 1,
            bytes.len(),
        ] {
            let path = folder.join(length.to_string());
            let mut file = DirectFile::create(&path).unwrap();
            for piece in bytes[..length].chunks(777_777) {
                file.write(piece).unwrap();
            }
            file.finish().unwrap();
            assert!(std::fs::read(&path).unwrap() == bytes[..length], "{length} bytes");
            assert!(
                DirectFile::create(&path).is_err(),
                "an existing file is left alone"
            );
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
