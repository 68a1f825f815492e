//! The job of a restore key by key, into servers that go on serving: read [`Work::run_replay`] first.
//!
//! ```text
//! validate every stored byte, look at the target ── safety point ── apply ── remove other keys ── settle
//!       whatever fails after the first key: the safety point is applied in the same way, to what may have changed
//! ```
//!
//! What may have been changed is written down before (`target_state`, `dbs`), and how far it is in a journal of the engine's: so a
//! crash at any moment is followed by the same steps again, which go on where they were. The journal lies on the node that writes; where that
//! one is gone, another one takes back what it wrote (ADR 97).

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::archive::Archive;
use engine::replay::{self, Account, Input, Outcome, Plan, Reach, Ready, Stage};
use engine::store::Patience;
use engine::{Control, Error, Kind, defect, failpoint};

use super::{Halt, Work, archive_identity};
use crate::app::App;
use crate::backup::place;
use crate::backup::record::{self as backups, Backup, FailureCode};
use crate::catalog::{self, Tx};
use crate::ids::{BackupId, Moment};
use crate::instance::attachment::servers;
use crate::instance::writing;
use crate::instance::{self, Instance};
use crate::jobs::aside::{Seat, Task};
use crate::jobs::queue;
use crate::jobs::worker::{Ended, Stop, failure_code, settle, step, with_progress};
use crate::limits;
use crate::restore::given_up::GivenUp;
use crate::restore::migration::record as migrations;
use crate::restore::options::{Mode, Options};
use crate::restore::record::{self, TargetState};
use crate::restore::replay_record::{self, Replay};

/// The journal of what is applied, and of what takes it back.
const FORTH: &str = "forth";
const BACK: &str = "back";
/// As [`BACK`], where other keys go first.
const BACK_OF_FULL: &str = "back-of-full";

