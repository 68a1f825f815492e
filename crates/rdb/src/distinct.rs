//! Finds keys that occur twice in one database, exactly and in bounded memory.
//!
//! Keys are chosen by whoever writes to the database, so their fingerprints are seeded at random: nobody can
//! prepare two keys that look like one. A fingerprint has 128 bits; two of a billion keys agree by chance once in
//! 10^20 files.
//!
//! Fingerprints are kept in a table whose slots follow their order, so that it is sorted almost for free. A full
//! table is drained as a sorted run into the caller's [`Spill`]; at the end of the file the runs are merged. A
//! duplicate within one table is found at once, or with the next [`WAITING_MAX`] keys where the table is large, one
//! across runs at the end.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::digest::mix;

/// Keeps what does not fit into memory: bytes are appended, and read back at their offset.
pub trait Spill {
    /// Appends bytes; the first ones are at offset 0.
    ///
    /// # Errors
    /// Whatever kept them from being stored: validation ends with [`ErrorKind::Spill`](crate::ErrorKind::Spill).
    fn append(&mut self, bytes: &[u8]) -> std::io::Result<()>;

    /// Fills `buffer` with the bytes at `offset`, all of which have been appended.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()>;

    /// Forgets all that was appended: the next bytes are at offset 0 again.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    fn clear(&mut self) -> std::io::Result<()>;
}

/// A spill that several searches use, one after the other.
#[derive(Clone)]
pub(crate) struct SharedSpill(Arc<Mutex<Box<dyn Spill + Send>>>);

impl SharedSpill {
    pub(crate) fn new(spill: Box<dyn Spill + Send>) -> Self {
        Self(Arc::new(Mutex::new(spill)))
    }

    fn inner(&self) -> MutexGuard<'_, Box<dyn Spill + Send>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Spill for SharedSpill {
    fn append(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.inner().append(bytes)
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        self.inner().read_at(offset, buffer)
    }

    fn clear(&mut self) -> std::io::Result<()> {
        self.inner().clear()
    }
}

/// Keys that are compared with each other without a [`Spill`]; with one, the keys of one sorted run.
pub const KEYS_IN_MEMORY_MAX: usize = SLOTS / 4 * 3;

/// Slots of the table: of 32 bytes, 4 MiB. More would not fit the second-level cache either.
const SLOTS: usize = 128 * 1024;
/// Slots of the first table; each that is full is replaced by one eight times its size, up to [`SLOTS`].
const SLOTS_FIRST: usize = 1024;
/// Keys that wait for their turn where the table does not fit the second-level cache: the slots of them all are asked for
/// before the first is looked at, so that the processor fetches them side by side. One by one, each waits 300 ns.
const WAITING_MAX: usize = 32;
/// Slots behind the last, for clusters that reach beyond it.
const SLACK: usize = 256;
const ENTRY_BYTES: usize = 32;
/// Runs that are merged at once, each through a buffer of [`MERGE_BUFFER_BYTES`]: 4 MiB in all.
const RUNS_MAX: usize = 1000;
const MERGE_BUFFER_BYTES: usize = 4 * 1024;
/// Bytes appended to the spill at once.
const APPEND_BYTES: usize = 64 * 1024;

/// A key, by its fingerprint.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Entry {
    /// The fingerprint; a high half of zero marks a free slot.
    print: [u64; 2],
    /// Absolute offset of the key's first opcode.
    offset: u64,
    db: u64,
}

impl Entry {
    fn to_bytes(self) -> [u8; ENTRY_BYTES] {
        let mut bytes = [0; ENTRY_BYTES];
        let words = [self.print[0], self.print[1], self.offset, self.db];
        for (bytes, word) in bytes.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    fn of_bytes(bytes: &[u8; ENTRY_BYTES]) -> Self {
        let (words, _) = bytes.as_chunks::<8>();
        let [first, second, offset, db] = [0, 1, 2, 3].map(|i| u64::from_le_bytes(words[i]));
        Self {
            print: [first, second],
            offset,
            db,
        }
    }
}

/// A key that occurs twice.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Twice {
    pub(crate) db: u32,
    pub(crate) first: u64,
    pub(crate) second: u64,
}

/// Why the search ended.
pub(crate) enum Found {
    Twice(Twice),
    Failed(std::io::Error),
}

impl From<std::io::Error> for Found {
    fn from(error: std::io::Error) -> Self {
        Self::Failed(error)
    }
}

