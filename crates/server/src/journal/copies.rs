//! Copies of the catalogue's file in the store: they hold what the mirror leaves out, users and access keys among it.
//!
//! ```text
//! catalog/<16 hex>/<17 digits>-<8 hex>.<5 digits>.zst.age   a piece of the file, in zstd in age
//! catalog/<16 hex>/<17 digits>-<8 hex>.json                 the last object: the pieces with their digests and the age identity that
//!                                                           opens them, sealed by the master key; signed
//! ```
//!
//! The folder is named after the signing key, so whoever has `keys/` finds the copies, and catalogues that share a bucket do not meet.
//! The digits are the time, UTC, to the millisecond. No name is ever used twice.
//!
//! Copies are removed by what the store lists, and by nothing else: the catalogue does not know of them, for whoever needs one has no
//! catalogue. That is safe because a name says all that is judged. One is removed only where as many newer ones are listed as are kept,
//! so what a list leaves out leads to less being removed, never to more; and a name that is not exactly ours is left alone.

pub mod job;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;

use engine::keys::{Identity, VerifyingKey};
use engine::segment::{Expected, Opener, SEGMENT_BYTES, Sealer, stored_bytes_max};
use engine::store::{Store, always};
use engine::{Error, Kind};
use serde::{Deserialize, Serialize};

use super::entry;
use crate::app::App;
use crate::catalog::{SCHEMA_VERSION, version};
use crate::ids::Moment;
use crate::instance::job::catalog_failed;
use crate::limits;
use crate::secrets::{MasterKey, hex, random_hex, sha256, unhex};
use crate::storage::{self, LOCAL, record as storages};

/// Version of the last object that this code writes and reads.
const VERSION: u32 = 1;
/// What is done, for messages.
const COPY: &str = "copy catalogue";
const FETCH: &str = "fetch copy of catalogue";

/// A copy, by its time and then by its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Copied {
    /// When it was made.
    pub at: Moment,
    /// What its objects' names begin with.
    pub name: String,
}

/// A copy that was made just now.
#[derive(Debug)]
pub struct Made {
    /// It.
    pub copy: Copied,
    /// Name of the store that it is in.
    pub storage: String,
    /// Bytes of the file.
    pub bytes: u64,
    /// Bytes of its pieces.
    pub stored_bytes: u64,
}

/// An object of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Object {
    name: String,
    copy: Copied,
    is_last: bool,
}

/// Version 1; a field is never given another meaning.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CopyText {
    copy_version: u32,
    catalog_version: i64,
    copy: String,
    made_at_ms: i64,
    /// Hex; sealed for `catalog.copy:<copy>`.
    identity_sealed: String,
    pieces: Vec<PieceText>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PieceText {
    plain_bytes: u64,
    plain_blake3: String,
    stored_bytes: u64,
    stored_blake3: String,
}

impl Copied {
    fn new(now: Moment) -> Self {
        let digits = format!("{}{:03}", now.compact(), now.0.rem_euclid(1000));
        Self {
            at: now,
            name: format!("{digits}-{}", random_hex(4)),
        }
    }

    fn parse(name: &str) -> Option<Self> {
        let (digits, unique) = name.split_once('-')?;
        let (seconds, ms) = digits.split_at_checked(14)?;
        let is_ours = ms.len() == 3 && is_digits(ms) && unique.len() == 8 && unhex(unique).is_some();
        let at = Moment::from_compact(seconds).filter(|_| is_ours)?;
        Some(Self {
            at: Moment(at.0.saturating_add(ms.parse().ok()?)),
            name: name.to_owned(),
        })
    }
}

impl Object {
    fn parse(folder: &str, name: &str) -> Option<Self> {
        let file = name.strip_prefix(folder)?.strip_prefix('/')?;
        let (copy, rest) = file.split_once('.')?;
        let is_last = rest == "json";
        let number = rest.strip_suffix(".zst.age");
        let is_piece = number.is_some_and(|number| number.len() == 5 && is_digits(number));
        Some(Self {
            name: name.to_owned(),
            copy: Copied::parse(copy).filter(|_| is_last || is_piece)?,
            is_last,
        })
    }
}

