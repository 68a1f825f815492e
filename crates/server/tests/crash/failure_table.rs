//! Every fault at every phase of a restore, of primaries with replicas and of clusters: whatever happens the clients find all
//! of the old data or all of the new, the record says which, and a second attempt succeeds. What came of each is a table.
//!
//! The service stalls at a place of the phase; the fault happens meanwhile. `CACHEKEEP_TEST_LONG=1` takes every cell (half an
//! hour), `CACHEKEEP_WRITE_MATRIX=1` writes the table.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use xtask::scratch::Scratch;
use xtask::small_disk::{Mounted, SmallDisk};

use crate::checker::{self, Catalogue};
use crate::cluster::Cluster;
use crate::faults::{FullDisk, not_shown};
use crate::ha::Watched;
use crate::lifecycle::wait_until;
use crate::out_of_memory::Group;
use crate::world::{Run, World, kill};

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/failure-matrix.md");
/// Set to write the document instead of comparing it.
const WRITE: &str = "CACHEKEEP_WRITE_MATRIX";

/// What there is where memory runs out.
const ROOM_BYTES: u64 = 4 * 1024 * 1024;

/// What the phases are called, and where each stalls.
const PHASES: [(&str, &str); 6] = [
    ("begun", "restore.begun"),
    ("proven", "restore.proven"),
    ("loaded", "restore.shard_loaded"),
    ("joined", "restore.joined"),
    ("switch intended", "restore.switch_intended"),
    ("switched", "restore.switched"),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    ServiceKilled,
    NewNodeKilled,
    OldPrimaryKilled,
    ReplicaPromoted,
    CorruptSegment,
    PortTaken,
    DiskFull,
    OutOfMemory,
}

impl Fault {
    const ALL: [Fault; 8] = [
        Fault::ServiceKilled,
        Fault::NewNodeKilled,
        Fault::OldPrimaryKilled,
        Fault::ReplicaPromoted,
        Fault::CorruptSegment,
        Fault::PortTaken,
        Fault::DiskFull,
        Fault::OutOfMemory,
    ];

    fn words(self) -> &'static str {
        match self {
            Fault::ServiceKilled => "the service is killed",
            Fault::NewNodeKilled => "a node of the new generation is killed",
            Fault::OldPrimaryKilled => "a primary of the old generation is killed",
            Fault::ReplicaPromoted => "a replica of the old generation is promoted",
            Fault::CorruptSegment => "a stored segment is damaged",
            Fault::PortTaken => "a stranger takes a port or address of the new generation",
            Fault::DiskFull => "the disk is full",
            Fault::OutOfMemory => "the kernel runs out of memory and kills a node of the new generation",
        }
    }

    /// Whether there is something for it to happen to in this phase.
    fn can_happen(self, phase: &str) -> bool {
        let has_engines = !["begun", "proven"].contains(&phase);
        match self {
            Fault::NewNodeKilled => has_engines,
            // They have their own from their start, and the clients' are the old generation's until the switch.
            Fault::PortTaken => !has_engines,
            // Its replica has to have time to be promoted in before the end.
            Fault::ReplicaPromoted => phase != "switched",
            _ => true,
        }
    }
}

/// An instance of one of the layouts.
enum Held {
    Watched(Watched),
    Cluster(Cluster),
}

impl Held {
    fn world(&mut self) -> &mut World {
        match self {
            Held::Watched(held) => &mut held.world,
            Held::Cluster(held) => &mut held.world,
        }
    }

    fn id(&self) -> String {
        match self {
            Held::Watched(held) => held.id.clone(),
            Held::Cluster(held) => held.id.clone(),
        }
    }

    fn backup(&self) -> String {
        match self {
            Held::Watched(held) => held.backup.clone(),
            Held::Cluster(held) => held.backup.clone(),
        }
    }

    fn captured(&self) -> Vec<String> {
        match self {
            Held::Watched(held) => vec![held.captured.clone()],
            Held::Cluster(held) => held.captured.clone(),
        }
    }

    fn digests(&self) -> Vec<String> {
        match self {
            Held::Watched(held) => vec![held.digest()],
            Held::Cluster(held) => {
                let mut all = held.digests();
                // Who is the primary of a shard changes the order of the ports.
                all.sort();
                all
            }
        }
    }

