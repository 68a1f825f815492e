//! Deployments that cachekeep does not run: one server, a primary with replicas and Sentinels, a cluster; with TLS, with users.
//! Each node has a Unix socket beside its port, where the test is the default user and needs no certificate.

use std::fs::File;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Stop;
use crate::resp::{Connection, Place, Reply, Target};
use crate::scratch::Scratch;

/// Slots of a cluster.
const SLOTS: u16 = 16384;
/// Everything must be there within this time.
const PATIENCE: Duration = Duration::from_secs(60);
/// Name and password of the user that [`Access::User`] makes.
pub const USER: &str = "keeper";
/// Of that user, and of the default user with [`Access::Password`].
pub const PASSWORD: &str = "Foreign-test-1";

/// How the nodes belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// One node.
    Single,
    /// A primary, two replicas, three Sentinels that call it `mymaster`.
    Watched,
    /// Three primaries with a replica each.
    Cluster,
}

/// Who is let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Anybody.
    Open,
    /// Who knows the default user's password.
    Password,
    /// Who is [`USER`]; its rules are the test's.
    User,
    /// Who has a certificate of the CA, by TLS alone.
    Tls,
}

/// A running node or Sentinel, killed on drop.
pub struct Node {
    child: Child,
    folder: PathBuf,
    /// Where it listens, by TLS where the deployment does.
    pub port: u16,
    /// Where it says that it is found, if that is not where it listens.
    pub announced: Option<SocketAddr>,
    password: Option<String>,
    program: PathBuf,
}

