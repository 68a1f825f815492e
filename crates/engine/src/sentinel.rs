//! Sentinels: what makes a node one that they watch, what they are told, what they say.
//!
//! The nodes of such a generation listen at addresses of their own, which only this machine reaches (all of 127/8 is
//! its own), and all at the port that clients know. The address that clients know is one more, and the primary's
//! alone. So a node is found at the same place whatever it is and whoever serves: Sentinels and replicas need not be
//! told of a failover or a switch that a port has moved, and the one thing that moves is an address in `bind`
//! ([`Door::Address`](crate::switch::Door)). It moves without us, too: Sentinels run a script when they have promoted
//! a replica ([`failover`]).
//!
//! Sentinels belong to an instance, not to a generation of it: clients know their ports. A switch makes them forget the
//! one generation and watch the other. Their file is the one of an engine's that lies on disk with a password in it, for
//! they write into it what must survive them: whom they voted for, and who is the primary.

pub mod failover;

use std::fmt::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Kind};
use crate::failpoint;
use crate::node::{Node, Reply, Secret};
use crate::process::{self, ADMIN_USER, Certificate, LOG, SOCKET, hex_digest, password_hash};

/// By this name clients ask Sentinels for the primary: the one in Sentinel's own documentation, and many clients' default.
pub const NAME: &str = "mymaster";
/// Sentinels of an instance: with one gone the other two are still a majority.
pub const COUNT: u16 = 3;
/// So many must agree that the primary is gone.
const QUORUM: &str = "2";
/// A primary that does not answer for so long is taken for gone. As in clusters, long enough for one that is starved of
/// a processor on a busy machine.
const DOWN_AFTER: Duration = Duration::from_secs(5);
/// A failover that gets nowhere is tried again after twice this.
const FAILOVER_TIMEOUT: Duration = Duration::from_secs(10);
/// What a Sentinel keeps.
const SETTINGS: &str = "sentinel.conf";
/// How it finds that: it wants a path from the root, and may live below a home that only root can enter.
pub(crate) const SETTINGS_PATH: &str = "/proc/self/cwd/sentinel.conf";
/// What a Sentinel runs when it has promoted a replica. Its standard input is this very program, opened: whatever user it runs as,
/// and whatever becomes of the program's file, it can run that.
const SCRIPT: &str = "failover";
const SCRIPT_TEXT: &str = "#!/bin/sh\nexec /proc/self/fd/0 after-failover \"$@\"\n";
/// As whom Sentinels reach the nodes that they watch.
const WATCHER_USER: &str = "cachekeep-sentinel";
/// As whom the script reaches them, through their control sockets.
pub(crate) const MOVER_USER: &str = "cachekeep-failover";
/// As whom Sentinels reach each other.
const PEER_USER: &str = "cachekeep-peer";
/// What a Sentinel does with what it watches. Source: Redis documentation, "Sentinel", "Redis Access Control List
/// authentication".
const WATCHER_RULES: &str = "resetchannels &__sentinel__:hello +multi +exec +slaveof +replicaof +ping +subscribe +publish +info +role \
                             +config|rewrite +client|setname +client|kill +script|kill";
const MOVER_RULES: &str = "+multi +exec +role +config|get +config|set +client|kill +acl|users";
const PEER_RULES: &str = "+ping +hello +publish +client|setname +sentinel|is-master-down-by-addr";
/// What anybody may ask a Sentinel who reaches its port; most clients give it no password. It tells addresses and no
/// secrets, and nobody but we can change what it does: its script could be any program.
const ASKER_RULES: &str = "&* +@connection -@admin -@dangerous +role +info +subscribe +psubscribe +unsubscribe \
                           +punsubscribe +sentinel|get-master-addr-by-name +sentinel|masters +sentinel|master \
                           +sentinel|replicas +sentinel|slaves +sentinel|sentinels +sentinel|myid +sentinel|ckquorum";

/// Where a node that Sentinels watch is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watched {
    /// Its own address, whatever it is; nobody else's on this machine at that port.
    pub address: String,
    /// The port that clients know.
    pub port: u16,
    /// Names the generation: passwords of its nodes among each other are made of this.
    pub generation: String,
    /// The address of the primary that it follows from its start; `None`: it is the primary.
    pub follows: Option<String>,
}

/// Everything that a Sentinel is started with.
#[derive(Debug, Clone)]
pub struct SentinelSpec {
    /// The server program.
    pub binary: PathBuf,
    /// The program with the verb `after-failover`: this one.
    pub program: PathBuf,
    /// Its directory. Created when missing; its parents are the caller's.
    pub directory: PathBuf,
    /// User and group to run as; `None` keeps ours.
    pub run_as: Option<(u32, u32)>,
    /// The address that it listens at and tells clients.
    pub address: String,
    /// Its port.
    pub port: u16,
    /// Password of the user `cachekeep`, as of the instance's engines.
    pub admin_password: Secret,
    /// As of the engines that it watches: with one, it and those who ask it speak TLS.
    pub certificate: Option<Certificate>,
}

