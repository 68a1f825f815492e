//! Makes the machine agree with the catalogue: at the start before anything else, and every few seconds after.
//!
//! Takes no hints and remembers nothing: it reads the catalogue, looks at processes and directories, and mends what
//! differs. An instance with an unsettled job is that job's business.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use engine::process::{self, Engine, Persistence, Vitals};
use engine::{Control, Kind};

use crate::app::App;
use crate::backup::copy_record as copies;
use crate::backup::record::{self as backups, FailureCode};
use crate::backup::verification_record as verifications;
use crate::catalog;
use crate::hosts::record::{self as hosts, Host};
use crate::ids::{BackupId, HostId, InstanceId, Moment};
use crate::instance::attachment::{Attachment, servers};
use crate::instance::generation::{self, Generation, State};
use crate::instance::layout::{Mode, Place};
use crate::instance::watched::{self, Health};
use crate::instance::{Instance, Status, job as instances, nodes, record};
use crate::jobs::queue;
use crate::jobs::worker::{Gate, panic_text};
use crate::limits;
use crate::restore::migration::record as migrations;
use crate::restore::replay_record;

/// Once, before the first job runs: nothing of an earlier process is at work any more.
///
/// # Errors
/// The catalogue failed.
pub fn at_start(app: &App) -> Result<(), catalog::Error> {
    let now = Moment::now();
    let taken_up = app.catalog.write(|tx| {
        let taken_up = queue::release_all(tx, &app.host)?;
        backups::fail_interrupted_safety_of(tx, &app.host, now)?;
        backups::finish_deletions(tx, &app.host, now)?;
        verifications::release_all(tx, &app.host, now)?;
        Ok::<_, catalog::Error>(taken_up)
    })?;
    if taken_up > 0 {
        tracing::info!(
            jobs = taken_up,
            "taking up jobs that an earlier process left behind"
        );
    }
    remove_orphans(app)?;
    remove_proofs(app);
    remove_replays(app)?;
    settle_imports(app)?;
    remove_import_locks(app)?;
    settle_copies(app)
}

/// Forgets how far restores and imports key by key were that have ended.
fn remove_replays(app: &App) -> Result<(), catalog::Error> {
    let Ok(entries) = std::fs::read_dir(app.config.replays_dir()) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        let is_needed = match entry.file_name().to_str() {
            Some(id) => app.catalog.read(|tx| replay_record::is_unsettled(tx, id))?,
            None => false,
        };
        if !is_needed {
            remove(&entry.path());
        }
    }
    Ok(())
}

/// Ends throw-away engines whose verify is gone: it held the lock, and nobody does now.
fn remove_proofs(app: &App) {
    let Ok(entries) = std::fs::read_dir(app.config.spool_dir()) else {
        return;
    };
    for entry in entries.flatten() {
        let file = entry.file_name();
        let name = file
            .to_str()
            .and_then(|text| text.strip_prefix("proof-")?.strip_suffix(".lock"));
        let Some(name) = name else {
            continue;
        };
        if is_held(&entry.path()) {
            continue;
        }
        let (directory, lock) = app.config.proof_place(name);
        for (pid, _) in process::find_orphans(&directory) {
            tracing::warn!(engine.pid = pid, "ending an engine of a verify that is gone");
            end_process(pid);
        }
        if directory.exists() {
            remove(&directory);
        }
        if !directory.exists() {
            let _gone_already = std::fs::remove_file(&lock);
        }
    }
}

/// Whether what a host does with a lock in hand may be at work. Whoever has the duty speaks for hosts that are lost.
fn is_at_work(app: &App, host: Option<&HostId>, lock: &std::path::Path, alive: &HashSet<HostId>) -> bool {
    match host {
        Some(host) if *host != app.host => alive.contains(host) || !app.duty.may_judge(app.config.lease),
        _ => is_held(lock),
    }
}

/// Ends imports whose process is gone: it held the lock, and nobody does now. What they stored is swept.
fn settle_imports(app: &App) -> Result<(), catalog::Error> {
    let (unfinished, alive) = app
        .catalog
        .read(|tx| Ok::<_, catalog::Error>((backups::unfinished_imports(tx)?, hosts::alive(tx)?)))?;
    for (id, host) in unfinished {
        let path = app.config.import_lock(&id);
        if is_at_work(app, host.as_ref(), &path, &alive) {
            continue;
        }
        tracing::warn!(backup.id = %id, "an import ended without an outcome: it has failed");
        app.catalog.write(|tx| {
            let why = "the import ended before it was done: import the file again";
            backups::fail(tx, &id, FailureCode::TimedOut, why, Moment::now())
        })?;
        let _none_where_it_was_never_made = std::fs::remove_file(&path);
    }
    Ok(())
}

