//! Selectors against a reference that knows nothing of RDB files: it asks the source server about every key.

use std::collections::BTreeMap;

use serde_json::Value;
use xtask::fill::{Options, Random};
use xtask::plain_engine::PlainEngine;
use xtask::resp::{Connection, Reply};

use crate::replay::{Source, count, is_long, mixed, restored, url};

/// What a server says of a key.
struct Known {
    db: u32,
    name: Vec<u8>,
    kind: String,
    expires_at_ms: Option<i64>,
    bytes: u64,
    slot: u16,
}

fn number(reply: &Reply) -> i64 {
    match reply {
        Reply::Number(number) => *number,
        other => panic!("{other:?}"),
    }
}

/// Asks about every key.
fn all_known(source: &Source) -> Vec<Known> {
    let mut link = Connection::open(&source.engine.target()).unwrap();
    let mut all = Vec::new();
    for db in 0..2 {
        link.ask(&["SELECT", &db.to_string()]).unwrap();
        let Reply::List(names) = link.ask(&["KEYS", "*"]).unwrap() else {
            panic!("no list");
        };
        for name in names {
            let Reply::Bytes(name) = name else {
                panic!("no name");
            };
            let kind = link
                .ask(&[&b"TYPE"[..], &name])
                .unwrap()
                .text()
                .unwrap()
                .to_owned();
            let expires = number(&link.ask(&[&b"PEXPIRETIME"[..], &name]).unwrap());
            let Reply::Bytes(dump) = link.ask(&[&b"DUMP"[..], &name]).unwrap() else {
                panic!("no dump");
            };
            all.push(Known {
                db,
                kind,
                expires_at_ms: (expires >= 0).then_some(expires),
                bytes: entry_bytes(&name, dump.len() as u64, expires >= 0),
                slot: slot_of(&name),
                name,
            });
        }
    }
    all
}

/// The bytes of an entry: expiry, the payload without its footer, and the key, which is stored as a number where it is one.
fn entry_bytes(name: &[u8], dump: u64, expires: bool) -> u64 {
    let as_number = std::str::from_utf8(name).ok().and_then(|text| {
        let number: i64 = text.parse().ok()?;
        (number.to_string() == text && name.len() <= 11).then_some(number)
    });
    let key = match as_number {
        Some(-128..=127) => 2,
        Some(-32768..=32767) => 3,
        Some(-2_147_483_648..=2_147_483_647) => 5,
        _ if name.len() < 64 => 1 + name.len() as u64,
        _ if name.len() < 16_384 => 2 + name.len() as u64,
        _ => 5 + name.len() as u64,
    };
    dump - 10 + key + if expires { 9 } else { 0 }
}

/// CRC16 as the cluster specification gives it, written anew.
fn slot_of(name: &[u8]) -> u16 {
    let text = match name.iter().position(|byte| *byte == b'{') {
        Some(open) => match name[open + 1..].iter().position(|byte| *byte == b'}') {
            Some(length) if length > 0 => &name[open + 1..open + 1 + length],
            _ => name,
        },
        None => name,
    };
    let mut crc: u32 = 0;
    for byte in text {
        crc ^= u32::from(*byte) << 8;
        for _ in 0..8 {
            crc = if crc & 0x8000 != 0 {
                crc << 1 ^ 0x1021
            } else {
                crc << 1
            };
        }
        crc &= 0xffff;
    }
    (crc % 16_384) as u16
}

/// The reference's own judgement of a key.
type Judge = Box<dyn Fn(&Known) -> bool>;

/// A choice: words of the command line, and the reference's own judgement.
struct Choice {
    words: Vec<String>,
    judges: Vec<Judge>,
}

