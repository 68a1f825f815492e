//! `cachekeep backup verify`: how far a backup can be trusted, found out now and written on its record.
//!
//! Works on the data directory, beside the service: it is no operation on the instance, and waits for none. Nothing is
//! written before the outcome is known, so a verify that dies leaves a record that says what it said before; the engine
//! that it may have started is ended by the service (see `reconcile`).

use std::fs::File;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, ValueEnum};
use engine::process::{self, EngineSpec, Persistence};
use engine::{Control, Error, Kind, Secret, proof};
use indicatif::HumanBytes;
use serde_json::json;

use super::Global;
use super::admin::{find_instance, open, print_one};
use crate::app::App;
use crate::backup::copy_record as copies;
use crate::backup::place::{Place, open_at, places};
use crate::backup::proof_record::{self as proofs, Proof, ProofLevel};
use crate::backup::record::{self as backups, Backup};
use crate::config;
use crate::ids::{BackupId, Moment};
use crate::instance::Instance;
use crate::instance::layout::Layout;
use crate::jobs::worker::with_progress;
use crate::restore::command::{available_memory, memory_needed};
use crate::restore::job::archive_identity;
use crate::secrets;

/// Most backups that a name or `latest` is looked up among.
const LOOKED_THROUGH_MAX: u64 = 100_000;

#[derive(Args)]
pub(crate) struct Verify {
    /// Name or id of the instance
    instance: String,
    /// Id or name of the backup, or latest
    backup: String,
    /// stored: every stored byte is the one that was stored; parsed: they decode to the valid data of the capture; proven:
    /// a throw-away engine loads it and holds exactly that
    #[arg(long, value_enum, default_value_t = Level::Parsed)]
    level: Level,
    /// For proven: another engine's program, such as that of a newer version; what it does not load is told, and not held
    /// against the backup
    #[arg(long, value_name = "PROGRAM")]
    engine: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Level {
    Stored,
    Parsed,
    Proven,
}

impl Level {
    fn of_record(self) -> ProofLevel {
        match self {
            Level::Stored => ProofLevel::Stored,
            Level::Parsed => ProofLevel::Parsed,
            Level::Proven => ProofLevel::Proven,
        }
    }
}

/// What was found.
#[derive(Default)]
struct Seen {
    engine: Option<String>,
    load_ms: Option<i64>,
    /// Of a cluster: its shards, and the time between the first and the last snapshot of them.
    shards: usize,
    skew_ms: Option<i64>,
}

/// Runs the verb. Exit code 1 where the backup does not hold what it should.
///
/// # Errors
/// No data directory, no such backup, nothing that could be verified, or not now.
pub(crate) fn run(global: &Global, verb: &Verify) -> anyhow::Result<ExitCode> {
    let app = open(global)?;
    let instance = find_instance(&app, &verb.instance)?;
    let backup = find(&app, &instance, &verb.backup)?;
    anyhow::ensure!(
        backup.is_kept() && backup.generation_id.is_none(),
        "{} has no archive that could be verified",
        backup.name
    );
    let control = Control::new(None);
    let tell = |seen: &engine::Progress| {
        if !global.quiet {
            eprintln!("{}: {}", seen.phase, HumanBytes(seen.bytes_done));
        }
    };
    let mut seen = Seen::default();
    let mut look_at = |place: Place<'_>| {
        let looked = with_progress(&control, tell, || {
            look(&app, &backup, place, verb, &control, &mut seen)
        });
        match looked {
            Ok(()) => Ok(None),
            Err(error) if is_of_the_backup(&error, verb) => Ok(Some(engine::chain(&error))),
            Err(error) => anyhow::bail!("not verified: {}", engine::chain(&error)),
        }
    };
    let places = places(&backup);
    let first = *places.first().context("it has no archive")?;
    let mut failure = look_at(first)?;
    if let Some(why) = &failure
        && let Some(copy) = places.get(1)
        && look_at(*copy)?.is_none()
    {
        eprintln!(
            "cachekeep: {} is damaged where it was made ({why}); its copy holds and takes that place. Make another copy",
            backup.name
        );
        app.catalog.write(|tx| copies::promote(tx, &backup.id))?;
        failure = None;
    }
    let now = Moment::now();
    let proof = Proof {
        level: verb.level.of_record(),
        at: now,
        engine: seen.engine,
        load_ms: seen.load_ms,
        failure,
    };
    app.catalog.write(|tx| proofs::set(tx, &backup.id, &proof))?;
    print_one(
        global,
        &json!({"backup_id": backup.id.as_str(), "backup_name": backup.name, "level": proof.level.word(),
                "holds": proof.failure.is_none(), "verified_at": now.iso(), "engine": proof.engine,
                "load_ms": proof.load_ms, "failure": proof.failure, "shards": seen.shards, "skew_ms": seen.skew_ms}),
    );
    let Some(failure) = proof.failure else {
        return Ok(ExitCode::SUCCESS);
    };
    eprintln!(
        "cachekeep: {} is damaged ({failure}); nothing is removed, and it is not restorable until a verify of this level finds \
         it whole. Make another: cachekeep backup create {}",
        backup.name, verb.instance
    );
    Ok(ExitCode::FAILURE)
}

