//! Being a replica for as long as one snapshot takes.
//!
//! `REPLCONF capa eof capa psync2`, `REPLCONF rdb-only 1`, `PSYNC ? -1`; the primary forks, answers
//! `+FULLRESYNC <replid> <offset>` and sends the RDB of that very offset. Bare `\n` bytes are its keep-alives
//! while it waits and forks. The connection is not used for the stream of commands that would follow; replid and
//! offset are kept so that a later version can stay connected.
//!
//! Source: the engines' `src/replication.c`, `syncCommand` and `readSyncBulkPayload`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use crate::control::Control;
use crate::error::{Error, Kind};
use crate::failpoint;
use crate::node::{Address, Bounds, Endpoint, Node, Reply};

const ASK: &str = "ask for snapshot";
/// What is said where the user may not.
const NEEDS: &str = " (the user needs +psync and +replconf)";
/// Longest silence of the socket before the operation's control is asked again.
const SLICE: Duration = Duration::from_millis(100);
/// A source must have answered everything by then that is asked before the snapshot.
const ANSWERS_MAX: Duration = Duration::from_secs(60);
/// Longest line of the handshake; the answers are below 100 bytes, error texts below 300.
const LINE_BYTES_MAX: usize = 4096;
/// Bytes of the mark that ends a snapshot of unknown length.
const MARK_BYTES: usize = 40;

/// How the source is tuned for the time of the capture.
#[derive(Debug, Clone)]
pub enum Tuning<'a> {
    /// As it is: a managed engine is configured rightly, and elsewhere there may be no right to `CONFIG`.
    None,
    /// `repl-diskless-sync-delay 0` (else the snapshot starts 5 s later) and `rdbcompression no` (else it takes
    /// 1.5 times as long and is stored larger). The old values return at `+FULLRESYNC`: the child that writes
    /// the snapshot has its own copy by then.
    Config,
    /// As [`Tuning::Config`], and each setting is written down before it is changed: who reads that after a crash puts it back.
    Noted(Ledger<'a>),
}

/// A setting of a source that is changed for the time of a capture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// The node, as its address is written.
    pub node: String,
    /// Where that was found, where it was looked up; notes of before have none.
    #[serde(default)]
    pub at: Option<SocketAddr>,
    /// `repl-diskless-sync-delay`
    pub name: String,
    /// What it was.
    pub before: String,
    /// What it is during the capture.
    pub during: String,
}

impl Setting {
    /// Puts it back where it still is what the capture made it: what its owner has changed meanwhile stays.
    ///
    /// # Errors
    /// As [`Node::command`].
    pub fn put_back(&self, node: &mut Node) -> Result<(), Error> {
        match node.config_get(&self.name)? {
            Some(now) if now == self.during => node.config_set(&self.name, &self.before),
            _ => Ok(()),
        }
    }
}

/// What becomes of a setting.
#[derive(Debug, Clone, Copy)]
pub enum Entry<'a> {
    /// It is about to be changed.
    Changing(&'a Setting),
    /// It is what it was.
    Back(&'a Setting),
}

/// Where settings are written down; what it is told is durable when it returns.
#[derive(Clone)]
pub struct Ledger<'a>(Arc<Tell<'a>>);

type Tell<'a> = dyn Fn(Entry<'_>) -> Result<(), Error> + Send + Sync + 'a;

impl<'a> Ledger<'a> {
    /// One that tells this.
    pub fn new(tell: impl Fn(Entry<'_>) -> Result<(), Error> + Send + Sync + 'a) -> Self {
        Self(Arc::new(tell))
    }
}

impl std::fmt::Debug for Ledger<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ledger")
    }
}

/// What is set for the time of the capture.
const TUNED: [(&str, &str); 2] = [("repl-diskless-sync-delay", "0"), ("rdbcompression", "no")];

/// Connects to a source, which may be anything.
///
/// # Errors
/// As [`Node::connect_within`].
pub fn connect(source: &Endpoint) -> Result<Node, Error> {
    Node::connect_within(source, Bounds::narrow(ANSWERS_MAX))
}

/// Tuned settings, put back at the latest when this is dropped.
pub(crate) struct Tuned<'a> {
    endpoint: Endpoint,
    node: Option<Node>,
    ledger: Option<Ledger<'a>>,
    changed: Vec<Setting>,
}

