//! What people ask of backups.

use engine::defect;

use super::cancel_record as cancels;
use super::quota_record as quotas;
use super::record::{self, Backup, Format, Kind, Status};
use crate::app::App;
use crate::catalog::Tx;
use crate::idempotency::{self, Once};
use crate::ids::{BackupId, InstanceId, Moment, ProjectId};
use crate::instance::layout::Mode;
use crate::instance::{self, command as instances};
use crate::jobs::{JobKind, queue};
use crate::limits;
use crate::refusal::Refusal;

/// Accepts a backup: record and job in one transaction, once for each `once`.
///
/// # Errors
/// Remark too long, unknown instance, busy, not running, no room in the project's quota, key of another request.
pub fn create(
    app: &App,
    project: &ProjectId,
    id: &InstanceId,
    format: Format,
    remark: Option<&str>,
    once: Option<&Once>,
    now: Moment,
) -> Result<BackupId, Refusal> {
    check_remark(remark)?;
    let backup = app.catalog.write(|tx| {
        idempotency::once(tx, project, once, now, || {
            let instance = instances::find(tx, project, id)?;
            if app.config.strict_dcs && instance.layout.mode == Mode::Single {
                return Err(Refusal::SingleNode);
            }
            instances::check_idle(tx, id)?;
            instances::check_running(&instance)?;
            let backup = record::insert_waiting(tx, project, id, Kind::Manual, format, remark, now)?;
            reserve(app, tx, project, id, &backup)?;
            if !defect::is_planted("job-apart-from-record") {
                queue::insert(tx, id, JobKind::Backup, Some(backup.as_str()))?;
            }
            Ok(backup)
        })
    })?;
    engine::failpoint::hit("backup.accepted").map_err(|error| Refusal::Internal(engine::chain(&error)))?;
    if defect::is_planted("job-apart-from-record") {
        app.catalog
            .write(|tx| queue::insert(tx, id, JobKind::Backup, Some(backup.as_str())))?;
    }
    app.board.wake();
    Ok(backup)
}

/// Reserves what a backup of the instance will take, in the transaction in which it is accepted.
///
/// # Errors
/// [`Refusal::Quota`]: the transaction is to be given up.
pub fn reserve(
    app: &App,
    tx: &Tx<'_>,
    project: &ProjectId,
    instance: &InstanceId,
    backup: &BackupId,
) -> Result<(), Refusal> {
    let bytes = quotas::estimate(tx, instance, app.board.memory_of(instance))?;
    quotas::reserve(tx, project, backup, bytes)?.map_err(Refusal::Quota)
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
        let instance = instances::find_with_deleted(tx, project, instance)?;
        record::find(tx, &instance, id)?.ok_or(Refusal::BackupUnknown)
    })
}

/// Gives a backup or an import up that has not ended: nothing is stored of it, and the record fails. One that waits has ended when
/// this returns; what is at work finds it at its next check.
///
/// # Errors
/// Unknown instance, unknown backup; [`Refusal::NotCancellable`].
pub fn cancel(
    app: &App,
    project: &ProjectId,
    instance_id: &InstanceId,
    id: &BackupId,
    now: Moment,
) -> Result<(), Refusal> {
    app.catalog.write(|tx| {
        let instance = instances::find_with_deleted(tx, project, instance_id)?;
        let backup = record::find(tx, &instance, id)?.ok_or(Refusal::BackupUnknown)?;
        if !matches!(backup.status, Status::Waiting | Status::Running) {
            return Err(Refusal::NotCancellable("it has ended"));
        }
        if backup.kind == Kind::Safety {
            return Err(Refusal::NotCancellable("it is made for a restore; cancel that"));
        }
        // The job before its record, as whoever settles them.
        if queue::end_unbegun(tx, instance_id, id.as_str(), now)? {
            cancels::fail(tx, id, now)?;
            return Ok(());
        }
        match cancels::ask(tx, id, now)? {
            true => Ok(()),
            false => Err(Refusal::NotCancellable("it has ended")),
        }
    })?;
    app.board.cancel_subject(id.as_str());
    Ok(())
}

