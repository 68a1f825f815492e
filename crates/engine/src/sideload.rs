//! Bringing a backup's data into a new generation: the engine loads it, and its directory holds it for every later
//! start.
//!
//! The plain RDB is written to a file of the new generation's directory while it is validated, in one pass and in
//! bounded memory. The file gets the name under which an engine looks for it only after its last byte was found
//! valid: an engine ends itself on a bad file, and one that is started too early finds nothing.
//!
//! [`load`] lets an empty engine load through a pipe while that goes on, each piece after the validator accepted it.
//! [`place`] only leaves the file, for an engine that is started later, where two do not fit in memory.
//!
//! With an append-only file an engine ignores `dump.rdb` and would start empty: there the RDB becomes the base of
//! `appendonlydir`, or before redis 7.0 the beginning of the one append-only file ([`Form`]).
//!
//! The pass also yields the [`Expectation`]: what the engine must hold once it has loaded, see
//! [`verify`](crate::verify).

mod pipe;
mod sample;
mod writer;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::control::Control;
use crate::duplicate::{SpillFile, invalid};
use crate::error::{Error, Kind};
use crate::failpoint;
use crate::priority;
use crate::process::{self, Engine, EngineSpec, Persistence};

use pipe::Pipe;
pub(crate) use sample::Sampled;
use sample::Sampler;
use writer::Writer;

/// The file before it was found valid.
const INCOMING: &str = "incoming.rdb";
/// Where an engine without an append-only file looks.
const SNAPSHOT: &str = "dump.rdb";
/// Where an engine with one looks (its defaults of `appenddirname` and `appendfilename`).
const AOF_DIRECTORY: &str = "appendonlydir";
const AOF_BASE: &str = "appendonly.aof.1.base.rdb";
const AOF_MANIFEST: &str = "appendonly.aof.manifest";
const AOF_MANIFEST_INCOMING: &str = "incoming.manifest";
/// Where an engine with one looks before redis 7.0 (its default of `appendfilename`). It may begin with an RDB
/// (`aof-use-rdb-preamble`, on by default since 5.0).
const AOF_ALONE: &str = "appendonly.aof";

/// Validated and handed on at once. An engine that loads empties the pipe in some milliseconds: while a whole segment
/// is validated it would stand still.
const PART_BYTES: usize = 256 * 1024;

/// How long [`discard`] waits for the last child of a killed engine.
const DISCARD_LIMIT: Duration = Duration::from_secs(2);
const DISCARD_POLL: Duration = Duration::from_millis(5);

/// As which file an engine looks for its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `dump.rdb`.
    Snapshot,
    /// The base of a folder of append-only files: redis 7.0 and every valkey.
    AppendOnlyFolder,
    /// The beginning of the only append-only file: redis before 7.0.
    AppendOnlyFile,
}

impl Form {
    /// As which a process of this kind looks for it.
    pub fn of(spec: &EngineSpec) -> Self {
        match spec.persistence {
            Persistence::Aof if spec.program.is_before_7() => Form::AppendOnlyFile,
            Persistence::Aof => Form::AppendOnlyFolder,
            Persistence::Rdb | Persistence::None => Form::Snapshot,
        }
    }
}

/// What an engine must hold that loaded the placed file.
#[derive(Debug)]
pub struct Expectation {
    /// The validator's report on the whole file.
    pub report: rdb::Report,
    /// Keys whose time had passed when the file was begun to be read. They are loaded and compared all the same.
    pub expired_keys: u64,
    pub(crate) sample: Vec<Sampled>,
    pub(crate) functions: Functions,
}

/// The function libraries of a file.
#[derive(Debug, Default)]
pub(crate) struct Functions {
    /// BLAKE3 of each library's code, sorted.
    pub(crate) code_digests: Vec<[u8; 32]>,
    /// Bytes of code of all libraries.
    pub(crate) code_bytes: u64,
}

impl Expectation {
    /// Keys of all dbs.
    pub fn keys(&self) -> u64 {
        self.report.census.dbs.values().map(|db| db.keys).sum()
    }

    /// Keys that are compared one by one at [`VerifyLevel::Sample`](crate::verify::VerifyLevel::Sample).
    pub fn sample_keys(&self) -> usize {
        self.sample.len()
    }
}