    fn set(&self, key: &str, value: &str) {
        match self {
            Held::Watched(held) => held.set(key, value),
            Held::Cluster(held) => held.set(key, value),
        }
    }

    fn wait_whole(&self, label: &str) {
        match self {
            Held::Watched(held) => held.wait_whole(label),
            Held::Cluster(held) => held.wait_whole(),
        }
    }

    /// Processes of the generation in this state, and their directories.
    fn nodes(&mut self, state: &str) -> Vec<(u32, PathBuf)> {
        let generation = self.generation(state);
        let engines = self.world().engines();
        let of_generation = engines.into_iter().filter(|(_, home)| {
            let parent = home
                .parent()
                .and_then(Path::file_name)
                .and_then(|name| name.to_str());
            parent == Some(generation.as_str())
        });
        of_generation.collect()
    }

    fn generation(&mut self, state: &str) -> String {
        let id = self.id();
        let all = Catalogue::open(self.world()).generations(&id);
        let found = all.into_iter().find(|(_, found)| found == state);
        found.unwrap_or_else(|| panic!("no generation is {state}")).0
    }

    /// The primary of the first shard among nodes of the serving generation.
    fn serving_primary(&mut self) -> u32 {
        let path = format!("/v2/{{project}}/instances/{}/logical-nodes", self.id());
        let shown = self.world().call("GET", &path, None);
        let primary = shown["nodes"].as_array().unwrap().iter();
        let primary = primary
            .clone()
            .find(|node| node["node_role"] == "master")
            .unwrap();
        let id = primary["node_id"].as_str().unwrap().to_owned();
        let nodes = self.nodes("serving");
        nodes.iter().find(|(_, home)| home.ends_with(&id)).unwrap().0
    }
}

/// What has to be given back when a fault is over.
#[derive(Default)]
struct Aftermath {
    damaged: Option<(PathBuf, Vec<u8>)>,
    listeners: Vec<TcpListener>,
    group: Option<Group>,
    is_disk_full: bool,
    /// The service has to be started anew.
    is_dead: bool,
}

/// Makes it happen.
fn strike(held: &mut Held, fault: Fault, disk: Option<&FullDisk>) -> Aftermath {
    let mut after = Aftermath::default();
    match fault {
        Fault::ServiceKilled => {
            held.world().kill();
            after.is_dead = true;
        }
        Fault::NewNodeKilled => kill(held.nodes("loading")[0].0),
        Fault::OldPrimaryKilled | Fault::ReplicaPromoted => kill(held.serving_primary()),
        Fault::CorruptSegment => {
            let backup = held.backup();
            let prefix = Catalogue::open(held.world()).backup(&backup).prefix.unwrap();
            let file = held
                .world()
                .data()
                .join("store")
                .join(prefix)
                .join("shard-0/seg-000000.rdb.zst.age");
            let whole = std::fs::read(&file).unwrap();
            let mut bytes = whole.clone();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            std::fs::write(&file, bytes).unwrap();
            after.damaged = Some((file, whole));
        }
        Fault::OutOfMemory => {
            let mut node = None;
            wait_until("a node of the new generation", || {
                node = held.nodes("loading").first().map(|(pid, _)| *pid);
                node.is_some()
            });
            let group = Group::new().unwrap();
            group.take(node.unwrap());
            group.leave(ROOM_BYTES);
            group.exhaust(node.unwrap());
            after.group = Some(group);
        }
        Fault::PortTaken => after.listeners = held.take_places_of_new(),
        Fault::DiskFull => {
            disk.unwrap().fill();
            after.is_disk_full = true;
        }
    }
    after
}

impl Held {
    /// Listens where the first node of the new generation is going to.
    fn take_places_of_new(&mut self) -> Vec<TcpListener> {
        let generation = self.generation("loading");
        let nodes = Catalogue::open(self.world()).nodes(&generation);
        let first = &nodes[0];
        let (address, port) = match first["address"].as_str() {
            Some(address) => (address, &first["port"]),
            None => ("127.0.0.1", &first["bus_port"]),
        };
        let port = u16::try_from(port.as_u64().unwrap()).unwrap();
        vec![TcpListener::bind((address, port)).unwrap()]
    }
}

