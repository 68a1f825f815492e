//! Ten thousand damaged backups: for none of them is an engine started, or a server connected to that one should be applied to.

use std::fs;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::path::PathBuf;
use std::time::Duration;

use engine::archive::FileReader;
use engine::process::{Brand, Clients, EngineSpec, Persistence, Program};
use engine::replay::{self, Functions, Input};
use engine::{Address, Archive, Control, Endpoint, Error, Kind, Secret, Selection, proof};

use crate::harness::{Bench, Redis, fill};

const DAMAGES: usize = 10_000;

/// The same numbers for the same seed.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % limit
    }
}

/// Opens as the catalogue does, validates, and lets an engine load it: that there is no such engine is the error of whoever
/// comes that far.
fn prove(bench: &Bench, manifest_blake3: &str) -> Error {
    let spec = EngineSpec {
        program: Program {
            binary: PathBuf::from("/nonexistent/redis-server"),
            brand: Brand::Redis,
            version: "7.0.15".to_owned(),
        },
        directory: bench.scratch.join("engine"),
        run_as: None,
        bind: "127.0.0.1".to_owned(),
        port: 0,
        admin_password: Secret::new("admin-password-of-the-test"),
        clients: Clients::default(),
        max_memory_bytes: 0,
        persistence: Persistence::Rdb,
        certificate: None,
        cluster: None,
        watched: None,
    };
    let keys = [bench.signer.verifying_key()];
    Archive::open(&bench.store, &bench.plan.prefix, &keys, Some(manifest_blake3))
        .and_then(|archive| proof::proven(&archive, &bench.identity, &spec, &Control::new(None)))
        .expect_err("there is no engine")
}

/// Opens as the catalogue does, and applies it to a server that never answers: that it does not is the error of whoever comes
/// that far.
fn apply(bench: &Bench, manifest_blake3: &str, target: &Endpoint) -> Error {
    let plan = replay::Plan {
        selection: Selection::default(),
        shape: replay::Shape::default(),
        conflict: replay::Conflict::Replace,
        others: replay::Others::Stay,
        form: replay::Form::Payloads,
        functions: Functions::Load,
        is_whole: false,
        removes_first: false,
        needs_room: false,
        needs_commands: false,
        connections: 1,
        ops_max: None,
        latency_max: None,
        patience: Duration::ZERO,
        journal: None,
        label: String::new(),
        spill: bench.scratch.join(""),
        now_ms: 1_700_000_000_000,
    };
    let keys = [bench.signer.verifying_key()];
    Archive::open(&bench.store, &bench.plan.prefix, &keys, Some(manifest_blake3))
        .and_then(|archive| FileReader::new(archive, bench.identity.clone(), 0))
        .and_then(|reader| {
            let inputs = vec![Input::Archive(Box::new(reader), "all".to_owned())];
            let outcome = replay::run(&plan, target, inputs, &Control::new(None));
            outcome.failure.map_or(Ok(()), Err)
        })
        .expect_err("nobody answers")
}

#[test]
fn no_engine_is_started_on_any_of_ten_thousand_damaged_backups_and_no_target_connected_to() {
    let redis = Redis::start(&[]);
    fill(&mut redis.node(), 0);
    let bench = Bench::new(redis.endpoint());
    let made = bench.run().unwrap();
    // Of the same server, with other objects under the same names.
    let other = Bench::new(redis.endpoint());
    other.run().unwrap();
    let names = ["manifest.json", "details.age", "shard-0/seg-000000.rdb.zst.age"];
    let paths = names.map(|name| bench.store.root().join(&bench.plan.prefix).join(name));
    let whole: Vec<Vec<u8>> = paths.iter().map(|path| fs::read(path).unwrap()).collect();
    let others = names.map(|name| fs::read(other.store.root().join(&other.plan.prefix).join(name)).unwrap());

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let target = Endpoint {
        address: Address::Tcp("127.0.0.1".to_owned(), listener.local_addr().unwrap().port()),
        user: None,
        password: None,
        tls: None,
        timeout: Duration::from_millis(200),
    };
    let is_connected_to = || match listener.accept() {
        Ok(_) => true,
        Err(e) => {
            assert_eq!(e.kind(), ErrorKind::WouldBlock);
            false
        }
    };
    // The test can fail: what is whole gets as far as an engine, and as far as a target.
    assert_eq!(prove(&bench, &made.manifest_blake3).kind, Kind::EngineStart);
    apply(&bench, &made.manifest_blake3, &target);
    assert!(is_connected_to());
    let mut damaged = 0;
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    for number in 0..DAMAGES {
        let at = numbers.below(paths.len());
        let mut bytes = whole[at].clone();
        let what = match numbers.below(8) {
            0 => {
                bytes.truncate(numbers.below(bytes.len()));
                format!("cut to {} bytes", bytes.len())
            }
            1 => {
                bytes.push(u8::try_from(numbers.below(256)).unwrap());
                "a byte longer".to_owned()
            }
            2 => {
                bytes.clone_from(&others[at]);
                "that of another backup".to_owned()
            }
            3 => {
                let (from, to) = (numbers.below(bytes.len()), numbers.below(bytes.len()));
                let length = numbers.below(64).min(bytes.len() - from.max(to));
                bytes.copy_within(from..from + length, to);
                format!("{length} bytes of {from} at {to}")
            }
            _ => {
                let place = numbers.below(bytes.len());
                bytes[place] ^= u8::try_from(1 + numbers.below(255)).unwrap();
                format!("byte {place} is {}", bytes[place])
            }
        };
        if bytes == whole[at] {
            continue;
        }
        fs::write(&paths[at], &bytes).unwrap();
        let error = prove(&bench, &made.manifest_blake3);
        assert_eq!(
            error.kind,
            Kind::Tampered,
            "{number}: {} {what}: {error}",
            names[at]
        );
        assert!(!bench.scratch.join("engine").exists(), "{number}: {what}");
        let error = apply(&bench, &made.manifest_blake3, &target);
        assert_eq!(
            error.kind,
            Kind::Tampered,
            "{number}: {} {what}: {error}",
            names[at]
        );
        assert!(!is_connected_to(), "{number}: {what}: the target is connected to");
        damaged += 1;
        fs::write(&paths[at], &whole[at]).unwrap();
    }
    for (path, whole) in paths.iter().zip(&whole) {
        fs::remove_file(path).unwrap();
        assert_eq!(prove(&bench, &made.manifest_blake3).kind, Kind::NotFound);
        assert_eq!(apply(&bench, &made.manifest_blake3, &target).kind, Kind::NotFound);
        assert!(!is_connected_to());
        fs::write(path, whole).unwrap();
    }
    assert_eq!(prove(&bench, &made.manifest_blake3).kind, Kind::EngineStart);
    eprintln!("{damaged} damaged objects: no engine was started and no target connected to");
    assert!(damaged > DAMAGES - 100);
}