fn twice(a: Entry, b: Entry) -> Found {
    Found::Twice(Twice {
        // Written from a u32.
        db: a.db as u32,
        first: a.offset.min(b.offset),
        second: a.offset.max(b.offset),
    })
}

/// A sorted run in the spill.
#[derive(Clone, Copy)]
struct Run {
    start: u64,
    entries: u64,
}

pub(crate) struct Distinct {
    seed: u64,
    slots: Vec<Entry>,
    /// Taken, but not in the table yet.
    waiting: Vec<Entry>,
    /// How far the first word of a fingerprint is shifted to become a slot, and before that to the left, where
    /// all of its first bits are equal.
    shift: u32,
    skip: u32,
    used: usize,
    /// Entries at which the table is full.
    room: usize,
    spill: Option<Box<dyn Spill + Send>>,
    written: u64,
    runs: Vec<Run>,
    /// Keys beyond what fits without a spill: nothing is known of them.
    is_exact: bool,
    /// Keys are kept in `waiting` for another search, see [`Self::gatherer`].
    gathers: bool,
}

impl Distinct {
    pub(crate) fn new(spill: Option<Box<dyn Spill + Send>>) -> Self {
        Self {
            seed: RandomState::new().hash_one(0),
            slots: Vec::new(),
            waiting: Vec::with_capacity(WAITING_MAX),
            shift: 0,
            skip: 0,
            used: 0,
            room: 0,
            spill,
            written: 0,
            runs: Vec::new(),
            is_exact: true,
            gathers: false,
        }
    }

    /// A search that compares nothing: its keys are taken by this one, see [`Self::gathered`].
    pub(crate) fn gatherer(&self) -> Self {
        Self {
            seed: self.seed,
            gathers: true,
            ..Self::new(None)
        }
    }

    /// Swaps the keys that were gathered for an empty list.
    pub(crate) fn gathered(&mut self, keys: &mut Vec<Entry>) {
        std::mem::swap(&mut self.waiting, keys);
    }

    /// Takes keys that a gatherer of this search gathered.
    pub(crate) fn take(&mut self, keys: &mut Vec<Entry>) -> Result<(), Found> {
        for entry in keys.drain(..) {
            if !self.is_exact {
                return Ok(());
            }
            self.add(entry)?;
        }
        Ok(())
    }

    /// Whether keys are of any use to it, for a gatherer.
    pub(crate) fn set_wanted(&mut self, is_wanted: bool) {
        self.is_exact = is_wanted;
    }

    /// Forgets all keys, for the next search.
    pub(crate) fn reset(&mut self) -> std::io::Result<()> {
        self.waiting.clear();
        self.slots.fill(Entry::default());
        self.used = 0;
        self.is_exact = true;
        if !self.runs.is_empty() {
            self.runs.clear();
            self.written = 0;
            if let Some(spill) = &mut self.spill {
                spill.clear()?;
            }
        }
        Ok(())
    }

    /// Whether every key was compared with every other.
    pub(crate) fn is_exact(&self) -> bool {
        self.is_exact
    }

    /// Takes a key in its database. `hash` stands for a key too long to be at hand.
    #[inline]
    pub(crate) fn insert(
        &mut self,
        db: u32,
        key: &[u8],
        hash: Option<u128>,
        offset: u64,
    ) -> Result<(), Found> {
        if !self.is_exact {
            return Ok(());
        }
        let seed = self.seed ^ u64::from(db).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let print = match hash {
            None => xxhash_rust::xxh3::xxh3_128_with_seed(key, seed),
            Some(hash) => mix(u128::from(seed), hash),
        };
        let entry = Entry {
            print: [((print >> 64) as u64).max(1), print as u64],
            offset,
            db: u64::from(db),
        };
        if self.gathers {
            self.waiting.push(entry);
            return Ok(());
        }
        self.add(entry)
    }

    #[inline]
    fn add(&mut self, entry: Entry) -> Result<(), Found> {
        if self.slots.len() <= SLOTS {
            return self.place(entry);
        }
        self.waiting.push(entry);
        match self.waiting.len() < WAITING_MAX {
            true => Ok(()),
            false => self.place_waiting(),
        }
    }

