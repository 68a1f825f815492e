//! An engine that is started to load append-only files, and thrown away once its snapshot was taken.
//!
//! It loads as any engine loads its own files, so keys expire as little as there; as a standby it expires nothing
//! afterwards either, and has no port for clients. What it is given was looked through before, see [`crate::aof`].

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::control::Control;
use crate::error::{Error, Kind};
use crate::process::{self, Engine, EngineSpec, Persistence};
use crate::psync::{Handshake, Snapshot};
use crate::sideload;

const LOAD: &str = "load append-only files";
/// As an engine names them with its usual settings (`appenddirname`, `appendfilename`).
const HOME: &str = "appendonlydir";
const MANIFEST: &str = "appendonly.aof.manifest";
/// Longest silence of the engine while its snapshot is taken.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Bytes of the snapshot that are taken at once.
const PIECE_BYTES: usize = 256 * 1024;

/// The files of one server, in the order in which they are loaded; the first may be an RDB, or begin with one.
#[derive(Debug, Clone)]
pub struct Files {
    /// The base; `None` where the increments are all.
    pub base: Option<PathBuf>,
    /// What follows it.
    pub increments: Vec<PathBuf>,
}

/// The engine with the data, and its snapshot as bytes.
pub struct Loaded<'a> {
    engine: Engine,
    directory: PathBuf,
    snapshot: Snapshot,
    control: &'a Control,
    piece: Vec<u8>,
    at: usize,
    is_last: bool,
}

/// Copies the files into the new directory of `spec`, lets an engine load them, and begins its snapshot. Engine and
/// directory are gone when the result is dropped, and after an error. Phase: `loading`.
///
/// # Errors
/// [`Kind::Io`], [`Kind::EngineStart`]; [`Kind::EngineExited`] with the end of its log where it does not take the files;
/// those of [`Control::check`].
pub fn run<'a>(spec: &EngineSpec, files: &Files, control: &'a Control) -> Result<Loaded<'a>, Error> {
    control.enter("loading", 0);
    if spec.program.is_before_7() {
        let context = format!(
            "{} cannot: append-only files are replayed by engines from 7.0 on",
            spec.program
        );
        return Err(Error::new(Kind::EngineStart, LOAD, context));
    }
    let spec = EngineSpec {
        persistence: Persistence::Aof,
        ..spec.clone()
    };
    let discard = |error: Error| {
        if let Err(left) = sideload::discard(&spec.directory) {
            tracing::warn!(error = crate::chain(&left), "the directory of loaded files stays");
        }
        error
    };
    place(&spec, files, control).map_err(discard)?;
    let engine = process::start_standby(&spec).map_err(discard)?;
    let begun = engine.wait_loaded(control).and_then(|()| begin(&engine, control));
    match begun {
        Ok(snapshot) => Ok(Loaded {
            engine,
            directory: spec.directory.clone(),
            snapshot,
            control,
            piece: Vec::new(),
            at: 0,
            is_last: false,
        }),
        Err(error) => {
            end(&engine, &spec.directory);
            Err(error)
        }
    }
}

fn begin(engine: &Engine, control: &Control) -> Result<Snapshot, Error> {
    let mut node = engine.control()?;
    // A replica without its primary gives no snapshot; a primary must not expire what was loaded.
    node.run(&["DEBUG", "SET-ACTIVE-EXPIRE", "0"])?;
    node.run(&["REPLICAOF", "NO", "ONE"])?;
    Handshake::begin(engine.control()?, SILENCE_MAX)?
        .started(control)?
        .payload(control)
}

fn place(spec: &EngineSpec, files: &Files, control: &Control) -> Result<(), Error> {
    process::create_directory(&spec.directory, spec.run_as)?;
    let home = spec.directory.join(HOME);
    process::create_directory(&home, spec.run_as)?;
    let mut manifest = String::new();
    let base = files.base.iter().map(|path| (path, 'b', "base"));
    let increments = files.increments.iter().map(|path| (path, 'i', "incr"));
    for (number, (path, kind, word)) in (1..).zip(base.chain(increments)) {
        control.check(LOAD)?;
        let name = format!("appendonly.aof.{number}.{word}.aof");
        let to = home.join(&name);
        // A copy: an engine cuts off the end of a file where that is no whole command.
        std::fs::copy(path, &to).map_err(|e| Error::io(Kind::Io, LOAD, path.display().to_string(), e))?;
        process::give(&to, spec.run_as)?;
        let sequence = if kind == 'b' { 1 } else { number };
        manifest.push_str(&format!("file {name} seq {sequence} type {kind}\n"));
    }
    let to = home.join(MANIFEST);
    std::fs::write(&to, manifest).map_err(|e| Error::io(Kind::Io, LOAD, to.display().to_string(), e))?;
    process::give(&to, spec.run_as)
}

fn end(engine: &Engine, directory: &Path) {
    let gone = engine.kill().and_then(|()| sideload::discard(directory));
    if let Err(error) = gone {
        tracing::warn!(
            error = crate::chain(&error),
            "an engine that loaded files, or its directory, stays"
        );
    }
}

impl Drop for Loaded<'_> {
    fn drop(&mut self) {
        end(&self.engine, &self.directory);
    }
}

impl Read for Loaded<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.at == self.piece.len() && !self.is_last {
            let control = self.control;
            let more = self
                .snapshot
                .fill(&mut self.piece, PIECE_BYTES, || control.check(LOAD))
                .map_err(|error| std::io::Error::other(crate::chain(&error)))?;
            self.at = 0;
            self.is_last = !more;
        }
        let rest = &self.piece[self.at..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.at += count;
        Ok(count)
    }
}
