//! Small random changes of an input, the same for the same seed.

/// A generator of xorshift kind: no secret depends on it.
pub struct Random(u64);

impl Random {
    /// Starts at `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `end`; 0 where that is 0.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        (high as usize).checked_rem(end).unwrap_or(0)
    }
}

/// Bytes at which formats change their mind.
const EDGES: [u8; 12] = [0, 1, 0x3f, 0x40, 0x7f, 0x80, 0x81, 0xc0, 0xc3, 0xf0, 0xfe, 0xff];

/// Changes `input` in one to four places; `other` is where a spliced piece comes from.
pub fn mutate(input: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    for _ in 0..=random.below(4) {
        let at = random.below(input.len());
        let rest = input.len() - at;
        match random.below(8) {
            _ if input.is_empty() => input.push(random.below(256) as u8),
            0 => input[at] ^= 1 << random.below(8),
            1 => input[at] = EDGES[random.below(EDGES.len())],
            2 => input[at] = input[at].wrapping_add(random.below(9) as u8).wrapping_sub(4),
            3 => input.insert(at, EDGES[random.below(EDGES.len())]),
            4 => drop(input.drain(at..at + random.below(rest.min(9)))),
            5 => {
                let piece = input[at..at + random.below(rest.min(40))].to_vec();
                let to = random.below(input.len());
                input.splice(to..to, piece);
            }
            6 => {
                let from = random.below(other.len());
                let piece = &other[from..from + random.below((other.len() - from).min(40))];
                let end = at + piece.len().min(rest);
                input.splice(at..end, piece.iter().copied());
            }
            _ => input.truncate(at),
        }
    }
}
