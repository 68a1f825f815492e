//! Finds duplicate members of one value, exactly and in bounded memory.
//!
//! Members are chosen by whoever writes to the database. Fingerprints are therefore keyed at random: nobody
//! can prepare members that look like duplicates, or that crowd into the same slots.
//!
//! The first members are kept as 64 bits each in a table that grows with them. Those beyond it are compared with the table at
//! once, and with each other by the sorted runs that compare keys, see [`Distinct`].

use std::hash::{BuildHasher, RandomState};

use crate::distinct::{Distinct, Found, SharedSpill};
use crate::error::{Defect, ErrorKind};

/// Members of one value that are compared in memory alone.
pub const MEMBERS_IN_MEMORY_MAX: usize = 128 * 1024;
/// Slots of the first table of a value that promises few members.
const SLOTS_MIN: usize = 16;
const SLOTS_MAX: usize = MEMBERS_IN_MEMORY_MAX * 2;

/// A set of 64-bit fingerprints: open addressing, at most half full, 2 MiB at most; and what goes beyond.
pub(crate) struct Fingerprints {
    keys: [u64; 2],
    slots: Vec<u64>,
    mask: usize,
    room: usize,
    spill: Option<SharedSpill>,
    /// Members that the table has no room for.
    beyond: Option<Box<Distinct>>,
    /// Members of the value that went beyond, since it began.
    beyond_count: u64,
    failure: Option<std::io::Error>,
    is_exact: bool,
}

impl Default for Fingerprints {
    fn default() -> Self {
        let random = RandomState::new();
        Self {
            keys: [random.hash_one(0), random.hash_one(1)],
            slots: Vec::new(),
            mask: 0,
            room: 0,
            spill: None,
            beyond: None,
            beyond_count: 0,
            failure: None,
            is_exact: true,
        }
    }
}

impl Fingerprints {
    /// Where members that memory does not hold are kept.
    pub(crate) fn keep_in(&mut self, spill: SharedSpill) {
        self.spill = Some(spill);
    }

    /// Whether all members of each value so far were compared.
    pub(crate) fn is_exact(&self) -> bool {
        self.is_exact
    }

    /// Empties the set for a value with `expected` members. Too low an expectation costs time only.
    pub(crate) fn begin(&mut self, expected: u64) {
        let members = usize::try_from(expected)
            .unwrap_or(usize::MAX)
            .clamp(SLOTS_MIN / 2, MEMBERS_IN_MEMORY_MAX);
        self.clear((members * 2).next_power_of_two());
        if self.beyond_count > 0 {
            self.forget_beyond();
        }
    }

    fn clear(&mut self, slots: usize) {
        if self.slots.len() < slots {
            self.slots.resize(slots, 0);
        }
        self.slots[..slots].fill(0);
        self.mask = slots - 1;
        self.room = slots / 2;
    }

    /// Remembers a member by the hash of it; `false` if it was there already, or cannot be kept: [`Self::defect`] tells which.
    #[inline]
    pub(crate) fn insert(&mut self, hash: u128) -> bool {
        let folded = u128::from(hash as u64 ^ self.keys[0]) * u128::from((hash >> 64) as u64 ^ self.keys[1]);
        // Zero marks a free slot.
        let print = (folded as u64 ^ (folded >> 64) as u64).max(1);
        let mut at = (print >> 7) as usize;
        loop {
            at &= self.mask;
            match self.slots.get_mut(at) {
                Some(slot) if *slot == print => return false,
                Some(slot) if *slot == 0 => {
                    if self.room == 0 {
                        return self.go_beyond(print, hash);
                    }
                    *slot = print;
                    self.room -= 1;
                    return true;
                }
                Some(_) => at += 1,
                None => return true,
            }
        }
    }

    /// Takes a member that the table has no room for and does not hold.
    #[cold]
    fn go_beyond(&mut self, print: u64, hash: u128) -> bool {
        let slots = self.mask + 1;
        if slots < SLOTS_MAX {
            let prints: Vec<u64> = self.slots[..slots]
                .iter()
                .copied()
                .filter(|print| *print != 0)
                .collect();
            self.clear((slots * 8).min(SLOTS_MAX));
            for print in prints {
                self.put(print);
            }
            self.put(print);
            return true;
        }
        let spill = &self.spill;
        let beyond = self.beyond.get_or_insert_with(|| {
            let spill = spill.clone().map(|spill| Box::new(spill) as Box<_>);
            Box::new(Distinct::new(spill))
        });
        self.beyond_count += 1;
        let taken = beyond.insert(0, &[], Some(hash), self.beyond_count);
        self.settle(taken)
    }

