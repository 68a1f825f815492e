//! Imports on the wire.

use super::backups::BackupStarted;
use super::error::{ApiError, json_response};
use super::request::Request;
use super::routes::Reply;
use crate::backup::import::{self, Wish};
use crate::refusal::Refusal;

/// `POST /ck/v1/…/instances/{instance_id}/imports`: a file behind a URL becomes a backup, whose record tells the rest.
///
/// # Errors
/// URL, remark, unknown instance, a cluster, 429 where as many are at work as may be.
pub fn create(request: &Request) -> Result<Reply, ApiError> {
    let instance = request.instance_id()?;
    let fields = request.body()?;
    let wish = Wish {
        url: fields.text("url")?.ok_or(Refusal::Parameter("url"))?,
        remark: fields.text("remark")?,
        accept_functions: fields.boolean("accept_functions")?.unwrap_or(false),
    };
    let once = request.once()?;
    let project = request.project()?;
    let id = import::submit(
        &request.app,
        project,
        &instance,
        &wish,
        once.as_ref(),
        request.now,
    )?;
    Ok(json_response(
        200,
        &BackupStarted {
            backup_id: id.to_string(),
        },
    ))
}