/// One cell: what came of it.
fn cell(
    held: &mut Held,
    phase: (&str, &str),
    fault: Fault,
    disk: Option<&FullDisk>,
    number: usize,
) -> String {
    let (name, place) = phase;
    let label = format!("{}, {name}", fault.words());
    held.set("changed", &format!("{number} {label}"));
    let old = held.digests();
    let (id, backup) = (held.id(), held.backup());
    let before = Catalogue::open(held.world()).restores(&id).len();
    // A promotion takes six seconds, and a stall five: it is to have happened when the restore goes on from here.
    let armed = match (fault, place) {
        (Fault::ReplicaPromoted, "restore.begun") => "restore.begun:stall,restore.proven:stall".to_owned(),
        (Fault::ReplicaPromoted, place) => format!("restore.begun:stall,{place}:stall"),
        _ => format!("{place}:stall"),
    };
    let strikes_at = match fault {
        Fault::ReplicaPromoted => "restore.begun",
        _ => place,
    };
    held.world().restart(&Run::armed(&armed));
    let (status, answer) = held.world().ask_for_restore("one", &backup, false).unwrap();
    assert_eq!(status, 200, "{label}: {answer}");
    wait_until(&format!("{label}: the place"), || {
        held.world().marks().iter().any(|mark| mark == strikes_at)
    });
    let mut after = strike(held, fault, disk);
    if after.is_dead {
        held.world().run(&Run::default());
    } else {
        let died = held.world().wait_idle_or_dead(Duration::from_secs(90));
        assert!(!died, "{label}: the service ended");
    }
    if let Some((file, whole)) = after.damaged.take() {
        std::fs::write(file, whole).unwrap();
    }
    after.listeners.clear();
    if let Some(group) = after.group.take() {
        assert!(group.killed() > 0, "{label}: memory was enough");
    }
    if after.is_disk_full {
        disk.unwrap().give_back();
    }
    checker::settle(held.world(), &label);
    held.wait_whole(&label);
    let restores = Catalogue::open(held.world()).restores(&id);
    assert_eq!(restores.len(), before + 1, "{label}");
    let last = restores.last().unwrap();
    let holds = held.digests();
    let mut captured = held.captured();
    captured.sort();
    let came_of_it = match (last.status.as_str(), last.target_state.as_str()) {
        ("succeeded", "replaced") => {
            assert_eq!(holds, captured, "{label}");
            "new"
        }
        ("failed", "untouched" | "rolled_back") => {
            assert_eq!(holds, old, "{label}: {:?}", last.failure);
            "old"
        }
        other => panic!("{label}: {other:?}"),
    };
    // The second attempt, with nothing in its way.
    let (status, answer) = held.world().ask_for_restore("one", &backup, false).unwrap();
    assert_eq!(status, 200, "{label}: {answer}");
    checker::settle(held.world(), &label);
    let restores = Catalogue::open(held.world()).restores(&id);
    assert_eq!(
        restores.last().unwrap().status,
        "succeeded",
        "{label}, second attempt"
    );
    assert_eq!(held.digests(), captured, "{label}, second attempt");
    held.wait_whole(&label);
    came_of_it.to_owned()
}

type Cells = BTreeMap<(&'static str, &'static str), String>;

