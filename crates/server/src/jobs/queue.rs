//! Job rows: insert with the record, claim, settle. At most one unsettled job per instance, by a unique index.

use crate::catalog::{Error, FromSql, Tx, Value};
use crate::ids::{InstanceId, JobId, Moment};

/// What a job does. The words are those of the table's CHECK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobKind {
    /// Make an instance's first generation.
    Create,
    /// Remove an instance with its processes and directories.
    Delete,
    /// Stop and start the engine.
    Restart,
    /// Remove all keys.
    Flush,
    /// Give the engine the instance's new password.
    Password,
    /// Give the engines the instance's new limit of memory.
    Resize,
    /// Capture and store.
    Backup,
    /// Load beside and switch, or switch back.
    Restore,
}

impl JobKind {
    /// The word in the table.
    pub fn word(self) -> &'static str {
        match self {
            JobKind::Create => "create",
            JobKind::Delete => "delete",
            JobKind::Restart => "restart",
            JobKind::Flush => "flush",
            JobKind::Password => "password",
            JobKind::Resize => "resize",
            JobKind::Backup => "backup",
            JobKind::Restore => "restore",
        }
    }

    fn from_word(word: &str) -> Option<Self> {
        [
            JobKind::Create,
            JobKind::Delete,
            JobKind::Restart,
            JobKind::Flush,
            JobKind::Password,
            JobKind::Resize,
            JobKind::Backup,
            JobKind::Restore,
        ]
        .into_iter()
        .find(|kind| kind.word() == word)
    }
}

impl FromSql for JobKind {
    fn from_sql(value: Value<'_>) -> Option<Self> {
        Self::from_word(value.text()?)
    }
}

/// The right to run a job. Its fence is part of every settling write and of the names of stored objects.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The job.
    pub job_id: JobId,
    /// Its instance.
    pub instance_id: InstanceId,
    /// What it does.
    pub kind: JobKind,
    /// The backup's, restore's or resize's id, of a resize to other nodes; of a restart or flush the process that it acts on, once it is about to.
    pub subject_id: Option<String>,
    /// Grows by one with each claim; 1 at the first.
    pub fence: i64,
    /// When it was accepted.
    pub created_at: Moment,
}

/// Adds a job in the caller's transaction, with the record it belongs to.
///
/// # Errors
/// `Constraint` where the instance has an unsettled job: the caller has looked before and refuses with its kind.
pub fn insert(
    tx: &Tx<'_>,
    instance: &InstanceId,
    kind: JobKind,
    subject: Option<&str>,
    now: Moment,
) -> Result<JobId, Error> {
    let id = JobId::random();
    tx.execute(
        "INSERT INTO job (id, instance_id, kind, subject_id, state, created_at_ms) VALUES (?1, ?2, ?3, ?4, 'waiting', ?5)",
        (&id, instance, kind.word(), subject, now),
    )?;
    Ok(id)
}

/// The kind and subject of the job that has the instance now.
///
/// # Errors
/// The catalogue failed.
pub fn active(tx: &Tx<'_>, instance: &InstanceId) -> Result<Option<(JobKind, Option<String>)>, Error> {
    tx.one(
        "SELECT kind, subject_id FROM job WHERE instance_id = ?1 AND state <> 'done'",
        (instance,),
        |row| Ok((row.get(0)?, row.get(1)?)),
    )
}

/// Every waiting job with its instance, oldest first: at most one an instance.
///
/// # Errors
/// The catalogue failed.
pub fn waiting(tx: &Tx<'_>) -> Result<Vec<(JobId, InstanceId)>, Error> {
    tx.all(
        "SELECT id, instance_id FROM job WHERE state = 'waiting' ORDER BY created_at_ms, id",
        (),
        |row| Ok((row.get(0)?, row.get(1)?)),
    )
}

/// Takes a waiting job. `None`: it is not waiting any more.
///
/// # Errors
/// The catalogue failed.
pub fn claim(tx: &Tx<'_>, job: &JobId, owner: &str) -> Result<Option<Claim>, Error> {
    tx.one(
        "UPDATE job SET state = 'running', owner = ?2, fence = fence + 1 WHERE id = ?1 AND state = 'waiting' \
         RETURNING id, instance_id, kind, subject_id, fence, created_at_ms",
        (job, owner),
        |row| {
            Ok(Claim {
                job_id: row.get(0)?,
                instance_id: row.get(1)?,
                kind: row.get(2)?,
                subject_id: row.get(3)?,
                fence: row.get(4)?,
                created_at: row.get(5)?,
            })
        },
    )
}

/// Writes on which process a restart or flush is about to act: whoever takes the job up again knows by that how far it
/// came.
///
/// # Errors
/// The catalogue failed.
pub fn intend(tx: &Tx<'_>, claim: &Claim, process: &str) -> Result<(), Error> {
    tx.execute(
        "UPDATE job SET subject_id = ?2 WHERE id = ?1",
        (&claim.job_id, process),
    )?;
    Ok(())
}

/// Ends the job, in the transaction that ends its record. `false`: another claim has it, and the caller must roll
/// back and stop.
///
/// # Errors
/// The catalogue failed.
pub fn settle(tx: &Tx<'_>, claim: &Claim, now: Moment) -> Result<bool, Error> {
    let changed = tx.execute(
        "UPDATE job SET state = 'done', settled_at_ms = ?3 WHERE id = ?1 AND fence = ?2 AND state = 'running'",
        (&claim.job_id, claim.fence, now),
    )?;
    Ok(changed == 1)
}

/// Whether the claim still holds: checked inside every transaction of a running job.
///
/// # Errors
/// The catalogue failed.
pub fn holds(tx: &Tx<'_>, claim: &Claim) -> Result<bool, Error> {
    let found = tx.one(
        "SELECT 1 FROM job WHERE id = ?1 AND fence = ?2 AND state = 'running'",
        (&claim.job_id, claim.fence),
        |_| Ok(()),
    )?;
    Ok(found.is_some())
}

/// Ends the instance's unsettled job from outside: the documented restart during a backup.
///
/// # Errors
/// The catalogue failed.
pub fn revoke_active(tx: &Tx<'_>, instance: &InstanceId, now: Moment) -> Result<(), Error> {
    tx.execute(
        "UPDATE job SET state = 'done', settled_at_ms = ?2, fence = fence + 1 WHERE instance_id = ?1 AND state <> 'done'",
        (instance, now),
    )?;
    Ok(())
}

/// Gives back every job of a process that is gone: only one process runs on a data directory, so at its start
/// every running job is such a one.
///
/// # Errors
/// The catalogue failed.
pub fn release_all(tx: &Tx<'_>) -> Result<usize, Error> {
    tx.execute(
        "UPDATE job SET state = 'waiting', owner = NULL WHERE state = 'running'",
        (),
    )
}

/// Gives one job back to wait for its next claim.
///
/// # Errors
/// The catalogue failed.
pub fn release(tx: &Tx<'_>, claim: &Claim) -> Result<(), Error> {
    tx.execute(
        "UPDATE job SET state = 'waiting', owner = NULL WHERE id = ?1 AND fence = ?2 AND state = 'running'",
        (&claim.job_id, claim.fence),
    )?;
    Ok(())
}
