//! Clusters: what makes a process a node of one, how the nodes find each other, and what they say of each other.
//!
//! A node tells its final client port from its start on (`cluster-announce-port`), whether it has the port yet or not,
//! and its bus listens on a port of its own that never moves. So the nodes of a generation form a cluster before any
//! of them is reachable for clients, and `nodes.conf` in each directory brings the same cluster back after a reboot.
//!
//! A replica follows its primary at the port that this announces. Beside a generation that serves, that port is the
//! other's: so the primaries announce ports of their own until their replicas are in sync, and only then the final ones
//! ([`announce`]). From then on each generation's replicas knock at the other's primaries whenever a link of theirs
//! breaks; they are not let in, for every generation has a password of its own for its replicas.

mod form;
mod known;

use std::time::{Duration, Instant};

use crate::error::{Error, Kind};
use crate::node::Node;
use crate::process::Engine;

pub use form::{announce, form, wait_agreed, wait_whole};
pub use known::Peer;
pub(crate) use known::{NODES, settings_of, succeed_nobody};

/// Hash slots of every cluster. Source: cluster specification, "Key distribution model".
pub const SLOTS: u16 = 16384;
/// A node that does not answer for so long is taken for failed, and its shard's replica for its successor. Long enough
/// for a node that is starved of a processor on a busy machine.
pub(crate) const NODE_TIMEOUT: Duration = Duration::from_secs(5);
/// The same of a standby, whose only other node never answers: it would count itself among a minority, and for some seconds
/// more after that has ended.
pub(crate) const STANDBY_NODE_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// Between two looks at a cluster that is coming together.
const POLL: Duration = Duration::from_millis(20);
/// Where a node of a cluster is for others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seat {
    /// The address that it tells nodes and clients.
    pub address: String,
    /// The client port that it tells.
    pub port: u16,
    /// The port where other nodes reach it.
    pub bus_port: u16,
    /// Names the generation: only its own replicas know the password that is made of this.
    pub generation: String,
    /// All nodes of the cluster, itself among them, as it is to know them when it starts first. Empty: it meets them.
    pub peers: Vec<Peer>,
}

/// A node that is to be part of a cluster.
#[derive(Debug)]
pub struct Member {
    /// Its process.
    pub engine: Engine,
    /// Where others find it.
    pub seat: Seat,
    /// Which part of the slots it is for, from 0.
    pub shard: u16,
}

/// A line of `CLUSTER NODES`: what one node says of another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// 40 hex digits.
    pub id: String,
    /// The address that it tells; empty where it does not know its own yet.
    pub host: String,
    /// The client port.
    pub port: u16,
    /// The port where other nodes reach it.
    pub bus_port: u16,
    /// `myself`, `master`, `slave`, `fail?`, `fail`, `handshake`, `noaddr`.
    pub flags: Vec<String>,
    /// Whose replica it is.
    pub primary: Option<String>,
    /// Whether the link to it is up.
    pub is_linked: bool,
    /// Its slots, each range with both ends.
    pub slots: Vec<(u16, u16)>,
    /// Slots that are moving to or from it.
    pub moving: usize,
}

impl Seen {
    /// Whether the flag is set.
    pub fn is(&self, flag: &str) -> bool {
        self.flags.iter().any(|found| found == flag)
    }

    /// Whether others reach it.
    pub fn is_settled(&self) -> bool {
        let unsettled = ["handshake", "noaddr", "fail", "fail?"];
        self.is_linked && !unsettled.iter().any(|flag| self.is(flag))
    }
}

/// The slots of a shard, both ends included: as even as whole slots can be.
pub fn slots_of(shard: u16, shards: u16) -> (u16, u16) {
    let cut = |shard: u16| (u32::from(SLOTS) * u32::from(shard) / u32::from(shards.max(1))) as u16;
    (cut(shard), cut(shard + 1) - 1)
}

