//! What can go wrong in the data plane, sorted by what the reader can do about it.

use std::fmt;

/// Why an operation of the data plane failed.
///
/// `Display` is one lower-case clause and never prints its source: print a chain with [`chain`].
#[derive(Debug)]
pub struct Error {
    /// What happened.
    pub kind: Kind,
    /// The step that failed, two or three words: `"read snapshot"`.
    pub operation: &'static str,
    /// The facts of this occurrence: which object, which port, what the engine said. Never a secret.
    pub context: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The kinds of failure. The control plane maps them to record codes with one `match`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nobody answered at the address, or the connection broke.
    Connection,
    /// User or password refused.
    Auth,
    /// The engine answered with an error; its text is the context.
    Refused,
    /// Silence for longer than the idle limit.
    Idle,
    /// The whole operation took longer than its deadline.
    Deadline,
    /// The peer did not speak the protocol.
    Protocol,
    /// The bytes are not a valid RDB: number and offset are in the context.
    Malformed,
    /// The object store could not be read or written.
    Store,
    /// The object store refuses our credentials, or what they ask for.
    StoreAccess,
    /// The object store or the spool has no room.
    StoreFull,
    /// Whoever owns the objects may not have so many bytes stored.
    Quota,
    /// An object that must exist does not.
    NotFound,
    /// An object is not the one that the signed manifest names: changed, cut or swapped.
    Tampered,
    /// The key cannot open the object, or is missing.
    Key,
    /// The engine process could not be started.
    EngineStart,
    /// The engine process ended while it was needed.
    EngineExited,
    /// What the engine loaded is not what the backup holds.
    Mismatch,
    /// The source of a capture would suffer, or began to.
    SourceAtRisk,
    /// Not enough memory for what was asked.
    Memory,
    /// The port belongs to somebody else.
    PortTaken,
    /// Asked to stop.
    Cancelled,
    /// A local file or directory could not be used.
    Io,
}

impl Kind {
    /// A stable word for logs and for the details of a record.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Connection => "connection",
            Kind::Auth => "auth",
            Kind::Refused => "refused",
            Kind::Idle => "idle",
            Kind::Deadline => "deadline",
            Kind::Protocol => "protocol",
            Kind::Malformed => "malformed",
            Kind::Store => "store",
            Kind::StoreAccess => "store_access",
            Kind::StoreFull => "store_full",
            Kind::Quota => "quota",
            Kind::NotFound => "not_found",
            Kind::Tampered => "tampered",
            Kind::Key => "key",
            Kind::EngineStart => "engine_start",
            Kind::EngineExited => "engine_exited",
            Kind::Mismatch => "mismatch",
            Kind::SourceAtRisk => "source_at_risk",
            Kind::Memory => "memory",
            Kind::PortTaken => "port_taken",
            Kind::Cancelled => "cancelled",
            Kind::Io => "io",
        }
    }
}

impl Error {
    /// An error with no cause below it.
    pub fn new(kind: Kind, operation: &'static str, context: impl Into<String>) -> Self {
        Self {
            kind,
            operation,
            context: context.into(),
            source: None,
        }
    }

    /// Adds the cause.
    pub fn because(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(source));
        self
    }

    /// An error of the operating system on a local file: [`Kind::StoreFull`] where it says that there is no
    /// room, else `kind`.
    pub fn io(
        kind: Kind,
        operation: &'static str,
        context: impl Into<String>,
        source: std::io::Error,
    ) -> Self {
        use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        let kind = match source.kind() {
            StorageFull | QuotaExceeded | FileTooLarge => Kind::StoreFull,
            _ => kind,
        };
        Self::new(kind, operation, context).because(source)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.operation, self.context)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// The whole chain of causes on one line, outermost first.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
