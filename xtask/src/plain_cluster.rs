//! A stock cluster of our own: redis-servers on ports of this machine, made without any of our code, gone on drop.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Stop;
use crate::resp::{Connection, Reply, Target};
use crate::scratch::Scratch;

const SLOTS: u32 = 16 * 1024;
/// How often a cluster is tried to be started.
const STARTS: u32 = 3;

/// A running cluster: its primaries, then their replicas.
pub struct PlainCluster {
    nodes: Vec<Option<Child>>,
    ports: Vec<u16>,
    bus_ports: Vec<u16>,
    settings: Vec<(String, String)>,
    primaries: usize,
    folder: Scratch,
}

impl PlainCluster {
    /// Starts so many primaries, each with so many replicas, and waits until all slots are served. A port that was free may be
    /// somebody else's by the time that a node wants it: then it is tried again with others.
    ///
    /// # Errors
    /// A server does not start, or the cluster does not form within 60 s.
    pub fn start(primaries: usize, replicas: usize, settings: &[(&str, &str)]) -> Result<Self, Stop> {
        for _ in 1..STARTS {
            match Self::start_once(primaries, replicas, settings) {
                Ok(cluster) => return Ok(cluster),
                Err(stop) => eprintln!("a cluster does not start and is tried again: {stop}"),
            }
        }
        Self::start_once(primaries, replicas, settings)
    }

    fn start_once(primaries: usize, replicas: usize, settings: &[(&str, &str)]) -> Result<Self, Stop> {
        let mut cluster = Self {
            nodes: Vec::new(),
            ports: Vec::new(),
            bus_ports: Vec::new(),
            settings: settings
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            primaries,
            folder: Scratch::new("cluster")?,
        };
        for number in 0..primaries * (1 + replicas) {
            cluster.ports.push(free_port()?);
            cluster.bus_ports.push(free_port()?);
            cluster.nodes.push(None);
            let home = cluster.home(number);
            std::fs::create_dir(&home).map_err(|e| Stop::file("make the folder", &home, &e))?;
            cluster.run(number)?;
        }
        cluster.form()?;
        Ok(cluster)
    }

    /// The working folder of a node.
    pub fn home(&self, node: usize) -> PathBuf {
        self.folder.path().join(node.to_string())
    }

