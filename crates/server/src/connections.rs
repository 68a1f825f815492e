//! Who is connected. A service that has as many connections as it may have still takes new ones: one that asks for nothing makes
//! room (ADR 83). First come those that never had a whole request, the oldest first, for a client that wants something says so with
//! its first packet; then those that had one and have been quiet for a while. So nobody who holds connections without asking for
//! anything keeps anybody else from being heard, however often he comes back.

use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use engine::uptime;
use hyper::body::{Frame, SizeHint};
use rustix::net::{RecvFlags, Shutdown, recv, shutdown};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;

/// A request is worked on.
const BUSY: u64 = u64::MAX;
/// Connections that one look at all finds to make room: a crowd that dials is not to cost a look for each.
const FOUND_AT_ONCE: usize = 64;
/// Of those that could make room, so many are looked into for that.
const LOOKED_INTO_AT_ONCE: usize = 512;
/// Between two looks that find none.
const LOOK_AGAIN_MS: u64 = 5;

/// How long a connection must have asked for nothing before it makes room.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// One that never had a whole request.
    pub fresh: Duration,
    /// One that had: its client may be about to ask again.
    pub served: Duration,
}

/// All open connections, at most so many.
pub struct Connections {
    most: usize,
    patience: Patience,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    next: u64,
    all: HashMap<u64, Arc<Use>>,
    /// Numbers of some that may make room, the next one first: what they do meanwhile is looked at again.
    found: VecDeque<u64>,
    looked_at_ms: u64,
}

/// What a connection is used for.
pub struct Use {
    /// To look whether something of it is unread; gone where the connection is.
    stream: Weak<TcpStream>,
    /// Since when it asks for nothing, in milliseconds of [`uptime`]; or [`BUSY`].
    quiet_since: AtomicU64,
    is_served: AtomicBool,
    end: Notify,
}

impl Use {
    /// The head of a request is there: from now on it is worked on until its answer is taken, but for [`Use::wait`].
    pub fn begin(&self) {
        self.quiet_since.store(BUSY, Ordering::SeqCst);
    }

    /// It is worked on no more before something of its body comes: whoever keeps us waiting must not hold a place by that.
    pub fn wait(&self) {
        self.quiet_since.store(now(), Ordering::SeqCst);
    }

    fn rest(&self) {
        self.is_served.store(true, Ordering::SeqCst);
        self.quiet_since.store(now(), Ordering::SeqCst);
    }

    /// The peer has sent something, or has taken something of an answer.
    pub fn moved(&self) {
        let later = |since: u64| (since != BUSY).then(now);
        let _busy = self
            .quiet_since
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, later);
    }

    /// Whether it has sent what we have not read yet. Where there is more to do than can be done that takes a while, and it is not its
    /// fault.
    fn has_unread(&self) -> bool {
        let Some(stream) = self.stream.upgrade() else {
            return false;
        };
        let mut first = [0; 1];
        let seen = recv(&*stream, &mut first[..], RecvFlags::PEEK | RecvFlags::DONTWAIT);
        seen.is_ok_and(|(_, count)| count > 0)
    }

    /// When it may make room, and `false` where it never had a request: these come first.
    fn rank(&self, patience: Patience) -> (bool, u64) {
        let is_served = self.is_served.load(Ordering::SeqCst);
        let wait = if is_served {
            patience.served
        } else {
            patience.fresh
        };
        let since = self.quiet_since.load(Ordering::SeqCst);
        (is_served, since.saturating_add(millis(wait)))
    }
}

/// A connection's place, until it is dropped.
pub struct Place {
    of: Arc<Connections>,
    number: u64,
    used: Arc<Use>,
}

fn now() -> u64 {
    millis(uptime())
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(BUSY - 1)
}

impl Connections {
    /// None yet.
    pub fn of(most: usize, patience: Patience) -> Arc<Self> {
        Arc::new(Self {
            most,
            patience,
            open: Mutex::default(),
        })
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// A place for a new connection; `None`: all are in use.
    pub fn enter(self: &Arc<Self>, stream: &Arc<TcpStream>) -> Option<Place> {
        let mut open = self.open();
        if open.all.len() >= self.most {
            let number = self.find(&mut open)?;
            if let Some(used) = open.all.remove(&number) {
                used.end.notify_one();
            }
        }
        let number = open.next;
        open.next += 1;
        let used = Arc::new(Use {
            stream: Arc::downgrade(stream),
            quiet_since: AtomicU64::new(now()),
            is_served: AtomicBool::new(false),
            end: Notify::new(),
        });
        open.all.insert(number, used.clone());
        Some(Place {
            of: self.clone(),
            number,
            used,
        })
    }

    /// One that makes room.
    fn find(&self, open: &mut Open) -> Option<u64> {
        let now = now();
        let may = |used: &Arc<Use>| used.rank(self.patience).1 <= now;
        while let Some(number) = open.found.pop_front() {
            if open
                .all
                .get(&number)
                .is_some_and(|used| may(used) && !used.has_unread())
            {
                return Some(number);
            }
        }
        if now < open.looked_at_ms.saturating_add(LOOK_AGAIN_MS) {
            return None;
        }
        let mut quiet: Vec<((bool, u64), u64)> = open
            .all
            .iter()
            .filter(|(_, used)| may(used))
            .map(|(number, used)| (used.rank(self.patience), *number))
            .collect();
        quiet.sort_unstable();
        // Each of these costs a call of the system.
        let found: VecDeque<u64> = quiet
            .into_iter()
            .map(|(_, number)| number)
            .take(LOOKED_INTO_AT_ONCE)
            .filter(|number| open.all.get(number).is_some_and(|used| !used.has_unread()))
            .take(FOUND_AT_ONCE)
            .collect();
        open.found = found;
        let first = open.found.pop_front();
        if first.is_none() {
            open.looked_at_ms = now;
        }
        first
    }
}

impl Place {
    /// Comes when the connection has to make room.
    pub async fn ended(&self) {
        self.used.end.notified().await;
    }

