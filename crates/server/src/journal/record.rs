//! The rows that are mirrored, what has not been, and their SQL.

use crate::catalog::image::Image;
use crate::catalog::{Error, Tx};
use crate::ids::{BackupId, ProjectId, StorageId};

/// What an entry holds rows of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// A project with its archive key.
    Project,
    /// An archive key that a project had before.
    OldKey,
    /// A remote store with its sealed credentials.
    Storage,
    /// Where new backups go.
    Choice,
    /// An instance with its sealed passwords.
    Instance,
    /// A generation.
    Generation,
    /// A schedule of an instance.
    Schedule,
    /// A backup record.
    Backup,
    /// A restore record.
    Restore,
}

impl Subject {
    /// In the order in which one refers to the other.
    pub const ALL: [Subject; 9] = [
        Subject::Project,
        Subject::OldKey,
        Subject::Storage,
        Subject::Choice,
        Subject::Instance,
        Subject::Generation,
        Subject::Schedule,
        Subject::Backup,
        Subject::Restore,
    ];

    /// The word in the outbox and in entries.
    pub fn word(self) -> &'static str {
        match self {
            Subject::Project => "project",
            Subject::OldKey => "old_key",
            Subject::Storage => "storage",
            Subject::Choice => "choice",
            Subject::Instance => "instance",
            Subject::Generation => "generation",
            Subject::Schedule => "schedule",
            Subject::Backup => "backup",
            Subject::Restore => "restore",
        }
    }

    /// Reads [`Subject::word`].
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|subject| subject.word() == word)
    }

    fn select(self) -> &'static str {
        match self {
            Subject::Project => "SELECT * FROM project WHERE id = ?1",
            Subject::OldKey => "SELECT * FROM project_old_key WHERE recipient = ?1",
            Subject::Storage => "SELECT * FROM storage WHERE id = ?1",
            Subject::Choice => "SELECT * FROM storage_default WHERE coalesce(project_id, '') = ?1",
            Subject::Instance => "SELECT * FROM instance WHERE id = ?1",
            Subject::Generation => "SELECT * FROM generation WHERE id = ?1",
            Subject::Schedule => "SELECT * FROM schedule WHERE id = ?1",
            Subject::Backup => "SELECT * FROM backup WHERE id = ?1",
            Subject::Restore => "SELECT * FROM restore WHERE id = ?1",
        }
    }

    pub(super) fn table_and_key(self) -> (&'static str, &'static str) {
        match self {
            Subject::Project => ("project", "id"),
            Subject::OldKey => ("project_old_key", "recipient"),
            Subject::Storage => ("storage", "id"),
            Subject::Choice => ("storage_default", "coalesce(project_id, '')"),
            Subject::Instance => ("instance", "id"),
            Subject::Generation => ("generation", "id"),
            Subject::Schedule => ("schedule", "id"),
            Subject::Backup => ("backup", "id"),
            Subject::Restore => ("restore", "instance_id, ordinal"),
        }
    }
}

/// A note that a row has changed.
#[derive(Debug, Clone)]
pub struct Note {
    /// What kind of row.
    pub subject: Subject,
    /// Which one.
    pub id: String,
    /// How often it had changed when the note was read.
    pub changes: i64,
}

/// Projects with notes. Of one that is shredded nobody is told anything: what is sealed to a key that is gone tells nothing.
///
/// # Errors
/// The catalogue failed.
pub fn noted(tx: &Tx<'_>) -> Result<Vec<ProjectId>, Error> {
    tx.all(
        "SELECT id FROM project WHERE shredded_at_ms IS NULL \
         AND EXISTS (SELECT 1 FROM outbox WHERE outbox.project_id = project.id) ORDER BY created_at_ms, id",
        (),
        |row| row.get(0),
    )
}

/// The oldest notes of a project.
///
/// # Errors
/// The catalogue failed.
pub fn notes(tx: &Tx<'_>, project: &ProjectId, limit: u64) -> Result<Vec<Note>, Error> {
    tx.all(
        "SELECT subject, id, changes FROM outbox WHERE project_id = ?1 ORDER BY number LIMIT ?2",
        (project, limit),
        |row| {
            let word: String = row.get(0)?;
            Ok(Note {
                subject: Subject::from_word(&word)
                    .ok_or_else(|| Error::Unreadable(format!("{word} is no subject of the outbox")))?,
                id: row.get(1)?,
                changes: row.get(2)?,
            })
        },
    )
}

