//! Reads and validates Redis RDB files and DUMP payloads.
//!
//! A [`Validator`] is fed the bytes of a file in chunks of any size. It checks every structure down to the
//! last packed element and the checksum, tells a [`Sink`] about each key, and ends with a [`Report`]: a
//! census and an order-independent digest per database. A [`DumpValidator`] does the same for one value in
//! the form the `DUMP` command yields. Digests cover the logical content: the same data has the same digest
//! in any encoding and order, before a restore and after it.
//!
//! Memory is bounded: small items are parsed straight from the chunk, an item cut by the end of a chunk is
//! carried over, and long strings are passed on in pieces, through a window if they are compressed.
//!
//! Read are versions 1 to 13 under the magic `REDIS` (all that Redis up to 8.6 and Valkey up to 8 write) and 80
//! under `VALKEY` (Valkey 9.0 and 9.1); the magic decides what the numbers mean that both families use. Values
//! and data of modules are skipped by their structure and named. Everything else is refused by its number, at
//! its offset. Absent on purpose: I/O.
//!
//! A [`Writer`] writes keys of a valid file for an engine of another version or family, an [`AofWriter`] as commands, a
//! [`PayloadWriter`] as the payloads that `RESTORE` takes. [`Entries`] finds the keys of a valid file again, faster than they are read.
//!
//! A [`Sink`] that asks for it is also told the values themselves, see [`Event`].
//!
//! [`parallel::validate`] does the work of a validator with several threads, for a file that can be read again.
//!
//! The flow of bytes: `validator` (chunks) → `parser` (opcodes, keys) → `object` (a value) → `source` (strings, whole or in
//! pieces) → `listpack`, `ziplist`, `zipmap`, `intset` (packed items) → `elements` or `stream` (counts and
//! digest). All of them follow the rule of `reader`: an item is read whole, or nothing has changed.

mod census;
mod compare;
mod crc64;
mod digest;
mod distinct;
mod dump;
mod elements;
mod entries;
mod error;
mod event;
mod fingerprint;
mod function;
mod intset;
mod listpack;
mod lzf;
mod module;
mod object;
mod obstacles;
mod opcode;
pub mod parallel;
mod parser;
mod reader;
mod report;
mod skim;
mod slot;
mod source;
mod stream;
mod validator;
mod writer;
mod ziplist;
mod zipmap;

pub use census::{Census, DATABASES_MAX, DbCensus, Totals, Ttl, TypeCensus};
pub use compare::{Difference, Fate, KeyRecords, KeySeed, NAME_BYTES_MAX, compare};
pub use crc64::crc64;
pub use digest::{Digest, hash_of_key};
pub use distinct::{KEYS_IN_MEMORY_MAX, Spill};
pub use dump::{DumpSummary, DumpValidator};
pub use entries::{Copied, Entries, Taker};
pub use error::{Error, ErrorKind, KeyHint};
pub use event::{Event, KeyStart, KeySummary, Part, Sink, StreamId};
pub use fingerprint::MEMBERS_IN_MEMORY_MAX;
pub use function::FunctionSummary;
pub use module::{MODULES_MAX, ModuleSummary};
pub use obstacles::{TypeCodes, obstacle_of_version, obstacles};
pub use opcode::{Family, Type, VALKEY_VERSION, VERSION_MAX};
pub use report::{
    AUX_BYTES_MAX, AUX_FIELDS_MAX, Checksum, Distinctness, FUNCTION_BYTES_MAX, FUNCTIONS_MAX, KEY_BYTES_MAX,
    Report, SLOT_IMPORTS_MAX, SlotImport, WARNINGS_MAX, Warning,
};
pub use slot::{has_tag, slot_of};
pub use validator::{FEED_BYTES, Validator};
pub use writer::{
    AofWriter, Compression, FOOTER_BYTES, Footer, Frame, Header, Loss, PayloadWriter, TARGETS, Target,
    Writer, entry_header, push_footer,
};
