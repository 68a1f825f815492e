//! Where in an archive which keys may lie, so that a few keys are read without the rest.
//!
//! A segment is compressed in blocks of [`BLOCK_BYTES`] plain bytes, each a zstd frame of its own; to the stock programs that
//! is the same file. Of each block an index object says where it is stored, where its first key begins, and, as a
//! filter, which keys begin in it.
//!
//! The filter is a Golomb-coded set: the hashes of a block's `n` keys, spread over `n` x 8192 numbers and sorted, as the
//! differences of neighbours in Rice code of 13 bits. That takes 14.5 bits a key, and one key in 8192 that is not in a block
//! seems to be: each key that is asked for costs 1/8192 of the blocks beside its own. It is hashes of keys, so it lies in
//! objects that are encrypted as all others are.

use serde::{Deserialize, Serialize};

use crate::archive::ObjectRecord;
use crate::keys::{from_hex, to_hex};

/// Plain bytes of a block: what is decoded for one key. zstd's window at this level is not much larger.
pub const BLOCK_BYTES: usize = 256 * 1024;
/// Version of the index objects.
pub(crate) const INDEX_VERSION: u32 = 1;
/// Filter bytes after which an index object is written: 300,000 keys.
pub(crate) const OBJECT_FILTER_BYTES: usize = 512 * 1024;
/// Bits of a difference that are written as they are; a key costs these and 1.5.
const RICE_BITS: u32 = 13;

/// The object name of index object `number`, relative to the prefix.
pub(crate) fn object_name(number: usize) -> String {
    format!("shard-0/keys-{number:06}.json.zst.age")
}

/// What the manifest says of the index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IndexRecord {
    /// Plain bytes of a block.
    pub block_bytes: u64,
    /// The first nine bytes of the RDB, which say its family and version.
    pub head: String,
    /// Offset in the RDB behind the last key.
    pub keys_end: u64,
    /// The objects that hold it.
    pub objects: Vec<ObjectRecord>,
}

/// One index object.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct IndexObject {
    /// [`INDEX_VERSION`].
    pub(crate) version: u32,
    /// Some of the segments, in any order.
    pub(crate) segments: Vec<SegmentIndex>,
}

/// The blocks of one segment.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SegmentIndex {
    /// Its number.
    pub(crate) segment: usize,
    /// In the order of their bytes.
    pub(crate) blocks: Vec<BlockIndex>,
}

impl SegmentIndex {
    /// Puts together what the cutter and the sealer know of a segment.
    pub(crate) fn new(segment: usize, stored: Vec<StoredBlock>, filters: Vec<BlockFilter>) -> Self {
        let mut filters = filters.into_iter().peekable();
        let blocks = stored.into_iter().enumerate().map(|(at, stored)| {
            let filter = filters.next_if(|filter| filter.block == at);
            BlockIndex {
                stored_bytes: stored.bytes,
                stored_blake3: to_hex(&stored.blake3),
                first: filter.as_ref().map(|filter| filter.first),
                keys: filter.as_ref().map_or(0, |filter| filter.keys),
                filter: filter.map_or_else(String::new, |filter| to_hex(&filter.bytes)),
            }
        });
        Self {
            segment,
            blocks: blocks.collect(),
        }
    }

    /// Bytes that it takes in memory, about.
    pub(crate) fn bytes(&self) -> usize {
        self.blocks.iter().map(|block| block.filter.len() / 2 + 64).sum()
    }
}

/// One block.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BlockIndex {
    /// Size of its zstd frame; the frames follow each other from the first byte on.
    pub(crate) stored_bytes: u32,
    /// The first 16 bytes of the BLAKE3 of the frame, hexadecimal.
    pub(crate) stored_blake3: String,
    /// The first key of which this block tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) first: Option<FirstKey>,
    /// Keys in the filter.
    #[serde(default)]
    pub(crate) keys: u32,
    /// See the module; hexadecimal, which zstd makes small again.
    #[serde(default)]
    pub(crate) filter: String,
}

