//! The power of two choices: of two drawn by weight, the one with fewer sessions for its weight.

use super::{
    Candidates, Pick, Why, by_chance,
    least::{number, score},
    weights::Weights,
};

/// After so many draws of candidates that cannot be picked, the others are summed up instead.
const REDRAWS: u32 = 8;

pub(super) fn pick(
    weights: &Weights,
    candidates: &impl Candidates,
    random: &mut impl FnMut() -> u64,
) -> Option<Pick> {
    let first = draw(weights, candidates, None, random)?;
    let second = draw(weights, candidates, Some(first), random);
    let load = |i: usize| {
        let sessions = number(candidates.connections(i));
        score(sessions, number(weights.of(i)), candidates.share(i))
    };
    let is_better = |second: usize| load(second) < load(first);
    let (candidate, other) = match second {
        Some(second) if is_better(second) => (second, Some(first)),
        second => (first, second),
    };
    Some(Pick {
        candidate,
        why: Why::Drawn { other },
    })
}

/// One that can be picked, other than `not`, by weight.
fn draw(
    weights: &Weights,
    candidates: &impl Candidates,
    not: Option<usize>,
    random: &mut impl FnMut() -> u64,
) -> Option<usize> {
    // Drawing again keeps the odds among those that can be picked.
    for _ in 0..REDRAWS {
        let drawn = weights.at(below(weights.total(), random()))?;
        if Some(drawn) != not {
            let share = candidates.share(drawn);
            if share > 0 && by_chance(share, random) {
                return Some(drawn);
            }
        }
    }
    weights.by_hash(random(), |i| {
        if Some(i) == not {
            0
        } else {
            candidates.share(i)
        }
    })
}

/// Scaled instead of taken modulo: without the slight favour for small numbers.
fn below(total: u64, random: u64) -> u64 {
    ((u128::from(random) * u128::from(total)) >> 64) as u64
}
