//! The restore record: append-only, for ever. Its states, changed only here and by compare-and-set, and its SQL.

use super::given_up::GivenUp;
use crate::backup::record::FailureCode;
use crate::catalog::{Error, FromSql, Row, Tx, Value, params};
use crate::ids::{BackupId, GenerationId, InstanceId, Moment, ProjectId, RestoreId};
use crate::instance::layout::Layout;
use crate::instance::{Instance, OwnedInstance};

/// ```text
/// Waiting ──> Running ──> Succeeded
///     └──────────┴──────> Failed
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Accepted.
    Waiting,
    /// A job works on it.
    Running,
    /// The instance holds exactly the backup's data (or, for an undo, the generation from before).
    Succeeded,
    /// It does not; `target_state` says what it holds.
    Failed,
}

impl Status {
    const ALL: [Status; 4] = [
        Status::Waiting,
        Status::Running,
        Status::Succeeded,
        Status::Failed,
    ];

    /// The word in the table.
    pub fn word(self) -> &'static str {
        match self {
            Status::Waiting => "waiting",
            Status::Running => "running",
            Status::Succeeded => "succeeded",
            Status::Failed => "failed",
        }
    }
}

impl FromSql for Status {
    fn from_sql(value: Value<'_>) -> Option<Self> {
        let word = value.text()?;
        Self::ALL.into_iter().find(|s| s.word() == word)
    }
}

/// What the instance's clients see, written before the phase that may change it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetState {
    /// The old data, and no step has come near it.
    Untouched,
    /// The old data (side load), nothing yet (in place), or new keys beside old ones (replay).
    Loading,
    /// All of the backup is there, and other keys are being removed (replay).
    Clearing,
    /// As `Loading`, and the new generation is loaded; of a replay, all is there that is to be.
    Verifying,
    /// The switch is intended: old until the port has moved, new from then on. A crash here is finished forward.
    Switching,
    /// The new data.
    Replaced,
    /// The old data again, after an attempt that had gone past `Untouched`.
    RolledBack,
    /// New keys beside old ones, after an attempt that was given up (replay).
    Partial,
    /// Nobody knows: the old generation could not be brought back, or the servers do not answer.
    Unknown,
}

impl TargetState {
    const ALL: [TargetState; 9] = [
        TargetState::Untouched,
        TargetState::Loading,
        TargetState::Clearing,
        TargetState::Verifying,
        TargetState::Switching,
        TargetState::Replaced,
        TargetState::RolledBack,
        TargetState::Partial,
        TargetState::Unknown,
    ];

    /// The word in the table and on the wire.
    pub fn word(self) -> &'static str {
        match self {
            TargetState::Untouched => "untouched",
            TargetState::Loading => "loading",
            TargetState::Clearing => "clearing",
            TargetState::Verifying => "verifying",
            TargetState::Switching => "switching",
            TargetState::Replaced => "replaced",
            TargetState::RolledBack => "rolled_back",
            TargetState::Partial => "partial",
            TargetState::Unknown => "unknown",
        }
    }
}

impl FromSql for TargetState {
    fn from_sql(value: Value<'_>) -> Option<Self> {
        let word = value.text()?;
        Self::ALL.into_iter().find(|s| s.word() == word)
    }
}

/// How the data gets into the instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// A new generation beside the old one, then the switch.
    SideLoad,
    /// The old generation is stopped first: two do not fit in memory and downtime was allowed.
    InPlace,
    /// The backup is a retired generation: only the switch, backwards.
    SwitchBack,
    /// Key by key, into what goes on serving.
    Replay,
}

impl Method {
    const ALL: [Method; 4] = [
        Method::SideLoad,
        Method::InPlace,
        Method::SwitchBack,
        Method::Replay,
    ];

    /// The word in the table and on the wire.
    pub fn word(self) -> &'static str {
        match self {
            Method::SideLoad => "side_load",
            Method::InPlace => "in_place",
            Method::SwitchBack => "switch_back",
            Method::Replay => "replay",
        }
    }
}

impl FromSql for Method {
    fn from_sql(value: Value<'_>) -> Option<Self> {
        let word = value.text()?;
        Self::ALL.into_iter().find(|m| m.word() == word)
    }
}

