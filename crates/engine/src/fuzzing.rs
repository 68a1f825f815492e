//! What the fuzzers need of the inside: bytes in place of a peer, and of what lies in a store.

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::archive::{Archive, Manifest, signed_by};
use crate::control::Control;
use crate::error::{Error, Kind};
use crate::keys::{Identity, SigningKey};
use crate::node::{Node, Reply};
use crate::psync::Handshake;
use crate::segment::{Expected, Opener};

/// A peer that has said all it will ever say. What is said to it is lost.
///
/// # Errors
/// [`Kind::Connection`] where the system has no socket, or its buffer does not take the bytes.
fn peer_saying(bytes: &[u8]) -> Result<(Node, UnixStream), Error> {
    let failed = |e| Error::io(Kind::Connection, "make peer", "a pair of sockets", e);
    let (ours, mut theirs) = UnixStream::pair().map_err(failed)?;
    theirs.set_nonblocking(true).map_err(failed)?;
    theirs.write_all(bytes).map_err(failed)?;
    theirs.shutdown(Shutdown::Write).map_err(failed)?;
    Ok((Node::over(ours, "fuzzer"), theirs))
}

/// All replies in the bytes, up to the first that is none. At most 64 KiB.
///
/// # Errors
/// As [`Node::reply`]; [`Kind::Connection`] at the end of the bytes.
pub fn replies(bytes: &[u8], mut each: impl FnMut(Reply)) -> Result<(), Error> {
    let (mut node, _peer) = peer_saying(bytes)?;
    loop {
        each(node.reply()?);
    }
}

/// A capture from a peer that answers with these bytes, read in chunks of `limit`. At most 64 KiB.
///
/// # Errors
/// As those of [`Handshake`] and [`Snapshot::fill`](crate::psync::Snapshot::fill).
pub fn capture(bytes: &[u8], limit: usize) -> Result<Vec<u8>, Error> {
    let (node, _peer) = peer_saying(bytes)?;
    let control = Control::new(None);
    let mut snapshot = Handshake::begin(node, Duration::from_secs(1))?
        .started(&control)?
        .payload(&control)?;
    let (mut whole, mut chunk) = (Vec::new(), Vec::new());
    loop {
        let more = snapshot.fill(&mut chunk, limit, || Ok(()))?;
        whole.extend_from_slice(&chunk);
        if !more {
            return Ok(whole);
        }
    }
}

/// The bytes of a manifest's object, judged as when an archive is opened.
///
/// # Errors
/// As [`Archive::open`].
pub fn manifest(bytes: &[u8], signer: &SigningKey) -> Result<Manifest, Error> {
    Archive::judge("manifest.json", bytes, &[signer.verifying_key()], None)
}

/// As [`manifest`], of bytes that are the inner text and get their signature here.
///
/// # Errors
/// As [`Archive::open`].
pub fn signed_manifest(text: &str, signer: &SigningKey) -> Result<Manifest, Error> {
    let unwritable = |e: serde_json::Error| Error::new(Kind::Store, "sign manifest", "as JSON").because(e);
    let bytes = signed_by(signer, text.to_owned()).map_err(unwritable)?;
    manifest(&bytes, signer)
}

/// Bytes of a segment's object, opened under a manifest that knows the stored bytes and claims `plain_bytes`.
///
/// # Errors
/// As [`Opener::open`].
pub fn segment(
    stored: &[u8],
    plain_bytes: u64,
    plain_blake3: &str,
    identity: &Identity,
) -> Result<Vec<u8>, Error> {
    let mut plain = Vec::new();
    let expected = Expected {
        name: "segment",
        plain_bytes,
        plain_blake3,
        stored_bytes: stored.len() as u64,
        stored_blake3: &blake3::hash(stored).to_string(),
    };
    Opener::new(identity)?.open(expected, stored, &mut plain)?;
    Ok(plain)
}

/// Encrypts bytes that are, or should be, a zstd frame.
///
/// # Errors
/// [`Kind::Key`], [`Kind::Memory`].
pub fn encrypted(frame: &[u8], identity: &Identity) -> Result<Vec<u8>, Error> {
    let recipient = identity.recipient();
    let encryptor = age::Encryptor::with_recipients(std::iter::once(recipient.as_age()))
        .map_err(|e| Error::new(Kind::Key, "encrypt", "the recipient is refused").because(e))?;
    let failed = |e| Error::io(Kind::Memory, "encrypt", "into memory", e);
    let mut out = Vec::new();
    let mut writer = encryptor.wrap_output(&mut out).map_err(failed)?;
    writer.write_all(frame).map_err(failed)?;
    writer.finish().map_err(failed)?;
    Ok(out)
}
