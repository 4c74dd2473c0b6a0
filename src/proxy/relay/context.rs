//! What the two directions of a session share with it.

use crate::{
    session::bandwidth::{SessionBandwidth, Way},
    telemetry::metrics::{Counter, RelayCounts},
};
use std::{
    cell::Cell,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Instant,
};

/// What a direction needs to know and count at each poll.
pub(super) struct DirectionContext<'a> {
    pub(super) read: &'a Counter,
    pub(super) written: &'a Counter,
    pub(super) client_bytes_read: Option<&'a AtomicU64>,
    pub(super) client_bytes_written: Option<&'a AtomicU64>,
    pub(super) relayed: &'a RelayCounts,
    pub(super) moved: &'a Cell<bool>,
    pub(super) now: Instant,
    /// A write to the source failed: its end, when it comes, is that of a reset.
    pub(super) source_is_broken: bool,
    /// The session ends with this end: closing the connection sends the same FIN as a shutdown.
    pub(super) last_to_end: bool,
    pub(super) bandwidth: Option<(&'a SessionBandwidth, Way)>,
}

impl DirectionContext<'_> {
    /// How many bytes may be read; `None`: none yet.
    pub(super) fn allowance(&self) -> Option<usize> {
        match self.bandwidth {
            None => Some(usize::MAX),
            Some((bandwidth, way)) => bandwidth.allowance(way, self.now),
        }
    }

    pub(super) fn add_read(&self, n: usize) {
        if let Some((bandwidth, way)) = self.bandwidth {
            bandwidth.charge(way, n as u64, self.now);
        }
        self.moved.set(true);
        self.read.add(n as u64);
        if let Some(total) = self.client_bytes_read {
            total.fetch_add(n as u64, Relaxed);
        }
    }

    pub(super) fn add_written(&self, n: usize, mode: &Counter) {
        self.moved.set(true);
        self.written.add(n as u64);
        mode.add(n as u64);
        if let Some(total) = self.client_bytes_written {
            total.fetch_add(n as u64, Relaxed);
        }
    }

    /// For bytes that were counted when they were deferred.
    pub(super) fn subtract_written(&self, n: usize) {
        self.written.take_back(n as u64);
        self.relayed.copy.take_back(n as u64);
        if let Some(total) = self.client_bytes_written {
            total.fetch_sub(n as u64, Relaxed);
        }
    }
}
