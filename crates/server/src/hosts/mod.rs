//! The services that share a catalogue. To people they are nodes; in the code a node is an engine, and these are hosts.

pub mod record;

use crate::app::App;
use crate::catalog::{Catalog, Error};
use crate::config::Config;
use crate::ids::HostId;

/// Who we are. A shared catalogue is told that by the data directory; a file has one host, whichever directory it was moved to.
///
/// # Errors
/// The catalogue failed; the data directory's name cannot be read.
pub fn identify(catalog: &Catalog, config: &Config) -> anyhow::Result<HostId> {
    if catalog.is_shared() {
        return config.host();
    }
    if let Some(id) = catalog.read(record::only)? {
        return Ok(id);
    }
    let id = HostId::random();
    catalog.write(|tx| record::announce(tx, &id, &machine(), &config.roles.words()))?;
    Ok(id)
}

/// Says in the catalogue that we are there.
///
/// # Errors
/// The catalogue failed.
pub fn announce(app: &App) -> Result<(), Error> {
    let roles = app.config.roles.words();
    app.catalog
        .write(|tx| record::announce(tx, &app.host, &machine(), &roles))
}

fn machine() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "node".to_owned(),
        name => name.to_owned(),
    }
}
