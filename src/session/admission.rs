//! Admission: whether a connection or a flow is let in, and the permits that it then holds.
//!
//! The limits are asked in one order, from the narrowest to the widest: access rules, source,
//! listener, process, descriptors. A client that a narrow limit refuses never holds, not even for a
//! moment, the last permit of a wide one.

use crate::{
    plan::{Protocol, access, reason::RejectReason},
    runtime::net::Client,
    session::{
        registry::{Arrival, Kind, Session, take_below},
        service::Service,
        sockets::{SocketPermit, Sockets},
    },
};
use std::{
    net::IpAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
};

/// What a session holds of every limit; dropping it gives all of that back, and takes the session
/// out of the registry.
pub struct Permits {
    service: Arc<Service>,
    session: Arc<Session>,
    /// Whether it counts for the limit of the listener, and for that of its source.
    holds_listener: bool,
    holds_source: bool,
}

/// Whether a limit refuses, or is exceeded because another session is about to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    Enforced,
    Exceeded,
}

/// Admits a connection. Where a PROXY protocol header will name the client, the access rules are
/// asked after it, by [`check_access`].
pub fn admit_connection(service: &Arc<Service>, arrival: Arrival) -> Result<Permits, RejectReason> {
    if !service.trusts(arrival.peer) {
        check_access(service, arrival.peer)?;
    }
    take_permits(service, arrival, Kind::Connection, Limit::Enforced)
}

/// Admits a flow, and gives the permit for its socket apart: the socket may outlive the flow.
pub fn admit_flow(
    service: &Arc<Service>,
    arrival: Arrival,
    for_listener: Limit,
    sockets: &Arc<Sockets>,
    for_socket: Limit,
) -> Result<(Permits, SocketPermit), RejectReason> {
    check_access(service, arrival.client())?;
    let permits = take_permits(service, arrival, Kind::Flow, for_listener)?;
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
    let max_per_source = max_per_source(service);
    service.metrics.active() < max_of_listener(service)
        && flows.count() < flows.most()
        && client.ip().is_none_or(|source| {
            max_per_source == 0 || service.per_source.is_below(max_per_source, source)
        })
}

pub fn check_access(service: &Service, client: Client) -> Result<(), RejectReason> {
    match access::allows(&service.plan.access, client.ip()) {
        true => Ok(()),
        false => Err(RejectReason::Access),
    }
}

fn take_permits(
    service: &Arc<Service>,
    arrival: Arrival,
    kind: Kind,
    for_listener: Limit,
) -> Result<Permits, RejectReason> {
    let source = take_source(service, arrival.client())?;
    let session = enter_listener(service, arrival, kind, for_listener);
    if let (Err(_), Some(source)) = (&session, source) {
        service.per_source.give_back(source);
    }
    Ok(Permits {
        service: Arc::clone(service),
        session: session?,
        holds_listener: true,
        holds_source: source.is_some(),
    })
}

/// The address that the session is counted for; `None` where sources have no limit.
fn take_source(service: &Service, client: Client) -> Result<Option<IpAddr>, RejectReason> {
    let max = max_per_source(service);
    let source = client.ip().filter(|_| max > 0);
    if source.is_some_and(|source| !service.per_source.take(max, source)) {
        return Err(RejectReason::MaxFlowsPerSource);
    }
    Ok(source)
}

fn enter_listener(
    service: &Service,
    arrival: Arrival,
    kind: Kind,
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
    let session = service.process.sessions.add(arrival, kind);
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

/// 0: no limit.
fn max_per_source(service: &Service) -> u64 {
    match service.plan.protocol {
        Protocol::Udp(udp) => udp.max_flows_per_source,
        Protocol::Tcp => 0,
    }
}

impl Permits {
    pub fn service(&self) -> &Arc<Service> {
        &self.service
    }

    pub fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// Gives everything back; what the session was is still to be logged.
    pub fn release(self) -> (Arc<Service>, Arc<Session>) {
        (Arc::clone(&self.service), Arc::clone(&self.session))
    }

    /// Makes room for the next session of the listener, and of the source; the process still counts
    /// this one.
    pub fn release_listener(&mut self) {
        if std::mem::take(&mut self.holds_listener) {
            self.service.metrics.active.fetch_sub(1, Relaxed);
        }
        if std::mem::take(&mut self.holds_source)
            && let Some(source) = self.session.client().ip()
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
