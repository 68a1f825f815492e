//! A service of the test's own: its process, its data, its engines, and callers with every kind of credential.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use xtask::postgres::Postgres;
use xtask::resp;
use xtask::scratch::Scratch;
use xtask::service::processes_in;

use crate::http::{Answer, Connection, Request};
use crate::signer::Key;

/// Longest wait for anything; the machine may be busy with other tests. Sentinels whose timer came two seconds late, as it does
/// where the machine stood still or its disk did, do nothing for 30 s (TILT), and an election that none of them wins is
/// repeated after 20 s.
const PATIENCE: Duration = Duration::from_secs(150);

/// Among the variables of a service: which program it is.
pub const PROGRAM: &str = "CACHEKEEP_TEST_PROGRAM";

/// Looks until `look` finds something.
#[track_caller]
pub fn wait<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let since = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(since.elapsed() < PATIENCE, "in vain waited for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// 80 ports for the engines of one service, out of 22000 to 29919, away from those that services take by default.
/// Test binaries that run at the same time start at different places.
fn engine_ports() -> String {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let block = u16::try_from(std::process::id() % 99).unwrap() * 7 + NEXT.fetch_add(1, Ordering::Relaxed);
    let first = 22_000 + block % 99 * 80;
    format!("{first}-{}", first + 79)
}

/// With CACHEKEEP_TEST_CATALOG=postgres every service keeps its catalogue in a schema of one server of this process: the
/// server, and the folder's schema.
fn schema_of(folder: &Scratch) -> Option<(&'static Postgres, String)> {
    static SERVER: OnceLock<Postgres> = OnceLock::new();
    if std::env::var("CACHEKEEP_TEST_CATALOG").ok().as_deref() != Some("postgres") {
        return None;
    }
    let server = SERVER.get_or_init(|| Postgres::start().unwrap());
    let name = folder.path().file_name().unwrap().to_string_lossy();
    Some((server, name.replace('-', "_")))
}

fn catalog_of(folder: &Scratch) -> Option<(&'static str, String)> {
    let (server, schema) = schema_of(folder)?;
    server
        .sql(&format!("CREATE SCHEMA IF NOT EXISTS {schema}"))
        .unwrap();
    Some(("CACHEKEEP_CATALOG", server.url(&schema)))
}

fn spawn(folder: &Scratch, words: &[&str], variables: &[(&str, &str)]) -> Child {
    let log = File::create(folder.path().join("log")).unwrap();
    // Of another version, where a test says so.
    let program = variables.iter().find(|(name, _)| *name == PROGRAM);
    Command::new(program.map_or(env!("CARGO_BIN_EXE_cachekeep"), |(_, path)| path))
        .args(["serve", "--engine-ports", &engine_ports()])
        .env("CACHEKEEP_LISTEN", "127.0.0.1:0")
        .arg("--data-dir")
        .arg(folder.path().join("data"))
        .args(words)
        .envs(catalog_of(folder))
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

/// A running service; killed with its engines on drop.
pub struct Service {
    child: Child,
    folder: Scratch,
    /// Further words of its command line, also where it is started again without other ones.
    words: Vec<String>,
    admin: Value,
    /// Parts of log lines that the test itself brings about.
    trouble: Vec<&'static str>,
    /// Whether what the operator hears of is no matter.
    is_in_trouble: bool,
}

impl Service {
    pub fn start() -> Self {
        Self::start_with(&[], &[])
    }

    /// Starts with further words of the command line and with variables.
    pub fn start_with(words: &[&str], variables: &[(&str, &str)]) -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = Scratch::new("api").unwrap();
        // Engines that run as another user must be able to reach their folder.
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        let child = spawn(&folder, words, variables);
        let mut service = Self {
            child,
            folder,
            words: words.iter().map(|word| (*word).to_owned()).collect(),
            admin: Value::Null,
            trouble: Vec::new(),
            is_in_trouble: false,
        };
        service.wait_until_it_serves();
        service
    }

    fn wait_until_it_serves(&mut self) {
        self.admin = wait("a service that serves", || {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the service ended with {status}: {}", self.log());
            }
            let serves = self.log().contains("cachekeep serves ");
            serves.then(|| {
                serde_json::from_slice(&std::fs::read(self.data().join("admin.json")).unwrap()).unwrap()
            })
        });
    }

    /// Kills the service; its engines go on.
    pub fn kill(&mut self) {
        let _already_gone = self.child.kill();
        self.child.wait().unwrap();
    }

    /// Waits until the service has ended by itself.
    #[track_caller]
    pub fn wait_until_it_has_ended(&mut self) -> ExitStatus {
        wait("the end of the service", || self.child.try_wait().unwrap())
    }

    /// Kills what runs below the data directory.
    pub fn kill_engines(&self) {
        let data = self.data();
        wait("the end of the engines", || {
            let engines = processes_in(&data);
            for engine in &engines {
                let _already_gone = Command::new("kill").args(["-9", &engine.to_string()]).status();
            }
            engines.is_empty().then_some(())
        });
    }

    /// Asks what runs below the data directory to end (`SIGTERM`), and waits until it has.
    pub fn end_engines(&self) {
        let data = self.data();
        let asked = processes_in(&data);
        for engine in &asked {
            let _already_gone = Command::new("kill").arg(engine.to_string()).status();
        }
        wait("the end of the engines", || {
            let living = processes_in(&data);
            asked.iter().all(|engine| !living.contains(engine)).then_some(())
        });
    }

    /// Starts the service on the data that there is; its log begins anew.
    pub fn start_again(&mut self) {
        self.start_again_in(&[]);
    }

    /// As [`Service::start_again`], with variables.
    pub fn start_again_in(&mut self, variables: &[(&str, &str)]) {
        let words = self.words.clone();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        self.start_again_with(&words, variables);
    }

    /// As [`Service::start_again`], with further words of the command line and with variables.
    pub fn start_again_with(&mut self, words: &[&str], variables: &[(&str, &str)]) {
        self.child = spawn(&self.folder, words, variables);
        self.wait_until_it_serves();
    }

    /// Starts the service on the data that there is with a place armed at which it dies, and waits for that.
    pub fn start_to_its_end(&mut self, place: &str, variables: &[(&str, &str)]) {
        let mark = self.folder.path().join("mark");
        let _none_yet = std::fs::remove_file(&mark);
        let armed = [
            ("CACHEKEEP_FAILPOINT", format!("{place}:kill")),
            ("CACHEKEEP_FAILPOINT_MARK", mark.to_str().unwrap().to_owned()),
        ];
        let armed = armed.iter().map(|(name, value)| (*name, value.as_str()));
        let variables: Vec<(&str, &str)> = variables.iter().copied().chain(armed).collect();
        self.child = spawn(&self.folder, &[], &variables);
        wait("the end of the service", || self.child.try_wait().unwrap());
        let marks = std::fs::read_to_string(&mark).unwrap_or_default();
        assert!(marks.contains(place), "{place} was not reached: {}", self.log());
    }

    /// The test makes something fail that the operator must hear of: such a line has to be in the log.
    pub fn expect_trouble(&mut self, part: &'static str) {
        self.trouble.push(part);
    }

    /// The test makes things fail at random: the operator may hear of anything but a bug.
    pub fn expect_any_trouble(&mut self) {
        self.is_in_trouble = true;
    }

    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// A field of `admin.json`.
    pub fn admin(&self, name: &str) -> &str {
        self.admin[name]
            .as_str()
            .unwrap_or_else(|| panic!("admin.json has no {name}"))
    }

    /// `127.0.0.1:12345`
    pub fn address(&self) -> &str {
        let (_, address) = self.admin("endpoint").split_once("://").unwrap();
        address
    }

    pub fn connect(&self) -> Connection {
        Connection::new(self.address())
    }

    pub fn key(&self) -> Key {
        Key {
            ak: self.admin("ak").to_owned(),
            sk: self.admin("sk").to_owned(),
        }
    }

    /// Who signs with the first key.
    pub fn caller(&self) -> Caller {
        self.caller_with(self.admin("project_id"), Credential::Key(self.key()))
    }

    pub fn caller_with(&self, project: &str, credential: Credential) -> Caller {
        Caller {
            connection: Mutex::new(self.connect()),
            credential,
            project: project.to_owned(),
        }
    }

    /// Runs a verb of the command line on this service.
    pub fn run(&self, words: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_cachekeep"))
            .args(words)
            .arg("--data-dir")
            .arg(self.data())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Runs a verb that must succeed and returns its JSON.
    #[track_caller]
    pub fn run_json(&self, words: &[&str]) -> Value {
        let output = self.run(&[words, &["-o", "json"]].concat());
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}: {errors}");
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{words:?}: {error}: {}", String::from_utf8_lossy(&output.stdout)))
    }

    /// Who logs in with the first password now: for services whose clock is not ours, for which nobody can sign.
    pub fn logged_in(&self) -> Caller {
        let user = json!({"name": self.admin("user"), "password": self.admin("password")});
        let scope = json!({"project": {"id": self.admin("project_id")}});
        let body = json!({"auth": {"identity": {"methods": ["password"], "password": {"user": user}}, "scope": scope}});
        let answer = self
            .connect()
            .send(&Request::json("POST", "/v3/auth/tokens", &body))
            .expect(201);
        let token = answer.header("x-subject-token").unwrap().to_owned();
        self.caller_with(self.admin("project_id"), Credential::Token(token))
    }

    /// Another project with a user and a key, and who signs with that key.
    pub fn second_project(&self, name: &str) -> Second {
        let made = self.run_json(&["project", "create", name]);
        let user = self.run_json(&[
            "user",
            "create",
            "--project",
            name,
            "--name",
            &format!("user-of-{name}"),
        ]);
        let key = self.run_json(&["key", "create", "--project", name]);
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        Second {
            project: text(&made["project_id"]),
            user: text(&user["user"]),
            password: text(&user["password"]),
            key: Key {
                ak: text(&key["ak"]),
                sk: text(&key["sk"]),
            },
        }
    }

    /// Changes the catalogue behind the service's back.
    pub fn sql(&self, text: &str) {
        if let Some((server, schema)) = schema_of(&self.folder) {
            let text = text.replace(
                "CAST(strftime('%s', 'now') AS INTEGER)",
                "CAST(extract(epoch FROM now()) AS BIGINT)",
            );
            server
                .sql(&format!("SET search_path = {schema}; {text}"))
                .unwrap();
            return;
        }
        let database = rusqlite::Connection::open(self.data().join("catalog.sqlite")).unwrap();
        database.busy_timeout(Duration::from_secs(10)).unwrap();
        database.execute_batch(text).unwrap();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _already_gone = self.child.kill();
        let _reaped = self.child.wait();
        let log = self.log();
        // Engines outlive their service by design: they are found by the folder they work in.
        let data = self.data();
        let since = Instant::now();
        loop {
            let engines = processes_in(&data);
            if engines.is_empty() || since.elapsed() > PATIENCE {
                break;
            }
            for engine in engines {
                let _already_gone = Command::new("kill").args(["-9", &engine.to_string()]).status();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        if std::thread::panicking() {
            eprintln!("--- log of the service ---\n{log}");
        } else {
            // What a client does may be refused, but never troubles the operator.
            let trouble: Vec<&str> = log
                .lines()
                .filter(|line| {
                    let is_told = line.contains("ERROR");
                    let is_bug =
                        is_told && ["this is a bug", "unreadable"].iter().any(|is| line.contains(is));
                    line.contains("panicked") || is_bug || (is_told && !self.is_in_trouble)
                })
                .collect();
            let (expected, trouble): (Vec<&str>, Vec<&str>) = trouble
                .into_iter()
                .partition(|line| self.trouble.iter().any(|part| line.contains(part)));
            assert!(trouble.is_empty(), "the service's log: {trouble:#?}");
            for part in &self.trouble {
                let told = expected.iter().any(|line| line.contains(part));
                assert!(told, "the log does not tell: {part}");
            }
        }
    }
}

/// What `second_project` made.
pub struct Second {
    pub project: String,
    pub user: String,
    pub password: String,
    pub key: Key,
}

/// What a request shows.
#[derive(Clone)]
pub enum Credential {
    Key(Key),
    Token(String),
    Nothing,
}

impl Credential {
    pub fn put_on(&self, request: Request) -> Request {
        match self {
            Credential::Key(key) => key.sign(request, &[]),
            Credential::Token(token) => request.with("X-Auth-Token", token),
            Credential::Nothing => request,
        }
    }
}

/// A credential on a connection, and the project it asks for.
pub struct Caller {
    connection: Mutex<Connection>,
    credential: Credential,
    pub project: String,
}

impl Caller {
    pub fn credential(&self) -> &Credential {
        &self.credential
    }

    pub fn send(&self, request: Request) -> Answer {
        let request = self.credential.put_on(request);
        self.connection.lock().unwrap().send(&request)
    }

    fn call(&self, method: &str, target: &str, body: Option<&Value>) -> Answer {
        self.send(match body {
            Some(body) => Request::json(method, target, body),
            None => Request::new(method, target),
        })
    }

    /// `/v2/{project}` and this.
    pub fn v2(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        self.call(method, &format!("/v2/{}{path}", self.project), body)
    }

    /// `/v1.0/{project}` and this.
    pub fn v1(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        self.call(method, &format!("/v1.0/{}{path}", self.project), body)
    }

    /// `/ck/v1/{project}` and this.
    pub fn ck(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        self.call(method, &format!("/ck/v1/{}{path}", self.project), body)
    }

    pub fn get(&self, path: &str) -> Answer {
        self.v2("GET", path, None)
    }

    /// An accepted instance that is not waited for.
    #[track_caller]
    pub fn ask_for_instance(&self, name: &str) -> String {
        let wish = json!({"name": name, "engine": "Redis", "capacity": 0.125,
                          "spec_code": "redis.single.xu1.tiny.128", "no_password_access": true});
        let made = self.v2("POST", "/instances", Some(&wish)).expect(200).json();
        made["instances"][0]["instance_id"].as_str().unwrap().to_owned()
    }

    /// An instance that runs.
    #[track_caller]
    pub fn make_instance(&self, name: &str) -> String {
        let id = self.ask_for_instance(name);
        self.wait_idle(&id);
        id
    }

    /// Waits as Terraform does: status RUNNING and no task.
    #[track_caller]
    pub fn wait_idle(&self, instance: &str) -> Value {
        wait("an idle instance", || {
            let shown = self.get(&format!("/instances/{instance}")).expect(200).json();
            assert_ne!(shown["status"], "ERROR", "{shown}");
            assert_ne!(shown["status"], "CREATEFAILED", "{shown}");
            (shown["status"] == "RUNNING" && shown["task"].is_null()).then_some(shown)
        })
    }

    #[track_caller]
    pub fn start_backup(&self, instance: &str, remark: &str) -> String {
        let path = format!("/instances/{instance}/backups");
        let started = self
            .v2("POST", &path, Some(&json!({"remark": remark})))
            .expect(200)
            .json();
        started["backup_id"].as_str().unwrap().to_owned()
    }

    /// A backup that succeeded.
    #[track_caller]
    pub fn make_backup(&self, instance: &str, remark: &str) -> String {
        let id = self.start_backup(instance, remark);
        let record = self.wait_end(instance, "backups", &id);
        assert_eq!(record["status"], "succeed", "{record}");
        id
    }

    #[track_caller]
    pub fn start_restore(&self, instance: &str, backup: &str, remark: &str) -> String {
        let path = format!("/instances/{instance}/restores");
        let wish = json!({"backup_id": backup, "remark": remark});
        let started = self.v2("POST", &path, Some(&wish)).expect(200).json();
        started["restore_id"].as_str().unwrap().to_owned()
    }

    /// A restore that succeeded.
    #[track_caller]
    pub fn make_restore(&self, instance: &str, backup: &str, remark: &str) -> String {
        let id = self.start_restore(instance, backup, remark);
        let record = self.wait_end(instance, "restores", &id);
        assert_eq!(record["status"], "succeed", "{record}");
        id
    }

    /// The record of a backup or restore that has ended, and the instance idle again.
    #[track_caller]
    pub fn wait_end(&self, instance: &str, list: &str, id: &str) -> Value {
        let path = format!("/instances/{instance}/{list}/{id}");
        let record = wait("the end of a record", || {
            let record = self.ck("GET", &path, None).expect(200).json();
            let ended = record["status"] == "succeed" || record["status"] == "failed";
            ended.then_some(record)
        });
        self.wait_idle(instance);
        record
    }

    /// A connection to the engine.
    pub fn engine(&self, instance: &str) -> resp::Connection {
        let shown = self.get(&format!("/instances/{instance}")).expect(200).json();
        let port = u16::try_from(shown["port"].as_u64().unwrap()).unwrap();
        resp::Connection::open(&resp::Target::local(port, None)).unwrap()
    }
}
