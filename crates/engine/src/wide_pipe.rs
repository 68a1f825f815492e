//! Room for the snapshot on its way from an engine's child to the engine.
//!
//! For a snapshot without a file the child that holds the data writes into a pipe, and its parent copies from there to
//! the replicas (`src/replication.c`, `rdbPipeReadHandler`). A pipe takes 64 KiB. Where the processors have other work,
//! as they have when a backup compresses beside the engine, the parent gets its turn a little late each time, and the
//! child, which everything waits for, stands still meanwhile. The engine has no setting for it; whoever may open a
//! process's files may do it from outside.

use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::process::Pid;

/// What Linux grants without asking for more (`/proc/sys/fs/pipe-max-size`). A pipe takes memory for what is in it.
const PIPE_BYTES: usize = 1024 * 1024;

/// Widens the pipes of an engine of this machine. Where that is not possible (another user's, another machine's or
/// another container's process) they stay as they are.
pub(crate) fn widen_pipes(engine: Pid) {
    let files = format!("/proc/{}/fd", engine.as_raw_nonzero());
    let widened = std::fs::read_dir(&files)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|file| {
            std::fs::read_link(file.path())
                .is_ok_and(|target| target.as_os_str().as_encoded_bytes().starts_with(b"pipe:"))
        })
        .filter(|file| widen(&file.path()).is_ok())
        .count();
    tracing::debug!(engine = engine.as_raw_nonzero(), widened, "pipes of the engine");
}

/// The second end is open for no longer than this: a pipe whose only reader were we would swallow what its writer
/// should learn that nobody wants.
fn widen(pipe: &Path) -> rustix::io::Result<()> {
    let end = rustix::fs::open(
        pipe,
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    if rustix::pipe::fcntl_getpipe_size(&end)? < PIPE_BYTES {
        rustix::pipe::fcntl_setpipe_size(&end, PIPE_BYTES)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipes_of_a_process_are_widened_and_go_on_working() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        rustix::io::write(&writer, b"before").unwrap();
        widen_pipes(rustix::process::getpid());
        assert_eq!(rustix::pipe::fcntl_getpipe_size(&writer).unwrap(), PIPE_BYTES);
        rustix::io::write(&writer, b" and after").unwrap();
        drop(writer);
        let mut read = Vec::new();
        std::io::Read::read_to_end(&mut std::fs::File::from(reader), &mut read).unwrap();
        assert_eq!(read, b"before and after");
    }
}
