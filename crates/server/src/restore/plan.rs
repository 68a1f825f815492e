//! What a restore would do, before it is asked for.
//!
//! A plan is kept nowhere: its id is a digest of all that it rests on and the catalogue knows. Who asks for the restore
//! with that id gets exactly what was planned, or a refusal because something of that is not so any more (ADR 33).

use std::sync::Arc;

use engine::Kind;
use engine::archive::Manifest;
use engine::cluster::{SLOTS, slots_of};
use engine::process::{Persistence, has_fixed_port};
use engine::replay::Account;
use engine::store::{Patience, always};
use ring::digest::{SHA256, digest};

use super::command::{self, Accepted, RestoreRequest};
use super::job::replay::dry_run;
use super::record::{self, Measured, Method};
use crate::app::App;
use crate::backup::place;
use crate::catalog::Tx;
use crate::config::minor;
use crate::ids::{InstanceId, Moment, ProjectId, RestoreId};
use crate::instance::attachment::servers;
use crate::instance::generation;
use crate::instance::layout::{Layout, Mode};
use crate::instance::record::Instance;
use crate::limits;
use crate::refusal::Refusal;
use crate::secrets;

/// Restores of larger backups tell the rate, those of smaller ones what every restore takes.
const LARGE_BYTES: u64 = 16 * 1024 * 1024;
/// Where nothing was measured: what engines load in a second, and what comes on top of that.
const BYTES_PER_SECOND: f64 = 100.0 * 1024.0 * 1024.0;
const SINGLE_SECONDS: f64 = 0.5;
/// What an engine writes in a second that ends with its data on disk, assumed; what it and its successor take besides.
const SAVED_BYTES_PER_SECOND: f64 = 200.0 * 1024.0 * 1024.0;
const RESTART_SECONDS: f64 = 0.1;
/// How long clients wait for a port that moves, where nothing was measured.
const MOVE_SECONDS: f64 = 0.01;
const HA_SECONDS: f64 = 1.5;
const CLUSTER_SECONDS: f64 = 5.0;
/// A switch back loads nothing where the generation still lives.
const SWITCH_BACK_SECONDS: f64 = 0.1;
/// Restores that are looked at, the newest ones.
const MEASURED_MAX: u64 = 50;
/// Hex digits of a plan's id.
const ID_CHARS: usize = 32;

/// What a restore would do.
#[derive(Debug)]
pub struct Plan {
    /// Asks for exactly this.
    pub id: String,
    /// Id, name and layout of the instance that the backup is of.
    pub source: (InstanceId, String, Layout),
    /// Of how many nodes the instance is.
    pub layout: Layout,
    /// How.
    pub method: Method,
    /// Whether the backup's files are cut anew.
    pub is_cut: bool,
    /// Keys of the backup.
    pub keys: u64,
    /// Plain bytes of the backup; 0 of a kept generation.
    pub bytes: u64,
    /// What each shard is to hold; empty for a kept generation and for a replay.
    pub shards: Vec<ShardPlan>,
    /// Memory for the new generation, what the present one takes, and what is free where kept ones have given way; bytes.
    pub memory: Memory,
    /// Versions of the engine that the backup is of and of the one that is to load it.
    pub engines: (String, String),
    /// RDB version of the backup; 0 of a kept generation.
    pub rdb_version: u32,
    /// What may or will stand in the way.
    pub gaps: Vec<String>,
    /// Expected seconds from its start to its end.
    pub seconds: f64,
    /// Of these, how many clients are expected to wait; `None`: they are served all the while.
    pub gap_seconds: Option<f64>,
    /// On how many restores that rests; 0: on an assumption.
    pub measured_restores: usize,
    /// Until when it could be undone, were it done now; `None`: it could not, for want of a safety point.
    pub undo_until: Option<Moment>,
    /// The restore that could not be undone any more afterwards, since one generation is kept.
    pub ends_undo_of: Option<RestoreId>,
    /// Of a replay: what would become of every key, were it done now. `None` where that takes longer than a plan may.
    pub account: Option<Account>,
}

/// What one shard is to hold.
#[derive(Debug, PartialEq, Eq)]
pub struct ShardPlan {
    /// Its slots, both ends included.
    pub slots: (u16, u16),
    /// Keys.
    pub keys: u64,
    /// Plain bytes.
    pub bytes: u64,
    /// Whether that was counted: of what is cut anew it is the share of the slots.
    pub is_counted: bool,
}

