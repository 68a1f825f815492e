//! What becomes of the database, the name and the expiry of a key.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

/// What a key is called in the target.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Naming {
    /// As in the backup.
    #[default]
    Kept,
    /// With this before it.
    Into(Vec<u8>),
    /// Where it begins with the first, with the second in its place.
    Rewritten(Vec<u8>, Vec<u8>),
}

/// When a key expires in the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Expiry {
    /// When it would have in the source.
    #[default]
    Absolute,
    /// As long after the replay began as it would have after the backup was made.
    Shift,
    /// Never.
    Strip,
}

/// What becomes of a key but for its value.
#[derive(Debug, Clone, Default)]
pub struct Shape {
    /// Databases whose keys go to another one: from, to.
    pub dbs: BTreeMap<u32, u32>,
    /// Its name.
    pub naming: Naming,
    /// Its expiry.
    pub expiry: Expiry,
}

/// Why a name is none that a key can get.
pub(super) const CLAIMED: &str =
    "its name begins as those do that others are rewritten to, and could be one of theirs";

impl Shape {
    /// The database in the target.
    pub(super) fn db(&self, db: u32) -> u32 {
        self.dbs.get(&db).copied().unwrap_or(db)
    }

    /// The name in the target. `None`: [`CLAIMED`].
    pub(super) fn name<'a>(&self, key: &'a [u8]) -> Option<Cow<'a, [u8]>> {
        match &self.naming {
            Naming::Kept => Some(Cow::Borrowed(key)),
            Naming::Into(prefix) => Some(Cow::Owned([prefix, key].concat())),
            Naming::Rewritten(from, to) => match key.strip_prefix(&from[..]) {
                Some(rest) => Some(Cow::Owned([to, rest].concat())),
                None => (!key.starts_with(to)).then_some(Cow::Borrowed(key)),
            },
        }
    }

    /// The time by which keys have expired, Unix milliseconds: when the replay began or, where expiries are not kept as they
    /// are, when the backup was made.
    pub(super) fn over_by(&self, judged_at_ms: i64, written_ms: Option<i64>) -> i64 {
        match self.expiry {
            Expiry::Absolute => judged_at_ms,
            Expiry::Shift | Expiry::Strip => written_ms.unwrap_or(judged_at_ms),
        }
    }

    /// When a key expires in the target.
    pub(super) fn expire_at(&self, at_ms: i64, judged_at_ms: i64, written_ms: Option<i64>) -> Option<i64> {
        match self.expiry {
            Expiry::Absolute => Some(at_ms),
            Expiry::Shift => {
                let shift_ms = judged_at_ms.saturating_sub(written_ms.unwrap_or(judged_at_ms));
                Some(at_ms.saturating_add(shift_ms))
            }
            Expiry::Strip => None,
        }
    }

    /// Where databases with keys that are selected go to: to, from. One to one where none is [`Shape::crowded`].
    pub(super) fn sources(&self, selected: &BTreeSet<u32>) -> BTreeMap<u32, u32> {
        selected.iter().map(|db| (self.db(*db), *db)).collect()
    }

    /// Where a key of the target comes from. Exact, because no two keys get the same place.
    pub(super) fn source_of(&self, sources: &BTreeMap<u32, u32>, db: u32, key: &[u8]) -> (u32, Vec<u8>) {
        let db = sources.get(&db).copied().unwrap_or(db);
        let key = match &self.naming {
            Naming::Kept => key.to_vec(),
            Naming::Into(prefix) => key.strip_prefix(&prefix[..]).unwrap_or(key).to_vec(),
            Naming::Rewritten(from, to) => match key.strip_prefix(&to[..]) {
                Some(rest) => [from, rest].concat(),
                None => key.to_vec(),
            },
        };
        (db, key)
    }

    /// Whether a name of the target is one that a key of the backup could get.
    pub(super) fn could_be_made(&self, key: &[u8]) -> bool {
        match &self.naming {
            Naming::Into(prefix) => key.starts_with(prefix),
            Naming::Rewritten(from, to) => key.starts_with(to) || !key.starts_with(from),
            Naming::Kept => true,
        }
    }

    /// Of databases with keys that are selected: one that two of them go to.
    pub(super) fn crowded(&self, selected: &BTreeSet<u32>) -> Option<u32> {
        let mut taken = BTreeSet::new();
        selected
            .iter()
            .map(|db| self.db(*db))
            .find(|to| !taken.insert(*to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_the_target_is_of_one_key_of_the_backup() {
        let text = |bytes: &[u8]| bytes.to_vec();
        for naming in [
            Naming::Kept,
            Naming::Into(text(b"old:")),
            Naming::Rewritten(text(b"user:"), text(b"u:")),
            Naming::Rewritten(text(b"u"), text(b"uu")),
            Naming::Rewritten(text(b""), text(b"x")),
        ] {
            let shape = Shape {
                dbs: [(0, 4), (4, 0)].into(),
                naming,
                expiry: Expiry::Absolute,
            };
            let mut made = BTreeSet::new();
            for key in [&b"user:1"[..], b"u:1", b"u", b"uu", b"x", b"", b"other"] {
                let Some(name) = shape.name(key) else {
                    continue;
                };
                assert!(made.insert(name.to_vec()), "{shape:?} {key:?}");
                assert!(shape.could_be_made(&name));
                assert_eq!(
                    shape.source_of(&shape.sources(&[0, 4].into()), shape.db(4), &name),
                    (4, key.to_vec()),
                    "{shape:?}"
                );
            }
            assert_eq!(shape.crowded(&[0, 4].into()), None);
        }
        let both = Shape {
            dbs: [(1, 0)].into(),
            ..Shape::default()
        };
        assert_eq!(both.crowded(&[0, 1].into()), Some(0));
        assert_eq!(both.crowded(&[1, 2].into()), None);
        let two = Shape {
            dbs: [(1, 0), (2, 0)].into(),
            ..Shape::default()
        };
        assert_eq!(
            two.source_of(&two.sources(&[2].into()), 0, b"k"),
            (2, b"k".to_vec())
        );
    }
}
