//! How many sessions of a listener each source address has, over all workers.

use ahash::AHashMap;
use std::{
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Counts only sessions that were admitted under a limit; empty where there is none.
#[derive(Debug, Default)]
pub struct PerSource {
    counts: Mutex<AHashMap<IpAddr, u64>>,
}

impl PerSource {
    pub fn is_below(&self, max: u64, source: IpAddr) -> bool {
        self.lock().get(&source).is_none_or(|count| *count < max)
    }

    /// False when this source has `max` sessions.
    pub fn take(&self, max: u64, source: IpAddr) -> bool {
        let mut counts = self.lock();
        let count = counts.entry(source).or_default();
        let is_below = *count < max;
        *count += u64::from(is_below);
        is_below
    }

    pub fn give_back(&self, source: IpAddr) {
        let mut counts = self.lock();
        if let Some(count) = counts.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&source);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, AHashMap<IpAddr, u64>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_source_is_limited_apart_from_others() {
        let [a, b] = [1u8, 2].map(|n| IpAddr::from([127, 0, 0, n]));
        let all = PerSource::default();
        assert!(all.take(2, a) && all.take(2, a));
        assert!(!all.take(2, a) && !all.is_below(2, a));
        assert!(all.is_below(2, b) && all.take(2, b));
        all.give_back(a);
        assert!(all.is_below(2, a) && all.take(2, a));
        [a, a, b].into_iter().for_each(|ip| all.give_back(ip));
        assert!(all.lock().is_empty());
    }
}
