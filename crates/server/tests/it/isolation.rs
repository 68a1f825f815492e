//! Nothing of one project is seen or touched with a credential of another, on any route.
//!
//! The routes are read from `/openapi.json`; a route without a row in `ROWS` fails the test.

use serde_json::{Value, json};

use crate::http::{Answer, Request};
use crate::service::{Caller, Credential, Service};
use crate::signer::Key;

/// What a route takes besides the project.
#[derive(Clone, Copy, PartialEq)]
enum Row {
    /// Anybody may call it; it names nothing of a project.
    Open,
    /// Any credential; it shows the caller's own project only.
    Own,
    /// Carries its own proof, see `downloads.rs`.
    Link,
    /// A project in the path and nothing else: a list, or a creation.
    Project,
    /// Instances named in the body.
    Batch,
    /// An instance in the path.
    Instance,
    /// An instance in the path and a backup in the body.
    BackupInBody,
    /// An instance and a backup in the path.
    Backup,
    /// An instance and a restore in the path.
    Restore,
    /// An instance and a schedule in the path.
    Schedule,
    /// An import task in the path or the body.
    Task,
}

/// Every route: method, path behind the prefix of the version, what it takes, a legal body.
const ROWS: [(&str, &str, Row, &str); 80] = [
    ("GET", "/", Row::Open, ""),
    ("GET", "/v2", Row::Open, ""),
    ("GET", "/v2/", Row::Open, ""),
    ("GET", "/v1.0", Row::Open, ""),
    ("GET", "/v1.0/", Row::Open, ""),
    ("GET", "/v3", Row::Open, ""),
    ("GET", "/v3/", Row::Open, ""),
    ("GET", "/healthz", Row::Open, ""),
    ("GET", "/readyz", Row::Open, ""),
    ("GET", "/openapi.json", Row::Open, ""),
    ("POST", "/v3/auth/tokens", Row::Open, ""),
    ("GET", "/v2/available-zones", Row::Own, ""),
    ("GET", "/v1.0/availableZones", Row::Own, ""),
    ("GET", "/v1.0/products", Row::Own, ""),
    ("GET", "/v3/projects", Row::Own, ""),
    ("GET", "/v3/auth/projects", Row::Own, ""),
    (
        "GET",
        "/download/{project}/{instance}/{backup}/{file}",
        Row::Link,
        "",
    ),
    ("GET", "/download/{project}/{instance}/{file}", Row::Link, ""),
    (
        "GET",
        "/v2/{project_id}/instances/{instance_id}/ssl",
        Row::Instance,
        "",
    ),
    (
        "POST",
        "/v2/{project_id}/instances/{instance_id}/ssl-certs/download",
        Row::Instance,
        "{}",
    ),
    ("GET", "{v}/instances", Row::Project, ""),
    ("GET", "{v}/instances?instance_id={instance_id}", Row::Project, ""),
    ("GET", "{v}/instances?id={instance_id}", Row::Project, ""),
    ("GET", "{v}/instances?marker={instance_id}", Row::Project, ""),
    (
        "POST",
        "{ck}/instances/{instance_id}/restores",
        Row::BackupInBody,
        r#"{"backup_id":"ID","source_instance_id":"SOURCE"}"#,
    ),
    (
        "POST",
        "{ck}/instances/{instance_id}/resize/cancel",
        Row::Instance,
        "",
    ),
    (
        "POST",
        "{ck}/instances/{instance_id}/restores/plan",
        Row::BackupInBody,
        r#"{"backup_id":"ID","source_instance_id":"SOURCE"}"#,
    ),
    (
        "POST",
        "/v2/{project_id}/migration-task",
        Row::BackupInBody,
        r#"{"task_name":"t","migration_type":"backupfile_import","migration_method":"full_amount_migration",
            "backup_files":{"file_source":"backup_record","backup_id":"ID"},"target_instance":{"id":"INSTANCE"}}"#,
    ),
    ("GET", "/v2/{project_id}/migration-tasks", Row::Project, ""),
    ("GET", "/v2/{project_id}/migration-task/{task_id}", Row::Task, ""),
    (
        "POST",
        "/v2/{project_id}/migration-task/{task_id}/stop",
        Row::Task,
        "",
    ),
    (
        "DELETE",
        "/v2/{project_id}/migration-tasks/delete",
        Row::Task,
        r#"{"task_id_list":["TASK"]}"#,
    ),
    ("GET", "{v}/flavors", Row::Project, ""),
    ("POST", "{v}/instances", Row::Project, r#"{"engine":"none"}"#),
    ("DELETE", "{v}/instances", Row::Batch, r#"{"instances":["ID"]}"#),
    (
        "PUT",
        "{v}/instances/status",
        Row::Batch,
        r#"{"instances":["ID"],"action":"flush"}"#,
    ),
    ("GET", "{v}/instances/{instance_id}", Row::Instance, ""),
    (
        "PUT",
        "{v}/instances/{instance_id}",
        Row::Instance,
        r#"{"name":"taken-over"}"#,
    ),
    ("DELETE", "{v}/instances/{instance_id}", Row::Instance, ""),
    (
        "PUT",
        "/v2/{project_id}/instance/{instance_id}",
        Row::Instance,
        r#"{"name":"taken-over"}"#,
    ),
    (
        "POST",
        "{v}/instances/{instance_id}/password/reset",
        Row::Instance,
        r#"{"new_password":"Abcdefg1"}"#,
    ),
    (
        "POST",
        "/v2/{project_id}/instances/{instance_id}/resize",
        Row::Instance,
        r#"{"spec_code":"redis.single.xu1.tiny.256","new_capacity":0.25}"#,
    ),
    (
        "POST",
        "/v1.0/{project_id}/instances/{instance_id}/extend",
        Row::Instance,
        r#"{"new_capacity":0.25}"#,
    ),
    (
        "GET",
        "/v2/{project_id}/instances/{instance_id}/logical-nodes",
        Row::Instance,
        "",
    ),
    (
        "GET",
        "/v2/{project_id}/instance/{instance_id}/groups",
        Row::Instance,
        "",
    ),
    (
        "GET",
        "/v2/{project_id}/instances-logical-nodes",
        Row::Project,
        "",
    ),
    ("GET", "{v}/instances/{instance_id}/restores", Row::Instance, ""),
    ("GET", "{v}/instances/{instance_id}/backups", Row::Instance, ""),
    (
        "POST",
        "{v}/instances/{instance_id}/backups",
        Row::Instance,
        r#"{"remark":"stolen"}"#,
    ),
    (
        "POST",
        "{v}/instances/{instance_id}/restores",
        Row::BackupInBody,
        r#"{"backup_id":"ID"}"#,
    ),
    (
        "DELETE",
        "{v}/instances/{instance_id}/backups/{backup_id}",
        Row::Backup,
        "",
    ),
    (
        "POST",
        "{v}/instances/{instance_id}/backups/{backup_id}/links",
        Row::Backup,
        r#"{"expiration":300}"#,
    ),
    (
        "POST",
        "{ck}/instances/{instance_id}/restores",
        Row::BackupInBody,
        r#"{"backup_id":"ID"}"#,
    ),
    (
        "GET",
        "{ck}/instances/{instance_id}/restores/{restore_id}",
        Row::Restore,
        "",
    ),
    (
        "GET",
        "{ck}/instances/{instance_id}/restores/{restore_id}/events",
        Row::Restore,
        "",
    ),
    (
        "POST",
        "{ck}/instances/{instance_id}/restores/{restore_id}/undo",
        Row::Restore,
        "",
    ),
    (
        "POST",
        "{ck}/instances/{instance_id}/restores/{restore_id}/cancel",
        Row::Restore,
        "",
    ),
    (
        "POST",
        "{ck}/instances/{instance_id}/restores/plan",
        Row::BackupInBody,
        r#"{"backup_id":"ID"}"#,
    ),
    (
        "GET",
        "{ck}/instances/{instance_id}/backups/{backup_id}",
        Row::Backup,
        "",
    ),
    (
        "POST",
        "{ck}/instances/{instance_id}/backups/{backup_id}/verify",
        Row::Backup,
        r#"{"level":"stored"}"#,
    ),
    (
        "POST",
        "{ck}/instances/{instance_id}/backups/{backup_id}/verify/cancel",
        Row::Backup,
        "",
    ),
    (
        "POST",
        "{ck}/instances/{instance_id}/backups/{backup_id}/cancel",
        Row::Backup,
        "",
    ),
    (
        "GET",
        "{ck}/instances/{instance_id}/backups/{backup_id}/verifications",
        Row::Backup,
        "",
    ),
    (
        "POST",
        "{ck}/instances/{instance_id}/imports",
        Row::Instance,
        r#"{"url":"https://127.0.0.1/stolen"}"#,
    ),
    ("GET", "{ck}/attachments", Row::Project, ""),
    (
        "POST",
        "{ck}/attachments",
        Row::Project,
        r#"{"name":"stolen","addresses":["127.0.0.1:1"]}"#,
    ),
    ("GET", "{ck}/attachments/{instance_id}", Row::Instance, ""),
    ("DELETE", "{ck}/attachments/{instance_id}", Row::Instance, ""),
    ("GET", "{ck}/instances/{instance_id}/schedules", Row::Instance, ""),
    (
        "PUT",
        "{ck}/instances/{instance_id}/rpo",
        Row::Instance,
        r#"{"objective_minutes": 60}"#,
    ),
    (
        "POST",
        "{ck}/instances/{instance_id}/schedules",
        Row::Instance,
        r#"{"name":"stolen","cron":"0 0 1 1 *"}"#,
    ),
    (
        "DELETE",
        "{ck}/instances/{instance_id}/schedules/{schedule_id}",
        Row::Schedule,
        "",
    ),
    (
        "POST",
        "{ck}/instances/{instance_id}/schedules/{schedule_id}/run",
        Row::Schedule,
        "",
    ),
    ("GET", "{ck}/instances/{instance_id}/drills", Row::Instance, ""),
    ("GET", "{ck}/instances/{instance_id}/retention", Row::Instance, ""),
    (
        "PUT",
        "{ck}/instances/{instance_id}/backups/{backup_id}/hold",
        Row::Backup,
        r#"{"reason":"stolen"}"#,
    ),
    (
        "DELETE",
        "{ck}/instances/{instance_id}/backups/{backup_id}/hold",
        Row::Backup,
        "",
    ),
    // As above with the query that reaches deleted instances.
    (
        "GET",
        "{v}/instances/{instance_id}/restores?include_deleted=true",
        Row::Instance,
        "",
    ),
    (
        "GET",
        "{v}/instances/{instance_id}/backups?include_deleted=true",
        Row::Instance,
        "",
    ),
    (
        "GET",
        "{v}/instances?include_failure=true&include_delete=true",
        Row::Project,
        "",
    ),
];

const UNKNOWN: &str = "0e37df36-f698-11e6-8dd4-cb9ced3df976";
const NO_PROJECT: &str = "0123456789abcdef0123456789abcdef";

/// A row under each prefix that it has.
struct Route {
    method: &'static str,
    path: String,
    row: Row,
    body: &'static str,
}

fn rows() -> Vec<Route> {
    let mut all = Vec::new();
    for (method, path, row, body) in ROWS {
        let prefixes: &[&str] = match path.get(..3) {
            Some("{v}") => &["/v2/{project_id}", "/v1.0/{project_id}"],
            Some("{ck") => &["/ck/v1/{project_id}"],
            _ => &[""],
        };
        let rest = path.trim_start_matches("{v}").trim_start_matches("{ck}");
        for prefix in prefixes {
            all.push(Route {
                method,
                path: format!("{prefix}{rest}"),
                row,
                body,
            });
        }
    }
    all
}

#[test]
fn every_route_of_the_service_has_its_row_here() {
    let service = Service::start();
    let document = service
        .connect()
        .send(&Request::new("GET", "/openapi.json"))
        .expect(200)
        .json();
    let rows = rows();
    let mut served = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            served.push((method.to_uppercase(), path.clone()));
        }
    }
    assert!(served.len() > 40, "{served:?}");
    for (method, path) in &served {
        let known = rows.iter().any(|row| row.method == method && row.path == *path);
        assert!(
            known,
            "{method} {path} has no row in isolation.rs: say what it takes"
        );
    }
    for row in rows.iter().filter(|row| !row.path.contains('?')) {
        let known = served
            .iter()
            .any(|(method, path)| method == row.method && *path == row.path);
        assert!(known, "{} {} is no route any more", row.method, row.path);
    }
}

