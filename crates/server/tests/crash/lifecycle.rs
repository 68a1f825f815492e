//! Processes come, stay and go as they should.

use std::time::{Duration, Instant};

use xtask::scratch::Scratch;
use xtask::service::processes_in;

use crate::catalogue::Kind;
use crate::checker::{self, Catalogue, Form};
use crate::world::{Run, World, kill, text};

#[test]
fn engines_survive_kills_and_ends_of_the_service_with_their_connections() {
    let mut world = World::start(&[]);
    world.create("one", "redis.single.xu1.tiny.128", "aof");
    world.fill("one", 3, 500);
    let mut client = world.client("one");
    let pid = world.serving_pid("one").unwrap();
    for _ in 0..3 {
        world.restart(&Run::default());
        checker::check(&mut world, Form::Cheap, "killed and started");
        assert_eq!(world.serving_pid("one"), Some(pid));
        client.ask(&["PING"]).unwrap();
    }
    world.end();
    assert_eq!(world.engines().len(), 1, "SIGTERM leaves engines up");
    client.ask(&["INCR", "while:the:service:is:away"]).unwrap();
    world.run(&Run::default());
    world.note("one");
    checker::check(&mut world, Form::Cheap, "ended and started");
    assert_eq!(world.serving_pid("one"), Some(pid));
    client.ask(&["PING"]).unwrap();
}

#[test]
fn engines_of_a_data_directory_behind_a_symbolic_link_survive_a_restart_of_the_service() {
    let scratch = Scratch::new("crash").unwrap();
    let (real, link) = (scratch.path().join("real"), scratch.path().join("link"));
    std::fs::create_dir(&real).unwrap();
    std::os::unix::fs::symlink(&real, &link).unwrap();
    // One more, inside.
    let elsewhere = scratch.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    use std::os::unix::fs::PermissionsExt;
    for folder in [scratch.path(), &elsewhere] {
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    std::os::unix::fs::symlink(&elsewhere, real.join("instances")).unwrap();
    let mut world = World::start_on(scratch, link, &[]);
    world.create("one", "redis.single.xu1.tiny.128", "none");
    world.fill("one", 3, 500);
    let mut client = world.client("one");
    for _ in 0..2 {
        world.restart(&Run::default());
        checker::check(&mut world, Form::Cheap, "killed and started");
        client.ask(&["PING"]).unwrap();
    }
}

#[test]
fn the_catalogue_and_the_files_beside_it_are_for_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let mut world = World::start_in(Kind::Sqlite, &[]);
    world.create("one", "redis.single.xu1.tiny.128", "none");
    let modes = |world: &World| {
        ["", "-wal", "-shm"].map(|ending| {
            let file = world.data().join(format!("catalog.sqlite{ending}"));
            std::fs::metadata(file).unwrap().permissions().mode() & 0o777
        })
    };
    assert_eq!(modes(&world), [0o600; 3]);
    // As a version before this one left them.
    world.kill();
    for ending in ["-wal", "-shm"] {
        let file = world.data().join(format!("catalog.sqlite{ending}"));
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o644)).unwrap();
    }
    world.run(&Run::default());
    assert_eq!(modes(&world), [0o600; 3]);
}

