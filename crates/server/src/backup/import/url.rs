//! A file behind a URL: read where the operator means it to be read, and nowhere else.
//!
//! A name can lead anywhere, and so can a redirect: to a metadata service, to our own API, to an engine. So every address that
//! a connection is made to is looked at first, that of each redirect too, and the connection is made to exactly the address
//! that was looked at. A file that the operator names himself is read from public addresses by https on its own port, and from
//! what he allows by address with `import --allow`. What callers of the API name is read only from what `serve --import-allow`
//! says, where `public` means the same addresses; never from our own ports, and callers are not told which address a name has.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::tls::{RootCerts, TlsConfig};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

use crate::egress::Rules;

/// Redirects that are followed: a link of an object store needs one or two.
const REDIRECTS_MAX: u32 = 5;
/// A server that says nothing for this long is given up.
const STALL_MAX: Duration = Duration::from_secs(60);
/// Name and connection must be there within this time.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// The whole file must be there within this time, however slowly it drips: 100 GB at a megabyte a second.
const TRANSFER_MAX: Duration = Duration::from_secs(28 * 3600);

/// Looks names up, and lets through only what may be connected to.
#[derive(Debug)]
struct Guard {
    lookup: DefaultResolver,
    rules: Rules,
}

impl Resolver for Guard {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let found = self.lookup.resolve(uri, config, timeout)?;
        let is_https = uri.scheme_str() == Some("https");
        // One that is refused refuses all: a name with mixed answers means no good.
        let refusal = found
            .iter()
            .find_map(|found| self.rules.refusal(is_https, found.ip(), found.port()));
        match refusal {
            Some(refusal) => Err(ureq::Error::Io(io::Error::new(
                io::ErrorKind::PermissionDenied,
                refusal,
            ))),
            None => Ok(found),
        }
    }
}

/// Ends with an error what goes on beyond a size.
struct Limited<R> {
    from: R,
    left: u64,
    limit: u64,
}

fn too_large(limit: u64) -> String {
    format!(
        "it is larger than {} GB: --size-limit-gb allows more",
        limit / 1_000_000_000
    )
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(buffer)?;
        self.left = self
            .left
            .checked_sub(count as u64)
            .ok_or_else(|| io::Error::new(io::ErrorKind::FileTooLarge, too_large(self.limit)))?;
        Ok(count)
    }
}

/// A file behind a URL, opened.
pub struct Opened {
    /// Its bytes.
    pub source: Box<dyn Read>,
    /// The URL without its query, which may hold a signature.
    pub name: String,
    /// 0 where the server does not say.
    pub bytes: u64,
}

/// A URL that may be asked for, as far as that is known without a look-up.
#[derive(Debug, Clone)]
pub struct Target {
    uri: Uri,
    /// See [`Opened::name`].
    pub name: String,
}

/// Whether an argument is meant as a URL and not as a path.
pub fn is_url(argument: &str) -> bool {
    argument.split_once("://").is_some_and(|(scheme, _)| {
        !scheme.is_empty() && scheme.chars().all(|letter| letter.is_ascii_alphanumeric())
    })
}

