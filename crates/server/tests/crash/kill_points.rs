//! Kills and errors at every named place of the program.
//!
//! Each place is tried in every operation that passes it: the service is started with the place armed, the operation
//! is asked for, the mark file proves that the place was reached. After a kill the service is started again; after an
//! error it goes on. Then everything must have come to its end, with data all old or all new and records that say
//! which ([`crate::checker`]).
//!
//! No client writes during an operation, so that the expected data is known to the byte.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::json;
use xtask::plain_engine::PlainEngine;
use xtask::resp::Connection;

use Operation::{
    Backup, Create, CreateFails, DeleteBackup, DeleteInstance, Flush, Import, InPlace, InPlaceFails,
    Password, Restart, Restore, RestoreFails, SwitchFails, Undo, UndoFails,
};

use crate::catalogue::Kind;
use crate::checker::{self, Catalogue, Form};
use crate::world::{Run, World, text};

/// What the service does when it is hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Backup,
    /// Of a file behind a URL.
    Import,
    Restore,
    /// The verification fails, so the new generation is removed.
    RestoreFails,
    /// The last step before the port moves fails, so the old generation gets it back.
    SwitchFails,
    Undo,
    UndoFails,
    /// Two generations do not fit.
    InPlace,
    /// Fails with the old engine stopped.
    InPlaceFails,
    DeleteBackup,
    DeleteInstance,
    Restart,
    Flush,
    Password,
    Create,
    CreateFails,
}

/// `DEBUG DIGEST` of an engine without keys.
const EMPTY: &str = "0000000000000000000000000000000000000000";

/// Every place in the sources, and the operations that pass it. A test below compares this with the sources.
pub const PLACES: &[(&str, &[Operation])] = &[
    ("archive.manifest_deleted", &[DeleteBackup]),
    ("backup.accepted", &[Backup]),
    ("backup.after_details", &[Backup, Import]),
    ("backup.after_fullresync", &[Backup, InPlace]),
    ("backup.after_last_segment", &[Backup]),
    ("backup.after_manifest", &[Backup, Import, InPlace]),
    ("backup.before_connect", &[Backup]),
    ("backup.before_manifest", &[Backup, Import]),
    ("backup.before_settle", &[Backup]),
    ("backup.begun", &[Backup]),
    ("backup.claimed", &[Backup]),
    ("backup.first_segment_stored", &[Backup, Import]),
    ("backup.mid_capture", &[Backup, InPlace]),
    ("backup.settled", &[Backup]),
    ("backup_delete.after_commit", &[DeleteBackup]),
    ("create.before_settle", &[Create, CreateFails]),
    ("delete.after_generation", &[DeleteInstance]),
    ("delete.before_settle", &[DeleteInstance]),
    ("delete.before_take_down", &[DeleteInstance]),
    (
        "generation.directory_removed",
        &[
            DeleteInstance,
            RestoreFails,
            SwitchFails,
            InPlaceFails,
            CreateFails,
        ],
    ),
    (
        "generation.killed",
        &[
            DeleteInstance,
            RestoreFails,
            SwitchFails,
            InPlaceFails,
            CreateFails,
        ],
    ),
    (
        "generation.removing",
        &[
            DeleteInstance,
            RestoreFails,
            SwitchFails,
            InPlaceFails,
            CreateFails,
        ],
    ),
    ("import.before_settle", &[Import]),
    ("import.begun", &[Import]),
    ("import.settled", &[Import]),
    ("nodes.one_ready", &[Create]),
    ("nodes.one_started", &[Create]),
    ("operation.before_settle", &[Restart, Flush, Password]),
    ("operation.intended", &[Restart, Flush]),
    (
        "process.after_ready",
        &[Create, Restore, Restart, InPlace, InPlaceFails],
    ),
    (
        "process.after_spawn",
        &[Create, Restore, Restart, InPlace, InPlaceFails],
    ),
    ("process.after_stop", &[Restart, InPlace]),
    (
        "process.before_spawn",
        &[Create, Restore, Restart, InPlace, InPlaceFails],
    ),
    ("process.before_stop", &[Restart, InPlace]),
    ("promote.after_limit", &[Restore]),
    ("promote.after_expire", &[Restore]),
    ("promote.after_primary", &[Restore]),
    ("restart.after_stop", &[Restart]),
    ("restart.before_stop", &[Restart]),
    ("restore.accepted", &[Restore]),
    (
        "restore.before_fail",
        &[RestoreFails, SwitchFails, UndoFails, InPlaceFails],
    ),
    ("restore.before_stop_old", &[InPlace]),
    ("restore.begun", &[Restore, Undo, InPlace]),
    ("restore.claimed", &[Restore, Undo, InPlace]),
    ("restore.loaded", &[Restore]),
    (
        "restore.new_removed",
        &[RestoreFails, SwitchFails, UndoFails, InPlaceFails],
    ),
    ("restore.old_stopped", &[InPlace]),
    ("restore.proven", &[Restore]),
    ("restore.promoted", &[Restore, Undo, InPlace]),
    (
        "restore.rolled_back",
        &[RestoreFails, SwitchFails, UndoFails, InPlaceFails],
    ),
    ("restore.safety_taken", &[InPlace]),
    ("restore.settled", &[Restore, Undo, InPlace]),
    ("restore.switch_intended", &[Restore, Undo, InPlace]),
    ("restore.switched", &[Restore, Undo, InPlace]),
    ("restore.verified", &[Restore]),
    ("sideload.after_place", &[Restore, InPlace]),
    ("sideload.after_rename", &[Restore, InPlace]),
    ("sideload.before_place", &[Restore, InPlace]),
    ("sideload.mid_place", &[Restore, InPlace]),
    ("store.after_link", &[Backup, Import, InPlace]),
    ("store.after_temp_write", &[Backup, Import, InPlace]),
    ("switch.after_close_port", &[Restore, Undo]),
    ("switch.after_end_normal", &[Restore, Undo]),
    ("switch.after_kill_replica", &[Restore, Undo]),
    ("switch.after_multi", &[Restore, Undo]),
    ("switch.after_new_port", &[Restore, Undo]),
    ("switch.after_old_port", &[Restore, Undo]),
    ("switch.before_exec", &[Restore, Undo]),
    ("switch.before_old_port", &[Restore, Undo]),
    ("verify.after", &[Restore, InPlace]),
    ("verify.before", &[Restore, InPlace]),
];

