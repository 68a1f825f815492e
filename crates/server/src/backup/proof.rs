//! How far a backup can be trusted, found out beside whatever its instance does. The steps are in `job.rs`, and are the same
//! in the operator's process and in the service.

pub mod job;

use super::proof_record::ProofLevel;
use super::record;
use super::verification_record::{self as verifications, Verification};
use crate::app::App;
use crate::idempotency::{self, Once};
use crate::ids::{BackupId, InstanceId, Moment, ProjectId, VerificationId};
use crate::instance::command as instances;
use crate::refusal::Refusal;

/// Accepts a verify, which waits for its turn. Asked for again at the same level while it has not ended, it is the same one.
///
/// # Errors
/// Unknown instance or backup; nothing that could be verified; [`Refusal::BeingVerified`] at another level; key of another
/// request.
pub fn submit(
    app: &App,
    project: &ProjectId,
    instance: &InstanceId,
    id: &BackupId,
    level: ProofLevel,
    once: Option<&Once>,
    now: Moment,
) -> Result<VerificationId, Refusal> {
    let accepted = app.catalog.write(|tx| {
        idempotency::once(tx, project, once, now, || {
            let owned = instances::find_with_deleted(tx, project, instance)?;
            let backup = record::find(tx, &owned, id)?.ok_or(Refusal::BackupUnknown)?;
            if !backup.is_kept() {
                return Err(Refusal::NotRestorable);
            }
            if backup.generation_id.is_some() {
                return Err(Refusal::NoFile);
            }
            match verifications::unfinished_of(tx, id)? {
                Some(asked) if asked.level == level => Ok(asked.id),
                Some(_) => Err(Refusal::BeingVerified),
                None => Ok(verifications::insert(tx, id, level, now)?),
            }
        })
    })?;
    app.board.tidy();
    Ok(accepted)
}

/// Gives up the verify of a backup that has not ended; one that is at work finds that within a second or so. It says nothing of the
/// backup.
///
/// # Errors
/// Unknown instance or backup; [`Refusal::NotCancellable`].
pub fn cancel(
    app: &App,
    project: &ProjectId,
    instance: &InstanceId,
    id: &BackupId,
    now: Moment,
) -> Result<(), Refusal> {
    app.catalog.write(|tx| {
        let owned = instances::find_with_deleted(tx, project, instance)?;
        record::find(tx, &owned, id)?.ok_or(Refusal::BackupUnknown)?;
        match verifications::cancel(tx, id, now)? {
            true => Ok(()),
            false => Err(Refusal::NotCancellable(
                "no verify of this backup waits or is at work",
            )),
        }
    })
}

/// The verifies of a backup, newest first.
///
/// # Errors
/// Unknown instance or backup.
pub fn list(
    app: &App,
    project: &ProjectId,
    instance: &InstanceId,
    id: &BackupId,
) -> Result<Vec<Verification>, Refusal> {
    app.catalog.read(|tx| {
        let owned = instances::find_with_deleted(tx, project, instance)?;
        record::find(tx, &owned, id)?.ok_or(Refusal::BackupUnknown)?;
        Ok(verifications::list(tx, &owned, id)?)
    })
}
