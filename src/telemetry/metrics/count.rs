//! Counters for the hot path: one shard a worker, so that no two workers write to one cache line.

use std::{
    cell::Cell,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

thread_local! {
    static SHARD: Cell<usize> = const { Cell::new(0) };
}

/// Sets the shard of this thread. Threads that never call this use the first one.
pub fn set_shard(index: usize) {
    SHARD.set(index);
}

/// One copy for each worker.
#[derive(Debug)]
pub struct Sharded<T> {
    shards: Box<[Padded<T>]>,
}

/// Two cache lines: the prefetcher of common CPUs fetches them in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Padded<T>(T);

impl<T: Default> Sharded<T> {
    pub fn new(shards: usize) -> Self {
        Self {
            shards: (0..shards.max(1)).map(|_| Padded::default()).collect(),
        }
    }
}

impl<T> Sharded<T> {
    pub fn mine(&self) -> &T {
        self.at(self.own_index())
    }

    /// Which copy is that of this thread.
    pub fn own_index(&self) -> usize {
        SHARD.get() % self.shards.len()
    }

    pub fn at(&self, index: usize) -> &T {
        &self.shards[index].0
    }

    pub fn all(&self) -> impl Iterator<Item = &T> {
        self.shards.iter().map(|s| &s.0)
    }

    pub fn sum(&self, counter: impl Fn(&T) -> &Counter) -> u64 {
        self.all().map(|shard| counter(shard).get()).sum()
    }
}

/// Only grows, as far as a scrape shows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// Undoes an optimistic increment, such as that of a deferred write that failed. A scrape shows
    /// such a counter through [`Shown`].
    pub fn take_back(&self, n: u64) {
        self.0.fetch_sub(n, Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// The largest value of a counter that a scrape has shown. A counter that was decremented stays
/// there until it has caught up: a counter that falls means a restart.
#[derive(Debug, Default)]
pub struct Shown(AtomicU64);

impl Shown {
    pub(super) fn raise(&self, value: u64) -> u64 {
        self.0.fetch_max(value, Relaxed).max(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_value_never_falls() {
        let shown = Shown::default();
        assert_eq!([5, 3, 6].map(|n| shown.raise(n)), [5, 5, 6]);
    }

    #[test]
    fn shards_add_up() {
        let s: Sharded<Counter> = Sharded::new(3);
        std::thread::scope(|scope| {
            for i in 0..5 {
                let s = &s;
                scope.spawn(move || {
                    set_shard(i);
                    (0..1000).for_each(|_| s.mine().add(1));
                });
            }
        });
        assert_eq!(s.sum(|c| c), 5000);
    }
}
