//! A small pipelined client of the engine's protocol: blocking, one connection, TCP or Unix socket.
//!
//! Made for loading data fast, not for general use: [`Connection::send`] queues commands and reads the replies of
//! earlier ones only when many are out, and remembers the first refusal; [`Connection::call`] waits for its reply.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

/// Queued bytes are written when there are this many.
const BATCH_BYTES: usize = 128 * 1024;

/// At most this many replies are outstanding, so that the engine's output buffer stays small.
const UNANSWERED_MAX: usize = 20_000;

/// A reply longer than this, or nested deeper than [`DEPTH_MAX`], is refused as nonsense.
const REPLY_BYTES_MAX: usize = 1 << 30;
const DEPTH_MAX: usize = 16;

/// Where an engine listens and who asks.
#[derive(Clone)]
pub struct Target {
    /// Host and port, or the path of a Unix socket.
    pub place: Place,
    /// Name of the ACL user; without it the password is that of the default user.
    pub user: Option<String>,
    /// Without it no AUTH is sent.
    pub password: Option<String>,
}

/// The two kinds of address.
#[derive(Clone, Debug)]
pub enum Place {
    /// Host and port.
    Tcp(String, u16),
    /// Path of a Unix socket.
    Unix(PathBuf),
}

impl Target {
    /// An engine on this machine.
    pub fn local(port: u16, password: Option<&str>) -> Self {
        Self {
            place: Place::Tcp("127.0.0.1".to_owned(), port),
            user: None,
            password: password.map(str::to_owned),
        }
    }
}

/// One reply; a refusal is a value, not an `Err`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// `+OK` and the like.
    Status(String),
    /// `-ERR …` and the like, without the dash.
    Refused(String),
    /// An integer.
    Number(i64),
    /// A bulk string.
    Bytes(Vec<u8>),
    /// Null of either kind.
    Nil,
    /// An array.
    List(Vec<Reply>),
}

impl Reply {
    /// The reply as text, where it is text.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Status(text) => Some(text),
            Self::Bytes(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    fn first_refusal(&self) -> Option<&str> {
        match self {
            Self::Refused(message) => Some(message),
            Self::List(items) => items.iter().find_map(Self::first_refusal),
            _ => None,
        }
    }
}

/// One connection. After an `Err` of kind other than `Other` it is of no further use.
pub struct Connection {
    input: BufReader<Box<dyn Read + Send>>,
    output: Box<dyn Write + Send>,
    batch: Vec<u8>,
    unanswered: usize,
    /// Commands answered so far, refused ones included.
    pub answered: u64,
    first_refusal: Option<String>,
}

impl Connection {
    /// Connects and authenticates.
    ///
    /// # Errors
    /// The engine does not answer, or refuses the password.
    pub fn open(target: &Target) -> io::Result<Self> {
        let timeout = Some(Duration::from_secs(120));
        let (input, output): (Box<dyn Read + Send>, Box<dyn Write + Send>) = match &target.place {
            Place::Tcp(host, port) => {
                let stream = connect_tcp(host, *port)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(timeout)?;
                (Box::new(stream.try_clone()?), Box::new(stream))
            }
            Place::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(timeout)?;
                (Box::new(stream.try_clone()?), Box::new(stream))
            }
        };
        let mut connection = Self {
            input: BufReader::with_capacity(64 * 1024, input),
            output,
            batch: Vec::with_capacity(2 * BATCH_BYTES),
            unanswered: 0,
            answered: 0,
            first_refusal: None,
        };
        if let Some(password) = &target.password {
            let reply = match &target.user {
                Some(user) => connection.call(&["AUTH", user, password])?,
                None => connection.call(&["AUTH", password])?,
            };
            if let Reply::Refused(message) = reply {
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
            }
        }
        Ok(connection)
    }

    /// Queues a command; its reply is only looked at for a refusal.
    ///
    /// # Errors
    /// The connection broke. Refusals are reported by [`Connection::settle`].
    pub fn send<A: AsRef<[u8]>>(&mut self, words: &[A]) -> io::Result<()> {
        encode(words, &mut self.batch);
        self.unanswered += 1;
        if self.batch.len() >= BATCH_BYTES {
            self.write_batch()?;
            // Half of them stay out: the engine works while the next batch is made.
            if self.unanswered > UNANSWERED_MAX {
                self.read_until_unanswered(UNANSWERED_MAX / 2)?;
            }
        }
        Ok(())
    }

    /// Writes what is queued and waits for all replies.
    ///
    /// # Errors
    /// The connection broke; or a command sent since the last call was refused (kind `Other`, first message).
    pub fn settle(&mut self) -> io::Result<()> {
        self.write_batch()?;
        self.read_until_unanswered(0)?;
        match self.first_refusal.take() {
            Some(message) => Err(io::Error::other(format!("refused by the engine: {message}"))),
            None => Ok(()),
        }
    }

    /// Sends a command and waits for its reply.
    ///
    /// # Errors
    /// As [`Connection::settle`] for the commands before; a refusal of this one is a value.
    pub fn call<A: AsRef<[u8]>>(&mut self, words: &[A]) -> io::Result<Reply> {
        self.settle()?;
        encode(words, &mut self.batch);
        self.write_batch()?;
        self.answered += 1;
        read_reply(&mut self.input, DEPTH_MAX)
    }

