//! A long restore into a cluster of somebody else's, through everything at once: the service is killed again and again, a shard fails over,
//! slots move, and the network is gone for a while. The counts are exact and the data equal afterwards, and the record says how often it
//! was gone on with.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use xtask::cut_link::CutLink;
use xtask::fill::{self, Random};
use xtask::foreign::{Access, Deployment, Form};
use xtask::plain_cluster::PlainCluster;
use xtask::resp::{Reply, Target};

use crate::checker::Catalogue;
use crate::world::{Run, World, text};

/// Keys, kills, the longest time between two of them, and of the cut.
struct Scale {
    keys: u64,
    kills: u64,
    between: Duration,
    cut: Duration,
}

fn scale() -> Scale {
    match crate::long() {
        true => Scale {
            keys: 2_000_000,
            kills: 50,
            between: Duration::from_secs(6),
            cut: Duration::from_secs(10),
        },
        false => Scale {
            keys: 20_000,
            kills: 5,
            between: Duration::from_millis(1800),
            cut: Duration::from_secs(3),
        },
    }
}

/// Three primaries with a replica each, each node behind a link of its own, by which it is known to all.
struct Reached {
    cluster: PlainCluster,
    links: Vec<CutLink>,
}

impl Reached {
    fn new() -> Self {
        let cluster = PlainCluster::start(3, 1, &[]).unwrap();
        let address = |node| SocketAddr::from(([127, 0, 0, 1], cluster.port(node)));
        let links: Vec<_> = (0..6).map(|node| CutLink::to(address(node)).unwrap()).collect();
        let reached = Self { cluster, links };
        (0..6).for_each(|node| reached.announce(node));
        // Who learns of another port of its primary connects anew.
        wait_for("replicas in sync", Duration::from_secs(60), || {
            (3..6).all(|node| {
                reached
                    .says(node, &["INFO", "replication"])
                    .contains("master_link_status:up")
            })
        });
        reached
    }

    fn announce(&self, node: usize) {
        let port = self.links[node].port().to_string();
        let wanted = ["CONFIG", "SET", "cluster-announce-port", &port];
        wait_for("a node that starts", Duration::from_secs(30), || {
            let link = self.cluster.connect(node);
            link.is_ok_and(|mut link| link.ask(&wanted).is_ok())
        });
        wait_for("all know where a node is", Duration::from_secs(60), || {
            (0..6).all(|other| {
                self.says(other, &["CLUSTER", "NODES"])
                    .contains(&format!(":{port}@"))
            })
        });
    }

    /// Nothing, where the node does not answer.
    fn says(&self, node: usize, words: &[&str]) -> String {
        let told = self
            .cluster
            .connect(node)
            .and_then(|mut link| Ok(link.ask(words)?));
        let text = told.ok().and_then(|reply| reply.text().map(str::to_owned));
        text.unwrap_or_default()
    }

    /// Moves slots of the first shard to the third, as an operator does.
    fn reshard(&self, slots: std::ops::Range<u32>) {
        for slot in slots {
            self.cluster.move_slot(slot, 0, 2).unwrap();
        }
    }
}

