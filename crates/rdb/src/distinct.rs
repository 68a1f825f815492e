//! Finds keys that occur twice in one database, exactly and in bounded memory.
//!
//! Keys are chosen by whoever writes to the database, so their fingerprints are seeded at random: nobody can
//! prepare two keys that look like one. A fingerprint has 128 bits; two of a billion keys agree by chance once in
//! 10^20 files.
//!
//! Fingerprints are kept in a table whose slots follow their order, so that it is sorted almost for free. A full
//! table is drained as a sorted run into the caller's [`Spill`]; at the end of the file the runs are merged. A
//! duplicate within one table is found at once, one across runs at the end.

use std::hash::{BuildHasher, RandomState};

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
}

/// Keys that are compared with each other without a [`Spill`]; with one, the keys of one sorted run.
pub const KEYS_IN_MEMORY_MAX: usize = SLOTS / 4 * 3;

/// Slots of the table: of 32 bytes, 4 MiB. More would not fit the second-level cache either.
const SLOTS: usize = 128 * 1024;
const SLOT_BITS: u32 = SLOTS.trailing_zeros();
/// Slots behind the last, for clusters that reach beyond it.
const SLACK: usize = 1024;
const ENTRY_BYTES: usize = 32;
/// Runs that are merged at once: each gets [`MERGE_BUFFER_BYTES`] of the table's memory.
const RUNS_MAX: usize = 1000;
const MERGE_BUFFER_BYTES: usize = 128 * ENTRY_BYTES;

/// A key, by its fingerprint.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
struct Entry {
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
            bytes.copy_from_slice(&word.to_be_bytes());
        }
        bytes
    }

    fn of_bytes(bytes: &[u8]) -> Self {
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = bytes.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
        }
        Self {
            print: [words[0], words[1]],
            offset: words[2],
            db: words[3],
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
    used: usize,
    /// Databases that are compared; a fingerprint is that of a key in its database.
    spill: Option<Box<dyn Spill + Send>>,
    written: u64,
    runs: Vec<Run>,
    /// Keys beyond what fits without a spill: nothing is known of them.
    is_exact: bool,
}

impl Distinct {
    pub(crate) fn new(spill: Option<Box<dyn Spill + Send>>) -> Self {
        Self {
            seed: RandomState::new().hash_one(0),
            slots: Vec::new(),
            used: 0,
            spill,
            written: 0,
            runs: Vec::new(),
            is_exact: true,
        }
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
        if self.used >= KEYS_IN_MEMORY_MAX {
            self.make_room()?;
            if !self.is_exact {
                return Ok(());
            }
        } else if self.slots.is_empty() {
            self.slots = vec![Entry::default(); SLOTS + SLACK];
        }
        self.place(entry)
    }

    #[inline]
    fn place(&mut self, entry: Entry) -> Result<(), Found> {
        let mut at = (entry.print[0] >> (u64::BITS - SLOT_BITS)) as usize;
        loop {
            match self.slots.get_mut(at) {
                Some(slot) if slot.print[0] == 0 => {
                    *slot = entry;
                    self.used += 1;
                    return Ok(());
                }
                Some(slot) if slot.print == entry.print => return Err(twice(*slot, entry)),
                Some(_) => at += 1,
                // A cluster of a thousand at the last slot: made room for, and tried again.
                None => {
                    self.make_room()?;
                    if !self.is_exact {
                        return Ok(());
                    }
                    at = (entry.print[0] >> (u64::BITS - SLOT_BITS)) as usize;
                }
            }
        }
    }

    /// Moves the table into the spill, or gives up where there is none.
    #[cold]
    fn make_room(&mut self) -> Result<(), Found> {
        if self.spill.is_none() {
            self.is_exact = false;
            return Ok(());
        }
        if self.runs.len() >= RUNS_MAX {
            self.merge(true)?;
        }
        self.drain()
    }