impl Node {
    /// Starts it anew on what is in its folder, after it was killed, and waits until it serves.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_again(&mut self) -> Result<(), Stop> {
        self.kill();
        self.child = spawned(&self.program, &self.folder, false)?;
        until("a node that serves again", || match self.ask(&["PING"]) {
            Ok(_) => Ok(true),
            Err(why) if is_gone(self) => Err(why),
            Err(_) => Ok(false),
        })
    }

    /// As the default user, over its socket.
    ///
    /// # Errors
    /// It does not answer.
    pub fn open(&self) -> Result<Connection, Stop> {
        Ok(Connection::open(&Target {
            place: Place::Unix(self.folder.join("s")),
            user: None,
            password: self.password.clone(),
        })?)
    }

    /// Asks one thing.
    ///
    /// # Errors
    /// It does not answer, or refuses.
    pub fn ask(&self, words: &[&str]) -> Result<Reply, Stop> {
        Ok(self.open()?.ask(words)?)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A setting.
    ///
    /// # Errors
    /// As [`Node::ask`].
    pub fn setting(&self, name: &str) -> Result<String, Stop> {
        match self.ask(&["CONFIG", "GET", name])? {
            Reply::List(pair) => Ok(pair.get(1).and_then(Reply::text).unwrap_or_default().to_owned()),
            other => Err(Stop::new(format!("CONFIG GET {name}: {other:?}"))),
        }
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        let _already_gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

impl Node {
    /// Where others are told that it is.
    pub fn told(&self) -> SocketAddr {
        let listens = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        self.announced.unwrap_or(listens)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Nodes that belong together.
pub struct Deployment {
    /// Primaries first, each followed by its replicas.
    pub nodes: Vec<Node>,
    /// Empty where nobody watches.
    pub sentinels: Vec<Node>,
    form: Form,
    access: Access,
    announces: Option<Ipv4Addr>,
    folder: Scratch,
}

impl Deployment {
    /// Starts one of the engine with this program, each node with these settings.
    ///
    /// # Errors
    /// What does not start or does not come together.
    pub fn start(
        program: &Path,
        form: Form,
        access: Access,
        settings: &[(&str, &str)],
    ) -> Result<Self, Stop> {
        Self::start_with(&std::env::temp_dir(), None, program, form, access, settings)
    }

    /// As [`Deployment::start`], with the nodes' files in this folder.
    ///
    /// # Errors
    /// As [`Deployment::start`].
    pub fn start_below(
        below: &Path,
        program: &Path,
        form: Form,
        access: Access,
        settings: &[(&str, &str)],
    ) -> Result<Self, Stop> {
        Self::start_with(below, None, program, form, access, settings)
    }

    /// As [`Deployment::start`]. The nodes listen on loopback and say that they are at this address, by other ports, from which they
    /// are forwarded to: what a network that translates addresses looks like. Not with TLS.
    ///
    /// # Errors
    /// As [`Deployment::start`]; the machine has no such address.
    pub fn start_behind(
        announces: Option<Ipv4Addr>,
        program: &Path,
        form: Form,
        access: Access,
        settings: &[(&str, &str)],
    ) -> Result<Self, Stop> {
        Self::start_with(&std::env::temp_dir(), announces, program, form, access, settings)
    }

    fn start_with(
        below: &Path,
        announces: Option<Ipv4Addr>,
        program: &Path,
        form: Form,
        access: Access,
        settings: &[(&str, &str)],
    ) -> Result<Self, Stop> {
        let folder = Scratch::below(below, "foreign")?;
        if access == Access::Tls {
            make_certificates(folder.path())?;
        }
        let mut made = Self {
            nodes: Vec::new(),
            sentinels: Vec::new(),
            form,
            access,
            announces,
            folder,
        };
        let count = match form {
            Form::Single => 1,
            Form::Watched => 3,
            Form::Cluster => 6,
        };
        for number in 0..count {
            let mut own = settings_of(form, access);
            own.extend(
                settings
                    .iter()
                    .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
            );
            if form == Form::Watched && number > 0 {
                let primary = made.nodes[0].told();
                own.push((
                    "replicaof".to_owned(),
                    format!("{} {}", primary.ip(), primary.port()),
                ));
            }
            let node = made.start_one(program, &format!("node{number}"), &own, false)?;
            made.nodes.push(node);
        }
        match form {
            Form::Single => {}
            Form::Watched => made.watch(program)?,
            Form::Cluster => made.join()?,
        }
        Ok(made)
    }

    /// Where certificates are: `ca.pem`, `cert.pem`, `key.pem`.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// `redis://127.0.0.1:7000`
    pub fn url(&self, node: &Node) -> String {
        let scheme = if self.access == Access::Tls {
            "rediss"
        } else {
            "redis"
        };
        let user = if self.access == Access::User {
            format!("{USER}@")
        } else {
            String::new()
        };
        format!("{scheme}://{user}127.0.0.1:{}", node.port)
    }

    /// The nodes that take writes.
    ///
    /// # Errors
    /// One does not answer.
    pub fn primaries(&self) -> Result<Vec<&Node>, Stop> {
        let mut found = Vec::new();
        for node in &self.nodes {
            if let Ok(mut open) = node.open()
                && open.info("replication", "role")? == "master"
            {
                found.push(node);
            }
        }
        Ok(found)
    }

    /// The engine's own digest of all that the primaries hold together: it is one of digests that are put together in the
    /// same way whichever node has a key.
    ///
    /// # Errors
    /// One does not answer.
    pub fn digest(&self) -> Result<String, Stop> {
        let mut whole = [0u8; 20];
        for node in self.primaries()? {
            let reply = node.ask(&["DEBUG", "DIGEST"])?;
            let text = reply.text().unwrap_or_default();
            for (at, byte) in whole.iter_mut().enumerate() {
                let pair = text.get(2 * at..2 * at + 2).unwrap_or("00");
                *byte ^= u8::from_str_radix(pair, 16).unwrap_or(0);
            }
        }
        Ok(whole.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    fn start_one(
        &self,
        program: &Path,
        name: &str,
        settings: &[(String, String)],
        is_sentinel: bool,
    ) -> Result<Node, Stop> {
        let folder = self.folder.path().join(name);
        std::fs::create_dir(&folder).map_err(|e| Stop::file("make", &folder, &e))?;
        let port = free_port()?;
        let mut text = format!("dir {}\nunixsocket {}/s\n", folder.display(), folder.display());
        text.push_str("bind 127.0.0.1\nprotected-mode no\n");
        if self.access == Access::Tls {
            let at = |file: &str| self.folder.path().join(file).display().to_string();
            text.push_str(&format!(
                "port 0\ntls-port {port}\ntls-cert-file {}\ntls-key-file {}\ntls-ca-cert-file {}\ntls-replication yes\n",
                at("cert.pem"),
                at("key.pem"),
                at("ca.pem")
            ));
        } else {
            text.push_str(&format!("port {port}\n"));
        }
        for (name, value) in settings {
            text.push_str(&format!("{name} {value}\n"));
        }
        let announced = match self.announces {
            None => None,
            Some(at) => {
                let announced = forward(at, port)?;
                text.push_str(&self.announcement(announced, port, is_sentinel)?);
                Some(announced)
            }
        };
        let file = folder.join("conf");
        std::fs::write(&file, text).map_err(|e| Stop::file("write", &file, &e))?;
        let log_file = folder.join("log");
        let child = spawned(program, &folder, is_sentinel)?;
        let password = (self.access == Access::Password && !is_sentinel).then(|| PASSWORD.to_owned());
        let node = Node {
            child,
            folder,
            port,
            announced,
            password,
            program: program.to_owned(),
        };
        until(&format!("{name} that answers"), || match node.ask(&["PING"]) {
            Ok(_) => Ok(true),
            Err(why) if is_gone(&node) => Err(Stop::new(format!(
                "{why}: {}",
                std::fs::read_to_string(&log_file).unwrap_or_default()
            ))),
            Err(_) => Ok(false),
        })?;
        Ok(node)
    }

    /// The settings by which a node says that it is somewhere else.
    fn announcement(&self, at: SocketAddr, port: u16, is_sentinel: bool) -> Result<String, Stop> {
        let (ip, announced) = (at.ip(), at.port());
        let words = |kind: &str| format!("{kind}announce-ip {ip}\n{kind}announce-port {announced}\n");
        if is_sentinel {
            return Ok(words("sentinel "));
        }
        let mut text = words("replica-");
        if let (Form::Cluster, Some(address)) = (self.form, self.announces) {
            let bus = forward(address, port + 10_000)?.port();
            text.push_str(&words("cluster-"));
            text.push_str(&format!("cluster-announce-bus-port {bus}\n"));
        }
        Ok(text)
    }

    /// Three Sentinels that know each other and the replicas.
    fn watch(&mut self, program: &Path) -> Result<(), Stop> {
        self.wait_in_sync()?;
        let (ip, primary) = (self.nodes[0].told().ip(), self.nodes[0].told().port());
        for number in 0..3 {
            let mut own: Vec<(String, String)> = [
                ("sentinel", format!("monitor mymaster {ip} {primary} 2")),
                // On a busy machine a primary that was just promoted takes a second to answer, and is succeeded at once.
                ("sentinel", "down-after-milliseconds mymaster 3000".to_owned()),
                ("sentinel", "failover-timeout mymaster 3000".to_owned()),
            ]
            .map(|(name, value)| (name.to_owned(), value))
            .to_vec();
            if self.access == Access::Password {
                own.push(("sentinel".to_owned(), format!("auth-pass mymaster {PASSWORD}")));
            }
            let sentinel = self.start_one(program, &format!("sentinel{number}"), &own, true)?;
            self.sentinels.push(sentinel);
        }
        until("Sentinels that know each other", || {
            for sentinel in &self.sentinels {
                let Reply::List(others) = sentinel.ask(&["SENTINEL", "SENTINELS", "mymaster"])? else {
                    return Ok(false);
                };
                let Reply::List(replicas) = sentinel.ask(&["SENTINEL", "REPLICAS", "mymaster"])? else {
                    return Ok(false);
                };
                if others.len() != 2 || replicas.len() != 2 {
                    return Ok(false);
                }
            }
            Ok(true)
        })
    }

    /// Makes a cluster of the nodes.
    fn join(&mut self) -> Result<(), Stop> {
        let first = self.nodes[0].port.to_string();
        for (number, node) in (0u16..).zip(&self.nodes) {
            if number % 2 == 0 {
                let shard = number / 2;
                let cut = |shard: u16| (u32::from(SLOTS) * u32::from(shard) / 3) as u16;
                let mut words = vec!["CLUSTER".to_owned(), "ADDSLOTS".to_owned()];
                words.extend((cut(shard)..cut(shard + 1)).map(|slot| slot.to_string()));
                node.open()?.ask(&words)?;
                node.ask(&["CLUSTER", "SET-CONFIG-EPOCH", &(shard + 1).to_string()])?;
            }
            let bus = self.bus_port(&self.nodes[0]).to_string();
            node.ask(&["CLUSTER", "MEET", "127.0.0.1", &first, &bus])?;
        }
        until("nodes that know each other", || {
            for node in &self.nodes {
                let known = node.ask(&["CLUSTER", "NODES"])?;
                let known = known.text().unwrap_or_default();
                if known.lines().count() != 6 || known.contains("handshake") {
                    return Ok(false);
                }
            }
            Ok(true)
        })?;
        for pair in self.nodes.chunks_exact(2) {
            let id = pair[0].ask(&["CLUSTER", "MYID"])?;
            pair[1].ask(&["CLUSTER", "REPLICATE", id.text().unwrap_or_default()])?;
        }
        until("a cluster that serves", || {
            for node in &self.nodes {
                let state = node.ask(&["CLUSTER", "INFO"])?;
                let known = node.ask(&["CLUSTER", "NODES"])?;
                let replicas = known.text().unwrap_or_default().matches("slave").count();
                if !state.text().unwrap_or_default().contains("cluster_state:ok") || replicas != 3 {
                    return Ok(false);
                }
            }
            Ok(true)
        })?;
        self.wait_in_sync()
    }

    fn bus_port(&self, node: &Node) -> u32 {
        u32::from(node.port) + 10_000
    }

    /// Waits until every replica has what its primary has.
    ///
    /// # Errors
    /// They do not within the time.
    pub fn wait_in_sync(&self) -> Result<(), Stop> {
        let wanted = match self.form {
            Form::Single => 0,
            Form::Watched => 2,
            Form::Cluster => 3,
        };
        until("replicas in sync", || {
            let mut up = 0;
            for node in &self.nodes {
                let mut open = node.open()?;
                let link = open.info("replication", "master_link_status").unwrap_or_default();
                up += usize::from(link == "up");
            }
            Ok(up >= wanted)
        })
    }
}

/// Starts the program on the settings in a folder; what it says is added to the log there.
fn spawned(program: &Path, folder: &Path, is_sentinel: bool) -> Result<Child, Stop> {
    let log_file = folder.join("log");
    let log = File::options().create(true).append(true).open(&log_file);
    let log = log.map_err(|e| Stop::file("open", &log_file, &e))?;
    let mut command = Command::new(program);
    command.arg(folder.join("conf"));
    if is_sentinel {
        command.arg("--sentinel");
    }
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .map_err(|e| Stop::new(format!("cannot start {}: {e}", program.display())))
}

/// What every node of such a deployment is started with.
fn settings_of(form: Form, access: Access) -> Vec<(String, String)> {
    let mut own = vec![
        ("save", "\"\"".to_owned()),
        ("repl-diskless-sync-delay", "0".to_owned()),
    ];
    match access {
        Access::Open => {}
        Access::Tls => own.push(("tls-cluster", "yes".to_owned())),
        Access::Password => {
            own.push(("requirepass", PASSWORD.to_owned()));
            own.push(("masterauth", PASSWORD.to_owned()));
        }
        Access::User => {}
    }
    if form == Form::Cluster {
        own.push(("cluster-enabled", "yes".to_owned()));
        own.push(("cluster-node-timeout", "2000".to_owned()));
    }
    own.into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

/// A CA, and a certificate of it for 127.0.0.1 with its key: every node's and every client's.
fn make_certificates(folder: &Path) -> Result<(), Stop> {
    let openssl = |words: &[&str]| {
        let made = Command::new("openssl").args(words).current_dir(folder).output()?;
        match made.status.success() {
            true => Ok(()),
            false => Err(Stop::new(format!(
                "openssl {words:?}: {}",
                String::from_utf8_lossy(&made.stderr)
            ))),
        }
    };
    openssl(&[
        "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=ca", "-keyout",
        "ca.key", "-out", "ca.pem",
    ])?;
    openssl(&[
        "req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=node", "-keyout", "key.pem", "-out", "node.csr",
    ])?;
    let names = folder.join("names");
    std::fs::write(&names, "subjectAltName=IP:127.0.0.1,DNS:node.test\n")
        .map_err(|e| Stop::file("write", &names, &e))?;
    openssl(&[
        "x509",
        "-req",
        "-in",
        "node.csr",
        "-CA",
        "ca.pem",
        "-CAkey",
        "ca.key",
        "-CAcreateserial",
        "-days",
        "2",
        "-extfile",
        "names",
        "-out",
        "cert.pem",
    ])
}

/// A port that nobody has, whose bus port of a cluster node nobody has either.
/// Listens at this address, and passes each connection on to that port of loopback, until the process ends.
fn forward(at: Ipv4Addr, to: u16) -> Result<SocketAddr, Stop> {
    let listener = TcpListener::bind((at, 0))?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            std::thread::spawn(move || {
                // Either side may go at any time.
                let _ended = pass_on(&client, to);
            });
        }
    });
    Ok(address)
}

fn pass_on(client: &TcpStream, to: u16) -> std::io::Result<()> {
    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, to))?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _ended = std::io::copy(&mut &*client, &mut &server);
            let _gone_already = server.shutdown(Shutdown::Both);
        });
        let passed = std::io::copy(&mut &server, &mut &*client);
        let _gone_already = client.shutdown(Shutdown::Both);
        passed.map(drop)
    })
}

fn free_port() -> Result<u16, Stop> {
    loop {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        if port < 50_000 && TcpListener::bind(("127.0.0.1", port + 10_000)).is_ok() {
            return Ok(port);
        }
    }
}

fn is_gone(node: &Node) -> bool {
    !Path::new(&format!("/proc/{}/exe", node.pid())).exists()
}

fn until(what: &str, mut look: impl FnMut() -> Result<bool, Stop>) -> Result<(), Stop> {
    let since = Instant::now();
    while !look()? {
        if since.elapsed() > PATIENCE {
            return Err(Stop::new(format!("in vain waited for {what}")));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
