//! The servers of an attached instance as the target of a replay: found out, looked at and connected to as for a capture, and
//! rid of what earlier attempts left under way there.
//!
//! The fence: each connection is named by the restore and its attempt. Before an attempt uses a node for the first time it ends
//! every connection there that an earlier attempt named. What such a one had sent and the node had not read yet goes with it, so
//! nothing of an earlier attempt is done after the first thing of this one. Where the user may not end connections, what was sent
//! before is waited for ([`limits::ATTACHED_DRAIN`]) (ADR 54).

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use engine::discover::{As, HostPort};
use engine::node::{Address, Node, Reply};
use engine::replay::Reach;
use engine::{Error, Kind};

use super::servers::Servers;
use super::{Attachment, entry};
use crate::app::App;
use crate::ids::InstanceId;
use crate::limits;

/// An attached instance that is written to.
pub struct Written<'a> {
    app: &'a App,
    id: &'a InstanceId,
    attachment: &'a Attachment,
    /// What the names of all attempts begin with.
    subject: String,
    /// The name of this attempt's connections.
    name: String,
    is_first: bool,
    since: Instant,
    fenced: Mutex<HashSet<String>>,
}

impl<'a> Written<'a> {
    /// By the attempt number `attempt` (from 1 on) of what has this id.
    pub fn new(
        app: &'a App,
        id: &'a InstanceId,
        attachment: &'a Attachment,
        subject: &str,
        attempt: i64,
    ) -> Self {
        let subject = format!("cachekeep-{subject}-");
        Self {
            app,
            id,
            attachment,
            name: format!("{subject}{attempt}"),
            subject,
            is_first: attempt <= 1,
            since: Instant::now(),
            fenced: Mutex::default(),
        }
    }

    fn servers(&self) -> Result<Servers<'a>, Error> {
        let servers = Servers::of(self.app, self.id, self.attachment, limits::DISCOVERY_TIME_MAX)?;
        Ok(servers.with_replies(limits::ATTACHED_REPLY_BYTES_MAX))
    }

    /// Ends what earlier attempts have under way at a node.
    fn fence(&self, node: &mut Node) -> Result<(), Error> {
        let is_new = || {
            let fenced = self.fenced.lock().unwrap_or_else(PoisonError::into_inner);
            !fenced.contains(node.label())
        };
        if self.is_first || !is_new() {
            return Ok(());
        }
        if !self.end_earlier(node)? {
            // What was sent is done within this time, or its connection is given up by either side.
            std::thread::sleep(limits::ATTACHED_DRAIN.saturating_sub(self.since.elapsed()));
        }
        let mut fenced = self.fenced.lock().unwrap_or_else(PoisonError::into_inner);
        fenced.insert(node.label().to_owned());
        Ok(())
    }

    /// `false`: the user may not.
    fn end_earlier(&self, node: &mut Node) -> Result<bool, Error> {
        let list = match node.ask(&[b"CLIENT", b"LIST"])? {
            Reply::Bulk(Some(bytes)) => String::from_utf8_lossy(&bytes).into_owned(),
            _ => return Ok(false),
        };
        for id in earlier(&list, &self.subject, &self.name) {
            match node.ask(&[b"CLIENT", b"KILL", b"ID", id.as_bytes()])? {
                Reply::Error(_) => return Ok(false),
                _ => tracing::info!(node = node.label(), "ended a connection of an earlier attempt"),
            }
        }
        Ok(true)
    }
}

/// The ids of the connections in `CLIENT LIST` whose name begins so and is another.
fn earlier<'a>(list: &'a str, subject: &str, own: &str) -> Vec<&'a str> {
    let field = |line: &'a str, name: &str| line.split(' ').find_map(|field| field.strip_prefix(name));
    list.lines()
        .filter(|line| {
            let name = field(line, "name=").unwrap_or_default();
            name.starts_with(subject) && name != own
        })
        .filter_map(|line| field(line, "id="))
        .collect()
}

impl Reach for Written<'_> {
    fn name(&self) -> String {
        self.id.to_string()
    }

    fn entry(&self) -> Result<Address, Error> {
        let found = self
            .servers()?
            .discover(Some(&self.attachment.found))
            .map_err(|error| match error.kind {
                // A failover or a cluster in disorder: it passes, or the time is over.
                Kind::Refused => {
                    Error::new(Kind::Connection, "look at target", error.context.clone()).because(error)
                }
                _ => error,
            })?;
        let HostPort { host, port } = entry(&found);
        Ok(Address::Tcp(host, port))
    }

    fn connect(&self, at: &Address) -> Result<Node, Error> {
        let Address::Tcp(host, port) = at else {
            let context = format!("{at}: a host and a port are wanted");
            return Err(Error::new(Kind::Refused, "connect", context));
        };
        let (_, mut node) = self.servers()?.reach(&HostPort::new(host, *port), As::Node)?;
        node.release();
        node.set_timeout(limits::ATTACHED_SILENCE)?;
        let _where_it_is_not_allowed_it_is_waited =
            node.ask(&[b"CLIENT", b"SETNAME", self.name.as_bytes()])?;
        self.fence(&mut node)?;
        Ok(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_of_earlier_attempts_are_told_from_all_others() {
        let list = "id=3 addr=127.0.0.1:1 laddr=127.0.0.1:2 fd=8 name=cachekeep-r1-1 age=1 cmd=restore\n\
                    id=4 addr=127.0.0.1:1 name=cachekeep-r1-2 age=1\n\
                    id=5 addr=127.0.0.1:1 name=cachekeep-r2-1 age=1\n\
                    id=6 addr=127.0.0.1:1 name= age=1\n";
        assert_eq!(earlier(list, "cachekeep-r1-", "cachekeep-r1-2"), ["3"]);
    }
}
