//! Making a cluster of nodes, and waiting for it.

use std::time::{Duration, Instant};

use super::known::forget_formers;
use super::{Member, POLL, Seat, Seen, slots_of, view};
use crate::control::Control;
use crate::error::{Error, Kind};
use crate::failpoint;
use crate::node::{Node, Reply};
use crate::process::port_setting;

/// Between two introductions of the same node: the first may be on its way, and those that know each other already may be
/// about to link up.
const MEET_AGAIN: Duration = Duration::from_secs(1);
/// Nodes of a cluster that are all introduced to each other: 992 messages. They would come to know each other without
/// that, within seconds.
const MEET_ALL_MAX: usize = 32;

/// Makes one cluster of nodes that nobody uses yet: slots to the first node of each shard, every node introduced, the
/// others of each shard as replicas; returns when all agree, all slots are served and every replica is in sync.
///
/// Looks at what is there before each step, so it may be run again after a crash at any point.
///
/// # Errors
/// [`Kind::Cancelled`], [`Kind::Deadline`]; as [`Node::command`]; [`Kind::EngineExited`].
pub fn form(members: &[Member], shards: u16, control: &Control) -> Result<(), Error> {
    // A replica that knew its primary from its start may load its copy already.
    while !unless_loading(introduced(members, shards, control).map(|()| true))? {
        control.check("form cluster")?;
        std::thread::sleep(POLL);
    }
    wait_whole(members, control)
}

fn introduced(members: &[Member], shards: u16, control: &Control) -> Result<(), Error> {
    for shard in 0..shards {
        give_slots(members, shard, shards)?;
        failpoint::hit("cluster.slots_given")?;
    }
    introduce(members, control)?;
    failpoint::hit("cluster.introduced")?;
    for member in members {
        follow(members, member, control)?;
    }
    failpoint::hit("cluster.replicas_told")
}

fn give_slots(members: &[Member], shard: u16, shards: u16) -> Result<(), Error> {
    let mut first = None;
    for member in members.iter().filter(|member| member.shard == shard) {
        let mut node = member.engine.control()?;
        if own(&view(&mut node)?).is_some_and(|own| !own.slots.is_empty()) {
            return Ok(());
        }
        first.get_or_insert(node);
    }
    let Some(mut node) = first else {
        let context = format!("shard {shard} has no node");
        return Err(Error::new(Kind::Refused, "form cluster", context));
    };
    // Different epochs from the beginning save the nodes the collisions that they would have to solve one by one. It is
    // refused where the node knows others already, and is of no need then.
    let epoch = (shard + 1).to_string();
    let _refused_when_repeated = node.ask(&[b"CLUSTER", b"SET-CONFIG-EPOCH", epoch.as_bytes()])?;
    let (from, to) = slots_of(shard, shards);
    node.run(&["CLUSTER", "ADDSLOTSRANGE", &from.to_string(), &to.to_string()])?;
    Ok(())
}

fn own(view: &[Seen]) -> Option<&Seen> {
    view.iter().find(|seen| seen.is("myself"))
}

fn introduce(members: &[Member], control: &Control) -> Result<(), Error> {
    let mut met: Option<Instant> = None;
    loop {
        control.check("form cluster")?;
        if met.is_none_or(|at| at.elapsed() >= MEET_AGAIN) {
            meet(members)?;
            met = Some(Instant::now());
        }
        for member in members {
            forget_formers(&mut member.engine.control()?)?;
        }
        if all_views(members)?
            .iter()
            .all(|view| know_each_other(view, members.len()))
        {
            return Ok(());
        }
        std::thread::sleep(POLL);
    }
}

/// Tells nodes of those that they do not know, or know at another port: every node where they are few, else the first one,
/// which tells the others in its own time.
fn meet(members: &[Member]) -> Result<(), Error> {
    let hosts = match members.len() <= MEET_ALL_MAX {
        true => members,
        false => &members[..1],
    };
    for host in hosts {
        let mut node = host.engine.control()?;
        let known = view(&mut node)?;
        let missing = members
            .iter()
            .filter(|member| !known.iter().any(|seen| seen.port == member.seat.port));
        for member in missing {
            let Seat {
                address,
                port,
                bus_port,
                ..
            } = &member.seat;
            node.run(&[
                "CLUSTER",
                "MEET",
                address,
                &port.to_string(),
                &bus_port.to_string(),
            ])?;
        }
    }
    Ok(())
}

fn know_each_other(view: &[Seen], count: usize) -> bool {
    view.len() == count && view.iter().all(Seen::is_settled)
}

