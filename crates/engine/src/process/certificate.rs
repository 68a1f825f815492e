//! The certificate that an engine shows its clients, its replicas and the other nodes, and the authority that it is of.
//!
//! Each instance has an authority of its own: clients are told to trust that and nothing else, and nobody else's engine can
//! pass for one of the instance's. Every start of a process makes a key and a certificate anew, so neither wears out, and
//! a node's certificate names the addresses that it has.

use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};

use crate::error::{Error, Kind};
use crate::node::Secret;

/// What the engine reads, in its directory.
const CHAIN: &str = "tls.crt";
const KEY: &str = "tls.key";
const AUTHORITY: &str = "ca.crt";

/// How long an authority is good: clients are given it once.
pub const AUTHORITY_LIFE: Duration = Duration::from_secs(20 * 365 * 24 * 3600);
/// Longer than any process runs.
const CERTIFICATE_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Clocks of clients may be behind.
const CLOCKS_DIFFER: Duration = Duration::from_secs(24 * 3600);

/// Who signs the certificates of an instance's engines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    /// Its own certificate, PEM: what clients are to trust.
    pub certificate: String,
    /// Its private key, PEM.
    pub key: Secret,
}

/// What an engine shows, and whom it trusts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    chain: String,
    key: Secret,
    authority: String,
}

impl Authority {
    /// A new one. `name` is what it is called to people.
    ///
    /// # Errors
    /// [`Kind::Key`].
    pub fn make(name: &str) -> Result<Self, Error> {
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = of_authority(name);
        params.not_before = (SystemTime::now() - CLOCKS_DIFFER).into();
        params.not_after = (SystemTime::now() + AUTHORITY_LIFE).into();
        let certificate = params.self_signed(&key).map_err(failed)?;
        Ok(Self {
            certificate: certificate.pem(),
            key: Secret::new(key.serialize_pem()),
        })
    }

    /// A certificate for a process that is reached at these addresses and names. `name`: as of [`Authority::make`].
    ///
    /// # Errors
    /// [`Kind::Key`] where the key is none, or a name is none that a certificate can hold.
    pub fn certify(&self, name: &str, reached_at: &[String]) -> Result<Certificate, Error> {
        let signing = KeyPair::from_pem(self.key.expose()).map_err(failed)?;
        let issuer = Issuer::new(of_authority(name), signing);
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::new(reached_at).map_err(failed)?;
        params.distinguished_name = called(&format!("an engine of {name}"));
        params.not_before = (SystemTime::now() - CLOCKS_DIFFER).into();
        params.not_after = (SystemTime::now() + CERTIFICATE_LIFE).into();
        params.use_authority_key_identifier_extension = true;
        // Nodes show it each other from either end.
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let certificate = params.signed_by(&key, &issuer).map_err(failed)?;
        Ok(Certificate {
            chain: certificate.pem(),
            key: Secret::new(key.serialize_pem()),
            authority: self.certificate.clone(),
        })
    }
}

fn of_authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = called(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn called(name: &str) -> DistinguishedName {
    let mut all = DistinguishedName::new();
    all.push(DnType::CommonName, name);
    all
}

fn failed(error: rcgen::Error) -> Error {
    Error::new(Kind::Key, "make certificate", error.to_string())
}

/// Puts the certificate where [`settings`] let the engine find it.
pub(crate) fn write(home: &Path, certificate: &Certificate, run_as: Option<(u32, u32)>) -> Result<(), Error> {
    let Certificate {
        chain,
        key,
        authority,
    } = certificate;
    for (name, text) in [
        (CHAIN, chain.as_str()),
        (KEY, key.expose()),
        (AUTHORITY, authority),
    ] {
        let path = home.join(name);
        let failed = |e| Error::io(Kind::Io, "write certificate", path.display().to_string(), e);
        // Of an earlier start. Another user's engine cannot have put a link there: then the new file would not be made.
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(e)),
            _ => {}
        }
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        std::io::Write::write_all(&mut file, text.as_bytes()).map_err(failed)?;
        super::give(&path, run_as)?;
    }
    Ok(())
}

/// The lines by which an engine or Sentinel shows its certificate and speaks TLS with its like. Clients need none of their own;
/// nodes of a cluster show each other theirs.
pub(crate) fn settings() -> [String; 6] {
    [
        format!("tls-cert-file {CHAIN}"),
        format!("tls-key-file {KEY}"),
        format!("tls-ca-cert-file {AUTHORITY}"),
        "tls-auth-clients no".to_owned(),
        "tls-replication yes".to_owned(),
        "tls-session-caching no".to_owned(),
    ]
}
