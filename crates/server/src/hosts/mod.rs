//! The services that share a catalogue. To people they are nodes; in the code a node is an engine, and these are hosts.
//!
//! A managed instance belongs to one host: its engines are that one's processes, and nobody else touches them. All else is
//! anybody's: attached instances, verifies, the API. What must be done by one at a time, because it is done for all, is a duty,
//! which is held like a job, by a lease.

pub mod command;
pub mod job;
pub mod record;
pub mod watch;

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use engine::process::Brand;
use engine::{Lease, uptime};

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
            place: place(config),
            started_at: now,
            seen_at: now,
            lost_at: now.after(config.lease),
        };
        record::announce(tx, &host)
    })
}

/// Refuses a copy of the data directory of a host that is there: both would take themselves for the same one.
///
/// # Errors
/// It is one; the catalogue failed.
pub fn check_alone(app: &App) -> anyhow::Result<()> {
    let (known, now) = app
        .catalog
        .read(|tx| Ok::<_, Error>((record::load(tx, &app.host)?, tx.clock()?)))?;
    if let Some(known) = known.filter(|known| app.catalog.is_shared() && known.lost_at >= now) {
        anyhow::ensure!(
            known.place == place(&app.config),
            "the node {} is there already, with another data directory of the same name: if {} is a copy of it, remove the file \
             `node` from the copy and begin with empty instances/; if that one is gone, wait until `cachekeep node list` shows it as lost",
            known.name,
            app.config.data_dir.display()
        );
    }
    Ok(())
}

/// Which start of which machine this is, and which directory there.
fn place(config: &Config) -> String {
    use std::os::unix::fs::MetadataExt as _;
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let directory = std::fs::metadata(&config.data_dir).map_or((0, 0), |found| (found.dev(), found.ino()));
    format!("{} {}:{}", boot.trim(), directory.0, directory.1)
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
pub struct Duty(Mutex<Option<Held>>);

/// The duty as we have it.
struct Held {
    lease: Lease,
    /// Since when somebody has had it.
    since: Moment,
    /// Since when we have had it, and the catalogue has answered, by [`uptime`].
    whole_since: Duration,
}

impl Duty {
    fn held(&self) -> MutexGuard<'_, Option<Held>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// `Some`: we have it, and since when somebody has.
    pub fn since(&self) -> Option<Moment> {
        let held = self.held();
        let held = held.as_ref()?;
        (!held.lease.is_over()).then_some(held.since)
    }

    /// Whether we have it.
    pub fn is_ours(&self) -> bool {
        self.since().is_some()
    }

    /// Whether we have had it for so long that whoever has not been seen meanwhile is not there: before that the catalogue may
    /// have been away for all.
    pub fn may_judge(&self, length: Duration) -> bool {
        let held = self.held();
        held.as_ref()
            .is_some_and(|held| !held.lease.is_over() && uptime().saturating_sub(held.whole_since) >= length)
    }

    /// From now on we have had it for no time.
    fn begin_anew(&self) {
        if let Some(held) = self.held().as_mut() {
            held.whole_since = uptime();
        }
    }

    /// Takes it until the end, where nobody else can.
    pub fn take(&self, since: Moment) {
        *self.held() = Some(Held {
            lease: Lease::endless(),
            since,
            whole_since: uptime(),
        });
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
