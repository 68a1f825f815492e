//! A file behind a URL: read where the operator means it to be read, and nowhere else.
//!
//! A name can lead anywhere, and so can a redirect: to a metadata service, to our own API, to an engine. So every address that
//! a connection is made to is looked at first, that of each redirect too, and the connection is made to exactly the address
//! that was looked at. A file that the operator names himself is read from public addresses by https on its own port, and from
//! what he allows by address with `import --allow`. What callers of the API name is read only from what `serve --import-allow`
//! says, where `public` means the same addresses; never from our own ports, and callers are not told which address a name has.

use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::tls::{RootCerts, TlsConfig};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

/// Redirects that are followed: a link of an object store needs one or two.
const REDIRECTS_MAX: u32 = 5;
/// A server that says nothing for this long is given up.
const STALL_MAX: Duration = Duration::from_secs(60);
/// Name and connection must be there within this time.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// The whole file must be there within this time, however slowly it drips: 100 GB at a megabyte a second.
const TRANSFER_MAX: Duration = Duration::from_secs(28 * 3600);
const HTTPS_PORT: u16 = 443;

/// Addresses that the operator allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allowed {
    /// Public ones, by https on its own port.
    Public,
    /// Those of a network, with one port or all, by http too.
    Network {
        /// Any address of it.
        network: IpAddr,
        /// That all of its addresses begin with.
        bits: u8,
        /// All, where there is none.
        port: Option<u16>,
    },
}

impl FromStr for Allowed {
    type Err = String;

    /// `public`, or `ADDRESS[/BITS][:PORT]` with an IPv6 address in brackets.
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "public" {
            return Ok(Self::Public);
        }
        let wrong = || {
            format!("{text} is neither public nor ADDRESS[/BITS][:PORT], as 10.0.0.0/8:9000 or [fd00::]/8")
        };
        let (address, rest) = match text.strip_prefix('[') {
            Some(bracketed) => bracketed.split_once(']').ok_or_else(wrong)?,
            None => text.split_at(text.find(['/', ':']).unwrap_or(text.len())),
        };
        let network: IpAddr = address.parse().map_err(|_no_address| wrong())?;
        let (bits, port) = match rest.split_once(':') {
            Some((bits, port)) => (bits, Some(port.parse().map_err(|_no_port| wrong())?)),
            None => (rest, None),
        };
        let most = if network.is_ipv4() { 32 } else { 128 };
        let bits = match bits.strip_prefix('/') {
            Some(bits) => bits.parse().ok().filter(|bits| *bits <= most).ok_or_else(wrong)?,
            None if bits.is_empty() => most,
            None => return Err(wrong()),
        };
        Ok(Self::Network { network, bits, port })
    }
}

impl Allowed {
    fn covers(&self, is_https: bool, address: IpAddr, port: u16) -> bool {
        let (network, bits, only) = match *self {
            Self::Public => return is_https && port == HTTPS_PORT && is_public(address),
            Self::Network { network, bits, port } => (network, bits, port),
        };
        let is_inside = match (network, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let beyond = 32 - u32::from(bits);
                (u64::from(network.to_bits()) >> beyond) == (u64::from(address.to_bits()) >> beyond)
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let differing = network.to_bits() ^ address.to_bits();
                differing.leading_zeros() >= u32::from(bits)
            }
            _ => false,
        };
        is_inside && only.is_none_or(|only| only == port)
    }
}

/// Whether an address is one of the internet, and of nothing private, local, reserved or translated.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !(address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_documentation()
        || matches!(
            (a, b, c),
            // This host; shared by carriers; protocols; 6to4 relays; benchmarks; reserved.
            (0 | 240..=255, ..) | (100, 64..=127, _) | (192, 0, 0) | (192, 88, 99) | (198, 18..=19, _)
        ))
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let [a, b, ..] = address.segments();
    // Only 2000::/3 is given out: that leaves loopback, local, multicast, mapped and NAT64 addresses outside. Within it:
    // protocols and Teredo, documentation, 6to4.
    a >> 13 == 1 && !(a == 0x2001 && (b < 0x200 || b == 0xdb8)) && a != 0x2002 && !(a == 0x3fff && b < 0x1000)
}

/// Whose word a connection is made on.
#[derive(Debug, Clone)]
pub enum Asker {
    /// The operator, who named the URL himself and may be told everything.
    Operator,
    /// A caller of the API: our own ports on this machine are kept from him, whatever is allowed.
    Caller {
        /// Ports of the API and of engines.
        ours: Vec<u16>,
    },
}

