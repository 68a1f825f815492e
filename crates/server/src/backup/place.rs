//! Where the archive of a backup is read: where it was made, or its copy where that is not whole.

use engine::archive::Archive;
use engine::store::{Patience, Wanted};
use engine::{Error, Kind};

use super::record::Backup;
use crate::app::App;
use crate::catalog::Tx;
use crate::hosts::record as hosts;
use crate::ids::{HostId, StorageId};
use crate::refusal::Refusal;
use crate::storage;

/// Where an archive lies.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// What its objects' names begin with.
    pub prefix: &'a str,
    /// The store; `None`: the local folder.
    pub storage_id: Option<&'a StorageId>,
    /// Whose local folder that is.
    pub host: Option<&'a HostId>,
}

impl<'a> Place<'a> {
    /// The host whose local folder it is, where that is another one than `ours`.
    fn elsewhere(&self, ours: &HostId) -> Option<&'a HostId> {
        let host = self.host.filter(|_| self.storage_id.is_none())?;
        (host != ours).then_some(host)
    }
}

/// Refuses a backup that `reader` cannot read, because it lies in the local folder of another host and nowhere else.
///
/// # Errors
/// [`Refusal::ElsewhereOnly`]; the catalogue failed.
pub fn check_reader(tx: &Tx<'_>, backup: &Backup, reader: &HostId) -> Result<(), Refusal> {
    let places = places(backup);
    let elsewhere: Vec<&HostId> = places
        .iter()
        .filter_map(|place| place.elsewhere(reader))
        .collect();
    match elsewhere.first() {
        Some(other) if elsewhere.len() == places.len() => {
            let name = hosts::load(tx, other)?.map_or_else(|| other.to_string(), |host| host.name);
            Err(Refusal::ElsewhereOnly(name))
        }
        _ => Ok(()),
    }
}

/// All places of a backup's archive, that of the first attempt first. None for a kept generation.
pub fn places(backup: &Backup) -> Vec<Place<'_>> {
    let first = backup.prefix.as_deref().map(|prefix| Place {
        prefix,
        storage_id: backup.storage_id.as_ref(),
        host: backup.host.as_ref(),
    });
    let copy = backup.copy.as_ref().filter(|copy| copy.at.is_some());
    let copy = copy.map(|copy| Place {
        prefix: &copy.prefix,
        storage_id: copy.storage_id.as_ref(),
        host: copy.host.as_ref(),
    });
    first.into_iter().chain(copy).collect()
}

/// Opens what lies at one place.
///
/// # Errors
/// As [`Archive::open_while`], and [`storage::open`].
pub fn open_at(
    app: &App,
    backup: &Backup,
    place: Place<'_>,
    patience: Option<Patience>,
    wanted: Wanted<'_>,
) -> Result<Archive, Error> {
    let digest = backup
        .manifest_blake3
        .as_deref()
        .ok_or_else(|| Error::new(Kind::NotFound, "open backup", "it has no stored objects"))?;
    if let Some(host) = place.elsewhere(&app.host) {
        let context =
            format!("it lies in the local folder of another node ({host}), which alone can read it");
        return Err(Error::new(Kind::Store, "open backup", context));
    }
    let mut store = storage::open(app, place.storage_id)?;
    if let Some(patience) = patience {
        store = store.with_patience(patience);
    }
    let keys = [app.vault.signer.verifying_key()];
    Archive::open_while(&store, place.prefix, &keys, Some(digest), wanted)
}

/// Does `work` with the archive; where that fails by what is stored, or by the store, with its copy. The error is that of
/// the first place.
///
/// # Errors
/// Those of [`open_at`] and of `work`.
pub fn with<T, E: From<Error>>(
    app: &App,
    backup: &Backup,
    patience: Option<Patience>,
    wanted: Wanted<'_>,
    is_of_the_place: impl Fn(&E) -> bool,
    mut work: impl FnMut(Archive) -> Result<T, E>,
) -> Result<T, E> {
    let mut first = None;
    for place in places(backup) {
        let done = match open_at(app, backup, place, patience, wanted) {
            Ok(archive) => work(archive),
            Err(error) => Err(E::from(error)),
        };
        match done {
            Ok(done) => return Ok(done),
            Err(error) if !is_of_the_place(&error) => return Err(error),
            Err(error) => {
                tracing::warn!(backup.id = %backup.id, place.prefix, "a backup cannot be read where it lies");
                first.get_or_insert(error);
            }
        }
    }
    Err(first.unwrap_or_else(|| {
        Error::new(
            Kind::NotFound,
            "open backup",
            "the record names no stored objects",
        )
        .into()
    }))
}

/// The archive where all its objects are, by name and size, if it has a copy; else where it was made.
///
/// # Errors
/// As [`with`].
pub fn open(
    app: &App,
    backup: &Backup,
    patience: Option<Patience>,
    wanted: Wanted<'_>,
) -> Result<Archive, Error> {
    let has_copy = places(backup).len() > 1;
    with(app, backup, patience, wanted, is_of_the_place, |archive| {
        if has_copy {
            archive.probe()?;
        }
        Ok(archive)
    })
}

/// Whether another place may be without this error.
pub fn is_of_the_place(error: &Error) -> bool {
    matches!(
        error.kind,
        Kind::NotFound | Kind::Tampered | Kind::Store | Kind::StoreAccess
    )
}
