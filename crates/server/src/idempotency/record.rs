//! The rows of answered calls, and their SQL.

use super::Once;
use crate::catalog::{Error, Tx};
use crate::ids::{Moment, ProjectId};

/// Fingerprint and answer of the call that had this key.
///
/// # Errors
/// The catalogue failed.
pub fn find(tx: &Tx<'_>, project: &ProjectId, key: &str) -> Result<Option<(Vec<u8>, String)>, Error> {
    tx.one(
        "SELECT fingerprint, answer FROM idempotency WHERE project_id = ?1 AND key = ?2",
        (project, key),
        |row| Ok((row.get(0)?, row.get(1)?)),
    )
}

/// Keeps the answer of a call.
///
/// # Errors
/// `Constraint` where the key is taken: the caller has looked before.
pub fn insert(tx: &Tx<'_>, project: &ProjectId, once: &Once, answer: &str, now: Moment) -> Result<(), Error> {
    tx.execute(
        "INSERT INTO idempotency (project_id, key, fingerprint, answer, created_at_ms) VALUES (?1, ?2, ?3, ?4, ?5)",
        (project, &once.key, once.fingerprint.as_slice(), answer, now),
    )?;
    Ok(())
}

/// Frees the keys of calls that were answered before this moment.
///
/// # Errors
/// The catalogue failed.
pub fn forget_before(tx: &Tx<'_>, moment: Moment) -> Result<(), Error> {
    tx.execute("DELETE FROM idempotency WHERE created_at_ms < ?1", (moment,))?;
    Ok(())
}
