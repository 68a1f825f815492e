//! `cachekeep backup copy`: a second place for a backup, in another store.
//!
//! Works on the data directory, beside the service, as a verify does. The place is written down before the first object, so
//! whatever ends this process, the objects are known and swept; a copy counts once every byte was read back from it.

use std::fs::File;

use anyhow::Context;
use clap::Args;
use engine::Control;
use indicatif::HumanBytes;
use serde_json::json;

use super::admin::{find_instance, open, print_one};
use super::{Global, alone, storage as storages, verify};
use crate::app::App;
use crate::backup::copy_record as copies;
use crate::backup::place::{open_at, places};
use crate::backup::quota_record as quotas;
use crate::backup::record::Backup;
use crate::hosts::job::present;
use crate::ids::{Moment, StorageId};
use crate::instance::Instance;
use crate::jobs::worker::with_progress;
use crate::journal::mirror;
use crate::{secrets, storage};

#[derive(Args)]
pub(crate) struct Copy {
    /// Name or id of the instance
    instance: String,
    /// Id or name of the backup, or latest
    backup: String,
    /// The store that takes the copy: the name of a storage, or local
    #[arg(long, value_name = "STORE", required_unless_present = "remove")]
    to: Option<String>,
    /// Remove the copy instead; the backup stays where it is
    #[arg(long, conflicts_with = "to")]
    remove: bool,
}

/// Runs the verb.
///
/// # Errors
/// No data directory, no such backup or store, a copy that is there already, a store that does not work, an object that is
/// not what was stored. Nothing is left of the copy then.
pub(crate) fn run(global: &Global, verb: &Copy) -> anyhow::Result<()> {
    let app = open(global)?;
    let instance = find_instance(&app, &verb.instance)?;
    let backup = verify::find(&app, &instance, &verb.backup)?;
    match &verb.to {
        Some(to) => copy(global, &app, &instance, &backup, to),
        None => remove(global, &app, &backup),
    }
}

fn named(id: Option<&String>) -> &str {
    id.map_or(storage::LOCAL, String::as_str)
}

fn copy(global: &Global, app: &App, instance: &Instance, backup: &Backup, to: &str) -> anyhow::Result<()> {
    anyhow::ensure!(
        backup.is_kept() && backup.generation_id.is_none(),
        "{} has no archive that could be copied",
        backup.name
    );
    let storage = match to {
        storage::LOCAL => None,
        name => {
            let row = storages::find(app, name)?;
            anyhow::ensure!(
                row.project_id
                    .as_ref()
                    .is_none_or(|only| *only == instance.project_id),
                "the storage {name} is not for the project of {}",
                instance.name
            );
            Some(row.id)
        }
    };
    anyhow::ensure!(
        storage != backup.storage_id,
        "{} lies in {to} already: a copy belongs into another store",
        backup.name
    );
    let lock_file = app.config.copy_lock(&backup.id);
    // Before the row, which without it would be taken for one whose maker has died.
    let lock = File::create(&lock_file).with_context(|| format!("cannot write {}", lock_file.display()))?;
    lock.try_lock().with_context(|| {
        format!(
            "{} is being copied: {} is locked",
            backup.name,
            lock_file.display()
        )
    })?;
    let made = present(app, || make(global, app, instance, backup, storage.as_ref()));
    let _the_reconciler_removes_it_else = std::fs::remove_file(&lock_file);
    drop(lock);
    let (prefix, bytes) = made?;
    engine::failpoint::hit("copy.settled").map_err(alone::told)?;
    print_one(
        global,
        &json!({"backup_id": backup.id.as_str(), "backup_name": backup.name, "storage": to, "prefix": prefix,
                "stored_bytes": bytes}),
    );
    if !global.quiet {
        eprintln!(
            "cachekeep: every byte was read back from {to}; restores use the copy where the first place is lost"
        );
    }
    Ok(())
}

