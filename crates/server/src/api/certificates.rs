//! What clients of an instance that speaks TLS need of it, on the wire: contract §9, ShowInstanceSslDetail, DownloadSslCert.

use serde_json::{Value, json};

use super::download;
use super::error::{ApiError, json_response};
use super::request::Request;
use super::routes::Reply;
use crate::ids::{InstanceId, ProjectId};
use crate::instance::{OwnedInstance, command, record};
use crate::limits;
use crate::refusal::Refusal;

/// What the file is called: PEM, for `redis-cli --tls --cacert ca.pem`.
const FILE: &str = "ca.pem";

fn find(request: &Request) -> Result<OwnedInstance, ApiError> {
    let id = request.instance_id()?;
    let project = request.project()?;
    Ok(request.app.catalog.read(|tx| command::find(tx, project, &id))?)
}

/// `GET …/instances/{instance_id}/ssl`
///
/// # Errors
/// Malformed or unknown instance.
pub fn show(request: &Request) -> Result<Reply, ApiError> {
    let instance = find(request)?;
    let is_on = instance.authority.is_some();
    let until = instance.created_at.plus_seconds(
        engine::process::AUTHORITY_LIFE
            .as_secs()
            .try_into()
            .unwrap_or(i64::MAX),
    );
    let expires_at = match is_on {
        true => json!(until.iso()),
        false => Value::Null,
    };
    Ok(json_response(
        200,
        &json!({
            "enabled": is_on, "ip": instance.bind, "port": instance.port.to_string(), "domain_name": instance.bind,
            "ssl_expired_at": expires_at, "ssl_validated": is_on,
        }),
    ))
}

/// `POST …/instances/{instance_id}/ssl-certs/download`: a link to the certificate of the authority that clients are to trust.
///
/// # Errors
/// Malformed or unknown instance; [`Refusal::NoTls`].
pub fn download(request: &Request) -> Result<Reply, ApiError> {
    let instance = find(request)?;
    if instance.authority.is_none() {
        return Err(Refusal::NoTls.into());
    }
    let path = format!("/download/{}/{}/{FILE}", instance.project_id, instance.id);
    let until = request.now.plus_seconds(*limits::LINK_SECONDS.start());
    Ok(json_response(
        200,
        &json!({"file_name": FILE, "link": download::signed(request, &path, until), "bucket_name": "cachekeep"}),
    ))
}

/// `GET /download/{project}/{instance}/{file}`: what the link leads to.
///
/// # Errors
/// 403 for a wrong or expired proof, 404 once the instance is gone.
pub fn serve(request: &Request) -> Result<Reply, ApiError> {
    let (project, instance) = (request.param("project"), request.param("instance"));
    download::check_proof(
        request,
        &format!("/download/{project}/{instance}/{}", request.param("file")),
    )?;
    let project = ProjectId::parse(project).ok_or_else(download::gone)?;
    let id = InstanceId::parse(instance).ok_or_else(download::gone)?;
    let found = request.app.catalog.read(|tx| record::find(tx, &project, &id))?;
    let authority = found.and_then(|instance| instance.authority.clone());
    let authority = authority.ok_or_else(download::gone)?;
    Ok(download::small_file(FILE, authority.certificate.into_bytes()))
}
