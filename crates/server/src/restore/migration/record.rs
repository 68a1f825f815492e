//! The record of an import task: DCS's way to bring a backup into another instance (`CreateMigrationTask`). Its states, changed
//! only here and by compare-and-set, and its SQL.
//!
//! The columns that the job writes are those of a restore, and so are the states of both.

use std::collections::BTreeSet;

use engine::replay::Account;

use crate::backup::record::FailureCode;
use crate::catalog::{Error, Row, Tx, params};
use crate::ids::{BackupId, InstanceId, MigrationId, Moment, ProjectId, RestoreId};
use crate::instance::{Instance, OwnedInstance};
use crate::restore::given_up::GivenUp;
use crate::restore::record::{Method, Restore, Status, TargetState};
use crate::restore::replay_record::{Replay, read};

/// A row, as it is told.
#[derive(Debug)]
pub struct Migration {
    /// Its id.
    pub id: MigrationId,
    /// What its caller calls it.
    pub name: String,
    /// Free text.
    pub description: Option<String>,
    /// See [`Status`].
    pub status: Status,
    /// Why it failed.
    pub failure: Option<String>,
    /// Whether somebody asked for it to be given up.
    pub is_stopped: bool,
    /// See [`TargetState`].
    pub target_state: TargetState,
    /// The instance that is imported into.
    pub target: (InstanceId, String),
    /// The instance that the backup is of.
    pub source: (InstanceId, String),
    /// The backup.
    pub backup_id: BackupId,
    /// Keys that the target said it has.
    pub keys_applied: i64,
    /// When it was accepted.
    pub created_at: Moment,
    /// When it last changed.
    pub updated_at: Moment,
    /// When it ended.
    pub finished_at: Option<Moment>,
}

macro_rules! told {
    () => {
        "SELECT migration.id, migration.name, migration.description, migration.status, migration.failure, \
         cancel_asked_at_ms, target_state, instance_id, target.name, source_instance_id, source.name, \
         backup_id, keys_applied, migration.created_at_ms, migration.updated_at_ms, finished_at_ms FROM migration \
         JOIN instance AS target ON target.id = instance_id JOIN instance AS source ON source.id = source_instance_id "
    };
}

fn row(row: &Row<'_>) -> Result<Migration, Error> {
    Ok(Migration {
        id: row.get(0)?,
        name: row.get(1)?,
        description: row.get(2)?,
        status: row.get(3)?,
        failure: row.get(4)?,
        is_stopped: row.get::<Option<Moment>>(5)?.is_some(),
        target_state: row.get(6)?,
        target: (row.get(7)?, row.get(8)?),
        source: (row.get(9)?, row.get(10)?),
        backup_id: row.get(11)?,
        keys_applied: row.get(12)?,
        created_at: row.get(13)?,
        updated_at: row.get(14)?,
        finished_at: row.get(15)?,
    })
}

/// What a new task is told.
#[derive(Debug)]
pub struct NewMigration<'a> {
    /// See [`Migration::name`].
    pub name: &'a str,
    /// See [`Migration::description`].
    pub description: Option<&'a str>,
    /// See [`Migration::backup_id`].
    pub backup_id: &'a BackupId,
    /// Whose backup it is.
    pub source: &'a Instance,
    /// JSON: what becomes of which keys.
    pub options: &'a str,
}

/// Adds a task in state Waiting.
///
/// # Errors
/// The catalogue failed.
pub fn insert_waiting(
    tx: &Tx<'_>,
    target: &OwnedInstance,
    new: &NewMigration<'_>,
    now: Moment,
) -> Result<MigrationId, Error> {
    let id = MigrationId::random();
    tx.execute(
        "INSERT INTO migration (id, project_id, instance_id, backup_id, source_instance_id, name, description, status, target_state, \
         options, created_at_ms, updated_at_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 'waiting', 'untouched', ?8, ?9, ?9)",
        params![
            id,
            target.project_id,
            target.id,
            new.backup_id,
            new.source.id,
            new.name,
            new.description,
            new.options,
            now,
        ],
    )?;
    Ok(id)
}

/// One task of the project.
///
/// # Errors
/// The catalogue failed.
pub fn find(tx: &Tx<'_>, project: &ProjectId, id: &MigrationId) -> Result<Option<Migration>, Error> {
    tx.one(
        concat!(
            told!(),
            "WHERE migration.id = ?1 AND migration.project_id = ?2 AND migration.deleted_at_ms IS NULL"
        ),
        (id, project),
        row,
    )
}

