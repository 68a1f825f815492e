//! Where a page of an instance's backups begins, and how many there are, without their rows.

use super::record::PAGE;
use crate::catalog::{Error, Tx};
use crate::ids::{InstanceId, Moment};

/// The first moment of a window, inclusive.
pub fn from(from: Option<Moment>) -> i64 {
    from.map_or(i64::MIN, |moment| moment.0)
}

/// Its end, exclusive.
pub fn to(to: Option<Moment>) -> i64 {
    to.map_or(i64::MAX, |moment| moment.0)
}

/// How many records the window holds, and the ordinal of the newest one of the page; `None`: there is none so far down.
///
/// # Errors
/// The catalogue failed.
pub fn begin(
    tx: &Tx<'_>,
    instance: &InstanceId,
    since: Option<Moment>,
    until: Option<Moment>,
    offset: u64,
) -> Result<(u64, Option<i64>), Error> {
    let is_whole = since.is_none() && until.is_none();
    let (from, to) = (from(since), to(until));
    let (total, newest): (u64, i64) = match is_whole {
        true => tx.one(
            WHOLE,
            (instance,),
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?,
        false => tx.one(
            "SELECT count(*), -1 FROM backup WHERE instance_id = ?1 AND status <> 'deleted' AND created_at_ms >= ?2 AND created_at_ms < ?3",
            (instance, from, to),
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?,
    }
    .unwrap_or_default();
    // Of an instance of which none was deleted the ordinals are those from one on. Else what comes before the page is passed over in
    // the index, without its rows.
    let first = match offset {
        _ if offset >= total => None,
        0 => Some(i64::MAX),
        _ if u64::try_from(newest) == Ok(total) => i64::try_from(offset).ok().map(|offset| newest - offset),
        _ => tx.one(
            "SELECT ordinal FROM backup WHERE instance_id = ?1 AND status <> 'deleted' AND created_at_ms >= ?2 AND created_at_ms < ?3 \
             ORDER BY ordinal DESC LIMIT 1 OFFSET ?4",
            (instance, from, to, offset),
            |row| row.get(0),
        )?,
    };
    Ok((total, first))
}

/// See [`Tx::soon`]: of a list without a window.
///
/// # Errors
/// None in truth.
pub fn soon(tx: &Tx<'_>, instance: &InstanceId, offset: u64, limit: u64) -> Result<(), Error> {
    tx.soon(WHOLE, (instance,))?;
    match offset {
        0 => tx.soon(PAGE, (instance, from(None), to(None), limit, i64::MAX)),
        _ => Ok(()),
    }
}

const WHOLE: &str = "SELECT listed, (SELECT max(ordinal) FROM backup WHERE instance_id = ?1) FROM backup_count WHERE instance_id = ?1";
