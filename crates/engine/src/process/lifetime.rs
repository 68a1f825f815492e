//! What is done with an engine while it lives, and how it ends.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal};

use crate::cluster;
use crate::control::Control;
use crate::error::{Error, Kind, chain};
use crate::failpoint;
use crate::node::{Node, Reply};
use crate::sideload;
use crate::switch::Door;

use super::{Clients, Engine, LOG, client_users, settings, table};

/// Most of the log that is looked at for its last lines.
const LOG_TAIL_BYTES: u64 = 64 * 1024;
/// Lines of the log that go into a message.
const LAST_WORDS: usize = 5;
/// Longest wait between two looks at a loading engine: progress moves far more often than each second.
const LOAD_POLL_MAX: Duration = Duration::from_millis(20);
/// A process that was killed is gone after this, unless the kernel itself is stuck.
const KILL_LIMIT: Duration = Duration::from_secs(30);
/// From the end of an engine's connections to the end of its process.
const END_LIMIT: Duration = Duration::from_secs(5);
/// Between two looks at a process that ends.
const END_POLL: Duration = Duration::from_millis(1);

/// What [`Engine::vitals`] saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vitals {
    /// The port that clients reach it at; 0 = none.
    pub port: u16,
    /// `used_memory`.
    pub used_memory_bytes: u64,
}

impl Engine {
    /// Waits until the engine has loaded its files; progress goes to the control's bytes.
    ///
    /// # Errors
    /// [`Kind::EngineExited`] with the end of the log where it dies: that is how an engine refuses a file.
    /// [`Kind::Cancelled`] and [`Kind::Deadline`] leave it running.
    pub fn wait_loaded(&self, control: &Control) -> Result<(), Error> {
        let mut node = None;
        let mut pause = END_POLL;
        loop {
            control.check("load")?;
            let connected = match node.take() {
                Some(node) => Ok(node),
                None => Node::connect(&self.endpoint()),
            };
            let asked = connected.and_then(|mut connected| {
                let fields = connected.info("persistence")?;
                node = Some(connected);
                Ok(fields)
            });
            match asked {
                Ok(fields) => {
                    let number = |name: &str| -> u64 {
                        fields
                            .iter()
                            .find(|(field, _)| field == name)
                            .and_then(|(_, value)| value.parse().ok())
                            .unwrap_or(0)
                    };
                    if number("loading") == 0 {
                        let total = control.bytes_total.load(Ordering::Relaxed);
                        control.bytes_done.store(total, Ordering::Relaxed);
                        return Ok(());
                    }
                    control
                        .bytes_total
                        .store(number("loading_total_bytes"), Ordering::Relaxed);
                    control
                        .bytes_done
                        .store(number("loading_loaded_bytes"), Ordering::Relaxed);
                }
                // One huge value can keep it silent for longer than any time-out.
                Err(e) if e.kind == Kind::Idle && self.is_alive() => {}
                Err(e) => return Err(self.explain(e)),
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LOAD_POLL_MAX);
        }
    }

    /// Makes a standby ([`super::start_standby`]) an engine that can serve: a primary, keys expire, the memory limit
    /// holds. May be repeated.
    ///
    /// # Errors
    /// As [`Node::command`]; [`Kind::EngineExited`].
    pub fn promote(&self, max_memory_bytes: u64) -> Result<(), Error> {
        let mut node = self.control()?;
        let mut promoted = || {
            node.config_set("maxmemory", &max_memory_bytes.to_string())?;
            failpoint::hit("promote.after_limit")?;
            match is_of_cluster(&mut node)? {
                true => cluster::succeed_nobody(&mut node)?,
                false => node.run(&["REPLICAOF", "NO", "ONE"]).map(drop)?,
            }
            failpoint::hit("promote.after_primary")?;
            node.run(&["DEBUG", "SET-ACTIVE-EXPIRE", "1"])?;
            failpoint::hit("promote.after_expire")
        };
        promoted().map_err(|e| self.explain(e))
    }

