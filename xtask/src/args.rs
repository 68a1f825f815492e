//! A command line taken apart: options are taken out by name, what is left over is an error.

use std::str::FromStr;

use crate::Stop;

/// The words after the command's name. An option's value is the next word or stands after `=`.
#[derive(Debug, Clone)]
pub struct Args {
    words: Vec<String>,
    passed_on: Vec<String>,
}

impl Args {
    /// Takes the words; those after the first `--` are kept apart for [`Args::passed_on`].
    pub fn new(words: impl IntoIterator<Item = String>) -> Self {
        let mut words: Vec<String> = words.into_iter().collect();
        let passed_on = match words.iter().position(|word| word == "--") {
            Some(at) => {
                let rest = words.split_off(at + 1);
                words.truncate(at);
                rest
            }
            None => Vec::new(),
        };
        Self { words, passed_on }
    }

    /// Takes a switch out; true if it was there.
    pub fn flag(&mut self, name: &str) -> bool {
        let before = self.words.len();
        self.words.retain(|word| word != name);
        self.words.len() < before
    }

    /// Takes an option with its value out.
    ///
    /// # Errors
    /// The option is the last word, or its value does not parse.
    pub fn option<T: FromStr>(&mut self, name: &str) -> Result<Option<T>, Stop> {
        let with_equals = format!("{name}=");
        let Some(at) = self
            .words
            .iter()
            .position(|word| word == name || word.starts_with(&with_equals))
        else {
            return Ok(None);
        };
        let word = self.words.remove(at);
        let text = match word.strip_prefix(&with_equals) {
            Some(text) => text.to_owned(),
            None if at < self.words.len() => self.words.remove(at),
            None => return Err(Stop::new(format!("{name} needs a value"))),
        };
        match text.parse() {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(Stop::new(format!("{name} {text}: not a valid value"))),
        }
    }

    /// Takes the words that are no options.
    ///
    /// # Errors
    /// An option that nobody asked for is left.
    pub fn names(&mut self) -> Result<Vec<String>, Stop> {
        let names = std::mem::take(&mut self.words);
        match names.iter().find(|word| word.starts_with('-')) {
            Some(unknown) => Err(Stop::new(format!("unknown option {unknown}"))),
            None => Ok(names),
        }
    }

    /// Checks that nothing is left.
    ///
    /// # Errors
    /// The first word that nobody asked for.
    pub fn finish(&mut self) -> Result<(), Stop> {
        match self.names()?.first() {
            Some(unknown) => Err(Stop::new(format!("unexpected argument {unknown}"))),
            None => Ok(()),
        }
    }

    /// The words after `--`, and for commands that pass everything on also those before it.
    pub fn passed_on(self) -> Vec<String> {
        self.words.into_iter().chain(self.passed_on).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(line: &str) -> Args {
        Args::new(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn options_come_in_both_forms_and_leave_the_rest() {
        let mut line = args("--port 7000 clients --keys=5 --quick");
        assert_eq!(line.option::<u16>("--port").unwrap(), Some(7000));
        assert_eq!(line.option::<u64>("--keys").unwrap(), Some(5));
        assert_eq!(line.option::<u64>("--seed").unwrap(), None);
        assert!(line.flag("--quick"));
        assert_eq!(line.names().unwrap(), ["clients"]);
    }

    #[test]
    fn unknown_words_and_bad_values_are_refused() {
        assert!(args("--port").option::<u16>("--port").is_err());
        assert!(args("--port 70000").option::<u16>("--port").is_err());
        assert!(args("--prot 7").names().is_err());
        assert!(args("extra").finish().is_err());
    }

    #[test]
    fn words_after_two_dashes_are_passed_on_untouched() {
        let line = args("-- --listen 127.0.0.1:0");
        assert_eq!(line.passed_on(), ["--listen", "127.0.0.1:0"]);
    }
}
