//! `inspect` and `export` on a public corpus of RDB files, where `CACHEKEEP_CORPUS` names its folder: accepted and
//! refused as the corpus's INDEX.md says, and the same content as real engines returned (`NAME.expected.json`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use base64::Engine as _;
use serde_json::Value;

pub fn cachekeep(words: &[&str], file: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cachekeep"));
    command.args(words).arg(file).output().unwrap()
}

/// A string of the document, whatever its form.
pub fn bytes(value: &Value) -> Vec<u8> {
    match value {
        Value::String(text) => text.clone().into_bytes(),
        Value::Object(_) => base64::engine::general_purpose::STANDARD
            .decode(value["b64"].as_str().unwrap())
            .unwrap(),
        other => panic!("no string: {other}"),
    }
}

fn list(value: &Value) -> Vec<Vec<u8>> {
    value.as_array().unwrap().iter().map(bytes).collect()
}

fn score(value: &Value) -> f64 {
    value.as_str().unwrap().parse().unwrap()
}

fn by_name(value: &Value) -> BTreeMap<Vec<u8>, &Value> {
    let named = value.as_array().unwrap().iter();
    named.map(|item| (bytes(&item["name"]), item)).collect()
}

/// Compares what the expected object has, except for what engines choose by themselves.
fn same_fields(actual: &Value, expected: &Value, but: &[&str]) -> Result<(), String> {
    for (name, value) in expected.as_object().unwrap() {
        if !but.contains(&name.as_str()) && actual[name] != *value {
            return Err(format!("{name} is {} and should be {value}", actual[name]));
        }
    }
    Ok(())
}

fn same_stream(actual: &Value, expected: &Value) -> Result<(), String> {
    let entries = |value: &Value| -> Vec<(String, Vec<Vec<u8>>)> {
        let entries = value["entries"].as_array().unwrap().iter();
        entries
            .map(|entry| (entry[0].as_str().unwrap().to_owned(), list(&entry[1])))
            .collect()
    };
    if entries(actual) != entries(expected) {
        return Err("entries differ".to_owned());
    }
    same_fields(&actual["meta"], &expected["meta"], &[])?;
    let (groups, wanted) = (by_name(&actual["groups"]), by_name(&expected["groups"]));
    if !groups.keys().eq(wanted.keys()) {
        return Err("groups differ".to_owned());
    }
    for (name, expected) in wanted {
        let actual = groups[&name];
        same_fields(actual, expected, &["name", "consumers"])?;
        let (consumers, wanted) = (by_name(&actual["consumers"]), by_name(&expected["consumers"]));
        if !consumers.keys().eq(wanted.keys()) {
            return Err("consumers differ".to_owned());
        }
        for (name, expected) in wanted {
            same_fields(consumers[&name], expected, &["name"])?;
        }
    }
    Ok(())
}

fn same_value(actual: &Value, expected: &Value) -> Result<(), String> {
    let pairs = |value: &Value| -> BTreeMap<Vec<u8>, Value> {
        let pairs = value.as_array().into_iter().flatten();
        pairs.map(|pair| (bytes(&pair[0]), pair[1].clone())).collect()
    };
    same_fields(
        actual,
        expected,
        &[
            "key",
            "value",
            "encoding",
            "entries",
            "meta",
            "groups",
            "field_pexpiretime",
        ],
    )?;
    let (of, wanted) = (&actual["value"], &expected["value"]);
    let is_same = match expected["type"].as_str().unwrap() {
        "string" => bytes(of) == bytes(wanted),
        "list" => list(of) == list(wanted),
        "set" => {
            let set = |value| list(value).into_iter().collect::<BTreeSet<_>>();
            set(of) == set(wanted) && list(of).len() == list(wanted).len()
        }
        "hash" => {
            let fields = |value| -> BTreeMap<_, _> {
                pairs(value)
                    .into_iter()
                    .map(|(field, value)| (field, bytes(&value)))
                    .collect()
            };
            fields(of) == fields(wanted)
                && pairs(&actual["field_pexpiretime"]) == pairs(&expected["field_pexpiretime"])
        }
        "zset" => {
            let scores = |value| -> BTreeMap<_, _> {
                pairs(value)
                    .into_iter()
                    .map(|(member, value)| (member, score(&value)))
                    .collect()
            };
            scores(of) == scores(wanted)
        }
        "stream" => return same_stream(actual, expected),
        kind => return Err(format!("type {kind}")),
    };
    if is_same {
        Ok(())
    } else {
        Err("values differ".to_owned())
    }
}

