//! Finds where entries end without reading them: by their lengths and counts alone.
//!
//! Nothing is judged here. What is skimmed is read by a parser afterwards, which must come to the same end.

use crate::elements::Shape;
use crate::error::{Step, Stop};
use crate::opcode::{self, Family, FieldExpiry, Layout, Type, layout};
use crate::reader::{Length, Reader};

/// Entries at the start of a buffer.
#[derive(Default)]
pub(crate) struct Skimmed {
    pub(crate) keys: u64,
    /// Bytes of them.
    pub(crate) bytes: usize,
    /// The bytes end within the next one, or with the last one.
    pub(crate) wants_more: bool,
}

/// As many whole entries as `bytes` begins with, up to the first that cannot be told apart by its lengths alone.
pub(crate) fn entries(family: Family, bytes: &[u8]) -> Skimmed {
    let mut r = Reader::new(bytes);
    let mut seen = Skimmed::default();
    loop {
        match entry(family, &mut r) {
            Ok(true) => {
                seen.keys += 1;
                seen.bytes = r.pos();
            }
            Ok(false) => return seen,
            Err(stop) => {
                seen.wants_more = matches!(stop, Stop::Need(_));
                return seen;
            }
        }
    }
}

/// `false`: something else than an entry, or one that has to be read to know its end.
#[inline]
fn entry(family: Family, r: &mut Reader<'_>) -> Step<bool> {
    loop {
        let code = r.byte()?;
        match code {
            opcode::EXPIRETIME_MS => skip(r, 8)?,
            opcode::EXPIRETIME => skip(r, 4)?,
            opcode::FREQ => skip(r, 1)?,
            opcode::IDLE => drop(r.length()?),
            code if code < opcode::SLOT_IMPORT => {
                let (_, layout) = layout(family, code)?;
                string(r)?;
                return value(layout, r);
            }
            _ => return Ok(false),
        }
    }
}

/// What stands before a value, and where that is.
pub(crate) struct Entry<'a> {
    pub(crate) expire_at_ms: Option<i64>,
    pub(crate) idle_seconds: Option<u64>,
    pub(crate) frequency: Option<u8>,
    pub(crate) type_code: u8,
    pub(crate) kind: Type,
    pub(crate) key: Key<'a>,
    pub(crate) value: &'a [u8],
    /// Bytes of all of it.
    pub(crate) bytes: usize,
}

/// A key as it is stored.
pub(crate) enum Key<'a> {
    Plain(&'a [u8]),
    Int(i64),
    Lzf { packed: &'a [u8], plain: u64 },
}

/// The entry that `bytes` begins with, if `is_wanted` says so of its type code. `None`: something else, or one that has to be
/// read to know its end.
pub(crate) fn whole_entry<'a>(
    family: Family,
    bytes: &'a [u8],
    is_wanted: impl Fn(u8) -> bool,
) -> Step<Option<Entry<'a>>> {
    let mut r = Reader::new(bytes);
    let (mut expire_at_ms, mut idle_seconds, mut frequency) = (None, None, None);
    loop {
        let code = r.byte()?;
        match code {
            opcode::EXPIRETIME_MS => expire_at_ms = Some(i64::from_le_bytes(r.array()?)),
            opcode::EXPIRETIME => expire_at_ms = Some(i64::from(i32::from_le_bytes(r.array()?)) * 1000),
            opcode::FREQ => frequency = Some(r.byte()?),
            opcode::IDLE => idle_seconds = Some(r.length()?),
            type_code if type_code < opcode::SLOT_IMPORT && is_wanted(type_code) => {
                let (kind, layout) = layout(family, type_code)?;
                let key = key(&mut r)?;
                let from = r.pos();
                if !value(layout, &mut r)? {
                    return Ok(None);
                }
                return Ok(Some(Entry {
                    expire_at_ms,
                    idle_seconds,
                    frequency,
                    type_code,
                    kind,
                    key,
                    value: &bytes[from..r.pos()],
                    bytes: r.pos(),
                }));
            }
            _ => return Ok(None),
        }
    }
}

