//! The rows of hooks and of what they are told, and their SQL.

use crate::catalog::{Error, FromSql, Row, ToSql, Tx, Value};
use crate::ids::{Moment, ProjectId};

/// How somebody is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// By a request to a URL.
    Url,
    /// By a program of this machine that is run.
    Program,
}

impl Kind {
    /// Its word in the table.
    pub fn word(self) -> &'static str {
        match self {
            Self::Url => "url",
            Self::Program => "program",
        }
    }
}

impl ToSql for Kind {
    fn to_sql(&self) -> Result<Value<'_>, Error> {
        Ok(Value::Text(self.word()))
    }
}

impl FromSql for Kind {
    fn from_sql(value: Value<'_>) -> Option<Self> {
        match value.text()? {
            "url" => Some(Self::Url),
            "program" => Some(Self::Program),
            _ => None,
        }
    }
}

/// Who is told.
#[derive(Debug, Clone)]
pub struct Hook {
    /// Unique.
    pub name: String,
    /// What happens in this project alone; `None`: in all.
    pub project_id: Option<ProjectId>,
    /// By what.
    pub kind: Kind,
    /// The URL, or the program's path.
    pub target: String,
    /// Which of [`super::EVENTS`]; none: all.
    pub events: Vec<String>,
    /// Sealed for [`super::secret_place`].
    pub secret_sealed: Vec<u8>,
    /// Since when.
    pub created_at: Moment,
}

/// What somebody is to be told, or was.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Unique in this catalogue.
    pub number: i64,
    /// One of [`super::EVENTS`].
    pub event: String,
    /// Where it happened.
    pub project_id: String,
    /// To which instance.
    pub instance_id: String,
    /// The name of the instance now.
    pub instance_name: String,
    /// The id of what has ended, of the drills' schedule, or of the instance.
    pub subject_id: String,
    /// `dcs.08.000x`, of backups and restores that failed.
    pub error_code: Option<String>,
    /// Why, in the operator's words.
    pub failure: Option<String>,
    /// When it happened.
    pub at: Moment,
    /// Tries that failed.
    pub tries: i64,
    /// The next one; `None`: there is none.
    pub next_at: Option<Moment>,
    /// When it was taken.
    pub delivered_at: Option<Moment>,
    /// What was wrong with the newest try.
    pub answer: Option<String>,
}

fn words(events: &[String]) -> String {
    match events.is_empty() {
        true => ",".to_owned(),
        false => format!(",{},", events.join(",")),
    }
}

fn hook(row: &Row<'_>) -> Result<Hook, Error> {
    let events: String = row.get(4)?;
    Ok(Hook {
        name: row.get(0)?,
        project_id: row.get(1)?,
        kind: row.get(2)?,
        target: row.get(3)?,
        events: events
            .split(',')
            .filter(|event| !event.is_empty())
            .map(str::to_owned)
            .collect(),
        secret_sealed: row.get(5)?,
        created_at: row.get(6)?,
    })
}

fn delivery(row: &Row<'_>) -> Result<Delivery, Error> {
    Ok(Delivery {
        number: row.get(0)?,
        event: row.get(1)?,
        project_id: row.get(2)?,
        instance_id: row.get(3)?,
        instance_name: row.get(4)?,
        subject_id: row.get(5)?,
        error_code: row.get(6)?,
        failure: row.get(7)?,
        at: row.get(8)?,
        tries: row.get(9)?,
        next_at: row.get(10)?,
        delivered_at: row.get(11)?,
        answer: row.get(12)?,
    })
}

/// Adds a hook.
///
/// # Errors
/// `Constraint` where the name is taken.
pub fn insert(tx: &Tx<'_>, hook: &Hook) -> Result<(), Error> {
    tx.execute(
        "INSERT INTO hook (name, project_id, kind, target, events, secret_sealed, created_at_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        (
            &hook.name,
            &hook.project_id,
            hook.kind,
            &hook.target,
            words(&hook.events),
            &hook.secret_sealed,
            hook.created_at,
        ),
    )?;
    Ok(())
}

/// Removes a hook, and whatever it was not told. `false`: there is none of that name.
///
/// # Errors
/// The catalogue failed.
pub fn remove(tx: &Tx<'_>, name: &str) -> Result<bool, Error> {
    tx.execute("DELETE FROM delivery WHERE hook = ?1", (name,))?;
    Ok(tx.execute("DELETE FROM hook WHERE name = ?1", (name,))? > 0)
}

