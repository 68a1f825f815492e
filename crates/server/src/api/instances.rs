//! Instances on the wire.

use serde::Serialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::backups::no_content;
use super::error::{ApiError, Version, json_response};
use super::instance_shown::{InstanceShown, status_word};
use super::page;
use super::request::{Fields, Request};
use super::routes::Reply;
use super::system::{self, Flavor};
use crate::ids::InstanceId;
use crate::instance::command::{self, Create};
use crate::instance::layout::{Layout, Mode, Place, SHARDS};
use crate::instance::record::{Changes, persistence_from_word};
use crate::instance::{Instance, Status, generation, policy, record};
use crate::jobs::JobKind;
use crate::limits;
use crate::refusal::Refusal;
use crate::resize::record::Wanted;

/// Fields that DCS clients give at creation and want back unchanged; we have no use for them.
const KEPT: [&str; 8] = [
    "az_codes",
    "vpc_id",
    "subnet_id",
    "security_group_id",
    "tags",
    "enterprise_project_id",
    "maintain_begin",
    "maintain_end",
];

/// Fields whose wish would be refused to a client that is told otherwise: another user's name later, a command renamed for safety.
const NOT_OFFERED: [&str; 2] = ["access_user", "rename_commands"];

/// The attribute that names who made the instance; no field of a body.
pub const CREATED_BY: &str = "created_by";

/// `POST …/instances`
///
/// # Errors
/// Contract §9.1.
pub fn create(request: &Request) -> Result<Reply, ApiError> {
    let wish = decode_create(request)?;
    let made = command::create(
        &request.app,
        request.project()?,
        &wish,
        request.once()?.as_ref(),
        request.now,
    )?;
    let names: Vec<Value> = made
        .iter()
        .map(|instance| json!({"instance_id": instance.id.as_str(), "instance_name": instance.name}))
        .collect();
    let mut answer = json!({ "instances": names });
    if request.version == Version::V1 {
        let ids: Vec<&str> = made.iter().map(|instance| instance.id.as_str()).collect();
        answer["instance_id"] = json!(ids.join(","));
    }
    Ok(json_response(200, &answer))
}

fn decode_create(request: &Request) -> Result<Create, Refusal> {
    let fields = request.body()?;
    let app = &request.app;
    let brand = fields.text("engine")?.ok_or(Refusal::EngineUnsupported)?;
    let engine = system::engine(app, &brand, fields.text("engine_version")?.as_deref())?;
    let spec = match fields.text("spec_code")? {
        Some(spec) => spec,
        None => fields.text("product_id")?.ok_or(Refusal::SpecUnknown)?,
    };
    let flavor = Flavor::find(&spec).ok_or(Refusal::SpecUnknown)?;
    let layout = layout(&fields, &flavor)?;
    if fields
        .number("capacity")?
        .is_some_and(|capacity| !flavor.is_of_size(capacity))
    {
        return Err(Refusal::CapacityInvalid);
    }
    let open = fields.boolean("no_password_access")?.unwrap_or(false);
    let password = match (fields.text("password")?, open) {
        (Some(password), false) => Some(password),
        (None, false) => return Err(Refusal::PasswordWeak),
        (_, true) => None,
    };
    let user = match fields.text("access_user")? {
        Some(name) => command::check_user(&name)?,
        None => None,
    };
    if user.is_some() && password.is_none() {
        return Err(Refusal::Parameter("access_user"));
    }
    let port = match fields.integer("port")? {
        None => None,
        Some(port) => Some(
            u16::try_from(port)
                .ok()
                .filter(|port| *port > 0)
                .ok_or(Refusal::Parameter("port"))?,
        ),
    };
    let count = fields.integer("instance_num")?.unwrap_or(1);
    let count = u16::try_from(count)
        .ok()
        .filter(|count| (1..=100).contains(count));
    let count = count.ok_or(Refusal::Parameter("instance_num"))?;
    let name = fields.text("name")?.ok_or(Refusal::NameInvalid)?;
    if count > 1 && (name.len() > 56 || port.is_some()) {
        return Err(if port.is_some() {
            Refusal::Parameter("port")
        } else {
            Refusal::NameInvalid
        });
    }
    let description = fields.text("description")?;
    if description
        .as_ref()
        .is_some_and(|text| text.chars().count() > limits::DESCRIPTION_CHARS_MAX)
    {
        return Err(Refusal::DescriptionTooLong);
    }
    let persistence = match fields.text("persistence")? {
        None => engine::process::Persistence::Aof,
        Some(word) => persistence_from_word(&word).ok_or(Refusal::Parameter("persistence"))?,
    };
    let mut attributes = kept_fields(&fields, None)?;
    attributes.insert(CREATED_BY.to_owned(), json!(request.caller));
    Ok(Create {
        name,
        description,
        capacity_mb: flavor.capacity_mb,
        spec_code: flavor.spec_code.clone(),
        engine,
        layout,
        port,
        user,
        password,
        persistence,
        is_tls: fields.boolean("enable_ssl")?.unwrap_or(false),
        attributes: Value::Object(attributes).to_string(),
        policy: fields.get("instance_backup_policy").cloned(),
        count,
    })
}

