//! Copies a value string by string: with another compression, or a stream without what later layouts added.

use std::io::{self, Write};

use super::raw::{Head, Raw};
use super::{Compression, Output, changed};
use crate::elements::Shape;
use crate::module;
use crate::opcode::{self, FieldExpiry, Layout};

/// What an older layout of streams did not take.
#[derive(Default)]
pub(super) struct LostParts {
    counters: bool,
    read: bool,
    active: bool,
    idempotence: bool,
}

impl LostParts {
    pub(super) fn reasons(&self) -> impl Iterator<Item = &'static str> {
        [
            (
                self.counters,
                "entries ever added and the greatest deleted id need redis-7.0",
            ),
            (
                self.read,
                "how many entries a consumer group has read needs redis-7.0",
            ),
            (self.active, "when a consumer was last active needs redis-7.2"),
            (self.idempotence, "message ids of producers need redis-8.6"),
        ]
        .into_iter()
        .filter_map(|(is_lost, reason)| is_lost.then_some(reason))
    }
}

pub(super) struct Walk<'a, 'r, R, W> {
    pub(super) raw: &'a mut Raw<'r, R>,
    pub(super) out: &'a mut Output<W>,
}

impl<R, W> Walk<'_, '_, R, W>
where
    R: FnMut(u64, &mut [u8]) -> io::Result<()>,
    W: Write,
{
    /// Copies what stands before the type code, and passes that by.
    pub(super) fn before_type(&mut self) -> io::Result<()> {
        loop {
            let code = self.raw.byte()?;
            let is_type = !matches!(
                code,
                opcode::EXPIRETIME_MS | opcode::EXPIRETIME | opcode::IDLE | opcode::FREQ | opcode::AUX
            );
            if is_type {
                return Ok(());
            }
            self.out.put(&[code])?;
            match code {
                opcode::EXPIRETIME_MS => self.raw.copy(8, self.out)?,
                opcode::EXPIRETIME => self.raw.copy(4, self.out)?,
                opcode::FREQ => self.raw.copy(1, self.out)?,
                opcode::IDLE => drop(self.length()?),
                _ => {
                    self.string()?;
                    self.string()?;
                }
            }
        }
    }

    /// Copies a length.
    fn length(&mut self) -> io::Result<u64> {
        let value = self.raw.length()?;
        self.out.length(value)?;
        Ok(value)
    }

    /// Copies a string, or changes its compression.
    pub(super) fn string(&mut self) -> io::Result<()> {
        match self.raw.head()? {
            Head::Int(marker, count) => {
                self.out.put(&[marker])?;
                self.raw.copy(count, self.out)
            }
            Head::Plain(length) if self.out.compresses(length) => {
                let mut bytes = Vec::new();
                self.raw.take(length, &mut bytes)?;
                self.out.string(&bytes)
            }
            Head::Plain(length) => {
                self.out.length(length)?;
                self.raw.copy(length, self.out)
            }
            Head::Lzf { packed, plain } if self.out.compression == Compression::Expand => {
                self.out.length(plain)?;
                self.raw.expand(packed, self.out)
            }
            Head::Lzf { packed, plain } => {
                self.out.put(&[0xc3])?;
                self.out.length(packed)?;
                self.out.length(plain)?;
                self.raw.copy(packed, self.out)
            }
        }
    }

    fn strings(&mut self, count: u64) -> io::Result<()> {
        for _ in 0..count {
            self.string()?;
        }
        Ok(())
    }

    /// Copies a value; a stream as at most the given generation.
    pub(super) fn value(&mut self, layout: Layout, generation: u8) -> io::Result<LostParts> {
        match layout {
            Layout::Text | Layout::Packed(..) | Layout::Intset => self.string()?,
            Layout::Strings(shape) => {
                let count = self.length()?;
                self.strings(count)?;
                if shape == Shape::Hash {
                    self.strings(count)?;
                }
            }
            Layout::Nodes(_) => {
                let count = self.length()?;
                self.strings(count)?;
            }
            Layout::FormedNodes => {
                for _ in 0..self.length()? {
                    self.length()?;
                    self.string()?;
                }
            }
            Layout::Scores => {
                for _ in 0..self.length()? {
                    self.string()?;
                    self.raw.copy(8, self.out)?;
                }
            }
            Layout::ScoreTexts => {
                for _ in 0..self.length()? {
                    self.string()?;
                    let length = self.raw.byte()?;
                    self.out.put(&[length])?;
                    if length < 253 {
                        self.raw.copy(u64::from(length), self.out)?;
                    }
                }
            }
            Layout::Expiring(place) => {
                if place == FieldExpiry::FromLeast {
                    self.raw.copy(8, self.out)?;
                }
                for _ in 0..self.length()? {
                    if place != FieldExpiry::After {
                        self.length()?;
                    }
                    self.strings(2)?;
                    if place == FieldExpiry::After {
                        self.raw.copy(8, self.out)?;
                    }
                }
            }
            Layout::LeastThenPacked => {
                self.raw.copy(8, self.out)?;
                self.string()?;
            }
            Layout::Module => self.module()?,
            Layout::Stream(from) => return self.stream(from, from.min(generation)),
        }
        Ok(LostParts::default())
    }

    fn module(&mut self) -> io::Result<()> {
        self.length()?;
        loop {
            match self.length()? {
                module::MARK_END => return Ok(()),
                module::MARK_SIGNED | module::MARK_UNSIGNED => drop(self.length()?),
                module::MARK_FLOAT => self.raw.copy(4, self.out)?,
                module::MARK_DOUBLE => self.raw.copy(8, self.out)?,
                module::MARK_STRING => self.string()?,
                _ => return Err(changed("no mark where one was")),
            }
        }
    }

    /// Copies a stream from one generation to the same or an earlier one.
    fn stream(&mut self, from: u8, to: u8) -> io::Result<LostParts> {
        let mut lost = LostParts::default();
        let nodes = self.length()?;
        self.strings(nodes)?;
        self.strings(nodes)?;
        let length = self.length()?;
        self.length()?;
        self.length()?;
        if from >= 2 {
            let mut numbers = [0; 5];
            for number in &mut numbers {
                *number = self.raw.length()?;
                if to >= 2 {
                    self.out.length(*number)?;
                }
            }
            let [_, _, deleted_ms, deleted_sequence, added] = numbers;
            lost.counters = to < 2 && (deleted_ms, deleted_sequence, added) != (0, 0, length);
        }
        for _ in 0..self.length()? {
            self.group(from, to, &mut lost)?;
        }
        if from >= 4 {
            lost.idempotence = to < 4;
            self.idempotence(to >= 4)?;
        }
        Ok(lost)
    }

    fn group(&mut self, from: u8, to: u8, lost: &mut LostParts) -> io::Result<()> {
        self.string()?;
        self.length()?;
        self.length()?;
        if from >= 2 {
            let read = self.raw.length()?;
            if to >= 2 {
                self.out.length(read)?;
            }
            lost.read |= to < 2;
        }
        for _ in 0..self.length()? {
            self.raw.copy(24, self.out)?;
            self.length()?;
        }
        for _ in 0..self.length()? {
            self.string()?;
            self.raw.copy(8, self.out)?;
            if from >= 3 {
                let active: [u8; 8] = self.raw.array()?;
                if to >= 3 {
                    self.out.put(&active)?;
                }
                lost.active |= to < 3;
            }
            let owned = self.length()?;
            self.raw.copy(owned.saturating_mul(16), self.out)?;
        }
        Ok(())
    }

    /// Copies, or passes by, what the fourth layout has behind the groups.
    fn idempotence(&mut self, is_kept: bool) -> io::Result<()> {
        if !is_kept {
            // The value ends with it.
            return Ok(());
        }
        self.length()?;
        self.length()?;
        for _ in 0..self.length()? {
            self.string()?;
            for _ in 0..self.length()? {
                self.string()?;
                self.length()?;
                self.length()?;
            }
        }
        self.length()?;
        self.length()?;
        Ok(())
    }
}
