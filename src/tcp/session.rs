//! One connection, told from top to bottom.

use super::connect::{self, Attempt};
use crate::{
    access_log,
    balance::Facts,
    net::Stream,
    reason::CloseReason,
    relay::{self, AnswerClock, Tally},
    service::Slot,
    sessions::Listed,
};
use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

/// `server_port`: the one that the client connected to.
pub(super) async fn serve(
    slot: Slot,
    session: Listed,
    mut client: Stream,
    server_port: Option<u16>,
) {
    let service = slot.service();
    let began = Instant::now();
    let mut attempts = Vec::new();
    // In a box of its own, so that a session which has connected, and may then be idle for hours,
    // does not keep the room that connecting took.
    let mut found = Box::pin(connect::connect(
        service,
        &client,
        &session,
        // By value: what is given by reference stays in this future for as long as the session lives.
        Facts {
            remote_addr: session.client.ip(),
            remote_port: session.client.port(),
            server_port,
            proxy_protocol_addr: None,
        },
        &mut attempts,
    ))
    .await;
    // What only the access log wants to know is not kept without one.
    if service.process.access_log.is_none() {
        attempts = Vec::new();
    }
    // Matched in place: what is moved across a wait is held twice, for as long as the session lives.
    let end = match &mut found {
        Err(reason) => End {
            reason: *reason,
            backend: None,
            first_byte: None,
        },
        Ok(connected) => {
            let backend = connected.lease.backend();
            let tally = Tally {
                session: &session,
                listener: service.metrics.counts.mine(),
                backend: backend.metrics.counts.mine(),
                relayed: service.process.metrics.relayed.mine(),
                clock: AnswerClock::start(
                    &service.pool,
                    backend,
                    connected
                        .connected
                        .saturating_duration_since(connected.began),
                    connected.connected,
                ),
            };
            let outcome =
                relay::relay(&mut client, &mut connected.stream, &service.plan, &tally).await;
            End {
                reason: outcome.reason,
                backend: Some(Arc::clone(backend.text())),
                first_byte: outcome
                    .first_byte
                    .map(|at| at.saturating_duration_since(connected.began)),
            }
        }
    };
    // Every limit makes room before the peers can know that the session is over and come back.
    let backend_stream = found.ok().map(|connected| connected.stream);
    let session = session.give_back();
    let service = slot.give_back();
    drop((client, backend_stream));
    let duration = began.elapsed();
    service.metrics.closed(end.reason);
    service.metrics.session_duration.record(duration);
    if let Some(first_byte) = end.first_byte {
        service.metrics.first_byte_duration.record(first_byte);
    }
    if let Some(log) = &service.process.access_log {
        let address = session.client;
        log.record(&access_log::Record {
            time: access_log::now(),
            listener: &service.plan.name,
            protocol: "tcp",
            remote_addr: address
                .ip()
                .map_or_else(|| "unix:".to_owned(), |ip| ip.to_string()),
            remote_port: address.port(),
            proxy_protocol_addr: None,
            upstream: &service.pool.name,
            backend: end.backend.as_deref(),
            connect_time: attempts
                .last()
                .filter(|a| a.result == "ok")
                .map(|a| seconds(a.time)),
            attempts: attempts.iter().map(logged).collect(),
            first_byte_time: end.first_byte.map(seconds),
            session_time: seconds(duration),
            bytes_received: session.received.load(Relaxed),
            bytes_sent: session.sent.load(Relaxed),
            close_reason: end.reason.word(),
        });
    }
}

struct End {
    reason: CloseReason,
    backend: Option<Arc<str>>,
    first_byte: Option<Duration>,
}

fn logged(attempt: &Attempt) -> access_log::Attempt<'_> {
    access_log::Attempt {
        backend: &attempt.backend,
        result: attempt.result,
        connect_time: seconds(attempt.time),
    }
}

/// To the microsecond: more digits would be noise.
fn seconds(d: Duration) -> f64 {
    (d.as_secs_f64() * 1e6).round() / 1e6
}
