//! Objectives on the rows of their instances, what they are judged by, and the SQL of both.

use super::objective::{Newest, Objective, Tried};
use crate::catalog::{Error, Row, Tx};
use crate::ids::{InstanceId, Moment};
use crate::instance::OwnedInstance;

/// Reads three columns from `first` on.
///
/// # Errors
/// The row is unreadable.
pub fn read(row: &Row<'_>, first: usize) -> Result<Option<Objective>, Error> {
    let rpo_ms: Option<i64> = row.get(first)?;
    rpo_ms
        .map(|rpo_ms| {
            Ok(Objective {
                rpo_ms,
                since: row.get(first + 1)?,
                keep_ms: row.get(first + 2)?,
            })
        })
        .transpose()
}

/// All instances that have one.
///
/// # Errors
/// The catalogue failed.
pub fn all(tx: &Tx<'_>) -> Result<Vec<(InstanceId, Objective)>, Error> {
    let rows = tx.all(
        "SELECT id, rpo_ms, rpo_since_ms, rpo_keep_ms FROM instance \
         WHERE rpo_ms IS NOT NULL AND status NOT IN ('creating', 'deleting', 'deleted') ORDER BY id",
        (),
        |row| Ok((row.get(0)?, read(row, 1)?)),
    )?;
    let with = |(id, objective): (InstanceId, Option<Objective>)| objective.map(|objective| (id, objective));
    Ok(rows.into_iter().filter_map(with).collect())
}

/// Writes it on its instance.
///
/// # Errors
/// The catalogue failed.
pub fn set(tx: &Tx<'_>, of: &OwnedInstance, objective: Option<&Objective>) -> Result<(), Error> {
    tx.execute(
        "UPDATE instance SET rpo_ms = ?2, rpo_since_ms = ?3, rpo_keep_ms = ?4 WHERE id = ?1",
        (
            &of.id,
            objective.map(|objective| objective.rpo_ms),
            objective.map(|objective| objective.since),
            objective.map(|objective| objective.keep_ms),
        ),
    )?;
    Ok(())
}

/// The newest backup that can be restored: the same ones count as for the metric of that name.
///
/// # Errors
/// The catalogue failed.
pub fn newest(tx: &Tx<'_>, instance: &InstanceId) -> Result<Option<Newest>, Error> {
    tx.one(
        "SELECT created_at_ms, updated_at_ms - created_at_ms, coalesce(execution_at_ms, created_at_ms) FROM backup WHERE instance_id = ?1 AND status = 'succeeded' \
         AND phase IS NULL AND kind IN ('manual', 'auto') AND proof_failure IS NULL ORDER BY ordinal DESC LIMIT 1",
        (instance,),
        |row| {
            Ok(Newest {
                // A record is never older than the one before it, which a clock that was ahead may have made: when its job began is
                // told by the clock alone.
                at: row.get::<Moment>(0)?.min(row.get(2)?),
                took_ms: row.get::<i64>(1)?.max(0),
            })
        },
    )
}

/// The newest try, in the order in which they were made: whatever the clock said.
///
/// # Errors
/// The catalogue failed.
pub fn tried(tx: &Tx<'_>, instance: &InstanceId, schedule: &str) -> Result<Option<Tried>, Error> {
    tx.one(
        "SELECT try_number, status, updated_at_ms, due_at_ms FROM backup WHERE instance_id = ?1 AND schedule_id = ?2 \
         ORDER BY ordinal DESC LIMIT 1",
        (instance, schedule),
        |row| {
            Ok(Tried {
                number: row.get(0)?,
                status: row.get(1)?,
                at: row.get(2)?,
                begun: row.get(3)?,
            })
        },
    )
}
