//! `cachekeep project escrow` and `project shred`: who else can open a project's backups, and that nobody can any more.

use anyhow::Context;
use clap::Args;
use engine::keys::Recipient;
use engine::store::Patience;
use indicatif::HumanBytes;
use serde_json::json;

use super::Global;
use super::admin::{find_project, print_one};
use super::alone::told;
use crate::app::App;
use crate::backup::record as backups;
use crate::catalog::version;
use crate::identity::record::{self, Project};
use crate::ids::Moment;
use crate::instance::record as instances;
use crate::journal::record as journal;
use crate::journal::{copies, escrow};
use crate::storage::{self, record as storages};

#[derive(Args)]
pub(crate) struct Escrow {
    /// Name or id of the project
    project: String,
    /// The public half of an age key of yours
    #[arg(long, value_name = "age1...", required_unless_present = "remove")]
    recipient: Option<String>,
    /// Seal the keys to nobody else any more, and remove what was sealed
    #[arg(long, conflicts_with = "recipient")]
    remove: bool,
}

#[derive(Args)]
pub(crate) struct Shred {
    /// Name or id of the project
    project: String,
    /// The project's name again: what it says happens, at once and for ever
    #[arg(long, value_name = "NAME")]
    lose_all_backups_of: Option<String>,
}

/// Where the key of a project is kept, in words for a list.
pub(super) fn whereabouts(project: &Project) -> &'static str {
    match (project.shredded_at, &project.escrow) {
        (Some(_), _) => "destroyed",
        (None, Some(_)) => "in escrow",
        (None, None) if project.is_key_printed => "printed",
        (None, None) => "ONLY HERE: print it (project key) or seal it to your own (project escrow)",
    }
}

/// `cachekeep project escrow`
///
/// # Errors
/// No such project, a recipient that is none, a store that does not take or remove the objects: run it again then.
pub(super) fn escrow(global: &Global, app: &App, verb: &Escrow) -> anyhow::Result<()> {
    let project = find_project(app, &verb.project)?;
    anyhow::ensure!(
        project.shredded_at.is_none(),
        "the keys of {} were destroyed",
        project.name
    );
    let wanted = match &verb.recipient {
        Some(text) => Some(Recipient::parse(text).map_err(told)?.to_string()),
        None => None,
    };
    let storage = app.catalog.read(|tx| storages::default_of(tx, &project.id))?;
    let store = storage::open(app, storage.as_ref())
        .map_err(told)?
        .with_patience(Patience::SHORT);
    if let Some(before) = project
        .escrow
        .as_ref()
        .filter(|before| Some(*before) != wanted.as_ref())
    {
        escrow::remove(app, &store, &project.id, before).map_err(told)?;
    }
    // Noted first, so that what is put is known; after a failure the same call does the rest.
    app.catalog
        .write(|tx| record::set_escrow(tx, &project.id, wanted.as_deref()))?;
    let keys = escrow::put(app, &store, &project.id).map_err(told)?;
    print_one(
        global,
        &json!({"project": project.name, "project_id": project.id.as_str(), "escrow": wanted, "keys": keys,
                "place": format!("escrow/{}/", project.id)}),
    );
    Ok(())
}

/// `cachekeep project shred`
///
/// # Errors
/// No such project, not confirmed, instances that still live, a store that does not remove a key: run it again then.
pub(super) fn shred(global: &Global, app: &App, verb: &Shred) -> anyhow::Result<()> {
    let project = find_project(app, &verb.project)?;
    let mut living = app.catalog.read(instances::all_living)?;
    living.retain(|instance| instance.project_id == project.id);
    let names: Vec<&str> = living.iter().map(|instance| instance.name.as_str()).collect();
    anyhow::ensure!(
        names.is_empty(),
        "{} has instances, whose backups would need its key: delete them first: {}",
        project.name,
        names.join(", ")
    );
    let (count, bytes) = app.catalog.read(|tx| backups::kept_of(tx, &project.id))?;
    if verb.lose_all_backups_of.as_ref() != Some(&project.name) {
        anyhow::bail!(
            "nothing was done. Shredding {name} loses {count} backups ({size}) for ever: no copy of them in any store can be \
             read any more, and nothing brings the keys back. To do that: cachekeep project shred {name} \
             --lose-all-backups-of {name}",
            name = project.name,
            size = HumanBytes(bytes),
        );
    }
    let now = Moment::now();
    let is_erased = app.catalog.write_erasing(|tx| {
        record::shred(tx, &project.id, now)?;
        record::revoke_project(tx, &project.id, now)?;
        let why = "the project's keys were destroyed";
        backups::expire_all_of(tx, &project.id, why, now)?;
        journal::forget_all(tx, &project.id)
    })?;
    // Backups can have been in any of them, with the keys beside.
    let stores = app.catalog.read(storages::all)?;
    let stores = stores
        .iter()
        .filter(|row| row.project_id.as_ref().is_none_or(|only| *only == project.id));
    let mut left = Vec::new();
    if let Err((copy, error)) = version::forget_copies(&app.config.catalog_file()) {
        left.push(format!("{} ({error})", copy.display()));
    }
    for storage in std::iter::once(None).chain(stores.map(Some)) {
        let removed = storage::open(app, storage.map(|row| &row.id)).and_then(|store| {
            let store = store.with_patience(Patience::SHORT);
            escrow::destroy(app, &store, &project.id)?;
            copies::remove_all(app, &store)
        });
        if let Err(error) = removed {
            let name = storage.map_or(storage::LOCAL, |row| row.name.as_str());
            left.push(format!("{name} ({})", engine::chain(&error)));
        }
    }
    print_one(
        global,
        &json!({"project": project.name, "project_id": project.id.as_str(), "shredded": left.is_empty(),
                "backups_lost": count, "bytes_lost": bytes}),
    );
    if !is_erased && !global.quiet {
        eprintln!(
            "cachekeep: the sealed keys are gone from the catalogue; the log beside its file is emptied when the service next can"
        );
    }
    let none = left.is_empty().then_some(());
    none.with_context(|| {
        format!(
            "the catalogue's keys are destroyed; sealed ones, which keys/master.key opens, are left in: {}. Run this again",
            left.join(", ")
        )
    })
}
