//! Who is connected. A service that has as many connections as it may have still takes new ones: one that asks for nothing makes
//! room (ADR 83). First come those that never had a whole request, the oldest first, for a client that wants something says so with
//! its first packet; then those that had one and have been quiet for a while. So nobody who holds connections without asking for
//! anything keeps anybody else from being heard, however often he comes back.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use engine::uptime;
use hyper::body::{Frame, SizeHint};
use tokio::sync::Notify;

/// A request is worked on.
const BUSY: u64 = u64::MAX;
/// Connections that one look at all finds to make room: a crowd that dials is not to cost a look for each.
const FOUND_AT_ONCE: usize = 64;
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
    /// Since when it asks for nothing, in milliseconds of [`uptime`]; or [`BUSY`].
    quiet_since: AtomicU64,
    is_served: AtomicBool,
    end: Notify,
}

impl Use {
    /// A request is there whole, and its sender is known where he has to be: from now on it is worked on until its answer is taken.
    pub fn begin(&self) {
        self.quiet_since.store(BUSY, Ordering::SeqCst);
    }

    fn rest(&self) {
        self.is_served.store(true, Ordering::SeqCst);
        self.quiet_since.store(now(), Ordering::SeqCst);
    }

    /// The peer has taken something of an answer.
    pub fn moved(&self) {
        let later = |since: u64| (since != BUSY).then(now);
        let _busy = self
            .quiet_since
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, later);
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
    pub fn enter(self: &Arc<Self>) -> Option<Place> {
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
            if open.all.get(&number).is_some_and(may) {
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
        open.found = quiet
            .into_iter()
            .map(|(_, number)| number)
            .take(FOUND_AT_ONCE)
            .collect();
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

    /// Longer than what a busy machine takes between two lines.
    const SERVED: Duration = Duration::from_millis(400);

    fn ended(places: &[Place]) -> Vec<usize> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let is_ended = |place: &Place| {
            let wait = Duration::from_millis(1);
            runtime.block_on(async { tokio::time::timeout(wait, place.ended()).await.is_ok() })
        };
        (0..places.len()).filter(|at| is_ended(&places[*at])).collect()
    }

    #[test]
    fn who_never_asked_makes_room_first_then_who_has_been_quiet_for_long_and_never_who_waits_for_an_answer() {
        let patience = Patience {
            fresh: Duration::ZERO,
            served: SERVED,
        };
        let connections = Connections::of(4, patience);
        let places: Vec<Place> = (0..4).map(|_| connections.enter().unwrap()).collect();
        places[0].used().begin();
        places[1].used().begin();
        drop(Answered::on(places[1].used(), Body::empty()));
        let newer = connections.enter().unwrap();
        assert_eq!(ended(&places), [2], "the oldest that never asked");
        drop(newer);
        let in_its_place = connections.enter().unwrap();
        in_its_place.used().begin();
        let newest = connections.enter().unwrap();
        assert_eq!(ended(&places), [3]);
        newest.used().begin();
        assert!(
            connections.enter().is_none(),
            "the others ask, or have asked just now"
        );
        std::thread::sleep(SERVED);
        places[1].used().moved();
        assert!(connections.enter().is_none(), "it takes its answer");
        std::thread::sleep(SERVED + Duration::from_millis(LOOK_AGAIN_MS));
        assert!(connections.enter().is_some());
        assert_eq!(ended(&places), [1]);
    }
}
