//! The numbers of the format: value types and opcodes.

use crate::elements::Shape;
use crate::error::ErrorKind;
use crate::source::Packing;

/// The highest RDB version that is read.
pub const VERSION_MAX: u32 = 11;

pub(crate) const FUNCTION2: u8 = 245;
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
}

impl Type {
    /// All types, in their order.
    pub const ALL: [Self; 6] = [
        Self::String,
        Self::List,
        Self::Set,
        Self::ZSet,
        Self::Hash,
        Self::Stream,
    ];

    /// The word the `TYPE` command answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::List => "list",
            Self::Set => "set",
            Self::ZSet => "zset",
            Self::Hash => "hash",
            Self::Stream => "stream",
        }
    }
}

impl std::fmt::Display for Type {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// How a value is laid out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Layout {
    /// One string.
    Text,
    /// A count and that many strings, or pairs of strings.
    Strings(Shape),
    /// A count and that many pairs of a string and a score text.
    ScoreTexts,
    /// A count and that many pairs of a string and an eight-byte score.
    Scores,
    /// One string that packs all items.
    Packed(Shape, Packing),
    /// One string that packs all members of a set of integers.
    Intset,
    /// A count and that many packed strings.
    Nodes(Packing),
    /// A count and that many pairs of a form and a packed or plain string.
    FormedNodes,
    /// A stream; the generation of the layout, from 1.
    Stream(u8),
}

/// The type and layout behind a type code.
pub(crate) fn layout(code: u8) -> Result<(Type, Layout), ErrorKind> {
    use Packing::{Listpack, Ziplist, Zipmap};
    Ok(match code {
        0 => (Type::String, Layout::Text),
        1 => (Type::List, Layout::Strings(Shape::List)),
        2 => (Type::Set, Layout::Strings(Shape::Set)),
        3 => (Type::ZSet, Layout::ScoreTexts),
        4 => (Type::Hash, Layout::Strings(Shape::Hash)),
        5 => (Type::ZSet, Layout::Scores),
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
        _ => return Err(refusal(code)),
    })
}

/// Why a type code or opcode is not read.
fn refusal(code: u8) -> ErrorKind {
    let what = match code {
        6 => "module value of a pre-release engine",
        7 => "module value",
        22 | 23 => "hash with field expiry of a pre-release or Valkey engine",
        24 | 25 => "hash with field expiry",
        26 | 27 => "stream of a later engine",
        28 => "array value",
        243 => "key metadata or slot import",
        244 => "cluster slot information",
        246 => "function of a pre-release engine",
        247 => "module data",
        OPCODES.. => return ErrorKind::UnknownOpcode { code },
        _ => return ErrorKind::UnknownType { code },
    };
    ErrorKind::Unsupported { code, what }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_read_or_refused_by_its_number() {
        let read: Vec<u8> = (0..=255).filter(|code| layout(*code).is_ok()).collect();
        assert_eq!(
            read,
            [
                0, 1, 2, 3, 4, 5, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21
            ]
        );
        assert_eq!(refusal(8), ErrorKind::UnknownType { code: 8 });
        assert_eq!(refusal(242), ErrorKind::UnknownOpcode { code: 242 });
        assert_eq!(refusal(247).name(), "unsupported");
    }
}
