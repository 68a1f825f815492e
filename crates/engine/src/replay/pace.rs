//! How fast the target is written to: at most so many keys in a second, and only as fast as it still answers others in time.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::target::Target;
use crate::error::Error;
use crate::node::{Address, Node};

/// Portions of a second: so many keys are sent at once that others wait behind 5 ms of work at the most, and not behind 50.
const PER_SECOND: u64 = 200;
/// A delay of ours is made up for up to this; what an idle time has left over is not.
const LATE_MAX: Duration = Duration::from_millis(100);
/// How often the target is asked how fast it answers.
const ASK_TIME: Duration = Duration::from_millis(50);
/// Slowest pace that a busy target brings us to, keys in a second.
pub const SLOWEST: u64 = 100;
/// Of the pace that was too fast so much is kept, in hundredths; and so much is added while it is not.
const KEPT_PERCENT: u64 = 70;
const ADDED_PERCENT: u64 = 3;

/// Keys in a second: what the plan allows, and what the target bears.
pub(super) struct Pace {
    ops_max: Option<u64>,
    latency_max: Option<Duration>,
    /// As the target bears; 0: it has borne everything.
    bearable: AtomicU64,
    sent: AtomicU64,
    ends: AtomicBool,
    bucket: Mutex<Bucket>,
}

struct Bucket {
    left: u64,
    filled: Instant,
}

impl Pace {
    pub(super) fn new(ops_max: Option<u64>, latency_max: Option<Duration>) -> Self {
        Self {
            ops_max,
            latency_max,
            bearable: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            ends: AtomicBool::new(false),
            bucket: Mutex::new(Bucket {
                left: 0,
                filled: Instant::now(),
            }),
        }
    }

    /// Whether keys are counted at all.
    #[inline]
    pub(super) fn is_limited(&self) -> bool {
        self.ops_max.is_some() || self.latency_max.is_some()
    }

    fn per_second(&self) -> Option<u64> {
        let bearable = Some(self.bearable.load(Ordering::Relaxed)).filter(|rate| *rate > 0);
        match (self.ops_max, bearable) {
            (Some(allowed), Some(bearable)) => Some(allowed.min(bearable)),
            (allowed, bearable) => allowed.or(bearable),
        }
    }

    /// Takes one key's worth; `true` where there is none left and [`Pace::wait`] is to be called.
    pub(super) fn wait_is_due(&self) -> bool {
        self.sent.fetch_add(1, Ordering::Relaxed);
        if self.per_second().is_none() {
            return false;
        }
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        match bucket.left.checked_sub(1) {
            Some(left) => {
                bucket.left = left;
                false
            }
            None => true,
        }
    }

    /// Waits until there is more, and takes one key's worth of it.
    pub(super) fn wait(&self, check: impl Fn() -> Result<(), Error>) -> Result<(), Error> {
        loop {
            check()?;
            let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(rate) = self.per_second() else {
                return Ok(());
            };
            let passed = bucket.filled.elapsed();
            let portion = (rate / PER_SECOND).max(1);
            let takes = Duration::from_secs_f64(portion as f64 / rate as f64);
            if passed >= takes {
                bucket.left = portion - 1;
                bucket.filled = match passed > takes + LATE_MAX {
                    true => Instant::now(),
                    false => bucket.filled + takes,
                };
                return Ok(());
            }
            drop(bucket);
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Asks each node in turn how fast it answers, and sets the pace by that, until [`Pace::end`].
    pub(super) fn watch(&self, target: &Target<'_>, nodes: &[Address]) {
        let Some(limit) = self.latency_max else {
            return;
        };
        let mut links: Vec<Option<Node>> = nodes.iter().map(|_| None).collect();
        let (mut before, mut since) = (self.sent.load(Ordering::Relaxed), Instant::now());
        while !self.ends.load(Ordering::Relaxed) {
            let mut slowest = Duration::ZERO;
            for (link, address) in links.iter_mut().zip(nodes) {
                let began = Instant::now();
                let answered = match link {
                    Some(node) => node.run(&["PING"]).is_ok(),
                    None => match target.connect(address) {
                        Ok(node) => {
                            *link = Some(node);
                            continue;
                        }
                        // Whoever writes there finds that out as well.
                        Err(_) => continue,
                    },
                };
                if !answered {
                    *link = None;
                }
                slowest = slowest.max(began.elapsed());
            }
            let now = self.sent.load(Ordering::Relaxed);
            let rate = ((now - before) as f64 / since.elapsed().as_secs_f64()) as u64;
            (before, since) = (now, Instant::now());
            self.learn(slowest > limit, rate);
            std::thread::sleep(ASK_TIME);
        }
    }

    fn learn(&self, is_too_slow: bool, rate: u64) {
        let bearable = self.bearable.load(Ordering::Relaxed);
        let next = match (is_too_slow, bearable) {
            (true, 0) => (rate * KEPT_PERCENT / 100).max(SLOWEST),
            (true, pace) => (pace.min(rate.max(SLOWEST)) * KEPT_PERCENT / 100).max(SLOWEST),
            (false, 0) => 0,
            (false, pace) => pace + (pace * ADDED_PERCENT / 100).max(1),
        };
        self.bearable.store(next, Ordering::Relaxed);
    }

    /// A pass begins: it is watched until [`Pace::end`].
    pub(super) fn begin(&self) {
        self.ends.store(false, Ordering::Relaxed);
    }

    pub(super) fn end(&self) {
        self.ends.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_that_answers_late_is_written_to_more_slowly_and_never_not_at_all() {
        let pace = Pace::new(None, Some(Duration::from_millis(5)));
        assert!(pace.is_limited() && !pace.wait_is_due());
        pace.learn(true, 10_000);
        assert_eq!(pace.per_second(), Some(7000));
        pace.learn(false, 7000);
        assert_eq!(pace.per_second(), Some(7210));
        for _ in 0..100 {
            pace.learn(true, 50);
        }
        assert_eq!(pace.per_second(), Some(SLOWEST));
    }

    #[test]
    fn so_many_keys_pass_in_a_second_as_are_allowed() {
        let pace = Pace::new(Some(2000), None);
        let began = Instant::now();
        for _ in 0..1000 {
            if pace.wait_is_due() {
                pace.wait(|| Ok(())).unwrap();
            }
        }
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(440), "{took:?}");
        assert_eq!(Pace::new(None, None).per_second(), None);
    }
}
