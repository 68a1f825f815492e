//! The form of the journal's objects.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use engine::keys::{Identity, Recipient, SigningKey, VerifyingKey};
use engine::segment::{Expected, Opener, Sealed, Sealer};
use engine::{Error, Kind};
use serde::{Deserialize, Serialize};

use super::record::Subject;
use crate::catalog::SCHEMA_VERSION;
use crate::catalog::image::Image;
use crate::ids::{Moment, ProjectId};
use crate::secrets::{hex, sha256, unhex};

/// Version of the journal's objects that this code writes and reads.
const VERSION: u32 = 1;
/// The folder of all journals in a store.
pub const FOLDER: &str = "journal";

/// Rows as they were.
#[derive(Debug)]
pub struct Entry {
    /// Grows within a project, with gaps.
    pub number: u64,
    /// The entry before it; `None`: it begins a chain, which holds everything.
    pub after: Option<u64>,
    /// When it was written.
    pub written_at: Moment,
    /// The rows.
    pub rows: Vec<(Subject, Image)>,
}

/// What opens the entries of a project.
#[derive(Debug)]
pub struct ProjectKey {
    /// Its age recipient.
    pub recipient: String,
    /// Its age identity, sealed by the master key for the project.
    pub identity_sealed: Vec<u8>,
}

/// How either lies in its object: the signature is over exactly the bytes of the inner text.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SignedText {
    text: String,
    signature: String,
    key: String,
}

/// Version 1; a field is never given another meaning.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EntryText {
    journal_version: u32,
    catalog_version: i64,
    project: String,
    number: u64,
    after: Option<u64>,
    written_at_ms: i64,
    plain_bytes: u64,
    plain_blake3: String,
    stored_bytes: u64,
    stored_blake3: String,
    /// Base64 of a JSON line for each row, in zstd in age.
    rows: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyText {
    journal_version: u32,
    project: String,
    recipient: String,
    identity_sealed: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    subject: String,
    row: Image,
}

/// The name of an entry.
pub fn entry_name(project: &ProjectId, number: u64) -> String {
    format!("{FOLDER}/{project}/{number:012}.json")
}

/// The name of the object with the key of this recipient.
pub fn key_name(project: &ProjectId, recipient: &str) -> String {
    let digest = hex(&sha256(recipient.as_bytes()));
    format!("{FOLDER}/{project}/key-{}.json", &digest[..16])
}

/// What the name of an object of the journal says.
#[derive(Debug, PartialEq, Eq)]
pub enum Named {
    /// The entry of that number.
    Entry(ProjectId, u64),
    /// A key.
    Key(ProjectId),
}

impl Named {
    /// Reads a name; `None` for one that is not ours.
    pub fn parse(name: &str) -> Option<Self> {
        let mut parts = name.split('/');
        let (folder, project, file) = (parts.next()?, parts.next()?, parts.next()?);
        if folder != FOLDER || parts.next().is_some() {
            return None;
        }
        let project = ProjectId::parse(project)?;
        let stem = file.strip_suffix(".json")?;
        match stem.strip_prefix("key-") {
            Some(_) => Some(Named::Key(project)),
            None => Some(Named::Entry(project, stem.parse().ok()?)),
        }
    }
}

/// The bytes of an entry's object.
///
/// # Errors
/// [`Kind::Memory`], [`Kind::Key`].
pub fn seal(
    project: &ProjectId,
    entry: &Entry,
    recipient: &Recipient,
    signer: &SigningKey,
) -> Result<Vec<u8>, Error> {
    let mut piece = Vec::new();
    for (subject, row) in &entry.rows {
        let line = Line {
            subject: subject.word().to_owned(),
            row: row.clone(),
        };
        serde_json::to_writer(&mut piece, &line).map_err(unwritable)?;
        piece.push(b'\n');
    }
    let sealed = Sealer::new(recipient)?.seal(&mut piece)?;
    let Sealed {
        plain_bytes,
        plain_blake3,
        stored_bytes,
        stored_blake3,
        blocks: _,
    } = sealed;
    let text = EntryText {
        journal_version: VERSION,
        catalog_version: SCHEMA_VERSION,
        project: project.to_string(),
        number: entry.number,
        after: entry.after,
        written_at_ms: entry.written_at.0,
        plain_bytes,
        plain_blake3,
        stored_bytes,
        stored_blake3,
        rows: STANDARD.encode(&piece),
    };
    sign(&text, signer)
}

