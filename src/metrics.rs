//! Every metric: its name, its help text, its labels and where its value is kept.
//!
//! What the hot path counts are plain sharded counters; they are handed to the exporter as absolute
//! values when somebody scrapes. Histograms are fed directly: once or twice a session, not per byte.

mod count;
mod export;
mod names;

pub use count::{Counter, Sharded, set_shard};
pub use export::Exporter;

use crate::reason::{
    BackendState, CheckResult, CloseReason, ConnectError, DropReason, RejectReason, SpliceFallback,
};
use metrics::Histogram;
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

/// What one listener counts.
#[derive(Debug)]
pub struct ListenerMetrics {
    pub name: Arc<str>,
    pub counts: Sharded<ListenerCounts>,
    /// Sessions that live now; also what `max_connections` is held against.
    pub active: AtomicU64,
    pub session_duration: Histogram,
    pub first_byte_duration: Histogram,
}

#[derive(Debug, Default)]
pub struct ListenerCounts {
    pub connections: Counter,
    pub rejected: [Counter; RejectReason::COUNT],
    /// From the client.
    pub received: Counter,
    /// To the client.
    pub sent: Counter,
    pub closed: [Counter; CloseReason::COUNT],
    /// Of UDP: those of clients, whatever became of them...
    pub received_datagrams: Counter,
    /// ... those to clients...
    pub sent_datagrams: Counter,
    /// ... and those, of either direction, that were not passed on.
    pub dropped_datagrams: [Counter; DropReason::COUNT],
}

/// What one configured backend counts, over all addresses its name stands for.
#[derive(Debug)]
pub struct BackendMetrics {
    pub upstream: Arc<str>,
    pub text: Arc<str>,
    pub counts: Sharded<BackendCounts>,
    pub active: AtomicU64,
    pub connect_duration: Histogram,
    /// Of all backends of the upstream: from the first doubt to the verdict...
    pub doubt_duration: Histogram,
    /// ... from there until no session was left...
    pub leave_duration: Histogram,
    /// ... and until another backend had taken one.
    pub resume_duration: Histogram,
    pub transitions: [Counter; BackendState::COUNT],
    /// `None` where nothing is checked.
    pub checks: Option<CheckMetrics>,
}

/// What the checks of one backend count.
#[derive(Debug)]
pub struct CheckMetrics {
    pub results: [Counter; CheckResult::COUNT],
    pub duration: Histogram,
    /// Whether it was ever told how far behind it is, in seconds and in bytes.
    pub lag_told: [AtomicBool; 2],
}

#[derive(Debug, Default)]
pub struct BackendCounts {
    pub connections: Counter,
    pub connect_errors: [Counter; ConnectError::COUNT],
    /// Attempts that were made because another backend had failed.
    pub retries: Counter,
    /// From the backend.
    pub received: Counter,
    /// To the backend.
    pub sent: Counter,
}

/// What the process counts over all listeners.
#[derive(Debug)]
pub struct ProcessMetrics {
    pub relayed: Sharded<RelayCounts>,
    pub accept_errors: Counter,
}

#[derive(Debug, Default)]
pub struct RelayCounts {
    pub splice: Counter,
    pub copy: Counter,
    pub fallbacks: [Counter; SpliceFallback::COUNT],
}

impl ListenerMetrics {
    pub fn closed(&self, reason: CloseReason) {
        self.counts.mine().closed[reason as usize].add(1);
    }

    pub fn rejected(&self, reason: RejectReason) {
        self.counts.mine().rejected[reason as usize].add(1);
    }

    pub fn dropped(&self, reason: DropReason, datagrams: u64) {
        self.counts.mine().dropped_datagrams[reason as usize].add(datagrams);
    }

    pub fn active(&self) -> u64 {
        self.active.load(Relaxed)
    }
}

impl BackendMetrics {
    pub fn entered(&self, state: BackendState) {
        self.transitions[state as usize].add(1);
    }

    pub fn active(&self) -> u64 {
        self.active.load(Relaxed)
    }
}
