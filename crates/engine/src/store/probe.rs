//! Tries out what the archive needs of a store, with a small object that is gone afterwards.

use std::time::{Duration, Instant};

use super::{Place, Store, always};
use crate::error::{Error, Kind};

/// Size of the object: several packets, so that a range within it means something.
const BYTES: usize = 100_000;

/// One thing that was tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// Store an object.
    Write,
    /// Its size.
    Head,
    /// Read it back, byte for byte.
    Read,
    /// Read a piece from within.
    Range,
    /// See it in a listing.
    List,
    /// Remove it.
    Delete,
    /// After that it is not there any more.
    Gone,
}

impl Check {
    /// All, in the order in which they are tried.
    pub const ALL: [Check; 7] = [
        Check::Write,
        Check::Head,
        Check::Read,
        Check::Range,
        Check::List,
        Check::Delete,
        Check::Gone,
    ];

    /// Its word, for people and for the stored capabilities.
    pub fn word(self) -> &'static str {
        match self {
            Check::Write => "write",
            Check::Head => "head",
            Check::Read => "read",
            Check::Range => "range",
            Check::List => "list",
            Check::Delete => "delete",
            Check::Gone => "gone",
        }
    }

    /// Whether backups and restores work without it. LIST only helps to find what nobody needs; nothing reads
    /// ranges yet.
    pub fn is_needed(self) -> bool {
        !matches!(self, Check::List | Check::Range)
    }
}

/// What came of a [`Check`].
#[derive(Debug)]
pub struct Finding {
    /// What was tried.
    pub check: Check,
    /// How long it took, or why it does not work.
    pub outcome: Result<Duration, Error>,
}

impl Store {
    /// Tries everything out under `name`, which must be unused. What follows from a failed write is left out.
    pub fn probe(&self, name: &str) -> Vec<Finding> {
        let bytes: Vec<u8> = (0..BYTES).map(|at| (at * 31 % 251) as u8).collect();
        let mut findings = Vec::new();
        for check in Check::ALL {
            let since = Instant::now();
            let outcome = self.try_out(check, name, &bytes).map(|()| since.elapsed());
            let is_pointless = check == Check::Write && outcome.is_err();
            findings.push(Finding { check, outcome });
            if is_pointless {
                break;
            }
        }
        findings
    }

    fn try_out(&self, check: Check, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let wrong = |what: &str| Err(Error::new(Kind::Store, "probe store", format!("{name}: {what}")));
        match check {
            Check::Write => self.put(name, bytes),
            Check::Head => match self.size(name)? == bytes.len() as u64 {
                true => Ok(()),
                false => wrong("HEAD gives another size than was written"),
            },
            Check::Read => match self.get(name)? == bytes {
                true => Ok(()),
                false => wrong("other bytes were read than were written"),
            },
            Check::Range => {
                let (first, last) = (BYTES / 3, BYTES / 2);
                let piece = match &self.0 {
                    Place::Folder(_) => self.get(name)?[first..last].to_vec(),
                    Place::Remote(remote, patience) => {
                        remote.get_range(name, first as u64..last as u64, patience, &always)?
                    }
                };
                match piece == bytes[first..last] {
                    true => Ok(()),
                    false => wrong("a range is not that piece of the object"),
                }
            }
            Check::List => {
                let prefix = name.rsplit_once('/').map_or("", |(prefix, _)| prefix);
                match self.list(prefix)?.iter().any(|listed| listed == name) {
                    true => Ok(()),
                    false => wrong("LIST does not show it"),
                }
            }
            Check::Delete => self.delete(name),
            Check::Gone => match self.exists(name)? {
                false => Ok(()),
                true => wrong("it is still there after it was deleted"),
            },
        }
    }
}