impl<'a> Tuned<'a> {
    /// Reads the old values and sets the new ones, on a connection of its own. A refusal is a warning: the
    /// capture is slower without, not worse.
    ///
    /// # Errors
    /// As [`Node::connect`] and [`Node::command`] except [`Kind::Refused`]; what was set is put back.
    pub(crate) fn apply(endpoint: &Endpoint, tuning: &Tuning<'a>) -> Result<Self, Error> {
        let mut tuned = Self {
            endpoint: endpoint.clone(),
            node: None,
            ledger: None,
            changed: Vec::new(),
        };
        match tuning {
            Tuning::None => return Ok(tuned),
            Tuning::Config => {}
            Tuning::Noted(ledger) => tuned.ledger = Some(ledger.clone()),
        }
        let mut node = connect(endpoint)?;
        for (name, wanted) in TUNED {
            match tuned.change(&mut node, name, wanted) {
                Ok(()) => {}
                Err(e) if e.kind == Kind::Refused => {
                    if tuned.changed.last().is_some_and(|last| last.name == name) {
                        tuned.settle_last()?;
                    }
                    tracing::warn!(setting = name, error = %e, "capture goes on without tuning the source");
                }
                Err(e) => return Err(e),
            }
        }
        tuned.node = Some(node);
        Ok(tuned)
    }

    fn change(&mut self, node: &mut Node, name: &str, wanted: &str) -> Result<(), Error> {
        let Some(before) = node.config_get(name)?.filter(|old| old != wanted) else {
            return Ok(());
        };
        let setting = Setting {
            node: self.endpoint.address.to_string(),
            at: match &self.endpoint.address {
                Address::Checked(_, at) => Some(*at),
                Address::Tcp(..) | Address::Unix(_) => None,
            },
            name: name.to_owned(),
            before,
            during: wanted.to_owned(),
        };
        if let Some(Ledger(tell)) = &self.ledger {
            tell(Entry::Changing(&setting))?;
            failpoint::hit("source.noted")?;
        }
        // Noted first: a broken connection must not hide that the value may have been set.
        self.changed.push(setting);
        node.config_set(name, wanted)?;
        failpoint::hit("source.tuned")
    }

    /// The last one is what it was.
    fn settle_last(&mut self) -> Result<(), Error> {
        if let Some(setting) = self.changed.last()
            && let Some(Ledger(tell)) = &self.ledger
        {
            failpoint::hit("source.put_back")?;
            tell(Entry::Back(setting))?;
        }
        self.changed.pop();
        Ok(())
    }

    /// Puts the old values back, over a new connection where the old one broke: all that can be.
    ///
    /// # Errors
    /// As [`Node::connect`] and [`Node::command`], the first of them: the source still has those values of the capture.
    pub(crate) fn put_back(&mut self) -> Result<(), Error> {
        let mut node = self.node.take();
        let (mut left, mut first) = (Vec::new(), Ok(()));
        while let Some(setting) = self.changed.last() {
            let through_old = node.is_some();
            let mut through = match node.take().map_or_else(|| connect(&self.endpoint), Ok) {
                Ok(through) => through,
                // The others are of the same node.
                Err(e) => {
                    first = first.and(Err(e));
                    break;
                }
            };
            let is_back = setting.put_back(&mut through);
            let is_broken = matches!(&is_back, Err(e) if e.kind != Kind::Refused);
            // The connection idled for as long as the fork took: once more over a fresh one.
            if is_broken && through_old {
                continue;
            }
            if !is_broken {
                node = Some(through);
            }
            if let Err(e) = is_back.and_then(|()| self.settle_last()) {
                first = first.and(Err(e));
                left.extend(self.changed.pop());
            }
        }
        self.changed.extend(left.into_iter().rev());
        first
    }
}

impl Drop for Tuned<'_> {
    fn drop(&mut self) {
        if let Err(e) = self.put_back() {
            let left: Vec<_> = self
                .changed
                .iter()
                .map(|setting| format!("{} {}", setting.name, setting.before))
                .collect();
            tracing::error!(
                node = %self.endpoint.address, settings = ?left, error = %crate::error::chain(&e),
                "settings of the source could not be put back"
            );
        }
    }
}

/// Who is told that a primary has forked: of which shard, with which history and offset. What it replicates from there on is
/// there to be followed for a moment.
#[derive(Clone)]
pub struct Forked<'a>(Arc<Fork<'a>>);

type Fork<'a> = dyn Fn(usize, &str, i64) -> Result<(), Error> + Send + Sync + 'a;

impl<'a> Forked<'a> {
    /// One that tells this.
    pub fn new(tell: impl Fn(usize, &str, i64) -> Result<(), Error> + Send + Sync + 'a) -> Self {
        Self(Arc::new(tell))
    }
}

impl std::fmt::Debug for Forked<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Forked")
    }
}

/// How the payload ends.
enum Framing {
    /// `$<count>`: bytes that are still to come.
    Length(u64),
    /// `$EOF:<mark>`: the mark follows the last byte and is not part of the RDB. The primary sends nothing behind
    /// it before the replica acknowledges, so it always ends what has been received.
    Mark([u8; MARK_BYTES]),
}

