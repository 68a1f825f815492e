//! What a file holds: keys, elements, bytes and expiry per database and type, and a digest per database.

use std::collections::BTreeMap;

use crate::digest::{Digest, mix};
use crate::error::{Defect, ErrorKind};
use crate::opcode::Type;

/// Databases with keys in one file, at most.
pub const DATABASES_MAX: usize = 16 * 1024;

/// The counts of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Census {
    /// The databases that hold keys.
    pub dbs: BTreeMap<u32, DbCensus>,
}

impl Census {
    /// The sums over all databases.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for db in self.dbs.values() {
            totals.keys += db.keys;
            totals.expires += db.expires;
            totals.bytes += db.bytes();
        }
        totals
    }

    /// Adds the counts of another file, which has none of these keys: together they are those of one file with all.
    pub fn absorb(&mut self, other: &Census) {
        for (db, from) in &other.dbs {
            let into = self.dbs.entry(*db).or_default();
            into.keys += from.keys;
            into.expires += from.expires;
            for (kind, counts) in &from.types {
                let of_type = into.types.entry(*kind).or_default();
                of_type.keys += counts.keys;
                of_type.elements = of_type.elements.saturating_add(counts.elements);
                of_type.expiring_elements =
                    of_type.expiring_elements.saturating_add(counts.expiring_elements);
                of_type.bytes += counts.bytes;
            }
            let sum = u128::from_be_bytes(into.digest).wrapping_add(u128::from_be_bytes(from.digest));
            into.digest = sum.to_be_bytes();
            into.ttl.absorb(&from.ttl);
        }
    }
}

/// Sums over all databases of a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Keys.
    pub keys: u64,
    /// Keys with an expiry.
    pub expires: u64,
    /// Serialized bytes of all keys with their values and expiry.
    pub bytes: u64,
}

/// The counts of one database.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DbCensus {
    /// Keys, expired ones included.
    pub keys: u64,
    /// Keys with an expiry.
    pub expires: u64,
    /// The types that occur.
    pub types: BTreeMap<Type, TypeCensus>,
    /// Digest of all keys with their values and expiry, whatever their order and encoding.
    pub digest: Digest,
    /// When keys expire.
    pub ttl: Ttl,
}

impl DbCensus {
    /// Serialized bytes of all keys with their values and expiry.
    pub fn bytes(&self) -> u64 {
        self.types.values().map(|of_type| of_type.bytes).sum()
    }
}

/// The counts of one type in one database.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TypeCensus {
    /// Keys.
    pub keys: u64,
    /// Members, fields, items or entries; 1 per string.
    pub elements: u64,
    /// Fields that expire by themselves.
    pub expiring_elements: u64,
    /// Serialized bytes with key and expiry.
    pub bytes: u64,
}

/// When the keys of a database expire.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ttl {
    /// The earliest expiry, in Unix milliseconds.
    pub min_ms: Option<i64>,
    /// The latest expiry, in Unix milliseconds.
    pub max_ms: Option<i64>,
    /// Keys by time left when the file was written: already expired, less than an hour, a day, a week, 30
    /// days, and more. All zero if the file does not say when it was written (no `ctime` field).
    pub buckets: [u64; 6],
}

const HOUR_MS: i64 = 3_600_000;
/// Upper ends of the buckets, relative to the time of writing.
const BUCKET_ENDS_MS: [i64; 5] = [0, HOUR_MS, 24 * HOUR_MS, 7 * 24 * HOUR_MS, 30 * 24 * HOUR_MS];

impl Ttl {
    fn absorb(&mut self, other: &Ttl) {
        let of_both = |one: Option<i64>, two: Option<i64>, choose: fn(i64, i64) -> i64| match (one, two) {
            (Some(one), Some(two)) => Some(choose(one, two)),
            (one, two) => one.or(two),
        };
        self.min_ms = of_both(self.min_ms, other.min_ms, i64::min);
        self.max_ms = of_both(self.max_ms, other.max_ms, i64::max);
        for (into, from) in self.buckets.iter_mut().zip(other.buckets) {
            *into += from;
        }
    }

