//! Named places at which a test makes the process die, fail or stall.
//!
//! Armed only by the environment at start: `CACHEKEEP_FAILPOINT=<name>[:kill|:error|:stall]`, several separated by
//! commas (an error first, a kill while it is being cleaned up), and `CACHEKEEP_FAILPOINT_MARK=<file>`, which
//! receives the name of each place that is reached, a line each: a test that saw no mark has proven nothing. `<file>.over` receives
//! it once more when a stall is over.
//! Unarmed, a place costs one load.

use std::cell::Cell;
use std::io::Write;
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

thread_local! {
    static BEGINS: Cell<&'static str> = const { Cell::new("") };
}

/// From now on this thread passes places without reaching them: it works beside the operations that are tested, at
/// moments that nobody chooses, through code that they use too.
pub fn exempt_this_thread() {
    // No place is called so.
    reach_only("-");
}

/// As [`exempt_this_thread`], but the places whose names begin so are its own.
pub fn reach_only(begins: &'static str) {
    BEGINS.set(begins);
}

/// Passes the named place; fires once per process where armed.
///
/// # Errors
/// [`Kind::Io`] where the place is armed with `error`.
pub fn hit(name: &'static str) -> Result<(), Error> {
    static ARMED: OnceLock<Vec<Armed>> = OnceLock::new();
    let armed = ARMED.get_or_init(read_environment);
    let Some(armed) = armed.iter().find(|armed| armed.name == name) else {
        return Ok(());
    };
    if !name.starts_with(BEGINS.get()) {
        return Ok(());
    }
    if armed.fired.swap(true, Ordering::SeqCst) {
        return Ok(());
    }
    mark(name, "")?;
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
            mark(name, ".over")
        }
    }
}

fn mark(name: &str, ending: &str) -> Result<(), Error> {
    let Some(mut file) = std::env::var_os("CACHEKEEP_FAILPOINT_MARK") else {
        return Ok(());
    };
    file.push(ending);
    std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&file)
        .and_then(|mut file| writeln!(file, "{name}"))
        .map_err(|e| Error::io(Kind::Io, "write failpoint mark", name, e))
}

fn read_environment() -> Vec<Armed> {
    let text = std::env::var("CACHEKEEP_FAILPOINT").unwrap_or_default();
    text.split(',')
        .filter(|place| !place.is_empty())
        .map(|place| {
            let (name, action) = match place.split_once(':') {
                Some((name, "error")) => (name, Action::Error),
                Some((name, "stall")) => (name, Action::Stall),
                Some((name, _)) => (name, Action::Kill),
                None => (place, Action::Kill),
            };
            Armed {
                name: name.to_owned(),
                action,
                fired: AtomicBool::new(false),
            }
        })
        .collect()
}
