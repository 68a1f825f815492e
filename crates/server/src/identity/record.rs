//! The rows behind credentials, and their SQL.

use crate::catalog::{Error, Row, Tx};
use crate::ids::{Moment, ProjectId, UserId};

/// The only domain (tenant account) of an installation.
pub const DOMAIN: &str = "cachekeep";

/// A project: what credentials are scoped to and data is encrypted for.
#[derive(Debug, Clone)]
pub struct Project {
    /// The id in every path.
    pub id: ProjectId,
    /// Unique name; the first project is named as the region.
    pub name: String,
    /// When it was made.
    pub created_at: Moment,
    /// The operator's age recipient, to which its archive keys are sealed too.
    pub escrow: Option<String>,
    /// Whether the present archive key was printed.
    pub is_key_printed: bool,
    /// Since when its private keys are gone: no backup of it can be read, and none is made.
    pub shredded_at: Option<Moment>,
}

impl Project {
    /// Whether the loss of the data directory would be that of its backups too, as far as we know.
    pub fn is_key_only_here(&self) -> bool {
        self.escrow.is_none() && !self.is_key_printed && self.shredded_at.is_none()
    }
}

/// A user with a password.
#[derive(Debug, Clone)]
pub struct Account {
    /// Its id.
    pub id: UserId,
    /// The project that it may act on.
    pub project_id: ProjectId,
    /// Unique name.
    pub name: String,
    /// See `secrets::hash_password`.
    pub password_hash: String,
    /// When it was made.
    pub created_at: Moment,
    /// When it was revoked.
    pub revoked_at: Option<Moment>,
}

/// An access key; the secret half stays sealed.
#[derive(Debug, Clone)]
pub struct AccessKey {
    /// The public half.
    pub ak: String,
    /// The project that it may act on.
    pub project_id: ProjectId,
    /// The secret half, sealed for `access_key.sk:<ak>`.
    pub sk_sealed: Vec<u8>,
    /// When it was made.
    pub created_at: Moment,
    /// When it was revoked.
    pub revoked_at: Option<Moment>,
}

/// What a known token is good for.
#[derive(Debug, Clone)]
pub struct TokenScope {
    /// Whose token it is.
    pub account_id: UserId,
    /// The project it is scoped to.
    pub project_id: Option<ProjectId>,
    /// When it ends.
    pub expires_at: Moment,
}

/// Adds a project with its age recipient and sealed identity.
///
/// # Errors
/// `Constraint` where the name is taken.
pub fn insert_project(tx: &Tx<'_>, project: &Project, recipient: &str, identity: &[u8]) -> Result<(), Error> {
    tx.execute(
        "INSERT INTO project (id, name, recipient, identity_sealed, created_at_ms) VALUES (?1, ?2, ?3, ?4, ?5)",
        (&project.id, &project.name, recipient, identity, project.created_at),
    )?;
    Ok(())
}

fn project_row(row: &Row<'_>) -> Result<Project, Error> {
    Ok(Project {
        id: row.get(0)?,
        name: row.get(1)?,
        created_at: row.get(2)?,
        escrow: row.get(3)?,
        is_key_printed: row.get(4)?,
        shredded_at: row.get(5)?,
    })
}

macro_rules! project_columns {
    () => {
        "id, name, created_at_ms, escrow_recipient, printed_recipient IS NOT DISTINCT FROM recipient, shredded_at_ms"
    };
}

/// All projects, oldest first.
///
/// # Errors
/// The catalogue failed.
pub fn projects(tx: &Tx<'_>) -> Result<Vec<Project>, Error> {
    tx.all(
        concat!(
            "SELECT ",
            project_columns!(),
            " FROM project ORDER BY created_at_ms, id"
        ),
        (),
        project_row,
    )
}

/// One project.
///
/// # Errors
/// The catalogue failed.
pub fn project(tx: &Tx<'_>, id: &ProjectId) -> Result<Option<Project>, Error> {
    tx.one(
        concat!("SELECT ", project_columns!(), " FROM project WHERE id = ?1"),
        (id,),
        project_row,
    )
}

/// The public half of the project's archive key; `None` where the private half is gone.
///
/// # Errors
/// The catalogue failed.
pub fn project_recipient(tx: &Tx<'_>, id: &ProjectId) -> Result<Option<String>, Error> {
    tx.one(
        "SELECT recipient FROM project WHERE id = ?1 AND shredded_at_ms IS NULL",
        (id,),
        |row| row.get(0),
    )
}

/// The sealed private half of the project's archive key.
///
/// # Errors
/// The catalogue failed.
pub fn project_identity(tx: &Tx<'_>, id: &ProjectId) -> Result<Option<Vec<u8>>, Error> {
    tx.one(
        "SELECT identity_sealed FROM project WHERE id = ?1",
        (id,),
        |row| row.get(0),
    )
}

