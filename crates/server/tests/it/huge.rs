//! Values far larger than memory should be: what each verb takes to capture, import, verify, look into and export them.
//!
//! `CACHEKEEP_TEST_LONG=1` takes a list of 4 GB, a string of 500 MB and a hash of 10 million fields, some 6 GB of memory for
//! the engine that has them, as much disk, and some minutes.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use xtask::plain_engine::PlainEngine;
use xtask::resp;

use crate::service::Service;

const GROWTH_MAX_KIB: u64 = 64 * 1024;

/// How large the values are: items of 1 MB, bytes, fields.
struct Sizes {
    items: u32,
    string: u32,
    fields: u32,
}

/// A server with a list, a string and a hash, and its snapshot on disk.
fn server(sizes: &Sizes) -> PlainEngine {
    let settings = [("repl-diskless-sync-delay", "0"), ("rdbcompression", "no")];
    let server = PlainEngine::start(&settings).unwrap();
    let mut client = resp::Connection::open(&server.target()).unwrap();
    let (items, string, fields) = (sizes.items, sizes.string, sizes.fields);
    let list =
        format!("for i = 1, {items} do redis.call('RPUSH', 'list', string.rep(i .. 'abcdefgh', 90000)) end");
    let text = format!("redis.call('SETRANGE', 'string', {string}, 'x')");
    client.ask(&["EVAL", &list, "0"]).unwrap();
    client.ask(&["EVAL", &text, "0"]).unwrap();
    for from in (0..fields).step_by(100_000) {
        let to = (from + 100_000).min(fields) - 1;
        let hash =
            format!("for i = {from}, {to} do redis.call('HSET', 'hash', 'field:' .. i, 'value ' .. i) end");
        client.ask(&["EVAL", &hash, "0"]).unwrap();
    }
    client.ask(&["SAVE"]).unwrap();
    server
}

/// Runs a verb on the data directory, which must do what it should; the most memory that it had, in KiB, and its output.
#[track_caller]
fn peak(data: &Path, words: &[&str], has_output: bool) -> (u64, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_cachekeep"))
        .args(words)
        .arg("--data-dir")
        .arg(data)
        .stdout(if has_output { Stdio::piped() } else { Stdio::null() })
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let status_file = format!("/proc/{}/status", child.id());
    let mut most = 0;
    let ended = loop {
        let status = std::fs::read_to_string(&status_file).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        most = most.max(kib.unwrap_or(0));
        match child.try_wait().unwrap() {
            Some(ended) => break ended,
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    };
    assert!(ended.success(), "{words:?}: {ended}");
    let mut output = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        std::io::Read::read_to_string(&mut stdout, &mut output).unwrap();
    }
    (most, output)
}

/// What every verb took.
fn peaks(service: &Service, server: &PlainEngine, name: &str) -> Vec<(String, u64)> {
    let data = service.data();
    let from = format!("unix:{}", server.socket().display());
    let folder = data.join(format!("alone-{name}"));
    let folder = folder.to_str().unwrap();
    let dump = server.folder().join("dump.rdb");
    let dump = dump.to_str().unwrap();
    let mut seen = Vec::new();
    let (kib, _) = peak(&data, &["backup", "--from", &from, "--to", folder], false);
    seen.push(("capture".to_owned(), kib));
    let (kib, made) = peak(&data, &["import", "takes", dump, "-o", "json"], true);
    seen.push(("import".to_owned(), kib));
    let made: Value = serde_json::from_str(&made).unwrap();
    let id = made["backup_id"].as_str().unwrap();
    for words in [
        &["backup", "verify", "takes", id, "--level", "stored"][..],
        &["backup", "verify", "takes", id, "--level", "parsed"],
        &["inspect", id],
        &["export", id, "--format", "json"],
        &["export", id, "--format", "rdb"],
        &["export", id, "--format", "rdb", "--lzf", "compress"],
        &["export", id, "--format", "rdb", "--target", "redis-6.2"],
        &["export", id, "--format", "aof"],
        &["get", id, "list"],
        &["diff", id, dump],
    ] {
        let (kib, _) = peak(&data, words, false);
        seen.push((words.join(" ").replace(id, "ID").replace(dump, "FILE"), kib));
    }
    seen
}

#[test]
fn a_value_of_any_size_costs_no_verb_more_than_64_mib() {
    let is_long = std::env::var("CACHEKEEP_TEST_LONG").is_ok_and(|long| long == "1");
    let sizes = match is_long {
        true => Sizes {
            items: 4_400,
            string: 500_000_000,
            fields: 10_000_000,
        },
        false => Sizes {
            items: 170,
            string: 100_000_000,
            fields: 800_000,
        },
    };
    let service = Service::start();
    let caller = service.caller();
    caller.make_instance("takes");
    let small = server(&Sizes {
        items: 1,
        string: 1,
        fields: 1,
    });
    let before = peaks(&service, &small, "small");
    let large = server(&sizes);
    let after = peaks(&service, &large, "large");
    let grown: Vec<(&str, u64)> = before
        .iter()
        .zip(&after)
        .map(|((verb, small), (_, large))| (verb.as_str(), large.saturating_sub(*small)))
        .collect();
    for (verb, kib) in &grown {
        println!("{verb}: {:.1} MiB", *kib as f64 / 1024.0);
    }
    assert!(
        grown.iter().all(|(_, kib)| *kib <= GROWTH_MAX_KIB),
        "KiB: {grown:#?}"
    );
}
