//! Restore records as the API tells them: one, or a page of them.

use crate::catalog::{Error, Row, Tx};
use crate::ids::{InstanceId, Moment, RestoreId};
use crate::instance::OwnedId;

/// A record as the API tells it, in pieces: see `api/restores.sql`, which keeps them.
#[derive(Debug)]
pub struct Told<'r> {
    /// `{` and the eleven documented fields, of JSON.
    pub documented: &'r [u8],
    /// `,` and the fields that v1.0 has besides.
    pub of_v1: &'r [u8],
    /// `,` and what DCS does not tell, as an object that is not closed.
    pub ext: &'r [u8],
    /// See [`Restore::failure`].
    pub failure: Option<&'r str>,
    /// The generation or the safety point that an undo would bring back, if it is still kept.
    pub undo_generation: Option<&'r str>,
}

fn told<'r>(row: &Row<'r>) -> Result<Told<'r>, Error> {
    Ok(Told {
        documented: row.text_bytes(0)?,
        ext: row.text_bytes(1)?,
        failure: row.text(2)?,
        undo_generation: row.text(3)?,
        of_v1: row.text_bytes(4)?,
    })
}

/// Tells one record of the instance. `None`: it has no such record.
///
/// # Errors
/// The catalogue failed.
pub fn tell<T>(
    tx: &Tx<'_>,
    of: &OwnedId,
    id: &RestoreId,
    tell: impl FnOnce(&Told<'_>) -> T,
) -> Result<Option<T>, Error> {
    tx.one(
        "SELECT documented, ext, told.failure, undo_generation_id, of_v1 FROM restore \
         JOIN restore_list AS list USING (instance_id) JOIN restore_told AS told ON place = (number << 32) + ordinal \
         WHERE restore.id = ?1 AND instance_id = ?2",
        (id, of.id()),
        |row| Ok(tell(&told(row)?)),
    )
}

/// Tells a page of the instance's records, newest first, and returns how many the window holds. `from` and `to` bound
/// `created_at` (inclusive, exclusive).
///
/// Ordinals are dense and grow with `created_at`, so a window is a range of ordinals: its ends are two index
/// look-ups, the total a subtraction, any page one scan of its own rows. No count, no skipped rows.
///
/// # Errors
/// The catalogue failed.
pub fn list(
    tx: &Tx<'_>,
    of: &OwnedId,
    from: Option<Moment>,
    to: Option<Moment>,
    offset: u64,
    limit: u64,
    mut tell: impl FnMut(&Told<'_>),
) -> Result<u64, Error> {
    let instance = of.id();
    let mut tell = |row: &Row<'_>| {
        tell(&told(row)?);
        Ok(())
    };
    if from.is_none() && to.is_none() {
        let last = tx.one(LAST, (instance,), |row| row.get::<i64>(0))?;
        let total = last.and_then(|last| u64::try_from(last).ok()).unwrap_or(0);
        if offset < total {
            tx.each(PAGE_OF_ALL, (instance, offset, limit), &mut tell)?;
        }
        return Ok(total);
    }
    let first = match from {
        None => Some(1),
        Some(from) => tx.one(
            "SELECT ordinal FROM restore WHERE instance_id = ?1 AND created_at_ms >= ?2 ORDER BY created_at_ms, ordinal LIMIT 1",
            (instance, from),
            |row| row.get::<i64>(0),
        )?,
    };
    let last = match to {
        None => tx.one(LAST, (instance,), |row| row.get::<i64>(0))?,
        Some(to) => tx.one(
            "SELECT ordinal FROM restore WHERE instance_id = ?1 AND created_at_ms < ?2 ORDER BY created_at_ms DESC, ordinal DESC LIMIT 1",
            (instance, to),
            |row| row.get(0),
        )?,
    };
    let (Some(first), Some(last)) = (first, last) else {
        return Ok(0);
    };
    let total = u64::try_from(last - first + 1).unwrap_or(0);
    if offset >= total {
        return Ok(total);
    }
    let top = last - i64::try_from(offset).unwrap_or(i64::MAX);
    let bottom = top
        .saturating_sub(i64::try_from(limit).unwrap_or(i64::MAX) - 1)
        .max(first);
    tx.each(
        "SELECT documented, ext, failure, undo_generation_id, of_v1 FROM restore_list CROSS JOIN restore_told \
         WHERE instance_id = ?1 AND place BETWEEN (number << 32) + ?2 AND (number << 32) + ?3 ORDER BY place DESC",
        (instance, bottom, top),
        &mut tell,
    )?;
    Ok(total)
}

/// See [`Tx::soon`]: of a list without a window.
///
/// # Errors
/// None in truth.
pub fn list_soon(tx: &Tx<'_>, instance: &InstanceId, offset: u64, limit: u64) -> Result<(), Error> {
    tx.soon(LAST, (instance,))?;
    tx.soon(PAGE_OF_ALL, (instance, offset, limit))
}

const LAST: &str = "SELECT ordinal FROM restore WHERE instance_id = ?1 ORDER BY ordinal DESC LIMIT 1";
/// Places before the first one are nobody's.
const PAGE_OF_ALL: &str = "SELECT documented, ext, failure, undo_generation_id, of_v1 FROM restore_list CROSS JOIN restore_told \
    WHERE instance_id = ?1 \
    AND place > (number << 32) + (SELECT ordinal FROM restore WHERE instance_id = ?1 ORDER BY ordinal DESC LIMIT 1) - ?2 - ?3 \
    AND place <= (number << 32) + (SELECT ordinal FROM restore WHERE instance_id = ?1 ORDER BY ordinal DESC LIMIT 1) - ?2 \
    ORDER BY place DESC";
