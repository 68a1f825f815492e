//! The backup record: its states, changed only here and by compare-and-set, and its SQL.

use super::copy_record::{self, Copied};
use super::page_record as pages;
use super::proof_record::{self, Proof};
use super::run_record::{self, RunOf};
use crate::catalog::{Error, FromSql, Row, Tx, Value};
use crate::ids::{BackupId, GenerationId, HostId, InstanceId, Moment, ProjectId, StorageId};
use crate::instance::OwnedInstance;

/// ```text
/// Waiting ──> Running ──> Succeeded ──> Expired
///     └──────────┴──────> Failed
/// Succeeded | Failed | Expired ──> Deleted (hidden)
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Accepted.
    Waiting,
    /// A job works on it.
    Running,
    /// Stored, parsed to the last byte, restorable.
    Succeeded,
    /// Did not work; nothing is stored.
    Failed,
    /// Retention took its files; the record stays.
    Expired,
    /// A person deleted it; hidden.
    Deleted,
}

impl Status {
    const ALL: [Status; 6] = [
        Status::Waiting,
        Status::Running,
        Status::Succeeded,
        Status::Failed,
        Status::Expired,
        Status::Deleted,
    ];

    /// The word in the table.
    pub fn word(self) -> &'static str {
        match self {
            Status::Waiting => "waiting",
            Status::Running => "running",
            Status::Succeeded => "succeeded",
            Status::Failed => "failed",
            Status::Expired => "expired",
            Status::Deleted => "deleted",
        }
    }
}

impl FromSql for Status {
    fn from_sql(value: Value<'_>) -> Option<Self> {
        let word = value.text()?;
        Self::ALL.into_iter().find(|s| s.word() == word)
    }
}

/// Where a backup comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A person asked for it.
    Manual,
    /// A schedule asked for it.
    Auto,
    /// Taken before an in-place restore.
    Safety,
    /// Not an archive: the generation that a switch replaced, kept as it was. Restoring it is undo.
    Generation,
}

impl Kind {
    const ALL: [Kind; 4] = [Kind::Manual, Kind::Auto, Kind::Safety, Kind::Generation];

    /// The word in the table.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Manual => "manual",
            Kind::Auto => "auto",
            Kind::Safety => "safety",
            Kind::Generation => "generation",
        }
    }
}

impl FromSql for Kind {
    fn from_sql(value: Value<'_>) -> Option<Self> {
        let word = value.text()?;
        Self::ALL.into_iter().find(|k| k.word() == word)
    }
}

/// The form in which a backup is handed out; an RDB is stored either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `dump.rdb`.
    Rdb,
    /// An append-only file with an RDB preamble.
    Aof,
}

impl Format {
    /// The word in the table and on the wire.
    pub fn word(self) -> &'static str {
        match self {
            Format::Rdb => "rdb",
            Format::Aof => "aof",
        }
    }

    /// Reads the word in any case.
    pub fn from_word(word: &str) -> Option<Self> {
        [Format::Rdb, Format::Aof]
            .into_iter()
            .find(|f| f.word().eq_ignore_ascii_case(word))
    }
}

/// Why a record failed: the documented codes of the wire that something here gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureCode {
    /// The tool did not start, or stopped before data moved.
    NotStarted = 1,
    /// Timed out, or its worker is gone.
    TimedOut = 2,
    /// Objects of an attempt that a crash interrupted could not be removed.
    NotRemoved = 3,
    /// Credentials or keys missing or wrong.
    NoCredentials = 4,
    /// The store has no room or cannot be prepared.
    NoStore = 5,
    /// A stored object is missing or not as recorded.
    NotReadable = 6,
    /// Loading failed: data, format, memory.
    NotLoaded = 7,
    /// A scheduled run found the instance busy.
    Busy = 8,
}

impl FailureCode {
    const ALL: [FailureCode; 8] = [
        FailureCode::NotStarted,
        FailureCode::TimedOut,
        FailureCode::NotRemoved,
        FailureCode::NoCredentials,
        FailureCode::NoStore,
        FailureCode::NotReadable,
        FailureCode::NotLoaded,
        FailureCode::Busy,
    ];

