//! Smooth weighted round robin: turns in proportion to weight, spread out evenly.

/// Whose turn it is. A weight of 0 takes no turn.
#[derive(Debug)]
pub struct RoundRobin {
    turns: Vec<Turn>,
}

#[derive(Debug)]
struct Turn {
    weight: i64,
    /// The weight less what failures took from it.
    effective: i64,
    current: i64,
}

impl RoundRobin {
    pub fn new(weights: impl IntoIterator<Item = u32>) -> Self {
        let turns = weights
            .into_iter()
            .map(|weight| Turn {
                weight: i64::from(weight),
                effective: i64::from(weight),
                current: 0,
            })
            .collect();
        Self { turns }
    }

    pub fn len(&self) -> usize {
        self.turns.len()
    }

    pub fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    /// The weight as configured.
    pub fn weight(&self, i: usize) -> u64 {
        self.turns[i].weight.unsigned_abs()
    }

    /// The next turn among the given candidates that are eligible.
    pub fn pick(
        &mut self,
        candidates: impl IntoIterator<Item = usize>,
        eligible: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let mut total = 0;
        let mut best: Option<usize> = None;
        for i in candidates {
            if self.turns[i].weight == 0 || !eligible(i) {
                continue;
            }
            let turn = &mut self.turns[i];
            turn.current += turn.effective;
            total += turn.effective;
            if turn.effective < turn.weight {
                turn.effective += 1;
            }
            let current = turn.current;
            // Strictly larger: on a tie the earliest wins.
            if best.is_none_or(|b| current > self.turns[b].current) {
                best = Some(i);
            }
        }
        if let Some(winner) = best {
            self.turns[winner].current -= total;
        }
        best
    }

    pub fn penalize(&mut self, i: usize, by: u32) {
        let turn = &mut self.turns[i];
        turn.effective = (turn.effective - i64::from(by)).max(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(weights: &[u32], n: usize) -> Vec<usize> {
        let mut rr = RoundRobin::new(weights.iter().copied());
        (0..n)
            .map(|_| rr.pick(0..weights.len(), |_| true).expect("all eligible") + 1)
            .collect()
    }

    #[test]
    fn five_one_one() {
        assert_eq!(turns(&[5, 1, 1], 7), [1, 1, 2, 1, 3, 1, 1]);
    }

    #[test]
    fn equal_weights_take_turns_in_order() {
        assert_eq!(turns(&[1, 1, 1], 6), [1, 2, 3, 1, 2, 3]);
    }

    #[test]
    fn a_failure_costs_share_until_it_has_climbed_back() {
        let mut rr = RoundRobin::new([4, 4]);
        rr.penalize(0, 4);
        let picks: Vec<_> = (0..8).map(|_| rr.pick(0..2, |_| true)).collect();
        let first = picks.iter().filter(|p| **p == Some(0)).count();
        assert!(first < 4, "{picks:?}");
        for _ in 0..8 {
            rr.pick(0..2, |_| true);
        }
        let later = (0..8)
            .filter(|_| rr.pick(0..2, |_| true) == Some(0))
            .count();
        assert_eq!(later, 4);
    }

    #[test]
    fn a_round_keeps_the_proportion_exactly() {
        let weights = [3, 7, 1, 9];
        let picks = turns(&weights, 20 * 5);
        for (i, w) in weights.iter().enumerate() {
            let got = picks.iter().filter(|p| **p == i + 1).count();
            assert_eq!(got, *w as usize * 5);
        }
    }
}
