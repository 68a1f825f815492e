//! Several nodes on one PostgreSQL and one object store: who does what, and what becomes of it when one of them dies, sleeps,
//! or is told to stop.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use xtask::foreign::{Access, Deployment, Form};
use xtask::object_server::ObjectServer;
use xtask::postgres::Postgres;
use xtask::throttle::Throttle;

use crate::http::Request;
use crate::schedule::{Clock, daily, set_policy, wait_records};
use crate::service::{Caller, Service, wait};
use crate::storage::{BUCKET, add};

const SCHEMA: &str = "shared";
/// Of the tests' nodes, in seconds.
pub const LEASE: u64 = 3;
/// What a job of a node that has died may take longer than its lease before another one has taken it up and ended it.
pub const TAKEN_OVER_WITHIN: Duration = Duration::from_secs(15);

pub fn is_long() -> bool {
    std::env::var("CACHEKEEP_TEST_LONG").is_ok_and(|long| long == "1")
}

/// So many kills or sleeps: what `CACHEKEEP_TEST_TIMES` says, or as many as the form of the test has.
pub fn times(short: u32, long: u32) -> u32 {
    let asked = std::env::var("CACHEKEEP_TEST_TIMES").ok();
    let form = if is_long() { long } else { short };
    asked.map_or(form, |text| text.parse().unwrap())
}

/// Chooses the moments: others in each process, unless `CACHEKEEP_TEST_SEED` says which.
pub fn seed() -> u64 {
    let asked = std::env::var("CACHEKEEP_TEST_SEED").ok();
    let seed = asked.map_or_else(|| u64::from(std::process::id()), |text| text.parse().unwrap());
    println!("CACHEKEEP_TEST_SEED={seed} chooses the same moments");
    seed
}

/// Kept until last: services hold on to it.
pub struct Shared {
    pub nodes: BTreeMap<&'static str, Service>,
    url: String,
    postgres: Postgres,
    objects: ObjectServer,
}

impl Shared {
    /// The first node; backups go to the object store.
    pub fn start(name: &'static str, words: &[&str], variables: &[(&str, &str)]) -> Self {
        let postgres = Postgres::start().unwrap_or_else(|stop| panic!("{stop}"));
        let objects = ObjectServer::start(BUCKET).unwrap_or_else(|stop| panic!("{stop}"));
        let url = postgres.make_schema(SCHEMA).unwrap();
        let mut shared = Self {
            nodes: BTreeMap::new(),
            url,
            postgres,
            objects,
        };
        shared.join(name, words, variables);
        let first = &shared.nodes[name];
        let added = add(
            first,
            "offsite",
            &format!("http://{}", shared.objects.address()),
            &[],
        );
        assert!(added.status.success(), "{added:?}");
        first.run_json(&["storage", "default", "offsite"]);
        shared
    }

    /// One more node, with the keys of the first.
    pub fn join(&mut self, name: &'static str, words: &[&str], variables: &[(&str, &str)]) {
        let keys = self.nodes.values().next().map(|first| first.data().join("keys"));
        let mut all = vec!["--attach-allow", "127.0.0.0/8", "--node-name", name];
        if let Some(keys) = &keys {
            all.extend(["--keys", keys.to_str().unwrap()]);
        }
        let lease = LEASE.to_string();
        if !words.contains(&"--lease") {
            all.extend(["--lease", &lease]);
        }
        all.extend(words);
        let variables = [&[("CACHEKEEP_CATALOG", self.url.as_str())], variables].concat();
        self.nodes.insert(name, Service::start_with(&all, &variables));
    }

    pub fn sql(&self, sql: &str) -> String {
        self.postgres
            .sql(&format!("SET search_path = {SCHEMA}; {sql}"))
            .unwrap()
    }

