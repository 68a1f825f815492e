//! What verbs on RDB files read: a file, or a backup in its place, by its id.
//!
//! A backup is decoded into a file without a name in the data directory's spool, which is gone with the process: these verbs
//! read what they are given more than once, and each decoding would read the store again. Where keys are named, only the
//! blocks that may hold them are read and decoded.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::path::Path;

use engine::archive::{Archive, Chosen};
use engine::{Control, Error, Kind, key_index};
use indicatif::HumanBytes;

use super::Global;
use super::admin;
use crate::app::App;
use crate::backup::record as backups;
use crate::ids::BackupId;
use crate::restore::job::archive_identity;
use crate::storage;

/// Threads that decode segments: nothing else works meanwhile.
const WORKERS: usize = 2;

/// Opens the file of that name or, where there is none and it is the id of a backup, that backup's RDB. Of a backup, where
/// `keys` are named, only what may hold these; how much was read is told on standard error.
///
/// # Errors
/// Neither is there, or the backup cannot be decoded; the reason is the error's text.
pub(super) fn open(global: &Global, named: &Path, keys: &[Vec<u8>]) -> io::Result<File> {
    let id = named.to_str().and_then(BackupId::parse);
    match (File::open(named), id) {
        (Err(error), Some(id)) if error.kind() == io::ErrorKind::NotFound => {
            let app = admin::open(global).map_err(|error| io::Error::other(format!("{error:#}")))?;
            decode(global, &app, &id, keys)
        }
        (opened, _) => opened,
    }
}

fn decode(global: &Global, app: &App, id: &BackupId, wanted: &[Vec<u8>]) -> io::Result<File> {
    let failed = |error: engine::Error| io::Error::other(engine::chain(&error));
    let backup = app
        .catalog
        .read(|tx| backups::load(tx, id))
        .map_err(io::Error::other)?
        .filter(backups::Backup::is_kept)
        .ok_or_else(|| io::Error::other("there is no such backup here"))?;
    let (Some(prefix), Some(digest)) = (&backup.prefix, &backup.manifest_blake3) else {
        return Err(io::Error::other(
            "it is a kept generation of the instance and has no file",
        ));
    };
    let keys = [app.vault.signer.verifying_key()];
    let store = storage::open(app, backup.storage_id.as_ref()).map_err(failed)?;
    let archive = Archive::open(&store, prefix, &keys, Some(digest.as_str())).map_err(failed)?;
    let identity = archive_identity(app, &archive).map_err(failed)?;
    if !archive.manifest().shards.is_empty() {
        return Err(io::Error::other(
            "it is of a cluster and has a file for each shard: `cachekeep backup download` gives them",
        ));
    }
    let mut file = nameless(&app.config.spool_dir())?;
    let control = Control::new(None);
    if !wanted.is_empty() {
        let hashes: Vec<u64> = wanted.iter().map(|key| key_index::hash_of(key)).collect();
        match archive.read_chosen(&identity, &hashes, &control, |piece| write(&mut file, piece)) {
            Ok(None) => {}
            Ok(Some(chosen)) => {
                if !global.quiet {
                    tell(&archive, &chosen);
                }
                file.rewind()?;
                return Ok(file);
            }
            // The index may be what is damaged, and the data whole: reading all of it tells.
            Err(error) if matches!(error.kind, Kind::NotFound | Kind::Tampered) => {
                let why = engine::chain(&error);
                eprintln!("cachekeep: all of the backup is read, for its key index cannot be used: {why}");
                file.set_len(0)?;
                file.rewind()?;
            }
            Err(error) => return Err(failed(error)),
        }
    }
    archive
        .read(&identity, &control, WORKERS, |piece| write(&mut file, piece))
        .map_err(failed)?;
    file.rewind()?;
    Ok(file)
}

fn write(file: &mut File, piece: &[u8]) -> Result<(), Error> {
    file.write_all(piece)
        .map_err(|error| Error::io(Kind::Io, "decode backup", "into the spool", error))
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
