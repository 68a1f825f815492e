//! The catalogue in PostgreSQL.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use xtask::postgres::Postgres;

use crate::http::Request;
use crate::service::{Service, wait};

/// Kills of the database; fifty in the long form.
const KILLS: usize = 4;
/// The service answers again so soon after the database does.
const BACK_WITHIN: Duration = Duration::from_secs(30);

#[test]
fn a_catalogue_in_postgresql_outlives_its_service_and_is_shared_with_who_has_its_keys() {
    let server = Postgres::start().unwrap();
    let url = server.make_schema("first").unwrap();
    let mut service = Service::start_with(&[], &[("CACHEKEEP_CATALOG", &url)]);
    let caller = service.caller();
    let instance = caller.make_instance("kept-elsewhere");
    caller.engine(&instance).ask(&["SET", "k", "v"]).unwrap();
    let backup = caller.make_backup(&instance, "n\u{f8} \"quotes\" \\ \u{1}\t");
    caller.engine(&instance).ask(&["SET", "k", "w"]).unwrap();
    let restore = caller.make_restore(&instance, &backup, "r");
    assert_eq!(
        caller.engine(&instance).ask(&["GET", "k"]).unwrap().text(),
        Some("v")
    );
    let list = |service: &Service| {
        let path = format!("/instances/{instance}/restores");
        service.caller().get(&path).expect(200).json()
    };
    let before = list(&service);
    assert_eq!(before["total_num"], 1);
    let record = &before["restore_record_response"][0];
    assert_eq!(record["restore_id"], restore.as_str());
    assert_eq!(record["backup_remark"], "n\u{f8} \"quotes\" \\ \u{1}\t");
    assert!(!service.data().join("catalog.sqlite").exists());

    // It is known from then on where the catalogue is, to the service and to the operator's verbs.
    service.kill();
    service.start_again();
    assert_eq!(list(&service), before);
    let projects = service.run_json(&["project", "list"]);
    assert_eq!(projects[0]["project_id"], service.admin("project_id"));
    assert_eq!(
        service
            .caller()
            .engine(&instance)
            .ask(&["GET", "k"])
            .unwrap()
            .text(),
        Some("v")
    );

    let refused = |url: &str| {
        let folder = xtask::scratch::Scratch::new("other").unwrap();
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_cachekeep"))
            .args(["serve", "--listen", "127.0.0.1:0", "--catalog", url, "--data-dir"])
            .arg(folder.path().join("data"))
            .output()
            .unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let told = refused(&url);
    assert!(told.contains("copy master.key and signing.key"), "{told}");
    server
        .sql("CREATE SCHEMA foreign_one; CREATE TABLE foreign_one.theirs (a INT)")
        .unwrap();
    let told = refused(&server.url("foreign_one"));
    assert!(told.contains("tables of another program"), "{told}");
    let told = refused(&server.url("nowhere"));
    assert!(told.contains("CREATE SCHEMA"), "{told}");
    let told = refused("postgresql://nobody@127.0.0.1:1/none");
    assert!(told.contains("cannot open the catalogue in PostgreSQL"), "{told}");
    let told = refused("mysql://x");
    assert!(told.contains("postgresql://USER:PASSWORD@HOST"), "{told}");
}

/// What a client was told of one wish.
#[derive(Debug, PartialEq)]
enum Told {
    Accepted(String),
    Refused(u16),
    Nothing,
}

#[test]
fn kills_of_the_database_in_mid_commit_lose_and_double_nothing() {
    let is_long = std::env::var("CACHEKEEP_TEST_LONG").is_ok_and(|long| long == "1");
    let kills = if is_long { 50 } else { KILLS };
    // Durable, as its operator would have it.
    let mut server = Postgres::start_with("-c fsync=on").unwrap();
    let url = server.make_schema("killed").unwrap();
    let mut service = Service::start_with(&["--undo-keep", "0"], &[("CACHEKEEP_CATALOG", &url)]);
    service.expect_trouble("the catalogue");
    let caller = service.caller();
    let instances = [caller.make_instance("first"), caller.make_instance("second")];
    let backups = instances.each_ref().map(|instance| {
        caller.engine(instance).ask(&["SET", "k", "v"]).unwrap();
        caller.make_backup(instance, "")
    });
    let is_over = AtomicBool::new(false);
    let mut slowest = Duration::ZERO;
    let (told, tokens) = std::thread::scope(|scope| {
        let loops: Vec<_> = instances
            .iter()
            .zip(&backups)
            .map(|(instance, backup)| {
                let (service, is_over) = (&service, &is_over);
                scope.spawn(move || {
                    let mut told = HashMap::new();
                    let caller = service.caller();
                    let mut number = 0;
                    while !is_over.load(Ordering::SeqCst) {
                        number += 1;
                        let wish = json!({"backup_id": backup, "remark": format!("{number}")});
                        let answer =
                            caller.v2("POST", &format!("/instances/{instance}/restores"), Some(&wish));
                        let heard = match answer.status {
                            200 => Told::Accepted(answer.json()["restore_id"].as_str().unwrap().to_owned()),
                            400 => Told::Nothing,
                            status => Told::Refused(status),
                        };
                        if !matches!(heard, Told::Accepted(_)) {
                            // Busy with the last one, or without its database.
                            std::thread::sleep(Duration::from_millis(10));
                        }
                        if heard != Told::Nothing {
                            told.insert(number.to_string(), heard);
                        }
                    }
                    told
                })
            })
            .collect();
        let tokens = scope.spawn(|| {
            let mut tokens = Vec::new();
            while !is_over.load(Ordering::SeqCst) {
                let user = json!({"name": service.admin("user"), "password": service.admin("password")});
                let scope = json!({"project": {"id": service.admin("project_id")}});
                let body = json!({"auth": {"identity": {"methods": ["password"], "password": {"user": user}}, "scope": scope}});
                let answer = service.connect().send(&Request::json("POST", "/v3/auth/tokens", &body));
                match answer.status {
                    201 => tokens.push(answer.header("x-subject-token").unwrap().to_owned()),
                    503 => std::thread::sleep(Duration::from_millis(5)),
                    other => panic!("{other}: {}", answer.text()),
                }
            }
            tokens
        });
        let mut wait_for = 0x9e37_79b9_u64;
        for _ in 0..kills {
            wait_for = wait_for.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            std::thread::sleep(Duration::from_millis(300 + (wait_for >> 33) % 700));
            server.kill().unwrap();
            std::thread::sleep(Duration::from_millis(200));
            server.start_again().unwrap();
            let since = Instant::now();
            wait("a service that is ready", || {
                let ready = service.connect().send(&Request::new("GET", "/readyz"));
                (ready.status == 200).then_some(())
            });
            slowest = slowest.max(since.elapsed());
            assert!(since.elapsed() < BACK_WITHIN, "{:?}", since.elapsed());
        }
        is_over.store(true, Ordering::SeqCst);
        let told: Vec<_> = loops.into_iter().map(|done| done.join().unwrap()).collect();
        (told, tokens.join().unwrap())
    });
    // The connection from before was closed for its silence.
    let caller = service.caller();
    let (mut accepted, mut refused, mut unknown_but_done) = (0, 0, 0);
    for (instance, told) in instances.iter().zip(&told) {
        caller.wait_idle(instance);
        let mut records = HashMap::new();
        for offset in (0..).step_by(50) {
            let path = format!("/instances/{instance}/restores?limit=50&offset={offset}");
            let page = caller.get(&path).expect(200).json();
            let page = page["restore_record_response"].as_array().unwrap().clone();
            if page.is_empty() {
                break;
            }
            for record in page {
                let remark = record["restore_remark"].as_str().unwrap().to_owned();
                let ended = record["status"] == "succeed" || record["status"] == "failed";
                assert!(ended, "{record}");
                let id = record["restore_id"].as_str().unwrap().to_owned();
                assert!(
                    records.insert(remark, id).is_none(),
                    "two records of one wish: {record}"
                );
            }
        }
        for (remark, told) in told {
            match (told, records.get(remark)) {
                (Told::Accepted(id), found) => {
                    assert_eq!(found, Some(id), "an accepted restore is not listed");
                    accepted += 1;
                }
                (Told::Refused(503), found) => {
                    refused += 1;
                    unknown_but_done += usize::from(found.is_some());
                }
                (told, found) => panic!("{told:?}, and it was {found:?}"),
            }
        }
        assert!(records.keys().all(|remark| told.contains_key(remark)));
    }
    for token in &tokens {
        let request =
            Request::new("GET", &format!("/v2/{}/instances", caller.project)).with("X-Auth-Token", token);
        service.connect().send(&request).expect(200);
    }
    println!(
        "{kills} kills of the database: {accepted} restores accepted, all listed once and ended; {refused} answers of 503, \
         {unknown_but_done} of them of restores that were done; {} log-ins, all good; ready at most {slowest:?} after it",
        tokens.len()
    );
    assert!(accepted > 0 && !tokens.is_empty());
    // Else the kills met nobody.
    assert!(refused > 0);
}
