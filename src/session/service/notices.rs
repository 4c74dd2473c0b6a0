//! What the log says of clients and datagrams that a listener does not serve: the first event of a
//! kind at once, those that follow in one line each period, with their count.

use super::Service;
use crate::{
    plan::reason::{CloseReason, ConnectError, DropReason, RejectReason},
    telemetry::throttle::Throttle,
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
    /// To the event loop, of the socket of a new flow.
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

    fn word(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Receive => "receive",
            Self::Register => "epoll_ctl",
        }
    }
}

impl Service {
    /// Counts a connection or a flow that is refused, and tells the log.
    pub fn reject(&self, reason: RejectReason, client: &dyn Display, now: Instant) {
        self.metrics.rejected(reason);
        self.log_rejection(reason, client, None, now);
    }

    /// As [`Self::reject`], without counting it.
    pub fn log_rejection(
        &self,
        reason: RejectReason,
        client: &dyn Display,
        error: Detail<'_>,
        now: Instant,
    ) {
        let count = self.notices.rejected.add(reason as usize, 1, now);
        match count.filter(|_| is_told(reason)) {
            Some(count) => self.tell_rejection(reason, Some(client), error, count),
            None => tracing::debug!(listener = %self.plan.name, reason = reason.word(),
                client = %client, error = error.map(tracing::field::display), "client refused"),
        }
    }

    fn tell_rejection(
        &self,
        reason: RejectReason,
        client: Detail<'_>,
        error: Detail<'_>,
        count: u64,
    ) {
        let (listener, limit) = (&self.plan.name, self.limit_behind(reason));
        let client = client.map(tracing::field::display);
        let error = error.map(tracing::field::display);
        let reason_word = reason.word();
        // What the operator has asked for is no trouble.
        if reason == RejectReason::Access {
            tracing::info!(%listener, reason = reason_word, client, count, "client refused");
        } else {
            tracing::warn!(%listener, reason = reason_word, limit, client, error, count,
                "client refused");
        }
    }

    fn limit_behind(&self, reason: RejectReason) -> Option<u64> {
        let sessions = &self.process.sessions;
        match reason {
            RejectReason::MaxConnections => Some(self.plan.max_connections),
            RejectReason::ProcessMaxConnections => Some(sessions.connections().most()),
            RejectReason::ProcessMaxFlows => Some(sessions.flows().most()),
            RejectReason::Access
            | RejectReason::MaxFlowsPerSource
            | RejectReason::NoPorts
            | RejectReason::NoDescriptors
            | RejectReason::ProxyHeader
            | RejectReason::ProxyEnded
            | RejectReason::ProxyTimeout
            | RejectReason::Drained => None,
        }
    }

    /// A client was let in and got no backend, or was not to get one. `error`: of the backend that
    /// was tried last.
    pub fn log_unserved(
        &self,
        reason: CloseReason,
        client: &dyn Display,
        error: Option<ConnectError>,
        now: Instant,
    ) {
        match self.notices.unserved.add(reason as usize, 1, now) {
            Some(count) => self.tell_unserved(reason, Some(client), error, count),
            None => tracing::debug!(listener = %self.plan.name, reason = reason.word(),
                client = %client, "client not served"),
        }
    }

    fn tell_unserved(
        &self,
        reason: CloseReason,
        client: Detail<'_>,
        error: Option<ConnectError>,
        count: u64,
    ) {
        let (listener, upstream) = (&self.plan.name, &self.pool.name);
        let client = client.map(tracing::field::display);
        let (reason_word, error) = (reason.word(), error.map(ConnectError::word));
        match reason {
            CloseReason::NoBackend => {
                tracing::warn!(%listener, %upstream, reason = reason_word, client, count,
                    "no backend is available");
            }
            CloseReason::ConnectFailed => {
                tracing::warn!(%listener, %upstream, reason = reason_word, client, error, count,
                    "no backend could be reached");
            }
            CloseReason::UntrustedHeader => {
                tracing::warn!(%listener, reason = reason_word, client, count,
                    "a client that is not in `trust` sent a PROXY protocol header");
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
            | CloseReason::BackendRefused
            | CloseReason::ResponseTimeout
            | CloseReason::Evicted => {}
        }
    }

    /// Counts datagrams that are not passed on, and tells the log.
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
        // Those that begin no flow are told with the reason for that.
        if reason == DropReason::Rejected {
            return;
        }
        match self.notices.dropped.add(reason as usize, datagrams, now) {
            Some(count) => self.tell_dropped(reason, error, count),
            None => tracing::debug!(listener = %self.plan.name, reason = reason.word(), datagrams,
                error = error.map(tracing::field::display), "datagrams dropped"),
        }
    }

    fn tell_dropped(&self, reason: DropReason, error: Option<&io::Error>, count: u64) {
        let (listener, reason_word) = (&self.plan.name, reason.word());
        let error = error.map(tracing::field::display);
        // A reply after the end of its flow is common, and no loss that the client waits for.
        if reason == DropReason::Late {
            tracing::info!(%listener, reason = reason_word, count, "datagrams dropped");
        } else {
            tracing::warn!(%listener, reason = reason_word, error, count, "datagrams dropped");
        }
    }

    pub fn log_failed_call(&self, call: Call, error: &io::Error, now: Instant) {
        match self.notices.calls.add(call as usize, 1, now) {
            Some(count) => self.tell_failed_call(call, Some(error), count),
            None => tracing::debug!(listener = %self.plan.name, call = call.word(), %error,
                "system call failed"),
        }
    }

    fn tell_failed_call(&self, call: Call, error: Option<&io::Error>, count: u64) {
        let (listener, call_word) = (&self.plan.name, call.word());
        let error = error.map(tracing::field::display);
        match call {
            Call::Accept => {
                tracing::warn!(%listener, call = call_word, error, count, "cannot accept, waiting");
            }
            Call::Receive => {
                tracing::warn!(%listener, call = call_word, error, count, "cannot receive");
            }
            Call::Register => {
                tracing::warn!(%listener, call = call_word, error, count,
                    "cannot wait for replies");
            }
        }
    }

    /// Tells the log of events that came after the last line about their kind.
    pub fn log_due(&self, now: Instant) {
        let notices = &self.notices;
        self.tell_all(
            notices.rejected.due(now),
            notices.unserved.due(now),
            notices.dropped.due(now),
            notices.calls.due(now),
        );
    }

    /// As [`Self::log_due`], at the end: it does not wait for the period to pass.
    pub fn log_rest(&self) {
        let notices = &self.notices;
        self.tell_all(
            notices.rejected.rest(),
            notices.unserved.rest(),
            notices.dropped.rest(),
            notices.calls.rest(),
        );
    }

    fn tell_all(
        &self,
        rejected: impl Iterator<Item = (usize, u64)>,
        unserved: impl Iterator<Item = (usize, u64)>,
        dropped: impl Iterator<Item = (usize, u64)>,
        calls: impl Iterator<Item = (usize, u64)>,
    ) {
        for (reason, count) in rejected {
            let reason = RejectReason::ALL[reason];
            if is_told(reason) {
                self.tell_rejection(reason, None, None, count);
            }
        }
        for (reason, count) in unserved {
            self.tell_unserved(CloseReason::ALL[reason], None, None, count);
        }
        for (reason, count) in dropped {
            self.tell_dropped(DropReason::ALL[reason], None, count);
        }
        for (call, count) in calls {
            self.tell_failed_call(Call::ALL[call], None, count);
        }
    }
}

/// At the end of the process clients are refused as intended.
fn is_told(reason: RejectReason) -> bool {
    reason != RejectReason::Drained
}
