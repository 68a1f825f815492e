//! Retention: takes away backups whose time has come.
//!
//! The record says first that it has expired, and nothing can be restored from it any more; then the files go. What a crash
//! leaves of them is swept, as after every deletion.

use super::command::remove_local_copy;
use super::record::{self, Backup};
use super::run_record as runs;
use crate::app::App;
use crate::audit::{self, Act};
use crate::catalog::{self, Tx};
use crate::ids::{InstanceId, Moment};
use crate::instance::record as instances;
use crate::schedule::keep::Verdict;
use crate::{metrics, schedule};

/// Takes away everything whose time has come by `now`. What is wrong with one instance keeps nothing of others.
///
/// # Errors
/// The catalogue failed.
pub fn take_expired(app: &App, now: Moment) -> Result<(), catalog::Error> {
    for id in app.catalog.read(|tx| runs::with_something_due(tx, now))? {
        match take_expired_of(app, &id, now) {
            Ok(()) => {}
            Err(error @ catalog::Error::Away(_)) => return Err(error),
            Err(error) => {
                tracing::error!(instance.id = %id, error = engine::chain(&error), "no backup of this instance expires");
            }
        }
    }
    Ok(())
}

fn take_expired_of(app: &App, id: &InstanceId, now: Moment) -> Result<(), catalog::Error> {
    let goes = |tx: &Tx<'_>| {
        let Some(instance) = instances::load(tx, id)? else {
            return Ok(Vec::new());
        };
        let judged = schedule::command::judged(tx, &instance, now)?.into_iter();
        let goes = judged.filter_map(|(archived, verdict)| match verdict {
            Verdict::Goes(why) => Some((archived.id, why)),
            Verdict::Stays(_) => None,
        });
        Ok::<_, catalog::Error>(goes.collect())
    };
    if app.catalog.read(goes)?.is_empty() {
        return Ok(());
    }
    // Judged again, of what is so when it is written.
    let act = Act {
        at: now,
        project: None,
        who: "scheduler".to_owned(),
        what: "ExpireBackups".to_owned(),
        subject: format!("instance_id={id}"),
    };
    let take = |tx: &Tx<'_>| {
        let mut expired = Vec::new();
        for (backup, why) in goes(tx)? {
            if runs::expire(tx, &backup, &why, now)? {
                expired.extend(record::load(tx, &backup)?);
            }
        }
        Ok::<_, catalog::Error>(expired)
    };
    let expired = audit::acting(act, || app.catalog.write(take))?;
    for backup in expired {
        tracing::info!(backup.id = %backup.id, instance.id = %backup.instance_id, why = backup.failure, "a backup has expired");
        app.counters.add(metrics::EXPIRED, &[]);
        remove(app, &backup);
    }
    Ok(())
}

/// Removes the files that lie in the local folder; those of remote stores are the sweeper's.
fn remove(app: &App, backup: &Backup) {
    let removed = engine::failpoint::hit("backup_expiry.after_commit").and_then(|()| {
        match (&backup.prefix, &backup.storage_id) {
            (Some(prefix), None) if !backup.is_elsewhere(&app.host) => {
                engine::archive::delete(&app.vault.store, prefix)
            }
            _ => Ok(()),
        }
    });
    if let Err(error) = removed {
        tracing::warn!(backup.id = %backup.id, error = engine::chain(&error), "files of an expired backup do not go; they are swept later");
    }
    remove_local_copy(app, backup);
    app.board.tidy();
}
