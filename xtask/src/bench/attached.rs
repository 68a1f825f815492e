//! Servers of others: what their clients notice of a backup and of a replay, and how fast a small backup of one is.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::json;

use super::Scale;
use super::client::{Client, Instance};
use super::replay::{Sending, own_cpu_of, pipe, write_commands};
use super::report::{Row, Section};
use crate::Stop;
use crate::fill::{Options, fill};
use crate::foreign::{Access, Deployment, Form, Node};
use crate::resp::Target;
use crate::scratch::Scratch;
use crate::service::{Scheme, Service};
use crate::setup::service_program;

/// What the paced client is answered.
const OK: &[u8] = b"+OK\r\n";
/// Between two requests of the paced client.
const PACE: Duration = Duration::from_millis(1);
/// How long it watches a server that has nothing else to do.
const QUIET: Duration = Duration::from_secs(5);
/// The limits of the throttled replays.
const LATENCY_MAX_MS: u32 = 2;
const OPS_MAX: u32 = 100_000;

/// A client that writes a small value every millisecond, whether those before are answered or not. Each time counts from the moment at
/// which the request was to be sent, so one long pause is seen by all requests that fall into it; and none waits for the answer to another,
/// as each of many clients would not.
struct Paced {
    stop: Arc<AtomicBool>,
    writer: JoinHandle<io::Result<()>>,
    reader: JoinHandle<io::Result<Vec<Duration>>>,
}

impl Paced {
    fn start(port: u16) -> Result<Self, Stop> {
        let stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
        stream.set_nodelay(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, began, answers) = (stop.clone(), Instant::now(), stream.try_clone()?);
        Ok(Self {
            stop,
            writer: std::thread::spawn(move || write_paced(stream, began, &stopped)),
            reader: std::thread::spawn(move || read_paced(answers, began)),
        })
    }

    /// The time that 99 of 100 requests have not exceeded.
    fn p99(self) -> Result<Duration, Stop> {
        self.stop.store(true, Ordering::Relaxed);
        let panicked = |_| Stop::new("the paced client panicked");
        self.writer.join().map_err(panicked)??;
        let mut times = self
            .reader
            .join()
            .map_err(|_| Stop::new("the paced client panicked"))??;
        times.sort_unstable();
        let at = (times.len() * 99).div_ceil(100).saturating_sub(1);
        times
            .get(at)
            .copied()
            .ok_or_else(|| Stop::new("the paced client had no answer"))
    }
}

fn write_paced(mut stream: TcpStream, began: Instant, stop: &AtomicBool) -> io::Result<()> {
    for number in 1u32.. {
        if let Some(early) = (began + PACE * number).checked_duration_since(Instant::now()) {
            std::thread::sleep(early);
        }
        if stop.load(Ordering::Relaxed) {
            break;
        }
        stream.write_all(format!("SET paced:{} some-value\r\n", number % 1000).as_bytes())?;
    }
    // The server answers what it has, and closes.
    stream.shutdown(Shutdown::Write)
}

fn read_paced(mut stream: TcpStream, began: Instant) -> io::Result<Vec<Duration>> {
    let (mut times, mut answers, mut kept) = (Vec::new(), [0; 4096], 0);
    for number in 1u32.. {
        while kept < OK.len() {
            match stream.read(&mut answers[kept..])? {
                0 => return Ok(times),
                more => kept += more,
            }
        }
        if answers[..OK.len()] != *OK {
            return Err(io::Error::other(
                String::from_utf8_lossy(&answers[..kept]).into_owned(),
            ));
        }
        answers.copy_within(OK.len()..kept, 0);
        kept -= OK.len();
        times.push((began + PACE * number).elapsed());
    }
    Ok(times)
}

/// Nothing but settings that the engine has by itself.
fn foreign(settings: &[(&str, &str)]) -> Result<Deployment, Stop> {
    let defaults = [("repl-diskless-sync-delay", "5")];
    Deployment::start(
        Path::new("redis-server"),
        Form::Single,
        Access::Open,
        &[&defaults[..], settings].concat(),
    )
}

fn target(node: &Node) -> Target {
    Target::local(node.port, None)
}