/// See [`Plan::memory`].
#[derive(Debug)]
pub struct Memory {
    /// For the new generation, with the host's reserve.
    pub needed: u64,
    /// Of the present one.
    pub present: u64,
    /// What can be had.
    pub free: u64,
}

/// Plans a restore; refuses what the restore would be refused for.
///
/// # Errors
/// As [`command::submit`]; [`Refusal::Unreadable`].
pub fn plan(
    app: &Arc<App>,
    project: &ProjectId,
    id: &InstanceId,
    request: &RestoreRequest,
    now: Moment,
) -> Result<Plan, Refusal> {
    command::look_into(app, project, id, request)?;
    let (accepted, plan_id, free, ends_undo_of, measured) = app.catalog.read(|tx| {
        let accepted = command::check(app, tx, project, id, request)?;
        let plan_id = id_of(tx, &accepted, request)?;
        let free = command::free_memory(app, tx, &accepted.instance)?;
        let kept = generation::retired(tx, id)?;
        let given_up = kept
            .iter()
            .find(|kept| Some(&kept.id) != accepted.backup.generation_id.as_ref());
        let ends_undo_of = match given_up {
            Some(kept) => record::that_replaced(tx, id, &kept.id)?,
            None => None,
        };
        let measured = record::measured(tx, &accepted.instance, accepted.method, MEASURED_MAX)?;
        Ok::<_, Refusal>((accepted, plan_id, free, ends_undo_of, measured))
    })?;
    let Accepted {
        instance,
        source,
        backup,
        method,
        replay,
    } = accepted;
    let layout = instance.layout;
    let manifest = match method {
        Method::SwitchBack => None,
        Method::SideLoad | Method::InPlace | Method::Replay => {
            let archive =
                place::open(app, &backup, Some(Patience::SHORT), &always).map_err(Refusal::Unreadable)?;
            Some(archive.manifest().clone())
        }
    };
    let is_cut = manifest
        .as_ref()
        .is_some_and(|manifest| replay.is_none() && !command::has_same_shards(layout, manifest));
    let bytes = manifest.as_ref().map_or(0, |manifest| manifest.plain_bytes);
    let by_file = manifest.as_ref().filter(|_| replay.is_none());
    let mut gaps = by_file.map_or_else(Vec::new, |manifest| {
        gaps(
            instance.engine.word(),
            &instance.engine_version,
            &manifest.engine_version,
            manifest.rdb_version,
        )
    });
    if method == Method::InPlace {
        gaps.push(
            "the instance does not serve while it loads: two copies do not fit in memory, and downtime is allowed"
                .to_owned(),
        );
    }
    let bytes_loaded = match method {
        // What it took when it served.
        Method::SwitchBack => u64::try_from(backup.used_memory_bytes).unwrap_or(0),
        _ => bytes,
    };
    let gap_seconds = gap_seconds(
        &instance,
        method,
        bytes_loaded,
        app.board.memory_of(id),
        &measured,
    );
    if method != Method::Replay && has_fixed_port(&instance.engine_version) {
        gaps.push(format!(
            "engines of {} cannot change their port while they run: the old one ends and the new one is started, and nobody serves for about \
             {:.1} s",
            instance.engine_version,
            gap_seconds.unwrap_or(RESTART_SECONDS)
        ));
    }
    let (mut account, mut at_pace) = (None, 0.0);
    if let Some(options) = &replay {
        account = match dry_run(app, &instance, &backup, options, now) {
            Ok(account) => Some(account),
            Err(error) if error.kind == Kind::Deadline => {
                gaps.push("to count what would become of every key takes longer than a plan may".to_owned());
                None
            }
            Err(error) => {
                gaps.push(servers::told(&instance, &error));
                None
            }
        };
        if let Some(pace) = options.max_ops {
            at_pace = backup.keys as f64 / pace as f64;
        }
    }
    let has_undo = replay.as_ref().is_none_or(|options| options.safety_point);
    let undo_keep = match method {
        Method::Replay => limits::SAFETY_KEPT_SECONDS,
        Method::SideLoad | Method::InPlace | Method::SwitchBack => app.config.undo_keep_seconds,
    };
    Ok(Plan {
        id: plan_id,
        source: (source.id.clone(), source.name.clone(), source.layout),
        layout,
        method,
        is_cut,
        keys: u64::try_from(backup.keys).unwrap_or(0),
        bytes,
        // Which slots a stranger's shards have by then he decides.
        shards: by_file.map_or_else(Vec::new, |manifest| shards(layout, manifest, is_cut)),
        memory: Memory {
            needed: match method {
                Method::SwitchBack | Method::Replay => 0,
                Method::SideLoad | Method::InPlace => command::memory_needed(&backup, layout),
            },
            present: app.board.memory_of(id),
            free,
        },
        engines: (
            manifest.as_ref().map_or_else(
                || instance.engine_version.clone(),
                |manifest| manifest.engine_version.clone(),
            ),
            instance.engine_version.clone(),
        ),
        rdb_version: manifest.as_ref().map_or(0, |manifest| manifest.rdb_version),
        gaps,
        seconds: match method {
            Method::SwitchBack => SWITCH_BACK_SECONDS,
            Method::SideLoad | Method::InPlace | Method::Replay => {
                seconds(layout, bytes, &measured).max(at_pace)
            }
        },
        gap_seconds,
        measured_restores: measured.len(),
        undo_until: has_undo.then(|| now.plus_seconds(undo_keep)),
        ends_undo_of: ends_undo_of.filter(|_| replay.is_none()),
        account,
    })
}

