//! The verb against real engines.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use engine::{Address, Kind, Node, Secret, Store, Tls, Tuning};
use xtask::small_disk::{Mounted, SmallDisk};

use crate::harness::{Bench, Redis, Scratch, digest, fill, info_number, start_on, wait_until};

#[test]
fn both_framings_restore_to_the_same_data() {
    for diskless in ["yes", "no"] {
        let redis = Redis::start(&["--repl-diskless-sync", diskless]);
        fill(&mut redis.node(), 20);
        let bench = Bench::new(redis.endpoint());
        let report = bench.run().unwrap();
        assert_eq!(report.keys, 9 + 1 + 320);
        assert_eq!(report.engine_version, "7.0.15");
        assert_eq!(report.rdb_version, 10);
        assert_eq!(report.replid.len(), 40);
        assert!(report.used_memory_bytes > 20 << 20 && report.plain_bytes > 20 << 20);
        assert!(report.segments >= 3);

        let archive = bench.open().unwrap();
        archive.probe().unwrap();
        let manifest = archive.manifest();
        assert_eq!((manifest.project.as_str(), manifest.attempt), ("p", 1));
        assert_eq!(manifest.plain_bytes, report.plain_bytes);
        assert_eq!(manifest.stored_bytes, report.stored_bytes);
        let progress = bench.control.progress();
        assert_eq!(
            (progress.phase, progress.bytes_done),
            ("storing", report.plain_bytes)
        );

        let rdb = bench.read().unwrap();
        assert_eq!(rdb.len() as u64, report.plain_bytes);
        let copy = start_on(&rdb);
        assert_eq!(digest(&mut copy.node()), digest(&mut redis.node()));
    }
}

#[test]
fn empty_instance_is_backed_up() {
    let redis = Redis::start(&[]);
    let bench = Bench::new(redis.endpoint());
    let report = bench.run().unwrap();
    assert_eq!((report.keys, report.segments), (0, 1));
    start_on(&bench.read().unwrap());
}

#[test]
fn small_backup_is_a_matter_of_moments() {
    let redis = Redis::start(&["--repl-diskless-sync-delay", "5"]);
    fill(&mut redis.node(), 1);
    let mut bench = Bench::new(redis.endpoint());
    bench.plan.tuning = Tuning::Config;
    let since = Instant::now();
    bench.run().unwrap();
    // 0.1 s on a quiet machine; without tuning it is above 5.
    assert!(since.elapsed() < Duration::from_secs(3), "{:?}", since.elapsed());
}

#[test]
fn user_and_password_are_needed_and_suffice() {
    let redis = Redis::start(&["--requirepass", "default-secret"]);
    let mut endpoint = redis.endpoint();
    assert_eq!(
        Bench::new(endpoint.clone()).run().unwrap_err().kind,
        Kind::Auth,
        "no password"
    );
    endpoint.password = Some(Secret::new("wrong-secret"));
    let refused = Bench::new(endpoint.clone());
    let error = refused.run().unwrap_err();
    assert_eq!(error.kind, Kind::Auth);
    assert!(!engine::chain(&error).contains("secret"));
    assert!(refused.store_is_bare());
    endpoint.password = Some(Secret::new("default-secret"));
    Bench::new(endpoint.clone()).run().unwrap();

    // A user with nothing but the right to be a replica.
    let mut node = Node::connect(&endpoint).unwrap();
    node.run(&[
        "ACL",
        "SETUSER",
        "backup",
        "on",
        ">backup-secret",
        "+psync",
        "+replconf",
    ])
    .unwrap();
    node.run(&[
        "ACL",
        "SETUSER",
        "nobody",
        "on",
        ">backup-secret",
        "+ping",
        "+replconf",
    ])
    .unwrap();
    endpoint.user = Some("backup".to_owned());
    endpoint.password = Some(Secret::new("backup-secret"));
    let mut bench = Bench::new(endpoint.clone());
    bench.run().unwrap();
    // Tuning is refused to it, which costs time and not the backup.
    bench.plan.prefix = "second".to_owned();
    bench.plan.tuning = Tuning::Config;
    bench.run().unwrap();
    endpoint.user = Some("nobody".to_owned());
    let error = Bench::new(endpoint).run().unwrap_err();
    assert_eq!(error.kind, Kind::Refused);
    assert!(error.context.contains("+psync"), "{error}");
}

