//! The keys of a valid file again, with their serialised values: for who passes them on as they are.
//!
//! The file was read by a [`Validator`](crate::Validator) before. So an entry whose value is passed on byte for byte is only
//! told apart by its lengths (`skim`), several times as fast as it is read; all others are read.

use crate::digest::push_decimal;
use crate::error::{Error, Stop};
use crate::event::{KeySummary, Sink};
use crate::lzf;
use crate::opcode::Type;
use crate::parser::Parser;
use crate::report::{KEY_BYTES_MAX, Report};
use crate::skim::{self, Key};
use crate::writer::Target;

/// Bytes by which an entry that was cut off is first topped up.
const TOP_UP_BYTES: usize = 64 * 1024;

/// An entry whose value the target reads as it stands.
#[derive(Debug, Clone, Copy)]
pub struct Copied<'a> {
    /// The database.
    pub db: u32,
    /// The whole key.
    pub key: &'a [u8],
    /// The type of the value.
    pub kind: Type,
    /// The RDB type code, which tells the encoding.
    pub type_code: u8,
    /// Expiry, in Unix milliseconds; may be past.
    pub expire_at_ms: Option<i64>,
    /// Seconds since the key was used, where the file says so.
    pub idle_seconds: Option<u64>,
    /// How often the key is used, on the engines' logarithmic scale, where the file says so.
    pub frequency: Option<u8>,
    /// The value as it is serialised, without its type code.
    pub value: &'a [u8],
    /// Absolute offset of the first opcode of the entry.
    pub offset: u64,
    /// Bytes of the entry.
    pub bytes: u64,
}

/// Receives the entries of a file in their order.
pub trait Taker {
    /// An entry whose value is passed on as it stands.
    fn copied(&mut self, entry: &Copied<'_>);

    /// Any other: its bytes have to be read again from where they stand.
    fn read(&mut self, key: &KeySummary<'_>);

    /// The code of a function library.
    fn function(&mut self, code: &[u8]) {
        let _ = code;
    }
}

struct Others<'a, T>(&'a mut T);

impl<T: Taker> Sink for Others<'_, T> {
    fn key(&mut self, key: &KeySummary<'_>) {
        self.0.read(key);
    }

    fn function(&mut self, code: &[u8]) {
        self.0.function(code);
    }
}

/// Reads the entries of a file that is fed to it in chunks of any size.
///
/// Memory: twice `copied_bytes_max`, and some 100 KiB.
pub struct Entries {
    parser: Parser,
    target: Option<Target>,
    copied_bytes_max: usize,
    /// An entry that the last chunk has cut off.
    carry: Vec<u8>,
    key: Vec<u8>,
}

impl Entries {
    /// From the start of a file. Entries of at most `copied_bytes_max` bytes whose encoding `target` reads are
    /// [copied](Taker::copied); none are where there is no target.
    pub fn new(target: Option<Target>, copied_bytes_max: usize) -> Self {
        Self {
            parser: Parser::of_entries(),
            target,
            copied_bytes_max,
            carry: Vec::new(),
            key: Vec::new(),
        }
    }

    /// From the first opcode of an entry on, of the file that `report` is of: at this offset, in this database.
    ///
    /// # Errors
    /// There are more databases than are read.
    pub fn resume(
        report: &Report,
        offset: u64,
        db: u32,
        target: Option<Target>,
        copied_bytes_max: usize,
    ) -> Result<Self, Error> {
        let mut entries = Self::new(target, copied_bytes_max);
        entries
            .parser
            .go_to(report.family, report.rdb_version, offset, db)?;
        Ok(entries)
    }

    /// Takes the next bytes of the file.
    ///
    /// # Errors
    /// The file is not the one that was valid.
    pub fn feed<T: Taker>(&mut self, bytes: &[u8], taker: &mut T) -> Result<(), Error> {
        let mut at = 0;
        let mut carry = std::mem::take(&mut self.carry);
        while !carry.is_empty() {
            let old = carry.len();
            let more = (bytes.len() - at).min(old.max(TOP_UP_BYTES));
            carry.extend_from_slice(&bytes[at..at + more]);
            at += more;
            let used = self.run(&carry, taker)?;
            if used >= old {
                // What was topped up and not used is read where it stands.
                at -= carry.len() - used;
                carry.clear();
            } else {
                carry.drain(..used);
                if at == bytes.len() {
                    self.carry = carry;
                    return Ok(());
                }
            }
        }
        let used = self.run(&bytes[at..], taker)?;
        carry.extend_from_slice(&bytes[at + used..]);
        self.carry = carry;
        Ok(())
    }

    /// Offset of what comes next: behind the last entry that was told.
    pub fn offset(&self) -> u64 {
        self.parser.base
    }

    fn run<T: Taker>(&mut self, bytes: &[u8], taker: &mut T) -> Result<usize, Error> {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            if self.parser.is_between_entries() {
                match self.copied(rest, taker) {
                    Ok(0) => {}
                    Ok(used) => {
                        at += used;
                        continue;
                    }
                    Err(Stop::Need(_)) if rest.len() < self.copied_bytes_max => break,
                    // Too long to be held, or not what it was: the parser tells.
                    Err(_) => {}
                }
            }
            let between = |parser: &Parser, _at| !parser.is_between_entries();
            let done = self.parser.run_while(rest, &mut Others(taker), between)?;
            at += done.consumed;
            if done.consumed == 0 {
                break;
            }
        }
        Ok(at)
    }

    /// Tells the entry that `bytes` begins with, if it is to be copied, and returns its length; else 0.
    #[inline]
    fn copied<T: Taker>(&mut self, bytes: &[u8], taker: &mut T) -> Result<usize, Stop> {
        let Some(target) = self.target else {
            return Ok(0);
        };
        let (family, db) = self.parser.family_and_db();
        let Some(entry) = skim::whole_entry(family, bytes, |code| target.reads(family, code))? else {
            return Ok(0);
        };
        if entry.bytes > self.copied_bytes_max {
            return Ok(0);
        }
        let key = match entry.key {
            Key::Plain(key) if key.len() > KEY_BYTES_MAX => return Ok(0),
            Key::Plain(key) => key,
            Key::Int(number) => {
                self.key.clear();
                push_decimal(&mut self.key, number);
                &self.key
            }
            Key::Lzf { plain, .. } if plain > KEY_BYTES_MAX as u64 => return Ok(0),
            Key::Lzf { packed, plain } => {
                // At most KEY_BYTES_MAX.
                self.key.resize(plain as usize, 0);
                lzf::decompress(packed, packed.len(), &mut self.key, plain as usize)?;
                &self.key
            }
        };
        taker.copied(&Copied {
            db,
            key,
            kind: entry.kind,
            type_code: entry.type_code,
            expire_at_ms: entry.expire_at_ms,
            idle_seconds: entry.idle_seconds,
            frequency: entry.frequency,
            value: entry.value,
            offset: self.parser.base,
            bytes: entry.bytes as u64,
        });
        self.parser.step_over(entry.bytes);
        Ok(entry.bytes)
    }
}
