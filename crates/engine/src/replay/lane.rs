//! One connection to one node: commands go out in batches, answers come back in their order.
//!
//! As many batches are under way as keep the node busy for a round trip and more; what is under way is held until it is
//! answered, because a slot may have moved and a command must then be sent to another node.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::account::{Account, NAMED_MAX};
use super::ledger::{Chunk, Ledger};
use super::target::{Target, has_replicas, named_by};
use super::{Conflict, Plan};
use crate::control::Control;
use crate::error::{Error, Kind};
use crate::node::{Address, Node, Reply};

pub(super) const APPLY: &str = "apply backup";
/// Of errors that are in the words of the target.
pub(super) const WRITE: &str = "write to target";
/// Bytes under way on one connection: at least, and at most.
const WINDOW_BYTES: std::ops::RangeInclusive<usize> = 256 * 1024..=4 * 1024 * 1024;
/// What a batch takes in memory beside its commands.
const BATCH_OWN_BYTES: usize = 100;
/// How often a command is redirected before the cluster is said to be in disorder.
const REDIRECTIONS_MAX: usize = 16;
/// A replica is waited for so long, in milliseconds; where none confirms, that is told.
const REPLICA_WAIT_MS: &str = "5000";

/// Commands that keys of every type take: where the target knows no such command no key will fare better. Others are of some types only,
/// which an old engine does not have.
const OF_EVERY_KEY: [&str; 9] = [
    "RESTORE", "EXISTS", "UNLINK", "DEL", "SELECT", "MULTI", "EXEC", "RENAME", "RENAMENX",
];

/// What a command asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    /// Write a key.
    Apply,
    /// Is there such a key?
    Exists,
    /// Remove a key.
    Remove,
}

/// What one key takes: a command, or several that follow each other.
pub(super) struct Command {
    /// Where its bytes end in those of the batch.
    pub(super) end: usize,
    /// Number of the key.
    pub(super) number: u64,
    /// Serialised bytes of the entry.
    pub(super) bytes: u64,
    /// Commands; several are a transaction, see [`decisive`].
    pub(super) commands: u32,
}

/// Commands for one database of one node, all of one chunk.
pub(super) struct Batch {
    pub(super) chunk: Arc<Chunk>,
    pub(super) verb: Verb,
    pub(super) db: u32,
    pub(super) bytes: Vec<u8>,
    pub(super) keys: Vec<Command>,
    /// At its end a replica is waited for.
    pub(super) waits: bool,
}

/// Bytes that may be under way to all nodes together.
pub(super) struct Budget {
    total: usize,
    left: Mutex<usize>,
    more: Condvar,
}

impl Budget {
    pub(super) fn new(bytes: usize) -> Self {
        Self {
            total: bytes,
            left: Mutex::new(bytes),
            more: Condvar::new(),
        }
    }

