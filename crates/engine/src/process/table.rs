//! The kernel's process table, as far as engines are concerned.
//!
//! An engine belongs to its working directory. The kernel shows that of another user's process only to who may trace
//! it: root in a container often may not. Then the control socket in the directory tells, for its peer is the process
//! that listens.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, Kind};
use crate::node::connect_unix;

use super::SOCKET;

/// First words of the command lines of engines. A process that we started calls itself `redis-server`.
const PROGRAMS: [&str; 2] = ["redis-server", "valkey-server"];

/// How far below a root a generation's directory is looked for.
const DEPTH_MAX: u32 = 5;

/// One process, told from a later one with the same id by its start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: u32,
    /// Clock ticks since boot.
    pub(super) start_ticks: u64,
}

/// The working directory of a process.
pub(super) struct Home {
    /// Its name, without the kernel's mark for a deleted one.
    pub(super) path: PathBuf,
    is_deleted: bool,
    /// Device and inode: the same directory under whatever name.
    identity: Option<(u64, u64)>,
}

struct Stat {
    process: Process,
    parent: u32,
    group: u32,
}

/// The live process with this id; a zombie is none.
pub(super) fn process(pid: u32) -> Option<Process> {
    stat(pid).map(|stat| stat.process)
}

/// Whether this very process lives and leads a process group: as every engine that we started, with the children that
/// it forks in it.
pub(super) fn leads_group(process: Process) -> bool {
    stat(process.pid).is_some_and(|stat| stat.process == process && stat.group == process.pid)
}

/// # Errors
/// [`Kind::Io`] where there is no usable `/proc`: then no engine could ever be found, which must not pass for "none
/// runs".
pub(super) fn readable() -> Result<(), Error> {
    match stat(std::process::id()) {
        Some(_) => Ok(()),
        None => Err(Error::new(
            Kind::Io,
            "read process table",
            "/proc does not show this process",
        )),
    }
}

/// Every engine process, oldest first, without the children that engines fork; with its working directory where the
/// kernel shows that.
fn engines() -> Vec<(Process, Option<Home>)> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let mut found: Vec<(Stat, Option<Home>)> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|&pid| is_engine(pid))
        .filter_map(|pid| Some((stat(pid)?, home(pid))))
        .collect();
    // A child that was forked for a snapshot bears its parent's name until it has given itself another one.
    let pids: Vec<u32> = found.iter().map(|(stat, _)| stat.process.pid).collect();
    found.retain(|(stat, _)| !pids.contains(&stat.parent));
    found.sort_by_key(|(stat, _)| stat.process.start_ticks);
    found
        .into_iter()
        .map(|(stat, home)| (stat.process, home))
        .collect()
}

/// Engines that were found, by the directory that was asked for.
static KNOWN: Mutex<BTreeMap<PathBuf, Process>> = Mutex::new(BTreeMap::new());
/// More are forgotten all at once: directories come and go with every restore.
const KNOWN_MAX: usize = 4096;

/// The oldest engine whose working directory this is. One that was found before and lives is the oldest still: it is looked at
/// alone, for whoever looks after many engines would read the whole table for each.
pub(super) fn oldest_in(directory: &Path) -> Option<Process> {
    let lock = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let known = lock().get(directory).copied();
    if let Some(known) = known
        && process(known.pid) == Some(known)
        && lives_in(known.pid, directory)
    {
        return Some(known);
    }
    let found = living_in(directory).into_iter().next();
    let mut all = lock();
    if all.len() >= KNOWN_MAX {
        all.clear();
    }
    match found {
        Some(process) => drop(all.insert(directory.to_owned(), process)),
        None => drop(all.remove(directory)),
    }
    found
}

fn lives_in(pid: u32, directory: &Path) -> bool {
    match home(pid) {
        Some(home) => home.is(identity(directory), &resolve(directory)),
        None => listener(directory) == Some(pid),
    }
}

fn identity(directory: &Path) -> Option<(u64, u64)> {
    let meta = std::fs::metadata(directory).ok()?;
    Some((meta.dev(), meta.ino()))
}

impl Home {
    /// Whether it is the directory that has this identity, or was called so before it was deleted.
    fn is(&self, identity: Option<(u64, u64)>, path: &Path) -> bool {
        (identity.is_some() && self.identity == identity) || (self.is_deleted && self.path == path)
    }
}

/// The engines whose working directory this is, oldest first.
fn living_in(directory: &Path) -> Vec<Process> {
    let (identity, path) = (identity(directory), resolve(directory));
    let engines = engines();
    let hidden = engines.iter().any(|(_, home)| home.is_none());
    let listener = if hidden { listener(directory) } else { None };
    engines
        .into_iter()
        .filter(|(process, home)| match home {
            Some(home) => home.is(identity, &path),
            None => listener == Some(process.pid),
        })
        .map(|(process, _)| process)
        .collect()
}

