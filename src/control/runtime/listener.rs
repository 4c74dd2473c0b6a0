//! A listener in effect: its sockets, and the service that new sessions get.
//!
//! It may wait for the first verdicts of its upstream. Its sockets are bound and listen already, so
//! clients wait in the kernel's queues instead of being refused, or being sent to whichever backend
//! happened to answer first.

use super::{Runtime, UpstreamRuntime, Workers};
use crate::{
    control::{
        ListenerView,
        bind::{Listening, Sockets},
    },
    plan::{self, Addr, StartWait},
    proxy::{tcp, udp},
    runtime::net::SocketFile,
    session::service::{Notices, Service},
    upstream::health,
};
use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Instant,
};
use tokio_util::task::TaskTracker;

pub(super) struct ListenerRuntime {
    service: Arc<Service>,
    /// The addresses that it really has; port 0 has become a number.
    addresses: Vec<Addr>,
    files: Vec<SocketFile>,
    /// Until it accepts.
    pending: Option<Pending>,
}

struct Pending {
    ports: Ports,
    /// When it accepts whatever is known by then; `None`: never before the first verdicts.
    deadline: Option<Instant>,
}

/// The sockets of one listener, by worker.
#[derive(Default)]
struct Ports {
    streams: Vec<Vec<tcp::Socket>>,
    datagrams: Vec<udp::Binding>,
}

/// Why a listener may accept.
#[derive(Debug, PartialEq, Eq)]
enum Release {
    Checked,
    /// The first checks of these backends have not ended.
    TimedOut(Vec<String>),
}

impl ListenerRuntime {
    pub(super) fn start(
        plan: plan::Listener,
        upstream: &UpstreamRuntime,
        bound: Vec<Listening>,
        own: &Arc<udp::OwnAddresses>,
        runtime: &Runtime,
    ) -> Self {
        let now = Instant::now();
        let service = Arc::new(Service {
            metrics: runtime.exporter.listener(&plan.name),
            per_source: Arc::default(),
            plan,
            pool: Arc::clone(&upstream.pool),
            process: Arc::clone(&runtime.process),
            send_proxy: upstream.plan.send_proxy,
            send_proxy_on: upstream.plan.send_proxy_on,
            notices: Arc::new(Notices::new(now)),
            accepting: Arc::default(),
            intake: Arc::default(),
        });
        let mut listener = Self {
            addresses: Vec::new(),
            files: Vec::new(),
            pending: None,
            service,
        };
        let ports = listener.distribute(bound, own, runtime);
        let wait = match (runtime.plan.process.start_wait, &upstream.plan.check) {
            (StartWait::AtMost(limit), _) => Some(limit),
            (StartWait::Auto, Some(check)) => Some(health::FIRST_CHECK_SPREAD + check.timeout),
            (StartWait::Auto, None) => None,
        };
        listener.pending = Some(Pending {
            ports,
            deadline: wait.and_then(|wait| now.checked_add(wait)),
        });
        listener
    }

    fn distribute(
        &mut self,
        bound: Vec<Listening>,
        own: &Arc<udp::OwnAddresses>,
        runtime: &Runtime,
    ) -> Ports {
        let mut ports = Ports::default();
        let mut datagrams: Vec<Vec<udp::Port>> = Vec::new();
        for Listening {
            place,
            sockets,
            file,
            ..
        } in bound
        {
            tracing::info!(listener = %self.service.plan.name, address = %place, "listening");
            self.files.extend(file);
            match sockets {
                Sockets::Streams(sockets) => ports.streams.push(sockets),
                Sockets::Datagrams(sockets) => {
                    datagrams.resize_with(sockets.len(), Vec::new);
                    for (ports, socket) in datagrams.iter_mut().zip(sockets) {
                        ports.push(socket);
                    }
                }
            }
            self.addresses.push(place);
        }
        if self.service.is_udp() {
            let peers = Arc::new(udp::PeerWorkers::default());
            let binding = |(worker, sockets)| udp::Binding {
                service: Arc::clone(&self.service),
                sockets,
                peers: Arc::clone(&peers),
                own: Arc::clone(own),
                is_first: worker == 0,
                alive: runtime.tasks.token(),
            };
            ports.datagrams = datagrams.into_iter().enumerate().map(binding).collect();
        }
        ports
    }

    pub(super) fn name(&self) -> &str {
        &self.service.plan.name
    }

    pub(super) fn view(&self) -> ListenerView {
        ListenerView {
            service: Arc::clone(&self.service),
            addresses: self.addresses.clone(),
        }
    }

    pub(super) fn is_pending(&self) -> bool {
        self.pending.is_some()
    }

    pub(super) fn accept_deadline(&self) -> Option<Instant> {
        self.pending.as_ref()?.deadline
    }

    pub(super) fn accept_if_due(&mut self, workers: &Workers, tasks: &TaskTracker, now: Instant) {
        match self.release(now) {
            None => return,
            Some(Release::Checked) => {}
            Some(Release::TimedOut(unchecked)) => tracing::warn!(
                listener = %self.name(),
                upstream = %self.service.pool.name,
                unchecked = unchecked.join(", "),
                "start_wait has passed, accepting before the first checks have ended"
            ),
        }
        self.accept(workers, tasks);
    }

    fn release(&self, now: Instant) -> Option<Release> {
        let pending = self.pending.as_ref()?;
        let unchecked = self.service.pool.unchecked_backends();
        if unchecked.is_empty() {
            return Some(Release::Checked);
        }
        let is_over = pending.deadline.is_some_and(|deadline| now >= deadline);
        is_over.then_some(Release::TimedOut(unchecked))
    }

    /// Begins to accept, if it has not yet.
    pub(super) fn accept(&mut self, workers: &Workers, tasks: &TaskTracker) {
        let Some(Pending { ports, .. }) = self.pending.take() else {
            return;
        };
        self.service.accepting.store(true, Relaxed);
        for sockets in ports.streams {
            for (thread, socket) in workers.connections.iter().zip(sockets) {
                thread.send(tcp::Order::Listen(Box::new(tcp::Binding {
                    socket,
                    service: Arc::clone(&self.service),
                    alive: tasks.token(),
                })));
            }
        }
        for (thread, binding) in workers.datagrams.iter().zip(ports.datagrams) {
            thread.send(udp::Order::Listen(Box::new(binding)));
        }
    }

    pub(super) fn take_files(&mut self) -> Vec<SocketFile> {
        std::mem::take(&mut self.files)
    }
}
