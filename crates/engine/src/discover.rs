//! What a server that is not ours is part of: found out from any of its nodes or Sentinels, each time it is used.
//!
//! Nothing that is learnt is trusted to lead anywhere: every address, given or learnt, goes through the caller's `dial`, which
//! looks at it before it connects. A primary that cannot be reached is an error; a replica that cannot is told and left out.

mod dialled;
mod seeds;
mod sentinels;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cluster::{self, Seen};
use crate::error::{Error, Kind};
use crate::hindrance::{RESTORE, SCAN, SELECT, SET, UNLINK, hindrance, hindrance_of_command};
use crate::node::Node;

use dialled::Dialled;
pub use seeds::{Aim, NO_SENTINEL, Wanted, discover};

/// Where engines listen by default, and where Sentinels do. Source: redis.conf, sentinel.conf.
const PORT: u16 = 6379;
/// Replicas of replicas are followed so far up to their primary.
const HOPS_MAX: u32 = 4;
/// Nodes that are looked at: the most that the cluster specification recommends.
const NODES_MAX: usize = 1000;

/// Where a node is said to be.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HostPort {
    /// A name or an address, an IPv6 one without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl HostPort {
    /// Both halves.
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self {
            host: host.into(),
            port,
        }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// A text that is no host with a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoHostPort;

impl FromStr for HostPort {
    type Err = NoHostPort;

    /// `HOST[:PORT]`, an IPv6 address in brackets; without a port 6379.
    fn from_str(text: &str) -> Result<Self, NoHostPort> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or(NoHostPort)?;
                host.parse::<std::net::Ipv6Addr>().map_err(|_| NoHostPort)?;
                (host, port)
            }
            None => text.split_at(text.find(':').unwrap_or(text.len())),
        };
        let port = match port.strip_prefix(':') {
            Some(port) => port.parse().ok().filter(|port| *port > 0).ok_or(NoHostPort)?,
            None if port.is_empty() => PORT,
            None => return Err(NoHostPort),
        };
        match is_host(host) {
            false => Err(NoHostPort),
            true => Ok(Self::new(host, port)),
        }
    }
}

fn is_plain(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || matches!(letter, '.' | '-' | '_')
}

/// Whether this may be the name or the address of a host. What a peer calls one is told to people, and may be any text.
fn is_host(text: &str) -> bool {
    !text.is_empty() && text.len() <= 253 && text.chars().all(|letter| is_plain(letter) || letter == ':')
}

/// What a peer calls something, as it may be told.
fn shown(name: &str) -> &str {
    match name.len() <= 64 && name.chars().all(is_plain) {
        true => name,
        false => "(a name that is not shown)",
    }
}

/// As what a peer is dialled: the two have users of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum As {
    /// It has data.
    Node,
    /// It watches some that have.
    Sentinel,
}

/// Connects and authenticates; what must not be connected to is refused as what does not answer. Called by several threads at once.
pub type Dial<'a> = &'a (dyn Fn(&HostPort, As) -> Result<Node, Error> + Sync);

/// How the nodes belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// One node, or a primary with replicas.
    Whole,
    /// Each shard has a part of the slots.
    Cluster,
}

/// How a backup can be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// As a replica's copy: one moment of the data.
    Psync,
    /// Key by key, for `PSYNC` is hidden or forbidden: of no single moment.
    Scan,
    /// Neither may be had.
    None,
}

/// A node, as it was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFound {
    /// Where.
    pub at: HostPort,
    /// Why it is of no use now: it does not answer, or has lost its primary. `None`: it is fine.
    pub amiss: Option<String>,
}

