//! A bad network between an HTTP client and a server: passes requests on, and spoils some of them.
//!
//! One request a connection, on both sides: whoever sends two opens another. Which requests are spoilt is drawn from
//! the seed and their number, so a run with one client thread is the same each time.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::Stop;

/// Bytes of a request's or answer's head; beyond that it is no HTTP of ours.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Bytes of a body; segments are below 9 MiB.
const BODY_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What is done to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Answered with 500, the server never sees it.
    Answer500,
    /// Answered with 503.
    Answer503,
    /// Answered with 429.
    Answer429,
    /// The connection is reset while the request's body is being sent.
    ResetUpload,
    /// The connection ends in the middle of the answer.
    ResetDownload,
    /// The server does what is asked, and its answer is lost.
    LoseAnswer,
    /// A well-formed answer to GET with half of the body.
    Truncate,
    /// An answer to GET with some bytes changed.
    Flip,
    /// Some bytes of the request's body are changed on their way to the server.
    FlipUpload,
    /// Silence, then the end of the connection.
    Stall,
}

impl Fault {
    /// All of them.
    pub const ALL: [Fault; 10] = [
        Fault::Answer500,
        Fault::Answer503,
        Fault::Answer429,
        Fault::ResetUpload,
        Fault::ResetDownload,
        Fault::LoseAnswer,
        Fault::Truncate,
        Fault::Flip,
        Fault::FlipUpload,
        Fault::Stall,
    ];
}

struct Shared {
    server: SocketAddr,
    seed: u64,
    stall: Duration,
    percent: AtomicU32,
    is_down: AtomicBool,
    is_closing: AtomicBool,
    requests: AtomicU64,
    /// Faults so far, by whether the request is a GET and whether it has a body.
    turns: [AtomicUsize; 4],
    counts: [AtomicU64; Fault::ALL.len()],
}

/// A running proxy; ends on drop.
pub struct FaultProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl FaultProxy {
    /// Starts on a free loopback port with a fault rate of 0. A stalled request is held for `stall`.
    ///
    /// # Errors
    /// No port.
    pub fn start(server: SocketAddr, seed: u64, stall: Duration) -> Result<Self, Stop> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            server,
            seed,
            stall,
            percent: AtomicU32::new(0),
            is_down: AtomicBool::new(false),
            is_closing: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            turns: Default::default(),
            counts: Default::default(),
        });
        let accepting = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if accepting.is_closing.load(Ordering::Relaxed) {
                    break;
                }
                let shared = accepting.clone();
                std::thread::spawn(move || {
                    // Either side may go at any time: that is what this is for.
                    let _ended = shared.serve(client);
                });
            }
        });
        Ok(Self { address, shared })
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Spoils this share of the requests from now on.
    pub fn set_percent(&self, percent: u32) {
        self.shared.percent.store(percent, Ordering::Relaxed);
    }

    /// From now on every connection is closed at once, or no more.
    pub fn set_down(&self, is_down: bool) {
        self.shared.is_down.store(is_down, Ordering::Relaxed);
    }

    /// Requests seen, spoilt ones included.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// How often each fault was done.
    pub fn counts(&self) -> Vec<(Fault, u64)> {
        let counts = self
            .shared
            .counts
            .iter()
            .map(|count| count.load(Ordering::Relaxed));
        Fault::ALL.into_iter().zip(counts).collect()
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.shared.is_closing.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts.
        let _woken = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn serve(&self, mut client: TcpStream) -> io::Result<()> {
        if self.is_down.load(Ordering::Relaxed) {
            return Ok(());
        }
        client.set_read_timeout(Some(Duration::from_secs(60)))?;
        let (head, mut body) = read_head(&mut client)?;
        let length = content_length(&head).unwrap_or(0);
        let is_get = head.starts_with("GET ");
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let fault = self.draw(number, is_get, length);
        if let Some(fault) = fault {
            self.counts[fault as usize].fetch_add(1, Ordering::Relaxed);
        }
        if fault == Some(Fault::ResetUpload) {
            // Half of it goes to the server; the rest lies unread when the socket closes, which resets it.
            read_up_to(&mut client, &mut body, length / 2)?;
            let mut server = TcpStream::connect(self.server)?;
            server.write_all(close_after(&head).as_bytes())?;
            return server.write_all(&body);
        }
        read_up_to(&mut client, &mut body, length)?;
        match fault {
            Some(Fault::Answer500) => {
                return answer(&mut client, "500 Internal Server Error", "InternalError");
            }
            Some(Fault::Answer503) => return answer(&mut client, "503 Slow Down", "SlowDown"),
            Some(Fault::Answer429) => return answer(&mut client, "429 Too Many Requests", "TooManyRequests"),
            Some(Fault::Stall) => {
                std::thread::sleep(self.stall);
                return Ok(());
            }
            Some(Fault::FlipUpload) => self.flip(number, &mut body),
            _ => {}
        }
        let mut server = TcpStream::connect(self.server)?;
        server.write_all(close_after(&head).as_bytes())?;
        server.write_all(&body)?;
        let (answer_head, mut answer_body) = read_head(&mut server)?;
        server.take(BODY_BYTES_MAX as u64).read_to_end(&mut answer_body)?;
        let half = answer_body.len() / 2;
        match fault {
            Some(Fault::LoseAnswer) => return Ok(()),
            Some(Fault::ResetDownload) => answer_body.truncate(half),
            Some(Fault::Truncate) => {
                answer_body.truncate(half);
                client.write_all(with_length(&answer_head, half).as_bytes())?;
                return client.write_all(&answer_body);
            }
            Some(Fault::Flip) => self.flip(number, &mut answer_body),
            _ => {}
        }
        client.write_all(answer_head.as_bytes())?;
        client.write_all(&answer_body)
    }

    /// Changes one to three bytes.
    fn flip(&self, number: u64, body: &mut [u8]) {
        for nth in 0..3 {
            let at = mix(self.seed ^ number, nth) as usize % body.len().max(1);
            if let Some(byte) = body.get_mut(at) {
                *byte ^= 0x20;
            }
        }
    }

    /// The fault of a request, if any: which requests is drawn, and what happens to them goes round among all that
    /// can happen to such a request, so that none is left out.
    fn draw(&self, number: u64, is_get: bool, length: usize) -> Option<Fault> {
        if mix(self.seed, number) % 100 >= u64::from(self.percent.load(Ordering::Relaxed)) {
            return None;
        }
        let fits = |fault: &Fault| match fault {
            Fault::ResetUpload | Fault::FlipUpload => length > 0,
            Fault::Truncate | Fault::Flip | Fault::ResetDownload => is_get,
            _ => true,
        };
        let fitting: Vec<Fault> = Fault::ALL.into_iter().filter(fits).collect();
        let kind = usize::from(is_get) + 2 * usize::from(length > 0);
        let turn = self.turns[kind].fetch_add(1, Ordering::Relaxed);
        Some(fitting[turn % fitting.len()])
    }
}

