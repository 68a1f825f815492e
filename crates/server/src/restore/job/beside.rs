//! A generation beside the one that serves, which loads a backup: what restores and changes of the nodes have in common.

use engine::archive::Archive;
use engine::psync::Forked;
use engine::sideload::Syncing;
use engine::verify::VerifyLevel;
use engine::{Control, Error, Kind, failpoint};

use crate::app::App;
use crate::backup::job::{Capture, capture, reserve};
use crate::backup::quota_record as quotas;
use crate::backup::record::{self as backups, Backup};
use crate::backup::{place, quota};
use crate::catalog::{self, Tx};
use crate::ids::{BackupId, GenerationId, Moment, StorageId};
use crate::instance::generation::{self, State};
use crate::instance::job as instances;
use crate::instance::{Instance, nodes};
use crate::jobs::Claim;
use crate::jobs::worker::{Stop, failure_code, step};
use crate::restore::command::{available_memory, memory_needed};
use crate::storage;

/// Why an attempt ended without the new generation serving.
pub(crate) enum Halt {
    /// The data plane failed; the record is settled as failed.
    Failed(Error),
    /// Nothing is settled.
    Stop(Stop),
}

impl From<Error> for Halt {
    fn from(error: Error) -> Self {
        Halt::Failed(error)
    }
}

impl From<Stop> for Halt {
    fn from(stop: Stop) -> Self {
        Halt::Stop(stop)
    }
}

/// The two generations of a switch.
pub(crate) struct Generations {
    pub(crate) old: GenerationId,
    pub(crate) new: GenerationId,
}

/// A load beside.
pub(crate) struct Beside<'a> {
    pub(crate) app: &'a App,
    pub(crate) claim: &'a Claim,
    pub(crate) control: &'a Control,
    /// As it is once the new generation serves.
    pub(crate) instance: Instance,
    /// What is loaded.
    pub(crate) backup: Backup,
    /// How closely what was loaded is looked at.
    pub(crate) level: VerifyLevel,
}

/// What the first nodes of all shards loaded.
#[derive(Default)]
pub(crate) struct Loaded {
    pub(crate) applied: u64,
    pub(crate) compared: u64,
    pub(crate) expired: u64,
    /// Each must have ended before the switch.
    pub(crate) durable: Vec<Syncing>,
}

impl Beside<'_> {
    /// Retired generations give way where memory is short.
    pub(crate) fn make_room(&self) -> Result<(), Halt> {
        let needed = memory_needed(&self.backup, self.instance.layout);
        if available_memory() < needed {
            let existing = self
                .app
                .catalog
                .read(|tx| generation::existing(tx, &self.instance.id))
                .map_err(Stop::from)?;
            for retired in existing.iter().filter(|found| found.state == State::Retired) {
                take_down_or_leave(self.app, &self.instance, &retired.id)?;
            }
        }
        let free = available_memory();
        if free < needed {
            return Err(Error::new(
                Kind::Memory,
                "load beside",
                format!(
                    "a second generation needs {} MB, {} MB are free",
                    needed >> 20,
                    free >> 20
                ),
            )
            .into());
        }
        Ok(())
    }

    /// Does `work` with the backup's archive, or with its copy where the archive is not whole.
    pub(super) fn with_archive<T>(&self, work: impl FnMut(Archive) -> Result<T, Halt>) -> Result<T, Halt> {
        let wanted = || self.control.check("open backup");
        let is_of_the_place =
            |halt: &Halt| matches!(halt, Halt::Failed(error) if place::is_of_the_place(error));
        place::with(self.app, &self.backup, None, &wanted, is_of_the_place, work)
    }
}

/// Which safety backup is made.
pub(crate) struct Safety<'a> {
    pub(crate) instance: &'a Instance,
    pub(crate) remark: &'a str,
    /// Where it goes.
    pub(crate) storage: Option<StorageId>,
    /// Who is told when a node has forked.
    pub(crate) forked: Option<Forked<'a>>,
    /// What else is written with its success.
    pub(crate) made: &'a dyn Fn(&Tx<'_>, &BackupId) -> Result<(), catalog::Error>,
}

