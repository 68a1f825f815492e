//! Mirrored rows back into the catalogue. Each on its own: one that does not fit is reported and keeps no other one out.
//!
//! A row may not fit because of what is lost between it and an earlier one: the deletion of an instance that had the
//! port, the move of a record to another ordinal. Then the newer one is true, and the older one gives way.

use serde_json::{Value, json};

use super::record;
use crate::catalog::image::Image;
use crate::catalog::{Error, Tx};
use crate::ids::{InstanceId, ProjectId};
use crate::journal::record::Subject;

/// Most rows that a report names; the others are counted.
const NAMED_MAX: usize = 1000;

/// What does not fit, or had to be changed to fit.
#[derive(Debug, Default)]
pub(super) struct Misfits {
    /// The first ones, each in words.
    pub named: Vec<String>,
    /// All.
    pub count: u64,
}

impl Misfits {
    fn add(&mut self, what: impl FnOnce() -> String) {
        self.count += 1;
        if self.named.len() < NAMED_MAX {
            self.named.push(what());
        }
    }
}

/// Puts the rows of one entry in: what others refer to first, and what gives a port back before who takes it.
///
/// # Errors
/// The catalogue failed.
pub(super) fn put_all(
    tx: &Tx<'_>,
    mut rows: Vec<(Subject, Image)>,
    entry: &str,
    misfits: &mut Misfits,
) -> Result<(), Error> {
    rows.sort_by_key(|(subject, image)| (*subject, !is_deleted(image)));
    for (subject, mut image) in rows {
        let changed = match tx.attempt(|tx| put(tx, subject, &mut image))? {
            Ok(changed) => changed,
            // Nothing is wrong with the row.
            Err(error @ (Error::Database(_) | Error::Away(_))) => return Err(error),
            Err(error) => Some(format!("it is left out: {}", engine::chain(&error))),
        };
        if let Some(changed) = changed {
            misfits.add(|| format!("{entry}: {} {}: {changed}", subject.word(), text(&image, "id")));
        }
    }
    Ok(())
}

fn is_deleted(image: &Image) -> bool {
    image.get("deleted_at_ms").is_some_and(|at| !at.is_null())
}

fn is_attached(image: &Image) -> bool {
    image
        .get("attachment")
        .is_some_and(|attached| !attached.is_null())
}

fn text<'a>(image: &'a Image, name: &str) -> &'a str {
    image.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn number(image: &Image, name: &str) -> i64 {
    image.get(name).and_then(Value::as_i64).unwrap_or_default()
}

/// Puts a row in, in the place of an earlier one. Says what had to be changed for it to fit.
fn put(tx: &Tx<'_>, subject: Subject, image: &mut Image) -> Result<Option<String>, Error> {
    let id = text(image, "id").to_owned();
    let mut changed = None;
    match subject {
        Subject::Project | Subject::Storage => {
            let name = text(image, "name").to_owned();
            if record::is_name_taken(tx, subject, &name, &id)? {
                let other = format!("{name}-{}", id.get(..8).unwrap_or(&id));
                image.insert("name".to_owned(), json!(other));
                changed = Some(format!("the name {name} is taken, it is called {other} now"));
            }
        }
        Subject::Instance if !is_deleted(image) && !is_attached(image) => {
            let (bind, port) = (text(image, "bind").to_owned(), number(image, "port"));
            if let Some((other, since)) =
                record::holder_of_port(tx, &bind, port, (&id, text(image, "host_id")))?
            {
                // Two cannot have had it at once: the deletion of the older one is what was lost.
                let created = number(image, "created_at_ms");
                let older = match since <= created {
                    true => {
                        record::call_deleted(tx, &other, created)?;
                        other.to_string()
                    }
                    false => {
                        image.insert("status".to_owned(), json!("deleted"));
                        image.insert("deleted_at_ms".to_owned(), json!(since));
                        id.clone()
                    }
                };
                changed = Some(format!(
                    "{bind}:{port} is the port of another instance too; {older}, the older one, counts as deleted"
                ));
            }
        }
        // The row of the one that served before it may come after it.
        Subject::Generation if text(image, "state") == "serving" => {
            record::stop_serving(tx, text(image, "instance_id"), &id)?;
        }
        Subject::Backup | Subject::Restore => {
            let (instance, ordinal) = (text(image, "instance_id"), number(image, "ordinal"));
            record::clear_ordinal(tx, subject, instance, ordinal, &id)?;
        }
        Subject::OldKey | Subject::Choice | Subject::Instance | Subject::Generation | Subject::Schedule => {}
    }
    let (table, key) = subject.table_and_key();
    tx.put_image(table, key, image)?;
    Ok(changed)
}

/// Makes up for rows that others refer to and that no entry holds: an instance becomes a deleted one without a name of
/// its own, so that its records stay; a reference to a store or a generation goes.
///
/// # Errors
/// The catalogue failed.
pub(super) fn mend(tx: &Tx<'_>, project: &ProjectId, misfits: &mut Misfits) -> Result<(), Error> {
    for id in record::instances_without_row(tx, project)? {
        if let Some(instance) = InstanceId::parse(&id) {
            record::insert_nameless(
                tx,
                &instance,
                project,
                "",
                0,
                record::oldest_record(tx, &instance)?,
            )?;
            misfits.add(|| {
                format!("instance {id}: its row is in no entry that can be read; its records are kept under a made-up name")
            });
        }
    }
    for (id, what) in record::drop_lost_references(tx)? {
        misfits.add(|| format!("{what} {id}: what it refers to is in no entry that can be read"));
    }
    Ok(())
}
