//! What people ask of restores: every refusal typed, record and job in one transaction.

use std::path::Path;

use engine::archive::Manifest;
use engine::store::{Patience, always};

use super::options::Options;
use super::record::{self, Method, NewRestore, Status, TargetState};
use super::replay_record::{self, Replay};
use crate::app::App;
use crate::backup::place;
use crate::backup::record::{self as backups, Backup, Kind};
use crate::catalog::Tx;
use crate::config::minor;
use crate::hosts;
use crate::idempotency::{self, Once};
use crate::ids::{BackupId, InstanceId, Moment, ProjectId, RestoreId};
use crate::instance::generation::{self, State};
use crate::instance::layout::{Layout, Mode};
use crate::instance::{Instance, OwnedInstance, command as instances, job as jobs_of_instances};
use crate::jobs::{JobKind, queue};
use crate::limits;
use crate::refusal::Refusal;

/// A wish to restore.
#[derive(Debug)]
pub struct RestoreRequest {
    /// What to restore.
    pub backup_id: BackupId,
    /// The instance that it is a backup of, deleted or not; `None`: the one that it is restored into.
    pub source: Option<InstanceId>,
    /// Free text.
    pub remark: Option<String>,
    /// Compare the digest of everything after loading, not only the counters and a sample.
    pub verify_full: bool,
    /// Where two generations do not fit in memory: stop the old one first.
    pub allow_downtime: bool,
    /// Only if this is still what was planned: see [`super::plan`].
    pub plan: Option<String>,
    /// What becomes of which keys, where it is applied key by key.
    pub replay: Option<Options>,
}

/// Accepts a restore: everything is checked, then record and job are written in one transaction, once for each
/// `once`.
///
/// # Errors
/// Every [`Refusal`] of a restore; nothing is recorded then.
pub fn submit(
    app: &App,
    project: &ProjectId,
    id: &InstanceId,
    request: &RestoreRequest,
    once: Option<&Once>,
    now: Moment,
) -> Result<RestoreId, Refusal> {
    crate::backup::command::check_remark(request.remark.as_deref())?;
    look_into(app, project, id, request)?;
    let restore = app.catalog.write(|tx| {
        idempotency::once(tx, project, once, now, || {
            accept(app, tx, project, id, request, None, now)
        })
    })?;
    accepted(app)?;
    Ok(restore)
}

/// Refuses what only the backup itself can tell: keys in databases that a cluster does not have, and a file that another engine
/// than the one that wrote it does not load. The store is asked, which takes time, so before the transaction; where it does
/// not answer, the job finds out.
///
/// # Errors
/// [`Refusal::OtherDatabases`], [`Refusal::EngineCannotLoad`]; unknown instances.
pub fn look_into(
    app: &App,
    project: &ProjectId,
    id: &InstanceId,
    request: &RestoreRequest,
) -> Result<(), Refusal> {
    let (instance, backup, to_cluster) = app.catalog.read(|tx| {
        let instance = instances::find(tx, project, id)?;
        let source = source(tx, project, &instance, request)?;
        // Who chooses databases is told by the job of those that cannot be.
        let is_chosen = request.replay.as_ref().is_some_and(Options::chooses_dbs);
        let to_cluster = !instance.layout.mode.is_whole() && source.layout.mode.is_whole() && !is_chosen;
        let engine = |of: &Instance| (of.engine, minor(&of.engine_version));
        let by_file = !is_by_keys(&instance, request);
        let backup = match to_cluster || (by_file && engine(&source) != engine(&instance)) {
            true => backups::find(tx, &source, &request.backup_id)?,
            false => None,
        };
        Ok::<_, Refusal>((instance, backup, to_cluster))
    })?;
    let by_file = !is_by_keys(&instance, request);
    let Some(backup) = backup.filter(Backup::is_kept) else {
        return Ok(());
    };
    let seen = place::open(app, &backup, Some(Patience::SHORT), &always).and_then(|archive| {
        let refused = by_file
            .then(|| engine_refuses(&instance, archive.manifest().rdb_version))
            .flatten();
        if refused.is_some() || !to_cluster {
            return Ok(refused);
        }
        let identity = super::job::archive_identity(app, &archive)?;
        Ok(other_database(&archive.details(&identity)?).map(Refusal::OtherDatabases))
    });
    match seen {
        Ok(Some(refused)) => Err(refused),
        Ok(None) => Ok(()),
        Err(error) => {
            tracing::warn!(backup.id = %backup.id, error = engine::chain(&error), "a backup's census cannot be read yet");
            Ok(())
        }
    }
}

