//! What verbs on RDB files read: a file, or a backup in its place, by its id.
//!
//! A backup is decoded into a file without a name in the data directory's spool, which is gone with the process: these verbs
//! read what they are given more than once, and each decoding would read the store again.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::path::Path;

use engine::Control;
use engine::archive::Archive;

use super::Global;
use super::admin;
use crate::app::App;
use crate::backup::record as backups;
use crate::ids::BackupId;
use crate::restore::job::archive_identity;
use crate::storage;

/// Threads that decode segments: nothing else works meanwhile.
const WORKERS: usize = 2;

/// Opens the file of that name or, where there is none and it is the id of a backup, that backup's RDB.
///
/// # Errors
/// Neither is there, or the backup cannot be decoded; the reason is the error's text.
pub(super) fn open(global: &Global, named: &Path) -> io::Result<File> {
    let id = named.to_str().and_then(BackupId::parse);
    match (File::open(named), id) {
        (Err(error), Some(id)) if error.kind() == io::ErrorKind::NotFound => {
            let app = admin::open(global).map_err(|error| io::Error::other(format!("{error:#}")))?;
            decode(&app, &id)
        }
        (opened, _) => opened,
    }
}

fn decode(app: &App, id: &BackupId) -> io::Result<File> {
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
    let mut written = Ok(());
    let read = archive.read(&identity, &Control::new(None), WORKERS, |piece| {
        written = file.write_all(piece);
        match &written {
            Ok(()) => Ok(()),
            Err(_) => Err(engine::Error::new(engine::Kind::Io, "decode backup", "the spool")),
        }
    });
    written?;
    read.map_err(failed)?;
    file.rewind()?;
    Ok(file)
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
