//! A file that somebody else wrote becomes an archive, by the same validation and in the same form as a snapshot.

use std::io::Read;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use super::cut::{Captured, Cutter, aux_text};
use super::sealing::Sealing;
use super::{BackupReport, Labels, StopAtEnd, Whole, conclude};
use crate::archive::{self, ShardRecord};
use crate::control::Control;
use crate::duplicate::SpillFile;
use crate::error::{Error, Kind};
use crate::keys::{Recipient, SigningKey};
use crate::spool::CHUNK_BYTES;
use crate::store::{Patience, Store};

const IMPORT: &str = "import file";

/// What a file becomes.
#[derive(Debug, Clone)]
pub struct ImportPlan {
    /// Where the objects go: unique to this attempt, without a slash at its end.
    pub prefix: String,
    /// What the manifest says about the backup.
    pub labels: Labels,
    /// Who can read the archive.
    pub recipient: Recipient,
    /// Directory for what memory does not hold of the search for duplicate keys.
    pub spill_dir: PathBuf,
    /// What the details name as the source.
    pub source: String,
    /// Size of the file, for the progress; 0 if unknown.
    pub expected_bytes: u64,
    /// Take libraries of functions: they are code, which an engine runs when it loads them.
    pub accept_functions: bool,
}

/// Reads an RDB from `source` to its end and stores it. Phases: `importing`, `storing`.
///
/// Memory: as a backup, without its spool. On return everything is durable. After an error nothing is left below the
/// prefix, unless the store itself refuses to delete (a warning says so).
///
/// # Errors
/// [`Kind::Malformed`] where it is no valid RDB (offset in the context), goes on after its end, or holds what no engine
/// here may load: values of modules, slots on the move, functions that are not wanted; [`Kind::Io`] where `source` or
/// the spill file fails; those of [`super::run`] for the store.
pub fn run(
    plan: &ImportPlan,
    source: &mut dyn Read,
    store: &Store,
    signer: &SigningKey,
    control: &Control,
) -> Result<BackupReport, Error> {
    storing(plan, store, || {
        control.enter("importing", plan.expected_bytes);
        let captured = take(plan, source, 0, None, store, control)?;
        let whole = Whole {
            prefix: &plan.prefix,
            labels: &plan.labels,
            recipient: &plan.recipient,
            source: plan.source.clone(),
            replid: captured.aux_text(&["repl-id"]),
            offset: captured.aux_text(&["repl-offset"]).parse().unwrap_or(-1),
            shards: Vec::new(),
        };
        conclude(whole, captured, store, signer, control)
    })
}

/// One file of a cluster.
pub struct ShardFile<'a> {
    /// Where it is read from.
    pub source: Box<dyn Read + 'a>,
    /// Its slots, each range with both ends.
    pub slots: Vec<(u16, u16)>,
    /// The client port of its node, or a number: names its file.
    pub port: u16,
}

/// Reads the RDB of each shard of a cluster to its end and stores them as one archive, as
/// [`run_shards`](super::run_shards) does with snapshots. Each proves to hold no key of a slot that is not its own; that
/// the slots are all there is for the caller to see to. Otherwise as [`run`].
///
/// # Errors
/// As [`run`]; [`Kind::Mismatch`] where a file holds a key of a foreign slot; [`Kind::Refused`] without a file.
pub fn run_shards(
    plan: &ImportPlan,
    files: Vec<ShardFile<'_>>,
    store: &Store,
    signer: &SigningKey,
    control: &Control,
) -> Result<BackupReport, Error> {
    storing(plan, store, || {
        control.enter("importing", plan.expected_bytes);
        let mut records = Vec::new();
        let mut used_memory_bytes = 0;
        let mut whole: Option<Captured> = None;
        for (number, mut file) in files.into_iter().enumerate() {
            let captured = take(plan, &mut *file.source, number, Some(&file.slots), store, control)?;
            let report = &captured.report;
            let number_in = |name: &str| aux_text(report, &[name]).parse::<i64>().ok();
            used_memory_bytes += number_in("used-mem")
                .and_then(|bytes| u64::try_from(bytes).ok())
                .unwrap_or(0);
            records.push(ShardRecord {
                first_offset: whole.as_ref().map_or(0, |all| all.report.bytes),
                plain_bytes: report.bytes,
                keys: captured.keys,
                slots: file.slots,
                port: file.port,
                replid: aux_text(report, &["repl-id"]),
                offset: number_in("repl-offset").unwrap_or(-1),
                // Where a file does not say when it was written, the import is all that is known.
                captured_at_ms: number_in("ctime")
                    .and_then(|seconds| seconds.checked_mul(1000))
                    .unwrap_or(plan.labels.created_at_ms),
            });
            match &mut whole {
                Some(all) => all.append(captured),
                None => whole = Some(captured),
            }
        }
        let (Some(captured), Some(first)) = (whole, records.first()) else {
            return Err(Error::new(Kind::Refused, IMPORT, "a cluster without files"));
        };
        let whole = Whole {
            prefix: &plan.prefix,
            labels: &plan.labels,
            recipient: &plan.recipient,
            source: plan.source.clone(),
            replid: first.replid.clone(),
            offset: first.offset,
            shards: records,
        };
        let report = conclude(whole, captured, store, signer, control)?;
        Ok(BackupReport {
            used_memory_bytes,
            ..report
        })
    })
}

