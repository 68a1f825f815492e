//! The job that restores: read [`run`] first.

pub(crate) mod beside;
pub(crate) mod cluster;
mod lanes;
pub(super) mod replay;
mod shards;

use engine::keys::Identity;
use std::time::Duration;

use engine::process::{self, Engine, EngineSpec, has_fixed_port};
use engine::sideload::{self, Expectation, Form};
use engine::switch::{self, RestartPlan, SwitchPlan};
use engine::verify::{self, VerifyLevel};
use engine::{Control, Error, Kind, defect, failpoint};

use super::command::has_same_shards;
use super::given_up::GivenUp;
use super::migration::record as migrations;
use super::record::{self, Method, Restore, TargetState};
use crate::app::App;
use crate::backup::record as backups;
use crate::backup::run_record;
use crate::catalog::Tx;
use crate::identity::record as identity;
use crate::ids::{BackupId, GenerationId, Moment, ProjectId, RestoreId};
use crate::instance::generation::{self, Generation, State};
use crate::instance::job as instances;
use crate::instance::layout::Mode;
use crate::instance::{self, nodes};
use crate::jobs::worker::{Ended, Stop, begun_too_often, failure_code, settle, step, with_progress};
use crate::jobs::{Claim, JobKind};
use crate::limits;
use crate::refusal::Refusal;
use crate::storage::record as storages;
use beside::{Beside, Generations, Halt, Safety};

/// One restore at work: what is loaded beside, and the record of it.
struct Work<'a> {
    beside: Beside<'a>,
    restore: Restore,
    /// The record is that of an import task, which has a table of its own.
    is_import: bool,
}

impl<'a> std::ops::Deref for Work<'a> {
    type Target = Beside<'a>;

    fn deref(&self) -> &Beside<'a> {
        &self.beside
    }
}

/// Restores, and settles the record with what is true then.
///
/// # Errors
/// [`Stop`]: nothing is settled, the job is taken up again.
pub fn run(app: &App, claim: &Claim, control: &Control) -> Result<Ended, Stop> {
    let work = load(app, claim, control)?;
    failpoint::hit("restore.claimed")?;
    if work.restore.method == Method::Replay {
        return work.run_replay();
    }
    if let Some(given_up) = work.was_given_up() {
        return work.give_up(&given_up);
    }
    let attempt = with_progress(
        control,
        |seen| work.report(seen),
        || {
            let switch_intended = work.restore.target_state == TargetState::Switching;
            if !switch_intended {
                work.check_wanted()?;
                control.check("restore")?;
                if let Some(error) = begun_too_often(claim) {
                    return Err(Halt::Failed(error));
                }
            }
            let has_nodes = work.instance.layout.mode != Mode::Single;
            let prepared = match work.restore.method {
                _ if switch_intended => work.prepared_before()?,
                Method::SideLoad if has_nodes => work.prepare_nodes_beside()?,
                Method::SwitchBack if has_nodes => work.prepare_nodes_retired()?,
                Method::SideLoad => work.prepare_beside()?,
                Method::InPlace => work.prepare_in_place()?,
                Method::SwitchBack => work.prepare_retired()?,
                Method::Replay => {
                    return Err(Stop::Broken("a replay has no second generation".to_owned()).into());
                }
            };
            if !switch_intended {
                work.enter(TargetState::Switching)?;
                failpoint::hit("restore.switch_intended")?;
            }
            work.switch(&prepared, switch_intended)
        },
    );
    match attempt {
        Ok(()) => Ok(Ended::Done),
        Err(Halt::Stop(stop)) => Err(stop),
        Err(Halt::Failed(error)) if error.kind == Kind::Cancelled => match work.check_wanted() {
            Err(Halt::Failed(cancelled)) => work.give_up(&Work::because_of(&cancelled)),
            Err(Halt::Stop(stop)) => Err(stop),
            Ok(()) => work.give_up(&Work::because_of(&error)),
        },
        Err(Halt::Failed(error)) => work.give_up(&Work::because_of(&error)),
    }
}

