//! Faults of engines, stored objects, keys, disks, ports and memory: the operation fails with the right code, the old
//! data serves, nothing is left behind, and the next operation works.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use xtask::fill::Random;
use xtask::scratch::Scratch;
use xtask::small_disk::{Mounted, SmallDisk};

use crate::catalogue::Database;
use crate::checker::{self, Catalogue, Form, Restore};
use crate::lifecycle::wait_until;
use crate::world::{Run, World, kill, signal, text};

#[test]
fn a_new_engine_killed_in_mid_load_leaves_the_old_data() {
    let mut world = World::start(&[]);
    world.create("one", "redis.single.xu1.large.1", "aof");
    world
        .client("one")
        .ask(&["DEBUG", "POPULATE", "1500000", "key", "16"])
        .unwrap();
    let backup = world.backup("one");
    world.change("one");
    let old = world.serving_pid("one").unwrap();
    let (status, _) = world.ask_for_restore("one", &backup, false).unwrap();
    assert_eq!(status, 200);
    wait_until("the new engine loads", || {
        Catalogue::open(&world)
            .count("SELECT count(*) FROM restore WHERE status = 'running' AND target_state = 'loading'")
            == 1
            && world
                .engines()
                .iter()
                .any(|(pid, home)| *pid != old && logs(home))
    });
    let new = world.engines().into_iter().find(|(pid, _)| *pid != old);
    kill(new.expect("it is loading").0);
    checker::check(&mut world, Form::Cheap, "mid-load");
    let last = last_restore(&world);
    assert_eq!(last.status, "failed", "{last:?}");
    assert_eq!(last.error_code.as_deref(), Some("dcs.08.0007"), "{last:?}");
    assert_eq!(last.target_state, "rolled_back", "{last:?}");
    assert_eq!(world.serving_pid("one"), Some(old));
}

#[test]
fn an_engine_killed_in_mid_capture_fails_the_backup_and_comes_back_with_its_data() {
    let mut world = World::start(&[]);
    world.create("one", "redis.single.xu1.large.1", "aof");
    // So much that the snapshot takes a good part of a second.
    world
        .client("one")
        .ask(&["DEBUG", "POPULATE", "200000", "key", "1000"])
        .unwrap();
    // What DEBUG made is in no append-only file.
    world.client("one").ask(&["BGREWRITEAOF"]).unwrap();
    wait_until("the file is rewritten", || {
        let info = world.client("one").ask(&["INFO", "persistence"]).unwrap();
        let info = info.text().unwrap().to_owned();
        info.contains("aof_rewrite_in_progress:0") && info.contains("aof_last_bgrewrite_status:ok")
    });
    world.note("one");
    let before = backups(&world);
    let engine = world.serving_pid("one").unwrap();
    let (status, _) = world.ask_for_backup("one").unwrap();
    assert!(status < 300);
    let mut child = None;
    wait_until("it has forked", || {
        child = world.child_of(engine);
        child.is_some()
    });
    let child = child.unwrap();
    std::thread::sleep(Duration::from_millis(100));
    signal(child, "STOP");
    wait_until("bytes have arrived", || {
        Catalogue::open(&world)
            .count("SELECT count(*) FROM backup WHERE status = 'running' AND plain_bytes > 0")
            == 1
    });
    kill(engine);
    kill(child);
    checker::settle(&mut world, "mid-capture");
    wait_until("the engine is back", || world.try_digest("one").is_some());
    checker::check(&mut world, Form::Cheap, "mid-capture");
    let all = Catalogue::open(&world).backups();
    let failed = all.iter().find(|backup| !before.contains(&backup.id)).unwrap();
    assert_eq!(failed.status, "failed", "{failed:?}");
    assert_eq!(failed.error_code.as_deref(), Some("dcs.08.0002"), "{failed:?}");
    assert_ne!(world.serving_pid("one"), Some(engine));
    world.backup("one");
    checker::check(&mut world, Form::Full, "the next backup");
}

/// Whether the engine has written to its log.
fn logs(home: &Path) -> bool {
    std::fs::metadata(home.join("redis.log")).is_ok_and(|log| log.len() > 0)
}

pub fn last_restore(world: &World) -> Restore {
    Catalogue::open(world).restores(&world.id("one")).pop().unwrap()
}

