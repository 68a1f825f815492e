//! `cachekeep inspect FILE`: validates an RDB file and says what is in it, in one pass and bounded memory.

mod survey;

use std::fs::File;
use std::num::NonZero;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::source::{Ended, Part, Source};
use super::{Global, Output};
pub(super) use survey::{PREFIXES_MAX, prefix, shown};
use survey::{Survey, TTL_NAMES};

/// Validate an RDB file to its last byte and say what is in it
#[derive(Args)]
#[command(
    after_help = "Exit status: 0 valid, 1 invalid, 2 usage or the file cannot be read, 3 valid, but an engine of --target does not load \
    it as it is (`cachekeep export --format rdb --target ENGINE` writes one that it loads).\n\nExamples:\n  \
    cachekeep inspect dump.rdb --target valkey-9.1\n  \
    cachekeep inspect dump.rdb\n  cachekeep inspect dump.rdb -o json | jq .keys\n  \
    cachekeep inspect 0f8fad5b-d9cb-469f-a165-70867728950e"
)]
pub(crate) struct Inspect {
    /// The file, or the id of a backup; - reads standard input
    file: PathBuf,
    /// Of the backup of a cluster: the file of this shard
    #[arg(long, value_name = "N")]
    shard: Option<usize>,
    /// Say whether this engine loads the file as it is, and why not; again for each engine
    #[arg(long, value_name = "ENGINE", value_parser = engine_by_name)]
    target: Vec<&'static str>,
}

/// Threads that decode a backup beside the one that validates.
const WORKERS: usize = 2;
/// Threads that read parts of a file: beyond these the one that cuts it is what all wait for.
const READERS_MAX: usize = 8;
/// Files below this are read by one thread.
const SHARED_BYTES_MIN: u64 = 8 * 1024 * 1024;

/// Runs the verb.
pub(crate) fn run(global: &Global, verb: &Inspect) -> ExitCode {
    let part = Part {
        shard: verb.shard,
        ..Part::default()
    };
    let read =
        Source::open(global, &verb.file, part).and_then(|mut source| examine(&mut source, &verb.target));
    let seen = match read {
        Ok(seen) => seen,
        Err(error) => {
            eprintln!("cachekeep: cannot read {}: {error}", verb.file.display());
            return ExitCode::from(2);
        }
    };
    match global.output {
        Output::Json => println!("{seen:#}"),
        Output::Table => print_table(&seen),
    }
    let refuses = |target: &Value| target["loads"] == false;
    if seen["valid"] != true {
        ExitCode::FAILURE
    } else if seen["targets"]
        .as_array()
        .is_some_and(|targets| targets.iter().any(refuses))
    {
        ExitCode::from(3)
    } else {
        ExitCode::SUCCESS
    }
}

fn engine_by_name(name: &str) -> Result<&'static str, String> {
    let known = rdb::TARGETS.map(|(known, ..)| known);
    let found = known.into_iter().find(|known| *known == name);
    found.ok_or_else(|| format!("the engines are {}", known.join(", ")))
}

/// A validator as the command line wants it: bytes behind the end are told and not refused, as engines do, and
/// every key is compared with every other where the system's folder for such takes a file.
pub(super) fn validator() -> rdb::Validator {
    let exact = engine::SpillFile::validator(&std::env::temp_dir());
    exact
        .unwrap_or_else(|_| rdb::Validator::new())
        .accept_trailing_bytes()
}

/// Validates a file with every processor. `None`: it has to be read by one thread, from its start, to say what is wrong with
/// it or which prefixes it has.
fn by_threads(file: &File, readers: usize) -> std::io::Result<Option<(rdb::Report, Survey)>> {
    let folder = std::env::temp_dir();
    let spill = || -> std::io::Result<Box<dyn rdb::Spill + Send>> {
        Ok(Box::new(
            engine::SpillFile::create(&folder).map_err(std::io::Error::other)?,
        ))
    };
    let Ok(keys) = spill() else {
        return Ok(None);
    };
    let spills = rdb::parallel::Spills { keys, members: spill };
    let mut at = 0;
    let read = |buffer: &mut [u8]| {
        let count = file.read_at(buffer, at)?;
        at += count as u64;
        Ok(count)
    };
    let sinks = (0..=readers).map(|_| Survey::default()).collect();
    let Some((report, seen)) = rdb::parallel::validate(sinks, Some(spills), read)? else {
        return Ok(None);
    };
    let mut all = Survey::default();
    let is_whole = seen.into_iter().all(|one| all.absorb(one));
    Ok(is_whole.then_some((report, all)))
}

