//! Least connections: the fewest sessions for each unit of weight; turns decide among equals.

use super::{
    Candidates, Pick, RoundRobin, Why,
    least::{least, number},
    weights::Weights,
};

pub(super) fn pick(
    weights: &Weights,
    turns: &mut RoundRobin,
    candidates: &impl Candidates,
) -> Option<Pick> {
    let sessions = |i| number(candidates.connections(i));
    let (candidate, _) = least(weights, turns, candidates, sessions)?;
    Some(Pick {
        candidate,
        why: Why::FewestConnections {
            connections: candidates.connections(candidate),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Entry, FULL};
    use super::*;

    /// Share and sessions of each.
    struct Loaded(Vec<(u32, u64)>);

    impl Candidates for Loaded {
        fn share(&self, i: usize) -> u32 {
            self.0[i].0
        }
        fn connections(&self, i: usize) -> u64 {
            self.0[i].1
        }
        fn time(&self, _: usize) -> f64 {
            0.0
        }
    }

    fn picks(weights: &[u32], now: &Loaded, times: usize) -> Vec<Option<usize>> {
        let entries: Vec<_> = weights
            .iter()
            .map(|&weight| Entry { text: "", weight })
            .collect();
        let mut turns = RoundRobin::new(weights.iter().copied());
        let weights = Weights::new(0, &entries);
        (0..times)
            .map(|_| pick(&weights, &mut turns, now).map(|p| p.candidate))
            .collect()
    }

    fn pick_of(weights: &[u32], sessions: &[u64]) -> Option<usize> {
        let now = Loaded(sessions.iter().map(|&s| (FULL, s)).collect());
        picks(weights, &now, 1)[0]
    }

    #[test]
    fn the_fewest_for_each_unit_of_weight() {
        assert_eq!(pick_of(&[1, 1, 1], &[3, 2, 4]), Some(1));
        assert_eq!(pick_of(&[1, 4, 1], &[1, 3, 2]), Some(1));
        assert_eq!(pick_of(&[3, 1], &[2, 1]), Some(0));
        assert_eq!(pick_of(&[0, 1], &[0, 100]), Some(1));
        assert_eq!(pick_of(&[0], &[0]), None);
    }

    #[test]
    fn turns_decide_among_equals() {
        let now = Loaded(vec![(FULL, 2), (FULL, 2), (FULL, 5)]);
        assert_eq!(
            picks(&[1, 1, 1], &now, 4),
            [Some(0), Some(1), Some(0), Some(1)]
        );
    }

    #[test]
    fn one_that_starts_slowly_counts_for_less() {
        // A quarter of its weight: one session on it is as much as four elsewhere.
        let now = Loaded(vec![(FULL / 4, 1), (FULL, 3)]);
        assert_eq!(picks(&[1, 1], &now, 1), [Some(1)]);
        let now = Loaded(vec![(FULL / 4, 1), (FULL, 5)]);
        assert_eq!(picks(&[1, 1], &now, 1), [Some(0)]);
    }
}
