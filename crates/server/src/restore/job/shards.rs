//! What the shards of the new generation load: the files of the backup as they are, or its keys cut anew where the
//! instance has other shards than the backup (ADR 31).

use std::ops::Range;
use std::sync::Mutex;

use engine::archive::Archive;
use engine::keys::Identity;
use engine::slices::{self, Slices};
use engine::{Control, Error, Kind, failpoint};

use super::beside::{Beside, Halt};
use super::{DECODE_WORKERS, WORKERS_ALONE, archive_identity};
use crate::instance::layout::Mode;
use crate::restore::command::{has_same_shards, other_database};

/// Shards that load at the same time where their keys are small. An engine keeps one processor busy, and what validates for
/// it half of another.
///
/// Memory of each: a plain segment of 8 MiB, 5 MiB to write the file, up to 13 MiB of the sample, 2 MiB of the validator;
/// and a stored segment of 8 MiB for all: 64 MiB. What is cut anew needs no segments.
const LANES: usize = 2;
/// With a larger key, or more code, a validator may need its 18 MiB, and shards load one after the other.
const SMALL_BYTES: u64 = 1024 * 1024;

/// What the shards of the new generation load.
pub(crate) struct Shards {
    files: Files,
    /// How many of them load at the same time.
    pub(super) lanes: usize,
}

/// A validated RDB for each shard.
enum Files {
    /// The backup's own files, in the order of the shards.
    Same {
        archive: Box<Archive>,
        identity: Identity,
        files: Vec<Range<u64>>,
        /// What all who read at the same time decode from.
        stored: Mutex<Vec<u8>>,
    },
    /// Its keys, cut anew.
    Cut { slices: Slices, plain_bytes: u64 },
}

impl Beside<'_> {
    /// Finds that every byte of the backup is the one that was validated, or cuts the backup and so validates it once
    /// more: either way before an engine is started for it.
    pub(crate) fn proven_shards(&self) -> Result<Shards, Halt> {
        self.with_archive(|archive| {
            if !has_same_shards(self.instance.layout, archive.manifest()) {
                return self.cut(&archive);
            }
            let identity = archive_identity(self.app, &archive)?;
            let manifest = archive.manifest();
            let stored_bytes = manifest.stored_bytes + manifest.details.stored_bytes;
            self.control.enter("proving", stored_bytes);
            archive.prove(&identity, self.control, WORKERS_ALONE)?;
            failpoint::hit("restore.proven")?;
            Ok(Shards {
                lanes: self.lanes(&archive, &identity)?,
                files: Files::Same {
                    files: manifest.files(),
                    archive: Box::new(archive),
                    identity,
                    stored: Mutex::default(),
                },
            })
        })
    }

    /// Cuts the backup for the shards of the instance.
    pub(super) fn cut(&self, archive: &Archive) -> Result<Shards, Halt> {
        let identity = archive_identity(self.app, archive)?;
        let layout = self.instance.layout;
        if layout.mode == Mode::Cluster
            && archive.manifest().shards.is_empty()
            && let Some(db) = other_database(&archive.details(&identity)?)
        {
            let context = format!("the backup has keys in database {db}, and a cluster has only database 0");
            return Err(Error::new(Kind::Refused, "restore", context).into());
        }
        let plain_bytes = archive.manifest().plain_bytes;
        self.control.enter("cutting", plain_bytes);
        let spool = self.app.config.spool_dir();
        let slices = slices::cut(archive, &identity, layout.shards, &spool, self.control)?;
        failpoint::hit("restore.cut")?;
        Ok(Shards {
            lanes: self.lanes(archive, &identity)?,
            files: Files::Cut { slices, plain_bytes },
        })
    }

    fn lanes(&self, archive: &Archive, identity: &Identity) -> Result<usize, Error> {
        if self.instance.layout.shards == 1 {
            return Ok(1);
        }
        let details = archive.details(identity)?;
        let largest = details.biggest_keys.iter().map(|key| key.bytes).max();
        let code: u64 = details.functions.iter().map(|library| library.code_bytes).sum();
        Ok(match largest.unwrap_or(0).max(code) > SMALL_BYTES {
            true => 1,
            false => LANES,
        })
    }
}

impl Shards {
    /// Hands the RDB of a shard to `push`, once.
    ///
    /// # Errors
    /// As [`Archive::read_file`] and [`Slices::take`].
    pub(super) fn read(
        &self,
        shard: usize,
        control: &Control,
        push: impl FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        match &self.files {
            Files::Same {
                archive,
                identity,
                files,
                stored,
            } => match files.get(shard) {
                Some(file) if self.lanes == 1 => {
                    archive.read_file(identity, control, DECODE_WORKERS, file, push)
                }
                Some(file) => archive.read_file_in_turn(identity, control, file, stored, push),
                None => {
                    let context = format!("the backup has no file of shard {shard}");
                    Err(Error::new(Kind::NotFound, "load beside", context))
                }
            },
            Files::Cut { slices, .. } => slices.take(shard, push),
        }
    }

    /// Bytes of all files together, about.
    pub(super) fn plain_bytes(&self) -> u64 {
        match &self.files {
            Files::Same { archive, .. } => archive.manifest().plain_bytes,
            Files::Cut { plain_bytes, .. } => *plain_bytes,
        }
    }

    /// Whether what the shards loaded is together what the backup holds: nothing is lost or doubled by the cutting.
    ///
    /// # Errors
    /// As [`Slices::check`].
    pub(super) fn check(&self, loaded: &rdb::Census) -> Result<(), Error> {
        match &self.files {
            Files::Same { .. } => Ok(()),
            Files::Cut { slices, .. } => slices.check(loaded),
        }
    }
}
