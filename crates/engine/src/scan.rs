//! A source that hides `PSYNC`, read key by key: `SCAN` names the keys, `DUMP` gives each with its value as in an RDB file, and what
//! comes of it is an RDB file. It is of no single moment: a key that is written meanwhile is there as before or as after, each on
//! its own, and one that comes meanwhile may be missing.
//!
//! Only keys are read: functions, users and scripts are not.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rdb::{DumpValidator, Family};

use crate::control::Control;
use crate::discover::field;
use crate::duplicate::{invalid, nameless};
use crate::error::{Error, Kind};
use crate::node::{Bounds, Endpoint, Node, Reply};

/// Keys that the source is asked to look at for one answer of `SCAN`.
const KEYS_PER_SCAN: &str = "500";
/// Answers that are on their way at once have so many bytes at most, where keys are no larger than the largest of the last ones.
const BYTES_ON_THE_WAY: u64 = 1024 * 1024;
/// And so many keys are on their way at most.
const KEYS_ON_THE_WAY: usize = 64;
/// Bytes of a value that are taken over at once.
const PIECE_BYTES: usize = 256 * 1024;
/// Behind the value in each payload: a version (u16) and a CRC64. Source: the engines' `src/cluster.c`, `createDumpPayload`.
const FOOTER_BYTES: u64 = 10;
/// Bytes that stand for a key among those already named.
const PRINT_BYTES: usize = 16;
/// What a name costs at least, in a table that is half full.
const BYTES_PER_NAME: u64 = 2 * PRINT_BYTES as u64;
/// What a source may answer in one reply that is no value: the names of so many keys.
const REPLY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// A source must have answered all that is asked before the first key by then.
const BEGINS_WITHIN: Duration = Duration::from_secs(60);
/// And what is read at once later: the names of some keys, or a piece of a value. Between two of these the operation is asked
/// whether it is still wanted.
const STEP_WITHIN: Duration = Duration::from_secs(60);

/// The keys of a node as the bytes of an RDB file. Connects with the first read.
pub struct KeyByKey<'a> {
    source: Endpoint,
    spill_dir: PathBuf,
    control: &'a Control,
    state: State,
    /// More bytes than these are not taken; 0 for no limit.
    bytes_max: u64,
    bytes: u64,
    /// Bytes of which `taken` have been read.
    ready: Vec<u8>,
    taken: usize,
}

enum State {
    NotBegun,
    Reading(Box<Reading>),
    Ended,
}

/// What is known while it reads.
struct Reading {
    node: Node,
    /// Databases with keys that come after this one, the next one last.
    dbs: Vec<u32>,
    /// The database that is read, and the cursor in it; `None`: the next one has not been begun.
    at: Option<(u32, String)>,
    /// Keys that `SCAN` has named and nobody has asked for, and those that have been asked for, the next one last.
    named: Vec<Vec<u8>>,
    asked: Vec<Vec<u8>>,
    seen: Seen,
    /// What all names have cost: those of keys that are gone when they are asked for are in no value.
    bytes_of_names: u64,
    /// The clock of the source when the keys were asked for that are on their way.
    now_ms: i64,
    /// The RDB version of all payloads.
    version: u32,
    is_db_told: bool,
    value: Option<Value>,
    /// Bytes of the largest payload among the keys that were last asked for together.
    largest: u64,
    /// How many keys were asked for together.
    depth: usize,
}

/// A value that is being read.
struct Value {
    validator: DumpValidator,
    /// Bytes of the payload that have not come yet, its footer among them.
    left: u64,
}

impl<'a> KeyByKey<'a> {
    /// Of this node, so many bytes at most (0 for no limit); what must be remembered of keys lies in a file without a name in
    /// `spill_dir`.
    pub fn new(source: Endpoint, spill_dir: &Path, bytes_max: u64, control: &'a Control) -> Self {
        Self {
            bytes_max,
            bytes: 0,
            source,
            spill_dir: spill_dir.to_owned(),
            control,
            state: State::NotBegun,
            ready: Vec::new(),
            taken: 0,
        }
    }

