//! The servers of an instance as the target of a replay: those of somebody else's found out, looked at and connected to as for a
//! capture, our own brought up where they have ended; and rid of what earlier attempts left under way there.
//!
//! The fence: each connection is named by the instance, the restore, its attempt and whether that takes it back. Before a node is
//! used for the first time every connection there is ended that has another name of the instance: of an earlier attempt, of an
//! earlier restore, or of what is taken back. What such a one had sent and the node had not read yet goes with it, so nothing of
//! it is done after the first thing of this one. Where the user may not name or end connections, what was sent before is waited
//! for ([`limits::ATTACHED_DRAIN`]) (ADR 54).

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use engine::discover::{Aim, As, HostPort};
use engine::node::{Address, Endpoint, Node, Reply};
use engine::process::Engine;
use engine::replay::Reach;
use engine::{Control, Error, Kind};

use super::attachment::servers::Servers;
use super::attachment::{self, Attachment};
use super::layout::Mode;
use super::{Instance, job, nodes, watched};
use crate::app::App;
use crate::ids::InstanceId;
use crate::limits;

/// The instance as the target of what has this name, which no other attempt has, nor what takes one back.
pub fn target<'a>(app: &'a App, instance: &'a Instance, name: &str) -> Box<dyn Reach + 'a> {
    reach(app, instance, Some(Fence::new(&instance.id, name)))
}

/// The same for who has not the instance's gate and only asks: engines of ours that have ended stay so.
pub fn asked<'a>(app: &'a App, instance: &'a Instance) -> Box<dyn Reach + 'a> {
    reach(app, instance, None)
}

fn reach<'a>(app: &'a App, instance: &'a Instance, fence: Option<Fence>) -> Box<dyn Reach + 'a> {
    match &instance.attachment {
        Some(attachment) => Box::new(Attached {
            app,
            id: &instance.id,
            attachment,
            fence,
        }),
        None => Box::new(Serving { app, instance, fence }),
    }
}

/// Ends what others than this one have under way.
struct Fence {
    /// What the names of all connections begin with that write to the instance.
    instance: String,
    /// The name of this one's connections.
    name: String,
    since: Instant,
    fenced: Mutex<HashSet<String>>,
}

impl Fence {
    fn new(instance: &InstanceId, name: &str) -> Self {
        let instance = format!("cachekeep-{instance}-");
        Self {
            name: format!("{instance}{name}"),
            instance,
            since: Instant::now(),
            fenced: Mutex::default(),
        }
    }

    /// To be passed by each connection before it is used.
    fn pass(&self, node: &mut Node) -> Result<(), Error> {
        let named = node.ask(&[b"CLIENT", b"SETNAME", self.name.as_bytes()])?;
        let is_fenced = || {
            let fenced = self.fenced.lock().unwrap_or_else(PoisonError::into_inner);
            fenced.contains(node.label())
        };
        if is_fenced() {
            return Ok(());
        }
        // Where this one has no name the others have none either, and are not found by it.
        let has_no_name = matches!(named, Reply::Error(_));
        if has_no_name || !self.end_others(node)? {
            // What was sent is done within this time, or its connection is given up by either side.
            std::thread::sleep(limits::ATTACHED_DRAIN.saturating_sub(self.since.elapsed()));
        }
        let mut fenced = self.fenced.lock().unwrap_or_else(PoisonError::into_inner);
        fenced.insert(node.label().to_owned());
        Ok(())
    }

    /// `false`: the user may not.
    fn end_others(&self, node: &mut Node) -> Result<bool, Error> {
        let list = match node.ask(&[b"CLIENT", b"LIST"])? {
            Reply::Bulk(Some(bytes)) => String::from_utf8_lossy(&bytes).into_owned(),
            _ => return Ok(false),
        };
        for id in others(&list, &self.instance, &self.name) {
            match node.ask(&[b"CLIENT", b"KILL", b"ID", id.as_bytes()])? {
                // It has ended by itself.
                Reply::Error(text) if text.starts_with("ERR No such client") => {}
                Reply::Error(_) => return Ok(false),
                _ => tracing::info!(
                    node = node.label(),
                    "ended a connection of an earlier attempt or restore"
                ),
            }
        }
        Ok(true)
    }
}

/// The ids of the connections in `CLIENT LIST` whose name begins so and is another.
fn others<'a>(list: &'a str, instance: &str, own: &str) -> Vec<&'a str> {
    let field = |line: &'a str, name: &str| line.split(' ').find_map(|field| field.strip_prefix(name));
    list.lines()
        .filter(|line| {
            let name = field(line, "name=").unwrap_or_default();
            name.starts_with(instance) && name != own
        })
        .filter_map(|line| field(line, "id="))
        .collect()
}

/// Servers of somebody else's.
struct Attached<'a> {
    app: &'a App,
    id: &'a InstanceId,
    attachment: &'a Attachment,
    /// `None`: it is only asked.
    fence: Option<Fence>,
}