/// Whether it is applied key by key.
fn is_by_keys(instance: &Instance, request: &RestoreRequest) -> bool {
    instance.attachment.is_some() || request.replay.is_some()
}

/// The refusal where the instance's engine loads no file of this version. Of an engine that we do not know, it is not known.
fn engine_refuses(instance: &Instance, rdb_version: u32) -> Option<Refusal> {
    let why = rdb::obstacle_of_version(
        &format!("{}-{}", instance.engine.word(), minor(&instance.engine_version)),
        rdb::Family::of_version(rdb_version),
        rdb_version,
    )?;
    let engine = format!("{} {}", instance.engine.word(), instance.engine_version);
    Some(Refusal::EngineCannotLoad { engine, why })
}

/// The first database with keys that a cluster does not have.
pub fn other_database(details: &engine::archive::Details) -> Option<u32> {
    details
        .dbs
        .iter()
        .find(|db| db.db != 0 && db.keys > 0)
        .map(|db| db.db)
}

/// The instance whose backup is restored.
fn source(
    tx: &Tx<'_>,
    project: &ProjectId,
    instance: &OwnedInstance,
    request: &RestoreRequest,
) -> Result<OwnedInstance, Refusal> {
    let id = request.source.as_ref().unwrap_or(&instance.id);
    match instances::find_with_deleted(tx, project, id) {
        Err(Refusal::InstanceUnknown) => Err(Refusal::Parameter("source_instance_id")),
        found => found,
    }
}

/// Record and job of a restore that passes every check. `undoes`: what it takes back whole, where that is what was asked for.
fn accept(
    app: &App,
    tx: &Tx<'_>,
    project: &ProjectId,
    id: &InstanceId,
    request: &RestoreRequest,
    undoes: Option<&RestoreId>,
    now: Moment,
) -> Result<RestoreId, Refusal> {
    let accepted = check(app, tx, project, id, request)?;
    if let Some(planned) = &request.plan
        && *planned != super::plan::id_of(tx, &accepted, request)?
    {
        return Err(Refusal::PlanOutdated);
    }
    let Accepted {
        instance,
        source,
        backup,
        method,
        replay,
    } = accepted;
    let undo_of = match &backup.generation_id {
        Some(generation) => record::that_replaced(tx, id, generation)?,
        // Who names a safety point as any other backup may want only some of its keys.
        None => undoes.cloned(),
    };
    let options = replay
        .as_ref()
        .map(|options| serde_json::json!(options).to_string());
    let new = NewRestore {
        backup_id: &backup.id,
        backup_name: &backup.name,
        backup_remark: backup.remark.as_deref(),
        remark: request.remark.as_deref(),
        source: &source,
        layout: instance.layout,
        method,
        verify: match method {
            // It was verified before it served the first time; or the target says of each key that it has it.
            Method::SwitchBack | Method::Replay => "none",
            Method::SideLoad | Method::InPlace if request.verify_full => "full",
            Method::SideLoad | Method::InPlace => "sample",
        },
        undo_of: undo_of.as_ref(),
        options: options.as_deref(),
    };
    let restore = record::insert_waiting(tx, project, id, &new, now)?;
    queue::insert(tx, id, JobKind::Restore, Some(restore.as_str()))?;
    Ok(restore)
}

