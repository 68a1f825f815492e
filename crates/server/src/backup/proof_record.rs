//! What a verify found out about a backup, on the backup's row, and its SQL.

use crate::catalog::{Error, FromSql, Row, Tx, Value};
use crate::ids::{BackupId, Moment};

/// How much was looked at: see `engine::proof`. Ordered: each holds all that is before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProofLevel {
    /// Every stored byte is the one that was stored.
    Stored,
    /// And they are the valid data of the capture.
    Parsed,
    /// And an engine has loaded them.
    Proven,
}

impl ProofLevel {
    const ALL: [ProofLevel; 3] = [ProofLevel::Stored, ProofLevel::Parsed, ProofLevel::Proven];

    /// Reads the word.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.word() == word)
    }

    /// The word in the table and on the wire.
    pub fn word(self) -> &'static str {
        match self {
            ProofLevel::Stored => "stored",
            ProofLevel::Parsed => "parsed",
            ProofLevel::Proven => "proven",
        }
    }
}

impl FromSql for ProofLevel {
    fn from_sql(value: Value<'_>) -> Option<Self> {
        Self::from_word(value.text()?)
    }
}

/// The verify that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// How much was looked at.
    pub level: ProofLevel,
    /// When it ended.
    pub at: Moment,
    /// Version of the engine that loaded it, or did not; for [`ProofLevel::Proven`].
    pub engine: Option<String>,
    /// How long it took to load.
    pub load_ms: Option<i64>,
    /// What is wrong with the backup; `None`: it holds.
    pub failure: Option<String>,
}

/// Reads five columns from `first` on, in the order of the table.
pub(super) fn read(row: &Row<'_>, first: usize) -> Result<Option<Proof>, Error> {
    let (level, at): (Option<ProofLevel>, Option<Moment>) = (row.get(first)?, row.get(first + 1)?);
    let Some((level, at)) = level.zip(at) else {
        return Ok(None);
    };
    Ok(Some(Proof {
        level,
        at,
        engine: row.get(first + 2)?,
        load_ms: row.get(first + 3)?,
        failure: row.get(first + 4)?,
    }))
}

/// Writes what a verify of a backup that succeeded found. One that holds at a lower level says nothing of what a higher one
/// found, good or bad, and that stays.
///
/// # Errors
/// The catalogue failed.
pub fn set(tx: &Tx<'_>, id: &BackupId, proof: &Proof) -> Result<(), Error> {
    let before = tx.one("SELECT proof_level FROM backup WHERE id = ?1", (id,), |row| {
        row.get::<Option<ProofLevel>>(0)
    })?;
    if proof.failure.is_none() && before.flatten().is_some_and(|before| before > proof.level) {
        return Ok(());
    }
    tx.execute(
        "UPDATE backup SET proof_level = ?2, proof_at_ms = ?3, proof_engine = ?4, proof_load_ms = ?5, proof_failure = ?6 \
         WHERE id = ?1 AND status = 'succeeded'",
        (
            id,
            proof.level.word(),
            proof.at,
            &proof.engine,
            proof.load_ms,
            &proof.failure,
        ),
    )?;
    Ok(())
}