/// A primary and its replicas.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardFound {
    /// Its slots, each range with both ends; empty where it is no cluster.
    pub slots: Vec<(u16, u16)>,
    /// Takes writes.
    pub primary: HostPort,
    /// Follow it.
    pub replicas: Vec<NodeFound>,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// How the nodes belong together.
    pub form: Form,
    /// `redis`, `valkey`
    pub family: String,
    /// The first primary's version.
    pub version: String,
    /// In the order of their first slots.
    pub shards: Vec<ShardFound>,
    /// Sentinels that were given, and those they know.
    pub sentinels: Vec<HostPort>,
    /// What the data takes in memory, all primaries together, in bytes.
    pub used_bytes: u64,
    /// What it may take, in bytes; 0 where one of them has no limit.
    pub limit_bytes: u64,
    /// `aof`, `rdb`, `none`: what survives a crash, as the first primary says; `None`: it may not be asked.
    pub persistence: Option<String>,
    /// How a backup can be taken.
    pub way: Way,
    /// What is renamed, forbidden, hidden or out of reach, and what that means.
    pub notes: Vec<String>,
}

impl Found {
    /// Every node with data.
    pub fn nodes(&self) -> impl Iterator<Item = &HostPort> {
        self.shards.iter().flat_map(|shard| {
            std::iter::once(&shard.primary).chain(shard.replicas.iter().map(|replica| &replica.at))
        })
    }
}

fn spot(fields: &[(String, String)], host: &str, port: &str) -> Option<HostPort> {
    let port = field(fields, port)?.parse().ok().filter(|port| *port > 0)?;
    let host = field(fields, host).filter(|host| is_host(host))?;
    Some(HostPort::new(host, port))
}

/// A node and those that it follows or that follow it.
fn by_replication(mut at: HostPort, mut node: Node, dialled: &Dialled<'_>) -> Result<Found, Error> {
    let mut fields = node.info("replication")?;
    let mut hops = 0;
    while field(&fields, "role") == Some("slave") {
        hops += 1;
        let above = spot(&fields, "master_host", "master_port").filter(|_| hops <= HOPS_MAX);
        let above = above.ok_or_else(|| refused(format!("{at} is a replica of nobody that can be found")))?;
        (node, fields) = dialled.open(&above, As::Node, |node| node.info("replication"))?;
        at = above;
    }
    let replicas = fields
        .iter()
        .filter(|(name, _)| is_replica_line(name))
        .filter_map(|(_, value)| {
            let parts = value.split(',').filter_map(|part| part.split_once('='));
            let parts: Vec<(String, String)> = parts
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect();
            spot(&parts, "ip", "port")
        });
    let replicas = replicas.take(NODES_MAX).collect();
    let shard = (Vec::new(), at, replicas);
    describe(Form::Whole, vec![(shard, Some(node))], Vec::new(), dialled)
}

