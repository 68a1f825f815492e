//! Chooses the keys that are compared one by one after loading.
//!
//! All keys of a small file. Of a big one those with the smallest hashes (a fair draw over all keys, the same at each
//! run), the biggest values (where an engine has the most room for mistakes), and some of every encoding.

use std::cmp::{Ordering, Reverse};
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BinaryHeap};
use std::hash::Hasher;
use std::time::{SystemTime, UNIX_EPOCH};

use super::Functions;

/// Keys drawn by hash.
const DRAWN_MAX: usize = 10_000;
/// Bytes of their names: fewer are drawn where names are long.
const DRAWN_KEY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Biggest values.
const BIGGEST_MAX: usize = 100;
/// Keys of each type code.
const PER_TYPE_MAX: usize = 16;
/// A key with a longer name is only counted and digested with its db: (100 + 16 x 32 type codes) x 8 KiB = 5 MiB.
const KEY_BYTES_MAX: usize = 8 * 1024;

/// One key as the file has it.
#[derive(Debug, Clone)]
pub(crate) struct Sampled {
    pub(crate) db: u32,
    pub(crate) key: Box<[u8]>,
    pub(crate) kind: rdb::Type,
    pub(crate) value_digest: [u8; 16],
    pub(crate) expire_at_ms: Option<i64>,
    /// Size in the file.
    pub(crate) bytes: u64,
    /// Place in the file: tells keys apart.
    offset: u64,
}

/// Orders by one number, then by the place in the file.
struct Ranked {
    rank: u64,
    sampled: Sampled,
}

impl Ranked {
    fn order(&self) -> (u64, u64) {
        (self.rank, self.sampled.offset)
    }
}

impl PartialEq for Ranked {
    fn eq(&self, other: &Self) -> bool {
        self.order() == other.order()
    }
}

impl Eq for Ranked {}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> Ordering {
        self.order().cmp(&other.order())
    }
}

pub(super) struct Sampler {
    /// Greatest hash on top.
    drawn: BinaryHeap<Ranked>,
    drawn_key_bytes: usize,
    /// Smallest value on top.
    biggest: BinaryHeap<Reverse<Ranked>>,
    per_type: BTreeMap<u8, Vec<Sampled>>,
    functions: Functions,
    keys: u64,
    expired_keys: u64,
    /// What counts as past.
    now_ms: i64,
    /// Set once the draw had to leave a key out: from then on only smaller hashes come in.
    is_full: bool,
}

impl Sampler {
    pub(super) fn new() -> Self {
        Self {
            drawn: BinaryHeap::new(),
            drawn_key_bytes: 0,
            biggest: BinaryHeap::new(),
            per_type: BTreeMap::new(),
            functions: Functions::default(),
            keys: 0,
            expired_keys: 0,
            now_ms: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .ok()
                .and_then(|since| i64::try_from(since.as_millis()).ok())
                .unwrap_or(0),
            is_full: false,
        }
    }

    /// Keys seen.
    pub(super) fn keys(&self) -> u64 {
        self.keys
    }

    /// Keys seen whose time had passed when the pass began.
    pub(super) fn expired_keys(&self) -> u64 {
        self.expired_keys
    }

    /// The sample in the order of the file, each key once.
    pub(super) fn finish(mut self) -> (Vec<Sampled>, Functions) {
        let mut sample: Vec<Sampled> = self
            .drawn
            .into_iter()
            .chain(self.biggest.into_iter().map(|Reverse(ranked)| ranked))
            .map(|ranked| ranked.sampled)
            .chain(self.per_type.into_values().flatten())
            .collect();
        sample.sort_by_key(|sampled| (sampled.db, sampled.offset));
        sample.dedup_by_key(|sampled| sampled.offset);
        self.functions.code_digests.sort_unstable();
        (sample, self.functions)
    }

    fn draw(&mut self, key: &rdb::KeySummary<'_>) {
        let rank = hash(key);
        if self.is_full && self.drawn.peek().is_none_or(|top| rank >= top.rank) {
            return;
        }
        self.drawn_key_bytes += key.key.len();
        self.drawn.push(Ranked {
            rank,
            sampled: sampled(key),
        });
        while self.drawn.len() > DRAWN_MAX || self.drawn_key_bytes > DRAWN_KEY_BYTES_MAX {
            self.is_full = true;
            let Some(out) = self.drawn.pop() else {
                break;
            };
            self.drawn_key_bytes -= out.sampled.key.len();
        }
    }

    fn keep_if_big(&mut self, key: &rdb::KeySummary<'_>) {
        let is_full = self.biggest.len() == BIGGEST_MAX;
        if is_full
            && self
                .biggest
                .peek()
                .is_some_and(|Reverse(least)| key.bytes <= least.rank)
        {
            return;
        }
        if is_full {
            self.biggest.pop();
        }
        self.biggest.push(Reverse(Ranked {
            rank: key.bytes,
            sampled: sampled(key),
        }));
    }
}

impl rdb::Sink for Sampler {
    fn key(&mut self, key: &rdb::KeySummary<'_>) {
        self.keys += 1;
        if key.expire_at_ms.is_some_and(|at| at <= self.now_ms) {
            self.expired_keys += 1;
        }
        if key.key.len() > KEY_BYTES_MAX {
            return;
        }
        self.draw(key);
        self.keep_if_big(key);
        let of_type = self.per_type.entry(key.type_code).or_default();
        if of_type.len() < PER_TYPE_MAX {
            of_type.push(sampled(key));
        }
    }

    fn function(&mut self, code: &[u8]) {
        self.functions.code_digests.push(*blake3::hash(code).as_bytes());
        self.functions.code_bytes += code.len() as u64;
    }
}

fn sampled(key: &rdb::KeySummary<'_>) -> Sampled {
    Sampled {
        db: key.db,
        key: key.key.into(),
        kind: key.kind,
        value_digest: key.value_digest,
        expire_at_ms: key.expire_at_ms,
        bytes: key.bytes,
        offset: key.offset,
    }
}

fn hash(key: &rdb::KeySummary<'_>) -> u64 {
    // Its keys are constants: the same draw at each run.
    let mut hasher = DefaultHasher::new();
    hasher.write_u32(key.db);
    hasher.write(key.key);
    hasher.finish()
}
