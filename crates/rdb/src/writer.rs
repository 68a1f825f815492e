//! Writes RDB files at a chosen version and family, and append-only files, out of the keys of a valid RDB file.
//!
//! A value is copied byte for byte where the target reads its encoding. Where it does not, it is read once more and
//! written in a form that every version reads: one string after the other; a stream without the fields that its later
//! layouts added. What the target cannot hold is left out and told, key by key, by a [`Loss`].
//!
//! The writer is told of keys by their [`KeySummary`] and reads their bytes again through `read`, from where they
//! stand: so counts are known before the first element is written, and memory is bounded whatever a value holds.

mod aof;
mod payload;
mod plain;
mod raw;
mod target;
mod values;
mod walk;

use std::io::{self, Write};

use crate::crc64::Crc64;
use crate::event::KeySummary;
use crate::lzf;
use crate::opcode::{self, Family, Layout, Type, layout};
use crate::report::Report;

pub use aof::AofWriter;
pub use payload::{FOOTER_BYTES, Footer, PayloadWriter, entry_header, push_footer};
use plain::{Expiries, Form, Plain};
use raw::Raw;
pub use target::{TARGETS, Target};
use values::Values;
use walk::Walk;

/// The AUX fields that are passed on: what they say stays true of the copy.
const AUX_KEPT: [&[u8]; 4] = [b"redis-ver", b"valkey-ver", b"redis-bits", b"ctime"];
/// Longest string that is compressed; a longer one is written as it is, in pieces.
const COMPRESS_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Shorter strings are not compressed, as in the engines (src/rdb.c, rdbSaveRawString).
const COMPRESS_BYTES_MIN: u64 = 21;

/// What becomes of LZF.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// Strings stay as they are.
    #[default]
    Keep,
    /// Compressed strings are expanded: backups of such files compress better as a whole.
    Expand,
    /// Plain strings of 21 bytes to 4 MiB are compressed where that makes them shorter.
    Compress,
}

/// What the target does not get as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loss<'a> {
    /// The database; `None` for what belongs to none.
    pub db: Option<u32>,
    /// The key, or its first [`KEY_BYTES_MAX`](crate::KEY_BYTES_MAX) bytes; the name of a function library.
    pub key: &'a [u8],
    /// Whether all of it is left out; else it is written without what `reason` names.
    pub is_left_out: bool,
    /// Why, or what.
    pub reason: &'static str,
}

/// What stands before the value of an entry, but for its key and expiry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Header {
    /// The RDB type code of the value.
    pub type_code: u8,
    /// Seconds since the key was used, where the file says so.
    pub idle_seconds: Option<u64>,
    /// How often the key is used, on the engines' logarithmic scale, where the file says so.
    pub frequency: Option<u8>,
}

/// Where bytes go, with their checksum.
struct Output<W> {
    out: W,
    crc: Crc64,
    compression: Compression,
    /// Room for a string that is compressed.
    packed: Vec<u8>,
}

impl<W: Write> Output<W> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.crc.update(bytes);
        self.out.write_all(bytes)
    }

    fn magic(&mut self, target: Target) -> io::Result<()> {
        let magic = target.family().magic();
        let width = 9 - magic.len();
        self.put(format!("{magic}{:0width$}", target.version()).as_bytes())
    }

    /// Writes a length field in its shortest form.
    fn length(&mut self, value: u64) -> io::Result<()> {
        match value {
            0..64 => self.put(&[value as u8]),
            64..16_384 => self.put(&[0x40 | (value >> 8) as u8, value as u8]),
            16_384..=0xffff_ffff => {
                self.put(&[0x80])?;
                self.put(&(value as u32).to_be_bytes())
            }
            _ => {
                self.put(&[0x81])?;
                self.put(&value.to_be_bytes())
            }
        }
    }

    /// Whether a string of this length is to be compressed.
    fn compresses(&self, length: u64) -> bool {
        self.compression == Compression::Compress
            && (COMPRESS_BYTES_MIN..=COMPRESS_BYTES_MAX).contains(&length)
    }

    /// Writes a string that is at hand.
    fn string(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.compresses(bytes.len() as u64) {
            let mut packed = std::mem::take(&mut self.packed);
            packed.clear();
            let is_shorter = lzf::compress(bytes, &mut packed);
            if is_shorter {
                self.put(&[0xc3])?;
                self.length(packed.len() as u64)?;
                self.length(bytes.len() as u64)?;
                self.put(&packed)?;
            }
            self.packed = packed;
            if is_shorter {
                return Ok(());
            }
        }
        self.length(bytes.len() as u64)?;
        self.put(bytes)
    }
}