fn accepted(app: &App) -> Result<(), Refusal> {
    engine::failpoint::hit("restore.accepted").map_err(|error| Refusal::Internal(engine::chain(&error)))?;
    app.board.wake();
    Ok(())
}

/// What a restore that passes every check is about.
pub(super) struct Accepted {
    pub(super) instance: OwnedInstance,
    pub(super) source: OwnedInstance,
    pub(super) backup: Backup,
    pub(super) method: Method,
    /// Of a replay.
    pub(super) replay: Option<Options>,
}

/// Every refusal that the catalogue and the host can tell.
pub(super) fn check(
    app: &App,
    tx: &Tx<'_>,
    project: &ProjectId,
    id: &InstanceId,
    request: &RestoreRequest,
) -> Result<Accepted, Refusal> {
    let instance = instances::find(tx, project, id)?;
    if app.config.strict_dcs && instance.layout.mode == Mode::Single {
        return Err(Refusal::SingleNode);
    }
    instances::check_idle(tx, id)?;
    instances::check_running(&instance)?;
    let source = source(tx, project, &instance, request)?;
    let backup = backups::find(tx, &source, &request.backup_id)?.ok_or(Refusal::BackupUnknown)?;
    if !is_restorable(tx, &backup)? {
        return Err(Refusal::NotRestorable);
    }
    let by_keys = is_by_keys(&instance, request);
    if backup.kind == Kind::Generation && (by_keys || source.id != instance.id) {
        return Err(Refusal::NoFile);
    }
    // Where its instance's host reads it, whoever is asked.
    let reader = instance.host.as_ref().unwrap_or(&app.host);
    place::check_reader(tx, &backup, reader)?;
    if by_keys {
        let options = request.replay.clone().unwrap_or_default();
        options
            .plan(None, Path::new(""), Moment(0))
            .map_err(Refusal::Parameter)?;
        return Ok(Accepted {
            instance,
            source,
            backup,
            method: Method::Replay,
            replay: Some(options),
        });
    }
    if source.id != instance.id {
        let data = u64::try_from(backup.used_memory_bytes).unwrap_or(0);
        let limit = jobs_of_instances::max_memory_bytes(&instance);
        if data > limit {
            return Err(Refusal::TooLarge {
                data_mb: data >> 20,
                limit_mb: limit >> 20,
            });
        }
    }
    let method = if backup.kind == Kind::Generation {
        Method::SwitchBack
    } else {
        match memory_short(app, tx, &instance, &backup)? {
            None => Method::SideLoad,
            Some(_) if request.allow_downtime && instance.layout.mode == Mode::Single => Method::InPlace,
            Some(_) if request.allow_downtime => return Err(Refusal::NotForClusters),
            Some(refusal) => return Err(refusal),
        }
    };
    Ok(Accepted {
        instance,
        source,
        backup,
        method,
        replay: None,
    })
}

/// Whether a restore of this backup can be accepted now; shown as `is_support_restore`.
///
/// # Errors
/// The catalogue failed.
pub fn is_restorable(tx: &Tx<'_>, backup: &Backup) -> Result<bool, crate::catalog::Error> {
    if !backup.is_kept() || backup.is_damaged() {
        return Ok(false);
    }
    match &backup.generation_id {
        None => Ok(true),
        Some(id) => Ok(generation::find(tx, id)?.is_some_and(|found| found.state == State::Retired)),
    }
}

/// The refusal where a second generation with this backup's data does not fit beside the present one.
fn memory_short(
    app: &App,
    tx: &Tx<'_>,
    instance: &Instance,
    backup: &Backup,
) -> Result<Option<Refusal>, Refusal> {
    let free = free_memory(app, tx, instance)?;
    let needed = memory_needed(backup, instance.layout);
    Ok((needed > free).then_some(Refusal::MemoryShort {
        needed_mb: needed >> 20,
        free_mb: free >> 20,
    }))
}

