//! The nodes of a generation, all together: bring them up, find them, form a cluster of them.

use std::path::PathBuf;

use engine::cluster::{self, Member, Peer, Seat, Succession};
use engine::process::{self, Engine, EngineSpec, Persistence};
use engine::switch::{self, Door};
use engine::{Control, Error, failpoint};

use super::generation::Generation;
use super::layout::{Mode, Place};
use super::record::Instance;
use super::{job, watched};
use crate::app::App;
use crate::limits;

/// The working directory of a node: that of the generation where it is the only one.
pub fn directory(app: &App, generation: &Generation, place: &Place) -> PathBuf {
    let home = app.config.generation_dir(&generation.instance_id, &generation.id);
    match place.bus_port.is_some() || place.address.is_some() {
        false => home,
        true => home.join(place.id.as_str()),
    }
}

/// How clients come in to the node while it serves them.
pub fn door(instance: &Instance, place: &Place) -> Door {
    watched::door(instance, place)
}

fn seat(instance: &Instance, generation: &Generation, place: &Place) -> Option<Seat> {
    place.bus_port.map(|bus_port| Seat {
        address: instance.bind.clone(),
        port: place.port,
        bus_port,
        generation: generation.id.to_string(),
        peers: Vec::new(),
    })
}

/// As [`seat`], while another generation has the client ports.
fn seat_beside(instance: &Instance, generation: &Generation, place: &Place) -> Option<Seat> {
    seat(instance, generation, place).map(|seat| Seat {
        port: place.side_port.unwrap_or(place.port),
        ..seat
    })
}

/// The nodes of a generation as they are told of each other before they start.
fn peers(instance: &Instance, generation: &Generation) -> Vec<Peer> {
    let peer = |place: &Place| {
        let seat = seat_beside(instance, generation, place)?;
        Some(Peer {
            shard: place.shard,
            port: seat.port,
            bus_port: seat.bus_port,
            is_first: is_first(generation, place),
        })
    };
    generation.nodes.iter().filter_map(peer).collect()
}

/// The nodes that are to be the primaries of their shards, shard by shard.
pub fn firsts(generation: &Generation) -> impl Iterator<Item = &Place> {
    let mut next = 0;
    generation.nodes.iter().filter(move |place| {
        let is_first = place.shard == next;
        next += u16::from(is_first);
        is_first
    })
}

fn is_first(generation: &Generation, place: &Place) -> bool {
    firsts(generation).any(|first| first.id == place.id)
}

/// How the first node of a shard is started to load what the shard is to hold.
///
/// # Errors
/// [`Kind::Key`].
pub fn standby_spec(
    app: &App,
    instance: &Instance,
    generation: &Generation,
    place: &Place,
) -> Result<EngineSpec, Error> {
    if instance.layout.mode == Mode::Ha {
        return watched_spec(app, instance, generation, place, None);
    }
    let seat = seat_beside(instance, generation, place).map(|seat| Seat {
        peers: peers(instance, generation),
        ..seat
    });
    job::node_spec(app, instance, directory(app, generation, place), seat)
}

/// How a watched node is started, following that one from its start.
///
/// # Errors
/// [`Kind::Key`].
pub(super) fn watched_spec(
    app: &App,
    instance: &Instance,
    generation: &Generation,
    place: &Place,
    follows: Option<&Place>,
) -> Result<EngineSpec, Error> {
    let spec = job::node_spec(app, instance, directory(app, generation, place), None)?;
    Ok(EngineSpec {
        bind: place.address.clone().unwrap_or(spec.bind),
        certificate: super::command::certificate(
            app,
            instance,
            &place.address.iter().map(String::as_str).collect::<Vec<_>>(),
        )?,
        watched: watched::watched(generation, place, follows),
        ..spec
    })
}

/// The engine of a node; `None` where it is not running.
///
/// # Errors
/// As [`process::find`]; [`Kind::Key`].
pub fn find(
    app: &App,
    instance: &Instance,
    generation: &Generation,
    place: &Place,
) -> Result<Option<Engine>, Error> {
    process::find(
        &directory(app, generation, place),
        &job::admin_password(app, instance)?,
    )
}

