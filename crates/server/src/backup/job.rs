//! The job that makes a backup.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use engine::backup::{BackupPlan, BackupReport, ImportPlan, Labels, Shard, ShardFile};
use engine::cluster;
use engine::discover::Way;
use engine::guard::{self, Guardrails};
use engine::keys::Recipient;
use engine::node::Endpoint;
use engine::process::Engine;
use engine::psync::{self, Forked, Ledger, Tuning};
use engine::scan::KeyByKey;
use engine::store::Store;
use engine::{Control, Error, Kind, defect, failpoint};

use super::cancel_record as cancels;
use super::place_record as places;
use super::quota;
use super::quota_record::{self as quotas, Exceeded};
use super::record::{self, Backup, FailureCode, Finished};
use crate::app::App;
use crate::catalog;
use crate::identity::record as identity;
use crate::ids::{BackupId, Moment};
use crate::instance::attachment::{Attachment, servers};
use crate::instance::layout::Mode;
use crate::instance::record::Instance;
use crate::instance::{self, job as instances, nodes, watched};
use crate::jobs::Claim;
use crate::jobs::worker::{Ended, Stop, begun_too_often, failure_code, settle, step, with_progress_while};
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
        && backup.host.as_ref() == Some(&app.host)
        && let Err(error) = engine::archive::delete(&app.vault.store, left_behind)
    {
        return fail(app, claim, &id, FailureCode::NotRemoved, engine::chain(&error));
    }
    let fence = match defect::is_planted("attempts-share-names") {
        true => 1,
        false => claim.fence,
    };
    let prefix = format!("{}/{}/{}/{fence}", instance.project_id, instance.id, backup.id);
    let begun = step(app, claim, |tx| {
        let storage = storages::default_of(tx, &instance.project_id)?;
        if !record::begin(tx, &id, &prefix, (storage.as_ref(), &app.host), Moment::now())? {
            return Ok(None);
        }
        // Whoever accepted it may not know how much the data is. Where there is no room for it, it is seen when it is needed.
        let bytes = quotas::estimate(tx, &instance.id, app.board.memory_of(&instance.id))?;
        let wanted = bytes.max(backup.reserved_bytes);
        let granted = match quotas::reserve(tx, &instance.project_id, &id, wanted)? {
            Ok(()) => wanted,
            Err(_) => backup.reserved_bytes,
        };
        Ok(Some((storage, granted)))
    })?;
    // Somebody has cancelled it before it began, or before a crash.
    let given_up = begun
        .is_none()
        .then(|| Error::new(Kind::Cancelled, "backup", cancels::CANCELLED));
    let (storage, granted) = begun.unwrap_or_default();
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
    let is_asked = || app.catalog.read(|tx| cancels::is_asked(tx, &id));
    // The board tells what is asked of this process; others write it down only.
    let may_be_told = || app.catalog.is_shared() && !claim.lease.is_over();
    let is_wanted = || !may_be_told() || !matches!(is_asked(), Ok(true));
    let settings_back = match &instance.attachment {
        Some(attached) => servers::put_settings_back(app, &instance, attached, Some(claim), Moment::now()),
        None => Ok(()),
    };
    let hindered = given_up.or_else(|| control.check("backup").err());
    let made = match hindered
        .or_else(|| begun_too_often(claim))
        .or(settings_back.err())
    {
        Some(error) => Err(error),
        None => with_progress_while(control, report, is_wanted, || {
            let store = storage::open(app, storage.as_ref())?;
            let reserve = |bytes| reserve(app, claim, &instance, &id, bytes);
            quota::metered(&store, granted, reserve, |store| {
                let into = Capture {
                    store,
                    prefix: &prefix,
                    claim,
                    forked: None,
                };
                capture(app, &instance, &backup, &into, control)
            })
        }),
    };
    if claim.lease.is_over()
        && let Some(storage) = &storage
    {
        app.catalog
            .write(|tx| places::note_again(tx, &prefix, storage, &id))?;
        app.board.tidy();
    }
    match made {
        Ok(finished) => {
            failpoint::hit("backup.before_settle")?;
            let mut has_succeeded = true;
            let settled = settle(app, claim, |tx| {
                has_succeeded = cancels::succeed(tx, &id, &finished, Moment::now())?;
                Ok(())
            });
            // In a remote store they are the sweeper's: their place is written down.
            if (!has_succeeded || matches!(settled, Err(Stop::ClaimLost)))
                && storage.is_none()
                && let Err(error) = engine::archive::delete(&app.vault.store, &prefix)
            {
                tracing::warn!(
                    prefix,
                    error = engine::chain(&error),
                    "objects of a backup that was ended from outside or cancelled do not go; they are swept later"
                );
            }
            settled?;
            failpoint::hit("backup.settled")?;
            match has_succeeded {
                true => Ok(Ended::Done),
                false => Ok(Ended::Failed(cancels::CANCELLED.to_owned())),
            }
        }
        Err(error) if error.kind == Kind::Cancelled && !claim.lease.is_over() && is_asked()? => {
            let why = cancels::CANCELLED.to_owned();
            fail(app, claim, &id, FailureCode::NotStarted, why)
        }
        Err(error) => {
            let moved = control.progress().bytes_done > 0;
            let why = match &instance.attachment {
                Some(_) => servers::told(&instance, &error),
                None => engine::chain(&error),
            };
            fail(app, claim, &id, failure_code(&error, moved, false), why)
        }
    }
}

