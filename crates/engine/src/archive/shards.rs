//! The shards of an archive: one, or several whose files follow each other.

use std::ops::Range;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use super::{Archive, Manifest, Piece, lock};
use crate::control::Control;
use crate::error::Error;
use crate::keys::Identity;
use crate::segment::Opener;
use crate::store::Store;

/// Segments of a broken backup that can be missing before one that is there: as many as were being stored when it
/// broke, with reserve.
const SEGMENTS_MISSING_MAX: u32 = 8;

/// The file of one shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardRecord {
    /// Offset of its first byte in the segments.
    pub first_offset: u64,
    /// Size of the RDB.
    pub plain_bytes: u64,
    /// Keys in it, all of its slots.
    pub keys: u64,
    /// Its slots, each range with both ends.
    pub slots: Vec<(u16, u16)>,
    /// Client port of its primary.
    pub port: u16,
    /// Replication history of its snapshot.
    pub replid: String,
    /// Replication offset of its snapshot.
    pub offset: i64,
    /// When its snapshot was begun, UTC ms.
    pub captured_at_ms: i64,
}

impl Manifest {
    /// Where each RDB lies in the bytes: one, or one for each shard.
    pub fn files(&self) -> Vec<Range<u64>> {
        let whole = 0..self.plain_bytes;
        match self.shards.is_empty() {
            true => vec![whole],
            false => self.shards.iter().map(ShardRecord::range).collect(),
        }
    }

    /// Time between the first and the last snapshot of a cluster's shards, in ms.
    pub fn skew_ms(&self) -> i64 {
        let times = || self.shards.iter().map(|shard| shard.captured_at_ms);
        times().max().unwrap_or(0) - times().min().unwrap_or(0)
    }
}

impl Archive {
    /// As [`Archive::read_file`], for several who read one file each at the same time: they decode one after the other, on
    /// their own threads.
    ///
    /// Memory: a plain piece for each, and one stored piece for all, which is `stored`.
    ///
    /// # Errors
    /// As [`Archive::read`].
    pub fn read_file_in_turn(
        &self,
        identity: &Identity,
        control: &Control,
        file: &Range<u64>,
        stored: &Mutex<Vec<u8>>,
        mut push: impl FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut opener = Opener::new(identity)?;
        let mut plain = Vec::new();
        for segment in self.segments_of(file) {
            {
                let mut shared = lock(stored);
                let mut piece = Piece {
                    stored: std::mem::take(&mut shared),
                    plain,
                };
                let read = piece.read(self, &segment.object, &mut opener, &|| {
                    control.check("read archive")
                });
                Piece {
                    stored: *shared,
                    plain,
                } = piece;
                read?;
            }
            control.check("read archive")?;
            push(&plain)?;
        }
        Ok(())
    }
}

impl ShardRecord {
    /// Where its RDB lies in the bytes of all segments.
    pub fn range(&self) -> Range<u64> {
        self.first_offset..self.first_offset.saturating_add(self.plain_bytes)
    }
}

/// The object name of segment `index` of a shard, relative to the prefix.
pub(crate) fn shard_segment_name(shard: usize, index: usize) -> String {
    format!("shard-{shard}/seg-{index:06}.rdb.zst.age")
}

/// Removes the objects of these names, which are numbered from 0; says whether there were any.
///
/// # Errors
/// As [`super::delete`].
pub(super) fn delete_named(
    store: &Store,
    prefix: &str,
    name_of: impl Fn(usize) -> String,
) -> Result<bool, Error> {
    let (mut absent, mut found) = (0, false);
    for index in 0.. {
        let name = format!("{prefix}/{}", name_of(index));
        if store.exists(&name)? {
            store.delete(&name)?;
            (absent, found) = (0, true);
        } else {
            absent += 1;
            if absent > SEGMENTS_MISSING_MAX {
                break;
            }
        }
    }
    Ok(found)
}
