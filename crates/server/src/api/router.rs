//! The table of every route, and the one path that each request takes: limit, authenticate, check the project,
//! handle.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{RawPathParams, State};
use axum::http::{HeaderValue, Response};
use axum::routing::any;

use super::auth::{self, Presented};
use super::error::{ApiError, Version};
use super::openapi::Answer;
use super::request::Request;
use super::{backups, download, identity, instances, openapi, restores, system};
use crate::app::App;
use crate::ids::{Moment, ProjectId};
use crate::limits;
use crate::refusal::Refusal;

/// A response.
pub type Reply = Response<Body>;

type Handler = fn(&Request) -> Result<Reply, ApiError>;

/// Who may call a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Anybody.
    Open,
    /// Any valid credential.
    Credential,
    /// A credential for the project of the path.
    Project,
}

/// One row of the table: also the source of `/openapi.json`.
pub struct Route {
    /// Name of the operation.
    pub name: &'static str,
    /// HTTP method.
    pub method: &'static str,
    /// Path with its parameters.
    pub path: String,
    /// Who may call it.
    pub access: Access,
    /// Status of its success.
    pub success: u16,
    /// What it answers.
    pub answer: Answer,
    /// Its query parameters, spelled as on v2.
    pub query: &'static [&'static str],
    /// Whether it takes a JSON body.
    pub body: bool,
    handler: Handler,
    /// Runs on a thread where waiting for the disk or a hash is allowed.
    waits: bool,
}

const PAGED: &[&str] = &[
    "begin_time",
    "end_time",
    "limit",
    "offset",
    "start",
    "include_deleted",
];
const INSTANCE_QUERY: &[&str] = &[
    "instance_id",
    "name",
    "name_equal",
    "status",
    "ip",
    "include_failure",
    "limit",
    "offset",
    "start",
    "marker",
];
const FLAVOR_QUERY: &[&str] = &[
    "spec_code",
    "cache_mode",
    "engine",
    "engine_version",
    "cpu_type",
    "capacity",
];

