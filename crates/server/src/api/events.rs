//! The progress of a restore as a stream of events (`text/event-stream`; HTML standard, "Server-sent events").

use std::sync::Arc;
use std::time::Instant;

use axum::body::Bytes;
use axum::http::{HeaderValue, header};
use serde::Serialize;
use serde_json::Value;
use tokio::sync::mpsc;

use super::download::Chunks;
use super::error::ApiError;
use super::page::Stamp;
use super::request::Request;
use super::routes::Reply;
use crate::app::App;
use crate::ids::{InstanceId, Moment, ProjectId, RestoreId};
use crate::instance::command as instances;
use crate::limits;
use crate::rate::Rate;
use crate::refusal::Refusal;
use crate::restore::progress_record::{self, Watched};
use crate::restore::record::Status;

/// Events that may wait for a slow client.
const WAITING: usize = 2;

/// What an event tells.
#[derive(Debug, Serialize)]
struct Event<'a> {
    restore_id: &'a str,
    /// `waiting`, `restoring`, `succeed`, `failed`: as on the record.
    status: &'static str,
    target_state: &'static str,
    /// What is being done; null before and after.
    phase: Option<&'a str>,
    /// Hundredths of a percent of the whole.
    progress: i64,
    /// Of the phase, as far as it is done for good.
    bytes_done: i64,
    /// Of the phase; 0 where that is not known.
    bytes_total: i64,
    /// Of the phase.
    keys_done: i64,
    /// Of the phase since it began; null until that is known.
    bytes_per_second: Option<f64>,
    /// Until the end of the phase; null until that is known.
    eta_seconds: Option<f64>,
    /// Keys and bytes of each shard that is loaded and verified, in their order.
    shards: &'a Value,
    /// When this was read.
    at: Stamp,
}

/// Whose progress.
struct Subject {
    app: Arc<App>,
    project: ProjectId,
    instance: InstanceId,
    restore: RestoreId,
}

impl Subject {
    fn look(&self) -> Result<Watched, Refusal> {
        self.app.catalog.read(|tx| {
            let instance = instances::find_id(tx, &self.project, &self.instance, true)?;
            progress_record::watched(tx, &instance, &self.restore)?.ok_or(Refusal::RestoreUnknown)
        })
    }
}

/// `GET /ck/v1/…/restores/{restore_id}/events`: an event `progress` at least each second, and one `end` when it has ended.
///
/// # Errors
/// Unknown instance or restore; 429 where as many watch already as may.
pub fn restore(request: &Request) -> Result<Reply, ApiError> {
    let subject = Subject {
        app: request.app.clone(),
        instance: request.instance_id()?,
        project: request.project()?.clone(),
        restore: request.restore_id()?,
    };
    let first = subject.look()?;
    let (send, receive) = mpsc::channel(WAITING);
    let slot = request.slot.clone();
    tokio::spawn(async move {
        let _kept = slot;
        tell(subject, first, &send).await;
    });
    let mut response = Reply::new(axum::body::Body::new(Chunks(receive)));
    for (name, value) in [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    Ok(response)
}

async fn tell(subject: Subject, first: Watched, send: &mpsc::Sender<Result<Bytes, std::io::Error>>) {
    let subject = Arc::new(subject);
    let mut rate = Rate::default();
    let mut seen = first;
    loop {
        let has_ended = matches!(seen.status, Status::Succeeded | Status::Failed);
        let text = event(&subject, &seen, &mut rate, has_ended);
        // Who went away is noticed here.
        if send.send(Ok(Bytes::from(text))).await.is_err() || has_ended {
            return;
        }
        tokio::time::sleep(limits::EVENT_EVERY).await;
        let asked = Arc::clone(&subject);
        seen = match tokio::task::spawn_blocking(move || asked.look()).await {
            Ok(Ok(seen)) => seen,
            // The client asks again, and is told why it cannot have it.
            Ok(Err(_)) | Err(_) => return,
        };
    }
}

fn event(subject: &Subject, seen: &Watched, rate: &mut Rate, has_ended: bool) -> String {
    let phase = seen.phase.as_deref().unwrap_or_default();
    let (bytes_per_second, eta_seconds) = rate.of(phase, seen.bytes_done, seen.bytes_total, Instant::now());
    let told = Event {
        restore_id: subject.restore.as_str(),
        status: match seen.status {
            Status::Waiting => "waiting",
            Status::Running => "restoring",
            Status::Succeeded => "succeed",
            Status::Failed => "failed",
        },
        target_state: seen.target_state.word(),
        phase: seen.phase.as_deref(),
        progress: seen.progress_bp,
        bytes_done: seen.bytes_done,
        bytes_total: seen.bytes_total,
        keys_done: seen.keys_done,
        bytes_per_second,
        eta_seconds,
        shards: &seen.shards,
        at: Stamp(Moment::now()),
    };
    let name = if has_ended { "end" } else { "progress" };
    let data = serde_json::to_string(&told).unwrap_or_default();
    format!("event: {name}\ndata: {data}\n\n")
}
