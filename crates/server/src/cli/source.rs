//! What verbs on RDB files read: a file, or a backup in its place, by its id.
//!
//! A backup is decoded as often as it is read, and never put on disk: what these verbs need of it twice they read twice.
//! Where keys are named, only the blocks that may hold them are read and decoded, into a file without a name.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use engine::archive::{Archive, Chosen, FileReader};
use engine::{Control, Error, Identity, Kind, key_index};
use indicatif::HumanBytes;

use super::Global;
use super::admin;
use crate::app::App;
use crate::backup::{place, record as backups};
use crate::ids::BackupId;
use crate::restore::job::archive_identity;

/// An RDB that can be read.
pub(super) enum Source {
    /// A file of a disk.
    File(File),
    /// What can be read once: a pipe.
    Stream(Box<dyn Read>),
    /// A stored backup, or one shard of it.
    Backup(Box<FileReader>),
}

/// Why a reading ended early.
pub(super) enum Ended<E> {
    /// It cannot be read.
    Source(io::Error),
    /// Who was given the bytes does not want more.
    Taker(E),
}

/// Which part of a backup is wanted.
#[derive(Default, Clone, Copy)]
pub(super) struct Part<'a> {
    /// Only what may hold these keys; none: everything.
    pub(super) keys: &'a [Vec<u8>],
    /// Of a cluster: the file of this shard.
    pub(super) shard: Option<usize>,
}

impl Source {
    /// Opens the file of that name or, where there is none and it is the id of a backup, that backup's RDB. Of a backup,
    /// where `part` names keys, only what may hold these; how much was read is told on standard error. `-` is standard input.
    ///
    /// # Errors
    /// Neither is there, or the backup cannot be decoded; the reason is the error's text.
    pub(super) fn open(global: &Global, named: &Path, part: Part<'_>) -> io::Result<Self> {
        if named.as_os_str() == "-" {
            return Ok(Self::Stream(Box::new(io::stdin())));
        }
        let id = named.to_str().and_then(BackupId::parse);
        match (File::open(named), id) {
            (Err(error), Some(id)) if error.kind() == io::ErrorKind::NotFound => {
                let app = admin::open(global).map_err(|error| io::Error::other(format!("{error:#}")))?;
                Self::of_backup(global, &app, &id, part)
            }
            (opened, _) => {
                let file = opened?;
                if part.shard.is_some() {
                    return Err(io::Error::other(
                        "--shard is for the backup of a cluster, and this is a file",
                    ));
                }
                match file.metadata()?.is_file() {
                    true => Ok(Self::File(file)),
                    false => Ok(Self::Stream(Box::new(file))),
                }
            }
        }
    }

    fn of_backup(global: &Global, app: &App, id: &BackupId, part: Part<'_>) -> io::Result<Self> {
        let (archive, identity) = archive_of(app, id)?;
        let shards = archive.manifest().shards.len();
        if shards > 0 && part.shard.is_none() {
            return Err(io::Error::other(format!(
                "it is of a cluster and has a file for each shard: say which with --shard 0 to --shard {}",
                shards - 1
            )));
        }
        if shards == 0 && part.shard.is_some_and(|shard| shard > 0) {
            return Err(io::Error::other(
                "it is of no cluster, and has one file: leave --shard out",
            ));
        }
        if !part.keys.is_empty()
            && let Some(file) = chosen(global, app, &archive, &identity, part.keys)?
        {
            return Ok(Self::File(file));
        }
        let reader = FileReader::new(archive, identity, part.shard.unwrap_or(0)).map_err(failed)?;
        Ok(Self::Backup(Box::new(reader)))
    }

    /// Whether it can be read more than once, and at any place.
    pub(super) fn is_rereadable(&self) -> bool {
        !matches!(self, Self::Stream(_))
    }

    /// Hands all of it to `push`, from its start to its end. A backup is decoded by `workers` threads meanwhile.
    ///
    /// # Errors
    /// What cannot be read, or what `push` returns.
    pub(super) fn read<E>(
        &self,
        workers: usize,
        mut push: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), Ended<E>> {
        match self {
            Self::File(file) => {
                let mut file = file;
                file.rewind().map_err(Ended::Source)?;
                chunks(file, push)
            }
            Self::Stream(_) => Err(Ended::Source(io::Error::other("it can be read once only"))),
            Self::Backup(reader) => {
                let mut refused = None;
                let read = reader.read(&Control::new(None), workers, |piece| {
                    push(piece).map_err(|error| {
                        refused = Some(error);
                        Error::new(Kind::Cancelled, "read backup", "nobody wants the rest")
                    })
                });
                match (read, refused) {
                    (Ok(()), _) => Ok(()),
                    (Err(_), Some(refused)) => Err(Ended::Taker(refused)),
                    (Err(error), None) => Err(Ended::Source(failed(error))),
                }
            }
        }
    }

