//! The state of everything, as JSON.

use super::{
    format::{SourceFigures, source_text},
    history,
};
use crate::{
    control::{self, State, View},
    plan::{
        Addr, Origin,
        reason::{BackendState, CloseReason, DropReason, Shortage},
    },
    session::service::Service,
    upstream::pool::Pool,
};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    time::{Duration, Instant, SystemTime},
};

#[derive(Debug, Serialize)]
pub(super) struct Status {
    pub(super) process: Process,
    pub(super) listeners: Vec<Listener>,
    pub(super) upstreams: Vec<Upstream>,
}

#[derive(Debug, Serialize)]
pub(super) struct Process {
    pub(super) version: &'static str,
    pub(super) pid: u32,
    pub(super) started: String,
    pub(super) uptime_seconds: u64,
    pub(super) state: &'static str,
    /// What the operator has set for the node: "ready" or "drain".
    pub(super) admin_state: &'static str,
    pub(super) workers: usize,
    /// The hash of the configuration in effect.
    pub(super) config_hash: String,
    pub(super) connections: u64,
    pub(super) max_connections: u64,
    /// UDP flows; both are 0 without a UDP listener.
    pub(super) flows: u64,
    pub(super) max_flows: u64,
    /// How many nodes share the limits below; they are those of this node.
    pub(super) nodes: u32,
    /// The process that this one has replaced, until it has ended.
    pub(super) previous: Option<Previous>,
}

