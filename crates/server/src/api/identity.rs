//! The identity service's part: tokens and projects, in Keystone v3's shapes. Contract §2.1 and §2.3.

use axum::http::HeaderValue;
use serde_json::{Value, json};

use super::error::{ApiError, json_response};
use super::request::Request;
use super::routes::Reply;
use crate::identity::record::{self, Account, DOMAIN, Project, TokenScope};
use crate::ids::{Moment, ProjectId, UserId};
use crate::{limits, secrets};

/// `GET /v3`
///
/// # Errors
/// None.
pub fn version(request: &Request) -> Result<Reply, ApiError> {
    let href = format!("{}/v3/", request.base());
    Ok(json_response(
        200,
        &json!({"version": {"id": "v3.14", "status": "stable", "updated": "2020-04-07T00:00:00Z",
                "links": [{"rel": "self", "href": href}], "media-types": []}}),
    ))
}

/// `GET /v3/projects?name=..`: the caller's project, if it has that name.
///
/// # Errors
/// The catalogue failed.
pub fn projects(request: &Request) -> Result<Reply, ApiError> {
    let id = request.project()?;
    let found = request.app.catalog.read(|tx| record::project(tx, id))?;
    let wanted = request.query("name");
    let shown: Vec<Value> = found
        .iter()
        .filter(|project| wanted.as_ref().is_none_or(|name| *name == project.name))
        .map(|project| {
            json!({"id": project.id.as_str(), "name": project.name, "domain_id": domain_id(), "enabled": true,
                   "is_domain": false, "parent_id": domain_id(), "description": "", "links": {"self": ""}})
        })
        .collect();
    Ok(json_response(
        200,
        &json!({"projects": shown, "links": {"self": "", "next": null, "previous": null}}),
    ))
}

fn domain_id() -> String {
    secrets::hex(&secrets::sha256(DOMAIN.as_bytes())[..16])
}

/// `POST /v3/auth/tokens`
///
/// # Errors
/// 400 for a body that is no such request; 401 for wrong names, passwords and scopes, without saying which.
pub fn create_token(request: &Request) -> Result<Reply, ApiError> {
    let malformed = || ApiError::Identity {
        status: 400,
        message: "The request body is no Keystone v3 authentication.".to_owned(),
    };
    let denied = || ApiError::Identity {
        status: 401,
        message: "The username or password is wrong, or the scope is not yours.".to_owned(),
    };
    let body: Value = serde_json::from_slice(&request.body).map_err(|_| malformed())?;
    let auth = body.get("auth").ok_or_else(malformed)?;
    let methods = auth["identity"]["methods"].as_array().ok_or_else(malformed)?;
    let method = methods.first().and_then(Value::as_str).ok_or_else(malformed)?;
    // A token made from a token ends with it: a leaked one must not live for ever.
    let (account, expires_at) = match method {
        "password" => {
            let user = &auth["identity"]["password"]["user"];
            let password = user["password"].as_str().ok_or_else(malformed)?;
            let account = by_password(request, user, password)?.ok_or_else(denied)?;
            (account, request.now.plus_seconds(limits::TOKEN_SECONDS))
        }
        "token" => {
            let token = auth["identity"]["token"]["id"].as_str().ok_or_else(malformed)?;
            by_token(request, token)?.ok_or_else(denied)?
        }
        _ => return Err(malformed()),
    };
    let project = scope(request, &auth["scope"], &account)?.ok_or_else(denied)?;
    let token = secrets::random_hex(32);
    let scope = TokenScope {
        account_id: account.id.clone(),
        project_id: project.as_ref().map(|project| project.id.clone()),
        expires_at,
    };
    let hash = secrets::sha256(token.as_bytes());
    request
        .app
        .catalog
        .write(|tx| record::insert_token(tx, &hash, &scope, request.now))?;
    let mut reply = json_response(
        201,
        &json!({"token": shown(request, method, &account, project.as_ref(), expires_at)}),
    );
    if let Ok(value) = HeaderValue::from_str(&token) {
        reply.headers_mut().insert("x-subject-token", value);
    }
    Ok(reply)
}

