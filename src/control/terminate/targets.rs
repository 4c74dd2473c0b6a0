//! The fair share of each backend. Pure.

/// What bounds the share of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// In any unit; more than 0.
    pub(super) weight: u64,
    /// 0: no limit.
    pub(super) max: u64,
}

/// How many of `total` sessions each is to have: by weight, within its limit. What one cannot have
/// is shared by the others; what nothing can have is left out.
pub(super) fn by_weight(total: u64, takers: &[Limits]) -> Vec<u64> {
    let mut targets = vec![0; takers.len()];
    let mut open: Vec<usize> = (0..takers.len()).collect();
    let mut left = total;
    loop {
        let weights: u64 = open.iter().map(|i| takers[*i].weight).sum();
        let share = |i: usize| {
            let share =
                u128::from(left) * u128::from(takers[i].weight) / u128::from(weights.max(1));
            share as u64
        };
        let is_capped = |i: &usize| takers[*i].max > 0 && share(*i) >= takers[*i].max;
        let (capped, rest): (Vec<usize>, Vec<usize>) = open.iter().partition(|i| is_capped(i));
        if capped.is_empty() {
            for i in &open {
                targets[*i] = share(*i);
            }
            let dealt: u64 = open.iter().map(|i| targets[*i]).sum();
            deal_rest(left - dealt, weights, left, takers, &open, &mut targets);
            return targets;
        }
        for i in capped {
            targets[i] = takers[i].max.min(left);
            left -= targets[i];
        }
        open = rest;
        if open.is_empty() {
            return targets;
        }
    }
}

/// What does not divide evenly goes where most was cut off, one to each at most.
fn deal_rest(
    rest: u64,
    weights: u64,
    total: u64,
    takers: &[Limits],
    open: &[usize],
    targets: &mut [u64],
) {
    let cut =
        |i: &usize| u128::from(total) * u128::from(takers[*i].weight) % u128::from(weights.max(1));
    let mut order = open.to_vec();
    order.sort_by_key(|i| std::cmp::Reverse(cut(i)));
    for i in order.into_iter().take(rest as usize) {
        targets[i] += 1;
    }
}

/// The same for the policy that fills the first before the next.
pub(super) fn in_order(total: u64, takers: &[Limits]) -> Vec<u64> {
    let mut left = total;
    let each = takers.iter().map(|taker| {
        let target = match taker.max {
            0 => left,
            max => left.min(max),
        };
        left -= target;
        target
    });
    each.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn takers(of: &[(u64, u64)]) -> Vec<Limits> {
        let taker = |&(weight, max)| Limits { weight, max };
        of.iter().map(taker).collect()
    }

    #[test]
    fn shares_follow_weights_and_limits() {
        for (total, of, expected) in [
            (300, &[(1, 0), (1, 0), (1, 0)][..], &[100, 100, 100][..]),
            (100, &[(1, 0), (1, 0), (1, 0)], &[34, 33, 33]),
            (120, &[(3, 0), (1, 0), (2, 0)], &[60, 20, 40]),
            // What one cannot have, the others share.
            (90, &[(1, 10), (1, 0), (1, 0)], &[10, 40, 40]),
            (90, &[(1, 10), (1, 20), (1, 0)], &[10, 20, 60]),
            (90, &[(1, 10), (1, 20), (1, 30)], &[10, 20, 30]),
            (0, &[(1, 0), (1, 5)], &[0, 0]),
        ] {
            assert_eq!(by_weight(total, &takers(of)), expected, "{total} {of:?}");
        }
        let first = takers(&[(1, 10), (1, 0), (1, 0)]);
        assert_eq!(in_order(25, &first), [10, 15, 0]);
        assert_eq!(in_order(5, &first), [5, 0, 0]);
    }

    proptest! {
        #[test]
        fn no_session_is_lost_or_made(
            total in 0u64..100_000,
            of in proptest::collection::vec((1u64..1_000, 0u64..3_000), 1..20),
        ) {
            let takers = takers(&of);
            let targets = by_weight(total, &takers);
            let capacity: u64 = match of.iter().any(|(_, max)| *max == 0) {
                true => u64::MAX,
                false => of.iter().map(|(_, max)| max).sum(),
            };
            prop_assert_eq!(targets.iter().sum::<u64>(), total.min(capacity));
            for (target, taker) in targets.iter().zip(&takers) {
                prop_assert!(taker.max == 0 || *target <= taker.max);
            }
        }

        #[test]
        fn without_limits_each_is_within_one_of_its_share(
            total in 0u64..100_000,
            weights in proptest::collection::vec(1u64..1_000, 1..20),
        ) {
            let takers: Vec<_> = weights.iter().map(|&weight| Limits { weight, max: 0 }).collect();
            let sum: u64 = weights.iter().sum();
            for (target, weight) in by_weight(total, &takers).iter().zip(&weights) {
                let share = total * weight / sum;
                prop_assert!(*target == share || *target == share + 1);
            }
        }
    }
}
