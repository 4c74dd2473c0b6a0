//! One connection, from its admission to its end.

use crate::{
    plan::reason::{CloseReason, Peer, RejectReason},
    proxy::{
        relay::{self, FinalStep, Outcome, SessionCounters, Stop},
        tcp::{
            connect::{self, Connected, Opened},
            handover::{self, HandoverAnswer, Resumed, Unplaced},
            preamble::{self, Preamble},
            wait_before_connect::{self, NotPlaced, Seeker},
        },
    },
    runtime::net::Stream,
    session::{
        admission::{self, Permits},
        summary::{Attempt, RefusedSession, Summary, Unserved},
    },
    sys,
    upstream::backend::Backend,
};
use std::{
    os::fd::AsFd as _,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

pub(super) fn serve(permits: Permits, client: Stream) -> impl Future<Output = ()> {
    carry(permits, client, open)
}

/// For a session that another process has relayed so far.
pub(super) fn resume(
    permits: Permits,
    client: Stream,
    opened: Box<Opened>,
) -> impl Future<Output = ()> {
    carry(permits, client, async move |_: &Permits, _: &Stream| {
        Ok(*opened)
    })
}

/// For a session that waits for a backend, and has done so in another process so far.
pub(super) fn wait_on(
    permits: Permits,
    client: Stream,
    unplaced: Box<Unplaced>,
) -> impl Future<Output = ()> {
    carry(
        permits,
        client,
        async move |permits: &Permits, client: &Stream| place(permits, client, *unplaced).await,
    )
}

#[expect(
    clippy::manual_async_fn,
    reason = "an async function holds its arguments twice for as long as it runs"
)]
fn carry(
    permits: Permits,
    client: Stream,
    open: impl AsyncFnOnce(&Permits, &Stream) -> Result<Opened, NotOpened>,
) -> impl Future<Output = ()> {
    async move {
        let (end, client_step) = {
            // In a box of its own, so that a session which has connected, and may then be idle for
            // hours, does not keep the memory that this took.
            let mut opened = match Box::pin(open(&permits, &client)).await {
                Ok(opened) => opened,
                Err(not_opened) => return close_unopened(permits, client, not_opened),
            };
            let service = permits.service();
            let backend = opened.connected.lease.backend();
            let counters = SessionCounters {
                session: permits.session(),
                listener: service.metrics.counts.mine(),
                backend: backend.metrics.counts.mine(),
                relayed: service.process.metrics.relayed.mine(),
            };
            let beginning = opened.connected.connection.take_beginning();
            let connection = &opened.connected.connection;
            permits.session().set_socket(connection.stream.as_fd());
            let plan = &service.plan;
            let mut relay = relay::relay(&client, connection, beginning, plan, counters);
            let session = (&permits, &opened);
            // In a block of its own, since a local variable that is live over two waits shares its
            // memory in the future of the session with nothing else.
            let relayed = async move {
                loop {
                    let state = match (&mut relay).await {
                        Stop::Over(outcome) => break Some(outcome),
                        Stop::Leaves(state) => state,
                    };
                    let (permits, opened) = session;
                    // In a box: no other session is to be larger for it.
                    let leaving =
                        Box::pin(handover::hand_over(permits, relay.client(), opened, state));
                    if leaving.await == HandoverAnswer::Taken {
                        relay.forget_observers();
                        break None;
                    }
                }
            }
            .await;
            let Some(outcome) = relayed else {
                return close_taken(permits, client, opened);
            };
            let plan = &permits.service().plan;
            let (step, stream) = (outcome.backend, &opened.connected.connection.stream);
            if let Some(ending) = relay::finish(step, stream, plan, permits.session()) {
                if outcome.client == FinalStep::Close {
                    // The client has ended the session, and may come again at once. That the
                    // backend takes its time to acknowledge the rest is no reason to refuse it.
                    permits.release_listener();
                }
                ending.await;
            }
            // The connection to the backend is closed before the session stops to count there, so
            // that the backend never has more than `max_connections`. That does not wait for a
            // client that reads slowly.
            (SessionEnd::of(&permits, opened, &outcome), outcome.client)
        };
        permits.session().set_backend(0);
        // Every limit is released before the client can see the end of the session and come back.
        if client_step == FinalStep::CloseAfterDelivery {
            // Our end is sent before delivery: only the process still counts the session.
            permits.release_listener();
        }
        let plan = &permits.service().plan;
        if let Some(ending) = relay::finish(client_step, &client, plan, permits.session()) {
            ending.await;
        }
        end.finish(permits, client);
    }
}

