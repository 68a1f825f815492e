//! Proves that a new generation holds what the backup holds, before anybody uses it.
//!
//! The engine is a standby ([`process::start_standby`](crate::process::start_standby)): nothing expires and nobody
//! writes, so every number is compared for equality. The engine is asked, not the file: what counts is what it will
//! answer to clients.

mod capture;
mod compare;

use std::collections::BTreeMap;

use crate::control::Control;
use crate::error::{Error, Kind};
use crate::failpoint;
use crate::node::{Node, Reply};
use crate::process::{self, Engine};
use crate::sideload::{Expectation, Functions};

/// Libraries with more code than this are counted and not read back.
const FUNCTION_CODE_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// An engine prepares the dump of a value of half a gigabyte in seconds.
const ANSWER_LIMIT: std::time::Duration = std::time::Duration::from_secs(120);

/// How much is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VerifyLevel {
    /// Load counters, keys and keys with expiry of every db, function libraries, and the values of a sample: all of
    /// up to 10,000 keys, else 10,000 drawn by hash, the biggest 100 and some of every encoding.
    Sample,
    /// That, and the digest of every db over all keys, values and expiry times, from a snapshot that the engine
    /// makes.
    Full,
}

/// What was compared, and found equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerifyReport {
    /// How much was asked for.
    pub level: VerifyLevel,
    /// Keys that the engine loaded: as many as the backup holds.
    pub keys_loaded: u64,
    /// Keys whose value was compared: the sample, or all.
    pub keys_compared: u64,
    /// Keys of the sample that could not be read any more because their time was up.
    pub keys_expired_meanwhile: u64,
    /// Function libraries compared.
    pub functions: u64,
}

/// Compares a loaded standby with what was placed for it. Leaves it a standby; but a node of a cluster is the primary of
/// its slots after [`VerifyLevel::Full`].
///
/// # Errors
/// [`Kind::Mismatch`] naming db, key (hash and the begin of its name) and what differs. [`Kind::Refused`] where the
/// engine is no standby or still loads. [`Kind::EngineExited`], [`Kind::Cancelled`], [`Kind::Deadline`] and the kinds
/// of a broken connection. The engine must not serve after any of them.
pub fn verify(
    engine: &Engine,
    expectation: &Expectation,
    level: VerifyLevel,
    control: &Control,
) -> Result<VerifyReport, Error> {
    failpoint::hit("verify.before")?;
    let report = compare_all(engine, expectation, level, control).map_err(|e| engine.explain(e))?;
    failpoint::hit("verify.after")?;
    Ok(report)
}

fn compare_all(
    engine: &Engine,
    expectation: &Expectation,
    level: VerifyLevel,
    control: &Control,
) -> Result<VerifyReport, Error> {
    let mut node = engine.control()?;
    node.set_timeout(ANSWER_LIMIT)?;
    check_is_standby(&mut node)?;
    let is_of_cluster = process::is_of_cluster(&mut node)?;
    if is_of_cluster {
        // A replica in a cluster sends readers to its primary unless they ask for this.
        node.run(&["READONLY"])?;
    }
    let keys_loaded = compare_loaded(&mut node, expectation)?;
    compare_dbs(&mut node, expectation)?;
    compare_functions(&mut node, &expectation.functions)?;
    let mut report = VerifyReport {
        level,
        keys_loaded,
        keys_compared: 0,
        keys_expired_meanwhile: 0,
        functions: expectation.functions.code_digests.len() as u64,
    };
    // At the full level too: it names the key, which a digest cannot.
    let sample = compare::sample(&mut node, &expectation.sample, control)?;
    report.keys_compared = sample.compared;
    report.keys_expired_meanwhile = sample.expired;
    if level == VerifyLevel::Full {
        capture::compare(engine, &mut node, is_of_cluster, expectation, control)?;
        report.keys_compared = keys_loaded;
    }
    Ok(report)
}

fn mismatch(context: String) -> Error {
    Error::new(Kind::Mismatch, "verify", context)
}

fn check_is_standby(node: &mut Node) -> Result<(), Error> {
    match node.run(&["ROLE"])? {
        Reply::Array(words) if words.first().and_then(Reply::text).as_deref() == Some("slave") => Ok(()),
        _ => Err(Error::new(
            Kind::Refused,
            "verify",
            format!("{} was not started as a standby", node.label()),
        )),
    }
}

