//! Least time: the smallest product of average time and sessions, for each unit of weight. Backends
//! that are as quick as the quickest, within what can be measured, share by sessions and weight.

use super::{
    Candidates, Pick, RoundRobin, Why,
    least::{least, number, score},
    weights::Weights,
};
use std::time::{Duration, Instant};

/// In seconds: averages that differ by less are equal. A process on a busy machine waits that long
/// for the CPU.
const RESOLUTION: f64 = 0.001;
/// As a part of the least average: the averages of two equal backends can differ by so much for a
/// while.
const MARGIN: f64 = 0.25;

pub(super) fn pick(
    weights: &Weights,
    rotation: &mut RoundRobin,
    candidates: &impl Candidates,
) -> Option<Pick> {
    let mut quickest = f64::INFINITY;
    for (i, weight) in weights.each() {
        let time = candidates.time(i);
        if time > 0.0 && time < quickest && weight > 0 && candidates.share(i) > 0 {
            quickest = time;
        }
    }
    if quickest == f64::INFINITY {
        quickest = 1.0;
    }
    let equal = quickest + RESOLUTION.max(quickest * MARGIN);
    let sessions = |i| number(candidates.connections(i));
    // One without a measured time comes first while it has no session. With sessions it counts as
    // the quickest, not less: it may never answer.
    let is_new = |i| candidates.time(i) == 0.0 && candidates.connections(i) == 0;
    let is_quick = |i| candidates.time(i) <= equal;
    let product = |i| match is_quick(i) {
        true if is_new(i) => 0.0,
        true => quickest * (1.0 + sessions(i)),
        false => candidates.time(i) * (1.0 + sessions(i)),
    };
    let (mut least_quick, mut least_slow) = (f64::INFINITY, f64::INFINITY);
    for (i, weight) in weights.each_number() {
        let score = score(product(i), weight, candidates.share(i));
        match is_quick(i) {
            true => least_quick = least_quick.min(score),
            false => least_slow = least_slow.min(score),
        }
    }
    let score = least_quick.min(least_slow);
    let (candidate, _) = if least_quick == 0.0 {
        least(weights, rotation, &Only(candidates, is_new), |_| 0.0)?
    } else if least_slow < least_quick {
        let slow = Only(candidates, |i| !is_quick(i));
        least(weights, rotation, &slow, product)?
    } else {
        // Without the one session more: a weight of 2 would get all as long as there are none.
        least(weights, rotation, &Only(candidates, is_quick), sessions)?
    };
    Some(Pick {
        candidate,
        why: Why::LeastScore { score },
    })
}

/// Those candidates alone for which the function holds.
struct Only<'a, C, F>(&'a C, F);

impl<C: Candidates, F: Fn(usize) -> bool> Candidates for Only<'_, C, F> {
    fn share(&self, i: usize) -> u32 {
        if (self.1)(i) { self.0.share(i) } else { 0 }
    }

    fn connections(&self, i: usize) -> u64 {
        self.0.connections(i)
    }

    fn time(&self, i: usize) -> f64 {
        self.0.time(i)
    }
}

/// The weight of a new time in the average.
const NEW: f64 = 0.05;

/// The average time of one backend. Old times count less and less, and while none is added the
/// average is halved repeatedly, so that a backend that was slow once is tried again.
#[derive(Debug, Clone, Copy, Default)]
pub struct Average {
    /// 0: no time was measured.
    pub seconds: f64,
    /// When it is halved next; `None`: no time was measured.
    pub halves: Option<Instant>,
}

impl Average {
    pub fn add(&mut self, time: Duration, now: Instant, halving: Duration) {
        self.halve(now, halving);
        let new = time.as_secs_f64();
        self.seconds = match self.halves {
            Some(_) => (1.0 - NEW) * self.seconds + NEW * new,
            None => new,
        };
        self.halves = Some(now + halving);
    }

    /// The backend is in use: it is not halved before another `halving` has passed.
    pub fn put_off(&mut self, now: Instant, halving: Duration) {
        self.halves = self.halves.map(|_| now + halving);
    }

    /// Brings it up to date: it halves once for each `halving` that has passed since a time was
    /// added.
    pub fn halve(&mut self, now: Instant, halving: Duration) {
        let Some(due) = self.halves.filter(|due| now >= *due) else {
            return;
        };
        let late = now.saturating_duration_since(due).as_secs_f64();
        let more = (late / halving.as_secs_f64()).floor();
        self.seconds *= 0.5_f64.powf(1.0 + more);
        self.halves = Some(due + halving + halving.mul_f64(more));
    }
}

#[cfg(test)]
mod tests {
    use super::super::{FULL, tests::picks};
    use super::*;
    use crate::plan::{Balance, TimeOf};

    const MS: Duration = Duration::from_millis(1);
    const HALVING: Duration = Duration::from_secs(10);

