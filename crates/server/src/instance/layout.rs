//! Layouts: of how many nodes an instance is, and where the nodes of a generation are.
//!
//! A generation's nodes are made with it and never change; who of a shard is its primary is the engines' to say. A single
//! instance is a layout of one node.

use engine::process::{has_fixed_port, is_before_7};
use serde::{Deserialize, Serialize};

use crate::catalog::{Error, FromSql, Value};
use crate::ids::NodeId;

/// Primaries of a cluster: with fewer than three the others are no majority when one is gone, and nobody takes over.
pub const SHARDS: std::ops::RangeInclusive<u16> = 3..=128;
/// Replicas of each primary of a cluster: as many as DCS has flavors for.
pub const REPLICAS: std::ops::RangeInclusive<u16> = 0..=4;

/// Replicas of a watched primary.
pub const STANDBYS: std::ops::RangeInclusive<u16> = 1..=4;
/// The nodes of a watched generation listen in 127.100.<lane>.0/24: addresses that no machine gives to anybody else, and
/// that need not be configured (Linux has all of 127/8 on its loopback).
const LANES: std::ops::RangeInclusive<u8> = 1..=254;

/// What kind of instance it is to its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// One engine.
    Single,
    /// A primary that clients reach, replicas, and Sentinels that put one of those in its place.
    Ha,
    /// Several, which clients of the cluster protocol reach as one.
    Cluster,
}

impl Mode {
    /// The word in the table, and DCS's.
    pub fn word(self) -> &'static str {
        match self {
            Mode::Single => "single",
            Mode::Ha => "ha",
            Mode::Cluster => "cluster",
        }
    }

    /// Why engines of this version cannot be the nodes of such an instance; `None`: they can.
    pub fn obstacle_of(self, version: &str) -> Option<&'static str> {
        match self {
            Mode::Ha if has_fixed_port(version) => Some(
                "before 6.2.1 they listen for as long as they live where they were started to, and the address of an instance goes to \
                 another node when its primary dies",
            ),
            Mode::Cluster if is_before_7(version) => Some(
                "before 7.0 the bus of a node is at its port plus 10000, and two generations of a cluster have the same ports in turn",
            ),
            Mode::Single | Mode::Ha | Mode::Cluster => None,
        }
    }

    /// Whether the nodes between them have one data set, so that a backup is one file.
    pub fn is_whole(self) -> bool {
        self != Mode::Cluster
    }
}

impl FromSql for Mode {
    fn from_sql(value: Value<'_>) -> Option<Self> {
        let word = value.text()?;
        [Mode::Single, Mode::Ha, Mode::Cluster]
            .into_iter()
            .find(|mode| mode.word() == word)
    }
}

/// Of how many nodes an instance is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// What it is to clients.
    pub mode: Mode,
    /// Primaries, each with a share of the slots; 1 where it is no cluster.
    pub shards: u16,
    /// Replicas of each primary.
    pub replicas: u16,
}

impl Layout {
    /// One engine.
    pub const SINGLE: Layout = Layout {
        mode: Mode::Single,
        shards: 1,
        replicas: 0,
    };

    /// How many engines that are.
    pub fn nodes(self) -> u16 {
        self.shards * (1 + self.replicas)
    }

    /// How many client ports that are: watched nodes share one.
    pub fn client_ports(self) -> u16 {
        match self.mode {
            Mode::Ha => 1,
            Mode::Single | Mode::Cluster => self.nodes(),
        }
    }

    /// How many ports the nodes of a generation have for each other.
    pub fn bus_ports(self) -> u16 {
        match self.mode {
            Mode::Cluster => self.nodes(),
            Mode::Ha | Mode::Single => 0,
        }
    }

    /// Places for watched nodes: all at this port, at addresses of the first lane that `is_free`.
    pub fn watched_places(self, port: u16, is_free: impl Fn(&str) -> bool) -> Option<Vec<Place>> {
        let places = |lane: u8| -> Vec<Place> {
            (1..=self.nodes())
                .map(|number| Place {
                    id: NodeId::random(),
                    shard: 0,
                    port,
                    bus_port: None,
                    side_port: None,
                    address: Some(format!("127.100.{lane}.{number}")),
                })
                .collect()
        };
        LANES.map(places).find(|lane| {
            lane.iter()
                .all(|place| place.address.as_deref().is_some_and(&is_free))
        })
    }

    /// How many side ports a generation of it needs to come up beside another one.
    pub fn side_ports(self) -> u16 {
        match self.mode {
            Mode::Cluster if self.replicas > 0 => self.shards,
            Mode::Cluster | Mode::Ha | Mode::Single => 0,
        }
    }

