//! What the nodes of a new generation know of each other before the first message, and a node that loads and serves
//! nobody yet.
//!
//! Nodes that meet one by one need seconds until all know all: names travel first, and who has which slots comes a
//! second later, with a message of another's own accord. So each node of a generation that is to be restored finds the
//! whole cluster in the file from which a node knows its own. They link up while data loads.
//!
//! `REPLICAOF` is refused in a cluster, so a standby of one is made a replica by that file, too: the primary that it names
//! has the slots, and lies where nothing can ever listen. Nothing expires then and nobody can write, exactly as in a
//! standby outside of clusters. The way out is the one that a replica has whose primary is lost: it takes over without
//! a vote, tells that to all at once, and forgets the other.
//!
//! To a standby every slot has an owner, so its cluster serves as far as it knows, and goes on serving when it takes over. A
//! primary whose cluster does not serve would wait two seconds from its start on before it says otherwise. Source: redis
//! `src/cluster.c`, clusterUpdateState, CLUSTER_WRITABLE_DELAY.

use std::time::{Duration, Instant};

use ring::digest::{SHA256, digest};

use super::form::is_ok;
use super::{NODE_TIMEOUT, POLL, Seat, Seen, slots_of, view};
use crate::error::{Error, Kind};
use crate::node::{Node, Reply};
use crate::process::NO_PRIMARY;

/// Where a node keeps what it knows of its cluster (the engine's default of `cluster-config-file`).
pub(crate) const NODES: &str = "nodes.conf";
/// Hex digits of a node's id.
const ID_CHARS: usize = 40;
/// A standby that does not find its cluster serving within this time takes over all the same: it costs it two seconds.
const SERVES_WITHIN: Duration = Duration::from_secs(1);

/// A node of a generation, as all of them are told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Which part of the slots it is for, from 0.
    pub shard: u16,
    /// The client port that it announces while the generation is made.
    pub port: u16,
    /// The port where other nodes reach it.
    pub bus_port: u16,
    /// Whether it loads for its shard and is to be its primary. The others follow it.
    pub is_first: bool,
}

/// What [`NODES`] holds of a node before its first start. `is_standby`: the firsts of all shards load, and have taken nothing
/// over yet; else they have. Source: redis `src/cluster.c`, clusterLoadConfig.
pub(crate) fn settings_of(seat: &Seat, is_standby: bool) -> String {
    let (nowhere, no_port) = NO_PRIMARY;
    let id = |what: &str, bus_port: u16| {
        let name = format!("{what} of {} at {bus_port}", seat.generation);
        let bytes = digest(&SHA256, name.as_bytes());
        let mut hex = crate::keys::to_hex(bytes.as_ref());
        hex.truncate(ID_CHARS);
        hex
    };
    let firsts = || seat.peers.iter().filter(|peer| peer.is_first);
    let shards = u16::try_from(firsts().count()).unwrap_or(u16::MAX);
    let mut text = String::new();
    let mut epoch = 0;
    for peer in &seat.peers {
        let is_own = peer.bus_port == seat.bus_port;
        let (own, link) = match is_own {
            true => ("myself,", "connected"),
            false => ("", "disconnected"),
        };
        let (first, last) = slots_of(peer.shard, shards);
        let node = format!(
            "{} {}:{}@{} {own}",
            id("node", peer.bus_port),
            seat.address,
            peer.port,
            peer.bus_port
        );
        let primary = firsts().find(|first| first.shard == peer.shard);
        match (peer.is_first, is_standby) {
            (true, true) => {
                let former = id("no primary", peer.bus_port);
                // Those of other shards are nobody's to follow: an address would only be tried.
                let nobody = if is_own { "" } else { "noaddr," };
                text.push_str(&format!(
                    "{node}slave {former} 0 0 0 {link}\n\
                     {former} {nowhere}:{no_port}@{no_port} {nobody}master - 0 0 0 disconnected {first}-{last}\n"
                ));
            }
            (true, false) => text.push_str(&format!("{node}master - 0 0 0 {link} {first}-{last}\n")),
            (false, _) => {
                let primary = primary.map_or_else(|| "-".to_owned(), |first| id("node", first.bus_port));
                text.push_str(&format!("{node}slave {primary} 0 0 0 {link}\n"));
            }
        }
        if is_own {
            // It takes the next epoch when it takes over. Different ones for all shards save them collisions.
            epoch = first;
        }
    }
    text.push_str(&format!("vars currentEpoch {epoch} lastVoteEpoch 0\n"));
    text
}

