//! What a listener serves with: its plan, its upstream's pool, and what the whole process shares.

use crate::{
    access_log::AccessLog,
    metrics::{ListenerMetrics, ProcessMetrics},
    plan,
    pool::Pool,
    sessions::Sessions,
};
use std::sync::{Arc, atomic::Ordering::Relaxed};

pub struct Service {
    pub plan: plan::Listener,
    pub metrics: ListenerMetrics,
    pub pool: Arc<Pool>,
    pub process: Arc<Process>,
}

pub struct Process {
    pub metrics: Arc<ProcessMetrics>,
    pub sessions: Arc<Sessions>,
    pub access_log: Option<AccessLog>,
}

/// One of the sessions that a listener may have at once.
pub struct Slot(Arc<Service>);

impl Slot {
    /// `None` when the listener has as many sessions as it may have.
    pub fn take(service: &Arc<Service>) -> Option<Self> {
        let most = service.plan.max_connections;
        let before = service.metrics.active.fetch_add(1, Relaxed);
        let slot = Self(Arc::clone(service));
        (most == 0 || before < most).then_some(slot)
    }

    pub fn service(&self) -> &Arc<Service> {
        &self.0
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.metrics.active.fetch_sub(1, Relaxed);
    }
}
