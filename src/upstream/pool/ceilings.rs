//! What a rebalancing needs of a pool: what its endpoints take, and ceilings that lead new
//! sessions to those that have too few.

use super::{Inner, Pool, endpoint_admission::Admission};
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
        let mut inner = self.lock();
        inner.review_if_due(now);
        let single = inner.balancer.is_single();
        let taker = |e: &super::BoxedEndpoint| {
            let share = match e.admission(single, now) {
                Admission::Full => FULL,
                Admission::Part(share) => share,
                barred if barred.is_full() => FULL,
                Admission::Barred(_) => 0,
            };
            Taker {
                backend: Arc::clone(&e.backend),
                weight: e.config.weight,
                share,
                max_connections: e.config.max_connections,
                is_backup: e.config.is_backup,
            }
        };
        inner.endpoints.iter().map(taker).collect()
    }

    /// From now on backends that have so many sessions, by their ids, get none while others have
    /// fewer. Returns false, and changes nothing, if there are ceilings already.
    pub fn set_ceilings(&self, ceilings: &[(u64, u64)], now: Instant) -> bool {
        let mut inner = self.lock();
        if inner.has_ceilings {
            return false;
        }
        inner.has_ceilings = true;
        for endpoint in &mut inner.endpoints {
            let of = |(id, _): &&(u64, u64)| *id == endpoint.backend.id;
            endpoint.ceiling = ceilings.iter().find(of).map(|(_, most)| *most);
        }
        // Sessions change what each of them takes.
        inner.recount_all(now);
        true
    }

    pub fn clear_ceilings(&self, now: Instant) {
        let mut inner = self.lock();
        let Inner {
            endpoints,
            departed,
            ..
        } = &mut *inner;
        for endpoint in endpoints.iter_mut().chain(departed) {
            endpoint.ceiling = None;
        }
        inner.has_ceilings = false;
        inner.recount_all(now);
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
        assert!(pool.set_ceilings(&[(ids[0], 0), (ids[1], 1), (ids[2], 3)], now));
        pool.lock().assert_is_counted(now);
        assert!(!pool.set_ceilings(&[], now), "there are some");
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
        pool.clear_ceilings(now);
        assert!(pool.lock().fast_path);
        let three: Vec<_> = (0..3).filter_map(|_| pick(&pool, now)).collect();
        assert_eq!(three.len(), 3);
        assert!(pool.set_ceilings(&[], now));
    }

    fn pick_lease(pool: &Pool, now: Instant) -> Option<crate::upstream::backend::Lease> {
        pool.pick(&mut super::super::Search::default(), now).ok()
    }
}
