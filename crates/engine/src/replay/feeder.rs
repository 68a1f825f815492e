//! Reads the backup and makes commands of it: decides about each key, and gives it to the connection of its node.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, atomic};
use std::time::{Duration, Instant};

use rdb::{Copied, Entries, KeySummary, Taker};

use super::account::{self, Account};
use super::input::Valid;
use super::journal::{Journal, State, Unfinished};
use super::lane::{
    APPLY, Batch, Bits, Command, Judgement, Lane, Shared, Verb, WRITE, judge, lock, wait_for_replica,
};
use super::ledger::{Chunk, Position};
use super::making::Feed;
use super::pace::Pace;
use super::shape::CLAIMED;
use super::target::{Nodes, SLOTS};
use super::words::push_command;
use super::{Conflict, DATABASE_0_ONLY, Form, Functions, Run};
use crate::error::{Error, Kind};
use crate::node::{Node, Reply};
use crate::selection::Candidate;

/// Values of more serialised bytes are sent by commands of many small steps: a payload of 4 MiB keeps a node's only thread busy
/// for some ten milliseconds, in which it serves nobody else. It is also what is held of one value in memory.
pub(super) const PAYLOAD_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes and keys after which a batch is sent.
const BATCH_BYTES: usize = 64 * 1024;
const BATCH_KEYS: usize = 2048;
/// Entries, bytes of them, and time after which a chunk ends: what is sent again after an interruption is a few of these.
const CHUNK_KEYS: u64 = 16 * 1024;
const CHUNK_BYTES: u64 = 4 * 1024 * 1024;
const CHUNK_TIME: Duration = Duration::from_millis(100);
/// Entries between two looks at the clock.
const CLOCK_KEYS: u64 = 256;
/// How often the journal is written.
const JOURNAL_TIME: Duration = Duration::from_millis(250);
/// Keys by which the journal says ahead how far may have been sent.
const AHEAD_KEYS: u64 = 64 * 1024;
/// Batches that wait for one connection; their bytes are bounded by what all have under way.
const QUEUE_BATCHES: usize = 1024;
/// How long a node may be silent while it takes a large value: half a gigabyte in one payload takes seconds.
const LARGE_SILENCE: Duration = Duration::from_secs(60);
/// A value is made by commands under a name that begins so, in the slot of its key, and then renamed: nobody sees half of it.
pub(super) const UNFINISHED: &str = "cachekeep:replay";

/// Code of all libraries together: it is held in memory, and sent as one payload.
const LIBRARIES_BYTES_MAX: usize = 4 * 1024 * 1024;
/// What a library begins with in a payload of `FUNCTION DUMP`, and its length as four bytes.
const LIBRARY: [u8; 2] = [245, 0x80];

/// The libraries of a file.
#[derive(Default)]
struct Libraries {
    codes: Vec<Vec<u8>>,
    bytes: usize,
    /// A key has come: libraries stand before all keys.
    is_over: bool,
}

impl Taker for Libraries {
    fn copied(&mut self, _: &Copied<'_>) {
        self.is_over = true;
    }

    fn read(&mut self, _: &KeySummary<'_>) {
        self.is_over = true;
    }

    fn function(&mut self, code: &[u8]) {
        self.bytes += code.len();
        if self.bytes <= LIBRARIES_BYTES_MAX {
            self.codes.push(code.to_vec());
        }
    }
}

impl Libraries {
    /// As `FUNCTION RESTORE` takes them.
    fn payload(&self, target: rdb::Target) -> Vec<u8> {
        let mut payload = Vec::with_capacity(self.bytes + 1024);
        for code in &self.codes {
            payload.extend_from_slice(&LIBRARY);
            // At most LIBRARIES_BYTES_MAX.
            payload.extend_from_slice(&(code.len() as u32).to_be_bytes());
            payload.extend_from_slice(code);
        }
        rdb::push_footer(&mut payload, 0, target);
        payload
    }
}

/// What is done with a key that is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pass {
    /// It is counted, and asked for where that decides.
    Judge { asks: bool },
    /// It is sent.
    Apply,
    /// Other keys of the target are removed.
    Remove,
}