fn is_digits(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

fn folder(key: &VerifyingKey) -> String {
    format!("catalog/{}", &hex(&sha256(key.to_string().as_bytes()))[..16])
}

fn last_name(folder: &str, copy: &Copied) -> String {
    format!("{folder}/{}.json", copy.name)
}

fn piece_name(folder: &str, copy: &Copied, number: usize) -> String {
    format!("{folder}/{}.{number:05}.zst.age", copy.name)
}

/// The place of a sealed identity, see [`MasterKey::seal`].
fn identity_place(copy: &Copied) -> String {
    format!("catalog.copy:{}", copy.name)
}

/// The store of the copies, with its name: where backups go of projects that have no choice of their own.
///
/// # Errors
/// Those of the catalogue and of [`storage::open`].
pub fn place(app: &App) -> Result<(String, Store), Error> {
    let chosen = app
        .catalog
        .read(|tx| {
            let choices = storages::defaults(tx)?;
            let ours = choices.into_iter().find(|choice| choice.project_id.is_none());
            match ours.and_then(|choice| choice.storage_id) {
                Some(id) => storages::load(tx, &id),
                None => Ok(None),
            }
        })
        .map_err(catalog_failed)?;
    let store = storage::open(app, chosen.as_ref().map(|row| &row.id))?;
    Ok((chosen.map_or_else(|| LOCAL.to_owned(), |row| row.name), store))
}

/// The copies in a store that were signed with this key and have their last object, newest first. What a clock that was ahead has
/// dated later than now comes last.
///
/// # Errors
/// Those of the store.
pub fn list(store: &Store, key: &VerifyingKey, now: Moment) -> Result<Vec<Copied>, Error> {
    Ok(newest_first(&objects(store, key)?, now))
}

fn objects(store: &Store, key: &VerifyingKey) -> Result<Vec<Object>, Error> {
    let folder = folder(key);
    let mut found = Vec::new();
    store.list_each(&folder, |name| {
        found.extend(Object::parse(&folder, name));
        Ok(())
    })?;
    Ok(found)
}

fn newest_first(objects: &[Object], now: Moment) -> Vec<Copied> {
    let whole = objects.iter().filter(|object| object.is_last);
    let mut whole: Vec<Copied> = whole.map(|object| object.copy.clone()).collect();
    whole.sort_by(|one, other| (other.at <= now, other).cmp(&(one.at <= now, one)));
    whole.dedup();
    whole
}

/// The objects that go: of whole copies beyond those that are kept, last objects first, for without it none counts as whole; and remains
/// of one that was broken off, once it is too old for somebody to be at work on it.
fn useless(objects: &[Object], now: Moment) -> Vec<&Object> {
    let whole = newest_first(objects, now);
    let goes = |object: &Object| match whole.iter().position(|copy| *copy == object.copy) {
        Some(newer) => newer >= limits::CATALOG_COPIES_KEPT,
        None => object.copy.at.after(limits::CATALOG_COPY_EVERY) <= now,
    };
    let mut useless: Vec<&Object> = objects.iter().filter(|object| goes(object)).collect();
    useless.sort_by_key(|object| !object.is_last);
    useless
}

/// Copies the catalogue as it is now, and removes the copies that are not kept. It must be in a file.
///
/// # Errors
/// [`Kind::StoreFull`] where the disk has no room for the file twice; those of the catalogue and the store. Nothing counts as a copy then,
/// except where only the removal failed.
pub fn make(app: &App, now: Moment) -> Result<Made, Error> {
    let _alone = lock(app)?;
    let (storage, store) = place(app)?;
    check_room(app)?;
    let beside = version::copy_of_now(&app.config.catalog_file());
    let made = app
        .catalog
        .copy_to(&beside)
        .map_err(catalog_failed)
        .and_then(|()| put(app, (storage, &store), &beside, now));
    let forgotten = forget_beside(app);
    let made = made?;
    forgotten?;
    let objects = objects(&store, &app.vault.signer.verifying_key())?;
    for object in useless(&objects, now) {
        store.delete(&object.name)?;
    }
    Ok(made)
}

/// Removes all copies from a store: they hold sealed what has since been destroyed in the catalogue. One that is being made is waited
/// for.
///
/// # Errors
/// Those of the store; run it again then.
pub fn remove_all(app: &App, store: &Store) -> Result<(), Error> {
    let _alone = lock(app)?;
    forget_beside(app)?;
    let mut objects = objects(store, &app.vault.signer.verifying_key())?;
    objects.sort_by_key(|object| !object.is_last);
    objects.iter().try_for_each(|object| store.delete(&object.name))
}

/// Destroys what a copy that was broken off has left beside the catalogue. One that is being made is waited for.
///
/// # Errors
/// It does not go.
pub fn forget_left(app: &App) -> Result<(), Error> {
    let _alone = lock(app)?;
    forget_beside(app)
}

/// Held by whoever makes or removes copies, in this process or another one.
fn lock(app: &App) -> Result<File, Error> {
    let path = app.config.catalog_file().with_extension("copy.lock");
    let failed = |error| Error::io(Kind::Io, COPY, path.display().to_string(), error);
    let file = File::create(&path).map_err(failed)?;
    file.lock().map_err(failed)?;
    Ok(file)
}

/// A full disk would harm the catalogue itself, which is worse than no copy.
fn check_room(app: &App) -> Result<(), Error> {
    let path = app.config.catalog_file();
    let bytes = std::fs::metadata(&path)
        .map_err(|error| Error::io(Kind::Io, COPY, path.display().to_string(), error))?
        .len();
    let disk = rustix::fs::statvfs(&app.config.data_dir);
    let free = disk.map_or(u64::MAX, |disk| disk.f_bavail * disk.f_frsize);
    // Once beside it, and once in the store, which may be on the same disk.
    let needed = bytes.saturating_mul(2);
    if needed > free {
        let context =
            format!("a copy may need {needed} bytes of the data directory's disk, and {free} are free");
        return Err(Error::new(Kind::StoreFull, COPY, context));
    }
    Ok(())
}

/// Destroys what lies beside the catalogue: it holds sealed keys that may be shredded later.
fn forget_beside(app: &App) -> Result<(), Error> {
    let beside = version::copy_of_now(&app.config.catalog_file());
    for file in [beside.with_extension("part"), beside] {
        version::overwrite(&file)
            .map_err(|error| Error::io(Kind::Io, COPY, file.display().to_string(), error))?;
    }
    Ok(())
}

fn put(app: &App, (storage, store): (String, &Store), file: &Path, now: Moment) -> Result<Made, Error> {
    let unreadable = |error| Error::io(Kind::Io, COPY, file.display().to_string(), error);
    let folder = folder(&app.vault.signer.verifying_key());
    let copy = Copied::new(now);
    let identity = Identity::generate();
    let recipient = identity.recipient();
    let mut sealer = Sealer::new(&recipient)?;
    let mut source = File::open(file).map_err(unreadable)?;
    let (mut pieces, mut piece) = (Vec::new(), Vec::new());
    let (mut bytes, mut stored_bytes) = (0, 0);
    loop {
        let mut next = (&mut source).take(SEGMENT_BYTES as u64);
        if next.read_to_end(&mut piece).map_err(unreadable)? == 0 {
            break;
        }
        let sealed = sealer.seal(&mut piece)?;
        piece = store.put_buffer(&piece_name(&folder, &copy, pieces.len()), piece, &always)?;
        bytes += sealed.plain_bytes;
        stored_bytes += sealed.stored_bytes;
        pieces.push(PieceText {
            plain_bytes: sealed.plain_bytes,
            plain_blake3: sealed.plain_blake3,
            stored_bytes: sealed.stored_bytes,
            stored_blake3: sealed.stored_blake3,
        });
    }
    let secret = identity.to_secret();
    let identity_sealed = app
        .vault
        .master
        .seal(&identity_place(&copy), secret.expose().as_bytes());
    let text = CopyText {
        copy_version: VERSION,
        catalog_version: SCHEMA_VERSION,
        copy: copy.name.clone(),
        made_at_ms: now.0,
        identity_sealed: hex(&identity_sealed),
        pieces,
    };
    let last = entry::sign(&text, &app.vault.signer)?;
    store.put(&last_name(&folder, &copy), &last)?;
    Ok(Made {
        copy,
        storage,
        bytes,
        stored_bytes,
    })
}

/// Writes the file of a copy to `into`, which must not be there; the bytes that it has.
///
/// # Errors
/// [`Kind::Tampered`] where an object is not what was signed with this key; [`Kind::Key`] where the master key does not open it;
/// [`Kind::NotFound`] where a piece is missing; those of the store and the file. `into` is of no use then.
pub fn fetch(
    store: &Store,
    (master, key): (&MasterKey, &VerifyingKey),
    copy: &Copied,
    into: &Path,
) -> Result<u64, Error> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let folder = folder(key);
    let last = last_name(&folder, copy);
    let text: CopyText = entry::check(&last, &store.get(&last)?, key)?;
    if text.copy_version != VERSION {
        let context = format!("{last}: written by another version, {}", text.copy_version);
        return Err(Error::new(Kind::Store, FETCH, context));
    }
    let tampered = |what: &str| Error::new(Kind::Tampered, FETCH, format!("{last}: {what}"));
    if text.copy != copy.name {
        return Err(tampered("it is of another copy"));
    }
    let sealed = unhex(&text.identity_sealed).ok_or_else(|| tampered("its key is no hex"))?;
    let identity = Identity::parse(&master.open(&identity_place(copy), &sealed)?)?;
    let mut opener = Opener::new(&identity)?;
    let unwritable = |error| Error::io(Kind::Io, FETCH, into.display().to_string(), error);
    let mut file = std::fs::OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(into)
        .map_err(unwritable)?;
    let (mut stored, mut plain, mut bytes) = (Vec::new(), Vec::new(), 0);
    for (number, piece) in text.pieces.iter().enumerate() {
        let name = piece_name(&folder, copy, number);
        store.get_into(&name, stored_bytes_max(piece.plain_bytes), &mut stored, &always)?;
        let expected = Expected {
            name: &name,
            plain_bytes: piece.plain_bytes,
            plain_blake3: &piece.plain_blake3,
            stored_bytes: piece.stored_bytes,
            stored_blake3: &piece.stored_blake3,
        };
        opener.open(expected, &stored, &mut plain)?;
        file.write_all(&plain).map_err(unwritable)?;
        bytes += piece.plain_bytes;
    }
    file.sync_all().map_err(unwritable)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400_000;

    fn object(at: i64, ending: &str) -> Object {
        let copy = Copied {
            name: format!("{}000-0011aabb", Moment(at).compact()),
            at: Moment(at),
        };
        let object = Object::parse("catalog/k", &format!("catalog/k/{}.{ending}", copy.name)).unwrap();
        assert_eq!(object.copy, copy);
        object
    }

    fn copies(days: impl Iterator<Item = i64>) -> Vec<Object> {
        days.flat_map(|day| [object(day * DAY, "00000.zst.age"), object(day * DAY, "json")])
            .collect()
    }

    fn names(objects: &[&Object]) -> Vec<String> {
        objects.iter().map(|object| object.name.clone()).collect()
    }

    #[test]
    fn the_newest_seven_stay_and_of_one_that_goes_the_last_object_goes_first() {
        let now = Moment(20 * DAY);
        assert!(useless(&copies(4..=10), now).is_empty());
        assert_eq!(
            names(&useless(&copies(3..=10), now)),
            names(&[&object(3 * DAY, "json"), &object(3 * DAY, "00000.zst.age")])
        );
        // A list that tells some twice takes nothing from the others.
        let twice = [copies(4..=10), copies(8..=10)].concat();
        assert!(useless(&twice, now).is_empty());
    }

    #[test]
    fn a_copy_of_the_future_counts_as_the_oldest_and_is_no_reason_to_make_none() {
        let now = Moment(10 * DAY);
        let all = copies((4..=9).chain([400, 401]));
        let first = newest_first(&all, now);
        assert_eq!((first[0].at, first[6].at), (Moment(9 * DAY), Moment(401 * DAY)));
        assert_eq!(
            names(&useless(&all, now)),
            names(&[&object(400 * DAY, "json"), &object(400 * DAY, "00000.zst.age")])
        );
    }

    #[test]
    fn what_was_broken_off_goes_after_a_day() {
        let broken = [object(10 * DAY, "00000.zst.age")];
        assert!(useless(&broken, Moment(11 * DAY - 1)).is_empty());
        assert_eq!(useless(&broken, Moment(11 * DAY)).len(), 1);
    }

    #[test]
    fn a_name_that_is_not_exactly_ours_is_none_of_a_copy() {
        let name = Copied::new(Moment(1_500_414_080_123)).name;
        assert!(name.starts_with("20170718214120123-"), "{name}");
        assert_eq!(Copied::parse(&name).unwrap().at, Moment(1_500_414_080_123));
        let parse = |file: &str| Object::parse("catalog/k", file).map(|object| object.is_last);
        assert_eq!(parse(&format!("catalog/k/{name}.json")), Some(true));
        assert_eq!(parse(&format!("catalog/k/{name}.00012.zst.age")), Some(false));
        for wrong in [
            format!("catalog/other/{name}.json"),
            format!("catalog/k/below/{name}.json"),
            format!("catalog/k{name}.json"),
            format!("catalog/k/{name}.12.zst.age"),
            format!("catalog/k/{name}.0001x.zst.age"),
            format!("catalog/k/{name}.json.old"),
            format!("catalog/k/{name}0.json"),
            format!("catalog/k/x{name}.json"),
            "catalog/k/20170230000000000-0011aabb.json".to_owned(),
            "catalog/k/2017021800000000\u{e9}-0011aabb.json".to_owned(),
            "catalog/k/notes.json".to_owned(),
        ] {
            assert_eq!(parse(&wrong), None, "{wrong}");
        }
    }
}