/// Removes the locks of imports whose process ended after their record and before it had tidied up. One without a record may be of
/// an import that is about to begin.
fn remove_import_locks(app: &App) -> Result<(), catalog::Error> {
    let Ok(entries) = std::fs::read_dir(app.config.spool_dir()) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        let file = entry.file_name();
        let id = file
            .to_str()
            .and_then(|text| text.strip_prefix("import-")?.strip_suffix(".lock"))
            .and_then(BackupId::parse);
        let Some(id) = id else {
            continue;
        };
        let record = app.catalog.read(|tx| backups::load(tx, &id))?;
        let has_ended = record.is_some_and(|backup| {
            !matches!(backup.status, backups::Status::Waiting | backups::Status::Running)
        });
        if has_ended && !is_held(&entry.path()) {
            let _gone_already = std::fs::remove_file(entry.path());
        }
    }
    Ok(())
}

/// Forgets copies whose maker is gone: it held the lock, and nobody does now. What it stored is swept.
fn settle_copies(app: &App) -> Result<(), catalog::Error> {
    let (unfinished, alive) = app
        .catalog
        .read(|tx| Ok::<_, catalog::Error>((copies::unfinished(tx)?, hosts::alive(tx)?)))?;
    for (id, copy) in unfinished {
        let path = app.config.copy_lock(&id);
        if is_at_work(app, copy.host.as_ref(), &path, &alive) {
            continue;
        }
        tracing::warn!(backup.id = %id, "a copy of a backup was broken off: it has to be made again");
        app.catalog.write(|tx| copies::forget(tx, &id, &copy.prefix))?;
        if copy.storage_id.is_none()
            && copy.host.as_ref() == Some(&app.host)
            && let Err(error) = engine::archive::delete(&app.vault.store, &copy.prefix)
        {
            tracing::warn!(
                prefix = copy.prefix,
                error = engine::chain(&error),
                "remains of a copy do not go; they are swept later"
            );
        }
        let _none_where_it_was_never_made = std::fs::remove_file(&path);
        app.board.tidy();
    }
    Ok(())
}

/// Whether a process may still be at work behind this lock file: one that cannot be looked at counts as held.
fn is_held(lock: &std::path::Path) -> bool {
    match std::fs::File::open(lock) {
        Ok(file) => file.try_lock().is_err(),
        Err(error) => error.kind() != std::io::ErrorKind::NotFound,
    }
}

/// For ever, after each job and every [`limits::RECONCILE_EVERY`]; one thread calls this.
pub fn run(app: &Arc<App>, closing: &std::sync::atomic::AtomicBool) {
    let places = Arc::new(Places::of(limits::MENDED_AT_ONCE));
    let attached = Arc::new(Places::of(limits::ATTACHED_LOOKS_AT_ONCE));
    let mut seen = 0;
    let mut pass = 0;
    while !closing.load(std::sync::atomic::Ordering::SeqCst) {
        remove_proofs(app);
        if let Err(error) = settle_imports(app)
            .and_then(|()| settle_copies(app))
            .and_then(|()| look_at_all(app, &places, &attached, pass))
        {
            tracing::error!(
                error = engine::chain(&error),
                "the reconciler could not read the catalogue"
            );
        }
        pass = pass.wrapping_add(1);
        seen = app.board.wait_to_tidy(seen, limits::RECONCILE_EVERY);
    }
}

/// How many instances are being mended, at most `most`.
struct Places {
    most: usize,
    taken: Mutex<usize>,
    given_back: Condvar,
}

impl Places {
    fn of(most: usize) -> Self {
        Self {
            most,
            taken: Mutex::default(),
            given_back: Condvar::new(),
        }
    }

    fn taken(&self) -> MutexGuard<'_, usize> {
        self.taken.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn take(&self) {
        let full = |taken: &mut usize| *taken >= self.most;
        let waited = self.given_back.wait_while(self.taken(), full);
        *waited.unwrap_or_else(|poisoned| poisoned.into_inner()) += 1;
    }

