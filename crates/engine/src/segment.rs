//! One stored piece of an archive: plain bytes, in zstd frames, in one age file.
//!
//! Each piece opens on its own, so pieces are sealed and opened in parallel and read selectively, and two stock
//! programs open them: `age -d -i KEY PIECE | zstd -d`.

use std::io::{self, Read, Write};

use zstd::zstd_safe::{CCtx, CParameter, DCtx};

use crate::error::{Error, Kind};
use crate::key_index::{BLOCK_BYTES, StoredBlock};
use crate::keys::{Identity, Recipient};

/// Plain bytes of a segment of a snapshot, as a target: it ends before the key that crosses it.
///
/// Measured on 630 MB with two sealers: 4, 8 and 16 MiB take the same time and compress the same (0.01 %), and
/// raise the peak of a backup's memory by 29, 46 and 80 MiB. Fewer objects, then, within 64 MiB.
pub const SEGMENT_BYTES: usize = 8 * 1024 * 1024;
/// Most plain bytes a reader takes from one piece: twice the largest target any version wrote.
pub const PLAIN_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// Most stored bytes for `plain` ones: zstd's bound for incompressible data, age's header and 16 bytes per 64 KiB.
pub fn stored_bytes_max(plain: u64) -> u64 {
    plain + plain / 128 + 64 * 1024
}

/// zstd level, in blocks of the whole segment's size. On 630 MB of snapshot without LZF, one core: level 1 gives 0.46 of the size at 417 MB/s, level 2
/// 0.45 at 327, level 3 0.46 at 210, the fast level -1 0.68 at 536.
const LEVEL: i32 = 1;

/// Closes pieces; one per thread.
///
/// Memory: one buffer for the stored form, which changes places with the plain one's, and one for a frame.
pub struct Sealer<'a> {
    recipient: &'a Recipient,
    context: CCtx<'static>,
    frame: Vec<u8>,
    stored: Vec<u8>,
}

/// The digests of a closed piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// Plain size.
    pub plain_bytes: u64,
    /// BLAKE3 of the plain bytes, hexadecimal.
    pub plain_blake3: String,
    /// Stored size.
    pub stored_bytes: u64,
    /// BLAKE3 of the stored bytes, hexadecimal.
    pub stored_blake3: String,
    /// Its blocks, in order.
    pub blocks: Vec<StoredBlock>,
}

impl<'a> Sealer<'a> {
    /// A sealer whose pieces only the recipient's identity opens.
    ///
    /// # Errors
    /// [`Kind::Memory`].
    pub fn new(recipient: &'a Recipient) -> Result<Self, Error> {
        let mut context = CCtx::try_create().ok_or_else(no_memory)?;
        context
            .set_parameter(CParameter::CompressionLevel(LEVEL))
            .map_err(|_code| no_memory())?;
        Ok(Self {
            recipient,
            context,
            frame: vec![0; zstd::zstd_safe::compress_bound(BLOCK_BYTES)],
            stored: Vec::new(),
        })
    }

    /// Compresses, encrypts and hashes: `piece` holds the plain bytes before and the stored ones after.
    ///
    /// # Errors
    /// [`Kind::Memory`] where the compressor gets none, [`Kind::Key`] where the recipient cannot be encrypted to.
    pub fn seal(&mut self, piece: &mut Vec<u8>) -> Result<Sealed, Error> {
        let plain_bytes = piece.len() as u64;
        self.stored.clear();
        // More than the buffer that comes back needs, so that it is never made anew.
        self.stored.reserve_exact(
            usize::try_from(stored_bytes_max(plain_bytes))
                .unwrap_or(0)
                .max(piece.capacity()),
        );
        let mut stored = Hashed {
            bytes: &mut self.stored,
            hasher: blake3::Hasher::new(),
        };
        let encryptor = age::Encryptor::with_recipients(std::iter::once(self.recipient.as_age()))
            .map_err(|e| Error::new(Kind::Key, "seal segment", "the recipient is refused").because(e))?;
        // Writes to memory only.
        let failed = |e: io::Error| Error::io(Kind::Memory, "seal segment", "encryption", e);
        let mut encrypted = encryptor.wrap_output(&mut stored).map_err(failed)?;
        let mut plain_hasher = blake3::Hasher::new();
        let mut blocks = Vec::with_capacity(piece.len().div_ceil(BLOCK_BYTES));
        // All that is done with a block is done while it is in the second-level cache. A block is a frame of its own, to be
        // read without the others; in one call, as a stream would copy everything through a window of its own.
        for block in piece.chunks(BLOCK_BYTES) {
            plain_hasher.update(block);
            let count = self
                .context
                .compress2(&mut self.frame[..], block)
                .map_err(|_code| no_memory())?;
            let frame = &self.frame[..count];
            blocks.push(StoredBlock::of(frame));
            encrypted.write_all(frame).map_err(failed)?;
            std::thread::yield_now();
        }
        encrypted.finish().map_err(failed)?;
        let stored_blake3 = stored.hasher.finalize().to_string();
        std::mem::swap(piece, &mut self.stored);
        Ok(Sealed {
            plain_bytes,
            plain_blake3: plain_hasher.finalize().to_string(),
            stored_bytes: piece.len() as u64,
            stored_blake3,
            blocks,
        })
    }
}

