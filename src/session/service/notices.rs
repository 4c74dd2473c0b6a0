//! Log lines about clients and datagrams that a listener does not serve: the first event of a
//! kind at once, those that follow in one line each period, with their count.

use super::Service;
use crate::{
    plan::reason::{CloseReason, ConnectError, DropReason, RejectReason},
    telemetry::throttle::{Events, Throttle},
};
use std::{fmt::Display, io, time::Instant};

/// Limits the lines of one listener.
#[derive(Debug)]
pub struct Notices {
    rejected: Throttle<{ RejectReason::COUNT }>,
    unserved: Throttle<{ CloseReason::COUNT }>,
    dropped: Throttle<{ DropReason::COUNT }>,
    calls: Throttle<{ Call::ALL.len() }>,
}

/// A system call of a listener that failed and is repeated later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    Accept,
    Receive,
    /// Adding the socket of a new flow to the event loop.
    Register,
}

type Detail<'a> = Option<&'a dyn Display>;

impl Notices {
    pub fn new(now: Instant) -> Self {
        Self {
            rejected: Throttle::new(now),
            unserved: Throttle::new(now),
            dropped: Throttle::new(now),
            calls: Throttle::new(now),
        }
    }
}

impl Call {
    const ALL: [Self; 3] = [Self::Accept, Self::Receive, Self::Register];

    fn message(self) -> &'static str {
        match self {
            Self::Accept => "cannot accept, waiting",
            Self::Receive => "cannot receive",
            Self::Register => "cannot wait for replies",
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Receive => "receive",
            Self::Register => "epoll_ctl",
        }
    }
}

impl Service {
    /// Logs that a connection or a flow was refused.
    pub fn log_rejection(
        &self,
        reason: RejectReason,
        client: &dyn Display,
        error: Detail<'_>,
        now: Instant,
    ) {
        let count = self.notices.rejected.add(reason as usize, 1, now);
        match (severity_of_rejection(reason), count) {
            (Severity::Info | Severity::Warning, Some(count)) => {
                self.write_rejection(reason, Some(client), error, Events::now(count));
            }
            (Severity::None, _) | (_, None) => {
                tracing::debug!(listener = %self.plan.name, reason = reason.word(),
                    client = %client, error = error.map(tracing::field::display), "client refused");
            }
        }
    }

    fn write_rejection(
        &self,
        reason: RejectReason,
        client: Detail<'_>,
        error: Detail<'_>,
        events: Events,
    ) {
        let (listener, limit) = (&self.plan.name, self.limit_behind(reason));
        let client = client.map(tracing::field::display);
        let error = error.map(tracing::field::display);
        let word = reason.word();
        match severity_of_rejection(reason) {
            Severity::None => {}
            Severity::Info => {
                tracing::info!(%listener, reason = word, client, count = events.count,
                    last_seconds_ago = events.seconds_ago(), "client refused");
            }
            Severity::Warning => tracing::warn!(%listener, reason = word, limit, client, error,
                count = events.count, last_seconds_ago = events.seconds_ago(), "client refused"),
        }
    }

    fn limit_behind(&self, reason: RejectReason) -> Option<u64> {
        let sessions = &self.process.sessions;
        match reason {
            RejectReason::MaxConnections => Some(self.plan.max_connections),
            RejectReason::ProcessMaxConnections => Some(sessions.connections().most()),
            RejectReason::ProcessMaxFlows => Some(sessions.flows().most()),
            RejectReason::MaxConnectionsPerSource => {
                Some(self.plan.limits.max_connections_per_source)
            }
            RejectReason::ConnectionRate => {
                Some(self.plan.limits.connection_rate.connections.into())
            }
            RejectReason::ConnectionRatePerSource => Some(
                self.plan
                    .limits
                    .connection_rate_per_source
                    .connections
                    .into(),
            ),
            RejectReason::Access
            | RejectReason::NoPorts
            | RejectReason::NoDescriptors
            | RejectReason::ProxyHeader
            | RejectReason::ProxyEnded
            | RejectReason::ProxyTimeout
            | RejectReason::Drained => None,
        }
    }

    /// Logs the end of a session whose client was admitted and got no backend; other ends are no
    /// reason for a line. `error`: of the backend that was tried last.
    pub fn log_unserved(
        &self,
        reason: CloseReason,
        client: &dyn Display,
        error: Option<ConnectError>,
        now: Instant,
    ) {
        if unserved_message(reason).is_none() {
            return;
        }
        match self.notices.unserved.add(reason as usize, 1, now) {
            Some(count) => self.write_unserved(reason, Some(client), error, Events::now(count)),
            None => tracing::debug!(listener = %self.plan.name, reason = reason.word(),
                client = %client, "client not served"),
        }
    }

    fn write_unserved(
        &self,
        reason: CloseReason,
        client: Detail<'_>,
        error: Option<ConnectError>,
        events: Events,
    ) {
        if let Some(message) = unserved_message(reason) {
            tracing::warn!(listener = %self.plan.name, upstream = %self.pool.name,
                reason = reason.word(), client = client.map(tracing::field::display),
                error = error.map(ConnectError::word), count = events.count,
                last_seconds_ago = events.seconds_ago(), "{message}");
        }
    }

    /// Counts datagrams that are not passed on, and logs them.
    pub fn drop_datagrams(
        &self,
        reason: DropReason,
        datagrams: u64,
        error: Option<&io::Error>,
        now: Instant,
    ) {
        if datagrams == 0 {
            return;
        }
        self.metrics.dropped(reason, datagrams);
        if severity_of_drop(reason) == Severity::None {
            return;
        }
        match self.notices.dropped.add(reason as usize, datagrams, now) {
            Some(count) => self.write_dropped(reason, error, Events::now(count)),
            None => tracing::debug!(listener = %self.plan.name, reason = reason.word(), datagrams,
                error = error.map(tracing::field::display), "datagrams dropped"),
        }
    }