    /// `dcs.08.0007`, also the text in the table.
    pub fn text(self) -> String {
        format!("dcs.08.000{}", self as u8)
    }

    /// As [`FailureCode::text`] wrote it.
    pub fn read(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.text() == text)
    }
}

/// A row of the table.
#[derive(Debug, Clone)]
pub struct Backup {
    /// Its id.
    pub id: BackupId,
    /// Whose data it holds.
    pub instance_id: InstanceId,
    /// `backup_20260102030405`, unique per instance.
    pub name: String,
    /// See [`Kind`].
    pub kind: Kind,
    /// See [`Format`].
    pub format: Format,
    /// See [`Status`].
    pub status: Status,
    /// Hundredths of a percent.
    pub progress_bp: i64,
    /// Bytes as stored.
    pub size_bytes: i64,
    /// Bytes of the plain RDB.
    pub plain_bytes: i64,
    /// Keys in it.
    pub keys: i64,
    /// Memory that the data took in the source.
    pub used_memory_bytes: i64,
    /// The window that triggered it.
    pub period: Option<String>,
    /// Free text of who asked.
    pub remark: Option<String>,
    /// `dcs.08.000x`.
    pub error_code: Option<String>,
    /// The chain of causes, for the operator.
    pub failure: Option<String>,
    /// Where the archive lies in the store.
    pub prefix: Option<String>,
    /// The store; `None`: the local folder.
    pub storage_id: Option<StorageId>,
    /// Its name.
    pub storage_name: Option<String>,
    /// Whose local folder that is; else where it was made.
    pub host: Option<HostId>,
    /// BLAKE3 of the manifest: binds the record to exactly these objects.
    pub manifest_blake3: Option<String>,
    /// `primary` or `replica`, a space, and the id of the node that was captured, where it could have been another one.
    pub captured_from: Option<String>,
    /// Whether it holds the data of one moment; else it was read key by key.
    pub is_point_in_time: bool,
    /// The retired process that holds the data, for [`Kind::Generation`].
    pub generation_id: Option<GenerationId>,
    /// What the verify that counts found.
    pub proof: Option<Proof>,
    /// A copy of the archive in another store.
    pub copy: Option<Copied>,
    /// The run of a schedule that it was made by.
    pub run: Option<RunOf>,
    /// From when on retention may take it; `None`: it stays.
    pub expires_at: Option<Moment>,
    /// Why neither retention nor a person may take it; `None`: they may.
    pub held: Option<String>,
    /// What is going on now.
    pub phase: Option<String>,
    /// Bytes of the project's quota that it has reserved; once it has succeeded what was put for it.
    pub reserved_bytes: u64,
    /// Plain bytes expected while it runs; an estimate from the memory that the data takes.
    pub bytes_total: i64,
    /// Accepted.
    pub created_at: Moment,
    /// Begun.
    pub execution_at: Option<Moment>,
    /// Last change; the end once it has ended.
    pub updated_at: Moment,
}

impl Backup {
    /// Whether its data is there and stays: it succeeded, and nobody has begun to delete it.
    pub fn is_kept(&self) -> bool {
        self.status == Status::Succeeded && !self.is_being_deleted()
    }

    /// Whether it was made in the local folder of another host.
    pub fn is_elsewhere(&self, ours: &HostId) -> bool {
        self.storage_id.is_none() && self.host.as_ref().is_some_and(|host| host != ours)
    }

    /// Whether a verify found it damaged.
    pub fn is_damaged(&self) -> bool {
        self.proof.as_ref().is_some_and(|proof| proof.failure.is_some())
    }

    /// Whether its removal is intended: see [`intend_delete`].
    pub fn is_being_deleted(&self) -> bool {
        self.phase.as_deref() == Some(DELETING)
    }
}

/// The phase of a record whose files are being removed.
const DELETING: &str = "deleting";