impl BlockIndex {
    /// Whether one of the keys with these hashes, sorted, may begin in this block. `None`: it is damaged.
    pub(crate) fn may_hold(&self, hashes: &[u64]) -> Option<bool> {
        may_hold(self.keys, &from_hex(&self.filter)?, hashes)
    }
}

/// Where a key begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FirstKey {
    /// Offset of its first opcode in the RDB. Before the block where it is a key of many blocks, which is known when it
    /// ends: these belong to the block in which they are first known.
    pub(crate) offset: u64,
    /// Its database.
    pub(crate) db: u32,
}

/// What a sealer knows of a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredBlock {
    /// Size of its zstd frame.
    pub bytes: u32,
    /// The first bytes of the BLAKE3 of the frame.
    pub blake3: [u8; 16],
}

impl StoredBlock {
    /// Of a frame.
    pub(crate) fn of(frame: &[u8]) -> Self {
        Self {
            bytes: u32::try_from(frame.len()).unwrap_or(u32::MAX),
            blake3: short_hash(frame),
        }
    }
}

/// The first half of the BLAKE3 of `bytes`.
pub(crate) fn short_hash(bytes: &[u8]) -> [u8; 16] {
    let mut short = [0; 16];
    short.copy_from_slice(&blake3::hash(bytes).as_bytes()[..16]);
    short
}

/// What the cutter knows of a block in which keys begin.
pub(crate) struct BlockFilter {
    block: usize,
    first: FirstKey,
    keys: u32,
    bytes: Vec<u8>,
}

/// The hash of a key in the filters.
pub fn hash_of(key: &[u8]) -> u64 {
    short(rdb::hash_of_key(key))
}

fn short(hash: u128) -> u64 {
    hash as u64
}

/// Gathers the keys of the segment that is being filled. Memory: the hashes of one block's keys, 0.5 MiB at most, and the
/// filters of one segment.
#[derive(Default)]
pub(crate) struct Gatherer {
    segment_start: u64,
    /// The newest key: only the next cut tells which segment it is of.
    newest: Option<(FirstKey, u64)>,
    block: usize,
    first: Option<FirstKey>,
    hashes: Vec<u64>,
    done: Vec<BlockFilter>,
    keys_end: u64,
}

impl Gatherer {
    /// Takes a key that is complete, in the order of the file.
    pub(crate) fn key(&mut self, key: &rdb::KeySummary<'_>) {
        self.keys_end = key.offset + key.bytes;
        let first = FirstKey {
            offset: key.offset,
            db: key.db,
        };
        if let Some((before, hash)) = self.newest.replace((first, short(key.key_hash))) {
            self.put(before, hash);
        }
    }

    /// The filters of the segment that ends at this offset of the RDB.
    pub(crate) fn cut(&mut self, at: u64) -> Vec<BlockFilter> {
        if let Some((newest, hash)) = self.newest.take_if(|(newest, _)| newest.offset < at) {
            self.put(newest, hash);
        }
        self.close_block();
        self.block = 0;
        self.segment_start = at;
        std::mem::take(&mut self.done)
    }

    /// Offset behind the last key.
    pub(crate) fn keys_end(&self) -> u64 {
        self.keys_end
    }

    fn put(&mut self, key: FirstKey, hash: u64) {
        let within = key.offset.saturating_sub(self.segment_start);
        let block = usize::try_from(within).unwrap_or(usize::MAX) / BLOCK_BYTES;
        if block != self.block {
            self.close_block();
            self.block = block;
        }
        self.first.get_or_insert(key);
        self.hashes.push(hash);
    }

    fn close_block(&mut self) {
        if let Some(first) = self.first.take() {
            self.done.push(BlockFilter {
                block: self.block,
                first,
                keys: u32::try_from(self.hashes.len()).unwrap_or(u32::MAX),
                bytes: encode(&mut self.hashes),
            });
            self.hashes.clear();
        }
    }
}

/// A hash as a number below `count` << [`RICE_BITS`]; grows with it.
fn spread(hash: u64, count: u32) -> u64 {
    let range = u128::from(count) << RICE_BITS;
    // Below the range, which is below 2^45.
    ((u128::from(hash) * range) >> 64) as u64
}

