//! A session that waits for a backend leaves one process, and waits on in the other.

use super::{
    AttemptState, ClientState, Connection, Unsuitable,
    format::{client_of, connection, peer, socket},
    resume::{Silences, find_attempts, kind_of},
};
use crate::{
    handover::session::waiting::{WaitRecord, WaitingRecord},
    plan::reason::Shortage,
    proxy::tcp::preamble::Preamble,
    runtime::{
        executor::{Stream, StreamKind},
        time,
    },
    session::{
        admission::Permits,
        registry::Continued,
        retry::{BackendSearch, hash_input},
        service::Service,
        summary::Attempt,
    },
    upstream::pool::{Carried, WaitingSession},
};
use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

/// A session that waits for a backend, as plain data.
#[derive(Debug)]
pub struct WaitingState {
    pub(super) client: ClientState,
    header: Option<Vec<u8>>,
    pub(super) payload: Vec<u8>,
    /// For how long it waited since the last attempt, without the wait that lasts.
    waited: Duration,
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
    waiting: Option<WaitingSession>,
}

/// Where the search for a backend goes on.
#[derive(Default)]
pub(in crate::proxy::tcp) struct Resumed {
    pub(in crate::proxy::tcp) waiting: Option<WaitingSession>,
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
    let (attempts, waited) = search.so_far();
    Ok(WaitingState {
        client: ClientState::of(permits, client, attempts)?,
        header: preamble.header(),
        payload: preamble.payload.clone(),
        waited,
        wait,
    })
}

impl WaitingState {
    pub fn record(&self) -> WaitingRecord {
        let client = &self.client;
        WaitingRecord {
            id: client.continued.id,
            began: client.began,
            left: client.left,
            received: client.continued.received,
            listener: client.listener.clone(),
            upstream: client.upstream.clone(),
            peer: peer(client.peer),
            named: client.named.map(peer),
            server_port: client.server_port,
            header: self.header.clone().map(Vec::into_boxed_slice),
            payload: self.payload.clone().into(),
            attempts: client.attempts.iter().map(AttemptState::record).collect(),
            waited: self.waited,
            to_client: socket(&client.connection.state, None),
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
        let client = ClientState {
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
            peer: client_of(record.peer),
            named: record.named.map(client_of),
            server_port: record.server_port,
            attempts: Vec::new(),
            connection: connection(socket, &record.to_client)?,
        };
        let state = WaitingState {
            client,
            header: None,
            payload: Vec::new(),
            waited: record.waited,
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
        if *pool.name != *self.state.client.upstream {
            // The order of another upstream means nothing here.
            wait.ticket = None;
        }
        let client = &self.state.client;
        let of_client = client.named.unwrap_or(client.peer);
        let input = hash_input(of_client, client.server_port, client.named);
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
        let permits = state.client.admit(&service, &silences, Instant::now());
        let Connection { socket, state: of } = state.client.connection;
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
