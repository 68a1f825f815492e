//! Watched generations: a primary that has the clients' address, its replicas, and the instance's Sentinels, which put
//! one of those in its place without us (ADR 40).
//!
//! Who is the primary is nowhere written down: Sentinels say it and keep it, and where they cannot be asked the nodes
//! themselves tell. Everything here looks first and mends what differs, so it may be run again from any point.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use engine::process::{self, Engine};
use engine::sentinel::{self, SentinelSpec, Watched, failover};
use engine::switch::{self, Door};
use engine::{Control, Error, Kind, failpoint};

use super::generation::Generation;
use super::layout::Place;
use super::record::Instance;
use super::{job, nodes};
use crate::app::App;
use crate::ids::NodeId;
use crate::limits;

/// The place of a node that runs, and its engine.
type Living<'a> = (&'a Place, Engine);

/// Where a node listens; `follows`: the primary that it follows from its start.
pub(super) fn watched(generation: &Generation, place: &Place, follows: Option<&Place>) -> Option<Watched> {
    Some(Watched {
        address: place.address.clone()?,
        port: place.port,
        generation: generation.id.to_string(),
        follows: follows.and_then(|primary| primary.address.clone()),
    })
}

/// How clients come in to the primary.
pub(super) fn door(instance: &Instance, place: &Place) -> Door {
    match &place.address {
        Some(own) => Door::Address {
            own: own.clone(),
            shared: instance.bind.clone(),
            port: place.port,
        },
        None => Door::Port(place.port),
    }
}

/// The directory of a Sentinel.
fn home_of(app: &App, instance: &Instance, sentinel: &Place) -> PathBuf {
    app.config.sentinels_dir(&instance.id).join(sentinel.id.as_str())
}

/// The Sentinels that run.
///
/// # Errors
/// As [`process::find`].
fn sentinels(app: &App, instance: &Instance) -> Result<Vec<(PathBuf, Engine)>, Error> {
    let password = job::admin_password(app, instance)?;
    let mut found = Vec::new();
    for place in &instance.sentinels {
        let home = home_of(app, instance, place);
        if let Some(engine) = process::find(&home, &password)? {
            found.push((home, engine));
        }
    }
    Ok(found)
}

/// Starts those Sentinels that do not run. One that does not start with what it remembers is started anew: what it has to
/// watch it is told.
fn start_sentinels(app: &App, instance: &Instance) -> Result<(), Error> {
    job::prepare_directory(app, &instance.id)?;
    job::prepare_folder(&app.config.sentinels_dir(&instance.id))?;
    for place in &instance.sentinels {
        let spec = SentinelSpec {
            binary: job::program(app, instance)?.binary.clone(),
            program: PathBuf::from("/proc/self/exe"),
            directory: home_of(app, instance, place),
            run_as: app.config.run_as,
            address: instance.bind.clone(),
            port: place.port,
            admin_password: job::admin_password(app, instance)?,
            certificate: super::command::certificate(app, instance, &[])?,
        };
        if process::find(&spec.directory, &spec.admin_password)?.is_none() {
            process::start_sentinel(&spec).or_else(|error| {
                tracing::warn!(instance.id = %instance.id, error = engine::chain(&error), "a Sentinel does not start: it is made anew");
                sentinel::reset(&spec.directory)?;
                process::start_sentinel(&spec)
            })?;
            failpoint::hit("watched.sentinel_started")?;
        }
    }
    Ok(())
}

/// Ends the instance's Sentinels, and what they run: nobody is promoted from here on.
///
/// # Errors
/// As [`Engine::kill`].
pub fn end_sentinels(app: &App, instance: &Instance) -> Result<(), Error> {
    for (home, engine) in sentinels(app, instance)? {
        failover::disarm(&home)?;
        engine.kill()?;
    }
    Ok(())
}

