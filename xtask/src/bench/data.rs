//! Backup and restore end to end, beside what the engine itself needs for the same data.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::Scale;
use super::client::{Client, Instance};
use super::clients::{Crowd, Watcher};
use super::report::{Row, Section};
use crate::Stop;
use crate::fill::{Options, fill};
use crate::plain_engine::PlainEngine;
use crate::scratch::Scratch;
use crate::service::{Scheme, Service};

/// Backup and restore of one large instance: they share the data, because filling it takes longest.
pub fn measure_large(
    scale: &Scale,
    backups: bool,
    restores: bool,
    sections: &mut Vec<Section>,
) -> Result<(), Stop> {
    let service = Service::start(Scheme::Http, &[])?;
    let mut client = Client::login(&service)?;
    let instance = filled_instance(&mut client, scale.size_mb)?;
    let folder = Scratch::new("bench")?;
    let dump = folder.path().join("dump.rdb");
    let (backup, _) = client.backup(&instance)?;
    client.download(&instance, &backup, &[&dump])?;
    if backups {
        sections.push(measure_backup(scale, &mut client, &instance, &dump)?);
    }
    if restores {
        sections.push(measure_restore(scale, &mut client, &instance, &backup, &dump)?);
    }
    Ok(())
}

fn filled_instance(client: &mut Client, size_mb: u64) -> Result<Instance, Stop> {
    filled_with(
        client,
        &Options {
            size_mb: Some(size_mb),
            ..Options::default()
        },
    )
}

/// A single instance with this data.
pub fn filled_with(client: &mut Client, options: &Options) -> Result<Instance, Stop> {
    let instance = client.create_instance("measured", 4)?;
    let report = fill(&instance.target(), options)?;
    println!(
        "filled an instance with {} keys in {:.1} s",
        report.keys,
        report.elapsed.as_secs_f64()
    );
    Ok(instance)
}

/// In each round the three ways are measured in another order, and ours is paired with both of the others.
fn measure_backup(
    scale: &Scale,
    client: &mut Client,
    instance: &Instance,
    dump: &Path,
) -> Result<Section, Stop> {
    println!("backup, {} MiB in memory", scale.size_mb);
    let with_lzf = PlainEngine::start_on(
        dump,
        &[("rdbcompression", "yes"), ("repl-diskless-sync-delay", "0")],
    )?;
    let without = PlainEngine::start_on(
        dump,
        &[("rdbcompression", "no"), ("repl-diskless-sync-delay", "0")],
    )?;
    let (mut against_lzf, mut against_plain) = (Vec::new(), Vec::new());
    for round in 0..scale.pairs {
        let mut times = [Duration::ZERO; 3];
        for turn in 0..3 {
            let way = (round + turn) % 3;
            times[way] = match way {
                0 => take_with_redis_cli(&with_lzf)?,
                1 => take_with_redis_cli(&without)?,
                _ => {
                    let (backup, time) = client.backup(instance)?;
                    client.delete_backup(instance, &backup)?;
                    time
                }
            };
        }
        against_lzf.push((times[0], times[2]));
        against_plain.push((times[1], times[2]));
    }
    Ok(Section {
        title: "Backup, end to end",
        how: format!(
            "An instance with {} MiB of mixed data. Ours: from `POST .../backups` to status `succeed`, polled every \
             10 ms: captured, validated to the last byte, compressed, encrypted, stored and fsynced. Other: \
             `redis-cli --rdb FILE` from an engine with the same data, diskless delay 0.",
            scale.size_mb
        ),
        rows: vec![
            Row::of_pairs(
                "beside `redis-cli --rdb`, `rdbcompression yes` (default)",
                &against_lzf,
                "<= 0.9x",
                "0.7x",
            )
            .shown(),
            Row::of_pairs(
                "beside `redis-cli --rdb`, `rdbcompression no`",
                &against_plain,
                "<= 1.15x",
                "1.05x",
            )
            .shown(),
        ],
    })
}

fn take_with_redis_cli(engine: &PlainEngine) -> Result<Duration, Stop> {
    let file = engine.folder().join("taken.rdb");
    let started = Instant::now();
    let done = Command::new("redis-cli")
        .arg("-s")
        .arg(engine.socket())
        .arg("--rdb")
        .arg(&file)
        .stdin(Stdio::null())
        .output()?;
    let elapsed = started.elapsed();
    std::fs::remove_file(&file).map_err(|e| Stop::file("remove", &file, &e))?;
    if done.status.success() {
        return Ok(elapsed);
    }
    Err(Stop::new(format!(
        "redis-cli --rdb: {}",
        String::from_utf8_lossy(&done.stderr)
    )))
}

