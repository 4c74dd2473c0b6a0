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
        executor::{Stream, StreamState},
        net::Client,
    },
    session::{
        registry::Continued,
        summary::{Attempt, AttemptResult},
    },
    upstream::backend::Backend,
};
use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    time::Duration,
};

/// A session that comes from another process.
pub enum Arriving {
    Relayed(Continuation),
    Waiting(Box<WaitingArrival>),
}

/// A session that is relayed, as plain data.
#[derive(Debug)]
pub struct SessionState {
    pub continued: Continued,
    /// When it began, see [`crate::runtime::time::micros_at`].
    pub began: u64,
    /// When its relay stopped, in the same microseconds.
    pub left: Option<u64>,
    pub listener: String,
    pub upstream: String,
    pub peer: Client,
    /// The client that a PROXY protocol header has named.
    pub named: Option<Client>,
    /// The port that the client connected to; `None` on a unix socket.
    pub server_port: Option<u16>,
    pub backend: BackendName,
    /// When the attempt that succeeded began, in microseconds after the session began.
    pub connect_began: u64,
    /// Of the access log.
    pub attempts: Vec<AttemptState>,
    pub to_client: Connection,
    pub to_backend: Connection,
    pub relay: RelayState,
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
