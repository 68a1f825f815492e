//! Keys for an engine: as an RDB file, or as commands. What it cannot hold is told on standard error.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rdb::{AofWriter, KeySummary, Loss, Writer};

use super::text::write_string;
use super::{Source, Stop, WORKERS, cannot_write, read_through};
use engine::Selection;
use engine::selection::Candidate;

/// What the two forms have in common.
pub(super) trait Form {
    fn key(&mut self, key: &KeySummary<'_>, lost: &mut dyn FnMut(Loss<'_>)) -> io::Result<()>;
    fn function(&mut self, code: &[u8], lost: &mut dyn FnMut(Loss<'_>)) -> io::Result<()>;
}

impl<R, W> Form for Writer<R, W>
where
    R: FnMut(u64, &mut [u8]) -> io::Result<()>,
    W: Write,
{
    fn key(&mut self, key: &KeySummary<'_>, lost: &mut dyn FnMut(Loss<'_>)) -> io::Result<()> {
        Writer::key(self, key, lost)
    }

    fn function(&mut self, code: &[u8], lost: &mut dyn FnMut(Loss<'_>)) -> io::Result<()> {
        Writer::function(self, code, lost)
    }
}

impl<R, W> Form for AofWriter<R, W>
where
    R: FnMut(u64, &mut [u8]) -> io::Result<()>,
    W: Write,
{
    fn key(&mut self, key: &KeySummary<'_>, lost: &mut dyn FnMut(Loss<'_>)) -> io::Result<()> {
        AofWriter::key(self, key, lost)
    }

    fn function(&mut self, code: &[u8], lost: &mut dyn FnMut(Loss<'_>)) -> io::Result<()> {
        AofWriter::function(self, code, lost)
    }
}

/// Passes the keys that are selected to a writer.
pub(super) struct EngineForm<F> {
    form: F,
    selection: Selection,
    file: PathBuf,
    losses: u64,
    failure: Option<io::Error>,
}

impl<F: Form> EngineForm<F> {
    pub(super) fn new(form: F, selection: Selection, file: &Path) -> Self {
        Self {
            form,
            selection,
            file: file.to_owned(),
            losses: 0,
            failure: None,
        }
    }

    fn attempt(
        &mut self,
        write: impl FnOnce(&mut F, &Selection, &mut dyn FnMut(Loss<'_>)) -> io::Result<()>,
    ) {
        if self.failure.is_some() {
            return;
        }
        let (file, losses) = (&self.file, &mut self.losses);
        let mut tell = |loss: Loss<'_>| {
            *losses += 1;
            eprintln!("cachekeep: {}: {}", file.display(), shown(&loss));
        };
        self.failure = write(&mut self.form, &self.selection, &mut tell).err();
    }
}

/// A loss as a line: the key as in JSON, so that no byte of it reaches a terminal as it is.
fn shown(loss: &Loss<'_>) -> String {
    let mut key = Vec::new();
    let _memory_takes_all = write_string(&mut key, loss.key);
    let key = String::from_utf8_lossy(&key).into_owned();
    let what = match loss.db {
        Some(db) => format!("db {db}, key {key}"),
        None => format!("library {key}"),
    };
    match loss.is_left_out {
        true => format!("{what}: left out: {}", loss.reason),
        false => format!("{what}: not all of it: {}", loss.reason),
    }
}

impl<F: Form> rdb::Sink for EngineForm<F> {
    fn key(&mut self, key: &KeySummary<'_>) {
        self.attempt(|form, selection, lost| {
            if key.key_bytes > key.key.len() as u64 && selection.judges_bytes() {
                lost(Loss {
                    db: Some(key.db),
                    key: key.key,
                    is_left_out: true,
                    reason: "a key above 1 MiB is not compared with a selection",
                });
                return Ok(());
            }
            let candidate = Candidate {
                db: key.db,
                key: key.key,
                kind: key.kind,
                expire_at_ms: key.expire_at_ms,
                bytes: Some(key.bytes),
            };
            match selection.takes(&candidate) {
                true => form.key(key, lost),
                false => Ok(()),
            }
        });
    }

    fn function(&mut self, code: &[u8]) {
        self.attempt(|form, _, lost| form.function(code, lost));
    }
}

/// Reads the file through the writer, and returns that with how often something was lost.
pub(super) fn pass<F: Form>(source: &Source, mut form: EngineForm<F>) -> Result<(F, u64), Stop> {
    read_through(source, WORKERS, &mut form, |form| {
        form.failure
            .take()
            .map_or(Ok(()), |error| Err(cannot_write(error)))
    })?;
    match form.failure {
        Some(error) => Err(cannot_write(error)),
        None => Ok((form.form, form.losses)),
    }
}
