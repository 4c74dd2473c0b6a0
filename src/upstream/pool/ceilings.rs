//! What a rebalancing needs of a pool: what its endpoints take, and ceilings that lead new
//! sessions to those that have too few.

use super::{Pool, endpoint_admission::Admission, preparation::PART};
use crate::upstream::{backend::Backend, balance::FULL};
use std::{sync::Arc, time::Instant};

/// An endpoint, as a candidate for the sessions that there are.
#[derive(Debug, Clone)]
pub struct Taker {
    pub backend: Arc<Backend>,
    pub weight: u32,
    /// How much of [`FULL`] of its weight counts; 0 for one that takes nothing, which it does not
    /// become by being full.
    pub share: u32,
    /// 0: no limit.
    pub max_connections: u64,
    pub is_backup: bool,
}

impl Pool {
    /// In the order of the balancer.
    pub fn takers(&self, now: Instant) -> Vec<Taker> {
        self.lock().review_if_due(now);
        self.read_endpoints(|inner, number| {
            let e = inner.endpoints.get(number)?;
            let single = inner.balancer.is_single();
            let share = match e.admission(single, now) {
                Admission::Full => FULL,
                Admission::Part(share) => share,
                barred if barred.is_full() => FULL,
                Admission::Barred(_) => 0,
            };
            Some(Taker {
                backend: Arc::clone(&e.backend),
                weight: e.config.weight,
                share,
                max_connections: e.config.max_connections,
                is_backup: e.config.is_backup,
            })
        })
    }

    /// From now on backends that have so many sessions, by their ids, get none while others have
    /// fewer. Returns false, and changes nothing, if there are ceilings already.
    pub fn set_ceilings(&self, ceilings: &[(u64, u64)]) -> bool {
        let mut inner = self.lock();
        if inner.has_ceilings {
            return false;
        }
        inner.has_ceilings = true;
        drop(inner);
        // Sessions change what each of them takes.
        for part in ceilings.chunks(PART) {
            let mut inner = self.lock_again();
            for (id, most) in part {
                if let Some(i) = inner.index.endpoint(*id) {
                    inner.endpoints[i].ceiling = Some(*most);
                    inner.recount(i);
                }
            }
        }
        true
    }

    pub fn clear_ceilings(&self) {
        loop {
            let mut inner = self.lock_again();
            let all = inner.endpoints.iter().chain(&inner.departed).enumerate();
            let some = all.filter(|(_, e)| e.condition.has_ceiling).take(PART);
            let some: Vec<usize> = some.map(|(number, _)| number).collect();
            if some.is_empty() {
                inner.has_ceilings = false;
                return;
            }
            for number in some {
                if let Some(endpoint) = inner.outlined_mut(number) {
                    endpoint.ceiling = None;
                    inner.recount(number);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{pick, planned, pool};
    use super::*;

    #[test]
    fn ceilings_lead_sessions_to_backends_that_have_fewer() {
        let now = Instant::now();
        let pool = pool((1..=3).map(planned).collect(), true);
        let ids: Vec<u64> = pool.takers(now).iter().map(|t| t.backend.id).collect();
        assert_eq!(ids.len(), 3);
        assert!(pool.set_ceilings(&[(ids[0], 0), (ids[1], 1), (ids[2], 3)]));
        pool.lock().assert_is_counted();
        assert!(!pool.set_ceilings(&[]), "there are some");
        let mut leases: Vec<_> = (0..4).filter_map(|_| pick_lease(&pool, now)).collect();
        let active = || {
            pool.takers(now)
                .iter()
                .map(|t| t.backend.active())
                .collect::<Vec<_>>()
        };
        assert_eq!(active(), [0, 1, 3]);
        // All have as many as they are to have: none is refused for that.
        leases.extend((0..3).filter_map(|_| pick_lease(&pool, now)));
        assert_eq!(active(), [1, 2, 4]);
        pool.clear_ceilings();
        assert!(pool.lock().fast_path);
        let three: Vec<_> = (0..3).filter_map(|_| pick(&pool, now)).collect();
        assert_eq!(three.len(), 3);
        assert!(pool.set_ceilings(&[]));
    }

    fn pick_lease(pool: &Pool, now: Instant) -> Option<crate::upstream::backend::Lease> {
        pool.pick(&mut super::super::Search::default(), now).ok()
    }
}