    /// The node that has the running job of an instance.
    pub fn owner(&self, instance: &str) -> Option<&'static str> {
        self.named(&self.sql(&format!(
            "SELECT owner FROM job WHERE instance_id = '{instance}' AND state = 'running'"
        )))
    }

    /// The node that has this id.
    pub fn named(&self, id: &str) -> Option<&'static str> {
        let is = |node: &Service| std::fs::read_to_string(node.data().join("node")).unwrap() == id;
        let found = self.nodes.iter().find(|(_, node)| is(node));
        found.map(|(name, _)| *name)
    }

    /// What the names of a backup's objects begin with, and of those the ones that are whole.
    pub fn attempts(&self, backup: &str) -> (BTreeSet<String>, usize) {
        let names = self.objects.names(BUCKET).unwrap();
        let of_backup = || names.iter().filter(|name| name.contains(backup));
        let attempt = |name: &String| {
            let (_, rest) = name.split_once(backup)?;
            rest.split('/').nth(1).map(str::to_owned)
        };
        (
            of_backup().filter_map(attempt).collect(),
            of_backup()
                .filter(|name| name.ends_with("/manifest.json"))
                .count(),
        )
    }

    /// What the catalogue says of a backup and its jobs.
    fn rows(&self, backup: &str) -> String {
        self.sql(&format!(
            "SELECT status, prefix, manifest_blake3, keys, updated_at_ms FROM backup WHERE id = '{backup}'; \
             SELECT state, fence, owner, settled_at_ms FROM job WHERE subject_id = '{backup}'"
        ))
    }

    pub fn signal(&self, name: &str, signal: &str) {
        let sent = Command::new("kill")
            .args([signal, &self.nodes[name].pid().to_string()])
            .status()
            .unwrap();
        assert!(sent.success());
    }
}

/// A server of somebody else's that sends slowly.
pub struct Source {
    pub throttle: Throttle,
    pub server: Deployment,
}

impl Source {
    /// With so many thousand keys of a kilobyte.
    pub fn start(thousands: u32, bytes_per_second: u32) -> Self {
        let settings = [
            ("enable-debug-command", "local"),
            ("rdbcompression", "no"),
            ("repl-diskless-sync-delay", "0"),
            ("save", ""),
        ];
        let server =
            Deployment::start(Path::new("redis-server"), Form::Single, Access::Open, &settings).unwrap();
        let count = (thousands * 1000).to_string();
        server.nodes[0]
            .ask(&["DEBUG", "POPULATE", &count, "key", "1000"])
            .unwrap();
        let address = ([127, 0, 0, 1], server.nodes[0].port).into();
        Self {
            throttle: Throttle::start(address, bytes_per_second).unwrap(),
            server,
        }
    }

    pub fn attach(&self, caller: &Caller, name: &str) -> String {
        attach(caller, name, &self.throttle)
    }
}

fn attach(caller: &Caller, name: &str, throttle: &Throttle) -> String {
    let wish = json!({"name": name, "addresses": [throttle.address().to_string()]});
    let made = caller.ck("POST", "/attachments", Some(&wish)).expect(200).json();
    made["instance_id"].as_str().unwrap().to_owned()
}

/// Waits until a node captures the instance.
fn capturing(shared: &Shared, instance: &str, backup: &str, other_than: &str) -> &'static str {
    wait("a node that captures", || {
        let phase = shared.sql(&format!("SELECT phase FROM backup WHERE id = '{backup}'"));
        let owner = shared.owner(instance).filter(|owner| *owner != other_than);
        owner.filter(|_| phase == "capturing")
    })
}

/// A moment that nobody chooses.
pub fn pause(seed: &mut u64, within: Duration) {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
    let part = u32::try_from(*seed >> 40).unwrap();
    std::thread::sleep(within * (part % 1000) / 1000);
}

