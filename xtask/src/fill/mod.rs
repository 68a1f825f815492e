//! Fills an engine with data of every type and encoding that redis 7.0 writes, the same for the same seed.
//!
//! Item `i` depends on the seed and on `i` alone, so any part can be made again. [`Writer`] goes on from there: a
//! numbered log of changes whose every prefix can be replayed.

pub mod cli;
mod command;
pub mod damage;
mod kinds;
mod random;
mod writer;

use std::io;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::resp::{Connection, Reply, Target};

pub use command::Command;
pub use random::Random;
pub use writer::{LAST_KEY, Log, Op, Writer, last_number, replay};

/// What the data looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Every type and encoding, in the proportions of a busy application cache.
    Mixed,
    /// Strings of a few bytes: the most keys for the least data.
    Tiny,
    /// Strings of 16 KiB, half of them compressible.
    Blobs,
}

/// What to write.
#[derive(Debug, Clone)]
pub struct Options {
    /// Everything but times follows from it.
    pub seed: u64,
    /// How many keys; ignored where `size_mb` is set.
    pub keys: u64,
    /// Writes until the engine's `used_memory` has grown by this many MiB.
    pub size_mb: Option<u64>,
    /// Databases used: 0, 1, ... About four fifths of the keys are in database 0.
    pub dbs: u64,
    /// The mixture.
    pub profile: Profile,
    /// Share of the keys that expire, 0.0 to 1.0.
    pub ttl_share: f64,
    /// Of the keys that expire one in ten does so after this time or up to ten times as long; `None`: all expire in
    /// a day or later, so that nothing changes under a comparison.
    pub near_ttl: Option<Duration>,
    /// Expiry times count from here (Unix milliseconds), so that a second engine can get the same ones.
    pub now_ms: u64,
    /// Loads two function libraries.
    pub functions: bool,
    /// Consumer groups have a consumer that has read nothing (`XGROUP CREATECONSUMER`, redis 6.2).
    pub idle_consumers: bool,
    /// One more key, `giant:string`, of so many MiB.
    pub giant_mb: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            seed: 1,
            keys: 50_000,
            size_mb: None,
            dbs: 2,
            profile: Profile::Mixed,
            ttl_share: 0.2,
            near_ttl: None,
            now_ms: now_ms(),
            functions: true,
            idle_consumers: true,
            giant_mb: 0,
        }
    }
}

/// What was written.
#[derive(Debug, Clone, Copy)]
pub struct Report {
    /// Keys written, those included that have expired meanwhile.
    pub keys: u64,
    /// Commands it took.
    pub commands: u64,
    /// Wall time.
    pub elapsed: Duration,
}

/// Keys between two looks at the clock and at the engine's memory.
const CHUNK: u64 = 5_000;

/// Fills the engine; keys that are there already stay, unless they have the same name.
///
/// # Errors
/// The connection broke or the engine refused a command (out of memory, another type under the same name).
pub fn fill(target: &Target, options: &Options) -> io::Result<Report> {
    fill_with_progress(target, options, |_| ())
}

/// As [`fill`], and calls back after every few thousand keys.
///
/// # Errors
/// As [`fill`].
pub fn fill_with_progress(
    target: &Target,
    options: &Options,
    mut progress: impl FnMut(&Report),
) -> io::Result<Report> {
    let started = Instant::now();
    let mut connection = Connection::open(target)?;
    let mut database = 0;
    connection.ask(&["SELECT", "0"])?;
    if options.functions {
        for library in FUNCTION_LIBRARIES {
            connection.ask(&["FUNCTION", "LOAD", "REPLACE", library])?;
        }
    }
    let memory_wanted = match options.size_mb {
        Some(size_mb) => Some(used_memory(&mut connection)? + size_mb * 1024 * 1024),
        None => None,
    };
    let keys_wanted = if memory_wanted.is_some() {
        u64::MAX
    } else {
        options.keys
    };
    let mut generator = kinds::Generator::new(options);
    let mut next = 0;
    while next < keys_wanted {
        let end = keys_wanted.min(next + CHUNK);
        for index in next..end {
            let wanted = options.database_of(index);
            if wanted != database {
                connection.send(&["SELECT", &wanted.to_string()])?;
                database = wanted;
            }
            generator.item(index, &mut |command| connection.send(&command.words()))?;
        }
        next = end;
        progress(&Report {
            keys: next,
            commands: connection.answered,
            elapsed: started.elapsed(),
        });
        if let Some(memory_wanted) = memory_wanted
            && used_memory(&mut connection)? >= memory_wanted
        {
            break;
        }
    }
    connection.settle()?;
    let mut keys = next;
    if options.giant_mb > 0 {
        write_giant(&mut connection, options)?;
        keys += 1;
    }
    Ok(Report {
        keys,
        commands: connection.answered,
        elapsed: started.elapsed(),
    })
}

