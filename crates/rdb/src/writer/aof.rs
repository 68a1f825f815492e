//! Writes keys as the commands that make them: an append-only file.
//!
//! Big collections are made by several commands. A string of any size passes in pieces, except those that a command
//! needs before it can begin: members of sorted sets, fields that expire, entries of streams.

use std::io::{self, Write};

use super::raw::Raw;
use super::target::Target;
use super::values::Values;
use super::{Loss, library_lost};
use crate::elements::FIELD_EXPIRY_MAX;
use crate::event::{Event, KeySummary, Part, Sink, StreamId};
use crate::opcode::{Family, Type};
use crate::report::Report;

/// Elements of one command, and the bytes of them after which it ends.
const BATCH_ELEMENTS: usize = 64;
const BATCH_BYTES: usize = 256 * 1024;
/// Bytes that a command may have to hold, and the pending entries of a group of consumers (24 MiB of them).
const HELD_BYTES_MAX: u64 = 8 * 1024 * 1024;
const PENDING_MAX: u64 = 1024 * 1024;
/// Up to so many serialized bytes no value can hold too much: compressed bytes yield at most 88 times as many.
const SURELY_HELD_BYTES: u64 = HELD_BYTES_MAX / 100;

/// Writes an append-only file.
///
/// Memory: some 600 KiB; 32 MiB for streams with many pending entries.
pub struct AofWriter<R, W> {
    read: R,
    out: W,
    family: Family,
    target: Target,
    db: Option<u32>,
    keys: u64,
    values: Values,
}

impl<R, W> AofWriter<R, W>
where
    R: FnMut(u64, &mut [u8]) -> io::Result<()>,
    W: Write,
{
    /// Starts a file for `target`; `report` and `read` as for [`Writer::new`](super::Writer::new).
    pub fn new(report: &Report, target: Target, read: R, out: W) -> Self {
        Self {
            read,
            out,
            family: report.family,
            target,
            db: None,
            keys: 0,
            values: Values::default(),
        }
    }

    /// As [`AofWriter::new`], for an engine whose connection is in a database already: no SELECT is written for keys of that.
    pub fn in_db(family: Family, target: Target, db: u32, read: R, out: W) -> Self {
        Self {
            read,
            out,
            family,
            target,
            db: Some(db),
            keys: 0,
            values: Values::default(),
        }
    }

    /// Keys written so far.
    pub fn keys(&self) -> u64 {
        self.keys
    }

    /// Writes a function library.
    ///
    /// # Errors
    /// Those of the output.
    pub fn function(&mut self, code: &[u8], mut lost: impl FnMut(Loss<'_>)) -> io::Result<()> {
        if !self.target.has_functions() {
            lost(library_lost(code));
            return Ok(());
        }
        command(&mut self.out, &[b"FUNCTION", b"LOAD", code])
    }

    /// Writes a key, or tells why not, or without what.
    ///
    /// # Errors
    /// As [`Writer::key`](super::Writer::key).
    pub fn key(&mut self, key: &KeySummary<'_>, mut lost: impl FnMut(Loss<'_>)) -> io::Result<()> {
        let mut tell = |is_left_out, reason| {
            lost(Loss {
                db: Some(key.db),
                key: key.key,
                is_left_out,
                reason,
            });
        };
        let value = Raw::new(&mut self.read, key.offset, key.bytes).value_offset()?..key.offset + key.bytes;
        if let Some(reason) = self.obstacle(key, value.clone())? {
            tell(true, reason);
            return Ok(());
        }
        if self.db.replace(key.db) != Some(key.db) {
            command(&mut self.out, &[b"SELECT", key.db.to_string().as_bytes()])?;
        }
        self.keys += 1;
        let mut commands = Commands::begin(&mut self.out, key, self.target);
        self.values
            .tell(&mut self.read, self.family, key.type_code, value, &mut commands)?;
        let losses = commands.end()?;
        for reason in losses {
            tell(false, reason);
        }
        if let Some(at_ms) = key.expire_at_ms {
            command(
                &mut self.out,
                &[b"PEXPIREAT", key.key, at_ms.to_string().as_bytes()],
            )?;
        }
        Ok(())
    }

    /// Why a key cannot be written.
    fn obstacle(
        &mut self,
        key: &KeySummary<'_>,
        value: std::ops::Range<u64>,
    ) -> io::Result<Option<&'static str>> {
        if key.key_bytes > key.key.len() as u64 {
            return Ok(Some("a command cannot hold a key above 1 MiB"));
        }
        if key.kind == Type::Module {
            return Ok(Some("no command makes the value of a module"));
        }
        if key.expiring_elements > 0 && self.target.field_expiry().is_none() {
            return Ok(Some(
                "fields that expire by themselves need redis-7.4 or valkey-9.0",
            ));
        }
        let holds = matches!(key.kind, Type::ZSet | Type::Stream);
        if key.expiring_elements == 0 && (!holds || key.bytes <= SURELY_HELD_BYTES) {
            return Ok(None);
        }
        let mut held = Held {
            kind: key.kind,
            now: 0,
            most: 0,
            pending: 0,
            last_expiry: 0,
        };
        self.values
            .tell(&mut self.read, self.family, key.type_code, value, &mut held)?;
        let is_redis = self.target.family() == Family::Redis;
        Ok(if is_redis && held.last_expiry > FIELD_EXPIRY_MAX {
            Some("a field expires later than Redis can hold")
        } else if held.most > HELD_BYTES_MAX {
            Some("a member, field or entry above 8 MiB, which a command must hold")
        } else if held.pending > PENDING_MAX {
            Some("a consumer group with more than 1048576 pending entries")
        } else {
            None
        })
    }

    /// Gives the output back.
    ///
    /// # Errors
    /// Those of the output.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.flush()?;
        Ok(self.out)
    }
}

