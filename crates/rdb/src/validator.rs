//! An RDB file, from its header to its checksum.

use crate::census::{Census, Counted, Counter};
use crate::crc64::Crc64;
use crate::digest::{Digest, canonical_integer, of_bytes};
use crate::error::{Error, ErrorKind, KeyHint, Step, Stop, malformed};
use crate::function::FunctionSummary;
use crate::object::Object;
use crate::opcode::{self, Type, VERSION_MAX};
use crate::reader::{Carry, Progress, Reader, progress};
use crate::source::Source;

/// Bytes of a key that are kept and shown to a [`Sink`].
pub const KEY_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of the code of one function library, at most.
pub const FUNCTION_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Function libraries in one file, at most.
pub const FUNCTIONS_MAX: usize = 4096;
/// AUX fields that are kept; further ones are read and forgotten.
pub const AUX_FIELDS_MAX: usize = 128;
/// Bytes of an AUX name or value that are kept.
pub const AUX_BYTES_MAX: usize = 1024;

/// Odd values that are kept for the [`Report`].
pub const WARNINGS_MAX: usize = 64;

/// Bytes parsed before they are added to the checksum, so that they are still in the cache.
const BLOCK_BYTES: usize = 256 * 1024;
/// The first version with a checksum at the end.
const VERSION_WITH_CHECKSUM: u32 = 5;
const HINT_BYTES: usize = 48;

/// A key that has been read with its whole value.
#[derive(Debug, Clone, Copy)]
pub struct KeySummary<'a> {
    /// The database.
    pub db: u32,
    /// The key, or the first [`KEY_BYTES_MAX`] bytes of a longer one.
    pub key: &'a [u8],
    /// Bytes of the whole key.
    pub key_bytes: u64,
    /// The type of the value.
    pub kind: Type,
    /// The RDB type code, which tells the encoding.
    pub type_code: u8,
    /// Expiry, in Unix milliseconds; may be past.
    pub expire_at_ms: Option<i64>,
    /// Members, fields, items or live entries; 1 for a string.
    pub elements: u64,
    /// Serialized bytes of the entry, from its first opcode to the end of its value.
    pub bytes: u64,
    /// Digest of the logical value, whatever its encoding.
    pub value_digest: Digest,
    /// Absolute offset of the first opcode of the entry (expiry, idle time and frequency belong to it).
    pub offset: u64,
}

/// Receives what a [`Validator`] finds, in file order and before the file's checksum is known to be right.
pub trait Sink {
    /// A key with a valid value.
    fn key(&mut self, key: &KeySummary<'_>);

    /// The code of a function library.
    fn function(&mut self, code: &[u8]) {
        let _ = code;
    }
}

impl Sink for () {
    fn key(&mut self, _key: &KeySummary<'_>) {}
}

/// How the checksum of a file turned out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    /// It is this one, stored and computed.
    Verified(u64),
    /// The file has none: it is zero, or the version is below 5.
    Disabled,
}

/// A value that engines accept although it is odd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// Absolute offset of the first opcode of the key.
    pub offset: u64,
    /// The database.
    pub db: u32,
    /// The key.
    pub key: KeyHint,
    /// What is odd.
    pub what: &'static str,
}

/// A whole, valid file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The letters before the version: `REDIS`.
    pub magic: String,
    /// The version of the format.
    pub rdb_version: u32,
    /// The first [`AUX_FIELDS_MAX`] AUX fields, names and values cut at [`AUX_BYTES_MAX`] bytes.
    pub aux: Vec<(Vec<u8>, Vec<u8>)>,
    /// What the databases hold.
    pub census: Census,
    /// The function libraries, in file order.
    pub functions: Vec<FunctionSummary>,
    /// The first [`WARNINGS_MAX`] odd values.
    pub warnings: Vec<Warning>,
    /// Odd values, those beyond the limit included.
    pub warning_count: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// The checksum.
    pub checksum: Checksum,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum State {
    Header,
    Opcode,
    AuxName,
    AuxValue,
    Function,
    Key,
    Value,
    Checksum,
    Done,
}

