//! CopyInstance, ListBackupRecords, DeleteBackupFile and ListBackupFileLinks on the wire.

use axum::body::Body;
use axum::http::{Response, StatusCode};
use serde::Serialize;
use utoipa::ToSchema;

use super::download;
use super::error::{ApiError, Version, json_response};
use super::failure;
use super::page;
use super::request::Request;
use super::routes::Reply;
use crate::backup::record::{self, Backup, Format, Kind, Status};
use crate::backup::{command, page_record, place};
use crate::catalog::Tx;
use crate::instance::command as instances;
use crate::limits;
use crate::refusal::Refusal;
use crate::restore::command::is_restorable;

/// `POST …/instances/{instance_id}/backups`
///
/// # Errors
/// Contract §4.1.
pub fn create(request: &Request) -> Result<Reply, ApiError> {
    let instance = request.instance_id()?;
    let (mut remark, mut format) = (None, Format::Rdb);
    if let Some(fields) = request.optional_body()? {
        remark = fields.text("remark")?;
        if let Some(word) = fields.text("backup_format")? {
            format = Format::from_word(&word).ok_or(Refusal::Parameter("backup_format"))?;
        }
    }
    let project = request.project()?;
    let id = command::create(
        &request.app,
        project,
        &instance,
        format,
        remark.as_deref(),
        request.once()?.as_ref(),
        request.now,
    )?;
    Ok(json_response(
        200,
        &BackupStarted {
            backup_id: id.to_string(),
        },
    ))
}

/// `GET …/instances/{instance_id}/backups`
///
/// # Errors
/// Contract §4.2 and §4.7.
pub fn list(request: &Request) -> Result<Reply, ApiError> {
    let project = request.project()?;
    let id = request.instance_id()?;
    let page = page::page(request, limits::PAGE_ROWS_DEFAULT)?;
    let window = page::window(request)?;
    let strict = request.app.config.strict_dcs;
    let deleted = request.query("include_deleted").as_deref() == Some("true") && !strict;
    let answer = request.app.catalog.read(|tx| {
        if window.from.is_none() && window.to.is_none() {
            page_record::soon(tx, &id, page.offset, page.limit)?;
        }
        let instance = match deleted {
            true => instances::find_with_deleted(tx, project, &id)?,
            false => instances::find(tx, project, &id)?,
        };
        let (total, rows) = record::list(tx, &instance, window.from, window.to, page.offset, page.limit)?;
        let mut records = Vec::with_capacity(rows.len());
        for row in &rows {
            records.push(BackupRecord::new(request, tx, row)?);
        }
        Ok::<_, Refusal>(BackupList {
            backup_record_response: records,
            total_num: total,
        })
    })?;
    Ok(json_response(200, &answer))
}

/// `GET /ck/v1/…/backups/{backup_id}`
///
/// # Errors
/// Unknown instance or backup.
pub fn show(request: &Request) -> Result<Reply, ApiError> {
    let found = command::find(
        &request.app,
        request.project()?,
        &request.instance_id()?,
        &request.backup_id()?,
    )?;
    let shown = request
        .app
        .catalog
        .read(|tx| BackupRecord::new(request, tx, &found))?;
    Ok(json_response(200, &shown))
}

/// `POST /ck/v1/…/backups/{backup_id}/cancel`
///
/// # Errors
/// Unknown instance or backup; it has ended, or is made for a restore.
pub fn cancel(request: &Request) -> Result<Reply, ApiError> {
    let (instance, id) = (request.instance_id()?, request.backup_id()?);
    command::cancel(&request.app, request.project()?, &instance, &id, request.now)?;
    Ok(json_response(
        200,
        &BackupStarted {
            backup_id: id.to_string(),
        },
    ))
}

/// `DELETE …/instances/{instance_id}/backups/{backup_id}`
///
/// # Errors
/// Contract §4.3.
pub fn delete(request: &Request) -> Result<Reply, ApiError> {
    let instance = request.instance_id()?;
    command::delete(
        &request.app,
        request.project()?,
        &instance,
        &request.backup_id()?,
        request.now,
    )?;
    Ok(match request.version {
        Version::V2 => no_content(),
        Version::V1 => json_response(200, &serde_json::json!({"message": ""})),
    })
}