    /// Takes bytes, or waits for a while; a batch larger than all there is waits until nothing else is under way.
    fn try_take(&self, bytes: usize) -> Option<usize> {
        let wanted = bytes.min(self.total);
        let mut left = lock(&self.left);
        if *left < wanted {
            left = match self.more.wait_timeout(left, Duration::from_millis(20)) {
                Ok((left, _)) => left,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        if *left < wanted {
            return None;
        }
        *left -= wanted;
        Some(wanted)
    }

    fn give_back(&self, bytes: usize) {
        *lock(&self.left) += bytes;
        self.more.notify_all();
    }
}

/// One bit for each key of a backup.
pub(super) struct Bits(Vec<AtomicU64>);

impl Bits {
    pub(super) fn new(keys: u64) -> Self {
        let words = usize::try_from(keys.div_ceil(64)).unwrap_or(usize::MAX);
        Self((0..words).map(|_| AtomicU64::new(0)).collect())
    }

    pub(super) fn of_words(words: Vec<u64>) -> Self {
        Self(words.into_iter().map(AtomicU64::new).collect())
    }

    pub(super) fn words(&self) -> impl Iterator<Item = u64> {
        self.0.iter().map(|word| word.load(Ordering::Relaxed))
    }

    fn set(&self, number: u64) {
        if let Some(word) = self.0.get((number / 64) as usize) {
            word.fetch_or(1 << (number % 64), Ordering::Relaxed);
        }
    }

    pub(super) fn is_set(&self, number: u64) -> bool {
        let word = self.0.get((number / 64) as usize);
        word.is_some_and(|word| word.load(Ordering::Relaxed) & 1 << (number % 64) != 0)
    }
}

/// What all connections of a pass share.
pub(super) struct Shared<'a> {
    pub(super) target: &'a Target<'a>,
    pub(super) plan: &'a Plan,
    /// As [`super::shape::Shape::sources`].
    pub(super) sources: &'a BTreeMap<u32, u32>,
    pub(super) control: &'a Control,
    pub(super) ledger: Mutex<Ledger>,
    pub(super) budget: Budget,
    /// Which keys the target has already; nobody asked where it does not matter.
    pub(super) present: Option<&'a Bits>,
    /// Keys before this one may have been applied by an attempt that did not hear of it.
    pub(super) in_doubt_below: u64,
    /// Why all stop.
    pub(super) failure: Mutex<Option<Error>>,
    pub(super) is_stopped: AtomicBool,
    /// The slots are not where they were.
    pub(super) is_stale: AtomicBool,
    /// A replica did not confirm in time.
    pub(super) is_unconfirmed: AtomicBool,
    /// A connection broke with something under way: nobody knows whether that was done.
    pub(super) is_cut: AtomicBool,
    /// What is committed names as many applied keys as are named: the others are only counted, which costs a fraction of that.
    pub(super) is_named: AtomicBool,
}

impl Shared<'_> {
    pub(super) fn stop(&self, error: Error) {
        lock(&self.failure).get_or_insert(error);
        self.is_stopped.store(true, Ordering::Relaxed);
    }

    /// What a `WAIT` answers: how many replicas have it.
    fn count_confirmed(&self, answer: &Reply) {
        if answer.int().is_none_or(|replicas| replicas <= 0) {
            self.is_unconfirmed.store(true, Ordering::Relaxed);
        }
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.is_stopped.load(Ordering::Relaxed)
    }