/// One selector of each kind, with a random value; `all`: which kinds there are.
fn choose(kinds: &[usize], all: &[Known], written_ms: i64, random: &mut Random) -> Choice {
    let mut choice = Choice {
        words: Vec::new(),
        judges: Vec::new(),
    };
    for kind in kinds {
        let some = &all[random.below(all.len() as u64) as usize];
        let name = String::from_utf8_lossy(&some.name).into_owned();
        let stem: String = name
            .chars()
            .take_while(|letter| letter.is_ascii_alphabetic())
            .collect();
        let (word, value, judge): (&str, String, Judge) = match kind {
            0 => {
                let db = some.db;
                ("--db", db.to_string(), Box::new(move |key| key.db == db))
            }
            1 => {
                // A star at both ends of a letter: whether it is in there.
                let letter = b'a' + random.below(26) as u8;
                let glob = format!("*{}*", char::from(letter));
                ("--match", glob, Box::new(move |key| key.name.contains(&letter)))
            }
            2 => {
                let digit = b'0' + random.below(10) as u8;
                let pattern = format!("{}$", char::from(digit));
                (
                    "--regex",
                    pattern,
                    Box::new(move |key| key.name.last() == Some(&digit)),
                )
            }
            3 => {
                let prefix = stem.clone().into_bytes();
                (
                    "--prefix",
                    stem,
                    Box::new(move |key| key.name.starts_with(&prefix)),
                )
            }
            4 => {
                let wanted = some.kind.clone();
                ("--type", wanted.clone(), Box::new(move |key| key.kind == wanted))
            }
            5 => {
                let (one, other) = (random.below(16_384) as u16, random.below(16_384) as u16);
                let (first, last) = (one.min(other), one.max(other));
                (
                    "--slots",
                    format!("{first}-{last}"),
                    Box::new(move |key| (first..=last).contains(&key.slot)),
                )
            }
            6 => {
                let bytes = some.bytes;
                match random.below(2) {
                    0 => (
                        "--size",
                        format!("{bytes}.."),
                        Box::new(move |key| key.bytes >= bytes),
                    ),
                    _ => (
                        "--size",
                        format!("..{bytes}"),
                        Box::new(move |key| key.bytes <= bytes),
                    ),
                }
            }
            _ => {
                let seconds = random.between(3000, 100_000) as i64;
                match random.below(4) {
                    0 => (
                        "--ttl",
                        "none".to_owned(),
                        Box::new(|key| key.expires_at_ms.is_none()),
                    ),
                    1 => (
                        "--ttl",
                        "any".to_owned(),
                        Box::new(|key| key.expires_at_ms.is_some()),
                    ),
                    2 => (
                        "--ttl",
                        format!("{seconds}.."),
                        Box::new(move |key| {
                            key.expires_at_ms
                                .is_some_and(|at| at - written_ms >= seconds * 1000)
                        }),
                    ),
                    _ => (
                        "--ttl",
                        format!("..{seconds}"),
                        Box::new(move |key| {
                            key.expires_at_ms
                                .is_some_and(|at| at - written_ms <= seconds * 1000)
                        }),
                    ),
                }
            }
        };
        choice.words.extend([word.to_owned(), value]);
        choice.judges.push(judge);
    }
    choice
}

/// Each of these keys with the server's own digest of its value, and its expiry.
fn held(target: &PlainEngine, wanted: &[&Known]) -> BTreeMap<(u32, Vec<u8>), (Reply, i64)> {
    let mut link = Connection::open(&target.target()).unwrap();
    let mut all = BTreeMap::new();
    for key in wanted {
        link.ask(&["SELECT", &key.db.to_string()]).unwrap();
        let digest = link.ask(&[&b"DEBUG"[..], b"DIGEST-VALUE", &key.name]).unwrap();
        let expires = number(&link.ask(&[&b"PEXPIRETIME"[..], &key.name]).unwrap());
        all.insert((key.db, key.name.clone()), (digest, expires));
    }
    all
}

fn keys_in(target: &PlainEngine) -> u64 {
    let mut link = Connection::open(&target.target()).unwrap();
    (0..2)
        .map(|db| {
            link.ask(&["SELECT", &db.to_string()]).unwrap();
            number(&link.ask(&["DBSIZE"]).unwrap()) as u64
        })
        .sum()
}

/// When the file was written, as it says itself.
fn written_ms(source: &Source) -> i64 {
    let bytes = std::fs::read(&source.file).unwrap();
    let at = bytes.windows(5).position(|five| five == b"ctime").unwrap() + 5;
    assert_eq!(bytes[at], 0xc2, "four bytes of a number");
    let seconds = i32::from_le_bytes(bytes[at + 1..at + 5].try_into().unwrap());
    i64::from(seconds) * 1000
}

