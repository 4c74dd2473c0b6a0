//! When to check next.

use std::time::{Duration, Instant};

/// First checks begin within this time after the start, so that a thousand backends are not checked
/// in one instant.
pub const FIRST_CHECK_SPREAD: Duration = Duration::from_millis(100);

/// From one moment at which checks begin to the next; at most a small part of a pause.
const STEP: Duration = Duration::from_millis(25);

/// The pauses between the checks of one backend. The next check is scheduled when the last has
/// ended: there is never more than one at a time.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    interval: Duration,
    fast: Duration,
    origin: Instant,
}

impl Schedule {
    /// Schedules of one `origin` let checks begin at the same moments: a thousand backends wake the
    /// process some hundred times a second, and not three thousand times.
    pub fn new(interval: Duration, fast: Duration, origin: Instant) -> Self {
        Self {
            interval,
            fast,
            origin,
        }
    }

    /// How long after the start the first check begins. `draw` is random.
    pub fn first(&self, draw: u64) -> Duration {
        part_of(FIRST_CHECK_SPREAD.min(self.interval), draw)
    }

    /// When the check after one that lasted from `began` to `now` begins. Jitter only makes
    /// intervals shorter, so that limits given in intervals hold: by up to a tenth, and one step.
    pub fn next(&self, began: Instant, now: Instant, in_doubt: bool, draw: u64) -> Instant {
        let pause = if in_doubt { self.fast } else { self.interval };
        let next = began + (pause - part_of(pause / 10, draw));
        let step = STEP.min(pause / 20).as_nanos().max(1);
        let over = next.saturating_duration_since(self.origin).as_nanos() % step;
        // Below STEP, which is far from overflowing.
        let over = Duration::from_nanos(u64::try_from(over).unwrap_or_default());
        (next - over).max(now)
    }
}

/// A random part of `whole`.
pub(super) fn part_of(whole: Duration, draw: u64) -> Duration {
    whole.mul_f64((draw >> 32) as f64 / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn never_late_and_never_in_the_past(
            interval in 10u64..100_000, fast in 1u64..=10, took in 0u64..200_000,
            offset in 0u64..1_000, doubt: bool,
            draw: u64,
        ) {
            let began = Instant::now();
            let millis = Duration::from_millis;
            let (now, interval) = (began + millis(took), millis(interval));
            let origin = began - millis(offset);
            let schedule = Schedule::new(interval, millis(fast), origin);
            let next = schedule.next(began, now, doubt, draw);
            let pause = if doubt { millis(fast) } else { interval };
            prop_assert!(next >= now);
            prop_assert!(next >= began + pause.mul_f64(0.849));
            prop_assert!(next <= (began + pause).max(now));
            prop_assert!(schedule.first(draw) <= FIRST_CHECK_SPREAD.min(interval));
        }
    }
}
