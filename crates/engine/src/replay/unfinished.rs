//! Values that were half made when an attempt ended: they lie under names of ours, and are removed.

use std::path::Path;

use super::feeder::UNFINISHED;
use super::journal::{Journal, Unfinished};
use super::lane::{Judgement, judge};
use super::others::{dbs_of, names_in, select};
use super::reach::Reach;
use super::target::{Nodes, Target, named_by};
use crate::Control;
use crate::error::{Error, Kind};
use crate::node::{Node, Reply};

const REMOVE: &str = "remove unfinished values";
/// Of more than so many names the rest is left: an attempt makes one value at a time.
const LABELLED_MAX: usize = 10_000;

/// Removes those that are there.
///
/// # Errors
/// As [`Reach::connect`] and [`Node::ask`]; what the node refuses, by its first word.
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
        let verb: &[u8] = if target.form.is_some() { b"UNLINK" } else { b"DEL" };
        let words = [verb, name.as_bytes()];
        if *db != 0 {
            let answer = node_answer(&mut node, &[b"SELECT", db.to_string().as_bytes()])?;
            refused(&node, answer)?;
        }
        let mut answer = node_answer(&mut node, &words)?;
        // Its slot is on its way to another node.
        if let Some(text) = answer.as_deref().filter(|text| text.starts_with("ASK "))
            && let Some(address) = named_by(text, &primary.address)
        {
            node = target.connect(&address)?;
            node.run(&["ASKING"])?;
            answer = node_answer(&mut node, &words)?;
        }
        refused(&node, answer)?;
    }
    Ok(())
}

/// Removes what a replay with this label may have left whose journal is not here: every name that the target has is looked at.
///
/// # Errors
/// What cannot be asked or reached; what ends `control`.
pub fn remove_labelled(label: &str, reach: &dyn Reach, control: &Control) -> Result<(), Error> {
    let target = Target::look(reach)?;
    let nodes = target.nodes(&[])?;
    let begins = format!("{UNFINISHED}:{label}:");
    let mut values = Vec::new();
    for primary in &nodes.primaries {
        let mut node = target.connect(&primary.address)?;
        for (db, _) in dbs_of(&mut node)? {
            select(&mut node, db)?;
            names_in(&mut node, &["MATCH", &format!("{begins}*")], control, |name| {
                let name = std::str::from_utf8(name).unwrap_or_default();
                if name.starts_with(&begins) && values.len() < LABELLED_MAX {
                    values.push(Unfinished {
                        db,
                        name: name.to_owned(),
                    });
                }
                Ok(())
            })?;
        }
    }
    remove(&target, &nodes, &values)
}

/// Why it refuses, where it does.
fn node_answer(node: &mut Node, words: &[&[u8]]) -> Result<Option<String>, Error> {
    match node.ask(words)? {
        Reply::Error(text) => Ok(Some(text)),
        _ => Ok(None),
    }
}

fn refused(node: &Node, answer: Option<String>) -> Result<(), Error> {
    let Some(text) = answer else {
        return Ok(());
    };
    let kind = match judge(&text) {
        Judgement::OfAll(kind) => kind,
        Judgement::OfTheKey => Kind::Refused,
    };
    Err(Error::new(kind, REMOVE, format!("{}: {text}", node.label())))
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
