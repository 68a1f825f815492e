//! RestoreInstance and ListRestoreRecords on the wire, and our own verbs beside them.

use std::borrow::Cow;

use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use super::error::{ApiError, Version, json_response};
use super::failure;
use super::page::{self, Stamp};
use super::request::Request;
use super::routes::Reply;
use crate::ids::{BackupId, InstanceId, RestoreId};
use crate::instance::command as instances;
use crate::instance::generation::{self, Generation};
use crate::limits;
use crate::refusal::Refusal;
use crate::restore::command::{self, RestoreRequest};
use crate::restore::record::{self, Restore, Status};

/// `POST …/instances/{instance_id}/restores`
///
/// # Errors
/// Contract §4.5.
pub fn create(request: &Request) -> Result<Reply, ApiError> {
    let project = request.project()?;
    let instance = request.instance_id()?;
    let wish = decode(request).map_err(|refusal| of_body(refusal, request.version))?;
    let once = request.once()?;
    let id = command::submit(
        &request.app,
        project,
        &instance,
        &wish,
        once.as_ref(),
        request.now,
    )
    .map_err(|refusal| of_body(refusal, request.version))?;
    Ok(json_response(
        200,
        &RestoreStarted {
            restore_id: id.to_string(),
        },
    ))
}

/// On v1.0 a backup that is unknown is a wrong field where the body names it, and a 404 only in a path.
fn of_body(refusal: Refusal, version: Version) -> Refusal {
    match refusal {
        Refusal::BackupUnknown if version == Version::V1 => Refusal::Parameter("backup_id"),
        other => other,
    }
}

pub(super) fn decode(request: &Request) -> Result<RestoreRequest, Refusal> {
    let fields = request.body()?;
    let backup = match fields.get("backup_id") {
        Some(serde_json::Value::String(text)) if !text.is_empty() => text.clone(),
        _ => return Err(Refusal::Parameter("backup_id")),
    };
    let verify_full = match fields.text("verify")?.as_deref() {
        None | Some("sample") => false,
        Some("full") => true,
        Some(_) => return Err(Refusal::Parameter("verify")),
    };
    let source = match fields.text("source_instance_id")? {
        Some(text) => Some(InstanceId::parse(&text).ok_or(Refusal::Parameter("source_instance_id"))?),
        None => None,
    };
    Ok(RestoreRequest {
        backup_id: BackupId::parse(&backup).ok_or(Refusal::BackupUnknown)?,
        source,
        remark: fields.text("remark")?,
        verify_full,
        allow_downtime: fields.boolean("allow_downtime")?.unwrap_or(false),
        plan: fields.text("plan_id")?,
    })
}

/// `GET …/instances/{instance_id}/restores`: the centre of it all.
///
/// # Errors
/// Contract §4.6 and §4.7.
pub fn list(request: &Request) -> Result<Reply, ApiError> {
    let project = request.project()?;
    let id = request.instance_id()?;
    let page = page::page(request, limits::PAGE_ROWS_DEFAULT)?;
    let window = page::window(request)?;
    let strict = request.app.config.strict_dcs;
    let deleted = request.query("include_deleted").as_deref() == Some("true") && !strict;
    let mut question = Vec::with_capacity(128);
    question.extend_from_slice(project.as_str().as_bytes());
    question.extend_from_slice(id.as_str().as_bytes());
    question.push(u8::from(deleted));
    for bound in [window.from, window.to] {
        question.push(u8::from(bound.is_some()));
        question.extend_from_slice(&bound.map_or(0, |moment| moment.0).to_le_bytes());
    }
    question.extend_from_slice(&page.offset.to_le_bytes());
    question.extend_from_slice(&page.limit.to_le_bytes());
    let found = request.app.catalog.ask(
        request.seen,
        ("restores", question),
        |(_, rows, _): &(u64, Vec<Restore>, Vec<Generation>)| rows.len(),
        |tx| {
            let instance = match deleted {
                true => instances::find_with_deleted(tx, project, &id)?,
                false => instances::find(tx, project, &id)?,
            };
            let (total, rows) = record::list(tx, &instance, window.from, window.to, page.offset, page.limit)?;
            Ok::<_, Refusal>((total, rows, generation::retired(tx, &id)?))
        },
    )?;
    let (total, rows, kept) = found.as_ref();
    Ok(json_response(
        200,
        &RestoreList {
            restore_record_response: Records { request, rows, kept },
            total_num: *total,
        },
    ))
}

