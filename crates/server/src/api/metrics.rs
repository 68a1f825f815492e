//! `GET /metrics` in the text form of Prometheus, on an address of its own (ADR 61).

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::body::Body;
use axum::http::{Response, StatusCode, header};

use crate::app::App;
use crate::backup::quota_record::Standing;
use crate::catalog;
use crate::ids::Moment;
use crate::metrics::{self, record};
use crate::schedule::overdue;

/// What answers on that address: `/metrics`, and nothing else.
pub fn build(app: Arc<App>) -> Router {
    Router::new().fallback(move |request: axum::extract::Request| {
        let app = app.clone();
        async move {
            let answer = |status: StatusCode, text: String| {
                let mut response = Response::new(Body::from(text));
                *response.status_mut() = status;
                let form = "text/plain; version=0.0.4; charset=utf-8";
                response
                    .headers_mut()
                    .insert(header::CONTENT_TYPE, header::HeaderValue::from_static(form));
                response
            };
            if request.uri().path() != "/metrics" {
                return answer(StatusCode::NOT_FOUND, "there is /metrics here\n".to_owned());
            }
            let told = tokio::task::spawn_blocking(move || tell(&app, Moment::now())).await;
            match told {
                Ok(Ok(text)) => answer(StatusCode::OK, text),
                Ok(Err(error)) => {
                    tracing::error!(error = engine::chain(&error), "the metrics cannot be told");
                    answer(
                        StatusCode::SERVICE_UNAVAILABLE,
                        "the catalogue cannot be read\n".to_owned(),
                    )
                }
                Err(_) => answer(StatusCode::INTERNAL_SERVER_ERROR, String::new()),
            }
        }
    })
}

/// A number of an instance; absent where there is none.
type Told<'a> = &'a dyn Fn(&record::Seen) -> Option<f64>;

/// A number of a project that has a quota.
type OfProject = fn(&Standing) -> u64;

/// Writes families one after the other: each has its help and type before its samples.
struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _to_memory = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let mut text = String::new();
        for (label, value) in labels {
            let escaped = value
                .replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('\n', "\\n");
            let separator = if text.is_empty() { "" } else { "," };
            let _to_memory = write!(text, "{separator}{label}=\"{escaped}\"");
        }
        let braces = if text.is_empty() {
            text
        } else {
            format!("{{{text}}}")
        };
        let _to_memory = writeln!(self.0, "{name}{braces} {value}");
    }
}

