//! LZF decompression, of whole strings or through a window.
//!
//! A control byte below 32 starts a run of that many plus one literal bytes. Any other starts a reference:
//! three bits of length and five high bits of distance, a byte of further length if those three bits are
//! all set, then the low byte of the distance. Lengths count from 2, distances from 1, so that a reference
//! reaches back at most 8192 bytes and yields at most 264.

use crate::error::{Defect, malformed};

/// The farthest a reference reaches back.
const WINDOW: usize = 8192;
/// The most bytes one item yields.
const ITEM_MAX: usize = 264;
/// Bytes of a reference that are copied at once.
const STEP: usize = 16;
/// Bytes handed on at a time, besides the window.
const BLOCK: usize = 64 * 1024;

/// The most bytes that `packed` bytes can yield: three of them yield at most 264.
pub(crate) fn yield_max(packed: u64) -> u64 {
    packed
        .saturating_mul(ITEM_MAX as u64 / 3)
        .saturating_add(ITEM_MAX as u64)
}

/// Bytes behind a string, and behind its room, that let its last items be copied like all others: see [`decode`].
pub(crate) const SLACK: usize = 64;

/// Decodes whole items from `input[..end]` into `out[*fill..limit]` and returns the bytes of input used. Stops before an
/// item that is cut off by the end of the input or does not fit.
///
/// Copies are of fixed sizes, a few moves and no call: what is copied too much is written over by the next item. So bytes
/// behind `end` may be read, which decides nothing, and those behind `limit` overwritten. Where either is short of
/// [`SLACK`] bytes the last items take the slower way.
fn decode(input: &[u8], end: usize, out: &mut [u8], limit: usize, fill: &mut usize) -> Result<usize, Defect> {
    let mut used = 0;
    let mut at = *fill;
    while used < end {
        let control = usize::from(input[used]);
        if control < RUN_MAX {
            let (length, next) = (control + 1, used + 1);
            if length > end - next || length > limit - at {
                break;
            }
            if let (Some(literal), Some(target)) = (
                input[next..].first_chunk::<RUN_MAX>(),
                out[at..].first_chunk_mut::<RUN_MAX>(),
            ) {
                *target = *literal;
            } else {
                out[at..at + length].copy_from_slice(&input[next..next + length]);
            }
            used = next + length;
            at += length;
            continue;
        }
        let mut length = control >> 5;
        let mut next = used + 1;
        if length == 7 {
            let Some(&more) = input[..end].get(next) else {
                break;
            };
            length += usize::from(more);
            next += 1;
        }
        let Some(&low) = input[..end].get(next) else { break };
        length += 2;
        let distance = ((control & 0x1f) << 8 | usize::from(low)) + 1;
        let Some(from) = at.checked_sub(distance) else {
            return Err(malformed("compressed string refers to before its start"));
        };
        if length > limit - at {
            break;
        }
        copy_back(out, from, at, length);
        at += length;
        used = next + 1;
    }
    *fill = at;
    Ok(used)
}

/// Copies `length` bytes at `from` to `at`, behind it, so that what is copied may be read again.
#[inline]
fn copy_back(out: &mut [u8], from: usize, at: usize, length: usize) {
    let distance = at - from;
    // What is loaded beyond the source is stored beyond the target.
    if distance >= length.min(STEP) && out.len() - at >= length.next_multiple_of(STEP) {
        let mut done = 0;
        while done < length {
            // As a number, so that it stays in registers between the two borrows.
            let step = match out[from + done..].first_chunk() {
                Some(step) => u128::from_ne_bytes(*step),
                None => break,
            };
            match out[at + done..].first_chunk_mut() {
                Some(target) => *target = step.to_ne_bytes(),
                None => break,
            }
            done += STEP;
        }
        return;
    }
    // The copied range grows as it is written, and each copy at least doubles it.
    let mut done = 0;
    while done < length {
        let step = (distance + done).min(length - done);
        out.copy_within(from..from + step, at + done);
        done += step;
    }
}

/// Decompresses `input[..end]`, a string at hand as a whole, into `out[..plain]`. Fastest where both have [`SLACK`] bytes
/// more.
pub(crate) fn decompress(input: &[u8], end: usize, out: &mut [u8], plain: usize) -> Result<(), Defect> {
    let mut fill = 0;
    let used = decode(input, end, out, plain, &mut fill)?;
    if used == end && fill == plain {
        Ok(())
    } else {
        Err(malformed("compressed string does not yield its length"))
    }
}

/// Most slots of the table of places that a compressor looks up.
const TABLE: usize = 16 * 1024;
/// The most literals in one run.
const RUN_MAX: usize = 32;
const REFERENCE_MIN: usize = 3;

/// Compresses a string into `out`, which was empty; `false` where that does not make it shorter.
pub(crate) fn compress(input: &[u8], out: &mut Vec<u8>) -> bool {
    let slots = input.len().next_power_of_two().clamp(64, TABLE);
    // Places from one, so that zero is none. The caller bounds the input by far less.
    let mut table = vec![0u32; slots];
    let literals = |out: &mut Vec<u8>, bytes: &[u8]| {
        for run in bytes.chunks(RUN_MAX) {
            out.push(run.len() as u8 - 1);
            out.extend_from_slice(run);
        }
    };
    let (mut at, mut literal) = (0, 0);
    while let Some(&[a, b, c]) = input[at..].first_chunk() {
        let hash = u32::from_le_bytes([a, b, c, 0]).wrapping_mul(0x9e37_79b1);
        let slot = (hash >> 15) as usize % slots;
        let before = std::mem::replace(&mut table[slot], at as u32 + 1) as usize;
        let same = before
            .checked_sub(1)
            .filter(|from| at - from <= WINDOW)
            .map_or(0, |from| {
                let here = input[at..].iter().take(ITEM_MAX);
                here.zip(&input[from..])
                    .take_while(|(one, other)| one == other)
                    .count()
            });
        if same < REFERENCE_MIN {
            at += 1;
            continue;
        }
        literals(out, &input[literal..at]);
        let (distance, length) = (at - before, same - 2);
        if length < 7 {
            out.push((length << 5 | distance >> 8) as u8);
        } else {
            out.extend([(7 << 5 | distance >> 8) as u8, (length - 7) as u8]);
        }
        out.push(distance as u8);
        at += same;
        literal = at;
        if out.len() >= input.len() {
            return false;
        }
    }
    literals(out, &input[literal..]);
    out.len() < input.len()
}

