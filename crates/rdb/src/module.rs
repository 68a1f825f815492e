//! Values and data of modules: skipped by their structure, named by their module.
//!
//! A module's part is its id and then values, each after a mark that says what it is, up to an end mark. The
//! id packs a name of nine letters, six bits each, and a version of ten bits.

use crate::digest::mix;
use crate::error::{Defect, ErrorKind, Step, malformed};
use crate::reader::Reader;
use crate::source::Source;

/// Modules and kinds of their values that are told apart in one file, at most.
pub const MODULES_MAX: usize = 1024;

const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
const NAME_LETTERS: u32 = 9;
const VERSION_BITS: u32 = 10;

pub(crate) const MARK_END: u64 = 0;
pub(crate) const MARK_SIGNED: u64 = 1;
pub(crate) const MARK_UNSIGNED: u64 = 2;
pub(crate) const MARK_FLOAT: u64 = 3;
pub(crate) const MARK_DOUBLE: u64 = 4;
pub(crate) const MARK_STRING: u64 = 5;

/// What a file holds of one type of one module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModuleSummary {
    /// The name of the type: nine letters, for example `ReJSON-RL`.
    pub name: String,
    /// The version of its encoding.
    pub version: u16,
    /// Keys with such a value.
    pub values: u64,
    /// Pieces of data that belong to no key.
    pub aux: u64,
}

impl ModuleSummary {
    pub(crate) fn of(id: u64) -> Self {
        let letter = |i| {
            let shift = VERSION_BITS + 6 * (NAME_LETTERS - 1 - i);
            char::from(LETTERS[(id >> shift & 0x3f) as usize])
        };
        Self {
            name: (0..NAME_LETTERS).map(letter).collect(),
            version: (id & ((1 << VERSION_BITS) - 1)) as u16,
            values: 0,
            aux: 0,
        }
    }
}

/// Notes one more value, or piece of data, of the type with this id.
pub(crate) fn note(
    seen: &mut Vec<(u64, ModuleSummary)>,
    id: u64,
    count: impl Fn(&mut ModuleSummary) -> &mut u64,
) -> Result<(), Defect> {
    if let Some((_, module)) = seen.iter_mut().find(|(known, _)| *known == id) {
        *count(module) += 1;
        return Ok(());
    }
    if seen.len() >= MODULES_MAX {
        return Err(Box::new(ErrorKind::LimitExceeded {
            what: "module types",
            limit: MODULES_MAX as u64,
        }));
    }
    let mut module = ModuleSummary::of(id);
    *count(&mut module) += 1;
    seen.push((id, module));
    Ok(())
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Phase {
    /// The id of a value.
    #[default]
    Id,
    /// The id of data outside of keys, and when it was saved.
    AuxId,
    Mark,
    String,
}

/// A module's part that is being skipped.
#[derive(Default)]
pub(crate) struct Module {
    phase: Phase,
    id: u64,
    digest: u128,
}

impl Module {
    /// Starts a value.
    pub(crate) fn begin(&mut self) {
        *self = Self::default();
    }

    /// Starts data outside of keys.
    pub(crate) fn begin_aux(&mut self) {
        *self = Self {
            phase: Phase::AuxId,
            ..Self::default()
        };
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// The digest of the parts as they are stored: two encodings of one value differ.
    pub(crate) fn digest(&self) -> u128 {
        mix(u128::from(self.id), self.digest)
    }

    /// Skips to behind the end mark.
    pub(crate) fn run(&mut self, r: &mut Reader<'_>, source: &mut Source) -> Step<()> {
        loop {
            match self.phase {
                Phase::Id => {
                    self.id = r.length()?;
                    self.phase = Phase::Mark;
                }
                Phase::AuxId => {
                    let id = r.length()?;
                    if r.length()? != MARK_UNSIGNED {
                        return Err(malformed("module data without the mark of its time").into());
                    }
                    self.digest = u128::from(r.length()?);
                    self.id = id;
                    self.phase = Phase::Mark;
                }
                Phase::Mark => {
                    let mark = r.length()?;
                    let part = match mark {
                        MARK_END => {
                            r.commit();
                            return Ok(());
                        }
                        MARK_SIGNED | MARK_UNSIGNED => u128::from(r.length()?),
                        MARK_FLOAT => u128::from(u32::from_le_bytes(r.array()?)),
                        MARK_DOUBLE => u128::from(u64::from_le_bytes(r.array()?)),
                        MARK_STRING => {
                            self.phase = Phase::String;
                            r.commit();
                            continue;
                        }
                        _ => return Err(malformed("module value with an unknown mark").into()),
                    };
                    self.digest = mix(self.digest, mix(u128::from(mark), part));
                }
                Phase::String => {
                    let part = source.item(r, |_| Ok(()))?.hash();
                    self.digest = mix(self.digest, mix(u128::from(MARK_STRING), part));
                    self.phase = Phase::Mark;
                }
            }
            r.commit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_yields_the_name_and_version_it_was_packed_from() {
        let id = b"ReJSON-RL".iter().fold(0u64, |id, letter| {
            id << 6 | LETTERS.iter().position(|known| known == letter).unwrap() as u64
        }) << VERSION_BITS
            | 3;
        let module = ModuleSummary::of(id);
        assert_eq!((module.name.as_str(), module.version), ("ReJSON-RL", 3));
        assert_eq!(ModuleSummary::of(0).name, "AAAAAAAAA");
    }
}