/// A row of the table, as far as we decide by it; [`super::told_record::Told`] has the rest.
#[derive(Debug, Clone)]
pub struct Restore {
    /// Its id.
    pub id: RestoreId,
    /// `restore_20260102030405`.
    pub name: String,
    /// What was restored; stays after the backup is gone.
    pub backup_id: BackupId,
    /// See [`Status`].
    pub status: Status,
    /// Why it failed or is being given up.
    pub given_up: Option<GivenUp>,
    /// See [`Method`].
    pub method: Method,
    /// `sample` or `full`.
    pub verify: String,
    /// See [`TargetState`].
    pub target_state: TargetState,
    /// The restore that this one took back.
    pub undo_of: Option<RestoreId>,
    /// The restore that took this one back.
    pub undone_by: Option<RestoreId>,
    /// The generation with the backup's data.
    pub new_generation_id: Option<GenerationId>,
    /// The generation that it replaced.
    pub old_generation_id: Option<GenerationId>,
}

macro_rules! columns {
    () => {
        "id, name, backup_id, status, failure, method, verify, target_state, undo_of, undone_by, new_generation_id, old_generation_id, error_code"
    };
}

fn row(row: &Row<'_>) -> Result<Restore, Error> {
    Ok(Restore {
        id: row.get(0)?,
        name: row.get(1)?,
        backup_id: row.get(2)?,
        status: row.get(3)?,
        given_up: GivenUp::read(row.get::<Option<String>>(12)?.as_deref(), row.get(4)?),
        method: row.get(5)?,
        verify: row.get(6)?,
        target_state: row.get(7)?,
        undo_of: row.get(8)?,
        undone_by: row.get(9)?,
        new_generation_id: row.get(10)?,
        old_generation_id: row.get(11)?,
    })
}

/// What a new record is told.
#[derive(Debug)]
pub struct NewRestore<'a> {
    /// See [`Restore::backup_id`].
    pub backup_id: &'a BackupId,
    /// Its name, which stays after it is gone.
    pub backup_name: &'a str,
    /// Its remark, likewise.
    pub backup_remark: Option<&'a str>,
    /// Free text of who asked.
    pub remark: Option<&'a str>,
    /// Whose backup it is.
    pub source: &'a Instance,
    /// Of how many nodes the instance is.
    pub layout: Layout,
    /// See [`Restore::method`].
    pub method: Method,
    /// See [`Restore::verify`].
    pub verify: &'a str,
    /// See [`Restore::undo_of`].
    pub undo_of: Option<&'a RestoreId>,
    /// Of a replay: see [`super::options`].
    pub options: Option<&'a str>,
}

