//! The job that makes a backup.

use std::time::Duration;

use std::collections::BTreeMap;

use engine::backup::{BackupPlan, BackupReport, Labels, Shard};
use engine::cluster;
use engine::keys::Recipient;
use engine::process::Engine;
use engine::psync::Tuning;
use engine::store::Store;
use engine::{Control, Error, Kind, failpoint};

use super::record::{self, Backup, FailureCode, Finished};
use crate::app::App;
use crate::identity::record as identity;
use crate::ids::{BackupId, Moment};
use crate::instance::layout::Mode;
use crate::instance::record::Instance;
use crate::instance::{self, job as instances, nodes, watched};
use crate::jobs::Claim;
use crate::jobs::worker::{Ended, Stop, begun_too_often, failure_code, settle, step, with_progress};
use crate::storage::{self, record as storages};
use crate::{limits, metrics};

/// Captures the instance into the store and settles the record.
///
/// # Errors
/// [`Stop`]: nothing is settled, the job is taken up again or was ended from outside.
pub fn run(app: &App, claim: &Claim, control: &Control) -> Result<Ended, Stop> {
    let id = claim
        .subject_id
        .as_deref()
        .and_then(BackupId::parse)
        .ok_or_else(|| Stop::Broken("a backup job names no backup".to_owned()))?;
    let (backup, instance) = app.catalog.read(|tx| {
        let backup = record::load(tx, &id)?;
        let instance = instance::record::load(tx, &claim.instance_id)?;
        Ok::<_, Stop>(
            backup
                .zip(instance)
                .ok_or_else(|| Stop::Broken("a backup job without its rows".to_owned())),
        )
    })??;
    failpoint::hit("backup.claimed")?;
    if let Some(left_behind) = &backup.prefix
        && backup.storage_id.is_none()
        && let Err(error) = engine::archive::delete(&app.vault.store, left_behind)
    {
        return fail(app, claim, &id, FailureCode::NotRemoved, &error);
    }
    let prefix = format!(
        "{}/{}/{}/{}",
        instance.project_id, instance.id, backup.id, claim.fence
    );
    let storage = step(app, claim, |tx| {
        let storage = storages::default_of(tx, &instance.project_id)?;
        record::begin(tx, &id, &prefix, storage.as_ref(), Moment::now())?;
        Ok(storage)
    })?;
    failpoint::hit("backup.begun")?;

    let report = |seen: &engine::Progress| {
        let share = (seen.bytes_done.min(seen.bytes_total) * 9500)
            .checked_div(seen.bytes_total)
            .unwrap_or(0);
        let share = i64::try_from(share).unwrap_or(0);
        let written = step(app, claim, |tx| {
            record::progress(tx, &id, share, seen, Moment::now())
        });
        if let Err(Stop::ClaimLost) = written {
            control.cancel();
        }
    };
    let made = match control.check("backup").err().or_else(|| begun_too_often(claim)) {
        Some(error) => Err(error),
        None => with_progress(control, report, || {
            let store = storage::open(app, storage.as_ref())?;
            capture(app, &instance, &backup, &store, &prefix, claim.fence, control)
        }),
    };
    match made {
        Ok(finished) => {
            failpoint::hit("backup.before_settle")?;
            let settled = settle(app, claim, |tx| {
                record::succeed(tx, &id, &finished, Moment::now()).map(drop)
            });
            // In a remote store they are the sweeper's: their place is written down.
            if let Err(Stop::ClaimLost) = settled
                && storage.is_none()
                && let Err(error) = engine::archive::delete(&app.vault.store, &prefix)
            {
                tracing::warn!(
                    prefix,
                    error = engine::chain(&error),
                    "objects of a backup that was ended from outside do not go; they are swept later"
                );
            }
            settled?;
            failpoint::hit("backup.settled")?;
            Ok(Ended::Done)
        }
        Err(error) => {
            let moved = control.progress().bytes_done > 0;
            fail(app, claim, &id, failure_code(&error, moved, false), &error)
        }
    }
}

/// Settles the record as failed. What is left in the store is swept later.
fn fail(app: &App, claim: &Claim, id: &BackupId, code: FailureCode, error: &Error) -> Result<Ended, Stop> {
    let why = engine::chain(error);
    app.counters
        .add(metrics::FAILURES, &[("kind", "backup"), ("code", &code.text())]);
    settle(app, claim, |tx| {
        record::fail(tx, id, code, &why, Moment::now()).map(drop)
    })?;
    Ok(Ended::Failed(why))
}

