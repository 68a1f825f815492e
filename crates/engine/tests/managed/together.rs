//! Nodes of clusters: standbys, and the switch of several at once.

use std::net::TcpListener;
use std::time::Duration;

use engine::cluster::{Peer, Seat};
use engine::process::{self, EngineSpec};
use engine::switch::{self, Door, Place};
use engine::verify::{VerifyLevel, verify};
use engine::{Control, Kind};

use crate::harness::{Home, client, data, digest, free_port, run, side_load, text, wait_until};

fn node_spec(home: &Home, name: &str) -> EngineSpec {
    let mut spec = home.spec(name);
    let (port, bus_port) = (free_port(), free_port());
    spec.cluster = Some(Seat {
        address: "127.0.0.1".to_owned(),
        port,
        bus_port,
        generation: "g1".to_owned(),
        peers: vec![Peer {
            shard: 0,
            port,
            bus_port,
            is_first: true,
        }],
    });
    spec
}

#[test]
fn nothing_expires_in_a_standby_of_a_cluster_and_all_of_it_is_compared_before_it_is_promoted() {
    let home = Home::new();
    let (bytes, before) = data(&home, |node| {
        run(node, "DEBUG SET-ACTIVE-EXPIRE 0");
        for number in 0..500 {
            run(node, &format!("SET key:{number} value"));
            run(node, &format!("SET due:{number} value PX 1"));
        }
        run(node, "RPUSH list a b c");
        run(node, "SET far v PXAT 4102444800000");
    });
    for level in [VerifyLevel::Sample, VerifyLevel::Full] {
        let spec = node_spec(&home, &format!("{level:?}"));
        let (engine, expectation) = side_load(&spec, &bytes);
        let mut node = engine.control().unwrap();
        assert_eq!(digest(&engine), before);
        let seen = verify(&engine, &expectation, level, &Control::new(None)).unwrap();
        assert_eq!((seen.keys_loaded, expectation.expired_keys), (1002, 500));
        engine.promote(0).unwrap();
        engine.promote(0).unwrap();
        let nodes = text(&mut node, "CLUSTER NODES");
        assert_eq!(nodes.lines().count(), 1, "{nodes}");
        assert!(
            nodes.contains("myself,master") && nodes.contains(" 0-16383"),
            "{nodes}"
        );
        assert_eq!(
            node.config_get("cluster-allow-reads-when-down").unwrap().unwrap(),
            "no"
        );
        wait_until("the end of what is due", || {
            run(&mut node, "DBSIZE").int() == Some(502)
        });
        // The same cluster after its process was killed.
        engine.kill().unwrap();
        let again = process::start(&spec).unwrap();
        again.wait_loaded(&Control::new(None)).unwrap();
        let nodes = text(&mut again.control().unwrap(), "CLUSTER NODES");
        assert!(
            nodes.contains("myself,master") && nodes.contains(" 0-16383"),
            "{nodes}"
        );
        again.kill().unwrap();
    }
}

#[test]
fn what_differs_in_a_standby_of_a_cluster_is_found() {
    let home = Home::new();
    let (bytes, _) = data(&home, |node| {
        for number in 0..50 {
            run(node, &format!("SET key:{number} value"));
        }
    });
    let (engine, mut expectation) = side_load(&node_spec(&home, "g1"), &bytes);
    let census = expectation.report.census.dbs.get_mut(&0).unwrap();
    census.digest = Default::default();
    let control = Control::new(None);
    verify(&engine, &expectation, VerifyLevel::Sample, &control).unwrap();
    let error = verify(&engine, &expectation, VerifyLevel::Full, &control).unwrap_err();
    assert_eq!(error.kind, Kind::Mismatch, "{error}");
}

/// Two generations of two nodes; the first serves.
struct Generations {
    _home: Home,
    old: Vec<Place>,
    new: Vec<Place>,
}

impl Generations {
    fn new() -> Self {
        let home = Home::new();
        let ports = [free_port(), free_port()];
        let start = |name: &str, serves: bool| -> Vec<Place> {
            let start = |port: u16| {
                let mut spec = home.spec(&format!("{name}-{port}"));
                spec.port = if serves { port } else { 0 };
                let engine = process::start(&spec).unwrap();
                run(&mut engine.control().unwrap(), &format!("SET who {name}"));
                let door = Door::Port(port);
                Place { engine, door }
            };
            ports.into_iter().map(start).collect()
        };
        let (old, new) = (start("old", true), start("new", false));
        Self {
            _home: home,
            old,
            new,
        }
    }

    fn serving(&self) -> Vec<String> {
        let who = |place: &Place| text(&mut client(place.door.port().unwrap()).unwrap(), "GET who");
        self.old.iter().map(who).collect()
    }
}

#[test]
fn all_nodes_are_switched_and_switched_back_and_take_writes_at_once() {
    let both = Generations::new();
    let done = switch::run_together(&both.old, &both.new).unwrap();
    assert!(done.gap.is_some());
    for place in &both.new {
        run(&mut client(place.door.port().unwrap()).unwrap(), "SET written v");
    }
    assert_eq!(both.serving(), ["new", "new"]);
    assert!(switch::serves(&both.new).unwrap() && !switch::serves(&both.old).unwrap());
    let again = switch::run_together(&both.old, &both.new).unwrap();
    assert_eq!(again.gap, None, "an earlier run did it");
    switch::run_together(&both.new, &both.old).unwrap();
    assert_eq!(both.serving(), ["old", "old"]);
}

#[test]
fn a_port_that_a_stranger_has_is_found_before_any_node_gives_up_its_own() {
    let both = Generations::new();
    both.old[1].engine.kill().unwrap();
    // Somebody's outgoing connection may have the port for a moment.
    let take = || {
        let taken = TcpListener::bind(("127.0.0.1", both.old[1].door.port().unwrap())).ok();
        taken.or_else(|| {
            std::thread::sleep(Duration::from_millis(50));
            None
        })
    };
    let stranger = (0..100).find_map(|_| take()).unwrap();
    let mut kept = client(both.old[0].door.port().unwrap()).unwrap();
    let error = switch::run_together(&both.old, &both.new).unwrap_err();
    assert_eq!(error.kind, Kind::PortTaken, "{error}");
    assert_eq!(text(&mut kept, "GET who"), "old", "its client was not ended");
    drop(stranger);
    // A dead node has nothing to give up.
    switch::run_together(&both.old, &both.new).unwrap();
    assert_eq!(both.serving(), ["new", "new"]);
}

#[test]
fn a_stranger_who_comes_in_between_makes_all_nodes_go_back() {
    let both = Generations::new();
    // Its socket is open, so the check before lets it pass; and it cannot open the port once the others have.
    both.new[1].engine.set_port(free_port()).unwrap();
    both.new[1]
        .engine
        .control()
        .unwrap()
        .config_set("bind", "127.0.0.2")
        .unwrap();
    let stranger = TcpListener::bind(("127.0.0.2", both.new[1].door.port().unwrap())).unwrap();
    let error = switch::run_together(&both.old, &both.new).unwrap_err();
    assert_eq!(error.kind, Kind::PortTaken, "{error}");
    assert_eq!(both.serving(), ["old", "old"]);
    assert_eq!(both.new[0].engine.current_port().unwrap(), 0);
    drop(stranger);
}
