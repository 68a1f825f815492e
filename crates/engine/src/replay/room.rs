//! Whether the target can have in its memory what is to be applied.

use super::input::Valid;
use super::target::Target;
use crate::error::{Error, Kind};
use crate::node::Node;
use crate::selection::Selection;

/// What a key takes beside its serialised bytes, at least: its object and its place in a table.
const KEY_OWN_BYTES: u64 = 24;
/// What a source may have used for other things than data: a tenth, and this for buffers of its clients and replicas.
const OTHER_BYTES: u64 = 16 << 20;

/// Refuses a target that can never have all of the backup. One that passes may still be too small: for what it has besides, for
/// keys that take more there than in their source, or because of one shard; then it says so itself, and the replay ends.
///
/// Nothing is said of a part of a backup, nor of a target that tells no limit.
///
/// # Errors
/// [`Kind::Refused`] with both sizes; those of the target's nodes.
pub(super) fn check(target: &Target<'_>, files: &[Valid], selection: &Selection) -> Result<(), Error> {
    if selection.chooses() {
        return Ok(());
    }
    let needed: u64 = files.iter().map(least_bytes).sum();
    let mut limit = 0u64;
    for primary in target.nodes(&[])?.primaries {
        match limit_of(&mut target.connect(&primary.address)?)? {
            None => return Ok(()),
            Some(bytes) => limit = limit.saturating_add(bytes),
        }
    }
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

/// What the keys of a file take at least, but for those that expire, which may have.
fn least_bytes(file: &Valid) -> u64 {
    let totals = file.report.census.totals();
    let used = file.report.aux.iter().find(|(name, _)| name == b"used-mem");
    let used: u64 = used
        .and_then(|(_, value)| std::str::from_utf8(value).ok()?.parse().ok())
        .unwrap_or(0);
    let by_source = (used - used / 10).saturating_sub(OTHER_BYTES);
    let by_file = totals.bytes.saturating_add(totals.keys * KEY_OWN_BYTES);
    let all = u128::from(by_source.max(by_file));
    let share = all * u128::from(totals.keys - totals.expires) / u128::from(totals.keys.max(1));
    u64::try_from(share).unwrap_or(u64::MAX)
}

/// What a node may use: what it was told, and no more than its host has. `None`: it does not say.
fn limit_of(node: &mut Node) -> Result<Option<u64>, Error> {
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