    fn begin(&mut self) -> Result<Reading, Error> {
        let bounds = Bounds {
            reply_bytes_max: REPLY_BYTES_MAX,
            until: Instant::now().checked_add(BEGINS_WITHIN),
        };
        let mut node = Node::connect_within(&self.source, bounds)?;
        let version = version_of_payloads(&mut node)?;
        let keyspace = node.info("keyspace")?;
        let mut dbs: Vec<u32> = keyspace
            .iter()
            .filter_map(|(name, _)| name.strip_prefix("db")?.parse().ok())
            .collect();
        dbs.sort_unstable_by(|a, b| b.cmp(a));
        let magic = Family::of_version(version).magic();
        let width = HEADER_BYTES - magic.len();
        self.ready
            .extend_from_slice(format!("{magic}{version:0width$}").as_bytes());
        Ok(Reading {
            node,
            dbs,
            at: None,
            named: Vec::new(),
            asked: Vec::new(),
            seen: Seen::create(&self.spill_dir)?,
            bytes_of_names: 0,
            now_ms: 0,
            version,
            is_db_told: false,
            value: None,
            largest: BYTES_ON_THE_WAY,
            depth: 1,
        })
    }

    /// Makes more bytes ready; `false` at the end.
    fn go_on(&mut self) -> Result<bool, Error> {
        self.control.check("read keys")?;
        self.ready.clear();
        self.taken = 0;
        match &mut self.state {
            State::NotBegun => {
                let reading = self.begin()?;
                self.state = State::Reading(Box::new(reading));
                Ok(true)
            }
            State::Reading(reading) => {
                let goes_on = reading.step(&mut self.ready)?;
                self.bytes += self.ready.len() as u64;
                // In the memory of an engine each key takes more than what is kept of its name here.
                let taken = self.bytes.saturating_add(reading.bytes_of_names);
                if self.bytes_max > 0 && taken > self.bytes_max {
                    let context = format!(
                        "its keys have more than {} MB, which is more than the server says that its data takes",
                        self.bytes_max >> 20
                    );
                    return Err(Error::new(Kind::Protocol, "read keys", context));
                }
                if !goes_on {
                    // Its checksum is left out, as engines do that are told so.
                    self.ready.push(0xff);
                    self.ready.extend_from_slice(&[0; 8]);
                    self.state = State::Ended;
                }
                Ok(true)
            }
            State::Ended => Ok(false),
        }
    }
}

impl Read for KeyByKey<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.taken == self.ready.len() {
            if !self.go_on().map_err(io::Error::other)? {
                return Ok(0);
            }
        }
        let count = into.len().min(self.ready.len() - self.taken);
        into[..count].copy_from_slice(&self.ready[self.taken..self.taken + count]);
        self.taken += count;
        Ok(count)
    }
}

impl Reading {
    /// Some bytes or keys more; `false` where there are none.
    fn step(&mut self, ready: &mut Vec<u8>) -> Result<bool, Error> {
        // A source that drips is never silent.
        self.node.bound(Instant::now().checked_add(STEP_WITHIN));
        if self.value.is_some() {
            return self.read_piece(ready).map(|()| true);
        }
        if let Some(key) = self.asked.pop() {
            return self.begin_key(&key, ready).map(|()| true);
        }
        if !self.named.is_empty() {
            return self.ask_for_keys().map(|()| true);
        }
        match self.at.take() {
            Some((_, cursor)) if cursor == "0" => {}
            Some((db, cursor)) => self.scan(db, &cursor)?,
            None => {
                let Some(db) = self.dbs.pop() else {
                    return Ok(false);
                };
                if db > 0 {
                    self.node.run(&["SELECT", &db.to_string()])?;
                }
                self.seen.clear()?;
                self.is_db_told = false;
                self.scan(db, "0")?;
            }
        }
        Ok(true)
    }

