//! The right to act until a moment that may be put off: whoever holds it stops by himself when it is over.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::defect;

/// Held by one operation and by who renews it. Once over, it is over for good: others may have begun by then.
///
/// Moments are those of [`uptime`], so that a process that was stopped, or a machine that slept, finds it over when it goes on.
#[derive(Debug)]
pub struct Lease {
    until_ms: AtomicU64,
}

impl Lease {
    /// One that ends at this moment.
    pub fn until(at: Duration) -> Self {
        Self {
            until_ms: AtomicU64::new(millis(at)),
        }
    }

    /// One that ends only by [`Lease::end`].
    pub fn endless() -> Self {
        Self {
            until_ms: AtomicU64::new(u64::MAX),
        }
    }

    /// Puts its end off. One that is over stays so.
    pub fn extend(&self, at: Duration) {
        let now = millis(uptime());
        let later = |until| (until > now).then(|| millis(at).max(until));
        let _over_already = self
            .until_ms
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, later);
    }

    /// Ends it now.
    pub fn end(&self) {
        self.until_ms.store(0, Ordering::SeqCst);
    }

    /// Whether it has ended.
    pub fn is_over(&self) -> bool {
        !defect::is_planted("lease-without-end") && millis(uptime()) >= self.until_ms.load(Ordering::SeqCst)
    }
}

fn millis(at: Duration) -> u64 {
    u64::try_from(at.as_millis()).unwrap_or(u64::MAX)
}

/// Time since the machine was started, sleep included: no clock that anybody sets.
pub fn uptime() -> Duration {
    let at = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(
        u64::try_from(at.tv_sec).unwrap_or(0),
        u32::try_from(at.tv_nsec).unwrap_or(0),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_that_is_over_is_not_put_off() {
        let lease = Lease::until(uptime() + Duration::from_secs(60));
        assert!(!lease.is_over());
        lease.extend(uptime() + Duration::from_secs(120));
        assert!(!lease.is_over());
        lease.end();
        lease.extend(uptime() + Duration::from_secs(60));
        assert!(lease.is_over());
        let short = Lease::until(uptime());
        short.extend(uptime() + Duration::from_secs(60));
        assert!(short.is_over());
        assert!(!Lease::endless().is_over());
    }
}
