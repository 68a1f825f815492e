//! Every fault at every phase of a restore into servers of somebody else's, of one and of a cluster: whatever happens they hold all of the old
//! data or all of the new, the record says which, and a second attempt succeeds. What came of each is a table.
//!
//! The service stalls at a place of the phase; the fault happens meanwhile. `CACHEKEEP_TEST_LONG=1` takes every cell (some twenty
//! minutes), `CACHEKEEP_WRITE_MATRIX=1` writes the table.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::json;
use xtask::foreign::Form;
use xtask::small_disk::{Mounted, SmallDisk};

use crate::attached_restore::Target;
use crate::checker::Catalogue;
use crate::faults::{FullDisk, not_shown};
use crate::world::{Run, signal};

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/attach-failure-matrix.md");
/// Set to write the document instead of comparing it.
const WRITE: &str = "CACHEKEEP_WRITE_MATRIX";
/// As long as a place is held up, and somewhat longer.
const LONG: Duration = Duration::from_secs(7);

/// What the phases are called, and where each stalls.
const PHASES: [(&str, &str); 7] = [
    ("waiting", "restore.claimed"),
    ("proving", "replay.begun"),
    ("safety point", "backup.after_fullresync"),
    ("applying", "replay.half_made"),
    ("removing", "replay.clearing"),
    ("settling", "replay.applied"),
    ("putting back", "replay.putting_back"),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    ServiceKilled,
    TargetKilled,
    TargetSilent,
    LinkCut,
    DiskFull,
    TargetDiskFull,
    TargetFull,
    CorruptSegment,
    CorruptSafety,
    Cancelled,
    CancelledUnsafe,
}

impl Fault {
    const ALL: [Fault; 11] = [
        Fault::ServiceKilled,
        Fault::TargetKilled,
        Fault::TargetSilent,
        Fault::LinkCut,
        Fault::DiskFull,
        Fault::TargetDiskFull,
        Fault::TargetFull,
        Fault::CorruptSegment,
        Fault::CorruptSafety,
        Fault::Cancelled,
        Fault::CancelledUnsafe,
    ];

    fn words(self) -> &'static str {
        match self {
            Fault::ServiceKilled => "the service is killed",
            Fault::TargetKilled => "a server of the target is killed, and started again",
            Fault::TargetSilent => "a server of the target is silent for twelve seconds",
            Fault::LinkCut => "every connection to the target is cut for seven seconds, again and again",
            Fault::DiskFull => "the service's disk is full for seven seconds",
            Fault::TargetDiskFull => "the target's disk is full for seven seconds",
            Fault::TargetFull => "the target's memory is full for seven seconds",
            Fault::CorruptSegment => "a stored segment is damaged",
            Fault::CorruptSafety => "a segment of the safety point is damaged",
            Fault::Cancelled => "a client cancels it",
            Fault::CancelledUnsafe => "a client cancels it, and there is no safety point",
        }
    }

    /// Whether there is something for it to happen to in this phase.
    fn can_happen(self, phase: &str) -> bool {
        match self {
            Fault::CorruptSafety => phase == "putting back",
            // Once all of the backup is in, a restore without a safety point that is cancelled holds no part of anything.
            Fault::CancelledUnsafe => matches!(phase, "waiting" | "proving" | "applying" | "removing"),
            _ => true,
        }
    }

    /// Whether the servers are left with a part of each: there is nothing that they could be put back to.
    fn leaves_a_part(self, phase: &str) -> bool {
        match self {
            Fault::CorruptSafety => true,
            Fault::CancelledUnsafe => matches!(phase, "applying" | "removing"),
            _ => false,
        }
    }

    fn is_cancelled(self) -> bool {
        matches!(self, Fault::Cancelled | Fault::CancelledUnsafe)
    }
}

/// Who has the small disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Service,
    Target,
}

impl Target {
    fn segment(&self, backup: &str) -> PathBuf {
        let prefix = Catalogue::open(&self.world).backup(backup).prefix.unwrap();
        let folder = self.world.data().join("store").join(prefix);
        folder.join("shard-0/seg-000000.rdb.zst.age")
    }

    /// The number of the node that has the largest key's slot.
    fn busiest(&self) -> usize {
        let port = self.owner("a").port;
        self.foreign
            .nodes
            .iter()
            .position(|node| node.port == port)
            .unwrap()
    }

