//! The plain form of a value: its count, and one string after the other.

use std::io::{self, Write};

use super::Output;
use crate::elements::FIELD_EXPIRY_MAX;
use crate::event::{Event, KeySummary, Part, Sink};

/// Bytes of a field and its value that are held until its expiry is known.
const HELD_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// The forms that every version of their family reads.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Form {
    List,
    Set,
    ZSet,
    Hash,
    /// Fields with their expiry behind them, in eight bytes.
    ExpiringHash,
    /// Fields with their expiry before them, counted from the least.
    HashFromLeast {
        least: u64,
    },
}

impl Form {
    pub(super) fn code(self) -> u8 {
        match self {
            Self::List => 1,
            Self::Set => 2,
            Self::Hash => 4,
            Self::ZSet => 5,
            Self::ExpiringHash => 22,
            Self::HashFromLeast { .. } => 24,
        }
    }
}

/// Writes a value while it is read.
pub(super) struct Plain<'a, W> {
    out: &'a mut Output<W>,
    form: Form,
    /// A field has been written, and not yet whether it expires.
    is_open: bool,
    /// A field and its value that wait for their expiry.
    held: [Vec<u8>; 2],
    failure: Option<io::Error>,
}

impl<'a, W: Write> Plain<'a, W> {
    pub(super) fn begin(form: Form, elements: u64, out: &'a mut Output<W>) -> io::Result<Self> {
        if let Form::HashFromLeast { least } = form {
            out.put(&least.to_le_bytes())?;
        }
        out.length(elements)?;
        Ok(Self {
            out,
            form,
            is_open: false,
            held: Default::default(),
            failure: None,
        })
    }

    pub(super) fn end(mut self) -> io::Result<()> {
        if self.failure.is_none() {
            self.end_field(None)?;
        }
        self.failure.map_or(Ok(()), Err)
    }

    fn holds(&self) -> bool {
        matches!(self.form, Form::HashFromLeast { .. })
    }

    /// Ends the field before.
    fn end_field(&mut self, at_ms: Option<i64>) -> io::Result<()> {
        if !std::mem::take(&mut self.is_open) {
            return Ok(());
        }
        match self.form {
            Form::ExpiringHash => self.out.put(&at_ms.unwrap_or(-1).to_le_bytes()),
            Form::HashFromLeast { least } => {
                let counted = at_ms.map_or(0, |at_ms| at_ms.cast_unsigned().wrapping_sub(least) + 1);
                self.out.length(counted)?;
                let held = std::mem::take(&mut self.held);
                self.out.string(&held[0])?;
                self.out.string(&held[1])?;
                self.held = held;
                for part in &mut self.held {
                    part.clear();
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Where a string goes that is held: the field, or its value.
    fn place(&mut self, part: Part) -> &mut Vec<u8> {
        &mut self.held[usize::from(part == Part::Value)]
    }

    fn take(&mut self, event: Event<'_>) -> io::Result<()> {
        if let Event::Whole(Part::Field, _) | Event::Long(Part::Field, _) = event {
            self.end_field(None)?;
            self.is_open = true;
        }
        match event {
            Event::Whole(part, bytes) | Event::Piece(part, bytes) if self.holds() => {
                self.place(part).extend_from_slice(bytes);
                Ok(())
            }
            Event::Whole(_, bytes) => self.out.string(bytes),
            Event::Long(_, length) if !self.holds() => self.out.length(length),
            Event::Piece(_, bytes) => self.out.put(bytes),
            Event::Score(score) => self.out.put(&score.to_le_bytes()),
            Event::FieldExpiry(at_ms) => self.end_field(Some(at_ms)),
            _ => Ok(()),
        }
    }
}

impl<W: Write> Sink for Plain<'_, W> {
    const VALUES: bool = true;

    fn key(&mut self, _key: &KeySummary<'_>) {}

    fn event(&mut self, event: Event<'_>) {
        if self.failure.is_none() {
            self.failure = self.take(event).err();
        }
    }
}

/// Finds the least and the greatest expiry of the fields of a hash, and the most bytes of a field and its value.
#[derive(Default)]
pub(super) struct Expiries {
    pub(super) least: Option<u64>,
    greatest: u64,
    held_max: u64,
    held: u64,
}

impl Sink for Expiries {
    const VALUES: bool = true;

    fn key(&mut self, _key: &KeySummary<'_>) {}

    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Whole(part, bytes) => self.add(part, bytes.len() as u64),
            Event::Long(part, length) => self.add(part, length),
            Event::FieldExpiry(at_ms) => {
                let at_ms = at_ms.cast_unsigned();
                self.least = Some(self.least.map_or(at_ms, |least| least.min(at_ms)));
                self.greatest = self.greatest.max(at_ms);
            }
            _ => {}
        }
    }
}

impl Expiries {
    /// Why Redis cannot hold the hash.
    pub(super) fn obstacle(&self) -> Option<&'static str> {
        if self.greatest > FIELD_EXPIRY_MAX {
            Some("a field expires later than Redis can hold")
        } else if self.held_max > HELD_BYTES_MAX {
            Some("a hash with fields that expire has a field and value above 8 MiB")
        } else {
            None
        }
    }

    fn add(&mut self, part: Part, bytes: u64) {
        if part == Part::Field {
            self.held = 0;
        }
        self.held = self.held.saturating_add(bytes);
        self.held_max = self.held_max.max(self.held);
    }
}
