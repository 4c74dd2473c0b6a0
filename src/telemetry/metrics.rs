//! Every metric: its name, its help text, its labels and where its value is kept.
//!
//! What the hot path counts are plain sharded counters, which a scrape adds up. Histograms are fed
//! directly: once or twice a session, not per byte. Every value is kept with the listener or
//! backend that counts it, beside its labels as text, so that a scrape looks nothing up.

mod count;
mod export;
mod families;
mod figures;
mod histogram;
mod text;
mod transfer;

pub use count::{Counter, Sharded, Shown, set_shard};
pub use export::Exporter;
pub use families::{family_names, render};
pub use figures::{
    BackendFigures, Figures, ListenerFigures, ReloadFigures, SessionFigures, SourceFigures,
    UpstreamFigures,
};
pub use histogram::Histogram;
pub use transfer::{Transfer, Visitor};

use crate::plan::{
    CheckProtocol,
    reason::{
        BackendState, CheckResult, CloseReason, ConnectError, DropReason, LimitKind, OverLimit,
        RejectReason, Shortage, SpliceFallback, WaitResult,
    },
};
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed},
};

/// What one listener counts.
#[derive(Debug)]
pub struct ListenerMetrics {
    labels: Box<str>,
    pub counts: Sharded<ListenerCounts>,
    /// Sessions that live now, which `max_connections` limits.
    pub active: AtomicU64,
    sent_shown: Shown,
    pub session_duration: Histogram,
    pub first_byte_duration: Histogram,
}

#[derive(Debug, Default)]
pub struct ListenerCounts {
    pub connections: Counter,
    pub rejected: [Counter; RejectReason::COUNT],
    /// By limit.
    pub over_limit: [[Counter; OverLimit::COUNT]; LimitKind::COUNT],
    /// From the client.
    pub received: Counter,
    /// To the client.
    pub sent: Counter,
    pub closed: [Counter; CloseReason::COUNT],
    /// Datagrams from clients, delivered or not.
    pub received_datagrams: Counter,
    /// Datagrams to clients.
    pub sent_datagrams: Counter,
    /// Datagrams of either direction that were not delivered.
    pub dropped_datagrams: [Counter; DropReason::COUNT],
}

/// What is counted for all backends of an upstream together.
#[derive(Debug)]
pub struct UpstreamMetrics {
    pub name: Arc<str>,
    labels: Box<str>,
    /// From the first doubt about a backend to the verdict.
    pub doubt_duration: Histogram,
    /// From the change that took a backend out to the end of its last session.
    pub leave_duration: Histogram,
    /// The same to the first session on another backend.
    pub resume_duration: Histogram,
    /// Clients that wanted a backend and got none, for the journal: listeners show theirs by
    /// reason.
    pub unserved: Counter,
    /// By what the sessions lacked.
    pub waits: [WaitMetrics; Shortage::COUNT],
}

/// What sessions count that wait for a backend.
#[derive(Debug)]
pub struct WaitMetrics {
    labels: Box<str>,
    pub results: [Counter; WaitResult::COUNT],
    pub duration: Histogram,
}

/// What one configured backend counts, over all addresses its name stands for.
#[derive(Debug)]
pub struct BackendMetrics {
    labels: Box<str>,
    pub upstream: Arc<str>,
    pub text: Arc<str>,
    pub counts: Sharded<BackendCounts>,
    pub active: AtomicU64,
    sent_shown: Shown,
    pub connect_duration: Histogram,
    pub transitions: [Counter; BackendState::COUNT],
    pub checks: CheckMetrics,
    /// Where it is none, `checks` is not shown.
    pub checked_by: CheckedBy,
}

/// The protocol of the checks of a backend, which a plan may change.
#[derive(Debug)]
pub struct CheckedBy(AtomicU8);

/// What the checks of one backend count.
#[derive(Debug)]
pub struct CheckMetrics {
    pub results: [Counter; CheckResult::COUNT],
    pub duration: Histogram,
    /// Whether an answer ever gave the replication lag in seconds, and in bytes.
    has_lag: [AtomicBool; 2],
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
    copied_shown: Shown,
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

    /// Counts a client that was over a limit, and was not refused for it.
    pub fn over_limit(&self, limit: LimitKind, result: OverLimit) {
        self.counts.mine().over_limit[limit as usize][result as usize].add(1);
    }

    pub fn dropped(&self, reason: DropReason, datagrams: u64) {
        self.counts.mine().dropped_datagrams[reason as usize].add(datagrams);
    }

    pub fn active(&self) -> u64 {
        self.active.load(Relaxed)
    }
}

impl CheckedBy {
    fn new(protocol: Option<CheckProtocol>) -> Self {
        Self(AtomicU8::new(Self::number(protocol)))
    }

    pub fn set(&self, protocol: Option<CheckProtocol>) {
        self.0.store(Self::number(protocol), Relaxed);
    }

    /// `None`: it is not checked.
    pub fn get(&self) -> Option<CheckProtocol> {
        let number = usize::from(self.0.load(Relaxed));
        let at = number.checked_sub(1)?;
        CheckProtocol::ALL.get(at).copied()
    }

    fn number(protocol: Option<CheckProtocol>) -> u8 {
        let at = CheckProtocol::ALL.iter().position(|p| Some(*p) == protocol);
        at.map_or(0, |at| at as u8 + 1)
    }
}

impl BackendMetrics {
    /// A series that there is once stays, and is no number while no answer gives the lag: neither
    /// the last value nor zero would be true.
    fn lag_to_show(&self, lag: [Option<f64>; 2]) -> [Option<f64>; 2] {
        let checks = &self.checks;
        if self.checked_by.get().is_none() {
            return [None; 2];
        }
        std::array::from_fn(|n| match lag[n] {
            Some(lag) => {
                checks.has_lag[n].store(true, Relaxed);
                Some(lag)
            }
            None => checks.has_lag[n].load(Relaxed).then_some(f64::NAN),
        })
    }

    pub fn entered(&self, state: BackendState) {
        self.transitions[state as usize].add(1);
    }

    pub fn active(&self) -> u64 {
        self.active.load(Relaxed)
    }
}
