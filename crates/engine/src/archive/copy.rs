//! A second place for an archive: the same objects, byte for byte, in another store.

use super::{Archive, MANIFEST, MANIFEST_BYTES_MAX, ObjectRecord, delete, is_begun};
use crate::control::Control;
use crate::error::{Error, Kind};
use crate::failpoint;
use crate::segment::{PLAIN_BYTES_MAX, stored_bytes_max};
use crate::store::{Patience, Store};

const COPY: &str = "copy archive";

impl Archive {
    /// Copies every object into `store`, under a prefix that nobody else has used, and reads each back from there: on
    /// return the copy holds what the signed manifest says, byte for byte. The manifest comes last. Nothing is decoded and
    /// no key is needed. Phase: `copying`, of stored bytes. Memory: two stored segments.
    ///
    /// After an error nothing is left below the prefix, unless the store itself refuses to delete (a warning says so).
    ///
    /// # Errors
    /// [`Kind::NotFound`], [`Kind::Tampered`] where an object is not what was stored, at either place, with its name;
    /// [`Kind::Store`], also where the prefix is in use, [`Kind::StoreAccess`], [`Kind::StoreFull`]; those of
    /// [`Control::check`].
    pub fn copy_to(&self, store: &Store, prefix: &str, control: &Control) -> Result<(), Error> {
        if is_begun(store, prefix)? {
            let context = format!("{prefix} holds objects already");
            return Err(Error::new(Kind::Store, COPY, context));
        }
        let copied = self.copy_objects(store, prefix, control);
        if copied.is_err()
            && let Err(e) = delete(&store.with_patience(Patience::SHORT), prefix)
        {
            tracing::warn!(prefix, error = %crate::chain(&e), "remains of a broken copy stay in the store");
        }
        copied
    }

    fn copy_objects(&self, store: &Store, prefix: &str, control: &Control) -> Result<(), Error> {
        let total = self.manifest.objects().map(|object| object.stored_bytes).sum();
        control.enter("copying", total);
        let wanted = || control.check(COPY);
        let (mut bytes, mut back) = (Vec::new(), Vec::new());
        for object in self.manifest.objects() {
            let from = self.full_name(object);
            fetch(&self.store, &from, object, &mut bytes, control)?;
            let to = format!("{prefix}/{}", object.name);
            bytes = store.put_buffer(&to, bytes, &wanted)?;
            fetch(store, &to, object, &mut back, control)?;
            let done = &control.bytes_done;
            done.fetch_add(object.stored_bytes, std::sync::atomic::Ordering::Relaxed);
            failpoint::hit("copy.mid")?;
        }
        let name = format!("{}/{MANIFEST}", self.prefix);
        self.store.read_judged(|| {
            self.store
                .get_into(&name, MANIFEST_BYTES_MAX, &mut bytes, &wanted)?;
            self.is_manifest(&name, &bytes)
        })?;
        failpoint::hit("copy.before_manifest")?;
        let to = format!("{prefix}/{MANIFEST}");
        store.put_buffer(&to, bytes, &wanted)?;
        store.read_judged(|| {
            store.get_into(&to, MANIFEST_BYTES_MAX, &mut back, &wanted)?;
            self.is_manifest(&to, &back)
        })?;
        failpoint::hit("copy.after_manifest")
    }

    /// Whether these bytes are those of the manifest that was opened.
    fn is_manifest(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        match blake3::hash(bytes).to_string() == self.manifest_blake3 {
            true => Ok(()),
            false => Err(Error::new(
                Kind::Tampered,
                COPY,
                format!("{name}: it is not the manifest that was recorded"),
            )),
        }
    }
}

/// The bytes of an object, where they are those of the manifest.
fn fetch(
    store: &Store,
    name: &str,
    object: &ObjectRecord,
    bytes: &mut Vec<u8>,
    control: &Control,
) -> Result<(), Error> {
    let bytes_max = object.stored_bytes.min(stored_bytes_max(PLAIN_BYTES_MAX));
    store.read_judged(|| {
        store.get_into(name, bytes_max, bytes, &|| control.check(COPY))?;
        if bytes.len() as u64 == object.stored_bytes
            && blake3::hash(bytes).to_string() == object.stored_blake3
        {
            return Ok(());
        }
        let context = format!("{name}: its stored bytes are not those of the manifest");
        Err(Error::new(Kind::Tampered, COPY, context))
    })
}
