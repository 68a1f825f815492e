//! Objectives: how old the newest backup of an instance may become, and when one is made so that it does not (ADR 86).
//!
//! Nothing is due at a time: what the newest backup is says when the next one begins. Its tries are backup records as those of a
//! schedule's runs are, of a schedule that there is no row of.

use super::objective_record as record;
use crate::app::App;
use crate::backup::quota_record as quotas;
use crate::backup::record::{FailureCode, Status as Ended};
use crate::backup::run_record::{self as runs, Run};
use crate::catalog::{self, Tx};
use crate::ids::{InstanceId, Moment, ProjectId};
use crate::instance::layout::Mode;
use crate::instance::{Status, command as instances, record as rows};
use crate::jobs::{JobKind, queue};
use crate::refusal::Refusal;
use crate::{limits, metrics};

const MINUTE_MS: i64 = 60_000;

/// What is wanted of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Objective {
    /// How old the newest backup may become.
    pub rpo_ms: i64,
    /// Since when that is wanted.
    pub since: Moment,
    /// How long the backups that are made for it stay.
    pub keep_ms: i64,
}

/// The newest backup that can be restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Newest {
    /// When it was accepted: what was written since is not in it.
    pub at: Moment,
    /// How long it took.
    pub took_ms: i64,
}

/// The newest backup that was begun for the objective.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tried {
    /// From 1 on, since one succeeded.
    pub number: i64,
    /// What became of it.
    pub status: Ended,
    /// When it last changed.
    pub at: Moment,
    /// When it was begun, by the clock that the scheduler goes by.
    pub begun: Moment,
}

/// The newest one as far as its moment can be believed. One of the future was made by a clock that was ahead, and would put the next
/// one off for as long; what has been made for the objective since tells by the scheduler's own clock how old it is.
pub fn believed(newest: Option<Newest>, tried: Option<Tried>, now: Moment) -> Option<Newest> {
    match newest {
        Some(found) if found.at > now => tried
            .filter(|tried| tried.status == Ended::Succeeded && tried.begun <= now)
            .map(|tried| Newest {
                at: tried.begun,
                took_ms: found.took_ms,
            }),
        found => found,
    }
}

/// Whose runs they are, on their records.
pub fn schedule_of(instance: &InstanceId) -> String {
    format!("rpo-{instance}")
}

/// When the next backup is to begin.
pub fn due(objective: &Objective, newest: Option<Newest>, instance: &InstanceId) -> Moment {
    let Some(newest) = newest else {
        return objective.since;
    };
    let tenth = objective.rpo_ms / 10;
    let lead = newest
        .took_ms
        .saturating_mul(2)
        .max(tenth)
        .min(objective.rpo_ms / 2);
    // Instances that got their objective together do not stay together.
    let turn: i64 = instance
        .as_str()
        .bytes()
        .map(i64::from)
        .fold(0, |sum, byte| (sum * 31 + byte) % 997);
    let spread = tenth / 997 * turn;
    Moment(newest.at.0.saturating_add(objective.rpo_ms - lead - spread))
}

/// How manieth try is to be begun now; `None`: none.
pub fn decide(due: Moment, newest: Option<Newest>, tried: Option<Tried>, now: Moment) -> Option<i64> {
    if now < due {
        return None;
    }
    let Some(tried) = tried else { return Some(1) };
    match tried.status {
        Ended::Waiting | Ended::Running => None,
        Ended::Failed if newest.is_none_or(|newest| newest.at <= tried.at) => {
            let doublings = u32::try_from(tried.number - 1).unwrap_or(0).min(8);
            let pause = ((5 * MINUTE_MS) << doublings).min(60 * MINUTE_MS);
            // One of the future was made by a clock that was wrong: it is not waited for.
            let is_paused = (tried.at.0..tried.at.0.saturating_add(pause)).contains(&now.0);
            (!is_paused).then_some(tried.number + 1)
        }
        Ended::Failed | Ended::Succeeded | Ended::Expired | Ended::Deleted => Some(1),
    }
}

/// Gives an instance an objective: how old, and how long what is made for it stays, which is as before where it is not said. Or takes
/// it away.
///
/// # Errors
/// Out of bounds, unknown instance; [`Refusal::SingleNode`] in strict mode.
pub fn set(
    app: &App,
    project: &ProjectId,
    id: &InstanceId,
    wish: Option<(i64, Option<i64>)>,
    now: Moment,
) -> Result<(), Refusal> {
    app.catalog.write(|tx| {
        let owned = instances::find(tx, project, id)?;
        // Said again it goes on as it was: who waits for the first backup waits since then.
        let before = owned.objective;
        let objective = wish.map(|(rpo_ms, keep_ms)| Objective {
            rpo_ms,
            since: before.map_or(now, |before| before.since),
            keep_ms: keep_ms
                .or(before.map(|before| before.keep_ms))
                .unwrap_or(limits::RPO_KEEP_MS_DEFAULT)
                .max(if keep_ms.is_none() { rpo_ms } else { 0 }),
        });
        if let Some(objective) = &objective {
            if !(limits::RPO_MS_MIN..=limits::RPO_MS_MAX).contains(&objective.rpo_ms) {
                return Err(Refusal::Parameter("objective_minutes"));
            }
            // What is made for it has to be there until the next one is.
            if !(objective.rpo_ms..=limits::RPO_KEEP_MS_MAX).contains(&objective.keep_ms) {
                return Err(Refusal::Parameter("keep_days"));
            }
        }
        if app.config.strict_dcs && owned.layout.mode == Mode::Single && objective.is_some() {
            return Err(Refusal::SingleNode);
        }
        Ok(record::set(tx, &owned, objective.as_ref())?)
    })?;
    app.board.tidy();
    Ok(())
}