/// The ids of one project's things.
#[derive(Clone)]
struct Ids {
    instance: String,
    /// The instance that a backup is said to be of.
    source: String,
    backup: String,
    restore: String,
    schedule: String,
    task: String,
}

/// The request of a row for these ids.
fn request(route: &Route, project: &str, ids: &Ids) -> Request {
    let target = route
        .path
        .replace("{project_id}", project)
        .replace("{instance_id}", &ids.instance)
        .replace("{backup_id}", &ids.backup)
        .replace("{restore_id}", &ids.restore)
        .replace("{schedule_id}", &ids.schedule)
        .replace("{task_id}", &ids.task);
    let id = if route.row == Row::Batch {
        &ids.instance
    } else {
        &ids.backup
    };
    let body = route
        .body
        .replace("\"ID\"", &format!("\"{id}\""))
        .replace("SOURCE", &ids.source)
        .replace("INSTANCE", &ids.instance)
        .replace("TASK", &ids.task);
    Request::new(route.method, &target).body(body.as_bytes())
}

/// Status and body without what must differ: the request's own id, and the ids that were sent.
fn seen(answer: &Answer, ids: &Ids) -> (u16, String) {
    let mut text = answer.text();
    if let Some(id) = answer.header("x-request-id") {
        text = text.replace(id, "REQUEST");
    }
    for id in [
        &ids.instance,
        &ids.source,
        &ids.backup,
        &ids.restore,
        &ids.schedule,
        &ids.task,
    ] {
        text = text.replace(id.as_str(), "ID");
    }
    // Measured every few seconds: it may change between two calls.
    for megabytes in 0..10 {
        text = text.replace(&format!("\"used_memory\":{megabytes},"), "\"used_memory\":0,");
    }
    (answer.status, text)
}

