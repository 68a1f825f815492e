//! One JSON document, written while the file is read.
//!
//! ```text
//! {"dbs": {"0": [KEY, ...], ...}, "functions": [...], "total_keys": N}
//! KEY = {"key": S, "type": T, "pexpiretime": MS, "value": ...}
//! ```
//!
//! A string is a JSON string where it is printable UTF-8, else `{"b64": ...}`. A hash is a list of pairs, with the
//! expiry of its fields behind it in `field_pexpiretime`; a sorted set is a list of pairs of member and score
//! text; a stream has `entries`, `meta` and `groups` with their consumers and pending entries.
//!
//! Memory: a string up to [`TEXT_BYTES_MAX`] is held to see whether it is text, a longer one is written as base64
//! in pieces; the expiry of fields is held up to 8 MiB and goes into an unlinked file beyond; the
//! pending entries of one group are held, up to [`PENDING_MAX`].

use std::io::Write;

use rdb::{Event, KeyStart, KeySummary, Part, StreamId, Type};

use super::text::{Deferred, TEXT_BYTES_MAX, Text, write_score, write_string};
use engine::Selection;
use engine::selection::Candidate;

/// Pending entries of one group: 32 bytes each, 32 MiB.
const PENDING_MAX: u64 = 1024 * 1024;

/// Why writing ended.
pub(super) enum Failure {
    Write(std::io::Error),
    TooBig(String),
}

#[derive(PartialEq)]
enum Mode {
    /// Keys, by their databases.
    Keys,
    /// Keys, each on a line.
    Bare,
    Functions,
}

/// What is open in a stream.
#[derive(Default, PartialEq)]
enum Place {
    #[default]
    Entries,
    Groups,
    Producers,
}

pub(super) struct Document<W: Write> {
    out: W,
    selection: Selection,
    only_db: Option<u32>,
    mode: Mode,
    keys: u64,
    /// The database whose list is open.
    db: Option<u32>,
    any_db: bool,
    any_key: bool,
    any_function: bool,
    skips: bool,
    kind: Type,
    /// Something stands in the list that is open.
    any: bool,
    text: Text,
    /// The field before, as written; nothing where it was too long to be held.
    field: Option<Vec<u8>>,
    expiring: Deferred,
    place: Place,
    /// An entry of a stream, or a producer.
    is_entry_open: bool,
    is_group_open: bool,
    is_consumer_open: bool,
    any_group: bool,
    any_consumer: bool,
    pending: Vec<(StreamId, i64, u64)>,
    failure: Option<Failure>,
}

impl<W: Write> Document<W> {
    fn of(out: W, selection: Selection, mode: Mode) -> Self {
        Self {
            out,
            selection,
            only_db: None,
            mode,
            keys: 0,
            db: None,
            any_db: false,
            any_key: false,
            any_function: false,
            skips: false,
            kind: Type::String,
            any: false,
            text: Text::default(),
            field: None,
            expiring: Deferred::default(),
            place: Place::Entries,
            is_entry_open: false,
            is_group_open: false,
            is_consumer_open: false,
            any_group: false,
            any_consumer: false,
            pending: Vec::new(),
            failure: None,
        }
    }

    /// A whole document; keys come next.
    pub(super) fn new(mut out: W, selection: Selection) -> std::io::Result<Self> {
        out.write_all(b"{\"dbs\":{")?;
        Ok(Self::of(out, selection, Mode::Keys))
    }

    /// Keys alone, one on a line.
    pub(super) fn bare(out: W, selection: Selection) -> Self {
        Self::of(out, selection, Mode::Bare)
    }

    pub(super) fn keys(&self) -> u64 {
        self.keys
    }

    pub(super) fn failure(&mut self) -> Option<Failure> {
        self.failure.take()
    }

    /// Takes keys of this database only, from the next pass on.
    pub(super) fn only_db(&mut self, db: u32) {
        self.only_db = Some(db);
    }

    /// Ends the databases.
    pub(super) fn end_keys(&mut self) -> std::io::Result<()> {
        self.out
            .write_all(if self.db.take().is_some() { b"]}" } else { b"}" })
    }

    /// Function libraries come next.
    pub(super) fn begin_functions(&mut self) -> std::io::Result<()> {
        self.mode = Mode::Functions;
        self.out.write_all(b",\"functions\":[")
    }