    fn scan(&mut self, db: u32, cursor: &str) -> Result<(), Error> {
        let reply = self.node.run(&["SCAN", cursor, "COUNT", KEYS_PER_SCAN])?;
        let Reply::Array(parts) = reply else {
            return Err(odd("SCAN"));
        };
        let [cursor, Reply::Array(keys)] = parts.as_slice() else {
            return Err(odd("SCAN"));
        };
        for key in keys {
            let Reply::Bulk(Some(key)) = key else {
                return Err(odd("SCAN"));
            };
            // It may name a key again.
            if self.seen.is_new(key)? {
                self.named.push(key.clone());
                self.bytes_of_names += BYTES_PER_NAME;
            }
        }
        self.at = Some((db, cursor.text().ok_or_else(|| odd("SCAN"))?));
        Ok(())
    }

    /// Asks for as many keys at once as the last ones let expect that their answers fit.
    fn ask_for_keys(&mut self) -> Result<(), Error> {
        let last = std::mem::take(&mut self.largest).max(1);
        let depth = usize::try_from(BYTES_ON_THE_WAY / last).unwrap_or(KEYS_ON_THE_WAY);
        // Larger ones may follow small ones: so it grows step by step.
        self.depth = depth.clamp(1, KEYS_ON_THE_WAY.min(2 * self.depth));
        self.asked = self.named.split_off(self.named.len().saturating_sub(self.depth));
        self.node.send(&[b"TIME"])?;
        for key in self.asked.iter().rev() {
            // The time to live first, for that is where a file has it.
            self.node.send(&[b"PTTL", key])?;
            self.node.send(&[b"DUMP", key])?;
        }
        let time = self.node.reply()?;
        let Reply::Array(parts) = &time else {
            return Err(self.refused(&time, "TIME"));
        };
        let number = |at: usize| -> Option<i64> { parts.get(at)?.text()?.parse().ok() };
        let (Some(seconds), Some(micros)) = (number(0), number(1)) else {
            return Err(odd("TIME"));
        };
        self.now_ms = seconds.saturating_mul(1000).saturating_add(micros / 1000);
        Ok(())
    }

    fn begin_key(&mut self, key: &[u8], ready: &mut Vec<u8>) -> Result<(), Error> {
        let ttl = self.node.reply()?;
        let ttl_ms = ttl.int().ok_or_else(|| self.refused(&ttl, "PTTL"))?;
        let bytes = match self.node.bulk_header()? {
            Ok(bytes) => bytes,
            Err(other) => return Err(self.refused(&other, "DUMP")),
        };
        // Gone since SCAN named it. One that went after its time to live was told, and came back, has none.
        let Some(bytes) = bytes else {
            return Ok(());
        };
        if bytes <= FOOTER_BYTES + 1 {
            return Err(odd("DUMP"));
        }
        self.largest = self.largest.max(bytes);
        if let Some((db, _)) = &self.at
            && !self.is_db_told
        {
            write_db(*db, ready);
            self.is_db_told = true;
        }
        if ttl_ms >= 0 {
            ready.push(0xfc);
            ready.extend_from_slice(&self.now_ms.saturating_add(ttl_ms).to_le_bytes());
        }
        let mut validator = DumpValidator::new(bytes, Family::of_version(self.version));
        let mut kind = [0];
        self.node.read_exact(&mut kind)?;
        validator.feed(&kind).map_err(|e| invalid("read keys", &e))?;
        ready.extend_from_slice(&kind);
        write_length(key.len(), ready);
        ready.extend_from_slice(key);
        self.value = Some(Value {
            validator,
            left: bytes - 1,
        });
        Ok(())
    }

