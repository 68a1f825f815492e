//! Backups that nobody asks for: when one is due, and what is done about it.
//!
//! A run is identified by its schedule and the moment at which it is due; its tries are backup records, of which the catalogue
//! admits one for each number. So nothing is remembered but records: a run that was made is not made again, whatever crashes
//! and whatever the clock does, and a run that was not made has a record that says why. (Of a drill the records are verifies.)
//!
//! Deliberately absent: a table of runs, and timers. `job.rs` looks every few seconds at what is due by now.

pub mod command;
pub mod cron;
pub mod job;
pub mod keep;
pub mod objective;
pub mod objective_record;
pub mod overdue;
pub mod record;

use crate::backup::record::Status;
use crate::ids::Moment;
use crate::limits;
use cron::Cron;

/// When backups of an instance are due, and how they are kept.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Whose runs they are.
    pub schedule: String,
    /// What is done.
    pub task: record::Task,
    /// When.
    pub cron: Cron,
    /// How long after that a run may still begin, where the service was away.
    pub window_ms: i64,
    /// Nothing before this moment was ever due.
    pub since: Moment,
    /// How long the backups are kept; `None`: until somebody deletes them.
    pub keep_ms: Option<i64>,
    /// What the record says of the window.
    pub period: Option<String>,
}

/// One try of a run, as its record tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Try {
    /// When the run was due.
    pub due: Moment,
    /// From 1 on.
    pub number: i64,
    /// What became of it.
    pub status: Status,
}

/// What is to be done now.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// Runs that were due while nobody looked, oldest first: each gets a record.
    pub missed: Vec<Moment>,
    /// The run to be begun, and its how manieth try that is.
    pub begin: Option<(Moment, i64)>,
}

/// Decides from the newest try of the schedule alone that was due by now.
///
/// A run that failed or found the instance busy is tried again at the full hours after it was due, three times in all
/// (contract §8.2), unless the next run is due by then. What was due while the service was away is begun as long as its window
/// is open, and what was due since (`up_since`) whenever its turn comes; older runs are missed, and of many only the newest
/// are told.
pub fn decide(plan: &Plan, last: Option<Try>, up_since: Moment, now: Moment) -> Decision {
    let mut decision = Decision::default();
    let mut from = plan.since;
    if let Some(last) = last {
        if matches!(last.status, Status::Waiting | Status::Running) {
            return decision;
        }
        from = from.max(last.due);
    }
    let looked_back = match plan.task {
        record::Task::Backup => limits::MISSED_RUNS_LOOKED_BACK_MS,
        // One that is missed leaves no record, so each look would go over all of them again.
        record::Task::Drill => plan.window_ms.max(limits::MISSED_DRILLS_LOOKED_BACK_MS),
    };
    from = from.max(Moment(now.0.saturating_sub(looked_back)));
    let mut due = Vec::new();
    while let Some(next) = plan.cron.next_after(from).filter(|next| *next <= now) {
        if due.len() == limits::MISSED_RUNS_TOLD {
            due.remove(0);
        }
        due.push(next);
        from = next;
    }
    let Some(newest) = due.pop() else {
        decision.begin = last.and_then(|last| next_try(plan, last, now));
        return decision;
    };
    decision.missed = due;
    if newest >= up_since || now.0 < newest.0.saturating_add(plan.window_ms) {
        decision.begin = Some((newest, 1));
    } else {
        decision.missed.push(newest);
    }
    decision
}

