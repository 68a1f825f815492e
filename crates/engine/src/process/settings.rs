//! The settings that an engine is started with, as the text that it reads from standard input.

use std::fmt::Write;

use ring::digest::{SHA256, digest};

use crate::error::{Error, Kind};
use crate::node::Secret;

use crate::cluster::{NODE_TIMEOUT, STANDBY_NODE_TIMEOUT, Seat};
use crate::sentinel::{self, Watched};

use super::{ADMIN_USER, Clients, EngineSpec, LOG, NO_PRIMARY, Persistence, REPLICA_USER, SOCKET, is_before};

/// As DCS has them.
const DATABASES: u32 = 256;

/// What clients may not do: change who may do what, change the configuration that the control plane relies on, load
/// code, end the process or turn it into somebody's replica, pause all its connections, ours among them. Reading the configuration, `DEBUG` and the replica's
/// side of `PSYNC` stay, so that the usual programs work.
const CLIENT_RULES: &str = "~* &* +@all -acl|setuser -acl|deluser -acl|load -acl|save -config|set -config|rewrite \
                            -module -replicaof -slaveof -shutdown -failover -client|pause -client|unpause";

/// As [`CLIENT_RULES`], for engines before 7.0: they take single parts of a command only back in. They let anybody have all of
/// `DEBUG`, newer ones only who is on their machine.
const CLIENT_RULES_BEFORE_7: &str = "~* +@all -module -replicaof -slaveof -shutdown \
                                     -debug +debug|digest +debug|digest-value +debug|help +debug|object +debug|sleep \
                                     -acl +acl|cat +acl|genpass +acl|getuser +acl|help +acl|list +acl|log +acl|users +acl|whoami \
                                     -config +config|get +config|help +config|resetstat \
                                     -client +client|caching +client|getname +client|getredir +client|help +client|id +client|info \
                                     +client|kill +client|list +client|reply +client|setname +client|tracking +client|trackinginfo \
                                     +client|unblock";

/// What clients of a cluster may not do either: change who its nodes are and who of them has which slots. Reading all of
/// that stays, cluster clients live on it.
const CLUSTER_CLIENT_RULES: &str = "-cluster|addslots -cluster|addslotsrange -cluster|bumpepoch -cluster|delslots \
                                    -cluster|delslotsrange -cluster|failover -cluster|flushslots -cluster|forget \
                                    -cluster|meet -cluster|replicate -cluster|reset -cluster|saveconfig \
                                    -cluster|set-config-epoch -cluster|setslot";

/// What clients of watched nodes may not do either: follow one. Sentinels take whoever does for a replica that they may
/// promote.
const WATCHED_CLIENT_RULES: &str = "-psync -sync -replconf";

/// Whom the process is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Clients.
    Serving,
    /// Verification: see [`super::start_standby`].
    Standby,
}