    fn read_piece(&mut self, ready: &mut Vec<u8>) -> Result<(), Error> {
        let Some(mut value) = self.value.take() else {
            return Ok(());
        };
        let body = value.left - FOOTER_BYTES;
        if body > 0 {
            let room = usize::try_from(body).unwrap_or(usize::MAX).min(PIECE_BYTES);
            let before = ready.len();
            ready.resize(before + room, 0);
            let count = self.node.read_some(&mut ready[before..])?;
            ready.truncate(before + count);
            value
                .validator
                .feed(&ready[before..])
                .map_err(|e| invalid("read keys", &e))?;
            value.left -= count as u64;
            self.value = Some(value);
            return Ok(());
        }
        // The footer, and the end of the line.
        let mut footer = [0; FOOTER_BYTES as usize + 2];
        self.node.read_exact(&mut footer)?;
        let footer = &footer[..FOOTER_BYTES as usize];
        value
            .validator
            .feed(footer)
            .map_err(|e| invalid("read keys", &e))?;
        let summary = value.validator.finish().map_err(|e| invalid("read keys", &e))?;
        match summary.rdb_version == self.version {
            true => Ok(()),
            false => {
                let context = format!(
                    "{} gives values of RDB version {}, where {} was expected",
                    self.node.label(),
                    summary.rdb_version,
                    self.version
                );
                Err(Error::new(Kind::Protocol, "read keys", context))
            }
        }
    }

    fn refused(&self, reply: &Reply, command: &'static str) -> Error {
        match reply {
            Reply::Error(text) => {
                let context = format!("{}: {command}: {text}", self.node.label());
                Error::new(Kind::Refused, "run command", context)
            }
            _ => odd(command),
        }
    }
}

fn odd(command: &'static str) -> Error {
    let context = format!("{command} is not answered as engines do");
    Error::new(Kind::Protocol, "read keys", context)
}

/// Bytes of an RDB's magic and version.
const HEADER_BYTES: usize = 9;

/// The RDB version of a node's payloads: that of a dump of its functions, which has no value but tells it; where there is
/// no such thing, what engines of its version write. Each payload is compared with it.
fn version_of_payloads(node: &mut Node) -> Result<u32, Error> {
    if let Reply::Bulk(Some(dump)) = node.ask(&[b"FUNCTION", b"DUMP"])?
        && let Some(footer) = dump.len().checked_sub(FOOTER_BYTES as usize)
    {
        return Ok(u32::from(u16::from_le_bytes([dump[footer], dump[footer + 1]])));
    }
    let server = node.info("server")?;
    let text = |name: &str| field(&server, name).map(str::to_owned);
    let is_valkey = text("valkey_version").is_some();
    let version = text("valkey_version")
        .or_else(|| text("redis_version"))
        .unwrap_or_default();
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let (major, minor) = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    Ok(match (is_valkey, major, minor) {
        (true, 9.., _) => rdb::VALKEY_VERSION,
        (true, ..) | (false, 7, 2) => 11,
        (false, 7, 0) => 10,
        (false, 5 | 6, _) => 9,
        (false, 4, _) => 8,
        _ => 12,
    })
}

/// Opcode SELECTDB. Source: the engines' `src/rdb.h`.
fn write_db(db: u32, ready: &mut Vec<u8>) {
    ready.push(0xfe);
    write_length(db as usize, ready);
}

