//! What clients send: which flow each datagram belongs to.

use super::{
    super::{
        batch::Piece,
        header::{self, Begins},
        table::{Key, More},
        token::Token,
    },
    Listener, Named, NotBegun, Start,
};
use crate::{
    plan::{
        SendProxy,
        reason::{CloseReason, DropReason, RejectReason},
    },
    proxy::udp::context::{Context, Taken, Unit},
    runtime::net::Client,
    session::service::Call,
    sys::datagram::BATCH,
    upstream::{
        backend::{Backend, Lease},
        pool::Search,
    },
};
use rustix::event::epoll::EventFlags;
use std::{io, os::fd::AsFd, sync::Arc};

impl Listener {
    /// Takes a batch of what has come to this port, and passes it on.
    pub(in crate::proxy::udp) fn receive(&mut self, gear: &mut Context, port: u16) {
        self.receive_some(gear, port);
    }

    /// Whether there may be more.
    pub(super) fn receive_some(&mut self, gear: &mut Context, port: u16) -> bool {
        let open = &mut self.ports[usize::from(port)];
        let is_wildcard = open.is_wildcard;
        self.has_received = true;
        let most = open.batch_size.get();
        let came = match gear.inbox.receive(open.port.socket.as_fd(), 0, most) {
            Ok(came) => {
                open.batch_size.adapt(came, gear.turn, BATCH);
                self.receives_again(port);
                came
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                self.receives_again(port);
                return false;
            }
            Err(error) => {
                self.pause(gear, port, &error);
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
            if received.to_many && !self.is_first {
                // The kernel has given it to every worker.
                continue;
            }
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
            if self.own.contains(peer, gear.now) {
                self.dropped(DropReason::OwnAddress, [whole]);
                continue;
            }
            let key = Key {
                peer,
                port,
                // Nobody can reply from the address of many over IPv6.
                local: received
                    .to
                    .filter(|to| is_wildcard && !to.ip.is_multicast()),
                more: None,
            };
            let unit = Unit {
                slot,
                from: 0,
                piece: whole,
            };
            for unit in unit.divided(!self.one_by_one) {
                self.take(gear, key.clone(), unit, &mut last);
            }
        }
        let counts = self.service.metrics.counts.mine();
        counts.received.add(bytes);
        counts.received_datagrams.add(datagrams);
        self.deliver_all(gear);
        came == most
    }

    fn receives_again(&mut self, port: u16) {
        let open = &mut self.ports[usize::from(port)];
        open.failures.clear(&self.service.intake);
    }

    /// The socket of this port cannot receive: the event loop would report it again and again.
    fn pause(&mut self, gear: &Context, port: u16, error: &io::Error) {
        let service = &self.service;
        service.process.metrics.accept_errors.add(1);
        service.log_failed_call(Call::Receive, error, gear.now);
        let open = &mut self.ports[usize::from(port)];
        let pause = open.failures.add(&service.intake).as_millis();
        open.resume = Some(gear.ms + u64::try_from(pause).unwrap_or(u64::MAX));
        // It may be out already.
        let _ = gear.reactor.deregister(&open.port.socket);
    }

    /// When the first of the ports that are paused is to receive again.
    pub(super) fn resumes(&self) -> Option<u64> {
        self.ports.iter().filter_map(|open| open.resume).min()
    }

    /// Receives again where the pause is over.
    pub(super) fn resume(&mut self, gear: &mut Context) {
        for n in 0..self.ports.len() {
            let (port, open) = (n as u16, &mut self.ports[n]);
            if open.resume.is_none_or(|at| at > gear.ms) {
                continue;
            }
            open.resume = None;
            let token = Token::port(self.index, port);
            let added = gear
                .reactor
                .register(&open.port.socket, token, EventFlags::IN);
            match added {
                // Without waiting for an event: that there is nothing is good to know, too.
                Ok(()) => {
                    self.receive_some(gear, port);
                }
                Err(error) => self.pause(gear, port, &error),
            }
        }
    }

    /// Finds out which flow this belongs to. `last`: that of the datagram before.
    pub(super) fn take(
        &mut self,
        gear: &mut Context,
        mut key: Key,
        mut unit: Unit,
        last: &mut Option<u32>,
    ) {
        let datagrams = unit.piece.datagrams();
        let (mut tlvs, mut named_by) = (Vec::new(), None);
        if self.service.plan.accept_proxy.is_some() {
            let unnamed = key.clone();
            match self.introduce(gear, key, &mut unit) {
                Some(introduced) => (key, tlvs, named_by) = introduced,
                None => {
                    let metrics = &self.service.metrics;
                    metrics.counts.mine().connections.add(1);
                    self.refuse(gear, &unnamed, RejectReason::ProxyHeader);
                    return self.dropped(DropReason::Rejected, [unit.piece]);
                }
            }
        }
        let flow = match self.udp.per_packet {
            true => self.flow_for_one(gear, key, &tlvs),
            false => self.flow_for(gear, key, &tlvs, *last),
        };
        let number = match flow {
            Ok(number) => number,
            Err(not) => return self.dropped(not.into(), [unit.piece]),
        };
        if let Some(peer) = named_by {
            self.remember(peer, number, gear.ms);
        }
        let flow = &mut self.flows[number as usize];
        flow.last = gear.ms;
        flow.taken = flow.taken.saturating_add(datagrams as u32);
        gear.units.push(Taken {
            number,
            serial: flow.serial,
            unit,
        });
        *last = Some(number);
        if flow.on_trial && flow.has_passed_trial(gear.now, false) {
            let backend = Arc::clone(flow.lease.backend());
            self.service.pool.answered(&backend, gear.now);
        }
    }

    /// Who the client is, where proxies in front say so; takes their header off. Also the TLVs, and
    /// the key of the peer that has named it. `None`: it does not say.
    pub(super) fn introduce(
        &mut self,
        gear: &Context,
        mut key: Key,
        unit: &mut Unit,
    ) -> Option<(Key, Vec<u8>, Option<Key>)> {
        let bytes = unit.bytes(&gear.inbox);
        if !self.service.trusts(Client::Ip(key.peer)) {
            return (!header::has_signature(bytes)).then(|| (key, Vec::new(), None));
        }
        let keep_tlvs = self.service.send_proxy == SendProxy::V2 { tlvs: true };
        let (named, tlvs) = match header::read(bytes, keep_tlvs) {
            Begins::Header { taken, named, tlvs } => {
                unit.from += taken;
                unit.piece.len -= taken;
                (named, tlvs)
            }
            // A later one of a flow whose first had a header.
            Begins::Payload => {
                let known = self.named.get(&key)?;
                (known.named, Vec::new())
            }
            Begins::Wrong => return None,
        };
        let peer = key.clone();
        key.more = named.map(|named| {
            Box::new(More {
                named: Some(named),
                backend: 0,
            })
        });
        Some((key, tlvs, Some(peer)))
    }

    /// Whom this peer has named last, and that a flow of that client has begun. It may be needed
    /// when that one is over.
    fn remember(&mut self, peer: Key, number: u32, ms: u64) {
        let more = self.flows[number as usize].key.more.as_ref();
        let named = Named {
            named: more.and_then(|more| more.named),
            last: ms,
        };
        let most = self.service.plan.max_connections as usize;
        if self.named.len() < most.max(1) || self.named.contains_key(&peer) {
            self.named.insert(peer, named);
        }
    }

    /// Forgets whom peers have named that are silent for as long as a flow may be, and have none.
    pub(in crate::proxy::udp) fn sweep(&mut self, ms: u64) {
        if self.named.is_empty() || ms < self.swept + self.idle {
            return;
        }
        self.swept = ms;
        let Self {
            named,
            table,
            flows,
            idle,
            ..
        } = self;
        named.retain(|peer, known| {
            let more = known.named.map(|named| {
                Box::new(More {
                    named: Some(named),
                    backend: 0,
                })
            });
            let key = Key {
                more,
                ..peer.clone()
            };
            known.last + *idle > ms || table.find(&key, |n| &flows[n as usize].key).is_some()
        });
    }

    pub(super) fn flow_for(
        &mut self,
        gear: &mut Context,
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
        if self.udp.requests > 0 && flow.taken >= self.udp.requests {
            let start = Start {
                tlvs,
                header: flow.rare.as_ref().map(|rare| rare.header.clone()),
                ..Start::default()
            };
            let serial = flow.serial;
            if self.has_room(&key) {
                let next = self.begin(gear, key, start)?;
                self.retire(gear, serial, number, CloseReason::Ok);
                return Ok(next);
            }
            // The next one needs its place.
            self.end_now(gear, serial, number, CloseReason::Ok);
            return self.begin(gear, key, start);
        }
        let pool = &self.service.pool;
        let changes = pool.changes();
        if flow.refused || flow.changes != changes || flow.retired.is_some() {
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
            // It only waited for replies, and its backend is in use again.
            flow.retired = None;
        }
        Ok(number)
    }

    /// Each datagram has a pick of its own; those of one client that go to one backend share a
    /// flow.
    pub(super) fn flow_for_one(
        &mut self,
        gear: &mut Context,
        key: Key,
        tlvs: &[u8],
    ) -> Result<u32, NotBegun> {
        let mut search = self.search(&key);
        let lease = self.service.pool.pick(&mut search, gear.now);
        let picked = lease.map(|lease| (lease, search));
        self.flow_on(gear, key, picked, tlvs)
    }

    /// The flow of this client to another backend than that of flow `number`, for one datagram.
    pub(super) fn another_for_one(&mut self, gear: &mut Context, number: u32) -> Option<u32> {
        let flow = self.flows.get(number as usize)?;
        let (key, backend) = (flow.key.clone(), Arc::clone(flow.lease.backend()));
        let picked = self.pick_another(gear, &key, &backend)?;
        self.flow_on(gear, key, Some(picked), &[]).ok()
    }

    fn flow_on(
        &mut self,
        gear: &mut Context,
        mut key: Key,
        picked: Option<(Lease, Search)>,
        tlvs: &[u8],
    ) -> Result<u32, NotBegun> {
        // Whoever may not come in is told so first.
        if let Some((lease, _)) = &picked {
            let named = key.named();
            key.more = Some(Box::new(More {
                named,
                backend: lease.backend().id,
            }));
        }
        let known = self.table.find(&key, |n| &self.flows[n as usize].key);
        match known {
            Some(number) if picked.is_some() => {
                self.flows[number as usize].refused = false;
                Ok(number)
            }
            _ => {
                let start = Start {
                    tlvs,
                    picked,
                    ..Start::default()
                };
                self.begin(gear, key, start)
            }
        }
    }

    /// To another backend than the one that it is on, if there is one. The old socket stays for
    /// what is still to come.
    pub(super) fn go_elsewhere(
        &mut self,
        gear: &mut Context,
        number: u32,
        reason: CloseReason,
    ) -> Result<u32, NotBegun> {
        if self.is_draining {
            // Nothing begins any more: it ends where it is.
            return Ok(number);
        }
        let flow = &mut self.flows[number as usize];
        let serial = flow.serial;
        let (key, backend) = (flow.key.clone(), Arc::clone(flow.lease.backend()));
        let header = flow.rare.as_ref().map(|rare| rare.header.clone());
        let start = |picked| Start {
            moves: true,
            picked: Some(picked),
            header: header.clone(),
            ..Start::default()
        };
        let picked = self.pick_another(gear, &key, &backend);
        let next = match picked {
            Some(picked) if self.has_room(&key) => self.begin(gear, key, start(picked)),
            Some(picked) => {
                // It needs the old one's place.
                drop(picked);
                self.end_now(gear, serial, number, reason);
                let picked = self.pick_another(gear, &key, &backend);
                let picked = picked.ok_or(NotBegun::NoBackend)?;
                return self.begin(gear, key, start(picked));
            }
            None => Err(NotBegun::NoBackend),
        };
        match (next, self.flow(serial, number)) {
            (Ok(next), _) => {
                self.retire(gear, serial, number, reason);
                Ok(next)
            }
            // It may be there again. Or another one, at the next datagram.
            (Err(_), Some(flow)) if reason.lets_flow_stay() => {
                flow.retired = None;
                flow.changes = 0;
                Ok(number)
            }
            // There is no other backend, and this one is to get nothing more. What it owes may
            // come.
            (Err(not), _) => {
                self.deliver_all(gear);
                self.retire(gear, serial, number, reason);
                Err(not)
            }
        }
    }

    fn pick_another(&self, gear: &Context, key: &Key, not: &Backend) -> Option<(Lease, Search)> {
        let mut search = self.search(key);
        search.avoid(not);
        let lease = self.service.pool.pick(&mut search, gear.now)?;
        Some((lease, search))
    }

    /// After what has come for it was sent.
    fn end_now(&mut self, gear: &mut Context, serial: u32, number: u32, reason: CloseReason) {
        self.deliver_all(gear);
        if self.flow(serial, number).is_some() {
            self.close(gear, number, reason);
        }
    }
}