/// A snapshot on its way: exactly the bytes of an RDB.
pub struct Snapshot {
    node: Node,
    framing: Framing,
    /// Received bytes that may be the start of the mark.
    held: Vec<u8>,
    is_finished: bool,
    idle_timeout: Duration,
    /// History that the offset belongs to, 40 hexadecimal digits.
    pub replid: String,
    /// Replication offset of the snapshot.
    pub offset: i64,
    /// Length in bytes where the source announced one.
    pub length: Option<u64>,
}

/// A primary that was asked for a snapshot and has not started it.
pub struct Handshake {
    node: Node,
    idle_timeout: Duration,
}

impl Handshake {
    /// Registers as a replica on an authenticated connection and asks for a full resync.
    ///
    /// # Errors
    /// [`Kind::Auth`] where a password is wanted, [`Kind::Refused`] where the user may not, and the errors of
    /// [`Node::ask`].
    pub fn begin(mut node: Node, idle_timeout: Duration) -> Result<Self, Error> {
        let answer = node.ask(&[b"REPLCONF", b"capa", b"eof", b"capa", b"psync2"])?;
        if let Reply::Error(text) = answer {
            return Err(refusal(&node, &text));
        }
        // Unknown before engine 7.0: then it is told so, and the bytes behind the snapshot are not read.
        node.ask(&[b"REPLCONF", b"rdb-only", b"1"])?;
        node.send(&[b"PSYNC", b"?", b"-1"])?;
        // From here on the operation's own limits hold.
        node.release();
        node.set_timeout(SLICE.min(idle_timeout))?;
        Ok(Self { node, idle_timeout })
    }

    /// Waits for `+FULLRESYNC`: from here on the child has its own copy of data and settings.
    ///
    /// # Errors
    /// [`Kind::Refused`] on `-LOADING`, `-MASTERDOWN`, `-NOMASTERLINK` and their like (text kept);
    /// [`Kind::Idle`] after the idle timeout without as much as a keep-alive; those of [`Control::check`].
    pub fn started(mut self, control: &Control) -> Result<Started, Error> {
        let line = read_line(&mut self.node, self.idle_timeout, control)?;
        if let Some(text) = line.strip_prefix('-') {
            return Err(refusal(&self.node, text));
        }
        let mut words = line.split(' ');
        let (Some("+FULLRESYNC"), Some(replid), Some(offset), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(garbage(&self.node, "answer to PSYNC", &line));
        };
        let is_id = replid.len() == 40 && replid.bytes().all(|byte| byte.is_ascii_alphanumeric());
        match offset.parse() {
            Ok(offset) if is_id => Ok(Started {
                replid: replid.to_owned(),
                offset,
                node: self.node,
                idle_timeout: self.idle_timeout,
            }),
            _ => Err(garbage(&self.node, "answer to PSYNC", &line)),
        }
    }
}

/// A primary that has forked.
pub struct Started {
    node: Node,
    idle_timeout: Duration,
    replid: String,
    offset: i64,
}

impl Started {
    /// Tells somebody.
    ///
    /// # Errors
    /// What that returns.
    pub(crate) fn tell(&self, shard: usize, forked: Option<&Forked<'_>>) -> Result<(), Error> {
        forked.map_or(Ok(()), |Forked(tell)| tell(shard, &self.replid, self.offset))
    }

    /// Waits for the header of the payload, `$<count>` or `$EOF:<mark>`.
    ///
    /// # Errors
    /// As [`Handshake::started`]. Nothing is consumed behind the header line.
    pub fn payload(mut self, control: &Control) -> Result<Snapshot, Error> {
        let line = read_line(&mut self.node, self.idle_timeout, control)?;
        if let Some(text) = line.strip_prefix('-') {
            return Err(refusal(&self.node, text));
        }
        let header = line.strip_prefix('$').unwrap_or("");
        let framing = match header.strip_prefix("EOF:") {
            Some(mark) => mark.as_bytes().try_into().ok().map(Framing::Mark),
            None => header.parse().ok().map(Framing::Length),
        };
        let Some(framing) = framing else {
            return Err(garbage(&self.node, "header of the snapshot", &line));
        };
        let length = match framing {
            Framing::Length(length) => Some(length),
            Framing::Mark(_) => None,
        };
        Ok(Snapshot {
            node: self.node,
            is_finished: length == Some(0),
            framing,
            held: Vec::with_capacity(MARK_BYTES),
            idle_timeout: self.idle_timeout,
            replid: self.replid,
            offset: self.offset,
            length,
        })
    }
}

