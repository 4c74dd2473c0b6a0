//! How fast sessions are terminated, so that ten thousand clients do not reconnect in one instant.

use super::schedule::part_of;
use std::time::{Duration, Instant};

/// So many are terminated each second, over the whole process...
const PER_SECOND: f64 = 2_000.0;
/// ... and so many at once.
const AT_ONCE: f64 = 200.0;
/// Until more may be terminated; half of it is random.
const PAUSE: Duration = Duration::from_millis(50);

/// A bucket that fills with time.
#[derive(Debug)]
pub struct Pace {
    level: f64,
    at: Instant,
}

impl Pace {
    pub fn new(now: Instant) -> Self {
        Self {
            level: AT_ONCE,
            at: now,
        }
    }

    /// How many of `wanted` may end now.
    pub fn take(&mut self, wanted: usize, now: Instant) -> usize {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = self.at.max(now);
        self.level = (self.level + passed * PER_SECOND).min(AT_ONCE);
        let granted = wanted.min(self.level as usize);
        self.level -= granted as f64;
        granted
    }

    /// How long to wait before taking more. `draw` is random.
    pub fn pause(draw: u64) -> Duration {
        PAUSE - part_of(PAUSE / 2, draw)
    }
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
    fn two_that_end_share_it() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        assert_eq!((pace.take(150, now), pace.take(150, now)), (150, 50));
        assert_eq!(pace.take(1, now), 0);
        assert_eq!(pace.take(1_000, now + Duration::from_millis(10)), 20);
        assert_eq!(pace.take(1_000, now + Duration::from_secs(100)), 200);
    }
}
