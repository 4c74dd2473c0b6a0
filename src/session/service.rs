//! What a listener serves with: its plan, its upstream's pool, and what the whole process shares.

mod intake;
mod notices;
mod records;

pub use intake::{Failures, Intake};
pub use notices::{Call, Notices};
pub use records::seconds;

use crate::{
    plan,
    session::registry::{Sessions, take_place},
    telemetry::{
        access_log::AccessLog,
        metrics::{ListenerMetrics, ProcessMetrics},
    },
    upstream::pool::Pool,
};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

/// One of each listener serves new sessions. Another one takes its place when the plan changes, with
/// the same counters; sessions keep the one that they began with.
pub struct Service {
    pub plan: plan::Listener,
    pub metrics: Arc<ListenerMetrics>,
    pub pool: Arc<Pool>,
    pub process: Arc<Process>,
    pub send_proxy: plan::SendProxy,
    pub send_proxy_on: plan::ProxyOn,
    pub notices: Arc<Notices>,
    /// False from the start until its upstream has first verdicts, or `start_wait` has passed.
    pub accepting: Arc<AtomicBool>,
    pub intake: Arc<Intake>,
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
        let most = match service.plan.max_connections {
            0 => u64::MAX,
            most => most,
        };
        take_place(&service.metrics.active, most).then(|| Self(Arc::clone(service)))
    }

    /// Whether or not there are as many as there may be.
    pub fn take_anyway(service: &Arc<Service>) -> Self {
        service.metrics.active.fetch_add(1, Relaxed);
        Self(Arc::clone(service))
    }

    pub fn service(&self) -> &Arc<Service> {
        &self.0
    }

    /// Makes room for the next session; what the service knows is still wanted.
    pub fn give_back(self) -> Arc<Service> {
        Arc::clone(&self.0)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.metrics.active.fetch_sub(1, Relaxed);
    }
}
