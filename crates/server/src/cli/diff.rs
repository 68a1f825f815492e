//! `cachekeep diff A B`: which keys two files, backups or living servers do not have in common.
//!
//! Each side is read once, validated as it comes, and leaves a record of each key in a file without a name; then the records
//! of both are merged. Memory is bounded whatever the sides hold, see [`rdb::compare`].

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use engine::psync::Handshake;
use engine::{Control, Endpoint, Node, SpillFile};
use rdb::{Difference, Fate, KeyRecords, KeySeed, Type};
use serde_json::{Value, json};

use super::inspect::{PREFIXES_MAX, prefix, shown, validator};
use super::source::{Ended, Part, Source};
use super::{Global, Output, admin, alone};
use crate::app::App;
use crate::backup::job::sources;
use crate::backup::record as backups;
use crate::ids::BackupId;
use crate::limits;

/// Threads that decode a backup beside the one that validates.
const WORKERS: usize = 2;
/// Bytes of a server's snapshot that are taken at once.
const PIECE_BYTES: usize = 1024 * 1024;
/// Keys of each kind that are named in the summary.
const EXAMPLES: usize = 10;
/// Prefixes of each kind that are shown, those with the most keys first.
const PREFIXES_SHOWN: usize = 20;

/// Say which keys two files, backups or living servers do not have in common
#[derive(Args)]
#[command(
    after_help = "A side is an RDB file, the id of a backup, the name of an instance (of the data directory), or a server: \
    redis://[USER[:PASSWORD]@]HOST[:PORT], rediss:// with --ca, unix:PATH. A server gives a snapshot as to a replica; one of \
    your own configuration takes five seconds to begin with it.\n\
    Two keys are the same where database, name, type, value and expiry are, whatever the encoding. Values are compared by a \
    digest of 128 bits. What A has and B has not is removed, what B alone has is added.\n\n\
    Exit status: 0 the same, 1 different, 2 usage or a side cannot be read or is not valid.\n\nExamples:\n  \
    cachekeep diff before.rdb after.rdb\n  \
    cachekeep diff 0f8fad5b-d9cb-469f-a165-70867728950e cache1\n  \
    cachekeep diff dump.rdb redis://10.0.0.5:6379 -o json --list differences.ndjson"
)]
pub(crate) struct Diff {
    /// The first side
    a: String,
    /// The second side
    b: String,
    /// Write every key that differs to this file, one JSON object on a line, in no order; it appears when it is complete
    #[arg(long, value_name = "FILE")]
    list: Option<PathBuf>,
    /// Certificates that a rediss:// server's one must be signed by, PEM
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
}

/// A kind of difference.
#[derive(Default)]
struct Kind {
    keys: u64,
    types: BTreeMap<&'static str, u64>,
    prefixes: HashMap<Vec<u8>, u64>,
    other: u64,
    examples: Vec<Value>,
}

impl Kind {
    fn add(&mut self, seen: &Difference<'_>, kind: Type) {
        self.keys += 1;
        *self.types.entry(kind.name()).or_default() += 1;
        let prefix = prefix(seen.key);
        let has_room = self.prefixes.len() < PREFIXES_MAX;
        match self.prefixes.get_mut(prefix) {
            Some(keys) => *keys += 1,
            None if has_room => {
                self.prefixes.insert(prefix.to_vec(), 1);
            }
            None => self.other += 1,
        }
        if self.examples.len() < EXAMPLES {
            self.examples.push(json!({"db": seen.db, "key": shown(seen.key)}));
        }
    }

    fn told(&self) -> Value {
        let mut prefixes: Vec<(&Vec<u8>, u64)> = self
            .prefixes
            .iter()
            .map(|(prefix, keys)| (prefix, *keys))
            .collect();
        prefixes.sort_by_key(|(prefix, keys)| (std::cmp::Reverse(*keys), *prefix));
        let rest = prefixes.iter().skip(PREFIXES_SHOWN).map(|(_, keys)| keys);
        let other = self.other + rest.sum::<u64>();
        let mut rows: Vec<Value> = prefixes
            .iter()
            .take(PREFIXES_SHOWN)
            .map(|(prefix, keys)| json!({"prefix": shown(prefix), "keys": keys}))
            .collect();
        if other > 0 {
            rows.push(json!({"prefix": "(other)", "keys": other}));
        }
        json!({"keys": self.keys, "types": self.types, "prefixes": rows, "examples": self.examples})
    }
}

/// All differences.
#[derive(Default)]
struct Differences {
    added: Kind,
    removed: Kind,
    changed: Kind,
    types: u64,
    values: u64,
    expiries: u64,
}

