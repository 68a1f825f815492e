//! Every error body, and the one `match` from refusals to codes. Contract §3 and §7.

use axum::body::Body;
use axum::http::{Response, StatusCode, header};
use serde_json::json;

use crate::jobs::JobKind;
use crate::limits;
use crate::refusal::{NotAttached, Refusal};

/// The API version of a path: it decides the shape of bodies and some codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// `/v2`, and our own `/ck/v1`.
    V2,
    /// `/v1.0`.
    V1,
}

impl Version {
    /// The version that a path belongs to.
    pub fn of(path: &str) -> Self {
        if path.starts_with("/v1.0") {
            Version::V1
        } else {
            Version::V2
        }
    }
}

/// The form of an error body, by the path that was asked for: contract §3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// The service's own, or the gateway's.
    Service(Version),
    /// The identity service's, for all that is below `/v3`.
    Identity,
}

impl Shape {
    /// The form for a path.
    pub fn of(path: &str) -> Self {
        if path == "/v3" || path.starts_with("/v3/") {
            Shape::Identity
        } else {
            Shape::Service(Version::of(path))
        }
    }
}

/// An answer that is not a success.
#[derive(Debug)]
pub enum ApiError {
    /// A refusal of a command.
    Refused(Refusal),
    /// No usable credential: the gateway's body in both versions.
    Gateway {
        /// HTTP status.
        status: u16,
        /// `APIGW.0301`
        code: &'static str,
        /// What is wrong, without a hint of whether anything exists.
        message: String,
    },
    /// A code of the service that no command returns.
    Service {
        /// HTTP status.
        status: u16,
        /// The digits after `DCS.` and in `11140...`: 1004 gives `DCS.1004` and `111401004`.
        code: u32,
        /// Short English.
        message: String,
    },
    /// What only the identity service says.
    Identity {
        /// HTTP status.
        status: u16,
        /// What is wrong.
        message: String,
    },
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        ApiError::Refused(refusal)
    }
}

impl From<crate::catalog::Error> for ApiError {
    fn from(error: crate::catalog::Error) -> Self {
        ApiError::Refused(Refusal::Catalog(error))
    }
}

impl ApiError {
    /// The 401 for every kind of bad credential.
    pub fn unauthenticated(message: impl Into<String>) -> Self {
        ApiError::Gateway {
            status: 401,
            code: "APIGW.0301",
            message: message.into(),
        }
    }

    /// The response, in its shape; the operation decides the code of an internal error.
    pub fn into_response(self, shape: Shape, operation: &str, request_id: &str) -> Response<Body> {
        let version = match shape {
            Shape::Service(version) => version,
            Shape::Identity => Version::V2,
        };
        let (status, message, body) = match self {
            ApiError::Gateway {
                status,
                code,
                message,
            } => {
                let body = json!({"error_msg": message, "error_code": code, "request_id": request_id});
                (status, message, body)
            }
            ApiError::Identity { status, message } => {
                let body = identity_body(status, &message);
                (status, message, body)
            }
            ApiError::Service {
                status,
                code,
                message,
            } => {
                let body = shaped(version, code, v1_code(code), &message);
                (status, message, body)
            }
            ApiError::Refused(refusal) => {
                let mut answer = describe(&refusal);
                if answer.status >= 500 {
                    log(&refusal, operation, request_id);
                }
                if answer.code == INTERNAL {
                    answer.code = internal_code(operation);
                }
                let (mut status, mut v1) = (answer.status, v1_code(answer.code));
                if version == Version::V1 {
                    match refusal {
                        // openstacksdk ignores a missing backup only where it is a 404.
                        Refusal::BackupUnknown => (status, v1) = (404, 111_404_001),
                        Refusal::NotRunning => v1 = 111_400_026,
                        Refusal::Busy(JobKind::Password) => v1 = 111_400_115,
                        Refusal::Busy(JobKind::Resize) => v1 = 111_400_113,
                        _ => {}
                    }
                }
                let body = shaped(version, answer.code, v1, &answer.message);
                (status, answer.message, body)
            }
        };
        let body = match shape {
            Shape::Service(_) => body,
            Shape::Identity => identity_body(status, &message),
        };
        let mut response = json_response(status, &body);
        if status == 429 || status == 503 {
            // Clients that retry do so after this many seconds: contract §1.
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
        }
        response
    }
}

