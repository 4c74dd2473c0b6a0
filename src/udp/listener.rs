//! The flows of one listener on one worker: from the first datagram of a client to the last reply.

use super::{
    Binding, PerSource, Port,
    batch::{self, Piece},
    bell::FlowBell,
    flow::{self, Flow},
    header::{self, Begins},
    per_source,
    table::{Key, More, Table},
    wheel::Wheel,
    worker::{Gear, Reply, Unit, drop_reason, empty, is_about_splitting},
};
use crate::{
    access,
    backend::{Backend, Lease},
    balance::Facts,
    following::{blame, tell_that_it_is_back},
    net::Client,
    plan::{Protocol, ProxyOn, SendProxy, Udp, WhenFull},
    pool::{Clock, Search},
    reason::{CloseReason, ConnectError, DropReason, RejectReason},
    service::{Service, Slot},
    sessions::Listed,
    sys::datagram::{self, BATCH, Message, take_coalesced},
};
use ahash::AHashMap;
use rustix::event::epoll;
use slab::Slab;
use smallvec::SmallVec;
use std::{
    io::{self, IoSlice},
    net::{SocketAddr, UdpSocket},
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, atomic::Ordering::Relaxed},
    task::Waker,
    time::Duration,
};
use tokio_util::task::task_tracker::TaskTrackerToken;

/// Replies that one flow may hand over before others get a turn.
const REPLIES: usize = 16;
/// A flow that has had so many is asked to have runs of them put together. Short ones do not pay the call for it.
const SUSTAINED: u32 = 16;
/// For how long a flow that has gone elsewhere waits for what its old backend still owes, in milliseconds.
const LINGER: u64 = 5_000;
/// While the process ends, a flow that was silent for so long is over.
const QUIET: u64 = 1_000;
/// Without a limit of its own.
const IDLE: Duration = Duration::from_secs(60);
/// What came before the process was told to end is still taken: so many batches of it.
const LAST: usize = 64;

/// What the event loop calls something by.
pub(super) enum Token {
    Bell,
    Port {
        listener: usize,
        port: u16,
    },
    Flow {
        listener: usize,
        serial: u32,
        number: u32,
    },
}

/// Bits of a serial: enough that none comes again while an event is on its way.
const SERIAL: u32 = 20;
/// From here on numbers are those of ports.
const PORTS: u32 = u32::MAX - u16::MAX as u32;

impl Token {
    pub(super) const BELL: u64 = u64::MAX;

    fn port(listener: usize, port: u16) -> u64 {
        Self::flow(listener, 0, PORTS + u32::from(port))
    }

    fn flow(listener: usize, serial: u32, number: u32) -> u64 {
        (listener as u64) << (32 + SERIAL) | u64::from(serial) << 32 | u64::from(number)
    }

    pub(super) fn of(bits: u64) -> Self {
        let listener = (bits >> (32 + SERIAL)) as usize;
        let number = bits as u32;
        match number.checked_sub(PORTS) {
            _ if bits == Self::BELL => Self::Bell,
            Some(port) => Self::Port {
                listener,
                port: port as u16,
            },
            None => Self::Flow {
                listener,
                serial: (bits >> 32) as u32 & ((1 << SERIAL) - 1),
                number,
            },
        }
    }
}

pub(super) struct Listener {
    index: usize,
    service: Arc<Service>,
    udp: Udp,
    ports: Vec<Open>,
    flows: Slab<Flow>,
    table: Table,
    wheel: Wheel,
    per_source: Arc<PerSource>,
    /// Whom a trusted peer last named, by that peer's own key.
    named: AHashMap<Key, Option<Box<More>>>,
    /// Every datagram is looked at on its own: they may go to different flows, or get headers.
    one_by_one: bool,
    is_draining: bool,
    /// Since the kernel's drops were last counted.
    pub(super) has_received: bool,
    _alive: TaskTrackerToken,
}

struct Open {
    port: Port,
    /// It has more than one address: which one was written to stands beside each datagram.
    is_wildcard: bool,
    splits: bool,
    /// What the kernel has dropped, as far as it was counted.
    dropped: u32,
}

enum NotBegun {
    Rejected,
    NoBackend,
}

/// How a flow begins.
#[derive(Default)]
struct Start<'a> {
    /// Not on this one.
    avoid: Option<&'a Backend>,
    /// On this one.
    lease: Option<(Lease, Search)>,
    /// Those that came with the header that named the client...
    tlvs: &'a [u8],
    /// ... or the header that its backend gets, if it is known.
    header: Option<Box<[u8]>>,
}

impl From<NotBegun> for DropReason {
    fn from(not: NotBegun) -> Self {
        match not {
            NotBegun::Rejected => Self::Rejected,
            NotBegun::NoBackend => Self::NoBackend,
        }
    }
}

