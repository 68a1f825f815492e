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
//! Read are versions 1 to 11 of the format, all that Redis up to 7.2 and Valkey up to 8 write. Refused by
//! name, at their offset, are module values and data, cluster slot information and anything of later
//! versions. Absent on purpose: I/O, the values themselves, writing.
//!
//! The flow of bytes: `validator` (opcodes, keys) → `object` (a value) → `source` (strings, whole or in
//! pieces) → `listpack`, `ziplist`, `zipmap`, `intset` (packed items) → `elements` or `stream` (counts and
//! digest). All of them follow the rule of `reader`: an item is read whole, or nothing has changed.

mod census;
mod crc64;
mod digest;
mod dump;
mod elements;
mod error;
mod fingerprint;
mod function;
mod intset;
mod listpack;
mod lzf;
mod object;
mod opcode;
mod reader;
mod source;
mod stream;
mod validator;
mod ziplist;
mod zipmap;

pub use census::{Census, DATABASES_MAX, DbCensus, Totals, Ttl, TypeCensus};
pub use crc64::crc64;
pub use digest::Digest;
pub use dump::{DumpSummary, DumpValidator};
pub use error::{Error, ErrorKind, KeyHint};
pub use fingerprint::MEMBERS_REMEMBERED_MAX;
pub use function::FunctionSummary;
pub use opcode::{Type, VERSION_MAX};
pub use validator::{
    AUX_BYTES_MAX, AUX_FIELDS_MAX, Checksum, FUNCTION_BYTES_MAX, FUNCTIONS_MAX, KEY_BYTES_MAX, KeySummary,
    Report, Sink, Validator, WARNINGS_MAX, Warning,
};
