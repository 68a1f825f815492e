//! The verb: one snapshot of one node becomes one archive, in one pass.
//!
//! ```text
//! source ──socket──> drain thread ──Spool──> calling thread: validate, count, cut
//!                                                 │ plain segments
//!                                                 v
//!                                            Sealing: zstd, age, BLAKE3, durable put  (SEALERS threads)
//! then details, then the manifest: the backup exists from there on
//! ```
//!
//! Memory of a running backup, whatever the data: segments (SEALERS + 1) x 8.5 MiB + their compressed forms
//! SEALERS x 8.3 MiB + spool 4.5 MiB + zstd contexts SEALERS x 1 MiB + validator below 4 MiB + its search for
//! duplicate keys 8 MiB = 61 MiB with the two sealers there are, all of it used again from segment to segment. A test holds it to 64 MiB.

mod cut;
mod import;
mod sealing;
mod shards;

use std::panic::resume_unwind;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::archive::{self, Manifest, ShardRecord};
use crate::control::Control;
use crate::duplicate::SpillFile;
use crate::error::{Error, Kind};
use crate::failpoint;
use crate::guard;
use crate::keys::{Recipient, SigningKey};
use crate::node::{Endpoint, Node};
use crate::priority;
use crate::psync::{self, Forked, Handshake, Snapshot, Started, Tuned, Tuning};
use crate::segment::Sealer;
use crate::spool::{CHUNK_BYTES, Popped, Spool};
use crate::store::{Patience, Store};
use crate::wide_pipe::widen_pipes;

use cut::{Captured, Cutter};
pub use import::{ImportPlan, ShardFile, run as import, run_shards as import_shards};
use sealing::{Jobs, Sealing};
pub use shards::{Shard, run_shards};

/// How long a wait lasts before the control is asked again.
const PATIENCE: Duration = Duration::from_millis(100);

/// What to back up, where to and how.
#[derive(Debug, Clone)]
pub struct BackupPlan<'a> {
    /// The node to capture.
    pub source: Endpoint,
    /// Whether its settings may be changed for the time of the capture.
    pub tuning: Tuning<'a>,
    /// Who is told when a node has forked.
    pub forked: Option<Forked<'a>>,
    /// Where the objects go: unique to this attempt, without a slash at its end.
    pub prefix: String,
    /// What the manifest says about the backup.
    pub labels: Labels,
    /// Who can read the archive.
    pub recipient: Recipient,
    /// Directory of the spool file.
    pub spool_dir: PathBuf,
    /// Largest size of the spool file; 0 for none.
    pub spool_limit_bytes: u64,
    /// A larger snapshot is not taken; 0 for no limit.
    pub snapshot_bytes_max: u64,
    /// Longest silence of the source, keep-alives included.
    pub idle_timeout: Duration,
    /// Estimate of the size of the snapshot, for the progress; 0 if unknown.
    pub expected_bytes: u64,
}

/// The caller's names for the backup, copied into the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels {
    /// Project id.
    pub project: String,
    /// Instance id.
    pub instance: String,
    /// Backup id.
    pub backup: String,
    /// Number of the attempt.
    pub attempt: u64,
    /// Time of the backup, UTC ms.
    pub created_at_ms: i64,
}

/// What was backed up.
#[derive(Debug, Clone)]
pub struct BackupReport {
    /// BLAKE3 of the manifest object, hexadecimal: whoever keeps it notices a manifest that was replaced.
    pub manifest_blake3: String,
    /// Size of the RDB.
    pub plain_bytes: u64,
    /// Size of all segments as stored.
    pub stored_bytes: u64,
    /// Keys in the snapshot.
    pub keys: u64,
    /// Segments.
    pub segments: u32,
    /// RDB version.
    pub rdb_version: u32,
    /// Version of the engine as the snapshot states it; empty where it does not.
    pub engine_version: String,
    /// Replication history of the snapshot.
    pub replid: String,
    /// Replication offset of the snapshot.
    pub offset: i64,
    /// Memory used by the data of the source when it forked (AUX `used-mem`), 0 where it does not say.
    pub used_memory_bytes: u64,
    /// The validator's report.
    pub rdb: rdb::Report,
}

