//! Import tasks on the wire: DCS calls them migrations, contract §9.8.

use serde_json::{Value, json};

use super::error::{ApiError, json_response};
use super::failure;
use super::openapi::{Answer, Wish};
use super::page::{self, Stamp};
use super::request::{Fields, Request};
use super::routes::{Access, Handler, Reply, Route, Work};
use crate::ids::{BackupId, InstanceId, MigrationId};
use crate::limits;
use crate::refusal::Refusal;
use crate::restore::migration::command::{self, ImportRequest};
use crate::restore::migration::record::Migration;
use crate::restore::record::{Status, TargetState};

/// The one kind of task that there is, and its one method.
const TYPE: &str = "backupfile_import";
const METHOD: &str = "full_amount_migration";
/// Our word for a backup of the service, where DCS names a bucket.
const BACKUP_RECORD: &str = "backup_record";

/// The routes of this file.
pub fn routes() -> Vec<Route> {
    let route = |name, method, path: &str, query, wish, work, handler: Handler| Route {
        name,
        method,
        path: format!("/v2/{{project_id}}{path}"),
        access: Access::Project,
        success: 200,
        answer: Answer::Object,
        query,
        wish,
        handler,
        work,
    };
    let (one, nothing) = ("/migration-task/{task_id}", Wish::Nothing);
    vec![
        route(
            "CreateMigrationTask",
            "POST",
            "/migration-task",
            &[],
            Wish::Migration,
            Work::Waits,
            create,
        ),
        route("ShowMigrationTask", "GET", one, &[], nothing, Work::Quick, show),
        route(
            "ListMigrationTask",
            "GET",
            "/migration-tasks",
            &["offset", "limit", "name"],
            nothing,
            Work::Quick,
            list,
        ),
        route(
            "StopMigrationTask",
            "POST",
            "/migration-task/{task_id}/stop",
            &[],
            nothing,
            Work::Waits,
            stop,
        ),
        route(
            "DeleteMigrationTask",
            "DELETE",
            "/migration-tasks/delete",
            &[],
            Wish::Migrations,
            Work::Waits,
            delete,
        ),
    ]
}

/// `POST /v2/{project_id}/migration-task`
///
/// # Errors
/// Fields; as of a restore.
fn create(request: &Request) -> Result<Reply, ApiError> {
    let wish = decode(&request.body()?)?;
    let once = request.once()?;
    let id = command::submit(
        &request.app,
        request.project()?,
        &wish,
        once.as_ref(),
        request.now,
    )?;
    let started = json!({"id": id, "name": wish.name, "status": "MIGRATING"});
    Ok(json_response(200, &started))
}

fn decode(fields: &Fields) -> Result<ImportRequest, Refusal> {
    let is = |name: &'static str, wanted: &str| match fields.text(name)?.as_deref() {
        Some(given) if given == wanted => Ok(()),
        _ => Err(Refusal::Parameter(name)),
    };
    is("migration_type", TYPE)?;
    is("migration_method", METHOD)?;
    let inner = |name: &'static str| match fields.get(name) {
        Some(Value::Object(inner)) => Ok(Fields(inner.clone())),
        _ => Err(Refusal::Parameter(name)),
    };
    let files = inner("backup_files")?;
    if files.text("file_source")?.as_deref() != Some(BACKUP_RECORD) {
        return Err(Refusal::Parameter("file_source"));
    }
    let backup = files.text("backup_id")?.ok_or(Refusal::Parameter("backup_id"))?;
    let target = inner("target_instance")?.text("id")?;
    Ok(ImportRequest {
        name: fields.text("task_name")?.ok_or(Refusal::Parameter("task_name"))?,
        description: fields.text("description")?,
        backup_id: BackupId::parse(&backup).ok_or(Refusal::BackupUnknown)?,
        target: target
            .and_then(|id| InstanceId::parse(&id))
            .ok_or(Refusal::Parameter("target_instance"))?,
    })
}