fn wait_for(what: &str, limit: Duration, mut is_so: impl FnMut() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < limit, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn attach(world: &World, name: &str, port: u16) -> String {
    let wish = json!({"name": name, "addresses": [format!("127.0.0.1:{port}")]});
    let made = world.call("POST", "/ck/v1/{project}/attachments", Some(&wish));
    text(&made, "instance_id").unwrap()
}

/// How often the journal says that it was gone on with. `None`: there is none.
fn resumed(world: &World, restore: &str) -> Option<u64> {
    let path = world.data().join("replays").join(restore).join("forth");
    let journal: Value = serde_json::from_slice(&std::fs::read(path).ok()?).unwrap();
    journal["resumed"].as_u64()
}

#[test]
fn a_restore_into_a_cluster_goes_on_through_kills_a_failover_a_resharding_and_a_cut_with_exact_counts() {
    let scale = scale();
    let seed = std::env::var("CACHEKEEP_TEST_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(fill::now_ms);
    println!("seed {seed}: CACHEKEEP_TEST_SEED={seed} chooses the same moments");
    let mut random = Random::new(seed, 0);
    let settings = [("enable-debug-command", "local")];
    let program = Path::new("redis-server");
    let source = Deployment::start(program, Form::Single, Access::Open, &settings).unwrap();
    let mixed = fill::Options {
        keys: scale.keys,
        dbs: 1,
        functions: false,
        ..fill::Options::default()
    };
    fill::fill(&Target::local(source.nodes[0].port, None), &mixed).unwrap();
    let digest = source.digest().unwrap();
    let mut reached = Reached::new();
    let others = 300;
    for node in 0..3 {
        // In the slots that the node has.
        let mut link = reached.cluster.connect(node).unwrap();
        let mut made = 0;
        for number in 0.. {
            let key = format!("other:{number}");
            if made == others / 3 {
                break;
            }
            made += u64::from(!matches!(
                link.call(&["SET", &key, "old"]).unwrap(),
                Reply::Refused(_)
            ));
        }
        let confirmed = link.ask(&["WAIT", "1", "10000"]).unwrap();
        assert_eq!(confirmed, Reply::Number(1), "its replica has them");
    }
    let mut world = World::start(&["--attach-allow", "127.0.0.1"]);
    let from = attach(&world, "source", source.nodes[0].port);
    let to = attach(&world, "target", reached.links[0].port());
    let made = world.call(
        "POST",
        &format!("/v2/{{project}}/instances/{from}/backups"),
        Some(&json!({})),
    );
    let backup = text(&made, "backup_id").unwrap();
    wait_for("the backup", Duration::from_secs(300), || {
        Catalogue::open(&world).backup(&backup).status == "succeeded"
    });

    // So slow that it does not end before the last kill.
    let pace = scale.keys / (scale.between.as_millis() as u64 * scale.kills / 1000);
    let replay = json!({"max_ops": pace, "patience": 120});
    let wish = json!({"backup_id": backup, "source_instance_id": from, "replay": replay});
    let began = Instant::now();
    let made = world.call(
        "POST",
        &format!("/ck/v1/{{project}}/instances/{to}/restores"),
        Some(&wish),
    );
    let restore = text(&made, "restore_id").unwrap();
    wait_for("the first keys", Duration::from_secs(60), || {
        resumed(&world, &restore).is_some()
    });
    let mut last_resumed = 0;
    for kill in 0..scale.kills {
        let least = scale.between.as_millis() as u64 / 6;
        std::thread::sleep(Duration::from_millis(
            random.between(least, scale.between.as_millis() as u64),
        ));
        if kill == scale.kills / 4 {
            println!("{:?}: the second shard fails over", began.elapsed());
            reached.cluster.kill(1);
        }
        if kill == scale.kills / 2 {
            // It has nothing any more: as the primary that it was it would take its replica's data away.
            wait_for("the failover", Duration::from_secs(60), || {
                reached.says(4, &["INFO", "replication"]).contains("role:master")
            });
            reached.cluster.run(1).unwrap();
            reached.announce(1);
            println!("{:?}: 200 slots move", began.elapsed());
            reached.reshard(0..200);
        }
        if kill == scale.kills * 3 / 4 {
            println!("{:?}: the network is gone for {:?}", began.elapsed(), scale.cut);
            reached.links.iter().for_each(CutLink::cut);
            std::thread::sleep(scale.cut);
            reached.links.iter().for_each(CutLink::mend);
        }
        assert!(world.ended().is_none());
        let count = |sql: &str| Catalogue::open(&world).count(sql);
        assert_eq!(
            count("SELECT count(*) FROM restore WHERE status = 'running'"),
            1,
            "kill {kill}: {:?}",
            Catalogue::open(&world).restores(&to)
        );
        world.kill();
        let resumed = resumed(&world, &restore).unwrap();
        assert!(resumed >= last_resumed, "kill {kill}");
        last_resumed = resumed;
        world.run(&Run::default());
    }
    wait_for("the end", Duration::from_secs(600), || {
        Catalogue::open(&world).count("SELECT count(*) FROM job WHERE state <> 'done'") == 0
    });
    let path = format!("/ck/v1/{{project}}/instances/{to}/restores/{restore}");
    let record = world.call("GET", &path, None);
    let ext = &record["ext"];
    assert_eq!(record["status"], "succeed", "{record}");
    let counts = [
        "applied",
        "skipped",
        "conflicting",
        "expired",
        "failed",
        "removed",
    ]
    .map(|kind| ext[format!("keys_{kind}")].as_u64().unwrap());
    assert_eq!(counts, [scale.keys, 0, 0, 0, 0, others], "{record}");
    let resumed = ext["resumed"].as_u64().unwrap();
    assert!(
        resumed > last_resumed && resumed > scale.kills / 4,
        "{last_resumed}, {resumed}"
    );
    assert_eq!(reached.cluster.serving(), [0, 2, 4], "a replica has taken over");
    assert_eq!(reached.cluster.keys().unwrap(), scale.keys as i64);
    assert_eq!(reached.cluster.digest().unwrap(), digest);
    println!(
        "{} keys in {:?}, {} kills: {counts:?}, resumed {resumed} times",
        scale.keys,
        began.elapsed(),
        scale.kills
    );
}
