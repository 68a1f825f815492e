//! One blocking connection to one engine node: TCP, TLS or Unix socket, RESP2, AUTH.
//!
//! Written by hand because the same connection must hand over raw bytes: a snapshot after `PSYNC`, a `DUMP`
//! reply of half a gigabyte. Commands here are few and small; nothing is pipelined that must be fast.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::sockopt::socket_peercred;
use rustix::process::Pid;

use crate::error::{Error, Kind};

/// Bytes read from the socket at once.
const READ_BUFFER_BYTES: usize = 256 * 1024;
/// Longest reply line and longest bulk reply that is kept in memory. Snapshots and dumps are streamed and not
/// subject to it.
const LINE_BYTES_MAX: usize = 64 * 1024;
const BULK_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bytes of one whole reply of a server that is not ours: `CLUSTER NODES` has 200 for a node.
const FOREIGN_REPLY_BYTES_MAX: usize = 1024 * 1024;
/// Deepest nesting of arrays in a reply, as deep as any engine command answers: `COMMAND INFO` of one with subcommands.
const DEPTH_MAX: u32 = 9;
/// Most elements of one array reply.
const ARRAY_LEN_MAX: usize = 1 << 20;

/// A password that never prints.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps the text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself: only for the wire, a sealed column or a person who asked for it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Where a node listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// Host name or address, and port.
    Tcp(String, u16),
    /// A host that was looked up, and where: connected to exactly there, whatever its name leads to by now. A certificate must
    /// be of the name.
    Checked(String, SocketAddr),
    /// Path of a Unix socket. Longer than the kernel's 107 bytes is fine: it is reached through its directory.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(host, port) => write!(f, "{host}:{port}"),
            Address::Checked(host, at) if host.contains(':') => write!(f, "[{host}]:{}", at.port()),
            Address::Checked(host, at) => write!(f, "{host}:{}", at.port()),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// How to reach a node and as whom.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Where it listens.
    pub address: Address,
    /// ACL user; `None` with a password means the default user.
    pub user: Option<String>,
    /// Password; `None` means that no `AUTH` is sent.
    pub password: Option<Secret>,
    /// TLS client settings; not for [`Address::Unix`].
    pub tls: Option<Tls>,
    /// Limit for connecting, and for each silence of the peer.
    pub timeout: Duration,
}

/// How a node is known to be the right one.
#[derive(Debug, Clone)]
pub struct Tls {
    /// Whom certificates must be signed by, and our own.
    pub config: Arc<rustls::ClientConfig>,
    /// The name that the certificate must be of, where that is not the host's.
    pub name: Option<String>,
}

/// What a peer may cost that may be no engine at all.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Bytes of one whole reply; a declared length counts before it is there.
    pub reply_bytes_max: usize,
    /// All must be said by then, however slowly it drips; [`Node::release`] lifts it. `None`: only silence ends it.
    pub until: Option<Instant>,
}

impl Bounds {
    /// Of engines that we trust.
    const WIDE: Bounds = Bounds {
        reply_bytes_max: usize::MAX,
        until: None,
    };

    /// Of a server that is not ours: what any engine answers in, `CLUSTER NODES` of a thousand nodes among it, within this time.
    pub fn narrow(limit: Duration) -> Self {
        Self {
            reply_bytes_max: FOREIGN_REPLY_BYTES_MAX,
            until: Instant::now().checked_add(limit),
        }
    }
}

/// A RESP2 reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// `+OK`
    Simple(String),
    /// `-ERR ...`
    Error(String),
    /// `:1`
    Int(i64),
    /// `$3`; `None` for the null bulk.
    Bulk(Option<Vec<u8>>),
    /// `*2`
    Array(Vec<Reply>),
}

impl Reply {
    /// The text of a simple or bulk reply.
    pub fn text(&self) -> Option<String> {
        match self {
            Reply::Simple(text) => Some(text.clone()),
            Reply::Bulk(Some(bytes)) => Some(String::from_utf8_lossy(bytes).into_owned()),
            _ => None,
        }
    }

    /// The number of an integer reply.
    pub fn int(&self) -> Option<i64> {
        match self {
            Reply::Int(number) => Some(*number),
            _ => None,
        }
    }
}

/// A TCP connection, with a moment after which nothing more is read or written: a peer that drips a byte now and then is never
/// silent for long.
struct Socket {
    stream: TcpStream,
    until: Option<Instant>,
}

impl Socket {
    fn check(&self) -> io::Result<()> {
        match self.until {
            Some(until) if Instant::now() >= until => Err(io::ErrorKind::TimedOut.into()),
            _ => Ok(()),
        }
    }
}

