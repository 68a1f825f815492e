//! One engine process and its directory: start, find again, watch, stop.
//!
//! A generation of an instance is a directory with one process in it, whose working directory that is. The
//! process reads its settings from standard input, so no password lies on disk, and opens nothing but relative
//! names, so an unprivileged engine may live below a home that only root can enter. We talk to it through
//! `engine.sock` in its directory, as the ACL user `cachekeep`; clients reach it only through the TCP port that the
//! serving generation holds.
//!
//! The process outlives us: it has a process group of its own and no descriptor of ours, the kernel's hang-up goes
//! to the foreground group only, and engines ignore `SIGHUP`. After a restart of ours [`find`] adopts it by its
//! working directory. Nothing is remembered in files that could lie: `/proc` is the truth.

mod certificate;
mod lifetime;
mod program;
mod settings;
mod table;

use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::cluster::{self, Seat};
use crate::error::{Error, Kind};
use crate::failpoint;
use crate::node::{Address, Endpoint, Node, Reply, Secret};
use crate::sentinel::{self, SentinelSpec, Watched};

pub use certificate::{AUTHORITY_LIFE, Authority, Certificate};
pub(crate) use certificate::{settings as certificate_settings, write as write_certificate};
pub use lifetime::Vitals;
pub(crate) use lifetime::{is_of_cluster, port_of, port_setting, take_port};
pub(crate) use program::is_before;
pub use program::{Brand, Program, find_binary, has_fixed_port, is_before_7, programs, version};
pub(crate) use settings::{hex_digest, password_hash};
use table::Process;

/// File of the control socket, in the engine's directory.
pub const SOCKET: &str = "engine.sock";
/// File of the engine's log, in its directory.
pub const LOG: &str = "redis.log";
/// The ACL user of the control plane.
pub const ADMIN_USER: &str = "cachekeep";
/// The ACL user as whom replicas follow their primaries.
const REPLICA_USER: &str = "cachekeep-replica";

/// Host and port of the primary of a standby. The broadcast address: the kernel refuses a TCP connection to it at
/// once, so this primary never answers.
pub(crate) const NO_PRIMARY: (&str, &str) = ("255.255.255.255", "1");
/// Longest time from spawn to the first answer. Loading does not count: a loading engine answers.
const START_LIMIT: Duration = Duration::from_secs(30);
/// Longest silence on a control connection: a loading engine answers only between two values.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two looks at a process that starts.
const POLL: Duration = Duration::from_millis(2);
/// The settings are written before the child exists: they must fit into the pipe at once.
const SETTINGS_BYTES_MAX: usize = 16 * 1024;

/// What survives a restart of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Persistence {
    /// Nothing: a restart is empty.
    None,
    /// Snapshots at the engine's usual save points.
    Rdb,
    /// Append-only file, synced every second.
    Aof,
}

/// As whom clients come in.
#[derive(Debug, Clone, Default)]
pub struct Clients {
    /// Their ACL user; `None`: the default one. With another the default one is off.
    pub user: Option<String>,
    /// Its password; `None`: they need none.
    pub password: Option<Secret>,
}

/// What the names of our own users begin with.
pub const OWN_USERS: &str = ADMIN_USER;

/// The users as whom clients come in, or could.
///
/// # Errors
/// As [`Node::command`].
pub(crate) fn client_users(node: &mut Node) -> Result<Vec<String>, Error> {
    let Reply::Array(users) = node.run(&["ACL", "USERS"])? else {
        let context = format!("{}: no answer to ACL USERS", node.label());
        return Err(Error::new(Kind::Protocol, "ask for users", context));
    };
    let names = users.iter().filter_map(Reply::text);
    Ok(names.filter(|name| !name.starts_with(OWN_USERS)).collect())
}

/// Everything that a process of a generation is started with.
#[derive(Debug, Clone)]
pub struct EngineSpec {
    /// The server program: see [`programs`].
    pub program: Program,
    /// The generation's directory. Created when missing; its parents are the caller's.
    pub directory: PathBuf,
    /// User and group to run as; `None` keeps ours.
    pub run_as: Option<(u32, u32)>,
    /// Addresses for clients, separated by spaces.
    pub bind: String,
    /// Port for clients; 0 = none yet.
    pub port: u16,
    /// Password of the user `cachekeep`. Must be long and random: clients may read its hash.
    pub admin_password: Secret,
    /// As whom clients come in.
    pub clients: Clients,
    /// The engine's `maxmemory`; 0 = no limit.
    pub max_memory_bytes: u64,
    /// What survives a restart.
    pub persistence: Persistence,
    /// With one, whoever connects by TCP speaks TLS: clients, replicas, other nodes. `None`: nobody does.
    pub certificate: Option<Certificate>,
    /// As a node of a cluster it is found here by the others; `None`: it is of none.
    pub cluster: Option<Seat>,
    /// As a primary or replica that Sentinels watch it is found here; `None`: nobody watches it.
    pub watched: Option<Watched>,
}

