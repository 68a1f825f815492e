//! The rows of the services that share a catalogue.

use crate::catalog::{Error, Tx};
use crate::ids::HostId;

/// The one that a catalogue has whose hosts are not told apart.
///
/// # Errors
/// The catalogue failed.
pub fn only(tx: &Tx<'_>) -> Result<Option<HostId>, Error> {
    tx.one("SELECT id FROM host ORDER BY started_at_ms LIMIT 1", (), |row| {
        row.get(0)
    })
}

/// Says that a host has started: by this name, or where another one has it by this name and its id.
///
/// # Errors
/// The catalogue failed.
pub fn announce(tx: &Tx<'_>, id: &HostId, name: &str, roles: &str) -> Result<(), Error> {
    let taken = tx.one(
        "SELECT 1 FROM host WHERE name = ?1 AND id <> ?2",
        (name, id),
        |_| Ok(()),
    )?;
    let name = match taken {
        None => name.to_owned(),
        Some(()) => format!("{name}-{id}"),
    };
    tx.execute(
        "INSERT INTO host (id, name, roles, started_at_ms, seen_at_ms) VALUES (?1, ?2, ?3, ?4, ?4) \
         ON CONFLICT (id) DO UPDATE SET name = ?2, roles = ?3, started_at_ms = ?4, seen_at_ms = ?4",
        (id, name, roles, tx.clock()?),
    )?;
    Ok(())
}
