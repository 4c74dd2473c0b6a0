//! A session of another process goes on in this one.

use super::{AttemptState, BackendName, Connection, SessionState};
use crate::{
    proxy::{
        relay::{BackendConnection, FirstByteObservers, Opening},
        tcp::connect::{Connected, Opened},
    },
    runtime::{
        executor::{Stream, StreamKind},
        time,
    },
    session::{
        admission::{self, Permits},
        service::Service,
        summary::Attempt,
    },
    sys::mutex::Mutex,
    upstream::{
        backend::{Backend, Lease},
        pool::Pool,
    },
};
use rustix::net::{
    AddressFamily, SocketType,
    sockopt::{socket_domain, socket_type},
};
use std::{
    fmt,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

/// A session with everything that it needs in this process. Nothing has happened to its connections
/// yet: dropped, it leaves them as they are.
pub struct Continuation {
    service: Arc<Service>,
    lease: Lease,
    attempts: Box<[Attempt]>,
    kinds: [StreamKind; 2],
    state: Box<SessionState>,
    silences: Arc<Silences>,
}

/// For how long sessions were relayed by neither process, in microseconds.
#[derive(Debug, Default)]
pub struct Silences(Mutex<Vec<u32>>);

impl Silences {
    pub(super) fn add(&self, left: u64, now: Instant) {
        let silence = time::micros_at(now).saturating_sub(left);
        let silence = u32::try_from(silence).unwrap_or(u32::MAX);
        self.0.lock().push(silence);
    }

    /// Those of so many parts of a thousand are shorter than these. `None`: there was no session.
    pub fn quantiles<const N: usize>(&self, permille: [usize; N]) -> Option<[Duration; N]> {
        let mut all = self.0.lock().clone();
        all.sort_unstable();
        let last = all.len().checked_sub(1)?;
        let at = |permille: usize| {
            all.get(last * permille / 1_000)
                .copied()
                .unwrap_or_default()
        };
        Some(permille.map(|permille| Duration::from_micros(at(permille).into())))
    }
}

/// Why this process cannot go on with a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsuitable {
    /// The listener is not in the plan.
    NoListener,
    /// The upstream is not in the plan, or has not this backend.
    NoBackend,
    /// A descriptor is not what it should be.
    NoConnection,
    /// A part of its state has a value that this version does not know.
    NotUnderstood,
    /// Its descriptors did not arrive: this process may open no more.
    NoDescriptors,
    /// The other process has it back.
    Withdrawn,
}

impl Unsuitable {
    pub fn word(self) -> &'static str {
        match self {
            Self::NoListener => "no_listener",
            Self::NoBackend => "no_backend",
            Self::NoConnection => "no_connection",
            Self::NotUnderstood => "not_understood",
            Self::NoDescriptors => "no_descriptors",
            Self::Withdrawn => "withdrawn",
        }
    }
}

impl fmt::Display for Unsuitable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoListener => "the new process has not its listener",
            Self::NoBackend => "the new process has not its backend",
            Self::NoConnection => "a descriptor of it was not what it should be",
            Self::NotUnderstood => "the new process does not know a value of its state",
            Self::NoDescriptors => "the new process may open no more files",
            Self::Withdrawn => "the new process was too late",
        })
    }
}

impl Continuation {
    /// `service`: what the listener of the session serves with, for sessions of its upstream.
    pub fn new(
        state: SessionState,
        service: Arc<Service>,
        silences: &Arc<Silences>,
    ) -> Result<Self, Unsuitable> {
        let kind = |connection: &Connection| kind_of(&connection.socket);
        let (client, server) = (kind(&state.client.connection), kind(&state.to_backend));
        let (Some(client), Some(server)) = (client, server) else {
            return Err(Unsuitable::NoConnection);
        };
        let backend = find(&service.pool, &state.backend).ok_or(Unsuitable::NoBackend)?;
        Ok(Self {
            lease: Lease::new(backend),
            attempts: find_attempts(&service.pool, &state.client.attempts).into(),
            kinds: [client, server],
            state: Box::new(state),
            service,
            silences: Arc::clone(silences),
        })
    }

    /// Takes its place among the sessions of this process. To be called on the worker that is to
    /// carry it.
    pub(in crate::proxy::tcp) fn open(self) -> (Permits, Stream, Box<Opened>) {
        let Self {
            service,
            lease,
            attempts,
            kinds: [client, server],
            state,
            silences,
        } = self;
        let now = Instant::now();
        let permits = state.client.admit(&service, &silences, now);
        permits.session().set_backend(lease.backend().id);
        let observers = observers(&service.pool, lease.backend());
        let stream = |Connection { socket, state }, kind| Stream::taken_over(socket, kind, state);
        let opened = Opened {
            connected: Connected {
                connection: BackendConnection {
                    stream: stream(state.to_backend, server),
                    opening: Some(Box::new(Opening {
                        first: None,
                        observers,
                        bandwidth: admission::bandwidth(&permits, now),
                        state: Some(Box::new(state.relay)),
                    })),
                },
                lease,
                began_micros: state.connect_began,
            },
            attempts,
        };
        (
            permits,
            stream(state.client.connection, client),
            Box::new(opened),
        )
    }
}

fn find(pool: &Pool, name: &BackendName) -> Option<Arc<Backend>> {
    pool.backend_named(&name.text, &name.addr)
}

/// Those at backends that this process has.
pub(super) fn find_attempts(pool: &Pool, attempts: &[AttemptState]) -> Vec<Attempt> {
    let attempt = |attempt: &AttemptState| {
        Some(Attempt {
            backend: find(pool, &attempt.backend)?,
            result: attempt.result,
            time: attempt.time,
            waited: attempt.waited,
        })
    };
    attempts.iter().filter_map(attempt).collect()
}

/// What is still to learn from the first byte of an answer.
fn observers(pool: &Arc<Pool>, backend: &Arc<Backend>) -> FirstByteObservers {
    FirstByteObservers {
        // It does not know when the wait began.
        clock: None,
        pool: pool
            .fail_on_reset
            .then(|| (Arc::clone(pool), Arc::clone(backend))),
    }
}

/// `None`: it is no connection.
pub(super) fn kind_of(socket: &OwnedFd) -> Option<StreamKind> {
    if socket_type(socket.as_fd()).ok()? != SocketType::STREAM {
        return None;
    }
    match socket_domain(socket.as_fd()).ok()? {
        AddressFamily::UNIX => Some(StreamKind::Unix),
        AddressFamily::INET | AddressFamily::INET6 => Some(StreamKind::Tcp),
        _ => None,
    }
}