impl Work<'_> {
    /// Applies the backup, and settles the record with what is true then.
    ///
    /// # Errors
    /// As [`super::run`].
    pub(super) fn run_replay(&self) -> Result<Ended, Stop> {
        if let Some(attached) = &self.instance.attachment {
            // A capture before may have left them changed; what does not go back is told in the log, and tried again.
            let _told = servers::put_settings_back(
                self.app,
                &self.instance,
                attached,
                Some(self.claim),
                Moment::now(),
            );
        }
        if let Some(given_up) = &self.restore.given_up {
            return self.take_back(given_up);
        }
        if self.replay()?.dbs.is_some() && !self.folder().exists() {
            return self.take_back(&GivenUp {
                code: FailureCode::TimedOut,
                why: "the node that wrote it is gone, and with it how many keys it had written (none are counted): ask for it again"
                    .to_owned(),
            });
        }
        let applied = with_progress(
            self.control,
            |seen| {
                let (base, span) = match seen.phase {
                    "validating" => (100, 900),
                    "capturing" | "storing" => (1000, 1000),
                    "judging" => (2000, 500),
                    "applying" => (2500, 6000),
                    "searching" => (8500, 700),
                    "removing" => (9200, 600),
                    _ => (0, 0),
                };
                self.told(seen, base, span, self.control);
            },
            || self.apply(),
        );
        match applied {
            Ok(()) => {
                self.forget();
                Ok(Ended::Done)
            }
            Err(Halt::Stop(stop)) => Err(stop),
            Err(Halt::Failed(error)) if error.kind == Kind::Cancelled => match self.check_wanted() {
                Err(Halt::Failed(cancelled)) => self.take_back(&self.given_up(&cancelled)),
                Err(Halt::Stop(stop)) => Err(stop),
                Ok(()) => self.take_back(&self.given_up(&error)),
            },
            Err(Halt::Failed(error)) => self.take_back(&self.given_up(&error)),
        }
    }

    fn apply(&self) -> Result<(), Halt> {
        self.check_wanted()?;
        self.control.check("restore")?;
        if self.claim.fence > limits::ATTACHED_ATTEMPTS_MAX {
            let context = format!("begun {} times without coming to an end", self.claim.fence - 1);
            return Err(Error::new(Kind::Deadline, "run job", context).into());
        }
        let begun = step(self.app, self.claim, |tx| {
            backups::fail_interrupted_safety(tx, &self.instance.id, Moment::now())?;
            self.begin_replay(tx)
        })?;
        if !begun {
            return Err(Stop::ClaimLost.into());
        }
        failpoint::hit("replay.begun")?;
        self.with_archive(|archive| self.apply_archive(&archive))?;
        failpoint::hit("replay.applied")?;
        self.settle_applied()
    }

    fn apply_archive(&self, archive: &Archive) -> Result<(), Halt> {
        let known = self.replay()?;
        let target = self.target(FORTH);
        let identity = archive_identity(self.app, archive)?;
        let plan = Plan {
            is_whole: true,
            // What was there had room.
            needs_room: self.restore.undo_of.is_none(),
            ..self.replay_plan(&known.options, FORTH)?
        };
        let ready = Ready::new(&plan, &*target, Input::all(archive, &identity)?, self.control)?;
        failpoint::hit("replay.validated")?;
        // One of an earlier attempt that had sent nothing does not stand for now any more.
        if known.options.safety_point && known.dbs.is_none() {
            self.take_safety_backup()?;
        }
        let is_first = known.dbs.is_none();
        let dbs = known.dbs.unwrap_or_else(|| {
            let is_all = known.options.mode == Mode::Replace && known.options.select.db.is_empty();
            match is_all {
                true => BTreeSet::new(),
                // None would mean all.
                false if ready.dbs().is_empty() => BTreeSet::from([0]),
                false => ready.dbs(),
            }
        });
        let stopped = RefCell::new(None);
        let enter = |stage: Stage| match self.enter_stage(stage, &dbs) {
            Ok(()) => Ok(()),
            Err(Halt::Failed(error)) => Err(error),
            Err(Halt::Stop(stop)) => {
                *stopped.borrow_mut() = Some(stop);
                Err(Error::new(
                    Kind::Cancelled,
                    "restore",
                    "the job is not ours any more",
                ))
            }
        };
        let outcome = ready.run(&enter);
        if let Some(stop) = stopped.into_inner() {
            return Err(stop.into());
        }
        // It was refused with the first key: there is nothing to be put back.
        let is_untouched = outcome.failure.is_some() && outcome.state == replay::TargetState::Untouched;
        step(self.app, self.claim, |tx| {
            self.counted(tx, &outcome)?;
            match is_first && is_untouched {
                true => self.left_untouched(tx),
                false => Ok(()),
            }
        })?;
        all_of(outcome)?;
        self.enter_state(TargetState::Verifying, &dbs)
    }

    /// Writes down what the target is about to hold.
    fn enter_stage(&self, stage: Stage, dbs: &BTreeSet<u32>) -> Result<(), Halt> {
        let state = match stage {
            Stage::Applying => TargetState::Loading,
            Stage::Searching | Stage::Removing | Stage::Done => TargetState::Clearing,
        };
        self.enter_state(state, dbs)?;
        match state {
            TargetState::Loading => failpoint::hit("replay.loading")?,
            _ => failpoint::hit("replay.clearing")?,
        }
        Ok(())
    }

    fn enter_state(&self, state: TargetState, dbs: &BTreeSet<u32>) -> Result<(), Halt> {
        if defect::is_planted("target-state-unwritten") && state == TargetState::Loading {
            return Ok(());
        }
        let (id, now) = (&self.restore.id, Moment::now());
        let running = step(self.app, self.claim, |tx| {
            // How far it is lies in this host's data directory from now on: as long as it is there, nobody else can go on as well.
            queue::pin(tx, self.claim, &self.app.host)?;
            match self.is_import {
                true => migrations::enter(tx, id, state, dbs, now),
                false => replay_record::enter(tx, id, state, dbs, now),
            }
        })?;
        if !running {
            self.check_wanted()?;
            return Err(Stop::ClaimLost.into());
        }
        Ok(())
    }

    /// Unless somebody asks for it to be given up before.
    fn settle_applied(&self) -> Result<(), Halt> {
        let id = &self.restore.id;
        let is_settled = self.app.catalog.write(|tx| {
            if self.is_to_be_cancelled(tx)? {
                return Ok(false);
            }
            if self.claim.lease.is_over() || !queue::settle(tx, self.claim, Moment::now())? {
                return Err(Stop::ClaimLost);
            }
            if let Some(undone) = &self.restore.undo_of {
                record::mark_undone(tx, undone, id)?;
            }
            let succeeded = match self.is_import {
                true => migrations::succeed(tx, id, Moment::now()),
                false => record::succeed(tx, id, None, Moment::now()),
            };
            succeeded.map_err(Stop::Catalog)
        })?;
        match is_settled {
            true => Ok(()),
            false => self.check_wanted(),
        }
    }

    /// Puts the target back to its safety point, where it was begun to be written to and there is one; the record says what is true
    /// then.
    fn take_back(&self, given_up: &GivenUp) -> Result<Ended, Stop> {
        let id = &self.restore.id;
        let mut why = given_up.why.clone();
        step(self.app, self.claim, |tx| match self.is_import {
            true => migrations::giving_up(tx, id, given_up),
            false => record::giving_up(tx, id, given_up),
        })?;
        failpoint::hit("replay.giving_up")?;
        let known = self.replay()?;
        let (state, more) = match (&known.dbs, &known.safety) {
            (None, _) => (TargetState::Untouched, None),
            (Some(_), None) => (
                TargetState::Partial,
                Some("there is no safety point to put it back to".to_owned()),
            ),
            // What takes it back has as many attempts of its own: one that ends the process each time must not be begun for ever.
            (Some(_), Some(_)) if self.claim.fence > 2 * limits::ATTACHED_ATTEMPTS_MAX => (
                TargetState::Partial,
                Some("to put it back was begun too often without coming to an end".to_owned()),
            ),
            (Some(_), Some(_)) if defect::is_planted("not-put-back") => (TargetState::RolledBack, None),
            (Some(dbs), Some(safety)) => match self.put_back(&known.options, dbs, safety) {
                Ok(Some(left)) if known.options.changes_functions() => (
                    TargetState::Partial,
                    Some(format!(
                        "its keys are put back, and libraries of functions that were loaded are not: {left}"
                    )),
                ),
                Ok(_) => (TargetState::RolledBack, None),
                Err(Halt::Stop(stop)) => return Err(stop),
                Err(Halt::Failed(failed)) => {
                    // Some of both is in there where it answers, whatever kept it from being put back.
                    let is_silent = passes(&failed)
                        && replay::check_answers(&*writing::asked(self.app, &self.instance)).is_err();
                    let state = match is_silent {
                        true => TargetState::Unknown,
                        false => TargetState::Partial,
                    };
                    let why = self.shown(&failed);
                    (state, Some(format!("it could not be put back: {why}")))
                }
            },
        };
        // Nothing of the job is left to be cancelled, and its deadline may be past.
        let tidying = Control::leased(Some(limits::attached_back_time(0, 0)), self.claim.lease.clone());
        if known.dbs.is_some()
            && let Err(left) = self.remove_unfinished(&tidying)
        {
            tracing::warn!(restore.id = %id, error = engine::chain(&left), "half of a value may be left in the target");
            why =
                format!("{why}; half of a value may be left under a name that begins with cachekeep:replay");
        }
        failpoint::hit("replay.put_back")?;
        let code = given_up.code;
        let text = code.text();
        let labels = [("kind", "restore"), ("code", text.as_str())];
        self.app.counters.add(crate::metrics::FAILURES, &labels);
        if let Some(more) = more {
            why = format!("{why}; {more}");
        }
        let now = Moment::now();
        settle(self.app, self.claim, |tx| {
            if state == TargetState::Unknown && self.instance.attachment.is_none() {
                // Whoever finds that it serves again settles what is unknown.
                use instance::Status::{Error, Running};
                instance::record::transition(tx, &self.instance.id, Running, Error, Some(&why), now)?;
            }
            match self.is_import {
                true => migrations::fail(tx, id, code, &why, state, now).map(drop),
                false => record::fail(tx, id, code, &why, state, now).map(drop),
            }
        })?;
        self.forget();
        Ok(Ended::Failed(why))
    }

    fn given_up(&self, error: &Error) -> GivenUp {
        GivenUp {
            code: failure_code(error, true, true),
            why: self.shown(error),
        }
    }

    /// What is left of values that were half made by whatever of this restore has ended.
    fn remove_unfinished(&self, control: &Control) -> Result<(), Error> {
        let target = self.target(BACK);
        if !self.folder().join(FORTH).exists() {
            // Another node's journal names them.
            replay::remove_labelled(self.restore.id.as_str(), &*target, control)?;
        }
        [FORTH, BACK, BACK_OF_FULL]
            .into_iter()
            .try_for_each(|journal| replay::remove_unfinished(&self.folder().join(journal), &*target))
    }

    /// An error as the record tells it: PostgreSQL's texts have no zero byte, which a server's answer may have.
    fn shown(&self, error: &Error) -> String {
        let mut text = match self.instance.attachment {
            Some(_) => servers::told(&self.instance, error),
            None => engine::chain(error),
        };
        text.retain(|letter| !letter.is_control());
        text
    }

    /// Applies the safety point to what these options and databases may have changed, as often as its servers do not answer. Returns
    /// why libraries of functions are not as they were, where they are not.
    fn put_back(
        &self,
        options: &Options,
        dbs: &BTreeSet<u32>,
        safety: &BackupId,
    ) -> Result<Option<String>, Halt> {
        let loaded = self.app.catalog.read(|tx| {
            // What the restore wrote is removed at the same pace.
            let of_removals = replay_record::seconds_at_pace(tx, self.restore.id.as_str())?;
            Ok((backups::load(tx, safety)?, of_removals))
        });
        let (safety, of_removals) = loaded.map_err(|error: catalog::Error| Stop::from(error))?;
        let safety = safety.ok_or_else(|| Stop::Broken("a safety point has no row".to_owned()))?;
        let has_functions = safety.is_point_in_time;
        let options = &options.back(dbs.clone(), has_functions);
        let bytes = u64::try_from(safety.plain_bytes).unwrap_or(0);
        // Out of time or told to stop is no reason to leave the target as it is.
        let at_pace = of_removals + options.seconds_at_pace(safety.keys);
        let limit = limits::attached_back_time(bytes, at_pace);
        let patient = Control::leased(Some(limit), self.claim.lease.clone());
        let wanted = || patient.check("open safety point");
        let once = |is_full: bool| -> Result<Option<String>, Halt> {
            // It must not be in the way of what matters; it is tried again at the end.
            if let Err(left) = self.remove_unfinished(&patient) {
                tracing::warn!(restore.id = %self.restore.id, error = engine::chain(&left), "half of a value is left for now");
            }
            let plan = Plan {
                removes_first: is_full,
                needs_room: false,
                needs_commands: false,
                ..self.replay_plan(options, if is_full { BACK_OF_FULL } else { BACK })?
            };
            let is_of_the_place =
                |halt: &Halt| matches!(halt, Halt::Failed(error) if place::is_of_the_place(error));
            place::with(self.app, &safety, None, &wanted, is_of_the_place, |archive| {
                let target = self.target(BACK);
                let identity = archive_identity(self.app, &archive)?;
                let ready = Ready::new(&plan, &*target, Input::all(&archive, &identity)?, &patient)?;
                let outcome = ready.run(&|_| failpoint::hit("replay.putting_back"));
                let left = match has_functions {
                    true => outcome.account.functions_left.clone(),
                    false => Some("a safety point that was read key by key has none".to_owned()),
                };
                all_of(outcome)?;
                Ok(left)
            })
        };
        with_progress(
            &patient,
            |seen| {
                let seen = engine::Progress {
                    phase: "putting back",
                    ..*seen
                };
                self.told(&seen, 0, 0, &patient);
            },
            || {
                let mut tries = 1;
                let mut is_full = self.folder().join(BACK_OF_FULL).exists();
                loop {
                    let error = match once(is_full) {
                        Ok(left) => return Ok(left),
                        Err(Halt::Failed(error)) => error,
                        Err(stop) => return Err(stop),
                    };
                    tracing::warn!(restore.id = %self.restore.id, error = engine::chain(&error), "the target is not put back yet");
                    // What the restore wrote may have filled it, and a full target removes keys and takes none. Else it is never
                    // without both the old keys and the new.
                    is_full |= error.kind == Kind::Memory;
                    let is_last = is_lasting(&error) && tries >= limits::ROLL_BACK_TRIES;
                    std::thread::sleep(limits::ATTACHED_BACK_PAUSE);
                    if is_last || patient.check("put back").is_err() {
                        return Err(error.into());
                    }
                    tries += 1;
                }
            },
        )
    }

    /// What the record says now.
    fn replay(&self) -> Result<Replay, Stop> {
        let id = &self.restore.id;
        let found = self.app.catalog.read(|tx| match self.is_import {
            true => migrations::replay(tx, id),
            false => replay_record::load(tx, id),
        })?;
        found.ok_or_else(|| Stop::Broken("a replay without options".to_owned()))
    }

    fn begin_replay(&self, tx: &Tx<'_>) -> Result<bool, catalog::Error> {
        match self.is_import {
            true => migrations::begin(tx, &self.restore.id, Moment::now()),
            false => replay_record::begin(tx, &self.restore.id, Moment::now()),
        }
    }

    /// Writes down the safety point.
    pub(super) fn saved(&self, tx: &Tx<'_>, safety: &BackupId) -> Result<(), catalog::Error> {
        match self.is_import {
            true => migrations::saved(tx, &self.restore.id, safety),
            false => replay_record::saved(tx, &self.restore.id, safety),
        }
    }

    fn counted(&self, tx: &Tx<'_>, outcome: &Outcome) -> Result<(), catalog::Error> {
        match self.is_import {
            true => migrations::counted(tx, &self.restore.id, &outcome.account),
            false => replay_record::counted(tx, &self.restore.id, outcome),
        }
    }

    /// Takes back that the target was about to be written to.
    fn left_untouched(&self, tx: &Tx<'_>) -> Result<(), catalog::Error> {
        match self.is_import {
            true => migrations::left_untouched(tx, &self.restore.id, Moment::now()),
            false => replay_record::left_untouched(tx, &self.restore.id, Moment::now()),
        }
    }

    /// Whether somebody asked for it to be given up.
    pub(super) fn is_to_be_cancelled(&self, tx: &Tx<'_>) -> Result<bool, catalog::Error> {
        match self.is_import {
            true => migrations::is_to_be_cancelled(tx, &self.restore.id),
            false => record::is_to_be_cancelled(tx, &self.restore.id),
        }
    }

    /// The target, for who has this journal.
    fn target(&self, journal: &str) -> Box<dyn Reach + '_> {
        let name = format!("{}-{}-{journal}", self.restore.id, self.claim.fence);
        writing::target(self.app, &self.instance, &name)
    }

    /// What the engine is told, with the journal of this name.
    fn replay_plan(&self, options: &Options, journal: &str) -> Result<Plan, Error> {
        let folder = self.folder();
        let failed = |e| Error::io(Kind::Io, "make folder", folder.display().to_string(), e);
        std::fs::create_dir_all(&folder).map_err(failed)?;
        let plan = options
            .plan(
                Some(folder.join(journal)),
                &self.app.config.spool_dir(),
                Moment::now(),
            )
            .map_err(|field| Error::new(Kind::Refused, "plan replay", field))?;
        Ok(Plan {
            label: self.restore.id.to_string(),
            ..plan
        })
    }

    fn folder(&self) -> PathBuf {
        self.app.config.replays_dir().join(self.restore.id.as_str())
    }

    /// Forgets how far it was: what does not go is removed at the next start.
    fn forget(&self) {
        let folder: &Path = &self.folder();
        if let Err(error) = std::fs::remove_dir_all(folder) {
            tracing::warn!(restore.id = %self.restore.id, %error, "the folder of a replay does not go");
        }
    }
}