/// A project with an instance, a backup and a restore, all named so that they are found in any text.
fn furnished(caller: &Caller, name: &str) -> Ids {
    let instance = caller.make_instance(name);
    let backup = caller.make_backup(&instance, name);
    let restore = caller.make_restore(&instance, &backup, name);
    let wish = json!({"name": name, "cron": "0 0 1 1 *"});
    let path = format!("/instances/{instance}/schedules");
    let made = caller.ck("POST", &path, Some(&wish)).expect(200).json();
    let task = crate::migrations::begin(caller, &backup, &instance);
    crate::migrations::ended(caller, &task);
    caller.wait_idle(&instance);
    Ids {
        task,
        schedule: made["schedule_id"].as_str().unwrap().to_owned(),
        source: instance.clone(),
        instance,
        backup,
        restore,
    }
}

fn token(service: &Service, user: &str, password: &str, scope: &Value) -> String {
    let body = json!({"auth": {"identity": {"methods": ["password"],
        "password": {"user": {"name": user, "password": password}}}, "scope": scope}});
    let answer = service
        .connect()
        .send(&Request::json("POST", "/v3/auth/tokens", &body))
        .expect(201);
    answer.header("x-subject-token").unwrap().to_owned()
}

#[test]
fn no_credential_but_its_own_reaches_anything_of_a_project_on_any_route() {
    let service = Service::start();
    let victim = service.second_project("victim-project");
    let key = Credential::Key(victim.key.clone());
    let owner = service.caller_with(&victim.project, key);
    let ids = furnished(&owner, "victim-name");
    let before = everything(&owner, &ids);

    let (user, password) = (service.admin("user"), service.admin("password"));
    let (own, domain) = (
        service.admin("project_id").to_owned(),
        json!({"domain": {"name": service.admin("domain")}}),
    );
    let expired = token(&service, &victim.user, &victim.password, &Value::Null);
    service.sql("UPDATE token SET expires_at_ms = 1000");
    // One that is still remembered, and one that a later log-in has swept away.
    let domain_of_victim = token(&service, &victim.user, &victim.password, &domain);
    let unscoped = token(&service, user, password, &domain);
    let strangers = [
        (
            "token of another project",
            Credential::Token(token(&service, user, password, &Value::Null)),
            true,
        ),
        ("key of another project", Credential::Key(service.key()), true),
        ("no credential", Credential::Nothing, false),
        ("expired token of the owner", Credential::Token(expired), false),
        ("token for a domain only", Credential::Token(unscoped), false),
        (
            "the owner's token for a domain only",
            Credential::Token(domain_of_victim),
            false,
        ),
        (
            "wrong secret",
            Credential::Key(Key {
                sk: "0".repeat(40),
                ..victim.key.clone()
            }),
            false,
        ),
        ("invented token", Credential::Token("f".repeat(64)), false),
    ];
    // An instance of the stranger's own, so that a foreign backup can be named on an instance that exists.
    let mine = service.caller().make_instance("strangers-own");
    let unknown = Ids {
        instance: UNKNOWN.to_owned(),
        source: UNKNOWN.to_owned(),
        backup: UNKNOWN.to_owned(),
        restore: UNKNOWN.to_owned(),
        schedule: UNKNOWN.to_owned(),
        task: UNKNOWN.to_owned(),
    };
    let names = ["victim", victim.project.as_str(), &ids.restore, &victim.user];
    for (who, credential, known) in &strangers {
        let caller = service.caller_with("", credential.clone());
        for route in rows()
            .iter()
            .filter(|route| !matches!(route.row, Row::Open | Row::Link))
        {
            let what = format!("{who}: {} {}", route.method, route.path);
            let send = |project: &str, ids: &Ids| seen(&caller.send(request(route, project, ids)), ids);
            if route.row == Row::Own {
                let (status, text) = send("", &ids);
                assert_eq!(status, if *known { 200 } else { 401 }, "{what}: {text}");
                assert!(!text.contains("victim"), "{what}: {text}");
                continue;
            }
            let foreign = send(&victim.project, &ids);
            assert_eq!(foreign.0, 401, "{what}: {foreign:?}");
            assert_eq!(
                foreign,
                send(NO_PROJECT, &ids),
                "{what}: another project exists or not"
            );
            assert_eq!(
                foreign,
                send(&victim.project, &unknown),
                "{what}: an instance exists or not"
            );
            let code = if foreign.1.contains("1004") {
                "1004"
            } else {
                "APIGW.0301"
            };
            assert!(foreign.1.contains(code), "{what}: {foreign:?}");
            let within = send(&own, &ids);
            assert_eq!(
                within,
                send(&own, &unknown),
                "{what}: foreign and unknown ids differ"
            );
            if *known {
                assert!(foreign.1.contains("1004"), "{what}: {foreign:?}");
                if !matches!(route.row, Row::Project | Row::Batch) {
                    assert!(within.0 >= 400, "{what}: {within:?}");
                }
                // The foreign record on an instance of one's own.
                let mixed = Ids {
                    instance: mine.clone(),
                    ..ids.clone()
                };
                let none = Ids {
                    instance: mine.clone(),
                    ..unknown.clone()
                };
                if matches!(
                    route.row,
                    Row::BackupInBody | Row::Backup | Row::Restore | Row::Schedule
                ) {
                    let (foreign, unknown) = (send(&own, &mixed), send(&own, &none));
                    assert!(foreign.0 >= 400, "{what}: {foreign:?}");
                    assert_eq!(foreign, unknown, "{what}: a foreign record is no unknown one");
                }
            } else {
                assert_eq!(within.0, 401, "{what}: {within:?}");
            }
            for text in [&foreign.1, &within.1] {
                for name in names {
                    assert!(!text.contains(name), "{what} tells {name}: {text}");
                }
            }
        }
    }
    assert_eq!(everything(&owner, &ids), before, "nothing was changed");
    let own_list = service.caller().get("/instances?limit=1000").expect(200).json();
    assert_eq!(own_list["instance_num"], 1);
}

