//! `cachekeep export FILE` and `cachekeep get FILE KEY`: the content of an RDB file as JSON, for another engine, or as
//! commands.
//!
//! The file is read twice. The first pass validates it to its last byte, so that nothing is written of a file
//! that is not valid; the second writes. A backup is decoded twice for that and never put on disk. Memory is bounded whatever the file holds, see [`json`] and [`rdb::Writer`].

mod engine_form;
mod json;
mod text;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, IsTerminal as _, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use engine::Selection;

use super::Global;
use super::closed_pipe::CLOSED_PIPE;
use super::inspect::validator;
use super::selectors::Selectors;
use super::source::{Ended, Part, Source};
use engine_form::EngineForm;
use json::Document;

/// Threads that decode a backup beside the one that validates, and beside the one that also writes: that one reads keys a
/// second time, with buffers of its own.
const SURVEY_WORKERS: usize = 2;
const WORKERS: usize = 1;

/// Write the content of an RDB file as JSON, for another engine, or as commands
#[derive(Args)]
#[command(
    after_help = "The file is validated to its last byte before anything is written.\n\
    json: strings that are not printable UTF-8 are written as {\"b64\": ...}, scores as text, times in Unix milliseconds.\n\
    Of a backup where --key is given, only the blocks are read that may hold the keys, and how many is told on standard\n\
    error; libraries of functions are not in the result then.\n\
    rdb, aof: a file that the engine of --target loads. What it cannot hold is told on standard error, key by key, and\n\
    the exit status is 3.\n\n\
    Exit status: 0 written, 1 the file is invalid, 2 usage or a file cannot be read or written, 3 written but for what\n\
    was told.\n\nExamples:\n  \
    cachekeep export dump.rdb --format json\n  \
    cachekeep export dump.rdb --format json --db 0 --match 'user:*' --type hash --to users.json\n  \
    cachekeep export dump.rdb --format rdb --target redis-6.2 --to old.rdb\n  \
    cachekeep export dump.rdb --format rdb --slots 0-8191 --to half.rdb\n  \
    cachekeep export dump.rdb --format aof --match 'user:*' --to appendonly.aof\n  \
    cachekeep export 0f8fad5b-d9cb-469f-a165-70867728950e --key user:1 --key user:2"
)]
pub(crate) struct Export {
    /// The file, or the id of a backup
    file: PathBuf,
    /// The form of the result
    #[arg(long, value_enum, default_value_t = Format::Json)]
    format: Format,
    /// Of the backup of a cluster: the file of this shard
    #[arg(long, value_name = "N")]
    shard: Option<usize>,
    /// The engine that shall load the file, such as redis-6.2 or valkey-9.1; without it, whichever loads FILE. Not for
    /// json
    #[arg(long, value_name = "ENGINE", value_parser = target_by_name)]
    target: Option<rdb::Target>,
    /// What becomes of compressed strings in an rdb file
    #[arg(long, value_enum, default_value_t = Lzf::Keep)]
    lzf: Lzf,
    /// Write to this file instead of standard output; it appears when it is complete
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
    /// Of a backup only what may hold the keys of --key is read; for all else the whole backup
    #[command(flatten)]
    selectors: Selectors,
}

/// Show one key of an RDB file
#[derive(Args)]
#[command(
    after_help = "Of a backup only the blocks are read that may hold the key; how many is told on standard error.\n\n\
    Exit status: 0 shown, 1 the file is invalid or has no such key, 2 usage or the file cannot be read.\n\n\
    Example:\n  cachekeep get dump.rdb user:1 --db 0"
)]
pub(crate) struct Get {
    /// The file, or the id of a backup
    file: PathBuf,
    /// The key
    key: String,
    /// Its database
    #[arg(long, value_name = "N", default_value_t = 0)]
    db: u32,
    /// Of the backup of a cluster: the file of this shard
    #[arg(long, value_name = "N")]
    shard: Option<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Json,
    Rdb,
    Aof,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Lzf {
    /// They stay as they are
    Keep,
    /// They are expanded: the file compresses better as a whole
    Expand,
    /// All that gain by it are compressed
    Compress,
}

impl From<Lzf> for rdb::Compression {
    fn from(lzf: Lzf) -> Self {
        match lzf {
            Lzf::Keep => Self::Keep,
            Lzf::Expand => Self::Expand,
            Lzf::Compress => Self::Compress,
        }
    }
}

fn target_by_name(name: &str) -> Result<rdb::Target, String> {
    rdb::Target::by_name(name).ok_or_else(|| {
        let known = rdb::TARGETS.map(|(name, ..)| name).join(", ");
        format!("one of {known} is wanted")
    })
}

/// Why nothing, or not everything, was written.
enum Stop {
    /// The file is not valid.
    Invalid(rdb::Error),
    /// A value has a part that cannot be written in bounded memory.
    TooBig(String),
    /// A file cannot be read or written.
    Io(String),
    /// Who read the result wants no more of it.
    Closed,
}

impl Stop {
    fn code(&self) -> ExitCode {
        match self {
            Self::Invalid(_) | Self::TooBig(_) => ExitCode::FAILURE,
            Self::Io(_) => ExitCode::from(2),
            Self::Closed => ExitCode::from(CLOSED_PIPE),
        }
    }
}

impl std::fmt::Display for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Invalid(error) => write!(f, "{error}"),
            Self::TooBig(what) | Self::Io(what) => f.write_str(what),
            Self::Closed => f.write_str("nobody reads the rest"),
        }
    }
}

