//! Backups of schedules: what a run leaves on its records, how long they are kept, and their SQL.

use super::record::{self, FailureCode, Format, Kind, Status};
use crate::catalog::{Error, Row, Tx};
use crate::ids::{BackupId, InstanceId, Moment, ProjectId};
use crate::limits;

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

/// The newest try of a schedule: when it was due, its number, what became of it.
///
/// # Errors
/// The catalogue failed.
pub fn newest(tx: &Tx<'_>, schedule: &str) -> Result<Option<(Moment, i64, Status)>, Error> {
    tx.one(
        "SELECT due_at_ms, try_number, status FROM backup WHERE schedule_id = ?1 \
         ORDER BY due_at_ms DESC, try_number DESC LIMIT 1",
        (schedule,),
        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
    )
}

/// How many backups of schedules have not ended.
///
/// # Errors
/// The catalogue failed.
pub fn unfinished(tx: &Tx<'_>) -> Result<usize, Error> {
    let count = tx.one(
        "SELECT count(*) FROM backup WHERE kind = 'auto' AND status IN ('waiting', 'running')",
        (),
        |row| row.get(0),
    )?;
    Ok(count.unwrap_or(0))
}

/// What keeps a backup from expiring though its time has come: it is the newest of its instance that could be restored, or the
/// newest that was proven. `backup` is the table's name in what follows.
macro_rules! is_superseded {
    () => {
        "status = 'succeeded' AND phase IS NULL AND generation_id IS NULL \
         AND EXISTS (SELECT 1 FROM backup AS newer WHERE newer.instance_id = backup.instance_id \
         AND newer.ordinal > backup.ordinal AND newer.status = 'succeeded' AND newer.phase IS NULL \
         AND newer.kind IN ('manual', 'auto') AND newer.proof_failure IS NULL) \
         AND (coalesce(proof_level, '') <> 'proven' OR proof_failure IS NOT NULL \
         OR EXISTS (SELECT 1 FROM backup AS newer WHERE newer.instance_id = backup.instance_id \
         AND newer.ordinal > backup.ordinal AND newer.status = 'succeeded' AND newer.phase IS NULL \
         AND newer.kind IN ('manual', 'auto') AND newer.proof_level = 'proven' AND newer.proof_failure IS NULL))"
    };
}

/// Backups whose time has come, oldest first; at most [`limits::EXPIRED_AT_ONCE`].
///
/// # Errors
/// The catalogue failed.
pub fn due_to_expire(tx: &Tx<'_>, now: Moment) -> Result<Vec<BackupId>, Error> {
    tx.all(
        concat!(
            "SELECT id FROM backup WHERE expires_at_ms <= ?1 AND ",
            is_superseded!(),
            " ORDER BY expires_at_ms, id LIMIT ?2"
        ),
        (now, limits::EXPIRED_AT_ONCE),
        |row| row.get(0),
    )
}

/// Succeeded → Expired, where its time has come and nothing keeps it. `false`: it stays as it is.
///
/// # Errors
/// The catalogue failed.
pub fn expire(tx: &Tx<'_>, id: &BackupId, now: Moment) -> Result<bool, Error> {
    let changed = tx.execute(
        concat!(
            "UPDATE backup SET status = 'expired', updated_at_ms = ?2 WHERE id = ?1 AND expires_at_ms <= ?2 AND ",
            is_superseded!(),
            " AND NOT EXISTS (SELECT 1 FROM job JOIN restore ON restore.id = job.subject_id \
             WHERE job.state <> 'done' AND job.kind = 'restore' AND restore.backup_id = backup.id)"
        ),
        (id, now),
    )?;
    Ok(changed == 1)
}