/// A page of the project's tasks, newest first, and how many there are.
///
/// # Errors
/// The catalogue failed.
pub fn list(
    tx: &Tx<'_>,
    project: &ProjectId,
    name: Option<&str>,
    offset: u64,
    limit: u64,
) -> Result<(u64, Vec<Migration>), Error> {
    let number = |of: u64| i64::try_from(of).unwrap_or(i64::MAX);
    let total = tx.one(
        "SELECT count(*) FROM migration WHERE project_id = ?1 AND deleted_at_ms IS NULL AND name = coalesce(?2, name)",
        (project, name),
        |row| row.get::<i64>(0),
    )?;
    let page = tx.all(
        concat!(
            told!(),
            "WHERE migration.project_id = ?1 AND migration.deleted_at_ms IS NULL AND migration.name = coalesce(?2, migration.name) \
             ORDER BY migration.created_at_ms DESC, migration.id LIMIT ?3 OFFSET ?4"
        ),
        (project, name, number(limit), number(offset)),
        row,
    )?;
    Ok((
        total.and_then(|total| u64::try_from(total).ok()).unwrap_or(0),
        page,
    ))
}

/// Takes a task that has ended off the list. `false`: it has not ended, or there is none.
///
/// # Errors
/// The catalogue failed.
pub fn delete(tx: &Tx<'_>, project: &ProjectId, id: &MigrationId, now: Moment) -> Result<bool, Error> {
    let changed = tx.execute(
        "UPDATE migration SET deleted_at_ms = ?3 WHERE id = ?1 AND project_id = ?2 AND status IN ('succeeded', 'failed') \
         AND deleted_at_ms IS NULL",
        (id, project, now),
    )?;
    Ok(changed == 1)
}

/// Whether an import of this backup, or one that is taken back with it, is not settled yet.
///
/// # Errors
/// The catalogue failed.
pub fn is_in_use(tx: &Tx<'_>, backup: &BackupId) -> Result<bool, Error> {
    let found = tx.one(
        "SELECT 1 FROM migration WHERE status IN ('waiting', 'running') AND ?1 IN (backup_id, safety_backup_id)",
        (backup,),
        |_| Ok(()),
    )?;
    Ok(found.is_some())
}

/// Plain bytes of the backup that the task of this id is about; 0 where there is no such task.
///
/// # Errors
/// The catalogue failed.
pub fn expected_bytes(tx: &Tx<'_>, id: &str) -> Result<u64, Error> {
    let found = tx.one(
        "SELECT backup.plain_bytes FROM migration JOIN backup ON backup.id = migration.backup_id WHERE migration.id = ?1",
        (id,),
        |row| row.get::<i64>(0),
    )?;
    Ok(found.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0))
}

/// The task that a job names, as the job of a restore sees it.
///
/// # Errors
/// The catalogue failed.
pub fn load(tx: &Tx<'_>, id: &RestoreId) -> Result<Option<Restore>, Error> {
    tx.one(
        "SELECT name, backup_id, status, failure, target_state, error_code FROM migration WHERE id = ?1",
        (id,),
        |row| {
            Ok(Restore {
                id: id.clone(),
                name: row.get(0)?,
                backup_id: row.get(1)?,
                status: row.get(2)?,
                given_up: GivenUp::read(row.get::<Option<String>>(5)?.as_deref(), row.get(3)?),
                method: Method::Replay,
                verify: "none".to_owned(),
                target_state: row.get(4)?,
                undo_of: None,
                undone_by: None,
                new_generation_id: None,
                old_generation_id: None,
            })
        },
    )
}

/// See [`crate::restore::replay_record::load`].
///
/// # Errors
/// The catalogue failed.
pub fn replay(tx: &Tx<'_>, id: &RestoreId) -> Result<Option<Replay>, Error> {
    let found = tx.one(
        "SELECT options, safety_backup_id, dbs FROM migration WHERE id = ?1",
        (id,),
        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
    )?;
    found.map(read).transpose()
}

/// See [`crate::restore::replay_record::begin`].
///
/// # Errors
/// The catalogue failed.
pub fn begin(tx: &Tx<'_>, id: &RestoreId, now: Moment) -> Result<bool, Error> {
    let changed = tx.execute(
        "UPDATE migration SET status = 'running', started_at_ms = coalesce(started_at_ms, ?2), updated_at_ms = ?2 \
         WHERE id = ?1 AND status IN ('waiting', 'running')",
        (id, now),
    )?;
    Ok(changed == 1)
}

/// See [`crate::restore::replay_record::saved`].
///
/// # Errors
/// The catalogue failed.
pub fn saved(tx: &Tx<'_>, id: &RestoreId, safety: &BackupId) -> Result<(), Error> {
    tx.execute(
        "UPDATE migration SET safety_backup_id = ?2 WHERE id = ?1 AND status = 'running'",
        (id, safety),
    )?;
    Ok(())
}

