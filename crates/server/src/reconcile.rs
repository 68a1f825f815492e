//! Makes the machine agree with the catalogue: at the start before anything else, and every few seconds after.
//!
//! Takes no hints and remembers nothing: it reads the catalogue, looks at processes and directories, and mends what
//! differs. An instance with an unsettled job is that job's business.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, TryLockError};
use std::time::{Duration, Instant};

use engine::{Control, process};

use crate::app::App;
use crate::backup::record as backups;
use crate::catalog;
use crate::ids::{InstanceId, Moment};
use crate::instance::generation::{self, Generation, State};
use crate::instance::{Instance, Status, job as instances, record};
use crate::jobs::queue;
use crate::limits;

/// Once, before the first job runs: nothing of an earlier process is at work any more.
///
/// # Errors
/// The catalogue failed.
pub fn at_start(app: &App) -> Result<(), catalog::Error> {
    let now = Moment::now();
    let taken_up = app.catalog.write(|tx| {
        let taken_up = queue::release_all(tx)?;
        backups::fail_interrupted_safety(tx, None, now)?;
        Ok::<_, catalog::Error>(taken_up)
    })?;
    if taken_up > 0 {
        tracing::info!(
            jobs = taken_up,
            "taking up jobs that an earlier process left behind"
        );
    }
    remove_orphans(app)?;
    Ok(())
}

/// For ever, after each job and every [`limits::RECONCILE_EVERY`]; one thread calls this.
pub fn run(app: &Arc<App>, closing: &std::sync::atomic::AtomicBool) {
    let mut seen = 0;
    while !closing.load(std::sync::atomic::Ordering::SeqCst) {
        if let Err(error) = once(app) {
            tracing::error!(
                error = engine::chain(&error),
                "the reconciler could not read the catalogue"
            );
        }
        seen = app.board.wait_to_tidy(seen, limits::RECONCILE_EVERY);
    }
}

/// One look at everything.
///
/// # Errors
/// The catalogue failed.
pub fn once(app: &App) -> Result<(), catalog::Error> {
    let living = app.catalog.read(record::all_living)?;
    // Side by side: after a reboot each of them may load for minutes.
    for some in living.chunks(limits::MENDED_AT_ONCE) {
        let mended: Vec<Result<(), catalog::Error>> = std::thread::scope(|scope| {
            let threads: Vec<_> = some
                .iter()
                .map(|instance| scope.spawn(|| mend(app, instance)))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or(Ok(())))
                .collect()
        });
        mended.into_iter().collect::<Result<(), _>>()?;
    }
    Ok(())
}

fn mend(app: &App, instance: &Instance) -> Result<(), catalog::Error> {
    let gate = app.board.instance_lock(&instance.id);
    // Held means that a job is at work. What is read below stays true while we hold it.
    let _held = match gate.try_lock() {
        Ok(held) => held,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => return Ok(()),
    };
    let (active, existing, instance) = app.catalog.read(|tx| {
        Ok::<_, catalog::Error>((
            queue::active(tx, &instance.id)?,
            generation::existing(tx, &instance.id)?,
            record::load(tx, &instance.id)?,
        ))
    })?;
    let (None, Some(instance)) = (active, &instance) else {
        return Ok(());
    };
    // First, because one of them may have the port or the memory that the serving one needs.
    for found in &existing {
        if matches!(found.state, State::Loading | State::Removing) {
            remove_generation(app, instance, found);
        }
    }
    if matches!(instance.status, Status::Running | Status::Error)
        && let Some(serving) = existing.iter().find(|found| found.state == State::Serving)
    {
        keep_serving(app, instance, serving)?;
    }
    let now = Moment::now();
    let retired = existing.iter().filter(|found| found.state == State::Retired);
    for (newer, found) in retired.enumerate() {
        let superfluous =
            newer >= limits::RETIRED_GENERATIONS_MAX || found.expires_at.is_some_and(|at| at <= now);
        if superfluous || !instances::holds_data(app, instance, &found.id) {
            remove_generation(app, instance, found);
        }
    }
    Ok(())
}