/// Reads an entry that was found under `name` and claims to be number `number` of the project.
///
/// # Errors
/// [`Kind::Tampered`] where it is not signed by `key`, or is another than its name says; [`Kind::Store`] where another
/// version wrote it; [`Kind::Key`] where the identity does not open it.
pub fn open(
    name: &str,
    bytes: &[u8],
    project: &ProjectId,
    number: u64,
    key: &VerifyingKey,
    identity: &Identity,
) -> Result<Entry, Error> {
    let tampered = |what: &str| Error::new(Kind::Tampered, "read journal", format!("{name}: {what}"));
    let text: EntryText = check(name, bytes, key)?;
    // Rows of older versions get the defaults of what has been added since.
    if text.journal_version != VERSION || !(1..=SCHEMA_VERSION).contains(&text.catalog_version) {
        let context = format!(
            "{name}: written by another version ({}.{}), this program reads {VERSION}.1 to {VERSION}.{SCHEMA_VERSION}",
            text.journal_version, text.catalog_version
        );
        return Err(Error::new(Kind::Store, "read journal", context));
    }
    if text.project != project.as_str() || text.number != number {
        return Err(tampered("it is the entry of another place"));
    }
    let stored = STANDARD
        .decode(&text.rows)
        .map_err(|e| tampered("its rows are no base64").because(e))?;
    let expected = Expected {
        name,
        plain_bytes: text.plain_bytes,
        plain_blake3: &text.plain_blake3,
        stored_bytes: text.stored_bytes,
        stored_blake3: &text.stored_blake3,
    };
    let mut plain = Vec::new();
    Opener::new(identity)?.open(expected, &stored, &mut plain)?;
    let mut rows = Vec::new();
    for line in plain.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let line: Line = serde_json::from_slice(line).map_err(|e| tampered("it holds no rows").because(e))?;
        let subject = Subject::from_word(&line.subject)
            .ok_or_else(|| tampered("it holds rows of something unknown"))?;
        rows.push((subject, line.row));
    }
    Ok(Entry {
        number,
        after: text.after,
        written_at: Moment(text.written_at_ms),
        rows,
    })
}

/// The bytes of a key's object.
///
/// # Errors
/// None in practice: the text is JSON.
pub fn seal_key(project: &ProjectId, key: &ProjectKey, signer: &SigningKey) -> Result<Vec<u8>, Error> {
    let text = KeyText {
        journal_version: VERSION,
        project: project.to_string(),
        recipient: key.recipient.clone(),
        identity_sealed: hex(&key.identity_sealed),
    };
    sign(&text, signer)
}

/// Reads a key that was found under `name`.
///
/// # Errors
/// [`Kind::Tampered`].
pub fn open_key(
    name: &str,
    bytes: &[u8],
    project: &ProjectId,
    key: &VerifyingKey,
) -> Result<ProjectKey, Error> {
    let text: KeyText = check(name, bytes, key)?;
    let tampered = |what: &str| Error::new(Kind::Tampered, "read journal", format!("{name}: {what}"));
    if text.project != project.as_str() {
        return Err(tampered("it is the key of another project"));
    }
    let identity_sealed = unhex(&text.identity_sealed).ok_or_else(|| tampered("its key is no hex"))?;
    Ok(ProjectKey {
        recipient: text.recipient,
        identity_sealed,
    })
}

