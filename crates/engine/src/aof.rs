//! Looks through an append-only file before an engine loads it; [`load`] then has one do that.
//!
//! An engine that loads such a file runs every command in it with all rights: one that says `CONFIG SET dir` or
//! `MODULE LOAD` is obeyed. So only commands that change data are let through, by name; serialised values (`RESTORE`) are
//! validated as those of snapshots are; and an RDB at the start is validated to its last byte.
//!
//! Source of the form: redis src/aof.c, loadSingleAppendOnlyFile. Memory: a serialised value, 16 MiB at most, and a validator.

pub mod load;

use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use crate::duplicate::{SpillFile, invalid};
use crate::error::{Error, Kind};

const LOOK: &str = "read append-only file";
/// Bytes read at once.
const BUFFER_BYTES: usize = rdb::FEED_BYTES;
/// Longest line: a count, a length, or an annotation.
const LINE_BYTES_MAX: u64 = 1024;
/// Longest name of a command.
const NAME_BYTES_MAX: u64 = 64;
/// Words of one command: as many as an engine takes from a client.
const WORDS_MAX: u64 = 1024 * 1024;
/// Bytes of a word: an engine's `proto-max-bulk-len`.
const WORD_BYTES_MAX: u64 = 512 * 1024 * 1024;
/// Bytes of a serialised value that is validated; it is held for that.
const SERIALISED_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// What changes data and nothing else, in redis up to 8 and valkey up to 9 (`COMMAND`, flag `write`).
const COMMANDS: &[&str] = &[
    "APPEND",
    "BITFIELD",
    "BITOP",
    "BLMOVE",
    "BLMPOP",
    "BLPOP",
    "BRPOP",
    "BRPOPLPUSH",
    "BZMPOP",
    "BZPOPMAX",
    "BZPOPMIN",
    "COPY",
    "DECR",
    "DECRBY",
    "DEL",
    "DELEX",
    "DELIFEQ",
    "EXEC",
    "EXPIRE",
    "EXPIREAT",
    "FLUSHALL",
    "FLUSHDB",
    "GEOADD",
    "GEORADIUS",
    "GEORADIUSBYMEMBER",
    "GEOSEARCHSTORE",
    "GETDEL",
    "GETEX",
    "GETSET",
    "HDEL",
    "HEXPIRE",
    "HEXPIREAT",
    "HGETDEL",
    "HGETEX",
    "HINCRBY",
    "HINCRBYFLOAT",
    "HMSET",
    "HPERSIST",
    "HPEXPIRE",
    "HPEXPIREAT",
    "HSET",
    "HSETEX",
    "HSETNX",
    "INCR",
    "INCRBY",
    "INCRBYFLOAT",
    "LINSERT",
    "LMOVE",
    "LMPOP",
    "LPOP",
    "LPUSH",
    "LPUSHX",
    "LREM",
    "LSET",
    "LTRIM",
    "MOVE",
    "MSET",
    "MSETEX",
    "MSETNX",
    "MULTI",
    "PERSIST",
    "PEXPIRE",
    "PEXPIREAT",
    "PFADD",
    "PFMERGE",
    "PSETEX",
    "RENAME",
    "RENAMENX",
    "RESTORE",
    "RPOP",
    "RPOPLPUSH",
    "RPUSH",
    "RPUSHX",
    "SADD",
    "SDIFFSTORE",
    "SELECT",
    "SET",
    "SETBIT",
    "SETEX",
    "SETNX",
    "SETRANGE",
    "SINTERSTORE",
    "SMOVE",
    "SORT",
    "SPOP",
    "SREM",
    "SUNIONSTORE",
    "SWAPDB",
    "UNLINK",
    "XACK",
    "XACKDEL",
    "XADD",
    "XAUTOCLAIM",
    "XCLAIM",
    "XDEL",
    "XDELEX",
    "XGROUP",
    "XREADGROUP",
    "XSETID",
    "XTRIM",
    "ZADD",
    "ZDIFFSTORE",
    "ZINCRBY",
    "ZINTERSTORE",
    "ZMPOP",
    "ZPOPMAX",
    "ZPOPMIN",
    "ZRANGESTORE",
    "ZREM",
    "ZREMRANGEBYLEX",
    "ZREMRANGEBYRANK",
    "ZREMRANGEBYSCORE",
    "ZUNIONSTORE",
];
/// Code that runs, or is kept to be run.
const CODE: &[&str] = &["EVAL", "EVALSHA", "FCALL", "FUNCTION", "SCRIPT"];

