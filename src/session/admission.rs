//! Admission: whether a connection or a flow is let in, and the permits that it then holds.
//!
//! The limits are asked in one order, from the narrowest to the widest: access rules, source,
//! listener, process, descriptors. A client that a narrow limit refuses never holds, not even for a
//! moment, the last permit of a wide one.

use crate::{
    plan::{
        Source, access,
        reason::{LimitKind, OverLimit, RejectReason},
    },
    runtime::net::Client,
    session::{
        bandwidth::SessionBandwidth,
        rate::{Delay, RateRequest},
        registry::{Arrival, Continued, Session, take_below},
        service::Service,
        sockets::{FlowSockets, SocketPermit},
    },
};
use std::{
    cell::Cell,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Instant,
};

/// What a session holds of every limit; dropping it gives all of that back, and takes the session
/// out of the registry.
pub struct Permits {
    service: Arc<Service>,
    session: Arc<Session>,
    /// Whether it counts for the limit of the listener, and for that of its source.
    holds_listener: Cell<bool>,
    holds_source: Cell<bool>,
}

/// Whether a limit refuses, or is exceeded because another session is about to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    Enforced,
    Exceeded,
}

/// Admits a connection. Where a PROXY protocol header will name the client, what concerns the
/// client is asked after it, by [`admit_named`].
pub fn admit_connection(service: &Arc<Service>, arrival: Arrival) -> Result<Permits, RejectReason> {
    if service.trusts(arrival.peer) {
        return take_permits(service, arrival, None, Limit::Enforced);
    }
    check_access(service, arrival.peer)?;
    let source = take_source(service, arrival.peer)?;
    let permits = take_permits(service, arrival, source, Limit::Enforced)?;
    check_rate(service, arrival.peer, arrival.at)?;
    Ok(permits)
}

/// Admits the client that the header of an admitted connection has named.
pub fn admit_named(permits: &Permits) -> Result<(), RejectReason> {
    let (service, client) = (&permits.service, permits.session.client());
    check_access(service, client)?;
    permits
        .holds_source
        .set(take_source(service, client)?.is_some());
    check_rate(service, client, Instant::now())
}

/// Takes what the limits of the rate allow, where clients over it are refused.
fn check_rate(service: &Service, client: Client, now: Instant) -> Result<(), RejectReason> {
    match service.plan.limits.refuses_over_rate() {
        true => (service.rates).admit(beginning(service, client, now), &service.metrics),
        false => Ok(()),
    }
}

/// The same where clients over it are delayed: how long this one has to wait, if it has to.
pub fn delay(permits: &Permits, now: Instant) -> Result<Option<Delay>, RejectReason> {
    let service = &permits.service;
    if !service.plan.limits.delays_over_rate() {
        return Ok(None);
    }
    let beginning = beginning(service, permits.session.client(), now);
    service.rates.admit_later(beginning, &service.metrics)
}

fn beginning(service: &Service, client: Client, now: Instant) -> RateRequest<'_> {
    let limits = &service.plan.limits;
    let ip = client.ip();
    let ip = ip.filter(|_| limits.connection_rate_per_source.is_limit());
    RateRequest {
        limits,
        source: ip.map(|ip| Source::of(ip, limits.source_prefix)),
        now,
    }
}

/// How many bytes the session may carry in a time; `None`: any number.
pub fn bandwidth(permits: &Permits, now: Instant) -> Option<SessionBandwidth> {
    let service = &permits.service;
    let limits = &service.plan.limits;
    let ip = permits.session.client().ip();
    let source = ip.map(|ip| Source::of(ip, limits.source_prefix));
    SessionBandwidth::begin(&service.bandwidth, limits, source, now)
}

/// Asks for a flow what concerns its client and the rate. What it takes is given back by
/// [`give_back_rate`] if the flow is refused for another reason.
pub fn admit_client_of_flow(service: &Service, arrival: &Arrival) -> Result<(), RejectReason> {
    check_access(service, arrival.client())?;
    check_rate(service, arrival.client(), arrival.at)
}

