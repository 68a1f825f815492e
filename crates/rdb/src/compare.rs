//! Compares the keys of two files, exactly and in bounded memory.
//!
//! Of each key a record is kept: a fingerprint of database and name, seeded at random for both sides as in the search for
//! duplicate keys; the digest of the value, the expiry, the type, and the first bytes of the name, to be told. Records are
//! sorted in memory, moved as sorted runs into the caller's [`Spill`], and merged at the end, both sides at once.
//!
//! Values are equal where their digests of 128 bits are: whatever the encoding, the order of members, and the version of the
//! file. Digests are not keyed: who chooses values can, with much work, make two that look equal.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hash::{BuildHasher, RandomState};

use crate::digest::mix;
use crate::distinct::Spill;
use crate::event::{KeySummary, Sink};
use crate::opcode::Type;

/// Bytes of a name that are kept to be told.
pub const NAME_BYTES_MAX: usize = 256;
/// Bytes of records that are sorted at once; their order takes half as much again.
const BUFFER_BYTES: usize = 8 * 1024 * 1024;
/// Runs that are merged at once, each through a buffer of [`CURSOR_BYTES`]: 4 MiB for a side, twice that where runs of
/// runs were made. Ends at 2 TiB of records.
const RUNS_MAX: usize = 512;
const CURSOR_BYTES: usize = 8 * 1024;
/// A record without its name.
const HEAD_BYTES: usize = 48;
/// Bytes appended to the spill at once.
const APPEND_BYTES: usize = 256 * 1024;
const NO_EXPIRY: i64 = i64::MIN;

type Print = [u64; 2];

/// How the keys of both sides are told apart: chosen at random, so that nobody can prepare keys that look like one.
#[derive(Debug, Clone, Copy)]
pub struct KeySeed(u64);

impl KeySeed {
    /// A new one for one comparison.
    pub fn random() -> Self {
        Self(RandomState::new().hash_one(0))
    }

    fn print(self, key: &KeySummary<'_>) -> Print {
        let seed = self.0 ^ u64::from(key.db).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let print = match key.key_bytes > key.key.len() as u64 {
            false => xxhash_rust::xxh3::xxh3_128_with_seed(key.key, seed),
            true => mix(u128::from(seed), key.key_hash),
        };
        [(print >> 64) as u64, print as u64]
    }
}

/// A sorted run in the spill.
#[derive(Clone, Copy)]
struct Run {
    start: u64,
    bytes: u64,
}

/// Gathers the keys of one side, of one file or several that have no key in common.
///
/// Memory: 8 MiB of records and 4 MiB of their order.
pub struct KeyRecords {
    seed: KeySeed,
    spill: Box<dyn Spill + Send>,
    written: u64,
    /// Runs of runs first, then runs as they come.
    runs: Vec<Run>,
    merged: usize,
    records: Vec<u8>,
    order: Vec<(Print, u32)>,
    keys: u64,
    failure: Option<std::io::Error>,
}

impl KeyRecords {
    /// Gathers into `spill`, which is empty and used for nothing else. Both sides have the same seed.
    pub fn new(seed: KeySeed, spill: Box<dyn Spill + Send>) -> Self {
        Self {
            seed,
            spill,
            written: 0,
            runs: Vec::new(),
            merged: 0,
            records: Vec::new(),
            order: Vec::new(),
            keys: 0,
            failure: None,
        }
    }

    /// Keys so far.
    pub fn keys(&self) -> u64 {
        self.keys
    }

    /// What kept records from being stored; nothing is gathered any more then.
    pub fn failure(&mut self) -> Option<std::io::Error> {
        self.failure.take()
    }

    /// Moves the records in memory into the spill.
    fn drain(&mut self) -> std::io::Result<()> {
        if self.order.is_empty() {
            return Ok(());
        }
        self.order.sort_unstable();
        let start = self.written;
        let mut out = Appending::new(self.spill.as_mut());
        for (_, at) in &self.order {
            let record = &self.records[*at as usize..];
            out.put(&record[..length_of(record)])?;
        }
        self.written += out.finish()?;
        self.runs.push(Run {
            start,
            bytes: self.written - start,
        });
        self.order.clear();
        self.records.clear();
        if self.runs.len() - self.merged < RUNS_MAX {
            return Ok(());
        }
        if self.merged == RUNS_MAX {
            return Err(std::io::Error::other("more keys than can be compared"));
        }
        let of_these = self.runs.split_off(self.merged);
        let start = self.written;
        let mut merge = Merge::new(&of_these, self.spill.as_mut())?;
        // The merge reads what was appended before, and what it appends lies behind that.
        let mut held = Vec::with_capacity(APPEND_BYTES);
        while let Some(record) = merge.head() {
            held.extend_from_slice(record);
            merge.advance()?;
            if held.len() >= APPEND_BYTES - HEAD_BYTES - NAME_BYTES_MAX {
                merge.spill.append(&held)?;
                self.written += held.len() as u64;
                held.clear();
            }
        }
        merge.spill.append(&held)?;
        self.written += held.len() as u64;
        self.runs.push(Run {
            start,
            bytes: self.written - start,
        });
        self.merged += 1;
        Ok(())
    }
}