/// Places of a copy into another store, which a process of its own makes: it is hit in `tests/it/copy.rs`.
const PLACES_OF_COPIES: [&str; 6] = [
    "copy.after_manifest",
    "copy.before_manifest",
    "copy.before_settle",
    "copy.begun",
    "copy.mid",
    "copy.settled",
];

/// Places of what the scheduler does by itself: they are hit in `tests/it/schedule.rs`.
const PLACES_OF_SCHEDULES: [&str; 2] = ["backup_expiry.after_commit", "schedule.accepted"];

#[test]
fn every_place_in_the_sources_has_its_operation() {
    let mut named = BTreeSet::new();
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    for member in ["engine", "server"] {
        find_places(&crates.join(member).join("src"), &mut named);
    }
    let single = PLACES.iter().map(|(name, _)| *name);
    let elsewhere = crate::cluster::places()
        .chain(crate::ha::places())
        .chain(crate::resize::places())
        .chain(crate::attached::places())
        .chain(crate::old_engine::places())
        .chain(crate::remote::places())
        .chain(crate::beside::PLACES)
        .chain(PLACES_OF_COPIES)
        .chain(PLACES_OF_SCHEDULES);
    let listed: BTreeSet<String> = single.chain(elsewhere).map(str::to_owned).collect();
    assert_eq!(named, listed);
    assert!(listed.len() >= 40);
}

fn find_places(directory: &Path, into: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            find_places(&path, into);
        } else {
            let source = std::fs::read_to_string(&path).unwrap();
            let calls = source.split("failpoint::hit(\"").skip(1);
            into.extend(
                calls
                    .filter_map(|rest| rest.split_once('"'))
                    .map(|(name, _)| name.to_owned()),
            );
        }
    }
}

