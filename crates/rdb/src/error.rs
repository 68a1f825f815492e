//! What is wrong with the bytes, and where.

use std::fmt;

use crate::opcode::Family;

/// The first defect found in an RDB file or a DUMP payload.
///
/// `Display` is one lower-case clause with the defect and its place; it names the key by hash only, so
/// that it may go to places that must not show key names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// Absolute offset of the byte at which reading stopped. For a defect inside a compressed string, or
    /// inside a packed value that was cut into chunks, it is a place in that string or its end.
    pub offset: u64,
    /// What is wrong.
    pub kind: ErrorKind,
    /// The database selected at that point.
    pub db: u32,
    /// The key whose value was being read, if any.
    pub key: Option<KeyHint>,
    /// The RDB type code of the value that was being read, if any.
    pub type_code: Option<u8>,
}

/// A key, short enough to be kept with an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyHint {
    /// Hash of the whole key: equal for equal keys.
    pub hash: u64,
    /// The first 48 bytes of the key, with invalid UTF-8 replaced.
    pub prefix: String,
}

/// The kinds of defect.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The first nine bytes are not the header of an RDB file.
    BadMagic,
    /// A header or footer with a version this crate does not read.
    UnsupportedVersion {
        /// The magic; the family that a footer's version belongs to.
        family: Family,
        /// The version found.
        version: u32,
    },
    /// A value type that no known engine of the accepted versions writes.
    UnknownType {
        /// The type code.
        code: u8,
        /// Who may have written it, as far as the AUX fields tell.
        vendor: Option<&'static str>,
    },
    /// An opcode that no known engine of the accepted versions writes.
    UnknownOpcode {
        /// The opcode.
        code: u8,
        /// Who may have written it, as far as the AUX fields tell.
        vendor: Option<&'static str>,
    },
    /// A known type or opcode whose content this crate does not read.
    Unsupported {
        /// The type code or opcode.
        code: u8,
        /// Its name.
        what: &'static str,
    },
    /// The bytes end before the file or payload does.
    Truncated,
    /// The CRC64 of the bytes is not the stored one.
    ChecksumMismatch {
        /// The checksum in the file.
        stored: u64,
        /// The checksum of the bytes read.
        computed: u64,
    },
    /// Bytes follow the end of the file or of the value.
    TrailingBytes,
    /// A structure that no engine writes.
    Malformed {
        /// The rule that is broken.
        what: &'static str,
    },
    /// A structure above a limit that keeps memory bounded.
    LimitExceeded {
        /// What is limited.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// A member or name that occurs twice in one value.
    Duplicate {
        /// What occurs twice.
        what: &'static str,
    },
    /// A key that occurs twice in one database. The error's offset is that of the later one, the error's key is
    /// told where it was still at hand.
    DuplicateKey {
        /// Absolute offset of the first opcode of the earlier one.
        first: u64,
    },
    /// The caller's [`Spill`](crate::Spill) could not keep or give back what it was given: nothing is wrong with
    /// the bytes.
    Spill {
        /// What it said.
        reason: String,
    },
}

impl ErrorKind {
    /// A stable word per kind, for logs, metrics and stored records.
    pub fn name(&self) -> &'static str {
        match self {
            Self::BadMagic => "bad_magic",
            Self::UnsupportedVersion { .. } => "unsupported_version",
            Self::UnknownType { .. } => "unknown_type",
            Self::UnknownOpcode { .. } => "unknown_opcode",
            Self::Unsupported { .. } => "unsupported",
            Self::Truncated => "truncated",
            Self::ChecksumMismatch { .. } => "checksum_mismatch",
            Self::TrailingBytes => "trailing_bytes",
            Self::Malformed { .. } => "malformed",
            Self::LimitExceeded { .. } => "limit_exceeded",
            Self::Duplicate { .. } => "duplicate",
            Self::DuplicateKey { .. } => "duplicate_key",
            Self::Spill { .. } => "spill",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadMagic => f.write_str("not an rdb header"),
            Self::UnsupportedVersion { family, version } => {
                let (magic, origin) = (family.magic(), family.origin(*version));
                write!(f, "unsupported rdb version {version} of {magic}, {origin},")
            }
            Self::UnknownType { code, vendor } => {
                write!(f, "unknown value type {code}")?;
                vendor.map_or(Ok(()), |vendor| write!(f, " (private to {vendor})"))
            }
            Self::UnknownOpcode { code, vendor } => {
                write!(f, "unknown opcode {code}")?;
                vendor.map_or(Ok(()), |vendor| write!(f, " (private to {vendor})"))
            }
            Self::Unsupported { code, what } => write!(f, "unsupported {what} (code {code})"),
            Self::Truncated => f.write_str("bytes end too early"),
            Self::ChecksumMismatch { stored, computed } => {
                write!(f, "checksum is {computed:016x}, stored is {stored:016x}")
            }
            Self::TrailingBytes => f.write_str("bytes follow the end"),
            Self::Malformed { what } => f.write_str(what),
            Self::LimitExceeded { what, limit } => write!(f, "{what} above the limit of {limit}"),
            Self::Duplicate { what } => write!(f, "duplicate {what}"),
            Self::DuplicateKey { first } => write!(f, "key occurs twice, first at offset {first}, then"),
            Self::Spill { reason } => write!(f, "cannot keep fingerprints of keys or members: {reason}"),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at offset {}", self.kind, self.offset)?;
        match &self.key {
            Some(key) => write!(f, " in db {}, key {:016x}", self.db, key.hash)?,
            None if matches!(self.kind, ErrorKind::DuplicateKey { .. }) => write!(f, " in db {}", self.db)?,
            None => {}
        }
        if let Some(code) = self.type_code {
            write!(f, ", type {code}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// Why a step of the parser did not finish.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The buffer must reach at least to this index before the step can be tried again.
    Need(usize),
    /// The bytes are wrong.
    Fail(Defect),
}

/// What is wrong, boxed: the results of the small functions that are called for every string then fit registers, and are not
/// copied through memory in pieces of other sizes than they were written, for each of which the processor waits.
pub(crate) type Defect = Box<ErrorKind>;

impl From<Defect> for Stop {
    fn from(defect: Defect) -> Self {
        Self::Fail(defect)
    }
}

impl From<ErrorKind> for Stop {
    #[cold]
    fn from(kind: ErrorKind) -> Self {
        Self::Fail(Box::new(kind))
    }
}

/// The result of a step over the bytes at hand.
pub(crate) type Step<T> = Result<T, Stop>;

/// Shorthand for the commonest kind.
#[cold]
pub(crate) fn malformed(what: &'static str) -> Defect {
    Box::new(ErrorKind::Malformed { what })
}