/// What may be connected to.
#[derive(Debug, Clone)]
pub struct Rules {
    /// For the operator beyond public addresses by https.
    pub allowed: Vec<Allowed>,
    /// Who asks.
    pub asker: Asker,
}

/// Whether an address is one of this machine.
fn is_local(address: IpAddr) -> bool {
    let address = address.to_canonical();
    address.is_loopback() || address.is_unspecified() || UdpSocket::bind((address, 0)).is_ok()
}

/// Looks names up, and lets through only what may be connected to.
#[derive(Debug)]
struct Guard {
    lookup: DefaultResolver,
    rules: Rules,
}

impl Guard {
    /// Why an address is not connected to.
    fn refusal(&self, is_https: bool, address: IpAddr, port: u16) -> Option<String> {
        match &self.rules.asker {
            Asker::Operator => self.told(is_https, address, port),
            Asker::Caller { ours } => {
                let is_ours = || ours.contains(&port) && is_local(address);
                let why = match self.is_allowed(is_https, address, port) {
                    true if !is_ours() => return None,
                    true => format!("{address}:{port} is a port of the service's own"),
                    false => format!("{address}:{port} is not allowed"),
                };
                tracing::warn!(why, "a URL that a caller of the API named is not connected to");
                let shown = "it leads to an address that the operator of this service has not allowed \
                             (cachekeep serve --import-allow)";
                Some(shown.to_owned())
            }
        }
    }

    fn is_allowed(&self, is_https: bool, address: IpAddr, port: u16) -> bool {
        let mut allowed = self.rules.allowed.iter();
        allowed.any(|allowed| allowed.covers(is_https, address, port))
    }

    /// In the operator's words.
    fn told(&self, is_https: bool, address: IpAddr, port: u16) -> Option<String> {
        if self.is_allowed(is_https, address, port) {
            return None;
        }
        let shown = match address {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("[{address}]"),
        };
        let why = if !is_public(address) {
            "is not a public address"
        } else if !is_https {
            "is asked without https"
        } else if port != HTTPS_PORT {
            "is asked on another port than that of https"
        } else {
            return None;
        };
        Some(format!("{shown} {why}; if it is meant: --allow {shown}:{port}"))
    }
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
            .find_map(|found| self.refusal(is_https, found.ip(), found.port()));
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
    fn no_address_of_a_special_range_is_public() {
        for text in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.1.2.3",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.0.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.7",
            "203.0.113.7",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:8.8.8.8",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:1ff::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "3fff::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!is_public(text.parse().unwrap()), "{text}");
        }
        for text in [
            "1.1.1.1",
            "100.63.0.1",
            "100.128.0.1",
            "172.32.0.1",
            "198.20.0.1",
            "223.255.255.1",
            "2606:4700::1111",
            "2a00::1",
            "2001:4860::1",
        ] {
            assert!(is_public(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn what_is_allowed_covers_its_network_and_port_and_nothing_else() {
        let covers = |allowed: &str, address: &str, port| {
            allowed
                .parse::<Allowed>()
                .unwrap()
                .covers(port == 443, address.parse().unwrap(), port)
        };
        assert!(covers("10.0.0.0/8", "10.9.8.7", 80) && !covers("10.0.0.0/8", "11.0.0.1", 80));
        assert!(covers("10.0.0.1:9000", "10.0.0.1", 9000) && !covers("10.0.0.1:9000", "10.0.0.1", 9001));
        assert!(!covers("10.0.0.1", "10.0.0.2", 80) && !covers("10.0.0.1", "::ffff:10.0.0.1", 80));
        assert!(covers("0.0.0.0/0", "127.0.0.1", 1) && !covers("0.0.0.0/0", "::1", 1));
        assert!(covers("[::]/0:443", "::1", 443) && covers("[fd00::]/8", "fd12::1", 1));
        assert!(covers("public", "1.1.1.1", 443) && !covers("public", "1.1.1.1", 80));
        assert!(!covers("public", "10.0.0.1", 443) && !covers("public", "::1", 443));
        assert!(!covers("[fd00::]/8:1", "fd12::1", 2) && !covers("[fd00::]/8", "fe80::1", 1));
        for wrong in [
            "",
            "host",
            "10.0.0.0/33",
            "10.0.0.0/8:x",
            "10.0.0.0/8:70000",
            "10.0.0.1x",
            "[::1",
            "[::1]x",
            "[::]/129",
            "10/8",
        ] {
            assert!(wrong.parse::<Allowed>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_public_addresses_by_https_on_its_port_need_no_leave() {
        let refused = |allowed: &[&str], is_https, address: &str, port| {
            guard(allowed).refusal(is_https, address.parse().unwrap(), port)
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
            guard.refusal(false, address.parse().unwrap(), port)
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
