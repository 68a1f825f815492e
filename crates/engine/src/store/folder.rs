//! A local folder of immutable objects.
//!
//! An object is written beside its name, synced, and linked to the name, which fails where the name exists: so a
//! name never shows half an object and never changes what it means. There is no update and no rename.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{check_name, is_component};
use crate::defect;
use crate::direct::DirectFile;
use crate::error::{Error, Kind};
use crate::failpoint;

/// How often a put makes its directories anew when a delete takes them away in between.
const DIRECTORY_TRIES: u32 = 5;
/// Starts the name of a file that is not an object yet. No object name may start a component with a dot.
const TEMPORARY_PREFIX: &str = ".put-";

/// A folder that holds objects.
#[derive(Debug, Clone)]
pub(super) struct Folder {
    root: PathBuf,
    put_delay: Duration,
}

impl Folder {
    /// See [`super::Store::open`].
    pub(super) fn open(root: impl Into<PathBuf>) -> Result<Self, Error> {
        let root = root.into();
        fs::create_dir_all(&root)
            .map_err(|e| Error::io(Kind::Store, "open store", root.display().to_string(), e))?;
        Ok(Self {
            root,
            put_delay: Duration::ZERO,
        })
    }

    /// The same store with every put slowed down: stands for a slow disk in tests.
    pub(super) fn with_put_delay(mut self, put_delay: Duration) -> Self {
        self.put_delay = put_delay;
        self
    }

    /// The folder.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Stores a new object. Durable on return: bytes, name and every directory above it are synced.
    ///
    /// # Errors
    /// [`Kind::StoreFull`] without room; [`Kind::Store`] else, also where the name exists: the object that was
    /// there is untouched. After an error the name does not exist, except where the last sync failed.
    pub(super) fn put(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let path = self.path(name)?;
        if !self.put_delay.is_zero() {
            std::thread::sleep(self.put_delay);
        }
        let failed = |e: io::Error| Error::io(Kind::Store, "put object", name, e);
        let directory = path.parent().unwrap_or(&self.root);
        let (temporary, mut file) = self.create_temporary(directory).map_err(failed)?;
        let written = file
            .write(bytes)
            .and_then(|()| match defect::is_planted("objects-unsynced") {
                true => file.finish().map(drop),
                false => file.finish()?.sync_all(),
            })
            .map_err(failed)
            .and_then(|()| failpoint::hit("store.after_temp_write"))
            .and_then(|()| fs::hard_link(&temporary, &path).map_err(failed));
        let removed = fs::remove_file(&temporary).map_err(failed);
        written?;
        failpoint::hit("store.after_link")?;
        sync_directory(directory).map_err(failed)?;
        removed
    }

