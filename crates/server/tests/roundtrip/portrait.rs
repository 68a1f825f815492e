//! What an engine answers about all of its data, to compare two engines by.

use std::collections::BTreeMap;
use std::fmt::Debug;

use xtask::resp::{Connection, Reply, Target};

/// Keys asked about in one go.
const PAGE: &str = "2000";

/// Milliseconds of the Unix clock at which each key expires, in the order of the keys; -1 where it does not.
const EXPIRIES: &str = "local all = {} for i, key in ipairs(KEYS) do \
                        all[i] = redis.call('PEXPIRETIME', key) end return all";

/// Fields of `XINFO STREAM` that are no data: they change by looking, or tell how the memory is laid out.
const VOLATILE: [&str; 2] = ["seen-time", "radix-tree-nodes"];

/// Database and name.
type Key = (u64, Vec<u8>);

/// Everything of an engine that a backup has to keep, as the engine itself tells it.
#[derive(Clone, PartialEq, Eq)]
pub struct Portrait {
    /// Keys, and keys that expire, of each database that has any.
    keyspace: BTreeMap<u64, (u64, u64)>,
    /// The libraries with their code and functions; the digest leaves them out.
    functions: Vec<String>,
    /// When each key that expires does so; the digest covers only that it does.
    expiries: BTreeMap<Key, i64>,
    /// Ids, groups, consumers and pending entries of every stream; the digest covers fields and values only.
    streams: BTreeMap<Key, Reply>,
    /// `DEBUG DIGEST`.
    digest: String,
}

impl Portrait {
    /// Looks at an engine that nobody writes to.
    pub fn of(target: &Target) -> Self {
        let mut connection = Connection::open(target).unwrap();
        let keyspace = keyspace(&mut connection);
        let mut expiries = BTreeMap::new();
        let mut streams = BTreeMap::new();
        for &db in keyspace.keys() {
            connection.ask(&["SELECT", &db.to_string()]).unwrap();
            scan(&mut connection, &[], |connection, page| {
                for (name, at_ms) in expiries_of(connection, page) {
                    expiries.insert((db, name), at_ms);
                }
            });
            scan(&mut connection, &["TYPE", "stream"], |connection, page| {
                for name in page {
                    let words: [&[u8]; 6] = [b"XINFO", b"STREAM", name, b"FULL", b"COUNT", b"0"];
                    let mut told = connection.ask(&words).unwrap();
                    blank_volatile(&mut told);
                    streams.insert((db, name.clone()), told);
                }
            });
        }
        let digest = connection.ask(&["DEBUG", "DIGEST"]).unwrap();
        Self {
            functions: functions(&mut connection),
            digest: digest.text().unwrap().to_owned(),
            keyspace,
            expiries,
            streams,
        }
    }

    /// All keys.
    pub fn keys(&self) -> u64 {
        self.keyspace.values().map(|(keys, _)| keys).sum()
    }

    /// All keys that expire.
    pub fn expiring(&self) -> u64 {
        self.expiries.len() as u64
    }

    /// All streams.
    pub fn streams(&self) -> usize {
        self.streams.len()
    }

    /// All databases that have keys.
    pub fn databases(&self) -> usize {
        self.keyspace.len()
    }

    /// Panics with `what` and the first difference, the most telling kind first.
    pub fn assert_same(&self, expected: &Self, what: &str) {
        assert_eq!(
            self.keyspace, expected.keyspace,
            "{what}: keys and expiring keys per database"
        );
        assert_eq!(self.functions, expected.functions, "{what}: functions");
        assert_same_entries(&self.expiries, &expected.expiries, what, "expiry");
        assert_same_entries(&self.streams, &expected.streams, what, "stream");
        assert_eq!(self.digest, expected.digest, "{what}: DEBUG DIGEST");
    }
}

fn assert_same_entries<V: PartialEq + Debug>(
    actual: &BTreeMap<Key, V>,
    expected: &BTreeMap<Key, V>,
    what: &str,
    kind: &str,
) {
    for key in actual.keys().chain(expected.keys()) {
        let (db, name) = key;
        assert_eq!(
            actual.get(key),
            expected.get(key),
            "{what}: {kind} of {:?} in db {db}",
            String::from_utf8_lossy(name)
        );
    }
}

fn keyspace(connection: &mut Connection) -> BTreeMap<u64, (u64, u64)> {
    let told = connection.ask(&["INFO", "keyspace"]).unwrap();
    // db0:keys=8,expires=2,avg_ttl=0
    let line = |line: &str| {
        let (db, counts) = line.strip_prefix("db")?.split_once(":keys=")?;
        let (keys, rest) = counts.split_once(",expires=")?;
        let (expires, _) = rest.split_once(',')?;
        Some((db.parse().ok()?, (keys.parse().ok()?, expires.parse().ok()?)))
    };
    told.text().unwrap().lines().filter_map(line).collect()
}

/// Hands over the names in the selected database, page by page; a name may come twice.
fn scan(connection: &mut Connection, which: &[&str], mut look: impl FnMut(&mut Connection, &[Vec<u8>])) {
    let mut cursor = "0".to_owned();
    loop {
        let words = [&["SCAN", &cursor, "COUNT", PAGE], which].concat();
        let Reply::List(mut answer) = connection.ask(&words).unwrap() else {
            panic!("SCAN gave no list")
        };
        let (Some(Reply::List(names)), Some(next)) = (answer.pop(), answer.pop()) else {
            panic!("SCAN gave no page")
        };
        let page: Vec<Vec<u8>> = names.into_iter().map(bytes).collect();
        look(connection, &page);
        next.text().unwrap().clone_into(&mut cursor);
        if cursor == "0" {
            return;
        }
    }
}

fn bytes(reply: Reply) -> Vec<u8> {
    match reply {
        Reply::Bytes(bytes) => bytes,
        other => panic!("no name: {other:?}"),
    }
}

fn expiries_of(connection: &mut Connection, names: &[Vec<u8>]) -> Vec<(Vec<u8>, i64)> {
    let count = names.len().to_string();
    let mut words: Vec<&[u8]> = vec![b"EVAL", EXPIRIES.as_bytes(), count.as_bytes()];
    words.extend(names.iter().map(Vec::as_slice));
    let Reply::List(times) = connection.ask(&words).unwrap() else {
        panic!("no list of expiry times")
    };
    let expiring = names.iter().zip(times).filter_map(|(name, time)| match time {
        Reply::Number(at_ms) if at_ms >= 0 => Some((name.clone(), at_ms)),
        _ => None,
    });
    expiring.collect()
}

fn functions(connection: &mut Connection) -> Vec<String> {
    let Reply::List(libraries) = connection.ask(&["FUNCTION", "LIST", "WITHCODE"]).unwrap() else {
        panic!("FUNCTION LIST gave no list")
    };
    let mut libraries: Vec<String> = libraries.iter().map(|library| format!("{library:?}")).collect();
    libraries.sort();
    libraries
}

/// Replies of names and values in turn, nested at will.
fn blank_volatile(reply: &mut Reply) {
    let Reply::List(items) = reply else { return };
    for pair in items.chunks_mut(2) {
        if let [name, value] = pair
            && name.text().is_some_and(|name| VOLATILE.contains(&name))
        {
            *value = Reply::Nil;
        }
    }
    items.iter_mut().for_each(blank_volatile);
}
