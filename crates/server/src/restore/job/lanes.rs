//! Shards of a new generation that load at the same time (ADR 49).

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::SyncSender;

use engine::process::EngineSpec;
use engine::sideload::{self, Expectation, Syncing};
use engine::verify::{self, VerifyLevel, VerifyReport};
use engine::{Control, Error, Kind, failpoint};

use super::beside::{Beside, Halt, Loaded};
use super::shards::Shards;
use crate::instance::generation::Generation;
use crate::instance::nodes;
use crate::jobs::worker::Stop;

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
struct Verified {
    syncing: Syncing,
    seen: VerifyReport,
    expectation: Expectation,
}

impl Lanes<'_> {
    fn run(&self, tell: &SyncSender<(usize, Result<Verified, Error>)>) {
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

    fn load(&self, shard: usize, spec: &EngineSpec) -> Result<Verified, Error> {
        let (engine, expectation) = sideload::load(spec, self.control, |push| {
            self.shards.read(shard, self.control, |piece| {
                self.check()?;
                push(piece)
            })
        })?;
        failpoint::hit("restore.shard_loaded")?;
        let syncing = sideload::sync_behind(engine.directory())?;
        let seen = verify::verify(&engine, &expectation, self.level, self.control)?;
        Ok(Verified {
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

impl Beside<'_> {
    /// Lets the first node of each shard load its file, and compares what it holds with that, some at the same time.
    /// `verified` is told keys and bytes of all shards before the first that is still at it.
    pub(crate) fn load_shards(
        &self,
        shards: &Shards,
        new: &Generation,
        verified: impl Fn(&[(u64, u64)]) -> Result<(), Stop>,
    ) -> Result<Loaded, Halt> {
        self.control.enter("loading", shards.plain_bytes());
        let specs = nodes::firsts(new)
            .map(|place| nodes::standby_spec(self.app, &self.instance, new, place))
            .collect::<Result<Vec<_>, _>>()?;
        let mut sizes = vec![None; specs.len()];
        let lanes = Lanes {
            specs,
            shards,
            level: self.level,
            control: self.control,
            next: AtomicUsize::new(0),
            has_failed: AtomicBool::new(false),
        };
        let mut all = Loaded::default();
        let mut census = rdb::Census::default();
        let (tell, told) = std::sync::mpsc::sync_channel(shards.lanes);
        std::thread::scope(|scope| {
            for _ in 0..shards.lanes {
                let (tell, lanes) = (tell.clone(), &lanes);
                scope.spawn(move || lanes.run(&tell));
            }
            drop(tell);
            let mut ended = Ok(());
            for (shard, loaded) in told {
                let added = loaded.map_err(Halt::from).and_then(|loaded| {
                    let (seen, report) = (loaded.seen, &loaded.expectation.report);
                    all.applied += seen.keys_loaded;
                    all.compared += seen.keys_compared;
                    all.expired += loaded.expectation.expired_keys;
                    census.absorb(&report.census);
                    all.durable.push(loaded.syncing);
                    sizes[shard] = Some((seen.keys_loaded, report.bytes));
                    verified(&sizes.iter().map_while(|size| *size).collect::<Vec<_>>())?;
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
        shards.check(&census)?;
        Ok(all)
    }
}