/// `slave0`, `slave1`
fn is_replica_line(name: &str) -> bool {
    name.strip_prefix("slave")
        .is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// All shards of a node's cluster.
fn by_cluster(at: &HostPort, mut node: Node, dialled: &Dialled<'_>) -> Result<Found, Error> {
    let view = match cluster::view(&mut node) {
        Err(error) if error.kind == Kind::Refused => {
            return Err(refused(format!(
                "{at} does not tell its cluster: the user needs +cluster|nodes"
            )));
        }
        other => other?,
    };
    if view.len() > NODES_MAX {
        return Err(refused(format!(
            "the cluster has {} nodes, more than {NODES_MAX}",
            view.len()
        )));
    }
    if view
        .iter()
        .any(|seen| !seen.host.is_empty() && !is_host(&seen.host))
    {
        return Err(refused(format!(
            "the cluster of {at} names a node that is no host"
        )));
    }
    let place = |seen: &Seen| match seen.is("myself") && (seen.host.is_empty() || seen.port == 0) {
        // It was never told its own address.
        true => at.clone(),
        false if seen.host.is_empty() => HostPort::new(&*at.host, seen.port),
        false => HostPort::new(&*seen.host, seen.port),
    };
    let mut shards = Vec::new();
    let mut notes = Vec::new();
    for shard in cluster::shards(&view)? {
        let primary = view.iter().find(|seen| seen.id == shard.primary);
        let primary = primary.ok_or_else(|| refused("a shard without a primary".to_owned()))?;
        let mut replicas = Vec::new();
        for seen in view
            .iter()
            .filter(|seen| seen.primary.as_ref() == Some(&shard.primary))
        {
            match seen.is_settled() || seen.is("myself") {
                true => replicas.push(place(seen)),
                false => notes.push(format!(
                    "the replica {} is not reached by its cluster",
                    place(seen)
                )),
            }
        }
        shards.push(((shard.slots, place(primary), replicas), None));
    }
    describe(Form::Cluster, shards, notes, dialled)
}

type Places = (Vec<(u16, u16)>, HostPort, Vec<HostPort>);

/// Looks at every node, each primary's connection given or made.
fn describe(
    form: Form,
    shards: Vec<(Places, Option<Node>)>,
    mut notes: Vec<String>,
    dialled: &Dialled<'_>,
) -> Result<Found, Error> {
    let mut about = None;
    let (mut used_bytes, mut limit_bytes, mut is_limited) = (0u64, 0u64, true);
    let mut found = Vec::new();
    for ((slots, primary, replicas), node) in shards {
        let (mut node, memory) = match node {
            Some(mut node) => {
                let memory = node.info("memory")?;
                (node, memory)
            }
            None => dialled.open(&primary, As::Node, |node| node.info("memory"))?,
        };
        used_bytes = used_bytes.saturating_add(number(&memory, "used_memory"));
        let limit = number(&memory, "maxmemory");
        is_limited &= limit > 0;
        limit_bytes = limit_bytes.saturating_add(limit);
        if about.is_none() {
            about = Some(look_at(&mut node, &mut notes)?);
        }
        let replicas = replicas.into_iter().map(|at| {
            let amiss = match dialled.open(&at, As::Node, |node| node.info("replication")) {
                Ok((_, fields)) if field(&fields, "master_link_status") == Some("up") => None,
                Ok(_) => Some("it is not in sync with its primary".to_owned()),
                Err(error) => Some(
                    match error.kind {
                        Kind::Auth => "it does not know the user or the password",
                        Kind::Refused => "the user may not do there what it may on the primary",
                        _ => "nothing that may be connected to answers there",
                    }
                    .to_owned(),
                ),
            };
            if let Some(why) = &amiss {
                notes.push(format!("the replica {at} is left out: {why}"));
            }
            NodeFound { at, amiss }
        });
        let replicas = replicas.collect();
        found.push(ShardFound {
            slots,
            primary,
            replicas,
        });
    }
    let about = about.ok_or_else(|| refused("a cluster without shards".to_owned()))?;
    Ok(Found {
        form,
        family: about.family,
        version: about.version,
        shards: found,
        sentinels: Vec::new(),
        used_bytes,
        limit_bytes: if is_limited { limit_bytes } else { 0 },
        persistence: about.persistence,
        way: about.way,
        notes,
    })
}

struct About {
    family: String,
    version: String,
    persistence: Option<String>,
    way: Way,
}

/// What a primary is and lets us do.
fn look_at(node: &mut Node, notes: &mut Vec<String>) -> Result<About, Error> {
    let server = node.info("server")?;
    let text = |name: &str| field(&server, name).map(str::to_owned);
    let (family, version) = match text("valkey_version") {
        Some(version) => ("valkey".to_owned(), version),
        None => ("redis".to_owned(), text("redis_version").unwrap_or_default()),
    };
    let mut way = Way::Psync;
    for (command, is_needed) in [
        (&["PSYNC", "?", "-1"][..], true),
        (&["REPLCONF", "capa", "eof"], true),
        (TUNES, false),
    ] {
        let Some(hindrance) = hindrance(node, command)? else {
            continue;
        };
        notes.push(format!("{hindrance}{}", if is_needed { "" } else { SLOW }));
        if is_needed {
            way = Way::Scan;
        }
    }
    if way == Way::Scan {
        notes.push("a backup is read key by key (SCAN, DUMP), and so is of no single moment; libraries of functions are left out".to_owned());
        for command in [&["SCAN", "0"][..], &["DUMP", "key"], &["PTTL", "key"], &["TIME"]] {
            if let Some(hindrance) = hindrance(node, command)? {
                notes.push(format!("{hindrance}: no backup can be taken"));
                way = Way::None;
            }
        }
    }
    look_at_writing(node, mode(&server) == Some("cluster"), notes)?;
    let value = |node: &mut Node, name: &str| match node.config_get(name) {
        Ok(value) => Ok(value),
        Err(error) if error.kind == Kind::Refused => Ok(None),
        Err(error) => Err(error),
    };
    let persistence = match (
        value(node, "appendonly")?.as_deref(),
        value(node, "save")?.as_deref(),
    ) {
        (None, _) => None,
        (Some("yes"), _) => Some("aof"),
        (Some(_), Some("") | None) => Some("none"),
        (Some(_), Some(_)) => Some("rdb"),
    };
    Ok(About {
        family,
        version,
        persistence: persistence.map(str::to_owned),
        way,
    })
}

/// What a capture sets on its source.
const TUNES: &[&str] = &["CONFIG", "SET", "repl-diskless-sync-delay", "0"];
const SLOW: &str = ": a snapshot begins repl-diskless-sync-delay later (5 s where nobody has changed it)";

/// What of a restore into it cannot be.
fn look_at_writing(node: &mut Node, is_cluster: bool, notes: &mut Vec<String>) -> Result<(), Error> {
    if let Some(hindrance) = hindrance_of_command(node, RESTORE)? {
        let by_commands = hindrance_of_command(node, SET)?.is_none();
        let but = if by_commands { " but by commands" } else { "" };
        notes.push(format!("{hindrance}: nothing can be restored into it{but}"));
        if !by_commands {
            return Ok(());
        }
    }
    let of_others = [
        (SCAN, "no restore can remove other keys"),
        (UNLINK, "no restore but one by commands can remove other keys"),
    ];
    let of_dbs = (!is_cluster).then_some((SELECT, "nothing can be restored into other databases than 0"));
    for (command, what) in of_others.into_iter().chain(of_dbs) {
        if let Some(hindrance) = hindrance_of_command(node, command)? {
            notes.push(format!("{hindrance}: {what}"));
        }
    }
    Ok(())
}

/// Whether a source can give a snapshot without suffering: it has loaded, and there is memory for the pages that change while
/// its child writes.
///
/// # Errors
/// [`Kind::Refused`] while it loads; [`Kind::SourceAtRisk`] with what it has and what it needs.
pub fn check_before_capture(node: &mut Node) -> Result<(), Error> {
    let persistence = node.info("persistence")?;
    if field(&persistence, "loading") == Some("1") {
        return Err(refused(format!(
            "{} is loading its data: try again when it has",
            node.label()
        )));
    }
    let memory = node.info("memory")?;
    let has = number(&memory, "total_system_memory");
    let needed = memory_needed(&memory, &persistence);
    if has > 0 && needed > has {
        let context = format!(
            "{} would have {} MB of memory in use while its child writes, and its machine has {} MB",
            node.label(),
            needed >> 20,
            has >> 20
        );
        return Err(Error::new(Kind::SourceAtRisk, "begin capture", context));
    }
    Ok(())
}

/// What it has in memory, and what its child copied of that when it wrote last; a tenth where that is not known.
fn memory_needed(memory: &[(String, String)], persistence: &[(String, String)]) -> u64 {
    let copied = match number(persistence, "rdb_last_cow_size") {
        0 => number(memory, "used_memory") / 10,
        bytes => bytes,
    };
    number(memory, "used_memory_rss").saturating_add(copied)
}

/// Of the replicas of a shard one that has all that its primary had, and is not behind by more than `limit` of waiting.
pub fn caught_up<'a>(
    shard: &'a ShardFound,
    primary: &mut Node,
    limit: Duration,
    dial: Dial<'_>,
) -> Result<Option<&'a HostPort>, Error> {
    for replica in shard.replicas.iter().filter(|replica| replica.amiss.is_none()) {
        if let Ok(mut node) = dial(&replica.at, As::Node)
            && cluster::has_caught_up(primary, &mut node, limit)?
        {
            return Ok(Some(&replica.at));
        }
    }
    Ok(None)
}