impl Pass {
    /// Whether it changes anything in the target.
    pub(super) fn writes(self) -> bool {
        match self {
            Self::Judge { .. } => false,
            Self::Apply | Self::Remove => true,
        }
    }
}

/// What becomes of a key.
pub(super) enum Verdict<'k> {
    Skipped,
    Expired,
    Conflicting,
    Failed(&'static str),
    Taken {
        db: u32,
        name: Cow<'k, [u8]>,
        expire_at_ms: Option<i64>,
    },
}

/// A journal, and what it says.
pub(super) struct Written<'j> {
    pub(super) journal: &'j Journal,
    pub(super) state: &'j mut State,
    pub(super) at: Instant,
}

/// A connection of the feeder's own, and the database it is in.
pub(super) type Link = (Node, u32);

/// Starts a connection's thread.
pub(super) type Spawn<'f, 's, 'a> = &'f mut dyn FnMut(Lane<'s, 'a>, Receiver<(Batch, usize)>);

pub(super) struct Feeder<'f, 's, 'a> {
    pub(super) shared: &'s Shared<'a>,
    pub(super) pass: Pass,
    pub(super) judged_at_ms: i64,
    /// Which keys the target had before anything was written.
    pub(super) present: Option<&'a Bits>,
    pub(super) written: Option<Written<'f>>,
    pub(super) pace: &'s Pace,
    spawn: Spawn<'f, 's, 'a>,
    pub(super) nodes: Nodes,
    /// Of each node as many as it has connections.
    lanes: Vec<Option<SyncSender<(Batch, usize)>>>,
    building: Vec<Option<Batch>>,
    /// Nodes that have got something of this chunk.
    touched: Vec<bool>,
    turn: usize,
    chunk: Arc<Chunk>,
    pub(super) own: Account,
    chunk_bytes: u64,
    chunk_keys: u64,
    chunk_since: Instant,
    pub(super) position: Position,
    /// Bytes of the files before this one.
    bytes_before: u64,
    pub(super) links: HashMap<usize, Link>,
    /// What tells the unfinished values of this attempt from all others'.
    pub(super) mark: String,
    /// The value that is being made step by step, until it has its own name.
    pub(super) making: Option<Unfinished>,
    pub(super) failure: Option<Error>,
}

impl<'f, 's, 'a> Feeder<'f, 's, 'a> {
    pub(super) fn new(
        shared: &'s Shared<'a>,
        pass: Pass,
        judged_at_ms: i64,
        pace: &'s Pace,
        nodes: Nodes,
        spawn: Spawn<'f, 's, 'a>,
    ) -> Self {
        let (chunk, position) = {
            let mut ledger = lock(&shared.ledger);
            (ledger.open(), ledger.position)
        };
        let mut feeder = Self {
            shared,
            pass,
            judged_at_ms,
            present: None,
            written: None,
            pace,
            spawn,
            nodes,
            lanes: Vec::new(),
            building: Vec::new(),
            touched: Vec::new(),
            turn: 0,
            chunk,
            own: Account::default(),
            chunk_bytes: 0,
            chunk_keys: 0,
            chunk_since: Instant::now(),
            position,
            bytes_before: 0,
            links: HashMap::new(),
            mark: String::new(),
            making: None,
            failure: None,
        };
        feeder.make_room();
        feeder
    }

    /// As many places as there are nodes.
    fn make_room(&mut self) {
        let count = self.nodes.primaries.len();
        self.building.resize_with(count, || None);
        self.touched.resize(count, false);
        self.lanes
            .resize_with(count * self.shared.plan.connections, || None);
    }

