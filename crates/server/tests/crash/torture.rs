//! Every place of a single instance x kill, error, stall x SQLite, PostgreSQL, in every operation that passes it.
//!
//! `cargo xtask torture` runs all; without `CACHEKEEP_TEST_TORTURE=long` every sixty-fourth is run. A run that the checker refuses
//! is told with its place, and the others go on, so that the totals are of all.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::Instant;

use crate::catalogue::Kind;
use crate::checker::{self, Form};
use crate::kill_points::{Operation, PLACES, hit, scene};
use crate::world::World;

const ACTIONS: [&str; 3] = ["kill", "error", "stall"];
/// Runs of the short form: one of so many.
const SHORT: usize = 64;

/// What is done, in which words, and how the instance keeps its data meanwhile.
const OPERATIONS: [(&str, Operation, &str); 19] = [
    ("backup", Operation::Backup, "aof"),
    ("restore", Operation::Restore, "aof"),
    ("restore", Operation::Restore, "rdb"),
    ("restore", Operation::Restore, "none"),
    ("restore that fails", Operation::RestoreFails, "aof"),
    ("restore that fails", Operation::SwitchFails, "rdb"),
    ("restore, undone", Operation::Undo, "aof"),
    ("restore, undone", Operation::UndoFails, "none"),
    ("restore in place", Operation::InPlace, "aof"),
    ("restore in place", Operation::InPlaceFails, "aof"),
    ("restore in place", Operation::InPlaceFails, "none"),
    ("delete", Operation::DeleteBackup, "aof"),
    ("delete", Operation::DeleteInstance, "aof"),
    ("import", Operation::Import, "aof"),
    ("create", Operation::Create, "aof"),
    ("create", Operation::CreateFails, "aof"),
    ("restart, flush, password", Operation::Restart, "aof"),
    ("restart, flush, password", Operation::Flush, "aof"),
    ("restart, flush, password", Operation::Password, "aof"),
];

/// Runs that one service sees one after the other.
struct Series {
    words: &'static str,
    operation: Operation,
    persistence: &'static str,
    kind: Kind,
    runs: Vec<(&'static str, &'static str)>,
}

fn all_series(is_long: bool) -> Vec<Series> {
    let mut number = 0;
    let mut all = Vec::new();
    for (words, operation, persistence) in OPERATIONS {
        for kind in Kind::ALL {
            let passing = PLACES
                .iter()
                .filter(|(_, operations)| operations.contains(&operation));
            let runs = passing.flat_map(|(place, _)| ACTIONS.map(|action| (*place, action)));
            let chosen: Vec<_> = runs
                .filter(|_| {
                    number += 1;
                    is_long || number % SHORT == 1
                })
                .collect();
            all.push(Series {
                words,
                operation,
                persistence,
                kind,
                runs: chosen,
            });
        }
    }
    all.retain(|series| !series.runs.is_empty());
    // The longest first: nobody waits for one at the end.
    all.sort_by_key(|series| series.runs.len());
    all
}

/// How many fired, by operation and database and action; and what the checker refused.
#[derive(Default)]
struct Totals {
    fired: BTreeMap<(&'static str, &'static str), [u32; 3]>,
    refused: Vec<String>,
}

fn run(series: &Series, totals: &Mutex<Totals>) {
    let mut kept: Option<(World, String)> = None;
    for (place, action) in &series.runs {
        let before = kept.take();
        // A world that is dropped by a panic tells the end of its log.
        let tried = catch_unwind(AssertUnwindSafe(|| {
            let (mut world, backup) = before.unwrap_or_else(|| scene(series.kind, series.persistence));
            hit(&mut world, series.operation, place, action, &backup);
            (world, backup)
        }));
        let mut totals = totals.lock().unwrap();
        match tried {
            Ok(world) => {
                let row = totals
                    .fired
                    .entry((series.words, series.kind.word()))
                    .or_default();
                row[ACTIONS.iter().position(|known| known == action).unwrap()] += 1;
                kept = Some(world);
            }
            // The next run begins with a world of its own.
            Err(_told_above) => {
                let label = format!(
                    "{:?} {place}:{action} in {}",
                    series.operation,
                    series.kind.word()
                );
                totals.refused.push(label);
            }
        }
    }
    if let Some((mut world, _)) = kept {
        let label = format!("{:?} at the end", series.operation);
        let tried = catch_unwind(AssertUnwindSafe(|| {
            checker::check(&mut world, Form::Full, &label);
        }));
        if tried.is_err() {
            totals.lock().unwrap().refused.push(label);
        }
    }
}

#[test]
fn every_place_hit_in_every_way_in_either_database_loses_nothing_and_no_record_lies() {
    let is_long = std::env::var("CACHEKEEP_TEST_TORTURE").is_ok_and(|form| form == "long");
    let started = Instant::now();
    let waiting = Mutex::new(all_series(is_long));
    let planned: usize = waiting
        .lock()
        .unwrap()
        .iter()
        .map(|series| series.runs.len())
        .sum();
    let totals = Mutex::new(Totals::default());
    // Stalls sleep: more of them than processors.
    let threads = if is_long { 6 } else { 2 };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let next = waiting.lock().unwrap().pop();
                    match next {
                        Some(series) => run(&series, &totals),
                        None => break,
                    }
                }
            });
        }
    });
    let totals = totals.into_inner().unwrap();
    println!("| operation | catalogue | kill | error | stall |\n|---|---|---|---|---|");
    let mut fired = 0;
    for ((words, kind), [kill, error, stall]) in &totals.fired {
        println!("| {words} | {kind} | {kill} | {error} | {stall} |");
        fired += usize::try_from(kill + error + stall).unwrap();
    }
    println!(
        "{planned} runs, {fired} of them fired and judged: {} refused by the checker; {:.0} s",
        totals.refused.len(),
        started.elapsed().as_secs_f64()
    );
    assert!(totals.refused.is_empty(), "{:#?}", totals.refused);
    assert_eq!(fired, planned);
}
