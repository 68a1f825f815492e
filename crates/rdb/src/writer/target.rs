//! Engines to write for: what their versions read (src/rdb.h and rdbLoadObject of each).

use crate::opcode::{Family, VALKEY_VERSION};
use crate::report::Report;

/// The name of each engine to write for, and the version and family of the files it reads.
pub const TARGETS: [(&str, Family, u32); 15] = [
    ("redis-5.0", Family::Redis, 9),
    ("redis-6.0", Family::Redis, 9),
    ("redis-6.2", Family::Redis, 9),
    ("redis-7.0", Family::Redis, 10),
    ("redis-7.2", Family::Redis, 11),
    ("redis-7.4", Family::Redis, 12),
    ("redis-8.0", Family::Redis, 12),
    ("redis-8.2", Family::Redis, 12),
    ("redis-8.4", Family::Redis, 12),
    ("redis-8.6", Family::Redis, 13),
    ("valkey-7.2", Family::Redis, 11),
    ("valkey-8.0", Family::Redis, 11),
    ("valkey-8.1", Family::Redis, 11),
    ("valkey-9.0", Family::Valkey, VALKEY_VERSION),
    ("valkey-9.1", Family::Valkey, VALKEY_VERSION),
];

/// The oldest version that is written. Older engines lack the idle times and frequencies that stand before keys.
const VERSION_MIN: u32 = 9;

/// What is written: the version and family of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    family: Family,
    version: u32,
}

impl Target {
    /// The target of a name in [`TARGETS`].
    pub fn by_name(name: &str) -> Option<Self> {
        TARGETS
            .iter()
            .find(|(known, ..)| *known == name)
            .map(|(_, family, version)| Self {
                family: *family,
                version: *version,
            })
    }

    /// The version and family of a file that was read, at least version 9.
    pub fn of(report: &Report) -> Self {
        Self::like(report.family, report.rdb_version)
    }

    /// As [`Target::of`], where only version and family are known.
    pub fn like(family: Family, version: u32) -> Self {
        Self {
            family,
            version: version.max(VERSION_MIN),
        }
    }

    /// The family.
    pub fn family(self) -> Family {
        self.family
    }

    /// The version of the format.
    pub fn version(self) -> u32 {
        self.version
    }

    /// Whether a type code of a file of family `from` means the same to the target.
    pub fn reads(self, from: Family, code: u8) -> bool {
        match code {
            0..=15 => true,
            16..=19 => self.version >= 10,
            20 | 21 => self.version >= 11,
            22 if from == Family::Valkey => self.family == Family::Valkey,
            22..=25 => self.family == Family::Redis && self.version >= 12,
            26 => self.family == Family::Redis && self.version >= 13,
            _ => false,
        }
    }

    /// The last layout of streams that the target reads.
    pub(super) fn stream_generation(self) -> u8 {
        match (self.family, self.version) {
            (Family::Redis, 13..) => 4,
            (_, 11..) => 3,
            (_, 10) => 2,
            _ => 1,
        }
    }

    /// In which family's form the target reads fields that expire.
    pub(super) fn field_expiry(self) -> Option<Family> {
        match (self.family, self.version) {
            (Family::Redis, ..12) => None,
            (family, _) => Some(family),
        }
    }

    pub(crate) fn has_functions(self) -> bool {
        self.version >= 10
    }
}

/// The type code of a layout of streams.
pub(super) fn stream_code(generation: u8) -> u8 {
    match generation {
        1 => 15,
        2 => 19,
        3 => 21,
        _ => 26,
    }
}
