//! A flow begins: whether it may, and on which backend.

use super::{
    super::{
        batch_size::BatchSize,
        flow::{self, Flow, Link},
        header, per_source,
        sockets::Leave,
        table::Key,
        token::{SERIAL, Token},
    },
    Listener, NotBegun, Start, client_of,
};
use crate::{
    plan::{
        SendProxy, WhenFull, access,
        reason::{CloseReason, ConnectError, RejectReason},
    },
    proxy::udp::context::Context,
    runtime::{mailbox::Message, net::Client},
    session::{
        registry::Listed,
        service::{Call, Slot},
    },
    telemetry::access_log,
    upstream::{
        backend::Lease,
        balance::Facts,
        pool::{Clock, Search},
    },
};
use rustix::event::epoll::EventFlags;
use std::{
    net::{SocketAddr, UdpSocket},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

/// Its places in all that is limited.
struct Admitted {
    slot: Slot,
    session: Listed,
    place: Option<Box<per_source::Place>>,
    leave: Leave,
}

/// A backend, and the way to it.
struct Opened {
    socket: UdpSocket,
    lease: Lease,
    clock: Option<Box<Clock>>,
}

/// Flows that may have to go for one.
const EVICTIONS: usize = 3;

impl Listener {
    pub(super) fn begin(
        &mut self,
        gear: &mut Context,
        key: Key,
        start: Start<'_>,
    ) -> Result<u32, NotBegun> {
        let service = Arc::clone(&self.service);
        // What changes from here on may concern the backend that is picked.
        let changes = service.pool.changes();
        service.metrics.counts.mine().connections.add(1);
        let Admitted {
            slot,
            session,
            place,
            leave,
        } = self.admit(gear, &key, start.moves).map_err(|reason| {
            service.reject(reason, &key.peer, gear.now);
            self.record_refusal(gear, &key, reason.word(), &[]);
            NotBegun::Rejected
        })?;
        let named = key.more.as_ref().and_then(|more| more.named);
        if let Some((source, _)) = named {
            session.set_proxied(Client::Ip(source));
        }
        let Start {
            picked,
            tlvs,
            header,
            ..
        } = start;
        let mut attempts = Vec::new();
        let opened = self.open(gear, &key, &session, picked, &mut attempts);
        let opened = opened.map_err(|why| {
            let reason = match why {
                None => CloseReason::NoBackend,
                Some(_) => CloseReason::ConnectFailed,
            };
            service.metrics.closed(reason);
            service.log_unserved(reason, &session.client(), why, gear.now);
            self.record_refusal(gear, &key, reason.word(), &attempts);
            NotBegun::NoBackend
        })?;
        let Opened {
            socket,
            lease,
            clock,
        } = opened;
        let mut rare = flow::Rare {
            clock,
            ..flow::Rare::default()
        };
        if service.send_proxy != SendProxy::Off {
            let write = || {
                let local = self.local_of(&key);
                header::write(key.peer, local, key.more.as_deref(), tlvs)
            };
            rare.header = header.filter(|h| !h.is_empty()).unwrap_or_else(write);
            rare.header_is_due = true;
        }
        let is_logged = service.process.access_log.is_some();
        if is_logged {
            rare.attempts = attempts;
        }
        let is_rare = is_logged || rare.clock.is_some() || rare.header_is_due;
        gear.serial = (gear.serial + 1) & ((1 << SERIAL) - 1);
        let number = self.flows.vacant_key() as u32;
        let token = Token::flow(self.index, gear.serial, number);
        if let Err(error) = gear.reactor.register(&socket, token, EventFlags::IN) {
            service.log_failed_call(Call::Register, &error, gear.now);
            return Err(NotBegun::NoBackend);
        }
        lease.backend().metrics.counts.mine().connections.add(1);
        session.wake_by(&gear.mailbox.waker(token));
        // It was told to end before it had a waker.
        if session.must_end().is_some() {
            gear.mailbox.send(Message::Wake(token));
        }
        self.flows.insert(Flow {
            key,
            serial: gear.serial,
            link: Link {
                socket,
                _leave: leave,
            },
            session,
            lease,
            _slot: slot,
            _place: place,
            opened: gear.now,
            last: gear.ms,
            changes,
            taken: 0,
            sent: 0,
            replies: 0,
            dropped: 0,
            retired: None,
            refused: false,
            on_trial: true,
            splits: true,
            splits_back: true,
            coalesces: false,
            receive_failures: 0,
            batch_size: BatchSize::ONE,
            rare: is_rare.then(|| Box::new(rare)),
        });
        let flows = &self.flows;
        let key = &flows[number as usize].key;
        self.table.insert(key, number, |n| &flows[n as usize].key);
        self.wheel.insert(number, gear.ms + self.idle, gear.ms);
        self.count_flows();
        Ok(number)
    }

    /// Leaves a record of a datagram that began no flow. Their senders may be forged, so that only
    /// some in each second get one: they must not crowd out the records of sessions.
    pub(super) fn record_refusal(
        &mut self,
        gear: &Context,
        key: &Key,
        reason: &'static str,
        attempts: &[flow::Attempt],
    ) {
        let service = &self.service;
        if let Some(log) = &service.process.access_log
            && self.refusal_records.take(gear.ms)
        {
            let named = key.more.as_ref().and_then(|more| more.named);
            let named = named.map(|(source, _)| Client::Ip(source));
            let peer = Client::Ip(key.peer);
            log.record(&access_log::Record {
                attempts: attempts.iter().map(flow::Attempt::logged).collect(),
                ..service.record(peer, named, reason, Duration::ZERO)
            });
        }
    }

    pub(super) fn count_flows(&self) {
        self.here.flows.store(self.flows.len() as u64, Relaxed);
    }

    /// Whether one more may be.
    fn admit(
        &mut self,
        gear: &mut Context,
        key: &Key,
        moves: bool,
    ) -> Result<Admitted, RejectReason> {
        // The shared flag is set before `/readyz` reports it; this worker may not have woken since.
        if self.is_draining || self.service.process.sessions.is_stopping() {
            return Err(RejectReason::Drained);
        }
        let client = client_of(key);
        let rules = &self.service.plan.access;
        if !rules.is_empty() && !access::allows(rules, Some(client.ip())) {
            return Err(RejectReason::Access);
        }
        let place = match self.per_source.has_limit() {
            true => {
                let place = self.per_source.take(client.ip());
                Some(place.ok_or(RejectReason::MaxFlowsPerSource)?)
            }
            false => None,
        };
        let service = Arc::clone(&self.service);
        // Those of flows that are over count: it is better to refuse one than to give it the port
        // of a late reply. Who moves leaves such a one behind, and has been let in before.
        let leave = match moves {
            true => gear.sockets.take_anyway(),
            false => gear.sockets.take().ok_or(RejectReason::NoPorts)?,
        };
        let sessions = &service.process.sessions;
        let port = self.ports[usize::from(key.port)].port.address.port();
        let session = self
            .or_evict(gear, || sessions.list_flow(Client::Ip(key.peer), port))
            .ok_or(RejectReason::ProcessMaxFlows)?;
        let slot = self.slot(gear).ok_or(RejectReason::MaxConnections)?;
        Ok(Admitted {
            slot,
            session,
            place,
            leave,
        })
    }

    /// Whether one more of the same client would be let in, whoever else comes.
    pub(super) fn has_room(&self, key: &Key) -> bool {
        let most = self.service.plan.max_connections;
        let flows = self.service.process.sessions.flows();
        (most == 0 || self.service.metrics.active() < most)
            && flows.count() < flows.most()
            && self.per_source.has_room(client_of(key).ip())
    }

    /// Makes room by ending the flow that has been idle for longest, if that is what is to be done.
    pub(super) fn or_evict<T>(
        &mut self,
        gear: &mut Context,
        take: impl Fn() -> Option<T>,
    ) -> Option<T> {
        let mut taken = take();
        if self.udp.when_full == WhenFull::Refuse {
            return taken;
        }
        // Others may take the place that is made.
        for _ in 0..EVICTIONS {
            if taken.is_some() || self.flows.is_empty() {
                break;
            }
            self.make_room(gear);
            taken = take();
        }
        taken
    }

    /// One of those that the listener may have, over all workers. This one makes room itself where
    /// it has its share of them, and else lets one do it that has more: nobody is pushed out here
    /// for those who are silent there.
    fn slot(&mut self, gear: &mut Context) -> Option<Slot> {
        let service = Arc::clone(&self.service);
        let slot = Slot::take(&service);
        if slot.is_some() || self.udp.when_full == WhenFull::Refuse {
            return slot;
        }
        let share = self.peers.share(service.plan.max_connections);
        if (self.flows.len() as u64) < share {
            let take = || Slot::take_anyway(&service);
            if let Some(slot) = self.peers.evict_one(&self.here, take) {
                return Some(slot);
            }
        }
        self.or_evict(gear, || Slot::take(&service))
    }

    /// Another worker has let one in for which one here is to go, if there are still too many.
    pub(in crate::proxy::udp) fn make_room_for_others(&mut self, gear: &mut Context) {
        self.peers.note_executed();
        if self.service.metrics.active() > self.service.plan.max_connections {
            self.make_room(gear);
        }
    }

    fn make_room(&mut self, gear: &mut Context) {
        // What has come for it goes first.
        self.deliver_all(gear);
        let (flows, idle, responses) = (&self.flows, self.idle, self.udp.responses);
        let due = |number| flows[number as usize].due(idle, responses, false);
        if let Some(oldest) = self.wheel.oldest(gear.ms, due) {
            self.close(gear, oldest, CloseReason::Evicted);
        }
    }

    pub(super) fn search(&self, key: &Key) -> Search {
        let client = client_of(key);
        let named = key.more.as_ref().and_then(|more| more.named);
        let port = self.ports[usize::from(key.port)].port.address.port();
        self.service.pool.search(&Facts {
            remote_addr: Some(client.ip()),
            remote_port: Some(client.port()),
            server_port: Some(port),
            proxy_protocol_addr: named.map(|(source, _)| source.ip()),
        })
    }

    /// Finds a backend, and a socket towards it; or says what was in the way of those that were
    /// tried last.
    fn open(
        &self,
        gear: &Context,
        key: &Key,
        session: &Listed,
        picked: Option<(Lease, Search)>,
        attempts: &mut Vec<flow::Attempt>,
    ) -> Result<Opened, Option<ConnectError>> {
        let service = &self.service;
        let (mut picked, mut search) = match picked {
            Some((lease, search)) => (Some(lease), search),
            None => (None, self.search(key)),
        };
        let is_logged = service.process.access_log.is_some();
        let mut failed = 0;
        let mut why = None;
        while failed <= service.plan.retries {
            let lease = match picked.take() {
                Some(lease) => lease,
                None => service.pool.pick(&mut search, gear.now).ok_or(why)?,
            };
            let backend = lease.backend();
            let mut note = |result| {
                if is_logged {
                    let backend = Arc::clone(backend);
                    attempts.push(flow::Attempt { backend, result });
                }
            };
            let counts = backend.metrics.counts.mine();
            if failed > 0 {
                counts.retries.add(1);
            }
            match flow::connect(&backend.place) {
                Ok(socket) => {
                    session.set_backend(backend.id);
                    if service.pool.taken(&search, gear.now) {
                        note("ok");
                        let clock = Clock::start(&service.pool, backend, gear.now);
                        return Ok(Opened {
                            socket,
                            lease,
                            clock,
                        });
                    }
                    // It was left since it was picked. That is nobody's failure.
                    session.set_backend(0);
                    note("left");
                }
                Err(error) => {
                    let reason = ConnectError::of(&error);
                    note(reason.word());
                    why = Some(reason);
                    self.failed(backend, &error);
                    failed += 1;
                }
            }
        }
        Err(why)
    }

    pub(super) fn local_of(&self, key: &Key) -> SocketAddr {
        let bound = self.ports[usize::from(key.port)].port.address;
        let ip = key.local.map_or(bound.ip(), |local| local.ip);
        SocketAddr::new(ip, bound.port())
    }
}