#[test]
fn a_backup_hit_anywhere_is_whole_or_gone() {
    hit_everywhere(Backup, "aof");
}

#[test]
fn an_import_hit_anywhere_is_whole_or_failed() {
    hit_everywhere(Import, "aof");
}

#[test]
fn a_restore_hit_anywhere_leaves_all_old_or_all_new_data() {
    hit_everywhere(Restore, "aof");
}

#[test]
fn a_switch_hit_anywhere_leaves_all_old_or_all_new_data_whatever_the_persistence() {
    for persistence in ["rdb", "none"] {
        hit_places(Restore, persistence, |place| {
            [
                "restore.switch",
                "restore.promoted",
                "restore.settled",
                "promote.",
                "switch.",
            ]
            .iter()
            .any(|begin| place.starts_with(begin))
        });
    }
}

#[test]
fn a_failing_restore_hit_anywhere_leaves_the_old_data() {
    hit_everywhere(RestoreFails, "aof");
    hit_everywhere(SwitchFails, "rdb");
}

#[test]
fn an_undo_hit_anywhere_leaves_all_old_or_all_new_data() {
    hit_everywhere(Undo, "aof");
    hit_everywhere(UndoFails, "none");
}

#[test]
fn an_in_place_restore_hit_anywhere_leaves_all_old_or_all_new_data() {
    hit_everywhere(InPlace, "aof");
}

#[test]
fn a_failing_in_place_restore_hit_anywhere_brings_the_old_data_back() {
    hit_everywhere(InPlaceFails, "aof");
    hit_everywhere(InPlaceFails, "none");
}

#[test]
fn creating_restarting_and_deleting_hit_anywhere_come_to_their_end() {
    for operation in [
        Create,
        CreateFails,
        Restart,
        Flush,
        Password,
        DeleteBackup,
        DeleteInstance,
    ] {
        hit_everywhere(operation, "aof");
    }
}

/// Kill and error at every place of one operation, on one data directory.
fn hit_everywhere(operation: Operation, persistence: &str) {
    hit_places(operation, persistence, |_| true);
}

fn hit_places(operation: Operation, persistence: &str, wanted: impl Fn(&str) -> bool) {
    let passed = PLACES.iter().filter(|(_, passing)| passing.contains(&operation));
    let places: Vec<&str> = passed
        .map(|(place, _)| *place)
        .filter(|place| wanted(place))
        .collect();
    let world = World::start(&["--import-allow", "127.0.0.1"]);
    hit_these(world, operation, persistence, &places);
}

/// Kill and error at these places of one operation.
pub fn hit_these(mut world: World, operation: Operation, persistence: &str, places: &[&str]) {
    let backup = furnish(&mut world, persistence);
    let mut fired = 0;
    for place in places {
        for action in ["kill", "error"] {
            hit(&mut world, operation, place, action, &backup);
            fired += 1;
        }
    }
    checker::check(&mut world, Form::Full, &format!("{operation:?} at the end"));
    println!("{operation:?} ({persistence}): {fired} hits");
    assert!(fired > 0);
}

/// A service with one instance, and the backup of it that operations are about.
pub fn scene(kind: Kind, persistence: &str) -> (World, String) {
    let mut world = World::start_in(kind, &["--import-allow", "127.0.0.1"]);
    let backup = furnish(&mut world, persistence);
    (world, backup)
}

fn furnish(world: &mut World, persistence: &str) -> String {
    world.create("one", "redis.single.xu1.tiny.256", persistence);
    world.fill("one", 11, 3000);
    world.backup("one")
}

