//! Compares everything: the engine's own snapshot, digested.

use crate::cluster;
use crate::control::Control;
use crate::error::Error;
use crate::node::Node;
use crate::process::{Engine, NO_PRIMARY};
use crate::psync::Handshake;
use crate::sideload::Expectation;

use super::{ANSWER_LIMIT, mismatch};

const PIECE_BYTES: usize = 256 * 1024;

/// Compares the digest of every db. `node` is a control connection to `engine`, which is a standby, and is one again
/// afterwards, also where this fails and the engine lives; in a cluster there is no way back, and it is promoted after
/// this in any case.
///
/// # Errors
/// As [`super::verify`].
pub(super) fn compare(
    engine: &Engine,
    node: &mut Node,
    is_of_cluster: bool,
    expectation: &Expectation,
    control: &Control,
) -> Result<(), Error> {
    // A replica without its primary gives no snapshot. As a primary it would expire keys, but for the first command;
    // its snapshot holds what is due to expire.
    node.run(&["DEBUG", "SET-ACTIVE-EXPIRE", "0"])?;
    let captured = if is_of_cluster {
        cluster::succeed_nobody(node)?;
        snapshot(engine, control)
    } else {
        node.run(&["REPLICAOF", "NO", "ONE"])?;
        let captured = snapshot(engine, control);
        let (host, port) = NO_PRIMARY;
        node.run(&["REPLICAOF", host, port])?;
        node.run(&["DEBUG", "SET-ACTIVE-EXPIRE", "1"])?;
        captured
    };
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

fn snapshot(engine: &Engine, control: &Control) -> Result<rdb::Report, Error> {
    let wanted = || control.check("verify");
    let invalid = |e: rdb::Error| mismatch(format!("the engine's own snapshot is not valid: {e}"));
    let mut snapshot = Handshake::begin(engine.control()?, ANSWER_LIMIT)?
        .started(control)?
        .payload(control)?;
    let mut validator = rdb::Validator::new();
    let mut piece = Vec::new();
    loop {
        wanted()?;
        let more = snapshot.fill(&mut piece, PIECE_BYTES, wanted)?;
        validator.feed(&piece, &mut ()).map_err(invalid)?;
        if !more {
            return validator.finish().map_err(invalid);
        }
    }
}
