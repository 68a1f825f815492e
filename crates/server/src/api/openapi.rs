//! `/openapi.json`: made from the table of routes and the wire types, so it cannot name what does not exist.

use serde_json::{Map, Value, json};
use utoipa::{PartialSchema, ToSchema};

use super::error::{ApiError, Version, json_response};
use super::request::Request;
use super::routes::{Access, Reply, Route, routes};
use super::{attachments, backups, instance_shown, instances, plans, proofs, restores, schedules};
use crate::limits;

/// What a route answers when it succeeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// No body.
    Nothing,
    /// A JSON object without a schema of its own.
    Object,
    /// A file.
    Bytes,
    /// A stream of events.
    Events,
    /// See the type of the same name.
    RestoreList,
    /// See the type of the same name.
    RestoreStarted,
    /// One restore record.
    Restore,
    /// See the type of the same name.
    RestorePlan,
    /// See the type of the same name.
    BackupList,
    /// See the type of the same name.
    BackupStarted,
    /// One backup record.
    Backup,
    /// See the type of the same name.
    BackupLinks,
    /// See the type of the same name.
    VerificationStarted,
    /// See the type of the same name.
    VerificationList,
    /// See the type of the same name.
    AttachmentList,
    /// Servers as they were found.
    Attachment,
    /// See the type of the same name.
    ScheduleList,
    /// See the type of the same name.
    ScheduleMade,
    /// See the type of the same name.
    RunBegun,
    /// See the type of the same name.
    Retention,
    /// A page of instances.
    InstanceList,
    /// One instance.
    Instance,
    /// See the type of the same name.
    BatchResults,
}

impl Answer {
    fn schema(self, version: Version) -> Option<Value> {
        let instance = match version {
            Version::V2 => "InstanceShown",
            Version::V1 => "InstanceShownV1",
        };
        let reference = |name: &str| json!({"$ref": format!("#/components/schemas/{name}")});
        Some(match self {
            Answer::Nothing | Answer::Bytes | Answer::Events => return None,
            Answer::Object => json!({"type": "object"}),
            Answer::RestoreList => reference("RestoreList"),
            Answer::RestoreStarted => reference("RestoreStarted"),
            Answer::Restore => reference("RestoreRecord"),
            Answer::RestorePlan => reference("RestorePlan"),
            Answer::BackupList => reference("BackupList"),
            Answer::BackupStarted => reference("BackupStarted"),
            Answer::Backup => reference("BackupRecord"),
            Answer::BackupLinks => reference("BackupLinks"),
            Answer::VerificationStarted => reference("VerificationStarted"),
            Answer::VerificationList => reference("VerificationList"),
            Answer::AttachmentList => reference("AttachmentList"),
            Answer::Attachment => reference("FoundShown"),
            Answer::ScheduleList => reference("ScheduleList"),
            Answer::ScheduleMade => reference("ScheduleMade"),
            Answer::RunBegun => reference("RunBegun"),
            Answer::Retention => reference("Retention"),
            Answer::Instance => reference(instance),
            Answer::BatchResults => reference("BatchResults"),
            Answer::InstanceList => json!({
                "type": "object", "required": ["instance_num", "instances"],
                "properties": {"instance_num": {"type": "integer"},
                               "instances": {"type": "array", "items": reference(instance)}}}),
        })
    }
}

/// The JSON body that a route takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// None.
    Nothing,
    /// Of RestoreInstance.
    Restore,
    /// Of an undo; may be left out.
    Undo,
    /// Of CopyInstance; may be left out.
    Backup,
    /// Of a verify; may be left out.
    Verify,
    /// Of an import.
    Import,
    /// Of an attachment.
    Attach,
    /// Of a schedule.
    Schedule,
    /// How old the newest backup may become.
    Objective,
    /// Of a hold.
    Hold,
    /// Of ListBackupFileLinks.
    Links,
    /// Of CreateInstance.
    Create,
    /// Of UpdateInstance.
    Update,
    /// Of BatchDeleteInstances.
    Instances,
    /// Of RestartOrFlushInstances.
    Act,
    /// Of ResetPassword.
    Password,
    /// Of ResizeInstance.
    Resize,
    /// Of CreateMigrationTask.
    Migration,
    /// Of DeleteMigrationTask.
    Migrations,
    /// Of a log-in.
    Token,
}

impl Wish {
    /// Whether a call without a body is an error.
    fn is_needed(self) -> bool {
        !matches!(
            self,
            Wish::Nothing | Wish::Undo | Wish::Backup | Wish::Verify | Wish::Instances
        )
    }

