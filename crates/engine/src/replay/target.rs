//! What the target is: its version, its layout, its limits.

use super::reach::Reach;
use crate::discover::{field, mode};
use crate::error::{Error, Kind};
use crate::node::{Address, Node, Reply};

const LOOK: &str = "look at target";
/// Slots of a cluster.
pub(super) const SLOTS: usize = 16 * 1024;
/// The longest word of a command where the target does not tell: `proto-max-bulk-len` as it is delivered.
const BULK_BYTES_DEFAULT: u64 = 512 * 1024 * 1024;

/// A server, or any node of a cluster, and what it says of itself.
pub(super) struct Target<'a> {
    reach: &'a dyn Reach,
    /// `redis 7.0.15`
    pub(super) version: String,
    /// What it reads; `None`: it is older than all that payloads are made for.
    pub(super) form: Option<rdb::Target>,
    pub(super) is_cluster: bool,
    /// The longest word of a command, bytes.
    pub(super) bulk_bytes_max: u64,
}

/// The nodes that take writes, and which has which slot.
pub(super) struct Nodes {
    pub(super) primaries: Vec<Primary>,
    /// By slot, an index of the above. Empty: there is one node.
    owners: Vec<u16>,
}

/// A node that takes writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Primary {
    pub(super) address: Address,
    /// Whether another has its data: then what is done there too outlives it.
    pub(super) has_replicas: bool,
}

impl<'a> Target<'a> {
    /// Connects and asks.
    ///
    /// # Errors
    /// As [`Reach`] and [`Node::command`]; [`Kind::Refused`] for a replica.
    pub(super) fn look(reach: &'a dyn Reach) -> Result<Self, Error> {
        let mut node = reach.connect(&reach.entry()?)?;
        let server = node.info("server")?;
        let valkey = field(&server, "valkey_version");
        let (family, number) = match (valkey, field(&server, "redis_version")) {
            (Some(number), _) => ("valkey", number),
            (None, Some(number)) => ("redis", number),
            (None, None) => {
                let context = format!("{}: it does not say which version it is", node.label());
                return Err(Error::new(Kind::Protocol, LOOK, context));
            }
        };
        let is_cluster = mode(&server) == Some("cluster");
        if !is_cluster && field(&node.info("replication")?, "role") == Some("slave") {
            let context = format!(
                "{}: it is a replica, which takes no writes: name its primary",
                node.label()
            );
            return Err(Error::new(Kind::Refused, LOOK, context));
        }
        // Who may not ask has the limit that it is delivered with, or learns from a refusal.
        let told = node.config_get("proto-max-bulk-len").ok().flatten();
        Ok(Self {
            reach,
            version: format!("{family} {number}"),
            form: form_of(family, number),
            is_cluster,
            bulk_bytes_max: told
                .and_then(|text| text.parse().ok())
                .unwrap_or(BULK_BYTES_DEFAULT),
        })
    }

    /// Which nodes take writes now.
    ///
    /// # Errors
    /// As [`Reach`] and [`Node::command`]; [`Kind::Connection`] where a slot is served by nobody, or the one node is no primary.
    pub(super) fn nodes(&self, known: &[Primary]) -> Result<Nodes, Error> {
        let mut last = None;
        // Of a cluster any node says who has the slots now, and the one that was named may be gone. One without slots may have been
        // succeeded while it was away, and says nothing of that: only who is to be found again as the entry is written to.
        let known = known.iter().filter(|_| self.is_cluster);
        let others = known.map(|primary| Ok(primary.address.clone()));
        for address in std::iter::once_with(|| self.reach.entry()).chain(others) {
            match address.and_then(|address| self.nodes_as_seen_by(&address)) {
                Ok(nodes) => return Ok(nodes),
                Err(error) => last = last.or(Some(error)),
            }
        }
        Err(last.unwrap_or_else(|| Error::new(Kind::Connection, LOOK, "no node is known")))
    }

    fn nodes_as_seen_by(&self, address: &Address) -> Result<Nodes, Error> {
        let mut node = self.connect(address)?;
        if self.is_cluster {
            let reply = node.run(&["CLUSTER", "SLOTS"])?;
            return slots_of(&reply, address)
                .ok_or_else(|| Error::new(Kind::Protocol, LOOK, format!("{address}: CLUSTER SLOTS is none")))
                .and_then(Nodes::whole);
        }
        let replication = node.info("replication")?;
        if field(&replication, "role").is_some_and(|role| role != "master") {
            let context = format!(
                "{}: it is no primary: a failover is under way, or it was succeeded",
                node.label()
            );
            return Err(Error::new(Kind::Connection, LOOK, context));
        }
        Ok(Nodes {
            primaries: vec![Primary {
                address: address.clone(),
                has_replicas: counts_replicas(&replication),
            }],
            owners: Vec::new(),
        })
    }