/// What precedes a key and belongs to it.
#[derive(Default)]
struct Entry {
    /// An opcode of the entry has been seen.
    started: bool,
    start: u64,
    expire_at_ms: Option<i64>,
    type_code: u8,
    key_bytes: u64,
    key_hash: u128,
}

/// Validates an RDB file that is fed to it in chunks of any size.
///
/// Memory stays within about 10 MiB whatever the file holds: bytes are passed on in pieces, except keys
/// ([`KEY_BYTES_MAX`]), function libraries ([`FUNCTION_BYTES_MAX`]) and strings compressed from at most
/// 256 KiB. Duplicate members of a value are found among its first
/// [`MEMBERS_REMEMBERED_MAX`](crate::MEMBERS_REMEMBERED_MAX) (duplicate groups and consumers of a stream
/// among its first 2048 names); duplicate keys are not looked for.
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

    /// Takes the next bytes of the file and passes the keys that end in them to `sink`.
    ///
    /// # Errors
    /// The first defect; every later call returns the same one.
    pub fn feed<S: Sink>(&mut self, bytes: &[u8], sink: &mut S) -> Result<(), Error> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        for block in bytes.chunks(BLOCK_BYTES) {
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
    /// The error of the last [`feed`](Self::feed), or `Truncated` if the file has not ended.
    pub fn finish(self) -> Result<Report, Error> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        if self.parser.state != State::Done {
            return Err(self.parser.error(self.offset(), ErrorKind::Truncated));
        }
        let parser = self.parser;
        Ok(Report {
            magic: "REDIS".to_owned(),
            rdb_version: parser.version,
            aux: parser.aux,
            census: parser.counter.finish(),
            functions: parser.functions,
            warnings: parser.warnings,
            warning_count: parser.warning_count,
            bytes: parser.base,
            checksum: parser.checksum,
        })
    }
}

struct Parser {
    /// Absolute offset of the first byte of the buffer that is run over next.
    base: u64,
    state: State,
    crc: Crc64,
    version: u32,
    checksum: Checksum,
    source: Source,
    object: Object,
    entry: Entry,
    key: Vec<u8>,
    keys: u64,
    /// An AUX name or value, or the code of a function library.
    text: Vec<u8>,
    aux_name: Vec<u8>,
    aux: Vec<(Vec<u8>, Vec<u8>)>,
    functions: Vec<FunctionSummary>,
    warnings: Vec<Warning>,
    warning_count: u64,
    counter: Counter,
}

impl Parser {
    fn new() -> Self {
        Self {
            base: 0,
            state: State::Header,
            crc: Crc64::new(),
            version: 0,
            checksum: Checksum::Disabled,
            source: Source::new(),
            object: Object::new(),
            entry: Entry::default(),
            key: Vec::new(),
            keys: 0,
            text: Vec::new(),
            aux_name: Vec::new(),
            aux: Vec::new(),
            functions: Vec::new(),
            warnings: Vec::new(),
            warning_count: 0,
            counter: Counter::default(),
        }
    }

    fn buffered_bytes(&self) -> usize {
        self.source.buffered_bytes() + self.key.len() + self.text.len() + self.aux_name.len()
    }

    fn hint(&self) -> KeyHint {
        KeyHint {
            hash: self.entry.key_hash as u64,
            prefix: String::from_utf8_lossy(&self.key[..self.key.len().min(HINT_BYTES)]).into_owned(),
        }
    }

    #[cold]
    fn warn(&mut self, what: &'static str) {
        self.warning_count += 1;
        if self.warnings.len() < WARNINGS_MAX {
            let (offset, db, key) = (self.entry.start, self.counter.db(), self.hint());
            self.warnings.push(Warning {
                offset,
                db,
                key,
                what,
            });
        }
    }

    #[cold]
    fn error(&self, offset: u64, kind: ErrorKind) -> Error {
        let in_value = self.state == State::Value;
        let key = in_value.then(|| self.hint());
        let type_code = (in_value || self.state == State::Key).then_some(self.entry.type_code);
        Error {
            offset,
            kind,
            db: self.counter.db(),
            key,
            type_code,
        }
    }