#[test]
fn each_selector_and_random_combinations_take_what_an_independent_reference_takes() {
    let (keys, combinations) = if is_long() { (2_000_000, 200) } else { (20_000, 20) };
    let options = Options {
        ttl_share: 0.4,
        ..mixed(keys, 2)
    };
    let source = Source::new(&options, &[("rdbcompression", "no")]);
    let all = all_known(&source);
    assert_eq!(all.len() as u64, source.keys);
    let written_ms = written_ms(&source);
    let mut random = Random::new(11, 0);
    let target = PlainEngine::start(&[]).unwrap();
    let mut any_taken = 0;
    for number in 0..8 + combinations {
        let kinds: Vec<usize> = match number {
            0..8 => vec![number as usize],
            _ => (0..8).filter(|_| random.chance(350)).collect(),
        };
        let choice = choose(&kinds, &all, written_ms, &mut random);
        let wanted: Vec<&Known> = all
            .iter()
            .filter(|key| choice.judges.iter().all(|judge| judge(key)))
            .collect();
        let words: Vec<&str> = choice.words.iter().map(String::as_str).collect();
        Connection::open(&target.target())
            .unwrap()
            .ask(&["FLUSHALL"])
            .unwrap();
        let (dry_status, dry) = restored(
            source.path(),
            &url(&target),
            &[&words[..], &["--dry-run"]].concat(),
        );
        let (status, account) = restored(source.path(), &url(&target), &words);
        assert_eq!((dry_status, status), (0, 0), "{words:?}: {account:#}");
        let counts = |told: &Value| {
            ["applied", "skipped", "conflicting", "expired", "failed"].map(|kind| count(told, kind))
        };
        let skipped = source.keys - wanted.len() as u64;
        assert_eq!(
            counts(&account),
            [wanted.len() as u64, skipped, 0, 0, 0],
            "{words:?}"
        );
        assert_eq!(counts(&dry), counts(&account), "{words:?}");
        assert_eq!(keys_in(&target), wanted.len() as u64, "{words:?}");
        let looked_at: Vec<&Known> = wanted.iter().step_by(1 + wanted.len() / 2000).copied().collect();
        assert!(
            held(&target, &looked_at) == held(&source.engine, &looked_at),
            "{words:?}"
        );
        any_taken += u64::from(!wanted.is_empty() && skipped > 0);
    }
    assert!(
        any_taken > combinations / 2,
        "most choices take some keys and leave some"
    );
}

#[test]
fn where_others_go_only_what_the_selection_could_have_put_there_goes() {
    let source = Source::new(&mixed(2000, 2), &[]);
    let target = PlainEngine::start(&[]).unwrap();
    let mut link = Connection::open(&target.target()).unwrap();
    for call in [
        &["SET", "u:of-another", "old"][..],
        &["SET", "other", "old"],
        &["SELECT", "1"],
        &["SET", "u:of-another", "old"],
    ] {
        link.ask(call).unwrap();
    }
    let words = [
        "--mode",
        "replace",
        "--db",
        "0",
        "--map-db",
        "0:0",
        "--into-prefix",
        "u:",
    ];
    let (status, account) = restored(source.path(), &url(&target), &words);
    assert_eq!((status, count(&account, "removed")), (0, 1), "{account:#}");
    assert_eq!(account["first"]["removed"][0]["key"], "u:of-another");
    assert_eq!(link.ask(&["DBSIZE"]).unwrap(), Reply::Number(1));
    link.ask(&["SELECT", "0"]).unwrap();
    assert_eq!(link.ask(&["GET", "other"]).unwrap().text(), Some("old"));
}

#[test]
fn where_others_go_a_database_that_no_selected_key_goes_to_keeps_what_it_has() {
    let source = Source::new(&mixed(2000, 2), &[]);
    // Each: words, and of databases 0, 1 and 5 those whose other key goes.
    let cases: [(&[&str], &[&str]); 3] = [
        (&[], &["0", "1"]),
        (&["--map-db", "1:7"], &["0"]),
        (&["--map-db", "0:5", "--map-db", "1:5", "--db", "1"], &["5"]),
    ];
    for (choice, gone) in cases {
        let target = PlainEngine::start(&[]).unwrap();
        let mut link = Connection::open(&target.target()).unwrap();
        for db in ["0", "1", "5"] {
            link.ask(&["SELECT", db]).unwrap();
            link.ask(&["SET", "of-another", "old"]).unwrap();
        }
        let words = [&["--mode", "replace"], choice].concat();
        let (dry_status, dry) = restored(
            source.path(),
            &url(&target),
            &[&words[..], &["--dry-run"]].concat(),
        );
        let (status, account) = restored(source.path(), &url(&target), &words);
        assert_eq!((dry_status, status), (0, 0), "{words:?}: {account:#}");
        let removed = gone.len() as u64;
        assert_eq!(
            (count(&dry, "removed"), count(&account, "removed")),
            (removed, removed),
            "{words:?}"
        );
        for db in ["0", "1", "5"] {
            link.ask(&["SELECT", db]).unwrap();
            let stays = i64::from(!gone.contains(&db));
            let there = link.ask(&["EXISTS", "of-another"]).unwrap();
            assert_eq!(there, Reply::Number(stays), "{words:?}: database {db}");
        }
    }
}