/// Deletes a backup: the intent is written, its files go, then the record is hidden. What a crash leaves half done is
/// finished at the next start. One in a remote store is hidden at once, and its objects go in the background until
/// they are gone.
///
/// # Errors
/// Unknown, being made, being restored, being deleted; [`Refusal::DeleteFailed`] where the files do not go: the record
/// stays, as it was if nothing is gone yet.
pub fn delete(
    app: &App,
    project: &ProjectId,
    instance_id: &InstanceId,
    id: &BackupId,
    now: Moment,
) -> Result<(), Refusal> {
    let backup = app.catalog.write(|tx| {
        let instance = instances::find_with_deleted(tx, project, instance_id)?;
        let backup = record::find(tx, &instance, id)?.ok_or(Refusal::BackupUnknown)?;
        match queue::active(tx, instance_id)? {
            Some((JobKind::Backup, Some(subject))) if subject == id.as_str() => {
                return Err(Refusal::Busy(JobKind::Backup));
            }
            _ => {}
        }
        // Into this instance or another one.
        if crate::restore::record::is_in_use(tx, id)? || crate::restore::migration::record::is_in_use(tx, id)?
        {
            return Err(Refusal::Busy(JobKind::Restore));
        }
        if matches!(backup.status, Status::Waiting | Status::Running) {
            return Err(Refusal::Busy(JobKind::Backup));
        }
        if backup.held.is_some() {
            return Err(Refusal::Held);
        }
        if backup.is_being_deleted() {
            return Err(Refusal::BeingDeleted);
        }
        let elsewhere = backup.is_elsewhere(&app.host);
        let done = match (&backup.generation_id, &backup.storage_id) {
            // The process is the reconciler's to remove.
            (Some(generation), _) => {
                use instance::generation::{State, transition};
                transition(tx, generation, State::Retired, State::Removing)?;
                record::delete(tx, id, now)?
            }
            // The objects are the sweeper's: a store that does not answer must not hold up the request.
            (None, Some(_)) => record::delete(tx, id, now)?,
            // Those of another host's folder that one sweeps.
            (None, None) if elsewhere => record::delete(tx, id, now)?,
            (None, None) => record::intend_delete(tx, id)?,
        };
        if done {
            Ok(backup)
        } else {
            Err(Refusal::BackupUnknown)
        }
    })?;
    if backup.generation_id.is_some() || backup.storage_id.is_some() || backup.is_elsewhere(&app.host) {
        app.board.tidy();
        remove_local_copy(app, &backup);
        return Ok(());
    }
    match remove_data(app, &backup) {
        Ok(()) => app.catalog.write(|tx| {
            record::delete(tx, id, now)?;
            app.board.tidy();
            Ok(())
        }),
        Err(error) => {
            tracing::error!(backup.id = %id, error = engine::chain(&error), "cannot remove the files of a backup");
            let spoilt = !is_whole(app, &backup);
            app.catalog.write(|tx| record::keep(tx, id, spoilt, now))?;
            Err(Refusal::DeleteFailed)
        }
    }
}

/// Removes the objects of a backup from the local folder.
fn remove_data(app: &App, backup: &Backup) -> Result<(), engine::Error> {
    engine::failpoint::hit("backup_delete.after_commit")?;
    match &backup.prefix {
        Some(prefix) => engine::archive::delete(&app.vault.store, prefix),
        None => Ok(()),
    }
}

/// Removes the copy of a backup of a remote store from the local folder; what stays is swept later.
pub(super) fn remove_local_copy(app: &App, backup: &Backup) {
    if let Some(copy) = &backup.copy
        && copy.storage_id.is_none()
        && copy.host.as_ref() == Some(&app.host)
        && copy.at.is_some()
        && let Err(error) = engine::archive::delete(&app.vault.store, &copy.prefix)
    {
        tracing::warn!(backup.id = %backup.id, error = engine::chain(&error), "a copy does not go; it is swept later");
    }
}

/// Whether the archive is still there: its manifest is what a deletion takes away first.
fn is_whole(app: &App, backup: &Backup) -> bool {
    let (Some(prefix), Some(digest)) = (&backup.prefix, &backup.manifest_blake3) else {
        return true;
    };
    let keys = [app.vault.signer.verifying_key()];
    engine::archive::Archive::open(&app.vault.store, prefix, &keys, Some(digest.as_str())).is_ok()
}