/// Arms a place, asks for an operation that passes it, and lets the checker judge what came of it. `action`: kill, error or
/// stall.
pub fn hit(world: &mut World, operation: Operation, place: &str, action: &str, backup: &str) {
    let label = format!("{operation:?} {place}:{action}");
    let (subject, before) = prepare(world, operation, backup);
    let restores = Catalogue::open(world).restores(&world.id("one")).len();
    let failure = match operation {
        RestoreFails => "verify.after:error,",
        SwitchFails | UndoFails => "switch.after_old_port:error,",
        InPlaceFails => "restore.old_stopped:error,",
        CreateFails => "process.after_ready:error,",
        _ => "",
    };
    world.restart(&Run {
        failpoints: format!("{failure}{place}:{action}"),
        memory_available: matches!(operation, InPlace | InPlaceFails).then_some(1 << 20),
        ..Run::default()
    });
    ask(world, operation, &subject, backup);
    let died = world.wait_idle_or_dead(Duration::from_secs(60));
    let marks = world.marks();
    assert!(
        marks.iter().any(|mark| mark == place),
        "{label}: reached only {marks:?}"
    );
    assert_eq!(died, action == "kill", "{label}");
    if action == "stall" {
        world.wait_stall_over(place);
    }
    if died || matches!(operation, DeleteBackup | Import) {
        // What a failed deletion or a dead import leaves in the store is swept at the next start.
        world.restart(&Run::default());
    }
    checker::settle(world, &label);
    if operation == Flush {
        // Told to the engine, or not once it is not known whether it was: never in part.
        let digest = world.digest("one");
        let told = place != "operation.intended" || action == "stall";
        assert_eq!(digest == EMPTY, told, "{label}");
        assert!(told || Some(digest) == world.instances["one"].digest, "{label}");
        world.note("one");
    }
    if action != "error" {
        let is_lost = died && operation == Import && place != "import.settled";
        is_done_all_the_same(world, operation, (&before, restores), is_lost, &label);
    }
    forget(world, operation, &subject, (place, action));
    let form = match operation {
        Backup | Import => Form::Full,
        _ => Form::Cheap,
    };
    learn_backups(world, operation, &before);
    checker::check(world, form, &label);
    clean_up(world, operation);
}

/// A kill or a pause is no reason to fail: what was accepted is done after it. But an import dies with its process.
fn is_done_all_the_same(
    world: &World,
    operation: Operation,
    (backups, restores): (&BTreeSet<String>, usize),
    is_lost: bool,
    label: &str,
) {
    let catalogue = Catalogue::open(world);
    match operation {
        Backup | Import => {
            let made: Vec<_> = catalogue
                .backups()
                .into_iter()
                .filter(|backup| backup.kind == "manual" && !backups.contains(&backup.id))
                .collect();
            let [made] = made.as_slice() else {
                panic!("{label}: {made:?}");
            };
            let right = if is_lost { "failed" } else { "succeeded" };
            assert_eq!(made.status, right, "{label}: {made:?}");
        }
        Restore | Undo | InPlace => {
            let now = catalogue.restores(&world.id("one"));
            assert_eq!(now.len(), restores + 1, "{label}");
            let last = now.last().unwrap();
            assert_eq!(last.status, "succeeded", "{label}: {last:?}");
        }
        Create => {
            let (id, _) = catalogue
                .instance("new")
                .unwrap_or_else(|| panic!("{label}: no instance"));
            let status = (id, "running".to_owned());
            assert!(catalogue.instances().contains(&status), "{label}");
        }
        _ => {}
    }
}

/// A file behind a URL, there as long as the test's process.
struct File {
    url: String,
    digest: String,
}

fn imported() -> &'static File {
    static FILE: OnceLock<File> = OnceLock::new();
    FILE.get_or_init(|| {
        let engine = PlainEngine::start(&[]).unwrap();
        let mut client = Connection::open(&engine.target()).unwrap();
        client
            .ask(&["DEBUG", "POPULATE", "3000", "imported", "100"])
            .unwrap();
        client.ask(&["SAVE"]).unwrap();
        let bytes = std::fs::read(engine.folder().join("dump.rdb")).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/dump.rdb", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let _gone = client.and_then(|mut client| {
                    let mut lines = BufReader::new(client.try_clone()?).lines();
                    while lines
                        .next()
                        .is_some_and(|line| line.is_ok_and(|line| !line.is_empty()))
                    {}
                    write!(
                        client,
                        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                        bytes.len()
                    )?;
                    client.write_all(&bytes)
                });
            }
        });
        File {
            url,
            digest: engine.digest().unwrap(),
        }
    })
}

