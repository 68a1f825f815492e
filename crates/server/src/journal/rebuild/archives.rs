//! Backups: what the journal tells of them against what lies in the stores.

use std::collections::{BTreeMap, BTreeSet};

use engine::archive::Archive;
use engine::store::Store;
use engine::{Control, Error, Kind};

use super::{NotTaken, Report, Wish, record, told};
use crate::app::App;
use crate::backup::copy_record;
use crate::backup::proof_record::{self, Proof, ProofLevel};
use crate::backup::record::{self as backups, Backup, FailureCode, Finished, Status};
use crate::catalog;
use crate::ids::{BackupId, InstanceId, Moment, ProjectId, StorageId};
use crate::restore::job::archive_identity;
use crate::storage;

/// Threads that hash what is stored.
const WORKERS: usize = 2;

/// Where something of a backup lies.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Spot {
    prefix: String,
    storage: Option<StorageId>,
    has_manifest: bool,
}

/// What lies in a store.
type Spots = BTreeMap<BackupId, BTreeSet<Spot>>;

/// Settles every backup of the journal, and takes those that only their manifests tell of.
///
/// # Errors
/// A store does not answer, and that is not to be skipped.
pub(super) fn take(
    app: &App,
    sources: &[(Option<StorageId>, Store)],
    wish: Wish,
    now: Moment,
    report: &mut Report,
) -> anyhow::Result<()> {
    let mut spots = Spots::new();
    for (storage, store) in sources {
        look(storage.as_ref(), store, &mut spots)?;
    }
    let work = Work { app, wish, now };
    for id in app.catalog.read(record::backups_with_archives)? {
        let Some(backup) = app.catalog.read(|tx| backups::load(tx, &id))? else {
            continue;
        };
        let there: Vec<Spot> = spots.get(&id).into_iter().flatten().cloned().collect();
        if backup.status == Status::Succeeded {
            work.keep(&backup, &there, report)?;
        } else {
            work.finish(&backup, &there, report)?;
        }
    }
    for (id, there) in &spots {
        if app.catalog.read(|tx| backups::load(tx, id))?.is_none() {
            work.adopt(id, there, report)?;
        }
    }
    // What is left of attempts in a remote store is removed by the sweeper once the place is known.
    app.catalog.write(|tx| {
        for (id, there) in &spots {
            if backups::load(tx, id)?.is_none() {
                continue;
            }
            for spot in there {
                let is_proven = !report
                    .backups_not_taken
                    .iter()
                    .any(|not| not.backup_id == id.as_str());
                // What could not be proven may be whole all the same: nobody is to remove it.
                if let Some(storage) = &spot.storage
                    && is_proven
                {
                    record::insert_place(tx, &spot.prefix, storage, id)?;
                }
            }
        }
        report.backups = record::count_restorable(tx)?;
        Ok::<_, catalog::Error>(())
    })?;
    Ok(())
}

/// What a store shows of archives: `<project>/<instance>/<backup>/<attempt>/...`.
fn look(storage: Option<&StorageId>, store: &Store, spots: &mut Spots) -> anyhow::Result<()> {
    let mut seen: BTreeMap<String, bool> = BTreeMap::new();
    let take = |name: &str| {
        let mut parts = name.splitn(5, '/');
        let (Some(project), Some(instance), Some(backup), Some(attempt), Some(file)) = (
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
        ) else {
            return Ok(());
        };
        let known = ProjectId::parse(project).is_some() && InstanceId::parse(instance).is_some();
        if known && BackupId::parse(backup).is_some() {
            let prefix = format!("{project}/{instance}/{backup}/{attempt}");
            *seen.entry(prefix).or_default() |= file == "manifest.json";
        }
        Ok(())
    };
    store.list_each("", take).map_err(told)?;
    for (prefix, has_manifest) in seen {
        if let Some(id) = prefix.split('/').nth(2).and_then(BackupId::parse) {
            spots.entry(id).or_default().insert(Spot {
                prefix,
                storage: storage.cloned(),
                has_manifest,
            });
        }
    }
    Ok(())
}

struct Work<'a> {
    app: &'a App,
    wish: Wish,
    now: Moment,
}

