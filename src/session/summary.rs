//! What is counted and logged when a session ends, or a client is refused: the same for connections
//! and flows.

use crate::{
    plan::reason::{CloseReason, ConnectError, RejectReason},
    runtime::net::Client,
    session::{registry::Session, service::Service},
    telemetry::access_log::{self, AccessLogWriter, AccessRecord},
    upstream::backend::Backend,
};
use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

/// How a session went.
#[derive(Debug)]
pub struct Summary<'a> {
    pub session: &'a Session,
    pub reason: CloseReason,
    /// Of the last backend that was tried, where none was reached.
    pub error: Option<ConnectError>,
    pub backend: Option<&'a Backend>,
    /// Our own port towards it, where it is to be recorded.
    pub backend_port: Option<u16>,
    pub attempts: &'a [Attempt],
    pub duration: Duration,
    /// For how long it waited for a backend after the last attempt.
    pub waited: Duration,
    /// From the start of the connect, or of the flow, to the backend's first byte.
    pub first_byte: Option<Duration>,
    /// Of a flow: from the client, and to it.
    pub datagrams: [u64; 2],
}

/// Why a session got no backend.
#[derive(Debug, Clone, Copy)]
pub struct Unserved {
    pub reason: CloseReason,
    /// Of the backend that was tried last.
    pub error: Option<ConnectError>,
    /// For how long it has waited for a backend since then.
    pub waited: Duration,
}

/// One try to reach a backend.
#[derive(Debug)]
pub struct Attempt {
    pub backend: Arc<Backend>,
    pub result: AttemptResult,
    pub time: Duration,
    /// For how long the session waited for the backend before.
    pub waited: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttemptResult {
    Connected,
    /// Connected, when sessions of that backend had been terminated since it was picked.
    Left,
    Failed(ConnectError),
    /// The session ended first.
    Abandoned(CloseReason),
}

/// A connection or a flow that was refused before a backend was looked for.
#[derive(Debug)]
pub struct RefusedSession {
    pub reason: RejectReason,
    pub peer: Client,
    pub named: Option<Client>,
    pub duration: Duration,
}

impl<'a> Summary<'a> {
    /// Of a session that got no backend.
    pub fn unserved(
        session: &'a Session,
        unserved: Unserved,
        attempts: &'a [Attempt],
        duration: Duration,
    ) -> Self {
        Self {
            session,
            reason: unserved.reason,
            error: unserved.error,
            backend: None,
            backend_port: None,
            attempts,
            duration,
            waited: unserved.waited,
            first_byte: None,
            datagrams: [0; 2],
        }
    }
}

impl Summary<'_> {
    /// For how long the session waited for backends, in the queue and held.
    fn queue_time(&self) -> Duration {
        let before_attempts = self.attempts.iter().map(|attempt| attempt.waited);
        before_attempts.sum::<Duration>() + self.waited
    }

    fn attempt<'a>(&self, attempt: &'a Attempt) -> access_log::AttemptRecord<'a> {
        access_log::AttemptRecord {
            backend: attempt.backend.text(),
            backend_addr: attempt.backend.addr.to_string(),
            result: match attempt.result {
                AttemptResult::Connected => self.connected_word(),
                AttemptResult::Left => "left",
                AttemptResult::Failed(error) => error.word(),
                AttemptResult::Abandoned(reason) => reason.word(),
            },
            connect_time: seconds(attempt.time),
        }
    }

    /// What became of the attempt that the session stayed with. Towards the backend of a flow there
    /// is only a socket: whether it was reached, its replies show.
    fn connected_word(&self) -> &'static str {
        let has_replied = self.first_byte.is_some() || self.session.sent.load(Relaxed) > 0;
        match self.reason {
            CloseReason::ResponseTimeout if !has_replied => access_log::NO_REPLY,
            CloseReason::BackendRefused if !has_replied => CloseReason::BackendRefused.word(),
            _ => "ok",
        }
    }
}

