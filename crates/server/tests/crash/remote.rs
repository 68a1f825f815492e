//! Killed, failing or held up while a backup goes to a remote store, is read from it or deleted there: archives are whole, and what
//! nobody needs goes.

use std::process::Command;
use std::time::Duration;

use xtask::object_server::ObjectServer;

use crate::checker::{self, Catalogue};
use crate::lifecycle::wait_until;
use crate::world::{Run, World};

pub const BUCKET: &str = "crash-backups";
/// Manifest, details, a segment and its index.
const OBJECTS_OF_A_BACKUP: usize = 4;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Backup,
    Restore,
    Delete,
}

/// Places within the calls of a remote store, and what passes them.
const PLACES: [(&str, Call); 4] = [
    ("remote.before_put", Call::Backup),
    ("remote.put", Call::Backup),
    ("remote.before_get", Call::Restore),
    ("remote.deleted", Call::Delete),
];

/// Those places.
pub fn places() -> impl Iterator<Item = &'static str> {
    PLACES.into_iter().map(|(name, _)| name)
}

/// Runs `cachekeep` with these words on the data directory.
pub fn administer(world: &World, words: &[&str]) -> Vec<u8> {
    let done = Command::new(env!("CARGO_BIN_EXE_cachekeep"))
        .args(words)
        .arg("--data-dir")
        .arg(world.data())
        .env("CACHEKEEP_STORAGE_SECRET_KEY", "any")
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    done.stdout
}

/// A service with an instance, whose backups go to the store.
pub fn scene(mut world: World) -> (ObjectServer, World) {
    let server = ObjectServer::start(BUCKET).unwrap_or_else(|stop| panic!("{stop}"));
    let endpoint = format!("http://{}", server.address());
    let place = ["--kind", "s3", "--endpoint", &endpoint, "--bucket", BUCKET];
    administer(
        &world,
        &[&["storage", "add", "offsite", "--access-key", "any"], &place[..]].concat(),
    );
    administer(&world, &["storage", "default", "offsite"]);
    world.create("one", "redis.single.xu1.tiny.128", "aof");
    world.fill("one", 6, 2000);
    (server, world)
}

/// Waits until the store holds the backups that are kept and nothing else.
#[track_caller]
pub fn judge_objects(server: &ObjectServer, world: &World, label: &str) {
    wait_until("one place is left for each backup that is kept", || {
        let catalogue = Catalogue::open(world);
        catalogue.count("SELECT count(*) FROM backup_place")
            == catalogue
                .count("SELECT count(*) FROM backup WHERE status = 'succeeded' AND kind <> 'generation'")
    });
    let kept: Vec<String> = Catalogue::open(world)
        .backups()
        .into_iter()
        .filter(|backup| backup.status == "succeeded" && backup.kind != "generation")
        .filter_map(|backup| backup.prefix)
        .collect();
    let mut objects = server.names(BUCKET).unwrap();
    objects.retain(|name| !name.starts_with("journal/") && !name.starts_with("catalog/"));
    assert_eq!(
        objects.len(),
        OBJECTS_OF_A_BACKUP * kept.len(),
        "{label}: {objects:#?}"
    );
    for object in &objects {
        assert!(
            kept.iter().any(|prefix| object.starts_with(prefix)),
            "{label}: {object} is nobody's"
        );
    }
}

#[test]
fn a_remote_store_hit_in_any_call_in_any_way_keeps_whole_archives_and_nothing_else() {
    let (server, mut world) = scene(World::start(&[]));
    let kept = world.backup("one");
    let captured = world.note("one");
    for action in ["kill", "error", "stall"] {
        for (place, call) in PLACES {
            let label = format!("{call:?} {place}:{action}");
            world.change("one");
            let before = world.note("one");
            let subject = match call {
                Call::Delete => world.backup("one"),
                _ => kept.clone(),
            };
            world.restart(&Run::armed(&format!("{place}:{action}")));
            let _may_die_first = match call {
                Call::Backup => world.ask_for_backup("one"),
                Call::Restore => world.ask_for_restore("one", &subject, false),
                Call::Delete => world.ask_to_delete_backup("one", &subject),
            };
            let died = world.wait_idle_or_dead(Duration::from_secs(60));
            assert!(
                world.marks().iter().any(|mark| mark == place),
                "{label}: not reached"
            );
            assert_eq!(died, action == "kill", "{label}");
            if action == "stall" {
                world.wait_stall_over(place);
            }
            world.restart(&Run::default());
            checker::settle(&mut world, &label);
            let catalogue = Catalogue::open(&world);
            // An error fails what it is met by; a kill and a pause are no reason to fail.
            match call {
                Call::Backup => {
                    let backups = catalogue.backups();
                    let made = backups.iter().rfind(|backup| backup.kind == "manual").unwrap();
                    let right = if action == "error" { "failed" } else { "succeeded" };
                    assert_eq!(made.status, right, "{label}: {made:?}");
                }
                Call::Restore => {
                    let restores = catalogue.restores(&world.id("one"));
                    let last = restores.last().unwrap();
                    let (right, holds) = match action {
                        "error" => ("failed", &before),
                        _ => ("succeeded", &captured),
                    };
                    assert_eq!(last.status, right, "{label}: {last:?}");
                    assert_eq!(&world.digest("one"), holds, "{label}");
                    world.note("one");
                }
                Call::Delete => {
                    let status = catalogue.backup(&subject).status;
                    if status != "deleted" {
                        let (status, answer) = world.ask_to_delete_backup("one", &subject).unwrap();
                        assert!(status < 300, "{label}: {status} {answer}");
                    }
                }
            }
            judge_objects(&server, &world, &label);
        }
    }
    world.change("one");
    let (status, _) = world.ask_for_restore("one", &kept, false).unwrap();
    assert_eq!(status, 200);
    checker::settle(&mut world, "at the end");
    assert_eq!(world.digest("one"), captured);
}

#[test]
fn a_kill_while_a_backup_goes_to_s3_leaves_whole_archives_and_nothing_else() {
    let (server, mut world) = scene(World::start(&[]));
    let places = [
        "backup.begun",
        "backup.first_segment_stored",
        "backup.before_manifest",
        "backup.after_manifest",
        "backup.before_settle",
        "backup.settled",
    ];
    for place in places {
        world.change("one");
        let digest = world.note("one");
        world.restart(&Run::armed(&format!("{place}:kill")));
        let (status, answer) = world.ask_for_backup("one").unwrap();
        assert!(status < 300, "{answer}");
        let backup = answer["backup_id"].as_str().unwrap().to_owned();
        assert!(
            world.wait_idle_or_dead(Duration::from_secs(60)),
            "{place}: not reached"
        );
        world.restart(&Run::default());
        checker::settle(&mut world, place);
        let record = Catalogue::open(&world).backup(&backup);
        assert_eq!(record.status, "succeeded", "{place}");
        judge_objects(&server, &world, place);
        world.change("one");
        let (status, _) = world.ask_for_restore("one", &backup, false).unwrap();
        assert_eq!(status, 200);
        checker::settle(&mut world, place);
        assert_eq!(world.digest("one"), digest, "{place}");
    }
}
