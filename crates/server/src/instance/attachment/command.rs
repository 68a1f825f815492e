//! What people ask of attached instances beyond what they ask of any.

use std::sync::Arc;

use engine::discover::{Aim, Found};
use engine::{Control, Error, Kind};

use super::servers::Servers;
use super::{Attachment, Reach, Secrets, brand, capacity_mb, entry, layout, persistence, sealed_for};
use crate::app::App;
use crate::idempotency::{self, Once};
use crate::ids::{InstanceId, Moment, ProjectId};
use crate::instance::command::{self as instances, Made};
use crate::instance::record::{self, Instance, Status};
use crate::jobs::aside::{Seat, Task};
use crate::limits;
use crate::refusal::{NotAttached, Refusal};

/// A wish to attach.
#[derive(Debug)]
pub struct Attach {
    /// Name of the instance.
    pub name: String,
    /// Free text.
    pub description: Option<String>,
    /// JSON kept for DCS clients.
    pub attributes: String,
    /// How its servers are reached.
    pub reach: Reach,
    /// What is secret of that.
    pub secrets: Secrets,
}

/// Finds out what is there, and changes nothing.
///
/// # Errors
/// Rules of the fields, [`Refusal::NotAttachable`], [`Refusal::TooManyAttachments`].
pub fn discover(app: &Arc<App>, wish: &Attach) -> Result<Found, Refusal> {
    instances::check_name(&wish.name)?;
    if wish.reach.seeds.is_empty() || wish.reach.seeds.len() > limits::ATTACHED_SEEDS_MAX {
        return Err(Refusal::Parameter("addresses"));
    }
    let control = Arc::new(Control::new(None));
    let _seat = Seat::take(app, Task::Attach, &control).ok_or(Refusal::TooManyAttachments)?;
    let servers = Servers::new(app, &wish.reach, wish.secrets.clone(), limits::DISCOVERY_TIME_MAX);
    servers
        .and_then(|servers| servers.discover(None, Aim::Read))
        .map_err(told)
}

/// Attaches what was found: the instance is there when this returns, once for each `once`.
///
/// # Errors
/// The catalogue failed, key of another request.
pub fn attach(
    app: &App,
    project: &ProjectId,
    wish: &Attach,
    found: &Found,
    once: Option<&Once>,
    now: Moment,
) -> Result<InstanceId, Refusal> {
    let secrets = serde_json::to_string(&wish.secrets)
        .map_err(|error| Refusal::Internal(format!("secrets as JSON: {error}")))?;
    let made = app.catalog.write(|tx| {
        idempotency::once(tx, project, once, now, || {
            let id = InstanceId::random();
            let at = entry(found);
            let sealed = app.vault.master.seal(&sealed_for(&id), secrets.as_bytes());
            let instance = Instance {
                host: None,
                id: id.clone(),
                project_id: project.clone(),
                name: wish.name.clone(),
                description: wish.description.clone(),
                status: Status::Running,
                engine: brand(found),
                engine_version: found.version.clone(),
                capacity_mb: capacity_mb(found),
                spec_code: SPEC_CODE.to_owned(),
                layout: layout(found),
                sentinels: Vec::new(),
                bind: at.host,
                port: at.port,
                persistence: persistence(found),
                admin_password_sealed: Vec::new(),
                client_user: None,
                client_password_sealed: None,
                attributes: wish.attributes.clone(),
                backup_policy: None,
                authority: None,
                objective: None,
                attachment: Some(Attachment {
                    reach: wish.reach.clone(),
                    found: found.clone(),
                    sealed,
                    settings: Vec::new(),
                }),
                failure: None,
                created_at: now,
                updated_at: now,
            };
            record::insert(tx, &instance)?;
            Ok::<_, Refusal>(Made {
                id,
                name: wish.name.clone(),
            })
        })
    })?;
    app.board.note_memory(&made.id, found.used_bytes);
    Ok(made.id)
}

/// The flavor that attached instances are shown with; nobody can order it.
pub const SPEC_CODE: &str = "attached";

/// What a caller is told. Who names an address learns nothing of what is behind it unless that is an engine: closed, silent,
/// forbidden and strange are one answer.
fn told(error: Error) -> Refusal {
    let why = match (error.kind, error.operation) {
        (Kind::Auth, _) => NotAttached::Credentials,
        (Kind::Refused, "discover" | "read shards") => NotAttached::Shape(error.context.clone()),
        (Kind::Refused, _) => NotAttached::Forbidden,
        (Kind::Key, "read certificates") => NotAttached::Shape(error.context.clone()),
        (Kind::Key | Kind::Io, _) => return Refusal::Internal(engine::chain(&error)),
        _ => NotAttached::Unreachable,
    };
    tracing::warn!(error = engine::chain(&error), "servers are not attached");
    Refusal::NotAttachable(why)
}
