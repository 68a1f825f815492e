//! `cargo xtask <command>`: see [`HELP`].

use std::process::ExitCode;

use xtask::args::Args;
use xtask::{Stop, setup};

const HELP: &str = "\
Developer commands of cachekeep.

  cargo xtask run [-- OPTIONS]      install what is missing, build, start the service with these options
  cargo xtask setup [run|test|bench]  only install; without a word: everything

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

fn dispatch(name: &str, args: Args) -> Result<(), Stop> {
    match name {
        "run" => setup::run(args),
        "setup" => setup::command(args),
        "help" | "--help" | "-h" => {
            print!("{HELP}");
            Ok(())
        }
        _ => Err(Stop::new("no such command").advice("cargo xtask help lists them")),
    }
}
