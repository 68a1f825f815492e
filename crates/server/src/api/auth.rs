//! Who calls: a project-scoped token, or an AK/SK signature. Contract §2.

use axum::http::HeaderMap;
use signature::{Authorization, Signed};

use super::error::ApiError;
use crate::app::App;
use crate::catalog::Seen;
use crate::identity::record::{self, AccessKey};
use crate::ids::{Moment, ProjectId};
use crate::limits;
use crate::secrets::{hex, sha256};

/// A checked credential.
pub struct Caller {
    /// The project it may act on.
    pub project: ProjectId,
    /// The user's name or the access key, for answers that name who asked.
    pub name: String,
}

/// The request's parts that authentication looks at.
pub struct Presented<'a> {
    /// `GET`
    pub method: &'a str,
    /// Path as it came.
    pub path: &'a str,
    /// Query as it came.
    pub query: &'a str,
    /// All headers.
    pub headers: &'a HeaderMap,
    /// The clock.
    pub now: Moment,
    /// What was committed before it came.
    pub seen: Seen,
}

/// What the head of a request proves.
pub enum Known {
    /// A token: all there is to know.
    Caller(Caller),
    /// A key that may be used: whether the signature is its, only the body tells.
    Key(AccessKey),
}

/// Checks all of the credential that can be checked without the body. Where a signature is present a token is ignored.
///
/// # Errors
/// 401 with the gateway's body; 401 of the service for a token without a project.
pub fn before_the_body(app: &App, presented: &Presented<'_>) -> Result<Known, ApiError> {
    if let Some(given) = signed_by(presented)? {
        check_date(presented, &given)?;
        // The id of a key is no secret: every request shows it.
        let key = app
            .catalog
            .look(presented.seen, |tx| record::access_key(tx, given.access))?;
        let usable = key.filter(|key| key.revoked_at.is_none());
        return usable.map(Known::Key).ok_or_else(wrong_signature);
    }
    match presented.headers.get("x-auth-token") {
        Some(token) => check_token(app, presented, token.as_bytes()).map(Known::Caller),
        None => Err(ApiError::unauthenticated(
            "Incorrect IAM authentication information: x-auth-token not found, and no signature.",
        )),
    }
}

fn wrong_signature() -> ApiError {
    ApiError::unauthenticated("Incorrect IAM authentication information: verify aksk signature fail.")
}

/// The signature's header; `None` where there is none.
fn signed_by<'a>(presented: &Presented<'a>) -> Result<Option<Authorization<'a>>, ApiError> {
    let Some(header) = presented.headers.get("authorization") else {
        return Ok(None);
    };
    let text = header
        .to_str()
        .map_err(|_| ApiError::unauthenticated("Incorrect authorization header."))?;
    let given = Authorization::parse(text).ok_or_else(wrong_signature)?;
    Ok(Some(given))
}

/// The date that was signed, in reach of our clock.
fn check_date<'a>(presented: &Presented<'a>, given: &Authorization<'_>) -> Result<&'a str, ApiError> {
    if !given.signed_headers.contains(&"x-sdk-date") {
        return Err(wrong_signature());
    }
    let date = presented.headers.get("x-sdk-date");
    let date = date
        .and_then(|value| value.to_str().ok())
        .ok_or_else(wrong_signature)?;
    let signed_at = date_of(date).ok_or_else(wrong_signature)?;
    if (presented.now.0 - signed_at.0).abs() > limits::SIGNATURE_SKEW_SECONDS * 1000 {
        return Err(ApiError::unauthenticated(
            "Incorrect IAM authentication information: signature expired.",
        ));
    }
    Ok(date)
}

fn check_token(app: &App, presented: &Presented<'_>, token: &[u8]) -> Result<Caller, ApiError> {
    let hash = sha256(token);
    let scope = app.catalog.look(presented.seen, |tx| record::token(tx, &hash))?;
    let Some(scope) = scope else {
        return Err(ApiError::unauthenticated(
            "Incorrect IAM authentication information: unknown token.",
        ));
    };
    if scope.expires_at <= presented.now {
        return Err(ApiError::unauthenticated(
            "Incorrect IAM authentication information: token expired.",
        ));
    }
    let Some(project) = scope.project_id else {
        return Err(ApiError::Service {
            status: 401,
            code: 1004,
            message: "The token is not scoped to a project.".to_owned(),
        });
    };
    Ok(Caller {
        project,
        name: scope.account_id.to_string(),
    })
}

/// Checks the signature by `key` over the request with this body.
///
/// # Errors
/// 401 with the gateway's body; 401 of the service where another project is named.
pub fn check_signature(
    app: &App,
    presented: &Presented<'_>,
    key: &AccessKey,
    body: &[u8],
) -> Result<Caller, ApiError> {
    let given = signed_by(presented)?.ok_or_else(wrong_signature)?;
    let date = check_date(presented, &given)?;
    let mut headers = Vec::with_capacity(given.signed_headers.len());
    for name in &given.signed_headers {
        let mut values = presented.headers.get_all(*name).iter();
        let value = values
            .next()
            .and_then(|value| value.to_str().ok())
            .ok_or_else(wrong_signature)?;
        if values.next().is_some() {
            return Err(wrong_signature());
        }
        headers.push((*name, value.to_owned()));
    }
    let payload_hash = hex(&sha256(body));
    // A hash named in a header must be the body's own: an unsigned payload is refused.
    if presented
        .headers
        .get("x-sdk-content-sha256")
        .is_some_and(|value| value.as_bytes() != payload_hash.as_bytes())
    {
        return Err(wrong_signature());
    }
    let signed = Signed {
        method: presented.method,
        path: presented.path,
        query: presented.query,
        headers,
        payload_hash: &payload_hash,
    };
    let text = signature::string_to_sign(date, &signature::canonical_request(&signed));
    let secret = app
        .vault
        .master
        .open(&format!("access_key.sk:{}", key.ak), &key.sk_sealed)
        .map_err(|error| crate::refusal::Refusal::Internal(error.to_string()))?;
    if !signature::holds(&secret, &text, given.signature) {
        return Err(wrong_signature());
    }
    let named = presented
        .headers
        .get("x-project-id")
        .and_then(|value| value.to_str().ok());
    if named.is_some_and(|named| !named.is_empty() && named != key.project_id.as_str()) {
        return Err(foreign_project());
    }
    Ok(Caller {
        project: key.project_id.clone(),
        name: key.ak.clone(),
    })
}

/// The one answer for a project that is not the caller's, whether it exists or not.
pub fn foreign_project() -> ApiError {
    ApiError::Service {
        status: 401,
        code: 1004,
        message: "The credential is for another project.".to_owned(),
    }
}

/// Reads `yyyyMMdd'T'HHmmss'Z'`.
fn date_of(text: &str) -> Option<Moment> {
    let (day, rest) = text.split_once('T')?;
    let time = rest.strip_suffix('Z')?;
    (day.len() == 8 && time.len() == 6).then(|| Moment::from_compact(&format!("{day}{time}")))?
}