/// Runs `export`.
pub(crate) fn run(global: &Global, verb: &Export) -> ExitCode {
    if verb.format == Format::Json && (verb.target.is_some() || verb.lzf != Lzf::Keep) {
        eprintln!("cachekeep: --target and --lzf are for --format rdb and aof");
        return ExitCode::from(2);
    }
    if verb.format == Format::Rdb && verb.to.is_none() && std::io::stdout().is_terminal() {
        eprintln!("cachekeep: an rdb file is no text for a terminal: say --to FILE, or pipe it");
        return ExitCode::from(2);
    }
    if verb.format == Format::Json && verb.selectors.judges_sizes() {
        eprintln!("cachekeep: --size is for --format rdb and aof: JSON is written while a value is read");
        return ExitCode::from(2);
    }
    let keys = verb.selectors.keys();
    let part = Part {
        keys: &keys,
        shard: verb.shard,
    };
    let done = open(global, &verb.file, part).and_then(|source| {
        let survey = survey(&source, &verb.file, verb.format)?;
        let selection = verb.selectors.selection(survey.report.written_ms().unwrap_or(0));
        match &verb.to {
            None => {
                let out = BufWriter::new(std::io::stdout().lock());
                let written = write_all(verb, &source, &survey, selection, out);
                if written.as_ref().is_err_and(|stop| !matches!(stop, Stop::Closed)) {
                    eprintln!(
                        "cachekeep: what was written to standard output is not complete: throw it away"
                    );
                }
                written.map(|(losses, _out)| losses)
            }
            Some(to) => write_file(verb, &source, &survey, selection, to),
        }
    });
    report(
        &verb.file,
        done.map(|losses| match losses {
            0 => ExitCode::SUCCESS,
            count => {
                eprintln!(
                    "cachekeep: {}: {count} times something is lost, see above",
                    verb.file.display()
                );
                ExitCode::from(3)
            }
        }),
    )
}