    pub(super) fn finish(mut self) -> std::io::Result<W> {
        if self.mode == Mode::Functions {
            self.out.write_all(b"]")?;
        }
        writeln!(self.out, ",\"total_keys\":{}}}", self.keys)?;
        self.out.flush()?;
        Ok(self.out)
    }

    pub(super) fn flush(mut self) -> std::io::Result<()> {
        self.out.flush()
    }

    /// Does what may fail, unless something failed before.
    fn attempt(&mut self, write: impl FnOnce(&mut Self) -> std::io::Result<()>) {
        if self.failure.is_none()
            && let Err(error) = write(self)
        {
            self.failure = Some(Failure::Write(error));
        }
    }

    fn too_big(&mut self, what: String) {
        if self.failure.is_none() {
            self.failure = Some(Failure::TooBig(what));
        }
    }

    fn comma(&mut self) -> std::io::Result<()> {
        if std::mem::replace(&mut self.any, true) {
            self.out.write_all(b",")?;
        }
        Ok(())
    }

    fn begin_key(&mut self, key: &KeyStart<'_>) -> std::io::Result<()> {
        if self.mode == Mode::Keys && self.db != Some(key.db) {
            if self.db.is_some() {
                self.out.write_all(b"]")?;
            }
            if std::mem::replace(&mut self.any_db, true) {
                self.out.write_all(b",")?;
            }
            write!(self.out, "\"{}\":[", key.db)?;
            self.db = Some(key.db);
            self.any_key = false;
        }
        if std::mem::replace(&mut self.any_key, true) && self.mode == Mode::Keys {
            self.out.write_all(b",")?;
        }
        self.out.write_all(b"\n{\"key\":")?;
        write_string(&mut self.out, key.key)?;
        write!(self.out, ",\"type\":\"{}\"", key.kind)?;
        if let Some(at_ms) = key.expire_at_ms {
            write!(self.out, ",\"pexpiretime\":{at_ms}")?;
        }
        self.any = false;
        self.place = Place::Entries;
        self.is_entry_open = false;
        self.out.write_all(match key.kind {
            Type::String => b",\"value\":",
            Type::Stream => b",\"entries\":[",
            Type::Module => b",\"value\":null",
            _ => b",\"value\":[",
        })
    }

    fn end_key(&mut self) -> std::io::Result<()> {
        match self.kind {
            Type::String | Type::Module => {}
            Type::Stream => {
                if self.place == Place::Groups {
                    self.close_group()?;
                    self.out.write_all(b"]")?;
                }
            }
            Type::Hash => {
                self.out.write_all(b"]")?;
                if !self.expiring.is_empty() {
                    self.out.write_all(b",\"field_pexpiretime\":[")?;
                    self.expiring.drain(&mut self.out)?;
                    self.out.write_all(b"]")?;
                }
            }
            Type::List | Type::Set | Type::ZSet => self.out.write_all(b"]")?,
        }
        self.out.write_all(b"}")?;
        if self.mode == Mode::Bare {
            self.out.write_all(b"\n")?;
        }
        self.keys += 1;
        Ok(())
    }

    /// What stands before a string.
    fn before(&mut self, part: Part) -> std::io::Result<()> {
        match part {
            Part::Text => Ok(()),
            Part::Item => self.comma(),
            Part::Member if self.kind == Type::Set => self.comma(),
            Part::Field if self.kind == Type::Stream => self.comma(),
            Part::Member | Part::Field => {
                self.comma()?;
                self.out.write_all(b"[")
            }
            Part::Value => self.out.write_all(b","),
            Part::Group => {
                self.close_group()?;
                if std::mem::replace(&mut self.any_group, true) {
                    self.out.write_all(b",")?;
                }
                self.out.write_all(b"{\"name\":")
            }
            Part::Consumer => {
                self.close_consumer()?;
                if std::mem::replace(&mut self.any_consumer, true) {
                    self.out.write_all(b",")?;
                }
                self.out.write_all(b"{\"name\":")
            }
            Part::Producer => {
                self.close_producer()?;
                if std::mem::replace(&mut self.any_group, true) {
                    self.out.write_all(b",")?;
                }
                self.out.write_all(b"[")
            }
            Part::MessageId => {
                self.comma()?;
                self.out.write_all(b"[")
            }
        }
    }

