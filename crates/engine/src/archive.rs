//! What lies in the store: the objects of one backup, and how they are read back.
//!
//! ```text
//! <prefix>/shard-0/seg-000000.rdb.zst.age   the RDB as captured, cut in pieces, each zstd in age; of a cluster one
//!                                           such folder for each shard, each with a whole RDB
//! <prefix>/shard-0/keys-000000.json.zst.age where which keys may lie, see `key_index`; JSON in zstd in age; not of
//!                                           clusters
//! <prefix>/details.age                      JSON in zstd in age: census, digests, biggest keys, functions
//! <prefix>/manifest.json                    signed list of all of the above; written last, deleted first
//! ```
//!
//! `for s in seg-*; do age -d -i KEY $s | zstd -d; done > dump.rdb` gives the RDB without this program: the
//! numbers are padded so that the order of the shell is the order of the bytes.
//!
//! Bytes from a remote store that do not match their digest are read again before they are called tampered.
//!
//! Nothing is read that the signed manifest does not name with its size and digests; whether it is the right
//! manifest is decided by its digest, which the caller keeps elsewhere.

mod copy;
mod reader;
mod selected;
mod shards;
mod window;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};

use crate::control::Control;
use crate::defect;
use crate::error::{Error, Kind};
use crate::key_index::{self, IndexRecord};
use crate::keys::{Identity, SigningKey, VerifyingKey, from_hex, to_hex};
use crate::priority;
use crate::segment::{Expected, Opener, PLAIN_BYTES_MAX, Sealed, stored_bytes_max};
use crate::store::{Store, Wanted, always};
pub use reader::FileReader;
pub use selected::Chosen;
use window::{StopAtEnd, StopAtPanic, Window};

pub use shards::ShardRecord;
use shards::delete_named;
pub(crate) use shards::shard_segment_name;

/// Version of the manifest and of the layout that this code writes.
pub const MANIFEST_VERSION: u32 = 1;
/// That of an archive with several shards: a reader of version 1 would take their files for one.
pub const MANIFEST_VERSION_SHARDS: u32 = 2;
/// Version of the details.
pub const DETAILS_VERSION: u32 = 1;
/// Largest manifest that is read: 100,000 segments of 400 bytes and reserve, 0.8 TB of snapshot.
const MANIFEST_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Memory for reading: every worker holds one stored and one plain piece, and one plain piece more is being
/// delivered. With segments of 8 MiB that is three workers.
const READ_MEMORY_BYTES: u64 = 56 * 1024 * 1024;

const MANIFEST: &str = "manifest.json";
/// The name of the details object, relative to the prefix.
pub(crate) const DETAILS: &str = "details.age";

/// The object name of segment `index` of the only shard, relative to the prefix.
pub fn segment_name(index: usize) -> String {
    shard_segment_name(0, index)
}

/// The signed description of an archive. Version 1; a field is never given another meaning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`MANIFEST_VERSION`].
    pub version: u32,
    /// Project id as the caller gave it.
    pub project: String,
    /// Instance id as the caller gave it.
    pub instance: String,
    /// Backup id as the caller gave it.
    pub backup: String,
    /// Attempt of the backup.
    pub attempt: u64,
    /// When the backup was made, UTC ms, as the caller gave it.
    pub created_at_ms: i64,
    /// Version of the engine as its snapshot states it; empty where it does not.
    pub engine_version: String,
    /// RDB version of the snapshot.
    pub rdb_version: u32,
    /// Replication history of the snapshot.
    pub replid: String,
    /// Replication offset of the snapshot.
    pub offset: i64,
    /// Keys in the snapshot.
    pub keys: u64,
    /// Size of the RDB.
    pub plain_bytes: u64,
    /// Size of all segments as stored, without details and manifest.
    pub stored_bytes: u64,
    /// Age recipient of all encrypted objects.
    pub recipient: String,
    /// The details object.
    pub details: ObjectRecord,
    /// Where which keys may lie; archives of earlier versions have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<IndexRecord>,
    /// In the order of their bytes, without gaps.
    pub segments: Vec<SegmentRecord>,
    /// The shards of a cluster, whose files follow each other in the segments: the sizes above are sums then. Empty where
    /// the segments are one RDB.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shards: Vec<ShardRecord>,
}