/// What a second generation of the instance can have. Retired ones do not count: they give way.
pub fn free_memory(app: &App, tx: &Tx<'_>, instance: &Instance) -> Result<u64, Refusal> {
    let mut free = hosts::free_memory(app, tx, instance.host.as_ref())?;
    for generation in generation::existing(tx, &instance.id)? {
        if generation.state == State::Retired
            && let Some(record) = backups::of_generation(tx, &generation.id)?
        {
            free = free.saturating_add(u64::try_from(record.used_memory_bytes).unwrap_or(0));
        }
    }
    Ok(free)
}

/// Whether each shard of the layout is to hold what one file of the backup holds.
pub(super) fn has_same_shards(layout: Layout, manifest: &Manifest) -> bool {
    match layout.mode {
        Mode::Single | Mode::Ha => manifest.shards.is_empty(),
        Mode::Cluster => {
            let cut = manifest.shards.iter().map(|shard| shard.slots.clone());
            let wanted =
                (0..layout.shards).map(|shard| vec![engine::cluster::slots_of(shard, layout.shards)]);
            cut.eq(wanted)
        }
    }
}

/// Memory for a generation of this layout with this backup's data: what it took in the source and a tenth for
/// fragmentation, for each copy, and the reserve of the host.
pub fn memory_needed(backup: &Backup, layout: Layout) -> u64 {
    let used = u64::try_from(backup.used_memory_bytes.max(backup.plain_bytes)).unwrap_or(0);
    memory_for(used, layout)
}

/// As [`memory_needed`], for data of so many bytes.
pub fn memory_for(used: u64, layout: Layout) -> u64 {
    (used + used / 10) * u64::from(1 + layout.replicas) + limits::MEMORY_RESERVE_BYTES
}

/// What can be had without swapping and within the limits that are set for us, or what the test hook says.
pub fn available_memory() -> u64 {
    if let Some(told) = std::env::var("CACHEKEEP_MEMORY_AVAILABLE")
        .ok()
        .and_then(|text| text.parse().ok())
    {
        return told;
    }
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let host = number_after(&text, "MemAvailable:").map_or(u64::MAX, |kilobytes| kilobytes * 1024);
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    host.min(left_in_groups(Path::new("/sys/fs/cgroup"), &groups))
}

/// What the control groups leave of their limits that we are in, and with us the engines that we start. Version 2
/// only: `groups` is `/proc/self/cgroup`, `root` where they are mounted. Files that were only read can be given up.
fn left_in_groups(root: &Path, groups: &str) -> u64 {
    let Some(own) = groups.lines().find_map(|line| line.strip_prefix("0::/")) else {
        return u64::MAX;
    };
    let left = |group: &Path| {
        let read = |name| std::fs::read_to_string(group.join(name)).unwrap_or_default();
        let limit: u64 = read("memory.max").trim().parse().ok()?;
        let used: u64 = read("memory.current").trim().parse().ok()?;
        let given_up = number_after(&read("memory.stat"), "inactive_file ").unwrap_or(0);
        Some(limit.saturating_sub(used.saturating_sub(given_up)))
    };
    root.join(own)
        .ancestors()
        .take_while(|group| group.starts_with(root))
        .filter_map(left)
        .min()
        .unwrap_or(u64::MAX)
}