/// Says what a replay of the backup into the instance would do now, within the time of a request.
///
/// # Errors
/// What cannot be read or asked; [`Kind::Refused`] where as many plans are at work as may be; [`Kind::Deadline`].
pub fn dry_run(
    app: &Arc<App>,
    instance: &Instance,
    backup: &Backup,
    options: &Options,
    now: Moment,
) -> Result<Account, Error> {
    let control = Arc::new(Control::new(Some(limits::DISCOVERY_TIME_MAX)));
    let busy = || {
        let why = "as many plans count keys as may at once: ask again when one has answered";
        Error::new(Kind::Refused, "plan replay", why)
    };
    let _seat = Seat::take(app, Task::Plan, &control).ok_or_else(busy)?;
    let target = writing::asked(app, instance);
    let plan = Plan {
        is_whole: true,
        ..options
            .plan(None, &app.config.spool_dir(), now)
            .map_err(|field| Error::new(Kind::Refused, "plan replay", field))?
    };
    let wanted = || control.check("open backup");
    place::with(
        app,
        backup,
        Some(Patience::SHORT),
        &wanted,
        place::is_of_the_place,
        |archive| {
            let identity = archive_identity(app, &archive)?;
            let ready = Ready::new(&plan, &*target, Input::all(&archive, &identity)?, &control)?;
            let outcome = ready.dry_run();
            outcome.failure.map_or(Ok(outcome.account), Err)
        },
    )
}

/// Whether it is of what is stored, asked for or allowed, and seldom passes: room and memory come back.
fn is_lasting(error: &Error) -> bool {
    matches!(
        error.kind,
        Kind::Tampered
            | Kind::Malformed
            | Kind::Key
            | Kind::NotFound
            | Kind::Mismatch
            | Kind::Refused
            | Kind::Auth
    )
}

/// Whether the target may answer otherwise in a while.
fn passes(error: &Error) -> bool {
    matches!(
        error.kind,
        Kind::Connection | Kind::Idle | Kind::Auth | Kind::Protocol | Kind::Deadline
    )
}

/// That every key is there that is to be.
fn all_of(outcome: Outcome) -> Result<(), Error> {
    outcome.failure.map_or(Ok(()), Err)?;
    outcome.account.check_whole()
}