#[test]
fn tls_source_is_verified_and_captured() {
    let scratch = Scratch::new();
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
        ])
        .args([
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost,IP:127.0.0.1",
        ])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .args(["-keyout", "key.pem", "-out", "cert.pem"])
        .current_dir(scratch.path())
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let cert = scratch.join("cert.pem");
    let redis = Redis::start(&[
        "--bind",
        "127.0.0.1",
        "--tls-port",
        &port.to_string(),
        "--tls-cert-file",
        cert.to_str().unwrap(),
        "--tls-key-file",
        scratch.join("key.pem").to_str().unwrap(),
        "--tls-ca-cert-file",
        cert.to_str().unwrap(),
        "--tls-auth-clients",
        "no",
        "--tls-replication",
        "yes",
    ]);
    fill(&mut redis.node(), 20);
    let mut endpoint = redis.endpoint();
    endpoint.address = Address::Tcp("127.0.0.1".to_owned(), port);
    endpoint.tls = Some(tls(Some(&std::fs::read(&cert).unwrap())));
    let bench = Bench::new(endpoint.clone());
    bench.run().unwrap();
    let copy = start_on(&bench.read().unwrap());
    assert_eq!(digest(&mut copy.node()), digest(&mut redis.node()));

    endpoint.tls = Some(tls(None));
    let untrusting = Bench::new(endpoint.clone());
    assert_eq!(untrusting.run().unwrap_err().kind, Kind::Connection);
    endpoint.tls = None;
    endpoint.timeout = Duration::from_secs(1);
    assert!(Bench::new(endpoint).run().is_err(), "plain text to a TLS port");
}

fn tls(trusted_pem: Option<&[u8]>) -> Tls {
    let config = client_config(trusted_pem);
    Tls { config, name: None }
}

fn client_config(trusted_pem: Option<&[u8]>) -> Arc<rustls::ClientConfig> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    if let Some(pem) = trusted_pem {
        roots.add(CertificateDer::from_pem_slice(pem).unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}

/// Runs the backup, and `meanwhile` as soon as it has captured something.
fn run_and(bench: &Bench, meanwhile: impl FnOnce()) -> Result<engine::BackupReport, engine::Error> {
    std::thread::scope(|scope| {
        let backup = scope.spawn(|| bench.run());
        wait_until("the capture is under way", || {
            let progress = bench.control.progress();
            backup.is_finished() || progress.phase == "capturing" && progress.bytes_done > 0
        });
        meanwhile();
        backup.join().unwrap()
    })
}

#[test]
fn engine_killed_in_mid_capture_leaves_nothing() {
    let mut redis = Redis::start(&["--rdb-key-save-delay", "3000"]);
    fill(&mut redis.node(), 60);
    let bench = Bench::new(redis.endpoint());
    let error = run_and(&bench, || redis.kill()).unwrap_err();
    assert_eq!(error.kind, Kind::Connection, "{}", engine::chain(&error));
    assert!(bench.store_is_bare());
}

#[test]
fn cancelled_backup_leaves_nothing_and_the_engine_serves_on() {
    let redis = Redis::start(&["--rdb-key-save-delay", "3000"]);
    fill(&mut redis.node(), 60);
    let bench = Bench::new(redis.endpoint());
    let since = Instant::now();
    let error = run_and(&bench, || bench.control.cancel()).unwrap_err();
    assert_eq!(error.kind, Kind::Cancelled);
    assert!(since.elapsed() < Duration::from_secs(10));
    assert!(bench.store_is_bare());
    redis.node().run(&["PING"]).unwrap();
}

#[test]
fn slow_store_neither_slows_the_source_nor_grows_its_buffers() {
    let redis = Redis::start(&[]);
    fill(&mut redis.node(), 80);
    let mut bench = Bench::new(redis.endpoint());
    bench.store = bench.store.clone().with_put_delay(Duration::from_millis(700));
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut node = redis.node();
            let value = vec![b'x'; 100_000];
            let mut written = 0;
            while !is_over.load(Ordering::Relaxed) {
                node.command(&[b"SET", format!("written:{}", written % 100).as_bytes(), &value])
                    .unwrap();
                written += 1;
            }
            written
        });
        let watcher = scope.spawn(|| {
            let mut node = redis.node();
            let (mut buffered, mut drained_after, since) = (0, None, Instant::now());
            let mut was_replica = false;
            while !is_over.load(Ordering::Relaxed) {
                buffered = buffered.max(info_number(&mut node, "memory", "mem_clients_slaves"));
                let replicas = info_number(&mut node, "replication", "connected_slaves");
                was_replica |= replicas > 0;
                if was_replica && replicas == 0 && drained_after.is_none() {
                    drained_after = Some(since.elapsed());
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            (buffered, drained_after, since.elapsed())
        });
        bench.run().unwrap();
        is_over.store(true, Ordering::Relaxed);
        let written = writer.join().unwrap();
        let (buffered, drained_after, whole) = watcher.join().unwrap();
        assert!(written > 100, "{written} writes only");
        assert!(
            buffered < 2 << 20,
            "{buffered} bytes in the source's replica buffers"
        );
        let drained_after = drained_after.expect("the source was let go before the end");
        assert!(
            drained_after * 2 < whole,
            "drained after {drained_after:?} of {whole:?}"
        );
    });
    assert!(!bench.read().unwrap().is_empty());
}

#[test]
fn full_spool_aborts_clearly() {
    let redis = Redis::start(&[]);
    fill(&mut redis.node(), 80);
    let mut bench = Bench::new(redis.endpoint());
    bench.store = bench.store.clone().with_put_delay(Duration::from_secs(2));
    bench.plan.spool_limit_bytes = 4 << 20;
    let error = bench.run().unwrap_err();
    assert_eq!(error.kind, Kind::StoreFull);
    assert!(
        error.context.contains("spool") && error.context.contains("4194304"),
        "{error}"
    );
    assert!(bench.store_is_bare());
    redis.node().run(&["PING"]).unwrap();
}

