//! Which addresses an upstream has: those that the resolver finds for its configured backends.

use super::{
    AdminSetting, Cause, Event, Inner, Pool, Transition,
    endpoint::{Endpoint, EndpointConfig},
};
use crate::{
    plan::{self, Addr, Balance},
    telemetry::metrics::BackendMetrics,
    upstream::{
        backend::Backend,
        balance::{Balancer, Entry, numbered},
        health::Verdict,
    },
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// A backend as configured, with what applies to all its addresses, now or later.
#[derive(Debug)]
pub(super) struct Configured {
    pub(super) plan: plan::Backend,
    pub(super) metrics: Arc<BackendMetrics>,
    pub(super) addresses: Vec<Addr>,
    pub(super) admin: AdminSetting,
}

impl Pool {
    /// The configured backends, by their addresses as configured.
    pub fn texts(&self) -> Vec<String> {
        let inner = self.lock();
        let configured = inner.configured.iter();
        configured.map(|c| c.plan.text.clone()).collect()
    }

    /// The addresses of a configured backend.
    pub fn addresses_of(&self, text: &str) -> Vec<Addr> {
        let inner = self.lock();
        let configured = inner.configured.iter().find(|c| c.plan.text == text);
        configured.map_or_else(Vec::new, |c| c.addresses.clone())
    }

    /// A new answer from the resolver for a configured backend. Addresses that stay keep their
    /// failures and sessions, and so do those that come back while either is still there: some
    /// resolvers name a part of the addresses at a time. Returns whether anything has changed.
    pub fn set_addresses(&self, text: &str, addresses: &[Addr], now: Instant) -> bool {
        let mut inner = self.lock();
        let mut configured = inner.configured.iter_mut();
        let found = configured.find(|c| c.plan.text == text);
        let Some(configured) = found.filter(|c| c.addresses != addresses) else {
            return false;
        };
        configured.addresses = addresses.to_vec();
        inner.reassemble(&self.balance, &Cause::Resolver, now);
        self.changed();
        true
    }

    /// Takes over the backends of a new plan and the limits of its check. Addresses that stay keep
    /// their state. `add`: the metrics and the addresses of a backend that there was not before.
    /// The policy and the kind of check stay what they are.
    pub fn set_plan(
        &self,
        plan: &plan::Upstream,
        mut add: impl FnMut(&plan::Backend) -> (Arc<BackendMetrics>, Vec<Addr>),
        now: Instant,
    ) {
        let mut inner = self.lock();
        let mut old = std::mem::take(&mut inner.configured);
        for backend in &plan.backends {
            let known = old.iter().position(|c| c.plan.text == backend.text);
            let configured = match known.map(|i| old.swap_remove(i)) {
                Some(configured) => Configured {
                    plan: backend.clone(),
                    ..configured
                },
                None => {
                    let (metrics, addresses) = add(backend);
                    Configured {
                        plan: backend.clone(),
                        metrics,
                        addresses,
                        admin: AdminSetting::default(),
                    }
                }
            };
            inner.configured.push(configured);
        }
        inner.review.set_plan(plan);
        inner.reassemble(&self.balance, &Cause::Plan, now);
        self.changed();
    }
}

impl Inner {
    /// Changes the endpoints to what is configured now, with a transition for each that comes or
    /// goes.
    fn reassemble(&mut self, balance: &Balance, cause: &Cause, now: Instant) {
        let states = |endpoints: &[Endpoint]| -> Vec<_> {
            let state = |e: &Endpoint| (Arc::clone(&e.backend), e.config.is_backup, e.state());
            endpoints.iter().map(state).collect()
        };
        let before = states(&self.endpoints);
        self.assemble(balance, now);
        let after = states(&self.endpoints);
        let is_in = |all: &[(Arc<Backend>, _, _)], backend: &Backend| {
            all.iter().any(|(other, ..)| other.id == backend.id)
        };
        let gone = before.iter().filter(|(b, ..)| !is_in(&after, b));
        let came = after.iter().filter(|(b, ..)| !is_in(&before, b));
        let gone = gone.map(|one| (one, Some(one.2), None));
        let came = came.map(|one| (one, None, Some(one.2)));
        for ((backend, is_backup, _), from, to) in gone.chain(came) {
            self.events.push(Event::Transition(Transition {
                backend: Arc::clone(backend),
                is_backup: *is_backup,
                from,
                to,
                cause: cause.clone(),
                doubted_for: Duration::ZERO,
                at: now,
            }));
        }
        self.departed.retain(|e| e.is_worth_keeping(now));
    }

    /// Makes the endpoints of what is configured; those that there are already keep their state.
    pub(super) fn assemble(&mut self, balance: &Balance, now: Instant) {
        let mut old = std::mem::take(&mut self.endpoints);
        old.append(&mut self.departed);
        let mut regular = 0;
        for (of, plan) in numbered(self.configured.iter().map(|c| &c.plan)) {
            let configured = &self.configured[of];
            let config = EndpointConfig::from(plan);
            for addr in &configured.addresses {
                let is_it = |e: &Endpoint| {
                    *e.backend.text() == configured.metrics.text && e.backend.addr == *addr
                };
                let known = old.iter().position(is_it).map(|i| old.swap_remove(i));
                let endpoint = known.map_or_else(
                    || {
                        let metrics = Arc::clone(&configured.metrics);
                        let notifier = Arc::clone(self.events.notifier());
                        let backend = Backend::new(addr.clone(), metrics, notifier, now);
                        let verdict = self.start_verdict.unwrap_or(Verdict::Up);
                        Endpoint::new(backend, config.clone(), configured.admin, verdict, now)
                    },
                    |endpoint| endpoint.with_config(config.clone()),
                );
                self.endpoints.push(endpoint);
            }
            if !plan.backup {
                regular = self.endpoints.len();
            }
        }
        for endpoint in &mut old {
            endpoint.is_departed = true;
        }
        self.departed = old;
        let endpoints = self.endpoints.iter();
        let entries: Vec<Entry<'_>> = endpoints
            .map(|e| Entry {
                text: e.backend.text(),
                weight: e.config.weight,
            })
            .collect();
        self.balancer = Balancer::new(balance, &entries[..regular], &entries[regular..]);
        self.next_halving = self.endpoints.iter().filter_map(|e| e.latency.halves).min();
        self.review(None, now);
    }
}
