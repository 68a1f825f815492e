//! Writes what the outbox notes into the stores, again and again until they have it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use engine::keys::Recipient;
use engine::store::{Patience, Store};
use engine::{Error, Kind, failpoint};

use super::entry::{self, Entry, ProjectKey};
use super::record::{self, Journal, Note};
use super::{escrow, guard};
use crate::app::App;
use crate::catalog::{self, Tx};
use crate::hosts::record as hosts;
use crate::identity::record as identity;
use crate::ids::{BackupId, Moment, ProjectId, StorageId};
use crate::storage::{self, record as storages};
use crate::{instance, limits};

/// For ever, after each job, each deletion and every [`limits::RECONCILE_EVERY`]. A thread of its own: a store that
/// does not answer keeps nobody waiting. What it writes to the store is no part of any operation, so it passes no
/// places of tests but its own.
pub fn run(app: &Arc<App>, closing: &AtomicBool) {
    failpoint::reach_only("mirror.");
    let mut seen = 0;
    let mut failed: HashMap<ProjectId, Instant> = HashMap::new();
    let mut looked = HashSet::new();
    while !closing.load(Ordering::SeqCst) {
        failed.retain(|_, at| at.elapsed() < limits::STORE_TRIED_AGAIN_AFTER);
        if !app.duty.is_ours() {
            seen = app.board.wait_to_tidy(seen, limits::RECONCILE_EVERY);
            continue;
        }
        match app.catalog.read(record::noted) {
            Ok(mut projects) => {
                projects.retain(|project| !failed.contains_key(project));
                for project in projects {
                    if let Err(error) = send_all(app, &project, &mut looked, closing) {
                        tracing::warn!(
                            project.id = %project,
                            error = engine::chain(&error),
                            "the store is not told of changes of the catalogue; trying again"
                        );
                        failed.insert(project, Instant::now());
                    }
                }
            }
            Err(error) => {
                tracing::error!(
                    error = engine::chain(&error),
                    "the mirror could not read the catalogue"
                );
            }
        }
        seen = app.board.wait_to_tidy(seen, limits::RECONCILE_EVERY);
    }
}

/// Journals by project and store that have no entries which this catalogue did not write, as far as this process has looked.
type Looked = HashSet<(ProjectId, Option<StorageId>)>;

/// Everything that a project's outbox notes.
fn send_all(app: &App, project: &ProjectId, looked: &mut Looked, closing: &AtomicBool) -> Result<(), Error> {
    while !closing.load(Ordering::SeqCst) && app.duty.is_ours() {
        let Some((journal, _, _)) = app
            .catalog
            .read(|tx| next(tx, project))
            .map_err(instance::job::catalog_failed)?
        else {
            return Ok(());
        };
        let Some(journal) = journal else {
            app.catalog
                .write(|tx| begin(tx, project))
                .map_err(instance::job::catalog_failed)?;
            continue;
        };
        // A folder of one node is no mirror of what others do: a remote store is asked for at each start.
        if journal.storage_id.is_none() && is_one_of_several(app)? {
            return Ok(());
        }
        let store = storage::open(app, journal.storage_id.as_ref())?.with_patience(Patience::SHORT);
        // At the start the store may have been away.
        let place = (project.clone(), journal.storage_id.clone());
        if !looked.contains(&place) {
            if let Some((known, newest)) = guard::newer(app, &store, project, None)? {
                let context = format!(
                    "the store has entry {newest} and the catalogue knows {known}: it is an old copy. Nothing is written over what is newer; \
                     restart the service, it says what to do",
                );
                return Err(Error::new(Kind::Refused, "mirror the catalogue", context));
            }
            looked.insert(place);
        }
        if journal.written.is_none() {
            put_keys(app, &store, project)?;
        }
        // The rows as they are when the number is taken: a higher one never holds older rows, however long its writer sleeps.
        let (number, again) = app
            .catalog
            .write(|tx| Ok::<_, catalog::Error>((record::next_number(tx, project)?, next(tx, project)?)))
            .map_err(instance::job::catalog_failed)?;
        let Some((Some(present), notes, rows)) = again else {
            continue;
        };
        if (present.written, &present.storage_id) != (journal.written, &journal.storage_id) {
            continue;
        }
        let entry = Entry {
            number: u64::try_from(number).unwrap_or(0),
            after: journal.written.and_then(|before| u64::try_from(before).ok()),
            written_at: Moment::now(),
            rows,
        };
        let recipient = Recipient::parse(&present.recipient)?;
        let bytes = entry::seal(project, &entry, &recipient, &app.vault.signer)?;
        failpoint::hit("mirror.numbered")?;
        store.put(&entry::entry_name(project, entry.number), &bytes)?;
        failpoint::hit("mirror.put")?;
        app.catalog
            .write(|tx| {
                // Else another host has gone on with the chain meanwhile, and tells these rows again.
                match record::written(tx, project, journal.written, number)? {
                    true => record::forget(tx, project, &notes),
                    false => Ok(()),
                }
            })
            .map_err(instance::job::catalog_failed)?;
        failpoint::hit("mirror.told")?;
    }
    Ok(())
}

