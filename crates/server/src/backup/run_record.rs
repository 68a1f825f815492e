//! Backups of schedules: what a run leaves on its records, how long they are kept, and their SQL.

use std::collections::BTreeSet;

use super::record::{self, FailureCode, Format, Kind, Status};
use crate::catalog::{Error, Row, Tx};
use crate::ids::{BackupId, HostId, InstanceId, Moment, ProjectId};
use crate::schedule::keep::Archived;

/// One try of a run.
#[derive(Debug, Clone, Copy)]
pub struct Run<'a> {
    /// The schedule's id.
    pub schedule: &'a str,
    /// When it was due.
    pub due: Moment,
    /// From 1 on.
    pub number: i64,
    /// What is told of its window.
    pub period: Option<&'a str>,
    /// From when on retention may take the backup; `None`: it stays.
    pub expires: Option<Moment>,
}

/// The same, as a record tells it.
#[derive(Debug, Clone)]
pub struct RunOf {
    /// The schedule's id.
    pub schedule: String,
    /// When it was due.
    pub due: Moment,
    /// From 1 on.
    pub number: i64,
}

/// Reads three columns from `first` on, in the order of the table.
pub(super) fn read(row: &Row<'_>, first: usize) -> Result<Option<RunOf>, Error> {
    let schedule: Option<String> = row.get(first)?;
    schedule
        .map(|schedule| {
            Ok(RunOf {
                schedule,
                due: row.get(first + 1)?,
                number: row.get(first + 2)?,
            })
        })
        .transpose()
}

/// Adds the record of a try, in state Waiting.
///
/// # Errors
/// `Constraint` where this try has its record already.
pub fn insert(
    tx: &Tx<'_>,
    project: &ProjectId,
    instance: &InstanceId,
    run: &Run<'_>,
    now: Moment,
) -> Result<BackupId, Error> {
    let id = record::insert_waiting(tx, project, instance, Kind::Auto, Format::Rdb, None, now)?;
    tx.execute(
        "UPDATE backup SET schedule_id = ?2, due_at_ms = ?3, try_number = ?4, period = ?5, expires_at_ms = ?6 WHERE id = ?1",
        (&id, run.schedule, run.due, run.number, run.period, run.expires),
    )?;
    Ok(id)
}

/// Adds the record of a try that was none: it has failed from its first moment.
///
/// # Errors
/// As [`insert`].
pub fn insert_skipped(
    tx: &Tx<'_>,
    project: &ProjectId,
    instance: &InstanceId,
    run: &Run<'_>,
    code: FailureCode,
    why: &str,
    now: Moment,
) -> Result<BackupId, Error> {
    let id = insert(tx, project, instance, run, now)?;
    record::fail(tx, &id, code, why, now)?;
    Ok(id)
}

/// The newest try of a schedule that was due by `now`: when, its number, what became of it. A run that somebody asked for
/// is due by the wall clock, which may be ahead: until then it is not the newest one.
///
/// # Errors
/// The catalogue failed.
pub fn newest(tx: &Tx<'_>, schedule: &str, now: Moment) -> Result<Option<(Moment, i64, Status)>, Error> {
    tx.one(
        "SELECT due_at_ms, try_number, status FROM backup WHERE schedule_id = ?1 AND due_at_ms <= ?2 \
         ORDER BY due_at_ms DESC, try_number DESC LIMIT 1",
        (schedule, now),
        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
    )
}

/// How many backups of schedules have not ended, of the instances of one host; `None`: of attached ones.
///
/// # Errors
/// The catalogue failed.
pub fn unfinished(tx: &Tx<'_>, host: Option<&HostId>) -> Result<usize, Error> {
    let count = tx.one(
        "SELECT count(*) FROM job JOIN backup ON backup.id = job.subject_id WHERE job.state <> 'done' AND job.kind = 'backup' \
         AND backup.kind = 'auto' AND coalesce(job.host_id, '') = ?1",
        (host.map_or("", HostId::as_str),),
        |row| row.get(0),
    )?;
    Ok(count.unwrap_or(0))
}