#[test]
fn lost_or_foreign_keys_and_credentials_are_refused_with_what_to_do() {
    let mut world = World::start(&[]);
    world.create("one", "redis.single.xu1.tiny.128", "aof");
    world.kill();
    let aside = world.folder().join("aside");
    for (name, of_another) in [
        ("keys/master.key", Some("0".repeat(64))),
        ("keys/signing.key", None),
    ] {
        let file = world.data().join(name);
        std::fs::rename(&file, &aside).unwrap();
        let said = world.refusal(&[]);
        assert!(
            said.contains("is missing") && said.contains("put it back"),
            "{said}"
        );
        assert!(!file.exists(), "none is made in its place");
        if let Some(other) = of_another {
            std::fs::write(&file, other).unwrap();
            let said = world.refusal(&[]);
            assert!(said.contains("is not the one of this catalogue"), "{said}");
        }
        std::fs::rename(&aside, &file).unwrap();
    }
    let admin = world.data().join("admin.json");
    let whole = std::fs::read_to_string(&admin).unwrap();
    let project = text(&serde_json::from_str(&whole).unwrap(), "project_id").unwrap();
    std::fs::write(&admin, whole.replace(&project, &"0".repeat(32))).unwrap();
    let said = world.refusal(&[]);
    assert!(said.contains("admin.json names a project"), "{said}");
    std::fs::write(&admin, whole).unwrap();
    let said = world.refusal(&["--tls-cert", "/nowhere/cert.pem", "--tls-key", "/nowhere/key.pem"]);
    assert!(said.contains("/nowhere/cert.pem"), "{said}");
    world.run(&Run::default());
    checker::check(&mut world, Form::Cheap, "all is as it was");
}

#[test]
fn an_instance_that_does_not_answer_keeps_no_other_from_being_brought_back() {
    let mut world = World::start(&[]);
    world.create("one", "redis.single.xu1.tiny.128", "aof");
    world.create("two", "redis.single.xu1.tiny.128", "aof");
    let mut client = world.client("one");
    let asleep = std::thread::spawn(move || client.ask(&["DEBUG", "SLEEP", "20"]));
    // So long that a look at every instance has begun.
    std::thread::sleep(Duration::from_secs(6));
    let pid = world.serving_pid("two").unwrap();
    let killed = Instant::now();
    kill(pid);
    wait_until("the other engine is back", || world.try_digest("two").is_some());
    let took = killed.elapsed();
    assert!(took < Duration::from_secs(9), "{took:?}");
    assert!(!asleep.is_finished(), "the first one was to sleep all the while");
    let first = world.serving_pid("one");
    asleep.join().unwrap().unwrap();
    checker::check(&mut world, Form::Cheap, "awake again");
    assert_eq!(world.serving_pid("one"), first, "it was left alone");
}

#[test]
fn clients_cannot_pause_the_control_plane() {
    let mut world = World::start(&[]);
    world.create("one", "redis.single.xu1.tiny.128", "aof");
    let answer = world.client("one").ask(&["CLIENT", "PAUSE", "75000", "ALL"]);
    assert!(format!("{answer:?}").contains("NOPERM"), "{answer:?}");
    world.client("one").ask(&["CLIENT", "LIST"]).unwrap();
}

#[test]
fn an_engine_that_dies_comes_back_with_its_data() {
    let mut world = World::start(&[]);
    world.create("one", "redis.single.xu1.tiny.128", "aof");
    world.fill("one", 4, 1000);
    // The engine syncs its file each second; what is older must be there.
    std::thread::sleep(Duration::from_millis(1100));
    let pid = world.serving_pid("one").unwrap();
    kill(pid);
    wait_until("the engine is back", || {
        world.serving_pid("one").is_some_and(|now| now != pid)
    });
    wait_until("it answers", || world.try_digest("one").is_some());
    checker::check(&mut world, Form::Cheap, "an engine was killed");
}

