//! The one path that each request takes: authenticate, read the body within limits, check the project, handle.

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{RawPathParams, State};
use axum::http::HeaderValue;
use axum::http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use axum::http::request::Parts;
use axum::routing::any;
use engine::defect;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use super::auth::{self, Caller, Known, Presented};
use super::error::{ApiError, Shape, Version};
use super::request::Request;
use super::routes::{Access, Reply, Route, Work, routes};
use crate::app::App;
use crate::audit::{self, Act};
use crate::catalog::Seen;
use crate::connections::Use;
use crate::ids::{Moment, ProjectId};
use crate::limits;
use crate::refusal::Refusal;

/// The routes of one path.
struct Place {
    routes: Vec<Route>,
    version: Version,
}

/// What requests share besides the service: how much of what may go on at once.
struct Edge {
    app: Arc<App>,
    /// Random: a request's id is this and its number.
    run: u64,
    requests: AtomicU64,
    /// KiB of bodies that are read for a signature that nothing has proven yet.
    unproven: Semaphore,
    /// Requests that are worked on without waiting for anything but the catalogue.
    reads: Semaphore,
    calls: Arc<Semaphore>,
    projects: ByProject,
    logins: Arc<Semaphore>,
    downloads: Arc<Semaphore>,
    watchers: Arc<Semaphore>,
}

/// Places for the calls of each project that has some at work or waiting.
#[derive(Default)]
struct ByProject(Mutex<HashMap<String, Weak<Semaphore>>>);

impl ByProject {
    fn places(&self, project: Option<&ProjectId>) -> Arc<Semaphore> {
        let mut all = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let name = project.map_or("", ProjectId::as_str);
        if let Some(places) = all.get(name).and_then(Weak::upgrade) {
            return places;
        }
        // Those of whom nobody waits any more.
        all.retain(|_, places| places.strong_count() > 0);
        let places = Arc::new(Semaphore::new(limits::WAITING_CALLS_OF_A_PROJECT));
        all.insert(name.to_owned(), Arc::downgrade(&places));
        places
    }
}

/// The whole service as an axum router; where it is not `whole`, what tells of its health.
pub fn build(app: Arc<App>, is_whole: bool) -> Router {
    let edge = Arc::new(Edge {
        reads: Semaphore::new(limits::READS_AT_ONCE),
        calls: Arc::new(Semaphore::new(limits::WAITING_CALLS_AT_ONCE)),
        projects: ByProject::default(),
        app,
        run: uuid::Uuid::new_v4().as_u64_pair().1,
        requests: AtomicU64::new(1),
        unproven: Semaphore::new(limits::UNPROVEN_BODIES_BYTES_MAX / 1024),
        logins: Arc::new(Semaphore::new(limits::PASSWORD_HASHES_AT_ONCE)),
        downloads: Arc::new(Semaphore::new(limits::DOWNLOADS_AT_ONCE)),
        watchers: Arc::new(Semaphore::new(limits::WATCHERS_AT_ONCE)),
    });
    let mut router = Router::new();
    let mut places: Vec<(String, Place)> = Vec::new();
    let of_health = |path: &str| matches!(path, "/healthz" | "/readyz");
    for route in routes()
        .into_iter()
        .filter(|route| is_whole || of_health(&route.path))
    {
        let version = Version::of(&route.path);
        match places.iter_mut().find(|(path, _)| *path == route.path) {
            Some((_, place)) => place.routes.push(route),
            None => places.push((
                route.path.clone(),
                Place {
                    routes: vec![route],
                    version,
                },
            )),
        }
    }
    for (path, place) in places {
        let place = Arc::new(place);
        let handler = move |state: State<Arc<Edge>>,
                            params: Result<RawPathParams, _>,
                            request: axum::extract::Request| {
            dispatch(state.0, Some(place.clone()), params.ok(), request)
        };
        router = router.route(&path, any(handler));
    }
    router
        .fallback(|state: State<Arc<Edge>>, request: axum::extract::Request| {
            dispatch(state.0, None, None, request)
        })
        .with_state(edge)
}

