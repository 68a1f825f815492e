//! Finds where entries end without reading them: by their lengths and counts alone.
//!
//! Nothing is judged here. What is skimmed is read by a parser afterwards, which must come to the same end.

use crate::elements::Shape;
use crate::error::{Step, Stop};
use crate::opcode::{self, Family, FieldExpiry, Layout, layout};
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