#[inline]
fn key<'a>(r: &mut Reader<'a>) -> Step<Key<'a>> {
    Ok(match r.length_field()? {
        Length::Plain(length) => Key::Plain(r.take(usize::try_from(length).unwrap_or(usize::MAX))?),
        Length::Encoded(0) => Key::Int(i64::from(i8::from_le_bytes(r.array()?))),
        Length::Encoded(1) => Key::Int(i64::from(i16::from_le_bytes(r.array()?))),
        Length::Encoded(2) => Key::Int(i64::from(i32::from_le_bytes(r.array()?))),
        Length::Encoded(_) => {
            let (packed, plain) = (r.length()?, r.length()?);
            let packed = r.take(usize::try_from(packed).unwrap_or(usize::MAX))?;
            Key::Lzf { packed, plain }
        }
    })
}

fn value(layout: Layout, r: &mut Reader<'_>) -> Step<bool> {
    match layout {
        Layout::Text | Layout::Packed(..) | Layout::Intset => string(r)?,
        Layout::Strings(shape) => {
            let each = if shape == Shape::Hash { 2 } else { 1 };
            times(r, |r| (0..each).try_for_each(|_| string(r)))?;
        }
        Layout::ScoreTexts => times(r, |r| {
            string(r)?;
            match r.byte()? {
                253.. => Ok(()),
                length => skip(r, u64::from(length)),
            }
        })?,
        Layout::Scores => times(r, |r| {
            string(r)?;
            skip(r, 8)
        })?,
        Layout::Nodes(_) => times(r, string)?,
        Layout::FormedNodes => times(r, |r| {
            r.length()?;
            string(r)
        })?,
        Layout::LeastThenPacked => {
            skip(r, 8)?;
            string(r)?;
        }
        Layout::Expiring(FieldExpiry::After) => times(r, |r| {
            string(r)?;
            string(r)?;
            skip(r, 8)
        })?,
        Layout::Expiring(place) => {
            if place == FieldExpiry::FromLeast {
                skip(r, 8)?;
            }
            times(r, |r| {
                r.length()?;
                string(r)?;
                string(r)
            })?;
        }
        Layout::Stream(generation) => stream(generation, r)?,
        Layout::Module => return Ok(false),
    }
    Ok(true)
}

fn stream(generation: u8, r: &mut Reader<'_>) -> Step<()> {
    times(r, |r| {
        string(r)?;
        string(r)
    })?;
    let counters = if generation >= 2 { 8 } else { 3 };
    lengths(r, counters)?;
    times(r, |r| group(generation, r))?;
    if generation >= 4 {
        lengths(r, 2)?;
        times(r, |r| {
            string(r)?;
            times(r, |r| {
                string(r)?;
                lengths(r, 2)
            })
        })?;
        lengths(r, 2)?;
    }
    Ok(())
}

fn group(generation: u8, r: &mut Reader<'_>) -> Step<()> {
    string(r)?;
    lengths(r, if generation >= 2 { 3 } else { 2 })?;
    times(r, |r| {
        skip(r, 24)?;
        lengths(r, 1)
    })?;
    times(r, |r| {
        string(r)?;
        skip(r, if generation >= 3 { 16 } else { 8 })?;
        times(r, |r| skip(r, 16))
    })
}

fn lengths(r: &mut Reader<'_>, count: u32) -> Step<()> {
    (0..count).try_for_each(|_| r.length().map(drop))
}

/// A count and so many of what `each` passes over. No count is trusted: the bytes end first.
#[inline]
fn times(r: &mut Reader<'_>, mut each: impl FnMut(&mut Reader<'_>) -> Step<()>) -> Step<()> {
    for _ in 0..r.length()? {
        each(r)?;
    }
    Ok(())
}

#[inline]
fn string(r: &mut Reader<'_>) -> Step<()> {
    match r.length_field()? {
        Length::Plain(length) => skip(r, length),
        Length::Encoded(form @ 0..=2) => skip(r, 1 << form),
        Length::Encoded(_) => {
            let packed = r.length()?;
            r.length()?;
            skip(r, packed)
        }
    }
}

#[inline]
fn skip(r: &mut Reader<'_>, count: u64) -> Step<()> {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    r.take(count).map(drop)
}