fn head(out: &mut impl Write, words: usize) -> io::Result<()> {
    write!(out, "*{words}\r\n")
}

fn word(out: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    write!(out, "${}\r\n", bytes.len())?;
    out.write_all(bytes)?;
    out.write_all(b"\r\n")
}

fn command(out: &mut impl Write, words: &[&[u8]]) -> io::Result<()> {
    head(out, words.len())?;
    words.iter().try_for_each(|bytes| word(out, bytes))
}

/// How much a value makes a command hold.
struct Held {
    kind: Type,
    now: u64,
    most: u64,
    pending: u64,
    /// The greatest expiry of a field.
    last_expiry: u64,
}

impl Sink for Held {
    const VALUES: bool = true;

    fn key(&mut self, _key: &KeySummary<'_>) {}

    fn event(&mut self, event: Event<'_>) {
        let (part, bytes) = match event {
            Event::Whole(part, bytes) => (part, bytes.len() as u64),
            Event::Long(part, length) => (part, length),
            Event::Entry(_) => {
                self.now = 0;
                return;
            }
            Event::FieldExpiry(at_ms) => {
                self.last_expiry = self.last_expiry.max(at_ms.cast_unsigned());
                return;
            }
            Event::Group { pending, .. } => {
                self.pending = self.pending.max(pending);
                return;
            }
            _ => return,
        };
        match (self.kind, part) {
            (Type::Hash, Part::Value) => return,
            // All of an entry, with what stands before each word.
            (Type::Stream, Part::Field | Part::Value) => self.now += bytes + 32,
            _ => self.now = bytes,
        }
        self.most = self.most.max(self.now);
    }
}

/// Writes a value while it is read.
struct Commands<'a, W> {
    out: &'a mut W,
    key: &'a [u8],
    kind: Type,
    target: Target,
    /// Words of the command that is being gathered, and how many.
    batch: Vec<u8>,
    words: usize,
    elements: usize,
    /// A string that came in pieces and must be whole.
    pieces: Vec<u8>,
    /// The member, field, group or consumer before.
    field: Vec<u8>,
    group: Vec<u8>,
    entry: Option<StreamId>,
    any_entry: bool,
    first: StreamId,
    max_deleted: StreamId,
    pending: Vec<(StreamId, i64, u64)>,
    losses: [Option<&'static str>; 3],
    failure: Option<io::Error>,
}

impl<'a, W: Write> Commands<'a, W> {
    fn begin(out: &'a mut W, key: &KeySummary<'a>, target: Target) -> Self {
        Self {
            out,
            key: key.key,
            kind: key.kind,
            target,
            batch: Vec::new(),
            words: 0,
            elements: 0,
            pieces: Vec::new(),
            field: Vec::new(),
            group: Vec::new(),
            entry: None,
            any_entry: false,
            first: StreamId::default(),
            max_deleted: StreamId::default(),
            pending: Vec::new(),
            losses: [None; 3],
            failure: None,
        }
    }

