//! Reading a received stream: which keys its commands write.
//!
//! Of a command no more is kept than its keys and first two words, so that one with large values costs nothing.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::commands::{Commands, Keys, ask_keys};
use super::{FOLLOW, Shared};
use crate::error::{Error, Kind};
use crate::node::Node;

const READ_BYTES: usize = 256 * 1024;
/// Longest line of a command's frame.
const LINE_BYTES_MAX: usize = 64;
/// Longest key that is followed, and most bytes of a command whose keys have to be asked for.
const KEY_BYTES_MAX: u64 = 1024 * 1024;
const ASKED_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// What a command writes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// These keys of this database.
    Keys(u32, Vec<Vec<u8>>),
    /// This key in any of these databases.
    Carried(Vec<u32>, Vec<Vec<u8>>),
    /// Every key may be another.
    All,
    /// Libraries of functions.
    Functions,
}

/// A reader of a stream that is being received.
#[derive(Debug)]
pub(super) struct Trail {
    shared: Arc<Shared>,
    /// Of the byte in the file that comes behind the buffer.
    position: u64,
    buffer: Vec<u8>,
    start: usize,
    database: u32,
    commands: Commands,
}

impl Trail {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            position: 0,
            buffer: Vec::new(),
            start: 0,
            database: 0,
            commands: Commands::default(),
        }
    }

    /// How much of the stream has been read.
    pub(super) fn read(&self) -> u64 {
        self.position - (self.buffer.len() - self.start) as u64
    }

    /// What the next command writes, of those that have been received up to there; `None`: there is no whole one. `node` is a
    /// connection to the primary.
    ///
    /// # Errors
    /// [`Kind::Protocol`] for what is no command; [`Kind::Refused`] for a key that is too long to be followed;
    /// [`Kind::Io`]; as [`Node::command`].
    pub(super) fn next(&mut self, up_to: u64, node: &mut Node) -> Result<Option<Written>, Error> {
        while self.read() < up_to {
            let begin = self.read();
            match self.command(node) {
                Ok(Some(written)) => return Ok(Some(written)),
                Ok(None) => {}
                // The rest of it is on its way: it is read anew then.
                Err(Short::Early) => {
                    self.go_to(begin);
                    return Ok(None);
                }
                Err(Short::Failed(error)) => return Err(error),
            }
        }
        Ok(None)
    }

    fn command(&mut self, node: &mut Node) -> Result<Option<Written>, Short> {
        let words = self.number(b'*')?;
        let words = usize::try_from(words).map_err(|_| garbage("a command of that many words"))?;
        let name = self.word(KEY_BYTES_MAX)?;
        let second_bytes = if words > 1 { Some(self.number(b'$')?) } else { None };
        // A subcommand is short; a longer word is a key or a value, and none is asked for by it.
        let second = match second_bytes {
            Some(bytes) if bytes <= KEY_BYTES_MAX => Some(self.bytes(bytes)?),
            Some(bytes) => {
                self.skip(bytes)?;
                None
            }
            None => None,
        };
        let keys = self
            .commands
            .keys(&name, second.as_deref().unwrap_or_default(), node)?;
        let is_kept = |at: usize| matches!(keys, Keys::Asked | Keys::Carried) || keys.is_key(at, words);
        let too_long = || {
            let context = "a key of more than 1 MiB is written, or a command of more than 4 MiB whose keys are not known";
            Short::Failed(Error::new(Kind::Refused, FOLLOW, context))
        };
        let mut kept = Vec::new();
        if second_bytes.is_some() && (is_kept(1) || keys == Keys::Select) {
            kept.push(second.ok_or_else(too_long)?);
        }
        let mut room = ASKED_BYTES_MAX;
        for at in 2..words {
            let bytes = self.number(b'$')?;
            if !is_kept(at) {
                self.skip(bytes)?;
                continue;
            }
            let is_too_long = match keys {
                Keys::At { .. } => bytes > KEY_BYTES_MAX,
                _ => bytes > room,
            };
            if is_too_long {
                return Err(too_long());
            }
            room = room.saturating_sub(bytes);
            kept.push(self.bytes(bytes)?);
        }
        Ok(match keys {
            Keys::None => None,
            Keys::Functions => Some(Written::Functions),
            Keys::All => Some(Written::All),
            Keys::Select => {
                self.database = kept.first().and_then(|word| number(word)).unwrap_or(0);
                None
            }
            Keys::At { .. } => Some(Written::Keys(self.database, kept)),
            Keys::Asked => {
                let words = [vec![name], kept].concat();
                Some(Written::Keys(self.database, ask_keys(&words, node)?))
            }
            Keys::Carried => Some(self.carried(&name, kept)),
        })
    }

    /// `MOVE key db`, `COPY from to [DB db] [REPLACE]`.
    fn carried(&self, name: &[u8], mut words: Vec<Vec<u8>>) -> Written {
        let is_move = name.eq_ignore_ascii_case(b"move");
        let keys = if is_move { 1 } else { 2 };
        let rest = words.split_off(keys.min(words.len()));
        let databases = rest.iter().filter_map(|word| number(word));
        Written::Carried(std::iter::once(self.database).chain(databases).collect(), words)
    }

    /// A word that must be short.
    fn word(&mut self, most: u64) -> Result<Vec<u8>, Short> {
        let bytes = self.number(b'$')?;
        match bytes <= most {
            true => self.bytes(bytes),
            false => Err(garbage("a name of a command that is none").into()),
        }
    }

    fn bytes(&mut self, count: u64) -> Result<Vec<u8>, Short> {
        let count = to_size(count);
        while self.buffer.len() - self.start < count + 2 {
            self.fill()?;
        }
        let word = self.buffer[self.start..self.start + count].to_vec();
        self.start += count + 2;
        Ok(word)
    }

    /// Passes over a word, whether it has been read yet or not.
    fn skip(&mut self, count: u64) -> Result<(), Short> {
        let end = self.read() + count + 2;
        if end > self.shared.received.load(Ordering::Acquire) {
            return Err(Short::Early);
        }
        self.go_to(end);
        Ok(())
    }

    /// Reads on from this byte of the file.
    fn go_to(&mut self, byte: u64) {
        let first = self.position - self.buffer.len() as u64;
        if (first..=self.position).contains(&byte) {
            self.start = to_size(byte - first);
        } else {
            self.buffer.clear();
            (self.position, self.start) = (byte, 0);
        }
    }

    /// The number of a line that begins with `kind`.
    fn number(&mut self, kind: u8) -> Result<u64, Short> {
        loop {
            let waiting = &self.buffer[self.start..];
            // Between commands a primary may say no more than that it is there.
            if waiting.first() == Some(&b'\n') && kind == b'*' {
                self.start += 1;
                continue;
            }
            if let Some(end) = waiting.iter().position(|byte| *byte == b'\n') {
                let line = &waiting[..end];
                let digits = line
                    .strip_prefix(&[kind])
                    .and_then(|line| line.strip_suffix(b"\r"));
                let found = digits
                    .and_then(|digits| std::str::from_utf8(digits).ok())
                    .and_then(|digits| digits.parse().ok());
                let found = found.ok_or_else(|| garbage("what is no command"))?;
                self.start += end + 1;
                return Ok(found);
            }
            if waiting.len() > LINE_BYTES_MAX {
                return Err(garbage("what is no command").into());
            }
            self.fill()?;
        }
    }

    /// Reads more of the file.
    fn fill(&mut self) -> Result<(), Short> {
        let there = self.shared.received.load(Ordering::Acquire) - self.position;
        if there == 0 {
            return Err(Short::Early);
        }
        self.buffer.drain(..self.start);
        self.start = 0;
        let before = self.buffer.len();
        self.buffer
            .resize(before + to_size(there.min(READ_BYTES as u64)), 0);
        self.shared
            .file
            .read_exact_at(&mut self.buffer[before..], self.position)
            .map_err(|e| Error::io(Kind::Io, FOLLOW, "reading what was written", e))?;
        self.position += (self.buffer.len() - before) as u64;
        Ok(())
    }
}

/// Why there is no command.
enum Short {
    /// Its end has not been received.
    Early,
    Failed(Error),
}

impl From<Error> for Short {
    fn from(error: Error) -> Self {
        Short::Failed(error)
    }
}

fn number(word: &[u8]) -> Option<u32> {
    std::str::from_utf8(word).ok()?.parse().ok()
}

fn to_size(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

fn garbage(what: &str) -> Error {
    Error::new(Kind::Protocol, FOLLOW, format!("the primary replicates {what}"))
}