/// What the Sentinel knows best that knows most, of those that watch this generation.
fn told(app: &App, instance: &Instance, generation: &Generation) -> Result<Option<sentinel::Seen>, Error> {
    let mut best: Option<sentinel::Seen> = None;
    for (_, engine) in sentinels(app, instance)? {
        let seen = engine
            .control_within(limits::GLANCE)
            .and_then(|mut node| sentinel::seen(&mut node));
        // One that does not answer knows nothing; another one may.
        if let Ok(Some(seen)) = seen
            && generation.nodes.iter().any(|place| is_at(place, &seen.address))
            && best.as_ref().is_none_or(|known| seen.epoch > known.epoch)
        {
            best = Some(seen);
        }
    }
    Ok(best)
}

fn is_at(place: &Place, address: &str) -> bool {
    place.address.as_deref() == Some(address)
}

fn living<'a>(app: &App, instance: &Instance, generation: &'a Generation) -> Result<Vec<Living<'a>>, Error> {
    let mut found = Vec::new();
    for place in &generation.nodes {
        if let Some(engine) = nodes::find(app, instance, generation, place)? {
            found.push((place, engine));
        }
    }
    Ok(found)
}

/// A field of what a node says of its replication.
struct Replication(Vec<(String, String)>);

impl Replication {
    fn of(engine: &Engine) -> Result<Self, Error> {
        Ok(Self(engine.control_within(limits::GLANCE)?.info("replication")?))
    }

    fn field(&self, name: &str) -> &str {
        let found = self.0.iter().find(|(field, _)| field == name);
        found.map_or("", |(_, value)| value)
    }

    fn number(&self, name: &str) -> u64 {
        self.field(name).parse().unwrap_or(0)
    }

    fn is_primary(&self) -> bool {
        self.field("role") == "master"
    }

    fn is_in_sync_with(&self, primary: &Place) -> bool {
        self.field("master_link_status") == "up" && is_at(primary, self.field("master_host"))
    }
}

/// Who is the primary where no Sentinel can be asked: of those that live the one that is followed, else the one with the
/// newest data. Where none lives it does not matter: without clients all came to hold the same.
fn primary_among<'a>(living: &[Living<'a>], generation: &'a Generation) -> Result<&'a Place, Error> {
    let mut best: Option<((bool, u64, u64), &Place)> = None;
    for (place, engine) in living {
        // One that does not answer is no candidate.
        let Ok(says) = Replication::of(engine) else {
            continue;
        };
        let rank = (
            says.is_primary(),
            says.number("connected_slaves"),
            says.number("master_repl_offset")
                .max(says.number("slave_repl_offset")),
        );
        if best.as_ref().is_none_or(|(highest, _)| rank > *highest) {
            best = Some((rank, place));
        }
    }
    best.map(|(_, place)| place)
        .or(generation.nodes.first())
        .ok_or_else(|| Error::new(Kind::NotFound, "find primary", "the generation has no nodes"))
}

/// The primary, once nobody is about to change that. Where its process is gone and a replica could succeed it, that is
/// promoted first: it has what was acknowledged by it, and is there at once.
fn settled_primary<'a>(
    app: &App,
    instance: &Instance,
    generation: &'a Generation,
    control: &Control,
) -> Result<&'a Place, Error> {
    let until = Instant::now() + limits::SUCCESSION;
    loop {
        control.check("find primary")?;
        let living = living(app, instance, generation)?;
        let Some(seen) = told(app, instance, generation)? else {
            return primary_among(&living, generation);
        };
        let is_named = |place: &&Place| is_at(place, &seen.address);
        let Some(named) = generation.nodes.iter().find(is_named) else {
            return primary_among(&living, generation);
        };
        let is_gone = !living.iter().any(|(place, _)| place.id == named.id);
        let may_change = seen.is_failing_over || (is_gone && !living.is_empty() && succeed(app, instance)?);
        if !may_change || Instant::now() >= until {
            return Ok(named);
        }
        std::thread::sleep(limits::SUCCESSOR_POLL);
    }
}