macro_rules! columns {
    () => {
        "id, instance_id, name, kind, format, status, progress_bp, size_bytes, plain_bytes, keys, used_memory_bytes, period, \
         remark, error_code, failure, prefix, manifest_blake3, generation_id, phase, bytes_total, created_at_ms, execution_at_ms, updated_at_ms, \
         storage_id, (SELECT name FROM storage WHERE storage.id = storage_id), \
         proof_level, proof_at_ms, proof_engine, proof_load_ms, proof_failure, \
         copy_prefix, copy_storage_id, (SELECT name FROM storage WHERE storage.id = copy_storage_id), copy_at_ms, captured_from, \
         schedule_id, due_at_ms, try_number, expires_at_ms, held, point_in_time, host_id, copy_host_id, reserved_bytes"
    };
}

fn row(row: &Row<'_>) -> Result<Backup, Error> {
    let format: String = row.get(4)?;
    Ok(Backup {
        id: row.get(0)?,
        instance_id: row.get(1)?,
        name: row.get(2)?,
        kind: row.get(3)?,
        format: Format::from_word(&format)
            .ok_or_else(|| Error::Unreadable(format!("{format} is no format of a backup")))?,
        status: row.get(5)?,
        progress_bp: row.get(6)?,
        size_bytes: row.get(7)?,
        plain_bytes: row.get(8)?,
        keys: row.get(9)?,
        used_memory_bytes: row.get(10)?,
        period: row.get(11)?,
        remark: row.get(12)?,
        error_code: row.get(13)?,
        failure: row.get(14)?,
        prefix: row.get(15)?,
        manifest_blake3: row.get(16)?,
        generation_id: row.get(17)?,
        phase: row.get(18)?,
        bytes_total: row.get(19)?,
        created_at: row.get(20)?,
        execution_at: row.get(21)?,
        updated_at: row.get(22)?,
        storage_id: row.get(23)?,
        storage_name: row.get(24)?,
        proof: proof_record::read(row, 25)?,
        copy: copy_record::read(row, 30, 42)?,
        captured_from: row.get(34)?,
        run: run_record::read(row, 35)?,
        expires_at: row.get(38)?,
        held: row.get(39)?,
        is_point_in_time: row.get(40)?,
        host: row.get(41)?,
        reserved_bytes: row.get(43)?,
    })
}

/// Adds a record in state Waiting and returns its id.
///
/// # Errors
/// The catalogue failed.
pub fn insert_waiting(
    tx: &Tx<'_>,
    project: &ProjectId,
    instance: &InstanceId,
    kind: Kind,
    format: Format,
    remark: Option<&str>,
    now: Moment,
) -> Result<BackupId, Error> {
    let id = BackupId::random();
    insert(
        tx,
        &id,
        project,
        instance,
        kind,
        format,
        Status::Waiting,
        remark,
        now,
    )?;
    Ok(id)
}

/// Adds the record of a file that is being imported: its id is known before it.
///
/// # Errors
/// The catalogue failed.
pub fn insert_import(
    tx: &Tx<'_>,
    id: &BackupId,
    project: &ProjectId,
    instance: &InstanceId,
    remark: Option<&str>,
    now: Moment,
) -> Result<(), Error> {
    let (kind, format, status) = (Kind::Manual, Format::Rdb, Status::Waiting);
    insert(tx, id, project, instance, kind, format, status, remark, now)
}

/// Unfinished manual backups that no job works on: imports, which have none; with the host that works on each.
///
/// # Errors
/// The catalogue failed.
pub fn unfinished_imports(tx: &Tx<'_>) -> Result<Vec<(BackupId, Option<HostId>)>, Error> {
    tx.all(
        "SELECT id, host_id FROM backup WHERE status IN ('waiting', 'running') AND kind = 'manual' AND NOT EXISTS \
         (SELECT 1 FROM job WHERE job.state <> 'done' AND job.subject_id = backup.id)",
        (),
        |row| Ok((row.get(0)?, row.get(1)?)),
    )
}

