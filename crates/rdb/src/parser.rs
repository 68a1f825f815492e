//! The opcodes of an RDB file: what a [`Validator`](crate::Validator) does with a buffer.

use crate::census::{Counted, Counter};
use crate::crc64::Crc64;
use crate::digest::canonical_integer;
use crate::distinct::{Distinct, Found, Spill};
use crate::error::{Defect, Error, ErrorKind, KeyHint, Step, Stop, malformed};
use crate::event::{KeyStart, KeySummary, Sink};
use crate::function::FunctionSummary;
use crate::module::{self, Module, ModuleSummary};
use crate::object::Object;
use crate::opcode::{self, Family};
use crate::reader::{Progress, Reader, progress};
use crate::report::{
    AUX_BYTES_MAX, AUX_FIELDS_MAX, Checksum, Distinctness, FUNCTION_BYTES_MAX, FUNCTIONS_MAX, KEY_BYTES_MAX,
    Report, SLOT_IMPORTS_MAX, SlotImport, WARNINGS_MAX, Warning,
};
use crate::skim::{self, Skimmed};
use crate::slot::SLOTS;
use crate::source::Source;

/// The first version with a checksum at the end.
const VERSION_WITH_CHECKSUM: u32 = 5;
const HINT_BYTES: usize = 48;
/// A database may be announced with so many keys, or with four times those it has, before that is odd.
const SIZE_HINT_FREE: u64 = 1024 * 1024;

#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum State {
    Header,
    Opcode,
    AuxName,
    AuxValue,
    Function,
    /// The parts of a library as a pre-release stored it, before its code.
    OldFunction(OldFunction),
    ModuleAux,
    SlotJob,
    SlotRanges,
    SlotRange {
        left: u64,
    },
    Key,
    Value,
    Checksum,
    Done,
}

/// A part of a library as a pre-release of Redis 7.0 stored it.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum OldFunction {
    Name,
    Engine,
    IsDescribed,
    Description,
}

/// What precedes a key and belongs to it.
#[derive(Default)]
pub(crate) struct Entry {
    /// An opcode of the entry has been seen.
    started: bool,
    pub(crate) start: u64,
    expire_at_ms: Option<i64>,
    type_code: u8,
    key_bytes: u64,
    key_hash: u128,
}

pub(crate) struct Parser {
    /// Absolute offset of the first byte of the buffer that is run over next.
    pub(crate) base: u64,
    pub(crate) state: State,
    crc: Crc64,
    family: Family,
    version: u32,
    pub(crate) accepts_trailing_bytes: bool,
    /// Somebody else computes the checksum.
    is_of_a_part: bool,
    trailing_bytes: u64,
    checksum: Checksum,
    source: Source,
    object: Object,
    pub(crate) entry: Entry,
    key: Vec<u8>,
    pub(crate) keys: u64,
    /// An AUX name or value, or the code of a function library.
    text: Vec<u8>,
    aux_name: Vec<u8>,
    aux: Vec<(Vec<u8>, Vec<u8>)>,
    functions: Vec<FunctionSummary>,
    /// The first line of a library that was stored without it.
    function_head: Vec<u8>,
    module: Module,
    modules: Vec<(u64, ModuleSummary)>,
    slot_infos: u64,
    slot_imports: Vec<SlotImport>,
    size_hint: SizeHint,
    excessive_hint: Option<u64>,
    pub(crate) distinct: Distinct,
    /// A key that occurs twice, as an error with its own place.
    duplicate: Option<Error>,
    warnings: Vec<Warning>,
    warning_count: u64,
    counter: Counter,
}

/// Where entries of a file are that are read apart from the rest.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    base: u64,
    family: Family,
    db: u32,
    written_ms: Option<i64>,
    compares_keys: bool,
}

/// The size that the current database was announced with.
#[derive(Default)]
struct SizeHint {
    keys: u64,
    at: u64,
    /// Keys of the file before it.
    keys_before: u64,
}

impl Parser {
    pub(crate) fn new() -> Self {
        Self {
            base: 0,
            state: State::Header,
            crc: Crc64::new(),
            family: Family::Redis,
            version: 0,
            accepts_trailing_bytes: false,
            is_of_a_part: false,
            trailing_bytes: 0,
            checksum: Checksum::Disabled,
            source: Source::new(),
            object: Object::new(),
            entry: Entry::default(),
            key: Vec::new(),
            keys: 0,
            text: Vec::new(),
            aux_name: Vec::new(),
            aux: Vec::new(),
            functions: Vec::new(),
            function_head: Vec::new(),
            module: Module::default(),
            modules: Vec::new(),
            slot_infos: 0,
            slot_imports: Vec::new(),
            size_hint: SizeHint::default(),
            excessive_hint: None,
            distinct: Distinct::new(None),
            duplicate: None,
            warnings: Vec::new(),
            warning_count: 0,
            counter: Counter::default(),
        }
    }

