//! What is written down so that a replay goes on where it was: a file that is replaced as a whole, a few times a second.
//!
//! Beside it, where conflicts are not to be overwritten, lies a file with a bit for each key of the backup: whether the target
//! had it before anything was written. So a key that is found there later is known to be our own or somebody else's.

use std::fs::{File, TryLockError};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use ring::rand::{SecureRandom as _, SystemRandom};
use serde::{Deserialize, Serialize};

use super::account::Account;
use super::lane::Bits;
use super::ledger::Position;
use crate::error::{Error, Kind};

const WRITE: &str = "write journal";
const READ: &str = "read journal";
/// Version of the file that this code writes and reads.
const VERSION: u32 = 2;
/// Of a file that is longer nothing is read: 700 names of 256 bytes take 800 KiB as numbers.
const BYTES_MAX: u64 = 8 * 1024 * 1024;

/// Unfinished values that are remembered.
const UNFINISHED_MAX: usize = 64;

/// How far a replay is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Keys are being applied.
    Applying,
    /// It is being found out which others the target has: after all are applied, unless others go first.
    Searching,
    /// Others are being removed.
    Removing,
    /// Nothing is left to do.
    Done,
}

/// A value that is made step by step under a name of ours, before it gets its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Unfinished {
    pub(super) db: u32,
    pub(super) name: String,
}

/// What is written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    version: u32,
    /// What tells this replay from every other: backup, target and what is asked for.
    pub(super) identity: String,
    /// When it was decided which keys have expired, Unix milliseconds.
    pub(super) judged_at_ms: i64,
    pub(super) stage: Stage,
    /// How often it was gone on with.
    pub(super) resumed: u32,
    /// All before it is done and counted.
    pub(super) position: Position,
    /// Keys from this one on were not sent.
    pub(super) sent_below: u64,
    pub(super) account: Account,
    /// Values that were being made when an attempt broke, the last ones: they may be there still.
    pub(super) unfinished: Vec<Unfinished>,
    /// What tells the unfinished values of this attempt from all others'.
    #[serde(skip)]
    pub(super) mark: String,
    /// See [`super::Outcome::is_unconfirmed`]: of this attempt or one before.
    pub(super) is_unconfirmed: bool,
}

impl State {
    pub(super) fn new(identity: String, judged_at_ms: i64) -> Self {
        Self {
            version: VERSION,
            identity,
            judged_at_ms,
            stage: Stage::Applying,
            resumed: 0,
            position: Position::default(),
            sent_below: 0,
            account: Account::default(),
            unfinished: Vec::new(),
            mark: String::new(),
            is_unconfirmed: false,
        }
    }

    /// Remembers a value, to be written down before the first of it is sent. Of more than 64 the oldest are forgotten: they were looked for
    /// and removed as often.
    pub(super) fn begin_value(&mut self, value: Unfinished) {
        self.unfinished.push(value);
        let over = self.unfinished.len().saturating_sub(UNFINISHED_MAX);
        self.unfinished.drain(..over);
    }

    /// Forgets the value that was begun last: it has its own name.
    pub(super) fn end_value(&mut self) {
        self.unfinished.pop();
    }

    /// Gives the next attempt a mark of its own: others that are at work with the target, and what is still on its way
    /// from an attempt before, then never write to its unfinished values. It begins with `label`.
    ///
    /// # Errors
    /// The random source fails.
    pub(super) fn mark(&mut self, label: &str) -> Result<(), Error> {
        let mut bytes = [0; 4];
        SystemRandom::new()
            .fill(&mut bytes)
            .map_err(|_unspecified| Error::new(Kind::Io, "mark unfinished values", "no random bytes"))?;
        self.mark = format!("{label}:{:08x}", u32::from_be_bytes(bytes));
        Ok(())
    }
}

/// The files, and the right to them.
pub(super) struct Journal {
    path: PathBuf,
    /// Held, so that no other process goes on with the same replay.
    _lock: File,
}