impl Manifest {
    /// All objects but the manifest's own: details, segments, index.
    pub fn objects(&self) -> impl Iterator<Item = &ObjectRecord> {
        let index = self.index.iter().flat_map(|index| &index.objects);
        self.data().chain(index)
    }

    /// What a restore rests on: an index that is lost costs the quick way to a key, and no data.
    fn data(&self) -> impl Iterator<Item = &ObjectRecord> {
        let segments = self.segments.iter().map(|segment| &segment.object);
        std::iter::once(&self.details).chain(segments)
    }
}

/// Identity of one encrypted object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectRecord {
    /// Name relative to the prefix.
    pub name: String,
    /// Size before compression.
    pub plain_bytes: u64,
    /// Size as stored.
    pub stored_bytes: u64,
    /// BLAKE3 before compression, hexadecimal.
    pub plain_blake3: String,
    /// BLAKE3 as stored, hexadecimal.
    pub stored_blake3: String,
}

impl ObjectRecord {
    /// The record of a piece that was stored under `name`.
    pub fn new(name: impl Into<String>, sealed: Sealed) -> Self {
        Self {
            name: name.into(),
            plain_bytes: sealed.plain_bytes,
            stored_bytes: sealed.stored_bytes,
            plain_blake3: sealed.plain_blake3,
            stored_blake3: sealed.stored_blake3,
        }
    }

    fn expected<'a>(&'a self, name: &'a str) -> Expected<'a> {
        Expected {
            name,
            plain_bytes: self.plain_bytes,
            plain_blake3: &self.plain_blake3,
            stored_bytes: self.stored_bytes,
            stored_blake3: &self.stored_blake3,
        }
    }
}

/// One piece of the RDB.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentRecord {
    /// Its object.
    #[serde(flatten)]
    pub object: ObjectRecord,
    /// Offset of its first byte in the RDB.
    pub first_offset: u64,
    /// Whether its first byte lies within a key that began in an earlier segment.
    pub mid_key: bool,
    /// Database of its first key.
    pub db: u32,
}

/// The census of a snapshot; encrypted, because it names keys. Version 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Details {
    /// [`DETAILS_VERSION`].
    pub version: u32,
    /// Address of the node that was captured.
    pub source: String,
    /// AUX fields of the RDB as text, among them `used-mem` and `ctime`.
    pub aux: Vec<(String, String)>,
    /// Per database.
    pub dbs: Vec<DbDetails>,
    /// The keys with the longest serialised form, longest first, at most 100.
    pub biggest_keys: Vec<KeyDetails>,
    /// Libraries of functions.
    pub functions: Vec<FunctionDetails>,
}

/// One library of functions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FunctionDetails {
    /// Its name, where its first line says so.
    pub name: Option<String>,
    /// The language it is written in, where its first line says so.
    pub engine: Option<String>,
    /// Size of its code.
    pub code_bytes: u64,
}

/// Census of one database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DbDetails {
    /// Its number.
    pub db: u32,
    /// Keys.
    pub keys: u64,
    /// Keys with an expiry.
    pub expires: u64,
    /// Order-independent digest of all keys with values and expiries, hexadecimal.
    pub digest: String,
    /// Per type word, such as `hash`.
    pub types: BTreeMap<String, TypeDetails>,
}

/// Census of one type in one database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TypeDetails {
    /// Keys.
    pub keys: u64,
    /// Elements of all of them.
    pub elements: u64,
    /// Serialised bytes of all of them.
    pub bytes: u64,
}

/// One big key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyDetails {
    /// Database.
    pub db: u32,
    /// Name, hexadecimal because it may be any bytes; at most its first 1,024.
    pub key_hex: String,
    /// Type word.
    pub kind: String,
    /// Elements.
    pub elements: u64,
    /// Serialised bytes.
    pub bytes: u64,
}

/// How the manifest lies in its object: the signature is over exactly the bytes of the inner text.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SignedManifest {
    manifest: String,
    signature: String,
    key: String,
}

/// Signs and stores the manifest: the archive exists from here on. Returns the BLAKE3 of the stored object.
///
/// # Errors
/// As [`Store::put`].
pub fn write_manifest(
    store: &Store,
    prefix: &str,
    manifest: &Manifest,
    signer: &SigningKey,
) -> Result<String, Error> {
    write_manifest_while(store, prefix, manifest, signer, &always)
}

