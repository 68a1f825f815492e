//! Files and payloads that a real engine wrote.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::build::{Key, dump_of, read, read_dump, values};

const START_MAX: Duration = Duration::from_secs(20);

pub struct Engine {
    process: Child,
    dir: PathBuf,
    stream: BufReader<UnixStream>,
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _gone_already = self.process.kill();
        let _waited = self.process.wait();
        let _left_for_the_system = std::fs::remove_dir_all(&self.dir);
    }
}

impl Engine {
    /// Starts an engine of its own; `name` keeps those of one run apart.
    fn start(name: &str) -> Self {
        Self::start_on(name, "nothing", b"")
    }

    /// Starts one that finds a file in its directory: `dump.rdb`, or `appendonly.aof`.
    pub fn start_on(name: &str, file: &str, bytes: &[u8]) -> Self {
        Self::start_other("redis-server", name, file, bytes)
    }

    /// Starts another engine than the one of the tests, by words with blanks between.
    pub fn start_other(command: &str, name: &str, file: &str, bytes: &[u8]) -> Self {
        let dir = std::env::temp_dir().join(format!("rdb-it-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(file), bytes).unwrap();
        let appends = if file == "appendonly.aof" { "yes" } else { "no" };
        let socket = dir.join("s");
        let mut words = command.split(' ');
        let mut process = Command::new(words.next().unwrap())
            .args(words)
            // Up to 6.2 there is no such setting, and DEBUG is for everybody.
            .args(
                ["--enable-debug-command", "yes"]
                    .iter()
                    .filter(|_| !command.contains("redis-6")),
            )
            .args([
                "--port",
                "0",
                "--save",
                "",
                "--appendonly",
                appends,
                "--unixsocket",
            ])
            .arg(&socket)
            .arg("--dir")
            .arg(&dir)
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is missing: install it, for example with `apt-get install redis-server`");
        let started = Instant::now();
        let stream = loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => break BufReader::new(stream),
                Err(error) if started.elapsed() > START_MAX => {
                    let status = process.try_wait();
                    panic!("redis-server does not answer: {error}, process {status:?}");
                }
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        let mut engine = Self { process, dir, stream };
        engine.wait_until_loaded();
        engine
    }

    /// An engine takes commands while it loads, and refuses them.
    fn wait_until_loaded(&mut self) {
        loop {
            self.send(&[b"PING"]);
            let mut line = String::new();
            self.stream.read_line(&mut line).unwrap();
            match line.as_str() {
                "+PONG\r\n" => return,
                _ if line.starts_with("-LOADING") => std::thread::sleep(Duration::from_millis(10)),
                _ => panic!("the engine says {line:?}"),
            }
        }
    }

    fn send(&mut self, command: &[&[u8]]) {
        let mut out = format!("*{}\r\n", command.len()).into_bytes();
        for word in command {
            out.extend([format!("${}\r\n", word.len()).as_bytes(), word, b"\r\n"].concat());
        }
        self.stream.get_mut().write_all(&out).unwrap();
    }

    /// Reads a reply; of an array, the number of its parts, which are read and forgotten.
    fn reply(&mut self) -> Vec<u8> {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line).unwrap();
        let text = String::from_utf8(line[1..line.len() - 2].to_vec()).unwrap();
        match line[0] {
            b'$' => {
                let mut bulk = vec![0; text.parse::<usize>().expect("a bulk string") + 2];
                self.stream.read_exact(&mut bulk).unwrap();
                bulk.truncate(bulk.len() - 2);
                bulk
            }
            b'*' => {
                for _ in 0..text.parse().unwrap() {
                    self.reply();
                }
                text.into_bytes()
            }
            b'-' => panic!("{text}"),
            _ => text.into_bytes(),
        }
    }

    pub fn run(&mut self, command: &[&[u8]]) -> Vec<u8> {
        self.send(command);
        self.reply()
    }

    pub fn words(&mut self, command: &str) -> Vec<u8> {
        let words: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
        self.run(&words)
    }

    /// Sends many commands before it reads their replies.
    fn pipeline(&mut self, commands: impl Iterator<Item = String>) {
        for batch in commands.collect::<Vec<_>>().chunks(500) {
            for command in batch {
                let words: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
                self.send(&words);
            }
            for _ in batch {
                self.reply();
            }
        }
    }

    pub fn save(&mut self, compress: bool) -> Vec<u8> {
        self.words(&format!(
            "CONFIG SET rdbcompression {}",
            if compress { "yes" } else { "no" }
        ));
        self.words("SAVE");
        std::fs::read(self.dir.join("dump.rdb")).unwrap()
    }
}

/// Fills every type with small and with big encodings, in two databases.
fn fill(engine: &mut Engine) {
    let library = b"#!lua name=lib\nredis.register_function('one', function() return 1 end)";
    engine.run(&[b"FUNCTION", b"LOAD", library]);
    let json = "abcdefgh ".repeat(200);
    for (key, value) in [
        ("int8", "-5"),
        ("int16", "-30000"),
        ("int32", "2000000000"),
        ("int64", "20000000000"),
    ] {
        engine.words(&format!("SET {key} {value}"));
    }
    engine.run(&[b"SET", b"empty", b""]);
    engine.run(&[b"SET", b"compressible", json.as_bytes()]);
    engine.run(&[b"SET", b"large", &vec![b'l'; 3 << 20]]);
    let noise: Vec<u8> = (0..600_000u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    engine.run(&[b"SET", b"noise", &noise]);
    engine.run(&[b"SET", b"binary\x00\xff key", b"\x00\r\n\xff"]);
    engine.words("SET expiring v PXAT 4000000000000");
    engine.words("SET expiring-too v EXAT 4100000000");
    for (name, count) in [("small", 20), ("big", 6000)] {
        engine.pipeline((0..count).flat_map(|i| {
            [
                format!(
                    "RPUSH list:{name} item-{i} {i} -{} {}",
                    i * 1000,
                    i64::from(i) << 33
                ),
                format!("SADD set:{name} member-{i} {i}"),
                format!("SADD ints:{name} {}", i * 3),
                format!("SADD wide:{name} {}", i64::from(i) * 5_000_000_000 - 7),
                format!("HSET hash:{name} field-{i} value-{i} {i} {}", i * i),
                format!("ZADD zset:{name} {}.5 member-{i} {i} {i} -{i}e-3 m{i}", i % 7),
                format!("XADD stream:{name} 1000-{} temperature {i} place here", i + 1),
            ]
        }));
        engine.words(&format!("ZADD zset:{name} inf top -inf bottom -0.0 zero"));
        engine.run(&[
            b"RPUSH",
            format!("list:{name}").as_bytes(),
            json.as_bytes(),
            &noise[..20_000],
        ]);
        let stream = format!("stream:{name}");
        engine.words(&format!("XADD {stream} 2000-1 other fields and values"));
        engine.words(&format!("XADD {stream} 2000-2 other fields and values"));
        engine.words(&format!("XDEL {stream} 1000-3 1000-5"));
        for group in ["readers", "writers"] {
            engine.words(&format!("XGROUP CREATE {stream} {group} 0"));
            for consumer in ["alice", "bob"] {
                engine.words(&format!(
                    "XREADGROUP GROUP {group} {consumer} COUNT 7 STREAMS {stream} >"
                ));
            }
            engine.words(&format!("XACK {stream} {group} 1000-2"));
        }
    }
    engine.run(&[b"HSET", b"hash:long", b"json", json.as_bytes()]);
    engine.words("XGROUP CREATE stream:empty g $ MKSTREAM");
    engine.run(&[b"RPUSH", b"list:plain", &noise, b"small", &vec![b'p'; 100_000]]);
    engine.words("SELECT 9");
    engine.pipeline((0..3000).map(|i| format!("SET key:{i} {}", i % 100)));
    engine.words("PEXPIREAT key:7 4000000000001");
    engine.words("SELECT 0");
}

#[test]
fn census_and_digests_of_real_dumps_agree_with_the_engine_and_with_each_other() {
    let mut engine = Engine::start("dumps");
    fill(&mut engine);
    let (plain, packed) = (engine.save(false), engine.save(true));
    assert!(packed.len() < plain.len());
    let (report, keys) = read([&plain[..]]).unwrap();
    let (report_packed, keys_packed) = read(packed.chunks(4096)).unwrap();
    assert_eq!(read(plain.chunks(977)).unwrap(), (report.clone(), keys));
    assert_eq!(report.functions[0].name.as_deref(), Some("lib"));
    assert_eq!((report.warning_count, report.census.dbs.len()), (0, 2));

    for (db, census) in &report.census.dbs {
        let other = &report_packed.census.dbs[db];
        assert_eq!(
            (census.digest, census.keys, census.expires),
            (other.digest, other.keys, other.expires)
        );
        engine.words(&format!("SELECT {db}"));
        let size: u64 = String::from_utf8(engine.words("DBSIZE"))
            .unwrap()
            .parse()
            .unwrap();
        assert_eq!(census.keys, size);
    }
    assert_eq!(
        (report.census.dbs[&0].expires, report.census.dbs[&9].expires),
        (2, 1)
    );
    assert_eq!(report.census.dbs[&9].types[&rdb::Type::String].keys, 3000);

    let digests: BTreeMap<(u32, Vec<u8>), Key> = keys_packed
        .keys
        .into_iter()
        .map(|key| ((key.db, key.key.clone()), key))
        .collect();
    let (_, keys) = read([&plain[..]]).unwrap();
    let mut codes: Vec<u8> = keys.keys.iter().map(|key| key.type_code).collect();
    codes.sort_unstable();
    codes.dedup();
    assert!(
        codes.len() >= 9,
        "small and big encodings of every type: {codes:?}"
    );
    for key in keys.keys {
        let other = &digests[&(key.db, key.key.clone())];
        assert_eq!(
            (key.digest, key.elements),
            (other.digest, other.elements),
            "{key:?}"
        );
        assert_eq!(key.expire_at_ms, other.expire_at_ms);
        engine.words(&format!("SELECT {}", key.db));
        let summary = read_dump(&engine.run(&[b"DUMP", &key.key]), 1000).unwrap();
        assert_eq!(
            (summary.value_digest, summary.type_code),
            (key.digest, key.type_code),
            "{key:?}"
        );
        let name = engine.run(&[b"TYPE", &key.key]);
        assert_eq!(key.kind.name().as_bytes(), name);
        let count: &[u8] = match key.kind {
            rdb::Type::String => continue,
            rdb::Type::List => b"LLEN",
            rdb::Type::Set => b"SCARD",
            rdb::Type::ZSet => b"ZCARD",
            rdb::Type::Hash => b"HLEN",
            rdb::Type::Stream => b"XLEN",
            rdb::Type::Module => panic!("the engine has no modules"),
        };
        assert_eq!(
            engine.run(&[count, &key.key]),
            key.elements.to_string().as_bytes()
        );
    }
}

#[test]
fn digest_survives_a_change_of_encoding_inside_the_engine() {
    let mut engine = Engine::start("encodings");
    engine.words("RPUSH list 1 two 3.0 -4");
    engine.words("SADD set 1 2 30000");
    engine.words("HSET hash a 1 b two");
    engine.words("ZADD zset 1 a 1.5 b 3 7");
    let mut digests = Vec::new();
    for round in 0..2 {
        for key in ["list", "set", "hash", "zset"] {
            digests.push(read_dump(&engine.run(&[b"DUMP", key.as_bytes()]), 100).unwrap());
        }
        if round == 0 {
            // From now on nothing is packed; what is added and removed again forces the change.
            for setting in [
                "set-max-intset-entries",
                "hash-max-listpack-entries",
                "zset-max-listpack-entries",
            ] {
                engine.words(&format!("CONFIG SET {setting} 0"));
            }
            engine.words("CONFIG SET list-max-listpack-size 1");
            engine.words("RPUSH list x");
            engine.words("RPOP list");
            engine.words("SADD set x");
            engine.words("SREM set x");
            engine.words("HSET hash x 1");
            engine.words("HDEL hash x");
            engine.words("ZADD zset 1 x");
            engine.words("ZREM zset x");
        }
    }
    let (before, after) = digests.split_at(4);
    for (before, after) in before.iter().zip(after) {
        assert_eq!(before.value_digest, after.value_digest, "{}", before.kind);
        if before.kind != rdb::Type::List {
            assert_ne!(before.type_code, after.type_code, "{}", before.kind);
        }
    }
}

#[test]
fn engine_reads_every_old_encoding_as_the_same_value() {
    let mut engine = Engine::start("restores");
    let mut converted = 0;
    // The engine has no modules, and no later encodings.
    for (code, value) in values().into_iter().filter(|(code, _)| *code <= 19 && *code != 7) {
        let payload = dump_of(10, code, &value);
        let ours = read_dump(&payload, 100).unwrap();
        engine.run(&[b"RESTORE", b"key", b"0", &payload, b"REPLACE"]);
        let theirs = read_dump(&engine.run(&[b"DUMP", b"key"]), 100).unwrap();
        assert_eq!(
            (ours.value_digest, ours.elements),
            (theirs.value_digest, theirs.elements),
            "type {code}"
        );
        converted += u32::from(ours.type_code != theirs.type_code);
    }
    assert!(
        converted >= 6,
        "ziplists, zipmaps and old streams change their encoding"
    );
}
