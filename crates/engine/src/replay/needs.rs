//! What a replay needs of its target, which is asked for it before anything is written: what a provider renamed or took away, and what
//! the user may not do, would else be found out with the first key (ADR 92).

use std::collections::BTreeMap;

use super::input::Valid;
use super::others::dbs_of;
use super::target::Target;
use super::{Conflict, Expiry, Form, Functions, Others, Plan};
use crate::error::{Error, Kind};
use crate::hindrance::{RESTORE, SCAN, SELECT, SET, UNLINK, hindrance_of_command};
use crate::node::Node;

const EXISTS: &[&str] = &["EXISTS", "key"];
const DEL: &[&str] = &["DEL", "key"];
/// What every value that is made by commands takes, whatever its type.
const MAKING: [&[&str]; 5] = [SET, EXISTS, DEL, &["MULTI"], &["EXEC"]];
const PEXPIREAT: &[&str] = &["PEXPIREAT", "key", "1"];
const LOAD: &[&str] = &["FUNCTION", "LOAD", "code"];

/// Refuses a target that lacks any of it. What is only good to have (`WAIT`, names of connections) is not asked for, and of a target that
/// does not tell nothing is said.
///
/// # Errors
/// [`Kind::Refused`] with the command and the permission; those of the target's nodes.
pub(super) fn check(
    target: &Target<'_>,
    files: &[Valid],
    plan: &Plan,
    sources: &BTreeMap<u32, u32>,
) -> Result<(), Error> {
    match ask(target, files, plan, sources) {
        // Who is away for a moment is waited for later.
        Err(error) if matches!(error.kind, Kind::Connection | Kind::Idle) => Ok(()),
        asked => asked,
    }
}

fn ask(target: &Target<'_>, files: &[Valid], plan: &Plan, sources: &BTreeMap<u32, u32>) -> Result<(), Error> {
    for primary in target.nodes(&[])?.primaries {
        let mut node = target.connect(&primary.address)?;
        let is_by_payloads = plan.form == Form::Payloads && target.form.is_some();
        let lacking = match is_by_payloads {
            true => lacking_for_payloads(&mut node)?,
            false => first_of(&mut node, &for_commands(files, plan))?,
        };
        let mut needed = for_all(files, plan, is_by_payloads);
        if !target.is_cluster && is_elsewhere(&mut node, plan, sources)? {
            needed.push(SELECT);
        }
        let lacking = match lacking {
            Some(why) => Some(why),
            None => first_of(&mut node, &needed)?,
        };
        if let Some(why) = lacking {
            let context = format!("{}: {why}", primary.address);
            return Err(Error::new(Kind::Refused, "plan replay", context));
        }
    }
    Ok(())
}

/// Why the first of these that cannot be used cannot be.
fn first_of(node: &mut Node, commands: &[&[&str]]) -> Result<Option<String>, Error> {
    for command in commands {
        if let Some(why) = hindrance_of_command(node, command)? {
            return Ok(Some(why));
        }
    }
    Ok(None)
}

fn lacking_for_payloads(node: &mut Node) -> Result<Option<String>, Error> {
    let Some(why) = hindrance_of_command(node, RESTORE)? else {
        return Ok(None);
    };
    Ok(Some(match first_of(node, &MAKING)? {
        Some(_) => why,
        None => format!("{why}; --commands (replay.commands) sends values as the commands that make them"),
    }))
}

fn for_commands(files: &[Valid], plan: &Plan) -> Vec<&'static [&'static str]> {
    let mut needed = MAKING.to_vec();
    needed.push(match plan.conflict {
        Conflict::Replace => &["RENAME", "key", "key"],
        Conflict::Skip | Conflict::Fail => &["RENAMENX", "key", "key"],
    });
    let may_expire = files.iter().any(|file| file.report.census.totals().expires > 0);
    if may_expire && plan.shape.expiry != Expiry::Strip {
        needed.push(PEXPIREAT);
    }
    needed
}

fn for_all(files: &[Valid], plan: &Plan, is_by_payloads: bool) -> Vec<&'static [&'static str]> {
    let mut needed = Vec::new();
    if plan.conflict != Conflict::Replace {
        needed.push(EXISTS);
    }
    if plan.others != Others::Stay {
        needed.extend([SCAN, if is_by_payloads { UNLINK } else { DEL }]);
    }
    // Whoever is not whole without them goes on, and names them.
    let has_functions = files
        .first()
        .is_some_and(|file| !file.report.functions.is_empty());
    if plan.functions == Functions::Load && plan.is_whole && has_functions {
        needed.push(LOAD);
    }
    needed
}

/// Whether a database beside the first is written to, or searched for other keys.
fn is_elsewhere(node: &mut Node, plan: &Plan, sources: &BTreeMap<u32, u32>) -> Result<bool, Error> {
    if sources.keys().any(|db| *db != 0) {
        return Ok(true);
    }
    let is_of_all = plan.others == Others::All && plan.selection.dbs.is_empty();
    Ok(is_of_all && dbs_of(node)?.iter().any(|(db, _)| *db != 0))
}
