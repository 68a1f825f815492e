//! Reads one value again, for who wants its parts.

use std::io;
use std::ops::Range;

use super::changed;
use crate::error::Defect;
use crate::event::Sink;
use crate::object::Object;
use crate::opcode::Family;
use crate::reader::{Carry, Progress, Reader, progress};
use crate::source::Source;

/// Bytes read at once.
const PIECE_BYTES: u64 = 64 * 1024;

pub(super) struct Values {
    object: Object,
    source: Source,
    carry: Carry,
    piece: Vec<u8>,
}

impl Default for Values {
    fn default() -> Self {
        Self {
            object: Object::new(),
            source: Source::new(),
            carry: Carry::default(),
            piece: Vec::new(),
        }
    }
}

impl Values {
    /// Tells a sink the value that stands at these offsets.
    pub(super) fn tell<S: Sink>(
        &mut self,
        read: &mut impl FnMut(u64, &mut [u8]) -> io::Result<()>,
        family: Family,
        code: u8,
        at: Range<u64>,
        sink: &mut S,
    ) -> io::Result<()> {
        self.object.begin(family, code).map_err(changed)?;
        let mut offset = at.start;
        let mut is_done = false;
        while offset < at.end {
            let count = (at.end - offset).min(PIECE_BYTES);
            self.piece.resize(count as usize, 0);
            read(offset, &mut self.piece)?;
            offset += count;
            let (object, source) = (&mut self.object, &mut self.source);
            self.carry
                .feed(&self.piece, |bytes| -> Result<Progress, Defect> {
                    let mut r = Reader::new(bytes);
                    match object.run(&mut r, source, sink) {
                        Ok(_value) => {
                            r.commit();
                            is_done = true;
                            Ok(Progress {
                                consumed: r.committed(),
                                need: 1,
                            })
                        }
                        Err(stop) => progress(&r, stop),
                    }
                })
                .map_err(changed)?;
        }
        if !is_done || self.carry.len() > 0 {
            return Err(changed("a value ends elsewhere"));
        }
        Ok(())
    }
}
