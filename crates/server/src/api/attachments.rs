//! Attached instances on the wire. What DCS has a call for (lists, backups, deletion) is done by that.

use engine::discover::{Found, HostPort, ShardFound, Way};
use serde::Serialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::backups::no_content;
use super::error::{ApiError, json_response};
use super::instances::{CREATED_BY, kept_fields};
use super::request::{Fields, Request};
use super::routes::Reply;
use crate::instance::attachment::command::{self, Attach};
use crate::instance::attachment::{Reach, Secrets, Trust};
use crate::instance::{Instance, command as instances, record};
use crate::refusal::Refusal;

/// `POST /ck/v1/{project_id}/attachments`: looks at servers that somebody else runs, and unless it is a dry run they are an
/// instance from then on.
///
/// # Errors
/// Fields; what cannot be attached; 429 where as many are looked at as may be.
pub fn create(request: &Request) -> Result<Reply, ApiError> {
    let (wish, is_dry) = decode(request)?;
    let project = request.project()?;
    let found = command::discover(&request.app, &wish)?;
    let mut shown = FoundShown::new(&found, &wish.name);
    if !is_dry {
        let once = request.once()?;
        let id = command::attach(&request.app, project, &wish, &found, once.as_ref(), request.now)?;
        shown.instance_id = Some(id.to_string());
    }
    Ok(json_response(200, &shown))
}

fn decode(request: &Request) -> Result<(Attach, bool), Refusal> {
    let fields = request.body()?;
    let seeds = fields.get("addresses").and_then(Value::as_array);
    let seeds = seeds.ok_or(Refusal::Parameter("addresses"))?;
    let seeds: Result<Vec<HostPort>, Refusal> = seeds.iter().map(|seed| place(seed, "addresses")).collect();
    let moved = match fields.get("address_map") {
        None => Vec::new(),
        Some(Value::Object(map)) => moved(map)?,
        Some(_) => return Err(Refusal::Parameter("address_map")),
    };
    let is_tls = fields.boolean("tls")?.unwrap_or(false);
    let (ca, certificate, private_key) = (
        fields.text("ca")?,
        fields.text("certificate")?,
        fields.text("private_key")?,
    );
    let server_name = fields.text("server_name")?;
    let is_any = [&ca, &certificate, &private_key, &server_name]
        .iter()
        .any(|given| given.is_some());
    let tls = match (is_tls, ca) {
        (true, Some(ca)) => Some(Trust {
            ca,
            certificate,
            server_name,
        }),
        (true, None) => return Err(Refusal::Parameter("ca")),
        (false, _) if is_any => return Err(Refusal::Parameter("tls")),
        (false, _) => None,
    };
    if let Some(trust) = &tls
        && trust.certificate.is_some() != private_key.is_some()
    {
        return Err(Refusal::Parameter("private_key"));
    }
    let mut attributes = kept_fields(&fields, None)?;
    attributes.insert(CREATED_BY.to_owned(), json!(request.caller));
    let (user, password) = credential(&fields, "user", "password")?;
    let (sentinel_user, sentinel_password) = credential(&fields, "sentinel_user", "sentinel_password")?;
    let wish = Attach {
        name: fields.text("name")?.ok_or(Refusal::NameInvalid)?,
        description: fields.text("description")?,
        attributes: Value::Object(attributes).to_string(),
        reach: Reach {
            seeds: seeds?,
            user,
            has_password: password.is_some(),
            tls,
            sentinel_user,
            primary_name: fields.text("primary_name")?,
            moved,
        },
        secrets: Secrets {
            password,
            sentinel_password,
            private_key,
        },
    };
    Ok((wish, fields.boolean("dry_run")?.unwrap_or(false)))
}

fn place(given: &Value, name: &'static str) -> Result<HostPort, Refusal> {
    let text = given.as_str().ok_or(Refusal::Parameter(name))?;
    text.parse().map_err(|_| Refusal::Parameter(name))
}

fn moved(map: &Map<String, Value>) -> Result<Vec<(HostPort, HostPort)>, Refusal> {
    const NAME: &str = "address_map";
    map.iter()
        .map(|(named, here)| {
            let named = named.parse().map_err(|_| Refusal::Parameter(NAME))?;
            Ok((named, place(here, NAME)?))
        })
        .collect()
}

/// A user without a password is nobody: `AUTH` wants both.
fn credential(
    fields: &Fields,
    user: &'static str,
    password: &'static str,
) -> Result<(Option<String>, Option<String>), Refusal> {
    let (name, secret) = (fields.text(user)?, fields.text(password)?);
    match name.is_some() && secret.is_none() {
        true => Err(Refusal::Parameter(password)),
        false => Ok((name, secret)),
    }
}