/// `GET /v2/{project_id}/migration-task/{task_id}`
///
/// # Errors
/// 400 DCS.4133.
fn show(request: &Request) -> Result<Reply, ApiError> {
    let task = command::show(&request.app, request.project()?, &task_id(request)?)?;
    let mut shown = common(request, &task);
    let (target, target_name) = &task.target;
    shown["backup_files"] = json!({"file_source": BACKUP_RECORD, "backup_id": task.backup_id,
        "backup_record": {"backup_id": task.backup_id}});
    shown["target_instance"] = json!({"id": target, "name": target_name});
    shown["updated_at"] = json!(Stamp(task.updated_at));
    Ok(json_response(200, &shown))
}

/// `GET /v2/{project_id}/migration-tasks`
///
/// # Errors
/// Paging; a name that none can have.
fn list(request: &Request) -> Result<Reply, ApiError> {
    let page = page::page(request, limits::PAGE_ROWS_DEFAULT)?;
    let name = request.query("name");
    let (count, tasks) = command::list(
        &request.app,
        request.project()?,
        name.as_deref(),
        page.offset,
        page.limit,
    )?;
    let tasks: Vec<Value> = tasks
        .iter()
        .map(|task| {
            let mut shown = common(request, task);
            let ((target, target_name), (source, source_name)) = (&task.target, &task.source);
            shown["data_source"] = json!(task.backup_id);
            shown["target_instance_id"] = json!(target);
            shown["target_instance_name"] = json!(target_name);
            shown["source_instance_id"] = json!(source);
            shown["source_instance_name"] = json!(source_name);
            shown
        })
        .collect();
    Ok(json_response(
        200,
        &json!({"count": count, "migration_tasks": tasks}),
    ))
}

/// `POST /v2/{project_id}/migration-task/{task_id}/stop`
///
/// # Errors
/// 400 DCS.4133; it has ended.
fn stop(request: &Request) -> Result<Reply, ApiError> {
    let id = task_id(request)?;
    let project = request.project()?;
    command::stop(&request.app, project, &id, request.now)?;
    let task = command::show(&request.app, project, &id)?;
    Ok(json_response(200, &common(request, &task)))
}

/// `DELETE /v2/{project_id}/migration-tasks/delete`
///
/// # Errors
/// Fields; 400 DCS.4133; one has not ended.
fn delete(request: &Request) -> Result<Reply, ApiError> {
    const NAME: &str = "task_id_list";
    let fields = request.body()?;
    let given = fields.get(NAME).and_then(Value::as_array);
    let given = given
        .filter(|given| (1..=limits::BATCH_INSTANCES_MAX).contains(&given.len()))
        .ok_or(Refusal::Parameter(NAME))?;
    let ids: Vec<MigrationId> = given
        .iter()
        .map(|id| {
            let id = id.as_str().ok_or(Refusal::Parameter(NAME))?;
            MigrationId::parse(id).ok_or(Refusal::MigrationUnknown)
        })
        .collect::<Result<_, Refusal>>()?;
    command::delete(&request.app, request.project()?, &ids, request.now)?;
    Ok(json_response(200, &json!({NAME: ids})))
}

/// A malformed id is an unknown task.
fn task_id(request: &Request) -> Result<MigrationId, Refusal> {
    MigrationId::parse(request.param("task_id")).ok_or(Refusal::MigrationUnknown)
}

/// What both the list and one task tell.
fn common(request: &Request, task: &Migration) -> Value {
    let status = match task.status {
        Status::Waiting | Status::Running => "MIGRATING",
        Status::Succeeded => "SUCCESS",
        Status::Failed if task.is_stopped && task.target_state != TargetState::Unknown => "TERMINATED",
        Status::Failed => "FAILED",
    };
    let why = failure::shown(&request.app.config, task.failure.as_deref());
    let mut shown = json!({
        "task_id": task.id, "task_name": task.name, "description": task.description, "status": status, "task_status": status,
        "migration_type": TYPE, "migration_method": METHOD, "created_at": Stamp(task.created_at),
        "released_at": task.finished_at.map(Stamp), "error_message": why,
    });
    if request.tells_more() {
        shown["ext"] = json!({"target_state": task.target_state.word(), "keys_applied": task.keys_applied});
    }
    shown
}