/// Every route of the service.
pub fn routes() -> Vec<Route> {
    let mut table = Vec::new();
    for (prefix, v1) in [("/v2/{project_id}", false), ("/v1.0/{project_id}", true)] {
        let suffix = if v1 { "V1" } else { "" };
        let mut add =
            |name: &str, method, path: &str, success, answer, query, body, waits, handler: Handler| {
                table.push(Route {
                    name: Box::leak(format!("{name}{suffix}").into_boxed_str()),
                    method,
                    path: format!("{prefix}{path}"),
                    access: Access::Project,
                    success,
                    answer,
                    query,
                    body,
                    handler,
                    waits,
                });
            };
        let (changed, deleted) = (204, if v1 { 200 } else { 204 });
        let deleted_answer = if v1 { Answer::Object } else { Answer::Nothing };
        let one = "/instances/{instance_id}";
        add(
            "ListRestoreRecords",
            "GET",
            &format!("{one}/restores"),
            200,
            Answer::RestoreList,
            PAGED,
            false,
            false,
            restores::list,
        );
        add(
            "RestoreInstance",
            "POST",
            &format!("{one}/restores"),
            200,
            Answer::RestoreStarted,
            &[],
            true,
            true,
            restores::create,
        );
        add(
            "ListBackupRecords",
            "GET",
            &format!("{one}/backups"),
            200,
            Answer::BackupList,
            PAGED,
            false,
            false,
            backups::list,
        );
        add(
            "CopyInstance",
            "POST",
            &format!("{one}/backups"),
            200,
            Answer::BackupStarted,
            &[],
            true,
            true,
            backups::create,
        );
        let backup = format!("{one}/backups/{{backup_id}}");
        add(
            "DeleteBackupFile",
            "DELETE",
            &backup,
            deleted,
            deleted_answer,
            &[],
            false,
            true,
            backups::delete,
        );
        let links = format!("{backup}/links");
        add(
            "ListBackupFileLinks",
            "POST",
            &links,
            200,
            Answer::BackupLinks,
            &[],
            true,
            true,
            backups::links,
        );
        add(
            "ListInstances",
            "GET",
            "/instances",
            200,
            Answer::InstanceList,
            INSTANCE_QUERY,
            false,
            false,
            instances::list,
        );
        add(
            "CreateInstance",
            "POST",
            "/instances",
            200,
            Answer::Object,
            &[],
            true,
            true,
            instances::create,
        );
        add(
            "BatchDeleteInstances",
            "DELETE",
            "/instances",
            200,
            Answer::BatchResults,
            &["all_failure"],
            true,
            true,
            instances::delete_batch,
        );
        add(
            "RestartOrFlushInstances",
            "PUT",
            "/instances/status",
            200,
            Answer::BatchResults,
            &[],
            true,
            true,
            instances::act,
        );
        add(
            "ShowInstance",
            "GET",
            one,
            200,
            Answer::Instance,
            &[],
            false,
            false,
            instances::show,
        );
        add(
            "UpdateInstance",
            "PUT",
            one,
            changed,
            Answer::Nothing,
            &[],
            true,
            true,
            instances::update,
        );
        add(
            "DeleteSingleInstance",
            "DELETE",
            one,
            204,
            Answer::Nothing,
            &[],
            false,
            true,
            instances::delete,
        );
        let reset = format!("{one}/password/reset");
        add(
            "ResetPassword",
            "POST",
            &reset,
            200,
            Answer::Object,
            &[],
            true,
            true,
            instances::reset_password,
        );
        add(
            "ListFlavors",
            "GET",
            "/flavors",
            200,
            Answer::Object,
            FLAVOR_QUERY,
            false,
            false,
            system::flavors,
        );
        if !v1 {
            // The documented sample of UpdateInstance spells it in the singular: contract C30.
            add(
                "UpdateInstanceSingular",
                "PUT",
                "/instance/{instance_id}",
                changed,
                Answer::Nothing,
                &[],
                true,
                true,
                instances::update,
            );
        }
    }
    let mut add = |name, method, path: &str, access, answer, query, body, waits, handler: Handler| {
        table.push(Route {
            name,
            method,
            path: path.to_owned(),
            access,
            success: 200,
            answer,
            query,
            body,
            handler,
            waits,
        });
    };
    let one = "/ck/v1/{project_id}/instances/{instance_id}";
    let project = Access::Project;
    add(
        "CkRestoreInstance",
        "POST",
        &format!("{one}/restores"),
        project,
        Answer::RestoreStarted,
        &[],
        true,
        true,
        restores::create,
    );
    add(
        "CkShowRestore",
        "GET",
        &format!("{one}/restores/{{restore_id}}"),
        project,
        Answer::Restore,
        &[],
        false,
        false,
        restores::show,
    );
    add(
        "CkUndoRestore",
        "POST",
        &format!("{one}/restores/{{restore_id}}/undo"),
        project,
        Answer::RestoreStarted,
        &[],
        true,
        true,
        restores::undo,
    );
    add(
        "CkShowBackup",
        "GET",
        &format!("{one}/backups/{{backup_id}}"),
        project,
        Answer::Backup,
        &[],
        false,
        false,
        backups::show,
    );
    let any_credential = Access::Credential;
    add(
        "ListAvailableZones",
        "GET",
        "/v2/available-zones",
        any_credential,
        Answer::Object,
        &[],
        false,
        false,
        system::zones,
    );
    add(
        "ListAvailableZonesV1",
        "GET",
        "/v1.0/availableZones",
        any_credential,
        Answer::Object,
        &[],
        false,
        false,
        system::zones,
    );
    add(
        "ListProductsV1",
        "GET",
        "/v1.0/products",
        any_credential,
        Answer::Object,
        &[],
        false,
        false,
        system::products,
    );
    add(
        "KeystoneListProjects",
        "GET",
        "/v3/projects",
        any_credential,
        Answer::Object,
        &["name"],
        false,
        false,
        identity::projects,
    );
    add(
        "KeystoneListAuthProjects",
        "GET",
        "/v3/auth/projects",
        any_credential,
        Answer::Object,
        &["name"],
        false,
        false,
        identity::projects,
    );
    let open = Access::Open;
    table.push(Route {
        name: "KeystoneCreateToken",
        method: "POST",
        path: "/v3/auth/tokens".to_owned(),
        access: open,
        success: 201,
        answer: Answer::Object,
        query: &[],
        body: true,
        handler: identity::create_token,
        waits: true,
    });
    let mut add = |name, path: &str, handler: Handler| {
        table.push(Route {
            name,
            method: "GET",
            path: path.to_owned(),
            access: open,
            success: 200,
            answer: Answer::Object,
            query: &[],
            body: false,
            handler,
            waits: false,
        });
    };
    add("KeystoneVersion", "/v3", identity::version);
    add("KeystoneVersionSlash", "/v3/", identity::version);
    add("ListApiVersions", "/", system::versions);
    add("ShowApiVersion2", "/v2", system::version_2);
    add("ShowApiVersion2Slash", "/v2/", system::version_2);
    add("ShowApiVersion1", "/v1.0", system::version_1);
    add("ShowApiVersion1Slash", "/v1.0/", system::version_1);
    add("Health", "/healthz", system::healthy);
    add("Readiness", "/readyz", system::ready);
    add("OpenApi", "/openapi.json", openapi::serve);
    table.push(Route {
        name: "DownloadBackupFile",
        method: "GET",
        path: "/download/{project}/{instance}/{backup}/{file}".to_owned(),
        access: open,
        success: 200,
        answer: Answer::Bytes,
        query: &["Expires", "Signature"],
        body: false,
        handler: download::serve,
        waits: true,
    });
    table
}

