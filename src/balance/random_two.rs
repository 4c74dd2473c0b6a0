//! The power of two choices: of two drawn by weight, the one with fewer sessions for its weight.

use super::{Candidates, RoundRobin, is_less_loaded};
use std::ops::Range;

pub(super) fn pick(
    group: Range<usize>,
    turns: &RoundRobin,
    candidates: &impl Candidates,
    random: &mut impl FnMut() -> u64,
) -> Option<usize> {
    let usable = |i: &usize| turns.weight(*i) > 0 && candidates.eligible(*i);
    // Zeroes the weight of one that must not be drawn again.
    let mut draw = |not: Option<usize>| {
        let weighed = || {
            let others = group.clone().filter(|i| Some(*i) != not);
            others.filter(usable).map(|i| (i, turns.weight(i)))
        };
        let total: u64 = weighed().map(|(_, weight)| weight).sum();
        // Scaled instead of taken modulo: without the slight favour for small numbers.
        let mut at = (u128::from(random()) * u128::from(total)) >> 64;
        weighed()
            .find(|(_, weight)| {
                let here = at < u128::from(*weight);
                at = at.saturating_sub(u128::from(*weight));
                here
            })
            .map(|(i, _)| i)
    };
    let first = draw(None)?;
    let Some(second) = draw(Some(first)) else {
        return Some(first);
    };
    let load = |i: usize| (candidates.connections(i), turns.weight(i));
    let ((s1, w1), (s2, w2)) = (load(first), load(second));
    Some(if is_less_loaded(s2, w2, s1, w1) {
        second
    } else {
        first
    })
}
