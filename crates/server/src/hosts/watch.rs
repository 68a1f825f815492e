//! Which other hosts are gone, by what we have seen of them ourselves.
//!
//! The catalogue says until when a host was to be seen again, by the database's clock. That may have been set, and after an outage of the
//! database nobody has been seen for long: neither is a reason to take a job from somebody who is there.

use std::collections::HashMap;
use std::time::Duration;

use crate::ids::{HostId, Moment};

/// What was seen so far. Times of our own are by [`engine::uptime`].
#[derive(Default)]
pub struct Watch {
    /// What each host has said last, and since when we know it.
    known: HashMap<HostId, (Moment, Duration)>,
    looked_at: Duration,
}

impl Watch {
    /// Takes note of what the hosts have said last, and returns those that have said nothing new for a lease of `length`, in which we have
    /// looked all the time: each says something every third of it.
    pub fn look(
        &mut self,
        said: Vec<(HostId, Moment)>,
        now: Duration,
        length: Duration,
    ) -> Vec<(HostId, Moment)> {
        if now.saturating_sub(self.looked_at) >= length {
            self.known.clear();
        }
        self.looked_at = now;
        let known: HashMap<_, _> = said
            .into_iter()
            .map(|(host, seen)| match self.known.get(&host) {
                Some((before, since)) if *before == seen => (host, (seen, *since)),
                _ => (host, (seen, now)),
            })
            .collect();
        self.known = known;
        self.known
            .iter()
            .filter(|(_, (_, since))| now.saturating_sub(*since) >= length)
            .map(|(host, (seen, _))| (host.clone(), *seen))
            .collect()
    }

    /// The catalogue did not answer: others could say nothing either.
    pub fn begin_anew(&mut self) {
        self.known.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(30);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_host_is_gone_when_it_has_said_nothing_for_a_lease_in_which_it_was_looked_for() {
        let (first, second) = (HostId::random(), HostId::random());
        let said = |first_said: i64, second_said: i64| {
            vec![
                (first.clone(), Moment(first_said)),
                (second.clone(), Moment(second_said)),
            ]
        };
        let mut watch = Watch::default();
        for (seconds, second_said) in [(100, 1), (110, 2), (120, 3)] {
            assert!(watch.look(said(7, second_said), at(seconds), LEASE).is_empty());
        }
        assert_eq!(
            watch.look(said(7, 4), at(130), LEASE),
            [(first.clone(), Moment(7))]
        );
        // Whatever the clock says by which it said that.
        assert!(watch.look(said(6, 5), at(140), LEASE).is_empty());
        // Nobody was looked for meanwhile.
        assert!(watch.look(said(6, 5), at(170), LEASE).is_empty());
        watch.look(said(6, 6), at(190), LEASE);
        watch.begin_anew();
        assert!(watch.look(said(6, 7), at(200), LEASE).is_empty());
        watch.look(said(6, 8), at(220), LEASE);
        assert_eq!(
            watch.look(said(6, 9), at(230), LEASE),
            [(first.clone(), Moment(6))]
        );
        // One that was forgotten is not gone a second time.
        assert!(
            watch
                .look(vec![(second.clone(), Moment(10))], at(240), LEASE)
                .is_empty()
        );
    }
}
