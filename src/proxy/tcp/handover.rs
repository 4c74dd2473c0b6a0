//! Sessions that move between two processes: each leaves one at a wait, as plain data with its
//! descriptors, and goes on in the other.
//!
//! The process that a session leaves keeps its own descriptors, and does nothing with them, until
//! it knows whether the other has taken the session: one of both relays it, never both.

mod format;
mod resume;
mod suspend;
mod waiting;

pub use resume::{Continuation, Silences, Unsuitable};
pub use suspend::{Departing, Departure, HandoverAnswer};
pub use waiting::WaitingArrival;

pub(super) use suspend::{hand_over, hand_over_waiting, set_exit};
pub(super) use waiting::{Resumed, Unplaced};

use crate::{
    plan::Addr,
    proxy::relay::RelayState,
    runtime::{
        executor::{self, Stream, StreamState},
        net::Client,
        time,
    },
    session::{
        admission::{self, Permits},
        registry::{Arrival, Continued},
        service::Service,
        summary::{Attempt, AttemptResult},
    },
    upstream::backend::Backend,
};
use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

/// A session that comes from another process.
pub enum Arriving {
    Relayed(Continuation),
    Waiting(Box<WaitingArrival>),
}

/// A session that is relayed, as plain data.
#[derive(Debug)]
pub struct SessionState {
    pub client: ClientState,
    pub backend: BackendName,
    /// When the attempt that succeeded began, in microseconds after the session began.
    pub connect_began: u64,
    pub to_backend: Connection,
    pub relay: RelayState,
}

/// What a session has from its client, with a backend or without.
#[derive(Debug)]
pub struct ClientState {
    pub continued: Continued,
    /// When it began, see [`crate::runtime::time::micros_at`].
    pub began: u64,
    /// When this process stopped to look at it, in the same microseconds.
    pub left: Option<u64>,
    pub listener: String,
    pub upstream: String,
    pub peer: Client,
    /// The client that a PROXY protocol header has named.
    pub named: Option<Client>,
    /// The port that the client connected to; `None` on a unix socket.
    pub server_port: Option<u16>,
    /// Of the access log.
    pub attempts: Vec<AttemptState>,
    pub connection: Connection,
}

/// What names a backend in every process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendName {
    /// The address as configured.
    pub text: String,
    /// What that text stood for.
    pub addr: Addr,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptState {
    pub backend: BackendName,
    pub result: AttemptResult,
    pub time: Duration,
    pub waited: Duration,
}

#[derive(Debug)]
pub struct Connection {
    pub socket: OwnedFd,
    pub state: StreamState,
}

impl ClientState {
    fn of(permits: &Permits, client: &Stream, attempts: &[Attempt]) -> io::Result<Self> {
        let (service, session) = (permits.service(), permits.session());
        Ok(Self {
            continued: session.continued(),
            began: time::micros_at(permits.began_at()),
            left: Some(time::micros_at(Instant::now())),
            listener: service.plan.name.clone(),
            upstream: service.pool.name.to_string(),
            peer: session.peer,
            named: session.proxied(),
            server_port: session.server_port,
            attempts: attempts.iter().map(AttemptState::of).collect(),
            connection: Connection::of(client)?,
        })
    }

    /// Takes its place among the sessions of this process.
    fn admit(&self, service: &Arc<Service>, silences: &Silences, now: Instant) -> Permits {
        if let Some(left) = self.left {
            silences.add(left, now);
        }
        let arrival = Arrival {
            peer: self.peer,
            named: self.named,
            server_port: self.server_port,
            at: time::past_at(self.began, now),
        };
        let continued = Continued {
            active_millis: self.continued.active_millis.min(executor::now_millis()),
            ..self.continued
        };
        admission::admit_continued(service, &continued, arrival)
    }
}

impl BackendName {
    fn of(backend: &Backend) -> Self {
        Self {
            text: backend.text().to_string(),
            addr: backend.addr.clone(),
        }
    }
}

impl AttemptState {
    fn of(attempt: &Attempt) -> Self {
        Self {
            backend: BackendName::of(&attempt.backend),
            result: attempt.result,
            time: attempt.time,
            waited: attempt.waited,
        }
    }
}

impl Connection {
    /// With a descriptor of its own.
    fn of(stream: &Stream) -> io::Result<Self> {
        Ok(Self {
            socket: stream.as_fd().try_clone_to_owned()?,
            state: stream.state(),
        })
    }
}
