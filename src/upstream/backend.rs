//! The live state of one address of a backend.

mod notices;

use crate::{plan::Addr, telemetry::metrics::BackendMetrics, upstream::notifier::Notifier};
use notices::Notices;
use std::{
    fmt,
    sync::{
        Arc, Weak,
        atomic::{
            AtomicU8, AtomicU64,
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
    /// Notified when the last session has ended, with [`WHEN_EMPTY`].
    notifier: Arc<Notifier>,
    /// Learns of every session that has ended, with [`ALWAYS`].
    observer: Weak<dyn ReleaseObserver>,
    /// What the end of a session leads to; mostly 0.
    on_release: AtomicU8,
    /// When a flow last had a reply from it, on the clock of the datagram workers.
    pub last_reply_ms: AtomicU64,
    /// Sessions that wait for it, where the policy compares times.
    pub waiting_sessions: AtomicU64,
    notices: Notices,
}

/// Another process gives all places of this backend.
pub const ALL_PLACES: u64 = u64::MAX;

/// The end of the last session is notified.
const WHEN_EMPTY: u8 = 1;
/// The end of every session is observed.
const ALWAYS: u8 = 2;

/// Learns that a session on a backend has ended.
pub trait ReleaseObserver: fmt::Debug + Send + Sync {
    fn observe_release(&self, now: Instant);
}

impl Backend {
    pub fn new(
        addr: Addr,
        metrics: Arc<BackendMetrics>,
        notifier: Arc<Notifier>,
        observer: Weak<dyn ReleaseObserver>,
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
            observer,
            on_release: AtomicU8::default(),
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
        self.set_on_release(WHEN_EMPTY, on);
    }

    /// Whether the end of every session is to be observed.
    pub fn observe_releases(&self, on: bool) {
        self.set_on_release(ALWAYS, on);
    }

    fn set_on_release(&self, flag: u8, on: bool) {
        match on {
            true => self.on_release.fetch_or(flag, SeqCst),
            false => self.on_release.fetch_and(!flag, SeqCst),
        };
    }

    /// `is_empty`: whether it was the last session.
    #[cold]
    fn report_release(&self, flags: u8, is_empty: bool) {
        if is_empty && flags & WHEN_EMPTY != 0 {
            self.notifier.notify();
        }
        if flags & ALWAYS != 0
            && let Some(observer) = self.observer.upgrade()
        {
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
        let flags = self.backend.on_release.load(SeqCst);
        if flags != 0 {
            self.backend.report_release(flags, was_last);
        }
    }
}
