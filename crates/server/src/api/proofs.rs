//! Verifies on the wire.

use serde::Serialize;
use utoipa::ToSchema;

use super::error::{ApiError, json_response};
use super::failure;
use super::page::{self, Stamp};
use super::request::Request;
use super::routes::Reply;
use crate::backup::proof;
use crate::backup::proof_record::ProofLevel;
use crate::backup::verification_record::{Status, Verification};
use crate::refusal::Refusal;

/// `POST /ck/v1/…/backups/{backup_id}/verify`: waits for no operation of the instance and is none.
///
/// # Errors
/// Unknown level, instance or backup; nothing that could be verified; a verify at another level.
pub fn create(request: &Request) -> Result<Reply, ApiError> {
    let instance = request.instance_id()?;
    let mut level = ProofLevel::Parsed;
    if let Some(fields) = request.optional_body()?
        && let Some(word) = fields.text("level")?
    {
        level = ProofLevel::from_word(&word).ok_or(Refusal::Parameter("level"))?;
    }
    let id = proof::submit(
        &request.app,
        request.project()?,
        &instance,
        &request.backup_id()?,
        level,
        request.once()?.as_ref(),
        request.now,
    )?;
    Ok(json_response(
        200,
        &VerificationStarted {
            verification_id: id.to_string(),
        },
    ))
}

/// `POST /ck/v1/…/backups/{backup_id}/verify/cancel`
///
/// # Errors
/// Unknown instance or backup; no verify of it waits or is at work.
pub fn cancel(request: &Request) -> Result<Reply, ApiError> {
    let (instance, backup) = (request.instance_id()?, request.backup_id()?);
    proof::cancel(&request.app, request.project()?, &instance, &backup, request.now)?;
    Ok(json_response(200, &serde_json::json!({})))
}

/// `GET /ck/v1/…/backups/{backup_id}/verifications`
///
/// # Errors
/// Unknown instance or backup.
pub fn list(request: &Request) -> Result<Reply, ApiError> {
    let instance = request.instance_id()?;
    let found = proof::list(&request.app, request.project()?, &instance, &request.backup_id()?)?;
    let shown = found.iter().map(|row| VerificationRecord::new(request, row));
    Ok(json_response(
        200,
        &VerificationList {
            verifications: shown.collect(),
        },
    ))
}

/// The answer to an accepted verify.
#[derive(Debug, Serialize, ToSchema)]
pub struct VerificationStarted {
    /// The record, listed from this moment.
    pub verification_id: String,
}

/// The newest hundred verifies of a backup, newest first. Those of `cachekeep backup verify` are not among them: what they
/// find is on the backup's record, as what these find is.
#[derive(Debug, Serialize, ToSchema)]
pub struct VerificationList {
    /// The records.
    pub verifications: Vec<VerificationRecord>,
}

/// One verify.
#[derive(Debug, Serialize, ToSchema)]
pub struct VerificationRecord {
    /// The record.
    pub verification_id: String,
    /// What is looked at.
    pub backup_id: String,
    /// `stored`, `parsed` or `proven`
    pub level: &'static str,
    /// `waiting`, `running`; `holds`, `damaged`; `failed` where nothing could be found out, which says nothing of the backup.
    pub status: &'static str,
    /// Of the phase, `"0.00"` to `"100.00"`
    #[schema(value_type = String)]
    pub progress: std::borrow::Cow<'static, str>,
    /// What is going on now.
    pub phase: Option<String>,
    /// Bytes of the phase that are done.
    pub bytes_done: i64,
    /// Bytes of the phase; 0 where that is not known.
    pub bytes_total: i64,
    /// Version of the engine, for `proven`.
    pub engine: Option<String>,
    /// How long that engine loaded.
    pub load_ms: Option<i64>,
    /// What is wrong with the backup, or why nothing could be found out.
    pub failure: Option<String>,
    /// When it was accepted.
    #[schema(value_type = String)]
    pub created_at: Stamp,
    /// When it was begun, the last time.
    #[schema(value_type = Option<String>)]
    pub started_at: Option<Stamp>,
    /// When it ended.
    #[schema(value_type = Option<String>)]
    pub finished_at: Option<Stamp>,
}

impl VerificationRecord {
    pub(super) fn new(request: &Request, row: &Verification) -> Self {
        let progress = match row.status {
            Status::Holds | Status::Damaged => 10_000,
            _ => (row.bytes_done.min(row.bytes_total).saturating_mul(10_000))
                .checked_div(row.bytes_total)
                .unwrap_or(0),
        };
        Self {
            verification_id: row.id.to_string(),
            backup_id: row.backup_id.to_string(),
            level: row.level.word(),
            status: row.status.word(),
            progress: page::percent(progress),
            phase: row.phase.clone(),
            bytes_done: row.bytes_done,
            bytes_total: row.bytes_total,
            engine: row.engine.clone(),
            load_ms: row.load_ms,
            failure: failure::shown(&request.app.config, row.failure.as_deref()),
            created_at: Stamp(row.created_at),
            started_at: row.started_at.map(Stamp),
            finished_at: row.finished_at.map(Stamp),
        }
    }
}
