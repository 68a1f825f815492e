//! Three nodes, the catalogue, the store, a source and a target, each in a network of its own, and cables between them that are
//! pulled at random moments: in both directions or one, in silence or not, for less or more than a lease.
//!
//! What is judged is read without the service: rows by psql, objects by plain HTTP, keys by the engines' protocol.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use xtask::fill::Random;
use xtask::foreign::{Access, Deployment, Form};
use xtask::object_server::ObjectServer;
use xtask::postgres::Postgres;
use xtask::resp::{Connection, Place, Reply, Target};
use xtask::setup::has_other_users;
use xtask::throttle::Throttle;

use crate::networks::{self, Apart, Cut, Networks};
use crate::service::{Caller, Service};
use crate::shared::{is_long, seed, times};
use crate::storage::{BUCKET, add};

const SCHEMA: &str = "parted";
const LEASE: u64 = 3;
/// After a partition has healed everything must have come to its end within this and a lease.
const ENDED_WITHIN: Duration = Duration::from_secs(60 + LEASE);
/// What nobody needs must be out of the store so soon after that.
const SWEPT_WITHIN: Duration = Duration::from_secs(60);
const NODES: [&str; 3] = ["first", "second", "third"];
/// Whom a node may be cut off from.
const PEERS: [&str; 4] = ["database", "store", "source", "target"];
/// Backups of an instance that are kept besides those that the test needs.
const KEPT: usize = 3;

/// A partition.
#[derive(Debug)]
struct Parting {
    node: &'static str,
    from: Vec<&'static str>,
    /// Whether what the node sends, and what it is sent, is lost.
    lost: (bool, bool),
    cut: Cut,
    length: Duration,
}

/// An instance, and what is known of it.
struct Known {
    id: String,
    /// What it holds.
    contents: String,
    /// What its backups hold, where that is known.
    backups: BTreeMap<String, String>,
    /// Those that are not deleted.
    needed: Vec<String>,
}

/// Everything. Kept in this order: services hold on to what follows.
struct Field {
    nodes: BTreeMap<&'static str, Service>,
    throttle: Throttle,
    source: Deployment,
    target: Deployment,
    objects: ObjectServer,
    postgres: Postgres,
    networks: Networks,
    /// The slow source, the target, and the engine of the second node.
    instances: [Known; 3],
    /// Table and id of what was accepted.
    told: BTreeSet<(&'static str, String)>,
    judged: Judged,
}

/// What was looked at already, and what came of it.
#[derive(Default)]
struct Judged {
    objects: BTreeMap<String, BTreeSet<String>>,
    restores: BTreeSet<String>,
    ended: BTreeMap<String, u32>,
    /// How long objects of nobody were in the store after everything had ended, at most.
    swept: Duration,
}

/// Keys of the slow source, of a kilobyte each.
const SLOW_KEYS: u32 = 3000;
const SLOW: usize = 0;
const FAR: usize = 1;
const NEAR: usize = 2;

impl Field {
    fn lay_out(networks: Networks) -> Self {
        let postgres = networks.inside("database", || {
            Postgres::start_at(networks.at("database").into(), "-c fsync=off").unwrap()
        });
        let objects = networks.inside("store", || {
            ObjectServer::start_at(networks.at("store").into(), BUCKET)
                .unwrap_or_else(|stop| panic!("{stop}"))
        });
        let url = postgres.make_schema(SCHEMA).unwrap();
        let mut nodes: BTreeMap<&'static str, Service> = BTreeMap::new();
        for name in NODES {
            let address = networks.at(name).to_string();
            let listen = format!("{address}:0");
            let keys = nodes.values().next().map(|first| first.data().join("keys"));
            let lease = LEASE.to_string();
            let mut words = vec!["--listen", &listen, "--insecure", "--engine-bind", &address];
            words.extend(["--attach-allow", networks::ALL, "--node-name", name]);
            words.extend(["--lease", &lease, "--undo-keep", "0"]);
            if let Some(keys) = &keys {
                words.extend(["--keys", keys.to_str().unwrap()]);
            }
            if !has_other_users() {
                words.extend(["--engine-user", "root"]);
            }
            let variables = [("CACHEKEEP_CATALOG", url.as_str())];
            let mut node = networks.inside(name, || Service::start_with(&words, &variables));
            node.expect_any_trouble();
            nodes.insert(name, node);
        }
        let first = &nodes["first"];
        let endpoint = format!("http://{}", objects.address());
        let added = add(first, "offsite", &endpoint, &["--insecure"]);
        assert!(added.status.success(), "{added:?}");
        first.run_json(&["storage", "default", "offsite"]);
        let engine = |name: &str| {
            networks.inside(name, || {
                let address = networks.at(name).to_string();
                let settings = [
                    ("bind", address.as_str()),
                    ("enable-debug-command", "local"),
                    ("rdbcompression", "no"),
                ];
                Deployment::start(Path::new("redis-server"), Form::Single, Access::Open, &settings).unwrap()
            })
        };
        let (source, target) = (engine("source"), engine("target"));
        let throttle = networks.inside("source", || {
            let at = networks.at("source").into();
            Throttle::start_at(at, (at, source.nodes[0].port).into(), 1_500_000).unwrap()
        });
        let mut field = Self {
            nodes,
            throttle,
            source,
            target,
            objects,
            postgres,
            networks,
            instances: [(); 3].map(|()| Known {
                id: String::new(),
                contents: String::new(),
                backups: BTreeMap::new(),
                needed: Vec::new(),
            }),
            told: BTreeSet::new(),
            judged: Judged::default(),
        };
        field.fill();
        field
    }