/// Makes the backup. Phases: `connecting`, `snapshot` (the source forks), `capturing`, `storing`.
///
/// On return everything is durable. After an error nothing is left below the prefix, unless the store itself
/// refuses to delete (a warning says so), and the settings of the source are as before.
///
/// # Errors
/// [`Kind::Connection`], [`Kind::Auth`], [`Kind::Refused`], [`Kind::Idle`], [`Kind::Protocol`] from the source;
/// [`Kind::Malformed`] where what it sent is no valid RDB (offset in the context); [`Kind::StoreFull`] where the
/// store or the spool has no room; [`Kind::Store`], also where the prefix is in use: then nothing is touched;
/// [`Kind::Io`] for the spool; those of [`Control::check`].
pub fn run(
    plan: &BackupPlan<'_>,
    store: &Store,
    signer: &SigningKey,
    control: &Control,
) -> Result<BackupReport, Error> {
    if archive::is_begun(store, &plan.prefix)? {
        let context = format!("{} holds objects already", plan.prefix);
        return Err(Error::new(Kind::Store, "start backup", context));
    }
    let result = make(plan, store, signer, control);
    if result.is_err()
        && let Err(e) = archive::delete(&store.with_patience(Patience::SHORT), &plan.prefix)
    {
        tracing::warn!(prefix = plan.prefix, error = %crate::chain(&e), "remains of a failed backup stay in the store");
    }
    result
}

fn make(
    plan: &BackupPlan<'_>,
    store: &Store,
    signer: &SigningKey,
    control: &Control,
) -> Result<BackupReport, Error> {
    control.enter("connecting", 0);
    failpoint::hit("backup.before_connect")?;
    let node = psync::connect(&plan.source)?;
    let started = begin_snapshot(plan, node, 0, control)?;
    failpoint::hit("backup.after_fullresync")?;

    let snapshot = started.payload(control)?;
    let (replid, offset) = (snapshot.replid.clone(), snapshot.offset);
    control.enter("capturing", snapshot.length.unwrap_or(plan.expected_bytes));
    let captured = capture(plan, store, snapshot, 0, None, control)?;
    failpoint::hit("backup.after_last_segment")?;

    let whole = Whole {
        prefix: &plan.prefix,
        labels: &plan.labels,
        recipient: &plan.recipient,
        source: plan.source.address.to_string(),
        replid,
        offset,
        shards: Vec::new(),
    };
    conclude(whole, captured, store, signer, control)
}

/// What the end of an archive needs to know of its beginning.
struct Whole<'a> {
    prefix: &'a str,
    labels: &'a Labels,
    recipient: &'a Recipient,
    source: String,
    replid: String,
    offset: i64,
    /// Empty where it is no cluster.
    shards: Vec<ShardRecord>,
}