fn attach(client: &mut Client, node: &Node) -> Result<Instance, Stop> {
    let path = format!("/ck/v1/{}/attachments", client.project());
    let wish = json!({"name": "measured", "addresses": [format!("127.0.0.1:{}", node.port)]});
    let made = client.ask("POST", &path, Some(&wish))?;
    let id = made["instance_id"]
        .as_str()
        .ok_or_else(|| Stop::new(format!("no id of what was attached: {made}")))?;
    Ok(Instance {
        id: id.to_owned(),
        port: node.port,
    })
}

fn service() -> Result<Service, Stop> {
    Service::start(Scheme::Http, &["--attach-allow", "127.0.0.1"])
}

/// All of it.
pub fn measure(scale: &Scale) -> Result<Vec<Section>, Stop> {
    Ok(vec![small(scale)?, noticed(scale)?])
}

fn small(scale: &Scale) -> Result<Section, Stop> {
    println!("backup of an attached server, 1 MB");
    let source = foreign(&[])?;
    let node = &source.nodes[0];
    let options = Options {
        keys: 2_000,
        ..Options::default()
    };
    fill(&target(node), &options)?;
    let service = service()?;
    let mut client = Client::login(&service)?;
    let instance = attach(&mut client, node)?;
    let mut pairs = Vec::new();
    for round in 0..scale.pairs {
        let (mut peer, mut ours) = (Duration::ZERO, Duration::ZERO);
        for turn in 0..2 {
            if (round + turn) % 2 == 0 {
                peer = taken_with_redis_cli(node)?;
            } else {
                (_, ours) = client.backup(&instance)?;
            }
        }
        pairs.push((peer, ours));
    }
    let delay = node.setting("repl-diskless-sync-delay")?;
    if delay != "5" {
        return Err(Stop::new(format!("repl-diskless-sync-delay was left at {delay}")));
    }
    let ours: Vec<Duration> = pairs.iter().map(|pair| pair.1).collect();
    Ok(Section {
        title: "Backup of an attached server of 1 MB",
        how: "A server with the settings that it has by itself but for save points, and 2,000 mixed keys, which somebody else runs and where CONFIG is allowed: from \
              `POST .../backups` to status `succeed`, the server found out anew, and its settings put back. Other: `redis-cli --rdb` from the same server, which makes \
              it wait five seconds for further replicas (`repl-diskless-sync-delay`)."
            .to_owned(),
        rows: vec![
            Row::of_times("end to end", &ours, "<= 0.5 s", "100 ms").shown(),
            Row::of_pairs("beside `redis-cli --rdb`", &pairs, "shown", "0.02x").shown(),
        ],
    })
}

fn taken_with_redis_cli(node: &Node) -> Result<Duration, Stop> {
    let folder = Scratch::new("taken")?;
    let started = Instant::now();
    let done = Command::new("redis-cli")
        .args(["-p", &node.port.to_string(), "--rdb"])
        .arg(folder.path().join("taken.rdb"))
        .stdin(Stdio::null())
        .output()?;
    match done.status.success() {
        true => Ok(started.elapsed()),
        false => Err(Stop::new(format!(
            "redis-cli --rdb: {}",
            String::from_utf8_lossy(&done.stderr)
        ))),
    }
}

/// A way to apply what a backup has, and what its clients noticed each time.
struct Way {
    name: String,
    by: By,
    wanted: &'static str,
    predicted: [&'static str; 2],
    noticed: Vec<Duration>,
    took: Vec<Duration>,
}

enum By {
    /// `redis-cli --pipe`, of the same data as commands.
    Pipe,
    /// `cachekeep restore`, with these words.
    Replay(Vec<String>),
}

impl Way {
    fn new(name: &str, by: By, wanted: &'static str, predicted: [&'static str; 2]) -> Self {
        Self {
            name: name.to_owned(),
            by,
            wanted,
            predicted,
            noticed: Vec::new(),
            took: Vec::new(),
        }
    }

