//! What can be known of a stored backup without restoring it, each level more than the one before.
//!
//! ```text
//! stored   every stored byte is the one that was stored, and the key is the right one
//! parsed   and they decode to a valid RDB, whose keys, values and expiry times have the digest of the capture
//! proven   and an engine, started for that and thrown away, has loaded it and holds exactly that
//! ```

use std::path::Path;
use std::time::{Duration, Instant};

use crate::archive::{Archive, Details};
use crate::control::Control;
use crate::duplicate::{SpillFile, invalid};
use crate::error::{Error, Kind};
use crate::keys::{Identity, to_hex};
use crate::process::{self, EngineSpec};
use crate::sideload;
use crate::verify::{self, VerifyLevel};

/// Threads that fetch and decode, or hash, while nothing else works.
const WORKERS: usize = 2;
const PROVE: &str = "prove backup";

/// What an engine did with a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loaded {
    /// Keys that it holds.
    pub keys: u64,
    /// From the start of its process until it had loaded everything.
    pub load: Duration,
}

/// Hashes every stored byte. Phase: `proving`, of stored bytes.
///
/// # Errors
/// As [`Archive::prove`].
pub fn stored(archive: &Archive, identity: &Identity, control: &Control) -> Result<(), Error> {
    let manifest = archive.manifest();
    control.enter("proving", manifest.stored_bytes + manifest.details.stored_bytes);
    archive.prove(identity, control, WORKERS)
}

/// Decodes and validates everything and compares it with what the capture found. Phase: `validating`, of plain bytes.
/// Memory: that of [`Archive::read`] and of a validator, whose search for duplicate keys takes a file in `spill_dir`.
///
/// # Errors
/// As [`Archive::read`] and [`Archive::details`]; [`Kind::Malformed`] where it is no valid RDB; [`Kind::Mismatch`] where it
/// is another one than was captured; [`Kind::Io`] for the file.
pub fn parsed(
    archive: &Archive,
    identity: &Identity,
    spill_dir: &Path,
    control: &Control,
) -> Result<(), Error> {
    let details = archive.details(identity)?;
    control.enter("validating", archive.manifest().plain_bytes);
    let mut validator = SpillFile::validator(spill_dir)?;
    let mut census = rdb::Census::default();
    let ends = archive.manifest().files();
    let mut ends = ends.iter().map(|file| file.end).peekable();
    let mut at = 0;
    archive.read(identity, control, WORKERS, |piece| {
        // A piece is of one file: each shard's begins a segment.
        if ends.next_if(|end| at >= *end).is_some() {
            let whole = std::mem::replace(&mut validator, SpillFile::validator(spill_dir)?);
            census.absorb(&whole.finish().map_err(|e| invalid(PROVE, &e))?.census);
        }
        validator.feed(piece, &mut ()).map_err(|e| invalid(PROVE, &e))?;
        at += piece.len() as u64;
        let done = &control.bytes_done;
        done.fetch_add(piece.len() as u64, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    })?;
    census.absorb(&validator.finish().map_err(|e| invalid(PROVE, &e))?.census);
    compare(&census, &details)
}

/// Lets an engine load everything, and compares all that it then holds. The engine has no port for clients, ends before
/// this returns, and its directory, which must not exist yet, is gone. Phases: `validating`, `loading`, `verifying`.
///
/// The engine is started only after the last byte was found valid and the whole was found to be what was captured.
///
/// # Errors
/// As [`parsed`]; [`Kind::EngineStart`]; [`Kind::EngineExited`] where it does not take the file; [`Kind::Mismatch`] where
/// it holds anything else.
pub fn proven(
    archive: &Archive,
    identity: &Identity,
    spec: &EngineSpec,
    control: &Control,
) -> Result<Loaded, Error> {
    if !archive.manifest().shards.is_empty() {
        let context =
            "a backup of a cluster is verified up to the level parsed: no single engine can hold it";
        return Err(Error::new(Kind::Refused, PROVE, context));
    }
    let details = archive.details(identity)?;
    control.enter("validating", archive.manifest().plain_bytes);
    let form = sideload::Form::of(spec);
    let placed = sideload::place(&spec.directory, form, spec.run_as, control, |push| {
        archive.read(identity, control, WORKERS, push)
    })?;
    let loaded = compare(&placed.report.census, &details).and_then(|()| {
        control.enter("loading", 0);
        let started = Instant::now();
        let engine = process::start_standby(spec)?;
        let loaded = engine.wait_loaded(control).and_then(|()| {
            let load = started.elapsed();
            control.enter("verifying", 0);
            let seen = verify::verify(&engine, &placed, VerifyLevel::Full, control)?;
            Ok(Loaded {
                keys: seen.keys_loaded,
                load,
            })
        });
        match engine.kill() {
            Ok(()) => loaded,
            Err(e) => loaded.and(Err(e)),
        }
    });
    match sideload::discard(&spec.directory) {
        Ok(()) => loaded,
        Err(e) => loaded.and(Err(e)),
    }
}

/// Whether a file holds what the capture found: keys, keys that expire, and the digest of every db.
fn compare(census: &rdb::Census, details: &Details) -> Result<(), Error> {
    let differs = |db: u32, what: &str| {
        let context = format!("db {db}: {what} differs from what was captured");
        Err(Error::new(Kind::Mismatch, PROVE, context))
    };
    let found = &census.dbs;
    for db in &details.dbs {
        let Some(census) = found.get(&db.db) else {
            return differs(db.db, "that it is empty");
        };
        if census.keys != db.keys || census.expires != db.expires {
            return differs(db.db, "the number of keys");
        }
        if to_hex(&census.digest) != db.digest {
            return differs(db.db, "a key, a value or an expiry time");
        }
    }
    match found
        .keys()
        .find(|number| !details.dbs.iter().any(|db| db.db == **number))
    {
        Some(number) => differs(*number, "that it has keys"),
        None => Ok(()),
    }
}
