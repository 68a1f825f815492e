//! Schedules, drills, retention and holds on the wire.

use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

use super::error::{ApiError, json_response};
use super::page::Stamp;
use super::proofs::{VerificationList, VerificationRecord};
use super::request::{Fields, Request};
use super::routes::Reply;
use crate::backup::verification_record as verifications;
use crate::catalog::{self, Tx};
use crate::ids::{Moment, ScheduleId};
use crate::instance::{Instance, command as instances};
use crate::limits;
use crate::refusal::Refusal;
use crate::schedule::command::{self, Create};
use crate::schedule::keep::{Archived, Keeps, Verdict};
use crate::schedule::record::{Schedule, Task};
use crate::schedule::{objective, objective_record};

/// `POST /ck/v1/…/schedules`
///
/// # Errors
/// Fields that break their rule, unknown instance, a name that is taken, too many.
pub fn create(request: &Request) -> Result<Reply, ApiError> {
    let instance = request.instance_id()?;
    let fields = request.body()?;
    let task = match fields.text("task")? {
        None => Task::Backup,
        Some(word) => Task::from_word(&word).ok_or(Refusal::Parameter("task"))?,
    };
    let minutes = fields.integer("window_minutes")?;
    let wish = Create {
        name: fields.text("name")?.ok_or(Refusal::Parameter("name"))?,
        task,
        cron: fields.text("cron")?.ok_or(Refusal::Parameter("cron"))?,
        zone: fields.text("zone")?,
        window_ms: minutes.map_or(limits::WINDOW_MS_DEFAULT, |minutes| {
            minutes.saturating_mul(60_000)
        }),
        keeps: keeps(&fields)?,
    };
    let once = request.once()?;
    let id = command::create(
        &request.app,
        request.project()?,
        &instance,
        wish,
        once.as_ref(),
        request.now,
    )?;
    Ok(json_response(
        200,
        &ScheduleMade {
            schedule_id: id.to_string(),
        },
    ))
}

fn keeps(fields: &Fields) -> Result<Keeps, Refusal> {
    let Some(given) = fields.get("keep") else {
        return Ok(Keeps::default());
    };
    let given = Fields(given.as_object().ok_or(Refusal::Parameter("keep"))?.clone());
    let known = ["days", "last", "hourly", "daily", "weekly", "monthly", "yearly"];
    if given.0.keys().any(|name| !known.contains(&name.as_str())) {
        return Err(Refusal::Parameter("keep"));
    }
    let rule = |name: &'static str| {
        let count = given.integer(name)?.unwrap_or(0);
        let count = Some(count).filter(|count| (0..=limits::KEEP_MAX).contains(count));
        count
            .and_then(|count| u32::try_from(count).ok())
            .ok_or(Refusal::Parameter(name))
    };
    Ok(Keeps {
        days: rule("days")?,
        last: rule("last")?,
        hourly: rule("hourly")?,
        daily: rule("daily")?,
        weekly: rule("weekly")?,
        monthly: rule("monthly")?,
        yearly: rule("yearly")?,
    })
}

/// `GET /ck/v1/…/schedules`
///
/// # Errors
/// Unknown instance.
pub fn list(request: &Request) -> Result<Reply, ApiError> {
    let found = command::list(
        &request.app,
        request.project()?,
        &request.instance_id()?,
        request.now,
    )?;
    let schedules = found
        .iter()
        .map(|(schedule, next)| ScheduleShown::new(schedule, *next));
    Ok(json_response(
        200,
        &ScheduleList {
            schedules: schedules.collect(),
        },
    ))
}

/// `DELETE /ck/v1/…/schedules/{schedule_id}`
///
/// # Errors
/// Unknown instance or schedule.
pub fn delete(request: &Request) -> Result<Reply, ApiError> {
    let (instance, id) = (request.instance_id()?, schedule_id(request)?);
    command::delete(&request.app, request.project()?, &instance, &id, request.now)?;
    Ok(json_response(200, &json!({})))
}

/// `POST /ck/v1/…/schedules/{schedule_id}/run`
///
/// # Errors
/// Unknown instance or schedule, busy, not running, nothing to prove.
pub fn run(request: &Request) -> Result<Reply, ApiError> {
    let (instance, id) = (request.instance_id()?, schedule_id(request)?);
    let begun = command::run(&request.app, request.project()?, &instance, &id, request.now)?;
    Ok(json_response(200, &RunBegun { id: begun }))
}

