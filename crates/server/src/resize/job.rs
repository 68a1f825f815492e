//! The job that changes the nodes of an instance: read [`run`] first.

use std::sync::Mutex;
use std::time::Duration;

use engine::follow::{Follower, Following};
use engine::process::Engine;
use engine::psync::Forked;
use engine::verify::VerifyLevel;
use engine::{Control, Endpoint, Error, Kind, cluster, failpoint};

use super::record::{self, Resize, Status};
use crate::app::App;
use crate::backup::record as backups;
use crate::backup::run_record;
use crate::catalog::Tx;
use crate::ids::{BackupId, GenerationId, Moment, ResizeId};
use crate::instance::generation::{self, Generation, State};
use crate::instance::job as instances;
use crate::instance::layout::Mode;
use crate::instance::{self, Instance, nodes, watched};
use crate::jobs::Claim;
use crate::jobs::worker::{Ended, Stop, begun_too_often, settle, step, with_progress};
use crate::limits;
use crate::refusal::Refusal;
use crate::restore::job::beside::{
    Beside, Halt, Safety, remove_left_behind, safety_backup, take_down_or_leave,
};
use crate::restore::job::cluster::{Side, hand_over};

/// A switch may not begin when writes have waited for longer: they go on before it could be over.
const HALTED_MAX: Duration = Duration::from_secs(5);

/// One resize at work.
struct Work<'a> {
    app: &'a App,
    claim: &'a Claim,
    control: &'a Control,
    resize: Resize,
    /// What it is until the switch.
    before: Instance,
    /// What it is from then on.
    after: Instance,
}

/// Gives the instance its new nodes, and settles with what is true then.
///
/// # Errors
/// [`Stop`]: nothing is settled, the job is taken up again.
pub fn run(app: &App, claim: &Claim, id: &ResizeId, control: &Control) -> Result<Ended, Stop> {
    let work = load(app, claim, id, control)?;
    failpoint::hit("resize.claimed")?;
    let attempt = with_progress(
        control,
        |seen| work.report(seen),
        || {
            if let Some(halted) = work.finish_switched()? {
                return work.settle_succeeded(halted);
            }
            work.check_wanted()?;
            control.check("resize")?;
            if let Some(error) = begun_too_often(claim) {
                return Err(error.into());
            }
            let prepared = work.prepare()?;
            let halted = work.switch(prepared)?;
            failpoint::hit("resize.switched").map_err(Stop::from)?;
            work.settle_succeeded(halted)
        },
    );
    match attempt {
        Ok(()) => Ok(Ended::Done),
        Err(Halt::Stop(stop)) => Err(stop),
        Err(Halt::Failed(error)) => match work.check_wanted() {
            Err(Halt::Failed(cancelled)) if error.kind == Kind::Cancelled => work.give_up(&cancelled),
            Err(Halt::Stop(stop)) => Err(stop),
            _ => work.give_up(&error),
        },
    }
}

fn load<'a>(app: &'a App, claim: &'a Claim, id: &ResizeId, control: &'a Control) -> Result<Work<'a>, Stop> {
    let missing = || Stop::Broken("a resize job without its rows".to_owned());
    app.catalog.read(|tx| {
        let resize = record::load(tx, id)?.ok_or_else(missing)?;
        let before = instance::record::load(tx, &claim.instance_id)?.ok_or_else(missing)?;
        let after = Instance {
            spec_code: resize.wanted.spec_code.clone(),
            capacity_mb: resize.wanted.capacity_mb,
            layout: resize.wanted.layout,
            ..before.clone()
        };
        Ok(Work {
            app,
            claim,
            control,
            resize,
            before,
            after,
        })
    })
}

/// What is ready for the switch.
struct Prepared {
    old: Generation,
    new: Generation,
    following: Following,
}

/// How long writes waited, where that is known.
type Waited = Option<Duration>;

