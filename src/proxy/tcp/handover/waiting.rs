//! A session that waits for a backend leaves one process, and waits on in the other.

use super::{
    AttemptState, Connection, Unsuitable,
    format::{client, connection, peer, socket},
    resume::{Silences, find_attempts, kind_of},
};
use crate::{
    handover::session::waiting::{WaitRecord, WaitingRecord},
    plan::reason::Shortage,
    proxy::tcp::preamble::Preamble,
    runtime::{
        executor::{self, Stream, StreamKind},
        net::Client,
        time,
    },
    session::{
        admission::{self, Permits},
        registry::{Arrival, Continued},
        retry::{BackendSearch, hash_input},
        service::Service,
        summary::Attempt,
    },
    upstream::pool::{Carried, Waiting},
};
use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

/// A session that waits for a backend, as plain data.
#[derive(Debug)]
pub struct WaitingState {
    continued: Continued,
    /// When it began, see [`time::micros_at`].
    began: u64,
    /// When this process stopped to look at it, in the same microseconds.
    left: Option<u64>,
    listener: String,
    upstream: String,
    peer: Client,
    named: Option<Client>,
    server_port: Option<u16>,
    header: Option<Vec<u8>>,
    pub(super) payload: Vec<u8>,
    attempts: Vec<AttemptState>,
    /// For how long it waited since the last attempt, without the wait that lasts.
    waited: Duration,
    pub(super) to_client: Connection,
    /// `None`: it has not waited yet.
    wait: Option<Carried>,
}

/// A session that waits, with everything that it needs in this process. Nothing has happened to
/// its connection yet: dropped, it leaves it as it is.
pub struct WaitingArrival {
    service: Arc<Service>,
    preamble: Preamble,
    attempts: Vec<Attempt>,
    kind: StreamKind,
    state: WaitingState,
    silences: Arc<Silences>,
    /// Its place in the line, once it has one.
    waiting: Option<Waiting>,
}

/// Where the search for a backend goes on.
#[derive(Default)]
pub(in crate::proxy::tcp) struct Resumed {
    pub(in crate::proxy::tcp) waiting: Option<Waiting>,
    pub(in crate::proxy::tcp) waited: Duration,
}

/// What a session has been given before it has a backend.
pub(in crate::proxy::tcp) struct Unplaced {
    pub(in crate::proxy::tcp) preamble: Preamble,
    pub(in crate::proxy::tcp) attempts: Vec<Attempt>,
    pub(in crate::proxy::tcp) resumed: Resumed,
}

/// `wait`: `None` if the session has not waited.
pub(super) fn describe(
    permits: &Permits,
    client: &Stream,
    preamble: &Preamble,
    search: &BackendSearch<'_>,
    wait: Option<Carried>,
) -> io::Result<WaitingState> {
    let (service, session) = (permits.service(), permits.session());
    let (attempts, waited) = search.so_far();
    Ok(WaitingState {
        continued: session.continued(),
        began: time::micros_at(permits.began_at()),
        left: Some(time::micros_at(Instant::now())),
        listener: service.plan.name.clone(),
        upstream: service.pool.name.to_string(),
        peer: session.peer,
        named: session.proxied(),
        server_port: session.server_port,
        header: preamble.header(),
        payload: preamble.payload.clone(),
        attempts: attempts.iter().map(AttemptState::of).collect(),
        waited,
        to_client: Connection::of(client)?,
        wait,
    })
}

impl WaitingState {
    pub(super) fn id(&self) -> u64 {
        self.continued.id
    }

    pub fn record(&self) -> WaitingRecord {
        WaitingRecord {
            id: self.continued.id,
            began: self.began,
            left: self.left,
            received: self.continued.received,
            listener: self.listener.clone(),
            upstream: self.upstream.clone(),
            peer: peer(self.peer),
            named: self.named.map(peer),
            server_port: self.server_port,
            header: self.header.clone().map(Vec::into_boxed_slice),
            payload: self.payload.clone().into(),
            attempts: self.attempts.iter().map(AttemptState::record).collect(),
            waited: self.waited,
            to_client: socket(&self.to_client.state, None),
            wait: self.wait.map(|wait| WaitRecord {
                ticket: wait.ticket,
                lacks: wait.lacks.word().to_owned(),
                began: time::micros_at(wait.began),
                left: wait.left,
                stick_left: wait.stick_left,
            }),
        }
    }
}

