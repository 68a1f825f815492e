//! Servers of others: what their clients notice of a backup and of a replay, and how fast a small backup of one is.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::json;

use super::Scale;
use super::client::{Client, Instance};
use super::report::{Row, Section};
use crate::Stop;
use crate::fill::{Options, fill};
use crate::foreign::{Access, Deployment, Form, Node};
use crate::resp::Target;
use crate::scratch::Scratch;
use crate::service::{Scheme, Service};
use crate::setup::service_program;

/// Between two requests of the paced client.
const PACE: Duration = Duration::from_millis(1);
/// How long it watches a server that has nothing else to do.
const QUIET: Duration = Duration::from_secs(5);
/// The limits of the throttled replays.
const LATENCY_MAX_MS: u32 = 2;
const OPS_MAX: u32 = 100_000;

/// A client that wants to write a small value every millisecond, whether the one before is answered or not. Each time counts from
/// the moment at which the request was to be sent, so one long pause is seen by all requests that would have fallen into it.
struct Paced {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<Vec<Duration>>>,
}

impl Paced {
    fn start(port: u16) -> Result<Self, Stop> {
        let stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
        stream.set_nodelay(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || pace(stream, &stopped));
        Ok(Self { stop, thread })
    }

    /// The time that 99 of 100 requests have not exceeded.
    fn p99(self) -> Result<Duration, Stop> {
        self.stop.store(true, Ordering::Relaxed);
        let panicked = |_| Stop::new("the paced client panicked");
        let mut times = self.thread.join().map_err(panicked)??;
        times.sort_unstable();
        let at = (times.len() * 99).div_ceil(100).saturating_sub(1);
        times
            .get(at)
            .copied()
            .ok_or_else(|| Stop::new("the paced client had no answer"))
    }
}

fn pace(mut stream: TcpStream, stop: &AtomicBool) -> io::Result<Vec<Duration>> {
    let (began, mut times, mut answer) = (Instant::now(), Vec::new(), [0; 64]);
    let mut end = None;
    for number in 1u32.. {
        if end.is_none() && stop.load(Ordering::Relaxed) {
            end = Some(Instant::now());
        }
        let due = began + PACE * number;
        // Those that were due before count, however late they are.
        if end.is_some_and(|end| due > end) {
            break;
        }
        if let Some(early) = due.checked_duration_since(Instant::now()) {
            std::thread::sleep(early);
        }
        stream.write_all(format!("SET paced:{} some-value\r\n", number % 1000).as_bytes())?;
        let length = stream.read(&mut answer)?;
        if answer[..length] != *b"+OK\r\n" {
            return Err(io::Error::other(
                String::from_utf8_lossy(&answer[..length]).into_owned(),
            ));
        }
        times.push(due.elapsed());
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

fn replay(dump: &Path, node: &Node, words: &[String]) -> Result<Duration, Stop> {
    let started = Instant::now();
    let done = Command::new(service_program())
        .args(["restore", "-q", "-o", "json", "--from"])
        .arg(dump)
        .args(["--to", &format!("redis://127.0.0.1:{}", node.port)])
        .args(words)
        .stdin(Stdio::null())
        .output()?;
    match done.status.success() {
        true => Ok(started.elapsed()),
        false => Err(Stop::new(format!(
            "the replay failed: {}",
            String::from_utf8_lossy(&done.stderr)
        ))),
    }
}

/// A way to apply a backup, and what its clients noticed each time.
struct Way {
    name: String,
    words: Vec<String>,
    wanted: &'static str,
    predicted: &'static str,
    noticed: Vec<Duration>,
    took: Vec<Duration>,
}

impl Way {
    fn new(name: &str, words: &[String], wanted: &'static str, predicted: &'static str) -> Self {
        Self {
            name: name.to_owned(),
            words: words.to_vec(),
            wanted,
            predicted,
            noticed: Vec::new(),
            took: Vec::new(),
        }
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

    let limited = |name: &str, value: u32| vec![name.to_owned(), value.to_string()];
    let mut ways = [
        Way::new("a replay without a limit", &[], "shown", "10 ms"),
        Way::new(
            &format!("a replay with `--max-latency-ms {LATENCY_MAX_MS}`"),
            &limited("--max-latency-ms", LATENCY_MAX_MS),
            "less than without",
            "4 ms",
        ),
        Way::new(
            &format!("a replay with `--max-ops {OPS_MAX}`"),
            &limited("--max-ops", OPS_MAX),
            "less than without",
            "3 ms",
        ),
    ];
    for round in 0..scale.pairs {
        for turn in 0..ways.len() {
            let way = &mut ways[(round + turn) % 3];
            let there = foreign(&[])?;
            let paced = Paced::start(there.nodes[0].port)?;
            way.took.push(replay(&dump, &there.nodes[0], &way.words)?);
            way.noticed.push(paced.p99()?);
        }
    }
    let mut rows = vec![
        Row::of_times("the source, left alone", &quiet, "shown", "0.3 ms").shown(),
        Row::of_times("the source during a backup", &captured, "shown", "8 ms").shown(),
    ];
    for way in &ways {
        let what = format!("the target during {}", way.name);
        rows.push(Row::of_times(what, &way.noticed, way.wanted, way.predicted).shown());
    }
    rows.push(Row::of_times("the backup took", &backups, "shown", "1 s").shown());
    for (way, predicted) in ways.iter().zip(["1.5 s", "3 s", "4 s"]) {
        let what = format!("{} took", way.name);
        rows.push(Row::of_times(what, &way.took, "shown", predicted).shown());
    }
    Ok(Section {
        title: "What clients of attached servers notice",
        how: format!(
            "{size_mb} MiB of mixed data in a server that somebody else runs, backed up by the service; and applied by `cachekeep restore --from dump.rdb \
             --to redis://...` to an empty one, validated first. Meanwhile one client wants to write a small value every millisecond. Shown is the time within which 99 of 100 of its \
             requests are answered, each counted from when it was to be sent and not from when it could be (so a pause counts for all that fall into it). The \
             server, its child that saves, the client and cachekeep share the two processors."
        ),
        rows,
    })
}