impl Sink for KeyRecords {
    fn key(&mut self, key: &KeySummary<'_>) {
        if self.failure.is_some() {
            return;
        }
        self.keys += 1;
        let print = self.seed.print(key);
        let name = &key.key[..key.key.len().min(NAME_BYTES_MAX)];
        // Below BUFFER_BYTES.
        self.order.push((print, self.records.len() as u32));
        let records = &mut self.records;
        records.extend_from_slice(&print[0].to_le_bytes());
        records.extend_from_slice(&print[1].to_le_bytes());
        records.extend_from_slice(&key.value_digest);
        records.extend_from_slice(&key.expire_at_ms.unwrap_or(NO_EXPIRY).to_le_bytes());
        records.extend_from_slice(&key.db.to_le_bytes());
        let kind = Type::ALL.iter().position(|kind| *kind == key.kind).unwrap_or(0);
        // Both are small.
        records.extend_from_slice(&[kind as u8, 0]);
        records.extend_from_slice(&(name.len() as u16).to_le_bytes());
        records.extend_from_slice(name);
        if records.len() >= BUFFER_BYTES - HEAD_BYTES - NAME_BYTES_MAX {
            self.failure = self.drain().err();
        }
    }
}

/// Appends in large pieces.
struct Appending<'a> {
    spill: &'a mut dyn Spill,
    held: Vec<u8>,
    written: u64,
}

impl<'a> Appending<'a> {
    fn new(spill: &'a mut dyn Spill) -> Self {
        Self {
            spill,
            held: Vec::with_capacity(APPEND_BYTES),
            written: 0,
        }
    }

    fn put(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        if self.held.len() + bytes.len() > APPEND_BYTES {
            self.flush()?;
        }
        self.held.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.spill.append(&self.held)?;
        self.written += self.held.len() as u64;
        self.held.clear();
        Ok(())
    }

    fn finish(mut self) -> std::io::Result<u64> {
        self.flush()?;
        Ok(self.written)
    }
}

fn word<const N: usize>(record: &[u8], at: usize) -> [u8; N] {
    let mut word = [0; N];
    if let Some(bytes) = record.get(at..at + N) {
        word.copy_from_slice(bytes);
    }
    word
}

fn print_of(record: &[u8]) -> Print {
    [
        u64::from_le_bytes(word(record, 0)),
        u64::from_le_bytes(word(record, 8)),
    ]
}

/// Bytes of the record at the start of these, which hold its head at least.
fn length_of(records: &[u8]) -> usize {
    HEAD_BYTES + usize::from(u16::from_le_bytes(word(records, 46)))
}

/// A record that is read.
struct Seen<'a> {
    digest: [u8; 16],
    expire_at_ms: i64,
    db: u32,
    kind: Type,
    name: &'a [u8],
}

impl<'a> Seen<'a> {
    fn of(record: &'a [u8]) -> Self {
        let kind = record.get(44).copied().unwrap_or(0);
        Self {
            digest: word(record, 16),
            expire_at_ms: i64::from_le_bytes(word(record, 32)),
            db: u32::from_le_bytes(word(record, 40)),
            kind: Type::ALL.get(usize::from(kind)).copied().unwrap_or(Type::String),
            name: record.get(HEAD_BYTES..).unwrap_or_default(),
        }
    }
}

/// A place in a run.
struct Cursor {
    run: Run,
    window: Vec<u8>,
    at: usize,
}

impl Cursor {
    /// The record that comes next; nothing at the end.
    fn record(&self) -> &[u8] {
        let rest = &self.window[self.at..];
        match rest.len() < HEAD_BYTES {
            true => &[],
            false => &rest[..length_of(rest).min(rest.len())],
        }
    }

