//! `cachekeep inspect FILE`: validates an RDB file and says what is in it.

use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::{Global, Output};

/// Validate an RDB file to its last byte and say what is in it
#[derive(Args)]
#[command(
    after_help = "Exit status: 0 valid, 1 invalid, 2 usage or the file cannot be read.\n\nExamples:\n  \
    cachekeep inspect dump.rdb\n  cachekeep inspect dump.rdb -o json | jq .keys"
)]
pub(crate) struct Inspect {
    /// The file; - reads standard input
    file: PathBuf,
}

/// Bytes read at once.
const CHUNK_BYTES: usize = 1024 * 1024;

/// Runs the verb.
pub(crate) fn run(global: &Global, verb: &Inspect) -> ExitCode {
    let opened: std::io::Result<Box<dyn Read>> = if verb.file.as_os_str() == "-" {
        Ok(Box::new(std::io::stdin()))
    } else {
        std::fs::File::open(&verb.file).map(|file| Box::new(file) as Box<dyn Read>)
    };
    let read = opened.and_then(|mut source| examine(&mut *source));
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
    if seen["valid"] == true {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// What was seen until the first error: keys and the header are told even of a broken file.
#[derive(Default)]
struct Seen {
    keys: u64,
    expires: u64,
}

impl rdb::Sink for Seen {
    fn key(&mut self, key: &rdb::KeySummary<'_>) {
        self.keys += 1;
        self.expires += u64::from(key.expire_at_ms.is_some());
    }
}

fn examine(source: &mut dyn Read) -> std::io::Result<Value> {
    let mut validator = rdb::Validator::new();
    let mut seen = Seen::default();
    let mut head = Vec::new();
    let mut buffer = vec![0; CHUNK_BYTES];
    let outcome = loop {
        let count = source.read(&mut buffer)?;
        if count == 0 {
            break validator.finish();
        }
        let wanted = 9usize.saturating_sub(head.len()).min(count);
        head.extend_from_slice(&buffer[..wanted]);
        if let Err(error) = validator.feed(&buffer[..count], &mut seen) {
            break Err(error);
        }
    };
    let (magic, version) = head_of(&head);
    Ok(match outcome {
        Ok(report) => {
            let dbs: Vec<Value> = report
                .census
                .dbs
                .iter()
                .map(|(db, census)| {
                    let types: serde_json::Map<String, Value> = census
                        .types
                        .iter()
                        .map(|(kind, seen)| {
                            (
                                kind.name().to_owned(),
                                json!({"keys": seen.keys, "elements": seen.elements, "bytes": seen.bytes}),
                            )
                        })
                        .collect();
                    json!({"db": db, "keys": census.keys, "expires": census.expires, "types": types,
                           "digest": crate::secrets::hex(&census.digest)})
                })
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
            json!({"magic": report.magic, "rdb_version": report.rdb_version, "valid": true, "keys": seen.keys,
                   "expires": seen.expires, "bytes": report.bytes, "functions": report.functions.len(),
                   "checksum": match report.checksum { rdb::Checksum::Verified(_) => "verified", rdb::Checksum::Disabled => "disabled" },
                   "aux": aux, "dbs": dbs, "error": null})
        }
        Err(error) => {
            json!({"magic": magic, "rdb_version": version, "valid": false, "keys": seen.keys, "expires": seen.expires,
                   "error": {"offset": error.offset, "kind": error.kind.name(), "message": error.to_string()}})
        }
    })
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
    let mut table = comfy_table::Table::new();
    table
        .load_style(comfy_table::presets::UTF8_FULL_CONDENSED)
        .set_header(["db", "type", "keys", "elements", "bytes"]);
    for db in seen["dbs"].as_array().into_iter().flatten() {
        for (kind, types) in db["types"].as_object().into_iter().flatten() {
            table.add_row([
                db["db"].to_string(),
                kind.clone(),
                types["keys"].to_string(),
                types["elements"].to_string(),
                types["bytes"].to_string(),
            ]);
        }
    }
    println!("{table}");
}