    /// Fields that more than one version, or every client, spells in its own way are described as v2 has them.
    fn schema(self, ours: bool) -> Option<Value> {
        let text = |what: &str| json!({"type": "string", "description": what});
        let flag = |what: &str| json!({"type": "boolean", "description": what});
        let remark = json!({"type": ["string", "null"], "maxLength": limits::REMARK_CHARS_MAX});
        let ids = json!({"type": "array", "minItems": 1, "maxItems": limits::BATCH_INSTANCES_MAX, "items": {"type": "string"}});
        let named = |properties: Value, required: &[&str]| json!({"type": "object", "required": required, "properties": properties});
        Some(match self {
            Wish::Nothing => return None,
            Wish::Restore => {
                let mut properties =
                    json!({"backup_id": text("A backup of this instance that succeeded"), "remark": remark});
                if ours {
                    properties["source_instance_id"] =
                        text("The instance that the backup is of, deleted or not; without it: this one");
                    properties["plan_id"] =
                        text("Only if it is still what this plan says; a plan itself ignores it");
                    properties["verify"] = json!({"type": "string", "enum": ["sample", "full"]});
                    properties["replay"] = json!({"type": ["object", "null"], "description":
                        "What becomes of which keys, where the backup is applied key by key: see the record's ext.replay"});
                    properties["allow_downtime"] =
                        flag("Where two copies do not fit in memory: stop the old one first");
                }
                named(properties, &["backup_id"])
            }
            Wish::Undo => named(json!({"remark": remark}), &[]),
            Wish::Backup => named(
                json!({"remark": remark, "backup_format": {"type": ["string", "null"], "enum": ["rdb", "aof", null]}}),
                &[],
            ),
            Wish::Verify => named(
                json!({"level": {"type": ["string", "null"], "enum": ["stored", "parsed", "proven", null],
                                 "description": "parsed where none is named"}}),
                &[],
            ),
            Wish::Import => named(
                json!({"url": text("https:// or http:// of an RDB file, from where the operator allows it; its query is not kept"),
                       "remark": remark, "accept_functions": flag("Take libraries of functions, which are code, too")}),
                &["url"],
            ),
            Wish::Attach => named(
                json!({
                    "name": text("4 to 64 characters: a letter, then letters, digits, _ and -"), "description": text("Free text"),
                    "addresses": {"type": "array", "minItems": 1, "maxItems": limits::ATTACHED_SEEDS_MAX, "items": text("HOST[:PORT]"),
                                  "description": "Nodes or Sentinels, where the operator allows it; one that answers is enough"},
                    "user": text("ACL user"), "password": text("Its password, or the default user's"),
                    "tls": flag("Reach all of them by TLS"), "ca": text("PEM: certificates that theirs must be signed by; needed with tls"),
                    "certificate": text("PEM: our own chain"), "private_key": text("PEM: its key"),
                    "server_name": text("The name that all their certificates are of, where that is not each one's host"),
                    "primary_name": text("What Sentinels call the primary, where they watch several"),
                    "sentinel_user": text("ACL user of the Sentinels"), "sentinel_password": text("Its password"),
                    "address_map": {"type": "object", "additionalProperties": text("HOST:PORT where that is reached"),
                                    "description": "Nodes that call themselves otherwise than they are reached"},
                    "dry_run": flag("Only say what is there")}),
                &["name", "addresses"],
            ),
            Wish::Schedule => {
                let rule = json!({"type": ["integer", "null"], "minimum": 0, "maximum": limits::KEEP_MAX});
                let rules = ["days", "last", "hourly", "daily", "weekly", "monthly", "yearly"];
                let keep: Map<String, Value> = rules
                    .iter()
                    .map(|name| ((*name).to_owned(), rule.clone()))
                    .collect();
                named(
                    json!({"name": text("4 to 64 characters: a letter, then letters, digits, _ and -; unique in the instance"),
                           "cron": text("Minute, hour, day, month, weekday: 0 2 * * *"),
                           "zone": {"type": ["string", "null"], "description": "Of the IANA time zone database [default: UTC]"},
                           "task": {"type": ["string", "null"], "enum": ["backup", "drill", null],
                                    "description": "drill: the newest backup is loaded by a throw-away engine [default: backup]"},
                           "window_minutes": {"type": ["integer", "null"],
                                    "description": "How late a run may begin where the service was away [default: 1440]"},
                           "keep": {"type": ["object", "null"], "properties": keep,
                                    "description": "A backup of it stays if a rule wants it; without any all stay"}}),
                    &["name", "cron"],
                )
            }
            Wish::Objective => named(
                json!({"objective_minutes": {"type": ["integer", "null"], "minimum": 1,
                            "description": "How old the newest backup may become; null: there is no objective any more"},
                       "keep_days": {"type": ["integer", "null"], "minimum": 1,
                            "description": "How long the backups that are made for it stay [default: 7]"}}),
                &["objective_minutes"],
            ),
            Wish::Hold => named(
                json!({"reason": text("1 to 128 characters: why nobody may delete it")}),
                &["reason"],
            ),
            Wish::Links => named(
                json!({"expiration": {"type": ["integer", "string"], "description": "Seconds, 300 to 86400"}}),
                &["expiration"],
            ),
            Wish::Create | Wish::Update => instance_wish(self == Wish::Create),
            Wish::Instances => named(json!({"instances": ids}), &[]),
            Wish::Act => named(
                json!({"instances": ids, "action": {"type": "string", "enum": ["restart", "soft_restart", "flush"]}}),
                &["instances", "action"],
            ),
            Wish::Resize => named(
                json!({"spec_code": text("A flavor of the same kind, of more or fewer replicas or of another size; not on v1.0"),
                       "new_capacity": {"type": ["number", "string"], "description": "GB, that of the flavor"},
                       "spec_param": {"type": ["object", "null"], "properties": {"sharding_count": {"type": ["integer", "string", "null"],
                           "description": "Of a cluster, 3 to 128 [default: as it is]"}}},
                       "change_type": {"type": ["string", "null"], "enum": ["createReplication", "deleteReplication", "addSharding", "instanceType", "", null],
                                       "description": "What the flavor must amount to"},
                       "node_list": {"type": ["array", "null"], "items": {"type": "string"}, "description": "Nodes of the instance: checked, and all are replaced"},
                       "reserved_ip": {"type": ["array", "null"], "items": {"type": "string"}, "description": "Makes no difference: all nodes are replaced"},
                       "available_zones": {"type": ["array", "null"], "items": {"type": "string"}, "description": "Makes no difference: there is one"},
                       "execute_immediately": {"type": ["boolean", "string", "null"], "description": "Not false"}}),
                &[],
            ),
            Wish::Migration => named(
                json!({"task_name": text("What to call it"), "description": text("Free text"),
                       "migration_type": {"type": "string", "enum": ["backupfile_import"]},
                       "migration_method": {"type": "string", "enum": ["full_amount_migration"]},
                       "backup_files": {"type": "object", "required": ["file_source", "backup_id"], "properties": {
                           "file_source": {"type": "string", "enum": ["backup_record"]},
                           "backup_id": text("A backup of any instance of the project")}},
                       "target_instance": {"type": "object", "required": ["id"], "properties": {
                           "id": text("The instance that is imported into: keys of the same name are overwritten, others stay")}}}),
                &[
                    "task_name",
                    "migration_type",
                    "migration_method",
                    "backup_files",
                    "target_instance",
                ],
            ),
            Wish::Migrations => named(json!({"task_id_list": ids}), &["task_id_list"]),
            Wish::Password => named(
                json!({"new_password": text("8 to 32 characters of three kinds"),
                       "no_password_access": flag("Clients need no password from now on")}),
                &[],
            ),
            Wish::Token => named(
                json!({"auth": {"type": "object", "required": ["identity"], "properties": {
                    "identity": {"type": "object", "required": ["methods"], "properties": {
                        "methods": {"type": "array", "items": {"type": "string", "enum": ["password", "token"]}},
                        "password": {"type": "object", "properties": {"user": {"type": "object", "properties": {
                            "id": text("The user, or its name"), "name": text("Of the user"), "password": text("Of the user"),
                            "domain": {"type": "object", "properties": {"name": text("The only domain")}}}}}},
                        "token": {"type": "object", "properties": {"id": text("A token to scope anew")}}}},
                    "scope": {"type": "object", "properties": {
                        "project": {"type": "object", "properties": {"id": text("Or its name"), "name": text("Of the project"),
                            "domain": {"type": "object", "properties": {"name": text("The only domain")}}}},
                        "domain": {"type": "object", "description": "A token that is good for no DCS call"}}}}}}),
                &["auth"],
            ),
        })
    }
}

