//! Kills at any moment, under load.
//!
//! A thread asks for backups, restores, undos and deletions, one after the other, while the service is killed at
//! random moments and started again. Two instances, so that jobs run side by side.
//!
//! What is shown. A writer appends 1, 2, 3 … to a list, and does so only while no restore is under way: then what a
//! client was told is in is in, and the list must hold every acknowledged number whatever happens to the service. A
//! backup made under the writer must hold a list without a gap, as long as at some moment between its request and its
//! end. During a restore nobody writes, so the data afterwards is known: the checker compares it to the byte where
//! the backup was made while nobody wrote or has been restored before, else the list with these bounds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use xtask::fill::Random;
use xtask::resp::{Connection, Reply, Target};

use crate::catalogue::Kind;
use crate::checker::{self, Catalogue, Form};
use crate::world::{Run, World};

const LIST: &str = "journal";
/// Backups of an instance that are kept by the test; more are deleted.
const BACKUPS_MAX: usize = 4;

/// So many kills of the service in a test: half of what `CACHEKEEP_TEST_KILLS` says, of which there are two.
fn count(short: u32) -> u32 {
    let asked = std::env::var("CACHEKEEP_TEST_KILLS").ok();
    match asked.map(|text| text.parse::<u32>().unwrap()) {
        Some(kills) => kills.div_ceil(2),
        None if crate::long() => 200,
        None => short,
    }
}

#[test]
fn kills_at_random_moments_lose_nothing_and_no_record_lies() {
    kill_at_random(Kind::wanted(), count(25));
}

#[test]
fn kills_at_random_moments_lose_nothing_in_postgresql() {
    kill_at_random(Kind::Postgres, count(8));
}

fn kill_at_random(kind: Kind, kills: u32) {
    let seed = std::env::var("CACHEKEEP_TEST_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| u64::from(std::process::id()) ^ xtask::fill::now_ms());
    println!("seed {seed}: CACHEKEEP_TEST_SEED={seed} chooses the same moments and operations");
    let mut random = Random::new(seed, 0);
    let mut world = World::start_in(kind, &[]);
    let names = ["left", "right"];
    for (name, persistence) in names.iter().zip(["aof", "rdb"]) {
        world.create(name, "redis.single.xu1.tiny.256", persistence);
        world.fill(name, seed, 2000);
        world.backup(name);
    }
    // Length of the list in each backup: at least, at most.
    let mut bounds: BTreeMap<String, (i64, i64)> = BTreeMap::new();
    for backup in Catalogue::open(&world).backups() {
        bounds.insert(backup.id, (0, 0));
    }
    let mut asked = BTreeMap::<&str, u32>::new();
    for kill in 0..kills {
        let label = format!("seed {seed}, kill {kill}");
        let mut writers = BTreeMap::new();
        for name in names {
            let operation = ask(&mut world, name, &mut random, &mut writers, &bounds);
            *asked.entry(operation).or_default() += 1;
        }
        std::thread::sleep(Duration::from_micros(random.below(400_000)));
        world.restart(&Run::default());
        checker::settle(&mut world, &label);
        for (name, writer) in writers {
            let (before, acknowledged) = writer.stop();
            let after = journal(&world, name, &label);
            assert!(
                after == acknowledged || after == acknowledged + 1,
                "{label}: {name} has {after} of {acknowledged} acknowledged numbers"
            );
            for backup in Catalogue::open(&world).backups() {
                if backup.instance == world.id(name) && backup.kind == "manual" {
                    bounds.entry(backup.id).or_insert((before, after));
                }
            }
            world.note(name);
        }
        learn_quiet_backups(&mut world, &mut bounds);
        checker::check(&mut world, Form::Cheap, &label);
        for name in names {
            after_restores(&mut world, name, &bounds, &label);
        }
    }
    checker::check(&mut world, Form::Full, &format!("seed {seed}, at the end"));
    println!(
        "{kills} kills with the catalogue in {}: 0 lost, 0 lying records; asked for {asked:?}",
        kind.word()
    );
}

/// Asks for one operation, at random, and lets a writer run unless it is a restore.
fn ask<'a>(
    world: &mut World,
    name: &'a str,
    random: &mut Random,
    writers: &mut BTreeMap<&'a str, Writer>,
    bounds: &BTreeMap<String, (i64, i64)>,
) -> &'static str {
    let id = world.id(name);
    let catalogue = Catalogue::open(world);
    let mut archives: Vec<String> = catalogue
        .backups()
        .into_iter()
        .filter(|backup| backup.instance == id && backup.status == "succeeded" && backup.kind == "manual")
        .map(|backup| backup.id)
        .filter(|id| bounds.contains_key(id))
        .collect();
    let undoable = catalogue
        .restores(&id)
        .into_iter()
        .rev()
        .find(|restore| restore.status == "succeeded");
    let choice = random.below(10);
    if archives.len() > BACKUPS_MAX {
        let _answered_or_not = world.ask_to_delete_backup(name, &archives.remove(0));
        return "delete";
    }
    match (choice, undoable) {
        (0..=3, _) if !archives.is_empty() => {
            let backup = &archives[usize::try_from(random.below(archives.len() as u64)).unwrap()];
            let _answered_or_not = world.ask_for_restore(name, backup, false);
            "restore"
        }
        (4..=5, Some(restore)) => {
            let _answered_or_not = world.ask_for_undo(name, &restore.id);
            "undo"
        }
        (6, _) => {
            writers.insert(name, Writer::start(world.target(name)));
            "nothing but writes"
        }
        (7, _) => {
            world.change(name);
            let _answered_or_not = world.ask_for_backup(name);
            "backup in silence"
        }
        _ => {
            writers.insert(name, Writer::start(world.target(name)));
            let _answered_or_not = world.ask_for_backup(name);
            "backup under writes"
        }
    }
}

