//! Restores of generations of several nodes: the steps of ADR 30.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use engine::process::EngineSpec;
use engine::sideload::{self, Expectation};
use engine::switch;
use engine::verify::{self, VerifyLevel, VerifyReport};
use engine::{Control, Error, Kind, failpoint};

use super::shards::Shards;
use super::{Generations, Halt, Work};
use crate::ids::GenerationId;
use crate::instance::generation::{self, Generation};
use crate::instance::layout::Mode;
use crate::instance::{nodes, watched};
use crate::jobs::worker::{Stop, step};
use crate::limits;
use crate::restore::progress_record;
use crate::restore::record::{self, TargetState};

/// Loads that go on at the same time: each takes the next shard until none is left.
struct Lanes<'a> {
    specs: Vec<EngineSpec>,
    shards: &'a Shards,
    level: VerifyLevel,
    control: &'a Control,
    next: AtomicUsize,
    has_failed: AtomicBool,
}

/// A shard that is loaded and verified.
struct Loaded {
    syncing: sideload::Syncing,
    seen: VerifyReport,
    expectation: Expectation,
}

impl Lanes<'_> {
    fn run(&self, tell: &SyncSender<(usize, Result<Loaded, Error>)>) {
        loop {
            let shard = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(spec) = self.specs.get(shard) else {
                return;
            };
            let loaded = self.check().and_then(|()| self.load(shard, spec));
            let is_over = loaded.is_err();
            // Who listens does so until all have ended.
            let _listening = tell.send((shard, loaded));
            if is_over {
                return;
            }
        }
    }

    fn load(&self, shard: usize, spec: &EngineSpec) -> Result<Loaded, Error> {
        let (engine, expectation) = sideload::load(spec, self.control, |push| {
            self.shards.read(shard, self.control, |piece| {
                self.check()?;
                push(piece)
            })
        })?;
        failpoint::hit("restore.shard_loaded")?;
        let syncing = sideload::sync_behind(engine.directory())?;
        let seen = verify::verify(&engine, &expectation, self.level, self.control)?;
        Ok(Loaded {
            syncing,
            seen,
            expectation,
        })
    }

    /// An error where another shard has failed.
    fn check(&self) -> Result<(), Error> {
        match self.has_failed.load(Ordering::Relaxed) {
            true => Err(Error::new(Kind::Cancelled, "load", "another shard has failed")),
            false => Ok(()),
        }
    }
}

/// What all shards hold that are loaded and verified.
#[derive(Default)]
struct Sum {
    applied: u64,
    compared: u64,
    expired: u64,
    census: rdb::Census,
    durable: Vec<sideload::Syncing>,
    /// Keys and bytes of each.
    verified: Vec<Option<(u64, u64)>>,
}

impl Sum {
    fn add(&mut self, shard: usize, loaded: Loaded) {
        let (seen, report) = (loaded.seen, &loaded.expectation.report);
        self.applied += seen.keys_loaded;
        self.compared += seen.keys_compared;
        self.expired += loaded.expectation.expired_keys;
        self.census.absorb(&report.census);
        self.durable.push(loaded.syncing);
        self.verified[shard] = Some((seen.keys_loaded, report.bytes));
    }

    /// Those before the first one that is still at it.
    fn in_order(&self) -> Vec<(u64, u64)> {
        self.verified.iter().map_while(|shard| *shard).collect()
    }
}

