//! One kept connection, as little of HTTP/1.1 as answers of the service need.

use std::io;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A head of ours has some hundred bytes.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Whether it says when to come again.
    pub has_retry_after: bool,
    /// Whether the service closes the connection behind it.
    pub closes: bool,
    /// The body's bytes.
    pub body: Vec<u8>,
}

/// A connection that is made when it is needed.
pub struct Connection {
    address: String,
    stream: Option<TcpStream>,
    read: Vec<u8>,
}

impl Connection {
    /// To this host and port.
    pub fn to(address: &str) -> Self {
        Self {
            address: address.to_owned(),
            stream: None,
            read: Vec::with_capacity(16 * 1024),
        }
    }

    /// Connects, where it is not connected, or is not any more: a connection on which nothing was asked for long is closed by any
    /// service, and clients look before they use one again.
    ///
    /// # Errors
    /// Nobody takes it.
    pub async fn open(&mut self) -> io::Result<()> {
        if self.stream.as_ref().is_some_and(is_closed) {
            self.stream = None;
        }
        if self.stream.is_none() {
            let stream = TcpStream::connect(&self.address).await?;
            stream.set_nodelay(true)?;
            self.read.clear();
            self.stream = Some(stream);
        }
        Ok(())
    }

    /// Sends a request and reads its answer. After an error the next one is sent on a new connection.
    ///
    /// # Errors
    /// The connection ended, or what came is no answer.
    pub async fn ask(&mut self, request: &[u8]) -> io::Result<Answer> {
        self.open().await?;
        let answer = self.ask_here(request).await;
        if !answer.as_ref().is_ok_and(|answer| !answer.closes) {
            self.stream = None;
        }
        answer
    }

    async fn ask_here(&mut self, request: &[u8]) -> io::Result<Answer> {
        let stream = self.stream.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        stream.write_all(request).await?;
        let head = loop {
            if let Some(end) = self.read.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            if self.read.len() > HEAD_BYTES_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
            if stream.read_buf(&mut self.read).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        };
        let (mut answer, length) = parse(&self.read[..head]).ok_or(io::ErrorKind::InvalidData)?;
        while self.read.len() < head + length {
            if stream.read_buf(&mut self.read).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        answer.body = self.read[head..head + length].to_vec();
        self.read.drain(..head + length);
        Ok(answer)
    }
}

fn is_closed(stream: &TcpStream) -> bool {
    match stream.try_read(&mut [0; 1]) {
        // Nothing was asked, so nothing is to come.
        Ok(_) => true,
        Err(error) => error.kind() != io::ErrorKind::WouldBlock,
    }
}

fn parse(head: &[u8]) -> Option<(Answer, usize)> {
    let text = std::str::from_utf8(head).ok()?;
    let mut lines = text.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let mut answer = Answer {
        status,
        has_retry_after: false,
        closes: false,
        body: Vec::new(),
    };
    let mut length = 0;
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            length = value.parse().ok()?;
        } else if name.eq_ignore_ascii_case("retry-after") {
            answer.has_retry_after = true;
        } else if name.eq_ignore_ascii_case("connection") {
            answer.closes = value.eq_ignore_ascii_case("close");
        }
    }
    Some((answer, length))
}
