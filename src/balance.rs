//! Choosing a backend. Pure: no sockets, no clock, no random source; what changes from pick to pick
//! is passed in or kept in a [`Balancer`], and the same calls give the same picks on every machine.

mod hash;
mod ip_hash;
mod least_conn;
mod random_two;
mod ring;
mod round_robin;

pub use hash::HashWalk;
pub use ip_hash::IpHashWalk;
pub use ring::{Ring, RingWalk};
pub use round_robin::RoundRobin;

use std::ops::Range;

/// After so many candidates that could not be used, turns decide instead of a hash.
const MOST_TRIES: u32 = 20;

/// Which algorithm picks.
#[derive(Debug)]
pub enum Policy {
    RoundRobin,
    LeastConn,
    RandomTwo,
    /// The first that can take a session, in the order of the config.
    First,
    Hash,
    IpHash,
    ConsistentHash(Ring),
}

/// What a policy asks about candidates at the moment of a pick.
pub trait Candidates {
    fn eligible(&self, candidate: usize) -> bool;
    /// Sessions on it now.
    fn connections(&self, candidate: usize) -> u64;
}

/// Where one session stands in its search. It outlives a failed connect, so that the next pick goes on
/// from there instead of starting over.
#[derive(Debug, Default)]
pub enum Walk {
    /// For the policies that look at no key, and for an empty key: turns decide.
    #[default]
    Free,
    Hash(HashWalk),
    IpHash(IpHashWalk),
    Ring(RingWalk),
}

/// The policy of one upstream together with whose turn it is.
///
/// Candidates are numbered: first the primaries in the order of the config, then the backups.
#[derive(Debug)]
pub struct Balancer {
    policy: Policy,
    turns: RoundRobin,
    primaries: usize,
}

impl Balancer {
    pub fn new(policy: Policy, primaries: &[u32], backups: &[u32]) -> Self {
        Self {
            policy,
            turns: RoundRobin::new(primaries.iter().chain(backups).copied()),
            primaries: primaries.len(),
        }
    }

    /// Picks an eligible candidate, primaries before backups. `random` is drawn from by the policies that
    /// need chance.
    pub fn pick(
        &mut self,
        walk: &mut Walk,
        candidates: &impl Candidates,
        mut random: impl FnMut() -> u64,
    ) -> Option<usize> {
        let backups = self.primaries..self.turns.len();
        if !self.is_single()
            && let Some(found) = self.pick_by_key(walk, candidates)
        {
            return Some(found);
        }
        self.pick_among(0..self.primaries, candidates, &mut random)
            .or_else(|| self.pick_among(backups, candidates, &mut random))
    }

    fn pick_by_key(&mut self, walk: &mut Walk, candidates: &impl Candidates) -> Option<usize> {
        let primaries = 0..self.primaries;
        match (&self.policy, walk) {
            (Policy::ConsistentHash(ring), Walk::Ring(walk)) => {
                ring.pick(walk, &mut self.turns, candidates)
            }
            (Policy::Hash, Walk::Hash(walk)) => walk.pick(primaries, &self.turns, candidates),
            (Policy::IpHash, Walk::IpHash(walk)) => walk.pick(primaries, &self.turns, candidates),
            _ => None,
        }
    }

    fn pick_among(
        &mut self,
        group: Range<usize>,
        candidates: &impl Candidates,
        random: &mut impl FnMut() -> u64,
    ) -> Option<usize> {
        match self.policy {
            Policy::LeastConn => least_conn::pick(group, &mut self.turns, candidates),
            Policy::RandomTwo => random_two::pick(group, &self.turns, candidates, random),
            Policy::First => group
                .into_iter()
                .find(|&i| self.turns.weight(i) > 0 && candidates.eligible(i)),
            Policy::RoundRobin | Policy::Hash | Policy::IpHash | Policy::ConsistentHash(_) => {
                self.turns.pick(group, |i| candidates.eligible(i))
            }
        }
    }

    /// One candidate and nothing beside it: it is used however often it failed.
    pub fn is_single(&self) -> bool {
        self.primaries == 1 && self.turns.len() == 1
    }

    /// Lowers the share of a candidate that failed; it climbs back by one with each pick.
    pub fn penalize(&mut self, candidate: usize, by: u32) {
        self.turns.penalize(candidate, by);
    }
}

