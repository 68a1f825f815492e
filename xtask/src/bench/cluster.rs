//! Restores of a cluster, beside its own engines that start on the same files, and into other shards.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;

use super::Scale;
use super::client::{Client, Instance};
use super::data::filled_with;
use super::report::{Row, Section};
use crate::Stop;
use crate::fill::Options;
use crate::plain_cluster::PlainCluster;
use crate::scratch::Scratch;
use crate::service::{Scheme, Service};

/// Shards of the backup, and of what it is cut anew for.
const SHARDS: usize = 3;
const OTHER_SHARDS: usize = 5;
/// Between two looks at an engine that starts.
const POLL_EVERY: Duration = Duration::from_millis(2);
/// How long its start may take.
const START_MAX: Duration = Duration::from_secs(300);

/// From the start of all processes on.
struct Started {
    /// Until the last one has loaded its file.
    loaded: Duration,
    /// Until all say that the cluster serves.
    serving: Duration,
}

/// Both comparisons share the backup, because filling it takes longest.
pub fn measure(scale: &Scale) -> Result<Section, Stop> {
    println!("restore of a cluster, {} MiB in memory", scale.size_mb);
    let service = Service::start(Scheme::Http, &[])?;
    let mut client = Client::login(&service)?;
    let source = filled_with(
        &mut client,
        &Options {
            size_mb: Some(scale.size_mb),
            dbs: 1,
            ..Options::default()
        },
    )?;
    let (of_single, _) = client.backup(&source)?;
    let three = cluster(&mut client, SHARDS)?;
    let five = cluster(&mut client, OTHER_SHARDS)?;
    client.restore_of(&three, &source, &of_single)?;
    client.delete_instance(&source)?;
    let (backup, _) = client.backup(&three)?;
    let folder = Scratch::new("bench")?;
    let dumps: Vec<PathBuf> = (0..SHARDS)
        .map(|shard| folder.path().join(format!("{shard}.rdb")))
        .collect();
    let paths: Vec<_> = dumps.iter().map(PathBuf::as_path).collect();
    client.download(&three, &backup, &paths)?;
    let mut peer = PlainCluster::start(SHARDS, 0, &[])?;
    let (mut against_serving, mut against_loaded, mut anew) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..scale.pairs {
        let (mut started, mut same, mut other) = (None, Duration::ZERO, Duration::ZERO);
        for turn in 0..3 {
            match (round + turn) % 3 {
                0 => started = Some(restart_on(&mut peer, &dumps)?),
                1 => same = restored(&mut client, &three, &three, &backup)?,
                _ => other = restored(&mut client, &five, &three, &backup)?,
            }
        }
        if let Some(started) = started {
            against_serving.push((started.serving, same));
            against_loaded.push((started.loaded, same));
        }
        anew.push((same, other));
    }
    Ok(Section {
        title: "Restore of a cluster, end to end",
        how: format!(
            "{SHARDS} shards without replicas with {} MiB of mixed data together. Ours: from `POST .../restores` to status \
             `succeed`, polled every 10 ms. Other: a cluster of {SHARDS} stock redis-servers, started at the same time on \
             the dump files of the same backup and on the `nodes.conf` that they had, until the last answers that it has \
             loaded, and until all say `cluster_state:ok`: only then a client is served.",
            scale.size_mb
        ),
        rows: vec![
            Row::of_pairs(
                "beside its own engines starting on their files, until the cluster serves",
                &against_serving,
                "<= 1.2x, goal < 1.0x",
                "0.85x",
            )
            .shown(),
            Row::of_pairs(
                "the same, until the last one has loaded",
                &against_loaded,
                "shown",
                "2.0x",
            )
            .shown(),
            Row::of_pairs(
                "into 5 shards beside into 3, of the same backup",
                &anew,
                "<= 1.3x",
                "1.35x",
            )
            .shown(),
        ],
    })
}

fn cluster(client: &mut Client, shards: usize) -> Result<Instance, Stop> {
    let parameters = json!({"sharding_count": shards});
    client.create_as(
        &format!("shards-{shards}"),
        4,
        "redis.cluster.xu1.large.r1.4",
        &parameters,
    )
}

fn restored(
    client: &mut Client,
    target: &Instance,
    source: &Instance,
    backup: &str,
) -> Result<Duration, Stop> {
    let (took, phases) = client.restore_of(target, source, backup)?;
    println!("  a restore: {}", phases.line(took));
    Ok(took)
}

/// Ends all nodes, and starts them on these files.
fn restart_on(peer: &mut PlainCluster, dumps: &[PathBuf]) -> Result<Started, Stop> {
    for (node, dump) in dumps.iter().enumerate() {
        peer.kill(node);
        let place = peer.home(node).join("dump.rdb");
        let _first_has_none = std::fs::remove_file(&place);
        if std::fs::hard_link(dump, &place).is_err() {
            std::fs::copy(dump, &place).map_err(|e| Stop::file("copy", dump, &e))?;
        }
    }
    let began = Instant::now();
    for node in 0..dumps.len() {
        peer.run(node)?;
    }
    let until_all = |words: &[&str], wanted: &str| -> Result<Duration, Stop> {
        for node in 0..dumps.len() {
            let says = || {
                let reply = peer.connect(node).and_then(|mut link| Ok(link.call(words)?));
                reply.is_ok_and(|reply| reply.text().is_some_and(|text| text.contains(wanted)))
            };
            while !says() {
                if began.elapsed() > START_MAX {
                    return Err(Stop::new(format!(
                        "node {node} of a stock cluster does not say {wanted}"
                    )));
                }
                std::thread::sleep(POLL_EVERY);
            }
        }
        Ok(began.elapsed())
    };
    let loaded = until_all(&["PING"], "PONG")?;
    let serving = until_all(&["CLUSTER", "INFO"], "cluster_state:ok")?;
    Ok(Started { loaded, serving })
}
