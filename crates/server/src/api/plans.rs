//! Plans of restores on the wire.

use serde::Serialize;
use utoipa::ToSchema;

use super::error::{ApiError, json_response};
use super::page::Stamp;
use super::request::Request;
use super::restores;
use super::routes::Reply;
use crate::restore::plan::{self, Plan};

/// `POST /ck/v1/…/instances/{instance_id}/restores/plan`: the body is that of the restore.
///
/// # Errors
/// As the restore.
pub fn create(request: &Request) -> Result<Reply, ApiError> {
    let project = request.project()?;
    let instance = request.instance_id()?;
    let wish = restores::decode(request)?;
    let plan = plan::plan(&request.app, project, &instance, &wish, request.now)?;
    Ok(json_response(200, &RestorePlan::new(&plan)))
}

/// What a restore would do. Nothing is begun, and nothing is kept of it.
#[derive(Debug, Serialize, ToSchema)]
pub struct RestorePlan<'a> {
    /// Asks for exactly this in the body of the restore, which is refused where it would be anything else.
    pub plan_id: &'a str,
    /// The instance that the backup is of.
    pub source_instance_id: &'a str,
    /// Its name.
    pub source_instance_name: &'a str,
    /// Its layout: `single`, `3 shards`, `3 shards x 1 replica`.
    pub source_layout: String,
    /// The layout of the instance that is restored into.
    pub layout: String,
    /// `side_load`, `in_place`, `switch_back`, `replay`
    pub method: &'static str,
    /// Whether keys go to other shards than those of the backup.
    pub is_cut: bool,
    /// Keys of the backup.
    pub keys: u64,
    /// Plain bytes of the backup; 0 of a kept generation.
    pub bytes: u64,
    /// What each shard is to hold; empty for a kept generation.
    pub shards: Vec<PlannedShard>,
    /// In bytes.
    pub memory: PlannedMemory,
    /// Who made the backup, and who is to load it.
    pub engines: PlannedEngines<'a>,
    /// What may or will stand in the way; empty: nothing is known.
    pub gaps: &'a [String],
    /// Expected seconds from the start to the end.
    pub estimated_seconds: f64,
    /// Of these, how many seconds clients are expected to wait; null where the instance serves all the while.
    pub gap_seconds: Option<f64>,
    /// Restores into the instance on which that rests; 0: it is assumed.
    pub measured_restores: usize,
    /// Until when it could be undone at the latest, were it done now; null where there would be no safety point.
    #[schema(value_type = Option<String>)]
    pub undo_until: Option<Stamp>,
    /// The restore that could not be undone any more afterwards: one generation is kept.
    pub ends_undo_of: Option<&'a str>,
    /// Where it is applied key by key: what would become of every key, were it done now; null where that takes longer than
    /// a plan may.
    pub counts: Option<PlannedCounts>,
}

/// Every key of the backup is in exactly one of the first five.
#[derive(Debug, Serialize, ToSchema)]
pub struct PlannedCounts {
    /// Would be written.
    pub applied: u64,
    /// Are not selected.
    pub skipped: u64,
    /// Are there already, and would be left as they are.
    pub conflicting: u64,
    /// Their time is over.
    pub expired: u64,
    /// The target cannot hold them.
    pub failed: u64,
    /// Other keys of the target, which would be removed.
    pub removed: u64,
}

/// One shard.
#[derive(Debug, Serialize, ToSchema)]
pub struct PlannedShard {
    /// Its first slot.
    pub first_slot: u16,
    /// Its last slot.
    pub last_slot: u16,
    /// Keys.
    pub keys: u64,
    /// Plain bytes.
    pub bytes: u64,
    /// Whether both were counted; else they are the share of the slots.
    pub is_counted: bool,
}

/// Memory of two generations.
#[derive(Debug, Serialize, ToSchema)]
pub struct PlannedMemory {
    /// For the new one, with what must stay free on the host.
    pub needed: u64,
    /// What the present one takes.
    pub present: u64,
    /// What can be had, once what is kept for an earlier undo has given way.
    pub free: u64,
}

/// Versions.
#[derive(Debug, Serialize, ToSchema)]
pub struct PlannedEngines<'a> {
    /// Engine that the backup is of.
    pub backup: &'a str,
    /// RDB version of the backup; 0 of a kept generation.
    pub rdb_version: u32,
    /// Engine of the instance.
    pub instance: &'a str,
}

impl<'a> RestorePlan<'a> {
    fn new(plan: &'a Plan) -> Self {
        let (source, name, layout) = &plan.source;
        let shards = plan.shards.iter();
        Self {
            plan_id: &plan.id,
            source_instance_id: source.as_str(),
            source_instance_name: name,
            source_layout: layout.to_string(),
            layout: plan.layout.to_string(),
            method: plan.method.word(),
            is_cut: plan.is_cut,
            keys: plan.keys,
            bytes: plan.bytes,
            shards: shards
                .map(|shard| PlannedShard {
                    first_slot: shard.slots.0,
                    last_slot: shard.slots.1,
                    keys: shard.keys,
                    bytes: shard.bytes,
                    is_counted: shard.is_counted,
                })
                .collect(),
            memory: PlannedMemory {
                needed: plan.memory.needed,
                present: plan.memory.present,
                free: plan.memory.free,
            },
            engines: PlannedEngines {
                backup: &plan.engines.0,
                rdb_version: plan.rdb_version,
                instance: &plan.engines.1,
            },
            gaps: &plan.gaps,
            estimated_seconds: (plan.seconds * 10.0).round() / 10.0,
            gap_seconds: plan.gap_seconds.map(|gap| (gap * 1000.0).round() / 1000.0),
            measured_restores: plan.measured_restores,
            undo_until: plan.undo_until.map(Stamp),
            counts: plan.account.as_ref().map(|account| PlannedCounts {
                applied: account.applied.count,
                skipped: account.skipped.count,
                conflicting: account.conflicting.count,
                expired: account.expired.count,
                failed: account.failed.count,
                removed: account.removed.count,
            }),
            ends_undo_of: plan.ends_undo_of.as_ref().map(crate::ids::RestoreId::as_str),
        }
    }
}