/// A handle on one process. Dropping it does nothing to the process.
#[derive(Debug, Clone)]
pub struct Engine {
    process: Process,
    directory: PathBuf,
    admin_password: Secret,
}

/// Starts the engine that serves clients.
///
/// Returns when its control socket answers and it holds its port; a big data set may still be loading
/// ([`Engine::wait_loaded`]). The port is taken after the start, so a crash of ours in between leaves an engine with
/// port 0, which [`find`] finds. An engine that cannot change its port ([`Program::has_fixed_port`]) opens it by itself before
/// it loads.
///
/// # Errors
/// [`Kind::PortTaken`]; [`Kind::EngineExited`] with the end of its log where it refuses its files;
/// [`Kind::EngineStart`], also where an engine lives in the directory already; [`Kind::Io`]. No process of ours is left; a directory that was created stays.
pub fn start(spec: &EngineSpec) -> Result<Engine, Error> {
    launch(spec, settings::Role::Serving)
}

/// Starts an engine that loads what [`sideload::place`](crate::sideload::place) put into its directory, to be
/// verified before anybody uses it.
///
/// It is a replica of an address that nothing can ever listen at; as a node of a cluster, of a primary there that has
/// its slots. So nothing expires, neither while it loads nor
/// afterwards, and what it holds can be compared with the backup exactly; nobody can write; the memory limit does
/// not apply. `spec.port` is left alone. [`Engine::promote`] ends this.
///
/// # Errors
/// As [`start`].
pub fn start_standby(spec: &EngineSpec) -> Result<Engine, Error> {
    launch(spec, settings::Role::Standby)
}

/// Starts a Sentinel. What it watches it knows from its file: nothing at its first start.
///
/// # Errors
/// As [`start`]. A port that is taken is [`Kind::EngineExited`]: a Sentinel opens it by itself.
pub fn start_sentinel(spec: &SentinelSpec) -> Result<Engine, Error> {
    create_directory(&spec.directory, spec.run_as)?;
    sentinel::prepare(spec)?;
    failpoint::hit("process.before_spawn")?;
    // Its script runs this very program, whatever becomes of its file: see `sentinel::SCRIPT`.
    let program = std::fs::File::open(&spec.program).map_err(|e| {
        let context = spec.program.display().to_string();
        Error::io(Kind::EngineStart, "start sentinel", context, e)
    })?;
    let process = execute(
        &spec.binary,
        &spec.directory,
        spec.run_as,
        &[sentinel::SETTINGS_PATH, "--sentinel"],
        program.into(),
    )?;
    let engine = Engine {
        process,
        directory: spec.directory.clone(),
        admin_password: spec.admin_password.clone(),
    };
    match engine.wait_for_socket() {
        Ok(()) => Ok(engine),
        Err(error) => {
            engine.kill()?;
            Err(error)
        }
    }
}

fn launch(spec: &EngineSpec, role: settings::Role) -> Result<Engine, Error> {
    failpoint::hit("process.before_spawn")?;
    let process = spawn(spec, role)?;
    let engine = Engine {
        process,
        directory: spec.directory.clone(),
        admin_password: spec.admin_password.clone(),
    };
    let ready = || {
        failpoint::hit("process.after_spawn")?;
        engine.wait_for_socket()?;
        if role == settings::Role::Serving && spec.port != 0 && !spec.program.has_fixed_port() {
            engine.set_port(spec.port)?;
        }
        failpoint::hit("process.after_ready")
    };
    match ready() {
        Ok(()) => Ok(engine),
        Err(error) => {
            engine.kill()?;
            // It opens its port by itself before all else.
            let is_taken =
                error.kind == Kind::EngineExited && error.context.contains("Failed listening on port");
            match is_taken {
                true => Err(Error::new(Kind::PortTaken, error.operation, error.context)),
                false => Err(error),
            }
        }
    }
}

