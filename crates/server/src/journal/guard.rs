//! An old catalogue that meets a newer store: one that was put back from a copy does not know what happened since. What it does not
//! know it would take for left-overs, engines and their data among them, and its mirror would be written over the newer one.
//!
//! A number of the journal is taken in the catalogue before its entry is written, so no store has an entry with a number that the
//! catalogue has not given out. Where one has, the catalogue is not the newest one.

use std::collections::HashSet;
use std::time::Instant;

use engine::store::{Patience, Store};
use engine::{Error, Kind};

use super::entry::{Named, entry_name};
use super::{mirror, record};
use crate::app::App;
use crate::catalog;
use crate::identity::record as identity;
use crate::ids::ProjectId;
use crate::instance::job::catalog_failed;
use crate::limits;
use crate::storage::{self, LOCAL, record as storages};

/// A project of which a store knows more than the catalogue.
#[derive(Debug, Clone)]
pub struct Behind {
    /// The project.
    pub project: ProjectId,
    /// The store's name.
    pub storage: String,
    /// The newest entry that the catalogue knows.
    pub known: u64,
    /// The newest one in the store.
    pub newest: u64,
}

/// The newest number that the catalogue has given out and the newest entry in a store, if it is a newer one.
///
/// # Errors
/// The catalogue or the store failed; [`Kind::Deadline`] where it takes longer than `until`.
pub fn newer(
    app: &App,
    store: &Store,
    project: &ProjectId,
    until: Option<Instant>,
) -> Result<Option<(u64, u64)>, Error> {
    let known = || {
        let journal = app.catalog.read(|tx| record::journal(tx, project));
        let begun = journal.map(|journal| journal.map_or(0, |journal| journal.begun));
        begun.map_err(catalog_failed)
    };
    let mut newest = 0;
    let after = entry_name(project, known()?);
    let folder = after.rsplit_once('/').map_or("", |(folder, _)| folder);
    store.list_behind(folder, &after, |name| {
        if until.is_some_and(|until| Instant::now() >= until) {
            let context = "its list of entries is too long to be read at a start";
            return Err(Error::new(Kind::Deadline, "look for newer entries", context));
        }
        if let Some(Named::Entry(of, number)) = Named::parse(name)
            && of == *project
        {
            newest = newest.max(number);
        }
        Ok(())
    })?;
    // Another process may have given out numbers meanwhile.
    let known = match newest {
        0 => return Ok(None),
        _ => known()?,
    };
    Ok((newest > known).then_some((known, newest)))
}

/// Where stores know more than the catalogue does. A store that does not answer is passed over and told: the mirror looks again
/// before it writes there.
///
/// # Errors
/// The catalogue or the local folder failed.
pub fn behind(app: &App) -> Result<Vec<Behind>, Error> {
    let (projects, stores) = app
        .catalog
        .read(|tx| Ok::<_, catalog::Error>((identity::projects(tx)?, storages::all(tx)?)))
        .map_err(catalog_failed)?;
    let until = Instant::now() + limits::GUARD_TIME_MAX;
    let (mut behind, mut passed_over) = (Vec::new(), HashSet::new());
    for project in &projects {
        if project.shredded_at.is_some() {
            continue;
        }
        let remote = stores
            .iter()
            .filter(|row| row.project_id.as_ref().is_none_or(|only| *only == project.id));
        for row in std::iter::once(None).chain(remote.map(Some)) {
            let name = row.map_or(LOCAL, |row| &row.name);
            if passed_over.contains(name) {
                continue;
            }
            let found = storage::open(app, row.map(|row| &row.id)).and_then(|store| {
                newer(
                    app,
                    &store.with_patience(Patience::SHORT),
                    &project.id,
                    Some(until),
                )
            });
            match found {
                Ok(None) => {}
                Ok(Some((known, newest))) => behind.push(Behind {
                    project: project.id.clone(),
                    storage: name.to_owned(),
                    known,
                    newest,
                }),
                Err(error) if row.is_none() => return Err(error),
                Err(error) => {
                    tracing::warn!(
                        storage = name,
                        error = engine::chain(&error),
                        "it is not known whether this store knows more than the catalogue"
                    );
                    passed_over.insert(name.to_owned());
                }
            }
        }
    }
    Ok(behind)
}

/// Refuses a catalogue that is older than its mirror, before anything is done by it.
///
/// # Errors
/// It is, and what to do; as [`behind`].
pub fn at_start(app: &App) -> anyhow::Result<()> {
    let behind = behind(app)?;
    let Some(first) = behind.first() else {
        return Ok(());
    };
    anyhow::bail!(
        "the catalogue is older than its mirror in the store {}: of project {} it knows entry {}, the store has entry {}. It was put \
         back from a copy, and what happened since is unknown to it: instances and backups of that time would be taken for \
         left-overs. Put the newest one back; or move it away and make it anew with `cachekeep catalog rebuild --from-store`; or, if \
         the older state is what you want, `cachekeep catalog keep-older --yes`",
        first.storage,
        first.project,
        first.known,
        first.newest
    )
}

/// Takes the catalogue for the truth all the same: its mirror goes on behind the newest entry, with a chain of its own.
///
/// # Errors
/// As [`behind`].
pub fn keep_older(app: &App) -> Result<Vec<Behind>, Error> {
    let behind = behind(app)?;
    app.catalog
        .write(|tx| {
            behind.iter().try_for_each(|one| {
                mirror::begin(tx, &one.project)?;
                record::skip_to(tx, &one.project, one.newest)
            })
        })
        .map_err(catalog_failed)?;
    Ok(behind)
}
