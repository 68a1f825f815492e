//! Validates the snapshot and cuts it into segments at the starts of keys.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use crate::archive::{
    DETAILS_VERSION, DbDetails, Details, FunctionDetails, KeyDetails, ObjectRecord, SegmentRecord,
    TypeDetails, shard_segment_name,
};
use crate::defect;
use crate::duplicate::invalid;
use crate::error::{Error, Kind};
use crate::key_index::{BLOCK_BYTES, Gatherer, IndexRecord};
use crate::keys::to_hex;
use crate::segment::SEGMENT_BYTES;

use super::sealing::{Job, Jobs};

const VALIDATE: &str = "validate snapshot";
/// How many big keys the details name.
const BIGGEST_KEYS: usize = 100;
/// Most bytes of a key's name in the details.
const KEY_NAME_BYTES_MAX: usize = 1024;

/// A snapshot that was validated to its last byte.
pub(super) struct Captured {
    pub(super) report: rdb::Report,
    /// In order; sizes and digests are filled in when the segments are stored.
    pub(super) segments: Vec<SegmentRecord>,
    pub(super) keys: u64,
    /// Its objects are filled in as the segments are.
    pub(super) index: IndexRecord,
    biggest: Vec<BigKey>,
}

impl Captured {
    /// Adds what another shard's snapshot held, behind this one.
    pub(super) fn append(&mut self, other: Captured) {
        let before = self.report.bytes;
        self.segments
            .extend(other.segments.into_iter().map(|mut segment| {
                segment.first_offset += before;
                segment
            }));
        self.report.bytes += other.report.bytes;
        self.report.rdb_version = self.report.rdb_version.max(other.report.rdb_version);
        self.report.census.absorb(&other.report.census);
        self.report.warning_count += other.report.warning_count;
        self.keys += other.keys;
        self.biggest.extend(other.biggest);
        self.biggest.sort_unstable_by(|one, two| two.cmp(one));
        self.biggest.truncate(BIGGEST_KEYS);
    }

    /// The text of the first of these AUX fields that is there, else nothing.
    pub(super) fn aux_text(&self, names: &[&str]) -> String {
        aux_text(&self.report, names)
    }

    /// The census in its stored form.
    pub(super) fn details(&self, source: String) -> Details {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let dbs = self.report.census.dbs.iter().map(|(&db, census)| DbDetails {
            db,
            keys: census.keys,
            expires: census.expires,
            digest: to_hex(&census.digest),
            types: census
                .types
                .iter()
                .map(|(kind, of_type)| {
                    let counts = TypeDetails {
                        keys: of_type.keys,
                        elements: of_type.elements,
                        bytes: of_type.bytes,
                    };
                    (kind.name().to_owned(), counts)
                })
                .collect::<BTreeMap<_, _>>(),
        });
        let biggest_keys = self.biggest.iter().map(|key| KeyDetails {
            db: key.db,
            key_hex: to_hex(&key.name),
            kind: key.kind.name().to_owned(),
            elements: key.elements,
            bytes: key.bytes,
        });
        let functions = self.report.functions.iter().map(|function| FunctionDetails {
            name: function.name.clone(),
            engine: function.engine.clone(),
            code_bytes: function.code_bytes,
        });
        Details {
            version: DETAILS_VERSION,
            source,
            aux: self
                .report
                .aux
                .iter()
                .map(|(name, value)| (text(name), text(value)))
                .collect(),
            dbs: dbs.collect(),
            biggest_keys: biggest_keys.collect(),
            functions: functions.collect(),
        }
    }
}

/// See [`Captured::aux_text`].
pub(super) fn aux_text(report: &rdb::Report, names: &[&str]) -> String {
    let field = |name: &&str| report.aux.iter().find(|(field, _)| field == name.as_bytes());
    names
        .iter()
        .find_map(field)
        .map(|(_, value)| String::from_utf8_lossy(value).into_owned())
        .unwrap_or_default()
}

/// One of the keys with the longest serialised form. Ordered by size first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct BigKey {
    bytes: u64,
    db: u32,
    name: Vec<u8>,
    elements: u64,
    kind: rdb::Type,
}

/// What is gathered key by key.
#[derive(Default)]
struct Gathered {
    biggest: BinaryHeap<Reverse<BigKey>>,
    /// Size that a key must exceed to be among the biggest.
    threshold_bytes: u64,
    /// Start and database of the latest key that is complete.
    last_start: u64,
    last_db: u32,
    /// Segments from this one on wait for the next complete key to learn their database.
    segments: Vec<SegmentRecord>,
    without_db: usize,
    /// The slots that keys may be of; `None`: all.
    slots: Option<Vec<(u16, u16)>>,
    /// Offset and slot of the first key that is of another.
    stray: Option<(u64, u16)>,
    filters: Gatherer,
}

impl rdb::Sink for Gathered {
    fn key(&mut self, key: &rdb::KeySummary<'_>) {
        self.filters.key(key);
        self.last_start = key.offset;
        if let Some(slots) = &self.slots
            && self.stray.is_none()
        {
            let slot = rdb::slot_of(key.key);
            let is_own = slots.iter().any(|(first, last)| (*first..=*last).contains(&slot));
            self.stray = (!is_own).then_some((key.offset, slot));
        }
        self.last_db = key.db;
        for segment in &mut self.segments[self.without_db..] {
            segment.db = key.db;
        }
        self.without_db = self.segments.len();
        if key.bytes > self.threshold_bytes {
            self.biggest.push(Reverse(BigKey {
                bytes: key.bytes,
                db: key.db,
                name: key.key[..key.key.len().min(KEY_NAME_BYTES_MAX)].to_vec(),
                elements: key.elements,
                kind: key.kind,
            }));
            if self.biggest.len() > BIGGEST_KEYS {
                self.biggest.pop();
                self.threshold_bytes = self.biggest.peek().map_or(0, |Reverse(least)| least.bytes);
            }
        }
    }
}

