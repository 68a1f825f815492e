//! What Sentinels say, and which of them is believed: the one that has heard of the newest failover. One that was away or cut off
//! names the primary of before, which may be there still.

use super::dialled::Dialled;
use super::{As, Found, HostPort, by_replication, field, number, refused, shown, spot};
use crate::error::Error;
use crate::node::{Node, Reply};

/// Names of primaries that are told where one of them must be chosen.
const NAMES_MAX: usize = 32;
/// Sentinels of one primary that are asked: deployments have three or five.
pub(super) const SENTINELS_MAX: usize = 8;

/// What a Sentinel says of the primary that is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Word {
    /// What it calls the primary.
    pub(super) name: String,
    /// Where that is.
    pub(super) primary: HostPort,
    /// It grows with each failover. 0: there was none, or it does not say.
    pub(super) epoch: u64,
    /// Whether it carries out a failover, and names the old primary until all replicas follow the new one.
    pub(super) is_moving: bool,
    /// Itself and those it knows.
    pub(super) sentinels: Vec<HostPort>,
}

impl Word {
    /// Asks the Sentinel at this place. Of several primaries `name` says which is meant.
    ///
    /// # Errors
    /// As [`Node::command`]; [`crate::Kind::Refused`] where it watches another primary, none, or several and none is named.
    pub(super) fn ask(at: &HostPort, node: &mut Node, name: Option<&str>) -> Result<Self, Error> {
        let watched = maps(&node.run(&["SENTINEL", "MASTERS"])?);
        let chosen = chosen(at, &watched, name)?;
        let name = named(chosen);
        let primary = spot(chosen, "ip", "port")
            .ok_or_else(|| refused(format!("the Sentinel {at} does not say where the primary is")))?;
        let peers = node.ask(&[b"SENTINEL", b"SENTINELS", name.as_bytes()])?;
        let mut sentinels = vec![at.clone()];
        sentinels.extend(maps(&peers).iter().filter_map(|map| spot(map, "ip", "port")));
        sentinels.truncate(SENTINELS_MAX);
        // They are told in no order that stays.
        sentinels.sort();
        sentinels.dedup();
        let flags = field(chosen, "flags").unwrap_or_default();
        Ok(Self {
            primary,
            epoch: number(chosen, "config-epoch"),
            is_moving: flags.split(',').any(|flag| flag == "failover_in_progress"),
            name,
            sentinels,
        })
    }

    /// The newer of two, of which this one is preferred.
    pub(super) fn or_newer(self, other: Self) -> Self {
        match (other.epoch, !other.is_moving) > (self.epoch, !self.is_moving) {
            true => other,
            false => self,
        }
    }

    /// What it leads to.
    ///
    /// # Errors
    /// Those of the primary; [`crate::Kind::Refused`] while a failover is under way.
    pub(super) fn lead(self, dialled: &Dialled<'_>) -> Result<Found, Error> {
        let primary = self.primary;
        if self.is_moving {
            let what = format!("Sentinels replace {primary}: a failover is under way, try again");
            return Err(refused(what));
        }
        let (node, replication) = dialled.open(&primary, As::Node, |node| node.info("replication"))?;
        if field(&replication, "role") != Some("master") {
            let what = format!(
                "Sentinels call {primary} the primary, and it is none: a failover is under way, try again"
            );
            return Err(refused(what));
        }
        let mut found = by_replication(primary, node, dialled)?;
        found.sentinels = self.sentinels;
        Ok(found)
    }
}

/// A name and a value for each field.
type Fields = Vec<(String, String)>;

fn named(map: &[(String, String)]) -> String {
    field(map, "name").unwrap_or_default().to_owned()
}

fn chosen<'a>(at: &HostPort, watched: &'a [Fields], name: Option<&str>) -> Result<&'a Fields, Error> {
    let all = || -> String {
        let told = watched.iter().take(NAMES_MAX);
        let names: Vec<String> = told.map(|map| shown(&named(map)).to_owned()).collect();
        names.join(", ")
    };
    match (name, watched) {
        (None, [one]) => Ok(one),
        (None, []) => Err(refused(format!("the Sentinel {at} watches nothing"))),
        (None, _) => Err(refused(format!(
            "the Sentinel {at} watches several primaries, say which is meant: {}",
            all()
        ))),
        (Some(wanted), several) => several.iter().find(|map| named(map) == wanted).ok_or_else(|| {
            refused(format!(
                "the Sentinel {at} does not watch {wanted}, but {}",
                all()
            ))
        }),
    }
}

/// Replies of Sentinels are lists of lists of names and values.
fn maps(reply: &Reply) -> Vec<Fields> {
    let Reply::Array(maps) = reply else {
        return Vec::new();
    };
    let pairs = |map: &Reply| match map {
        Reply::Array(items) => items
            .chunks_exact(2)
            .filter_map(|pair| Some((pair[0].text()?, pair[1].text()?)))
            .collect(),
        _ => Vec::new(),
    };
    maps.iter().map(pairs).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_word_is_believed_and_at_the_same_age_one_that_is_settled() {
        let word = |host: &str, epoch, is_moving| Word {
            name: "mymaster".to_owned(),
            primary: HostPort::new(host, 6379),
            epoch,
            is_moving,
            sentinels: Vec::new(),
        };
        for (first, second, believed) in [
            (word("old", 1, false), word("new", 2, false), "new"),
            (word("new", 2, false), word("old", 1, false), "new"),
            // Who carries it out names the old one with the new epoch.
            (word("old", 2, true), word("new", 2, false), "new"),
            (word("new", 2, false), word("old", 2, true), "new"),
            (word("old", 1, false), word("moving", 2, true), "moving"),
            (word("first", 2, false), word("second", 2, false), "first"),
        ] {
            assert_eq!(first.or_newer(second).primary.host, believed);
        }
    }
}