    /// What stands behind it.
    fn after(&mut self, part: Part) -> std::io::Result<()> {
        match part {
            Part::Value if self.kind == Type::Hash => self.out.write_all(b"]"),
            Part::Producer => {
                self.any = false;
                self.is_entry_open = true;
                self.out.write_all(b",[")
            }
            _ => Ok(()),
        }
    }

    fn close_entry(&mut self) -> std::io::Result<()> {
        if std::mem::take(&mut self.is_entry_open) {
            self.out.write_all(b"]]")?;
        }
        Ok(())
    }

    fn close_producer(&mut self) -> std::io::Result<()> {
        self.close_entry()
    }

    fn close_consumer(&mut self) -> std::io::Result<()> {
        if std::mem::take(&mut self.is_consumer_open) {
            self.out.write_all(b"]}")?;
        }
        Ok(())
    }

    fn close_group(&mut self) -> std::io::Result<()> {
        self.close_consumer()?;
        if std::mem::take(&mut self.is_group_open) {
            self.out.write_all(b"]}")?;
        }
        Ok(())
    }

    fn whole(&mut self, part: Part, bytes: &[u8]) -> std::io::Result<()> {
        self.before(part)?;
        write_string(&mut self.out, bytes)?;
        if part == Part::Field && self.kind == Type::Hash {
            let mut field = self.field.take().unwrap_or_default();
            field.clear();
            write_string(&mut field, bytes)?;
            self.field = Some(field);
        }
        self.after(part)
    }

    fn piece(&mut self, part: Part, bytes: &[u8]) -> std::io::Result<()> {
        if self.text.is_too_long_with(bytes) {
            self.before(part)?;
            self.text.start(&mut self.out)?;
        }
        self.text.push(bytes, &mut self.out)
    }

    fn end_of_pieces(&mut self, part: Part) -> std::io::Result<()> {
        match self.text.end(&mut self.out)? {
            Some(held) => self.whole(part, &held),
            None => {
                if part == Part::Field {
                    self.field = None;
                }
                self.after(part)
            }
        }
    }

    fn group_event(&mut self, event: Event<'_>) -> std::io::Result<()> {
        match event {
            Event::Entry(id) => {
                self.close_entry()?;
                // `any` is of the entry's fields.
                if std::mem::replace(&mut self.any_group, true) {
                    self.out.write_all(b",")?;
                }
                self.any = false;
                self.is_entry_open = true;
                write!(self.out, "[\"{id}\",[")
            }
            Event::Stream {
                length,
                last,
                first,
                max_deleted,
                added,
            } => {
                self.close_entry()?;
                self.place = Place::Groups;
                self.any_group = false;
                write!(
                    self.out,
                    "],\"meta\":{{\"length\":{length},\"last-generated-id\":\"{last}\",\
                     \"max-deleted-entry-id\":\"{max_deleted}\",\"entries-added\":{added},\
                     \"recorded-first-entry-id\":\"{first}\"}},\"groups\":["
                )
            }
            Event::Group { last, read, pending } => {
                self.pending.clear();
                self.is_group_open = true;
                self.any_consumer = false;
                if pending > PENDING_MAX {
                    self.too_big(format!(
                        "a group has {pending} pending entries, above {PENDING_MAX}"
                    ));
                }
                write!(self.out, ",\"last-delivered-id\":\"{last}\",\"entries-read\":")?;
                match read {
                    Some(read) => write!(self.out, "{read}")?,
                    None => self.out.write_all(b"null")?,
                }
                write!(self.out, ",\"pel-count\":{pending},\"consumers\":[")
            }
            Event::Consumer {
                seen_ms,
                active_ms,
                pending,
            } => {
                self.is_consumer_open = true;
                self.any = false;
                // What engines assume where it was not stored.
                let active_ms = active_ms.unwrap_or(seen_ms);
                write!(
                    self.out,
                    ",\"seen-time\":{seen_ms},\"active-time\":{active_ms},\"pel-count\":{pending},\"pending\":["
                )
            }
            Event::Owned(id) => {
                self.comma()?;
                let known = self.pending.binary_search_by_key(&id, |(pending, ..)| *pending);
                let (at_ms, deliveries) = match known.ok().and_then(|at| self.pending.get(at)) {
                    Some((_, at_ms, deliveries)) => (*at_ms, *deliveries),
                    // Only in a file that turns out to be invalid.
                    None => (0, 0),
                };
                write!(self.out, "[\"{id}\",{at_ms},{deliveries}]")
            }
            Event::Idempotence {
                duration_s, ids_max, ..
            } => {
                self.close_group()?;
                self.place = Place::Producers;
                self.any_group = false;
                write!(
                    self.out,
                    "],\"idempotence\":{{\"duration\":{duration_s},\"max-entries\":{ids_max},\"producers\":["
                )
            }
            Event::Message(id) => write!(self.out, ",\"{id}\"]"),
            Event::MessagesCounted { added, duplicates } => {
                self.close_producer()?;
                write!(
                    self.out,
                    "],\"iids-added\":{added},\"iids-duplicates\":{duplicates}}}"
                )
            }
            _ => Ok(()),
        }
    }
}

