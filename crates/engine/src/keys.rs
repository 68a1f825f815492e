//! The keys of an archive: an age pair for secrecy, an Ed25519 pair for authorship.
//!
//! A capture needs only a [`Recipient`] and a [`SigningKey`]: it writes archives that it cannot read. A restore
//! needs an [`Identity`] and the [`VerifyingKey`]s it trusts: it reads archives that it cannot forge.

use std::fmt;
use std::str::FromStr;

use age::secrecy::ExposeSecret;
use ring::rand::SystemRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

use crate::error::{Error, Kind};
use crate::node::Secret;

/// The secret half of an age X25519 pair: opens archives.
#[derive(Clone)]
pub struct Identity(age::x25519::Identity);

impl Identity {
    /// A new identity from the operating system's random source.
    pub fn generate() -> Self {
        Self(age::x25519::Identity::generate())
    }

    /// Reads the text form, `AGE-SECRET-KEY-1...`.
    ///
    /// # Errors
    /// [`Kind::Key`]; the text is not repeated in it.
    pub fn parse(text: &str) -> Result<Self, Error> {
        age::x25519::Identity::from_str(text.trim())
            .map(Self)
            .map_err(|why| Error::new(Kind::Key, "parse age identity", why))
    }

    /// The text form.
    pub fn to_secret(&self) -> Secret {
        Secret::new(self.0.to_string().expose_secret())
    }

    /// The public half.
    pub fn recipient(&self) -> Recipient {
        Recipient(self.0.to_public())
    }

    pub(crate) fn as_age(&self) -> &dyn age::Identity {
        &self.0
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity(***)")
    }
}

/// The public half of an age X25519 pair: closes archives.
#[derive(Clone)]
pub struct Recipient(age::x25519::Recipient);

impl Recipient {
    /// Reads the text form, `age1...`.
    ///
    /// # Errors
    /// [`Kind::Key`].
    pub fn parse(text: &str) -> Result<Self, Error> {
        age::x25519::Recipient::from_str(text.trim())
            .map(Self)
            .map_err(|why| Error::new(Kind::Key, "parse age recipient", why))
    }

    /// Encrypts bytes that are at hand, in the form that `age -d` opens.
    ///
    /// # Errors
    /// [`Kind::Key`] where the recipient cannot be encrypted to.
    pub fn seal(&self, plain: &[u8]) -> Result<Vec<u8>, Error> {
        age::encrypt(&self.0, plain)
            .map_err(|e| Error::new(Kind::Key, "seal to recipient", "it is refused").because(e))
    }

    pub(crate) fn as_age(&self) -> &dyn age::Recipient {
        &self.0
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recipient({self})")
    }
}

/// Signs manifests.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    pkcs8: Vec<u8>,
}

impl SigningKey {
    /// A new key from the operating system's random source.
    ///
    /// # Errors
    /// [`Kind::Key`] where the random source fails.
    pub fn generate() -> Result<Self, Error> {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
            .map_err(|_unspecified| Error::new(Kind::Key, "generate signing key", "no random bytes"))?;
        Self::from_pkcs8(pkcs8.as_ref().to_vec())
    }

    /// Reads the text form: hex of the PKCS#8 document.
    ///
    /// # Errors
    /// [`Kind::Key`]; the text is not repeated in it.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let pkcs8 = from_hex(text.trim())
            .ok_or_else(|| Error::new(Kind::Key, "parse signing key", "is not hexadecimal"))?;
        Self::from_pkcs8(pkcs8)
    }

    fn from_pkcs8(pkcs8: Vec<u8>) -> Result<Self, Error> {
        let pair = Ed25519KeyPair::from_pkcs8(&pkcs8)
            .map_err(|why| Error::new(Kind::Key, "parse signing key", why.to_string()))?;
        Ok(Self { pair, pkcs8 })
    }

    /// The text form.
    pub fn to_secret(&self) -> Secret {
        Secret::new(to_hex(&self.pkcs8))
    }

    /// The public half.
    pub fn verifying_key(&self) -> VerifyingKey {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(self.pair.public_key().as_ref());
        VerifyingKey(bytes)
    }

    /// The 64 bytes of the signature; the same message gives the same signature.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.pair.sign(message).as_ref().to_vec()
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(***)")
    }
}

/// Proves who signed a manifest.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct VerifyingKey([u8; 32]);

impl VerifyingKey {
    /// Reads the text form: 64 hexadecimal digits.
    ///
    /// # Errors
    /// [`Kind::Key`].
    pub fn parse(text: &str) -> Result<Self, Error> {
        from_hex(text.trim())
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self)
            .ok_or_else(|| Error::new(Kind::Key, "parse verifying key", "is not 64 hexadecimal digits"))
    }

    /// Whether `signature` was made over exactly `message` by the other half of this key.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, self.0)
            .verify(message, signature)
            .is_ok()
    }
}

impl fmt::Display for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_hex(&self.0))
    }
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifyingKey({self})")
    }
}

/// Lower-case hexadecimal digits.
pub(crate) fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

/// The bytes of hexadecimal digits; `None` for anything else.
pub(crate) fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    let value = |digit: u8| char::from(digit).to_digit(16).and_then(|v| u8::try_from(v).ok());
    digits
        .chunks_exact(2)
        .map(|pair| Some(value(pair[0])? << 4 | value(pair[1])?))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_their_text_forms() {
        let identity = Identity::generate();
        let again = Identity::parse(identity.to_secret().expose()).unwrap();
        assert_eq!(identity.recipient().to_string(), again.recipient().to_string());
        let recipient = Recipient::parse(&identity.recipient().to_string()).unwrap();
        assert!(recipient.to_string().starts_with("age1"));

        let signer = SigningKey::generate().unwrap();
        let again = SigningKey::parse(signer.to_secret().expose()).unwrap();
        let public = VerifyingKey::parse(&signer.verifying_key().to_string()).unwrap();
        assert!(public.verifies(b"message", &again.sign(b"message")));
        assert!(!public.verifies(b"massage", &again.sign(b"message")));
        assert!(!public.verifies(b"message", b"short"));
    }

    #[test]
    fn secret_keys_do_not_print() {
        let identity = Identity::generate();
        let signer = SigningKey::generate().unwrap();
        let shown = format!("{identity:?} {signer:?} {:?}", signer.to_secret());
        assert!(!shown.contains("AGE-SECRET") && !shown.contains(signer.to_secret().expose()));
    }

    #[test]
    fn damaged_texts_are_refused_without_repeating_them() {
        for text in ["", "AGE-SECRET-KEY-1QQQ", "zz"] {
            let error = Identity::parse(text).unwrap_err();
            assert_eq!(error.kind, Kind::Key);
            assert!(text.is_empty() || !error.to_string().contains(text));
            assert_eq!(SigningKey::parse(text).unwrap_err().kind, Kind::Key);
            assert_eq!(VerifyingKey::parse(text).unwrap_err().kind, Kind::Key);
            assert_eq!(Recipient::parse(text).unwrap_err().kind, Kind::Key);
        }
    }
}