    fn strike(&mut self, fault: Fault, disk: Option<&FullDisk>) {
        match fault {
            Fault::ServiceKilled => {
                self.world.kill();
                self.world.run(&Run::default());
            }
            Fault::TargetKilled => {
                let number = self.busiest();
                self.foreign.nodes[number].kill();
                // Its replica takes its place meanwhile, where it has one.
                std::thread::sleep(LONG);
                self.foreign.nodes[number].start_again().unwrap();
            }
            Fault::TargetSilent => {
                let pid = self.owner("a").pid();
                signal(pid, "STOP");
                std::thread::sleep(Duration::from_secs(12));
                signal(pid, "CONT");
            }
            Fault::LinkCut => {
                let since = Instant::now();
                while since.elapsed() < LONG {
                    for node in &self.foreign.nodes {
                        // Who asked for a snapshot is a replica, as the servers' own replicas are.
                        for kind in ["normal", "replica"] {
                            node.ask(&["CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"])
                                .unwrap();
                        }
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
            Fault::TargetFull => {
                self.limit_memory(1 << 20);
                std::thread::sleep(LONG);
                self.limit_memory(0);
            }
            Fault::DiskFull | Fault::TargetDiskFull => {
                disk.unwrap().fill();
                std::thread::sleep(LONG);
                disk.unwrap().give_back();
            }
            Fault::CorruptSegment => damage(&self.segment(&self.backup)),
            Fault::CorruptSafety => {
                let backups = Catalogue::open(&self.world).backups();
                let safety = backups.iter().rfind(|backup| backup.kind == "safety").unwrap();
                damage(&self.segment(&safety.id));
            }
            Fault::Cancelled | Fault::CancelledUnsafe => {
                let newest = Catalogue::open(&self.world).restores(&self.id).pop().unwrap();
                let path = format!(
                    "/ck/v1/{{project}}/instances/{}/restores/{}/cancel",
                    self.id, newest.id
                );
                self.world.call("POST", &path, None);
            }
        }
    }
}

fn damage(file: &Path) {
    let mut bytes = std::fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(file, bytes).unwrap();
}

/// One cell: what came of it.
fn cell(target: &mut Target, phase: (&str, &str), fault: Fault, disk: Option<&FullDisk>) -> &'static str {
    let (name, place) = phase;
    let label = format!("{}, {name}", fault.words());
    target.reset();
    let whole = std::fs::read(target.segment(&target.backup)).unwrap();
    // Before the safety point is validated.
    let place = match fault {
        Fault::CorruptSafety => "replay.giving_up",
        _ => place,
    };
    let armed = match name {
        "putting back" => format!("replay.clearing:error,{place}:stall"),
        _ => format!("{place}:stall"),
    };
    target.world.restart(&Run::armed(&armed));
    target.ask(&json!({"patience": 10, "safety_point": fault != Fault::CancelledUnsafe}));
    let since = Instant::now();
    while !target.world.marks().iter().any(|mark| mark == place) {
        assert!(since.elapsed() < Duration::from_secs(60), "{label}: the place");
        std::thread::sleep(Duration::from_millis(5));
    }
    target.strike(fault, disk);
    let told = target.check(&label);
    let came_of_it = match told.target_state.as_str() {
        "replaced" => "new",
        "partial" => "part",
        _ => "old",
    };
    assert_eq!(
        came_of_it == "part",
        fault.leaves_a_part(name),
        "{label}: whether there is a safety point: {told:?}"
    );
    if fault.is_cancelled() {
        assert_eq!(told.status, "failed", "{label}: {told:?}");
    }
    std::fs::write(target.segment(&target.backup), whole).unwrap();
    // The second attempt, with nothing in its way.
    target.reset();
    target.ask(&json!({}));
    let second = target.check(&format!("{label}, second attempt"));
    assert_eq!(second.status, "succeeded", "{label}, second attempt: {second:?}");
    came_of_it
}

type Cells = BTreeMap<(&'static str, &'static str), String>;

fn run(layout: &str, form: Form, owner: Owner, test: &str) {
    let disk = match SmallDisk::mount(400, test) {
        Mounted::Here(disk) => Some(FullDisk::new(disk)),
        Mounted::Elsewhere => return,
        Mounted::Nowhere(why) => {
            not_shown("a full disk", &format!("no small file system: {why}"));
            None
        }
    };
    let at = |whose: Owner| disk.as_ref().filter(|_| owner == whose).map(FullDisk::path);
    let mut target = Target::on(form, at(Owner::Service), at(Owner::Target));
    let mut cells = Cells::new();
    for fault in Fault::ALL {
        if (fault == Fault::TargetDiskFull) != (owner == Owner::Target) {
            continue;
        }
        for phase in PHASES {
            let is_short = matches!(
                (form, fault, phase.0),
                (Form::Single, Fault::TargetKilled, "applying")
                    | (Form::Single, Fault::CorruptSafety, "putting back")
                    | (Form::Single, Fault::TargetDiskFull, "putting back")
                    | (
                        Form::Single,
                        Fault::Cancelled | Fault::CancelledUnsafe,
                        "applying"
                    )
                    | (Form::Cluster, Fault::TargetKilled, "putting back")
                    | (Form::Cluster, Fault::LinkCut, "removing")
            );
            let is_possible = disk.is_some() || !matches!(fault, Fault::DiskFull | Fault::TargetDiskFull);
            if !(is_short || crate::long()) || !is_possible || !fault.can_happen(phase.0) {
                continue;
            }
            let came_of_it = cell(&mut target, phase, fault, disk.as_ref());
            println!("{layout}: {}, {}: {came_of_it}", fault.words(), phase.0);
            cells.insert((fault.words(), phase.0), came_of_it.to_owned());
        }
    }
    compare_with_document(layout, &cells);
}

/// The rows of a table of the document, by fault: what follows its name.
fn rows(document: &str, layout: &str) -> BTreeMap<String, Vec<String>> {
    let title = format!("## {layout}\n");
    let part = document.split(&title).nth(1).unwrap_or_default();
    let part = part.split("\n## ").next().unwrap_or_default();
    let lines = part.lines().skip_while(|line| !line.starts_with("|---")).skip(1);
    lines
        .filter_map(|line| {
            let mut cells = line
                .trim_matches('|')
                .split('|')
                .map(|cell| cell.trim().to_owned());
            Some((cells.next()?, cells.collect()))
        })
        .collect()
}

fn compare_with_document(layout: &str, cells: &Cells) {
    static WRITTEN: Mutex<()> = Mutex::new(());
    let _one_at_a_time = WRITTEN.lock().unwrap();
    let head = "# What becomes of a restore into attached servers when something fails in the middle of it\n\n\
        Made by `crates/server/tests/crash/attach_failures.rs`: the service is held up at the phase, and the fault happens meanwhile. *old*: the\n\
        restore failed, its record says that nothing was changed or that it was put back, and the servers hold all of the old data, by their\n\
        own digests. *new*: it succeeded, and they hold all of the backup's. *part*: the record says so, and they hold neither; that is so only\n\
        where the safety point itself cannot be read, or there is none. Each time a second attempt succeeded. The servers keep append-only files. An empty cell:\n\
        there is nothing for the fault to happen to. Where connections are cut again and again it is chance which of old and new it is. A node of a cluster that cannot write its nodes.conf ends itself: a full disk there is the\n\
        row of the killed server.\n\
        `CACHEKEEP_TEST_LONG=1 CACHEKEEP_WRITE_MATRIX=1` writes this.\n";
    let written = std::fs::read_to_string(DOCUMENT).unwrap_or_default();
    if std::env::var_os(WRITE).is_some() {
        let mut document = head.to_owned();
        for known in LAYOUTS {
            let mut rows = rows(&written, known);
            for fault in Fault::ALL {
                let row = rows.entry(fault.words().to_owned()).or_default();
                row.resize(PHASES.len(), String::new());
                for (told, (phase, _)) in row.iter_mut().zip(PHASES) {
                    let found = cells.get(&(fault.words(), phase)).filter(|_| known == layout);
                    *told = found.cloned().unwrap_or(std::mem::take(told));
                }
            }
            document += &format!("\n## {known}\n\n| fault |");
            PHASES
                .iter()
                .for_each(|(phase, _)| document += &format!(" {phase} |"));
            document += &format!("\n|---|{}\n", "---|".repeat(PHASES.len()));
            for fault in Fault::ALL {
                document += &format!("| {} | {} |\n", fault.words(), rows[fault.words()].join(" | "));
            }
        }
        std::fs::write(DOCUMENT, document).unwrap();
        return;
    }
    let told = rows(&written, layout);
    let known = |fault: &str, phase: &str| {
        let column = PHASES.iter().position(|(name, _)| *name == phase).unwrap();
        let row = told.get(fault);
        row.and_then(|row| row.get(column)).map_or("", String::as_str)
    };
    let others: Vec<String> = cells
        .iter()
        .filter(|((fault, phase), found)| {
            let known = known(fault, phase);
            let is_chance = *fault == Fault::LinkCut.words()
                && [known, found.as_str()]
                    .iter()
                    .all(|it| ["old", "new"].contains(it));
            known != found.as_str() && !is_chance
        })
        .map(|((fault, phase), found)| {
            format!(
                "{fault}, {phase}: {found}, and the table has {:?}",
                known(fault, phase)
            )
        })
        .collect();
    assert!(
        others.is_empty(),
        "docs/attach-failure-matrix.md, {layout}, is not what came of it: {others:#?}\nIf what came of it is right: \
         CACHEKEEP_TEST_LONG=1 {WRITE}=1 cargo test -p cachekeep --test crash attach_failures -- --test-threads 1"
    );
}

const LAYOUTS: [&str; 2] = ["one server", "3 shards x 1 replica"];

#[test]
fn whatever_fails_in_a_restore_into_an_attached_server_it_holds_all_old_or_all_new_and_the_record_says_which()
{
    run(
        LAYOUTS[0],
        Form::Single,
        Owner::Service,
        "attach_failures::whatever_fails_in_a_restore_into_an_attached_server_it_holds_all_old_or_all_new_and_the_record_says_which",
    );
}

#[test]
fn whatever_fails_in_a_restore_into_an_attached_cluster_it_holds_all_old_or_all_new_and_the_record_says_which()
 {
    run(
        LAYOUTS[1],
        Form::Cluster,
        Owner::Service,
        "attach_failures::whatever_fails_in_a_restore_into_an_attached_cluster_it_holds_all_old_or_all_new_and_the_record_says_which",
    );
}

#[test]
fn a_full_disk_of_an_attached_server_leaves_it_with_all_old_or_all_new() {
    run(
        LAYOUTS[0],
        Form::Single,
        Owner::Target,
        "attach_failures::a_full_disk_of_an_attached_server_leaves_it_with_all_old_or_all_new",
    );
}