    /// As [`Places::take`], without waiting for longer than what takes a millisecond does.
    fn try_take(&self) -> bool {
        let full = |taken: &mut usize| *taken >= self.most;
        let waited = self
            .given_back
            .wait_timeout_while(self.taken(), limits::ATTACHED_PLACE_WAIT, full);
        let (mut taken, _) = waited.unwrap_or_else(|poisoned| poisoned.into_inner());
        let is_free = *taken < self.most;
        *taken += usize::from(is_free);
        is_free
    }

    fn give_back(&self) {
        *self.taken() -= 1;
        self.given_back.notify_one();
    }
}

/// One look at everything. Each instance has a thread of its own, and nobody waits for it: one that loads for minutes
/// after a reboot, or hangs, keeps none of the others from being looked at again.
fn look_at_all(
    app: &Arc<App>,
    places: &Arc<Places>,
    of_attached: &Arc<Places>,
    pass: usize,
) -> Result<(), catalog::Error> {
    let is_scheduler = app.duty.is_ours();
    let (living, hosts) = app.catalog.read(|tx| {
        let living = match is_scheduler {
            true => record::all_living(tx)?,
            false => record::living_on(tx, &app.host)?,
        };
        let (all, clock) = (hosts::all(tx)?, tx.clock()?);
        Ok::<_, catalog::Error>((living, Hosts { all, clock }))
    })?;
    let (mut attached, managed): (Vec<Instance>, Vec<Instance>) = living
        .into_iter()
        .partition(|instance| instance.attachment.is_some());
    for instance in managed {
        if instance.host.as_ref() != Some(&app.host) {
            if app.duty.may_judge(app.config.lease) {
                tell_lost(app, &instance, &hosts)?;
            }
            continue;
        }
        places.take();
        look_aside(app, places, instance);
    }
    // Servers that answer late may fill all places: each pass begins with others, and ends where there is no place.
    let first = pass.wrapping_mul(limits::ATTACHED_LOOKS_AT_ONCE) % attached.len().max(1);
    attached.rotate_left(first);
    if !is_scheduler {
        return Ok(());
    }
    for instance in attached {
        if !of_attached.try_take() {
            break;
        }
        look_aside(app, of_attached, instance);
    }
    Ok(())
}

/// The hosts, and what time it is by their clock.
struct Hosts {
    all: Vec<Host>,
    clock: Moment,
}

/// Says of an instance that its host has not been seen, where that is so: whoever can look at its engines is not there. When the
/// host is back, it says itself that they serve.
fn tell_lost(app: &App, instance: &Instance, hosts: &Hosts) -> Result<(), catalog::Error> {
    if instance.status != Status::Running {
        return Ok(());
    }
    let host = hosts
        .all
        .iter()
        .find(|host| Some(&host.id) == instance.host.as_ref());
    let why = match host {
        Some(host) if host.lost_at >= hosts.clock => return Ok(()),
        Some(host) => format!(
            "its node {} has not been seen since {}: nobody can look after it until the node is back",
            host.name,
            host.seen_at.iso()
        ),
        None => {
            "its node was forgotten: restore a backup into a new instance, and delete this one".to_owned()
        }
    };
    tracing::warn!(instance.id = %instance.id, why, "an instance has nobody who looks after it");
    app.catalog.write(|tx| {
        // It may have been seen meanwhile.
        if let Some(host) = &instance.host
            && hosts::alive(tx)?.contains(host)
        {
            return Ok(());
        }
        let (from, to) = (Status::Running, Status::Error);
        record::transition(tx, &instance.id, from, to, Some(&why), Moment::now()).map(drop)
    })
}

/// Mends it on a thread of its own, which gives the place back that was taken for it.
fn look_aside(app: &Arc<App>, places: &Arc<Places>, instance: Instance) {
    // Held means that a job is at work, or that an earlier look has not come to its end. What is read below stays
    // true while we hold it.
    let Some(gate) = Gate::enter(app, &instance.id) else {
        places.give_back();
        return;
    };
    let (shared, held) = (app.clone(), places.clone());
    let thread = std::thread::Builder::new().name("mend".to_owned()).spawn(move || {
        let mended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| mend(&shared, &instance.id)));
        match mended {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!(instance.id = %instance.id, error = engine::chain(&error), "the reconciler could not use the catalogue");
            }
            Err(panic) => {
                tracing::error!(instance.id = %instance.id, panic = panic_text(&panic), "the reconciler panicked: this is a bug");
            }
        }
        drop(gate);
        held.give_back();
    });
    if let Err(error) = thread {
        tracing::error!(%error, "no thread to look at an instance");
        places.give_back();
    }
}

