//! What an operator does about hosts.

use anyhow::Context as _;

use super::record::{self, Host};
use crate::app::App;
use crate::backup::record::{self as backups, FailureCode};
use crate::catalog::{self, Tx};
use crate::ids::{BackupId, InstanceId, Moment, ResizeId, RestoreId};
use crate::instance::Status;
use crate::instance::record as instances;
use crate::jobs::{JobKind, queue};
use crate::resize::record as resizes;
use crate::restore::migration::record as migrations;
use crate::restore::record::{self as restores, TargetState};

/// What is told to whom it concerns.
const WHY: &str = "its node was forgotten: restore a backup into a new instance, and delete this one";

/// What was given up with a host.
#[derive(Debug)]
pub struct Forgotten {
    /// The host.
    pub host: Host,
    /// Instances whose engines were its processes.
    pub instances: usize,
    /// Jobs of these that had not ended.
    pub jobs: usize,
}

/// Gives a host up that is lost: what it had begun has failed, its instances have nobody who looks after them, and can be deleted.
/// Where it is only away, it takes up again what was not deleted when it is back.
///
/// # Errors
/// There is no such host; it is there, or we are it.
pub fn forget(app: &App, name: &str, now: Moment) -> anyhow::Result<Forgotten> {
    app.catalog.write(|tx| {
        let host = record::all(tx)?
            .into_iter()
            .find(|host| host.name == name || host.id.as_str() == name)
            .with_context(|| format!("there is no node {name}: `cachekeep node list` shows all"))?;
        anyhow::ensure!(
            host.lost_at < tx.clock()?,
            "the node {name} is there: stop it first, and wait until `cachekeep node list` shows that it is lost"
        );
        let unsettled = queue::unsettled_of(tx, &host.id)?;
        for (instance, kind, subject) in &unsettled {
            // Whoever is there goes on with it.
            if *kind == JobKind::Delete {
                continue;
            }
            queue::revoke_active(tx, instance, now)?;
            give_up(tx, instance, *kind, subject.as_deref(), now)?;
        }
        backups::fail_interrupted_safety_of(tx, &host.id, now)?;
        let of_host = instances::living_on(tx, &host.id)?;
        for instance in &of_host {
            // It may have been shown as lost already: why is another thing now.
            for from in [Status::Running, Status::Error] {
                instances::transition(tx, &instance.id, from, Status::Error, Some(WHY), now)?;
            }
        }
        record::forget(tx, &host.id)?;
        Ok(Forgotten {
            instances: of_host.len(),
            jobs: unsettled.len(),
            host,
        })
    })
}

/// Settles what a job was about that nobody will go on with.
fn give_up(
    tx: &Tx<'_>,
    instance: &InstanceId,
    kind: JobKind,
    subject: Option<&str>,
    now: Moment,
) -> Result<(), catalog::Error> {
    match kind {
        JobKind::Backup => {
            if let Some(id) = subject.and_then(BackupId::parse) {
                backups::fail(tx, &id, FailureCode::TimedOut, WHY, now)?;
            }
        }
        JobKind::Restore => {
            if let Some(restore) = subject
                .and_then(RestoreId::parse)
                .map(|id| restores::load(tx, &id))
                .transpose()?
                .flatten()
            {
                let state = left(restore.target_state);
                restores::fail(tx, &restore.id, FailureCode::TimedOut, WHY, state, now)?;
            }
        }
        JobKind::Migration => {
            if let Some(id) = subject.and_then(RestoreId::parse)
                && let Some(task) = migrations::load(tx, &id)?
            {
                let state = left(task.target_state);
                migrations::fail(tx, &id, FailureCode::TimedOut, WHY, state, now)?;
            }
        }
        JobKind::Resize => {
            if let Some(id) = subject.and_then(ResizeId::parse) {
                resizes::fail(tx, &id, WHY, now)?;
            }
        }
        JobKind::Create => {
            let (from, to) = (Status::Creating, Status::CreateFailed);
            instances::transition(tx, instance, from, to, Some(WHY), now)?;
        }
        JobKind::Delete | JobKind::Restart | JobKind::Flush | JobKind::Password => {}
    }
    Ok(())
}

/// What engines hold that nobody can ask any more.
fn left(state: TargetState) -> TargetState {
    match state {
        TargetState::Untouched => TargetState::Untouched,
        _ => TargetState::Unknown,
    }
}
