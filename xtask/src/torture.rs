//! `cargo xtask torture`: the long forms of the crash tests, and the defects that the tests must catch.

mod defects;

use crate::args::Args;
use crate::setup::{Purpose, cargo, prepare, run_visibly};
use crate::{Stop, testing};

/// `cargo xtask torture --help`.
pub const HELP: &str = "\
Hits the service at every place, in every way, in either database; then kills it at random moments under load.

  cargo xtask torture [--kills N]
  cargo xtask torture --nodes [TIMES]
  cargo xtask torture --defects [NAME...]

  --kills N    random kills, half of them with the catalogue in PostgreSQL; 200 without it, 0 for none
  --nodes      instead: workers that are killed and workers that sleep past their lease, so many times each (50 and 300
               without it), 1,000 races for a claim, 50 kills of PostgreSQL in mid-commit
  --defects    build the service with planted defects, in a folder of its own below target/, and run for each
               the test that must catch it; with names only those

After each hit and each kill a checker that shares nothing with the service reads catalogue, store, engines and
processes. Every place must have been reached, or the run fails. Prints what was done as tables.
";

/// Kills at random moments, where nobody says how many.
const KILLS: u32 = 200;

/// Runs it.
///
/// # Errors
/// Something was lost, a record lied, a place was not reached, or a defect was not caught.
pub fn command(mut args: Args) -> Result<(), Stop> {
    if args.flag("--defects") {
        let names = args.names()?;
        prepare(Purpose::Test)?;
        return defects::run(&names);
    }
    if args.flag("--nodes") {
        let times = args.names()?;
        prepare(Purpose::Test)?;
        return testing::step("several nodes", || nodes(times.first().map(String::as_str)));
    }
    let kills = args.option::<u32>("--kills")?.unwrap_or(KILLS);
    args.finish()?;
    prepare(Purpose::Test)?;
    testing::step("every place, in every way, in either database", || {
        crash_tests("torture::", ("CACHEKEEP_TEST_TORTURE", "long"))
    })?;
    if kills > 0 {
        testing::step(&format!("{kills} kills at random moments"), || {
            crash_tests("random_kills::", ("CACHEKEEP_TEST_KILLS", &kills.to_string()))
        })?;
    }
    Ok(())
}

fn nodes(times: Option<&str>) -> Result<(), Stop> {
    let mut command = cargo();
    command
        .args([
            "test",
            "--release",
            "-p",
            "cachekeep",
            "--bin",
            "cachekeep",
            "--test",
            "it",
            "--",
            "--nocapture",
        ])
        .args([
            "of_many_that_claim",
            "a_worker_that_is_killed",
            "a_worker_that_sleeps",
            "kills_of_the_database",
        ])
        .env("CACHEKEEP_TEST_LONG", "1");
    if let Some(times) = times {
        command.env("CACHEKEEP_TEST_TIMES", times);
    }
    run_visibly(&mut command)
}

fn crash_tests(which: &str, variable: (&str, &str)) -> Result<(), Stop> {
    let mut command = cargo();
    command
        .args(["test", "--release", "-p", "cachekeep", "--test", "crash", which])
        .args(["--", "--nocapture"])
        .env(variable.0, variable.1);
    run_visibly(&mut command)
}