fn carried(record: &WaitRecord, now: Instant) -> Result<Carried, Unsuitable> {
    let mut all = Shortage::ALL.iter();
    let lacks = all.find(|lacks| lacks.word() == record.lacks);
    Ok(Carried {
        ticket: record.ticket,
        lacks: *lacks.ok_or(Unsuitable::NotUnderstood)?,
        left: record.left,
        stick_left: record.stick_left,
        began: time::past_at(record.began, now),
    })
}

impl WaitingArrival {
    /// `service`: what its listener serves with.
    pub fn new(
        record: WaitingRecord,
        socket: std::os::fd::OwnedFd,
        service: Arc<Service>,
        silences: &Arc<Silences>,
    ) -> Result<Self, Unsuitable> {
        let kind = kind_of(&socket).ok_or(Unsuitable::NoConnection)?;
        let preamble = Preamble::of(record.header.as_deref(), record.payload.into());
        let wait = record.wait.as_ref();
        let attempts = record.attempts.into_iter().map(AttemptState::of_record);
        let attempts: Vec<_> = attempts.collect::<Result<_, _>>()?;
        let state = WaitingState {
            continued: Continued {
                id: super::format::checked_id(record.id)?,
                active_millis: record.began / 1_000,
                received: record.received,
                sent: 0,
            },
            began: record.began,
            left: record.left,
            listener: record.listener,
            upstream: record.upstream,
            peer: client(record.peer),
            named: record.named.map(client),
            server_port: record.server_port,
            header: None,
            payload: Vec::new(),
            attempts: Vec::new(),
            waited: record.waited,
            to_client: connection(socket, &record.to_client)?,
            wait: wait.map(|wait| carried(wait, Instant::now())).transpose()?,
        };
        Ok(Self {
            preamble: preamble.ok_or(Unsuitable::NotUnderstood)?,
            attempts: find_attempts(&service.pool, &attempts),
            kind,
            state,
            service,
            silences: Arc::clone(silences),
            waiting: None,
        })
    }

    /// Takes its place in the line, before those that come later.
    pub fn line_up(&mut self) {
        let Some(mut wait) = self.state.wait else {
            return;
        };
        let pool = &self.service.pool;
        if *pool.name != *self.state.upstream {
            // The order of another upstream means nothing here.
            wait.ticket = None;
        }
        let state = &self.state;
        let of_client = state.named.unwrap_or(state.peer);
        let input = hash_input(of_client, state.server_port, state.named);
        let search = pool.search_of_connection(&input);
        self.waiting = Some(pool.enter_carried(search, &wait, Instant::now()));
    }

    /// Takes its place among the sessions of this process. To be called on the worker that is to
    /// carry it.
    pub(in crate::proxy::tcp) fn open(self) -> (Permits, Stream, Box<Unplaced>) {
        let Self {
            service,
            preamble,
            attempts,
            kind,
            state,
            silences,
            waiting,
        } = self;
        let now = Instant::now();
        if let Some(left) = state.left {
            silences.add(left, now);
        }
        let arrival = Arrival {
            peer: state.peer,
            named: state.named,
            server_port: state.server_port,
            at: time::past_at(state.began, now),
        };
        let continued = Continued {
            active_millis: state.continued.active_millis.min(executor::now_millis()),
            ..state.continued
        };
        let permits = admission::admit_continued(&service, &continued, arrival);
        let Connection { socket, state: of } = state.to_client;
        let unplaced = Unplaced {
            preamble,
            attempts,
            resumed: Resumed {
                waiting,
                waited: state.waited,
            },
        };
        let client = Stream::taken_over(socket, kind, of);
        (permits, client, Box::new(unplaced))
    }
}