/// 204.
pub fn no_content() -> Reply {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

/// `POST …/backups/{backup_id}/links`
///
/// # Errors
/// Contract §4.4.
pub fn links(request: &Request) -> Result<Reply, ApiError> {
    let id = request.instance_id()?;
    let fields = request.body()?;
    let seconds = match fields.get("expiration") {
        Some(serde_json::Value::Bool(_)) | None => None,
        Some(_) => fields.integer("expiration")?,
    };
    let seconds = seconds
        .filter(|seconds| limits::LINK_SECONDS.contains(seconds))
        .ok_or(Refusal::Parameter("expiration"))?;
    let project = request.project()?;
    let backup = command::find(&request.app, project, &id, &request.backup_id()?)?;
    if !backup.is_kept() {
        return Err(Refusal::NotRestorable.into());
    }
    let Some(prefix) = &backup.prefix else {
        return Err(Refusal::NoFile.into());
    };
    let instance = request.app.catalog.read(|tx| {
        place::check_reader(tx, &backup, &request.app.host)?;
        instances::find_with_deleted(tx, project, &id)
    })?;
    let files = download::files(&request.app, &instance, &backup).map_err(|error| {
        tracing::error!(backup.id = %backup.id, error = engine::chain(&error), "a backup's files cannot be told");
        Refusal::Internal(engine::chain(&error))
    })?;
    let until = request.now.plus_seconds(seconds);
    let links: Vec<BackupLink> = files
        .into_iter()
        .map(|file| BackupLink {
            link: download::link(request, &instance, &backup, &file.name, until),
            file_name: file.name,
        })
        .collect();
    let folder = format!("{prefix}/");
    Ok(json_response(
        200,
        &BackupLinks {
            bucket_name: "cachekeep".to_owned(),
            file_path: match links.first() {
                Some(first) if request.version == Version::V1 => format!("{folder}{}", first.file_name),
                _ => folder,
            },
            links,
        },
    ))
}

/// The answer to an accepted backup.
#[derive(Debug, Serialize, ToSchema)]
pub struct BackupStarted {
    /// The record, visible from this moment.
    pub backup_id: String,
}

/// The answer to ListBackupRecords.
#[derive(Debug, Serialize, ToSchema)]
pub struct BackupList {
    /// The page, newest first.
    pub backup_record_response: Vec<BackupRecord>,
    /// All records of the window, before paging.
    pub total_num: u64,
}

/// The answer to ListBackupFileLinks.
#[derive(Debug, Serialize, ToSchema)]
pub struct BackupLinks {
    /// The store's name.
    pub bucket_name: String,
    /// Where in the store; a folder on v2, the file on v1.0.
    pub file_path: String,
    /// One per shard.
    pub links: Vec<BackupLink>,
}

/// One downloadable file.
#[derive(Debug, Serialize, ToSchema)]
pub struct BackupLink {
    /// Its name.
    pub file_name: String,
    /// A plain GET that carries its own proof and expiry.
    pub link: String,
}

/// One backup record: the fifteen documented fields, always all of them.
#[derive(Debug, Serialize, ToSchema)]
pub struct BackupRecord {
    /// The record.
    pub backup_id: String,
    /// `backup_yyyyMMddHHmmss`
    pub backup_name: String,
    /// Whose data it holds.
    pub instance_id: String,
    /// `manual` or `auto`
    pub backup_type: &'static str,
    /// `rdb` or `aof` (upper case on v1.0)
    pub backup_format: Option<String>,
    /// `waiting`, `backuping`, `succeed`, `failed`, `expired`
    pub status: &'static str,
    /// `"0.00"` to `"100.00"`
    #[schema(value_type = String)]
    pub progress: std::borrow::Cow<'static, str>,
    /// Stored bytes; 0 until known.
    pub size: i64,
    /// The window that triggered it; null for manual ones.
    pub period: Option<String>,
    /// The remark of the request.
    pub remark: Option<String>,
    /// When it was accepted.
    pub created_at: String,
    /// When the work began.
    pub execution_at: Option<String>,
    /// When it last changed; the end once it has ended.
    pub updated_at: String,
    /// `dcs.08.000x`, null unless failed.
    pub error_code: Option<String>,
    /// `TRUE` or `FALSE`
    pub is_support_restore: &'static str,
    /// What DCS does not tell; absent in strict mode.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, nullable = false)]
    pub ext: Option<BackupDetails>,
}

/// What we tell beyond DCS about a backup.
#[derive(Debug, Serialize, ToSchema)]
pub struct BackupDetails {
    /// `manual`, `auto`, `safety`, `generation`
    pub kind: &'static str,
    /// What is going on now.
    pub phase: Option<String>,
    /// Plain bytes captured, while it runs.
    pub bytes_done: i64,
    /// Plain bytes expected: an estimate while it runs, what it was afterwards.
    pub bytes_total: i64,
    /// Keys captured.
    pub keys_done: i64,
    /// Keys in it.
    pub keys: i64,
    /// Bytes of the plain RDB.
    pub plain_bytes: i64,
    /// Memory that the data took in its engine.
    pub used_memory_bytes: i64,
    /// BLAKE3 of the signed manifest.
    pub manifest_blake3: Option<String>,
    /// Of a primary with replicas, which node was captured: `primary` or `replica`, a space, its id.
    pub captured_from: Option<String>,
    /// Whether it holds the data of one moment (of a cluster's shard); false where its server hides `PSYNC`, so that it was read key by
    /// key.
    pub point_in_time: bool,
    /// The store that its file lies in: `local` or the name of a storage.
    pub storage: String,
    /// A copy of it in another store; null without one.
    pub copy: Option<BackupCopy>,
    /// The run of a schedule that it was made by; null where somebody asked for it.
    pub run: Option<BackupRun>,
    /// Why neither retention nor DeleteBackupFile may take it; null: they may.
    pub held: Option<String>,
    /// When retention may take it; null: it stays until somebody deletes it.
    pub expires_at: Option<String>,
    /// What the verify that counts found; null before the first.
    pub proof: Option<BackupProof>,
    /// Why it failed; the log has more of it, for the operator.
    pub failure: Option<String>,
}

/// A copy of a backup's file.
#[derive(Debug, Serialize, ToSchema)]
pub struct BackupCopy {
    /// The store that it lies in: `local` or the name of a storage.
    pub storage: String,
    /// When every byte of it was read back and found to be that of the backup; null while it is being made.
    pub copied_at: Option<String>,
}

/// One try of a run of a schedule.
#[derive(Debug, Serialize, ToSchema)]
pub struct BackupRun {
    /// The schedule, or the backup policy.
    pub schedule_id: String,
    /// When the run was due.
    pub due_at: String,
    /// The how manieth try it is, from 1 on.
    pub try_number: i64,
}

/// What a verify found.
#[derive(Debug, Serialize, ToSchema)]
pub struct BackupProof {
    /// `stored`: every stored byte is the one that was stored; `parsed`: and they are the valid data of the capture;
    /// `proven`: and a throw-away engine has loaded them.
    pub level: &'static str,
    /// Whether the backup holds; where it does not, it is not restorable.
    pub holds: bool,
    /// When that was found.
    pub verified_at: String,
    /// Version of the engine, for `proven`.
    pub engine: Option<String>,
    /// How long that engine loaded.
    pub load_ms: Option<i64>,
    /// What is wrong with the backup.
    pub failure: Option<String>,
}

impl BackupRecord {
    fn new(request: &Request, tx: &Tx<'_>, row: &Backup) -> Result<Self, crate::catalog::Error> {
        let format = row.format.word();
        Ok(Self {
            backup_id: row.id.to_string(),
            backup_name: row.name.clone(),
            instance_id: row.instance_id.to_string(),
            backup_type: match row.kind {
                Kind::Manual => "manual",
                Kind::Auto | Kind::Safety | Kind::Generation => "auto",
            },
            backup_format: Some(if request.version == Version::V1 {
                format.to_ascii_uppercase()
            } else {
                format.to_owned()
            }),
            status: match row.status {
                Status::Waiting => "waiting",
                Status::Running => "backuping",
                Status::Succeeded => "succeed",
                Status::Failed => "failed",
                Status::Expired => "expired",
                Status::Deleted => "deleted",
            },
            progress: page::percent(row.progress_bp),
            size: row.size_bytes,
            period: row.period.clone(),
            remark: row.remark.clone(),
            created_at: row.created_at.iso(),
            execution_at: row.execution_at.map(crate::ids::Moment::iso),
            updated_at: row.updated_at.iso(),
            error_code: row.error_code.clone(),
            is_support_restore: if is_restorable(tx, row)? { "TRUE" } else { "FALSE" },
            ext: request.tells_more().then(|| BackupDetails {
                kind: row.kind.word(),
                phase: row.phase.clone(),
                bytes_done: row.plain_bytes,
                bytes_total: if row.status == Status::Succeeded {
                    row.plain_bytes
                } else {
                    row.bytes_total
                },
                keys_done: row.keys,
                keys: row.keys,
                plain_bytes: row.plain_bytes,
                used_memory_bytes: row.used_memory_bytes,
                manifest_blake3: row.manifest_blake3.clone(),
                captured_from: row.captured_from.clone(),
                point_in_time: row.is_point_in_time,
                storage: row
                    .storage_name
                    .clone()
                    .unwrap_or_else(|| crate::storage::LOCAL.to_owned()),
                copy: row.copy.as_ref().map(|copy| BackupCopy {
                    storage: copy
                        .storage_name
                        .clone()
                        .unwrap_or_else(|| crate::storage::LOCAL.to_owned()),
                    copied_at: copy.at.map(crate::ids::Moment::iso),
                }),
                run: row.run.as_ref().map(|run| BackupRun {
                    schedule_id: run.schedule.clone(),
                    due_at: run.due.iso(),
                    try_number: run.number,
                }),
                held: row.held.clone(),
                expires_at: row.expires_at.map(crate::ids::Moment::iso),
                proof: row.proof.as_ref().map(|proof| BackupProof {
                    level: proof.level.word(),
                    holds: proof.failure.is_none(),
                    verified_at: proof.at.iso(),
                    engine: proof.engine.clone(),
                    load_ms: proof.load_ms,
                    failure: failure::shown(&request.app.config, proof.failure.as_deref()),
                }),
                failure: failure::shown(&request.app.config, row.failure.as_deref()),
            }),
        })
    }
}
