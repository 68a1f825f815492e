//! Makes a lost catalogue anew from what a store holds.
//!
//! ```text
//! journal entries ──> rows as they were      (signed, and sealed to a key that the master key opens)
//! archives        ──> backups that prove     (signed manifest, recorded digest, every object with its size)
//! instances/      ──> engines that still run (whoever has the instance's port serves)
//! ```
//!
//! What the journal does not tell is not made up: a backup without a proven archive is not restorable, a restore whose
//! end was not mirrored is failed with an unknown outcome, and all of it is reported. No object is changed or removed.

mod archives;
mod instances;
mod record;
mod rows;

use std::collections::{BTreeMap, BTreeSet, HashSet};

use anyhow::Context;
use engine::keys::Identity;
use engine::store::{RemoteSpec, Store};
use engine::{Error, Kind};
use serde::Serialize;

use super::entry::{self, Named};
use super::record as journal;
use crate::app::App;
use crate::catalog;
use crate::ids::{Moment, ProjectId, StorageId};
use crate::serve;
use crate::storage::record::{self as storages, Storage};
use crate::storage::{access_key_place, secret_key_place};
use rows::Misfits;

/// Numbers that a rebuilt journal leaves out: another store that this project used may hold some of them.
const NUMBERS_LEFT_OUT: u64 = 1_000_000;

/// Where the journal and the archives are looked for.
pub struct Source {
    /// The store.
    pub store: Store,
    /// What it was opened with; `None`: the local folder.
    pub spec: Option<RemoteSpec>,
}

/// How a rebuild goes about it.
#[derive(Debug, Clone, Copy)]
pub struct Wish {
    /// Hash every stored byte, not only look at names and sizes.
    pub prove_all: bool,
    /// Go on where a store that some backups lie in does not answer: they are not taken then.
    pub skip_unreachable: bool,
}

/// What a rebuild found.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Projects whose rows are back.
    pub projects: Vec<String>,
    /// Entries of journals that were read.
    pub journal_entries: u64,
    /// When the newest entry was written, per project: what happened later is known from archives alone.
    pub journal_until: BTreeMap<String, String>,
    /// Objects of journals that are missing, damaged or not ours, and why.
    pub journal_lost: Vec<String>,
    /// Rows that do not fit to the others, or were changed to fit, and how: at most the first 1,000 of a project.
    pub rows_not_fitting: Vec<String>,
    /// All of those.
    pub rows_not_fitting_count: u64,
    /// Backups that can be restored.
    pub backups: u64,
    /// Those among them that the journal had not been told of, or not of their end: remark and kind are not known.
    pub backups_from_manifest_only: Vec<String>,
    /// Backups that cannot be restored, and why; archives that are not taken, and why.
    pub backups_not_taken: Vec<NotTaken>,
    /// Copies of backups that are not where the journal says, and why; the backups themselves are.
    pub copies_not_taken: Vec<NotTaken>,
    /// Restore records.
    pub restores: u64,
    /// Restores whose end was not mirrored: they are failed, and what their instances held is unknown.
    pub restores_of_unknown_end: Vec<String>,
    /// Restore records that are missing between others; the ordinals after them have moved up.
    pub restores_missing: u64,
    /// Instances whose engine or data is still here and serves on.
    pub instances_kept: Vec<String>,
    /// Instances that the next start brings up empty.
    pub instances_empty: Vec<String>,
    /// Whether the user and the access key of admin.json work again. All others have to be made anew.
    pub admin_credentials: bool,
}

/// A backup that cannot be restored.
#[derive(Debug, Serialize)]
pub struct NotTaken {
    /// Its id, where it has one.
    pub backup_id: String,
    /// Where it lies or should lie.
    pub prefix: String,
    /// Why.
    pub why: String,
}