fn load<'a>(app: &'a App, claim: &'a Claim, control: &'a Control) -> Result<Work<'a>, Stop> {
    let missing = || Stop::Broken("a restore job without its rows".to_owned());
    let id = claim
        .subject_id
        .as_deref()
        .and_then(RestoreId::parse)
        .ok_or_else(missing)?;
    app.catalog.read(|tx| {
        let is_import = claim.kind == JobKind::Migration;
        let restore = match is_import {
            true => migrations::load(tx, &id)?,
            false => record::load(tx, &id)?,
        };
        let restore = restore.ok_or_else(missing)?;
        let backup = backups::load(tx, &restore.backup_id)?.ok_or_else(missing)?;
        let instance = instance::record::load(tx, &claim.instance_id)?.ok_or_else(missing)?;
        let level = match restore.verify.as_str() {
            "full" => VerifyLevel::Full,
            _ => VerifyLevel::Sample,
        };
        let beside = Beside {
            app,
            claim,
            control,
            instance,
            backup,
            level,
        };
        Ok(Work {
            beside,
            restore,
            is_import,
        })
    })
}

impl Work<'_> {
    /// The new generation beside the old one: an engine loads the backup and is verified. The old generation serves
    /// all the while.
    fn prepare_beside(&self) -> Result<Generations, Halt> {
        self.remove_left_behind()?;
        self.make_room()?;
        let pair = self.begin(None)?;
        let (engine, expectation) = match self.is_read_twice() {
            true => self.load_proven(&pair.new)?,
            false => self.load_placed(&pair.new)?,
        };
        failpoint::hit("restore.loaded")?;
        let durable = sideload::sync_behind(engine.directory())?;
        self.verify(&engine, &expectation)?;
        failpoint::hit("restore.verified")?;
        durable.wait()?;
        Ok(pair)
    }

    /// Whether the stored bytes are read once more than needed, so that loading and validating go on side by side:
    /// from the local folder that is the faster way. From a remote store it would be a second download.
    fn is_read_twice(&self) -> bool {
        self.restore.method == Method::SideLoad && self.backup.storage_id.is_none()
    }

    /// Proves that the whole backup is what was validated, then lets an engine load it while it is validated once more.
    fn load_proven(&self, new: &GenerationId) -> Result<(Engine, Expectation), Halt> {
        let shards = self.proven_shards()?;
        self.enter(TargetState::Loading)?;
        self.control.enter("loading", shards.plain_bytes());
        instances::prepare_directory(self.app, &self.instance.id)?;
        let spec = instances::spec(self.app, &self.instance, new)?;
        let (engine, expectation) =
            sideload::load(&spec, self.control, |push| shards.read(0, self.control, push))?;
        shards.check(&expectation.report.census)?;
        Ok((engine, expectation))
    }

    /// Reads the whole backup once and validates it; only then an engine is started and loads it.
    fn load_placed(&self, new: &GenerationId) -> Result<(Engine, Expectation), Halt> {
        let expectation = self.place(new)?;
        self.enter(TargetState::Loading)?;
        Ok((self.start_placed(new)?, expectation))
    }

    /// Starts an engine that loads what [`Self::place`] has left for it, and waits until it has.
    fn start_placed(&self, new: &GenerationId) -> Result<Engine, Halt> {
        let engine = process::start_standby(&instances::spec(self.app, &self.instance, new)?)?;
        engine.wait_loaded(self.control)?;
        Ok(engine)
    }

    /// As [`Self::prepare_beside`], but the old generation is backed up and stopped before the new one loads.
    fn prepare_in_place(&self) -> Result<Generations, Halt> {
        self.remove_left_behind()?;
        let pair = self.begin(None)?;
        let expectation = self.place(&pair.new)?;
        self.take_safety_backup()?;
        let old = instances::serving(self.app, &self.instance)?;
        self.enter(TargetState::Loading)?;
        failpoint::hit("restore.before_stop_old")?;
        // Where it cannot save it goes on serving, and this restore has failed.
        old.stop_saved(limits::ENGINE_STOP + limits::time_for(old.used_memory()?))?;
        failpoint::hit("restore.old_stopped")?;
        let engine = self.start_placed(&pair.new)?;
        self.verify(&engine, &expectation)?;
        sideload::sync(engine.directory())?;
        Ok(pair)
    }

    /// The retired generation itself: alive, or started again from its directory.
    fn prepare_retired(&self) -> Result<Generations, Halt> {
        let retired = self
            .backup
            .generation_id
            .clone()
            .ok_or_else(|| Stop::Broken("a switch back without a generation".to_owned()))?;
        let pair = self.begin(Some(retired))?;
        if !instances::holds_data(self.app, &self.instance, &pair.new) {
            let context = "the retired generation ended, and the instance has no persistence";
            return Err(Error::new(Kind::NotFound, "switch back", context).into());
        }
        self.control.enter("loading", 0);
        instances::bring_up_beside(self.app, &self.instance, &pair.new, self.control)?;
        Ok(pair)
    }

    /// The generations of a switch that was intended before a crash.
    fn prepared_before(&self) -> Result<Generations, Halt> {
        match (
            self.restore.old_generation_id.clone(),
            self.restore.new_generation_id.clone(),
        ) {
            (Some(old), Some(new)) => Ok(Generations { old, new }),
            _ => Err(Stop::Broken("a switch was intended without its generations".to_owned()).into()),
        }
    }

    /// Moves the port and settles. Also finishes what a crash left half done, from any point.
    ///
    /// Who has the port serves. Once that is the new generation, clients may have been told that their writes to it are
    /// done: nothing may turn it back any more, only the record is missing, and any failure is tried again.
    fn switch(&self, pair: &Generations, resumed: bool) -> Result<(), Halt> {
        self.control.enter("switching", 0);
        let (gap, used) = match self.instance.layout.mode {
            Mode::Single => self.switch_one(pair, resumed)?,
            Mode::Ha | Mode::Cluster => self.switch_nodes(pair, resumed)?,
        };
        failpoint::hit("restore.switched").map_err(Stop::from)?;
        let gap_us = gap.map(|gap| u64::try_from(gap.as_micros()).unwrap_or(u64::MAX));
        self.settle_succeeded(pair, gap_us, used)?;
        failpoint::hit("restore.settled").map_err(Stop::from)?;
        Ok(())
    }

    /// Moves the port of a single instance. Returns how long clients waited, where that is known, and what the data takes
    /// that was replaced.
    fn switch_one(&self, pair: &Generations, resumed: bool) -> Result<(Option<Duration>, u64), Halt> {
        let admin = instances::admin_password(self.app, &self.instance).map_err(Stop::from)?;
        let find = |id| {
            let directory = self.app.config.generation_dir(&self.instance.id, id);
            process::find(&directory, &admin).map_err(Stop::from)
        };
        let (old, new) = (find(&pair.old)?, find(&pair.new)?);
        let port = self.instance.port;
        if has_fixed_port(&self.instance.engine_version) {
            return self.switch_by_restart(pair, old.as_ref(), resumed);
        }
        let serving = match new.as_ref().filter(|_| resumed) {
            Some(new) if new.current_port().map_err(Stop::from)? == port => Some(new),
            _ => None,
        };
        let gap = match serving {
            Some(new) => {
                switch::run(&self.plan(old.as_ref(), new))
                    .map_err(Stop::from)?
                    .gap
            }
            None => {
                let serves = |old: &Engine| old.current_port().is_ok_and(|now| now == port);
                if resumed && old.as_ref().is_some_and(serves) {
                    // Clients have written to it all the while.
                    self.control.check("switch")?;
                }
                self.hand_over(pair, old.as_ref(), new)?
            }
        };
        let used = old.and_then(|engine| engine.used_memory().ok()).unwrap_or(0);
        Ok((gap, used))
    }

    /// As [`Self::switch_one`], of engines that cannot change their port.
    fn switch_by_restart(
        &self,
        pair: &Generations,
        old: Option<&Engine>,
        resumed: bool,
    ) -> Result<(Option<Duration>, u64), Halt> {
        if resumed && old.is_some() {
            // Clients have written to it all the while.
            self.control.check("switch")?;
        }
        let present = self.app.board.memory_of(&self.instance.id);
        let used = old.and_then(|old| old.used_memory().ok()).unwrap_or(present);
        let spec = |id| {
            Ok::<_, Error>(EngineSpec {
                port: self.instance.port,
                max_memory_bytes: instances::max_memory_bytes(&self.instance),
                ..instances::spec(self.app, &self.instance, id)?
            })
        };
        // Where an earlier attempt has ended the old one, the new one may have served clients and died since.
        let may_have_served = resumed && old.is_none();
        let halted = |error: Error, may_serve: bool| match may_have_served || may_serve {
            true => Halt::Stop(Stop::from(error)),
            false => Halt::Failed(error),
        };
        let (old, new) = spec(&pair.old)
            .and_then(|old| Ok((old, spec(&pair.new)?)))
            .map_err(|error| halted(error, resumed))?;
        let of_backup = self.backup.plain_bytes.max(self.backup.used_memory_bytes);
        let to_load = u64::try_from(of_backup).unwrap_or(0).max(used);
        let plan = RestartPlan {
            old: &old,
            new: &new,
            end_limit: limits::ENGINE_STOP + limits::time_for(used),
        };
        // It is as good as done: the job's deadline is past.
        let patient = Control::new(Some(limits::OPERATION_TIME_BASE + limits::time_for(to_load)));
        switch::run_by_restart(&plan, &patient)
            .map(|report| (report.gap, used))
            .map_err(|error| {
                let found = process::find(&new.directory, &new.admin_password);
                // One that lives and cannot be asked may be at work for a client.
                let may_serve = found.map_or(true, |engine| {
                    engine.is_some_and(|engine| engine.current_port().map_or(true, |now| now == new.port))
                });
                halted(error, may_serve)
            })
    }

    fn plan<'a>(&self, old: Option<&'a Engine>, new: &'a Engine) -> SwitchPlan<'a> {
        SwitchPlan {
            old,
            new,
            port: self.instance.port,
        }
    }

    /// Makes the new generation ready for clients and gives it the port. Returns how long clients waited, where that
    /// is known.
    fn hand_over(
        &self,
        pair: &Generations,
        old: Option<&Engine>,
        new: Option<Engine>,
    ) -> Result<Option<Duration>, Halt> {
        // It is as good as done: the job's deadline is past.
        let patient = Control::new(Some(limits::OPERATION_TIME_BASE));
        let new = match new {
            Some(engine) => engine,
            None if instances::holds_data(self.app, &self.instance, &pair.new) => {
                // It died after it was verified; its file is on disk.
                instances::bring_up_beside(self.app, &self.instance, &pair.new, &patient)?
            }
            None => {
                let context = "the new generation ended, and the instance has no persistence";
                return Err(Error::new(Kind::EngineExited, "switch", context).into());
            }
        };
        new.wait_loaded(&patient)?;
        new.promote(instances::max_memory_bytes(&self.instance))?;
        new.let_clients_in(&instances::clients(self.app, &self.instance)?)?;
        failpoint::hit("restore.promoted")?;
        switch::run(&self.plan(old, &new))
            .map(|report| report.gap)
            .map_err(|error| match new.current_port() {
                Ok(port) if port == self.instance.port => Halt::Stop(Stop::from(error)),
                _ => Halt::Failed(error),
            })
    }

    fn settle_succeeded(&self, pair: &Generations, gap_us: Option<u64>, used_bytes: u64) -> Result<(), Stop> {
        let now = Moment::now();
        let expires_at = now.plus_seconds(self.app.config.undo_keep_seconds);
        let used_bytes = i64::try_from(used_bytes).unwrap_or(0);
        settle(self.app, self.claim, |tx| {
            let id = &self.instance.id;
            backups::expire_generation(tx, &pair.new, now)?;
            if generation::retire(tx, &pair.old, now, expires_at)? {
                backups::insert_generation(tx, &self.instance.project_id, id, &pair.old, used_bytes, now)?;
            }
            for state in [State::Loading, State::Retired] {
                generation::transition(tx, &pair.new, state, State::Serving)?;
            }
            if let Some(undone) = &self.restore.undo_of {
                record::mark_undone(tx, undone, &self.restore.id)?;
            }
            record::succeed(tx, &self.restore.id, gap_us, now).map(drop)
        })
    }

    /// Why the restore was being given up when a crash came in between. The new generation may be half removed then:
    /// going forward would switch to what is left of it.
    fn was_given_up(&self) -> Option<GivenUp> {
        let intended = self.restore.target_state == TargetState::Switching;
        self.restore.given_up.clone().filter(|_| intended)
    }

    fn because_of(error: &Error) -> GivenUp {
        GivenUp {
            code: failure_code(error, true, true),
            why: engine::chain(error),
        }
    }

    /// The new data does not serve: the old data must, and the record says what is true.
    fn give_up(&self, given_up: &GivenUp) -> Result<Ended, Stop> {
        let seen = self.app.catalog.read(|tx| record::load(tx, &self.restore.id))?;
        let seen = seen.ok_or_else(|| Stop::Broken("a restore record is gone".to_owned()))?;
        let moved = seen.target_state != TargetState::Untouched;
        step(self.app, self.claim, |tx| {
            record::giving_up(tx, &self.restore.id, given_up)
        })?;
        // First, because it may have the port or the memory that the old one needs.
        if let Some(new) = &seen.new_generation_id
            && self.restore.method != Method::SwitchBack
        {
            beside::take_down_or_leave(self.app, &self.instance, new)?;
        }
        if let Some(kept) = &seen.new_generation_id
            && self.restore.method == Method::SwitchBack
            && has_fixed_port(&self.instance.engine_version)
        {
            self.put_to_rest(kept)?;
        }
        failpoint::hit("restore.new_removed")?;
        // The one that serves is the old one, until a restore has succeeded.
        let serving = self
            .app
            .catalog
            .read(|tx| generation::serving(tx, &self.instance.id))?;
        let mut back = Ok(());
        if let Some(old) = &serving
            && !defect::is_planted("old-data-not-brought-back")
        {
            for attempt in 1..=limits::ROLL_BACK_TRIES {
                back = self.bring_back(old);
                match &back {
                    Err(failed) if attempt < limits::ROLL_BACK_TRIES => {
                        tracing::warn!(restore.id = %self.restore.id, error = engine::chain(failed), "the old data does not serve yet; trying again");
                        std::thread::sleep(limits::ROLL_BACK_PAUSE);
                    }
                    _ => break,
                }
            }
        }
        failpoint::hit("restore.rolled_back")?;
        let state = match (&back, moved) {
            (Err(_), _) => TargetState::Unknown,
            (Ok(()), false) => TargetState::Untouched,
            (Ok(()), true) => TargetState::RolledBack,
        };
        let mut why = given_up.why.clone();
        if let Err(failed) = &back {
            why = format!(
                "{why}; and the old data does not serve: {}",
                engine::chain(failed)
            );
        }
        let code = given_up.code;
        let text = code.text();
        let labels = [("kind", "restore"), ("code", text.as_str())];
        self.app.counters.add(crate::metrics::FAILURES, &labels);
        let now = Moment::now();
        failpoint::hit("restore.before_fail")?;
        settle(self.app, self.claim, |tx| {
            if back.is_err() {
                use instance::Status;
                instance::record::transition(
                    tx,
                    &self.instance.id,
                    Status::Running,
                    Status::Error,
                    Some(&why),
                    now,
                )?;
            }
            record::fail(tx, &self.restore.id, code, &why, state, now).map(drop)
        })?;
        Ok(Ended::Failed(why))
    }

    /// Ends a kept generation that has no port and cannot be given one while it runs. Its files hold what it holds.
    fn put_to_rest(&self, kept: &GenerationId) -> Result<(), Stop> {
        let admin = instances::admin_password(self.app, &self.instance)?;
        let directory = self.app.config.generation_dir(&self.instance.id, kept);
        if let Some(engine) = process::find(&directory, &admin)?
            && engine.current_port()? == 0
        {
            engine.stop(limits::ENGINE_STOP)?;
        }
        Ok(())
    }

    fn remove_left_behind(&self) -> Result<(), Halt> {
        beside::remove_left_behind(self.app, self.claim, &self.instance, self.control)
    }

    /// Lets the old generation serve, whatever was done to it.
    fn bring_back(&self, old: &Generation) -> Result<(), Error> {
        if !nodes::hold_data(self.app, &self.instance, old) {
            let context = "its engine ended, and the instance has no persistence";
            return Err(Error::new(Kind::EngineExited, "bring the old data back", context));
        }
        // Out of time or told to stop is no reason to leave the instance down.
        let patient = Control::new(Some(limits::OPERATION_TIME_BASE));
        nodes::bring_up(self.app, &self.instance, old, &patient)
    }

    /// Writes the pair of generations and that the work has begun.
    fn begin(&self, retired: Option<GenerationId>) -> Result<Generations, Halt> {
        let now = Moment::now();
        let fresh = retired.is_none();
        let new = retired.unwrap_or_else(GenerationId::random);
        let serving = self
            .app
            .catalog
            .read(|tx| generation::serving(tx, &self.instance.id))
            .map_err(Stop::from)?
            .ok_or_else(|| Stop::Broken("a running instance has no serving generation".to_owned()))?;
        let layout = self.instance.layout;
        let begun = step(self.app, self.claim, |tx| {
            if fresh {
                match instance::command::places_beside(self.app, tx, layout, &serving.nodes) {
                    Ok(nodes) => generation::insert(tx, &new, &self.instance.id, &nodes, now)?,
                    Err(Refusal::Catalog(error)) => return Err(error),
                    Err(_) => return Ok(None),
                }
            }
            let old = Some(&serving.id);
            record::begin(tx, &self.restore.id, &new, old, self.restore.method, now).map(Some)
        })?;
        match begun {
            Some(true) => {}
            Some(false) => return Err(Stop::ClaimLost.into()),
            None => {
                let context = "the range has too few free ports for a second generation";
                return Err(Error::new(Kind::PortTaken, "load beside", context).into());
            }
        }
        failpoint::hit("restore.begun").map_err(Stop::from)?;
        let old = serving.id;
        Ok(Generations { old, new })
    }

    /// Reads the whole backup, validates it to its last byte and places it for the new generation to load.
    fn place(&self, new: &GenerationId) -> Result<Expectation, Halt> {
        self.with_archive(|archive| {
            let identity = archive_identity(self.app, &archive)?;
            let total = archive.manifest().plain_bytes;
            let cut = match has_same_shards(self.instance.layout, archive.manifest()) {
                true => None,
                false => Some(self.cut(&archive)?),
            };
            self.control.enter("validating", total);
            instances::prepare_directory(self.app, &self.instance.id)?;
            let spec = instances::spec(self.app, &self.instance, new)?;
            let expectation = sideload::place(
                &spec.directory,
                Form::of(&spec),
                spec.run_as,
                self.control,
                |push| match &cut {
                    None => archive.read(&identity, self.control, WORKERS_ALONE, push),
                    Some(shards) => shards.read(0, self.control, push),
                },
            )?;
            if let Some(shards) = &cut {
                shards.check(&expectation.report.census)?;
            }
            Ok(expectation)
        })
    }

    /// Compares what the new generation loaded with what the backup holds.
    fn verify(&self, engine: &Engine, expectation: &Expectation) -> Result<(), Halt> {
        self.enter(TargetState::Verifying)?;
        self.control.enter("verifying", 0);
        let seen = verify::verify(engine, expectation, self.level, self.control)?;
        step(self.app, self.claim, |tx| {
            record::verified(
                tx,
                &self.restore.id,
                seen.keys_loaded,
                seen.keys_compared,
                expectation.expired_keys,
            )
        })?;
        Ok(())
    }

    /// A validated backup of the present data before what cannot be undone.
    fn take_safety_backup(&self) -> Result<(), Halt> {
        let remark = format!("before {}", self.restore.name);
        let storage = step(self.app, self.claim, |tx| {
            storages::default_of(tx, &self.instance.project_id)
        })?;
        let made = |tx: &Tx<'_>, id: &BackupId| match self.restore.method {
            Method::Replay => self.saved(tx, id).and_then(|()| {
                let expires_at = Moment::now().plus_seconds(limits::SAFETY_KEPT_SECONDS);
                run_record::keep_until(tx, id, expires_at)
            }),
            _ => Ok(()),
        };
        let safety = Safety {
            instance: &self.instance,
            remark: &remark,
            storage,
            forked: None,
            made: &made,
        };
        beside::safety_backup(self.app, self.claim, safety, self.control).map(drop)
    }

    fn enter(&self, state: TargetState) -> Result<(), Halt> {
        let running = step(self.app, self.claim, |tx| {
            record::enter(tx, &self.restore.id, state, Moment::now())
        })?;
        if !running {
            self.check_wanted()?;
            return Err(Stop::ClaimLost.into());
        }
        Ok(())
    }

    /// Fails where somebody asked for the restore to be given up, in this process or before a crash.
    fn check_wanted(&self) -> Result<(), Halt> {
        let cancelled = self
            .app
            .catalog
            .read(|tx| self.is_to_be_cancelled(tx))
            .map_err(Stop::from)?;
        match cancelled {
            true => Err(Error::new(Kind::Cancelled, "restore", "it was cancelled").into()),
            false => Ok(()),
        }
    }

    fn report(&self, seen: &engine::Progress) {
        let has_nodes = self.instance.layout.mode != Mode::Single;
        // Where each phase begins and how much of the whole it is, in hundredths of a percent: loading is the
        // engine's single thread and takes most of the time. What is read once is validated before that.
        let (base, span) = match seen.phase {
            "proving" | "cutting" => (100, 400),
            "validating" => (100, 2900),
            "loading" if self.is_read_twice() || has_nodes => (500, 8000),
            "loading" => (3000, 5500),
            "verifying" | "joining" => (8500, 1200),
            "switching" => (9800, 0),
            _ => (0, 0),
        };
        self.told(seen, base, span, self.control);
    }

    /// Writes down how far a phase is that begins at `base` and is `span` of the whole.
    fn told(&self, seen: &engine::Progress, base: u64, span: u64, control: &Control) {
        let share = (seen.bytes_done.min(seen.bytes_total) * span)
            .checked_div(seen.bytes_total)
            .unwrap_or(0);
        let progress = i64::try_from(base + share).unwrap_or(0);
        let written = step(self.app, self.claim, |tx| match self.is_import {
            // Of tasks nobody is told how far they are.
            true => Ok(()),
            false => record::progress(tx, &self.restore.id, progress, seen, Moment::now()),
        });
        // Somebody may have asked another host to give it up.
        let is_unwanted = || self.app.catalog.is_shared() && self.check_wanted().is_err();
        // What puts a target back goes on.
        let may_be_cancelled = std::ptr::eq(control, self.control);
        if matches!(written, Err(Stop::ClaimLost)) || (may_be_cancelled && is_unwanted()) {
            control.cancel();
        }
    }
}

/// Threads that decode segments: one is three times as fast as an engine loads, more would only hold buffers.
const DECODE_WORKERS: usize = 1;
/// Threads that hash stored segments, or fetch and decode them, while no engine loads. One would wait for each answer of a
/// remote store.
const WORKERS_ALONE: usize = 2;

/// The private half of the key that an archive was sealed to: its project's, the present one or one from before.
///
/// # Errors
/// [`Kind::Key`] where there is none.
pub fn archive_identity(app: &App, archive: &engine::Archive) -> Result<Identity, Error> {
    let manifest = archive.manifest();
    let unknown = || {
        let context = format!("{} is no key of the archive's project", manifest.recipient);
        Error::new(Kind::Key, "find key", context)
    };
    let project = ProjectId::parse(&manifest.project).ok_or_else(unknown)?;
    let sealed = app
        .catalog
        .read(|tx| identity::identity_for(tx, &project, &manifest.recipient))
        .map_err(instances::catalog_failed)?
        .ok_or_else(unknown)?;
    let text = app
        .vault
        .master
        .open(&format!("project.identity:{project}"), &sealed)?;
    Identity::parse(&text)
}