/// Adds a record in state Waiting with the instance's next ordinal.
///
/// The counter row is changed in this transaction, so ordinals have no gap even when a transaction is rolled
/// back, and the created moment never runs backwards.
///
/// # Errors
/// The catalogue failed.
pub fn insert_waiting(
    tx: &Tx<'_>,
    project: &ProjectId,
    instance: &InstanceId,
    new: &NewRestore<'_>,
    now: Moment,
) -> Result<RestoreId, Error> {
    let id = RestoreId::random();
    let (ordinal, created_at): (i64, Moment) = tx
        .one(
            "UPDATE instance SET restore_ordinal = restore_ordinal + 1, restore_created_at_ms = max(restore_created_at_ms, ?2) \
             WHERE id = ?1 RETURNING restore_ordinal, restore_created_at_ms",
            (instance, now),
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?
        .ok_or_else(|| Error::Constraint("restore of an unknown instance".to_owned()))?;
    let name = free_name(tx, instance, created_at)?;
    tx.execute(
        "INSERT INTO restore (instance_id, ordinal, id, project_id, name, backup_id, backup_name, backup_remark, remark, status, \
         source_instance_id, source_instance_name, source_layout, layout, method, verify, target_state, undo_of, created_at_ms, \
         clock_at_ms, updated_at_ms, options) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, 'waiting', ?10, ?11, ?12, ?13, ?14, ?15, 'untouched', ?16, ?17, ?18, ?17, ?19)",
        params![
            instance,
            ordinal,
            id,
            project,
            name,
            new.backup_id,
            new.backup_name,
            new.backup_remark,
            new.remark,
            new.source.id,
            new.source.name,
            new.source.layout.to_string(),
            new.layout.to_string(),
            new.method.word(),
            new.verify,
            new.undo_of,
            created_at,
            now,
            new.options,
        ],
    )?;
    Ok(id)
}

fn free_name(tx: &Tx<'_>, instance: &InstanceId, now: Moment) -> Result<String, Error> {
    let base = format!("restore_{}", now.compact());
    let second = Moment(now.0 - now.0.rem_euclid(1000));
    let same_second: i64 = tx
        .one(
            "SELECT count(*) FROM restore WHERE instance_id = ?1 AND created_at_ms >= ?2 AND created_at_ms < ?3",
            (instance, second, second.plus_seconds(1)),
            |row| row.get(0),
        )?
        .unwrap_or(0);
    Ok(if same_second == 0 {
        base
    } else {
        format!("{base}_{}", same_second + 1)
    })
}

/// One record of the instance.
///
/// # Errors
/// The catalogue failed.
pub fn find(tx: &Tx<'_>, of: &OwnedInstance, id: &RestoreId) -> Result<Option<Restore>, Error> {
    tx.one(
        concat!(
            "SELECT ",
            columns!(),
            " FROM restore WHERE id = ?1 AND instance_id = ?2"
        ),
        (id, &of.id),
        row,
    )
}

/// The record a job names; jobs are ours and know no project.
///
/// # Errors
/// The catalogue failed.
pub fn load(tx: &Tx<'_>, id: &RestoreId) -> Result<Option<Restore>, Error> {
    tx.one(
        concat!("SELECT ", columns!(), " FROM restore WHERE id = ?1"),
        (id,),
        row,
    )
}

/// How long a restore took.
#[derive(Debug)]
pub struct Measured {
    /// Plain bytes of its backup.
    pub bytes: u64,
    /// From its start to its end.
    pub seconds: f64,
    /// How long clients waited meanwhile, where that is known.
    pub gap_seconds: Option<f64>,
}

/// How long the newest restores took that loaded something into the instance, key by key or beside, `limit` at most.
///
/// # Errors
/// The catalogue failed.
pub fn measured(tx: &Tx<'_>, of: &OwnedInstance, method: Method, limit: u64) -> Result<Vec<Measured>, Error> {
    tx.all(
        "SELECT backup.plain_bytes, restore.finished_at_ms - restore.started_at_ms, restore.unavailable_us FROM (SELECT * FROM restore \
         WHERE instance_id = ?1 ORDER BY ordinal DESC LIMIT ?2) AS restore JOIN backup ON backup.id = restore.backup_id \
         WHERE restore.status = 'succeeded' AND restore.method = ?3",
        (
            &of.id,
            i64::try_from(limit).unwrap_or(i64::MAX),
            // Of a switch back nothing was loaded, and in place is as seldom as it is slow.
            match method {
                Method::Replay => Method::Replay,
                _ => Method::SideLoad,
            }
            .word(),
        ),
        |row| {
            Ok(Measured {
                bytes: u64::try_from(row.get::<i64>(0)?).unwrap_or(0),
                seconds: row.get::<i64>(1)? as f64 / 1000.0,
                gap_seconds: row.get::<Option<i64>>(2)?.map(|gap| gap as f64 / 1e6),
            })
        },
    )
}

/// Whether a restore of this backup, into whatever instance, or one that is taken back with it is not settled yet.
///
/// # Errors
/// The catalogue failed.
pub fn is_in_use(tx: &Tx<'_>, backup: &BackupId) -> Result<bool, Error> {
    let found = tx.one(
        "SELECT 1 FROM job JOIN restore ON restore.id = job.subject_id \
         WHERE job.state <> 'done' AND job.kind = 'restore' AND ?1 IN (restore.backup_id, restore.safety_backup_id)",
        (backup,),
        |_| Ok(()),
    )?;
    Ok(found.is_some())
}

/// Plain bytes of the backup that the restore of this id is about; 0 where there is no such record.
///
/// # Errors
/// The catalogue failed.
pub fn expected_bytes(tx: &Tx<'_>, id: &str) -> Result<u64, Error> {
    let found = tx.one(
        "SELECT backup.plain_bytes FROM restore JOIN backup ON backup.id = restore.backup_id WHERE restore.id = ?1",
        (id,),
        |row| row.get::<i64>(0),
    )?;
    Ok(found.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0))
}