/// Fills the empty catalogue of `app`.
///
/// # Errors
/// Nothing of a project can be read; a store does not answer; data of an instance that nobody knows lies in
/// `instances/` and would be removed.
pub fn rebuild(app: &App, from: &Source, wish: Wish, now: Moment) -> anyhow::Result<Report> {
    let mut report = Report::default();
    let newest = read_journals(app, &from.store, &mut report)?;
    anyhow::ensure!(
        !report.projects.is_empty(),
        "no project can be read from this store: {}",
        match report.journal_lost.first() {
            Some(why) => why.as_str(),
            None => "it holds no journal",
        }
    );
    let storage = storage_of(app, from, now)?;
    let sources = [(None, app.vault.store.clone()), (storage, from.store.clone())];
    let sources = match from.spec {
        Some(_) => &sources[..],
        None => &sources[..1],
    };
    app.catalog.write(|tx| record::adopt_instances(tx, &app.host))?;
    archives::take(app, sources, wish, now, &mut report)?;
    app.catalog.write(|tx| record::adopt_folder(tx, &app.host))?;
    instances::settle(app, now, &mut report)?;
    app.catalog.write(|tx| {
        report.restores_of_unknown_end = record::fail_unsettled_restores(tx)?;
        report.restores_missing = record::close_gaps(tx)?;
        report.restores = record::count_restores(tx)?;
        for (project, number) in &newest {
            let storage = storages::default_of(tx, project)?;
            journal::continue_after(tx, project, storage.as_ref(), number + NUMBERS_LEFT_OUT)?;
        }
        Ok::<_, catalog::Error>(())
    })?;
    report.admin_credentials = serve::take_up_admin(app, now)?;
    Ok(report)
}

/// The objects of one project's journal.
#[derive(Default)]
struct Found {
    keys: BTreeSet<String>,
    entries: BTreeSet<u64>,
}

/// Takes up the rows of all journals in the store; the newest number of each.
fn read_journals(app: &App, store: &Store, report: &mut Report) -> anyhow::Result<BTreeMap<ProjectId, u64>> {
    let mut found: BTreeMap<ProjectId, Found> = BTreeMap::new();
    let mut strange = BTreeSet::new();
    let look = |name: &str| {
        match Named::parse(name) {
            Some(Named::Key(project)) => {
                found.entry(project).or_default().keys.insert(name.to_owned());
            }
            Some(Named::Entry(project, number)) => {
                found.entry(project).or_default().entries.insert(number);
            }
            None => {
                strange.insert(format!("{name}: no object of ours has such a name"));
            }
        }
        Ok(())
    };
    store.list_each(entry::FOLDER, look).map_err(told)?;
    report.journal_lost.extend(strange);
    let mut newest = BTreeMap::new();
    for (project, objects) in found {
        let number = objects.entries.last().copied().unwrap_or_default();
        match read_journal(app, store, &project, &objects, report) {
            Ok(()) => {
                newest.insert(project.clone(), number);
                report.projects.push(project.to_string());
            }
            Err(error) => report.journal_lost.push(format!("project {project}: {error:#}")),
        }
    }
    Ok(newest)
}

/// Takes up the rows of one journal; none of them where the project's own is not among them.
fn read_journal(
    app: &App,
    store: &Store,
    project: &ProjectId,
    objects: &Found,
    report: &mut Report,
) -> anyhow::Result<()> {
    let key = app.vault.signer.verifying_key();
    let mut lost = Vec::new();
    let mut identities = Vec::new();
    for name in &objects.keys {
        let opened = store
            .get(name)
            .and_then(|bytes| entry::open_key(name, &bytes, project, &key))
            .and_then(|found| {
                let text = app
                    .vault
                    .master
                    .open(&format!("project.identity:{project}"), &found.identity_sealed)?;
                Identity::parse(&text)
            });
        match opened {
            Ok(identity) => identities.push(identity),
            Err(error) => lost.push(engine::chain(&error)),
        }
    }
    let mut read = Vec::new();
    let mut until = None;
    let mut misfits = Misfits::default();
    app.catalog.write(|tx| {
        tx.defer_foreign_keys()?;
        for number in &objects.entries {
            let name = &entry::entry_name(project, *number);
            let opened = store.get(name).and_then(|bytes| {
                let with = |identity| entry::open(name, &bytes, project, *number, &key, identity);
                let mut last = Err(Error::new(
                    Kind::Key,
                    "read journal",
                    format!("{name}: there is no key for it"),
                ));
                for identity in &identities {
                    last = with(identity);
                    if !matches!(&last, Err(error) if error.kind == Kind::Key) {
                        break;
                    }
                }
                last
            });
            match opened {
                Ok(entry) => {
                    rows::put_all(tx, entry.rows, name, &mut misfits)?;
                    read.push((entry.number, entry.after));
                    until = Some(entry.written_at);
                }
                Err(error) => lost.push(engine::chain(&error)),
            }
        }
        anyhow::ensure!(
            crate::identity::record::project(tx, project)?.is_some(),
            "its own row is in no entry that can be read{}",
            lost.iter()
                .chain(&misfits.named)
                .next()
                .map_or_else(String::new, |why| format!(": {why}"))
        );
        rows::mend(tx, project, &mut misfits)?;
        Ok(())
    })?;
    report.rows_not_fitting.extend(misfits.named);
    report.rows_not_fitting_count += misfits.count;
    lost.extend(gaps(project, &read));
    report.journal_entries += read.len() as u64;
    report.journal_lost.extend(lost);
    if let Some(until) = until {
        report.journal_until.insert(project.to_string(), until.iso());
    }
    Ok(())
}

