//! A file for what the search for duplicate keys or members does not keep in memory, see [`rdb::Spill`].

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::error::{Error, Kind};

/// Bytes that the search keeps per key, and once more where more than a thousand runs are merged on the way.
pub const BYTES_PER_KEY: u64 = 32;

/// An unlinked file: it is gone with the process, however that ends.
pub struct SpillFile {
    file: File,
    bytes: u64,
}

impl SpillFile {
    /// Creates the file in `directory`, which must exist.
    ///
    /// # Errors
    /// [`Kind::Io`], [`Kind::StoreFull`].
    pub fn create(directory: &Path) -> Result<Self, Error> {
        Ok(Self {
            file: nameless(directory)?,
            bytes: 0,
        })
    }

    /// A validator that compares every key with every other, and every member of a value with all of its value, by two
    /// files in `directory`.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn validator(directory: &Path) -> Result<rdb::Validator, Error> {
        Ok(rdb::Validator::new().with_spills(
            Box::new(Self::create(directory)?),
            Box::new(Self::create(directory)?),
        ))
    }
}

impl rdb::Spill for SpillFile {
    fn append(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.file.write_all_at(bytes, self.bytes)?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn clear(&mut self) -> std::io::Result<()> {
        self.file.set_len(0)?;
        self.bytes = 0;
        Ok(())
    }
}

/// A file in `directory` without a name: it is gone with the process, however that ends.
///
/// # Errors
/// [`Kind::Io`], [`Kind::StoreFull`].
pub(crate) fn nameless(directory: &Path) -> Result<File, Error> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR).map_err(|e| {
        let context = directory.display().to_string();
        Error::io(Kind::Io, "create spill file", context, e.into())
    })?;
    Ok(File::from(file))
}

/// The error of a validator: of the bytes, or of the spill file.
pub(crate) fn invalid(operation: &'static str, error: &rdb::Error) -> Error {
    let kind = match error.kind {
        rdb::ErrorKind::Spill { .. } => Kind::Io,
        _ => Kind::Malformed,
    };
    Error::new(kind, operation, error.to_string())
}
