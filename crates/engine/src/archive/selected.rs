//! A few keys of an archive, without the rest of it.

use std::cell::RefCell;
use std::io::{self, BufRead, Read, Seek, SeekFrom};
use std::ops::Range;

use zstd::zstd_safe::DCtx;

use super::{Archive, Piece, SegmentRecord};
use crate::control::Control;
use crate::error::{Error, Kind};
use crate::key_index::{FirstKey, INDEX_VERSION, IndexObject, IndexRecord, short_hash};
use crate::keys::{Identity, from_hex};
use crate::segment::{Opener, PLAIN_BYTES_MAX};
use crate::store::Store;

const READ: &str = "read chosen keys";
const SELECTDB: u8 = 0xFE;
const EOF: u8 = 0xFF;
/// The first version with a checksum at its end; zero says that there is none.
const VERSION_WITH_CHECKSUM: u32 = 5;
/// The head of an age file for one recipient is some 300 bytes.
const HEAD_BYTES: u64 = 4096;
/// age encrypts pieces of this size, and reads whole ones.
const AGE_CHUNK_BYTES: u64 = 64 * 1024 + 16;

/// What was read for the chosen keys.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Chosen {
    /// Stored bytes that were read, the index among them.
    pub read_bytes: u64,
    /// Of them, of the index.
    pub index_bytes: u64,
    /// Blocks that were read, and that there are.
    pub blocks: (u64, u64),
    /// Segments of which something was read, and that there are.
    pub segments: (u64, u64),
}

/// One block, without its filter.
struct Head {
    segment: usize,
    /// Offset of its frame in the segment's compressed bytes.
    stored_at: u64,
    stored_bytes: u32,
    blake3: [u8; 16],
    first: Option<FirstKey>,
    is_hit: bool,
}

/// Keys that follow each other in the RDB.
struct Run {
    db: u32,
    bytes: Range<u64>,
}

impl Archive {
    /// Hands a valid RDB to `push` that holds the keys with these hashes (see [`crate::key_index::hash_of`]), and others
    /// that stand beside them. Function libraries are not in it. `None`: this archive has no index.
    ///
    /// Every block is compared with its digest in the index, which is compared with the manifest. Memory: the heads of all
    /// blocks, 20 KiB for each 100 MiB of RDB, and a segment.
    ///
    /// # Errors
    /// As [`Archive::read`].
    pub fn read_chosen(
        &self,
        identity: &Identity,
        hashes: &[u64],
        control: &Control,
        mut push: impl FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<Option<Chosen>, Error> {
        let Some(index) = &self.manifest.index else {
            return Ok(None);
        };
        let mut hashes = hashes.to_vec();
        hashes.sort_unstable();
        let mut chosen = Chosen::default();
        let heads = self.heads(index, identity, &hashes, control)?;
        chosen.index_bytes = index.objects.iter().map(|object| object.stored_bytes).sum();
        chosen.read_bytes = chosen.index_bytes;
        chosen.blocks.1 = heads.len() as u64;
        chosen.segments.1 = self.manifest.segments.len() as u64;
        push(index.head.as_bytes())?;
        let mut reading = Reading {
            archive: self,
            identity,
            block_bytes: index.block_bytes,
            heads: &heads,
            control,
            chosen,
            newest: None,
        };
        for run in runs(&heads, index.keys_end) {
            push(&select_db(run.db))?;
            reading.run(run.bytes, &mut push)?;
        }
        push(&[EOF])?;
        if self.manifest.rdb_version >= VERSION_WITH_CHECKSUM {
            push(&[0; 8])?;
        }
        Ok(Some(reading.chosen))
    }

    /// All blocks, in order, and which of them may hold a wanted key.
    fn heads(
        &self,
        index: &IndexRecord,
        identity: &Identity,
        hashes: &[u64],
        control: &Control,
    ) -> Result<Vec<Head>, Error> {
        let mut opener = Opener::new(identity)?;
        let mut piece = Piece::default();
        let mut heads = Vec::new();
        for object in &index.objects {
            let tampered = |what: &str| Error::new(Kind::Tampered, READ, format!("{}: {what}", object.name));
            piece.read(self, object, &mut opener, &|| control.check(READ))?;
            let found: IndexObject =
                serde_json::from_slice(&piece.plain).map_err(|e| tampered("it is no index").because(e))?;
            if found.version != INDEX_VERSION {
                let context = format!("{}: written in format {}", object.name, found.version);
                return Err(Error::new(Kind::Store, READ, context));
            }
            for segment in found.segments {
                let mut stored_at = 0;
                for block in segment.blocks {
                    let hash = from_hex(&block.stored_blake3).and_then(|hash| hash.try_into().ok());
                    heads.push(Head {
                        segment: segment.segment,
                        stored_at,
                        stored_bytes: block.stored_bytes,
                        blake3: hash.ok_or_else(|| tampered("it names no digest"))?,
                        first: block.first,
                        is_hit: block
                            .may_hold(hashes)
                            .ok_or_else(|| tampered("a filter is broken"))?,
                    });
                    stored_at += u64::from(block.stored_bytes);
                }
            }
        }
        heads.sort_by_key(|head| (head.segment, head.stored_at));
        let wanted = self
            .manifest
            .segments
            .iter()
            .enumerate()
            .flat_map(|(at, segment)| {
                let blocks = segment
                    .object
                    .plain_bytes
                    .div_ceil(index.block_bytes.max(1))
                    .min(PLAIN_BYTES_MAX);
                (0..blocks).map(move |_| at)
            });
        match heads.iter().map(|head| head.segment).eq(wanted) {
            true => Ok(heads),
            false => Err(Error::new(
                Kind::Tampered,
                READ,
                format!("{}: its index is not of its segments", self.prefix),
            )),
        }
    }
}

/// One read of chosen keys.
struct Reading<'a> {
    archive: &'a Archive,
    identity: &'a Identity,
    block_bytes: u64,
    heads: &'a [Head],
    control: &'a Control,
    chosen: Chosen,
    /// The segment that was read last.
    newest: Option<usize>,
}