/// Makes the directory of a new generation with the data in it, and says what an engine must hold that loads it.
///
/// `feed` pushes the plain RDB, in order and in pieces of any size. Bytes are added to those of `control`, keys too; phase
/// and total are the caller's. Memory: under 16 MiB for the file and the sample, besides the validator's own.
///
/// Not yet durable on return: [`sync_behind`] does that while the engine loads, and must have ended well before the
/// old generation may go.
///
/// # Errors
/// [`Kind::Malformed`] with offset and reason where the bytes are no valid RDB; [`Kind::Io`] and
/// [`Kind::StoreFull`]; [`Kind::Cancelled`], [`Kind::Deadline`]; what `feed` returns. Nothing is left of the
/// directory. One that exists already is [`Kind::Io`] and left alone: see [`discard`].
pub fn place(
    directory: &Path,
    form: Form,
    run_as: Option<(u32, u32)>,
    control: &Control,
    feed: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<(), Error>) -> Result<(), Error>,
) -> Result<Expectation, Error> {
    new_directory(directory, run_as)?;
    let placed = receive(directory, control, feed, None).and_then(|expectation| {
        publish(directory, form, run_as)?;
        failpoint::hit("sideload.after_rename")?;
        Ok(expectation)
    });
    placed.inspect_err(|_| give_up(directory))
}

/// Starts a standby ([`process::start_standby`]) in a new directory and lets it load the data while that is validated
/// and written for its later starts. On return the engine has loaded all of it, and its directory holds it.
///
/// `feed` and what is said of durability, memory and counters: as [`place`]. `feed` must push only bytes that are
/// known to be those of a whole, valid RDB: the engine sees each piece as soon as the validator has accepted it, before
/// the last one is there. An engine is lost where that turns out wrong, and nothing else.
///
/// # Errors
/// As [`place`]; [`Kind::EngineStart`]; [`Kind::EngineExited`] and [`Kind::Refused`] where the engine does not take
/// what the validator took. Neither the engine nor its directory is left.
pub fn load(
    spec: &EngineSpec,
    control: &Control,
    feed: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<(), Error>) -> Result<(), Error> + Send,
) -> Result<(Engine, Expectation), Error> {
    let directory = &spec.directory;
    let form = Form::of(spec);
    if form == Form::AppendOnlyFile {
        return load_placed(spec, control, feed);
    }
    new_directory(directory, spec.run_as)?;
    let engine = process::start_standby(spec).inspect_err(|_| give_up(directory))?;
    let loaded = Pipe::open(&engine, &directory.join(SNAPSHOT), spec.run_as, control).and_then(|mut pipe| {
        let expectation = std::thread::scope(|scope| {
            // Not on the calling thread, which has a switch to make when this is over.
            let receiving = scope.spawn(|| {
                priority::let_engines_go_first();
                receive(directory, control, feed, Some(&mut pipe))
            });
            receiving
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        pipe.finish(control)?;
        publish(directory, form, spec.run_as)?;
        failpoint::hit("sideload.after_rename")?;
        Ok(expectation)
    });
    match loaded {
        Ok(expectation) => Ok((engine, expectation)),
        Err(error) => {
            engine.kill()?;
            give_up(directory);
            Err(error)
        }
    }
}

/// As [`load`], for an engine that goes on with the very file that it has opened at its start, and cuts that to the length that it
/// knows of where it cannot write: the file is there before the engine.
fn load_placed(
    spec: &EngineSpec,
    control: &Control,
    feed: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<(), Error>) -> Result<(), Error>,
) -> Result<(Engine, Expectation), Error> {
    let expectation = place(&spec.directory, Form::of(spec), spec.run_as, control, feed)?;
    let engine = process::start_standby(spec).inspect_err(|_| give_up(&spec.directory))?;
    match engine.wait_loaded(control) {
        Ok(()) => Ok((engine, expectation)),
        Err(error) => {
            engine.kill()?;
            give_up(&spec.directory);
            Err(error)
        }
    }
}

fn new_directory(directory: &Path, run_as: Option<(u32, u32)>) -> Result<(), Error> {
    failpoint::hit("sideload.before_place")?;
    if directory.symlink_metadata().is_ok() {
        let context = format!("{} exists already", directory.display());
        return Err(Error::new(Kind::Io, "place data", context));
    }
    process::create_directory(directory, run_as)
}

fn give_up(directory: &Path) {
    if let Err(e) = discard(directory) {
        tracing::warn!(directory = %directory.display(), error = %e, "cannot remove what was placed");
    }
}

/// Removes a generation's directory with all that is in it; one that does not exist is fine.
///
/// # Errors
/// [`Kind::Io`]; also where an engine lives in it, and then nothing was removed.
pub fn discard(directory: &Path) -> Result<(), Error> {
    let failed = |context: String| Error::new(Kind::Io, "remove generation", context);
    if let Some(pid) = process::inhabitant(directory)? {
        return Err(failed(format!("process {pid} lives in {}", directory.display())));
    }
    let until = Instant::now() + DISCARD_LIMIT;
    loop {
        match std::fs::remove_dir_all(directory) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == ErrorKind::NotFound && directory.symlink_metadata().is_err() => {
                return Ok(());
            }
            // A child of an engine that was killed wrote a file meanwhile.
            Err(e)
                if matches!(e.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::NotFound)
                    && Instant::now() < until =>
            {
                std::thread::sleep(DISCARD_POLL);
            }
            Err(e) => return Err(failed(directory.display().to_string()).because(e)),
        }
    }
}

