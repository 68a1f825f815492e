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

/// The service of an empty data directory, for unit tests.
#[cfg(test)]
pub mod testing {
    use std::path::Path;
    use std::time::Duration;

    use super::App;
    use crate::config::{Config, Roles};
    use crate::{limits, serve};

    /// With its catalogue in a file and its backups in a folder, both below `data_dir`; it starts no engine and listens nowhere.
    pub fn app(data_dir: &Path) -> App {
        serve::open(Config {
            data_dir: data_dir.to_owned(),
            database: None,
            listen: "127.0.0.1:0".parse().unwrap(),
            metrics_listen: None,
            tls: None,
            region: String::new(),
            engine_bind: "127.0.0.1".parse().unwrap(),
            engine_ports: 1..=1,
            engines: Vec::new(),
            run_as: None,
            undo_keep_seconds: 0,
            store_patience: engine::Patience::JOB.total,
            import_allowed: Vec::new(),
            attach_allowed: Vec::new(),
            node_name: None,
            keys_dir: None,
            roles: Roles::ALL,
            jobs_at_once: limits::JOBS_AT_ONCE,
            jobs_per_project: None,
            lease: limits::LEASE,
            drain: Duration::ZERO,
            strict_dcs: false,
        })
        .unwrap()
    }
}