async fn dispatch(
    edge: Arc<Edge>,
    place: Option<Arc<Place>>,
    params: Option<RawPathParams>,
    request: axum::extract::Request,
) -> Reply {
    let number = edge.requests.fetch_add(1, Ordering::Relaxed);
    let request_id = format!("{:016x}{number:016x}", edge.run);
    let shape = Shape::of(request.uri().path());
    // HEAD is GET without its body; hyper leaves the body out.
    let method = match request.method().as_str() {
        "HEAD" => "GET",
        other => other,
    };
    let at = place
        .as_ref()
        .and_then(|place| place.routes.iter().position(|route| route.method == method));
    let operation = match (&place, at) {
        (Some(place), Some(at)) => place.routes[at].name,
        _ => "",
    };
    let mut reply = match handle(&edge, place.as_deref(), at, params, request).await {
        Ok(reply) => reply,
        Err(error) => error.into_response(shape, operation, &request_id),
    };
    let status = reply.status();
    edge.app.counters.add(
        crate::metrics::ANSWERS,
        &[("operation", operation), ("status", status.as_str())],
    );
    if let Ok(value) = HeaderValue::from_str(&request_id) {
        reply.headers_mut().insert("x-request-id", value);
    }
    reply
}

async fn handle(
    edge: &Edge,
    place: Option<&Place>,
    at: Option<usize>,
    params: Option<RawPathParams>,
    request: axum::extract::Request,
) -> Result<Reply, ApiError> {
    let (head, body) = request.into_parts();
    let now = Moment::now();
    let seen = edge.app.catalog.seen().map_err(Refusal::from)?;
    let Some(place) = place else {
        // Who is not known here is not told what exists.
        return Err(match identify(edge, &head, body, now, seen).await {
            Ok(_) => ApiError::Service {
                status: 404,
                code: 4001,
                message: "This URL does not exist.".to_owned(),
            },
            Err(_) => ApiError::Gateway {
                status: 404,
                code: "APIGW.0101",
                message: "The API does not exist.".to_owned(),
            },
        });
    };
    let open = place.routes.iter().all(|route| route.access == Access::Open);
    let (caller, body, reads) = if open {
        (None, read(body, &head, limits::OPEN_BODY_BYTES_MAX).await?, None)
    } else {
        let (caller, body, reads) = identify(edge, &head, body, now, seen).await?;
        (Some(caller), body, reads)
    };
    let at = at.ok_or_else(|| ApiError::Service {
        status: 405,
        code: 5001,
        message: "This method is not allowed here.".to_owned(),
    })?;
    let route = &place.routes[at];
    let mut named = Vec::new();
    for (name, value) in params.iter().flatten() {
        // The table's own names live as long as the program.
        if let Some(name) = PARAMS.iter().find(|known| **known == name) {
            named.push((*name, value.to_owned()));
        }
    }
    let project = match (&caller, route.access) {
        (Some(caller), Access::Project) => {
            let text = named
                .iter()
                .find(|(name, _)| *name == "project_id")
                .map_or("", |(_, value)| value.as_str());
            let asked = ProjectId::parse(text).ok_or_else(|| ApiError::Service {
                status: 400,
                code: 4002,
                message: "Invalid project_id in the request.".to_owned(),
            })?;
            if asked != caller.project && !defect::is_planted("token-for-any-project") {
                return Err(auth::foreign_project());
            }
            Some(asked)
        }
        (Some(caller), Access::Credential) => Some(caller.project.clone()),
        _ => None,
    };
    // Whoever has to wait for something else waits without a turn.
    let reads = reads.filter(|_| route.work == Work::Quick);
    let mut of_project = None;
    let slot = match route.work {
        Work::Quick => None,
        Work::Waits => {
            let places = edge.projects.places(project.as_ref());
            of_project = Some(slot(&places, limits::CALL_WAIT_MAX).await?);
            Some(slot(&edge.calls, limits::CALL_WAIT_MAX).await?)
        }
        Work::Hashes => Some(slot(&edge.logins, limits::LOGIN_WAIT_MAX).await?),
        Work::Streams => Some(slot(&edge.downloads, limits::DOWNLOAD_WAIT_MAX).await?),
        Work::Watches => Some(slot(&edge.watchers, limits::DOWNLOAD_WAIT_MAX).await?),
    };
    let app = edge.app.clone();
    let request = Request {
        query: head.uri.query().unwrap_or_default().to_owned(),
        app,
        operation: route.name,
        version: place.version,
        project,
        caller: caller.map(|caller| caller.name).unwrap_or_default(),
        params: named,
        headers: head.headers,
        body,
        now,
        seen,
        slot,
    };
    let handler = route.handler;
    if route.work == Work::Quick {
        // Health is asked for when all else waits.
        let _reads = match reads {
            None if !open => Some(turn(edge).await?),
            held => held,
        };
        return handler(&request);
    }
    let act = request.project.as_ref().map(|project| Act {
        at: request.now,
        project: Some(project.clone()),
        who: request.caller.clone(),
        what: route.name.to_owned(),
        subject: named_in(&request),
    });
    let handle = move || {
        let _held = of_project;
        match act {
            Some(act) => audit::acting(act, || handler(&request)),
            None => handler(&request),
        }
    };
    match tokio::task::spawn_blocking(handle).await {
        Ok(reply) => reply,
        Err(panic) => Err(Refusal::Internal(format!("a handler panicked, this is a bug: {panic}")).into()),
    }
}