    /// What it is used for.
    pub fn used(&self) -> Arc<Use> {
        self.used.clone()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.of.open().all.remove(&self.number);
    }
}

/// A connection's stream, of which [`Use`] knows too.
pub struct Shared(pub Arc<TcpStream>);

impl Shared {
    /// Tries when the stream is said to be ready, and again where it was not.
    fn write(
        &self,
        context: &mut Context<'_>,
        attempt: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(context))?;
            match attempt(&self.0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }
}

impl AsyncRead for Shared {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(context))?;
            match self.0.try_read(buffer.initialize_unfilled()) {
                Ok(count) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Shared {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.write(context, |stream| stream.try_write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write(context, |stream| stream.try_write_vectored(parts))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(shutdown(&*self.0, Shutdown::Write).map_err(Into::into))
    }
}

/// An answer's body. What it answers is over when hyper has taken the last of it or gives it up.
pub struct Answered {
    body: Body,
    used: Arc<Use>,
}

impl Answered {
    /// Of a request on this connection.
    pub fn on(used: Arc<Use>, body: Body) -> Body {
        Body::new(Self { body, used })
    }
}

impl Drop for Answered {
    fn drop(&mut self) {
        self.used.rest();
    }
}

impl HttpBody for Answered {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::io::Write as _;
    use std::net::TcpStream as Peer;

    use tokio::net::TcpListener;

    /// Longer than what a busy machine takes between two lines.
    const SERVED: Duration = Duration::from_millis(400);

    struct Crowd {
        runtime: tokio::runtime::Runtime,
        listener: TcpListener,
        connections: Arc<Connections>,
        streams: Vec<(Peer, Arc<TcpStream>)>,
    }

    impl Crowd {
        fn of(most: usize) -> Self {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
            let patience = Patience {
                fresh: Duration::ZERO,
                served: SERVED,
            };
            Self {
                runtime,
                listener,
                connections: Connections::of(most, patience),
                streams: Vec::new(),
            }
        }

        fn enter(&mut self) -> Option<Place> {
            let peer = Peer::connect(self.listener.local_addr().unwrap()).unwrap();
            let (stream, _) = self.runtime.block_on(self.listener.accept()).unwrap();
            let stream = Arc::new(stream);
            let place = self.connections.enter(&stream);
            self.streams.push((peer, stream));
            place
        }

        fn ended(&self, places: &[Place]) -> Vec<usize> {
            let is_ended = |place: &Place| {
                let wait = Duration::from_millis(1);
                self.runtime
                    .block_on(async { tokio::time::timeout(wait, place.ended()).await.is_ok() })
            };
            (0..places.len()).filter(|at| is_ended(&places[*at])).collect()
        }
    }

    #[test]
    fn who_never_asked_makes_room_first_then_who_has_been_quiet_for_long_and_never_who_waits_for_an_answer() {
        let mut crowd = Crowd::of(4);
        let places: Vec<Place> = (0..4).map(|_| crowd.enter().unwrap()).collect();
        places[0].used().begin();
        places[1].used().begin();
        drop(Answered::on(places[1].used(), Body::empty()));
        let newer = crowd.enter().unwrap();
        assert_eq!(crowd.ended(&places), [2], "the oldest that never asked");
        drop(newer);
        let in_its_place = crowd.enter().unwrap();
        in_its_place.used().begin();
        let newest = crowd.enter().unwrap();
        assert_eq!(crowd.ended(&places), [3]);
        newest.used().begin();
        assert!(crowd.enter().is_none(), "the others ask, or have asked just now");
        std::thread::sleep(SERVED);
        places[1].used().moved();
        assert!(crowd.enter().is_none(), "it takes its answer");
        std::thread::sleep(SERVED + Duration::from_millis(LOOK_AGAIN_MS));
        assert!(crowd.enter().is_some());
        assert_eq!(crowd.ended(&places), [1]);
    }

    #[test]
    fn who_has_asked_and_was_not_read_yet_keeps_his_place() {
        let mut crowd = Crowd::of(2);
        let places: Vec<Place> = (0..2).map(|_| crowd.enter().unwrap()).collect();
        for (peer, _) in &mut crowd.streams {
            peer.write_all(b"GET /").unwrap();
        }
        std::thread::sleep(Duration::from_millis(20));
        assert!(crowd.enter().is_none());
        let mut read = [0; 16];
        let (_, first) = &crowd.streams[0];
        crowd.runtime.block_on(first.readable()).unwrap();
        assert_eq!(first.try_read(&mut read).unwrap(), 5);
        std::thread::sleep(Duration::from_millis(2 * LOOK_AGAIN_MS));
        assert!(crowd.enter().is_some());
        assert_eq!(crowd.ended(&places), [0]);
    }
}
