//! Giving new primaries what is written to the old ones, until nobody writes and both hold the same.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::trail::{Trail, Written};
use super::{FOLLOW, Follower};
use crate::cluster::{SLOTS, slots_of};
use crate::control::Control;
use crate::error::{Error, Kind, chain};
use crate::failpoint;
use crate::node::{Endpoint, Node, Reply};
use crate::process::Engine;

/// Keys that are copied together, and most that are remembered before they are.
const BATCH_KEYS: usize = 64;
const PENDING_KEYS_MAX: usize = 65_536;
const PENDING_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Where the values of a batch are larger, the next one has one key.
const LARGE_BYTES: u64 = 4 * 1024 * 1024;
/// A value is passed on in pieces of this size.
const PIECE_BYTES: usize = 256 * 1024;
/// Keys of one page of a scan.
const PAGE_KEYS: &str = "1000";

/// When a round over all that was written took no longer, the next one is the last: clients wait for it.
const ROUND_SHORT: Duration = Duration::from_millis(10);
/// The same after [`PATIENCE`]: it will not become shorter.
const ROUND_LONG: Duration = Duration::from_millis(500);
/// How long short rounds are waited for, and how long before nothing more is hoped for.
const PATIENCE: Duration = Duration::from_secs(20);
const HOPE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_micros(500);
/// How long clients' writes wait at most, where we die in between: longer than any switch.
const PAUSE: Duration = Duration::from_secs(30);
/// How long the last of the stream is waited for: it is on its way within a machine.
const LAST_BYTES: Duration = Duration::from_secs(1);

/// A primary that is followed.
struct Source {
    follower: Follower,
    trail: Trail,
    node: Node,
    database: u32,
}

/// A new primary.
struct Sink {
    node: Node,
    database: u32,
}

impl std::fmt::Debug for Following {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Following({} to {})", self.sources.len(), self.sinks.len())
    }
}

/// Old primaries that are followed, and new ones that come to hold the same.
pub struct Following {
    sources: Vec<Source>,
    sinks: Vec<Sink>,
    /// The sink of each slot.
    sink_of: Vec<u16>,
    pending: HashSet<(u32, Vec<u8>)>,
    pending_bytes: usize,
    copied: u64,
}

impl Following {
    /// `targets`: the new primaries, which take writes, in the order of their shards: each has an equal share of the slots, a
    /// single one all keys.
    ///
    /// # Errors
    /// As [`Node::connect`].
    pub fn new(followers: Vec<Follower>, targets: &[Engine]) -> Result<Self, Error> {
        let mut sources = Vec::new();
        for follower in followers {
            sources.push(Source {
                trail: Trail::new(follower.shared.clone()),
                node: Node::connect(&follower.endpoint)?,
                follower,
                database: 0,
            });
        }
        let mut sinks = Vec::new();
        for target in targets {
            sinks.push(Sink {
                node: target.control()?,
                database: 0,
            });
        }
        let shards = u16::try_from(sinks.len()).unwrap_or(u16::MAX);
        let mut sink_of = vec![0; usize::from(SLOTS)];
        for shard in 0..shards {
            let (first, last) = slots_of(shard, shards);
            sink_of[usize::from(first)..=usize::from(last)].fill(shard);
        }
        Ok(Self {
            sources,
            sinks,
            sink_of,
            pending: HashSet::new(),
            pending_bytes: 0,
            copied: 0,
        })
    }

    /// Copies what has been written, again and again, until so little is left that clients may wait for it. Phase: the
    /// caller's; keys count in `control`.
    ///
    /// # Errors
    /// [`Kind::Refused`] where more is written than can be copied, or the new ones do not take it; why a primary cannot be
    /// followed any more; those of [`Control::check`].
    pub fn catch_up(&mut self, control: &Control) -> Result<(), Error> {
        let began = Instant::now();
        loop {
            control.check(FOLLOW)?;
            let round = Instant::now();
            self.round(true)?;
            failpoint::hit("follow.round")?;
            control.keys_done.store(self.copied, Ordering::Relaxed);
            let (took, since) = (round.elapsed(), began.elapsed());
            if took <= ROUND_SHORT || (since >= PATIENCE && took <= ROUND_LONG) {
                return Ok(());
            }
            if since >= HOPE {
                let context = format!(
                    "more is written than can be copied meanwhile: writes would have to stop for {} ms",
                    took.as_millis()
                );
                return Err(Error::new(Kind::Refused, FOLLOW, context));
            }
        }
    }

