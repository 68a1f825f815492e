//! Damages an engine's data on purpose, so that a restore has something to show.

use std::io;

use super::Random;
use crate::resp::{Connection, Reply, Target};

/// What was done.
#[derive(Debug, Default, Clone, Copy)]
pub struct Damage {
    /// Keys that are gone.
    pub deleted: u64,
    /// Keys that hold something else now.
    pub overwritten: u64,
    /// Keys that were not there.
    pub added: u64,
    /// The database that was emptied, and how many keys it had.
    pub flushed: Option<(u64, u64)>,
}

/// Deletes a third of the keys, overwrites a tenth, adds one for every twenty, and empties the last of several
/// databases.
///
/// # Errors
/// The connection broke or a command was refused.
pub fn damage(target: &Target) -> io::Result<Damage> {
    let mut connection = Connection::open(target)?;
    let mut done = Damage::default();
    let mut databases = databases(&mut connection)?;
    if databases.len() > 1
        && let Some((last, keys)) = databases.pop()
    {
        connection.ask(&["SELECT", &last.to_string()])?;
        connection.ask(&["FLUSHDB"])?;
        done.flushed = Some((last, keys));
    }
    for (database, _) in databases {
        connection.ask(&["SELECT", &database.to_string()])?;
        damage_database(&mut connection, &mut done)?;
    }
    Ok(done)
}

fn damage_database(connection: &mut Connection, done: &mut Damage) -> io::Result<()> {
    let mut cursor = b"0".to_vec();
    let mut random = Random::new(0, done.deleted);
    loop {
        let reply = connection.ask(&[b"SCAN".as_slice(), &cursor, b"COUNT", b"2000"])?;
        let Reply::List(parts) = reply else {
            return Err(io::Error::other("SCAN did not answer a list"));
        };
        let [Reply::Bytes(next), Reply::List(keys)] = parts.as_slice() else {
            return Err(io::Error::other("SCAN did not answer a cursor and keys"));
        };
        for key in keys {
            let Reply::Bytes(key) = key else { continue };
            match random.below(60) {
                0..=19 => {
                    connection.send(&[b"UNLINK".as_slice(), key])?;
                    done.deleted += 1;
                }
                20..=25 => {
                    connection.send(&[b"SET".as_slice(), key, b"damaged"])?;
                    done.overwritten += 1;
                }
                26..=28 => {
                    let name = format!("garbage:{:016x}", random.bits());
                    connection.send(&["SET", &name, "was not in the backup"])?;
                    done.added += 1;
                }
                _ => (),
            }
        }
        cursor.clone_from(next);
        if cursor == b"0" {
            return connection.settle();
        }
    }
}

/// Number and key count of each database that has keys.
///
/// # Errors
/// The connection broke or the engine refused.
pub fn databases(connection: &mut Connection) -> io::Result<Vec<(u64, u64)>> {
    let reply = connection.ask(&["INFO", "keyspace"])?;
    let parse = |line: &str| {
        let (number, rest) = line.strip_prefix("db")?.split_once(":keys=")?;
        Some((number.parse().ok()?, rest.split(',').next()?.parse().ok()?))
    };
    Ok(reply
        .text()
        .unwrap_or_default()
        .lines()
        .filter_map(parse)
        .collect())
}