#[test]
fn a_worker_that_is_killed_in_mid_backup_is_succeeded_by_another() {
    let kills = times(3, 50);
    let mut shared = Shared::start("api", &["--role", "api,scheduler"], &[]);
    for worker in ["first", "second"] {
        shared.join(worker, &["--role", "worker"], &[]);
    }
    let source = Source::start(4, 2_000_000);
    let caller = shared.nodes["api"].caller();
    let instance = source.attach(&caller, "throttled");
    let (mut seed, mut slowest, mut again) = (seed(), Duration::ZERO, 0);
    for kill in 0..kills {
        let backup = caller.start_backup(&instance, &format!("{kill}"));
        let owner = capturing(&shared, &instance, &backup, "");
        // The first one while it captures; others may come when all is done.
        pause(&mut seed, Duration::from_millis(2500) * kill.min(1));
        shared.nodes.get_mut(owner).unwrap().kill();
        let since = Instant::now();
        let record = caller.wait_end(&instance, "backups", &backup);
        assert_eq!(record["status"], "succeed", "{record}");
        assert_eq!(record["ext"]["keys"], 4000, "{record}");
        let took = since.elapsed();
        assert!(took < Duration::from_secs(LEASE) + TAKEN_OVER_WITHIN, "{took:?}");
        slowest = slowest.max(took);
        let fence = shared.sql(&format!("SELECT fence FROM job WHERE subject_id = '{backup}'"));
        again += i32::from(fence != "1");
        wait("what the dead attempt left to be gone", || {
            (shared.attempts(&backup) == (BTreeSet::from([fence.clone()]), 1)).then_some(())
        });
        shared.nodes.get_mut(owner).unwrap().start_again();
    }
    assert_eq!(
        source.server.nodes[0]
            .setting("repl-diskless-sync-delay")
            .unwrap(),
        "0"
    );
    println!(
        "{kills} kills of a worker in mid-backup, {again} of them taken over with a lease of {LEASE} s: all ended well, the slowest \
         {slowest:?} after the kill; no object of another attempt is left"
    );
    assert!(again > 0);
}

#[test]
fn a_worker_that_sleeps_past_its_lease_wakes_to_no_effect() {
    let sleeps = times(3, 300);
    let mut shared = Shared::start("api", &["--role", "api,scheduler"], &[]);
    for worker in ["first", "second"] {
        shared.join(worker, &["--role", "worker"], &[]);
    }
    let source = Source::start(8, 1_500_000);
    let caller = shared.nodes["api"].caller();
    let instance = source.attach(&caller, "throttled");
    let (mut seed, mut during) = (seed(), 0);
    for sleep in 0..sleeps {
        let backup = caller.start_backup(&instance, &format!("{sleep}"));
        let sleeper = capturing(&shared, &instance, &backup, "");
        pause(&mut seed, Duration::from_millis(1500));
        shared.signal(sleeper, "-STOP");
        capturing(&shared, &instance, &backup, sleeper);
        let ends = |name: &str| shared.nodes[name].log().matches("or its lease is over").count();
        let ended = ends(sleeper);
        let wake = || {
            shared.signal(sleeper, "-CONT");
            wait("the end of the sleeper's job", || {
                (ends(sleeper) > ended).then_some(())
            });
        };
        // Every other one wakes while its successor is at work.
        if sleep % 2 == 0 {
            during += 1;
            wake();
        }
        let record = caller.wait_end(&instance, "backups", &backup);
        assert_eq!(record["status"], "succeed", "{record}");
        let rows = shared.rows(&backup);
        // More than two, where a busy machine has kept a successor from renewing its claim.
        let fence = shared.sql(&format!("SELECT fence FROM job WHERE subject_id = '{backup}'"));
        assert!(fence.parse::<u32>().unwrap() >= 2, "{rows}");
        assert!(rows.contains(&format!("done|{fence}|")), "{rows}");
        let whole = (BTreeSet::from([fence]), 1);
        wait("what the sleeper has stored to be gone", || {
            (shared.attempts(&backup) == whole).then_some(())
        });
        if sleep % 2 == 1 {
            wake();
        }
        wait("connections to the source to be closed", || {
            (source.throttle.connections() == 0).then_some(())
        });
        // What it still had on its way to the store is swept as well.
        wait("nothing to be swept any more", || {
            let left = shared.sql(&format!(
                "SELECT count(*) FROM backup_place WHERE backup_id = '{backup}'"
            ));
            (left == "1" && shared.attempts(&backup) == whole).then_some(())
        });
        assert_eq!(shared.rows(&backup), rows);
        assert_eq!(shared.sql("SELECT attachment_settings FROM instance"), "[]");
    }
    println!(
        "{sleeps} workers stopped past their lease of {LEASE} s and resumed, {during} of them while another one was at work: 0 rows \
         changed, 0 objects left, 0 connections open"
    );
}

