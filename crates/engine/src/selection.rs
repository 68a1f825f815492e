//! Which keys are meant: one type for every verb that takes some of a backup.

mod glob;

use std::collections::BTreeSet;
use std::collections::HashSet;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use rdb::Type;
use regex::bytes::{Regex, RegexBuilder};

/// Memory that a compiled regular expression may take: what people write takes a few KiB.
const REGEX_BYTES_MAX: usize = 1024 * 1024;

/// Slots of a cluster, the last one among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slots {
    first: u16,
    last: u16,
}

impl fmt::Display for Slots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for Slots {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (first.parse(), last.parse()) {
            (Ok(first), Ok(last)) if first <= last && last < 16 * 1024 => Ok(Self { first, last }),
            _ => Err("two numbers from 0 to 16383 are wanted, such as 0-8191".to_owned()),
        }
    }
}

/// A regular expression for keys, of bytes: `^` and `$` hold it to the whole key.
#[derive(Debug, Clone)]
pub struct Pattern(Regex);

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        RegexBuilder::new(text)
            .size_limit(REGEX_BYTES_MAX)
            .build()
            .map(Self)
            .map_err(|error| error.to_string())
    }
}

/// When a key expires, counted from the moment when the file was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ttl {
    /// Never.
    None,
    /// At some time.
    Some,
    /// After at least so many seconds.
    AtLeast(u64),
    /// After at most so many seconds.
    AtMost(u64),
}

impl fmt::Display for Ttl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Some => f.write_str("any"),
            Self::AtLeast(seconds) => write!(f, "{seconds}.."),
            Self::AtMost(seconds) => write!(f, "..{seconds}"),
        }
    }
}

impl FromStr for Ttl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted =
            "none, any, or seconds such as 3600.. (so many or more) or ..3600 (so many or fewer) are wanted";
        match text {
            "none" => Ok(Self::None),
            "any" => Ok(Self::Some),
            _ => match text.split_once("..") {
                Some((least, "")) => least.parse().map(Self::AtLeast).map_err(|_| wanted.to_owned()),
                Some(("", most)) => most.parse().map(Self::AtMost).map_err(|_| wanted.to_owned()),
                _ => Err(wanted.to_owned()),
            },
        }
    }
}

/// What is judged: a key of a backup.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// The database.
    pub db: u32,
    /// The key, or the first bytes of one above 1 MiB.
    pub key: &'a [u8],
    /// The type of the value.
    pub kind: Type,
    /// Expiry, in Unix milliseconds.
    pub expire_at_ms: Option<i64>,
    /// Serialised bytes of the entry, where they are known.
    pub bytes: Option<u64>,
}

/// Which keys are meant: those that everything which is said holds for.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Of any of these databases; none: of every one.
    pub dbs: BTreeSet<u32>,
    /// Any of these; none: every key.
    pub keys: HashSet<Vec<u8>>,
    /// As `KEYS` matches.
    pub glob: Option<Vec<u8>>,
    /// Found anywhere in the key.
    pub pattern: Option<Pattern>,
    /// With what the key begins.
    pub prefix: Option<Vec<u8>>,
    /// Of any of these types; none: of every one.
    pub kinds: Vec<Type>,
    /// In these slots.
    pub slots: Option<Slots>,
    /// So many serialised bytes.
    pub bytes: Option<RangeInclusive<u64>>,
    /// When it expires.
    pub ttl: Option<Ttl>,
    /// When the file was written, Unix milliseconds: what [`Selection::ttl`] counts from.
    pub written_ms: i64,
}

impl Selection {
    /// Whether a key is meant. What is not known of it does not count against it.
    pub fn takes(&self, key: &Candidate<'_>) -> bool {
        self.takes_name(key.db, key.key)
            && (self.kinds.is_empty() || self.kinds.contains(&key.kind))
            && self
                .bytes
                .as_ref()
                .is_none_or(|wanted| key.bytes.is_none_or(|bytes| wanted.contains(&bytes)))
            && self
                .ttl
                .is_none_or(|wanted| self.expires(wanted, key.expire_at_ms))
    }

    /// Whether it leaves out anything that there could be.
    pub fn chooses(&self) -> bool {
        self.judges_values() || self.judges_bytes() || !self.dbs.is_empty()
    }