/// Has a Sentinel promote a replica. `false`: there is none that could be.
fn succeed(app: &App, instance: &Instance) -> Result<bool, Error> {
    for (_, engine) in sentinels(app, instance)? {
        let asked = engine
            .control_within(limits::GLANCE)
            .and_then(|mut node| sentinel::fail_over(&mut node));
        if let Ok(true) = asked {
            return Ok(true);
        }
    }
    Ok(false)
}

/// As [`nodes::bring_up`]: every node and every Sentinel runs, the primary and nobody else has the clients' address, and
/// the Sentinels watch it.
pub(super) fn bring_up(
    app: &App,
    instance: &Instance,
    generation: &Generation,
    control: &Control,
) -> Result<(), Error> {
    start_sentinels(app, instance)?;
    let primary = settled_primary(app, instance, generation, control)?;
    for (place, engine) in living(app, instance, generation)? {
        let door = door(instance, place);
        if place.id != primary.id && engine.lets_in(&door)? {
            switch::step_aside(&door, &mut engine.control()?)?;
        }
    }
    // Clients do not wait for replicas that load.
    let engine = start_primary(app, instance, generation, primary, control)?;
    open(&engine, &door(instance, primary))?;
    failpoint::hit("watched.opened")?;
    settle(app, instance, generation, primary, control)?;
    // Sentinels ask replicas rarely whether they may be promoted: best before they begin. A node that dies meanwhile is
    // brought back next time.
    let until = Instant::now() + limits::FIRST_SYNC;
    while !let_be_elected(app, instance, generation, primary).unwrap_or(false) && Instant::now() < until {
        control.check("bring up")?;
        std::thread::sleep(limits::SUCCESSOR_POLL);
    }
    let_watch(app, instance, generation, primary)
}

/// As [`nodes::bring_up_beside`]: every node runs and follows the primary; nobody has the clients' address or is watched.
pub(super) fn bring_up_beside(
    app: &App,
    instance: &Instance,
    generation: &Generation,
    control: &Control,
) -> Result<(), Error> {
    let primary = primary_among(&living(app, instance, generation)?, generation)?;
    settle(app, instance, generation, primary, control)?;
    while !let_be_elected(app, instance, generation, primary)? {
        control.check("bring up")?;
        std::thread::sleep(limits::SUCCESSOR_POLL);
    }
    Ok(())
}

/// As [`nodes::join`]: the first node has loaded; it becomes the primary and its replicas get into sync.
pub(super) fn join(
    app: &App,
    instance: &Instance,
    generation: &Generation,
    control: &Control,
) -> Result<(), Error> {
    let first = primary_among(&[], generation)?;
    let engine = find(app, instance, generation, first)?;
    engine.promote(job::max_memory_bytes(instance))?;
    failpoint::hit("nodes.promoted")?;
    settle(app, instance, generation, first, control)?;
    while !let_be_elected(app, instance, generation, first)? {
        control.check("wait for replicas")?;
        std::thread::sleep(limits::SUCCESSOR_POLL);
    }
    failpoint::hit("nodes.in_sync")
}

fn find(app: &App, instance: &Instance, generation: &Generation, place: &Place) -> Result<Engine, Error> {
    job::find_running(app, instance, &nodes::directory(app, generation, place))
}

/// A node that runs, loaded; started with whom it follows where it does not.
fn start(
    app: &App,
    instance: &Instance,
    generation: &Generation,
    (place, follows): (&Place, Option<&Place>),
    control: &Control,
) -> Result<Engine, Error> {
    job::prepare_directory(app, &instance.id)?;
    job::prepare_folder(&app.config.generation_dir(&instance.id, &generation.id))?;
    let spec = nodes::watched_spec(app, instance, generation, place, follows)?;
    let engine = job::start_or_find(app, instance, &spec)?;
    failpoint::hit("nodes.one_started")?;
    job::make_ready(app, instance, &engine, Some(place.port), control)?;
    Ok(engine)
}

fn start_primary(
    app: &App,
    instance: &Instance,
    generation: &Generation,
    primary: &Place,
    control: &Control,
) -> Result<Engine, Error> {
    let engine = start(app, instance, generation, (primary, None), control)?;
    if !Replication::of(&engine)?.is_primary() {
        engine.follow(None)?;
    }
    Ok(engine)
}

