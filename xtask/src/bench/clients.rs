//! Clients of an instance: one that writes all the time and watches the clock, and a crowd around it.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use std::io::{Read as _, Write as _};

use super::client::{Instance, PASSWORD};
use crate::Stop;

/// Threads that the crowd is spread over.
const CROWD_THREADS: usize = 2;

/// One connection that sends a command and waits for its answer, without any buffering.
struct Plain {
    stream: TcpStream,
}

impl Plain {
    fn open(port: u16, password: &str) -> io::Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut plain = Self { stream };
        plain.call(format!("AUTH {password}\r\n").as_bytes())?;
        Ok(plain)
    }

    fn call(&mut self, command: &[u8]) -> io::Result<()> {
        self.stream.write_all(command)?;
        let mut answer = [0; 512];
        let length = self.stream.read(&mut answer)?;
        match answer.first() {
            Some(b'+' | b':' | b'*' | b'$') if length > 0 => Ok(()),
            Some(_) if length > 0 => Err(io::Error::other(
                String::from_utf8_lossy(&answer[..length]).into_owned(),
            )),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// Writes every millisecond, reconnects at once, and keeps the longest time between two successes.
pub struct Watcher {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<Duration>>,
}

impl Watcher {
    /// Starts; the first write has succeeded when this returns.
    ///
    /// # Errors
    /// The instance cannot be reached.
    pub fn start(instance: &Instance) -> Result<Self, Stop> {
        let port = instance.port;
        Self::start_where(PASSWORD, move || Ok(port))
    }

    /// As [`Watcher::start`]; before each try to reconnect it asks where the primary is.
    ///
    /// # Errors
    /// As [`Watcher::start`].
    pub fn start_where(
        password: &'static str,
        mut find: impl FnMut() -> io::Result<u16> + Send + 'static,
    ) -> Result<Self, Stop> {
        let mut open = move || Plain::open(find()?, password);
        let mut connection = open()?;
        connection.call(b"SET watcher 0\r\n")?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || watch(open, connection, &stopped));
        Ok(Self { stop, thread })
    }

    /// Stops and tells the longest time without a success.
    ///
    /// # Errors
    /// The watcher could not come back for half a minute.
    pub fn stop(self) -> Result<Duration, Stop> {
        self.stop.store(true, Ordering::SeqCst);
        let longest = self
            .thread
            .join()
            .map_err(|_| Stop::new("the watcher panicked"))?;
        longest.map_err(|e| Stop::new(format!("the watching client never came back: {e}")))
    }
}

fn watch(
    mut open: impl FnMut() -> io::Result<Plain>,
    connection: Plain,
    stop: &AtomicBool,
) -> io::Result<Duration> {
    const GIVE_UP_AFTER: Duration = Duration::from_secs(30);
    let mut connection = Some(connection);
    let mut longest = Duration::ZERO;
    let mut last_success = Instant::now();
    let mut number = 0u64;
    while !stop.load(Ordering::SeqCst) {
        number += 1;
        let command = format!("SET watcher {number}\r\n");
        let outcome = match connection.as_mut() {
            Some(opened) => opened.call(command.as_bytes()),
            None => open().and_then(|mut opened| {
                opened.call(command.as_bytes())?;
                connection = Some(opened);
                Ok(())
            }),
        };
        match outcome {
            Ok(()) => {
                let now = Instant::now();
                longest = longest.max(now - last_success);
                last_success = now;
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => {
                connection = None;
                if last_success.elapsed() > GIVE_UP_AFTER {
                    return Err(error);
                }
                // At once, but without starving the engine on a small machine.
                std::thread::sleep(Duration::from_micros(50));
            }
        }
    }
    Ok(longest)
}

/// Many connections that are there, are used now and then, and come back when they are closed.
pub struct Crowd {
    stop: Arc<AtomicBool>,
    closed: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Crowd {
    /// Opens the connections; every tenth subscribes to a channel.
    ///
    /// # Errors
    /// The instance does not take as many.
    pub fn gather(instance: &Instance, connections: usize) -> Result<Self, Stop> {
        let stop = Arc::new(AtomicBool::new(false));
        let closed = Arc::new(AtomicU64::new(0));
        let mut threads = Vec::new();
        for thread in 0..CROWD_THREADS {
            let mut members = Vec::new();
            for number in (thread..connections).step_by(CROWD_THREADS) {
                let mut member = Member {
                    subscribes: number % 10 == 0,
                    port: instance.port,
                    connection: None,
                };
                member.use_it()?;
                members.push(member);
            }
            let (stop, closed) = (Arc::clone(&stop), Arc::clone(&closed));
            threads.push(std::thread::spawn(move || keep_up(&mut members, &stop, &closed)));
        }
        Ok(Self {
            stop,
            closed,
            threads,
        })
    }

    /// Closes them all; how often one had been closed from the other side.
    pub fn disperse(self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads {
            let _a_panic_was_printed = thread.join();
        }
        self.closed.load(Ordering::Relaxed)
    }
}

/// Looks at all members every few milliseconds, so that closed ones come back as fast as those of a real client
/// library, and uses one after the other.
fn keep_up(members: &mut [Member], stop: &AtomicBool, closed: &AtomicU64) {
    let look_every = Duration::from_millis(5);
    let uses_per_look = (members.len() * 5).div_ceil(1000);
    let mut next = 0;
    while !stop.load(Ordering::SeqCst) {
        for member in members.iter_mut().filter(|member| member.is_closed()) {
            closed.fetch_add(1, Ordering::Relaxed);
            member.connection = None;
            let _next_look_tries_again = member.use_it();
        }
        for _ in 0..uses_per_look {
            let member = &mut members[next];
            if member.use_it().is_err() {
                member.connection = None;
            }
            next = (next + 1) % members.len();
        }
        std::thread::sleep(look_every);
    }
}

struct Member {
    subscribes: bool,
    port: u16,
    connection: Option<Plain>,
}

impl Member {
    /// Whether the other side has closed the connection; bytes that wait to be read are no sign of it.
    fn is_closed(&self) -> bool {
        let Some(open) = &self.connection else { return true };
        let looked = open
            .stream
            .set_nonblocking(true)
            .and_then(|()| open.stream.peek(&mut [0]));
        let back = open.stream.set_nonblocking(false);
        match looked {
            Ok(length) => length == 0 || back.is_err(),
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        }
    }

    fn use_it(&mut self) -> io::Result<()> {
        if let Some(open) = self.connection.as_mut() {
            // A subscriber may send PING, too.
            return open.call(b"PING\r\n");
        }
        let mut open = Plain::open(self.port, PASSWORD)?;
        open.call(if self.subscribes {
            b"SUBSCRIBE news\r\n"
        } else {
            b"PING\r\n"
        })?;
        self.connection = Some(open);
        Ok(())
    }
}
