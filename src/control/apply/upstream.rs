//! An upstream in effect: its pool, and the tasks that check its backends and resolve their names.

use super::Runtime;
use crate::{
    control::{
        backend_lifecycle::Lifecycle,
        checks::{self, Checks},
        discovery::{Discovery, Follower, PreparedDiscovery},
        draining::Draining,
        prepare::UpstreamInputs,
        resolve,
    },
    handover::pools::PoolRecord,
    plan::{Addr, Backend, Target, Upstream},
    probe::CheckCredentials,
    sys::task::boxed,
    upstream::pool::{Cause, Pool},
};
use std::{collections::BTreeMap, sync::Arc, time::Instant};
use tokio::{sync::Notify, task::JoinSet};
use tokio_util::task::AbortOnDropHandle;

pub(super) struct UpstreamRuntime {
    pub(super) plan: Upstream,
    pub(super) pool: Arc<Pool>,
    lifecycle: Arc<Lifecycle>,
    handling: AbortOnDropHandle<Option<()>>,
    /// Look up the names of its backends.
    resolving: JoinSet<()>,
    /// Notified when there are other addresses to check.
    changed: Arc<Notify>,
    checker: Option<Checker>,
    follower: Option<Follower>,
}

struct Checker {
    checks: Arc<Checks>,
    _running: AbortOnDropHandle<Option<()>>,
}

impl UpstreamRuntime {
    /// `handed`: what another process knows of it.
    pub(super) fn start(
        plan: &Upstream,
        inputs: UpstreamInputs,
        handed: Option<&PoolRecord>,
        runtime: &Runtime,
    ) -> Self {
        let exporter = &runtime.exporter;
        let metrics = exporter.upstream(&plan.name);
        let pool = Arc::new(Pool::new(
            &metrics,
            plan,
            |b| exporter.backend(&metrics, &b.text, plan.checked_by()),
            &inputs.addresses,
            Instant::now(),
        ));
        if let Some(handed) = handed {
            pool.take_over(handed, Instant::now());
        }
        let shared = &runtime.checks;
        let sessions = &runtime.process.sessions;
        let draining = Draining::new(plan, sessions, &runtime.pace, &shared.stop);
        let changed = Arc::new(Notify::new());
        let lifecycle = Lifecycle::new(&pool, draining, &runtime.journal, &changed);
        let lifecycle = Arc::new(lifecycle);
        let handling = Arc::clone(&lifecycle).run();
        let handling = shared.stop.clone().run_until_cancelled_owned(handling);
        let resolving = resolve::keep_fresh(Arc::clone(&pool), plan, &runtime.resolver);
        let mut started = Self {
            plan: plan.clone(),
            pool,
            handling: AbortOnDropHandle::new(tokio::spawn(boxed(handling))),
            lifecycle,
            resolving,
            changed,
            checker: None,
            follower: None,
        };
        started.start_checks(inputs.credentials.unwrap_or_default(), shared);
        started.follow(inputs.discovery, runtime);
        started
    }

    fn start_checks(&mut self, credentials: CheckCredentials, shared: &checks::Shared) {
        self.checker = self.plan.check.as_ref().map(|check| {
            let send_proxy = self.plan.send_proxy;
            let checks = Checks::new(&self.pool, check, send_proxy, credentials, shared.clone());
            let checks = Arc::new(checks);
            let running = Arc::clone(&checks).run(Arc::clone(&self.changed));
            let running = shared.stop.clone().run_until_cancelled_owned(running);
            let _running = AbortOnDropHandle::new(tokio::spawn(boxed(running)));
            Checker { checks, _running }
        });
    }

    fn follow(&mut self, prepared: Option<PreparedDiscovery>, runtime: &Runtime) {
        self.follower = self.plan.discover.as_ref().and_then(|discover| {
            let (queue, journal) = (&runtime.discovered, &runtime.journal);
            let resolver = &runtime.resolver;
            Some(Follower::start(
                prepared?, discover, queue, journal, resolver,
            ))
        });
    }