/// The routes of one path.
struct Place {
    routes: Vec<Route>,
    version: Version,
}

/// The whole service as an axum router.
pub fn build(app: Arc<App>) -> Router {
    let mut router = Router::new();
    let mut places: Vec<(String, Place)> = Vec::new();
    for route in routes() {
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
        let handler = move |state: State<Arc<App>>,
                            params: Result<RawPathParams, _>,
                            request: axum::extract::Request| {
            dispatch(state.0, Some(place.clone()), params.ok(), request)
        };
        router = router.route(&path, any(handler));
    }
    router
        .fallback(|state: State<Arc<App>>, request: axum::extract::Request| {
            dispatch(state.0, None, None, request)
        })
        .with_state(app)
}

async fn dispatch(
    app: Arc<App>,
    place: Option<Arc<Place>>,
    params: Option<RawPathParams>,
    request: axum::extract::Request,
) -> Reply {
    let request_id = uuid::Uuid::new_v4().simple().to_string();
    let version = match &place {
        Some(place) => place.version,
        None => Version::of(request.uri().path()),
    };
    let route = place
        .as_ref()
        .and_then(|place| place.routes.iter().find(|route| route.method == request.method()));
    let operation = route.map_or("", |route| route.name);
    let mut reply = match handle(app, place, params, request, version).await {
        Ok(reply) => reply,
        Err(error) => error.into_response(version, operation, &request_id),
    };
    if let Ok(value) = HeaderValue::from_str(&request_id) {
        reply.headers_mut().insert("x-request-id", value);
    }
    reply
}

async fn handle(
    app: Arc<App>,
    place: Option<Arc<Place>>,
    params: Option<RawPathParams>,
    request: axum::extract::Request,
    version: Version,
) -> Result<Reply, ApiError> {
    let (head, body) = request.into_parts();
    let too_large = || ApiError::Gateway {
        status: 413,
        code: "APIGW.0201",
        message: "The request body is too large.".to_owned(),
    };
    let reading = axum::body::to_bytes(body, limits::BODY_BYTES_MAX);
    let body = match tokio::time::timeout(limits::REQUEST_TIME_MAX, reading).await {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => return Err(too_large()),
        Err(_) => {
            let message = "The request body did not arrive in time.".to_owned();
            return Err(ApiError::Gateway {
                status: 408,
                code: "APIGW.0201",
                message,
            });
        }
    };
    let now = Moment::now();
    let presented = Presented {
        method: head.method.as_str(),
        path: head.uri.path(),
        query: head.uri.query().unwrap_or_default(),
        headers: &head.headers,
        body: &body,
        now,
    };
    let Some(place) = place else {
        // Who is not known here is not told what exists.
        let known = auth::authenticate(&app, &presented);
        return Err(match known {
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
    let caller = if open {
        None
    } else {
        Some(auth::authenticate(&app, &presented)?)
    };
    // HEAD is GET without its body; hyper leaves the body out.
    let method = if head.method == "HEAD" {
        "GET"
    } else {
        head.method.as_str()
    };
    let at = place
        .routes
        .iter()
        .position(|route| route.method == method)
        .ok_or_else(|| ApiError::Service {
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
            if asked != caller.project {
                return Err(auth::foreign_project());
            }
            Some(asked)
        }
        (Some(caller), Access::Credential) => Some(caller.project.clone()),
        _ => None,
    };
    let scheme = if app.config.tls.is_some() { "https" } else { "http" };
    let host = head
        .headers
        .get("host")
        .and_then(|value| value.to_str().ok())
        .unwrap_or("localhost");
    let request = Request {
        base: format!("{scheme}://{host}"),
        query: head.uri.query().unwrap_or_default().to_owned(),
        app,
        operation: route.name,
        version,
        project,
        caller: caller.map(|caller| caller.name).unwrap_or_default(),
        params: named,
        headers: head.headers,
        body,
        now,
    };
    let handler = route.handler;
    if !route.waits {
        return handler(&request);
    }
    match tokio::task::spawn_blocking(move || handler(&request)).await {
        Ok(reply) => reply,
        Err(panic) => Err(Refusal::Internal(format!("a handler panicked, this is a bug: {panic}")).into()),
    }
}

const PARAMS: [&str; 8] = [
    "project_id",
    "instance_id",
    "backup_id",
    "restore_id",
    "project",
    "instance",
    "backup",
    "file",
];
