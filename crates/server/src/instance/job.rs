//! The work on instances: bring a generation up, take one away, and the jobs made of these two.
//!
//! Both are idempotent, and nothing but the directory identifies a process: a generation's engine is the process
//! whose working directory is the generation's. So a restart of ours, a crash between any two steps, and the normal
//! way are the same code.

use std::path::{Path, PathBuf};

use engine::cluster;
use engine::process::{self, Clients, Engine, EngineSpec, Persistence, Program};
use engine::{Control, Error, Kind, Secret, failpoint};

use super::attachment::{Attachment, servers};
use super::generation::{self, Generation, State};
use super::record::{self, Instance, Status};
use super::{nodes, watched};
use crate::app::App;
use crate::backup;
use crate::catalog;
use crate::ids::{GenerationId, InstanceId, Moment};
use crate::jobs::worker::{Ended, Stop, begun_too_often, settle, step};
use crate::jobs::{Claim, JobKind, queue};
use crate::limits;

/// Runs a job of the instance itself.
///
/// # Errors
/// [`Stop`] where the claim is lost or the catalogue fails: nothing is settled then.
pub fn run(app: &App, claim: &Claim, control: &Control) -> Result<Ended, Stop> {
    let instance = app
        .catalog
        .read(|tx| record::load(tx, &claim.instance_id))?
        .ok_or_else(|| Stop::Broken("a job names an unknown instance".to_owned()))?;
    match claim.kind {
        JobKind::Create => create(app, claim, &instance, control),
        JobKind::Delete => delete(app, claim, &instance),
        JobKind::Restart | JobKind::Flush | JobKind::Password | JobKind::Resize => {
            let done = match claim.kind {
                JobKind::Restart => restart(app, claim, &instance, control)?,
                JobKind::Flush => flush(app, claim, &instance, control)?,
                kind => nodes::serving(app, &instance)
                    .and_then(|engines| {
                        engines.iter().try_for_each(|engine| match kind {
                            JobKind::Resize => engine.set_max_memory(share_bytes(&instance)),
                            _ => give_password(app, &instance, engine),
                        })
                    })
                    .map_err(NotDone::Failed),
            };
            let now = Moment::now();
            failpoint::hit("operation.before_settle")?;
            settle(app, claim, |tx| match &done {
                Ok(()) if instance.status == Status::Error => {
                    record::transition(tx, &instance.id, Status::Error, Status::Running, None, now).map(drop)
                }
                Ok(()) | Err(NotDone::Refused(_)) => Ok(()),
                Err(NotDone::Failed(error)) => {
                    let why = engine::chain(error);
                    record::transition(tx, &instance.id, Status::Running, Status::Error, Some(&why), now)
                        .map(drop)
                }
            })?;
            Ok(Ended::from_result(done.map_err(|not_done| match not_done {
                NotDone::Failed(error) | NotDone::Refused(error) => error,
            })))
        }
        JobKind::Backup | JobKind::Restore | JobKind::Migration => {
            Err(Stop::Broken("not a job of the instance".to_owned()))
        }
    }
}

fn create(app: &App, claim: &Claim, instance: &Instance, control: &Control) -> Result<Ended, Stop> {
    let existing = app.catalog.read(|tx| generation::existing(tx, &instance.id))?;
    let generation = existing
        .into_iter()
        .find(|found| matches!(found.state, State::Loading | State::Serving));
    let started = match (&generation, begun_too_often(claim)) {
        (Some(generation), None) => nodes::bring_up(app, instance, generation, control)
            .and_then(|()| nodes::form(app, instance, generation, control)),
        (_, Some(error)) => Err(error),
        // An earlier attempt failed, took it down, and was interrupted before it could say so.
        (None, None) => Err(Error::new(
            Kind::EngineStart,
            "create instance",
            "its engine did not start",
        )),
    };
    if started.is_err() && claim.lease.is_over() {
        // It was told to stop. What there is of it is taken up again.
        return Err(Stop::ClaimLost);
    }
    let now = Moment::now();
    if let (Err(_), Some(generation)) = (&started, &generation) {
        watched::end_sentinels(app, instance)?;
        take_down(app, instance, &generation.id)?;
    }
    failpoint::hit("create.before_settle")?;
    settle(app, claim, |tx| {
        match &started {
            Ok(()) => {
                if let Some(generation) = &generation {
                    generation::transition(tx, &generation.id, State::Loading, State::Serving)?;
                }
                record::transition(tx, &instance.id, Status::Creating, Status::Running, None, now)?;
            }
            Err(error) => {
                let why = engine::chain(error);
                record::transition(
                    tx,
                    &instance.id,
                    Status::Creating,
                    Status::CreateFailed,
                    Some(&why),
                    now,
                )?;
            }
        }
        Ok(())
    })?;
    Ok(Ended::from_result(started))
}