impl Listener {
    pub(super) fn new(binding: Binding, index: usize, gear: &Gear) -> io::Result<Self> {
        let Binding {
            service,
            sockets,
            per_source,
            alive,
        } = binding;
        let udp = match service.plan.protocol {
            Protocol::Udp(udp) => udp,
            Protocol::Tcp => return Err(io::ErrorKind::InvalidInput.into()),
        };
        let mut ports = Vec::with_capacity(sockets.len());
        for (n, port) in (0..).zip(sockets) {
            let data = epoll::EventData::new_u64(Token::port(index, n));
            epoll::add(&gear.epoll, &port.socket, data, epoll::EventFlags::IN)?;
            ports.push(Open {
                is_wildcard: port.address.ip().is_unspecified(),
                splits: true,
                dropped: 0,
                port,
            });
        }
        let idle = service.plan.idle_timeout.unwrap_or(IDLE);
        let idle = u64::try_from(idle.as_millis()).unwrap_or(u64::MAX).max(1);
        Ok(Self {
            index,
            one_by_one: udp.requests > 0
                || udp.per_packet
                || service.plan.accept_proxy.is_some()
                || service.send_proxy != SendProxy::Off,
            service,
            udp,
            ports,
            flows: Slab::new(),
            table: Table::default(),
            wheel: Wheel::new(idle, gear.ms),
            per_source,
            named: AHashMap::new(),
            is_draining: false,
            has_received: false,
            _alive: alive,
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.service.plan.name
    }

    // ---- from clients ----

    /// Takes a batch of what has come to this port, and passes it on.
    pub(super) fn receive(&mut self, gear: &mut Gear, port: u16) {
        self.receive_some(gear, port);
    }

    /// Whether there may be more.
    fn receive_some(&mut self, gear: &mut Gear, port: u16) -> bool {
        let open = &self.ports[usize::from(port)];
        let is_wildcard = open.is_wildcard;
        self.has_received = true;
        let came = match gear.inbox.receive(open.port.socket.as_fd(), 0, BATCH) {
            Ok(came) => came,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return false,
            Err(error) => {
                // Of an earlier datagram, or a shortage: the next one may be fine.
                self.service.process.metrics.accept_errors.add(1);
                tracing::debug!(listener = %self.name(), %error, "cannot receive");
                return false;
            }
        };
        let (mut bytes, mut datagrams) = (0, 0);
        let mut last = None;
        for slot in 0..came {
            let received = gear.inbox.get(slot);
            let Some(peer) = received.from else {
                continue;
            };
            let whole = Piece {
                len: received.payload.len(),
                segment: received.segment.into(),
            };
            bytes += whole.len as u64;
            datagrams += whole.datagrams() as u64;
            if received.truncated {
                self.dropped(DropReason::Truncated, [whole]);
                continue;
            }
            let key = Key {
                peer,
                port,
                local: received.to.filter(|_| is_wildcard),
                more: None,
            };
            let unit = Unit {
                slot,
                from: 0,
                piece: whole,
            };
            if self.one_by_one {
                for unit in unit.singles() {
                    self.take(gear, key.clone(), unit, &mut last);
                }
                continue;
            }
            for unit in pieces(unit) {
                self.take(gear, key.clone(), unit, &mut last);
            }
        }
        let counts = self.service.metrics.counts.mine();
        counts.received.add(bytes);
        counts.received_datagrams.add(datagrams);
        self.deliver_all(gear);
        came == BATCH
    }

    /// Finds out which flow this belongs to. `last`: that of the datagram before.
    fn take(&mut self, gear: &mut Gear, mut key: Key, mut unit: Unit, last: &mut Option<u32>) {
        let datagrams = unit.piece.datagrams();
        let mut tlvs = Vec::new();
        if self.service.plan.accept_proxy.is_some() {
            match self.introduce(gear, key, &mut unit) {
                Some(introduced) => (key, tlvs) = introduced,
                None => {
                    self.service.metrics.rejected(RejectReason::ProxyHeader);
                    return self.dropped(DropReason::Rejected, [unit.piece]);
                }
            }
        }
        let flow = match self.udp.per_packet {
            true => self.flow_for_one(gear, key, &tlvs),
            false => self.flow_for(gear, key, &tlvs, *last),
        };
        match flow {
            Ok(number) => {
                let flow = &mut self.flows[number as usize];
                flow.last = gear.ms;
                flow.sent = flow.sent.saturating_add(datagrams as u32);
                gear.units.push((number, unit));
                *last = Some(number);
            }
            Err(not) => self.dropped(not.into(), [unit.piece]),
        }
    }

    /// Who the client is, where proxies in front say so; takes their header off. `None`: it does not say.
    fn introduce(&mut self, gear: &Gear, mut key: Key, unit: &mut Unit) -> Option<(Key, Vec<u8>)> {
        let bytes = unit.bytes(&gear.inbox);
        if !header::trusts(&self.service, key.peer) {
            return (!header::has_signature(bytes)).then(|| (key, Vec::new()));
        }
        match header::read(
            bytes,
            self.service.send_proxy == SendProxy::V2 { tlvs: true },
        ) {
            Begins::Header { taken, named, tlvs } => {
                unit.from += taken;
                unit.piece.len -= taken;
                let more = named.map(|named| {
                    Box::new(More {
                        named: Some(named),
                        backend: 0,
                    })
                });
                if self.named.get(&key) != Some(&more) {
                    self.named.insert(key.clone(), more.clone());
                }
                key.more = more;
                Some((key, tlvs))
            }
            // A later one of a flow whose first had a header.
            Begins::Payload => {
                key.more = self.named.get(&key)?.clone();
                Some((key, Vec::new()))
            }
            Begins::Wrong => None,
        }
    }

    fn flow_for(
        &mut self,
        gear: &mut Gear,
        key: Key,
        tlvs: &[u8],
        last: Option<u32>,
    ) -> Result<u32, NotBegun> {
        let is_same = |n: &u32| {
            let flow = self.flows.get(*n as usize);
            flow.is_some_and(|flow| flow.retired.is_none() && flow.key == key)
        };
        let found = last
            .filter(is_same)
            .or_else(|| self.table.find(&key, |n| &self.flows[n as usize].key));
        let Some(number) = found else {
            let start = Start {
                tlvs,
                ..Start::default()
            };
            return self.begin(gear, key, start);
        };
        let flow = &mut self.flows[number as usize];
        if self.udp.requests > 0 && flow.sent >= self.udp.requests {
            let start = Start {
                tlvs,
                header: flow.rare.as_ref().map(|rare| rare.header.clone()),
                ..Start::default()
            };
            let next = self.begin(gear, key, start)?;
            self.retire(gear, number, CloseReason::Ok);
            return Ok(next);
        }
        let pool = &self.service.pool;
        let changes = pool.changes();
        if flow.refused || flow.changes != changes {
            flow.changes = changes;
            let backend = flow.lease.backend();
            let refused = std::mem::take(&mut flow.refused) && pool.moves.down;
            let reason = match refused {
                true => Some(CloseReason::BackendRefused),
                false => pool.must_go(backend),
            };
            if let Some(reason) = reason {
                return self.go_elsewhere(gear, number, reason);
            }
        }
        if flow.on_trial && flow.has_passed_trial(gear.now) {
            self.passed_trial(gear, number);
        }
        Ok(number)
    }

    /// Each datagram has a pick of its own; those of one client that go to one backend share a flow.
    fn flow_for_one(
        &mut self,
        gear: &mut Gear,
        mut key: Key,
        tlvs: &[u8],
    ) -> Result<u32, NotBegun> {
        let mut search = self.search(&key);
        let lease = self.service.pool.pick(&mut search, gear.now);
        // Whoever may not come in is told so first.
        if let Some(lease) = &lease {
            let named = key.more.as_ref().and_then(|more| more.named);
            key.more = Some(Box::new(More {
                named,
                backend: lease.backend().id,
            }));
        }
        let known = self.table.find(&key, |n| &self.flows[n as usize].key);
        match known {
            Some(number) if lease.is_some() => {
                self.flows[number as usize].refused = false;
                Ok(number)
            }
            _ => {
                let start = Start {
                    tlvs,
                    lease: lease.map(|lease| (lease, search)),
                    ..Start::default()
                };
                self.begin(gear, key, start)
            }
        }
    }

    /// To another backend than the one that it is on. The old socket stays for what is still to come.
    fn go_elsewhere(
        &mut self,
        gear: &mut Gear,
        number: u32,
        reason: CloseReason,
    ) -> Result<u32, NotBegun> {
        let flow = &self.flows[number as usize];
        let (key, backend) = (flow.key.clone(), Arc::clone(flow.lease.backend()));
        let header = flow.rare.as_ref().map(|rare| rare.header.clone());
        let start = |header| Start {
            avoid: Some(&backend),
            header,
            ..Start::default()
        };
        match self.begin(gear, key.clone(), start(header.clone())) {
            Ok(next) => {
                self.retire(gear, number, reason);
                Ok(next)
            }
            // It needs the old one's place. What has come for that one goes first.
            Err(NotBegun::Rejected) if !self.is_draining => {
                self.deliver_all(gear);
                if self.is_current(number, &key) {
                    self.close(gear, number, reason);
                }
                self.begin(gear, key, start(header))
            }
            // There is nowhere else to go, and it may be there again.
            Err(_)
                if matches!(
                    reason,
                    CloseReason::BackendDown | CloseReason::BackendRefused
                ) =>
            {
                Ok(number)
            }
            Err(not) => {
                self.deliver_all(gear);
                if self.is_current(number, &key) {
                    self.close(gear, number, reason);
                }
                Err(not)
            }
        }
    }

    fn is_current(&self, number: u32, key: &Key) -> bool {
        self.table.find(key, |n| &self.flows[n as usize].key) == Some(number)
    }

    // ---- a flow begins ----

    fn begin(&mut self, gear: &mut Gear, key: Key, start: Start<'_>) -> Result<u32, NotBegun> {
        let service = Arc::clone(&self.service);
        let counts = service.metrics.counts.mine();
        let admitted = self.admit(gear, &key);
        // Where it only would go elsewhere it was counted before.
        if start.avoid.is_none() {
            counts.connections.add(1);
        }
        let (slot, session, place) = admitted.map_err(|reason| {
            if start.avoid.is_none() {
                service.metrics.rejected(reason);
                tracing::debug!(listener = %service.plan.name, client = %key.peer, reason = reason.word(), "turned away");
            }
            NotBegun::Rejected
        })?;
        let named = key.more.as_ref().and_then(|more| more.named);
        if let Some((source, _)) = named {
            session.set_proxied(Client::Ip(source));
        }
        let is_first = start.avoid.is_none();
        let tlvs = start.tlvs;
        let header = start.header.clone();
        let Some(opened) = self.open(gear, &key, &session, start) else {
            if is_first {
                service.metrics.closed(CloseReason::NoBackend);
                if service.warned.may_again() {
                    tracing::warn!(listener = %service.plan.name, upstream = %service.pool.name,
                        client = %session.client(), "no backend is available");
                }
            }
            return Err(NotBegun::NoBackend);
        };
        let (socket, lease, clock, attempts) = opened;
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
        let data = epoll::EventData::new_u64(token);
        if let Err(error) = epoll::add(&gear.epoll, &socket, data, epoll::EventFlags::IN) {
            tracing::warn!(listener = %service.plan.name, %error, "cannot wait for replies");
            return Err(NotBegun::NoBackend);
        }
        lease.backend().metrics.counts.mine().connections.add(1);
        session.wake_by(&Waker::from(Arc::new(FlowBell {
            bell: Arc::clone(&gear.bell),
            token,
        })));
        // Told before there was a bell: rung now.
        if session.must_end().is_some() {
            gear.bell.ring(super::bell::Order::Look(token));
        }
        self.flows.insert(Flow {
            key,
            serial: gear.serial,
            socket,
            session,
            lease,
            _slot: slot,
            _place: place,
            opened: gear.now,
            last: gear.ms,
            changes: service.pool.changes(),
            sent: 0,
            replies: 0,
            dropped: 0,
            retired: None,
            refused: false,
            on_trial: true,
            splits: true,
            coalesces: false,
            rare: is_rare.then(|| Box::new(rare)),
        });
        let flows = &self.flows;
        let key = &flows[number as usize].key;
        self.table.insert(key, number, |n| &flows[n as usize].key);
        self.wheel.insert(number, gear.ms + self.wheel.timeout());
        Ok(number)
    }

    /// Whether one more may be.
    fn admit(
        &mut self,
        gear: &mut Gear,
        key: &Key,
    ) -> Result<(Slot, Listed, Option<Box<per_source::Place>>), RejectReason> {
        if self.is_draining {
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
        let slot = self
            .or_evict(gear, || Slot::take(&service))
            .ok_or(RejectReason::MaxConnections)?;
        let sessions = &service.process.sessions;
        let port = self.ports[usize::from(key.port)].port.address.port();
        let session = self
            .or_evict(gear, || sessions.list_flow(Client::Ip(key.peer), port))
            .ok_or(RejectReason::ProcessMaxFlows)?;
        Ok((slot, session, place))
    }

    /// Makes room by ending the flow that has been idle for longest, if that is what is to be done.
    fn or_evict<T>(&mut self, gear: &mut Gear, take: impl Fn() -> Option<T>) -> Option<T> {
        let taken = take();
        if taken.is_some() || self.udp.when_full == WhenFull::Refuse {
            return taken;
        }
        // What has come for it goes first.
        self.deliver_all(gear);
        let flows = &self.flows;
        let idle = self.wheel.timeout();
        let oldest = self.wheel.oldest(|n| due(&flows[n as usize], idle))?;
        self.close(gear, oldest, CloseReason::Evicted);
        take()
    }

    fn search(&self, key: &Key) -> Search {
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

    /// Finds a backend, and a socket towards it.
    #[expect(
        clippy::type_complexity,
        reason = "taken apart at once by the only caller"
    )]
    fn open(
        &self,
        gear: &Gear,
        key: &Key,
        session: &Listed,
        start: Start<'_>,
    ) -> Option<(UdpSocket, Lease, Option<Box<Clock>>, Vec<flow::Attempt>)> {
        let service = &self.service;
        let (mut picked, mut search) = match start.lease {
            Some((lease, search)) => (Some(lease), search),
            None => (None, self.search(key)),
        };
        if let Some(backend) = start.avoid {
            search.avoid(backend);
        }
        let is_logged = service.process.access_log.is_some();
        let mut attempts = Vec::new();
        let mut failed = 0;
        while failed <= service.plan.retries {
            let lease = match picked.take() {
                Some(lease) => lease,
                None => service.pool.pick(&mut search, gear.now)?,
            };
            let backend = lease.backend();
            let mut note = |result| {
                if is_logged {
                    let backend = Arc::clone(backend.text());
                    attempts.push(flow::Attempt { backend, result });
                }
            };
            let counts = backend.metrics.counts.mine();
            if failed > 0 || start.avoid.is_some() {
                counts.retries.add(1);
            }
            match flow::connect(&backend.place) {
                Ok(socket) => {
                    session.set_backend(backend.id);
                    if service.pool.taken(&search, gear.now) {
                        note("ok");
                        let clock = Clock::start(&service.pool, backend, gear.now);
                        return Some((socket, lease, clock, attempts));
                    }
                    // It was left since it was picked. That is nobody's failure.
                    session.set_backend(0);
                    note("left");
                }
                Err(error) => {
                    note(ConnectError::of(&error).word());
                    self.failed(backend, &error);
                    failed += 1;
                }
            }
        }
        None
    }

    fn local_of(&self, key: &Key) -> SocketAddr {
        let bound = self.ports[usize::from(key.port)].port.address;
        let ip = key.local.map_or(bound.ip(), |local| local.ip);
        SocketAddr::new(ip, bound.port())
    }

    // ---- to backends ----

    /// Sends what was taken of a batch.
    fn deliver_all(&mut self, gear: &mut Gear) {
        let mut units = std::mem::take(&mut gear.units);
        // Stable: what belongs to one flow keeps its order.
        if !units.is_sorted_by_key(|unit| unit.0) {
            units.sort_by_key(|unit| unit.0);
        }
        for same in units.chunk_by(|a, b| a.0 == b.0) {
            self.deliver(gear, same[0].0, same);
        }
        units.clear();
        gear.units = units;
    }

    fn deliver(&mut self, gear: &mut Gear, mut number: u32, units: &[(u32, Unit)]) {
        let mut left: SmallVec<[Unit; 8]> = units.iter().map(|unit| unit.1).collect();
        let each = self.service.send_proxy_on == ProxyOn::Each;
        let mut tries = 0;
        // The kernel has stopped in the middle and not said why.
        let mut has_stopped = false;
        while !left.is_empty() {
            let Some(flow) = self.flows.get_mut(number as usize) else {
                return self.dropped(DropReason::NoBackend, left.iter().map(|u| u.piece));
            };
            let sent = send(flow, gear, &left, each);
            let counts = flow.lease.backend().metrics.counts.mine();
            counts.sent.add(sent.bytes);
            flow.session.received.fetch_add(sent.bytes, Relaxed);
            if let Some(rare) = &mut flow.rare {
                rare.datagrams[0] += sent.datagrams;
            }
            left.drain(..sent.units);
            if has_stopped && sent.units > 0 {
                // An error that came of an earlier datagram, and that this call would have told, was used up.
                has_stopped = false;
                self.hurt(number, &io::ErrorKind::ConnectionRefused.into());
            }
            let Some((error, segment)) = sent.error else {
                has_stopped = !left.is_empty();
                continue;
            };
            let flow = &mut self.flows[number as usize];
            if segment > 0 && is_about_splitting(&error) {
                flow.splits = false;
                left = left.iter().flat_map(|unit| unit.singles()).collect();
                continue;
            }
            match ConnectError::of(&error) {
                ConnectError::Refused | ConnectError::Unreachable | ConnectError::Reset => {
                    // This was the answer to an earlier one: what is here has not been sent.
                    self.hurt(number, &error);
                    tries += 1;
                    if tries > self.service.plan.retries.saturating_add(1) {
                        return self.dropped(DropReason::NoBackend, left.iter().map(|u| u.piece));
                    }
                    if self.service.pool.moves.down
                        && self.flows[number as usize].retired.is_none()
                        && !self.udp.per_packet
                    {
                        self.flows[number as usize].refused = false;
                        let reason = CloseReason::BackendRefused;
                        let sent = self.flows[number as usize].sent;
                        match self.go_elsewhere(gear, number, reason) {
                            Ok(next) if next != number => {
                                let datagrams = left.iter().map(|u| u.piece.datagrams() as u32);
                                let datagrams = datagrams.sum::<u32>();
                                if let Some(old) = self.flows.get_mut(number as usize) {
                                    old.sent = sent.saturating_sub(datagrams);
                                }
                                self.flows[next as usize].sent += datagrams;
                                number = next;
                            }
                            Ok(_) => {}
                            Err(_) => {
                                let pieces = left.iter().map(|u| u.piece);
                                return self.dropped(DropReason::NoBackend, pieces);
                            }
                        }
                    }
                }
                _ => {
                    let reason = drop_reason(&error);
                    let count = match reason {
                        DropReason::SendBuffer => left.len(),
                        _ => 1,
                    };
                    tracing::debug!(listener = %self.service.plan.name, %error, "a datagram was dropped");
                    self.dropped(reason, left.drain(..count).map(|u| u.piece));
                }
            }
        }
    }

    // ---- from backends ----

    /// Takes some of what has come on this flow. There is room for one at least.
    pub(super) fn reply(&mut self, gear: &mut Gear, serial: u32, number: u32) {
        let (index, responses) = (self.index, self.udp.responses);
        let Some(flow) = self.flow(serial, number) else {
            return;
        };
        let room = (gear.back.slots() - gear.filled).min(REPLIES);
        let first = gear.filled;
        let came = gear.back.receive_plain(flow.socket.as_fd(), first, room);
        let came = match came {
            Ok(came) => came,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) => return self.hurt(number, &error),
        };
        gear.filled += came;
        let (mut bytes, mut datagrams) = (0, 0);
        let mut truncated = SmallVec::<[Piece; 1]>::new();
        for slot in first..first + came {
            let received = gear.back.get(slot);
            let piece = Piece {
                len: received.payload.len(),
                segment: received.segment.into(),
            };
            if received.truncated {
                truncated.push(piece);
                continue;
            }
            bytes += piece.len as u64;
            datagrams += piece.datagrams();
            let whole = Unit {
                slot,
                from: 0,
                piece,
            };
            gear.replies.extend(pieces(whole).map(|unit| Reply {
                listener: index,
                port: flow.key.port,
                serial,
                to: flow.key.peer,
                from: flow.key.local,
                unit,
            }));
        }
        let is_first = flow.replies == 0;
        flow.replies = flow.replies.saturating_add(datagrams as u32);
        // One that has gone elsewhere does not stay for ever because its old backend goes on.
        if flow.retired.is_none_or(|reason| reason == CloseReason::Ok) {
            flow.last = gear.ms;
        }
        flow.session.sent.fetch_add(bytes, Relaxed);
        flow.lease
            .backend()
            .metrics
            .counts
            .mine()
            .received
            .add(bytes);
        if !flow.coalesces && flow.replies >= SUSTAINED {
            flow.coalesces = true;
            // Without it each comes on its own.
            let _ = take_coalesced(&flow.socket);
        }
        if let Some(rare) = &mut flow.rare {
            rare.datagrams[1] += datagrams as u64;
        }
        let is_answered = flow.has_all_replies(responses);
        self.dropped(DropReason::Truncated, truncated);
        if is_first {
            self.first_reply(gear, number);
        }
        if is_answered {
            let reason = self.flows[number as usize].retired;
            self.close(gear, number, reason.unwrap_or(CloseReason::Ok));
        }
    }

    fn first_reply(&mut self, gear: &Gear, number: u32) {
        let flow = &mut self.flows[number as usize];
        let took = gear.now.saturating_duration_since(flow.opened);
        self.service.metrics.first_byte_duration.record(took);
        if let Some(rare) = &mut flow.rare {
            rare.first_reply = Some(took);
            if let Some(clock) = rare.clock.take() {
                clock.replied(gear.now);
            }
        }
        if flow.has_passed_trial(gear.now) {
            self.passed_trial(gear, number);
        }
    }

    /// Its backend is there.
    fn passed_trial(&self, gear: &Gear, number: u32) {
        let backend = self.flows[number as usize].lease.backend();
        let service = &self.service;
        if service.pool.answered(backend, gear.now) {
            let journal = &service.process.journal;
            tell_that_it_is_back(&service.pool, journal, backend, "answered");
        }
    }

    pub(super) fn socket(&self, port: u16) -> BorrowedFd<'_> {
        self.ports[usize::from(port)].port.socket.as_fd()
    }