    fn limited(limit: &str, value: u32, predicted: [&'static str; 2]) -> Self {
        let name = format!("a replay with `{limit} {value}`");
        let words = vec![limit.to_owned(), value.to_string()];
        Self::new(&name, By::Replay(words), "less than without", predicted)
    }

    /// Into an empty server, which has one more client from when the first keys come.
    fn go(&mut self, dump: &Path, commands: &Path) -> Result<(), Stop> {
        let there = foreign(&[])?;
        let port = there.nodes[0].port.to_string();
        let pid = there.nodes[0].pid();
        let (idle, started) = (own_cpu_of(pid), Instant::now());
        let program = match &self.by {
            By::Pipe => pipe(commands, &["-p", &port])?,
            By::Replay(words) => Command::new(service_program())
                .args(["restore", "-q", "-o", "json", "--from"])
                .arg(dump)
                .args(["--to", &format!("redis://127.0.0.1:{port}")])
                .args(words)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()?,
        };
        if Sending::wait(started, program.id(), idle, || own_cpu_of(pid)).is_none() {
            return Err(Stop::new(format!("{} sent nothing", self.name)));
        }
        let paced = Paced::start(there.nodes[0].port)?;
        let ended = program.wait_with_output()?;
        if !ended.status.success() {
            return Err(Stop::new(format!(
                "{} failed: {}",
                self.name,
                String::from_utf8_lossy(&ended.stderr)
            )));
        }
        self.took.push(started.elapsed());
        self.noticed.push(paced.p99()?);
        Ok(())
    }
}

fn noticed(scale: &Scale) -> Result<Section, Stop> {
    let size_mb = scale.size_mb / 4;
    println!("what clients notice, {size_mb} MiB in memory");
    let source = foreign(&[])?;
    let node = &source.nodes[0];
    let options = Options {
        size_mb: Some(size_mb),
        functions: false,
        ..Options::default()
    };
    fill(&target(node), &options)?;
    let folder = Scratch::new("noticed")?;
    let dump = folder.path().join("dump.rdb");
    let service = service()?;
    let mut client = Client::login(&service)?;
    let instance = attach(&mut client, node)?;
    let (first, _) = client.backup(&instance)?;
    client.download(&instance, &first, &[&dump])?;

    let (mut quiet, mut captured) = (Vec::new(), Vec::new());
    let mut backups = Vec::new();
    for _ in 0..scale.pairs {
        let paced = Paced::start(node.port)?;
        std::thread::sleep(QUIET);
        quiet.push(paced.p99()?);
        let paced = Paced::start(node.port)?;
        let (backup, took) = client.backup(&instance)?;
        captured.push(paced.p99()?);
        backups.push(took);
        client.delete_backup(&instance, &backup)?;
    }

    let commands = folder.path().join("commands");
    write_commands(&dump, &commands)?;
    let mut ways = [
        Way::new(
            "`redis-cli --pipe` of the same data",
            By::Pipe,
            "shown",
            ["20 ms", "4 s"],
        ),
        Way::new(
            "a replay without a limit",
            By::Replay(Vec::new()),
            "shown",
            ["6 ms", "3 s"],
        ),
        Way::limited("--max-latency-ms", LATENCY_MAX_MS, ["4 ms", "8 s"]),
        Way::limited("--max-ops", OPS_MAX, ["5 ms", "5 s"]),
    ];
    for round in 0..scale.pairs {
        for turn in 0..ways.len() {
            let way = (round + turn) % ways.len();
            ways[way].go(&dump, &commands)?;
        }
    }
    let mut rows = vec![
        Row::of_times("the source, left alone", &quiet, "shown", "0.3 ms").shown(),
        Row::of_times("the source during a backup", &captured, "shown", "8 ms").shown(),
    ];
    for way in &ways {
        let what = format!("the target during {}", way.name);
        rows.push(Row::of_times(what, &way.noticed, way.wanted, way.predicted[0]).shown());
    }
    rows.push(Row::of_times("the backup took", &backups, "shown", "1 s").shown());
    for way in &ways {
        let what = format!("{} took", way.name);
        rows.push(Row::of_times(what, &way.took, "shown", way.predicted[1]).shown());
    }
    Ok(Section {
        title: "What clients of attached servers notice",
        how: format!(
            "{size_mb} MiB of mixed data in a server that somebody else runs, backed up by the service; and applied by `cachekeep restore --from dump.rdb \
             --to redis://...` to an empty one, validated before. Meanwhile (of a replay: from when the first keys come) one client writes a small value every millisecond, without waiting for the answers. Shown is the time within which 99 of 100 of its \
             requests are answered, each counted from when it was to be sent (so a pause counts for all that fall into it). The \
             server, its child that saves, the client and cachekeep share the two processors."
        ),
        rows,
    })
}