/// The flavor's layout, with the number of shards that `spec_param` asks for. What else it names must be the flavor's.
fn layout(fields: &Fields, flavor: &Flavor) -> Result<Layout, Refusal> {
    let mut layout = flavor.layout;
    let asked = match fields.get("spec_param") {
        None | Some(Value::Null) => return Ok(layout),
        Some(asked) if asked.is_object() => asked,
        Some(_) => return Err(Refusal::Parameter("spec_param")),
    };
    let number = |name: &str| match &asked[name] {
        Value::Null => Ok(None),
        found => {
            let number = found.as_u64().or_else(|| found.as_str()?.parse().ok());
            number
                .and_then(|number| u16::try_from(number).ok())
                .map(Some)
                .ok_or(Refusal::Parameter("spec_param"))
        }
    };
    let (shards, copies) = (number("sharding_count")?, number("replica_count")?);
    let is_mode = asked["cache_mode"].is_null() || asked["cache_mode"] == layout.mode.word();
    if !is_mode || copies.is_some_and(|copies| copies != 1 + layout.replicas) {
        return Err(Refusal::Parameter("spec_param"));
    }
    match (layout.mode, shards) {
        (_, None) | (Mode::Single | Mode::Ha, Some(1)) => {}
        (Mode::Cluster, Some(shards)) if SHARDS.contains(&shards) => layout.shards = shards,
        (_, Some(_)) => return Err(Refusal::Parameter("spec_param")),
    }
    Ok(layout)
}

/// The kept fields of a body over those of before, as JSON.
///
/// # Errors
/// A field that is not offered, or has a value that is not allowed.
pub fn kept_fields(fields: &Fields, before: Option<&str>) -> Result<Map<String, Value>, Refusal> {
    let mut kept: Map<String, Value> = before
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default();
    // Which user clients are is said when an instance is made, and stays.
    let refused = match before {
        None => &NOT_OFFERED[1..],
        Some(_) => &NOT_OFFERED[..],
    };
    for name in refused.iter().copied() {
        let is_wished = match fields.get(name) {
            None | Some(Value::Null | Value::Bool(false)) => false,
            Some(Value::String(text)) => !text.is_empty(),
            Some(Value::Object(renamed)) => !renamed.is_empty(),
            Some(_) => true,
        };
        if is_wished {
            return Err(Refusal::Parameter(name));
        }
    }
    for name in KEPT {
        if let Some(value) = fields.get(name) {
            kept.insert(name.to_owned(), value.clone());
        }
    }
    if let Some(zones) = fields.get("available_zones") {
        kept.insert("az_codes".to_owned(), zones.clone());
    }
    if fields.get("maintain_begin").is_some() != fields.get("maintain_end").is_some() {
        return Err(Refusal::MaintenanceWindow);
    }
    for name in ["maintain_begin", "maintain_end"] {
        if let Some(value) = fields.text(name)? {
            let hour = value
                .split(':')
                .next()
                .and_then(|hour| hour.parse::<u8>().ok())
                .filter(|hour| *hour < 24);
            let rest_is_zero = value.split(':').skip(1).all(|part| part == "00");
            let hour = hour.filter(|_| rest_is_zero).ok_or(Refusal::MaintenanceWindow)?;
            kept.insert(name.to_owned(), json!(format!("{hour:02}:00:00")));
        }
    }
    Ok(kept)
}

