//! Which keys of a backup a verb is about: the same options wherever some can be chosen.

use std::ops::RangeInclusive;

use clap::Args;
use engine::Selection;
use engine::selection::{Pattern, Slots, Ttl};

use crate::restore::options::{Select, sizes, type_by_name};

/// A key is taken where everything that is said holds for it.
#[derive(Args, Clone, Default)]
#[command(next_help_heading = "Which keys")]
pub(crate) struct Selectors {
    /// Only keys of this database; may be given many times
    #[arg(long = "db", value_name = "N")]
    dbs: Vec<u32>,
    /// Only this key; may be given many times
    #[arg(long = "key", value_name = "KEY")]
    keys: Vec<String>,
    /// Only keys that match, as KEYS matches: * ? [a-z] and backslash
    #[arg(long = "match", value_name = "GLOB")]
    glob: Option<String>,
    /// Only keys in which this regular expression is found; ^ and $ hold it to the whole key
    #[arg(long = "regex", value_name = "PATTERN")]
    pattern: Option<Pattern>,
    /// Only keys that begin so
    #[arg(long, value_name = "TEXT")]
    prefix: Option<String>,
    /// Only values of this type; may be given many times
    #[arg(long = "type", value_name = "TYPE", value_parser = type_by_name)]
    kinds: Vec<rdb::Type>,
    /// Only keys of these slots of a cluster, such as 0-8191 or 77
    #[arg(long, value_name = "A-B")]
    slots: Option<Slots>,
    /// Only keys of so many serialised bytes, with their value: 1000.. for so many or more, ..1000 for so many or fewer, 10..1000
    #[arg(long = "size", value_name = "BYTES", value_parser = sizes)]
    bytes: Option<RangeInclusive<u64>>,
    /// Only keys that never expire (none), that do (any), or in so many seconds after the backup was made: 3600.. or ..3600
    #[arg(long, value_name = "SECONDS")]
    ttl: Option<Ttl>,
}

impl Selectors {
    /// The keys that are named.
    pub(super) fn keys(&self) -> Vec<Vec<u8>> {
        self.keys.iter().cloned().map(String::into_bytes).collect()
    }

    /// Whether something is said of sizes, which are known only after a value was read.
    pub(super) fn judges_sizes(&self) -> bool {
        self.bytes.is_some()
    }

    /// What a restore is told.
    pub(super) fn select(&self) -> Select {
        let text = |of: Option<&dyn std::fmt::Display>| of.map(ToString::to_string);
        Select {
            db: self.dbs.iter().copied().collect(),
            key: self.keys.clone(),
            glob: self.glob.clone(),
            regex: text(self.pattern.as_ref().map(|of| of as _)),
            prefix: self.prefix.clone(),
            kinds: self.kinds.iter().map(|kind| kind.name().to_owned()).collect(),
            slots: text(self.slots.as_ref().map(|of| of as _)),
            size: self
                .bytes
                .as_ref()
                .map(|range| format!("{}..{}", range.start(), range.end())),
            ttl: text(self.ttl.as_ref().map(|of| of as _)),
        }
    }

    /// What the engine is told; of expiries in a file that was written then, Unix milliseconds.
    pub(super) fn selection(&self, written_ms: i64) -> Selection {
        Selection {
            dbs: self.dbs.iter().copied().collect(),
            keys: self.keys().into_iter().collect(),
            glob: self.glob.clone().map(String::into_bytes),
            pattern: self.pattern.clone(),
            prefix: self.prefix.clone().map(String::into_bytes),
            kinds: self.kinds.clone(),
            slots: self.slots,
            bytes: self.bytes.clone(),
            ttl: self.ttl,
            written_ms,
        }
    }
}