/// How a key is written.
enum How {
    /// Its bytes as they stand.
    Copied,
    /// String by string; a stream as the given generation.
    Walked { generation: u8 },
    /// In the plain form of a type.
    Plain(Form),
}

/// Writes an RDB file.
///
/// Memory: some 100 KiB; 16 MiB while fields with an expiry are written, or strings compressed.
pub struct Writer<R, W> {
    read: R,
    out: Output<W>,
    family: Family,
    target: Target,
    db: Option<u32>,
    keys: u64,
    values: Values,
}

impl<R, W> Writer<R, W>
where
    R: FnMut(u64, &mut [u8]) -> io::Result<()>,
    W: Write,
{
    /// Starts a file for `target`. `report` is what the validator said of the file whose keys will come, `read` fills a
    /// buffer with its bytes from an offset.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn new(
        report: &Report,
        target: Target,
        compression: Compression,
        read: R,
        out: W,
    ) -> io::Result<Self> {
        let mut writer = Self::bare(report.family, target, compression, read, out)?;
        for (name, value) in &report.aux {
            if AUX_KEPT.contains(&&name[..]) {
                writer.out.put(&[opcode::AUX])?;
                writer.out.string(name)?;
                writer.out.string(value)?;
            }
        }
        Ok(writer)
    }

    /// As [`Writer::new`], where the file tells nothing of who wrote it.
    ///
    /// # Errors
    /// Those of `out`.
    fn bare(family: Family, target: Target, compression: Compression, read: R, out: W) -> io::Result<Self> {
        let mut writer = Self::body(family, target, compression, read, out);
        writer.db = None;
        writer.out.magic(target)?;
        Ok(writer)
    }

    /// Starts what stands between head and tail of a file ([`Frame`]), where the keys come from several files, all of one
    /// family, of which no report is known yet.
    pub fn body(family: Family, target: Target, compression: Compression, read: R, out: W) -> Self {
        Self {
            read,
            out: Output {
                out,
                crc: Crc64::new(),
                compression,
                packed: Vec::new(),
            },
            family,
            target,
            // Where every file begins.
            db: Some(0),
            keys: 0,
            values: Values::default(),
        }
    }

    /// Keys written so far.
    pub fn keys(&self) -> u64 {
        self.keys
    }

    /// Writes a function library.
    ///
    /// # Errors
    /// Those of the output.
    pub fn function(&mut self, code: &[u8], mut lost: impl FnMut(Loss<'_>)) -> io::Result<()> {
        if !self.target.has_functions() {
            lost(library_lost(code));
            return Ok(());
        }
        self.out.put(&[opcode::FUNCTION2])?;
        self.out.string(code)
    }

    /// Writes a key, or tells why not, or without what.
    ///
    /// # Errors
    /// Those of the output and of `read`; `InvalidData` where the bytes are not those that were validated.
    pub fn key(&mut self, key: &KeySummary<'_>, mut lost: impl FnMut(Loss<'_>)) -> io::Result<()> {
        let how = match self.how(key)? {
            Ok(how) => how,
            Err(reason) => {
                lost(Loss {
                    db: Some(key.db),
                    key: key.key,
                    is_left_out: true,
                    reason,
                });
                return Ok(());
            }
        };
        if self.db.replace(key.db) != Some(key.db) {
            self.out.put(&[opcode::SELECTDB])?;
            self.out.length(u64::from(key.db))?;
        }
        self.keys += 1;
        let mut raw = Raw::new(&mut self.read, key.offset, key.bytes);
        if let How::Copied = how {
            return raw.copy(key.bytes, &mut self.out);
        }
        let mut walk = Walk {
            raw: &mut raw,
            out: &mut self.out,
        };
        walk.before_type()?;
        match how {
            How::Copied => Ok(()),
            How::Walked { generation } => {
                let form = layout(self.family, key.type_code).map_err(changed)?.1;
                let code = match form {
                    Layout::Stream(from) => target::stream_code(from.min(generation)),
                    _ => key.type_code,
                };
                walk.out.put(&[code])?;
                walk.string()?;
                let lost_parts = walk.value(form, generation)?;
                for reason in lost_parts.reasons() {
                    lost(Loss {
                        db: Some(key.db),
                        key: key.key,
                        is_left_out: false,
                        reason,
                    });
                }
                Ok(())
            }
            How::Plain(form) => {
                walk.out.put(&[form.code()])?;
                walk.string()?;
                let (at, end) = (raw.offset(), key.offset + key.bytes);
                let mut plain = Plain::begin(form, key.elements, &mut self.out)?;
                self.values
                    .tell(&mut self.read, self.family, key.type_code, at..end, &mut plain)?;
                plain.end()
            }
        }
    }

    /// How a key is written, or why it cannot be.
    fn how(&mut self, key: &KeySummary<'_>) -> io::Result<Result<How, &'static str>> {
        if self.target.reads(self.family, key.type_code) {
            return Ok(Ok(match self.out.compression {
                Compression::Keep => How::Copied,
                _ => How::Walked {
                    generation: self.target.stream_generation(),
                },
            }));
        }
        Ok(Ok(How::Plain(match key.kind {
            Type::Stream => {
                let generation = self.target.stream_generation();
                return Ok(Ok(How::Walked { generation }));
            }
            Type::Hash if key.expiring_elements > 0 => match self.target.field_expiry() {
                None => {
                    return Ok(Err(
                        "fields that expire by themselves need redis-7.4 or valkey-9.0",
                    ));
                }
                Some(Family::Valkey) => Form::ExpiringHash,
                Some(Family::Redis) => {
                    let mut expiries = Expiries::default();
                    let at = Raw::new(&mut self.read, key.offset, key.bytes).value_offset()?;
                    let value = at..key.offset + key.bytes;
                    self.values
                        .tell(&mut self.read, self.family, key.type_code, value, &mut expiries)?;
                    if let Some(reason) = expiries.obstacle() {
                        return Ok(Err(reason));
                    }
                    let least = expiries.least.unwrap_or(0);
                    Form::HashFromLeast { least }
                }
            },
            Type::Hash => Form::Hash,
            Type::List => Form::List,
            Type::Set => Form::Set,
            Type::ZSet => Form::ZSet,
            // Every target reads strings, and the one encoding of modules.
            Type::String | Type::Module => return Ok(Err("unknown encoding")),
        })))
    }

    /// Ends the file with its checksum, and gives the output back.
    ///
    /// # Errors
    /// Those of the output.
    pub fn finish(mut self) -> io::Result<W> {
        let tail = tail(&mut self.out.crc);
        self.out.out.write_all(&tail)?;
        self.finish_body()
    }

    /// Ends a body, and gives the output back.
    ///
    /// # Errors
    /// Those of the output.
    pub fn finish_body(mut self) -> io::Result<W> {
        self.out.out.flush()?;
        Ok(self.out.out)
    }
}

