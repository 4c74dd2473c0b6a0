//! By what nodes are compared: whether they pick the same backends for the same clients.

use super::{
    Pool,
    configured::Configured,
    endpoint::{Endpoint, EndpointConfig},
    endpoint_admission::Admission,
};
use crate::upstream::{
    backend::Backend,
    balance::{FULL, PickTarget, Readiness, Targets, numbered},
    pool::endpoint_admission::Bar,
};
use std::{sync::Arc, time::Instant};

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
        let (configured, ties) = (Arc::clone(&inner.configured), inner.balancer.ties());
        // Naming and hashing thousands of backends takes longer than a pick may wait.
        drop(inner);
        let states = self.read_endpoints(|inner, number| {
            let e = inner.endpoints.get(number)?;
            let EndpointConfig {
                is_backup, weight, ..
            } = e.config;
            let readiness = readiness(e, inner.balancer.is_single(), now);
            Some((Arc::clone(&e.backend), is_backup, weight, readiness))
        });
        let configured = Targets {
            ties,
            ..configured_targets(&configured)
        };
        let current = Targets {
            ties,
            ..current_targets(states)
        };
        Some(PickHashes {
            ring: configured.ring_hash(&balance),
            effective: current.effective_hash(&balance),
        })
    }
}

/// Those that are configured or discovered, with the weights in effect.
fn configured_targets(configured: &[Arc<Configured>]) -> Targets {
    let mut targets = Targets::default();
    for (i, plan) in numbered(configured.iter().map(|c| &c.plan)) {
        let readiness = match plan.down {
            true => Readiness::Away,
            false => Readiness::Ready,
        };
        targets.add(
            plan.backup,
            PickTarget {
                text: plan.text.clone(),
                addr: String::new(),
                weight: configured[i].weight(),
                readiness,
            },
        );
    }
    targets
}

/// Every address with its state: whether it is a backup, and its weight.
fn current_targets(states: Vec<(Arc<Backend>, bool, u32, Readiness)>) -> Targets {
    let mut targets = Targets::default();
    for (backend, is_backup, weight, readiness) in states {
        targets.add(
            is_backup,
            PickTarget {
                text: backend.text().to_string(),
                addr: backend.addr.to_string(),
                weight,
                readiness,
            },
        );
    }
    targets
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
