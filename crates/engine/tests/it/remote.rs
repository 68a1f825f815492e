//! A store behind S3: a real S3 server, alone and behind a bad network.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use engine::node::Secret;
use engine::store::{Check, always};
use engine::{
    Address, Archive, Control, Endpoint, Error, Kind, Patience, RemoteKind, RemoteSpec, Store, archive,
};
use xtask::fault_proxy::FaultProxy;
use xtask::object_server::ObjectServer;

use crate::failpoints::peak_kib;
use crate::harness::{Bench, Redis, fill};

const BUCKET: &str = "backups";
/// Quick enough for a test: a stalled try is given up after a third of a second.
const QUICK: Patience = Patience {
    connect: Duration::from_secs(2),
    silence: Duration::from_millis(300),
    attempt: Duration::from_secs(5),
    tries: 12,
    total: Duration::from_secs(60),
    pause: Duration::from_millis(5),
    pause_max: Duration::from_millis(100),
};

fn spec(address: std::net::SocketAddr) -> RemoteSpec {
    RemoteSpec {
        kind: RemoteKind::S3,
        endpoint: format!("http://{address}"),
        bucket: BUCKET.to_owned(),
        prefix: "some/where".to_owned(),
        region: "us-east-1".to_owned(),
        access_key: Secret::new("THE-ACCESS-KEY"),
        secret_key: Secret::new("the-secret-half"),
    }
}

fn server() -> ObjectServer {
    ObjectServer::start(BUCKET).unwrap_or_else(|stop| panic!("{stop}"))
}

fn store(server: &ObjectServer) -> Store {
    Store::open_remote(&spec(server.address()), QUICK).unwrap()
}

#[test]
fn objects_behave_as_in_a_folder() {
    let server = server();
    let store = store(&server);
    store.put("a/b/one", b"first").unwrap();
    store.put("a/b/two", b"").unwrap();
    store.put("a/c", b"third").unwrap();
    assert_eq!(store.get("a/b/one").unwrap(), b"first");
    assert_eq!(
        (store.size("a/b/one").unwrap(), store.size("a/b/two").unwrap()),
        (5, 0)
    );
    assert_eq!(store.list("a/b").unwrap(), ["a/b/one", "a/b/two"]);
    assert_eq!(store.list("").unwrap().len(), 3);
    assert_eq!(
        server.names(BUCKET).unwrap()[0],
        "some/where/a/b/one",
        "the prefix is put before every name"
    );
    for absent in ["a/b", "a", "a/b/three"] {
        assert_eq!(store.get(absent).unwrap_err().kind, Kind::NotFound, "{absent}");
        assert!(!store.exists(absent).unwrap());
    }
    let mut into = Vec::new();
    assert_eq!(
        store.get_into("a/c", 4, &mut into, &always).unwrap_err().kind,
        Kind::Tampered
    );
    store.delete("a/b/one").unwrap();
    store.delete("a/b/one").unwrap();
    assert!(!store.exists("a/b/one").unwrap());
    store.delete_prefix("a").unwrap();
    assert!(server.names(BUCKET).unwrap().is_empty());
    for name in ["", "/a", "a//b", "../a", "a/.b", "a b", "a/"] {
        assert_eq!(store.put(name, b"x").unwrap_err().kind, Kind::Store, "{name:?}");
    }
}

#[test]
fn a_buffer_is_sent_without_a_copy_and_comes_back_empty() {
    let server = server();
    let store = store(&server);
    let mut buffer = Vec::with_capacity(9_000_000);
    buffer.resize(8_300_000, 7);
    let place = buffer.as_ptr();
    let emptied = store.put_buffer("big", buffer, &always).unwrap();
    assert_eq!((emptied.len(), emptied.as_ptr()), (0, place));
    let mut into = Vec::new();
    store.get_into("big", 9_000_000, &mut into, &always).unwrap();
    assert!(into.len() == 8_300_000 && into.iter().all(|byte| *byte == 7));
}