fn spawn(spec: &EngineSpec, role: settings::Role) -> Result<Process, Error> {
    let failed = |what: &str, e: std::io::Error| {
        Error::io(
            Kind::EngineStart,
            "start engine",
            format!(
                "{} in {}: {what}",
                spec.program.binary.display(),
                spec.directory.display()
            ),
            e,
        )
    };
    let settings = settings::text(spec, role)?;
    assert!(settings.len() <= SETTINGS_BYTES_MAX, "settings outgrew the pipe");
    create_directory(&spec.directory, spec.run_as)?;
    if let Some(certificate) = &spec.certificate {
        certificate::write(&spec.directory, certificate, spec.run_as)?;
    }
    let nodes = spec.directory.join(cluster::NODES);
    if let Some(seat) = spec.cluster.as_ref().filter(|seat| !seat.peers.is_empty())
        && !nodes.exists()
    {
        let is_standby = role == settings::Role::Standby;
        std::fs::write(&nodes, cluster::settings_of(seat, is_standby))
            .map_err(|e| failed("write what it knows of its cluster", e))?;
        give(&nodes, spec.run_as)?;
    }
    // Whole settings or none: the child finds them in the pipe, however early we die.
    let (stdin, mut into_stdin) = std::io::pipe().map_err(|e| failed("make pipe", e))?;
    into_stdin
        .write_all(settings.as_bytes())
        .map_err(|e| failed("write settings", e))?;
    drop(into_stdin);
    execute(
        &spec.program.binary,
        &spec.directory,
        spec.run_as,
        &["-"],
        stdin.into(),
    )
}

/// Runs an engine's program in a directory where no other lives.
fn execute(
    binary: &Path,
    home: &Path,
    run_as: Option<(u32, u32)>,
    words: &[&str],
    stdin: Stdio,
) -> Result<Process, Error> {
    let failed = |what: &str, e: std::io::Error| {
        let context = format!("{} in {}: {what}", binary.display(), home.display());
        Error::io(Kind::EngineStart, "start engine", context, e)
    };
    if let Some(pid) = inhabitant(home)? {
        let context = format!("process {pid} lives in {} already", home.display());
        return Err(Error::new(Kind::EngineStart, "start engine", context));
    }
    // The directory is opened by us and entered through the descriptor: the engine's user need not be able to pass
    // through its parents. `/proc/self` is the child when this is resolved.
    let directory = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags((rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::NOFOLLOW).bits() as i32)
        .open(home)
        .map_err(|e| failed("open directory", e))?;

    let mut command = Command::new(binary);
    command
        // The name by which the process is recognised, whatever the program file is called.
        .arg0("redis-server")
        .args(words)
        .current_dir(format!("/proc/self/fd/{}", directory.as_raw_fd()))
        .env_clear()
        .stdin(stdin)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0);
    if let Some((uid, gid)) = run_as {
        command.uid(uid).gid(gid);
    }
    let mut child = command.spawn().map_err(|e| failed("spawn", e))?;
    let process = table::process(child.id());
    // Reaps the child, whenever it ends: otherwise it would stay a zombie for as long as we live.
    let reaper = std::thread::Builder::new()
        .name("engine-reaper".to_owned())
        .stack_size(64 * 1024)
        .spawn(move || child.wait());
    if let Err(e) = reaper {
        tracing::warn!(error = %e, "no thread to reap an engine: it will be a zombie when it ends");
    }
    process.ok_or_else(|| {
        Error::new(
            Kind::EngineStart,
            "start engine",
            format!("{} ended at once", binary.display()),
        )
    })
}

/// Makes the directory with mode 0700 for the engine's user; one that exists is left as it is.
pub(crate) fn create_directory(directory: &Path, run_as: Option<(u32, u32)>) -> Result<(), Error> {
    let failed = |e| Error::io(Kind::Io, "create directory", directory.display().to_string(), e);
    match std::fs::DirBuilder::new().mode(0o700).create(directory) {
        Ok(()) => {}
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => return Ok(()),
        Err(e) => return Err(failed(e)),
    }
    give(directory, run_as)
}

/// Hands a file or directory to the engine's user.
pub(crate) fn give(path: &Path, run_as: Option<(u32, u32)>) -> Result<(), Error> {
    match run_as {
        None => Ok(()),
        Some((uid, gid)) => std::os::unix::fs::lchown(path, Some(uid), Some(gid))
            .map_err(|e| Error::io(Kind::Io, "change owner", path.display().to_string(), e)),
    }
}

/// The live engine whose working directory is `directory`, also where that was deleted under it.
///
/// The password is not tried: [`Engine::control`] fails with [`Kind::Auth`] where it is wrong.
///
/// # Errors
/// [`Kind::Io`] where `/proc` cannot be read.
pub fn find(directory: &Path, admin_password: &Secret) -> Result<Option<Engine>, Error> {
    table::readable()?;
    Ok(table::oldest_in(directory).map(|process| Engine {
        process,
        directory: directory.to_owned(),
        admin_password: admin_password.clone(),
    }))
}