/// The copy's prefix and the bytes that were copied.
fn make(
    global: &Global,
    app: &App,
    instance: &Instance,
    backup: &Backup,
    storage: Option<&StorageId>,
) -> anyhow::Result<(String, u64)> {
    let first = places(backup).into_iter().next().context("it has no archive")?;
    let prefix = format!("{}-copy-{}", first.prefix, secrets::random_hex(4));
    let begun = app.catalog.write(|tx| {
        let begun = copies::begin(tx, &backup.id, &prefix, (storage, &app.host))?;
        // By its place on the record it counts as reserved from here on; where it is given up it does not.
        let standing = quotas::standing(tx, &instance.project_id)?;
        match standing.room_for(0) {
            Err(mut exceeded) if begun => {
                exceeded.asked = quotas::stored_bytes(backup);
                exceeded.reserved = exceeded.reserved.saturating_sub(exceeded.asked);
                Err(anyhow::anyhow!("{exceeded}"))
            }
            _ => Ok(begun),
        }
    })?;
    if !begun {
        let there = backup.copy.as_ref();
        anyhow::bail!(
            "{} has a copy already, in {}: `cachekeep backup copy {} {} --remove` removes it",
            backup.name,
            named(there.and_then(|copy| copy.storage_name.as_ref())),
            instance.name,
            backup.name
        );
    }
    let copied = copy_into(global, app, instance, backup, storage, &prefix);
    if copied.is_err() {
        app.catalog.write(|tx| copies::forget(tx, &backup.id, &prefix))?;
    }
    Ok((prefix, copied?))
}

fn copy_into(
    global: &Global,
    app: &App,
    instance: &Instance,
    backup: &Backup,
    storage: Option<&StorageId>,
    prefix: &str,
) -> anyhow::Result<u64> {
    let told = alone::told;
    engine::failpoint::hit("copy.begun").map_err(told)?;
    let first = places(backup).into_iter().next().context("it has no archive")?;
    let archive = open_at(app, backup, first, None, &engine::store::always).map_err(told)?;
    let store = storage::open(app, storage).map_err(told)?;
    let control = Control::new(None);
    let tell = |seen: &engine::Progress| {
        if !global.quiet {
            eprintln!("{}: {}", seen.phase, HumanBytes(seen.bytes_done));
        }
    };
    with_progress(&control, tell, || archive.copy_to(&store, prefix, &control)).map_err(told)?;
    let now = Moment::now();
    // The mirror first: a copy that no rebuild from its store would find is none.
    let settled = mirror::tell_of_copy(app, &instance.project_id, &backup.id, storage, now)
        .and_then(|()| engine::failpoint::hit("copy.before_settle"))
        .map_err(told)
        .and_then(|()| {
            let counts = app
                .catalog
                .write(|tx| copies::finish(tx, &backup.id, prefix, now))?;
            anyhow::ensure!(counts, "{} was deleted while it was copied", backup.name);
            Ok(())
        });
    if settled.is_err() {
        engine::archive::delete(&store, prefix).map_err(told)?;
    }
    settled?;
    let objects = archive.manifest().objects();
    Ok(objects.map(|object| object.stored_bytes).sum())
}

fn remove(global: &Global, app: &App, backup: &Backup) -> anyhow::Result<()> {
    let copy = backup
        .copy
        .as_ref()
        .with_context(|| format!("{} has no copy", backup.name))?;
    anyhow::ensure!(
        copy.at.is_some(),
        "the copy of {} is being made: end that first, or start the service, which clears up after one that died",
        backup.name
    );
    let forgotten = app
        .catalog
        .write(|tx| copies::forget(tx, &backup.id, &copy.prefix))?;
    anyhow::ensure!(forgotten, "the copy of {} has gone meanwhile", backup.name);
    let name = named(copy.storage_name.as_ref());
    if copy.storage_id.is_none() {
        engine::archive::delete(&app.vault.store, &copy.prefix).map_err(alone::told)?;
    }
    print_one(
        global,
        &json!({"backup_id": backup.id.as_str(), "backup_name": backup.name, "storage": name, "removed": true}),
    );
    if !global.quiet && copy.storage_id.is_some() {
        eprintln!("cachekeep: the running service removes the objects from {name}");
    }
    Ok(())
}
