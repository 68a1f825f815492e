//! `cargo xtask <command>`: see [`HELP`].

use std::process::ExitCode;

use xtask::args::Args;
use xtask::{Stop, bench, fill, fuzz, setup, testing, torture};

const HELP: &str = "\
Developer commands of cachekeep.

  cargo xtask run [-- OPTIONS]      install what is missing, build, start the service with these options
  cargo xtask setup [run|test|bench|long|engines]  only install; without a word: everything
  cargo xtask test [--long] [ONLY...]  all checks and tests, or some of them
  cargo xtask bench [--quick] [NAME...]  measure beside the engine's own tools
  cargo xtask fuzz TARGET           feed a reader of strangers' bytes, guided by coverage
  cargo xtask torture [--kills N]   hit the service everywhere, kill it at random; --nodes: workers that die and sleep;
                                    --partitions: networks that part; --defects: what the tests catch
  cargo xtask fill --port P ...     load an engine with data of every type
  cargo xtask damage --port P ...   damage an engine's data, so that a restore has something to show

`cargo xtask COMMAND --help` explains one command.
";

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let name = words.next().unwrap_or_else(|| "help".to_owned());
    match dispatch(&name, Args::new(words)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(stop) => {
            eprintln!("xtask {name}: {stop}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(name: &str, mut args: Args) -> Result<(), Stop> {
    if args.flag("--help") || args.flag("-h") {
        print!("{}", help(name));
        return Ok(());
    }
    match name {
        "run" => setup::run(args),
        "setup" => setup::command(args),
        "test" => testing::command(args),
        "bench" => bench::command(args),
        "fuzz" => fuzz::command(args),
        "torture" => torture::command(args),
        "fill" => fill::cli::fill(args),
        "damage" => fill::cli::damage_command(args),
        "help" | "--help" | "-h" => {
            print!("{HELP}");
            Ok(())
        }
        _ => Err(Stop::new("no such command").advice("cargo xtask help lists them")),
    }
}

fn help(name: &str) -> &'static str {
    match name {
        "test" => testing::HELP,
        "bench" => bench::HELP,
        "fuzz" => fuzz::HELP,
        "torture" => torture::HELP,
        "fill" => fill::cli::FILL_HELP,
        "damage" => fill::cli::DAMAGE_HELP,
        _ => HELP,
    }
}