/// A length as in RDB files. Source: the engines' `src/rdb.c`, `rdbSaveLen`.
fn write_length(length: usize, ready: &mut Vec<u8>) {
    match (u8::try_from(length), u16::try_from(length), u32::try_from(length)) {
        (Ok(short), _, _) if short < 64 => ready.push(short),
        (_, Ok(medium), _) if medium < 16384 => {
            ready.extend_from_slice(&(0x4000 | medium).to_be_bytes());
        }
        (_, _, Ok(long)) => {
            ready.push(0x80);
            ready.extend_from_slice(&long.to_be_bytes());
        }
        _ => {
            ready.push(0x81);
            ready.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
}

/// The keys of a database that have been named, in a file: 16 bytes of BLAKE3 for each, in a table at most half full.
struct Seen {
    file: File,
    directory: PathBuf,
    slots: u64,
    used: u64,
}

const SLOTS_AT_FIRST: u64 = 1 << 16;

impl Seen {
    fn create(directory: &Path) -> Result<Self, Error> {
        std::fs::create_dir_all(directory)
            .map_err(|e| Error::io(Kind::Io, "read keys", directory.display().to_string(), e))?;
        let mut seen = Self {
            file: nameless(directory)?,
            directory: directory.to_owned(),
            slots: 0,
            used: 0,
        };
        seen.clear()?;
        Ok(seen)
    }

    fn clear(&mut self) -> Result<(), Error> {
        (self.slots, self.used) = (SLOTS_AT_FIRST, 0);
        self.file
            .set_len(0)
            .and_then(|()| self.file.set_len(self.slots * PRINT_BYTES as u64))
            .map_err(failed)
    }

    /// Whether the key has not been named before; from now on it has.
    fn is_new(&mut self, key: &[u8]) -> Result<bool, Error> {
        let mut print = [0; PRINT_BYTES];
        print.copy_from_slice(&blake3::hash(key).as_bytes()[..PRINT_BYTES]);
        if self.used >= self.slots / 2 {
            self.grow()?;
        }
        let is_new = put(&self.file, self.slots, &print).map_err(failed)?;
        self.used += u64::from(is_new);
        Ok(is_new)
    }

    fn grow(&mut self) -> Result<(), Error> {
        let larger = nameless(&self.directory)?;
        let slots = self.slots * 4;
        larger.set_len(slots * PRINT_BYTES as u64).map_err(failed)?;
        let mut print = [0; PRINT_BYTES];
        for slot in 0..self.slots {
            self.file
                .read_exact_at(&mut print, slot * PRINT_BYTES as u64)
                .map_err(failed)?;
            if print != [0; PRINT_BYTES] {
                put(&larger, slots, &print).map_err(failed)?;
            }
        }
        (self.file, self.slots) = (larger, slots);
        Ok(())
    }
}

/// Puts it where it belongs; `false`: it is there already.
fn put(file: &File, slots: u64, print: &[u8; PRINT_BYTES]) -> io::Result<bool> {
    let mut first = [0; 8];
    first.copy_from_slice(&print[..8]);
    let mut slot = u64::from_le_bytes(first) & (slots - 1);
    let mut found = [0; PRINT_BYTES];
    loop {
        file.read_exact_at(&mut found, slot * PRINT_BYTES as u64)?;
        if found == *print {
            return Ok(false);
        }
        if found == [0; PRINT_BYTES] {
            file.write_all_at(print, slot * PRINT_BYTES as u64)?;
            return Ok(true);
        }
        slot = (slot + 1) & (slots - 1);
    }
}

fn failed(error: io::Error) -> Error {
    Error::io(Kind::Io, "read keys", "the file of keys that were read", error)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_new_once_however_many_there_are() {
        let directory = std::env::temp_dir();
        let mut seen = Seen::create(&directory).unwrap();
        let key = |number: u32| format!("key:{number}").into_bytes();
        for number in 0..100_000 {
            assert!(seen.is_new(&key(number)).unwrap(), "{number}");
        }
        for number in 0..100_000 {
            assert!(!seen.is_new(&key(number)).unwrap(), "{number}");
        }
        seen.clear().unwrap();
        assert!(seen.is_new(&key(7)).unwrap());
    }

    #[test]
    fn lengths_are_written_in_as_few_bytes_as_they_need() {
        for (length, bytes) in [
            (0, &[0][..]),
            (63, &[63]),
            (64, &[0x40, 64]),
            (16383, &[0x7f, 0xff]),
            (16384, &[0x80, 0, 0, 0x40, 0]),
        ] {
            let mut written = Vec::new();
            write_length(length, &mut written);
            assert_eq!(written, bytes, "{length}");
        }
    }
}
