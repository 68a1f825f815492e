//! Secrets at rest and their making: sealing under the master key, random text, password hashes.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};

pub use signature::{hex, sha256, unhex};

/// The key that seals every secret column. From `CACHEKEEP_MASTER_KEY` (64 hex digits) or a file of mode 0600.
pub struct MasterKey {
    key: LessSafeKey,
    bytes: [u8; 32],
}

/// A sealed value that does not open: wrong master key, or moved to another row.
#[derive(Debug, thiserror::Error)]
#[error("a sealed value does not open: {0}: wrong master key, or the row was tampered with")]
pub struct Unsealable(String);

impl From<Unsealable> for engine::Error {
    fn from(error: Unsealable) -> Self {
        engine::Error::new(engine::Kind::Key, "open secret", error.to_string())
    }
}

impl MasterKey {
    /// Reads the key; makes one where there is none and `may_make` says that nothing is sealed yet.
    ///
    /// # Errors
    /// The file cannot be read or written, is missing, or is no key.
    pub fn load(path: &Path, may_make: bool) -> anyhow::Result<Self> {
        let text = match std::env::var("CACHEKEEP_MASTER_KEY") {
            Ok(text) => text,
            Err(_) if path.exists() => std::fs::read_to_string(path)?,
            Err(_) => {
                anyhow::ensure!(
                    may_make,
                    "{} is missing, and without it no secret of the catalogue opens: put it back from your copy, or \
                     give the key in CACHEKEEP_MASTER_KEY",
                    path.display()
                );
                let text = random_hex(32);
                write_private(path, text.as_bytes())?;
                text
            }
        };
        let bytes = unhex(text.trim())
            .and_then(|bytes| <[u8; 32]>::try_from(bytes).ok())
            .ok_or_else(|| anyhow::anyhow!("the master key must be 64 hex digits ({})", path.display()))?;
        let key =
            UnboundKey::new(&AES_256_GCM, &bytes).map_err(|_| anyhow::anyhow!("unusable master key"))?;
        Ok(Self {
            key: LessSafeKey::new(key),
            bytes,
        })
    }

    /// Seals `plain`; `place` names table, column and row, so that a sealed value moved elsewhere does not open.
    pub fn seal(&self, place: &str, plain: &[u8]) -> Vec<u8> {
        let nonce: [u8; NONCE_LEN] = random();
        let mut sealed = plain.to_vec();
        // Fails only for inputs above 64 GiB.
        let sealing = self.key.seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(place),
            &mut sealed,
        );
        assert!(sealing.is_ok(), "sealing a short secret cannot fail");
        [nonce.as_slice(), &sealed].concat()
    }

    /// Opens what [`MasterKey::seal`] made for the same place.
    ///
    /// # Errors
    /// [`Unsealable`].
    pub fn open(&self, place: &str, sealed: &[u8]) -> Result<String, Unsealable> {
        let unsealable = || Unsealable(place.to_owned());
        let (nonce, body) = sealed.split_at_checked(NONCE_LEN).ok_or_else(unsealable)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| unsealable())?;
        let mut body = body.to_vec();
        let plain = self
            .key
            .open_in_place(nonce, Aad::from(place), &mut body)
            .map_err(|_| unsealable())?;
        String::from_utf8(plain.to_vec()).map_err(|_| unsealable())
    }

    /// HMAC-SHA256 under a key derived for `purpose`, hex.
    pub fn mac(&self, purpose: &str, text: &str) -> String {
        hex(ring::hmac::sign(&self.mac_key(purpose), text.as_bytes()).as_ref())
    }

    /// Checks [`MasterKey::mac`] in constant time.
    pub fn mac_holds(&self, purpose: &str, text: &str, mac: &str) -> bool {
        unhex(mac)
            .is_some_and(|mac| ring::hmac::verify(&self.mac_key(purpose), text.as_bytes(), &mac).is_ok())
    }

    fn mac_key(&self, purpose: &str) -> ring::hmac::Key {
        let root = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &self.bytes);
        ring::hmac::Key::new(
            ring::hmac::HMAC_SHA256,
            ring::hmac::sign(&root, purpose.as_bytes()).as_ref(),
        )
    }
}

/// Writes a file that only its owner may read: mode 0600 from its first byte, complete or absent.
///
/// # Errors
/// The directory cannot be written.
pub fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    if let Some(directory) = path.parent() {
        std::fs::File::open(directory)?.sync_all()?;
    }
    Ok(())
}

/// Random bytes from the operating system.
///
/// # Panics
/// Where the operating system has no randomness to give: nothing safe can be done then.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    assert!(
        SystemRandom::new().fill(&mut bytes).is_ok(),
        "the operating system gives no random bytes"
    );
    bytes
}

/// `count` random bytes as hex, at most 64.
pub fn random_hex(count: usize) -> String {
    hex(&random::<64>()[..count.min(64)])
}

/// A password that satisfies DCS: lower, upper, digit and sign, 20 characters, some 110 bits.
pub fn random_password() -> String {
    const LETTERS: &[u8] = b"abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789";
    let body: String = random::<16>()
        .iter()
        .map(|byte| char::from(LETTERS[usize::from(*byte) % LETTERS.len()]))
        .collect();
    format!("{body}a7K_")
}

/// An access key id: 20 upper-case letters and digits, as the real ones look.
pub fn random_access_key() -> String {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    random::<20>()
        .iter()
        .map(|byte| char::from(LETTERS[usize::from(*byte) % LETTERS.len()]))
        .collect()
}

/// Hashes a password with argon2id (19 MiB, 2 passes) and a fresh salt.
pub fn hash_password(password: &str) -> String {
    let salt: [u8; 16] = random();
    format!("argon2id${}${}", hex(&salt), hex(&stretch(password, &salt)))
}

/// Checks a password against [`hash_password`]'s text, in constant time.
pub fn password_matches(password: &str, stored: &str) -> bool {
    let mut parts = stored.split('$').skip(1);
    let (Some(salt), Some(hash)) = (parts.next().and_then(unhex), parts.next().and_then(unhex)) else {
        return false;
    };
    let ours = stretch(password, &salt);
    ours.len() == hash.len() && ours.iter().zip(&hash).fold(0, |seen, (a, b)| seen | (a ^ b)) == 0
}

fn stretch(password: &str, salt: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    let stretched = argon2::Argon2::default().hash_password_into(password.as_bytes(), salt, &mut out);
    assert!(
        stretched.is_ok(),
        "the salt is 16 bytes and the password bounded by the body limit"
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_value_opens_only_in_its_place() {
        let directory = std::env::temp_dir().join(format!("cachekeep-{}", random_hex(8)));
        std::fs::create_dir(&directory).unwrap();
        let key = MasterKey::load(&directory.join("master.key"), true).unwrap();
        let sealed = key.seal("instance.password:1", b"secret");
        assert_eq!(key.open("instance.password:1", &sealed).unwrap(), "secret");
        assert!(key.open("instance.password:2", &sealed).is_err());
        assert!(key.open("instance.password:1", &sealed[..10]).is_err());
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn only_the_right_password_matches() {
        let stored = hash_password("Right-1");
        assert!(password_matches("Right-1", &stored));
        assert!(!password_matches("Right-2", &stored));
        assert!(!password_matches("", "argon2id$zz$"));
    }
}