    /// Time and sessions of each.
    fn picked(weights: &[u32], now: &[(f64, u64)], times: usize) -> Vec<Option<usize>> {
        let now = now.iter().map(|&(time, sessions)| (FULL, sessions, time));
        let balance = Balance::LeastTime(TimeOf::Connect);
        picks(&balance, weights, now.collect(), times)
    }

    #[test]
    fn the_least_product_for_each_unit_of_weight() {
        let first = |weights: &[u32], now| picked(weights, now, 1)[0];
        assert_eq!(first(&[1, 1], &[(2.0, 0), (1.0, 0)]), Some(1));
        assert_eq!(first(&[1, 1], &[(2.0, 0), (1.0, 2)]), Some(0));
        assert_eq!(first(&[1, 4], &[(1.0, 0), (3.0, 0)]), Some(1));
    }

    #[test]
    fn equal_as_far_as_can_be_measured() {
        let count = |weights: &[u32], now: &[(f64, u64)], times| {
            let mut counts = vec![0; weights.len()];
            for i in picked(weights, now, times).into_iter().flatten() {
                counts[i] += 1;
            }
            counts
        };
        // Less than a millisecond apart, and less than a quarter.
        let now = [(0.000_120, 0), (0.000_350, 0), (0.000_090, 0)];
        assert_eq!(count(&[1, 1, 1], &now, 300), [100, 100, 100]);
        assert_eq!(count(&[1, 2, 3], &now, 300), [50, 100, 150]);
        assert_eq!(
            count(&[1, 1, 1], &[(0.1, 0), (0.11, 0), (0.12, 0)], 300),
            [100; 3]
        );
        // The one with fewer sessions for its weight comes first.
        let now = [(0.000_120, 2), (0.000_350, 1), (0.000_090, 2)];
        assert_eq!(count(&[1, 1, 1], &now, 10), [0, 10, 0]);
        assert_eq!(count(&[4, 1, 1], &now, 10), [10, 0, 0]);
        // Clearly quicker.
        assert_eq!(count(&[1, 1], &[(0.000_1, 0), (0.002, 0)], 10), [10, 0]);
        assert_eq!(count(&[1, 1], &[(0.1, 0), (0.13, 0)], 10), [10, 0]);
        // The quickest cannot be picked: it does not make the others slow.
        let now = vec![(0, 0, 0.001), (FULL, 0, 0.1), (FULL, 0, 0.11)];
        let balance = Balance::LeastTime(TimeOf::Connect);
        let in_rotation = [1, 2, 1, 2].map(Some);
        assert_eq!(picks(&balance, &[1, 1, 1], now, 4), in_rotation);
    }

    #[test]
    fn the_unknown_comes_first_while_it_has_no_session() {
        let now = [(0.001, 0), (0.0, 0), (0.0, 0)];
        let in_rotation = [1, 2, 1, 2].map(Some);
        assert_eq!(picked(&[1, 1, 1], &now, 4), in_rotation);
        // With one it may be quick, or never answer: as quick as the quickest.
        let now = [(0.001, 0), (0.0, 1), (5.0, 0)];
        assert_eq!(picked(&[1, 1, 1], &now, 1), [Some(0)]);
        let now = [(0.001, 5), (0.0, 1), (5.0, 0)];
        assert_eq!(picked(&[1, 1, 1], &now, 1), [Some(1)]);
        // No time was measured: the fewest sessions.
        let now = [(0.0, 3), (0.0, 1), (0.0, 2)];
        assert_eq!(picked(&[1, 1, 1], &now, 1), [Some(1)]);
    }

    #[test]
    fn a_twentieth_of_each_new_time() {
        let now = Instant::now();
        let mut average = Average::default();
        assert_eq!(average.seconds, 0.0);
        average.add(100 * MS, now, HALVING);
        assert!((average.seconds - 0.1).abs() < 1e-9);
        average.add(200 * MS, now, HALVING);
        assert!((average.seconds - 0.105).abs() < 1e-9);
    }

    #[test]
    fn idle_it_halves() {
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let mut begun = Average::default();
        begun.add(100 * MS, now, HALVING);
        // At once, and step by step.
        let mut steps = begun;
        for (idle, ms) in [(9, 100.0), (10, 50.0), (19, 50.0), (20, 25.0), (3600, 0.0)] {
            let mut once = begun;
            for average in [&mut once, &mut steps] {
                average.halve(at(idle), HALVING);
                let got = average.seconds * 1e3;
                assert!((got - ms).abs() < 1e-6, "after {idle} s: {got}");
            }
        }
        // What is added later is added to what is left.
        begun.add(100 * MS, at(20), HALVING);
        assert!((begun.seconds - (0.95 * 0.025 + 0.05 * 0.1)).abs() < 1e-9);
    }
}