/// Takes away what an entry holds; a row that has changed since then stays noted.
///
/// # Errors
/// The catalogue failed.
pub fn forget(tx: &Tx<'_>, project: &ProjectId, notes: &[Note]) -> Result<(), Error> {
    for note in notes {
        tx.execute(
            "DELETE FROM outbox WHERE project_id = ?1 AND subject = ?2 AND id = ?3 AND changes = ?4",
            (project, note.subject.word(), &note.id, note.changes),
        )?;
    }
    Ok(())
}

/// The row of a note as it is now; `None` where it is gone.
///
/// # Errors
/// The catalogue failed.
pub fn image(tx: &Tx<'_>, note: &Note) -> Result<Option<Image>, Error> {
    tx.image(note.subject.select(), (&note.id,))
}

/// The rows that a backup rests on, and its own.
///
/// # Errors
/// The catalogue failed.
pub fn rows_of_backup(
    tx: &Tx<'_>,
    project: &ProjectId,
    backup: &BackupId,
) -> Result<Vec<(Subject, Image)>, Error> {
    let named = |subject: Subject, sql: &'static str| {
        tx.all(sql, (project, backup), |row| row.get::<String>(0))
            .map(|ids| ids.into_iter().map(move |id| (subject, id)).collect::<Vec<_>>())
    };
    let all = [
        named(
            Subject::Project,
            "SELECT id FROM project WHERE id = ?1 AND CAST(?2 AS TEXT) IS NOT NULL",
        )?,
        named(
            Subject::OldKey,
            "SELECT recipient FROM project_old_key WHERE project_id = ?1 AND CAST(?2 AS TEXT) IS NOT NULL",
        )?,
        named(
            Subject::Storage,
            "SELECT id FROM storage WHERE coalesce(project_id, ?1) = ?1 AND CAST(?2 AS TEXT) IS NOT NULL",
        )?,
        named(
            Subject::Choice,
            "SELECT coalesce(project_id, '') FROM storage_default WHERE coalesce(project_id, ?1) = ?1 AND CAST(?2 AS TEXT) IS NOT NULL",
        )?,
        named(
            Subject::Instance,
            "SELECT instance_id FROM backup WHERE project_id = ?1 AND id = ?2",
        )?,
        named(
            Subject::Backup,
            "SELECT id FROM backup WHERE project_id = ?1 AND id = ?2",
        )?,
    ];
    let mut rows = Vec::new();
    for (subject, id) in all.into_iter().flatten() {
        if let Some(image) = tx.image(subject.select(), (&id,))? {
            rows.push((subject, image));
        }
    }
    Ok(rows)
}

/// How far the mirror of a project is.
#[derive(Debug, Clone)]
pub struct Journal {
    /// The store; `None`: the local folder.
    pub storage_id: Option<StorageId>,
    /// Whom the newest entries are sealed to.
    pub recipient: String,
    /// The newest number that was given out.
    pub begun: u64,
    /// The newest entry that lies in the store; `None`: the next one begins a chain.
    pub written: Option<i64>,
}

/// The journal of a project; `None` before its first entry.
///
/// # Errors
/// The catalogue failed.
pub fn journal(tx: &Tx<'_>, project: &ProjectId) -> Result<Option<Journal>, Error> {
    tx.one(
        "SELECT storage_id, recipient, begun, written FROM journal WHERE project_id = ?1",
        (project,),
        |row| {
            Ok(Journal {
                storage_id: row.get(0)?,
                recipient: row.get(1)?,
                begun: row.get(2)?,
                written: row.get(3)?,
            })
        },
    )
}

