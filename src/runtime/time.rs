//! Times that another process of this machine can go on with.

use rustix::time::{ClockId, clock_gettime};
use std::{
    sync::LazyLock,
    time::{Duration, Instant},
};

/// Where the times of all workers count from: the start of the kernel's monotonic clock, which is
/// the same in all processes, to within some microseconds.
pub fn epoch() -> Instant {
    static EPOCH: LazyLock<Instant> = LazyLock::new(|| {
        let passed = Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap_or_default();
        let now = Instant::now();
        now.checked_sub(passed).unwrap_or(now)
    });
    *EPOCH
}

/// Microseconds from [`epoch`] to `at`.
pub fn micros_at(at: Instant) -> u64 {
    let passed = at.saturating_duration_since(epoch());
    u64::try_from(passed.as_micros()).unwrap_or(u64::MAX)
}

/// So many microseconds after [`epoch`], but not later than `now`: what another process reports has
/// happened.
pub fn past_at(micros: u64, now: Instant) -> Instant {
    let at = epoch().checked_add(Duration::from_micros(micros));
    at.map_or(now, |at| at.min(now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_the_same_after_a_round_trip() {
        let now = Instant::now();
        let micros = micros_at(now);
        let again = past_at(micros, now);
        assert!(again <= now && now - again < Duration::from_micros(2));
        assert_eq!(micros_at(again), micros);
        assert_eq!(past_at(u64::MAX, now), now);
        assert_eq!(past_at(0, now), epoch());
    }

    #[test]
    fn the_epoch_is_the_start_of_the_kernels_clock() {
        let kernel = Duration::try_from(clock_gettime(ClockId::Monotonic)).expect("positive");
        let own = epoch().elapsed();
        assert!(
            own.abs_diff(kernel) < Duration::from_secs(5),
            "{own:?}, {kernel:?}"
        );
    }
}