fn schedule_id(request: &Request) -> Result<ScheduleId, ApiError> {
    ScheduleId::parse(request.param("schedule_id")).ok_or_else(|| Refusal::ScheduleUnknown.into())
}

/// `GET /ck/v1/…/drills`: the newest hundred drills of the instance.
///
/// # Errors
/// Unknown instance.
pub fn drills(request: &Request) -> Result<Reply, ApiError> {
    let (project, instance) = (request.project()?, request.instance_id()?);
    let found = request.app.catalog.read(|tx| {
        let owned = instances::find_with_deleted(tx, project, &instance)?;
        Ok::<_, Refusal>(verifications::drills(tx, &owned)?)
    })?;
    let verifications = found.iter().map(|row| VerificationRecord::new(request, row));
    Ok(json_response(
        200,
        &VerificationList {
            verifications: verifications.collect(),
        },
    ))
}

/// `GET /ck/v1/…/retention`: what would stay and go now, and why. Changes nothing.
///
/// # Errors
/// Unknown instance.
pub fn retention(request: &Request) -> Result<Reply, ApiError> {
    let judged = command::retention(
        &request.app,
        request.project()?,
        &request.instance_id()?,
        request.now,
    )?;
    let backups = judged
        .into_iter()
        .map(|(archived, verdict)| Judged::new(&archived, verdict));
    Ok(json_response(
        200,
        &Retention {
            backups: backups.collect(),
        },
    ))
}

/// `PUT /ck/v1/…/backups/{backup_id}/hold`
///
/// # Errors
/// Unknown instance or backup; not one that is kept; no reason.
pub fn hold(request: &Request) -> Result<Reply, ApiError> {
    let (instance, backup) = (request.instance_id()?, request.backup_id()?);
    let why = request
        .body()?
        .text("reason")?
        .ok_or(Refusal::Parameter("reason"))?;
    command::hold(&request.app, request.project()?, &instance, &backup, &why)?;
    Ok(json_response(200, &json!({})))
}

/// `DELETE /ck/v1/…/backups/{backup_id}/hold`
///
/// # Errors
/// Unknown instance or backup.
pub fn release(request: &Request) -> Result<Reply, ApiError> {
    let (instance, backup) = (request.instance_id()?, request.backup_id()?);
    command::release(&request.app, request.project()?, &instance, &backup)?;
    Ok(json_response(200, &json!({})))
}

/// `PUT /ck/v1/…/rpo`
///
/// # Errors
/// Fields that break their rule, unknown instance.
pub fn set_objective(request: &Request) -> Result<Reply, ApiError> {
    let (instance, fields) = (request.instance_id()?, request.body()?);
    // Null takes it away; nothing said is a mistake.
    if !fields.0.contains_key("objective_minutes") {
        return Err(Refusal::Parameter("objective_minutes").into());
    }
    let days = fields.integer("keep_days")?;
    let wish = fields.integer("objective_minutes")?.map(|minutes| {
        let rpo_ms = minutes.saturating_mul(60_000);
        (rpo_ms, days.map(|days| days.saturating_mul(24 * 3_600_000)))
    });
    objective::set(&request.app, request.project()?, &instance, wish, request.now)?;
    Ok(json_response(200, &json!({})))
}

/// How old the newest backup of an instance may become, and is.
#[derive(Debug, Serialize, ToSchema)]
pub struct ObjectiveShown {
    /// So many minutes
    pub objective_minutes: i64,
    /// Since when
    #[schema(value_type = String)]
    pub since: Stamp,
    /// How many days the backups that are made for it stay
    pub keep_days: i64,
    /// When the newest backup that can be restored was accepted; null: there is none
    #[schema(value_type = Option<String>)]
    pub newest_backup_at: Option<Stamp>,
    /// When the next one is begun, unless the instance is busy or others are first
    #[schema(value_type = String)]
    pub next_at: Stamp,
    /// Whether the newest one is young enough
    pub is_met: bool,
}

