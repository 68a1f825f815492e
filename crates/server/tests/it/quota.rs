//! Quotas of projects: reserved before anything is stored, given back by whatever ends, and never exceeded.

use std::path::Path;
use std::sync::Barrier;

use serde_json::{Value, json};
use xtask::object_server::ObjectServer;
use xtask::postgres::Postgres;
use xtask::resp;

use crate::migrations::{begin, ended};
use crate::schedule::{daily, has_files, set_policy, wait_records};
use crate::service::{Credential, Service, wait};
use crate::storage::{BUCKET, add};

const MIB: usize = 1 << 20;

/// Sets `count` keys of a MiB each, which zstd makes small or not at all.
fn fill(engine: &mut resp::Connection, count: usize, is_random: bool) {
    let mut seed = 1_u64;
    for key in 0..count {
        let mut value = vec![b'a'; MIB];
        if is_random {
            for byte in &mut value {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                *byte = (seed >> 56) as u8;
            }
        }
        let name = format!("key{key}");
        engine.ask(&[b"SET", name.as_bytes(), &value[..]]).unwrap();
    }
}

fn quota(service: &Service, project: &str, words: &[&str]) -> Value {
    service.run_json(&[&["project", "quota", project], words].concat())
}

fn set(service: &Service, project: &str, bytes: u64) -> Value {
    quota(service, project, &["--bytes", &bytes.to_string()])
}

fn number(value: &Value, name: &str) -> u64 {
    value[name]
        .as_u64()
        .unwrap_or_else(|| panic!("{name} of {value}"))
}

/// Bytes of all files below a folder.
fn bytes_in(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    entries
        .map(|entry| {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => bytes_in(&path),
                false => path.metadata().unwrap().len(),
            }
        })
        .sum()
}

#[test]
fn backups_that_begin_at_once_do_not_both_take_the_last_bytes() {
    let is_long = std::env::var("CACHEKEEP_TEST_LONG").is_ok_and(|long| long == "1");
    let rounds = if is_long { 100 } else { 4 };
    let postgres = Postgres::start().unwrap();
    let url = postgres.make_schema("quota").unwrap();
    let objects = ObjectServer::start(BUCKET).unwrap_or_else(|stop| panic!("{stop}"));
    // One service on its catalogue, and two on one.
    let alone = Service::start();
    let first = Service::start_with(&["--node-name", "first"], &[("CACHEKEEP_CATALOG", &url)]);
    let added = add(&first, "offsite", &format!("http://{}", objects.address()), &[]);
    assert!(added.status.success(), "{added:?}");
    first.run_json(&["storage", "default", "offsite"]);
    let keys = first.data().join("keys");
    let words = [
        "--node-name",
        "second",
        "--role",
        "api",
        "--keys",
        keys.to_str().unwrap(),
    ];
    let second = Service::start_with(&words, &[("CACHEKEEP_CATALOG", &url)]);
    for nodes in [[&alone, &alone], [&first, &second]] {
        let main = nodes[0];
        let callers =
            nodes.map(|node| node.caller_with(main.admin("project_id"), Credential::Key(main.key())));
        let project = callers[0].project.clone();
        let instances = ["first-one", "second-one"].map(|name| {
            let instance = callers[0].make_instance(name);
            fill(&mut callers[0].engine(&instance), 1, true);
            callers[0].make_backup(&instance, "says how large the next one is");
            instance
        });
        let used = number(&quota(main, &project, &[]), "used_bytes");
        assert!(used > 2 * MIB as u64);
        // Of one backup more, and a half.
        let limit = used + used * 3 / 4;
        set(main, &project, limit);
        let barrier = Barrier::new(2);
        for round in 0..rounds {
            let answers: Vec<_> = std::thread::scope(|scope| {
                let asking = [0, 1].map(|at| {
                    let (caller, instance, barrier) = (&callers[at], &instances[at], &barrier);
                    scope.spawn(move || {
                        barrier.wait();
                        caller.v2(
                            "POST",
                            &format!("/instances/{instance}/backups"),
                            Some(&json!({})),
                        )
                    })
                });
                asking.into_iter().map(|answer| answer.join().unwrap()).collect()
            });
            let verdicts: Vec<String> = answers.iter().map(|answer| answer.verdict()).collect();
            let won = answers.iter().position(|answer| answer.status == 200);
            let won = won.unwrap_or_else(|| panic!("round {round}: {verdicts:?}"));
            assert_eq!(verdicts[1 - won], "400 DCS.4039", "round {round}");
            let message = answers[1 - won].text();
            assert!(
                message.contains(&format!("quota of {limit} bytes"))
                    && message.contains(&format!("{used} are used"))
                    && message.contains("cachekeep project quota"),
                "{message}"
            );
            let made = answers[won].json()["backup_id"].as_str().unwrap().to_owned();
            let record = callers[0].wait_end(&instances[won], "backups", &made);
            assert_eq!(record["status"], "succeed", "{record}");
            let now = quota(main, &project, &[]);
            assert_eq!(number(&now, "reserved_bytes"), 0, "{now}");
            let taken = number(&now, "used_bytes") - used;
            assert!(taken > number(&record, "size") && taken < 2 * MIB as u64, "{now}");
            callers[0]
                .v2(
                    "DELETE",
                    &format!("/instances/{}/backups/{made}", instances[won]),
                    None,
                )
                .expect(204);
            assert_eq!(number(&quota(main, &project, &[]), "used_bytes"), used);
        }
        println!("{rounds} races of two backups for the room of one: one accepted each");
    }
}