/// Adds the record of a generation that a switch replaces: restorable from its first moment.
///
/// # Errors
/// The catalogue failed.
pub fn insert_generation(
    tx: &Tx<'_>,
    project: &ProjectId,
    instance: &InstanceId,
    generation: &GenerationId,
    used_memory_bytes: i64,
    now: Moment,
) -> Result<BackupId, Error> {
    let id = BackupId::random();
    let remark = Some("the data as it was before a restore");
    insert(
        tx,
        &id,
        project,
        instance,
        Kind::Generation,
        Format::Rdb,
        Status::Waiting,
        remark,
        now,
    )?;
    tx.execute(
        "UPDATE backup SET status = 'succeeded', progress_bp = 10000, generation_id = ?2, used_memory_bytes = ?3, \
         size_bytes = ?3, execution_at_ms = created_at_ms WHERE id = ?1",
        (&id, generation, used_memory_bytes),
    )?;
    Ok(id)
}

#[allow(
    clippy::too_many_arguments,
    reason = "one row, one private caller each; a struct would repeat the names"
)]
fn insert(
    tx: &Tx<'_>,
    id: &BackupId,
    project: &ProjectId,
    instance: &InstanceId,
    kind: Kind,
    format: Format,
    status: Status,
    remark: Option<&str>,
    now: Moment,
) -> Result<(), Error> {
    let name = free_name(tx, instance, now)?;
    tx.execute(
        "INSERT INTO backup (id, instance_id, project_id, ordinal, name, kind, format, status, remark, created_at_ms, updated_at_ms) \
         VALUES (?1, ?2, ?3, (SELECT coalesce(max(ordinal), 0) + 1 FROM backup WHERE instance_id = ?2), ?4, ?5, ?6, ?7, ?8, \
         max(?9, coalesce((SELECT created_at_ms FROM backup WHERE instance_id = ?2 ORDER BY ordinal DESC LIMIT 1), 0)), ?9)",
        (id, instance, project, name, kind.word(), format.word(), status.word(), remark, now),
    )?;
    Ok(())
}

fn free_name(tx: &Tx<'_>, instance: &InstanceId, now: Moment) -> Result<String, Error> {
    let base = format!("backup_{}", now.compact());
    let mut name = base.clone();
    let mut number = 1;
    while tx
        .one(
            "SELECT 1 FROM backup WHERE instance_id = ?1 AND name = ?2",
            (instance, &name),
            |_| Ok(()),
        )?
        .is_some()
    {
        number += 1;
        name = format!("{base}_{number}");
    }
    Ok(name)
}

/// One record of the instance that is not deleted.
///
/// # Errors
/// The catalogue failed.
pub fn find(tx: &Tx<'_>, of: &OwnedInstance, id: &BackupId) -> Result<Option<Backup>, Error> {
    tx.one(
        concat!(
            "SELECT ",
            columns!(),
            " FROM backup WHERE id = ?1 AND instance_id = ?2 AND status <> 'deleted'"
        ),
        (id, &of.id),
        row,
    )
}

/// One record of the project, of whichever instance, that is not deleted.
///
/// # Errors
/// The catalogue failed.
pub fn find_of_project(tx: &Tx<'_>, project: &ProjectId, id: &BackupId) -> Result<Option<Backup>, Error> {
    let found = load(tx, id)?.filter(|found| found.status != Status::Deleted);
    let is_own = tx.one(
        "SELECT 1 FROM backup WHERE id = ?1 AND project_id = ?2",
        (id, project),
        |_| Ok(()),
    )?;
    Ok(found.filter(|_| is_own.is_some()))
}

/// The record a job names; jobs are ours and know no project.
///
/// # Errors
/// The catalogue failed.
pub fn load(tx: &Tx<'_>, id: &BackupId) -> Result<Option<Backup>, Error> {
    tx.one(
        concat!("SELECT ", columns!(), " FROM backup WHERE id = ?1"),
        (id,),
        row,
    )
}

/// The restorable record that stands for a generation.
///
/// # Errors
/// The catalogue failed.
pub fn of_generation(tx: &Tx<'_>, generation: &GenerationId) -> Result<Option<Backup>, Error> {
    tx.one(
        concat!(
            "SELECT ",
            columns!(),
            " FROM backup WHERE generation_id = ?1 AND status = 'succeeded'"
        ),
        (generation,),
        row,
    )
}

