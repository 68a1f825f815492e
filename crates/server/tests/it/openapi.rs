//! `/openapi.json` describes what the service really answers.

use std::path::Path;

use serde_json::{Value, json};
use xtask::foreign::{Access, Deployment, Form};

use crate::http::Request;
use crate::service::Service;

/// Follows `#/components/schemas/Name`.
#[track_caller]
fn resolve<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(reference) => {
            let pointer = reference
                .strip_prefix('#')
                .expect("a reference within the document");
            let found = document
                .pointer(pointer)
                .unwrap_or_else(|| panic!("{reference} leads nowhere"));
            resolve(document, found)
        }
        None => schema,
    }
}

fn all_references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, inner) in fields {
                match inner.as_str() {
                    Some(reference) if name == "$ref" => found.push(reference.to_owned()),
                    _ => all_references(inner, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| all_references(item, found)),
        _ => {}
    }
}

/// How the value differs from what the schema says: a type, a required field that is missing, a field that is not
/// documented.
fn check(document: &Value, schema: &Value, value: &Value, place: &str) -> Result<(), String> {
    let schema = resolve(document, schema);
    if let Some(choices) = schema["oneOf"].as_array().or(schema["anyOf"].as_array()) {
        let fits = choices
            .iter()
            .any(|choice| check(document, choice, value, place).is_ok());
        return if fits {
            Ok(())
        } else {
            Err(format!("{place}: {value} fits none of {schema}"))
        };
    }
    let types = match &schema["type"] {
        Value::String(one) => vec![one.as_str()],
        Value::Array(several) => several.iter().filter_map(Value::as_str).collect(),
        _ => return Ok(()),
    };
    let fits = |name: &&str| match *name {
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "null" => value.is_null(),
        other => panic!("{place}: unknown type {other}"),
    };
    if !types.iter().any(fits) {
        return Err(format!("{place}: {value} is none of {types:?}"));
    }
    for (at, item) in value.as_array().into_iter().flatten().enumerate() {
        check(document, &schema["items"], item, &format!("{place}[{at}]"))?;
    }
    let (Some(properties), Some(fields)) = (schema["properties"].as_object(), value.as_object()) else {
        return Ok(());
    };
    let required = schema["required"].as_array().into_iter().flatten();
    for name in required.filter_map(Value::as_str) {
        if !fields.contains_key(name) {
            return Err(format!("{place}: {name} is required and missing in {value}"));
        }
    }
    for (name, inner) in fields {
        let documented = properties.get(name);
        let documented = documented.ok_or_else(|| format!("{place}: {name} is not documented"))?;
        check(document, documented, inner, &format!("{place}.{name}"))?;
    }
    Ok(())
}

#[test]
fn every_reference_resolves_and_every_operation_has_its_own_id() {
    let service = Service::start();
    let answer = service
        .connect()
        .send(&Request::new("GET", "/openapi.json"))
        .expect(200);
    let document = answer.json();
    assert_eq!(document["openapi"], "3.1.0");
    let mut references = Vec::new();
    all_references(&document, &mut references);
    assert!(references.len() > 50);
    for reference in &references {
        resolve(&document, &json!({ "$ref": reference }));
    }
    let mut ids = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let what = format!("{method} {path}");
            ids.push(operation["operationId"].as_str().unwrap().to_owned());
            let parameters = operation["parameters"].as_array().unwrap();
            for name in path
                .split('{')
                .skip(1)
                .map(|rest| rest.split('}').next().unwrap())
            {
                let declared = parameters
                    .iter()
                    .any(|row| row["name"] == name && row["in"] == "path");
                assert!(declared, "{what}: {name} is not declared");
            }
            assert!(
                operation["responses"]
                    .as_object()
                    .unwrap()
                    .keys()
                    .any(|status| status.starts_with('2')),
                "{what}"
            );
            // All that these have to say is in their path.
            let says_all = ["/cancel", "/run", "/stop", "/ssl-certs/download"];
            if (method == "post" || method == "put") && !says_all.iter().any(|end| path.ends_with(end)) {
                let body = &operation["requestBody"]["content"]["application/json"]["schema"];
                let fields = body["properties"].as_object();
                assert!(fields.is_some_and(|fields| !fields.is_empty()), "{what}: {body}");
            }
            for scheme in operation["security"].as_array().unwrap() {
                let name = scheme.as_object().unwrap().keys().next().unwrap();
                assert!(
                    document["components"]["securitySchemes"].get(name).is_some(),
                    "{what}: {name}"
                );
            }
        }
    }
    let count = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), count, "an operationId is used twice");
}

