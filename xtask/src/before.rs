//! `cargo xtask test before`: the program of the catalogue's version before the present one works beside the present program.
//!
//! It is built from this repository's own history, once.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Stop;
use crate::service::check_built;
use crate::setup::{build_service, cargo, repository, run_visibly};

/// The last commit whose catalogue has version 1.
const COMMIT: &str = "1c177dea64d8e795bb003aef40f1c4caf99b27d7";

/// Builds that program where it is not there, and runs the tests of migration with it.
///
/// # Errors
/// The history does not reach so far back; the build or a test failed.
pub fn test() -> Result<(), Stop> {
    let program = build()?;
    build_service()?;
    check_built()?;
    run_visibly(
        cargo()
            .args([
                "test",
                "--release",
                "-p",
                "cachekeep",
                "--test",
                "it",
                "migrate::",
            ])
            .args(["--", "--include-ignored", "--nocapture", "--test-threads=1"])
            .env("CACHEKEEP_TEST_OLD_PROGRAM", program),
    )
}

fn build() -> Result<PathBuf, Stop> {
    let folder = repository().join("target/before");
    let program = folder.join("built/release/cachekeep");
    let made = folder.join("made-of");
    if std::fs::read_to_string(&made).is_ok_and(|commit| commit == COMMIT) && program.exists() {
        return Ok(program);
    }
    let source = folder.join("source");
    std::fs::create_dir_all(&source).map_err(|e| Stop::file("make", &source, &e))?;
    let packed = folder.join("source.tar");
    run_visibly(
        Command::new("git")
            .args(["archive", "--output"])
            .arg(&packed)
            .arg(COMMIT)
            .current_dir(repository()),
    )
    .map_err(|e| e.advice("it needs the whole history: git fetch --unshallow"))?;
    run_visibly(Command::new("tar").arg("xf").arg(&packed).arg("-C").arg(&source))?;
    println!("building the program of {COMMIT} (a few minutes)");
    run_visibly(
        cargo()
            .args(["build", "--release", "--package", "cachekeep", "--target-dir"])
            .arg(folder.join("built"))
            .current_dir(&source)
            .env_remove("CARGO_TARGET_DIR"),
    )?;
    write(&made, COMMIT)?;
    Ok(program)
}

fn write(path: &Path, text: &str) -> Result<(), Stop> {
    std::fs::write(path, text).map_err(|e| Stop::file("write", path, &e))
}
