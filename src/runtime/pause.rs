//! For how long a worker is kept from its sockets by what other threads change: while it executes
//! their orders, and while it waits for a lock that they hold.
//!
//! Only turns with orders are timed, and only locks that are not free: what is relayed costs
//! nothing more.

use std::{
    cell::OnceCell,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// The longest pauses of one worker, in nanoseconds.
#[derive(Debug, Default)]
pub struct Pauses {
    since_start: AtomicU64,
    since_taken: AtomicU64,
}

thread_local! {
    /// Those of the worker that runs on this thread.
    static OWN: OnceCell<Arc<Pauses>> = const { OnceCell::new() };
}

impl Pauses {
    pub(super) fn record(&self, pause: Duration) {
        let nanos = u64::try_from(pause.as_nanos()).unwrap_or(u64::MAX);
        self.since_start.fetch_max(nanos, Relaxed);
        self.since_taken.fetch_max(nanos, Relaxed);
    }

    /// Since the start of the worker.
    pub fn longest(&self) -> Duration {
        Duration::from_nanos(self.since_start.load(Relaxed))
    }

    /// The longest since this was called last.
    pub fn take(&self) -> Duration {
        Duration::from_nanos(self.since_taken.swap(0, Relaxed))
    }
}

/// Pauses on this thread are those of its worker.
pub(super) fn set_own(pauses: Arc<Pauses>) {
    OWN.with(|own| {
        let _ = own.set(pauses);
    });
}

/// Waits for a lock that is not free. On the thread of a worker this is a pause.
#[cold]
pub fn wait<R>(wait: impl FnOnce() -> R) -> R {
    let began = Instant::now();
    let result = wait();
    OWN.with(|own| {
        if let Some(own) = own.get() {
            own.record(began.elapsed());
        }
    });
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_pause_is_kept_and_can_be_taken() {
        let pauses = Pauses::default();
        let ms = Duration::from_millis;
        pauses.record(ms(3));
        pauses.record(ms(2));
        assert_eq!((pauses.take(), pauses.take()), (ms(3), ms(0)));
        pauses.record(ms(1));
        assert_eq!((pauses.take(), pauses.longest()), (ms(1), ms(3)));
    }

    #[test]
    fn only_a_worker_waits_with_a_pause() {
        let pauses = Arc::new(Pauses::default());
        assert_eq!(wait(|| 1), 1);
        let own = Arc::clone(&pauses);
        let thread = std::thread::spawn(move || {
            set_own(own);
            wait(|| std::thread::sleep(Duration::from_millis(2)));
        });
        thread.join().expect("no panic");
        assert!(pauses.take() >= Duration::from_millis(2));
    }
}