/// Begins what is to be begun now, what is overdue most first.
///
/// # Errors
/// The catalogue failed.
pub fn begin_due(app: &App, now: Moment) -> Result<(), catalog::Error> {
    let due = app.catalog.read(|tx| {
        let mut due = Vec::new();
        for (instance, objective) in record::all(tx)? {
            if let Some((at, _)) = decided(tx, &instance, &objective, now)? {
                due.push((at, instance));
            }
        }
        due.sort();
        Ok::<_, catalog::Error>(due)
    })?;
    let mut is_begun = false;
    for (_, instance) in due {
        is_begun |= app.catalog.write(|tx| begin(app, tx, &instance, now))?;
    }
    if is_begun {
        app.board.wake();
    }
    Ok(())
}

/// When it was due, and which try it is.
fn decided(
    tx: &Tx<'_>,
    instance: &InstanceId,
    objective: &Objective,
    now: Moment,
) -> Result<Option<(Moment, i64)>, catalog::Error> {
    let found = record::newest(tx, instance)?;
    let at = due(objective, found, instance);
    // What most looks end with: of one that is to be believed.
    if now < at && found.is_none_or(|newest| newest.at <= now) {
        return Ok(None);
    }
    let tried = record::tried(tx, instance, &schedule_of(instance))?;
    let newest = believed(found, tried, now);
    let due = match newest {
        Some(_) => due(objective, newest, instance),
        None => Moment(objective.since.0.min(now.0)),
    };
    Ok(decide(due, newest, tried, now).map(|number| (due, number)))
}

