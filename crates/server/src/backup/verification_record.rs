//! Verifies that were asked of the service: their states, changed only here and by compare-and-set, and their SQL.
//!
//! ```text
//! Waiting <──> Running ──> Holds | Damaged | Failed
//! Waiting ──> Failed, where it is cancelled
//! ```
//!
//! The rows are the queue, and are claimed as jobs are: by a host, for a time, with a number that grows (`attempts`). A verify
//! changes nothing but its outcome, so one that is interrupted is begun again.

use std::time::Duration;

use super::cancel_record::CANCELLED;
use super::proof_record::ProofLevel;
use crate::catalog::{Error, FromSql, Row, Tx, Value};
use crate::ids::{BackupId, HostId, InstanceId, Moment, VerificationId};
use crate::instance::OwnedInstance;
use crate::limits;

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Accepted.
    Waiting,
    /// Somebody looks.
    Running,
    /// The backup holds at this level.
    Holds,
    /// It does not.
    Damaged,
    /// Nothing could be found out; that says nothing of the backup.
    Failed,
}

impl Status {
    const ALL: [Status; 5] = [
        Status::Waiting,
        Status::Running,
        Status::Holds,
        Status::Damaged,
        Status::Failed,
    ];

    /// The word in the table and on the wire.
    pub fn word(self) -> &'static str {
        match self {
            Status::Waiting => "waiting",
            Status::Running => "running",
            Status::Holds => "holds",
            Status::Damaged => "damaged",
            Status::Failed => "failed",
        }
    }
}

impl FromSql for Status {
    fn from_sql(value: Value<'_>) -> Option<Self> {
        let word = value.text()?;
        Self::ALL.into_iter().find(|status| status.word() == word)
    }
}

/// A row of the table.
#[derive(Debug, Clone)]
pub struct Verification {
    /// Its id.
    pub id: VerificationId,
    /// What is looked at.
    pub backup_id: BackupId,
    /// How much.
    pub level: ProofLevel,
    /// See [`Status`].
    pub status: Status,
    /// How often it was begun.
    pub attempts: i64,
    /// What is going on now.
    pub phase: Option<String>,
    /// Bytes of that which are done.
    pub bytes_done: i64,
    /// Bytes of that in all; 0 where that is not known.
    pub bytes_total: i64,
    /// Version of the engine that loaded it, or did not.
    pub engine: Option<String>,
    /// How long that engine loaded.
    pub load_ms: Option<i64>,
    /// What is wrong with the backup, or why nothing could be found out.
    pub failure: Option<String>,
    /// Accepted.
    pub created_at: Moment,
    /// Begun, the last time.
    pub started_at: Option<Moment>,
    /// Ended.
    pub finished_at: Option<Moment>,
}

macro_rules! columns {
    () => {
        "id, backup_id, level, status, attempts, phase, bytes_done, bytes_total, engine, load_ms, failure, created_at_ms, \
         started_at_ms, finished_at_ms"
    };
}

fn row(row: &Row<'_>) -> Result<Verification, Error> {
    Ok(Verification {
        id: row.get(0)?,
        backup_id: row.get(1)?,
        level: row.get(2)?,
        status: row.get(3)?,
        attempts: row.get(4)?,
        phase: row.get(5)?,
        bytes_done: row.get(6)?,
        bytes_total: row.get(7)?,
        engine: row.get(8)?,
        load_ms: row.get(9)?,
        failure: row.get(10)?,
        created_at: row.get(11)?,
        started_at: row.get(12)?,
        finished_at: row.get(13)?,
    })
}

/// Adds a verify in state Waiting; the oldest ones of the backup beyond [`limits::VERIFICATIONS_KEPT`] are forgotten. Of each kind for itself: what
/// people ask for, and drills that failed, push out no drill that held, by which is told whether drills are overdue.
///
/// # Errors
/// `Constraint` where the backup has one that has not ended: the caller has looked before.
pub fn insert(
    tx: &Tx<'_>,
    backup: &BackupId,
    level: ProofLevel,
    now: Moment,
) -> Result<VerificationId, Error> {
    tx.execute(
        "DELETE FROM verification WHERE backup_id = ?1 AND status NOT IN ('waiting', 'running') AND id IN (SELECT id FROM ( \
         SELECT id, row_number() OVER (PARTITION BY schedule_id IS NULL, schedule_id IS NOT NULL AND status = 'holds' \
         ORDER BY ordinal DESC) AS place FROM verification WHERE backup_id = ?1) AS ranked WHERE place >= ?2)",
        (backup, limits::VERIFICATIONS_KEPT),
    )?;
    let id = VerificationId::random();
    tx.execute(
        "INSERT INTO verification (id, backup_id, ordinal, level, status, created_at_ms) VALUES (?1, ?2, \
         (SELECT coalesce(max(ordinal), 0) + 1 FROM verification WHERE backup_id = ?2), ?3, 'waiting', ?4)",
        (&id, backup, level.word(), now),
    )?;
    Ok(id)
}