fn delete(app: &App, claim: &Claim, instance: &Instance) -> Result<Ended, Stop> {
    failpoint::hit("delete.before_take_down")?;
    if let Some(attached) = &instance.attachment {
        return detach(app, claim, instance, attached);
    }
    watched::end_sentinels(app, instance)?;
    for generation in app.catalog.read(|tx| generation::existing(tx, &instance.id))? {
        take_down(app, instance, &generation.id)?;
        failpoint::hit("delete.after_generation")?;
    }
    remove_directory(&app.config.instance_dir(&instance.id))?;
    failpoint::hit("delete.before_settle")?;
    let now = Moment::now();
    settle(app, claim, |tx| {
        record::transition(tx, &instance.id, Status::Deleting, Status::Deleted, None, now).map(drop)
    })?;
    Ok(Ended::Done)
}

/// Forgets servers that are not ours. Nothing of them is touched, but what a capture may have left changed is put back; where
/// they cannot be reached for that any more, there is nobody to wait for.
fn detach(app: &App, claim: &Claim, instance: &Instance, attached: &Attachment) -> Result<Ended, Stop> {
    let now = Moment::now();
    if let Err(error) = servers::put_settings_back(app, instance, attached, Some(claim), now) {
        let left: Vec<String> = attached
            .settings
            .iter()
            .map(|setting| format!("{}: {} {}", setting.node, setting.name, setting.before))
            .collect();
        tracing::warn!(instance.id = %instance.id, settings = ?left, error = engine::chain(&error), "settings of detached servers are not put back");
    }
    failpoint::hit("delete.before_settle")?;
    settle(app, claim, |tx| {
        record::forget_attached_secrets(tx, &instance.id)?;
        record::transition(tx, &instance.id, Status::Deleting, Status::Deleted, None, now).map(drop)
    })?;
    Ok(Ended::Done)
}

/// Why something that was asked of an engine is not done.
enum NotDone {
    /// It was tried: the instance may not serve.
    Failed(Error),
    /// It was not tried, so the instance is as it was.
    Refused(Error),
}

impl From<Error> for NotDone {
    fn from(error: Error) -> Self {
        NotDone::Failed(error)
    }
}

/// Restarts the engine once, however often the job is taken up: clients write to the new process at once, and another
/// restart could cost them that.
fn restart(
    app: &App,
    claim: &Claim,
    instance: &Instance,
    control: &Control,
) -> Result<Result<(), NotDone>, Stop> {
    let running = serving_generation(app, instance)
        .and_then(|generation| Ok((nodes::living(app, instance, &generation)?, generation)));
    let (found, generation) = match running {
        Ok(running) => running,
        Err(error) => return Ok(Err(error.into())),
    };
    let to_stop: Vec<Engine> = match &claim.subject_id {
        Some(meant) => found
            .into_iter()
            .filter(|engine| meant.split(',').any(|one| one == engine.identity()))
            .collect(),
        None => {
            if let Err(error) = control.check("restart") {
                return Ok(Err(NotDone::Refused(error)));
            }
            if !found.is_empty() {
                intend(app, claim, &found)?;
            }
            found
        }
    };
    let done = || {
        for engine in to_stop {
            failpoint::hit("restart.before_stop")?;
            match instance.persistence {
                Persistence::Rdb => {
                    engine.stop_saved(limits::ENGINE_STOP + limits::time_for(engine.used_memory()?))?;
                }
                Persistence::Aof | Persistence::None => engine.stop(limits::ENGINE_STOP)?,
            }
            failpoint::hit("restart.after_stop")?;
        }
        nodes::bring_up(app, instance, &generation, control)?;
        nodes::wait_whole(app, instance, &generation, control)
    };
    Ok(done().map_err(NotDone::Failed))
}

/// Removes all keys, at most once: what clients wrote after it must not go when a crash interrupted the job. Where it
/// is not known whether the engine was told, it is not told again.
fn flush(
    app: &App,
    claim: &Claim,
    instance: &Instance,
    control: &Control,
) -> Result<Result<(), NotDone>, Stop> {
    if claim.subject_id.is_some() {
        let context = "a crash came in between: it was done, or was about to be; it is not repeated";
        let error = Error::new(Kind::Cancelled, "flush", context);
        return Ok(Err(NotDone::Refused(error)));
    }
    if let Err(error) = control.check("flush") {
        return Ok(Err(NotDone::Refused(error)));
    }
    let engines = match nodes::serving(app, instance) {
        Ok(engines) => engines,
        Err(error) => return Ok(Err(error.into())),
    };
    intend(app, claim, &engines)?;
    let flushed = engines
        .iter()
        .try_for_each(|engine| match engine.is_primary(limits::ENGINE_IDLE)? {
            true => engine.flush_all(),
            // It follows its primary.
            false => Ok(()),
        });
    Ok(flushed.map_err(NotDone::Failed))
}

