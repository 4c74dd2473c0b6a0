//! An upstream in effect: its pool, and the tasks that check its backends and resolve their names.

use super::Runtime;
use crate::{
    control::{
        admin_state::Controlled, checks::Checks, draining::Leaving, prepare::UpstreamInputs,
        resolve,
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
    draining: Arc<Leaving>,
    /// Notified when its addresses or an admin state have changed.
    changed: Arc<Notify>,
    /// Look up the names of its backends.
    resolving: JoinSet<()>,
    _checker: Option<AbortOnDropHandle<Option<()>>>,
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
        let draining = Leaving::new(plan, sessions, &runtime.pace, &shared.stop);
        let draining = Arc::new(draining);
        let changed = Arc::new(Notify::new());
        let resolving = resolve::keep_fresh(
            Arc::clone(&pool),
            plan,
            &runtime.resolver,
            Arc::clone(&shared.journal),
            Arc::clone(&changed),
        );
        let checker = plan.check.as_ref().map(|check| {
            let checks = Checks::new(
                &pool,
                check,
                plan.send_proxy,
                inputs.credentials,
                &draining,
                shared.clone(),
            );
            let running = Arc::new(checks).run(Arc::clone(&changed));
            let running = shared.stop.clone().run_until_cancelled_owned(running);
            AbortOnDropHandle::new(tokio::spawn(running))
        });
        Self {
            plan: plan.clone(),
            pool,
            draining,
            changed,
            resolving,
            _checker: checker,
        }
    }

    pub(super) fn stop_resolving(&mut self) {
        self.resolving.abort_all();
    }

    /// What an operator can change of it.
    pub(super) fn controlled(&self) -> Controlled {
        Controlled {
            pool: Arc::clone(&self.pool),
            leaving: Arc::clone(&self.draining),
            changed: Arc::clone(&self.changed),
        }
    }
}
