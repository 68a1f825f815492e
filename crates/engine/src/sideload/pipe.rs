//! The way into an engine that loads while its data is still being read: a named pipe in its directory.
//!
//! The engine is told to load the file under whose name the pipe lies (`DEBUG RELOAD NOSAVE NOFLUSH`, redis
//! `src/debug.c`, into the empty dataset that it was started with). It reads on as bytes come and ends by itself at
//! the end of the RDB, so loading and everything before it go on side by side. To the engine it is a load like any
//! other: functions, expiry and its load counters included, and nothing of it goes into its append-only file.

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, OFlags};

use crate::control::Control;
use crate::error::{Error, Kind};
use crate::node::Node;
use crate::process::{self, Engine};

/// What the kernel keeps between us and the engine; the largest an unprivileged process may ask for. Room for some
/// milliseconds of loading, so that neither side waits for the other's turn on the processor.
const PIPE_BYTES: usize = 1024 * 1024;
/// How long a wait lasts before the control and the engine are looked at again.
const PATIENCE: Duration = Duration::from_millis(100);
/// Pause before a full pipe is tried again. The engine empties a good part of the pipe in that time. Waiting for room
/// with `poll` instead would wake us, and cost the engine a wake-up, for each page that it reads.
const FULL_PAUSE: Duration = Duration::from_millis(1);
/// Between two tries to open the pipe while the engine has not.
const OPEN_POLL: Duration = Duration::from_millis(1);

/// An engine that loads from us.
pub(super) struct Pipe<'a> {
    engine: &'a Engine,
    /// Its answer to the load command is still to come.
    node: Node,
    file: File,
    path: PathBuf,
}

impl<'a> Pipe<'a> {
    /// Puts a pipe under `path` and lets the engine load from it.
    ///
    /// # Errors
    /// [`Kind::Io`]; [`Kind::EngineExited`]; [`Kind::Refused`] where the engine does not load at all; those of
    /// [`Control::check`].
    pub(super) fn open(
        engine: &'a Engine,
        path: &Path,
        run_as: Option<(u32, u32)>,
        control: &Control,
    ) -> Result<Self, Error> {
        let failed =
            |e: rustix::io::Errno| Error::io(Kind::Io, "make pipe", path.display().to_string(), e.into());
        rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).map_err(failed)?;
        process::give(path, run_as)?;
        let mut node = engine.control()?;
        node.set_timeout(PATIENCE)?;
        node.send(&[b"DEBUG", b"RELOAD", b"NOSAVE", b"NOFLUSH"])?;
        // Without a reader opening fails at once: then the engine has not come to it, or will not.
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = loop {
            control.check("load")?;
            match rustix::fs::openat(CWD, path, flags, Mode::empty()) {
                Ok(file) => break File::from(file),
                Err(rustix::io::Errno::NXIO) => {}
                Err(e) => return Err(failed(e)),
            }
            if let Some(outcome) = answer(engine, &mut node, OPEN_POLL)? {
                outcome?;
                return Err(Error::new(
                    Kind::Refused,
                    "load",
                    "the engine loads something else",
                ));
            }
        };
        // Smaller is only slower.
        let _smaller = rustix::pipe::fcntl_setpipe_size(&file, PIPE_BYTES);
        Ok(Self {
            engine,
            node,
            file,
            path: path.to_owned(),
        })
    }

    /// Hands on bytes, at the pace at which the engine takes them.
    ///
    /// # Errors
    /// [`Kind::EngineExited`] where it died on what it got before; those of [`Control::check`].
    pub(super) fn write(&mut self, mut bytes: &[u8], control: &Control) -> Result<(), Error> {
        while !bytes.is_empty() {
            match rustix::io::write(&self.file, bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(rustix::io::Errno::AGAIN) => {
                    control.check("load")?;
                    std::thread::sleep(FULL_PAUSE);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(self.broken(e)),
            }
        }
        Ok(())
    }

    /// The reader has gone: either the whole engine, or only its load.
    fn broken(&self, cause: rustix::io::Errno) -> Error {
        let context = self.path.display().to_string();
        let error = Error::io(Kind::Connection, "load", context, cause.into());
        self.engine.explain(error)
    }

    /// Waits until the engine has loaded everything; the pipe is gone then.
    ///
    /// # Errors
    /// [`Kind::Refused`] with what the engine says, [`Kind::EngineExited`]; those of [`Control::check`].
    pub(super) fn finish(mut self, control: &Control) -> Result<(), Error> {
        // The pipe stays open until the engine has answered: some engines open the file once more after a load, to
        // drop it from the page cache, and would hang without a writer.
        loop {
            control.check("load")?;
            if let Some(outcome) = answer(self.engine, &mut self.node, PATIENCE)? {
                outcome?;
                break;
            }
        }
        match std::fs::remove_file(&self.path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io(
                Kind::Io,
                "remove pipe",
                self.path.display().to_string(),
                e,
            )),
            _ => Ok(()),
        }
    }
}

/// The engine's answer to the load, if it comes within `patience`.
fn answer(engine: &Engine, node: &mut Node, patience: Duration) -> Result<Option<Result<(), Error>>, Error> {
    node.set_timeout(patience)?;
    match node.reply() {
        Ok(crate::node::Reply::Error(text)) => {
            let context = format!("the engine refuses to load: {text}");
            Ok(Some(Err(Error::new(Kind::Refused, "load", context))))
        }
        Ok(_) => Ok(Some(Ok(()))),
        // One huge value can keep it silent for longer than any time-out.
        Err(e) if e.kind == Kind::Idle && engine.is_alive() => Ok(None),
        Err(e) => Err(engine.explain(e)),
    }
}