impl Differences {
    fn add(&mut self, seen: &Difference<'_>) {
        match seen.fate {
            Fate::Added(kind) => self.added.add(seen, kind),
            Fate::Removed(kind) => self.removed.add(seen, kind),
            Fate::Changed {
                from,
                to,
                value,
                expiry,
            } => {
                self.changed.add(seen, to);
                self.types += u64::from(from != to);
                self.values += u64::from(value && from == to);
                self.expiries += u64::from(expiry);
            }
        }
    }

    fn is_none(&self) -> bool {
        self.added.keys + self.removed.keys + self.changed.keys == 0
    }
}

/// A difference as a line.
fn line(seen: &Difference<'_>) -> Value {
    let (what, from, to, value, expiry) = match seen.fate {
        Fate::Added(kind) => ("added", None, Some(kind), None, None),
        Fate::Removed(kind) => ("removed", Some(kind), None, None, None),
        Fate::Changed {
            from,
            to,
            value,
            expiry,
        } => ("changed", Some(from), Some(to), Some(value), Some(expiry)),
    };
    let key = match std::str::from_utf8(seen.key) {
        Ok(text) => json!(text),
        Err(_) => json!({"b64": STANDARD.encode(seen.key)}),
    };
    json!({"what": what, "db": seen.db, "key": key, "type_a": from.map(Type::name), "type_b": to.map(Type::name),
           "value": value, "expiry": expiry})
}

/// Runs the verb.
pub(crate) fn run(global: &Global, verb: &Diff) -> ExitCode {
    match compare(global, verb) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("cachekeep: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether both sides are the same.
fn compare(global: &Global, verb: &Diff) -> anyhow::Result<bool> {
    let seed = KeySeed::random();
    let side = |named: &str| {
        side(global, named, verb.ca.as_deref(), seed).with_context(|| format!("cannot read {named}"))
    };
    let (first, second) = (side(&verb.a)?, side(&verb.b)?);
    let (keys_a, keys_b) = (first.keys(), second.keys());
    let mut list = verb.list.as_deref().map(List::create).transpose()?;
    let mut differences = Differences::default();
    let same = rdb::compare(first, second, |seen| {
        differences.add(&seen);
        match &mut list {
            Some(list) => writeln!(list.out, "{}", line(&seen)),
            None => Ok(()),
        }
    })
    .context("cannot compare")?;
    if let Some(list) = list {
        list.finish()?;
    }
    let mut changed = differences.changed.told();
    changed["types_changed"] = json!(differences.types);
    changed["values_changed"] = json!(differences.values);
    changed["expiries_changed"] = json!(differences.expiries);
    let told = json!({"a": verb.a, "b": verb.b, "same": differences.is_none(), "keys_a": keys_a, "keys_b": keys_b,
                      "keys_same": same, "added": differences.added.told(), "removed": differences.removed.told(),
                      "changed": changed});
    match global.output {
        Output::Json => println!("{told:#}"),
        Output::Table => print_table(&told),
    }
    Ok(differences.is_none())
}

/// A file that gets its name when it is complete.
struct List<'a> {
    name: &'a Path,
    beside: PathBuf,
    out: BufWriter<File>,
    is_kept: bool,
}

impl<'a> List<'a> {
    fn create(name: &'a Path) -> anyhow::Result<Self> {
        let mut beside = name.file_name().unwrap_or_default().to_owned();
        beside.push(".incomplete");
        let beside = name.with_file_name(beside);
        let out = File::create(&beside).with_context(|| format!("cannot write {}", beside.display()))?;
        Ok(Self {
            name,
            beside,
            out: BufWriter::new(out),
            is_kept: false,
        })
    }

    fn finish(mut self) -> anyhow::Result<()> {
        let written = self
            .out
            .flush()
            .and_then(|()| self.out.get_ref().sync_all())
            .and_then(|()| std::fs::rename(&self.beside, self.name));
        written.with_context(|| format!("cannot write {}", self.name.display()))?;
        self.is_kept = true;
        Ok(())
    }
}

impl Drop for List<'_> {
    fn drop(&mut self) {
        if !self.is_kept {
            let _gone_or_told_of_already = std::fs::remove_file(&self.beside);
        }
    }
}

