//! A node of a cluster that loads and serves nobody yet.
//!
//! `REPLICAOF` is refused in a cluster, so a standby of one is made a replica by the file from which a node knows its
//! cluster: the primary that it names has the slots, and lies where nothing can ever listen. Nothing expires then and
//! nobody can write, exactly as in a standby outside of clusters. The way out is the one that a replica has whose primary
//! is lost: it takes over without a vote, and forgets the other.

use ring::digest::{SHA256, digest};

use super::{NODE_TIMEOUT, Seat, view};
use crate::error::Error;
use crate::node::Node;
use crate::process::NO_PRIMARY;

/// Where a node keeps what it knows of its cluster (the engine's default of `cluster-config-file`).
pub(crate) const NODES: &str = "nodes.conf";
/// Hex digits of a node's id.
const ID_CHARS: usize = 40;

/// What [`NODES`] holds of a standby with these slots. Source: redis `src/cluster.c`, clusterLoadConfig.
pub(crate) fn settings_of_standby(seat: &Seat, (first, last): (u16, u16)) -> String {
    let Seat {
        address,
        port,
        bus_port,
        generation,
        ..
    } = seat;
    let id = |what: &str| {
        let name = format!("{what} of {generation} at {bus_port}");
        let bytes = digest(&SHA256, name.as_bytes());
        let mut hex = crate::keys::to_hex(bytes.as_ref());
        hex.truncate(ID_CHARS);
        hex
    };
    let (own, former) = (id("node"), id("no primary"));
    let (nowhere, no_port) = NO_PRIMARY;
    // It takes the next epoch when it takes over. Different ones for all shards save them collisions when they meet.
    format!(
        "{own} {address}:{port}@{bus_port} myself,slave {former} 0 0 0 connected\n\
         {former} {nowhere}:{no_port}@{no_port} master - 0 0 0 disconnected {first}-{last}\n\
         vars currentEpoch {first} lastVoteEpoch 0\n"
    )
}

/// Makes a standby the primary of its slots. May be repeated.
///
/// # Errors
/// As [`Node::command`].
pub(crate) fn forget_former(node: &mut Node) -> Result<(), Error> {
    let (_, no_port) = NO_PRIMARY;
    let known = view(node)?;
    if known.iter().any(|seen| seen.is("myself") && seen.is("slave")) {
        super::take_over(node)?;
    }
    // Not by its client port: with TLS engines since 7.2 take the one of the file for that, and tell us the plain one, 0.
    for former in known.iter().filter(|seen| seen.bus_port.to_string() == no_port) {
        node.run(&["CLUSTER", "FORGET", &former.id])?;
    }
    node.config_set("cluster-node-timeout", &NODE_TIMEOUT.as_millis().to_string())?;
    node.config_set("cluster-allow-reads-when-down", "no")
}
