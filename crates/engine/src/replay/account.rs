//! What became of every key.

use serde::{Deserialize, Serialize};

use super::lane::APPLY;
use crate::error::{Error, Kind};

/// Keys of each kind that are named.
pub const NAMED_MAX: usize = 100;
/// Bytes of a key that are kept of one that is named.
const NAME_BYTES_MAX: usize = 256;
/// Characters of what a server says that are kept.
const REASON_CHARS_MAX: usize = 256;

/// A key that is named, and why it is where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// The database in the backup; of a key that was removed, that in the target.
    pub db: u32,
    /// The key, or its first 256 bytes.
    pub key: Vec<u8>,
    /// Why, where the kind does not say it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// Keys of one kind: how many, and the first of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// How many.
    pub count: u64,
    /// The first, at most [`NAMED_MAX`].
    pub first: Vec<Named>,
}

/// What a server says, as it is kept: no control characters, and not too much.
pub(super) fn told(reason: &str) -> String {
    let plain = reason.chars().filter(|letter| !letter.is_control());
    plain.take(REASON_CHARS_MAX).collect()
}

impl Tally {
    /// Counts a key.
    pub fn add(&mut self, db: u32, key: &[u8], reason: &str) {
        self.count += 1;
        if self.first.len() < NAMED_MAX {
            self.first.push(Named {
                db,
                key: key[..key.len().min(NAME_BYTES_MAX)].to_vec(),
                reason: told(reason),
            });
        }
    }

    fn absorb(&mut self, later: Self) {
        self.count += later.count;
        let room = NAMED_MAX - self.first.len().min(NAMED_MAX);
        self.first.extend(later.first.into_iter().take(room));
    }
}

/// Every key of a backup is in exactly one of the first five.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// The target said that it has it.
    pub applied: Tally,
    /// Not selected.
    pub skipped: Tally,
    /// The target had such a key, which was left as it was.
    pub conflicting: Tally,
    /// Its time was over.
    pub expired: Tally,
    /// The target cannot hold it, or refused it; or its new name may be another's.
    pub failed: Tally,
    /// Applied, but without something that no command makes, or with expiries of fields as they were: counted among the
    /// applied ones too.
    pub reduced: Tally,
    /// Other keys of the target that were removed.
    pub removed: Tally,
    /// Libraries of functions that were loaded.
    pub functions: u64,
    /// Libraries that the target refused, with its words.
    pub functions_refused: Vec<String>,
    /// Why the libraries of the target are not those of the backup, where they were to be ([`super::Functions::Exact`]). The keys
    /// are applied all the same.
    #[serde(default)]
    pub functions_left: Option<String>,
    /// Serialised bytes of the applied keys.
    pub applied_bytes: u64,
}

impl Account {
    /// Adds what happened later.
    pub fn absorb(&mut self, later: Self) {
        let Self {
            applied,
            skipped,
            conflicting,
            expired,
            failed,
            reduced,
            removed,
            functions,
            functions_refused,
            functions_left,
            applied_bytes,
        } = later;
        self.applied.absorb(applied);
        self.skipped.absorb(skipped);
        self.conflicting.absorb(conflicting);
        self.expired.absorb(expired);
        self.failed.absorb(failed);
        self.reduced.absorb(reduced);
        self.removed.absorb(removed);
        self.functions += functions;
        self.functions_refused.extend(functions_refused);
        self.functions_refused.truncate(NAMED_MAX);
        self.functions_left = self.functions_left.take().or(functions_left);
        self.applied_bytes += applied_bytes;
    }

    /// That every key is there that is to be, and every library.
    ///
    /// # Errors
    /// [`Kind::Mismatch`] with the first that is not.
    pub fn check_whole(&self) -> Result<(), Error> {
        let context = match (self.failed.first.first(), self.functions_refused.first()) {
            (Some(first), _) => format!(
                "{} keys could not be applied, the first of them: {}",
                self.failed.count, first.reason
            ),
            (None, Some(why)) => format!("a library of functions was refused: {why}"),
            (None, None) => return Ok(()),
        };
        Err(Error::new(Kind::Mismatch, APPLY, context))
    }

    /// Keys of the backup that are accounted for.
    pub fn keys(&self) -> u64 {
        let kinds = [
            &self.applied,
            &self.skipped,
            &self.conflicting,
            &self.expired,
            &self.failed,
        ];
        kinds.iter().map(|tally| tally.count).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_says_is_kept_without_control_characters_and_cut() {
        let mut tally = Tally::default();
        tally.add(0, b"key", &format!("ERR a\0b\u{1b}[31m\n{}", "x".repeat(1000)));
        let reason = &tally.first[0].reason;
        assert!(reason.starts_with("ERR ab[31mxx"), "{reason}");
        assert_eq!(reason.len(), REASON_CHARS_MAX);
    }

    #[test]
    fn of_each_kind_all_are_counted_and_the_first_hundred_named() {
        let mut account = Account::default();
        for part in 0..3u32 {
            let mut later = Account::default();
            for number in 0..80 {
                later
                    .failed
                    .add(part, format!("{part}:{number}").as_bytes(), "why");
            }
            later.applied.add(0, &[b'x'; 1000], "");
            account.absorb(later);
        }
        assert_eq!(
            (account.failed.count, account.failed.first.len()),
            (240, NAMED_MAX)
        );
        assert_eq!(account.failed.first[99].key, b"1:19");
        assert_eq!((account.keys(), account.applied.first[0].key.len()), (243, 256));
    }
}