    fn place_waiting(&mut self) -> Result<(), Found> {
        let fetched = self.waiting.iter().fold(0, |all, entry| {
            all | self.slots.get(self.slot(entry)).map_or(0, |slot| slot.print[0])
        });
        std::hint::black_box(fetched);
        let mut waiting = std::mem::take(&mut self.waiting);
        for entry in waiting.drain(..) {
            if self.is_exact {
                self.place(entry)?;
            }
        }
        self.waiting = waiting;
        Ok(())
    }

    #[inline]
    fn place(&mut self, entry: Entry) -> Result<(), Found> {
        while self.used >= self.room || !self.put(entry)? {
            self.make_room()?;
            if !self.is_exact {
                break;
            }
        }
        Ok(())
    }

    #[inline]
    fn slot(&self, entry: &Entry) -> usize {
        ((entry.print[0] << self.skip) >> self.shift) as usize
    }

    /// Puts an entry into the table; `false` where a long cluster at the last slot left no room for it.
    #[inline]
    fn put(&mut self, entry: Entry) -> Result<bool, Found> {
        let mut at = self.slot(&entry);
        loop {
            match self.slots.get_mut(at) {
                Some(slot) if slot.print[0] == 0 => {
                    *slot = entry;
                    self.used += 1;
                    return Ok(true);
                }
                Some(slot) if slot.print == entry.print => return Err(twice(*slot, entry)),
                Some(_) => at += 1,
                None => return Ok(false),
            }
        }
    }

    /// Makes the table larger, or moves it into the spill, or gives up where there is none.
    #[cold]
    fn make_room(&mut self) -> Result<(), Found> {
        let slots = self.slots.len().saturating_sub(SLACK);
        if slots < SLOTS {
            let slots = if slots == 0 {
                SLOTS_FIRST
            } else {
                (slots * 8).min(SLOTS)
            };
            let old = std::mem::replace(&mut self.slots, vec![Entry::default(); slots + SLACK]);
            self.shift = u64::BITS - slots.trailing_zeros();
            self.room = slots / 4 * 3;
            self.used = 0;
            for entry in old.into_iter().filter(|entry| entry.print[0] != 0) {
                self.place(entry)?;
            }
            return Ok(());
        }
        if self.spill.is_none() {
            self.is_exact = false;
            return Ok(());
        }
        if self.runs.len() >= RUNS_MAX {
            self.merge(true)
        } else {
            let entries = self.drain()?;
            let start = self.written - entries * ENTRY_BYTES as u64;
            self.runs.push(Run { start, entries });
            Ok(())
        }
    }

    /// Appends the table's entries in their order to the spill, empties it, and returns how many they were.
    fn drain(&mut self) -> Result<u64, Found> {
        let Some(spill) = &mut self.spill else {
            return Ok(0);
        };
        let mut kept = 0;
        for at in 0..self.slots.len() {
            let entry = self.slots[at];
            if entry.print[0] == 0 {
                continue;
            }
            // An entry stands at its slot or a little behind it: few must be moved, and not far.
            let mut to = kept;
            while to > 0 && self.slots[to - 1] > entry {
                self.slots[to] = self.slots[to - 1];
                to -= 1;
            }
            self.slots[to] = entry;
            kept += 1;
        }
        let mut bytes = Vec::with_capacity(APPEND_BYTES);
        for entries in self.slots[..kept].chunks(APPEND_BYTES / ENTRY_BYTES) {
            bytes.clear();
            entries
                .iter()
                .for_each(|entry| bytes.extend_from_slice(&entry.to_bytes()));
            spill.append(&bytes)?;
            self.written += bytes.len() as u64;
        }
        self.slots.fill(Entry::default());
        self.used = 0;
        Ok(kept as u64)
    }

    /// Compares all keys with each other; to be called once, after the last key.
    pub(crate) fn finish(&mut self) -> Result<(), Found> {
        self.place_waiting()?;
        match self.runs.is_empty() {
            // All keys are in the table: compared when they came.
            true => Ok(()),
            false => self.merge(false),
        }
    }

