//! A backup applied to servers that run, beside what their users have for it.

use std::fs::File;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::Scale;
use super::report::{Row, Section, median};
use crate::Stop;
use crate::fill::damage::databases;
use crate::fill::{Options, Profile, fill};
use crate::plain_cluster::PlainCluster;
use crate::plain_engine::PlainEngine;
use crate::resp::Connection;
use crate::scratch::Scratch;
use crate::setup::service_program;

/// Ticks of the kernel's clock in a second, in which it counts the time of processes.
const TICKS: f64 = 100.0;
/// Shards of the cluster.
const SHARDS: usize = 3;

/// Time of processors that a process has used, or that its children have which have ended.
fn cpu_of(pid: &str, fields: [usize; 2]) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name may have blanks: fields are counted from behind it. The third is the first there.
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let values: Vec<&str> = rest.split_whitespace().collect();
    let tick = |field: usize| values.get(field - 3).and_then(|text| text.parse::<f64>().ok());
    fields.into_iter().filter_map(tick).sum::<f64>() / TICKS
}

pub(super) fn own_cpu_of(pid: u32) -> f64 {
    cpu_of(&pid.to_string(), [14, 15])
}

fn cpu_of_children() -> f64 {
    cpu_of("self", [16, 17])
}

/// What one way took.
struct Taken {
    wall: Duration,
    /// Processor seconds of the program, and of all targets together.
    own: f64,
    targets: f64,
    /// The same from when the targets begin to work, where that was looked for.
    sending: Option<Sending>,
}

/// The part of it in which the targets have something to do.
#[derive(Clone, Copy)]
pub(super) struct Sending {
    seconds: f64,
    own: f64,
    targets: f64,
}

impl Sending {
    /// Looks until the targets have begun to work, or the program has ended: what all had used by then.
    pub(super) fn wait(began: Instant, child: u32, idle: f64, sum: impl Fn() -> f64) -> Option<Self> {
        // A few ticks of its clock are what an idle engine uses for itself.
        while sum() < idle + 0.03 {
            let has_ended = std::fs::read_to_string(format!("/proc/{child}/stat")).map_or(true, |stat| {
                stat.rsplit_once(") ")
                    .is_none_or(|(_, rest)| rest.starts_with('Z'))
            });
            if has_ended {
                return None;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Some(Self {
            seconds: began.elapsed().as_secs_f64(),
            own: own_cpu_of(child),
            targets: sum() - idle,
        })
    }
}

fn take(targets: &[u32], start: impl FnOnce() -> Result<Child, Stop>) -> Result<Taken, Stop> {
    let sum = || targets.iter().map(|pid| own_cpu_of(*pid)).sum::<f64>();
    let (own, there, began) = (cpu_of_children(), sum(), Instant::now());
    let child = start()?;
    let before = Sending::wait(began, child.id(), there, sum);
    let ended = child.wait_with_output()?;
    let wall = began.elapsed();
    if !ended.status.success() {
        return Err(Stop::new(format!(
            "it failed: {}",
            String::from_utf8_lossy(&ended.stderr)
        )));
    }
    let (own, targets) = (cpu_of_children() - own, sum() - there);
    Ok(Taken {
        wall,
        own,
        targets,
        sending: before.map(|before| Sending {
            seconds: wall.as_secs_f64() - before.seconds,
            own: own - before.own,
            targets: targets - before.targets,
        }),
    })
}

fn free_port() -> Result<String, Stop> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port().to_string())
}

/// How many keys a server has in all its databases.
fn keys_of(mut link: Connection) -> Result<u64, Stop> {
    Ok(databases(&mut link)?.iter().map(|(_, keys)| keys).sum())
}

/// Who has loaded a part was not fast. None of the keys expires within a day.
fn check_whole(who: &str, loaded: u64, wanted: u64) -> Result<(), Stop> {
    match loaded == wanted {
        true => Ok(()),
        false => Err(Stop::new(format!("{who} loaded {loaded} keys of {wanted}"))),
    }
}

/// Ours and librdb's in turn, over TCP, which is all that it knows.
fn beside_librdb(
    rdb_cli: &Path,
    dump: &Path,
    keys: u64,
    pairs: usize,
) -> Result<Vec<(Duration, Duration)>, Stop> {
    let mut all = Vec::new();
    for round in 0..pairs {
        let (mut peer, mut own) = (Duration::ZERO, Duration::ZERO);
        for turn in 0..2 {
            let port = free_port()?;
            let target = PlainEngine::start(&[("port", &port)])?;
            let is_peer = (round + turn) % 2 == 0;
            if is_peer {
                let run = || {
                    let mut command = Command::new(rdb_cli);
                    // With -r, which sends RESTORE, 2.1.0 sends a payload of this data that the target refuses (Bad data format).
                    command
                        .arg(dump)
                        .args(["-l", "/dev/null", "redis", "-l", "1000", "-t", "7.0"]);
                    command.args(["-h", "127.0.0.1", "-p", &port]);
                    Ok(command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?)
                };
                peer = take(&[target.pid()], run)?.wall;
            } else {
                own = take(&[target.pid()], || {
                    ours(dump, &format!("redis://127.0.0.1:{port}"))
                })?
                .wall;
            }
            let who = if is_peer { "librdb" } else { "cachekeep" };
            check_whole(who, keys_of(Connection::open(&target.target())?)?, keys)?;
        }
        all.push((peer, own));
    }
    Ok(all)
}

