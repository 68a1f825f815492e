//! Reading RDB files, beside other programs that do: each in a process of its own, on one processor.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::Scale;
use super::report::{Row, Section};
use crate::Stop;
use crate::fill::{Options, fill};
use crate::plain_engine::PlainEngine;
use crate::resp::Connection;
use crate::scratch::Scratch;
use crate::setup::{cargo, repository, run_visibly, service_program};

/// The peer from the crate registry.
const RDB_CRATE_VERSION: &str = "0.4.0";
/// The peer from the Python package index; it reads no file above version 9.
const RDBTOOLS_VERSION: &str = "0.1.15";
/// Python reads so slowly that it gets one turn and not one per pair.
const SLOW_TURNS: usize = 1;

/// Three times as fast.
const GOAL: &str = "<= 0.33x";

/// A program that reads an RDB file.
struct Reader {
    name: String,
    words: Vec<String>,
    /// Where it may run, as taskset names them.
    processors: &'static str,
    turns: usize,
    wanted: &'static str,
    predicted: &'static str,
}

/// Measures all of it.
///
/// # Errors
/// A program is missing, cannot be built, or refuses the file.
pub fn measure(scale: &Scale) -> Result<Vec<Section>, Stop> {
    let ours = build()?;
    let rdb_crate = install_rdb_crate()?;
    let rdbtools = install_rdbtools()?;
    let folder = Scratch::new("parse")?;
    let mixed = folder.path().join("mixed.rdb");
    make_mixed(scale, &mixed)?;
    let tiny = folder.path().join("tiny.rdb");
    make_tiny(scale, &tiny)?;
    let mut sections = Vec::new();
    for (title, how, file) in [
        (
            "Parsing, mixed data",
            "What `xtask fill` makes, saved by redis-server with LZF",
            &mixed,
        ),
        (
            "Parsing, tiny keys",
            "Strings of 11 bytes under keys of 10, saved by redis-server",
            &tiny,
        ),
    ] {
        let text = |path: &Path| path.display().to_string();
        let mut peers = peers(scale, &text(&ours), &text(&rdb_crate), &text(file));
        if file == &tiny {
            // The mixed data takes it minutes.
            let old = folder.path().join("old.rdb");
            write_old(&tiny, &old)?;
            peers.push(Reader {
                name: format!(
                    "redis-rdb-tools {RDBTOOLS_VERSION}, `-c justkeys`, of the same keys as version 9"
                ),
                words: [&text(&rdbtools), "-c", "justkeys", &text(&old)]
                    .map(str::to_owned)
                    .to_vec(),
                processors: "0",
                turns: SLOW_TURNS,
                wanted: GOAL,
                predicted: "0.01x",
            });
        }
        sections.push(section(title, how, file, &text(&ours), &peers)?);
    }
    Ok(sections)
}

/// The same keys for redis-6.2.
fn write_old(file: &Path, old: &Path) -> Result<(), Stop> {
    run_visibly(
        Command::new(service_program())
            .args(["export", "--format", "rdb", "--target", "redis-6.2", "--to"])
            .args([old, file]),
    )
}

fn peers(scale: &Scale, ours: &str, rdb_crate: &str, file: &str) -> Vec<Reader> {
    let reader = |name: &str, words: &[&str], wanted, predicted| Reader {
        name: name.to_owned(),
        words: words.iter().map(|word| (*word).to_owned()).collect(),
        processors: "0",
        turns: scale.pairs,
        wanted,
        predicted,
    };
    let of_crate = format!("the crate rdb {RDB_CRATE_VERSION}, `--format nil`");
    let librdb = super::librdb().map(|path| path.display().to_string());
    let of_librdb = librdb.as_deref().map(|rdb_cli| {
        let words = [
            rdb_cli,
            file,
            "-l",
            "/dev/null",
            "print",
            "-o",
            "/dev/null",
            "-k",
            "",
        ];
        reader("librdb's `rdb-cli FILE print -k \"\"`", &words, GOAL, "0.25x")
    });
    let mut peers: Vec<Reader> = of_librdb.into_iter().collect();
    peers.extend([
        reader("redis-check-rdb", &["redis-check-rdb", file], GOAL, "0.25x"),
        reader(&of_crate, &[rdb_crate, "--format", "nil", file], GOAL, "0.3x"),
        reader("floor: `cat` into a pipe", &["cat", file], "shown", "8x"),
        reader("floor: our CRC64 alone", &[ours, "crc64", file], "shown", "3x"),
        Reader {
            processors: "0,1",
            ..reader(
                "ours on two processors, `rdb_once threads`",
                &[ours, "threads", file],
                "shown",
                "1.7x",
            )
        },
        Reader {
            processors: "0,1",
            ..reader(
                "ours on two processors, with every key compared with every other",
                &[ours, "threads-compare", file],
                "shown",
                "1.3x",
            )
        },
        reader(
            "ours, with every key compared with every other",
            &[ours, "compare", file],
            "shown",
            "0.8x",
        ),
    ]);
    peers
}

