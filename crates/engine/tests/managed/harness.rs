//! Homes, engines and data for the tests.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use engine::process::{self, Engine, EngineSpec, Persistence};
use engine::sideload::{self, Expectation};
use engine::{Address, Control, Endpoint, Error, Node, Reply, Secret};

pub const ADMIN_PASSWORD: &str = "admin \"pass\" # word";

/// A directory of its own; engines below it are ended and it is removed when dropped.
pub struct Home(PathBuf);

impl Home {
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("cachekeep-managed-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The settings of a generation below this home: append-only file, no port, no client password.
    pub fn spec(&self, generation: &str) -> EngineSpec {
        EngineSpec {
            program: process::Program::ask(&process::find_binary().unwrap()).unwrap(),
            directory: self.0.join(generation),
            run_as: None,
            bind: "127.0.0.1".to_owned(),
            port: 0,
            admin_password: Secret::new(ADMIN_PASSWORD),
            clients: process::Clients::default(),
            max_memory_bytes: 0,
            persistence: Persistence::Aof,
            certificate: None,
            cluster: None,
            watched: None,
        }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        for (_, directory) in process::find_orphans(&self.0) {
            if let Ok(Some(engine)) = process::find(&directory, &Secret::new(ADMIN_PASSWORD)) {
                engine.kill().unwrap();
            }
        }
        sideload::discard(&self.0).unwrap();
    }
}

/// Waits for a condition; panics with `what` after 20 s.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < limit, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A port that was free a moment ago, outside the range from which clients get theirs: a client that dials it while
/// nobody listens could otherwise reach itself.
pub fn free_port() -> u16 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed) + u64::from(std::process::id()) * 37;
        let port = 10_000 + u16::try_from(number % 20_000).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() && TcpListener::bind(("127.0.0.2", port)).is_ok() {
            return port;
        }
    }
}

pub fn client(port: u16) -> Result<Node, Error> {
    client_with(port, None)
}

pub fn client_with(port: u16, password: Option<&str>) -> Result<Node, Error> {
    Node::connect(&Endpoint {
        address: Address::Tcp("127.0.0.1".to_owned(), port),
        user: None,
        password: password.map(Secret::new),
        tls: None,
        timeout: Duration::from_secs(10),
    })
}

/// Runs words separated by spaces.
pub fn run(node: &mut Node, words: &str) -> Reply {
    let words: Vec<&str> = words.split(' ').collect();
    node.run(&words).unwrap()
}

pub fn text(node: &mut Node, words: &str) -> String {
    run(node, words).text().unwrap()
}

/// The engine's own digest over all dbs, values and expiry times.
pub fn digest(engine: &Engine) -> String {
    text(&mut engine.control().unwrap(), "DEBUG DIGEST")
}

pub fn config(engine: &Engine, name: &str, value: &str) {
    engine.control().unwrap().config_set(name, value).unwrap();
}

pub fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

pub const LIBRARY: &str = "#!lua name=lib\nredis.register_function('f', function() return 1 end)";

/// Every type in its small and its big encoding, keys that expire, three dbs, a function library.
pub fn fill(node: &mut Node) {
    let big = vec![b'x'; 3 * 1024 * 1024];
    node.command(&[b"SET", b"string:big", &big]).unwrap();
    node.command(&[b"SET", b"binary:\x00\xff\r\n", b"\x00\x01\xfe"])
        .unwrap();
    for words in [
        "SET string:int 12345",
        "SET string:text hello",
        "SET string:float 3.25",
    ] {
        run(node, words);
    }
    for number in 0..2_000 {
        run(
            node,
            &format!("RPUSH list:big element-{number}-{}", "y".repeat(number % 60)),
        );
        run(node, &format!("SADD set:big member-{number}"));
        run(node, &format!("ZADD zset:big {number}.5 member-{number}"));
        run(node, &format!("HSET hash:big field-{number} value-{number}"));
        run(node, &format!("SADD intset:big {number}"));
        run(
            node,
            &format!("XADD stream:big {}-1 f v{number} g {number}", number + 1),
        );
    }
    for words in [
        "RPUSH list:small a b 3",
        "SADD set:small a b c",
        "SADD intset:small 1 2 3",
        "ZADD zset:small 1 a -inf b 2.5 c",
        "HSET hash:small f1 v1 f2 7",
        "XGROUP CREATE stream:big group 0",
        "XREADGROUP GROUP group alice COUNT 50 STREAMS stream:big >",
        "XREADGROUP GROUP group bob COUNT 5 STREAMS stream:big >",
        "XACK stream:big group 3-1 4-1",
        "XDEL stream:big 5-1 700-1",
        "SET expires:far v EX 100000",
        "HSET expires:hash f v",
        "PEXPIREAT expires:hash 4102444800123",
        "SELECT 3",
        "SET other v",
        "SET expires:other v EX 100000",
        "SELECT 255",
        "RPUSH last 1 2 3",
        "SELECT 0",
    ] {
        run(node, words);
    }
    node.run(&["FUNCTION", "LOAD", LIBRARY]).unwrap();
}

/// The RDB that an engine filled by `fill` makes, and its digest.
pub fn data(home: &Home, fill: impl FnOnce(&mut Node)) -> (Vec<u8>, String) {
    let mut spec = home.spec("source");
    spec.persistence = Persistence::Rdb;
    let engine = process::start(&spec).unwrap();
    let mut node = engine.control().unwrap();
    node.set_timeout(Duration::from_secs(100)).unwrap();
    fill(&mut node);
    // What is due to expire stays in.
    run(&mut node, "SAVE");
    let digest = digest(&engine);
    engine.kill().unwrap();
    let bytes = std::fs::read(spec.directory.join("dump.rdb")).unwrap();
    sideload::discard(&spec.directory).unwrap();
    (bytes, digest)
}

/// Pushes bytes in pieces of changing size.
pub fn in_pieces(bytes: &[u8], push: &mut dyn FnMut(&[u8]) -> Result<(), Error>) -> Result<(), Error> {
    let mut rest = bytes;
    let mut size = 1;
    while !rest.is_empty() {
        let (piece, later) = rest.split_at(size.min(rest.len()));
        push(piece)?;
        rest = later;
        size = size % 300_000 * 3 + 1;
    }
    Ok(())
}

/// Places the bytes for the generation and loads them.
pub fn side_load(spec: &EngineSpec, bytes: &[u8]) -> (Engine, Expectation) {
    let control = Control::new(None);
    let expectation = sideload::place(
        &spec.directory,
        sideload::Form::of(spec),
        spec.run_as,
        &control,
        |push| in_pieces(bytes, push),
    )
    .unwrap();
    let engine = process::start_standby(spec).unwrap();
    engine.wait_loaded(&control).unwrap();
    (engine, expectation)
}
