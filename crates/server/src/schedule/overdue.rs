//! Drills that are overdue: one was due, and none has held since.
//!
//! Told by schedules and verifies alone: a drill that nobody began, or for which there was no backup, leaves no record.

use std::collections::BTreeMap;

use super::record::{self as schedules, Schedule, Task};
use super::{Plan, command};
use crate::app::App;
use crate::backup::verification_record as verifications;
use crate::catalog::{Error, Tx};
use crate::ids::{InstanceId, Moment};
use crate::limits;

/// For how many milliseconds the drills of each instance are overdue, by the schedule of which they are longest; 0: they are not.
/// Absent where drills have no schedule. One that cannot be read is passed over: the scheduler tells of it.
///
/// # Errors
/// The catalogue failed.
pub fn all(tx: &Tx<'_>, now: Moment) -> Result<BTreeMap<InstanceId, i64>, Error> {
    let mut all: BTreeMap<InstanceId, i64> = BTreeMap::new();
    for (schedule, overdue_ms) in each(tx, now)? {
        let longest = all.entry(schedule.instance_id).or_default();
        *longest = overdue_ms.max(*longest);
    }
    Ok(all)
}

/// Tells the hooks of drills that have become overdue, once of each: until one holds, and then is overdue again.
///
/// # Errors
/// The catalogue failed.
pub fn tell(app: &App, now: Moment) -> Result<(), Error> {
    let untold = app.catalog.read(|tx| {
        let mut untold = Vec::new();
        for (schedule, overdue_ms) in each(tx, now)? {
            let since = Moment(now.0 - overdue_ms + limits::DRILL_GRACE_MS);
            if overdue_ms > 0 && !schedules::is_noted_overdue(tx, &schedule.id, since)? {
                untold.push((schedule, since));
            }
        }
        Ok::<_, Error>(untold)
    })?;
    for (schedule, since) in untold {
        if app
            .catalog
            .write(|tx| schedules::note_overdue(tx, &schedule.id, since))?
        {
            tracing::warn!(instance.id = %schedule.instance_id, schedule = schedule.name, since = since.iso(), "a drill is overdue");
        }
    }
    Ok(())
}

/// The schedules of drills, and for how many milliseconds each is overdue.
fn each(tx: &Tx<'_>, now: Moment) -> Result<Vec<(Schedule, i64)>, Error> {
    let mut all = Vec::new();
    for schedule in schedules::all(tx)?.into_iter().flatten() {
        if schedule.task != Task::Drill {
            continue;
        }
        let Some(plan) = command::plan(&schedule) else {
            continue;
        };
        let held = verifications::newest_held(tx, &plan.schedule, now)?;
        all.push((schedule, overdue_ms(&plan, held, now)));
    }
    Ok(all)
}