/// `GET /ck/v1/{project_id}/attachments`: all of them, as they were found last.
///
/// # Errors
/// None beyond those of every call.
pub fn list(request: &Request) -> Result<Reply, ApiError> {
    let project = request.project()?;
    let all = request.app.catalog.read(|tx| record::list(tx, project))?;
    Ok(json_response(
        200,
        &AttachmentList {
            attachments: all.iter().filter_map(shown).collect(),
        },
    ))
}

/// `GET /ck/v1/{project_id}/attachments/{instance_id}`
///
/// # Errors
/// Malformed or unknown instance, or one that is not attached.
pub fn show(request: &Request) -> Result<Reply, ApiError> {
    let id = request.instance_id()?;
    let project = request.project()?;
    let instance = request.app.catalog.read(|tx| instances::find(tx, project, &id))?;
    let shown = shown(&instance).ok_or(Refusal::InstanceUnknown)?;
    Ok(json_response(200, &shown))
}

/// `DELETE /ck/v1/{project_id}/attachments/{instance_id}`: nothing of the servers is touched.
///
/// # Errors
/// As [`show`]; busy.
pub fn delete(request: &Request) -> Result<Reply, ApiError> {
    let id = request.instance_id()?;
    let project = request.project()?;
    let instance = request.app.catalog.read(|tx| instances::find(tx, project, &id))?;
    if instance.attachment.is_none() {
        return Err(Refusal::InstanceUnknown.into());
    }
    instances::delete(&request.app, project, &id, request.now)?;
    Ok(no_content())
}

fn shown(instance: &Instance) -> Option<FoundShown> {
    let attached = instance.attachment.as_ref()?;
    let mut shown = FoundShown::new(&attached.found, &instance.name);
    shown.instance_id = Some(instance.id.to_string());
    Some(shown)
}

/// Every attached instance.
#[derive(Debug, Serialize, ToSchema)]
pub struct AttachmentList {
    /// The oldest first.
    pub attachments: Vec<FoundShown>,
}

/// Servers that somebody else runs, as they were found.
#[derive(Debug, Serialize, ToSchema)]
pub struct FoundShown {
    /// The instance; null where nothing was attached.
    pub instance_id: Option<String>,
    /// Its name.
    pub name: String,
    /// `single`, `ha`, `cluster`
    pub cache_mode: &'static str,
    /// `redis`, `valkey`
    pub engine: String,
    /// The first primary's.
    pub engine_version: String,
    /// Bytes of memory that the data takes, all primaries together.
    pub used_memory: u64,
    /// Bytes that it may take; 0: there is no limit.
    pub max_memory: u64,
    /// `aof`, `rdb`, `none`; null where it is not told.
    pub persistence: Option<String>,
    /// How a backup is taken: `psync`, as of one moment; `scan`, key by key, where that is hidden; `none` where neither can be:
    /// `notes` explain it.
    pub capture: &'static str,
    /// Primaries and what follows them.
    pub shards: Vec<ShardShown>,
    /// Sentinels, where one was given.
    pub sentinels: Vec<String>,
    /// What is renamed, forbidden, hidden or out of reach, and what that means.
    pub notes: Vec<String>,
}

/// A primary and its replicas.
#[derive(Debug, Serialize, ToSchema)]
pub struct ShardShown {
    /// `0-5460`; empty where it is no cluster.
    pub slots: Vec<String>,
    /// Where it takes writes.
    pub primary: String,
    /// What follows it.
    pub replicas: Vec<ReplicaShown>,
}

/// A replica.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReplicaShown {
    /// Where it is.
    pub address: String,
    /// Why it is left out; null: it is fine.
    pub amiss: Option<String>,
}

impl FoundShown {
    fn new(found: &Found, name: &str) -> Self {
        let layout = crate::instance::attachment::layout(found);
        Self {
            instance_id: None,
            name: name.to_owned(),
            cache_mode: layout.mode.word(),
            engine: found.family.clone(),
            engine_version: found.version.clone(),
            used_memory: found.used_bytes,
            max_memory: found.limit_bytes,
            persistence: found.persistence.clone(),
            capture: match found.way {
                Way::Psync => "psync",
                Way::Scan => "scan",
                Way::None => "none",
            },
            shards: found.shards.iter().map(ShardShown::new).collect(),
            sentinels: found.sentinels.iter().map(HostPort::to_string).collect(),
            notes: found.notes.clone(),
        }
    }
}

impl ShardShown {
    fn new(shard: &ShardFound) -> Self {
        let range = |(first, last): &(u16, u16)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        };
        let replicas = shard.replicas.iter().map(|replica| ReplicaShown {
            address: replica.at.to_string(),
            amiss: replica.amiss.clone(),
        });
        Self {
            slots: shard.slots.iter().map(range).collect(),
            primary: shard.primary.to_string(),
            replicas: replicas.collect(),
        }
    }
}