/// What is different between two documents.
fn difference(actual: &Value, expected: &Value) -> Option<String> {
    if actual["total_keys"] != expected["total_keys"] {
        return Some(format!("{} keys", actual["total_keys"]));
    }
    let code = |document: &Value| -> BTreeSet<Vec<u8>> {
        let libraries = document["functions"].as_array().into_iter().flatten();
        let of = |library: &Value| {
            let at = library
                .as_array()?
                .iter()
                .position(|item| item == "library_code")?;
            Some(bytes(&library[at + 1]))
        };
        libraries.filter_map(of).collect()
    };
    if code(actual) != code(expected) {
        return Some("function libraries differ".to_owned());
    }
    for (db, keys) in expected["dbs"].as_object().unwrap() {
        let of = |document: &Value| -> BTreeMap<Vec<u8>, Value> {
            let keys = document["dbs"][db].as_array().into_iter().flatten();
            keys.map(|key| (bytes(&key["key"]), key.clone())).collect()
        };
        let found = of(actual);
        for key in keys.as_array().unwrap() {
            let name = bytes(&key["key"]);
            let shown = String::from_utf8_lossy(&name).into_owned();
            let Some(found) = found.get(&name) else {
                return Some(format!("{shown} is missing"));
            };
            if let Err(difference) = same_value(found, key) {
                return Some(format!("{shown}: {difference}"));
            }
        }
    }
    None
}

#[test]
fn a_public_corpus_is_inspected_and_exported_as_engines_see_it() {
    let Some(folder) = std::env::var_os("CACHEKEEP_CORPUS").map(PathBuf::from) else {
        eprintln!("skipped: CACHEKEEP_CORPUS does not name the folder of a corpus");
        return;
    };
    let index = std::fs::read_to_string(folder.join("INDEX.md")).unwrap();
    let (mut section, mut wrong, mut files, mut compared) = (String::new(), Vec::new(), 0, 0);
    for line in index.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            title
                .split(' ')
                .next()
                .unwrap_or_default()
                .clone_into(&mut section);
        }
        let cells: Vec<&str> = line
            .split(" | ")
            .map(|cell| cell.trim_matches(['|', ' ']))
            .collect();
        let (Some(name), Some(verdict)) = (cells.first(), cells.last()) else {
            continue;
        };
        if !name.ends_with(".rdb") || cells.len() < 6 {
            continue;
        }
        files += 1;
        let file = folder.join(&section).join(name);
        let inspected = cachekeep(&["inspect", "-o", "json"], &file);
        let seen: Value = serde_json::from_slice(&inspected.stdout).unwrap();
        let is_valid = inspected.status.code() == Some(0);
        let is_either = verdict.contains("or reject") || verdict.starts_with("reject or");
        let keys: Option<u64> = cells.get(4).and_then(|keys| keys.parse().ok());
        if !is_either && is_valid == verdict.starts_with("reject")
            || is_valid && seen["keys"].as_u64() != keys
        {
            wrong.push(format!(
                "{section}/{name}: {} keys, valid {is_valid}: {verdict}",
                seen["keys"]
            ));
        }
        let exported = cachekeep(&["export", "--format", "json"], &file);
        if (exported.status.code() == Some(0)) != is_valid || !is_valid && !exported.stdout.is_empty() {
            wrong.push(format!(
                "{section}/{name}: export ends with {:?}",
                exported.status.code()
            ));
        }
        let expected = file.with_extension("expected.json");
        if !is_valid || !expected.exists() {
            continue;
        }
        compared += 1;
        let expected: Value = serde_json::from_slice(&std::fs::read(expected).unwrap()).unwrap();
        match serde_json::from_slice(&exported.stdout) {
            Ok(actual) => {
                wrong.extend(difference(&actual, &expected).map(|what| format!("{section}/{name}: {what}")))
            }
            Err(error) => wrong.push(format!("{section}/{name}: no JSON: {error}")),
        }
    }
    eprintln!("{files} files, {compared} compared with what engines returned");
    assert!(wrong.is_empty() && files > 0, "{wrong:#?}");
}
