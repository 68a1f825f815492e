//! Verbs on schedules, retention and holds: they call the API.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::target::{Target, plain, print_one, print_rows};
use super::{Global, Output};

/// Verbs on schedules.
#[derive(Subcommand)]
pub(crate) enum ScheduleVerb {
    /// Have an instance backed up, or its newest backup proven, by the clock
    #[command(
        after_help = "The five fields are minute, hour, day of the month, month and weekday. A backup stays if one of the --keep rules wants it; \
        without any all stay. The newest backup that can be restored, the newest proven one and what is held always stay.\n\nExamples:\n  \
        cachekeep schedule create cache1 --name nightly --cron '0 2 * * *' --zone Europe/Berlin --keep-daily 7 --keep-weekly 4\n  \
        cachekeep schedule create cache1 --name hourly --cron '15 * * * *' --keep-days 2\n  \
        cachekeep schedule create cache1 --name weekly-drill --cron '0 5 * * sun' --drill"
    )]
    Create(Create),
    /// List the schedules of an instance, and when each is due next
    #[command(after_help = "Example:\n  cachekeep schedule list cache1")]
    List {
        /// Name or id of the instance
        instance: String,
    },
    /// Show one schedule
    #[command(after_help = "Example:\n  cachekeep schedule show cache1 nightly")]
    Show {
        /// Name or id of the instance
        instance: String,
        /// Name or id of the schedule
        schedule: String,
    },
    /// Delete a schedule; the backups that it made stay until somebody deletes them
    #[command(after_help = "Example:\n  cachekeep schedule delete cache1 nightly")]
    Delete {
        /// Name or id of the instance
        instance: String,
        /// Name or id of the schedule
        schedule: String,
    },
    /// Make a run of a schedule now, besides those that are due
    #[command(after_help = "Example:\n  cachekeep schedule run cache1 nightly")]
    Run {
        /// Name or id of the instance
        instance: String,
        /// Name or id of the schedule
        schedule: String,
    },
    /// List what drills of an instance found, newest first
    #[command(after_help = "Example:\n  cachekeep schedule drills cache1")]
    Drills {
        /// Name or id of the instance
        instance: String,
    },
}

/// A schedule that is wanted.
#[derive(Args)]
pub(crate) struct Create {
    /// Name or id of the instance
    instance: String,
    /// 4 to 64 characters: a letter, then letters, digits, _ and -
    #[arg(long)]
    name: String,
    /// Minute, hour, day, month, weekday
    #[arg(long, value_name = "FIELDS")]
    cron: String,
    /// The time zone of those
    #[arg(long, default_value = "UTC")]
    zone: String,
    /// Prove the newest backup instead: a throw-away engine loads it
    #[arg(long)]
    drill: bool,
    /// How many minutes late a run may begin where the service was away
    #[arg(long, default_value_t = 24 * 60, value_name = "MINUTES")]
    window: u32,
    /// Keep every backup of the last so many days
    #[arg(long, default_value_t = 0, value_name = "COUNT")]
    keep_days: u32,
    /// Keep the newest so many
    #[arg(long, default_value_t = 0, value_name = "COUNT")]
    keep_last: u32,
    /// Keep the newest one of each of so many hours that have one
    #[arg(long, default_value_t = 0, value_name = "COUNT")]
    keep_hourly: u32,
    /// The same of days
    #[arg(long, default_value_t = 0, value_name = "COUNT")]
    keep_daily: u32,
    /// The same of weeks
    #[arg(long, default_value_t = 0, value_name = "COUNT")]
    keep_weekly: u32,
    /// The same of months
    #[arg(long, default_value_t = 0, value_name = "COUNT")]
    keep_monthly: u32,
    /// The same of years
    #[arg(long, default_value_t = 0, value_name = "COUNT")]
    keep_yearly: u32,
}

/// Verbs on retention.
#[derive(Subcommand)]
pub(crate) enum RetentionVerb {
    /// Say which backups of an instance would stay and which would go now, and why; changes nothing
    #[command(after_help = "Example:\n  cachekeep retention plan cache1")]
    Plan {
        /// Name or id of the instance
        instance: String,
    },
}