fn mend(app: &App, id: &InstanceId) -> Result<(), catalog::Error> {
    let (active, existing, instance) = app.catalog.read(|tx| {
        Ok::<_, catalog::Error>((
            queue::active(tx, id)?,
            generation::existing(tx, id)?,
            record::load(tx, id)?,
        ))
    })?;
    let (None, Some(instance)) = (active, &instance) else {
        return Ok(());
    };
    if let Some(attached) = &instance.attachment {
        return look_after(app, instance, attached);
    }
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
        if superfluous || !nodes::hold_data(app, instance, found) {
            remove_generation(app, instance, found);
        }
    }
    Ok(())
}

/// Puts back what a capture that a crash cut off has left changed on servers that are not ours, and looks now and then whether
/// they are there.
fn look_after(app: &App, instance: &Instance, attached: &Attachment) -> Result<(), catalog::Error> {
    let now = Moment::now();
    let every = match instance.status {
        Status::Running => limits::ATTACHED_LOOK_EVERY,
        // Each pass that nothing woke: they do not come to the millisecond, and one that came early would count for nothing.
        Status::Error => limits::RECONCILE_EVERY / 2,
        _ => return Ok(()),
    };
    if attached.settings.is_empty() && !app.board.is_due(&instance.id, every) {
        return Ok(());
    }
    // What does not go back is told in the log and tried again: a node that is gone for good says nothing of the others.
    let _told_in_the_log = servers::put_settings_back(app, instance, attached, None, now);
    let Err(error) = servers::look(app, instance, attached, now) else {
        return app.catalog.write(|tx| {
            replay_record::settle_unknown(tx, &instance.id, now)?;
            migrations::settle_unknown(tx, &instance.id, now)
        });
    };
    let why = servers::told(instance, &error);
    tracing::warn!(instance.id = %instance.id, why, "attached servers cannot be used; looking again");
    app.catalog.write(|tx| {
        record::transition(tx, &instance.id, Status::Running, Status::Error, Some(&why), now).map(drop)
    })
}

fn remove_generation(app: &App, instance: &Instance, found: &Generation) {
    if let Err(stop) = instances::take_down(app, instance, &found.id) {
        tracing::warn!(instance.id = %instance.id, generation.id = %found.id, ?stop, "a generation does not go; trying again");
    }
}

/// What a look at an engine came to.
enum Look {
    /// It has its port.
    Serves(Engine, Vitals),
    /// It lives and is busy with something long of its clients'.
    Busy,
    /// It is gone, or has not got its port.
    Amiss,
}

fn look_at(app: &App, instance: &Instance, serving: &Generation, place: &Place) -> Look {
    let Some(engine) = nodes::find(app, instance, serving, place).unwrap_or(None) else {
        return Look::Amiss;
    };
    match engine.vitals(limits::GLANCE) {
        Ok(vitals) if vitals.port == place.port => Look::Serves(engine, vitals),
        // A script that runs for long is answered with BUSY.
        Err(error) if matches!(error.kind, Kind::Idle | Kind::Refused) => {
            tracing::info!(instance.id = %instance.id, engine.pid = engine.pid(), error = engine::chain(&error), "the engine is busy: leaving it alone");
            Look::Busy
        }
        _ => Look::Amiss,
    }
}

/// Brings the serving engines back that are gone, and gives them their ports where they have not got them. One that
/// lives and is busy with something long of its clients' is left alone.
fn keep_serving(app: &App, instance: &Instance, serving: &Generation) -> Result<(), catalog::Error> {
    let now = Moment::now();
    if instance.layout.mode == Mode::Ha {
        return keep_watched(app, instance, serving, now);
    }
    let looks: Vec<Look> = serving
        .nodes
        .iter()
        .map(|place| look_at(app, instance, serving, place))
        .collect();
    if !looks.iter().any(|look| matches!(look, Look::Amiss)) {
        let mut memory = BTreeMap::new();
        for (place, look) in serving.nodes.iter().zip(&looks) {
            let Look::Serves(engine, vitals) = look else {
                return Ok(());
            };
            // The nodes of a shard hold the same.
            memory.entry(place.shard).or_insert(vitals.used_memory_bytes);
            if instance.persistence == Persistence::None
                && let Err(error) = engine.forget_snapshot()
            {
                tracing::warn!(instance.id = %instance.id, error = engine::chain(&error), "a file that is to be forgotten does not go");
            }
        }
        app.board.note_memory(&instance.id, memory.values().sum());
        if instance.status == Status::Error {
            serves_again(app, instance, true, now)?;
        }
        return Ok(());
    }
    tracing::warn!(instance.id = %instance.id, "the engine is not serving: bringing it back");
    bring_back(app, instance, serving, now)
}

