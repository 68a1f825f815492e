//! Networks of a test's own: places with one address each, and between them a router, where this process is. What the router
//! passes on can be cut, in either direction: dropped in silence, as behind a cable that was pulled, or refused.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Tells the test that it was started once more, in a network of its own, and in which one it was before.
const APART: &str = "CACHEKEEP_TEST_APART";
/// All places have addresses of it.
pub const ALL: &str = "10.88.0.0/16";
/// Whether this machine passes on what is for others.
const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
/// Of the rules that cut: before the kernel's own, behind the one for what is the router's.
const PREFERENCE: &str = "100";

/// What came of the attempt to have networks.
pub enum Apart {
    /// This is the router's.
    Here(Networks),
    /// The test was run where there are some, and passed.
    Elsewhere,
    /// Why there can be none.
    Nowhere(String),
}

/// See the module.
pub struct Networks {
    places: Vec<Place>,
    cuts: u32,
}

struct Place {
    name: &'static str,
    address: Ipv4Addr,
    /// Keeps the network.
    keeper: Child,
}

/// What becomes of what is sent through a cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Nobody hears of it again.
    Silent,
    /// The router tells its sender.
    Refused,
}

impl Networks {
    /// With these places. `test`: the caller's full name, as the test program lists it.
    pub fn make(test: &str, places: &[&'static str]) -> Apart {
        let ours = network("self");
        if let Some(outer) = std::env::var_os(APART) {
            // What follows would change the machine's own network.
            assert_ne!(outer, ours, "{APART} is for the test itself to set");
            return Apart::Here(Self::connected(places));
        }
        let cable = "ip link add out type veth peer name in";
        // One place alone is reached without a router.
        let probe = match places.len() {
            0 | 1 => cable.to_owned(),
            _ => format!("{cable} && echo 1 > {FORWARD} && ip rule add from 10.88.0.2 blackhole"),
        };
        // Root has its other users in a network alone, and none in a user namespace.
        let ways: [&[&str]; 2] = [&["--net"], &["--user", "--map-root-user", "--net"]];
        let mut why = String::new();
        let mut possible = None;
        for way in ways {
            match Command::new("unshare")
                .args(way)
                .args(["sh", "-c", &probe])
                .output()
            {
                Ok(output) if output.status.success() => {
                    possible = Some(way);
                    break;
                }
                Ok(output) => String::from_utf8_lossy(&output.stderr)
                    .trim()
                    .clone_into(&mut why),
                Err(error) => why = format!("unshare: {error}"),
            }
        }
        let Some(way) = possible else {
            return Apart::Nowhere(why);
        };
        let mut run = Command::new("unshare")
            .args(way)
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(APART, ours)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // As it comes: the long form of a test tells of its turns.
        let mut has_passed = false;
        for line in BufReader::new(run.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            // A name that no test has would run none and succeed.
            has_passed |= line.contains("1 passed");
            println!("{line}");
        }
        assert!(
            run.wait().unwrap().success() && has_passed,
            "{test} failed in networks of its own"
        );
        Apart::Elsewhere
    }

    fn connected(names: &[&'static str]) -> Self {
        ip(&["link", "set", "lo", "up"]);
        if names.len() > 1 {
            std::fs::write(FORWARD, "1").unwrap();
        }
        let mut networks = Self {
            places: Vec::new(),
            cuts: 0,
        };
        let own = network("self");
        for (number, name) in (0u8..).zip(names) {
            let keeper = Command::new("unshare")
                .args(["--net", "setpriv", "--pdeathsig", "KILL", "sleep", "86400"])
                .stdin(Stdio::null())
                .spawn()
                .unwrap();
            let (pid, since) = (keeper.id().to_string(), Instant::now());
            networks.places.push(Place {
                name,
                address: Ipv4Addr::new(10, 88, number, 2),
                keeper,
            });
            while network(&pid) == own {
                assert!(since.elapsed() < Duration::from_secs(10), "no network for {name}");
                std::thread::sleep(Duration::from_millis(5));
            }
            let (cable, router) = (format!("to-{number}"), format!("10.88.{number}.1"));
            ip(&[
                "link", "add", &cable, "type", "veth", "peer", "name", "in", "netns", &pid,
            ]);
            ip(&["address", "add", &format!("{router}/24"), "dev", &cable]);
            ip(&["link", "set", &cable, "up"]);
            networks.inside(name, || {
                ip(&["link", "set", "lo", "up"]);
                ip(&["address", "add", &format!("10.88.{number}.2/24"), "dev", "in"]);
                ip(&["link", "set", "in", "up"]);
                ip(&["route", "add", "default", "via", &router]);
            });
        }
        networks
    }

    fn place(&self, name: &str) -> &Place {
        let found = self.places.iter().find(|place| place.name == name);
        found.unwrap_or_else(|| panic!("no place is called {name}"))
    }

    /// The address of a place.
    pub fn at(&self, name: &str) -> Ipv4Addr {
        self.place(name).address
    }

    /// Does something in a place. What it starts, threads and processes, stays there.
    pub fn inside<T: Send>(&self, name: &str, act: impl FnOnce() -> T + Send) -> T {
        let there = File::open(format!("/proc/{}/ns/net", self.place(name).keeper.id())).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                move_into_link_name_space(there.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                act()
            });
            thread.join().unwrap()
        })
    }

    /// From now on nothing gets from one place to another, in this direction.
    pub fn cut(&mut self, from: &str, to: &str, cut: Cut) {
        let (from, to) = (self.at(from).to_string(), self.at(to).to_string());
        let kind = match cut {
            Cut::Silent => "blackhole",
            Cut::Refused => "unreachable",
        };
        ip(&["rule", "add", "pref", PREFERENCE, "from", &from, "to", &to, kind]);
        self.cuts += 1;
    }

    /// Everything gets through again.
    pub fn heal(&mut self) {
        for _ in 0..std::mem::take(&mut self.cuts) {
            ip(&["rule", "del", "pref", PREFERENCE]);
        }
    }
}

impl Drop for Networks {
    fn drop(&mut self) {
        for place in &mut self.places {
            let _already_gone = place.keeper.kill();
            let _reaped = place.keeper.wait();
        }
    }
}

/// Which network a process is in.
fn network(process: &str) -> OsString {
    let link = std::fs::read_link(format!("/proc/{process}/ns/net"));
    link.unwrap().into_os_string()
}

fn ip(words: &[&str]) {
    let output = Command::new("ip").args(words).output().unwrap();
    assert!(
        output.status.success(),
        "ip {words:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