fn refused(what: String) -> Error {
    Error::new(Kind::Refused, "discover", what)
}

pub(crate) fn field<'a>(fields: &'a [(String, String)], wanted: &str) -> Option<&'a str> {
    let found = fields.iter().find(|(name, _)| name == wanted);
    found.map(|(_, value)| value.as_str())
}

/// `standalone`, `cluster`, `sentinel`: Valkey has a name of its own for the field.
pub(crate) fn mode(server: &[(String, String)]) -> Option<&str> {
    field(server, "redis_mode").or_else(|| field(server, "server_mode"))
}

/// 0 where it is not told.
pub(crate) fn number(fields: &[(String, String)], wanted: &str) -> u64 {
    field(fields, wanted)
        .and_then(|value| value.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_a_peer_calls_something_is_told_where_it_is_plain() {
        assert_eq!(shown("my-primary_1.eu"), "my-primary_1.eu");
        for odd in ["<b>", "a b", "secret\n", "é", &"a".repeat(65)] {
            assert_eq!(shown(odd), "(a name that is not shown)", "{odd}");
        }
        let fields = |host: &str| {
            let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
            [pair("ip", host), pair("port", "7000")]
        };
        assert_eq!(
            spot(&fields("fd00::1"), "ip", "port"),
            Some(HostPort::new("fd00::1", 7000))
        );
        assert_eq!(spot(&fields("a secret"), "ip", "port"), None);
    }

    #[test]
    fn a_host_with_a_port_is_read_as_it_is_written() {
        for (text, host, port) in [
            ("host", "host", 6379),
            ("10.0.0.1:7000", "10.0.0.1", 7000),
            ("[::1]", "::1", 6379),
            ("[fd00::1]:26379", "fd00::1", 26379),
        ] {
            let read: HostPort = text.parse().unwrap();
            assert_eq!(read, HostPort::new(host, port), "{text}");
            assert_eq!(read.to_string().parse(), Ok(read), "{text}");
        }
        for wrong in [
            "",
            ":6379",
            "host:",
            "host:0",
            "host:x",
            "host:70000",
            "::1",
            "[::1",
            "[::1]x",
            "[host]:1",
            "a b",
            "a/b:1",
            "user@host:1",
            "host\r\n:1",
        ] {
            assert_eq!(wrong.parse::<HostPort>(), Err(NoHostPort), "{wrong}");
        }
    }

    #[test]
    fn lines_of_replicas_are_told_from_other_lines() {
        assert!(is_replica_line("slave0") && is_replica_line("slave12"));
        for other in ["slave", "slave_repl_offset", "slave0x", "connected_slaves"] {
            assert!(!is_replica_line(other), "{other}");
        }
    }

    #[test]
    fn memory_counts_what_the_child_copies() {
        let fields = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            let pairs = pairs.iter();
            pairs
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect()
        };
        let memory = fields(&[("used_memory", "1000"), ("used_memory_rss", "1500")]);
        assert_eq!(memory_needed(&memory, &[]), 1600);
        assert_eq!(
            memory_needed(&memory, &fields(&[("rdb_last_cow_size", "700")])),
            2200
        );
        assert_eq!(memory_needed(&[], &[]), 0);
    }
}
