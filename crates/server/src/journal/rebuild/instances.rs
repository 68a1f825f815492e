//! Instances: those whose engine or data is still on this machine go on, the others come up empty.

use std::path::Path;

use engine::process;
use engine::switch::Door;

use super::{Report, record};
use crate::app::App;
use crate::catalog;
use crate::ids::{GenerationId, InstanceId, Moment, NodeId};
use crate::instance::generation::{self, State};
use crate::instance::job::admin_password;
use crate::instance::layout::{Layout, Mode, Place};
use crate::instance::nodes;
use crate::instance::record::{self as instances, Instance, Status};
use crate::jobs::{JobKind, queue};

/// Settles every instance of the journal that is not deleted.
///
/// # Errors
/// Data that no row would own lies in `instances/`: the next start would remove it.
pub(super) fn settle(app: &App, now: Moment, report: &mut Report) -> anyhow::Result<()> {
    let root = app.config.instances_dir();
    let living = app.catalog.read(instances::all_living)?;
    for folder in folders(&root) {
        let known = living.iter().any(|instance| instance.id.as_str() == folder);
        anyhow::ensure!(
            known || InstanceId::parse(&folder).is_none(),
            "{} is of no instance that the journal knows, and the next start would remove it: look whether an engine \
             still runs there, and move it away",
            root.join(&folder).display()
        );
    }
    for instance in living {
        settle_one(app, &instance, now, report)?;
    }
    Ok(())
}

fn settle_one(app: &App, instance: &Instance, now: Moment, report: &mut Report) -> anyhow::Result<()> {
    let home = app.config.instance_dir(&instance.id);
    let here: Vec<GenerationId> = folders(&home)
        .iter()
        .filter_map(|name| GenerationId::parse(name))
        .collect();
    match instance.status {
        Status::Deleting => {
            app.catalog.write(|tx| {
                mark(tx, &instance.id, None, &here, now)?;
                queue::insert(tx, &instance.id, JobKind::Delete, None)
            })?;
            return Ok(());
        }
        Status::CreateFailed | Status::Deleted => return Ok(()),
        Status::Creating | Status::Running | Status::Error => {}
    }
    if instance.attachment.is_some() {
        // Its data is where it always was.
        app.catalog
            .write(|tx| record::set_status(tx, &instance.id, Status::Running, now))?;
        report.instances_kept.push(instance.name.clone());
        return Ok(());
    }
    if instance.host.as_ref() != Some(&app.host) {
        // Its engines are another node's, which says that they serve when it is back.
        app.catalog
            .write(|tx| record::set_status(tx, &instance.id, Status::Error, now))?;
        report.instances_kept.push(instance.name.clone());
        return Ok(());
    }
    match serving(app, instance, &here)? {
        Some(serving) => {
            app.catalog.write(|tx| {
                mark(tx, &instance.id, Some(&serving), &here, now)?;
                record::set_status(tx, &instance.id, Status::Running, now)
            })?;
            report.instances_kept.push(instance.name.clone());
        }
        None => {
            anyhow::ensure!(
                here.is_empty(),
                "{} holds data, and which of it the instance {} served is not known; the next start would remove it: \
                 move it away",
                home.display(),
                instance.name
            );
            let nodes = nodes_again(app, instance)?;
            app.catalog.write(|tx| {
                mark(tx, &instance.id, None, &here, now)?;
                generation::insert(tx, &GenerationId::random(), &instance.id, &nodes, now)?;
                record::set_status(tx, &instance.id, Status::Creating, now)?;
                queue::insert(tx, &instance.id, JobKind::Create, None)
            })?;
            report.instances_empty.push(instance.name.clone());
        }
    }
    Ok(())
}

/// Places for an instance that comes up empty: with the ports that clients know.
fn nodes_again(app: &App, instance: &Instance) -> anyhow::Result<Vec<Place>> {
    if instance.layout.mode == Mode::Single {
        return Ok(instance.layout.places(&[instance.port], &[]));
    }
    let mut nodes = app
        .catalog
        .read(|tx| generation::newest_nodes(tx, &instance.id))?;
    anyhow::ensure!(
        nodes.len() == usize::from(instance.layout.nodes()),
        "the journal does not tell the ports of the cluster {}",
        instance.name
    );
    for place in &mut nodes {
        place.id = NodeId::random();
    }
    Ok(nodes)
}

/// The generation whose engine has the instance's port; where none runs, the one that the journal names, if no other that
/// is here can be it.
fn serving(app: &App, instance: &Instance, here: &[GenerationId]) -> anyhow::Result<Option<GenerationId>> {
    if here.is_empty() {
        return Ok(None);
    }
    let password = admin_password(app, instance).map_err(super::told)?;
    let rows = app.catalog.read(|tx| generation::existing(tx, &instance.id))?;
    for id in here {
        let home = app.config.generation_dir(&instance.id, id);
        let of_nodes = rows.iter().filter(|row| row.id == *id).flat_map(|row| {
            let places = row.nodes.iter();
            places.map(|place| (nodes::directory(app, row, place), nodes::door(instance, place)))
        });
        for (directory, door) in of_nodes.chain([(home, Door::Port(instance.port))]) {
            let directory = directory.canonicalize().unwrap_or(directory);
            let engine = process::find(&directory, &password).map_err(super::told)?;
            if engine.is_some_and(|engine| engine.lets_in(&door).is_ok_and(|is_open| is_open)) {
                return Ok(Some(id.clone()));
            }
        }
    }
    // A restore may have switched after the journal's last entry: what the journal does not call replaced may be what
    // clients have written to.
    let state = |id: &GenerationId| rows.iter().find(|row| row.id == *id).map(|row| row.state);
    let (named, others): (Vec<_>, Vec<_>) = here.iter().partition(|id| state(id) == Some(State::Serving));
    let is_certain = others
        .iter()
        .all(|id| matches!(state(id), Some(State::Retired | State::Removing)));
    Ok(named.first().filter(|_| is_certain).map(|id| (*id).clone()))
}

/// Makes the rows of an instance's generations agree with what is here. One that is gone is removed, and the backup that
/// stands for it is expired; one that nobody knows goes at the next start.
fn mark(
    tx: &catalog::Tx<'_>,
    instance: &InstanceId,
    serving: Option<&GenerationId>,
    here: &[GenerationId],
    now: Moment,
) -> Result<(), catalog::Error> {
    for found in generation::existing(tx, instance)? {
        if serving == Some(&found.id) {
            continue;
        }
        let state = match (found.state, here.contains(&found.id)) {
            (_, false) => State::Removed,
            (State::Serving | State::Loading, true) => State::Removing,
            (other, true) => other,
        };
        generation::transition(tx, &found.id, found.state, state)?;
        if state != State::Retired {
            crate::backup::record::expire_generation(tx, &found.id, now)?;
        }
    }
    if let Some(id) = serving {
        if generation::find(tx, id)?.is_none() {
            // Only one of a single node is found without its row.
            let port = instances::load(tx, instance)?.map_or(0, |found| found.port);
            generation::insert(tx, id, instance, &Layout::SINGLE.places(&[port], &[]), now)?;
        }
        record::let_serve(tx, id)?;
        crate::backup::record::expire_generation(tx, id, now)?;
    }
    Ok(())
}

fn folders(root: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(root) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| entry.path().is_dir())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}