    /// Makes it a replica of the primary at this address and port, or nobody's.
    ///
    /// # Errors
    /// As [`Node::command`]; [`Kind::EngineExited`].
    pub fn follow(&self, primary: Option<(&str, u16)>) -> Result<(), Error> {
        let port = primary.map_or_else(|| "ONE".to_owned(), |(_, port)| port.to_string());
        let address = primary.map_or("NO", |(address, _)| address);
        self.control()?
            .run(&["REPLICAOF", address, &port])
            .map(drop)
            .map_err(|e| self.explain(e))
    }

    /// From here on Sentinels may promote it. Only for one that has been in sync since its start: an empty one that never
    /// was would be as good to them.
    ///
    /// # Errors
    /// As [`Node::command`]; [`Kind::EngineExited`].
    pub fn make_electable(&self) -> Result<(), Error> {
        let mut node = self.control()?;
        let mut set = || {
            // Whatever it follows one day is checked in depth, by engines that leave that to us: Valkey has no such setting
            // since 9.1.
            if node.config_get("sanitize-dump-payload")?.is_some() {
                node.config_set("sanitize-dump-payload", "yes")?;
            }
            node.config_set("replica-priority", "100")
        };
        set().map_err(|e| self.explain(e))
    }

    /// Removes the file that an engine without persistence was loaded from: its next start would load it again,
    /// however old it is by then. Not before the engine serves for good: until then the file is all there is if it dies.
    ///
    /// # Errors
    /// [`Kind::Io`].
    pub fn forget_snapshot(&self) -> Result<(), Error> {
        sideload::forget_snapshot(&self.directory)
    }

    /// Sets the engine's `maxmemory`; 0 = no limit.
    ///
    /// # Errors
    /// As [`Node::command`]; [`Kind::EngineExited`].
    pub fn set_max_memory(&self, bytes: u64) -> Result<(), Error> {
        self.control()?
            .config_set("maxmemory", &bytes.to_string())
            .map_err(|e| self.explain(e))
    }

    /// Lets clients in, and changes what new connections of theirs need; those that are open stay.
    ///
    /// # Errors
    /// As [`Node::command`]; [`Kind::EngineExited`].
    pub fn let_clients_in(&self, clients: &Clients) -> Result<(), Error> {
        let rule = settings::password_rule(clients.password.as_ref());
        // `resetpass` also takes `nopass` away.
        self.control()?
            .run(&[
                "ACL",
                "SETUSER",
                settings::user(clients),
                "on",
                "resetpass",
                &rule,
            ])
            .map(drop)
            .map_err(|e| self.explain(e))
    }

    /// Lets no client in at whatever port: its replicas alone reach it. [`Engine::let_clients_in`] ends this.
    ///
    /// # Errors
    /// As [`Node::command`]; [`Kind::EngineExited`].
    pub fn shut_clients_out(&self) -> Result<(), Error> {
        let mut node = self.control()?;
        let mut shut = || {
            for user in client_users(&mut node)? {
                node.run(&["ACL", "SETUSER", &user, "off"])?;
            }
            Ok(())
        };
        shut().map_err(|e| self.explain(e))
    }

    /// Whether it is nobody's replica, or why there was no answer in `limit`.
    ///
    /// # Errors
    /// [`Kind::Idle`] where it lives and says nothing; as [`Node::command`]; [`Kind::EngineExited`].
    pub fn is_primary(&self, limit: Duration) -> Result<bool, Error> {
        let mut node = self.control_within(limit)?;
        let reply = node.run(&["ROLE"]).map_err(|e| self.explain(e))?;
        let role = match &reply {
            Reply::Array(words) => words.first().and_then(Reply::text),
            _ => None,
        };
        Ok(role.as_deref() == Some("master"))
    }

    /// Removes every key of every db. The memory is given back in the background.
    ///
    /// # Errors
    /// As [`Node::command`]; [`Kind::EngineExited`].
    pub fn flush_all(&self) -> Result<(), Error> {
        self.control()?
            .run(&["FLUSHALL", "ASYNC"])
            .map(drop)
            .map_err(|e| self.explain(e))
    }

