//! How long and how often a remote store is asked: the one place that says so.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

/// How often an object is read before bytes that do not match their digest are called tampered.
///
/// Where one transfer in thirty is damaged, three readings leave one wrong verdict in 27,000.
pub(super) const READINGS_MAX: u32 = 3;

/// Limits of one call, which may take several tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Longest time to reach the host.
    pub connect: Duration,
    /// Longest silence within an answer.
    pub silence: Duration,
    /// Longest time of one try, whatever moves: a segment (8.3 MiB at most) at 140 KiB/s takes a minute.
    pub attempt: Duration,
    /// Tries.
    pub tries: u32,
    /// No try begins after this time.
    pub total: Duration,
    /// Pause after the first failed try; doubles with each, up to [`Patience::pause_max`]. Each pause is drawn
    /// between half and the whole of that, so that callers that failed together do not come back together.
    pub pause: Duration,
    /// Longest pause.
    pub pause_max: Duration,
}

impl Patience {
    /// For jobs: rides out a store that fails for some minutes. A capture goes on into its spool meanwhile.
    pub const JOB: Self = Self {
        connect: Duration::from_secs(5),
        silence: Duration::from_secs(20),
        attempt: Duration::from_secs(60),
        tries: 24,
        total: Duration::from_secs(300),
        pause: Duration::from_millis(100),
        pause_max: Duration::from_secs(15),
    };

    /// For what a person or a request waits for, and for tidying up, which is done again later.
    pub const SHORT: Self = Self {
        connect: Duration::from_secs(5),
        silence: Duration::from_secs(10),
        attempt: Duration::from_secs(15),
        tries: 6,
        total: Duration::from_secs(12),
        pause: Duration::from_millis(100),
        pause_max: Duration::from_secs(1),
    };

    /// The pause after `failed` failed tries.
    pub(super) fn pause_after(&self, failed: u32) -> Duration {
        let doubled = self.pause.saturating_mul(1 << failed.saturating_sub(1).min(16));
        let whole = doubled.min(self.pause_max);
        // Every RandomState has keys of its own, from the operating system's randomness.
        let drawn = RandomState::new().build_hasher().finish() % 1000;
        whole / 2 + whole.mul_f64(drawn as f64 / 2000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_to_a_limit_and_differ() {
        let patience = Patience::JOB;
        for (failed, whole_ms) in [(1, 100), (2, 200), (5, 1600), (9, 15_000), (4_000_000, 15_000)] {
            let whole = Duration::from_millis(whole_ms);
            let drawn: Vec<_> = (0..50).map(|_| patience.pause_after(failed)).collect();
            assert!(drawn.iter().all(|pause| *pause >= whole / 2 && *pause <= whole));
            assert!(drawn.iter().any(|pause| *pause != drawn[0]), "no jitter");
        }
    }
}