const SCHEDULE_COLUMNS: [&str; 6] = ["name", "task", "cron", "zone", "next_at", "schedule_id"];
const DRILL_COLUMNS: [&str; 6] = [
    "status",
    "engine",
    "load_ms",
    "finished_at",
    "failure",
    "backup_id",
];
const RETENTION_COLUMNS: [&str; 4] = ["backup_name", "verdict", "why", "backup_id"];

/// `cachekeep schedule ...`
///
/// # Errors
/// The service does not answer, or what it refused and why.
pub(crate) fn schedule(global: &Global, verb: &ScheduleVerb) -> anyhow::Result<ExitCode> {
    match verb {
        ScheduleVerb::Create(wish) => {
            let target = Target::find(global, &wish.instance)?;
            let made = target.ours("POST", "/schedules", Some(&json!({
                "name": wish.name, "cron": wish.cron, "zone": wish.zone, "window_minutes": wish.window,
                "task": if wish.drill { "drill" } else { "backup" },
                "keep": {"days": wish.keep_days, "last": wish.keep_last, "hourly": wish.keep_hourly, "daily": wish.keep_daily,
                         "weekly": wish.keep_weekly, "monthly": wish.keep_monthly, "yearly": wish.keep_yearly}})))?;
            print_one(global, &find(&target, &plain(&made["schedule_id"]))?);
        }
        ScheduleVerb::List { instance } => {
            let answer = Target::find(global, instance)?.ours("GET", "/schedules", None)?;
            print_rows(global, &SCHEDULE_COLUMNS, rows(&answer, "schedules"), &answer);
        }
        ScheduleVerb::Show { instance, schedule } => {
            print_one(global, &find(&Target::find(global, instance)?, schedule)?);
        }
        ScheduleVerb::Delete { instance, schedule } => {
            let target = Target::find(global, instance)?;
            let id = plain(&find(&target, schedule)?["schedule_id"]);
            target.ours("DELETE", &format!("/schedules/{id}"), None)?;
            if global.output == Output::Json {
                println!("{:#}", json!({"schedule_id": id, "deleted": true}));
            }
            if !global.quiet {
                eprintln!("deleted {schedule}; the backups that it made stay until somebody deletes them");
            }
        }
        ScheduleVerb::Run { instance, schedule } => {
            let target = Target::find(global, instance)?;
            let id = plain(&find(&target, schedule)?["schedule_id"]);
            let begun = target.ours("POST", &format!("/schedules/{id}/run"), None)?;
            print_one(global, &begun);
        }
        ScheduleVerb::Drills { instance } => {
            let answer = Target::find(global, instance)?.ours("GET", "/drills", None)?;
            print_rows(global, &DRILL_COLUMNS, rows(&answer, "verifications"), &answer);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The schedule of that name or id.
fn find(target: &Target, named: &str) -> anyhow::Result<Value> {
    let answer = target.ours("GET", "/schedules", None)?;
    let found = rows(&answer, "schedules")
        .iter()
        .find(|row| row["name"] == named || row["schedule_id"] == named);
    found.cloned().ok_or_else(|| {
        anyhow::anyhow!(
            "there is no schedule {named}: `cachekeep schedule list {}` shows all",
            target.called
        )
    })
}

fn rows<'a>(answer: &'a Value, name: &str) -> &'a [Value] {
    answer[name].as_array().map_or(&[], Vec::as_slice)
}

/// `cachekeep retention ...`
///
/// # Errors
/// The service does not answer, or what it refused and why.
pub(crate) fn retention(global: &Global, verb: &RetentionVerb) -> anyhow::Result<ExitCode> {
    let RetentionVerb::Plan { instance } = verb;
    let answer = Target::find(global, instance)?.ours("GET", "/retention", None)?;
    print_rows(global, &RETENTION_COLUMNS, rows(&answer, "backups"), &answer);
    Ok(ExitCode::SUCCESS)
}

/// `cachekeep backup hold` (with a reason) and `release`.
///
/// # Errors
/// The service does not answer, or what it refused and why.
pub(crate) fn hold(global: &Global, instance: &str, backup: &str, why: Option<&str>) -> anyhow::Result<()> {
    let target = Target::find(global, instance)?;
    let id = target.backup(backup)?;
    let path = format!("/backups/{id}/hold");
    match why {
        Some(why) => target.ours("PUT", &path, Some(&json!({"reason": why})))?,
        None => target.ours("DELETE", &path, None)?,
    };
    print_one(global, &json!({"backup_id": id, "held": why}));
    Ok(())
}