/// For the planted defect alone: one that has read an empty file and found nothing wrong.
fn pleased() -> rdb::Validator {
    let mut validator = rdb::Validator::new();
    let _valid = validator.feed(b"REDIS0009\xff\0\0\0\0\0\0\0\0", &mut ());
    validator
}

/// Takes the snapshot in chunks, gives segments to the sealers.
pub(super) struct Cutter {
    validator: rdb::Validator,
    gathered: Gathered,
    jobs: Jobs,
    /// Validated bytes from `first_offset` on that belong to no segment yet.
    pending: Vec<u8>,
    first_offset: u64,
    is_mid_key: bool,
    shard: usize,
}

impl Cutter {
    pub(super) fn new(validator: rdb::Validator, mut jobs: Jobs) -> Self {
        Self {
            validator,
            gathered: Gathered::default(),
            pending: jobs.first_buffer(),
            jobs,
            first_offset: 0,
            is_mid_key: false,
            shard: 0,
        }
    }

    /// The same for a shard of a cluster; with `slots` a key of another slot is an error.
    pub(super) fn of_shard(mut self, shard: usize, slots: Option<&[(u16, u16)]>) -> Self {
        self.shard = shard;
        self.gathered.slots = slots.map(<[_]>::to_vec);
        self
    }

    /// Keys begun so far.
    pub(super) fn keys(&self) -> u64 {
        self.validator.keys_so_far()
    }

    /// Segments cut so far.
    pub(super) fn segments(&self) -> usize {
        self.gathered.segments.len()
    }

    /// Validates the next bytes and cuts where a segment is full, waiting for a sealer where all are busy.
    pub(super) fn feed(
        &mut self,
        chunk: &[u8],
        still_wanted: impl Fn() -> Result<(), Error>,
    ) -> Result<(), Error> {
        match self.validator.feed(chunk, &mut self.gathered) {
            Err(_) if defect::is_planted("validation-skipped") => self.validator = pleased(),
            fed => fed.map_err(|e| invalid(VALIDATE, &e))?,
        }
        self.pending.extend_from_slice(chunk);
        while self.pending.len() >= SEGMENT_BYTES {
            let key_start = self.validator.last_key_start();
            let relative = key_start.saturating_sub(self.first_offset);
            let (len, is_mid_key) = match usize::try_from(relative) {
                // The latest key began in an earlier segment or begins this one: cut where we are.
                Ok(0) | Err(_) => {
                    let is_complete = self.gathered.last_start == key_start && self.gathered.last_start > 0;
                    (self.pending.len(), !is_complete)
                }
                Ok(len) => (len, false),
            };
            let mut next = self.jobs.buffer(&still_wanted)?;
            next.extend_from_slice(&self.pending[len..]);
            let mut full = std::mem::replace(&mut self.pending, next);
            full.truncate(len);
            self.emit(full)?;
            self.is_mid_key = is_mid_key;
        }
        Ok(())
    }

    /// Validates the end and hands over the last segment.
    pub(super) fn finish(mut self) -> Result<(Captured, Jobs), Error> {
        if let Some((offset, slot)) = self.gathered.stray {
            let context = format!("the key at byte {offset} is of slot {slot}, which is not its shard's");
            return Err(Error::new(Kind::Mismatch, VALIDATE, context));
        }
        let keys = self.validator.keys_so_far();
        let last = std::mem::take(&mut self.pending);
        if !last.is_empty() {
            self.emit(last)?;
        }
        let report = self.validator.finish().map_err(|e| invalid(VALIDATE, &e))?;
        // A segment without any key of its own: the end of the file.
        let db = self.gathered.last_db;
        for segment in &mut self.gathered.segments[self.gathered.without_db..] {
            segment.db = db;
        }
        let biggest = self.gathered.biggest.into_sorted_vec();
        let width = 9_usize.saturating_sub(report.magic.len());
        let index = IndexRecord {
            block_bytes: BLOCK_BYTES as u64,
            head: format!("{}{:0width$}", report.magic, report.rdb_version),
            keys_end: self.gathered.filters.keys_end(),
            objects: Vec::new(),
        };
        let captured = Captured {
            report,
            segments: self.gathered.segments,
            keys,
            index,
            biggest: biggest.into_iter().map(|Reverse(key)| key).collect(),
        };
        Ok((captured, self.jobs))
    }

    fn emit(&mut self, piece: Vec<u8>) -> Result<(), Error> {
        let index = self.gathered.segments.len();
        let plain_bytes = piece.len() as u64;
        self.gathered.segments.push(SegmentRecord {
            object: ObjectRecord {
                name: shard_segment_name(self.shard, index),
                plain_bytes,
                stored_bytes: 0,
                plain_blake3: String::new(),
                stored_blake3: String::new(),
            },
            first_offset: self.first_offset,
            mid_key: self.is_mid_key,
            db: 0,
        });
        self.first_offset += plain_bytes;
        let filters = self.gathered.filters.cut(self.first_offset);
        self.jobs.send(Job {
            index,
            piece,
            filters,
        })
    }
}
