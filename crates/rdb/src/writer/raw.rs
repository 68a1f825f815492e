//! The bytes of one key as they stand in the file, read again piece by piece.

use std::io::{self, Write};

use super::{Header, Output, changed};
use crate::lzf;
use crate::opcode;

/// Bytes read at once.
const PIECE_BYTES: u64 = 64 * 1024;

/// The head of a string.
pub(super) enum Head {
    /// A number: the marker, and so many bytes.
    Int(u8, u64),
    Plain(u64),
    Lzf {
        packed: u64,
        plain: u64,
    },
}

pub(super) struct Raw<'a, R> {
    read: &'a mut R,
    /// Where the next piece starts, and where the key ends.
    next: u64,
    end: u64,
    piece: Vec<u8>,
    at: usize,
}

impl<'a, R> Raw<'a, R>
where
    R: FnMut(u64, &mut [u8]) -> io::Result<()>,
{
    pub(super) fn new(read: &'a mut R, offset: u64, bytes: u64) -> Self {
        Self {
            read,
            next: offset,
            end: offset.saturating_add(bytes),
            piece: Vec::new(),
            at: 0,
        }
    }

    /// The absolute offset of the next byte.
    pub(super) fn offset(&self) -> u64 {
        self.next - (self.piece.len() - self.at) as u64
    }

    /// Some bytes, at most `limit`; never none.
    fn some(&mut self, limit: u64) -> io::Result<&[u8]> {
        if self.at == self.piece.len() {
            let count = (self.end - self.next).min(PIECE_BYTES);
            if count == 0 {
                return Err(changed("a key is shorter than it was"));
            }
            self.piece.resize(count as usize, 0);
            (self.read)(self.next, &mut self.piece)?;
            self.next += count;
            self.at = 0;
        }
        let rest = (self.piece.len() - self.at).min(usize::try_from(limit).unwrap_or(usize::MAX));
        let from = self.at;
        self.at += rest;
        Ok(&self.piece[from..from + rest])
    }

    pub(super) fn byte(&mut self) -> io::Result<u8> {
        Ok(self.some(1)?.first().copied().unwrap_or_default())
    }

    pub(super) fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut out = [0; N];
        for byte in &mut out {
            *byte = self.byte()?;
        }
        Ok(out)
    }

    /// Reads bytes into `out`, which is emptied before.
    pub(super) fn take(&mut self, count: u64, out: &mut Vec<u8>) -> io::Result<()> {
        out.clear();
        let mut left = count;
        while left > 0 {
            let some = self.some(left)?;
            out.extend_from_slice(some);
            left -= some.len() as u64;
        }
        Ok(())
    }

    /// Copies bytes.
    pub(super) fn copy<W: Write>(&mut self, count: u64, out: &mut Output<W>) -> io::Result<()> {
        let mut left = count;
        while left > 0 {
            let some = self.some(left)?;
            out.put(some)?;
            left -= some.len() as u64;
        }
        Ok(())
    }

    fn skip(&mut self, count: u64) -> io::Result<()> {
        let mut left = count;
        while left > 0 {
            left -= self.some(left)?.len() as u64;
        }
        Ok(())
    }

    /// Expands a compressed string.
    pub(super) fn expand<W: Write>(&mut self, packed: u64, out: &mut Output<W>) -> io::Result<()> {
        let mut window = lzf::Window::default();
        window.begin();
        let (mut left, mut held, mut failure) = (packed, Vec::new(), None);
        while left > 0 {
            let some = self.some(left)?;
            left -= some.len() as u64;
            held.extend_from_slice(some);
            let used = window
                .feed(&held, |bytes| {
                    if failure.is_none() {
                        failure = out.put(bytes).err();
                    }
                    Ok(())
                })
                .map_err(changed)?;
            held.drain(..used);
        }
        failure.map_or(Ok(()), Err)
    }

    fn length_after(&mut self, first: u8) -> io::Result<u64> {
        Ok(match first {
            0..0x40 => u64::from(first),
            0x40..0x80 => u64::from(first & 0x3f) << 8 | u64::from(self.byte()?),
            0x80 => u64::from(u32::from_be_bytes(self.array()?)),
            0x81 => u64::from_be_bytes(self.array()?),
            _ => return Err(changed("no length where one was")),
        })
    }

    pub(super) fn length(&mut self) -> io::Result<u64> {
        let first = self.byte()?;
        self.length_after(first)
    }

    pub(super) fn head(&mut self) -> io::Result<Head> {
        let first = self.byte()?;
        Ok(match first {
            0xc0 => Head::Int(first, 1),
            0xc1 => Head::Int(first, 2),
            0xc2 => Head::Int(first, 4),
            0xc3 => Head::Lzf {
                packed: self.length()?,
                plain: self.length()?,
            },
            _ => Head::Plain(self.length_after(first)?),
        })
    }

    fn skip_string(&mut self) -> io::Result<()> {
        match self.head()? {
            Head::Int(_, count) | Head::Plain(count) | Head::Lzf { packed: count, .. } => self.skip(count),
        }
    }

    /// Skips what stands before a value, and returns where that starts.
    pub(super) fn value_offset(&mut self) -> io::Result<u64> {
        self.header().map(|(_, offset)| offset)
    }

    /// What stands before a value, and where that starts.
    pub(super) fn header(&mut self) -> io::Result<(Header, u64)> {
        let mut header = Header::default();
        loop {
            match self.byte()? {
                opcode::EXPIRETIME_MS => self.skip(8)?,
                opcode::EXPIRETIME => self.skip(4)?,
                opcode::IDLE => header.idle_seconds = Some(self.length()?),
                opcode::FREQ => header.frequency = Some(self.byte()?),
                opcode::AUX => {
                    self.skip_string()?;
                    self.skip_string()?;
                }
                type_code => {
                    header.type_code = type_code;
                    self.skip_string()?;
                    return Ok((header, self.offset()));
                }
            }
        }
    }
}