/// Writes the commands that make what a dump has, as `redis-cli --pipe` takes them.
pub(super) fn write_commands(dump: &Path, commands: &Path) -> Result<(), Stop> {
    let exported = Command::new(service_program())
        .args(["export", "--format", "aof", "--to"])
        .arg(commands)
        .arg(dump)
        .stderr(Stdio::null())
        .status()?;
    // 3: what no command makes, such as when a consumer was last seen.
    match exported.code() {
        Some(0 | 3) => Ok(()),
        _ => Err(Stop::new("the commands could not be written")),
    }
}

/// `redis-cli --pipe` with such commands.
pub(super) fn pipe(commands: &Path, to: &[&str]) -> Result<Child, Stop> {
    let input = File::open(commands).map_err(|e| Stop::file("open", commands, &e))?;
    let mut command = Command::new("redis-cli");
    command.args(to).arg("--pipe").stdin(input);
    Ok(command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?)
}

fn ours(file: &Path, to: &str) -> Result<Child, Stop> {
    let mut command = Command::new(service_program());
    command
        .args(["restore", "-q", "-o", "json", "--to", to, "--from"])
        .arg(file);
    Ok(command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?)
}

/// A share of the part in which keys were sent, of each run that was looked at.
fn sending_shares(runs: &[Taken], share: impl Fn(&Sending) -> f64) -> String {
    let all: Vec<f64> = runs
        .iter()
        .filter_map(|taken| taken.sending.as_ref())
        .map(share)
        .collect();
    match all.is_empty() {
        true => "-".to_owned(),
        false => format!("{:.0} %", 100.0 * median(&all)),
    }
}

/// A share of the wall time, of each run.
fn shares(runs: &[Taken], share: impl Fn(&Taken) -> f64) -> String {
    let all: Vec<f64> = runs.iter().map(share).collect();
    format!("{:.0} %", 100.0 * median(&all))
}

fn alone(what: &str, figure: String, wanted: &'static str, predicted: &'static str) -> Row {
    let row = Row {
        what: what.to_owned(),
        peer: String::new(),
        ours: String::new(),
        result: figure,
        spread: String::new(),
        wanted,
        predicted,
    };
    row.shown()
}

/// Into one server and into a cluster.
pub fn measure(scale: &Scale) -> Result<Vec<Section>, Stop> {
    Ok(vec![into_one(scale)?, into_cluster(scale)?])
}

fn into_one(scale: &Scale) -> Result<Section, Stop> {
    println!("replay into one server, {} MiB in memory", scale.size_mb);
    let folder = Scratch::new("replay")?;
    let (dump, commands) = (folder.path().join("dump.rdb"), folder.path().join("commands"));
    let keys = {
        let source = PlainEngine::start(&[])?;
        let options = Options {
            size_mb: Some(scale.size_mb),
            functions: false,
            ..Options::default()
        };
        fill(&source.target(), &options)?;
        Connection::open(&source.target())?.ask(&["SAVE"])?;
        let made = source.folder().join("dump.rdb");
        std::fs::rename(&made, &dump).map_err(|e| Stop::file("move", &made, &e))?;
        keys_of(Connection::open(&source.target())?)?
    };
    write_commands(&dump, &commands)?;
    let (mut pairs, mut peers, mut own) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..scale.pairs {
        for turn in 0..2 {
            let target = PlainEngine::start(&[])?;
            let socket = target.socket().display().to_string();
            let is_peer = (round + turn) % 2 == 0;
            if is_peer {
                peers.push(take(&[target.pid()], || pipe(&commands, &["-s", &socket]))?);
            } else {
                own.push(take(&[target.pid()], || ours(&dump, &format!("unix:{socket}")))?);
            }
            let who = if is_peer { "redis-cli --pipe" } else { "cachekeep" };
            check_whole(who, keys_of(Connection::open(&target.target())?)?, keys)?;
        }
        if let (Some(peer), Some(own)) = (peers.last(), own.last()) {
            pairs.push((peer.wall, own.wall));
        }
    }
    let mut rows = vec![Row::of_pairs("beside `redis-cli --pipe`", &pairs, "<= 0.87x", "0.75x").shown()];
    if let Some(rdb_cli) = super::librdb() {
        let pairs = beside_librdb(&rdb_cli, &dump, keys, scale.pairs)?;
        rows.push(
            Row::of_pairs(
                "beside `rdb-cli FILE redis -l 1000` of librdb, over TCP",
                &pairs,
                "<= 0.87x",
                "0.6x",
            )
            .shown(),
        );
    }
    let seconds = |taken: &Taken| taken.wall.as_secs_f64();
    rows.extend([
        alone(
            "the target's processor while keys were sent",
            sending_shares(&own, |sending| sending.targets / sending.seconds),
            ">= 90 %",
            "98 %",
        ),
        alone(
            "our processor time beside the target's while keys were sent",
            sending_shares(&own, |sending| sending.own / sending.targets),
            "<= 20 %",
            "17 %",
        ),
        alone(
            "the target's processor from start to end, validation included",
            shares(&own, |taken| taken.targets / seconds(taken)),
            ">= 80 %",
            "88 %",
        ),
        alone(
            "our processor time beside the target's, validation included",
            shares(&own, |taken| taken.own / taken.targets),
            "shown",
            "32 %",
        ),
        alone(
            "the target's processor while `redis-cli --pipe` ran",
            shares(&peers, |taken| taken.targets / seconds(taken)),
            "-",
            "95 %",
        ),
        alone(
            "that of `redis-cli --pipe`, which validates nothing, beside the target's",
            shares(&peers, |taken| taken.own / taken.targets),
            "-",
            "20 %",
        ),
    ]);
    Ok(Section {
        title: "Replay into one server",
        how: format!(
            "{} MiB of mixed data into an empty engine, `rdbcompression yes`. Ours: `cachekeep restore --from dump.rdb --to unix:...`, from its start to its end: \
             the whole file validated by every processor, then applied, every key answered for. *While keys were sent*: from when the target begins to use its processor. \
             Other: `redis-cli --pipe` of the same data as commands, written before; librdb's `rdb-cli` where `CACHEKEEP_LIBRDB` names one.",
            scale.size_mb
        ),
        rows,
    })
}