/// The sealed private half of the key of that recipient, the present one or one from before.
///
/// # Errors
/// The catalogue failed.
pub fn identity_for(tx: &Tx<'_>, id: &ProjectId, recipient: &str) -> Result<Option<Vec<u8>>, Error> {
    tx.one(
        "SELECT identity_sealed FROM project WHERE id = ?1 AND recipient = ?2 UNION ALL \
         SELECT identity_sealed FROM project_old_key WHERE project_id = ?1 AND recipient = ?2",
        (id, recipient),
        |row| row.get(0),
    )
}

/// Recipient and sealed identity of every key of the project, the present one first, then from the newest on.
///
/// # Errors
/// The catalogue failed.
pub fn archive_keys(tx: &Tx<'_>, id: &ProjectId) -> Result<Vec<(String, Vec<u8>)>, Error> {
    tx.all(
        "SELECT recipient, identity_sealed FROM \
         (SELECT recipient, identity_sealed, NULL AS retired FROM project WHERE id = ?1 UNION ALL \
         SELECT recipient, identity_sealed, retired_at_ms FROM project_old_key WHERE project_id = ?1) AS every_key \
         ORDER BY retired IS NOT NULL, retired DESC",
        (id,),
        |row| Ok((row.get(0)?, row.get(1)?)),
    )
}

/// Gives the project a new archive key and keeps the present one for the backups that it closed.
///
/// # Errors
/// The catalogue failed.
pub fn rotate_key(
    tx: &Tx<'_>,
    id: &ProjectId,
    recipient: &str,
    identity: &[u8],
    now: Moment,
) -> Result<(), Error> {
    tx.execute(
        "INSERT INTO project_old_key (recipient, project_id, identity_sealed, retired_at_ms) \
         SELECT recipient, id, identity_sealed, ?2 FROM project WHERE id = ?1",
        (id, now),
    )?;
    tx.execute(
        "UPDATE project SET recipient = ?2, identity_sealed = ?3 WHERE id = ?1",
        (id, recipient, identity),
    )?;
    Ok(())
}

/// Says to whose recipient the project's keys are sealed too, or that they are to nobody's.
///
/// # Errors
/// The catalogue failed.
pub fn set_escrow(tx: &Tx<'_>, id: &ProjectId, recipient: Option<&str>) -> Result<(), Error> {
    tx.execute(
        "UPDATE project SET escrow_recipient = ?2 WHERE id = ?1",
        (id, recipient),
    )?;
    Ok(())
}

/// Remembers that somebody has printed the project's keys.
///
/// # Errors
/// The catalogue failed.
pub fn note_printed(tx: &Tx<'_>, id: &ProjectId) -> Result<(), Error> {
    tx.execute(
        "UPDATE project SET printed_recipient = recipient WHERE id = ?1 AND printed_recipient IS DISTINCT FROM recipient",
        (id,),
    )?;
    Ok(())
}

/// What is left of a private key.
const SHREDDED: [u8; 0] = [];

/// Destroys every private key of the project, for ever; the public halves stay, for they name what is unreadable now.
///
/// # Errors
/// The catalogue failed.
pub fn shred(tx: &Tx<'_>, id: &ProjectId, now: Moment) -> Result<(), Error> {
    tx.execute(
        "UPDATE project SET identity_sealed = ?3, shredded_at_ms = coalesce(shredded_at_ms, ?2) WHERE id = ?1",
        (id, now, SHREDDED),
    )?;
    tx.execute(
        "UPDATE project_old_key SET identity_sealed = ?2 WHERE project_id = ?1",
        (id, SHREDDED),
    )?;
    Ok(())
}

/// Adds a user.
///
/// # Errors
/// `Constraint` where the name is taken.
pub fn insert_account(tx: &Tx<'_>, account: &Account) -> Result<(), Error> {
    tx.execute(
        "INSERT INTO account (id, project_id, name, password_hash, created_at_ms) VALUES (?1, ?2, ?3, ?4, ?5)",
        (&account.id, &account.project_id, &account.name, &account.password_hash, account.created_at),
    )?;
    Ok(())
}

const ACCOUNT_BY_NAME: &str = "SELECT id, project_id, name, password_hash, created_at_ms, revoked_at_ms \
     FROM account WHERE name = ?1";
const ACCOUNT_BY_ID: &str = "SELECT id, project_id, name, password_hash, created_at_ms, revoked_at_ms \
     FROM account WHERE id = ?1";
const ACCOUNTS: &str = "SELECT id, project_id, name, password_hash, created_at_ms, revoked_at_ms \
     FROM account ORDER BY created_at_ms, id";

fn account_row(row: &Row<'_>) -> Result<Account, Error> {
    Ok(Account {
        id: row.get(0)?,
        project_id: row.get(1)?,
        name: row.get(2)?,
        password_hash: row.get(3)?,
        created_at: row.get(4)?,
        revoked_at: row.get(5)?,
    })
}

/// The user of that name, revoked or not.
///
/// # Errors
/// The catalogue failed.
pub fn account_by_name(tx: &Tx<'_>, name: &str) -> Result<Option<Account>, Error> {
    tx.one(ACCOUNT_BY_NAME, (name,), account_row)
}

/// The user of that id, revoked or not.
///
/// # Errors
/// The catalogue failed.
pub fn account_by_id(tx: &Tx<'_>, id: &UserId) -> Result<Option<Account>, Error> {
    tx.one(ACCOUNT_BY_ID, (id,), account_row)
}

