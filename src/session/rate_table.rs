//! When each of very many sources may be served again: a table of fixed size.

use crate::sys::mutex::Mutex;
use ahash::RandomState;
use std::{hash::Hash, sync::OnceLock};

/// Entries that one source may be in.
const WAYS: usize = 8;
/// Sets that share a lock, and are allocated together when the first of them is used.
const SETS: usize = 32;
const CHUNKS: usize = 8192;

/// The time at which the bucket of each source will be full again. Full buckets need no entry, so
/// that there is one for each source that was served within the time that a bucket takes to fill,
/// a second for most rates.
///
/// A source has its place by its hash, with keys of this process. Where all eight entries of that
/// place are needed, the source whose bucket is full first is forgotten, and has a full bucket from
/// then on: it may be served too early, but no source is refused for another one. With a million
/// sources at the same time that concerns 1 in 100 of them. Two sources are taken for one if 64
/// bits of their hashes agree: with a million, once in ten million runs.
#[derive(Debug, Default)]
pub(super) struct RateTable {
    /// Allocated when they are needed, and empty before.
    chunks: OnceLock<Chunks>,
    hash: RandomState,
}

type Chunks = Box<[Mutex<Option<Box<Chunk>>>]>;
type Chunk = [[Entry; WAYS]; SETS];

#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    hash: u64,
    full_at: u64,
}

impl RateTable {
    /// The time of a source, which is at most `now` where there is none.
    pub(super) fn get<S: Hash>(&self, source: &S) -> u64 {
        let hash = self.hash.hash_one(source);
        let Some(chunks) = self.chunks.get() else {
            return 0;
        };
        let (number, set) = place(hash);
        let chunk = chunks[number].lock();
        let mut entries = chunk.iter().flat_map(|chunk| chunk[set]);
        let found = entries.find(|entry| entry.hash == hash);
        found.map_or(0, |entry| entry.full_at)
    }

    /// Replaces the time of a source by what `next` makes of it; `None`: it stays as it is.
    pub(super) fn update<S: Hash, R>(
        &self,
        source: &S,
        now: u64,
        next: impl FnOnce(u64) -> (Option<u64>, R),
    ) -> R {
        let hash = self.hash.hash_one(source);
        let (number, set) = place(hash);
        let chunks = self
            .chunks
            .get_or_init(|| (0..CHUNKS).map(|_| Mutex::default()).collect());
        let mut chunk = chunks[number].lock();
        let chunk = chunk.get_or_insert_with(|| Box::new([[Entry::default(); WAYS]; SETS]));
        let entries = &mut chunk[set];
        let found = entries.iter().position(|entry| entry.hash == hash);
        let (next, result) = next(found.map_or(0, |at| entries[at].full_at));
        if let Some(full_at) = next {
            let at = found.unwrap_or_else(|| first_to_fill(entries));
            // A full bucket is as good as none.
            entries[at] = match full_at > now {
                true => Entry { hash, full_at },
                false => Entry::default(),
            };
        }
        result
    }

    /// Forgets all.
    pub fn clear(&self) {
        for chunk in self.chunks.get().into_iter().flatten() {
            *chunk.lock() = None;
        }
    }

    /// What it has allocated, in bytes.
    #[cfg(test)]
    fn size(&self) -> usize {
        let chunks = self.chunks.get().into_iter().flatten();
        let used = chunks.filter(|chunk| chunk.lock().is_some());
        used.count() * size_of::<Chunk>()
    }
}

/// The chunk and the set: by parts of the hash that do not overlap.
fn place(hash: u64) -> (usize, usize) {
    (hash as usize % CHUNKS, (hash >> 32) as usize % SETS)
}

/// Which entry is needed least.
fn first_to_fill(entries: &[Entry; WAYS]) -> usize {
    let by_time = entries.iter().enumerate().min_by_key(|(_, e)| e.full_at);
    by_time.map_or(0, |(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether this source may be served once a second, and is at `now`, in seconds.
    fn take(table: &RateTable, source: u32, now: u64) -> bool {
        table.update(&source, now, |full_at| match full_at <= now {
            true => (Some(now + 1), true),
            false => (None, false),
        })
    }

    #[test]
    fn a_million_sources_are_distinguished_in_bounded_memory() {
        const SOURCES: u32 = 1_000_000;
        let table = RateTable::default();
        assert_eq!(table.size(), 0);
        for now in 0..3 {
            // None is refused because of the others, whatever was there before.
            assert!((0..SOURCES).all(|source| take(&table, source, now)));
            let again = (0..SOURCES).filter(|source| take(&table, *source, now));
            let forgotten = again.count();
            assert!(forgotten < SOURCES as usize / 50, "{forgotten} forgotten");
        }
        assert!(table.size() <= 32 << 20, "{} bytes", table.size());
    }

    #[test]
    fn few_sources_take_little_and_none_is_forgotten() {
        let table = RateTable::default();
        assert_eq!(table.get(&1u32), 0);
        assert!((0..500).all(|source| take(&table, source, 1)));
        assert!((0..500).all(|source| !take(&table, source, 1) && table.get(&source) == 2));
        assert_eq!(table.get(&501u32), 0);
        assert!((0..500).all(|source| take(&table, source, 2)));
        assert!(table.size() <= 500 * size_of::<Chunk>());
    }
}