/// All, by name.
///
/// # Errors
/// The catalogue failed.
pub fn all(tx: &Tx<'_>) -> Result<Vec<Hook>, Error> {
    tx.all(
        "SELECT name, project_id, kind, target, events, secret_sealed, created_at_ms FROM hook ORDER BY name",
        (),
        hook,
    )
}

/// How much a hook was told, is still to be told, and was not told in the end.
///
/// # Errors
/// The catalogue failed.
pub fn counts(tx: &Tx<'_>, name: &str) -> Result<(u64, u64, u64), Error> {
    let counts = tx.one(
        "SELECT CAST(coalesce(sum(CASE WHEN delivered_at_ms IS NOT NULL THEN 1 ELSE 0 END), 0) AS BIGINT), \
         CAST(coalesce(sum(CASE WHEN next_at_ms IS NOT NULL THEN 1 ELSE 0 END), 0) AS BIGINT), \
         CAST(coalesce(sum(CASE WHEN delivered_at_ms IS NULL AND next_at_ms IS NULL THEN 1 ELSE 0 END), 0) AS BIGINT) \
         FROM delivery WHERE hook = ?1",
        (name,),
        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
    )?;
    Ok(counts.unwrap_or_default())
}

/// The delivery to a hook whose turn it is.
///
/// # Errors
/// The catalogue failed.
pub fn due(tx: &Tx<'_>, name: &str, now: Moment) -> Result<Option<Delivery>, Error> {
    tx.one(
        "SELECT number, event, delivery.project_id, instance_id, instance.name, subject_id, error_code, delivery.failure, at_ms, tries, \
         next_at_ms, delivered_at_ms, answer FROM delivery JOIN instance ON instance.id = instance_id \
         WHERE hook = ?1 AND next_at_ms <= ?2 ORDER BY next_at_ms, number LIMIT 1",
        (name, now),
        delivery,
    )
}

/// The newest ones of a hook, newest first.
///
/// # Errors
/// The catalogue failed.
pub fn newest(tx: &Tx<'_>, name: &str, limit: u32) -> Result<Vec<Delivery>, Error> {
    tx.all(
        "SELECT number, event, delivery.project_id, instance_id, instance.name, subject_id, error_code, delivery.failure, at_ms, tries, \
         next_at_ms, delivered_at_ms, answer FROM delivery JOIN instance ON instance.id = instance_id \
         WHERE hook = ?1 ORDER BY number DESC LIMIT ?2",
        (name, limit),
        delivery,
    )
}

/// It was taken.
///
/// # Errors
/// The catalogue failed.
pub fn delivered(tx: &Tx<'_>, number: i64, now: Moment) -> Result<(), Error> {
    tx.execute(
        "UPDATE delivery SET delivered_at_ms = ?2, next_at_ms = NULL, answer = NULL WHERE number = ?1",
        (number, now),
    )?;
    Ok(())
}

/// It was not taken; `next_at` says when it is tried again, if it is.
///
/// # Errors
/// The catalogue failed.
pub fn refused(tx: &Tx<'_>, number: i64, answer: &str, next_at: Option<Moment>) -> Result<(), Error> {
    tx.execute(
        "UPDATE delivery SET tries = tries + 1, answer = ?2, next_at_ms = ?3 WHERE number = ?1",
        (number, answer, next_at),
    )?;
    Ok(())
}

/// Whatever a hook was not told is tried again from `now` on. Returns how much that is.
///
/// # Errors
/// The catalogue failed.
pub fn again(tx: &Tx<'_>, name: &str, now: Moment) -> Result<u64, Error> {
    let count = tx.execute(
        "UPDATE delivery SET tries = 0, next_at_ms = ?2 WHERE hook = ?1 AND delivered_at_ms IS NULL",
        (name, now),
    )?;
    Ok(count as u64)
}

/// Whether there is anything for [`forget`].
///
/// # Errors
/// The catalogue failed.
pub fn is_any_over(tx: &Tx<'_>, before: Moment) -> Result<bool, Error> {
    let any = tx.one(
        "SELECT 1 FROM delivery WHERE next_at_ms IS NULL AND at_ms < ?1 LIMIT 1",
        (before,),
        |_| Ok(()),
    )?;
    Ok(any.is_some())
}

/// Forgets what is over and happened before `before`.
///
/// # Errors
/// The catalogue failed.
pub fn forget(tx: &Tx<'_>, before: Moment) -> Result<(), Error> {
    tx.execute(
        "DELETE FROM delivery WHERE next_at_ms IS NULL AND at_ms < ?1",
        (before,),
    )?;
    Ok(())
}
