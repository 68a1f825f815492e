//! Every named place of a backup, failing and dying there. The backup runs in a child: this binary again.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use engine::{Address, Endpoint, Kind, Store, archive};

use crate::harness::{Bench, Redis, fill};

const PLACES: [&str; 10] = [
    "backup.before_connect",
    "backup.after_fullresync",
    "backup.first_segment_stored",
    "backup.mid_capture",
    "backup.after_last_segment",
    "backup.after_details",
    "backup.before_manifest",
    "backup.after_manifest",
    "store.after_temp_write",
    "store.after_link",
];

/// Not a test of its own: the child of the others.
#[test]
fn child_makes_a_backup() {
    let (Some(socket), Some(root)) = (std::env::var_os("IT_SOCKET"), std::env::var_os("IT_STORE")) else {
        return;
    };
    let endpoint = Endpoint {
        address: Address::Unix(PathBuf::from(socket)),
        user: None,
        password: None,
        tls: None,
        timeout: Duration::from_secs(5),
    };
    let mut bench = Bench::new(endpoint);
    bench.store = Store::open(PathBuf::from(root)).unwrap();
    let before = peak_kib();
    let outcome = bench.run();
    println!("peak grew by {} KiB", peak_kib() - before);
    if let Err(e) = outcome {
        println!("failed: {}", engine::chain(&e));
        std::process::exit(if e.kind == Kind::Io { 3 } else { 4 });
    }
}

/// Highest resident size of this process so far.
pub fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn child(redis: &Redis, store: &Store) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "failpoints::child_makes_a_backup", "--nocapture"])
        .env("IT_SOCKET", redis.scratch.join("s"))
        .env("IT_STORE", store.root())
        // A child that is killed cannot remove its scratch directory: it lies in ours.
        .env("TMPDIR", store.root().parent().unwrap());
    command
}

#[test]
fn failing_anywhere_leaves_nothing_and_dying_anywhere_leaves_no_half_archive() {
    let redis = Redis::start(&[]);
    fill(&mut redis.node(), 20);
    for place in PLACES {
        for action in ["error", "kill"] {
            let bench = Bench::new(redis.endpoint());
            let mark = bench.scratch.join("mark");
            let output = child(&redis, &bench.store)
                .env("CACHEKEEP_FAILPOINT", format!("{place}:{action}"))
                .env("CACHEKEEP_FAILPOINT_MARK", &mark)
                .output()
                .unwrap();
            assert_eq!(
                std::fs::read_to_string(&mark).ok().as_deref().map(str::trim_end),
                Some(place),
                "not reached"
            );
            if action == "error" {
                let said = String::from_utf8_lossy(&output.stdout);
                assert_eq!(output.status.code(), Some(3), "{place}: {said}");
                assert!(bench.store_is_bare(), "{place}: objects are left");
            } else {
                assert_eq!(output.status.signal(), Some(9), "{place}");
                let has_manifest = bench
                    .store
                    .exists(&format!("{}/manifest.json", bench.plan.prefix))
                    .unwrap();
                assert_eq!(has_manifest, place == "backup.after_manifest", "{place}");
                archive::delete(&bench.store, &bench.plan.prefix).unwrap();
                assert!(bench.store_is_bare(), "{place}: remains survive the deletion");
            }
        }
    }
}

#[test]
fn memory_does_not_follow_the_size_of_a_value() {
    let redis = Redis::start(&["--rdbcompression", "no"]);
    fill(&mut redis.node(), 60);
    redis
        .node()
        .run(&["DEBUG", "POPULATE", "1", "huge", "300000000"])
        .unwrap();
    let bench = Bench::new(redis.endpoint());
    let output = child(&redis, &bench.store).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    let line = said
        .lines()
        .find_map(|line| line.split_once("peak grew by "))
        .unwrap()
        .1;
    let grown_kib: u64 = line.split(' ').next().unwrap().parse().unwrap();
    println!("{said}");
    assert!(grown_kib < 64 * 1024, "{said}");
}
