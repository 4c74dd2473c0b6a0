//! Limits how often events of one kind are logged, and counts those that are not.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// The shortest time between two log lines of one kind.
pub const PERIOD: Duration = Duration::from_secs(10);

/// Counts events of `N` kinds and decides when one of them is logged: the first at once, those that
/// follow together, in at most one line each [`PERIOD`]. Counting takes one atomic addition and one
/// load.
///
/// An owner that calls [`Throttle::due`] every few seconds, and [`Throttle::rest`] at the end,
/// loses no event: the sum of all counts is the number of events.
#[derive(Debug)]
pub struct Throttle<const N: usize> {
    began: Instant,
    kinds: [EventKind; N],
}

#[derive(Debug, Default)]
struct EventKind {
    /// Events that are not logged yet.
    pending: AtomicU64,
    /// When the next line may be logged, in milliseconds since `began`.
    next: AtomicU64,
}

impl<const N: usize> Throttle<N> {
    pub fn new(now: Instant) -> Self {
        Self {
            began: now,
            kinds: std::array::from_fn(|_| EventKind::default()),
        }
    }

    /// Counts `events` of this kind. Returns for how many events a line is to be logged now, if one
    /// is.
    pub fn add(&self, kind: usize, events: u64, now: Instant) -> Option<u64> {
        let kind = self.kinds.get(kind)?;
        kind.pending.fetch_add(events, Relaxed);
        kind.take(self.ms(now))
    }

    /// The kinds for which a line is to be logged although no new event has come, each with the
    /// number of events.
    pub fn due(&self, now: Instant) -> impl Iterator<Item = (usize, u64)> {
        let ms = self.ms(now);
        let due = move |(n, kind): (usize, &EventKind)| kind.take(ms).map(|count| (n, count));
        self.kinds.iter().enumerate().filter_map(due)
    }

    /// All events that are not logged yet, whether or not a line is due.
    pub fn rest(&self) -> impl Iterator<Item = (usize, u64)> {
        let rest = |(n, kind): (usize, &EventKind)| kind.take_pending().map(|count| (n, count));
        self.kinds.iter().enumerate().filter_map(rest)
    }

    fn ms(&self, now: Instant) -> u64 {
        let passed = now.saturating_duration_since(self.began).as_millis();
        u64::try_from(passed).unwrap_or(u64::MAX)
    }
}

impl EventKind {
    fn take(&self, ms: u64) -> Option<u64> {
        let next = self.next.load(Relaxed);
        if ms < next || self.pending.load(Relaxed) == 0 {
            return None;
        }
        // Of several threads that come here at once one logs.
        let after = ms.saturating_add(PERIOD.as_millis() as u64);
        self.next
            .compare_exchange(next, after, Relaxed, Relaxed)
            .ok()?;
        self.take_pending()
    }

    fn take_pending(&self) -> Option<u64> {
        Some(self.pending.swap(0, Relaxed)).filter(|count| *count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_first_event_at_once_and_then_one_line_a_period() {
        let start = Instant::now();
        let throttle = Throttle::<2>::new(start);
        assert_eq!(throttle.add(0, 1, start), Some(1));
        assert_eq!(throttle.add(0, 1, start), None);
        assert_eq!(throttle.add(0, 3, start + PERIOD - MS), None);
        assert_eq!(throttle.add(0, 1, start + PERIOD), Some(5));
        assert_eq!(throttle.add(0, 1, start + PERIOD + MS), None);
        // Another kind has a period of its own.
        assert_eq!(throttle.add(1, 7, start + PERIOD + MS), Some(7));
        // After a silence the next one is the first again.
        let later = start + 10 * PERIOD;
        assert_eq!(throttle.due(later).collect::<Vec<_>>(), [(0, 1)]);
        assert_eq!(throttle.add(0, 1, later + 2 * PERIOD), Some(1));
        assert_eq!(throttle.add(2, 1, later), None, "there is no such kind");
    }

    #[test]
    fn no_count_is_lost_when_the_events_stop() {
        let start = Instant::now();
        let throttle = Throttle::<3>::new(start);
        assert_eq!(throttle.add(2, 1, start), Some(1));
        assert_eq!(throttle.add(2, 4, start + MS), None);
        assert_eq!(throttle.due(start + PERIOD - MS).count(), 0);
        assert_eq!(throttle.due(start + PERIOD).collect::<Vec<_>>(), [(2, 4)]);
        assert_eq!(throttle.due(start + 2 * PERIOD).count(), 0);
        assert_eq!(throttle.add(2, 1, start + 2 * PERIOD), Some(1));
        assert_eq!(throttle.add(2, 2, start + 2 * PERIOD), None);
        assert_eq!(throttle.rest().collect::<Vec<_>>(), [(2, 2)]);
        assert_eq!(throttle.rest().count(), 0);
    }

    #[test]
    fn threads_log_every_event_once() {
        let start = Instant::now();
        let throttle = Throttle::<1>::new(start);
        let logged: u64 = std::thread::scope(|scope| {
            let one = |_| {
                let throttle = &throttle;
                scope.spawn(move || {
                    let at = |n| start + n * PERIOD / 100;
                    (0..1000)
                        .filter_map(|n| throttle.add(0, 1, at(n)))
                        .sum::<u64>()
                })
            };
            let threads: Vec<_> = (0..4).map(one).collect();
            threads
                .into_iter()
                .map(|t| t.join().expect("no panic"))
                .sum()
        });
        let rest: u64 = throttle.rest().map(|(_, count)| count).sum();
        assert_eq!(logged + rest, 4000);
    }
}