    /// Puts in a fingerprint that is not there, where there is room.
    fn put(&mut self, print: u64) {
        let mut at = (print >> 7) as usize & self.mask;
        while self.slots[at] != 0 {
            at = (at + 1) & self.mask;
        }
        self.slots[at] = print;
        self.room -= 1;
    }

    fn settle(&mut self, taken: Result<(), Found>) -> bool {
        self.is_exact &= self.beyond.as_ref().is_none_or(|beyond| beyond.is_exact());
        match taken {
            Ok(()) => true,
            Err(Found::Twice(_)) => false,
            Err(Found::Failed(error)) => {
                self.failure = Some(error);
                false
            }
        }
    }

    /// Compares what is not compared yet; to be called after the last member of a value. `false` as for [`Self::insert`].
    #[inline]
    pub(crate) fn finish(&mut self) -> bool {
        self.beyond_count == 0 || self.finish_beyond()
    }

    #[cold]
    fn finish_beyond(&mut self) -> bool {
        let compared = self.beyond.as_mut().map_or(Ok(()), |beyond| beyond.finish());
        let is_distinct = self.settle(compared);
        is_distinct && self.forget_beyond()
    }

    #[cold]
    fn forget_beyond(&mut self) -> bool {
        self.beyond_count = 0;
        let forgotten = self.beyond.as_mut().map_or(Ok(()), |beyond| beyond.reset());
        self.settle(forgotten.map_err(Found::Failed))
    }

    /// What `false` meant, of a member that is called `what`.
    #[cold]
    pub(crate) fn defect(&mut self, what: &'static str) -> Defect {
        Box::new(match self.failure.take() {
            Some(error) => ErrorKind::Spill {
                reason: error.to_string(),
            },
            None => ErrorKind::Duplicate { what },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::of_integer;
    use crate::distinct::{KEYS_IN_MEMORY_MAX, Spill};

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

    /// No room at all.
    struct Full;

    impl Spill for Full {
        fn append(&mut self, _bytes: &[u8]) -> std::io::Result<()> {
            Err(std::io::ErrorKind::StorageFull.into())
        }

        fn read_at(&mut self, _offset: u64, _buffer: &mut [u8]) -> std::io::Result<()> {
            Err(std::io::ErrorKind::StorageFull.into())
        }

        fn clear(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// Whether a value of these members is found to be without duplicates.
    fn is_distinct(set: &mut Fingerprints, expected: u64, members: impl Iterator<Item = i64>) -> bool {
        set.begin(expected);
        let mut is_distinct = true;
        for member in members {
            is_distinct = is_distinct && set.insert(of_integer(member));
        }
        is_distinct && set.finish()
    }

    #[test]
    fn a_member_is_found_twice_wherever_it_was_before_whatever_was_expected() {
        let mut set = Fingerprints::default();
        set.keep_in(SharedSpill::new(Box::new(Kept::default())));
        let many = (MEMBERS_IN_MEMORY_MAX + 3 * KEYS_IN_MEMORY_MAX) as i64;
        for expected in [0, 1000, u64::MAX] {
            assert!(is_distinct(&mut set, expected, 0..many));
            for again in [
                0,
                9,
                MEMBERS_IN_MEMORY_MAX as i64 - 1,
                MEMBERS_IN_MEMORY_MAX as i64,
                many / 2,
                many - 1,
            ] {
                assert!(
                    !is_distinct(&mut set, expected, (0..many).chain([again])),
                    "{expected} {again}"
                );
                // What one value held says nothing of the next.
                assert!(is_distinct(&mut set, 1, [again, -1].into_iter()));
            }
        }
        assert!(set.is_exact());
    }

    #[test]
    fn without_a_spill_what_was_not_compared_is_said() {
        let mut set = Fingerprints::default();
        let compared = (MEMBERS_IN_MEMORY_MAX + KEYS_IN_MEMORY_MAX) as i64 - 1;
        assert!(!is_distinct(&mut set, 0, (0..compared).chain([compared - 1])));
        assert!(set.is_exact());
        assert!(is_distinct(
            &mut set,
            0,
            (0..2 * compared).chain([2 * compared - 1])
        ));
        assert!(!set.is_exact());
    }

    #[test]
    fn a_spill_that_is_full_is_told_from_a_duplicate() {
        let mut set = Fingerprints::default();
        set.keep_in(SharedSpill::new(Box::new(Full)));
        assert!(!is_distinct(&mut set, 0, 0..1_000_000));
        assert!(matches!(*set.defect("member"), ErrorKind::Spill { .. }));
        assert!(!is_distinct(&mut set, 0, [1, 1].into_iter()));
        assert!(matches!(*set.defect("member"), ErrorKind::Duplicate { .. }));
    }
}