    fn write_dropped(&self, reason: DropReason, error: Option<&io::Error>, events: Events) {
        let (listener, word) = (&self.plan.name, reason.word());
        let error = error.map(tracing::field::display);
        match severity_of_drop(reason) {
            Severity::None => {}
            Severity::Info => {
                tracing::info!(%listener, reason = word, count = events.count,
                    last_seconds_ago = events.seconds_ago(), "datagrams dropped");
            }
            Severity::Warning => {
                tracing::warn!(%listener, reason = word, error, count = events.count,
                    last_seconds_ago = events.seconds_ago(), "datagrams dropped");
            }
        }
    }

    pub fn log_failed_call(&self, call: Call, error: &io::Error, now: Instant) {
        match self.notices.calls.add(call as usize, 1, now) {
            Some(count) => self.write_failed_call(call, Some(error), Events::now(count)),
            None => tracing::debug!(listener = %self.plan.name, call = call.word(), %error,
                "system call failed"),
        }
    }

    fn write_failed_call(&self, call: Call, error: Option<&io::Error>, events: Events) {
        let message = call.message();
        tracing::warn!(listener = %self.plan.name, call = call.word(),
            error = error.map(tracing::field::display), count = events.count,
            last_seconds_ago = events.seconds_ago(), "{message}");
    }

    /// Logs the events that came after the last line about their kind.
    pub fn log_due(&self, now: Instant) {
        let notices = &self.notices;
        self.write_all(
            notices.rejected.due(now),
            notices.unserved.due(now),
            notices.dropped.due(now),
            notices.calls.due(now),
        );
    }

    /// As [`Self::log_due`], at the end: without waiting for the period to pass.
    pub fn log_rest(&self) {
        let now = Instant::now();
        let notices = &self.notices;
        self.write_all(
            notices.rejected.rest(now),
            notices.unserved.rest(now),
            notices.dropped.rest(now),
            notices.calls.rest(now),
        );
    }

    fn write_all(
        &self,
        rejected: impl Iterator<Item = (usize, Events)>,
        unserved: impl Iterator<Item = (usize, Events)>,
        dropped: impl Iterator<Item = (usize, Events)>,
        calls: impl Iterator<Item = (usize, Events)>,
    ) {
        for (reason, events) in rejected {
            self.write_rejection(RejectReason::ALL[reason], None, None, events);
        }
        for (reason, events) in unserved {
            self.write_unserved(CloseReason::ALL[reason], None, None, events);
        }
        for (reason, events) in dropped {
            self.write_dropped(DropReason::ALL[reason], None, events);
        }
        for (call, events) in calls {
            self.write_failed_call(Call::ALL[call], None, events);
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Severity {
    /// No line: the event is intended.
    None,
    Info,
    Warning,
}

fn severity_of_rejection(reason: RejectReason) -> Severity {
    match reason {
        // The process is stopping.
        RejectReason::Drained => Severity::None,
        // As configured.
        RejectReason::Access => Severity::Info,
        RejectReason::MaxConnections
        | RejectReason::ProcessMaxConnections
        | RejectReason::MaxConnectionsPerSource
        | RejectReason::ConnectionRate
        | RejectReason::ConnectionRatePerSource
        | RejectReason::ProcessMaxFlows
        | RejectReason::NoPorts
        | RejectReason::NoDescriptors
        | RejectReason::ProxyHeader
        | RejectReason::ProxyEnded
        | RejectReason::ProxyTimeout => Severity::Warning,
    }
}

fn severity_of_drop(reason: DropReason) -> Severity {
    match reason {
        // The rejection or the end of the flow is logged.
        DropReason::Rejected => Severity::None,
        // A reply after the end of its flow is common, and no loss that the client waits for.
        DropReason::Late => Severity::Info,
        DropReason::NoBackend
        | DropReason::BackendsFull
        | DropReason::Waiting
        | DropReason::Bandwidth
        | DropReason::SendBuffer
        | DropReason::ReceiveBuffer
        | DropReason::Truncated
        | DropReason::TooLarge
        | DropReason::SendFailed
        | DropReason::OwnAddress => Severity::Warning,
    }
}

fn unserved_message(reason: CloseReason) -> Option<&'static str> {
    match reason {
        CloseReason::NoBackend => Some("no backend is available"),
        CloseReason::BackendsFull => Some("all backends are full"),
        CloseReason::QueueTimeout => Some("no place at a backend within queue_timeout"),
        CloseReason::HoldTimeout => Some("no backend is available within hold_timeout"),
        CloseReason::ConnectFailed => Some("no backend could be reached"),
        CloseReason::UntrustedHeader => {
            Some("a client that is not in `trust` sent a PROXY protocol header")
        }
        CloseReason::Ok
        | CloseReason::IdleTimeout
        | CloseReason::HalfCloseTimeout
        | CloseReason::ClientReset
        | CloseReason::BackendReset
        | CloseReason::ClientTimedOut
        | CloseReason::BackendTimedOut
        | CloseReason::ClientLeft
        | CloseReason::Drained
        | CloseReason::BackendDown
        | CloseReason::RoleLost
        | CloseReason::Lagging
        | CloseReason::Recovered
        | CloseReason::BackendDrained
        | CloseReason::BackendRemoved
        | CloseReason::ListenerRemoved
        | CloseReason::BackendRefused
        | CloseReason::ResponseTimeout
        | CloseReason::Evicted
        | CloseReason::Killed
        | CloseReason::Rebalanced => None,
    }
}