/// Waiting → Running, or Running again after a crash before the switch was intended. `false`: the record has
/// ended, and the caller must stop without touching the instance.
///
/// `started_at` is set here and never again, so a job begun anew keeps its first start.
///
/// # Errors
/// The catalogue failed.
pub fn begin(
    tx: &Tx<'_>,
    id: &RestoreId,
    new: &GenerationId,
    old: Option<&GenerationId>,
    method: Method,
    now: Moment,
) -> Result<bool, Error> {
    let changed = tx.execute(
        "UPDATE restore SET status = 'running', new_generation_id = ?2, old_generation_id = ?3, method = ?4, target_state = 'untouched', \
         failure = NULL, phase = 'preparing', started_at_ms = coalesce(started_at_ms, ?5), updated_at_ms = ?5 \
         WHERE id = ?1 AND status IN ('waiting', 'running') AND target_state <> 'switching'",
        (id, new, old, method.word(), now),
    )?;
    Ok(changed == 1)
}

/// Writes the target state of a running record, before the phase that it announces. `false`: the record has ended, or is
/// to be given up.
///
/// # Errors
/// The catalogue failed.
pub fn enter(tx: &Tx<'_>, id: &RestoreId, state: TargetState, now: Moment) -> Result<bool, Error> {
    let changed = tx.execute(
        "UPDATE restore SET target_state = ?2, updated_at_ms = ?3 WHERE id = ?1 AND status = 'running' AND cancel_asked_at_ms IS NULL",
        (id, state.word(), now),
    )?;
    Ok(changed == 1)
}

/// Writes that a record is to be given up; asked again it stays as it was. `false`: it has ended, or the switch is intended,
/// which is finished forward. Of this and the intent the first one wins: both are changes of the same row.
///
/// # Errors
/// The catalogue failed.
pub fn ask_to_cancel(tx: &Tx<'_>, id: &RestoreId, now: Moment) -> Result<bool, Error> {
    let changed = tx.execute(
        "UPDATE restore SET cancel_asked_at_ms = coalesce(cancel_asked_at_ms, ?2), updated_at_ms = ?2 \
         WHERE id = ?1 AND status IN ('waiting', 'running') AND target_state <> 'switching'",
        (id, now),
    )?;
    Ok(changed == 1)
}

/// Whether a record is to be given up.
///
/// # Errors
/// The catalogue failed.
pub fn is_to_be_cancelled(tx: &Tx<'_>, id: &RestoreId) -> Result<bool, Error> {
    let asked = tx.one(
        "SELECT 1 FROM restore WHERE id = ?1 AND cancel_asked_at_ms IS NOT NULL",
        (id,),
        |_| Ok(()),
    )?;
    Ok(asked.is_some())
}

/// Writes what the verification counted.
///
/// # Errors
/// The catalogue failed.
pub fn verified(tx: &Tx<'_>, id: &RestoreId, applied: u64, compared: u64, expired: u64) -> Result<(), Error> {
    tx.execute(
        "UPDATE restore SET keys_applied = ?2, keys_compared = ?3, keys_expired = ?4 WHERE id = ?1 AND status = 'running'",
        (id, applied, compared, expired),
    )?;
    Ok(())
}

/// Writes how far a running record is; progress never falls, and a phase that moves no bytes leaves what was moved before.
///
/// # Errors
/// The catalogue failed.
pub fn progress(
    tx: &Tx<'_>,
    id: &RestoreId,
    progress_bp: i64,
    seen: &engine::Progress,
    now: Moment,
) -> Result<(), Error> {
    tx.execute(
        "UPDATE restore SET phase = ?2, progress_bp = max(progress_bp, ?3), updated_at_ms = ?7, \
         bytes_done = CASE WHEN ?5 > 0 THEN ?4 ELSE bytes_done END, bytes_total = CASE WHEN ?5 > 0 THEN ?5 ELSE bytes_total END, \
         keys_done = CASE WHEN ?5 > 0 THEN ?6 ELSE keys_done END \
         WHERE id = ?1 AND status = 'running'",
        (id, seen.phase, progress_bp, seen.bytes_done, seen.bytes_total, seen.keys_done, now),
    )?;
    Ok(())
}

/// Running → Succeeded. `false`: the record has ended otherwise.
///
/// # Errors
/// The catalogue failed.
pub fn succeed(tx: &Tx<'_>, id: &RestoreId, unavailable_us: Option<u64>, now: Moment) -> Result<bool, Error> {
    let changed = tx.execute(
        "UPDATE restore SET status = 'succeeded', target_state = 'replaced', progress_bp = 10000, phase = NULL, failure = NULL, error_code = NULL, \
         unavailable_us = ?2, finished_at_ms = ?3, updated_at_ms = ?3, keys_done = keys_applied, \
         bytes_done = COALESCE((SELECT plain_bytes FROM backup WHERE backup.id = restore.backup_id), bytes_total), \
         bytes_total = COALESCE((SELECT plain_bytes FROM backup WHERE backup.id = restore.backup_id), bytes_total) \
         WHERE id = ?1 AND status = 'running'",
        (id, unavailable_us, now),
    )?;
    Ok(changed == 1)
}

