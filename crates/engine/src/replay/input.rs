//! The bytes of a backup: read once to be validated, and from any place to be applied.
//!
//! A file could be another by the second time. So what was validated is remembered piece by piece, and no piece is handed on
//! that is not the same. An archive's segments are compared with its signed manifest whenever they are read.

use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rdb::Report;

use crate::archive::{Archive, FileReader};
use crate::control::Control;
use crate::duplicate::{SpillFile, invalid};
use crate::error::{Error, Kind};
use crate::keys::Identity;

const VALIDATE: &str = "validate backup";
const READ: &str = "read backup";
/// Bytes of a file that are read and remembered as one piece.
const PIECE_BYTES: usize = 1024 * 1024;
/// Threads that decode a backup: its segments take 8 MiB each, twice.
const WORKERS: usize = 1;

/// One RDB: of an engine, or of a shard of a cluster.
pub enum Input {
    /// A file of a disk that nobody writes to.
    File(File),
    /// A stored one, and what tells it from all others.
    Archive(Box<FileReader>, String),
}

/// An RDB that is valid to its last byte.
pub struct Valid {
    input: Input,
    /// What the validator said.
    pub report: Report,
    /// When it was written, Unix milliseconds, where it says so.
    pub written_ms: Option<i64>,
    /// What tells it from all others.
    pub identity: String,
    /// Of each piece of a file, when it was validated.
    pieces: Vec<[u8; 32]>,
    /// The piece that is being handed on: what is asked for lies there, but for what began earlier.
    delivered: RefCell<Piece>,
    other: RefCell<Piece>,
}

/// A piece of a file that is the one that was validated.
#[derive(Default)]
struct Piece {
    number: usize,
    bytes: Vec<u8>,
}

impl Input {
    /// Every file of an archive.
    ///
    /// # Errors
    /// As [`FileReader::new`].
    pub fn all(archive: &Archive, identity: &Identity) -> Result<Vec<Self>, Error> {
        let name = archive.manifest_blake3();
        (0..archive.manifest().files().len())
            .map(|shard| {
                let reader = FileReader::new(archive.clone(), identity.clone(), shard)?;
                Ok(Self::Archive(Box::new(reader), format!("{name}:{shard}")))
            })
            .collect()
    }

    /// Validates all of it. Bytes of `control` are counted.
    ///
    /// # Errors
    /// [`Kind::Malformed`] with number and offset; what cannot be read; those of [`Control::check`].
    pub fn validate(self, spill: &Path, control: &Control) -> Result<Valid, Error> {
        let mut validator = SpillFile::validator(spill)?.accept_trailing_bytes();
        let (mut pieces, mut identity) = (Vec::new(), blake3::Hasher::new());
        let mut take = |piece: &[u8]| {
            validator
                .feed(piece, &mut ())
                .map_err(|e| invalid(VALIDATE, &e))?;
            control
                .bytes_done
                .fetch_add(piece.len() as u64, std::sync::atomic::Ordering::Relaxed);
            control.check(VALIDATE)
        };
        let named = match &self {
            Self::Archive(reader, identity) => {
                reader.read_once(control, WORKERS, take)?;
                Some(identity.clone())
            }
            Self::File(file) => {
                let mut piece = vec![0; PIECE_BYTES];
                loop {
                    let count = fill(file, pieces.len() as u64 * PIECE_BYTES as u64, &mut piece)?;
                    let digest = *blake3::hash(&piece[..count]).as_bytes();
                    identity.update(&digest);
                    pieces.push(digest);
                    take(&piece[..count])?;
                    if count < PIECE_BYTES {
                        break None;
                    }
                }
            }
        };
        let report = validator.finish().map_err(|e| invalid(VALIDATE, &e))?;
        Ok(Valid {
            input: self,
            written_ms: report.written_ms(),
            identity: named.unwrap_or_else(|| identity.finalize().to_string()),
            report,
            pieces,
            delivered: RefCell::default(),
            other: RefCell::default(),
        })
    }

    /// Bytes of all of it.
    ///
    /// # Errors
    /// The file does not say.
    pub fn bytes(&self) -> Result<u64, Error> {
        match self {
            Self::Archive(reader, _) => Ok(reader.bytes()),
            Self::File(file) => Ok(file.metadata().map_err(cannot_read)?.len()),
        }
    }
}

impl Valid {
    /// Hands what stands from `offset` on to `push`, in order.
    ///
    /// # Errors
    /// [`Kind::Tampered`] where it is not what was validated; what cannot be read; what `push` returns.
    pub fn read(
        &self,
        offset: u64,
        control: &Control,
        mut push: impl FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let file = match &self.input {
            Input::Archive(reader, _) => return reader.read_from(offset, control, WORKERS, push),
            Input::File(file) => file,
        };
        let first = usize::try_from(offset / PIECE_BYTES as u64).unwrap_or(usize::MAX);
        let mut skipped = (offset % PIECE_BYTES as u64) as usize;
        for number in first..self.pieces.len() {
            control.check(READ)?;
            self.fetch(file, number, &mut self.delivered.borrow_mut())?;
            push(self.delivered.borrow().bytes.get(skipped..).unwrap_or_default())?;
            skipped = 0;
        }
        Ok(())
    }

    /// Fills `buffer` with what stands from `offset` on.
    ///
    /// # Errors
    /// As [`Valid::read`].
    pub fn read_at(&self, mut offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
        let file = match &self.input {
            Input::Archive(reader, _) => return reader.read_at(offset, buffer),
            Input::File(file) => file,
        };
        let mut rest = buffer;
        while !rest.is_empty() {
            let number = usize::try_from(offset / PIECE_BYTES as u64).unwrap_or(usize::MAX);
            let from = (offset % PIECE_BYTES as u64) as usize;
            let delivered = self.delivered.borrow();
            let mut other = self.other.borrow_mut();
            let piece = match delivered.number == number && !delivered.bytes.is_empty() {
                true => &delivered,
                false => {
                    if other.number != number || other.bytes.is_empty() {
                        self.fetch(file, number, &mut other)?;
                    }
                    &*other
                }
            };
            let some = piece.bytes.get(from..).unwrap_or_default();
            if some.is_empty() {
                return Err(Error::new(Kind::Tampered, READ, "the file became shorter"));
            }
            let some = &some[..some.len().min(rest.len())];
            let (now, later) = rest.split_at_mut(some.len());
            now.copy_from_slice(some);
            offset += some.len() as u64;
            rest = later;
        }
        Ok(())
    }

    /// Reads a piece that must be the one that was validated.
    fn fetch(&self, file: &File, number: usize, into: &mut Piece) -> Result<(), Error> {
        into.bytes.resize(PIECE_BYTES, 0);
        let count = fill(file, number as u64 * PIECE_BYTES as u64, &mut into.bytes)?;
        into.bytes.truncate(count);
        into.number = number;
        if self.pieces.get(number) == Some(blake3::hash(&into.bytes).as_bytes()) {
            return Ok(());
        }
        into.bytes.clear();
        let context = format!("the file changed after it was validated, in its piece {number} of 1 MiB");
        Err(Error::new(Kind::Tampered, READ, context))
    }
}

/// As many bytes as there are and fit.
fn fill(file: &File, offset: u64, into: &mut [u8]) -> Result<usize, Error> {
    let mut done = 0;
    while done < into.len() {
        match file.read_at(&mut into[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(cannot_read(error)),
        }
    }
    Ok(done)
}

fn cannot_read(error: std::io::Error) -> Error {
    Error::io(Kind::Io, READ, "the file", error)
}
