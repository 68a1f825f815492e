//! The rows of the audit log, and their SQL: appended in the transaction of what they tell, never changed.

use super::{Act, Broken};
use crate::catalog::{Error, Row, Tx};
use crate::ids::{Moment, ProjectId};
use crate::secrets::{hex, sha256};

/// The digest before the first row.
const BEGINNING: &str = "cachekeep audit log 1";

/// A row.
#[derive(Debug, Clone)]
pub struct Entry {
    /// From 1 on, without gaps.
    pub number: i64,
    /// When.
    pub at: Moment,
    /// The project, as text; empty where it is none's.
    pub project: String,
    /// Who.
    pub who: String,
    /// What was done: the name of the operation.
    pub what: String,
    /// To what: the parameters that name it.
    pub subject: String,
    /// SHA-256 of the digest before and everything above, hex.
    pub digest: String,
}

impl Entry {
    fn computed(&self, before: &str) -> String {
        let fields = serde_json::json!([
            before,
            self.number,
            self.at.0,
            self.project,
            self.who,
            self.what,
            self.subject
        ]);
        hex(&sha256(fields.to_string().as_bytes()))
    }
}

fn row(row: &Row<'_>) -> Result<Entry, Error> {
    Ok(Entry {
        number: row.get(0)?,
        at: row.get(1)?,
        project: row.get(2)?,
        who: row.get(3)?,
        what: row.get(4)?,
        subject: row.get(5)?,
        digest: row.get(6)?,
    })
}

/// Appends a row.
///
/// # Errors
/// The catalogue failed.
pub fn append(tx: &Tx<'_>, act: &Act) -> Result<(), Error> {
    let last = tx.one(
        "SELECT number, digest FROM audit ORDER BY number DESC LIMIT 1",
        (),
        |row| Ok((row.get::<i64>(0)?, row.get::<String>(1)?)),
    )?;
    let (number, before) = last.unwrap_or((0, BEGINNING.to_owned()));
    let mut entry = Entry {
        number: number + 1,
        at: act.at,
        project: act.project.as_ref().map(ProjectId::to_string).unwrap_or_default(),
        who: act.who.clone(),
        what: act.what.clone(),
        subject: act.subject.clone(),
        digest: String::new(),
    };
    entry.digest = entry.computed(&before);
    tx.execute(
        "INSERT INTO audit (number, at_ms, project_id, who, what, subject, digest) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        (
            entry.number,
            entry.at,
            entry.project,
            entry.who,
            entry.what,
            entry.subject,
            entry.digest,
        ),
    )?;
    Ok(())
}

/// The newest rows, newest first.
///
/// # Errors
/// The catalogue failed.
pub fn newest(tx: &Tx<'_>, limit: u32) -> Result<Vec<Entry>, Error> {
    tx.all(
        "SELECT number, at_ms, project_id, who, what, subject, digest FROM audit ORDER BY number DESC LIMIT ?1",
        (limit,),
        row,
    )
}

/// Reads the whole chain. Returns how many rows it has and the digest of the last one, which holds all of them; or where it
/// is broken first.
///
/// # Errors
/// The catalogue failed.
pub fn verify(tx: &Tx<'_>) -> Result<Result<(i64, String), Broken>, Error> {
    let (mut count, mut before, mut broken) = (0, BEGINNING.to_owned(), None);
    tx.each(
        "SELECT number, at_ms, project_id, who, what, subject, digest FROM audit ORDER BY number",
        (),
        |found| {
            let entry = row(found)?;
            if broken.is_none() && (entry.number != count + 1 || entry.digest != entry.computed(&before)) {
                broken = Some(Broken { number: count + 1 });
            }
            count += 1;
            before = entry.digest;
            Ok(())
        },
    )?;
    Ok(match broken {
        Some(broken) => Err(broken),
        None => Ok((count, before)),
    })
}