#[test]
fn what_outgrows_its_quota_while_it_is_captured_fails_and_leaves_nothing_behind() {
    let service = Service::start();
    let caller = service.caller();
    let instance = caller.make_instance("growing");
    fill(&mut caller.engine(&instance), 24, false);
    caller.make_backup(&instance, "small");
    fill(&mut caller.engine(&instance), 24, true);
    let project = caller.project.clone();
    let used = number(&quota(&service, &project, &[]), "used_bytes");
    assert!(used < MIB as u64, "{used}");
    // Room for what is expected, and for one segment, but not for all.
    let limit = used + 12 * MIB as u64;
    set(&service, &project, limit);
    let failed = caller.start_backup(&instance, "larger than was to be expected");
    let record = caller.wait_end(&instance, "backups", &failed);
    assert_eq!(
        (&record["status"], &record["error_code"]),
        (&json!("failed"), &json!("dcs.08.0005")),
        "{record}"
    );
    let why = record["ext"]["failure"].as_str().unwrap();
    assert!(why.contains(&format!("quota of {limit} bytes")), "{why}");
    let folder = |backup: &str| {
        let store = service.data().join("store").join(&project);
        store.join(&instance).join(backup)
    };
    assert!(!has_files(&folder(&failed)));
    let now = quota(&service, &project, &[]);
    assert_eq!(
        (number(&now, "used_bytes"), number(&now, "reserved_bytes")),
        (used, 0)
    );

    // What is raised while one is made counts at once.
    set(&service, &project, used + 40 * MIB as u64);
    let made = caller.make_backup(&instance, "fits now");
    assert!(has_files(&folder(&made)));
    let now = quota(&service, &project, &[]);
    // Index, details and manifest too.
    let stored = service.data().join("store").join(&project);
    assert_eq!(number(&now, "used_bytes"), bytes_in(&stored));
    assert_eq!(
        number(&now, "free_bytes"),
        number(&now, "limit_bytes") - number(&now, "used_bytes")
    );
    // A limit below what is stored deletes nothing, and nothing new begins.
    set(&service, &project, 1);
    caller
        .v2(
            "POST",
            &format!("/instances/{instance}/backups"),
            Some(&json!({})),
        )
        .refused("400 DCS.4039");
    assert!(has_files(&folder(&made)));
    let unlimited = quota(&service, &project, &["--unlimited"]);
    assert_eq!(
        (&unlimited["limit_bytes"], &unlimited["free_bytes"]),
        (&Value::Null, &Value::Null)
    );
    caller.make_backup(&instance, "again");
}