impl Read for Socket {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.check()?;
        self.stream.read(buf)
    }
}

impl Write for Socket {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.check()?;
        self.stream.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

enum Stream {
    Tcp(Socket),
    Unix(UnixStream),
    Tls(Box<rustls::StreamOwned<rustls::ClientConnection, Socket>>),
}

impl Stream {
    fn set_timeout(&self, limit: Duration) -> io::Result<()> {
        let socket = match self {
            Stream::Tcp(s) => &s.stream,
            Stream::Tls(s) => &s.sock.stream,
            Stream::Unix(s) => {
                return s
                    .set_read_timeout(Some(limit))
                    .and_then(|()| s.set_write_timeout(Some(limit)));
            }
        };
        socket
            .set_read_timeout(Some(limit))
            .and_then(|()| socket.set_write_timeout(Some(limit)))
    }

    fn bound(&mut self, until: Option<Instant>) {
        match self {
            Stream::Tcp(s) => s.until = until,
            Stream::Tls(s) => s.sock.until = until,
            Stream::Unix(_) => {}
        }
    }
}

impl Read for Stream {
    /// A signal, or a stop and continue of this process, interrupts a read that has a timeout (signal(7)): that is
    /// no failure of the connection.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let done = match self {
                Stream::Tcp(s) => s.read(buf),
                Stream::Unix(s) => s.read(buf),
                Stream::Tls(s) => s.read(buf),
            };
            match done {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                done => return done,
            }
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(s) => s.write(buf),
            Stream::Unix(s) => s.write(buf),
            Stream::Tls(s) => s.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Stream::Tcp(s) => s.flush(),
            Stream::Unix(s) => s.flush(),
            Stream::Tls(s) => s.flush(),
        }
    }
}

/// An open, authenticated connection.
pub struct Node {
    stream: Stream,
    label: String,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    reply_bytes_max: usize,
    /// Bytes that the reply which is being read may still have.
    reply_bytes_left: usize,
}

impl Node {
    /// Connects and authenticates.
    ///
    /// # Errors
    /// [`Kind::Connection`], [`Kind::Auth`], [`Kind::Protocol`]. Nothing is left open.
    pub fn connect(endpoint: &Endpoint) -> Result<Self, Error> {
        Self::connect_within(endpoint, Bounds::WIDE)
    }

    /// As [`Node::connect`], to a peer that may cost no more than this.
    ///
    /// # Errors
    /// As [`Node::connect`]; [`Kind::Protocol`] for a reply that is too long, [`Kind::Idle`] past the moment.
    pub fn connect_within(endpoint: &Endpoint, bounds: Bounds) -> Result<Self, Error> {
        let label = endpoint.address.to_string();
        let failed = |e: io::Error| Error::io(Kind::Connection, "connect", label.clone(), e);
        let stream = match &endpoint.address {
            Address::Unix(path) => Stream::Unix(connect_unix(path).map_err(failed)?),
            Address::Tcp(host, _) | Address::Checked(host, _) => {
                let stream = match &endpoint.address {
                    Address::Checked(_, at) => TcpStream::connect_timeout(at, endpoint.timeout),
                    Address::Tcp(_, port) => connect_tcp(host, *port, endpoint.timeout),
                    Address::Unix(_) => Err(io::ErrorKind::InvalidInput.into()),
                }
                .map_err(failed)?;
                stream.set_nodelay(true).map_err(failed)?;
                // The handshake of TLS too.
                let limit = Some(endpoint.timeout);
                stream
                    .set_read_timeout(limit)
                    .and_then(|()| stream.set_write_timeout(limit))
                    .map_err(failed)?;
                let socket = Socket {
                    stream,
                    until: bounds.until,
                };
                match &endpoint.tls {
                    None => Stream::Tcp(socket),
                    Some(tls) => {
                        let named = tls.name.clone().unwrap_or_else(|| host.clone());
                        let name = rustls::pki_types::ServerName::try_from(named).map_err(|e| {
                            Error::new(
                                Kind::Connection,
                                "connect",
                                format!("{label}: not a TLS server name"),
                            )
                            .because(e)
                        })?;
                        let client = rustls::ClientConnection::new(tls.config.clone(), name)
                            .map_err(|e| Error::new(Kind::Connection, "connect", label.clone()).because(e))?;
                        Stream::Tls(Box::new(rustls::StreamOwned::new(client, socket)))
                    }
                }
            }
        };
        stream.set_timeout(endpoint.timeout).map_err(failed)?;
        let mut node = Self {
            stream,
            label,
            buffer: vec![0; READ_BUFFER_BYTES],
            start: 0,
            end: 0,
            reply_bytes_max: bounds.reply_bytes_max,
            reply_bytes_left: 0,
        };
        if let Some(password) = &endpoint.password {
            let answer = match &endpoint.user {
                Some(user) => node.ask(&[b"AUTH", user.as_bytes(), password.expose().as_bytes()])?,
                None => node.ask(&[b"AUTH", password.expose().as_bytes()])?,
            };
            if let Reply::Error(text) = answer {
                // No more than the code: a peer that is no engine may say what it was asked, the password among it.
                let code = text.split(' ').next().unwrap_or_default();
                let is_code = code.len() <= 32 && code.bytes().all(|byte| byte.is_ascii_uppercase());
                let why = match !code.is_empty() && is_code && code != password.expose() {
                    true => code,
                    false => "the user or the password is refused",
                };
                return Err(Error::new(
                    Kind::Auth,
                    "authenticate",
                    format!("{}: {why}", node.label),
                ));
            }
        }
        Ok(node)
    }