/// What CreateInstance and UpdateInstance take.
fn instance_wish(create: bool) -> Value {
    let text = |what: &str| json!({"type": ["string", "null"], "description": what});
    let kept = "Kept and shown; no effect";
    let mut properties = json!({
        "name": text("4 to 64 characters: a letter, then letters, digits, _ and -"),
        "description": {"type": ["string", "null"], "maxLength": limits::DESCRIPTION_CHARS_MAX},
        "port": {"type": ["integer", "string", "null"], "description": "The client port; cannot be changed later"},
        "maintain_begin": text("Whole hour, with maintain_end; no effect"),
        "maintain_end": text("Whole hour, with maintain_begin; no effect"),
        "security_group_id": text(kept),
        "rename_commands": {"type": ["object", "null"], "description": kept},
        "enterprise_project_id": text(kept),
        "tags": {"type": ["array", "null"], "items": {"type": "object"}, "description": "ListInstances can look for them"},
        "instance_backup_policy": {"type": ["object", "null"], "properties": {
            "backup_type": {"type": "string", "enum": ["auto", "manual"]},
            "save_days": {"type": ["integer", "string"]},
            "periodical_backup_plan": {"type": "object", "properties": {
                "period_type": {"type": "string", "enum": ["weekly"]},
                "backup_at": {"type": "array", "items": {"type": ["integer", "string"]}},
                "begin_at": text("HH:00-HH:00"), "timezone_offset": text("+HHMM or -HHMM")}}}},
    });
    if !create {
        return json!({"type": "object", "minProperties": 1, "properties": properties});
    }
    for (name, schema) in [
        (
            "engine",
            json!({"type": "string", "enum": ["Redis", "redis", "Valkey", "valkey"],
                          "description": "Redis means any engine of the version, Valkey only that (not in strict mode)"}),
        ),
        (
            "enable_ssl",
            json!({"type": ["boolean", "null"], "description": "Clients have to speak TLS, nodes and Sentinels do among each other"}),
        ),
        (
            "engine_version",
            text(
                "One of the flavors', or with its engine as redis-7.0 [default: the service's first engine]",
            ),
        ),
        (
            "capacity",
            json!({"type": ["number", "string", "null"], "description": "GB, that of the flavor"}),
        ),
        ("spec_code", text("The flavor; product_id on v1.0")),
        ("product_id", text("The flavor, on v1.0")),
        (
            "az_codes",
            json!({"type": ["array", "null"], "items": {"type": "string"}}),
        ),
        (
            "available_zones",
            json!({"type": ["array", "null"], "items": {"type": "string"}}),
        ),
        (
            "spec_param",
            json!({"type": ["object", "null"], "properties": {
                "cache_mode": text("That of the flavor"),
                "sharding_count": {"type": ["integer", "string", "null"], "description": "Of a cluster, 3 to 128 [default: the flavor's]"},
                "replica_count": {"type": ["integer", "string", "null"], "description": "That of the flavor"}}}),
        ),
        ("vpc_id", text(kept)),
        ("subnet_id", text(kept)),
        (
            "access_user",
            text("At creation: the ACL user of clients, and the default one is off; needs a password"),
        ),
        (
            "password",
            text("8 to 32 characters of three kinds; needed unless no_password_access"),
        ),
        (
            "no_password_access",
            json!({"type": ["boolean", "string", "null"]}),
        ),
        (
            "instance_num",
            json!({"type": ["integer", "string", "null"], "description": "1 to 100"}),
        ),
        (
            "persistence",
            json!({"type": ["string", "null"], "enum": ["aof", "rdb", "none", null], "description": "Ours: what survives a crash"}),
        ),
    ] {
        properties[name] = schema;
    }
    json!({"type": "object", "required": ["name", "engine"], "properties": properties})
}