impl Work<'_> {
    /// Finishes a switch that a crash cut off, where clients may have written to the new nodes already. `None`: they have not.
    fn finish_switched(&self) -> Result<Option<Waited>, Halt> {
        let (Status::Switching, Some(old), Some(new)) = (
            self.resize.status,
            &self.resize.old_generation_id,
            &self.resize.new_generation_id,
        ) else {
            return Ok(None);
        };
        let (old, new) = (
            self.side(&self.before, self.generation(old)?),
            self.side(&self.after, self.generation(new)?),
        );
        if !new.serves()? {
            return Ok(None);
        }
        // It is as good as done: the job's deadline is past.
        let patient = Control::new(Some(limits::OPERATION_TIME_BASE));
        let finish = || {
            new.bring_back(&patient)?;
            old.forget(&patient)?;
            hand_over(&old, &new)
        };
        match finish() {
            Ok(_) => Ok(Some(None)),
            Err(Halt::Failed(error) | Halt::Stop(Stop::Engine(error))) => Err(Stop::Engine(error).into()),
            Err(stop) => Err(stop),
        }
    }

    /// The new generation beside the old one: loaded with a backup of now, verified, its nodes one cluster or one primary with
    /// replicas; and what is written since the backup is on its way to it.
    fn prepare(&self) -> Result<Prepared, Halt> {
        let old = self
            .app
            .catalog
            .read(|tx| generation::serving(tx, &self.before.id))
            .map_err(Stop::from)?
            .ok_or_else(|| Stop::Broken("a running instance has no serving generation".to_owned()))?;
        self.tidy(&old)?;
        let primaries = self.primaries(&old)?;
        let followers = Mutex::new(Vec::new());
        let spool = self.app.config.spool_dir();
        let forked = Forked::new(|shard, replid, offset| {
            let primary = primaries
                .get(shard)
                .ok_or_else(|| Error::new(Kind::Mismatch, "follow writes", "the shards have changed"))?;
            let follower = Follower::attach(primary, replid, offset, &spool)?;
            followers
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner())
                .push(follower);
            failpoint::hit("resize.followed")
        });
        let remark = format!("before a change to {}", self.after.layout);
        let keep = |tx: &Tx<'_>, id: &BackupId| {
            let expires_at = Moment::now().plus_seconds(limits::SAFETY_KEPT_SECONDS);
            run_record::keep_until(tx, id, expires_at)
        };
        let safety = Safety {
            instance: &self.before,
            remark: &remark,
            storage: None,
            forked: Some(forked),
            made: &keep,
        };
        let backup = safety_backup(self.app, self.claim, safety, self.control)?;
        let beside = Beside {
            app: self.app,
            claim: self.claim,
            control: self.control,
            instance: self.after.clone(),
            backup,
            level: VerifyLevel::Full,
        };
        beside.make_room()?;
        let new = self.begin(&old)?;
        let shards = beside.proven_shards()?;
        nodes::prepare_beside(self.app, &self.after, &new)?;
        let loaded = beside.load_shards(&shards, &new, |_| Ok(()))?;
        self.control.enter("joining", 0);
        nodes::join(self.app, &self.after, &new, self.control)?;
        for syncing in loaded.durable {
            syncing.wait()?;
        }
        failpoint::hit("resize.joined")?;
        let mut targets = Vec::new();
        for place in nodes::firsts(&new) {
            let engine = nodes::find(self.app, &self.after, &new, place)?;
            targets
                .push(engine.ok_or_else(|| {
                    Error::new(Kind::EngineExited, "follow writes", "a new node has ended")
                })?);
        }
        let followers = followers
            .into_inner()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        Ok(Prepared {
            following: Following::new(followers, &targets)?,
            old,
            new,
        })
    }

    /// Lets clients write, where an earlier attempt stopped them, and removes what that left.
    fn tidy(&self, old: &Generation) -> Result<(), Halt> {
        for engine in nodes::living(self.app, &self.before, old)? {
            engine.control()?.run(&["CLIENT", "UNPAUSE"])?;
        }
        remove_left_behind(self.app, self.claim, &self.before, self.control)
    }

    /// The primaries of the generation that serves, in the order in which a capture takes its shards.
    fn primaries(&self, old: &Generation) -> Result<Vec<Endpoint>, Error> {
        match self.before.layout.mode {
            Mode::Single => Ok(vec![instances::serving(self.app, &self.before)?.endpoint()]),
            Mode::Ha => Ok(vec![
                watched::running(self.app, &self.before, old)?
                    .primary
                    .1
                    .endpoint(),
            ]),
            Mode::Cluster => {
                let mut found = Vec::new();
                let engines = nodes::serving_ones(self.app, &self.before)?;
                let gone = || {
                    Error::new(
                        Kind::EngineExited,
                        "find engine",
                        "a primary of the cluster is not running",
                    )
                };
                let mut node = engines.first().ok_or_else(gone)?.control()?;
                for shard in cluster::shards(&cluster::view(&mut node)?)? {
                    let is_primary =
                        |engine: &&Engine| engine.current_port().is_ok_and(|port| port == shard.port);
                    let primary = engines.iter().find(is_primary).ok_or_else(gone)?;
                    found.push(primary.endpoint());
                }
                Ok(found)
            }
        }
    }

    /// Writes the pair of generations and that the work has begun.
    fn begin(&self, old: &Generation) -> Result<Generation, Halt> {
        let now = Moment::now();
        let new = GenerationId::random();
        let begun = step(self.app, self.claim, |tx| {
            match instance::command::places_beside(self.app, tx, self.after.layout, &old.nodes) {
                Ok(nodes) => generation::insert(tx, &new, &self.before.id, &nodes, now)?,
                Err(Refusal::Catalog(error)) => return Err(error),
                Err(_) => return Ok(None),
            }
            record::begin(tx, &self.resize.id, (&old.id, &new), now).map(Some)
        })?;
        match begun {
            Some(true) => {}
            Some(false) => {
                self.check_wanted()?;
                return Err(Stop::ClaimLost.into());
            }
            None => {
                let context = "the range has too few free ports for a second generation";
                return Err(Error::new(Kind::PortTaken, "resize", context).into());
            }
        }
        failpoint::hit("resize.begun")?;
        Ok(self.generation(&new)?)
    }

    /// Lets the new generation catch up, stops writes, lets it have the last of them, and moves the clients.
    fn switch(&self, prepared: Prepared) -> Result<Waited, Halt> {
        let mut following = prepared.following;
        let (old, new) = (
            self.side(&self.before, prepared.old),
            self.side(&self.after, prepared.new),
        );
        self.control.enter("following", 0);
        following.catch_up(self.control)?;
        new.make_ready(self.control)?;
        old.forget(self.control)?;
        following.catch_up(self.control)?;
        if !step(self.app, self.claim, |tx| {
            record::intend_switch(tx, &self.resize.id, Moment::now())
        })? {
            self.check_wanted()?;
            return Err(Stop::ClaimLost.into());
        }
        failpoint::hit("resize.switch_intended")?;
        following.catch_up(self.control)?;
        self.control.enter("switching", 0);
        let halted = following.halt()?;
        if halted.waited() >= HALTED_MAX {
            let context = "the last writes took too long";
            return Err(Error::new(Kind::Deadline, "resize", context).into());
        }
        let waited = halted.waited();
        let (moved, _) = hand_over(&old, &new)?;
        Ok(moved.map(|gap| waited + gap))
    }

    fn settle_succeeded(&self, waited: Waited) -> Result<(), Halt> {
        let now = Moment::now();
        let waited_us = waited.map(|waited| u64::try_from(waited.as_micros()).unwrap_or(u64::MAX));
        settle(self.app, self.claim, |tx| {
            let id = &self.before.id;
            let new = record::load(tx, &self.resize.id)?.and_then(|resize| resize.new_generation_id);
            // What was retired before is of other nodes than the instance has now.
            for found in generation::existing(tx, id)? {
                if Some(&found.id) != new.as_ref() {
                    backups::expire_generation(tx, &found.id, now)?;
                    generation::transition(tx, &found.id, found.state, State::Removing)?;
                }
            }
            if let Some(new) = &new {
                generation::transition(tx, new, State::Loading, State::Serving)?;
            }
            instance::record::change_nodes(tx, id, &self.resize.wanted, now)?;
            record::succeed(tx, &self.resize.id, waited_us, now).map(drop)
        })?;
        failpoint::hit("resize.settled").map_err(Stop::from)?;
        Ok(())
    }

    /// The new nodes do not serve: the old ones must, and the record says why.
    fn give_up(&self, error: &Error) -> Result<Ended, Stop> {
        let (seen, serving) = self.app.catalog.read(|tx| {
            Ok::<_, crate::catalog::Error>((
                record::load(tx, &self.resize.id)?,
                generation::serving(tx, &self.before.id)?,
            ))
        })?;
        if let Some(new) = seen.and_then(|seen| seen.new_generation_id) {
            // First, because it may have a port that the old one needs.
            take_down_or_leave(self.app, &self.after, &new)?;
        }
        failpoint::hit("resize.new_removed")?;
        let patient = Control::new(Some(limits::OPERATION_TIME_BASE));
        let back = match &serving {
            Some(old) => nodes::bring_up(self.app, &self.before, old, &patient),
            None => Ok(()),
        };
        let mut why = engine::chain(error);
        if let Err(failed) = &back {
            why = format!("{why}; and the old nodes do not serve: {}", engine::chain(failed));
        }
        let now = Moment::now();
        failpoint::hit("resize.before_fail")?;
        settle(self.app, self.claim, |tx| {
            if back.is_err() {
                use instance::Status;
                let id = &self.before.id;
                instance::record::transition(tx, id, Status::Running, Status::Error, Some(&why), now)?;
            }
            record::fail(tx, &self.resize.id, &why, now).map(drop)
        })?;
        Ok(Ended::Failed(why))
    }

    fn check_wanted(&self) -> Result<(), Halt> {
        let cancelled = self
            .app
            .catalog
            .read(|tx| record::is_to_be_cancelled(tx, &self.resize.id))
            .map_err(Stop::from)?;
        match cancelled {
            true => Err(Error::new(Kind::Cancelled, "resize", "it was cancelled").into()),
            false => Ok(()),
        }
    }

    fn report(&self, seen: &engine::Progress) {
        let written = step(self.app, self.claim, |tx| {
            record::progress(tx, &self.resize.id, seen, Moment::now())
        });
        if let Err(Stop::ClaimLost) = written {
            self.control.cancel();
        }
    }

    fn side<'b>(&'b self, instance: &'b Instance, generation: Generation) -> Side<'b> {
        Side {
            app: self.app,
            instance,
            generation,
        }
    }

    fn generation(&self, id: &GenerationId) -> Result<Generation, Stop> {
        let found = self.app.catalog.read(|tx| generation::find(tx, id))?;
        found.ok_or_else(|| Stop::Broken("a resize names an unknown generation".to_owned()))
    }
}
