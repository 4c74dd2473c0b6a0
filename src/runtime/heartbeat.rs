//! Whether the loop of a worker runs, seen from another thread.
//!
//! The loop stores the time of each turn, which it reads in any case. A worker without work waits
//! in the kernel and stores nothing: an observer that needs the answer wakes it for one turn. So a
//! process that is not observed pays one store a turn, and no wake-up.

use crate::runtime::pause::Pauses;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::Waker,
    time::{Duration, Instant},
};

/// A loop that does not run for so long has stalled.
pub const STALLED: Duration = Duration::from_secs(2);
/// A worker that has run within this time is not woken.
const FRESH: Duration = Duration::from_millis(500);
/// An observer that has not looked for so long may have been stopped together with the worker.
const UNOBSERVED: Duration = Duration::from_millis(1_500);

/// The time of the last turn, in milliseconds of the reactor's clock. On a cache line of its own,
/// since the worker writes it in each turn.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct Heartbeat(AtomicU64);

impl Heartbeat {
    pub(super) fn store(&self, now_millis: u64) {
        self.0.store(now_millis, Relaxed);
    }
}

/// The heartbeat of one worker, for observers.
pub struct Pulse {
    pub worker: String,
    heartbeat: Arc<Heartbeat>,
    pub pauses: Arc<Pauses>,
    /// Causes a turn in which nothing is done.
    waker: Waker,
    /// Where the milliseconds count from.
    began: Instant,
    /// When the worker was last woken, in these milliseconds.
    woken: AtomicU64,
    /// When an observer looked last.
    observed: AtomicU64,
}

impl Pulse {
    pub(super) fn new(
        worker: String,
        heartbeat: Arc<Heartbeat>,
        pauses: Arc<Pauses>,
        waker: Waker,
        began: Instant,
    ) -> Self {
        Self {
            worker,
            heartbeat,
            pauses,
            waker,
            began,
            woken: AtomicU64::default(),
            observed: AtomicU64::default(),
        }
    }

    /// Wakes the worker, unless it has run just now or was woken already. Returns for how long it
    /// has not run although it was woken; zero: it runs.
    pub fn check(&self, now: Instant) -> Duration {
        let now = self.millis(now);
        let unobserved = now.saturating_sub(self.observed.swap(now, Relaxed));
        if self.is_awaited() && Duration::from_millis(unobserved) > UNOBSERVED {
            // Its time begins again.
            self.woken.store(now, Relaxed);
        }
        let silence = self.silence_at(now);
        let last = self.heartbeat.0.load(Relaxed);
        if !self.is_awaited() && Duration::from_millis(now.saturating_sub(last)) > FRESH {
            self.woken.store(now, Relaxed);
            self.waker.wake_by_ref();
        }
        Duration::from_millis(silence)
    }

    /// Whether a turn is due that has not begun yet.
    pub fn is_awaited(&self) -> bool {
        self.woken.load(Relaxed) > self.heartbeat.0.load(Relaxed)
    }

    fn silence_at(&self, now: u64) -> u64 {
        match self.is_awaited() {
            true => now.saturating_sub(self.woken.load(Relaxed)),
            false => 0,
        }
    }

    fn millis(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.began);
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Wake;

    #[derive(Default)]
    struct Wakes(AtomicU64);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    #[test]
    fn a_worker_is_woken_once_and_is_silent_until_its_next_turn() {
        let (heartbeat, wakes) = (Arc::<Heartbeat>::default(), Arc::<Wakes>::default());
        let began = Instant::now();
        let at = |millis| began + Duration::from_millis(millis);
        let waker = Waker::from(Arc::clone(&wakes));
        let own = Arc::clone(&heartbeat);
        let pulse = Pulse::new("w".to_owned(), own, Arc::default(), waker, began);
        let checked = |millis| (pulse.check(at(millis)).as_millis(), wakes.0.load(Relaxed));
        heartbeat.store(1_000);
        assert_eq!(checked(1_500), (0, 0), "it has run just now");
        assert_eq!(checked(1_501), (0, 1));
        assert!(pulse.is_awaited());
        assert_eq!(checked(3_000), (1_499, 1), "woken already");
        assert_eq!(checked(3_501), (2_000, 1));
        heartbeat.store(3_502);
        assert!(!pulse.is_awaited());
        assert_eq!(checked(3_600), (0, 1));
        assert_eq!(checked(5_000), (0, 2));
        // The whole process was stopped and continued, and the observer is the first to run.
        assert_eq!(checked(15_000), (0, 2));
        assert!(pulse.is_awaited());
        assert_eq!(checked(16_000), (1_000, 2));
        assert_eq!(checked(17_000), (2_000, 2));
    }
}
