//! By what nodes are compared: whether they pick the same backends for the same clients.

use super::{
    Pool,
    configured::Configured,
    endpoint::{BoxedEndpoint, Endpoint, EndpointConfig},
    endpoint_admission::Admission,
    index::Index,
};
use crate::upstream::{
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
        let (configured, index) = (Arc::clone(&inner.configured), Arc::clone(&inner.index));
        let (single, ties) = (inner.balancer.is_single(), inner.balancer.ties());
        let state = |e: &BoxedEndpoint| {
            let EndpointConfig {
                is_backup, weight, ..
            } = e.config;
            (is_backup, weight, readiness(e, single, now))
        };
        let states: Vec<_> = inner.endpoints.iter().map(state).collect();
        // Naming and hashing thousands of backends takes longer than a pick may wait.
        drop(inner);
        let configured = Targets {
            ties,
            ..configured_targets(&configured)
        };
        let current = Targets {
            ties,
            ..current_targets(&index, states)
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
fn current_targets(index: &Index, states: Vec<(bool, u32, Readiness)>) -> Targets {
    let mut targets = Targets::default();
    for (backend, (is_backup, weight, readiness)) in index.backends.iter().zip(states) {
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