/// What this node says of its cluster, itself included. Source: the reply of `CLUSTER NODES`.
///
/// # Errors
/// As [`Node::command`]; [`Kind::Protocol`] for a line of another form.
pub fn view(node: &mut Node) -> Result<Vec<Seen>, Error> {
    let text = node.run(&["CLUSTER", "NODES"])?.text().unwrap_or_default();
    text.lines().map(|line| read_line(line, node.label())).collect()
}

/// What a node's nodes.conf or a kept reply of `CLUSTER NODES` says.
///
/// # Errors
/// [`Kind::Protocol`] for a line of another form.
pub fn view_of(text: &str) -> Result<Vec<Seen>, Error> {
    let lines = text.lines().map(str::trim);
    // The last line of a nodes.conf is of the node itself.
    let nodes = lines.filter(|line| !line.is_empty() && !line.starts_with("vars "));
    nodes.map(|line| read_line(line, "the list")).collect()
}

fn read_line(line: &str, of: impl std::fmt::Display) -> Result<Seen, Error> {
    parse(line).ok_or_else(|| Error::new(Kind::Protocol, "read cluster nodes", format!("{of}: {line:?}")))
}

/// `<id> <ip:port@bus,...> <flags> <primary> <ping> <pong> <epoch> <link> <slots>...`
fn parse(line: &str) -> Option<Seen> {
    let mut fields = line.split(' ').filter(|field| !field.is_empty());
    let id = fields.next()?.to_owned();
    let (reach, bus) = fields.next()?.split_once('@')?;
    let bus_port = bus.split(',').next()?;
    let (host, port) = reach.rsplit_once(':')?;
    let flags = fields.next()?.split(',').map(str::to_owned).collect();
    let primary = Some(fields.next()?)
        .filter(|field| *field != "-")
        .map(str::to_owned);
    let is_linked = fields.nth(3)? == "connected";
    let (mut slots, mut moving) = (Vec::new(), 0);
    for field in fields {
        if field.starts_with('[') {
            moving += 1;
            continue;
        }
        let (first, last) = field.split_once('-').unwrap_or((field, field));
        slots.push((first.parse().ok()?, last.parse().ok()?));
    }
    Some(Seen {
        id,
        host: host.trim_matches(['[', ']']).to_owned(),
        port: port.parse().ok()?,
        bus_port: bus_port.parse().ok()?,
        flags,
        primary,
        is_linked,
        slots,
        moving,
    })
}

/// What becomes of the slots of a primary whose process is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Succession {
    /// Nobody is to take them over, or somebody has: it may come back.
    Over,
    /// The primaries that live will elect a replica of it.
    Awaited,
    /// So many primaries are gone that the others elect nobody. The client ports of its living replicas.
    Stuck(Vec<u16>),
}

/// What this view of a cluster says of the node at `port`, whose process is gone; `living` are the client ports of those
/// whose processes are not. It must not come back before another has its slots where its start brings less data than it
/// had: its replica would follow it and lose the rest.
pub fn succession(view: &[Seen], port: u16, living: &[u16]) -> Succession {
    let has_slots = |seen: &&Seen| seen.is("master") && !seen.slots.is_empty();
    let Some(gone) = view.iter().filter(has_slots).find(|seen| seen.port == port) else {
        return Succession::Over;
    };
    let heirs: Vec<u16> = view
        .iter()
        .filter(|seen| seen.primary.as_ref() == Some(&gone.id) && living.contains(&seen.port))
        .map(|seen| seen.port)
        .collect();
    let voters = view.iter().filter(has_slots);
    let (present, all) = voters.fold((0, 0), |(present, all), seen| {
        (present + usize::from(living.contains(&seen.port)), all + 1)
    });
    if heirs.is_empty() {
        Succession::Over
    } else if 2 * present > all {
        Succession::Awaited
    } else {
        Succession::Stuck(heirs)
    }
}

