//! Plain HTTP/1.1 over a socket: sends exactly the bytes a test wants, kept-alive, and reads one answer.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

/// A request before it has a credential.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    /// Path and query, as they go over the wire.
    pub target: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Request {
    pub fn new(method: &str, target: &str) -> Self {
        Self {
            method: method.to_owned(),
            target: target.to_owned(),
            headers: Vec::new(),
            body: Vec::new(),
        }
    }

    pub fn json(method: &str, target: &str, body: &Value) -> Self {
        Self::new(method, target)
            .with("Content-Type", "application/json")
            .body(body.to_string().as_bytes())
    }

    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    #[must_use]
    pub fn body(mut self, bytes: &[u8]) -> Self {
        self.body = bytes.to_vec();
        self
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        match serde_json::from_slice(&self.body) {
            Ok(value) => value,
            Err(error) => panic!("{}: no JSON ({error}): {:?}", self.status, self.text()),
        }
    }

    /// The error code of whichever of the three shapes the body has; empty where it has none.
    pub fn code(&self) -> String {
        let body: Value = serde_json::from_slice(&self.body).unwrap_or_default();

        match (&body["error_code"], &body["error"]["code"]) {
            (Value::String(flat), _) => flat.clone(),
            (_, Value::String(nested)) => nested.clone(),
            (_, Value::Number(identity)) => identity.to_string(),
            _ => String::new(),
        }
    }

    /// Status and code in one word: `400 DCS.4096`.
    pub fn verdict(&self) -> String {
        format!("{} {}", self.status, self.code())
    }

    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text());
        self
    }

    #[track_caller]
    pub fn refused(self, verdict: &str) -> Self {
        assert_eq!(self.verdict(), verdict, "{}", self.text());
        self
    }
}

/// One kept-alive connection; opened again where the service has closed it.
pub struct Connection {
    address: String,
    stream: Option<BufReader<TcpStream>>,
}

impl Connection {
    pub fn new(address: &str) -> Self {
        Self {
            address: address.to_owned(),
            stream: None,
        }
    }

    /// The service closes connections that idle: on a machine that is busy with other tests that may be any.
    fn is_closed(stream: &BufReader<TcpStream>) -> bool {
        let socket = stream.get_ref();
        socket.set_nonblocking(true).unwrap();
        let is_closed = matches!(socket.peek(&mut [0]), Ok(0));
        socket.set_nonblocking(false).unwrap();
        is_closed
    }

    fn stream(&mut self) -> &mut BufReader<TcpStream> {
        self.stream = self.stream.take().filter(|stream| !Self::is_closed(stream));
        let address = &self.address;
        self.stream.get_or_insert_with(|| {
            let stream = TcpStream::connect(address).expect("the service takes connections");
            stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            stream.set_nodelay(true).unwrap();
            BufReader::new(stream)
        })
    }

    /// Sends and reads the answer. `Host` and `Content-Length` are added where the request has none.
    pub fn send(&mut self, request: &Request) -> Answer {
        let mut head = format!("{} {} HTTP/1.1\r\n", request.method, request.target);
        if request.header("host").is_none() {
            head.push_str(&format!("Host: {}\r\n", self.address));
        }
        for (name, value) in &request.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let bodiless = request.body.is_empty() && matches!(request.method.as_str(), "GET" | "HEAD");
        if !bodiless && request.header("content-length").is_none() {
            head.push_str(&format!("Content-Length: {}\r\n", request.body.len()));
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(&request.body);
        self.send_bytes(&bytes, request.method == "HEAD")
    }

    /// Sends bytes that need not be a request at all.
    pub fn send_bytes(&mut self, bytes: &[u8], head_only: bool) -> Answer {
        let stream = self.stream();
        // A service that refuses early may have closed its end: its answer is there all the same.
        let _closed_early = stream.get_mut().write_all(bytes);
        let answer = read_answer(stream, head_only);
        if answer
            .header("connection")
            .is_some_and(|value| value.eq_ignore_ascii_case("close"))
        {
            self.stream = None;
        }
        answer
    }
}

fn read_answer(stream: &mut BufReader<TcpStream>, head_only: bool) -> Answer {
    let mut line = String::new();
    stream.read_line(&mut line).expect("an answer");
    let status = line.split(' ').nth(1).and_then(|word| word.parse().ok());
    let status = status.unwrap_or_else(|| panic!("no status line: {line:?}"));
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).expect("a whole head");
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
    let mut answer = Answer {
        status,
        headers,
        body: Vec::new(),
    };
    let length = answer
        .header("content-length")
        .map(|text| text.parse::<usize>().unwrap());
    if answer.header("content-type") == Some("text/event-stream") {
        answer.body = read_chunks(stream);
        return answer;
    }
    assert!(
        answer.header("transfer-encoding").is_none(),
        "no answer of ours is chunked but those whose end is not known"
    );
    if !head_only && status != 204 {
        answer.body = vec![0; length.unwrap_or(0)];
        stream.read_exact(&mut answer.body).expect("a whole body");
    }
    answer
}

/// A body that comes in chunks, to its end.
fn read_chunks(stream: &mut BufReader<TcpStream>) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).expect("a chunk");
        let length = usize::from_str_radix(line.trim_end(), 16).expect("a chunk's length");
        let mut chunk = vec![0; length + 2];
        stream.read_exact(&mut chunk).expect("a whole chunk");
        if length == 0 {
            return body;
        }
        body.extend_from_slice(&chunk[..length]);
    }
}
