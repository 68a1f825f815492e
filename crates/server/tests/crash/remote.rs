//! Killed while a backup goes to a remote store: it is made anew, and what the first attempt left there goes.

use std::process::Command;
use std::time::Duration;

use xtask::object_server::ObjectServer;

use crate::checker::{self, Catalogue};
use crate::lifecycle::wait_until;
use crate::world::{Run, World};

const BUCKET: &str = "crash-backups";

fn administer(world: &World, words: &[&str]) {
    let done = Command::new(env!("CARGO_BIN_EXE_cachekeep"))
        .arg("storage")
        .args(words)
        .arg("--data-dir")
        .arg(world.data())
        .env("CACHEKEEP_STORAGE_SECRET_KEY", "any")
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn a_kill_while_a_backup_goes_to_s3_leaves_whole_archives_and_nothing_else() {
    let server = ObjectServer::start(BUCKET).unwrap_or_else(|stop| panic!("{stop}"));
    let mut world = World::start(&[]);
    let endpoint = format!("http://{}", server.address());
    let place = ["--kind", "s3", "--endpoint", &endpoint, "--bucket", BUCKET];
    administer(
        &world,
        &[&["add", "offsite", "--access-key", "any"], &place[..]].concat(),
    );
    administer(&world, &["default", "offsite"]);
    world.create("one", "redis.single.xu1.tiny.128", "aof");
    world.fill("one", 6, 2000);
    let places = [
        "backup.begun",
        "backup.first_segment_stored",
        "backup.before_manifest",
        "backup.after_manifest",
        "backup.before_settle",
        "backup.settled",
    ];
    for (made, place) in (1..).zip(places) {
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
        wait_until("one place is left for each backup", || {
            Catalogue::open(&world).count("SELECT count(*) FROM backup_place") == made
        });
        let kept: Vec<String> = Catalogue::open(&world)
            .backups()
            .into_iter()
            .filter_map(|backup| backup.prefix)
            .collect();
        let mut objects = server.names(BUCKET).unwrap();
        objects.retain(|name| !name.starts_with("journal/") && !name.starts_with("catalog/"));
        // Manifest, details, a segment and its index.
        assert_eq!(objects.len(), 4 * kept.len(), "{place}: {objects:#?}");
        for object in &objects {
            assert!(
                kept.iter().any(|prefix| object.starts_with(prefix)),
                "{place}: {object} is nobody's"
            );
        }
        world.change("one");
        let (status, _) = world.ask_for_restore("one", &backup, false).unwrap();
        assert_eq!(status, 200);
        checker::settle(&mut world, place);
        assert_eq!(world.digest("one"), digest, "{place}");
    }
}
