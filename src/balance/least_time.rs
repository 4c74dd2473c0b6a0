//! Least time: the smallest product of average time and sessions, for each unit of weight; turns decide among equals.

use super::{
    Candidates, Pick, RoundRobin, Why,
    least::{least, number},
    weights::Weights,
};
use std::time::{Duration, Instant};

pub(super) fn pick(
    weights: &Weights,
    turns: &mut RoundRobin,
    candidates: &impl Candidates,
) -> Option<Pick> {
    let mut quickest = f64::INFINITY;
    for (i, _) in weights.each() {
        let time = candidates.time(i);
        if time > 0.0 && time < quickest {
            quickest = time;
        }
    }
    if quickest == f64::INFINITY {
        quickest = 1.0;
    }
    // One about which nothing is known comes first while it has no session. With some it is taken for as quick as the
    // quickest, no more: it may be that it never answers.
    let product = |i| {
        let connections = candidates.connections(i);
        match candidates.time(i) {
            0.0 if connections == 0 => 0.0,
            0.0 => quickest * number(1 + connections),
            time => time * number(1 + connections),
        }
    };
    let (candidate, score) = least(weights, turns, candidates, product)?;
    Some(Pick {
        candidate,
        why: Why::LeastScore { score },
    })
}

/// How much of the average each new time makes.
const NEW: f64 = 0.05;

/// The average time of one backend, in seconds: old times count less and less, and while none is added it
/// halves again and again, so that one that was slow once is tried again.
#[derive(Debug, Clone, Copy, Default)]
pub struct Average {
    /// 0 where no time is known.
    pub seconds: f64,
    /// When it halves next; `None` where no time is known.
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

    /// It is not idle: it does not halve before another `halving` has passed.
    pub fn put_off(&mut self, now: Instant, halving: Duration) {
        self.halves = self.halves.map(|_| now + halving);
    }

    /// Brings it up to date: it halves once for each `halving` that has passed since a time was added.
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
    fn the_unknown_comes_first_while_it_has_no_session() {
        let now = [(0.001, 0), (0.0, 0), (0.0, 0)];
        let turns = [1, 2, 1, 2].map(Some);
        assert_eq!(picked(&[1, 1, 1], &now, 4), turns);
        // With one it may be quick, or never answer: as quick as the quickest.
        let now = [(0.001, 0), (0.0, 1), (5.0, 0)];
        assert_eq!(picked(&[1, 1, 1], &now, 1), [Some(0)]);
        let now = [(0.001, 5), (0.0, 1), (5.0, 0)];
        assert_eq!(picked(&[1, 1, 1], &now, 1), [Some(1)]);
        // Nothing is known of anybody: the fewest sessions.
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