/// What a file holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Contents {
    /// Bytes of the RDB at its start.
    pub rdb_bytes: u64,
    /// Commands after it.
    pub commands: u64,
    /// Whether it ends in the middle of a command, as after a crash: an engine leaves that one out.
    pub is_cut: bool,
}

/// Reads a file to its end. `accept_code` lets functions and scripts through.
///
/// # Errors
/// [`Kind::Malformed`] with the offset: it is no append-only file, holds a command that is not taken, a serialised value or
/// an RDB that is not valid; [`Kind::Io`].
pub fn look_through(path: &Path, spill_dir: &Path, accept_code: bool) -> Result<Contents, Error> {
    let failed = |e| Error::io(Kind::Io, LOOK, path.display().to_string(), e);
    let mut file = std::fs::File::open(path).map_err(failed)?;
    let mut magic = Vec::new();
    file.by_ref().take(6).read_to_end(&mut magic).map_err(failed)?;
    file.rewind().map_err(failed)?;
    let mut contents = Contents::default();
    if magic.starts_with(b"REDIS") || magic.starts_with(b"VALKEY") {
        contents.rdb_bytes = rdb_bytes(&mut file, path, spill_dir)?;
        file.seek(SeekFrom::Start(contents.rdb_bytes)).map_err(failed)?;
    }
    let mut commands = Commands {
        path,
        file: BufReader::with_capacity(BUFFER_BYTES, file),
        at: contents.rdb_bytes,
        accept_code,
    };
    loop {
        match commands.next()? {
            Next::Command => contents.commands += 1,
            Next::Annotation => {}
            Next::End => return Ok(contents),
            Next::Cut => {
                contents.is_cut = true;
                return Ok(contents);
            }
        }
    }
}

/// Validates the RDB at the start, and says how long it is.
fn rdb_bytes(file: &mut std::fs::File, path: &Path, spill_dir: &Path) -> Result<u64, Error> {
    let mut validator = SpillFile::validator(spill_dir)?.accept_trailing_bytes();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = file
            .read(&mut buffer)
            .map_err(|e| Error::io(Kind::Io, LOOK, path.display().to_string(), e))?;
        if count == 0 {
            break;
        }
        validator
            .feed(&buffer[..count], &mut ())
            .map_err(|e| invalid(LOOK, &e))?;
    }
    let report = validator.finish().map_err(|e| invalid(LOOK, &e))?;
    Ok(report.bytes)
}

enum Next {
    Command,
    Annotation,
    End,
    Cut,
}

/// Why a command is not whole.
enum Short {
    /// The file ends in it.
    Cut,
    Wrong(Error),
}

impl From<Error> for Short {
    fn from(error: Error) -> Self {
        Short::Wrong(error)
    }
}

struct Commands<'a> {
    path: &'a Path,
    file: BufReader<std::fs::File>,
    at: u64,
    accept_code: bool,
}

