//! How the servers of a target are reached: by who names one of them, and by who finds them out and looks at each address first.

use crate::error::Error;
use crate::node::{Address, Endpoint, Node};

/// The servers of one target.
pub trait Reach: Sync {
    /// What tells the target from every other: a journal is of one.
    fn name(&self) -> String;

    /// A node to begin with: any of a cluster, else the one that takes writes.
    ///
    /// # Errors
    /// There is none now. [`crate::Kind::Connection`] and [`crate::Kind::Idle`] are asked again.
    fn entry(&self) -> Result<Address, Error>;

    /// Connects to a node, by what it is called there.
    ///
    /// # Errors
    /// As [`Node::connect`].
    fn connect(&self, at: &Address) -> Result<Node, Error>;
}

/// One that is named, and as whom; others of its cluster are reached in the same way.
impl Reach for Endpoint {
    fn name(&self) -> String {
        self.address.to_string()
    }

    fn entry(&self) -> Result<Address, Error> {
        Ok(self.address.clone())
    }

    fn connect(&self, at: &Address) -> Result<Node, Error> {
        Node::connect(&Endpoint {
            address: at.clone(),
            ..self.clone()
        })
    }
}
