//! The writes that only a rebuild does, and their SQL.

use crate::backup::copy_record;
use crate::backup::record::{FailureCode, Finished};
use crate::catalog::{Error, Tx, params};
use crate::ids::{BackupId, GenerationId, HostId, InstanceId, Moment, ProjectId, StorageId};
use crate::instance::record::Status;
use crate::journal::record::Subject;

/// What a record whose end nobody knows says.
const UNKNOWN_END: &str = "the catalogue was lost before the end of this restore was mirrored: what the instance held \
     after it is not known";

/// Every backup that has or may have an archive.
///
/// # Errors
/// The catalogue failed.
pub(super) fn backups_with_archives(tx: &Tx<'_>) -> Result<Vec<BackupId>, Error> {
    tx.all(
        "SELECT id FROM backup WHERE status IN ('waiting', 'running', 'succeeded') AND kind <> 'generation' \
         ORDER BY instance_id, ordinal",
        (),
        |row| row.get(0),
    )
}

/// How many backups have an archive that proved.
///
/// # Errors
/// The catalogue failed.
pub(super) fn count_restorable(tx: &Tx<'_>) -> Result<u64, Error> {
    let count = tx.one(
        "SELECT count(*) FROM backup WHERE status = 'succeeded' AND kind <> 'generation' AND proof_failure IS NULL",
        (),
        |row| row.get(0),
    )?;
    Ok(count.unwrap_or(0))
}

/// The archive lies elsewhere than the journal says; where that was its copy, it has none any more.
///
/// # Errors
/// The catalogue failed.
pub(super) fn move_backup(
    tx: &Tx<'_>,
    id: &BackupId,
    storage: Option<&StorageId>,
    prefix: &str,
) -> Result<(), Error> {
    copy_record::forget(tx, id, prefix)?;
    tx.execute(
        "UPDATE backup SET storage_id = ?2, prefix = ?3 WHERE id = ?1",
        (id, storage, prefix),
    )?;
    Ok(())
}

/// Waiting → Running, with the archive that was found.
///
/// # Errors
/// The catalogue failed.
pub(super) fn set_spot(
    tx: &Tx<'_>,
    id: &BackupId,
    prefix: &str,
    storage: Option<&StorageId>,
) -> Result<(), Error> {
    tx.execute(
        "UPDATE backup SET status = 'running', prefix = ?2, storage_id = ?3, \
         execution_at_ms = coalesce(execution_at_ms, created_at_ms) WHERE id = ?1",
        (id, prefix, storage),
    )?;
    Ok(())
}

/// Notes that a remote store holds something of a backup.
///
/// # Errors
/// The catalogue failed.
pub(super) fn insert_place(
    tx: &Tx<'_>,
    prefix: &str,
    storage: &StorageId,
    backup: &BackupId,
) -> Result<(), Error> {
    tx.execute(
        "INSERT INTO backup_place (prefix, storage_id, backup_id) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
        (prefix, storage, backup),
    )?;
    Ok(())
}

/// A backup that only its archive tells of.
#[derive(Debug)]
pub(super) struct FoundBackup<'a> {
    /// Its id.
    pub id: &'a BackupId,
    /// As the manifest says.
    pub project: String,
    /// As the manifest says.
    pub instance: String,
    /// Where it lies.
    pub prefix: &'a str,
    /// In which store.
    pub storage: Option<&'a StorageId>,
    /// As the manifest says.
    pub created_at: Moment,
    /// As the manifest says.
    pub engine_version: &'a str,
    /// As the manifest says; 0: no cluster.
    pub shards: usize,
}

/// Adds it as a manual backup that succeeded, and its instance as a deleted one where the journal does not know that
/// either. `false`: its project is not known, so there is no key for it.
///
/// # Errors
/// The catalogue failed.
pub(super) fn insert_found(tx: &Tx<'_>, found: &FoundBackup<'_>, finished: &Finished) -> Result<bool, Error> {
    let (Some(project), Some(instance)) = (
        ProjectId::parse(&found.project),
        InstanceId::parse(&found.instance),
    ) else {
        return Ok(false);
    };
    if crate::identity::record::project(tx, &project)?.is_none() {
        return Ok(false);
    }
    let owner = tx.one(
        "SELECT project_id FROM instance WHERE id = ?1",
        (&instance,),
        |row| row.get::<ProjectId>(0),
    )?;
    if owner.as_ref().is_some_and(|owner| *owner != project) {
        return Ok(false);
    }
    insert_nameless(
        tx,
        &instance,
        &project,
        found.engine_version,
        found.shards,
        found.created_at,
    )?;
    let mut name = format!("backup_{}", found.created_at.compact());
    let taken = tx.one(
        "SELECT 1 FROM backup WHERE instance_id = ?1 AND name = ?2",
        (&instance, &name),
        |_| Ok(()),
    )?;
    if taken.is_some() {
        name = format!("{name}_{}", &found.id.as_str()[..8]);
    }
    tx.execute(
        "INSERT INTO backup (id, instance_id, project_id, ordinal, name, kind, format, status, progress_bp, size_bytes, \
         plain_bytes, keys, used_memory_bytes, prefix, storage_id, manifest_blake3, created_at_ms, execution_at_ms, updated_at_ms, reserved_bytes) \
         VALUES (?1, ?2, ?3, (SELECT coalesce(max(ordinal), 0) + 1 FROM backup WHERE instance_id = ?2), ?4, 'manual', 'rdb', \
         'succeeded', 10000, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?12, ?12, ?13)",
        params![
            found.id,
            instance,
            project,
            name,
            finished.size_bytes,
            finished.plain_bytes,
            finished.keys,
            finished.used_memory_bytes,
            found.prefix,
            found.storage,
            finished.manifest_blake3,
            found.created_at,
            finished.put_bytes,
        ],
    )?;
    Ok(true)
}