/// Makes an archive below a prefix that nobody has used, and removes what is left of it after an error.
fn storing(
    plan: &ImportPlan,
    store: &Store,
    make: impl FnOnce() -> Result<BackupReport, Error>,
) -> Result<BackupReport, Error> {
    if archive::is_begun(store, &plan.prefix)? {
        let context = format!("{} holds objects already", plan.prefix);
        return Err(Error::new(Kind::Store, IMPORT, context));
    }
    let result = make();
    if result.is_err()
        && let Err(e) = archive::delete(&store.with_patience(Patience::SHORT), &plan.prefix)
    {
        tracing::warn!(prefix = plan.prefix, error = %crate::chain(&e), "remains of a failed import stay in the store");
    }
    result
}

/// Validates one file and stores it as the segments of a shard.
fn take(
    plan: &ImportPlan,
    source: &mut dyn Read,
    shard: usize,
    slots: Option<&[(u16, u16)]>,
    store: &Store,
    control: &Control,
) -> Result<Captured, Error> {
    std::fs::create_dir_all(&plan.spill_dir)
        .map_err(|e| Error::io(Kind::Io, IMPORT, plan.spill_dir.display().to_string(), e))?;
    let validator = SpillFile::validator(&plan.spill_dir)?;
    let sealing = Sealing::new(store, &plan.prefix, &plan.recipient, shard, slots.is_none());
    std::thread::scope(|scope| {
        let _stop = StopAtEnd(&sealing);
        let jobs = sealing.start(scope);
        let mut cutter = Cutter::new(validator, jobs).of_shard(shard, slots);
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            control.check(IMPORT)?;
            sealing.check()?;
            let count = match source.read(&mut chunk) {
                Ok(0) => break,
                Ok(count) => count,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => {
                    // A source that is read over a connection says itself what is the matter.
                    return Err(match e.downcast::<Error>() {
                        Ok(own) => own,
                        Err(e) => Error::io(Kind::Io, IMPORT, "cannot read it", e),
                    });
                }
            };
            cutter.feed(&chunk[..count], || {
                control.check(IMPORT).and_then(|()| sealing.check())
            })?;
            control.keys_done.store(cutter.keys(), Ordering::Relaxed);
            control.bytes_done.fetch_add(count as u64, Ordering::Relaxed);
            control.captured_bytes.fetch_add(count as u64, Ordering::Relaxed);
        }
        let (mut captured, jobs) = cutter.finish()?;
        check_loadable(&captured.report, plan)?;
        control.enter("storing", captured.report.bytes);
        control.keys_done.store(captured.keys, Ordering::Relaxed);
        sealing.finish(jobs, &mut captured.segments, &mut captured.index.objects, control)?;
        Ok(captured)
    })
}

/// Refuses what is valid and would end an engine, or run in it unasked.
fn check_loadable(report: &rdb::Report, plan: &ImportPlan) -> Result<(), Error> {
    let refused = |context: String| Err(Error::new(Kind::Malformed, IMPORT, context));
    if let Some(module) = report.modules.first() {
        return refused(format!(
            "it holds values of the module type {}: engines here load no modules",
            module.name
        ));
    }
    if !report.slot_imports.is_empty() {
        return refused("slots were on the move when it was written: an engine outside of a cluster ends itself when it loads \
             such a file".to_owned());
    }
    if let Some(hint) = report.excessive_hint {
        return refused(format!(
            "it announces {hint} keys and holds far fewer: an engine may end itself for want of memory"
        ));
    }
    if !plan.accept_functions && !report.functions.is_empty() {
        let names: Vec<&str> = report
            .functions
            .iter()
            .map(|library| library.name.as_deref().unwrap_or("without a name"))
            .collect();
        return refused(format!(
            "it holds libraries of functions ({}), which are code that runs when they are loaded: take them by name",
            names.join(", ")
        ));
    }
    Ok(())
}
