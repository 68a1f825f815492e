//! How clients come in to a node, and how that is opened and closed.

use crate::error::{Error, Kind};
use crate::node::{Node, Reply};
use crate::process::{client_users, port_of, port_setting, take_port};

/// What lets clients in at the address and port that they know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Door {
    /// A node that listens for nobody else: its port.
    Port(u16),
    /// A node that listens at an address of its own all the time: the clients' address at the same port.
    Address {
        /// The node's own.
        own: String,
        /// The clients'.
        shared: String,
        /// Of both.
        port: u16,
    },
    /// A replica beside a primary with [`Door::Address`]: clients come in at its own address, and only those that asked
    /// for a replica.
    Aside,
}

/// A command in words.
pub(super) type Command = Vec<Vec<u8>>;

impl Door {
    /// The port that clients know; `None`: they know none.
    pub fn port(&self) -> Option<u16> {
        match self {
            Door::Port(port) | Door::Address { port, .. } => Some(*port),
            Door::Aside => None,
        }
    }

    /// Whether both lead clients in at the same place, so that only one can be open.
    pub(super) fn is_same_place(&self, other: &Door) -> bool {
        match (self, other) {
            (Door::Address { shared, .. }, Door::Address { shared: theirs, .. }) => {
                shared == theirs && self.port() == other.port()
            }
            _ => self.port().is_some() && self.port() == other.port(),
        }
    }

    /// Whether clients come in.
    ///
    /// # Errors
    /// As [`Node::command`].
    pub fn is_open(&self, node: &mut Node) -> Result<bool, Error> {
        match self {
            Door::Port(port) => Ok(port_of(node)? == *port),
            Door::Address { shared, port, .. } => {
                Ok(port_of(node)? == *port && addresses(node)?.contains(shared))
            }
            Door::Aside => Ok(false),
        }
    }

    /// Lets clients in.
    ///
    /// # Errors
    /// [`Kind::PortTaken`]: the node listens as before. As [`Node::command`].
    pub fn open(&self, node: &mut Node) -> Result<(), Error> {
        let (own, shared, port) = match self {
            Door::Port(port) => return take_port(node, *port),
            Door::Address { own, shared, port } => (own, shared, port),
            Door::Aside => return Ok(()),
        };
        if port_of(node)? != *port {
            take_port(node, *port)?;
        }
        let both = format!("{own} {shared}");
        match node.ask(&[b"CONFIG", b"SET", b"bind", both.as_bytes()])? {
            Reply::Error(text) if text.contains("Failed to bind") => {
                let context = format!("{shared}:{port} is somebody else's ({}: {text})", node.label());
                Err(Error::new(Kind::PortTaken, "take address", context))
            }
            Reply::Error(text) => {
                let context = format!("{}: {shared}:{port}: {text}", node.label());
                Err(Error::new(Kind::Refused, "take address", context))
            }
            _ => Ok(()),
        }
    }

    /// What a node does as one to let nobody in any more and to end those that are: nobody is served between the first
    /// word of it and the last. Only the clients' users are ended: our own connections, a backup in progress among them, are
    /// none of theirs. A node that goes on listening lets no client in at its own address either.
    ///
    /// # Errors
    /// As [`Node::command`].
    pub(super) fn give_up(&self, node: &mut Node) -> Result<Vec<Command>, Error> {
        let is_open_to_clients = matches!(self, Door::Address { .. } | Door::Aside);
        self.as_one(is_open_to_clients, node)
    }

    /// As [`Door::give_up`], by a node that goes on as a replica: clients may come in at its own address.
    ///
    /// # Errors
    /// As [`Node::command`].
    pub(super) fn step_aside(&self, node: &mut Node) -> Result<Vec<Command>, Error> {
        self.as_one(false, node)
    }

    fn as_one(&self, locks_out: bool, node: &mut Node) -> Result<Vec<Command>, Error> {
        let users = client_users(node)?;

        let close = match self {
            Door::Port(_) => Some(command(&["CONFIG", "SET", port_setting(node)?, "0"])),
            Door::Address { own, .. } => Some(command(&["CONFIG", "SET", "bind", own])),
            Door::Aside => None,
        };
        let off = users.iter().filter(|_| locks_out);
        let off = off.map(|user| command(&["ACL", "SETUSER", user, "off"]));
        let end = users.iter().flat_map(|user| {
            ["normal", "pubsub"].map(|kind| command(&["CLIENT", "KILL", "TYPE", kind, "USER", user]))
        });
        let middle = close.into_iter().chain(off).chain(end);
        Ok([command(&["MULTI"])]
            .into_iter()
            .chain(middle)
            .chain([command(&["EXEC"])])
            .collect())
    }
}

fn command(words: &[&str]) -> Command {
    words.iter().map(|word| word.as_bytes().to_vec()).collect()
}

/// Where a node listens.
pub(super) fn addresses(node: &mut Node) -> Result<Vec<String>, Error> {
    let text = node.config_get("bind")?.unwrap_or_default();
    Ok(text.split_whitespace().map(str::to_owned).collect())
}