/// Makes a replica the primary of its shard without a vote. Only where the process of the primary is known to be gone.
///
/// # Errors
/// As [`Node::command`].
pub fn take_over(node: &mut Node) -> Result<(), Error> {
    node.run(&["CLUSTER", "FAILOVER", "TAKEOVER"]).map(drop)
}

/// A shard as its primary tells of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardSeen {
    /// Id of the primary.
    pub primary: String,
    /// Its client port.
    pub port: u16,
    /// Client ports of its replicas.
    pub replicas: Vec<u16>,
    /// Its slots, each range with both ends.
    pub slots: Vec<(u16, u16)>,
}

/// The shards of a cluster in the order of their first slots, where every slot is of exactly one of them and none is on
/// its way to another.
///
/// # Errors
/// [`Kind::Refused`] with what is not so.
pub fn shards(view: &[Seen]) -> Result<Vec<ShardSeen>, Error> {
    let refuse = |what: String| Err(Error::new(Kind::Refused, "read shards", what));
    let moving: usize = view.iter().map(|seen| seen.moving).sum();
    if moving > 0 {
        return refuse(format!(
            "{moving} slots are moving between shards: try again when they have"
        ));
    }
    let mut found: Vec<ShardSeen> = view
        .iter()
        .filter(|seen| seen.is("master") && !seen.slots.is_empty())
        .map(|seen| ShardSeen {
            primary: seen.id.clone(),
            port: seen.port,
            replicas: view
                .iter()
                .filter(|other| other.primary.as_ref() == Some(&seen.id) && other.is_settled())
                .map(|other| other.port)
                .collect(),
            slots: seen.slots.clone(),
        })
        .collect();
    found.sort_by_key(|shard| shard.slots.iter().map(|(first, _)| *first).min());
    let mut ranges: Vec<(u16, u16)> = found.iter().flat_map(|shard| shard.slots.clone()).collect();
    ranges.sort_unstable();
    let mut next = 0;
    for (first, last) in ranges {
        if first != next || last < first {
            return refuse(format!("slot {} is of no shard, or of two", next.min(first)));
        }
        next = last + 1;
    }
    match next == SLOTS {
        true => Ok(found),
        false => refuse(format!("the slots from {next} on are of no shard")),
    }
}

/// As [`has_caught_up`], of a process of ours.
///
/// # Errors
/// As [`has_caught_up`].
pub fn is_caught_up(primary: &mut Node, replica: &Engine, limit: Duration) -> Result<bool, Error> {
    match replica.control_within(limit) {
        Ok(mut node) => has_caught_up(primary, &mut node, limit),
        Err(_) => Ok(false),
    }
}

