//! How many sessions of a listener each source has, over all workers.

use crate::{plan::Source, sys::mutex::Mutex};
use ahash::{AHashMap, RandomState};
use std::sync::MutexGuard;

/// Workers that begin and end sessions of different sources hardly ever meet.
const SHARDS: usize = 16;

/// Exact, and no larger than the sessions are many: a source without a session has no entry. Counts
/// only sessions that were admitted under a limit; empty where there is none.
#[derive(Debug, Default)]
pub struct PerSource {
    shards: [Mutex<AHashMap<Source, u64>>; SHARDS],
    hash: RandomState,
}

impl PerSource {
    pub fn is_below(&self, max: u64, source: Source) -> bool {
        let counts = self.shard(&source);
        counts.get(&source).is_none_or(|count| *count < max)
    }

    /// False when this source has `max` sessions.
    pub fn take(&self, max: u64, source: Source) -> bool {
        let mut counts = self.shard(&source);
        let count = counts.entry(source).or_default();
        let is_below = *count < max;
        *count += u64::from(is_below);
        is_below
    }

    pub fn give_back(&self, source: Source) {
        let mut counts = self.shard(&source);
        if let Some(count) = counts.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&source);
                // What a burst has taken is given back.
                if counts.capacity() > 64 && counts.len() < counts.capacity() / 8 {
                    counts.shrink_to_fit();
                }
            }
        }
    }

    fn shard(&self, source: &Source) -> MutexGuard<'_, AHashMap<Source, u64>> {
        let shard = &self.shards[self.hash.hash_one(source) as usize % SHARDS];
        shard.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::SourcePrefix;
    use std::net::IpAddr;

    fn source(n: u32) -> Source {
        Source::of(IpAddr::V4(n.into()), SourcePrefix::default())
    }

    fn entries(all: &PerSource) -> usize {
        let shards = all.shards.iter();
        shards.map(|shard| shard.lock().len()).sum()
    }

    #[test]
    fn each_source_is_limited_apart_from_others() {
        let [a, b] = [1, 2].map(source);
        let all = PerSource::default();
        assert!(all.take(2, a) && all.take(2, a));
        assert!(!all.take(2, a) && !all.is_below(2, a));
        assert!(all.is_below(2, b) && all.take(2, b));
        all.give_back(a);
        assert!(all.is_below(2, a) && all.take(2, a));
        [a, a, b]
            .into_iter()
            .for_each(|source| all.give_back(source));
        assert_eq!(entries(&all), 0);
    }

    /// However many there are, the count of one is exact, and memory is given back.
    #[test]
    fn a_million_sources_are_counted_exactly() {
        const SOURCES: u32 = 1_000_000;
        let all = PerSource::default();
        for n in 0..SOURCES {
            assert!(all.take(1, source(n)));
        }
        assert!((0..SOURCES).step_by(997).all(|n| !all.take(1, source(n))));
        assert!(all.take(1, source(SOURCES)));
        assert_eq!(entries(&all), SOURCES as usize + 1);
        (0..=SOURCES).for_each(|n| all.give_back(source(n)));
        assert_eq!(entries(&all), 0);
        let capacity = |shard: &Mutex<AHashMap<Source, u64>>| shard.lock().capacity();
        assert!(all.shards.iter().map(capacity).sum::<usize>() < 20_000);
    }
}