fn number_after(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// Accepts an undo: the restore of the generation that the named restore replaced.
///
/// # Errors
/// As [`submit`]; [`Refusal::NothingToUndo`] where that generation is gone.
pub fn undo(
    app: &App,
    project: &ProjectId,
    id: &InstanceId,
    restore: &RestoreId,
    remark: Option<String>,
    once: Option<&Once>,
    now: Moment,
) -> Result<RestoreId, Refusal> {
    crate::backup::command::check_remark(remark.as_deref())?;
    let restore = app.catalog.write(|tx| {
        idempotency::once(tx, project, once, now, || {
            let (backup_id, replay) = what_undoes(tx, project, id, restore)?;
            let request = RestoreRequest {
                backup_id,
                source: None,
                remark,
                verify_full: false,
                allow_downtime: false,
                plan: None,
                replay,
            };
            accept(app, tx, project, id, &request, Some(restore), now)
        })
    })?;
    accepted(app)?;
    Ok(restore)
}

/// The backup that stands for what the named restore replaced and, of a replay, what of it takes that back.
fn what_undoes(
    tx: &Tx<'_>,
    project: &ProjectId,
    id: &InstanceId,
    restore: &RestoreId,
) -> Result<(BackupId, Option<Options>), Refusal> {
    let instance = instances::find(tx, project, id)?;
    let restore = record::find(tx, &instance, restore)?.ok_or(Refusal::RestoreUnknown)?;
    let replay = replay_record::load(tx, &restore.id)?;
    let left_something = replay.is_some()
        && restore.status == Status::Failed
        && matches!(restore.target_state, TargetState::Partial | TargetState::Unknown);
    if restore.status != Status::Succeeded && !left_something {
        return Err(Refusal::NothingToUndo(
            "only a restore that succeeded can be undone",
        ));
    }
    if restore.undone_by.is_some() {
        return Err(Refusal::NothingToUndo("it has been undone already"));
    }
    let kept = match (&restore.old_generation_id, &replay) {
        (Some(generation), _) => backups::of_generation(tx, generation)?,
        (None, Some(Replay { safety: Some(id), .. })) => backups::load(tx, id)?,
        (None, _) => None,
    };
    let has_functions = kept.as_ref().is_some_and(|backup| backup.is_point_in_time);
    let options = replay.map(|replay| replay.options.back(replay.dbs.unwrap_or_default(), has_functions));
    match kept {
        Some(backup) if is_restorable(tx, &backup)? => Ok((backup.id, options)),
        _ => Err(Refusal::NothingToUndo(
            "the data from before it is no longer kept",
        )),
    }
}

/// Gives a restore up that has not begun to switch: the old data goes on serving, and the record fails.
///
/// # Errors
/// Unknown instance, unknown restore; [`Refusal::NotCancellable`].
pub fn cancel(
    app: &App,
    project: &ProjectId,
    id: &InstanceId,
    restore: &RestoreId,
    now: Moment,
) -> Result<(), Refusal> {
    app.catalog.write(|tx| {
        let instance = instances::find(tx, project, id)?;
        let found = record::find(tx, &instance, restore)?.ok_or(Refusal::RestoreUnknown)?;
        match record::ask_to_cancel(tx, restore, now)? {
            true => Ok(()),
            false if found.target_state == TargetState::Switching => Err(Refusal::NotCancellable(
                "the switch has begun and is finished; it can be undone then",
            )),
            false => Err(Refusal::NotCancellable("it has ended")),
        }
    })?;
    engine::failpoint::hit("restore.cancel_asked")
        .map_err(|error| Refusal::Internal(engine::chain(&error)))?;
    // One that waits for its turn finds it in its record.
    app.board.cancel(id);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tightest_group_above_us_says_how_much_memory_is_left() {
        let root = std::env::temp_dir().join(format!("cachekeep-{}", crate::secrets::random_hex(8)));
        let group = |name: &str, max: &str, current: u64, inactive: u64| {
            let folder = root.join(name);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("memory.max"), format!("{max}\n")).unwrap();
            std::fs::write(folder.join("memory.current"), format!("{current}\n")).unwrap();
            let stat = format!("anon 1\nfile 2\ninactive_file {inactive}\n");
            std::fs::write(folder.join("memory.stat"), stat).unwrap();
        };
        group("a", "1000", 700, 100);
        group("a/b", "max", 600, 0);
        group("a/b/c", "2000", 500, 0);
        assert_eq!(left_in_groups(&root, "0::/a/b/c\n"), 400);
        assert_eq!(left_in_groups(&root, "0::/a/b\n"), 400);
        assert_eq!(left_in_groups(&root, "0::/\n"), u64::MAX);
        assert_eq!(left_in_groups(&root, "4:memory:/a\n"), u64::MAX);
        std::fs::remove_dir_all(&root).unwrap();
    }
}
