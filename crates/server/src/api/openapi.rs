//! `/openapi.json`: made from the table of routes and the wire types, so it cannot name what does not exist.

use serde_json::{Map, Value, json};
use utoipa::{PartialSchema, ToSchema};

use super::error::{ApiError, Version, json_response};
use super::request::Request;
use super::router::{Access, Reply, Route, routes};
use super::{backups, instances, restores};

/// What a route answers when it succeeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// No body.
    Nothing,
    /// A JSON object without a schema of its own.
    Object,
    /// A file.
    Bytes,
    /// See the type of the same name.
    RestoreList,
    /// See the type of the same name.
    RestoreStarted,
    /// One restore record.
    Restore,
    /// See the type of the same name.
    BackupList,
    /// See the type of the same name.
    BackupStarted,
    /// One backup record.
    Backup,
    /// See the type of the same name.
    BackupLinks,
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
            Answer::Nothing | Answer::Bytes => return None,
            Answer::Object => json!({"type": "object"}),
            Answer::RestoreList => reference("RestoreList"),
            Answer::RestoreStarted => reference("RestoreStarted"),
            Answer::Restore => reference("RestoreRecord"),
            Answer::BackupList => reference("BackupList"),
            Answer::BackupStarted => reference("BackupStarted"),
            Answer::Backup => reference("BackupRecord"),
            Answer::BackupLinks => reference("BackupLinks"),
            Answer::Instance => reference(instance),
            Answer::BatchResults => reference("BatchResults"),
            Answer::InstanceList => json!({
                "type": "object", "required": ["instance_num", "instances"],
                "properties": {"instance_num": {"type": "integer"},
                               "instances": {"type": "array", "items": reference(instance)}}}),
        })
    }
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
    let mut success = json!({"description": "Success"});
    let version = Version::of(&route.path);
    match route.answer.schema(version) {
        Some(schema) => success["content"] = json!({"application/json": {"schema": schema}}),
        None if route.answer == Answer::Bytes => {
            success["content"] = json!({"application/octet-stream": {}});
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
    if route.body {
        operation["requestBody"] = json!({"content": {"application/json": {"schema": {"type": "object"}}}});
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
        backups::BackupList,
        backups::BackupStarted,
        backups::BackupLinks,
        instances::InstanceShown,
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