    /// Stops writes to the old primaries and copies the last of them; on return both hold the same and it stays so, until the
    /// answer is dropped.
    ///
    /// # Errors
    /// As [`Following::catch_up`]; [`Kind::Refused`] where the followed one is no primary any more, or every key may have
    /// changed in the last moment (`FLUSHALL`); [`Kind::Mismatch`] where the new ones hold other keys. Writes go on then.
    pub fn halt(&mut self) -> Result<Halted, Error> {
        let halted = Halted {
            nodes: self
                .sources
                .iter()
                .map(|source| source.follower.endpoint.clone())
                .collect(),
            since: Instant::now(),
        };
        let limit = PAUSE.as_millis().to_string();
        for source in &mut self.sources {
            source.node.run(&["CLIENT", "PAUSE", &limit, "WRITE"])?;
        }
        failpoint::hit("follow.halted")?;
        for source in &mut self.sources {
            let offset = offset_of_primary(&mut source.node)?;
            while source.follower.offset() < offset {
                source.follower.check()?;
                if halted.since.elapsed() >= LAST_BYTES {
                    let context = format!("{} does not send the last that was written", source.node.label());
                    return Err(Error::new(Kind::Idle, FOLLOW, context));
                }
                std::thread::sleep(POLL);
            }
        }
        self.round(false)?;
        let (theirs, ours) = (self.lasting_of_sources()?, self.lasting_of_sinks()?);
        if theirs != ours {
            let context = format!(
                "the new nodes hold other keys: {ours:?} that do not expire, and the old ones {theirs:?}"
            );
            return Err(Error::new(Kind::Mismatch, FOLLOW, context));
        }
        failpoint::hit("follow.drained")?;
        Ok(halted)
    }

    /// Copies all that has been received.
    fn round(&mut self, may_scan: bool) -> Result<(), Error> {
        for at in 0..self.sources.len() {
            self.sources[at].follower.check()?;
            let up_to = self.sources[at].follower.shared.received.load(Ordering::Acquire);
            loop {
                let source = &mut self.sources[at];
                let Some(written) = source.trail.next(up_to, &mut source.node)? else {
                    break;
                };
                match written {
                    Written::Keys(database, keys) => {
                        for key in keys {
                            self.note(at, database, key)?;
                        }
                    }
                    Written::Carried(databases, keys) => {
                        for database in databases {
                            for key in &keys {
                                self.note(at, database, key.clone())?;
                            }
                        }
                    }
                    Written::Functions => self.copy_functions(at)?,
                    Written::All if may_scan => self.copy_all(at)?,
                    Written::All => {
                        let context = "all keys were removed or swapped in the last moment";
                        return Err(Error::new(Kind::Refused, FOLLOW, context));
                    }
                }
            }
            self.copy_pending(at)?;
        }
        Ok(())
    }

    fn note(&mut self, source: usize, database: u32, key: Vec<u8>) -> Result<(), Error> {
        let bytes = key.len();
        if self.pending.insert((database, key)) {
            self.pending_bytes += bytes;
        }
        match self.pending.len() >= PENDING_KEYS_MAX || self.pending_bytes >= PENDING_BYTES_MAX {
            true => self.copy_pending(source),
            false => Ok(()),
        }
    }

    fn copy_pending(&mut self, source: usize) -> Result<(), Error> {
        let mut by_database: BTreeMap<u32, Vec<Vec<u8>>> = BTreeMap::new();
        for (database, key) in self.pending.drain() {
            by_database.entry(database).or_default().push(key);
        }
        self.pending_bytes = 0;
        for (database, keys) in by_database {
            self.copy(source, database, &keys)?;
        }
        Ok(())
    }

    /// Makes these keys at the new primaries what they are at the old one.
    fn copy(&mut self, source: usize, database: u32, keys: &[Vec<u8>]) -> Result<(), Error> {
        let from = &mut self.sources[source];
        select(&mut from.node, &mut from.database, database)?;
        let (mut rest, mut count) = (keys, BATCH_KEYS);
        while !rest.is_empty() {
            let (batch, behind) = rest.split_at(count.min(rest.len()));
            rest = behind;
            for key in batch {
                let node = &mut self.sources[source].node;
                node.send(&[b"PEXPIRETIME", key])?;
                node.send(&[b"DUMP", key])?;
            }
            let (mut asked, mut bytes) = (vec![0; self.sinks.len()], 0);
            for key in batch {
                let number = self.sink_of(key);
                let sink = &mut self.sinks[number];
                asked[number] += select(&mut sink.node, &mut sink.database, database).map(|()| 1)?;
                bytes += give(&mut self.sources[source].node, key, &mut sink.node)?;
            }
            for (sink, count) in self.sinks.iter_mut().zip(asked) {
                for _ in 0..count {
                    if let Reply::Error(text) = sink.node.reply()? {
                        let context = format!("{} does not take a key: {text}", sink.node.label());
                        return Err(Error::new(Kind::Refused, FOLLOW, context));
                    }
                }
            }
            self.copied += batch.len() as u64;
            // The primary keeps in memory what it has been asked for and has not sent.
            count = if bytes > LARGE_BYTES { 1 } else { BATCH_KEYS };
        }
        Ok(())
    }

