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
const NO_RDB: Gate = ("engine", "it", "backup::snapshot_that_is_no_rdb_is_malformed");
const OLD_COPY: Gate = ("cachekeep", "it", "old_copy::");
const RETENTION: Gate = ("cachekeep", "bin", "schedule::keep::tests::");
const ISOLATION: Gate = ("cachekeep", "it", "isolation::");

/// A promise, a defect of `crates/engine/src/defect.rs` that breaks it, the gate that must catch that, and what that says then, one
/// of these: a gate that fails for another reason has not caught it.
const GATES: [(&str, &str, Gate, &[&str]); 21] = [
    (
        "P1",
        "catalogue-unsynced",
        POWER,
        &["is lost", "no such table", "malformed"],
    ),
    ("P1", "objects-unsynced", POWER, &["after the cut"]),
    ("P1", "acknowledged-before-commit", POWER, &["is lost"]),
    (
        "P1",
        "job-apart-from-record",
        BACKUP_HIT,
        &["backup.accepted:kill"],
    ),
    ("P4", "fence-unchecked", CLAIMS, &["holds(tx, &first)"]),
    ("P4", "claim-unguarded", CLAIMS, &["is_none()", "race "]),
    ("P4", "attempts-share-names", ZOMBIES, &["it/shared.rs"]),
    ("P4", "lease-without-end", CUT_OFF, &["it/shared.rs"]),
    (
        "P5",
        "old-data-not-brought-back",
        IN_PLACE,
        &["Connection refused"],
    ),
    ("P5", "not-put-back", ATTACHED, &["replay."]),
    (
        "P5",
        "target-state-unwritten",
        CANCELLED,
        &["it/attach_restore.rs"],
    ),
    ("P6", "stored-bytes-unproven", NO_BYTE, &["crash/faults.rs"]),
    ("P6", "manifest-unproven", DAMAGE, &["manifest.json"]),
    ("P6", "validation-skipped", NO_RDB, &["unwrap_err()"]),
    (
        "P6",
        "connected-before-validation",
        DAMAGE,
        &["the target is connected to"],
    ),
    ("P16", "deleted-by-list", OLD_COPY, &["/data/store/"]),
    ("P16", "held-expires", RETENTION, &["held: Some"]),
    ("P16", "one-fewer-kept", RETENTION, &["seed "]),
    ("P19", "project-unfiltered", ISOLATION, &["it/isolation.rs"]),
    (
        "P19",
        "token-for-any-project",
        ISOLATION,
        &["token of another project"],
    ),
    ("P19", "foreign-told-apart", ISOLATION, &["DCS.4049"]),
];

/// The names of all.
pub fn names() -> impl Iterator<Item = &'static str> {
    GATES.into_iter().map(|(_, name, _, _)| name)
}

/// Runs the gates of these defects, or of all.
///
/// # Errors
/// A defect was not caught, or a gate fails without one.
pub fn run(wanted: &[String]) -> Result<(), Stop> {
    if let Some(unknown) = wanted.iter().find(|wanted| !names().any(|name| name == *wanted)) {
        return Err(Stop::new(format!("no defect is called {unknown}")));
    }
    let wanted: Vec<_> = GATES
        .into_iter()
        .filter(|(_, name, _, _)| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name))
        .collect();
    let programs = testing::step("build with planted defects", build)?;
    let gates: BTreeSet<Gate> = wanted.iter().map(|(_, _, gate, _)| *gate).collect();
    let mut not_here = Vec::new();
    for gate in gates {
        testing::step(&format!("without a defect: {}", shown(gate)), || {
            let ran = run_gate(&programs, gate, None)?;
            if !ran.is_success {
                return Err(Stop::new(format!("fails without a defect: {:?}", ran.failed)));
            }
            if ran.said.contains("NOT SHOWN") {
                println!("it can show nothing on this machine");
                not_here.push(gate);
            }
            Ok(())
        })?;
    }
    println!("| promise | defect | caught by |\n|---|---|---|");
    let (mut caught, mut missed) = (0, Vec::new());
    for (promise, name, gate, signs) in &wanted {
        if not_here.contains(gate) {
            println!("| {promise} | {name} | not shown on this machine |");
            continue;
        }
        let ran = run_gate(&programs, *gate, Some(name))?;
        match !ran.is_success && signs.iter().any(|sign| ran.said.contains(sign)) {
            true => {
                caught += 1;
                println!(
                    "| {promise} | {name} | `{}:{}` |",
                    gate.1,
                    ran.failed.iter().cloned().collect::<Vec<_>>().join("`, `")
                );
            }
            false => {
                println!("| {promise} | {name} | **nothing** |");
                missed.push(*name);
            }
        }
    }
    println!("{caught} of {} defects caught", wanted.len());
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
        command
            .args(words)
            .env("CARGO_TARGET_DIR", folder())
            .env("CACHEKEEP_PLANT_DEFECTS", "1");
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

/// What came of a gate.
struct Ran {
    is_success: bool,
    /// The names of tests that failed.
    failed: BTreeSet<String>,
    /// All that was printed.
    said: String,
}

/// Runs a gate with a defect, or without one.
fn run_gate(programs: &[Program], gate: Gate, defect: Option<&str>) -> Result<Ran, Stop> {
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
        .args([name, "--nocapture"])
        .current_dir(repository().join(home))
        .env("CARGO_MANIFEST_DIR", repository().join(home));
    // The short form, on SQLite.
    for variable in [
        "DEFECT",
        "TEST_CATALOG",
        "TEST_SEED",
        "TEST_TIMES",
        "TEST_LONG",
        "TEST_KILLS",
        "TEST_TORTURE",
    ] {
        command.env_remove(format!("CACHEKEEP_{variable}"));
    }
    if let Some(defect) = defect {
        command.env("CACHEKEEP_DEFECT", defect);
    }
    let output = command.output()?;
    let said = String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned();
    let of = defect.map_or_else(|| format!("none-{}", name.replace("::", "-")), str::to_owned);
    let log = folder().join(format!("{of}.log"));
    std::fs::write(&log, &said).map_err(|e| Stop::file("write", &log, &e))?;
    if said.contains("running 0 tests") {
        return Err(Stop::new(format!(
            "{} ran no test: {}",
            shown(gate),
            log.display()
        )));
    }
    let failed = said
        .lines()
        .skip_while(|line| *line != "failures:")
        .filter_map(|line| line.strip_prefix("    "))
        .filter(|line| line.contains("::") && !line.contains(' '))
        .map(str::to_owned)
        .collect();
    Ok(Ran {
        is_success: output.status.success(),
        failed,
        said,
    })
}
