//! A cachekeep that may die at any moment, its clients, and what is known about its data.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use xtask::fill;
use xtask::resp::{Connection, Target};
use xtask::scratch::Scratch;
use xtask::service::processes_in;

use crate::catalogue::{Database, Kind};

/// How long the service may take until it answers.
const START_MAX: Duration = Duration::from_secs(60);
/// Jobs, and imports, which are none.
const UNFINISHED: &str = "SELECT (SELECT count(*) FROM job WHERE state <> 'done') + \
                          (SELECT count(*) FROM backup WHERE status IN ('waiting', 'running'))";
/// Clients' password of every instance here.
pub const PASSWORD: &str = "Crash-test-1";

/// How one run of the service is started.
#[derive(Debug, Clone, Default)]
pub struct Run {
    /// `CACHEKEEP_FAILPOINT`.
    pub failpoints: String,
    /// `CACHEKEEP_MEMORY_AVAILABLE`.
    pub memory_available: Option<u64>,
    /// `CACHEKEEP_OPERATION_SECONDS`.
    pub operation_seconds: Option<u64>,
    /// `CACHEKEEP_BACK_SECONDS`.
    pub back_seconds: Option<u64>,
}

impl Run {
    /// With these places armed.
    pub fn armed(failpoints: &str) -> Self {
        Self {
            failpoints: failpoints.to_owned(),
            ..Self::default()
        }
    }
}

/// What clients must find in an instance.
#[derive(Debug, Clone)]
pub struct Known {
    /// Its id.
    pub id: String,
    /// Its port.
    pub port: u16,
    /// `DEBUG DIGEST` of all databases. `None`: a writer made it unknown.
    pub digest: Option<String>,
}

/// One data directory, the service on it, and everything that a test knows about it.
pub struct World {
    child: Option<Child>,
    endpoint: String,
    token: String,
    project: String,
    /// First port for engines; twenty are ours.
    pub first_port: u16,
    settings: Vec<String>,
    /// The program of its engines; `None`: the machine's own.
    engine: Option<PathBuf>,
    /// Where its catalogue is.
    pub database: Database,
    /// As the service is told.
    named: PathBuf,
    /// As the kernel shows it.
    data: PathBuf,
    /// Where `CACHEKEEP_FAILPOINT_MARK` goes.
    pub mark: PathBuf,
    /// What was answered with success: the table of each record, and its id.
    answered: RefCell<BTreeSet<(&'static str, String)>>,
    /// Living instances by name.
    pub instances: BTreeMap<String, Known>,
    /// The digest of what each backup holds, retired generations included, where it is known.
    pub backups: BTreeMap<String, String>,
    /// Restores already looked at.
    pub seen_restores: HashSet<String>,
    /// Backups whose archive was decoded and loaded already.
    pub proven: HashSet<String>,
    scratch: Scratch,
}

/// An answer, or why there is none.
pub type Answer = Result<(u16, Value), String>;

impl World {
    /// Starts a service with further options of `cachekeep serve`.
    pub fn start(settings: &[&str]) -> Self {
        Self::start_in(Kind::wanted(), settings)
    }

    /// Starts one with its catalogue in a database of this kind.
    pub fn start_in(kind: Kind, settings: &[&str]) -> Self {
        let scratch = Scratch::new("crash").unwrap();
        let data = scratch.path().join("data");
        Self::start_with(kind, scratch, data, settings, None)
    }

    /// Starts one on a data directory of the caller's, kept by `scratch`.
    pub fn start_on(scratch: Scratch, data: PathBuf, settings: &[&str]) -> Self {
        Self::start_with(Kind::wanted(), scratch, data, settings, None)
    }

    /// Starts one whose engines are of this program.
    pub fn start_of(engine: PathBuf) -> Self {
        let scratch = Scratch::new("crash").unwrap();
        let data = scratch.path().join("data");
        Self::start_with(Kind::wanted(), scratch, data, &[], Some(engine))
    }

    /// As [`World::start_on`], with the catalogue in that directory whatever is wanted.
    pub fn start_on_sqlite(scratch: Scratch, data: PathBuf) -> Self {
        Self::start_with(Kind::Sqlite, scratch, data, &[], None)
    }

