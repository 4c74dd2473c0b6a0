//! What a listener serves with: its plan, its upstream's pool, and what the whole process shares.

mod backend_reports;
mod intake;
mod notices;

pub use intake::{Failures, Intake};
pub use notices::{Call, Notices};

use crate::{
    plan::{self, Protocol, Udp, access},
    runtime::net::Client,
    session::{
        bandwidth::BandwidthLimits,
        per_source::PerSource,
        rate::Rates,
        registry::{SessionKind, SessionOrigin, Sessions},
    },
    telemetry::{
        access_log::{AccessLogWriter, AccessLogs},
        metrics::{ListenerMetrics, ProcessMetrics},
    },
    upstream::pool::Pool,
};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// What new sessions of a listener are served with. When the plan changes, another service with the
/// same counters replaces it; sessions keep the service that they began with.
pub struct Service {
    pub plan: plan::Listener,
    pub metrics: Arc<ListenerMetrics>,
    pub per_source: Arc<PerSource>,
    pub rates: Arc<Rates>,
    pub bandwidth: Arc<BandwidthLimits>,
    pub pool: Arc<Pool>,
    /// What sessions of this listener have in common.
    pub origin: Arc<SessionOrigin>,
    pub process: Arc<ProcessContext>,
    pub send_proxy: plan::SendProxy,
    pub send_proxy_on: plan::ProxyOn,
    pub access_log: Option<Arc<AccessLogWriter>>,
    pub notices: Arc<Notices>,
    /// False from the start until its upstream has first verdicts, or `start_wait` has passed.
    pub accepting: Arc<AtomicBool>,
    pub intake: Arc<Intake>,
}

/// What all listeners share.
pub struct ProcessContext {
    pub metrics: Arc<ProcessMetrics>,
    pub sessions: Arc<Sessions>,
    pub access_logs: Arc<AccessLogs>,
}

/// The origin of sessions of a listener with this plan.
pub fn origin(plan: &plan::Listener, pool: &Arc<Pool>) -> Arc<SessionOrigin> {
    Arc::new(SessionOrigin {
        listener: plan.name.clone(),
        pool: Arc::clone(pool),
        kind: match &plan.protocol {
            Protocol::Tcp => SessionKind::Connection,
            Protocol::Udp(_) => SessionKind::Flow,
        },
    })
}

impl Service {
    pub fn is_udp(&self) -> bool {
        self.udp().is_some()
    }

    /// This service, before another upstream.
    pub fn with_pool(&self, pool: &Arc<Pool>) -> Self {
        Self {
            plan: self.plan.clone(),
            metrics: Arc::clone(&self.metrics),
            per_source: Arc::clone(&self.per_source),
            rates: Arc::clone(&self.rates),
            bandwidth: Arc::clone(&self.bandwidth),
            pool: Arc::clone(pool),
            origin: origin(&self.plan, pool),
            process: Arc::clone(&self.process),
            send_proxy: self.send_proxy,
            send_proxy_on: self.send_proxy_on,
            access_log: self.access_log.clone(),
            notices: Arc::clone(&self.notices),
            accepting: Arc::clone(&self.accepting),
            intake: Arc::clone(&self.intake),
        }
    }

    /// Sessions that began under another plan of the listener.
    pub fn sessions_of_older_plans(&self) -> u64 {
        // This service holds one reference, each session that began with its plan another one.
        let own = Arc::strong_count(&self.origin) as u64 - 1;
        self.metrics.active().saturating_sub(own)
    }

    /// What only UDP listeners have.
    pub fn udp(&self) -> Option<&Udp> {
        match &self.plan.protocol {
            Protocol::Udp(udp) => Some(udp),
            Protocol::Tcp => None,
        }
    }

    /// The name in the access log, the status and their like.
    pub fn protocol(&self) -> &'static str {
        match self.is_udp() {
            true => "udp",
            false => "tcp",
        }
    }

    /// False while it waits for the first checks of its upstream.
    pub fn is_accepting(&self) -> bool {
        self.accepting.load(Ordering::Relaxed)
    }

    /// Whether connections or datagrams of this peer begin with a PROXY protocol header.
    pub fn trusts(&self, peer: Client) -> bool {
        let accept = self.plan.accept_proxy.as_ref();
        accept.is_some_and(|accept| access::trusts(accept, peer.ip()))
    }
}
