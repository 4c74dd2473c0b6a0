//! The weights of one group of candidates, summed up: a number falls into the share of one.

use super::Entry;
use std::ops::Range;

#[derive(Debug)]
pub(super) struct Weights {
    /// The number of the first candidate.
    first: usize,
    each: Vec<u32>,
    /// The same as floating point numbers, to divide by.
    numbers: Vec<f64>,
    /// For each candidate where its share ends.
    ends: Vec<u64>,
}

impl Weights {
    pub(super) fn new(first: usize, entries: &[Entry<'_>]) -> Self {
        let mut end = 0;
        let ends = entries.iter().map(|e| {
            end += u64::from(e.weight);
            end
        });
        Self {
            first,
            ends: ends.collect(),
            numbers: entries.iter().map(|e| f64::from(e.weight)).collect(),
            each: entries.iter().map(|e| e.weight).collect(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn range(&self) -> Range<usize> {
        self.first..self.first + self.ends.len()
    }

    pub(super) fn total(&self) -> u64 {
        self.ends.last().copied().unwrap_or_default()
    }

    /// The candidates with their weights as configured.
    pub(super) fn each(&self) -> impl Iterator<Item = (usize, u64)> {
        (self.first..).zip(self.each.iter().map(|w| u64::from(*w)))
    }

    pub(super) fn each_number(&self) -> impl Iterator<Item = (usize, f64)> {
        (self.first..).zip(self.numbers.iter().copied())
    }

    /// Where the share of one of them ends.
    pub(super) fn end(&self, candidate: usize) -> u64 {
        self.ends[candidate - self.first]
    }

    /// The weight of one of them.
    pub(super) fn of(&self, candidate: usize) -> u64 {
        u64::from(self.each[candidate - self.first])
    }

    /// The candidate whose share contains the hash, among those that can be picked: the same for
    /// the same hash while the same candidates can be picked.
    pub(super) fn by_hash(&self, hash: u64, share: impl Fn(usize) -> u32) -> Option<usize> {
        let usable = || {
            self.each()
                .map(|(i, weight)| (i, weight * u64::from(share(i))))
        };
        let total: u64 = usable().map(|(_, weight)| weight).sum();
        let mut at = hash.checked_rem(total)?;
        let mut found = usable().filter(|(_, weight)| *weight > 0);
        found
            .find(|(_, weight)| {
                let here = at < *weight;
                at = at.saturating_sub(*weight);
                here
            })
            .map(|(i, _)| i)
    }

    /// The candidate whose share contains `at`.
    pub(super) fn at(&self, at: u64) -> Option<usize> {
        let i = self.ends.partition_point(|end| *end <= at);
        (i < self.ends.len()).then_some(self.first + i)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_follow_each_other() {
        let entry = |weight| Entry { text: "", weight };
        let weights = Weights::new(7, &[entry(2), entry(0), entry(1)]);
        assert_eq!((weights.total(), weights.range()), (3, 7..10));
        assert_eq!([7, 8, 9].map(|i| weights.of(i)), [2, 0, 1]);
        let found = [0, 1, 2, 3].map(|at| weights.at(at));
        assert_eq!(found, [Some(7), Some(7), Some(9), None]);
    }
}
