//! Killed, failing or held up in what is done beside operations: the store is told of changes of the catalogue, hooks are told of
//! events, and what nobody needs is removed from the store. None of it is forgotten.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use serde_json::Value;
use xtask::scratch::Scratch;

use crate::catalogue::Kind;
use crate::checker::{self, Catalogue};
use crate::lifecycle::wait_until;
use crate::remote::{BUCKET, administer, judge_objects, scene};
use crate::world::{Run, World};

/// Where that can be hit.
pub const PLACES: [&str; 5] = [
    "mirror.numbered",
    "mirror.put",
    "mirror.told",
    "hook.sent",
    "sweep.removed",
];

/// A hook that notes what it is told, a line each.
fn add_hook(world: &World, folder: &Scratch) -> std::path::PathBuf {
    // It is run by the user of the engines.
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let (program, told) = (folder.path().join("hook.sh"), folder.path().join("told"));
    let text = format!("#!/bin/sh\n{{ cat; echo; }} >> {}\n", told.display());
    std::fs::write(&program, text).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    administer(
        world,
        &["hook", "add", "notes", "--exec", program.to_str().unwrap()],
    );
    told
}

/// What a rebuild has to bring back.
fn records(world: &World) -> Vec<String> {
    let backups = Catalogue::open(world).backups();
    let of_store = backups.into_iter().filter(|backup| backup.kind != "generation");
    of_store
        .map(|backup| {
            format!(
                "{} {} {} {:?}",
                backup.id, backup.kind, backup.status, backup.prefix
            )
        })
        .collect()
}

fn is_mirrored(world: &World) -> bool {
    let status: Value =
        serde_json::from_slice(&administer(world, &["catalog", "status", "-o", "json"])).unwrap();
    status[0]["rows_not_mirrored"] == 0
}

#[test]
fn what_is_done_beside_operations_is_hit_anywhere_and_nothing_of_it_is_forgotten() {
    let (server, mut world) = scene(World::start_in(Kind::Sqlite, &[]));
    let folder = Scratch::new("hook").unwrap();
    let told = add_hook(&world, &folder);
    for action in ["kill", "error", "stall"] {
        for place in PLACES {
            let label = format!("{place}:{action}");
            world.change("one");
            if place == "sweep.removed" {
                // The next attempt stores under another name, and nobody needs what this one has stored.
                world.restart(&Run::armed("backup.first_segment_stored:kill"));
                let _dies_first = world.ask_for_backup("one");
                assert!(world.wait_idle_or_dead(Duration::from_secs(60)), "{label}");
            }
            world.restart(&Run::armed(&label));
            let _may_die_first = world.ask_for_backup("one");
            wait_until(&format!("{label} is reached"), || {
                world.marks().iter().any(|mark| mark == place)
            });
            match action {
                "kill" => wait_until("it is dead", || world.ended().is_some()),
                "stall" => world.wait_stall_over(place),
                _ => {}
            }
            world.restart(&Run::default());
            checker::settle(&mut world, &label);
            judge_objects(&server, &world, &label);
            wait_until("all is mirrored", || is_mirrored(&world));
            wait_until("the hook is told", || {
                let waiting = "SELECT count(*) FROM delivery WHERE delivered_at_ms IS NULL";
                Catalogue::open(&world).count(waiting) == 0
            });
        }
    }
    let told = std::fs::read_to_string(told).unwrap();
    let backups = Catalogue::open(&world).backups();
    let ended: Vec<_> = backups.iter().filter(|backup| backup.kind == "manual").collect();
    // Where it was accepted before it died, each made one.
    assert!(ended.len() >= 2 * PLACES.len(), "{ended:?}");
    for backup in ended {
        assert!(
            told.contains(&backup.id),
            "the hook was not told of {backup:?}: {told}"
        );
    }
    // An entry that is sent again after a kill holds the same rows or newer ones: a rebuild has each row as it was last.
    let before = records(&world);
    world.end();
    for ending in ["", "-wal", "-shm"] {
        let _not_each_is_there = std::fs::remove_file(world.data().join(format!("catalog.sqlite{ending}")));
    }
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "any").unwrap();
    let endpoint = format!("http://{}", server.address());
    administer(
        &world,
        &[
            "catalog",
            "rebuild",
            "--from-store",
            &format!("s3://{BUCKET}"),
            "--endpoint",
            &endpoint,
            "--access-key",
            "any",
            "--secret-key-file",
            secret.to_str().unwrap(),
        ],
    );
    assert_eq!(records(&world), before);
}
