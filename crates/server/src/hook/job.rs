//! The thread that makes the deliveries: each hook in a thread of its own, so that one that is slow keeps none of the others waiting.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::record::{self, Hook};
use super::{Message, secret_place, send};
use crate::app::App;
use crate::ids::Moment;
use crate::{catalog, limits, metrics};

/// For ever, after each job and every [`limits::RECONCILE_EVERY`].
pub fn run(app: &Arc<App>, closing: &AtomicBool) {
    let mut seen = 0;
    while !closing.load(Ordering::SeqCst) {
        // One node at a time tells them.
        let told = if app.duty.is_ours() {
            round(app, closing)
        } else {
            Ok(false)
        };
        match told {
            Ok(true) => continue,
            Ok(false) => {}
            Err(error) => tracing::error!(
                error = engine::chain(&error),
                "the hooks could not use the catalogue"
            ),
        }
        seen = app.board.wait_to_tidy(seen, limits::RECONCILE_EVERY);
    }
}

/// One turn of each hook; `true`: there is more to be told.
fn round(app: &App, closing: &AtomicBool) -> Result<bool, catalog::Error> {
    let hooks = app.catalog.read(record::all)?;
    let is_more = std::thread::scope(|scope| {
        let told: Vec<_> = hooks
            .iter()
            .map(|hook| scope.spawn(|| tell(app, hook, closing)))
            .collect();
        told.into_iter().try_fold(false, |is_more, told| {
            let left = told
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            Ok::<_, catalog::Error>(is_more || left)
        })
    })?;
    let before = Moment::now().0.saturating_sub(limits::DELIVERIES_KEPT_MS);
    let is_old = app.catalog.read(|tx| record::is_any_over(tx, Moment(before)))?;
    if is_old {
        app.catalog.write(|tx| record::forget(tx, Moment(before)))?;
    }
    Ok(is_more)
}

/// What is due, until its turn is over (`true`) or a try fails: what follows it would most likely fail as well.
fn tell(app: &App, hook: &Hook, closing: &AtomicBool) -> Result<bool, catalog::Error> {
    let secret = match app
        .vault
        .master
        .open(&secret_place(&hook.name), &hook.secret_sealed)
    {
        Ok(secret) => secret,
        Err(error) => {
            tracing::error!(hook = hook.name, %error, "a hook is not told anything");
            return Ok(false);
        }
    };
    let until = Instant::now() + limits::HOOK_TURN;
    while !closing.load(Ordering::SeqCst) && app.duty.is_ours() {
        if Instant::now() >= until {
            return Ok(true);
        }
        let Some(delivery) = app
            .catalog
            .read(|tx| record::due(tx, &hook.name, Moment::now()))?
        else {
            return Ok(false);
        };
        let sent = send(
            hook.kind,
            &hook.target,
            &secret,
            &Message::new(&delivery),
            Moment::now(),
        )
        .and_then(|()| engine::failpoint::hit("hook.sent").map_err(|error| engine::chain(&error)));
        let now = Moment::now();
        let outcome = match sent {
            Ok(()) => {
                app.catalog
                    .write(|tx| record::delivered(tx, delivery.number, now))?;
                "delivered"
            }
            Err(why) => {
                let next_at = next_try(delivery.tries, now);
                tracing::warn!(
                    hook = hook.name,
                    delivery.event,
                    delivery.tries,
                    why,
                    "a hook was not told"
                );
                if next_at.is_none() {
                    tracing::error!(
                        hook = hook.name,
                        delivery.event,
                        "it is not tried again: `cachekeep hook resend` does, once the hook works"
                    );
                }
                app.catalog
                    .write(|tx| record::refused(tx, delivery.number, &why, next_at))?;
                if next_at.is_some() { "refused" } else { "given_up" }
            }
        };
        app.counters
            .add(metrics::DELIVERIES, &[("hook", &hook.name), ("outcome", outcome)]);
        if outcome != "delivered" {
            return Ok(false);
        }
    }
    Ok(false)
}

/// Each pause is three times the one before, up to an hour.
fn next_try(tries: i64, now: Moment) -> Option<Moment> {
    if tries + 1 >= limits::DELIVERY_TRIES {
        return None;
    }
    let tripled = 3_i64.saturating_pow(u32::try_from(tries).unwrap_or(u32::MAX));
    let pause = limits::DELIVERY_PAUSE_MS
        .saturating_mul(tripled)
        .min(limits::DELIVERY_PAUSE_MS_MAX);
    Some(Moment(now.0.saturating_add(pause)))
}