    /// A connection that is open already, to a peer that wants no password.
    pub(crate) fn over(stream: UnixStream, label: &str) -> Self {
        Self {
            stream: Stream::Unix(stream),
            label: label.to_owned(),
            buffer: vec![0; READ_BUFFER_BYTES],
            start: 0,
            end: 0,
            reply_bytes_max: usize::MAX,
            reply_bytes_left: 0,
        }
    }

    /// The peer has shown what it is: from now on only its silence ends the connection.
    pub fn release(&mut self) {
        self.bound(None);
    }

    /// What is asked from now on must have been answered by then, however slowly it drips; `None`: only silence ends it. A Unix
    /// socket is of an engine of ours, and has no such moment.
    pub fn bound(&mut self, until: Option<Instant>) {
        self.stream.bound(until);
    }

    /// The address, for messages.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The process at the other end of a Unix socket, where this machine can name it.
    pub(crate) fn peer(&self) -> Option<Pid> {
        match &self.stream {
            Stream::Unix(socket) => Some(socket_peercred(socket).ok()?.pid),
            Stream::Tcp(_) | Stream::Tls(_) => None,
        }
    }

    /// Changes the limit for each silence of the peer.
    ///
    /// # Errors
    /// [`Kind::Connection`] where the socket is gone.
    pub fn set_timeout(&self, limit: Duration) -> Result<(), Error> {
        self.stream
            .set_timeout(limit)
            .map_err(|e| Error::io(Kind::Connection, "set timeout", &*self.label, e))
    }

    /// Sends a command and returns its reply, error replies included.
    ///
    /// # Errors
    /// [`Kind::Connection`], [`Kind::Idle`], [`Kind::Protocol`]: the connection is of no more use.
    pub fn ask(&mut self, words: &[&[u8]]) -> Result<Reply, Error> {
        self.send(words)?;
        self.reply()
    }

    /// Sends a command; an error reply is [`Kind::Refused`].
    ///
    /// # Errors
    /// As [`Node::ask`], and [`Kind::Refused`] with the engine's text.
    pub fn command(&mut self, words: &[&[u8]]) -> Result<Reply, Error> {
        match self.ask(words)? {
            Reply::Error(text) => {
                let verb = String::from_utf8_lossy(words.first().copied().unwrap_or_default()).into_owned();
                Err(Error::new(
                    Kind::Refused,
                    "run command",
                    format!("{}: {verb}: {text}", self.label),
                ))
            }
            reply => Ok(reply),
        }
    }

    /// [`Node::command`] with text words.
    ///
    /// # Errors
    /// As [`Node::command`].
    pub fn run(&mut self, words: &[&str]) -> Result<Reply, Error> {
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        self.command(&words)
    }

    /// Reads `INFO <section>` as name and value pairs.
    ///
    /// # Errors
    /// As [`Node::command`].
    pub fn info(&mut self, section: &str) -> Result<Vec<(String, String)>, Error> {
        let text = self.run(&["INFO", section])?.text().unwrap_or_default();
        Ok(text
            .lines()
            .filter_map(|line| line.trim_end().split_once(':'))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect())
    }

    /// Reads one configuration value; `None` where the engine does not know it.
    ///
    /// # Errors
    /// As [`Node::command`].
    pub fn config_get(&mut self, name: &str) -> Result<Option<String>, Error> {
        match self.run(&["CONFIG", "GET", name])? {
            Reply::Array(pair) => Ok(pair.get(1).and_then(Reply::text)),
            _ => Ok(None),
        }
    }