enum NotOpened {
    Refused(RejectReason),
    Unserved(Unserved, Vec<Attempt>),
    /// Another process has the session, which waits for a backend.
    Taken,
}

/// What is left of a session that was relayed.
struct SessionEnd {
    reason: CloseReason,
    backend: Arc<Backend>,
    /// Our own port towards it, if there is an access log.
    backend_port: Option<u16>,
    first_byte: Option<Duration>,
    attempts: Box<[Attempt]>,
}

/// All that comes before bytes are relayed: the client's preamble, access rules, and the connect to
/// a backend.
async fn open(permits: &Permits, client: &Stream) -> Result<Opened, NotOpened> {
    let (service, session) = (permits.service(), permits.session());
    let preamble = read_preamble(permits, client).await?;
    let delay = admission::delay(permits, Instant::now()).map_err(|reason| {
        service.log_rejection(reason, &session.client(), None, Instant::now());
        NotOpened::Refused(reason)
    })?;
    if let Some(delay) = delay {
        let waited =
            wait_before_connect::wait_for_rate(delay, client, session, service.plan.half_close)
                .await;
        waited.map_err(|unserved| NotOpened::Unserved(unserved, Vec::new()))?;
    }
    let unplaced = Unplaced {
        preamble,
        attempts: Vec::new(),
        resumed: Resumed::default(),
    };
    place(permits, client, unplaced).await
}

/// Connects the session to a backend.
async fn place(
    permits: &Permits,
    client: &Stream,
    unplaced: Unplaced,
) -> Result<Opened, NotOpened> {
    let (service, session) = (permits.service(), permits.session());
    let Unplaced {
        preamble,
        mut attempts,
        resumed,
    } = unplaced;
    let seeker = Seeker {
        permits,
        client,
        preamble: &preamble,
    };
    let connected = connect::connect(&seeker, resumed, &mut attempts).await;
    let mut connected = match connected {
        Ok(connected) => connected,
        Err(NotPlaced::Unserved(unserved)) => return Err(NotOpened::Unserved(unserved, attempts)),
        Err(NotPlaced::Taken) => return Err(NotOpened::Taken),
    };
    let connection = &mut connected.connection;
    if let Some(first) = preamble.into_first(service, session, client) {
        connection.opening.get_or_insert_default().first = Some(first);
    }
    if let Some(bandwidth) = admission::bandwidth(permits, Instant::now()) {
        connection.opening.get_or_insert_default().bandwidth = Some(bandwidth);
    }
    Ok(Opened {
        connected,
        attempts: attempts.into(),
    })
}

async fn read_preamble(permits: &Permits, client: &Stream) -> Result<Preamble, NotOpened> {
    let (service, session) = (permits.service(), permits.session());
    let mut preamble = Preamble::default();
    if let Some(accept) = &service.plan.accept_proxy {
        if !service.trusts(session.peer) {
            // Its bytes are inspected by the relay before any is passed on.
            return Ok(preamble);
        }
        let accepted = permits.began_at();
        preamble = preamble::receive(service, accept, client, session, accepted)
            .await
            .map_err(NotOpened::Refused)?;
        if let Err(reason) = admission::admit_named(permits) {
            service.log_rejection(reason, &session.client(), None, Instant::now());
            return Err(NotOpened::Refused(reason));
        }
    }
    if preamble.payload.is_empty() {
        preamble.payload = preamble::read_early(client).map_err(|_| {
            let left = Unserved {
                reason: CloseReason::ClientLeft,
                error: None,
                waited: Duration::ZERO,
            };
            NotOpened::Unserved(left, Vec::new())
        })?;
    }
    let early = preamble.payload.len() as u64;
    service.metrics.counts.mine().received.add(early);
    session.received.fetch_add(early, Relaxed);
    Ok(preamble)
}