impl<'a> Attached<'a> {
    fn servers(&self) -> Result<Servers<'a>, Error> {
        let servers = Servers::of(self.app, self.id, self.attachment, limits::DISCOVERY_TIME_MAX)?;
        Ok(servers.with_replies(limits::ATTACHED_REPLY_BYTES_MAX))
    }
}

impl Reach for Attached<'_> {
    fn name(&self) -> String {
        self.id.to_string()
    }

    fn entry(&self) -> Result<Address, Error> {
        let found = self
            .servers()?
            .discover(Some(&self.attachment.found), Aim::Write)
            .map_err(|error| match error.kind {
                // A failover or a cluster in disorder: it passes, or the time is over.
                Kind::Refused => {
                    Error::new(Kind::Connection, "look at target", error.context.clone()).because(error)
                }
                _ => error,
            })?;
        let HostPort { host, port } = attachment::entry(&found);
        Ok(Address::Tcp(host, port))
    }

    fn connect(&self, at: &Address) -> Result<Node, Error> {
        let Address::Tcp(host, port) = at else {
            return Err(no_node_of_it(at));
        };
        let (_, mut node) = self.servers()?.reach(&HostPort::new(host, *port), As::Node)?;
        node.release();
        node.set_timeout(limits::ATTACHED_SILENCE)?;
        if let Some(fence) = &self.fence {
            fence.pass(&mut node)?;
        }
        Ok(node)
    }
}

fn no_node_of_it(at: &Address) -> Error {
    Error::new(
        Kind::Connection,
        "connect",
        format!("{at} is no node of the instance"),
    )
}

/// The serving generation of an instance of ours.
struct Serving<'a> {
    app: &'a App,
    instance: &'a Instance,
    /// `None`: it is only asked, and by somebody who has not the gate.
    fence: Option<Fence>,
}

impl Serving<'_> {
    fn engines(&self) -> Result<Vec<Engine>, Error> {
        nodes::serving_ones(self.app, self.instance)
    }

    /// The one that takes writes, of what is no cluster; any of a cluster.
    fn first(&self) -> Result<Endpoint, Error> {
        if self.instance.layout.mode == Mode::Ha {
            let generation = job::serving_generation(self.app, self.instance)?;
            return Ok(watched::running(self.app, self.instance, &generation)?
                .primary
                .1
                .endpoint());
        }
        let gone = || {
            Error::new(
                Kind::Connection,
                "find engine",
                "no engine of the instance is running",
            )
        };
        Ok(self.engines()?.first().ok_or_else(gone)?.endpoint())
    }
}

impl Reach for Serving<'_> {
    fn name(&self) -> String {
        self.instance.id.to_string()
    }

    fn entry(&self) -> Result<Address, Error> {
        let first = self.first();
        if let Ok(first) = &first
            && Node::connect(first).is_ok()
        {
            return Ok(first.address.clone());
        }
        if self.fence.is_none() {
            let why = "no engine of the instance answers";
            return Err(Error::new(Kind::Connection, "find engine", why));
        }
        // Nobody else may while we have the gate.
        let generation = job::serving_generation(self.app, self.instance)?;
        let control = Control::new(Some(limits::OPERATION_TIME_BASE));
        let failed = |error: Error| {
            Error::new(Kind::Connection, "bring engine up", error.context.clone()).because(error)
        };
        nodes::bring_up(self.app, self.instance, &generation, &control).map_err(failed)?;
        Ok(self.first().map_err(failed)?.address)
    }

    fn connect(&self, at: &Address) -> Result<Node, Error> {
        let serves = |engine: &Engine| match at {
            Address::Unix(_) => engine.endpoint().address == *at,
            // As the nodes of a cluster call each other.
            Address::Tcp(_, port) => engine.current_port().is_ok_and(|own| own == *port),
            Address::Checked(_, at) => engine.current_port().is_ok_and(|own| own == at.port()),
        };
        let engines = self.engines()?;
        let engine = engines
            .iter()
            .find(|engine| serves(engine))
            .ok_or_else(|| no_node_of_it(at))?;
        let mut endpoint = engine.endpoint();
        endpoint.timeout = limits::ENGINE_IDLE;
        let mut node = Node::connect(&endpoint)?;
        if let Some(fence) = &self.fence {
            fence.pass(&mut node)?;
        }
        Ok(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_of_all_other_attempts_and_ways_back_are_told_from_those_of_others() {
        let list = "id=3 addr=127.0.0.1:1 laddr=127.0.0.1:2 fd=8 name=cachekeep-i1-r1-1 age=1 cmd=restore\n\
                    id=4 addr=127.0.0.1:1 name=cachekeep-i1-r1-1-back age=1\n\
                    id=5 addr=127.0.0.1:1 name=cachekeep-i1-r2-1 age=1\n\
                    id=6 addr=127.0.0.1:1 name=cachekeep-i2-r1-1 age=1\n\
                    id=7 addr=127.0.0.1:1 name= age=1\n";
        assert_eq!(
            others(list, "cachekeep-i1-", "cachekeep-i1-r1-1-back"),
            ["3", "5"]
        );
    }
}