/// The digest of what a plan rests on.
///
/// # Errors
/// The catalogue failed.
pub(super) fn id_of(tx: &Tx<'_>, accepted: &Accepted, request: &RestoreRequest) -> Result<String, Refusal> {
    let Accepted {
        instance,
        source,
        backup,
        method,
        replay,
    } = accepted;
    let mut facts = vec![
        format!("into {} of {}", instance.id, instance.layout),
        format!("of {} of {}", source.id, source.layout),
        format!(
            "{} {:?} {:?}",
            backup.id, backup.manifest_blake3, backup.generation_id
        ),
        format!("{} {}", method.word(), request.verify_full),
        format!("by {} {}", instance.engine.word(), instance.engine_version),
        format!("{replay:?}"),
    ];
    let existing = generation::existing(tx, &instance.id)?;
    facts.extend(
        existing
            .iter()
            .map(|found| format!("{} {}", found.id, found.state.word())),
    );
    let mut hex = secrets::hex(digest(&SHA256, facts.join("\n").as_bytes()).as_ref());
    hex.truncate(ID_CHARS);
    Ok(hex)
}

/// What each shard of the layout is to hold of a backup.
fn shards(layout: Layout, manifest: &Manifest, is_cut: bool) -> Vec<ShardPlan> {
    let whole = [(0, SLOTS - 1)];
    let mut files = vec![(&whole[..], manifest.keys, manifest.plain_bytes)];
    if !manifest.shards.is_empty() {
        let shards = manifest.shards.iter();
        files = shards
            .map(|shard| (shard.slots.as_slice(), shard.keys, shard.plain_bytes))
            .collect();
    }
    let count = |ranges: &[(u16, u16)], within: (u16, u16)| -> u64 {
        let common = |(first, last): &(u16, u16)| {
            let (first, last) = ((*first).max(within.0), (*last).min(within.1));
            (u64::from(last) + 1).saturating_sub(u64::from(first))
        };
        ranges.iter().map(common).sum()
    };
    (0..layout.shards)
        .map(|shard| {
            let slots = match layout.mode {
                Mode::Single | Mode::Ha => (0, SLOTS - 1),
                Mode::Cluster => slots_of(shard, layout.shards),
            };
            let (mut keys, mut bytes) = (0, 0);
            for &(ranges, of_keys, of_bytes) in &files {
                let all = count(ranges, (0, SLOTS - 1)).max(1);
                let share = count(ranges, slots);
                let part = |of: u64| (u128::from(of) * u128::from(share) / u128::from(all)) as u64;
                keys += part(of_keys);
                bytes += part(of_bytes);
            }
            ShardPlan {
                slots,
                keys,
                bytes,
                is_counted: !is_cut || layout.mode.is_whole(),
            }
        })
        .collect()
}