fn close_unopened(permits: Permits, client: Stream, not_opened: NotOpened) {
    let began = permits.began_at();
    match not_opened {
        NotOpened::Refused(reason) => {
            let (service, session) = permits.release();
            drop(client);
            let refusal = RefusedSession {
                reason,
                peer: session.peer,
                named: session.proxied(),
                duration: began.elapsed(),
            };
            service.finish_refused(&refusal, service.access_log());
        }
        NotOpened::Unserved(unserved, attempts) => {
            if permits.session().received.load(Relaxed) > 0 {
                // No backend has received these bytes, and a clean end would hide it.
                sys::socket::reset_on_close(&client);
            }
            let (service, session) = permits.release();
            drop(client);
            let duration = began.elapsed();
            let summary = Summary::unserved(&session, unserved, &attempts, duration);
            service.finish(&summary, service.access_log(), Instant::now());
        }
        // It has not ended, and is neither counted nor logged here.
        NotOpened::Taken => {
            client.deregister();
            permits.session().set_closing();
            drop(client);
            drop(permits);
        }
    }
}

/// Another process relays the session: it has not ended, and is neither counted nor logged here.
fn close_taken(permits: Permits, client: Stream, opened: Opened) {
    let Connected {
        connection, lease, ..
    } = opened.connected;
    for stream in [&client, &connection.stream] {
        stream.deregister();
    }
    permits.session().set_closing();
    drop(connection);
    drop(client);
    drop(lease);
    drop(permits);
}

impl SessionEnd {
    /// Closes the connection to the backend.
    fn of(permits: &Permits, opened: Opened, outcome: &Outcome) -> Self {
        let (service, session) = (permits.service(), permits.session());
        let Connected {
            lease,
            began_micros,
            ..
        } = &opened.connected;
        let began = permits.began_at() + Duration::from_micros(*began_micros);
        let backend = Arc::clone(lease.backend());
        if outcome.first_byte.is_none()
            && let Some((Peer::Backend, error)) = outcome.reason.failed_peer()
        {
            service.report_unanswered(&backend, error, Instant::now());
        }
        let since_connect = |at: Instant| at.saturating_duration_since(began);
        let first_byte = outcome.first_byte.map(since_connect);
        let Connected {
            connection, lease, ..
        } = opened.connected;
        session.set_closing();
        let local = service
            .access_log()
            .and_then(|_| connection.stream.local_addr());
        drop(connection);
        drop(lease);
        Self {
            reason: outcome.reason,
            backend,
            backend_port: local.map(|address| address.port()),
            first_byte,
            attempts: opened.attempts,
        }
    }

    fn finish(self, permits: Permits, client: Stream) {
        let began = permits.began_at();
        let (service, session) = permits.release();
        drop(client);
        if let Some(first_byte) = self.first_byte {
            service.metrics.first_byte_duration.record(first_byte);
        }
        let summary = Summary {
            session: &session,
            reason: self.reason,
            error: None,
            backend: Some(&self.backend),
            backend_port: self.backend_port,
            attempts: &self.attempts,
            duration: began.elapsed(),
            waited: Duration::ZERO,
            first_byte: self.first_byte,
            datagrams: [0; 2],
        };
        service.finish(&summary, service.access_log(), Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an idle session takes beside its sockets and its entry in the registry.
    const MAX_BYTES: usize = 304;

    fn size_of_output<A, B, F>(_: impl Fn(A, B) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn the_future_of_a_session_is_small() {
        let size = size_of_output(serve);
        assert!(size <= MAX_BYTES, "{size} bytes");
    }
}