/// A backup of almost nothing: what is left is the fixed cost.
pub fn measure_small_backup(scale: &Scale) -> Result<Section, Stop> {
    println!("backup, 1 MB");
    let service = Service::start(Scheme::Http, &[])?;
    let mut client = Client::login(&service)?;
    let instance = client.create_instance("small", 1)?;
    let options = Options {
        keys: 2_000,
        ..Options::default()
    };
    fill(&instance.target(), &options)?;
    let defaults = PlainEngine::start(&[])?;
    fill(&defaults.target(), &options)?;
    let mut pairs = Vec::new();
    for round in 0..scale.pairs {
        let (mut peer, mut ours) = (Duration::ZERO, Duration::ZERO);
        for turn in 0..2 {
            if (round + turn) % 2 == 0 {
                peer = take_with_redis_cli(&defaults)?;
            } else {
                (_, ours) = client.backup(&instance)?;
            }
        }
        pairs.push((peer, ours));
    }
    let ours: Vec<Duration> = pairs.iter().map(|pair| pair.1).collect();
    Ok(Section {
        title: "Backup of 1 MB",
        how: "As above with 2,000 mixed keys; the other engine has its default settings, which make every replica \
              wait five seconds for further ones."
            .to_owned(),
        rows: vec![
            Row::of_times("end to end", &ours, "<= 300 ms", "80 ms").shown(),
            Row::of_pairs("beside `redis-cli --rdb` from an engine with default settings", &pairs, "shown", "0.02x")
                .shown(),
        ],
    })
}

fn measure_restore(
    scale: &Scale,
    client: &mut Client,
    instance: &Instance,
    backup: &str,
    dump: &Path,
) -> Result<Section, Stop> {
    println!("restore, {} MiB in memory", scale.size_mb);
    let mut pairs = Vec::new();
    for round in 0..scale.pairs {
        let (mut peer, mut ours) = (Duration::ZERO, Duration::ZERO);
        for turn in 0..2 {
            if (round + turn) % 2 == 0 {
                peer = PlainEngine::start_on(dump, &[])?.ready_after;
            } else {
                (_, ours) = client.restore(instance, backup)?;
            }
        }
        pairs.push((peer, ours));
    }
    Ok(Section {
        title: "Restore, end to end",
        how: format!(
            "The same {} MiB. Ours: from `POST .../restores` to status `succeed`, polled every 10 ms: the whole backup \
             validated, decrypted and decompressed, loaded beside the old data, verified, switched over. Other: the \
             same redis-server started on the dump file of the same backup, until it answers.",
            scale.size_mb
        ),
        rows: vec![
            Row::of_pairs(
                "beside redis-server starting on the dump",
                &pairs,
                "<= 1.3x",
                "1.15x",
            )
            .shown(),
        ],
    })
}

/// What a client sees of the switch: the longest time between two successful writes.
pub fn measure_switch(scale: &Scale) -> Result<Section, Stop> {
    println!("switch, as a client sees it");
    let service = Service::start(Scheme::Http, &[])?;
    let mut client = Client::login(&service)?;
    let instance = filled_instance(&mut client, scale.size_mb / 4)?;
    let (backup, took) = client.backup(&instance)?;
    let mut rows = Vec::new();
    for (connections, predicted) in [(10, "5 ms"), (1000, "15 ms")] {
        let crowd = Crowd::gather(&instance, connections)?;
        let (mut quiet, mut switched) = (Vec::new(), Vec::new());
        for _ in 0..scale.pairs {
            let watcher = Watcher::start(&instance)?;
            std::thread::sleep(took.max(Duration::from_secs(1)));
            quiet.push(watcher.stop()?);
            let watcher = Watcher::start(&instance)?;
            client.restore(&instance, &backup)?;
            switched.push(watcher.stop()?);
        }
        let broken = crowd.disperse();
        println!("  {connections} connections: {broken} were closed by the switches and came back");
        rows.push(
            Row::of_times(
                format!("{connections} connections, a tenth of them subscribers"),
                &switched,
                "<= 20 ms, goal 5 ms",
                predicted,
            )
            .shown(),
        );
        rows.push(
            Row::of_times(
                format!("the same client, {connections} connections, no restore"),
                &quiet,
                "shown",
                "2 ms",
            )
            .shown(),
        );
    }
    Ok(Section {
        title: "Unavailability during a restore",
        how: format!(
            "One client writes every millisecond and reconnects at once when its connection is closed; the figure is \
             its longest time between two successful writes during a whole restore of {} MiB. The other connections \
             send a PING about once a second and come back at once, too. The line without a restore shows what the \
             machine itself does to such a client.",
            scale.size_mb / 4
        ),
        rows,
    })
}
