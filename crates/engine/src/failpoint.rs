//! Named places at which a test makes the process die, fail or stall.
//!
//! Armed only by the environment at start: `CACHEKEEP_FAILPOINT=<name>[:kill|:error|:stall]` and
//! `CACHEKEEP_FAILPOINT_MARK=<file>`, which receives the name when the place is reached: a test that saw no mark
//! has proven nothing. Unarmed, a place costs one load.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Kind};

struct Armed {
    name: String,
    action: Action,
    fired: AtomicBool,
}

enum Action {
    Kill,
    Error,
    Stall,
}

/// Passes the named place; fires once per process where armed.
///
/// # Errors
/// [`Kind::Io`] where the place is armed with `error`.
pub fn hit(name: &'static str) -> Result<(), Error> {
    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
    let Some(armed) = ARMED.get_or_init(read_environment) else {
        return Ok(());
    };
    if armed.name != name || armed.fired.swap(true, Ordering::SeqCst) {
        return Ok(());
    }
    if let Some(mark) = std::env::var_os("CACHEKEEP_FAILPOINT_MARK") {
        std::fs::write(&mark, name).map_err(|e| Error::io(Kind::Io, "write failpoint mark", name, e))?;
    }
    match armed.action {
        Action::Kill => {
            let myself = rustix::process::getpid();
            let _cannot_fail = rustix::process::kill_process(myself, rustix::process::Signal::KILL);
            loop {
                std::thread::park();
            }
        }
        Action::Error => Err(Error::new(Kind::Io, "failpoint", name)),
        Action::Stall => {
            std::thread::sleep(std::time::Duration::from_secs(5));
            Ok(())
        }
    }
}

fn read_environment() -> Option<Armed> {
    let text = std::env::var("CACHEKEEP_FAILPOINT").ok()?;
    let (name, action) = match text.split_once(':') {
        Some((name, "error")) => (name, Action::Error),
        Some((name, "stall")) => (name, Action::Stall),
        Some((name, _)) => (name, Action::Kill),
        None => (text.as_str(), Action::Kill),
    };
    Some(Armed {
        name: name.to_owned(),
        action,
        fired: AtomicBool::new(false),
    })
}