    pub(super) fn discovery(&self) -> Option<&Arc<Discovery>> {
        self.follower.as_ref().map(|follower| &follower.discovery)
    }

    pub(super) fn checks(&self) -> Option<&Arc<Checks>> {
        self.checker.as_ref().map(|checker| &checker.checks)
    }

    /// Takes over the contents of the files that its check names, if they have changed.
    pub(super) fn renew(&self, credentials: Option<CheckCredentials>) {
        if let Some((checks, credentials)) = self.checks().zip(credentials)
            && !checks
                .credentials()
                .changed_contents(&credentials)
                .is_empty()
        {
            checks.set_credentials(credentials);
        }
    }

    /// Takes over another plan of this upstream. The state of addresses that stay is kept.
    pub(super) fn change(&mut self, plan: &Upstream, inputs: UpstreamInputs, runtime: &Runtime) {
        let exporter = &runtime.exporter;
        let UpstreamInputs {
            credentials,
            addresses,
            discovery,
        } = inputs;
        let backends = plan.backends.iter().map(|b| &b.text);
        let mut addresses: BTreeMap<&String, Vec<Addr>> = backends.zip(addresses).collect();
        let add = |b: &Backend| {
            let metrics = exporter.backend(&self.pool.metrics, &b.text, plan.checked_by());
            let addresses = addresses.remove(&b.text).unwrap_or_default();
            (Arc::new(metrics), addresses)
        };
        self.pool = Arc::new(self.pool.with_plan(plan, add, Instant::now()));
        let before = std::mem::replace(&mut self.plan, plan.clone());
        self.lifecycle.set_plan(plan);
        self.resolving = resolve::keep_fresh(Arc::clone(&self.pool), plan, &runtime.resolver);
        if before.discover != plan.discover {
            self.follow(discovery, runtime);
        }
        if (&before.check, before.send_proxy) != (&plan.check, plan.send_proxy) {
            self.start_checks(credentials.unwrap_or_default(), &runtime.checks);
        } else {
            self.renew(credentials);
        }
    }

    /// The plan has no upstream of this name any more. The action of its plan for sessions of
    /// removed backends applies to all.
    pub(super) fn remove_backends(&mut self, runtime: &Runtime) {
        let plan = Upstream {
            backends: Vec::new(),
            discover: None,
            ..self.plan.clone()
        };
        self.change(&plan, UpstreamInputs::default(), runtime);
    }

    /// Takes over the backends of another plan of this upstream, which has no other difference.
    pub(super) fn change_backends(&mut self, plan: &Upstream, runtime: &Runtime) {
        let exporter = &runtime.exporter;
        let discovery = self.discovery();
        let add = |b: &Backend| {
            let metrics = exporter.backend(&self.pool.metrics, &b.text, plan.checked_by());
            let addresses = discovery.map_or_else(Vec::new, |known| known.addresses_of(b));
            (Arc::new(metrics), addresses)
        };
        self.pool
            .set_plan(plan, add, &Cause::Discovery, Instant::now());
        let names = |plan: &Upstream| -> Vec<String> {
            let is_name = |b: &&Backend| matches!(b.target, Target::Name { .. });
            plan.backends
                .iter()
                .filter(is_name)
                .map(|b| b.text.clone())
                .collect()
        };
        if names(&self.plan) != names(plan) {
            self.resolving = resolve::keep_fresh(Arc::clone(&self.pool), plan, &runtime.resolver);
        }
        self.plan = plan.clone();
        self.lifecycle.set_plan(plan);
    }

    /// Its backends stay what they are.
    pub(super) fn stop_following(&mut self) {
        self.resolving.abort_all();
        self.follower = None;
    }

    /// Handles what has happened since its tasks were ended.
    pub(super) fn finish(self) {
        drop((self.checker, self.handling));
        self.lifecycle.handle_pending(Instant::now());
    }
}