/// Waiting → Failed, with an unknown outcome; returns the ids. Whether the old data serves is settled where that can be
/// known: see `restore::record::settle_unknown`, to which the end counts as the moment of acceptance, since nothing
/// later is known.
///
/// # Errors
/// The catalogue failed.
pub(super) fn fail_unsettled_restores(tx: &Tx<'_>) -> Result<Vec<String>, Error> {
    tx.all(
        "UPDATE restore SET status = 'failed', error_code = ?1, failure = ?2, target_state = 'unknown', phase = NULL, \
         finished_at_ms = created_at_ms WHERE status IN ('waiting', 'running') RETURNING id",
        (FailureCode::TimedOut.text(), UNKNOWN_END),
        |row| row.get(0),
    )
}

/// Makes the ordinals of each instance's restores dense again and returns how many records are missing between others;
/// the instance's counter goes on after the last one.
///
/// # Errors
/// The catalogue failed.
pub(super) fn close_gaps(tx: &Tx<'_>) -> Result<u64, Error> {
    let broken: Vec<(InstanceId, i64, u64)> = tx.all(
        "SELECT instance_id, max(ordinal), max(ordinal) - count(*) FROM restore GROUP BY instance_id \
         HAVING max(ordinal) <> count(*)",
        (),
        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
    )?;
    let mut missing = 0;
    for (instance, newest, count) in broken {
        missing += count;
        // By time, for one whose newer place is lost may stand behind what came after it; first out of each other's way.
        let ordinals: Vec<i64> = tx.all(
            "SELECT ordinal FROM restore WHERE instance_id = ?1 ORDER BY created_at_ms, ordinal",
            (&instance,),
            |row| row.get(0),
        )?;
        let moved = |from: i64, to: i64| {
            tx.execute(
                "UPDATE restore SET ordinal = ?3 WHERE instance_id = ?1 AND ordinal = ?2",
                (&instance, from, to),
            )
        };
        for (dense, ordinal) in (1_i64..).zip(&ordinals) {
            moved(*ordinal, newest + dense)?;
        }
        for (dense, _) in (1_i64..).zip(&ordinals) {
            moved(newest + dense, dense)?;
        }
    }
    tx.execute(
        "UPDATE instance SET \
         restore_ordinal = (SELECT count(*) FROM restore WHERE instance_id = instance.id), \
         restore_created_at_ms = coalesce((SELECT created_at_ms FROM restore WHERE instance_id = instance.id ORDER BY ordinal DESC LIMIT 1), 0)",
        (),
    )?;
    Ok(missing)
}

/// How many restore records there are.
///
/// # Errors
/// The catalogue failed.
pub(super) fn count_restores(tx: &Tx<'_>) -> Result<u64, Error> {
    let count = tx.one("SELECT count(*) FROM restore", (), |row| row.get(0))?;
    Ok(count.unwrap_or(0))
}

/// Writes the state that an instance is in after the loss, whatever it was before.
///
/// # Errors
/// The catalogue failed.
pub(super) fn set_status(tx: &Tx<'_>, id: &InstanceId, status: Status, now: Moment) -> Result<(), Error> {
    tx.execute(
        "UPDATE instance SET status = ?2, failure = NULL, updated_at_ms = ?3 WHERE id = ?1 AND status <> ?2",
        (id, status.word(), now),
    )?;
    Ok(())
}

/// Any state → Serving: its engine has the port.
///
/// # Errors
/// The catalogue failed.
pub(super) fn let_serve(tx: &Tx<'_>, id: &GenerationId) -> Result<(), Error> {
    tx.execute("UPDATE generation SET state = 'serving' WHERE id = ?1", (id,))?;
    Ok(())
}