    /// The engine's `used_memory` in bytes.
    ///
    /// # Errors
    /// As [`Node::command`]; [`Kind::Protocol`] where it does not say; [`Kind::EngineExited`].
    pub fn used_memory(&self) -> Result<u64, Error> {
        used_memory_of(&mut self.control()?).map_err(|e| self.explain(e))
    }

    /// A glance at an engine that may be busy with something long: port and memory, or why there was no answer in
    /// `limit`.
    ///
    /// # Errors
    /// [`Kind::Idle`] where it lives and says nothing; as [`Node::command`]; [`Kind::EngineExited`].
    pub fn vitals(&self, limit: Duration) -> Result<Vitals, Error> {
        let mut endpoint = self.endpoint();
        endpoint.timeout = limit;
        let look = || {
            let mut node = Node::connect(&endpoint)?;
            Ok(Vitals {
                used_memory_bytes: used_memory_of(&mut node)?,
                port: port_of(&mut node)?,
            })
        };
        look().map_err(|e| self.explain(e))
    }

    /// The port that clients reach it at; 0 = none.
    ///
    /// # Errors
    /// As [`Node::command`]; [`Kind::EngineExited`].
    pub fn current_port(&self) -> Result<u16, Error> {
        port_of(&mut self.control()?).map_err(|e| self.explain(e))
    }

    /// Whether clients come in.
    ///
    /// # Errors
    /// As [`Node::command`]; [`Kind::EngineExited`].
    pub fn lets_in(&self, door: &Door) -> Result<bool, Error> {
        door.is_open(&mut self.control()?).map_err(|e| self.explain(e))
    }

    /// Moves the clients' port; 0 closes it. Open connections stay.
    ///
    /// # Errors
    /// [`Kind::PortTaken`]: the port that it had before stays. As [`Node::command`]; [`Kind::EngineExited`].
    pub fn set_port(&self, port: u16) -> Result<(), Error> {
        take_port(&mut self.control()?, port).map_err(|e| self.explain(e))
    }

    /// Ends the process: asks, then `SIGKILL`. Returns only when it is gone; one that is gone already is fine.
    ///
    /// A last snapshot is skipped (an append-only file holds what it holds): see [`Engine::stop_saved`] for the
    /// contrary. `limit` is for the polite step.
    ///
    /// # Errors
    /// [`Kind::Idle`] where even the kernel does not end it; [`Kind::Io`] where we may not signal it.
    pub fn stop(&self, limit: Duration) -> Result<(), Error> {
        failpoint::hit("process.before_stop")?;
        let asked = self.ask_to_shut_down(limit / 2);
        let polite = asked.is_ok() && self.wait_gone(limit / 2);
        if !polite && self.is_alive() {
            if let Err(e) = asked {
                tracing::warn!(pid = self.pid(), error = %chain(&e), "engine does not shut down when asked");
            }
            self.kill()?;
        }
        failpoint::hit("process.after_stop")
    }

    /// Ends the process with all its data on disk, whatever its persistence: in the append-only file where it has one,
    /// else in a snapshot. One that is gone already is fine. It is asked and never signalled, so where it cannot save
    /// it goes on serving.
    ///
    /// # Errors
    /// [`Kind::Refused`] where it could not save and serves on; [`Kind::Idle`] where it was not done within `limit`,
    /// and may end later; [`Kind::EngineExited`] where it died before its snapshot was whole. The kinds of a broken
    /// connection.
    pub fn stop_saved(&self, limit: Duration) -> Result<(), Error> {
        failpoint::hit("process.before_stop")?;
        if self.is_alive() {
            self.save_and_shut_down(limit)?;
        }
        failpoint::hit("process.after_stop")
    }

    /// Ends the process at once (`SIGKILL`), with the children that it forked, and waits until it is gone. A child may
    /// end a moment later.
    ///
    /// # Errors
    /// As [`Engine::stop`].
    pub fn kill(&self) -> Result<(), Error> {
        if table::leads_group(self.process) {
            // The engine itself is signalled below in any case, so what this came to does not matter.
            let _gone = rustix::process::kill_process_group(self.raw_pid(), Signal::KILL);
        }
        self.signal(Signal::KILL)?;
        if self.wait_gone(KILL_LIMIT) {
            return Ok(());
        }
        let context = format!("process {} does not end on SIGKILL", self.pid());
        Err(Error::new(Kind::Idle, "end engine", context))
    }

