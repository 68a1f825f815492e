//! The scheduler: every few seconds it begins what is due and takes away what has expired. One thread; what it begins are jobs
//! like those that people ask for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::record::{self as schedules, Task};
use super::{Plan, Try, command, decide, objective};
use crate::app::App;
use crate::backup::record::{FailureCode, Status as Ended};
use crate::backup::run_record as runs;
use crate::backup::verification_record::{self as verifications, Status as Verified};
use crate::backup::{expiry, quota_record as quotas};
use crate::catalog::{self, Tx};
use crate::clock::{self, Leap, Steady};
use crate::ids::{InstanceId, Moment};
use crate::instance::layout::Mode;
use crate::instance::{Instance, Status, policy, record as instances};
use crate::jobs::{JobKind, queue};
use crate::{limits, metrics};

/// For ever; one thread calls this.
pub fn run(app: &Arc<App>, closing: &AtomicBool) {
    let mut steady = Steady::start(Moment::now(), clock::passed());
    let mut seen = 0;
    while !closing.load(Ordering::SeqCst) {
        let now = read(&mut steady);
        let Some(up_since) = app.duty.since() else {
            seen = app.board.wait_to_tidy(seen, limits::RECONCILE_EVERY);
            continue;
        };
        // The one does not wait for the other: a schedule that cannot be read keeps nothing from expiring.
        for done in [
            begin_due(app, up_since, now),
            objective::begin_due(app, now),
            expiry::take_expired(app, now),
        ] {
            if let Err(error) = done {
                tracing::error!(
                    error = engine::chain(&error),
                    "the scheduler could not use the catalogue"
                );
            }
        }
        seen = app.board.wait_to_tidy(seen, limits::RECONCILE_EVERY);
    }
}

fn read(steady: &mut Steady) -> Moment {
    let (now, leap) = steady.read(Moment::now(), clock::passed());
    match leap {
        Leap::None => {}
        Leap::Doubted(by_ms) => tracing::warn!(
            by_ms,
            now = now.iso(),
            "the clock was set: schedules and retention go on by the time that has passed; a restart of the service, or a day, \
             makes them follow it"
        ),
        Leap::Believed(by_ms) => tracing::warn!(
            by_ms,
            now = now.iso(),
            "schedules and retention follow the clock that was set a day ago"
        ),
    }
    now
}

/// Begins every run that is due. What is wrong with one schedule or instance stops no other one.
fn begin_due(app: &App, up_since: Moment, now: Moment) -> Result<(), catalog::Error> {
    let due = app.catalog.read(|tx| {
        let mut due = BTreeMap::new();
        for (instance, planned) in all_plans(app, tx)? {
            for plan in planned {
                let Some(last) = passed_over(newest(tx, &plan, now), &plan.schedule)? else {
                    continue;
                };
                let decision = decide(&plan, last, up_since, now);
                if let Some((at, number)) = decision.begin {
                    // Those whose turn comes first after a retry are not always the same ones.
                    due.insert(
                        (at, number, instance.clone(), plan.schedule.clone()),
                        (instance.clone(), plan),
                    );
                } else if !decision.missed.is_empty() {
                    due.insert(
                        (now, 0, instance.clone(), plan.schedule.clone()),
                        (instance.clone(), plan),
                    );
                }
            }
        }
        Ok::<_, catalog::Error>(due)
    })?;
    let (mut is_begun, mut ended) = (false, Ok(()));
    for (instance, plan) in due.into_values() {
        let begun = app
            .catalog
            .write(|tx| begin(app, tx, &instance, &plan.schedule, up_since, now));
        match passed_over(begun, &plan.schedule) {
            Ok(begun) => is_begun |= begun.unwrap_or(false),
            Err(error) => {
                ended = Err(error);
                break;
            }
        }
    }
    if is_begun {
        match engine::failpoint::hit("schedule.accepted") {
            Ok(()) => app.board.wake(),
            Err(error) => tracing::warn!(
                error = engine::chain(&error),
                "the worker finds what is due by itself"
            ),
        }
    }
    ended
}

/// `None`, and told: it went wrong for this one. An error where it would go wrong for all.
fn passed_over<T>(done: Result<T, catalog::Error>, schedule: &str) -> Result<Option<T>, catalog::Error> {
    match done {
        Ok(value) => Ok(Some(value)),
        Err(error @ catalog::Error::Away(_)) => Err(error),
        Err(error) => {
            tracing::error!(
                schedule,
                error = engine::chain(&error),
                "nothing is begun by this schedule"
            );
            Ok(None)
        }
    }
}

/// What is planned, of all instances.
fn all_plans(app: &App, tx: &Tx<'_>) -> Result<BTreeMap<InstanceId, Vec<Plan>>, catalog::Error> {
    let mut all: BTreeMap<InstanceId, Vec<Plan>> = BTreeMap::new();
    for instance in instances::with_policy(tx)? {
        let Some(instance) = passed_over(instance, "a backup policy")? else {
            continue;
        };
        all.entry(instance.id.clone())
            .or_default()
            .extend(by_policy(app, &instance));
    }
    for schedule in schedules::all(tx)? {
        let Some(schedule) = passed_over(schedule, "one that cannot be read")? else {
            continue;
        };
        all.entry(schedule.instance_id.clone())
            .or_default()
            .extend(command::plan(&schedule));
    }
    Ok(all)
}