    /// Whether the kernel splits runs of replies that leave here.
    pub(super) fn splits(&self, port: u16) -> bool {
        self.ports[usize::from(port)].splits
    }

    pub(super) fn never_split(&mut self, port: u16) {
        self.ports[usize::from(port)].splits = false;
    }

    pub(super) fn sent_back(&self, replies: &[Reply]) {
        let counts = self.service.metrics.counts.mine();
        let (bytes, datagrams) = replies.iter().fold((0, 0), |(bytes, datagrams), reply| {
            let piece = reply.unit.piece;
            (bytes + piece.len, datagrams + piece.datagrams())
        });
        counts.sent.add(bytes as u64);
        counts.sent_datagrams.add(datagrams as u64);
    }

    // ---- what goes wrong ----

    pub(super) fn dropped(&self, reason: DropReason, pieces: impl IntoIterator<Item = Piece>) {
        let datagrams: usize = pieces.into_iter().map(Piece::datagrams).sum();
        self.service.metrics.dropped(reason, datagrams as u64);
    }

    /// The network says that the backend of this flow cannot be reached.
    fn hurt(&mut self, number: u32, error: &io::Error) {
        let Some(flow) = self.flows.get_mut(number as usize) else {
            return;
        };
        flow.refused = true;
        let backend = Arc::clone(flow.lease.backend());
        self.failed(&backend, error);
    }