    /// As [`Connection::call`]; a refusal is an error.
    ///
    /// # Errors
    /// The connection broke or the engine refused.
    pub fn ask<A: AsRef<[u8]>>(&mut self, words: &[A]) -> io::Result<Reply> {
        let reply = self.call(words)?;
        match reply.first_refusal() {
            Some(message) => {
                let name = words
                    .first()
                    .map(|word| String::from_utf8_lossy(word.as_ref()).into_owned());
                Err(io::Error::other(format!(
                    "{}: {message}",
                    name.unwrap_or_default()
                )))
            }
            None => Ok(reply),
        }
    }

    /// One field of `INFO section`.
    ///
    /// # Errors
    /// As [`Connection::ask`], and where the field is missing.
    pub fn info(&mut self, section: &str, field: &str) -> io::Result<String> {
        let reply = self.ask(&["INFO", section])?;
        let text = reply.text().unwrap_or_default();
        let found = text
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        found
            .map(str::to_owned)
            .ok_or_else(|| io::Error::other(format!("INFO {section} has no {field}")))
    }

    fn write_batch(&mut self) -> io::Result<()> {
        self.output.write_all(&self.batch)?;
        self.batch.clear();
        self.output.flush()
    }

    fn read_until_unanswered(&mut self, wanted: usize) -> io::Result<()> {
        while self.unanswered > wanted {
            let reply = read_reply(&mut self.input, DEPTH_MAX)?;
            self.unanswered -= 1;
            self.answered += 1;
            if self.first_refusal.is_none() {
                self.first_refusal = reply.first_refusal().map(str::to_owned);
            }
        }
        Ok(())
    }
}

/// Writes one command in the protocol's array form.
pub fn encode<A: AsRef<[u8]>>(words: &[A], out: &mut Vec<u8>) {
    header(b'*', words.len(), out);
    for word in words {
        let word = word.as_ref();
        header(b'$', word.len(), out);
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

fn header(kind: u8, count: usize, out: &mut Vec<u8>) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    let mut rest = count;
    loop {
        at -= 1;
        digits[at] = b"0123456789"[rest % 10];
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.push(kind);
    out.extend_from_slice(&digits[at..]);
    out.extend_from_slice(b"\r\n");
}

fn connect_tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address"));
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, Duration::from_secs(5)) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn read_reply(input: &mut impl BufRead, depth_left: usize) -> io::Result<Reply> {
    let mut line = Vec::with_capacity(32);
    if input.read_until(b'\n', &mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let nonsense = || io::Error::new(io::ErrorKind::InvalidData, "not a reply of the engine");
    let text = line
        .strip_suffix(b"\r\n")
        .and_then(|line| std::str::from_utf8(line).ok())
        .ok_or_else(nonsense)?;
    let (kind, rest) = text.split_at_checked(1).ok_or_else(nonsense)?;
    let number = || rest.parse::<i64>().map_err(|_| nonsense());
    let length = || match number()? {
        -1 => Ok(None),
        count => usize::try_from(count)
            .ok()
            .filter(|n| *n <= REPLY_BYTES_MAX)
            .map(Some)
            .ok_or_else(nonsense),
    };
    match kind {
        "+" => Ok(Reply::Status(rest.to_owned())),
        "-" => Ok(Reply::Refused(rest.to_owned())),
        ":" => Ok(Reply::Number(number()?)),
        "$" => {
            let Some(length) = length()? else {
                return Ok(Reply::Nil);
            };
            let mut bytes = vec![0; length + 2];
            input.read_exact(&mut bytes)?;
            bytes.truncate(length);
            Ok(Reply::Bytes(bytes))
        }
        "*" => {
            let Some(count) = length()? else {
                return Ok(Reply::Nil);
            };
            let depth_left = depth_left.checked_sub(1).ok_or_else(nonsense)?;
            (0..count)
                .map(|_| read_reply(input, depth_left))
                .collect::<io::Result<_>>()
                .map(Reply::List)
        }
        _ => Err(nonsense()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_reply_is_read() {
        let mut wire = &b"*6\r\n+OK\r\n-ERR no\r\n:-7\r\n$3\r\na\nb\r\n$-1\r\n*0\r\n"[..];
        let reply = read_reply(&mut wire, DEPTH_MAX).unwrap();
        let expected = Reply::List(vec![
            Reply::Status("OK".into()),
            Reply::Refused("ERR no".into()),
            Reply::Number(-7),
            Reply::Bytes(b"a\nb".to_vec()),
            Reply::Nil,
            Reply::List(vec![]),
        ]);
        assert_eq!(reply, expected);
        assert_eq!(reply.first_refusal(), Some("ERR no"));
        assert!(wire.is_empty());
    }

    #[test]
    fn nonsense_is_an_error() {
        for wire in [
            &b""[..],
            b"?\r\n",
            b"$9999999999\r\n",
            b":x\r\n",
            b"\r\n",
            b"$5\r\nab",
        ] {
            assert!(read_reply(&mut &*wire, DEPTH_MAX).is_err(), "{wire:?}");
        }
        let deep = b"*1\r\n".repeat(DEPTH_MAX + 1);
        assert!(read_reply(&mut &deep[..], DEPTH_MAX).is_err());
    }

    #[test]
    fn commands_are_encoded_as_arrays() {
        let mut out = Vec::new();
        encode(&["SET", "key", ""], &mut out);
        assert_eq!(out, b"*3\r\n$3\r\nSET\r\n$3\r\nkey\r\n$0\r\n\r\n");
    }
}
