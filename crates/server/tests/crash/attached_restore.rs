//! Restores into servers of somebody else's, hit at every place: what the record says of them is so, by the engine's own digest.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use xtask::foreign::{Access, Deployment, Form};
use xtask::scratch::Scratch;
use xtask::small_disk::{Mounted, SmallDisk};

use crate::checker::Catalogue;
use crate::faults::{FullDisk, not_shown};
use crate::lifecycle::wait_until;
use crate::world::{Run, World, signal, text};

/// Every place that a restore passes which succeeds.
const FORTH: [&str; 5] = [
    "replay.begun",
    "replay.validated",
    "replay.loading",
    "replay.clearing",
    "replay.applied",
];
/// Those that one passes besides which is put back.
const BACK: [&str; 3] = ["replay.giving_up", "replay.putting_back", "replay.put_back"];

/// Every place that only restores into attached servers pass.
pub fn places() -> impl Iterator<Item = &'static str> {
    FORTH.into_iter().chain(BACK)
}

struct Target {
    world: World,
    foreign: Deployment,
    id: String,
    backup: String,
    /// Digests of the backup's data, and of what is there before each restore.
    new: String,
    old: String,
}

impl Target {
    fn new() -> Self {
        Self::on(None)
    }

    /// With the service's data on this disk.
    fn on(disk: Option<&Path>) -> Self {
        let settings = [("enable-debug-command", "local")];
        let foreign =
            Deployment::start(Path::new("redis-server"), Form::Single, Access::Open, &settings).unwrap();
        let node = &foreign.nodes[0];
        node.ask(&["DEBUG", "POPULATE", "5000", "key", "100"]).unwrap();
        let new = foreign.digest().unwrap();
        let allow = ["--attach-allow", "127.0.0.1"];
        let world = match disk {
            Some(disk) => World::start_on(Scratch::new("crash").unwrap(), disk.join("data"), &allow),
            None => World::start(&allow),
        };
        let wish = json!({"name": "foreign", "addresses": [format!("127.0.0.1:{}", node.port)]});
        let made = world.call("POST", "/ck/v1/{project}/attachments", Some(&wish));
        let id = text(&made, "instance_id").unwrap();
        let path = format!("/v2/{{project}}/instances/{id}/backups");
        let made = world.call("POST", &path, Some(&json!({})));
        let backup = text(&made, "backup_id").unwrap();
        world.wait_idle();
        let mut target = Self {
            world,
            foreign,
            id,
            backup,
            new,
            old: String::new(),
        };
        target.reset();
        target
    }

    /// Other data than the backup's.
    fn reset(&mut self) {
        let node = &self.foreign.nodes[0];
        node.ask(&["FLUSHALL"]).unwrap();
        node.ask(&["DEBUG", "POPULATE", "3000", "key", "50"]).unwrap();
        node.ask(&["DEBUG", "POPULATE", "500", "other", "50"]).unwrap();
        self.old = self.foreign.digest().unwrap();
    }

    fn ask(&self, replay: &Value) {
        let path = format!("/v2/{{project}}/instances/{}/restores", self.id);
        let wish = json!({"backup_id": self.backup, "replay": replay});
        let _answered_or_not = self.world.try_call("POST", &path, Some(&wish));
    }

    /// What the newest record says, once everything has ended.
    fn newest(&self, label: &str) -> (String, String) {
        wait_until(&format!("{label}: the end of the restore"), || {
            let catalogue = Catalogue::open(&self.world);
            catalogue.count("SELECT count(*) FROM job WHERE state <> 'done'") == 0
        });
        let records = Catalogue::open(&self.world).restores(&self.id);
        let newest = records.last().expect("a record");
        (newest.status.clone(), newest.target_state.clone())
    }

    /// The record's state is what the servers hold.
    fn check(&self, label: &str) -> (String, String) {
        let told = self.newest(label);
        let held = self.foreign.digest().unwrap();
        match (told.0.as_str(), told.1.as_str()) {
            ("succeeded", "replaced") => assert_eq!(held, self.new, "{label}"),
            ("failed", "untouched" | "rolled_back") => assert_eq!(held, self.old, "{label}"),
            ("failed", "partial") => assert!(held != self.new, "{label}"),
            other => panic!("{label}: {other:?}"),
        }
        let left = std::fs::read_dir(self.world.data().join("replays"));
        assert_eq!(left.map_or(0, Iterator::count), 0, "{label}: journals");
        told
    }
}

#[test]
fn a_restore_into_attached_servers_hit_anywhere_says_what_they_hold() {
    let mut target = Target::new();
    for place in FORTH {
        for action in ["kill", "error"] {
            let label = format!("{place}:{action}");
            target.reset();
            target.world.restart(&Run::armed(&label));
            target.ask(&json!({}));
            if action == "kill" {
                wait_until(&label, || target.world.ended().is_some());
                target.world.restart(&Run::default());
            }
            let told = target.check(&label);
            assert!(
                target.world.marks().contains(&place.to_owned()) || action == "kill",
                "{label}"
            );
            match action {
                "kill" => assert_eq!(told.0, "succeeded", "{label}: it goes on"),
                _ => assert_ne!(told.1, "partial", "{label}: there is a safety point"),
            }
        }
    }
}

