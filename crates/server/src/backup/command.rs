//! What people ask of backups.

use super::record::{self, Backup, Format, Kind, Status};
use crate::app::App;
use crate::ids::{BackupId, InstanceId, Moment, ProjectId};
use crate::instance::{self, command as instances};
use crate::jobs::{JobKind, queue};
use crate::limits;
use crate::refusal::Refusal;

/// Accepts a backup: record and job in one transaction.
///
/// # Errors
/// Remark too long, unknown instance, busy, not running.
pub fn create(
    app: &App,
    project: &ProjectId,
    id: &InstanceId,
    format: Format,
    remark: Option<&str>,
    now: Moment,
) -> Result<BackupId, Refusal> {
    check_remark(remark)?;
    let backup = app.catalog.write(|tx| {
        let instance = instances::find(tx, project, id)?;
        if app.config.strict_dcs {
            return Err(Refusal::SingleNode);
        }
        instances::check_idle(tx, id)?;
        instances::check_running(&instance)?;
        let backup = record::insert_waiting(tx, project, id, Kind::Manual, format, remark, now)?;
        queue::insert(tx, id, JobKind::Backup, Some(backup.as_str()), now)?;
        Ok::<_, Refusal>(backup)
    })?;
    engine::failpoint::hit("backup.accepted").map_err(|error| Refusal::Internal(engine::chain(&error)))?;
    app.board.wake();
    Ok(backup)
}

/// The rule for remarks: at most 128 characters.
///
/// # Errors
/// [`Refusal::RemarkTooLong`].
pub fn check_remark(remark: Option<&str>) -> Result<(), Refusal> {
    match remark {
        Some(text) if text.chars().count() > limits::REMARK_CHARS_MAX => Err(Refusal::RemarkTooLong),
        _ => Ok(()),
    }
}

/// One backup of an instance; the instance may be deleted, its backups outlive it.
///
/// # Errors
/// Unknown instance, unknown backup.
pub fn find(app: &App, project: &ProjectId, instance: &InstanceId, id: &BackupId) -> Result<Backup, Refusal> {
    app.catalog.read(|tx| {
        instance::record::find_with_deleted(tx, project, instance)?.ok_or(Refusal::InstanceUnknown)?;
        record::find(tx, instance, id)?.ok_or(Refusal::BackupUnknown)
    })
}

/// Deletes a backup: hidden at once, then its files go. What a crash leaves of them is swept at the next start.
///
/// # Errors
/// Unknown, being made or being restored, files cannot be removed (the record is hidden all the same and the files
/// are swept later).
pub fn delete(
    app: &App,
    project: &ProjectId,
    instance_id: &InstanceId,
    id: &BackupId,
    now: Moment,
) -> Result<(), Refusal> {
    let backup = app.catalog.write(|tx| {
        instance::record::find_with_deleted(tx, project, instance_id)?.ok_or(Refusal::InstanceUnknown)?;
        let backup = record::find(tx, instance_id, id)?.ok_or(Refusal::BackupUnknown)?;
        match queue::active(tx, instance_id)? {
            Some((JobKind::Backup, Some(subject))) if subject == id.as_str() => {
                return Err(Refusal::Busy(JobKind::Backup));
            }
            Some((JobKind::Restore, Some(subject))) => {
                let restoring = crate::ids::RestoreId::parse(&subject)
                    .map(|restore| crate::restore::record::load(tx, &restore))
                    .transpose()?
                    .flatten();
                if restoring.is_some_and(|restore| restore.backup_id == *id) {
                    return Err(Refusal::Busy(JobKind::Restore));
                }
            }
            _ => {}
        }
        if matches!(backup.status, Status::Waiting | Status::Running) || !record::delete(tx, id, now)? {
            return Err(Refusal::Busy(JobKind::Backup));
        }
        if let Some(generation) = &backup.generation_id {
            use instance::generation::{State, transition};
            transition(tx, generation, State::Retired, State::Removing)?;
        }
        Ok::<_, Refusal>(backup)
    })?;
    app.board.tidy();
    remove_data(app, &backup)
}

/// Removes the objects of a deleted backup from the local folder. Those in a remote store are the sweeper's: a store
/// that does not answer must not hold up the request. The retired generation that it may have stood for is the
/// reconciler's.
fn remove_data(app: &App, backup: &Backup) -> Result<(), Refusal> {
    let points = || engine::failpoint::hit("backup_delete.after_commit");
    points().map_err(|error| Refusal::Internal(engine::chain(&error)))?;
    if let Some(prefix) = &backup.prefix
        && backup.storage_id.is_none()
        && let Err(error) = engine::archive::delete(&app.vault.store, prefix)
    {
        tracing::error!(backup.id = %backup.id, error = engine::chain(&error), "cannot remove the files of a deleted backup");
        return Err(Refusal::DeleteFailed);
    }
    Ok(())
}
