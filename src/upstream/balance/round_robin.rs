//! Smooth weighted round robin: picks in proportion to weight, spread out evenly.

/// Where a candidate stands in the rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RotationWeight {
    pub weight: u32,
    /// The weight less what failures took from it.
    pub effective: u32,
    /// In parts of a unit of weight, as shares are.
    pub current: i64,
}

/// Decides which candidate is next. A weight of 0 is never next.
#[derive(Debug)]
pub(super) struct RoundRobin {
    weights: Vec<RotationWeight>,
}

/// Of a rotation that is resumed.
const MOST_CURRENT: i64 = 1 << 48;

impl RoundRobin {
    pub(super) fn new(weights: impl IntoIterator<Item = u32>) -> Self {
        let weights = weights
            .into_iter()
            .map(|weight| RotationWeight {
                weight,
                effective: weight,
                current: 0,
            })
            .collect();
        Self { weights }
    }

    pub(super) fn len(&self) -> usize {
        self.weights.len()
    }

    /// The next of the given candidates; `share` is 0 for those that cannot be picked.
    pub(super) fn pick(
        &mut self,
        candidates: impl IntoIterator<Item = usize>,
        share: impl Fn(usize) -> u32,
    ) -> Option<usize> {
        let mut total = 0;
        let mut best: Option<(usize, i64)> = None;
        for i in candidates {
            let smooth = &mut self.weights[i];
            if smooth.weight == 0 {
                continue;
            }
            let share = share(i);
            if share == 0 {
                continue;
            }
            // The share of all is full but for those that start slowly: a common factor, which
            // changes no pick.
            let step = i64::from(smooth.effective) * i64::from(share);
            smooth.current += step;
            total += step;
            if smooth.effective < smooth.weight {
                smooth.effective += 1;
            }
            // Strictly larger: on a tie the earliest wins.
            if best.is_none_or(|(_, current)| smooth.current > current) {
                best = Some((i, smooth.current));
            }
        }
        let (winner, _) = best?;
        self.weights[winner].current -= total;
        Some(winner)
    }

    pub(super) fn weights(&self) -> &[RotationWeight] {
        &self.weights
    }

    /// Goes on where another rotation has stopped, if it is over the same weights.
    pub(super) fn resume(&mut self, other: &[RotationWeight]) {
        let configured = |weights: &[RotationWeight]| {
            let weights = weights.iter().map(|weight| weight.weight);
            weights.collect::<Vec<_>>()
        };
        if configured(other) != configured(&self.weights) {
            return;
        }
        for (own, other) in self.weights.iter_mut().zip(other) {
            own.effective = other.effective.min(own.weight);
            // Far below what would overflow, and far above what a rotation comes to.
            own.current = other.current.clamp(-MOST_CURRENT, MOST_CURRENT);
        }
    }

    pub(super) fn penalize(&mut self, i: usize, by: u32) {
        let smooth = &mut self.weights[i];
        smooth.effective = smooth.effective.saturating_sub(by);
    }
}

#[cfg(test)]
mod tests {
    use super::super::FULL;
    use super::*;

    fn pick_in_rotation(weights: &[u32], n: usize) -> Vec<usize> {
        let mut rr = RoundRobin::new(weights.iter().copied());
        (0..n)
            .map(|_| rr.pick(0..weights.len(), |_| FULL).expect("all eligible") + 1)
            .collect()
    }

    #[test]
    fn five_one_one() {
        assert_eq!(pick_in_rotation(&[5, 1, 1], 7), [1, 1, 2, 1, 3, 1, 1]);
    }

    #[test]
    fn equal_weights_alternate_in_order() {
        assert_eq!(pick_in_rotation(&[1, 1, 1], 6), [1, 2, 3, 1, 2, 3]);
    }

    #[test]
    fn a_failure_costs_share_until_it_has_climbed_back() {
        let mut rr = RoundRobin::new([4, 4]);
        rr.penalize(0, 4);
        let picks: Vec<_> = (0..8).map(|_| rr.pick(0..2, |_| FULL)).collect();
        let first = picks.iter().filter(|p| **p == Some(0)).count();
        assert!(first < 4, "{picks:?}");
        for _ in 0..8 {
            rr.pick(0..2, |_| FULL);
        }
        let later = (0..8)
            .filter(|_| rr.pick(0..2, |_| FULL) == Some(0))
            .count();
        assert_eq!(later, 4);
    }

    #[test]
    fn one_that_starts_slowly_is_picked_less_often() {
        let mut rr = RoundRobin::new([1, 1]);
        let share = |i| if i == 0 { FULL / 4 } else { FULL };
        let first = (0..100).filter(|_| rr.pick(0..2, share) == Some(0)).count();
        assert_eq!(first, 20);
        assert_eq!(
            rr.pick(0..2, |i| if i == 0 { 1 } else { 0 }),
            Some(0),
            "alone"
        );
    }

    #[test]
    fn another_rotation_goes_on_where_the_first_has_stopped() {
        let weights = [5, 1, 3];
        let picks = pick_in_rotation(&weights, 40);
        for stop in 0..20 {
            let mut first = RoundRobin::new(weights);
            for _ in 0..stop {
                first.pick(0..3, |_| FULL);
            }
            let mut second = RoundRobin::new(weights);
            second.resume(first.weights());
            let rest: Vec<_> = (stop..40)
                .map(|_| second.pick(0..3, |_| FULL).expect("all eligible") + 1)
                .collect();
            assert_eq!(rest, picks[stop..]);
            // Over other weights it begins anew.
            let mut other = RoundRobin::new([1, 1, 3]);
            other.resume(first.weights());
            assert!(other.weights().iter().all(|weight| weight.current == 0));
        }
    }

    #[test]
    fn weights_that_make_no_sense_do_no_harm() {
        let mut rr = RoundRobin::new([1, 1]);
        let weight = |current| RotationWeight {
            weight: 1,
            effective: 7,
            current,
        };
        rr.resume(&[weight(i64::MAX), weight(i64::MIN)]);
        for _ in 0..10 {
            assert!(rr.pick(0..2, |_| FULL).is_some());
        }
    }

    #[test]
    fn a_round_keeps_the_proportion_exactly() {
        let weights = [3, 7, 1, 9];
        let picks = pick_in_rotation(&weights, 20 * 5);
        for (i, w) in weights.iter().enumerate() {
            let got = picks.iter().filter(|p| **p == i + 1).count();
            assert_eq!(got, *w as usize * 5);
        }
    }
}
