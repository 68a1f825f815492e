//! The catalogue in PostgreSQL.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use xtask::faulty_link::FaultyLink;
use xtask::postgres::Postgres;

use crate::http::Request;
use crate::service::{Caller, Service, wait};
use crate::shared::{is_long, seed};

/// Kills of the database; fifty in the long form.
const KILLS: usize = 4;
/// How long the link fails; ten minutes in the long form.
const FAILING_SECONDS: u64 = 10;
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

/// What came of it.
struct Outcome {
    accepted: usize,
    refused: usize,
    /// Refused, and done all the same: the client was told that it is not known.
    refused_but_done: usize,
    log_ins: usize,
}

/// Has clients restore two instances and log in while `disturb` runs. Then each restore that was accepted is listed once and has
/// ended, none is listed that nobody wished for, and all tokens hold.
fn disturbed(service: &Service, disturb: impl FnOnce()) -> Outcome {
    let caller = service.caller();
    let instances = [caller.make_instance("first"), caller.make_instance("second")];
    let backups = instances.each_ref().map(|instance| {
        caller.engine(instance).ask(&["SET", "k", "v"]).unwrap();
        caller.make_backup(instance, "")
    });
    let is_over = AtomicBool::new(false);
    let (told, tokens) = std::thread::scope(|scope| {
        let loops: Vec<_> = instances
            .iter()
            .zip(&backups)
            .map(|(instance, backup)| {
                let is_over = &is_over;
                scope.spawn(move || wish(service, instance, backup, is_over))
            })
            .collect();
        let tokens = scope.spawn(|| log_in(service, &is_over));
        disturb();
        is_over.store(true, Ordering::SeqCst);
        let told: Vec<_> = loops.into_iter().map(|done| done.join().unwrap()).collect();
        (told, tokens.join().unwrap())
    });
    // The connection from before was closed for its silence.
    let caller = service.caller();
    let mut outcome = Outcome {
        accepted: 0,
        refused: 0,
        refused_but_done: 0,
        log_ins: tokens.len(),
    };
    for (instance, told) in instances.iter().zip(&told) {
        caller.wait_idle(instance);
        let records = restores_by_remark(&caller, instance);
        for (remark, told) in told {
            match (told, records.get(remark)) {
                (Told::Accepted(id), found) => {
                    assert_eq!(found, Some(id), "an accepted restore is not listed");
                    outcome.accepted += 1;
                }
                (Told::Refused(503), found) => {
                    outcome.refused += 1;
                    outcome.refused_but_done += usize::from(found.is_some());
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
    assert!(outcome.accepted > 0 && !tokens.is_empty());
    outcome
}

/// Asks for restores, one after the other, each with a remark of its own.
fn wish(service: &Service, instance: &str, backup: &str, is_over: &AtomicBool) -> HashMap<String, Told> {
    let mut told = HashMap::new();
    let caller = service.caller();
    let mut number = 0;
    while !is_over.load(Ordering::SeqCst) {
        number += 1;
        let wish = json!({"backup_id": backup, "remark": format!("{number}")});
        let answer = caller.v2("POST", &format!("/instances/{instance}/restores"), Some(&wish));
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
}

fn log_in(service: &Service, is_over: &AtomicBool) -> Vec<String> {
    let mut tokens = Vec::new();
    while !is_over.load(Ordering::SeqCst) {
        let user = json!({"name": service.admin("user"), "password": service.admin("password")});
        let scope = json!({"project": {"id": service.admin("project_id")}});
        let body = json!({"auth": {"identity": {"methods": ["password"], "password": {"user": user}}, "scope": scope}});
        let answer = service
            .connect()
            .send(&Request::json("POST", "/v3/auth/tokens", &body));
        match answer.status {
            201 => tokens.push(answer.header("x-subject-token").unwrap().to_owned()),
            503 => std::thread::sleep(Duration::from_millis(5)),
            other => panic!("{other}: {}", answer.text()),
        }
    }
    tokens
}

/// Ids of all restores of an instance, which have ended and of which no two are of one wish.
fn restores_by_remark(caller: &Caller, instance: &str) -> HashMap<String, String> {
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
            let before = records.insert(remark, id);
            assert!(before.is_none(), "two records of one wish: {record}");
        }
    }
    records
}

#[test]
fn kills_of_the_database_in_mid_commit_lose_and_double_nothing() {
    let kills = if is_long() { 50 } else { KILLS };
    // Durable, as its operator would have it.
    let mut server = Postgres::start_with("-c fsync=on").unwrap();
    let url = server.make_schema("killed").unwrap();
    let mut service = Service::start_with(&["--undo-keep", "0"], &[("CACHEKEEP_CATALOG", &url)]);
    service.expect_trouble("the catalogue");
    let mut slowest = Duration::ZERO;
    let outcome = disturbed(&service, || {
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
    });
    println!(
        "{kills} kills of the database: {} restores accepted, all listed once and ended; {} answers of 503, \
         {} of them of restores that were done; {} log-ins, all good; ready at most {slowest:?} after it",
        outcome.accepted, outcome.refused, outcome.refused_but_done, outcome.log_ins
    );
    // Else the kills met nobody.
    assert!(outcome.refused > 0);
}

#[test]
fn a_link_to_the_database_that_fails_at_any_byte_loses_and_doubles_nothing() {
    let seconds = if is_long() { 600 } else { FAILING_SECONDS };
    let server = Postgres::start_with("-c fsync=on").unwrap();
    let link = FaultyLink::to(server.address(), seed()).unwrap();
    let url = server.make_schema("shaken").unwrap();
    let behind = url.replace(&server.address().to_string(), &link.address().to_string());
    let mut service = Service::start_with(&["--undo-keep", "0"], &[("CACHEKEEP_CATALOG", &behind)]);
    service.expect_trouble("the catalogue");
    let outcome = disturbed(&service, || {
        link.set_failing(true);
        std::thread::sleep(Duration::from_secs(seconds));
        link.set_failing(false);
    });
    let done = link.done();
    println!(
        "{seconds} s over a link to the database on which {} questions were cut off, {} answers lost, {} cut off, and {} late: \
         {} restores accepted, all listed once and ended; {} answers of 503, {} of them of restores that were done; {} log-ins, all good",
        done[0],
        done[1],
        done[2],
        done[3],
        outcome.accepted,
        outcome.refused,
        outcome.refused_but_done,
        outcome.log_ins
    );
    // A connection that ends before its transaction has begun costs nobody an answer, so it may be that none was refused.
    assert!(done.iter().all(|count| *count > 0), "{done:?}");
    assert!(outcome.accepted > 0);
}
