//! A request as handlers see it: authenticated, its parts decoded leniently where real clients differ.

use std::borrow::Cow;
use std::sync::Arc;

use axum::body::Bytes;
use serde_json::{Map, Value};

use super::error::{ApiError, Version};
use crate::app::App;
use crate::catalog::Seen;
use crate::idempotency::Once;
use crate::ids::{BackupId, InstanceId, Moment, ProjectId, RestoreId};
use crate::limits;
use crate::refusal::Refusal;
use crate::secrets::sha256;

/// Everything a handler may look at.
pub struct Request {
    /// The service.
    pub app: Arc<App>,
    /// Name of the operation, as in the table of routes.
    pub operation: &'static str,
    /// The version of the path.
    pub version: Version,
    /// The caller's project, checked against the path; the zero project for calls without one.
    pub project: Option<ProjectId>,
    /// Whose credential it is, for answers that name the user.
    pub caller: String,
    /// Path parameters by name.
    pub params: Vec<(&'static str, String)>,
    /// The raw query.
    pub query: String,
    /// Request headers.
    pub headers: axum::http::HeaderMap,
    /// The body's bytes.
    pub body: Bytes,
    /// The one reading of the clock of this request.
    pub now: Moment,
    /// What was committed before it came.
    pub seen: Seen,
    /// The place among those for costly work; whoever works on behind the answer keeps it till the end.
    pub slot: Option<Arc<tokio::sync::OwnedSemaphorePermit>>,
}

impl Request {
    /// The caller's project.
    ///
    /// # Errors
    /// Only where a route without a project asks for one: a bug, answered as 500.
    pub fn project(&self) -> Result<&ProjectId, ApiError> {
        self.project
            .as_ref()
            .ok_or_else(|| Refusal::Internal("a route without a project".to_owned()).into())
    }

    /// Scheme and authority that the client used: links are made from it.
    pub fn base(&self) -> String {
        let scheme = match self.app.config.tls {
            Some(_) => "https",
            None => "http",
        };
        let host = self.headers.get("host").and_then(|value| value.to_str().ok());
        format!("{scheme}://{}", host.unwrap_or("localhost"))
    }

    /// Whether answers tell what DCS does not: not in strict mode, but for our own calls always.
    pub fn tells_more(&self) -> bool {
        !self.app.config.strict_dcs || self.operation.starts_with("Ck")
    }

    /// A path parameter's text.
    pub fn param(&self, name: &str) -> &str {
        self.params
            .iter()
            .find(|(known, _)| *known == name)
            .map_or("", |(_, value)| value)
    }

    /// The instance of the path.
    ///
    /// # Errors
    /// 400 DCS.4061 where it is malformed.
    pub fn instance_id(&self) -> Result<InstanceId, ApiError> {
        InstanceId::parse(self.param("instance_id")).ok_or_else(|| ApiError::Service {
            status: 400,
            code: 4061,
            message: "Invalid instance_id in the request.".to_owned(),
        })
    }

    /// The backup of the path; a malformed id is an unknown backup.
    ///
    /// # Errors
    /// As an unknown backup.
    pub fn backup_id(&self) -> Result<BackupId, ApiError> {
        BackupId::parse(self.param("backup_id")).ok_or_else(|| Refusal::BackupUnknown.into())
    }

    /// The restore of the path; a malformed id is an unknown restore.
    ///
    /// # Errors
    /// As an unknown restore.
    pub fn restore_id(&self) -> Result<RestoreId, ApiError> {
        RestoreId::parse(self.param("restore_id")).ok_or_else(|| Refusal::RestoreUnknown.into())
    }

    /// A query parameter: names are compared in lower case without `_`, the last of several wins, an empty value
    /// counts as absent. Contract C1 and §4.7.
    pub fn query(&self, name: &str) -> Option<String> {
        let mut found = None;
        for pair in self.query.split('&') {
            // Most are another: seen at once, unless the first letter is encoded or left out.
            let (first, wanted) = (pair.as_bytes().first(), name.as_bytes().first());
            if first.is_some_and(u8::is_ascii_alphabetic)
                && !first.zip(wanted).is_some_and(|(a, b)| a.eq_ignore_ascii_case(b))
            {
                continue;
            }
            let (given, value) = pair.split_once('=').unwrap_or((pair, ""));
            if normal(&plain(given)).eq(normal(name.as_bytes())) {
                found = Some(value);
            }
        }
        let found = String::from_utf8_lossy(&plain(found?)).into_owned();
        Some(found).filter(|value| !value.is_empty())
    }