    /// Instances with some data, of which there are backups.
    fn fill(&mut self) {
        let caller = self.nodes["second"].caller();
        let attach = |name: &str, address: String| {
            let wish = json!({"name": name, "addresses": [address]});
            let made = caller.ck("POST", "/attachments", Some(&wish)).expect(200).json();
            made["instance_id"].as_str().unwrap().to_owned()
        };
        let node = &self.source.nodes[0];
        let keys = SLOW_KEYS.to_string();
        node.ask(&["DEBUG", "POPULATE", &keys, "key", "1000"]).unwrap();
        self.instances[SLOW].id = attach("slow-source", self.throttle.address().to_string());
        let target = format!("{}:{}", self.networks.at("target"), self.target.nodes[0].port);
        self.instances[FAR].id = attach("far-target", target);
        self.instances[NEAR].id = caller.make_instance("near-engine");
        for number in 1..=2 {
            for place in [FAR, NEAR] {
                let mut engine = self.engine(place);
                engine.ask(&["FLUSHALL"]).unwrap();
                for key in 0..5_000 {
                    let value = format!("{number} of {key}, {}", "x".repeat(50));
                    engine.send(&["SET", &format!("key:{key}"), &value]).unwrap();
                }
                engine.send(&["SET", &format!("only:{number}"), "here"]).unwrap();
                engine.settle().unwrap();
                let contents = self.contents(place);
                let known = &mut self.instances[place];
                let backup = caller.make_backup(&known.id, &format!("{number}"));
                known.contents.clone_from(&contents);
                known.backups.insert(backup, contents);
            }
        }
        self.instances[SLOW].contents = self.contents(SLOW);
    }

    fn sql(&self, sql: &str) -> String {
        self.postgres
            .sql(&format!("SET search_path = {SCHEMA}; {sql}"))
            .unwrap()
    }

    /// A connection to the engine of an instance; nothing is cut between us and them.
    fn engine(&self, place: usize) -> Connection {
        match place {
            SLOW => self.source.nodes[0].open().unwrap(),
            FAR => self.target.nodes[0].open().unwrap(),
            _ => {
                let id = &self.instances[NEAR].id;
                let port = self.sql(&format!("SELECT port FROM instance WHERE id = '{id}'"));
                let at = self.networks.at("second").to_string();
                Connection::open(&Target {
                    place: Place::Tcp(at, port.parse().unwrap()),
                    user: None,
                    password: None,
                })
                .unwrap()
            }
        }
    }

