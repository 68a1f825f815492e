//! One RDB of an archive for who reads it more than once: from its start to its end, and at any place in between.

use std::cell::RefCell;
use std::ops::Range;

use super::{Archive, Piece, SegmentRecord};
use crate::control::Control;
use crate::error::{Error, Kind};
use crate::keys::Identity;
use crate::segment::Opener;

const READ: &str = "read archive";

/// The RDB of one shard of an archive, read from the store as often as it is asked for.
///
/// Memory: that of [`Archive::read`], and two segments and a half for [`FileReader::read_at`].
pub struct FileReader {
    archive: Archive,
    identity: Identity,
    /// Where the file lies in the bytes of all segments, and in which of these.
    bytes: Range<u64>,
    segments: Range<usize>,
    held: RefCell<Held>,
}

/// What is at hand without the store.
#[derive(Default)]
struct Held {
    /// The segment that [`FileReader::read`] delivered last: what is asked for lies in it, but for keys of many segments.
    delivered: Vec<u8>,
    delivered_at: u64,
    /// A segment that was decoded for [`FileReader::read_at`].
    other: Piece,
    other_at: u64,
}

impl FileReader {
    /// The file of shard number `shard`; 0 is the only one of what is no cluster.
    ///
    /// # Errors
    /// [`Kind::NotFound`] where there is no such shard.
    pub fn new(archive: Archive, identity: Identity, shard: usize) -> Result<Self, Error> {
        let files = archive.manifest.files();
        let Some(bytes) = files.get(shard).cloned() else {
            let context = format!("{}: it has {} shards", archive.prefix, files.len());
            return Err(Error::new(Kind::NotFound, READ, context));
        };
        let all = &archive.manifest.segments;
        let segments = all.partition_point(|segment| after(segment) <= bytes.start)
            ..all.partition_point(|segment| segment.first_offset < bytes.end);
        Ok(Self {
            archive,
            identity,
            bytes,
            segments,
            held: RefCell::default(),
        })
    }

    /// Size of the RDB.
    pub fn bytes(&self) -> u64 {
        self.bytes.end - self.bytes.start
    }

    /// Reads what else a restore rests on: the archive's details.
    ///
    /// # Errors
    /// As [`Archive::read`].
    pub fn check_details(&self) -> Result<(), Error> {
        self.archive.details(&self.identity).map(drop)
    }

    /// Hands the whole RDB to `push`, as [`Archive::read`] does. While `push` runs, [`FileReader::read_at`] finds the
    /// bytes it was given without the store.
    ///
    /// # Errors
    /// As [`Archive::read`].
    pub fn read(
        &self,
        control: &Control,
        workers: usize,
        push: impl FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.read_from(0, control, workers, push)
    }

    /// As [`FileReader::read`], for who does not ask for [`FileReader::read_at`] meanwhile: no segment is copied.
    ///
    /// # Errors
    /// As [`Archive::read`].
    pub fn read_once(
        &self,
        control: &Control,
        workers: usize,
        push: impl FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let segments = &self.archive.manifest.segments[self.segments.clone()];
        self.archive
            .read_segments(segments, &self.identity, control, workers, push)
    }

    /// As [`FileReader::read`], from the byte at `offset` on.
    ///
    /// # Errors
    /// As [`Archive::read`].
    pub fn read_from(
        &self,
        offset: u64,
        control: &Control,
        workers: usize,
        mut push: impl FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let own = &self.archive.manifest.segments[self.segments.clone()];
        let first = own.partition_point(|segment| after(segment) - self.bytes.start <= offset);
        let segments = &own[first..];
        let mut at = segments
            .first()
            .map_or(offset, |segment| segment.first_offset - self.bytes.start);
        let ended = self
            .archive
            .read_segments(segments, &self.identity, control, workers, |piece| {
                {
                    let mut held = self.held.borrow_mut();
                    held.delivered_at = at;
                    held.delivered.clear();
                    held.delivered.extend_from_slice(piece);
                }
                // Of the first piece what stands before the offset is passed by.
                let before = usize::try_from(offset.saturating_sub(at)).unwrap_or(usize::MAX);
                at += piece.len() as u64;
                push(piece.get(before..).unwrap_or_default())
            });
        // A reader of each shard would hold two segments until the last of them ends.
        *self.held.borrow_mut() = Held::default();
        ended
    }

    /// Fills `buffer` with the bytes from `offset` of the RDB on.
    ///
    /// # Errors
    /// As [`Archive::read`]; [`Kind::NotFound`] where the RDB ends before.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
        let held = &mut *self.held.borrow_mut();
        let (mut offset, mut rest) = (offset, buffer);
        while !rest.is_empty() {
            let count = match within(&held.delivered, held.delivered_at, offset) {
                [] => {
                    if within(&held.other.plain, held.other_at, offset).is_empty() {
                        self.fetch(offset, held)?;
                    }
                    take(within(&held.other.plain, held.other_at, offset), rest)
                }
                bytes => take(bytes, rest),
            };
            offset += count as u64;
            rest = &mut rest[count..];
        }
        Ok(())
    }

    /// Decodes the segment with the byte at `offset` of the RDB.
    fn fetch(&self, offset: u64, held: &mut Held) -> Result<(), Error> {
        let all = &self.archive.manifest.segments;
        let at = self.bytes.start.saturating_add(offset);
        let segment = all
            .get(all.partition_point(|segment| after(segment) <= at))
            .filter(|_| at < self.bytes.end)
            .ok_or_else(|| {
                let context = format!("{}: it ends before byte {offset}", self.archive.prefix);
                Error::new(Kind::NotFound, READ, context)
            })?;
        // What a failed reading leaves in the buffer is not what was asked for.
        let read = held.other.read(
            &self.archive,
            &segment.object,
            &mut Opener::new(&self.identity)?,
            &crate::store::always,
        );
        if read.is_err() {
            held.other.plain.clear();
        }
        // Not held while the caller works with what was decoded.
        held.other.stored = Vec::new();
        held.other_at = segment.first_offset - self.bytes.start;
        read
    }
}

/// Offset behind the last byte of a segment.
fn after(segment: &SegmentRecord) -> u64 {
    segment.first_offset + segment.object.plain_bytes
}

/// What a piece that stands at `piece_at` has from `offset` on.
fn within(piece: &[u8], piece_at: u64, offset: u64) -> &[u8] {
    let from = offset
        .checked_sub(piece_at)
        .and_then(|from| usize::try_from(from).ok());
    from.and_then(|from| piece.get(from..)).unwrap_or_default()
}

/// Copies as much as there is and fits.
fn take(bytes: &[u8], into: &mut [u8]) -> usize {
    let count = bytes.len().min(into.len());
    into[..count].copy_from_slice(&bytes[..count]);
    count
}
