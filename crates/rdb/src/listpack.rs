//! Listpacks: a header of total bytes (u32) and element count (u16), elements, an end byte.
//!
//! An element is an encoding byte or more, its data, and its own length so far once more, in 7-bit groups
//! that are read from the right (the back-length).

use crate::digest::Hasher;
use crate::elements::{Item, Items};
use crate::error::{Step, malformed};
use crate::event::Fragment;
use crate::reader::{Reader, WHOLE_MAX};

const HEADER_BYTES: u64 = 6;
const END: u8 = 0xff;
/// The element count of a listpack that has too many to say.
const COUNT_UNKNOWN: u16 = u16::MAX;

#[derive(Clone, Copy, Default, PartialEq)]
enum Phase {
    #[default]
    Header,
    Entries,
    /// Inside a string that is passed on in pieces.
    LongString {
        left: u64,
        entry: u64,
    },
    BackLength {
        entry: u64,
    },
    Done,
}

#[derive(Default)]
pub(crate) struct Listpack {
    phase: Phase,
    size: u64,
    count: u16,
    seen: u64,
}

/// Bytes of the back-length of an element of `entry` bytes.
#[inline]
fn back_length_bytes(entry: u64) -> usize {
    match entry {
        0..=127 => 1,
        128..16_383 => 2,
        16_383..2_097_151 => 3,
        2_097_151..268_435_455 => 4,
        _ => 5,
    }
}

/// Whether `bytes` is the back-length of an element of `entry` bytes.
#[inline]
fn is_back_length(bytes: &[u8], entry: u64) -> bool {
    if let [only] = bytes {
        return u64::from(*only) == entry;
    }
    bytes.iter().rev().enumerate().all(|(i, byte)| {
        let more = if i + 1 < bytes.len() { 0x80 } else { 0 };
        u64::from(*byte) == (entry >> (7 * i) & 0x7f) | more
    })
}

pub(crate) fn int24(bytes: [u8; 3]) -> i64 {
    let [a, b, c] = bytes;
    i64::from(i32::from_le_bytes([0, a, b, c]) >> 8)
}

impl Listpack {
    /// Starts a listpack that claims `size` bytes.
    pub(crate) fn begin(&mut self, size: u64) {
        *self = Self {
            size,
            ..Self::default()
        };
    }

    pub(crate) fn is_done(&self) -> bool {
        self.phase == Phase::Done
    }

    pub(crate) fn run<A: Items>(
        &mut self,
        r: &mut Reader<'_>,
        hasher: &mut Hasher,
        items: &mut A,
    ) -> Step<()> {
        loop {
            match self.phase {
                Phase::Header => {
                    let size = u32::from_le_bytes(r.array()?);
                    self.count = u16::from_le_bytes(r.array()?);
                    if u64::from(size) != self.size {
                        return Err(malformed("listpack size differs from its string").into());
                    }
                    items.expect(match self.count {
                        COUNT_UNKNOWN => (self.size - HEADER_BYTES) / 2,
                        count => u64::from(count),
                    });
                    self.phase = Phase::Entries;
                    r.commit();
                }
                Phase::Entries => self.entries(r, hasher, items)?,
                Phase::LongString { left, entry } => {
                    let rest = r.rest();
                    let piece = &rest[..rest.len().min(usize::try_from(left).unwrap_or(usize::MAX))];
                    hasher.update(piece);
                    items.piece(Fragment::Bytes(piece));
                    r.advance(piece.len());
                    r.commit();
                    let left = left - piece.len() as u64;
                    self.phase = Phase::LongString { left, entry };
                    if left > 0 {
                        return Err(r.need(1));
                    }
                    items.item(Item::hashed(hasher.finish()))?;
                    self.phase = Phase::BackLength { entry };
                }
                Phase::BackLength { entry } => {
                    if !is_back_length(r.take(back_length_bytes(entry))?, entry) {
                        return Err(malformed("listpack back-length differs from its element").into());
                    }
                    self.seen += 1;
                    self.phase = Phase::Entries;
                    r.commit();
                }
                Phase::Done => {
                    return match r.rest() {
                        [] => Ok(()),
                        _ => Err(malformed("bytes after the end of a listpack").into()),
                    };
                }
            }
        }
    }

    /// Reads whole elements, up to the end byte or to a string that must be passed on in pieces.
    fn entries<A: Items>(&mut self, r: &mut Reader<'_>, hasher: &mut Hasher, items: &mut A) -> Step<()> {
        loop {
            let rest = r.rest();
            let Some(&first) = rest.first() else {
                return Err(r.need(1));
            };
            let (head, data) = match first {
                0..=0x7f => (1, 0),
                0x80..=0xbf => (1, u64::from(first & 0x3f)),
                0xc0..=0xdf => (2, 0),
                0xe0..=0xef => {
                    let Some(&low) = rest.get(1) else {
                        return Err(r.need(2));
                    };
                    (2, u64::from(first & 0x0f) << 8 | u64::from(low))
                }
                0xf0 => {
                    let Some(&[_, a, b, c, d]) = rest.first_chunk() else {
                        return Err(r.need(5));
                    };
                    (5, u64::from(u32::from_le_bytes([a, b, c, d])))
                }
                0xf1 => (3, 0),
                0xf2 => (4, 0),
                0xf3 => (5, 0),
                0xf4 => (9, 0),
                END => {
                    if self.count != COUNT_UNKNOWN && u64::from(self.count) != self.seen {
                        return Err(malformed("listpack count differs from its elements").into());
                    }
                    r.advance(1);
                    r.commit();
                    self.phase = Phase::Done;
                    return Ok(());
                }
                _ => return Err(malformed("unknown listpack encoding").into()),
            };
            let entry = head as u64 + data;
            let back = back_length_bytes(entry);
            let whole = usize::try_from(entry).map_or(usize::MAX, |entry| entry.saturating_add(back));
            if rest.len() < whole {
                if data <= WHOLE_MAX {
                    return Err(r.need(whole));
                }
                r.advance(head);
                r.commit();
                hasher.reset();
                items.piece(Fragment::Length(data));
                self.phase = Phase::LongString { left: data, entry };
                return Ok(());
            }
            let (body, back_length) = rest[..whole].split_at(whole - back);
            if !is_back_length(back_length, entry) {
                return Err(malformed("listpack back-length differs from its element").into());
            }
            items.item(match (first, body) {
                (0..=0x7f, _) => Item::Int(i64::from(first)),
                (0xc0..=0xdf, &[high, low]) => {
                    let value = i64::from(high & 0x1f) << 8 | i64::from(low);
                    Item::Int(if value < 1 << 12 { value } else { value - (1 << 13) })
                }
                (0xf1, &[_, a, b]) => Item::Int(i64::from(i16::from_le_bytes([a, b]))),
                (0xf2, &[_, a, b, c]) => Item::Int(int24([a, b, c])),
                (0xf3, &[_, a, b, c, d]) => Item::Int(i64::from(i32::from_le_bytes([a, b, c, d]))),
                (0xf4, &[_, a, b, c, d, e, f, g, h]) => {
                    Item::Int(i64::from_le_bytes([a, b, c, d, e, f, g, h]))
                }
                _ => Item::Bytes(&body[head..]),
            })?;
            self.seen += 1;
            r.advance(whole);
            r.commit();
        }
    }
}
