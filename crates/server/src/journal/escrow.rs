//! The keys of a project, each sealed to a recipient of the operator's: one small object for each, in the store of the
//! project's journal. `age -d -i OPERATORS-KEY OBJECT` prints the identity that opens the backups, without cachekeep and
//! without keys/master.key. Removing the objects, and the catalogue's column, destroys the keys.

use engine::keys::{Identity, Recipient};
use engine::store::Store;
use engine::{Error, Kind};

use super::entry::key_name;
use crate::app::App;
use crate::identity::record::{self as identity, Project};
use crate::ids::ProjectId;
use crate::instance::job::catalog_failed;
use crate::secrets::{hex, sha256};

/// The name of the object with the key of `recipient`, sealed to `operator`.
pub fn name(project: &ProjectId, recipient: &str, operator: &str) -> String {
    let short = |text: &str| hex(&sha256(text.as_bytes()))[..16].to_owned();
    format!("escrow/{project}/{}-{}.age", short(recipient), short(operator))
}

/// Lays every key of the project into a store, each once, where it has an operator's recipient.
///
/// # Errors
/// [`Kind::Key`] where the recipient is none or a key does not open; those of the catalogue and the store.
pub fn put(app: &App, store: &Store, project: &ProjectId) -> Result<u64, Error> {
    let (row, keys) = app
        .catalog
        .read(|tx| {
            Ok((
                identity::project(tx, project)?,
                identity::archive_keys(tx, project)?,
            ))
        })
        .map_err(catalog_failed)?;
    let Some(Project {
        escrow: Some(operator),
        name: of,
        ..
    }) = row
    else {
        return Ok(0);
    };
    let to = Recipient::parse(&operator)?;
    let mut count = 0;
    for (recipient, sealed) in keys {
        let name = name(project, &recipient, &operator);
        count += 1;
        if store.exists(&name)? {
            continue;
        }
        let text = app
            .vault
            .master
            .open(&format!("project.identity:{project}"), &sealed)?;
        let identity = Identity::parse(&text)?;
        let text = format!(
            "# project: {of} ({project})\n# public key: {recipient}\n{}\n",
            identity.to_secret().expose()
        );
        store.put(&name, &to.seal(text.as_bytes())?)?;
    }
    Ok(count)
}

/// Removes from a store what is sealed to `operator`.
///
/// # Errors
/// Those of the catalogue and the store.
pub fn remove(app: &App, store: &Store, project: &ProjectId, operator: &str) -> Result<(), Error> {
    for recipient in recipients(app, project)? {
        store.delete(&name(project, &recipient, operator))?;
    }
    Ok(())
}

/// Removes every key of the project from a store: those of the journal too.
///
/// # Errors
/// Those of the catalogue and the store; [`Kind::NotFound`] for a project that is not known.
pub fn destroy(app: &App, store: &Store, project: &ProjectId) -> Result<(), Error> {
    let row = app
        .catalog
        .read(|tx| identity::project(tx, project))
        .map_err(catalog_failed)?
        .ok_or_else(|| Error::new(Kind::NotFound, "destroy keys", project.to_string()))?;
    for recipient in recipients(app, project)? {
        store.delete(&key_name(project, &recipient))?;
    }
    match row.escrow {
        Some(operator) => remove(app, store, project, &operator),
        None => Ok(()),
    }
}

fn recipients(app: &App, project: &ProjectId) -> Result<Vec<String>, Error> {
    let keys = app
        .catalog
        .read(|tx| identity::archive_keys(tx, project))
        .map_err(catalog_failed)?;
    Ok(keys.into_iter().map(|(recipient, _)| recipient).collect())
}