/// A validated backup of the present data, before what cannot be undone, or to be loaded beside.
///
/// # Errors
/// What the data plane says; the record of the backup has failed then.
pub(crate) fn safety_backup(
    app: &App,
    claim: &Claim,
    safety: Safety<'_>,
    control: &Control,
) -> Result<Backup, Halt> {
    let Safety {
        instance,
        remark,
        storage,
        forked,
        made: also,
    } = safety;
    let now = Moment::now();
    let (id, reserved) = step(app, claim, |tx| {
        let id = backups::insert_waiting(
            tx,
            &instance.project_id,
            &instance.id,
            backups::Kind::Safety,
            backups::Format::Rdb,
            Some(remark),
            now,
        )?;
        let bytes = quotas::estimate(tx, &instance.id, app.board.memory_of(&instance.id))?;
        let reserved = quotas::reserve(tx, &instance.project_id, &id, bytes)?;
        if let Err(exceeded) = &reserved {
            backups::fail(tx, &id, backups::FailureCode::NoStore, &exceeded.to_string(), now)?;
        }
        Ok((id, reserved))
    })?;
    if let Err(exceeded) = reserved {
        return Err(Halt::Failed(quota::refused(&exceeded)));
    }
    let prefix = format!("{}/{}/{}/{}", instance.project_id, instance.id, id, claim.fence);
    let load = |tx: &Tx<'_>| backups::load(tx, &id);
    let missing = || Stop::Broken("a safety backup has no row".to_owned());
    let backup = step(app, claim, |tx| {
        backups::begin(tx, &id, &prefix, (storage.as_ref(), &app.host), now)?;
        load(tx)
    })?
    .ok_or_else(missing)?;
    let made = storage::open(app, backup.storage_id.as_ref()).and_then(|store| {
        let reserve = |bytes| reserve(app, claim, instance, &id, bytes);
        quota::metered(&store, backup.reserved_bytes, reserve, |store| {
            let into = Capture {
                store,
                prefix: &prefix,
                claim,
                forked,
            };
            capture(app, instance, &backup, &into, control)
        })
    });
    let now = Moment::now();
    let backup = step(app, claim, |tx| {
        match &made {
            Ok(finished) => {
                also(tx, &id)?;
                backups::succeed(tx, &id, finished, now)?
            }
            Err(error) => backups::fail(
                tx,
                &id,
                failure_code(error, true, false),
                &engine::chain(error),
                now,
            )?,
        };
        load(tx)
    })?;
    made?;
    failpoint::hit("restore.safety_taken")?;
    Ok(backup.ok_or_else(missing)?)
}

/// Removes generations that an earlier attempt, or one that was never settled, began to fill; `now`: what the instance is
/// until the switch.
pub(crate) fn remove_left_behind(
    app: &App,
    claim: &Claim,
    now: &Instance,
    control: &Control,
) -> Result<(), Halt> {
    step(app, claim, |tx| {
        backups::fail_interrupted_safety(tx, &now.id, Moment::now())
    })?;
    let existing = app
        .catalog
        .read(|tx| generation::existing(tx, &now.id))
        .map_err(Stop::from)?;
    for left in existing
        .iter()
        .filter(|left| matches!(left.state, State::Loading | State::Removing))
    {
        take_down_or_leave(app, now, &left.id)?;
    }
    // An earlier attempt may have stopped the old generation.
    if let Some(serving) = existing.iter().find(|found| found.state == State::Serving) {
        nodes::bring_up(app, now, serving, control)?;
    }
    Ok(())
}

/// Removes a generation that is of no use; what does not go now is left to the reconciler, which goes on trying.
pub(crate) fn take_down_or_leave(app: &App, instance: &Instance, id: &GenerationId) -> Result<(), Stop> {
    match instances::take_down(app, instance, id) {
        Err(Stop::Engine(error)) => {
            tracing::warn!(instance.id = %instance.id, generation.id = %id, error = engine::chain(&error), "a generation does not go");
            Ok(())
        }
        other => other,
    }
}