/// # Errors
/// [`Kind::EngineStart`] for a bind address that is none.
pub(super) fn text(spec: &EngineSpec, role: Role) -> Result<String, Error> {
    let is_address = |byte: u8| byte.is_ascii_alphanumeric() || b".:*-%_ ".contains(&byte);
    if spec.bind.trim().is_empty() || !spec.bind.bytes().all(is_address) {
        let context = format!("{:?} is no list of addresses", spec.bind);
        return Err(Error::new(Kind::EngineStart, "start engine", context));
    }
    let knows_none = |seat: &Seat| seat.peers.is_empty();
    if role == Role::Standby && spec.cluster.as_ref().is_some_and(knows_none) {
        let context = "a node of a cluster is a standby among peers, and none are named";
        return Err(Error::new(Kind::EngineStart, "start engine", context));
    }
    let max_memory_bytes = match role {
        Role::Serving => spec.max_memory_bytes,
        Role::Standby => 0,
    };
    let mut text = String::new();
    let mut line = |words: std::fmt::Arguments<'_>| {
        // Writing to a string cannot fail.
        let _infallible = writeln!(text, "{words}");
    };
    line(format_args!("bind {}", spec.bind));
    // Who may connect without a password is said by the client password, not guessed from the address.
    line(format_args!("protected-mode no"));
    let is_before_7 = spec.program.is_before_7();
    let is_before_6_2 = is_before(&spec.program.version, (6, 2, 0));
    // Else it is taken with CONFIG SET, which can say that it is not free.
    let port = match role {
        Role::Serving if spec.program.has_fixed_port() => spec.port,
        Role::Serving | Role::Standby => 0,
    };
    line(format_args!(
        "port {}",
        if spec.certificate.is_some() { 0 } else { port }
    ));
    if spec.certificate.is_some() {
        line(format_args!("tls-port {port}"));
        for words in super::certificate_settings() {
            line(format_args!("{words}"));
        }
    }
    line(format_args!("unixsocket {SOCKET}"));
    line(format_args!("unixsocketperm 700"));
    line(format_args!("logfile {LOG}"));
    line(format_args!("always-show-logo no"));
    line(format_args!("daemonize no"));
    // Where memory runs out all the same, first a snapshot's child goes, then a standby, which nobody misses yet: an
    // engine that serves last.
    line(format_args!("oom-score-adj relative"));
    line(format_args!("oom-score-adj-values 0 500 800"));
    line(format_args!("tcp-backlog 511"));
    // Only the first one exists in a cluster.
    let databases = if spec.cluster.is_some() { 1 } else { DATABASES };
    line(format_args!("databases {databases}"));
    line(format_args!("maxmemory {max_memory_bytes}"));
    line(format_args!("maxmemory-policy noeviction"));
    // What clients send with RESTORE is checked in depth. Files are not checked again while they load: a backup's was
    // validated deeper than the engine can, the engine's own it trusts, and loading is the longest part of a restore. What
    // a watched replica gets from its primary is: who may publish could mislead Sentinels about who that is.
    let follows = spec
        .watched
        .as_ref()
        .is_some_and(|watched| watched.follows.is_some());
    if !is_before_6_2 {
        line(format_args!(
            "sanitize-dump-payload {}",
            if follows { "yes" } else { "clients" }
        ));
    }
    if !is_before_7 {
        line(format_args!("enable-debug-command local"));
        line(format_args!("enable-module-command no"));
        line(format_args!("enable-protected-configs no"));
    }
    // A backup is taken at once and without the engine's own compression, the dearest stage of a snapshot.
    line(format_args!("rdbcompression no"));
    line(format_args!("repl-diskless-sync yes"));
    line(format_args!("repl-diskless-sync-delay 0"));
    line(format_args!(
        "appendonly {}",
        match spec.persistence {
            Persistence::Aof => "yes",
            Persistence::Rdb | Persistence::None => "no",
        }
    ));
    line(format_args!("appendfsync everysec"));
    // Each in a line of its own: before 7.0 an engine takes several in one for none, and says nothing.
    let save_points: &[&str] = match spec.persistence {
        Persistence::Rdb => &["3600 1", "300 100", "60 10000"],
        Persistence::Aof | Persistence::None => &["\"\""],
    };
    for point in save_points {
        line(format_args!("save {point}"));
    }
    line(format_args!(
        "user {ADMIN_USER} on {} ~* {} +@all",
        password_hash(&spec.admin_password),
        if is_before_6_2 { "" } else { "&*" }
    ));
    let cluster_rules = spec.cluster.as_ref().map_or("", |_| CLUSTER_CLIENT_RULES);
    let watched_rules = spec.watched.as_ref().map_or("", |_| WATCHED_CLIENT_RULES);
    let client_rules = match (is_before_7, is_before_6_2) {
        (false, _) => CLIENT_RULES.to_owned(),
        (true, false) => format!("{CLIENT_RULES_BEFORE_7} &* -failover"),
        (true, true) => CLIENT_RULES_BEFORE_7.to_owned(),
    };
    line(format_args!(
        "user {} on {} {client_rules} {cluster_rules} {watched_rules}",
        user(&spec.clients),
        password_rule(spec.clients.password.as_ref())
    ));
    if spec.clients.user.is_some() {
        line(format_args!("user default off resetpass -@all"));
    }
    let generation = spec.cluster.as_ref().map(|seat| &seat.generation);
    if let Some(generation) = generation.or(spec.watched.as_ref().map(|watched| &watched.generation)) {
        // Clients of a cluster may read this password in the configuration. It opens nothing that they cannot do as
        // themselves, and does not tell the control user's.
        let password = replica_password(&spec.admin_password, generation);
        line(format_args!(
            "user {REPLICA_USER} on {} +psync +replconf +ping",
            password_hash(&password)
        ));
        line(format_args!("masteruser {REPLICA_USER}"));
        line(format_args!("masterauth {}", password.expose()));
    }
    if let Some(Seat {
        address,
        port,
        bus_port,
        ..
    }) = &spec.cluster
    {
        line(format_args!("cluster-enabled yes"));
        line(format_args!("cluster-port {bus_port}"));
        line(format_args!("cluster-announce-ip {address}"));
        line(format_args!("cluster-announce-port {port}"));
        if spec.certificate.is_some() {
            // Beside the plain one, which nobody can use: it is the one that we are told when we ask, without TLS.
            line(format_args!("cluster-announce-tls-port {port}"));
            line(format_args!("tls-cluster yes"));
        }
        line(format_args!("cluster-announce-bus-port {bus_port}"));
        let node_timeout = match role {
            Role::Serving => NODE_TIMEOUT,
            Role::Standby => STANDBY_NODE_TIMEOUT,
        };
        line(format_args!("cluster-node-timeout {}", node_timeout.as_millis()));
        // Each shard keeps the replicas that it was given.
        line(format_args!("cluster-allow-replica-migration no"));
    }
    if let Some(watched) = &spec.watched {
        line(format_args!("replica-announce-ip {}", watched.address));
        // Its replicas follow it from before it listens.
        line(format_args!("replica-announce-port {}", watched.port));
        // Until it was in sync once no Sentinel may promote it: see `Engine::make_electable`.
        line(format_args!("replica-priority 0"));
        for (user, rules) in sentinel::users(&spec.admin_password, &watched.generation) {
            line(format_args!("user {user} on {rules}"));
        }
    }
    match (role, &spec.cluster) {
        (Role::Serving, _) => {
            if let Some(Watched {
                follows: Some(primary),
                port,
                ..
            }) = &spec.watched
            {
                line(format_args!("replicaof {primary} {port}"));
            }
        }
        (Role::Standby, None) => {
            let (host, port) = NO_PRIMARY;
            line(format_args!("replicaof {host} {port}"));
        }
        // Whose replica it is says the file of its nodes. Without this it would not let us read.
        (Role::Standby, Some(_)) => line(format_args!("cluster-allow-reads-when-down yes")),
    }
    Ok(text)
}

/// The name of the clients' user.
pub(super) fn user(clients: &Clients) -> &str {
    clients.user.as_deref().unwrap_or("default")
}

/// The ACL rule for the clients' password, fit for a settings line and for `ACL SETUSER`.
pub(super) fn password_rule(password: Option<&Secret>) -> String {
    match password {
        Some(password) => password_hash(password),
        None => "nopass".to_owned(),
    }
}

/// The password of the replicas' user: the same for all nodes of a generation and of no other, for another generation's
/// primaries have the same ports when they serve.
fn replica_password(admin: &Secret, generation: &str) -> Secret {
    Secret::new(hex_digest(&format!(
        "replica of {} in {generation}",
        admin.expose()
    )))
}

/// `#<SHA-256>`: the engine stores no more than that, and no character of a password needs quoting.
pub(crate) fn password_hash(password: &Secret) -> String {
    format!("#{}", hex_digest(password.expose()))
}

pub(crate) fn hex_digest(text: &str) -> String {
    let mut hex = String::with_capacity(64);
    for byte in digest(&SHA256, text.as_bytes()).as_ref() {
        let _infallible = write!(hex, "{byte:02x}");
    }
    hex
}
