//! Servers in a network of their own that say where they are found: nothing leads to where they listen, and others are forwarded
//! to them by other addresses and ports, as where a network translates addresses.

use std::fs::File;
use std::net::{Ipv4Addr, TcpStream};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::json;
use xtask::foreign::{Access, Deployment, Form, Node};

use crate::attach::attach;
use crate::attach_matrix::{fill, program};
use crate::replay::is_long;
use crate::service::Service;

/// Tells the test that it was started once more, in a network of its own.
const APART: &str = "CACHEKEEP_TEST_APART";
/// Between the two networks: the service's end, and the end at which the servers say that they are.
const OUTSIDE: &str = "10.88.0.1/24";
const ANNOUNCED: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 2);

/// What came of the attempt to have two networks.
enum Apart {
    /// This is the one of the service.
    Here(Networks),
    /// The test was run where there are two, and passed.
    Elsewhere,
    /// Why there can be none.
    Nowhere(String),
}

/// The network of the service, in which this process is, and that of the servers: one cable between them, and no route.
struct Networks {
    /// Holds the servers' network open.
    servers: Child,
}

impl Networks {
    /// `test`: the caller's full name, as the test program lists it.
    fn make(test: &str) -> Apart {
        if std::env::var_os(APART).is_some() {
            return Apart::Here(Self::connected());
        }
        let own = ["--user", "--map-root-user", "--net"];
        let probe = ["ip", "link", "add", "out", "type", "veth", "peer", "name", "in"];
        match Command::new("unshare").args(own).args(probe).output() {
            Ok(output) if output.status.success() => {}
            Ok(output) => return Apart::Nowhere(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
            Err(error) => return Apart::Nowhere(format!("unshare: {error}")),
        }
        let output = Command::new("unshare")
            .args(own)
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(APART, "1")
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        print!("{told}{}", String::from_utf8_lossy(&output.stderr));
        // A name that no test has would run none and succeed.
        assert!(
            output.status.success() && told.contains("1 passed"),
            "{test} failed in networks of its own"
        );
        Apart::Elsewhere
    }

    fn connected() -> Self {
        ip(&["link", "set", "lo", "up"]);
        let servers = Command::new("unshare")
            .args(["--net", "sleep", "3600"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let networks = Self { servers };
        let network = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net")).unwrap();
        let (own, pid, since) = (network("self"), networks.servers.id().to_string(), Instant::now());
        while network(&pid) == own {
            assert!(since.elapsed() < Duration::from_secs(10), "no second network");
            std::thread::sleep(Duration::from_millis(5));
        }
        ip(&[
            "link", "add", "out", "type", "veth", "peer", "name", "in", "netns", &pid,
        ]);
        ip(&["address", "add", OUTSIDE, "dev", "out"]);
        ip(&["link", "set", "out", "up"]);
        networks.among_servers(|| {
            ip(&["link", "set", "lo", "up"]);
            ip(&["address", "add", &format!("{ANNOUNCED}/24"), "dev", "in"]);
            ip(&["link", "set", "in", "up"]);
        });
        networks
    }

    /// Does something in the network of the servers. What it starts, threads and processes, stays there.
    fn among_servers<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let there = File::open(format!("/proc/{}/ns/net", self.servers.id())).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                move_into_link_name_space(there.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                act()
            });
            thread.join().unwrap()
        })
    }
}

impl Drop for Networks {
    fn drop(&mut self) {
        let _already_gone = self.servers.kill();
        let _reaped = self.servers.wait();
    }
}

