//! Who goes first where there are fewer processors than threads with work.

/// Niceness of threads that prepare data: a third of an engine's share where both want the processor.
const BEHIND_ENGINES: i32 = 5;

/// Puts the calling thread behind the engines of this machine, for good: an ordinary user cannot take it back. For
/// threads that end with their work.
///
/// An engine has one thread for all its clients. While a restore decodes and validates at the same rank, the clients of
/// the generation that serves wait some milliseconds at a time for their turn, and so does the engine that loads, which
/// everything waits for.
pub(crate) fn let_engines_go_first() {
    // On Linux this is the calling thread's own (setpriority(2), "C library/kernel differences").
    if let Err(error) = rustix::process::setpriority_process(None, BEHIND_ENGINES) {
        tracing::debug!(%error, "a thread keeps its priority");
    }
}