    /// Parses what can be parsed of a buffer. It starts with the first byte that is not in the checksum yet.
    fn run<S: Sink>(&mut self, bytes: &[u8], sink: &mut S) -> Result<Progress, Error> {
        let mut r = Reader::new(bytes);
        let stop = loop {
            match self.step(&mut r, sink) {
                Ok(()) => r.commit(),
                Err(stop) => break stop,
            }
        };
        let done = match progress(&r, stop) {
            Ok(done) => done,
            Err(kind) => return Err(self.error(self.base + r.pos() as u64, kind)),
        };
        if !matches!(self.state, State::Checksum | State::Done) {
            self.crc.update(&bytes[..done.consumed]);
        }
        self.base += done.consumed as u64;
        Ok(done)
    }

    #[inline]
    fn step<S: Sink>(&mut self, r: &mut Reader<'_>, sink: &mut S) -> Step<()> {
        match self.state {
            State::Opcode => self.opcode(r),
            State::Key => {
                let (bytes, hash) = self.source.bytes(r, &mut self.key, KEY_BYTES_MAX)?;
                self.entry.key_bytes = bytes;
                self.entry.key_hash = hash.unwrap_or_else(|| of_bytes(&self.key));
                self.state = State::Value;
                Ok(())
            }
            State::Value => self.value(r, sink),
            State::Header => self.header(r),
            State::AuxName => {
                self.source.bytes(r, &mut self.aux_name, AUX_BYTES_MAX)?;
                self.state = State::AuxValue;
                Ok(())
            }
            State::AuxValue => {
                self.source.bytes(r, &mut self.text, AUX_BYTES_MAX)?;
                self.aux();
                self.state = State::Opcode;
                Ok(())
            }
            State::Function => self.function(r, sink),
            State::Checksum => self.checksum(r),
            State::Done => match r.rest() {
                [] => Err(r.need(1)),
                _ => Err(ErrorKind::TrailingBytes.into()),
            },
        }
    }

    fn header(&mut self, r: &mut Reader<'_>) -> Step<()> {
        let header: [u8; 9] = r.array()?;
        let digits = match &header {
            [b'R', b'E', b'D', b'I', b'S', digits @ ..] => &digits[..],
            [b'V', b'A', b'L', b'K', b'E', b'Y', digits @ ..] => &digits[..],
            _ => return Err(ErrorKind::BadMagic.into()),
        };
        if !digits.iter().all(u8::is_ascii_digit) {
            return Err(ErrorKind::BadMagic.into());
        }
        let version = digits
            .iter()
            .fold(0, |version, digit| version * 10 + u32::from(digit - b'0'));
        if header[0] == b'V' || !(1..=VERSION_MAX).contains(&version) {
            return Err(ErrorKind::UnsupportedVersion { version }.into());
        }
        self.version = version;
        self.state = State::Opcode;
        Ok(())
    }

    #[inline]
    fn opcode(&mut self, r: &mut Reader<'_>) -> Step<()> {
        let at = self.base + r.pos() as u64;
        let code = r.byte()?;
        if code < opcode::FUNCTION2 || code == opcode::FUNCTION2 + 1 || code == opcode::FUNCTION2 + 2 {
            self.object.begin(code).map_err(|kind| refuse(r, kind))?;
            self.start_entry(at);
            self.entry.type_code = code;
            self.state = State::Key;
            return Ok(());
        }
        match code {
            opcode::EXPIRETIME_MS => {
                let at_ms = i64::from_le_bytes(r.array()?);
                self.start_entry(at);
                self.entry.expire_at_ms = Some(at_ms);
                return Ok(());
            }
            opcode::EXPIRETIME => {
                let seconds = i32::from_le_bytes(r.array()?);
                self.start_entry(at);
                self.entry.expire_at_ms = Some(i64::from(seconds) * 1000);
                return Ok(());
            }
            opcode::IDLE => {
                r.length()?;
                self.start_entry(at);
                return Ok(());
            }
            opcode::FREQ => {
                r.byte()?;
                self.start_entry(at);
                return Ok(());
            }
            _ if self.entry.started => {
                return Err(refuse(
                    r,
                    malformed("expiry, idle time or frequency without a key"),
                ));
            }
            opcode::SELECTDB => {
                let db = u32::try_from(r.length()?)
                    .ok()
                    .filter(|db| *db <= i32::MAX.cast_unsigned());
                let db = db.ok_or_else(|| malformed("database number out of range"))?;
                self.counter.select(db)?;
            }
            opcode::RESIZEDB => {
                r.length()?;
                r.length()?;
            }
            opcode::AUX => self.state = State::AuxName,
            opcode::FUNCTION2 => self.state = State::Function,
            _ => {
                debug_assert_eq!(code, opcode::EOF);
                self.crc.update(r.seen());
                self.state = if self.version < VERSION_WITH_CHECKSUM {
                    State::Done
                } else {
                    State::Checksum
                };
            }
        }
        Ok(())
    }

