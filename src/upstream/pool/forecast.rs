//! What a pool would have for sessions with another plan.

use super::{
    AdminState, Inner, Pool,
    addresses::Configured,
    endpoint::{Endpoint, EndpointConfig},
};
use crate::{
    plan::{self, Addr},
    upstream::{
        balance::{FULL, numbered},
        explain::Candidate,
    },
};
use ahash::HashMap;
use std::time::Instant;

impl Pool {
    /// The candidates for a session now, with the backends of `plan`, which is in effect.
    pub fn candidates(&self, plan: &plan::Upstream, now: Instant) -> Vec<Candidate> {
        self.candidates_with(plan, |_| Vec::new(), now)
    }

    /// The candidates for a session if this plan were in effect now: addresses that stay have the
    /// health that they have, new ones count as good. `add`: the addresses of a backend that there
    /// was not before.
    pub fn candidates_with(
        &self,
        plan: &plan::Upstream,
        add: impl FnMut(&plan::Backend) -> Vec<Addr>,
        now: Instant,
    ) -> Vec<Candidate> {
        candidates(Some(&*self.lock()), plan, add, now)
    }
}

/// The candidates of an upstream that there is not yet. `add`: the addresses of a backend.
pub fn candidates_of_new(
    plan: &plan::Upstream,
    add: impl FnMut(&plan::Backend) -> Vec<Addr>,
    now: Instant,
) -> Vec<Candidate> {
    candidates(None, plan, add, now)
}

fn candidates(
    pool: Option<&Inner>,
    plan: &plan::Upstream,
    mut add: impl FnMut(&plan::Backend) -> Vec<Addr>,
    now: Instant,
) -> Vec<Candidate> {
    let configured = pool.map_or(&[][..], |pool| &pool.configured);
    let configured: HashMap<&str, &Configured> = configured
        .iter()
        .map(|c| (c.plan.text.as_str(), c))
        .collect();
    let mut endpoints: HashMap<&str, Vec<&Endpoint>> = HashMap::default();
    for endpoint in pool
        .into_iter()
        .flat_map(|pool| pool.endpoints.iter().chain(&pool.departed))
    {
        let text = endpoint.backend.text();
        endpoints.entry(text).or_default().push(endpoint);
    }
    let mut found = Vec::new();
    for (of, backend) in numbered(plan.backends.iter()) {
        let (addresses, admin, weight) = match configured.get(backend.text.as_str()) {
            Some(present) => {
                // That of the operator stays.
                let weight = present
                    .operator_weight
                    .map_or(backend.weight, |set| set.weight);
                (present.addresses.clone(), present.admin.admin_state, weight)
            }
            // What an operator has set comes back with the backend.
            None => match pool.and_then(|pool| pool.remembered(&backend.text, now)) {
                Some(remembered) => (
                    add(backend),
                    remembered.admin.admin_state,
                    remembered.weight(backend),
                ),
                None => (add(backend), AdminState::Ready, backend.weight),
            },
        };
        let present = endpoints.get(backend.text.as_str());
        found.extend(addresses.into_iter().map(|address| {
            let mut present = present.into_iter().flatten();
            let endpoint = present.find(|e| e.backend.addr == address).copied();
            (of, backend, endpoint, (admin, weight))
        }));
    }
    let single = found.len() == 1 && plan.backends.iter().all(|backend| !backend.backup);
    // What checks found is forgotten with them.
    let keeps_verdicts =
        plan.check.is_some() || pool.is_none_or(|pool| pool.start_verdict.is_none());
    let candidate = |(of, backend, endpoint, (admin, weight)): (_, _, Option<&Endpoint>, _)| {
        let config = EndpointConfig {
            weight,
            ..EndpointConfig::from(backend)
        };
        let share = match endpoint.filter(|_| keeps_verdicts) {
            Some(endpoint) => endpoint.admission_with(&config, single, now).share(),
            None if admin != AdminState::Ready || config.is_draining => 0,
            None if config.is_down || config.weight == 0 => 0,
            None => FULL,
        };
        Candidate {
            backend: of,
            weight: config.weight,
            share,
        }
    };
    found.into_iter().map(candidate).collect()
}
