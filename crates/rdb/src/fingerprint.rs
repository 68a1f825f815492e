//! Finds duplicate members of one value with bounded memory.
//!
//! Members are chosen by whoever writes to the database. Fingerprints are therefore keyed at random: nobody
//! can prepare members that look like duplicates, or that crowd into the same slots.

use std::hash::{BuildHasher, RandomState};

/// Members of one value that are remembered. Later members are compared with these, but no longer with each
/// other.
pub const MEMBERS_REMEMBERED_MAX: usize = 128 * 1024;

/// A set of 64-bit fingerprints: open addressing, at most half full, 2 MiB at most.
pub(crate) struct Fingerprints {
    keys: [u64; 2],
    slots: Vec<u64>,
    mask: usize,
    room: usize,
}

impl Default for Fingerprints {
    fn default() -> Self {
        let random = RandomState::new();
        Self {
            keys: [random.hash_one(0), random.hash_one(1)],
            slots: Vec::new(),
            mask: 0,
            room: 0,
        }
    }
}

impl Fingerprints {
    /// Empties the set and makes room for `expected` members, up to the limit. An expectation that turns out
    /// too low leaves members unremembered.
    pub(crate) fn begin(&mut self, expected: u64) {
        let members = usize::try_from(expected)
            .unwrap_or(usize::MAX)
            .clamp(8, MEMBERS_REMEMBERED_MAX);
        let slots = (members * 2).next_power_of_two();
        if self.slots.len() < slots {
            self.slots.resize(slots, 0);
        }
        self.slots[..slots].fill(0);
        self.mask = slots - 1;
        self.room = slots / 2;
    }

    /// Remembers a member by the hash of it; `false` if it was there already.
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
                    if self.room > 0 {
                        *slot = print;
                        self.room -= 1;
                    }
                    return true;
                }
                Some(_) => at += 1,
                None => return true,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::of_integer;

    #[test]
    fn duplicates_are_found_up_to_the_limit_and_beyond_it_against_the_remembered() {
        let mut set = Fingerprints::default();
        let limit = MEMBERS_REMEMBERED_MAX as i64;
        set.begin(u64::MAX);
        for member in 0..limit + 1000 {
            assert!(set.insert(of_integer(member)));
        }
        assert!(!set.insert(of_integer(0)));
        assert!(!set.insert(of_integer(limit - 1)));
        set.begin(1);
        assert!(set.insert(of_integer(0)));
        assert!(!set.insert(of_integer(0)));
    }
}