/// Device, inode and time of an engine's snapshot: another one after each save.
pub(crate) fn snapshot_identity(directory: &Path) -> Option<(u64, u64, i64)> {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata(directory.join(SNAPSHOT)).ok()?;
    Some((meta.dev(), meta.ino(), meta.mtime_nsec()))
}

/// See [`Engine::forget_snapshot`](process::Engine::forget_snapshot).
///
/// # Errors
/// [`Kind::Io`].
pub(crate) fn forget_snapshot(directory: &Path) -> Result<(), Error> {
    let snapshot = directory.join(SNAPSHOT);
    match std::fs::remove_file(&snapshot) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io(
            Kind::Io,
            "remove placed file",
            snapshot.display().to_string(),
            e,
        )),
        _ => Ok(()),
    }
}

/// Validates, hands on to an engine that loads, and writes.
fn receive(
    directory: &Path,
    control: &Control,
    feed: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<(), Error>) -> Result<(), Error>,
    mut pipe: Option<&mut Pipe<'_>>,
) -> Result<Expectation, Error> {
    let malformed = |e: rdb::Error| invalid("validate data", &e);
    // What goes to an engine at once is known to be valid: that no key of it is there twice was found out before, and is
    // the dearest of all to find out again.
    let mut validator = match pipe {
        Some(_) => rdb::Validator::new(),
        None => SpillFile::validator(directory)?,
    };
    let mut sampler = Sampler::new();
    let mut writer = Writer::create(&directory.join(INCOMING))?;
    let mut keys_told = 0;
    feed(&mut |piece| {
        for part in piece.chunks(PART_BYTES) {
            control.check("place data")?;
            validator.feed(part, &mut sampler).map_err(malformed)?;
            writer.write(part)?;
            if let Some(pipe) = &mut pipe {
                pipe.write(part, control)?;
            }
            control.bytes_done.fetch_add(part.len() as u64, Ordering::Relaxed);
            control
                .restored_bytes
                .fetch_add(part.len() as u64, Ordering::Relaxed);
        }
        // Others may load at the same time.
        let keys = sampler.keys();
        control.keys_done.fetch_add(keys - keys_told, Ordering::Relaxed);
        keys_told = keys;
        failpoint::hit("sideload.mid_place")
    })?;
    let report = validator.finish().map_err(malformed)?;
    check_loadable(&report)?;
    writer.finish()?;
    failpoint::hit("sideload.after_place")?;
    let expired_keys = sampler.expired_keys();
    let (sample, functions) = sampler.finish();
    Ok(Expectation {
        report,
        expired_keys,
        sample,
        functions,
    })
}