/// `GET …/instances`
///
/// # Errors
/// Contract §9.1.
pub fn list(request: &Request) -> Result<Reply, ApiError> {
    let default = match request.version {
        Version::V2 => limits::PAGE_ROWS_DEFAULT,
        Version::V1 => limits::INSTANCE_ROWS_DEFAULT_V1,
    };
    let page = page::page(request, default)?;
    let flag = |name: &str| {
        request
            .query(name)
            .is_some_and(|value| value.eq_ignore_ascii_case("true"))
    };
    let exact = flag("name_equal") || flag("isExactMatchName") || flag("exactMatchName");
    let with_failed = flag("include_failure");
    let (id, name, status, ip) = (
        request.query("instance_id").or_else(|| request.query("id")),
        request.query("name"),
        request.query("status"),
        request.query("ip"),
    );
    let capacity_mb = match request.query("capacity") {
        None => None,
        Some(text) => {
            let gigabytes = text.parse::<f64>().ok().filter(|number| number.is_finite());
            Some(gigabytes.ok_or(Refusal::Parameter("capacity"))? * 1024.0)
        }
    };
    let tags = match request.query("tags") {
        None => Vec::new(),
        Some(text) => wanted_tags(&text)?,
    };
    let with_deleted = flag("include_delete") && !request.app.config.strict_dcs;
    let project = request.project()?;
    let (total, shown) = request.app.catalog.read(|tx| {
        let mut wanted = Vec::new();
        let all = match with_deleted {
            true => record::list_with_deleted(tx, project)?,
            false => record::list(tx, project)?,
        };
        for instance in all {
            let has_status = match &status {
                None => true,
                Some(status) => status == status_word(tx, &instance)?,
            };
            let named = match &name {
                None => true,
                Some(name) if exact => instance.name == *name,
                Some(name) => instance.name.contains(name.as_str()),
            };
            let listed = (with_failed || instance.status != Status::CreateFailed)
                && id
                    .as_ref()
                    .is_none_or(|id| instance.id.as_str().eq_ignore_ascii_case(id))
                && named
                && has_status
                && ip.as_ref().is_none_or(|ip| instance.bind.contains(ip.as_str()))
                && capacity_mb.is_none_or(|wanted| (wanted - instance.capacity_mb as f64).abs() < 1.0)
                && has_tags(&instance, &tags);
            if listed {
                wanted.push(instance);
            }
        }
        let total = wanted.len() as u64;
        // otcextensions pages with the last id that it has seen: contract C35.
        let after = match request.query("marker") {
            Some(marker) => wanted
                .iter()
                .position(|found| found.id.as_str() == marker)
                .map_or(wanted.len(), |at| at + 1),
            None => usize::try_from(page.offset).unwrap_or(usize::MAX),
        };
        let mut shown = Vec::new();
        let limit = usize::try_from(page.limit).unwrap_or(usize::MAX);
        let wanted = wanted.iter().skip(after).take(limit);
        for instance in wanted.clone() {
            InstanceShown::soon(tx, &instance.id)?;
        }
        for instance in wanted {
            shown.push(InstanceShown::new(request, tx, instance)?.into_value(request.version));
        }
        Ok::<_, Refusal>((total, shown))
    })?;
    Ok(json_response(
        200,
        &json!({"instance_num": total, "instances": shown}),
    ))
}

