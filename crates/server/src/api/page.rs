//! Paging and time windows: contract §4.7.

use std::borrow::Cow;

use super::error::Version;
use super::request::Request;
use crate::ids::Moment;
use crate::limits;
use crate::refusal::Refusal;

/// A checked page of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// Records skipped.
    pub offset: u64,
    /// Most records returned.
    pub limit: u64,
}

/// A checked window on `created_at`: from inclusive, to exclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Created at or after.
    pub from: Option<Moment>,
    /// Created before.
    pub to: Option<Moment>,
}

/// Reads `limit` with `offset` or `start` (start = offset + 1): on v2 `offset` wins, on v1.0 `start`.
///
/// # Errors
/// [`Refusal::Paging`].
pub fn page(request: &Request, default: u64) -> Result<Page, Refusal> {
    let number = |name: &'static str, least: u64, most: u64| match request.query(name) {
        None => Ok(None),
        Some(text) => match text.parse::<u64>() {
            Ok(value) if (least..=most).contains(&value) => Ok(Some(value)),
            _ => Err(Refusal::Paging(name)),
        },
    };
    let limit = number("limit", 1, limits::PAGE_ROWS_MAX)?.unwrap_or(default);
    let offset = number("offset", 0, i64::MAX as u64)?;
    let start = number("start", 1, i64::MAX as u64)?.map(|start| start - 1);
    let chosen = match request.version {
        Version::V2 => offset.or(start),
        Version::V1 => start.or(offset),
    };
    Ok(Page {
        offset: chosen.unwrap_or(0),
        limit,
    })
}

/// Reads `begin_time` and `end_time`: a closed interval of whole seconds.
///
/// # Errors
/// [`Refusal::Query`], [`Refusal::WindowReversed`].
pub fn window(request: &Request) -> Result<Window, Refusal> {
    let moment = |name: &'static str| match request.query(name) {
        None => Ok(None),
        Some(text) => Moment::from_compact(&text).map(Some).ok_or(Refusal::Query(name)),
    };
    let from = moment("begin_time")?;
    let end = moment("end_time")?;
    if let (Some(from), Some(end)) = (from, end)
        && from > end
    {
        return Err(Refusal::WindowReversed);
    }
    Ok(Window {
        from,
        to: end.map(|end| end.plus_seconds(1)),
    })
}

/// A moment as the wire wants it: `"2026-01-02T03:04:05.678Z"`.
#[derive(Debug, Clone, Copy)]
pub struct Stamp(pub Moment);

impl serde::Serialize for Stamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let bytes = self.0.iso_bytes();
        serializer.serialize_str(std::str::from_utf8(&bytes).unwrap_or_default())
    }
}

/// Hundredths of a percent as the wire wants them: `"42.50"`.
pub fn percent(basis_points: i64) -> Cow<'static, str> {
    match basis_points {
        ..=0 => Cow::Borrowed("0.00"),
        10_000.. => Cow::Borrowed("100.00"),
        part => Cow::Owned(format!("{}.{:02}", part / 100, part % 100)),
    }
}
