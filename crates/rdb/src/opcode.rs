//! The numbers of the format: magics, versions, value types and opcodes.

use crate::elements::Shape;
use crate::error::{Defect, ErrorKind};
use crate::source::Packing;

/// The highest version that is read under the magic `REDIS`.
pub const VERSION_MAX: u32 = 13;
/// The only version that is read under the magic `VALKEY`.
pub const VALKEY_VERSION: u32 = 80;

pub(crate) const SLOT_IMPORT: u8 = 243;
pub(crate) const SLOT_INFO: u8 = 244;
pub(crate) const FUNCTION2: u8 = 245;
pub(crate) const FUNCTION_PRE_GA: u8 = 246;
pub(crate) const MODULE_AUX: u8 = 247;
pub(crate) const IDLE: u8 = 248;
pub(crate) const FREQ: u8 = 249;
pub(crate) const AUX: u8 = 250;
pub(crate) const RESIZEDB: u8 = 251;
pub(crate) const EXPIRETIME_MS: u8 = 252;
pub(crate) const EXPIRETIME: u8 = 253;
pub(crate) const SELECTDB: u8 = 254;
pub(crate) const EOF: u8 = 255;
/// Codes from here up are opcodes, not value types.
const OPCODES: u8 = 240;

/// Who writes files under a magic. The families share the numbers up to version 11 and went apart after it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Family {
    /// The magic `REDIS`: Redis of every version, and Valkey up to 8.
    Redis,
    /// The magic `VALKEY`: Valkey from 9.
    Valkey,
}

impl Family {
    /// The letters before the version.
    pub const fn magic(self) -> &'static str {
        match self {
            Self::Redis => "REDIS",
            Self::Valkey => "VALKEY",
        }
    }

    /// The family that writes a version number: what tells families apart where there is no magic.
    pub fn of_version(version: u32) -> Self {
        if version >= VALKEY_VERSION {
            Self::Valkey
        } else {
            Self::Redis
        }
    }

    /// Whether files of this family and version are read.
    pub(crate) fn reads(self, version: u32) -> bool {
        match self {
            Self::Redis => (1..=VERSION_MAX).contains(&version),
            Self::Valkey => version == VALKEY_VERSION,
        }
    }

    /// What is known of a version that is not read.
    pub(crate) fn origin(self, version: u32) -> &'static str {
        match (self, version) {
            (Self::Redis, 14) => "written by Redis 8.8",
            (Self::Redis, 15) => "written by Redis 8.10",
            (Self::Redis, 80 | 81) => "a number of Valkey under the magic of Redis, which no engine writes",
            (Self::Valkey, 1..=11) => "which Valkey writes under the magic REDIS",
            (Self::Valkey, 12..=15) => "a number of Redis under the magic of Valkey, which no engine writes",
            (Self::Valkey, 81) => "written by Valkey 9.2",
            _ => "which no known engine writes",
        }
    }
}

/// The logical type of a value.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Type {
    /// A string.
    String,
    /// A list.
    List,
    /// A set.
    Set,
    /// A sorted set.
    ZSet,
    /// A hash.
    Hash,
    /// A stream.
    Stream,
    /// A value of a module: known by the module's name and its size only.
    Module,
}

impl Type {
    /// All types, in their order.
    pub const ALL: [Self; 7] = [
        Self::String,
        Self::List,
        Self::Set,
        Self::ZSet,
        Self::Hash,
        Self::Stream,
        Self::Module,
    ];

    /// The word the `TYPE` command answers; `module` for values whose word only their module knows.
    pub fn name(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::List => "list",
            Self::Set => "set",
            Self::ZSet => "zset",
            Self::Hash => "hash",
            Self::Stream => "stream",
            Self::Module => "module",
        }
    }
}

impl std::fmt::Display for Type {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Where the expiry of a field stands, and what it counts from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FieldExpiry {
    /// Before the field, from the least expiry, which stands before all fields; 0 is none.
    FromLeast,
    /// Before the field, in Unix milliseconds; 0 is none.
    Before,
    /// After the value, in Unix milliseconds of eight bytes; -1 is none.
    After,
}

/// How a value is laid out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Layout {
    /// One string.
    Text,
    /// A count and that many strings, or pairs of strings.
    Strings(Shape),
    /// A count and that many pairs of strings with an expiry.
    Expiring(FieldExpiry),
    /// A count and that many pairs of a string and a score text.
    ScoreTexts,
    /// A count and that many pairs of a string and an eight-byte score.
    Scores,
    /// One string that packs all items.
    Packed(Shape, Packing),
    /// The least expiry in eight bytes, then one string that packs triples of field, value and expiry.
    LeastThenPacked,
    /// One string that packs all members of a set of integers.
    Intset,
    /// A count and that many packed strings.
    Nodes(Packing),
    /// A count and that many pairs of a form and a packed or plain string.
    FormedNodes,
    /// A stream; the generation of the layout, from 1.
    Stream(u8),
    /// A module's id, then parts that say what they are, up to an end mark.
    Module,
}

