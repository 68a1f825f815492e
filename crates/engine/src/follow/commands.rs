//! Which keys a command writes, as the engine itself says.

use std::collections::HashMap;

use super::FOLLOW;
use crate::error::{Error, Kind};
use crate::node::{Node, Reply};

/// Where the keys of a command are among its words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keys {
    /// It is about none.
    None,
    /// From `first` to `last`, each `step`-th; a `last` below 0 counts from the end.
    At { first: usize, last: i64, step: usize },
    /// Only the engine can tell, by all words.
    Asked,
    /// It moves or copies a key, maybe to another database.
    Carried,
    /// Every key may be another.
    All,
    /// It changes libraries of functions.
    Functions,
    /// The database of what follows.
    Select,
}

impl Keys {
    /// Whether the word at this place, of so many, is a key.
    pub(super) fn is_key(self, at: usize, words: usize) -> bool {
        let Keys::At { first, last, step } = self else {
            return false;
        };
        let last = match usize::try_from(last) {
            Ok(last) => last,
            Err(_) => words.saturating_sub(usize::try_from(-last).unwrap_or(words)),
        };
        at >= first && at <= last && (at - first).is_multiple_of(step)
    }
}

/// What the engine has said of commands so far, by their names in lower case.
#[derive(Debug, Default)]
pub(super) struct Commands(HashMap<Vec<u8>, Keys>);

impl Commands {
    /// Where the keys of this command are; `second`: its second word.
    ///
    /// # Errors
    /// As [`Node::command`].
    pub(super) fn keys(&mut self, name: &[u8], second: &[u8], node: &mut Node) -> Result<Keys, Error> {
        let name = name.to_ascii_lowercase();
        if let Some(known) = known(&name) {
            return Ok(known);
        }
        if let Some(told) = self.0.get(&name) {
            return Ok(*told);
        }
        let told = match of_engine(&name, node)? {
            // Its second word says what it does.
            Some(Keys::None) => {
                let both = [&name, b"|".as_slice(), &second.to_ascii_lowercase()].concat();
                if let Some(told) = self.0.get(&both) {
                    return Ok(*told);
                }
                let told = match of_engine(&both, node)? {
                    Some(Keys::None) | None => Keys::All,
                    Some(keys) => keys,
                };
                self.0.insert(both, told);
                return Ok(told);
            }
            Some(keys) => keys,
            None => Keys::All,
        };
        self.0.insert(name, told);
        Ok(told)
    }
}

/// Those that are not what their keys say.
fn known(name: &[u8]) -> Option<Keys> {
    Some(match name {
        b"ping" | b"replconf" | b"multi" | b"exec" | b"publish" | b"spublish" | b"script" => Keys::None,
        b"select" => Keys::Select,
        b"function" => Keys::Functions,
        b"flushall" | b"flushdb" | b"swapdb" => Keys::All,
        b"move" | b"copy" => Keys::Carried,
        _ => return None,
    })
}

/// What `COMMAND INFO` says; `None`: the engine does not know it.
fn of_engine(name: &[u8], node: &mut Node) -> Result<Option<Keys>, Error> {
    let Reply::Array(mut answer) = node.command(&[b"COMMAND", b"INFO", name])? else {
        return Ok(None);
    };
    let Some(Reply::Array(about)) = answer.pop() else {
        return Ok(None);
    };
    let number = |at: usize| about.get(at).and_then(Reply::int).unwrap_or(0);
    let is_movable = match about.get(2) {
        Some(Reply::Array(flags)) => flags
            .iter()
            .any(|flag| flag.text().as_deref() == Some("movablekeys")),
        _ => false,
    };
    let (first, last, step) = (number(3), number(4), number(5));
    Ok(Some(match (usize::try_from(first), usize::try_from(step)) {
        _ if is_movable => Keys::Asked,
        (Ok(first), Ok(step)) if first > 0 && step > 0 => Keys::At { first, last, step },
        _ => Keys::None,
    }))
}

/// Asks the engine which of these words are keys.
///
/// # Errors
/// As [`Node::command`]; [`Kind::Protocol`].
pub(super) fn ask_keys(words: &[Vec<u8>], node: &mut Node) -> Result<Vec<Vec<u8>>, Error> {
    let asked: Vec<&[u8]> = [b"COMMAND".as_slice(), b"GETKEYS"]
        .into_iter()
        .chain(words.iter().map(Vec::as_slice))
        .collect();
    match node.command(&asked)? {
        Reply::Array(keys) => Ok(keys
            .into_iter()
            .filter_map(|key| match key {
                Reply::Bulk(key) => key,
                _ => None,
            })
            .collect()),
        other => {
            let context = format!("COMMAND GETKEYS is answered with {other:?}");
            Err(Error::new(Kind::Protocol, FOLLOW, context))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Keys;

    #[test]
    fn keys_are_where_first_last_and_step_say() {
        let places = |keys: Keys, words: usize| -> Vec<usize> {
            (0..words).filter(|at| keys.is_key(*at, words)).collect()
        };
        let at = |first, last, step| Keys::At { first, last, step };
        assert_eq!(places(at(1, 1, 1), 3), [1]);
        assert_eq!(places(at(1, -1, 1), 4), [1, 2, 3]);
        assert_eq!(places(at(1, -1, 2), 5), [1, 3]);
        assert_eq!(places(at(2, -1, 1), 4), [2, 3]);
        assert_eq!(places(at(1, -2, 1), 4), [1, 2]);
        assert_eq!(places(Keys::None, 4), [0; 0]);
    }
}