    /// The digest of all keys: of ours by its values, for clients of ours may not ask for the engine's own.
    fn contents(&self, place: usize) -> String {
        let mut engine = self.engine(place);
        if place != NEAR {
            return engine
                .ask(&["DEBUG", "DIGEST"])
                .unwrap()
                .text()
                .unwrap()
                .to_owned();
        }
        let mut keys = texts(&engine.ask(&["KEYS", "*"]).unwrap());
        keys.sort();
        let words: Vec<&str> = std::iter::once("MGET")
            .chain(keys.iter().map(String::as_str))
            .collect();
        let values = match keys.is_empty() {
            true => Vec::new(),
            false => texts(&engine.ask(&words).unwrap()),
        };
        blake3::hash(format!("{keys:?} {values:?}").as_bytes()).to_string()
    }

    /// The node that has the oldest job that runs.
    fn owner(&self) -> Option<&'static str> {
        let id = self.sql("SELECT owner FROM job WHERE state = 'running' ORDER BY created_at_ms LIMIT 1");
        let is = |name: &&str| std::fs::read_to_string(self.nodes[name].data().join("node")).unwrap() == id;
        NODES.into_iter().find(is)
    }

    /// Whether a node has jobs that run.
    fn has_jobs(&self, node: &str) -> bool {
        let id = std::fs::read_to_string(self.nodes[node].data().join("node")).unwrap();
        let count = format!("SELECT count(*) FROM job WHERE state = 'running' AND owner = '{id}'");
        self.sql(&count) != "0"
    }

    /// Who asks another node than this one.
    fn caller_but(&self, node: &str) -> Caller {
        let other = NODES.into_iter().find(|name| *name != node).unwrap();
        self.nodes[other].caller()
    }

    /// Asks for something of each instance.
    fn ask(&mut self, by: &Caller, random: &mut Random, turn: u32) {
        let started = |path: &str, wish: &Value, id: &str| {
            let answer = by.v2("POST", path, Some(wish)).expect(200).json();
            answer[id].as_str().unwrap().to_owned()
        };
        for place in [SLOW, FAR, NEAR] {
            let known = &mut self.instances[place];
            let path = format!("/instances/{}", known.id);
            if known.needed.len() > KEPT {
                let backup = known.needed.remove(0);
                known.backups.remove(&backup);
                let answer = by.v2("DELETE", &format!("{path}/backups/{backup}"), None);
                assert!(answer.status < 300, "{}", answer.text());
            }
            let all: Vec<&String> = known.backups.keys().collect();
            // The slow one seldom: it is there to be captured.
            let is_restore = match place {
                SLOW => turn > 3 && random.below(6) == 0,
                _ => turn < 4 || random.below(6) < 4,
            };
            match is_restore && !all.is_empty() {
                true => {
                    let at = random.below(all.len() as u64);
                    let wish = json!({"backup_id": all[usize::try_from(at).unwrap()]});
                    let restore = started(&format!("{path}/restores"), &wish, "restore_id");
                    self.told.insert(("restore", restore));
                }
                false => {
                    let backup = started(&format!("{path}/backups"), &json!({}), "backup_id");
                    // Nobody writes there meanwhile.
                    known.backups.insert(backup.clone(), known.contents.clone());
                    known.needed.push(backup.clone());
                    self.told.insert(("backup", backup));
                }
            }
        }
    }

    fn part(&mut self, parting: &Parting) {
        let (out, back) = parting.lost;
        for peer in &parting.from {
            if out {
                self.networks.cut(parting.node, peer, parting.cut);
            }
            if back {
                self.networks.cut(peer, parting.node, parting.cut);
            }
        }
    }