/// Decompresses a string piece by piece.
#[derive(Default)]
pub(crate) struct Window {
    buf: Vec<u8>,
    fill: usize,
}

impl Window {
    /// Forgets the string before.
    pub(crate) fn begin(&mut self) {
        self.buf.resize(WINDOW + BLOCK + SLACK, 0);
        self.fill = 0;
    }

    /// Decodes items from `input` and passes what they yield to `pass`; returns the bytes of input used.
    /// Less than all are used only if the rest is a part of an item.
    pub(crate) fn feed(
        &mut self,
        input: &[u8],
        mut pass: impl FnMut(&[u8]) -> Result<(), Defect>,
    ) -> Result<usize, Defect> {
        let mut used = 0;
        loop {
            let (start, rest) = (self.fill, &input[used..]);
            let step = decode(rest, rest.len(), &mut self.buf, WINDOW + BLOCK, &mut self.fill)?;
            used += step;
            if self.fill > start {
                pass(&self.buf[start..self.fill])?;
            }
            if WINDOW + BLOCK - self.fill >= ITEM_MAX {
                return Ok(used);
            }
            self.buf.copy_within(self.fill - WINDOW..self.fill, 0);
            self.fill = WINDOW;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(distance: usize, length: usize) -> Vec<u8> {
        let (d, l) = (distance - 1, length - 2);
        if l < 7 {
            vec![(l << 5 | d >> 8) as u8, d as u8]
        } else {
            vec![(7 << 5 | d >> 8) as u8, (l - 7) as u8, d as u8]
        }
    }

    /// Both ways: without a byte to spare, and with bytes around that are not the string's.
    fn whole(input: &[u8], out: &mut [u8]) -> Result<(), Defect> {
        let exact = decompress(input, input.len(), out, out.len());
        let around = [input, &[0xff; SLACK]].concat();
        let mut roomy = vec![0xee; out.len() + SLACK];
        let with_slack = decompress(&around, input.len(), &mut roomy, out.len());
        assert_eq!(exact.is_ok(), with_slack.is_ok());
        assert!(exact.is_err() || roomy[..out.len()] == *out);
        exact
    }

    #[test]
    fn overlapping_references_repeat() {
        let mut input = vec![1, b'a', b'b'];
        input.extend(reference(2, 264));
        input.extend(reference(1, 5));
        let mut out = vec![0; 271];
        whole(&input, &mut out).unwrap();
        let mut expected: Vec<u8> = b"ab".iter().copied().cycle().take(266).collect();
        expected.extend(b"bbbbb");
        assert_eq!(out, expected);
    }

    #[test]
    fn what_is_compressed_expands_to_what_it_was() {
        let mut random = 1u64;
        let mut next = move || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 40) as usize
        };
        let mut shorter = 0;
        for length in (0..200).chain([8191, 8192, 8193, 70_000]) {
            for letters in [1, 3, 250] {
                let mut input: Vec<u8> = (0..length).map(|_| (next() % letters) as u8).collect();
                // Far apart, and farther than a reference reaches.
                let copied = input[..length / 3].to_vec();
                input.extend(copied);
                let mut packed = Vec::new();
                if !compress(&input, &mut packed) {
                    continue;
                }
                shorter += 1;
                assert!(packed.len() < input.len());
                let mut plain = vec![0; input.len()];
                whole(&packed, &mut plain).unwrap();
                assert_eq!(plain, input, "{length} of {letters}");
            }
        }
        assert!(shorter > 300, "{shorter}");
    }

    #[test]
    fn wrong_length_and_far_reference_are_refused() {
        let input = [1, b'a', b'b'];
        assert!(whole(&input, &mut [0; 3]).is_err());
        assert!(whole(&input, &mut [0; 1]).is_err());
        assert!(whole(&[0, b'a', 0x20, 1], &mut [0; 4]).is_err());
        assert!(whole(&[5, b'a'], &mut [0; 6]).is_err());
    }

    #[test]
    fn window_yields_what_the_whole_yields() {
        let mut input = Vec::new();
        let mut plain = 0usize;
        for i in 0..20_000usize {
            input.extend([2, i as u8, (i >> 8) as u8, 7]);
            plain += 3;
            let distance = 1 + (i * 37) % plain.min(8192);
            let length = 3 + i % 262;
            input.extend(reference(distance, length));
            plain += length;
        }
        let mut whole = vec![0; plain];
        decompress(&input, input.len(), &mut whole, plain).unwrap();
        for cut in [1, 2, 5, 1000, input.len()] {
            let mut window = Window::default();
            window.begin();
            let (mut out, mut held) = (Vec::new(), Vec::new());
            for piece in input.chunks(cut) {
                held.extend_from_slice(piece);
                let used = window
                    .feed(&held, |bytes| {
                        out.extend_from_slice(bytes);
                        Ok(())
                    })
                    .unwrap();
                held.drain(..used);
            }
            assert!(held.is_empty() && out == whole, "cut {cut}");
        }
    }
}
