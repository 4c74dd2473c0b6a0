//! The live state of one address of a backend.

mod notices;

use crate::{plan::Addr, telemetry::metrics::BackendMetrics, upstream::notifier::Notifier};
use notices::Notices;
use std::{
    fmt,
    sync::{
        Arc, Weak,
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
    /// Sessions on it that another process has, or [`ALL_PLACES`].
    other_sessions: AtomicU64,
    /// How often its sessions have been terminated.
    terminations: AtomicU64,
    notifier: Arc<Notifier>,
    /// Whether the end of the last session is notified.
    notifies_when_empty: AtomicBool,
    releases: Arc<Releases>,
    /// When a flow last had a reply from it, on the clock of the datagram workers.
    pub last_reply_ms: AtomicU64,
    /// Sessions that wait for it, where the policy compares times.
    pub waiting_sessions: AtomicU64,
    notices: Notices,
}

/// Another process gives all places of this backend.
pub const ALL_PLACES: u64 = u64::MAX;

/// The ends of sessions on all backends of a pool.
#[derive(Debug)]
pub struct Releases {
    /// Mostly not.
    are_observed: AtomicBool,
    observer: Weak<dyn ReleaseObserver>,
}

impl Releases {
    pub fn new(observer: Weak<dyn ReleaseObserver>) -> Self {
        Self {
            are_observed: AtomicBool::default(),
            observer,
        }
    }

    pub fn observe(&self, on: bool) {
        self.are_observed.store(on, SeqCst);
    }
}

/// Learns that a session on a backend has ended.
pub trait ReleaseObserver: fmt::Debug + Send + Sync {
    fn observe_release(&self, now: Instant);
}

impl Backend {
    pub fn new(
        addr: Addr,
        metrics: Arc<BackendMetrics>,
        notifier: Arc<Notifier>,
        releases: Arc<Releases>,
        now: Instant,
    ) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            id: NEXT.fetch_add(1, Relaxed),
            addr,
            metrics,
            active: AtomicU64::default(),
            other_sessions: AtomicU64::default(),
            terminations: AtomicU64::default(),
            notifier,
            notifies_when_empty: AtomicBool::default(),
            releases,
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

    /// The sessions that `max_connections` limits: those of another process count as well.
    pub fn taken_places(&self) -> u64 {
        self.active()
            .saturating_add(self.other_sessions.load(Relaxed))
    }

    /// To be called under the lock of the pool, which gives the places.
    pub fn set_other_sessions(&self, sessions: u64) {
        self.other_sessions.store(sessions, Relaxed);
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

    #[cold]
    fn report_release(&self) {
        if let Some(observer) = self.releases.observer.upgrade() {
            observer.observe_release(Instant::now());
        }
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
        self.backend.metrics.active.fetch_sub(1, Relaxed);
        let was_last = self.backend.active.fetch_sub(1, SeqCst) == 1;
        if self.backend.notifies_when_empty.load(SeqCst) && was_last {
            self.backend.notifier.notify();
        }
        if self.backend.releases.are_observed.load(SeqCst) {
            self.backend.report_release();
        }
    }
}
