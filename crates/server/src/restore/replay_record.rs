//! What the record of a restore has besides where the backup is applied key by key: its SQL.

use std::collections::BTreeSet;

use engine::replay::Outcome;

use super::account;
use super::options::Options;
use super::record::TargetState;
use crate::catalog::{Error, Tx, params};
use crate::ids::{BackupId, InstanceId, Moment, RestoreId};
use crate::instance::OwnedId;

/// What is decided by.
#[derive(Debug)]
pub struct Replay {
    /// What becomes of which keys.
    pub options: Options,
    /// The backup of the target from before.
    pub safety: Option<BackupId>,
    /// Databases that are written to, none for all; `None`: nothing is written yet.
    pub dbs: Option<BTreeSet<u32>>,
}

/// The record's part, where it has one.
///
/// # Errors
/// The catalogue failed.
pub fn load(tx: &Tx<'_>, id: &RestoreId) -> Result<Option<Replay>, Error> {
    let found = tx.one(
        "SELECT options, safety_backup_id, dbs FROM restore WHERE id = ?1 AND options IS NOT NULL",
        (id,),
        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
    )?;
    found.map(read).transpose()
}

/// Reads the columns.
///
/// # Errors
/// [`Error::Unreadable`].
pub fn read((options, safety, dbs): (String, Option<BackupId>, Option<String>)) -> Result<Replay, Error> {
    let unreadable = |error| Error::Unreadable(format!("these are no options of a restore: {error}"));
    Ok(Replay {
        options: serde_json::from_str(&options).map_err(unreadable)?,
        safety,
        dbs: dbs
            .map(|text| serde_json::from_str(&text).map_err(unreadable))
            .transpose()?,
    })
}

/// Waiting → Running, or Running again after a crash: what the target holds stays as it was written down. `false`: the record
/// has ended.
///
/// # Errors
/// The catalogue failed.
pub fn begin(tx: &Tx<'_>, id: &RestoreId, now: Moment) -> Result<bool, Error> {
    let changed = tx.execute(
        "UPDATE restore SET status = 'running', phase = 'preparing', started_at_ms = coalesce(started_at_ms, ?2), \
         updated_at_ms = ?2 WHERE id = ?1 AND status IN ('waiting', 'running')",
        (id, now),
    )?;
    Ok(changed == 1)
}

/// Writes down the safety point.
///
/// # Errors
/// The catalogue failed.
pub fn saved(tx: &Tx<'_>, id: &RestoreId, safety: &BackupId) -> Result<(), Error> {
    tx.execute(
        "UPDATE restore SET safety_backup_id = ?2 WHERE id = ?1 AND status = 'running'",
        (id, safety),
    )?;
    Ok(())
}

/// Writes the target state of a running record, and what is written to, before the first of it is. `false`: the record has
/// ended, or is to be given up.
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
        "UPDATE restore SET target_state = ?2, dbs = ?3, updated_at_ms = ?4 \
         WHERE id = ?1 AND status = 'running' AND cancel_asked_at_ms IS NULL",
        (id, state.word(), serde_json::json!(dbs).to_string(), now),
    )?;
    Ok(changed == 1)
}

/// Writes that nothing was written, of a running record that has said that it was about to be.
///
/// # Errors
/// The catalogue failed.
pub fn left_untouched(tx: &Tx<'_>, id: &RestoreId, now: Moment) -> Result<(), Error> {
    tx.execute(
        "UPDATE restore SET target_state = 'untouched', dbs = NULL, updated_at_ms = ?2 WHERE id = ?1 AND status = 'running'",
        (id, now),
    )?;
    Ok(())
}

/// Writes what became of the keys.
///
/// # Errors
/// The catalogue failed.
pub fn counted(tx: &Tx<'_>, id: &RestoreId, outcome: &Outcome) -> Result<(), Error> {
    let account = &outcome.account;
    tx.execute(
        "UPDATE restore SET keys_applied = ?2, keys_skipped = ?3, keys_conflicting = ?4, keys_expired = ?5, keys_failed = ?6, \
         keys_removed = ?7, resumed = ?8, keys_reduced = ?9, unconfirmed = ?10 WHERE id = ?1 AND status = 'running'",
        params![
            id,
            account.applied.count,
            account.skipped.count,
            account.conflicting.count,
            account.expired.count,
            account.failed.count,
            account.removed.count,
            outcome.resumed,
            account.reduced.count,
            outcome.is_unconfirmed,
        ],
    )?;
    tx.execute(
        "INSERT INTO restore_account (restore_id, named) VALUES (?1, ?2) ON CONFLICT (restore_id) DO UPDATE SET named = excluded.named",
        (id, account::named(account).to_string()),
    )?;
    Ok(())
}

/// The first keys of each kind, as JSON.
///
/// # Errors
/// The catalogue failed.
pub fn named(tx: &Tx<'_>, of: &OwnedId, id: &RestoreId) -> Result<Option<String>, Error> {
    tx.one(
        "SELECT named FROM restore_account JOIN restore ON restore.id = restore_id WHERE restore_id = ?1 AND instance_id = ?2",
        (id, of.id()),
        |row| row.get(0),
    )
}

/// Unknown → Partial on failed records that had begun to write: the servers answer again. What they were given is not taken back by
/// then, since their clients have gone on (ADR 63).
///
/// # Errors
/// The catalogue failed.
pub fn settle_unknown(tx: &Tx<'_>, instance: &InstanceId, now: Moment) -> Result<(), Error> {
    tx.execute(
        "UPDATE restore SET target_state = 'partial', updated_at_ms = ?2 \
         WHERE instance_id = ?1 AND status = 'failed' AND target_state = 'unknown' AND method = 'replay' AND dbs IS NOT NULL",
        (instance, now),
    )?;
    Ok(())
}

/// Whether a restore or an import of this id has not ended: its folder is needed.
///
/// # Errors
/// The catalogue failed.
pub fn is_unsettled(tx: &Tx<'_>, id: &str) -> Result<bool, Error> {
    let found = tx.one(
        "SELECT 1 FROM restore WHERE id = ?1 AND status IN ('waiting', 'running') \
         UNION ALL SELECT 1 FROM migration WHERE id = ?1 AND status IN ('waiting', 'running')",
        (id,),
        |_| Ok(()),
    )?;
    Ok(found.is_some())
}

/// Seconds that a restore needs at least for the pace it is held to.
///
/// # Errors
/// The catalogue failed.
pub fn seconds_at_pace(tx: &Tx<'_>, id: &str) -> Result<u64, Error> {
    let found = tx.one(
        "SELECT options, backup.keys FROM restore JOIN backup ON backup.id = restore.backup_id WHERE restore.id = ?1 AND options IS NOT NULL",
        (id,),
        |row| Ok((row.get::<String>(0)?, row.get::<i64>(1)?)),
    )?;
    let Some((options, keys)) = found else {
        return Ok(0);
    };
    let options: Options = serde_json::from_str(&options).unwrap_or_default();
    Ok(options.seconds_at_pace(keys))
}
