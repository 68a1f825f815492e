//! Deterministic random values: the same seed and index give the same bytes on every machine and in every version.

/// SplitMix64 (Steele, Lea, Flood 2014): tiny, and any seed is a good one.
#[derive(Clone)]
pub struct Random(u64);

impl Random {
    /// The stream of numbers that belongs to `index` under `seed`.
    pub fn new(seed: u64, index: u64) -> Self {
        Self(scramble(seed ^ 0x6b65_6570).wrapping_add(scramble(index)))
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        scramble(self.0)
    }

    /// A number in `0..bound`; 0 where the bound is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        // The high half of the product: no division, and the bias is far below what any test could see.
        let product = u128::from(self.bits()) * u128::from(bound);
        (product >> 64) as u64
    }

    /// A number in `low..=high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True in `per_mille` of 1,000 cases.
    pub fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }

    /// Appends bytes that do not compress.
    pub fn noise(&mut self, length: usize, out: &mut Vec<u8>) {
        let end = out.len() + length;
        while out.len() < end {
            out.extend_from_slice(&self.bits().to_le_bytes());
        }
        out.truncate(end);
    }

    /// Appends words of a small vocabulary: compresses about as well as prose.
    pub fn prose(&mut self, length: usize, out: &mut Vec<u8>) {
        let end = out.len() + length;
        while out.len() < end {
            out.extend_from_slice(self.word().as_bytes());
            out.push(b' ');
        }
        out.truncate(end);
    }

    /// One word.
    pub fn word(&mut self) -> &'static str {
        WORDS[self.below(WORDS.len() as u64) as usize]
    }
}

fn scramble(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

const WORDS: [&str; 48] = [
    "harbour", "lantern", "meadow", "copper", "signal", "winter", "ledger", "orchard", "velvet", "compass",
    "river", "granite", "saffron", "anchor", "paper", "timber", "window", "engine", "silver", "garden",
    "bridge", "marble", "candle", "falcon", "thunder", "basket", "mirror", "pepper", "cotton", "island",
    "kettle", "ribbon", "summit", "tunnel", "walnut", "zephyr", "ash", "oak", "fog", "ink", "salt", "tin",
    "wool", "clay", "dusk", "fern", "moss", "reed",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_numbers_for_ever() {
        let mut random = Random::new(1, 2);
        let numbers: Vec<u64> = (0..3).map(|_| random.bits()).collect();
        assert_eq!(numbers, FIRST_NUMBERS);
        assert_ne!(Random::new(1, 3).bits(), FIRST_NUMBERS[0]);
        assert_ne!(Random::new(2, 2).bits(), FIRST_NUMBERS[0]);
    }

    const FIRST_NUMBERS: [u64; 3] = [
        9_764_509_376_516_876_670,
        6_366_444_671_490_053_757,
        3_897_948_000_229_623_566,
    ];

    #[test]
    fn numbers_stay_in_their_bounds() {
        let mut random = Random::new(7, 7);
        for _ in 0..10_000 {
            assert!(random.below(3) < 3);
            assert!((5..=6).contains(&random.between(5, 6)));
        }
        assert_eq!(random.below(0), 0);
        let mut bytes = Vec::new();
        random.noise(13, &mut bytes);
        random.prose(17, &mut bytes);
        assert_eq!(bytes.len(), 30);
    }
}