fn compare_loaded(node: &mut Node, expectation: &Expectation) -> Result<u64, Error> {
    let fields: BTreeMap<String, String> = node.info("persistence")?.into_iter().collect();
    let number = |name: &str| -> Result<u64, Error> {
        fields
            .get(name)
            .and_then(|value| value.parse().ok())
            .ok_or_else(|| Error::new(Kind::Protocol, "verify", format!("INFO does not say {name}")))
    };
    if number("loading")? != 0 {
        return Err(Error::new(Kind::Refused, "verify", "the engine still loads"));
    }
    let expected = expectation.keys();
    // Redis before 7.0 does not count what it loads, and drops nothing; what its dbs have is compared anyway.
    if !fields.contains_key("rdb_last_load_keys_loaded") {
        return Ok(expected);
    }
    // Expired ones are nought on a standby; a newer engine may drop some all the same, and counts them.
    let loaded = number("rdb_last_load_keys_loaded")? + number("rdb_last_load_keys_expired")?;
    if loaded != expected {
        return Err(mismatch(format!(
            "{loaded} keys were loaded, the backup holds {expected}"
        )));
    }
    Ok(loaded)
}

/// Keys, and keys that expire, of every db.
fn compare_dbs(node: &mut Node, expectation: &Expectation) -> Result<(), Error> {
    let mut actual: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
    for (name, value) in node.info("keyspace")? {
        let Some(db) = name.strip_prefix("db").and_then(|number| number.parse().ok()) else {
            continue;
        };
        let number = |field: &str| -> Option<u64> {
            value
                .split(',')
                .find_map(|part| part.strip_prefix(field)?.strip_prefix('=')?.parse().ok())
        };
        let (Some(keys), Some(expires)) = (number("keys"), number("expires")) else {
            let context = format!("INFO keyspace says {value:?}");
            return Err(Error::new(Kind::Protocol, "verify", context));
        };
        actual.insert(db, (keys, expires));
    }
    for (&db, census) in &expectation.report.census.dbs {
        let (keys, expires) = actual.remove(&db).unwrap_or((0, 0));
        if keys != census.keys {
            return Err(mismatch(format!(
                "db {db} has {keys} keys, the backup {}",
                census.keys
            )));
        }
        if expires != census.expires {
            return Err(mismatch(format!(
                "db {db} has {expires} keys that expire, the backup {}",
                census.expires
            )));
        }
    }
    match actual.into_iter().find(|(_, (keys, _))| *keys != 0) {
        Some((db, (keys, _))) => Err(mismatch(format!("db {db} has {keys} keys, the backup none"))),
        None => Ok(()),
    }
}

fn compare_functions(node: &mut Node, expected: &Functions) -> Result<(), Error> {
    let with_code = expected.code_bytes <= FUNCTION_CODE_BYTES_MAX;
    let words: &[&str] = if with_code {
        &["FUNCTION", "LIST", "WITHCODE"]
    } else {
        &["FUNCTION", "LIST"]
    };
    let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
    let libraries = match node.ask(&words)? {
        Reply::Array(libraries) => libraries,
        // Redis before 7.0 knows no functions; what holds some it does not load.
        Reply::Error(text) if text.contains("unknown command") => Vec::new(),
        other => {
            let context = format!("FUNCTION LIST gives no list: {other:?}");
            return Err(Error::new(Kind::Protocol, "verify", context));
        }
    };
    if libraries.len() != expected.code_digests.len() {
        return Err(mismatch(format!(
            "there are {} function libraries, the backup holds {}",
            libraries.len(),
            expected.code_digests.len()
        )));
    }
    if !with_code {
        return Ok(());
    }
    let mut digests: Vec<[u8; 32]> = libraries.iter().filter_map(code_digest).collect();
    digests.sort_unstable();
    if digests != expected.code_digests {
        return Err(mismatch(
            "the code of a function library is not the backup's".to_owned(),
        ));
    }
    Ok(())
}

/// Of one entry of `FUNCTION LIST WITHCODE`: names and values in turn.
fn code_digest(library: &Reply) -> Option<[u8; 32]> {
    let Reply::Array(fields) = library else {
        return None;
    };
    fields.chunks_exact(2).find_map(|pair| match pair {
        [name, Reply::Bulk(Some(code))] if name.text().as_deref() == Some("library_code") => {
            Some(*blake3::hash(code).as_bytes())
        }
        _ => None,
    })
}
