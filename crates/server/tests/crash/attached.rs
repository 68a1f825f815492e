//! Servers of somebody else's have the settings that they had, wherever the service is killed while it captures them.

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use xtask::fill::Random;
use xtask::foreign::{Access, Deployment, Form};

use crate::checker::Catalogue;
use crate::lifecycle::wait_until;
use crate::world::{Run, World, text};

/// What a capture changes, and what it is on these servers.
const SETTINGS: [(&str, &str); 2] = [("repl-diskless-sync-delay", "1"), ("rdbcompression", "yes")];

/// Every place that only captures of attached servers pass.
const PLACES: [&str; 3] = ["source.noted", "source.tuned", "source.put_back"];

/// Every place that only attached servers lead to.
pub fn places() -> impl Iterator<Item = &'static str> {
    PLACES.into_iter().chain(crate::attached_restore::places())
}

/// A foreign server with some keys, attached.
struct Attached {
    world: World,
    foreign: Deployment,
    id: String,
}

impl Attached {
    fn new() -> Self {
        let settings = [&[("enable-debug-command", "local")], &SETTINGS[..]].concat();
        let foreign =
            Deployment::start(Path::new("redis-server"), Form::Single, Access::Open, &settings).unwrap();
        let node = &foreign.nodes[0];
        node.ask(&["DEBUG", "POPULATE", "20000", "key", "500"]).unwrap();
        let world = World::start(&["--attach-allow", "127.0.0.1"]);
        let wish = json!({"name": "foreign", "addresses": [format!("127.0.0.1:{}", node.port)]});
        let made = world.call("POST", "/ck/v1/{project}/attachments", Some(&wish));
        let id = text(&made, "instance_id").unwrap();
        Self { world, foreign, id }
    }

    fn ask_for_backup(&self) {
        let path = format!("/v2/{{project}}/instances/{}/backups", self.id);
        let _answered_or_not = self.world.try_call("POST", &path, Some(&json!({})));
    }

    /// Everything has come to its end, and the server is as it was.
    fn is_settled(&self, label: &str) {
        wait_until(
            &format!("{label}: the end of the backup and of what was noted"),
            || {
                let catalogue = Catalogue::open(&self.world);
                catalogue.count("SELECT count(*) FROM job WHERE state <> 'done'") == 0
                    && catalogue.count("SELECT count(*) FROM instance WHERE attachment_settings <> '[]'") == 0
            },
        );
        for (name, value) in SETTINGS {
            assert_eq!(
                self.foreign.nodes[0].setting(name).unwrap(),
                value,
                "{label}: {name}"
            );
        }
    }
}

#[test]
fn a_capture_of_an_attached_server_hit_anywhere_leaves_its_settings_as_they_were() {
    let mut attached = Attached::new();
    for place in PLACES {
        for action in ["kill", "error"] {
            let label = format!("{place}:{action}");
            attached.world.restart(&Run::armed(&label));
            attached.ask_for_backup();
            if action == "kill" {
                wait_until(&label, || attached.world.ended().is_some());
                assert_eq!(attached.world.marks(), [place], "{label}");
                attached.world.restart(&Run::default());
            } else {
                wait_until(&label, || attached.world.marks() == [place]);
            }
            attached.is_settled(&label);
        }
    }
    // What was interrupted by a kill was begun anew.
    let backups = Catalogue::open(&attached.world).backups();
    let succeeded = backups.iter().filter(|backup| backup.status == "succeeded");
    assert!(succeeded.count() >= 3, "{backups:?}");
}

#[test]
fn kills_at_random_moments_of_a_capture_leave_an_attached_server_as_it_was() {
    let kills = if crate::long() { 100 } else { 6 };
    let seed = std::env::var("CACHEKEEP_TEST_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(xtask::fill::now_ms);
    println!("seed {seed}: CACHEKEEP_TEST_SEED={seed} chooses the same moments");
    let mut random = Random::new(seed, 0);
    let mut attached = Attached::new();
    for kill in 0..kills {
        attached.ask_for_backup();
        std::thread::sleep(Duration::from_micros(random.below(300_000)));
        attached.world.restart(&Run::default());
        attached.is_settled(&format!("seed {seed}, kill {kill}"));
    }
    let backups = Catalogue::open(&attached.world).backups();
    let unsuccessful: Vec<_> = backups
        .iter()
        .filter(|backup| backup.status != "succeeded")
        .collect();
    assert!(unsuccessful.is_empty(), "begun anew, and done: {unsuccessful:?}");
}