/// Whether another project or storage has the name.
///
/// # Errors
/// The catalogue failed.
pub(super) fn is_name_taken(tx: &Tx<'_>, subject: Subject, name: &str, id: &str) -> Result<bool, Error> {
    let sql = match subject {
        Subject::Storage => "SELECT 1 FROM storage WHERE name = ?1 AND id <> ?2",
        _ => "SELECT 1 FROM project WHERE name = ?1 AND id <> ?2",
    };
    Ok(tx.one(sql, (name, id), |_| Ok(()))?.is_some())
}

/// Another instance that is not deleted and has the port, and when it was made.
///
/// # Errors
/// The catalogue failed.
pub(super) fn holder_of_port(
    tx: &Tx<'_>,
    bind: &str,
    port: i64,
    (id, host): (&str, &str),
) -> Result<Option<(InstanceId, i64)>, Error> {
    tx.one(
        "SELECT id, created_at_ms FROM instance WHERE bind = ?1 AND port = ?2 AND id <> ?3 AND deleted_at_ms IS NULL \
         AND attachment IS NULL AND coalesce(host_id, '') = ?4",
        (bind, port, id, host),
        |row| Ok((row.get(0)?, row.get(1)?)),
    )
}

/// Any state → Deleted, with all that it had of processes: its deletion is not in the journal.
///
/// # Errors
/// The catalogue failed.
pub(super) fn call_deleted(tx: &Tx<'_>, id: &InstanceId, at_ms: i64) -> Result<(), Error> {
    tx.execute(
        "UPDATE instance SET status = 'deleted', deleted_at_ms = ?2, updated_at_ms = ?2 WHERE id = ?1",
        (id, at_ms),
    )?;
    tx.execute(
        "UPDATE generation SET state = 'removed' WHERE instance_id = ?1",
        (id,),
    )?;
    tx.execute(
        "UPDATE backup SET status = 'expired' WHERE instance_id = ?1 AND kind = 'generation' AND status = 'succeeded'",
        (id,),
    )?;
    Ok(())
}

/// Serving → Removing, for every generation of the instance but one.
///
/// # Errors
/// The catalogue failed.
pub(super) fn stop_serving(tx: &Tx<'_>, instance: &str, but: &str) -> Result<(), Error> {
    tx.execute(
        "UPDATE generation SET state = 'removing' WHERE instance_id = ?1 AND id <> ?2 AND state = 'serving'",
        (instance, but),
    )?;
    Ok(())
}

/// Makes the place of a record free for the one of that id, wherever that one stands now: another one that stands there
/// moves behind all, until its own newer row comes.
///
/// # Errors
/// The catalogue failed.
pub(super) fn clear_ordinal(
    tx: &Tx<'_>,
    subject: Subject,
    instance: &str,
    ordinal: i64,
    id: &str,
) -> Result<(), Error> {
    let (yielding, own) = match subject {
        Subject::Restore => (
            "UPDATE restore SET ordinal = (SELECT max(ordinal) + 1 FROM restore WHERE instance_id = ?1) \
             WHERE instance_id = ?1 AND ordinal = ?2 AND id <> ?3",
            "UPDATE restore SET ordinal = ?2 WHERE instance_id = ?1 AND id = ?3 AND ordinal <> ?2",
        ),
        _ => (
            "UPDATE backup SET ordinal = (SELECT max(ordinal) + 1 FROM backup WHERE instance_id = ?1) \
             WHERE instance_id = ?1 AND ordinal = ?2 AND id <> ?3",
            "UPDATE backup SET ordinal = ?2 WHERE instance_id = ?1 AND id = ?3 AND ordinal <> ?2",
        ),
    };
    tx.execute(yielding, (instance, ordinal, id))?;
    tx.execute(own, (instance, ordinal, id))?;
    Ok(())
}

/// Instances that records of the project name and that have no row.
///
/// # Errors
/// The catalogue failed.
pub(super) fn instances_without_row(tx: &Tx<'_>, project: &ProjectId) -> Result<Vec<String>, Error> {
    tx.all(
        "SELECT instance_id FROM backup WHERE project_id = ?1 UNION SELECT instance_id FROM restore WHERE project_id = ?1 \
         UNION SELECT instance_id FROM generation EXCEPT SELECT id FROM instance",
        (project,),
        |row| row.get(0),
    )
}

/// When the oldest record of an instance was made.
///
/// # Errors
/// The catalogue failed.
pub(super) fn oldest_record(tx: &Tx<'_>, id: &InstanceId) -> Result<Moment, Error> {
    let oldest = tx.one(
        "SELECT min(at) FROM (SELECT min(created_at_ms) AS at FROM backup WHERE instance_id = ?1 \
         UNION ALL SELECT min(created_at_ms) FROM restore WHERE instance_id = ?1) AS both_kinds",
        (id,),
        |row| row.get::<Option<Moment>>(0),
    )?;
    Ok(oldest.flatten().unwrap_or(Moment(0)))
}