    fn failed(&self, backend: &Arc<Backend>, error: &io::Error) {
        let service = &self.service;
        let reason = ConnectError::of(error);
        let counts = backend.metrics.counts.mine();
        counts.connect_errors[reason as usize].add(1);
        tracing::debug!(upstream = %service.pool.name, backend = %backend.text(), reason = reason.word(), %error,
            "cannot be reached");
        if reason.blames_backend() {
            let journal = &service.process.journal;
            blame(&service.pool, journal, backend, reason.word(), error);
        }
    }

    /// What the kernel had no room for.
    pub(super) fn count_drops(&mut self) {
        if !std::mem::take(&mut self.has_received) {
            return;
        }
        for open in &mut self.ports {
            let drops = datagram::drops(&open.port.socket).unwrap_or(0) as u32;
            let new = drops.wrapping_sub(open.dropped);
            open.dropped = drops;
            if new > 0 {
                self.service
                    .metrics
                    .dropped(DropReason::ReceiveBuffer, u64::from(new));
            }
        }
    }

    pub(super) fn count_late(&self, socket: &UdpSocket, inbox: &mut datagram::Inbox) {
        self.service
            .metrics
            .dropped(DropReason::Late, empty(socket, inbox));
    }

    // ---- a flow ends ----

    fn flow(&mut self, serial: u32, number: u32) -> Option<&mut Flow> {
        let flow = self.flows.get_mut(number as usize);
        flow.filter(|flow| flow.serial == serial)
    }