impl Service {
    pub fn access_log(&self) -> Option<&AccessLogWriter> {
        self.access_log.as_deref()
    }

    /// Counts the end of a session, and writes it to the log, where it is a reason for a warning,
    /// and to `access_log`.
    pub fn finish(
        &self,
        summary: &Summary<'_>,
        access_log: Option<&AccessLogWriter>,
        now: Instant,
    ) {
        self.metrics.closed(summary.reason);
        if summary.reason.leaves_unserved() {
            self.pool.metrics.unserved.add(1);
        }
        self.metrics.session_duration.record(summary.duration);
        self.log_unserved(
            summary.reason,
            &summary.session.client(),
            summary.error,
            now,
        );
        if let Some(log) = access_log {
            log.record(&self.record(summary));
        }
    }

    /// Counts a refusal, and writes it to `access_log`.
    pub fn finish_refused(&self, refusal: &RefusedSession, access_log: Option<&AccessLogWriter>) {
        self.metrics.rejected(refusal.reason);
        if let Some(log) = access_log {
            let (peer, named) = (refusal.peer, refusal.named);
            log.record(&self.plain_record(peer, named, refusal.reason.word(), refusal.duration));
        }
    }

    fn record<'a>(&'a self, summary: &Summary<'a>) -> AccessRecord<'a> {
        let session = summary.session;
        let backend = summary.backend;
        let connected = summary.attempts.last();
        let connected = connected.filter(|attempt| attempt.result == AttemptResult::Connected);
        let [received, sent] = summary.datagrams;
        let is_udp = self.is_udp();
        AccessRecord {
            session: Some(session.id),
            backend: backend.map(|backend| &**backend.text()),
            backend_addr: backend.map(|backend| backend.addr.to_string()),
            backend_port: summary.backend_port,
            attempts: summary
                .attempts
                .iter()
                .map(|a| summary.attempt(a))
                .collect(),
            connect_time: connected.map(|attempt| seconds(attempt.time)),
            queue_time: Some(summary.queue_time())
                .filter(|time| !time.is_zero())
                .map(seconds),
            first_byte_time: summary.first_byte.map(seconds),
            bytes_received: session.received.load(Relaxed),
            bytes_sent: session.sent.load(Relaxed),
            datagrams_received: is_udp.then_some(received),
            datagrams_sent: is_udp.then_some(sent),
            ..self.plain_record(
                session.peer,
                session.proxied(),
                summary.reason.word(),
                summary.duration,
            )
        }
    }

    /// The record of a client that was not served.
    fn plain_record(
        &self,
        peer: Client,
        named: Option<Client>,
        reason: &'static str,
        duration: Duration,
    ) -> AccessRecord<'_> {
        let client = named.unwrap_or(peer);
        let hidden = Some(peer).filter(|peer| *peer != client);
        let is_udp = self.is_udp();
        AccessRecord {
            time: access_log::now(),
            session: None,
            listener: &self.plan.name,
            protocol: self.protocol(),
            remote_addr: address(client),
            remote_port: client.port(),
            proxy_protocol_addr: named.map(address),
            realip_remote_addr: hidden.map(address),
            realip_remote_port: hidden.and_then(Client::port),
            upstream: &self.pool.name,
            backend: None,
            backend_addr: None,
            backend_port: None,
            attempts: Vec::new(),
            connect_time: None,
            queue_time: None,
            first_byte_time: None,
            session_time: seconds(duration),
            bytes_received: 0,
            bytes_sent: 0,
            datagrams_received: is_udp.then_some(0),
            datagrams_sent: is_udp.then_some(0),
            close_reason: reason,
        }
    }
}

fn address(client: Client) -> String {
    client
        .ip()
        .map_or_else(|| "unix:".to_owned(), |ip| ip.to_string())
}

/// To the microsecond: more digits would be noise.
fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e6
}
