//! Least time: the smallest product of average time and sessions, for each unit of weight; turns decide among equals.

use super::{Candidates, Pick, RoundRobin, Why, weights::Weights};
use std::time::{Duration, Instant};

pub(super) fn pick(
    weights: &Weights,
    turns: &mut RoundRobin,
    candidates: &impl Candidates,
) -> Option<Pick> {
    let mut least = Score::NONE;
    let (mut best, mut usable, mut equals) = (None, 0, 0);
    for (i, weight) in weights.each() {
        let score = Score::of(i, weight, candidates);
        if score.weight == 0.0 {
            continue;
        }
        usable += 1;
        if score.is_less_than(least) {
            (least, best, equals) = (score, Some(i), 1);
        } else if !least.is_less_than(score) {
            equals += 1;
        }
    }
    if equals == usable {
        best = turns.pick(weights.range(), |i| candidates.share(i));
    } else if equals > 1 {
        best = turns.pick(weights.range(), |i| {
            let score = Score::of(i, weights.of(i), candidates);
            match score.weight > 0.0 && !least.is_less_than(score) {
                true => candidates.share(i),
                false => 0,
            }
        });
    }
    Some(Pick {
        candidate: best?,
        why: Why::LeastScore {
            score: least.time / least.weight,
        },
    })
}

/// Average time and sessions, on so much weight. One about which nothing is known comes before all others, and equals
/// one like it.
#[derive(Debug, Clone, Copy)]
struct Score {
    time: f64,
    weight: f64,
}

impl Score {
    /// More than any other.
    const NONE: Self = Self {
        time: 1.0,
        weight: 0.0,
    };

    /// Without weight if it cannot be picked. Always inline: a call would throw the least out of its registers.
    #[inline(always)]
    fn of(i: usize, weight: u64, candidates: &impl Candidates) -> Self {
        // From 32 bits: the processor has no instruction for 64 unsigned ones.
        let number = |n: u64| f64::from(u32::try_from(n).unwrap_or(u32::MAX));
        Self {
            time: candidates.time(i) * number(1 + candidates.connections(i)),
            weight: number(weight * u64::from(candidates.share(i))),
        }
    }

    /// Cross-multiplied: a division for each candidate would take half the time of a pick.
    #[inline]
    fn is_less_than(self, other: Self) -> bool {
        self.time * other.weight < other.time * self.weight
    }
}

/// How much of the average each new time makes.
const NEW: f64 = 0.05;

/// The average time of one backend, in seconds: old times count less and less, and while none is added it
/// halves again and again, so that one that was slow once is tried again.
#[derive(Debug, Clone, Copy, Default)]
pub struct Average {
    seconds: f64,
    /// When it halves for the first time, if no other time is added before; `None`: no time is known.
    fresh_until: Option<Instant>,
}

impl Average {
    pub fn add(&mut self, time: Duration, now: Instant, halving: Duration) {
        let new = time.as_secs_f64();
        self.seconds = match self.fresh_until {
            Some(_) => (1.0 - NEW) * self.at(now, halving) + NEW * new,
            None => new,
        };
        self.fresh_until = Some(now + halving);
    }

    /// 0 where no time is known.
    #[inline]
    pub fn at(&self, now: Instant, halving: Duration) -> f64 {
        match self.fresh_until {
            Some(until) if now >= until => {
                self.halved(now.saturating_duration_since(until), halving)
            }
            _ => self.seconds,
        }
    }

    #[cold]
    fn halved(&self, late: Duration, halving: Duration) -> f64 {
        let halvings = 1.0 + (late.as_secs_f64() / halving.as_secs_f64()).floor();
        self.seconds * 0.5_f64.powf(halvings)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Entry, FULL};
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const HALVING: Duration = Duration::from_secs(10);

    /// Time and sessions of each.
    struct Timed(Vec<(f64, u64)>);

    impl Candidates for Timed {
        fn share(&self, _: usize) -> u32 {
            FULL
        }
        fn connections(&self, i: usize) -> u64 {
            self.0[i].1
        }
        fn time(&self, i: usize) -> f64 {
            self.0[i].0
        }
    }

    fn picks(weights: &[u32], now: &Timed, times: usize) -> Vec<usize> {
        let entries: Vec<_> = weights
            .iter()
            .map(|&weight| Entry { text: "", weight })
            .collect();
        let mut turns = RoundRobin::new(weights.iter().copied());
        let weights = Weights::new(0, &entries);
        (0..times)
            .map(|_| {
                let pick = pick(&weights, &mut turns, now);
                pick.expect("all can be picked").candidate
            })
            .collect()
    }

    #[test]
    fn the_least_product_for_each_unit_of_weight() {
        assert_eq!(picks(&[1, 1], &Timed(vec![(2.0, 0), (1.0, 0)]), 1), [1]);
        assert_eq!(picks(&[1, 1], &Timed(vec![(2.0, 0), (1.0, 2)]), 1), [0]);
        assert_eq!(picks(&[1, 4], &Timed(vec![(1.0, 0), (3.0, 0)]), 1), [1]);
    }

    #[test]
    fn the_unknown_comes_first_and_turns_decide_among_equals() {
        let now = Timed(vec![(0.001, 0), (0.0, 5), (0.0, 0)]);
        assert_eq!(picks(&[1, 1, 1], &now, 4), [1, 2, 1, 2]);
    }

    #[test]
    fn a_twentieth_of_each_new_time() {
        let now = Instant::now();
        let mut average = Average::default();
        assert_eq!(average.at(now, HALVING), 0.0);
        average.add(100 * MS, now, HALVING);
        assert!((average.at(now, HALVING) - 0.1).abs() < 1e-9);
        average.add(200 * MS, now, HALVING);
        assert!((average.at(now, HALVING) - 0.105).abs() < 1e-9);
    }

    #[test]
    fn idle_it_halves() {
        let now = Instant::now();
        let mut average = Average::default();
        average.add(100 * MS, now, HALVING);
        for (idle, ms) in [(9, 100.0), (10, 50.0), (19, 50.0), (20, 25.0), (3600, 0.0)] {
            let at = average.at(now + Duration::from_secs(idle), HALVING);
            assert!((at * 1e3 - ms).abs() < 1e-6, "after {idle} s: {at}");
        }
        // What is added later is added to what is left.
        let later = now + Duration::from_secs(20);
        average.add(100 * MS, later, HALVING);
        assert!((average.at(later, HALVING) - (0.95 * 0.025 + 0.05 * 0.1)).abs() < 1e-9);
    }
}
