//! `after-failover`: what Sentinels run, see `engine::sentinel::failover`.

use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use engine::sentinel::failover;

/// The words that a Sentinel gives its script. Source: Redis documentation, sentinel.conf, `client-reconfig-script`.
#[derive(Args)]
pub(crate) struct AfterFailover {
    /// What the Sentinel calls the primary
    name: String,
    /// leader or observer
    role: String,
    /// start
    state: String,
    /// Address of the primary that was
    from: String,
    /// Its port
    from_port: u16,
    /// Address of the one that is now
    to: String,
    /// Its port
    to_port: u16,
}

/// Moves the address. A Sentinel runs its script again where that ends with 1, a few times.
pub(crate) fn run(verb: &AfterFailover) -> ExitCode {
    let AfterFailover {
        name,
        role,
        state,
        from,
        from_port,
        to,
        to_port,
    } = verb;
    match failover::run(Path::new("."), from, to) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!(
                "{name} {role} {state}: from {from}:{from_port} to {to}:{to_port}: {}",
                engine::chain(&error)
            );
            ExitCode::from(1)
        }
    }
}