/// Reads `key=value,key2=value2`.
fn wanted_tags(text: &str) -> Result<Vec<(String, String)>, Refusal> {
    text.split(',')
        .map(|pair| {
            let (key, value) = pair.split_once('=').ok_or(Refusal::Parameter("tags"))?;
            Ok((key.to_owned(), value.to_owned()))
        })
        .collect()
}

/// Whether the instance has every one of these tags.
fn has_tags(instance: &Instance, wanted: &[(String, String)]) -> bool {
    if wanted.is_empty() {
        return true;
    }
    let kept: Value = serde_json::from_str(&instance.attributes).unwrap_or_default();
    let has = |key: &str, value: &str| {
        let given = kept["tags"].as_array().into_iter().flatten();
        given
            .filter(|tag| tag["key"] == key)
            .any(|tag| tag["value"] == value)
    };
    wanted.iter().all(|(key, value)| has(key, value))
}

/// `GET …/instances/{instance_id}`
///
/// # Errors
/// Malformed or unknown instance.
pub fn show(request: &Request) -> Result<Reply, ApiError> {
    let id = request.instance_id()?;
    let project = request.project()?;
    let shown = request.app.catalog.read(|tx| {
        InstanceShown::soon(tx, &id)?;
        let instance = command::find(tx, project, &id)?;
        InstanceShown::new(request, tx, &instance)
    })?;
    Ok(json_response(200, &shown.into_value(request.version)))
}

/// `PUT …/instances/{instance_id}`
///
/// # Errors
/// Contract §9.1.
pub fn update(request: &Request) -> Result<Reply, ApiError> {
    const CHANGEABLE: [&str; 5] = [
        "name",
        "description",
        "port",
        "instance_backup_policy",
        "available_zones",
    ];
    let id = request.instance_id()?;
    let fields = request.body()?;
    let project = request.project()?;
    let names = CHANGEABLE.iter().chain(&KEPT);
    if !names.clone().any(|name| fields.get(name).is_some()) {
        // The contract wants at least one: who sends none has misspelt it.
        request
            .app
            .catalog
            .read(|tx| command::find(tx, project, &id).map(drop))?;
        return Err(Refusal::NothingToChange.into());
    }
    let port = fields.integer("port")?;
    let (name, description) = (fields.text("name")?, fields.text("description")?);
    let is_tls = fields.boolean("enable_ssl")?;
    command::update(&request.app, project, &id, request.now, |instance| {
        if port.is_some_and(|port| port != i64::from(instance.port)) {
            return Err(Refusal::Parameter("port"));
        }
        if is_tls.is_some_and(|is_tls| is_tls != instance.authority.is_some()) {
            return Err(Refusal::Parameter("enable_ssl"));
        }
        let policy = match fields.get("instance_backup_policy") {
            Some(given) => {
                let old = instance.backup_policy.as_deref();
                let strict = request.app.config.strict_dcs;
                Some(policy::accept(given, old, project, strict, request.now)?)
            }
            None => None,
        };
        Ok(Changes {
            name,
            description,
            attributes: Some(Value::Object(kept_fields(&fields, Some(&instance.attributes))?).to_string()),
            backup_policy: policy,
        })
    })?;
    Ok(no_content())
}

/// `DELETE …/instances/{instance_id}`
///
/// # Errors
/// Unknown, busy.
pub fn delete(request: &Request) -> Result<Reply, ApiError> {
    command::delete(
        &request.app,
        request.project()?,
        &request.instance_id()?,
        request.now,
    )?;
    Ok(no_content())
}