    /// It was told something.
    pub(super) fn look(&mut self, gear: &mut Gear, serial: u32, number: u32) {
        let reason = self
            .flow(serial, number)
            .and_then(|flow| flow.session.must_end());
        if let Some(reason) = reason {
            self.close(gear, number, reason);
        }
    }

    /// From now on its key leads to another flow; it waits for what it is still owed.
    fn retire(&mut self, gear: &Gear, number: u32, reason: CloseReason) {
        let idle = self.wheel.timeout();
        let Some(flow) = self.flows.get_mut(number as usize) else {
            return;
        };
        flow.retired = Some(reason);
        flow.last = gear.ms;
        self.wheel.remove(number);
        self.wheel.insert(number, due(flow, idle));
    }

    pub(super) fn next(&self) -> Option<u64> {
        self.wheel.next()
    }

    /// Ends those that were idle for too long.
    pub(super) fn expire(&mut self, gear: &mut Gear) {
        let mut found = Vec::new();
        self.wheel.due(gear.ms, &mut found);
        let idle = self.wheel.timeout();
        for number in found {
            let flow = &mut self.flows[number as usize];
            let due = due(flow, idle);
            if due > gear.ms {
                self.wheel.insert(number, due);
                let drops = flow.new_drops();
                self.service
                    .metrics
                    .dropped(DropReason::ReceiveBuffer, drops);
                continue;
            }
            let is_owed = self.udp.responses > 0 && !flow.has_all_replies(self.udp.responses);
            let reason = match flow.retired {
                None | Some(CloseReason::Ok) if is_owed && !self.is_draining => {
                    let backend = Arc::clone(flow.lease.backend());
                    self.failed(&backend, &io::ErrorKind::TimedOut.into());
                    CloseReason::ResponseTimeout
                }
                Some(reason) => reason,
                None if self.is_draining => CloseReason::Drained,
                None => CloseReason::IdleTimeout,
            };
            self.close(gear, number, reason);
        }
    }