/// Refuses what is valid and yet makes an engine end itself while it loads, whatever its version.
pub(crate) fn check_loadable(report: &rdb::Report) -> Result<(), Error> {
    let what = if let Some(module) = report.modules.first() {
        format!("it holds data of the module type {}", module.name)
    } else if let Some(import) = report.slot_imports.first() {
        format!(
            "it holds slots of a cluster that were on the move (job {})",
            import.job
        )
    } else if let Some(hint) = report.excessive_hint {
        format!("it announces a database of {hint} keys and has far fewer")
    } else {
        return Ok(());
    };
    let context = format!("the data is valid, but no managed engine can load it: {what}");
    Err(Error::new(Kind::Malformed, "validate data", context))
}

/// Gives the valid file the name under which the engine looks for it.
///
/// An engine that was started empty with an append-only file has made an empty base and a manifest: the base is
/// replaced, and the manifest stays as the engine wrote it, because it goes on with the file of increments named there.
fn publish(directory: &Path, form: Form, run_as: Option<(u32, u32)>) -> Result<(), Error> {
    let incoming = directory.join(INCOMING);
    process::give(&incoming, run_as)?;
    match form {
        Form::Snapshot => return rename(&incoming, &directory.join(SNAPSHOT)),
        Form::AppendOnlyFile => return rename(&incoming, &directory.join(AOF_ALONE)),
        Form::AppendOnlyFolder => {}
    }
    let home = directory.join(AOF_DIRECTORY);
    process::create_directory(&home, run_as)?;
    rename(&incoming, &home.join(AOF_BASE))?;
    if let Ok(theirs) = std::fs::read_to_string(home.join(AOF_MANIFEST)) {
        let base = format!("file {AOF_BASE} seq 1 type b");
        return match theirs.lines().any(|line| line == base) {
            true => Ok(()),
            false => Err(Error::new(
                Kind::Protocol,
                "name placed file",
                format!("the engine keeps another base than {AOF_BASE}: {theirs:?}"),
            )),
        };
    }
    let manifest = home.join(AOF_MANIFEST_INCOMING);
    std::fs::write(&manifest, format!("file {AOF_BASE} seq 1 type b\n"))
        .map_err(|e| Error::io(Kind::Io, "write manifest", manifest.display().to_string(), e))?;
    process::give(&manifest, run_as)?;
    rename(&manifest, &home.join(AOF_MANIFEST))
}

fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    std::fs::rename(from, to)
        .map_err(|e| Error::io(Kind::Io, "name placed file", to.display().to_string(), e))
}

/// Forces the placed data to the disk, with the names that lead to it up to the directory's own.
///
/// Fine while an engine loads it and after that.
///
/// # Errors
/// [`Kind::Io`]: nothing can be said about what is durable.
pub fn sync(directory: &Path) -> Result<(), Error> {
    let home = directory.join(AOF_DIRECTORY);
    let files = [
        directory.join(SNAPSHOT),
        directory.join(AOF_ALONE),
        home.join(AOF_BASE),
        home.join(AOF_MANIFEST),
    ];
    let parent = directory.parent().map(Path::to_owned);
    let directories = [Some(home), Some(directory.to_owned()), parent];
    for path in files.into_iter().map(Some).chain(directories).flatten() {
        let done = std::fs::File::open(&path).and_then(|file| file.sync_all());
        match done {
            // The other kind of persistence, or a base that the engine has rewritten and synced itself.
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            done => {
                done.map_err(|e| Error::io(Kind::Io, "sync placed data", path.display().to_string(), e))?
            }
        }
    }
    Ok(())
}

/// A [`sync`] that runs beside other work.
#[derive(Debug)]
pub struct Syncing(std::thread::JoinHandle<Result<(), Error>>);

/// Starts a [`sync`] on a thread of its own: an engine loads from the page cache meanwhile.
///
/// # Errors
/// [`Kind::Io`] where there is no thread.
pub fn sync_behind(directory: &Path) -> Result<Syncing, Error> {
    let directory: PathBuf = directory.to_owned();
    std::thread::Builder::new()
        .name("sideload-sync".to_owned())
        .spawn(move || sync(&directory))
        .map(Syncing)
        .map_err(|e| Error::io(Kind::Io, "sync placed data", "no thread", e))
}

impl Syncing {
    /// Waits for its end. Must have been called with success before the generation is given the port.
    ///
    /// # Errors
    /// As [`sync`].
    pub fn wait(self) -> Result<(), Error> {
        match self.0.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}