/// Reserves bytes of the project's quota for a record that a job works on.
///
/// # Errors
/// The outer one: the claim is lost, or the catalogue failed. The inner one: there is no room.
pub fn reserve(
    app: &App,
    claim: &Claim,
    instance: &Instance,
    id: &BackupId,
    bytes: u64,
) -> Result<Result<(), Exceeded>, Error> {
    // A database that is away for a moment is waited for, as long as the claim is ours.
    let reserved = loop {
        let reserved = step(app, claim, |tx| {
            quotas::reserve(tx, &instance.project_id, id, bytes)
        });
        match reserved {
            Err(Stop::Catalog(catalog::Error::Away(_))) => std::thread::sleep(limits::PROGRESS_EVERY),
            other => break other,
        }
    };
    reserved.map_err(|stop| match stop {
        Stop::Catalog(error) => instances::catalog_failed(error),
        _ => Error::new(Kind::Cancelled, "reserve quota", "the claim is lost"),
    })
}

/// Settles the record as failed. What is left in the store is swept later.
fn fail(app: &App, claim: &Claim, id: &BackupId, code: FailureCode, why: String) -> Result<Ended, Stop> {
    app.counters
        .add(metrics::FAILURES, &[("kind", "backup"), ("code", &code.text())]);
    settle(app, claim, |tx| {
        record::fail(tx, id, code, &why, Moment::now()).map(drop)
    })?;
    Ok(Ended::Failed(why))
}

/// Where a capture goes.
#[derive(Debug)]
pub struct Capture<'a> {
    /// The store.
    pub store: &'a Store,
    /// What its objects' names begin with.
    pub prefix: &'a str,
    /// Whose work it is: its fence is the attempt's number.
    pub claim: &'a Claim,
    /// Who is told when a node has forked.
    pub forked: Option<Forked<'a>>,
}

/// Captures `instance` for the record `backup`.
///
/// # Errors
/// What the data plane says; nothing is left under the prefix.
pub fn capture(
    app: &App,
    instance: &Instance,
    backup: &Backup,
    into: &Capture<'_>,
    control: &Control,
) -> Result<Finished, Error> {
    let made = capture_from(app, instance, backup, into, sources(app, instance)?, control);
    let (Err(error), Some(attached)) = (&made, &instance.attachment) else {
        return made;
    };
    if !psync::is_forbidden(error) {
        return made;
    }
    // An engine of 7.0 and later says so when it is looked at.
    tracing::warn!(instance.id = %instance.id, error = engine::chain(error), "no snapshot may be had, so keys are read one by one");
    let by_key = attached_sources(app, instance, attached, Some(Way::Scan))?;
    capture_from(app, instance, backup, into, by_key, control).or_else(|later| match later.kind {
        // It may not do that either.
        Kind::Refused => made,
        _ => Err(later),
    })
}