    /// Begins no flow any more, and ends those that are silent. What came before is still taken.
    pub(super) fn drain(&mut self, gear: &mut Gear) {
        if self.is_draining {
            return;
        }
        for port in 0..self.ports.len() {
            for _ in 0..LAST {
                if !self.receive_some(gear, port as u16) {
                    break;
                }
            }
        }
        self.is_draining = true;
        let idle = self.wheel.timeout().min(QUIET);
        self.wheel = Wheel::new(idle, gear.ms);
        for (number, flow) in &self.flows {
            self.wheel.insert(number as u32, due(flow, idle));
        }
    }

    /// Nothing is here any more, and nothing will come.
    pub(super) fn is_over(&self) -> bool {
        self.is_draining && self.flows.is_empty()
    }

    fn close(&mut self, gear: &mut Gear, number: u32, reason: CloseReason) {
        let Some(mut flow) = self.flows.try_remove(number as usize) else {
            return;
        };
        self.wheel.remove(number);
        // Of a peer that names its clients nothing is remembered once the last flow of that client is over.
        if self.table.remove(&flow.key, number) && flow.key.more.is_some() {
            let more = flow.key.more.take();
            if self
                .named
                .get(&flow.key)
                .is_some_and(|named| *named == more)
            {
                self.named.remove(&flow.key);
            }
        }
        let drops = flow.new_drops();
        self.service
            .metrics
            .dropped(DropReason::ReceiveBuffer, drops);
        let is_owed = !flow.has_all_replies(self.udp.responses);
        let socket = flow.end(&self.service, reason);
        if is_owed && !self.is_draining {
            gear.keep_late(self.index, socket);
        }
    }
}