fn ip(words: &[&str]) {
    let output = Command::new("ip").args(words).output().unwrap();
    assert!(
        output.status.success(),
        "ip {words:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// What is attached of a deployment: a node, of Sentinels all.
fn addresses(foreign: &Deployment) -> Vec<String> {
    let named: Vec<&Node> = match foreign.sentinels.as_slice() {
        [] => foreign.nodes.iter().take(1).collect(),
        sentinels => sentinels.iter().collect(),
    };
    named.iter().map(|node| node.told().to_string()).collect()
}

#[test]
fn servers_behind_translated_addresses_are_reached_where_they_say_that_they_are() {
    let networks = match Networks::make(
        "attach_announced::servers_behind_translated_addresses_are_reached_where_they_say_that_they_are",
    ) {
        Apart::Here(networks) => networks,
        Apart::Elsewhere => return,
        Apart::Nowhere(why) => {
            eprintln!("\nNOT SHOWN: announced addresses in networks of their own; {why}\n");
            return;
        }
    };
    let service = Service::start_with(&["--attach-allow", "10.88.0.0/24"], &[]);
    let caller = service.caller();
    let engines = if is_long() {
        &["redis-7.0", "redis-6.2", "valkey-8.1"][..]
    } else {
        &["redis-7.0"]
    };
    for engine in engines {
        let Some(program) = program(engine) else {
            continue;
        };
        let settings = match *engine {
            "redis-6.2" => &[][..],
            _ => &[("enable-debug-command", "local")],
        };
        for form in [Form::Single, Form::Watched, Form::Cluster] {
            let label = format!("{engine}, {form:?}");
            let start = |path: &Path| {
                Deployment::start_behind(Some(ANNOUNCED), path, form, Access::Open, settings).unwrap()
            };
            let foreign = networks.among_servers(|| start(&program));
            let first = &foreign.nodes[0];
            assert!(
                TcpStream::connect((Ipv4Addr::LOCALHOST, first.port)).is_err(),
                "{label}: nothing leads to where it listens"
            );
            fill(&foreign, 1);
            let digest = foreign.digest().unwrap();
            let name = format!("at-{}", first.port);
            let made = attach(&caller, &json!({"name": name, "addresses": addresses(&foreign)}));
            let seen = made["shards"].to_string();
            for node in &foreign.nodes {
                assert!(
                    seen.contains(&node.told().to_string()),
                    "{label}: {} is missing in {seen}",
                    node.told()
                );
            }
            let id = made["instance_id"].as_str().unwrap();
            let backup = caller.make_backup(id, "from afar");

            for node in foreign.primaries().unwrap() {
                node.ask(&["FLUSHALL"]).unwrap();
            }
            fill(&foreign, 2);
            assert_ne!(foreign.digest().unwrap(), digest, "{label}");
            let path = format!("/instances/{id}/restores");
            let started = caller
                .ck("POST", &path, Some(&json!({"backup_id": backup})))
                .expect(200)
                .json();
            let ended = caller.wait_end(id, "restores", started["restore_id"].as_str().unwrap());
            assert_eq!(ended["status"], "succeed", "{label}: {ended}");
            assert_eq!(foreign.digest().unwrap(), digest, "{label}");
            println!(
                "{label}: {} nodes, captured and restored at {ANNOUNCED}",
                foreign.nodes.len()
            );

            if form == Form::Cluster {
                // Where they say nothing of an address that others reach, they name one that is of no use to us, and not allowed.
                for node in &foreign.nodes {
                    node.ask(&["CONFIG", "SET", "cluster-announce-ip", "127.0.0.1"])
                        .unwrap();
                }
                let since = Instant::now();
                let refused = loop {
                    let wish = json!({"addresses": addresses(&foreign), "name": "again", "dry_run": true});
                    let answer = caller.ck("POST", "/attachments", Some(&wish));
                    if answer.status != 200 {
                        break answer;
                    }
                    // Word of it has to go round first.
                    assert!(since.elapsed() < Duration::from_secs(30), "{}", answer.json());
                    std::thread::sleep(Duration::from_millis(100));
                };
                assert_eq!(refused.status, 400, "{label}");
                let map = foreign.nodes.iter().map(|node| {
                    (
                        format!("127.0.0.1:{}", node.told().port()),
                        json!(node.told().to_string()),
                    )
                });
                let map: serde_json::Map<_, _> = map.collect();
                let wish = json!({"addresses": addresses(&foreign), "name": "again", "address_map": map, "dry_run": true});
                let told = attach(&caller, &wish)["shards"].to_string();
                for node in &foreign.nodes {
                    let named = format!("127.0.0.1:{}", node.told().port());
                    let is_told = told.contains(&named) || told.contains(&node.told().to_string());
                    assert!(is_told, "{label}: {named} in {told}");
                }
                let record = caller.wait_end(id, "backups", &caller.start_backup(id, "of nothing"));
                assert_eq!(record["status"], "failed", "{label}: {record}");
            }
        }
    }
}
