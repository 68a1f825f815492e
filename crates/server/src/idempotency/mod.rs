//! A call that carries an `Idempotency-Key` is done once: key, request and answer are written in the transaction that
//! does it. So a client that lost an answer asks again with the same key and gets the answer that it lost.
//!
//! A refused call writes nothing, and its key stays free: the same call may be accepted later.

pub mod record;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::catalog::Tx;
use crate::ids::{Moment, ProjectId};
use crate::limits;
use crate::refusal::Refusal;

/// What makes a call the same call.
#[derive(Debug, Clone)]
pub struct Once {
    /// The client's key, unique within its project.
    pub key: String,
    /// SHA-256 over operation, path parameters and body.
    pub fingerprint: [u8; 32],
}

/// Does `work`, or returns what it returned when the call came for the first time. Without a key it is always done.
///
/// # Errors
/// What `work` refuses; [`Refusal::KeyReused`] where the key belongs to another request.
pub fn once<T: Serialize + DeserializeOwned>(
    tx: &Tx<'_>,
    project: &ProjectId,
    once: Option<&Once>,
    now: Moment,
    work: impl FnOnce() -> Result<T, Refusal>,
) -> Result<T, Refusal> {
    let Some(once) = once else {
        return work();
    };
    record::forget_before(tx, now.plus_seconds(-limits::IDEMPOTENCY_SECONDS))?;
    let odd = |error: serde_json::Error| Refusal::Internal(format!("an answer kept for a retry: {error}"));
    if let Some((fingerprint, answer)) = record::find(tx, project, &once.key)? {
        if fingerprint != once.fingerprint {
            return Err(Refusal::KeyReused);
        }
        return serde_json::from_str(&answer).map_err(odd);
    }
    let done = work()?;
    let answer = serde_json::to_string(&done).map_err(odd)?;
    record::insert(tx, project, once, &answer, now)?;
    Ok(done)
}