    /// How much that was asked for has failed; a safety point is made again by whoever goes on with its restore.
    fn failed(&self) -> u32 {
        let ended = self.judged.ended.iter();
        let failed = ended.filter(|(end, _)| end.contains("failed") && !end.starts_with("safety"));
        failed.map(|(_, count)| count).sum()
    }

    /// Waits until every node is there and everything has ended; how long the one took, and both.
    fn settle(&self, label: &str) -> (Duration, Duration) {
        let (since, mut back) = (Instant::now(), None);
        let now = self.sql("SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)");
        loop {
            let away = self.sql(&format!("SELECT name FROM host WHERE seen_at_ms < {now}"));
            if away.is_empty() {
                back.get_or_insert(since.elapsed());
            }
            let left = self.sql(
                "SELECT (SELECT count(*) FROM job WHERE state <> 'done'), \
                 (SELECT count(*) FROM backup WHERE status IN ('waiting', 'running')), \
                 (SELECT count(*) FROM restore WHERE status IN ('waiting', 'running')), \
                 (SELECT count(*) FROM generation WHERE state IN ('loading', 'removing')), \
                 (SELECT count(*) FROM instance WHERE status <> 'running' OR attachment_settings <> '[]')",
            );
            if let Some(back) = back.filter(|_| left == "0|0|0|0|0") {
                return (back, since.elapsed());
            }
            assert!(
                since.elapsed() < ENDED_WITHIN,
                "{label}: jobs, backups, restores, generations, instances that have not come to their end: {left}; \
                 away: {away}; {}",
                self.sql("SELECT * FROM job WHERE state <> 'done'")
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Compares records, objects and engines.
    fn judge(&mut self, label: &str) {
        for (table, id) in &self.told {
            let found = self.sql(&format!("SELECT count(*) FROM {table} WHERE id = '{id}'"));
            assert_eq!(found, "1", "{label}: the accepted {table} {id} is lost");
        }
        let restores = self.sql(
            "SELECT instance_id, id, status, target_state, backup_id, coalesce(failure, '') FROM restore \
             ORDER BY instance_id, ordinal",
        );
        for row in restores.lines() {
            let cells: Vec<&str> = row.split('|').collect();
            if !self.judged.restores.insert(cells[1].to_owned()) {
                continue;
            }
            let known = self.instances.iter_mut().find(|known| known.id == cells[0]);
            let known = known.unwrap();
            let end = match (cells[2], cells[3]) {
                ("succeeded", "replaced") => {
                    known.contents.clone_from(&known.backups[cells[4]]);
                    "restores that succeeded".to_owned()
                }
                ("failed", state @ ("untouched" | "rolled_back")) => {
                    println!("{label}: a restore failed: {row}");
                    format!("restores that failed, {state}")
                }
                _ => panic!("{label}: {row}"),
            };
            *self.judged.ended.entry(end).or_default() += 1;
        }
        for place in [SLOW, FAR, NEAR] {
            let known = &self.instances[place];
            assert_eq!(
                self.contents(place),
                known.contents,
                "{label}: instance {place} holds other data than its records say"
            );
        }
        let short = self.sql(&format!(
            "SELECT id FROM backup WHERE status = 'succeeded' AND instance_id = '{}' AND keys <> {SLOW_KEYS}",
            self.instances[SLOW].id
        ));
        assert_eq!(short, "", "{label}: a capture that says it is whole");
        self.judge_store(label);
        for engine in [&self.source, &self.target] {
            let delay = engine.nodes[0].setting("repl-diskless-sync-delay").unwrap();
            assert_eq!(delay, "0", "{label}: a setting of theirs");
        }
    }

    /// Each backup that succeeded has all of its objects, and there are no others.
    fn judge_store(&mut self, label: &str) {
        let rows = self.sql(
            "SELECT id, status, coalesce(prefix, ''), coalesce(manifest_blake3, ''), kind, coalesce(failure, '') \
             FROM backup WHERE kind <> 'generation'",
        );
        let mut wanted = BTreeSet::new();
        for row in rows.lines() {
            let cells: Vec<&str> = row.split('|').collect();
            if !self.judged.objects.contains_key(cells[0]) {
                let own = match cells[1] {
                    "succeeded" => self.archive(cells[2], cells[3], label),
                    "failed" => {
                        println!("{label}: a backup failed: {row}");
                        BTreeSet::new()
                    }
                    _ => BTreeSet::new(),
                };
                let end = format!("{} backups that {}", cells[4], cells[1]);
                *self.judged.ended.entry(end).or_default() += 1;
                self.judged.objects.insert(cells[0].to_owned(), own);
            }
            if cells[1] == "succeeded" {
                wanted.extend(self.judged.objects[cells[0]].iter().cloned());
            } else {
                for known in &mut self.instances {
                    known.backups.remove(cells[0]);
                    known.needed.retain(|id| id != cells[0]);
                }
            }
        }
        let since = Instant::now();
        loop {
            let mut there: BTreeSet<String> = self.objects.names(BUCKET).unwrap().into_iter().collect();
            there.retain(|name| !name.contains("/journal/"));
            if there == wanted {
                self.judged.swept = self.judged.swept.max(since.elapsed());
                break;
            }
            assert!(
                since.elapsed() < SWEPT_WITHIN,
                "{label}: missing {:#?}, of nobody {:#?}",
                wanted.difference(&there),
                there.difference(&wanted)
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The names of an archive's objects, each of which is what the manifest says, as that is what the catalogue says.
    fn archive(&self, prefix: &str, digest: &str, label: &str) -> BTreeSet<String> {
        let get = |name: &str| {
            let found = self.objects.get(BUCKET, name).unwrap();
            found.unwrap_or_else(|| panic!("{label}: {name} is missing"))
        };
        let at = |name: &str| format!("cachekeep/one/{prefix}/{name}");
        let bytes = get(&at("manifest.json"));
        assert_eq!(blake3::hash(&bytes).to_string(), digest, "{label}: {prefix}");
        let signed: Value = serde_json::from_slice(&bytes).unwrap();
        let manifest: Value = serde_json::from_str(signed["manifest"].as_str().unwrap()).unwrap();
        let mut names = BTreeSet::from([at("manifest.json")]);
        let listed = manifest["segments"].as_array().unwrap().iter();
        let index = manifest["index"]["objects"].as_array().into_iter().flatten();
        for object in listed.chain([&manifest["details"]]).chain(index) {
            let name = at(object["name"].as_str().unwrap());
            let found = blake3::hash(&get(&name)).to_string();
            assert_eq!(object["stored_blake3"], found, "{label}: {name}");
            names.insert(name);
        }
        names
    }
}

fn texts(reply: &Reply) -> Vec<String> {
    let Reply::List(items) = reply else {
        panic!("no list: {reply:?}");
    };
    items.iter().map(|item| item.text().unwrap().to_owned()).collect()
}

fn draw(random: &mut Random, turn: u32, owner: Option<&'static str>) -> Parting {
    let mut one_of = |count: u64| usize::try_from(random.below(count)).unwrap();
    let node = owner.unwrap_or(NODES[one_of(3)]);
    let others = NODES.into_iter().filter(|other| *other != node);
    // The first ones are what every run has to have.
    let (from, lost, cut, ms) = match turn {
        0 => (
            PEERS.into_iter().chain(others).collect(),
            (true, true),
            Cut::Silent,
            4000,
        ),
        1 => (vec!["database"], (false, true), Cut::Silent, 3200),
        2 => (vec!["store", "target"], (true, false), Cut::Silent, 1500),
        // Answers are sent again at longer and longer intervals, and the connection is given up before the cable is back.
        3 => (vec!["database"], (false, true), Cut::Silent, 26_000),
        _ => {
            let from = match one_of(6) {
                4 => PEERS.into_iter().chain(others).collect(),
                5 => vec!["store", "source", "target"],
                peer => vec![PEERS[peer]],
            };
            let lost = [(true, true), (true, false), (false, true)][one_of(3)];
            let cut = if one_of(5) == 0 { Cut::Refused } else { Cut::Silent };
            // Seldom long: from a tenth of a second to somewhat more than the seven leases at which connections are given up.
            let most = [1000, 3000, 6000, 6000, 25_000][one_of(5)];
            (from, lost, cut, 100 + one_of(most))
        }
    };
    Parting {
        node,
        from,
        lost,
        cut,
        length: Duration::from_millis(u64::try_from(ms).unwrap()),
    }
}

#[test]
fn partitions_between_three_nodes_lose_nothing_and_everything_ends_after_they_heal() {
    let networks = match Networks::make(
        "partitions::partitions_between_three_nodes_lose_nothing_and_everything_ends_after_they_heal",
        &[
            "first", "second", "third", "database", "store", "source", "target",
        ],
    ) {
        Apart::Here(networks) => networks,
        Apart::Elsewhere => return,
        Apart::Nowhere(why) => {
            eprintln!("\nNOT SHOWN: partitions between nodes in networks of their own; {why}\n");
            return;
        }
    };
    let partings = times(3, 200);
    let mut random = Random::new(seed(), 0);
    let mut field = Field::lay_out(networks);
    field.settle("at the start");
    field.judge("at the start");
    let (mut took, mut hit, mut slowest_back) = (Vec::new(), 0, Duration::ZERO);
    for turn in 0..partings {
        // What is asked for while the cable is pulled already, and else within the time that it takes.
        let parting = if turn > 3 && random.below(5) == 0 {
            let parting = draw(&mut random, turn, None);
            field.part(&parting);
            let caller = field.caller_but(parting.node);
            field.ask(&caller, &mut random, turn);
            parting
        } else {
            let caller = field.caller_but("");
            field.ask(&caller, &mut random, turn);
            let most = if turn < 4 { 1000 } else { 2500 };
            std::thread::sleep(Duration::from_millis(random.below(most)));
            // Mostly of the node that has something to do.
            let owner = field.owner().filter(|_| turn < 4 || random.below(3) > 0);
            let parting = draw(&mut random, turn, owner);
            field.part(&parting);
            hit += u32::from(field.has_jobs(parting.node));
            parting
        };
        std::thread::sleep(parting.length);
        field.networks.heal();
        let label = format!("parting {turn}, {parting:?}");
        let (back, ended) = field.settle(&label);
        took.push(ended);
        slowest_back = slowest_back.max(back);
        let failed = field.failed();
        field.judge(&label);
        // Shorter than what is tried again for.
        assert!(turn != 2 || field.failed() == failed, "{label}: something failed");
        if is_long() {
            println!("{label}: back after {back:?}, ended after {ended:?}");
            if turn % 10 == 9 {
                // Who was cut off has nothing left that it could still do.
                std::thread::sleep(Duration::from_secs(2 * LEASE));
                field.judge(&format!("a while after {label}"));
            }
        }
    }
    std::thread::sleep(Duration::from_secs(LEASE));
    field.settle("at the end");
    field.judge("at the end");
    for (name, node) in &field.nodes {
        assert!(!node.log().contains("panicked"), "{name}: {}", node.log());
    }
    took.sort();
    println!(
        "{partings} partitions between three nodes, {hit} of them of one with a job that ran, with a lease of {LEASE} s: every node was \
         back {slowest_back:?} after they healed at most; everything had ended {:?} after they healed at most, half of them after {:?}, \
         and objects of nobody were gone {:?} after that at most; {:?}; 0 lost, 0 lying records",
        took.last().unwrap(),
        took[took.len() / 2],
        field.judged.swept,
        field.judged.ended
    );
    for kind in ["manual backups that succeeded", "restores that succeeded"] {
        assert!(field.judged.ended.contains_key(kind), "no {kind}");
    }
    assert!(2 * hit > partings, "{hit} of {partings} partitions met a job");
}
