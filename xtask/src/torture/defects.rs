//! Planted defects: each breaks a promise, and a test that is there anyway must fail for it.
//!
//! The service is built with them in a folder of its own. Each test is run without a defect first: one that fails then says
//! nothing.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use crate::Stop;
use crate::setup::{cargo, repository, run_visibly};
use crate::testing;

/// Package, target and the beginning of a test's name.
type Gate = (&'static str, &'static str, &'static str);

const POWER: Gate = ("cachekeep", "crash", "power::");
const BACKUP_HIT: Gate = ("cachekeep", "crash", "kill_points::a_backup_hit_anywhere");
const CLAIMS: Gate = ("cachekeep", "bin", "jobs::queue::tests::");
const ZOMBIES: Gate = ("cachekeep", "it", "shared::a_worker_that_sleeps_past_its_lease");
const CUT_OFF: Gate = (
    "cachekeep",
    "it",
    "shared::a_worker_that_is_cut_off_from_the_catalogue",
);
const CANCELLED: Gate = (
    "cachekeep",
    "it",
    "attach_restore::a_restore_that_is_cancelled_while_it_writes",
);
const IN_PLACE: Gate = ("cachekeep", "crash", "kill_points::a_failing_in_place_restore");
const ATTACHED: Gate = ("cachekeep", "crash", "attached_restore::");
const NO_BYTE: Gate = ("cachekeep", "crash", "faults::no_engine_sees_a_byte");
const DAMAGE: Gate = ("engine", "it", "damage::");
const OLD_COPY: Gate = ("cachekeep", "it", "old_copy::");
const RETENTION: Gate = ("cachekeep", "bin", "schedule::keep::tests::");
const ISOLATION: Gate = ("cachekeep", "it", "isolation::");

/// A promise, a defect of `crates/engine/src/defect.rs` that breaks it, and the gate that must catch that.
const GATES: [(&str, &str, Gate); 20] = [
    ("P1", "catalogue-unsynced", POWER),
    ("P1", "objects-unsynced", POWER),
    ("P1", "acknowledged-before-commit", POWER),
    ("P1", "job-apart-from-record", BACKUP_HIT),
    ("P4", "fence-unchecked", CLAIMS),
    ("P4", "claim-unguarded", CLAIMS),
    ("P4", "attempts-share-names", ZOMBIES),
    ("P4", "lease-without-end", CUT_OFF),
    ("P5", "old-data-not-brought-back", IN_PLACE),
    ("P5", "not-put-back", ATTACHED),
    ("P5", "target-state-unwritten", CANCELLED),
    ("P6", "stored-bytes-unproven", NO_BYTE),
    ("P6", "manifest-unproven", DAMAGE),
    ("P6", "connected-before-validation", DAMAGE),
    ("P16", "deleted-by-list", OLD_COPY),
    ("P16", "held-expires", RETENTION),
    ("P16", "one-fewer-kept", RETENTION),
    ("P19", "project-unfiltered", ISOLATION),
    ("P19", "token-for-any-project", ISOLATION),
    ("P19", "foreign-told-apart", ISOLATION),
];

/// Runs the gates of these defects, or of all.
///
/// # Errors
/// A defect was not caught, or a gate fails without one.
pub fn run(names: &[String]) -> Result<(), Stop> {
    if let Some(unknown) = names
        .iter()
        .find(|name| !GATES.iter().any(|(_, known, _)| known == name))
    {
        return Err(Stop::new(format!("no defect is called {unknown}")));
    }
    let wanted: Vec<_> = GATES
        .into_iter()
        .filter(|(_, name, _)| names.is_empty() || names.iter().any(|wanted| wanted == name))
        .collect();
    let programs = testing::step("build with planted defects", build)?;
    let gates: BTreeSet<Gate> = wanted.iter().map(|(_, _, gate)| *gate).collect();
    for gate in gates {
        testing::step(&format!("without a defect: {}", shown(gate)), || {
            match failed(&programs, gate, None)? {
                failed if failed.is_empty() => Ok(()),
                failed => Err(Stop::new(format!("fails without a defect: {failed:?}"))),
            }
        })?;
    }
    println!("| promise | defect | caught by |\n|---|---|---|");
    let mut missed = Vec::new();
    for (promise, name, gate) in &wanted {
        let caught = failed(&programs, *gate, Some(name))?;
        match caught.is_empty() {
            true => {
                println!("| {promise} | {name} | **nothing** |");
                missed.push(*name);
            }
            false => println!("| {promise} | {name} | `{}:{}` |", gate.1, caught.join("`, `")),
        }
    }
    println!(
        "{} of {} defects caught",
        wanted.len() - missed.len(),
        wanted.len()
    );
    match missed.is_empty() {
        true => Ok(()),
        false => Err(Stop::new(format!("not caught: {missed:?}"))),
    }
}

fn shown(gate: Gate) -> String {
    format!("{} {} {}", gate.0, gate.1, gate.2)
}

fn folder() -> PathBuf {
    repository().join("target/planted")
}

/// A target's test program: package, target, path.
type Program = (String, String, PathBuf);

/// Builds the tests of both packages, and the service for them.
fn build() -> Result<Vec<Program>, Stop> {
    let words = [
        "test",
        "--release",
        "--package",
        "cachekeep",
        "--package",
        "engine",
        "--features",
        "cachekeep/planted-defects,engine/planted-defects",
        "--bins",
        "--test",
        "it",
        "--test",
        "crash",
        "--no-run",
    ];
    let order = |command: &mut Command| {
        command.args(words).env("CARGO_TARGET_DIR", folder());
    };
    let mut visible = cargo();
    order(&mut visible);
    run_visibly(&mut visible)?;
    // Again, which builds nothing, for where the programs are.
    let mut told = cargo();
    order(&mut told);
    let output = told.args(["--message-format", "json"]).output()?;
    let mut programs = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Ok(message) = serde_json::from_str::<serde_json::Value>(line) else {
            continue;
        };
        let Some(program) = message["executable"].as_str() else {
            continue;
        };
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let package = match text(&message["manifest_path"]).contains("crates/engine") {
            true => "engine",
            false => "cachekeep",
        };
        let target = match message["target"]["kind"][0].as_str() {
            Some("bin") if message["profile"]["test"] == true => "bin".to_owned(),
            Some("test") => text(&message["target"]["name"]),
            _ => continue,
        };
        programs.push((package.to_owned(), target, program.into()));
    }
    Ok(programs)
}

