//! What people ask of schedules, and of retention.

use std::collections::BTreeMap;

use jiff::tz::TimeZone;

use super::Plan;
use super::cron::Cron;
use super::keep::{self, Archived, Keeps, Rules, Verdict};
use super::record::{self, Schedule, Task};
use crate::app::App;
use crate::backup::command as backups;
use crate::backup::run_record::{self as runs, Run};
use crate::backup::verification_record as verifications;
use crate::catalog::{self, Tx};
use crate::idempotency::{self, Once};
use crate::ids::{BackupId, InstanceId, Moment, ProjectId, ScheduleId};
use crate::instance::{Instance, command as instances};
use crate::jobs::{JobKind, queue};
use crate::limits;
use crate::refusal::Refusal;

/// A wish for a schedule, as it came.
#[derive(Debug)]
pub struct Create {
    /// Its name.
    pub name: String,
    /// What it does.
    pub task: Task,
    /// Five fields.
    pub cron: String,
    /// Of the IANA database; `None`: UTC.
    pub zone: Option<String>,
    /// See [`Schedule::window_ms`].
    pub window_ms: i64,
    /// See [`Keeps`].
    pub keeps: Keeps,
}

/// Adds a schedule, once for each `once`.
///
/// # Errors
/// Rules of the fields, unknown instance, a name that is taken, too many.
pub fn create(
    app: &App,
    project: &ProjectId,
    instance: &InstanceId,
    wish: Create,
    once: Option<&Once>,
    now: Moment,
) -> Result<ScheduleId, Refusal> {
    instances::check_name(&wish.name)?;
    let zone = wish.zone.unwrap_or_else(|| "UTC".to_owned());
    Cron::parse(&wish.cron, zone_of(&zone)?).map_err(Refusal::CronInvalid)?;
    if wish.task == Task::Drill && !wish.keeps.is_empty() {
        return Err(Refusal::Parameter("keep"));
    }
    if !(0..=limits::WINDOW_MS_MAX).contains(&wish.window_ms) {
        return Err(Refusal::Parameter("window_minutes"));
    }
    app.catalog.write(|tx| {
        idempotency::once(tx, project, once, now, || {
            let owned = instances::find(tx, project, instance)?;
            let others = record::list(tx, instance)?;
            if others.len() >= limits::SCHEDULES_MAX {
                return Err(Refusal::TooManySchedules);
            }
            if others.iter().any(|other| other.name == wish.name) {
                return Err(Refusal::ScheduleNameTaken);
            }
            let schedule = Schedule {
                id: ScheduleId::random(),
                instance_id: owned.id.clone(),
                name: wish.name.clone(),
                task: wish.task,
                cron: wish.cron.clone(),
                zone: zone.clone(),
                window_ms: wish.window_ms,
                keeps: wish.keeps,
                created_at: now,
            };
            record::insert(tx, &owned, &schedule)?;
            Ok(schedule.id)
        })
    })
}

fn zone_of(name: &str) -> Result<TimeZone, Refusal> {
    TimeZone::get(name).map_err(|_| Refusal::ZoneUnknown)
}

/// The schedules of an instance, and when each is due next.
///
/// # Errors
/// Unknown instance.
pub fn list(
    app: &App,
    project: &ProjectId,
    instance: &InstanceId,
    now: Moment,
) -> Result<Vec<(Schedule, Option<Moment>)>, Refusal> {
    let found = app.catalog.read(|tx| {
        instances::find(tx, project, instance)?;
        Ok::<_, Refusal>(record::list(tx, instance)?)
    })?;
    Ok(found
        .into_iter()
        .map(|schedule| {
            let next = plan(&schedule).and_then(|plan| plan.cron.next_after(now));
            (schedule, next)
        })
        .collect())
}

/// Deletes a schedule. The backups that it made stay until somebody deletes them.
///
/// # Errors
/// Unknown instance or schedule.
pub fn delete(
    app: &App,
    project: &ProjectId,
    instance: &InstanceId,
    id: &ScheduleId,
    now: Moment,
) -> Result<(), Refusal> {
    app.catalog.write(|tx| {
        let owned = instances::find(tx, project, instance)?;
        match record::delete(tx, &owned, id, now)? {
            true => Ok(()),
            false => Err(Refusal::ScheduleUnknown),
        }
    })
}

