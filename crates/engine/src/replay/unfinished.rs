//! Values that were half made when an attempt ended: they lie under names of ours, and are removed.

use std::path::Path;

use super::journal::{Journal, Unfinished};
use super::reach::Reach;
use super::target::{Nodes, Target};
use crate::error::{Error, Kind};
use crate::node::Reply;

const REMOVE: &str = "remove unfinished values";

/// Removes those that are there.
///
/// # Errors
/// As [`Reach::connect`] and [`crate::node::Node::ask`]; [`Kind::Connection`] where the node refuses.
pub(super) fn remove(target: &Target<'_>, nodes: &Nodes, values: &[Unfinished]) -> Result<(), Error> {
    for Unfinished { db, name } in values {
        let owner = match target.is_cluster {
            true => nodes.owner(rdb::slot_of(name.as_bytes())),
            false => 0,
        };
        let primary = nodes
            .primaries
            .get(owner)
            .ok_or_else(|| Error::new(Kind::Connection, REMOVE, "no node has its slot"))?;
        let mut node = target.connect(&primary.address)?;
        // Half of a value may be large: not removed by the thread that serves. Who is older than 4.0 does not know that.
        let verb = if target.form.is_some() { "UNLINK" } else { "DEL" };
        let select = ["SELECT".to_owned(), db.to_string()];
        let gone = [verb.to_owned(), name.clone()];
        for words in [select, gone].iter().skip(usize::from(*db == 0)) {
            let words: Vec<&[u8]> = words.iter().map(String::as_bytes).collect();
            if let Reply::Error(text) = node.ask(&words)? {
                let context = format!("{}: {text}", node.label());
                return Err(Error::new(Kind::Connection, REMOVE, context));
            }
        }
    }
    Ok(())
}

/// Removes what a replay with this journal that will not be gone on with may have left. Nothing, where there is no such journal.
///
/// # Errors
/// What cannot be read, asked or reached.
pub fn remove_left(journal: &Path, reach: &dyn Reach) -> Result<(), Error> {
    if !journal.exists() {
        return Ok(());
    }
    let (journal, Some(mut state)) = Journal::take(journal)? else {
        return Ok(());
    };
    if state.unfinished.is_empty() {
        return Ok(());
    }
    let target = Target::look(reach)?;
    remove(&target, &target.nodes(&[])?, &state.unfinished)?;
    state.unfinished.clear();
    journal.write(&state)
}