    /// Feeds what of the backup comes from the position on, and waits for nothing.
    ///
    /// # Errors
    /// What cannot be read, a node that cannot be reached, or what stopped all.
    pub(super) fn feed(&mut self, files: &[Valid]) -> Result<(), Error> {
        let form = match self.shared.plan.form {
            Form::Payloads => self.shared.target.form,
            Form::Commands => None,
        };
        let is_begun = self.position != Position::default();
        if self.shared.plan.functions == Functions::Exact && self.pass == Pass::Apply && !is_begun {
            self.replace_functions(files)?;
        }
        for (number, valid) in files.iter().enumerate() {
            if number < self.position.file {
                self.bytes_before += valid.report.bytes;
                continue;
            }
            let Position { offset, db, .. } = self.position;
            let entries = match offset {
                0 => Ok(Entries::new(form, PAYLOAD_BYTES_MAX)),
                _ => Entries::resume(&valid.report, offset, db, form, PAYLOAD_BYTES_MAX),
            };
            let changed = |e: rdb::Error| Error::new(Kind::Malformed, APPLY, e.to_string());
            let mut entries = entries.map_err(changed)?;
            valid.read(offset, self.shared.control, |piece| {
                let mut feed = Feed {
                    feeder: &mut *self,
                    valid,
                };
                entries.feed(piece, &mut feed).map_err(changed)?;
                self.failure.take().map_or(Ok(()), Err)?;
                self.stopped()
            })?;
            self.bytes_before += valid.report.bytes;
            self.position = Position {
                file: number + 1,
                offset: 0,
                db: 0,
                key: self.position.key,
            };
            self.close_chunk()?;
        }
        Ok(())
    }

    /// Feeds what is to be removed, from the position on.
    ///
    /// # Errors
    /// As [`Feeder::feed`].
    pub(super) fn feed_list(&mut self, list: &std::fs::File) -> Result<(), Error> {
        // Who is older than 4.0 knows DEL only.
        let verb: &[u8] = match (self.shared.plan.form, self.shared.target.form) {
            (Form::Payloads, Some(_)) => b"UNLINK",
            (Form::Payloads, None) | (Form::Commands, _) => b"DEL",
        };
        Run::listed(list, self.position.offset, |db, name, bytes| {
            self.append(Verb::Remove, db, name, 0, |out| {
                push_command(out, &[verb, name]);
                1
            })?;
            self.advance(db, self.position.offset, bytes)?;
            self.stopped()
        })?;
        self.close_chunk()
    }

    fn stopped(&self) -> Result<(), Error> {
        match self.shared.is_stopped() {
            false => Ok(()),
            true => Err(Error::new(Kind::Cancelled, APPLY, "all stop")),
        }
    }

    /// Lets the connections end, and keeps what only this thread has counted.
    pub(super) fn end(mut self) {
        self.chunk.spoil(std::mem::take(&mut self.own));
        if let Some(written) = &mut self.written {
            written.state.sent_below = written.state.sent_below.max(self.position.key);
        }
        self.lanes.clear();
    }

    /// Keys from this one on were not sent.
    pub(super) fn sent_below(&self) -> u64 {
        self.position.key + 1
    }