    fn sink_of(&self, key: &[u8]) -> usize {
        match self.sinks.len() {
            1 => 0,
            _ => usize::from(self.sink_of[usize::from(rdb::slot_of(key))]),
        }
    }

    /// Looks at every key of the old primary, and at every one of the new ones that would be its.
    fn copy_all(&mut self, source: usize) -> Result<(), Error> {
        // What was noted before is among it.
        self.pending.clear();
        self.pending_bytes = 0;
        let owned = self.slots_of_source(source)?;
        let mut databases: Vec<u32> = databases(&mut self.sources[source].node)?;
        for sink in &mut self.sinks {
            databases.extend(self::databases(&mut sink.node)?);
        }
        databases.sort_unstable();
        databases.dedup();
        for database in databases {
            let mut cursor = b"0".to_vec();
            loop {
                let from = &mut self.sources[source];
                select(&mut from.node, &mut from.database, database)?;
                let (next, keys) = scan(&mut from.node, &cursor)?;
                self.copy(source, database, &keys)?;
                if next == b"0" {
                    break;
                }
                cursor = next;
            }
            for number in 0..self.sinks.len() {
                let mut cursor = b"0".to_vec();
                loop {
                    let sink = &mut self.sinks[number];
                    select(&mut sink.node, &mut sink.database, database)?;
                    let (next, mut keys) = scan(&mut sink.node, &cursor)?;
                    keys.retain(|key| {
                        owned
                            .as_ref()
                            .is_none_or(|owned| owned[usize::from(rdb::slot_of(key))])
                    });
                    self.copy(source, database, &keys)?;
                    if next == b"0" {
                        break;
                    }
                    cursor = next;
                }
            }
        }
        Ok(())
    }

    /// Which slots are the old primary's; `None`: all keys are.
    fn slots_of_source(&mut self, source: usize) -> Result<Option<Vec<bool>>, Error> {
        if self.sources.len() == 1 {
            return Ok(None);
        }
        let mut owned = vec![false; usize::from(SLOTS)];
        for seen in crate::cluster::view(&mut self.sources[source].node)? {
            if seen.is("myself") {
                for (first, last) in &seen.slots {
                    owned[usize::from(*first)..=usize::from(*last)].fill(true);
                }
            }
        }
        Ok(Some(owned))
    }

    /// Gives all new primaries the libraries of functions that the old one has.
    fn copy_functions(&mut self, source: usize) -> Result<(), Error> {
        let Reply::Bulk(Some(libraries)) = self.sources[source].node.run(&["FUNCTION", "DUMP"])? else {
            return Ok(());
        };
        for sink in &mut self.sinks {
            sink.node
                .command(&[b"FUNCTION", b"RESTORE", &libraries, b"FLUSH"])?;
        }
        Ok(())
    }

    fn lasting_of_sources(&mut self) -> Result<BTreeMap<String, u64>, Error> {
        lasting(self.sources.iter_mut().map(|source| &mut source.node))
    }

    fn lasting_of_sinks(&mut self) -> Result<BTreeMap<String, u64>, Error> {
        lasting(self.sinks.iter_mut().map(|sink| &mut sink.node))
    }
}

/// Writes to the old primaries wait for as long as this lives.
#[derive(Debug)]
pub struct Halted {
    nodes: Vec<Endpoint>,
    since: Instant,
}

impl Halted {
    /// For how long they have waited.
    pub fn waited(&self) -> Duration {
        self.since.elapsed()
    }
}

impl Drop for Halted {
    fn drop(&mut self) {
        for endpoint in &self.nodes {
            let resumed = Node::connect(endpoint).and_then(|mut node| node.run(&["CLIENT", "UNPAUSE"]));
            if let Err(e) = resumed {
                tracing::warn!(node = %endpoint.address, error = %chain(&e), "writes may wait for some seconds more");
            }
        }
    }
}

