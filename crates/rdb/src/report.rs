//! What a whole, valid file held, besides its keys.

use crate::census::Census;
use crate::digest::canonical_integer;
use crate::error::KeyHint;
use crate::function::FunctionSummary;
use crate::module::ModuleSummary;
use crate::opcode::Family;

/// Bytes of a key that are kept and shown to a [`Sink`](crate::Sink).
pub const KEY_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of the code of one function library, at most.
pub const FUNCTION_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Function libraries in one file, at most.
pub const FUNCTIONS_MAX: usize = 4096;
/// AUX fields that are kept; further ones are read and forgotten.
pub const AUX_FIELDS_MAX: usize = 128;
/// Bytes of an AUX name or value that are kept.
pub const AUX_BYTES_MAX: usize = 1024;
/// Slot imports in one file, at most: a node has one job for each range it is given.
pub const SLOT_IMPORTS_MAX: usize = 16 * 1024;
/// Odd values that are kept for the [`Report`].
pub const WARNINGS_MAX: usize = 64;

/// How the checksum of a file turned out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    /// It is this one, stored and computed.
    Verified(u64),
    /// The file has none: it is zero, or the version is below 5.
    Disabled,
}

/// Something that engines accept although it is odd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// Absolute offset of the first opcode of the key, or of the odd thing.
    pub offset: u64,
    /// The database.
    pub db: u32,
    /// The key, where it is about one.
    pub key: Option<KeyHint>,
    /// What is odd.
    pub what: &'static str,
}

/// Slots that a cluster node was being given while the file was written (Valkey 9). A node outside of a cluster
/// ends itself when it loads such a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotImport {
    /// The name of the job.
    pub job: String,
    /// Slots in its ranges.
    pub slots: u64,
}

/// Whether every key was compared with every other, and every member with every other of its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distinctness {
    /// No key occurs twice in a database, and no member in a value.
    Proven,
    /// The file holds more than [`KEYS_IN_MEMORY_MAX`](crate::KEYS_IN_MEMORY_MAX) keys and the caller gave no
    /// [`Spill`](crate::Spill): the first so many are distinct. Or a value holds more than twice
    /// [`MEMBERS_IN_MEMORY_MAX`](crate::MEMBERS_IN_MEMORY_MAX) members.
    FirstKeysOnly,
}

/// A whole, valid file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The letters before the version: `REDIS` or `VALKEY`.
    pub magic: String,
    /// Who writes files with this magic.
    pub family: Family,
    /// The version of the format.
    pub rdb_version: u32,
    /// The first [`AUX_FIELDS_MAX`] AUX fields, names and values cut at [`AUX_BYTES_MAX`] bytes.
    pub aux: Vec<(Vec<u8>, Vec<u8>)>,
    /// What the databases hold.
    pub census: Census,
    /// The function libraries, in file order.
    pub functions: Vec<FunctionSummary>,
    /// The modules with values or data in the file, in file order. Their content was skipped: only an engine with
    /// these modules loads the file.
    pub modules: Vec<ModuleSummary>,
    /// Slots whose sizes the file tells.
    pub slot_infos: u64,
    /// Slots that were being imported.
    pub slot_imports: Vec<SlotImport>,
    /// The greatest size that a database is announced with and does not have by far. Engines reserve memory for
    /// it and may end themselves.
    pub excessive_hint: Option<u64>,
    /// Whether keys were found to be distinct.
    pub distinctness: Distinctness,
    /// The first [`WARNINGS_MAX`] oddities.
    pub warnings: Vec<Warning>,
    /// Oddities, those beyond the limit included.
    pub warning_count: u64,
    /// Bytes of the file up to its end.
    pub bytes: u64,
    /// Bytes after that end, where these are accepted.
    pub trailing_bytes: u64,
    /// The checksum.
    pub checksum: Checksum,
}

impl Report {
    /// When the file was written, Unix milliseconds, to the second: its field `ctime`. `None` where it does not say.
    pub fn written_ms(&self) -> Option<i64> {
        let (_, value) = self.aux.iter().find(|(name, _)| name == b"ctime")?;
        canonical_integer(value)?.checked_mul(1000)
    }
}
