//! What Prometheus is told, judged by its own `promtool`; and the rules that make alarms of it.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::json;

use crate::http::{Connection, Request};
use crate::schedule::Clock;
use crate::service::{Caller, Service, wait};

/// The words of a service that tells its metrics.
const TELLS: [&str; 2] = ["--metrics-listen", "127.0.0.1:0"];
/// What the rules are tested with and no page of ours shows.
const OF_OTHERS: [(&str, &str); 1] = [("up", "Prometheus says it of whoever it asks")];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Runs promtool with this on its standard input.
#[track_caller]
fn promtool(words: &[&str], input: &str) {
    let mut child = Command::new("promtool")
        .args(words)
        .current_dir(repository().join("ops"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool, of Debian's package prometheus: `cargo xtask setup` installs it");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let told =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{words:?}: {told}");
}

/// The page of a service that tells its metrics.
pub fn page(service: &Service) -> String {
    let log = service.log();
    let (_, rest) = log.split_once("metrics: http://").expect("it says where");
    let address = rest.split('/').next().unwrap();
    let answer = Connection::new(address)
        .send(&Request::new("GET", "/metrics"))
        .expect(200);
    assert_eq!(
        answer.header("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    let elsewhere = Connection::new(address).send(&Request::new("GET", "/v2"));
    assert_eq!(elsewhere.status, 404, "there is nothing else");
    answer.text()
}

/// The value of the first sample that begins so.
fn value(page: &str, begin: &str) -> Option<f64> {
    let line = page.lines().find(|line| line.starts_with(begin))?;
    line.rsplit(' ').next()?.parse().ok()
}

/// The metric of a series and the names of its labels: of `metric{label="value", ...}`, whatever follows.
fn shape(series: &str) -> (&str, BTreeSet<&str>) {
    let end = series.find(['{', ' ']).unwrap_or(series.len());
    let (metric, rest) = series.split_at(end);
    // What is not within quotes; no value has any of its own.
    let between = rest.split('"').step_by(2);
    let labels = between.filter_map(|part| part.strip_suffix('='));
    let labels = labels.map(|label| label.trim_start_matches(['{', ',', ' ']));
    (metric, labels.collect())
}

/// Makes a schedule of drills, and a run of it.
#[track_caller]
fn drill(caller: &Caller, instance: &str) {
    let drill = json!({"name": "drill", "cron": "0 0 1 1 *", "task": "drill"});
    let path = format!("/instances/{instance}/schedules");
    let made = caller.ck("POST", &path, Some(&drill)).expect(200).json();
    let run = format!("{path}/{}/run", made["schedule_id"].as_str().unwrap());
    caller.ck("POST", &run, None).expect(200);
}

/// From now on the project's backups go to a store whose keys cannot be opened, and fail.
fn seal_elsewhere(service: &Service, project: &str) {
    service.sql(&format!(
        "INSERT INTO storage (id, name, kind, endpoint, bucket, prefix, region, access_key_sealed, secret_key_sealed, created_at_ms) \
         VALUES ('0f8fad5b-d9cb-469f-a165-708677289501', 'sealed-elsewhere', 's3', 'http://127.0.0.1:9', 'b', '', 'r', X'00', X'00', 0); \
         INSERT INTO storage_default (project_id, storage_id) VALUES ('{project}', '0f8fad5b-d9cb-469f-a165-708677289501')"
    ));
}

/// The page of a service of which each metric that the rules are about has a sample.
fn page_of_troubles(service: &Service) -> String {
    let caller = service.caller();
    let (measured, _other) = (caller.make_instance("measured"), caller.make_instance("other"));
    service.run_json(&["hook", "add", "oncall", "--exec", "/bin/true"]);
    caller.make_backup(&measured, "");
    drill(&caller, &measured);
    wait("a drill in the metrics", || {
        value(&page(service), "cachekeep_instance_last_drill_holds{")
    });
    seal_elsewhere(service, &caller.project);
    let failed = caller.start_backup(&measured, "");
    caller.wait_end(&measured, "backups", &failed);
    // A backup that is due and finds no room.
    service.run_json(&["project", "quota", &caller.project, "--bytes", "1"]);
    service.run_json(&["instance", "rpo", "other", "6h"]);
    // The mirror does not reach that store either.
    for sample in [
        "cachekeep_scheduled_skipped_total{",
        "cachekeep_hook_deliveries_total{hook=\"oncall\"",
        "cachekeep_catalog_copy_timestamp_seconds ",
    ] {
        wait(sample, || value(&page(service), sample));
    }
    let failed = "cachekeep_store_errors_total ";
    wait(failed, || {
        value(&page(service), failed).filter(|count| *count >= 1.0)
    });
    // A job that does not end.
    service.sql(&format!(
        "INSERT INTO job (id, instance_id, kind, state, fence, owner, lease_until_ms, created_at_ms) \
         VALUES ('0f8fad5b-d9cb-469f-a165-708677289502', '{measured}', 'restart', 'running', 1, 'nobody', 9999999999999, 0)"
    ));
    page(service)
}

#[test]
fn the_metrics_answer_what_an_on_call_person_asks_and_promtool_reads_them() {
    let service = Service::start_with(&TELLS, &[]);
    let caller = service.caller();
    let instance = caller.make_instance("measured");
    let of_instance = format!("{{project_id=\"{}\",instance_id=\"{instance}\"", caller.project);
    let before = page(&service);
    promtool(&["check", "metrics"], &before);
    assert_eq!(
        value(&before, &format!("cachekeep_instance_running{of_instance}")),
        Some(1.0)
    );
    let newest = format!("cachekeep_instance_newest_backup_timestamp_seconds{of_instance}");
    let proven = format!("cachekeep_instance_newest_proven_timestamp_seconds{of_instance}");
    assert_eq!((value(&before, &newest), value(&before, &proven)), (None, None));

    let backup = caller.make_backup(&instance, "");
    caller.make_restore(&instance, &backup, "");
    drill(&caller, &instance);
    let after = wait("a drill in the metrics", || {
        let page = page(&service);
        value(
            &page,
            &format!("cachekeep_instance_last_drill_holds{of_instance}"),
        )
        .map(|holds| (page, holds))
    });
    let (after, holds) = after;
    promtool(&["check", "metrics"], &after);
    let now = jiff::Timestamp::now().as_second() as f64;
    let age = now - value(&after, &newest).unwrap();
    assert!(holds == 1.0 && (-2.0..600.0).contains(&age), "{age}");
    assert_eq!(value(&after, &proven), value(&after, &newest));
    for (sample, least) in [
        (
            "cachekeep_jobs_ended_total{kind=\"backup\",outcome=\"done\"}",
            1.0,
        ),
        (
            "cachekeep_verifications_ended_total{level=\"proven\",outcome=\"holds\"}",
            1.0,
        ),
        (
            "cachekeep_http_answers_total{operation=\"CopyInstance\",status=\"200\"}",
            1.0,
        ),
        ("cachekeep_backup_bytes_total", 1.0),
        ("cachekeep_restore_bytes_total", 1.0),
        ("cachekeep_nodes{state=\"alive\"}", 1.0),
        ("cachekeep_nodes{state=\"lost\"}", 0.0),
        ("process_resident_memory_bytes", 1e6),
        ("process_open_fds", 3.0),
        ("cachekeep_data_dir_free_bytes", 1.0),
    ] {
        assert!(
            value(&after, sample).is_some_and(|value| value >= least),
            "{sample}: {after}"
        );
    }

    // Of a backup that fails, the code.
    seal_elsewhere(&service, &caller.project);
    let failed = caller.start_backup(&instance, "");
    let record = caller.wait_end(&instance, "backups", &failed);
    let sample = format!(
        "cachekeep_failures_total{{kind=\"backup\",code={}}}",
        record["error_code"]
    );
    assert_eq!(value(&page(&service), &sample), Some(1.0), "{record}");
}

#[test]
fn each_alert_rule_fires_when_it_should_and_names_metrics_that_there_are() {
    promtool(&["check", "rules", "alerts.yml"], "");
    promtool(&["test", "rules", "alerts_test.yml"], "");
    let service = Service::start_with(&TELLS, &[]);
    let page = page(&service);
    let mut named = 0;
    for file in ["ops/alerts.yml", "ops/dashboard.json"] {
        let text = std::fs::read_to_string(repository().join(file)).unwrap();
        for rest in text.split("cachekeep_").skip(1) {
            let end = rest
                .find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')
                .unwrap();
            let family = format!("# TYPE cachekeep_{} ", &rest[..end]);
            assert!(page.contains(&family), "{file}: there is no {family}");
            named += 1;
        }
    }
    let rules = std::fs::read_to_string(repository().join("ops/alerts.yml")).unwrap();
    let tests = std::fs::read_to_string(repository().join("ops/alerts_test.yml")).unwrap();
    for rule in rules.split("- alert: ").skip(1) {
        let name = rule.lines().next().unwrap();
        assert!(
            tests.contains(&format!("alertname: {name}\n")),
            "{name} is never seen to fire"
        );
    }
    assert!(named > 20);
}

#[test]
fn the_rules_are_tested_with_the_labels_that_a_service_tells() {
    let service = Service::start_with(&TELLS, &[]);
    let page = page_of_troubles(&service);
    let told: BTreeSet<_> = page
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(shape)
        .collect();
    let tests = std::fs::read_to_string(repository().join("ops/alerts_test.yml")).unwrap();
    let mut compared = 0;
    for rest in tests.split("series: '").skip(1) {
        let series = rest.split('\'').next().unwrap();
        let (metric, labels) = shape(series);
        if OF_OTHERS.iter().any(|(other, _)| *other == metric) {
            continue;
        }
        let on_the_page: Vec<_> = told.iter().filter(|(name, _)| *name == metric).collect();
        assert!(
            on_the_page.iter().any(|(_, names)| *names == labels),
            "{series}: the page has {on_the_page:?}"
        );
        compared += 1;
    }
    assert!(compared > 15, "{compared}");
}

#[test]
fn a_drill_that_was_due_and_not_made_is_told_until_one_has_held() {
    let mut clock = Clock::at("2027-03-01T01:58:00Z");
    let service = Service::start_with(&TELLS, &[clock.variable()]);
    let caller = service.logged_in();
    let instance = caller.make_instance("undrilled");
    let overdue = format!(
        "cachekeep_instance_drill_overdue_seconds{{project_id=\"{}\",instance_id=\"{instance}\"",
        caller.project
    );
    let overdue = || value(&page(&service), &overdue);
    assert_eq!(overdue(), None, "it has no drills");
    let daily = json!({"name": "drill", "cron": "0 2 * * *", "task": "drill"});
    caller
        .ck("POST", &format!("/instances/{instance}/schedules"), Some(&daily))
        .expect(200);
    // There is no backup that it could prove.
    clock.pass_to("2027-03-01T05:58:00Z");
    assert_eq!(overdue(), Some(0.0));
    clock.pass_to("2027-03-01T06:00:05Z");
    let seconds = overdue().unwrap();
    assert!((14_400.0..18_000.0).contains(&seconds), "{seconds}");
    caller.make_backup(&instance, "");
    wait("a drill that holds", || (overdue() == Some(0.0)).then_some(()));
}

#[test]
fn a_job_that_is_taken_up_again_after_a_crash_is_counted() {
    let mut service = Service::start_with(&TELLS, &[("CACHEKEEP_FAILPOINT", "backup.begun:stall")]);
    let caller = service.caller();
    let instance = caller.make_instance("taken-up");
    let backup = caller.start_backup(&instance, "");
    wait("a backup that runs", || {
        value(
            &page(&service),
            "cachekeep_jobs{kind=\"backup\",state=\"running\"}",
        )
    });
    let taken_over = "cachekeep_jobs_taken_over_total{kind=\"backup\"}";
    assert_eq!(value(&page(&service), taken_over), None);
    service.kill();
    service.start_again();
    let record = service.caller().wait_end(&instance, "backups", &backup);
    assert_eq!(record["status"], "succeed", "{record}");
    assert_eq!(value(&page(&service), taken_over), Some(1.0));
}

#[test]
fn metrics_are_told_beyond_this_machine_only_by_who_says_so() {
    let folder = xtask::scratch::Scratch::new("metrics").unwrap();
    let data = folder.path().join("data");
    let output = Command::new(env!("CARGO_BIN_EXE_cachekeep"))
        .args([
            "serve",
            "--metrics-listen",
            "0.0.0.0:0",
            "--data-dir",
            data.to_str().unwrap(),
        ])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && told.contains("--insecure"), "{told}");
    assert!(!data.exists());
}
