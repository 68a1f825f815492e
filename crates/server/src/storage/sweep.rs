//! Removes stored objects that no backup needs any more: of a remote store by the places that the catalogue keeps,
//! again and again until the store has done it; of the local folder by what lies there, at the start and now and then.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use engine::defect;
use engine::store::Patience;

use crate::app::App;
use crate::backup::{place_record as places, record as backups};
use crate::catalog;
use crate::ids::{BackupId, StorageId};
use crate::limits;

/// For ever, after each job, each deletion and every [`limits::RECONCILE_EVERY`]; the local folder every
/// [`limits::SWEEP_EVERY`]. A thread of its own: a store that does not answer must not keep the reconciler from the
/// engines.
pub fn run(app: &Arc<App>, closing: &AtomicBool) {
    let mut seen = 0;
    let mut failed = HashMap::new();
    let mut swept = Instant::now();
    while !closing.load(Ordering::SeqCst) {
        let mut looked = remote(app, &mut failed, closing);
        if looked.is_ok() && swept.elapsed() >= limits::SWEEP_EVERY {
            looked = local(app);
            swept = Instant::now();
        }
        if let Err(error) = looked {
            tracing::error!(
                error = engine::chain(&error),
                "the sweeper could not read the catalogue"
            );
        }
        seen = app.board.wait_to_tidy(seen, limits::RECONCILE_EVERY);
    }
}

/// One look at all places. `failed` remembers which stores did not work and when.
fn remote(
    app: &App,
    failed: &mut HashMap<StorageId, Instant>,
    closing: &AtomicBool,
) -> Result<(), catalog::Error> {
    failed.retain(|_, at| at.elapsed() < limits::STORE_TRIED_AGAIN_AFTER);
    for place in app.catalog.read(|tx| places::useless(tx, &app.host))? {
        if closing.load(Ordering::SeqCst) || !app.duty.is_ours() {
            return Ok(());
        }
        if failed.contains_key(&place.storage_id) {
            continue;
        }
        // A job that was ended from outside may still be writing there. One that begins later writes elsewhere.
        if app.board.is_at_work(&place.instance_id) {
            continue;
        }
        let removed = super::open(app, Some(&place.storage_id))
            .and_then(|store| engine::archive::delete(&store.with_patience(Patience::SHORT), &place.prefix))
            .and_then(|()| engine::failpoint::hit("sweep.removed"));
        match removed {
            Ok(()) => app.catalog.write(|tx| places::forget(tx, &place))?,
            Err(error) => {
                tracing::warn!(
                    prefix = place.prefix,
                    error = engine::chain(&error),
                    "objects that nobody needs stay in their store; trying again"
                );
                failed.insert(place.storage_id, Instant::now());
            }
        }
    }
    Ok(())
}

/// Removes objects of the local folder that the catalogue knows to be of no backup: attempts of records that
/// failed, expired or were deleted, or succeeded with another attempt. What it does not know is left alone: it may be newer
/// than the catalogue.
///
/// # Errors
/// The catalogue failed.
pub fn local(app: &App) -> Result<(), catalog::Error> {
    for prefix in useless(app)? {
        if let Err(error) = engine::archive::delete(&app.vault.store, &prefix) {
            tracing::warn!(
                prefix,
                error = engine::chain(&error),
                "left-over objects do not go"
            );
        }
    }
    Ok(())
}

/// What [`local`] would remove.
///
/// # Errors
/// The catalogue failed.
pub fn useless(app: &App) -> Result<Vec<String>, catalog::Error> {
    // An object's name is project/instance/backup/attempt/...
    let prefixes = match app.vault.store.directories(4) {
        Ok(prefixes) => prefixes,
        Err(error) => {
            tracing::error!(error = engine::chain(&error), "cannot look into the store");
            return Ok(Vec::new());
        }
    };
    let mut useless = Vec::new();
    for prefix in prefixes {
        let Some(id) = prefix.split('/').nth(2).and_then(BackupId::parse) else {
            continue;
        };
        let keeps = app.catalog.read(|tx| backups::keeps(tx, &id, &prefix))?;
        if keeps == Some(false) || (keeps.is_none() && defect::is_planted("deleted-by-list")) {
            useless.push(prefix);
        }
    }
    Ok(useless)
}
