//! Object stores: the local folder of the data directory, and the remote ones that an administrator has added.

pub mod record;
pub mod sweep;

use std::collections::HashMap;
use std::sync::Mutex;

use engine::store::{Patience, RemoteKind, RemoteSpec, Store};
use engine::{Error, Kind, Secret};

use crate::app::App;
use crate::ids::StorageId;
use crate::metrics;
use crate::secrets::MasterKey;
use record::Storage;

/// The name of the local folder among the stores.
pub const LOCAL: &str = "local";

/// Remote stores that this process has opened. A row never changes, so an open store is never out of date.
#[derive(Default)]
pub struct Remotes(Mutex<HashMap<StorageId, Store>>);

/// The store of that id; `None` is the local folder.
///
/// # Errors
/// [`Kind::Key`] where its credentials cannot be unsealed; [`Kind::Store`] where it is gone or described wrongly;
/// [`Kind::Io`] where the catalogue cannot be read.
pub fn open(app: &App, id: Option<&StorageId>) -> Result<Store, Error> {
    match id {
        None => Ok(app.vault.store.clone()),
        Some(id) => open_remote(app, id).inspect_err(|_| app.counters.add(metrics::STORES_NOT_OPENED, &[])),
    }
}

fn open_remote(app: &App, id: &StorageId) -> Result<Store, Error> {
    let mut remotes = app
        .vault
        .remotes
        .0
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(store) = remotes.get(id) {
        return Ok(store.clone());
    }
    let row = app
        .catalog
        .read(|tx| record::load(tx, id))
        .map_err(|error| Error::new(Kind::Io, "read catalogue", "the storages").because(error))?
        .ok_or_else(|| Error::new(Kind::Store, "open store", format!("there is no storage {id}")))?;
    let patience = Patience {
        total: app.config.store_patience,
        ..Patience::JOB
    };
    let store = Store::open_remote(&spec(&app.vault.master, &row)?, patience)?;
    remotes.insert(id.clone(), store.clone());
    Ok(store)
}

/// What the data plane needs to know of a storage.
///
/// # Errors
/// [`Kind::Key`] where its credentials cannot be unsealed.
fn spec(master: &MasterKey, row: &Storage) -> Result<RemoteSpec, Error> {
    let kind = RemoteKind::from_word(&row.kind).ok_or_else(|| {
        let context = format!("storage {}: kind {} is not known here", row.name, row.kind);
        Error::new(Kind::Store, "open store", context)
    })?;
    Ok(RemoteSpec {
        kind,
        endpoint: row.endpoint.clone(),
        bucket: row.bucket.clone(),
        prefix: row.prefix.clone(),
        region: row.region.clone(),
        access_key: Secret::new(master.open(&access_key_place(&row.id), &row.access_key_sealed)?),
        secret_key: Secret::new(master.open(&secret_key_place(&row.id), &row.secret_key_sealed)?),
    })
}

/// The place of a sealed access key, see [`MasterKey::seal`].
pub fn access_key_place(id: &StorageId) -> String {
    format!("storage.access_key:{id}")
}

/// The place of a sealed secret key, see [`MasterKey::seal`].
pub fn secret_key_place(id: &StorageId) -> String {
    format!("storage.secret_key:{id}")
}
