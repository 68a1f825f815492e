//! How fast a phase gets on, from what is done for good only.

use std::time::{Duration, Instant};

/// Before this a rate is a guess.
const KNOWN_AFTER: Duration = Duration::from_millis(300);

/// Of the present phase, since it was seen first.
#[derive(Debug, Default)]
pub struct Rate {
    phase: String,
    since: Option<(Instant, i64)>,
}

impl Rate {
    /// Bytes in a second, and seconds until all are done; `None` until that is known.
    pub fn of(&mut self, phase: &str, done: i64, total: i64, now: Instant) -> (Option<f64>, Option<f64>) {
        if phase != self.phase {
            phase.clone_into(&mut self.phase);
            self.since = Some((now, done));
        }
        let Some((since, from)) = self.since else {
            return (None, None);
        };
        let past = now.duration_since(since);
        if done <= from || past <= KNOWN_AFTER {
            return (None, None);
        }
        let rate = (done - from) as f64 / past.as_secs_f64();
        let left = (total > done).then(|| (total - done) as f64 / rate);
        (Some(rate), left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_of_its_phase_alone_and_not_told_before_it_is_known() {
        let mut rate = Rate::default();
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        assert_eq!(rate.of("loading", 100, 1000, at(0)), (None, None));
        assert_eq!(rate.of("loading", 200, 1000, at(200)), (None, None));
        assert_eq!(rate.of("loading", 500, 1000, at(1000)), (Some(400.0), Some(1.25)));
        assert_eq!(rate.of("loading", 1000, 1000, at(2000)), (Some(450.0), None));
        assert_eq!(rate.of("joining", 1000, 1000, at(3000)), (None, None));
    }
}