/// Users of a watched node besides the usual ones, each with its rules.
pub(crate) fn users(admin: &Secret, generation: &str) -> [(&'static str, String); 2] {
    let rules = |user: &'static str, rules: &str| {
        let hash = password_hash(&password_of(user, admin, generation));
        (user, format!("{hash} {rules}"))
    };
    [rules(WATCHER_USER, WATCHER_RULES), rules(MOVER_USER, MOVER_RULES)]
}

/// Who reads it cannot tell the control user's from it.
pub(crate) fn password_of(user: &str, admin: &Secret, generation: &str) -> Secret {
    Secret::new(hex_digest(&format!(
        "{user} of {} in {generation}",
        admin.expose()
    )))
}

/// Writes what a Sentinel needs in its directory. Its settings only where it has none: it keeps its memory there.
pub(crate) fn prepare(spec: &SentinelSpec) -> Result<(), Error> {
    write(&spec.directory, SCRIPT, SCRIPT_TEXT, 0o700, spec.run_as)?;
    if let Some(certificate) = &spec.certificate {
        process::write_certificate(&spec.directory, certificate, spec.run_as)?;
    }
    let path = spec.directory.join(SETTINGS);
    let text = match std::fs::read_to_string(&path) {
        // Where it works it has written too, as a path that it may not be able to go to.
        Ok(text) => text
            .lines()
            .filter(|line| !line.starts_with("dir "))
            .fold(String::new(), |all, line| all + line + "\n"),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => settings(spec),
        Err(e) => {
            return Err(Error::io(
                Kind::Io,
                "prepare sentinel",
                path.display().to_string(),
                e,
            ));
        }
    };
    write(&spec.directory, SETTINGS, &text, 0o600, spec.run_as)
}

/// Lets a Sentinel that does not run forget all that it remembers.
///
/// # Errors
/// [`Kind::Io`].
pub fn reset(home: &Path) -> Result<(), Error> {
    let path = home.join(SETTINGS);
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(
            Kind::Io,
            "reset sentinel",
            path.display().to_string(),
            e,
        )),
        _ => Ok(()),
    }
}

fn settings(spec: &SentinelSpec) -> String {
    let admin = password_hash(&spec.admin_password);
    let peer = password_of(PEER_USER, &spec.admin_password, "all");
    let mut text = String::new();
    let (port, tls) = match &spec.certificate {
        None => (format!("port {}", spec.port), Vec::new()),
        Some(_) => {
            let own = process::certificate_settings().into_iter();
            (
                "port 0".to_owned(),
                own.chain([format!("tls-port {}", spec.port)]).collect(),
            )
        }
    };
    let mut lines = vec![
        format!("bind {}", spec.address),
        port,
        format!("unixsocket {SOCKET}"),
        "unixsocketperm 700".to_owned(),
        format!("logfile {LOG}"),
        "protected-mode no".to_owned(),
        "daemonize no".to_owned(),
        format!("user {ADMIN_USER} on {admin} ~* &* +@all"),
        format!("user {PEER_USER} on {} {PEER_RULES}", password_hash(&peer)),
        format!("user default on nopass resetchannels -@all {ASKER_RULES}"),
        format!("sentinel sentinel-user {PEER_USER}"),
        format!("sentinel sentinel-pass {}", peer.expose()),
        format!("sentinel announce-ip {}", spec.address),
        // We name its script with each generation; nobody else may name anything.
        "sentinel deny-scripts-reconfig no".to_owned(),
    ];
    lines.extend(tls);
    for line in lines {
        let _infallible = writeln!(text, "{line}");
    }
    text
}

/// A file of the engine's user, whole or not at all.
fn write(home: &Path, name: &str, text: &str, mode: u32, run_as: Option<(u32, u32)>) -> Result<(), Error> {
    let (path, incoming) = (home.join(name), home.join(format!("incoming.{name}")));
    let failed = |e| Error::io(Kind::Io, "prepare sentinel", path.display().to_string(), e);
    let _left_by_a_crash = std::fs::remove_file(&incoming);
    let written = || {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&incoming)?;
        std::io::Write::write_all(&mut file, text.as_bytes())?;
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        file.sync_all()
    };
    written().map_err(failed)?;
    process::give(&incoming, run_as)?;
    std::fs::rename(&incoming, &path).map_err(failed)
}

/// What a Sentinel says of the primary that it watches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The primary's own address: the new one's as soon as a replica is promoted.
    pub address: String,
    /// Grows with each failover: who says more knows better.
    pub epoch: u64,
    /// Whether all of [`watch`] was done: without that it cannot even reach the nodes.
    pub is_ready: bool,
    /// Whether a failover is under way.
    pub is_failing_over: bool,
    /// How many other Sentinels it knows.
    pub others: u64,
    /// Replicas that it could promote: priority and link, as far as it knows.
    pub electable: u64,
}

