//! Which versions the catalogue has had, and how one becomes the next (ADR 84).
//!
//! A version has a number. What a later version adds, older programs pass over: columns with a default, tables and indexes. So a
//! program of an older version goes on beside a newer catalogue, until a step says by `least_program` that it must not: each of its
//! transactions that would change something is refused from then on. Only a catalogue that nodes share has programs of several
//! versions; that in a file has one, which has to know it.
//!
//! Deliberately absent: steps back. Before a step the file is copied, and the copy is the way back; of PostgreSQL it is its
//! operator's backup.

use std::path::{Path, PathBuf};

use super::{Error, postgres, sqlite};

/// The version of `schema.sql`. From the first release on a change of the schema is a new number and a step to it.
pub const SCHEMA_VERSION: i64 = 2;

/// From one version to the next.
pub struct Step {
    /// The version before.
    pub from: i64,
    /// Digest of the form that a file of that version has; see `sqlite::form`.
    pub sqlite_form: &'static str,
    /// Digest of the schema's text of that version, as `catalogue.form` has it.
    pub postgres_form: &'static str,
    /// What makes the next version of it, and says who may go on beside that.
    pub sql: &'static str,
}

/// All steps, oldest first.
pub const STEPS: &[Step] = &[Step {
    from: 1,
    sqlite_form: "97400a51d508aa013ee8bf5b4665597fb94430dda47a9a1b96aee8514e2c31d2",
    postgres_form: "0c736778be01b35fe5c001af02d2c8e773a127511139dc7aa1f515f9579b857b",
    sql: include_str!("steps/version-2.sql"),
}];

/// What a migration did, or would do.
#[derive(Debug, PartialEq, Eq)]
pub struct Migration {
    /// The version that was found.
    pub from: i64,
    /// The version that it has then.
    pub to: i64,
    /// The file as it was before, of a catalogue in a file.
    pub copy: Option<PathBuf>,
}

/// Brings a file to [`SCHEMA_VERSION`]. Nobody else may have it open. All steps are one transaction, after a copy beside it.
///
/// # Errors
/// [`Error::Unusable`] where it is none of ours, or newer; nothing is changed then.
pub fn migrate_file(path: &Path, is_dry: bool) -> Result<Migration, Error> {
    sqlite::migrate(path, is_dry)
}

/// As [`migrate_file`], of a database of PostgreSQL: in one transaction, and without a copy. Nodes may go on meanwhile.
///
/// # Errors
/// As [`migrate_file`]; [`Error::Away`].
pub fn migrate_database(url: &str, is_dry: bool) -> Result<Migration, Error> {
    postgres::Database::migrate(url, is_dry)
}

/// Where the copy of a file is that had that version.
pub fn copy_of(path: &Path, version: i64) -> PathBuf {
    path.with_extension(format!("version-{version}.sqlite"))
}

/// Where a copy of a file lies while it is put into the store.
pub fn copy_of_now(path: &Path) -> PathBuf {
    path.with_extension("copy.sqlite")
}

/// The version of a file that is whole, and that this program opens or migrates.
///
/// # Errors
/// [`Error::Unusable`] where it is damaged, none of ours, or newer.
pub fn check_file(path: &Path) -> Result<i64, Error> {
    sqlite::check(path)
}

/// Destroys the copies of a file: they hold sealed what has since been destroyed in it.
///
/// # Errors
/// The first that is left, and why.
pub fn forget_copies(path: &Path) -> Result<(), (PathBuf, std::io::Error)> {
    for version in 1..SCHEMA_VERSION {
        let copy = copy_of(path, version);
        for file in [copy.with_extension("part"), copy] {
            overwrite(&file).map_err(|error| (file, error))?;
        }
    }
    Ok(())
}

/// Overwrites a file on the disk and removes it; one that is not there is removed already.
///
/// # Errors
/// It cannot be written or removed.
pub fn overwrite(copy: &Path) -> std::io::Result<()> {
    use std::io::Write as _;
    let mut file = match std::fs::OpenOptions::new().write(true).open(copy) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    let nothing = [0; 65_536];
    let mut left = file.metadata()?.len();
    while left > 0 {
        let part = nothing.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        file.write_all(&nothing[..part])?;
        left -= part as u64;
    }
    file.sync_all()?;
    std::fs::remove_file(copy)
}

/// The steps that lead from there to here; `None`: there are none from such a version.
pub fn steps_from(version: i64) -> Option<&'static [Step]> {
    let at = STEPS.iter().position(|step| step.from == version)?;
    Some(&STEPS[at..])
}

/// What is said of a version that no step leads from.
pub fn unknown(version: i64) -> String {
    format!(
        "has catalogue version {version}, this program knows versions up to {SCHEMA_VERSION}: use the program that wrote it, or a newer one"
    )
}

#[cfg(test)]
mod tests;