impl Reading<'_> {
    /// Reads the blocks with these bytes of the RDB.
    fn run(
        &mut self,
        bytes: Range<u64>,
        push: &mut dyn FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let archive = self.archive;
        let segments = &archive.manifest.segments;
        let after = |segment: &SegmentRecord| segment.first_offset + segment.object.plain_bytes;
        let from = segments.partition_point(|segment| after(segment) <= bytes.start);
        for (at, segment) in segments.iter().enumerate().skip(from) {
            if segment.first_offset >= bytes.end {
                break;
            }
            self.control.check(READ)?;
            let begin = self.heads.partition_point(|head| head.segment < at);
            let end = self.heads.partition_point(|head| head.segment <= at);
            let block_of = |offset: u64| {
                let within = offset.saturating_sub(segment.first_offset);
                usize::try_from(within / self.block_bytes).unwrap_or(usize::MAX)
            };
            let first = block_of(bytes.start);
            let last = block_of(bytes.end.min(after(segment)).saturating_sub(1));
            let blocks = self.heads[begin..end].get(first..=last).ok_or_else(|| {
                let context = format!("{}: its index is not of its segments", archive.prefix);
                Error::new(Kind::Tampered, READ, context)
            })?;
            let name = archive.full_name(&segment.object);
            let (plain, read) = archive.store.read_judged(|| {
                read_blocks(
                    &archive.store,
                    &name,
                    segment,
                    self.identity,
                    blocks,
                    self.block_bytes,
                )
            })?;
            self.chosen.read_bytes += read;
            self.chosen.blocks.0 += blocks.len() as u64;
            self.chosen.segments.0 += u64::from(self.newest.replace(at) != Some(at));
            let plain_at = segment.first_offset + first as u64 * self.block_bytes;
            let within = |offset: u64| {
                let offset = usize::try_from(offset.saturating_sub(plain_at)).unwrap_or(usize::MAX);
                offset.min(plain.len())
            };
            push(&plain[within(bytes.start)..within(bytes.end)])?;
        }
        Ok(())
    }
}

/// What is to be read: from the first key of a block that may hold a wanted one to the first key of the next block.
fn runs(heads: &[Head], keys_end: u64) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut firsts = heads
        .iter()
        .filter_map(|head| head.first.map(|first| (first, head.is_hit)))
        .peekable();
    while let Some((first, is_hit)) = firsts.next() {
        if !is_hit {
            continue;
        }
        let end = firsts.peek().map_or(keys_end, |(next, _)| next.offset);
        match runs.last_mut() {
            Some(last) if last.bytes.end == first.offset => last.bytes.end = end,
            _ => runs.push(Run {
                db: first.db,
                bytes: first.offset..end,
            }),
        }
    }
    runs
}