    pub(super) fn judge<'k>(&self, valid: &Valid, key: &Candidate<'k>, key_bytes: u64) -> Verdict<'k> {
        let plan = self.shared.plan;
        if key_bytes > key.key.len() as u64 {
            return Verdict::Failed("a command cannot hold a key above 1 MiB");
        }
        if !plan.selection.takes(key) {
            return Verdict::Skipped;
        }
        let over_by = plan.shape.over_by(self.judged_at_ms, valid.written_ms);
        if key.expire_at_ms.is_some_and(|at_ms| at_ms <= over_by) {
            return Verdict::Expired;
        }
        let db = plan.shape.db(key.db);
        if self.shared.target.is_cluster && db != 0 {
            return Verdict::Failed(DATABASE_0_ONLY);
        }
        let Some(name) = plan.shape.name(key.key) else {
            return Verdict::Failed(CLAIMED);
        };
        if self.pass == Pass::Apply && self.present.is_some_and(|bits| bits.is_set(self.position.key)) {
            return Verdict::Conflicting;
        }
        Verdict::Taken {
            db,
            name,
            expire_at_ms: key
                .expire_at_ms
                .and_then(|at_ms| plan.shape.expire_at(at_ms, self.judged_at_ms, valid.written_ms)),
        }
    }

    /// Adds what one key takes to what its node gets next.
    pub(super) fn append(
        &mut self,
        verb: Verb,
        db: u32,
        name: &[u8],
        entry_bytes: u64,
        build: impl FnOnce(&mut Vec<u8>) -> u32,
    ) -> Result<(), Error> {
        let node = match self.shared.target.is_cluster {
            true => self.nodes.owner(rdb::slot_of(name)),
            false => 0,
        };
        if self.pace.is_limited() && self.pace.wait_is_due() {
            self.flush_all(false)?;
            let shared = self.shared;
            self.pace.wait(|| match shared.is_stopped() {
                true => Err(Error::new(Kind::Cancelled, APPLY, "all stop")),
                false => shared.control.check(APPLY),
            })?;
        }
        if self.building[node]
            .as_ref()
            .is_some_and(|batch| batch.db != db || batch.verb != verb)
        {
            self.flush(node, false)?;
        }
        let number = self.position.key;
        let chunk = &self.chunk;
        let batch = self.building[node].get_or_insert_with(|| Batch {
            chunk: chunk.clone(),
            verb,
            db,
            bytes: Vec::with_capacity(BATCH_BYTES + BATCH_BYTES / 4),
            keys: Vec::with_capacity(BATCH_KEYS / 4),
            waits: false,
        });
        let commands = build(&mut batch.bytes);
        batch.keys.push(Command {
            end: batch.bytes.len(),
            number,
            bytes: entry_bytes,
            commands,
        });
        if batch.bytes.len() >= BATCH_BYTES || batch.keys.len() >= BATCH_KEYS {
            self.flush(node, false)?;
        }
        Ok(())
    }

    fn flush_all(&mut self, ends_chunk: bool) -> Result<(), Error> {
        (0..self.building.len()).try_for_each(|node| self.flush(node, ends_chunk))
    }

    /// Sends what a node gets next; at the end of a chunk it waits for a replica, where the node has one.
    fn flush(&mut self, node: usize, ends_chunk: bool) -> Result<(), Error> {
        let waits = ends_chunk && self.pass.writes() && self.nodes.primaries[node].has_replicas;
        let batch = match self.building[node].take() {
            None if waits && self.touched[node] => Batch {
                chunk: self.chunk.clone(),
                verb: Verb::Apply,
                db: 0,
                bytes: Vec::new(),
                keys: Vec::new(),
                waits,
            },
            None => return Ok(()),
            Some(batch) => Batch { waits, ..batch },
        };
        self.touched[node] = true;
        self.write_ahead()?;
        let room = self.shared.room(&batch);
        let room = room.ok_or_else(|| Error::new(Kind::Cancelled, APPLY, "all stop"))?;
        self.turn = (self.turn + 1) % self.shared.plan.connections;
        // What waits for a replica waits for all that was sent on its own connection.
        let connection = match batch.waits {
            true => 0,
            false => self.turn,
        };
        let lane = node * self.shared.plan.connections + connection;
        if self.lanes[lane].is_none() {
            let (to, batches) = sync_channel(QUEUE_BATCHES);
            let opened = Lane::open(self.shared, &self.nodes.primaries[node].address)?;
            (self.spawn)(opened, batches);
            self.lanes[lane] = Some(to);
        }
        batch.chunk.begin_batch();
        let sent = self.lanes[lane]
            .as_ref()
            .is_some_and(|to| to.send((batch, room)).is_ok());
        match sent {
            true => Ok(()),
            false => Err(Error::new(Kind::Cancelled, APPLY, "a connection has ended")),
        }
    }

    /// Before a key is sent for the first time, the journal says that it may have been.
    pub(super) fn write_ahead(&mut self) -> Result<(), Error> {
        let is_needed = match self.pass {
            Pass::Judge { .. } => false,
            Pass::Apply => self.shared.plan.conflict != Conflict::Replace,
            Pass::Remove => true,
        };
        let next = self.position.key + 1;
        match &mut self.written {
            Some(written) if is_needed && next >= written.state.sent_below => {
                written.state.sent_below = next + AHEAD_KEYS;
                written.journal.write(written.state)
            }
            _ => Ok(()),
        }
    }

    /// An entry more is decided about.
    pub(super) fn advance(&mut self, db: u32, offset: u64, bytes: u64) -> Result<(), Error> {
        self.position = Position {
            file: self.position.file,
            offset: offset + bytes,
            db,
            key: self.position.key + 1,
        };
        self.chunk_bytes += bytes;
        self.chunk_keys += 1;
        let looks = self.pace.is_limited() || self.chunk_keys.is_multiple_of(CLOCK_KEYS);
        let is_late = looks && self.chunk_since.elapsed() >= CHUNK_TIME;
        match is_late || self.chunk_bytes >= CHUNK_BYTES || self.chunk_keys >= CHUNK_KEYS {
            true => self.close_chunk(),
            false => Ok(()),
        }
    }

    fn close_chunk(&mut self) -> Result<(), Error> {
        self.flush_all(true)?;
        self.touched.fill(false);
        let (committed, account) = {
            let mut ledger = lock(&self.shared.ledger);
            ledger.close(&self.chunk, self.position, std::mem::take(&mut self.own));
            self.chunk = ledger.open();
            (ledger.position, ledger.account.clone())
        };
        if self.pass == Pass::Apply {
            let restored = &self.shared.control.restored_bytes;
            restored.fetch_add(self.chunk_bytes, Ordering::Relaxed);
        }
        (self.chunk_bytes, self.chunk_keys, self.chunk_since) = (0, 0, Instant::now());
        let done = self.bytes_before + committed.offset;
        let done = if committed.file == self.position.file {
            done
        } else {
            self.bytes_before
        };
        self.shared.control.bytes_done.fetch_max(done, Ordering::Relaxed);
        if let Some(written) = &mut self.written
            && written.at.elapsed() >= JOURNAL_TIME
        {
            (written.state.position, written.state.account) = (committed, account);
            written.journal.write(written.state)?;
            written.at = Instant::now();
        }
        if self.shared.is_stale.swap(false, atomic::Ordering::Relaxed) {
            self.find_nodes_again()?;
        }
        Ok(())
    }

    /// Takes up where the slots are now. A node that is known keeps its number, and its connections.
    fn find_nodes_again(&mut self) -> Result<(), Error> {
        let now = self.shared.target.nodes(&self.nodes.primaries)?;
        self.nodes.become_like(now);
        self.make_room();
        Ok(())
    }

    pub(super) fn function(&mut self, code: &[u8]) -> Result<(), Error> {
        if self.shared.plan.functions != Functions::Load || self.position.file > 0 {
            return Ok(());
        }
        if self.pass != Pass::Apply {
            self.own.functions += 1;
            return Ok(());
        }
        let replaces = self.shared.plan.conflict == Conflict::Replace;
        self.write_ahead()?;
        let is_in_doubt = self.position.key < self.shared.in_doubt_below;
        for node in 0..self.nodes.primaries.len() {
            let (link, _) = self.link(node)?;
            let answer = match replaces {
                true => link.ask(&[b"FUNCTION", b"LOAD", b"REPLACE", code])?,
                false => link.ask(&[b"FUNCTION", b"LOAD", code])?,
            };
            if let Reply::Error(text) = answer {
                // An attempt before may have loaded it.
                if is_in_doubt && text.contains("already exists") {
                    continue;
                }
                if let Judgement::OfAll(kind) = judge(&text) {
                    return Err(Error::new(kind, WRITE, format!("FUNCTION LOAD: {text}")));
                }
                self.own.functions_refused.push(account::told(&text));
                return Ok(());
            }
        }
        self.own.functions += 1;
        Ok(())
    }

    /// Puts the libraries of a backup in the place of all that the target has, or says why not.
    fn replace_functions(&mut self, files: &[Valid]) -> Result<(), Error> {
        // The shards of a cluster know nothing of each other's libraries, and which file was of which of them is not known here.
        let mut all = Vec::new();
        for file in files {
            all.push(self.libraries_of(file)?);
        }
        all.dedup_by(|one, other| one.bytes == other.bytes && one.codes == other.codes);
        let left = match (all.as_slice(), self.shared.target.form) {
            ([libraries], Some(_)) if libraries.bytes > LIBRARIES_BYTES_MAX => {
                Some(format!("they have more than {LIBRARIES_BYTES_MAX} bytes of code"))
            }
            ([libraries], Some(form)) => {
                let refused = self.restore_functions(&libraries.payload(form))?;
                if refused.is_none() {
                    self.own.functions += libraries.codes.len() as u64;
                }
                refused
            }
            (_, Some(_)) => Some("the shards of the backup have different ones".to_owned()),
            // Older than libraries are.
            (_, None) => None,
        };
        self.own.functions_left = left;
        Ok(())
    }

    fn libraries_of(&self, file: &Valid) -> Result<Libraries, Error> {
        let mut entries = Entries::new(None, PAYLOAD_BYTES_MAX);
        let mut libraries = Libraries::default();
        let read = file.read(0, self.shared.control, |piece| {
            let fed = entries.feed(piece, &mut libraries);
            fed.map_err(|e| Error::new(Kind::Malformed, APPLY, e.to_string()))?;
            match libraries.is_over {
                true => Err(Error::new(Kind::Refused, APPLY, "no more is needed")),
                false => Ok(()),
            }
        });
        if !libraries.is_over {
            read?;
        }
        // Engines write them in no order.
        libraries.codes.sort_unstable();
        Ok(libraries)
    }

    /// Gives every primary these libraries and no others, each in one step; or says what one answered that does not.
    fn restore_functions(&mut self, payload: &[u8]) -> Result<Option<String>, Error> {
        for node in 0..self.nodes.primaries.len() {
            let has_replicas = self.nodes.primaries[node].has_replicas;
            let shared = self.shared;
            let (link, _) = self.link(node)?;
            let Reply::Error(text) = link.ask(&[b"FUNCTION", b"RESTORE", payload, b"FLUSH"])? else {
                if has_replicas {
                    wait_for_replica(link, shared)?;
                }
                continue;
            };
            // Before 7.0 there are none.
            if text.starts_with("ERR unknown command") {
                return Ok(None);
            }
            match judge(&text) {
                // The keys are put back by who may not do this too.
                Judgement::OfTheKey | Judgement::OfAll(Kind::Auth) => return Ok(Some(account::told(&text))),
                Judgement::OfAll(kind) => {
                    return Err(Error::new(kind, WRITE, format!("FUNCTION RESTORE: {text}")));
                }
            }
        }
        Ok(None)
    }

    /// This thread's own connection to a node, and the database it is in.
    pub(super) fn link(&mut self, node: usize) -> Result<&mut Link, Error> {
        match self.links.entry(node) {
            std::collections::hash_map::Entry::Occupied(known) => Ok(known.into_mut()),
            std::collections::hash_map::Entry::Vacant(new) => {
                let address = self.nodes.primaries[node].address.clone();
                let node = self.shared.target.connect(&address)?;
                node.set_timeout(LARGE_SILENCE)?;
                Ok(new.insert((node, 0)))
            }
        }
    }

    /// A name in the slot of `name` that no key has, to make a value under.
    pub(super) fn unfinished(&self, name: &[u8], by: &str) -> String {
        let tag = match self.shared.target.is_cluster {
            false => String::new(),
            true => {
                let slot = rdb::slot_of(name);
                // One in 16384 numbers has this slot.
                let mut tags = (0..SLOTS * 64).map(|number| format!("{{{number}}}:"));
                tags.find(|tag| rdb::slot_of(tag.as_bytes()) == slot)
                    .unwrap_or_default()
            }
        };
        format!("{UNFINISHED}:{}:{tag}{by}", self.mark)
    }

    /// Before the first of a value is sent that is made step by step, the journal says under which name: whatever ends this attempt, what is
    /// there of it is found again.
    pub(super) fn begin_value(&mut self, db: u32, name: &str) -> Result<(), Error> {
        let value = Unfinished {
            db,
            name: name.to_owned(),
        };
        self.making = Some(value.clone());
        match &mut self.written {
            Some(written) => {
                written.state.begin_value(value);
                written.journal.write(written.state)
            }
            None => Ok(()),
        }
    }

    /// The value has its own name, or there is nothing of it.
    pub(super) fn end_value(&mut self) {
        if self.making.take().is_some()
            && let Some(written) = &mut self.written
        {
            written.state.end_value();
        }
    }
}
