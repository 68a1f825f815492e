//! A DUMP payload: a type byte, the value as in an RDB file, a version (u16) and a CRC64.

use crate::crc64::Crc64;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind};
use crate::object::{Object, Value};
use crate::opcode::{Family, Type, layout};
use crate::reader::{Carry, Progress, Reader, progress};
use crate::source::Source;

/// The last version that both families write.
const VERSION_SHARED_MAX: u32 = 11;
const FOOTER_BYTES: usize = 10;
const CHECKSUM_BYTES: usize = 8;

/// The value in a DUMP payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DumpSummary {
    /// The type of the value.
    pub kind: Type,
    /// The RDB type code, which tells the encoding.
    pub type_code: u8,
    /// Members, fields, items or live entries; 1 for a string.
    pub elements: u64,
    /// Digest of the logical value: that of the same value in an RDB file.
    pub value_digest: Digest,
    /// Bytes of the payload.
    pub bytes: u64,
    /// The RDB version in the footer.
    pub rdb_version: u32,
}

/// Validates a DUMP payload that is fed to it in chunks of any size.
///
/// Memory is bounded as in [`Validator`](crate::Validator).
pub struct DumpValidator {
    /// Bytes before the footer that have not been fed.
    body_left: u64,
    total: u64,
    fed: u64,
    carry: Carry,
    parser: Parser,
    footer: Vec<u8>,
    failed: Option<Error>,
}

impl DumpValidator {
    /// A validator for a payload of `total_len` bytes from an engine of this family: a payload tells its version
    /// only at its end, and the families gave some type codes different meanings. [`Family::of_footer`] tells
    /// the family of a payload that is at hand.
    pub fn new(total_len: u64, family: Family) -> Self {
        Self {
            body_left: total_len.saturating_sub(FOOTER_BYTES as u64),
            total: total_len,
            fed: 0,
            carry: Carry::default(),
            parser: Parser {
                base: 0,
                family,
                type_code: None,
                value: None,
                crc: Crc64::new(),
                source: Source::new(),
                object: Object::new(),
            },
            footer: Vec::with_capacity(FOOTER_BYTES),
            failed: None,
        }
    }

    /// Takes the next bytes of the payload.
    ///
    /// # Errors
    /// The first defect; every later call returns the same one.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.take(bytes)
            .inspect_err(|error| self.failed = Some(error.clone()))
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if bytes.len() as u64 > self.total - self.fed {
            return Err(self.parser.error(self.total, ErrorKind::TrailingBytes));
        }
        self.fed += bytes.len() as u64;
        let body = bytes
            .len()
            .min(usize::try_from(self.body_left).unwrap_or(usize::MAX));
        let (body, footer) = bytes.split_at(body);
        self.body_left -= body.len() as u64;
        let parser = &mut self.parser;
        self.carry.feed(body, |bytes| parser.run(bytes))?;
        self.footer.extend_from_slice(footer);
        Ok(())
    }

    /// Bytes held back from the chunks fed so far.
    #[doc(hidden)]
    pub fn buffered_bytes(&self) -> usize {
        self.carry.len() + self.parser.source.buffered_bytes() + self.footer.len()
    }

    /// Ends the payload and returns what it held.
    ///
    /// # Errors
    /// The error of the last [`feed`](Self::feed); `Truncated` if bytes are missing or the value reaches
    /// into the footer; `UnsupportedVersion` and `ChecksumMismatch` from the footer.
    pub fn finish(self) -> Result<DumpSummary, Error> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let mut parser = self.parser;
        let (Some(type_code), Some(value)) = (parser.type_code, parser.value) else {
            return Err(parser.error(self.fed, ErrorKind::Truncated));
        };
        let Some((&version_bytes, checksum)) = self.footer.split_first_chunk::<2>() else {
            return Err(parser.error(self.fed, ErrorKind::Truncated));
        };
        let Some(&checksum) = checksum.first_chunk::<CHECKSUM_BYTES>() else {
            return Err(parser.error(self.fed, ErrorKind::Truncated));
        };
        let version = u32::from(u16::from_le_bytes(version_bytes));
        let family = Family::of_version(version);
        let at = self.total - FOOTER_BYTES as u64;
        if !family.reads(version) {
            return Err(parser.error(at, ErrorKind::UnsupportedVersion { family, version }));
        }
        // Below the versions at which they went apart, a type means the same in both.
        if family != parser.family && (version > VERSION_SHARED_MAX || is_contested(type_code)) {
            let what = "payload of another family than it was said to be of";
            return Err(parser.error(at, ErrorKind::Malformed { what }));
        }
        parser.crc.update(&version_bytes);
        let (stored, computed) = (u64::from_le_bytes(checksum), parser.crc.value());
        if stored != computed {
            let at = self.total - CHECKSUM_BYTES as u64;
            return Err(parser.error(at, ErrorKind::ChecksumMismatch { stored, computed }));
        }
        Ok(DumpSummary {
            kind: value.kind,
            type_code,
            elements: value.elements,
            value_digest: value.digest.to_be_bytes(),
            bytes: self.total,
            rdb_version: version,
        })
    }
}

/// Whether the families gave a type code different meanings.
fn is_contested(type_code: u8) -> bool {
    layout(Family::Redis, type_code).ok() != layout(Family::Valkey, type_code).ok()
}

impl Family {
    /// The family of a DUMP payload whose last bytes are these: by its version, where Valkey begins at 80. `None`
    /// for fewer bytes than a footer has.
    pub fn of_footer(payload: &[u8]) -> Option<Self> {
        let (footer, _) = payload.last_chunk::<FOOTER_BYTES>()?.split_first_chunk::<2>()?;
        Some(Self::of_version(u32::from(u16::from_le_bytes(*footer))))
    }
}

struct Parser {
    base: u64,
    family: Family,
    type_code: Option<u8>,
    value: Option<Value>,
    crc: Crc64,
    source: Source,
    object: Object,
}

impl Parser {
    fn error(&self, offset: u64, kind: ErrorKind) -> Error {
        Error {
            offset,
            kind,
            db: 0,
            key: None,
            type_code: self.type_code,
        }
    }

    fn run(&mut self, bytes: &[u8]) -> Result<Progress, Error> {
        let mut r = Reader::new(bytes);
        let stop = loop {
            let step = match (self.type_code, self.value) {
                (None, _) => r.byte().and_then(|code| {
                    self.object.begin(self.family, code).inspect_err(|_| r.rewind())?;
                    self.type_code = Some(code);
                    Ok(())
                }),
                (Some(_), None) => self
                    .object
                    .run(&mut r, &mut self.source, &mut ())
                    .map(|()| self.value = Some(*self.object.value())),
                (Some(_), Some(_)) if r.rest().is_empty() => Err(r.need(1)),
                (Some(_), Some(_)) => Err(ErrorKind::TrailingBytes.into()),
            };
            match step {
                Ok(()) => r.commit(),
                Err(stop) => break stop,
            }
        };
        let done = progress(&r, stop).map_err(|defect| self.error(self.base + r.pos() as u64, *defect))?;
        self.crc.update(&bytes[..done.consumed]);
        self.base += done.consumed as u64;
        Ok(done)
    }
}
