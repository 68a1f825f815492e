//! Copies the catalogue where the newest copy is a day old.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use engine::{Error, failpoint};

use crate::app::App;
use crate::ids::Moment;
use crate::limits;

/// For ever, at the start and every [`limits::CATALOG_COPY_LOOK_EVERY`], where the catalogue is a file. A thread of its own, as the
/// mirror's: a store that does not answer keeps nobody waiting, and it passes no places of tests.
pub fn run(app: &Arc<App>, closing: &AtomicBool) {
    failpoint::exempt_this_thread();
    let mut seen = 0;
    let mut looked: Option<Instant> = None;
    while !closing.load(Ordering::SeqCst) {
        if looked.is_none_or(|at| at.elapsed() >= limits::CATALOG_COPY_LOOK_EVERY) {
            if let Err(error) = look(app, Moment::now()) {
                tracing::warn!(
                    error = engine::chain(&error),
                    "the catalogue is not copied to the store; trying again in an hour"
                );
            }
            looked = Some(Instant::now());
        }
        seen = app.board.wait_to_tidy(seen, limits::RECONCILE_EVERY);
    }
}

fn look(app: &App, now: Moment) -> Result<(), Error> {
    super::forget_left(app)?;
    let (_, store) = super::place(app)?;
    let copies = super::list(&store, &app.vault.signer.verifying_key(), now)?;
    // One of the future was made by a clock that was ahead: it says nothing.
    let newest = copies.first().filter(|copy| copy.at <= now);
    if let Some(copy) = newest {
        app.copied_at_ms.store(copy.at.0, Ordering::SeqCst);
    }
    if newest.is_some_and(|copy| copy.at.after(limits::CATALOG_COPY_EVERY) > now) {
        return Ok(());
    }
    let made = super::make(app, now)?;
    app.copied_at_ms.store(made.copy.at.0, Ordering::SeqCst);
    tracing::info!(
        copy = made.copy.name,
        storage = made.storage,
        bytes = made.bytes,
        stored_bytes = made.stored_bytes,
        "the catalogue is copied to the store"
    );
    Ok(())
}