/// Writes why a running record is about to fail, before anything is turned back. Past the intent to switch this is
/// final: after a crash the failure is settled and nothing else.
///
/// # Errors
/// The catalogue failed.
pub fn giving_up(tx: &Tx<'_>, id: &RestoreId, given_up: &GivenUp) -> Result<(), Error> {
    tx.execute(
        "UPDATE restore SET error_code = ?2, failure = ?3 WHERE id = ?1 AND status IN ('waiting', 'running')",
        (id, given_up.code.text(), &given_up.why),
    )?;
    Ok(())
}

/// Waiting or Running → Failed, with what the instance holds now. `false`: the record has ended otherwise.
///
/// # Errors
/// The catalogue failed.
pub fn fail(
    tx: &Tx<'_>,
    id: &RestoreId,
    code: FailureCode,
    why: &str,
    state: TargetState,
    now: Moment,
) -> Result<bool, Error> {
    let changed = tx.execute(
        "UPDATE restore SET status = 'failed', error_code = ?2, failure = ?3, target_state = ?4, phase = NULL, finished_at_ms = ?5, \
         updated_at_ms = ?5 WHERE id = ?1 AND status IN ('waiting', 'running')",
        (id, code.text(), why, state.word(), now),
    )?;
    Ok(changed == 1)
}

/// Unknown → RolledBack on failed records: the serving generation, which a failed restore never changes, serves again.
/// Not on those that ended before there was such a generation: a rebuilt catalogue may hold some.
///
/// # Errors
/// The catalogue failed.
pub fn settle_unknown(tx: &Tx<'_>, instance: &InstanceId, now: Moment) -> Result<(), Error> {
    tx.execute(
        "UPDATE restore SET target_state = 'rolled_back', updated_at_ms = ?2 \
         WHERE instance_id = ?1 AND status = 'failed' AND target_state = 'unknown' AND method <> 'replay' AND finished_at_ms >= \
         (SELECT created_at_ms FROM generation WHERE instance_id = ?1 AND state = 'serving')",
        (instance, now),
    )?;
    Ok(())
}

/// Writes on the restore that was taken back which one did it.
///
/// # Errors
/// The catalogue failed.
pub fn mark_undone(tx: &Tx<'_>, undone: &RestoreId, by: &RestoreId) -> Result<(), Error> {
    tx.execute(
        "UPDATE restore SET undone_by = ?2 WHERE id = ?1 AND undone_by IS NULL",
        (undone, by),
    )?;
    Ok(())
}

