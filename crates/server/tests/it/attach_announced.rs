//! Servers in a network of their own that say where they are found: nothing leads to where they listen, and others are forwarded
//! to them by other addresses and ports, as where a network translates addresses.

use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;
use xtask::foreign::{Access, Deployment, Form, Node};

use crate::attach::attach;
use crate::attach_matrix::{fill, program};
use crate::networks::{self, Apart, Networks};
use crate::replay::is_long;
use crate::service::Service;

/// Where the servers are, in a network that nothing but one cable leads to.
const SERVERS: &str = "servers";

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
        &[SERVERS],
    ) {
        Apart::Here(networks) => networks,
        Apart::Elsewhere => return,
        Apart::Nowhere(why) => {
            eprintln!("\nNOT SHOWN: announced addresses in networks of their own; {why}\n");
            return;
        }
    };
    let service = Service::start_with(&["--attach-allow", networks::ALL], &[]);
    let caller = service.caller();
    let announced = networks.at(SERVERS);
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
                Deployment::start_behind(Some(announced), path, form, Access::Open, settings).unwrap()
            };
            let foreign = networks.inside(SERVERS, || start(&program));
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
                "{label}: {} nodes, captured and restored at {announced}",
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
                // A node that has not heard of all the others yet still leads there.
                let since = Instant::now();
                loop {
                    let record = caller.wait_end(id, "backups", &caller.start_backup(id, "of nothing"));
                    if record["status"] == "failed" {
                        break;
                    }
                    assert!(since.elapsed() < Duration::from_secs(30), "{label}: {record}");
                }
            }
        }
    }
}