fn capture_from(
    app: &App,
    instance: &Instance,
    backup: &Backup,
    into: &Capture<'_>,
    sources_now: Sources,
    control: &Control,
) -> Result<Finished, Error> {
    let store = into.store;
    let Sources {
        shards,
        used_bytes: used,
        captured_from,
        is_point_in_time,
    } = sources_now;
    let finished = |made: BackupReport| Finished {
        size_bytes: made.stored_bytes,
        put_bytes: store.metered_bytes(),
        plain_bytes: made.plain_bytes,
        keys: made.keys,
        used_memory_bytes: made.used_memory_bytes,
        manifest_blake3: made.manifest_blake3,
        captured_from: captured_from.clone(),
        is_point_in_time,
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
    let ledger =
        Ledger::new(|entry| servers::note(app, &instance.id, Some(into.claim), entry, Moment::now()));
    let is_attached = instance.attachment.is_some();
    let plan = BackupPlan {
        source: first.source.clone(),
        tuning: match is_attached {
            true => Tuning::Noted(ledger),
            false => Tuning::None,
        },
        forked: into.forked.clone(),
        prefix: into.prefix.to_owned(),
        labels: Labels {
            project: instance.project_id.to_string(),
            instance: instance.id.to_string(),
            backup: backup.id.to_string(),
            attempt: u64::try_from(into.claim.fence).unwrap_or(0),
            created_at_ms: backup.created_at.0,
        },
        recipient: Recipient::parse(&recipient)?,
        spool_dir: app.config.spool_dir(),
        spool_limit_bytes: limits::SPOOL_BYTES_MAX,
        snapshot_bytes_max: match is_attached {
            true => used
                .saturating_mul(2)
                .saturating_add(limits::ATTACHED_SNAPSHOT_SLACK),
            false => 0,
        },
        idle_timeout: limits::ENGINE_IDLE,
        expected_bytes: used / 10 * 6 / shards.len() as u64,
    };
    let watched: Vec<Endpoint> = match is_attached {
        true => shards.iter().map(|shard| shard.source.clone()).collect(),
        false => Vec::new(),
    };
    guarded(&watched, control, || {
        let is_whole = instance.layout.mode.is_whole();
        let made = match (is_point_in_time, is_whole) {
            (false, _) => key_by_key(&plan, &shards, instance, store, app, control)?,
            (true, true) => engine::backup::run(&plan, store, &app.vault.signer, control)?,
            (true, false) => engine::backup::run_shards(&plan, &shards, store, &app.vault.signer, control)?,
        };
        if is_whole {
            return Ok(finished(made));
        }
        // A slot that came or went meanwhile would be in two of the snapshots, or in none.
        let told = |shards: &[Shard]| -> Vec<_> { shards.iter().map(|shard| shard.slots.clone()).collect() };
        let after = match &instance.attachment {
            Some(attached) => servers::slots(app, instance, attached, Moment::now()),
            None => sources(app, instance).map(|after| told(&after.shards)),
        };
        match after {
            Ok(after) if after == told(&shards) => Ok(finished(made)),
            Ok(_) => Err(Error::new(
                Kind::Mismatch,
                "capture cluster",
                "slots moved during the capture",
            )),
            Err(error) => Err(error),
        }
    })
}

/// As [`engine::backup::run`], where `PSYNC` is hidden.
fn key_by_key(
    plan: &BackupPlan<'_>,
    shards: &[Shard],
    instance: &Instance,
    store: &Store,
    app: &App,
    control: &Control,
) -> Result<BackupReport, Error> {
    let import = ImportPlan {
        prefix: plan.prefix.clone(),
        labels: plan.labels.clone(),
        recipient: plan.recipient.clone(),
        spill_dir: plan.spool_dir.clone(),
        source: format!("the keys of {}", plan.source.address),
        expected_bytes: plan.expected_bytes,
        accept_functions: false,
    };
    let keys = |shard: &Shard| {
        KeyByKey::new(
            shard.source.clone(),
            &plan.spool_dir,
            plan.snapshot_bytes_max,
            control,
        )
    };
    if instance.layout.mode.is_whole() {
        let first = shards.first().map(keys);
        let mut source =
            first.ok_or_else(|| Error::new(Kind::NotFound, "find engine", "there is no node"))?;
        return engine::backup::import(&import, &mut source, store, &app.vault.signer, control);
    }
    let files = shards.iter().map(|shard| ShardFile {
        source: Box::new(keys(shard)),
        slots: shard.slots.clone(),
        port: shard.port,
    });
    engine::backup::import_shards(&import, files.collect(), store, &app.vault.signer, control)
}

/// Does `work` while somebody looks after the servers that are not ours.
fn guarded<T>(watched: &[Endpoint], control: &Control, work: impl FnOnce() -> T) -> T {
    if watched.is_empty() {
        return work();
    }
    let rails = Guardrails {
        latency_max: limits::ATTACHED_LATENCY_MAX,
        buffers_max: limits::ATTACHED_BUFFERS_MAX,
    };
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Set on every way out, panics included: else the scope would wait for its thread for ever.
        let _done = SetAtEnd(&is_done);
        scope.spawn(|| {
            engine::failpoint::exempt_this_thread();
            guard::watch(watched, &rails, control, &is_done);
        });
        work()
    })
}

struct SetAtEnd<'a>(&'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
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
    /// See [`Backup::is_point_in_time`].
    is_point_in_time: bool,
}

/// Those of an attached instance, to be captured in this way where it is given.
fn attached_sources(
    app: &App,
    instance: &Instance,
    attached: &Attachment,
    way: Option<Way>,
) -> Result<Sources, Error> {
    let chosen = servers::choose(app, instance, attached, way, Moment::now())?;
    Ok(Sources {
        shards: chosen.shards,
        used_bytes: chosen.found.used_bytes,
        captured_from: chosen.captured_from,
        is_point_in_time: way.unwrap_or(chosen.found.way) == Way::Psync,
    })
}

/// The nodes to capture. A replica that has caught up spares the primary the fork.
///
/// # Errors
/// What the engines say, or why they cannot be asked.
pub fn sources(app: &App, instance: &Instance) -> Result<Sources, Error> {
    if let Some(attached) = &instance.attachment {
        return attached_sources(app, instance, attached, None);
    }
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
            is_point_in_time: true,
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
            is_point_in_time: true,
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
        is_point_in_time: true,
    })
}
