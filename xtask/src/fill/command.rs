//! One command of the engine, built in a reused buffer.

use std::io::Write as _;

/// The words of a command, one after the other in one buffer.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Command {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Command {
    /// Starts anew with the command's name and its key.
    pub fn begin(&mut self, name: &str, key: &[u8]) -> &mut Self {
        self.bytes.clear();
        self.ends.clear();
        self.word(name).word(key)
    }

    /// Adds a word.
    pub fn word(&mut self, word: impl AsRef<[u8]>) -> &mut Self {
        self.bytes.extend_from_slice(word.as_ref());
        self.ends.push(self.bytes.len());
        self
    }

    /// Adds a value in its text form.
    pub fn show(&mut self, value: impl std::fmt::Display) -> &mut Self {
        self.with(|bytes| {
            let _a_vec_takes_all = write!(bytes, "{value}");
        })
    }

    /// Adds a word that the closure appends to the buffer.
    pub fn with(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> &mut Self {
        write(&mut self.bytes);
        self.ends.push(self.bytes.len());
        self
    }

    /// The words in order.
    pub fn words(&self) -> Vec<&[u8]> {
        let mut start = 0;
        let mut words = Vec::with_capacity(self.ends.len());
        for end in &self.ends {
            words.push(&self.bytes[start..*end]);
            start = *end;
        }
        words
    }
}