/// How long ago the first drill was due of those after `held`, which is when the newest one that held was due; 0 as long as it may
/// yet be made in time.
fn overdue_ms(plan: &Plan, held: Option<Moment>, now: Moment) -> i64 {
    let from = held.map_or(plan.since, |held| held.max(plan.since));
    let Some(due) = plan.cron.next_after(from) else {
        return 0;
    };
    let since = now.0.saturating_sub(due.0);
    match since >= limits::DRILL_GRACE_MS {
        true => since,
        false => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Catalog;
    use crate::schedule::cron::Cron;

    const HOUR: i64 = 3_600_000;
    const DAY: i64 = 24 * HOUR;

    fn at(day: i64, hour: i64) -> Moment {
        Moment(day * DAY + hour * HOUR)
    }

    #[test]
    fn a_drill_is_overdue_four_hours_after_it_was_due_until_one_holds_that_was_due_no_earlier() {
        let plan = Plan {
            schedule: "daily".to_owned(),
            task: Task::Drill,
            cron: Cron::weekly(&[1, 2, 3, 4, 5, 6, 7], 2, 0).unwrap(),
            window_ms: 2 * HOUR,
            since: at(1, 0),
            keep_ms: None,
            period: None,
        };
        let overdue = |held: Option<Moment>, now: Moment| overdue_ms(&plan, held, now);
        // None has ever held.
        assert_eq!(overdue(None, at(1, 1)), 0);
        assert_eq!(overdue(None, Moment(at(1, 6).0 - 1)), 0);
        assert_eq!(overdue(None, at(1, 6)), 4 * HOUR);
        assert_eq!(overdue(None, at(9, 2)), 8 * DAY);
        // That of the day before has.
        assert_eq!(overdue(Some(at(1, 2)), at(2, 5)), 0);
        assert_eq!(overdue(Some(at(1, 2)), at(2, 7)), 5 * HOUR);
        assert_eq!(overdue(Some(at(2, 2)), at(2, 7)), 0);
        // One that was asked for at noon is as good, until the next is due.
        assert_eq!(overdue(Some(at(1, 12)), at(2, 5)), 0);
        assert_eq!(overdue(Some(at(1, 12)), at(2, 6)), 4 * HOUR);
        // A clock that went back.
        assert_eq!(overdue(None, at(0, 0)), 0);
    }

    /// An instance with a backup, and with a schedule that is due each day at 02:00, all of one id.
    fn add(catalog: &Catalog, task: Task) -> InstanceId {
        let instance = InstanceId::random();
        let id = instance.as_str();
        catalog
            .write(|tx| {
                let nothing: &[u8] = &[];
                tx.execute(
                    "INSERT INTO project (id, name, recipient, identity_sealed, created_at_ms) VALUES (?1, ?1, 'r', ?2, 0)",
                    (id, nothing),
                )?;
                tx.execute(
                    "INSERT INTO instance (id, project_id, name, status, engine_version, capacity_mb, spec_code, bind, port, persistence, \
                     admin_password_sealed, attributes, created_at_ms, updated_at_ms) VALUES (?1, ?1, ?1, 'running', '7.0', 128, \
                     's', 'b', 1, 'none', ?2, '{}', 0, 0)",
                    (id, nothing),
                )?;
                tx.execute(
                    "INSERT INTO schedule (id, project_id, instance_id, name, task, cron, zone, window_ms, keeps, created_at_ms) \
                     VALUES (?1, ?1, ?1, 's', ?2, '0 2 * * *', 'UTC', 0, '{}', 0)",
                    (id, task.word()),
                )?;
                tx.execute(
                    "INSERT INTO backup (id, project_id, instance_id, ordinal, kind, format, name, status, created_at_ms, updated_at_ms) \
                     VALUES (?1, ?1, ?1, 1, 'manual', 'rdb', 'n', 'waiting', 0, 0)",
                    (id,),
                )?;
                Ok::<_, Error>(())
            })
            .unwrap();
        instance
    }

    /// A drill of the instance's schedule that has ended.
    fn drill(catalog: &Catalog, instance: &InstanceId, due: Moment, outcome: &str) {
        catalog
            .write(|tx| {
                tx.execute(
                    "INSERT INTO verification (id, backup_id, ordinal, level, status, schedule_id, due_at_ms, try_number, failure, \
                     created_at_ms, finished_at_ms) VALUES (?2, ?1, ?3, 'proven', ?4, ?1, ?3, 1, 'why', ?3, ?3)",
                    (instance, InstanceId::random(), due, outcome),
                )
            })
            .unwrap();
    }

    #[test]
    fn a_drill_that_nobody_began_is_told_of_each_instance_whose_schedule_it_is() {
        let folder = xtask::scratch::Scratch::new("overdue").unwrap();
        let catalog = Catalog::open(&folder.path().join("catalog.sqlite")).unwrap();
        let told = |now: Moment| catalog.read(|tx| all(tx, now)).unwrap();
        let (never, once, backed_up) = (
            add(&catalog, Task::Drill),
            add(&catalog, Task::Drill),
            add(&catalog, Task::Backup),
        );
        drill(&catalog, &once, at(0, 2), "holds");
        let first = told(at(0, 7));
        assert_eq!(
            (first.get(&never), first.get(&once)),
            (Some(&(5 * HOUR)), Some(&0))
        );
        assert_eq!(first.get(&backed_up), None);
        // What does not hold makes nothing good, nor does one of the future.
        drill(&catalog, &never, at(1, 2), "failed");
        drill(&catalog, &never, at(1, 3), "damaged");
        drill(&catalog, &never, at(9, 2), "holds");
        let second = told(at(1, 7));
        assert_eq!(second.get(&never), Some(&(DAY + 5 * HOUR)));
        assert_eq!(second.get(&once), Some(&(5 * HOUR)));
        drill(&catalog, &never, at(1, 5), "holds");
        assert_eq!(told(at(1, 7)).get(&never), Some(&0));
    }

    #[test]
    fn what_people_ask_for_and_drills_that_fail_push_out_no_drill_that_held() {
        let folder = xtask::scratch::Scratch::new("pushed-out").unwrap();
        let catalog = Catalog::open(&folder.path().join("catalog.sqlite")).unwrap();
        let instance = add(&catalog, Task::Drill);
        drill(&catalog, &instance, at(0, 2), "holds");
        let backup = crate::ids::BackupId::parse(instance.as_str()).unwrap();
        for schedule in [None, Some(instance.as_str())] {
            for number in 0..2 * limits::VERIFICATIONS_KEPT {
                let due = Moment(at(1, 0).0 + number);
                let level = crate::backup::proof_record::ProofLevel::Proven;
                catalog
                    .write(|tx| {
                        let id = verifications::insert(tx, &backup, level, due)?;
                        let status = if schedule.is_none() { "holds" } else { "failed" };
                        tx.execute(
                            "UPDATE verification SET status = ?2, failure = 'why', finished_at_ms = 0, schedule_id = ?3, due_at_ms = ?4, \
                             try_number = ?5 WHERE id = ?1",
                            (&id, status, schedule, schedule.map(|_| due), schedule.map(|_| 1)),
                        )
                    })
                    .unwrap();
            }
        }
        let (held, rows) = catalog
            .read(|tx| {
                let rows = tx.one("SELECT count(*) FROM verification", (), |row| row.get::<i64>(0))?;
                Ok::<_, Error>((verifications::newest_held(tx, instance.as_str(), at(2, 0))?, rows))
            })
            .unwrap();
        assert_eq!(held, Some(at(0, 2)));
        assert!(rows <= Some(2 * limits::VERIFICATIONS_KEPT + 1), "{rows:?}");
    }
}