fn by_password(request: &Request, user: &Value, password: &str) -> Result<Option<Account>, ApiError> {
    let domain = user["domain"]["name"].as_str();
    let found = request
        .app
        .catalog
        .read(|tx| match (user["id"].as_str(), user["name"].as_str()) {
            (Some(id), _) => UserId::parse(id).map_or(Ok(None), |id| record::account_by_id(tx, &id)),
            (None, Some(name)) => record::account_by_name(tx, name),
            (None, None) => Ok(None),
        })?;
    let usable = found
        .filter(|account| account.revoked_at.is_none())
        .filter(|_| domain.is_none_or(|domain| domain == DOMAIN));
    // An unknown user costs the same work as a wrong password.
    let never = "argon2id$00000000000000000000000000000000$00";
    let stored = usable
        .as_ref()
        .map_or(never, |account| account.password_hash.as_str());
    Ok(if secrets::password_matches(password, stored) {
        usable
    } else {
        None
    })
}

/// The token's account and the end of its life.
fn by_token(request: &Request, token: &str) -> Result<Option<(Account, Moment)>, ApiError> {
    let hash = secrets::sha256(token.as_bytes());
    let read = request.app.catalog.read(|tx| {
        let scope = record::token(tx, &hash)?.filter(|scope| scope.expires_at > request.now);
        let Some(scope) = scope else {
            return Ok::<_, crate::catalog::Error>(None);
        };
        let account = record::account_by_id(tx, &scope.account_id)?;
        let usable = account.filter(|account| account.revoked_at.is_none());
        Ok(usable.map(|account| (account, scope.expires_at)))
    });
    Ok(read?)
}

/// The project that the token is scoped to: `Some(None)` for a domain token, `None` for a scope that is not the
/// account's. Without a scope the account's own project is meant.
fn scope(request: &Request, scope: &Value, account: &Account) -> Result<Option<Option<Project>>, ApiError> {
    if scope.get("domain").is_some() {
        return Ok(Some(None));
    }
    let own = request
        .app
        .catalog
        .read(|tx| record::project(tx, &account.project_id))?;
    let wanted = &scope["project"];
    if wanted["domain"]["name"]
        .as_str()
        .is_some_and(|name| name != DOMAIN)
    {
        return Ok(None);
    }
    let fits = |project: &Project| match (wanted["id"].as_str(), wanted["name"].as_str()) {
        (Some(id), _) => ProjectId::parse(id).as_ref() == Some(&project.id),
        (None, Some(name)) => name == project.name,
        (None, None) => true,
    };
    Ok(own.filter(fits).map(Some))
}

fn shown(
    request: &Request,
    method: &str,
    account: &Account,
    project: Option<&Project>,
    expires_at: Moment,
) -> Value {
    let domain = json!({"id": domain_id(), "name": DOMAIN});
    let region = &request.app.config.region;
    let micros = |moment: Moment| moment.iso().replace('Z', "000Z");
    let mut token = json!({
        "methods": [method],
        "issued_at": micros(request.now),
        "expires_at": micros(expires_at),
        "user": {"id": account.id.as_str(), "name": account.name, "domain": domain.clone(), "password_expires_at": ""},
        "roles": [{"id": "0", "name": "te_admin"}],
    });
    let endpoint = |kind: &str, name: &str, url: String| {
        let id = secrets::hex(&secrets::sha256(name.as_bytes())[..16]);
        json!({"type": kind, "name": name, "id": id, "endpoints": [
            {"id": id, "interface": "public", "region": region, "region_id": region, "url": url}]})
    };
    match project {
        Some(project) => {
            token["project"] = json!({"id": project.id.as_str(), "name": project.name, "domain": domain});
            token["catalog"] = json!([
                endpoint("dcs", "dcs", format!("{}/v1.0/{}", request.base(), project.id)),
                endpoint("identity", "iam", format!("{}/v3", request.base())),
            ]);
        }
        None => token["domain"] = domain,
    }
    token
}