/// The process that lives in this directory.
///
/// # Errors
/// As [`find`].
pub(crate) fn inhabitant(directory: &Path) -> Result<Option<u32>, Error> {
    table::readable()?;
    Ok(table::oldest_in(directory).map(|process| process.pid))
}

/// Every engine process whose working directory lies below `root`, with that directory (as it was called where it
/// was deleted meanwhile). Whose they are is the caller's to know.
pub fn find_orphans(root: &Path) -> Vec<(u32, PathBuf)> {
    let root = root.canonicalize().unwrap_or_else(|_gone| root.to_owned());
    table::living_below(&root)
        .into_iter()
        .map(|(process, directory)| (process.pid, directory))
        .collect()
}

impl Engine {
    /// The process id.
    pub fn pid(&self) -> u32 {
        self.process.pid
    }

    /// Names this very process and no later one with its id, until the machine starts anew.
    pub fn identity(&self) -> String {
        format!("{}:{}", self.process.pid, self.process.start_ticks)
    }

    /// The generation's directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whether this very process still runs: an id that was given to another process does not count, nor does a
    /// zombie.
    pub fn is_alive(&self) -> bool {
        table::process(self.process.pid).is_some_and(|now| now == self.process)
    }

    /// How the control plane reaches it.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint {
            address: Address::Unix(self.directory.join(SOCKET)),
            user: Some(ADMIN_USER.to_owned()),
            password: Some(self.admin_password.clone()),
            tls: None,
            timeout: CONTROL_TIMEOUT,
        }
    }

    /// A new control connection.
    ///
    /// # Errors
    /// [`Kind::EngineExited`] with the end of the log where the process is gone; else as [`Node::connect`].
    pub fn control(&self) -> Result<Node, Error> {
        Node::connect(&self.endpoint()).map_err(|e| self.explain(e))
    }

    /// As [`Engine::control`], for who cannot wait: each silence may last for `limit`.
    ///
    /// # Errors
    /// [`Kind::Idle`] where it lives and says nothing; as [`Engine::control`].
    pub fn control_within(&self, limit: Duration) -> Result<Node, Error> {
        let mut endpoint = self.endpoint();
        endpoint.timeout = limit;
        Node::connect(&endpoint).map_err(|e| self.explain(e))
    }

    /// Waits until the control socket answers.
    fn wait_for_socket(&self) -> Result<(), Error> {
        let limit = Instant::now() + START_LIMIT;
        loop {
            let refusal = match Node::connect(&self.endpoint()) {
                Ok(_) => return Ok(()),
                Err(e) => e,
            };
            if !self.is_alive() {
                return Err(self.exited("start engine").because(refusal));
            }
            let hopeless = match refusal.kind {
                Kind::Auth => Some("it refuses our password"),
                _ if Instant::now() >= limit => Some("it did not answer in 30 s"),
                _ => None,
            };
            if let Some(what) = hopeless {
                let context = format!("{}: {what}: {}", self.directory.display(), self.last_words());
                return Err(Error::new(Kind::EngineStart, "start engine", context).because(refusal));
            }
            std::thread::sleep(POLL);
        }
    }

    /// Replaces an error of a connection by what really happened where the process is gone.
    pub(crate) fn explain(&self, error: Error) -> Error {
        let broken = matches!(error.kind, Kind::Connection | Kind::Idle | Kind::Protocol);
        if !broken || !self.gone_soon() {
            return error;
        }
        self.exited(error.operation).because(error)
    }

    /// The error for a process that is gone. One that never came to log anything could not be started.
    fn exited(&self, operation: &'static str) -> Error {
        let last_words = self.last_words();
        let kind = if last_words.is_empty() {
            Kind::EngineStart
        } else {
            Kind::EngineExited
        };
        let how = match self.said_why() {
            true => "ended; its log says",
            false => {
                "was killed, by somebody or by the kernel for want of memory (dmesg tells); before, its log says"
            }
        };
        let context = format!(
            "process {} in {} {how}: {last_words}",
            self.process.pid,
            self.directory.display()
        );
        Error::new(kind, operation, context)
    }

    /// A connection breaks a moment before its process is gone: waits a little for the truth.
    fn gone_soon(&self) -> bool {
        self.wait_gone(Duration::from_millis(200))
    }
}