    fn start_with(
        kind: Kind,
        scratch: Scratch,
        data: PathBuf,
        settings: &[&str],
        engine: Option<PathBuf>,
    ) -> Self {
        let mut world = Self {
            database: Database::make(kind, &scratch, &data),
            child: None,
            engine,
            endpoint: String::new(),
            token: String::new(),
            project: String::new(),
            first_port: free_ports(),
            settings: settings.iter().map(|word| (*word).to_owned()).collect(),
            data: data.canonicalize().unwrap_or_else(|_not_yet| data.clone()),
            named: data,
            mark: scratch.path().join("mark"),
            answered: RefCell::default(),
            instances: BTreeMap::new(),
            backups: BTreeMap::new(),
            seen_restores: HashSet::new(),
            proven: HashSet::new(),
            scratch,
        };
        world.run(&Run::default());
        world
    }

    /// Starts the service on the data it has and waits until it answers.
    pub fn run(&mut self, run: &Run) {
        self.spawn(run);
        let started = Instant::now();
        loop {
            if let Some(status) = self.ended() {
                panic!("cachekeep ended with {status}: {}", self.log_tail());
            }
            if let Some(endpoint) = self.admin().and_then(|admin| text(&admin, "endpoint"))
                && let Some((_, address)) = endpoint.split_once("://")
                && TcpStream::connect(address).is_ok()
            {
                self.endpoint = endpoint;
                break;
            }
            assert!(started.elapsed() < START_MAX, "no answer: {}", self.log_tail());
            std::thread::sleep(Duration::from_millis(3));
        }
        if self.token.is_empty() {
            self.sign_in();
        }
    }

    fn spawn(&mut self, run: &Run) {
        assert!(self.child.is_none(), "it runs already");
        // From the run before: it names a port that is no longer ours.
        self.forget_endpoint();
        let _none_from_the_run_before = std::fs::remove_file(&self.mark);
        let _nor_of_its_stalls = std::fs::remove_file(self.mark.with_extension("over"));
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_file())
            .unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_cachekeep"));
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(&self.named)
            .arg("--engine-ports")
            .arg(format!("{}-{}", self.first_port, self.first_port + 39))
            .args(&self.settings)
            .env("CACHEKEEP_FAILPOINT", &run.failpoints)
            .env("CACHEKEEP_FAILPOINT_MARK", &self.mark)
            .env("NO_COLOR", "1")
            .envs(self.database.variable())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        if let Some(engine) = &self.engine {
            command.env("CACHEKEEP_REDIS_SERVER", engine);
        }
        if let Some(bytes) = run.memory_available {
            command.env("CACHEKEEP_MEMORY_AVAILABLE", bytes.to_string());
        }
        if let Some(seconds) = run.operation_seconds {
            command.env("CACHEKEEP_OPERATION_SECONDS", seconds.to_string());
        }
        if let Some(seconds) = run.back_seconds {
            command.env("CACHEKEEP_BACK_SECONDS", seconds.to_string());
        }
        self.child = Some(command.spawn().unwrap());
    }

    fn forget_endpoint(&self) {
        if let Some(mut admin) = self.admin() {
            admin["endpoint"] = json!("");
            let whole = serde_json::to_vec(&admin).unwrap();
            std::fs::write(self.data.join("admin.json"), whole).unwrap();
        }
    }

    fn admin(&self) -> Option<Value> {
        serde_json::from_slice(&std::fs::read(self.data.join("admin.json")).ok()?).ok()
    }

    fn sign_in(&mut self) {
        let admin = self.admin().unwrap();
        let of = |name: &str| text(&admin, name).unwrap();
        self.project = of("project_id");
        let body = json!({"auth": {
            "identity": {"methods": ["password"], "password": {"user": {
                "name": of("user"), "password": of("password"), "domain": {"name": of("domain")},
            }}},
            "scope": {"project": {"id": of("project_id")}},
        }});
        let response = agent()
            .post(format!("{}/v3/auth/tokens", self.endpoint))
            .send_json(&body)
            .unwrap();
        let token = response.headers().get("X-Subject-Token");
        self.token = token.expect("a token").to_str().unwrap().to_owned();
    }

