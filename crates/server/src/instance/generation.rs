//! Generations: one set of processes and directories that is, was or will be an instance.
//!
//! ```text
//! Loading ──> Serving <──> Retired ──> Removing ──> Removed
//!     └────────────────────────────────────^
//! ```
//! A directory exists for every state but `Removed`; a process may exist for every state but `Removed`.

use super::OwnedId;
use super::layout::{self, Place};
use crate::catalog::{Error, FromSql, Row, Tx, Value};
use crate::ids::{GenerationId, InstanceId, Moment};

/// A row of the table.
#[derive(Debug, Clone)]
pub struct Generation {
    /// Its id, also its directory's name.
    pub id: GenerationId,
    /// Whose it is.
    pub instance_id: InstanceId,
    /// See the module.
    pub state: State,
    /// When a retired one is removed.
    pub expires_at: Option<Moment>,
    /// Its nodes, shard by shard.
    pub nodes: Vec<Place>,
}

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Being filled by a job; no client has ever seen it.
    Loading,
    /// The instance. At most one per instance, by a unique index.
    Serving,
    /// Replaced by a switch; kept for undo.
    Retired,
    /// To be removed: whoever finds it goes on.
    Removing,
    /// Gone: no process, no directory.
    Removed,
}

impl State {
    const ALL: [State; 5] = [
        State::Loading,
        State::Serving,
        State::Retired,
        State::Removing,
        State::Removed,
    ];

    /// The word in the table.
    pub fn word(self) -> &'static str {
        match self {
            State::Loading => "loading",
            State::Serving => "serving",
            State::Retired => "retired",
            State::Removing => "removing",
            State::Removed => "removed",
        }
    }
}

impl FromSql for State {
    fn from_sql(value: Value<'_>) -> Option<Self> {
        let word = value.text()?;
        Self::ALL.into_iter().find(|s| s.word() == word)
    }
}

fn row(row: &Row<'_>) -> Result<Generation, Error> {
    Ok(Generation {
        id: row.get(0)?,
        instance_id: row.get(1)?,
        state: row.get(2)?,
        expires_at: row.get(3)?,
        nodes: layout::from_json(&row.get::<String>(4)?)?,
    })
}

/// Adds a generation: before its directory is made, so that no crash leaves a directory without a row.
///
/// # Errors
/// The catalogue failed.
pub fn insert(
    tx: &Tx<'_>,
    id: &GenerationId,
    instance: &InstanceId,
    nodes: &[Place],
    now: Moment,
) -> Result<(), Error> {
    tx.execute(
        "INSERT INTO generation (id, instance_id, nodes, state, created_at_ms) VALUES (?1, ?2, ?3, 'loading', ?4)",
        (id, instance, layout::to_json(nodes), now),
    )?;
    Ok(())
}

/// `from` → `to`, once. `false` where it is in another state.
///
/// # Errors
/// The catalogue failed.
pub fn transition(tx: &Tx<'_>, id: &GenerationId, from: State, to: State) -> Result<bool, Error> {
    let changed = tx.execute(
        "UPDATE generation SET state = ?3 WHERE id = ?1 AND state = ?2",
        (id, from.word(), to.word()),
    )?;
    Ok(changed == 1)
}

/// Serving → Retired, kept until `expires_at`.
///
/// # Errors
/// The catalogue failed.
pub fn retire(tx: &Tx<'_>, id: &GenerationId, now: Moment, expires_at: Moment) -> Result<bool, Error> {
    let changed = tx.execute(
        "UPDATE generation SET state = 'retired', retired_at_ms = ?2, expires_at_ms = ?3 WHERE id = ?1 AND state = 'serving'",
        (id, now, expires_at),
    )?;
    Ok(changed == 1)
}

