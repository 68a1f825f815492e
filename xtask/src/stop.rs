//! The one error of the commands: what went wrong and what the developer can do about it.

use std::fmt;
use std::path::Path;

/// Ends a command; printed once, by `main`.
#[derive(Debug)]
pub struct Stop {
    what: String,
    advice: Option<String>,
}

impl Stop {
    /// A failure whose text says enough by itself.
    pub fn new(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            advice: None,
        }
    }

    /// Adds what to do next.
    #[must_use]
    pub fn advice(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    /// A file operation that failed, with the file's name.
    pub fn file(verb: &str, path: &Path, error: &std::io::Error) -> Self {
        Self::new(format!("cannot {verb} {}: {error}", path.display()))
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        match &self.advice {
            Some(advice) => write!(f, "\n  {advice}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Stop {}

impl From<std::io::Error> for Stop {
    fn from(error: std::io::Error) -> Self {
        Self::new(error.to_string())
    }
}
