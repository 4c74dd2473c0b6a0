//! The lock of a pool.

use super::Inner;
use crate::{runtime::pause, sys::mutex::Mutex};
use std::{
    ops::{Deref, DerefMut},
    sync::MutexGuard,
    task::Waker,
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

impl<'a> Locked<'a> {
    pub(super) fn lock(mutex: &'a Mutex<Inner>) -> Self {
        let inner = mutex.try_lock();
        let inner = inner.unwrap_or_else(|| pause::wait(|| mutex.lock()));
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

/// Counts how often endpoints are looked at under the lock: workers wait meanwhile.
#[cfg(test)]
pub(super) mod looks {
    use std::cell::Cell;

    thread_local! {
        static NOW: Cell<usize> = const { Cell::new(0) };
        static MOST: Cell<usize> = const { Cell::new(0) };
    }

    pub(super) fn begin() {
        NOW.set(0);
    }

    pub(super) fn end() {
        MOST.set(MOST.get().max(NOW.get()));
    }

    pub(in crate::upstream::pool) fn count() {
        NOW.set(NOW.get() + 1);
    }

    /// The most of one time that the lock was held on this thread during `work`.
    pub(in crate::upstream::pool) fn most_during<T>(work: impl FnOnce() -> T) -> (usize, T) {
        MOST.set(0);
        let result = work();
        (MOST.get(), result)
    }
}