impl Work<'_> {
    /// The new generation beside the old one: every shard loaded and verified, and a cluster made of them that only lacks
    /// the client ports.
    pub(super) fn prepare_nodes_beside(&self) -> Result<Generations, Halt> {
        self.remove_left_behind()?;
        self.make_room()?;
        let pair = self.begin(None)?;
        let shards = self.proven_shards()?;
        self.enter(TargetState::Loading)?;
        let new = self.generation(&pair.new)?;
        nodes::prepare_beside(self.app, &self.instance, &new)?;
        let durable = self.load_shards(&shards, &new)?;
        self.enter(TargetState::Verifying)?;
        self.control.enter("joining", 0);
        nodes::join(self.app, &self.instance, &new, self.control)?;
        failpoint::hit("restore.joined")?;
        for syncing in durable {
            syncing.wait()?;
        }
        Ok(pair)
    }

    /// Lets the first node of each shard load its file, and compares what it holds with that, some at the same time.
    fn load_shards(&self, shards: &Shards, new: &Generation) -> Result<Vec<sideload::Syncing>, Halt> {
        self.control.enter("loading", shards.plain_bytes());
        let firsts = nodes::firsts(new);
        let specs = firsts
            .map(|place| nodes::standby_spec(self.app, &self.instance, new, place))
            .collect::<Result<Vec<_>, _>>()?;
        let lanes = Lanes {
            specs,
            shards,
            level: self.level(),
            control: self.control,
            next: AtomicUsize::new(0),
            has_failed: AtomicBool::new(false),
        };
        let mut sum = Sum {
            verified: vec![None; lanes.specs.len()],
            ..Sum::default()
        };
        let (tell, told) = std::sync::mpsc::sync_channel(shards.lanes);
        std::thread::scope(|scope| {
            for _ in 0..shards.lanes {
                let tell = tell.clone();
                let lanes = &lanes;
                scope.spawn(move || lanes.run(&tell));
            }
            drop(tell);
            let mut ended = Ok(());
            for (shard, loaded) in told {
                let added = loaded.map_err(Halt::from).and_then(|loaded| {
                    sum.add(shard, loaded);
                    step(self.app, self.claim, |tx| {
                        progress_record::shards_verified(tx, &self.restore.id, &sum.in_order())
                    })?;
                    Ok(failpoint::hit("restore.shard_verified")?)
                });
                if added.is_err() {
                    lanes.has_failed.store(true, Ordering::Relaxed);
                    // The others only tell that they have stopped.
                    ended = ended.and(added);
                }
            }
            ended
        })?;
        shards.check(&sum.census)?;
        step(self.app, self.claim, |tx| {
            record::verified(tx, &self.restore.id, sum.applied, sum.compared, sum.expired)
        })?;
        Ok(sum.durable)
    }

    /// The retired generation itself: alive, or started again from its directories.
    pub(super) fn prepare_nodes_retired(&self) -> Result<Generations, Halt> {
        let retired = self
            .backup
            .generation_id
            .clone()
            .ok_or_else(|| Stop::Broken("a switch back without a generation".to_owned()))?;
        let pair = self.begin(Some(retired))?;
        let new = self.generation(&pair.new)?;
        self.control.enter("loading", 0);
        self.bring_up_beside(&new, self.control)?;
        Ok(pair)
    }

    /// Every node of a generation that is to serve, without its client port, and all of one mind.
    fn bring_up_beside(&self, new: &Generation, control: &Control) -> Result<(), Halt> {
        if !nodes::hold_data(self.app, &self.instance, new) {
            let context = "a node of the generation ended, and the instance has no persistence";
            return Err(Error::new(Kind::EngineExited, "switch", context).into());
        }
        nodes::bring_up_beside(self.app, &self.instance, new, control)?;
        if self.instance.layout.mode == Mode::Cluster {
            nodes::wait_agreed(self.app, &self.instance, new, control)?;
        }
        Ok(())
    }

    /// Moves the clients of all nodes. As [`Work::switch_one`].
    pub(super) fn switch_nodes(
        &self,
        pair: &Generations,
        resumed: bool,
    ) -> Result<(Option<Duration>, u64), Halt> {
        let (old, new) = (self.generation(&pair.old)?, self.generation(&pair.new)?);
        let living = |generation| nodes::switched(self.app, &self.instance, generation).map_err(Stop::from);
        let olds = living(&old)?;
        let serves = |places: &[switch::Place]| switch::serves(places).map_err(Stop::from);
        // It is as good as done: the job's deadline is past.
        let patient = Control::new(Some(limits::OPERATION_TIME_BASE));
        if resumed && serves(&living(&new)?)? {
            // Clients may have been told that their writes are done: what is left of it is brought back.
            nodes::bring_up_beside(self.app, &self.instance, &new, &patient).map_err(Stop::from)?;
        } else {
            if resumed && serves(&olds)? {
                // Clients have written to it all the while.
                self.control.check("switch")?;
            }
            self.bring_up_beside(&new, &patient)?;
            failpoint::hit("restore.promoted")?;
        }
        let news = living(&new)?;
        if self.instance.layout.mode == Mode::Ha {
            watched::forget(self.app, &self.instance, &old, &patient)?;
        }
        // Read anew: who was promoted meanwhile has the clients' address.
        let olds = living(&old)?;
        let report = switch::run_together(&olds, &news).map_err(|error| match switch::serves(&news) {
            Ok(false) => Halt::Failed(error),
            Ok(true) | Err(_) => Halt::Stop(Stop::from(error)),
        })?;
        if self.instance.layout.mode == Mode::Ha
            && let Err(error) = watched::let_watch_serving(self.app, &self.instance, &new)
        {
            tracing::warn!(restore.id = %self.restore.id, error = engine::chain(&error), "a Sentinel does not watch the new generation yet");
        }
        let used = |place: &switch::Place| match place.engine.is_primary(limits::GLANCE) {
            Ok(true) => place.engine.used_memory().unwrap_or(0),
            Ok(false) | Err(_) => 0,
        };
        Ok((report.gap, olds.iter().map(used).sum()))
    }

    fn generation(&self, id: &GenerationId) -> Result<Generation, Stop> {
        let found = self.app.catalog.read(|tx| generation::find(tx, id))?;
        found.ok_or_else(|| Stop::Broken("a restore names an unknown generation".to_owned()))
    }
}
