//! What a provider renamed or took away, and what a user may not do: a server that is not ours is asked, and nothing is done there.

use crate::error::Error;
use crate::node::{Node, Reply};

/// Writes a value as it is serialised.
pub(crate) const RESTORE: &[&str] = &["RESTORE", "key", "0", "payload"];
/// Writes one by a command.
pub(crate) const SET: &[&str] = &["SET", "key", "value"];
/// Goes to another database.
pub(crate) const SELECT: &[&str] = &["SELECT", "1"];
/// Names keys.
pub(crate) const SCAN: &[&str] = &["SCAN", "0"];
/// Removes one.
pub(crate) const UNLINK: &[&str] = &["UNLINK", "key"];

/// Why a command cannot be used, in words; `None`: it can, as far as that is told. Who may not use every key cannot use what is of
/// keys.
///
/// # Errors
/// As [`Node::ask`].
pub(crate) fn hindrance(node: &mut Node, command: &[&str]) -> Result<Option<String>, Error> {
    named(node, command, |_| true)
}

/// As [`hindrance`], whichever keys the user may use: which will be written is not known here.
///
/// # Errors
/// As [`Node::ask`].
pub(crate) fn hindrance_of_command(node: &mut Node, command: &[&str]) -> Result<Option<String>, Error> {
    named(node, command, |why| why.contains("permissions to run"))
}

fn named(node: &mut Node, command: &[&str], counts: fn(&str) -> bool) -> Result<Option<String>, Error> {
    let name = command.first().copied().unwrap_or_default();
    if is_missing(node, name)? {
        return Ok(Some(format!("{name} is renamed or taken away")));
    }
    let words = match name {
        "CONFIG" | "FUNCTION" => 2,
        _ => 1,
    };
    let named = command.get(..words).unwrap_or(command);
    let denial = denial(node, command)?.filter(|why| counts(why));
    Ok(denial.map(|_| {
        let rule = named.join("|").to_lowercase();
        format!("the user may not {} (+{rule})", named.join(" "))
    }))
}

/// Whether the engine knows no such command; where it may not be asked, it is taken to.
fn is_missing(node: &mut Node, name: &str) -> Result<bool, Error> {
    let answer = node.ask(&[b"COMMAND", b"INFO", name.as_bytes()])?;
    // A null array, which is read as an empty one.
    Ok(
        matches!(answer, Reply::Array(found) if found.iter().all(|one| matches!(one, Reply::Array(about) if about.is_empty()) || *one == Reply::Bulk(None))),
    )
}

/// Why the user may not do that, as the engine says without doing it (engine 7.0 and later); where it does not say, whoever does it
/// first finds out.
fn denial(node: &mut Node, command: &[&str]) -> Result<Option<String>, Error> {
    let Reply::Bulk(Some(user)) = node.ask(&[b"ACL", b"WHOAMI"])? else {
        return Ok(None);
    };
    let mut words: Vec<&[u8]> = vec![b"ACL", b"DRYRUN", &user];
    words.extend(command.iter().map(|word| word.as_bytes()));
    Ok(match node.ask(&words)? {
        // Valkey and Redis say so in a bulk, and in an error only that they will not tell.
        Reply::Bulk(Some(text)) => {
            let text = String::from_utf8_lossy(&text).into_owned();
            text.contains("no permissions").then_some(text)
        }
        _ => None,
    })
}