    fn end(mut self) -> io::Result<impl Iterator<Item = &'static str>> {
        match self.failure.take() {
            Some(error) => Err(error),
            None => {
                self.flush()?;
                Ok(self.losses.into_iter().flatten())
            }
        }
    }

    fn verb(&self) -> &'static [u8] {
        match self.kind {
            Type::List => b"RPUSH",
            Type::Set => b"SADD",
            Type::ZSet => b"ZADD",
            Type::Hash => b"HSET",
            Type::String | Type::Stream | Type::Module => b"SET",
        }
    }

    /// Writes the elements that have been gathered.
    fn flush(&mut self) -> io::Result<()> {
        if self.words > 0 {
            head(self.out, 2 + self.words)?;
            word(self.out, self.verb())?;
            word(self.out, self.key)?;
            self.out.write_all(&self.batch)?;
            self.batch.clear();
            (self.words, self.elements) = (0, 0);
        }
        Ok(())
    }

    /// Ends an element of those that are gathered.
    fn end_element(&mut self) -> io::Result<()> {
        self.elements += 1;
        if self.elements >= BATCH_ELEMENTS || self.batch.len() >= BATCH_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    fn gather(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.words += 1;
        word(&mut self.batch, bytes)
    }

    /// Whether a long string of this part passes in pieces; else it is held.
    fn passes(&self, part: Part) -> bool {
        match self.kind {
            Type::String | Type::List | Type::Set => true,
            Type::Hash => part == Part::Value,
            Type::ZSet | Type::Stream | Type::Module => false,
        }
    }

    /// Begins a command of its own for a long string.
    fn begin_long(&mut self, length: u64) -> io::Result<()> {
        self.flush()?;
        let is_hash = self.kind == Type::Hash;
        head(self.out, 3 + usize::from(is_hash))?;
        word(self.out, self.verb())?;
        word(self.out, self.key)?;
        if is_hash {
            word(self.out, &self.field)?;
        }
        write!(self.out, "${length}\r\n")
    }

    fn whole(&mut self, part: Part, bytes: &[u8]) -> io::Result<()> {
        match (self.kind, part) {
            (Type::Stream, Part::Group) => {
                self.group.clear();
                self.group.extend_from_slice(bytes);
            }
            (Type::Stream, Part::Field | Part::Value) => self.gather(bytes)?,
            (Type::ZSet, _) | (Type::Stream, _) | (_, Part::Field) => {
                self.field.clear();
                self.field.extend_from_slice(bytes);
            }
            (Type::Hash, _) => {
                let field = std::mem::take(&mut self.field);
                self.gather(&field)?;
                self.field = field;
                self.gather(bytes)?;
                self.end_element()?;
            }
            _ => {
                self.gather(bytes)?;
                self.end_element()?;
            }
        }
        Ok(())
    }

    fn take(&mut self, event: Event<'_>) -> io::Result<()> {
        match event {
            Event::Whole(part, bytes) => self.whole(part, bytes),
            Event::Long(part, length) if self.passes(part) => self.begin_long(length),
            Event::Piece(part, bytes) if self.passes(part) => self.out.write_all(bytes),
            Event::End(part) if self.passes(part) => self.out.write_all(b"\r\n"),
            Event::Long(..) => {
                self.pieces.clear();
                Ok(())
            }
            Event::Piece(_, bytes) => {
                self.pieces.extend_from_slice(bytes);
                Ok(())
            }
            Event::End(part) => {
                let pieces = std::mem::take(&mut self.pieces);
                self.whole(part, &pieces)
            }
            Event::Score(score) => {
                let member = std::mem::take(&mut self.field);
                self.gather(format!("{score:?}").as_bytes())?;
                self.gather(&member)?;
                self.field = member;
                self.end_element()
            }
            Event::FieldExpiry(at_ms) => {
                self.flush()?;
                let at_ms = at_ms.to_string();
                let words = [
                    b"HPEXPIREAT",
                    self.key,
                    at_ms.as_bytes(),
                    b"FIELDS",
                    b"1",
                    &self.field,
                ];
                command(self.out, &words)
            }
            event => self.stream(event),
        }
    }

    /// Writes the entry that has been gathered.
    fn end_entry(&mut self) -> io::Result<()> {
        let Some(id) = self.entry.take() else {
            return Ok(());
        };
        head(self.out, 3 + self.words)?;
        word(self.out, b"XADD")?;
        word(self.out, self.key)?;
        word(self.out, id.to_string().as_bytes())?;
        self.out.write_all(&self.batch)?;
        self.batch.clear();
        self.words = 0;
        Ok(())
    }

    /// Commands as an engine writes them (src/aof.c, rewriteStreamObject).
    fn stream(&mut self, event: Event<'_>) -> io::Result<()> {
        let knows_counters = self.target.stream_generation() >= 2;
        match event {
            Event::Entry(id) => {
                self.end_entry()?;
                self.entry = Some(id);
                self.any_entry = true;
                Ok(())
            }
            Event::Stream {
                last,
                first,
                max_deleted,
                added,
                ..
            } => {
                self.end_entry()?;
                (self.first, self.max_deleted) = (first, max_deleted);
                if !self.any_entry {
                    // What makes an empty stream: an entry that is trimmed at once.
                    let id = last.max(StreamId { ms: 0, sequence: 1 }).to_string();
                    command(
                        self.out,
                        &[b"XADD", self.key, b"MAXLEN", b"0", id.as_bytes(), b"x", b"y"],
                    )?;
                }
                let (last, added) = (last.to_string(), added.to_string());
                let max_deleted = max_deleted.to_string();
                let words = [
                    b"XSETID",
                    self.key,
                    last.as_bytes(),
                    b"ENTRIESADDED",
                    added.as_bytes(),
                    b"MAXDELETEDID",
                    max_deleted.as_bytes(),
                ];
                command(self.out, if knows_counters { &words } else { &words[..3] })
            }
            Event::Group { last, read, .. } => {
                self.pending.clear();
                let last = last.to_string();
                let read = read.map_or("-1".to_owned(), |read| read.to_string());
                let words = [
                    b"XGROUP",
                    b"CREATE",
                    self.key,
                    &self.group,
                    last.as_bytes(),
                    b"ENTRIESREAD",
                    read.as_bytes(),
                ];
                command(self.out, if knows_counters { &words } else { &words[..5] })
            }
            Event::Pending {
                id,
                at_ms,
                deliveries,
            } => {
                if id < self.first || id <= self.max_deleted {
                    self.losses[0] = Some("pending entries that are deleted are made by no command");
                }
                self.pending.push((id, at_ms, deliveries));
                Ok(())
            }
            Event::Consumer { .. } => {
                self.losses[1] = Some("no command tells when a consumer was last seen");
                command(
                    self.out,
                    &[b"XGROUP", b"CREATECONSUMER", self.key, &self.group, &self.field],
                )
            }
            Event::Owned(id) => {
                let known = self.pending.binary_search_by_key(&id, |(pending, ..)| *pending);
                let Some((_, at_ms, deliveries)) = known.ok().and_then(|at| self.pending.get(at)) else {
                    return Ok(());
                };
                let (id, at_ms, deliveries) = (id.to_string(), at_ms.to_string(), deliveries.to_string());
                let words: [&[u8]; 12] = [
                    b"XCLAIM",
                    self.key,
                    &self.group,
                    &self.field,
                    b"0",
                    id.as_bytes(),
                    b"TIME",
                    at_ms.as_bytes(),
                    b"RETRYCOUNT",
                    deliveries.as_bytes(),
                    b"JUSTID",
                    b"FORCE",
                ];
                command(self.out, &words)
            }
            Event::Idempotence { .. } => {
                self.losses[2] = Some("no command makes message ids of producers");
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

impl<W: Write> Sink for Commands<'_, W> {
    const VALUES: bool = true;

    fn key(&mut self, _key: &KeySummary<'_>) {}

    fn event(&mut self, event: Event<'_>) {
        if self.failure.is_none() {
            self.failure = self.take(event).err();
        }
    }
}