#[test]
fn a_worker_that_is_cut_off_from_the_catalogue_lets_go_of_its_source_before_its_lease_ends() {
    let mut shared = Shared::start("api", &["--role", "api,scheduler"], &[]);
    shared.join("first", &["--role", "worker"], &[]);
    for node in shared.nodes.values_mut() {
        node.expect_trouble("catalogue");
    }
    // So slow that the capture would take twenty seconds more.
    let source = Source::start(8, 400_000);
    let caller = shared.nodes["api"].caller();
    let instance = source.attach(&caller, "throttled");
    let backup = caller.start_backup(&instance, "");
    capturing(&shared, &instance, &backup, "");
    wait("a connection to the source", || {
        (source.throttle.connections() > 0).then_some(())
    });
    shared.postgres.kill().unwrap();
    let since = Instant::now();
    wait("connections to the source to be closed", || {
        (source.throttle.connections() == 0).then_some(())
    });
    let took = since.elapsed();
    // What is under way is looked at each second, not at each moment.
    assert!(took < Duration::from_secs(LEASE + 2), "{took:?}");
    println!("with a lease of {LEASE} s a worker without its catalogue let go of its source after {took:?}");
    wait("all nodes to tell their operator", || {
        let tells = |node: &Service| {
            let log = node.log();
            log.lines()
                .any(|line| line.contains("ERROR") && line.contains("catalogue"))
        };
        shared.nodes.values().all(tells).then_some(())
    });
    shared.postgres.start_again().unwrap();
    wait("a service that is ready", || {
        let ready = shared.nodes["api"]
            .connect()
            .send(&Request::new("GET", "/readyz"));
        (ready.status == 200).then_some(())
    });
    let caller = shared.nodes["api"].caller();
    let record = caller.wait_end(&instance, "backups", &backup);
    assert_eq!(record["status"], "succeed", "{record}");
}

#[test]
fn a_node_that_is_told_to_stop_gives_its_jobs_back_at_once() {
    let long = ["--lease", "60", "--drain", "1"];
    let mut shared = Shared::start("api", &[&["--role", "api,scheduler"][..], &long].concat(), &[]);
    for worker in ["first", "second"] {
        shared.join(worker, &[&["--role", "worker"][..], &long].concat(), &[]);
    }
    let source = Source::start(8, 2_000_000);
    let caller = shared.nodes["api"].caller();
    let instance = source.attach(&caller, "throttled");
    let backup = caller.start_backup(&instance, "");
    let owner = capturing(&shared, &instance, &backup, "");
    let asked = Instant::now();
    shared.signal(owner, "-TERM");
    let other = capturing(&shared, &instance, &backup, owner);
    let took = asked.elapsed();
    assert_ne!(other, owner);
    assert!(took < Duration::from_secs(15), "{took:?}");
    let record = caller.wait_end(&instance, "backups", &backup);
    assert_eq!(record["status"], "succeed", "{record}");
    println!(
        "a job of a node that was told to stop was taken up after {took:?}, with a lease of 60 s and a drain of 1 s"
    );
}

#[test]
fn a_backup_that_another_node_makes_is_cancelled_and_no_object_of_it_stays() {
    let mut shared = Shared::start("api", &["--role", "api,scheduler"], &[]);
    shared.join("first", &["--role", "worker"], &[]);
    let source = Source::start(24, 4_000_000);
    let caller = shared.nodes["api"].caller();
    let instance = source.attach(&caller, "throttled");
    let backup = caller.start_backup(&instance, "given up");
    capturing(&shared, &instance, &backup, "");
    wait("a stored segment", || {
        (!shared.attempts(&backup).0.is_empty()).then_some(())
    });
    let path = format!("/instances/{instance}/backups/{backup}/cancel");
    let since = Instant::now();
    caller.ck("POST", &path, None).expect(200);
    let record = caller.wait_end(&instance, "backups", &backup);
    let took = since.elapsed();
    assert_eq!(record["status"], "failed", "{record}");
    assert_eq!(record["ext"]["failure"], "it was cancelled", "{record}");
    // Whoever holds the job looks at its record each half second.
    assert!(took < Duration::from_secs(3), "{took:?}");
    wait("what it has stored to be gone", || {
        let left = shared.sql(&format!(
            "SELECT count(*) FROM backup_place WHERE backup_id = '{backup}'"
        ));
        (left == "0" && shared.attempts(&backup).0.is_empty()).then_some(())
    });
    caller.make_backup(&instance, "after it");
    println!("a backup that another node makes had ended {took:?} after it was cancelled");
}

