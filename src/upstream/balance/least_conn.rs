//! Least connections: the fewest sessions for each unit of weight; equals are picked in
//! rotation.

use super::{
    Candidates, Pick, RoundRobin, Why,
    least::{least, number},
    weights::Weights,
};

pub(super) fn pick(
    weights: &Weights,
    rotation: &mut RoundRobin,
    candidates: &impl Candidates,
) -> Option<Pick> {
    let sessions = |i| number(candidates.connections(i));
    let (candidate, _) = least(weights, rotation, candidates, sessions)?;
    Some(Pick {
        candidate,
        why: Why::FewestConnections {
            connections: candidates.connections(candidate),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::super::{FULL, tests::picks};
    use crate::plan::Balance;

    /// Share and sessions of each.
    fn picked(weights: &[u32], now: &[(u32, u64)], times: usize) -> Vec<Option<usize>> {
        let now = now.iter().map(|&(share, sessions)| (share, sessions, 0.0));
        picks(&Balance::LeastConn, weights, now.collect(), times)
    }

    fn pick_of(weights: &[u32], sessions: &[u64]) -> Option<usize> {
        // With another beside them that takes nothing: one alone would be no choice.
        let weights = [weights, &[0]].concat();
        let now: Vec<_> = sessions.iter().chain([&0]).map(|&s| (FULL, s)).collect();
        picked(&weights, &now, 1)[0]
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
    fn the_rotation_decides_among_equals() {
        let now = [(FULL, 2), (FULL, 2), (FULL, 5)];
        let in_rotation = [0, 1, 0, 1].map(Some);
        assert_eq!(picked(&[1, 1, 1], &now, 4), in_rotation);
    }

    #[test]
    fn one_that_starts_slowly_counts_for_less() {
        // A quarter of its weight: one session counts as much as four at full weight.
        let second = picked(&[1, 1], &[(FULL / 4, 1), (FULL, 3)], 1);
        let first = picked(&[1, 1], &[(FULL / 4, 1), (FULL, 5)], 1);
        assert_eq!((first, second), (vec![Some(0)], vec![Some(1)]));
    }
}
