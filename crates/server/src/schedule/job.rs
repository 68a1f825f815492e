//! The scheduler: every few seconds it begins what is due and takes away what has expired. One thread; what it begins are jobs
//! like those that people ask for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::record::{self as schedules, Task};
use super::{Plan, Try, command, decide, objective, overdue};
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
    let mut told_at = Moment(0);
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
        // Drills are overdue by hours.
        if now.0.abs_diff(told_at.0) >= limits::OVERDUE_LOOKED_FOR_EVERY_MS {
            told_at = now;
            if let Err(error) = overdue::tell(app, now) {
                tracing::error!(
                    error = engine::chain(&error),
                    "hooks are not told of drills that are overdue"
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;
    use xtask::scratch::Scratch;

    use super::*;
    use crate::app::testing;
    use crate::ids::{HostId, ProjectId};

    const INSTANCES: i64 = 1000;
    /// Among which most of them are spread in the end.
    const HOSTS: usize = 25;
    const MINUTE: i64 = 60_000;

    fn moment(text: &str) -> Moment {
        let at: jiff::Timestamp = text.parse().unwrap();
        Moment(at.as_millisecond())
    }

    /// A thousand instances of this host, each with a policy by which a backup is due at two o'clock.
    fn add_instances(app: &App, since: Moment) {
        let project = ProjectId::random();
        let nothing: &[u8] = &[];
        let given = json!({"backup_type": "auto", "save_days": 1, "periodical_backup_plan": {
            "period_type": "weekly", "backup_at": [1, 2, 3, 4, 5, 6, 7], "begin_at": "02:00-03:00"}});
        app.catalog
            .write(|tx| {
                tx.execute(
                    "INSERT INTO project (id, name, recipient, identity_sealed, created_at_ms) VALUES (?1, ?1, 'r', ?2, 0)",
                    (&project, nothing),
                )?;
                for number in 0..INSTANCES {
                    let policy = policy::accept(&given, None, &project, false, since).unwrap();
                    tx.execute(
                        "INSERT INTO instance (id, project_id, host_id, name, status, engine_version, capacity_mb, spec_code, bind, \
                         port, persistence, admin_password_sealed, attributes, backup_policy, created_at_ms, updated_at_ms) \
                         VALUES (?1, ?2, ?3, ?1, 'running', '7.0', 128, 's', 'b', ?4, 'none', ?5, '{}', ?6, 0, 0)",
                        (
                            InstanceId::random(),
                            &project,
                            &app.host,
                            10_000 + number,
                            nothing,
                            policy,
                        ),
                    )?;
                }
                Ok::<_, catalog::Error>(())
            })
            .unwrap();
    }

    /// Gives the instances to as many hosts.
    fn spread(app: &App) {
        let hosts: Vec<HostId> = (0..HOSTS).map(|_| HostId::random()).collect();
        app.catalog
            .write(|tx| {
                let all: Vec<InstanceId> =
                    tx.all("SELECT id FROM instance ORDER BY id", (), |row| row.get(0))?;
                for (id, host) in all.iter().zip(hosts.iter().cycle()) {
                    tx.execute("UPDATE instance SET host_id = ?2 WHERE id = ?1", (id, host))?;
                }
                Ok::<_, catalog::Error>(())
            })
            .unwrap();
    }

    /// Ends all that was begun, well.
    fn end_all(app: &App) {
        app.catalog
            .write(|tx| {
                tx.execute(
                    "UPDATE backup SET status = 'succeeded', prefix = 'p', manifest_blake3 = 'm' WHERE status = 'waiting'",
                    (),
                )?;
                tx.execute(
                    "UPDATE job SET state = 'done', settled_at_ms = 1 WHERE state <> 'done'",
                    (),
                )
            })
            .unwrap();
    }

    fn count(app: &App, sql: &'static str) -> i64 {
        let found = app.catalog.read(|tx| tx.one(sql, (), |row| row.get(0)));
        found.unwrap().unwrap()
    }

    const RECORDS: &str = "SELECT count(*) FROM backup";
    const UNSETTLED: &str = "SELECT count(*) FROM job WHERE state <> 'done'";
    const MOST_OF_A_HOST: &str = "SELECT coalesce(max(jobs), 0) FROM (SELECT count(*) AS jobs FROM job WHERE state <> 'done' \
                                  GROUP BY host_id) AS hosts";

    #[test]
    fn a_thousand_instances_that_are_due_at_once_are_begun_a_few_of_a_host_at_a_time_each_once_and_none_is_missed()
     {
        // A thousand commits would take a disk longer than all else.
        let memory = Path::new("/dev/shm");
        let folder = match memory.is_dir() {
            true => Scratch::below(memory, "due").unwrap(),
            false => Scratch::new("due").unwrap(),
        };
        let app = testing::app(&folder.path().join("data"));
        let at_once = i64::try_from(limits::SCHEDULED_AT_ONCE).unwrap();
        add_instances(&app, moment("2027-03-01T00:00:00Z"));
        let up_since = moment("2027-03-01T01:00:00Z");
        begin_due(&app, up_since, moment("2027-03-01T01:59:59Z")).unwrap();
        assert_eq!(count(&app, RECORDS), 0);
        let mut now = moment("2027-03-01T02:00:05Z");
        for round in 1..=4 {
            // As often as it is looked, before one of those has ended nothing more is begun.
            for _ in 0..2 {
                begin_due(&app, up_since, now).unwrap();
                assert_eq!(count(&app, UNSETTLED), at_once);
                assert_eq!(count(&app, RECORDS), round * at_once);
            }
            end_all(&app);
            now.0 += 10 * MINUTE;
        }
        // By one host they would take hundreds of looks.
        spread(&app);
        let mut looks = 0;
        while count(&app, RECORDS) < INSTANCES {
            looks += 1;
            begin_due(&app, up_since, now).unwrap();
            let begun = count(&app, UNSETTLED);
            assert!(begun > 0, "look {looks}: those that wait are forgotten");
            assert!(count(&app, MOST_OF_A_HOST) <= at_once, "look {looks}: {begun}");
            end_all(&app);
            now.0 += 10 * MINUTE;
        }
        // Their window has long been over: whoever had to wait is not told as missed, nor made again.
        assert!(now > moment("2027-03-01T03:00:00Z"), "{now:?}");
        begin_due(&app, up_since, now).unwrap();
        for (what, sql, wanted) in [
            ("records", RECORDS, INSTANCES),
            (
                "instances",
                "SELECT count(DISTINCT instance_id) FROM backup",
                INSTANCES,
            ),
            (
                "first tries that succeeded",
                "SELECT count(*) FROM backup WHERE kind = 'auto' AND status = 'succeeded' AND try_number = 1",
                INSTANCES,
            ),
            ("moments", "SELECT count(DISTINCT due_at_ms) FROM backup", 1),
            ("jobs", "SELECT count(*) FROM job", INSTANCES),
        ] {
            assert_eq!(count(&app, sql), wanted, "{what}");
        }
        println!(
            "{INSTANCES} instances due at once: begun by {HOSTS} hosts in {looks} looks, {at_once} of each at a time"
        );
    }
}
