//! Which keys are written.

use std::collections::HashSet;
use std::str::FromStr;

use rdb::Type;

use super::glob;

/// Slots of a cluster, the last one among them.
#[derive(Clone, Copy)]
pub(super) struct Slots {
    first: u16,
    last: u16,
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

/// Which keys are written.
pub(super) struct Selection {
    pub(super) db: Option<u32>,
    pub(super) glob: Option<Vec<u8>>,
    /// Any of these; none: every key.
    pub(super) keys: HashSet<Vec<u8>>,
    pub(super) kind: Option<Type>,
    pub(super) slots: Option<Slots>,
}

impl Selection {
    pub(super) fn takes(&self, db: u32, kind: Type, key: &[u8]) -> bool {
        self.db.is_none_or(|wanted| wanted == db)
            && self.kind.is_none_or(|wanted| wanted == kind)
            && (self.keys.is_empty() || self.keys.contains(key))
            && self
                .slots
                .is_none_or(|slots| (slots.first..=slots.last).contains(&rdb::slot_of(key)))
            && self
                .glob
                .as_ref()
                .is_none_or(|pattern| glob::matches(pattern, key))
    }

    /// Whether a key is judged by its bytes, of which a very long one shows only the first.
    pub(super) fn judges_bytes(&self) -> bool {
        !self.keys.is_empty() || self.slots.is_some() || self.glob.is_some()
    }
}