/// What stands around a body.
pub struct Frame(Crc64);

impl Frame {
    /// The head of a file for `target`. `sizes`: of how many keys database 0 is, and how many of these expire, where an engine
    /// is to make room for them in advance; no other database may follow then.
    pub fn head(target: Target, sizes: Option<(u64, u64)>) -> (Self, Vec<u8>) {
        let mut out = Output {
            out: Vec::new(),
            crc: Crc64::new(),
            compression: Compression::Keep,
            packed: Vec::new(),
        };
        let written = out.magic(target).and_then(|()| {
            let Some((keys, expires)) = sizes else {
                return Ok(());
            };
            out.put(&[opcode::SELECTDB, 0, opcode::RESIZEDB])?;
            out.length(keys)?;
            out.length(expires)
        });
        debug_assert!(written.is_ok(), "a vector takes all");
        (Self(out.crc), out.out)
    }

    /// Takes the next bytes of the body.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The end of the file.
    pub fn tail(mut self) -> [u8; 9] {
        tail(&mut self.0)
    }
}

fn tail(crc: &mut Crc64) -> [u8; 9] {
    crc.update(&[opcode::EOF]);
    let mut tail = [opcode::EOF; 9];
    tail[1..].copy_from_slice(&crc.value().to_le_bytes());
    tail
}

/// A library that the target does not know.
fn library_lost(code: &[u8]) -> Loss<'_> {
    let line = code.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let name = line
        .split(u8::is_ascii_whitespace)
        .find_map(|word| word.strip_prefix(b"name="));
    Loss {
        db: None,
        key: name.unwrap_or_default(),
        is_left_out: true,
        reason: "function libraries need redis-7.0",
    }
}

/// The bytes are not those that were validated.
fn changed(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the file changed while it was read: {what}"),
    )
}