impl Journal {
    /// Takes the journal at `path`, and what it says; nothing where it is new.
    ///
    /// # Errors
    /// [`Kind::Io`]; [`Kind::Refused`] where another process has it, or it is no journal.
    pub(super) fn take(path: &Path) -> Result<(Self, Option<State>), Error> {
        let lock_path = beside(path, ".lock");
        let failed = |e| Error::io(Kind::Io, READ, lock_path.display().to_string(), e);
        let lock = File::create(&lock_path).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let context = format!("{}: another process is at work with it", path.display());
                return Err(Error::new(Kind::Refused, READ, context));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        let journal = Self {
            path: path.to_owned(),
            _lock: lock,
        };
        let state = journal.read()?;
        Ok((journal, state))
    }

    fn read(&self) -> Result<Option<State>, Error> {
        let failed = |e| Error::io(Kind::Io, READ, self.path.display().to_string(), e);
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let mut bytes = Vec::new();
        file.take(BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?;
        let state: Result<State, _> = serde_json::from_slice(&bytes);
        match state {
            Ok(state) if state.version == VERSION => Ok(Some(state)),
            _ => {
                let context = format!(
                    "{}: it is no journal of this version: name another file",
                    self.path.display()
                );
                Err(Error::new(Kind::Refused, READ, context))
            }
        }
    }

    /// Replaces what is written down: after a crash it says this or what it said before.
    ///
    /// # Errors
    /// [`Kind::Io`], [`Kind::StoreFull`].
    pub(super) fn write(&self, state: &State) -> Result<(), Error> {
        let bytes =
            serde_json::to_vec(state).map_err(|e| Error::new(Kind::Io, WRITE, "as JSON").because(e))?;
        self.replace(&self.path, &bytes)
    }

    /// Writes down which keys the target has. To be done before the first [`Journal::write`].
    ///
    /// # Errors
    /// As [`Journal::write`].
    pub(super) fn write_present(&self, bits: &Bits) -> Result<(), Error> {
        let bytes: Vec<u8> = bits.words().flat_map(u64::to_le_bytes).collect();
        self.replace(&self.present_path(), &bytes)
    }

    /// What [`Journal::write_present`] wrote.
    ///
    /// # Errors
    /// [`Kind::Io`]; [`Kind::Refused`] where it is not of so many keys.
    pub(super) fn read_present(&self, keys: u64) -> Result<Bits, Error> {
        let path = self.present_path();
        let bytes =
            std::fs::read(&path).map_err(|e| Error::io(Kind::Io, READ, path.display().to_string(), e))?;
        let (words, rest) = bytes.as_chunks::<8>();
        if !rest.is_empty() || words.len() as u64 != keys.div_ceil(64) {
            let context = format!("{}: it is of another replay", path.display());
            return Err(Error::new(Kind::Refused, READ, context));
        }
        Ok(Bits::of_words(
            words.iter().map(|word| u64::from_le_bytes(*word)).collect(),
        ))
    }

    /// Which other keys the target has are listed here.
    pub(super) fn others_path(&self) -> PathBuf {
        beside(&self.path, ".others")
    }

    fn present_path(&self) -> PathBuf {
        beside(&self.path, ".present")
    }

    /// Removes what was needed only to go on.
    pub(super) fn tidy(&self) {
        for path in [
            self.present_path(),
            self.others_path(),
            beside(&self.path, ".lock"),
        ] {
            let _not_there = std::fs::remove_file(path);
        }
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> Result<(), Error> {
        let failed = |e| Error::io(Kind::Io, WRITE, path.display().to_string(), e);
        let new = beside(path, ".new");
        let mut file = File::create(&new).map_err(failed)?;
        file.write_all(bytes)
            .and_then(|()| file.sync_all())
            .map_err(failed)?;
        std::fs::rename(&new, path).map_err(failed)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(failed)
    }
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_attempt_has_a_mark_of_its_own_and_the_last_unfinished_values_are_remembered() {
        let mut state = State::new("identity".to_owned(), 0);
        let value = |number: usize| Unfinished {
            db: 0,
            name: number.to_string(),
        };
        for count in 1..=2 * UNFINISHED_MAX {
            let before = state.mark.clone();
            state.mark("label").unwrap();
            assert_ne!(state.mark, before);
            state.begin_value(value(count));
            assert_eq!(state.unfinished.len(), count.min(UNFINISHED_MAX));
            assert_eq!(state.unfinished.last(), Some(&value(count)));
        }
        state.end_value();
        assert_eq!(state.unfinished.last(), Some(&value(2 * UNFINISHED_MAX - 1)));
    }
}
