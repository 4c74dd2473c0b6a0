//! Limits how often events of one kind are logged, and counts those that are not.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// The shortest time between two log lines of one kind.
pub const PERIOD: Duration = Duration::from_secs(10);

/// Counts events of `N` kinds and decides when one of them is logged: the first at once, those that
/// follow together, in at most one line each [`PERIOD`]. Events that begin a [`PERIOD`] after the
/// last are first ones again. Counting takes one atomic addition, a load and a store.
///
/// An owner that calls [`Throttle::due`] every few seconds, and [`Throttle::rest`] at the end,
/// loses no event: the sum of all counts is the number of events.
#[derive(Debug)]
pub struct Throttle<const N: usize> {
    began: Instant,
    kinds: [EventKind; N],
}

/// What a line is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Events {
    pub count: u64,
    /// How long ago the last of them was, where the line comes later: it says nothing about now.
    pub ago: Option<Duration>,
}

#[derive(Debug, Default)]
struct EventKind {
    /// Events that are not logged yet.
    pending: AtomicU64,
    /// When the next line may be logged, in milliseconds since `began`.
    next: AtomicU64,
    /// When the last event was, in the same.
    last: AtomicU64,
}

impl Events {
    /// The last of which has just happened.
    pub fn now(count: u64) -> Self {
        Self { count, ago: None }
    }

    pub fn seconds_ago(&self) -> Option<f64> {
        self.ago.map(|ago| ago.as_millis() as f64 / 1e3)
    }
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
        let (kind, ms) = (self.kinds.get(kind)?, self.ms(now));
        kind.last.store(ms, Relaxed);
        kind.pending.fetch_add(events, Relaxed);
        kind.take(ms, ms)
    }

    /// The kinds for which a line is to be logged although no new event has come, each with its
    /// events.
    pub fn due(&self, now: Instant) -> impl Iterator<Item = (usize, Events)> {
        let ms = self.ms(now);
        // What comes a period after them is another matter, whose first event is not to wait for
        // this line.
        let take = move |kind: &EventKind| kind.take(ms, kind.last.load(Relaxed));
        self.late(now, take)
    }

    /// All events that are not logged yet, whether or not a line is due.
    pub fn rest(&self, now: Instant) -> impl Iterator<Item = (usize, Events)> {
        self.late(now, EventKind::take_pending)
    }

    fn late(
        &self,
        now: Instant,
        take: impl Fn(&EventKind) -> Option<u64>,
    ) -> impl Iterator<Item = (usize, Events)> {
        let ms = self.ms(now);
        let late = move |(n, kind): (usize, &EventKind)| {
            let count = take(kind)?;
            let ago = ms.saturating_sub(kind.last.load(Relaxed));
            let ago = Some(Duration::from_millis(ago));
            Some((n, Events { count, ago }))
        };
        self.kinds.iter().enumerate().filter_map(late)
    }

    fn ms(&self, now: Instant) -> u64 {
        let passed = now.saturating_duration_since(self.began).as_millis();
        u64::try_from(passed).unwrap_or(u64::MAX)
    }
}

impl EventKind {
    /// The events, if a line is due; the next is no sooner than a period after `since`.
    fn take(&self, ms: u64, since: u64) -> Option<u64> {
        let next = self.next.load(Relaxed);
        if ms < next || self.pending.load(Relaxed) == 0 {
            return None;
        }
        // Of several threads that come here at once one logs.
        let after = since.saturating_add(PERIOD.as_millis() as u64);
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
        // After a silence the next one is the first again, also where those before have been
        // logged only now.
        let later = start + 10 * PERIOD;
        let one = Events {
            count: 1,
            ago: Some(9 * PERIOD - MS),
        };
        assert_eq!(throttle.due(later).collect::<Vec<_>>(), [(0, one)]);
        assert_eq!(throttle.add(0, 1, later + MS), Some(1));
        assert_eq!(throttle.add(2, 1, later), None, "there is no such kind");
    }

    #[test]
    fn no_count_is_lost_when_the_events_stop() {
        let start = Instant::now();
        let throttle = Throttle::<3>::new(start);
        assert_eq!(throttle.add(2, 1, start), Some(1));
        assert_eq!(throttle.add(2, 4, start + MS), None);
        assert_eq!(throttle.due(start + PERIOD - MS).count(), 0);
        let late = |count, ago| {
            let ago = Some(ago);
            [(2, Events { count, ago })]
        };
        let due: Vec<_> = throttle.due(start + PERIOD).collect();
        assert_eq!(due, late(4, PERIOD - MS));
        assert_eq!(throttle.due(start + 2 * PERIOD).count(), 0);
        assert_eq!(throttle.add(2, 1, start + 2 * PERIOD), Some(1));
        assert_eq!(throttle.add(2, 2, start + 2 * PERIOD), None);
        let end = start + 2 * PERIOD + 3 * MS;
        assert_eq!(throttle.rest(end).collect::<Vec<_>>(), late(2, 3 * MS));
        assert_eq!(throttle.rest(end).count(), 0);
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
        let rest: u64 = throttle.rest(start).map(|(_, events)| events.count).sum();
        assert_eq!(logged + rest, 4000);
    }
}