    fn drain(&mut self) -> Result<(), Found> {
        let Some(spill) = &mut self.spill else { return Ok(()) };
        let mut kept = 0;
        for at in 0..self.slots.len() {
            if self.slots[at].print[0] != 0 {
                self.slots[kept] = self.slots[at];
                kept += 1;
            }
        }
        // Nearly sorted: an entry stands at its slot or in the cluster behind it.
        self.slots[..kept].sort();
        let run = Run {
            start: self.written,
            entries: kept as u64,
        };
        let mut bytes = Vec::with_capacity(MERGE_BUFFER_BYTES);
        for entries in self.slots[..kept].chunks(MERGE_BUFFER_BYTES / ENTRY_BYTES) {
            bytes.clear();
            bytes.extend(entries.iter().flat_map(|entry| entry.to_bytes()));
            spill.append(&bytes)?;
            self.written += bytes.len() as u64;
        }
        self.runs.push(run);
        self.slots.fill(Entry::default());
        self.used = 0;
        Ok(())
    }

    /// Compares all keys with each other; to be called once, after the last key.
    pub(crate) fn finish(&mut self) -> Result<(), Found> {
        if self.runs.is_empty() {
            // All keys are in the table: compared when they came.
            return Ok(());
        }
        self.drain()?;
        // The table's memory serves the merge.
        self.slots = Vec::new();
        self.merge(false)
    }

    /// Reads all runs side by side in ascending order, and makes one run of them where they are to be kept.
    fn merge(&mut self, keep: bool) -> Result<(), Found> {
        let Some(spill) = &mut self.spill else { return Ok(()) };
        let mut cursors: Vec<Cursor> = self.runs.iter().map(|run| Cursor::new(*run)).collect();
        let mut heap = std::collections::BinaryHeap::with_capacity(cursors.len());
        for (i, cursor) in cursors.iter_mut().enumerate() {
            if let Some(entry) = cursor.next(spill.as_mut())? {
                heap.push(std::cmp::Reverse((entry, i)));
            }
        }
        let start = self.written;
        let (mut before, mut entries, mut bytes) = (Entry::default(), 0, Vec::new());
        while let Some(std::cmp::Reverse((entry, i))) = heap.pop() {
            if entry.print == before.print {
                return Err(twice(before, entry));
            }
            before = entry;
            if let Some(next) = cursors[i].next(spill.as_mut())? {
                heap.push(std::cmp::Reverse((next, i)));
            }
            if keep {
                entries += 1;
                bytes.extend(entry.to_bytes());
                if bytes.len() >= MERGE_BUFFER_BYTES {
                    spill.append(&bytes)?;
                    self.written += bytes.len() as u64;
                    bytes.clear();
                }
            }
        }
        if keep {
            spill.append(&bytes)?;
            self.written += bytes.len() as u64;
            self.runs = vec![Run { start, entries }];
        }
        Ok(())
    }
}

/// A place in a run.
struct Cursor {
    run: Run,
    buffer: Vec<u8>,
    at: usize,
}

impl Cursor {
    fn new(run: Run) -> Self {
        Self {
            run,
            buffer: Vec::new(),
            at: 0,
        }
    }

    fn next(&mut self, spill: &mut dyn Spill) -> std::io::Result<Option<Entry>> {
        if self.at == self.buffer.len() {
            let room = (MERGE_BUFFER_BYTES / ENTRY_BYTES) as u64;
            let entries = self.run.entries.min(room);
            if entries == 0 {
                return Ok(None);
            }
            self.buffer.resize(entries as usize * ENTRY_BYTES, 0);
            spill.read_at(self.run.start, &mut self.buffer)?;
            self.run.start += self.buffer.len() as u64;
            self.run.entries -= entries;
            self.at = 0;
        }
        let entry = Entry::of_bytes(&self.buffer[self.at..self.at + ENTRY_BYTES]);
        self.at += ENTRY_BYTES;
        Ok(Some(entry))
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
    }

    fn found(spill: bool, keys: impl Iterator<Item = (u32, u64)>) -> (Option<Twice>, bool) {
        let spill = spill.then(|| Box::new(Kept::default()) as Box<dyn Spill + Send>);
        let mut distinct = Distinct::new(spill);
        let mut run = || -> Result<(), Found> {
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
        assert_eq!(found(true, (0..many).map(|key| (key as u32 % 7, key / 7))).0, None);
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
    }
}