/// A backup made in between holds what is there now.
fn learn_backups(world: &mut World, operation: Operation, before: &BTreeSet<String>) {
    let digest = match operation {
        Import => imported().digest.clone(),
        _ => world.instances["one"].digest.clone().unwrap(),
    };
    for backup in Catalogue::open(world).backups() {
        if backup.kind == "manual" && !before.contains(&backup.id) {
            world.backups.insert(backup.id, digest.clone());
        }
    }
}

/// Brings about what the operation needs; returns what it is about, and the backups that there are.
fn prepare(world: &mut World, operation: Operation, backup: &str) -> (String, BTreeSet<String>) {
    let subject = match operation {
        Undo | UndoFails => {
            let (status, answer) = world.ask_for_restore("one", backup, false).unwrap();
            assert_eq!(status, 200, "{answer}");
            checker::check(world, Form::Cheap, "before an undo");
            text(&answer, "restore_id").unwrap()
        }
        DeleteBackup => world.backup("one"),
        Import => imported().url.clone(),
        DeleteInstance => world.create("two", "redis.single.xu1.tiny.128", "aof"),
        _ => String::new(),
    };
    world.change("one");
    let before = Catalogue::open(world)
        .backups()
        .into_iter()
        .map(|backup| backup.id)
        .collect();
    (subject, before)
}

/// Asks for the operation; the service may die before it answers.
fn ask(world: &World, operation: Operation, subject: &str, backup: &str) {
    let answer = match operation {
        Backup => world.ask_for_backup("one"),
        Import => {
            let path = format!("/ck/v1/{{project}}/instances/{}/imports", world.id("one"));
            world.try_call("POST", &path, Some(&json!({"url": subject})))
        }
        Restore | RestoreFails | SwitchFails => world.ask_for_restore("one", backup, false),
        InPlace | InPlaceFails => world.ask_for_restore("one", backup, true),
        Undo | UndoFails => world.ask_for_undo("one", subject),
        DeleteBackup => world.ask_to_delete_backup("one", subject),
        DeleteInstance => world.ask_to_delete(subject),
        Restart => world.ask_to_restart("one"),
        Flush => world.ask_to_flush("one"),
        Password => world.ask_to_reset_password("one"),
        Create | CreateFails => world.ask_for_instance("new", "redis.single.xu1.tiny.128", "aof"),
    };
    if let Ok((status, answer)) = answer {
        let meant = !(300..500).contains(&status);
        assert!(meant, "{operation:?}: {status} {answer}");
    }
}

/// What is not there any more.
fn forget(world: &mut World, operation: Operation, subject: &str, (place, action): (&str, &str)) {
    if operation == DeleteInstance {
        world.instances.remove("two");
        // An error in a step is tried again.
        let deleted = format!("SELECT count(*) FROM instance WHERE id = '{subject}' AND status = 'deleted'");
        assert_eq!(Catalogue::open(world).count(&deleted), 1, "{place}:{action}");
    }
    if operation == DeleteBackup {
        let row = Catalogue::open(world).backup(subject);
        // A crash is finished forward. Files that only did not go leave the record, as what it then is.
        let expected = match (place, action) {
            ("backup_delete.after_commit", "error") => "succeeded",
            ("archive.manifest_deleted", "error") => "expired",
            _ => "deleted",
        };
        assert_eq!(row.status, expected, "{place}:{action}");
    }
}

/// Removes what a creation made, or began to make.
fn clean_up(world: &mut World, operation: Operation) {
    if matches!(operation, Create | CreateFails)
        && let Some((id, _)) = Catalogue::open(world).instance("new")
    {
        let (status, answer) = world.ask_to_delete(&id).unwrap();
        assert!(status < 300, "{answer}");
        checker::check(world, Form::Cheap, "after a new instance is deleted");
    }
}