fn examine(source: &mut Source, targets: &[&str]) -> std::io::Result<Value> {
    let readers = std::thread::available_parallelism()
        .map_or(1, NonZero::get)
        .min(READERS_MAX);
    if readers > 1
        && let Source::File(file) = source
        && file.metadata()?.len() >= SHARED_BYTES_MIN
        && let Some((report, seen)) = by_threads(file, readers)?
    {
        return Ok(valid(&report, seen, targets));
    }
    let mut validator = validator();
    // Keys and the header are told even of a broken file.
    let mut seen = Survey::default();
    let mut head = Vec::new();
    let read = source.read_once(WORKERS, |piece| {
        let wanted = 9usize.saturating_sub(head.len()).min(piece.len());
        head.extend_from_slice(&piece[..wanted]);
        validator.feed(piece, &mut seen)
    });
    let outcome = match read {
        Ok(()) => validator.finish(),
        Err(Ended::Taker(error)) => Err(error),
        Err(Ended::Source(error)) => return Err(error),
    };
    match outcome {
        Ok(report) => Ok(valid(&report, seen, targets)),
        Err(error) => match error.kind {
            rdb::ErrorKind::Spill { .. } => Err(std::io::Error::other(error)),
            _ => {
                let (magic, version) = head_of(&head);
                Ok(
                    json!({"magic": magic, "rdb_version": version, "valid": false, "keys": seen.keys, "expires": seen.expires,
                           "error": {"offset": error.offset, "kind": error.kind.name(), "message": error.to_string(),
                                     "db": error.db, "key": error.key.as_ref().map(|key| shown(key.prefix.as_bytes())),
                                     "type_code": error.type_code}}),
                )
            }
        },
    }
}

fn valid(report: &rdb::Report, seen: Survey, targets: &[&str]) -> Value {
    let targets: Vec<Value> = targets
        .iter()
        .map(|name| {
            let why = rdb::obstacles(name, report, &seen.type_codes).unwrap_or_default();
            json!({"engine": name, "loads": why.is_empty(), "why_not": why})
        })
        .collect();
    let dbs: Vec<Value> = report
        .census
        .dbs
        .iter()
        .map(|(db, census)| database(*db, census))
        .collect();
    let aux: serde_json::Map<String, Value> = report
        .aux
        .iter()
        .map(|(name, value)| {
            (
                String::from_utf8_lossy(name).into_owned(),
                json!(String::from_utf8_lossy(value)),
            )
        })
        .collect();
    let functions: Vec<Value> = report
        .functions
        .iter()
        .map(|of| json!({"name": of.name, "engine": of.engine, "bytes": of.code_bytes}))
        .collect();
    let modules: Vec<Value> = report
        .modules
        .iter()
        .map(|of| json!({"name": of.name, "version": of.version, "keys": of.values, "aux": of.aux}))
        .collect();
    let imports: Vec<Value> = report
        .slot_imports
        .iter()
        .map(|of| json!({"job": shown(of.job.as_bytes()), "slots": of.slots}))
        .collect();
    let warnings: Vec<Value> = report
        .warnings
        .iter()
        .map(|of| {
            json!({"offset": of.offset, "db": of.db, "what": of.what,
                   "key": of.key.as_ref().map(|key| shown(key.prefix.as_bytes()))})
        })
        .collect();
    let checksum = match report.checksum {
        rdb::Checksum::Verified(_) => "verified",
        rdb::Checksum::Disabled => "disabled",
    };
    let duplicate_keys = match report.distinctness {
        rdb::Distinctness::Proven => "none",
        rdb::Distinctness::FirstKeysOnly => "none among the first keys",
    };
    json!({"magic": report.magic, "rdb_version": report.rdb_version, "valid": true, "keys": seen.keys,
           "expires": seen.expires, "expiring_fields": seen.expiring_fields, "bytes": report.bytes,
           "trailing_bytes": report.trailing_bytes, "functions": functions.len(), "libraries": functions,
           "modules": modules, "slot_infos": report.slot_infos, "slot_imports": imports, "checksum": checksum,
           "duplicate_keys": duplicate_keys, "warning_count": report.warning_count, "warnings": warnings,
           "targets": targets, "aux": aux, "dbs": dbs, "sizes": seen.sizes(), "prefixes": seen.prefixes(), "biggest": seen.biggest(),
           "error": null})
}