/// Backups made while nobody wrote hold what is there now.
fn learn_quiet_backups(world: &mut World, bounds: &mut BTreeMap<String, (i64, i64)>) {
    for backup in Catalogue::open(world).backups() {
        if backup.kind != "manual" || bounds.contains_key(&backup.id) {
            continue;
        }
        let known = world
            .instances
            .iter()
            .find(|(_, known)| known.id == backup.instance);
        let (name, digest) = known
            .map(|(name, known)| (name.clone(), known.digest.clone()))
            .unwrap();
        if let Some(digest) = digest {
            world.backups.insert(backup.id.clone(), digest);
        }
        let length = journal(world, &name, "a backup in silence");
        bounds.insert(backup.id, (length, length));
    }
}

/// After a restore from a backup that was made under writes: its list has no gap and a possible length, and from now
/// on the backup's data is known to the byte.
fn after_restores(world: &mut World, name: &str, bounds: &BTreeMap<String, (i64, i64)>, label: &str) {
    let length = journal(world, name, label);
    if world.instances[name].digest.is_some() {
        return;
    }
    let restores = Catalogue::open(world).restores(&world.id(name));
    let last = restores
        .iter()
        .rev()
        .find(|restore| restore.status == "succeeded")
        .unwrap();
    if let Some((least, most)) = bounds.get(&last.backup) {
        assert!(
            (*least..=*most).contains(&length),
            "{label}: {length} of {least} to {most}"
        );
    }
    let digest = world.note(name);
    world.backups.insert(last.backup.clone(), digest);
}

/// The length of the list, which must hold 1, 2, 3 … without a gap.
fn journal(world: &World, name: &str, label: &str) -> i64 {
    let Reply::List(items) = world.client(name).ask(&["LRANGE", LIST, "0", "-1"]).unwrap() else {
        panic!("{label}: no list");
    };
    for (index, item) in items.iter().enumerate() {
        let expected = (index + 1).to_string();
        assert_eq!(item.text(), Some(expected.as_str()), "{label}: a gap in {name}");
    }
    i64::try_from(items.len()).unwrap()
}

/// Appends to the list until it is stopped.
struct Writer {
    stop: Arc<AtomicBool>,
    before: i64,
    acknowledged: Arc<AtomicI64>,
    thread: JoinHandle<()>,
}

impl Writer {
    fn start(target: Target) -> Self {
        let mut client = Connection::open(&target).unwrap();
        let Reply::Number(before) = client.ask(&["LLEN", LIST]).unwrap() else {
            panic!("no length");
        };
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicI64::new(before));
        let (stopped, count) = (stop.clone(), acknowledged.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                let next = count.load(Ordering::SeqCst) + 1;
                client.ask(&["RPUSH", LIST, &next.to_string()]).unwrap();
                count.store(next, Ordering::SeqCst);
                std::thread::sleep(Duration::from_micros(300));
            }
        });
        Self {
            stop,
            before,
            acknowledged,
            thread,
        }
    }

    /// Length before, and numbers acknowledged: nothing broke the connection.
    fn stop(self) -> (i64, i64) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread
            .join()
            .expect("a backup or a kill of the service broke a client's connection");
        (self.before, self.acknowledged.load(Ordering::SeqCst))
    }
}