    /// Makes sure that a whole record is at hand, where one is left.
    fn fill(&mut self, spill: &mut dyn Spill) -> std::io::Result<()> {
        let rest = &self.window[self.at..];
        if rest.len() >= HEAD_BYTES && rest.len() >= length_of(rest) || self.run.bytes == 0 {
            return Ok(());
        }
        self.window.drain(..self.at);
        self.at = 0;
        let held = self.window.len();
        let count = (CURSOR_BYTES - held).min(usize::try_from(self.run.bytes).unwrap_or(usize::MAX));
        self.window.resize(held + count, 0);
        spill.read_at(self.run.start, &mut self.window[held..])?;
        self.run.start += count as u64;
        self.run.bytes -= count as u64;
        Ok(())
    }
}

/// The records of several runs in the order of their fingerprints.
struct Merge<'a> {
    spill: &'a mut dyn Spill,
    cursors: Vec<Cursor>,
    heads: BinaryHeap<Reverse<(Print, usize)>>,
}

impl<'a> Merge<'a> {
    fn new(runs: &[Run], spill: &'a mut dyn Spill) -> std::io::Result<Self> {
        let mut merge = Self {
            spill,
            cursors: Vec::new(),
            heads: BinaryHeap::new(),
        };
        for (at, run) in runs.iter().enumerate() {
            merge.cursors.push(Cursor {
                run: *run,
                window: Vec::with_capacity(CURSOR_BYTES),
                at: 0,
            });
            merge.note(at)?;
        }
        Ok(merge)
    }

    fn note(&mut self, at: usize) -> std::io::Result<()> {
        let cursor = &mut self.cursors[at];
        cursor.fill(self.spill)?;
        let record = cursor.record();
        if !record.is_empty() {
            self.heads.push(Reverse((print_of(record), at)));
        }
        Ok(())
    }

    /// The record that comes next.
    fn head(&self) -> Option<&[u8]> {
        let Reverse((_, at)) = self.heads.peek()?;
        Some(self.cursors[*at].record())
    }

    fn advance(&mut self) -> std::io::Result<()> {
        if let Some(Reverse((_, at))) = self.heads.pop() {
            let cursor = &mut self.cursors[at];
            cursor.at += cursor.record().len();
            self.note(at)?;
        }
        Ok(())
    }
}

/// What became of a key from the first side to the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The second side alone has it.
    Added(Type),
    /// The first side alone has it.
    Removed(Type),
    /// Both have it, not as the same.
    Changed {
        /// Type on the first side.
        from: Type,
        /// Type on the second side.
        to: Type,
        /// Whether the values differ.
        value: bool,
        /// Whether the expiry times of the key differ.
        expiry: bool,
    },
}

/// A key that differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Difference<'a> {
    /// Its database.
    pub db: u32,
    /// Its name, or the first [`NAME_BYTES_MAX`] bytes of it.
    pub key: &'a [u8],
    /// What became of it.
    pub fate: Fate,
}