/// Runs `get`.
pub(crate) fn get(global: &Global, verb: &Get) -> ExitCode {
    let keys = [verb.key.clone().into_bytes()];
    let selection = Selection {
        dbs: [verb.db].into(),
        keys: keys.iter().cloned().collect(),
        ..Selection::default()
    };
    let part = Part {
        keys: &keys,
        shard: verb.shard,
    };
    let done = open(global, &verb.file, part).and_then(|source| {
        survey(&source, &verb.file, Format::Json)?;
        let document = Document::bare(BufWriter::new(std::io::stdout().lock()), selection);
        let document = pass(&source, document)?;
        let keys = document.keys();
        document.flush().map_err(cannot_write)?;
        Ok(keys)
    });
    let found = done.map(|keys| match keys {
        0 => {
            eprintln!(
                "cachekeep: {}: no such key in db {}",
                verb.file.display(),
                verb.db
            );
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    });
    report(&verb.file, found)
}

fn report(file: &Path, done: Result<ExitCode, Stop>) -> ExitCode {
    match done {
        Ok(code) => code,
        Err(Stop::Closed) => Stop::Closed.code(),
        Err(stop) => {
            eprintln!("cachekeep: {}: {stop}", file.display());
            stop.code()
        }
    }
}

fn open(global: &Global, path: &Path, part: Part<'_>) -> Result<Source, Stop> {
    let source = Source::open(global, path, part).map_err(|e| Stop::Io(format!("cannot open: {e}")))?;
    match source.is_rereadable() {
        true => Ok(source),
        false => Err(Stop::Io("a file is wanted, which can be read twice".to_owned())),
    }
}

fn cannot_write(error: std::io::Error) -> Stop {
    match error.kind() {
        std::io::ErrorKind::BrokenPipe => Stop::Closed,
        _ => Stop::Io(format!("cannot write the result: {error}")),
    }
}

/// What must be known before the first byte is written.
struct Survey {
    report: rdb::Report,
    /// Databases whose keys do not stand together: each gets a pass of its own.
    scattered: Option<BTreeSet<u32>>,
}

/// The order of databases.
#[derive(Default)]
struct Order {
    dbs: BTreeSet<u32>,
    last: Option<u32>,
    is_scattered: bool,
}

impl rdb::Sink for Order {
    fn key(&mut self, key: &rdb::KeySummary<'_>) {
        if self.last != Some(key.db) {
            self.last = Some(key.db);
            self.is_scattered |= !self.dbs.insert(key.db);
        }
    }
}

/// Validates the whole file.
fn survey(source: &Source, path: &Path, format: Format) -> Result<Survey, Stop> {
    let mut order = Order::default();
    let report = read_through(source, SURVEY_WORKERS, &mut order, |_| Ok(()))?;
    if report.trailing_bytes > 0 {
        let after = report.trailing_bytes;
        eprintln!(
            "cachekeep: {}: {after} bytes after the end are not looked at",
            path.display()
        );
    }
    for module in &report.modules {
        let name = &module.name;
        // An RDB file takes the values as they are, and not what belongs to no key.
        let what = match format {
            Format::Rdb if module.aux == 0 => continue,
            Format::Rdb => "data without a key",
            Format::Json | Format::Aof => "values",
        };
        eprintln!(
            "cachekeep: {}: {what} of module type {name} are left out",
            path.display()
        );
    }
    Ok(Survey {
        report,
        scattered: order.is_scattered.then_some(order.dbs),
    })
}

/// Reads a file from its start to its end; `check` is asked after every piece.
fn read_through<S: rdb::Sink>(
    source: &Source,
    workers: usize,
    sink: &mut S,
    check: impl Fn(&mut S) -> Result<(), Stop>,
) -> Result<rdb::Report, Stop> {
    let mut validator = validator();
    let read = source.read(workers, |piece| {
        validator.feed(piece, sink).map_err(Stop::Invalid)?;
        check(sink)
    });
    match read {
        Ok(()) => validator.finish().map_err(Stop::Invalid),
        Err(Ended::Taker(stop)) => Err(stop),
        Err(Ended::Source(error)) => Err(Stop::Io(format!("cannot read: {error}"))),
    }
}

fn pass<W: Write>(source: &Source, mut document: Document<W>) -> Result<Document<W>, Stop> {
    read_through(source, WORKERS, &mut document, |document| {
        match document.failure() {
            None => Ok(()),
            Some(json::Failure::Write(error)) => Err(cannot_write(error)),
            Some(json::Failure::TooBig(what)) => Err(Stop::TooBig(what)),
        }
    })?;
    Ok(document)
}

fn write_document<W: Write>(
    source: &Source,
    survey: &Survey,
    selection: Selection,
    out: W,
) -> Result<W, Stop> {
    let mut document = Document::new(out, selection).map_err(cannot_write)?;
    match &survey.scattered {
        None => document = pass(source, document)?,
        Some(dbs) => {
            for db in dbs {
                document.only_db(*db);
                document = pass(source, document)?;
            }
        }
    }
    document.end_keys().map_err(cannot_write)?;
    if !survey.report.functions.is_empty() {
        document.begin_functions().map_err(cannot_write)?;
        document = pass(source, document)?;
    }
    document.finish().map_err(cannot_write)
}

/// Writes in the form that is wanted; returns how often something was lost.
fn write_all<W: Write>(
    verb: &Export,
    source: &Source,
    survey: &Survey,
    selection: Selection,
    out: W,
) -> Result<(u64, W), Stop> {
    let read = |offset, buffer: &mut [u8]| source.read_at(offset, buffer);
    let target = verb.target.unwrap_or_else(|| rdb::Target::of(&survey.report));
    match verb.format {
        Format::Json => write_document(source, survey, selection, out).map(|out| (0, out)),
        Format::Rdb => {
            let writer = rdb::Writer::new(&survey.report, target, verb.lzf.into(), read, out);
            let form = EngineForm::new(writer.map_err(cannot_write)?, selection, &verb.file);
            let (writer, losses) = engine_form::pass(source, form)?;
            Ok((losses, writer.finish().map_err(cannot_write)?))
        }
        Format::Aof => {
            let writer = rdb::AofWriter::new(&survey.report, target, read, out);
            let form = EngineForm::new(writer, selection, &verb.file);
            let (writer, losses) = engine_form::pass(source, form)?;
            Ok((losses, writer.finish().map_err(cannot_write)?))
        }
    }
}

/// Writes beside the file, which gets its name when it is complete.
fn write_file(
    verb: &Export,
    source: &Source,
    survey: &Survey,
    selection: Selection,
    to: &Path,
) -> Result<u64, Stop> {
    let mut name = to.file_name().unwrap_or_default().to_owned();
    name.push(".incomplete");
    let beside = to.with_file_name(name);
    let out = File::create(&beside).map_err(cannot_write)?;
    let written =
        write_all(verb, source, survey, selection, BufWriter::new(out)).and_then(|(losses, out)| {
            let out = out.into_inner().map_err(|e| cannot_write(e.into_error()))?;
            out.sync_all().map_err(cannot_write)?;
            std::fs::rename(&beside, to).map_err(cannot_write)?;
            Ok(losses)
        });
    if written.is_err() {
        let _gone_or_never_there = std::fs::remove_file(&beside);
    }
    written
}