#[test]
fn a_node_that_is_told_to_stop_ends_first_what_its_drain_has_time_for() {
    let mut shared = Shared::start("api", &["--role", "api,scheduler"], &[]);
    for worker in ["first", "second"] {
        shared.join(worker, &["--role", "worker", "--drain", "60"], &[]);
    }
    // Takes longer than a lease, which is renewed by who is about to stop.
    let source = Source::start(8, 1_500_000);
    let caller = shared.nodes["api"].caller();
    let instance = source.attach(&caller, "throttled");
    let backup = caller.start_backup(&instance, "");
    let owner = capturing(&shared, &instance, &backup, "");
    shared.signal(owner, "-TERM");
    let asked = Instant::now();
    let node = shared.nodes.get_mut(owner).unwrap();
    let status = node.wait_until_it_has_ended();
    let took = asked.elapsed();
    assert!(status.success(), "{status}: {}", node.log());
    assert!(!node.log().contains("given back"), "{}", node.log());
    let of = |backup: &str| {
        shared.sql(&format!(
            "SELECT job.state, job.fence, backup.status, backup.keys, job.owner FROM job JOIN backup ON backup.id = subject_id \
             WHERE backup.id = '{backup}'"
        ))
    };
    let own = |row: &str| shared.named(row.rsplit('|').next().unwrap());
    let row = of(&backup);
    assert!(row.starts_with("done|1|succeeded|8000|"), "{row}");
    assert_eq!(own(&row), Some(owner));
    // What comes then is the other one's.
    let next = of(&caller.make_backup(&instance, ""));
    assert!(next.starts_with("done|1|succeeded|8000|"), "{next}");
    assert!(own(&next).is_some_and(|other| other != owner), "{next}");
    println!(
        "a node that was told to stop, with a drain of 60 s, ended its backup and itself {took:?} later"
    );
}

#[test]
fn a_schedule_goes_on_when_the_scheduler_dies_and_no_run_is_made_twice() {
    let mut clock = Clock::at("2027-03-01T01:58:00Z");
    let mut shared = Shared::start("first", &[], &[clock.variable()]);
    shared.join("second", &[], &[clock.variable()]);
    let source = Source::start(1, 50_000_000);
    let instance = source.attach(&shared.nodes["first"].logged_in(), "scheduled");
    set_policy(
        &shared.nodes["first"].logged_in(),
        &instance,
        &daily("02:00-03:00", 7),
    );
    let duty = |shared: &Shared| {
        let id = shared.sql("SELECT host_id FROM duty WHERE name = 'scheduler'");
        let is = |node: &Service| std::fs::read_to_string(node.data().join("node")).unwrap() == id;
        *shared.nodes.iter().find(|(_, node)| is(node)).unwrap().0
    };
    let mut dead: Option<&'static str> = None;
    for day in 1..=3 {
        clock.pass_to(&format!("2027-03-0{day}T02:00:05Z"));
        let alive = ["first", "second"]
            .into_iter()
            .find(|name| Some(*name) != dead)
            .unwrap();
        let rows = wait_records(&shared.nodes[alive], &instance, day);
        assert!(rows.iter().all(|row| row["status"] == "succeed"), "{rows:#?}");
        if let Some(dead) = dead {
            shared
                .nodes
                .get_mut(dead)
                .unwrap()
                .start_again_in(&[clock.variable()]);
        }
        let scheduler = duty(&shared);
        assert_ne!(Some(scheduler), dead);
        shared.nodes.get_mut(scheduler).unwrap().kill();
        dead = Some(scheduler);
    }
    let runs = shared.sql("SELECT count(*), count(DISTINCT due_at_ms), max(try_number) FROM backup");
    assert_eq!(runs, "3|3|1");
}

