//! Compares everything: the engine's own snapshot, digested.

use crate::control::Control;
use crate::error::{Error, Kind};
use crate::node::Node;
use crate::process::{Engine, NO_PRIMARY};
use crate::sideload::Expectation;

use super::{ANSWER_LIMIT, mismatch};

/// The mark that ends a snapshot of unknown length.
const MARK_BYTES: usize = 40;
const PIECE_BYTES: usize = 256 * 1024;

struct Nothing;

impl rdb::Sink for Nothing {
    fn key(&mut self, _key: &rdb::KeySummary<'_>) {}
}

/// Compares the digest of every db. `node` is a control connection to `engine`, which is a standby, and is one again
/// afterwards, also where this fails and the engine lives.
///
/// # Errors
/// As [`super::verify`].
pub(super) fn compare(
    engine: &Engine,
    node: &mut Node,
    expectation: &Expectation,
    control: &Control,
) -> Result<(), Error> {
    // A replica without its primary gives no snapshot. As a primary it would expire keys, but for the first command;
    // its snapshot holds what is due to expire.
    node.run(&["DEBUG", "SET-ACTIVE-EXPIRE", "0"])?;
    node.run(&["REPLICAOF", "NO", "ONE"])?;
    let captured = snapshot(engine, control);
    let (host, port) = NO_PRIMARY;
    node.run(&["REPLICAOF", host, port])?;
    node.run(&["DEBUG", "SET-ACTIVE-EXPIRE", "1"])?;
    let actual = captured?.census.dbs;
    let expected = &expectation.report.census.dbs;
    for (db, census) in expected {
        let found = actual.get(db);
        let keys = found.map_or(0, |found| found.keys);
        if keys != census.keys {
            return Err(mismatch(format!(
                "db {db} has {keys} keys, the backup {}",
                census.keys
            )));
        }
        if found.is_some_and(|found| found.digest != census.digest) {
            return Err(mismatch(format!(
                "db {db}: a key, a value or an expiry time differs from the backup's"
            )));
        }
    }
    match actual.keys().find(|db| !expected.contains_key(db)) {
        Some(db) => Err(mismatch(format!("db {db} has keys, the backup none"))),
        None => Ok(()),
    }
}

/// Source: the replication handshake; the reply is a mark, the snapshot and the mark again.
fn snapshot(engine: &Engine, control: &Control) -> Result<rdb::Report, Error> {
    let protocol = |what: String| Error::new(Kind::Protocol, "verify", what);
    let mut node = engine.control()?;
    node.set_timeout(ANSWER_LIMIT)?;
    node.run(&["REPLCONF", "capa", "eof"])?;
    node.send(&[b"PSYNC", b"?", b"-1"])?;
    let answer = line(&mut node)?;
    if !answer.starts_with(b"+FULLRESYNC") {
        let text = String::from_utf8_lossy(&answer).into_owned();
        return Err(Error::new(Kind::Refused, "verify", format!("PSYNC: {text}")));
    }
    let header = line(&mut node)?;
    let Some(mark) = header
        .strip_prefix(b"$EOF:")
        .filter(|mark| mark.len() == MARK_BYTES)
    else {
        return Err(protocol(format!(
            "snapshot header {:?}",
            String::from_utf8_lossy(&header)
        )));
    };
    let invalid = |e: rdb::Error| mismatch(format!("the engine's own snapshot is not valid: {e}"));
    let mut validator = rdb::Validator::new();
    // The last 40 bytes that have arrived may be the mark: they are held back.
    let mut buffer = vec![0; PIECE_BYTES];
    let mut held = 0;
    loop {
        control.check("verify")?;
        held += node.read_some(&mut buffer[held..])?;
        let fit = held.saturating_sub(MARK_BYTES);
        validator.feed(&buffer[..fit], &mut Nothing).map_err(invalid)?;
        buffer.copy_within(fit..held, 0);
        held -= fit;
        if buffer[..held] == *mark {
            return validator.finish().map_err(invalid);
        }
    }
}

/// The next line, without the empty ones that keep the connection alive.
fn line(node: &mut Node) -> Result<Vec<u8>, Error> {
    loop {
        let line = node.line()?;
        if !line.is_empty() {
            return Ok(line);
        }
    }
}