    #[inline]
    fn start_entry(&mut self, at: u64) {
        if !self.entry.started {
            self.entry.started = true;
            self.entry.start = at;
            self.entry.expire_at_ms = None;
        }
    }

    #[inline]
    fn value<S: Sink>(&mut self, r: &mut Reader<'_>, sink: &mut S) -> Step<()> {
        let value = self.object.run(r, &mut self.source)?;
        if let Some(what) = value.oddity {
            self.warn(what);
        }
        let entry = &mut self.entry;
        entry.started = false;
        let bytes = self.base + r.pos() as u64 - entry.start;
        self.keys += 1;
        self.counter.add(&Counted {
            kind: value.kind,
            elements: value.elements,
            bytes,
            key_hash: entry.key_hash,
            value: value.digest,
            expire_at_ms: entry.expire_at_ms,
        });
        sink.key(&KeySummary {
            db: self.counter.db(),
            key: &self.key,
            key_bytes: entry.key_bytes,
            kind: value.kind,
            type_code: entry.type_code,
            expire_at_ms: entry.expire_at_ms,
            elements: value.elements,
            bytes,
            value_digest: value.digest.to_be_bytes(),
            offset: entry.start,
        });
        self.state = State::Opcode;
        Ok(())
    }

    fn aux(&mut self) {
        if self.aux_name == b"ctime" {
            let seconds = canonical_integer(&self.text);
            self.counter.written_ms = seconds.and_then(|seconds| seconds.checked_mul(1000));
        }
        let value = std::mem::take(&mut self.text);
        if self.aux.len() < AUX_FIELDS_MAX {
            self.aux.push((std::mem::take(&mut self.aux_name), value));
        }
    }

    fn function<S: Sink>(&mut self, r: &mut Reader<'_>, sink: &mut S) -> Step<()> {
        let (bytes, _) = self.source.bytes(r, &mut self.text, FUNCTION_BYTES_MAX)?;
        if bytes > FUNCTION_BYTES_MAX as u64 {
            let limit = FUNCTION_BYTES_MAX as u64;
            return Err(ErrorKind::LimitExceeded {
                what: "bytes of a function library",
                limit,
            }
            .into());
        }
        if self.functions.len() >= FUNCTIONS_MAX {
            let limit = FUNCTIONS_MAX as u64;
            return Err(ErrorKind::LimitExceeded {
                what: "function libraries",
                limit,
            }
            .into());
        }
        self.functions.push(FunctionSummary::of(&self.text));
        sink.function(&self.text);
        self.text = Vec::new();
        self.state = State::Opcode;
        Ok(())
    }

    fn checksum(&mut self, r: &mut Reader<'_>) -> Step<()> {
        let stored = u64::from_le_bytes(r.array()?);
        let computed = self.crc.value();
        self.checksum = match stored {
            0 => Checksum::Disabled,
            _ if stored == computed => Checksum::Verified(stored),
            _ => return Err(ErrorKind::ChecksumMismatch { stored, computed }.into()),
        };
        self.state = State::Done;
        Ok(())
    }
}

/// A stop at the opcode itself, not after it.
#[cold]
fn refuse(r: &mut Reader<'_>, kind: ErrorKind) -> Stop {
    r.rewind();
    Stop::Fail(kind)
}
