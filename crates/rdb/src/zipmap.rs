//! Zipmaps, the oldest packed hashes: a count byte, pairs, an end byte.
//!
//! A pair is the field's length and bytes, the value's length, a byte that counts free bytes, the value's
//! bytes and the free bytes. A length is one byte, or 254 and 4 bytes.

use crate::digest::Hasher;
use crate::elements::{Item, Items};
use crate::error::{Step, malformed};
use crate::event::Fragment;
use crate::reader::{Reader, WHOLE_MAX};

const END: u8 = 0xff;
const LONG_LENGTH: u8 = 0xfe;
/// The pair count of a zipmap that has too many to say.
const COUNT_UNKNOWN: u8 = 0xfe;

#[derive(Clone, Copy, Default, PartialEq)]
enum Phase {
    #[default]
    Header,
    Field,
    Value,
    /// Inside a string that is passed on in pieces.
    LongString {
        left: u64,
        free: Option<u8>,
    },
    Free(u8),
    Done,
}

#[derive(Default)]
pub(crate) struct Zipmap {
    phase: Phase,
    size: u64,
    count: u8,
    seen: u64,
}

impl Zipmap {
    /// Starts a zipmap in a string of `size` bytes.
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
                    self.count = r.byte()?;
                    items.expect(match self.count {
                        COUNT_UNKNOWN.. => self.size / 2,
                        count => u64::from(count) * 2,
                    });
                    self.phase = Phase::Field;
                }
                Phase::Field | Phase::Value => self.string(r, hasher, items)?,
                Phase::LongString { left, free } => {
                    let rest = r.rest();
                    let piece = &rest[..rest.len().min(usize::try_from(left).unwrap_or(usize::MAX))];
                    hasher.update(piece);
                    items.piece(Fragment::Bytes(piece));
                    r.advance(piece.len());
                    r.commit();
                    let left = left - piece.len() as u64;
                    self.phase = Phase::LongString { left, free };
                    if left > 0 {
                        return Err(r.need(1));
                    }
                    items.item(Item::hashed(hasher.finish()))?;
                    self.phase = free.map_or(Phase::Value, Phase::Free);
                }
                Phase::Free(free) => {
                    r.take(usize::from(free))?;
                    self.seen += 1;
                    self.phase = Phase::Field;
                }
                Phase::Done => {
                    return match r.rest() {
                        [] => Ok(()),
                        _ => Err(malformed("bytes after the end of a zipmap").into()),
                    };
                }
            }
            r.commit();
        }
    }

    /// Reads a field, or a value with its count of free bytes, or the end byte.
    fn string<A: Items>(&mut self, r: &mut Reader<'_>, hasher: &mut Hasher, items: &mut A) -> Step<()> {
        let length = match r.byte()? {
            END if self.phase == Phase::Field => {
                if self.count < COUNT_UNKNOWN && u64::from(self.count) != self.seen {
                    return Err(malformed("zipmap count differs from its pairs").into());
                }
                self.phase = Phase::Done;
                return Ok(());
            }
            END => return Err(malformed("zipmap field without a value").into()),
            LONG_LENGTH => u64::from(u32::from_le_bytes(r.array()?)),
            short => u64::from(short),
        };
        let free = if self.phase == Phase::Value {
            Some(r.byte()?)
        } else {
            None
        };
        match usize::try_from(length)
            .ok()
            .and_then(|length| r.rest().get(..length))
        {
            Some(bytes) => {
                items.item(Item::Bytes(bytes))?;
                r.advance(bytes.len());
                self.phase = free.map_or(Phase::Value, Phase::Free);
            }
            None if length <= WHOLE_MAX => return Err(r.need(length as usize)),
            None => {
                hasher.reset();
                items.piece(Fragment::Length(length));
                self.phase = Phase::LongString { left: length, free };
            }
        }
        Ok(())
    }
}