    /// As [`Layout::places`], for a generation beside the one that has these client ports: the first node of each shard
    /// has a side port.
    pub fn places_beside(self, ports: &[u16], bus_ports: &[u16], side_ports: &[u16]) -> Vec<Place> {
        let mut places = self.places(ports, bus_ports);
        let firsts = places.iter_mut().step_by(usize::from(1 + self.replicas));
        for (place, port) in firsts.zip(side_ports) {
            place.side_port = Some(*port);
        }
        places
    }

    /// Places for its nodes, shard by shard, with these ports in that order. `bus_ports` is empty where it is no cluster.
    pub fn places(self, ports: &[u16], bus_ports: &[u16]) -> Vec<Place> {
        let per_shard = usize::from(1 + self.replicas);
        ports
            .iter()
            .enumerate()
            .map(|(at, port)| Place {
                id: NodeId::random(),
                shard: u16::try_from(at / per_shard).unwrap_or(u16::MAX),
                port: *port,
                bus_port: bus_ports.get(at).copied(),
                side_port: None,
                address: None,
            })
            .collect()
    }
}

impl std::fmt::Display for Layout {
    /// `single`, `primary + 1 replica`, `3 shards`, `3 shards x 1 replica`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.mode, self.replicas) {
            (Mode::Single, _) => f.write_str("single"),
            (Mode::Ha, 1) => f.write_str("primary + 1 replica"),
            (Mode::Ha, replicas) => write!(f, "primary + {replicas} replicas"),
            (Mode::Cluster, 0) => write!(f, "{} shards", self.shards),
            (Mode::Cluster, 1) => write!(f, "{} shards x 1 replica", self.shards),
            (Mode::Cluster, replicas) => write!(f, "{} shards x {replicas} replicas", self.shards),
        }
    }
}

/// Where a node of a generation is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Names the node for ever; of a cluster's node also the directory.
    pub id: NodeId,
    /// Which shard it is of, from 0.
    pub shard: u16,
    /// The port that it has for clients while its generation serves.
    pub port: u16,
    /// Where other nodes reach it; `None`: there are none.
    pub bus_port: Option<u16>,
    /// Where its replicas reach it while another generation has its client port; `None`: it has no replicas, or never
    /// had to wait for its port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub side_port: Option<u16>,
    /// A watched node's own address, where it listens at the same port whatever it is; `None`: it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

/// What the column holds.
pub fn to_json(places: &[Place]) -> String {
    serde_json::json!(places).to_string()
}

/// Reads [`to_json`].
///
/// # Errors
/// The column holds something else.
pub fn from_json(text: &str) -> Result<Vec<Place>, Error> {
    serde_json::from_str(text).map_err(|error| Error::Unreadable(format!("these are no nodes: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_of_a_shard_stand_together_and_each_has_its_ports() {
        let layout = Layout {
            mode: Mode::Cluster,
            shards: 3,
            replicas: 1,
        };
        let ports: Vec<u16> = (100..106).collect();
        let buses: Vec<u16> = (200..206).collect();
        let places = layout.places(&ports, &buses);
        assert_eq!(places.len(), usize::from(layout.nodes()));
        let shards: Vec<u16> = places.iter().map(|place| place.shard).collect();
        assert_eq!(shards, [0, 0, 1, 1, 2, 2]);
        assert_eq!((places[5].port, places[5].bus_port), (105, Some(205)));
        assert_eq!(from_json(&to_json(&places)).unwrap(), places);
        let beside = layout.places_beside(&ports, &buses, &[300, 301, 302]);
        let sides: Vec<Option<u16>> = beside.iter().map(|place| place.side_port).collect();
        assert_eq!(sides, [Some(300), None, Some(301), None, Some(302), None]);
        assert_eq!(layout.side_ports(), 3);
        let watched = Layout {
            mode: Mode::Ha,
            shards: 1,
            replicas: 2,
        };
        let places = watched
            .watched_places(7, |address| !address.starts_with("127.100.1."))
            .unwrap();
        let at: Vec<_> = places
            .iter()
            .map(|place| (place.address.as_deref().unwrap(), place.port))
            .collect();
        assert_eq!(at, [("127.100.2.1", 7), ("127.100.2.2", 7), ("127.100.2.3", 7)]);
        assert_eq!(from_json(&to_json(&places)).unwrap(), places);
        assert_eq!(watched.watched_places(7, |_| false), None);
        assert_eq!(watched.to_string(), "primary + 2 replicas");
        assert_eq!(
            (layout.to_string().as_str(), Layout::SINGLE.to_string().as_str()),
            ("3 shards x 1 replica", "single")
        );
        let single = Layout::SINGLE.places(&[7], &[]);
        assert_eq!((single.len(), single[0].bus_port), (1, None));
    }
}
