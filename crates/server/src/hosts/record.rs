//! The rows of the services that share a catalogue, and of what one of them does for all. All times are those of the database's
//! clock.

use std::collections::HashSet;
use std::time::Duration;

use engine::process::Brand;

use crate::catalog::{Error, Row, Tx, params};
use crate::ids::{HostId, InstanceId, Moment};

/// A row of the table.
#[derive(Debug, Clone)]
pub struct Host {
    /// Its id.
    pub id: HostId,
    /// What people call it.
    pub name: String,
    /// The words of its roles, separated by commas.
    pub roles: String,
    /// What its instances can be of: brand and version. Where nobody asks for one, the first.
    pub engines: Vec<(Brand, String)>,
    /// Address that its engines listen on.
    pub bind: String,
    /// Range for instances that ask for no port.
    pub ports: (u16, u16),
    /// Memory that it could give to engines when it was seen.
    pub free_memory_bytes: u64,
    /// Which start of which machine it is on, and which directory there: a copy of its data directory is elsewhere.
    pub place: String,
    /// Since when its process runs.
    pub started_at: Moment,
    /// When it last said that it is there.
    pub seen_at: Moment,
    /// From when on it is lost, if it is not seen again.
    pub lost_at: Moment,
}

macro_rules! columns {
    () => {
        "id, name, roles, engines, bind, first_port, last_port, free_memory_bytes, started_at_ms, seen_at_ms, lost_after_ms, place"
    };
}

fn row(row: &Row<'_>) -> Result<Host, Error> {
    let engines: String = row.get(3)?;
    let unreadable = || Error::Unreadable(format!("{engines} are no engines"));
    let engines: Vec<(String, String)> = serde_json::from_str(&engines).map_err(|_| unreadable())?;
    Ok(Host {
        id: row.get(0)?,
        name: row.get(1)?,
        roles: row.get(2)?,
        engines: engines
            .into_iter()
            .filter_map(|(brand, version)| Some((Brand::from_word(&brand)?, version)))
            .collect(),
        bind: row.get(4)?,
        ports: (row.get(5)?, row.get(6)?),
        free_memory_bytes: row.get(7)?,
        started_at: row.get(8)?,
        seen_at: row.get(9)?,
        lost_at: row.get(10)?,
        place: row.get(11)?,
    })
}

/// Says that a host has started; by its name, or where another one has that by its name and its id.
///
/// # Errors
/// The catalogue failed.
pub fn announce(tx: &Tx<'_>, host: &Host) -> Result<(), Error> {
    let taken = tx.one(
        "SELECT 1 FROM host WHERE name = ?1 AND id <> ?2",
        (&host.name, &host.id),
        |_| Ok(()),
    )?;
    let name = match taken {
        None => host.name.clone(),
        Some(()) => format!("{}-{}", host.name, host.id),
    };
    let engines = host
        .engines
        .iter()
        .map(|(brand, version)| (brand.word(), version));
    let engines = serde_json::json!(engines.collect::<Vec<_>>()).to_string();
    tx.execute(
        "INSERT INTO host (id, name, roles, engines, bind, first_port, last_port, free_memory_bytes, started_at_ms, seen_at_ms, \
         lost_after_ms, place) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12) \
         ON CONFLICT (id) DO UPDATE SET name = ?2, roles = ?3, engines = ?4, bind = ?5, first_port = ?6, last_port = ?7, \
         free_memory_bytes = ?8, started_at_ms = ?9, seen_at_ms = ?10, lost_after_ms = ?11, place = ?12",
        params![
            host.id,
            name,
            host.roles,
            engines,
            host.bind,
            host.ports.0,
            host.ports.1,
            host.free_memory_bytes,
            host.started_at,
            host.seen_at,
            host.lost_at,
            host.place,
        ],
    )?;
    Ok(())
}

/// Says that a host is there, and will be for so long. `false`: it was forgotten meanwhile.
///
/// # Errors
/// The catalogue failed.
pub fn beat(tx: &Tx<'_>, id: &HostId, length: Duration, free_memory_bytes: u64) -> Result<bool, Error> {
    let now = tx.clock()?;
    let changed = tx.execute(
        "UPDATE host SET seen_at_ms = ?2, lost_after_ms = ?3, free_memory_bytes = ?4 WHERE id = ?1",
        (id, now, now.after(length), free_memory_bytes),
    )?;
    Ok(changed == 1)
}

/// All of them, by name.
///
/// # Errors
/// The catalogue failed.
pub fn all(tx: &Tx<'_>) -> Result<Vec<Host>, Error> {
    tx.all(
        concat!("SELECT ", columns!(), " FROM host ORDER BY name"),
        (),
        row,
    )
}

/// When each of them has said for the last time that it is there.
///
/// # Errors
/// The catalogue failed.
pub fn seen(tx: &Tx<'_>) -> Result<Vec<(HostId, Moment)>, Error> {
    tx.all("SELECT id, seen_at_ms FROM host", (), |row| {
        Ok((row.get(0)?, row.get(1)?))
    })
}

