//! A session leaves this process.

use super::{
    BackendName, ClientState, Connection, SessionState,
    waiting::{self, WaitingState},
};
use crate::{
    handover::message::Kind,
    proxy::{
        relay::RelayState,
        tcp::{connect::Opened, preamble::Preamble},
    },
    runtime::net::Stream,
    session::{admission::Permits, registry::Session, retry::BackendSearch},
    upstream::pool::Carried,
};
use std::{
    cell::RefCell,
    io,
    os::fd::{AsFd as _, BorrowedFd},
    sync::mpsc::Sender,
};
use tokio::sync::oneshot;

/// A session that waits to be taken. It goes on in this process if this is dropped.
#[derive(Debug)]
pub struct Departure {
    pub state: Departing,
    pub answer: oneshot::Sender<HandoverAnswer>,
}

/// What leaves, as plain data.
#[derive(Debug)]
pub enum Departing {
    Relayed(Box<SessionState>),
    /// It waits for a backend.
    Waiting(Box<WaitingState>),
}

impl Departing {
    pub fn id(&self) -> u64 {
        match self {
            Self::Relayed(state) => state.client.continued.id,
            Self::Waiting(state) => state.client.continued.id,
        }
    }

    /// In which messages it goes.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Relayed(_) => Kind::Sessions,
            Self::Waiting(_) => Kind::Waiting,
        }
    }

    /// In the order of the format.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Self::Relayed(state) => state.descriptors(),
            Self::Waiting(state) => vec![state.client.connection.socket.as_fd()],
        }
    }

    /// How many bytes go into its record beside the little that every session has.
    pub fn held_bytes(&self) -> usize {
        match self {
            Self::Relayed(state) => state.held_bytes(),
            Self::Waiting(state) => state.payload.len(),
        }
    }
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
    let state = describe(permits, client, opened, *relay);
    offer_or_stay(
        permits.session(),
        state.map(Box::new).map(Departing::Relayed),
    )
    .await
}

/// The same for a session that waits for a backend. `wait`: `None` if it has not waited.
pub(in crate::proxy::tcp) async fn hand_over_waiting(
    permits: &Permits,
    client: &Stream,
    preamble: &Preamble,
    search: &BackendSearch<'_>,
    wait: Option<Carried>,
) -> HandoverAnswer {
    let state = waiting::describe(permits, client, preamble, search, wait);
    offer_or_stay(
        permits.session(),
        state.map(Box::new).map(Departing::Waiting),
    )
    .await
}

async fn offer_or_stay(session: &Session, state: io::Result<Departing>) -> HandoverAnswer {
    let answer = match state {
        Ok(state) => match offer(state) {
            Some(answer) => answer.await.unwrap_or(HandoverAnswer::Refused),
            None => HandoverAnswer::Refused,
        },
        Err(error) => {
            tracing::debug!(session = session.id, %error, "cannot hand over a session");
            HandoverAnswer::Refused
        }
    };
    if answer == HandoverAnswer::Refused {
        session.stay();
    }
    answer
}

/// `None`: there is no process that takes it.
fn offer(state: Departing) -> Option<oneshot::Receiver<HandoverAnswer>> {
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
    let connected = &opened.connected;
    Ok(SessionState {
        client: ClientState::of(permits, client, &opened.attempts)?,
        backend: BackendName::of(connected.lease.backend()),
        connect_began: connected.began_micros,
        to_backend: Connection::of(&connected.connection.stream)?,
        relay,
    })
}
