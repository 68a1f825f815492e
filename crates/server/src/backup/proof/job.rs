//! Looks through the stored objects of a backup; writes the outcome in one transaction, and nothing before. So whoever dies
//! while he looks leaves a record that says what it said before; the engine that he may have started is ended by the
//! reconciler.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use engine::process::{self, EngineSpec, Persistence, Program};
use engine::{Control, Error, Kind, Lease, Secret, proof, uptime};

use crate::app::App;
use crate::backup::cancel_record::CANCELLED;
use crate::backup::copy_record as copies;
use crate::backup::place::{Place, open_at, places};
use crate::backup::proof_record::{self as proofs, Proof, ProofLevel};
use crate::backup::record::{self, Backup};
use crate::backup::verification_record::{self as verifications, Ended, Status, Verification};
use crate::catalog;
use crate::config;
use crate::ids::Moment;
use crate::instance::job::catalog_failed;
use crate::instance::layout::Layout;
use crate::jobs::aside::{Seat, Task};
use crate::jobs::worker::{panic_text, with_progress_while};
use crate::restore::command::{available_memory, memory_needed};
use crate::restore::job::archive_identity;
use crate::secrets;
use crate::{limits, metrics};

const VERIFY: &str = "verify backup";

/// What was found.
#[derive(Default)]
pub struct Seen {
    /// Version of the engine that loaded it, or did not.
    pub engine: Option<String>,
    /// How long it loaded.
    pub load_ms: Option<i64>,
    /// Of a cluster: its shards, and the time between the first and the last snapshot of them.
    pub shards: usize,
    /// See [`Seen::shards`].
    pub skew_ms: Option<i64>,
    /// What is wrong with the backup; `None`: it holds.
    pub failure: Option<String>,
    /// What is wrong where it was made: its copy, which holds, is to take that place.
    pub promotion: Option<String>,
}

impl Seen {
    /// As the backup's record keeps it.
    pub fn proof(&self, level: ProofLevel, now: Moment) -> Proof {
        Proof {
            level,
            at: now,
            engine: self.engine.clone(),
            load_ms: self.load_ms,
            failure: self.failure.clone(),
        }
    }

    /// Writes the outcome on the backup's record.
    ///
    /// # Errors
    /// The catalogue failed.
    pub fn keep(
        &self,
        tx: &catalog::Tx<'_>,
        backup: &Backup,
        level: ProofLevel,
        now: Moment,
    ) -> Result<(), catalog::Error> {
        if self.promotion.is_some() {
            copies::promote(tx, &backup.id)?;
        }
        proofs::set(tx, &backup.id, &self.proof(level, now))
    }
}

/// Looks at a backup where it was made, and where that is damaged at its copy. `engine`: another program than the service's.
///
/// # Errors
/// Nothing could be found out: the store, this machine, or an engine of somebody's choice.
pub fn look(
    app: &App,
    backup: &Backup,
    level: ProofLevel,
    engine: Option<&Path>,
    control: &Control,
) -> Result<Seen, Error> {
    let mut seen = Seen::default();
    let mut damaged = None;
    for place in places(backup) {
        match look_at(app, backup, place, level, engine, control, &mut seen) {
            Ok(()) => {
                seen.promotion = damaged;
                return Ok(seen);
            }
            Err(error) if is_of_the_backup(&error, engine.is_some()) => {
                damaged.get_or_insert(engine::chain(&error));
            }
            // Of a copy too: while it cannot be read nobody knows whether the backup is lost.
            Err(error) => return Err(error),
        }
    }
    if damaged.is_none() {
        return Err(Error::new(Kind::NotFound, VERIFY, "it has no archive"));
    }
    seen.failure = damaged;
    Ok(seen)
}