/// Decided anew, of what the catalogue says now. `true`: a job was added.
fn begin(app: &App, tx: &Tx<'_>, id: &InstanceId, now: Moment) -> Result<bool, catalog::Error> {
    let Some(instance) =
        rows::load(tx, id)?.filter(|found| !matches!(found.status, Status::Deleting | Status::Deleted))
    else {
        return Ok(false);
    };
    let Some(objective) = instance.objective else {
        return Ok(false);
    };
    let Some((due, number)) = decided(tx, id, &objective, now)? else {
        return Ok(false);
    };
    // Not even with a record: whatever has the instance may be the backup that is wanted, and ends. One that is not running may not
    // run for months: its status and its age tell that, and a record each hour would tell nothing else.
    if instance.status != Status::Running || queue::active(tx, id)?.is_some() {
        return Ok(false);
    }
    let schedule = schedule_of(id);
    let run = Run {
        schedule: &schedule,
        // Once: there is no other one of this moment.
        due: now,
        number,
        period: None,
        expires: Some(Moment(now.0.saturating_add(objective.keep_ms))),
    };
    let bytes = quotas::estimate(tx, id, app.board.memory_of(id))?;
    if let Err(exceeded) = quotas::check(tx, &instance.project_id, bytes)? {
        let (code, why) = (FailureCode::NoStore, exceeded.to_string());
        app.counters.add(metrics::SKIPPED, &[("code", &code.text())]);
        tracing::warn!(instance.id = %id, due = due.iso(), number, why, "no backup is made for the objective");
        runs::insert_skipped(tx, &instance.project_id, id, &run, code, &why, now)?;
        return Ok(false);
    }
    if runs::unfinished(tx, instance.host.as_ref())? >= limits::SCHEDULED_AT_ONCE {
        // It is begun when one of those of its host has ended.
        return Ok(false);
    }
    let backup = runs::insert(tx, &instance.project_id, id, &run, now)?;
    // There is room: it was looked for in this transaction.
    let _reserved = quotas::reserve(tx, &instance.project_id, &backup, bytes)?;
    queue::insert(tx, id, JobKind::Backup, Some(backup.as_str()))?;
    tracing::info!(instance.id = %id, backup.id = %backup, due = due.iso(), number, "a backup for the objective begins");
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 60 * MINUTE_MS;

    fn objective() -> Objective {
        Objective {
            rpo_ms: 6 * HOUR,
            since: Moment(HOUR),
            keep_ms: 48 * HOUR,
        }
    }

    fn id(number: u64) -> InstanceId {
        InstanceId::parse(&format!("00000000-0000-4000-8000-{number:012x}")).unwrap()
    }

    fn newest(at: i64, took_ms: i64) -> Option<Newest> {
        Some(Newest {
            at: Moment(at),
            took_ms,
        })
    }

    #[test]
    fn the_next_one_ends_before_the_objective_is_missed_however_long_it_takes() {
        for took_ms in [0, MINUTE_MS, HOUR, 3 * HOUR] {
            for number in 0..1000 {
                let at = due(&objective(), newest(0, took_ms), &id(number)).0;
                assert!(at + took_ms <= 6 * HOUR, "{took_ms} {at}");
                assert!(at >= 5 * HOUR / 2 - HOUR / 10, "{took_ms} {at}");
            }
        }
        assert_eq!(due(&objective(), None, &id(1)), Moment(HOUR));
    }

    #[test]
    fn a_thousand_instances_of_one_moment_are_spread_over_a_tenth_of_the_objective() {
        let mut at: Vec<i64> = (0..1000)
            .map(|n| due(&objective(), newest(0, 0), &id(n)).0)
            .collect();
        at.sort_unstable();
        let spread = at[999] - at[0];
        assert!(spread > 6 * HOUR / 10 * 9 / 10, "{spread}");
        // Of 36 minutes, in no minute more than a tenth of them all.
        let most = at
            .chunk_by(|a, b| a / MINUTE_MS == b / MINUTE_MS)
            .map(<[i64]>::len)
            .max();
        assert!(most.unwrap() < 100, "{most:?}");
    }

    #[test]
    fn what_fails_is_tried_again_ever_more_seldom_and_for_ever() {
        let failed = |number, at| {
            Some(Tried {
                number,
                status: Ended::Failed,
                at: Moment(at),
                begun: Moment(at),
            })
        };
        let due = Moment(0);
        for (number, minutes) in [(1, 5), (2, 10), (3, 20), (4, 40), (5, 60), (6, 60), (1000, 60)] {
            let tried = failed(number, HOUR);
            let at = |minutes: i64| Moment(HOUR + minutes * MINUTE_MS);
            assert_eq!(decide(due, None, tried, Moment(at(minutes).0 - 1)), None);
            assert_eq!(decide(due, None, tried, at(minutes)), Some(number + 1));
        }
        // One that has succeeded since begins anew, and a clock that was ahead is not waited for.
        assert_eq!(
            decide(due, newest(2 * HOUR, 0), failed(3, HOUR), Moment(9 * HOUR)),
            Some(1)
        );
        assert_eq!(decide(due, None, failed(1, 99 * HOUR), Moment(HOUR)), Some(2));
        assert_eq!(decide(Moment(1), None, None, Moment(0)), None);
        let running = Tried {
            number: 1,
            status: Ended::Running,
            at: Moment(0),
            begun: Moment(0),
        };
        assert_eq!(decide(due, None, Some(running), Moment(99 * HOUR)), None);
    }

    #[test]
    fn a_newest_one_of_the_future_is_not_believed_and_makes_one_backup_and_no_storm() {
        let ahead = newest(30 * 24 * HOUR, MINUTE_MS);
        let now = Moment(HOUR);
        assert_eq!(believed(ahead, None, now), None);
        assert_eq!(believed(newest(0, MINUTE_MS), None, now), newest(0, MINUTE_MS));
        let tried = |status, begun| {
            Some(Tried {
                number: 1,
                status,
                at: Moment(40 * 24 * HOUR),
                begun: Moment(begun),
            })
        };
        // Its own record may be of the future too: what the scheduler's clock said of it counts.
        assert_eq!(
            believed(ahead, tried(Ended::Succeeded, HOUR), now),
            newest(HOUR, MINUTE_MS)
        );
        for (status, begun) in [
            (Ended::Succeeded, 2 * HOUR),
            (Ended::Failed, 0),
            (Ended::Deleted, 0),
        ] {
            assert_eq!(believed(ahead, tried(status, begun), now), None);
        }
    }

    #[test]
    fn the_objective_holds_for_a_year_of_backups_of_many_lengths_and_what_people_make_counts() {
        let (mut now, mut made, mut last, mut seed) = (0_i64, 0, 0_i64, 9_u64);
        let mut next = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            seed >> 33
        };
        let mut took = MINUTE_MS;
        while now < 365 * 24 * HOUR {
            now += 3000;
            if next() % 20_000 == 0 {
                // By a person.
                last = now;
            }
            let at = due(&objective(), newest(last, took), &id(1));
            if decide(at, newest(last, took), None, Moment(now)).is_some() {
                let begun = now;
                // Up to twice as long as the one before, and at most half an hour.
                took = (took * i64::try_from(next() % 200).unwrap() / 100).clamp(1000, HOUR / 2);
                now += took;
                assert!(now - last <= 6 * HOUR, "{} minutes", (now - last) / MINUTE_MS);
                last = begun;
                made += 1;
            }
        }
        assert!((1000..2000).contains(&made), "{made}");
    }
}
