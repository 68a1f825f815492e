//! `cargo xtask fuzz`: libFuzzer over one target of `crates/fuzzing`, on the stable toolchain.
//!
//! What the compiler calls sanitizer coverage is reached by flags that need no nightly; the runtime comes with the
//! crate `libfuzzer-sys` and is built by the C++ compiler. There is no address sanitizer: the workspace has no unsafe
//! code to catch with it.

use std::path::PathBuf;
use std::process::Command;

use crate::Stop;
use crate::args::Args;
use crate::setup::{cargo, find_program, repository, run_visibly};

/// `cargo xtask fuzz --help`.
pub const HELP: &str = "\
Feeds one reader of strangers' bytes with inputs, guided by coverage, and keeps what breaks it.

  cargo xtask fuzz TARGET [--minutes N]
  cargo xtask fuzz --list

  --minutes N   how long, 5 without it; what was learnt is kept in fuzz/corpus and used the next time
  --list        the targets

An input that breaks the target is kept below fuzz/crashes; `cargo test --release -p fuzzing` runs all of those again.
Needs g++. The first build takes some minutes: everything is compiled once more, with instrumentation.
";

/// For the runner and all it is built from; not for build scripts, which have no fuzzer's runtime to link with.
const FLAGS: [&str; 6] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
];
/// Longest time for one input: a second for a megabyte would be wrong already, and none is longer than 64 KiB. More,
/// because the machine may be busy.
const TIMEOUT_SECONDS: u32 = 5;
/// Memory of the whole process, in MiB: the corpus and the tables of the fuzzer are part of it.
const MEMORY_MB: u32 = 1024;
const INPUT_BYTES_MAX: u32 = 64 * 1024;

/// Runs a target.
///
/// # Errors
/// The target broke, or something could not be built.
pub fn command(mut args: Args) -> Result<(), Stop> {
    let is_list = args.flag("--list");
    let minutes = args.option::<f64>("--minutes")?.unwrap_or(5.0);
    let names = args.names()?;
    let known = targets()?;
    if is_list {
        for name in known {
            println!("{name}");
        }
        return Ok(());
    }
    let [name] = names.as_slice() else {
        return Err(Stop::new("fuzz takes one target").advice("cargo xtask fuzz --list"));
    };
    if !known.contains(name) {
        return Err(Stop::new(format!("no target is called {name}")).advice("cargo xtask fuzz --list"));
    }
    let program = build()?;
    let folder = |part: &str| -> Result<PathBuf, Stop> {
        let path = repository().join("fuzz").join(part).join(name);
        std::fs::create_dir_all(&path).map_err(|e| Stop::file("make", &path, &e))?;
        Ok(path)
    };
    let (corpus, seeds, crashes) = (folder("corpus")?, folder("seeds")?, folder("crashes")?);
    let before = count(&crashes);
    let ran = run_visibly(
        Command::new(program)
            .args([
                format!("-max_total_time={:.0}", minutes * 60.0),
                format!("-timeout={TIMEOUT_SECONDS}"),
                format!("-rss_limit_mb={MEMORY_MB}"),
                format!("-max_len={INPUT_BYTES_MAX}"),
                format!("-artifact_prefix={}/", crashes.display()),
                "-use_value_profile=1".to_owned(),
                "-print_final_stats=1".to_owned(),
            ])
            .arg(&corpus)
            .arg(&seeds)
            .env("CACHEKEEP_FUZZ_TARGET", name)
            .env("CACHEKEEP_FUZZ_SEEDS", &seeds),
    );
    if count(&crashes) == before {
        let _empty_or_not = std::fs::remove_dir(&crashes);
    }
    ran.map_err(|e| e.advice(format!("the input is kept in {}", crashes.display())))
}

fn count(folder: &std::path::Path) -> usize {
    std::fs::read_dir(folder).map_or(0, Iterator::count)
}

/// The names in the table of `crates/fuzzing`, which is not linked here: `cargo xtask` must be there after a few seconds.
fn targets() -> Result<Vec<String>, Stop> {
    let path = repository().join("crates/fuzzing/src/lib.rs");
    let text = std::fs::read_to_string(&path).map_err(|e| Stop::file("read", &path, &e))?;
    Ok(text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("name: \"")?.strip_suffix("\","))
        .map(str::to_owned)
        .collect())
}

fn build() -> Result<PathBuf, Stop> {
    if find_program("g++").is_none() && find_program("c++").is_none() {
        return Err(
            Stop::new("the fuzzer's runtime is C++, and there is no compiler for it")
                .advice("apt-get install g++"),
        );
    }
    let about = Command::new("rustc").arg("-vV").output();
    let about = about.map_err(|e| Stop::new(format!("cannot start rustc: {e}")))?;
    let about = String::from_utf8_lossy(&about.stdout).into_owned();
    let host = about.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.ok_or_else(|| Stop::new("rustc does not say for which machine it builds"))?;
    let folder = repository().join("fuzz");
    println!("building the fuzzer with instrumentation (some minutes the first time)");
    run_visibly(
        cargo()
            .current_dir(&folder)
            // Naming the target keeps the flags away from build scripts.
            .args(["build", "--release", "--target", host])
            .env("RUSTFLAGS", FLAGS.join(" "))
            .env_remove("CARGO_TARGET_DIR"),
    )?;
    Ok(folder.join("target").join(host).join("release/fuzz"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_targets_are_found_by_their_names() {
        let targets = super::targets().unwrap();
        assert!(targets.len() >= 8, "{targets:?}");
        assert!(targets.contains(&"stream".to_owned()), "{targets:?}");
    }
}
