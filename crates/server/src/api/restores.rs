//! RestoreInstance and ListRestoreRecords on the wire, and our own verbs beside them.

use serde::Serialize;
use utoipa::ToSchema;

use super::error::{ApiError, Version, append_json, json_bytes, json_response};
use super::failure;
use super::page::{self, Stamp};
use super::request::Request;
use super::routes::Reply;
use crate::ids::{BackupId, InstanceId};
use crate::instance::command as instances;
use crate::instance::generation::{self, Kept};
use crate::limits;
use crate::refusal::Refusal;
use crate::restore::command::{self, RestoreRequest};
use crate::restore::options::Options;
use crate::restore::replay_record;
use crate::restore::told_record::{self, Told};

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
        replay: match fields.get("replay") {
            Some(wish) => {
                let options: Options =
                    serde_json::from_value(wish.clone()).map_err(|_| Refusal::Parameter("replay"))?;
                // What an undo is done with: it says of its backup that the libraries are in it.
                if options.functions_exact {
                    return Err(Refusal::Parameter("replay.functions_exact"));
                }
                Some(options)
            }
            None => None,
        },
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
    // Most pages fit: a body that grows is copied each time.
    let mut body = Vec::with_capacity(16 * 1024);
    body.extend_from_slice(b"{\"restore_record_response\":[");
    let total = request.app.catalog.read_since(request.seen, |tx| {
        let (from, to) = (window.from, window.to);
        generation::kept_soon(tx, &id)?;
        if from.is_none() && to.is_none() {
            told_record::list_soon(tx, &id, page.offset, page.limit)?;
        }
        let instance = instances::find_id(tx, project, &id, deleted)?;
        let kept = generation::kept(tx, &instance)?;
        let mut first = true;
        let total = told_record::list(tx, &instance, from, to, page.offset, page.limit, |told| {
            if !first {
                body.push(b',');
            }
            first = false;
            write(request, told, &kept, None, &mut body);
        })?;
        Ok::<_, Refusal>(total)
    })?;
    body.extend_from_slice(format!("],\"total_num\":{total}}}").as_bytes());
    Ok(json_bytes(200, body))
}

/// Appends a record as this reader is told it. `kept`: the instance's generations that are kept for undo; `named`: JSON of the
/// first keys of each kind.
fn write(request: &Request, told: &Told<'_>, kept: &[Kept], named: Option<&str>, body: &mut Vec<u8>) {
    body.extend_from_slice(told.documented);
    if request.version == Version::V1 {
        body.extend_from_slice(told.of_v1);
    }
    if request.tells_more() {
        body.extend_from_slice(told.ext);
        let until = told
            .undo_generation
            .and_then(|wanted| kept.iter().find(|kept| kept.id.as_str() == wanted))
            .map(|kept| Stamp(kept.expires_at));
        let failure = failure::shown(&request.app.config, told.failure);
        append_json(body, ",\"undo_until\":", &until);
        append_json(body, ",\"failure\":", &failure);
        if let Some(named) = named {
            body.extend_from_slice(b",\"first\":");
            body.extend_from_slice(named.as_bytes());
        }
        body.push(b'}');
    }
    body.push(b'}');
}

/// `GET /ck/v1/…/restores/{restore_id}`
///
/// # Errors
/// Unknown instance or restore.
pub fn show(request: &Request) -> Result<Reply, ApiError> {
    let id = request.instance_id()?;
    let project = request.project()?;
    let restore = request.restore_id()?;
    let body = request.app.catalog.read(|tx| {
        let instance = instances::find_id(tx, project, &id, true)?;
        let kept = generation::kept(tx, &instance)?;
        let named = replay_record::named(tx, &instance, &restore)?;
        let told = told_record::tell(tx, &instance, &restore, |told| {
            let mut body = Vec::with_capacity(2 * 1024);
            write(request, told, &kept, named.as_deref(), &mut body);
            body
        })?;
        told.ok_or(Refusal::RestoreUnknown)
    })?;
    Ok(json_bytes(200, body))
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
#[derive(ToSchema)]
#[expect(
    dead_code,
    reason = "for /openapi.json: the texts themselves are made by restores.sql and `write`"
)]
pub struct RestoreList {
    /// The page, newest first.
    pub restore_record_response: Vec<RestoreRecord>,
    /// All records of the window, before paging.
    pub total_num: u64,
}