/// Writes down which processes are meant.
fn intend(app: &App, claim: &Claim, engines: &[Engine]) -> Result<(), Stop> {
    let identities: Vec<String> = engines.iter().map(Engine::identity).collect();
    step(app, claim, |tx| queue::intend(tx, claim, &identities.join(",")))?;
    failpoint::hit("operation.intended")?;
    Ok(())
}

/// The control password of the instance's engines.
///
/// # Errors
/// [`Kind::Key`] where the sealed column does not open.
pub fn admin_password(app: &App, instance: &Instance) -> Result<Secret, Error> {
    let place = format!("instance.admin:{}", instance.id);
    Ok(Secret::new(
        app.vault.master.open(&place, &instance.admin_password_sealed)?,
    ))
}

/// As whom clients come in.
///
/// # Errors
/// [`Kind::Key`] where the sealed column does not open.
pub fn clients(app: &App, instance: &Instance) -> Result<Clients, Error> {
    Ok(Clients {
        user: instance.client_user.clone(),
        password: super::command::client_password(app, instance)?.map(Secret::new),
    })
}

pub(super) fn give_password(app: &App, instance: &Instance, engine: &Engine) -> Result<(), Error> {
    engine.let_clients_in(&clients(app, instance)?)
}

/// As [`node_spec`], for the only node of a generation.
///
/// # Errors
/// [`Kind::Key`].
pub fn spec(app: &App, instance: &Instance, generation: &GenerationId) -> Result<EngineSpec, Error> {
    node_spec(
        app,
        instance,
        app.config.generation_dir(&instance.id, generation),
        None,
    )
}

/// How an engine of a generation is started: without a client port, and without a memory limit until it is loaded
/// (a limit would evict or refuse while a verification reads big values).
///
/// # Errors
/// [`Kind::Key`]; [`Kind::EngineStart`] where its engine is not on this machine any more.
pub(super) fn node_spec(
    app: &App,
    instance: &Instance,
    directory: PathBuf,
    seat: Option<cluster::Seat>,
) -> Result<EngineSpec, Error> {
    Ok(EngineSpec {
        program: program(app, instance)?.clone(),
        directory,
        run_as: app.config.run_as,
        bind: instance.bind.clone(),
        port: 0,
        admin_password: admin_password(app, instance)?,
        clients: clients(app, instance)?,
        max_memory_bytes: 0,
        persistence: instance.persistence,
        certificate: super::command::certificate(app, instance, &[])?,
        cluster: seat,
        watched: None,
    })
}

/// The program of the instance's engines and Sentinels.
///
/// # Errors
/// As [`Config::program`](crate::config::Config::program).
pub fn program<'a>(app: &'a App, instance: &Instance) -> Result<&'a Program, Error> {
    app.config.program(instance.engine, &instance.engine_version)
}

/// The memory limit of the instance, in bytes: of all its shards together.
pub fn max_memory_bytes(instance: &Instance) -> u64 {
    u64::try_from(instance.capacity_mb)
        .unwrap_or(0)
        .saturating_mul(1024 * 1024)
}

/// The memory limit of one of its engines.
fn share_bytes(instance: &Instance) -> u64 {
    max_memory_bytes(instance) / u64::from(instance.layout.shards.max(1))
}

/// Finds the generation's engine or starts it, waits until it has loaded, and gives it its limit and password. It stays
/// without a port.
///
/// # Errors
/// [`Kind::EngineStart`], [`Kind::EngineExited`] with the end of its log.
pub fn bring_up_beside(
    app: &App,
    instance: &Instance,
    generation: &GenerationId,
    control: &Control,
) -> Result<Engine, Error> {
    let engine = start_or_find(app, instance, &spec(app, instance, generation)?)?;
    make_ready(app, instance, &engine, None, control)?;
    Ok(engine)
}

/// The engine of this directory, started where it is gone; it may be loading. With a port in `spec` one whose port cannot be
/// changed has it, or was started anew: nobody has reached it, so its files hold what it holds.
pub(super) fn start_or_find(app: &App, instance: &Instance, spec: &EngineSpec) -> Result<Engine, Error> {
    if let Some(engine) = process::find(&spec.directory, &spec.admin_password)? {
        let may_stay = spec.port == 0 || !spec.program.has_fixed_port();
        if may_stay || engine.current_port()? == spec.port {
            return Ok(engine);
        }
        match engine.current_port()? {
            0 => engine.stop(limits::ENGINE_STOP)?,
            // Of no use where it is, and yet somebody may have written to it.
            _ => engine.stop_saved(limits::ENGINE_STOP + limits::time_for(engine.used_memory()?))?,
        }
    }
    prepare_directory(app, &instance.id)?;
    process::start(spec)
}