/// The engines of the generation that run, in the order of its nodes.
///
/// # Errors
/// As [`find`].
pub fn living(app: &App, instance: &Instance, generation: &Generation) -> Result<Vec<Engine>, Error> {
    let mut found = Vec::new();
    for place in &generation.nodes {
        found.extend(find(app, instance, generation, place)?);
    }
    Ok(found)
}

/// Every engine that serves the instance now.
///
/// # Errors
/// [`Kind::EngineExited`] where one is not running; the reconciler brings it back.
pub fn serving(app: &App, instance: &Instance) -> Result<Vec<Engine>, Error> {
    let generation = job::serving_generation(app, instance)?;
    let places = generation.nodes.iter();
    places
        .map(|place| job::find_running(app, instance, &directory(app, &generation, place)))
        .collect()
}

/// The engines that serve the instance now, those that are gone left out.
///
/// # Errors
/// [`Kind::NotFound`] without a serving generation; as [`find`].
pub fn serving_ones(app: &App, instance: &Instance) -> Result<Vec<Engine>, Error> {
    living(app, instance, &job::serving_generation(app, instance)?)
}

/// Finds the generation's engines or starts them, all at once, waits until they have loaded, and gives each its limit,
/// password and port. A node that must wait for its successor ([`cluster::succession`]) is left as it is: the
/// reconciler comes again.
///
/// # Errors
/// As [`job::bring_up`].
pub fn bring_up(
    app: &App,
    instance: &Instance,
    generation: &Generation,
    control: &Control,
) -> Result<(), Error> {
    if instance.layout.mode == Mode::Ha {
        return watched::bring_up(app, instance, generation, control);
    }
    let started = start(app, instance, generation, Beside::Nobody)?;
    for (place, engine) in &started {
        job::make_ready(app, instance, engine, Some(place.port), control)?;
        failpoint::hit("nodes.one_ready")?;
    }
    Ok(())
}

/// As [`bring_up`], beside the generation that has the client ports: all nodes, and none gets its port.
///
/// # Errors
/// As [`bring_up`].
pub fn bring_up_beside(
    app: &App,
    instance: &Instance,
    generation: &Generation,
    control: &Control,
) -> Result<(), Error> {
    if instance.layout.mode == Mode::Ha {
        return watched::bring_up_beside(app, instance, generation, control);
    }
    loop {
        let started = start(app, instance, generation, Beside::TheServing)?;
        for (_, engine) in &started {
            job::make_ready(app, instance, engine, None, control)?;
        }
        if started.len() == generation.nodes.len() {
            return Ok(());
        }
        control.check("bring up")?;
        std::thread::sleep(limits::SUCCESSOR_POLL);
    }
}

/// Whether another generation has the client ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beside {
    Nobody,
    TheServing,
}

/// Finds the engines or starts them, but for those that must wait. Those that cannot get their port later have it then.
fn start<'a>(
    app: &App,
    instance: &Instance,
    generation: &'a Generation,
    beside: Beside,
) -> Result<Vec<(&'a Place, Engine)>, Error> {
    let mut started = Vec::new();
    for place in &generation.nodes {
        if must_wait(app, instance, generation, place)? {
            tracing::info!(instance.id = %instance.id, node.id = %place.id, "a replica takes over first: its primary comes back after that");
            continue;
        }
        if place.bus_port.is_some() {
            prepare_home(app, instance, generation)?;
        }
        let home = directory(app, generation, place);
        let mut spec = job::node_spec(app, instance, home, seat(instance, generation, place))?;
        if beside == Beside::Nobody && spec.program.has_fixed_port() {
            spec.port = place.port;
        }
        started.push((place, job::start_or_find(app, instance, &spec)?));
        failpoint::hit("nodes.one_started")?;
    }
    Ok(started)
}

/// Makes the directory in which the nodes of a new generation have theirs.
///
/// # Errors
/// [`Kind::Io`].
pub fn prepare_beside(app: &App, instance: &Instance, generation: &Generation) -> Result<(), Error> {
    prepare_home(app, instance, generation)
}

