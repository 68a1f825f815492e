//! Why a restore fails, from the moment on at which that is decided.

use crate::backup::record::FailureCode;

/// Why a restore fails: written before anything is turned back, and not changed by a crash in between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivenUp {
    /// As the wire has it.
    pub code: FailureCode,
    /// The chain of causes, for the operator.
    pub why: String,
}

impl GivenUp {
    /// Reads `error_code` and `failure` of a row. One without a code is of a version before.
    pub fn read(code: Option<&str>, why: Option<String>) -> Option<Self> {
        Some(Self {
            code: code.and_then(FailureCode::read).unwrap_or(FailureCode::NotLoaded),
            why: why?,
        })
    }
}
