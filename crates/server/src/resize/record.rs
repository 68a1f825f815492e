//! The table of resizes and its states.
//!
//! ```text
//! Waiting ──> Running <──> Switching ──> Succeeded
//!     └──────────┴─────────────┴──────> Failed
//! ```
//! Unlike a restore's, a switch that a crash cut off before the new nodes served is not finished: clients have written to the
//! old ones since.

use crate::catalog::{Error, FromSql, Tx, Value, params};
use crate::ids::{GenerationId, InstanceId, Moment, ResizeId};
use crate::instance::layout::Layout;

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Accepted.
    Waiting,
    /// The new nodes are loaded, and follow.
    Running,
    /// Writes are about to stop, or the clients to move.
    Switching,
    /// The new nodes serve.
    Succeeded,
    /// The old ones do.
    Failed,
}

impl Status {
    const ALL: [Status; 5] = [
        Status::Waiting,
        Status::Running,
        Status::Switching,
        Status::Succeeded,
        Status::Failed,
    ];

    /// The word in the table.
    pub fn word(self) -> &'static str {
        match self {
            Status::Waiting => "waiting",
            Status::Running => "running",
            Status::Switching => "switching",
            Status::Succeeded => "succeeded",
            Status::Failed => "failed",
        }
    }
}

impl FromSql for Status {
    fn from_sql(value: Value<'_>) -> Option<Self> {
        let word = value.text()?;
        Self::ALL.into_iter().find(|status| status.word() == word)
    }
}

/// What an instance is to become.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The flavor.
    pub spec_code: String,
    /// Size in MiB.
    pub capacity_mb: i64,
    /// Of how many nodes.
    pub layout: Layout,
}

/// A row of the table.
#[derive(Debug)]
pub struct Resize {
    /// Its id.
    pub id: ResizeId,
    /// See [`Status`].
    pub status: Status,
    /// What the instance is to become.
    pub wanted: Wanted,
    /// The generation that is to serve, once it is begun.
    pub new_generation_id: Option<GenerationId>,
    /// The one that served then.
    pub old_generation_id: Option<GenerationId>,
}

/// Adds a resize that waits for its job.
///
/// # Errors
/// The catalogue failed.
pub fn insert(tx: &Tx<'_>, instance: &InstanceId, wanted: &Wanted, now: Moment) -> Result<ResizeId, Error> {
    let id = ResizeId::random();
    let Wanted {
        spec_code,
        capacity_mb,
        layout,
    } = wanted;
    tx.execute(
        "INSERT INTO resize (id, instance_id, status, spec_code, capacity_mb, cache_mode, shards, replicas, created_at_ms, \
         updated_at_ms) VALUES (?1, ?2, 'waiting', ?3, ?4, ?5, ?6, ?7, ?8, ?8)",
        params![
            &id,
            instance,
            spec_code,
            capacity_mb,
            layout.mode.word(),
            layout.shards,
            layout.replicas,
            now
        ],
    )?;
    Ok(id)
}

/// One resize.
///
/// # Errors
/// The catalogue failed.
pub fn load(tx: &Tx<'_>, id: &ResizeId) -> Result<Option<Resize>, Error> {
    tx.one(
        "SELECT id, status, spec_code, capacity_mb, cache_mode, shards, replicas, new_generation_id, old_generation_id \
         FROM resize WHERE id = ?1",
        (id,),
        |row| {
            Ok(Resize {
                id: row.get(0)?,
                status: row.get(1)?,
                wanted: Wanted {
                    spec_code: row.get(2)?,
                    capacity_mb: row.get(3)?,
                    layout: Layout {
                        mode: row.get(4)?,
                        shards: row.get(5)?,
                        replicas: row.get(6)?,
                    },
                },
                new_generation_id: row.get(7)?,
                old_generation_id: row.get(8)?,
            })
        },
    )
}

/// An attempt begins, with these generations. `false`: it is to be given up, or has ended.
///
/// # Errors
/// The catalogue failed.
pub fn begin(
    tx: &Tx<'_>,
    id: &ResizeId,
    (old, new): (&GenerationId, &GenerationId),
    now: Moment,
) -> Result<bool, Error> {
    let changed = tx.execute(
        "UPDATE resize SET status = 'running', old_generation_id = ?2, new_generation_id = ?3, updated_at_ms = ?4 \
         WHERE id = ?1 AND status IN ('waiting', 'running', 'switching') AND cancel_asked_at_ms IS NULL",
        (id, old, new, now),
    )?;
    Ok(changed == 1)
}

/// Running → Switching. `false`: it is to be given up.
///
/// # Errors
/// The catalogue failed.
pub fn intend_switch(tx: &Tx<'_>, id: &ResizeId, now: Moment) -> Result<bool, Error> {
    let changed = tx.execute(
        "UPDATE resize SET status = 'switching', updated_at_ms = ?2 \
         WHERE id = ?1 AND status = 'running' AND cancel_asked_at_ms IS NULL",
        (id, now),
    )?;
    Ok(changed == 1)
}