/// What this Sentinel watches; `None`: nothing.
///
/// # Errors
/// As [`Node::command`]; [`Kind::Protocol`] for an answer of another form.
pub fn seen(node: &mut Node) -> Result<Option<Seen>, Error> {
    let master = match node.ask(&[b"SENTINEL", b"MASTER", NAME.as_bytes()])? {
        Reply::Array(words) => fields(&words),
        Reply::Error(text) if is_unknown(&text) => return Ok(None),
        other => return Err(garbage(node, &other)),
    };
    let replicas = match node.run(&["SENTINEL", "REPLICAS", NAME])? {
        Reply::Array(replicas) => replicas,
        other => return Err(garbage(node, &other)),
    };
    let address = match node.run(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME])? {
        Reply::Array(words) => words.first().and_then(Reply::text),
        Reply::Bulk(None) => return Ok(None),
        _ => None,
    };
    let flags = value(&master, "flags");
    let number = |name: &str| value(&master, name).parse().unwrap_or(0);
    let is_electable = |replica: &&Reply| {
        let Reply::Array(words) = replica else {
            return false;
        };
        let fields = fields(words);
        value(&fields, "slave-priority") != "0"
            && value(&fields, "master-link-status") == "ok"
            && ["slave", "replica"].contains(&value(&fields, "flags"))
    };
    Ok(Some(Seen {
        address: address.unwrap_or_else(|| value(&master, "ip").to_owned()),
        epoch: number("config-epoch"),
        is_ready: value(&master, "client-reconfig-script").ends_with(SCRIPT),
        is_failing_over: flags.contains("failover_in_progress"),
        others: number("num-other-sentinels"),
        electable: replicas.iter().filter(is_electable).count() as u64,
    }))
}

/// Families of engines name the primary differently.
fn is_unknown(refusal: &str) -> bool {
    refusal.contains("No such")
}

fn fields(words: &[Reply]) -> Vec<(String, String)> {
    let text = |reply: &Reply| reply.text().unwrap_or_default();
    words
        .chunks_exact(2)
        .map(|pair| (text(&pair[0]), text(&pair[1])))
        .collect()
}

fn value<'a>(fields: &'a [(String, String)], name: &str) -> &'a str {
    let found = fields.iter().find(|(field, _)| field == name);
    found.map_or("", |(_, value)| value)
}

fn garbage(node: &Node, reply: &Reply) -> Error {
    let context = format!("{}: {reply:?}", node.label());
    Error::new(Kind::Protocol, "ask sentinel", context)
}

/// Makes a Sentinel watch this primary and no other.
///
/// # Errors
/// As [`Node::command`].
pub fn watch(node: &mut Node, admin: &Secret, primary: &Watched) -> Result<(), Error> {
    forget(node)?;
    failpoint::hit("sentinel.forgotten")?;
    let port = primary.port.to_string();
    node.run(&["SENTINEL", "MONITOR", NAME, &primary.address, &port, QUORUM])?;
    failpoint::hit("sentinel.monitored")?;
    let password = password_of(WATCHER_USER, admin, &primary.generation);
    let script = format!("./{SCRIPT}");
    node.run(&[
        "SENTINEL",
        "SET",
        NAME,
        "auth-user",
        WATCHER_USER,
        "auth-pass",
        password.expose(),
        "client-reconfig-script",
        &script,
        "down-after-milliseconds",
        &DOWN_AFTER.as_millis().to_string(),
        "failover-timeout",
        &FAILOVER_TIMEOUT.as_millis().to_string(),
    ])
    .map(drop)
}

/// A Sentinel's own name.
///
/// # Errors
/// As [`Node::command`].
pub fn name_of(node: &mut Node) -> Result<String, Error> {
    Ok(node.run(&["SENTINEL", "MYID"])?.text().unwrap_or_default())
}

/// Tells a Sentinel of another one that watches the same primary, as that will itself within two seconds. Source: redis
/// `src/sentinel.c`, sentinelProcessHelloMessage.
///
/// # Errors
/// As [`Node::command`].
pub fn introduce(
    node: &mut Node,
    (name, address, port): (&str, &str, u16),
    primary: &Watched,
) -> Result<(), Error> {
    let hello = format!(
        "{address},{port},{name},0,{NAME},{},{},0",
        primary.address, primary.port
    );
    node.run(&["PUBLISH", "__sentinel__:hello", &hello]).map(drop)
}

/// Makes a Sentinel watch nothing. May be repeated.
///
/// # Errors
/// As [`Node::command`].
pub fn forget(node: &mut Node) -> Result<(), Error> {
    match node.ask(&[b"SENTINEL", b"REMOVE", NAME.as_bytes()])? {
        Reply::Error(text) if !is_unknown(&text) => {
            let context = format!("{}: {text}", node.label());
            Err(Error::new(Kind::Refused, "forget primary", context))
        }
        _ => Ok(()),
    }
}

/// Has a replica promoted at once, without a vote. Only where the process of the primary is known to be gone. `false`:
/// there is none that could be.
///
/// # Errors
/// As [`Node::ask`].
pub fn fail_over(node: &mut Node) -> Result<bool, Error> {
    match node.ask(&[b"SENTINEL", b"FAILOVER", NAME.as_bytes()])? {
        Reply::Error(text) => Ok(text.contains("INPROG")),
        _ => Ok(true),
    }
}