/// Adds a drill: a verify at the highest level of the instance's newest backup that can be restored and is not being
/// verified. `None`: there is none.
///
/// # Errors
/// `Constraint` where this try has its record already.
pub fn insert_drill(
    tx: &Tx<'_>,
    instance: &InstanceId,
    schedule: &str,
    due: Moment,
    number: i64,
    now: Moment,
) -> Result<Option<VerificationId>, Error> {
    let newest = tx.one(
        "SELECT id, EXISTS (SELECT 1 FROM verification WHERE backup_id = backup.id AND status IN ('waiting', 'running')) \
         FROM backup WHERE instance_id = ?1 AND status = 'succeeded' AND phase IS NULL AND kind IN ('manual', 'auto') \
         ORDER BY ordinal DESC LIMIT 1",
        (instance,),
        |row| Ok((row.get::<BackupId>(0)?, row.get::<bool>(1)?)),
    )?;
    let Some((backup, false)) = newest else {
        return Ok(None);
    };
    let id = insert(tx, &backup, ProofLevel::Proven, now)?;
    tx.execute(
        "UPDATE verification SET schedule_id = ?2, due_at_ms = ?3, try_number = ?4 WHERE id = ?1",
        (&id, schedule, due, number),
    )?;
    Ok(Some(id))
}

/// The newest drill of a schedule that was due by `now`: when, its number, what became of it. As of backups.
///
/// # Errors
/// The catalogue failed.
pub fn newest_drill(
    tx: &Tx<'_>,
    schedule: &str,
    now: Moment,
) -> Result<Option<(Moment, i64, Status)>, Error> {
    tx.one(
        "SELECT due_at_ms, try_number, status FROM verification WHERE schedule_id = ?1 AND due_at_ms <= ?2 \
         ORDER BY due_at_ms DESC, try_number DESC LIMIT 1",
        (schedule, now),
        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
    )
}

/// When the newest drill of a schedule that held was due, of those that were due by `now`.
///
/// # Errors
/// The catalogue failed.
pub fn newest_held(tx: &Tx<'_>, schedule: &str, now: Moment) -> Result<Option<Moment>, Error> {
    tx.one(
        "SELECT due_at_ms FROM verification WHERE schedule_id = ?1 AND status = 'holds' AND due_at_ms <= ?2 \
         ORDER BY due_at_ms DESC LIMIT 1",
        (schedule, now),
        |row| row.get(0),
    )
}

/// The newest drills of an instance, newest first; at most [`limits::VERIFICATIONS_KEPT`].
///
/// # Errors
/// The catalogue failed.
pub fn drills(tx: &Tx<'_>, of: &OwnedInstance) -> Result<Vec<Verification>, Error> {
    tx.all(
        concat!(
            "SELECT ",
            columns!(),
            " FROM verification WHERE schedule_id IS NOT NULL AND backup_id IN (SELECT id FROM backup WHERE instance_id = ?1) \
             ORDER BY created_at_ms DESC, ordinal DESC LIMIT ?2"
        ),
        (&of.id, limits::VERIFICATIONS_KEPT),
        row,
    )
}

/// The verify of a backup that has not ended.
///
/// # Errors
/// The catalogue failed.
pub fn unfinished_of(tx: &Tx<'_>, backup: &BackupId) -> Result<Option<Verification>, Error> {
    tx.one(
        concat!(
            "SELECT ",
            columns!(),
            " FROM verification WHERE backup_id = ?1 AND status IN ('waiting', 'running')"
        ),
        (backup,),
        row,
    )
}

/// All verifies of a backup that are remembered, newest first.
///
/// # Errors
/// The catalogue failed.
pub fn list(tx: &Tx<'_>, of: &OwnedInstance, backup: &BackupId) -> Result<Vec<Verification>, Error> {
    tx.all(
        concat!(
            "SELECT ",
            columns!(),
            " FROM verification WHERE backup_id = ?1 \
             AND EXISTS (SELECT 1 FROM backup WHERE backup.id = ?1 AND backup.instance_id = ?2) ORDER BY ordinal DESC"
        ),
        (backup, &of.id),
        row,
    )
}

/// Waiting → Running, for the oldest one that the host can read; or for one whose host has left it behind.
///
/// # Errors
/// The catalogue failed.
pub fn claim(
    tx: &Tx<'_>,
    host: &HostId,
    length: Duration,
    now: Moment,
) -> Result<Option<Verification>, Error> {
    let clock = tx.clock()?;
    let oldest = tx.one(
        "SELECT verification.id FROM verification JOIN backup ON backup.id = backup_id \
         WHERE verification.status IN ('waiting', 'running') \
         AND (verification.status = 'waiting' OR lease_until_ms < ?2) \
         AND (storage_id IS NOT NULL OR host_id IS NULL OR host_id = ?1) \
         ORDER BY verification.created_at_ms, verification.id LIMIT 1",
        (host, clock),
        |row| row.get::<VerificationId>(0),
    )?;
    let Some(id) = oldest else {
        return Ok(None);
    };
    tx.execute(
        "UPDATE verification SET status = 'running', attempts = attempts + 1, started_at_ms = ?2, owner = ?3, lease_until_ms = ?4 \
         WHERE id = ?1",
        (&id, now, host, clock.after(length)),
    )?;
    tx.one(
        concat!("SELECT ", columns!(), " FROM verification WHERE id = ?1"),
        (&id,),
        row,
    )
}