impl Snapshot {
    /// The engine that sends it, where it is a process of this machine.
    pub(crate) fn sender(&self) -> Option<Pid> {
        self.node.peer()
    }

    /// Puts the next `limit` bytes into `chunk`, fewer only at the end. Returns whether more may follow.
    ///
    /// `is_wanted` is asked at each silence of the socket.
    ///
    /// # Errors
    /// [`Kind::Connection`] where the source closed before the end, [`Kind::Idle`] after the idle timeout, what
    /// `is_wanted` returns.
    pub fn fill(
        &mut self,
        chunk: &mut Vec<u8>,
        limit: usize,
        is_wanted: impl Fn() -> Result<(), Error>,
    ) -> Result<bool, Error> {
        assert!(limit > MARK_BYTES, "a chunk must hold more than the mark");
        let mut end = self.held.len();
        chunk.resize(limit, 0);
        chunk[..end].copy_from_slice(&self.held);
        self.held.clear();
        while !self.is_finished && end < limit {
            let room = match self.framing {
                Framing::Length(left) => (limit - end).min(usize::try_from(left).unwrap_or(usize::MAX)),
                Framing::Mark(_) => limit - end,
            };
            let into = &mut chunk[end..end + room];
            // A source that drips is never silent.
            is_wanted()?;
            let count = read_patiently(&mut self.node, into, self.idle_timeout, &is_wanted)?;
            end += count;
            match &mut self.framing {
                Framing::Length(left) => {
                    *left -= count as u64;
                    self.is_finished = *left == 0;
                }
                Framing::Mark(mark) => {
                    if chunk[..end].ends_with(mark) {
                        end -= MARK_BYTES;
                        self.is_finished = true;
                    }
                }
            }
        }
        if !self.is_finished && matches!(self.framing, Framing::Mark(_)) {
            self.held.extend_from_slice(&chunk[end - MARK_BYTES..end]);
            end -= MARK_BYTES;
        }
        chunk.truncate(end);
        Ok(!self.is_finished)
    }
}

/// Reads one line that is not empty, without its line end.
fn read_line(node: &mut Node, idle_timeout: Duration, control: &Control) -> Result<String, Error> {
    let mut line = Vec::new();
    // Byte by byte: what follows the line must stay unread, and a time slice must not lose half a line.
    let mut byte = [0];
    loop {
        read_patiently(node, &mut byte, idle_timeout, &|| {
            control.check("wait for snapshot")
        })?;
        // However slowly they come, and how many keep-alives there are: the deadline of the operation bounds them.
        control.check("wait for snapshot")?;
        match byte[0] {
            b'\r' => {}
            // A keep-alive.
            b'\n' if line.is_empty() => {}
            b'\n' => return Ok(String::from_utf8_lossy(&line).into_owned()),
            other => line.push(other),
        }
        if line.len() > LINE_BYTES_MAX {
            return Err(garbage(node, "line above 4 KiB", ""));
        }
    }
}

/// One read, in slices of silence short enough to notice that nobody wants the bytes any more.
fn read_patiently(
    node: &mut Node,
    into: &mut [u8],
    idle_timeout: Duration,
    is_wanted: &impl Fn() -> Result<(), Error>,
) -> Result<usize, Error> {
    let mut silent_since = None;
    loop {
        match node.read_some(into) {
            Err(e) if e.kind == Kind::Idle => {
                is_wanted()?;
                let since = *silent_since.get_or_insert_with(|| Instant::now() - SLICE);
                if since.elapsed() >= idle_timeout {
                    return Err(Error::new(
                        Kind::Idle,
                        "read snapshot",
                        format!("{} was silent for {} ms", node.label(), idle_timeout.as_millis()),
                    ));
                }
            }
            other => return other,
        }
    }
}

/// Whether a source refused a snapshot because the user may not ask for one: what an engine before 7.0 does not say before.
pub fn is_forbidden(error: &Error) -> bool {
    error.kind == Kind::Refused && error.operation == ASK && error.context.ends_with(NEEDS)
}

fn refusal(node: &Node, text: &str) -> Error {
    let kind = if text.starts_with("NOAUTH") || text.starts_with("WRONGPASS") {
        Kind::Auth
    } else {
        Kind::Refused
    };
    let hint = if text.starts_with("NOPERM") { NEEDS } else { "" };
    Error::new(kind, ASK, format!("{}: {text}{hint}", node.label()))
}

fn garbage(node: &Node, what: &str, line: &str) -> Error {
    let shown: String = line.chars().take(80).collect();
    Error::new(
        Kind::Protocol,
        ASK,
        format!("{}: unexpected {what}: {shown:?}", node.label()),
    )
}
