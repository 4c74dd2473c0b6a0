//! Which addresses an upstream has: those that the resolver finds for its configured backends.

use super::{
    AdminSetting, AdminState, Cause, Event, Inner, OperatorWeight, Pool, Transition,
    check_record::CheckRecord,
    endpoint::{Endpoint, EndpointConfig},
    preparation::{Layout, Placement, Prepared},
};
use crate::{
    plan::{self, Addr, reason::BackendState},
    telemetry::metrics::BackendMetrics,
    upstream::{
        backend::Backend,
        balance::{Balancer, numbered},
        health::Verdict,
    },
};
use ahash::{HashMap, HashSet};
use std::{
    net::SocketAddr,
    sync::{Arc, Weak, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

/// A backend as configured, with what applies to all its addresses, now or later.
#[derive(Debug)]
pub(super) struct Configured {
    pub(super) plan: plan::Backend,
    pub(super) metrics: Arc<BackendMetrics>,
    pub(super) addresses: Vec<Addr>,
    pub(super) admin: AdminSetting,
    /// `None`: the weight of the plan.
    pub(super) operator_weight: Option<OperatorWeight>,
}

/// What an operator had set for a backend that has left.
#[derive(Debug)]
pub(super) struct Remembered {
    pub(super) text: String,
    pub(super) admin: AdminSetting,
    pub(super) operator_weight: Option<OperatorWeight>,
    pub(super) left: Instant,
}

/// How long settings of an operator outlive the backend: a source may lose it for a while.
const REMEMBER: Duration = Duration::from_secs(3600);

/// A configured backend that has an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendAt {
    /// Its address as configured.
    pub text: String,
    /// Whether that text is the address.
    pub is_named: bool,
    /// How many addresses it has now.
    pub addresses: usize,
}

impl Pool {
    /// The configured backends, by their addresses as configured.
    pub fn texts(&self) -> Vec<String> {
        let inner = self.lock();
        let configured = inner.configured.iter();
        configured.map(|c| c.plan.text.clone()).collect()
    }

    /// What the configured backends count.
    pub fn configured_metrics(&self) -> Vec<Arc<BackendMetrics>> {
        let inner = self.lock();
        let configured = inner.configured.iter();
        configured.map(|c| Arc::clone(&c.metrics)).collect()
    }

    /// The configured backends that have this address, by their text or among the addresses that
    /// their name stands for now.
    pub fn backends_at(&self, address: &str) -> Vec<BackendAt> {
        let parsed: Option<SocketAddr> = address.parse().ok();
        let is_it = |addr: &Addr| match addr {
            Addr::Tcp(addr) => Some(*addr) == parsed,
            Addr::Unix(_) => false,
        };
        let inner = self.lock();
        let configured = inner.configured.iter().filter_map(|c| {
            let is_named = c.plan.text == address;
            (is_named || c.addresses.iter().any(is_it)).then(|| BackendAt {
                text: c.plan.text.clone(),
                is_named,
                addresses: c.addresses.len(),
            })
        });
        configured.collect()
    }

    /// The addresses of a configured backend.
    pub fn addresses_of(&self, text: &str) -> Vec<Addr> {
        let inner = self.lock();
        let configured = inner.configured.iter().find(|c| c.plan.text == text);
        configured.map_or_else(Vec::new, |c| c.addresses.clone())
    }

    /// The addresses of all configured backends that have any.
    pub fn resolved(&self) -> Vec<(String, Vec<Addr>)> {
        let inner = self.lock();
        let known = inner.configured.iter().filter(|c| !c.addresses.is_empty());
        known
            .map(|c| (c.plan.text.clone(), c.addresses.clone()))
            .collect()
    }

    /// A new answer from the resolver for a configured backend. Addresses that stay keep their
    /// failures and sessions, and so do those that come back while either is still there: some
    /// resolvers name a part of the addresses at a time. Returns whether anything has changed.
    pub fn set_addresses(&self, text: &str, addresses: &[Addr], now: Instant) -> bool {
        let has_others = |c: &Configured| c.plan.text == text && c.addresses != addresses;
        if !self.lock().configured.iter().any(has_others) {
            return false;
        }
        let prepared = self.prepare_addresses(text, addresses.len());
        let mut inner = self.lock();
        let mut configured = inner.configured.iter_mut();
        let Some(configured) = configured.find(|c| has_others(c)) else {
            return false;
        };
        configured.addresses = addresses.to_vec();
        let before = inner.states();
        let replaced = inner.assemble(Some(prepared), now);
        inner.add_transitions(&before, &Cause::Resolver, now);
        self.changed();
        drop(inner);
        drop(replaced);
        true
    }

    /// The balancer for so many addresses of a configured backend.
    pub(super) fn prepare_addresses(&self, text: &str, addresses: usize) -> Prepared {
        let inner = self.lock();
        let configured = inner.configured.iter();
        let mut placements: HashMap<&str, Placement> = configured
            .map(|c| (c.plan.text.as_str(), c.placement()))
            .collect();
        if let Some(placed) = placements.get_mut(text) {
            placed.addresses = addresses;
        }
        let layout = Layout::new(inner.configured.iter().map(|c| &c.plan), |backend| {
            let placed = placements.remove(backend.text.as_str());
            placed.unwrap_or_else(|| Placement::new(backend, 0))
        });
        let balance = inner.balance.clone();
        drop(inner);
        layout.prepare(&balance)
    }

    /// The pool of another plan of the upstream, with the same endpoints. Sessions that began with
    /// this one keep its settings. `add`: see [`Self::set_plan`].
    pub fn with_plan(
        &self,
        plan: &plan::Upstream,
        add: impl FnMut(&plan::Backend) -> (Arc<BackendMetrics>, Vec<Addr>),
        now: Instant,
    ) -> Self {
        self.set_plan(plan, add, &Cause::Plan, now);
        Self {
            name: Arc::clone(&self.name),
            metrics: Arc::clone(&self.metrics),
            balance: plan.balance.clone(),
            reports_roles: plan.check.as_ref().is_some_and(|c| c.kind.tells_role()),
            inner: Arc::clone(&self.inner),
            notifier: Arc::clone(&self.notifier),
            fail_on_reset: plan.fail_on_reset,
            waits: plan.waits,
            speaks_first: Arc::clone(&self.speaks_first),
            changes: Arc::clone(&self.changes),
        }
    }

    /// Takes over the backends of a new plan, the policy, and the limits of its check. Addresses
    /// that stay keep their state; without a check they are up. `add`: the metrics and the
    /// addresses of a backend that there was not before.
    pub fn set_plan(
        &self,
        plan: &plan::Upstream,
        mut add: impl FnMut(&plan::Backend) -> (Arc<BackendMetrics>, Vec<Addr>),
        cause: &Cause,
        now: Instant,
    ) {
        let mut added = HashMap::default();
        let prepared = self.prepare_plan(plan, now, |backend| {
            let (metrics, addresses) = add(backend);
            let placed = Placement::new(backend, addresses.len());
            added.insert(backend.text.clone(), (metrics, addresses));
            placed
        });
        let mut inner = self.lock();
        let old = std::mem::take(&mut inner.configured).into_iter();
        let mut old: HashMap<String, Configured> = old.map(|c| (c.plan.text.clone(), c)).collect();
        inner.remembered.retain(|r| now < r.left + REMEMBER);
        for backend in &plan.backends {
            let configured = match old.remove(&backend.text) {
                Some(configured) => Configured {
                    plan: backend.clone(),
                    ..configured
                },
                None => {
                    let added = added.remove(&backend.text);
                    let (metrics, addresses) = added.unwrap_or_else(|| add(backend));
                    // Sessions may still be on it since it was removed.
                    let mut departed = inner.departed.iter();
                    let of_departed = departed.find(|e| *e.backend.text() == metrics.text);
                    let remembered = inner.remembered(&backend.text, now);
                    Configured {
                        plan: backend.clone(),
                        metrics: of_departed.map_or(metrics, |e| Arc::clone(&e.backend.metrics)),
                        addresses,
                        // So is what an operator has set.
                        admin: remembered.map_or_else(AdminSetting::default, |r| r.admin),
                        operator_weight: remembered.and_then(|r| r.operator_weight),
                    }
                }
            };
            inner.configured.push(configured);
        }
        inner.remember_settings(old.into_values(), now);
        inner.balance.clone_from(&plan.balance);
        inner.moves = plan.flows_move;
        inner.waits = plan.waits;
        inner.review.set_plan(plan);
        let before = inner.states();
        inner.set_check(plan.check.as_ref(), now);
        let replaced = inner.assemble(Some(prepared), now);
        inner.add_transitions(&before, cause, now);
        self.changed();
        drop(inner);
        drop(replaced);
    }

    /// The balancer of another plan. `add`: what a backend will have that there is not yet.
    pub(super) fn prepare_plan(
        &self,
        plan: &plan::Upstream,
        now: Instant,
        mut add: impl FnMut(&plan::Backend) -> Placement,
    ) -> Prepared {
        let inner = self.lock();
        let new = plan.backends.iter();
        let returning: HashMap<&str, u32> = new
            .filter_map(|backend| {
                let remembered = inner.remembered(&backend.text, now)?;
                Some((backend.text.as_str(), remembered.weight(backend)))
            })
            .collect();
        let configured = inner.configured.iter();
        let mut present: HashMap<String, (Placement, bool)> = configured
            .map(|c| {
                (
                    c.plan.text.clone(),
                    (c.placement(), c.operator_weight.is_some()),
                )
            })
            .collect();
        drop(inner);
        let layout = Layout::new(plan.backends.iter(), |backend| {
            match present.remove(&backend.text) {
                // That of the operator stays.
                Some((placed, true)) => placed,
                Some((placed, false)) => Placement {
                    weight: backend.weight,
                    ..placed
                },
                None => {
                    let placed = add(backend);
                    let weight = returning.get(backend.text.as_str()).copied();
                    Placement {
                        weight: weight.unwrap_or(placed.weight),
                        ..placed
                    }
                }
            }
        });
        layout.prepare(&plan.balance)
    }
}

impl Configured {
    fn placement(&self) -> Placement {
        Placement {
            text: Arc::clone(&self.metrics.text),
            weight: self.weight(),
            addresses: self.addresses.len(),
        }
    }
}

impl Remembered {
    /// The weight in effect when the backend is back.
    pub(super) fn weight(&self, plan: &plan::Backend) -> u32 {
        self.operator_weight.map_or(plan.weight, |set| set.weight)
    }
}

impl Inner {
    /// What an operator had set for a backend that is not configured now.
    pub(super) fn remembered(&self, text: &str, now: Instant) -> Option<&Remembered> {
        let mut remembered = self.remembered.iter();
        remembered.find(|r| r.text == text && now < r.left + REMEMBER)
    }

    /// Keeps what an operator has set for backends that leave.
    fn remember_settings(&mut self, left: impl Iterator<Item = Configured>, now: Instant) {
        if !self.remembered.is_empty() {
            let configured = self.configured.iter();
            let back: HashSet<&str> = configured.map(|c| c.plan.text.as_str()).collect();
            self.remembered.retain(|r| !back.contains(r.text.as_str()));
        }
        let is_set = |c: &Configured| {
            c.admin.admin_state != AdminState::Ready || c.operator_weight.is_some()
        };
        self.remembered
            .extend(left.filter(is_set).map(|c| Remembered {
                text: c.plan.text,
                admin: c.admin,
                operator_weight: c.operator_weight,
                left: now,
            }));
    }

    /// Counts checks from now on, or not any more; then what they found does not count either.
    fn set_check(&mut self, check: Option<&plan::Check>, now: Instant) {
        self.start_verdict = check.map(|check| Verdict::at_start(check.start_up));
        for configured in &self.configured {
            configured
                .metrics
                .is_checked
                .store(check.is_some(), Relaxed);
        }
        if check.is_some() {
            return;
        }
        for endpoint in self.endpoints.iter_mut().chain(&mut self.departed) {
            endpoint.check = CheckRecord::new(Verdict::Up, now);
        }
    }

    fn states(&self) -> Vec<(Arc<Backend>, bool, BackendState)> {
        let state = |e: &Endpoint| (Arc::clone(&e.backend), e.config.is_backup, e.state());
        self.endpoints.iter().map(state).collect()
    }

    fn add_transitions(
        &mut self,
        before: &[(Arc<Backend>, bool, BackendState)],
        cause: &Cause,
        now: Instant,
    ) {
        let after = self.states();
        let by_id = |states: &[(Arc<Backend>, bool, BackendState)]| {
            let states = states.iter();
            states
                .map(|(b, _, state)| (b.id, *state))
                .collect::<HashMap<u64, BackendState>>()
        };
        let (then, now_there) = (by_id(before), by_id(&after));
        let gone = before
            .iter()
            .filter(|(b, ..)| !now_there.contains_key(&b.id));
        let came = after.iter().filter(|(b, ..)| !then.contains_key(&b.id));
        let gone = gone.map(|one| (one, Some(one.2), None));
        let came = came.map(|one| (one, None, Some(one.2)));
        let changed = after.iter().filter_map(|one| {
            let from = *then.get(&one.0.id)?;
            (from != one.2).then_some((one, Some(from), Some(one.2)))
        });
        for ((backend, is_backup, _), from, to) in gone.chain(came).chain(changed) {
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
    /// Returns the balancer before, which is better dropped without the lock.
    pub(super) fn assemble(&mut self, prepared: Option<Prepared>, now: Instant) -> Balancer {
        let mut old = std::mem::take(&mut self.endpoints);
        old.append(&mut self.departed);
        let old = old.into_iter();
        let mut old: HashMap<(Arc<str>, Addr), Endpoint> = old
            .map(|e| ((Arc::clone(e.backend.text()), e.backend.addr.clone()), e))
            .collect();
        for (of, plan) in numbered(self.configured.iter().map(|c| &c.plan)) {
            let configured = &self.configured[of];
            let config = EndpointConfig {
                weight: configured.weight(),
                ..EndpointConfig::from(plan)
            };
            for addr in &configured.addresses {
                let kept = old.remove(&(Arc::clone(&configured.metrics.text), addr.clone()));
                let endpoint = kept.map_or_else(
                    || {
                        let metrics = Arc::clone(&configured.metrics);
                        let notifier = Arc::clone(self.events.notifier());
                        let observer = Weak::clone(&self.observer);
                        let backend = Backend::new(addr.clone(), metrics, notifier, observer, now);
                        let verdict = self.start_verdict.unwrap_or(Verdict::Up);
                        Endpoint::new(backend, config.clone(), configured.admin, verdict, now)
                    },
                    |endpoint| endpoint.with_config(config.clone()),
                );
                self.endpoints.push(endpoint);
            }
        }
        self.departed = old.into_values().collect();
        // In the order in which they were made.
        self.departed.sort_unstable_by_key(|e| e.backend.id);
        for endpoint in &mut self.departed {
            endpoint.departed.get_or_insert(now);
        }
        let replaced = self.replace_balancer(prepared);
        self.watch_new_endpoints();
        self.next_halving = self.endpoints.iter().filter_map(|e| e.latency.halves).min();
        self.review(None, now);
        replaced
    }
}
