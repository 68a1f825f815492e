//! Restores into servers of somebody else's, hit at every place: what the record says of them is so, by the engine's own digest.

use std::path::Path;

use serde_json::{Value, json};
use xtask::foreign::{Access, Deployment, Form};

use crate::checker::Catalogue;
use crate::lifecycle::wait_until;
use crate::world::{Run, World, text};

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
        let settings = [("enable-debug-command", "local")];
        let foreign =
            Deployment::start(Path::new("redis-server"), Form::Single, Access::Open, &settings).unwrap();
        let node = &foreign.nodes[0];
        node.ask(&["DEBUG", "POPULATE", "5000", "key", "100"]).unwrap();
        let new = foreign.digest().unwrap();
        let world = World::start(&["--attach-allow", "127.0.0.1"]);
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