    /// Whether a key may be meant, as far as its database and its name tell.
    pub fn takes_name(&self, db: u32, key: &[u8]) -> bool {
        (self.dbs.is_empty() || self.dbs.contains(&db))
            && (self.keys.is_empty() || self.keys.contains(key))
            && self.prefix.as_ref().is_none_or(|prefix| key.starts_with(prefix))
            && self
                .slots
                .is_none_or(|slots| (slots.first..=slots.last).contains(&rdb::slot_of(key)))
            && self
                .glob
                .as_ref()
                .is_none_or(|pattern| glob::matches(pattern, key))
            && self
                .pattern
                .as_ref()
                .is_none_or(|pattern| pattern.0.is_match(key))
    }

    fn expires(&self, wanted: Ttl, expire_at_ms: Option<i64>) -> bool {
        let Some(at_ms) = expire_at_ms else {
            return wanted == Ttl::None;
        };
        let left_ms = u64::try_from(at_ms.saturating_sub(self.written_ms)).unwrap_or(0);
        match wanted {
            Ttl::None => false,
            Ttl::Some => true,
            Ttl::AtLeast(seconds) => left_ms >= seconds.saturating_mul(1000),
            Ttl::AtMost(seconds) => left_ms <= seconds.saturating_mul(1000),
        }
    }

    /// Whether a key is judged by its bytes, of which a very long one shows only the first.
    pub fn judges_bytes(&self) -> bool {
        !self.keys.is_empty()
            || self.slots.is_some()
            || self.glob.is_some()
            || self.pattern.is_some()
            || self.prefix.is_some()
    }

    /// Whether a key is judged by its value, which its name does not tell.
    pub fn judges_values(&self) -> bool {
        !self.kinds.is_empty() || self.bytes.is_some() || self.ttl.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_selector_narrows_what_is_taken() {
        let key = Candidate {
            db: 1,
            key: b"user:12",
            kind: Type::Hash,
            expire_at_ms: Some(61_000),
            bytes: Some(100),
        };
        let all = || Selection {
            written_ms: 1000,
            ..Selection::default()
        };
        assert!(all().takes(&key) && !all().judges_bytes() && !all().judges_values());
        let cases: Vec<(Selection, Selection)> = vec![
            (
                Selection {
                    dbs: [1, 2].into(),
                    ..all()
                },
                Selection {
                    dbs: [0].into(),
                    ..all()
                },
            ),
            (
                Selection {
                    pattern: "^user:[0-9]+$".parse().ok(),
                    ..all()
                },
                Selection {
                    pattern: "^ser".parse().ok(),
                    ..all()
                },
            ),
            (
                Selection {
                    prefix: Some(b"user:".to_vec()),
                    ..all()
                },
                Selection {
                    prefix: Some(b"user:12x".to_vec()),
                    ..all()
                },
            ),
            (
                Selection {
                    kinds: vec![Type::Set, Type::Hash],
                    ..all()
                },
                Selection {
                    kinds: vec![Type::Set],
                    ..all()
                },
            ),
            (
                Selection {
                    bytes: Some(100..=100),
                    ..all()
                },
                Selection {
                    bytes: Some(0..=99),
                    ..all()
                },
            ),
            (
                Selection {
                    ttl: Some(Ttl::AtLeast(60)),
                    ..all()
                },
                Selection {
                    ttl: Some(Ttl::AtLeast(61)),
                    ..all()
                },
            ),
            (
                Selection {
                    ttl: Some(Ttl::AtMost(60)),
                    ..all()
                },
                Selection {
                    ttl: Some(Ttl::AtMost(59)),
                    ..all()
                },
            ),
            (
                Selection {
                    ttl: Some(Ttl::Some),
                    ..all()
                },
                Selection {
                    ttl: Some(Ttl::None),
                    ..all()
                },
            ),
        ];
        for (taking, refusing) in cases {
            assert!(taking.takes(&key), "{taking:?}");
            assert!(!refusing.takes(&key), "{refusing:?}");
        }
    }

    #[test]
    fn what_is_no_selector_is_said_to_be_none() {
        for (text, is_one) in [
            ("none", true),
            ("any", true),
            ("5..", true),
            ("..5", true),
            ("5", false),
            ("..", false),
        ] {
            let read = text.parse::<Ttl>();
            assert_eq!(read.is_ok(), is_one, "{text}");
            assert!(
                read.is_ok_and(|read| read.to_string() == text) || !is_one,
                "{text}"
            );
        }
        assert!("(".parse::<Pattern>().is_err());
        assert!("(a{1000}){1000}".parse::<Pattern>().is_err(), "too large");
        for (text, is_one) in [
            ("0-16383", true),
            ("7", true),
            ("0-16384", false),
            ("9-8", false),
            ("", false),
        ] {
            assert_eq!(text.parse::<Slots>().is_ok(), is_one, "{text}");
        }
    }
}