/// See [`crate::restore::replay_record::enter`].
///
/// # Errors
/// The catalogue failed.
pub fn enter(
    tx: &Tx<'_>,
    id: &RestoreId,
    state: TargetState,
    dbs: &BTreeSet<u32>,
    now: Moment,
) -> Result<bool, Error> {
    let changed = tx.execute(
        "UPDATE migration SET target_state = ?2, dbs = ?3, updated_at_ms = ?4 \
         WHERE id = ?1 AND status = 'running' AND cancel_asked_at_ms IS NULL",
        (id, state.word(), serde_json::json!(dbs).to_string(), now),
    )?;
    Ok(changed == 1)
}

/// See [`crate::restore::replay_record::left_untouched`].
///
/// # Errors
/// The catalogue failed.
pub fn left_untouched(tx: &Tx<'_>, id: &RestoreId, now: Moment) -> Result<(), Error> {
    tx.execute(
        "UPDATE migration SET target_state = 'untouched', dbs = NULL, updated_at_ms = ?2 WHERE id = ?1 AND status = 'running'",
        (id, now),
    )?;
    Ok(())
}

/// See [`crate::restore::replay_record::counted`]; keys are not named.
///
/// # Errors
/// The catalogue failed.
pub fn counted(tx: &Tx<'_>, id: &RestoreId, account: &Account) -> Result<(), Error> {
    tx.execute(
        "UPDATE migration SET keys_applied = ?2 WHERE id = ?1 AND status = 'running'",
        (id, account.applied.count),
    )?;
    Ok(())
}

/// See [`crate::restore::record::giving_up`].
///
/// # Errors
/// The catalogue failed.
pub fn giving_up(tx: &Tx<'_>, id: &RestoreId, given_up: &GivenUp) -> Result<(), Error> {
    tx.execute(
        "UPDATE migration SET error_code = ?2, failure = ?3 WHERE id = ?1 AND status IN ('waiting', 'running')",
        (id, given_up.code.text(), &given_up.why),
    )?;
    Ok(())
}

/// See [`crate::restore::replay_record::settle_unknown`].
///
/// # Errors
/// The catalogue failed.
pub fn settle_unknown(tx: &Tx<'_>, instance: &InstanceId, now: Moment) -> Result<(), Error> {
    tx.execute(
        "UPDATE migration SET target_state = 'partial', updated_at_ms = ?2 \
         WHERE instance_id = ?1 AND status = 'failed' AND target_state = 'unknown' AND dbs IS NOT NULL",
        (instance, now),
    )?;
    Ok(())
}

/// Writes that a task is to be given up. `false`: it has ended.
///
/// # Errors
/// The catalogue failed.
pub fn ask_to_cancel(tx: &Tx<'_>, id: &MigrationId, now: Moment) -> Result<bool, Error> {
    let changed = tx.execute(
        "UPDATE migration SET cancel_asked_at_ms = coalesce(cancel_asked_at_ms, ?2), updated_at_ms = ?2 \
         WHERE id = ?1 AND status IN ('waiting', 'running')",
        (id, now),
    )?;
    Ok(changed == 1)
}

/// Whether a task is to be given up.
///
/// # Errors
/// The catalogue failed.
pub fn is_to_be_cancelled(tx: &Tx<'_>, id: &RestoreId) -> Result<bool, Error> {
    let asked = tx.one(
        "SELECT 1 FROM migration WHERE id = ?1 AND cancel_asked_at_ms IS NOT NULL",
        (id,),
        |_| Ok(()),
    )?;
    Ok(asked.is_some())
}

/// Running → Succeeded.
///
/// # Errors
/// The catalogue failed.
pub fn succeed(tx: &Tx<'_>, id: &RestoreId, now: Moment) -> Result<bool, Error> {
    let changed = tx.execute(
        "UPDATE migration SET status = 'succeeded', target_state = 'replaced', failure = NULL, error_code = NULL, finished_at_ms = ?2, updated_at_ms = ?2 \
         WHERE id = ?1 AND status = 'running'",
        (id, now),
    )?;
    Ok(changed == 1)
}

/// Waiting or Running → Failed, with what the instance holds now.
///
/// # Errors
/// The catalogue failed.
pub fn fail(
    tx: &Tx<'_>,
    id: &RestoreId,
    code: FailureCode,
    why: &str,
    state: TargetState,
    now: Moment,
) -> Result<bool, Error> {
    let changed = tx.execute(
        "UPDATE migration SET status = 'failed', error_code = ?2, failure = ?3, target_state = ?4, finished_at_ms = ?5, \
         updated_at_ms = ?5 WHERE id = ?1 AND status IN ('waiting', 'running')",
        (id, code.text(), why, state.word(), now),
    )?;
    Ok(changed == 1)
}