/// All users, oldest first.
///
/// # Errors
/// The catalogue failed.
pub fn accounts(tx: &Tx<'_>) -> Result<Vec<Account>, Error> {
    tx.all(ACCOUNTS, (), account_row)
}

/// Revokes a user and every token of it. `false` where there is none, or it was revoked before.
///
/// # Errors
/// The catalogue failed.
pub fn revoke_account(tx: &Tx<'_>, name: &str, now: Moment) -> Result<bool, Error> {
    tx.execute(
        "DELETE FROM token WHERE account_id IN (SELECT id FROM account WHERE name = ?1)",
        (name,),
    )?;
    let changed = tx.execute(
        "UPDATE account SET revoked_at_ms = ?2 WHERE name = ?1 AND revoked_at_ms IS NULL",
        (name, now),
    )?;
    Ok(changed == 1)
}

/// Adds an access key.
///
/// # Errors
/// The catalogue failed.
pub fn insert_access_key(tx: &Tx<'_>, key: &AccessKey) -> Result<(), Error> {
    tx.execute(
        "INSERT INTO access_key (ak, project_id, sk_sealed, created_at_ms) VALUES (?1, ?2, ?3, ?4)",
        (&key.ak, &key.project_id, &key.sk_sealed, key.created_at),
    )?;
    Ok(())
}

fn access_key_row(row: &Row<'_>) -> Result<AccessKey, Error> {
    Ok(AccessKey {
        ak: row.get(0)?,
        project_id: row.get(1)?,
        sk_sealed: row.get(2)?,
        created_at: row.get(3)?,
        revoked_at: row.get(4)?,
    })
}

/// The access key, revoked or not.
///
/// # Errors
/// The catalogue failed.
pub fn access_key(tx: &Tx<'_>, ak: &str) -> Result<Option<AccessKey>, Error> {
    tx.one(
        "SELECT ak, project_id, sk_sealed, created_at_ms, revoked_at_ms FROM access_key WHERE ak = ?1",
        (ak,),
        access_key_row,
    )
}

/// All access keys, oldest first.
///
/// # Errors
/// The catalogue failed.
pub fn access_keys(tx: &Tx<'_>) -> Result<Vec<AccessKey>, Error> {
    tx.all(
        "SELECT ak, project_id, sk_sealed, created_at_ms, revoked_at_ms FROM access_key ORDER BY created_at_ms, ak",
        (),
        access_key_row,
    )
}

/// Revokes an access key. `false` where there is none, or it was revoked before.
///
/// # Errors
/// The catalogue failed.
pub fn revoke_access_key(tx: &Tx<'_>, ak: &str, now: Moment) -> Result<bool, Error> {
    let changed = tx.execute(
        "UPDATE access_key SET revoked_at_ms = ?2 WHERE ak = ?1 AND revoked_at_ms IS NULL",
        (ak, now),
    )?;
    Ok(changed == 1)
}

/// Revokes every user, token and access key of a project; how many users and keys that were.
///
/// # Errors
/// The catalogue failed.
pub fn revoke_project(tx: &Tx<'_>, id: &ProjectId, now: Moment) -> Result<usize, Error> {
    tx.execute(
        "DELETE FROM token WHERE account_id IN (SELECT id FROM account WHERE project_id = ?1)",
        (id,),
    )?;
    let users = tx.execute(
        "UPDATE account SET revoked_at_ms = ?2 WHERE project_id = ?1 AND revoked_at_ms IS NULL",
        (id, now),
    )?;
    let keys = tx.execute(
        "UPDATE access_key SET revoked_at_ms = ?2 WHERE project_id = ?1 AND revoked_at_ms IS NULL",
        (id, now),
    )?;
    Ok(users + keys)
}

/// Remembers a token by its hash, and forgets the expired ones.
///
/// # Errors
/// The catalogue failed.
pub fn insert_token(tx: &Tx<'_>, hash: &[u8; 32], scope: &TokenScope, now: Moment) -> Result<(), Error> {
    tx.execute(
        "DELETE FROM token WHERE expires_at_ms < ?1",
        (now.plus_seconds(-3600),),
    )?;
    tx.execute(
        "INSERT INTO token (hash, account_id, project_id, issued_at_ms, expires_at_ms) VALUES (?1, ?2, ?3, ?4, ?5)",
        (hash.as_slice(), &scope.account_id, &scope.project_id, now, scope.expires_at),
    )?;
    Ok(())
}

/// What the token of this hash is good for; expired ones are still known for an hour, so that the client can be
/// told.
///
/// # Errors
/// The catalogue failed.
pub fn token(tx: &Tx<'_>, hash: &[u8; 32]) -> Result<Option<TokenScope>, Error> {
    tx.one(
        "SELECT account_id, project_id, expires_at_ms FROM token WHERE hash = ?1",
        (hash.as_slice(),),
        |row| {
            Ok(TokenScope {
                account_id: row.get(0)?,
                project_id: row.get(1)?,
                expires_at: row.get(2)?,
            })
        },
    )
}
