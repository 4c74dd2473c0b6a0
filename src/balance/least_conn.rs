//! Least connections: the fewest sessions for each unit of weight; turns decide among equals.

use super::{Candidates, RoundRobin, is_less_loaded};
use std::ops::Range;

pub(super) fn pick(
    group: Range<usize>,
    turns: &mut RoundRobin,
    candidates: &impl Candidates,
) -> Option<usize> {
    let load = |i: usize| (candidates.connections(i), turns.weight(i));
    let mut least: Option<(u64, u64)> = None;
    for i in group.clone() {
        let (sessions, weight) = load(i);
        if weight > 0
            && candidates.eligible(i)
            && least.is_none_or(|(s, w)| is_less_loaded(sessions, weight, s, w))
        {
            least = Some((sessions, weight));
        }
    }
    let (sessions, weight) = least?;
    let equals: Vec<usize> = group
        .filter(|&i| {
            let (s, w) = load(i);
            w > 0 && !is_less_loaded(sessions, weight, s, w)
        })
        .collect();
    turns.pick(equals, |i| candidates.eligible(i))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Loaded(Vec<u64>);

    impl Candidates for Loaded {
        fn eligible(&self, _: usize) -> bool {
            true
        }
        fn connections(&self, i: usize) -> u64 {
            self.0[i]
        }
    }

    fn pick_of(weights: &[u32], sessions: &[u64]) -> Option<usize> {
        let mut turns = RoundRobin::new(weights.iter().copied());
        pick(0..weights.len(), &mut turns, &Loaded(sessions.to_vec()))
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
        let mut turns = RoundRobin::new([1, 1, 1]);
        let now = Loaded(vec![2, 2, 5]);
        let picks: Vec<_> = (0..4).map(|_| pick(0..3, &mut turns, &now)).collect();
        assert_eq!(picks, [Some(0), Some(1), Some(0), Some(1)]);
    }
}
