//! One address of one backend, live: it outlives the pools that it is a member of.

use crate::{metrics::BackendMetrics, plan::Place};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

#[derive(Debug)]
pub struct Backend {
    /// Of no other backend of the process, and never 0.
    pub id: u64,
    pub place: Place,
    /// Shared by all addresses of one configured backend.
    pub metrics: Arc<BackendMetrics>,
    active: AtomicU64,
    /// Sessions that wait for it, where the policy compares how long that takes.
    pub waiting: AtomicU64,
}

impl Backend {
    pub fn new(place: Place, metrics: Arc<BackendMetrics>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            id: NEXT.fetch_add(1, Relaxed),
            place,
            metrics,
            active: AtomicU64::default(),
            waiting: AtomicU64::default(),
        }
    }

    /// The address as configured.
    pub fn text(&self) -> &Arc<str> {
        &self.metrics.text
    }

    pub fn active(&self) -> u64 {
        self.active.load(Relaxed)
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
        self.backend.active.fetch_sub(1, Relaxed);
        self.backend.metrics.active.fetch_sub(1, Relaxed);
    }
}