/// One restore record: the eleven documented fields, always all of them.
#[derive(ToSchema)]
#[expect(
    dead_code,
    reason = "for /openapi.json: the texts themselves are made by restores.sql and `write`"
)]
pub struct RestoreRecord {
    /// The record.
    pub restore_id: String,
    /// `restore_yyyyMMddHHmmss`
    pub restore_name: String,
    /// The source; stays after that backup is deleted.
    pub backup_id: String,
    /// Copied when the restore was accepted.
    pub backup_name: String,
    /// Copied when the restore was accepted.
    pub backup_remark: Option<String>,
    /// The remark of the request.
    pub restore_remark: Option<String>,
    /// `waiting`, `restoring`, `succeed`, `failed`
    pub status: String,
    /// `"0.00"` to `"100.00"`
    pub progress: String,
    /// When it was accepted.
    pub created_at: String,
    /// When it last changed; the end once it has ended.
    pub updated_at: String,
    /// `dcs.08.000x`, null unless failed.
    pub error_code: Option<String>,
    /// v1.0 only: the instance that the backup came from.
    #[serde(rename = "sourceInstanceId")]
    #[schema(required = false, nullable = false)]
    pub source_instance_id: Option<String>,
    /// v1.0 only: its name.
    #[serde(rename = "sourceInstanceName")]
    #[schema(required = false, nullable = false)]
    pub source_instance_name: Option<String>,
    /// What DCS does not tell; absent in strict mode.
    #[schema(required = false, nullable = false)]
    pub ext: Option<RestoreDetails>,
}

/// What we tell beyond DCS about a restore.
#[derive(ToSchema)]
#[expect(
    dead_code,
    reason = "for /openapi.json: the texts themselves are made by restores.sql and `write`"
)]
pub struct RestoreDetails {
    /// 1 for the instance's first restore, and so on without a gap.
    pub ordinal: i64,
    /// What is going on now.
    pub phase: Option<String>,
    /// Acknowledged bytes of the phase.
    pub bytes_done: i64,
    /// Expected bytes of the phase.
    pub bytes_total: i64,
    /// Keys that the phase has got through.
    pub keys_done: i64,
    /// Keys that the new generation loaded, or that the target said it has (replay).
    pub keys_applied: i64,
    /// Keys of the backup that were not selected (replay).
    pub keys_skipped: i64,
    /// Keys that the target had already and that were left as they were (replay).
    pub keys_conflicting: i64,
    /// Keys that the target cannot hold or refused: such a restore fails, and is taken back where there is a safety point.
    pub keys_failed: i64,
    /// Other keys of the target that were removed (replay).
    pub keys_removed: i64,
    /// Keys that were applied without something that no command makes, such as when a consumer of a stream was last seen (replay).
    pub keys_reduced: i64,
    /// A replica did not say in time that it has what its primary has: a failover then may have lost something (replay).
    pub is_unconfirmed: bool,
    /// Keys compared one by one after loading.
    pub keys_compared: i64,
    /// Keys of the backup whose time had passed when it was begun to be read: among those applied, and gone as soon as
    /// the new generation serves.
    pub keys_expired: i64,
    /// `untouched`, `loading`, `clearing`, `verifying`, `switching`, `replaced`, `rolled_back`, `partial`, `unknown`
    pub target_state: String,
    /// The instance that the backup came from.
    pub source_instance_id: String,
    /// Its name when the restore was accepted.
    pub source_instance_name: String,
    /// Of how many nodes that was then: `single`, `3 shards`, `3 shards x 1 replica`.
    pub source_layout: String,
    /// Of how many nodes the instance was that it was restored into.
    pub layout: String,
    /// The restore that this one took back.
    pub undo_of: Option<String>,
    /// The restore that took this one back.
    pub undone_by: Option<String>,
    /// When somebody asked for it to be given up.
    pub cancel_asked_at: Option<String>,
    /// Until when an undo is possible at the latest: what was replaced may have to give way to another restore, or to a
    /// need of memory, before. Null where it is not possible.
    pub undo_until: Option<String>,
    /// `side_load`, `in_place`, `switch_back`, `replay`
    pub method: String,
    /// `sample` or `full`
    pub verify: String,
    /// What becomes of which keys, as it was asked for; null where the method is no replay.
    pub replay: Option<serde_json::Value>,
    /// How often it was gone on with, after whatever had interrupted it.
    pub resumed: i64,
    /// The backup of the target that was taken before anything was written to it (replay).
    pub safety_backup_id: Option<String>,
    /// The switch in microseconds: old port closed to last client ended and new port open. Absent where that is not
    /// known: a crash came in between, or the old generation had ended before.
    pub unavailable_us: Option<i64>,
    /// Why it failed; the log has more of it, for the operator.
    pub failure: Option<String>,
    /// Where one record is shown, of a replay: the first keys of each kind that it counts, each with its database and, where it is
    /// not plain, why. And `functions_left`: why the libraries of functions are not those of the backup that was to put them back.
    #[schema(required = false, nullable = false)]
    pub first: Option<serde_json::Value>,
    /// When the work began.
    pub started_at: Option<String>,
    /// When it ended.
    pub finished_at: Option<String>,
    /// What the clock said when it was accepted.
    pub clock_at: String,
}
