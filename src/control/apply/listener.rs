//! A listener in effect: its sockets, and the service that new sessions get.
//!
//! It may wait for the first verdicts of its upstream. Its sockets are bound and listen already, so
//! clients wait in the kernel's queues instead of being refused, or being sent to whichever backend
//! happened to answer first.

use super::{
    Runtime, UpstreamRuntime, Workers, tcp_sockets::StreamSocket, udp_sockets::DatagramSockets,
};
use crate::{
    control::ListenerView,
    plan::{self, Addr, StartWait},
    proxy::udp::OwnAddresses,
    runtime::net::SocketFile,
    session::{
        bandwidth::BandwidthLimits,
        service::{self, Notices, Service},
    },
    upstream::health,
};
use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Instant,
};
use tokio_util::task::TaskTracker;

pub(super) struct ListenerRuntime {
    pub(super) service: Arc<Service>,
    pub(super) sockets: ListenerSockets,
    /// Until it accepts.
    waiting: Option<Waiting>,
}

/// The sockets of one listener.
pub(super) enum ListenerSockets {
    Streams(Vec<StreamSocket>),
    Datagrams(DatagramSockets),
}

struct Waiting {
    /// When it accepts even without all verdicts; `None`: never before the first verdicts.
    deadline: Option<Instant>,
}

/// Why a listener may accept.
#[derive(Debug, PartialEq, Eq)]
enum Release {
    Checked,
    /// The first checks of these backends have not ended.
    TimedOut(Vec<String>),
}

impl ListenerRuntime {
    /// A listener that does not accept yet. `removed`: what the listener of its name served with
    /// that was removed before, if that has sessions.
    pub(super) fn new(
        plan: plan::Listener,
        upstream: &UpstreamRuntime,
        sockets: ListenerSockets,
        removed: Option<&Service>,
        runtime: &Runtime,
    ) -> Self {
        let now = Instant::now();
        let metrics = removed.map_or_else(
            || runtime.exporter.listener(&plan.name),
            |removed| Arc::clone(&removed.metrics),
        );
        let bandwidth = removed.map_or_else(
            || Arc::new(BandwidthLimits::new(Arc::clone(&metrics))),
            |removed| Arc::clone(&removed.bandwidth),
        );
        bandwidth.set(&plan.limits);
        let service = Arc::new(Service {
            metrics,
            per_source: removed.map_or_else(Arc::default, |s| Arc::clone(&s.per_source)),
            rates: removed.map_or_else(Arc::default, |s| Arc::clone(&s.rates)),
            bandwidth,
            origin: service::origin(&plan, &upstream.pool),
            pool: Arc::clone(&upstream.pool),
            process: Arc::clone(&runtime.process),
            send_proxy: plan.send_proxy_to(&upstream.plan),
            send_proxy_on: upstream.plan.send_proxy_on,
            access_log: runtime.open_logs.of(&plan, &runtime.plan.log),
            plan,
            notices: Arc::new(Notices::new(now)),
            accepting: Arc::default(),
            intake: Arc::default(),
        });
        let wait = match (runtime.plan.process.start_wait, &upstream.plan.check) {
            (StartWait::AtMost(limit), _) => Some(limit),
            (StartWait::Auto, Some(check)) => Some(health::FIRST_CHECK_SPREAD + check.timeout),
            (StartWait::Auto, None) => None,
        };
        let deadline = wait.and_then(|wait| now.checked_add(wait));
        Self {
            service,
            sockets,
            waiting: Some(Waiting { deadline }),
        }
    }