#[test]
fn backup_and_restore_go_through_it() {
    let server = server();
    let redis = Redis::start(&[]);
    fill(&mut redis.node(), 20);
    let local = Bench::new(redis.endpoint());
    local.run().unwrap();
    let mut bench = Bench::new(redis.endpoint());
    bench.store = store(&server);
    bench.run().unwrap();
    bench.open().unwrap().probe().unwrap();
    assert_eq!(bench.read().unwrap().len(), local.read().unwrap().len());
    assert!(server.names(BUCKET).unwrap().len() >= 5);
    assert_eq!(bench.run().unwrap_err().kind, Kind::Store, "the prefix is in use");
    archive::delete(&bench.store, &bench.plan.prefix).unwrap();
    assert_eq!(server.names(BUCKET).unwrap(), [""; 0]);
}

#[test]
fn what_is_wrong_is_said_and_no_secret_with_it() {
    let server = server();
    let expect = |spec: RemoteSpec, kind: Kind, words: &str| {
        let store = Store::open_remote(&spec, Patience { tries: 3, ..QUICK });
        let error = store.and_then(|store| store.put("x", b"x")).unwrap_err();
        let said = engine::chain(&error);
        assert_eq!(error.kind, kind, "{said}");
        assert!(said.contains(words), "{said}");
        assert!(!said.contains("the-secret-half"), "{said}");
        assert!(!said.contains("THE-ACCESS-KEY"), "{said}");
    };
    let good = spec(server.address());
    let with = |change: &dyn Fn(&mut RemoteSpec)| {
        let mut spec = good.clone();
        change(&mut spec);
        spec
    };
    expect(
        with(&|s| s.bucket = "nowhere".to_owned()),
        Kind::Store,
        "no such bucket",
    );
    expect(
        with(&|s| s.endpoint = "ftp://x".to_owned()),
        Kind::Store,
        "https://",
    );
    expect(
        with(&|s| s.endpoint = "http://a:b@x".to_owned()),
        Kind::Store,
        "without credentials",
    );
    expect(with(&|s| s.bucket = "Big".to_owned()), Kind::Store, "lower-case");
    expect(with(&|s| s.prefix = "/x".to_owned()), Kind::Store, "prefix");
    expect(with(&|s| s.region.clear()), Kind::Store, "region");
    expect(with(&|s| s.kind = RemoteKind::Obs), Kind::Store, "port");
    let refusing = ObjectServer::start_refusing(BUCKET).unwrap_or_else(|stop| panic!("{stop}"));
    expect(
        spec(refusing.address()),
        Kind::StoreAccess,
        "check the credentials",
    );
    let nobody = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    expect(spec(nobody), Kind::Store, "refused");
}

#[test]
fn a_long_listing_comes_whole_part_by_part_through_a_network_that_breaks() {
    const OBJECTS: usize = 1100;
    let server = server();
    let near = store(&server);
    std::thread::scope(|scope| {
        for from in 0..4 {
            let near = &near;
            scope.spawn(move || {
                for at in (from..OBJECTS).step_by(4) {
                    near.put(&format!("many/{at:06}"), b"").unwrap();
                }
            });
        }
    });
    let proxy = FaultProxy::start(server.address(), 3, Duration::from_millis(500)).unwrap();
    proxy.set_percent(20);
    // The server takes a third of a second for a thousand names before it says anything.
    let patience = Patience {
        silence: Duration::from_secs(3),
        ..QUICK
    };
    let far = Store::open_remote(&spec(proxy.address()), patience).unwrap();
    let mut seen = std::collections::BTreeSet::new();
    far.list_each("many", |name| {
        seen.insert(name.to_owned());
        Ok(())
    })
    .unwrap();
    assert_eq!(seen.len(), OBJECTS);
}

#[test]
fn an_interrupted_call_ends_at_once() {
    let server = server();
    let proxy = FaultProxy::start(server.address(), 1, Duration::from_secs(1)).unwrap();
    proxy.set_down(true);
    let store = Store::open_remote(&spec(proxy.address()), Patience::JOB).unwrap();
    let since = Instant::now();
    let wanted = || match since.elapsed() < Duration::from_millis(300) {
        true => Ok(()),
        false => Err(Error::new(Kind::Cancelled, "test", "enough")),
    };
    let error = store.put_buffer("x", vec![1; 1000], &wanted).unwrap_err();
    assert_eq!(error.kind, Kind::Cancelled);
    assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
}

