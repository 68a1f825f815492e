//! The switch of a generation of several nodes.
//!
//! A client that has read new data from one node must not read old data from another. So every node of the old generation
//! gives up its port and its clients, and only when all have does the first of the new one open its own. Writes to the new
//! ones wait until all have their ports: until then nobody was told that a write is done, and all of it can be turned back.

use std::net::{IpAddr, TcpListener};
use std::time::{Duration, Instant};

use super::door::{Command, addresses};
use super::{Door, SwitchReport, give_back, given_up, take_over, tell, tidy};
use crate::error::{Error, Kind};
use crate::failpoint;
use crate::node::Node;
use crate::process::Engine;

/// How long writes to the new generation wait at most: longer than all of them may try to open their ports, and where we die
/// in between, as long as its clients notice of that.
const PAUSE: Duration = Duration::from_secs(1);
/// A node that answers within this time comes to the transaction at once: while one is busy with a long command of a client
/// all others would have given up, and nobody would serve.
const PROMPT: Duration = Duration::from_millis(200);
/// How long such a node is waited for.
const BUSY_LIMIT: Duration = Duration::from_secs(10);

/// A node and how clients come in to it while its generation serves.
#[derive(Debug, Clone)]
pub struct Place {
    /// Its process.
    pub engine: Engine,
    /// How its clients come in.
    pub door: Door,
}

/// Moves the clients from all nodes of the one generation to all of the other. `old`: those that live.
///
/// As [`run`](super::run): also finishes a run that died at any point, and an undo is this with old and new swapped.
///
/// # Errors
/// The old generation serves as before: as of [`run`](super::run). But where a node of the new generation has its port already
/// ([`serves`]), the rest follows when this is run again.
pub fn run_together(old: &[Place], new: &[Place]) -> Result<SwitchReport, Error> {
    let is_resumed = serves(new)?;
    let mut takers = Vec::new();
    for place in new {
        let mut node = place.engine.control()?;
        check_has_loaded(&mut node).map_err(|e| place.engine.explain(e))?;
        takers.push(node);
    }
    let living = || old.iter().filter(|place| place.engine.is_alive());
    let mut givers = Vec::new();
    let mut all_served = !is_resumed;
    for place in living() {
        let mut node = prompt(&place.engine)?;
        all_served &= place.door == Door::Aside || place.door.is_open(&mut node)?;
        givers.push((place, node));
    }
    if !is_resumed {
        check_free(new, &givers, &mut takers)?;
        for (place, node) in new.iter().zip(&mut takers) {
            let limit = PAUSE.as_millis().to_string();
            node.run(&["CLIENT", "PAUSE", &limit, "WRITE"])
                .map_err(|e| place.engine.explain(e))?;
        }
    }
    failpoint::hit("switch.before_all_told")?;
    let mut commands = Vec::new();
    for (place, node) in &mut givers {
        match place.door.give_up(node) {
            Ok(words) => commands.push(words),
            Err(e) => {
                unless_dead(place, e)?;
                commands.push(Vec::new());
            }
        }
    }
    let begun_at = Instant::now();
    let moved = exchange(new, &mut givers, &commands, &mut takers).and_then(|clients_ended| {
        failpoint::hit("switch.all_taken")?;
        Ok(clients_ended)
    });
    match moved {
        Ok(clients_ended) => {
            for node in &mut takers {
                // It ends by itself.
                let _ends_soon = node.run(&["CLIENT", "UNPAUSE"]);
            }
            let gap = (all_served && !givers.is_empty()).then(|| begun_at.elapsed());
            for (place, _) in &givers {
                tidy(&place.engine);
            }
            Ok(SwitchReport { gap, clients_ended })
        }
        Err(error) if is_resumed || begun_at.elapsed() >= PAUSE / 2 && serves(new).unwrap_or(true) => {
            Err(error)
        }
        Err(error) => Err(turn_back(old, new, error)),
    }
}