fn settings(redis: &Redis) -> (String, String) {
    let mut node = redis.node();
    (
        node.config_get("repl-diskless-sync-delay").unwrap().unwrap(),
        node.config_get("rdbcompression").unwrap().unwrap(),
    )
}

#[test]
fn tuned_settings_are_put_back_while_the_snapshot_still_runs() {
    let redis = Redis::start(&["--repl-diskless-sync-delay", "7", "--rdb-key-save-delay", "2000"]);
    fill(&mut redis.node(), 40);
    let before = settings(&redis);
    assert_eq!(before, ("7".to_owned(), "yes".to_owned()));
    let mut bench = Bench::new(redis.endpoint());
    bench.plan.tuning = Tuning::Config;
    let since = Instant::now();
    run_and(&bench, || assert_eq!(settings(&redis), before)).unwrap();
    assert!(
        since.elapsed() < Duration::from_secs(7),
        "the delay was not taken away"
    );
    // And the values were those of the capture: nothing in it is compressed.
    let aux = bench.open().unwrap();
    assert!(aux.manifest().plain_bytes > 40 << 20);
}

#[test]
fn tuned_settings_are_put_back_when_the_snapshot_never_starts() {
    let redis = Redis::start(&["--repl-diskless-sync-delay", "7", "--rdb-key-save-delay", "20000"]);
    fill(&mut redis.node(), 40);
    let before = settings(&redis);
    // Somebody else's BGSAVE: PSYNC waits for its end, 12 seconds from now.
    redis.node().run(&["BGSAVE"]).unwrap();
    let mut bench = Bench::new(redis.endpoint());
    bench.plan.tuning = Tuning::Config;
    let error = std::thread::scope(|scope| {
        let backup = scope.spawn(|| bench.run());
        wait_until("the settings are tuned", || {
            settings(&redis) == ("0".to_owned(), "no".to_owned())
        });
        wait_until("it waits", || bench.control.progress().phase == "snapshot");
        bench.control.cancel();
        backup.join().unwrap().unwrap_err()
    });
    assert_eq!(error.kind, Kind::Cancelled);
    assert_eq!(settings(&redis), before);
}

#[test]
fn prefix_in_use_is_refused_and_untouched() {
    let redis = Redis::start(&[]);
    let bench = Bench::new(redis.endpoint());
    bench.run().unwrap();
    assert_eq!(bench.run().unwrap_err().kind, Kind::Store);
    bench.open().unwrap().probe().unwrap();
}

#[test]
fn full_disk_is_a_clear_error_and_leaves_nothing() {
    use std::io::Write;
    let disk = match SmallDisk::mount(4, "backup::full_disk_is_a_clear_error_and_leaves_nothing") {
        Mounted::Here(disk) => disk,
        Mounted::Elsewhere => return,
        Mounted::Nowhere(why) => {
            // Not captured, as what a test that passes prints would be.
            let said = format!("\nNOT SHOWN: a full disk during a backup; no small file system: {why}\n");
            std::io::stderr().write_all(said.as_bytes()).unwrap();
            return;
        }
    };
    let redis = Redis::start(&[]);
    fill(&mut redis.node(), 20);
    let mut bench = Bench::new(redis.endpoint());
    bench.store = Store::open(disk.path().join("store")).unwrap();
    let error = bench.run().unwrap_err();
    assert_eq!(error.kind, Kind::StoreFull, "{}", engine::chain(&error));
    assert!(bench.store_is_bare());

    // The same for the disk of the spool.
    let mut bench = Bench::new(redis.endpoint());
    bench.plan.spool_dir = disk.path().join("spool");
    bench.store = bench.store.clone().with_put_delay(Duration::from_secs(2));
    fill(&mut redis.node(), 60);
    let error = bench.run().unwrap_err();
    assert_eq!(error.kind, Kind::StoreFull, "{}", engine::chain(&error));
    assert!(bench.store_is_bare());
}

#[test]
fn snapshot_that_is_no_rdb_is_malformed() {
    use std::io::{Read, Write};
    let scratch = Scratch::new();
    let listener = std::os::unix::net::UnixListener::bind(scratch.join("s")).unwrap();
    let redis = Redis::start(&[]);
    let mut endpoint = redis.endpoint();
    endpoint.address = Address::Unix(scratch.join("s"));
    let bench = Bench::new(endpoint);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut peer, _) = listener.accept().unwrap();
            let mut seen = [0; 4096];
            for answer in ["+OK\r\n", "+OK\r\n"] {
                assert!(peer.read(&mut seen).unwrap() > 0);
                peer.write_all(answer.as_bytes()).unwrap();
            }
            assert!(peer.read(&mut seen).unwrap() > 0);
            let answer = format!("+FULLRESYNC {} 1\r\n$20\r\nREDIS0011garbage-----", "a".repeat(40));
            peer.write_all(answer.as_bytes()).unwrap();
        });
        let error = bench.run().unwrap_err();
        assert_eq!(error.kind, Kind::Malformed, "{error}");
    });
    assert!(bench.store_is_bare());
}