/// Asks for a restore that must fail with this code, and checks that nothing has changed.
fn fails_with(world: &mut World, backup: &str, codes: &[&str], what: &str) -> Restore {
    let count = Catalogue::open(world).restores(&world.id("one")).len();
    let (status, answer) = world.ask_for_restore("one", backup, false).unwrap();
    assert_eq!(status, 200, "{what}: {answer}");
    checker::settle(world, what);
    let restores = Catalogue::open(world).restores(&world.id("one"));
    assert_eq!(restores.len(), count + 1);
    let last = last_restore(world);
    assert_eq!(last.status, "failed", "{what}: {last:?}");
    let code = last.error_code.clone().unwrap();
    assert!(codes.contains(&code.as_str()), "{what}: {last:?}");
    last
}

#[test]
fn no_engine_sees_a_byte_of_a_damaged_backup() {
    let mut world = World::start(&[]);
    world.create("one", "redis.single.xu1.tiny.256", "aof");
    world.fill("one", 22, 500);
    world
        .client("one")
        .ask(&["DEBUG", "POPULATE", "30000", "key", "1000"])
        .unwrap();
    let backup = world.backup("one");
    let other = world.backup("one");
    world.change("one");
    // Reaching this place means that an engine is about to be started.
    world.restart(&Run::armed("process.before_spawn:error"));
    let folder = |backup: &str| {
        let prefix = Catalogue::open(&world).backup(backup).prefix.unwrap();
        world.data().join("store").join(prefix)
    };
    let (here, there) = (folder(&backup), folder(&other));
    let segment = |folder: &Path, number: u32| folder.join(format!("shard-0/seg-{number:06}.rdb.zst.age"));
    let (first, second, manifest) = (segment(&here, 0), segment(&here, 1), here.join("manifest.json"));
    assert!(second.exists(), "the test needs two segments");
    let mut damages: Vec<(String, PathBuf, Vec<u8>)> = Vec::new();
    for file in [&first, &second, &manifest] {
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        let whole = std::fs::read(file).unwrap();
        for keep in [0, 1, whole.len() / 2, whole.len() - 1] {
            damages.push((
                format!("{name} cut to {keep} bytes"),
                file.clone(),
                whole[..keep].to_vec(),
            ));
        }
        let mut longer = whole.clone();
        longer.push(0);
        damages.push((format!("{name} with one byte more"), file.clone(), longer));
        let mut random = Random::new(9, whole.len() as u64);
        for _ in 0..6 {
            let (at, bit) = (random.below(whole.len() as u64), random.below(8));
            let mut flipped = whole.clone();
            flipped[usize::try_from(at).unwrap()] ^= 1 << bit;
            damages.push((
                format!("{name} with bit {bit} of byte {at} flipped"),
                file.clone(),
                flipped,
            ));
        }
    }
    let read = |file: &Path| std::fs::read(file).unwrap();
    damages.push((
        "the second segment in the place of the first".to_owned(),
        first.clone(),
        read(&second),
    ));
    damages.push((
        "the same segment of another backup".to_owned(),
        first.clone(),
        read(&segment(&there, 0)),
    ));
    damages.push((
        "the manifest of another backup".to_owned(),
        manifest.clone(),
        read(&there.join("manifest.json")),
    ));
    let count = damages.len();
    for (what, file, bytes) in damages {
        let whole = read(&file);
        std::fs::write(&file, bytes).unwrap();
        fails_with(&mut world, &backup, &["dcs.08.0007"], &what);
        std::fs::write(&file, whole).unwrap();
        checker::check(&mut world, Form::Cheap, &what);
    }
    for file in [&first, &second, &manifest] {
        let what = format!("{} is missing", file.display());
        let whole = read(file);
        std::fs::remove_file(file).unwrap();
        fails_with(&mut world, &backup, &["dcs.08.0006"], &what);
        std::fs::write(file, whole).unwrap();
        checker::check(&mut world, Form::Cheap, &what);
    }
    assert!(world.marks().is_empty(), "an engine was started on damaged data");
    println!("{} damages refused", count + 3);
    world.restart(&Run::default());
    let (status, _) = world.ask_for_restore("one", &backup, false).unwrap();
    assert_eq!(status, 200);
    checker::check(&mut world, Form::Full, "mended");
    assert_eq!(last_restore(&world).status, "succeeded");
}