/// Stores details and manifest of segments that are stored: the backup exists from there on.
fn conclude(
    whole: Whole<'_>,
    captured: Captured,
    store: &Store,
    signer: &SigningKey,
    control: &Control,
) -> Result<BackupReport, Error> {
    let details = store_details(&whole, store, &captured, control)?;
    failpoint::hit("backup.after_details")?;

    let stored_bytes = captured
        .segments
        .iter()
        .map(|segment| segment.object.stored_bytes)
        .sum();
    let manifest = Manifest {
        version: match whole.shards.is_empty() {
            true => archive::MANIFEST_VERSION,
            false => archive::MANIFEST_VERSION_SHARDS,
        },
        project: whole.labels.project.clone(),
        instance: whole.labels.instance.clone(),
        backup: whole.labels.backup.clone(),
        attempt: whole.labels.attempt,
        created_at_ms: whole.labels.created_at_ms,
        engine_version: captured.aux_text(&["redis-ver", "valkey-ver"]),
        rdb_version: captured.report.rdb_version,
        replid: whole.replid,
        offset: whole.offset,
        keys: captured.keys,
        plain_bytes: captured.report.bytes,
        stored_bytes,
        recipient: whole.recipient.to_string(),
        details,
        index: whole.shards.is_empty().then_some(captured.index),
        segments: captured.segments,
        shards: whole.shards,
    };
    control.check("write manifest")?;
    failpoint::hit("backup.before_manifest")?;
    let manifest_blake3 = archive::write_manifest_while(store, whole.prefix, &manifest, signer, &|| {
        control.check("write manifest")
    })?;
    failpoint::hit("backup.after_manifest")?;
    let used_memory_bytes = cut::aux_text(&captured.report, &["used-mem"])
        .parse()
        .unwrap_or(0);
    Ok(BackupReport {
        manifest_blake3,
        plain_bytes: manifest.plain_bytes,
        stored_bytes,
        keys: manifest.keys,
        segments: u32::try_from(manifest.segments.len()).unwrap_or(u32::MAX),
        rdb_version: manifest.rdb_version,
        engine_version: manifest.engine_version,
        replid: manifest.replid,
        offset: manifest.offset,
        used_memory_bytes,
        rdb: captured.report,
    })
}

/// Asks for the snapshot with the source tuned for it, and puts its settings back as soon as it has forked.
fn begin_snapshot(
    plan: &BackupPlan<'_>,
    mut node: Node,
    shard: usize,
    control: &Control,
) -> Result<Started, Error> {
    if let Tuning::Noted(_) = plan.tuning {
        // A server of somebody else's: by its name the guard tells this from its replicas. Who may not is judged by all of them.
        let _named_or_not = node.ask(&[b"CLIENT", b"SETNAME", guard::CAPTURE.as_bytes()])?;
    }
    // Dropped on every way out, which puts the settings back.
    let _tuned = Tuned::apply(&plan.source, &plan.tuning)?;
    let handshake = Handshake::begin(node, plan.idle_timeout)?;
    control.enter("snapshot", 0);
    let started = handshake.started(control)?;
    started.tell(shard, plan.forked.as_ref())?;
    Ok(started)
}

/// Moves the snapshot into the store, as segments of a shard. A key of a slot beside `slots` is an error.
fn capture(
    plan: &BackupPlan<'_>,
    store: &Store,
    snapshot: Snapshot,
    shard: usize,
    slots: Option<&[(u16, u16)]>,
    control: &Control,
) -> Result<Captured, Error> {
    check_size(plan, snapshot.length.unwrap_or(0))?;
    if let Some(engine) = snapshot.sender() {
        widen_pipes(engine);
    }
    let spool = Spool::create(&plan.spool_dir, plan.spool_limit_bytes)?;
    let validator = SpillFile::validator(&plan.spool_dir)?;
    let sealing = Sealing::new(store, &plan.prefix, &plan.recipient, shard, slots.is_none());
    std::thread::scope(|scope| {
        // Dropped on every way out, panics included: else the scope would wait for its threads for ever.
        let _abandon = AbandonAtEnd(&spool);
        let _stop = StopAtEnd(&sealing);
        scope.spawn(|| drain(plan, snapshot, &spool, control));
        let jobs = sealing.start(scope);
        // A thread of its own: the caller's keeps its rank for what comes after, and only the drain stays beside the
        // engine, which waits for nothing else.
        let cutting = scope.spawn(|| {
            priority::let_engines_go_first();
            cut(
                Cutter::new(validator, jobs).of_shard(shard, slots),
                &spool,
                &sealing,
                control,
            )
        });
        let (mut captured, jobs) = cutting.join().unwrap_or_else(|panic| resume_unwind(panic))?;
        control.enter("storing", captured.report.bytes);
        control.keys_done.store(captured.keys, Ordering::Relaxed);
        sealing.finish(jobs, &mut captured.segments, &mut captured.index.objects, control)?;
        Ok(captured)
    })
}