fn run(layout: &str, test: &str, make: impl Fn(World) -> Held) {
    let disk = match SmallDisk::mount(400, test) {
        Mounted::Here(disk) => Some(FullDisk::new(disk)),
        Mounted::Elsewhere => return,
        Mounted::Nowhere(why) => {
            not_shown("a full disk", &format!("no small file system: {why}"));
            None
        }
    };
    let has_groups = Group::new().is_some();
    if !has_groups {
        not_shown("the kernel out of memory", "making a control group needs root");
    }
    let world = match &disk {
        Some(disk) => World::start_on(Scratch::new("crash").unwrap(), disk.path().join("data"), &[]),
        None => World::start(&[]),
    };
    let mut held = make(world);
    held.wait_whole("at first");
    let mut cells = Cells::new();
    let mut number = 0;
    for fault in Fault::ALL {
        for phase in PHASES {
            // One cell of each kind of end: before the engines, in the middle, after the intent.
            let is_short = matches!(
                (fault, phase.0),
                (Fault::CorruptSegment, "proven")
                    | (Fault::NewNodeKilled, "joined")
                    | (Fault::OldPrimaryKilled, "switch intended")
                    | (Fault::OutOfMemory, "proven")
            );
            let is_possible = match fault {
                Fault::DiskFull => disk.is_some(),
                Fault::OutOfMemory => has_groups,
                _ => true,
            };
            if !(is_short || crate::long()) || !fault.can_happen(phase.0) || !is_possible {
                continue;
            }
            number += 1;
            let came_of_it = cell(&mut held, phase, fault, disk.as_ref(), number);
            println!("{layout}: {}, {}: {came_of_it}", fault.words(), phase.0);
            cells.insert((fault.words(), phase.0), came_of_it);
        }
        compare_with_document(layout, &cells);
    }
}

fn compare_with_document(layout: &str, cells: &Cells) {
    let head = "# What becomes of a restore when something fails in the middle of it\n\n\
        Made by `crates/server/tests/crash/failure_table.rs`: the service is held up at the phase, and the fault happens meanwhile. *old*: the\n\
        restore failed, its record says so, and clients find all of the old data, by the engines' digests. *new*: it succeeded, and they find\n\
        all of the backup's. Each time a second attempt succeeded, with every replica in sync and every Sentinel watching. An empty cell:\n\
        there is nothing for the fault to happen to. Memory runs out in the control group of a node: of the first that is\n\
        started where none runs yet.\n\
        `CACHEKEEP_TEST_LONG=1 CACHEKEEP_WRITE_MATRIX=1` writes this.\n";
    let written = std::fs::read_to_string(DOCUMENT).unwrap_or_default();
    let title = format!("## {layout}\n");
    if std::env::var_os(WRITE).is_some() {
        let mut table = format!("{title}\n| fault |");
        PHASES
            .iter()
            .for_each(|(phase, _)| table += &format!(" {phase} |"));
        table += &format!("\n|---|{}\n", "---|".repeat(PHASES.len()));
        for fault in Fault::ALL {
            table += &format!("| {} |", fault.words());
            for (phase, _) in PHASES {
                let found = cells.get(&(fault.words(), phase));
                table += &format!(" {} |", found.map_or("", String::as_str));
            }
            table += "\n";
        }
        let others = written
            .split("\n## ")
            .skip(1)
            .map(|part| format!("## {}", part.trim_end()))
            .filter(|part| !part.starts_with(title.trim_end()));
        let mut parts: Vec<String> = others.chain([table.trim_end().to_owned()]).collect();
        parts.sort();
        std::fs::write(DOCUMENT, format!("{head}\n{}\n", parts.join("\n\n"))).unwrap();
    }
    let written = std::fs::read_to_string(DOCUMENT).unwrap_or_default();
    let part = written.split(&title).nth(1).unwrap_or_default();
    let part = part.split("\n## ").next().unwrap_or_default();
    for (fault, _) in cells.keys() {
        let row = part
            .lines()
            .find(|line| line.starts_with(&format!("| {fault} |")));
        assert!(
            row.is_some(),
            "docs/failure-matrix.md is stale, {layout}: {fault}: set {WRITE}=1"
        );
    }
}

#[test]
fn whatever_fails_in_a_restore_of_a_watched_primary_the_data_is_all_old_or_all_new_and_the_second_attempt_succeeds()
 {
    run(
        "primary + 1 replica",
        "failure_table::whatever_fails_in_a_restore_of_a_watched_primary_the_data_is_all_old_or_all_new_and_the_second_attempt_succeeds",
        |world| Held::Watched(Watched::on(world, "aof")),
    );
}

#[test]
fn whatever_fails_in_a_restore_of_a_cluster_the_data_is_all_old_or_all_new_and_the_second_attempt_succeeds() {
    run(
        "3 shards x 1 replica",
        "failure_table::whatever_fails_in_a_restore_of_a_cluster_the_data_is_all_old_or_all_new_and_the_second_attempt_succeeds",
        |world| Held::Cluster(Cluster::on(world, crate::cluster::SPEC, "aof")),
    );
}