/// `DELETE …/instances` with a list, or `?all_failure=true`.
///
/// # Errors
/// Contract §9.1.
pub fn delete_batch(request: &Request) -> Result<Reply, ApiError> {
    let project = request.project()?;
    let all_failed = request
        .query("all_failure")
        .is_some_and(|value| value.eq_ignore_ascii_case("true"));
    if all_failed {
        let failed = request.app.catalog.read(|tx| record::list(tx, project))?;
        let mut results = Vec::new();
        for instance in failed
            .iter()
            .filter(|instance| instance.status == Status::CreateFailed)
        {
            let done = command::delete(&request.app, project, &instance.id, request.now);
            results.push(result_of(instance.id.as_str(), &done));
        }
        return Ok(match request.version {
            Version::V1 => no_content(),
            Version::V2 => json_response(200, &BatchResults { results }),
        });
    }
    let ids = named_instances(&request.body()?)?;
    let results = ids
        .iter()
        .map(|id| {
            let done = InstanceId::parse(id)
                .ok_or(Refusal::InstanceUnknown)
                .and_then(|id| command::delete(&request.app, project, &id, request.now));
            result_of(id, &done)
        })
        .collect();
    Ok(json_response(200, &BatchResults { results }))
}

/// `PUT …/instances/status`: restart, soft_restart, flush.
///
/// # Errors
/// Contract §9.2.
pub fn act(request: &Request) -> Result<Reply, ApiError> {
    let fields = request.body()?;
    let project = request.project()?;
    let kind = match fields.text("action")?.as_deref() {
        Some("restart" | "soft_restart") => JobKind::Restart,
        Some("flush") => JobKind::Flush,
        _ => return Err(Refusal::ActionInvalid.into()),
    };
    let ids = named_instances(&fields)?;
    let mut results = Vec::new();
    let mut refused = None;
    for id in &ids {
        let done = InstanceId::parse(id)
            .ok_or(Refusal::InstanceUnknown)
            .and_then(|id| command::act(&request.app, project, &id, kind, request.now));
        results.push(result_of(id, &done));
        refused = done.err();
    }
    match refused {
        // One instance and one refusal: its code says more than "failed".
        Some(refusal) if ids.len() == 1 => Err(refusal.into()),
        _ => Ok(json_response(200, &BatchResults { results })),
    }
}

fn named_instances(fields: &Fields) -> Result<Vec<String>, Refusal> {
    let given = fields
        .get("instances")
        .and_then(Value::as_array)
        .ok_or(Refusal::InstancesMissing)?;
    if given.is_empty() {
        return Err(Refusal::InstancesMissing);
    }
    if given.len() > limits::BATCH_INSTANCES_MAX {
        return Err(Refusal::InstancesTooMany);
    }
    given
        .iter()
        .map(|id| {
            id.as_str()
                .map(str::to_owned)
                .ok_or(Refusal::Parameter("instances"))
        })
        .collect()
}

fn result_of(id: &str, done: &Result<(), Refusal>) -> BatchResult {
    BatchResult {
        instance: id.to_owned(),
        result: if done.is_ok() { "success" } else { "failed" },
    }
}

/// `POST …/instances/{instance_id}/resize`, on v1.0 `…/extend`
///
/// # Errors
/// Contract §9.2; another kind of instance.
pub fn resize(request: &Request) -> Result<Reply, ApiError> {
    let id = request.instance_id()?;
    let fields = request.body()?;
    let project = request.project()?;
    let capacity = fields.number("new_capacity")?;
    let (instance, nodes) = request.app.catalog.read(|tx| {
        let instance = command::find(tx, project, &id)?;
        let serving = generation::serving(tx, &id)?;
        Ok::<_, Refusal>((instance, serving.map(|found| found.nodes).unwrap_or_default()))
    })?;
    let flavor = match fields.text("spec_code")? {
        Some(spec) => Flavor::find(&spec).ok_or(Refusal::SpecUnknown)?,
        // v1.0 names the size alone: the flavor of that size and the instance's nodes.
        None => {
            let capacity = capacity.ok_or(Refusal::Parameter("new_capacity"))?;
            Flavor::of_size(capacity, instance.layout).ok_or(Refusal::CapacityInvalid)?
        }
    };
    if capacity.is_some_and(|capacity| !flavor.is_of_size(capacity)) {
        return Err(Refusal::CapacityInvalid.into());
    }
    let mut wanted = layout(&fields, &flavor)?;
    // A cluster may be of another number of shards than its flavor is by default, and stays with it, unless shards are to be
    // added: then each keeps its share of the size.
    if fields.get("spec_param").is_none_or(Value::is_null) && wanted.mode == instance.layout.mode {
        wanted.shards = match fields.text("change_type")?.as_deref() {
            Some("addSharding") => {
                let shards =
                    i64::from(instance.layout.shards) * flavor.capacity_mb / instance.capacity_mb.max(1);
                let shards = u16::try_from(shards)
                    .ok()
                    .filter(|shards| SHARDS.contains(shards));
                shards.ok_or(Refusal::Parameter("new_capacity"))?
            }
            _ => instance.layout.shards,
        };
    }
    check_change(&fields, (instance.layout, wanted), &nodes)?;
    let wanted = Wanted {
        spec_code: flavor.spec_code,
        capacity_mb: flavor.capacity_mb,
        layout: wanted,
    };
    command::resize(&request.app, project, &id, &wanted, request.now)?;
    Ok(no_content())
}