impl Work<'_> {
    /// A backup that succeeded: where it lay, or where else it lies now.
    fn keep(&self, backup: &Backup, there: &[Spot], report: &mut Report) -> anyhow::Result<()> {
        let prefix = backup.prefix.clone().unwrap_or_default();
        let first = (backup.storage_id.clone(), prefix.clone());
        let mut tried = vec![first.clone()];
        let whole = backup.copy.iter().filter(|copy| copy.at.is_some());
        tried.extend(whole.map(|copy| (copy.storage_id.clone(), copy.prefix.clone())));
        // Objects of the same names in another store, and copies that the journal was not told of.
        let other = there.iter().filter(|spot| spot.has_manifest);
        tried.extend(other.map(|spot| (spot.storage.clone(), spot.prefix.clone())));
        let mut why = None;
        for (at, (storage, place)) in tried.iter().enumerate() {
            if tried[..at].contains(&tried[at]) {
                continue;
            }
            match self.prove(
                storage.as_ref(),
                place,
                &backup.id,
                backup.manifest_blake3.as_deref(),
            ) {
                Ok(_) if tried[at] == first => return self.keep_copy(backup, report),
                Ok(_) => {
                    self.app
                        .catalog
                        .write(|tx| record::move_backup(tx, &backup.id, storage.as_ref(), place))?;
                    return Ok(());
                }
                Err(error) => {
                    self.may_go_on(&error)?;
                    why.get_or_insert(error);
                }
            }
        }
        let why = why.map_or_else(String::new, |error| engine::chain(&error));
        // Not restorable, and not gone: the store may come back, a missing object too, and then a verify says so.
        let proof = Proof {
            level: ProofLevel::Stored,
            at: self.now,
            engine: None,
            load_ms: None,
            failure: Some(format!("when the catalogue was made anew: {why}")),
        };
        self.app
            .catalog
            .write(|tx| proof_record::set(tx, &backup.id, &proof))?;
        report.backups_not_taken.push(NotTaken {
            backup_id: backup.id.to_string(),
            prefix,
            why,
        });
        Ok(())
    }

    /// The copy of a backup that is where it lay: kept, but where it is known to be gone.
    fn keep_copy(&self, backup: &Backup, report: &mut Report) -> anyhow::Result<()> {
        let Some(copy) = backup.copy.as_ref().filter(|copy| copy.at.is_some()) else {
            return Ok(());
        };
        let (storage, digest) = (copy.storage_id.as_ref(), backup.manifest_blake3.as_deref());
        match self.prove(storage, &copy.prefix, &backup.id, digest) {
            Err(error) if matches!(error.kind, Kind::NotFound | Kind::Tampered | Kind::Key) => {
                self.app
                    .catalog
                    .write(|tx| copy_record::forget(tx, &backup.id, &copy.prefix))?;
                report.copies_not_taken.push(NotTaken {
                    backup_id: backup.id.to_string(),
                    prefix: copy.prefix.clone(),
                    why: engine::chain(&error),
                });
            }
            // A store that does not answer may come back.
            Ok(_) | Err(_) => {
                if let Some(storage) = storage {
                    self.app
                        .catalog
                        .write(|tx| record::insert_place(tx, &copy.prefix, storage, &backup.id))?;
                }
            }
        }
        Ok(())
    }

    /// A backup whose end was not mirrored: its manifest says whether it had come to one.
    fn finish(&self, backup: &Backup, there: &[Spot], report: &mut Report) -> anyhow::Result<()> {
        let mut unproven = None;
        for spot in there.iter().filter(|spot| spot.has_manifest) {
            match self.prove(spot.storage.as_ref(), &spot.prefix, &backup.id, None) {
                Ok((archive, digest)) => {
                    let finished = self.finished(&archive, digest);
                    self.app.catalog.write(|tx| {
                        record::set_spot(tx, &backup.id, &spot.prefix, spot.storage.as_ref())?;
                        backups::succeed(tx, &backup.id, &finished, backup.created_at)
                    })?;
                    report.backups_from_manifest_only.push(backup.id.to_string());
                    return Ok(());
                }
                Err(error) => {
                    self.may_go_on(&error)?;
                    unproven = Some((spot, engine::chain(&error)));
                }
            }
        }
        let lost = "the catalogue was lost before the end of this backup was mirrored, and";
        let (prefix, why) = match unproven {
            None => {
                let why = format!("{lost} there is no whole archive of it");
                self.app
                    .catalog
                    .write(|tx| backups::fail(tx, &backup.id, FailureCode::TimedOut, &why, self.now))?;
                (String::new(), why)
            }
            Some((spot, error)) => {
                let why = format!("{lost} its archive cannot be proven: {error}");
                let (prefix, storage) = (&spot.prefix, spot.storage.as_ref());
                self.app
                    .catalog
                    .write(|tx| record::fail_unproven(tx, &backup.id, prefix, storage, &why, self.now))?;
                (spot.prefix.clone(), why)
            }
        };
        report.backups_not_taken.push(NotTaken {
            backup_id: backup.id.to_string(),
            prefix,
            why,
        });
        Ok(())
    }

    /// An archive that the journal does not know.
    fn adopt(&self, id: &BackupId, there: &BTreeSet<Spot>, report: &mut Report) -> anyhow::Result<()> {
        let mut why = Error::new(
            Kind::NotFound,
            "open archive",
            "there is no manifest, so it is no backup",
        );
        let mut prefix = String::new();
        for spot in there {
            prefix.clone_from(&spot.prefix);
            if !spot.has_manifest {
                continue;
            }
            match self.prove(spot.storage.as_ref(), &spot.prefix, id, None) {
                Ok((archive, digest)) => {
                    let finished = self.finished(&archive, digest);
                    let found = record::FoundBackup {
                        id,
                        project: archive.manifest().project.clone(),
                        instance: archive.manifest().instance.clone(),
                        prefix: &spot.prefix,
                        storage: spot.storage.as_ref(),
                        created_at: Moment(archive.manifest().created_at_ms),
                        engine_version: &archive.manifest().engine_version,
                        shards: archive.manifest().shards.len(),
                    };
                    let taken = self
                        .app
                        .catalog
                        .write(|tx| record::insert_found(tx, &found, &finished))?;
                    if taken {
                        report.backups_from_manifest_only.push(id.to_string());
                        return Ok(());
                    }
                    why = Error::new(Kind::Key, "open archive", "its project is not in the journal");
                }
                Err(error) => {
                    self.may_go_on(&error)?;
                    why = error;
                }
            }
        }
        report.backups_not_taken.push(NotTaken {
            backup_id: id.to_string(),
            prefix,
            why: engine::chain(&why),
        });
        Ok(())
    }

    /// The archive and its manifest's digest, where the manifest is signed by our key, is the recorded one, belongs to
    /// where it lies, and every object that it names is there.
    fn prove(
        &self,
        storage: Option<&StorageId>,
        prefix: &str,
        id: &BackupId,
        digest: Option<&str>,
    ) -> Result<(Archive, String), Error> {
        let store = storage::open(self.app, storage)?;
        let keys = [self.app.vault.signer.verifying_key()];
        let archive = Archive::open(&store, prefix, &keys, digest)?;
        let manifest = archive.manifest();
        let place = format!("{}/{}/{}/", manifest.project, manifest.instance, manifest.backup);
        if !prefix.starts_with(&place) || manifest.backup != id.as_str() {
            let context = format!("{prefix}: its manifest is that of another backup");
            return Err(Error::new(Kind::Tampered, "open archive", context));
        }
        archive.probe()?;
        if self.wish.prove_all {
            let identity = archive_identity(self.app, &archive)?;
            archive.prove(&identity, &Control::new(None), WORKERS)?;
        }
        let digest = archive.manifest_blake3().to_owned();
        Ok((archive, digest))
    }

    fn finished(&self, archive: &Archive, manifest_blake3: String) -> Finished {
        let manifest = archive.manifest();
        let details = archive_identity(self.app, archive)
            .ok()
            .and_then(|identity| archive.details(&identity).ok());
        // Engines say in a file which version wrote it; one that was put together of keys that were read one by one does not.
        let is_point_in_time = details.as_ref().is_none_or(|details| {
            let mut names = details.aux.iter().map(|(name, _)| name.as_str());
            names.any(|name| matches!(name, "redis-ver" | "valkey-ver"))
        });
        let used = details.and_then(|details| {
            let found = details.aux.into_iter().find(|(name, _)| name == "used-mem");
            found.and_then(|(_, text)| text.parse().ok())
        });
        Finished {
            size_bytes: manifest.stored_bytes,
            // But for the manifest itself.
            put_bytes: manifest.objects().map(|object| object.stored_bytes).sum(),
            plain_bytes: manifest.plain_bytes,
            keys: manifest.keys,
            used_memory_bytes: used.unwrap_or(0),
            manifest_blake3,
            captured_from: None,
            is_point_in_time,
        }
    }

    /// An object that is missing or wrong is a fact; a store that does not answer is none.
    fn may_go_on(&self, error: &Error) -> anyhow::Result<()> {
        let is_fact = matches!(error.kind, Kind::NotFound | Kind::Tampered | Kind::Key);
        anyhow::ensure!(
            is_fact || self.wish.skip_unreachable,
            "{}; nothing was changed. With --skip-unreachable the backups that lie there are not taken",
            engine::chain(error)
        );
        Ok(())
    }
}