/// Whether `a` sessions on a weight of `wa` are fewer for each unit of weight than `b` on `wb`: compared by
/// cross-multiplication, without rounding.
fn is_less_loaded(a: u64, wa: u64, b: u64, wb: u64) -> bool {
    u128::from(a) * u128::from(wb) < u128::from(b) * u128::from(wa)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Candidates for which a rule holds, with the sessions given.
    struct Now<F: Fn(usize) -> bool>(F, Vec<u64>);

    impl<F: Fn(usize) -> bool> Candidates for Now<F> {
        fn eligible(&self, i: usize) -> bool {
            (self.0)(i)
        }
        fn connections(&self, i: usize) -> u64 {
            self.1.get(i).copied().unwrap_or_default()
        }
    }

    fn these(rule: impl Fn(usize) -> bool) -> impl Candidates {
        Now(rule, Vec::new())
    }

    fn ring_of(names: &[(&str, u32)]) -> Ring {
        Ring::new(names.iter().enumerate().map(|(i, &(s, w))| (i, s, w)))
    }

    fn ring_walk(key: &[u8]) -> Walk {
        Walk::Ring(RingWalk::from_key(key))
    }

    /// A small generator: the same numbers at every run.
    fn numbers(mut state: u64) -> impl FnMut() -> u64 {
        move || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let mixed = (state ^ (state >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
            mixed ^ (mixed >> 33)
        }
    }

    #[test]
    fn backups_serve_only_when_no_primary_can() {
        for policy in [
            Policy::RoundRobin,
            Policy::LeastConn,
            Policy::First,
            Policy::Hash,
        ] {
            let mut b = Balancer::new(policy, &[1, 1], &[1]);
            let mut walk = Walk::Free;
            assert_eq!(b.pick(&mut walk, &these(|_| true), || 0), Some(0));
            assert_eq!(b.pick(&mut walk, &these(|i| i != 0), || 0), Some(1));
            assert_eq!(b.pick(&mut walk, &these(|i| i == 2), || 0), Some(2));
            assert_eq!(b.pick(&mut walk, &these(|_| false), || 0), None);
        }
    }

    #[test]
    fn a_ring_without_a_usable_primary_falls_to_the_backups() {
        let ring = ring_of(&[("a:1", 1), ("b:1", 1)]);
        let mut b = Balancer::new(Policy::ConsistentHash(ring), &[1, 1], &[1]);
        assert_eq!(
            b.pick(&mut ring_walk(b"x"), &these(|i| i == 2), || 0),
            Some(2)
        );
    }

    #[test]
    fn a_single_backend_ignores_the_ring() {
        let ring = ring_of(&[("a:1", 1)]);
        let mut b = Balancer::new(Policy::ConsistentHash(ring), &[1], &[]);
        assert!(b.is_single());
        assert_eq!(
            b.pick(&mut ring_walk(b"x"), &these(|_| true), || 0),
            Some(0)
        );
    }

    #[test]
    fn first_fills_the_first_that_can_take() {
        let mut b = Balancer::new(Policy::First, &[0, 1, 5], &[]);
        for _ in 0..3 {
            assert_eq!(b.pick(&mut Walk::Free, &these(|_| true), || 0), Some(1));
        }
        assert_eq!(b.pick(&mut Walk::Free, &these(|i| i != 1), || 0), Some(2));
    }

    #[test]
    fn random_two_follows_weight_and_load() {
        let mut random = numbers(7);
        let mut b = Balancer::new(Policy::RandomTwo, &[1, 1, 1, 1], &[]);
        // Nobody takes the one with most sessions: whoever else is drawn has fewer.
        let loaded = Now(|_| true, vec![9, 1, 1, 1]);
        for _ in 0..1000 {
            assert_ne!(b.pick(&mut Walk::Free, &loaded, &mut random), Some(0));
        }
        // Sessions that stay: each backend ends with its share of the weight.
        let weights = [1u32, 2, 5];
        let mut b = Balancer::new(Policy::RandomTwo, &weights, &[]);
        let mut sessions = vec![0u64; 3];
        for _ in 0..8000 {
            let now = Now(|_| true, sessions.clone());
            let picked = b
                .pick(&mut Walk::Free, &now, &mut random)
                .expect("somebody");
            sessions[picked] += 1;
        }
        for (got, weight) in sessions.iter().zip(weights) {
            let wanted = 1000 * u64::from(weight);
            assert!(got.abs_diff(wanted) <= wanted / 20, "{sessions:?}");
        }
    }

    proptest! {
        /// Whatever the policy, the weights, the key, the load and the failures: a pick is eligible, and
        /// where somebody is eligible somebody is picked, a primary before a backup.
        #[test]
        fn picks_are_eligible_and_never_missed(
            weights in proptest::collection::vec(0u32..6, 1..12),
            backups in proptest::collection::vec(0u32..6, 0..4),
            keys in proptest::collection::vec(any::<[u8; 4]>(), 1..40),
            sessions in proptest::collection::vec(0u64..9, 16),
            mask in any::<u32>(),
            policy in 0..7,
        ) {
            let names: Vec<String> = (0..weights.len()).map(|i| format!("10.0.0.{i}:6379")).collect();
            let policy = match policy {
                0 => Policy::RoundRobin,
                1 => Policy::LeastConn,
                2 => Policy::RandomTwo,
                3 => Policy::First,
                4 => Policy::Hash,
                5 => Policy::IpHash,
                _ => Policy::ConsistentHash(Ring::new(
                    names.iter().zip(&weights).enumerate().map(|(i, (n, &w))| (i, n.as_str(), w)),
                )),
            };
            let all: Vec<u32> = weights.iter().chain(&backups).copied().collect();
            let up = |i: usize| mask >> (i % 32) & 1 == 1;
            let now = Now(up, sessions);
            let mut balancer = Balancer::new(policy, &weights, &backups);
            let mut random = numbers(u64::from(mask));
            for key in keys {
                let mut walk = match balancer.policy {
                    Policy::Hash => Walk::Hash(HashWalk::from_key(&key)),
                    Policy::IpHash => Walk::IpHash(IpHashWalk::from_client(Some(key.into()))),
                    _ => ring_walk(&key),
                };
                let picked = balancer.pick(&mut walk, &now, &mut random);
                let possible = (0..all.len()).any(|i| up(i) && all[i] > 0);
                prop_assert_eq!(picked.is_some(), possible);
                if let Some(i) = picked {
                    prop_assert!(up(i) && all[i] > 0);
                    let primary_possible = (0..weights.len()).any(|i| up(i) && all[i] > 0);
                    prop_assert_eq!(i < weights.len(), primary_possible);
                }
            }
        }
    }
}