    /// Connects to one of its nodes.
    ///
    /// # Errors
    /// As [`Reach::connect`].
    pub(super) fn connect(&self, at: &Address) -> Result<Node, Error> {
        self.reach.connect(at)
    }
}

impl Nodes {
    /// None, where nothing is asked or sent.
    pub(super) fn none() -> Self {
        Self {
            primaries: Vec::new(),
            owners: Vec::new(),
        }
    }

    /// The index of the node that has a slot.
    #[inline]
    pub(super) fn owner(&self, slot: u16) -> usize {
        self.owners
            .get(usize::from(slot))
            .map_or(0, |owner| usize::from(*owner))
    }

    /// Takes up where the slots are now. A node that is known keeps its number.
    pub(super) fn become_like(&mut self, now: Self) {
        let numbers: Vec<u16> = now
            .primaries
            .into_iter()
            .map(|primary| {
                let known = self
                    .primaries
                    .iter()
                    .position(|known| known.address == primary.address);
                let number = known.unwrap_or(self.primaries.len());
                match self.primaries.get_mut(number) {
                    Some(known) => *known = primary,
                    None => self.primaries.push(primary),
                }
                // A cluster has at most as many nodes as slots.
                number as u16
            })
            .collect();
        let number = |owner: u16| numbers.get(usize::from(owner)).copied().unwrap_or(u16::MAX);
        self.owners = now.owners.into_iter().map(number).collect();
    }

    fn whole(self) -> Result<Self, Error> {
        match self.owners.iter().position(|owner| *owner == u16::MAX) {
            None => Ok(self),
            Some(slot) => {
                let context = format!("slot {slot} is served by nobody");
                Err(Error::new(Kind::Connection, LOOK, context))
            }
        }
    }
}

/// What `CLUSTER SLOTS` answers: first and last slot, the primary, its replicas; each a host, a port and more. `None`: it is
/// not that.
fn slots_of(reply: &Reply, asked: &Address) -> Option<Nodes> {
    let Reply::Array(ranges) = reply else {
        return None;
    };
    let mut nodes = Nodes {
        primaries: Vec::new(),
        owners: vec![u16::MAX; SLOTS],
    };
    for range in ranges {
        let Reply::Array(parts) = range else {
            return None;
        };
        let [first, last, Reply::Array(primary), replicas @ ..] = &parts[..] else {
            return None;
        };
        let (host, port) = (
            primary.first()?.text(),
            u16::try_from(primary.get(1)?.int()?).ok()?,
        );
        // A node that does not know its own address leaves it out: it is where it was asked.
        let host = match (host, asked) {
            (Some(host), _) if !host.is_empty() => host,
            (_, Address::Tcp(host, _) | Address::Checked(host, _)) => host.clone(),
            (_, Address::Unix(_)) => return None,
        };
        let found = Primary {
            address: Address::Tcp(host, port),
            has_replicas: !replicas.is_empty(),
        };
        let known = nodes.primaries.iter().position(|primary| *primary == found);
        let index = known.unwrap_or_else(|| {
            nodes.primaries.push(found);
            nodes.primaries.len() - 1
        });
        let (first, last) = (
            usize::try_from(first.int()?).ok()?,
            usize::try_from(last.int()?).ok()?,
        );
        let index = u16::try_from(index).ok().filter(|index| *index != u16::MAX)?;
        nodes.owners.get_mut(first..=last)?.fill(index);
    }
    Some(nodes)
}

/// Whether every node that takes writes answers now.
///
/// # Errors
/// One that does not, or who takes writes cannot be found out.
pub fn check_answers(reach: &dyn Reach) -> Result<(), Error> {
    let target = Target::look(reach)?;
    for primary in target.nodes(&[])?.primaries {
        target.connect(&primary.address)?.run(&["PING"])?;
    }
    Ok(())
}

/// Whether a node has replicas, as it says itself.
///
/// # Errors
/// As [`Node::command`].
pub(super) fn has_replicas(node: &mut Node) -> Result<bool, Error> {
    Ok(counts_replicas(&node.info("replication")?))
}