/// The restore that replaced this generation: the one that a switch back to it takes back.
///
/// # Errors
/// The catalogue failed.
pub fn that_replaced(
    tx: &Tx<'_>,
    instance: &InstanceId,
    old: &GenerationId,
) -> Result<Option<RestoreId>, Error> {
    tx.one(
        "SELECT id FROM restore WHERE instance_id = ?1 AND old_generation_id = ?2 AND status = 'succeeded' ORDER BY ordinal DESC LIMIT 1",
        (instance, old),
        |row| row.get(0),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::catalog::Catalog;

    #[test]
    fn a_record_is_told_as_it_is_whatever_texts_and_moments_it_holds_and_whoever_changes_it() {
        let directory = std::env::temp_dir().join(format!("cachekeep-{}", crate::secrets::random_hex(8)));
        std::fs::create_dir(&directory).unwrap();
        let path = directory.join("catalog.sqlite");
        Catalog::open(&path).unwrap();
        // An operator's shell, which keeps no foreign keys either.
        let shell = rusqlite::Connection::open(&path).unwrap();
        shell.pragma_update(None, "foreign_keys", false).unwrap();
        let told = |ordinal: i64| -> Value {
            let texts = shell.query_row(
                "SELECT documented, ext, of_v1 FROM restore_list JOIN restore_told ON place = (number << 32) + ?1 \
                 WHERE instance_id = 'of'",
                (ordinal,),
                |row| Ok([row.get::<_, String>(0)?, row.get(2)?, row.get(1)?]),
            );
            let text = texts.unwrap().concat() + "}}";
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
        };
        let odd = [
            "",
            "it's \"quoted\" \\ and /slashed/",
            "null",
            "{\"a\": [1]}",
            "a\u{0}b\u{1}\t\r\n\u{1f}\u{7f}",
            "\u{2028}\u{fffd} Grüße \u{1f600}",
        ];
        let moments = [0, 1, 999, 1_700_000_000_001, 951_827_696_789, 253_402_300_799_999];
        let insert = "INSERT INTO restore (instance_id, ordinal, id, project_id, name, backup_id, backup_name, backup_remark, \
             remark, status, progress_bp, error_code, source_instance_id, source_instance_name, method, verify, target_state, \
             phase, undo_of, unavailable_us, created_at_ms, clock_at_ms, started_at_ms, finished_at_ms, updated_at_ms) \
             VALUES ('of', ?1, ?2, 'p', ?2, ?2, ?2, ?3, ?3, 'failed', ?4, 'dcs.08.0002', ?2, ?2, 'side_load', 'sample', \
             'untouched', ?3, ?3, ?5, ?6, ?6, ?7, ?6, ?6)";
        for (at, (text, moment)) in odd.into_iter().zip(moments).enumerate() {
            let ordinal = i64::try_from(at).unwrap() + 1;
            for null in [false, true] {
                let ordinal = ordinal * 2 - i64::from(null);
                let or_null = Some(text).filter(|_| !null);
                let begun = Some(moment).filter(|_| !null);
                let progress = [(-1, "0.00"), (7, "0.07"), (4250, "42.50"), (10_000, "100.00")][at % 4];
                let id = format!("{ordinal}{text}");
                let unavailable = Some(moment).filter(|_| null);
                let row = (ordinal, &id, or_null, progress.0, unavailable, moment, begun);
                shell.execute(insert, row).unwrap();
                let (found, stamp) = (told(ordinal), Moment(moment).iso());
                let ext = json!({
                    "ordinal": ordinal, "phase": or_null, "bytes_done": 0, "bytes_total": 0, "keys_done": 0,
                    "keys_applied": 0, "keys_skipped": 0, "keys_conflicting": 0, "keys_failed": 0, "keys_removed": 0,
                    "keys_reduced": 0, "is_unconfirmed": false, "keys_compared": 0,
                    "keys_expired": 0, "resumed": 0, "replay": null, "safety_backup_id": null,
                    "target_state": "untouched", "source_instance_id": id, "source_instance_name": id,
                    "source_layout": "single", "layout": "single", "undo_of": or_null, "undone_by": null,
                    "cancel_asked_at": null, "method": "side_load", "verify": "sample",
                    "unavailable_us": unavailable, "started_at": begun.map(|_| &stamp), "finished_at": stamp,
                    "clock_at": stamp
                });
                assert_eq!(
                    found,
                    json!({
                        "restore_id": id, "restore_name": id, "backup_id": id, "backup_name": id, "backup_remark": or_null,
                        "restore_remark": or_null, "status": "failed", "progress": progress.1, "created_at": stamp,
                        "updated_at": stamp, "error_code": "dcs.08.0002", "sourceInstanceId": id,
                        "sourceInstanceName": id, "ext": ext,
                    })
                );
            }
        }
        shell
            .execute("UPDATE restore SET undone_by = 'x' WHERE ordinal = 3", ())
            .unwrap();
        assert_eq!(told(3)["ext"]["undone_by"], "x");
        assert_eq!(told(5)["ext"]["undone_by"], Value::Null);
        let numbers: (i64, i64) = shell
            .query_row("SELECT count(*), max(number) FROM restore_list", (), |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .unwrap();
        assert_eq!(numbers, (1, 1));
        let pairs: i64 = shell
            .query_row("SELECT count(*) FROM restore_told", (), |row| row.get(0))
            .unwrap();
        assert_eq!(pairs, 12, "each record is told once");
        for (ordinal, status, word) in [
            (101, "running", "restoring"),
            (102, "waiting", "waiting"),
            (103, "succeeded", "succeed"),
        ] {
            let insert = insert.replace("'failed'", &format!("'{status}'"));
            let none = None::<i64>;
            shell
                .execute(&insert, (ordinal, word, word, 0, none, 1, none))
                .unwrap();
            assert_eq!(told(ordinal)["status"], word);
        }
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