    /// Where members that memory does not hold are kept.
    pub(crate) fn keep_members_in(&mut self, spill: Box<dyn Spill + Send>) {
        self.object.keep_members_in(spill);
    }

    pub(crate) fn buffered_bytes(&self) -> usize {
        self.source.buffered_bytes() + self.key.len() + self.text.len() + self.aux_name.len()
    }

    fn hint(&self) -> KeyHint {
        KeyHint {
            hash: self.entry.key_hash as u64,
            prefix: String::from_utf8_lossy(&self.key[..self.key.len().min(HINT_BYTES)]).into_owned(),
        }
    }

    #[cold]
    fn warn(&mut self, offset: u64, what: &'static str, key: Option<KeyHint>) {
        self.warning_count += 1;
        if self.warnings.len() < WARNINGS_MAX {
            let db = self.counter.db();
            self.warnings.push(Warning {
                offset,
                db,
                key,
                what,
            });
        }
    }

    /// What the search for duplicate keys found, or why it ended.
    #[cold]
    fn found(&self, found: Found) -> Error {
        match found {
            Found::Twice(twice) => Error {
                offset: twice.second,
                kind: ErrorKind::DuplicateKey { first: twice.first },
                db: twice.db,
                key: (twice.second == self.entry.start).then(|| self.hint()),
                type_code: None,
            },
            Found::Failed(error) => {
                let reason = error.to_string();
                self.error(self.base, ErrorKind::Spill { reason })
            }
        }
    }

