//! What every request and every job may use.

use std::sync::OnceLock;
use std::sync::atomic::AtomicI64;

use crate::catalog::Catalog;
use crate::config::Config;
use crate::hosts::Duty;
use crate::ids::HostId;
use crate::jobs::aside::Aside;
use crate::jobs::worker::Board;
use crate::metrics::Counters;
use crate::secrets::MasterKey;

/// The running service.
pub struct App {
    /// Settings.
    pub config: Config,
    /// Which of the services we are that share the catalogue.
    pub host: HostId,
    /// Whether we do what one at a time does for all.
    pub duty: Duty,
    /// The catalogue: the authority.
    pub catalog: Catalog,
    /// Keys and objects.
    pub vault: Vault,
    /// Running jobs.
    pub board: Board,
    /// What is at work beside them.
    pub aside: Aside,
    /// What is counted since the start.
    pub counters: Counters,
    /// When the newest copy of the catalogue was made, in milliseconds since 1970; 0: it is not known.
    pub copied_at_ms: AtomicI64,
    /// The port of the API, once it listens.
    pub listens_on: OnceLock<u16>,
}

/// Keys, and the store of what they protect.
pub struct Vault {
    /// Seals secret columns.
    pub master: MasterKey,
    /// Signs manifests.
    pub signer: engine::keys::SigningKey,
    /// The local folder for archives.
    pub store: engine::store::Store,
    /// Other stores, see [`crate::storage::open`].
    pub remotes: crate::storage::Remotes,
}