const INTERNAL: u32 = 5000;

/// What an internal error is called where the contract has a code of its own for the operation: §7.1. The codes of
/// backup policies (5071, 5077, 5085) have no operation of their own here: policies come and go with instances.
fn internal_code(operation: &str) -> u32 {
    match operation.trim_end_matches("V1") {
        "ListInstances" | "ShowInstance" => 5024,
        "CreateInstance" => 5031,
        "DeleteSingleInstance" | "BatchDeleteInstances" | "RestartOrFlushInstances" | "ResetPassword" => 5006,
        "ListBackupRecords"
        | "CkShowBackup"
        | "CkListVerifications"
        | "ListBackupFileLinks"
        | "DownloadBackupFile" => 5078,
        "CopyInstance" | "CkVerifyBackup" | "CkCancelVerify" | "CkCancelBackup" | "CkImportBackup" => 5090,
        "ListRestoreRecords" | "CkShowRestore" => 5079,
        "RestoreInstance" | "CkRestoreInstance" | "CkPlanRestore" | "CkUndoRestore" | "CkCancelRestore" => {
            5092
        }
        _ => INTERNAL,
    }
}

/// Keystone's shape: an integer code, and the status in words.
fn identity_body(status: u16, message: &str) -> serde_json::Value {
    let title = StatusCode::from_u16(status)
        .ok()
        .and_then(|status| status.canonical_reason())
        .unwrap_or("Error");
    json!({"error": {"code": status, "message": message, "title": title}})
}

fn shaped(version: Version, code: u32, v1: u32, message: &str) -> serde_json::Value {
    match version {
        Version::V2 => {
            json!({"error_code": format!("DCS.{code:04}"), "error_msg": message, "error_ext_msg": null})
        }
        Version::V1 => json!({"error": {"code": v1.to_string(), "message": message}}),
    }
}

/// Contract §7.1: DCS.4nnn is 111400nnn, DCS.48nn 1114008nn, DCS.50nn 1115000nn; the rest is written out.
fn v1_code(code: u32) -> u32 {
    match code {
        1001..=1004 => 111_400_000 + code,
        2003 => 111_403_003,
        3022 => 111_404_022,
        4001 => 111_404_001,
        5001 => 111_405_001,
        4000..=4999 => 111_400_000 + code % 1000,
        5000..=5099 => 111_500_000 + code % 1000,
        other => other,
    }
}

/// A JSON body with its status.
pub fn json_response(status: u16, body: &impl serde::Serialize) -> Response<Body> {
    // Most lists' pages fit: a body that grows is copied each time.
    let mut bytes = Vec::with_capacity(16 * 1024);
    if let Err(error) = sonic_rs::to_writer(&mut bytes, body) {
        tracing::error!(%error, "an answer does not serialise: this is a bug");
        bytes = b"{}".to_vec();
    }
    json_bytes(status, bytes)
}

/// Appends a field to an object that is being written: `name` with its quotes, the comma before it and the colon.
pub fn append_json(bytes: &mut Vec<u8>, name: &str, value: &impl serde::Serialize) {
    bytes.extend_from_slice(name.as_bytes());
    if let Err(error) = sonic_rs::to_writer(&mut *bytes, value) {
        tracing::error!(%error, "a field does not serialise: this is a bug");
        bytes.extend_from_slice(b"null");
    }
}

/// A body that is JSON already.
pub fn json_bytes(status: u16, bytes: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(Body::from(bytes));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/json"),
    );
    response
}

fn log(refusal: &Refusal, operation: &str, request_id: &str) {
    match refusal {
        Refusal::Catalog(error) => {
            tracing::error!(
                request_id,
                operation,
                error = engine::chain(error),
                "the catalogue failed"
            )
        }
        Refusal::Internal(why) => tracing::error!(request_id, operation, why, "a request failed"),
        Refusal::Unreadable(error) => {
            tracing::error!(
                request_id,
                operation,
                error = engine::chain(error),
                "a backup cannot be read"
            )
        }
        other => tracing::error!(request_id, operation, refusal = ?other, "a request failed"),
    }
}

struct Answer {
    status: u16,
    code: u32,
    message: String,
}