/// The engines whose working directory lies below `root`, which must be a name as the kernel shows it.
pub(super) fn living_below(root: &Path) -> Vec<(Process, PathBuf)> {
    let (shown, hidden): (Vec<_>, Vec<_>) = engines().into_iter().partition(|(_, home)| home.is_some());
    let mut found: Vec<(Process, PathBuf)> = shown
        .into_iter()
        .filter_map(|(process, home)| Some((process, home?.path)))
        .filter(|(_, path)| path.starts_with(root))
        .collect();
    if !hidden.is_empty() {
        for directory in directories_with_socket(root, DEPTH_MAX) {
            let pid = listener(&directory);
            let owner = hidden.iter().find(|(process, _)| pid == Some(process.pid));
            found.extend(owner.map(|(process, _)| (*process, directory)));
        }
    }
    found
}

/// The process that listens at the control socket of this directory.
fn listener(directory: &Path) -> Option<u32> {
    let stream = connect_unix(&directory.join(SOCKET)).ok()?;
    let peer = rustix::net::sockopt::socket_peercred(&stream).ok()?;
    u32::try_from(peer.pid.as_raw_nonzero().get()).ok()
}

fn directories_with_socket(root: &Path, depth: u32) -> Vec<PathBuf> {
    let mut found = Vec::new();
    if root.join(SOCKET).symlink_metadata().is_ok() {
        found.push(root.to_owned());
    }
    if depth == 0 {
        return found;
    }
    for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(directories_with_socket(&entry.path(), depth - 1));
        }
    }
    found
}

fn is_engine(pid: u32) -> bool {
    let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) else {
        return false;
    };
    is_line_of_engine(&line)
}

/// Of a command line as the kernel shows it: words that each end with a NUL.
fn is_line_of_engine(line: &[u8]) -> bool {
    let mut words = line.split(|&byte| byte == 0);
    let first = file_name(words.next().unwrap_or_default());
    // An engine rewrites its command line to "<program> <address>:<port>".
    let name = first.split(|&byte| byte == b' ').next().unwrap_or_default();
    let is_program = |name: &[u8]| PROGRAMS.iter().any(|known| known.as_bytes() == name);
    // A program beside a libc of its own is started by the loader of that, which stays the first word: the program is one
    // of those behind it, and the engine rewrites only what comes after.
    let is_loader = first.starts_with(b"ld-") && first.windows(3).any(|part| part == b".so");
    is_program(name) || (is_loader && words.any(|word| is_program(file_name(word))))
}

fn file_name(path: &[u8]) -> &[u8] {
    path.rsplit(|&byte| byte == b'/').next().unwrap_or_default()
}

fn home(pid: u32) -> Option<Home> {
    let link = PathBuf::from(format!("/proc/{pid}/cwd"));
    let shown = std::fs::read_link(&link).ok()?;
    let identity = std::fs::metadata(&link).ok().map(|meta| (meta.dev(), meta.ino()));
    let stripped = shown.to_str().and_then(|text| text.strip_suffix(" (deleted)"));
    Some(Home {
        is_deleted: stripped.is_some(),
        path: stripped.map_or_else(|| shown.clone(), PathBuf::from),
        identity,
    })
}

/// The name as the kernel would show it, also where the directory itself is gone.
fn resolve(directory: &Path) -> PathBuf {
    if let Ok(path) = directory.canonicalize() {
        return path;
    }
    let parent = directory.parent().and_then(|parent| parent.canonicalize().ok());
    match (parent, directory.file_name()) {
        (Some(parent), Some(name)) => parent.join(name),
        _ => std::path::absolute(directory).unwrap_or_else(|_unknown| directory.to_owned()),
    }
}

/// Source: proc_pid_stat(5); the name in parentheses may hold anything, so the fields are counted from its end.
fn stat(pid: u32) -> Option<Stat> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = text.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let group = fields.next()?.parse().ok()?;
    let start_ticks = fields.nth(16)?.parse().ok()?;
    let is_live = !matches!(state, "Z" | "X" | "x");
    is_live.then_some(Stat {
        process: Process { pid, start_ticks },
        parent,
        group,
    })
}

#[cfg(test)]
mod tests {
    use super::is_line_of_engine;

    #[test]
    fn engines_are_known_however_they_were_started_and_nothing_else_is() {
        for line in [
            &b"redis-server *:6379"[..],
            b"/usr/bin/valkey-server 127.0.0.1:7000 [cluster]\0\0",
            b"redis-server\0-\0",
            b"/x/ld-linux-x86-64.so.2\0--library-path\0/x\0--argv0\0valkey-serve\0/x/usr/bin/valkey-server\0-\0",
            b"/lib/ld-musl-x86_64.so.1\0/opt/redis-server\0-\0",
        ] {
            assert!(is_line_of_engine(line), "{}", String::from_utf8_lossy(line));
        }
        for line in [
            &b""[..],
            b"tail\0-f\0/x/redis-server\0",
            b"redis-cli\0-h\0localhost\0",
            b"/x/ld-linux-x86-64.so.2\0/x/usr/bin/redis-cli\0",
            b"redis-server.sh\0",
        ] {
            assert!(!is_line_of_engine(line), "{}", String::from_utf8_lossy(line));
        }
    }
}
