//! The services that share a catalogue. To people they are nodes; in the code a node is an engine, and these are hosts.
//!
//! A managed instance belongs to one host: its engines are that one's processes, and nobody else touches them. All else is
//! anybody's: attached instances, verifies, the API. What must be done by one at a time, because it is done for all, is a duty,
//! which is held like a job, by a lease.

pub mod command;
pub mod job;
pub mod record;

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::{Mutex, MutexGuard};

use engine::Lease;
use engine::process::Brand;

use crate::app::App;
use crate::catalog::{Catalog, Error, Tx};
use crate::config::Config;
use crate::ids::{HostId, Moment};
use crate::refusal::Refusal;
use crate::restore::command::available_memory;
use record::Host;

/// Who we are: a shared catalogue is told that by the data directory, a file has one host, wherever it is moved to.
///
/// # Errors
/// The data directory's name cannot be read or written.
pub fn identify(catalog: &Catalog, config: &Config) -> anyhow::Result<HostId> {
    match catalog.is_shared() {
        true => config.host(),
        false => Ok(HostId::OF_A_FILE),
    }
}

/// Says in the catalogue that we are there.
///
/// # Errors
/// The catalogue failed.
pub fn announce(app: &App) -> Result<(), Error> {
    let config = &app.config;
    let engines = config
        .engines
        .iter()
        .map(|engine| (engine.brand, engine.version.clone()));
    app.catalog.write(|tx| {
        let now = tx.clock()?;
        let host = Host {
            id: app.host.clone(),
            name: config.node_name.clone().unwrap_or_else(machine),
            roles: config.roles.words(),
            engines: engines.collect(),
            bind: config.engine_bind.to_string(),
            ports: (*config.engine_ports.start(), *config.engine_ports.end()),
            free_memory_bytes: available_memory(),
            started_at: now,
            seen_at: now,
            lost_at: now.after(config.lease),
        };
        record::announce(tx, &host)
    })
}

fn machine() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "node".to_owned(),
        name => name.to_owned(),
    }
}

/// Whether we have the scheduler's duty.
#[derive(Default)]
pub struct Duty(Mutex<Option<(Lease, Moment)>>);

impl Duty {
    fn held(&self) -> MutexGuard<'_, Option<(Lease, Moment)>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// `Some`: we have it, and since when somebody has.
    pub fn since(&self) -> Option<Moment> {
        let held = self.held();
        let (lease, since) = held.as_ref()?;
        (!lease.is_over()).then_some(*since)
    }

    /// Whether we have it.
    pub fn is_ours(&self) -> bool {
        self.since().is_some()
    }

    /// Takes it until the end, where nobody else can.
    pub fn take(&self, since: Moment) {
        *self.held() = Some((Lease::endless(), since));
    }
}

/// Where the engines of a new instance are to run.
#[derive(Debug)]
pub struct Home {
    /// Whose processes they are.
    pub host: HostId,
    /// Address that they listen on.
    pub bind: IpAddr,
    /// Ports for those that ask for none.
    pub ports: RangeInclusive<u16>,
}

impl Home {
    /// With us.
    pub fn ours(app: &App) -> Self {
        Self {
            host: app.host.clone(),
            bind: app.config.engine_bind,
            ports: app.config.engine_ports.clone(),
        }
    }
}

/// A home for an instance of this engine: with us where we have instances, else with the living host that has the fewest.
///
/// # Errors
/// [`Refusal::NoHome`]: no such host is there.
pub fn choose(app: &App, tx: &Tx<'_>, engine: &(Brand, String)) -> Result<Home, Refusal> {
    if app.config.roles.worker {
        return Ok(Home::ours(app));
    }
    let found = record::workers(tx)?
        .into_iter()
        .find(|host| host.engines.contains(engine))
        .ok_or(Refusal::NoHome)?;
    Ok(Home {
        bind: found
            .bind
            .parse()
            .map_err(|_| Refusal::Internal(format!("{} is no address", found.bind)))?,
        ports: found.ports.0..=found.ports.1,
        host: found.id,
    })
}

/// The engines that instances can be of: where nobody asks for one, the first.
///
/// # Errors
/// The catalogue failed.
pub fn engines(app: &App) -> Result<Vec<(Brand, String)>, Error> {
    if app.config.roles.worker {
        let ours = app.config.engines.iter();
        return Ok(ours
            .map(|engine| (engine.brand, engine.version.clone()))
            .collect());
    }
    let mut all = Vec::new();
    for engine in app
        .catalog
        .read(record::workers)?
        .into_iter()
        .flat_map(|host| host.engines)
    {
        if !all.contains(&engine) {
            all.push(engine);
        }
    }
    Ok(all)
}

/// Memory that an engine of the host can have; of another one as it was last told.
///
/// # Errors
/// The catalogue failed.
pub fn free_memory(app: &App, tx: &Tx<'_>, host: Option<&HostId>) -> Result<u64, Error> {
    match host {
        Some(other) if *other != app.host => {
            Ok(record::load(tx, other)?.map_or(0, |host| host.free_memory_bytes))
        }
        _ => Ok(available_memory()),
    }
}