#[test]
fn copies_imports_schedules_and_safety_points_reserve_too_and_another_project_does_not_notice() {
    let service = Service::start_with(&["--metrics-listen", "127.0.0.1:0"], &[]);
    let objects = ObjectServer::start(BUCKET).unwrap_or_else(|stop| panic!("{stop}"));
    let added = add(&service, "far", &format!("http://{}", objects.address()), &[]);
    assert!(added.status.success(), "{added:?}");
    let caller = service.caller();
    let (instance, target) = (caller.make_instance("source"), caller.make_instance("target"));
    fill(&mut caller.engine(&instance), 1, true);
    fill(&mut caller.engine(&target), 1, true);
    let backup = caller.make_backup(&instance, "");
    let project = caller.project.clone();
    let used = number(&quota(&service, &project, &[]), "used_bytes");
    let page = crate::metrics::page(&service);
    assert!(!page.contains("cachekeep_project_used_bytes{"), "{page}");
    set(&service, &project, used + 1000);
    let page = crate::metrics::page(&service);
    for (name, value) in [("quota", used + 1000), ("used", used), ("reserved", 0)] {
        let sample = format!("cachekeep_project_{name}_bytes{{project_id=\"{project}\"}} {value}\n");
        assert!(page.contains(&sample), "{sample}{page}");
    }

    let told = |words: &[&str]| {
        let output = service.run(words);
        assert!(!output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let refused = format!("quota of {} bytes has no room for", used + 1000);
    let copy = told(&["backup", "copy", &instance, &backup, "--to", "far"]);
    assert!(copy.contains(&refused), "{copy}");
    let file = service.data().join("import.rdb");
    let to = file.to_str().unwrap();
    let output = service.run(&["backup", "download", &instance, &backup, "--to", to]);
    assert!(output.status.success(), "{output:?}");
    let import = told(&["import", &instance, file.to_str().unwrap()]);
    assert!(import.contains(&refused), "{import}");

    // A safety point that finds no room: nothing of the target is changed.
    let task = ended(&caller, &begin(&caller, &backup, &target));
    assert_eq!(task["status"], "FAILED", "{task}");
    assert_eq!(task["ext"]["target_state"], "untouched", "{task}");
    let why = task["error_message"].as_str().unwrap();
    assert!(why.contains("has no room for"), "{task}");

    let other = service.second_project("other");
    let others = service.caller_with(&other.project, Credential::Key(other.key.clone()));
    let theirs = others.make_instance("theirs");
    others.make_backup(&theirs, "");

    // A copy counts as long as it is there.
    set(&service, &project, 2 * used);
    service.run_json(&["backup", "copy", &instance, &backup, "--to", "far"]);
    let now = quota(&service, &project, &[]);
    assert_eq!(
        (number(&now, "used_bytes"), number(&now, "free_bytes")),
        (2 * used, 0)
    );
    caller
        .v2(
            "POST",
            &format!("/instances/{instance}/backups"),
            Some(&json!({})),
        )
        .refused("400 DCS.4039");
    service.run_json(&["backup", "copy", &instance, &backup, "--remove"]);
    assert_eq!(number(&quota(&service, &project, &[]), "used_bytes"), used);
    // Its objects are the sweeper's, which a dry run tells beforehand.
    wait("a sweeper that has nothing to do", || {
        let rows = service.run_json(&["storage", "sweep", "--dry-run"]);
        rows.as_array().unwrap().is_empty().then_some(())
    });
    // A file reserves its size and a tenth more.
    set(&service, &project, 3 * used);
    service.run_json(&["import", &instance, file.to_str().unwrap()]);
    let now = quota(&service, &project, &[]);
    let stored = service.data().join("store").join(&project);
    assert_eq!(number(&now, "used_bytes"), bytes_in(&stored));
}

#[test]
fn a_scheduled_run_without_room_is_a_failed_record_and_is_tried_again() {
    let mut clock = crate::schedule::Clock::at("2027-05-03T01:30:00Z");
    let service = Service::start_with(&[], &[clock.variable()]);
    let caller = service.logged_in();
    let instance = caller.make_instance("by-policy");
    fill(&mut caller.engine(&instance), 1, true);
    set_policy(&caller, &instance, &daily("02:00-04:00", 7));
    set(&service, &caller.project, 1000);
    clock.pass_to("2027-05-03T02:00:05Z");
    let rows = wait_records(&service, &instance, 1);
    assert_eq!(
        (&rows[0]["status"], &rows[0]["error_code"]),
        (&json!("failed"), &json!("dcs.08.0005")),
        "{rows:?}"
    );
    assert!(
        rows[0]["ext"]["failure"]
            .as_str()
            .unwrap()
            .contains("quota of 1000 bytes")
    );
    set(&service, &caller.project, 100 * MIB as u64);
    clock.pass_to("2027-05-03T03:00:05Z");
    let rows = wait_records(&service, &instance, 2);
    assert_eq!(
        (&rows[1]["status"], &rows[1]["ext"]["run"]["try_number"]),
        (&json!("succeed"), &json!(2)),
        "{rows:?}"
    );
}