/// Makes a standby the primary of its slots. May be repeated.
///
/// # Errors
/// As [`Node::command`].
pub(crate) fn succeed_nobody(node: &mut Node) -> Result<(), Error> {
    let known = view(node)?;
    if known.iter().any(|seen| seen.is("myself") && seen.is("slave")) {
        let until = Instant::now() + SERVES_WITHIN;
        while !is_ok(node)? && Instant::now() < until {
            std::thread::sleep(POLL);
        }
        super::take_over(node)?;
    }
    forget_formers(node)?;
    node.config_set("cluster-node-timeout", &NODE_TIMEOUT.as_millis().to_string())?;
    node.config_set("cluster-allow-reads-when-down", "no")
}

/// Forgets the primaries that never were, as far as their slots have other owners by now.
///
/// # Errors
/// As [`Node::command`].
pub(super) fn forget_formers(node: &mut Node) -> Result<(), Error> {
    let (_, no_port) = NO_PRIMARY;
    // Not by its client port: with TLS engines since 7.2 take the one of the file for that, and tell us the plain one, 0.
    let is_former = |seen: &&Seen| seen.bus_port.to_string() == no_port && seen.slots.is_empty();
    for former in view(node)?.iter().filter(is_former) {
        match node.ask(&[b"CLUSTER", b"FORGET", former.id.as_bytes()])? {
            // Another node has told it to: engines since 7.2 pass it on.
            Reply::Error(text) if !text.contains("Unknown node") => {
                let context = format!("{}: {text}", node.label());
                return Err(Error::new(Kind::Refused, "forget former primary", context));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::cluster::{SLOTS, shards, view_of};

    fn seat(own: u16) -> Seat {
        let peer = |shard: u16, bus_port: u16, is_first: bool| Peer {
            shard,
            port: bus_port - 1000,
            bus_port,
            is_first,
        };
        Seat {
            address: "127.0.0.1".to_owned(),
            port: own - 1000,
            bus_port: own,
            generation: "g".to_owned(),
            peers: vec![
                peer(0, 2000, true),
                peer(0, 2001, false),
                peer(1, 2002, true),
                peer(1, 2003, false),
            ],
        }
    }

    #[test]
    fn all_nodes_are_told_of_the_same_ones_and_every_slot_has_an_owner() {
        for (own, is_standby) in [(2000, true), (2002, true), (2001, false), (2003, false)] {
            let told = view_of(&settings_of(&seat(own), is_standby)).unwrap();
            let slots: u32 = told
                .iter()
                .flat_map(|seen| &seen.slots)
                .map(|(first, last)| u32::from(last - first) + 1)
                .sum();
            assert_eq!(slots, u32::from(SLOTS));
            let myself: Vec<u16> = told
                .iter()
                .filter(|seen| seen.is("myself"))
                .map(|seen| seen.bus_port)
                .collect();
            assert_eq!(myself, [own]);
            let ids = |text: &str| -> Vec<String> {
                let seen = view_of(text).unwrap().into_iter();
                seen.filter(|seen| seen.bus_port != 1)
                    .map(|seen| seen.id)
                    .collect()
            };
            assert_eq!(
                ids(&settings_of(&seat(own), is_standby)),
                ids(&settings_of(&seat(2000), true))
            );
        }
        let formed = view_of(&settings_of(&seat(2003), false)).unwrap();
        let shards = shards(&formed).unwrap();
        assert_eq!(
            shards.iter().map(|shard| shard.port).collect::<Vec<_>>(),
            [1000, 1002]
        );
        assert_eq!(formed[3].primary.as_ref(), Some(&formed[2].id));
    }
}
