//! Commands as bytes.

use std::io::{self, Write};

use rdb::Header;

/// A word.
#[inline]
pub(super) fn push_word(out: &mut Vec<u8>, word: &[u8]) {
    push_head(out, b'$', word.len() as u64);
    out.extend_from_slice(word);
    out.extend_from_slice(b"\r\n");
}

/// How many words follow (`*`), or how many bytes (`$`).
#[inline]
pub(super) fn push_head(out: &mut Vec<u8>, kind: u8, count: u64) {
    out.push(kind);
    push_number(out, count);
    out.extend_from_slice(b"\r\n");
}

#[inline]
fn push_number(out: &mut Vec<u8>, number: u64) {
    let (mut digits, mut at, mut rest) = ([0; 20], 20, number);
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// A whole command.
pub(super) fn push_command(out: &mut Vec<u8>, words: &[&[u8]]) {
    push_head(out, b'*', words.len() as u64);
    words.iter().for_each(|word| push_word(out, word));
}

/// What comes before the payload of a `RESTORE`, up to its first byte.
#[inline]
pub(super) fn push_restore(
    out: &mut Vec<u8>,
    key: &[u8],
    expire_at_ms: Option<i64>,
    payload_bytes: u64,
    options: &Options,
) {
    push_head(out, b'*', 4 + options.words());
    out.extend_from_slice(b"$7\r\nRESTORE\r\n");
    push_word(out, key);
    // Who has none of these has no expiry either.
    let at_ms = expire_at_ms.map_or(0, i64::unsigned_abs);
    let mut digits = Vec::with_capacity(20);
    push_number(&mut digits, at_ms);
    push_word(out, &digits);
    push_head(out, b'$', payload_bytes);
}

/// What comes behind the payload.
#[inline]
pub(super) fn push_options(out: &mut Vec<u8>, options: &Options) {
    out.extend_from_slice(b"\r\n$6\r\nABSTTL\r\n");
    if options.replaces {
        out.extend_from_slice(b"$7\r\nREPLACE\r\n");
    }
    let (name, number): (&[u8], u64) = match (options.header.frequency, options.header.idle_seconds) {
        (Some(frequency), _) => (b"$4\r\nFREQ\r\n", u64::from(frequency)),
        (None, Some(seconds)) => (b"$8\r\nIDLETIME\r\n", seconds),
        (None, None) => return,
    };
    out.extend_from_slice(name);
    let mut digits = Vec::with_capacity(20);
    push_number(&mut digits, number);
    push_word(out, &digits);
}

/// What is said of a key besides its value.
pub(super) struct Options {
    /// Whether a key of this name is overwritten.
    pub(super) replaces: bool,
    /// How recently or often it was used.
    pub(super) header: Header,
}

impl Options {
    fn words(&self) -> u64 {
        let used = self.header.frequency.is_some() || self.header.idle_seconds.is_some();
        1 + u64::from(self.replaces) + 2 * u64::from(used)
    }
}

/// Counts the commands in what is written, whose words may come in pieces.
#[derive(Default)]
pub(super) struct Counter {
    /// Commands that have ended.
    pub(super) commands: u64,
    /// Bytes of the longest word.
    pub(super) longest: u64,
    /// Words of the command that are still to come, and bytes of the word.
    words: u64,
    bytes: u64,
    line: Vec<u8>,
}

impl Counter {
    pub(super) fn count(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.bytes > 0 {
                let passed = bytes.len().min(usize::try_from(self.bytes).unwrap_or(usize::MAX));
                self.bytes -= passed as u64;
                bytes = &bytes[passed..];
                if self.bytes == 0 {
                    self.words -= 1;
                    self.commands += u64::from(self.words == 0);
                }
                continue;
            }
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let (now, later) = bytes.split_at(end.map_or(bytes.len(), |end| end + 1));
            self.line.extend_from_slice(now);
            bytes = later;
            if end.is_some() {
                let number = self.line.get(1..self.line.len() - 2).unwrap_or_default();
                let number = std::str::from_utf8(number)
                    .ok()
                    .and_then(|text| text.parse::<u64>().ok());
                match (self.line.first(), number) {
                    (Some(b'*'), Some(words)) => self.words = words,
                    // With the line end behind the word.
                    (Some(b'$'), Some(length)) => {
                        self.longest = self.longest.max(length);
                        self.bytes = length + 2;
                    }
                    _ => return Err(io::Error::other("no command where one was to be")),
                }
                self.line.clear();
            }
        }
        Ok(())
    }
}

/// Gathers commands in memory, and counts them.
#[derive(Default)]
pub(super) struct Gathered {
    pub(super) bytes: Vec<u8>,
    pub(super) counter: Counter,
}

impl Write for Gathered {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.counter.count(bytes)?;
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_counted_however_they_are_cut() {
        let mut all = Vec::new();
        push_command(&mut all, &[b"SET", b"a\r\n*3\r\n", b""]);
        push_command(&mut all, &[b"DEL", b"a"]);
        for piece in 1..all.len() {
            let mut counter = Counter::default();
            all.chunks(piece).for_each(|piece| counter.count(piece).unwrap());
            assert_eq!(
                (counter.commands, counter.longest),
                (2, 7),
                "in pieces of {piece}"
            );
        }
        assert!(Counter::default().count(b"+OK\r\n").is_err());
    }

    #[test]
    fn a_restore_has_as_many_words_as_it_says() {
        for (replaces, frequency, idle_seconds, words) in [
            (true, None, None, 6),
            (false, None, None, 5),
            (true, Some(255), Some(7), 8),
            (false, None, Some(7), 7),
        ] {
            let header = Header {
                type_code: 0,
                idle_seconds,
                frequency,
            };
            let options = Options { replaces, header };
            let mut out = Vec::new();
            push_restore(&mut out, b"key", Some(1234), 3, &options);
            out.extend_from_slice(b"abc");
            push_options(&mut out, &options);
            let mut counter = Counter::default();
            counter.count(&out).unwrap();
            assert_eq!(counter.commands, 1);
            assert!(out.starts_with(format!("*{words}\r\n").as_bytes()));
        }
    }
}