#[derive(Debug, Serialize)]
pub(super) struct Previous {
    pub(super) pid: u32,
    /// When it stopped accepting.
    pub(super) since: String,
    /// What it still carries.
    pub(super) connections: u64,
    pub(super) flows: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct Listener {
    pub(super) name: String,
    pub(super) protocol: &'static str,
    /// The bound addresses, with the number of a port 0.
    pub(super) addresses: Vec<String>,
    pub(super) upstream: String,
    /// Flows, if it is a UDP listener.
    pub(super) connections: u64,
    /// Whether it is not in the configuration any more, and has sessions.
    pub(super) removed: bool,
    /// Those that began before the listener's or its upstream's configuration was last changed.
    pub(super) older_plan: u64,
    pub(super) max_connections: u64,
    pub(super) accepted: u64,
    pub(super) received_bytes: u64,
    pub(super) sent_bytes: u64,
    /// Clients that were refused or got no backend; of UDP the datagrams that were not delivered.
    pub(super) errors_total: u64,
    /// For UDP only.
    #[serde(flatten)]
    pub(super) datagrams: Option<Datagrams>,
}

#[derive(Debug, Serialize)]
pub(super) struct Datagrams {
    pub(super) received_datagrams: u64,
    pub(super) sent_datagrams: u64,
    pub(super) dropped_datagrams: u64,
    /// How many of these by reason; every reason is listed.
    pub(super) dropped_by_reason: BTreeMap<&'static str, u64>,
    /// Flows whose backend owed replies when they had been idle for too long.
    pub(super) unanswered_flows: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct Upstream {
    pub(super) name: String,
    pub(super) balance: &'static str,
    /// Backends that are fit for sessions, full ones included.
    pub(super) available: usize,
    /// Those of them that are full.
    pub(super) full: usize,
    /// Those that are not available, since connects have failed, and that sessions try again.
    pub(super) unproven: usize,
    /// Sessions that wait for a place at a full backend, and for a fit backend.
    pub(super) queued: u64,
    pub(super) held: u64,
    /// Equal on nodes that pick the same backends by key while the same are up; null for policies
    /// without a key.
    pub(super) ring_hash: Option<String>,
    /// The same of the backends that are up now.
    pub(super) effective_hash: Option<String>,
    /// `None`: it has no source of backends.
    pub(super) discovery: Option<Discovery>,
    pub(super) backends: Vec<Backend>,
}

#[derive(Debug, Serialize)]
pub(super) struct Backend {
    pub(super) address: String,
    /// Whether it comes from the source and not from the file.
    pub(super) discovered: bool,
    /// As the source calls it.
    pub(super) name: Option<String>,
    /// What the address stands for now: several for a host name, none if it does not resolve.
    pub(super) resolved: Vec<String>,
    pub(super) state: &'static str,
    pub(super) why: String,
    /// What the operator has set: "ready", "drain" or "maint".
    pub(super) admin_state: &'static str,
    /// Since when; null while it is "ready".
    pub(super) admin_state_since: Option<String>,
    /// When a connect failed last; null: none has.
    pub(super) last_failure: Option<String>,
    /// Until when no session tries it after failed connects; null unless it is "failed".
    pub(super) failed_until: Option<String>,
    /// Since when the admin state, the failure of its connects, or else the verdict of the checks,
    /// is what it is; null before the first change.
    pub(super) since: Option<String>,
    /// How long ago that was.
    pub(super) state_seconds: Option<f64>,
    /// The roles of its addresses, "primary" or "replica"; empty where no check asks for them or no
    /// answer gives them.
    pub(super) role: Vec<&'static str>,
    pub(super) last_check: Option<LastCheck>,
    /// Whether it is checked, and no check of one of its addresses has had a result yet.
    pub(super) awaits_check: bool,
    pub(super) available: bool,
    pub(super) full: bool,
    /// The one in effect.
    pub(super) weight: u32,
    pub(super) weight_in_file: u32,
    /// Since when the weight is the operator's; null: it is that of the file.
    pub(super) weight_since: Option<String>,
    pub(super) backup: bool,
    /// The limit on this node; 0: none.
    pub(super) max_connections: u64,
    /// What `least_time` compares, in seconds; null for other policies.
    pub(super) average_time: Option<f64>,
    pub(super) connections: u64,
    pub(super) connections_total: u64,
    pub(super) connect_errors_total: u64,
    pub(super) received_bytes: u64,
    pub(super) sent_bytes: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct Discovery {
    pub(super) kind: &'static str,
    /// Those that were discovered.
    pub(super) backends: usize,
    /// What the source calls its present state.
    pub(super) version: String,
    /// When the source last answered; null: never.
    pub(super) last_success: Option<String>,
    pub(super) age_seconds: Option<u64>,
    /// Whether the backends are those of an earlier process: the source has not answered since.
    pub(super) is_old: bool,
    /// Why the last question had no answer, and since when there is none; null: there is one.
    pub(super) error: Option<String>,
    pub(super) error_since: Option<String>,
    /// Backends that stay although the source does not name them any more.
    pub(super) held: Vec<Held>,
}

#[derive(Debug, Serialize)]
pub(super) struct Held {
    pub(super) address: String,
    /// "empty", "max_removed", "debounce" or "no_answer".
    pub(super) reason: &'static str,
    /// When it is removed if the source does not name it until then; null: not by time alone.
    pub(super) until: Option<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct LastCheck {
    pub(super) time: String,
    pub(super) result: &'static str,
    pub(super) duration_seconds: f64,
    pub(super) transcript: String,
    /// How far a replica is behind; null where no answer gives it.
    pub(super) lag_seconds: Option<f64>,
    pub(super) lag_bytes: Option<u64>,
}

impl Backend {
    /// Whether no session gets it because no check of it has had a result yet.
    pub(super) fn is_unchecked(&self) -> bool {
        let is_ready = self.admin_state == "ready" && self.state == BackendState::Down.word();
        is_ready && self.awaits_check && !self.available
    }
}

pub(super) fn of(state: &State) -> Status {
    let view = state.view();
    let sessions = &state.process.sessions;
    let uptime = state.started.elapsed().unwrap_or_default();
    Status {
        process: Process {
            version: env!("CARGO_PKG_VERSION"),
            pid: std::process::id(),
            started: time(state.started),
            uptime_seconds: uptime.as_secs(),
            state: if state.is_draining() {
                "draining"
            } else if state.is_starting() {
                "starting"
            } else {
                "running"
            },
            admin_state: state.node_admin_state().word(),
            workers: state.workers,
            config_hash: view.hash.clone(),
            connections: sessions.connections().count(),
            max_connections: sessions.connections().most(),
            flows: sessions.flows().count(),
            max_flows: sessions.flows().most(),
            nodes: view.plan.process.nodes,
            previous: state.previous().map(|previous| Previous {
                pid: previous.pid,
                since: time(previous.since),
                connections: previous.sessions,
                flows: previous.flows,
            }),
        },
        listeners: listeners(&view),
        upstreams: view
            .pools()
            .filter_map(|pool| upstream(pool, view.discovery(&pool.name)))
            .collect(),
    }
}

impl Discovery {
    pub(super) fn text(&self) -> String {
        source_text(&SourceFigures {
            kind: self.kind,
            backends: self.backends as u64,
            version: &self.version,
            age_seconds: self.age_seconds,
            is_old: self.is_old,
            error: self.error.as_deref(),
            held: self
                .held
                .iter()
                .map(|held| (held.address.as_str(), held.until.as_deref())),
        })
    }
}

/// Those of the plan, then those that were removed and have sessions.
fn listeners(view: &View) -> Vec<Listener> {
    let listed = view.listeners.iter();
    let listed = listed.map(|l| listener(&l.service, &l.addresses, false));
    let removed = view.removed_services();
    listed
        .chain(removed.map(|service| listener(service, &[], true)))
        .collect()
}

fn listener(service: &Service, addresses: &[Addr], removed: bool) -> Listener {
    let counts = &service.metrics.counts;
    Listener {
        name: service.plan.name.clone(),
        protocol: service.protocol(),
        addresses: addresses.iter().map(ToString::to_string).collect(),
        upstream: service.plan.upstream.clone(),
        connections: service.metrics.active(),
        removed,
        older_plan: service.sessions_of_older_plans(),
        max_connections: service.plan.max_connections,
        accepted: counts.sum(|c| &c.connections),
        received_bytes: counts.sum(|c| &c.received),
        sent_bytes: counts.sum(|c| &c.sent),
        errors_total: history::errors(service),
        datagrams: service.is_udp().then(|| datagrams(service)),
    }
}

fn datagrams(service: &Service) -> Datagrams {
    let counts = &service.metrics.counts;
    let dropped = |reason: DropReason| counts.sum(|c| &c.dropped_datagrams[reason as usize]);
    let by_reason: BTreeMap<_, _> = DropReason::ALL
        .iter()
        .map(|&reason| (reason.word(), dropped(reason)))
        .collect();
    Datagrams {
        received_datagrams: counts.sum(|c| &c.received_datagrams),
        sent_datagrams: counts.sum(|c| &c.sent_datagrams),
        dropped_datagrams: by_reason.values().sum(),
        dropped_by_reason: by_reason,
        unanswered_flows: counts.sum(|c| &c.closed[CloseReason::ResponseTimeout as usize]),
    }
}

/// `None`: it was removed, and no session is left.
fn upstream(pool: &Pool, discovery: Option<&control::Discovery>) -> Option<Upstream> {
    let now = Instant::now();
    let snapshots = pool.snapshot(now);
    if snapshots.is_empty() && discovery.is_none() {
        return None;
    }
    let waiting = pool.waiting();
    let hashes = pool.pick_hashes(now).map(|h| (h.ring, h.effective));
    let (ring_hash, effective_hash) = hashes.unzip();
    Some(Upstream {
        ring_hash,
        effective_hash,
        discovery: discovery.map(|of| source(of, now)),
        queued: waiting[Shortage::Full as usize],
        held: waiting[Shortage::NoneFit as usize],
        name: pool.name.to_string(),
        balance: pool.balance().word(),
        available: snapshots.iter().filter(|b| b.available).count(),
        full: snapshots.iter().filter(|b| b.full).count(),
        unproven: snapshots
            .iter()
            .filter(|b| b.state == BackendState::Unproven && !b.available)
            .count(),
        backends: snapshots
            .into_iter()
            .map(|b| {
                let counts = &b.metrics.counts;
                Backend {
                    address: b.metrics.text.to_string(),
                    discovered: b.origin.is_discovered(),
                    name: match b.origin {
                        Origin::Discovered { name, .. } => name,
                        Origin::Configured => None,
                    },
                    resolved: b.addresses.iter().map(ToString::to_string).collect(),
                    state: b.state.word(),
                    why: b.why,
                    admin_state: b.admin_state.word(),
                    admin_state_since: b.admin_since.map(|at| time(wall(at, now))),
                    last_failure: b.last_failure.map(|at| time(wall(at, now))),
                    failed_until: b.failed_until.map(|at| time(wall_ahead(at, now))),
                    since: b.since.map(|at| time(wall(at, now))),
                    state_seconds: b
                        .since
                        .map(|at| control::journal::seconds(now.saturating_duration_since(at))),
                    role: b.roles.iter().flatten().map(|role| role.word()).collect(),
                    last_check: b.checked.map(|c| LastCheck {
                        time: time(wall(c.at, now)),
                        result: c.result.word(),
                        duration_seconds: c.took.as_secs_f64(),
                        transcript: c.transcript,
                        lag_seconds: c.finding.lag.time.map(|time| time.as_secs_f64()),
                        lag_bytes: c.finding.lag.bytes,
                    }),
                    awaits_check: b.awaits_check,
                    available: b.available,
                    full: b.full,
                    weight: b.weight,
                    weight_in_file: b.weight_in_file,
                    weight_since: b.weight_since.map(|at| time(wall(at, now))),
                    backup: b.backup,
                    max_connections: b.max_connections,
                    average_time: b.average_time,
                    connections: b.metrics.active(),
                    connections_total: counts.sum(|c| &c.connections),
                    connect_errors_total: crate::plan::reason::ConnectError::ALL
                        .iter()
                        .map(|&e| counts.sum(|c| &c.connect_errors[e as usize]))
                        .sum(),
                    received_bytes: counts.sum(|c| &c.received),
                    sent_bytes: counts.sum(|c| &c.sent),
                }
            })
            .collect(),
    })
}

fn source(discovery: &control::Discovery, now: Instant) -> Discovery {
    let status = discovery.status(now);
    let (error, error_since) = status.error.unzip();
    Discovery {
        kind: status.kind,
        backends: status.backends,
        version: status.version,
        last_success: status.last_success.map(time),
        age_seconds: status.last_success.map(|at| {
            let age = at.elapsed().unwrap_or_default();
            age.as_secs()
        }),
        is_old: status.is_old,
        error,
        error_since: error_since.map(time),
        held: status
            .held
            .into_iter()
            .map(|held| Held {
                address: held.address,
                reason: held.reason,
                until: held.until.map(time),
            })
            .collect(),
    }
}

fn wall(at: Instant, now: Instant) -> SystemTime {
    let ago: Duration = now.saturating_duration_since(at);
    SystemTime::now() - ago
}

/// Of a time that lies ahead.
fn wall_ahead(at: Instant, now: Instant) -> SystemTime {
    SystemTime::now() + at.saturating_duration_since(now)
}

fn time(at: SystemTime) -> String {
    humantime::format_rfc3339_millis(at).to_string()
}