/// What the path names besides the project, for the audit log.
fn named_in(request: &Request) -> String {
    let named = request.params.iter().filter(|(name, _)| *name != "project_id");
    let named: Vec<String> = named.map(|(name, value)| format!("{name}={value}")).collect();
    named.join(" ")
}

/// Who calls, and the body. Nothing of the body is kept before as much of the credential was checked as can be
/// without it: all of a token; of a signature its form, its date and its key. What is then still unproven shares
/// [`limits::UNPROVEN_BODIES_BYTES_MAX`]. The turn comes back where no body had to be waited for.
async fn identify<'e>(
    edge: &'e Edge,
    head: &Parts,
    body: Body,
    now: Moment,
    seen: Seen,
) -> Result<(Caller, Bytes, Option<SemaphorePermit<'e>>), ApiError> {
    let presented = Presented {
        method: head.method.as_str(),
        path: head.uri.path(),
        query: head.uri.query().unwrap_or_default(),
        headers: &head.headers,
        now,
        seen,
    };
    let reads = match turn(edge).await {
        Ok(reads) => reads,
        Err(error) => {
            discard(body, head).await;
            return Err(error);
        }
    };
    let known = auth::before_the_body(&edge.app, &presented);
    let reads = body.is_end_stream().then_some(reads);
    let key = match known {
        Ok(Known::Caller(caller)) => {
            return Ok((caller, read(body, head, limits::BODY_BYTES_MAX).await?, reads));
        }
        Ok(Known::Key(key)) => key,
        Err(error) => {
            drop(reads);
            discard(body, head).await;
            return Err(error);
        }
    };
    let kilobytes = u32::try_from(announced(head, limits::BODY_BYTES_MAX).div_ceil(1024)).unwrap_or(u32::MAX);
    let waiting = edge.unproven.acquire_many(kilobytes);
    let Ok(Ok(_held)) = tokio::time::timeout(limits::BODY_WAIT_MAX, waiting).await else {
        discard(body, head).await;
        return Err(too_many());
    };
    let body = read(body, head, limits::BODY_BYTES_MAX).await?;
    let caller = auth::check_signature(&edge.app, &presented, &key, &body)?;
    Ok((caller, body, reads))
}

/// Most bytes that the body can have, by its head.
fn announced(head: &Parts, limit: usize) -> usize {
    let length = head
        .headers
        .get(CONTENT_LENGTH)
        .and_then(|text| text.to_str().ok()?.parse().ok());
    match length {
        Some(length) => limit.min(length),
        None if head.headers.contains_key(TRANSFER_ENCODING) => limit,
        None => 0,
    }
}

