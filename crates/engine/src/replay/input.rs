//! The bytes of a backup: read once to be validated, and from any place to be applied.
//!
//! A file could be another by the second time. So what was validated is remembered piece by piece, and no piece is handed on
//! that is not the same. An archive's segments are compared with its signed manifest whenever they are read.

use std::cell::RefCell;
use std::fs::File;
use std::num::NonZero;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::Ordering;

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
/// Smaller files are validated before other threads have begun.
const SHARED_BYTES_MIN: u64 = 8 * 1024 * 1024;
/// Threads that validate parts of a file: more wait for the one that finds the parts.
const READERS_MAX: usize = 4;
/// Threads that decode a backup: its segments take 8 MiB each, twice.
const WORKERS: usize = 1;

/// One RDB: of an engine, or of a shard of a cluster.
pub enum Input {
    /// A file of a disk that nobody writes to.
    File(File),
    /// A stored one, and what tells it from all others.
    Archive(Box<FileReader>, String),
}

/// Digests of the pieces of a file.
type Pieces = Vec<[u8; 32]>;

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
    pieces: Pieces,
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
        let (report, identity, pieces) = match &self {
            Self::Archive(reader, identity) => {
                // No target hears of a backup that is not whole.
                reader.check_details()?;
                let mut validator = SpillFile::validator(spill)?.accept_trailing_bytes();
                reader.read_once(control, WORKERS, |piece| {
                    validator
                        .feed(piece, &mut ())
                        .map_err(|e| invalid(VALIDATE, &e))?;
                    control
                        .bytes_done
                        .fetch_add(piece.len() as u64, Ordering::Relaxed);
                    control.check(VALIDATE)
                })?;
                let report = validator.finish().map_err(|e| invalid(VALIDATE, &e))?;
                (report, identity.clone(), Vec::new())
            }
            Self::File(file) => {
                let (report, pieces) = validate_file(file, spill, control)?;
                let mut identity = blake3::Hasher::new();
                for digest in &pieces {
                    identity.update(digest);
                }
                (report, identity.finalize().to_string(), pieces)
            }
        };
        Ok(Valid {
            input: self,
            written_ms: report.written_ms(),
            identity,
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

/// A file that is read from its start to its end, and remembered.
struct Remembered<'a> {
    file: &'a File,
    control: &'a Control,
    at: u64,
    hasher: blake3::Hasher,
    pieces: Pieces,
}

impl<'a> Remembered<'a> {
    fn new(file: &'a File, control: &'a Control) -> Self {
        Self {
            file,
            control,
            at: 0,
            hasher: blake3::Hasher::new(),
            pieces: Vec::new(),
        }
    }

    /// Some bytes, none of the next piece. 0: the end.
    fn read(&mut self, into: &mut [u8]) -> Result<usize, Error> {
        self.control.check(VALIDATE)?;
        let left = PIECE_BYTES - (self.at % PIECE_BYTES as u64) as usize;
        let wanted = left.min(into.len());
        let count = fill(self.file, self.at, &mut into[..wanted])?;
        self.hasher.update(&into[..count]);
        self.at += count as u64;
        if count == left {
            self.end_piece();
        }
        self.control.bytes_done.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }

    fn end_piece(&mut self) {
        self.pieces.push(*self.hasher.finalize().as_bytes());
        self.hasher.reset();
    }

    /// Of each piece, the last of which is not whole, and may be empty.
    fn pieces(mut self) -> Pieces {
        self.end_piece();
        self.pieces
    }
}

/// Validates a file, and returns what its pieces were meanwhile: by several threads where it is large and valid.
fn validate_file(file: &File, spill: &Path, control: &Control) -> Result<(Report, Pieces), Error> {
    let threads = std::thread::available_parallelism()
        .map_or(1, NonZero::get)
        .min(READERS_MAX);
    let bytes = file.metadata().map_err(cannot_read)?.len();
    if threads > 1
        && bytes >= SHARED_BYTES_MIN
        && let Some(valid) = validate_by_threads(file, threads, spill, control)?
    {
        return Ok(valid);
    }
    let mut reading = Remembered::new(file, control);
    let mut validator = SpillFile::validator(spill)?.accept_trailing_bytes();
    let mut piece = vec![0; rdb::FEED_BYTES];
    loop {
        match reading.read(&mut piece)? {
            0 => break,
            count => validator
                .feed(&piece[..count], &mut ())
                .map_err(|e| invalid(VALIDATE, &e))?,
        }
    }
    let report = validator.finish().map_err(|e| invalid(VALIDATE, &e))?;
    Ok((report, reading.pieces()))
}

/// `None`: one thread has to read it, to say what is wrong with it.
fn validate_by_threads(
    file: &File,
    threads: usize,
    spill: &Path,
    control: &Control,
) -> Result<Option<(Report, Pieces)>, Error> {
    let mut unmade = None;
    let spills = rdb::parallel::Spills {
        keys: Box::new(SpillFile::create(spill)?),
        members: || -> std::io::Result<Box<dyn rdb::Spill + Send>> {
            match SpillFile::create(spill) {
                Ok(made) => Ok(Box::new(made)),
                Err(error) => {
                    unmade = Some(error);
                    Err(std::io::Error::other("told by itself"))
                }
            }
        },
    };
    let mut reading = Remembered::new(file, control);
    let mut failure = None;
    let read = |into: &mut [u8]| {
        reading.read(into).map_err(|error| {
            failure = Some(error);
            std::io::Error::other("told by itself")
        })
    };
    let done = rdb::parallel::validate(vec![(); threads + 1], Some(spills), read);
    match (failure.or(unmade), done) {
        (Some(error), _) => Err(error),
        (None, Err(error)) => Err(cannot_read(error)),
        (None, Ok(Some((report, _sinks)))) => Ok(Some((report, reading.pieces()))),
        (None, Ok(None)) => {
            control.bytes_done.fetch_sub(reading.at, Ordering::Relaxed);
            Ok(None)
        }
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