#[test]
fn the_probe_names_what_does_not_work() {
    let server = server();
    let store = store(&server);
    let findings = store.probe("probe/x");
    assert_eq!(findings.len(), Check::ALL.len());
    for finding in findings {
        finding.outcome.unwrap();
    }
    assert_eq!(server.names(BUCKET).unwrap(), [""; 0]);
    drop(server);
    let patience = Patience { tries: 1, ..QUICK };
    let findings = store.with_patience(patience).probe("probe/x");
    assert_eq!(findings.len(), 1);
    assert_eq!(findings[0].check, Check::Write);
    assert!(findings[0].outcome.is_err());
}

/// A store that fails for a while costs time and not the backup, and the source does not wait for it.
#[test]
fn an_outage_within_the_patience_is_ridden_out() {
    let server = server();
    let proxy = FaultProxy::start(server.address(), 1, Duration::from_secs(1)).unwrap();
    let redis = Redis::start(&[]);
    fill(&mut redis.node(), 60);
    let mut bench = Bench::new(redis.endpoint());
    bench.store = Store::open_remote(&spec(proxy.address()), Patience { tries: 100, ..QUICK }).unwrap();
    std::thread::scope(|scope| {
        let running = scope.spawn(|| bench.run());
        crate::harness::wait_until("the capture writes", || proxy.requests() > 3);
        proxy.set_down(true);
        std::thread::sleep(Duration::from_secs(1));
        assert!(!running.is_finished());
        let mut node = redis.node();
        crate::harness::wait_until("the source has sent all", || {
            crate::harness::info_number(&mut node, "clients", "connected_clients") <= 1
                && node
                    .info("replication")
                    .unwrap()
                    .contains(&("connected_slaves".to_owned(), "0".to_owned()))
        });
        proxy.set_down(false);
        running.join().unwrap().unwrap();
    });
    assert!(bench.read().unwrap().len() > 60 << 20);
}

/// What came of the backups and restores of one thread.
#[derive(Default)]
struct Outcome {
    backups: u32,
    made: u32,
    read: u32,
    failures: Vec<String>,
}

/// Backs up, restores through the bad network, and compares with what a sound connection shows. Panics at a lie.
fn back_up_and_restore(bench: &mut Bench, sound: &Store, prefix: String, outcome: &mut Outcome) {
    bench.plan.prefix = prefix;
    bench.control = Control::new(Some(Duration::from_secs(120)));
    let backup = bench.run();
    let through = bench.read();
    let keys = [bench.signer.verifying_key()];
    let truth = Archive::open(sound, &bench.plan.prefix, &keys, None).and_then(|archive| {
        let mut rdb = Vec::new();
        archive
            .read(&bench.identity, &Control::new(None), 2, |piece| {
                rdb.extend_from_slice(piece);
                Ok(())
            })
            .map(|()| rdb)
    });
    outcome.backups += 1;
    match backup {
        Ok(report) => {
            outcome.made += 1;
            let truth = truth.unwrap_or_else(|e| panic!("a lying success: {}", engine::chain(&e)));
            assert_eq!(truth.len() as u64, report.plain_bytes, "a lying success");
            match through {
                Ok(rdb) => {
                    assert!(rdb == truth, "wrong bytes were delivered");
                    outcome.read += 1;
                }
                Err(e) => outcome.failures.push(engine::chain(&e)),
            }
        }
        Err(e) => {
            assert_eq!(truth.unwrap_err().kind, Kind::NotFound, "a lying failure");
            outcome.failures.push(engine::chain(&e));
        }
    }
    archive::delete(sound, &bench.plan.prefix).unwrap();
}

/// N backups and N restores while a fifth of all requests is spoilt. Each restore is compared byte for byte with
/// what a sound connection shows.
#[test]
fn a_fifth_of_all_requests_spoilt_makes_no_lie() {
    back_up_on_a_bad_network(&server(), if is_long() { 125 } else { 5 });
}