pub fn give_back_rate(service: &Service, arrival: &Arrival) {
    if service.plan.limits.refuses_over_rate() {
        let beginning = beginning(service, arrival.client(), arrival.at);
        service.rates.give_back(beginning);
    }
}

/// Admits a connection that another process has relayed so far, whatever the limits are.
pub fn admit_continued(service: &Arc<Service>, continued: &Continued, arrival: Arrival) -> Permits {
    let source = limited_source(service, arrival.client());
    if let Some(source) = source {
        service.per_source.take(u64::MAX, source);
    }
    service.metrics.active.fetch_add(1, Relaxed);
    let sessions = &service.process.sessions;
    Permits {
        session: sessions.go_on_with(continued, arrival, &service.origin),
        service: Arc::clone(service),
        holds_listener: Cell::new(true),
        holds_source: Cell::new(source.is_some()),
    }
}

/// Admits a flow that another process has relayed so far, whatever the limits are.
pub fn admit_continued_flow(
    service: &Arc<Service>,
    continued: &Continued,
    arrival: Arrival,
    sockets: &Arc<FlowSockets>,
) -> (Permits, SocketPermit) {
    let permits = admit_continued(service, continued, arrival);
    (permits, sockets.take_anyway())
}

/// Admits a flow, and gives the permit for its socket apart: the socket may outlive the flow.
pub fn admit_flow(
    service: &Arc<Service>,
    arrival: Arrival,
    for_listener: Limit,
    sockets: &Arc<FlowSockets>,
    for_socket: Limit,
) -> Result<(Permits, SocketPermit), RejectReason> {
    check_access(service, arrival.client())?;
    let source = take_source(service, arrival.client())?;
    let permits = take_permits(service, arrival, source, for_listener)?;
    let socket = match for_socket {
        Limit::Enforced => sockets.take().ok_or(RejectReason::NoPorts)?,
        Limit::Exceeded => sockets.take_anyway(),
    };
    Ok((permits, socket))
}

/// Whether one more flow of this client would be admitted now, as far as the limits of its source,
/// the listener and the process are concerned.
pub fn has_room_for_flow(service: &Service, client: Client) -> bool {
    let flows = service.process.sessions.flows();
    let limits = &service.plan.limits;
    let max = limits.max_connections_per_source;
    service.metrics.active() < max_of_listener(service)
        && flows.count() < flows.most()
        && (limits.dry_run
            || limited_source(service, client)
                .is_none_or(|source| service.per_source.is_below(max, source)))
}

pub fn check_access(service: &Service, client: Client) -> Result<(), RejectReason> {
    match access::allows(&service.plan.access, client.ip()) {
        true => Ok(()),
        false => Err(RejectReason::Access),
    }
}

/// `source`: what was taken of the limit of each source.
fn take_permits(
    service: &Arc<Service>,
    arrival: Arrival,
    source: Option<Source>,
    for_listener: Limit,
) -> Result<Permits, RejectReason> {
    let session = enter_listener(service, arrival, for_listener);
    if let (Err(_), Some(source)) = (&session, source) {
        service.per_source.give_back(source);
    }
    Ok(Permits {
        service: Arc::clone(service),
        session: session?,
        holds_listener: Cell::new(true),
        holds_source: Cell::new(source.is_some()),
    })
}

/// Takes a permit of the source; returns `None` where sources have no limit.
fn take_source(service: &Service, client: Client) -> Result<Option<Source>, RejectReason> {
    let limits = &service.plan.limits;
    let Some(source) = limited_source(service, client) else {
        return Ok(None);
    };
    let max = limits.max_connections_per_source;
    if !service.per_source.take(max, source) {
        if !limits.dry_run {
            return Err(RejectReason::MaxConnectionsPerSource);
        }
        let limit = LimitKind::MaxConnectionsPerSource;
        service.metrics.over_limit(limit, OverLimit::Passed);
        service.per_source.take(u64::MAX, source);
    }
    Ok(Some(source))
}