/// As [`write_manifest`], while it is wanted.
pub(crate) fn write_manifest_while(
    store: &Store,
    prefix: &str,
    manifest: &Manifest,
    signer: &SigningKey,
    wanted: Wanted<'_>,
) -> Result<String, Error> {
    let unwritable = |e: serde_json::Error| Error::new(Kind::Store, "write manifest", "as JSON").because(e);
    let text = serde_json::to_string(manifest).map_err(unwritable)?;
    let bytes = signed_by(signer, text).map_err(unwritable)?;
    let digest = blake3::hash(&bytes).to_string();
    store.put_buffer(&format!("{prefix}/{MANIFEST}"), bytes, wanted)?;
    Ok(digest)
}

/// The object that holds a manifest's text.
pub(crate) fn signed_by(signer: &SigningKey, text: String) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(&SignedManifest {
        signature: to_hex(&signer.sign(text.as_bytes())),
        key: signer.verifying_key().to_string(),
        manifest: text,
    })
}

/// Whether something of an archive, or of an attempt to make it, lies below the prefix.
///
/// # Errors
/// [`Kind::Store`], [`Kind::StoreAccess`].
pub fn is_begun(store: &Store, prefix: &str) -> Result<bool, Error> {
    if !store.is_remote() {
        return Ok(!store.list(prefix)?.is_empty());
    }
    Ok(store.exists(&format!("{prefix}/{MANIFEST}"))?
        || store.exists(&format!("{prefix}/{}", segment_name(0)))?)
}

/// Removes an archive, manifest first: a broken deletion leaves no archive that looks whole. Run again after an
/// error.
///
/// In a remote store the objects are found by their names, one after the other, because its LIST need not show them
/// all; what it does show beyond them goes too.
///
/// # Errors
/// [`Kind::Store`], [`Kind::StoreAccess`].
pub fn delete(store: &Store, prefix: &str) -> Result<(), Error> {
    store.delete(&format!("{prefix}/{MANIFEST}"))?;
    crate::failpoint::hit("archive.manifest_deleted")?;
    if !store.is_remote() {
        return store.delete_prefix(prefix);
    }
    store.delete(&format!("{prefix}/{DETAILS}"))?;
    delete_named(store, prefix, key_index::object_name)?;
    // A shard is begun after the one before it is stored, so the first one without anything is the last.
    let mut shard = 0;
    while delete_named(store, prefix, |index| shard_segment_name(shard, index))? {
        shard += 1;
    }
    match store.delete_prefix(prefix) {
        // The right to LIST may be withheld: it is not needed.
        Err(e) if e.kind == Kind::StoreAccess => Ok(()),
        deleted => deleted,
    }
}

/// An archive whose manifest is signed by a trusted key.
#[derive(Debug, Clone)]
pub struct Archive {
    store: Store,
    prefix: String,
    /// Shared by the readers of its shards.
    manifest: Arc<Manifest>,
    manifest_blake3: String,
}

impl Archive {
    /// Reads and checks the manifest.
    ///
    /// # Errors
    /// [`Kind::NotFound`] without a manifest; [`Kind::Tampered`] where its digest is not the expected one, its
    /// signature is wrong or by a key that is not among `keys`, or what it says is impossible; [`Kind::Store`]
    /// where it was written by a newer version.
    pub fn open(
        store: &Store,
        prefix: &str,
        keys: &[VerifyingKey],
        expected_manifest_blake3: Option<&str>,
    ) -> Result<Self, Error> {
        Self::open_while(store, prefix, keys, expected_manifest_blake3, &always)
    }

    /// As [`Archive::open`], while it is wanted: a remote store may take minutes to fail.
    ///
    /// # Errors
    /// As [`Archive::open`], and what `wanted` returns.
    pub fn open_while(
        store: &Store,
        prefix: &str,
        keys: &[VerifyingKey],
        expected_manifest_blake3: Option<&str>,
        wanted: Wanted<'_>,
    ) -> Result<Self, Error> {
        let name = format!("{prefix}/{MANIFEST}");
        let mut bytes = Vec::new();
        let manifest = store.read_judged(|| {
            store.get_into(&name, MANIFEST_BYTES_MAX, &mut bytes, wanted)?;
            Self::judge(&name, &bytes, keys, expected_manifest_blake3)
        })?;
        Ok(Self {
            store: store.clone(),
            prefix: prefix.to_owned(),
            manifest: Arc::new(manifest),
            manifest_blake3: blake3::hash(&bytes).to_string(),
        })
    }