/// Makes a cluster that clients can be given of first nodes that have loaded: they take their slots, their replicas
/// come up and into sync, and all agree on the final ports, which none of them has yet.
///
/// # Errors
/// As [`form`].
pub fn join(app: &App, instance: &Instance, generation: &Generation, control: &Control) -> Result<(), Error> {
    if instance.layout.mode == Mode::Ha {
        return watched::join(app, instance, generation, control);
    }
    let share = job::max_memory_bytes(instance) / u64::from(instance.layout.shards.max(1));
    let mut firsts_running = Vec::new();
    for place in firsts(generation) {
        let engine = job::find_running(app, instance, &directory(app, generation, place))?;
        engine.promote(share)?;
        if let Some(side_port) = place.side_port {
            engine.shut_clients_out()?;
            engine.set_port(side_port)?;
        }
        firsts_running.push(engine);
    }
    failpoint::hit("nodes.promoted")?;
    let mut followers = Vec::new();
    for place in generation
        .nodes
        .iter()
        .filter(|place| !is_first(generation, place))
    {
        let seat = seat(instance, generation, place).map(|seat| Seat {
            peers: peers(instance, generation),
            ..seat
        });
        let home = directory(app, generation, place);
        let spec = job::node_spec(app, instance, home, seat)?;
        followers.push(job::start_or_find(app, instance, &spec)?);
        failpoint::hit("nodes.one_started")?;
    }
    for engine in &followers {
        job::make_ready(app, instance, engine, None, control)?;
    }
    let beside = members(app, instance, generation, seat_beside)?;
    cluster::form(&beside, instance.layout.shards, control)?;
    failpoint::hit("nodes.in_sync")?;
    let members = members(app, instance, generation, seat)?;
    cluster::announce(&members)?;
    for engine in &firsts_running {
        // Connections of replicas that are open stay.
        engine.set_port(0)?;
        job::give_password(app, instance, engine)?;
    }
    cluster::wait_agreed(&members, control)
}

/// Waits until all nodes of a cluster agree on the final ports, whether they have them yet or not.
///
/// # Errors
/// As [`form`].
pub fn wait_agreed(
    app: &App,
    instance: &Instance,
    generation: &Generation,
    control: &Control,
) -> Result<(), Error> {
    cluster::wait_agreed(&members(app, instance, generation, seat)?, control)
}

/// The nodes that live, as a switch wants them.
///
/// # Errors
/// As [`find`].
pub fn switched(
    app: &App,
    instance: &Instance,
    generation: &Generation,
) -> Result<Vec<switch::Place>, Error> {
    if instance.layout.mode == Mode::Ha {
        return watched::switched(app, instance, generation);
    }
    let mut found = Vec::new();
    for place in &generation.nodes {
        if let Some(engine) = find(app, instance, generation, place)? {
            let door = Door::Port(place.port);
            found.push(switch::Place { engine, door });
        }
    }
    Ok(found)
}

/// The directory around those of several nodes: engines of another user pass through it.
fn prepare_home(app: &App, instance: &Instance, generation: &Generation) -> Result<(), Error> {
    job::prepare_directory(app, &instance.id)?;
    job::prepare_folder(&app.config.generation_dir(&instance.id, &generation.id))
}

/// Whether a node that is gone would come back with less than its replica has, and the replica has not taken over yet.
/// An append-only file holds all that a killed process had written.
fn must_wait(app: &App, instance: &Instance, generation: &Generation, place: &Place) -> Result<bool, Error> {
    if place.bus_port.is_none()
        || instance.persistence == Persistence::Aof
        || find(app, instance, generation, place)?.is_some()
    {
        return Ok(false);
    }
    let mut living = Vec::new();
    for other in &generation.nodes {
        if let Some(engine) = find(app, instance, generation, other)? {
            living.push((other.port, engine));
        }
    }
    let ports: Vec<u16> = living.iter().map(|(port, _)| *port).collect();
    for (_, engine) in &living {
        // One that does not answer knows nothing; another one may.
        let view = engine
            .control_within(limits::GLANCE)
            .and_then(|mut node| cluster::view(&mut node));
        match view.map(|view| cluster::succession(&view, place.port, &ports)) {
            Ok(Succession::Over) => return Ok(false),
            Ok(Succession::Awaited) => return Ok(true),
            Ok(Succession::Stuck(heirs)) => {
                let heirs = living.iter().filter(|(port, _)| heirs.contains(port));
                take_over(heirs.map(|(_, engine)| engine))?;
                return Ok(true);
            }
            Err(_) => {}
        }
    }
    Ok(false)
}