/// The filter of these hashes, which are sorted for it.
fn encode(hashes: &mut [u64]) -> Vec<u8> {
    hashes.sort_unstable();
    let count = u32::try_from(hashes.len()).unwrap_or(u32::MAX);
    let mut bits = Bits::default();
    let mut before = 0;
    for hash in hashes.iter() {
        let value = spread(*hash, count);
        let difference = value - before;
        before = value;
        for _ in 0..difference >> RICE_BITS {
            bits.push(1, 1);
        }
        bits.push(0, 1);
        bits.push(difference & ((1 << RICE_BITS) - 1), RICE_BITS);
    }
    bits.finish()
}

/// Whether a filter may hold one of the hashes, which are sorted. `None`: it ends early.
fn may_hold(count: u32, filter: &[u8], hashes: &[u64]) -> Option<bool> {
    let mut wanted = hashes.iter().map(|hash| spread(*hash, count)).peekable();
    let mut at = 0;
    let mut bit = || -> Option<u64> {
        let byte = filter.get(at / 8)?;
        let bit = byte >> (7 - at % 8) & 1;
        at += 1;
        Some(u64::from(bit))
    };
    let mut value = 0;
    for _ in 0..count {
        while bit()? == 1 {
            value += 1 << RICE_BITS;
        }
        let mut rest = 0;
        for _ in 0..RICE_BITS {
            rest = rest << 1 | bit()?;
        }
        value += rest;
        while wanted.next_if(|wanted| *wanted < value).is_some() {}
        match wanted.peek() {
            None => return Some(false),
            Some(wanted) if *wanted == value => return Some(true),
            Some(_) => {}
        }
    }
    Some(false)
}

/// Bits, the highest of each byte first.
#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    held: u64,
    count: u32,
}

impl Bits {
    fn push(&mut self, value: u64, bits: u32) {
        self.held = self.held << bits | value;
        self.count += bits;
        while self.count >= 8 {
            self.count -= 8;
            self.bytes.push((self.held >> self.count) as u8);
        }
    }

    fn finish(mut self) -> Vec<u8> {
        let missing = (8 - self.count % 8) % 8;
        self.push(0, missing);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashes(name: &str, count: usize) -> Vec<u64> {
        let mut hashes: Vec<u64> = (0..count)
            .map(|at| hash_of(format!("{name}:{at}").as_bytes()))
            .collect();
        hashes.sort_unstable();
        hashes
    }

    #[test]
    fn a_filter_knows_every_key_of_its_own_and_few_others_at_under_15_bits_a_key() {
        for count in [1_usize, 2, 3, 100, 10_000] {
            let own = hashes("own", count);
            let filter = encode(&mut own.clone());
            let held = |hash: u64| may_hold(u32::try_from(count).unwrap(), &filter, &[hash]).unwrap();
            assert!(own.iter().all(|hash| held(*hash)));
            assert!(
                filter.len() * 8 <= count * 15 + 64,
                "{count}: {} bytes",
                filter.len()
            );
        }
        let filter = encode(&mut hashes("own", 1000));
        let strangers = hashes("other", 100_000);
        let taken = strangers
            .iter()
            .filter(|hash| may_hold(1000, &filter, &[**hash]).unwrap())
            .count();
        assert!(taken < 40, "{taken} of 100,000, one in 8192 is expected");
        assert_eq!(may_hold(1000, &filter[..filter.len() - 2], &[u64::MAX]), None);
        assert_eq!(may_hold(0, &[], &[1]), Some(false));
    }

    #[test]
    fn many_keys_are_looked_for_at_once() {
        let own = hashes("own", 500);
        let filter = encode(&mut own.clone());
        let mut wanted = hashes("other", 20);
        wanted.retain(|hash| !may_hold(500, &filter, &[*hash]).unwrap());
        assert_eq!(may_hold(500, &filter, &wanted), Some(false));
        wanted.push(own[250]);
        wanted.sort_unstable();
        assert_eq!(may_hold(500, &filter, &wanted), Some(true));
    }
}
