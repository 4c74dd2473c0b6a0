//! The values of one scrape, read before any of them is written: related values are of one moment,
//! and the counters of each backend are summed once.

use super::{BackendMetrics, ListenerMetrics, ProcessMetrics, UpstreamMetrics};
use crate::plan::{
    Role,
    reason::{BackendState, ConnectError, Shortage},
};
use std::sync::Arc;

pub struct Figures<'a> {
    pub listeners: Vec<ListenerFigures<'a>>,
    pub upstreams: Vec<UpstreamFigures<'a>>,
    pub backends: Vec<BackendFigures>,
    pub sources: Vec<SourceFigures<'a>>,
    pub process: &'a ProcessMetrics,
    pub connections: SessionFigures,
    pub flows: SessionFigures,
    pub access_log_dropped: u64,
    /// Of the configuration in effect.
    pub config_hash: &'a str,
    /// `None` before the first reload.
    pub last_reload: Option<ReloadFigures>,
    /// Of a worker, in seconds.
    pub longest_pause: f64,
}

/// How many sessions of a kind the process has, and how many it may have.
#[derive(Debug, Clone, Copy)]
pub struct SessionFigures {
    pub active: u64,
    pub most: u64,
}

pub struct ReloadFigures {
    pub is_successful: bool,
    /// When a reload was last successful, in seconds since the epoch; `None`: never.
    pub last_success: Option<f64>,
}

/// Of a source of backends.
pub struct SourceFigures<'a> {
    /// Of its upstream.
    pub metrics: &'a UpstreamMetrics,
    /// How many backends it has found.
    pub backends: u64,
    /// Those of them that it does not name any more.
    pub held: u64,
    /// When it last answered, in seconds since the epoch; `None`: never.
    pub last_success: Option<f64>,
    /// Its answers, by what they led to.
    pub updates: Vec<(&'static str, u64)>,
}

pub struct ListenerFigures<'a> {
    pub metrics: &'a ListenerMetrics,
    /// Whether its sessions are flows of datagrams.
    pub is_udp: bool,
    /// 0: no limit of its own.
    pub max_connections: u64,
}

pub struct UpstreamFigures<'a> {
    pub metrics: &'a UpstreamMetrics,
    pub available: u64,
    /// Of those that are available.
    pub full: u64,
    /// Sessions that wait, by what they lack; `None` where none may wait for that.
    pub waiting: [Option<u64>; Shortage::COUNT],
    /// How many may wait so at once.
    pub most_waiting: [u64; Shortage::COUNT],
    /// Backends that report to be primary; `None`: their checks require no primary.
    pub primaries: Option<u64>,
    /// `None` where `panic_threshold` is not set.
    pub in_panic: Option<bool>,
    /// Where `role_fallback` is on.
    pub in_role_fallback: Option<bool>,
    /// Of all that picks by key depend on, whatever is up, and of what is up; `None`: picks do not
    /// go by a key.
    pub pick_hashes: Option<[String; 2]>,
}

pub struct BackendFigures {
    pub metrics: Arc<BackendMetrics>,
    pub state: BackendState,
    pub weight: u32,
    /// Of all its addresses together; 0: no limit.
    pub max_connections: u64,
    /// The roles of its addresses; `None` where no check asks for them.
    pub roles: Option<Vec<Role>>,
    /// The replication lag of the last check in seconds and in bytes; `None` where a check never
    /// gave it, NaN where the last one did not.
    pub lag: [Option<f64>; 2],
    pub(super) totals: Totals,
}

/// The counters of a backend, summed over all workers.
#[derive(Debug, Default)]
pub(super) struct Totals {
    pub(super) connections: u64,
    pub(super) connect_errors: [u64; ConnectError::COUNT],
    pub(super) retries: u64,
    pub(super) received: u64,
    pub(super) sent: u64,
}

impl BackendFigures {
    pub fn new(
        metrics: &Arc<BackendMetrics>,
        state: BackendState,
        weight: u32,
        roles: Option<Vec<Role>>,
        lag: [Option<f64>; 2],
    ) -> Self {
        Self {
            totals: totals(metrics),
            lag: metrics.lag_to_show(lag),
            metrics: Arc::clone(metrics),
            state,
            weight,
            max_connections: 0,
            roles,
        }
    }
}

fn totals(metrics: &BackendMetrics) -> Totals {
    let mut totals = Totals::default();
    for shard in metrics.counts.all() {
        totals.connections += shard.connections.get();
        totals.retries += shard.retries.get();
        totals.received += shard.received.get();
        totals.sent = totals.sent.wrapping_add(shard.sent.get());
        for (total, errors) in totals.connect_errors.iter_mut().zip(&shard.connect_errors) {
            *total += errors.get();
        }
    }
    totals.sent = metrics.sent_shown.raise(totals.sent);
    totals
}
