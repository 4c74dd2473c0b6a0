//! One address of one backend, live: it outlives the pools that it is a member of.

mod notices;

use crate::{plan::Addr, telemetry::metrics::BackendMetrics};
use notices::Notices;
use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};
use tokio::sync::Notify;

#[derive(Debug)]
pub struct Backend {
    /// Of no other backend of the process, and never 0.
    pub id: u64,
    pub place: Addr,
    /// Shared by all addresses of one configured backend.
    pub metrics: Arc<BackendMetrics>,
    active: AtomicU64,
    /// Rings when the last session has left.
    emptied: Notify,
    /// When any flow last had a reply from it, in the milliseconds of those that carry datagrams.
    pub heard: AtomicU64,
    /// Sessions that wait for it, where the policy compares how long that takes.
    pub waiting: AtomicU64,
    notices: Notices,
}

impl Backend {
    pub fn new(place: Addr, metrics: Arc<BackendMetrics>, now: Instant) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            id: NEXT.fetch_add(1, Relaxed),
            place,
            metrics,
            active: AtomicU64::default(),
            emptied: Notify::new(),
            heard: AtomicU64::default(),
            waiting: AtomicU64::default(),
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

    /// Until there is no session on it.
    pub async fn empty(&self) {
        let mut emptied = pin!(self.emptied.notified());
        // First to listen, then to look: who leaves in between is heard.
        emptied.as_mut().enable();
        while self.active() > 0 {
            emptied.as_mut().await;
            emptied.set(self.emptied.notified());
            emptied.as_mut().enable();
        }
    }
}

/// A session's place on a backend: counted from the pick until this is dropped.
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
        if self.backend.active.fetch_sub(1, Relaxed) == 1 {
            self.backend.emptied.notify_waiters();
        }
        self.backend.metrics.active.fetch_sub(1, Relaxed);
    }
}
