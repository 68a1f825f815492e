//! Intsets: a header of integer width (u32) and count (u32), then the integers in ascending order.

use crate::elements::Elements;
use crate::error::{Step, malformed};
use crate::event::Sink;
use crate::reader::Reader;

const HEADER_BYTES: u64 = 8;

#[derive(Default)]
pub(crate) struct Intset {
    size: u64,
    /// Zero until the header is read.
    width: usize,
    left: u64,
    before: Option<i64>,
}

impl Intset {
    /// Starts an intset in a string of `size` bytes.
    pub(crate) fn begin(&mut self, size: u64) {
        *self = Self {
            size,
            ..Self::default()
        };
    }

    pub(crate) fn is_done(&self) -> bool {
        self.width > 0 && self.left == 0
    }

    pub(crate) fn run<S: Sink>(&mut self, r: &mut Reader<'_>, set: &mut Elements, sink: &mut S) -> Step<()> {
        if self.width == 0 {
            let width = u32::from_le_bytes(r.array()?);
            let count = u64::from(u32::from_le_bytes(r.array()?));
            if !matches!(width, 2 | 4 | 8) {
                return Err(malformed("intset width is not 2, 4 or 8").into());
            }
            if count * u64::from(width) + HEADER_BYTES != self.size {
                return Err(malformed("intset size differs from its string").into());
            }
            self.width = width as usize;
            self.left = count;
            r.commit();
        }
        while self.left > 0 {
            let value = match self.width {
                2 => i64::from(i16::from_le_bytes(r.array()?)),
                4 => i64::from(i32::from_le_bytes(r.array()?)),
                _ => i64::from_le_bytes(r.array()?),
            };
            if self.before.is_some_and(|before| before >= value) {
                return Err(malformed("intset members out of order").into());
            }
            self.before = Some(value);
            set.distinct(value, sink);
            self.left -= 1;
            r.commit();
        }
        if r.rest().is_empty() {
            Ok(())
        } else {
            Err(malformed("bytes after the end of an intset").into())
        }
    }
}