/// The backup of that id or name, or the newest one that is kept.
///
/// # Errors
/// There is none.
pub(super) fn find(app: &App, instance: &Instance, named: &str) -> anyhow::Result<Backup> {
    let rows = app.catalog.read(|tx| {
        let owned = crate::instance::record::find_with_deleted(tx, &instance.project_id, &instance.id)?;
        match (owned, BackupId::parse(named)) {
            (None, _) => Ok((0, Vec::new())),
            (Some(owned), Some(id)) => {
                Ok::<_, crate::catalog::Error>((1, backups::find(tx, &owned, &id)?.into_iter().collect()))
            }
            (Some(owned), None) => backups::list(tx, &owned, None, None, 0, LOOKED_THROUGH_MAX),
        }
    })?;
    let found = rows.1.into_iter().find(|row| match named {
        "latest" => row.is_kept() && row.generation_id.is_none(),
        _ => row.name == named || row.id.as_str() == named,
    });
    found.with_context(|| {
        format!(
            "there is no backup {named}: `cachekeep backup list {}` shows all",
            instance.name
        )
    })
}

/// Verifies; what is known of the engine is left in `seen`, however it ends.
fn look(
    app: &App,
    backup: &Backup,
    place: Place<'_>,
    verb: &Verify,
    control: &Control,
    seen: &mut Seen,
) -> Result<(), Error> {
    let archive = open_at(app, backup, place, None, &engine::store::always)?;
    if !archive.manifest().shards.is_empty() {
        (seen.shards, seen.skew_ms) = (
            archive.manifest().shards.len(),
            Some(archive.manifest().skew_ms()),
        );
    }
    let identity = archive_identity(app, &archive)?;
    match verb.level {
        Level::Stored => proof::stored(&archive, &identity, control),
        Level::Parsed => proof::parsed(&archive, &identity, &app.config.spool_dir(), control),
        Level::Proven => {
            let binary = match &verb.engine {
                Some(program) => program.clone(),
                None => process::find_binary()?,
            };
            seen.engine = Some(process::version(&binary)?);
            let (needed, free) = (memory_needed(backup, Layout::SINGLE), available_memory());
            if free < needed {
                let context = format!("an engine needs {} MB, {} MB are free", needed >> 20, free >> 20);
                return Err(Error::new(Kind::Memory, "prove backup", context));
            }
            let room = Room::take(app)?;
            let run_as = config::engine_user(None)
                .map_err(|error| Error::new(Kind::EngineStart, "prove backup", error.to_string()))?;
            let spec = EngineSpec {
                binary,
                directory: room.directory.join("engine"),
                run_as,
                bind: "127.0.0.1".to_owned(),
                port: 0,
                admin_password: Secret::new(secrets::random_hex(32)),
                client_password: Some(Secret::new(secrets::random_hex(32))),
                max_memory_bytes: 0,
                persistence: Persistence::Rdb,
                cluster: None,
                watched: None,
            };
            let loaded = proof::proven(&archive, &identity, &spec, control)?;
            seen.load_ms = i64::try_from(loaded.load.as_millis()).ok();
            Ok(())
        }
    }
}

/// Whether the failure says something of the backup, and not of the store, this machine, or an engine of somebody's
/// choice.
fn is_of_the_backup(error: &Error, verb: &Verify) -> bool {
    match error.kind {
        Kind::NotFound | Kind::Tampered | Kind::Malformed => true,
        // An engine that ended may have been ended: by the kernel for want of memory, or because it is too old.
        Kind::Mismatch => verb.engine.is_none(),
        _ => false,
    }
}

/// A directory for one engine, and the lock by which the service knows that it is in use. Gone when dropped.
pub(super) struct Room {
    /// The directory.
    pub(super) directory: PathBuf,
    lock_file: PathBuf,
    _lock: File,
}

impl Room {
    /// Makes one.
    ///
    /// # Errors
    /// [`Kind::Io`].
    pub(super) fn take(app: &App) -> Result<Self, Error> {
        let name = secrets::random_hex(8);
        let (directory, lock_file) = app.config.proof_place(&name);
        let failed =
            |e: std::io::Error| Error::io(Kind::Io, "prove backup", directory.display().to_string(), e);
        // The service takes a lock that nobody holds for one that was left behind: it is held before it has its name.
        let unnamed = lock_file.with_extension("taking");
        let lock = File::create(&unnamed).map_err(failed)?;
        lock.try_lock()
            .map_err(|e| Error::new(Kind::Io, "prove backup", lock_file.display().to_string()).because(e))?;
        std::fs::rename(&unnamed, &lock_file).map_err(failed)?;
        // Its engine may run as another user, who has to reach the directory in it.
        std::fs::create_dir(&directory).map_err(failed)?;
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o711)).map_err(failed)?;
        Ok(Self {
            directory,
            lock_file,
            _lock: lock,
        })
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let _the_service_removes_it_else = std::fs::remove_dir_all(&self.directory);
        let _as_well = std::fs::remove_file(&self.lock_file);
    }
}