/// A page of the instance's records, newest first, and how many the window holds. `from` and `to` bound
/// `created_at` (inclusive, exclusive).
///
/// Deleted rows are hidden, so the total of a window is counted: linear in the instance's backups, which retention bounds.
///
/// # Errors
/// The catalogue failed.
pub fn list(
    tx: &Tx<'_>,
    of: &OwnedInstance,
    from: Option<Moment>,
    to: Option<Moment>,
    offset: u64,
    limit: u64,
) -> Result<(u64, Vec<Backup>), Error> {
    let (total, first) = pages::begin(tx, &of.id, from, to, offset)?;
    let Some(first) = first else {
        return Ok((total, Vec::new()));
    };
    let rows = tx.all(
        PAGE,
        (&of.id, pages::from(from), pages::to(to), limit, first),
        row,
    )?;
    Ok((total, rows))
}

pub(super) const PAGE: &str = concat!(
    "SELECT ",
    columns!(),
    " FROM backup WHERE instance_id = ?1 AND status <> 'deleted' AND created_at_ms >= ?2 AND created_at_ms < ?3 \
     AND ordinal <= ?5 ORDER BY ordinal DESC LIMIT ?4"
);

/// Waiting → Running, or Running again after a crash: the new attempt's prefix and store replace the old one's, whose
/// place is useless from then on. `false`: the record has ended or is to be given up, and the caller must stop.
///
/// # Errors
/// The catalogue failed.
pub fn begin(
    tx: &Tx<'_>,
    id: &BackupId,
    prefix: &str,
    (storage, host): (Option<&StorageId>, &HostId),
    now: Moment,
) -> Result<bool, Error> {
    let changed = tx.execute(
        "UPDATE backup SET status = 'running', prefix = ?2, storage_id = ?4, host_id = ?5, execution_at_ms = coalesce(execution_at_ms, ?3), updated_at_ms = ?3, \
         progress_bp = 0, phase = 'connecting' WHERE id = ?1 AND status IN ('waiting', 'running') AND coalesce(phase, '') <> 'cancelling'",
        (id, prefix, now, storage, host),
    )?;
    if changed == 1 && storage.is_some() {
        tx.execute(
            "INSERT INTO backup_place (prefix, storage_id, backup_id) VALUES (?1, ?2, ?3)",
            (prefix, storage, id),
        )?;
    }
    Ok(changed == 1)
}

/// Writes how far a running record is, unless it is to be given up.
///
/// # Errors
/// The catalogue failed.
pub fn progress(
    tx: &Tx<'_>,
    id: &BackupId,
    progress_bp: i64,
    seen: &engine::Progress,
    now: Moment,
) -> Result<(), Error> {
    tx.execute(
        "UPDATE backup SET phase = ?2, progress_bp = max(progress_bp, ?3), plain_bytes = ?4, keys = ?5, bytes_total = ?6, \
         updated_at_ms = ?7 WHERE id = ?1 AND status = 'running' AND coalesce(phase, '') <> 'cancelling'",
        (
            id,
            seen.phase,
            progress_bp,
            seen.bytes_done,
            seen.keys_done,
            seen.bytes_total,
            now,
        ),
    )?;
    Ok(())
}

/// What a finished capture found out.
#[derive(Debug)]
pub struct Finished {
    /// See [`Backup::size_bytes`].
    pub size_bytes: u64,
    /// All that was put for it: see [`Backup::reserved_bytes`].
    pub put_bytes: u64,
    /// See [`Backup::plain_bytes`].
    pub plain_bytes: u64,
    /// See [`Backup::keys`].
    pub keys: u64,
    /// See [`Backup::used_memory_bytes`].
    pub used_memory_bytes: u64,
    /// See [`Backup::manifest_blake3`].
    pub manifest_blake3: String,
    /// See [`Backup::captured_from`].
    pub captured_from: Option<String>,
    /// See [`Backup::is_point_in_time`].
    pub is_point_in_time: bool,
}

