//! One connection, told from top to bottom.

use super::connect::{self, Attempt, Connected};
use crate::{
    plan::{
        access,
        reason::{CloseReason, RejectReason},
    },
    proxy::{
        relay::{self, Last, SessionCounters},
        tcp::preamble::{self, Introduction},
    },
    runtime::net::Stream,
    session::{
        registry::{Listed, Session},
        service::{Service, Slot, seconds},
    },
    sys,
    telemetry::access_log,
    upstream::backend::Backend,
};
use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

#[expect(
    clippy::manual_async_fn,
    reason = "an async function holds its arguments twice for as long as it runs"
)]
pub(super) fn serve(slot: Slot, session: Listed, client: Stream) -> impl Future<Output = ()> {
    async move {
        let service = slot.service();
        let began = Instant::now();
        let mut attempts = Vec::new();
        // In a box of its own, so that a session which has connected, and may then be idle for
        // hours, does not keep the room that it took.
        let mut opened = Box::pin(open(service, &client, &session, began, &mut attempts)).await;
        // What only the access log wants to know is not kept without one.
        if service.process.access_log.is_none() {
            attempts = Vec::new();
        }
        let mut last_for_client = Last::Nothing;
        // Matched in place: what is moved across a wait is held twice, for as long as the session
        // lives.
        let end = match &mut opened {
            Err(NotOpened::TurnedAway(reason)) => {
                let reason = *reason;
                // Room is made first, as below.
                let session = session.give_back();
                let service = slot.give_back();
                drop(client);
                service.metrics.rejected(reason);
                let (peer, proxied) = (session.peer, session.proxied());
                service.record_rejection(reason, peer, proxied, began.elapsed());
                return;
            }
            Err(NotOpened::Closed(reason)) => {
                if session.received.load(Relaxed) > 0 {
                    // Nobody has got it, and a clean end would not tell.
                    sys::socket::reset_on_close(&client);
                }
                End {
                    reason: *reason,
                    backend: None,
                    first_byte: None,
                }
            }
            Ok(connected) => {
                let backend = connected.lease.backend();
                let counters = SessionCounters {
                    session: &session,
                    listener: service.metrics.counts.mine(),
                    backend: backend.metrics.counts.mine(),
                    relayed: service.process.metrics.relayed.mine(),
                };
                let plan = &service.plan;
                let outcome = relay::relay(&client, &mut connected.reached, plan, &counters).await;
                let reached = &connected.reached.stream;
                let last = outcome.last_for_backend();
                if let Some(ending) = relay::end(last, reached, plan, &session) {
                    ending.await;
                }
                if outcome.first_byte.is_none()
                    && let Some(error) = outcome.reason.backend_failure()
                {
                    connect::failed_unanswered(service, backend, error);
                }
                last_for_client = outcome.last_for_client();
                End {
                    reason: outcome.reason,
                    backend: Some(Arc::clone(backend)),
                    first_byte: outcome
                        .first_byte
                        .map(|at| at.saturating_duration_since(connected.began)),
                }
            }
        };
        // A place at the backend is free when the connection there is closed: the backend never
        // has more than it may have. It does not wait for a client that reads slowly.
        if let Ok(Connected { reached, lease, .. }) = opened {
            drop(reached);
            drop(lease);
            session.set_backend(0);
        }
        // Every limit makes room before the client can know that the session is over and come back.
        let service = match last_for_client {
            relay::Last::Nothing => slot.give_back(),
            // Our end comes first; only what the descriptor counts for is kept.
            relay::Last::Delivery => {
                let service = slot.give_back();
                if let Some(ending) = relay::end(last_for_client, &client, &service.plan, &session)
                {
                    ending.await;
                }
                service
            }
            relay::Last::Reset => {
                let plan = &slot.service().plan;
                if let Some(ending) = relay::end(last_for_client, &client, plan, &session) {
                    ending.await;
                }
                slot.give_back()
            }
        };
        let session = session.give_back();
        drop(client);
        let duration = began.elapsed();
        if end.reason == CloseReason::UntrustedHeader {
            service.log_unserved(end.reason, &session.peer, None, Instant::now());
        }
        service.metrics.closed(end.reason);
        service.metrics.session_duration.record(duration);
        if let Some(first_byte) = end.first_byte {
            service.metrics.first_byte_duration.record(first_byte);
        }
        if let Some(log) = &service.process.access_log {
            let (peer, proxied) = (session.peer, session.proxied());
            let backend = end.backend.as_deref();
            log.record(&access_log::Record {
                backend: backend.map(|b| &**b.text()),
                backend_addr: backend.map(|b| b.place.to_string()),
                connect_time: attempts
                    .last()
                    .filter(|a| a.result == "ok")
                    .map(|a| seconds(a.time)),
                attempts: attempts.iter().map(logged).collect(),
                first_byte_time: end.first_byte.map(seconds),
                bytes_received: session.received.load(Relaxed),
                bytes_sent: session.sent.load(Relaxed),
                ..service.record(peer, proxied, end.reason.word(), duration)
            });
        }
    }
}

enum NotOpened {
    TurnedAway(RejectReason),
    Closed(CloseReason),
}

/// All that comes before bytes are relayed: who the client is, whether it may come in, and a
/// backend for it.
async fn open(
    service: &Arc<Service>,
    client: &Stream,
    session: &Session,
    accepted: Instant,
    attempts: &mut Vec<Attempt>,
) -> Result<Connected, NotOpened> {
    let introduction = introduce(service, client, session, accepted).await?;
    let mut connected = connect::connect(service, client, session, attempts)
        .await
        .map_err(NotOpened::Closed)?;
    if let Some(first) = introduction.pass_on(service, session, client) {
        let opening = connected.reached.opening.get_or_insert_default();
        opening.first = Some(first);
    }
    Ok(connected)
}

async fn introduce(
    service: &Service,
    client: &Stream,
    session: &Session,
    accepted: Instant,
) -> Result<Introduction, NotOpened> {
    let plan = &service.plan;
    let mut introduction = Introduction::none();
    if let Some(accept) = &plan.accept_proxy {
        if !access::trusts(accept, session.peer.ip()) {
            // What it says is to be looked at before anybody gets it.
            return Ok(introduction);
        }
        introduction = preamble::receive(service, accept, client, session, accepted)
            .await
            .map_err(NotOpened::TurnedAway)?;
        let reason = RejectReason::Access;
        if !access::allows(&plan.access, session.client().ip()) {
            service.log_rejection(reason, &session.client(), None, Instant::now());
            return Err(NotOpened::TurnedAway(reason));
        }
    }
    if introduction.payload.is_empty() {
        introduction.payload = preamble::said_by_now(client)
            .map_err(|_| NotOpened::Closed(CloseReason::ClientLeft))?;
    }
    let early = introduction.payload.len() as u64;
    service.metrics.counts.mine().received.add(early);
    session.received.fetch_add(early, Relaxed);
    Ok(introduction)
}

struct End {
    reason: CloseReason,
    backend: Option<Arc<Backend>>,
    first_byte: Option<Duration>,
}

fn logged(attempt: &Attempt) -> access_log::Attempt<'_> {
    access_log::Attempt {
        backend: attempt.backend.text(),
        backend_addr: attempt.backend.place.to_string(),
        result: attempt.result,
        connect_time: seconds(attempt.time),
    }
}