/// Decrypts and expands blocks that follow each other; the plain bytes, and how many stored ones were read.
fn read_blocks(
    store: &Store,
    name: &str,
    segment: &SegmentRecord,
    identity: &Identity,
    blocks: &[Head],
    block_bytes: u64,
) -> Result<(Vec<u8>, u64), Error> {
    let tampered = |what: &str| Error::new(Kind::Tampered, READ, format!("{name}: {what}"));
    let compressed_bytes: u64 = blocks.iter().map(|block| u64::from(block.stored_bytes)).sum();
    if compressed_bytes > segment.object.stored_bytes {
        return Err(tampered("its index says more than it has"));
    }
    let state = RefCell::new(Fetched {
        wanted: HEAD_BYTES,
        bytes: 0,
        failure: None,
    });
    let source = Ranged {
        store,
        name,
        size: segment.object.stored_bytes,
        at: 0,
        held: Vec::new(),
        held_at: 0,
        state: &state,
    };
    let mut compressed = vec![0; usize::try_from(compressed_bytes).unwrap_or(usize::MAX)];
    let start = blocks.first().map_or(0, |block| block.stored_at);
    let decrypted = age::Decryptor::new_buffered(source)
        .and_then(|file| file.decrypt(std::iter::once(identity.as_age())))
        .map_err(|e| match e {
            age::DecryptError::NoMatchingKeys => {
                Error::new(Kind::Key, READ, format!("{name}: this key does not open it"))
            }
            other => tampered("it is no valid age file").because(other),
        })
        .and_then(|mut file| {
            state.borrow_mut().wanted = compressed_bytes + 2 * AGE_CHUNK_BYTES;
            file.seek(SeekFrom::Start(start))
                .and_then(|_| file.read_exact(&mut compressed))
                .map_err(|e| tampered("it cannot be decrypted").because(e))
        });
    let fetched = state.into_inner();
    if let Some(failure) = fetched.failure {
        return Err(failure);
    }
    decrypted?;
    let mut context =
        DCtx::try_create().ok_or_else(|| Error::new(Kind::Memory, READ, "no memory for the decompressor"))?;
    let mut plain = Vec::new();
    // What a manifest of another version may say is bounded by what a segment may be.
    let mut frame =
        Vec::with_capacity(usize::try_from(block_bytes.min(PLAIN_BYTES_MAX)).unwrap_or(usize::MAX));
    let mut rest = &compressed[..];
    for block in blocks {
        let (stored, after) = rest.split_at(block.stored_bytes as usize);
        rest = after;
        if short_hash(stored) != block.blake3 {
            return Err(tampered("a block is not that of the index"));
        }
        context
            .decompress(&mut frame, stored)
            .map_err(|_code| tampered("a block cannot be expanded"))?;
        plain.extend_from_slice(&frame);
    }
    Ok((plain, fetched.bytes))
}

/// What [`Ranged`] shares with its owner while age has it.
struct Fetched {
    /// Bytes to ask for at once.
    wanted: u64,
    /// Bytes that came.
    bytes: u64,
    failure: Option<Error>,
}

/// An object that is read where it is wanted.
struct Ranged<'a> {
    store: &'a Store,
    name: &'a str,
    size: u64,
    at: u64,
    held: Vec<u8>,
    held_at: u64,
    state: &'a RefCell<Fetched>,
}

impl BufRead for Ranged<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let is_held = |at: u64| at >= self.held_at && at < self.held_at + self.held.len() as u64;
        if !is_held(self.at) && self.at < self.size {
            let mut state = self.state.borrow_mut();
            let end = self.at.saturating_add(state.wanted).min(self.size);
            match self.store.get_range(self.name, self.at..end) {
                Ok(bytes) => {
                    state.bytes += bytes.len() as u64;
                    self.held = bytes;
                    self.held_at = self.at;
                }
                Err(error) => {
                    state.failure = Some(error);
                    return Err(io::Error::other("the store"));
                }
            }
        }
        let from = usize::try_from(self.at.saturating_sub(self.held_at)).unwrap_or(usize::MAX);
        Ok(self.held.get(from..).unwrap_or_default())
    }

    fn consume(&mut self, amount: usize) {
        self.at += amount as u64;
    }
}

impl Read for Ranged<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

impl Seek for Ranged<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.size.checked_add_signed(by),
        };
        self.at = at.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.at)
    }
}

/// The opcode that says of which database the next keys are.
fn select_db(db: u32) -> Vec<u8> {
    match db {
        0..64 => vec![SELECTDB, db as u8],
        64..16384 => vec![SELECTDB, 0x40 | (db >> 8) as u8, db as u8],
        _ => [&[SELECTDB, 0x80][..], &db.to_be_bytes()].concat(),
    }
}
