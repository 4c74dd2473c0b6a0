//! An upstream in effect: its pool, and the tasks that check its backends and resolve their names.

use super::Runtime;
use crate::{
    control::{
        checks::Checks, draining::Draining, lifecycle::Lifecycle, prepare::UpstreamInputs, resolve,
    },
    plan::Upstream,
    upstream::pool::Pool,
};
use std::{sync::Arc, time::Instant};
use tokio::{sync::Notify, task::JoinSet};
use tokio_util::task::AbortOnDropHandle;

pub(super) struct UpstreamRuntime {
    pub(super) plan: Upstream,
    pub(super) pool: Arc<Pool>,
    lifecycle: Arc<Lifecycle>,
    handling: AbortOnDropHandle<Option<()>>,
    /// Look up the names of its backends.
    resolving: JoinSet<()>,
    checker: Option<AbortOnDropHandle<Option<()>>>,
}

impl UpstreamRuntime {
    pub(super) fn start(plan: &Upstream, inputs: UpstreamInputs, runtime: &Runtime) -> Self {
        let exporter = &runtime.exporter;
        let metrics = exporter.upstream(&plan.name);
        let pool = Arc::new(Pool::new(
            &metrics,
            plan,
            |b| exporter.backend(&metrics, &b.text, plan.check.is_some()),
            &inputs.addresses,
            Instant::now(),
        ));
        let shared = &runtime.checks;
        let sessions = &runtime.process.sessions;
        let draining = Draining::new(plan, sessions, &runtime.pace, &shared.stop);
        let changed = Arc::new(Notify::new());
        let lifecycle = Lifecycle::new(&pool, draining, &runtime.journal, &changed);
        let lifecycle = Arc::new(lifecycle);
        let handling = Arc::clone(&lifecycle).run();
        let handling = shared.stop.clone().run_until_cancelled_owned(handling);
        let resolving = resolve::keep_fresh(Arc::clone(&pool), plan, &runtime.resolver);
        let checker = plan.check.as_ref().map(|check| {
            let checks = Checks::new(
                &pool,
                check,
                plan.send_proxy,
                inputs.credentials,
                shared.clone(),
            );
            let running = Arc::new(checks).run(Arc::clone(&changed));
            let running = shared.stop.clone().run_until_cancelled_owned(running);
            AbortOnDropHandle::new(tokio::spawn(running))
        });
        Self {
            plan: plan.clone(),
            pool,
            handling: AbortOnDropHandle::new(tokio::spawn(handling)),
            lifecycle,
            resolving,
            checker,
        }
    }

    pub(super) fn stop_resolving(&mut self) {
        self.resolving.abort_all();
    }

    /// Handles what has happened since its tasks were ended.
    pub(super) fn finish(self) {
        drop((self.checker, self.handling));
        self.lifecycle.handle_pending(Instant::now());
    }
}