/// What the sessions of this client are counted for, if they are.
fn limited_source(service: &Service, client: Client) -> Option<Source> {
    let limits = &service.plan.limits;
    let ip = client
        .ip()
        .filter(|_| limits.max_connections_per_source > 0);
    ip.map(|ip| Source::of(ip, limits.source_prefix))
}

fn enter_listener(
    service: &Service,
    arrival: Arrival,
    limit: Limit,
) -> Result<Arc<Session>, RejectReason> {
    let active = &service.metrics.active;
    let max = match limit {
        Limit::Enforced => max_of_listener(service),
        Limit::Exceeded => u64::MAX,
    };
    if !take_below(active, max) {
        return Err(RejectReason::MaxConnections);
    }
    let session = service.process.sessions.add(arrival, &service.origin);
    if session.is_err() {
        active.fetch_sub(1, Relaxed);
    }
    session
}

fn max_of_listener(service: &Service) -> u64 {
    match service.plan.max_connections {
        0 => u64::MAX,
        max => max,
    }
}

impl Permits {
    pub fn service(&self) -> &Arc<Service> {
        &self.service
    }

    pub fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// When the session began.
    pub fn began_at(&self) -> Instant {
        self.service.process.sessions.began_at(&self.session)
    }

    /// Gives everything back; what the session was is still to be logged.
    pub fn release(self) -> (Arc<Service>, Arc<Session>) {
        (Arc::clone(&self.service), Arc::clone(&self.session))
    }

    /// Frees a permit of the listener, and of the source, for the next session; the process still
    /// counts this one.
    pub fn release_listener(&self) {
        if self.holds_listener.take() {
            self.service.metrics.active.fetch_sub(1, Relaxed);
        }
        if self.holds_source.take()
            && let Some(source) = limited_source(&self.service, self.session.client())
        {
            self.service.per_source.give_back(source);
        }
    }
}

impl Drop for Permits {
    fn drop(&mut self) {
        self.release_listener();
        self.service.process.sessions.remove(&self.session);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config, plan,
        session::{
            bandwidth::BandwidthLimits,
            registry::{Descriptors, Sessions},
            service::{self, Notices, ProcessContext},
        },
        telemetry::metrics::Exporter,
        upstream::pool::tests::of,
    };

    /// A listener with these keys, in a process that may have one connection and one flow.
    fn service(keys: &str) -> (Arc<Service>, Arc<FlowSockets>) {
        let text = format!(
            "[listeners.l]\nbind = \"127.0.0.1:1\"\nupstream = \"u\"\n{keys}\n[upstreams.u]\n\
             backends = [\"127.0.0.1:2\"]\n"
        );
        let plan = config::parse(&text, "test.toml").expect("a valid plan");
        let descriptors = Arc::new(Descriptors::new(2, 1, 0));
        let (exporter, now) = (Exporter::new(1), Instant::now());
        let pool = Arc::new(of(&plan.upstreams[0], now));
        let metrics = exporter.listener("l");
        let service = Service {
            plan: plan.listeners[0].clone(),
            bandwidth: Arc::new(BandwidthLimits::new(Arc::clone(&metrics))),
            metrics,
            per_source: Arc::default(),
            rates: Arc::default(),
            origin: service::origin(&plan.listeners[0], &pool),
            pool,
            process: Arc::new(ProcessContext {
                metrics: Arc::new(exporter.process()),
                sessions: Arc::new(Sessions::new(1, 1, 1, &descriptors, now)),
                access_logs: Arc::default(),
            }),
            access_log: None,
            send_proxy: plan::SendProxy::Off,
            send_proxy_on: plan::ProxyOn::First,
            notices: Arc::new(Notices::new(now)),
            accepting: Arc::default(),
            intake: Arc::default(),
        };
        (Arc::new(service), FlowSockets::new(9, &descriptors))
    }