/// Tells every key that differs, in no order that means anything; returns how many are the same.
///
/// Memory: 16 MiB at most.
///
/// # Errors
/// Those of the spills, and what `tell` returns.
pub fn compare(
    mut first: KeyRecords,
    mut second: KeyRecords,
    mut tell: impl FnMut(Difference<'_>) -> std::io::Result<()>,
) -> std::io::Result<u64> {
    for side in [&mut first, &mut second] {
        match side.failure.take() {
            Some(failure) => return Err(failure),
            None => side.drain()?,
        }
        // Their memory is for the merge now.
        side.records = Vec::new();
        side.order = Vec::new();
    }
    let mut before = Merge::new(&first.runs, first.spill.as_mut())?;
    let mut after = Merge::new(&second.runs, second.spill.as_mut())?;
    let mut same = 0;
    loop {
        let (from, to) = match (before.head(), after.head()) {
            (None, None) => return Ok(same),
            (from, None) => (from, None),
            (None, to) => (None, to),
            (Some(from), Some(to)) => match print_of(from).cmp(&print_of(to)) {
                std::cmp::Ordering::Less => (Some(from), None),
                std::cmp::Ordering::Greater => (None, Some(to)),
                std::cmp::Ordering::Equal => (Some(from), Some(to)),
            },
        };
        let (from, to) = (from.map(Seen::of), to.map(Seen::of));
        let (has_from, has_to) = (from.is_some(), to.is_some());
        match (from, to) {
            (Some(from), Some(to)) => {
                let fate = Fate::Changed {
                    from: from.kind,
                    to: to.kind,
                    value: from.kind != to.kind || from.digest != to.digest,
                    expiry: from.expire_at_ms != to.expire_at_ms,
                };
                match fate {
                    Fate::Changed {
                        value: false,
                        expiry: false,
                        ..
                    } => same += 1,
                    fate => tell(Difference {
                        db: to.db,
                        key: to.name,
                        fate,
                    })?,
                }
            }
            (Some(from), None) => tell(Difference {
                db: from.db,
                key: from.name,
                fate: Fate::Removed(from.kind),
            })?,
            (None, Some(to)) => tell(Difference {
                db: to.db,
                key: to.name,
                fate: Fate::Added(to.kind),
            })?,
            (None, None) => {}
        }
        if has_from {
            before.advance()?;
        }
        if has_to {
            after.advance()?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[derive(Default)]
    struct Kept(Vec<u8>);

    impl Spill for Kept {
        fn append(&mut self, bytes: &[u8]) -> std::io::Result<()> {
            self.0.extend_from_slice(bytes);
            Ok(())
        }

        fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
            let start = offset as usize;
            buffer.copy_from_slice(&self.0[start..start + buffer.len()]);
            Ok(())
        }

        fn clear(&mut self) -> std::io::Result<()> {
            self.0.clear();
            Ok(())
        }
    }

    /// A key by its number; `value` and `expiry` say what it has.
    fn put(records: &mut KeyRecords, db: u32, number: u64, kind: Type, value: u8, expire_at_ms: Option<i64>) {
        let name = format!("key:{number}:{}", "x".repeat((number % 300) as usize));
        records.key(&KeySummary {
            db,
            key: name.as_bytes(),
            key_hash: 0,
            key_bytes: name.len() as u64,
            kind,
            type_code: 0,
            expire_at_ms,
            elements: 1,
            expiring_elements: 0,
            bytes: 10,
            value_digest: [value; 16],
            offset: 0,
        });
    }

    fn sides() -> (KeyRecords, KeyRecords) {
        let seed = KeySeed::random();
        let side = || KeyRecords::new(seed, Box::<Kept>::default());
        (side(), side())
    }

    #[test]
    fn every_fate_is_told_with_its_key_whatever_the_order_and_however_many_runs() {
        let (mut first, mut second) = sides();
        let many = 200_000;
        for number in 0..many {
            put(&mut first, 0, number, Type::Hash, 1, None);
        }
        for number in (10..many + 10).rev() {
            let (kind, value, expiry) = match number {
                77 => (Type::Hash, 2, None),
                78 => (Type::Hash, 1, Some(9)),
                79 => (Type::Set, 1, None),
                _ => (Type::Hash, 1, None),
            };
            put(&mut second, 0, number, kind, value, expiry);
        }
        // The same name in another database is another key.
        put(&mut second, 1, 50, Type::Hash, 1, None);
        assert!(first.runs.len() > 3, "{} runs", first.runs.len());
        let mut told = BTreeSet::new();
        let same = compare(first, second, |seen| {
            let name = String::from_utf8_lossy(seen.key).into_owned();
            let number: u64 = name.split(':').nth(1).unwrap().parse().unwrap();
            assert!(name.len() <= NAME_BYTES_MAX);
            assert!(
                told.insert((number, seen.db, format!("{:?}", seen.fate))),
                "{seen:?}"
            );
            Ok(())
        })
        .unwrap();
        assert_eq!(same, many - 10 - 3);
        let count = |start: &str| told.iter().filter(|(.., fate)| fate.starts_with(start)).count();
        assert_eq!((count("Added"), count("Removed"), count("Changed")), (11, 10, 3));
        let changed = |value, expiry, to| {
            let from = Type::Hash;
            format!(
                "{:?}",
                Fate::Changed {
                    from,
                    to,
                    value,
                    expiry
                }
            )
        };
        assert!(told.contains(&(77, 0, changed(true, false, Type::Hash))));
        assert!(told.contains(&(78, 0, changed(false, true, Type::Hash))));
        assert!(told.contains(&(79, 0, changed(true, false, Type::Set))));
        assert!(told.contains(&(50, 1, "Added(Hash)".to_owned())));
    }

    #[test]
    fn runs_of_runs_lose_no_key() {
        let (mut first, mut second) = sides();
        let count = 3 * RUNS_MAX as u64;
        for number in 0..count {
            put(&mut first, 0, number, Type::String, 1, None);
            // As if the memory were full after each.
            first.drain().unwrap();
            put(&mut second, 0, number, Type::String, 1, None);
        }
        assert_eq!(first.merged, 3);
        assert_eq!(compare(first, second, |seen| panic!("{seen:?}")).unwrap(), count);
    }

    #[test]
    fn sides_without_keys_are_the_same() {
        let (first, second) = sides();
        assert_eq!(compare(first, second, |seen| panic!("{seen:?}")).unwrap(), 0);
    }
}
