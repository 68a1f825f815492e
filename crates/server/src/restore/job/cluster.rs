//! Restores of generations of several nodes: the steps of ADR 30.

use std::time::Duration;

use engine::switch;
use engine::{Control, Error, Kind, failpoint};

use super::Work;
use super::beside::{Generations, Halt};
use crate::app::App;
use crate::ids::GenerationId;
use crate::instance::generation::{self, Generation};
use crate::instance::layout::Mode;
use crate::instance::{Instance, nodes, watched};
use crate::jobs::worker::{Stop, step};
use crate::limits;
use crate::restore::progress_record;
use crate::restore::record::{self, TargetState};

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
        let loaded = self.load_shards(&shards, &new, |verified| {
            step(self.app, self.claim, |tx| {
                progress_record::shards_verified(tx, &self.restore.id, verified)
            })
        })?;
        step(self.app, self.claim, |tx| {
            record::verified(
                tx,
                &self.restore.id,
                loaded.applied,
                loaded.compared,
                loaded.expired,
            )
        })?;
        self.enter(TargetState::Verifying)?;
        self.control.enter("joining", 0);
        nodes::join(self.app, &self.instance, &new, self.control)?;
        failpoint::hit("restore.joined")?;
        for syncing in loaded.durable {
            syncing.wait()?;
        }
        Ok(pair)
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
        let side = Side {
            app: self.app,
            instance: &self.instance,
            generation: new,
        };
        side.make_ready(self.control)?;
        Ok(pair)
    }

    /// Moves the clients of all nodes. As [`Work::switch_one`].
    pub(super) fn switch_nodes(
        &self,
        pair: &Generations,
        resumed: bool,
    ) -> Result<(Option<Duration>, u64), Halt> {
        let side = |id| {
            Ok::<_, Stop>(Side {
                app: self.app,
                instance: &self.instance,
                generation: self.generation(id)?,
            })
        };
        let (old, new) = (side(&pair.old)?, side(&pair.new)?);
        // It is as good as done: the job's deadline is past.
        let patient = Control::new(Some(limits::OPERATION_TIME_BASE));
        if resumed && new.serves()? {
            new.bring_back(&patient)?;
        } else {
            if resumed && old.serves()? {
                // Clients have written to it all the while.
                self.control.check("switch")?;
            }
            new.make_ready(&patient)?;
            failpoint::hit("restore.promoted")?;
        }
        old.forget(&patient)?;
        hand_over(&old, &new)
    }

    fn generation(&self, id: &GenerationId) -> Result<Generation, Stop> {
        let found = self.app.catalog.read(|tx| generation::find(tx, id))?;
        found.ok_or_else(|| Stop::Broken("a restore names an unknown generation".to_owned()))
    }
}

/// A generation of an instance with several nodes, and what the instance is while it serves.
pub(crate) struct Side<'a> {
    pub(crate) app: &'a App,
    pub(crate) instance: &'a Instance,
    pub(crate) generation: Generation,
}

impl Side<'_> {
    /// Whether it has its clients' ports, or one of them.
    pub(crate) fn serves(&self) -> Result<bool, Stop> {
        Ok(switch::serves(&self.living()?)?)
    }

    fn living(&self) -> Result<Vec<switch::Place>, Stop> {
        Ok(nodes::switched(self.app, self.instance, &self.generation)?)
    }

    /// Every node of one that is to serve, without its client port, and all of one mind.
    pub(crate) fn make_ready(&self, control: &Control) -> Result<(), Halt> {
        if !nodes::hold_data(self.app, self.instance, &self.generation) {
            let context = "a node of the generation ended, and the instance has no persistence";
            return Err(Error::new(Kind::EngineExited, "switch", context).into());
        }
        nodes::bring_up_beside(self.app, self.instance, &self.generation, control)?;
        if self.instance.layout.mode == Mode::Cluster {
            nodes::wait_agreed(self.app, self.instance, &self.generation, control)?;
        }
        Ok(())
    }

    /// Clients of it may have been told that their writes are done: what is left of it is brought back.
    pub(crate) fn bring_back(&self, control: &Control) -> Result<(), Stop> {
        Ok(nodes::bring_up_beside(
            self.app,
            self.instance,
            &self.generation,
            control,
        )?)
    }

    /// Its Sentinels, where it has them, watch it no more.
    pub(crate) fn forget(&self, control: &Control) -> Result<(), Halt> {
        match self.instance.layout.mode {
            Mode::Ha => Ok(watched::forget(
                self.app,
                self.instance,
                &self.generation,
                control,
            )?),
            Mode::Single | Mode::Cluster => Ok(()),
        }
    }
}

/// Moves the clients from all nodes of the one to all of the other. Returns how long they waited, where that is known, and what
/// the data takes that was replaced.
pub(crate) fn hand_over(old: &Side<'_>, new: &Side<'_>) -> Result<(Option<Duration>, u64), Halt> {
    // Read as late as this: who was promoted meanwhile has the clients' address.
    let (olds, news) = (old.living()?, new.living()?);
    let report = switch::run_together(&olds, &news).map_err(|error| match switch::serves(&news) {
        Ok(false) => Halt::Failed(error),
        Ok(true) | Err(_) => Halt::Stop(Stop::from(error)),
    })?;
    let instance = new.instance;
    if instance.layout.mode == Mode::Ha
        && let Err(error) = watched::let_watch_serving(new.app, instance, &new.generation)
    {
        tracing::warn!(instance.id = %instance.id, error = engine::chain(&error), "a Sentinel does not watch the new generation yet");
    }
    let used = |place: &switch::Place| match place.engine.is_primary(limits::GLANCE) {
        Ok(true) => place.engine.used_memory().unwrap_or(0),
        Ok(false) | Err(_) => 0,
    };
    Ok((report.gap, olds.iter().map(used).sum()))
}