    /// Makes the missing directories and a new file in the last one.
    fn create_temporary(&self, directory: &Path) -> io::Result<(PathBuf, DirectFile)> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let unique = COUNTER.fetch_add(1, Ordering::Relaxed);
        let temporary = directory.join(format!("{TEMPORARY_PREFIX}{}-{unique}", std::process::id()));
        let mut tries = 0;
        loop {
            let created = self
                .create_directories(directory)
                .and_then(|()| DirectFile::create(&temporary));
            tries += 1;
            match created {
                // A process of the same number left it behind when it died.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && tries < DIRECTORY_TRIES => {
                    fs::remove_file(&temporary)?;
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound && tries < DIRECTORY_TRIES => {}
                Err(e) => return Err(e),
                Ok(file) => return Ok((temporary, file)),
            }
        }
    }

    /// One at a time: a put that finds its directory there may rely on that directory being durable.
    fn create_directories(&self, directory: &Path) -> io::Result<()> {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _guard = ONE_AT_A_TIME
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        self.create_missing(directory)
    }

    fn create_missing(&self, directory: &Path) -> io::Result<()> {
        if directory == self.root || directory.is_dir() {
            return Ok(());
        }
        let parent = directory.parent().unwrap_or(&self.root);
        self.create_missing(parent)?;
        match fs::create_dir(directory) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            // Made by us or at this moment by another process: either way its name must be durable for ours.
            _ => {}
        }
        sync_directory(parent)
    }

    /// The bytes of an object into a buffer that is used again; refuses one larger than `bytes_max`.
    ///
    /// # Errors
    /// As [`Folder::size`]; [`Kind::Tampered`] above the limit.
    pub(super) fn get_into(&self, name: &str, bytes_max: u64, into: &mut Vec<u8>) -> Result<(), Error> {
        use std::io::Read;
        let file = File::open(self.path(name)?).map_err(|e| unreadable(name, e))?;
        into.clear();
        file.take(bytes_max + 1)
            .read_to_end(into)
            .map_err(|e| unreadable(name, e))?;
        if into.len() as u64 > bytes_max {
            return Err(Error::new(
                Kind::Tampered,
                "get object",
                format!("{name} is larger than {bytes_max} bytes"),
            ));
        }
        Ok(())
    }

    /// A piece of an object, which must have it whole.
    ///
    /// # Errors
    /// As [`Folder::size`]; [`Kind::Tampered`] where the object ends before the piece does.
    pub(super) fn get_range(&self, name: &str, range: Range<u64>) -> Result<Vec<u8>, Error> {
        use std::os::unix::fs::FileExt;
        let file = File::open(self.path(name)?).map_err(|e| unreadable(name, e))?;
        let count = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; count];
        match file.read_exact_at(&mut bytes, range.start) {
            Ok(()) => Ok(bytes),
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Err(Error::new(
                Kind::Tampered,
                "get object",
                format!("{name} ends before byte {}", range.end),
            )),
            Err(e) => Err(unreadable(name, e)),
        }
    }

    /// The size of an object in bytes.
    ///
    /// # Errors
    /// [`Kind::NotFound`], [`Kind::Store`].
    pub(super) fn size(&self, name: &str) -> Result<u64, Error> {
        match fs::metadata(self.path(name)?) {
            Ok(metadata) if metadata.is_file() => Ok(metadata.len()),
            Ok(_) => Err(Error::new(
                Kind::NotFound,
                "get object",
                format!("{name} is a directory"),
            )),
            Err(e) => Err(unreadable(name, e)),
        }
    }

    /// Removes an object; one that is not there is removed already. Durable on return.
    ///
    /// # Errors
    /// [`Kind::Store`].
    pub(super) fn delete(&self, name: &str) -> Result<(), Error> {
        let path = self.path(name)?;
        let failed = |e: io::Error| Error::io(Kind::Store, "delete object", name, e);
        absent_is_fine(fs::remove_file(&path)).map_err(failed)?;
        absent_is_fine(sync_directory(path.parent().unwrap_or(&self.root))).map_err(failed)
    }

    /// Removes everything below `prefix`, remains of broken puts and directories left empty included.
    /// Durable on return; run again after an error.
    ///
    /// # Errors
    /// [`Kind::Store`].
    pub(super) fn delete_prefix(&self, prefix: &str) -> Result<(), Error> {
        let path = self.path(prefix)?;
        let failed = |e: io::Error| Error::io(Kind::Store, "delete objects", prefix, e);
        absent_is_fine(fs::remove_dir_all(&path)).map_err(failed)?;
        // Parents that are empty now go too; the first that is not, or that a put uses at this moment, stays.
        let mut parent = path.parent().unwrap_or(&self.root);
        while parent != self.root {
            match fs::remove_dir(parent) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(_in_use) => break,
            }
            parent = parent.parent().unwrap_or(&self.root);
        }
        absent_is_fine(sync_directory(parent)).map_err(failed)
    }

    /// The names of all objects below `prefix` (all of the store for `""`), sorted.
    ///
    /// # Errors
    /// [`Kind::Store`].
    pub(super) fn list(&self, prefix: &str) -> Result<Vec<String>, Error> {
        let start = if prefix.is_empty() {
            self.root.clone()
        } else {
            self.path(prefix)?
        };
        let failed = |e: io::Error| Error::io(Kind::Store, "list objects", prefix, e);
        let mut names = Vec::new();
        let mut directories = vec![start];
        while let Some(directory) = directories.pop() {
            let entries = match fs::read_dir(&directory) {
                Ok(entries) => entries,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(failed(e)),
            };
            for entry in entries {
                let entry = entry.map_err(failed)?;
                if entry.file_type().map_err(failed)?.is_dir() {
                    directories.push(entry.path());
                } else if let Ok(relative) = entry.path().strip_prefix(&self.root)
                    && let Some(name) = relative.to_str()
                    && check_name(name).is_ok()
                {
                    names.push(name.to_owned());
                }
            }
        }
        names.sort();
        Ok(names)
    }

    /// The directories `depth` levels below the root, sorted: also those that hold nothing but remains of broken
    /// puts, which [`Folder::list`] does not show.
    ///
    /// # Errors
    /// [`Kind::Store`].
    pub(super) fn directories(&self, depth: usize) -> Result<Vec<String>, Error> {
        let failed = |e: io::Error| Error::io(Kind::Store, "list directories", "", e);
        let mut level = vec![String::new()];
        for _ in 0..depth {
            let mut below = Vec::new();
            for name in level {
                let entries = match fs::read_dir(self.root.join(&name)) {
                    Ok(entries) => entries,
                    Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                    Err(e) => return Err(failed(e)),
                };
                for entry in entries {
                    let entry = entry.map_err(failed)?;
                    let Ok(component) = entry.file_name().into_string() else {
                        continue;
                    };
                    if entry.file_type().map_err(failed)?.is_dir() && is_component(&component) {
                        below.push(if name.is_empty() {
                            component
                        } else {
                            format!("{name}/{component}")
                        });
                    }
                }
            }
            level = below;
        }
        level.sort();
        Ok(level)
    }

    fn path(&self, name: &str) -> Result<PathBuf, Error> {
        check_name(name)?;
        Ok(self.root.join(name))
    }
}

fn unreadable(name: &str, cause: io::Error) -> Error {
    // ENOTDIR: a component above it is an object, so this one is not there either.
    let kind = match cause.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Kind::NotFound,
        _ => Kind::Store,
    };
    Error::io(kind, "get object", name, cause)
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    if defect::is_planted("objects-unsynced") {
        return Ok(());
    }
    File::open(directory)?.sync_all()
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
