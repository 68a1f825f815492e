//! Whether the target can have in its memory what is to be applied.

use super::Plan;
use super::input::Valid;
use super::target::Target;
use crate::error::{Error, Kind};
use crate::node::Node;

/// What a key takes beside its serialised bytes, at least: its object and its place in a table.
const KEY_OWN_BYTES: u64 = 8;
/// What its source used counts up to so many times its serialised bytes: buffers of its clients are in there too.
const GROWTH_MAX: u64 = 4;
/// What a source may have used for other things than data: a tenth, and this for buffers of its clients and replicas.
const OTHER_BYTES: u64 = 16 << 20;

/// Refuses a target that can never have all of the backup. One that passes may still be too small: for what it has besides, for
/// keys that take more there than in their source, or because of one shard; then it says so itself, and the replay ends.
///
/// Nothing is said of a part of a backup, nor of a target that tells no limit.
///
/// # Errors
/// [`Kind::Refused`] with both sizes; those of the target's nodes.
pub(super) fn check(target: &Target<'_>, files: &[Valid], plan: &Plan) -> Result<(), Error> {
    // Which keys have expired is known one by one.
    let may_expire = |file: &Valid| {
        let mut dbs = file.report.census.dbs.values();
        dbs.any(|db| db.ttl.min_ms.is_some_and(|at_ms| at_ms <= plan.now_ms))
    };
    if plan.selection.chooses() || files.iter().any(may_expire) {
        return Ok(());
    }
    let needed: u64 = files.iter().map(least_bytes).sum();
    let limit = match limit_of(target) {
        Ok(Some(limit)) => limit,
        Ok(None) => return Ok(()),
        // Who is away for a moment is waited for later.
        Err(error) if matches!(error.kind, Kind::Connection | Kind::Idle) => return Ok(()),
        Err(error) => return Err(error),
    };
    match needed > limit {
        false => Ok(()),
        true => {
            let what = format!(
                "the backup takes {} MiB in memory at least, and the target may use {} MiB",
                needed.div_ceil(1 << 20),
                limit >> 20
            );
            Err(Error::new(Kind::Refused, "plan replay", what))
        }
    }
}

/// What the keys of a file take at least.
fn least_bytes(file: &Valid) -> u64 {
    let totals = file.report.census.totals();
    let used = file.report.aux.iter().find(|(name, _)| name == b"used-mem");
    let used: u64 = used
        .and_then(|(_, value)| std::str::from_utf8(value).ok()?.parse().ok())
        .unwrap_or(0);
    let by_file = totals.bytes.saturating_add(totals.keys * KEY_OWN_BYTES);
    let by_source = (used - used / 10).saturating_sub(OTHER_BYTES);
    by_file.max(by_source.min(by_file.saturating_mul(GROWTH_MAX)))
}

/// What all nodes that take writes may use together. `None`: one does not say.
fn limit_of(target: &Target<'_>) -> Result<Option<u64>, Error> {
    let mut limit = 0u64;
    for primary in target.nodes(&[])?.primaries {
        match limit_of_node(&mut target.connect(&primary.address)?)? {
            None => return Ok(None),
            Some(bytes) => limit = limit.saturating_add(bytes),
        }
    }
    Ok(Some(limit))
}

/// What a node may use: what it was told, and no more than its host has. `None`: it does not say.
fn limit_of_node(node: &mut Node) -> Result<Option<u64>, Error> {
    let memory = node.info("memory")?;
    let number = |wanted: &str| -> Option<u64> {
        let (_, value) = memory.iter().find(|(name, _)| name == wanted)?;
        value.parse().ok().filter(|bytes| *bytes > 0)
    };
    Ok([number("maxmemory"), number("total_system_memory")]
        .into_iter()
        .flatten()
        .min())
}
