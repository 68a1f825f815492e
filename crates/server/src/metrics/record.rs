//! What the catalogue says for metrics: point look-ups for each instance, and what is unfinished.

use crate::backup::quota_record::{self, Standing};
use crate::catalog::{Error, Tx};
use crate::hosts::record as hosts;
use crate::ids::{InstanceId, Moment, ProjectId};
use crate::schedule::objective::Objective;
use crate::schedule::objective_record;

/// What is told of an instance.
#[derive(Debug)]
pub struct Seen {
    /// Its id.
    pub id: InstanceId,
    /// Its project.
    pub project: ProjectId,
    /// Its name.
    pub name: String,
    /// Its status, in the table's word.
    pub status: String,
    /// When the newest backup that can be restored was accepted.
    pub newest_at: Option<Moment>,
    /// When the newest proven backup was accepted.
    pub newest_proven_at: Option<Moment>,
    /// When the last drill ended.
    pub drilled_at: Option<Moment>,
    /// Whether that found that the backup holds.
    pub drill_holds: Option<bool>,
    /// How old the newest backup may become.
    pub objective: Option<Objective>,
}

/// All instances that are not deleted.
///
/// # Errors
/// The catalogue failed.
pub fn instances(tx: &Tx<'_>) -> Result<Vec<Seen>, Error> {
    let mut all = tx.all(
        "SELECT id, project_id, name, status, \
         (SELECT created_at_ms FROM backup WHERE instance_id = instance.id AND status = 'succeeded' AND phase IS NULL \
         AND kind IN ('manual', 'auto') AND proof_failure IS NULL ORDER BY ordinal DESC LIMIT 1), \
         (SELECT created_at_ms FROM backup WHERE instance_id = instance.id AND status = 'succeeded' AND phase IS NULL \
         AND kind IN ('manual', 'auto') AND proof_failure IS NULL AND proof_level = 'proven' ORDER BY ordinal DESC LIMIT 1), \
         rpo_ms, rpo_since_ms, rpo_keep_ms FROM instance WHERE status NOT IN ('deleting', 'deleted') ORDER BY id",
        (),
        |row| {
            Ok(Seen {
                id: row.get(0)?,
                project: row.get(1)?,
                name: row.get(2)?,
                status: row.get(3)?,
                newest_at: row.get(4)?,
                newest_proven_at: row.get(5)?,
                drilled_at: None,
                drill_holds: None,
                objective: objective_record::read(row, 6)?,
            })
        },
    )?;
    for seen in &mut all {
        let last = tx.one(
            "SELECT verification.finished_at_ms, verification.status = 'holds' FROM schedule \
             JOIN verification ON verification.schedule_id = schedule.id \
             WHERE schedule.instance_id = ?1 AND schedule.deleted_at_ms IS NULL AND schedule.task = 'drill' AND verification.finished_at_ms IS NOT NULL \
             ORDER BY verification.finished_at_ms DESC LIMIT 1",
            (&seen.id,),
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
        (seen.drilled_at, seen.drill_holds) = last.unzip();
    }
    Ok(all)
}

/// Jobs that have not ended, by kind and state, and when the oldest of each was accepted.
///
/// # Errors
/// The catalogue failed.
pub fn jobs(tx: &Tx<'_>) -> Result<Vec<(String, String, u64, Moment)>, Error> {
    tx.all(
        "SELECT kind, state, count(*), min(created_at_ms) FROM job WHERE state <> 'done' GROUP BY kind, state ORDER BY kind, state",
        (),
        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)),
    )
}

/// How many nodes there are, by state. One of a catalogue that is not shared is there: it says so when it starts, and never again.
///
/// # Errors
/// The catalogue failed.
pub fn nodes(tx: &Tx<'_>, is_shared: bool) -> Result<[(&'static str, usize); 2], Error> {
    let (all, now) = (hosts::all(tx)?, tx.clock()?);
    let is_lost = |host: &&hosts::Host| is_shared && host.lost_at < now;
    let lost = all.iter().filter(is_lost).count();
    Ok([("alive", all.len() - lost), ("lost", lost)])
}

/// Projects that have a quota, and where they stand.
///
/// # Errors
/// The catalogue failed.
pub fn quotas(tx: &Tx<'_>) -> Result<Vec<(ProjectId, Standing)>, Error> {
    quota_record::limited(tx)
}

/// Rows that the mirror has not been told of, by project.
///
/// # Errors
/// The catalogue failed.
pub fn unsent(tx: &Tx<'_>) -> Result<Vec<(ProjectId, u64)>, Error> {
    tx.all(
        "SELECT project.id, (SELECT count(*) FROM outbox WHERE outbox.project_id = project.id) FROM project ORDER BY id",
        (),
        |row| Ok((row.get(0)?, row.get(1)?)),
    )
}
