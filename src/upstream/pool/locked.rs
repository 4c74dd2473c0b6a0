//! The lock of a pool.

use super::Inner;
use crate::{runtime::pause, sys::mutex::Mutex};
use std::{
    ops::{Deref, DerefMut},
    sync::{
        MutexGuard,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::Waker,
    thread,
};

/// The state of a pool while it is locked. When it is unlocked, the tasks are woken that were
/// served meanwhile.
pub(super) struct Locked<'a> {
    inner: MutexGuard<'a, Inner>,
    /// Dropped after the lock.
    woken: Woken,
}

#[derive(Default)]
struct Woken(Vec<Waker>);

/// Threads that wait for the lock of a pool.
static WAITING: AtomicUsize = AtomicUsize::new(0);

/// How often the CPU is given away for one of them, at most: some hundred microseconds.
const MOST_YIELDS: u32 = 500;

/// To be called before the lock is taken once more for a part of what is done under it: it would be
/// taken again before a thread has woken up that waits for it.
pub(super) fn let_others_in() {
    let waiting = WAITING.load(Relaxed);
    let mut yields = 0;
    while waiting > 0 && WAITING.load(Relaxed) >= waiting && yields < MOST_YIELDS {
        thread::yield_now();
        yields += 1;
    }
}

#[cfg(test)]
pub(super) fn is_awaited() -> bool {
    WAITING.load(Relaxed) > 0
}

impl<'a> Locked<'a> {
    #[cfg_attr(test, track_caller)]
    pub(super) fn lock(mutex: &'a Mutex<Inner>) -> Self {
        let inner = mutex.try_lock().unwrap_or_else(|| {
            WAITING.fetch_add(1, Relaxed);
            let inner = pause::wait(|| mutex.lock());
            WAITING.fetch_sub(1, Relaxed);
            inner
        });
        #[cfg(test)]
        looks::begin();
        Self {
            inner,
            woken: Woken::default(),
        }
    }
}

impl Deref for Locked<'_> {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.inner
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Inner {
        &mut self.inner
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        #[cfg(test)]
        looks::end();
        if !self.inner.line.woken.is_empty() {
            self.woken = Woken(std::mem::take(&mut self.inner.line.woken));
        }
    }
}

impl Drop for Woken {
    fn drop(&mut self) {
        self.0.drain(..).for_each(Waker::wake);
    }
}

/// Counts endpoints whose state is looked at under the lock: workers wait meanwhile.
#[cfg(test)]
pub(super) mod looks {
    use rustix::time::{ClockId, Timespec, clock_gettime};
    use std::{
        cell::{Cell, RefCell},
        panic::Location,
        time::Duration,
    };

    /// One time that the lock was held.
    #[derive(Debug, Clone, Copy)]
    pub(in crate::upstream::pool) struct Hold {
        pub(in crate::upstream::pool) by: &'static Location<'static>,
        pub(in crate::upstream::pool) looks: usize,
        /// Of the thread that held it.
        pub(in crate::upstream::pool) cpu: Duration,
    }

    thread_local! {
        static NOW: Cell<usize> = const { Cell::new(0) };
        static LAST: Cell<usize> = const { Cell::new(0) };
        static BEGAN: Cell<Option<(&'static Location<'static>, Duration)>> =
            const { Cell::new(None) };
        static HOLDS: RefCell<Option<Vec<Hold>>> = const { RefCell::new(None) };
    }

    fn cpu_time() -> Duration {
        let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(tv_sec as u64, tv_nsec as u32)
    }

    #[track_caller]
    pub(super) fn begin() {
        NOW.set(0);
        LAST.set(0);
        BEGAN.set(Some((Location::caller(), cpu_time())));
    }

    pub(super) fn end() {
        let Some((by, began)) = BEGAN.take() else {
            return;
        };
        let (looks, cpu) = (NOW.get(), cpu_time() - began);
        HOLDS.with_borrow_mut(|holds| {
            if let Some(holds) = holds {
                holds.push(Hold { by, looks, cpu });
            }
        });
    }

    /// Several looks at one state, one after the other, are one.
    pub(in crate::upstream::pool) fn count<T>(state: &T) {
        let at = std::ptr::from_ref(state).addr();
        if LAST.replace(at) != at {
            NOW.set(NOW.get() + 1);
        }
    }

    /// How the lock was held on this thread during `work`.
    pub(in crate::upstream::pool) fn holds_during<T>(work: impl FnOnce() -> T) -> (Vec<Hold>, T) {
        HOLDS.set(Some(Vec::new()));
        let result = work();
        (HOLDS.take().unwrap_or_default(), result)
    }

    /// The most looks of one of these times.
    pub(in crate::upstream::pool) fn most_during<T>(work: impl FnOnce() -> T) -> (usize, T) {
        let (holds, result) = holds_during(work);
        let looks = holds.iter().map(|hold| hold.looks);
        (looks.max().unwrap_or_default(), result)
    }
}