/// Every node runs, the others follow the primary.
fn settle(
    app: &App,
    instance: &Instance,
    generation: &Generation,
    primary: &Place,
    control: &Control,
) -> Result<(), Error> {
    start_primary(app, instance, generation, primary, control)?;
    for place in generation.nodes.iter().filter(|place| place.id != primary.id) {
        let engine = start(app, instance, generation, (place, Some(primary)), control)?;
        let says = Replication::of(&engine)?;
        if says.is_primary() || !is_at(primary, says.field("master_host")) {
            let address = primary.address.as_deref().unwrap_or_default();
            engine.follow(Some((address, primary.port)))?;
        }
        failpoint::hit("nodes.one_ready")?;
    }
    Ok(())
}

/// Lets every node that has all be promoted from now on. Whether that is all of them.
fn let_be_elected(
    app: &App,
    instance: &Instance,
    generation: &Generation,
    primary: &Place,
) -> Result<bool, Error> {
    let mut all = true;
    for place in &generation.nodes {
        let engine = find(app, instance, generation, place)?;
        match place.id == primary.id || Replication::of(&engine)?.is_in_sync_with(primary) {
            true => engine.make_electable()?,
            false => all = false,
        }
    }
    Ok(all)
}

/// Gives the node the clients' address. The kernel closes the sockets of one that has ended a moment after it has left the
/// process table.
fn open(engine: &Engine, door: &Door) -> Result<(), Error> {
    let until = Instant::now() + Duration::from_secs(1);
    loop {
        let mut node = engine.control()?;
        let opened = match door.is_open(&mut node)? {
            true => Ok(()),
            false => door.open(&mut node),
        };
        match opened {
            Err(e) if e.kind == Kind::PortTaken && Instant::now() < until => {
                std::thread::sleep(limits::SUCCESSOR_POLL / 20);
            }
            opened => return opened,
        }
    }
}