/// What is planned for one.
fn plans(app: &App, tx: &Tx<'_>, instance: &Instance) -> Result<Vec<Plan>, catalog::Error> {
    let schedules = schedules::readable(tx, &instance.id)?;
    let by_schedule = schedules.iter().filter_map(command::plan);
    Ok(by_policy(app, instance).into_iter().chain(by_schedule).collect())
}

fn by_policy(app: &App, instance: &Instance) -> Option<Plan> {
    // Strict mode backs up what DCS backs up.
    if app.config.strict_dcs && instance.layout.mode == Mode::Single {
        return None;
    }
    instance.backup_policy.as_deref().and_then(policy::plan)
}

/// The newest try. One that found a backup damaged has done its work.
fn newest(tx: &Tx<'_>, plan: &Plan, now: Moment) -> Result<Option<Try>, catalog::Error> {
    if plan.task == Task::Backup {
        let newest = runs::newest(tx, &plan.schedule, now)?;
        return Ok(newest.map(|(due, number, status)| Try { due, number, status }));
    }
    let newest = verifications::newest_drill(tx, &plan.schedule, now)?;
    Ok(newest.map(|(due, number, status)| Try {
        due,
        number,
        status: match status {
            Verified::Waiting => Ended::Waiting,
            Verified::Running => Ended::Running,
            Verified::Holds | Verified::Damaged => Ended::Succeeded,
            Verified::Failed => Ended::Failed,
        },
    }))
}

/// Writes what is due of one schedule: decided anew, of what the catalogue says now. `true`: a job was added.
fn begin(
    app: &App,
    tx: &Tx<'_>,
    instance: &InstanceId,
    schedule: &str,
    up_since: Moment,
    now: Moment,
) -> Result<bool, catalog::Error> {
    let Some(instance) = instances::load(tx, instance)? else {
        return Ok(false);
    };
    let plan = plans(app, tx, &instance)?
        .into_iter()
        .find(|plan| plan.schedule == schedule);
    let Some(plan) = plan.filter(|_| !matches!(instance.status, Status::Deleting | Status::Deleted)) else {
        return Ok(false);
    };
    let decision = decide(&plan, newest(tx, &plan, now)?, up_since, now);
    if plan.task == Task::Drill {
        if let Some((due, number)) = decision.begin
            && let Some(id) = verifications::insert_drill(tx, &instance.id, schedule, due, number, now)?
        {
            tracing::info!(instance.id = %instance.id, verification.id = %id, schedule, due = due.iso(), number, "a drill begins");
            app.board.tidy();
        }
        return Ok(false);
    }
    let skip = |due: Moment, number: i64, code: FailureCode, why: &str| {
        app.counters.add(metrics::SKIPPED, &[("code", &code.text())]);
        tracing::warn!(instance.id = %instance.id, schedule = plan.schedule, due = due.iso(), why, "an automatic backup did not run");
        runs::insert_skipped(
            tx,
            &instance.project_id,
            &instance.id,
            &plan.run(due, number, now),
            code,
            why,
            now,
        )
    };
    for due in decision.missed {
        // No further try: that moment has passed.
        let why = "it was not begun in time: the service was not running, or had too many others to make";
        skip(due, limits::TRIES_OF_A_RUN, FailureCode::NotStarted, why)?;
    }
    let Some((due, number)) = decision.begin else {
        return Ok(false);
    };
    if let Some((kind, _)) = queue::active(tx, &instance.id)? {
        let why = format!("the instance was busy: {}", kind.word());
        skip(due, number, FailureCode::Busy, &why)?;
        return Ok(false);
    }
    if instance.status != Status::Running {
        let why = "the instance was not running";
        skip(due, number, FailureCode::NotStarted, why)?;
        return Ok(false);
    }
    if runs::unfinished(tx, instance.host.as_ref())? >= limits::SCHEDULED_AT_ONCE {
        // It is begun when one of those has ended.
        return Ok(false);
    }
    let bytes = quotas::estimate(tx, &instance.id, app.board.memory_of(&instance.id))?;
    if let Err(exceeded) = quotas::check(tx, &instance.project_id, bytes)? {
        skip(due, number, FailureCode::NoStore, &exceeded.to_string())?;
        return Ok(false);
    }
    let id = runs::insert(
        tx,
        &instance.project_id,
        &instance.id,
        &plan.run(due, number, now),
        now,
    )?;
    // There is room: it was looked for in this transaction.
    let _reserved = quotas::reserve(tx, &instance.project_id, &id, bytes)?;
    queue::insert(tx, &instance.id, JobKind::Backup, Some(id.as_str()))?;
    tracing::info!(instance.id = %instance.id, backup.id = %id, schedule = plan.schedule, due = due.iso(), number, "an automatic backup begins");
    Ok(true)
}
