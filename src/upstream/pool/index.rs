//! Where the endpoints of a pool are, by what others name them by. Made with them, without the lock
//! of the pool: under the lock no list of thousands is searched for one of them.

use super::configured::Configured;
use crate::{plan::Addr, upstream::backend::Backend};
use ahash::HashMap;
use smallvec::SmallVec;
use std::{ops::Range, sync::Arc, time::Instant};

#[derive(Debug, Default)]
pub(super) struct Index {
    /// Of the endpoints, in their order.
    pub(super) backends: Vec<Arc<Backend>>,
    by_id: HashMap<u64, usize>,
    by_text: HashMap<Arc<str>, usize>,
    /// The endpoints of each configured backend, in the order of the configuration.
    ranges: Vec<Range<usize>>,
    /// Of each endpoint, the position of its backend in the configuration.
    owners: Vec<usize>,
}

/// The same of endpoints that are no longer named, with state that would be lost with them.
#[derive(Debug, Default)]
pub(super) struct DepartedIndex {
    /// In the order in which they were made.
    pub(super) backends: Vec<Arc<Backend>>,
    /// Since when each is not named.
    pub(super) since: Vec<Instant>,
    by_id: HashMap<u64, usize>,
    by_text: HashMap<Arc<str>, SmallVec<[usize; 2]>>,
}

impl DepartedIndex {
    pub(super) fn new(departed: impl Iterator<Item = (Arc<Backend>, Instant)>) -> Self {
        let mut index = Self::default();
        for (i, (backend, since)) in departed.enumerate() {
            index.by_id.insert(backend.id, i);
            let of_text = index.by_text.entry(Arc::clone(backend.text()));
            of_text.or_default().push(i);
            index.backends.push(backend);
            index.since.push(since);
        }
        index
    }

    pub(super) fn endpoint(&self, id: u64) -> Option<usize> {
        self.by_id.get(&id).copied()
    }

    /// Those of one backend.
    pub(super) fn of(&self, text: &str) -> &[usize] {
        self.by_text.get(text).map_or(&[], |of| &**of)
    }
}

impl Index {
    /// `ranges`: of the endpoints of each configured backend.
    pub(super) fn new(
        backends: Vec<Arc<Backend>>,
        configured: &[Arc<Configured>],
        ranges: Vec<Range<usize>>,
    ) -> Self {
        let ids = backends.iter().enumerate();
        let texts = configured.iter().enumerate();
        let mut owners = vec![0; backends.len()];
        for (of, range) in ranges.iter().enumerate() {
            owners[range.clone()].fill(of);
        }
        Self {
            by_id: ids.map(|(i, backend)| (backend.id, i)).collect(),
            by_text: texts
                .map(|(of, c)| (Arc::clone(&c.metrics.text), of))
                .collect(),
            backends,
            ranges,
            owners,
        }
    }

    /// The endpoint of a backend.
    #[inline]
    pub(super) fn endpoint(&self, id: u64) -> Option<usize> {
        self.by_id.get(&id).copied()
    }

    /// The position of a backend in the configuration.
    pub(super) fn configured(&self, text: &str) -> Option<usize> {
        self.by_text.get(text).copied()
    }

    /// The endpoints of the backend at this position of the configuration.
    pub(super) fn range(&self, configured: usize) -> Range<usize> {
        self.ranges.get(configured).cloned().unwrap_or_default()
    }

    /// How many backends are configured.
    pub(super) fn len(&self) -> usize {
        self.ranges.len()
    }

    /// The endpoints of the backend that this endpoint belongs to.
    pub(super) fn range_with(&self, endpoint: usize) -> Range<usize> {
        let of = self.owner(endpoint);
        of.map_or_else(Range::default, |of| self.range(of))
    }

    /// The position of its backend in the configuration.
    pub(super) fn owner(&self, endpoint: usize) -> Option<usize> {
        self.owners.get(endpoint).copied()
    }

    /// The endpoints of a configured backend.
    pub(super) fn range_of(&self, text: &str) -> Range<usize> {
        let configured = self.configured(text);
        configured.map_or_else(Range::default, |of| self.range(of))
    }

    /// The endpoint of a configured backend that has this address.
    pub(super) fn endpoint_at(&self, text: &str, addr: &Addr) -> Option<usize> {
        let mut range = self.range_of(text);
        range.find(|i| self.backends[*i].addr == *addr)
    }
}