/// Makes the one with the newest data the primary of its shard.
fn take_over<'a>(heirs: impl Iterator<Item = &'a Engine>) -> Result<(), Error> {
    let mut best = None;
    for engine in heirs {
        let mut node = engine.control_within(limits::GLANCE)?;
        let fields = node.info("replication")?;
        let offset = fields.iter().find(|(name, _)| name == "slave_repl_offset");
        let offset: u64 = offset.and_then(|(_, value)| value.parse().ok()).unwrap_or(0);
        if best.as_ref().is_none_or(|(newest, _)| offset > *newest) {
            best = Some((offset, node));
        }
    }
    match best {
        Some((_, mut node)) => cluster::take_over(&mut node),
        None => Ok(()),
    }
}

/// Makes a cluster of a generation's nodes that run, where that is what the instance is.
///
/// # Errors
/// As [`cluster::form`]; [`Kind::EngineExited`] where a node is gone.
pub fn form(app: &App, instance: &Instance, generation: &Generation, control: &Control) -> Result<(), Error> {
    match instance.layout.mode {
        Mode::Single => Ok(()),
        Mode::Ha => watched::wait_whole(app, instance, generation, control),
        Mode::Cluster => cluster::form(
            &members(app, instance, generation, seat)?,
            instance.layout.shards,
            control,
        ),
    }
}

/// Waits until a cluster serves all its slots and its replicas are in sync; a single node is whole when it is up.
///
/// # Errors
/// As [`form`].
pub fn wait_whole(
    app: &App,
    instance: &Instance,
    generation: &Generation,
    control: &Control,
) -> Result<(), Error> {
    match instance.layout.mode {
        Mode::Single => Ok(()),
        Mode::Ha => watched::wait_whole(app, instance, generation, control),
        Mode::Cluster => cluster::wait_whole(&members(app, instance, generation, seat)?, control),
    }
}

fn members(
    app: &App,
    instance: &Instance,
    generation: &Generation,
    seat: impl Fn(&Instance, &Generation, &Place) -> Option<Seat>,
) -> Result<Vec<Member>, Error> {
    let mut members = Vec::new();
    for place in &generation.nodes {
        if let Some(seat) = seat(instance, generation, place) {
            members.push(Member {
                engine: job::find_running(app, instance, &directory(app, generation, place))?,
                seat,
                shard: place.shard,
            });
        }
    }
    Ok(members)
}

/// What a node is in its shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It takes writes.
    Primary,
    /// It follows the primary.
    Replica,
}

/// What the engine of a node says that it is; `None` where it is gone or does not answer soon.
pub fn role(app: &App, instance: &Instance, generation: &Generation, place: &Place) -> Option<Role> {
    let engine = find(app, instance, generation, place).ok()??;
    match engine.is_primary(limits::GLANCE).ok()? {
        true => Some(Role::Primary),
        false => Some(Role::Replica),
    }
}

/// As [`job::holds_data`], for every node: whether what the generation held is still there.
pub fn hold_data(app: &App, instance: &Instance, generation: &Generation) -> bool {
    let holds = |place: &Place| job::directory_holds_data(app, instance, &directory(app, generation, place));
    instance.persistence != Persistence::None
        || match instance.layout.mode {
            // Each has all of it.
            Mode::Ha => generation.nodes.iter().any(holds),
            Mode::Single | Mode::Cluster => generation.nodes.iter().all(holds),
        }
}