/// All that the owner sees.
fn everything(owner: &Caller, ids: &Ids) -> Vec<Value> {
    let instance = format!("/instances/{}", ids.instance);
    ["", "/backups", "/restores"]
        .iter()
        .map(|what| {
            let mut shown = owner.get(&format!("{instance}{what}")).expect(200).json();
            // Measured every few seconds, and nobody's doing.
            if let Some(fields) = shown.as_object_mut() {
                fields.remove("used_memory");
            }
            shown
        })
        .collect()
}

#[test]
fn records_of_a_deleted_instance_are_its_own_projects_only() {
    let service = Service::start();
    let victim = service.second_project("victim-project");
    let owner = service.caller_with(&victim.project, Credential::Key(victim.key.clone()));
    let ids = furnished(&owner, "victim-name");
    owner
        .v2("DELETE", &format!("/instances/{}", ids.instance), None)
        .expect(204);
    let stranger = service.caller();
    for what in ["restores", "backups"] {
        let path = format!("/instances/{}/{what}", ids.instance);
        owner.get(&path).refused("404 DCS.3022");
        let kept = owner
            .get(&format!("{path}?include_deleted=true"))
            .expect(200)
            .json();
        assert!(kept["total_num"].as_u64().unwrap() >= 1, "{kept}");
        stranger.get(&path).refused("404 DCS.3022");
        stranger
            .get(&format!("{path}?include_deleted=true"))
            .refused("404 DCS.3022");
    }
    let path = format!("/instances/{}/backups/{}", ids.instance, ids.backup);
    stranger.ck("GET", &path, None).refused("404 DCS.3022");
    stranger.v2("DELETE", &path, None).refused("404 DCS.3022");
    owner.ck("GET", &path, None).expect(200);
    owner.v2("DELETE", &path, None).expect(204);
    owner.v2("DELETE", &path, None).refused("400 DCS.4031");
}