impl Commands<'_> {
    fn next(&mut self) -> Result<Next, Error> {
        let first = match self.file.fill_buf() {
            Ok([]) => return Ok(Next::End),
            Ok(bytes) => bytes[0],
            Err(e) => return Err(self.io(e)),
        };
        let read = match first {
            b'#' => self.line().map(|_| Next::Annotation),
            _ => self.command().map(|()| Next::Command),
        };
        match read {
            Ok(next) => Ok(next),
            Err(Short::Cut) => Ok(Next::Cut),
            Err(Short::Wrong(error)) => Err(error),
        }
    }

    fn io(&self, e: std::io::Error) -> Error {
        Error::io(Kind::Io, LOOK, self.path.display().to_string(), e)
    }

    fn wrong(&self, at: u64, what: impl std::fmt::Display) -> Error {
        let context = format!("{}: at byte {at}: {what}", self.path.display());
        Error::new(Kind::Malformed, LOOK, context)
    }

    /// A line without its end.
    fn line(&mut self) -> Result<Vec<u8>, Short> {
        let begin = self.at;
        let mut line = Vec::new();
        let read = self
            .file
            .by_ref()
            .take(LINE_BYTES_MAX)
            .read_until(b'\n', &mut line);
        let count = read.map_err(|e| self.io(e))? as u64;
        self.at += count;
        if line.pop() == Some(b'\n') {
            line.pop_if(|byte| *byte == b'\r');
            return Ok(line);
        }
        match count == LINE_BYTES_MAX {
            true => Err(self.wrong(begin, "a line is too long").into()),
            false => Err(Short::Cut),
        }
    }

    fn number(&mut self, mark: u8, max: u64) -> Result<u64, Short> {
        let begin = self.at;
        let line = self.line()?;
        let number = line
            .strip_prefix(&[mark])
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| digits.parse().ok())
            .filter(|number| *number <= max);
        number.ok_or_else(|| {
            let mark = char::from(mark);
            self.wrong(
                begin,
                format_args!("a number after {mark}, up to {max}, is wanted"),
            )
            .into()
        })
    }

    /// A word, of which `keep` bytes at most are wanted.
    fn word(&mut self, keep: u64) -> Result<(u64, Vec<u8>), Short> {
        let length = self.number(b'$', WORD_BYTES_MAX)?;
        let mut word = Vec::new();
        if length <= keep {
            let count = self
                .file
                .by_ref()
                .take(length)
                .read_to_end(&mut word)
                .map_err(|e| self.io(e))? as u64;
            self.at += count;
            if count < length {
                return Err(Short::Cut);
            }
        } else {
            self.skip(length)?;
        }
        let begin = self.at;
        let mut end = [0; 2];
        match self.file.read_exact(&mut end) {
            Ok(()) if end == *b"\r\n" => {}
            Ok(()) => return Err(self.wrong(begin, "a word is longer than it says").into()),
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Err(Short::Cut),
            Err(e) => return Err(self.io(e).into()),
        }
        self.at += 2;
        Ok((length, word))
    }

    fn skip(&mut self, mut bytes: u64) -> Result<(), Short> {
        while bytes > 0 {
            let held = self
                .file
                .fill_buf()
                .map_err(|e| Error::io(Kind::Io, LOOK, "cannot read it", e))?;
            let count = usize::try_from(bytes).unwrap_or(usize::MAX).min(held.len());
            if count == 0 {
                return Err(Short::Cut);
            }
            self.file.consume(count);
            self.at += count as u64;
            bytes -= count as u64;
        }
        Ok(())
    }

    fn command(&mut self) -> Result<(), Short> {
        let begin = self.at;
        let words = self.number(b'*', WORDS_MAX)?;
        if words == 0 {
            return Err(self.wrong(begin, "a command without a name").into());
        }
        let (_, name) = self.word(NAME_BYTES_MAX)?;
        let name = String::from_utf8_lossy(&name).to_ascii_uppercase();
        if CODE.contains(&name.as_str()) {
            if !self.accept_code {
                let what = format!("{name} is code, which runs when it is loaded: take it by name");
                return Err(self.wrong(begin, what).into());
            }
        } else if !COMMANDS.contains(&name.as_str()) {
            let shown: String = name.chars().filter(|letter| letter.is_ascii_graphic()).collect();
            let what = format!("the command {shown:?} is not one that changes data: it is not replayed");
            return Err(self.wrong(begin, what).into());
        }
        for number in 1..words {
            let is_serialised = name == "RESTORE" && number == 3;
            let at = self.at;
            let (length, word) = self.word(if is_serialised { SERIALISED_BYTES_MAX } else { 0 })?;
            if is_serialised {
                self.check_serialised(at, length, &word)?;
            }
        }
        Ok(())
    }

    /// A value as `DUMP` gives it: an engine that loads its own file does not look at it closely.
    fn check_serialised(&self, at: u64, length: u64, value: &[u8]) -> Result<(), Error> {
        if length > SERIALISED_BYTES_MAX {
            return Err(self.wrong(at, "a serialised value above 16 MiB is not taken"));
        }
        let family = rdb::Family::of_footer(value)
            .ok_or_else(|| self.wrong(at, "a serialised value of no version that is known"))?;
        let mut validator = rdb::DumpValidator::new(length, family);
        validator
            .feed(value)
            .and_then(|()| validator.finish().map(drop))
            .map_err(|e| self.wrong(at, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looked(bytes: &[u8], accept_code: bool) -> Result<Contents, String> {
        let folder = std::env::temp_dir();
        let path = folder.join(format!(
            "cachekeep-aof-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        std::fs::write(&path, bytes).unwrap();
        let seen = look_through(&path, &folder, accept_code);
        std::fs::remove_file(&path).unwrap();
        seen.map_err(|error| error.to_string())
    }

    fn command(words: &[&[u8]]) -> Vec<u8> {
        let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            bytes.extend_from_slice(word);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes
    }

    #[test]
    fn commands_that_change_data_pass_and_a_cut_end_is_told() {
        let good = [
            command(&[b"SELECT", b"0"]),
            b"#TS:1700000000\r\n".to_vec(),
            command(&[b"set", b"key", &[b'x'; 3000]]),
            command(&[b"MULTI"]),
            command(&[b"rpush", b"list", b"*1\r\n$8\r\nSHUTDOWN\r\n"]),
            command(&[b"EXEC"]),
        ]
        .concat();
        let all = Contents {
            rdb_bytes: 0,
            commands: 5,
            is_cut: false,
        };
        assert_eq!(looked(&good, false), Ok(all));
        for cut in 1..good.len() {
            let seen = looked(&good[..cut], false).unwrap();
            assert!(seen.commands < 5, "{cut}");
        }
        let cut = looked(&good[..good.len() - 1], false).unwrap();
        assert!(cut.is_cut && cut.commands == 4);
    }

    #[test]
    fn what_does_more_than_change_data_is_refused_with_its_offset() {
        let first = command(&[b"SET", b"a", b"b"]);
        for words in [
            &[&b"CONFIG"[..], b"SET", b"dir", b"/etc"][..],
            &[b"module", b"LOAD", b"/tmp/x.so"],
            &[b"SHUTDOWN"],
            &[b"DEBUG", b"SEGFAULT"],
            &[b"REPLICAOF", b"somewhere", b"1"],
            &[b"EVAL", b"return 1", b"0"],
            &[b"RESTORE", b"key", b"0", b"\x00\x01xno payload"],
            &[&[b'A'; 100]],
        ] {
            let bytes = [&first[..], &command(words)].concat();
            let why = looked(&bytes, false).unwrap_err();
            assert!(why.contains("at byte"), "{why}");
        }
        for bytes in [
            &b"*0\r\n"[..],
            b"*-1\r\n",
            b"*1\r\n$9999999999\r\n",
            b"SET a b\r\n",
            b"*1\r\n$3\r\nGETX\r\n",
        ] {
            assert!(looked(bytes, false).is_err(), "{bytes:?}");
        }
        let code = command(&[b"FUNCTION", b"LOAD", b"#!lua name=a\n"]);
        assert!(looked(&code, false).is_err() && looked(&code, true).is_ok());
    }
}