impl<W: Write> rdb::Sink for Document<W> {
    const VALUES: bool = true;

    fn begin(&mut self, key: &KeyStart<'_>) {
        self.kind = key.kind;
        self.skips = self.mode == Mode::Functions
            || self.only_db.is_some_and(|db| db != key.db)
            || !self.selection.takes(&Candidate {
                db: key.db,
                key: key.key,
                kind: key.kind,
                expire_at_ms: key.expire_at_ms,
                bytes: None,
            });
        if !self.skips {
            self.any_group = false;
            self.attempt(|document| document.begin_key(key));
        }
    }

    fn event(&mut self, event: Event<'_>) {
        if self.skips || self.failure.is_some() {
            return;
        }
        match event {
            Event::Whole(part, bytes) => self.attempt(|document| document.whole(part, bytes)),
            Event::Piece(part, bytes) => self.attempt(|document| document.piece(part, bytes)),
            Event::End(part) => self.attempt(|document| document.end_of_pieces(part)),
            Event::Score(score) => self.attempt(|document| {
                document.out.write_all(b",\"")?;
                write_score(&mut document.out, score)?;
                document.out.write_all(b"\"]")
            }),
            Event::FieldExpiry(at_ms) => match self.field.take() {
                Some(field) => {
                    self.attempt(|document| document.expiring.push(&field, at_ms));
                    self.field = Some(field);
                }
                None => self.too_big(format!(
                    "a field that expires is longer than {TEXT_BYTES_MAX} bytes"
                )),
            },
            Event::Pending {
                id,
                at_ms,
                deliveries,
            } => self.pending.push((id, at_ms, deliveries)),
            event => self.attempt(|document| document.group_event(event)),
        }
    }

    fn key(&mut self, key: &KeySummary<'_>) {
        if self.skips {
            return;
        }
        if key.key_bytes > key.key.len() as u64 {
            self.too_big(format!(
                "a key is {} bytes long, above {}",
                key.key_bytes,
                rdb::KEY_BYTES_MAX
            ));
        }
        self.attempt(Self::end_key);
    }

    fn function(&mut self, code: &[u8]) {
        if self.mode != Mode::Functions {
            return;
        }
        self.attempt(|document| {
            if std::mem::replace(&mut document.any_function, true) {
                document.out.write_all(b",")?;
            }
            let (name, engine) = head_of_library(code);
            document.out.write_all(b"\n[\"library_name\",")?;
            write_string(&mut document.out, &name)?;
            document.out.write_all(b",\"engine\",")?;
            write_string(&mut document.out, &engine)?;
            document.out.write_all(b",\"library_code\",")?;
            write_string(&mut document.out, code)?;
            document.out.write_all(b"]")
        });
    }
}

/// Name and engine, from the first line `#!engine name=...`.
fn head_of_library(code: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let line = code.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let mut words = line
        .strip_prefix(b"#!")
        .unwrap_or_default()
        .split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty());
    let engine = words.next().unwrap_or_default().to_ascii_uppercase();
    let name = words
        .find_map(|word| word.strip_prefix(b"name="))
        .unwrap_or_default();
    (name.to_vec(), engine)
}