fn next_try(plan: &Plan, last: Try, now: Moment) -> Option<(Moment, i64)> {
    const HOUR_MS: i64 = 3_600_000;
    let at = last.due.0.saturating_add(last.number.saturating_mul(HOUR_MS));
    let until = last
        .due
        .0
        .saturating_add(plan.window_ms.max(limits::TRIES_OF_A_RUN * HOUR_MS));
    let is_due = last.status == Status::Failed && last.number < limits::TRIES_OF_A_RUN;
    (is_due && (at..until).contains(&now.0)).then_some((last.due, last.number + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000;
    const DAY: i64 = 24 * HOUR;

    /// Due every day at 02:00, with a window of two hours.
    fn plan() -> Plan {
        Plan {
            schedule: "daily".to_owned(),
            task: record::Task::Backup,
            cron: Cron::weekly(&[1, 2, 3, 4, 5, 6, 7], 2, 0).unwrap(),
            window_ms: 2 * HOUR,
            since: Moment(0),
            keep_ms: None,
            period: None,
        }
    }

    /// Where the service has just been started.
    fn decided(plan: &Plan, last: Option<Try>, now: Moment) -> Decision {
        decide(plan, last, now, now)
    }

    fn failed(day: i64, number: i64) -> Option<Try> {
        ended(day, number, Status::Failed)
    }

    fn ended(day: i64, number: i64, status: Status) -> Option<Try> {
        let due = Moment(day * DAY + 2 * HOUR);
        Some(Try { due, number, status })
    }

    fn at(day: i64, hour: i64) -> Moment {
        Moment(day * DAY + hour * HOUR)
    }

    fn begin(day: i64, number: i64) -> Decision {
        Decision {
            missed: Vec::new(),
            begin: Some((at(day, 2), number)),
        }
    }

    #[test]
    fn a_run_is_begun_once_when_it_is_due() {
        let nothing = Decision::default();
        assert_eq!(decided(&plan(), None, Moment(2 * HOUR - 1)), nothing);
        assert_eq!(decided(&plan(), None, at(0, 2)), begin(0, 1));
        for status in [
            Status::Waiting,
            Status::Running,
            Status::Succeeded,
            Status::Deleted,
        ] {
            assert_eq!(
                decided(&plan(), ended(0, 1, status), at(0, 3)),
                nothing,
                "{status:?}"
            );
        }
        assert_eq!(
            decided(&plan(), ended(0, 1, Status::Succeeded), at(1, 2)),
            begin(1, 1)
        );
        let later = Plan {
            since: at(0, 2),
            ..plan()
        };
        assert_eq!(
            decided(&later, None, at(0, 2)),
            nothing,
            "it was made after the hour"
        );
    }

    #[test]
    fn a_run_that_failed_is_tried_again_each_hour_and_three_times_at_most() {
        let nothing = Decision::default();
        assert_eq!(decided(&plan(), failed(0, 1), Moment(3 * HOUR - 1)), nothing);
        assert_eq!(decided(&plan(), failed(0, 1), at(0, 3)), begin(0, 2));
        assert_eq!(decided(&plan(), failed(0, 2), Moment(4 * HOUR - 1)), nothing);
        assert_eq!(decided(&plan(), failed(0, 2), at(0, 4)), begin(0, 3));
        assert_eq!(decided(&plan(), failed(0, 3), at(0, 5)), nothing);
        // The service was away: three hours after it was due nobody tries any more.
        assert_eq!(decided(&plan(), failed(0, 1), at(0, 5)), nothing);
        assert_eq!(decided(&plan(), failed(0, 1), at(1, 2)), begin(1, 1));
    }

    #[test]
    fn what_was_due_while_the_service_was_away_is_begun_in_its_window_and_told_after_it() {
        assert_eq!(decided(&plan(), None, Moment(4 * HOUR - 1)), begin(0, 1));
        let missed = |days: std::ops::Range<i64>| Decision {
            missed: days.map(|day| at(day, 2)).collect(),
            begin: None,
        };
        assert_eq!(decided(&plan(), None, at(0, 4)), missed(0..1));
        assert_eq!(
            decided(&plan(), ended(0, 1, Status::Succeeded), at(3, 5)),
            missed(1..4)
        );
        let late = decided(&plan(), failed(0, 3), at(3, 3));
        assert_eq!((late.missed.len(), late.begin), (2, Some((at(3, 2), 1))));
        assert_eq!(
            decided(&plan(), None, at(1000, 5)).missed.len(),
            limits::MISSED_RUNS_TOLD
        );
    }

    #[test]
    fn a_drill_that_was_missed_days_ago_is_not_looked_at_again() {
        let drills = Plan {
            task: record::Task::Drill,
            ..plan()
        };
        assert_eq!(decided(&drills, None, at(9, 5)).missed, [at(9, 2)]);
        assert_eq!(decided(&drills, None, at(9, 3)), begin(9, 1));
    }

    #[test]
    fn a_run_that_has_to_wait_for_others_begins_however_late() {
        let waits = |since: Moment| decide(&plan(), None, since, at(0, 20));
        assert_eq!(waits(at(0, 2)), begin(0, 1));
        assert_eq!(waits(at(0, 3)).missed.len(), 1);
    }

    #[test]
    fn a_clock_that_goes_back_has_nothing_run_again() {
        let mut last = None;
        let mut begun = std::collections::BTreeSet::new();
        for hour in 0..24 * 30 {
            // Every now and then it says what it said a day and an hour ago, or will say.
            let now = at(0, hour + [0, -25, 0, 25][hour as usize % 4]);
            let decision = decided(&plan(), last, now);
            for due in &decision.missed {
                assert!(begun.insert(*due), "{due:?} twice");
                last = Some(Try {
                    due: *due,
                    number: 3,
                    status: Status::Failed,
                });
            }
            if let Some((due, number)) = decision.begin {
                assert!(number == 1 && begun.insert(due), "{due:?} twice");
                last = Some(Try {
                    due,
                    number,
                    status: Status::Succeeded,
                });
            }
        }
        assert!(begun.len() >= 30);
    }
}