fn check_size(plan: &BackupPlan<'_>, bytes: u64) -> Result<(), Error> {
    if plan.snapshot_bytes_max == 0 || bytes <= plan.snapshot_bytes_max {
        return Ok(());
    }
    let context = format!(
        "it has more than {} MB, which is more than the server says that its data takes",
        plan.snapshot_bytes_max >> 20
    );
    Err(Error::new(Kind::Protocol, "read snapshot", context))
}

/// Validates, counts and cuts what the spool delivers, to its end.
fn cut(
    mut cutter: Cutter,
    spool: &Spool,
    sealing: &Sealing<'_>,
    control: &Control,
) -> Result<(Captured, Jobs), Error> {
    let mut chunk = Vec::new();
    loop {
        control.check("capture snapshot")?;
        sealing.check()?;
        match spool.pop(&mut chunk, PATIENCE)? {
            Popped::Nothing => continue,
            Popped::End => return cutter.finish(),
            Popped::Chunk => {}
        }
        cutter.feed(&chunk, || {
            control.check("capture snapshot").and_then(|()| sealing.check())
        })?;
        std::thread::yield_now();
        control.keys_done.store(cutter.keys(), Ordering::Relaxed);
        let count = chunk.len() as u64;
        let done = control.bytes_done.fetch_add(count, Ordering::Relaxed) + count;
        control.captured_bytes.fetch_add(count, Ordering::Relaxed);
        if cutter.segments() >= 2 || done >= control.bytes_total.load(Ordering::Relaxed) / 2 {
            failpoint::hit("backup.mid_capture")?;
        }
    }
}

/// Reads the socket into the spool until the snapshot ends or nobody wants it.
fn drain(plan: &BackupPlan<'_>, mut snapshot: Snapshot, spool: &Spool, control: &Control) {
    let _close = CloseAtPanic(spool);
    let is_wanted = || match spool.is_abandoned() {
        true => Err(Error::new(Kind::Cancelled, "read snapshot", "nobody consumes it")),
        false => control.check("read snapshot"),
    };
    let mut bytes = 0;
    let end = loop {
        let mut chunk = spool.take_used();
        let filled = snapshot.fill(&mut chunk, CHUNK_BYTES, is_wanted);
        bytes += chunk.len() as u64;
        match filled.and_then(|more| check_size(plan, bytes).map(|()| more)) {
            Err(e) => break Err(e),
            Ok(more) => match spool.push(chunk) {
                Err(e) => break Err(e),
                Ok(()) if !more => break Ok(()),
                Ok(()) => {}
            },
        }
    };
    spool.close(end);
}

struct AbandonAtEnd<'a>(&'a Spool);

impl Drop for AbandonAtEnd<'_> {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

struct StopAtEnd<'a, 'b>(&'a Sealing<'b>);

impl Drop for StopAtEnd<'_, '_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Ends the consumer, which would wait for ever, where the draining thread panics.
struct CloseAtPanic<'a>(&'a Spool);

impl Drop for CloseAtPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let context = "the draining thread panicked";
            self.0
                .close(Err(Error::new(Kind::Connection, "read snapshot", context)));
        }
    }
}

/// Stores the census.
fn store_details(
    whole: &Whole<'_>,
    store: &Store,
    captured: &Captured,
    control: &Control,
) -> Result<archive::ObjectRecord, Error> {
    let details = captured.details(whole.source.clone());
    let mut piece = serde_json::to_vec(&details)
        .map_err(|e| Error::new(Kind::Store, "write details", "as JSON").because(e))?;
    let sealed = Sealer::new(whole.recipient)?.seal(&mut piece)?;
    let name = format!("{}/{}", whole.prefix, archive::DETAILS);
    store.put_buffer(&name, piece, &|| control.check("store details"))?;
    Ok(archive::ObjectRecord::new(archive::DETAILS, sealed))
}
