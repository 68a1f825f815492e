//! Where remote stores hold or may hold objects of an attempt: written down before the first one is there, forgotten after the
//! last one is gone.

use crate::catalog::{Error, Tx};
use crate::ids::{BackupId, HostId, InstanceId, StorageId};
use crate::limits;

/// Objects in a remote store that no backup needs.
#[derive(Debug, Clone)]
pub struct Place {
    /// What their names begin with.
    pub prefix: String,
    /// The store.
    pub storage_id: StorageId,
    /// The instance whose job wrote them.
    pub instance_id: InstanceId,
    /// How often it was written down.
    pub noted: i64,
}

/// Places of backups that have ended otherwise than with what lies there, and hold no copy that counts or that somebody
/// may be making; at most [`limits::PLACES_AT_ONCE`]. Nor
/// those of a job of another host than `host` that was ended from outside, and may not have noticed yet.
///
/// # Errors
/// The catalogue failed.
pub fn useless(tx: &Tx<'_>, host: &HostId) -> Result<Vec<Place>, Error> {
    tx.all(
        "SELECT place.prefix, place.storage_id, backup.instance_id, place.noted FROM backup_place AS place \
         JOIN backup ON backup.id = place.backup_id \
         WHERE place.kept = 0 AND (backup.status IN ('failed', 'expired', 'deleted') OR backup.prefix <> place.prefix) \
         AND NOT (backup.copy_prefix IS NOT DISTINCT FROM place.prefix AND (backup.copy_at_ms IS NULL OR backup.status = 'succeeded')) \
         AND NOT EXISTS (SELECT 1 FROM job WHERE job.subject_id = backup.id AND state = 'done' AND owner <> ?2 AND lease_until_ms >= ?3) \
         ORDER BY place.prefix LIMIT ?1",
        (limits::PLACES_AT_ONCE, host, tx.clock()?),
        |row| {
            Ok(Place {
                prefix: row.get(0)?,
                storage_id: row.get(1)?,
                instance_id: row.get(2)?,
                noted: row.get(3)?,
            })
        },
    )
}

/// The last object of a place is gone that was there when it was read; where it was noted again meanwhile, it stays.
///
/// # Errors
/// The catalogue failed.
pub fn forget(tx: &Tx<'_>, place: &Place) -> Result<(), Error> {
    tx.execute(
        "DELETE FROM backup_place WHERE prefix = ?1 AND noted = ?2",
        (&place.prefix, place.noted),
    )?;
    Ok(())
}

/// Writes a place down again: whoever writes there has lost his right to, and may have put an object there since it was cleared.
///
/// # Errors
/// The catalogue failed.
pub fn note_again(tx: &Tx<'_>, prefix: &str, storage: &StorageId, backup: &BackupId) -> Result<(), Error> {
    tx.execute(
        "INSERT INTO backup_place (prefix, storage_id, backup_id) VALUES (?1, ?2, ?3) ON CONFLICT (prefix) DO UPDATE SET noted = backup_place.noted + 1",
        (prefix, storage, backup),
    )?;
    Ok(())
}
