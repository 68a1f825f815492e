//! Every statement of the sources, prepared on both databases.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::*;

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
}

/// The texts of a source, with `concat!` of them and of macros that are a text done.
fn texts(source: &str) -> Vec<String> {
    let source = source.split("#[cfg(test)]").next().unwrap_or_default();
    let mut macros: BTreeMap<&str, String> = BTreeMap::new();
    let mut texts = Vec::new();
    let mut rest = source;
    let (mut name, mut joined): (Option<&str>, Option<String>) = (None, None);
    while let Some(letter) = rest.chars().next() {
        if rest.starts_with("//") {
            rest = &rest[rest.find('\n').unwrap_or(rest.len())..];
        } else if let Some(after) = rest.strip_prefix("macro_rules! ") {
            name = after.split([' ', '{']).next();
            rest = after;
        } else if let Some(after) = rest.strip_prefix("concat!(") {
            (joined, rest) = (Some(String::new()), after);
        } else if letter == '"' {
            let (text, after) = literal(&rest[1..]);
            match (&mut joined, name.take()) {
                (Some(joined), _) => joined.push_str(&text),
                (None, Some(name)) => drop(macros.insert(name, text)),
                (None, None) => texts.push(text),
            }
            rest = after;
        } else if let (Some(joined_now), true) = (&mut joined, letter == ')') {
            texts.push(std::mem::take(joined_now));
            (joined, rest) = (None, &rest[1..]);
        } else if let (Some(joined), true) = (&mut joined, letter.is_alphabetic()) {
            let (word, after) = rest
                .split_once("!()")
                .expect("a macro without arguments in concat!");
            joined.push_str(macros.get(word).unwrap_or_else(|| panic!("no macro {word}")));
            rest = after;
        } else if let Some(after) = rest.strip_prefix("'\"'") {
            rest = after;
        } else {
            rest = &rest[letter.len_utf8()..];
        }
    }
    texts
}

/// A text and what follows its closing quote.
fn literal(source: &str) -> (String, &str) {
    let mut text = String::new();
    let mut letters = source.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return (text, &source[at + 1..]),
            '\\' => match letters.next() {
                Some((at, '\n')) => {
                    let rest = source[at..].trim_start();
                    let (more, after) = literal(rest);
                    return (text + &more, after);
                }
                Some((_, 'n')) => text.push('\n'),
                Some((_, other)) => text.push(other),
                None => {}
            },
            letter => text.push(letter),
        }
    }
    (text, "")
}

/// Of all sources but those in folders of these names.
fn statements(without: &[&str]) -> BTreeSet<String> {
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    files.retain(|file| {
        !file
            .iter()
            .any(|part| without.iter().any(|folder| part == *folder))
    });
    let all = files
        .iter()
        .flat_map(|file| texts(&std::fs::read_to_string(file).unwrap()));
    let verbs = ["SELECT ", "INSERT ", "UPDATE ", "DELETE ", "WITH "];
    all.filter(|text| verbs.iter().any(|verb| text.starts_with(verb)))
        .collect()
}

