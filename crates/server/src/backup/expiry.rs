//! Retention: takes away backups whose time has come.
//!
//! The record says first that it has expired, and nothing can be restored from it any more; then the files go. What a crash
//! leaves of them is swept, as after every deletion.

use super::command::remove_local_copy;
use super::record::{self, Backup};
use super::run_record as runs;
use crate::app::App;
use crate::catalog;
use crate::ids::Moment;

/// Takes away everything whose time has come by `now`.
///
/// # Errors
/// The catalogue failed.
pub fn take_expired(app: &App, now: Moment) -> Result<(), catalog::Error> {
    for id in app.catalog.read(|tx| runs::due_to_expire(tx, now))? {
        let expired = app.catalog.write(|tx| {
            let expired = runs::expire(tx, &id, now)?;
            Ok::<_, catalog::Error>(match expired {
                true => record::load(tx, &id)?,
                false => None,
            })
        })?;
        if let Some(backup) = expired {
            tracing::info!(backup.id = %id, instance.id = %backup.instance_id, "a backup has expired");
            remove(app, &backup);
        }
    }
    Ok(())
}

/// Removes the files that lie in the local folder; those of remote stores are the sweeper's.
fn remove(app: &App, backup: &Backup) {
    let removed = engine::failpoint::hit("backup_expiry.after_commit").and_then(|()| {
        match (&backup.prefix, &backup.storage_id) {
            (Some(prefix), None) => engine::archive::delete(&app.vault.store, prefix),
            _ => Ok(()),
        }
    });
    if let Err(error) = removed {
        tracing::warn!(backup.id = %backup.id, error = engine::chain(&error), "files of an expired backup do not go; they are swept later");
    }
    remove_local_copy(app, backup);
    app.board.tidy();
}
