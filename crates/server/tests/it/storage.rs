//! Backups in a real S3 server, end to end, and what happens when it goes away.

use std::process::{Command, Output};
use std::time::Duration;

use serde_json::{Value, json};
use xtask::fault_proxy::FaultProxy;
use xtask::object_server::ObjectServer;

use crate::http::Request;
use crate::service::{Caller, Service, wait};

pub const BUCKET: &str = "offsite-backups";
const ACCESS_KEY: &str = "ACCESS0KEY0CANARY";
const SECRET_KEY: &str = "secret+key/canary";

struct World {
    server: ObjectServer,
    proxy: FaultProxy,
    service: Service,
}

impl World {
    /// A service whose backups go to S3, through a proxy.
    fn new() -> Self {
        let server = ObjectServer::start(BUCKET).unwrap_or_else(|stop| panic!("{stop}"));
        let proxy = FaultProxy::start(server.address(), 1, Duration::from_secs(1)).unwrap();
        let service = Service::start_with(&["--store-patience", "3"], &[]);
        let world = Self {
            server,
            proxy,
            service,
        };
        let added = world.add("offsite", &[]);
        assert!(
            added.status.success(),
            "{}",
            String::from_utf8_lossy(&added.stderr)
        );
        world.service.run_json(&["storage", "default", "offsite"]);
        world
    }

    fn add(&self, name: &str, words: &[&str]) -> Output {
        let endpoint = format!("http://{}", self.proxy.address());
        add(&self.service, name, &endpoint, words)
    }

    /// The objects of backups; the journal and the copies of the catalogue have some of their own.
    fn objects(&self) -> Vec<String> {
        let mut names = self.server.names(BUCKET).unwrap();
        names.retain(|name| !name.contains("/journal/") && !name.contains("/catalog/"));
        names
    }
}

pub fn add(service: &Service, name: &str, endpoint: &str, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cachekeep"))
        .args([
            "storage",
            "add",
            name,
            "--kind",
            "s3",
            "--endpoint",
            endpoint,
            "-o",
            "json",
        ])
        .args([
            "--bucket",
            BUCKET,
            "--prefix",
            "cachekeep/one",
            "--access-key",
            ACCESS_KEY,
        ])
        .args(words)
        .arg("--data-dir")
        .arg(service.data())
        .env("CACHEKEEP_STORAGE_SECRET_KEY", SECRET_KEY)
        .output()
        .unwrap()
}

fn show_backup(caller: &Caller, instance: &str, backup: &str) -> Value {
    let path = format!("/instances/{instance}/backups/{backup}");
    caller.ck("GET", &path, None).expect(200).json()
}