/// Takes a claim for so long from now on. `false`: it is not ours any more.
///
/// # Errors
/// The catalogue failed.
pub fn renew(tx: &Tx<'_>, of: &Verification, length: Duration) -> Result<bool, Error> {
    let changed = tx.execute(
        "UPDATE verification SET lease_until_ms = ?3 WHERE id = ?1 AND attempts = ?2 AND status = 'running'",
        (&of.id, of.attempts, tx.clock()?.after(length)),
    )?;
    Ok(changed == 1)
}

/// Gives up the verify of a backup that has not ended: one that waits ends now, of one at work it is written down, as its phase.
/// `false`: there is none.
///
/// # Errors
/// The catalogue failed.
pub fn cancel(tx: &Tx<'_>, backup: &BackupId, now: Moment) -> Result<bool, Error> {
    let ended = tx.execute(
        "UPDATE verification SET status = 'failed', phase = NULL, failure = ?2, finished_at_ms = ?3 WHERE backup_id = ?1 AND status = 'waiting'",
        (backup, CANCELLED, now),
    )?;
    let asked = tx.execute(
        "UPDATE verification SET phase = 'cancelling' WHERE backup_id = ?1 AND status = 'running'",
        (backup,),
    )?;
    Ok(ended + asked > 0)
}

/// Whether a running one is to be given up.
///
/// # Errors
/// The catalogue failed.
pub fn is_cancelled(tx: &Tx<'_>, of: &Verification) -> Result<bool, Error> {
    let asked = tx.one(
        "SELECT 1 FROM verification WHERE id = ?1 AND status = 'running' AND phase = 'cancelling'",
        (&of.id,),
        |_| Ok(()),
    )?;
    Ok(asked.is_some())
}

/// Writes how far a running one is, unless it is to be given up.
///
/// # Errors
/// The catalogue failed.
pub fn progress(tx: &Tx<'_>, of: &Verification, seen: &engine::Progress) -> Result<(), Error> {
    tx.execute(
        "UPDATE verification SET phase = ?3, bytes_done = ?4, bytes_total = ?5 WHERE id = ?1 AND attempts = ?2 AND status = 'running' \
         AND coalesce(phase, '') <> 'cancelling'",
        (&of.id, of.attempts, seen.phase, seen.bytes_done, seen.bytes_total),
    )?;
    Ok(())
}

/// How a verify ended.
#[derive(Debug)]
pub struct Ended {
    /// Holds, Damaged or Failed.
    pub status: Status,
    /// See [`Verification::engine`].
    pub engine: Option<String>,
    /// See [`Verification::load_ms`].
    pub load_ms: Option<i64>,
    /// See [`Verification::failure`].
    pub failure: Option<String>,
}

/// Running → Holds, Damaged or Failed. `false`: it is another one's by now.
///
/// # Errors
/// The catalogue failed.
pub fn end(tx: &Tx<'_>, of: &Verification, ended: &Ended, now: Moment) -> Result<bool, Error> {
    let changed = tx.execute(
        "UPDATE verification SET status = ?2, phase = NULL, engine = ?3, load_ms = ?4, failure = ?5, finished_at_ms = ?6 \
         WHERE id = ?1 AND status = 'running' AND attempts = ?7",
        (
            &of.id,
            ended.status.word(),
            &ended.engine,
            ended.load_ms,
            &ended.failure,
            now,
            of.attempts,
        ),
    )?;
    Ok(changed == 1)
}

/// Running → Waiting, for all of the host: at its start, and when it stops. Those that are to be given up end.
///
/// # Errors
/// The catalogue failed.
pub fn release_all(tx: &Tx<'_>, host: &HostId, now: Moment) -> Result<(), Error> {
    tx.execute(
        "UPDATE verification SET status = 'failed', phase = NULL, failure = ?2, finished_at_ms = ?3 \
         WHERE status IN ('waiting', 'running') AND status = 'running' AND owner = ?1 AND phase = 'cancelling'",
        (host, CANCELLED, now),
    )?;
    tx.execute(
        "UPDATE verification SET status = 'waiting', phase = NULL, bytes_done = 0, bytes_total = 0 \
         WHERE status IN ('waiting', 'running') AND status = 'running' AND owner = ?1",
        (host,),
    )?;
    Ok(())
}