impl ObjectiveShown {
    /// Of an instance that has one.
    ///
    /// # Errors
    /// The catalogue failed.
    pub fn new(tx: &Tx<'_>, instance: &Instance, now: Moment) -> Result<Option<Self>, catalog::Error> {
        let Some(wanted) = &instance.objective else {
            return Ok(None);
        };
        let schedule = objective::schedule_of(&instance.id);
        let tried = objective_record::tried(tx, &instance.id, &schedule)?;
        let newest = objective::believed(objective_record::newest(tx, &instance.id)?, tried, now);
        let age_ms = now.0 - newest.map_or(wanted.since, |newest| newest.at).0;
        Ok(Some(Self {
            objective_minutes: wanted.rpo_ms / 60_000,
            since: Stamp(wanted.since),
            keep_days: wanted.keep_ms / (24 * 3_600_000),
            newest_backup_at: newest.map(|newest| Stamp(newest.at)),
            next_at: Stamp(objective::due(wanted, newest, &instance.id)),
            is_met: newest.is_some() && age_ms <= wanted.rpo_ms,
        }))
    }
}

/// The answer to a schedule that was made.
#[derive(Debug, Serialize, ToSchema)]
pub struct ScheduleMade {
    /// The schedule.
    pub schedule_id: String,
}

/// The answer to a run that was asked for.
#[derive(Debug, Serialize, ToSchema)]
pub struct RunBegun {
    /// The backup's record, or of a drill the verify's.
    pub id: String,
}

/// The schedules of an instance, by name. Its backup policy is not among them: ShowInstance has it.
#[derive(Debug, Serialize, ToSchema)]
pub struct ScheduleList {
    /// The schedules.
    pub schedules: Vec<ScheduleShown>,
}

/// One schedule.
#[derive(Debug, Serialize, ToSchema)]
pub struct ScheduleShown {
    /// The schedule.
    pub schedule_id: String,
    /// Its name.
    pub name: String,
    /// `backup`, or `drill`: the newest backup is loaded by a throw-away engine
    pub task: &'static str,
    /// Minute, hour, day, month, weekday
    pub cron: String,
    /// The time zone of those
    pub zone: String,
    /// How many minutes after it was due a run may still begin, where the service was away
    pub window_minutes: i64,
    /// Which of its backups stay; without a rule all do
    pub keep: KeepShown,
    /// When it is due next
    #[schema(value_type = Option<String>)]
    pub next_at: Option<Stamp>,
    /// When it was made
    #[schema(value_type = String)]
    pub created_at: Stamp,
}

/// Rules of retention: a backup stays if one of them wants it.
#[derive(Debug, Serialize, ToSchema)]
pub struct KeepShown {
    /// Every backup of the last so many days
    pub days: u32,
    /// The newest so many
    pub last: u32,
    /// The newest one of each of so many hours that have one
    pub hourly: u32,
    /// The same of days, in the schedule's zone
    pub daily: u32,
    /// The same of weeks
    pub weekly: u32,
    /// The same of months
    pub monthly: u32,
    /// The same of years
    pub yearly: u32,
}

impl ScheduleShown {
    fn new(row: &Schedule, next: Option<Moment>) -> Self {
        let Keeps {
            days,
            last,
            hourly,
            daily,
            weekly,
            monthly,
            yearly,
        } = row.keeps;
        Self {
            schedule_id: row.id.to_string(),
            name: row.name.clone(),
            task: row.task.word(),
            cron: row.cron.clone(),
            zone: row.zone.clone(),
            window_minutes: row.window_ms / 60_000,
            keep: KeepShown {
                days,
                last,
                hourly,
                daily,
                weekly,
                monthly,
                yearly,
            },
            next_at: next.map(Stamp),
            created_at: Stamp(row.created_at),
        }
    }
}

/// What retention would do now.
#[derive(Debug, Serialize, ToSchema)]
pub struct Retention {
    /// The backups of the instance that succeeded and have a file, newest first.
    pub backups: Vec<Judged>,
}

/// What retention would do with a backup.
#[derive(Debug, Serialize, ToSchema)]
pub struct Judged {
    /// The backup.
    pub backup_id: String,
    /// Its name.
    pub backup_name: String,
    /// When it was accepted.
    #[schema(value_type = String)]
    pub created_at: Stamp,
    /// `stays` or `goes`
    pub verdict: &'static str,
    /// Why.
    pub why: String,
}

impl Judged {
    fn new(row: &Archived, verdict: Verdict) -> Self {
        let (verdict, why) = match verdict {
            Verdict::Stays(why) => ("stays", why),
            Verdict::Goes(why) => ("goes", why),
        };
        Self {
            backup_id: row.id.to_string(),
            backup_name: row.name.clone(),
            created_at: Stamp(row.created_at),
            verdict,
            why,
        }
    }
}
