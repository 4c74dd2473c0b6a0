//! Which addresses an upstream has: those that the resolver finds for its configured backends.

use super::{
    AdminSetting, AdminState, Cause, Inner, Pool,
    check_record::CheckRecord,
    configured::{Configured, Remembered},
    preparation::Outline,
};
use crate::{
    plan::{self, Addr},
    telemetry::metrics::BackendMetrics,
    upstream::health::Verdict,
};
use ahash::{HashMap, HashSet};
use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

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
        let configured = self.configured();
        let configured = configured.iter();
        configured.map(|c| c.plan.text.clone()).collect()
    }

    /// How many addresses the configured backends have.
    pub fn address_count(&self) -> usize {
        self.lock().endpoints.len()
    }

    /// What the configured backends count.
    pub fn configured_metrics(&self) -> Vec<Arc<BackendMetrics>> {
        let configured = self.configured();
        let configured = configured.iter();
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
        let configured = self.configured();
        let configured = configured.iter().filter_map(|c| {
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
        let of = inner.index.configured(text);
        of.map_or_else(Vec::new, |of| inner.configured[of].addresses.clone())
    }

    /// The addresses of all configured backends that have any.
    pub fn resolved(&self) -> Vec<(String, Vec<Addr>)> {
        let configured = self.configured();
        let known = configured.iter().filter(|c| !c.addresses.is_empty());
        known
            .map(|c| (c.plan.text.clone(), c.addresses.clone()))
            .collect()
    }

    /// The configured backends as they are now. To be read without the lock.
    pub(super) fn configured(&self) -> Arc<Vec<Arc<Configured>>> {
        Arc::clone(&self.lock().configured)
    }

    /// A new answer from the resolver for a configured backend. Addresses that stay keep their
    /// failures and sessions, and so do those that come back while either is still there: some
    /// resolvers name a part of the addresses at a time. Returns whether anything has changed.
    pub fn set_addresses(&self, text: &str, addresses: &[Addr], now: Instant) -> bool {
        let has_others = |c: &&mut Arc<Configured>| c.plan.text == text && c.addresses != addresses;
        let prepare = |outline: Outline| {
            let mut configured = (*outline.configured).clone();
            let named = configured.iter_mut().find(has_others);
            Arc::make_mut(named.ok_or(())?).addresses = addresses.to_vec();
            let balance = outline.balance.clone();
            Ok::<_, ()>((outline.assemble(configured, &balance, now), ()))
        };
        let replaced = self.reassemble(now, prepare, |inner, assembly, ()| {
            let mut replaced = inner.put(assembly, now);
            inner.add_transitions(&mut replaced, &Cause::Resolver, now);
            self.changed();
            replaced
        });
        replaced.is_ok()
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
            outages: Arc::clone(&self.outages),
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
        let check = plan.check.as_ref();
        let checked_by = plan.checked_by();
        let start_verdict = check.map(|check| Verdict::at_start(check.start_up));
        let mut added = HashMap::default();
        let mut add_once = |backend: &plan::Backend| {
            let added = added.entry(backend.text.clone());
            added.or_insert_with(|| add(backend)).clone()
        };
        let prepare = |mut outline: Outline| {
            let configured = outline.configured_with(plan, &mut add_once, now);
            for configured in &configured {
                configured.metrics.checked_by.set(checked_by);
            }
            let remembered = outline.remembered_with(&configured, now);
            outline.start_verdict = start_verdict;
            let assembly = outline.assemble(configured, &plan.balance, now);
            Ok::<_, Infallible>((assembly, remembered))
        };
        let Ok(replaced) = self.reassemble(now, prepare, |inner, assembly, remembered| {
            inner.moves = plan.flows_move;
            inner.waits = plan.waits;
            inner.backup_when = plan.backup_when;
            let sign = inner.review.sign_of_primary();
            inner.review.set_plan(plan);
            if inner.review.sign_of_primary() != sign {
                inner.forget_claims();
            }
            inner.set_start_verdict(start_verdict, now);
            let mut replaced = inner.put(assembly, now);
            inner.add_transitions(&mut replaced, cause, now);
            self.changed();
            (
                replaced,
                std::mem::replace(&mut inner.remembered, Arc::new(remembered)),
            )
        });
        // Without the lock.
        drop(replaced);
    }
}

impl Outline {
    /// What is configured with this plan. What an operator has set for backends that stay, or come
    /// back, holds.
    fn configured_with(
        &self,
        plan: &plan::Upstream,
        mut add: impl FnMut(&plan::Backend) -> (Arc<BackendMetrics>, Vec<Addr>),
        now: Instant,
    ) -> Vec<Arc<Configured>> {
        let present = self.configured.iter();
        let present: HashMap<&str, &Arc<Configured>> =
            present.map(|c| (c.plan.text.as_str(), c)).collect();
        // Sessions may still be on one since it was removed.
        let departed = |text: &str| {
            let of_text = self.departed.of(text).last();
            of_text.map(|i| &self.departed.backends[*i])
        };
        let of = |backend: &plan::Backend| {
            let text = backend.text.as_str();
            if let Some(present) = present.get(text) {
                return match present.plan == *backend {
                    true => Arc::clone(present),
                    false => Arc::new(present.with_plan(backend)),
                };
            }
            let (metrics, addresses) = add(backend);
            let remembered = self.remembered(text, now);
            Arc::new(Configured {
                plan: backend.clone(),
                metrics: departed(text).map_or(metrics, |of| Arc::clone(&of.metrics)),
                addresses,
                admin: remembered.map_or_else(AdminSetting::default, |r| r.admin),
                operator_weight: remembered.and_then(|r| r.operator_weight),
            })
        };
        plan.backends.iter().map(of).collect()
    }

    /// What an operator had set for a backend that is not configured now.
    pub(super) fn remembered(&self, text: &str, now: Instant) -> Option<&Remembered> {
        let mut remembered = self.remembered.iter();
        remembered.find(|r| r.text == text && now < r.left + REMEMBER)
    }

    /// What an operator has set for backends that are not among these.
    fn remembered_with(&self, configured: &[Arc<Configured>], now: Instant) -> Vec<Remembered> {
        let texts: HashSet<&str> = configured.iter().map(|c| c.plan.text.as_str()).collect();
        let is_gone = |text: &str| !texts.contains(text);
        let before = self.remembered.iter();
        let before = before.filter(|r| is_gone(&r.text) && now < r.left + REMEMBER);
        let is_set = |c: &&Arc<Configured>| {
            c.admin.admin_state != AdminState::Ready || c.operator_weight.is_some()
        };
        let left = self.configured.iter().filter(is_set);
        let left = left.filter(|c| is_gone(&c.plan.text));
        let left = left.map(|c| Remembered {
            text: c.plan.text.clone(),
            admin: c.admin,
            operator_weight: c.operator_weight,
            left: now,
        });
        before.cloned().chain(left).collect()
    }
}

impl Inner {
    /// Counts checks from now on, or not any more; then what they found does not count either.
    fn set_start_verdict(&mut self, verdict: Option<Verdict>, now: Instant) {
        let before = std::mem::replace(&mut self.start_verdict, verdict);
        if before.is_none() || verdict.is_some() {
            return;
        }
        self.review.is_outdated = true;
        for endpoint in self.endpoints.iter_mut().chain(&mut self.departed) {
            endpoint.check = CheckRecord::new(Verdict::Up, now);
        }
    }
}
