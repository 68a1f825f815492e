//! Random data of every engine, written for every engine, and judged by the engines' own `DEBUG DIGEST`.
//!
//! The engines are those of `CACHEKEEP_TEST_ENGINES` (`redis-8.0=COMMAND;valkey-9.1=COMMAND`), else those that
//! `cargo xtask setup engines` has fetched, else the `redis-server` of the machine alone. `docs/engine-matrix.md` says what was
//! found with all of them; `CACHEKEEP_WRITE_MATRIX=1` writes it, any other run compares what it can.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::build::{Key, read};
use crate::engine::Engine;
use crate::writer::written;
use rdb::{Compression, Target};

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/engine-matrix.md");
const FETCHED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../.tools/engines");
/// Set to write the document instead of comparing it.
const WRITE: &str = "CACHEKEEP_WRITE_MATRIX";
/// The engines of the document, oldest first.
const NAMES: [&str; 5] = ["redis-6.2", "redis-7.0", "redis-8.0", "valkey-8.1", "valkey-9.1"];
/// Data sets of each engine; more with `CACHEKEEP_TEST_LONG=1`.
const SEEDS: u64 = 2;
const SEEDS_LONG: u64 = 20;
const KEYS: u64 = 250;
/// 2100, in ms.
const FUTURE_MS: u64 = 4_102_444_800_000;

/// The engines that are there: name and command.
pub fn engines() -> Vec<(&'static str, String)> {
    let given = std::env::var("CACHEKEEP_TEST_ENGINES").unwrap_or_default();
    let given: BTreeMap<&str, &str> = given
        .split(';')
        .filter_map(|engine| engine.split_once('='))
        .collect();
    let command = |name: &str| {
        let fetched = PathBuf::from(FETCHED).join(name);
        match given.get(name) {
            Some(command) => Some((*command).to_owned()),
            None if fetched.is_file() => Some(fetched.to_str()?.to_owned()),
            None => (name == "redis-7.0").then(|| "redis-server".to_owned()),
        }
    };
    NAMES
        .into_iter()
        .filter_map(|name| command(name).map(|command| (name, command)))
        .collect()
}

/// Numbers from a seed, the same on every machine (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % end
    }

    /// A number of any size, a text, or bytes.
    fn word(&mut self) -> Vec<u8> {
        match self.below(6) {
            0 => self.below(300).to_string().into_bytes(),
            1 => format!("-{}", self.below(1 << 40)).into_bytes(),
            2 => (i64::MAX - self.below(9) as i64).to_string().into_bytes(),
            3 => "abcabcabd".repeat(self.below(60) as usize).into_bytes(),
            4 => (0..self.below(80)).map(|_| self.below(256) as u8).collect(),
            _ => format!("word {}", self.below(10_000)).into_bytes(),
        }
    }

    /// A number whose decimals are few: newer engines digest the shortest text of a score, up to 7.0 they digest 17 digits.
    fn score(&mut self) -> String {
        match self.below(5) {
            0 => "-inf".to_owned(),
            1 => "1e-300".to_owned(),
            2 => self.below(1000).to_string(),
            3 => format!("-{}.25", self.below(1 << 30)),
            _ => format!("{}.{}", self.below(1 << 20), self.below(8) * 125),
        }
    }
}

/// Fills two databases; `has_field_expiry` for engines that know it.
fn fill(engine: &mut Engine, seed: u64, has_field_expiry: bool) {
    let mut random = Random(0x9e37_79b9 + seed * 7919);
    for db in [0, 7] {
        engine.words(&format!("SELECT {db}"));
        for number in 0..KEYS {
            key(engine, &mut random, number, has_field_expiry);
        }
    }
    engine.words("SELECT 0");
}

fn key(engine: &mut Engine, random: &mut Random, number: u64, has_field_expiry: bool) {
    let kind = random.below(8);
    let name = format!("key:{number}:{kind}");
    let name = name.as_bytes();
    // Small ones are packed, large ones are not.
    let count = match random.below(4) {
        0 => 1,
        1 => 1 + random.below(20),
        2 => 1 + random.below(100),
        _ => 400 + random.below(400),
    };
    let mut all =
        |engine: &mut Engine, command: &[u8], part: &mut dyn FnMut(&mut Random, u64) -> Vec<Vec<u8>>| {
            let mut words = vec![command.to_vec(), name.to_vec()];
            for number in 0..count {
                words.extend(part(random, number));
            }
            let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
            engine.run(&words);
        };
    match kind {
        0 => {
            engine.run(&[b"SET", name, &random.word()]);
        }
        1 => all(engine, b"RPUSH", &mut |random, _| vec![random.word()]),
        2 => all(engine, b"SADD", &mut |random, _| vec![random.word()]),
        3 => all(engine, b"SADD", &mut |random, _| {
            vec![random.below(1 << 34).to_string().into_bytes()]
        }),
        4 => all(engine, b"HSET", &mut |random, number| {
            vec![format!("f{number}").into_bytes(), random.word()]
        }),
        5 => all(engine, b"ZADD", &mut |random, _| {
            vec![random.score().into_bytes(), random.word()]
        }),
        6 => {
            for entry in 0..count.min(150) {
                let id = format!("{}-{}", 1000 + entry / 3, entry % 3 + 1);
                engine.run(&[
                    b"XADD",
                    name,
                    id.as_bytes(),
                    b"field",
                    &random.word(),
                    b"n",
                    &random.word(),
                ]);
            }
            engine.run(&[b"XDEL", name, b"1001-1"]);
            engine.run(&[b"XGROUP", b"CREATE", name, b"group", b"0"]);
            engine.run(&[
                b"XREADGROUP",
                b"GROUP",
                b"group",
                b"me",
                b"COUNT",
                b"5",
                b"STREAMS",
                name,
                b">",
            ]);
        }
        _ => {
            all(engine, b"PFADD", &mut |random, _| vec![random.word()]);
        }
    }
    if random.below(4) == 0 {
        let at = FUTURE_MS + random.below(1 << 40);
        engine.run(&[b"PEXPIREAT", name, at.to_string().as_bytes()]);
    }
    if kind == 4 && has_field_expiry && random.below(2) == 0 {
        let at = FUTURE_MS + random.below(1 << 40);
        engine.run(&[
            b"HPEXPIREAT",
            name,
            at.to_string().as_bytes(),
            b"FIELDS",
            b"1",
            b"f0",
        ]);
    }
}