/// The one of that id; `None`: it was forgotten.
///
/// # Errors
/// The catalogue failed.
pub fn load(tx: &Tx<'_>, id: &HostId) -> Result<Option<Host>, Error> {
    tx.one(
        concat!("SELECT ", columns!(), " FROM host WHERE id = ?1"),
        (id,),
        row,
    )
}

/// Those that have said that they are there.
///
/// # Errors
/// The catalogue failed.
pub fn alive(tx: &Tx<'_>) -> Result<HashSet<HostId>, Error> {
    let found: Vec<HostId> = tx.all(
        "SELECT id FROM host WHERE lost_after_ms >= ?1",
        (tx.clock()?,),
        |row| row.get(0),
    )?;
    Ok(found.into_iter().collect())
}

/// Living hosts that have instances, those with the fewest first.
///
/// # Errors
/// The catalogue failed.
pub fn workers(tx: &Tx<'_>) -> Result<Vec<Host>, Error> {
    tx.all(
        concat!(
            "SELECT ",
            columns!(),
            " FROM host WHERE lost_after_ms >= ?1 AND roles LIKE '%worker%' ORDER BY (SELECT count(*) FROM instance \
             WHERE host_id = host.id AND deleted_at_ms IS NULL), name"
        ),
        (tx.clock()?,),
        row,
    )
}

/// Removes a row; what refers to the host stays.
///
/// # Errors
/// The catalogue failed.
pub fn forget(tx: &Tx<'_>, id: &HostId) -> Result<(), Error> {
    tx.execute("DELETE FROM host WHERE id = ?1", (id,))?;
    Ok(())
}

/// Takes a duty for so long, or goes on with it. `Some`: for how long somebody has had it, but for gaps up to `gap`. `None`:
/// another host has it.
///
/// # Errors
/// The catalogue failed.
pub fn take_duty(
    tx: &Tx<'_>,
    name: &str,
    host: &HostId,
    length: Duration,
    gap: Duration,
) -> Result<Option<Duration>, Error> {
    let now = tx.clock()?;
    let gap = Moment(now.0.saturating_sub(i64::try_from(gap.as_millis()).unwrap_or(0)));
    tx.one(
        "INSERT INTO duty (name, host_id, until_ms, since_ms) VALUES (?1, ?2, ?3, ?4) \
         ON CONFLICT (name) DO UPDATE SET host_id = ?2, until_ms = ?3, \
         since_ms = CASE WHEN duty.until_ms < ?5 THEN ?4 ELSE duty.since_ms END \
         WHERE duty.host_id = ?2 OR duty.until_ms < ?4 RETURNING since_ms",
        (name, host, now.after(length), now, gap),
        |row| {
            let since: i64 = row.get(0)?;
            Ok(Duration::from_millis(u64::try_from(now.0 - since).unwrap_or(0)))
        },
    )
}

/// Lets others take a duty at once.
///
/// # Errors
/// The catalogue failed.
pub fn give_duty_up(tx: &Tx<'_>, name: &str, host: &HostId) -> Result<(), Error> {
    let over = Moment(tx.clock()?.0.saturating_sub(1));
    tx.execute(
        "UPDATE duty SET until_ms = ?3 WHERE name = ?1 AND host_id = ?2",
        (name, host, over),
    )?;
    Ok(())
}

/// The public half of the key that signs, hexadecimal; `None`: nobody has signed anything yet.
///
/// # Errors
/// The catalogue failed.
pub fn signer(tx: &Tx<'_>) -> Result<Option<String>, Error> {
    tx.one("SELECT verifying_key FROM signer", (), |row| row.get(0))
}

/// Sets it, once.
///
/// # Errors
/// The catalogue failed.
pub fn set_signer(tx: &Tx<'_>, key: &str) -> Result<(), Error> {
    tx.execute("INSERT INTO signer (verifying_key) VALUES (?1)", (key,))?;
    Ok(())
}

/// Writes what the data of an instance takes in memory.
///
/// # Errors
/// The catalogue failed.
pub fn set_memory(tx: &Tx<'_>, instance: &InstanceId, bytes: u64) -> Result<(), Error> {
    tx.execute(
        "INSERT INTO memory_seen (instance_id, used_memory_bytes) VALUES (?1, ?2) \
         ON CONFLICT (instance_id) DO UPDATE SET used_memory_bytes = ?2",
        (instance, bytes),
    )?;
    Ok(())
}

/// What the data of each instance takes in memory.
///
/// # Errors
/// The catalogue failed.
pub fn memory(tx: &Tx<'_>) -> Result<Vec<(InstanceId, u64)>, Error> {
    tx.all(
        "SELECT instance_id, used_memory_bytes FROM memory_seen",
        (),
        |row| Ok((row.get(0)?, row.get(1)?)),
    )
}
