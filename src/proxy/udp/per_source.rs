//! How many flows each source has, over all workers.

use ahash::AHashMap;
use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

/// Empty where there is no limit.
#[derive(Debug)]
pub struct PerSource {
    most: u64,
    counts: Mutex<AHashMap<IpAddr, u64>>,
}

/// One of those that a source may have, given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    of: Arc<PerSource>,
    source: IpAddr,
}

impl PerSource {
    /// 0: no limit.
    pub fn new(most: u64) -> Arc<Self> {
        Arc::new(Self {
            most,
            counts: Mutex::default(),
        })
    }

    pub(super) fn has_limit(&self) -> bool {
        self.most > 0
    }

    pub(super) fn has_room(&self, source: IpAddr) -> bool {
        if self.most == 0 {
            return true;
        }
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.get(&source).is_none_or(|count| *count < self.most)
    }

    /// `None` when this source has as many as it may have.
    pub(super) fn take(self: &Arc<Self>, source: IpAddr) -> Option<Box<Place>> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(source).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Box::new(Place {
            of: Arc::clone(self),
            source,
        }))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let counts = &self.of.counts;
        let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_source_has_its_own_and_gets_it_back() {
        let [a, b] = [1u8, 2].map(|n| IpAddr::from([127, 0, 0, n]));
        let all = PerSource::new(2);
        let first = all.take(a);
        let second = all.take(a);
        assert!(first.is_some() && second.is_some());
        assert!(all.take(a).is_none());
        assert!(all.take(b).is_some());
        drop(first);
        assert!(all.take(a).is_some());
        drop(second);
        assert!(all.counts.lock().expect("whole").is_empty());
    }
}
