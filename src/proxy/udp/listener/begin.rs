//! A flow begins: whether it may, and on which backend.

use super::{
    super::{
        flow::{self, Flow, FlowSocket},
        header,
        port::{PortUse, PortUsers},
        table::Key,
        token::Token,
    },
    Listener, NotBegun, Start, client_of, drop_reason,
    waiting_flows::{AdmittedFlow, Candidate, WaitsFor},
};
use crate::{
    plan::{
        SendProxy,
        reason::{DropReason, RejectReason},
    },
    proxy::udp::context::Context,
    runtime::{mailbox::Message, net::Client},
    session::{
        admission,
        registry::{Arrival, Session},
        retry::{BackendSearch, hash_input},
        service::Call,
        summary::{Attempt, RefusedSession, Summary, Unserved},
    },
    telemetry::access_log::AccessLogWriter,
    upstream::{
        backend::Lease,
        pool::{ConnectTimer, Search, WaitingSession},
    },
};
use rustix::event::epoll::EventFlags;
use std::{
    net::{SocketAddr, UdpSocket},
    os::fd::AsFd as _,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

/// A backend, and the socket towards it.
struct Opened {
    socket: UdpSocket,
    lease: Lease,
    clock: Option<Box<ConnectTimer>>,
}

enum NotOpened {
    Unserved(Unserved),
    Waits(WaitingSession),
}

impl Listener {
    pub(super) fn begin(
        &mut self,
        context: &mut Context,
        key: Key,
        start: Start<'_>,
    ) -> Result<u32, NotBegun> {
        if self.waiting.has(&key) {
            return Err(NotBegun::Dropped(DropReason::Waiting));
        }
        let service = Arc::clone(&self.service);
        service.metrics.counts.mine().connections.add(1);
        let refuses = !start.moves && service.process.sessions.refuses_flows();
        let port = match refuses {
            true => Err(RejectReason::Drained),
            false => self.use_port(&key, start.moves),
        };
        let admitted = port.and_then(|port| {
            let arrival = self.arrival(context, &key);
            let (permits, socket) = self.admit(context, arrival, start.moves)?;
            let delay = match start.moves {
                true => None,
                false => admission::delay(&permits, context.now)?,
            };
            Ok((port, permits, socket, delay))
        });
        let (port, permits, socket, delay) = admitted.map_err(|reason| {
            self.refuse(context, &key, reason);
            NotBegun::Dropped(DropReason::Rejected)
        })?;
        let Start {
            picked,
            tlvs,
            header,
            ..
        } = start;
        let header = match service.send_proxy {
            SendProxy::Off => None,
            SendProxy::V1 | SendProxy::V2 { .. } => {
                let given = header.filter(|header| !header.is_empty());
                Some(given.unwrap_or_else(|| self.encode_header(&key, tlvs)))
            }
        };
        let beginning = AdmittedFlow {
            key,
            port,
            permits,
            socket,
            header,
            attempts: Vec::new(),
        };
        if let Some(delay) = delay.filter(|_| self.may_wait()) {
            return Err(self.enter_waiting(context, beginning, WaitsFor::Rate(delay)));
        }
        let candidate = picked.map_or(Candidate::Unknown, |(lease, search)| {
            Candidate::Picked(lease, search)
        });
        self.find_backend(context, beginning, candidate)
    }

    /// Begins a flow that is admitted, once there is a backend for it.
    pub(super) fn find_backend(
        &mut self,
        context: &mut Context,
        mut beginning: AdmittedFlow,
        candidate: Candidate,
    ) -> Result<u32, NotBegun> {
        // Every change from here on may concern the backend that is picked.
        let changes = beginning.permits.service().pool.changes();
        let opened = match self.open(context, &mut beginning, candidate) {
            Ok(opened) => opened,
            Err(NotOpened::Waits(waiting)) => {
                let waits_for = WaitsFor::Backend(waiting);
                return Err(self.enter_waiting(context, beginning, waits_for));
            }
            Err(NotOpened::Unserved(unserved)) => {
                let session = beginning.permits.session();
                self.finish_unserved(context, session, unserved, &beginning.attempts);
                return Err(NotBegun::Dropped(drop_reason(unserved)));
            }
        };
        let AdmittedFlow {
            key,
            port,
            permits,
            socket: socket_permit,
            header,
            attempts,
        } = beginning;
        let Opened {
            socket,
            lease,
            clock,
        } = opened;
        let serial = context.next_serial();
        let link = FlowSocket {
            socket,
            _permit: socket_permit,
        };
        let flow = Flow {
            changes,
            ..Flow::new(key, serial, link, port, permits, lease, context.now)
        };
        self.register(context, flow.with_extras(header, clock, attempts))
    }

    /// Whether a flow may wait before it begins. Datagrams that are balanced each on its own do
    /// not.
    fn may_wait(&self) -> bool {
        !self.udp.per_packet && !self.is_draining && self.waiting.has_space()
    }

    /// At an address that is to be closed a flow begins only if it replaces another one.
    fn use_port(&self, key: &Key, moves: bool) -> Result<PortUse, RejectReason> {
        let open = &self.ports[usize::from(key.port)];
        let users = Some(&open.port.users).filter(|_| moves || !open.is_closing);
        users.and_then(PortUsers::take).ok_or(RejectReason::Drained)
    }

    /// Waits for replies on the socket of a new flow, and enters it everywhere.
    fn register(&mut self, context: &Context, flow: Flow) -> Result<u32, NotBegun> {
        let number = self.flows.vacant_key() as u32;
        let token = Token::flow(self.index, flow.serial, number);
        let socket = &flow.link.socket;
        if let Err(error) = context.reactor.register(socket, token, EventFlags::IN) {
            self.service
                .log_failed_call(Call::Register, &error, context.now);
            return Err(NotBegun::Dropped(DropReason::NoBackend));
        }
        let backend = flow.lease.backend();
        backend.metrics.counts.mine().connections.add(1);
        flow.permits.session().set_active(context.ms);
        let due = context.ms + self.idle_ms;
        let number = self.enter(context, flow, due);
        let flows = &self.flows;
        let key = &flows[number as usize].key;
        self.table.insert(key, number, |n| &flows[n as usize].key);
        self.count_flows();
        Ok(number)
    }

    /// Enters a flow that will have been idle for too long at `due`.
    pub(super) fn enter(&mut self, context: &Context, flow: Flow, due: u64) -> u32 {
        let number = self.flows.vacant_key() as u32;
        let token = Token::flow(self.index, flow.serial, number);
        let session = flow.permits.session();
        session.set_socket(flow.link.socket.as_fd());
        session.wake_by(&context.mailbox.waker(token));
        // It may have been terminated before it had a waker.
        if session.must_end().is_some() {
            context.mailbox.send(Message::Wake(token));
        }
        self.flows.insert(flow);
        self.wheel.insert(number, due, context.ms);
        number
    }

    /// Counts, logs and records that a datagram begins no flow.
    pub(super) fn refuse(&mut self, context: &Context, key: &Key, reason: RejectReason) {
        let refusal = RefusedSession {
            reason,
            peer: Client::Ip(key.peer),
            named: named(key),
            duration: Duration::ZERO,
        };
        let service = Arc::clone(&self.service);
        service.log_rejection(reason, &key.peer, None, context.now);
        service.finish_refused(&refusal, self.refusal_log(context));
    }

    pub(super) fn finish_unserved(
        &mut self,
        context: &Context,
        session: &Session,
        unserved: Unserved,
        attempts: &[Attempt],
    ) {
        let summary = Summary::unserved(session, unserved, attempts, Duration::ZERO);
        let service = Arc::clone(&self.service);
        service.finish(&summary, self.refusal_log(context), context.now);
    }

    /// The access log, for a datagram that begins no flow. The sources of such datagrams may be
    /// forged, so only some in each second get a record: they must not crowd out the records of
    /// sessions.
    fn refusal_log(&mut self, context: &Context) -> Option<&AccessLogWriter> {
        let log = self.service.access_log()?;
        self.refusal_records.take(context.ms).then_some(log)
    }

    pub(super) fn count_flows(&self) {
        self.own_worker
            .flows
            .store(self.flows.len() as u64, Relaxed);
    }

    /// Whether one more flow of the same client would be admitted.
    pub(super) fn has_room(&self, key: &Key) -> bool {
        let client = Client::Ip(client_of(key));
        admission::has_room_for_flow(&self.service, client)
    }

    pub(super) fn search(&self, key: &Key) -> Search {
        let client = Client::Ip(client_of(key));
        let input = hash_input(client, Some(self.server_port(key)), named(key));
        self.service.pool.search(&input)
    }

    /// Finds a backend, and opens a socket towards it.
    fn open(
        &self,
        context: &Context,
        beginning: &mut AdmittedFlow,
        candidate: Candidate,
    ) -> Result<Opened, NotOpened> {
        let (permits, attempts) = (&beginning.permits, &mut beginning.attempts);
        let service = permits.service();
        let search = BackendSearch::new(service, permits.session(), attempts);
        let mut search = match candidate {
            Candidate::Unknown => search,
            Candidate::Picked(lease, picked) => search.begin_with(lease, picked),
            Candidate::Served(served) => search.begin_served(*served),
        };
        loop {
            let lease = search.next(context.now).map_err(|lacks| {
                let waiting = match self.may_wait() {
                    true => search.wait(lacks, context.now),
                    false => None,
                };
                waiting.map_or_else(
                    || NotOpened::Unserved(search.unserved(lacks)),
                    NotOpened::Waits,
                )
            })?;
            let backend = lease.backend();
            match flow::connect(&backend.addr) {
                Ok(socket) if search.reached(backend, Duration::ZERO, context.now) => {
                    return Ok(Opened {
                        socket,
                        clock: ConnectTimer::start(&service.pool, backend, context.now),
                        lease,
                    });
                }
                Ok(_) => {}
                Err(error) => search.failed(backend, &error, Duration::ZERO, context.now),
            }
        }
    }

    fn arrival(&self, context: &Context, key: &Key) -> Arrival {
        Arrival {
            peer: Client::Ip(key.peer),
            named: named(key),
            server_port: Some(self.server_port(key)),
            at: context.now,
        }
    }

    fn server_port(&self, key: &Key) -> u16 {
        self.ports[usize::from(key.port)].port.address.port()
    }

    fn encode_header(&self, key: &Key, tlvs: &[u8]) -> Box<[u8]> {
        header::write(key.peer, self.local_of(key), key.more.as_deref(), tlvs)
    }

    pub(super) fn local_of(&self, key: &Key) -> SocketAddr {
        let bound = self.ports[usize::from(key.port)].port.address;
        let ip = key.local.map_or(bound.ip(), |local| local.ip);
        SocketAddr::new(ip, bound.port())
    }
}

/// The client that a PROXY protocol header has named.
fn named(key: &Key) -> Option<Client> {
    key.named().map(|(source, _)| Client::Ip(source))
}
