//! The service under test and the verbs it is used by. Nothing is left of it when it is dropped.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use xtask::resp::{Connection, Target};
use xtask::scratch::Scratch;
use xtask::service::processes_in;

const PROGRAM: &str = env!("CARGO_BIN_EXE_cachekeep");

/// A verb that takes longer has hung.
const VERB_SECONDS_MAX: &str = "400";

/// What each start says until the key is kept elsewhere: a reminder, no trouble.
const KEY_REMINDER: &str = "nowhere but in this data directory";

/// Ports of one service: of each we need one or two.
const PORTS: u32 = 5;

pub struct Service {
    child: Child,
    folder: Scratch,
}

impl Service {
    pub fn start() -> Self {
        let folder = Scratch::new("roundtrip").unwrap();
        let log = File::create(folder.path().join("log")).unwrap();
        let child = Command::new(PROGRAM)
            .args(["serve", "--listen", "127.0.0.1:0", "--log", "json"])
            .args(["--engine-ports", &ports()])
            .arg("--data-dir")
            .arg(folder.path().join("data"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut service = Self { child, folder };
        wait_until("the service writes admin.json", || {
            assert!(service.child.try_wait().unwrap().is_none(), "the service ended");
            service.data().join("admin.json").is_file()
        });
        service
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Runs a verb and returns what it prints.
    ///
    /// # Panics
    /// Where the verb fails.
    pub fn verb(&self, words: &[&str]) -> Value {
        let ran = self.run(words);
        assert!(ran.status.success(), "cachekeep {words:?}: {ran:?}");
        serde_json::from_slice(&ran.stdout).unwrap_or(Value::Null)
    }

    fn run(&self, words: &[&str]) -> Output {
        Command::new("timeout")
            .args([
                VERB_SECONDS_MAX,
                PROGRAM,
                "--quiet",
                "--output",
                "json",
                "--data-dir",
            ])
            .arg(self.data())
            .args(words)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Makes an instance of 1 GB with a password.
    pub fn instance(&self, name: &str, persistence: &str) -> Instance<'_> {
        let made = self.verb(&["instance", "create", "--name", name, "--persistence", persistence]);
        let port = made["port"].as_u64().unwrap().try_into().unwrap();
        Instance {
            service: self,
            name: name.to_owned(),
            target: Target::local(port, made["password"].as_str()),
        }
    }

    /// The service has reported no trouble: nothing here is meant to go wrong.
    pub fn assert_untroubled(&self) {
        let log = self.log();
        let trouble: BTreeSet<&str> = log
            .lines()
            .filter(|line| !line.contains(KEY_REMINDER))
            .filter(|line| {
                ["ERROR", "WARN"]
                    .iter()
                    .any(|level| line.contains(&format!("\"level\":\"{level}\"")))
            })
            .collect();
        assert!(trouble.is_empty(), "{trouble:#?}");
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let end = &lines[lines.len().saturating_sub(15)..];
            eprintln!("the service's log ends:\n    {}", end.join("\n    "));
        }
        let _already_gone = self.child.kill();
        let _reaped = self.child.wait();
        // Engines outlive their service by design: they are known by the folder they work in.
        let limit = Instant::now() + Duration::from_secs(20);
        loop {
            let engines = processes_in(&self.data());
            if engines.is_empty() || Instant::now() > limit {
                break;
            }
            for engine in engines {
                let _already_gone = Command::new("kill").args(["-9", &engine.to_string()]).status();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A range of its own for each service, below the ports that the system gives to clients.
fn ports() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let ours = std::process::id() % 400 * 10 + NEXT.fetch_add(1, Ordering::Relaxed) % 10;
    let first = 10_000 + ours * PORTS;
    format!("{first}-{}", first + PORTS - 1)
}

/// Waits for a condition; panics with `what` after a minute.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < limit, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub struct Instance<'a> {
    service: &'a Service,
    name: String,
    /// How its clients reach it: the same before and after a restore.
    pub target: Target,
}

impl Instance<'_> {
    pub fn connect(&self) -> Connection {
        Connection::open(&self.target).unwrap()
    }

    /// Takes a backup and returns its record.
    pub fn back_up(&self) -> Value {
        let record = self.service.verb(&["backup", "create", &self.name, "--wait"]);
        assert_eq!(record["status"], "succeed", "{record}");
        record
    }

    /// Restores and returns the record.
    pub fn restore(&self, backup: &Value, verify: &str) -> Value {
        let id = backup["backup_id"].as_str().unwrap();
        let record = self.service.verb(&[
            "restore", "create", &self.name, "--backup", id, "--verify", verify, "--wait",
        ]);
        assert_eq!(record["backup_id"], id, "{record}");
        assert_eq!(record["ext"]["verify"], verify, "{record}");
        assert_eq!(record["ext"]["method"], "side_load", "{record}");
        assert_replaced(&record);
        record
    }

    /// Takes back the latest restore.
    pub fn undo(&self) {
        let record = self.service.verb(&["restore", "undo", &self.name, "--wait"]);
        assert_eq!(record["ext"]["method"], "switch_back", "{record}");
        assert_replaced(&record);
    }

    pub fn restart(&self) {
        self.service.verb(&["instance", "restart", &self.name]);
    }

    pub fn flush(&self) {
        self.service.verb(&["instance", "flush", &self.name]);
    }

    pub fn download(&self, backup: &Value, to: &Path) {
        let id = backup["backup_id"].as_str().unwrap();
        let to = to.to_str().unwrap();
        self.service
            .verb(&["backup", "download", &self.name, id, "--to", to]);
    }
}

fn assert_replaced(record: &Value) {
    assert_eq!(record["status"], "succeed", "{record}");
    assert_eq!(record["progress"], "100.00", "{record}");
    assert_eq!(record["ext"]["target_state"], "replaced", "{record}");
}