    /// The last lines of its log, joined by ` | `; empty where there is none.
    pub fn log_tail(&self, lines: usize) -> String {
        let log = read_log_end(&self.directory);
        let mut last: Vec<&str> = log
            .lines()
            .rev()
            .filter(|line| !line.trim().is_empty())
            .take(lines)
            .collect();
        last.reverse();
        last.join(" | ")
    }

    /// What this process itself said last of importance, for messages; empty where it never logged.
    pub(super) fn last_words(&self) -> String {
        let log = read_log_end(&self.directory);
        let own = format!("{}:", self.process.pid);
        let spoken: Vec<&str> = log.lines().filter(|line| line.starts_with(&own)).collect();
        // Level `#` is a warning or worse; those in capitals are about the machine and come at each start.
        let grave = |line: &&&str| line.contains(" # ") && !line.contains(" # WARNING");
        let mut words: Vec<&str> = spoken
            .iter()
            .rev()
            .filter(grave)
            .take(LAST_WORDS)
            .copied()
            .collect();
        if words.is_empty() {
            words = spoken.iter().rev().take(LAST_WORDS).copied().collect();
        }
        words.reverse();
        words.join(" | ")
    }

    /// Whether it came to say why it ended: an engine that ends by itself does so at level `#`.
    pub(super) fn said_why(&self) -> bool {
        let own = format!("{}:", self.process.pid);
        read_log_end(&self.directory)
            .lines()
            .rfind(|line| line.starts_with(&own))
            .is_none_or(|line| line.contains(" # "))
    }

    /// Whether the process is gone, waiting up to `limit` for it.
    pub(super) fn wait_gone(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        while self.is_alive() {
            if Instant::now() >= until {
                return false;
            }
            std::thread::sleep(END_POLL);
        }
        true
    }

    fn ask_to_shut_down(&self, limit: Duration) -> Result<(), Error> {
        if !self.is_alive() {
            return Ok(());
        }
        let mut endpoint = self.endpoint();
        endpoint.timeout = limit.max(Duration::from_millis(1));
        let mut node = Node::connect(&endpoint)?;
        // NOW: not held up by a replica that lags, as a backup in progress is one.
        shut_down(&mut node, &[b"SHUTDOWN", b"NOSAVE", b"NOW"])
    }

    fn save_and_shut_down(&self, limit: Duration) -> Result<(), Error> {
        let until = Instant::now() + limit;
        let refused = |why: &str| Error::new(Kind::Refused, "save and shut down engine", why.to_owned());
        let mut node = self.control()?;
        let appends = node.config_get("appendonly")?.as_deref() == Some("yes");
        let snapshot = sideload::snapshot_identity(&self.directory);
        if appends {
            // A shutdown does not fail where the last write to the file did.
            let fields = node.info("persistence")?;
            let written = fields
                .iter()
                .any(|(name, value)| name == "aof_last_write_status" && value == "ok");
            if !written {
                return Err(refused("its append-only file cannot be written"));
            }
        }
        node.set_timeout(limit.max(Duration::from_millis(1)))?;
        let words: &[&[u8]] = if appends {
            &[b"SHUTDOWN", b"NOW"]
        } else {
            &[b"SHUTDOWN", b"SAVE", b"NOW"]
        };
        shut_down(&mut node, words)?;
        if !self.wait_gone(until.saturating_duration_since(Instant::now()).max(END_LIMIT)) {
            let context = format!("process {} closed its connections and did not end", self.pid());
            return Err(Error::new(Kind::Idle, "save and shut down engine", context));
        }
        // A snapshot is written to a file of its own and then renamed. The connection ends in the same way where the
        // process died while it wrote.
        if !appends && sideload::snapshot_identity(&self.directory) == snapshot {
            return Err(self.exited("save and shut down engine"));
        }
        Ok(())
    }