    /// Takes room for a batch, as soon as there is as much. `None`: all stop.
    pub(super) fn room(&self, batch: &Batch) -> Option<usize> {
        // A batch of few bytes is held as a whole too.
        let bytes = batch.bytes.len() + batch.keys.len() * size_of::<Command>() + BATCH_OWN_BYTES;
        loop {
            if self.is_stopped() {
                return None;
            }
            if let Err(error) = self.control.check(APPLY) {
                self.stop(error);
                return None;
            }
            if let Some(taken) = self.budget.try_take(bytes) {
                return Some(taken);
            }
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// A batch that is under way.
struct Flying {
    batch: Batch,
    room: usize,
    since: Instant,
}

/// What is known of a connection's speed: how much is to be under way.
struct Window {
    bytes: usize,
    round_trip: Duration,
    rate: f64,
    last: Instant,
}

impl Window {
    /// Twice what the node takes in a round trip.
    fn learn(&mut self, bytes: usize, since: Instant) {
        let now = Instant::now();
        self.round_trip = self.round_trip.min(now - since);
        let took = (now - self.last.max(since)).as_secs_f64().max(1e-6);
        self.last = now;
        self.rate = 0.8 * self.rate + 0.2 * (bytes as f64 / took);
        let wanted = 2.0 * self.rate * self.round_trip.as_secs_f64();
        self.bytes = (wanted as usize).clamp(*WINDOW_BYTES.start(), *WINDOW_BYTES.end());
    }
}

/// A connection, and what goes on there.
pub(super) struct Lane<'s, 'a> {
    shared: &'s Shared<'a>,
    node: Node,
    address: Address,
    db: u32,
    flying: VecDeque<Flying>,
    flying_bytes: usize,
    window: Window,
    /// Connections to nodes that this one sends us to.
    others: HashMap<String, Other>,
}

/// A node that another sent us to.
struct Other {
    node: Node,
    has_replicas: bool,
    /// Since a replica was waited for.
    is_written: bool,
}

impl<'s, 'a> Lane<'s, 'a> {
    /// Connects to a node.
    ///
    /// # Errors
    /// As [`super::Reach::connect`].
    pub(super) fn open(shared: &'s Shared<'a>, address: &Address) -> Result<Self, Error> {
        Ok(Self {
            node: shared.target.connect(address)?,
            shared,
            address: address.clone(),
            db: 0,
            flying: VecDeque::new(),
            flying_bytes: 0,
            window: Window {
                bytes: *WINDOW_BYTES.start(),
                round_trip: Duration::from_secs(1),
                rate: 0.0,
                last: Instant::now(),
            },
            others: HashMap::new(),
        })
    }

    /// Sends what comes and counts what is answered, until nothing comes any more or all stop.
    pub(super) fn run(mut self, batches: &Receiver<(Batch, usize)>) {
        if let Err(error) = self.work(batches) {
            self.shared.stop(error);
        }
        for flying in self.flying {
            self.shared.is_cut.store(true, Ordering::Relaxed);
            flying.batch.chunk.spoil(Account::default());
            self.shared.budget.give_back(flying.room);
        }
    }

    fn work(&mut self, batches: &Receiver<(Batch, usize)>) -> Result<(), Error> {
        let mut is_open = true;
        loop {
            while is_open && self.flying_bytes < self.window.bytes {
                let next = match self.flying.is_empty() {
                    true => batches.recv().map_err(|_| TryRecvError::Disconnected),
                    false => batches.try_recv(),
                };
                match next {
                    Ok((batch, room)) => self.send(batch, room)?,
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => is_open = false,
                }
            }
            match self.flying.pop_front() {
                Some(flying) => self.collect(flying)?,
                None if !is_open => return Ok(()),
                None => {}
            }
        }
    }

    fn send(&mut self, batch: Batch, room: usize) -> Result<(), Error> {
        if batch.db != self.db && !batch.keys.is_empty() && !self.selects(&batch, room)? {
            return Ok(());
        }
        self.flying_bytes += batch.bytes.len();
        // Before anything can fail, so that it is given back.
        self.flying.push_back(Flying {
            room,
            since: Instant::now(),
            batch,
        });
        let Some(Flying { batch, .. }) = self.flying.back() else {
            return Ok(());
        };
        self.node.send_raw(&batch.bytes)?;
        if batch.waits {
            self.node.send(&[b"WAIT", b"1", REPLICA_WAIT_MS.as_bytes()])?;
        }
        Ok(())
    }

    /// Changes the database, and sees that it did before anything is sent: else keys would go to another one. Where the target
    /// has no such database the keys have failed.
    fn selects(&mut self, batch: &Batch, room: usize) -> Result<bool, Error> {
        while let Some(flying) = self.flying.pop_front() {
            self.collect(flying)?;
        }
        let db = batch.db.to_string();
        let refusal = match self.node.ask(&[b"SELECT", db.as_bytes()]) {
            Ok(Reply::Error(text)) => text,
            Ok(_) => {
                self.db = batch.db;
                return Ok(true);
            }
            Err(error) => {
                batch.chunk.spoil(Account::default());
                return Err(error);
            }
        };
        self.shared.budget.give_back(room);
        if let Judgement::OfAll(kind) = judge(&refusal) {
            batch.chunk.spoil(Account::default());
            let context = format!("{}: SELECT {db}: {refusal}", self.node.label());
            return Err(Error::new(kind, WRITE, context));
        }
        let (mut account, mut start) = (Account::default(), 0);
        for key in &batch.keys {
            let (db, name) = self.source_of(batch, start..key.end);
            account.failed.add(db, &name, &refusal);
            start = key.end;
        }
        self.settle(batch, Ok(account));
        Ok(false)
    }

    /// Counts a batch that is answered, or says that some of it has to be sent again.
    fn settle(&self, batch: &Batch, counted: Result<Account, Account>) {
        match counted {
            Ok(account) => {
                batch.chunk.end_batch(account);
                let keys = batch.keys.len() as u64;
                self.shared.control.keys_done.fetch_add(keys, Ordering::Relaxed);
                let mut ledger = lock(&self.shared.ledger);
                if ledger.commit() && ledger.account.applied.first.len() >= NAMED_MAX {
                    self.shared.is_named.store(true, Ordering::Relaxed);
                }
            }
            Err(account) => batch.chunk.spoil(account),
        }
    }

    /// Takes the answers to a batch.
    fn collect(&mut self, flying: Flying) -> Result<(), Error> {
        let Flying { batch, room, since } = flying;
        self.flying_bytes -= batch.bytes.len();
        let mut account = Account::default();
        let answered = self.answers(&batch, &mut account);
        self.window.learn(batch.bytes.len(), since);
        self.shared.budget.give_back(room);
        match answered {
            Ok(None) => self.settle(&batch, Ok(account)),
            // The node answers on: what it says of what else is under way is counted too.
            Ok(Some(error)) => {
                self.settle(&batch, Err(account));
                self.shared.stop(error);
            }
            Err(error) => {
                self.shared.is_cut.store(true, Ordering::Relaxed);
                self.settle(&batch, Err(account));
                return Err(error);
            }
        }
        Ok(())
    }

    /// Counts the answers to a batch; returns why all have to stop.
    fn answers(&mut self, batch: &Batch, account: &mut Account) -> Result<Option<Error>, Error> {
        let (mut at, mut start, mut stop) = (0, 0, None);
        while let Some(key) = batch.keys.get(at) {
            if batch.verb == Verb::Apply && key.commands == 1 {
                let done = self.node.skip_ok(batch.keys.len() - at);
                for key in &batch.keys[at..at + done] {
                    self.count_applied(batch, start..key.end, key.bytes, account);
                    start = key.end;
                }
                at += done;
                if done > 0 {
                    continue;
                }
            }
            let reply = decisive(&mut self.node, key.commands)?;
            let bytes = start..key.end;
            start = key.end;
            at += 1;
            let reply = self.follow(batch, &bytes, key, reply)?;
            if let Some(error) = self.count(batch, bytes, key, &reply, account) {
                stop.get_or_insert(error);
            }
        }
        if batch.waits {
            self.shared.count_confirmed(&self.node.reply()?);
        }
        for other in self.others.values_mut() {
            if std::mem::take(&mut other.is_written) && other.has_replicas {
                wait_for_replica(&mut other.node, self.shared)?;
            }
        }
        Ok(stop)
    }

    fn count_applied(
        &self,
        batch: &Batch,
        bytes: std::ops::Range<usize>,
        entry_bytes: u64,
        account: &mut Account,
    ) {
        account.applied_bytes += entry_bytes;
        let is_named = self.shared.is_named.load(Ordering::Relaxed);
        if !is_named && account.applied.first.len() < NAMED_MAX {
            let (db, key) = self.source_of(batch, bytes);
            account.applied.add(db, &key, "");
        } else {
            account.applied.count += 1;
        }
    }

    /// The key in the backup that a command is for.
    fn source_of(&self, batch: &Batch, bytes: std::ops::Range<usize>) -> (u32, Vec<u8>) {
        let key = key_of(&batch.bytes[bytes]).unwrap_or_default();
        match batch.verb {
            Verb::Remove => (batch.db, key.to_vec()),
            Verb::Apply | Verb::Exists => {
                let shape = &self.shared.plan.shape;
                shape.source_of(self.shared.sources, batch.db, key)
            }
        }
    }

    /// Counts one answer; returns why all have to stop.
    fn count(
        &self,
        batch: &Batch,
        bytes: std::ops::Range<usize>,
        key: &Command,
        reply: &Reply,
        account: &mut Account,
    ) -> Option<Error> {
        let is_in_doubt = key.number < self.shared.in_doubt_below;
        let is_busy = match reply {
            Reply::Error(text) => text.starts_with("BUSYKEY"),
            // Of a RENAMENX.
            Reply::Int(0) => batch.verb == Verb::Apply,
            _ => false,
        };
        let named = || self.source_of(batch, bytes.clone());
        match (batch.verb, reply) {
            (Verb::Apply, _) if is_busy && is_in_doubt => {
                self.count_applied(batch, bytes, key.bytes, account);
            }
            (Verb::Apply, _) if is_busy => {
                let (db, key) = named();
                account.conflicting.add(db, &key, "");
                if self.shared.plan.conflict == Conflict::Fail {
                    let what =
                        "a key appeared in the target after it was looked for, and conflicts are to fail";
                    return Some(Error::new(Kind::Refused, APPLY, what));
                }
            }
            (Verb::Apply, Reply::Simple(_) | Reply::Int(_)) => {
                self.count_applied(batch, bytes, key.bytes, account);
            }
            (Verb::Exists, Reply::Int(0)) => self.count_applied(batch, bytes, key.bytes, account),
            (Verb::Exists, Reply::Int(_)) => {
                if let Some(present) = self.shared.present {
                    present.set(key.number);
                }
                let (db, key) = named();
                account.conflicting.add(db, &key, "");
            }
            (Verb::Remove, Reply::Int(removed)) => {
                if *removed > 0 || is_in_doubt {
                    let (db, key) = named();
                    account.removed.add(db, &key, "");
                }
            }
            // It has expired since it was decided about.
            (Verb::Apply, Reply::Error(text)) if key.commands > 1 && text.starts_with("ERR no such key") => {
                let (db, key) = named();
                account.expired.add(db, &key, "");
            }
            (_, Reply::Error(text)) => match judge(text) {
                Judgement::OfTheKey => {
                    let (db, key) = named();
                    account.failed.add(db, &key, text);
                }
                Judgement::OfAll(kind) => {
                    let context = format!("{}: {text}", self.node.label());
                    return Some(Error::new(kind, WRITE, context));
                }
            },
            (_, other) => {
                let context = format!("{}: {other:?} is no answer to what was asked", self.node.label());
                return Some(Error::new(Kind::Protocol, APPLY, context));
            }
        }
        None
    }

    /// Goes where a node sends us, until one answers.
    fn follow(
        &mut self,
        batch: &Batch,
        bytes: &std::ops::Range<usize>,
        key: &Command,
        first: Reply,
    ) -> Result<Reply, Error> {
        let mut reply = first;
        for _ in 0..REDIRECTIONS_MAX {
            let Reply::Error(text) = &reply else {
                return Ok(reply);
            };
            let is_asking = text.starts_with("ASK ");
            if !is_asking && !text.starts_with("MOVED ") {
                return Ok(reply);
            }
            if is_asking && key.commands > 1 {
                // Several commands make one key, and a slot on its way takes one at a time.
                let context = format!("{}: {text}", self.node.label());
                return Err(Error::new(Kind::Connection, APPLY, context));
            }
            if !is_asking {
                self.shared.is_stale.store(true, Ordering::Relaxed);
            }
            let address = named_by(text, &self.address)
                .ok_or_else(|| Error::new(Kind::Protocol, APPLY, format!("{}: {text}", self.node.label())))?;
            let other = match self.others.entry(address.to_string()) {
                std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
                std::collections::hash_map::Entry::Vacant(new) => {
                    let mut node = self.shared.target.connect(&address)?;
                    new.insert(Other {
                        has_replicas: has_replicas(&mut node)?,
                        is_written: false,
                        node,
                    })
                }
            };
            if is_asking {
                other.node.run(&["ASKING"])?;
            }
            other.is_written |= batch.verb != Verb::Exists;
            other.node.send_raw(&batch.bytes[bytes.clone()])?;
            reply = decisive(&mut other.node, key.commands)?;
        }
        let context = format!("{}: a key was sent from node to node in vain", self.node.label());
        Err(Error::new(Kind::Connection, APPLY, context))
    }
}

/// Waits until a replica has what was sent on this connection, and says where none has.
pub(super) fn wait_for_replica(node: &mut Node, shared: &Shared<'_>) -> Result<(), Error> {
    let answer = node.ask(&[b"WAIT", b"1", REPLICA_WAIT_MS.as_bytes()])?;
    shared.count_confirmed(&answer);
    Ok(())
}

/// The reply to a command. Of several that make one key, the last of which is an EXEC: the first refusal, or what the last but one
/// of those in the transaction answers.
fn decisive(node: &mut Node, commands: u32) -> Result<Reply, Error> {
    let (mut refusal, mut last) = (None, node.reply()?);
    for _ in 1..commands {
        let next = node.reply()?;
        if let before @ Reply::Error(_) = std::mem::replace(&mut last, next) {
            refusal.get_or_insert(before);
        }
    }
    let Reply::Array(mut inner) = last else {
        return Ok(refusal.unwrap_or(last));
    };
    let refused = inner.iter().position(|reply| matches!(reply, Reply::Error(_)));
    let at = refused.unwrap_or(inner.len().saturating_sub(2));
    match refusal {
        None if at < inner.len() => Ok(inner.swap_remove(at)),
        None => Ok(Reply::Array(inner)),
        Some(refusal) => Ok(refusal),
    }
}

/// What a refusal is about.
pub(super) enum Judgement {
    /// This key.
    OfTheKey,
    /// The target: nothing else will fare better. [`Kind::Connection`] where it may in a while.
    OfAll(Kind),
}

/// What a refusal is about, by its first word.
pub(super) fn judge(text: &str) -> Judgement {
    let word = text.split(' ').next().unwrap_or_default();
    Judgement::OfAll(match word {
        "LOADING" | "CLUSTERDOWN" | "TRYAGAIN" | "MASTERDOWN" | "READONLY" | "BUSY" | "MOVED" | "ASK"
        | "NOREPLICAS" => Kind::Connection,
        "OOM" => Kind::Memory,
        // Its disk is full, as a rule.
        "MISCONF" => Kind::StoreFull,
        "NOPERM" | "NOAUTH" | "WRONGPASS" => Kind::Auth,
        "UNKILLABLE" => Kind::Refused,
        "ERR" if unknown_command(text).is_some_and(|name| OF_EVERY_KEY.contains(&name)) => Kind::Refused,
        _ => return Judgement::OfTheKey,
    })
}

/// The command that a server says that it does not know; what it was given with it follows there.
fn unknown_command(text: &str) -> Option<&str> {
    let named = text.strip_prefix("ERR unknown command ")?;
    named
        .split(|letter: char| !letter.is_ascii_alphanumeric())
        .find(|word| !word.is_empty())
}

/// The second word of the command, or of the last of several: the key.
pub(super) fn key_of(bytes: &[u8]) -> Option<&[u8]> {
    let mut at = 0;
    let line = |at: &mut usize| -> Option<usize> {
        let rest = bytes.get(*at + 1..)?;
        let end = rest.iter().position(|byte| *byte == b'\r')?;
        let number = std::str::from_utf8(&rest[..end]).ok()?.parse().ok()?;
        *at += 1 + end + 2;
        Some(number)
    };
    line(&mut at)?;
    let verb = line(&mut at)?;
    at += verb + 2;
    let length = line(&mut at)?;
    bytes.get(at..at.checked_add(length)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_under_way_than_there_is_room_for_but_one_batch_that_is_larger() {
        let budget = Budget::new(100);
        assert_eq!(budget.try_take(60), Some(60));
        assert_eq!(budget.try_take(60), None);
        assert_eq!(budget.try_take(40), Some(40));
        budget.give_back(60);
        assert_eq!(budget.try_take(500), None);
        budget.give_back(40);
        assert_eq!(budget.try_take(500), Some(100));
    }

    #[test]
    fn a_command_that_every_key_takes_and_the_target_does_not_know_is_of_all_keys() {
        let is_of_all = |text: &str| matches!(judge(text), Judgement::OfAll(Kind::Refused));
        for text in [
            "ERR unknown command 'RESTORE', with args beginning with: 'key' '0' ",
            "ERR unknown command `RESTORE`, with args beginning with: `key`, `0`, ",
            "ERR unknown command 'DEL'",
        ] {
            assert!(is_of_all(text), "{text}");
        }
        for text in [
            "ERR unknown command 'XADD', with args beginning with: 'RESTORE' ",
            "ERR unknown command",
            "ERR DUMP payload version or checksum are wrong",
        ] {
            assert!(matches!(judge(text), Judgement::OfTheKey), "{text}");
        }
    }
}