/// The type and layout behind a type code.
#[inline]
pub(crate) fn layout(family: Family, code: u8) -> Result<(Type, Layout), Defect> {
    use Packing::{Listpack, Ziplist, Zipmap};
    Ok(match code {
        0 => (Type::String, Layout::Text),
        1 => (Type::List, Layout::Strings(Shape::List)),
        2 => (Type::Set, Layout::Strings(Shape::Set)),
        3 => (Type::ZSet, Layout::ScoreTexts),
        4 => (Type::Hash, Layout::Strings(Shape::Hash)),
        5 => (Type::ZSet, Layout::Scores),
        7 => (Type::Module, Layout::Module),
        9 => (Type::Hash, Layout::Packed(Shape::Hash, Zipmap)),
        10 => (Type::List, Layout::Packed(Shape::List, Ziplist)),
        11 => (Type::Set, Layout::Intset),
        12 => (Type::ZSet, Layout::Packed(Shape::ZSet, Ziplist)),
        13 => (Type::Hash, Layout::Packed(Shape::Hash, Ziplist)),
        14 => (Type::List, Layout::Nodes(Ziplist)),
        15 => (Type::Stream, Layout::Stream(1)),
        16 => (Type::Hash, Layout::Packed(Shape::Hash, Listpack)),
        17 => (Type::ZSet, Layout::Packed(Shape::ZSet, Listpack)),
        18 => (Type::List, Layout::FormedNodes),
        19 => (Type::Stream, Layout::Stream(2)),
        20 => (Type::Set, Layout::Packed(Shape::Set, Listpack)),
        21 => (Type::Stream, Layout::Stream(3)),
        22 if family == Family::Valkey => (Type::Hash, Layout::Expiring(FieldExpiry::After)),
        22 => (Type::Hash, Layout::Expiring(FieldExpiry::Before)),
        23 if family == Family::Redis => (Type::Hash, Layout::Packed(Shape::ExpiringHash, Listpack)),
        24 if family == Family::Redis => (Type::Hash, Layout::Expiring(FieldExpiry::FromLeast)),
        25 if family == Family::Redis => (Type::Hash, Layout::LeastThenPacked),
        26 if family == Family::Redis => (Type::Stream, Layout::Stream(4)),
        _ => return Err(Box::new(refusal(family, code))),
    })
}

/// Why a type code or opcode is not read.
#[cold]
pub(crate) fn refusal(family: Family, code: u8) -> ErrorKind {
    let what = match (family, code) {
        (_, 6) => "module value of a pre-release of Redis 4.0, whose length only the module knows",
        (Family::Redis, 27) => "stream of Redis 8.8",
        (Family::Redis, 28) => "array of Redis 8.8",
        (Family::Redis, 29..=33) => "hash template or rate limiter of Redis 8.10",
        (Family::Valkey, 23) => "hash of Valkey 9.2",
        (Family::Valkey, 24..=33) => "value of Redis under the magic of Valkey",
        (Family::Valkey, 242) => "update of Valkey 9.2",
        (Family::Redis, SLOT_IMPORT) => "key metadata of Redis 8.6",
        (_, OPCODES..) => return ErrorKind::UnknownOpcode { code, vendor: None },
        _ => return ErrorKind::UnknownType { code, vendor: None },
    };
    ErrorKind::Unsupported { code, what }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_read_or_refused_by_its_number() {
        let read = |family| -> Vec<u8> { (0..=255).filter(|code| layout(family, *code).is_ok()).collect() };
        let both: Vec<u8> = (0..=22).filter(|code| ![6, 8].contains(code)).collect();
        assert_eq!(read(Family::Valkey), both);
        assert_eq!(read(Family::Redis), [both, vec![23, 24, 25, 26]].concat());
        assert_eq!(refusal(Family::Redis, 8).name(), "unknown_type");
        assert_eq!(refusal(Family::Redis, 242).name(), "unknown_opcode");
        assert_eq!(refusal(Family::Valkey, 242).name(), "unsupported");
    }
}