/// Waits until the engine has loaded, and gives it its limit, password and port.
pub(super) fn make_ready(
    app: &App,
    instance: &Instance,
    engine: &Engine,
    port: Option<u16>,
    control: &Control,
) -> Result<(), Error> {
    engine.wait_loaded(control)?;
    let mut node = engine.control()?;
    node.config_set("maxmemory", &share_bytes(instance).to_string())?;
    give_password(app, instance, engine)?;
    if let Some(port) = port
        && engine.current_port()? != port
    {
        engine.set_port(port)?;
    }
    Ok(())
}

/// Whether the generation can still be served: its engine lives, or its data is on disk.
///
/// An instance without persistence keeps its data in its process alone, so a retired generation is lost with that.
pub fn holds_data(app: &App, instance: &Instance, generation: &GenerationId) -> bool {
    instance.persistence != Persistence::None
        || directory_holds_data(
            app,
            instance,
            &app.config.generation_dir(&instance.id, generation),
        )
}

/// As [`holds_data`], for one node without persistence.
pub(super) fn directory_holds_data(app: &App, instance: &Instance, directory: &Path) -> bool {
    directory.join("dump.rdb").exists()
        || !matches!(
            admin_password(app, instance).and_then(|password| process::find(directory, &password)),
            Ok(None)
        )
}

/// Makes the instance's directory: engines of another user must be able to have their working directory below it,
/// but nobody else may list it.
///
/// # Errors
/// [`Kind::Io`].
pub fn prepare_directory(app: &App, instance: &InstanceId) -> Result<(), Error> {
    prepare_folder(&app.config.instance_dir(instance))
}

/// Makes a directory that engines of another user pass through.
pub(super) fn prepare_folder(directory: &Path) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir_all(directory)
        .and_then(|()| std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o711)))
        .map_err(|e| Error::io(Kind::Io, "prepare directory", directory.display().to_string(), e))
}

/// The generation that clients reach.
///
/// # Errors
/// [`Kind::NotFound`].
pub fn serving_generation(app: &App, instance: &Instance) -> Result<Generation, Error> {
    let found = app.catalog.read(|tx| generation::serving(tx, &instance.id));
    match found {
        Ok(Some(generation)) => Ok(generation),
        Ok(None) => Err(Error::new(
            Kind::NotFound,
            "find engine",
            "the instance has no serving generation",
        )),
        Err(error) => Err(catalog_failed(error)),
    }
}

/// An error of the catalogue where the data plane's error is wanted.
pub fn catalog_failed(error: catalog::Error) -> Error {
    Error::new(Kind::Io, "read catalogue", "the catalogue failed").because(error)
}

/// The engine that serves the instance now, where it is one of a single node.
///
/// # Errors
/// [`Kind::EngineExited`] where it is not running; the reconciler brings it back.
pub fn serving(app: &App, instance: &Instance) -> Result<Engine, Error> {
    let generation = serving_generation(app, instance)?;
    let directory = app.config.generation_dir(&instance.id, &generation.id);
    find_running(app, instance, &directory)
}

/// The engine of this directory.
///
/// # Errors
/// [`Kind::EngineExited`] where it is not running.
pub(super) fn find_running(app: &App, instance: &Instance, directory: &Path) -> Result<Engine, Error> {
    process::find(directory, &admin_password(app, instance)?)?.ok_or_else(|| {
        Error::new(
            Kind::EngineExited,
            "find engine",
            "the instance's engine is not running",
        )
    })
}

/// Removes a generation: its processes first, then its directory, then its row's claim to exist.
///
/// # Errors
/// [`Stop`] where the process does not end or the directory does not go; the row stays `Removing` and the
/// reconciler goes on.
pub fn take_down(app: &App, instance: &Instance, id: &GenerationId) -> Result<(), Stop> {
    let found = app.catalog.write(|tx| {
        for state in [State::Loading, State::Serving, State::Retired] {
            generation::transition(tx, id, state, State::Removing)?;
        }
        backup::record::expire_generation(tx, id, Moment::now())?;
        generation::find(tx, id)
    })?;
    failpoint::hit("generation.removing")?;
    let directory = app.config.generation_dir(&instance.id, id);
    if let Some(generation) = &found {
        for engine in nodes::living(app, instance, generation)? {
            engine.kill()?;
        }
    }
    failpoint::hit("generation.killed")?;
    remove_directory(&directory)?;
    failpoint::hit("generation.directory_removed")?;
    app.catalog
        .write(|tx| generation::transition(tx, id, State::Removing, State::Removed).map(drop))?;
    Ok(())
}

fn remove_directory(directory: &std::path::Path) -> Result<(), Error> {
    match std::fs::remove_dir_all(directory) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io(
            Kind::Io,
            "remove directory",
            directory.display().to_string(),
            e,
        )),
    }
}
