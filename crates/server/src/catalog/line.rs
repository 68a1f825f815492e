//! A connection to the database's server whose bytes are waited for by the thread that needs them.
//!
//! No runtime knows of it. One for each connection would have to be entered, and a thread of the service's own may do that only once
//! another thread has taken its place (`block_in_place`): under load that was a sixth of what the service did.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::Config;
use tokio_postgres::config::{Host, LoadBalanceHosts};

/// Of PostgreSQL, where the URL names none.
const PORT: u16 = 5432;
/// What is late is looked at once more after this.
const LATE: Duration = Duration::from_millis(1);

/// One of the servers of a URL, which may name several.
pub struct Place {
    /// Its name, as its certificate has it.
    pub host: Option<String>,
    address: Host,
    port: u16,
}

/// The servers of a URL, in the order in which they are tried.
///
/// # Errors
/// In words: it names none, or not as many of one as of another.
pub fn places(config: &Config) -> Result<Vec<Place>, String> {
    let (hosts, addresses, ports) = (config.get_hosts(), config.get_hostaddrs(), config.get_ports());
    let count = hosts.len().max(addresses.len());
    if count == 0 {
        return Err("names no host".to_owned());
    }
    if !hosts.is_empty() && !addresses.is_empty() && hosts.len() != addresses.len() {
        return Err("does not name as many addresses (hostaddr) as hosts".to_owned());
    }
    if ports.len() > 1 && ports.len() != count {
        return Err("does not name as many ports as hosts".to_owned());
    }
    let mut places = Vec::new();
    for at in 0..count {
        let host = hosts.get(at);
        let address = match (addresses.get(at), host) {
            (Some(address), _) => Host::Tcp(address.to_string()),
            (None, Some(host)) => host.clone(),
            (None, None) => continue,
        };
        places.push(Place {
            host: match host {
                Some(Host::Tcp(name)) => Some(name.clone()),
                _ => None,
            },
            address,
            port: ports.get(at).or(ports.first()).copied().unwrap_or(PORT),
        });
    }
    if config.get_load_balance_hosts() == LoadBalanceHosts::Random {
        places.sort_by_key(|_| uuid::Uuid::new_v4());
    }
    Ok(places)
}

enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

struct Shared {
    socket: Socket,
    /// Whether what is to be sent did not all fit.
    is_full: AtomicBool,
}

/// See the module. All clones are the same connection.
#[derive(Clone)]
pub struct Line(Arc<Shared>);

/// Notes that there is more to be done before anything has to be waited for.
#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Line {
    /// Connects to one of the addresses that the server's name has.
    ///
    /// # Errors
    /// None of them answers by then, or there is none.
    pub fn to(place: &Place, config: &Config, until: Instant) -> io::Result<Self> {
        let socket = match &place.address {
            Host::Unix(folder) => {
                let socket = UnixStream::connect(folder.join(format!(".s.PGSQL.{}", place.port)))?;
                socket.set_nonblocking(true)?;
                Socket::Unix(socket)
            }
            Host::Tcp(name) => {
                let mut refused = io::Error::new(ErrorKind::NotFound, "the host has no address");
                let mut found = None;
                for address in (name.as_str(), place.port).to_socket_addrs()? {
                    match connect(&address, config, until) {
                        Ok(socket) => {
                            found = Some(socket);
                            break;
                        }
                        Err(error) => refused = error,
                    }
                }
                Socket::Tcp(found.ok_or(refused)?)
            }
        };
        Ok(Self(Arc::new(Shared {
            socket,
            is_full: AtomicBool::new(false),
        })))
    }

    /// Looks at the work again and again until it is done; in between waits for bytes, for `until` at most: past it the work is to be
    /// done, in whatever way, when it is looked at.
    pub fn drive<T>(&self, until: Instant, mut work: impl FnMut(&mut Context<'_>) -> Poll<T>) -> T {
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        let mut context = Context::from_waker(&waker);
        loop {
            self.0.is_full.store(false, Ordering::SeqCst);
            if let Poll::Ready(done) = work(&mut context) {
                return done;
            }
            if !woken.0.swap(false, Ordering::SeqCst) {
                self.wait(until.saturating_duration_since(Instant::now()).max(LATE));
            }
        }
    }

    /// Until something has come, or can be sent again where it could not.
    fn wait(&self, longest: Duration) {
        let wanted = match self.0.is_full.load(Ordering::SeqCst) {
            true => PollFlags::IN | PollFlags::OUT,
            false => PollFlags::IN,
        };
        let longest = Timespec {
            tv_sec: i64::try_from(longest.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: longest.subsec_nanos().into(),
        };
        let mut watched = [PollFd::from_borrowed_fd(self.0.socket.as_fd(), wanted)];
        match poll(&mut watched, Some(&longest)) {
            Ok(_) | Err(Errno::INTR) => {}
            // The next look is told of whatever is wrong with it.
            Err(_) => std::thread::sleep(LATE),
        }
    }

    /// Ends it, for whoever still has it too.
    pub fn cut(&self) {
        let _ended_already = match &self.0.socket {
            Socket::Tcp(socket) => socket.shutdown(Shutdown::Both),
            Socket::Unix(socket) => socket.shutdown(Shutdown::Both),
        };
    }
}

fn connect(address: &SocketAddr, config: &Config, until: Instant) -> io::Result<TcpStream> {
    let left = until.saturating_duration_since(Instant::now()).max(LATE);
    let longest = config
        .get_connect_timeout()
        .map_or(left, |longest| left.min(*longest));
    let socket = TcpStream::connect_timeout(address, longest)?;
    socket.set_nodelay(true)?;
    socket.set_nonblocking(true)?;
    if let Some(longest) = config.get_tcp_user_timeout() {
        sockopt::set_tcp_user_timeout(&socket, u32::try_from(longest.as_millis()).unwrap_or(u32::MAX))?;
    }
    if config.get_keepalives() {
        sockopt::set_socket_keepalive(&socket, true)?;
        sockopt::set_tcp_keepidle(&socket, config.get_keepalives_idle())?;
        if let Some(interval) = config.get_keepalives_interval() {
            sockopt::set_tcp_keepintvl(&socket, interval)?;
        }
        if let Some(retries) = config.get_keepalives_retries() {
            sockopt::set_tcp_keepcnt(&socket, retries)?;
        }
    }
    Ok(socket)
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(socket) => socket.as_fd(),
            Self::Unix(socket) => socket.as_fd(),
        }
    }
}

impl Socket {
    fn read(&self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => (&*socket).read(into),
            Self::Unix(socket) => (&*socket).read(into),
        }
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => (&*socket).write(bytes),
            Self::Unix(socket) => (&*socket).write(bytes),
        }
    }
}

/// Done, or to be waited for.
fn now<T>(mut call: impl FnMut() -> io::Result<T>) -> Poll<io::Result<T>> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Poll::Pending,
            done => return Poll::Ready(done),
        }
    }
}

impl AsyncRead for Line {
    fn poll_read(
        self: Pin<&mut Self>,
        _waited_for_by_drive: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = now(|| self.0.socket.read(into.initialize_unfilled()));
        read.map_ok(|count| into.advance(count))
    }
}

impl AsyncWrite for Line {
    fn poll_write(
        self: Pin<&mut Self>,
        _waited_for_by_drive: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = now(|| self.0.socket.write(bytes));
        if written.is_pending() {
            self.0.is_full.store(true, Ordering::SeqCst);
        }
        written
    }

    fn poll_flush(self: Pin<&mut Self>, _nothing_is_kept: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _at_once: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.cut();
        Poll::Ready(Ok(()))
    }
}