async fn read(body: Body, head: &Parts, limit: usize) -> Result<Bytes, ApiError> {
    let too_large = || ApiError::Gateway {
        status: 413,
        code: "APIGW.0201",
        message: "The request body is too large.".to_owned(),
    };
    let length = head
        .headers
        .get(CONTENT_LENGTH)
        .and_then(|text| text.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > limit as u64) {
        discard(body, head).await;
        return Err(too_large());
    }
    wait_for(&body, head);
    let body = tokio::time::timeout(limits::REQUEST_TIME_MAX, axum::body::to_bytes(body, limit)).await;
    if let Some(used) = head.extensions.get::<Arc<Use>>() {
        used.begin();
    }
    match body {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(_)) => Err(too_large()),
        Err(_) => Err(ApiError::Gateway {
            status: 408,
            code: "APIGW.0201",
            message: "The request body did not arrive in time.".to_owned(),
        }),
    }
}

/// Says of the connection that it is its peer who keeps us waiting, where more of the body is to come.
fn wait_for(body: &Body, head: &Parts) {
    if !body.is_end_stream()
        && let Some(used) = head.extensions.get::<Arc<Use>>()
    {
        used.wait();
    }
}

/// Takes a body that nobody wants off the connection, so that its sender reads our answer; keeps nothing of it.
async fn discard(mut body: Body, head: &Parts) {
    wait_for(&body, head);
    let mut left = limits::BODY_BYTES_MAX;
    let taken = async {
        while let Some(Ok(frame)) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            match left.checked_sub(bytes) {
                Some(rest) => left = rest,
                None => break,
            }
        }
    };
    let _given_up = tokio::time::timeout(limits::BODY_WAIT_MAX, taken).await;
}

/// A turn at the catalogue, waited for a while: without a thread, so that the runtime keeps its own.
///
/// Whoever has one works on without letting go of its thread. So the turn is taken in one look of the runtime at the request and used
/// in the next: where more is asked for than can be done, requests wait here in their order, where that costs nothing, and not
/// each in the runtime's queue for all the work before it. What has just come, health for one, passes them by.
async fn turn(edge: &Edge) -> Result<SemaphorePermit<'_>, ApiError> {
    match tokio::time::timeout(limits::READ_WAIT_MAX, edge.reads.acquire()).await {
        Ok(Ok(turn)) => {
            tokio::task::yield_now().await;
            Ok(turn)
        }
        _ => Err(too_many()),
    }
}

/// One of the few places for this kind of work, waited for a while.
async fn slot(places: &Arc<Semaphore>, wait: Duration) -> Result<Arc<OwnedSemaphorePermit>, ApiError> {
    match tokio::time::timeout(wait, places.clone().acquire_owned()).await {
        Ok(Ok(place)) => Ok(Arc::new(place)),
        _ => Err(too_many()),
    }
}

fn too_many() -> ApiError {
    ApiError::Gateway {
        status: 429,
        code: "APIGW.0308",
        message: "Too many requests of this kind at once. Try again in a moment.".to_owned(),
    }
}

const PARAMS: [&str; 10] = [
    "schedule_id",
    "project_id",
    "instance_id",
    "backup_id",
    "restore_id",
    "task_id",
    "project",
    "instance",
    "backup",
    "file",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_does_not_come_free_in_time_is_a_429_that_says_when_to_come_again() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let places = Arc::new(Semaphore::new(1));
        let wait = Duration::from_millis(20);
        let held = runtime
            .block_on(slot(&places, wait))
            .expect("the first has its place");
        let refused = runtime
            .block_on(slot(&places, wait))
            .expect_err("there is one place only");
        for (shape, code) in [
            (Shape::Service(Version::V2), "APIGW.0308"),
            (Shape::Identity, "429"),
        ] {
            let error = too_many().into_response(shape, "", "id");
            assert_eq!(error.status(), 429);
            assert_eq!(error.headers()["retry-after"], "1");
            let body = runtime
                .block_on(axum::body::to_bytes(error.into_body(), 1 << 20))
                .unwrap();
            assert!(String::from_utf8_lossy(&body).contains(code));
        }
        assert!(matches!(refused, ApiError::Gateway { status: 429, .. }));
        drop(held);
        assert!(runtime.block_on(slot(&places, wait)).is_ok());
    }
}
