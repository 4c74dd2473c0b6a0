//! How many sessions of one kind the process has, and may have.

use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Debug)]
pub struct SessionBudget {
    count: AtomicU64,
    most: AtomicU64,
}

impl SessionBudget {
    pub(super) fn new(most: u64) -> Self {
        Self {
            count: AtomicU64::default(),
            most: AtomicU64::new(most),
        }
    }

    pub(super) fn take(&self) -> bool {
        take_below(&self.count, self.most())
    }

    /// Takes one even beyond the limit.
    pub(super) fn take_anyway(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn give_back(&self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }

    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    pub fn most(&self) -> u64 {
        self.most.load(Ordering::Relaxed)
    }

    /// Sessions beyond a lower limit go on; no new one is admitted until enough have ended.
    pub fn set_most(&self, most: u64) {
        self.most.store(most, Ordering::Relaxed);
    }
}

/// Counts one more if fewer than `max` are counted. Never exceeds `max`, not for a moment: another
/// worker that saw one too many would refuse a client for no reason.
pub fn take_below(count: &AtomicU64, max: u64) -> bool {
    let one_more = |n| (n < max).then(|| n + 1);
    count
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_never_exceeds_its_limit() {
        let (count, over) = (AtomicU64::new(1), AtomicU64::new(0));
        // The one permit is taken for good: a refused attempt is not counted, not even while it is
        // made.
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while over.load(Ordering::Relaxed) == 0 {
                        assert!(!take_below(&count, 1));
                    }
                });
            }
            for _ in 0..2_000_000 {
                let seen = count.load(Ordering::Relaxed);
                over.store(u64::from(seen > 1) << 1, Ordering::Relaxed);
                if seen > 1 {
                    break;
                }
            }
            over.fetch_or(1, Ordering::Relaxed);
        });
        assert_eq!(over.into_inner(), 1);
        assert!(take_below(&count, 2));
        assert!(!take_below(&count, 2));
        assert_eq!(count.into_inner(), 2);
    }
}
