//! Plain hash, backend for backend that of nginx's `hash KEY` without `consistent`.
//!
//! Adding or removing a backend moves most clients. It exists for migration from nginx.

use super::{Candidates, MOST_TRIES, Pick, Why, by_key, weights::Weights};
use crc32fast::Hasher;

/// The position of a search: each try hashes the key again, with the number of the try.
#[derive(Debug, Clone)]
pub struct HashLookup {
    /// Boxed: a search that waits for a connect must not be large.
    key: Box<[u8]>,
    /// Of the key alone, the same at every try: it decides when the key moves to one that starts
    /// slowly.
    of_key: u32,
    hash: u64,
    rehash: u32,
    tries: u32,
}

impl HashLookup {
    pub(super) fn from_key(key: &[u8]) -> Self {
        Self {
            key: key.into(),
            of_key: crc32fast::hash(key),
            hash: 0,
            rehash: 0,
            tries: 0,
        }
    }

    pub(super) fn pick(&mut self, weights: &Weights, candidates: &impl Candidates) -> Option<Pick> {
        if self.key.is_empty() {
            return None;
        }
        try_hashes(weights, candidates, self.of_key, &mut self.tries, || {
            let mut hasher = Hasher::new();
            if self.rehash > 0 {
                hasher.update(self.rehash.to_string().as_bytes());
            }
            hasher.update(&self.key);
            self.hash += u64::from((hasher.finalize() >> 16) & 0x7fff);
            self.rehash += 1;
            self.hash
        })
    }
}

/// The first backend that can be used of those that the hashes from `next` lead to. `of_key`: the
/// same at every try, it decides when the key moves to one that starts slowly.
pub(super) fn try_hashes(
    weights: &Weights,
    candidates: &impl Candidates,
    of_key: u32,
    tries: &mut u32,
    mut next: impl FnMut() -> u64,
) -> Option<Pick> {
    let total = weights.total();
    while total > 0 && *tries <= MOST_TRIES {
        let hash = next();
        let at = hash % total;
        let candidate = weights.at(at)?;
        if by_key(candidates.share(candidate), of_key.into()) {
            return Some(Pick {
                candidate,
                why: Why::Hash {
                    hash,
                    at,
                    total,
                    tries: *tries + 1,
                },
            });
        }
        *tries += 1;
    }
    None
}
