//! Listeners whose accepting has not begun: their upstreams have no verdicts yet.
//!
//! Their sockets are bound and listen already, so clients wait in the kernel's queues instead of
//! being refused, or being sent to whichever backend happened to answer first.

use crate::{
    plan::{StartWait, Upstream},
    proxy::{tcp, udp},
    session::service::Service,
    upstream::health,
};
use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Instant,
};

/// The sockets of one listener, by worker.
#[derive(Default)]
pub(super) struct Ports {
    pub(super) streams: Vec<Vec<tcp::Socket>>,
    pub(super) datagrams: Vec<udp::Binding>,
}

pub(super) struct PendingListener {
    pub(super) service: Arc<Service>,
    pub(super) ports: Ports,
    /// When it accepts whatever is known by then; `None`: never before the first verdicts.
    deadline: Option<Instant>,
}

/// Why a listener may accept.
#[derive(Debug, PartialEq, Eq)]
enum Release {
    Checked,
    /// Some of the checks have not ended: those of these backends.
    TimedOut(Vec<String>),
}

impl PendingListener {
    pub(super) fn new(
        service: Arc<Service>,
        ports: Ports,
        upstream: &Upstream,
        wait: StartWait,
        now: Instant,
    ) -> Self {
        let limit = match (wait, &upstream.check) {
            (StartWait::AtMost(limit), _) => Some(limit),
            (StartWait::Auto, Some(check)) => Some(health::FIRST_CHECK_SPREAD + check.timeout),
            (StartWait::Auto, None) => None,
        };
        let deadline = limit.and_then(|limit| now.checked_add(limit));
        Self {
            service,
            ports,
            deadline,
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Takes from `pending` the listeners that may accept at `now`.
    pub(super) fn take_due(pending: &mut Vec<Self>, now: Instant) -> Vec<Self> {
        let due = |listener: &mut Self| match listener.release(now) {
            None => false,
            Some(Release::Checked) => true,
            Some(Release::TimedOut(unchecked)) => {
                tracing::warn!(
                    listener = %listener.service.plan.name,
                    upstream = %listener.service.pool.name,
                    unchecked = unchecked.join(", "),
                    "start_wait has passed, accepting before the first checks have ended"
                );
                true
            }
        };
        pending.extract_if(.., due).collect()
    }

    fn release(&self, now: Instant) -> Option<Release> {
        let unchecked = self.service.pool.unchecked_backends();
        if unchecked.is_empty() {
            Some(Release::Checked)
        } else {
            let over = self.deadline.is_some_and(|deadline| now >= deadline);
            over.then_some(Release::TimedOut(unchecked))
        }
    }

    /// Records that its accepting begins.
    pub(super) fn begin(self) -> (Arc<Service>, Ports) {
        self.service.accepting.store(true, Relaxed);
        (self.service, self.ports)
    }
}
