//! `cachekeep inspect dump.rdb | head -1`: who reads our output may stop before its end, which is no failure.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind, set_hook, take_hook};
use std::process::ExitCode;

/// What a shell shows for a program that a closed pipe ended: 128 and SIGPIPE.
pub(super) const CLOSED_PIPE: u8 = 141;

/// Runs `verb`; where standard output or the standard error output is closed, ends without a word and with all that it holds put away. Rust's `print!`
/// panics then. SIGPIPE itself stays ignored: it would end a service or a transfer for any pipe or socket that closes.
pub fn ends_quietly(verb: fn() -> ExitCode) -> ExitCode {
    let report = take_hook();
    set_hook(Box::new(move |panic| {
        if !is_closed_pipe(panic.payload()) {
            report(panic);
        }
    }));
    catch_unwind(AssertUnwindSafe(verb)).unwrap_or_else(|panic| match is_closed_pipe(&*panic) {
        true => ExitCode::from(CLOSED_PIPE),
        false => resume_unwind(panic),
    })
}

/// The text is that of the standard library's `print_to`.
fn is_closed_pipe(panic: &(dyn Any + Send)) -> bool {
    panic
        .downcast_ref::<String>()
        .is_some_and(|text| text.starts_with("failed printing to std") && text.contains("Broken pipe"))
}