/// What came of one pair.
#[derive(Default)]
struct Pair {
    keys: u64,
    left_out: BTreeMap<&'static str, u64>,
    reduced: BTreeMap<&'static str, u64>,
    /// Hashes with fields that expire, which the families' digests see differently: compared by ours.
    by_ours: u64,
}

fn check(from: &(&'static str, String), to: &(&'static str, String), seeds: u64, pair: &mut Pair) {
    let target = Target::by_name(to.0).unwrap();
    for seed in 0..seeds {
        let label = format!("{}-for-{}-{seed}", from.0, to.0);
        let mut source = Engine::start_other(&from.1, &format!("m-{label}-s"), "nothing", b"");
        fill(&mut source, seed, matches!(from.0, "redis-8.0" | "valkey-9.1"));
        let bytes = source.save(seed % 2 == 0);
        let compression = [Compression::Keep, Compression::Expand, Compression::Compress][seed as usize % 3];
        let (out, losses) = written(&bytes, target, compression);
        for ((db, key), (is_left_out, reasons)) in &losses {
            let into = match is_left_out {
                true => &mut pair.left_out,
                false => &mut pair.reduced,
            };
            for reason in reasons {
                *into.entry(reason).or_default() += 1;
            }
            if *is_left_out {
                source.words(&format!("SELECT {}", db.unwrap()));
                assert_eq!(source.run(&[b"DEL", key]), b"1", "{label}");
            }
        }
        let ours = read([&out[..]]).unwrap().1.keys;
        pair.keys += ours.len() as u64;
        let mut loaded = Engine::start_other(&to.1, &format!("m-{label}-t"), "dump.rdb", &out);
        if from.0.starts_with("redis") != to.0.starts_with("redis") {
            let theirs = read([&loaded.save(true)[..]]).unwrap().1.keys;
            for key in ours.iter().filter(|key| key.expiring > 0) {
                let same = |other: &&Key| (other.db, &other.key) == (key.db, &key.key);
                let other = theirs.iter().find(same).unwrap();
                assert_eq!(
                    (key.digest, key.expiring),
                    (other.digest, other.expiring),
                    "{label}"
                );
                pair.by_ours += 1;
                for engine in [&mut source, &mut loaded] {
                    engine.words(&format!("SELECT {}", key.db));
                    assert_eq!(engine.run(&[b"DEL", &key.key]), b"1", "{label}");
                }
            }
        }
        let (before, after) = (source.words("DEBUG DIGEST"), loaded.words("DEBUG DIGEST"));
        assert!(before.iter().any(|digit| *digit != b'0'), "{label}");
        assert_eq!(before, after, "{label}: the engines see different data");
    }
}

fn told(pair: &Pair) -> String {
    let list = |what: &str, of: &BTreeMap<&'static str, u64>| {
        let reasons: Vec<&str> = of.keys().copied().collect();
        match reasons.is_empty() {
            true => String::new(),
            false => format!("; {what}: {}", reasons.join(", ")),
        }
    };
    let by_ours = match pair.by_ours {
        0 => "",
        _ => " (hashes with fields that expire: by our digest)",
    };
    format!(
        "equal{by_ours}{}{}",
        list("left out", &pair.left_out),
        list("without", &pair.reduced)
    )
}

#[test]
fn every_engine_holds_what_was_written_for_it_of_every_other_by_its_own_digest() {
    let is_long = std::env::var("CACHEKEEP_TEST_LONG").is_ok_and(|long| long == "1");
    let seeds = if is_long { SEEDS_LONG } else { SEEDS };
    let engines = engines();
    let mut lines = Vec::new();
    for from in &engines {
        for to in &engines {
            let mut pair = Pair::default();
            check(from, to, seeds, &mut pair);
            lines.push(format!("| {} | {} | {} |", from.0, to.0, told(&pair)));
        }
    }
    if std::env::var_os(WRITE).is_some() {
        assert_eq!(
            engines.len(),
            NAMES.len(),
            "all engines are needed: cargo xtask setup engines"
        );
        let head = "# Which engine's data another engine holds\n\n\
            Made by `crates/rdb/tests/it/matrix.rs`: random data of each engine, strings, lists, sets, hashes, sorted sets, streams\n\
            with groups, HyperLogLogs, expiries, and of those that know it fields that expire, written by `rdb::Writer` for each engine, which\n\
            loads it. *equal*: its own `DEBUG DIGEST` is that of the engine that the data is of, but for keys that are left out, each of which\n\
            is told with the reason. Of fields that expire Redis and Valkey make different digests: such hashes are compared by ours, of what\n\
            the engine saved. *without*: what a key loses that the digest does not cover.\n\n\
            | from | to | |\n|---|---|---|\n";
        std::fs::write(DOCUMENT, format!("{head}{}\n", lines.join("\n"))).unwrap();
    }
    let written = std::fs::read_to_string(DOCUMENT).unwrap_or_default();
    for line in lines {
        assert!(
            written.contains(&line),
            "docs/engine-matrix.md is stale: run this test with {WRITE}=1: {line}"
        );
    }
}