/// `GET /ck/v1/…/restores/{restore_id}`
///
/// # Errors
/// Unknown instance or restore.
pub fn show(request: &Request) -> Result<Reply, ApiError> {
    let id = request.instance_id()?;
    let restore = command::find(&request.app, request.project()?, &id, &request.restore_id()?)?;
    let kept = request.app.catalog.read(|tx| generation::retired(tx, &id))?;
    Ok(json_response(200, &RestoreRecord::new(request, &restore, &kept)))
}

/// `POST /ck/v1/…/restores/{restore_id}/undo`
///
/// # Errors
/// As a restore; nothing left to undo.
pub fn undo(request: &Request) -> Result<Reply, ApiError> {
    let remark = match request.optional_body()? {
        Some(fields) => fields.text("remark")?,
        None => None,
    };
    let id = command::undo(
        &request.app,
        request.project()?,
        &request.instance_id()?,
        &request.restore_id()?,
        remark,
        request.once()?.as_ref(),
        request.now,
    )?;
    Ok(json_response(
        200,
        &RestoreStarted {
            restore_id: id.to_string(),
        },
    ))
}

/// `POST /ck/v1/…/restores/{restore_id}/cancel`
///
/// # Errors
/// Unknown instance or restore; it has ended or switches.
pub fn cancel(request: &Request) -> Result<Reply, ApiError> {
    let (instance, id) = (request.instance_id()?, request.restore_id()?);
    command::cancel(&request.app, request.project()?, &instance, &id, request.now)?;
    Ok(json_response(
        200,
        &RestoreStarted {
            restore_id: id.to_string(),
        },
    ))
}

/// The answer to an accepted restore.
#[derive(Debug, Serialize, ToSchema)]
pub struct RestoreStarted {
    /// The record, visible from this moment.
    pub restore_id: String,
}

/// The answer to ListRestoreRecords.
#[derive(Serialize, ToSchema)]
pub struct RestoreList<'a> {
    /// The page, newest first.
    #[schema(value_type = Vec<RestoreRecord>)]
    pub restore_record_response: Records<'a>,
    /// All records of the window, before paging.
    pub total_num: u64,
}

/// The records of a page: each takes its wire form while it is written.
pub struct Records<'a> {
    request: &'a Request,
    rows: &'a [Restore],
    kept: &'a [Generation],
}

impl Serialize for Records<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(
            self.rows
                .iter()
                .map(|row| RestoreRecord::new(self.request, row, self.kept)),
        )
    }
}

/// One restore record: the eleven documented fields, always all of them.
#[derive(Debug, Serialize, ToSchema)]
pub struct RestoreRecord<'a> {
    /// The record.
    pub restore_id: &'a str,
    /// `restore_yyyyMMddHHmmss`
    pub restore_name: &'a str,
    /// The source; stays after that backup is deleted.
    pub backup_id: &'a str,
    /// Copied when the restore was accepted.
    pub backup_name: &'a str,
    /// Copied when the restore was accepted.
    pub backup_remark: Option<&'a str>,
    /// The remark of the request.
    pub restore_remark: Option<&'a str>,
    /// `waiting`, `restoring`, `succeed`, `failed`
    pub status: &'static str,
    /// `"0.00"` to `"100.00"`
    #[schema(value_type = String)]
    pub progress: Cow<'static, str>,
    /// When it was accepted.
    #[schema(value_type = String)]
    pub created_at: Stamp,
    /// When it last changed; the end once it has ended.
    #[schema(value_type = String)]
    pub updated_at: Stamp,
    /// `dcs.08.000x`, null unless failed.
    pub error_code: Option<&'a str>,
    /// v1.0 only: the instance that the backup came from.
    #[serde(rename = "sourceInstanceId", skip_serializing_if = "Option::is_none")]
    #[schema(required = false, nullable = false)]
    pub source_instance_id: Option<&'a str>,
    /// v1.0 only: its name.
    #[serde(rename = "sourceInstanceName", skip_serializing_if = "Option::is_none")]
    #[schema(required = false, nullable = false)]
    pub source_instance_name: Option<&'a str>,
    /// What DCS does not tell; absent in strict mode.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, nullable = false)]
    pub ext: Option<RestoreDetails<'a>>,
}