/// Looks at one place; what is known of the engine is left in `seen`, however it ends.
fn look_at(
    app: &App,
    backup: &Backup,
    place: Place<'_>,
    level: ProofLevel,
    engine: Option<&Path>,
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
    match level {
        ProofLevel::Stored => proof::stored(&archive, &identity, control),
        ProofLevel::Parsed => proof::parsed(&archive, &identity, &app.config.spool_dir(), control),
        ProofLevel::Proven => {
            let its_own = app.config.program_of_version(&archive.manifest().engine_version);
            let program = match (engine, its_own) {
                (Some(chosen), _) => Program::ask(chosen)?,
                (None, Some(program)) => program.clone(),
                (None, None) => Program::ask(&process::find_binary()?)?,
            };
            seen.engine = Some(program.version.clone());
            let (needed, free) = (memory_needed(backup, Layout::SINGLE), available_memory());
            if free < needed {
                let context = format!("an engine needs {} MB, {} MB are free", needed >> 20, free >> 20);
                return Err(Error::new(Kind::Memory, "prove backup", context));
            }
            let room = Room::take(app)?;
            let spec = throw_away_engine(app, &room, program, Persistence::Rdb)?;
            let loaded = proof::proven(&archive, &identity, &spec, control)?;
            seen.load_ms = i64::try_from(loaded.load.as_millis()).ok();
            Ok(())
        }
    }
}

/// Whether the failure says something of the backup, and not of the store, this machine, or an engine of somebody's
/// choice.
fn is_of_the_backup(error: &Error, is_chosen_engine: bool) -> bool {
    match error.kind {
        Kind::NotFound | Kind::Tampered | Kind::Malformed => true,
        // An engine that ended may have been ended: by the kernel for want of memory, or because it is too old.
        Kind::Mismatch => !is_chosen_engine,
        _ => false,
    }
}

/// An engine without a port, which nobody but us can reach.
///
/// # Errors
/// [`Kind::EngineStart`]: there is no user that it could run as.
pub fn throw_away_engine(
    app: &App,
    room: &Room,
    program: Program,
    persistence: Persistence,
) -> Result<EngineSpec, Error> {
    let run_as = match app.config.run_as {
        Some(user) => Some(user),
        None => config::engine_user(None)
            .map_err(|error| Error::new(Kind::EngineStart, "start engine", error.to_string()))?,
    };
    Ok(EngineSpec {
        program,
        directory: room.directory.join("engine"),
        run_as,
        bind: "127.0.0.1".to_owned(),
        port: 0,
        admin_password: Secret::new(secrets::random_hex(32)),
        clients: process::Clients {
            password: Some(Secret::new(secrets::random_hex(32))),
            ..process::Clients::default()
        },
        max_memory_bytes: 0,
        persistence,
        certificate: None,
        cluster: None,
        watched: None,
    })
}

/// A directory for one engine, and the lock by which the service knows that it is in use. Gone when dropped.
pub struct Room {
    /// The directory.
    pub directory: PathBuf,
    lock_file: PathBuf,
    _lock: File,
}