/// Begins a chain in a store that has none of this project, or under another key: every row is noted.
///
/// # Errors
/// The catalogue failed.
pub fn begin_chain(
    tx: &Tx<'_>,
    project: &ProjectId,
    storage: Option<&StorageId>,
    recipient: &str,
) -> Result<(), Error> {
    tx.execute(
        "INSERT INTO journal (project_id, storage_id, recipient) VALUES (?1, ?2, ?3) \
         ON CONFLICT (project_id) DO UPDATE SET storage_id = excluded.storage_id, recipient = excluded.recipient, written = NULL",
        (project, storage, recipient),
    )?;
    for all in [
        "INSERT INTO outbox (project_id, subject, id) SELECT id, 'project', id FROM project WHERE id = ?1 \
         ON CONFLICT (project_id, subject, id) DO UPDATE SET changes = outbox.changes + 1",
        "INSERT INTO outbox (project_id, subject, id) SELECT ?1, 'old_key', recipient FROM project_old_key \
         WHERE project_id = ?1 ON CONFLICT (project_id, subject, id) DO UPDATE SET changes = outbox.changes + 1",
        "INSERT INTO outbox (project_id, subject, id) SELECT ?1, 'storage', id FROM storage \
         WHERE coalesce(project_id, ?1) = ?1 ON CONFLICT (project_id, subject, id) DO UPDATE SET changes = outbox.changes + 1",
        "INSERT INTO outbox (project_id, subject, id) SELECT ?1, 'choice', coalesce(project_id, '') FROM storage_default \
         WHERE coalesce(project_id, ?1) = ?1 ON CONFLICT (project_id, subject, id) DO UPDATE SET changes = outbox.changes + 1",
        "INSERT INTO outbox (project_id, subject, id) SELECT ?1, 'instance', id FROM instance WHERE project_id = ?1 \
         ON CONFLICT (project_id, subject, id) DO UPDATE SET changes = outbox.changes + 1",
        "INSERT INTO outbox (project_id, subject, id) SELECT ?1, 'generation', generation.id FROM instance \
         JOIN generation ON generation.instance_id = instance.id WHERE instance.project_id = ?1 ON CONFLICT (project_id, subject, id) DO UPDATE SET changes = outbox.changes + 1",
        "INSERT INTO outbox (project_id, subject, id) SELECT ?1, 'schedule', id FROM schedule WHERE project_id = ?1 \
         ON CONFLICT (project_id, subject, id) DO UPDATE SET changes = outbox.changes + 1",
        "INSERT INTO outbox (project_id, subject, id) SELECT ?1, 'backup', backup.id FROM instance \
         JOIN backup ON backup.instance_id = instance.id WHERE instance.project_id = ?1 \
         ON CONFLICT (project_id, subject, id) DO UPDATE SET changes = outbox.changes + 1",
        "INSERT INTO outbox (project_id, subject, id) SELECT ?1, 'restore', restore.id FROM instance \
         JOIN restore ON restore.instance_id = instance.id WHERE instance.project_id = ?1 \
         ON CONFLICT (project_id, subject, id) DO UPDATE SET changes = outbox.changes + 1",
    ] {
        tx.execute(all, (project,))?;
    }
    Ok(())
}

/// Takes the next entry's number, for ever.
///
/// # Errors
/// The catalogue failed.
pub fn next_number(tx: &Tx<'_>, project: &ProjectId) -> Result<i64, Error> {
    let number = tx.one(
        "UPDATE journal SET begun = begun + 1 WHERE project_id = ?1 RETURNING begun",
        (project,),
        |row| row.get(0),
    )?;
    number.ok_or_else(|| Error::Constraint("an entry of a journal that is not begun".to_owned()))
}

/// An entry that follows `before` lies in the store. `false`: another one does that follows it.
///
/// # Errors
/// The catalogue failed.
pub fn written(tx: &Tx<'_>, project: &ProjectId, before: Option<i64>, number: i64) -> Result<bool, Error> {
    let changed = tx.execute(
        "UPDATE journal SET written = ?3 WHERE project_id = ?1 AND written IS NOT DISTINCT FROM ?2",
        (project, before, number),
    )?;
    Ok(changed == 1)
}

/// Where a rebuilt catalogue goes on: after the numbers that are taken, with a chain of its own.
///
/// # Errors
/// The catalogue failed.
pub fn continue_after(
    tx: &Tx<'_>,
    project: &ProjectId,
    storage: Option<&StorageId>,
    number: u64,
) -> Result<(), Error> {
    tx.execute(
        "INSERT INTO journal (project_id, storage_id, recipient, begun) \
         SELECT id, ?2, recipient, ?3 FROM project WHERE id = ?1",
        (project, storage, number),
    )?;
    Ok(())
}

/// No number up to this one is given out any more.
///
/// # Errors
/// The catalogue failed.
pub fn skip_to(tx: &Tx<'_>, project: &ProjectId, number: u64) -> Result<(), Error> {
    tx.execute(
        "UPDATE journal SET begun = ?2 WHERE project_id = ?1 AND begun < ?2",
        (project, number),
    )?;
    Ok(())
}

/// The store is told no more of this project.
///
/// # Errors
/// The catalogue failed.
pub fn forget_all(tx: &Tx<'_>, project: &ProjectId) -> Result<(), Error> {
    tx.execute("DELETE FROM outbox WHERE project_id = ?1", (project,))?;
    Ok(())
}

/// How many rows of a project the store has not been told of.
///
/// # Errors
/// The catalogue failed.
pub fn unsent(tx: &Tx<'_>, project: &ProjectId) -> Result<u64, Error> {
    let count = tx.one(
        "SELECT count(*) FROM outbox WHERE project_id = ?1",
        (project,),
        |row| row.get(0),
    )?;
    Ok(count.unwrap_or(0))
}
