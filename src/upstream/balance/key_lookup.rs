//! The position of a search on the ring, or in the table of Maglev.

use xxhash_rust::xxh3::xxh3_64;

#[derive(Debug, Clone, Copy)]
pub struct KeyLookup<H> {
    /// `None`: the key was empty, the pick is made in rotation.
    pub(super) hash: Option<H>,
    /// Steps from the key's own place, none of which led to a candidate.
    pub(super) steps: u32,
}

impl KeyLookup<u32> {
    pub(super) fn ring(key: &[u8]) -> Self {
        Self::new(key, crc32fast::hash)
    }
}

impl KeyLookup<u64> {
    pub(super) fn maglev(key: &[u8]) -> Self {
        Self::new(key, xxh3_64)
    }
}

impl<H> KeyLookup<H> {
    fn new(key: &[u8], hash: impl FnOnce(&[u8]) -> H) -> Self {
        Self {
            hash: (!key.is_empty()).then(|| hash(key)),
            steps: 0,
        }
    }
}
