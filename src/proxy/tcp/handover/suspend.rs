//! A session leaves this process.

use super::{AttemptState, BackendName, Connection, SessionState};
use crate::{
    proxy::{relay::RelayState, tcp::connect::Opened},
    runtime::{net::Stream, time},
    session::{admission::Permits, summary::Attempt},
    upstream::backend::Backend,
};
use std::{
    cell::RefCell,
    io,
    os::fd::AsFd as _,
    sync::{Arc, mpsc::Sender},
    time::Instant,
};
use tokio::sync::oneshot;

/// A session that waits to be taken. It goes on in this process if this is dropped.
#[derive(Debug)]
pub struct Departure {
    pub state: SessionState,
    pub answer: oneshot::Sender<HandoverAnswer>,
}

/// What the other process says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandoverAnswer {
    /// It has the session: this process must not touch it any more.
    Taken,
    Refused,
}

thread_local! {
    /// Where sessions of this worker go that leave.
    static EXIT: RefCell<Option<Sender<Departure>>> = const { RefCell::new(None) };
}

/// `None`: no session leaves from now on.
pub(in crate::proxy::tcp) fn set_exit(exit: Option<Sender<Departure>>) {
    EXIT.set(exit);
}

/// Offers a session to the other process, and waits for the answer. The relay must not be polled
/// meanwhile.
pub(in crate::proxy::tcp) async fn hand_over(
    permits: &Permits,
    client: &Stream,
    opened: &Opened,
    relay: Box<RelayState>,
) -> HandoverAnswer {
    let answer = match describe(permits, client, opened, *relay) {
        Ok(state) => match offer(state) {
            Some(answer) => answer.await.unwrap_or(HandoverAnswer::Refused),
            None => HandoverAnswer::Refused,
        },
        Err(error) => {
            tracing::debug!(session = permits.session().id, %error, "cannot hand over a session");
            HandoverAnswer::Refused
        }
    };
    if answer == HandoverAnswer::Refused {
        permits.session().stay();
    }
    answer
}

/// `None`: there is no process that takes it.
fn offer(state: SessionState) -> Option<oneshot::Receiver<HandoverAnswer>> {
    let (answer, answered) = oneshot::channel();
    let sent = EXIT.with_borrow(|exit| exit.as_ref()?.send(Departure { state, answer }).ok());
    sent.map(|()| answered)
}

fn describe(
    permits: &Permits,
    client: &Stream,
    opened: &Opened,
    relay: RelayState,
) -> io::Result<SessionState> {
    let (service, session) = (permits.service(), permits.session());
    let connected = &opened.connected;
    Ok(SessionState {
        continued: session.continued(),
        began: time::micros_at(permits.began_at()),
        left: Some(time::micros_at(Instant::now())),
        listener: service.plan.name.clone(),
        upstream: service.pool.name.to_string(),
        peer: session.peer,
        named: session.proxied(),
        server_port: session.server_port,
        backend: name(connected.lease.backend()),
        connect_began: connected.began_micros,
        attempts: opened.attempts.iter().map(describe_attempt).collect(),
        to_client: connection(client)?,
        to_backend: connection(&connected.connection.stream)?,
        relay,
    })
}

fn name(backend: &Arc<Backend>) -> BackendName {
    BackendName {
        text: backend.text().to_string(),
        addr: backend.addr.clone(),
    }
}

fn describe_attempt(attempt: &Attempt) -> AttemptState {
    AttemptState {
        backend: name(&attempt.backend),
        result: attempt.result,
        time: attempt.time,
        waited: attempt.waited,
    }
}

fn connection(stream: &Stream) -> io::Result<Connection> {
    Ok(Connection {
        socket: stream.as_fd().try_clone_to_owned()?,
        state: stream.state(),
    })
}