/// The new nodes serve; `halted_us`: how long writes waited, where that is known.
///
/// # Errors
/// The catalogue failed.
pub fn succeed(tx: &Tx<'_>, id: &ResizeId, halted_us: Option<u64>, now: Moment) -> Result<bool, Error> {
    let halted_us = halted_us.and_then(|us| i64::try_from(us).ok());
    let changed = tx.execute(
        "UPDATE resize SET status = 'succeeded', halted_us = ?2, phase = NULL, finished_at_ms = ?3, updated_at_ms = ?3 \
         WHERE id = ?1 AND status = 'switching'",
        (id, halted_us, now),
    )?;
    Ok(changed == 1)
}

/// The old nodes serve.
///
/// # Errors
/// The catalogue failed.
pub fn fail(tx: &Tx<'_>, id: &ResizeId, why: &str, now: Moment) -> Result<bool, Error> {
    let changed = tx.execute(
        "UPDATE resize SET status = 'failed', failure = ?2, phase = NULL, finished_at_ms = ?3, updated_at_ms = ?3 \
         WHERE id = ?1 AND status IN ('waiting', 'running', 'switching')",
        (id, why, now),
    )?;
    Ok(changed == 1)
}

/// Writes that it is to be given up. `false`: its switch has begun, or it has ended.
///
/// # Errors
/// The catalogue failed.
pub fn ask_to_cancel(tx: &Tx<'_>, id: &ResizeId, now: Moment) -> Result<bool, Error> {
    let changed = tx.execute(
        "UPDATE resize SET cancel_asked_at_ms = coalesce(cancel_asked_at_ms, ?2), updated_at_ms = ?2 \
         WHERE id = ?1 AND status IN ('waiting', 'running')",
        (id, now),
    )?;
    Ok(changed == 1)
}

/// Whether it is to be given up.
///
/// # Errors
/// The catalogue failed.
pub fn is_to_be_cancelled(tx: &Tx<'_>, id: &ResizeId) -> Result<bool, Error> {
    let found = tx.one(
        "SELECT 1 FROM resize WHERE id = ?1 AND cancel_asked_at_ms IS NOT NULL",
        (id,),
        |_| Ok(()),
    )?;
    Ok(found.is_some())
}

/// Writes how far it is, for who watches it.
///
/// # Errors
/// The catalogue failed.
pub fn progress(tx: &Tx<'_>, id: &ResizeId, seen: &engine::Progress, now: Moment) -> Result<(), Error> {
    let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    tx.execute(
        "UPDATE resize SET phase = ?2, bytes_done = ?3, bytes_total = ?4, keys_done = ?5, updated_at_ms = ?6 \
         WHERE id = ?1 AND status IN ('running', 'switching')",
        params![
            id,
            seen.phase,
            number(seen.bytes_done),
            number(seen.bytes_total),
            number(seen.keys_done),
            now
        ],
    )?;
    Ok(())
}

/// The newest resize of an instance, for who watches it.
#[derive(Debug)]
pub struct Watched {
    /// See [`Status`].
    pub status: Status,
    /// What the instance is to become.
    pub layout: Layout,
    /// What is being done.
    pub phase: Option<String>,
    /// Of the phase.
    pub bytes_done: i64,
    /// Of the phase; 0: not known.
    pub bytes_total: i64,
    /// Of the phase.
    pub keys_done: i64,
    /// How long writes waited, in microseconds.
    pub halted_us: Option<i64>,
    /// Why the old nodes serve.
    pub failure: Option<String>,
}

/// How the newest resize of the instance is getting on; `None`: there was none.
///
/// # Errors
/// The catalogue failed.
pub fn newest(tx: &Tx<'_>, instance: &InstanceId) -> Result<Option<Watched>, Error> {
    tx.one(NEWEST, (instance,), |row| {
        Ok(Watched {
            status: row.get(0)?,
            layout: Layout {
                mode: row.get(1)?,
                shards: row.get(2)?,
                replicas: row.get(3)?,
            },
            phase: row.get(4)?,
            bytes_done: row.get(5)?,
            bytes_total: row.get(6)?,
            keys_done: row.get(7)?,
            halted_us: row.get(8)?,
            failure: row.get(9)?,
        })
    })
}

/// See [`Tx::soon`].
///
/// # Errors
/// None in truth.
pub fn newest_soon(tx: &Tx<'_>, instance: &InstanceId) -> Result<(), Error> {
    tx.soon(NEWEST, (instance,))
}

const NEWEST: &str = "SELECT status, cache_mode, shards, replicas, phase, bytes_done, bytes_total, keys_done, halted_us, failure \
    FROM resize WHERE instance_id = ?1 ORDER BY created_at_ms DESC, id LIMIT 1";
