//! Writes values as the payloads that `DUMP` yields and `RESTORE` takes.

use std::io;

use super::raw::Raw;
use super::{Compression, Header, Loss, Target, Writer};
use crate::crc64::{Crc64, crc64};
use crate::event::KeySummary;
use crate::opcode::Family;

/// Writes payloads for a target, of any value that a [`Writer`] can write for it.
///
/// Memory: that of a [`Writer`], and the value.
pub struct PayloadWriter<R> {
    writer: Writer<R, Vec<u8>>,
}

impl<R> PayloadWriter<R>
where
    R: FnMut(u64, &mut [u8]) -> io::Result<()>,
{
    /// For keys of a file of this family; `read` as for [`Writer::new`].
    ///
    /// # Errors
    /// None that can happen: the output is memory.
    pub fn new(family: Family, target: Target, read: R) -> io::Result<Self> {
        let writer = Writer::bare(family, target, Compression::Keep, read, Vec::new())?;
        Ok(Self { writer })
    }

    /// Appends the payload of a key to `out`. `None`, and nothing appended, where the target cannot hold it: `lost` was told
    /// why.
    ///
    /// # Errors
    /// As [`Writer::key`].
    pub fn payload(
        &mut self,
        key: &KeySummary<'_>,
        out: &mut Vec<u8>,
        lost: impl FnMut(Loss<'_>),
    ) -> io::Result<Option<Header>> {
        self.writer.out.out.clear();
        self.writer.db = Some(key.db);
        self.writer.key(key, lost)?;
        let entry = &self.writer.out.out;
        if entry.is_empty() {
            return Ok(None);
        }
        let mut read = |offset: u64, buffer: &mut [u8]| {
            let from = usize::try_from(offset).unwrap_or(usize::MAX);
            let bytes = entry.get(from..).and_then(|rest| rest.get(..buffer.len()));
            buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        };
        let (header, at) = Raw::new(&mut read, 0, entry.len() as u64).header()?;
        let from = out.len();
        out.push(header.type_code);
        out.extend_from_slice(entry.get(at as usize..).unwrap_or_default());
        push_footer(out, from, self.writer.target);
        Ok(Some(header))
    }
}

/// What stands before the value of an entry at this offset, and where the value starts. `read` as for [`Writer::new`].
///
/// # Errors
/// Those of `read`; `InvalidData` where no entry stands there.
pub fn entry_header(
    mut read: impl FnMut(u64, &mut [u8]) -> io::Result<()>,
    offset: u64,
    bytes: u64,
) -> io::Result<(Header, u64)> {
    Raw::new(&mut read, offset, bytes).header()
}

/// Bytes of a payload behind its value: version and checksum.
pub const FOOTER_BYTES: usize = 10;

/// The footer of a payload that passes in pieces.
pub struct Footer {
    version: [u8; 2],
    crc: Crc64,
}

impl Footer {
    /// Of a payload for this target.
    pub fn new(target: Target) -> Self {
        Self {
            version: version_of(target),
            crc: Crc64::new(),
        }
    }

    /// Takes the next bytes of the type code and the value.
    pub fn update(&mut self, bytes: &[u8]) {
        self.crc.update(bytes);
    }

    /// What comes behind them.
    pub fn finish(mut self) -> [u8; FOOTER_BYTES] {
        self.crc.update(&self.version);
        let mut footer = [0; FOOTER_BYTES];
        footer[..2].copy_from_slice(&self.version);
        footer[2..].copy_from_slice(&self.crc.value().to_le_bytes());
        footer
    }
}

/// Versions have two digits.
fn version_of(target: Target) -> [u8; 2] {
    (target.version() as u16).to_le_bytes()
}

/// Ends the payload that begins at `from` with its version and its checksum.
pub fn push_footer(out: &mut Vec<u8>, from: usize, target: Target) {
    out.extend_from_slice(&version_of(target));
    let crc = crc64(&out[from..]);
    out.extend_from_slice(&crc.to_le_bytes());
}
