//! The verb for clusters: one snapshot of each shard becomes one archive.
//!
//! Shards are captured one after the other: their engines share a host here, where each fork may need as much memory
//! again as its engine has, and the buffers of a backup are there once. How far the snapshots lie apart is recorded.
//! Each shard is proven to hold no key of a slot that is not its own.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::archive::{self, ShardRecord};
use crate::control::Control;
use crate::error::{Error, Kind};
use crate::failpoint;
use crate::keys::SigningKey;
use crate::node::Endpoint;
use crate::psync;
use crate::store::{Patience, Store};

use super::cut::Captured;
use super::{BackupPlan, BackupReport, Whole, begin_snapshot, capture, conclude};

/// One shard to capture.
#[derive(Debug, Clone)]
pub struct Shard {
    /// The node to capture: its primary, or a replica of that which is in sync.
    pub source: Endpoint,
    /// The client port of its primary: names its file.
    pub port: u16,
    /// Its slots, each range with both ends.
    pub slots: Vec<(u16, u16)>,
}

/// Makes the backup of `shards`, which have all slots between them; `plan.source` is not used. Phases as of
/// [`run`](super::run), for each shard in turn.
///
/// On return everything is durable. After an error nothing is left below the prefix, unless the store itself refuses to
/// delete.
///
/// # Errors
/// As [`run`](super::run); [`Kind::Mismatch`] where a shard holds a key of a foreign slot.
pub fn run_shards(
    plan: &BackupPlan<'_>,
    shards: &[Shard],
    store: &Store,
    signer: &SigningKey,
    control: &Control,
) -> Result<BackupReport, Error> {
    if archive::is_begun(store, &plan.prefix)? {
        let context = format!("{} holds objects already", plan.prefix);
        return Err(Error::new(Kind::Store, "start backup", context));
    }
    let result = make(plan, shards, store, signer, control);
    if result.is_err()
        && let Err(e) = archive::delete(&store.with_patience(Patience::SHORT), &plan.prefix)
    {
        tracing::warn!(prefix = plan.prefix, error = %crate::chain(&e), "remains of a failed backup stay in the store");
    }
    result
}

fn make(
    plan: &BackupPlan<'_>,
    shards: &[Shard],
    store: &Store,
    signer: &SigningKey,
    control: &Control,
) -> Result<BackupReport, Error> {
    let mut records = Vec::new();
    let mut used_memory_bytes = 0;
    let mut whole: Option<(Captured, String, i64)> = None;
    for (number, shard) in (0..).zip(shards) {
        let plan = BackupPlan {
            source: shard.source.clone(),
            ..plan.clone()
        };
        control.enter("connecting", 0);
        let node = psync::connect(&plan.source)?;
        let started = begin_snapshot(&plan, node, number, control)?;
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        failpoint::hit("backup.after_fullresync")?;
        let snapshot = started.payload(control)?;
        let (replid, offset) = (snapshot.replid.clone(), snapshot.offset);
        control.enter("capturing", snapshot.length.unwrap_or(plan.expected_bytes));
        let captured = capture(&plan, store, snapshot, number, Some(&shard.slots), control)?;
        failpoint::hit("backup.after_last_segment")?;
        used_memory_bytes += super::cut::aux_text(&captured.report, &["used-mem"])
            .parse::<u64>()
            .unwrap_or(0);
        records.push(ShardRecord {
            first_offset: whole.as_ref().map_or(0, |(all, _, _)| all.report.bytes),
            plain_bytes: captured.report.bytes,
            keys: captured.keys,
            slots: shard.slots.clone(),
            port: shard.port,
            replid: replid.clone(),
            offset,
            captured_at_ms: i64::try_from(at.as_millis()).unwrap_or(i64::MAX),
        });
        match &mut whole {
            Some((all, _, _)) => all.append(captured),
            None => whole = Some((captured, replid, offset)),
        }
    }
    let Some((captured, replid, offset)) = whole else {
        return Err(Error::new(
            Kind::Refused,
            "start backup",
            "a cluster without shards",
        ));
    };
    let whole = Whole {
        prefix: &plan.prefix,
        labels: &plan.labels,
        recipient: &plan.recipient,
        source: plan.source.address.to_string(),
        replid,
        offset,
        shards: records,
    };
    let report = conclude(whole, captured, store, signer, control)?;
    Ok(BackupReport {
        used_memory_bytes,
        ..report
    })
}
