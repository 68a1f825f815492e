//! How far a restore is, for who watches it: SQL of columns that decide nothing.

use super::record::{Status, TargetState};
use crate::catalog::{Error, Tx};
use crate::ids::RestoreId;
use crate::instance::OwnedId;

/// How far a restore is, for who watches it.
#[derive(Debug)]
pub struct Watched {
    /// See [`Status`].
    pub status: Status,
    /// See [`TargetState`].
    pub target_state: TargetState,
    /// What is being done.
    pub phase: Option<String>,
    /// Hundredths of a percent.
    pub progress_bp: i64,
    /// Of the phase.
    pub bytes_done: i64,
    /// Of the phase; 0: not known.
    pub bytes_total: i64,
    /// Of the phase.
    pub keys_done: i64,
    /// See [`shards_verified`].
    pub shards: serde_json::Value,
}

/// Looks how far a restore of the instance is.
///
/// # Errors
/// The catalogue failed.
pub fn watched(tx: &Tx<'_>, instance: &OwnedId, id: &RestoreId) -> Result<Option<Watched>, Error> {
    tx.one(
        "SELECT status, target_state, phase, progress_bp, bytes_done, bytes_total, keys_done, shards FROM restore \
         WHERE id = ?1 AND instance_id = ?2",
        (id, instance.id()),
        |row| {
            Ok(Watched {
                status: row.get(0)?,
                target_state: row.get(1)?,
                phase: row.get(2)?,
                progress_bp: row.get(3)?,
                bytes_done: row.get(4)?,
                bytes_total: row.get(5)?,
                keys_done: row.get(6)?,
                shards: serde_json::from_str(&row.get::<String>(7)?).unwrap_or_default(),
            })
        },
    )
}

/// Writes down what the shards hold that are loaded and verified: keys and plain bytes of each, in their order.
///
/// # Errors
/// The catalogue failed.
pub fn shards_verified(tx: &Tx<'_>, id: &RestoreId, shards: &[(u64, u64)]) -> Result<(), Error> {
    let all: Vec<serde_json::Value> = shards
        .iter()
        .map(|(keys, bytes)| serde_json::json!({"keys": keys, "bytes": bytes}))
        .collect();
    tx.execute(
        "UPDATE restore SET shards = ?2 WHERE id = ?1 AND status = 'running'",
        (id, serde_json::json!(all).to_string()),
    )?;
    Ok(())
}
