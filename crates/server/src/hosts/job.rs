//! What a host does as long as it is there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use engine::{Lease, uptime};

use super::watch::Watch;
use super::{Duty, Held, announce, record};
use crate::app::App;
use crate::catalog::{Error, Tx};
use crate::ids::{HostId, InstanceId, Moment};
use crate::jobs::queue;
use crate::limits;
use crate::restore::command::available_memory;

/// The duty of whoever begins what is due and tidies up.
const SCHEDULER: &str = "scheduler";

/// Says every third of a lease that we are there, takes and renews the scheduler's duty, and learns what others have seen; from
/// `closing` on without the duty, until the service has `ended`. One thread calls this.
pub fn run(app: &Arc<App>, closing: &AtomicBool, ended: &AtomicBool) {
    let length = app.config.lease;
    let mut has_given_up = false;
    let mut watch = Watch::default();
    while !ended.load(Ordering::SeqCst) {
        let is_closing = closing.load(Ordering::SeqCst);
        if is_closing && !has_given_up {
            has_given_up = true;
            *app.duty.held() = None;
            let given_up = app
                .catalog
                .write(|tx| record::give_duty_up(tx, SCHEDULER, &app.host));
            if let Err(error) = given_up {
                tracing::warn!(
                    error = engine::chain(&error),
                    "the scheduler's duty is not given up; it ends by itself"
                );
            }
        }
        // Before the transaction: what that takes counts.
        let until = uptime() + limits::lease_holds(length);
        let is_scheduler = app.config.roles.scheduler && !is_closing;
        let pause = match app.catalog.write(|tx| beat(app, tx, length, is_scheduler)) {
            Ok(beat) => {
                app.board.learn_memory(beat.memory);
                if !beat.is_known {
                    tracing::warn!(
                        "this node was forgotten, and is back: engines of instances that were deleted meanwhile end at its next start"
                    );
                    if let Err(error) = announce(app) {
                        tracing::warn!(
                            error = engine::chain(&error),
                            "cannot say that this node is there"
                        );
                    }
                }
                go_on(&app.duty, beat.duty, until);
                let_go(app, watch.look(beat.said, uptime(), length));
                length / 3
            }
            Err(error) => {
                tracing::warn!(
                    error = engine::chain(&error),
                    "cannot say that this node is there; trying again"
                );
                // Nor can others: that they were not seen says nothing of them.
                app.duty.begin_anew();
                watch.begin_anew();
                Duration::from_secs(1).min(length / 3)
            }
        };
        let next = uptime() + pause;
        while uptime() < next && !ended.load(Ordering::SeqCst) && closing.load(Ordering::SeqCst) == is_closing
        {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Says that we are there while `work` goes on, of a process that is no service: what it is about is given up by others else.
pub fn present<T>(app: &App, work: impl FnOnce() -> T) -> T {
    /// Also where `work` panics: the thread that it waits for ends.
    struct Done<'a>(&'a AtomicBool);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    if !app.catalog.is_shared() {
        return work();
    }
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _done = Done(&is_done);
        scope.spawn(|| {
            while !is_done.load(Ordering::SeqCst) {
                let said = app
                    .catalog
                    .write(|tx| record::beat(tx, &app.host, limits::LEASE, available_memory()));
                if let Err(error) = said {
                    tracing::warn!(
                        error = engine::chain(&error),
                        "cannot say that this node is there; trying again"
                    );
                }
                let next = uptime() + limits::LEASE / 6;
                while uptime() < next && !is_done.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
        });
        work()
    })
}

/// What a beat found out.
struct Beat {
    is_known: bool,
    duty: Option<Duration>,
    memory: Vec<(InstanceId, u64)>,
    /// What others have said last.
    said: Vec<(HostId, Moment)>,
}

fn beat(app: &App, tx: &Tx<'_>, length: Duration, is_scheduler: bool) -> Result<Beat, Error> {
    let is_known = record::beat(tx, &app.host, length, available_memory())?;
    for (instance, bytes) in app.board.memory_to_tell() {
        record::set_memory(tx, &instance, bytes)?;
    }
    let memory = record::memory(tx)?;
    let mut said = record::seen(tx)?;
    said.retain(|(host, _)| *host != app.host);
    let duty = match is_scheduler {
        // Who takes over within some leases goes on with it: nothing was due while the service was away.
        true => record::take_duty(tx, SCHEDULER, &app.host, length, length * 3)?,
        false => None,
    };
    Ok(Beat {
        is_known,
        duty,
        memory,
        said,
    })
}

/// Lets others go on with what hosts had begun that are gone, where that is not in their own engines (ADR 97).
fn let_go(app: &App, gone: Vec<(HostId, Moment)>) {
    if gone.is_empty() {
        return;
    }
    let done = app.catalog.write(|tx| {
        let mut jobs = 0;
        for (host, seen) in &gone {
            jobs += queue::let_go(tx, host, *seen)?;
        }
        Ok::<_, Error>(jobs)
    });
    match done {
        Ok(0) => {}
        Ok(jobs) => tracing::warn!(
            jobs,
            "a node is gone while it wrote to servers of others: another one takes back what it wrote"
        ),
        Err(error) => tracing::warn!(
            error = engine::chain(&error),
            "cannot let others go on with the jobs of a node that is gone; trying again"
        ),
    }
}

/// `age`: for how long somebody has had the duty; `None`: it is another host's.
fn go_on(duty: &Duty, age: Option<Duration>, until: Duration) {
    let mut held = duty.held();
    match (age, held.as_ref()) {
        (Some(_), Some(held)) if !held.lease.is_over() => held.lease.extend(until),
        (Some(age), _) => {
            tracing::info!("this node is the scheduler");
            let age = i64::try_from(age.as_millis()).unwrap_or(0);
            *held = Some(Held {
                lease: Lease::until(until),
                since: Moment(Moment::now().0.saturating_sub(age)),
                whole_since: uptime(),
            });
        }
        (None, _) => *held = None,
    }
}