/// `GET /openapi.json`
///
/// # Errors
/// None.
pub fn serve(_request: &Request) -> Result<Reply, ApiError> {
    Ok(json_response(200, &document()))
}

/// The whole document.
pub fn document() -> Value {
    let mut paths = Map::new();
    for route in routes() {
        let entry = paths.entry(route.path.clone()).or_insert_with(|| json!({}));
        entry[route.method.to_ascii_lowercase()] = operation(&route);
    }
    json!({
        "openapi": "3.1.0",
        "info": {"title": "cachekeep", "version": env!("CARGO_PKG_VERSION"),
                 "description": "A self-hosted Distributed Cache Service: the Huawei Cloud DCS API and some verbs of its own.",
                 "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {
            "schemas": schemas(),
            "securitySchemes": {
                "token": {"type": "apiKey", "in": "header", "name": "X-Auth-Token"},
                "signature": {"type": "apiKey", "in": "header", "name": "Authorization",
                              "description": "SDK-HMAC-SHA256 over the request"}}},
    })
}

fn operation(route: &Route) -> Value {
    let in_path = route
        .path
        .split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let mut parameters: Vec<Value> = in_path
        .map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}))
        .collect();
    for name in route.query {
        parameters
            .push(json!({"name": name, "in": "query", "required": false, "schema": {"type": "string"}}));
    }
    let is_made_once = matches!(
        route.wish,
        Wish::Restore
            | Wish::Undo
            | Wish::Backup
            | Wish::Verify
            | Wish::Import
            | Wish::Attach
            | Wish::Create
            | Wish::Schedule
            | Wish::Migration
    );
    if is_made_once && Version::of(&route.path) == Version::V2 {
        parameters.push(
            json!({"name": "Idempotency-Key", "in": "header", "required": false,
                               "schema": {"type": "string", "maxLength": limits::IDEMPOTENCY_KEY_CHARS_MAX}}),
        );
    }
    let mut success = json!({"description": "Success"});
    let version = Version::of(&route.path);
    match route.answer.schema(version) {
        Some(schema) => success["content"] = json!({"application/json": {"schema": schema}}),
        None if route.answer == Answer::Bytes => {
            success["content"] = json!({"application/octet-stream": {}});
        }
        None if route.answer == Answer::Events => {
            success["content"] = json!({"text/event-stream": {}});
        }
        None => {}
    }
    let error = |name: &str, text: &str| {
        json!({"description": text,
               "content": {"application/json": {"schema": {"$ref": format!("#/components/schemas/{name}")}}}})
    };
    let refused = match version {
        Version::V1 => "ErrorV1",
        Version::V2 => "Error",
    };
    let mut responses = json!({ route.success.to_string(): success });
    if route.access == Access::Project {
        responses["400"] = error(refused, "Refused");
        responses["404"] = error(refused, "Unknown");
    }
    if route.access != Access::Open {
        responses["401"] = error("AnyError", "No usable credential");
    }
    let mut operation = json!({"operationId": route.name, "parameters": parameters, "responses": responses});
    if let Some(schema) = route.wish.schema(route.path.starts_with("/ck/")) {
        operation["requestBody"] =
            json!({"required": route.wish.is_needed(), "content": {"application/json": {"schema": schema}}});
    }
    if route.access == Access::Open {
        operation["security"] = json!([]);
    } else {
        operation["security"] = json!([{"token": []}, {"signature": []}]);
    }
    operation
}

