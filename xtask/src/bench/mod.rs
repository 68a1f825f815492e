//! `cargo xtask bench`: what the service costs beside the engine's own tools, measured in pairs in one run.

mod attached;
mod client;
mod clients;
mod cluster;
mod data;
mod failover;
mod generator;
mod listing;
mod load;
mod parse;
mod replay;
mod report;
mod seconds;

use std::path::PathBuf;
use std::time::Duration;

use crate::Stop;
use crate::args::Args;
use crate::setup::{Purpose, build_service, prepare};
use report::Section;

/// `cargo xtask bench --help`.
pub const HELP: &str = "\
Measures backup, restore, the restore list and the reading of RDB files beside the engine's own tools, a bare HTTP
route and other readers; and the API under load.

  cargo xtask bench [--quick] [NAME...]

  --quick   one pair of small data: shows that the measurement works, says nothing about speed
  NAME      some of: backup, small-backup, restore, cluster, failover, replay, attached, switch, listing, parse; without
            any: all of these; or load, which takes 40 minutes more and is run by its name only.
            CACHEKEEP_BENCH_CATALOG=sqlite or postgres: only that one; CACHEKEEP_BENCH_SECONDS: its ten minutes;
            CACHEKEEP_BENCH_GO=FILE: it waits for that file once all is seeded; CACHEKEEP_BENCH_HOLD=FILE: before the load it
            puts the generator's plan there and waits until the file is gone
            CACHEKEEP_LIBRDB=FILE: librdb's rdb-cli, which no system has as a package, is one of the peers of parse and
            replay (make in a clone of it with its submodules)

A full run of all takes about 20 minutes on 2 cores, needs 6 GiB of memory and 5 GiB of disk, and writes
docs/benchmarks.md. Nothing else should run on the machine meanwhile.
";

const NAMES: [&str; 10] = [
    "backup",
    "small-backup",
    "restore",
    "cluster",
    "failover",
    "replay",
    "attached",
    "switch",
    "listing",
    "parse",
];

/// What is run by its name only.
const BY_NAME: [&str; 1] = ["load"];

/// Those whose sections stand alone: measured alone they replace what is written of them.
const SECTIONS: [&str; 6] = ["attached", "cluster", "failover", "load", "parse", "replay"];

/// How much is measured.
#[derive(Debug, Clone, Copy)]
struct Scale {
    /// Pairs per figure.
    pairs: usize,
    /// Memory that the data of the large instance takes.
    size_mb: u64,
    /// Records of the long list.
    records: u64,
    /// Requests timed together for one figure of the list.
    requests: u32,
    /// Time of one run of wrk.
    load: Duration,
    /// How many people's requests.
    crowd: load::Amount,
}

const FULL: Scale = Scale {
    pairs: 5,
    size_mb: 1024,
    records: 1_000_000,
    requests: 500,
    load: Duration::from_secs(8),
    crowd: load::FULL,
};
const QUICK: Scale = Scale {
    pairs: 1,
    size_mb: 64,
    records: 20_000,
    requests: 50,
    load: Duration::from_secs(1),
    crowd: load::QUICK,
};

/// librdb's `rdb-cli`, where somebody has built it.
fn librdb() -> Option<PathBuf> {
    std::env::var_os("CACHEKEEP_LIBRDB").map(PathBuf::from)
}

/// Runs the measurements.
///
/// # Errors
/// Something did not work; a figure that is worse than wanted is no error.
pub fn command(mut args: Args) -> Result<(), Stop> {
    let quick = args.flag("--quick");
    let chosen = args.names()?;
    if let Some(unknown) = chosen
        .iter()
        .find(|name| !NAMES.contains(&name.as_str()) && !BY_NAME.contains(&name.as_str()))
    {
        return Err(
            Stop::new(format!("no measurement is called {unknown}")).advice("cargo xtask bench --help")
        );
    }
    let wants = |name: &str| chosen.is_empty() || chosen.iter().any(|chosen| chosen == name);
    let is_named = |name: &str| chosen.iter().any(|chosen| chosen == name);
    let only_parse = chosen == ["parse"];
    let only_sections = !chosen.is_empty() && chosen.iter().all(|name| SECTIONS.contains(&name.as_str()));
    prepare(if only_parse { Purpose::Run } else { Purpose::Bench })?;
    build_service()?;
    print!("{}", report::machine());
    let scale = if quick { QUICK } else { FULL };
    let mut sections: Vec<Section> = Vec::new();
    if wants("backup") || wants("restore") {
        data::measure_large(&scale, wants("backup"), wants("restore"), &mut sections)?;
    }
    if wants("small-backup") {
        sections.push(data::measure_small_backup(&scale)?);
    }
    if wants("cluster") {
        sections.push(cluster::measure(&scale)?);
    }
    if wants("failover") {
        sections.push(failover::measure(&scale)?);
    }
    if wants("replay") {
        sections.extend(replay::measure(&scale)?);
    }
    if wants("attached") {
        sections.extend(attached::measure(&scale)?);
    }
    if wants("switch") {
        sections.push(data::measure_switch(&scale)?);
    }
    if wants("listing") {
        sections.push(listing::measure(&scale)?);
    }
    if wants("parse") {
        sections.extend(parse::measure(&scale)?);
    }
    if is_named("load") {
        sections.extend(load::measure(&scale)?);
    }
    // A shortened run shows that it works, as a quick one does.
    let quick = quick || std::env::var_os("CACHEKEEP_BENCH_SECONDS").is_some();
    if only_sections && !quick {
        return report::replace(&sections);
    }
    if quick || !chosen.is_empty() {
        println!(
            "docs/benchmarks.md is written by a full run of all, and the sections of {} by runs of these alone",
            SECTIONS.join(", ")
        );
        return Ok(());
    }
    report::write(&sections, scale.pairs)
}
