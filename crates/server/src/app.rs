//! What every request and every job may use.

use crate::catalog::Catalog;
use crate::config::Config;
use crate::jobs::worker::Board;
use crate::secrets::MasterKey;

/// The running service.
pub struct App {
    /// Settings.
    pub config: Config,
    /// The catalogue: the authority.
    pub catalog: Catalog,
    /// Keys and objects.
    pub vault: Vault,
    /// Running jobs.
    pub board: Board,
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
