//! Ziplists, the packed form before listpacks: a header of total bytes (u32), offset of the last entry
//! (u32) and entry count (u16), entries, an end byte.
//!
//! An entry is the length of the entry before it (1 byte, or 254 and 4 bytes), an encoding byte or more,
//! and its data.

use crate::digest::Hasher;
use crate::elements::{Item, Items};
use crate::error::{Step, malformed};
use crate::event::Fragment;
use crate::listpack::int24;
use crate::reader::{Reader, WHOLE_MAX};

const HEADER_BYTES: u64 = 10;
const END: u8 = 0xff;
/// Marks a previous length of four more bytes.
const LONG_LENGTH: u8 = 0xfe;
/// The entry count of a ziplist that has too many to say.
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
    Done,
}

#[derive(Default)]
pub(crate) struct Ziplist {
    phase: Phase,
    size: u64,
    tail: u64,
    count: u16,
    seen: u64,
    /// Where the next entry starts, and how long the last one was.
    offset: u64,
    entry_before: u64,
}

impl Ziplist {
    /// Starts a ziplist that claims `size` bytes.
    pub(crate) fn begin(&mut self, size: u64) {
        *self = Self {
            size,
            offset: HEADER_BYTES,
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
                    self.tail = u64::from(u32::from_le_bytes(r.array()?));
                    self.count = u16::from_le_bytes(r.array()?);
                    if u64::from(size) != self.size {
                        return Err(malformed("ziplist size differs from its string").into());
                    }
                    items.expect(match self.count {
                        COUNT_UNKNOWN => (self.size - HEADER_BYTES) / 2,
                        count => u64::from(count),
                    });
                    self.phase = Phase::Entries;
                    r.commit();
                }
                Phase::Entries => self.entry(r, hasher, items)?,
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
                    self.pass(entry);
                    self.phase = Phase::Entries;
                }
                Phase::Done => {
                    return match r.rest() {
                        [] => Ok(()),
                        _ => Err(malformed("bytes after the end of a ziplist").into()),
                    };
                }
            }
        }
    }

    fn pass(&mut self, entry: u64) {
        self.seen += 1;
        self.offset += entry;
        self.entry_before = entry;
    }

    fn entry<A: Items>(&mut self, r: &mut Reader<'_>, hasher: &mut Hasher, items: &mut A) -> Step<()> {
        let start = r.pos();
        let before = match r.byte()? {
            END => {
                r.commit();
                return self.end();
            }
            LONG_LENGTH => u64::from(u32::from_le_bytes(r.array()?)),
            short => u64::from(short),
        };
        if before != self.entry_before {
            return Err(malformed("ziplist entry differs from the length kept behind it").into());
        }
        let first = r.byte()?;
        let length = match first {
            0..=0x3f => u64::from(first),
            0x40..=0x7f => u64::from(first & 0x3f) << 8 | u64::from(r.byte()?),
            0x80 => u64::from(u32::from_be_bytes(r.array()?)),
            _ => {
                let value = match first {
                    0xc0 => i64::from(i16::from_le_bytes(r.array()?)),
                    0xd0 => i64::from(i32::from_le_bytes(r.array()?)),
                    0xe0 => i64::from_le_bytes(r.array()?),
                    0xf0 => int24(r.array()?),
                    0xf1..=0xfd => i64::from(first & 0x0f) - 1,
                    0xfe => i64::from(i8::from_le_bytes(r.array()?)),
                    _ => return Err(malformed("unknown ziplist encoding").into()),
                };
                items.item(Item::Int(value))?;
                self.pass((r.pos() - start) as u64);
                r.commit();
                return Ok(());
            }
        };
        let entry = (r.pos() - start) as u64 + length;
        match usize::try_from(length)
            .ok()
            .and_then(|length| r.rest().get(..length))
        {
            Some(bytes) => {
                items.item(Item::Bytes(bytes))?;
                r.advance(bytes.len());
                self.pass(entry);
            }
            None if length <= WHOLE_MAX => return Err(r.need(length as usize)),
            None => {
                hasher.reset();
                items.piece(Fragment::Length(length));
                self.phase = Phase::LongString { left: length, entry };
            }
        }
        r.commit();
        Ok(())
    }

    fn end(&mut self) -> Step<()> {
        if self.count != COUNT_UNKNOWN && u64::from(self.count) != self.seen {
            return Err(malformed("ziplist count differs from its entries").into());
        }
        if self.tail != self.offset - self.entry_before {
            return Err(malformed("ziplist tail offset is wrong").into());
        }
        self.phase = Phase::Done;
        Ok(())
    }
}
