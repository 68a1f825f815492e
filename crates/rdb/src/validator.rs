//! An RDB file, from its header to its checksum, fed in chunks.

use crate::distinct::{Distinct, Spill};
use crate::error::{Error, ErrorKind};
use crate::event::Sink;
use crate::parser::{Parser, State};
use crate::reader::Carry;
use crate::report::Report;
#[cfg(doc)]
use crate::report::{FUNCTION_BYTES_MAX, KEY_BYTES_MAX};

/// Bytes of a file to read and [`feed`](Validator::feed) at once. They are read thrice (copied, parsed, added to the checksum), so they must
/// stay in the second-level cache of a core together with what parsing keeps there: at twice as many, half of 512 KiB,
/// validation took a tenth longer.
pub const FEED_BYTES: usize = 128 * 1024;

/// Validates an RDB file that is fed to it in chunks of any size.
///
/// Memory stays within about 18 MiB whatever the file holds: bytes are passed on in pieces, except keys
/// ([`KEY_BYTES_MAX`]), function libraries ([`FUNCTION_BYTES_MAX`]) and strings compressed from at most
/// 256 KiB; 8 MiB of it serve to find duplicate keys, see [`with_spills`](Self::with_spills). A value of more than
/// [`MEMBERS_IN_MEMORY_MAX`](crate::MEMBERS_IN_MEMORY_MAX) members takes 8 MiB more.
pub struct Validator {
    carry: Carry,
    parser: Parser,
    failed: Option<Error>,
}

impl Default for Validator {
    fn default() -> Self {
        Self::new()
    }
}

impl Validator {
    /// A validator that expects the first byte of a file.
    pub fn new() -> Self {
        Self {
            carry: Carry::default(),
            parser: Parser::new(),
            failed: None,
        }
    }

    /// Keeps what does not fit into memory in `keys` and `members`, so that every key is compared with every other, and
    /// every member of a value (field, group, consumer, producer) with every other of it: 32 bytes each, at most twice;
    /// those of members only while their value is read. Without them the first
    /// [`KEYS_IN_MEMORY_MAX`](crate::KEYS_IN_MEMORY_MAX) keys and the first
    /// [`MEMBERS_IN_MEMORY_MAX`](crate::MEMBERS_IN_MEMORY_MAX) and so many further members are compared, and the report says so.
    #[must_use]
    pub fn with_spills(mut self, keys: Box<dyn Spill + Send>, members: Box<dyn Spill + Send>) -> Self {
        self.parser.distinct = Distinct::new(Some(keys));
        self.parser.keep_members_in(members);
        self
    }

    /// Accepts bytes after the end of the file, as engines do: they are counted and not read. Without this they
    /// are refused.
    #[must_use]
    pub fn accept_trailing_bytes(mut self) -> Self {
        self.parser.accepts_trailing_bytes = true;
        self
    }

    /// Takes the next bytes of the file and passes the keys that end in them to `sink`.
    ///
    /// # Errors
    /// The first defect; every later call returns the same one.
    pub fn feed<S: Sink>(&mut self, bytes: &[u8], sink: &mut S) -> Result<(), Error> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        for block in bytes.chunks(FEED_BYTES) {
            let parser = &mut self.parser;
            if let Err(error) = self.carry.feed(block, |bytes| parser.run(bytes, sink)) {
                self.failed = Some(error.clone());
                return Err(error);
            }
        }
        Ok(())
    }

    /// Bytes accepted so far, an unfinished item at the end included.
    pub fn offset(&self) -> u64 {
        self.parser.base + self.carry.len() as u64
    }

    /// Absolute offset of the first opcode of the latest key that has been begun: of its expiry, idle time
    /// or frequency if it has one, else of its type. SELECTDB and RESIZEDB do not belong to a key. Zero
    /// before the first key.
    pub fn last_key_start(&self) -> u64 {
        self.parser.entry.start
    }

    /// Keys read whole so far.
    pub fn keys_so_far(&self) -> u64 {
        self.parser.keys
    }

    /// Whether the EOF opcode and its checksum have been read.
    pub fn is_complete(&self) -> bool {
        self.parser.state == State::Done && self.failed.is_none()
    }

    /// Bytes held back from the chunks fed so far.
    #[doc(hidden)]
    pub fn buffered_bytes(&self) -> usize {
        self.carry.len() + self.parser.buffered_bytes()
    }

    /// Ends the file and returns what it held.
    ///
    /// # Errors
    /// The error of the last [`feed`](Self::feed); `Truncated` if the file has not ended; `DuplicateKey` for two
    /// keys far apart; `Spill`.
    pub fn finish(self) -> Result<Report, Error> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        if self.parser.state != State::Done {
            return Err(self.parser.error(self.offset(), ErrorKind::Truncated));
        }
        self.parser.into_report()
    }
}
