//! Schedules of an instance, and their SQL. A row that was deleted stays: the mirror of the catalogue knows no deletions.

use super::keep::Keeps;
use crate::catalog::{Error, FromSql, Row, Tx, Value};
use crate::ids::{InstanceId, Moment, ScheduleId};
use crate::instance::OwnedInstance;

/// What is done when it is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// A backup is made.
    Backup,
    /// The newest backup is proven: a throw-away engine loads it.
    Drill,
}

impl Task {
    /// The word in the table and on the wire.
    pub fn word(self) -> &'static str {
        match self {
            Task::Backup => "backup",
            Task::Drill => "drill",
        }
    }

    /// Reads the word.
    pub fn from_word(word: &str) -> Option<Self> {
        [Task::Backup, Task::Drill]
            .into_iter()
            .find(|task| task.word() == word)
    }
}

impl FromSql for Task {
    fn from_sql(value: Value<'_>) -> Option<Self> {
        Self::from_word(value.text()?)
    }
}

/// A row of the table.
#[derive(Debug, Clone)]
pub struct Schedule {
    /// Its id.
    pub id: ScheduleId,
    /// Its instance.
    pub instance_id: InstanceId,
    /// Unique among those of the instance that are not deleted.
    pub name: String,
    /// What it does.
    pub task: Task,
    /// Five fields, see `cron.rs`; proven to be readable.
    pub cron: String,
    /// The time zone of those, by its name in the IANA database.
    pub zone: String,
    /// How long after it was due a run may still begin, where the service was away.
    pub window_ms: i64,
    /// Which of its backups stay.
    pub keeps: Keeps,
    /// When it was made.
    pub created_at: Moment,
}

macro_rules! columns {
    () => {
        "id, instance_id, name, task, cron, zone, window_ms, keeps, created_at_ms"
    };
}

fn row(row: &Row<'_>) -> Result<Schedule, Error> {
    let keeps: String = row.get(7)?;
    Ok(Schedule {
        id: row.get(0)?,
        instance_id: row.get(1)?,
        name: row.get(2)?,
        task: row.get(3)?,
        cron: row.get(4)?,
        zone: row.get(5)?,
        window_ms: row.get(6)?,
        keeps: serde_json::from_str(&keeps)
            .map_err(|error| Error::Unreadable(format!("these are no rules: {error}")))?,
        created_at: row.get(8)?,
    })
}

/// Adds a schedule.
///
/// # Errors
/// `Constraint` where the instance has one of that name.
pub fn insert(tx: &Tx<'_>, of: &OwnedInstance, schedule: &Schedule) -> Result<(), Error> {
    let keeps = serde_json::to_string(&schedule.keeps).unwrap_or_default();
    tx.execute(
        "INSERT INTO schedule (id, project_id, instance_id, name, task, cron, zone, window_ms, keeps, created_at_ms) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        (
            &schedule.id,
            &of.project_id,
            &of.id,
            &schedule.name,
            schedule.task.word(),
            &schedule.cron,
            &schedule.zone,
            schedule.window_ms,
            keeps,
            schedule.created_at,
        ),
    )?;
    Ok(())
}

/// The schedules of an instance, by name.
///
/// # Errors
/// The catalogue failed.
pub fn list(tx: &Tx<'_>, instance: &InstanceId) -> Result<Vec<Schedule>, Error> {
    each_of(tx, instance)?.into_iter().collect()
}

/// As [`list`], without those that cannot be read.
///
/// # Errors
/// The catalogue failed.
pub fn readable(tx: &Tx<'_>, instance: &InstanceId) -> Result<Vec<Schedule>, Error> {
    Ok(each_of(tx, instance)?.into_iter().flatten().collect())
}

fn each_of(tx: &Tx<'_>, instance: &InstanceId) -> Result<Vec<Result<Schedule, Error>>, Error> {
    tx.all(
        concat!(
            "SELECT ",
            columns!(),
            " FROM schedule WHERE instance_id = ?1 AND deleted_at_ms IS NULL ORDER BY name"
        ),
        (instance,),
        |read| Ok(row(read)),
    )
}

/// One of them.
///
/// # Errors
/// The catalogue failed.
pub fn find(tx: &Tx<'_>, of: &OwnedInstance, id: &ScheduleId) -> Result<Option<Schedule>, Error> {
    tx.one(
        concat!(
            "SELECT ",
            columns!(),
            " FROM schedule WHERE id = ?1 AND instance_id = ?2 AND deleted_at_ms IS NULL"
        ),
        (id, &of.id),
        row,
    )
}

/// All schedules of instances that are not deleted, each as far as it can be read.
///
/// # Errors
/// The catalogue failed.
pub fn all(tx: &Tx<'_>) -> Result<Vec<Result<Schedule, Error>>, Error> {
    tx.all(
        concat!(
            "SELECT ",
            columns!(),
            " FROM schedule WHERE deleted_at_ms IS NULL AND EXISTS (SELECT 1 FROM instance \
             WHERE instance.id = schedule.instance_id AND instance.status NOT IN ('deleting', 'deleted')) ORDER BY id"
        ),
        (),
        |read| Ok(row(read)),
    )
}

/// Notes since when its drills are overdue, which tells the hooks. `false`: it was noted before.
///
/// # Errors
/// The catalogue failed.
pub fn note_overdue(tx: &Tx<'_>, id: &ScheduleId, since: Moment) -> Result<bool, Error> {
    let changed = tx.execute(
        "UPDATE schedule SET overdue_at_ms = ?2 WHERE id = ?1 AND deleted_at_ms IS NULL AND coalesce(overdue_at_ms, 0) <> ?2",
        (id, since),
    )?;
    Ok(changed == 1)
}

/// Whether [`note_overdue`] has noted this.
///
/// # Errors
/// The catalogue failed.
pub fn is_noted_overdue(tx: &Tx<'_>, id: &ScheduleId, since: Moment) -> Result<bool, Error> {
    let noted = tx.one(
        "SELECT 1 FROM schedule WHERE id = ?1 AND overdue_at_ms = ?2",
        (id, since),
        |_| Ok(()),
    )?;
    Ok(noted.is_some())
}

/// Nothing is due by it any more. `false`: it was deleted before.
///
/// # Errors
/// The catalogue failed.
pub fn delete(tx: &Tx<'_>, of: &OwnedInstance, id: &ScheduleId, now: Moment) -> Result<bool, Error> {
    let changed = tx.execute(
        "UPDATE schedule SET deleted_at_ms = ?3 WHERE id = ?1 AND instance_id = ?2 AND deleted_at_ms IS NULL",
        (id, &of.id, now),
    )?;
    Ok(changed == 1)
}
