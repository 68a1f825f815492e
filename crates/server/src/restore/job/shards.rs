//! What the shards of the new generation load: the files of the backup as they are, or its keys cut anew where the
//! instance has other shards than the backup (ADR 31).

use std::ops::Range;

use engine::archive::Archive;
use engine::keys::Identity;
use engine::slices::{self, Slices};
use engine::{Control, Error, Kind, failpoint};

use super::beside::{Beside, Halt};
use super::{DECODE_WORKERS, WORKERS_ALONE, archive_identity};
use crate::instance::layout::Mode;
use crate::restore::command::{has_same_shards, other_database};

/// A validated RDB for each shard.
pub(crate) enum Shards {
    /// The backup's own files, in the order of the shards.
    Same {
        archive: Box<Archive>,
        identity: Identity,
        files: Vec<Range<u64>>,
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
            Ok(Shards::Same {
                files: manifest.files(),
                archive: Box::new(archive),
                identity,
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
        Ok(Shards::Cut { slices, plain_bytes })
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
        match self {
            Shards::Same {
                archive,
                identity,
                files,
            } => match files.get(shard) {
                Some(file) => archive.read_file(identity, control, DECODE_WORKERS, file, push),
                None => {
                    let context = format!("the backup has no file of shard {shard}");
                    Err(Error::new(Kind::NotFound, "load beside", context))
                }
            },
            Shards::Cut { slices, .. } => slices.take(shard, push),
        }
    }

    /// Bytes of all files together, about.
    pub(super) fn plain_bytes(&self) -> u64 {
        match self {
            Shards::Same { archive, .. } => archive.manifest().plain_bytes,
            Shards::Cut { plain_bytes, .. } => *plain_bytes,
        }
    }

    /// Whether what the shards loaded is together what the backup holds: nothing is lost or doubled by the cutting.
    ///
    /// # Errors
    /// As [`Slices::check`].
    pub(super) fn check(&self, loaded: &rdb::Census) -> Result<(), Error> {
        match self {
            Shards::Same { .. } => Ok(()),
            Shards::Cut { slices, .. } => slices.check(loaded),
        }
    }
}