/// Splitmix64: the `nth` number of the seed's sequence.
fn mix(seed: u64, nth: u64) -> u64 {
    let mut z = seed.wrapping_add(nth.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The head with its empty line, and what was read beyond it.
fn read_head(from: &mut TcpStream) -> io::Result<(String, Vec<u8>)> {
    let mut seen = Vec::new();
    let mut some = [0; 16 * 1024];
    loop {
        if let Some(at) = seen.windows(4).position(|four| four == b"\r\n\r\n") {
            let rest = seen.split_off(at + 4);
            return Ok((String::from_utf8_lossy(&seen).into_owned(), rest));
        }
        let count = from.read(&mut some)?;
        if count == 0 || seen.len() > HEAD_BYTES_MAX {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        seen.extend_from_slice(&some[..count]);
    }
}

fn read_up_to(from: &mut TcpStream, body: &mut Vec<u8>, length: usize) -> io::Result<()> {
    if length > BODY_BYTES_MAX {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let missing = length.saturating_sub(body.len()) as u64;
    from.take(missing).read_to_end(body).map(drop)
}

fn content_length(head: &str) -> Option<usize> {
    header(head, "content-length")?.parse().ok()
}

fn header<'a>(head: &'a str, wanted: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case(wanted).then(|| value.trim())
    })
}

/// The head without the lines that `unwanted` names, and with these lines instead.
fn rewritten(head: &str, unwanted: &str, instead: &str) -> String {
    let kept = head.lines().filter(|line| !line.is_empty()).filter(|line| {
        !line
            .split_once(':')
            .is_some_and(|(name, _)| name.eq_ignore_ascii_case(unwanted))
    });
    let mut text = String::new();
    for line in kept.chain([instead, ""]) {
        text.push_str(line);
        text.push_str("\r\n");
    }
    text
}

fn close_after(head: &str) -> String {
    rewritten(head, "connection", "Connection: close")
}

fn with_length(head: &str, length: usize) -> String {
    rewritten(head, "content-length", &format!("Content-Length: {length}"))
}

fn answer(client: &mut TcpStream, status: &str, code: &str) -> io::Result<()> {
    let body = format!(
        "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>of the fault proxy</Message></Error>"
    );
    let length = body.len();
    write!(
        client,
        "HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let mut client = client.unwrap();
                let Ok((head, mut body)) = read_head(&mut client) else {
                    continue;
                };
                let length = content_length(&head).unwrap_or(0);
                let _cut_short = read_up_to(&mut client, &mut body, length);
                let sum: u64 = body.iter().map(|byte| u64::from(*byte)).sum();
                let text = format!("the body of the answer, long enough to be cut: {sum}");
                let size = text.len();
                let _gone = write!(client, "HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n{text}");
            }
        });
        address
    }

    fn ask(proxy: &FaultProxy, request: &str) -> Vec<u8> {
        let mut client = TcpStream::connect(proxy.address()).unwrap();
        let mut answer = Vec::new();
        let _spoilt = client.write_all(request.as_bytes());
        let _spoilt = client.read_to_end(&mut answer);
        answer
    }

    #[test]
    fn spoils_the_share_it_is_told_and_every_fault_happens() {
        let proxy = FaultProxy::start(server(), 7, Duration::from_millis(1)).unwrap();
        let get = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
        let put = format!(
            "PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 40000\r\n\r\n{}",
            "p".repeat(40_000)
        );
        let good = [ask(&proxy, get), ask(&proxy, &put)];
        assert!(good[0].ends_with(b": 0") && good[1].ends_with(b": 4480000"));
        proxy.set_percent(20);
        let bad = (0..1000).filter(|nth| ask(&proxy, [get, &put][nth % 2]) != good[nth % 2]);
        let bad = bad.count();
        assert!((150..250).contains(&bad), "{bad} of 1000");
        let counts = proxy.counts();
        assert!(counts.iter().all(|(_, count)| *count > 0), "{counts:?}");
        assert_eq!(counts.iter().map(|(_, count)| count).sum::<u64>(), bad as u64);
        proxy.set_down(true);
        assert!(ask(&proxy, get).is_empty());
    }
}