    /// The manifest in the bytes of its object, where they are what they must be.
    pub(crate) fn judge(
        name: &str,
        bytes: &[u8],
        keys: &[VerifyingKey],
        expected_manifest_blake3: Option<&str>,
    ) -> Result<Manifest, Error> {
        let tampered = |what: &str| Error::new(Kind::Tampered, "open archive", format!("{name}: {what}"));
        let is_unproven = defect::is_planted("manifest-unproven");
        if !is_unproven
            && expected_manifest_blake3.is_some_and(|expected| blake3::hash(bytes).to_string() != expected)
        {
            return Err(tampered("it is not the manifest that was recorded"));
        }
        let signed: SignedManifest =
            serde_json::from_slice(bytes).map_err(|e| tampered("it is no signed manifest").because(e))?;
        let signature = from_hex(&signed.signature).ok_or_else(|| tampered("its signature is no hex"))?;
        let key = keys
            .iter()
            .find(|key| key.to_string() == signed.key)
            .ok_or_else(|| tampered("it is signed by a key that is not trusted"))?;
        if !is_unproven && !key.verifies(signed.manifest.as_bytes(), &signature) {
            return Err(tampered("its signature is wrong"));
        }
        let version = serde_json::from_str::<VersionOnly>(&signed.manifest)
            .map_err(|e| tampered("it has no version").because(e))?
            .version;
        let newer = || {
            let context = format!("{name}: written in format {version}, which this program does not read");
            Error::new(Kind::Store, "open archive", context)
        };
        if version != MANIFEST_VERSION && version != MANIFEST_VERSION_SHARDS {
            return Err(newer());
        }
        let manifest: Manifest =
            serde_json::from_str(&signed.manifest).map_err(|e| tampered("it is no manifest").because(e))?;
        if (version == MANIFEST_VERSION_SHARDS) == manifest.shards.is_empty() {
            return Err(newer());
        }
        let mut next = 0;
        for file in manifest.files() {
            if file.start != next {
                return Err(tampered("its shards leave gaps"));
            }
            next = file.end;
        }
        if next != manifest.plain_bytes {
            return Err(tampered("its shards are not the whole"));
        }
        let mut offset = 0;
        for segment in &manifest.segments {
            if segment.first_offset != offset {
                return Err(tampered("its segments leave gaps"));
            }
            offset = offset.saturating_add(segment.object.plain_bytes);
        }
        if offset != manifest.plain_bytes {
            return Err(tampered("its segments are not the whole"));
        }
        if manifest
            .index
            .as_ref()
            .is_some_and(|index| index.block_bytes == 0)
        {
            return Err(tampered("its blocks hold nothing"));
        }
        Ok(manifest)
    }

    /// BLAKE3 of the manifest's object, hexadecimal.
    pub fn manifest_blake3(&self) -> &str {
        &self.manifest_blake3
    }

    /// What was signed.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Whether every object of the data is there with its size; nothing is decoded and no key is needed.
    ///
    /// # Errors
    /// [`Kind::NotFound`], [`Kind::Tampered`], both with the name; [`Kind::Store`].
    pub fn probe(&self) -> Result<(), Error> {
        for object in self.manifest.data() {
            let name = self.full_name(object);
            let size = self.store.size(&name)?;
            if size != object.stored_bytes {
                let context = format!("{name}: {size} bytes instead of {}", object.stored_bytes);
                return Err(Error::new(Kind::Tampered, "probe archive", context));
            }
        }
        Ok(())
    }