#[test]
fn a_backup_is_not_opened_with_the_key_of_another_project() {
    let mut world = World::start(&[]);
    world.create("one", "redis.single.xu1.tiny.128", "aof");
    world.fill("one", 23, 500);
    let backup = world.backup("one");
    world.change("one");
    world.kill();
    let made = Command::new(env!("CARGO_BIN_EXE_cachekeep"))
        .args(["project", "create", "other", "--data-dir"])
        .arg(world.data())
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let swap = "UPDATE project SET identity_sealed = (SELECT identity_sealed FROM project WHERE name = 'other') \
                WHERE name <> 'other'";
    world.database.change(swap);
    world.run(&Run::armed("process.before_spawn:error"));
    fails_with(&mut world, &backup, &["dcs.08.0004"], "another project's key");
    checker::check(&mut world, Form::Cheap, "another project's key");
    assert!(world.marks().is_empty(), "an engine was started");
}

#[test]
fn too_little_memory_is_refused_with_what_it_needs() {
    let mut world = World::start(&[]);
    world.create("one", "redis.single.xu1.tiny.128", "aof");
    world.fill("one", 24, 1000);
    let backup = world.backup("one");
    world.change("one");
    world.restart(&Run {
        memory_available: Some(1 << 20),
        ..Run::default()
    });
    let (status, answer) = world.ask_for_restore("one", &backup, false).unwrap();
    assert_eq!(status, 400, "{answer}");
    let message = text(&answer, "error_msg").unwrap();
    assert!(message.contains("MB"), "{message}");
    checker::check(&mut world, Form::Cheap, "refused");
    assert!(
        Catalogue::open(&world).restores(&world.id("one")).is_empty(),
        "a refusal is no record"
    );
    let (status, answer) = world.ask_for_restore("one", &backup, true).unwrap();
    assert_eq!(status, 200, "{answer}");
    checker::check(&mut world, Form::Full, "in place");
    let last = last_restore(&world);
    assert_eq!(
        (last.status.as_str(), last.method.as_str()),
        ("succeeded", "in_place"),
        "{last:?}"
    );
}