/// The keys of one side, from wherever it is.
fn side(global: &Global, named: &str, ca: Option<&Path>, seed: KeySeed) -> anyhow::Result<KeyRecords> {
    let spill = SpillFile::create(&std::env::temp_dir()).map_err(alone::told)?;
    let mut records = KeyRecords::new(seed, Box::new(spill));
    if ["redis://", "rediss://", "unix:"]
        .iter()
        .any(|start| named.starts_with(start))
    {
        snapshot(&alone::endpoint(named, ca)?, &mut records)?;
        return Ok(records);
    }
    let path = Path::new(named);
    if path.exists() || named == "-" {
        read(Source::open(global, path, Part::default())?, &mut records)?;
        return Ok(records);
    }
    let app = admin::open(global).with_context(|| format!("there is no file {named}"))?;
    if let Some(id) = BackupId::parse(named)
        && app.catalog.read(|tx| backups::load(tx, &id))?.is_some()
    {
        let (archive, _) = super::source::archive_of(&app, &id)?;
        // The shards of a cluster have no key in common.
        for shard in 0..archive.manifest().files().len() {
            let part = Part {
                shard: Some(shard),
                ..Part::default()
            };
            read(Source::open(global, path, part)?, &mut records)?;
        }
        return Ok(records);
    }
    living(&app, named, &mut records)?;
    Ok(records)
}

fn living(app: &App, named: &str, records: &mut KeyRecords) -> anyhow::Result<()> {
    let instance = admin::find_instance(app, named)
        .with_context(|| format!("{named} is no file, no backup and no address of a server"))?;
    let shards = sources(app, &instance).map_err(alone::told)?.shards;
    anyhow::ensure!(!shards.is_empty(), "{} has no engine", instance.name);
    shards
        .iter()
        .try_for_each(|shard| snapshot(&shard.source, records))
}

fn read(mut source: Source, records: &mut KeyRecords) -> anyhow::Result<()> {
    let mut validator = validator();
    let read = source.read_once(WORKERS, |piece| feed(&mut validator, piece, records));
    match read {
        Ok(()) => finish(validator, records),
        Err(Ended::Source(error)) => Err(error.into()),
        Err(Ended::Taker(error)) => Err(error),
    }
}

/// Reads a snapshot of a server, as a replica does.
fn snapshot(endpoint: &Endpoint, records: &mut KeyRecords) -> anyhow::Result<()> {
    let control = Control::new(None);
    let begun = Node::connect(endpoint).and_then(|node| Handshake::begin(node, limits::ENGINE_IDLE));
    let payload = begun
        .and_then(|handshake| handshake.started(&control))
        .and_then(|started| started.payload(&control));
    let mut snapshot = payload.map_err(alone::told)?;
    let mut validator = validator();
    let mut piece = Vec::new();
    loop {
        let more = snapshot
            .fill(&mut piece, PIECE_BYTES, || control.check("read snapshot"))
            .map_err(alone::told)?;
        feed(&mut validator, &piece, records)?;
        if !more {
            return finish(validator, records);
        }
    }
}

fn feed(validator: &mut rdb::Validator, piece: &[u8], records: &mut KeyRecords) -> anyhow::Result<()> {
    validator.feed(piece, records)?;
    records.failure().map_or(Ok(()), |error| Err(error.into()))
}

fn finish(validator: rdb::Validator, records: &mut KeyRecords) -> anyhow::Result<()> {
    validator.finish()?;
    records.failure().map_or(Ok(()), |error| Err(error.into()))
}

fn print_table(told: &Value) {
    if told["same"] == true {
        println!("the same: {} keys", told["keys_same"]);
        return;
    }
    println!(
        "different: {} added, {} removed, {} changed, {} the same",
        told["added"]["keys"], told["removed"]["keys"], told["changed"]["keys"], told["keys_same"]
    );
    let changed = &told["changed"];
    if changed["keys"] != 0 {
        println!(
            "of the changed ones {} have another type, {} another value, {} another expiry",
            changed["types_changed"], changed["values_changed"], changed["expiries_changed"]
        );
    }
    let kinds = ["added", "removed", "changed"];
    let plain = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut types = Vec::new();
    let mut prefixes = Vec::new();
    let mut examples = Vec::new();
    for kind in kinds {
        let of_kind = &told[kind];
        for (name, keys) in of_kind["types"].as_object().into_iter().flatten() {
            types.push(vec![kind.to_owned(), name.clone(), keys.to_string()]);
        }
        for row in of_kind["prefixes"].as_array().into_iter().flatten() {
            prefixes.push(vec![
                kind.to_owned(),
                plain(&row["prefix"]),
                row["keys"].to_string(),
            ]);
        }
        for row in of_kind["examples"].as_array().into_iter().flatten() {
            examples.push(vec![kind.to_owned(), row["db"].to_string(), plain(&row["key"])]);
        }
    }
    super::inspect::print_rows(&["", "type", "keys"], types);
    super::inspect::print_rows(&["", "prefix", "keys"], prefixes);
    super::inspect::print_rows(&["for example", "db", "key"], examples);
}
