//! What a host does as long as it is there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use engine::{Lease, uptime};

use super::{Duty, announce, record};
use crate::app::App;
use crate::catalog::{Error, Tx};
use crate::ids::{InstanceId, Moment};
use crate::limits;
use crate::restore::command::available_memory;

/// The duty of whoever begins what is due and tidies up.
const SCHEDULER: &str = "scheduler";

/// Says every third of a lease that we are there, takes and renews the scheduler's duty, and learns what others have seen. Until
/// the service stops; one thread calls this.
pub fn run(app: &Arc<App>, closing: &AtomicBool) {
    let length = app.config.lease;
    while !closing.load(Ordering::SeqCst) {
        // Before the transaction: what that takes counts.
        let until = uptime() + limits::lease_holds(length);
        let pause = match app.catalog.write(|tx| beat(app, tx, length)) {
            Ok(beat) => {
                app.board.learn_memory(beat.memory);
                if !beat.is_known {
                    tracing::warn!("this node was forgotten, and is back");
                    if let Err(error) = announce(app) {
                        tracing::warn!(
                            error = engine::chain(&error),
                            "cannot say that this node is there"
                        );
                    }
                }
                go_on(&app.duty, beat.duty, until);
                length / 3
            }
            Err(error) => {
                tracing::warn!(
                    error = engine::chain(&error),
                    "cannot say that this node is there; trying again"
                );
                Duration::from_secs(1).min(length / 3)
            }
        };
        let next = uptime() + pause;
        while uptime() < next && !closing.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    *app.duty.held() = None;
    if let Err(error) = app
        .catalog
        .write(|tx| record::give_duty_up(tx, SCHEDULER, &app.host))
    {
        tracing::warn!(
            error = engine::chain(&error),
            "the scheduler's duty is not given up; it ends by itself"
        );
    }
}

/// What a beat found out.
struct Beat {
    is_known: bool,
    duty: Option<Duration>,
    memory: Vec<(InstanceId, u64)>,
}

fn beat(app: &App, tx: &Tx<'_>, length: Duration) -> Result<Beat, Error> {
    let is_known = record::beat(tx, &app.host, length, available_memory())?;
    for (instance, bytes) in app.board.memory_to_tell() {
        record::set_memory(tx, &instance, bytes)?;
    }
    let memory = record::memory(tx)?;
    let duty = match app.config.roles.scheduler {
        // Who takes over within some leases goes on with it: nothing was due while the service was away.
        true => record::take_duty(tx, SCHEDULER, &app.host, length, length * 3)?,
        false => None,
    };
    Ok(Beat {
        is_known,
        duty,
        memory,
    })
}

/// `age`: for how long somebody has had the duty; `None`: it is another host's.
fn go_on(duty: &Duty, age: Option<Duration>, until: Duration) {
    let mut held = duty.held();
    match (age, held.as_ref()) {
        (Some(_), Some((lease, _))) if !lease.is_over() => lease.extend(until),
        (Some(age), _) => {
            tracing::info!("this node is the scheduler");
            let age = i64::try_from(age.as_millis()).unwrap_or(0);
            *held = Some((Lease::until(until), Moment(Moment::now().0.saturating_sub(age))));
        }
        (None, _) => *held = None,
    }
}