    /// The same listener with the settings and sockets of another plan, for new sessions.
    pub(super) fn update(
        mut self,
        plan: plan::Listener,
        upstream: &UpstreamRuntime,
        sockets: ListenerSockets,
        runtime: &Runtime,
    ) -> Self {
        let before = &self.service;
        let access_log = runtime.open_logs.of(&plan, &runtime.plan.log);
        let send_proxy = plan.send_proxy_to(&upstream.plan);
        let send_proxy_on = upstream.plan.send_proxy_on;
        let is_same = before.plan == plan
            && Arc::ptr_eq(&before.pool, &upstream.pool)
            && before.access_log.as_ref().map(Arc::as_ptr) == access_log.as_ref().map(Arc::as_ptr)
            && (before.send_proxy, before.send_proxy_on) == (send_proxy, send_proxy_on);
        if !is_same {
            // Sessions of the plan before follow at once.
            before.bandwidth.set(&plan.limits);
            self.service = Arc::new(Service {
                origin: service::origin(&plan, &upstream.pool),
                plan,
                metrics: Arc::clone(&before.metrics),
                per_source: Arc::clone(&before.per_source),
                rates: Arc::clone(&before.rates),
                bandwidth: Arc::clone(&before.bandwidth),
                pool: Arc::clone(&upstream.pool),
                process: Arc::clone(&before.process),
                send_proxy,
                send_proxy_on,
                access_log,
                notices: Arc::clone(&before.notices),
                accepting: Arc::clone(&before.accepting),
                intake: Arc::clone(&before.intake),
            });
        }
        self.sockets = sockets;
        self
    }

    pub(super) fn take_sockets(&mut self) -> ListenerSockets {
        std::mem::replace(&mut self.sockets, ListenerSockets::Streams(Vec::new()))
    }

    pub(super) fn take_files(&mut self) -> Vec<SocketFile> {
        match &mut self.sockets {
            ListenerSockets::Streams(sockets) => {
                let files = sockets.iter_mut().filter_map(|socket| socket.file.take());
                files.collect()
            }
            ListenerSockets::Datagrams(_) => Vec::new(),
        }
    }

    /// The files of unix sockets are removed by this process from now on.
    pub(super) fn adopt_files(&mut self) {
        if let ListenerSockets::Streams(sockets) = &mut self.sockets {
            sockets.iter_mut().for_each(StreamSocket::adopt_file);
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.service.plan.name
    }

    pub(super) fn view(&self) -> ListenerView {
        let addresses = match &self.sockets {
            ListenerSockets::Streams(sockets) => sockets.iter().map(|s| s.bound.clone()).collect(),
            ListenerSockets::Datagrams(sockets) => sockets.addresses().map(Addr::Tcp).collect(),
        };
        ListenerView {
            service: Arc::clone(&self.service),
            addresses,
        }
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    pub(super) fn accept_deadline(&self) -> Option<Instant> {
        self.waiting.as_ref()?.deadline
    }

    /// Whether nothing that it waits for is missing now.
    pub(super) fn may_accept(&self, now: Instant) -> bool {
        self.release(now).is_some()
    }

    /// Whether it waits and may accept now.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        match self.release(now) {
            None => false,
            Some(Release::Checked) => true,
            Some(Release::TimedOut(unchecked)) => {
                tracing::warn!(listener = %self.name(), upstream = %self.service.pool.name,
                    unchecked = unchecked.join(", "),
                    "start_wait has passed, accepting before the first checks have ended");
                true
            }
        }
    }

    fn release(&self, now: Instant) -> Option<Release> {
        let waiting = self.waiting.as_ref()?;
        let unchecked = self.service.pool.unchecked_backends();
        if unchecked.is_empty() {
            return Some(Release::Checked);
        }
        let is_over = waiting.deadline.is_some_and(|deadline| now >= deadline);
        is_over.then_some(Release::TimedOut(unchecked))
    }

    /// Accepts with the service that it has now.
    pub(super) fn serve(
        &mut self,
        own: &Arc<OwnAddresses>,
        workers: &Workers,
        tasks: &TaskTracker,
    ) {
        self.waiting = None;
        self.service.accepting.store(true, Relaxed);
        match &mut self.sockets {
            ListenerSockets::Streams(sockets) => {
                for socket in sockets {
                    socket.serve(&self.service, workers, tasks);
                }
            }
            ListenerSockets::Datagrams(sockets) => {
                sockets.serve(&self.service, own, workers, tasks)
            }
        }
    }
}
