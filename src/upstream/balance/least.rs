//! The least of something for each unit of weight; equals are picked in rotation.

use super::{Candidates, FULL, RoundRobin, weights::Weights};

/// Of those that can be picked the one with the least `amount` for its weight, and how much that
/// is.
#[inline]
pub(super) fn least(
    weights: &Weights,
    rotation: &mut RoundRobin,
    candidates: &impl Candidates,
    amount: impl Fn(usize) -> f64,
) -> Option<(usize, f64)> {
    let score = |i, weight| score(amount(i), weight, candidates.share(i));
    let mut least = f64::INFINITY;
    let (mut best, mut usable, mut equals) = (None, 0, 0);
    for (i, weight) in weights.each_number() {
        let score = score(i, weight);
        if score == f64::INFINITY {
            continue;
        }
        usable += 1;
        if score < least {
            (least, best, equals) = (score, Some(i), 1);
        } else if score == least {
            equals += 1;
        }
    }
    best?;
    if equals == usable {
        best = rotation.pick(weights.range(), |i| candidates.share(i));
    } else if equals > 1 {
        // Computed once more instead of kept: keeping costs every pick more than this costs some.
        best = rotation.pick(weights.range(), |i| {
            let is_equal = score(i, weights.of(i) as f64) == least;
            if is_equal { candidates.share(i) } else { 0 }
        });
    }
    best.map(|best| (best, least))
}

/// Infinite for one that cannot be picked.
///
/// A quotient of its own for each, and not products with the least so far: those would have to wait
/// for each other, which takes longer than the divisions. It is exact enough: equal ratios of whole
/// numbers round to the same quotient, and different ones stay different up to 2^26 sessions.
#[inline]
pub(super) fn score(amount: f64, weight: f64, share: u32) -> f64 {
    if weight == 0.0 || share == 0 {
        return f64::INFINITY;
    }
    match share {
        // What most are, spared the division.
        FULL if weight == 1.0 => amount,
        FULL => amount / weight,
        share => amount / (weight * f64::from(share) / f64::from(FULL)),
    }
}

/// Through a signed number: the processor has no instruction for unsigned ones.
#[inline]
pub(super) fn number(n: u64) -> f64 {
    i64::try_from(n).unwrap_or(i64::MAX) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn quotients_order_as_fractions_do(
            sessions in (0u64..1 << 26, 0u64..1 << 26),
            weights in (1u64..=65_535, 1u64..=65_535),
            shares in (1..=FULL, 1..=FULL),
            times in 1u64..1000,
        ) {
            let one = score(number(sessions.0), number(weights.0), shares.0);
            let other = score(number(sessions.1), number(weights.1), shares.1);
            let left = u128::from(sessions.0) * u128::from(weights.1) * u128::from(shares.1);
            let right = u128::from(sessions.1) * u128::from(weights.0) * u128::from(shares.0);
            prop_assert_eq!(one.partial_cmp(&other), Some(left.cmp(&right)));
            // The same load on a multiple of the weight is the same.
            let (sessions, weight) = (sessions.0 >> 10, weights.0 % 64 + 1);
            let multiple = score(number(sessions * times), number(weight * times), FULL);
            prop_assert_eq!(score(number(sessions), number(weight), FULL), multiple);
        }
    }
}
