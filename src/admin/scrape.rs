//! What `/metrics` answers.

use crate::{
    control::{Discovery, State, UpdateResult},
    plan::reason::Shortage,
    session::registry::SessionBudget,
    telemetry::metrics::{
        self, BackendFigures, Figures, ListenerFigures, ReloadFigures, SessionFigures,
        SourceFigures, UpstreamFigures, UpstreamMetrics,
    },
    upstream::pool::{EndpointSnapshot, Pool},
};
use hyper::body::Bytes;
use std::time::{Instant, SystemTime};

/// The text of a scrape, in pieces.
pub fn scrape(state: &State) -> Vec<Bytes> {
    let now = Instant::now();
    let view = state.view();
    let mut figures = Figures {
        listeners: Vec::with_capacity(view.listeners.len()),
        upstreams: Vec::with_capacity(view.pools().count()),
        backends: Vec::new(),
        sources: Vec::new(),
        process: &state.process.metrics,
        connections: sessions(state.process.sessions.connections()),
        flows: sessions(state.process.sessions.flows()),
        access_log_dropped: state.process.access_logs.dropped(),
        config_hash: &view.hash,
        last_reload: state.reloads.last().map(|last| ReloadFigures {
            is_successful: last.is_successful,
            last_success: last.last_success.map(seconds),
        }),
        longest_pause: view.longest_pause().as_secs_f64(),
    };
    for service in view.services().chain(view.removed_services()) {
        figures.listeners.push(ListenerFigures {
            metrics: &service.metrics,
            is_udp: service.is_udp(),
            max_connections: service.plan.max_connections,
        });
    }
    for pool in view.pools() {
        let backends = pool.snapshot(now);
        let discovery = view.discovery(&pool.name);
        // A removed upstream, without sessions by now.
        if backends.is_empty() && discovery.is_none() {
            continue;
        }
        figures
            .sources
            .extend(discovery.map(|of| source(of, &pool.metrics, now)));
        let available = backends.iter().filter(|b| b.available).count();
        let full = backends.iter().filter(|b| b.full).count();
        let guarded = pool.guarded(now);
        figures.upstreams.push(UpstreamFigures {
            metrics: &pool.metrics,
            available: available as u64,
            full: full as u64,
            waiting: waiting(pool),
            most_waiting: [Shortage::Full, Shortage::NoneFit].map(|lacks| pool.waits.most(lacks)),
            primaries: guarded.primaries.map(|n| n as u64),
            in_panic: guarded.in_panic,
            in_role_fallback: guarded.in_role_fallback,
            pick_hashes: pool.pick_hashes(now).map(|h| [h.ring, h.effective]),
        });
        figures.backends.extend(backends.into_iter().map(backend));
    }
    metrics::render(&figures)
}

fn sessions(budget: &SessionBudget) -> SessionFigures {
    SessionFigures {
        active: budget.count(),
        most: budget.most(),
    }
}

fn source<'a>(
    discovery: &Discovery,
    metrics: &'a UpstreamMetrics,
    now: Instant,
) -> SourceFigures<'a> {
    let status = discovery.status(now);
    let updates = UpdateResult::ALL.iter();
    SourceFigures {
        metrics,
        backends: status.backends as u64,
        held: status.held.len() as u64,
        last_success: status.last_success.map(seconds),
        updates: updates
            .map(|&result| (result.word(), discovery.updates(result)))
            .collect(),
    }
}

/// Sessions that wait for a backend, by what they lack; `None` where none may wait for that.
pub(super) fn waiting(pool: &Pool) -> [Option<u64>; Shortage::COUNT] {
    let waiting = pool.waiting();
    let of = |lacks: Shortage| {
        let count = waiting[lacks as usize];
        let may_wait = !pool.waits.limit(lacks).is_zero();
        Some(count).filter(|count| may_wait || *count > 0)
    };
    [Shortage::Full, Shortage::NoneFit].map(of)
}

/// The seconds since 1970.
fn seconds(at: SystemTime) -> f64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_secs_f64()
}

fn backend(backend: EndpointSnapshot) -> BackendFigures {
    let lag = backend.checked.as_ref().map(|c| c.finding.lag);
    #[expect(clippy::cast_precision_loss, reason = "a lag below 2^53 bytes")]
    let lag = lag.map(|lag| {
        [
            lag.time.map(|time| time.as_secs_f64()),
            lag.bytes.map(|bytes| bytes as f64),
        ]
    });
    // Each address has the limit for itself.
    let addresses = backend.addresses.len().max(1) as u64;
    let max_connections = backend.max_connections * addresses;
    let mut figures = BackendFigures::new(
        &backend.metrics,
        backend.state,
        backend.weight,
        backend.roles,
        lag.unwrap_or_default(),
    );
    figures.max_connections = max_connections;
    figures
}