    /// As [`Source::read`], also of what can be read once only.
    ///
    /// # Errors
    /// As [`Source::read`].
    pub(super) fn read_once<E>(
        &mut self,
        workers: usize,
        push: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), Ended<E>> {
        match self {
            Self::Stream(stream) => chunks(stream, push),
            Self::File(_) | Self::Backup(_) => self.read(workers, push),
        }
    }

    /// Fills a buffer with the bytes from `offset` on.
    ///
    /// # Errors
    /// They cannot be read, or are not there.
    pub(super) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        match self {
            Self::File(file) => file.read_exact_at(buffer, offset),
            Self::Stream(_) => Err(io::ErrorKind::NotSeekable.into()),
            Self::Backup(reader) => reader.read_at(offset, buffer).map_err(failed),
        }
    }
}

fn chunks<E>(mut source: impl Read, mut push: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), Ended<E>> {
    let mut buffer = vec![0; rdb::FEED_BYTES];
    loop {
        match source.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => push(&buffer[..count]).map_err(Ended::Taker)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Ended::Source(error)),
        }
    }
}

fn failed(error: Error) -> io::Error {
    io::Error::other(engine::chain(&error))
}

/// The archive of a backup, and what opens it.
///
/// # Errors
/// There is no such backup, or it is not what was recorded.
pub(super) fn archive_of(app: &App, id: &BackupId) -> io::Result<(Archive, Identity)> {
    let backup = app
        .catalog
        .read(|tx| backups::load(tx, id))
        .map_err(io::Error::other)?
        .filter(backups::Backup::is_kept)
        .ok_or_else(|| io::Error::other("there is no such backup here"))?;
    if backup.generation_id.is_some() {
        return Err(io::Error::other(
            "it is a kept generation of the instance and has no file",
        ));
    }
    let archive = place::open(app, &backup, None, &engine::store::always).map_err(failed)?;
    let identity = archive_identity(app, &archive).map_err(failed)?;
    Ok((archive, identity))
}

/// What of a backup may hold these keys; `None` where its index cannot say.
fn chosen(
    global: &Global,
    app: &App,
    archive: &Archive,
    identity: &Identity,
    wanted: &[Vec<u8>],
) -> io::Result<Option<File>> {
    let mut file = nameless(&app.config.spool_dir())?;
    let hashes: Vec<u64> = wanted.iter().map(|key| key_index::hash_of(key)).collect();
    let write = |piece: &[u8]| {
        file.write_all(piece)
            .map_err(|error| Error::io(Kind::Io, "decode backup", "into the spool", error))
    };
    match archive.read_chosen(identity, &hashes, &Control::new(None), write) {
        Ok(None) => Ok(None),
        Ok(Some(chosen)) => {
            if !global.quiet {
                tell(archive, &chosen);
            }
            Ok(Some(file))
        }
        // The index may be what is damaged, and the data whole: reading all of it tells.
        Err(error) if matches!(error.kind, Kind::NotFound | Kind::Tampered) => {
            let why = engine::chain(&error);
            eprintln!("cachekeep: all of the backup is read, for its key index cannot be used: {why}");
            Ok(None)
        }
        Err(error) => Err(failed(error)),
    }
}

/// Says how much was read of how much.
fn tell(archive: &Archive, chosen: &Chosen) {
    let all: u64 = archive
        .manifest()
        .objects()
        .map(|object| object.stored_bytes)
        .sum();
    eprintln!(
        "cachekeep: read {} of {} stored ({} of them the key index): {} of {} blocks, in {} of {} segments",
        HumanBytes(chosen.read_bytes),
        HumanBytes(all),
        HumanBytes(chosen.index_bytes),
        chosen.blocks.0,
        chosen.blocks.1,
        chosen.segments.0,
        chosen.segments.1,
    );
}

fn nameless(folder: &Path) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::open(
        folder,
        flags,
        Mode::RUSR | Mode::WUSR,
    )?))
}
