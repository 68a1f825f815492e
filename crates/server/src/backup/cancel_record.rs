//! Backups that are given up, and their SQL. The cancellation is written first, as the record's phase: from then on the record
//! can only fail, and whoever works on it finds that there, in this process or another one, before a crash or after it.

use super::record::{self, FailureCode, Finished};
use crate::catalog::{Error, Tx};
use crate::ids::{BackupId, Moment};

/// Why a cancelled record failed.
pub const CANCELLED: &str = "it was cancelled";

/// Writes that a record is to be given up; asked again it stays as it was. `false`: it has ended.
///
/// # Errors
/// The catalogue failed.
pub fn ask(tx: &Tx<'_>, id: &BackupId, now: Moment) -> Result<bool, Error> {
    let changed = tx.execute(
        "UPDATE backup SET phase = 'cancelling', updated_at_ms = ?2 WHERE id = ?1 AND status IN ('waiting', 'running')",
        (id, now),
    )?;
    Ok(changed == 1)
}

/// Whether a record is to be given up.
///
/// # Errors
/// The catalogue failed.
pub fn is_asked(tx: &Tx<'_>, id: &BackupId) -> Result<bool, Error> {
    let asked = tx.one(
        "SELECT 1 FROM backup WHERE id = ?1 AND status IN ('waiting', 'running') AND phase = 'cancelling'",
        (id,),
        |_| Ok(()),
    )?;
    Ok(asked.is_some())
}

/// Waiting or Running → Failed, because it was cancelled. `false`: the record has ended otherwise.
///
/// # Errors
/// The catalogue failed.
pub fn fail(tx: &Tx<'_>, id: &BackupId, now: Moment) -> Result<bool, Error> {
    record::fail(tx, id, FailureCode::NotStarted, CANCELLED, now)
}

/// As [`record::succeed`]; Running → Failed where it is to be given up: of the two what was written first counts. `false`: it
/// did not succeed.
///
/// # Errors
/// The catalogue failed.
pub fn succeed(tx: &Tx<'_>, id: &BackupId, finished: &Finished, now: Moment) -> Result<bool, Error> {
    let has_succeeded = record::succeed(tx, id, finished, now)?;
    if !has_succeeded {
        fail(tx, id, now)?;
    }
    Ok(has_succeeded)
}