fn all_views(members: &[Member]) -> Result<Vec<Vec<Seen>>, Error> {
    members
        .iter()
        .map(|member| view(&mut member.engine.control()?))
        .collect()
}

/// Makes the member a replica of the one of its shard that has the slots, unless it is that one.
fn follow(members: &[Member], member: &Member, control: &Control) -> Result<(), Error> {
    loop {
        control.check("form cluster")?;
        let mut node = member.engine.control()?;
        let seen = view(&mut node)?;
        let of_shard = |seen: &&Seen| {
            let mut seats = members.iter().filter(|other| other.shard == member.shard);
            !seen.slots.is_empty() && seats.any(|other| other.seat.port == seen.port)
        };
        // What its slots are comes with the first message of a node, a moment after its name.
        if let (Some(own), Some(primary)) = (own(&seen), seen.iter().find(of_shard)) {
            if own.id == primary.id || own.primary.as_ref() == Some(&primary.id) {
                return Ok(());
            }
            match node.ask(&[b"CLUSTER", b"REPLICATE", primary.id.as_bytes()])? {
                Reply::Error(text) if !text.contains("Unknown node") => {
                    return Err(Error::new(
                        Kind::Refused,
                        "form cluster",
                        format!("{}: {text}", node.label()),
                    ));
                }
                _ => {}
            }
        }
        std::thread::sleep(POLL);
    }
}

/// Waits until every node says that all slots are served, all know each other, and every replica is in sync.
///
/// # Errors
/// As [`form`].
pub fn wait_whole(members: &[Member], control: &Control) -> Result<(), Error> {
    for member in members {
        while !unless_loading(is_whole(member, members.len()))? {
            control.check("wait for cluster")?;
            std::thread::sleep(POLL);
        }
    }
    Ok(())
}

/// Lets every node announce the port of its seat. From here on replicas reach their primaries there and nowhere else.
///
/// # Errors
/// As [`form`].
pub fn announce(members: &[Member]) -> Result<(), Error> {
    for member in members {
        let mut node = member.engine.control()?;
        let port = member.seat.port.to_string();
        if port_setting(&mut node)? == "tls-port" {
            node.config_set("cluster-announce-tls-port", &port)?;
        }
        node.config_set("cluster-announce-port", &port)?;
        failpoint::hit("cluster.one_announced")?;
    }
    Ok(())
}

/// Waits until every node says that all slots are served, and knows every node at the port of its seat. Whether replicas
/// are in sync is not asked: they may have to wait for their primaries' ports.
///
/// # Errors
/// As [`form`].
pub fn wait_agreed(members: &[Member], control: &Control) -> Result<(), Error> {
    let seats = |seen: &Seen| members.iter().any(|member| member.seat.port == seen.port);
    let mut met: Option<Instant> = None;
    for member in members {
        loop {
            control.check("wait for cluster")?;
            let agrees = || {
                let mut node = member.engine.control()?;
                let view = view(&mut node)?;
                Ok(is_ok(&mut node)? && know_each_other(&view, members.len()) && view.iter().all(seats))
            };
            if unless_loading(agrees())? {
                break;
            }
            // Who is met again tells its present port.
            if met.is_none_or(|at| at.elapsed() >= MEET_AGAIN)
                && unless_loading(meet(members).map(|()| true))?
            {
                met = Some(Instant::now());
            }
            std::thread::sleep(POLL);
        }
    }
    Ok(())
}

/// A replica that loads its copy answers no question of the cluster until it has.
fn unless_loading(answer: Result<bool, Error>) -> Result<bool, Error> {
    match answer {
        Err(e) if e.kind == Kind::Refused && e.context.contains("LOADING ") => Ok(false),
        answer => answer,
    }
}

pub(super) fn is_ok(node: &mut Node) -> Result<bool, Error> {
    let state = node.run(&["CLUSTER", "INFO"])?.text().unwrap_or_default();
    Ok(state.lines().any(|line| line.trim_end() == "cluster_state:ok"))
}

fn is_whole(member: &Member, count: usize) -> Result<bool, Error> {
    let mut node = member.engine.control()?;
    if !is_ok(&mut node)? {
        return Ok(false);
    }
    let view = view(&mut node)?;
    let replication = node.info("replication")?;
    let says = |name: &str, value: &str| {
        replication
            .iter()
            .any(|(field, found)| field == name && found == value)
    };
    let in_sync = says("role", "master") || says("master_link_status", "up");
    Ok(know_each_other(&view, count) && in_sync)
}