/// What the versions of the engines stand in the way with.
fn gaps(brand: &str, ours: &str, theirs: &str, rdb_version: u32) -> Vec<String> {
    let family = rdb::Family::of_version(rdb_version);
    let engine = format!("{brand}-{}", minor(ours));
    if let Some(why) = rdb::obstacle_of_version(&engine, family, rdb_version) {
        return vec![format!(
            "the engine {ours} of the instance does not load the backup, which was made by {theirs}: {why}"
        )];
    }
    let number = |version: &str| -> Option<(u32, u32)> {
        let mut numbers = version.split('.').map(|number| number.parse().ok());
        Some((numbers.next()??, numbers.next()??))
    };
    match (number(ours), number(theirs)) {
        (Some(ours_is), Some(newer)) if newer > ours_is => vec![format!(
            "the backup was made by {theirs}, a newer engine than the instance's {ours}: what only that one knows will not be loaded"
        )],
        _ => Vec::new(),
    }
}

/// How long loading so many bytes is expected to take.
fn seconds(layout: Layout, bytes: u64, measured: &[Measured]) -> f64 {
    let assumed = match layout.mode {
        Mode::Single => SINGLE_SECONDS,
        Mode::Ha => HA_SECONDS,
        Mode::Cluster => CLUSTER_SECONDS,
    };
    let least = measured
        .iter()
        .map(|one| one.seconds)
        .fold(f64::INFINITY, f64::min);
    let base = match least.is_finite() {
        true => least.min(assumed),
        false => assumed,
    };
    base + bytes as f64 / rate(measured, base)
}

/// Bytes that are loaded in a second, where what does not depend on them takes `base` seconds.
fn rate(measured: &[Measured], base: f64) -> f64 {
    let mut rates: Vec<f64> = measured
        .iter()
        .filter(|one| one.bytes >= LARGE_BYTES)
        .map(|one| one.bytes as f64 / (one.seconds - base).max(0.001))
        .collect();
    rates.sort_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied().unwrap_or(BYTES_PER_SECOND)
}

/// How long clients are expected to wait. `present` is what the data takes that is replaced.
fn gap_seconds(
    instance: &Instance,
    method: Method,
    bytes: u64,
    present: u64,
    measured: &[Measured],
) -> Option<f64> {
    let load = bytes as f64 / rate(measured, SINGLE_SECONDS);
    let save = match instance.persistence {
        // All of it is on disk.
        Persistence::Aof => 0.0,
        Persistence::Rdb | Persistence::None => present as f64 / SAVED_BYTES_PER_SECOND,
    };
    let is_restarted = has_fixed_port(&instance.engine_version);
    match method {
        Method::Replay => None,
        // Once to be compared, and once more to serve.
        Method::InPlace if is_restarted => Some(RESTART_SECONDS + save + 2.0 * load),
        Method::InPlace => Some(RESTART_SECONDS + save + load),
        Method::SideLoad | Method::SwitchBack if is_restarted => Some(RESTART_SECONDS + save + load),
        Method::SideLoad | Method::SwitchBack => {
            let longest = measured.iter().filter_map(|one| one.gap_seconds).reduce(f64::max);
            Some(longest.unwrap_or(MOVE_SECONDS))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_long_was_measured_and_what_was_not_is_assumed() {
        let measured = |bytes: u64, seconds: f64| Measured {
            bytes,
            seconds,
            gap_seconds: None,
        };
        let nothing = seconds(Layout::SINGLE, 100 << 20, &[]);
        assert!((nothing - 1.5).abs() < 0.01, "{nothing}");
        let small = measured(1000, 0.2);
        let large = measured(100 << 20, 2.2);
        let found = seconds(Layout::SINGLE, 200 << 20, &[small, large]);
        assert!((found - 4.2).abs() < 0.01, "{found}");
    }

    #[test]
    fn a_version_that_cannot_be_loaded_and_one_that_may_not_are_told_apart() {
        assert!(gaps("redis", "7.0.15", "7.0.15", 10).is_empty());
        assert!(gaps("redis", "7.0.15", "6.2.1", 9).is_empty());
        assert!(gaps("redis", "7.0.15", "7.4.0", 12)[0].contains("up to version 10"));
        assert!(gaps("redis", "7.4.0", "8.0.1", 12)[0].contains("newer engine"));
        assert!(gaps("valkey", "8.1.1", "7.4.0", 12)[0].contains("up to version 11"));
        assert!(gaps("redis", "unknown", "8.0.1", 12).is_empty());
    }
}