    /// Whether every stored byte of the data is the one that was stored: hashes its objects, on `workers` threads, against the
    /// signed manifest, and that `identity` is the one they were sealed to. Nothing is decoded.
    ///
    /// The manifest is written only after the validator accepted the whole RDB, so this says of the stored bytes that
    /// they are those of a valid RDB. Memory: a stored segment per worker. Counts stored bytes in `control`.
    ///
    /// # Errors
    /// [`Kind::NotFound`], [`Kind::Tampered`], both with the name; [`Kind::Key`]; [`Kind::Store`]; those of
    /// [`Control::check`].
    pub fn prove(&self, identity: &Identity, control: &Control, workers: usize) -> Result<(), Error> {
        if identity.recipient().to_string() != self.manifest.recipient {
            let context = format!("{}: it is sealed to another key than this one", self.prefix);
            return Err(Error::new(Kind::Key, "prove archive", context));
        }
        let objects: Vec<&ObjectRecord> = self.manifest.data().collect();
        let next = AtomicUsize::new(0);
        let failure = Mutex::new(None);
        let hash_all = || {
            let mut stored = Vec::new();
            while let Some(object) = objects.get(next.fetch_add(1, Ordering::Relaxed)) {
                let proven = control
                    .check("prove archive")
                    .and_then(|()| self.prove_object(object, &mut stored, control));
                if let Err(e) = proven {
                    // The others stop as well.
                    next.store(objects.len(), Ordering::Relaxed);
                    lock(&failure).get_or_insert(e);
                }
                control
                    .bytes_done
                    .fetch_add(object.stored_bytes, Ordering::Relaxed);
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..workers {
                scope.spawn(hash_all);
            }
            hash_all();
        });
        lock(&failure).take().map_or(Ok(()), Err)
    }

    fn prove_object(
        &self,
        object: &ObjectRecord,
        stored: &mut Vec<u8>,
        control: &Control,
    ) -> Result<(), Error> {
        let name = self.full_name(object);
        let bytes_max = object.stored_bytes.min(stored_bytes_max(PLAIN_BYTES_MAX));
        self.store.read_judged(|| {
            let wanted = || control.check("prove archive");
            self.store.get_into(&name, bytes_max, stored, &wanted)?;
            if defect::is_planted("stored-bytes-unproven") {
                return Ok(());
            }
            if stored.len() as u64 == object.stored_bytes
                && blake3::hash(stored).to_string() == object.stored_blake3
            {
                return Ok(());
            }
            let context = format!("{name}: its stored bytes are not those of the manifest");
            Err(Error::new(Kind::Tampered, "prove archive", context))
        })
    }

    /// Reads the census.
    ///
    /// # Errors
    /// [`Kind::NotFound`], [`Kind::Tampered`], [`Kind::Key`], [`Kind::Store`].
    pub fn details(&self, identity: &Identity) -> Result<Details, Error> {
        let object = &self.manifest.details;
        let name = self.full_name(object);
        let tampered = |what: &str| Error::new(Kind::Tampered, "read details", format!("{name}: {what}"));
        let mut piece = Piece::default();
        piece.read(self, object, &mut Opener::new(identity)?, &always)?;
        let version = serde_json::from_slice::<VersionOnly>(&piece.plain)
            .map_err(|e| tampered("they have no version").because(e))?
            .version;
        if version != DETAILS_VERSION {
            let context =
                format!("{name}: written in format {version}, this program reads {DETAILS_VERSION}");
            return Err(Error::new(Kind::Store, "read details", context));
        }
        serde_json::from_slice(&piece.plain).map_err(|e| tampered("they are no details").because(e))
    }

    /// Hands the whole RDB to `push`, in order, in pieces of at most a segment, decoded on up to `workers`
    /// threads; fewer where their buffers would pass [`READ_MEMORY_BYTES`]. `push` runs on the calling thread.
    ///
    /// A piece is pushed only after its digests were checked; pieces before a broken one have been pushed by then.
    /// The counters of `control` are left to the caller.
    ///
    /// # Errors
    /// [`Kind::NotFound`], [`Kind::Tampered`], [`Kind::Key`], [`Kind::Store`], all with the name of the object;
    /// what `push` returns; those of [`Control::check`].
    pub fn read(
        &self,
        identity: &Identity,
        control: &Control,
        workers: usize,
        push: impl FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.read_segments(&self.manifest.segments, identity, control, workers, push)
    }

    /// As [`Archive::read`], of one of the [`Manifest::files`]: a shard's RDB.
    ///
    /// # Errors
    /// As [`Archive::read`].
    pub fn read_file(
        &self,
        identity: &Identity,
        control: &Control,
        workers: usize,
        file: &Range<u64>,
        push: impl FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.read_segments(self.segments_of(file), identity, control, workers, push)
    }

