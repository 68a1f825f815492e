//! `cargo xtask test`: everything that must hold, in the order in which a failure is cheapest to learn of.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::args::Args;
use crate::service::{Scheme, Service, processes_in};
use crate::setup::{Purpose, build_service, cargo, install_s3s_fs, prepare, python, repository, run_visibly};
use crate::{Stop, before, service};

/// `cargo xtask test --help`.
pub const HELP: &str = "\
Runs all checks and tests; stops at the first that fails. Needs no service, and no port but free ones.

  cargo xtask test [--long] [ONLY...]

  --long    also the long forms (CACHEKEEP_TEST_LONG=1 for the tests)
  ONLY      some of: fmt, clippy, deny, cargo, clients, or the name of one client test (sdk_v2, otc_v1, ...); or before,
            which is run by its name only: it builds the program of the catalogue's version before from the history
            of this repository, and has it work beside the present one
";

/// The step that takes a build of its own.
const BEFORE: &str = "before";

struct Selection {
    only: Vec<String>,
    long: bool,
}

impl Selection {
    fn wants(&self, step: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| name == step)
    }
}

/// Runs the steps.
///
/// # Errors
/// The first step that failed.
pub fn command(mut args: Args) -> Result<(), Stop> {
    let long = args.flag("--long");
    let selection = Selection {
        only: args.names()?,
        long,
    };
    let clients = client_tests()?;
    check_names(&selection, &clients)?;
    let started = Instant::now();
    step("setup", || match long {
        true => prepare(Purpose::Test).and_then(|()| install_s3s_fs()),
        false => prepare(Purpose::Test),
    })?;
    if selection.wants("fmt") {
        step("fmt", || {
            run_cargo(&["fmt", "--all", "--check"]).map_err(|e| e.advice("cargo fmt --all puts it right"))
        })?;
    }
    if selection.wants("clippy") {
        step("clippy", || {
            run_cargo(&[
                "clippy",
                "--release",
                "--workspace",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ])
            .map_err(|e| e.advice("each warning above says what it wants"))
        })?;
    }
    if selection.wants("deny") {
        step("deny", check_licences)?;
    }
    if selection.wants("cargo") {
        step("cargo test", || test_workspace(&selection))?;
    }
    let chosen: Vec<&ClientTest> = clients
        .iter()
        .filter(|test| selection.wants("clients") || selection.wants(&test.name))
        .collect();
    if !chosen.is_empty() {
        step("clients, build", build_service)?;
        for scheme in [Scheme::Http, Scheme::Https] {
            test_clients(&chosen, scheme)?;
        }
    }
    if selection.only.iter().any(|name| name == BEFORE) {
        step(BEFORE, before::test)?;
    }
    println!("== all passed in {}", shown(started.elapsed()));
    Ok(())
}

/// Says what is done, and how it went.
///
/// # Errors
/// Those of `run`.
pub fn step<T>(name: &str, run: impl FnOnce() -> Result<T, Stop>) -> Result<T, Stop> {
    println!("== {name}");
    let started = Instant::now();
    let outcome = run();
    let word = if outcome.is_ok() { "passed" } else { "FAILED" };
    println!("== {name}: {word} in {}", shown(started.elapsed()));
    outcome
}

fn shown(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 60.0 {
        format!("{seconds:.1} s")
    } else {
        format!("{} min {:02.0} s", (seconds / 60.0).floor(), seconds % 60.0)
    }
}

fn run_cargo(words: &[&str]) -> Result<(), Stop> {
    run_visibly(cargo().args(words))
}

fn check_licences() -> Result<(), Stop> {
    let program = repository().join(".tools/bin/cargo-deny");
    run_visibly(
        Command::new(program)
            .args(["--log-level", "error", "check", "bans", "licenses", "sources"])
            .current_dir(repository()),
    )
    .map_err(|e| e.advice("deny.toml says what is allowed; add a licence only after reading it"))
}

/// What the names of tests contain whose bound is a few milliseconds of what clients see: nothing else runs beside them.
const ALONE: &str = "no_gap";

fn test_workspace(selection: &Selection) -> Result<(), Stop> {
    let run = |words: &[&str]| {
        let mut command = cargo();
        command.args(["test", "--release"]).args(words);
        if selection.long {
            command.env("CACHEKEEP_TEST_LONG", "1");
        }
        run_visibly(&mut command).map_err(|e| e.advice("run one again: cargo test --release -p CRATE NAME"))
    };
    // Most tests wait for something: one more than there are processors keeps these busy.
    let threads = std::thread::available_parallelism().map_or(2, |count| count.get() + 1);
    let threads = format!("--test-threads={threads}");
    run(&["--workspace", "--", "--skip", ALONE, &threads])?;
    run(&["-p", "cachekeep", "--test", "it", "--", ALONE, "--test-threads=1"])
}

/// A program of `tests/clients` that talks to a running service.
struct ClientTest {
    name: String,
    program: PathBuf,
}

/// Every program in `tests/clients`; `harness.py` is what they share.
fn client_tests() -> Result<Vec<ClientTest>, Stop> {
    let folder = repository().join("tests/clients");
    let entries = std::fs::read_dir(&folder).map_err(|e| Stop::file("read", &folder, &e))?;
    let mut tests: Vec<ClientTest> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "py"))
        .filter_map(|program| {
            Some(ClientTest {
                name: program.file_stem()?.to_str()?.to_owned(),
                program,
            })
        })
        .filter(|test| test.name != "harness")
        .collect();
    tests.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(tests)
}

fn check_names(selection: &Selection, clients: &[ClientTest]) -> Result<(), Stop> {
    let known = |name: &String| {
        ["fmt", "clippy", "deny", "cargo", "clients", BEFORE].contains(&name.as_str())
            || clients.iter().any(|test| test.name == *name)
    };
    match selection.only.iter().find(|name| !known(name)) {
        Some(unknown) => {
            Err(Stop::new(format!("no step is called {unknown}")).advice("cargo xtask test --help"))
        }
        None => Ok(()),
    }
}

/// One service for all; every test makes and deletes its own instances and leaves nothing running.
fn test_clients(tests: &[&ClientTest], scheme: Scheme) -> Result<(), Stop> {
    service::check_built()?;
    let mut service = Service::start(scheme, &[])?;
    for test in tests {
        step(&format!("clients, {} over {}", test.name, scheme.name()), || {
            let run = run_visibly(
                Command::new(python())
                    .arg(&test.program)
                    .env("CACHEKEEP_ADMIN", service.admin_file())
                    .env("PYTHONWARNINGS", "ignore")
                    .current_dir(repository()),
            );
            service.check_alive()?;
            run.map_err(|e| service.told(&e.to_string()))
        })?;
    }
    step(
        &format!("clients, nothing is left over {}", scheme.name()),
        || {
            service.end()?;
            match processes_in(&service.data_folder()).len() {
                0 => Ok(()),
                count => Err(service.told(&format!(
                    "left {count} engines running though all instances were deleted"
                ))),
            }
        },
    )
}