/// What we tell beyond DCS about a restore.
#[derive(Debug, Serialize, ToSchema)]
pub struct RestoreDetails<'a> {
    /// 1 for the instance's first restore, and so on without a gap.
    pub ordinal: i64,
    /// What is going on now.
    pub phase: Option<&'a str>,
    /// Acknowledged bytes of the phase.
    pub bytes_done: i64,
    /// Expected bytes of the phase.
    pub bytes_total: i64,
    /// Keys that the phase has got through.
    pub keys_done: i64,
    /// Keys that the new generation loaded.
    pub keys_applied: i64,
    /// Always 0: nothing can be left out of a restore.
    pub keys_skipped: i64,
    /// Always 0: a restore that cannot apply a key fails.
    pub keys_failed: i64,
    /// Keys compared one by one after loading.
    pub keys_compared: i64,
    /// Keys of the backup whose time had passed when it was begun to be read: among those applied, and gone as soon as
    /// the new generation serves.
    pub keys_expired: i64,
    /// `untouched`, `loading`, `verifying`, `switching`, `replaced`, `rolled_back`, `unknown`
    pub target_state: &'static str,
    /// The instance that the backup came from.
    pub source_instance_id: &'a str,
    /// Its name when the restore was accepted.
    pub source_instance_name: &'a str,
    /// Of how many nodes that was then: `single`, `3 shards`, `3 shards x 1 replica`.
    pub source_layout: &'a str,
    /// Of how many nodes the instance was that it was restored into.
    pub layout: &'a str,
    /// The restore that this one took back.
    pub undo_of: Option<&'a str>,
    /// The restore that took this one back.
    pub undone_by: Option<&'a str>,
    /// When somebody asked for it to be given up.
    #[schema(value_type = Option<String>)]
    pub cancel_asked_at: Option<Stamp>,
    /// Until when an undo is possible at the latest: what was replaced may have to give way to another restore, or to a
    /// need of memory, before. Null where it is not possible.
    #[schema(value_type = Option<String>)]
    pub undo_until: Option<Stamp>,
    /// `side_load`, `in_place`, `switch_back`
    pub method: &'static str,
    /// `sample` or `full`
    pub verify: &'a str,
    /// The switch in microseconds: old port closed to last client ended and new port open. Absent where that is not
    /// known: a crash came in between, or the old generation had ended before.
    pub unavailable_us: Option<i64>,
    /// Why it failed; the log has more of it, for the operator.
    pub failure: Option<String>,
    /// When the work began.
    #[schema(value_type = Option<String>)]
    pub started_at: Option<Stamp>,
    /// When it ended.
    #[schema(value_type = Option<String>)]
    pub finished_at: Option<Stamp>,
    /// What the clock said when it was accepted.
    #[schema(value_type = String)]
    pub clock_at: Stamp,
}

impl<'a> RestoreRecord<'a> {
    /// `kept`: the instance's generations that are kept for undo.
    fn new(request: &Request, row: &'a Restore, kept: &[Generation]) -> Self {
        let v1 = request.version == Version::V1;
        Self {
            restore_id: row.id.as_str(),
            restore_name: &row.name,
            backup_id: row.backup_id.as_str(),
            backup_name: &row.backup_name,
            backup_remark: row.backup_remark.as_deref(),
            restore_remark: row.remark.as_deref(),
            status: match row.status {
                Status::Waiting => "waiting",
                Status::Running => "restoring",
                Status::Succeeded => "succeed",
                Status::Failed => "failed",
            },
            progress: page::percent(row.progress_bp),
            created_at: Stamp(row.created_at),
            updated_at: Stamp(row.updated_at),
            error_code: row.error_code.as_deref(),
            source_instance_id: v1.then_some(row.source_instance_id.as_str()),
            source_instance_name: v1.then_some(row.source_instance_name.as_str()),
            ext: request.tells_more().then(|| RestoreDetails {
                ordinal: row.ordinal,
                phase: row.phase.as_deref(),
                bytes_done: row.bytes_done,
                bytes_total: row.bytes_total,
                keys_done: row.keys_done,
                keys_applied: row.keys_applied,
                keys_skipped: 0,
                keys_failed: 0,
                keys_compared: row.keys_compared,
                keys_expired: row.keys_expired,
                target_state: row.target_state.word(),
                source_instance_id: row.source_instance_id.as_str(),
                source_instance_name: &row.source_instance_name,
                source_layout: &row.source_layout,
                layout: &row.layout,
                undo_of: row.undo_of.as_ref().map(RestoreId::as_str),
                undone_by: row.undone_by.as_ref().map(RestoreId::as_str),
                cancel_asked_at: row.cancel_asked_at.map(Stamp),
                undo_until: kept
                    .iter()
                    .filter(|_| row.status == Status::Succeeded && row.undone_by.is_none())
                    .find(|kept| Some(&kept.id) == row.old_generation_id.as_ref())
                    .and_then(|kept| kept.expires_at.map(Stamp)),
                method: row.method.word(),
                verify: &row.verify,
                unavailable_us: row.unavailable_us,
                failure: failure::shown(&request.app.config, row.failure.as_deref()),
                started_at: row.started_at.map(Stamp),
                finished_at: row.finished_at.map(Stamp),
                clock_at: Stamp(row.clock_at),
            }),
        }
    }
}