    fn segments_of(&self, file: &Range<u64>) -> &[SegmentRecord] {
        let segments = &self.manifest.segments;
        let at = |offset| segments.partition_point(|segment| segment.first_offset < offset);
        // A file begins a segment.
        segments.get(at(file.start)..at(file.end)).unwrap_or_default()
    }

    /// As [`Archive::read`], of these segments only.
    fn read_segments(
        &self,
        segments: &[SegmentRecord],
        identity: &Identity,
        control: &Control,
        workers: usize,
        mut push: impl FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let largest = segments
            .iter()
            .map(|s| s.object.plain_bytes)
            .max()
            .unwrap_or(0)
            .max(1);
        let affordable = (READ_MEMORY_BYTES / largest.min(PLAIN_BYTES_MAX)).saturating_sub(1) / 2;
        let workers = workers
            .min(usize::try_from(affordable).unwrap_or(usize::MAX))
            .min(segments.len())
            .max(1);
        let window = Window::new(segments.len(), workers + 1);
        std::thread::scope(|scope| {
            let _stop = StopAtEnd(&window);
            for _ in 0..workers {
                scope.spawn(|| {
                    let _stop = StopAtPanic(&window);
                    priority::let_engines_go_first();
                    self.decode(segments, identity, &window);
                });
            }
            for index in 0..segments.len() {
                let piece = window.wait(index, || control.check("read archive"))?;
                control.check("read archive")?;
                push(&piece)?;
                window.delivered(piece);
            }
            Ok(())
        })
    }

    /// Decodes segments for [`Archive::read`] until none is left or nobody wants them.
    fn decode(&self, segments: &[SegmentRecord], identity: &Identity, window: &Window) {
        let mut opener = Opener::new(identity);
        let mut stored = Vec::new();
        while let Some((index, plain)) = window.claim() {
            let mut piece = Piece { stored, plain };
            let result = match &mut opener {
                Ok(opener) => piece.read(self, &segments[index].object, opener, &|| window.wanted()),
                Err(e) => Err(Error::new(e.kind, e.operation, e.context.clone())),
            };
            window.finish(index, result.map(|()| std::mem::take(&mut piece.plain)));
            stored = piece.stored;
        }
    }

    /// Hands the bytes of `range` to `push`, in order; reads only the segments that hold them. A range past the
    /// end of the RDB is shortened to it.
    ///
    /// # Errors
    /// As [`Archive::read`].
    pub fn read_range(
        &self,
        identity: &Identity,
        range: Range<u64>,
        mut push: impl FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut opener = Opener::new(identity)?;
        let mut piece = Piece::default();
        let after = |segment: &SegmentRecord| segment.first_offset + segment.object.plain_bytes;
        let segments = &self.manifest.segments;
        let first = segments.partition_point(|segment| after(segment) <= range.start);
        for segment in &segments[first..] {
            if segment.first_offset >= range.end {
                break;
            }
            piece.read(self, &segment.object, &mut opener, &always)?;
            let within = |offset: u64| {
                let relative = offset.saturating_sub(segment.first_offset);
                usize::try_from(relative)
                    .unwrap_or(usize::MAX)
                    .min(piece.plain.len())
            };
            push(&piece.plain[within(range.start)..within(range.end)])?;
        }
        Ok(())
    }

    fn full_name(&self, object: &ObjectRecord) -> String {
        format!("{}/{}", self.prefix, object.name)
    }
}

#[derive(Deserialize)]
struct VersionOnly {
    version: u32,
}

/// The buffers of one decoding.
#[derive(Default)]
struct Piece {
    stored: Vec<u8>,
    plain: Vec<u8>,
}

impl Piece {
    fn read(
        &mut self,
        archive: &Archive,
        object: &ObjectRecord,
        opener: &mut Opener<'_>,
        wanted: Wanted<'_>,
    ) -> Result<(), Error> {
        let name = archive.full_name(object);
        let bytes_max = object.stored_bytes.min(stored_bytes_max(PLAIN_BYTES_MAX));
        archive.store.read_judged(|| {
            archive
                .store
                .get_into(&name, bytes_max, &mut self.stored, wanted)?;
            opener.open(object.expected(&name), &self.stored, &mut self.plain)
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