/// The tests of a gate that fail with a defect, or without one.
fn failed(programs: &[Program], gate: Gate, defect: Option<&str>) -> Result<Vec<String>, Stop> {
    let (package, target, name) = gate;
    let found = programs
        .iter()
        .find(|(of, which, _)| of == package && which == target);
    let Some((_, _, program)) = found else {
        return Err(Stop::new(format!("{} was not built", shown(gate))));
    };
    let home = if package == "engine" {
        "crates/engine"
    } else {
        "crates/server"
    };
    let mut command = Command::new(program);
    command
        .arg(name)
        .current_dir(repository().join(home))
        .env("CARGO_MANIFEST_DIR", repository().join(home))
        .env_remove("CACHEKEEP_DEFECT");
    if let Some(defect) = defect {
        command.env("CACHEKEEP_DEFECT", defect);
    }
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let log = folder().join(format!("{}.log", defect.unwrap_or("none")));
    let whole = [output.stdout.as_slice(), &output.stderr].concat();
    std::fs::write(&log, whole).map_err(|e| Stop::file("write", &log, &e))?;
    let lines = || said.lines().filter_map(|line| line.strip_prefix("test "));
    if !lines().any(|line| line.ends_with("... ok") || line.ends_with("... FAILED")) {
        return Err(Stop::new(format!(
            "{} ran no test: {}",
            shown(gate),
            log.display()
        )));
    }
    let mut failed: Vec<String> = lines()
        .filter_map(|line| line.strip_suffix(" ... FAILED"))
        .map(str::to_owned)
        .collect();
    failed.sort();
    Ok(failed)
}