impl Target {
    /// Reads a URL.
    ///
    /// # Errors
    /// Another scheme than http and https, no URL, credentials in it.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let scheme = text.split_once("://").map_or("", |(scheme, _)| scheme);
        anyhow::ensure!(
            matches!(scheme, "https" | "http"),
            "only https:// and http:// are read"
        );
        let uri: Uri = text.parse().context("this is no URL")?;
        let authority = uri.authority().context("this is no URL")?;
        anyhow::ensure!(
            !authority.as_str().contains('@'),
            "a URL with a name and password in it is not read: pipe what curl fetches into `cachekeep import ... -`"
        );
        let name = format!("{scheme}://{authority}{}", uri.path());
        Ok(Self { uri, name })
    }

    /// Asks for a file of at most `limit` bytes. No credentials are sent, no cookies kept, no proxy of the environment is
    /// asked.
    ///
    /// # Errors
    /// An address that is not allowed, an answer other than 200, a size above the limit.
    pub fn open(&self, rules: &Rules, limit: u64) -> anyhow::Result<Opened> {
        let name = &self.name;
        let tls = TlsConfig::builder()
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .root_certs(RootCerts::PlatformVerifier)
            .build();
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .max_redirects(REDIRECTS_MAX)
            .timeout_resolve(Some(CONNECT_MAX))
            .timeout_connect(Some(CONNECT_MAX))
            .timeout_recv_response(Some(STALL_MAX))
            .timeout_per_read(Some(STALL_MAX))
            .timeout_recv_body(Some(TRANSFER_MAX))
            .tls_config(tls)
            .build();
        let guard = Guard {
            lookup: DefaultResolver::default(),
            rules: rules.clone(),
        };
        let agent = ureq::Agent::with_parts(config, DefaultConnector::default(), guard);
        let answer = agent
            .get(&self.uri)
            .call()
            .with_context(|| format!("{name} is not read"))?;
        let status = answer.status().as_u16();
        anyhow::ensure!(status == 200, "{name} is not read: the server answers {status}");
        let bytes = answer.body().content_length().unwrap_or(0);
        anyhow::ensure!(
            bytes <= limit,
            "{name} is not read: {} ({bytes} bytes)",
            too_large(limit)
        );
        let source = Limited {
            from: answer.into_body().into_reader(),
            left: limit,
            limit,
        };
        Ok(Opened {
            source: Box::new(source),
            name: name.clone(),
            bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::egress::Asker;

    fn rules(allowed: &[&str], asker: Asker) -> Rules {
        Rules {
            allowed: allowed.iter().map(|text| text.parse().unwrap()).collect(),
            asker,
        }
    }

    fn guard(allowed: &[&str]) -> Guard {
        Guard {
            lookup: DefaultResolver::default(),
            rules: rules(allowed, Asker::Operator),
        }
    }

    fn open(text: &str) -> anyhow::Result<Opened> {
        Target::parse(text)?.open(&rules(&[], Asker::Operator), 1)
    }

    #[test]
    fn only_public_addresses_by_https_on_its_port_need_no_leave() {
        let refused = |allowed: &[&str], is_https, address: &str, port| {
            guard(allowed)
                .rules
                .refusal(is_https, address.parse().unwrap(), port)
        };
        assert_eq!(refused(&[], true, "1.1.1.1", 443), None);
        assert!(
            refused(&[], false, "1.1.1.1", 443)
                .unwrap()
                .contains("without https")
        );
        assert!(
            refused(&[], true, "1.1.1.1", 8443)
                .unwrap()
                .contains("another port")
        );
        assert_eq!(
            refused(&[], true, "::1", 443).unwrap(),
            "[::1] is not a public address; if it is meant: --allow [::1]:443"
        );
        assert_eq!(refused(&["[::1]:443"], true, "::1", 443), None);
        assert_eq!(refused(&["127.0.0.0/8"], false, "127.0.0.1", 80), None);
        assert!(refused(&["127.0.0.0/8"], false, "169.254.169.254", 80).is_some());
    }

    /// Spellings that only a look-up turns into an address.
    #[test]
    fn an_address_is_looked_at_however_it_is_spelt() {
        for host in [
            "localhost",
            "127.1",
            "2130706433",
            "0x7f000001",
            "0177.0.0.1",
            "127.0.0.1",
            "[::1]",
            "[::ffff:7f00:1]",
        ] {
            for scheme in ["http", "https"] {
                let outcome = open(&format!("{scheme}://{host}:1/dump.rdb"));
                let why = format!("{:#}", outcome.err().unwrap());
                // Where the look-up does not know the spelling, nothing was connected to either.
                let is_refused = [
                    "not a public address",
                    "lookup",
                    "host not found",
                    "no URL",
                    "bad uri",
                ]
                .iter()
                .any(|word| why.contains(word));
                assert!(is_refused, "{host}: {why}");
            }
        }
    }

    #[test]
    fn other_schemes_and_credentials_are_refused() {
        for (url, why) in [
            ("file:///etc/passwd", "only https"),
            ("gopher://127.0.0.1:6379/_x", "only https"),
            ("https://user:secret@example.com/x", "a name and password"),
            ("https://127.0.0.1@example.com/x", "a name and password"),
        ] {
            let told = format!("{:#}", open(url).err().unwrap());
            assert!(told.contains(why) && !told.contains("secret"), "{told}");
        }
    }

    #[test]
    fn callers_of_the_api_reach_no_port_of_ours_and_are_told_no_address() {
        let ours = vec![6379, 8635];
        let asked = |allowed: &[&str], address: &str, port| {
            let guard = Guard {
                lookup: DefaultResolver::default(),
                rules: rules(allowed, Asker::Caller { ours: ours.clone() }),
            };
            guard.rules.refusal(false, address.parse().unwrap(), port)
        };
        let everything = ["0.0.0.0/0", "[::]/0"];
        for local in ["127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "::ffff:127.0.0.1"] {
            let told = asked(&everything, local, 6379).unwrap();
            assert!(
                !told.contains(local) && told.contains("--import-allow"),
                "{local}: {told}"
            );
            assert_eq!(asked(&everything, local, 9000), None);
        }
        assert_eq!(asked(&everything, "192.0.2.1", 6379), None);
        // Nothing without the operator's word, not even what is public.
        for address in ["10.1.2.3", "1.1.1.1"] {
            let told = asked(&[], address, 443).unwrap();
            assert!(!told.contains(address), "{told}");
        }
        assert!(asked(&["public"], "1.1.1.1", 443).is_some(), "not by http");
    }
}
