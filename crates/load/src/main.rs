//! `load PLAN`: runs the plan in that file and prints the report, both JSON.

use std::process::ExitCode;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

fn main() -> ExitCode {
    let Some(path) = std::env::args_os().nth(1) else {
        eprintln!("load: name a plan");
        return ExitCode::FAILURE;
    };
    // A connection is a descriptor.
    let limit = getrlimit(Resource::Nofile);
    let raised = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    );
    if let Err(error) = raised {
        eprintln!("load: the limit of open files stays as it is: {error}");
    }
    let ran = std::fs::read(&path)
        .map_err(|error| error.to_string())
        .and_then(|text| serde_json::from_slice(&text).map_err(|error| error.to_string()))
        .and_then(|plan| load::run::run(&plan).map_err(|error| error.to_string()))
        .and_then(|report| serde_json::to_string(&report).map_err(|error| error.to_string()));
    match ran {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("load: {}: {error}", path.display());
            ExitCode::FAILURE
        }
    }
}