/// Captures `instance` for the record `backup` into `store`, under `prefix`.
///
/// # Errors
/// What the data plane says; nothing is left under the prefix.
pub fn capture(
    app: &App,
    instance: &Instance,
    backup: &Backup,
    store: &Store,
    prefix: &str,
    attempt: i64,
    control: &Control,
) -> Result<Finished, Error> {
    let Sources {
        shards,
        used_bytes: used,
        captured_from,
    } = sources(app, instance)?;
    let finished = |made: BackupReport| Finished {
        size_bytes: made.stored_bytes,
        plain_bytes: made.plain_bytes,
        keys: made.keys,
        used_memory_bytes: made.used_memory_bytes,
        manifest_blake3: made.manifest_blake3,
        captured_from: captured_from.clone(),
    };
    let first = shards.first().ok_or_else(|| {
        Error::new(
            Kind::NotFound,
            "find engine",
            "the instance has no node to capture",
        )
    })?;
    let recipient = app
        .catalog
        .read(|tx| identity::project_recipient(tx, &instance.project_id))
        .map_err(instances::catalog_failed)?
        .ok_or_else(|| Error::new(Kind::Key, "find key", "the project has no archive key"))?;
    let plan = BackupPlan {
        source: first.source.clone(),
        tuning: Tuning::None,
        prefix: prefix.to_owned(),
        labels: Labels {
            project: instance.project_id.to_string(),
            instance: instance.id.to_string(),
            backup: backup.id.to_string(),
            attempt: u64::try_from(attempt).unwrap_or(0),
            created_at_ms: backup.created_at.0,
        },
        recipient: Recipient::parse(&recipient)?,
        spool_dir: app.config.spool_dir(),
        spool_limit_bytes: limits::SPOOL_BYTES_MAX,
        idle_timeout: limits::ENGINE_IDLE,
        expected_bytes: used * 6 / 10 / shards.len() as u64,
    };
    if instance.layout.mode.is_whole() {
        return engine::backup::run(&plan, store, &app.vault.signer, control).map(finished);
    }
    let made = engine::backup::run_shards(&plan, &shards, store, &app.vault.signer, control)?;
    // A slot that came or went meanwhile would be in two of the snapshots, or in none.
    let told = |shards: &[Shard]| -> Vec<_> { shards.iter().map(|shard| shard.slots.clone()).collect() };
    match sources(app, instance) {
        Ok(after) if told(&after.shards) == told(&shards) => Ok(finished(made)),
        Ok(_) => Err(Error::new(
            Kind::Mismatch,
            "capture cluster",
            "slots moved during the capture",
        )),
        Err(error) => Err(error),
    }
}

/// What [`sources`] chose.
pub struct Sources {
    /// The nodes to capture, one for each shard.
    pub shards: Vec<Shard>,
    /// The memory that the data of all takes.
    pub used_bytes: u64,
    /// See [`Backup::captured_from`].
    captured_from: Option<String>,
}

/// The nodes to capture. A replica that has caught up spares the primary the fork.
///
/// # Errors
/// What the engines say, or why they cannot be asked.
pub fn sources(app: &App, instance: &Instance) -> Result<Sources, Error> {
    let endpoint = |engine: &Engine| {
        let mut source = engine.endpoint();
        source.timeout = Duration::from_secs(10);
        source
    };
    if instance.layout.mode == Mode::Single {
        let engines = nodes::serving(app, instance)?;
        let whole = |engine: &Engine| Shard {
            source: endpoint(engine),
            port: instance.port,
            slots: Vec::new(),
        };
        let used = engines.first().map_or(Ok(0), Engine::used_memory)?;
        return Ok(Sources {
            shards: engines.iter().map(whole).collect(),
            used_bytes: used,
            captured_from: None,
        });
    }
    if instance.layout.mode == Mode::Ha {
        let generation = instances::serving_generation(app, instance)?;
        let watched::Running { primary, replicas } = watched::running(app, instance, &generation)?;
        let mut node = primary.1.control()?;
        let (mut role, mut chosen) = ("primary", &primary);
        for replica in &replicas {
            if cluster::is_caught_up(&mut node, &replica.1, limits::CATCH_UP)? {
                (role, chosen) = ("replica", replica);
                break;
            }
        }
        let (id, engine) = chosen;
        return Ok(Sources {
            shards: vec![Shard {
                source: endpoint(engine),
                port: instance.port,
                slots: Vec::new(),
            }],
            used_bytes: primary.1.used_memory()?,
            captured_from: Some(format!("{role} {id}")),
        });
    }
    let mut by_port = BTreeMap::new();
    let mut seen = None;
    // A replica that is gone is not needed.
    for engine in nodes::serving_ones(app, instance)? {
        let mut node = engine.control()?;
        if seen.is_none() {
            seen = Some(cluster::shards(&cluster::view(&mut node)?)?);
        }
        by_port.insert(engine.current_port()?, engine);
    }
    let (mut shards, mut used) = (Vec::new(), 0);
    for shard in seen.unwrap_or_default() {
        let gone = || {
            Error::new(
                Kind::EngineExited,
                "find engine",
                "a node of the cluster is not known",
            )
        };
        let primary = by_port.get(&shard.port).ok_or_else(gone)?;
        let mut node = primary.control()?;
        let mut chosen = primary;
        for replica in shard.replicas.iter().filter_map(|port| by_port.get(port)) {
            if cluster::is_caught_up(&mut node, replica, limits::CATCH_UP)? {
                chosen = replica;
                break;
            }
        }
        used += primary.used_memory()?;
        shards.push(Shard {
            source: endpoint(chosen),
            port: shard.port,
            slots: shard.slots,
        });
    }
    Ok(Sources {
        shards,
        used_bytes: used,
        captured_from: None,
    })
}
