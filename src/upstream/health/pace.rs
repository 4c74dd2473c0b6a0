//! How fast sessions are terminated, so that ten thousand clients do not reconnect in one instant.

use super::schedule::part_of;
use std::time::{Duration, Instant};

/// So many are terminated each second, over the whole process.
const PER_SECOND: f64 = 2_000.0;
/// How much of what a second grants may end at once.
const AT_ONCE: f64 = 0.1;
/// Until more may be terminated; half of it is random.
const PAUSE: Duration = Duration::from_millis(50);

/// A bucket that fills with time.
#[derive(Debug)]
pub struct Pace {
    per_second: f64,
    level: f64,
    at: Instant,
}

impl Pace {
    /// That of the process.
    pub fn new(now: Instant) -> Self {
        Self::with_rate(PER_SECOND, now)
    }

    pub fn with_rate(per_second: f64, now: Instant) -> Self {
        Self {
            per_second,
            level: (per_second * AT_ONCE).max(1.0),
            at: now,
        }
    }

    /// How many of `wanted` may end now.
    pub fn take(&mut self, wanted: usize, now: Instant) -> usize {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = self.at.max(now);
        let level = self.level + passed * self.per_second;
        self.level = level.min(most_at_once(self.per_second));
        let granted = wanted.min(self.level as usize);
        self.level -= granted as f64;
        granted
    }

    /// What was granted and not used.
    pub fn give_back(&mut self, n: usize) {
        self.level += n as f64;
    }

    /// How long to wait before taking more. `draw` is random.
    pub fn pause(draw: u64) -> Duration {
        PAUSE - part_of(PAUSE / 2, draw)
    }
}

/// Two at least: one must be complete for any to end, and what comes beyond it until it is taken
/// must not be lost, or a low rate would become a lower one.
fn most_at_once(per_second: f64) -> f64 {
    (per_second * AT_ONCE).max(2.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::balance::Chance;

    #[test]
    fn ten_thousand_end_over_five_seconds() {
        let began = Instant::now();
        let mut chance = Chance::from_seed(7);
        let (mut pace, mut now, mut left) = (Pace::new(began), began, 10_000);
        let mut first = None;
        while left > 0 {
            let granted = pace.take(left, now);
            assert!(granted <= 200);
            first.get_or_insert(granted);
            left -= granted;
            now += Pace::pause(chance.draw());
        }
        assert_eq!(first, Some(200), "a few end at once");
        let took = (now - began).as_secs_f64();
        assert!((4.8..5.2).contains(&took), "{took}");
    }

    #[test]
    fn a_rate_holds_however_low_it_is() {
        let began = Instant::now();
        for per_second in [0.5, 3.0, 40.0] {
            let (mut pace, mut now, mut ended) = (Pace::with_rate(per_second, began), began, 0);
            while now < began + Duration::from_secs(60) {
                ended += pace.take(100, now);
                now += Duration::from_millis(40);
            }
            let expected = per_second * 60.0;
            let most = expected + most_at_once(per_second);
            assert!(
                (expected - 1.0..=most).contains(&f64::from(ended as u32)),
                "{ended}"
            );
        }
    }

    #[test]
    fn two_that_end_share_it() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        assert_eq!((pace.take(150, now), pace.take(150, now)), (150, 50));
        assert_eq!(pace.take(1, now), 0);
        assert_eq!(pace.take(1_000, now + Duration::from_millis(10)), 20);
        assert_eq!(pace.take(1_000, now + Duration::from_secs(100)), 200);
    }
}