    fn from(address: [u8; 4]) -> Arrival {
        Arrival {
            peer: Client::Ip((address, 1).into()),
            named: None,
            server_port: Some(1),
            at: Instant::now(),
        }
    }

    #[test]
    fn limits_are_asked_from_the_narrowest_to_the_widest() {
        let keys = "protocol = \"udp\"\nmax_connections = 1\nmax_connections_per_source = 1\n\
                    access = [\"deny 10.0.0.9\"]";
        let (service, sockets) = service(keys);
        let admit = |address| {
            admit_flow(
                &service,
                address,
                Limit::Enforced,
                &sockets,
                Limit::Enforced,
            )
        };
        let refused = |address| admit(from(address)).err();
        let (permits, socket) = admit(from([10, 0, 0, 1])).expect("a permit");
        assert_eq!(refused([10, 0, 0, 9]), Some(RejectReason::Access));
        assert_eq!(
            refused([10, 0, 0, 1]),
            Some(RejectReason::MaxConnectionsPerSource)
        );
        assert_eq!(refused([10, 0, 0, 2]), Some(RejectReason::MaxConnections));
        permits.release_listener();
        assert_eq!(refused([10, 0, 0, 1]), Some(RejectReason::ProcessMaxFlows));
        drop(permits);
        assert_eq!(refused([10, 0, 0, 1]), Some(RejectReason::NoPorts));
        drop(socket);
        // Refusals have left nothing behind.
        assert_eq!(service.metrics.active(), 0);
        assert_eq!(service.process.sessions.count(), 0);
        assert!(has_room_for_flow(&service, from([10, 0, 0, 1]).peer));
        assert!(admit(from([10, 0, 0, 1])).is_ok());
    }

    #[test]
    fn a_limit_may_be_exceeded_for_a_session_that_replaces_another() {
        let (service, sockets) = service("protocol = \"udp\"\nmax_connections = 1");
        let first = admit_flow(
            &service,
            from([10, 0, 0, 1]),
            Limit::Enforced,
            &sockets,
            Limit::Enforced,
        );
        assert!(first.is_ok());
        // The process has a limit of its own, which is never exceeded.
        let second = admit_flow(
            &service,
            from([10, 0, 0, 2]),
            Limit::Exceeded,
            &sockets,
            Limit::Exceeded,
        );
        assert_eq!(second.err(), Some(RejectReason::ProcessMaxFlows));
        assert_eq!(service.metrics.active(), 1);
    }

    #[test]
    fn a_connection_has_the_permits_of_its_listener_and_the_process() {
        let (service, _) = service("max_connections = 1\naccess = [\"deny 10.0.0.9\"]");
        let permits = admit_connection(&service, from([10, 0, 0, 1])).expect("a permit");
        let refused = |address| admit_connection(&service, from(address)).err();
        assert_eq!(refused([10, 0, 0, 9]), Some(RejectReason::Access));
        assert_eq!(refused([10, 0, 0, 1]), Some(RejectReason::MaxConnections));
        let (_, session) = permits.release();
        assert_eq!(session.client(), from([10, 0, 0, 1]).peer);
        assert_eq!(refused([10, 0, 0, 2]), None);
        assert_eq!(
            (service.metrics.active(), service.process.sessions.count()),
            (0, 0)
        );
    }

    /// The access rules are for the client that its header names.
    #[test]
    fn a_trusted_peer_is_admitted_before_its_header_is_read() {
        let keys = "accept_proxy = { trust = [\"10.0.0.9\"] }\naccess = [\"deny 10.0.0.0/8\"]";
        let (service, _) = service(keys);
        assert!(admit_connection(&service, from([10, 0, 0, 9])).is_ok());
        let refused = admit_connection(&service, from([10, 0, 0, 1])).err();
        assert_eq!(refused, Some(RejectReason::Access));
        let named = check_access(&service, from([10, 0, 0, 2]).peer);
        assert_eq!(named, Err(RejectReason::Access));
    }
}