/// Waits until the replica has all that its primary had done when it was asked first; `false` where that takes longer than
/// `limit`, or it is not in sync.
///
/// # Errors
/// As [`Node::command`], of the primary. A replica that does not answer is not in sync.
pub fn has_caught_up(primary: &mut Node, replica: &mut Node, limit: Duration) -> Result<bool, Error> {
    let number = |fields: &[(String, String)], wanted: &str| -> Option<u64> {
        fields.iter().find(|(name, _)| name == wanted)?.1.parse().ok()
    };
    let wanted = number(&primary.info("replication")?, "master_repl_offset");
    let until = Instant::now() + limit;
    while let Ok(fields) = replica.info("replication") {
        let up = fields
            .iter()
            .any(|(name, value)| name == "master_link_status" && value == "up");
        if up && number(&fields, "slave_repl_offset") >= wanted {
            return Ok(true);
        }
        if !up || Instant::now() >= until {
            break;
        }
        std::thread::sleep(POLL);
    }
    Ok(false)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_is_of_exactly_one_shard_and_shares_differ_by_one_at_most() {
        for shards in 1..=128 {
            let mut next = 0;
            for shard in 0..shards {
                let (first, last) = slots_of(shard, shards);
                assert_eq!(first, next, "{shard} of {shards}");
                let count = last - first + 1;
                assert!(count.abs_diff(SLOTS / shards) <= 1, "{shard} of {shards}");
                next = last + 1;
            }
            assert_eq!(next, SLOTS);
        }
    }

    #[test]
    fn a_line_of_each_engine_is_read_with_its_moving_slots() {
        let line = "07c37dfeb235213a872192d90877d0cd55635b91 127.0.0.1:30001@31001,host,shard-id=ab myself,master - 0 0 1 \
                    connected 0-5460 7 [93->-292f8b365bb7edb5e285caf0b7e6ddc7265d2f4f]";
        let seen = parse(line).unwrap();
        assert_eq!((seen.port, seen.bus_port), (30001, 31001));
        assert_eq!((seen.moving, seen.is_linked), (1, true));
        assert_eq!(seen.host, "127.0.0.1");
        assert_eq!(seen.slots, [(0, 5460), (7, 7)]);
        assert!(seen.is("myself") && seen.primary.is_none());
        let replica = parse("a [::1]:7000@17000 slave,fail b 0 0 1 disconnected").unwrap();
        assert_eq!(
            (replica.port, replica.primary.as_deref(), replica.is_linked),
            (7000, Some("b"), false)
        );
        for wrong in ["", "a", "a b c d", "a 1.1.1.1:x@1 master - 0 0 1 connected"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn shards_are_told_only_where_every_slot_is_of_one_and_none_moves() {
        let seen = |line: &str| parse(line).unwrap();
        let low = seen("a 1.1.1.1:1@11 myself,master - 0 0 1 connected 0-99 200-16383");
        let high = seen("b 1.1.1.1:2@12 master - 0 0 1 connected 100-199");
        let copy = seen("c 1.1.1.1:3@13 slave b 0 0 1 connected");
        let found = shards(&[high.clone(), copy, low.clone()]).unwrap();
        assert_eq!(
            (found[0].port, found[1].port, found[1].replicas.as_slice()),
            (1, 2, &[3][..])
        );
        let gap = seen("b 1.1.1.1:2@12 master - 0 0 1 connected 101-199");
        let twice = seen("b 1.1.1.1:2@12 master - 0 0 1 connected 99-199");
        let moves = seen("b 1.1.1.1:2@12 master - 0 0 1 connected 100-199 [100->-a]");
        for wrong in [
            vec![low.clone()],
            vec![low.clone(), gap],
            vec![low.clone(), twice],
            vec![low, moves],
        ] {
            assert_eq!(shards(&wrong).unwrap_err().kind, Kind::Refused);
        }
    }

    #[test]
    fn a_dead_primary_waits_while_a_living_replica_of_it_can_succeed_it() {
        let seen = |line: &str| parse(line).unwrap();
        let one = seen("one 1.1.1.1:1@11 myself,master - 0 0 1 connected 0-99");
        let two = seen("two 1.1.1.1:2@12 master - 0 0 1 connected 100-199");
        let dead = seen("dead 1.1.1.1:3@13 master,fail? - 0 0 1 disconnected 200-299");
        let heir = seen("heir 1.1.1.1:4@14 slave dead 0 0 1 connected");
        let view = [one.clone(), two.clone(), dead, heir];
        assert_eq!(succession(&view, 3, &[1, 2, 4]), Succession::Awaited);
        assert_eq!(
            succession(&view, 3, &[1, 2]),
            Succession::Over,
            "its replica is gone too"
        );
        assert_eq!(
            succession(&view, 3, &[1, 4]),
            Succession::Stuck(vec![4]),
            "one of three is no majority"
        );
        assert_eq!(succession(&view, 9, &[1, 2, 4]), Succession::Over, "unknown");
        let demoted = seen("dead 1.1.1.1:3@13 master,fail - 0 0 1 disconnected");
        let succeeded = seen("heir 1.1.1.1:4@14 master - 0 0 2 connected 200-299");
        assert_eq!(
            succession(&[one, two, demoted, succeeded], 3, &[1, 2, 4]),
            Succession::Over
        );
    }
}
