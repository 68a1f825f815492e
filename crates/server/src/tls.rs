//! TLS for the API, by rustls.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Makes both files, for who has none; its certificate is taken on trust by each client that is told to.
const MAKE: &str = "to make both (IP:ADDRESS where there is no name): openssl req -x509 -newkey rsa:2048 -nodes -days 825 \
                    -subj /CN=HOST -addext subjectAltName=DNS:HOST -keyout key.pem -out cert.pem";

/// Reads a certificate chain and its key, PEM.
///
/// # Errors
/// Which file cannot be read, is no PEM, or is not the other's; and what to do.
pub fn acceptor(certificate: &Path, key: &Path) -> anyhow::Result<tokio_rustls::TlsAcceptor> {
    let pem = read("--tls-cert", certificate)?;
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .with_context(|| format!("--tls-cert {}: a block of it is broken", certificate.display()))?;
    anyhow::ensure!(
        !chain.is_empty(),
        "--tls-cert {} holds no certificate (a block BEGIN CERTIFICATE, PEM){}; {MAKE}",
        certificate.display(),
        instead(&pem)
    );
    let pem = read("--tls-key", key)?;
    let secret = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| {
        anyhow::anyhow!(
            "--tls-key {} holds no private key that can be read (a block BEGIN PRIVATE KEY, PEM, without a passphrase){}; \
             {MAKE}",
            key.display(),
            instead(&pem)
        )
    })?;
    let config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, secret)
            .with_context(|| {
                format!(
                    "--tls-cert {} and --tls-key {} do not serve together: the key must be that of the first certificate, and \
                     the server's own certificate comes before those of its issuers",
                    certificate.display(),
                    key.display()
                )
            })?;
    Ok(tokio_rustls::TlsAcceptor::from(Arc::new(config)))
}

/// How we speak to servers of others: their certificates are checked as this machine's system checks them
/// (`SSL_CERT_FILE` names other roots).
///
/// # Errors
/// The system's roots cannot be read.
pub fn client() -> anyhow::Result<rustls::ClientConfig> {
    use rustls_platform_verifier::BuilderVerifierExt as _;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_platform_verifier()?
        .with_no_client_auth();
    Ok(config)
}

/// Trusts servers whose certificates are signed by those of `ca`, and shows them `own`, a chain and its key: all PEM.
///
/// # Errors
/// Which of them holds nothing that can be read.
pub fn connector(ca: &str, own: Option<(&str, &str)>) -> anyhow::Result<Arc<rustls::ClientConfig>> {
    let chain = |what: &str, pem: &str| {
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pem.as_bytes())
            .collect::<Result<_, _>>()
            .with_context(|| format!("a block of {what} is broken"))?;
        anyhow::ensure!(
            !chain.is_empty(),
            "{what} holds no certificate (a block BEGIN CERTIFICATE, PEM){}",
            instead(pem.as_bytes())
        );
        Ok::<_, anyhow::Error>(chain)
    };
    let mut roots = rustls::RootCertStore::empty();
    for certificate in chain("the CA", ca)? {
        roots
            .add(certificate)
            .context("a certificate of the CA cannot be used")?;
    }
    let config =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
    let config = match own {
        None => config.with_no_client_auth(),
        Some((certificate, key)) => {
            let secret = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|_| {
                anyhow::anyhow!(
                    "the client's key cannot be read (a block BEGIN PRIVATE KEY, PEM, without a passphrase){}",
                    instead(key.as_bytes())
                )
            })?;
            config
                .with_client_auth_cert(chain("the client's certificate", certificate)?, secret)
                .context("the client's certificate and key do not belong together")?
        }
    };
    Ok(Arc::new(config))
}

fn read(option: &str, path: &Path) -> anyhow::Result<Vec<u8>> {
    // The reason comes before the advice: as a context it would stand behind the command.
    std::fs::read(path)
        .map_err(|error| anyhow::anyhow!("cannot read {option} {}: {error}; {MAKE}", path.display()))
}

/// What a file holds where something else is wanted, for who has mixed them up.
fn instead(pem: &[u8]) -> String {
    let text = String::from_utf8_lossy(pem);
    let mut labels = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("-----BEGIN "));
    match labels.next() {
        Some(label) => format!("; it holds: {}", label.trim_end_matches('-')),
        None if pem.is_empty() => "; it is empty".to_owned(),
        None => "; it is no PEM".to_owned(),
    }
}