    /// The `Idempotency-Key` of the call. v1.0 does not know the header, and ignores it.
    ///
    /// # Errors
    /// [`Refusal::Parameter`] for a key that is empty, too long, not printable, or given twice.
    pub fn once(&self) -> Result<Option<Once>, Refusal> {
        const NAME: &str = "Idempotency-Key";
        let mut given = self.headers.get_all(NAME).iter();
        let (Some(value), Version::V2) = (given.next(), self.version) else {
            return Ok(None);
        };
        let key = value.to_str().ok().filter(|key| {
            (1..=limits::IDEMPOTENCY_KEY_CHARS_MAX).contains(&key.len())
                && key.bytes().all(|byte| byte.is_ascii_graphic())
        });
        let (Some(key), None) = (key, given.next()) else {
            return Err(Refusal::Parameter(NAME));
        };
        let mut asked = self.operation.as_bytes().to_vec();
        for (name, value) in &self.params {
            asked.extend_from_slice(format!("\n{name}={value}").as_bytes());
        }
        asked.extend_from_slice(b"\n\n");
        asked.extend_from_slice(&self.body);
        Ok(Some(Once {
            key: key.to_owned(),
            fingerprint: sha256(&asked),
        }))
    }

    /// The body as a JSON object; `None` where there is no body.
    ///
    /// # Errors
    /// [`Refusal::BodyNotJson`].
    pub fn optional_body(&self) -> Result<Option<Fields>, Refusal> {
        if self.body.iter().all(u8::is_ascii_whitespace) {
            return Ok(None);
        }
        match serde_json::from_slice(&self.body) {
            Ok(Value::Object(fields)) => Ok(Some(Fields(fields))),
            _ => Err(Refusal::BodyNotJson),
        }
    }

    /// The body as a JSON object.
    ///
    /// # Errors
    /// [`Refusal::BodyEmpty`], [`Refusal::BodyNotJson`].
    pub fn body(&self) -> Result<Fields, Refusal> {
        self.optional_body()?.ok_or(Refusal::BodyEmpty)
    }
}

fn normal(name: &[u8]) -> impl Iterator<Item = u8> {
    name.iter()
        .filter(|byte| **byte != b'_')
        .map(u8::to_ascii_lowercase)
}

/// A part of a query, decoded where it needs to be.
fn plain(part: &str) -> Cow<'_, [u8]> {
    match part.bytes().any(|byte| matches!(byte, b'%' | b'+')) {
        true => Cow::Owned(signature::decode(part, true)),
        false => Cow::Borrowed(part.as_bytes()),
    }
}

/// The fields of a JSON body. Null counts as absent.
pub struct Fields(pub Map<String, Value>);

impl Fields {
    /// The raw value.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// A text, or a number where clients send one for it.
    ///
    /// # Errors
    /// [`Refusal::Parameter`] for any other type, and for a text with a zero byte.
    pub fn text(&self, name: &'static str) -> Result<Option<String>, Refusal> {
        match self.get(name) {
            None => Ok(None),
            // PostgreSQL's texts have no zero byte.
            Some(Value::String(text)) if text.contains('\0') => Err(Refusal::Parameter(name)),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(Value::Number(number)) => Ok(Some(number.to_string())),
            Some(_) => Err(Refusal::Parameter(name)),
        }
    }

    /// A whole number, or a text of digits.
    ///
    /// # Errors
    /// [`Refusal::Parameter`] for anything else.
    pub fn integer(&self, name: &'static str) -> Result<Option<i64>, Refusal> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Number(number)) => number.as_i64().map(Some).ok_or(Refusal::Parameter(name)),
            Some(Value::String(text)) => text
                .trim()
                .parse()
                .map(Some)
                .map_err(|_| Refusal::Parameter(name)),
            Some(_) => Err(Refusal::Parameter(name)),
        }
    }

    /// A number, or a text of one.
    ///
    /// # Errors
    /// [`Refusal::Parameter`] for anything else.
    pub fn number(&self, name: &'static str) -> Result<Option<f64>, Refusal> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Number(number)) => Ok(number.as_f64()),
            Some(Value::String(text)) => text
                .trim()
                .parse()
                .map(Some)
                .map_err(|_| Refusal::Parameter(name)),
            Some(_) => Err(Refusal::Parameter(name)),
        }
    }

    /// A boolean, or the text of one.
    ///
    /// # Errors
    /// [`Refusal::Parameter`] for anything else.
    pub fn boolean(&self, name: &'static str) -> Result<Option<bool>, Refusal> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(Some(true)),
            Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(Some(false)),
            Some(_) => Err(Refusal::Parameter(name)),
        }
    }
}
