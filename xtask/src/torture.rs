//! `cargo xtask torture`: the long forms of the crash tests, and the defects that the tests must catch.

pub mod defects;

use crate::args::Args;
use crate::setup::{Purpose, cargo, prepare, run_visibly};
use crate::{Stop, testing};

/// `cargo xtask torture --help`.
pub const HELP: &str = "\
Hits the service at every place of a single instance, in every way, in either database; then kills it at random moments under load.

  cargo xtask torture [--kills N]
  cargo xtask torture --nodes [TIMES]
  cargo xtask torture --partitions [TIMES]
  cargo xtask torture --defects [NAME...]

  --kills N    random kills, half of them with the catalogue in PostgreSQL; 200 without it, 0 for none
  --nodes      instead: workers that are killed, that sleep past their lease in backups, and that sleep past it in
               restores, so many times each (50, 300 and 100 without it), 1,000 races for a claim, 50 kills of
               PostgreSQL in mid-commit
  --partitions instead: so many partitions (200 without it) between three nodes, their catalogue, store, source and target,
               each in a network of its own
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
        return testing::step("several nodes", || nodes(times.first()));
    }
    if args.flag("--partitions") {
        let times = args.names()?;
        prepare(Purpose::Test)?;
        return testing::step("partitions", || {
            tests_of_nodes(
                &["--test", "it"],
                &["partitions_between_three_nodes"],
                times.first(),
            )
        });
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

fn nodes(times: Option<&String>) -> Result<(), Stop> {
    let names = [
        "of_many_that_claim",
        "a_worker_that_is_killed",
        "a_worker_that_sleeps",
        "a_restore_whose_worker_sleeps",
        "kills_of_the_database",
    ];
    tests_of_nodes(&["--bin", "cachekeep", "--test", "it"], &names, times)
}

/// The long form of these, so many times each.
fn tests_of_nodes(targets: &[&str], names: &[&str], times: Option<&String>) -> Result<(), Stop> {
    let long = ("CACHEKEEP_TEST_LONG", "1");
    let times = times.map(|times| ("CACHEKEEP_TEST_TIMES", times.as_str()));
    run_tests(targets, names, std::iter::once(long).chain(times))
}

fn crash_tests(which: &str, variable: (&str, &str)) -> Result<(), Stop> {
    run_tests(&["--test", "crash"], &[which], [variable])
}

/// Runs these tests, of which each name must stand for one at least.
fn run_tests<'a>(
    targets: &[&str],
    names: &[&str],
    variables: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<(), Stop> {
    let tests = |more: &[&str]| {
        let mut command = cargo();
        command
            .args(["test", "--release", "-p", "cachekeep"])
            .args(targets)
            .arg("--")
            .args(more)
            // Each test says itself which database it is of.
            .env_remove("CACHEKEEP_TEST_CATALOG");
        command
    };
    let listed = tests(&["--list"]).output()?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    if let Some(missing) = names.iter().find(|name| !listed.contains(*name)) {
        return Err(Stop::new(format!("no test is called {missing}")));
    }
    let mut command = tests(&[&["--nocapture"], names].concat());
    run_visibly(command.envs(variables))
}