impl Room {
    /// Makes one.
    ///
    /// # Errors
    /// [`Kind::Io`].
    pub fn take(app: &App) -> Result<Self, Error> {
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

/// Works on the verifies that were asked of the service, one after the other, for ever; one thread calls this.
pub fn run(app: &Arc<App>, closing: &AtomicBool) {
    let mut seen = 0;
    while !closing.load(Ordering::SeqCst) {
        match run_next(app) {
            Ok(true) => {}
            Ok(false) => seen = app.board.wait_to_tidy(seen, limits::RECONCILE_EVERY),
            Err(error) => {
                tracing::error!(error = engine::chain(&error), "cannot work on verifies");
                std::thread::sleep(std::time::Duration::from_secs(1));
            }
        }
    }
}

/// `false`: none waits, or the service stops.
fn run_next(app: &Arc<App>) -> Result<bool, catalog::Error> {
    let length = app.config.lease;
    let lease = Arc::new(match app.catalog.is_shared() {
        true => Lease::until(uptime() + limits::lease_holds(length)),
        false => Lease::endless(),
    });
    let control = Arc::new(Control::leased(None, lease.clone()));
    let Some(_seat) = Seat::take(app, Task::Verify, &control) else {
        return Ok(false);
    };
    let Some(asked) = app
        .catalog
        .write(|tx| verifications::claim(tx, &app.host, length, Moment::now()))?
    else {
        return Ok(false);
    };
    app.board.verify_begun(&asked, &lease);
    let looked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work_on(app, &asked, &control)));
    app.board.verify_ended();
    let failed = |why: String| Ended {
        status: Status::Failed,
        engine: None,
        load_ms: None,
        failure: Some(why),
    };
    let looked = match looked {
        Ok(Err(error)) if error.kind == Kind::Cancelled => {
            if !app.catalog.read(|tx| verifications::is_cancelled(tx, &asked))? {
                // It waits again, for the next start.
                app.catalog
                    .write(|tx| verifications::release_all(tx, &app.host, Moment::now()))?;
                return Ok(false);
            }
            Err(CANCELLED.to_owned())
        }
        Ok(looked) => looked.map_err(|error| engine::chain(&error)),
        Err(panic) => {
            tracing::error!(verification.id = %asked.id, panic = panic_text(&panic), "a verify panicked: this is a bug");
            Err("an error within the service".to_owned())
        }
    };
    let now = Moment::now();
    app.catalog.write(|tx| {
        let kept = record::load(tx, &asked.backup_id)?.filter(Backup::is_kept);
        let ended = match (&looked, &kept) {
            (Ok(_), None) => failed("the backup was deleted meanwhile".to_owned()),
            (Ok(seen), Some(_)) => {
                let status = match seen.failure {
                    None => Status::Holds,
                    Some(_) => Status::Damaged,
                };
                Ended {
                    status,
                    engine: seen.engine.clone(),
                    load_ms: seen.load_ms,
                    failure: seen.failure.clone(),
                }
            }
            (Err(why), _) => failed(why.clone()),
        };
        tracing::info!(verification.id = %asked.id, backup.id = %asked.backup_id, level = asked.level.word(),
                       outcome = ended.status.word(), why = ended.failure, "verified");
        let labels = [("level", asked.level.word()), ("outcome", ended.status.word())];
        app.counters.add(metrics::VERIFIES_ENDED, &labels);
        if verifications::end(tx, &asked, &ended, now)?
            && let (Ok(seen), Some(backup)) = (&looked, kept)
        {
            seen.keep(tx, &backup, asked.level, now)?;
        }
        Ok::<_, catalog::Error>(())
    })?;
    Ok(true)
}

fn work_on(app: &App, asked: &Verification, control: &Control) -> Result<Seen, Error> {
    if asked.attempts > limits::JOB_ATTEMPTS_MAX {
        let context = format!("begun {} times without coming to an end", asked.attempts - 1);
        return Err(Error::new(Kind::Deadline, VERIFY, context));
    }
    let backup = app
        .catalog
        .read(|tx| record::load(tx, &asked.backup_id))
        .map_err(catalog_failed)?
        .filter(Backup::is_kept)
        .ok_or_else(|| Error::new(Kind::Refused, VERIFY, "the backup was deleted meanwhile"))?;
    let report = |seen: &engine::Progress| {
        let written = app.catalog.write(|tx| verifications::progress(tx, asked, seen));
        if let Err(error) = written {
            tracing::warn!(error = engine::chain(&error), "the progress is not written");
        }
    };
    // After a crash it may be known before it is begun.
    let is_wanted = || {
        !matches!(
            app.catalog.read(|tx| verifications::is_cancelled(tx, asked)),
            Ok(true)
        )
    };
    if !is_wanted() {
        return Err(Error::new(Kind::Cancelled, VERIFY, CANCELLED));
    }
    with_progress_while(control, report, is_wanted, || {
        look(app, &backup, asked.level, None, control)
    })
}