/// One generation.
///
/// # Errors
/// The catalogue failed.
pub fn find(tx: &Tx<'_>, id: &GenerationId) -> Result<Option<Generation>, Error> {
    tx.one(
        "SELECT id, instance_id, state, expires_at_ms, nodes FROM generation WHERE id = ?1",
        (id,),
        row,
    )
}

/// The one that serves.
///
/// # Errors
/// The catalogue failed.
pub fn serving(tx: &Tx<'_>, instance: &InstanceId) -> Result<Option<Generation>, Error> {
    tx.one(SERVING, (instance,), row)
}

/// See [`Tx::soon`].
///
/// # Errors
/// None in truth.
pub fn serving_soon(tx: &Tx<'_>, instance: &InstanceId) -> Result<(), Error> {
    tx.soon(SERVING, (instance,))
}

const SERVING: &str = "SELECT id, instance_id, state, expires_at_ms, nodes FROM generation WHERE instance_id = ?1 AND state = 'serving'";

/// Every generation of the instance that may still have a process or directory, newest retirement first.
///
/// # Errors
/// The catalogue failed.
pub fn existing(tx: &Tx<'_>, instance: &InstanceId) -> Result<Vec<Generation>, Error> {
    tx.all(
        "SELECT id, instance_id, state, expires_at_ms, nodes FROM generation WHERE instance_id = ?1 AND state <> 'removed' \
         ORDER BY retired_at_ms DESC, created_at_ms DESC",
        (instance,),
        row,
    )
}

/// The nodes of the instance's newest generation, whatever became of it; empty where it never had one.
///
/// # Errors
/// The catalogue failed.
pub fn newest_nodes(tx: &Tx<'_>, instance: &InstanceId) -> Result<Vec<Place>, Error> {
    let found = tx.one(
        "SELECT nodes FROM generation WHERE instance_id = ?1 ORDER BY created_at_ms DESC LIMIT 1",
        (instance,),
        |row| layout::from_json(&row.get::<String>(0)?),
    )?;
    Ok(found.unwrap_or_default())
}

/// What a switch has replaced and is kept for undo.
#[derive(Debug)]
pub struct Kept {
    /// The generation, or the safety point.
    pub id: String,
    /// It is removed then at the latest.
    pub expires_at: Moment,
}

/// What the instance can be brought back to.
///
/// # Errors
/// The catalogue failed.
pub fn kept(tx: &Tx<'_>, of: &OwnedId) -> Result<Vec<Kept>, Error> {
    tx.all(KEPT, (of.id(),), |row| {
        Ok(Kept {
            id: row.get(0)?,
            expires_at: row.get(1)?,
        })
    })
}

/// See [`Tx::soon`].
///
/// # Errors
/// None in truth.
pub fn kept_soon(tx: &Tx<'_>, instance: &InstanceId) -> Result<(), Error> {
    tx.soon(KEPT, (instance,))
}

const KEPT: &str = "SELECT id, expires_at_ms FROM generation \
    WHERE instance_id = ?1 AND state <> 'removed' AND state = 'retired' AND expires_at_ms IS NOT NULL \
    UNION ALL SELECT id, expires_at_ms FROM backup \
    WHERE instance_id = ?1 AND kind = 'safety' AND status = 'succeeded' AND expires_at_ms IS NOT NULL";

/// What the instance's switches have replaced and is kept for undo, the newest first.
///
/// # Errors
/// The catalogue failed.
pub fn retired(tx: &Tx<'_>, instance: &InstanceId) -> Result<Vec<Generation>, Error> {
    let mut found = existing(tx, instance)?;
    found.retain(|generation| generation.state == State::Retired);
    Ok(found)
}

/// Every generation that may still have a process or directory.
///
/// # Errors
/// The catalogue failed.
pub fn all_existing(tx: &Tx<'_>) -> Result<Vec<Generation>, Error> {
    tx.all(
        "SELECT id, instance_id, state, expires_at_ms, nodes FROM generation WHERE state <> 'removed'",
        (),
        row,
    )
}