/// Bytes in memory, hashed as they come.
struct Hashed<'a> {
    bytes: &'a mut Vec<u8>,
    hasher: blake3::Hasher,
}

impl Write for Hashed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hasher.update(bytes);
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn no_memory() -> Error {
    Error::new(Kind::Memory, "seal segment", "no memory for the compressor")
}

/// What a signed manifest says about a piece.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// Object name, for messages.
    pub name: &'a str,
    /// Plain size.
    pub plain_bytes: u64,
    /// BLAKE3 of the plain bytes, hexadecimal.
    pub plain_blake3: &'a str,
    /// Stored size.
    pub stored_bytes: u64,
    /// BLAKE3 of the stored bytes, hexadecimal.
    pub stored_blake3: &'a str,
}

/// Opens pieces; one per thread.
pub struct Opener<'a> {
    identity: &'a Identity,
    context: DCtx<'static>,
}

impl<'a> Opener<'a> {
    /// An opener for what was sealed to the identity's recipient.
    ///
    /// # Errors
    /// [`Kind::Memory`].
    pub fn new(identity: &'a Identity) -> Result<Self, Error> {
        let context = DCtx::try_create()
            .ok_or_else(|| Error::new(Kind::Memory, "open segment", "no memory for the decompressor"))?;
        Ok(Self { identity, context })
    }

    /// Checks, decrypts and expands `stored` into `plain`, which never takes more than the expected size.
    ///
    /// # Errors
    /// [`Kind::Tampered`] where sizes or digests differ from what is expected or the format is broken,
    /// [`Kind::Key`] where the identity is not the one it was sealed to. `plain` is of no use then.
    pub fn open(&mut self, expected: Expected<'_>, stored: &[u8], plain: &mut Vec<u8>) -> Result<(), Error> {
        let tampered = |what: &str| {
            Error::new(
                Kind::Tampered,
                "open segment",
                format!("{}: {what}", expected.name),
            )
        };
        if stored.len() as u64 != expected.stored_bytes {
            return Err(tampered("its stored size is not that of the manifest"));
        }
        if blake3::hash(stored).to_string() != expected.stored_blake3 {
            return Err(tampered("its stored bytes are not those of the manifest"));
        }
        if expected.plain_bytes > PLAIN_BYTES_MAX {
            return Err(tampered("its plain size is above the limit"));
        }
        let decrypted = age::Decryptor::new_buffered(stored)
            .and_then(|file| file.decrypt(std::iter::once(self.identity.as_age())))
            .map_err(|e| match e {
                age::DecryptError::NoMatchingKeys => Error::new(
                    Kind::Key,
                    "open segment",
                    format!("{}: this key does not open it", expected.name),
                ),
                other => tampered("it is no valid age file").because(other),
            })?;
        plain.clear();
        let wanted = usize::try_from(expected.plain_bytes).unwrap_or(usize::MAX);
        plain.reserve(wanted + 1);
        // age hands out one chunk of 64 KiB at a time.
        let decrypted = io::BufReader::with_capacity(64 * 1024, decrypted);
        let mut expanded = zstd::stream::read::Decoder::with_context(decrypted, &mut self.context);
        expanded
            .by_ref()
            .take(expected.plain_bytes + 1)
            .read_to_end(plain)
            .map_err(|e| tampered("it cannot be decrypted or expanded").because(e))?;
        if plain.len() != wanted || blake3::hash(plain).to_string() != expected.plain_blake3 {
            return Err(tampered("its plain bytes are not those of the manifest"));
        }
        Ok(())
    }
}