fn is_one_of_several(app: &App) -> Result<bool, Error> {
    if !app.catalog.is_shared() {
        return Ok(false);
    }
    let all = app
        .catalog
        .read(hosts::all)
        .map_err(instance::job::catalog_failed)?;
    Ok(all.len() > 1)
}

/// The journal to write to (`None`: a chain is to be begun), and the next rows with their notes. Nothing where nothing
/// is noted.
type Next = (
    Option<Journal>,
    Vec<Note>,
    Vec<(record::Subject, catalog::image::Image)>,
);

fn next(tx: &Tx<'_>, project: &ProjectId) -> Result<Option<Next>, catalog::Error> {
    let mut notes = record::notes(tx, project, limits::JOURNAL_ROWS_MAX)?;
    if notes.is_empty() {
        return Ok(None);
    }
    let (storage, recipient) = wanted(tx, project)?;
    let journal = record::journal(tx, project)?
        .filter(|journal| journal.storage_id == storage && Some(&journal.recipient) == recipient.as_ref());
    if journal.is_none() {
        return Ok(Some((None, Vec::new(), Vec::new())));
    }
    let mut rows = Vec::new();
    let mut bytes = 0;
    let mut taken = 0;
    for note in &notes {
        if bytes > limits::JOURNAL_ENTRY_BYTES {
            break;
        }
        taken += 1;
        if let Some(image) = record::image(tx, note)? {
            bytes += image
                .values()
                .map(|value| value.to_string().len() + 32)
                .sum::<usize>();
            rows.push((note.subject, image));
        }
    }
    notes.truncate(taken);
    Ok(Some((journal, notes, rows)))
}

/// Where the journal of a project belongs, and for whom it is sealed.
fn wanted(tx: &Tx<'_>, project: &ProjectId) -> Result<(Option<StorageId>, Option<String>), catalog::Error> {
    Ok((
        storages::default_of(tx, project)?,
        identity::project_recipient(tx, project)?,
    ))
}

/// Begins a chain where the project's journal belongs.
///
/// # Errors
/// The catalogue failed.
pub(super) fn begin(tx: &Tx<'_>, project: &ProjectId) -> Result<(), catalog::Error> {
    let (storage, recipient) = wanted(tx, project)?;
    let recipient =
        recipient.ok_or_else(|| catalog::Error::Constraint("a project without a key".to_owned()))?;
    record::begin_chain(tx, project, storage.as_ref(), &recipient)
}

/// Lays beside a copy of a backup, in a store that does not have the project's journal, what a rebuild from that store
/// alone needs: the project's keys, and an entry with the rows that the backup rests on and its own, as it will be when
/// the copy counts. The number is one of the project's, so it is no other entry's in any store.
///
/// # Errors
/// The catalogue or the store failed.
pub fn tell_of_copy(
    app: &App,
    project: &ProjectId,
    backup: &BackupId,
    storage: Option<&StorageId>,
    copied_at: Moment,
) -> Result<(), Error> {
    let failed = instance::job::catalog_failed;
    let journal = app
        .catalog
        .read(|tx| record::journal(tx, project))
        .map_err(failed)?;
    let journal = match journal {
        Some(journal) if journal.storage_id.as_ref() == storage => return Ok(()),
        Some(journal) => journal,
        None => {
            app.catalog.write(|tx| begin(tx, project)).map_err(failed)?;
            return tell_of_copy(app, project, backup, storage, copied_at);
        }
    };
    let store = storage::open(app, storage)?;
    put_keys(app, &store, project)?;
    let (number, mut rows) = app
        .catalog
        .write(|tx| {
            let number = record::next_number(tx, project)?;
            Ok::<_, catalog::Error>((number, record::rows_of_backup(tx, project, backup)?))
        })
        .map_err(failed)?;
    for (subject, image) in &mut rows {
        if *subject == record::Subject::Backup {
            image.insert("copy_at_ms".to_owned(), copied_at.0.into());
        }
    }
    let entry = Entry {
        number: u64::try_from(number).unwrap_or(0),
        after: None,
        written_at: Moment::now(),
        rows,
    };
    let recipient = Recipient::parse(&journal.recipient)?;
    let bytes = entry::seal(project, &entry, &recipient, &app.vault.signer)?;
    store.put(&entry::entry_name(project, entry.number), &bytes)
}

/// Lays the keys of the project beside the entries, each once: those of the coming entries, and of earlier archives.
fn put_keys(app: &App, store: &Store, project: &ProjectId) -> Result<(), Error> {
    let keys = app
        .catalog
        .read(|tx| identity::archive_keys(tx, project))
        .map_err(instance::job::catalog_failed)?;
    for (recipient, identity_sealed) in keys {
        let name = entry::key_name(project, &recipient);
        if store.exists(&name)? {
            continue;
        }
        let key = ProjectKey {
            recipient,
            identity_sealed,
        };
        store.put(&name, &entry::seal_key(project, &key, &app.vault.signer)?)?;
    }
    escrow::put(app, store, project).map(drop)
}
