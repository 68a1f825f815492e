//! What Prometheus is told, judged by its own `promtool`; and the rules that make alarms of it.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::json;

use crate::http::{Connection, Request};
use crate::service::{Service, wait};

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

#[test]
fn the_metrics_answer_what_an_on_call_person_asks_and_promtool_reads_them() {
    let service = Service::start_with(&["--metrics-listen", "127.0.0.1:0"], &[]);
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

    caller.make_backup(&instance, "");
    let drill = json!({"name": "drill", "cron": "0 0 1 1 *", "task": "drill"});
    let path = format!("/instances/{instance}/schedules");
    let made = caller.ck("POST", &path, Some(&drill)).expect(200).json();
    let run = format!("{path}/{}/run", made["schedule_id"].as_str().unwrap());
    caller.ck("POST", &run, None).expect(200);
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
    service.sql(&format!(
        "INSERT INTO storage (id, name, kind, endpoint, bucket, prefix, region, access_key_sealed, secret_key_sealed, created_at_ms) \
         VALUES ('0f8fad5b-d9cb-469f-a165-708677289501', 'sealed-elsewhere', 's3', 'http://127.0.0.1:9', 'b', '', 'r', X'00', X'00', 0); \
         INSERT INTO storage_default (project_id, storage_id) VALUES ('{}', '0f8fad5b-d9cb-469f-a165-708677289501')",
        caller.project
    ));
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
    let service = Service::start_with(&["--metrics-listen", "127.0.0.1:0"], &[]);
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