/// What a caller says of a change besides its outcome must be so. Which nodes go and which zones they are in makes no
/// difference: all of them are new ones afterwards.
fn check_change(fields: &Fields, (now, wanted): (Layout, Layout), nodes: &[Place]) -> Result<(), Refusal> {
    let is_so = match fields.text("change_type")?.as_deref() {
        None | Some("") => true,
        Some("createReplication") => wanted.replicas > now.replicas && wanted.shards == now.shards,
        Some("deleteReplication") => wanted.replicas < now.replicas && wanted.shards == now.shards,
        Some("addSharding") => wanted.shards > now.shards && wanted.replicas == now.replicas,
        Some("instanceType") => wanted.mode != now.mode,
        Some(_) => false,
    };
    if !is_so {
        return Err(Refusal::Parameter("change_type"));
    }
    for name in ["reserved_ip", "available_zones", "node_list"] {
        let given = match fields.get(name) {
            None | Some(Value::Null) => continue,
            Some(given) => given.as_array().ok_or(Refusal::Parameter(name))?,
        };
        let is_node = |text: &str| name != "node_list" || nodes.iter().any(|place| place.id.as_str() == text);
        if !given.iter().all(|one| one.as_str().is_some_and(is_node)) {
            return Err(Refusal::Parameter(name));
        }
    }
    match fields.boolean("execute_immediately")? {
        Some(false) => Err(Refusal::Parameter("execute_immediately")),
        Some(true) | None => Ok(()),
    }
}

/// `POST /ck/v1/…/instances/{instance_id}/resize/cancel`
///
/// # Errors
/// Unknown instance; nothing to cancel.
pub fn cancel_resize(request: &Request) -> Result<Reply, ApiError> {
    command::cancel_resize(
        &request.app,
        request.project()?,
        &request.instance_id()?,
        request.now,
    )?;
    Ok(no_content())
}

/// `POST …/instances/{instance_id}/password/reset`
///
/// # Errors
/// Contract §9.2.
pub fn reset_password(request: &Request) -> Result<Reply, ApiError> {
    let fields = request.body()?;
    let open = fields.boolean("no_password_access")?.unwrap_or(false);
    let password = match (fields.text("new_password")?, open) {
        (_, true) => None,
        (Some(password), false) => Some(password),
        (None, false) => return Err(Refusal::Parameter("new_password").into()),
    };
    command::reset_password(
        &request.app,
        request.project()?,
        &request.instance_id()?,
        password.as_deref(),
        request.now,
    )?;
    Ok(json_response(
        200,
        &json!({"retry_times_left": "5", "lock_time": "0", "lock_time_left": "0", "code": "1",
                "message": "The password is being reset.", "ext_message": null}),
    ))
}

/// Results of a batch call.
#[derive(Debug, Serialize, ToSchema)]
pub struct BatchResults {
    /// One per named instance.
    pub results: Vec<BatchResult>,
}

/// One of them.
#[derive(Debug, Serialize, ToSchema)]
pub struct BatchResult {
    /// The id as given.
    pub instance: String,
    /// `success` or `failed`
    pub result: &'static str,
}
