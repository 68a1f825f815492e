//! A cachekeep of our own: free port, data in a scratch folder, gone with its engines on drop.

use std::fs::File;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::scratch::Scratch;
use crate::setup::{run_visibly, service_program};
use crate::{Stop, setup};

/// How long the service may take until it answers.
const START_MAX: Duration = Duration::from_secs(60);

/// How long it may take to end when asked.
const END_MAX: Duration = Duration::from_secs(20);

/// The two schemes the service speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Plain.
    Http,
    /// With a self-signed certificate.
    Https,
}

impl Scheme {
    /// As in a URL.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// The service, running or between two runs.
pub struct Service {
    child: Option<Child>,
    scheme: Scheme,
    settings: Vec<String>,
    folder: Scratch,
}

impl Service {
    /// Starts the built service with further options of `cachekeep serve`.
    ///
    /// # Errors
    /// It does not start; the text holds the end of its log.
    pub fn start(scheme: Scheme, settings: &[&str]) -> Result<Self, Stop> {
        let folder = Scratch::new("service")?;
        if scheme == Scheme::Https {
            make_certificate(folder.path())?;
        }
        let settings = settings.iter().map(|word| (*word).to_owned()).collect();
        let mut service = Self {
            child: None,
            scheme,
            settings,
            folder,
        };
        service.run()?;
        Ok(service)
    }

    /// One with a copy of the data of another one that is not running; it is started by [`Service::run`].
    ///
    /// # Errors
    /// The data cannot be copied.
    pub fn beside(other: &Self, settings: &[&str]) -> Result<Self, Stop> {
        let folder = Scratch::new("service")?;
        crate::load::copy(&other.data_folder(), &folder.path().join("data"))?;
        Ok(Self {
            child: None,
            scheme: other.scheme,
            settings: settings.iter().map(|word| (*word).to_owned()).collect(),
            folder,
        })
    }

    /// Starts the service on the data it had.
    ///
    /// # Errors
    /// As [`Service::start`].
    pub fn run(&mut self) -> Result<(), Stop> {
        // From the run before: it names a port that is no longer ours.
        let _first_run_has_none = std::fs::remove_file(self.admin_file());
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log())
            .map_err(|e| Stop::file("open", &self.log(), &e))?;
        let errors = log.try_clone()?;
        let program = service_program();
        let mut command = Command::new(&program);
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(self.data_folder());
        if self.scheme == Scheme::Https {
            command
                .arg("--tls-cert")
                .arg(self.folder.path().join("certificate.pem"));
            command.arg("--tls-key").arg(self.folder.path().join("key.pem"));
        }
        let child = command
            .args(&self.settings)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .map_err(|e| Stop::file("start", &program, &e).advice("cargo build --release -p cachekeep"))?;
        self.child = Some(child);
        self.wait_until_it_answers()
    }

    /// Ends the service in order; its engines go on.
    ///
    /// # Errors
    /// It does not end, or not with exit code 0.
    pub fn end(&mut self) -> Result<(), Stop> {
        let Some(mut child) = self.child.take() else {
            return Ok(());
        };
        run_visibly(Command::new("kill").arg(child.id().to_string()))?;
        let asked = Instant::now();
        while asked.elapsed() < END_MAX {
            match child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(self.told(&format!("ended with {status}"))),
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        }
        child.kill()?;
        child.wait()?;
        Err(self.told("did not end when asked"))
    }

    /// Where the service keeps everything.
    pub fn data_folder(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The file that says how to reach it.
    pub fn admin_file(&self) -> PathBuf {
        self.data_folder().join("admin.json")
    }

    /// One entry of the admin file.
    ///
    /// # Errors
    /// The file or the entry is missing.
    pub fn admin(&self, name: &str) -> Result<String, Stop> {
        let path = self.admin_file();
        let text = std::fs::read(&path).map_err(|e| Stop::file("read", &path, &e))?;
        let values: Value =
            serde_json::from_slice(&text).map_err(|e| Stop::new(format!("{}: {e}", path.display())))?;
        let value = values.get(name).and_then(Value::as_str);
        value
            .map(str::to_owned)
            .ok_or_else(|| Stop::new(format!("{} has no {name}", path.display())))
    }

    /// Checks that the service still runs.
    ///
    /// # Errors
    /// It has ended; the text holds the end of its log.
    pub fn check_alive(&mut self) -> Result<(), Stop> {
        match self.child.as_mut().map(Child::try_wait) {
            Some(Ok(None)) => Ok(()),
            _ => Err(self.told("is gone")),
        }
    }

    /// The process, while it runs.
    pub fn process_id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// The failure with the end of the service's log.
    pub fn told(&self, what: &str) -> Stop {
        let text = std::fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let end = lines[lines.len().saturating_sub(15)..].join("\n    ");
        Stop::new(format!("cachekeep {what}; its log ends:\n    {end}"))
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn wait_until_it_answers(&mut self) -> Result<(), Stop> {
        let started = Instant::now();
        while started.elapsed() < START_MAX {
            self.check_alive()?;
            if let Ok(endpoint) = self.admin("endpoint")
                && let Some((_, address)) = endpoint.split_once("://")
                && TcpStream::connect(address).is_ok()
            {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Err(self.told("did not answer in time"))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _already_gone = child.kill();
            let _reaped = child.wait();
        }
        // Engines survive their service by design, so they are found by the folder they work in.
        for engine in processes_in(&self.data_folder()) {
            let _already_gone = Command::new("kill").args(["-9", &engine.to_string()]).status();
        }
        let gone_by = Instant::now() + END_MAX;
        while !processes_in(&self.data_folder()).is_empty() && Instant::now() < gone_by {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Processes whose working folder lies in this one.
pub fn processes_in(folder: &Path) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let works_there = |id: &u32| {
        let place = std::fs::read_link(format!("/proc/{id}/cwd"));
        place.is_ok_and(|place| place.starts_with(folder))
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(works_there)
        .collect()
}

fn make_certificate(folder: &Path) -> Result<(), Stop> {
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
        ])
        .args(["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"])
        .arg("-keyout")
        .arg(folder.join("key.pem"))
        .arg("-out")
        .arg(folder.join("certificate.pem"))
        .output()
        .map_err(|e| Stop::new(format!("cannot start openssl: {e}")).advice("cargo xtask setup test"))?;
    if made.status.success() {
        Ok(())
    } else {
        Err(Stop::new(format!(
            "openssl: {}",
            String::from_utf8_lossy(&made.stderr)
        )))
    }
}

/// Checks that the built service is there.
///
/// # Errors
/// It is not built yet.
pub fn check_built() -> Result<(), Stop> {
    let program = setup::service_program();
    if program.is_file() {
        return Ok(());
    }
    Err(Stop::new(format!("{} is missing", program.display())).advice("cargo build --release -p cachekeep"))
}