    fn add(&mut self, at_ms: i64, written_ms: Option<i64>) {
        self.min_ms = Some(self.min_ms.map_or(at_ms, |min| min.min(at_ms)));
        self.max_ms = Some(self.max_ms.map_or(at_ms, |max| max.max(at_ms)));
        if let Some(written_ms) = written_ms {
            let left = at_ms.saturating_sub(written_ms);
            let bucket = BUCKET_ENDS_MS.iter().take_while(|end| left >= **end).count();
            self.buckets[bucket] += 1;
        }
    }
}

#[derive(Default, Clone, Copy)]
struct Tally {
    keys: u64,
    expires: u64,
    digest: u128,
    types: [TypeCensus; Type::ALL.len()],
    ttl: Ttl,
}

/// A key with its value, to be counted.
pub(crate) struct Counted {
    pub(crate) kind: Type,
    pub(crate) elements: u64,
    pub(crate) expiring: u64,
    pub(crate) bytes: u64,
    pub(crate) key_hash: u128,
    pub(crate) value: u128,
    pub(crate) expire_at_ms: Option<i64>,
}

/// A census in the making; the current database is at hand without a search.
#[derive(Default)]
pub(crate) struct Counter {
    dbs: BTreeMap<u32, Tally>,
    db: u32,
    tally: Tally,
    /// When the file was written, in Unix milliseconds.
    pub(crate) written_ms: Option<i64>,
}

impl Counter {
    pub(crate) fn db(&self) -> u32 {
        self.db
    }

    pub(crate) fn select(&mut self, db: u32) -> Result<(), Defect> {
        if self.tally.keys > 0 {
            self.dbs.insert(self.db, self.tally);
        }
        if self.dbs.len() > DATABASES_MAX {
            return Err(Box::new(ErrorKind::LimitExceeded {
                what: "databases",
                limit: DATABASES_MAX as u64,
            }));
        }
        self.db = db;
        self.tally = self.dbs.get(&db).copied().unwrap_or_default();
        Ok(())
    }

    #[inline]
    pub(crate) fn add(&mut self, key: &Counted) {
        let tally = &mut self.tally;
        tally.keys += 1;
        let mut digest = mix(key.key_hash, key.value);
        if let Some(at_ms) = key.expire_at_ms {
            digest = mix(digest, u128::from(at_ms.cast_unsigned()));
            tally.expires += 1;
            tally.ttl.add(at_ms, self.written_ms);
        }
        tally.digest = tally.digest.wrapping_add(digest);
        let of_type = &mut tally.types[key.kind as usize];
        of_type.keys += 1;
        of_type.elements = of_type.elements.saturating_add(key.elements);
        of_type.expiring_elements = of_type.expiring_elements.saturating_add(key.expiring);
        of_type.bytes += key.bytes;
    }

    pub(crate) fn finish(mut self) -> Census {
        if self.tally.keys > 0 {
            self.dbs.insert(self.db, self.tally);
        }
        let dbs = self.dbs.into_iter().map(|(db, tally)| {
            let types = Type::ALL
                .into_iter()
                .zip(tally.types)
                .filter(|(_, of_type)| of_type.keys > 0);
            let census = DbCensus {
                keys: tally.keys,
                expires: tally.expires,
                types: types.collect(),
                digest: tally.digest.to_be_bytes(),
                ttl: tally.ttl,
            };
            (db, census)
        });
        Census { dbs: dbs.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expiry_falls_into_the_bucket_of_its_distance() {
        let mut ttl = Ttl::default();
        for at in [-5, 0, HOUR_MS, 24 * HOUR_MS, 8 * 24 * HOUR_MS, i64::MAX] {
            ttl.add(at, Some(0));
        }
        assert_eq!(ttl.buckets, [1, 1, 1, 1, 1, 1]);
        assert_eq!((ttl.min_ms, ttl.max_ms), (Some(-5), Some(i64::MAX)));
        ttl.add(i64::MIN, Some(1));
        assert_eq!(ttl.buckets[0], 2);
    }
}
