//! The rows of the storages, which never change while the service runs but for what a probe finds, and their SQL.

use crate::catalog::{Error, Row, Tx};
use crate::ids::{Moment, ProjectId, StorageId};

/// A remote object store.
#[derive(Debug, Clone)]
pub struct Storage {
    /// Its id.
    pub id: StorageId,
    /// Unique name.
    pub name: String,
    /// The only project that may use it; `None`: every one.
    pub project_id: Option<ProjectId>,
    /// `s3` or `obs`.
    pub kind: String,
    /// `https://host`.
    pub endpoint: String,
    /// Its bucket.
    pub bucket: String,
    /// Put before every object name.
    pub prefix: String,
    /// What requests are signed for.
    pub region: String,
    /// Sealed for `storage.access_key:<id>`.
    pub access_key_sealed: Vec<u8>,
    /// Sealed for `storage.secret_key:<id>`.
    pub secret_key_sealed: Vec<u8>,
    /// JSON: what the newest probe found.
    pub capabilities: Option<String>,
    /// When it was added.
    pub created_at: Moment,
}

macro_rules! columns {
    () => {
        "id, name, project_id, kind, endpoint, bucket, prefix, region, access_key_sealed, secret_key_sealed, capabilities, \
         created_at_ms"
    };
}

fn row(row: &Row<'_>) -> Result<Storage, Error> {
    Ok(Storage {
        id: row.get(0)?,
        name: row.get(1)?,
        project_id: row.get(2)?,
        kind: row.get(3)?,
        endpoint: row.get(4)?,
        bucket: row.get(5)?,
        prefix: row.get(6)?,
        region: row.get(7)?,
        access_key_sealed: row.get(8)?,
        secret_key_sealed: row.get(9)?,
        capabilities: row.get(10)?,
        created_at: row.get(11)?,
    })
}

/// Adds a storage.
///
/// # Errors
/// `Constraint` where the name is taken.
pub fn insert(tx: &Tx<'_>, storage: &Storage) -> Result<(), Error> {
    tx.execute(
        concat!(
            "INSERT INTO storage (",
            columns!(),
            ") VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)"
        ),
        (
            &storage.id,
            &storage.name,
            &storage.project_id,
            &storage.kind,
            &storage.endpoint,
            &storage.bucket,
            &storage.prefix,
            &storage.region,
            &storage.access_key_sealed,
            &storage.secret_key_sealed,
            &storage.capabilities,
            storage.created_at,
        ),
    )?;
    Ok(())
}

/// The storage of that id.
///
/// # Errors
/// The catalogue failed.
pub fn load(tx: &Tx<'_>, id: &StorageId) -> Result<Option<Storage>, Error> {
    tx.one(
        concat!("SELECT ", columns!(), " FROM storage WHERE id = ?1"),
        (id,),
        row,
    )
}

/// All storages, oldest first.
///
/// # Errors
/// The catalogue failed.
pub fn all(tx: &Tx<'_>) -> Result<Vec<Storage>, Error> {
    tx.all(
        concat!("SELECT ", columns!(), " FROM storage ORDER BY created_at_ms, id"),
        (),
        row,
    )
}

/// Gives a storage of a rebuilt catalogue the credentials that it was rebuilt with.
///
/// # Errors
/// The catalogue failed.
pub fn set_credentials(
    tx: &Tx<'_>,
    id: &StorageId,
    access_key_sealed: &[u8],
    secret_key_sealed: &[u8],
) -> Result<(), Error> {
    tx.execute(
        "UPDATE storage SET access_key_sealed = ?2, secret_key_sealed = ?3 WHERE id = ?1",
        (id, access_key_sealed, secret_key_sealed),
    )?;
    Ok(())
}

/// Keeps what a probe found.
///
/// # Errors
/// The catalogue failed.
pub fn set_capabilities(tx: &Tx<'_>, id: &StorageId, capabilities: &str) -> Result<(), Error> {
    tx.execute(
        "UPDATE storage SET capabilities = ?2 WHERE id = ?1",
        (id, capabilities),
    )?;
    Ok(())
}

/// Chooses where new backups of a project go, or of every project without a choice of its own. `storage` is `None`
/// for the local folder.
///
/// # Errors
/// The catalogue failed.
pub fn set_default(
    tx: &Tx<'_>,
    project: Option<&ProjectId>,
    storage: Option<&StorageId>,
) -> Result<(), Error> {
    tx.execute(
        "DELETE FROM storage_default WHERE coalesce(project_id, '') = coalesce(?1, '')",
        (project,),
    )?;
    tx.execute(
        "INSERT INTO storage_default (project_id, storage_id) VALUES (?1, ?2)",
        (project, storage),
    )?;
    Ok(())
}

/// Where new backups go.
#[derive(Debug, Clone)]
pub struct Choice {
    /// Whose; `None`: of every project without a choice of its own.
    pub project_id: Option<ProjectId>,
    /// `None`: the local folder.
    pub storage_id: Option<StorageId>,
}

/// All choices that were made.
///
/// # Errors
/// The catalogue failed.
pub fn defaults(tx: &Tx<'_>) -> Result<Vec<Choice>, Error> {
    tx.all(
        "SELECT project_id, storage_id FROM storage_default ORDER BY project_id",
        (),
        |row| {
            Ok(Choice {
                project_id: row.get(0)?,
                storage_id: row.get(1)?,
            })
        },
    )
}

/// Where a new backup of the project goes; `None`: the local folder.
///
/// # Errors
/// The catalogue failed.
pub fn default_of(tx: &Tx<'_>, project: &ProjectId) -> Result<Option<StorageId>, Error> {
    let chosen = tx.one(
        "SELECT storage_id FROM storage_default WHERE project_id = ?1 OR project_id IS NULL \
         ORDER BY project_id IS NULL LIMIT 1",
        (project,),
        |row| row.get(0),
    )?;
    Ok(chosen.flatten())
}