fn database(db: u32, census: &rdb::DbCensus) -> Value {
    let types: serde_json::Map<String, Value> = census
        .types
        .iter()
        .map(|(kind, seen)| {
            (
                kind.name().to_owned(),
                json!({"keys": seen.keys, "elements": seen.elements, "expiring_elements": seen.expiring_elements,
                       "bytes": seen.bytes}),
            )
        })
        .collect();
    let classes = TTL_NAMES.iter().zip(census.ttl.buckets);
    let ttl: Vec<Value> = classes
        .map(|(name, keys)| json!({"left": name, "keys": keys}))
        .collect();
    json!({"db": db, "keys": census.keys, "expires": census.expires, "types": types,
           "ttl": {"earliest": census.ttl.min_ms, "latest": census.ttl.max_ms, "left": ttl},
           "digest": crate::secrets::hex(&census.digest)})
}

fn head_of(head: &[u8]) -> (Value, Value) {
    let text = String::from_utf8_lossy(head).into_owned();
    let digits_from = text
        .find(|letter: char| letter.is_ascii_digit())
        .unwrap_or(text.len());
    let (magic, version) = text.split_at(digits_from);
    match (magic, version.parse::<u32>()) {
        ("REDIS" | "VALKEY", Ok(version)) => (json!(magic), json!(version)),
        _ => (Value::Null, Value::Null),
    }
}

fn print_table(seen: &Value) {
    if seen["valid"] != true {
        println!(
            "INVALID: {}",
            seen["error"]["message"].as_str().unwrap_or_default()
        );
        println!(
            "at byte {}, after {} whole keys",
            seen["error"]["offset"], seen["keys"]
        );
        return;
    }
    println!(
        "valid: {} version {}, {} keys, {} with expiry, {} bytes, checksum {}",
        seen["magic"].as_str().unwrap_or_default(),
        seen["rdb_version"],
        seen["keys"],
        seen["expires"],
        seen["bytes"],
        seen["checksum"].as_str().unwrap_or_default()
    );
    for target in seen["targets"].as_array().into_iter().flatten() {
        let engine = target["engine"].as_str().unwrap_or_default();
        let why: Vec<&str> = target["why_not"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        match why.is_empty() {
            true => println!("{engine} loads it"),
            false => println!("{engine} does not load it: {}", why.join("; ")),
        }
    }
    for module in seen["modules"].as_array().into_iter().flatten() {
        let (name, keys, aux) = (&module["name"], &module["keys"], &module["aux"]);
        let name = name.as_str().unwrap_or_default();
        println!(
            "module type {name}: {keys} keys and {aux} other data, skipped; only an engine with it loads the file"
        );
    }
    for import in seen["slot_imports"].as_array().into_iter().flatten() {
        println!(
            "slots on the move: {} in job {}; an engine outside of a cluster ends itself when it loads the file",
            import["slots"],
            import["job"].as_str().unwrap_or_default()
        );
    }
    if seen["trailing_bytes"] != 0 {
        println!(
            "{} bytes after the end were not looked at",
            seen["trailing_bytes"]
        );
    }
    for warning in seen["warnings"].as_array().into_iter().flatten() {
        let what = warning["what"].as_str().unwrap_or_default();
        let key = warning["key"].as_str().unwrap_or_default();
        println!("warning: {what} at byte {} {key}", warning["offset"]);
    }
    let mut rows = Vec::new();
    for db in seen["dbs"].as_array().into_iter().flatten() {
        for (kind, types) in db["types"].as_object().into_iter().flatten() {
            rows.push(vec![
                db["db"].to_string(),
                kind.clone(),
                types["keys"].to_string(),
                types["elements"].to_string(),
                types["bytes"].to_string(),
            ]);
        }
    }
    print_rows(&["db", "type", "keys", "elements", "bytes"], rows);
    let columns = |list: &Value, names: &[&str]| -> Vec<Vec<String>> {
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let rows = list.as_array().into_iter().flatten();
        rows.map(|row| names.iter().map(|name| text(&row[name])).collect())
            .collect()
    };
    for (list, names) in [
        ("prefixes", &["prefix", "keys", "elements", "bytes"][..]),
        ("sizes", &["size", "keys"]),
        ("biggest", &["db", "key", "type", "elements", "bytes"]),
    ] {
        print_rows(names, columns(&seen[list], names));
    }
    for db in seen["dbs"].as_array().into_iter().flatten() {
        if db["expires"] != 0 {
            println!("time left in db {}:", db["db"]);
            print_rows(&["left", "keys"], columns(&db["ttl"]["left"], &["left", "keys"]));
        }
    }
}

pub(super) fn print_rows(header: &[&str], rows: Vec<Vec<String>>) {
    if rows.is_empty() {
        return;
    }
    let mut table = comfy_table::Table::new();
    table
        .load_style(comfy_table::presets::UTF8_FULL_CONDENSED)
        .set_header(header.to_vec());
    for row in rows {
        table.add_row(row);
    }
    println!("{table}");
}