    fn raw_pid(&self) -> Pid {
        match i32::try_from(self.process.pid).ok().and_then(Pid::from_raw) {
            Some(pid) => pid,
            None => unreachable!("process ids of the kernel are positive"),
        }
    }

    /// Signals this very process and no later one with its id.
    fn signal(&self, signal: Signal) -> Result<(), Error> {
        let pid = self.raw_pid();
        let sent = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            // The descriptor stands for whichever process has the id now; the start time says whether that is ours.
            Ok(descriptor) if self.is_alive() => rustix::process::pidfd_send_signal(&descriptor, signal),
            Ok(_) => return Ok(()),
            Err(_) if !self.is_alive() => return Ok(()),
            // A sandbox without pidfd.
            Err(_) => rustix::process::kill_process(pid, signal),
        };
        match sent {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(e) => {
                let context = format!("signal process {}", self.process.pid);
                Err(Error::io(Kind::Io, "end engine", context, e.into()))
            }
        }
    }
}

/// Sends `SHUTDOWN`, with `NOW` as its last word. Redis before 7.0 does not know that word and never waits.
fn shut_down(node: &mut Node, words: &[&[u8]]) -> Result<(), Error> {
    let asked = match node.ask(words) {
        Ok(Reply::Error(text)) if text.contains("syntax error") => node.ask(&words[..words.len() - 1]),
        asked => asked,
    };
    match asked {
        Ok(Reply::Error(text)) => Err(Error::new(Kind::Refused, "shut down engine", text)),
        // The reply of a success is the end of the connection.
        Err(e) if e.kind != Kind::Connection => Err(e),
        Ok(_) | Err(_) => Ok(()),
    }
}

fn used_memory_of(node: &mut Node) -> Result<u64, Error> {
    let fields = node.info("memory")?;
    fields
        .iter()
        .find(|(name, _)| name == "used_memory")
        .and_then(|(_, value)| value.parse().ok())
        .ok_or_else(|| Error::new(Kind::Protocol, "read used memory", "INFO memory does not say"))
}

/// Whether it is a node of a cluster.
///
/// # Errors
/// As [`Node::command`].
pub(crate) fn is_of_cluster(node: &mut Node) -> Result<bool, Error> {
    Ok(node.config_get("cluster-enabled")?.as_deref() == Some("yes"))
}

/// The setting of the port that clients come in at: an engine with a certificate has none but for TLS.
pub(crate) fn port_setting(node: &mut Node) -> Result<&'static str, Error> {
    let certificate = node.config_get("tls-cert-file")?;
    Ok(match certificate.is_some_and(|file| !file.is_empty()) {
        true => "tls-port",
        false => "port",
    })
}

/// The port of a node; 0 = none.
pub(crate) fn port_of(node: &mut Node) -> Result<u16, Error> {
    let setting = port_setting(node)?;
    node.config_get(setting)?
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| {
            Error::new(
                Kind::Protocol,
                "read port",
                format!("{} does not say", node.label()),
            )
        })
}

/// See [`Engine::set_port`].
pub(crate) fn take_port(node: &mut Node, port: u16) -> Result<(), Error> {
    let (setting, text) = (port_setting(node)?, port.to_string());
    match node.ask(&[b"CONFIG", b"SET", setting.as_bytes(), text.as_bytes()])? {
        Reply::Error(text) if text.contains("listen on this port") => Err(Error::new(
            Kind::PortTaken,
            "take port",
            format!(
                "port {port} cannot be opened, because another program has it or because it is below 1024 and the engine's user \
                 may not: choose another one ({}: {text})",
                node.label()
            ),
        )),
        Reply::Error(text) => Err(Error::new(
            Kind::Refused,
            "take port",
            format!("{}: port {port}: {text}", node.label()),
        )),
        _ => Ok(()),
    }
}

fn read_log_end(directory: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(directory.join(LOG))?;
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(len.saturating_sub(LOG_TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    // A log that cannot be read says nothing; the caller reports an error of its own.
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}
