//! Strings, scores and what must wait, as they stand in a JSON document.

use std::fs::File;
use std::io::{Read, Seek, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Longest string that is written as text.
pub(super) const TEXT_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Bytes of expiry of the fields of one hash that are held in memory.
const DEFERRED_BYTES_MAX: usize = 8 * 1024 * 1024;
/// A string: as text where it is printable, else as base64.
pub(super) fn write_string(out: &mut impl Write, bytes: &[u8]) -> std::io::Result<()> {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => {
            serde_json::to_writer(out, text).map_err(std::io::Error::from)
        }
        _ => {
            out.write_all(b"{\"b64\":\"")?;
            // A multiple of three, so that only the last piece is padded.
            for piece in bytes.chunks(3 * 1024) {
                out.write_all(STANDARD.encode(piece).as_bytes())?;
            }
            out.write_all(b"\"}")
        }
    }
}

/// The shortest text that reads back as the same number.
pub(super) fn write_score(out: &mut impl Write, score: f64) -> std::io::Result<()> {
    /// Above it not every integer has a double of its own, and the exponent form is shorter.
    const INTEGER_MAX: f64 = 1e17;
    if score.fract() == 0.0 && score.abs() < INTEGER_MAX {
        write!(out, "{}", score as i64)
    } else if score.is_finite() {
        write!(out, "{score:?}")
    } else {
        write!(out, "{score}")
    }
}

/// A string that comes in pieces.
#[derive(Default)]
pub(super) struct Text {
    /// All of it; while it is written in pieces, what does not fill three bytes.
    held: Vec<u8>,
    is_streaming: bool,
}

impl Text {
    /// Whether a string that is still held would be longer than what is held, with this piece.
    pub(super) fn is_too_long_with(&self, piece: &[u8]) -> bool {
        !self.is_streaming && self.held.len() + piece.len() > TEXT_BYTES_MAX
    }

    /// Begins to write what does not fit: the caller has written what stands before it.
    pub(super) fn start(&mut self, out: &mut impl Write) -> std::io::Result<()> {
        out.write_all(b"{\"b64\":\"")?;
        self.is_streaming = true;
        self.push(&[], out)
    }

    /// Takes a piece.
    pub(super) fn push(&mut self, bytes: &[u8], out: &mut impl Write) -> std::io::Result<()> {
        self.held.extend_from_slice(bytes);
        if self.is_streaming {
            let even = self.held.len() / 3 * 3;
            for piece in self.held[..even].chunks(3 * 1024) {
                out.write_all(STANDARD.encode(piece).as_bytes())?;
            }
            self.held.drain(..even);
            self.held.shrink_to(TEXT_BYTES_MAX / 8);
        }
        Ok(())
    }

    /// Ends the string, and returns it where it was held as a whole.
    pub(super) fn end(&mut self, out: &mut impl Write) -> std::io::Result<Option<Vec<u8>>> {
        let held = std::mem::take(&mut self.held);
        if !std::mem::take(&mut self.is_streaming) {
            return Ok(Some(held));
        }
        out.write_all(STANDARD.encode(&held).as_bytes())?;
        out.write_all(b"\"}")?;
        Ok(None)
    }
}

/// What is written behind a hash that is being written.
#[derive(Default)]
pub(super) struct Deferred {
    memory: Vec<u8>,
    file: Option<File>,
    any: bool,
}

impl Deferred {
    pub(super) fn is_empty(&self) -> bool {
        !self.any
    }

    /// Adds a field, as written, and when it expires.
    pub(super) fn push(&mut self, field: &[u8], at_ms: i64) -> std::io::Result<()> {
        if std::mem::replace(&mut self.any, true) {
            self.memory.push(b',');
        }
        self.memory.push(b'[');
        self.memory.extend_from_slice(field);
        write!(self.memory, ",{at_ms}]")?;
        if self.memory.len() > DEFERRED_BYTES_MAX {
            let file = match &mut self.file {
                Some(file) => file,
                None => self.file.insert(unlinked_file()?),
            };
            file.write_all(&self.memory)?;
            self.memory.clear();
        }
        Ok(())
    }

    /// Writes what was added, and forgets it.
    pub(super) fn drain(&mut self, out: &mut impl Write) -> std::io::Result<()> {
        if let Some(mut file) = self.file.take() {
            file.rewind()?;
            let mut piece = vec![0; 64 * 1024];
            loop {
                match file.read(&mut piece)? {
                    0 => break,
                    count => out.write_all(&piece[..count])?,
                }
            }
        }
        out.write_all(&self.memory)?;
        self.memory.clear();
        self.any = false;
        Ok(())
    }
}

/// A file in the system's folder for such, gone with the process.
fn unlinked_file() -> std::io::Result<File> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = rustix::fs::open(std::env::temp_dir(), flags, Mode::RUSR | Mode::WUSR)?;
    Ok(File::from(file))
}