    /// The exit status where the service has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.as_mut().and_then(|child| child.try_wait().unwrap())
    }

    /// The service's process.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Kills the service (`SIGKILL`); its engines go on.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _dead_already = child.kill();
            child.wait().unwrap();
        }
    }

    /// Asks the service to end (`SIGTERM`) and waits for that.
    pub fn end(&mut self) {
        let mut child = self.child.take().unwrap();
        assert!(
            Command::new("kill")
                .arg(child.id().to_string())
                .status()
                .unwrap()
                .success()
        );
        let asked = Instant::now();
        while asked.elapsed() < Duration::from_secs(20) {
            if let Some(status) = child.try_wait().unwrap() {
                assert!(status.success(), "{status}");
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        panic!("it did not end on SIGTERM");
    }

    /// What the service says when it refuses to start on this data, with further options.
    pub fn refusal(&self, options: &[&str]) -> String {
        assert!(self.child.is_none(), "it runs");
        let output = Command::new("timeout")
            .args(["-s", "KILL", "20"])
            .arg(env!("CARGO_BIN_EXE_cachekeep"))
            .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(&self.named)
            .args(options)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "");
        String::from_utf8(output.stderr).unwrap()
    }

    /// Kill, then start anew.
    pub fn restart(&mut self, run: &Run) {
        self.kill();
        self.run(run);
    }

    /// The data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// A folder for the test's own files.
    pub fn folder(&self) -> &Path {
        self.scratch.path()
    }

    /// All of the service's log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn log_file(&self) -> PathBuf {
        self.scratch.path().join("log")
    }

    /// The end of the service's log.
    pub fn log_tail(&self) -> String {
        let whole = std::fs::read_to_string(self.log_file()).unwrap_or_default();
        let lines: Vec<&str> = whole.lines().collect();
        format!(
            "\n    {}\n",
            lines[lines.len().saturating_sub(25)..].join("\n    ")
        )
    }

    /// The places that were reached in this run.
    pub fn marks(&self) -> Vec<String> {
        let text = std::fs::read_to_string(&self.mark).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Waits until the service goes on from a place at which it was held up.
    pub fn wait_stall_over(&self, place: &str) {
        let started = Instant::now();
        loop {
            let over = std::fs::read_to_string(self.mark.with_extension("over")).unwrap_or_default();
            if over.lines().any(|mark| mark == place) {
                return;
            }
            assert!(
                started.elapsed() < Duration::from_secs(20),
                "{place}: held up for ever"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// One request; an `Err` where no answer came.
    pub fn try_call(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        let path = path.replace("{project}", &self.project);
        let url = format!("{}{path}", self.endpoint);
        let request = ureq::http::Request::builder()
            .method(method)
            .uri(&url)
            .header("X-Auth-Token", &self.token);
        let sent = match body {
            Some(body) => agent().run(
                request
                    .header("Content-Type", "application/json")
                    .body(body.to_string())
                    .unwrap(),
            ),
            None => agent().run(request.body(()).unwrap()),
        };
        let mut response = sent.map_err(|e| e.to_string())?;
        let status = response.status().as_u16();
        let body = response.body_mut().read_to_string().map_err(|e| e.to_string())?;
        let answer = serde_json::from_str(&body).unwrap_or(Value::Null);
        if status < 300 && method == "POST" {
            let told = [("backup", "backup_id"), ("restore", "restore_id")]
                .into_iter()
                .filter_map(|(table, field)| Some((table, text(&answer, field)?)));
            let made = answer["instances"].as_array().into_iter().flatten();
            let made = made.filter_map(|made| Some(("instance", text(made, "instance_id")?)));
            self.answered.borrow_mut().extend(told.chain(made));
        }
        Ok((status, answer))
    }

    /// Table and id of every record whose acceptance was answered.
    pub fn answered(&self) -> Vec<(&'static str, String)> {
        self.answered.borrow().iter().cloned().collect()
    }

    /// One request that must be answered with success.
    pub fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        match self.try_call(method, path, body) {
            Ok((status, answer)) if status < 300 => answer,
            other => panic!("{method} {path}: {other:?}{}", self.log_tail()),
        }
    }

    /// Asks for an instance; it may not run yet.
    pub fn ask_for_instance(&self, name: &str, spec: &str, persistence: &str) -> Answer {
        let body = json!({
            "name": format!("test-{name}"), "engine": "Redis", "spec_code": spec, "password": PASSWORD, "persistence": persistence,
        });
        self.try_call("POST", "/v2/{project}/instances", Some(&body))
    }

    /// Makes an instance and waits until it runs.
    pub fn create(&mut self, name: &str, spec: &str, persistence: &str) -> String {
        let (status, answer) = self.ask_for_instance(name, spec, persistence).unwrap();
        assert_eq!(status, 200, "{answer}");
        self.learn_instance(name);
        let id = self.id(name);
        self.wait_idle();
        self.note(name);
        id
    }

    /// Finds a new instance in the catalogue.
    pub fn learn_instance(&mut self, name: &str) {
        let (id, port) = crate::checker::Catalogue::open(self).instance(name).unwrap();
        let known = Known {
            id,
            port,
            digest: None,
        };
        self.instances.insert(name.to_owned(), known);
    }

    /// The id of an instance.
    pub fn id(&self, name: &str) -> String {
        self.instances[name].id.clone()
    }

    /// How clients reach it.
    pub fn target(&self, name: &str) -> Target {
        Target::local(self.instances[name].port, Some(PASSWORD))
    }

    /// A client of the instance.
    pub fn client(&self, name: &str) -> Connection {
        Connection::open(&self.target(name)).unwrap()
    }

    /// Remembers what the instance holds now: nobody may be writing.
    pub fn note(&mut self, name: &str) -> String {
        let digest = self.digest(name);
        self.instances.get_mut(name).unwrap().digest = Some(digest.clone());
        digest
    }

    /// What the instance holds now.
    pub fn digest(&self, name: &str) -> String {
        let reply = self.client(name).ask(&["DEBUG", "DIGEST"]).unwrap();
        reply.text().unwrap().to_owned()
    }

    /// What the instance holds now, if it answers.
    pub fn try_digest(&self, name: &str) -> Option<String> {
        let mut client = Connection::open(&self.target(name)).ok()?;
        let reply = client.ask(&["DEBUG", "DIGEST"]).ok()?;
        reply.text().map(str::to_owned)
    }

    /// Some thousand keys of every type, in three databases.
    pub fn fill(&mut self, name: &str, seed: u64, keys: u64) {
        let options = fill::Options {
            seed,
            keys,
            dbs: 3,
            // One before 7.0 has none.
            functions: self.engine.is_none(),
            idle_consumers: self.engine.is_none(),
            ..fill::Options::default()
        };
        fill::fill(&self.target(name), &options).unwrap();
        self.note(name);
    }

    /// Makes the data differ from every data before.
    pub fn change(&mut self, name: &str) {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed).to_string();
        let mut client = self.client(name);
        client.ask(&["SELECT", "1"]).unwrap();
        client.ask(&["SET", "changed", &number]).unwrap();
        client.ask(&["SELECT", "0"]).unwrap();
        client.ask(&["RPUSH", "changes", &number]).unwrap();
        self.note(name);
    }

    /// Asks for a backup.
    pub fn ask_for_backup(&self, name: &str) -> Answer {
        let path = format!("/v2/{{project}}/instances/{}/backups", self.id(name));
        self.try_call("POST", &path, Some(&json!({"backup_format": "rdb"})))
    }

    /// Makes a backup of what the instance holds now and waits until it has succeeded.
    pub fn backup(&mut self, name: &str) -> String {
        let digest = self.note(name);
        let (status, answer) = self.ask_for_backup(name).unwrap();
        assert!(status < 300, "{status} {answer}");
        let id = text(&answer, "backup_id").unwrap();
        self.wait_idle();
        let row = crate::checker::Catalogue::open(self).backup(&id);
        assert_eq!(row.status, "succeeded", "{row:?}{}", self.log_tail());
        self.backups.insert(id.clone(), digest);
        id
    }

    /// Asks for a restore.
    pub fn ask_for_restore(&self, name: &str, backup: &str, downtime: bool) -> Answer {
        let path = format!("/ck/v1/{{project}}/instances/{}/restores", self.id(name));
        let body = json!({"backup_id": backup, "allow_downtime": downtime});
        self.try_call("POST", &path, Some(&body))
    }

    /// Asks to take a restore back.
    pub fn ask_for_undo(&self, name: &str, restore: &str) -> Answer {
        let path = format!(
            "/ck/v1/{{project}}/instances/{}/restores/{restore}/undo",
            self.id(name)
        );
        self.try_call("POST", &path, Some(&json!({})))
    }

    /// Asks to delete a backup.
    pub fn ask_to_delete_backup(&self, name: &str, backup: &str) -> Answer {
        let path = format!("/v2/{{project}}/instances/{}/backups/{backup}", self.id(name));
        self.try_call("DELETE", &path, None)
    }

    /// Asks to delete an instance.
    pub fn ask_to_delete(&self, id: &str) -> Answer {
        self.try_call("DELETE", &format!("/v2/{{project}}/instances/{id}"), None)
    }

    /// Asks to restart an instance.
    pub fn ask_to_restart(&self, name: &str) -> Answer {
        self.ask_to_act(name, "restart")
    }

    /// Asks to remove all keys of an instance.
    pub fn ask_to_flush(&self, name: &str) -> Answer {
        self.ask_to_act(name, "flush")
    }

    fn ask_to_act(&self, name: &str, action: &str) -> Answer {
        let body = json!({"instances": [self.id(name)], "action": action});
        self.try_call("PUT", "/v2/{project}/instances/status", Some(&body))
    }

    /// Asks to give an instance its clients' password anew: the one that it has.
    pub fn ask_to_reset_password(&self, name: &str) -> Answer {
        let path = format!("/v2/{{project}}/instances/{}/password/reset", self.id(name));
        self.try_call("POST", &path, Some(&json!({"new_password": PASSWORD})))
    }

    /// Makes every job that is not done a day older, while no service runs.
    pub fn age_jobs_by_a_day(&self) {
        assert!(self.child.is_none(), "the service runs");
        let aged = self
            .database
            .change("UPDATE job SET created_at_ms = created_at_ms - 86400000 WHERE state <> 'done'");
        assert_eq!(aged, 1);
    }

    /// Waits until no job is left.
    pub fn wait_idle(&self) {
        let catalogue = crate::checker::Catalogue::open(self);
        let started = Instant::now();
        while catalogue.count("SELECT count(*) FROM job WHERE state <> 'done'") > 0 {
            let waited = started.elapsed();
            assert!(
                waited < Duration::from_secs(90),
                "jobs do not end:{}",
                self.log_tail()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until no job and no import is left or the service has died; says whether it has.
    pub fn wait_idle_or_dead(&mut self, limit: Duration) -> bool {
        let started = Instant::now();
        let catalogue = crate::checker::Catalogue::open(self);
        while started.elapsed() < limit {
            if self.ended().is_some() {
                return true;
            }
            if catalogue.count(UNFINISHED) == 0 {
                // The last place lies behind the end of the job.
                std::thread::sleep(Duration::from_millis(150));
                return self.ended().is_some();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("neither done nor dead:{}", self.log_tail());
    }

    /// Where engines live, as the kernel shows it.
    fn instances_dir(&self) -> PathBuf {
        let named = self.data.join("instances");
        named.canonicalize().unwrap_or(named)
    }

    /// Engine processes below the data directory, without their forked children.
    pub fn engines(&self) -> Vec<(u32, PathBuf)> {
        let found = processes_in(&self.instances_dir());
        found
            .iter()
            .filter(|pid| !parent(**pid).is_some_and(|parent| found.contains(&parent)))
            .filter_map(|pid| Some((*pid, std::fs::read_link(format!("/proc/{pid}/cwd")).ok()?)))
            .collect()
    }

    /// The child that an engine has forked, if it has one.
    pub fn child_of(&self, engine: u32) -> Option<u32> {
        processes_in(&self.instances_dir())
            .into_iter()
            .find(|pid| parent(*pid) == Some(engine))
    }

    /// The directory of the instance's serving generation.
    pub fn serving_home(&self, name: &str) -> Option<PathBuf> {
        let generation = crate::checker::Catalogue::open(self).serving(&self.id(name))?;
        let home = self.data.join("instances").join(self.id(name)).join(generation);
        home.canonicalize().ok()
    }

    /// The engine that serves an instance: whoever lives in the serving generation's directory.
    pub fn serving_pid(&self, name: &str) -> Option<u32> {
        let home = self.serving_home(name)?;
        self.engines()
            .into_iter()
            .find(|(_, cwd)| *cwd == home)
            .map(|(pid, _)| pid)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the service's log ends:{}", self.log_tail());
        }
        self.kill();
        let gone_by = Instant::now() + Duration::from_secs(20);
        loop {
            let left = processes_in(&self.instances_dir());
            if left.is_empty() || Instant::now() > gone_by {
                break;
            }
            for engine in left {
                kill(engine);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// `SIGKILL`.
pub fn kill(pid: u32) {
    signal(pid, "KILL");
}

/// Any signal, by its name without SIG.
pub fn signal(pid: u32, name: &str) {
    let _gone_already = Command::new("kill")
        .args(["-s", name, &pid.to_string()])
        .stderr(Stdio::null())
        .status();
}

fn parent(pid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    line.trim().parse().ok()
}

/// A text of a JSON object.
pub fn text(value: &Value, name: &str) -> Option<String> {
    value
        .get(name)?
        .as_str()
        .filter(|text| !text.is_empty())
        .map(str::to_owned)
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(60)))
        .build()
        .into()
}

/// Forty ports in a row that nobody else uses now.
fn free_ports() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = 25_000 + u16::try_from(std::process::id() % 60).unwrap() * 100;
    for _ in 0..500 {
        let first = start + NEXT.fetch_add(40, Ordering::Relaxed) % 1000;
        if (first..first + 40).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            return first;
        }
    }
    panic!("no free ports");
}