#[test]
fn answers_of_every_documented_get_and_post_have_the_documented_fields() {
    let service = Service::start_with(&["--attach-allow", "127.0.0.1"], &[]);
    let caller = service.caller();
    let document = service
        .connect()
        .send(&Request::new("GET", "/openapi.json"))
        .expect(200)
        .json();
    let foreign = Deployment::start(Path::new("redis-server"), Form::Single, Access::Open, &[]).unwrap();
    let address = format!("127.0.0.1:{}", foreign.nodes[0].port);
    let instance = caller.make_instance("described");
    let backup = caller.make_backup(&instance, "one");
    let restore = caller.make_restore(&instance, &backup, "two");
    let mut seen = 0;
    let mut compare = |method: &str, path: &str, target: &str, body: Option<&Value>| {
        let operation = &document["paths"][path][method.to_lowercase()];
        let request = match body {
            Some(body) => Request::json(method, target, body),
            None => Request::new(method, target),
        };
        if let Some(body) = body.filter(|body| **body != json!({})) {
            let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
            assert!(schema["properties"].is_object(), "{method} {path}: {schema}");
            if let Err(why) = check(&document, schema, body, &format!("body of {method} {path}")) {
                panic!("{why}");
            }
        }
        let answer = caller.send(request);
        let documented = &operation["responses"][answer.status.to_string()];
        assert!(
            documented.is_object(),
            "{method} {path}: {} is not documented: {}",
            answer.status,
            answer.text()
        );
        let schema = &documented["content"]["application/json"]["schema"];
        if schema.is_object()
            && let Err(why) = check(&document, schema, &answer.json(), &format!("{method} {path}"))
        {
            panic!("{why}");
        }
        seen += 1;
        answer
    };
    let attachments = "/ck/v1/{project_id}/attachments";
    let wish = json!({"name": "attached", "addresses": [address]});
    let target = attachments.replace("{project_id}", &caller.project);
    let attached = compare("POST", attachments, &target, Some(&wish))
        .expect(200)
        .json();
    let attached = attached["instance_id"].as_str().unwrap();
    let task = crate::migrations::begin(&caller, &backup, &instance);
    crate::migrations::ended(&caller, &task);
    caller.wait_idle(&instance);
    let fill = |path: &str| {
        let instance = if path.contains("/attachments/") {
            attached
        } else {
            &instance
        };
        path.replace("{project_id}", &caller.project)
            .replace("{instance_id}", instance)
            .replace("{backup_id}", &backup)
            .replace("{restore_id}", &restore)
            .replace("{task_id}", &task)
    };
    for (path, methods) in document["paths"].as_object().unwrap() {
        if methods.get("get").is_some() && !path.starts_with("/download") {
            let answer = compare("GET", path, &fill(path), None);
            assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        }
    }
    for version in ["/v2", "/v1.0"] {
        let one = format!("{version}/{{project_id}}/instances/{{instance_id}}");
        let links = format!("{one}/backups/{{backup_id}}/links");
        compare("POST", &links, &fill(&links), Some(&json!({"expiration": 300}))).expect(200);
        let backups = format!("{one}/backups");
        compare("POST", &backups, &fill(&backups), None).expect(200);
        caller.wait_idle(&instance);
        let restores = format!("{one}/restores");
        compare(
            "POST",
            &restores,
            &fill(&restores),
            Some(&json!({"backup_id": backup})),
        )
        .expect(200);
        caller.wait_idle(&instance);
        compare("POST", &restores, &fill(&restores), Some(&json!({}))).expect(400);
        let unknown = fill(&restores).replace(&instance, "f4823e9e-fe9b-4ffd-be79-4e5d6de272bb");
        compare("GET", &restores, &unknown, None).expect(404);
        let foreign = fill(&restores).replace(&caller.project, "0123456789abcdef0123456789abcdef");
        compare("GET", &restores, &foreign, None).expect(401);
        let status = format!("{version}/{{project_id}}/instances/status");
        let wish = json!({"instances": [instance], "action": "flush"});
        compare("PUT", &status, &fill(&status), Some(&wish)).expect(200);
        caller.wait_idle(&instance);
    }
    assert!(seen > 40, "{seen} answers compared");
}