#[test]
fn a_node_joins_with_the_keys_of_the_others_and_its_instances_outlive_it_in_backups() {
    let mut shared = Shared::start("first", &[], &[]);
    let refused = |keys: Option<&Path>| {
        let folder = xtask::scratch::Scratch::new("stranger").unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_cachekeep"));
        command.args([
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--catalog",
            &shared.url,
            "--data-dir",
        ]);
        command.arg(folder.path().join("data"));
        if let Some(keys) = keys {
            command.arg("--keys").arg(keys);
        }
        let output = command.output().unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let told = refused(None);
    assert!(told.contains("copy master.key and signing.key"), "{told}");
    let folder = xtask::scratch::Scratch::new("alone").unwrap();
    let alone = Command::new(env!("CARGO_BIN_EXE_cachekeep"))
        .args(["serve", "--listen", "127.0.0.1:0", "--role", "api", "--data-dir"])
        .arg(folder.path())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&alone.stderr).into_owned();
    assert!(
        !alone.status.success() && told.contains("give --catalog"),
        "{told}"
    );
    let stranger = Service::start();
    let told = refused(Some(&stranger.data().join("keys")));
    assert!(
        told.contains("the master key is not the one of this catalogue"),
        "{told}"
    );
    let mixed = xtask::scratch::Scratch::new("mixed").unwrap();
    for (service, key) in [(&shared.nodes["first"], "master.key"), (&stranger, "signing.key")] {
        std::fs::copy(service.data().join("keys").join(key), mixed.path().join(key)).unwrap();
    }
    let told = refused(Some(mixed.path()));
    assert!(
        told.contains("the signing key is not the one of this catalogue"),
        "{told}"
    );

    shared.join("second", &[], &[]);
    shared.join("door", &["--role", "api"], &[]);
    let caller = shared.nodes["second"].caller();
    let project = caller.project.clone();
    let instance = caller.make_instance("of-the-second");
    caller.engine(&instance).ask(&["SET", "k", "v"]).unwrap();
    let value =
        |engine: &mut xtask::resp::Connection| engine.ask(&["GET", "k"]).unwrap().text().map(str::to_owned);
    // Whichever node is asked.
    let first = shared.nodes["first"].caller();
    assert_eq!(first.project, project);
    let nodes = first
        .get(&format!("/instances/{instance}/logical-nodes"))
        .expect(200)
        .json();
    assert_eq!(nodes["nodes"][0]["status"], "Active", "{nodes}");
    let backup = first.make_backup(&instance, "asked elsewhere");
    first.engine(&instance).ask(&["SET", "k", "w"]).unwrap();
    first.make_restore(&instance, &backup, "asked elsewhere");
    assert_eq!(value(&mut first.engine(&instance)).as_deref(), Some("v"));
    // What lies in a folder is read by the node that has it.
    shared.nodes["first"].run_json(&["storage", "default", "local"]);
    let kept = first.make_backup(&instance, "in a folder");
    let links = |caller: &Caller| {
        let path = format!("/instances/{instance}/backups/{kept}/links");
        caller.v2("POST", &path, Some(&json!({"expiration": 600})))
    };
    let told = links(&first).expect(400).json();
    let is_told = told["error_msg"]
        .as_str()
        .unwrap()
        .contains("of another node (second)");
    assert!(is_told, "{told}");
    assert_eq!(
        links(&caller).expect(200).json()["links"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    first.make_restore(&instance, &kept, "where it lies");
    shared.nodes["first"].run_json(&["storage", "default", "offsite"]);
    // A node that runs nothing finds one that does.
    let door = shared.nodes["door"].caller();
    let homed = door.make_instance("asked-at-the-door");
    assert_eq!(door.engine(&homed).ask(&["PING"]).unwrap().text(), Some("PONG"));
    let status = |caller: &Caller, instance: &str| {
        let shown = caller.get(&format!("/instances/{instance}")).expect(200).json();
        (
            shown["status"].as_str().unwrap().to_owned(),
            shown["ext"]["failure"].clone(),
        )
    };

    shared.nodes.get_mut("second").unwrap().kill();
    let lost = wait("an instance that is shown as lost", || {
        let (status, failure) = status(&first, &instance);
        (status == "ERROR").then_some(failure)
    });
    assert!(
        lost.as_str()
            .unwrap()
            .contains("its node second has not been seen since"),
        "{lost}"
    );
    // The operator's verbs find the keys on a node that was told where they are.
    let listed = shared.nodes["door"].run_json(&["node", "list"]);
    let of = |name: &str| -> Value {
        let all = listed.as_array().unwrap();
        all.iter().find(|node| node["name"] == name).unwrap()["status"].clone()
    };
    assert_eq!(
        (of("first"), of("second"), of("door")),
        (json!("there"), json!("lost"), json!("there"))
    );

    // It comes back with all that it had.
    shared.nodes.get_mut("second").unwrap().start_again();
    wait("an instance that serves again", || {
        (status(&first, &instance).0 == "RUNNING").then_some(())
    });
    assert_eq!(value(&mut first.engine(&instance)).as_deref(), Some("v"));
    let refused = shared.nodes["first"].run(&["node", "forget", "second"]);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(told.contains("the node second is there"), "{told}");

    // It does not come back.
    shared.nodes.get_mut("second").unwrap().kill();
    shared.nodes["second"].kill_engines();
    let forgotten = wait("a node that is forgotten", || {
        let done = shared.nodes["first"].run(&["node", "forget", "second", "-o", "json"]);
        done.status
            .success()
            .then(|| serde_json::from_slice::<Value>(&done.stdout).unwrap())
    });
    assert!(forgotten["instances"].as_i64().unwrap() >= 1, "{forgotten}");
    let restarted = json!({"instances": [instance], "action": "restart"});
    drop(first.v2("PUT", "/instances/status", Some(&restarted)));
    assert_eq!(shared.sql("SELECT count(*) FROM job WHERE kind = 'restart'"), "0");
    let told = shared.nodes["first"].run(&[
        "restore",
        "create",
        &instance,
        "--backup",
        &backup,
        "--new",
        "saved",
        "--no-password",
        "--wait",
    ]);
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    let all = first.get("/instances?name=saved").expect(200).json();
    let saved = all["instances"][0]["instance_id"].as_str().unwrap().to_owned();
    assert_eq!(value(&mut first.engine(&saved)).as_deref(), Some("v"));
    first
        .v2("DELETE", &format!("/instances/{instance}"), None)
        .expect(204);
    wait("an instance that is gone", || {
        let state = shared.sql(&format!("SELECT status FROM instance WHERE id = '{instance}'"));
        (state == "deleted").then_some(())
    });
}

/// Bytes a second of a source that is throttled.
fn slow_speed() -> u32 {
    if is_long() { 600_000 } else { 1_500_000 }
}

/// What a worker has left behind that was killed.
struct Dead {
    /// The jobs that it had: others have to begin them again.
    jobs: BTreeSet<String>,
    /// What had ended well by then.
    ended: BTreeSet<String>,
}

impl Dead {
    fn kill(shared: &Shared, name: &str) -> Self {
        shared.signal(name, "-KILL");
        let id = std::fs::read_to_string(shared.nodes[name].data().join("node")).unwrap();
        // What it had sent to the database is done by then, and none of its leases is over yet.
        std::thread::sleep(Duration::from_millis(200));
        let jobs = format!("SELECT id FROM job WHERE state = 'running' AND owner = '{id}'");
        Self {
            jobs: lines(&shared.sql(&jobs)),
            ended: ended_well(shared),
        }
    }
}

fn lines(text: &str) -> BTreeSet<String> {
    text.lines().map(str::to_owned).collect()
}

/// Each backup that succeeded: by which attempt, when, and what it holds.
fn ended_well(shared: &Shared) -> BTreeSet<String> {
    lines(&shared.sql(
        "SELECT backup.id, job.fence, job.settled_at_ms, backup.prefix, backup.manifest_blake3 FROM backup \
         JOIN job ON job.subject_id = backup.id WHERE backup.status = 'succeeded'",
    ))
}

/// Nothing is done a second time but what the dead one had in hand.
fn check_done_once(shared: &Shared, dead: Option<&Dead>) {
    let again = lines(&shared.sql("SELECT id FROM job WHERE kind = 'backup' AND fence > 1"));
    let Some(dead) = dead else {
        assert!(
            again.is_empty(),
            "jobs of living workers were begun again: {again:?}"
        );
        return;
    };
    assert_eq!(
        again, dead.jobs,
        "jobs that were begun again, and those of the dead"
    );
    let now = ended_well(shared);
    let lost: Vec<&String> = dead.ended.difference(&now).collect();
    assert!(lost.is_empty(), "had ended before the kill: {lost:?}");
    assert!(!dead.ended.is_empty(), "nothing had ended before the kill");
    println!(
        "{} backups had ended before the kill, {} were begun again after it",
        dead.ended.len(),
        dead.jobs.len()
    );
}

/// `count` backups of 20 throttled sources by these workers; `kill`: one of them is killed in the middle.
fn time_of(workers: &[&'static str], count: usize, kill: Option<&'static str>) -> (Duration, String) {
    let mut shared = Shared::start("api", &["--role", "api,scheduler"], &[]);
    for worker in workers {
        shared.join(worker, &["--role", "worker"], &[]);
    }
    let speed = slow_speed();
    let servers: Vec<Source> = (0..5).map(|_| Source::start(1, 1)).collect();
    let throttles: Vec<Throttle> = (0..20)
        .map(|number| {
            let port = servers[number % servers.len()].server.nodes[0].port;
            Throttle::start(([127, 0, 0, 1], port).into(), speed).unwrap()
        })
        .collect();
    let caller = shared.nodes["api"].caller();
    let instances: Vec<String> = throttles
        .iter()
        .enumerate()
        .map(|(number, throttle)| attach(&caller, &format!("source-{number}"), throttle))
        .collect();
    let begun = Instant::now();
    let (mut left, mut dead) = (vec![count / instances.len(); instances.len()], None);
    let unfinished = || lines(&shared.sql("SELECT instance_id FROM job WHERE state <> 'done'"));
    loop {
        let busy = unfinished();
        if busy.is_empty() && left.iter().all(|left| *left == 0) {
            break;
        }
        for (instance, left) in instances.iter().zip(&mut left) {
            if *left > 0 && !busy.contains(instance) {
                caller.start_backup(instance, "");
                *left -= 1;
            }
        }
        let done = count - left.iter().sum::<usize>();
        if let Some(name) = kill.filter(|_| dead.is_none() && done > count / 2) {
            dead = Some(Dead::kill(&shared, name));
        }
        assert!(begun.elapsed() < Duration::from_secs(600));
        std::thread::sleep(Duration::from_millis(100));
    }
    let took = begun.elapsed();
    assert_eq!(dead.is_some(), kill.is_some());
    check_done_once(&shared, dead.as_ref());
    let ended = shared.sql("SELECT status, count(*) FROM backup GROUP BY status");
    (took, ended)
}

#[test]
fn two_workers_make_backups_of_slow_sources_faster_than_one() {
    // Twice each in the short form: the kill comes with the second ones.
    let count = if is_long() { 200 } else { 40 };
    let all = format!("succeeded|{count}");
    let (one, ended) = time_of(&["first"], count, None);
    assert_eq!(ended, all);
    let (two, ended) = time_of(&["first", "second"], count, None);
    assert_eq!(ended, all);
    let (killed, ended) = time_of(&["first", "second"], count, Some("second"));
    assert_eq!(ended, all);
    let faster = one.as_secs_f64() / two.as_secs_f64();
    println!(
        "{count} backups of 20 sources that send {} bytes/s: one worker {one:?}, two {two:?}, {faster:.2} times as fast; two, one of \
         them killed in the middle, {killed:?}",
        slow_speed()
    );
    // Forty are too few to tell times from.
    if is_long() {
        assert!(faster >= 1.7, "{faster:.2}");
        // Half of it by two and half of it by one; one alone would need all of its time more if what was done before were lost.
        let at_most = (one + two) / 2 + Duration::from_secs(LEASE) + TAKEN_OVER_WITHIN;
        assert!(killed < at_most, "{killed:?}, at most {at_most:?}");
    }
}