/// s3s-fs checks signatures and keeps files; its build takes minutes, so it is asked in the long form only.
#[test]
fn another_server_that_checks_signatures_is_served_as_well() {
    if !is_long() {
        return;
    }
    let server = ObjectServer::start_checking(BUCKET, "THE-ACCESS-KEY", "the-secret-half");
    let server = server.unwrap_or_else(|stop| panic!("{stop}"));
    for finding in store(&server).probe("probe/x") {
        finding.outcome.unwrap();
    }
    let mut stranger = spec(server.address());
    stranger.secret_key = Secret::new("not-the-secret-half");
    let error = Store::open_remote(&stranger, QUICK)
        .unwrap()
        .put("x", b"x")
        .unwrap_err();
    assert_eq!(error.kind, Kind::StoreAccess, "{}", engine::chain(&error));
    back_up_on_a_bad_network(&server, 125);
}

fn is_long() -> bool {
    std::env::var_os("CACHEKEEP_TEST_LONG").is_some_and(|value| value == "1")
}

/// Four engines side by side, `each` backed up and read back so many times.
fn back_up_on_a_bad_network(server: &ObjectServer, each: u32) {
    const THREADS: u32 = 4;
    let proxy = FaultProxy::start(server.address(), 20_261_124, Duration::from_millis(500)).unwrap();
    let through = Store::open_remote(&spec(proxy.address()), QUICK).unwrap();
    let sound = store(server);
    proxy.set_percent(20);
    let since = Instant::now();
    let outcomes: Vec<Outcome> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (through, sound) = (&through, &sound);
                scope.spawn(move || {
                    // One each: an engine makes one snapshot at a time.
                    let redis = Redis::start(&["--rdbcompression", "no"]);
                    fill(&mut redis.node(), 9);
                    let mut bench = Bench::new(redis.endpoint());
                    bench.store = through.clone();
                    let mut outcome = Outcome::default();
                    for number in 0..each {
                        back_up_and_restore(
                            &mut bench,
                            sound,
                            format!("p/i/{thread}/{number}"),
                            &mut outcome,
                        );
                    }
                    outcome
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let sum = |count: &dyn Fn(&Outcome) -> u32| outcomes.iter().map(count).sum::<u32>();
    let (backups, made, read) = (sum(&|o| o.backups), sum(&|o| o.made), sum(&|o| o.read));
    for failure in outcomes.iter().flat_map(|outcome| &outcome.failures) {
        println!("failed: {failure}");
    }
    println!(
        "{made} of {backups} backups, {read} of {made} restores in {:.1} s; {} requests, {:?}",
        since.elapsed().as_secs_f32(),
        proxy.requests(),
        proxy.counts()
    );
    assert_eq!(backups, THREADS * each);
    assert!(made * 100 >= backups * 99 && read * 100 >= made * 99);
    let never: Vec<_> = proxy
        .counts()
        .into_iter()
        .filter(|(_, count)| *count == 0)
        .collect();
    assert!(never.is_empty(), "these faults never happened: {never:?}");
}

/// Not a test of its own: the child of the next one.
#[test]
fn child_backs_up_and_reads_back() {
    let (Some(socket), Some(address)) = (std::env::var_os("IT_SOCKET"), std::env::var("IT_S3").ok()) else {
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
    bench.store = Store::open_remote(&spec(address.parse().unwrap()), Patience::JOB).unwrap();
    let before = peak_kib();
    bench.run().unwrap();
    let after_backup = peak_kib();
    let archive = bench.open().unwrap();
    archive
        .read(&bench.identity, &Control::new(None), 2, |_piece| Ok(()))
        .unwrap();
    println!(
        "peaks grew by {} {} KiB",
        after_backup - before,
        peak_kib() - before
    );
}

#[test]
fn memory_stays_within_64_mib_with_a_remote_store() {
    let server = server();
    let redis = Redis::start(&["--rdbcompression", "no"]);
    fill(&mut redis.node(), 150);
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "remote::child_backs_up_and_reads_back", "--nocapture"])
        .env("IT_SOCKET", redis.scratch.join("s"))
        .env("IT_S3", server.address().to_string())
        .env("TMPDIR", redis.scratch.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    let line = said
        .lines()
        .find_map(|line| line.split_once("peaks grew by "))
        .unwrap()
        .1;
    println!("{line}");
    for grown_kib in line.split(' ').take(2) {
        assert!(grown_kib.parse::<u64>().unwrap() < 64 * 1024, "{line}");
    }
}
