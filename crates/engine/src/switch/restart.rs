//! Giving the clients' port to another generation of an engine that listens for as long as it lives where it was
//! started to: Redis before 6.2.1.
//!
//! The old engine ends with its data on disk, and the new one, which has loaded the data and was compared beside it, is
//! started anew with the port and loads once more. Clients wait for as long as the one saves and the other loads.
//!
//! Every step can be repeated. Which process has the port says how far a run came, and that one is there at most, so a
//! run that died anywhere is finished by running it again.

use std::time::{Duration, Instant};

use super::{GIVE_BACK_LIMIT, GIVE_BACK_POLL, SwitchReport};
use crate::control::Control;
use crate::error::{Error, Kind};
use crate::failpoint;
use crate::process::{self, Engine, EngineSpec};

/// Who gives the port to whom, each as it is started with the port.
#[derive(Debug, Clone, Copy)]
pub struct RestartPlan<'a> {
    /// The generation that serves, or is dead.
    pub old: &'a EngineSpec,
    /// The generation that is to serve: its directory holds what it is to load, and it has loaded that once.
    pub new: &'a EngineSpec,
    /// How long each may take to end, the old one with its data on disk.
    pub end_limit: Duration,
}

/// Moves the port to the new generation, which has loaded on return. The old one is on disk alone. Also finishes a run that
/// died at any point.
///
/// # Errors
/// [`Kind::Refused`] where the old one cannot save: it serves on. [`Kind::PortTaken`], [`Kind::EngineExited`] and those of
/// [`process::start`]: nobody serves, and running again is right, as is starting the old one. [`Kind::Cancelled`] and
/// [`Kind::Deadline`] while the new one loads: it has the port.
pub fn run_by_restart(plan: &RestartPlan<'_>, control: &Control) -> Result<SwitchReport, Error> {
    let unknown = SwitchReport {
        gap: None,
        clients_ended: 0,
    };
    let find = |spec: &EngineSpec| process::find(&spec.directory, &spec.admin_password);
    if let Some(new) = find(plan.new)? {
        if new.current_port()? == plan.new.port {
            new.wait_loaded(control)?;
            return Ok(unknown);
        }
        // Nobody has reached it: its files hold all that it holds.
        new.stop(plan.end_limit)?;
    }
    failpoint::hit("switch.new_stopped")?;
    let old = find(plan.old)?;
    let begun_at = Instant::now();
    let clients_ended = match &old {
        Some(old) => {
            let clients = clients_of(old);
            old.stop_saved(plan.end_limit)?;
            clients
        }
        None => 0,
    };
    failpoint::hit("switch.old_stopped")?;
    let new = start(plan.new)?;
    failpoint::hit("switch.new_started")?;
    new.wait_loaded(control)?;
    Ok(SwitchReport {
        gap: old.map(|_| begun_at.elapsed()),
        clients_ended,
    })
}

/// Starts it with its port. The kernel closes that of a dead process a moment after it has left the process table.
fn start(spec: &EngineSpec) -> Result<Engine, Error> {
    let until = Instant::now() + GIVE_BACK_LIMIT;
    loop {
        match process::start(spec) {
            Err(error) if error.kind == Kind::PortTaken && Instant::now() < until => {
                std::thread::sleep(GIVE_BACK_POLL);
            }
            done => return done,
        }
    }
}

/// Connections that end with it, but for the one that asks.
fn clients_of(engine: &Engine) -> u64 {
    let fields = engine.control().and_then(|mut node| node.info("clients"));
    let connected = fields.ok().and_then(|fields| {
        let found = fields.into_iter().find(|(name, _)| name == "connected_clients");
        found.and_then(|(_, count)| count.parse::<u64>().ok())
    });
    connected.unwrap_or(1).saturating_sub(1)
}
