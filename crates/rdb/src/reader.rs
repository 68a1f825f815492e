//! A cursor over the bytes at hand, and the buffer that carries an unfinished item over to the next chunk.
//!
//! Parsing is made of items that are read whole or not at all. A step reads an item, changes its state and
//! then calls [`Reader::commit`]; when the bytes end inside an item the step returns [`Stop::Need`] without
//! having changed anything, and is tried again from the last commit once more bytes are there. Items are
//! small: anything above [`WHOLE_MAX`] bytes is passed on in pieces instead.

use crate::error::{Defect, Step, Stop, malformed};

/// Bytes of content up to which an item waits until it is in the buffer as a whole.
pub(crate) const WHOLE_MAX: u64 = 16 * 1024;

/// A length field of an RDB file.
pub(crate) enum Length {
    /// A plain length or count.
    Plain(u64),
    /// A marker for a specially encoded string.
    Encoded(u8),
}

/// A cursor with a committed position to fall back to.
pub(crate) struct Reader<'a> {
    buf: &'a [u8],
    pos: usize,
    mark: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(buf: &'a [u8]) -> Self {
        Self { buf, pos: 0, mark: 0 }
    }

    /// Accepts everything read so far.
    #[inline]
    pub(crate) fn commit(&mut self) {
        self.mark = self.pos;
    }

    pub(crate) fn pos(&self) -> usize {
        self.pos
    }

    pub(crate) fn committed(&self) -> usize {
        self.mark
    }

    /// Points at an earlier byte, to say where a defect is.
    #[cold]
    pub(crate) fn point_back(&mut self, count: usize) {
        self.pos = self.pos.saturating_sub(count);
    }

    /// Falls back to the committed position.
    pub(crate) fn rewind(&mut self) {
        self.pos = self.mark;
    }

    /// The bytes of the buffer before the current position.
    pub(crate) fn seen(&self) -> &'a [u8] {
        &self.buf[..self.pos]
    }

    #[inline]
    pub(crate) fn rest(&self) -> &'a [u8] {
        &self.buf[self.pos..]
    }

    /// Moves over bytes that the caller has seen in [`rest`](Self::rest).
    #[inline]
    pub(crate) fn advance(&mut self, count: usize) {
        debug_assert!(count <= self.buf.len() - self.pos);
        self.pos += count;
    }

    /// The stop that asks for `count` bytes after the current position.
    pub(crate) fn need(&self, count: usize) -> Stop {
        Stop::Need(self.pos.saturating_add(count))
    }

    #[inline]
    pub(crate) fn take(&mut self, count: usize) -> Step<&'a [u8]> {
        match self.rest().get(..count) {
            Some(bytes) => {
                self.pos += count;
                Ok(bytes)
            }
            None => Err(self.need(count)),
        }
    }

    #[inline]
    pub(crate) fn array<const N: usize>(&mut self) -> Step<[u8; N]> {
        match self.rest().first_chunk::<N>() {
            Some(bytes) => {
                self.pos += N;
                Ok(*bytes)
            }
            None => Err(self.need(N)),
        }
    }

    #[inline]
    pub(crate) fn byte(&mut self) -> Step<u8> {
        match self.buf.get(self.pos) {
            Some(byte) => {
                self.pos += 1;
                Ok(*byte)
            }
            None => Err(self.need(1)),
        }
    }

    /// Reads a length field: two bits of form, then 6, 14, 32 or 64 bits, big-endian.
    #[inline]
    pub(crate) fn length_field(&mut self) -> Step<Length> {
        let first = self.byte()?;
        let value = match first >> 6 {
            0 => u64::from(first & 0x3f),
            1 => u64::from(first & 0x3f) << 8 | u64::from(self.byte()?),
            3 => return Ok(Length::Encoded(first & 0x3f)),
            _ => match first {
                0x80 => u64::from(u32::from_be_bytes(self.array()?)),
                0x81 => u64::from_be_bytes(self.array()?),
                _ => return Err(malformed("length field of an unknown form").into()),
            },
        };
        Ok(Length::Plain(value))
    }

    #[inline]
    pub(crate) fn length(&mut self) -> Step<u64> {
        match self.length_field()? {
            Length::Plain(value) => Ok(value),
            Length::Encoded(_) => Err(malformed("string marker in place of a count").into()),
        }
    }
}

/// What a run over a buffer achieved.
pub(crate) struct Progress {
    /// Bytes that are done with.
    pub(crate) consumed: usize,
    /// Bytes that must be there, counted after `consumed`, before another run can achieve anything.
    pub(crate) need: usize,
}

/// The unfinished item at the end of the last chunk.
#[derive(Default)]
pub(crate) struct Carry {
    buf: Vec<u8>,
    need: usize,
}

impl Carry {
    pub(crate) fn len(&self) -> usize {
        self.buf.len()
    }

    pub(crate) fn clear(&mut self) {
        self.buf.clear();
    }

    /// Runs `run` over the carried bytes, topped up by no more than it asked for, and then over the chunk
    /// itself, and keeps what is left.
    pub(crate) fn feed<E>(
        &mut self,
        mut chunk: &[u8],
        mut run: impl FnMut(&[u8]) -> Result<Progress, E>,
    ) -> Result<(), E> {
        while !self.buf.is_empty() {
            let missing = self.need.saturating_sub(self.buf.len()).min(chunk.len());
            let (head, tail) = chunk.split_at(missing);
            self.buf.extend_from_slice(head);
            chunk = tail;
            if self.buf.len() < self.need {
                return Ok(());
            }
            let progress = run(&self.buf)?;
            self.buf.drain(..progress.consumed);
            self.need = progress.need.max(self.buf.len() + 1);
        }
        if !chunk.is_empty() {
            let progress = run(chunk)?;
            self.buf.extend_from_slice(&chunk[progress.consumed..]);
            self.need = progress.need.max(self.buf.len() + 1);
        }
        Ok(())
    }
}

/// Turns the stop of a step loop into progress, or passes the defect on.
pub(crate) fn progress(reader: &Reader<'_>, stop: Stop) -> Result<Progress, Defect> {
    match stop {
        Stop::Need(end) => Ok(Progress {
            consumed: reader.mark,
            need: end.saturating_sub(reader.mark).max(1),
        }),
        Stop::Fail(kind) => Err(kind),
    }
}