/// The page.
///
/// # Errors
/// The catalogue failed.
fn tell(app: &App, now: Moment) -> Result<String, catalog::Error> {
    let (instances, overdue, jobs, nodes, unsent, quotas) = app.catalog.read(|tx| {
        Ok::<_, catalog::Error>((
            record::instances(tx)?,
            overdue::all(tx, now)?,
            record::jobs(tx)?,
            record::nodes(tx, app.catalog.is_shared())?,
            record::unsent(tx)?,
            record::quotas(tx)?,
        ))
    })?;
    let mut page = Page(String::new());
    page.family(
        "cachekeep_build_info",
        "gauge",
        "The program that runs, and its engines.",
    );
    let engines: Vec<String> = app.config.engines.iter().map(ToString::to_string).collect();
    let engines = engines.join(", ");
    page.sample(
        "cachekeep_build_info",
        &[
            ("version", env!("CARGO_PKG_VERSION")),
            ("engines", engines.as_str()),
        ],
        1,
    );

    let per_instance: [(&str, &str, Told<'_>); 9] = [
        (
            "cachekeep_instance_running",
            "Whether the instance serves.",
            &|seen| Some(f64::from(u8::from(seen.status == "running"))),
        ),
        (
            "cachekeep_instance_used_memory_bytes",
            "Memory that its data takes, as last looked at.",
            &|seen| Some(app.board.memory_of(&seen.id) as f64),
        ),
        (
            "cachekeep_instance_newest_backup_timestamp_seconds",
            "When the newest backup that can be restored was accepted; absent without one.",
            &|seen| seen.newest_at.map(seconds),
        ),
        (
            "cachekeep_instance_rpo_seconds",
            "How old its newest backup may become; absent without an objective.",
            &|seen| seen.objective.map(|wanted| seconds(Moment(wanted.rpo_ms))),
        ),
        (
            "cachekeep_instance_rpo_age_seconds",
            "How old its newest backup that can be restored is, without one its objective; absent without an objective.",
            &|seen| {
                let wanted = seen.objective?;
                // One of the future was made by a clock that was ahead: it says nothing.
                let newest = seen.newest_at.filter(|at| *at <= now);
                let since = newest.unwrap_or(wanted.since);
                Some((seconds(now) - seconds(since)).max(0.0))
            },
        ),
        (
            "cachekeep_instance_newest_proven_timestamp_seconds",
            "When the newest proven backup was accepted; absent without one.",
            &|seen| seen.newest_proven_at.map(seconds),
        ),
        (
            "cachekeep_instance_last_drill_timestamp_seconds",
            "When the last drill ended; absent without one.",
            &|seen| seen.drilled_at.map(seconds),
        ),
        (
            "cachekeep_instance_last_drill_holds",
            "Whether the last drill found that the backup holds; absent without one.",
            &|seen| seen.drill_holds.map(|holds| f64::from(u8::from(holds))),
        ),
        (
            "cachekeep_instance_drill_overdue_seconds",
            "How long ago the first drill was due since which none has held, 0 within four hours of that; absent without a drill schedule.",
            &|seen| overdue.get(&seen.id).map(|ms| seconds(Moment(*ms))),
        ),
    ];
    for (name, help, value) in per_instance {
        page.family(name, "gauge", help);
        for seen in &instances {
            if let Some(value) = value(seen) {
                let labels = [
                    ("project_id", seen.project.as_str()),
                    ("instance_id", seen.id.as_str()),
                    ("name", &seen.name),
                ];
                page.sample(name, &labels, value);
            }
        }
    }

    page.family("cachekeep_jobs", "gauge", "Jobs that have not ended.");
    for (kind, state, count, _) in &jobs {
        page.sample("cachekeep_jobs", &[("kind", kind), ("state", state)], count);
    }
    page.family(
        "cachekeep_job_oldest_seconds",
        "gauge",
        "How long ago the oldest of these was accepted.",
    );
    for (kind, state, _, oldest) in &jobs {
        let age = seconds(now) - seconds(*oldest);
        page.sample(
            "cachekeep_job_oldest_seconds",
            &[("kind", kind), ("state", state)],
            age.max(0.0),
        );
    }
    page.family(
        "cachekeep_nodes",
        "gauge",
        "Nodes that share the catalogue: alive, or lost because they were not seen for longer than a lease.",
    );
    for (state, count) in nodes {
        page.sample("cachekeep_nodes", &[("state", state)], count);
    }
    page.family(
        "cachekeep_mirror_unsent_rows",
        "gauge",
        "Rows of the catalogue that its mirror in the store has not been told of.",
    );
    for (project, rows) in &unsent {
        page.sample(
            "cachekeep_mirror_unsent_rows",
            &[("project_id", project.as_str())],
            rows,
        );
    }

    let name = "cachekeep_catalog_copy_timestamp_seconds";
    page.family(
        name,
        "gauge",
        "When the newest copy of the catalogue was made; absent where that is not known, and with PostgreSQL.",
    );
    let copied_at = Moment(app.copied_at_ms.load(Ordering::SeqCst));
    if copied_at.0 != 0 {
        page.sample(name, &[], seconds(copied_at));
    }

    let per_project: [(&str, &str, OfProject); 3] = [
        (
            "cachekeep_project_quota_bytes",
            "What the project's archives may take; absent without a quota.",
            |standing| standing.limit.unwrap_or(0),
        ),
        (
            "cachekeep_project_used_bytes",
            "What its archives and their copies take; absent without a quota.",
            |standing| standing.used,
        ),
        (
            "cachekeep_project_reserved_bytes",
            "What is reserved for those that are being made; absent without a quota.",
            |standing| standing.reserved,
        ),
    ];
    for (name, help, value) in per_project {
        page.family(name, "gauge", help);
        for (project, standing) in &quotas {
            page.sample(name, &[("project_id", project.as_str())], value(standing));
        }
    }

    let moved = app.board.moved();
    for (name, help, bytes) in [
        (
            "cachekeep_backup_bytes_total",
            "Plain bytes that jobs have captured, those of safety points and changes of nodes included.",
            moved.captured,
        ),
        (
            "cachekeep_restore_bytes_total",
            "Plain bytes that jobs have loaded or applied, those of changes of nodes included.",
            moved.restored,
        ),
    ] {
        page.family(name, "counter", help);
        page.sample(name, &[], bytes);
    }
    let counters = app.counters.all();
    for (name, help) in [
        (metrics::JOBS_ENDED, "Jobs that ended, by outcome."),
        (
            metrics::TAKEN_OVER,
            "Claims of jobs that had been claimed before: by a node that is gone, or by an earlier start.",
        ),
        (
            metrics::CLAIMS_LOST,
            "Jobs that stopped because their lease was over or another claim had them, or that were ended from outside.",
        ),
        (
            metrics::FAILURES,
            "Backups, imports and restores that failed, by code.",
        ),
        (
            metrics::VERIFIES_ENDED,
            "Verifies and drills that ended, by outcome.",
        ),
        (metrics::SKIPPED, "Scheduled backups that did not run, by code."),
        (metrics::EXPIRED, "Backups that retention has taken away."),
        (metrics::ANSWERS, "Answers of the API, by operation and status."),
        (
            metrics::DELIVERIES,
            "Tries to tell a hook what happened, by hook and outcome.",
        ),
    ] {
        page.family(name, "counter", help);
        for ((_, labels), count) in counters.iter().filter(|((known, _), _)| *known == name) {
            let labels: Vec<(&str, &str)> = labels
                .iter()
                .map(|(label, value)| (*label, value.as_str()))
                .collect();
            page.sample(name, &labels, count);
        }
    }
    let not_opened = counters
        .iter()
        .filter(|((name, _), _)| *name == metrics::STORES_NOT_OPENED);
    let not_opened: u64 = not_opened.map(|(_, count)| count).sum();
    page.family(
        metrics::STORE_ERRORS,
        "counter",
        "Calls to remote stores that failed after all their tries, whoever made them, and remote stores that could not be opened.",
    );
    page.sample(
        metrics::STORE_ERRORS,
        &[],
        engine::store::failed_calls() + not_opened,
    );
    process(app, &mut page);
    Ok(page.0)
}

#[allow(clippy::cast_precision_loss, reason = "Prometheus has no other numbers")]
fn seconds(at: Moment) -> f64 {
    at.0 as f64 / 1000.0
}

/// What every exporter tells of its process, and the disk that it writes to. What cannot be read is left out.
fn process(app: &App, page: &mut Page) {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
    let resident = read("status").lines().find_map(|line| {
        line.strip_prefix("VmRSS:")?
            .trim()
            .strip_suffix(" kB")?
            .parse::<u64>()
            .ok()
    });
    if let Some(kilobytes) = resident {
        page.family("process_resident_memory_bytes", "gauge", "Memory in use.");
        page.sample("process_resident_memory_bytes", &[], kilobytes * 1024);
    }
    if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
        page.family("process_open_fds", "gauge", "Open descriptors.");
        page.sample("process_open_fds", &[], entries.count());
    }
    // After the name, which may hold blanks: field 3 is the first one.
    let stat = read("stat");
    let fields: Vec<u64> = stat
        .rsplit(") ")
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .map(|field| field.parse().unwrap_or(0))
        .collect();
    if let (Some(user), Some(system)) = (fields.get(10), fields.get(11)) {
        page.family(
            "process_cpu_seconds_total",
            "counter",
            "Processor time, of 100 ticks a second.",
        );
        page.sample("process_cpu_seconds_total", &[], (user + system) as f64 / 100.0);
    }
    if let Ok(disk) = rustix::fs::statvfs(&app.config.data_dir) {
        page.family(
            "cachekeep_data_dir_free_bytes",
            "gauge",
            "Free bytes where the data directory lies.",
        );
        page.sample(
            "cachekeep_data_dir_free_bytes",
            &[],
            disk.f_bavail * disk.f_frsize,
        );
        page.family(
            "cachekeep_data_dir_size_bytes",
            "gauge",
            "All bytes where the data directory lies.",
        );
        page.sample(
            "cachekeep_data_dir_size_bytes",
            &[],
            disk.f_blocks * disk.f_frsize,
        );
    }
}