fn schemas() -> Value {
    let mut found = Vec::new();
    macro_rules! collect {
        ($($name:ty),*) => {$(
            found.push((<$name>::name().into_owned(), <$name>::schema()));
            <$name>::schemas(&mut found);
        )*};
    }
    collect!(
        restores::RestoreList,
        restores::RestoreStarted,
        plans::RestorePlan,
        backups::BackupList,
        backups::BackupStarted,
        backups::BackupLinks,
        proofs::VerificationStarted,
        proofs::VerificationList,
        attachments::AttachmentList,
        schedules::ObjectiveShown,
        schedules::ScheduleList,
        schedules::ScheduleMade,
        schedules::RunBegun,
        schedules::Retention,
        instance_shown::InstanceShown,
        instances::BatchResults
    );
    let mut all = Map::new();
    for (name, schema) in found {
        all.insert(name, serde_json::to_value(schema).unwrap_or_default());
    }
    let text = || json!({"type": "string"});
    let mut instance_v1 = all["InstanceShown"].clone();
    for (name, schema) in [
        ("backend_addrs", json!({"type": "array", "items": text()})),
        ("domainName", text()),
        ("resource_spec_code", text()),
        ("product_id", text()),
        ("internal_version", json!({"type": ["string", "null"]})),
        ("error_code", json!({"type": ["string", "null"]})),
    ] {
        instance_v1["properties"][name] = schema;
    }
    all.insert("InstanceShownV1".to_owned(), instance_v1);
    let flat = json!({"type": "object", "required": ["error_code", "error_msg"], "properties": {
        "error_code": text(), "error_msg": text(), "error_ext_msg": {"type": ["string", "null"]}}});
    let nested = json!({"type": "object", "required": ["error"], "properties": {"error": {
        "type": "object", "required": ["code", "message"], "properties": {"code": text(), "message": text()}}}});
    all.insert("AnyError".to_owned(), json!({"anyOf": [flat, nested]}));
    all.insert("Error".to_owned(), flat);
    all.insert("ErrorV1".to_owned(), nested);
    Value::Object(all)
}