#[test]
fn after_a_reboot_all_instances_are_back_on_their_ports() {
    let mut world = World::start(&[]);
    for (name, persistence) in [("one", "aof"), ("two", "rdb"), ("three", "none")] {
        world.create(name, "redis.single.xu1.tiny.128", persistence);
        world.fill(name, 5, 500);
    }
    let backup = world.backup("one");
    let (status, _) = world.ask_for_restore("one", &backup, false).unwrap();
    assert_eq!(status, 200);
    checker::check(&mut world, Form::Cheap, "before the reboot");
    world.client("two").ask(&["SAVE"]).unwrap();
    world.kill();
    for pid in processes_in(world.data()) {
        kill(pid);
    }
    wait_until("all are dead", || processes_in(world.data()).is_empty());
    world.run(&Run::default());
    // Without persistence there is nothing to come back with.
    world.instances.get_mut("three").unwrap().digest = None;
    for name in ["one", "two", "three"] {
        wait_until("it answers", || world.try_digest(name).is_some());
    }
    checker::check(&mut world, Form::Cheap, "after the reboot");
    let mut third = world.client("three");
    assert_eq!(third.ask(&["DBSIZE"]).unwrap(), xtask::resp::Reply::Number(0));
    // The retired generation of the first is on disk only, and can be switched back to.
    let id = world.id("one");
    let last = Catalogue::open(&world).restores(&id).pop().unwrap();
    let (status, answer) = world.ask_for_undo("one", &last.id).unwrap();
    assert_eq!(status, 200, "{answer}");
    checker::check(&mut world, Form::Cheap, "an undo after the reboot");
    let undone = Catalogue::open(&world).restores(&id).pop().unwrap();
    assert_eq!(undone.status, "succeeded", "{undone:?}");
}

#[test]
fn a_retired_generation_without_persistence_is_not_offered_once_its_engine_is_gone() {
    let mut world = World::start(&[]);
    world.create("one", "redis.single.xu1.tiny.128", "none");
    world.fill("one", 6, 500);
    let backup = world.backup("one");
    let retired = world.serving_pid("one").unwrap();
    let (_, answer) = world.ask_for_restore("one", &backup, false).unwrap();
    checker::check(&mut world, Form::Cheap, "restored");
    kill(retired);
    let (status, _) = world
        .ask_for_undo("one", &text(&answer, "restore_id").unwrap())
        .unwrap();
    if status == 200 {
        // Asked before the reconciler had seen that it is gone: it fails, and the data stays. The directory is
        // looked at below: the reconciler may begin to remove it at any moment from here on.
        checker::settle(&mut world, "undo without a generation");
        let last = Catalogue::open(&world).restores(&world.id("one")).pop().unwrap();
        assert_eq!(last.status, "failed", "{last:?}");
    }
    wait_until("the record has expired", || {
        Catalogue::open(&world)
            .count("SELECT count(*) FROM backup WHERE kind = 'generation' AND status = 'expired'")
            == 1
    });
    checker::check(&mut world, Form::Cheap, "the retired generation is gone");
}

#[test]
fn a_deleted_instance_leaves_no_process_and_no_directory() {
    let mut world = World::start(&[]);
    let id = world.create("one", "redis.single.xu1.tiny.128", "aof");
    world.fill("one", 7, 500);
    let backup = world.backup("one");
    let (status, _) = world.ask_for_restore("one", &backup, false).unwrap();
    assert_eq!(status, 200);
    checker::check(&mut world, Form::Cheap, "restored");
    assert_eq!(world.engines().len(), 2, "serving and retired");
    let (status, _) = world.ask_to_delete(&id).unwrap();
    assert!(status < 300);
    world.instances.remove("one");
    checker::check(&mut world, Form::Cheap, "deleted");
    assert!(world.engines().is_empty());
    let instances = world.data().join("instances");
    assert_eq!(std::fs::read_dir(instances).unwrap().count(), 0);
}

#[test]
fn a_retired_generation_goes_when_its_time_is_over() {
    let mut world = World::start(&["--undo-keep", "1"]);
    world.create("one", "redis.single.xu1.tiny.128", "aof");
    world.fill("one", 8, 500);
    let backup = world.backup("one");
    let (status, answer) = world.ask_for_restore("one", &backup, false).unwrap();
    assert_eq!(status, 200);
    checker::check(&mut world, Form::Cheap, "restored");
    wait_until("the retired generation is gone", || world.engines().len() == 1);
    checker::check(&mut world, Form::Cheap, "expired");
    let (status, answer) = world
        .ask_for_undo("one", &text(&answer, "restore_id").unwrap())
        .unwrap();
    assert_eq!(status, 400, "{answer}");
}

/// Polls for up to 30 s.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(
            started.elapsed() < Duration::from_secs(30),
            "waited in vain until {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}