    /// Sets one configuration value.
    ///
    /// # Errors
    /// As [`Node::command`].
    pub fn config_set(&mut self, name: &str, value: &str) -> Result<(), Error> {
        self.run(&["CONFIG", "SET", name, value]).map(drop)
    }

    /// Sends a command without waiting for the reply.
    ///
    /// # Errors
    /// [`Kind::Connection`], [`Kind::Idle`].
    pub fn send(&mut self, words: &[&[u8]]) -> Result<(), Error> {
        let mut bytes = Vec::with_capacity(64 + words.iter().map(|word| word.len() + 16).sum::<usize>());
        let _infallible = write!(bytes, "*{}\r\n", words.len());
        for word in words {
            let _infallible = write!(bytes, "${}\r\n", word.len());
            bytes.extend_from_slice(word);
            bytes.extend_from_slice(b"\r\n");
        }
        self.stream
            .write_all(&bytes)
            .map_err(|e| self.broken("send command", e))?;
        self.stream.flush().map_err(|e| self.broken("send command", e))
    }

    /// Sends bytes that are whole commands, or pieces of some that are sent one after the other.
    ///
    /// # Errors
    /// As [`Node::send`].
    pub(crate) fn send_raw(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.stream
            .write_all(bytes)
            .and_then(|()| self.stream.flush())
            .map_err(|e| self.broken("send command", e))
    }

    /// Passes over replies of `+OK` that have arrived, at most so many, and returns how many they were: what most of many
    /// replies are costs nothing this way.
    pub(crate) fn skip_ok(&mut self, most: usize) -> usize {
        const OK: &[u8] = b"+OK\r\n";
        let arrived = &self.buffer[self.start..self.end];
        let count = arrived
            .chunks_exact(OK.len())
            .take(most)
            .take_while(|reply| *reply == OK)
            .count();
        self.start += count * OK.len();
        count
    }

    /// Reads one whole reply into memory.
    ///
    /// # Errors
    /// As [`Node::ask`].
    pub fn reply(&mut self) -> Result<Reply, Error> {
        self.reply_bytes_left = self.reply_bytes_max;
        self.reply_at(0)
    }

    /// Takes what is about to be kept off what the reply may have.
    fn take_room(&mut self, bytes: usize) -> Result<(), Error> {
        match self.reply_bytes_left.checked_sub(bytes) {
            Some(left) => {
                self.reply_bytes_left = left;
                Ok(())
            }
            None => Err(self.garbage("reply longer than any engine's")),
        }
    }

    fn reply_at(&mut self, depth: u32) -> Result<Reply, Error> {
        let line = self.line()?;
        self.take_room(line.len() + std::mem::size_of::<Reply>())?;
        let Some((&kind, rest)) = line.split_first() else {
            return Err(self.garbage("empty reply line"));
        };
        let text = String::from_utf8_lossy(rest).into_owned();
        match kind {
            b'+' => Ok(Reply::Simple(text)),
            b'-' => Ok(Reply::Error(text)),
            b':' => text
                .parse()
                .map(Reply::Int)
                .map_err(|_| self.garbage("integer reply is no integer")),
            b'$' => {
                let len: i64 = text
                    .parse()
                    .map_err(|_| self.garbage("bulk length is no integer"))?;
                if len < 0 {
                    return Ok(Reply::Bulk(None));
                }
                let len = usize::try_from(len).unwrap_or(usize::MAX);
                if len > BULK_BYTES_MAX {
                    return Err(self.garbage("bulk reply above 16 MiB"));
                }
                self.take_room(len)?;
                let mut bytes = vec![0; len + 2];
                self.read_exact(&mut bytes)?;
                bytes.truncate(len);
                Ok(Reply::Bulk(Some(bytes)))
            }
            b'*' => {
                let len: i64 = text
                    .parse()
                    .map_err(|_| self.garbage("array length is no integer"))?;
                let len = usize::try_from(len).unwrap_or(0);
                if len > ARRAY_LEN_MAX || depth >= DEPTH_MAX {
                    return Err(self.garbage("array reply too long or too deep"));
                }
                let mut items = Vec::new();
                for _ in 0..len {
                    items.push(self.reply_at(depth + 1)?);
                }
                Ok(Reply::Array(items))
            }
            _ => Err(self.garbage("unknown reply type")),
        }
    }