    /// Moves the table into the spill and compares all runs with each other: part by part of the range of
    /// fingerprints, as many parts as let each fit into the table. Makes one run of all where `keep` is set.
    fn merge(&mut self, keep: bool) -> Result<(), Found> {
        let start = self.written;
        let entries = self.drain()?;
        self.runs.push(Run { start, entries });
        let mut cursors: Vec<Cursor> = self.runs.iter().map(|run| Cursor::new(*run)).collect();
        self.skip = self.runs.len().next_power_of_two().trailing_zeros();
        let (start, mut entries) = (self.written, 0);
        for part in 0..1u64 << self.skip {
            for cursor in &mut cursors {
                loop {
                    let Some(spill) = &mut self.spill else {
                        return Ok(());
                    };
                    match cursor.peek(spill.as_mut())? {
                        // Shifted twice, as one shift by all bits is none.
                        Some(entry) if entry.print[0] >> (u64::BITS - 1 - self.skip) >> 1 == part => {
                            cursor.at += 1;
                            if !self.put(entry)? {
                                let uneven = "fingerprints are not spread evenly";
                                return Err(Found::Failed(std::io::Error::other(uneven)));
                            }
                        }
                        _ => break,
                    }
                }
            }
            if keep {
                entries += self.drain()?;
            } else {
                self.slots.fill(Entry::default());
                self.used = 0;
            }
        }
        self.skip = 0;
        if keep {
            self.runs = vec![Run { start, entries }];
        }
        Ok(())
    }
}

/// A place in a run.
struct Cursor {
    run: Run,
    entries: Vec<Entry>,
    at: usize,
}

impl Cursor {
    fn new(run: Run) -> Self {
        Self {
            run,
            entries: Vec::new(),
            at: 0,
        }
    }

    /// The entry that comes next.
    #[inline]
    fn peek(&mut self, spill: &mut dyn Spill) -> std::io::Result<Option<Entry>> {
        if self.at == self.entries.len() {
            self.refill(spill)?;
        }
        Ok(self.entries.get(self.at).copied())
    }

    fn refill(&mut self, spill: &mut dyn Spill) -> std::io::Result<()> {
        let mut bytes = [0; MERGE_BUFFER_BYTES];
        let count = self.run.entries.min((MERGE_BUFFER_BYTES / ENTRY_BYTES) as u64);
        // At most as many as fit the buffer.
        let bytes = &mut bytes[..count as usize * ENTRY_BYTES];
        if count > 0 {
            spill.read_at(self.run.start, bytes)?;
        }
        self.run.start += bytes.len() as u64;
        self.run.entries -= count;
        self.entries.clear();
        let (entries, _) = bytes.as_chunks::<ENTRY_BYTES>();
        self.entries.extend(entries.iter().map(Entry::of_bytes));
        self.at = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    fn found(spill: bool, keys: impl Iterator<Item = (u32, u64)>) -> (Option<Twice>, bool) {
        let spill = spill.then(|| Box::new(Kept::default()) as Box<dyn Spill + Send>);
        let mut distinct = Distinct::new(spill);
        let run = || -> Result<(), Found> {
            for (i, (db, key)) in keys.enumerate() {
                distinct.insert(db, &key.to_le_bytes(), None, i as u64)?;
            }
            distinct.finish()
        };
        match run() {
            Ok(()) => (None, distinct.is_exact()),
            Err(Found::Twice(twice)) => (Some(twice), distinct.is_exact()),
            Err(Found::Failed(error)) => panic!("{error}"),
        }
    }

    #[test]
    fn a_key_is_found_twice_wherever_it_was_before_and_only_in_its_own_database() {
        let many = 5 * KEYS_IN_MEMORY_MAX as u64;
        assert_eq!(found(true, (0..many).map(|key| (0, key))), (None, true));
        assert_eq!(
            found(true, (0..many).map(|key| (key as u32 % 7, key / 7))).0,
            None
        );
        for (again, db) in [(0, 3), (many / 2, 3), (many - 1, 3)] {
            let keys = (0..many).map(|key| (3, key)).chain([(4, again), (3, again)]);
            let twice = Twice {
                db,
                first: again,
                second: many + 1,
            };
            assert_eq!(found(true, keys).0, Some(twice));
        }
    }

    #[test]
    fn without_a_spill_the_first_keys_are_compared_and_the_rest_is_said_not_to_be() {
        let many = 2 * KEYS_IN_MEMORY_MAX as u64;
        let keys = (0..many).chain([many - 1]).map(|key| (0, key));
        assert_eq!(found(false, keys), (None, false));
        let few = (0..1000).chain([7]).map(|key| (0, key));
        assert!(found(false, few).0.is_some());
        let most = KEYS_IN_MEMORY_MAX as u64 - 1;
        let keys = (0..most).chain([most - 1]).map(|key| (0, key));
        assert!(found(false, keys).0.is_some());
    }
}