/// The one place where refusals become codes.
fn describe(refusal: &Refusal) -> Answer {
    let (status, code, message) = match refusal {
        Refusal::InstanceUnknown => (404, 3022, "The instance does not exist.".to_owned()),
        Refusal::BackupUnknown => (400, 4031, "The backup record does not exist.".to_owned()),
        Refusal::MigrationUnknown => (400, 4133, "The migration task does not exist.".to_owned()),
        Refusal::RestoreUnknown => (404, 4001, "The restore record does not exist.".to_owned()),
        Refusal::Busy(kind) => {
            let (code, what) = match kind {
                JobKind::Backup => (4096, "being backed up"),
                JobKind::Restore => (4097, "being restored"),
                JobKind::Migration => (4097, "being imported into"),
                JobKind::Restart => (4111, "being restarted"),
                JobKind::Password => (4121, "having its password reset"),
                JobKind::Resize => (4113, "being resized"),
                JobKind::Create => (4118, "being created"),
                JobKind::Flush => (4026, "being flushed"),
                JobKind::Delete => (4026, "being deleted"),
            };
            (400, code, format!("The instance is {what}. Try again when that has ended."))
        }
        Refusal::NotRunning => (400, 4049, "The instance is not running: ShowInstance says why; it is being brought back, try again or restart it.".to_owned()),
        Refusal::WrongState => (400, 4026, "This cannot be done while the instance is not running: ShowInstance says why; it is being brought back, a restart may help.".to_owned()),
        Refusal::OtherNodes => (400, 4026, "The flavor is of another kind of instance: its shards and replicas can be changed, its kind cannot. Restore a backup of the instance into a new one of that flavor.".to_owned()),
        Refusal::DataTooLarge { data_mb, limit_mb } => (
            400,
            4036,
            format!("The instance holds {data_mb} MB, and the flavor has {limit_mb} MB: choose a larger one, or remove keys first."),
        ),
        Refusal::NoTls => (400, 4026, "The instance does not speak TLS, so it has no certificate: TLS is asked for when an instance is made (enable_ssl).".to_owned()),
        Refusal::DeleteWhileCreating => (400, 4099, "The instance is being created. Delete it afterwards.".to_owned()),
        Refusal::NotRestorable => (400, 4087, "The backup is not in a state to be used: only a backup that succeeded and whose data is kept.".to_owned()),
        Refusal::NoFile => (400, 4087, "This backup is a kept generation of the instance and has no file: restore it, or take a backup to download.".to_owned()),
        Refusal::TooLarge { data_mb, limit_mb } => (
            400,
            4036,
            format!("The backup's data takes {data_mb} MB of memory and the instance has {limit_mb} MB: restore it into a larger one."),
        ),
        Refusal::EngineCannotLoad { engine, why } => (
            400,
            4087,
            format!("The instance's engine {engine} does not load this backup: {why}. Restore it into an instance of a newer engine."),
        ),
        Refusal::OtherDatabases(db) => (
            400,
            4087,
            format!("The backup has keys in database {db}, and a cluster has only database 0: restore it into a single-node instance."),
        ),
        Refusal::RemarkTooLong => (400, 4098, format!("The remark is longer than {} characters.", limits::REMARK_CHARS_MAX)),
        Refusal::Parameter(name) => (400, 4063, format!("Invalid {name} in the request.")),
        Refusal::NothingToChange => (400, 4063, "The request names nothing that can be changed: name, description, maintain_begin and maintain_end, security_group_id, instance_backup_policy, rename_commands, tags.".to_owned()),
        Refusal::KeyReused => (400, 4063, "Invalid Idempotency-Key: it was given with another request; a new request needs a new key.".to_owned()),
        Refusal::Query(name) => (400, 4062, format!("Invalid {name} in the query: yyyyMMddHHmmss in UTC is wanted.")),
        Refusal::Paging(name) => (400, 4800, format!("Invalid {name} in the request.")),
        Refusal::WindowReversed => (400, 4025, "The end time is not after the start time.".to_owned()),
        Refusal::BodyEmpty => (400, 4004, "The request body is empty.".to_owned()),
        Refusal::BodyNotJson => (400, 4005, "The request body is not a JSON object.".to_owned()),
        Refusal::NameInvalid => (400, 4010, "Invalid name: 4 to 64 characters, a letter first, then letters, digits, _ and -.".to_owned()),
        Refusal::DescriptionTooLong => (400, 4011, format!("The description is longer than {} characters.", limits::DESCRIPTION_CHARS_MAX)),
        Refusal::EngineUnsupported => (400, 4007, "The engine is Redis, or Valkey where the service has that.".to_owned()),
        Refusal::EngineVersionUnsupported => (400, 4008, "This engine version is not offered: list the flavors for those that are.".to_owned()),
        Refusal::EngineUnfit(version, why) => (400, 4008, format!("Engines of version {version} cannot be the nodes of such an instance: {why}. Choose another engine_version.")),
        Refusal::SpecUnknown => (400, 4009, "Unknown spec_code: list the flavors for those that are offered.".to_owned()),
        Refusal::CapacityInvalid => (400, 4012, "Invalid capacity: it must be that of the flavor.".to_owned()),
        Refusal::PasswordWeak => (400, 4019, "Invalid password: 8 to 32 characters, three of lower case, upper case, digits, signs.".to_owned()),
        Refusal::PortTaken(port) => (400, 4063, format!("Port {port} is taken: choose another, or leave it out.")),
        Refusal::NoHome => (400, 4039, "No node is there that runs instances of this engine: start one (cachekeep serve --role worker), or ask for another engine.".to_owned()),
        Refusal::HomeForgotten => (400, 4026, "The node that ran the instance was forgotten, and its engines with it: restore a backup into a new instance, and delete this one.".to_owned()),
        Refusal::ElsewhereOnly(host) => (
            400,
            4087,
            format!("The backup lies in the local folder of another node ({host}), which this one cannot read: ask that node, or add a remote store (cachekeep storage add) for those to come."),
        ),
        Refusal::Quota(exceeded) => (400, 4039, format!("No room for the backup: {exceeded}.")),
        Refusal::PortsExhausted => (400, 4039, "No port of the configured range is free.".to_owned()),
        Refusal::MemoryShort { needed_mb, free_mb } => (
            400,
            4036,
            format!("A second copy beside the present data needs {needed_mb} MB of memory and {free_mb} MB are free: free some, or allow downtime (allow_downtime, --allow-downtime)."),
        ),
        Refusal::InstancesMissing => (400, 4065, "The list of instances is missing.".to_owned()),
        Refusal::InstancesTooMany => (400, 4100, format!("More than {} instances.", limits::BATCH_INSTANCES_MAX)),
        Refusal::ActionInvalid => (400, 4064, "Invalid action: restart, soft_restart or flush.".to_owned()),
        Refusal::PolicySaveDays => (400, 4072, "Invalid save_days in the backup policy.".to_owned()),
        Refusal::PolicyType => (400, 4073, "Invalid backup_type in the backup policy: auto or manual.".to_owned()),
        Refusal::PolicyPeriod => (400, 4074, "Invalid period_type in the backup policy: weekly.".to_owned()),
        Refusal::PolicyDays => (400, 4075, "Invalid backup_at in the backup policy: days 1 to 7, each once.".to_owned()),
        Refusal::PolicyBegin => (400, 4076, "Invalid begin_at in the backup policy: like 00:00-01:00.".to_owned()),
        Refusal::MaintenanceWindow => (400, 4106, "Invalid maintenance window: begin and end, whole hours.".to_owned()),
        Refusal::NothingToUndo(why) => (400, 4087, format!("There is nothing to undo: {why}. A backup from before can be restored instead.")),
        Refusal::PlanOutdated => (400, 4026, "The plan does not hold any more: the instance, the backup or the engine is another one than when it was made. Make another plan.".to_owned()),
        Refusal::Unreadable(_) => (500, 5078, "The backup cannot be read where it is stored: try again; the log has the cause under this request's id, and `cachekeep backup verify` tells what is stored.".to_owned()),
        Refusal::NotCancellable(why) => (400, 4026, format!("It cannot be cancelled: {why}.")),
        Refusal::NotForClusters => (400, 4086, "An instance of several nodes is not restored in place: two generations of it must fit in memory.".to_owned()),
        Refusal::AddressOpen => (400, 4063, "A cluster tells its clients the addresses of its nodes: run the service with --engine-bind of one address.".to_owned()),
        Refusal::NotAttachable(why) => (400, 4063, match why {
            NotAttached::Unreachable => "The servers cannot be attached: nothing that this service may connect to answers there as a Redis or Valkey server does. Where the address is right, the operator must allow it (cachekeep serve --attach-allow), and by TLS certificates must fit.".to_owned(),
            NotAttached::Credentials => "The servers cannot be attached: they refuse the user or the password, or want one.".to_owned(),
            NotAttached::Forbidden => "The servers cannot be attached: the user may not do what is needed. `cachekeep instance attach --print-acl` prints what that is.".to_owned(),
            NotAttached::Shape(what) => format!("The servers cannot be attached: {what}."),
        }),
        Refusal::TooManyAttachments => (429, 4026, format!("{} servers are being looked at. Try again when one has answered.", limits::ATTACHMENTS_AT_ONCE)),
        Refusal::Attached(what) => (400, 4086, format!("The instance is attached: its servers are run by somebody else, and {what}.")),
        Refusal::SingleNode => (400, 4086, "Single-node instances have no backup and restore (strict mode).".to_owned()),
        Refusal::ScheduleUnknown => (404, 4001, "The schedule does not exist.".to_owned()),
        Refusal::ScheduleNameTaken => (400, 4063, "Invalid name in the request: the instance has a schedule of that name; delete it first, or choose another.".to_owned()),
        Refusal::TooManySchedules => (400, 4063, format!("The instance has {} schedules: delete one first.", limits::SCHEDULES_MAX)),
        Refusal::CronInvalid(why) => (400, 4063, format!("Invalid cron in the request: {why}.")),
        Refusal::ZoneUnknown => (400, 4063, "Invalid zone in the request: a name of the IANA time zone database is wanted, like Europe/Berlin.".to_owned()),
        Refusal::Held => (400, 4063, "The backup is held: release it first (cachekeep backup release).".to_owned()),
        Refusal::BeingDeleted => (400, 4026, "The backup is being deleted by another call.".to_owned()),
        Refusal::BeingVerified => (400, 4026, "The backup is being verified at another level. Try again when that has ended.".to_owned()),
        Refusal::TooManyImports => (429, 4026, format!("{} imports are at work. Try again when one has ended.", limits::IMPORTS_AT_ONCE)),
        Refusal::ImportOfCluster => (400, 4063, "The instance is a cluster, and a set of files is not taken from URLs here: the operator imports it (cachekeep import INSTANCE FILE FILE FILE).".to_owned()),
        Refusal::DeleteFailed => (500, 4101, "The backup file could not be deleted; the backup is still listed. Try again, or look into the log.".to_owned()),
        Refusal::Catalog(crate::catalog::Error::Away(_)) => (503, INTERNAL, "The service cannot reach its database now. Try again.".to_owned()),
        Refusal::Catalog(_) | Refusal::Internal(_) => (500, INTERNAL, "Internal error. The log has the cause under this request's id.".to_owned()),
    };
    Answer {
        status,
        code,
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_has_its_v1_twin() {
        for (v2, v1) in [
            (1004, 111_401_004),
            (3022, 111_404_022),
            (4096, 111_400_096),
            (4800, 111_400_800),
            (5000, 111_500_000),
            (5001, 111_405_001),
            (4001, 111_404_001),
            (4101, 111_400_101),
        ] {
            assert_eq!(v1_code(v2), v1, "{v2}");
        }
    }

    #[test]
    fn every_operation_with_a_code_of_its_own_is_a_route() {
        let routes = crate::api::routes::routes();
        for name in [
            "ListInstances",
            "ShowInstance",
            "CreateInstance",
            "DeleteSingleInstance",
            "BatchDeleteInstances",
            "RestartOrFlushInstances",
            "ResetPassword",
            "ListBackupRecords",
            "CkShowBackup",
            "ListBackupFileLinks",
            "DownloadBackupFile",
            "CopyInstance",
            "CkVerifyBackup",
            "CkCancelVerify",
            "CkListVerifications",
            "CkCancelBackup",
            "CkImportBackup",
            "ListRestoreRecords",
            "CkShowRestore",
            "RestoreInstance",
            "CkRestoreInstance",
            "CkUndoRestore",
            "CkCancelRestore",
            "CkPlanRestore",
        ] {
            assert!(routes.iter().any(|route| route.name == name), "{name}");
            assert_ne!(internal_code(name), INTERNAL, "{name}");
        }
        assert_eq!(internal_code("ListRestoreRecordsV1"), 5079);
        assert_eq!(internal_code("ListApiVersions"), INTERNAL);
    }
}