/// Entries of the newest chain that others name and that are not there.
fn gaps(project: &ProjectId, read: &[(u64, Option<u64>)]) -> Vec<String> {
    let there: HashSet<u64> = read.iter().map(|(number, _)| *number).collect();
    let begin = read.iter().rposition(|(_, after)| after.is_none()).unwrap_or(0);
    read[begin..]
        .iter()
        .filter_map(|(_, after)| after.filter(|before| !there.contains(before)))
        .map(|missing| format!("{}: it is missing", entry::entry_name(project, missing)))
        .collect()
}

/// The row of the remote store that the rebuild reads from: the mirrored one, with the credentials that were given now,
/// or a new one.
fn storage_of(app: &App, from: &Source, now: Moment) -> anyhow::Result<Option<StorageId>> {
    let Some(spec) = &from.spec else {
        return Ok(None);
    };
    let known = app.catalog.read(storages::all)?.into_iter().find(|row| {
        row.kind == spec.kind.word()
            && row.endpoint == spec.endpoint
            && row.bucket == spec.bucket
            && row.prefix == spec.prefix
    });
    let is_new = known.is_none();
    let id = known.map_or_else(StorageId::random, |row| row.id);
    let master = &app.vault.master;
    let access_key = master.seal(&access_key_place(&id), spec.access_key.expose().as_bytes());
    let secret_key = master.seal(&secret_key_place(&id), spec.secret_key.expose().as_bytes());
    app.catalog
        .write(|tx| match is_new {
            false => storages::set_credentials(tx, &id, &access_key, &secret_key),
            true => storages::insert(
                tx,
                &Storage {
                    name: format!("rebuilt-{}", &id.as_str()[..8]),
                    project_id: None,
                    kind: spec.kind.word().to_owned(),
                    endpoint: spec.endpoint.clone(),
                    bucket: spec.bucket.clone(),
                    prefix: spec.prefix.clone(),
                    region: spec.region.clone(),
                    access_key_sealed: access_key,
                    secret_key_sealed: secret_key,
                    capabilities: None,
                    created_at: now,
                    id: id.clone(),
                },
            ),
        })
        .context("cannot write the storage's row")?;
    Ok(Some(id))
}

fn told(error: Error) -> anyhow::Error {
    anyhow::anyhow!(engine::chain(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_that_the_newest_chain_names_is_missed_and_one_of_an_older_chain_is_not() {
        let project = ProjectId::random();
        let missing = |read: &[(u64, Option<u64>)]| gaps(&project, read).len();
        assert_eq!(missing(&[]), 0);
        assert_eq!(missing(&[(1, None), (2, Some(1)), (5, Some(2))]), 0);
        assert_eq!(missing(&[(1, None), (3, Some(2))]), 1);
        assert_eq!(missing(&[(1, None), (3, Some(2)), (4, None), (6, Some(4))]), 0);
        assert_eq!(missing(&[(3, Some(2)), (4, Some(3))]), 1);
    }
}