/// The bytes of an object that is a signed text.
///
/// # Errors
/// None in practice: the text is JSON.
pub(super) fn sign(text: &impl Serialize, signer: &SigningKey) -> Result<Vec<u8>, Error> {
    let text = serde_json::to_string(text).map_err(unwritable)?;
    let signed = SignedText {
        signature: hex(&signer.sign(text.as_bytes())),
        key: signer.verifying_key().to_string(),
        text,
    };
    serde_json::to_vec(&signed).map_err(unwritable)
}

/// What an object says that was found under `name` and is a signed text.
///
/// # Errors
/// [`Kind::Tampered`] where it is not signed by `key`.
pub(super) fn check<T: for<'a> Deserialize<'a>>(
    name: &str,
    bytes: &[u8],
    key: &VerifyingKey,
) -> Result<T, Error> {
    let tampered = |what: &str| Error::new(Kind::Tampered, "read journal", format!("{name}: {what}"));
    let signed: SignedText =
        serde_json::from_slice(bytes).map_err(|e| tampered("it is no signed text").because(e))?;
    if signed.key != key.to_string() {
        return Err(tampered("it is signed by another key than keys/signing.key"));
    }
    let signature = unhex(&signed.signature).ok_or_else(|| tampered("its signature is no hex"))?;
    if !key.verifies(signed.text.as_bytes(), &signature) {
        return Err(tampered("its signature is wrong"));
    }
    serde_json::from_str(&signed.text).map_err(|e| tampered("it is not of the journal").because(e))
}

fn unwritable(error: serde_json::Error) -> Error {
    Error::new(Kind::Store, "write journal", "as JSON").because(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        let mut row = Image::new();
        row.insert("id".to_owned(), serde_json::json!("one"));
        row.insert("sealed".to_owned(), serde_json::json!({"hex": "00ff"}));
        Entry {
            number: 7,
            after: Some(6),
            written_at: Moment(1),
            rows: vec![(Subject::Instance, row)],
        }
    }

    #[test]
    fn an_entry_opens_only_in_its_place_under_its_keys_and_undamaged() {
        let (project, other) = (ProjectId::random(), ProjectId::random());
        let (identity, signer) = (Identity::generate(), SigningKey::generate().unwrap());
        let key = signer.verifying_key();
        let bytes = seal(&project, &entry(), &identity.recipient(), &signer).unwrap();
        let read = |bytes: &[u8], project: &ProjectId, number, key: &VerifyingKey, identity: &Identity| {
            open("name", bytes, project, number, key, identity).map_err(|error| error.kind)
        };
        let again = read(&bytes, &project, 7, &key, &identity).unwrap();
        assert_eq!((again.number, again.after, again.rows.len()), (7, Some(6), 1));
        assert_eq!(again.rows[0], entry().rows[0]);
        let refused = [
            read(&bytes, &other, 7, &key, &identity),
            read(&bytes, &project, 8, &key, &identity),
            read(
                &bytes,
                &project,
                7,
                &SigningKey::generate().unwrap().verifying_key(),
                &identity,
            ),
        ];
        for refused in refused {
            assert_eq!(refused.unwrap_err(), Kind::Tampered);
        }
        assert_eq!(
            read(&bytes, &project, 7, &key, &Identity::generate()).unwrap_err(),
            Kind::Key
        );
        for at in (0..bytes.len()).step_by(7) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(read(&damaged, &project, 7, &key, &identity).is_err(), "byte {at}");
        }
    }

    #[test]
    fn names_say_what_they_are() {
        let project = ProjectId::random();
        let name = entry_name(&project, 12);
        assert_eq!(Named::parse(&name), Some(Named::Entry(project.clone(), 12)));
        let key = key_name(&project, "age1x");
        assert_eq!(Named::parse(&key), Some(Named::Key(project)));
        for name in ["journal", "journal/x/1.json", "other/x/1.json"] {
            assert_eq!(Named::parse(name), None);
        }
    }
}