fn counts_replicas(replication: &[(String, String)]) -> bool {
    field(replication, "connected_slaves").is_some_and(|count| count != "0")
}

/// What an engine of this version reads: as the last known one before it. `None` before all known ones.
fn form_of(family: &str, number: &str) -> Option<rdb::Target> {
    let version = |text: &str| -> Option<(u32, u32)> {
        let mut parts = text.split('.');
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    };
    let own = version(number)?;
    let known = rdb::TARGETS.iter().filter_map(|(name, ..)| {
        let (known_family, known) = name.split_once('-')?;
        (known_family == family).then_some((version(known)?, *name))
    });
    let (_, name) = known.filter(|(known, _)| *known <= own).max()?;
    rdb::Target::by_name(name)
}

/// The node that `MOVED` or `ASK` names.
pub(super) fn named_by(text: &str, asked: &Address) -> Option<Address> {
    let (host, port) = text.split(' ').nth(2)?.rsplit_once(':')?;
    let port = port.parse().ok()?;
    match (host, asked) {
        ("", Address::Tcp(host, _) | Address::Checked(host, _)) => Some(Address::Tcp(host.clone(), port)),
        ("", Address::Unix(_)) => None,
        (host, _) => Some(Address::Tcp(host.to_owned(), port)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::UnixStream;
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn an_engine_reads_what_the_last_known_one_before_it_reads() {
        let same = |family, number, name| {
            assert_eq!(form_of(family, number), rdb::Target::by_name(name), "{number}")
        };
        same("redis", "7.0.15", "redis-7.0");
        same("redis", "6.2.6", "redis-6.2");
        same("redis", "9.9.0", "redis-8.6");
        same("valkey", "8.1.1", "valkey-8.1");
        same("valkey", "9.7.1", "valkey-9.1");
        assert_eq!(form_of("redis", "4.0.14"), None);
        assert_eq!(form_of("redis", "unstable"), None);
    }

    /// Servers of which one is to be written to, if anyone is, and which all are this.
    struct Servers {
        entry: Option<Address>,
        role: &'static str,
        peers: Mutex<Vec<UnixStream>>,
    }

    impl Reach for Servers {
        fn name(&self) -> String {
            String::new()
        }

        fn entry(&self) -> Result<Address, Error> {
            let nobody = || Error::new(Kind::Connection, LOOK, "a failover is under way");
            self.entry.clone().ok_or_else(nobody)
        }

        fn connect(&self, at: &Address) -> Result<Node, Error> {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let text = format!("role:{}\r\nconnected_slaves:1\r\n", self.role);
            write!(theirs, "${}\r\n{text}\r\n", text.len()).unwrap();
            self.peers.lock().unwrap().push(theirs);
            Ok(Node::over(ours, &at.to_string()))
        }
    }

    #[test]
    fn a_primary_that_may_have_been_succeeded_is_not_written_to_though_it_answers() {
        let at = |host: &str| Address::Tcp(host.to_owned(), 6379);
        let known = [Primary {
            address: at("old"),
            has_replicas: false,
        }];
        for (entry, role, expected) in [
            (None, "master", None),
            (Some(at("new")), "slave", None),
            (Some(at("new")), "master", Some(at("new"))),
        ] {
            let servers = Servers {
                entry,
                role,
                peers: Mutex::default(),
            };
            let target = Target {
                reach: &servers,
                version: String::new(),
                form: None,
                is_cluster: false,
                bulk_bytes_max: 0,
            };
            match (target.nodes(&known), expected) {
                (Ok(nodes), Some(expected)) => assert_eq!(nodes.primaries[0].address, expected),
                (Err(error), None) => assert_eq!(error.kind, Kind::Connection, "{error}"),
                (found, expected) => panic!("{:?} instead of {expected:?}", found.map(|_| ())),
            }
        }
    }

    #[test]
    fn a_redirection_names_its_node_and_an_empty_host_means_the_same() {
        let asked = Address::Tcp("10.0.0.1".to_owned(), 7000);
        let at = |host: &str, port| Some(Address::Tcp(host.to_owned(), port));
        assert_eq!(named_by("MOVED 77 10.0.0.2:7001", &asked), at("10.0.0.2", 7001));
        assert_eq!(named_by("ASK 77 ::1:7001", &asked), at("::1", 7001));
        assert_eq!(named_by("MOVED 77 :7001", &asked), at("10.0.0.1", 7001));
        assert_eq!(named_by("MOVED 77", &asked), None);
    }
}
