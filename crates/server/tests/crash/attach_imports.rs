//! Import tasks (CreateMigrationTask) into servers of somebody else's and into instances of ours, hit at every place: keys of the same name are
//! overwritten, others stay, and what the record says of the target is so, by the engine's own digest.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;
use xtask::fill::Random;
use xtask::foreign::{Access, Deployment, Form};

use crate::checker::Catalogue;
use crate::lifecycle::wait_until;
use crate::world::{Run, World, signal, text};

/// Every place that an import passes which succeeds.
const FORTH: [&str; 5] = [
    "replay.begun",
    "replay.validated",
    "replay.loading",
    "replay.half_made",
    "replay.applied",
];
const BACK: [&str; 3] = ["replay.giving_up", "replay.putting_back", "replay.put_back"];

/// What an import ended with.
#[derive(Debug)]
struct Told {
    status: String,
    state: String,
    code: Option<String>,
}

/// A backup of an instance of ours, and where it is imported into.
struct Import {
    world: World,
    foreign: Deployment,
    backup: String,
    attached: String,
    /// Digests of the target before, and with the backup's keys over that.
    old: String,
    both: String,
}

impl Import {
    fn new() -> Self {
        let settings = [("enable-debug-command", "local")];
        let foreign =
            Deployment::start(Path::new("redis-server"), Form::Single, Access::Open, &settings).unwrap();
        let mut world = World::start(&["--attach-allow", "127.0.0.1"]);
        world.create("one", "redis.single.xu1.tiny.256", "aof");
        let mut engine = world.client("one");
        for number in 0..3000 {
            engine
                .send(&["SET", &format!("key:{number}"), "of the backup"])
                .unwrap();
        }
        engine.settle().unwrap();
        let fills = "for i = 1, 60000 do redis.call('RPUSH', KEYS[1], string.rep(redis.sha1hex(i), 3)) end";
        engine.ask(&["EVAL", fills, "1", "large"]).unwrap();
        let backup = world.backup("one");
        let address = format!("127.0.0.1:{}", foreign.nodes[0].port);
        let wish = json!({"name": "foreign", "addresses": [address]});
        let made = world.call("POST", "/ck/v1/{project}/attachments", Some(&wish));
        let attached = text(&made, "instance_id").unwrap();
        world.create("two", "redis.single.xu1.tiny.256", "aof");
        let mut import = Self {
            world,
            foreign,
            backup,
            attached,
            old: String::new(),
            both: String::new(),
        };
        import.learn();
        import
    }

    /// What the target holds before and after, by another way than an import: the same commands.
    fn learn(&mut self) {
        let mut link = self.foreign.nodes[0].open().unwrap();
        reset(&mut link);
        self.old = self.foreign.digest().unwrap();
        let mut engine = self.world.client("one");
        let dumped =
            |engine: &mut xtask::resp::Connection, key: &str| match engine.ask(&["DUMP", key]).unwrap() {
                xtask::resp::Reply::Bytes(bytes) => bytes,
                other => panic!("{other:?}"),
            };
        for number in 0..3000 {
            link.send(&["SET", &format!("key:{number}"), "of the backup"])
                .unwrap();
        }
        let large = dumped(&mut engine, "large");
        link.send(&[&b"RESTORE"[..], b"large", b"0", &large, b"REPLACE"])
            .unwrap();
        link.settle().unwrap();
        self.both = self.foreign.digest().unwrap();
    }

    /// Other data than the backup's in both targets.
    fn reset(&mut self) {
        reset(&mut self.foreign.nodes[0].open().unwrap());
        reset(&mut self.world.client("two"));
        self.world.note("two");
    }

    fn ask(&self, target: &str) {
        let wish = json!({"task_name": "a-task", "description": "", "migration_type": "backupfile_import",
            "migration_method": "full_amount_migration", "target_instance": {"id": target},
            "backup_files": {"file_source": "backup_record", "backup_id": self.backup}});
        let _answered_or_not = self
            .world
            .try_call("POST", "/v2/{project}/migration-task", Some(&wish));
    }

    fn stop(&self) {
        let id = Catalogue::open(&self.world).newest_migration().0;
        let path = format!("/v2/{{project}}/migration-task/{id}/stop");
        self.world.call("POST", &path, None);
    }

    fn newest(&self) -> Told {
        let (_, status, state, code) = Catalogue::open(&self.world).newest_migration();
        Told { status, state, code }
    }