    /// Starts a node that does not run, on what is in its folder.
    ///
    /// # Errors
    /// There is no redis-server.
    pub fn run(&mut self, node: usize) -> Result<(), Stop> {
        let (port, bus) = (self.ports[node].to_string(), self.bus_ports[node].to_string());
        let mut command = Command::new("redis-server");
        command
            .args(["--port", &port, "--cluster-port", &bus])
            .args([
                "--cluster-enabled",
                "yes",
                "--cluster-node-timeout",
                "2000",
                "--save",
                "",
            ])
            .args(["--enable-debug-command", "yes", "--repl-diskless-sync-delay", "0"])
            .arg("--dir")
            .arg(self.home(node));
        for (name, value) in &self.settings {
            command.arg(format!("--{name}")).arg(value);
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        self.nodes[node] = Some(child);
        Ok(())
    }

    fn form(&self) -> Result<(), Stop> {
        let began = Instant::now();
        let mut links = Vec::new();
        for port in &self.ports {
            links.push(loop {
                match Connection::open(&Target::local(*port, None)) {
                    Ok(link) => break link,
                    Err(error) if began.elapsed() > Duration::from_secs(30) => return Err(error.into()),
                    Err(_) => std::thread::sleep(Duration::from_millis(10)),
                }
            });
        }
        let count = self.primaries as u32;
        for (number, link) in (0..count).zip(&mut links) {
            let (first, last) = (SLOTS * number / count, SLOTS * (number + 1) / count - 1);
            link.ask(&["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()])?;
            link.ask(&["CLUSTER", "SET-CONFIG-EPOCH", &(number + 1).to_string()])?;
        }
        for (port, bus) in self.ports.iter().zip(&self.bus_ports).skip(1) {
            links[0].ask(&[
                "CLUSTER",
                "MEET",
                "127.0.0.1",
                &port.to_string(),
                &bus.to_string(),
            ])?;
        }
        let ids: Vec<String> = links
            .iter_mut()
            .map(|link| {
                Ok(link
                    .ask(&["CLUSTER", "MYID"])?
                    .text()
                    .unwrap_or_default()
                    .to_owned())
            })
            .collect::<Result<_, Stop>>()?;
        for number in self.primaries..links.len() {
            let primary = &ids[number % self.primaries];
            while let Reply::Refused(_) = links[number].call(&["CLUSTER", "REPLICATE", primary])? {
                // It has not heard of its primary yet.
                if began.elapsed() > Duration::from_secs(60) {
                    return Err(Stop::new("a node of a cluster did not become a replica"));
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        for link in &mut links {
            loop {
                let info = link
                    .ask(&["CLUSTER", "INFO"])?
                    .text()
                    .unwrap_or_default()
                    .to_owned();
                let known = format!("cluster_known_nodes:{}", self.ports.len());
                let replication = link
                    .ask(&["INFO", "replication"])?
                    .text()
                    .unwrap_or_default()
                    .to_owned();
                let is_linked = !replication.contains("master_link_status:down");
                if info.contains("cluster_state:ok") && info.contains(&known) && is_linked {
                    break;
                }
                if began.elapsed() > Duration::from_secs(60) {
                    return Err(Stop::new("a cluster did not form within 60 s"));
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(())
    }

    /// The port of a node: primaries come first as they were started, then the first replica of each.
    pub fn port(&self, node: usize) -> u16 {
        self.ports[node]
    }

    /// Process of a node that has not been killed.
    pub fn pid(&self, node: usize) -> Option<u32> {
        self.nodes[node].as_ref().map(Child::id)
    }

    /// A connection to a node.
    ///
    /// # Errors
    /// It does not answer.
    pub fn connect(&self, node: usize) -> Result<Connection, Stop> {
        Ok(Connection::open(&Target::local(self.ports[node], None))?)
    }

    /// Kills a node at once.
    pub fn kill(&mut self, node: usize) {
        if let Some(mut child) = self.nodes[node].take() {
            let _already_gone = child.kill();
            let _reaped = child.wait();
        }
    }

    /// The nodes that have slots now and live.
    pub fn serving(&self) -> Vec<usize> {
        let is_serving = |node: &usize| {
            let role = || -> Result<bool, Stop> {
                let told = self.connect(*node)?.ask(&["INFO", "replication"])?;
                Ok(told.text().unwrap_or_default().contains("role:master"))
            };
            self.nodes[*node].is_some() && role().unwrap_or(false)
        };
        (0..self.nodes.len()).filter(is_serving).collect()
    }

    /// What `DEBUG DIGEST` of one server with all the data would be, where three nodes serve and each has keys: the digest is a
    /// sum without carries over the keys, begun with a number that an odd count of nodes leaves as it is.
    ///
    /// # Errors
    /// A node does not answer.
    pub fn digest(&self) -> Result<String, Stop> {
        let mut sum = [0u8; 20];
        for node in self.serving() {
            let text = self
                .connect(node)?
                .ask(&["DEBUG", "DIGEST"])?
                .text()
                .unwrap_or_default()
                .to_owned();
            for (at, byte) in sum.iter_mut().enumerate() {
                let digits = text.get(2 * at..2 * at + 2).unwrap_or_default();
                *byte ^= u8::from_str_radix(digits, 16).map_err(|_| Stop::new("no digest"))?;
            }
        }
        Ok(sum.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Keys of all nodes that serve.
    ///
    /// # Errors
    /// A node does not answer.
    pub fn keys(&self) -> Result<i64, Stop> {
        let mut keys = 0;
        for node in self.serving() {
            if let Reply::Number(count) = self.connect(node)?.ask(&["DBSIZE"])? {
                keys += count;
            }
        }
        Ok(keys)
    }

    /// Moves a slot with its keys from one node to another, a few keys at a time, as `redis-cli --cluster reshard` does.
    ///
    /// # Errors
    /// A node refuses a step.
    pub fn move_slot(&self, slot: u32, from: usize, to: usize) -> Result<(), Stop> {
        let (mut source, mut target) = (self.connect(from)?, self.connect(to)?);
        let id = |link: &mut Connection| -> Result<String, Stop> {
            Ok(link
                .ask(&["CLUSTER", "MYID"])?
                .text()
                .unwrap_or_default()
                .to_owned())
        };
        let (source_id, target_id) = (id(&mut source)?, id(&mut target)?);
        let slot = slot.to_string();
        target.ask(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &source_id])?;
        source.ask(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &target_id])?;
        loop {
            let Reply::List(keys) = source.ask(&["CLUSTER", "GETKEYSINSLOT", &slot, "10"])? else {
                return Err(Stop::new("no list of keys"));
            };
            if keys.is_empty() {
                break;
            }
            let port = self.ports[to].to_string();
            let head: [&[u8]; 8] = [
                b"MIGRATE",
                b"127.0.0.1",
                port.as_bytes(),
                b"",
                b"0",
                b"10000",
                b"REPLACE",
                b"KEYS",
            ];
            let mut words: Vec<Vec<u8>> = head.iter().map(|word| word.to_vec()).collect();
            words.extend(keys.into_iter().filter_map(|key| match key {
                Reply::Bytes(key) => Some(key),
                _ => None,
            }));
            source.ask(&words)?;
        }
        for link in [&mut target, &mut source] {
            link.ask(&["CLUSTER", "SETSLOT", &slot, "NODE", &target_id])?;
        }
        Ok(())
    }
}

impl Drop for PlainCluster {
    fn drop(&mut self) {
        (0..self.nodes.len()).for_each(|node| self.kill(node));
    }
}

/// A port that was free a moment ago.
fn free_port() -> Result<u16, Stop> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    Ok(listener.local_addr()?.port())
}