/// Adds an instance of which nothing is known, as a deleted one; one that is there stays as it is.
///
/// # Errors
/// The catalogue failed.
pub(super) fn insert_nameless(
    tx: &Tx<'_>,
    id: &InstanceId,
    project: &ProjectId,
    engine_version: &str,
    shards: usize,
    at: Moment,
) -> Result<(), Error> {
    const NO_PASSWORD: [u8; 0] = [];
    tx.execute(
        "INSERT INTO instance (id, project_id, name, status, engine_version, capacity_mb, spec_code, bind, port, persistence, \
         admin_password_sealed, attributes, created_at_ms, updated_at_ms, deleted_at_ms, cache_mode, shards) \
         VALUES (?1, ?2, 'recovered-' || substr(?1, 1, 8), 'deleted', ?3, 0, '', '', 0, 'none', ?6, '{}', ?4, ?4, ?4, \
         CASE WHEN ?5 > 0 THEN 'cluster' ELSE 'single' END, max(?5, 1)) \
         ON CONFLICT (id) DO NOTHING",
        (id, project, engine_version, at, i64::try_from(shards).unwrap_or(0), NO_PASSWORD),
    )?;
    Ok(())
}

/// Takes away what refers to a row that is not there: where a backup lies is looked for anew, what a generation held is
/// gone, and a choice of a store is no choice. Returns which rows it was, and their kind.
///
/// # Errors
/// The catalogue failed.
pub(super) fn drop_lost_references(tx: &Tx<'_>) -> Result<Vec<(String, &'static str)>, Error> {
    let mut dropped = Vec::new();
    for (kind, sql) in [
        (
            "the store of backup",
            "UPDATE backup SET storage_id = NULL \
             WHERE storage_id IS NOT NULL AND storage_id NOT IN (SELECT id FROM storage) RETURNING id",
        ),
        (
            "the generation of backup",
            "UPDATE backup SET generation_id = NULL, status = CASE status WHEN 'succeeded' THEN 'expired' ELSE status END \
             WHERE generation_id IS NOT NULL AND generation_id NOT IN (SELECT id FROM generation) RETURNING id",
        ),
        (
            "the default store of project",
            "DELETE FROM storage_default WHERE storage_id IS NOT NULL AND storage_id NOT IN (SELECT id FROM storage) \
             RETURNING coalesce(project_id, '')",
        ),
    ] {
        let ids: Vec<String> = tx.all(sql, (), |row| row.get(0))?;
        dropped.extend(ids.into_iter().map(|id| (id, kind)));
    }
    Ok(dropped)
}

/// Waiting → Failed for a backup of which an archive lies here that does not prove. It may be whole all the same, so it is
/// on the record as what does not hold, and is kept as long as the record.
///
/// # Errors
/// The catalogue failed.
pub(super) fn fail_unproven(
    tx: &Tx<'_>,
    id: &BackupId,
    prefix: &str,
    storage: Option<&StorageId>,
    why: &str,
    now: Moment,
) -> Result<(), Error> {
    set_spot(tx, id, prefix, storage)?;
    crate::backup::record::fail(tx, id, FailureCode::TimedOut, why, now)?;
    tx.execute(
        "UPDATE backup SET proof_level = 'stored', proof_at_ms = ?2, proof_failure = ?3 WHERE id = ?1",
        (id, now, why),
    )?;
    Ok(())
}

/// Takes the instances over that no other host can have: those of a catalogue that was a file.
///
/// # Errors
/// The catalogue failed.
pub(super) fn adopt_instances(tx: &Tx<'_>, host: &HostId) -> Result<(), Error> {
    tx.execute(
        "UPDATE instance SET host_id = ?1 WHERE attachment IS NULL AND (host_id IS NULL OR host_id = ?2)",
        (host, &HostId::OF_A_FILE),
    )?;
    Ok(())
}

/// Says that what counts and lies in a local folder lies in ours, where it was found.
///
/// # Errors
/// The catalogue failed.
pub(super) fn adopt_folder(tx: &Tx<'_>, host: &HostId) -> Result<(), Error> {
    tx.execute(
        "UPDATE backup SET host_id = ?1 WHERE storage_id IS NULL AND prefix IS NOT NULL",
        (host,),
    )?;
    tx.execute(
        "UPDATE backup SET copy_host_id = ?1 WHERE copy_storage_id IS NULL AND copy_prefix IS NOT NULL",
        (host,),
    )?;
    Ok(())
}