impl Options {
    /// In which database an item goes: in runs, so that few SELECT are needed, every fifth run beside database 0.
    fn database_of(&self, index: u64) -> u64 {
        if self.dbs < 2 {
            return 0;
        }
        let run_length = if self.size_mb.is_some() {
            1000
        } else {
            (self.keys / (5 * self.dbs)).clamp(1, 1000)
        };
        let run = index / run_length;
        if run % 5 == 4 {
            1 + (run / 5) % (self.dbs - 1)
        } else {
            0
        }
    }
}

fn write_giant(connection: &mut Connection, options: &Options) -> io::Result<()> {
    const PIECE: usize = 1024 * 1024;
    let mut random = Random::new(options.seed, u64::MAX);
    connection.ask(&["SELECT", "0"])?;
    connection.ask(&["DEL", "giant:string"])?;
    let mut piece = Vec::with_capacity(PIECE);
    for _ in 0..options.giant_mb {
        piece.clear();
        random.noise(PIECE, &mut piece);
        connection.send(&[b"APPEND".as_slice(), b"giant:string", &piece])?;
    }
    connection.settle()
}

fn used_memory(connection: &mut Connection) -> io::Result<u64> {
    let text = connection.info("memory", "used_memory")?;
    text.parse()
        .map_err(|_| io::Error::other("used_memory is no number"))
}

/// The code of all function libraries of an engine, sorted: `DEBUG DIGEST` leaves functions out.
///
/// # Errors
/// The connection broke or the engine refused.
pub fn function_code(target: &Target) -> io::Result<Vec<String>> {
    let reply = Connection::open(target)?.ask(&["FUNCTION", "LIST", "WITHCODE"])?;
    let Reply::List(libraries) = reply else {
        return Err(io::Error::other("FUNCTION LIST did not answer a list"));
    };
    let code = |library: &Reply| match library {
        Reply::List(fields) => fields.last()?.text().map(str::to_owned),
        _ => None,
    };
    let mut all: Vec<String> = libraries.iter().filter_map(code).collect();
    all.sort();
    Ok(all)
}

/// The clock as Unix milliseconds.
pub fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}

const FUNCTION_LIBRARIES: [&str; 2] = [
    "#!lua name=fill_counting\nredis.register_function('fill_count', function(keys, args) \
     return redis.call('INCRBY', keys[1], args[1] or 1) end)",
    "#!lua name=fill_reading\nlocal function first(keys) return redis.call('GET', keys[1]) end\n\
     redis.register_function{function_name='fill_first', callback=first, flags={'no-writes'}, \
     description='reads one key'}",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_database_gets_keys() {
        for (keys, dbs) in [(200, 16), (50_000, 2), (1_000_000, 5)] {
            let options = Options {
                keys,
                dbs,
                ..Options::default()
            };
            let mut counts = vec![0u64; dbs as usize];
            for index in 0..keys {
                counts[options.database_of(index) as usize] += 1;
            }
            assert!(
                counts.iter().all(|count| *count > 0),
                "{keys} keys, {dbs} databases: {counts:?}"
            );
            assert!(counts[0] > keys / 2);
        }
    }
}
