//! What a pool would have for sessions with another plan.

use super::{
    AdminState, Inner, Pool,
    configured::Configured,
    endpoint::{Endpoint, EndpointConfig},
    preparation::Outline,
};
use crate::{
    plan::{self, Addr},
    upstream::{
        balance::{FULL, numbered},
        explain::Candidate,
    },
};
use ahash::HashMap;
use std::{sync::Arc, time::Instant};

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
        mut add: impl FnMut(&plan::Backend) -> Vec<Addr>,
        now: Instant,
    ) -> Vec<Candidate> {
        loop {
            let outline = self.outline();
            let forecasts = forecasts(Some(&outline), plan, &mut add, now);
            let single = is_single(plan, &forecasts);
            // What checks found is forgotten with them.
            let keeps_verdicts = plan.check.is_some() || outline.start_verdict.is_none();
            let of = |inner: &Inner, i: usize| {
                let forecast: &Forecast = &forecasts[i];
                let known = forecast.known.filter(|_| keeps_verdicts);
                let endpoint = known.and_then(|number| inner.outlined(number));
                // Where `down` is lifted checks begin anew, as those of one that is added.
                let is_back = |e: &&Endpoint| e.config.is_down && !forecast.config.is_down;
                let endpoint = endpoint.filter(|e| plan.check.is_none() || !is_back(e));
                Some(forecast.candidate(endpoint, single, now))
            };
            let candidates = self.read_in_parts(outline.generation, 0..forecasts.len(), of);
            // If something has changed meanwhile, it is looked at once more.
            if let Some(candidates) = candidates {
                return candidates;
            }
        }
    }
}

/// The candidates of an upstream that there is not yet. `add`: the addresses of a backend.
pub fn candidates_of_new(
    plan: &plan::Upstream,
    add: impl FnMut(&plan::Backend) -> Vec<Addr>,
    now: Instant,
) -> Vec<Candidate> {
    let forecasts = forecasts(None, plan, add, now);
    let single = is_single(plan, &forecasts);
    let forecasts = forecasts.iter();
    forecasts
        .map(|forecast| forecast.candidate(None, single, now))
        .collect()
}

/// What an address will be.
struct Forecast {
    /// The position of its backend in the configuration.
    of: usize,
    /// The number of the endpoint that it has already.
    known: Option<usize>,
    config: EndpointConfig,
    admin: AdminState,
}

impl Forecast {
    fn candidate(&self, endpoint: Option<&Endpoint>, single: bool, now: Instant) -> Candidate {
        let config = &self.config;
        let share = match endpoint {
            Some(endpoint) => endpoint.admission_with(config, single, now).share(),
            None if self.admin != AdminState::Ready || config.is_draining => 0,
            None if config.is_down || config.weight == 0 => 0,
            None => FULL,
        };
        Candidate {
            backend: self.of,
            weight: config.weight,
            share,
        }
    }
}

fn is_single(plan: &plan::Upstream, forecasts: &[Forecast]) -> bool {
    forecasts.len() == 1 && plan.backends.iter().all(|backend| !backend.backup)
}

fn forecasts(
    outline: Option<&Outline>,
    plan: &plan::Upstream,
    mut add: impl FnMut(&plan::Backend) -> Vec<Addr>,
    now: Instant,
) -> Vec<Forecast> {
    let configured = outline.map_or(&[][..], |outline| &outline.configured[..]);
    let configured: HashMap<&str, &Arc<Configured>> = configured
        .iter()
        .map(|c| (c.plan.text.as_str(), c))
        .collect();
    let backends = outline.into_iter().flat_map(Outline::backends);
    let known: HashMap<(&str, &Addr), usize> = backends
        .enumerate()
        .map(|(i, b)| ((&**b.text(), &b.addr), i))
        .collect();
    let mut found = Vec::new();
    for (of, backend) in numbered(plan.backends.iter()) {
        let text = backend.text.as_str();
        let (addresses, admin, weight) = match configured.get(text) {
            Some(present) => {
                // That of the operator stays.
                let set = present.operator_weight.map(|set| set.weight);
                let weight = set.unwrap_or(backend.weight);
                (present.addresses.clone(), present.admin.admin_state, weight)
            }
            // What an operator has set comes back with the backend.
            None => match outline.and_then(|outline| outline.remembered(text, now)) {
                Some(remembered) => (
                    add(backend),
                    remembered.admin.admin_state,
                    remembered.weight(backend),
                ),
                None => (add(backend), AdminState::Ready, backend.weight),
            },
        };
        let config = EndpointConfig {
            weight,
            ..EndpointConfig::from(backend)
        };
        found.extend(addresses.iter().map(|address| Forecast {
            of,
            known: known.get(&(text, address)).copied(),
            config: config.clone(),
            admin,
        }));
    }
    found
}