    /// Who wrote the file, if it tells by fields that only they write.
    fn vendor(&self) -> Option<&'static str> {
        self.aux.iter().find_map(|(name, value)| match &name[..] {
            [b'b', b'i', b'g', b'-', ..] | [b'b', b'i', b'g', b'd', b'b', b'-', ..] => {
                Some("Redis Enterprise")
            }
            b"mvcc-tstamp" => Some("KeyDB"),
            b"redis-ver" if value.starts_with(b"df-") => Some("Dragonfly"),
            _ => None,
        })
    }

    #[cold]
    pub(crate) fn error(&self, offset: u64, mut kind: ErrorKind) -> Error {
        if let ErrorKind::UnknownType { vendor, .. } | ErrorKind::UnknownOpcode { vendor, .. } = &mut kind {
            *vendor = self.vendor();
        }
        let in_value = self.state == State::Value;
        let key = in_value.then(|| self.hint());
        let type_code = (in_value || self.state == State::Key).then_some(self.entry.type_code);
        Error {
            offset,
            kind,
            db: self.counter.db(),
            key,
            type_code,
        }
    }

    /// Parses what can be parsed of a buffer. It starts with the first byte that is not in the checksum yet.
    pub(crate) fn run<S: Sink>(&mut self, bytes: &[u8], sink: &mut S) -> Result<Progress, Error> {
        self.run_while(bytes, sink, |_, _| true)
    }

    /// As [`run`](Self::run), as long as `goes_on` wants it after a step; it is told the offset that was reached.
    #[inline]
    pub(crate) fn run_while<S: Sink>(
        &mut self,
        bytes: &[u8],
        sink: &mut S,
        goes_on: impl Fn(&Self, u64) -> bool,
    ) -> Result<Progress, Error> {
        let mut r = Reader::new(bytes);
        let stop = loop {
            match self.step(&mut r, sink) {
                Ok(()) => {
                    r.commit();
                    if !goes_on(self, self.base + r.pos() as u64) {
                        break r.need(1);
                    }
                }
                Err(stop) => break stop,
            }
        };
        if let Some(error) = self.duplicate.take() {
            return Err(error);
        }
        let done = match progress(&r, stop) {
            Ok(done) => done,
            Err(defect) => return Err(self.error(self.base + r.pos() as u64, *defect)),
        };
        if !self.is_of_a_part && !matches!(self.state, State::Checksum | State::Done) {
            self.crc.update(&bytes[..done.consumed]);
        }
        self.base += done.consumed as u64;
        Ok(done)
    }

    /// Whether the next byte may begin an entry, and none has begun.
    #[inline]
    pub(crate) fn is_between_entries(&self) -> bool {
        self.state == State::Opcode && !self.entry.started
    }

    /// The entries that `bytes` begins with, told apart without being read: how many they are, and where the last one
    /// ends. Where that is the first byte, this parser has to read on itself.
    pub(crate) fn skim(&self, bytes: &[u8]) -> Skimmed {
        match self.is_between_entries() {
            true => skim::entries(self.family, bytes),
            false => Skimmed::default(),
        }
    }

    /// Passes over entries that somebody else reads.
    pub(crate) fn pass_over(&mut self, bytes: &[u8], keys: u64) {
        self.crc.update(bytes);
        self.base += bytes.len() as u64;
        self.keys += keys;
    }

    /// A parser of a file that was validated before: it compares no keys and computes no checksum.
    pub(crate) fn of_entries() -> Self {
        let mut parser = Self {
            is_of_a_part: true,
            accepts_trailing_bytes: true,
            ..Self::new()
        };
        parser.distinct.set_wanted(false);
        parser
    }

    /// Goes on at the first opcode of an entry.
    pub(crate) fn go_to(&mut self, family: Family, version: u32, offset: u64, db: u32) -> Result<(), Error> {
        (self.state, self.base) = (State::Opcode, offset);
        (self.family, self.version) = (family, version);
        self.counter
            .select(db)
            .map_err(|defect| self.error(offset, *defect))
    }

    #[inline]
    pub(crate) fn family_and_db(&self) -> (Family, u32) {
        (self.family, self.counter.db())
    }

    /// Passes over an entry of a file that was validated before.
    #[inline]
    pub(crate) fn step_over(&mut self, bytes: usize) {
        self.base += bytes as u64;
        self.keys += 1;
    }

    /// Where the entries are that come next.
    pub(crate) fn place(&self) -> Place {
        Place {
            base: self.base,
            family: self.family,
            db: self.counter.db(),
            written_ms: self.counter.written_ms,
            compares_keys: self.distinct.is_exact(),
        }
    }

    /// A parser of parts of the file that this one passes over.
    pub(crate) fn for_parts(&self) -> Self {
        Self {
            distinct: self.distinct.gatherer(),
            is_of_a_part: true,
            ..Self::new()
        }
    }

    /// Reads a part; `false` where it is not exactly so many entries.
    pub(crate) fn read_part<S: Sink>(
        &mut self,
        place: &Place,
        bytes: &[u8],
        keys: u64,
        sink: &mut S,
    ) -> Result<bool, Error> {
        self.state = State::Opcode;
        (self.base, self.family) = (place.base, place.family);
        if self.counter.db() != place.db {
            self.counter
                .select(place.db)
                .map_err(|defect| self.error(place.base, *defect))?;
        }
        self.counter.written_ms = place.written_ms;
        self.distinct.set_wanted(place.compares_keys);
        let before = self.keys;
        let done = self.run(bytes, sink)?;
        Ok(done.consumed == bytes.len() && self.is_between_entries() && self.keys - before == keys)
    }

    /// Adds what a parser of parts has found, all but the keys that it gathered. `false`: it has warnings, whose order among
    /// those of others is not known.
    pub(crate) fn absorb(report: &mut Report, part: Self) -> bool {
        report.census.absorb(&part.counter.finish());
        if !part.object.is_exact() {
            report.distinctness = Distinctness::FirstKeysOnly;
        }
        part.warning_count == 0
    }

    /// What the whole file held.
    pub(crate) fn into_report(mut self) -> Result<Report, Error> {
        if let Err(found) = self.distinct.finish() {
            return Err(self.found(found));
        }
        Ok(Report {
            magic: self.family.magic().to_owned(),
            family: self.family,
            rdb_version: self.version,
            aux: self.aux,
            census: self.counter.finish(),
            functions: self.functions,
            modules: self.modules.into_iter().map(|(_, module)| module).collect(),
            slot_infos: self.slot_infos,
            slot_imports: self.slot_imports,
            excessive_hint: self.excessive_hint,
            distinctness: if self.distinct.is_exact() && self.object.is_exact() {
                Distinctness::Proven
            } else {
                Distinctness::FirstKeysOnly
            },
            warnings: self.warnings,
            warning_count: self.warning_count,
            bytes: self.base - self.trailing_bytes,
            trailing_bytes: self.trailing_bytes,
            checksum: self.checksum,
        })
    }

    #[inline]
    fn step<S: Sink>(&mut self, r: &mut Reader<'_>, sink: &mut S) -> Step<()> {
        match self.state {
            State::Opcode => self.opcode(r),
            State::Key => {
                let bytes = self.source.bytes(r, &mut self.key, KEY_BYTES_MAX)?;
                self.entry.key_bytes = bytes;
                self.entry.key_hash = self.source.hash();
                let hash = (bytes > KEY_BYTES_MAX as u64).then_some(self.entry.key_hash);
                self.state = State::Value;
                let (db, offset) = (self.counter.db(), self.entry.start);
                if let Err(found) = self.distinct.insert(db, &self.key, hash, offset) {
                    return Err(self.stop_at_key(found));
                }
                if S::VALUES {
                    sink.begin(&KeyStart {
                        db,
                        key: &self.key,
                        kind: self.object.kind(),
                        type_code: self.entry.type_code,
                        expire_at_ms: self.entry.expire_at_ms,
                    });
                }
                Ok(())
            }
            State::Value => self.value(r, sink),
            State::Header => self.header(r),
            State::AuxName => {
                self.source.bytes(r, &mut self.aux_name, AUX_BYTES_MAX)?;
                self.state = State::AuxValue;
                Ok(())
            }
            State::AuxValue => {
                self.source.bytes(r, &mut self.text, AUX_BYTES_MAX)?;
                self.aux();
                self.state = State::Opcode;
                Ok(())
            }
            State::Function => self.function(r, sink),
            State::OldFunction(part) => self.old_function(r, part),
            State::ModuleAux => {
                self.module.run(r, &mut self.source)?;
                module::note(&mut self.modules, self.module.id(), |module| &mut module.aux)?;
                self.state = State::Opcode;
                Ok(())
            }
            State::SlotJob | State::SlotRanges | State::SlotRange { .. } => self.slot_import(r),
            State::Checksum => self.checksum(r),
            State::Done => match r.rest() {
                [] => Err(r.need(1)),
                rest if self.accepts_trailing_bytes => {
                    self.trailing_bytes += rest.len() as u64;
                    r.advance(rest.len());
                    Ok(())
                }
                _ => Err(ErrorKind::TrailingBytes.into()),
            },
        }
    }

    fn header(&mut self, r: &mut Reader<'_>) -> Step<()> {
        let header: [u8; 9] = r.array()?;
        let (family, digits) = match &header {
            [b'R', b'E', b'D', b'I', b'S', digits @ ..] => (Family::Redis, &digits[..]),
            [b'V', b'A', b'L', b'K', b'E', b'Y', digits @ ..] => (Family::Valkey, &digits[..]),
            _ => return Err(refuse(r, ErrorKind::BadMagic.into())),
        };
        if !digits.iter().all(u8::is_ascii_digit) {
            return Err(refuse(r, ErrorKind::BadMagic.into()));
        }
        let version = digits
            .iter()
            .fold(0, |version, digit| version * 10 + u32::from(digit - b'0'));
        if !family.reads(version) {
            return Err(refuse(
                r,
                ErrorKind::UnsupportedVersion { family, version }.into(),
            ));
        }
        self.family = family;
        self.version = version;
        self.state = State::Opcode;
        Ok(())
    }

    #[inline]
    fn opcode(&mut self, r: &mut Reader<'_>) -> Step<()> {
        let at = self.base + r.pos() as u64;
        let code = r.byte()?;
        if code < opcode::SLOT_IMPORT {
            self.object
                .begin(self.family, code)
                .map_err(|defect| refuse(r, defect))?;
            self.start_entry(at);
            self.entry.type_code = code;
            self.state = State::Key;
            return Ok(());
        }
        match code {
            opcode::EXPIRETIME_MS => {
                let at_ms = i64::from_le_bytes(r.array()?);
                self.start_entry(at);
                self.entry.expire_at_ms = Some(at_ms);
                return Ok(());
            }
            opcode::EXPIRETIME => {
                let seconds = i32::from_le_bytes(r.array()?);
                self.start_entry(at);
                self.entry.expire_at_ms = Some(i64::from(seconds) * 1000);
                return Ok(());
            }
            opcode::IDLE => {
                r.length()?;
                self.start_entry(at);
                return Ok(());
            }
            opcode::FREQ => {
                r.byte()?;
                self.start_entry(at);
                return Ok(());
            }
            // KeyDB keeps what it knows of a key in fields between its expiry and its type.
            opcode::AUX => {
                self.state = State::AuxName;
                return Ok(());
            }
            _ if self.entry.started => {
                return Err(refuse(
                    r,
                    malformed("expiry, idle time or frequency without a key"),
                ));
            }
            opcode::SELECTDB => {
                let db = u32::try_from(r.length()?)
                    .ok()
                    .filter(|db| *db <= i32::MAX.cast_unsigned());
                let db = db.ok_or_else(|| malformed("database number out of range"))?;
                self.judge_size_hint();
                self.counter.select(db)?;
            }
            opcode::RESIZEDB => {
                let (keys, expires) = (r.length()?, r.length()?);
                self.judge_size_hint();
                self.size_hint = SizeHint {
                    keys: keys.max(expires),
                    at,
                    keys_before: self.keys,
                };
            }
            opcode::SLOT_INFO => {
                let slot = r.length()?;
                r.length()?;
                r.length()?;
                if slot >= SLOTS {
                    return Err(malformed("slot number out of range").into());
                }
                self.slot_infos += 1;
            }
            opcode::SLOT_IMPORT if self.family == Family::Valkey => self.state = State::SlotJob,
            opcode::SLOT_IMPORT => return Err(refuse(r, Box::new(opcode::refusal(self.family, code)))),
            opcode::FUNCTION2 => self.state = State::Function,
            opcode::FUNCTION_PRE_GA => self.state = State::OldFunction(OldFunction::Name),
            opcode::MODULE_AUX => {
                self.module.begin_aux();
                self.state = State::ModuleAux;
            }
            _ => {
                debug_assert_eq!(code, opcode::EOF);
                self.judge_size_hint();
                self.crc.update(r.seen());
                self.state = if self.version < VERSION_WITH_CHECKSUM {
                    State::Done
                } else {
                    State::Checksum
                };
            }
        }
        Ok(())
    }

    /// Compares what the database was announced with to the keys it turned out to have.
    fn judge_size_hint(&mut self) {
        let hint = std::mem::take(&mut self.size_hint);
        let keys = self.keys - hint.keys_before.min(self.keys);
        if hint.keys > SIZE_HINT_FREE.max(keys.saturating_mul(4)) {
            self.excessive_hint = self.excessive_hint.max(Some(hint.keys));
            self.warn(hint.at, "database announced with far more keys than it has", None);
        }
    }

    /// Reads on in the slots that a node was being given.
    fn slot_import(&mut self, r: &mut Reader<'_>) -> Step<()> {
        self.state = match self.state {
            State::SlotJob => {
                self.source.bytes(r, &mut self.text, AUX_BYTES_MAX)?;
                if self.slot_imports.len() >= SLOT_IMPORTS_MAX {
                    let limit = SLOT_IMPORTS_MAX as u64;
                    return Err(ErrorKind::LimitExceeded {
                        what: "slot imports",
                        limit,
                    }
                    .into());
                }
                self.slot_imports.push(SlotImport {
                    job: String::from_utf8_lossy(&self.text).into_owned(),
                    slots: 0,
                });
                State::SlotRanges
            }
            State::SlotRange { left } if left > 0 => {
                let (first, last) = (r.length()?, r.length()?);
                if first > last || last >= SLOTS {
                    return Err(malformed("range of slots out of range").into());
                }
                if let Some(import) = self.slot_imports.last_mut() {
                    import.slots += last - first + 1;
                }
                State::SlotRange { left: left - 1 }
            }
            State::SlotRanges => State::SlotRange { left: r.length()? },
            _ => State::Opcode,
        };
        Ok(())
    }

    /// Reads a part of a library that stands before its code.
    fn old_function(&mut self, r: &mut Reader<'_>, part: OldFunction) -> Step<()> {
        let next = match part {
            OldFunction::IsDescribed => match r.length()? {
                0 => State::Function,
                _ => State::OldFunction(OldFunction::Description),
            },
            _ => {
                self.source.bytes(r, &mut self.text, AUX_BYTES_MAX)?;
                match part {
                    OldFunction::Name => {
                        self.aux_name.clone_from(&self.text);
                        State::OldFunction(OldFunction::Engine)
                    }
                    OldFunction::Engine => {
                        self.function_head =
                            [b"#!", &self.text[..], b" name=", &self.aux_name, b"\n"].concat();
                        State::OldFunction(OldFunction::IsDescribed)
                    }
                    _ => State::Function,
                }
            }
        };
        self.state = next;
        Ok(())
    }

    #[cold]
    fn stop_at_key(&mut self, found: Found) -> Stop {
        self.duplicate = Some(self.found(found));
        // The error that is kept says it better.
        ErrorKind::Duplicate { what: "key" }.into()
    }

    #[inline]
    fn start_entry(&mut self, at: u64) {
        if !self.entry.started {
            self.entry.started = true;
            self.entry.start = at;
            self.entry.expire_at_ms = None;
        }
    }

    #[inline]
    fn value<S: Sink>(&mut self, r: &mut Reader<'_>, sink: &mut S) -> Step<()> {
        self.object.run(r, &mut self.source, sink)?;
        if self.object.value().is_special() {
            self.note()?;
        }
        let value = self.object.value();
        let entry = &mut self.entry;
        entry.started = false;
        let bytes = self.base + r.pos() as u64 - entry.start;
        self.keys += 1;
        self.counter.add(&Counted {
            kind: value.kind,
            elements: value.elements,
            expiring: value.expiring,
            bytes,
            key_hash: entry.key_hash,
            value: value.digest,
            expire_at_ms: entry.expire_at_ms,
        });
        sink.key(&KeySummary {
            db: self.counter.db(),
            key: &self.key,
            key_hash: entry.key_hash,
            key_bytes: entry.key_bytes,
            kind: value.kind,
            type_code: entry.type_code,
            expire_at_ms: entry.expire_at_ms,
            elements: value.elements,
            expiring_elements: value.expiring,
            bytes,
            value_digest: value.digest.to_be_bytes(),
            offset: entry.start,
        });
        self.state = State::Opcode;
        Ok(())
    }

    /// Notes what is special about a value.
    #[cold]
    fn note(&mut self) -> Result<(), Defect> {
        let value = *self.object.value();
        if let Some(what) = value.oddity {
            self.warn(self.entry.start, what, Some(self.hint()));
        }
        match value.module {
            Some(id) => module::note(&mut self.modules, id, |module| &mut module.values),
            None => Ok(()),
        }
    }

    fn aux(&mut self) {
        if self.aux_name == b"ctime" {
            let seconds = canonical_integer(&self.text);
            self.counter.written_ms = seconds.and_then(|seconds| seconds.checked_mul(1000));
        }
        let value = std::mem::take(&mut self.text);
        if self.aux.len() < AUX_FIELDS_MAX {
            self.aux.push((std::mem::take(&mut self.aux_name), value));
        }
    }

    fn function<S: Sink>(&mut self, r: &mut Reader<'_>, sink: &mut S) -> Step<()> {
        let bytes = self.source.bytes(r, &mut self.text, FUNCTION_BYTES_MAX)?;
        if bytes > FUNCTION_BYTES_MAX as u64 {
            let limit = FUNCTION_BYTES_MAX as u64;
            return Err(ErrorKind::LimitExceeded {
                what: "bytes of a function library",
                limit,
            }
            .into());
        }
        if self.functions.len() >= FUNCTIONS_MAX {
            let limit = FUNCTIONS_MAX as u64;
            return Err(ErrorKind::LimitExceeded {
                what: "function libraries",
                limit,
            }
            .into());
        }
        let mut code = std::mem::take(&mut self.text);
        if !self.function_head.is_empty() {
            let mut head = std::mem::take(&mut self.function_head);
            head.append(&mut code);
            code = head;
        }
        self.functions.push(FunctionSummary::of(&code));
        sink.function(&code);
        self.state = State::Opcode;
        Ok(())
    }

    fn checksum(&mut self, r: &mut Reader<'_>) -> Step<()> {
        let stored = u64::from_le_bytes(r.array()?);
        let computed = self.crc.value();
        self.checksum = match stored {
            0 => Checksum::Disabled,
            // Somebody else has compared it.
            _ if self.is_of_a_part => Checksum::Verified(stored),
            _ if stored == computed => Checksum::Verified(stored),
            _ => return Err(ErrorKind::ChecksumMismatch { stored, computed }.into()),
        };
        self.state = State::Done;
        Ok(())
    }
}

/// A stop at the opcode itself, not after it.
#[cold]
fn refuse(r: &mut Reader<'_>, defect: Defect) -> Stop {
    r.rewind();
    Stop::Fail(defect)
}