/// As [`keep_serving`], of a primary with replicas: the Sentinels have done the most urgent, or are about to.
fn keep_watched(
    app: &App,
    instance: &Instance,
    serving: &Generation,
    now: Moment,
) -> Result<(), catalog::Error> {
    match watched::look(app, instance, serving) {
        Health::Whole(used_memory_bytes) => {
            app.board.note_memory(&instance.id, used_memory_bytes);
            if instance.persistence == Persistence::None {
                for engine in nodes::living(app, instance, serving).unwrap_or_default() {
                    if let Err(error) = engine.forget_snapshot() {
                        tracing::warn!(instance.id = %instance.id, error = engine::chain(&error), "a file that is to be forgotten does not go");
                    }
                }
            }
            if instance.status == Status::Error {
                serves_again(app, instance, true, now)?;
            }
            Ok(())
        }
        Health::Busy => {
            tracing::info!(instance.id = %instance.id, "a node is busy: leaving it alone");
            Ok(())
        }
        Health::Amiss(why) => {
            tracing::warn!(instance.id = %instance.id, why, "not all of it is as it should be: bringing it back");
            bring_back(app, instance, serving, now)
        }
    }
}

fn bring_back(
    app: &App,
    instance: &Instance,
    serving: &Generation,
    now: Moment,
) -> Result<(), catalog::Error> {
    let has_data = nodes::hold_data(app, instance, serving);
    let control = Control::new(Some(limits::OPERATION_TIME_BASE));
    match nodes::bring_up(app, instance, serving, &control) {
        Ok(()) => {
            tracing::info!(instance.id = %instance.id, "the engine serves again");
            serves_again(app, instance, has_data, now)?;
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

/// Writes that the instance serves. Where it does so with the data from before, a restore that could not say so can
/// now.
fn serves_again(app: &App, instance: &Instance, has_data: bool, now: Moment) -> Result<(), catalog::Error> {
    app.catalog.write(|tx| {
        if has_data {
            crate::restore::record::settle_unknown(tx, &instance.id, now)?;
        }
        replay_record::settle_unknown(tx, &instance.id, now)?;
        migrations::settle_unknown(tx, &instance.id, now)?;
        record::transition(tx, &instance.id, Status::Error, Status::Running, None, now).map(drop)
    })
}

/// Ends engine processes and removes directories that no generation of the catalogue owns.
fn remove_orphans(app: &App) -> Result<(), catalog::Error> {
    // As the kernel shows it: what is compared with is the working directory of a process.
    let root = match app.config.instances_dir().canonicalize() {
        Ok(root) => root,
        Err(error) => {
            tracing::error!(%error, "cannot look for orphans");
            return Ok(());
        }
    };
    let existing = app.catalog.read(generation::all_existing)?;
    let living = app.catalog.read(record::all_living)?;
    let of_generations = existing
        .iter()
        .map(|found| root.join(found.instance_id.as_str()).join(found.id.as_str()));
    let of_sentinels = living
        .iter()
        .filter(|found| !found.sentinels.is_empty())
        .filter_map(|found| {
            let directory = app.config.sentinels_dir(&found.id);
            let below = directory.strip_prefix(app.config.instances_dir()).ok()?;
            Some(root.join(below))
        });
    let owned: HashSet<PathBuf> = of_generations.chain(of_sentinels).collect();
    let unowned = || {
        let mut found = process::find_orphans(&root);
        // A node of several has a directory of its own below the generation's.
        found.retain(|(_, directory)| !directory.ancestors().any(|above| owned.contains(above)));
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
    let instances: HashSet<String> = living.iter().map(|found| found.id.to_string()).collect();
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