/// Lets those Sentinels watch the primary that do not watch a node of this generation.
///
/// # Errors
/// What one of them says.
pub fn let_watch(
    app: &App,
    instance: &Instance,
    generation: &Generation,
    primary: &Place,
) -> Result<(), Error> {
    let admin = job::admin_password(app, instance)?;
    let watched = watched(generation, primary, None)
        .ok_or_else(|| Error::new(Kind::NotFound, "watch", "a node without an address"))?;
    let at = |place: &Place| {
        let home = format!("../../{}/{}", generation.id, place.id);
        Some((place.address.clone()?, PathBuf::from(home)))
    };
    let plan = failover::Plan::new(
        &admin,
        generation.id.as_str(),
        (instance.bind.clone(), instance.port),
        generation.nodes.iter().filter_map(at).collect(),
    );
    let sentinels = sentinels(app, instance)?;
    // Each writes its file several times, and clients ask them all the while.
    std::thread::scope(|scope| {
        let all: Vec<_> = sentinels
            .iter()
            .map(|(home, engine)| {
                scope.spawn(|| {
                    let mut node = engine.control_within(limits::GLANCE)?;
                    let seen = sentinel::seen(&mut node)?;
                    failover::arm(home, app.config.run_as, &plan)?;
                    let knows = |seen: &sentinel::Seen| {
                        let mut nodes = generation.nodes.iter();
                        seen.is_ready && nodes.any(|place| is_at(place, &seen.address))
                    };
                    match seen.is_some_and(|seen| knows(&seen)) {
                        true => Ok(()),
                        false => sentinel::watch(&mut node, &admin, &watched),
                    }
                })
            })
            .collect();
        all.into_iter().try_for_each(|thread| {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })?;
    introduce(instance, &sentinels, &watched)
}

/// Lets each Sentinel know the others at once: none of them alone promotes anybody.
fn introduce(instance: &Instance, sentinels: &[(PathBuf, Engine)], primary: &Watched) -> Result<(), Error> {
    let mut known = Vec::new();
    for (home, engine) in sentinels {
        let mut node = engine.control_within(limits::GLANCE)?;
        let name = sentinel::name_of(&mut node)?;
        let is_here = |place: &&Place| home.ends_with(place.id.as_str());
        let port = instance
            .sentinels
            .iter()
            .find(is_here)
            .map_or(0, |place| place.port);
        known.push((node, name, port));
    }
    for at in 0..known.len() {
        for other in (0..known.len()).filter(|other| *other != at) {
            let (name, port) = (known[other].1.clone(), known[other].2);
            sentinel::introduce(&mut known[at].0, (&name, &instance.bind, port), primary)?;
        }
    }
    Ok(())
}

/// As [`let_watch`], of a generation that serves; waits until the Sentinels know whom they may promote. A primary that died
/// before that would have no successor while we are gone.
///
/// # Errors
/// As [`let_watch`].
pub fn let_watch_serving(app: &App, instance: &Instance, generation: &Generation) -> Result<(), Error> {
    let primary = primary_among(&living(app, instance, generation)?, generation)?;
    let_watch(app, instance, generation, primary)?;
    let until = Instant::now() + limits::FIRST_SYNC;
    while !know_each_other(app, instance)? && Instant::now() < until {
        std::thread::sleep(limits::SUCCESSOR_POLL / 10);
    }
    Ok(())
}

/// Makes the Sentinels watch nothing, once no failover is under way: from here on nobody but us moves the clients' address.
/// One that does not answer is ended, and starts without memory.
///
/// # Errors
/// [`Kind::Io`]; those of [`Control::check`].
pub fn forget(
    app: &App,
    instance: &Instance,
    generation: &Generation,
    control: &Control,
) -> Result<(), Error> {
    let until = Instant::now() + limits::SUCCESSION;
    while told(app, instance, generation)?.is_some_and(|seen| seen.is_failing_over) {
        control.check("forget primary")?;
        if Instant::now() >= until {
            break;
        }
        std::thread::sleep(limits::SUCCESSOR_POLL);
    }
    let running = sentinels(app, instance)?;
    for place in &instance.sentinels {
        let home = home_of(app, instance, place);
        failover::disarm(&home)?;
        let engine = running.iter().find(|(other, _)| *other == home);
        let forgotten = engine.map(|(_, engine)| {
            let forgotten = engine
                .control_within(limits::GLANCE)
                .and_then(|mut node| sentinel::forget(&mut node));
            (engine, forgotten)
        });
        match forgotten {
            Some((_, Ok(()))) => {}
            Some((engine, Err(error))) => {
                tracing::warn!(instance.id = %instance.id, error = engine::chain(&error), "a Sentinel does not answer: it is ended");
                engine.kill()?;
                sentinel::reset(&home)?;
            }
            None => sentinel::reset(&home)?,
        }
        failpoint::hit("watched.forgotten")?;
    }
    Ok(())
}

/// The nodes that live, as a switch wants them.
///
/// # Errors
/// As [`nodes::find`].
pub(super) fn switched(
    app: &App,
    instance: &Instance,
    generation: &Generation,
) -> Result<Vec<switch::Place>, Error> {
    let mut found = Vec::new();
    for (place, engine) in living(app, instance, generation)? {
        let door = door(instance, place);
        let is_primary = Replication::of(&engine).is_ok_and(|says| says.is_primary());
        let door = match is_primary || engine.lets_in(&door)? {
            true => door,
            false => Door::Aside,
        };
        found.push(switch::Place { engine, door });
    }
    Ok(found)
}

/// What a look at a watched generation came to.
#[derive(Debug)]
pub enum Health {
    /// All is as it should be; the data takes so many bytes.
    Whole(u64),
    /// A node lives and is busy with something long of its clients'.
    Busy,
    /// Something is to be brought back.
    Amiss(&'static str),
}

/// Looks at a generation that serves, and lets replicas that have come into sync be elected.
pub fn look(app: &App, instance: &Instance, generation: &Generation) -> Health {
    look_closely(app, instance, generation).unwrap_or_else(|error| match error.kind {
        // A script that runs for long is answered with BUSY.
        Kind::Idle | Kind::Refused => Health::Busy,
        _ => Health::Amiss("a node does not answer"),
    })
}

fn look_closely(app: &App, instance: &Instance, generation: &Generation) -> Result<Health, Error> {
    let mut primary = None;
    for place in &generation.nodes {
        let Some(engine) = nodes::find(app, instance, generation, place)? else {
            return Ok(Health::Amiss("a node is gone"));
        };
        let vitals = engine.vitals(limits::GLANCE)?;
        let mut node = engine.control_within(limits::GLANCE)?;
        let says = Replication(node.info("replication")?);
        if says.is_primary() != door(instance, place).is_open(&mut node)? || vitals.port != place.port {
            return Ok(Health::Amiss("the clients' address is not the primary's"));
        }
        if says.is_primary() && primary.replace((place, vitals.used_memory_bytes)).is_some() {
            return Ok(Health::Amiss("there are two primaries"));
        }
        if says.field("master_link_status") == "up" {
            engine.make_electable()?;
        }
    }
    let Some((primary, used_memory_bytes)) = primary else {
        return Ok(Health::Amiss("there is no primary"));
    };
    let running = sentinels(app, instance)?;
    if running.len() != instance.sentinels.len() {
        return Ok(Health::Amiss("a Sentinel is gone"));
    }
    for (_, engine) in running {
        let seen = engine
            .control_within(limits::GLANCE)
            .and_then(|mut node| sentinel::seen(&mut node))?;
        let watches =
            |seen: sentinel::Seen| seen.is_ready && (is_at(primary, &seen.address) || seen.is_failing_over);
        if !seen.is_some_and(watches) {
            return Ok(Health::Amiss("a Sentinel watches another node"));
        }
    }
    Ok(Health::Whole(used_memory_bytes))
}

/// Waits until every replica is in sync and every Sentinel knows the others and whom it may promote.
///
/// # Errors
/// Those of [`Control::check`]; what the nodes say.
pub(super) fn wait_whole(
    app: &App,
    instance: &Instance,
    generation: &Generation,
    control: &Control,
) -> Result<(), Error> {
    loop {
        control.check("wait for replicas")?;
        let primary = settled_primary(app, instance, generation, control)?;
        if let_be_elected(app, instance, generation, primary)? && know_each_other(app, instance)? {
            return Ok(());
        }
        std::thread::sleep(limits::SUCCESSOR_POLL);
    }
}

fn know_each_other(app: &App, instance: &Instance) -> Result<bool, Error> {
    let count = instance.sentinels.len() as u64;
    for (_, engine) in sentinels(app, instance)? {
        let seen = sentinel::seen(&mut engine.control_within(limits::GLANCE)?)?;
        let knows = |seen: sentinel::Seen| {
            seen.others + 1 >= count && seen.electable >= u64::from(instance.layout.replicas)
        };
        if !seen.is_some_and(knows) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Nodes that run.
#[derive(Debug)]
pub struct Running {
    /// The one that has the clients' address.
    pub primary: (NodeId, Engine),
    /// The others, in sync or not.
    pub replicas: Vec<(NodeId, Engine)>,
}

/// The primary and the others that run.
///
/// # Errors
/// [`Kind::EngineExited`] where no primary does.
pub fn running(app: &App, instance: &Instance, generation: &Generation) -> Result<Running, Error> {
    let (mut primary, mut replicas) = (None, Vec::new());
    for (place, engine) in living(app, instance, generation)? {
        let is_open = engine
            .control_within(limits::GLANCE)
            .and_then(|mut node| door(instance, place).is_open(&mut node));
        match is_open.unwrap_or(false) {
            true => primary = Some((place.id.clone(), engine)),
            false => replicas.push((place.id.clone(), engine)),
        }
    }
    let absent = || Error::new(Kind::EngineExited, "find engine", "no primary is running");
    Ok(Running {
        primary: primary.ok_or_else(absent)?,
        replicas,
    })
}
