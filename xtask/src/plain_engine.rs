//! A stock redis-server of our own, to compare with: on a Unix socket, in a folder of its own, gone on drop.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Stop;
use crate::resp::{Connection, Place, Target};
use crate::scratch::Scratch;

/// A running engine.
pub struct PlainEngine {
    child: Child,
    socket: PathBuf,
    /// From the start of the process to its first answer that it has loaded its data.
    pub ready_after: Duration,
    folder: Scratch,
}

impl PlainEngine {
    /// Starts an engine with these settings, each a name and a value as on its command line.
    ///
    /// # Errors
    /// It does not start; the text holds the end of its log.
    pub fn start(settings: &[(&str, &str)]) -> Result<Self, Stop> {
        Self::start_in(Scratch::new("engine")?, settings)
    }

    /// Starts an engine on a copy (a hard link where possible) of a dump file.
    ///
    /// # Errors
    /// As [`PlainEngine::start`].
    pub fn start_on(dump: &Path, settings: &[(&str, &str)]) -> Result<Self, Stop> {
        let folder = Scratch::new("engine")?;
        let place = folder.path().join("dump.rdb");
        if std::fs::hard_link(dump, &place).is_err() {
            std::fs::copy(dump, &place).map_err(|e| Stop::file("copy", dump, &e))?;
        }
        Self::start_in(folder, settings)
    }

    fn start_in(folder: Scratch, settings: &[(&str, &str)]) -> Result<Self, Stop> {
        let socket = folder.path().join("socket");
        let log = folder.path().join("log");
        let log_file = File::create(&log).map_err(|e| Stop::file("make", &log, &e))?;
        let started = Instant::now();
        let mut command = Command::new("redis-server");
        command
            .arg("--port")
            .arg("0")
            .arg("--unixsocket")
            .arg(&socket)
            .arg("--dir")
            .arg(folder.path());
        command.args(["--save", "", "--enable-debug-command", "yes"]);
        for (name, value) in settings {
            command.arg(format!("--{name}")).arg(value);
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(log_file)
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| {
                Stop::new(format!("cannot start redis-server: {e}")).advice("cargo xtask setup run")
            })?;
        let mut engine = Self {
            child,
            socket,
            ready_after: Duration::ZERO,
            folder,
        };
        engine.wait_until_ready(started, &log)?;
        Ok(engine)
    }

    /// How to reach it.
    pub fn target(&self) -> Target {
        Target {
            place: Place::Unix(self.socket.clone()),
            user: None,
            password: None,
        }
    }

    /// Path of its socket, for `redis-cli -s`.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its working folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The engine's own digest of all its data.
    ///
    /// # Errors
    /// The engine does not answer.
    pub fn digest(&self) -> Result<String, Stop> {
        let reply = Connection::open(&self.target())?.ask(&["DEBUG", "DIGEST"])?;
        Ok(reply.text().unwrap_or_default().to_owned())
    }

    fn wait_until_ready(&mut self, started: Instant, log: &Path) -> Result<(), Stop> {
        let told = |what: &str| {
            let text = std::fs::read_to_string(log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let end = lines[lines.len().saturating_sub(5)..].join("\n    ");
            Stop::new(format!("redis-server {what}; its log ends:\n    {end}"))
        };
        loop {
            if let Ok(mut connection) = Connection::open(&self.target())
                && connection.ask(&["DBSIZE"]).is_ok()
            {
                self.ready_after = started.elapsed();
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                return Err(told(&format!("ended at once ({status})")));
            }
            if started.elapsed() > Duration::from_secs(300) {
                return Err(told("was not ready after 5 minutes"));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for PlainEngine {
    fn drop(&mut self) {
        let _already_gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}