fn remove_generation(app: &App, instance: &Instance, found: &Generation) {
    if let Err(stop) = instances::take_down(app, instance, &found.id) {
        tracing::warn!(instance.id = %instance.id, generation.id = %found.id, ?stop, "a generation does not go; trying again");
    }
}

/// Brings the serving engine back where it is gone, and gives it its port where it has not got it.
fn keep_serving(app: &App, instance: &Instance, serving: &Generation) -> Result<(), catalog::Error> {
    let directory = app.config.generation_dir(&instance.id, &serving.id);
    let healthy = instances::admin_password(app, instance)
        .and_then(|password| process::find(&directory, &password))
        .and_then(|found| match found {
            Some(engine) => {
                app.board.note_memory(&instance.id, engine.used_memory()?);
                engine.current_port().map(|port| port == instance.port)
            }
            None => Ok(false),
        });
    let now = Moment::now();
    if matches!(healthy, Ok(true)) {
        if instance.status == Status::Error {
            serves_again(app, instance, now)?;
        }
        return Ok(());
    }
    tracing::warn!(instance.id = %instance.id, "the engine is not serving: bringing it back");
    let control = Control::new(Some(limits::OPERATION_TIME_BASE));
    match instances::bring_up(app, instance, &serving.id, Some(instance.port), &control) {
        Ok(engine) => {
            tracing::info!(instance.id = %instance.id, engine.pid = engine.pid(), "the engine serves again");
            serves_again(app, instance, now)?;
        }
        Err(error) => {
            let why = engine::chain(&error);
            tracing::error!(instance.id = %instance.id, why, "the engine cannot be brought back; trying again");
            app.catalog.write(|tx| {
                record::transition(tx, &instance.id, Status::Running, Status::Error, Some(&why), now)
            })?;
        }
    }
    Ok(())
}

fn serves_again(app: &App, instance: &Instance, now: Moment) -> Result<(), catalog::Error> {
    app.catalog.write(|tx| {
        crate::restore::record::settle_unknown(tx, &instance.id, now)?;
        record::transition(tx, &instance.id, Status::Error, Status::Running, None, now).map(drop)
    })
}

/// Ends engine processes and removes directories that no generation of the catalogue owns.
fn remove_orphans(app: &App) -> Result<(), catalog::Error> {
    let root = app.config.instances_dir();
    let existing = app.catalog.read(generation::all_existing)?;
    let owned: HashSet<PathBuf> = existing
        .iter()
        .map(|found| app.config.generation_dir(&found.instance_id, &found.id))
        .collect();
    let unowned = || {
        let mut found = process::find_orphans(&root);
        found.retain(|(_, directory)| !owned.contains(directory));
        found
    };
    for (pid, directory) in unowned() {
        tracing::warn!(engine.pid = pid, directory = %directory.display(), "ending an engine that no instance owns");
        end_process(pid);
    }
    // One that is still ending may write into the directory that is to go.
    let until = Instant::now() + limits::ENGINE_STOP;
    while !unowned().is_empty() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
    let instances: HashSet<String> = app
        .catalog
        .read(record::all_living)?
        .iter()
        .map(|found| found.id.to_string())
        .collect();
    for instance in subdirectories(&root) {
        let name = instance
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        if InstanceId::parse(&name).is_none() {
            continue;
        }
        if !instances.contains(&name) {
            remove(&instance);
            continue;
        }
        for directory in subdirectories(&instance)
            .into_iter()
            .filter(|path| !owned.contains(path))
        {
            remove(&directory);
        }
    }
    Ok(())
}

fn end_process(pid: u32) {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid
        && let Err(error) = rustix::process::kill_process(pid, rustix::process::Signal::KILL)
    {
        tracing::warn!(%error, "an orphaned engine does not end");
    }
}

fn remove(directory: &std::path::Path) {
    tracing::warn!(directory = %directory.display(), "removing a directory that no instance owns");
    if let Err(error) = std::fs::remove_dir_all(directory) {
        tracing::warn!(%error, directory = %directory.display(), "a directory does not go");
    }
}

fn subdirectories(root: &std::path::Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(root) else {
        return Vec::new();
    };
    entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect()
}
