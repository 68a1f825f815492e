//! What people ask of import tasks: every refusal typed, record and job in one transaction.

use super::record::{self, Migration, NewMigration};
use crate::app::App;
use crate::backup::record::{self as backups, Kind};
use crate::idempotency::{self, Once};
use crate::ids::{BackupId, InstanceId, MigrationId, Moment, ProjectId};
use crate::instance::command as instances;
use crate::jobs::{JobKind, queue};
use crate::refusal::Refusal;
use crate::restore::command::{self as restores, RestoreRequest, is_restorable};
use crate::restore::options::{Mode, Options};

/// Characters of a name or a description.
const TEXT_CHARS_MAX: usize = 1024;

/// A wish to import.
#[derive(Debug)]
pub struct ImportRequest {
    /// What to call it.
    pub name: String,
    /// Free text.
    pub description: Option<String>,
    /// Which backup, of whichever instance of the project.
    pub backup_id: BackupId,
    /// Into which instance.
    pub target: InstanceId,
}

/// Accepts an import: record and job are written in one transaction, once for each `once`.
///
/// # Errors
/// Every [`Refusal`] of an import; nothing is recorded then.
pub fn submit(
    app: &App,
    project: &ProjectId,
    request: &ImportRequest,
    once: Option<&Once>,
    now: Moment,
) -> Result<MigrationId, Refusal> {
    if request.name.is_empty() || request.name.chars().count() > TEXT_CHARS_MAX {
        return Err(Refusal::Parameter("task_name"));
    }
    let text = request.description.as_deref().unwrap_or_default();
    if text.chars().count() > TEXT_CHARS_MAX {
        return Err(Refusal::Parameter("description"));
    }
    // Keys of the same name are overwritten, others stay: contract §9.8.
    let options = Options {
        mode: Mode::Merge,
        ..Options::default()
    };
    let backup = app.catalog.read(|tx| {
        instances::find(tx, project, &request.target)?;
        backups::find_of_project(tx, project, &request.backup_id)?.ok_or(Refusal::BackupUnknown)
    })?;
    let asked = RestoreRequest {
        backup_id: request.backup_id.clone(),
        source: Some(backup.instance_id),
        remark: None,
        verify_full: false,
        allow_downtime: false,
        plan: None,
        replay: Some(options.clone()),
    };
    restores::look_into(app, project, &request.target, &asked)?;
    let id = app.catalog.write(|tx| {
        idempotency::once(tx, project, once, now, || {
            let target = instances::find(tx, project, &request.target)?;
            instances::check_idle(tx, &target.id)?;
            instances::check_running(&target)?;
            let backup = backups::find_of_project(tx, project, &request.backup_id)?;
            let backup = backup.ok_or(Refusal::BackupUnknown)?;
            let source = instances::find_with_deleted(tx, project, &backup.instance_id)?;
            if !is_restorable(tx, &backup)? {
                return Err(Refusal::NotRestorable);
            }
            if backup.kind == Kind::Generation {
                return Err(Refusal::NoFile);
            }
            let new = NewMigration {
                name: &request.name,
                description: request.description.as_deref(),
                backup_id: &backup.id,
                source: &source,
                options: &serde_json::json!(options).to_string(),
            };
            let id = record::insert_waiting(tx, &target, &new, now)?;
            queue::insert(tx, &target.id, JobKind::Migration, Some(id.as_str()))?;
            Ok(id)
        })
    })?;
    app.board.wake();
    Ok(id)
}

/// One task.
///
/// # Errors
/// [`Refusal::MigrationUnknown`].
pub fn show(app: &App, project: &ProjectId, id: &MigrationId) -> Result<Migration, Refusal> {
    app.catalog
        .read(|tx| record::find(tx, project, id))?
        .ok_or(Refusal::MigrationUnknown)
}

/// A page of the tasks, newest first, and how many there are.
///
/// # Errors
/// A name that none can have.
pub fn list(
    app: &App,
    project: &ProjectId,
    name: Option<&str>,
    offset: u64,
    limit: u64,
) -> Result<(u64, Vec<Migration>), Refusal> {
    // PostgreSQL's texts have no zero byte.
    if name.is_some_and(|name| name.contains('\0')) {
        return Err(Refusal::Parameter("name"));
    }
    Ok(app
        .catalog
        .read(|tx| record::list(tx, project, name, offset, limit))?)
}

/// Takes tasks that have ended off the list: all of them, or none.
///
/// # Errors
/// [`Refusal::MigrationUnknown`]; [`Refusal::Busy`] for one that has not ended.
pub fn delete(app: &App, project: &ProjectId, ids: &[MigrationId], now: Moment) -> Result<(), Refusal> {
    app.catalog.write(|tx| {
        for id in ids {
            record::find(tx, project, id)?.ok_or(Refusal::MigrationUnknown)?;
            if !record::delete(tx, project, id, now)? {
                return Err(Refusal::Busy(JobKind::Migration));
            }
        }
        Ok(())
    })
}

/// Gives a task up: what it wrote is put back.
///
/// # Errors
/// [`Refusal::MigrationUnknown`]; [`Refusal::NotCancellable`].
pub fn stop(app: &App, project: &ProjectId, id: &MigrationId, now: Moment) -> Result<(), Refusal> {
    let target = app.catalog.write(|tx| {
        let found = record::find(tx, project, id)?.ok_or(Refusal::MigrationUnknown)?;
        match record::ask_to_cancel(tx, id, now)? {
            true => Ok(found.target.0),
            false => Err(Refusal::NotCancellable("it has ended")),
        }
    })?;
    app.board.cancel(&target);
    Ok(())
}
