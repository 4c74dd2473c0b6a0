//! Choosing a backend. Pure: no sockets, no clock, no random source; what changes from pick to pick
//! is passed in or kept in a [`Balancer`], and the same calls give the same picks on every machine.

mod ring;
mod round_robin;

pub use ring::{Ring, Walk};
pub use round_robin::RoundRobin;

/// Which algorithm picks among the primaries. Backups always take turns.
#[derive(Debug)]
pub enum Policy {
    RoundRobin,
    ConsistentHash(Ring),
}

/// The policy of one upstream together with whose turn it is.
///
/// Candidates are numbered: first the primaries in the order of the config, then the backups.
#[derive(Debug)]
pub struct Balancer {
    policy: Policy,
    primaries: RoundRobin,
    backups: RoundRobin,
}

impl Balancer {
    pub fn new(
        policy: Policy,
        primaries: impl IntoIterator<Item = u32>,
        backups: impl IntoIterator<Item = u32>,
    ) -> Self {
        Self {
            policy,
            primaries: RoundRobin::new(primaries),
            backups: RoundRobin::new(backups),
        }
    }

    /// Picks one of the candidates for which `eligible` holds, primaries before backups.
    ///
    /// `walk` belongs to the session: it remembers where on the ring the session stands, so that a
    /// second pick goes on from there.
    pub fn pick(&mut self, walk: &mut Walk, eligible: impl Fn(usize) -> bool) -> Option<usize> {
        if let Policy::ConsistentHash(ring) = &self.policy
            && !self.is_single()
            && let Some(found) = ring.pick(walk, &mut self.primaries, &eligible)
        {
            return Some(found);
        }
        let first_backup = self.primaries.len();
        self.primaries.pick(0..first_backup, &eligible).or_else(|| {
            self.backups
                .pick(0..self.backups.len(), |i| eligible(first_backup + i))
                .map(|i| first_backup + i)
        })
    }

    /// One candidate and nothing beside it: it is used however often it failed.
    pub fn is_single(&self) -> bool {
        self.primaries.len() == 1 && self.backups.is_empty()
    }

    /// Lowers the share of a candidate that failed; it climbs back by one with each pick.
    pub fn penalize(&mut self, candidate: usize, by: u32) {
        let first_backup = self.primaries.len();
        if candidate < first_backup {
            self.primaries.penalize(candidate, by);
        } else {
            self.backups.penalize(candidate - first_backup, by);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ring_of(names: &[(&str, u32)]) -> Ring {
        Ring::new(names.iter().enumerate().map(|(i, &(s, w))| (i, s, w)))
    }

    #[test]
    fn backups_serve_only_when_no_primary_can() {
        let mut b = Balancer::new(Policy::RoundRobin, [1, 1], [1]);
        let mut walk = Walk::default();
        assert_eq!(b.pick(&mut walk, |_| true), Some(0));
        assert_eq!(b.pick(&mut walk, |i| i != 0), Some(1));
        assert_eq!(b.pick(&mut walk, |i| i == 2), Some(2));
        assert_eq!(b.pick(&mut walk, |_| false), None);
    }

    #[test]
    fn a_ring_without_a_usable_primary_falls_to_the_backups() {
        let ring = ring_of(&[("a:1", 1), ("b:1", 1)]);
        let mut b = Balancer::new(Policy::ConsistentHash(ring), [1, 1], [1]);
        assert_eq!(b.pick(&mut Walk::from_key(b"x"), |i| i == 2), Some(2));
    }

    #[test]
    fn a_single_backend_ignores_the_ring() {
        let ring = ring_of(&[("a:1", 1)]);
        let mut b = Balancer::new(Policy::ConsistentHash(ring), [1], []);
        assert!(b.is_single());
        assert_eq!(b.pick(&mut Walk::from_key(b"x"), |_| true), Some(0));
    }

    proptest! {
        /// Whatever the weights, the key and the failures: a pick is eligible, and where somebody
        /// is eligible somebody is picked.
        #[test]
        fn picks_are_eligible_and_never_missed(
            weights in proptest::collection::vec(0u32..6, 1..12),
            backups in proptest::collection::vec(0u32..6, 0..4),
            keys in proptest::collection::vec(any::<[u8; 4]>(), 1..40),
            mask in any::<u32>(),
            hashed in any::<bool>(),
        ) {
            let names: Vec<String> = (0..weights.len()).map(|i| format!("10.0.0.{i}:6379")).collect();
            let policy = if hashed {
                Policy::ConsistentHash(Ring::new(
                    names.iter().zip(&weights).enumerate().map(|(i, (n, &w))| (i, n.as_str(), w)),
                ))
            } else {
                Policy::RoundRobin
            };
            let all: Vec<u32> = weights.iter().chain(&backups).copied().collect();
            let up = |i: usize| mask >> (i % 32) & 1 == 1;
            let mut balancer = Balancer::new(policy, weights.iter().copied(), backups.iter().copied());
            for key in keys {
                let picked = balancer.pick(&mut Walk::from_key(&key), up);
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
