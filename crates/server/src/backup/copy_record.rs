//! The copy of a backup's archive in another store, on the backup's row, and its SQL.
//!
//! ```text
//! none ──> being made ──> whole
//!   └──────────┴────────────┘ back to none: broken off, or removed
//! ```
//!
//! Whoever makes a copy holds a lock for it (see `Config::copy_lock`); where nobody does, it was broken off.

use crate::catalog::{Error, Row, Tx};
use crate::ids::{BackupId, HostId, Moment, StorageId};

/// Where a copy lies or is being made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copied {
    /// What its objects' names begin with; used for no other attempt to copy.
    pub prefix: String,
    /// The store; `None`: the local folder.
    pub storage_id: Option<StorageId>,
    /// Its name.
    pub storage_name: Option<String>,
    /// Whose local folder that is; else where it is made.
    pub host: Option<HostId>,
    /// When every byte of it was read back; `None`: it is being made.
    pub at: Option<Moment>,
}

/// Reads four columns from `first` on, and the host's.
pub(super) fn read(row: &Row<'_>, first: usize, host: usize) -> Result<Option<Copied>, Error> {
    let Some(prefix) = row.get(first)? else {
        return Ok(None);
    };
    Ok(Some(Copied {
        prefix,
        storage_id: row.get(first + 1)?,
        storage_name: row.get(first + 2)?,
        at: row.get(first + 3)?,
        host: row.get(host)?,
    }))
}

/// none → being made, for an archive that is kept. Its place in a remote store is written down with it. `false`: there
/// is a copy, or none can be made.
///
/// # Errors
/// The catalogue failed.
pub fn begin(
    tx: &Tx<'_>,
    id: &BackupId,
    prefix: &str,
    (storage, host): (Option<&StorageId>, &HostId),
) -> Result<bool, Error> {
    let changed = tx.execute(
        "UPDATE backup SET copy_prefix = ?2, copy_storage_id = ?3, copy_host_id = ?4, copy_at_ms = NULL \
         WHERE id = ?1 AND status = 'succeeded' AND phase IS NULL AND generation_id IS NULL AND copy_prefix IS NULL",
        (id, prefix, storage, host),
    )?;
    if changed == 1 && storage.is_some() {
        tx.execute(
            "INSERT INTO backup_place (prefix, storage_id, backup_id) VALUES (?1, ?2, ?3)",
            (prefix, storage, id),
        )?;
    }
    Ok(changed == 1)
}

/// being made → whole. `false`: the backup was deleted meanwhile, and the copy is to be removed.
///
/// # Errors
/// The catalogue failed.
pub fn finish(tx: &Tx<'_>, id: &BackupId, prefix: &str, now: Moment) -> Result<bool, Error> {
    let changed = tx.execute(
        "UPDATE backup SET copy_at_ms = ?3 \
         WHERE id = ?1 AND copy_prefix = ?2 AND copy_at_ms IS NULL AND status = 'succeeded' AND phase IS NULL",
        (id, prefix, now),
    )?;
    Ok(changed == 1)
}

/// Back to none. What lies in a remote store is the sweeper's from then on.
///
/// # Errors
/// The catalogue failed.
pub fn forget(tx: &Tx<'_>, id: &BackupId, prefix: &str) -> Result<bool, Error> {
    let changed = tx.execute(
        "UPDATE backup SET copy_prefix = NULL, copy_storage_id = NULL, copy_at_ms = NULL WHERE id = ?1 AND copy_prefix = ?2",
        (id, prefix),
    )?;
    Ok(changed == 1)
}

/// Copies that are being made, or were when their maker ended.
///
/// # Errors
/// The catalogue failed.
pub fn unfinished(tx: &Tx<'_>) -> Result<Vec<(BackupId, Copied)>, Error> {
    tx.all(
        "SELECT id, copy_prefix, copy_storage_id, NULL, copy_at_ms, copy_host_id FROM backup \
         WHERE copy_prefix IS NOT NULL AND copy_at_ms IS NULL",
        (),
        |row| Ok((row.get(0)?, read(row, 1, 5)?)),
    )
    .map(|rows: Vec<(BackupId, Option<Copied>)>| {
        rows.into_iter()
            .filter_map(|(id, copy)| copy.map(|copy| (id, copy)))
            .collect()
    })
}

/// The copy takes the place of an archive that is gone.
///
/// # Errors
/// The catalogue failed.
pub fn promote(tx: &Tx<'_>, id: &BackupId) -> Result<(), Error> {
    tx.execute(
        "UPDATE backup SET prefix = copy_prefix, storage_id = copy_storage_id, host_id = copy_host_id, copy_prefix = NULL, copy_storage_id = NULL, \
         copy_at_ms = NULL WHERE id = ?1 AND copy_at_ms IS NOT NULL",
        (id,),
    )?;
    Ok(())
}
