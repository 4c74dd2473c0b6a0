//! Bounded load, as HAProxy's `hash-balance-factor`: no candidate holds more than so many percent
//! of its even share of the sessions, and what exceeds that goes on along the ring.

use super::{Candidates, FULL, weights::Weights};

/// How many sessions each candidate may hold at this moment.
pub(super) struct Capacity<'a> {
    /// How many sessions there may be in all, with the one to be assigned.
    total: u64,
    weights: &'a Weights,
    /// Where not all count with the whole of their weight: what counts, summed up. The share
    /// of candidate `i` ends at `sums[i + 1]`.
    sums: Option<&'a [u64]>,
}

impl<'a> Capacity<'a> {
    /// Only candidates that can be picked count, with their sessions: they hold the share of the
    /// others, too.
    pub(super) fn new(
        factor: u32,
        weights: &'a Weights,
        candidates: &impl Candidates,
        sums: &'a mut Vec<u64>,
    ) -> Self {
        let (mut sessions, mut all_whole) = (0, true);
        for (i, _) in weights.each() {
            let share = candidates.share(i);
            all_whole &= share == FULL;
            if share > 0 {
                sessions += candidates.connections(i);
            }
        }
        let sums = (!all_whole).then(|| {
            let mut sum = 0;
            let ends = weights.each().map(|(i, weight)| {
                sum += weight * u64::from(candidates.share(i));
                sum
            });
            sums.clear();
            sums.push(0);
            sums.extend(ends);
            &sums[..]
        });
        Self {
            total: ((sessions + 1) * u64::from(factor)).div_ceil(100),
            weights,
            sums,
        }
    }

    pub(super) fn allows(&self, candidate: usize, connections: u64) -> bool {
        connections < self.most(candidate)
    }

    /// The total is divided by weight, and what does not divide evenly along the order, so that
    /// there is always capacity for one more.
    fn most(&self, candidate: usize) -> u64 {
        let (from, to, total) = match self.sums {
            None => {
                let end = self.weights.end(candidate);
                let from = end - self.weights.of(candidate);
                (from, end, self.weights.total())
            }
            Some(sums) => {
                let total = sums.last().copied().unwrap_or_default();
                (sums[candidate], sums[candidate + 1], total)
            }
        };
        let dealt = |sum: u64| u128::from(sum) * u128::from(self.total) / u128::from(total.max(1));
        let most = dealt(to) - dealt(from);
        u64::try_from(most).unwrap_or(u64::MAX).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Entry, tests::Each};
    use super::*;
    use proptest::prelude::*;

    /// Share and sessions of each.
    fn most(factor: u32, weights: &[u32], held: Vec<(u32, u64)>) -> Vec<u64> {
        let entry = |&weight| Entry { text: "", weight };
        let entries: Vec<_> = weights.iter().map(entry).collect();
        let held = held
            .into_iter()
            .map(|(share, sessions)| (share, sessions, 0.0));
        let held = Each(held.collect());
        let weights = Weights::new(0, &entries);
        let mut sums = Vec::new();
        let capacity = Capacity::new(factor, &weights, &held, &mut sums);
        weights.range().map(|i| capacity.most(i)).collect()
    }

    #[test]
    fn shares_of_the_places() {
        // 9 sessions and the next: 12.5 in all, rounded up.
        let held = vec![(FULL, 3), (FULL, 3), (FULL, 3)];
        assert_eq!(most(125, &[1, 1, 1], held), [4, 4, 5]);
        let held = vec![(FULL, 0), (FULL, 0), (FULL, 0)];
        assert_eq!(most(125, &[1, 1, 1], held), [1, 1, 1]);
        // One is out, with its sessions: the others share what is theirs.
        let held = vec![(FULL, 5), (0, 100), (FULL, 5)];
        assert_eq!(most(120, &[2, 7, 1], held)[..1], [9]);
    }

    proptest! {
        /// There is always capacity for one more, and no candidate may hold more than one above its
        /// share.
        #[test]
        fn some_candidate_has_capacity(
            factor in 101u32..400,
            backends in proptest::collection::vec((1u32..50, 0u64..50), 1..20),
        ) {
            let weights: Vec<u32> = backends.iter().map(|b| b.0).collect();
            let held: Vec<(u32, u64)> = backends.iter().map(|b| (FULL, b.1)).collect();
            let most = most(factor, &weights, held);
            prop_assert!(backends.iter().zip(&most).any(|((_, held), most)| held < most));
            let sessions: u64 = backends.iter().map(|b| b.1).sum();
            let capacity = ((sessions + 1) * u64::from(factor)).div_ceil(100);
            let total: u64 = weights.iter().map(|&w| u64::from(w)).sum();
            for (weight, most) in weights.iter().zip(most) {
                let share = capacity * u64::from(*weight) / total;
                prop_assert!(most <= (share + 1).max(1), "{most} of {share}");
            }
        }
    }
}