/// Running → Succeeded. `false`: the record has ended otherwise, or is to be given up.
///
/// # Errors
/// The catalogue failed.
pub fn succeed(tx: &Tx<'_>, id: &BackupId, finished: &Finished, now: Moment) -> Result<bool, Error> {
    let changed = tx.execute(
        "UPDATE backup SET status = 'succeeded', progress_bp = 10000, phase = NULL, size_bytes = ?2, plain_bytes = ?3, keys = ?4, \
         used_memory_bytes = ?5, manifest_blake3 = ?6, updated_at_ms = ?7, captured_from = ?8, point_in_time = ?9, \
         reserved_bytes = ?10 WHERE id = ?1 AND status = 'running' AND coalesce(phase, '') <> 'cancelling'",
        (
            id,
            finished.size_bytes,
            finished.plain_bytes,
            finished.keys,
            finished.used_memory_bytes,
            &finished.manifest_blake3,
            now,
            &finished.captured_from,
            finished.is_point_in_time,
            finished.put_bytes,
        ),
    )?;
    Ok(changed == 1)
}

/// Waiting or Running → Failed. `false`: the record has ended otherwise.
///
/// # Errors
/// The catalogue failed.
pub fn fail(tx: &Tx<'_>, id: &BackupId, code: FailureCode, why: &str, now: Moment) -> Result<bool, Error> {
    let changed = tx.execute(
        "UPDATE backup SET status = 'failed', error_code = ?2, failure = ?3, phase = NULL, updated_at_ms = ?4 \
         WHERE id = ?1 AND status IN ('waiting', 'running')",
        (id, code.text(), why, now),
    )?;
    Ok(changed == 1)
}

/// Writes the intent to delete a record that has ended, before its files are touched: from now on nothing can be
/// restored from it, and a crash is finished forward by [`finish_deletions`]. `false`: not in such a state, or
/// another call is at it.
///
/// # Errors
/// The catalogue failed.
pub fn intend_delete(tx: &Tx<'_>, id: &BackupId) -> Result<bool, Error> {
    let changed = tx.execute(
        "UPDATE backup SET phase = ?2 WHERE id = ?1 AND status IN ('succeeded', 'failed', 'expired') AND phase IS NULL",
        (id, DELETING),
    )?;
    Ok(changed == 1)
}

/// Succeeded, Failed or Expired → Deleted, once its files are gone (or were never there). `false`: not in such a
/// state.
///
/// # Errors
/// The catalogue failed.
pub fn delete(tx: &Tx<'_>, id: &BackupId, now: Moment) -> Result<bool, Error> {
    let changed = tx.execute(
        "UPDATE backup SET status = 'deleted', phase = NULL, updated_at_ms = ?2 \
         WHERE id = ?1 AND status IN ('succeeded', 'failed', 'expired')",
        (id, now),
    )?;
    Ok(changed == 1)
}

/// Takes the intent back where the files could not be removed: the record stays. With some of the files gone
/// (`spoilt`) nothing can be restored from it any more, and Succeeded → Expired says so.
///
/// # Errors
/// The catalogue failed.
pub fn keep(tx: &Tx<'_>, id: &BackupId, spoilt: bool, now: Moment) -> Result<(), Error> {
    if spoilt {
        tx.execute(
            "UPDATE backup SET status = 'expired', updated_at_ms = ?2 WHERE id = ?1 AND status = 'succeeded'",
            (id, now),
        )?;
    }
    tx.execute(
        "UPDATE backup SET phase = NULL WHERE id = ?1 AND phase = ?2",
        (id, DELETING),
    )?;
    Ok(())
}

/// Succeeded → Expired for every archive of a project, which nobody can read any more. Kept generations stay.
///
/// # Errors
/// The catalogue failed.
pub fn expire_all_of(tx: &Tx<'_>, project: &ProjectId, why: &str, now: Moment) -> Result<(), Error> {
    tx.execute(
        "UPDATE backup SET status = 'expired', failure = ?2, phase = NULL, updated_at_ms = ?3 \
         WHERE project_id = ?1 AND status IN ('waiting', 'running', 'succeeded') \
         AND status = 'succeeded' AND generation_id IS NULL",
        (project, why, now),
    )?;
    Ok(())
}