#[test]
fn a_backup_in_s3_is_made_restored_downloaded_and_deleted() {
    let world = World::new();
    let caller = world.service.caller();
    let instance = caller.make_instance("far-away");
    let mut engine = caller.engine(&instance);
    engine.ask(&["SET", "key", "before"]).unwrap();
    let backup = caller.make_backup(&instance, "to S3");
    assert_eq!(
        show_backup(&caller, &instance, &backup)["ext"]["storage"],
        "offsite"
    );
    let objects = world.objects();
    assert_eq!(objects.len(), 4, "{objects:?}");
    assert!(
        objects
            .iter()
            .all(|name| name.starts_with("cachekeep/one/") && name.contains(&backup))
    );
    assert!(
        std::fs::read_dir(world.service.data().join("store"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .all(|name| name == "journal" || name == "catalog"),
        "nothing lies in the local folder"
    );

    engine.ask(&["SET", "key", "after"]).unwrap();
    caller.make_restore(&instance, &backup, "from S3");
    let mut engine = caller.engine(&instance);
    assert_eq!(engine.ask(&["GET", "key"]).unwrap().text(), Some("before"));

    let path = format!("/instances/{instance}/backups/{backup}/links");
    let links = caller
        .v2("POST", &path, Some(&json!({"expiration": 300})))
        .expect(200)
        .json();
    let link = links["links"][0]["link"].as_str().unwrap();
    let target = link.strip_prefix(world.service.admin("endpoint")).unwrap();
    let mut connection = world.service.connect();
    let file = connection.send(&Request::new("GET", target)).expect(200);
    assert!(file.body.starts_with(b"REDIS00"));
    let piece = connection
        .send(&Request::new("GET", target).with("Range", "bytes=0-4"))
        .expect(206);
    assert_eq!(piece.body, b"REDIS");

    // A later default does not move what exists.
    world.service.run_json(&["storage", "default", "local"]);
    let near = caller.make_backup(&instance, "near");
    assert_eq!(show_backup(&caller, &instance, &near)["ext"]["storage"], "local");
    assert_eq!(world.objects().len(), 4);
    caller.make_restore(&instance, &backup, "still there");

    caller
        .v2("DELETE", &format!("/instances/{instance}/backups/{backup}"), None)
        .expect(204);
    let since = std::time::Instant::now();
    wait("the objects to go", || world.objects().is_empty().then_some(()));
    assert!(
        since.elapsed() < Duration::from_secs(4),
        "the sweeper is told, it does not come by in its round only"
    );
    connection.send(&Request::new("GET", target)).expect(404);
    caller.make_restore(&instance, &near, "the local one is as it was");
}

#[test]
fn a_store_that_is_away_fails_clearly_and_deletions_are_made_up_for() {
    let world = World::new();
    let caller = world.service.caller();
    let instance = caller.make_instance("away");
    caller.engine(&instance).ask(&["SET", "key", "old"]).unwrap();
    let stored = caller.make_backup(&instance, "before the outage");
    caller.engine(&instance).ask(&["SET", "key", "serving"]).unwrap();
    world.proxy.set_down(true);

    let failed = caller.start_backup(&instance, "into nothing");
    let record = caller.wait_end(&instance, "backups", &failed);
    assert_eq!(
        (&record["status"], &record["error_code"]),
        (&json!("failed"), &json!("dcs.08.0005"))
    );
    let why = record["ext"]["failure"].as_str().unwrap();
    assert!(
        why.contains("the store fails or cannot be reached") && why.contains(BUCKET),
        "{why}"
    );

    let path = format!("/instances/{instance}/restores");
    let started = caller
        .v2("POST", &path, Some(&json!({"backup_id": stored})))
        .expect(200)
        .json();
    let record = caller.wait_end(&instance, "restores", started["restore_id"].as_str().unwrap());
    assert_eq!(
        (&record["status"], &record["error_code"]),
        (&json!("failed"), &json!("dcs.08.0006"))
    );
    assert_eq!(record["ext"]["target_state"], "untouched", "{record}");
    let mut engine = caller.engine(&instance);
    assert_eq!(engine.ask(&["GET", "key"]).unwrap().text(), Some("serving"));

    let since = std::time::Instant::now();
    caller
        .v2("DELETE", &format!("/instances/{instance}/backups/{stored}"), None)
        .expect(204);
    assert!(
        since.elapsed() < Duration::from_secs(2),
        "the request does not wait for the store"
    );
    assert_eq!(world.objects().len(), 4, "the store has not heard of it");
    world.proxy.set_down(false);
    wait("the objects to go once the store is back", || {
        world.objects().is_empty().then_some(())
    });
    // The service has closed the connection by then: nothing was said on it for ten seconds.
    let caller = world.service.caller();
    let after = caller.make_backup(&instance, "after the outage");
    caller.make_restore(&instance, &after, "");
    assert!(!world.service.log().contains(SECRET_KEY));
}

#[test]
fn storages_are_listed_probed_chosen_by_project_and_keep_their_secrets() {
    let world = World::new();
    let service = &world.service;
    let second = service.second_project("team2");
    let added = world.add("team2-only", &["--project", "team2", "--region", "eu-1"]);
    assert!(added.status.success());
    let shown = String::from_utf8(added.stdout).unwrap();
    let refused = service.run(&["storage", "default", "team2-only"]);
    assert_eq!(refused.status.code(), Some(1));
    service.run_json(&["storage", "default", "team2-only", "--project", "team2"]);
    let listed = service.run_json(&["storage", "list"]);
    let rows: Vec<_> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|row| {
            let text = |name: &str| row[name].as_str().unwrap_or("-").to_owned();
            (text("name"), text("kind"), text("project"), text("default_for"))
        })
        .collect();
    let row = |name: &str, kind: &str, project: &str, default: &str| {
        (
            name.to_owned(),
            kind.to_owned(),
            project.to_owned(),
            default.to_owned(),
        )
    };
    assert_eq!(
        rows,
        [
            row("local", "folder", "-", ""),
            row("offsite", "s3", "-", "*"),
            row("team2-only", "s3", "team2", "team2"),
        ]
    );
    let probed = service.run_json(&["storage", "probe", "offsite"]);
    for word in ["write", "head", "read", "range", "list", "delete", "gone"] {
        assert_eq!(probed["capabilities"][word], true, "{probed}");
    }
    assert!(world.objects().is_empty(), "the probe leaves nothing");

    let taken = world.add("offsite", &[]);
    assert!(String::from_utf8_lossy(&taken.stderr).contains("already"));
    let local = world.add("local", &[]);
    assert_eq!(local.status.code(), Some(1));
    let far = add(service, "far", "http://10.0.0.1:9000", &[]);
    assert!(String::from_utf8_lossy(&far.stderr).contains("--insecure"));
    world.proxy.set_down(true);
    let down = service.run(&["storage", "probe", "offsite"]);
    let said = String::from_utf8(down.stderr).unwrap();
    assert!(
        said.contains("does not do what backups need") && said.contains("write"),
        "{said}"
    );
    let down = world.add("new", &[]);
    assert_eq!(down.status.code(), Some(1), "what does not work is not added");
    world.proxy.set_down(false);

    let catalogue = std::fs::read(service.data().join("catalog.sqlite")).unwrap();
    let journal = std::fs::read(service.data().join("catalog.sqlite-wal")).unwrap_or_default();
    for canary in [ACCESS_KEY, SECRET_KEY] {
        let is_in = |bytes: &[u8]| bytes.windows(canary.len()).any(|part| part == canary.as_bytes());
        assert!(
            !is_in(&catalogue) && !is_in(&journal),
            "{canary} lies in the catalogue"
        );
        assert!(!shown.contains(canary) && !listed.to_string().contains(canary));
        assert!(!said.contains(canary) && !service.log().contains(canary));
    }
    let other = service.caller_with(
        &second.project,
        crate::service::Credential::Key(second.key.clone()),
    );
    let instance = other.make_instance("theirs");
    let backup = other.make_backup(&instance, "");
    assert_eq!(
        show_backup(&other, &instance, &backup)["ext"]["storage"],
        "team2-only"
    );
}

#[test]
fn refused_credentials_are_said_to_be_that() {
    let server = ObjectServer::start_refusing(BUCKET).unwrap_or_else(|stop| panic!("{stop}"));
    let service = Service::start();
    let endpoint = format!("http://{}", server.address());
    let refused = add(&service, "closed", &endpoint, &[]);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(
        refused.status.code() == Some(1) && said.contains("check the credentials"),
        "{said}"
    );
    let added = add(&service, "closed", &endpoint, &["--no-probe"]);
    assert!(added.status.success());
    service.run_json(&["storage", "default", "closed"]);
    let caller = service.caller();
    let instance = caller.make_instance("closed-out");
    let failed = caller.start_backup(&instance, "");
    let record = caller.wait_end(&instance, "backups", &failed);
    assert_eq!(
        (&record["status"], &record["error_code"]),
        (&json!("failed"), &json!("dcs.08.0004"))
    );
    for canary in [ACCESS_KEY, SECRET_KEY] {
        assert!(
            !record.to_string().contains(canary) && !service.log().contains(canary) && !said.contains(canary)
        );
    }
}
