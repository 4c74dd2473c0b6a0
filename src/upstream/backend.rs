//! The live state of one address of a backend.

mod notices;

use crate::{plan::Addr, telemetry::metrics::BackendMetrics, upstream::notifier::Notifier};
use notices::Notices;
use std::{
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Instant,
};

#[derive(Debug)]
pub struct Backend {
    /// Unique in the process, and never 0.
    pub id: u64,
    pub addr: Addr,
    /// Shared by all addresses of one configured backend.
    pub metrics: Arc<BackendMetrics>,
    active: AtomicU64,
    /// How often its sessions have been terminated.
    terminations: AtomicU64,
    /// Notified when the last session has ended, if `notifies_when_empty`.
    notifier: Arc<Notifier>,
    notifies_when_empty: AtomicBool,
    /// When a flow last had a reply from it, on the clock of the datagram workers.
    pub last_reply_ms: AtomicU64,
    /// Sessions that wait for it, where the policy compares times.
    pub waiting_sessions: AtomicU64,
    notices: Notices,
}

impl Backend {
    pub fn new(
        addr: Addr,
        metrics: Arc<BackendMetrics>,
        notifier: Arc<Notifier>,
        now: Instant,
    ) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            id: NEXT.fetch_add(1, Relaxed),
            addr,
            metrics,
            active: AtomicU64::default(),
            terminations: AtomicU64::default(),
            notifier,
            notifies_when_empty: AtomicBool::new(false),
            last_reply_ms: AtomicU64::default(),
            waiting_sessions: AtomicU64::default(),
            notices: Notices::new(now),
        }
    }

    /// The address as configured.
    pub fn text(&self) -> &Arc<str> {
        &self.metrics.text
    }

    pub fn active(&self) -> u64 {
        self.active.load(Relaxed)
    }

    pub fn terminations(&self) -> u64 {
        self.terminations.load(Relaxed)
    }

    pub fn count_termination(&self) {
        self.terminations.fetch_add(1, Relaxed);
    }

    /// Whether the end of the last session is to be notified.
    pub fn notify_when_empty(&self, on: bool) {
        self.notifies_when_empty.store(on, SeqCst);
    }

    /// To be called after [`Self::notify_when_empty`]: an end of the last session that is not seen
    /// here is notified.
    pub fn is_empty(&self) -> bool {
        self.active.load(SeqCst) == 0
    }
}

/// Counts a session on a backend from the pick until this is dropped.
#[derive(Debug)]
pub struct Lease {
    backend: Arc<Backend>,
}

impl Lease {
    pub fn new(backend: Arc<Backend>) -> Self {
        backend.active.fetch_add(1, Relaxed);
        backend.metrics.active.fetch_add(1, Relaxed);
        Self { backend }
    }

    pub fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let was_last = self.backend.active.fetch_sub(1, SeqCst) == 1;
        if was_last && self.backend.notifies_when_empty.load(SeqCst) {
            self.backend.notifier.notify();
        }
        self.backend.metrics.active.fetch_sub(1, Relaxed);
    }
}