/// The backups of an instance that succeeded and have an archive, newest first, as retention sees them.
///
/// # Errors
/// The catalogue failed.
pub fn archived(tx: &Tx<'_>, instance: &InstanceId) -> Result<Vec<Archived>, Error> {
    tx.all(
        "SELECT id, name, kind IN ('manual', 'auto'), schedule_id, created_at_ms, expires_at_ms, held, \
         (EXISTS (SELECT 1 FROM job JOIN restore ON restore.id = job.subject_id \
         WHERE job.state <> 'done' AND job.kind = 'restore' AND backup.id IN (restore.backup_id, restore.safety_backup_id)) \
         OR EXISTS (SELECT 1 FROM migration WHERE migration.status IN ('waiting', 'running') \
         AND backup.id IN (migration.backup_id, migration.safety_backup_id))), \
         proof_failure IS NOT NULL, coalesce(proof_level, '') = 'proven' AND proof_failure IS NULL \
         FROM backup WHERE instance_id = ?1 AND status = 'succeeded' AND phase IS NULL AND generation_id IS NULL \
         ORDER BY ordinal DESC",
        (instance,),
        |row| {
            Ok(Archived {
                id: row.get(0)?,
                name: row.get(1)?,
                counts: row.get(2)?,
                schedule: row.get(3)?,
                created_at: row.get(4)?,
                expires_at: row.get(5)?,
                held: row.get(6)?,
                is_in_use: row.get(7)?,
                is_damaged: row.get(8)?,
                is_proven: row.get(9)?,
            })
        },
    )
}

/// Instances with a backup whose time has come, or with a schedule that has rules.
///
/// # Errors
/// The catalogue failed.
pub fn with_something_due(tx: &Tx<'_>, now: Moment) -> Result<Vec<InstanceId>, Error> {
    // Of one statement for both SQLite would read all that there are, in the order of the answer.
    let expired = "SELECT instance_id FROM backup WHERE status = 'succeeded' AND expires_at_ms <= ?1";
    let ruled = "SELECT instance_id FROM schedule WHERE deleted_at_ms IS NULL AND task = 'backup'";
    let mut found: BTreeSet<InstanceId> = tx.all(expired, (now,), |row| row.get(0))?.into_iter().collect();
    found.extend(tx.all(ruled, (), |row| row.get::<InstanceId>(0))?);
    Ok(found.into_iter().collect())
}

/// Succeeded → Expired. The last line of defence: whatever was judged, what is held or being restored stays, and so does the
/// last backup of its instance that can be restored. `false`: it stays as it is.
///
/// # Errors
/// The catalogue failed.
pub fn expire(tx: &Tx<'_>, id: &BackupId, why: &str, now: Moment) -> Result<bool, Error> {
    let changed = tx.execute(
        "UPDATE backup SET status = 'expired', failure = ?2, updated_at_ms = ?3 WHERE id = ?1 AND status = 'succeeded' \
         AND phase IS NULL AND generation_id IS NULL AND held IS NULL \
         AND EXISTS (SELECT 1 FROM backup AS other WHERE other.instance_id = backup.instance_id \
         AND other.id <> backup.id AND other.status = 'succeeded' AND other.phase IS NULL \
         AND other.kind IN ('manual', 'auto') AND other.proof_failure IS NULL) \
         AND NOT EXISTS (SELECT 1 FROM job JOIN restore ON restore.id = job.subject_id \
         WHERE job.state <> 'done' AND job.kind = 'restore' AND backup.id IN (restore.backup_id, restore.safety_backup_id)) \
         AND NOT EXISTS (SELECT 1 FROM migration WHERE migration.status IN ('waiting', 'running') \
         AND backup.id IN (migration.backup_id, migration.safety_backup_id))",
        (id, why, now),
    )?;
    Ok(changed == 1)
}

/// Writes from when on retention may take a backup.
///
/// # Errors
/// The catalogue failed.
pub fn keep_until(tx: &Tx<'_>, id: &BackupId, expires_at: Moment) -> Result<(), Error> {
    tx.execute(
        "UPDATE backup SET expires_at_ms = ?2 WHERE id = ?1",
        (id, expires_at),
    )?;
    Ok(())
}

/// Writes why a backup is held, or that it is not.
///
/// # Errors
/// The catalogue failed.
pub fn set_hold(tx: &Tx<'_>, id: &BackupId, why: Option<&str>) -> Result<(), Error> {
    tx.execute("UPDATE backup SET held = ?2 WHERE id = ?1", (id, why))?;
    Ok(())
}