/// What was sent, and what was in the way of the rest: the error, and what size of datagrams it was about.
struct Sent {
    units: usize,
    datagrams: u64,
    bytes: u64,
    error: Option<(io::Error, usize)>,
}

/// `each`: every datagram gets the header, if there is one.
fn send(flow: &mut Flow, gear: &mut Gear, units: &[Unit], each: bool) -> Sent {
    let sent = send_as_it_is(flow, gear, units, each);
    if let (true, Some(rare)) = (sent.units > 0, &mut flow.rare) {
        rare.header_is_due = false;
    }
    sent
}

fn send_as_it_is(flow: &Flow, gear: &mut Gear, units: &[Unit], each: bool) -> Sent {
    let rare = flow.rare.as_deref();
    let header = rare
        .filter(|rare| (each || rare.header_is_due) && !rare.header.is_empty())
        .map(|rare| &rare.header[..]);
    let mut parts: SmallVec<[IoSlice<'_>; 16]> = SmallVec::new();
    // Of each message: units, parts, the size of its datagrams.
    let mut runs: SmallVec<[(usize, usize, usize); 16]> = SmallVec::new();
    let mut at = 0;
    while at < units.len() && runs.len() < BATCH {
        let headed = header.filter(|_| each || at == 0);
        let (count, segment) = match headed.is_some() || !flow.splits {
            true => (1, units[at].piece.segment),
            false => batch::run(units[at..].iter().map(|unit| unit.piece)),
        };
        parts.extend(headed.map(IoSlice::new));
        let these = &units[at..at + count];
        parts.extend(
            these
                .iter()
                .map(|unit| IoSlice::new(unit.bytes(&gear.inbox))),
        );
        runs.push((count, count + usize::from(headed.is_some()), segment));
        at += count;
    }
    let mut at = 0;
    let messages: SmallVec<[Message<'_>; 16]> = runs
        .iter()
        .map(|&(_, count, segment)| {
            let parts = &parts[at..at + count];
            at += count;
            Message {
                parts,
                segment: u16::try_from(segment).unwrap_or(0),
                to: None,
                from: None,
            }
        })
        .collect();
    let (taken, error) = gear.outbox.send(flow.socket.as_fd(), &messages);
    let failed = runs.get(taken).map_or(0, |run| run.2);
    let count = runs[..taken].iter().map(|run| run.0).sum();
    Sent {
        units: count,
        datagrams: units[..count]
            .iter()
            .map(|u| u.piece.datagrams() as u64)
            .sum(),
        bytes: units[..count].iter().map(|u| u.piece.len as u64).sum(),
        error: error.map(|error| (error, failed)),
    }
}

/// In parts that the kernel takes as one.
fn pieces(unit: Unit) -> impl Iterator<Item = Unit> {
    let Piece { len, segment } = unit.piece;
    let most = match segment {
        0 => len.max(1),
        segment => batch::most_bytes(segment),
    };
    (0..len.div_ceil(most).max(1)).map(move |i| {
        let len = most.min(len - i * most);
        Unit {
            slot: unit.slot,
            from: unit.from + i * most,
            piece: Piece {
                len,
                segment: if len > segment { segment } else { 0 },
            },
        }
    })
}

/// Whom this is for: whom a header named, or the peer.
fn client_of(key: &Key) -> SocketAddr {
    let named = key.more.as_ref().and_then(|more| more.named);
    named.map_or(key.peer, |(source, _)| source)
}

/// When it will have been idle for too long.
fn due(flow: &Flow, idle: u64) -> u64 {
    flow.last
        + match flow.retired {
            None | Some(CloseReason::Ok) => idle,
            Some(_) => idle.min(LINGER),
        }
}
