//! By what nodes are compared: whether they pick the same backends for the same clients.

use super::{Inner, Pool, endpoint::Endpoint, endpoint_admission::Admission};
use crate::upstream::{
    balance::{FULL, PickTarget, Readiness, Targets, numbered},
    pool::endpoint_admission::Bar,
};
use std::time::Instant;

/// Hashes of what picks by key depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PickHashes {
    /// Of the backends and weights that there are, whatever their state is.
    pub ring: String,
    /// Of those that take sessions now. A backend that is full takes sessions: that depends on the
    /// sessions of one node.
    pub effective: String,
}

impl Pool {
    /// `None`: picks do not go by a key.
    pub fn pick_hashes(&self, now: Instant) -> Option<PickHashes> {
        let mut inner = self.lock();
        let balance = inner.balance.clone();
        if !balance.is_by_key() {
            return None;
        }
        inner.review_if_due(now);
        let (configured, current) = (inner.configured_targets(), inner.current_targets(now));
        // Hashing a thousand backends takes longer than a pick may wait.
        drop(inner);
        Some(PickHashes {
            ring: configured.ring_hash(&balance),
            effective: current.effective_hash(&balance),
        })
    }
}

impl Inner {
    /// Those that are configured or discovered, with the weights in effect.
    fn configured_targets(&self) -> Targets {
        let mut targets = Targets {
            ties: self.balancer.ties(),
            ..Targets::default()
        };
        for (i, plan) in numbered(self.configured.iter().map(|c| &c.plan)) {
            let readiness = match plan.down {
                true => Readiness::Away,
                false => Readiness::Ready,
            };
            targets.add(
                plan.backup,
                PickTarget {
                    text: plan.text.clone(),
                    addr: String::new(),
                    weight: self.configured[i].weight(),
                    readiness,
                },
            );
        }
        targets
    }

    /// Every address with its state.
    fn current_targets(&self, now: Instant) -> Targets {
        let mut targets = Targets {
            ties: self.balancer.ties(),
            ..Targets::default()
        };
        let single = self.balancer.is_single();
        for endpoint in &self.endpoints {
            targets.add(
                endpoint.config.is_backup,
                PickTarget {
                    text: endpoint.backend.text().to_string(),
                    addr: endpoint.backend.addr.to_string(),
                    weight: endpoint.config.weight,
                    readiness: readiness(endpoint, single, now),
                },
            );
        }
        targets
    }
}

fn readiness(endpoint: &Endpoint, single: bool, now: Instant) -> Readiness {
    match endpoint.admission(single, now) {
        Admission::Part(share) if share < FULL => Readiness::Starting,
        Admission::Full | Admission::Part(_) | Admission::Barred(Bar::Full) => Readiness::Ready,
        Admission::Barred(
            Bar::Drained
            | Bar::Maintenance
            | Bar::Disabled
            | Bar::Check(_)
            | Bar::Stale
            | Bar::Failed
            | Bar::NoWeight,
        ) => Readiness::Away,
    }
}
