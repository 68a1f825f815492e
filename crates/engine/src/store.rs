//! The object store: immutable objects under plain names, in a local folder or behind S3 or OBS.
//!
//! Whoever writes chooses names that nobody else ever uses, and writes each once. On that rests all that a remote
//! store does not promise: there is no conditional put here, a put that got no answer may be sent again, and what
//! LIST shows decides nothing. That an object holds the right bytes is for its reader to check, by the digests of
//! the archive.

mod folder;
mod meter;
mod patience;
mod probe;
mod remote;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Kind};
use crate::failpoint;

use folder::Folder;
use meter::Meter;
pub use patience::Patience;
pub use probe::{Check, Finding};
use remote::Remote;
pub use remote::{RemoteKind, RemoteSpec, failed_calls};

/// Longest object name in bytes: what S3 takes; every file system here takes 255 per component and 4096 per path.
const NAME_BYTES_MAX: usize = 1024;
const COMPONENT_BYTES_MAX: usize = 200;
/// Most bytes of an object that [`Store::get`] takes into memory.
const GET_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Asked every 100 ms while a call waits for a remote store; its error ends the call.
pub type Wanted<'a> = &'a (dyn Fn() -> Result<(), Error> + 'a);

/// A place that holds objects. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store(Place, Option<Arc<Meter>>);

#[derive(Debug, Clone)]
enum Place {
    Folder(Folder),
    Remote(Arc<Remote>, Patience),
}

impl Store {
    /// Opens a local folder, made if missing.
    ///
    /// # Errors
    /// [`Kind::Store`], [`Kind::StoreFull`].
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, Error> {
        Ok(Self(Place::Folder(Folder::open(root)?), None))
    }

    /// Makes ready to talk to a remote store; nothing is sent yet.
    ///
    /// # Errors
    /// [`Kind::Store`] where the description cannot be right, with what to change.
    pub fn open_remote(spec: &RemoteSpec, patience: Patience) -> Result<Self, Error> {
        let remote = Arc::new(Remote::open(spec, &patience)?);
        Ok(Self(Place::Remote(remote, patience), None))
    }

    /// The same store for a caller who waits less (or longer) for a remote one.
    #[must_use]
    pub fn with_patience(&self, patience: Patience) -> Self {
        match &self.0 {
            Place::Folder(_) => self.clone(),
            Place::Remote(remote, _) => Self(Place::Remote(remote.clone(), patience), self.1.clone()),
        }
    }

    /// The same store for one who may put so many bytes into it. `ask` is told how many there would be with the next object, and
    /// says how many there may be from now on, or why there may not be that one. Each put is counted before it is begun, and once.
    #[must_use]
    pub fn metered(
        &self,
        granted_bytes: u64,
        ask: impl Fn(u64) -> Result<u64, Error> + Send + Sync + 'static,
    ) -> Self {
        let meter = Meter::new(granted_bytes, Box::new(ask));
        Self(self.0.clone(), Some(Arc::new(meter)))
    }

    /// What was put, or begun to be, since it is metered.
    pub fn metered_bytes(&self) -> u64 {
        self.1.as_ref().map_or(0, |meter| meter.put_bytes())
    }

    fn count(&self, bytes: usize) -> Result<(), Error> {
        self.1.as_ref().map_or(Ok(()), |meter| meter.count(bytes as u64))
    }

    /// The same store with every put slowed down, where it is a folder: stands for a slow disk in tests.
    #[must_use]
    pub fn with_put_delay(self, put_delay: Duration) -> Self {
        match self.0 {
            Place::Folder(folder) => Self(Place::Folder(folder.with_put_delay(put_delay)), self.1),
            remote => Self(remote, self.1),
        }
    }

    /// The folder; empty for a remote store.
    pub fn root(&self) -> &Path {
        match &self.0 {
            Place::Folder(folder) => folder.root(),
            Place::Remote(..) => Path::new(""),
        }
    }

    /// Whether a network lies between us and the objects: then a call may take long, a read may bring damaged
    /// bytes of a sound object, and a listing may be incomplete.
    pub fn is_remote(&self) -> bool {
        matches!(self.0, Place::Remote(..))
    }

    /// Stores a new object. Durable on return: in a folder bytes, name and every directory above it are synced; a
    /// remote store has said that it has the bytes, or has shown them.
    ///
    /// # Errors
    /// [`Kind::StoreFull`] without room; [`Kind::StoreAccess`] where the store refuses our credentials;
    /// [`Kind::Store`] else, in a folder also where the name exists: the object that was there is untouched. After
    /// an error the name does not exist in a folder, except where the last sync failed; a remote store may have it. What
    /// [`Store::metered`] is told, before anything is put.
    pub fn put(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        match &self.0 {
            Place::Folder(folder) => {
                self.count(bytes.len())?;
                folder.put(name, bytes)
            }
            Place::Remote(..) => self.put_buffer(name, bytes.to_vec(), &always).map(drop),
        }
    }

    /// As [`Store::put`] for a large object: its buffer is sent as it is, without a copy, and comes back empty.
    ///
    /// # Errors
    /// As [`Store::put`], and what `wanted` returns.
    pub fn put_buffer(&self, name: &str, mut bytes: Vec<u8>, wanted: Wanted<'_>) -> Result<Vec<u8>, Error> {
        self.count(bytes.len())?;
        match &self.0 {
            Place::Folder(folder) => {
                folder.put(name, &bytes)?;
                bytes.clear();
                Ok(bytes)
            }
            Place::Remote(remote, patience) => {
                check_name(name)?;
                failpoint::hit("remote.before_put")?;
                let bytes = remote.put(name, bytes, patience, wanted)?;
                failpoint::hit("remote.put")?;
                Ok(bytes)
            }
        }
    }

    /// The bytes of an object.
    ///
    /// # Errors
    /// As [`Store::get_into`].
    pub fn get(&self, name: &str) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        self.get_into(name, GET_BYTES_MAX, &mut bytes, &always)?;
        Ok(bytes)
    }

    /// The bytes of an object into a buffer that is used again; refuses one larger than `bytes_max`.
    ///
    /// # Errors
    /// [`Kind::NotFound`], [`Kind::Store`], [`Kind::StoreAccess`]; [`Kind::Tampered`] above the limit; what
    /// `wanted` returns.
    pub fn get_into(
        &self,
        name: &str,
        bytes_max: u64,
        into: &mut Vec<u8>,
        wanted: Wanted<'_>,
    ) -> Result<(), Error> {
        match &self.0 {
            Place::Folder(folder) => folder.get_into(name, bytes_max, into),
            Place::Remote(remote, patience) => {
                check_name(name)?;
                failpoint::hit("remote.before_get")?;
                remote.get_into(name, bytes_max, into, patience, wanted)
            }
        }
    }

    /// A piece of an object, which must have it whole.
    ///
    /// # Errors
    /// [`Kind::NotFound`], [`Kind::Store`], [`Kind::StoreAccess`], [`Kind::Tampered`] where the object ends before the piece.
    pub fn get_range(&self, name: &str, range: Range<u64>) -> Result<Vec<u8>, Error> {
        match &self.0 {
            Place::Folder(folder) => folder.get_range(name, range),
            Place::Remote(remote, patience) => {
                check_name(name)?;
                remote.get_range(name, range, patience, &always)
            }
        }
    }

    /// Runs what reads an object and judges its bytes. With a remote store it is run again, twice at most, where it
    /// ends as [`Kind::Tampered`]: a damaged transfer is not a damaged object.
    ///
    /// # Errors
    /// Those of the last reading.
    pub(crate) fn read_judged<T>(
        &self,
        mut read_and_judge: impl FnMut() -> Result<T, Error>,
    ) -> Result<T, Error> {
        let readings = match &self.0 {
            Place::Folder(_) => 1,
            Place::Remote(..) => patience::READINGS_MAX,
        };
        let mut reading = 1;
        loop {
            match read_and_judge() {
                Err(e) if e.kind == Kind::Tampered && reading < readings => {
                    tracing::warn!(
                        error = crate::chain(&e),
                        reading,
                        "read again: the bytes came wrong"
                    );
                    reading += 1;
                }
                judged => return judged,
            }
        }
    }

    /// The size of an object in bytes.
    ///
    /// # Errors
    /// [`Kind::NotFound`], [`Kind::Store`], [`Kind::StoreAccess`].
    pub fn size(&self, name: &str) -> Result<u64, Error> {
        match &self.0 {
            Place::Folder(folder) => folder.size(name),
            Place::Remote(remote, patience) => {
                check_name(name)?;
                remote.size(name, patience, &always)
            }
        }
    }

    /// Whether the object is there.
    ///
    /// # Errors
    /// [`Kind::Store`], [`Kind::StoreAccess`].
    pub fn exists(&self, name: &str) -> Result<bool, Error> {
        match self.size(name) {
            Ok(_) => Ok(true),
            Err(e) if e.kind == Kind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Removes an object; one that is not there is removed already. Durable on return.
    ///
    /// # Errors
    /// [`Kind::Store`], [`Kind::StoreAccess`].
    pub fn delete(&self, name: &str) -> Result<(), Error> {
        match &self.0 {
            Place::Folder(folder) => folder.delete(name),
            Place::Remote(remote, patience) => {
                check_name(name)?;
                remote.delete(name, patience, &always)?;
                failpoint::hit("remote.deleted")
            }
        }
    }

    /// Removes everything below `prefix`; in a folder remains of broken puts and directories left empty included,
    /// in a remote store what its LIST shows, which need not be all. Durable on return; run again after an error.
    ///
    /// # Errors
    /// [`Kind::Store`], [`Kind::StoreAccess`].
    pub fn delete_prefix(&self, prefix: &str) -> Result<(), Error> {
        match &self.0 {
            Place::Folder(folder) => folder.delete_prefix(prefix),
            Place::Remote(remote, patience) => {
                check_name(prefix)?;
                remote.list_each(prefix, None, patience, &always, &mut |name| {
                    remote.delete(name, patience, &always)
                })
            }
        }
    }

    /// The names of all objects below `prefix` (all of the store for `""`), sorted; of a remote store those that
    /// its LIST shows. For what is known to be little: [`Store::list_each`] holds no more than a part.
    ///
    /// # Errors
    /// [`Kind::Store`], [`Kind::StoreAccess`].
    pub fn list(&self, prefix: &str) -> Result<Vec<String>, Error> {
        let mut names = Vec::new();
        self.list_each(prefix, |name| {
            names.push(name.to_owned());
            Ok(())
        })?;
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    /// Hands the names of all objects below `prefix` (all of the store for `""`) to `each`, however many they are; of a
    /// remote store those that its LIST shows. A name may come twice, where the listing broke and was taken up again.
    ///
    /// # Errors
    /// [`Kind::Store`], [`Kind::StoreAccess`], and what `each` returns.
    pub fn list_each(
        &self,
        prefix: &str,
        mut each: impl FnMut(&str) -> Result<(), Error>,
    ) -> Result<(), Error> {
        match &self.0 {
            Place::Folder(folder) => folder.list(prefix)?.iter().try_for_each(|name| each(name)),
            Place::Remote(remote, patience) => {
                if !prefix.is_empty() {
                    check_name(prefix)?;
                }
                remote.list_each(prefix, None, patience, &always, &mut each)
            }
        }
    }

    /// As [`Store::list_each`], those whose names sort behind `after` only: what comes before them costs nothing where the
    /// store can begin a listing there.
    ///
    /// # Errors
    /// As [`Store::list_each`].
    pub fn list_behind(
        &self,
        prefix: &str,
        after: &str,
        mut each: impl FnMut(&str) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut each = |name: &str| if name > after { each(name) } else { Ok(()) };
        match &self.0 {
            Place::Folder(_) => self.list_each(prefix, each),
            Place::Remote(remote, patience) => {
                check_name(prefix)?;
                remote.list_each(prefix, Some(after), patience, &always, &mut each)
            }
        }
    }

    /// The directories `depth` levels below the root, sorted: also those that hold nothing but remains of broken
    /// puts, which [`Store::list`] does not show. Nothing for a remote store, which has no directories.
    ///
    /// # Errors
    /// [`Kind::Store`].
    pub fn directories(&self, depth: usize) -> Result<Vec<String>, Error> {
        match &self.0 {
            Place::Folder(folder) => folder.directories(depth),
            Place::Remote(..) => Ok(Vec::new()),
        }
    }
}

/// For calls that nobody interrupts.
pub fn always() -> Result<(), Error> {
    Ok(())
}

/// Components of `[A-Za-z0-9._-]` between single slashes, none starting with a dot.
fn check_name(name: &str) -> Result<(), Error> {
    if name.len() <= NAME_BYTES_MAX && name.split('/').all(is_component) {
        return Ok(());
    }
    Err(Error::new(
        Kind::Store,
        "check object name",
        format!("{name:?} is not a plain relative name"),
    ))
}

fn is_component(component: &str) -> bool {
    !component.is_empty()
        && component.len() <= COMPONENT_BYTES_MAX
        && !component.starts_with('.')
        && component
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}
