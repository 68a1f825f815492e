//! Where the service connects to on behalf of others: servers that are attached, files behind URLs. Nothing of it is trusted to
//! lead where its name says. Every address that a name has is looked at, one that is not allowed refuses all of them, and the
//! connection is made to exactly the address that was looked at.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::str::FromStr;

use engine::discover::HostPort;
use engine::{Error, Kind};

use crate::app::App;
use crate::catalog;
use crate::instance::{generation, record as instances};

const HTTPS_PORT: u16 = 443;
/// Addresses of one name that are tried: each may take the time of an answer.
const ADDRESSES_MAX: usize = 16;

/// Addresses of a network, with one port or all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// Any address of it.
    address: IpAddr,
    /// That all of its addresses begin with.
    bits: u8,
    /// All, where there is none.
    port: Option<u16>,
}

impl FromStr for Network {
    type Err = String;

    /// `ADDRESS[/BITS][:PORT]` with an IPv6 address in brackets.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text} is not ADDRESS[/BITS][:PORT], as 10.0.0.0/8:6379 or [fd00::]/8");
        let (address, rest) = match text.strip_prefix('[') {
            Some(bracketed) => bracketed.split_once(']').ok_or_else(wrong)?,
            None => text.split_at(text.find(['/', ':']).unwrap_or(text.len())),
        };
        let address: IpAddr = address.parse().map_err(|_no_address| wrong())?;
        let (bits, port) = match rest.split_once(':') {
            Some((bits, port)) => (bits, Some(port.parse().map_err(|_no_port| wrong())?)),
            None => (rest, None),
        };
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits.strip_prefix('/') {
            Some(bits) => bits.parse().ok().filter(|bits| *bits <= most).ok_or_else(wrong)?,
            None if bits.is_empty() => most,
            None => return Err(wrong()),
        };
        Ok(Self { address, bits, port })
    }
}

impl Network {
    fn covers(&self, address: IpAddr, port: u16) -> bool {
        let is_inside = match (self.address, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let beyond = 32 - u32::from(self.bits);
                (u64::from(network.to_bits()) >> beyond) == (u64::from(address.to_bits()) >> beyond)
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let differing = network.to_bits() ^ address.to_bits();
                differing.leading_zeros() >= u32::from(self.bits)
            }
            _ => false,
        };
        is_inside && self.port.is_none_or(|only| only == port)
    }
}

/// Addresses that files are read from where the operator allows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allowed {
    /// Public ones, by https on its own port.
    Public,
    /// Those of a network, by http too.
    Network(Network),
}

impl FromStr for Allowed {
    type Err = String;

    /// `public`, or as a [`Network`].
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "public" => Ok(Self::Public),
            _ => text
                .parse()
                .map(Self::Network)
                .map_err(|why: String| format!("{why}, nor is it public")),
        }
    }
}

impl Allowed {
    fn covers(&self, is_https: bool, address: IpAddr, port: u16) -> bool {
        match self {
            Self::Public => is_https && port == HTTPS_PORT && is_public(address),
            Self::Network(network) => network.covers(address, port),
        }
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
        /// Ports of the API, of the metrics and of engines.
        ours: Vec<u16>,
    },
}

/// What files may be read from.
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

fn is_ours(ours: &[u16], address: IpAddr, port: u16) -> bool {
    ours.contains(&port) && is_local(address)
}

