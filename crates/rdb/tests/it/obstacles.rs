//! What is said of engines that load a file as it is, asked of the engines themselves.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::build::*;
use crate::fixtures::FIXTURES;
use crate::matrix::engines;
use crate::writer::written;
use rdb::{Compression, Sink, TARGETS, Target, TypeCodes, Validator, obstacles};

const START_MAX: Duration = Duration::from_secs(20);

#[derive(Default)]
struct Codes(TypeCodes);

impl Sink for Codes {
    fn key(&mut self, key: &rdb::KeySummary<'_>) {
        self.0.add(key);
    }
}

fn said(engine: &str, bytes: &[u8]) -> Vec<String> {
    let (mut validator, mut codes) = (Validator::new(), Codes::default());
    validator.feed(bytes, &mut codes).unwrap();
    obstacles(engine, &validator.finish().unwrap(), &codes.0).unwrap()
}

/// Whether an engine that finds the file in its directory serves, or ends itself.
fn loads(command: &str, name: &str, bytes: &[u8]) -> bool {
    let dir = std::env::temp_dir().join(format!("rdb-it-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("dump.rdb"), bytes).unwrap();
    let socket = dir.join("s");
    let mut words = command.split(' ');
    let mut process = Command::new(words.next().unwrap())
        .args(words)
        .args(["--port", "0", "--save", "", "--unixsocket"])
        .arg(&socket)
        .arg("--dir")
        .arg(&dir)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let started = Instant::now();
    let is_loaded = loop {
        if process.try_wait().unwrap().is_some() {
            break false;
        }
        let answer = UnixStream::connect(&socket).and_then(|mut stream| {
            stream.write_all(b"PING\r\n")?;
            let mut answer = [0; 5];
            stream.read_exact(&mut answer).map(|()| answer)
        });
        if answer.is_ok_and(|answer| answer == *b"+PONG") {
            break true;
        }
        assert!(started.elapsed() < START_MAX, "{name} neither serves nor ends");
        std::thread::sleep(Duration::from_millis(5));
    };
    let _ended = process.kill().and_then(|()| process.wait());
    std::fs::remove_dir_all(&dir).unwrap();
    is_loaded
}

#[test]
fn every_engine_loads_the_files_that_it_is_said_to_load_and_no_others() {
    let (mut loaded, mut refused) = (0, 0);
    for (engine, command) in engines() {
        let mut files: Vec<(String, Vec<u8>)> = FIXTURES
            .iter()
            .map(|(of, bytes)| ((*of).to_owned(), bytes.to_vec()))
            .collect();
        for (target, ..) in TARGETS {
            let (bytes, _) = written(FIXTURES[0].1, Target::by_name(target).unwrap(), Compression::Keep);
            files.push((format!("for-{target}"), bytes));
        }
        for (of, bytes) in files {
            let why = said(engine, &bytes);
            let is_loaded = loads(&command, &format!("{engine}-{of}"), &bytes);
            assert_eq!(is_loaded, why.is_empty(), "{of} on {engine}: {why:?}");
            if is_loaded { loaded += 1 } else { refused += 1 }
        }
    }
    eprintln!("{loaded} loaded, {refused} refused, as was said");
    assert!(loaded > 2 && refused > 2);
}

#[test]
fn what_keeps_an_engine_from_loading_is_said_by_name() {
    let cluster = FIXTURES[2].1;
    let whys = said("redis-7.0", cluster);
    assert!(
        whys[0].starts_with("it reads REDIS files up to version 10, this is 12; redis-7.4 does"),
        "{whys:?}"
    );
    assert!(whys.iter().any(|why| why.contains("of slots")), "{whys:?}");
    assert!(
        whys.iter()
            .any(|why| why.contains("type code 25") || why.contains("type code 24")),
        "{whys:?}"
    );
    assert_eq!(said("redis-8.0", cluster), [""; 0]);
    assert!(said("redis-8.6", FIXTURES[3].1)[0].contains("another family"));
    let functions = said("redis-6.2", &all_types());
    assert!(
        functions.iter().any(|why| why == "it knows no functions"),
        "{functions:?}"
    );
    let (mut validator, codes) = (Validator::new(), TypeCodes::default());
    validator.feed(cluster, &mut ()).unwrap();
    assert_eq!(obstacles("redis-1.0", &validator.finish().unwrap(), &codes), None);
}