fn section(
    title: &'static str,
    how: &str,
    file: &Path,
    ours: &str,
    peers: &[Reader],
) -> Result<Section, Stop> {
    let bytes = std::fs::metadata(file)
        .map_err(|e| Stop::file("read", file, &e))?
        .len();
    println!("{title}, {:.1} MB", bytes as f64 / 1e6);
    let validate = [ours, "validate", &file.display().to_string()].map(str::to_owned);
    // Once, so that the file is in the page cache.
    time("0", &validate)?;
    let mut rows = Vec::new();
    for peer in peers {
        let mut pairs = Vec::new();
        for turn in 0..peer.turns {
            let other_first = turn % 2 == 0;
            let before = if other_first {
                time(peer.processors, &peer.words)?
            } else {
                time("0", &validate)?
            };
            let after = if other_first {
                time("0", &validate)?
            } else {
                time(peer.processors, &peer.words)?
            };
            pairs.push(if other_first {
                (before, after)
            } else {
                (after, before)
            });
        }
        rows.push(Row::of_pairs(peer.name.clone(), &pairs, peer.wanted, peer.predicted).shown());
    }
    Ok(Section {
        title,
        how: format!(
            "{how}: {:.1} MB. Ours: every structure validated, census, digests and CRC64, by `rdb_once validate`. All on \
             one processor (`taskset -c 0`) where two are not named, each a process, from its start to its end, the file in the page cache.",
            bytes as f64 / 1e6
        ),
        rows,
    })
}

/// Runs a program on some processors, its output thrown away behind a pipe.
fn time(processors: &str, words: &[String]) -> Result<Duration, Stop> {
    let started = Instant::now();
    let mut child = Command::new("taskset")
        .args(["-c", processors])
        .args(words)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| Stop::new(format!("cannot start taskset: {e}")))?;
    if let Some(mut output) = child.stdout.take() {
        std::io::copy(&mut output, &mut std::io::sink())?;
    }
    let status = child.wait()?;
    let elapsed = started.elapsed();
    match status.success() {
        true => Ok(elapsed),
        false => Err(Stop::new(format!("{} failed: {status}", words.join(" ")))),
    }
}

fn build() -> Result<PathBuf, Stop> {
    run_visibly(cargo().args(["build", "--release", "--package", "rdb", "--example", "rdb_once"]))?;
    Ok(service_program().with_file_name("examples").join("rdb_once"))
}

fn install_rdb_crate() -> Result<PathBuf, Stop> {
    let root = repository().join(".tools");
    let program = root.join("bin/rdb");
    if program.exists() {
        return Ok(program);
    }
    println!(
        "installing the crate rdb {RDB_CRATE_VERSION} into {}",
        root.display()
    );
    run_visibly(
        cargo()
            .args(["install", "--quiet", "--locked", "--root"])
            .arg(&root)
            .args(["--version", RDB_CRATE_VERSION, "rdb"])
            .env_remove("CARGO_TARGET_DIR"),
    )?;
    Ok(program)
}

fn install_rdbtools() -> Result<PathBuf, Stop> {
    let environment = repository().join(".tools/rdbtools");
    let program = environment.join("bin/rdb");
    if program.exists() {
        return Ok(program);
    }
    println!(
        "installing redis-rdb-tools {RDBTOOLS_VERSION} into {}",
        environment.display()
    );
    run_visibly(Command::new("python3").args(["-m", "venv"]).arg(&environment))?;
    run_visibly(
        Command::new(environment.join("bin/python"))
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
            .args([format!("rdbtools=={RDBTOOLS_VERSION}"), "python-lzf".to_owned()]),
    )?;
    Ok(program)
}

fn make_mixed(scale: &Scale, to: &Path) -> Result<(), Stop> {
    let engine = PlainEngine::start(&[])?;
    let options = Options {
        size_mb: Some(scale.size_mb),
        ..Options::default()
    };
    fill(&engine.target(), &options)?;
    save(&engine, to)
}

fn make_tiny(scale: &Scale, to: &Path) -> Result<(), Stop> {
    let engine = PlainEngine::start(&[])?;
    let mut connection = Connection::open(&engine.target())?;
    for i in 0..scale.records {
        connection.send(&["SET", &format!("key:{i:06}"), &format!("value{i:06}")])?;
    }
    connection.settle()?;
    save(&engine, to)
}

fn save(engine: &PlainEngine, to: &Path) -> Result<(), Stop> {
    Connection::open(&engine.target())?.ask(&["SAVE"])?;
    let saved = engine.folder().join("dump.rdb");
    std::fs::copy(&saved, to).map_err(|e| Stop::file("copy", &saved, &e))?;
    Ok(())
}