/// Whether a node of the generation has its port: then it is the one that serves, and nothing turns that back.
///
/// # Errors
/// As [`Engine::current_port`], of a node that lives.
pub fn serves(places: &[Place]) -> Result<bool, Error> {
    for place in places.iter().filter(|place| place.engine.is_alive()) {
        if place.engine.lets_in(&place.door)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A connection to an engine that answers promptly now.
fn prompt(engine: &Engine) -> Result<Node, Error> {
    let until = Instant::now() + BUSY_LIMIT;
    loop {
        let asked = engine.control_within(PROMPT).and_then(|mut node| {
            node.run(&["PING"])?;
            Ok(node)
        });
        match asked {
            Ok(node) => {
                // From here on it may take its time.
                node.set_timeout(engine.endpoint().timeout)?;
                return Ok(node);
            }
            Err(e) if matches!(e.kind, Kind::Idle | Kind::Refused) && Instant::now() < until => {
                std::thread::sleep(PROMPT);
            }
            Err(e) => return Err(engine.explain(e)),
        }
    }
}

/// Refuses where a port is neither free nor a node's that is about to give it up.
fn check_free(new: &[Place], givers: &[(&Place, Node)], takers: &mut [Node]) -> Result<(), Error> {
    for (place, node) in new.iter().zip(takers) {
        if givers
            .iter()
            .any(|(giver, _)| giver.door.is_same_place(&place.door))
        {
            continue;
        }
        let wanted = match &place.door {
            Door::Port(_) => addresses(node)?,
            Door::Address { shared, .. } => vec![shared.clone()],
            Door::Aside => Vec::new(),
        };
        let port = place.door.port().unwrap_or(0);
        for address in wanted.iter().filter_map(|word| word.parse::<IpAddr>().ok()) {
            if let Err(e) = TcpListener::bind((address, port)) {
                let context = format!("port {port} is somebody else's");
                return Err(Error::io(Kind::PortTaken, "switch", context, e));
            }
        }
    }
    Ok(())
}

/// Takes the ports off the one generation, and when all are free gives them to the other. Returns how many clients were ended.
fn exchange(
    new: &[Place],
    givers: &mut [(&Place, Node)],
    commands: &[Vec<Command>],
    takers: &mut [Node],
) -> Result<u64, Error> {
    for ((place, node), commands) in givers.iter_mut().zip(commands) {
        let told = commands.iter().try_for_each(|command| tell(node, command));
        told.or_else(|e| unless_dead(place, e))?;
    }
    failpoint::hit("switch.all_told")?;
    let mut clients_ended = 0;
    for ((place, node), commands) in givers.iter_mut().zip(commands) {
        match given_up(node, commands.len()) {
            Ok(count) => clients_ended += count,
            Err(e) => unless_dead(place, e)?,
        }
    }
    failpoint::hit("switch.all_gave_up")?;
    for (place, node) in new.iter().zip(takers) {
        take_over(&place.engine, &place.door, node, || true)?;
        failpoint::hit("switch.one_taken")?;
    }
    Ok(clients_ended)
}

/// An engine that died gave everything up.
fn unless_dead(place: &Place, error: Error) -> Result<(), Error> {
    match place.engine.is_alive() {
        true => Err(error),
        false => Ok(()),
    }
}

/// After a failure within the time in which nobody was told of a write: the new nodes close the ports that they have, and the
/// old ones get them back.
fn turn_back(old: &[Place], new: &[Place], failure: Error) -> Error {
    for place in new {
        let closed = place.engine.control().and_then(|mut node| {
            if place.door.is_open(&mut node)? {
                let commands = place.door.give_up(&mut node)?;
                commands.iter().try_for_each(|command| tell(&mut node, command))?;
                given_up(&mut node, commands.len())?;
            }
            Ok(())
        });
        if let Err(e) = closed
            && place.engine.is_alive()
        {
            tracing::warn!(pid = place.engine.pid(), error = %crate::chain(&e), "a new node does not close its port");
        }
    }
    old.iter()
        .filter(|place| place.engine.is_alive())
        .fold(failure, |failure, place| {
            give_back(&place.engine, &place.door, failure)
        })
}

fn check_has_loaded(node: &mut Node) -> Result<(), Error> {
    let fields = node.info("persistence")?;
    let loads = |(name, value): &(String, String)| name == "loading" && value != "0";
    if fields.iter().any(loads) {
        return Err(Error::new(
            Kind::Refused,
            "switch",
            "a node of the new generation still loads",
        ));
    }
    Ok(())
}