#[test]
fn every_statement_is_prepared_on_both_databases() {
    let statements = statements(&["catalog"]);
    assert!(
        statements.len() > 100,
        "{} statements are found",
        statements.len()
    );
    let sqlite = rusqlite::Connection::open_in_memory().unwrap();
    sqlite.execute_batch(SCHEMA).unwrap();
    let server = xtask::postgres::Postgres::start().unwrap();
    let url = server.make_schema("statements").unwrap();
    let database = postgres::Database::open(&url, true).unwrap();
    let mut wrong = Vec::new();
    for statement in &statements {
        if let Err(error) = sqlite.prepare(statement) {
            wrong.push(format!("SQLite: {error}: {statement}"));
        }
        match database.read(|open| open.unread(statement)) {
            Ok(unread) if unread.is_empty() => {}
            Ok(unread) => wrong.push(format!("PostgreSQL: {}: {statement}", unread.join(", "))),
            Err(error) => wrong.push(format!("PostgreSQL: {}: {statement}", engine::chain(&error))),
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        statements.len(),
        wrong.join("\n")
    );
}

/// Tables, and their aliases, that grow with every backup and restore that was ever made.
const HISTORY: [&str; 9] = [
    "backup",
    "restore",
    "restore_told",
    "backup_place",
    "place",
    "verification",
    "job",
    "generation",
    "outbox",
];
/// Indexes of what is going on now.
const OF_NOW: [&str; 4] = [
    "job_active_index",
    "backup_place_unkept_index",
    "verification_unfinished_unique",
    "generation_instance_index",
];
/// One that runs once, at the start, and one that reads a few rows which it calls like the table.
const READ_ALL: [&str; 2] = [
    "UPDATE backup SET status = 'deleted', phase = NULL",
    "SELECT backup.plain_bytes, restore.finished_at_ms",
];

/// With a million records the look that is taken every few seconds costs what it costs with ten. A rebuild may read all.
#[test]
fn no_statement_reads_the_whole_history() {
    let sqlite = rusqlite::Connection::open_in_memory().unwrap();
    // A row that is added is looked for in those that refer to it, where one of them was waiting for it; none ever is.
    sqlite.execute_batch("PRAGMA foreign_keys = OFF").unwrap();
    sqlite.execute_batch(SCHEMA).unwrap();
    let reads_all = |statement: &str| -> Vec<String> {
        let mut explained = sqlite
            .prepare(&format!("EXPLAIN QUERY PLAN {statement}"))
            .unwrap();
        let steps = explained.raw_query().mapped(|row| row.get::<_, String>(3));
        let steps: Vec<String> = steps.map(Result::unwrap).collect();
        let is_whole = |step: &&String| {
            let mut words = step.split(' ');
            words.next() == Some("SCAN")
                && words.next().is_some_and(|table| HISTORY.contains(&table))
                && step
                    .split(' ')
                    .next_back()
                    .is_none_or(|index| !OF_NOW.contains(&index))
        };
        steps.iter().filter(is_whole).cloned().collect()
    };
    let mut wrong = Vec::new();
    for statement in statements(&["catalog", "rebuild"]) {
        if !READ_ALL.iter().any(|known| statement.starts_with(known)) {
            wrong.extend(
                reads_all(&statement)
                    .into_iter()
                    .map(|step| format!("{step}: {statement}")),
            );
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(!reads_all("SELECT id FROM backup WHERE remark = 'x'").is_empty());
}

#[test]
fn a_transaction_of_which_a_statement_failed_is_not_told_as_committed() {
    let server = xtask::postgres::Postgres::start().unwrap();
    let url = server.make_schema("failed").unwrap();
    let catalog = Catalog::connect(&url, true).unwrap();
    let fail = |tx: &Tx<'_>| tx.execute("SELECT 1 / 0", ());
    let swallowed = catalog.write(|tx| {
        drop(fail(tx));
        Ok::<_, Error>(())
    });
    assert!(matches!(swallowed, Err(Error::Database(_))), "{swallowed:?}");
    let undone = catalog.write(|tx| tx.attempt(fail)).unwrap();
    assert!(matches!(undone, Err(Error::Database(_))), "{undone:?}");
}

#[test]
fn a_writer_that_is_frozen_keeps_the_others_for_some_seconds_only() {
    use std::time::{Duration, Instant};
    let server = xtask::postgres::Postgres::start().unwrap();
    let url = server.make_schema("frozen").unwrap();
    let (first, second) = (
        Catalog::connect(&url, true).unwrap(),
        Catalog::connect(&url, true).unwrap(),
    );
    let note = |tx: &Tx<'_>| tx.execute("INSERT INTO signer (verifying_key) VALUES ('k')", ());
    let (has_lock, told) = std::sync::mpsc::sync_channel(1);
    let frozen = std::thread::scope(|scope| {
        let frozen = scope.spawn(|| {
            first.write(|tx| {
                note(tx)?;
                has_lock.send(()).unwrap();
                std::thread::sleep(Duration::from_secs(9));
                Ok::<_, Error>(())
            })
        });
        told.recv().unwrap();
        let since = Instant::now();
        second.write(|tx| note(tx)).unwrap();
        let waited = since.elapsed();
        assert!(waited < Duration::from_secs(8), "{waited:?}");
        frozen.join().unwrap()
    });
    assert!(matches!(frozen, Err(Error::Away(_))), "{frozen:?}");
    let keys = second
        .read(|tx| tx.one("SELECT count(*) FROM signer", (), |row| row.get::<i64>(0)))
        .unwrap();
    assert_eq!(keys, Some(1));
}