    /// Reads the beginning of a bulk reply, whose bytes and line end follow: its length, `None` for the null bulk. Any other
    /// reply is read whole.
    ///
    /// # Errors
    /// As [`Node::ask`].
    pub fn bulk_header(&mut self) -> Result<Result<Option<u64>, Reply>, Error> {
        let line = self.line()?;
        match line.split_first() {
            Some((b'$', number)) => match String::from_utf8_lossy(number).parse::<i64>() {
                Ok(number) => Ok(Ok(u64::try_from(number).ok())),
                Err(_) => Err(self.garbage("bulk length is no integer")),
            },
            Some((b'-', text)) => Ok(Err(Reply::Error(String::from_utf8_lossy(text).into_owned()))),
            _ => Err(self.garbage("no bulk reply")),
        }
    }

    /// Reads one line without its line end (`\r\n` or a bare `\n`).
    ///
    /// # Errors
    /// As [`Node::ask`]; [`Kind::Protocol`] for a line above 64 KiB.
    pub fn line(&mut self) -> Result<Vec<u8>, Error> {
        let mut line = Vec::new();
        loop {
            let found = self.buffer[self.start..self.end]
                .iter()
                .position(|&byte| byte == b'\n');
            let upto = found.map_or(self.end, |at| self.start + at + 1);
            line.extend_from_slice(&self.buffer[self.start..upto]);
            self.start = upto;
            if found.is_some() {
                line.pop();
                if line.last() == Some(&b'\r') {
                    line.pop();
                }
                return Ok(line);
            }
            if line.len() > LINE_BYTES_MAX {
                return Err(self.garbage("reply line above 64 KiB"));
            }
            self.fill()?;
        }
    }

    /// Bytes that have arrived: what is buffered, else what one read brings. Never empty.
    ///
    /// # Errors
    /// [`Kind::Connection`] at the end of the stream, [`Kind::Idle`] after the timeout.
    pub fn read_some(&mut self, into: &mut [u8]) -> Result<usize, Error> {
        if self.start == self.end {
            let count = self.stream.read(into).map_err(|e| self.broken("read", e))?;
            return if count == 0 { Err(self.closed()) } else { Ok(count) };
        }
        let count = into.len().min(self.end - self.start);
        into[..count].copy_from_slice(&self.buffer[self.start..self.start + count]);
        self.start += count;
        Ok(count)
    }

    /// Fills `into` wholly.
    ///
    /// # Errors
    /// As [`Node::read_some`].
    pub fn read_exact(&mut self, into: &mut [u8]) -> Result<(), Error> {
        let mut done = 0;
        while done < into.len() {
            done += self.read_some(&mut into[done..])?;
        }
        Ok(())
    }

    fn fill(&mut self) -> Result<(), Error> {
        let count = self
            .stream
            .read(&mut self.buffer)
            .map_err(|e| self.broken("read", e))?;
        if count == 0 {
            return Err(self.closed());
        }
        self.start = 0;
        self.end = count;
        Ok(())
    }

    fn broken(&self, operation: &'static str, cause: io::Error) -> Error {
        let kind = match cause.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Kind::Idle,
            _ => Kind::Connection,
        };
        Error::new(kind, operation, &*self.label).because(cause)
    }

    fn closed(&self) -> Error {
        Error::new(
            Kind::Connection,
            "read",
            format!("{} closed the connection", self.label),
        )
    }

    fn garbage(&self, what: &str) -> Error {
        Error::new(Kind::Protocol, "read reply", format!("{}: {what}", self.label))
    }
}

fn connect_tcp(host: &str, port: u16, limit: Duration) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, limit) {
            Ok(socket) => return Ok(socket),
            Err(e) => last = e,
        }
    }
    Err(last)
}

/// A Unix socket address holds 107 bytes of path; a data directory may lie deeper. The directory is opened and
/// the socket named through `/proc/self/fd`, which is short.
pub(crate) fn connect_unix(path: &std::path::Path) -> io::Result<UnixStream> {
    use std::os::fd::AsRawFd;
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return UnixStream::connect(path);
    };
    let here = std::path::Path::new(".");
    let directory = if directory.as_os_str().is_empty() {
        here
    } else {
        directory
    };
    let directory = std::fs::File::open(directory)?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
    UnixStream::connect(short)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_drips_holds_nobody_beyond_the_moment() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            while client.write_all(b"+").is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let endpoint = Endpoint {
            address: Address::Checked("localhost".to_owned(), at),
            user: None,
            password: None,
            tls: None,
            timeout: Duration::from_secs(5),
        };
        let mut node = Node::connect(&endpoint).unwrap();
        let began = Instant::now();
        node.bound(began.checked_add(Duration::from_millis(300)));
        assert_eq!(node.run(&["PING"]).unwrap_err().kind, Kind::Idle);
        assert!(began.elapsed() < Duration::from_secs(4));
    }
}