fn into_cluster(scale: &Scale) -> Result<Section, Stop> {
    let keys = scale.size_mb * 2000;
    println!("replay into a cluster of {SHARDS}, {keys} keys");
    let folder = Scratch::new("replay")?;
    let dump = folder.path().join("dump.rdb");
    let held = {
        let source = PlainEngine::start(&[])?;
        let options = Options {
            keys,
            dbs: 1,
            profile: Profile::Tiny,
            functions: false,
            ttl_share: 0.0,
            ..Options::default()
        };
        fill(&source.target(), &options)?;
        Connection::open(&source.target())?.ask(&["SAVE"])?;
        let made = source.folder().join("dump.rdb");
        std::fs::rename(&made, &dump).map_err(|e| Stop::file("move", &made, &e))?;
        keys_of(Connection::open(&source.target())?)?
    };
    let (mut pairs, mut peers, mut own) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..scale.pairs {
        for turn in 0..2 {
            let cluster = PlainCluster::start(SHARDS, 0, &[])?;
            let pids: Vec<u32> = (0..SHARDS).filter_map(|node| cluster.pid(node)).collect();
            let port = cluster.port(0).to_string();
            if (round + turn) % 2 == 0 {
                peers.push(take(&pids, || {
                    let mut command = Command::new("redis-benchmark");
                    command.args([
                        "-p",
                        &port,
                        "--cluster",
                        "-t",
                        "set",
                        "-P",
                        "100",
                        "-c",
                        "3",
                        "-q",
                    ]);
                    command.args(["-n", &keys.to_string(), "-r", &keys.to_string(), "-d", "8"]);
                    Ok(command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?)
                })?);
            } else {
                own.push(take(&pids, || ours(&dump, &format!("redis://127.0.0.1:{port}")))?);
                // What redis-benchmark makes has random names, some of them twice.
                let mut loaded = 0;
                for node in 0..SHARDS {
                    loaded += keys_of(cluster.connect(node)?)?;
                }
                check_whole("cachekeep", loaded, held)?;
            }
        }
        if let (Some(peer), Some(own)) = (peers.last(), own.last()) {
            let rate = |taken: &Taken| keys as f64 / SHARDS as f64 / taken.wall.as_secs_f64();
            pairs.push((rate(peer), rate(own)));
        }
    }
    let seconds = |taken: &Taken| taken.wall.as_secs_f64();
    Ok(Section {
        title: "Replay into a cluster of three shards",
        how: format!(
            "{keys} strings of a few bytes into an empty cluster on this machine, whose processors the three nodes and the program share. Ours: \
             `cachekeep restore --from dump.rdb --to redis://...`, validation included; no other tool here routes a file by slot. Other: \
             `redis-benchmark --cluster -t set -P 100 -c 3`, which makes as many SET of 8 bytes: what the nodes take when nothing has to be read."
        ),
        rows: vec![
            Row::of_rates("keys in a second and shard", &pairs, "-", "1.1x").shown(),
            alone(
                "the nodes' processors while ours ran",
                shares(&own, |taken| taken.targets / seconds(taken)),
                "-",
                "150 %",
            ),
            alone(
                "the nodes' processors while redis-benchmark ran",
                shares(&peers, |taken| taken.targets / seconds(taken)),
                "-",
                "120 %",
            ),
            alone(
                "our processor time beside the nodes' while keys were sent",
                sending_shares(&own, |sending| sending.own / sending.targets),
                "<= 20 %",
                "19 %",
            ),
            alone(
                "our processor time beside the nodes', validation included",
                shares(&own, |taken| taken.own / taken.targets),
                "shown",
                "25 %",
            ),
        ],
    })
}