/// How many archives of a project are kept, and their stored bytes.
///
/// # Errors
/// The catalogue failed.
pub fn kept_of(tx: &Tx<'_>, project: &ProjectId) -> Result<(u64, u64), Error> {
    let sums = tx.one(
        "SELECT count(*), CAST(coalesce(sum(size_bytes), 0) AS BIGINT) FROM backup \
         WHERE project_id = ?1 AND status IN ('waiting', 'running', 'succeeded') \
         AND status = 'succeeded' AND generation_id IS NULL",
        (project,),
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    Ok(sums.unwrap_or_default())
}

/// Finishes what a crash of the host left intended: at its start, before anything else runs. The files are swept then.
///
/// # Errors
/// The catalogue failed.
pub fn finish_deletions(tx: &Tx<'_>, host: &HostId, now: Moment) -> Result<(), Error> {
    tx.execute(
        "UPDATE backup SET status = 'deleted', phase = NULL, updated_at_ms = ?2 \
         WHERE phase = ?1 AND (host_id = ?3 OR host_id IS NULL)",
        (DELETING, now, host),
    )?;
    Ok(())
}

/// The generation is gone: its record, if any still stands, is Expired.
///
/// # Errors
/// The catalogue failed.
pub fn expire_generation(tx: &Tx<'_>, generation: &GenerationId, now: Moment) -> Result<(), Error> {
    tx.execute(
        "UPDATE backup SET status = 'expired', updated_at_ms = ?2 WHERE generation_id = ?1 AND status = 'succeeded'",
        (generation, now),
    )?;
    Ok(())
}

/// Whether the local folder must keep what lies under `prefix`, of a backup of this id: the archive that counts, an
/// attempt that may be at work, an archive that a rebuild found and could not prove, or a copy as in [`useless_places`]. `None`: the id is not known here.
///
/// # Errors
/// The catalogue failed.
pub fn keeps(tx: &Tx<'_>, id: &BackupId, prefix: &str) -> Result<Option<bool>, Error> {
    tx.one(
        "SELECT CASE WHEN copy_prefix IS NOT DISTINCT FROM ?2 THEN copy_at_ms IS NULL OR status = 'succeeded' ELSE CASE status WHEN 'succeeded' THEN prefix = ?2 WHEN 'failed' THEN prefix = ?2 AND proof_failure IS NOT NULL \
         ELSE status IN ('waiting', 'running') END END FROM backup WHERE id = ?1",
        (id, prefix),
        |row| Ok(row.get::<Option<bool>>(0)?.unwrap_or(false)),
    )
}

/// Safety backups have no job of their own: one that is unfinished when the restore that takes them begins anew was
/// interrupted.
///
/// # Errors
/// The catalogue failed.
pub fn fail_interrupted_safety(tx: &Tx<'_>, instance: &InstanceId, now: Moment) -> Result<(), Error> {
    tx.execute(
        "UPDATE backup SET status = 'failed', error_code = ?1, failure = 'interrupted', phase = NULL, updated_at_ms = ?2 \
         WHERE kind = 'safety' AND status IN ('waiting', 'running') AND instance_id = ?3",
        (FailureCode::TimedOut.text(), now, instance),
    )?;
    Ok(())
}

/// As [`fail_interrupted_safety`], of every instance of a host that starts.
///
/// # Errors
/// The catalogue failed.
pub fn fail_interrupted_safety_of(tx: &Tx<'_>, host: &HostId, now: Moment) -> Result<(), Error> {
    let interrupted: Vec<InstanceId> = tx.all(
        "SELECT instance_id FROM backup JOIN instance ON instance.id = instance_id \
         WHERE backup.kind = 'safety' AND backup.status IN ('waiting', 'running') AND instance.host_id = ?1",
        (host,),
        |row| row.get(0),
    )?;
    for instance in &interrupted {
        fail_interrupted_safety(tx, instance, now)?;
    }
    Ok(())
}
