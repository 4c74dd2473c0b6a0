//! Plain hash, backend for backend that of nginx's `hash KEY` without `consistent`.
//!
//! Adding or removing a backend moves most clients; it is here for those who have it and want to keep it.

use super::{Candidates, MOST_TRIES, RoundRobin};
use crc32fast::Hasher;
use std::ops::Range;

/// Where a session stands: each try that finds nobody hashes the key anew, with the number of the try.
#[derive(Debug)]
pub struct HashWalk {
    key: Box<[u8]>,
    hash: u64,
    rehash: u32,
    tries: u32,
}

impl HashWalk {
    pub fn from_key(key: &[u8]) -> Self {
        Self {
            key: key.into(),
            hash: 0,
            rehash: 0,
            tries: 0,
        }
    }

    pub(super) fn pick(
        &mut self,
        group: Range<usize>,
        turns: &RoundRobin,
        candidates: &impl Candidates,
    ) -> Option<usize> {
        if self.key.is_empty() {
            return None;
        }
        let total: u64 = group.clone().map(|i| turns.weight(i)).sum();
        while total > 0 && self.tries <= MOST_TRIES {
            let mut hasher = Hasher::new();
            if self.rehash > 0 {
                hasher.update(self.rehash.to_string().as_bytes());
            }
            hasher.update(&self.key);
            self.hash += u64::from((hasher.finalize() >> 16) & 0x7fff);
            self.rehash += 1;
            let found = at_weight(group.clone(), turns, self.hash % total)?;
            if candidates.eligible(found) {
                return Some(found);
            }
            self.tries += 1;
        }
        None
    }
}

/// The candidate in whose share of the weights `at` falls.
pub(super) fn at_weight(mut group: Range<usize>, turns: &RoundRobin, mut at: u64) -> Option<usize> {
    group.find(|&i| {
        let weight = turns.weight(i);
        let here = at < weight;
        at = at.saturating_sub(weight);
        here
    })
}
