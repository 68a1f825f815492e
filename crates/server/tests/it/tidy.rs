//! Checks of the sources themselves: who may name what, and how long a file may get.

use std::path::{Path, PathBuf};

/// No source file is longer: beyond it a file is two things.
const LINES_MAX: usize = 800;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .unwrap()
}

/// Every Rust file below a folder, with its path from the repository's root and its text.
fn sources(below: &str) -> Vec<(String, String)> {
    let root = repository();
    let mut waiting = vec![root.join(below)];
    let mut found = Vec::new();
    while let Some(folder) = waiting.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                waiting.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
                found.push((name, std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(!found.is_empty(), "{below} has no sources");
    found.sort();
    found
}

/// The code of a file: no comments, no tests at its end.
fn code(text: &str) -> Vec<&str> {
    let body = text.split("#[cfg(test)]").next().unwrap_or_default();
    body.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect()
}

/// Every place in the server's code where `wrong` holds for a line, as `file: line`.
fn places(wrong: impl Fn(&str, &str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for (name, text) in sources("crates/server/src") {
        let name = name.strip_prefix("crates/server/src/").unwrap();
        for line in code(&text) {
            if wrong(name, line) {
                found.push(format!("{name}: {}", line.trim()));
            }
        }
    }
    found
}

#[test]
fn no_source_file_is_longer_than_it_can_be_understood() {
    let mut long = Vec::new();
    for below in ["crates", "xtask"] {
        for (name, text) in sources(below) {
            let lines = text.lines().count();
            if lines > LINES_MAX {
                long.push(format!("{name}: {lines} lines"));
            }
        }
    }
    assert!(long.is_empty(), "more than {LINES_MAX} lines: {long:#?}");
}

#[test]
fn sql_is_written_only_beside_the_records_it_moves() {
    let homes = ["record.rs", "generation.rs", "queue.rs"];
    let words = [
        "SELECT ",
        "INSERT INTO ",
        "UPDATE ",
        "DELETE FROM ",
        "CREATE TABLE ",
    ];
    let found = places(|name, line| {
        let home = name.starts_with("catalog/") || homes.iter().any(|home| name.ends_with(home));
        !home && words.iter().any(|word| line.contains(word))
    });
    assert!(
        found.is_empty(),
        "SQL outside of record.rs, generation.rs, queue.rs and catalog: {found:#?}"
    );
}

#[test]
fn only_the_edge_speaks_http_and_the_words_of_dcs() {
    let edge = [
        "api/",
        "cli/",
        "serve.rs",
        "accept.rs",
        "connections.rs",
        "tls.rs",
    ];
    let words = [
        "axum",
        "hyper",
        "utoipa",
        "\"backuping\"",
        "\"succeed\"",
        "\"RUNNING\"",
        "\"RESTORING\"",
        "\"DCS.",
        "APIGW",
    ];
    let found = places(|name, line| {
        !edge.iter().any(|place| name.starts_with(place)) && words.iter().any(|word| line.contains(word))
    });
    assert!(found.is_empty(), "the edge's words in the middle: {found:#?}");
}

#[test]
fn the_middle_does_not_know_the_edge() {
    let edge = ["api/", "cli/", "serve.rs", "main.rs"];
    let found = places(|name, line| {
        let from_middle = !edge.iter().any(|place| name.starts_with(place));
        from_middle && (line.contains("crate::api") || line.contains("crate::cli"))
    });
    assert!(found.is_empty(), "api is used from the middle: {found:#?}");
    let found = places(|name, line| {
        let (outside, into) = (
            !name.starts_with("cli/") && name != "main.rs",
            line.contains("crate::cli"),
        );
        outside && into
    });
    assert!(found.is_empty(), "cli is used from outside: {found:#?}");
}

#[test]
fn subjects_read_each_others_records_and_never_run_each_others_jobs() {
    let subjects = ["instance", "backup", "restore"];
    let found = places(|name, line| {
        // What a request asks for is decided without the code that carries it out.
        subjects
            .iter()
            .any(|subject| name == format!("{subject}/command.rs") || name == format!("{subject}/record.rs"))
            && subjects
                .iter()
                .any(|subject| line.contains(&format!("{subject}::job")))
    });
    assert!(found.is_empty(), "a command or record uses a job: {found:#?}");
    let found = places(|name, line| {
        name.ends_with("record.rs") && (line.contains("::command") || line.contains("jobs::"))
    });
    assert!(found.is_empty(), "a record does more than keep: {found:#?}");
    let found = places(|name, line| {
        name.starts_with("jobs/queue.rs") && line.contains("crate::") && {
            !["catalog", "ids", "limits"]
                .iter()
                .any(|low| line.contains(&format!("crate::{low}")))
        }
    });
    assert!(found.is_empty(), "the queue looks up: {found:#?}");
}

#[test]
fn the_clock_is_read_at_the_edges_and_in_jobs_only() {
    let readers = [
        "api/",
        "cli/",
        "serve.rs",
        "reconcile.rs",
        "jobs/worker.rs",
        "journal/mirror.rs",
        "restore/job/",
        "clock.rs",
    ];
    let found = places(|name, line| {
        let may = readers.iter().any(|place| name.starts_with(place))
            || name.ends_with("/job.rs")
            || name.contains("/job/");
        !may && (line.contains("Moment::now")
            || line.contains("SystemTime::now")
            || line.contains("Timestamp::now"))
    });
    assert!(found.is_empty(), "inner code is handed the moment: {found:#?}");
}

/// Names of the workspace's own crates that a manifest depends on, outside of tests.
fn own_dependencies(manifest: &str) -> Vec<String> {
    let text = std::fs::read_to_string(repository().join(manifest)).unwrap();
    let section = text.split("[dependencies]").nth(1).unwrap_or_default();
    let section = section.split("\n[").next().unwrap_or_default();
    let names = section
        .lines()
        .filter_map(|line| line.split(['.', ' ', '=']).next());
    let own = [
        "rdb",
        "engine",
        "signature",
        "cachekeep",
        "fuzzing",
        "load",
        "xtask",
    ];
    names
        .filter(|name| own.contains(name))
        .map(str::to_owned)
        .collect()
}

#[test]
fn crates_depend_downwards_only() {
    assert_eq!(own_dependencies("crates/rdb/Cargo.toml"), [""; 0]);
    assert_eq!(own_dependencies("crates/engine/Cargo.toml"), ["rdb"]);
    assert_eq!(
        own_dependencies("crates/server/Cargo.toml"),
        ["engine", "rdb", "signature"]
    );
    assert_eq!(own_dependencies("crates/signature/Cargo.toml"), [""; 0]);
    assert_eq!(own_dependencies("crates/load/Cargo.toml"), ["signature"]);
    assert_eq!(own_dependencies("xtask/Cargo.toml"), [""; 0]);
    for (name, text) in sources("crates/rdb/src") {
        for line in code(&text) {
            let io = ["std::net", "std::fs", "std::process", "tokio"]
                .iter()
                .any(|word| line.contains(word));
            assert!(!io, "{name} does input or output: {line}");
        }
    }
    for (name, text) in sources("crates/engine/src") {
        for line in code(&text) {
            let above = ["rusqlite", "axum", "backuping", "DCS."]
                .iter()
                .any(|word| line.contains(word));
            assert!(!above, "{name} knows what is above it: {line}");
        }
    }
}

#[test]
fn every_route_is_in_the_table() {
    let found = places(|_, line| line.contains(".route("));
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(found[0].starts_with("api/router.rs"), "{found:#?}");
}

#[test]
fn every_planted_defect_lies_in_the_code_and_has_its_gate() {
    let known: Vec<&str> = engine::defect::DEFECTS.iter().map(|(name, _)| *name).collect();
    assert_eq!(known, xtask::torture::defects::names().collect::<Vec<_>>());
    let all: String = ["crates/engine/src", "crates/server/src"]
        .into_iter()
        .flat_map(sources)
        .map(|(_, text)| text)
        .collect();
    for name in known {
        let call = format!("is_planted(\"{name}\")");
        assert!(all.contains(&call), "{name} is nowhere");
    }
}

#[test]
fn every_link_of_the_documents_leads_to_a_file() {
    let root = repository();
    let mut documents: Vec<PathBuf> = ["", "docs", "docs/adr"]
        .iter()
        .flat_map(|folder| std::fs::read_dir(root.join(folder)).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "md"))
        .collect();
    documents.sort();
    assert!(documents.len() > 5, "{documents:?}");
    let mut dead = Vec::new();
    for document in documents {
        let text = std::fs::read_to_string(&document).unwrap();
        for rest in text.split("](").skip(1) {
            let target = rest.split([')', '#', ' ']).next().unwrap_or_default();
            let local = !target.is_empty() && !target.contains("://");
            if local && !document.parent().unwrap().join(target).exists() {
                dead.push(format!("{}: {target}", document.display()));
            }
        }
    }
    assert!(dead.is_empty(), "links that lead nowhere: {dead:#?}");
}

#[test]
fn the_reading_order_of_a_restore_names_seven_files_and_functions_that_they_have() {
    let text = std::fs::read_to_string(repository().join("ARCHITECTURE.md")).unwrap();
    let (_, section) = text.split_once("## One restore, in reading order").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let mut files = Vec::new();
    for row in section.lines().filter(|line| line.contains(".rs` |")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let (file, names) = (cells[2].trim_matches('`').to_owned(), cells[3]);
        let source = std::fs::read_to_string(repository().join(&file)).unwrap_or_else(|_| panic!("{file}"));
        for name in names.split(", ").map(|name| name.trim_matches('`')) {
            let there = ["fn ", "enum "].iter().any(|kind| {
                source.contains(&format!("{kind}{name}(")) || source.contains(&format!("{kind}{name} {{"))
            });
            assert!(there, "{file} has no {name}");
        }
        if !files.contains(&file) {
            files.push(file);
        }
    }
    assert_eq!(files.len(), 7, "{files:#?}");
}