/// Makes a run of a schedule now, besides those that are due.
///
/// # Errors
/// Unknown instance or schedule, busy, not running, no room in the project's quota, nothing to prove.
pub fn run(
    app: &App,
    project: &ProjectId,
    instance: &InstanceId,
    id: &ScheduleId,
    now: Moment,
) -> Result<String, Refusal> {
    let begun = app.catalog.write(|tx| {
        let owned = instances::find(tx, project, instance)?;
        let schedule = record::find(tx, &owned, id)?.ok_or(Refusal::ScheduleUnknown)?;
        let plan = plan(&schedule).ok_or(Refusal::ScheduleUnknown)?;
        match schedule.task {
            Task::Backup => {
                instances::check_idle(tx, instance)?;
                instances::check_running(&owned)?;
                let run = plan.run(now, 1, now);
                let backup = runs::insert(tx, project, instance, &run, now)?;
                backups::reserve(app, tx, project, instance, &backup)?;
                queue::insert(tx, instance, JobKind::Backup, Some(backup.as_str()))?;
                Ok(backup.to_string())
            }
            Task::Drill => {
                let drilled = verifications::insert_drill(tx, instance, id.as_str(), now, 1, now)?;
                drilled.map(|id| id.to_string()).ok_or(Refusal::NotRestorable)
            }
        }
    })?;
    app.board.wake();
    app.board.tidy();
    Ok(begun)
}

impl Plan {
    /// The row of one try.
    pub fn run(&self, due: Moment, number: i64, now: Moment) -> Run<'_> {
        Run {
            schedule: &self.schedule,
            due,
            number,
            period: self.period.as_deref(),
            expires: self.keep_ms.map(|keep| Moment(now.0.saturating_add(keep))),
        }
    }
}

/// When it is due. `None`: a zone that this machine does not know any more.
pub fn plan(schedule: &Schedule) -> Option<Plan> {
    let zone = TimeZone::get(&schedule.zone).ok()?;
    Some(Plan {
        schedule: schedule.id.to_string(),
        task: schedule.task,
        cron: Cron::parse(&schedule.cron, zone).ok()?,
        window_ms: schedule.window_ms,
        since: schedule.created_at,
        keep_ms: None,
        period: None,
    })
}

/// What retention would do with the backups of an instance, newest first.
///
/// # Errors
/// Unknown instance.
pub fn retention(
    app: &App,
    project: &ProjectId,
    instance: &InstanceId,
    now: Moment,
) -> Result<Vec<(Archived, Verdict)>, Refusal> {
    app.catalog.read(|tx| {
        let owned = instances::find_with_deleted(tx, project, instance)?;
        Ok(judged(tx, &owned, now)?)
    })
}

/// The same, for who knows the instance.
///
/// # Errors
/// The catalogue failed.
pub fn judged(
    tx: &Tx<'_>,
    instance: &Instance,
    now: Moment,
) -> Result<Vec<(Archived, Verdict)>, catalog::Error> {
    let rules: BTreeMap<String, Rules> = record::list(tx, &instance.id)?
        .into_iter()
        .filter_map(|schedule| {
            let rules = Rules {
                zone: TimeZone::get(&schedule.zone).ok()?,
                name: schedule.name,
                keeps: schedule.keeps,
            };
            Some((schedule.id.to_string(), rules))
        })
        .collect();
    let archived = runs::archived(tx, &instance.id)?;
    let verdicts = keep::judge(&archived, &rules, now);
    Ok(archived.into_iter().zip(verdicts).collect())
}

/// Holds a backup: neither retention nor DeleteBackupFile takes it until it is released. Held again it has the new reason.
///
/// # Errors
/// Unknown instance or backup; not one that is kept; a reason that is empty or too long.
pub fn hold(
    app: &App,
    project: &ProjectId,
    instance: &InstanceId,
    backup: &BackupId,
    why: &str,
) -> Result<(), Refusal> {
    if why.trim().is_empty() || why.chars().count() > limits::REMARK_CHARS_MAX {
        return Err(Refusal::Parameter("reason"));
    }
    set_hold(app, project, instance, backup, Some(why))
}

/// Takes a hold back. One that is not held stays as it is.
///
/// # Errors
/// Unknown instance or backup.
pub fn release(
    app: &App,
    project: &ProjectId,
    instance: &InstanceId,
    backup: &BackupId,
) -> Result<(), Refusal> {
    set_hold(app, project, instance, backup, None)
}

fn set_hold(
    app: &App,
    project: &ProjectId,
    instance: &InstanceId,
    backup: &BackupId,
    why: Option<&str>,
) -> Result<(), Refusal> {
    app.catalog.write(|tx| {
        let owned = instances::find_with_deleted(tx, project, instance)?;
        let found = crate::backup::record::find(tx, &owned, backup)?.ok_or(Refusal::BackupUnknown)?;
        if why.is_some() && (!found.is_kept() || found.generation_id.is_some()) {
            return Err(Refusal::NotRestorable);
        }
        Ok(runs::set_hold(tx, backup, why)?)
    })
}