#[test]
fn a_restore_that_fails_half_way_is_put_back_whatever_hits_that() {
    let mut target = Target::new();
    for place in BACK {
        for action in ["kill", "error"] {
            let label = format!("{place}:{action}");
            target.reset();
            target
                .world
                .restart(&Run::armed(&format!("replay.clearing:error,{label}")));
            target.ask(&json!({}));
            if action == "kill" {
                wait_until(&label, || target.world.ended().is_some());
                target.world.restart(&Run::default());
            }
            let told = target.check(&label);
            assert_eq!(
                (told.0.as_str(), told.1.as_str()),
                ("failed", "rolled_back"),
                "{label}"
            );
        }
    }
}

/// What happens while a restore is held up at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    ServiceKilled,
    /// The servers say nothing for longer than they are waited for.
    TargetSilent,
    /// Every connection to them is ended, again and again.
    LinkCut,
    /// They take nothing more for want of memory.
    TargetFull,
    DiskFull,
    CorruptSegment,
}

impl Fault {
    const ALL: [Fault; 6] = [
        Fault::ServiceKilled,
        Fault::TargetSilent,
        Fault::LinkCut,
        Fault::TargetFull,
        Fault::DiskFull,
        Fault::CorruptSegment,
    ];
}

impl Target {
    fn segment(&self) -> std::path::PathBuf {
        let prefix = Catalogue::open(&self.world).backup(&self.backup).prefix.unwrap();
        let folder = self.world.data().join("store").join(prefix);
        folder.join("shard-0/seg-000000.rdb.zst.age")
    }

    fn strike(&mut self, fault: Fault, disk: Option<&FullDisk>) {
        let node = &self.foreign.nodes[0];
        // As long as a place is held up, and somewhat longer.
        let long = Duration::from_secs(8);
        match fault {
            Fault::ServiceKilled => {
                self.world.kill();
                self.world.run(&Run::default());
            }
            Fault::TargetSilent => {
                signal(node.pid(), "STOP");
                std::thread::sleep(long * 2);
                signal(node.pid(), "CONT");
            }
            Fault::LinkCut => {
                let since = Instant::now();
                while since.elapsed() < long {
                    node.ask(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"])
                        .unwrap();
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
            Fault::TargetFull => {
                node.ask(&["CONFIG", "SET", "maxmemory", "1mb"]).unwrap();
                std::thread::sleep(long);
                node.ask(&["CONFIG", "SET", "maxmemory", "0"]).unwrap();
            }
            Fault::DiskFull => {
                disk.unwrap().fill();
                std::thread::sleep(long);
                disk.unwrap().give_back();
            }
            Fault::CorruptSegment => {
                let file = self.segment();
                let mut bytes = std::fs::read(&file).unwrap();
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                std::fs::write(&file, bytes).unwrap();
            }
        }
    }
}

#[test]
fn whatever_fails_in_a_restore_into_attached_servers_they_hold_all_old_or_all_new_and_the_record_says_which()
{
    let test = "attached_restore::whatever_fails_in_a_restore_into_attached_servers_they_hold_all_old_or_all_new_and_the_record_says_which";
    let disk = match SmallDisk::mount(200, test) {
        Mounted::Here(disk) => Some(FullDisk::new(disk)),
        Mounted::Elsewhere => return,
        Mounted::Nowhere(why) => {
            not_shown("a full disk", &format!("no small file system: {why}"));
            None
        }
    };
    let mut target = Target::on(disk.as_ref().map(FullDisk::path));
    for fault in Fault::ALL {
        for place in FORTH {
            let is_short = matches!(
                (fault, place),
                (Fault::TargetFull | Fault::CorruptSegment, "replay.loading")
                    | (Fault::LinkCut, "replay.clearing")
            );
            let has_disk = fault != Fault::DiskFull || disk.is_some();
            if !(is_short || crate::long()) || !has_disk {
                continue;
            }
            let label = format!("{fault:?}, {place}");
            target.reset();
            let whole = std::fs::read(target.segment()).unwrap();
            target.world.restart(&Run::armed(&format!("{place}:stall")));
            target.ask(&json!({"patience": 5}));
            wait_until(&label, || target.world.marks().iter().any(|mark| mark == place));
            target.strike(fault, disk.as_ref());
            let told = target.check(&label);
            assert_ne!(told.1, "partial", "{label}: there is a safety point");
            println!("{label}: {} {}", told.0, told.1);
            std::fs::write(target.segment(), whole).unwrap();
            // The second attempt, with nothing in its way.
            target.reset();
            target.ask(&json!({}));
            assert_eq!(target.check(&label).0, "succeeded", "{label}, second attempt");
        }
    }
}
