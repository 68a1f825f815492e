//! What the tests share: scratch directories, redis-server processes, plans.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use engine::backup::{self, BackupPlan, BackupReport, Labels};
use engine::{Address, Archive, Control, Endpoint, Error, Identity, Node, SigningKey, Store, Tuning};

/// A directory that goes with its owner.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let unique = COUNTER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("cachekeep-it-{}-{unique}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _left_to_the_system = std::fs::remove_dir_all(&self.0);
    }
}

/// A redis-server on a Unix socket.
pub struct Redis {
    pub scratch: Scratch,
    child: Child,
}

impl Redis {
    pub fn start(settings: &[&str]) -> Self {
        Self::start_in(Scratch::new(), settings)
    }

    /// `settings` are words of the command line: `["--requirepass", "x"]`.
    pub fn start_in(scratch: Scratch, settings: &[&str]) -> Self {
        let child = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--enable-debug-command", "yes"])
            .args(["--dir", scratch.path().to_str().unwrap()])
            .args(["--unixsocket", scratch.join("s").to_str().unwrap()])
            .args(["--repl-diskless-sync-delay", "0"])
            .args(settings)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let redis = Self { scratch, child };
        let since = Instant::now();
        while std::os::unix::net::UnixStream::connect(redis.scratch.join("s")).is_err() {
            assert!(
                since.elapsed() < Duration::from_secs(20),
                "redis-server did not start"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        redis
    }

    pub fn endpoint(&self) -> Endpoint {
        Endpoint {
            address: Address::Unix(self.scratch.join("s")),
            user: None,
            password: None,
            tls: None,
            timeout: Duration::from_secs(5),
        }
    }

    pub fn node(&self) -> Node {
        Node::connect(&self.endpoint()).unwrap()
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _dead_already = self.child.kill();
        let _dead_already = self.child.wait();
    }
}

/// Keys of every type in two databases, and `megabytes` of strings that do not compress away.
pub fn fill(node: &mut Node, megabytes: usize) {
    for words in [
        "FLUSHALL",
        "SET plain value",
        "SET number 12345",
        "SET mortal soon EX 100000",
        "RPUSH list a b c",
        "SADD numbers 1 2 3",
        "SADD words one two",
        "ZADD scores 1 a 2.5 b",
        "HSET hash f v g w",
        "XADD stream 1-1 f v",
        "SELECT 3",
        "SET third database",
    ] {
        node.run(&words.split(' ').collect::<Vec<_>>()).unwrap();
    }
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut value = vec![0; 64 * 1024];
    for number in 0..megabytes * 16 {
        for eight in value.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            eight.copy_from_slice(&state.to_le_bytes());
        }
        node.command(&[b"SET", format!("random:{number}").as_bytes(), &value])
            .unwrap();
    }
    node.run(&["SELECT", "0"]).unwrap();
    node.run(&[
        "FUNCTION",
        "LOAD",
        "REPLACE",
        "#!lua name=lib\nredis.register_function('f', function() return 1 end)",
    ])
    .unwrap();
}

pub fn digest(node: &mut Node) -> String {
    node.run(&["DEBUG", "DIGEST"]).unwrap().text().unwrap()
}

/// Keys, store and plan of a backup of `source`.
pub struct Bench {
    pub scratch: Scratch,
    pub identity: Identity,
    pub signer: SigningKey,
    pub store: Store,
    pub plan: BackupPlan<'static>,
    pub control: Control,
}

impl Bench {
    pub fn new(source: Endpoint) -> Self {
        let scratch = Scratch::new();
        let identity = Identity::generate();
        Self {
            signer: SigningKey::generate().unwrap(),
            store: Store::open(scratch.join("store")).unwrap(),
            plan: BackupPlan {
                forked: None,
                source,
                tuning: Tuning::None,
                prefix: "p/i/b/1-1".to_owned(),
                labels: Labels {
                    project: "p".to_owned(),
                    instance: "i".to_owned(),
                    backup: "b".to_owned(),
                    attempt: 1,
                    created_at_ms: 1_700_000_000_000,
                },
                recipient: identity.recipient(),
                spool_dir: scratch.join("spool"),
                spool_limit_bytes: 1 << 30,
                snapshot_bytes_max: 0,
                idle_timeout: Duration::from_secs(10),
                expected_bytes: 0,
            },
            identity,
            scratch,
            control: Control::new(Some(Duration::from_secs(120))),
        }
    }

    pub fn run(&self) -> Result<BackupReport, Error> {
        backup::run(&self.plan, &self.store, &self.signer, &self.control)
    }

    pub fn open(&self) -> Result<Archive, Error> {
        Archive::open(
            &self.store,
            &self.plan.prefix,
            &[self.signer.verifying_key()],
            None,
        )
    }

    pub fn read(&self) -> Result<Vec<u8>, Error> {
        let mut rdb = Vec::new();
        self.open()?
            .read(&self.identity, &Control::new(None), 2, |piece| {
                rdb.extend_from_slice(piece);
                Ok(())
            })?;
        Ok(rdb)
    }

    /// Whether not even a temporary file or a directory is left.
    pub fn store_is_bare(&self) -> bool {
        std::fs::read_dir(self.store.root()).unwrap().next().is_none()
    }
}

/// A redis-server that loaded `rdb`.
pub fn start_on(rdb: &[u8]) -> Redis {
    let scratch = Scratch::new();
    std::fs::write(scratch.join("dump.rdb"), rdb).unwrap();
    let redis = Redis::start_in(scratch, &[]);
    let mut node = redis.node();
    wait_until("the dump is loaded", || {
        node.info("persistence")
            .unwrap()
            .contains(&("loading".to_owned(), "0".to_owned()))
    });
    redis
}

pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let since = Instant::now();
    while !condition() {
        assert!(
            since.elapsed() < Duration::from_secs(30),
            "waited in vain until {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn info_number(node: &mut Node, section: &str, name: &str) -> u64 {
    let fields = node.info(section).unwrap();
    let (_, value) = fields.iter().find(|(field, _)| field == name).unwrap();
    value.parse().unwrap()
}