/// Reads the answers to `PEXPIRETIME` and `DUMP` of a key and sends what makes it that elsewhere; returns how many bytes its
/// value was. One that was made anew between the two has been written again, and comes again.
fn give(from: &mut Node, key: &[u8], to: &mut Node) -> Result<u64, Error> {
    let until = match from.reply()? {
        Reply::Int(until) => until,
        Reply::Error(text) => return Err(refused(from, &text)),
        other => return Err(refused(from, &format!("PEXPIRETIME is answered with {other:?}"))),
    };
    let bytes = match from.bulk_header()? {
        Ok(bytes) => bytes,
        Err(Reply::Error(text)) => return Err(refused(from, &text)),
        Err(other) => return Err(refused(from, &format!("DUMP is answered with {other:?}"))),
    };
    // One that expires between the two answers is not there any more.
    let Some(bytes) = bytes else {
        return to.send(&[b"UNLINK", key]).map(|()| 0);
    };
    let due = until.max(0).to_string();
    let head = format!("*6\r\n$7\r\nRESTORE\r\n${}\r\n", key.len());
    let middle = format!("\r\n${}\r\n{due}\r\n${bytes}\r\n", due.len());
    to.send_raw(&[head.as_bytes(), key, middle.as_bytes()].concat())?;
    let mut left = usize::try_from(bytes).unwrap_or(usize::MAX);
    let mut piece = vec![0; left.min(PIECE_BYTES)];
    while left > 0 {
        let count = left.min(PIECE_BYTES);
        from.read_exact(&mut piece[..count])?;
        to.send_raw(&piece[..count])?;
        left -= count;
    }
    from.read_exact(&mut [0; 2])?;
    to.send_raw(b"\r\n$7\r\nREPLACE\r\n$6\r\nABSTTL\r\n")?;
    Ok(bytes)
}

fn refused(node: &Node, text: &str) -> Error {
    Error::new(Kind::Refused, FOLLOW, format!("{}: {text}", node.label()))
}

/// Goes to a database where the connection is in another one.
fn select(node: &mut Node, now: &mut u32, wanted: u32) -> Result<(), Error> {
    if *now != wanted {
        node.run(&["SELECT", &wanted.to_string()])?;
        *now = wanted;
    }
    Ok(())
}

fn scan(node: &mut Node, cursor: &[u8]) -> Result<(Vec<u8>, Vec<Vec<u8>>), Error> {
    let garbage = |node: &Node| {
        Error::new(
            Kind::Protocol,
            FOLLOW,
            format!("{}: no answer to SCAN", node.label()),
        )
    };
    let Reply::Array(answer) = node.command(&[b"SCAN", cursor, b"COUNT", PAGE_KEYS.as_bytes()])? else {
        return Err(garbage(node));
    };
    let mut answer = answer.into_iter();
    let (Some(Reply::Bulk(Some(next))), Some(Reply::Array(keys))) = (answer.next(), answer.next()) else {
        return Err(garbage(node));
    };
    let keys = keys.into_iter().filter_map(|key| match key {
        Reply::Bulk(key) => key,
        _ => None,
    });
    Ok((next, keys.collect()))
}

fn databases(node: &mut Node) -> Result<Vec<u32>, Error> {
    let fields = node.info("keyspace")?;
    let databases = fields
        .iter()
        .filter_map(|(name, _)| name.strip_prefix("db")?.parse().ok());
    Ok(databases.collect())
}

/// How many keys that never expire the nodes hold together, of each database.
fn lasting<'a>(nodes: impl Iterator<Item = &'a mut Node>) -> Result<BTreeMap<String, u64>, Error> {
    let mut found = BTreeMap::new();
    for node in nodes {
        for (database, says) in node.info("keyspace")? {
            let number = |wanted: &str| -> u64 {
                says.split(',')
                    .filter_map(|field| field.split_once('='))
                    .find(|(name, _)| *name == wanted)
                    .and_then(|(_, value)| value.parse().ok())
                    .unwrap_or(0)
            };
            if database.starts_with("db") {
                *found.entry(database.clone()).or_insert(0) +=
                    number("keys").saturating_sub(number("expires"));
            }
        }
    }
    found.retain(|_, keys| *keys > 0);
    Ok(found)
}

fn offset_of_primary(node: &mut Node) -> Result<i64, Error> {
    if let Reply::Array(words) = node.run(&["ROLE"])?
        && words.first().and_then(Reply::text).as_deref() == Some("master")
        && let Some(offset) = words.get(1).and_then(Reply::int)
    {
        return Ok(offset);
    }
    let context = format!("{} is no primary any more", node.label());
    Err(Error::new(Kind::Refused, FOLLOW, context))
}