    fn ended(&self, label: &str) -> Told {
        let since = Instant::now();
        while Catalogue::open(&self.world).count("SELECT count(*) FROM job WHERE state <> 'done'") > 0 {
            assert!(
                since.elapsed() < Duration::from_secs(240),
                "{label}: it does not end"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        self.newest()
    }

    /// The record's state is what the target holds.
    fn check(&self, target: &str, label: &str) -> Told {
        let told = self.ended(label);
        let held = match target == self.attached {
            true => self.foreign.digest().unwrap(),
            false => {
                wait_until("the instance answers", || self.world.try_digest("two").is_some());
                self.world.digest("two")
            }
        };
        match (told.status.as_str(), told.state.as_str()) {
            ("succeeded", "replaced") => assert_eq!(held, self.both, "{label}"),
            ("failed", "untouched" | "rolled_back") => assert_eq!(held, self.old, "{label}"),
            _ => panic!("{label}: {told:?}"),
        }
        let left = std::fs::read_dir(self.world.data().join("replays"));
        assert_eq!(left.map_or(0, Iterator::count), 0, "{label}: journals");
        told
    }

    /// The attached servers, and an instance of ours.
    fn targets(&self) -> [String; 2] {
        [self.attached.clone(), self.world.id("two")]
    }
}

fn reset(link: &mut xtask::resp::Connection) {
    link.ask(&["FLUSHALL"]).unwrap();
    for number in 1500..4000 {
        link.send(&["SET", &format!("key:{number}"), "of before"])
            .unwrap();
    }
    link.settle().unwrap();
}

#[test]
fn an_import_hit_anywhere_says_what_its_target_holds() {
    let mut import = Import::new();
    for target in import.targets() {
        for place in FORTH {
            for action in ["kill", "error"] {
                let label = format!("{place}:{action} into {target}");
                import.reset();
                import.world.restart(&Run::armed(&format!("{place}:{action}")));
                import.ask(&target);
                if action == "kill" {
                    wait_until(&label, || import.world.ended().is_some());
                    import.world.restart(&Run::default());
                }
                let told = import.check(&target, &label);
                let wanted = if action == "kill" { "succeeded" } else { "failed" };
                assert_eq!(told.status, wanted, "{label}: {told:?}");
            }
        }
    }
}

#[test]
fn an_import_that_fails_half_way_is_put_back_whatever_hits_that() {
    let mut import = Import::new();
    for target in import.targets() {
        for place in BACK {
            for action in ["kill", "error"] {
                let label = format!("{place}:{action} into {target}");
                import.reset();
                import
                    .world
                    .restart(&Run::armed(&format!("replay.half_made:error,{place}:{action}")));
                import.ask(&target);
                if action == "kill" {
                    wait_until(&label, || import.world.ended().is_some());
                    import.world.restart(&Run::default());
                }
                let told = import.check(&target, &label);
                assert_eq!(told.state, "rolled_back", "{label}: {told:?}");
                assert_eq!(told.code.as_deref(), Some("dcs.08.0007"), "{label}");
            }
        }
    }
}

#[test]
fn an_import_that_is_killed_at_random_moments_comes_to_its_end() {
    let kills = if crate::long() { 40 } else { 4 };
    let seed = std::env::var("CACHEKEEP_TEST_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(xtask::fill::now_ms);
    println!("seed {seed}: CACHEKEEP_TEST_SEED={seed} chooses the same moments");
    let mut random = Random::new(seed, 0);
    let mut import = Import::new();
    for kill in 0..kills {
        for target in import.targets() {
            let label = format!("seed {seed}, kill {kill} into {target}");
            import.reset();
            import.ask(&target);
            std::thread::sleep(Duration::from_micros(random.below(600_000)));
            import.world.restart(&Run::default());
            assert_eq!(import.check(&target, &label).status, "succeeded", "{label}");
        }
    }
}

#[test]
fn what_is_not_known_of_the_target_of_an_import_is_said_to_be_partial_once_it_answers_again() {
    let mut import = Import::new();
    // An engine of ours is waited for a minute, again and again.
    let some = if crate::long() { 2 } else { 1 };
    for target in import.targets().into_iter().take(some) {
        import.reset();
        import.world.restart(&Run {
            back_seconds: Some(3),
            ..Run::armed("replay.applied:stall")
        });
        let pid = match target == import.attached {
            true => import.foreign.nodes[0].pid(),
            false => import.world.serving_pid("two").unwrap(),
        };
        import.ask(&target);
        wait_until("it is held up", || !import.world.marks().is_empty());
        signal(pid, "STOP");
        import.stop();
        let told = import.ended(&target);
        assert_eq!(
            (told.status.as_str(), told.state.as_str()),
            ("failed", "unknown"),
            "{target}"
        );
        signal(pid, "CONT");
        let since = Instant::now();
        while import.newest().state != "partial" {
            assert!(
                since.elapsed() < Duration::from_secs(60),
                "{target}: {:?}",
                import.newest()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
