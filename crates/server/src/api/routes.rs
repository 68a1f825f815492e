//! The table of every route.

use axum::body::Body;
use axum::http::Response;

use super::error::ApiError;
use super::openapi::{Answer, Wish};
use super::request::Request;
use super::{
    attachments, backups, certificates, download, events, identity, imports, instances, migrations, openapi,
    plans, proofs, restores, schedules, system, topology,
};

/// A response.
pub type Reply = Response<Body>;

/// What carries a call out.
pub type Handler = fn(&Request) -> Result<Reply, ApiError>;

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

/// What a call costs, and so where it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Point look-ups: at once, where the connection is served.
    Quick,
    /// Waits for the disk: on a thread where that is allowed.
    Waits,
    /// Computes a password hash: as `Waits`, a few at once.
    Hashes,
    /// Hands out a file: as `Waits`, and its thread goes on with the body.
    Streams,
    /// Goes on telling what becomes of something: as `Waits`, and holds a place for watchers until it has ended.
    Watches,
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
    /// Its JSON body.
    pub wish: Wish,
    /// What it does.
    pub handler: Handler,
    /// What it costs.
    pub work: Work,
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
    "include_delete",
    "tags",
    "capacity",
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
            |name: &str, method, path: &str, success, answer, query, wish, work, handler: Handler| {
                table.push(Route {
                    name: Box::leak(format!("{name}{suffix}").into_boxed_str()),
                    method,
                    path: format!("{prefix}{path}"),
                    access: Access::Project,
                    success,
                    answer,
                    query,
                    wish,
                    handler,
                    work,
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
            Wish::Nothing,
            Work::Quick,
            restores::list,
        );
        add(
            "RestoreInstance",
            "POST",
            &format!("{one}/restores"),
            200,
            Answer::RestoreStarted,
            &[],
            Wish::Restore,
            Work::Waits,
            restores::create,
        );
        add(
            "ListBackupRecords",
            "GET",
            &format!("{one}/backups"),
            200,
            Answer::BackupList,
            PAGED,
            Wish::Nothing,
            Work::Quick,
            backups::list,
        );
        add(
            "CopyInstance",
            "POST",
            &format!("{one}/backups"),
            200,
            Answer::BackupStarted,
            &[],
            Wish::Backup,
            Work::Waits,
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
            Wish::Nothing,
            Work::Waits,
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
            Wish::Links,
            Work::Waits,
            backups::links,
        );
        add(
            "ListInstances",
            "GET",
            "/instances",
            200,
            Answer::InstanceList,
            INSTANCE_QUERY,
            Wish::Nothing,
            Work::Quick,
            instances::list,
        );
        add(
            "CreateInstance",
            "POST",
            "/instances",
            200,
            Answer::Object,
            &[],
            Wish::Create,
            Work::Waits,
            instances::create,
        );
        add(
            "BatchDeleteInstances",
            "DELETE",
            "/instances",
            200,
            Answer::BatchResults,
            &["all_failure"],
            Wish::Instances,
            Work::Waits,
            instances::delete_batch,
        );
        add(
            "RestartOrFlushInstances",
            "PUT",
            "/instances/status",
            200,
            Answer::BatchResults,
            &[],
            Wish::Act,
            Work::Waits,
            instances::act,
        );
        add(
            "ShowInstance",
            "GET",
            one,
            200,
            Answer::Instance,
            &[],
            Wish::Nothing,
            Work::Quick,
            instances::show,
        );
        add(
            "UpdateInstance",
            "PUT",
            one,
            changed,
            Answer::Nothing,
            &[],
            Wish::Update,
            Work::Waits,
            instances::update,
        );
        add(
            "DeleteSingleInstance",
            "DELETE",
            one,
            204,
            Answer::Nothing,
            &[],
            Wish::Nothing,
            Work::Waits,
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
            Wish::Password,
            Work::Waits,
            instances::reset_password,
        );
        let (name, path) = if v1 {
            ("ExtendInstance", "extend")
        } else {
            ("ResizeInstance", "resize")
        };
        add(
            name,
            "POST",
            &format!("{one}/{path}"),
            204,
            Answer::Nothing,
            &[],
            Wish::Resize,
            Work::Waits,
            instances::resize,
        );
        add(
            "ListFlavors",
            "GET",
            "/flavors",
            200,
            Answer::Object,
            FLAVOR_QUERY,
            Wish::Nothing,
            Work::Quick,
            system::flavors,
        );
        if !v1 {
            add(
                "ShowNodesInformation",
                "GET",
                &format!("{one}/logical-nodes"),
                200,
                Answer::Object,
                &[],
                Wish::Nothing,
                Work::Waits,
                topology::nodes,
            );
            add(
                "ListGroupReplicationInfo",
                "GET",
                "/instance/{instance_id}/groups",
                200,
                Answer::Object,
                &[],
                Wish::Nothing,
                Work::Waits,
                topology::groups,
            );
            add(
                "BatchShowNodesInformation",
                "GET",
                "/instances-logical-nodes",
                200,
                Answer::Object,
                &["limit", "offset"],
                Wish::Nothing,
                Work::Waits,
                topology::nodes_of_all,
            );
            add(
                "ShowInstanceSslDetail",
                "GET",
                &format!("{one}/ssl"),
                200,
                Answer::Object,
                &[],
                Wish::Nothing,
                Work::Quick,
                certificates::show,
            );
            add(
                "DownloadSslCert",
                "POST",
                &format!("{one}/ssl-certs/download"),
                200,
                Answer::Object,
                &[],
                Wish::Nothing,
                Work::Quick,
                certificates::download,
            );
            // The documented sample of UpdateInstance spells it in the singular: contract C30.
            add(
                "UpdateInstanceSingular",
                "PUT",
                "/instance/{instance_id}",
                changed,
                Answer::Nothing,
                &[],
                Wish::Update,
                Work::Waits,
                instances::update,
            );
        }
    }
    let mut add = |name, method, path: &str, access, answer, query, wish, work, handler: Handler| {
        table.push(Route {
            name,
            method,
            path: path.to_owned(),
            access,
            success: 200,
            answer,
            query,
            wish,
            handler,
            work,
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
        Wish::Restore,
        Work::Waits,
        restores::create,
    );
    add(
        "CkPlanRestore",
        "POST",
        &format!("{one}/restores/plan"),
        project,
        Answer::RestorePlan,
        &[],
        Wish::Restore,
        Work::Waits,
        plans::create,
    );
    add(
        "CkShowRestore",
        "GET",
        &format!("{one}/restores/{{restore_id}}"),
        project,
        Answer::Restore,
        &[],
        Wish::Nothing,
        Work::Quick,
        restores::show,
    );
    add(
        "CkWatchRestore",
        "GET",
        &format!("{one}/restores/{{restore_id}}/events"),
        project,
        Answer::Events,
        &[],
        Wish::Nothing,
        Work::Watches,
        events::restore,
    );
    add(
        "CkUndoRestore",
        "POST",
        &format!("{one}/restores/{{restore_id}}/undo"),
        project,
        Answer::RestoreStarted,
        &[],
        Wish::Undo,
        Work::Waits,
        restores::undo,
    );
    add(
        "CkCancelRestore",
        "POST",
        &format!("{one}/restores/{{restore_id}}/cancel"),
        project,
        Answer::RestoreStarted,
        &[],
        Wish::Nothing,
        Work::Waits,
        restores::cancel,
    );
    add(
        "CkCancelResize",
        "POST",
        &format!("{one}/resize/cancel"),
        project,
        Answer::Nothing,
        &[],
        Wish::Nothing,
        Work::Waits,
        instances::cancel_resize,
    );
    add(
        "CkShowBackup",
        "GET",
        &format!("{one}/backups/{{backup_id}}"),
        project,
        Answer::Backup,
        &[],
        Wish::Nothing,
        Work::Quick,
        backups::show,
    );
    add(
        "CkImportBackup",
        "POST",
        &format!("{one}/imports"),
        project,
        Answer::BackupStarted,
        &[],
        Wish::Import,
        Work::Waits,
        imports::create,
    );
    let schedules = format!("{one}/schedules");
    let schedule = format!("{schedules}/{{schedule_id}}");
    let hold = format!("{one}/backups/{{backup_id}}/hold");
    let verify = format!("{one}/backups/{{backup_id}}/verify");
    for (name, method, path, answer, wish, work, handler) in [
        (
            "CkVerifyBackup",
            "POST",
            verify.as_str(),
            Answer::VerificationStarted,
            Wish::Verify,
            Work::Waits,
            proofs::create as Handler,
        ),
        (
            "CkCancelVerify",
            "POST",
            &format!("{verify}/cancel"),
            Answer::Object,
            Wish::Nothing,
            Work::Waits,
            proofs::cancel,
        ),
        (
            "CkListVerifications",
            "GET",
            &format!("{one}/backups/{{backup_id}}/verifications"),
            Answer::VerificationList,
            Wish::Nothing,
            Work::Quick,
            proofs::list,
        ),
        (
            "CkCancelBackup",
            "POST",
            &format!("{one}/backups/{{backup_id}}/cancel"),
            Answer::BackupStarted,
            Wish::Nothing,
            Work::Waits,
            backups::cancel,
        ),
        (
            "CkListSchedules",
            "GET",
            schedules.as_str(),
            Answer::ScheduleList,
            Wish::Nothing,
            Work::Quick,
            schedules::list,
        ),
        (
            "CkCreateSchedule",
            "POST",
            &schedules,
            Answer::ScheduleMade,
            Wish::Schedule,
            Work::Waits,
            schedules::create,
        ),
        (
            "CkDeleteSchedule",
            "DELETE",
            &schedule,
            Answer::Object,
            Wish::Nothing,
            Work::Waits,
            schedules::delete,
        ),
        (
            "CkRunSchedule",
            "POST",
            &format!("{schedule}/run"),
            Answer::RunBegun,
            Wish::Nothing,
            Work::Waits,
            schedules::run,
        ),
        (
            "CkSetObjective",
            "PUT",
            &format!("{one}/rpo"),
            Answer::Object,
            Wish::Objective,
            Work::Waits,
            schedules::set_objective,
        ),
        (
            "CkListDrills",
            "GET",
            &format!("{one}/drills"),
            Answer::VerificationList,
            Wish::Nothing,
            Work::Quick,
            schedules::drills,
        ),
        (
            "CkPlanRetention",
            "GET",
            &format!("{one}/retention"),
            Answer::Retention,
            Wish::Nothing,
            Work::Quick,
            schedules::retention,
        ),
        (
            "CkHoldBackup",
            "PUT",
            &hold,
            Answer::Object,
            Wish::Hold,
            Work::Waits,
            schedules::hold,
        ),
        (
            "CkReleaseBackup",
            "DELETE",
            &hold,
            Answer::Object,
            Wish::Nothing,
            Work::Waits,
            schedules::release,
        ),
    ] {
        add(name, method, path, project, answer, &[], wish, work, handler);
    }
    add(
        "CkListAttachments",
        "GET",
        "/ck/v1/{project_id}/attachments",
        project,
        Answer::AttachmentList,
        &[],
        Wish::Nothing,
        Work::Quick,
        attachments::list,
    );
    add(
        "CkAttachInstance",
        "POST",
        "/ck/v1/{project_id}/attachments",
        project,
        Answer::Attachment,
        &[],
        Wish::Attach,
        Work::Waits,
        attachments::create,
    );
    let attached = "/ck/v1/{project_id}/attachments/{instance_id}";
    add(
        "CkShowAttachment",
        "GET",
        attached,
        project,
        Answer::Attachment,
        &[],
        Wish::Nothing,
        Work::Quick,
        attachments::show,
    );
    table.push(Route {
        name: "CkDetachInstance",
        method: "DELETE",
        path: attached.to_owned(),
        access: project,
        success: 204,
        answer: Answer::Nothing,
        query: &[],
        wish: Wish::Nothing,
        handler: attachments::delete,
        work: Work::Waits,
    });
    let mut add = |name, method, path: &str, access, answer, query, wish, work, handler: Handler| {
        table.push(Route {
            name,
            method,
            path: path.to_owned(),
            access,
            success: 200,
            answer,
            query,
            wish,
            handler,
            work,
        });
    };
    let any_credential = Access::Credential;
    add(
        "ListAvailableZones",
        "GET",
        "/v2/available-zones",
        any_credential,
        Answer::Object,
        &[],
        Wish::Nothing,
        Work::Quick,
        system::zones,
    );
    add(
        "ListAvailableZonesV1",
        "GET",
        "/v1.0/availableZones",
        any_credential,
        Answer::Object,
        &[],
        Wish::Nothing,
        Work::Quick,
        system::zones,
    );
    add(
        "ListProductsV1",
        "GET",
        "/v1.0/products",
        any_credential,
        Answer::Object,
        &[],
        Wish::Nothing,
        Work::Quick,
        system::products,
    );
    add(
        "KeystoneListProjects",
        "GET",
        "/v3/projects",
        any_credential,
        Answer::Object,
        &["name"],
        Wish::Nothing,
        Work::Quick,
        identity::projects,
    );
    add(
        "KeystoneListAuthProjects",
        "GET",
        "/v3/auth/projects",
        any_credential,
        Answer::Object,
        &["name"],
        Wish::Nothing,
        Work::Quick,
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
        wish: Wish::Token,
        handler: identity::create_token,
        work: Work::Hashes,
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
            wish: Wish::Nothing,
            handler,
            work: Work::Quick,
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
        wish: Wish::Nothing,
        handler: download::serve,
        work: Work::Streams,
    });
    table.push(Route {
        name: "DownloadCertificate",
        method: "GET",
        path: "/download/{project}/{instance}/{file}".to_owned(),
        access: open,
        success: 200,
        answer: Answer::Bytes,
        query: &["Expires", "Signature"],
        wish: Wish::Nothing,
        handler: certificates::serve,
        work: Work::Quick,
    });
    table.extend(migrations::routes());
    table
}