impl Rules {
    /// Why an address is not connected to.
    pub fn refusal(&self, is_https: bool, address: IpAddr, port: u16) -> Option<String> {
        match &self.asker {
            Asker::Operator => self.told(is_https, address, port),
            Asker::Caller { ours } => {
                let why = match self.is_allowed(is_https, address, port) {
                    true if !is_ours(ours, address, port) => return None,
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
        let mut allowed = self.allowed.iter();
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

/// Servers that may be attached.
#[derive(Debug, Clone)]
pub struct Servers {
    /// What the operator allows (`serve --attach-allow`): nothing without his word.
    pub allowed: Vec<Network>,
    /// Ports of the service's own on this machine, never connected to.
    pub ours: Vec<u16>,
}

impl Servers {
    /// As the operator of this service allows.
    ///
    /// # Errors
    /// The catalogue failed.
    pub fn of(app: &App) -> Result<Self, catalog::Error> {
        Ok(Self {
            allowed: app.config.attach_allowed.clone(),
            ours: our_ports(app)?,
        })
    }

    /// Looks a host up, once, and returns where it may be connected to.
    ///
    /// # Errors
    /// [`Kind::Connection`]: it has no address, or one that is not allowed. The text is for the operator.
    pub fn resolve(&self, wanted: &HostPort) -> Result<Vec<SocketAddr>, Error> {
        self.resolve_with(wanted, |host, port| Ok((host, port).to_socket_addrs()?.collect()))
    }

    fn resolve_with(
        &self,
        wanted: &HostPort,
        look_up: impl Fn(&str, u16) -> std::io::Result<Vec<SocketAddr>>,
    ) -> Result<Vec<SocketAddr>, Error> {
        let refused = |why: &str| Error::new(Kind::Connection, "look up server", format!("{wanted} {why}"));
        let found =
            look_up(&wanted.host, wanted.port).map_err(|e| refused("is not known here").because(e))?;
        let found: Vec<SocketAddr> = found
            .into_iter()
            .map(|at| SocketAddr::new(at.ip().to_canonical(), at.port()))
            .collect();
        if found.is_empty() {
            return Err(refused("has no address"));
        }
        if found.len() > ADDRESSES_MAX {
            return Err(refused(&format!("has more than {ADDRESSES_MAX} addresses")));
        }
        for at in &found {
            self.check(wanted, at)?;
        }
        Ok(found)
    }

    /// Whether a host may be connected to there.
    ///
    /// # Errors
    /// As [`Servers::resolve`].
    pub fn check(&self, wanted: &HostPort, at: &SocketAddr) -> Result<(), Error> {
        match self.refusal(at) {
            None => Ok(()),
            Some(why) => {
                let context = format!("{wanted} leads to {at}, {why}");
                Err(Error::new(Kind::Connection, "look up server", context))
            }
        }
    }

    fn refusal(&self, at: &SocketAddr) -> Option<&'static str> {
        if !self
            .allowed
            .iter()
            .any(|network| network.covers(at.ip(), at.port()))
        {
            return Some("which --attach-allow does not allow");
        }
        is_ours(&self.ours, at.ip(), at.port()).then_some("which is a port of the service's own")
    }
}

/// Ports of this machine that answer for the service.
///
/// # Errors
/// The catalogue failed.
pub fn our_ports(app: &App) -> Result<Vec<u16>, catalog::Error> {
    let (generations, living) = app
        .catalog
        .read(|tx| Ok::<_, catalog::Error>((generation::all_existing(tx)?, instances::all_living(tx)?)))?;
    let of_nodes = generations
        .iter()
        .flat_map(|generation| &generation.nodes)
        .flat_map(|node| [Some(node.port), node.bus_port, node.side_port])
        .flatten();
    let managed = || living.iter().filter(|instance| instance.attachment.is_none());
    let of_sentinels = managed().flat_map(|instance| &instance.sentinels);
    let own = app.listens_on.get().copied();
    let of_metrics = app.config.metrics_listen.map(|at| at.port());
    let all = of_nodes
        .chain(managed().map(|instance| instance.port))
        .chain(of_sentinels.map(|sentinel| sentinel.port))
        .chain(own)
        .chain(of_metrics)
        .chain(app.config.engine_ports.clone());
    Ok(all.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

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

    fn servers(allowed: &[&str]) -> Servers {
        Servers {
            allowed: allowed.iter().map(|text| text.parse().unwrap()).collect(),
            ours: vec![8635, 21000],
        }
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// Sixty ways to write an address that leads home: none is let through by a network that does not hold it.
    #[test]
    fn no_spelling_of_a_forbidden_address_is_let_through() {
        let hosts = [
            "127.0.0.1",
            "127.1",
            "127.0.1",
            "127.255.255.254",
            "127.100.1.1",
            "0",
            "0.0.0.0",
            "0x7f000001",
            "0x7f.0.0.1",
            "0x7F.0x0.0x0.0x1",
            "0177.0.0.1",
            "0177.0.0.01",
            "017700000001",
            "2130706433",
            "00000177.0.0.1",
            "127.0.0.1.",
            "localhost",
            "LOCALHOST",
            "LocalHost",
            "localhost.",
            "::1",
            "0:0:0:0:0:0:0:1",
            "0000:0000:0000:0000:0000:0000:0000:0001",
            "::",
            "0::0",
            "::ffff:127.0.0.1",
            "::FFFF:127.0.0.1",
            "::ffff:7f00:1",
            "0:0:0:0:0:ffff:7f00:0001",
            "::ffff:0:127.0.0.1",
            "::127.0.0.1",
            "::7f00:1",
            "64:ff9b::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::7f00:1",
            "2002:7f00:1::",
            "2002:7f00:0001::1",
            "169.254.169.254",
            "0xa9fea9fe",
            "2852039166",
            "0251.0376.0251.0376",
            "169.254.43518",
            "::ffff:169.254.169.254",
            "::ffff:a9fe:a9fe",
            "2002:a9fe:a9fe::",
            "fd00:ec2::254",
            "fe80::1",
            "fe80::a9fe:a9fe",
            "192.168.0.1",
            "192.168.1",
            "0xc0a80001",
            "3232235521",
            "0300.0250.0.1",
            "::ffff:192.168.0.1",
            "172.16.0.1",
            "0254.020.0.1",
            "100.64.0.1",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "ff02::1",
            "fc00::1",
        ];
        assert!(hosts.len() >= 60);
        for host in hosts {
            for allowed in [&[][..], &["10.0.0.0/8", "[2001:db8::]/32"]] {
                let wanted = HostPort::new(host, 6379);
                assert!(servers(allowed).resolve(&wanted).is_err(), "{host}");
            }
            // Nor, where everything is allowed, a port of the service's own on this machine.
            let wanted = HostPort::new(host, 8635);
            if let Ok(found) = servers(&["0.0.0.0/0", "[::]/0"]).resolve(&wanted) {
                assert!(found.iter().all(|at| !is_local(at.ip())), "{host}: {found:?}");
            }
        }
    }

    #[test]
    fn a_name_with_one_address_that_is_not_allowed_leads_nowhere() {
        let resolve = |found: &[&str]| {
            let found: Vec<SocketAddr> = found.iter().map(|text| at(text)).collect();
            servers(&["10.0.0.0/8:6379", "127.0.0.0/8"])
                .resolve_with(&HostPort::new("name", 6379), |_, _| Ok(found.clone()))
        };
        assert_eq!(resolve(&["10.0.0.1:6379"]).unwrap(), [at("10.0.0.1:6379")]);
        assert!(resolve(&["10.0.0.1:6379", "169.254.169.254:6379"]).is_err());
        assert!(resolve(&["10.0.0.1:6380"]).is_err(), "another port");
        assert!(resolve(&["127.0.0.1:8635"]).is_err(), "the API");
        assert!(resolve(&["127.0.0.1:21000"]).is_err(), "an engine");
        assert!(resolve(&["[::ffff:127.0.0.1]:8635"]).is_err(), "the API, as IPv6");
        assert!(resolve(&[]).is_err());
        assert!(resolve(&["10.0.0.1:6379"; ADDRESSES_MAX]).is_ok());
        assert!(resolve(&["10.0.0.1:6379"; ADDRESSES_MAX + 1]).is_err());
        // An IPv4 address in IPv6 clothes is what it is.
        assert_eq!(
            resolve(&["[::ffff:10.0.0.1]:6379"]).unwrap(),
            [at("10.0.0.1:6379")]
        );
    }

    /// What is connected to is what the look-up said that was looked at: there is no second one.
    #[test]
    fn a_name_that_changes_its_mind_is_asked_once() {
        let asked = std::cell::Cell::new(0);
        let found = servers(&["10.0.0.0/8"]).resolve_with(&HostPort::new("rebinding", 6379), |_, _| {
            asked.set(asked.get() + 1);
            Ok(vec![match asked.get() {
                1 => at("10.0.0.1:6379"),
                _ => at("127.0.0.1:6379"),
            }])
        });
        assert_eq!((found.unwrap(), asked.get()), (vec![at("10.0.0.1:6379")], 1));
    }
}