#[test]
fn a_stranger_on_the_port_in_mid_switch_does_not_cost_the_old_data() {
    let mut world = World::start(&[]);
    world.create("one", "redis.single.xu1.tiny.128", "aof");
    world.fill("one", 25, 1000);
    let backup = world.backup("one");
    let port = world.instances["one"].port;
    for engine_dies in [false, true] {
        world.change("one");
        let old = world.serving_pid("one").unwrap();
        world.restart(&Run::armed("switch.after_old_port:stall"));
        let (status, _) = world.ask_for_restore("one", &backup, false).unwrap();
        assert_eq!(status, 200);
        let asked = Instant::now();
        let stranger = loop {
            match TcpListener::bind(("127.0.0.1", port)) {
                Ok(stranger) => break stranger,
                Err(_) => assert!(
                    asked.elapsed() < Duration::from_secs(30),
                    "the port never came free"
                ),
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        std::thread::sleep(Duration::from_secs(if engine_dies { 9 } else { 6 }));
        if engine_dies {
            kill(old);
        }
        drop(stranger);
        let label = format!("a stranger was there, engine dies: {engine_dies}");
        checker::settle(&mut world, &label);
        wait_until("it answers", || world.try_digest("one").is_some());
        checker::check(&mut world, Form::Cheap, &label);
        let last = last_restore(&world);
        assert_eq!(last.status, "failed", "{last:?}");
        assert_eq!(last.target_state, "rolled_back", "{last:?}");
    }
    world.restart(&Run::default());
    let (status, _) = world.ask_for_restore("one", &backup, false).unwrap();
    assert_eq!(status, 200);
    checker::check(&mut world, Form::Cheap, "the port is free again");
    assert_eq!(last_restore(&world).status, "succeeded");
}

#[test]
fn a_stranger_on_the_port_of_an_engine_that_died_is_waited_out() {
    let mut world = World::start(&[]);
    world.create("one", "redis.single.xu1.tiny.128", "aof");
    world.fill("one", 27, 500);
    // The engine syncs its file each second; what is older must be there.
    std::thread::sleep(Duration::from_millis(1100));
    world.kill();
    kill(world.serving_pid("one").unwrap());
    let mut stranger = None;
    // The kernel closes the port of a dead process a moment after that has left the process table.
    wait_until("the port is free", || {
        stranger = TcpListener::bind(("127.0.0.1", world.instances["one"].port)).ok();
        stranger.is_some()
    });
    world.run(&Run::default());
    let id = world.id("one");
    wait_until("it is said that it does not serve", || {
        Catalogue::open(&world)
            .instances()
            .contains(&(id.clone(), "error".to_owned()))
    });
    drop(stranger);
    wait_until("it answers", || world.try_digest("one").is_some());
    checker::check(&mut world, Form::Cheap, "the stranger is gone");
}

/// A small file system that can be filled up.
pub struct FullDisk {
    disk: SmallDisk,
    ballast: PathBuf,
}

impl FullDisk {
    pub fn new(disk: SmallDisk) -> Self {
        let ballast = disk.path().join("ballast");
        Self { disk, ballast }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.disk.path()
    }

    fn free_bytes(&self) -> u64 {
        let output = Command::new("stat")
            .args(["-f", "-c", "%a %S"])
            .arg(self.disk.path())
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let (blocks, size) = text.trim().split_once(' ').unwrap();
        blocks.parse::<u64>().unwrap() * size.parse::<u64>().unwrap()
    }

    /// Leaves no room, whoever else is writing.
    pub fn fill(&self) {
        let mut ballast = File::create(&self.ballast).unwrap();
        let piece = vec![1; 64 * 1024];
        let full = loop {
            if let Err(error) = ballast.write_all(&piece) {
                break error;
            }
        };
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    }

    /// Leaves this much room.
    pub fn leave(&self, bytes: u64) {
        let free = self.free_bytes();
        let ballast = vec![1; usize::try_from(free.saturating_sub(bytes)).unwrap()];
        std::fs::write(&self.ballast, ballast).unwrap();
    }

    pub fn give_back(&self) {
        std::fs::remove_file(&self.ballast).unwrap();
    }
}

/// A directory that cannot be removed by this user; it can on drop. Root removes everything but what a file system lies on,
/// everybody else nothing from a directory that is not to be written.
struct InTheWay(PathBuf);

impl InTheWay {
    fn put(at: PathBuf) -> Self {
        std::fs::create_dir(&at).unwrap();
        if rustix::process::geteuid().is_root() {
            let mounted = Command::new("mount")
                .args(["-t", "tmpfs", "none"])
                .arg(&at)
                .status();
            assert!(mounted.unwrap().success(), "a mount on {}", at.display());
        } else {
            std::fs::write(at.join("stays"), "").unwrap();
            std::fs::set_permissions(&at, std::fs::Permissions::from_mode(0o500)).unwrap();
        }
        Self(at)
    }
}

impl Drop for InTheWay {
    fn drop(&mut self) {
        if rustix::process::geteuid().is_root() {
            let _reported_by_the_checker = Command::new("umount").arg("-l").arg(&self.0).status();
        } else {
            let _gone_already = std::fs::set_permissions(&self.0, std::fs::Permissions::from_mode(0o700));
        }
    }
}

#[test]
fn a_failed_restore_whose_new_generation_does_not_go_ends_all_the_same() {
    let mut world = World::start(&[]);
    world.create("one", "redis.single.xu1.tiny.128", "aof");
    world.fill("one", 28, 500);
    let backup = world.backup("one");
    world.change("one");
    let old = world.serving_pid("one").unwrap();
    world.restart(&Run::armed("verify.before:stall,verify.after:error"));
    let (status, _) = world.ask_for_restore("one", &backup, false).unwrap();
    assert_eq!(status, 200);
    wait_until("it is loaded", || !world.marks().is_empty());
    let new = world.engines().into_iter().find(|(pid, _)| *pid != old);
    let in_the_way = InTheWay::put(new.unwrap().1.join("busy"));
    wait_until("no job is left", || {
        Catalogue::open(&world).count("SELECT count(*) FROM job WHERE state <> 'done'") == 0
    });
    let last = last_restore(&world);
    assert_eq!(
        (last.status.as_str(), last.target_state.as_str()),
        ("failed", "rolled_back"),
        "{last:?}"
    );
    assert_eq!(world.serving_pid("one"), Some(old));
    // Now the reconciler can go on.
    drop(in_the_way);
    checker::check(&mut world, Form::Cheap, "it went later");
}

/// Not captured, as what a test that passes prints would be.
pub fn not_shown(what: &str, why: &str) {
    use std::io::Write;
    let said = format!("\nNOT SHOWN: {what}; {why}\n");
    std::io::stderr().write_all(said.as_bytes()).unwrap();
}

#[test]
fn a_full_disk_fails_clearly_at_any_point_and_all_works_again_with_room() {
    let name = "faults::a_full_disk_fails_clearly_at_any_point_and_all_works_again_with_room";
    let disk = match SmallDisk::mount(64, name) {
        Mounted::Here(disk) => FullDisk::new(disk),
        Mounted::Elsewhere => return,
        Mounted::Nowhere(why) => {
            not_shown("a full disk", &format!("no small file system: {why}"));
            return;
        }
    };
    let mut world = World::start_on(Scratch::new("crash").unwrap(), disk.disk.path().join("data"), &[]);
    world.create("one", "redis.single.xu1.tiny.128", "aof");
    world.fill("one", 26, 3000);
    world
        .client("one")
        .ask(&["DEBUG", "POPULATE", "3000", "key", "1000"])
        .unwrap();
    // The file of an engine that was only told so is on disk after a rewrite.
    world.client("one").ask(&["BGREWRITEAOF"]).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let backup = world.backup("one");
    let mut outcomes = Vec::new();
    for kib in [
        0, 16, 64, 128, 256, 512, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288,
    ] {
        for restore in [false, true] {
            world.change("one");
            let before = backups(&world);
            disk.leave(kib * 1024);
            let answer = match restore {
                true => world.ask_for_restore("one", &backup, false),
                false => world.ask_for_backup("one"),
            };
            let what = format!(
                "{} with {kib} KiB of room",
                if restore { "restore" } else { "backup" }
            );
            let (status, said) = answer.unwrap();
            if status < 300 {
                wait_for_end(&world);
            }
            disk.give_back();
            checker::settle(&mut world, &what);
            learn(&mut world, &before);
            checker::check(&mut world, Form::Full, &what);
            outcomes.push(format!(
                "{what}: {}",
                outcome(&world, restore, status, &said, &before)
            ));
        }
    }
    println!("{}", outcomes.join("\n"));
    let failed = |word: &str| {
        outcomes
            .iter()
            .any(|outcome| outcome.starts_with(word) && outcome.contains("dcs.08"))
    };
    assert!(
        failed("backup") && failed("restore"),
        "the disk was never full: {outcomes:#?}"
    );
    assert!(outcomes.last().unwrap().ends_with("succeeded"), "{outcomes:#?}");
}

fn backups(world: &World) -> BTreeSet<String> {
    Catalogue::open(world)
        .backups()
        .into_iter()
        .map(|backup| backup.id)
        .collect()
}

/// Gives the operation some time with the full disk; it may need room to come to its end.
fn wait_for_end(world: &World) {
    let started = Instant::now();
    while Catalogue::open(world).count("SELECT count(*) FROM job WHERE state <> 'done'") > 0
        && started.elapsed() < Duration::from_secs(4)
    {
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn learn(world: &mut World, before: &BTreeSet<String>) {
    let digest = world.instances["one"].digest.clone().unwrap();
    for id in backups(world) {
        if !before.contains(&id) && Catalogue::open(world).backup(&id).kind == "manual" {
            world.backups.insert(id, digest.clone());
        }
    }
}

/// In words; asserts that a failure has one of the codes for it.
fn outcome(world: &World, restore: bool, status: u16, said: &Value, before: &BTreeSet<String>) -> String {
    if status >= 300 {
        assert!(status >= 500, "{status} {said}");
        return format!(
            "refused with {status} {}",
            text(said, "error_code").unwrap_or_default()
        );
    }
    let (status, code, failure) = if restore {
        let last = last_restore(world);
        (last.status, last.error_code, last.failure)
    } else {
        let all = Catalogue::open(world).backups();
        let new = all
            .into_iter()
            .find(|backup| backup.kind == "manual" && !before.contains(&backup.id));
        let new = new.unwrap();
        (new.status, new.error_code, new.failure)
    };
    let Some(code) = code else {
        return status;
    };
    // A catalogue elsewhere has room: the first to find none may be the engine that is to be started.
    let right: &[&str] = match (restore, &world.database) {
        (false, _) => &["dcs.08.0005"],
        (true, Database::Sqlite(_)) => &["dcs.08.0007"],
        (true, Database::Postgres(..)) => &["dcs.08.0007", "dcs.08.0001"],
    };
    assert!(right.contains(&code.as_str()), "{code}: {failure:?}");
    format!("{status} {code} {}", failure.unwrap_or_default())
}
