//! Which flow each datagram belongs to.

use super::{
    super::{
        flow::Flow,
        header::{self, Begins},
        table::{Key, More},
    },
    Listener, NotBegun, Start,
    named_clients::Named,
};
use crate::{
    plan::{
        SendProxy,
        reason::{CloseReason, DropReason, RejectReason, Shortage},
    },
    proxy::udp::context::{Context, Taken, Unit},
    runtime::net::Client,
    session::bandwidth::Way,
    upstream::{
        backend::{Backend, Lease},
        pool::Search,
    },
};
use std::sync::Arc;

/// The content of a datagram's PROXY protocol header.
struct DatagramHeader {
    named: Named,
    tlvs: Vec<u8>,
    /// Whether the peer may name clients.
    is_trusted: bool,
}

impl Listener {
    /// Assigns a datagram, or a run of them, to a flow. `last`: the flow of the one before.
    pub(super) fn assign(
        &mut self,
        context: &mut Context,
        peer: Key,
        mut unit: Unit,
        last: &mut Option<u32>,
    ) {
        let header = match self.service.plan.accept_proxy.is_some() {
            true => self.take_header(context, &peer, &mut unit),
            false => Some(DatagramHeader::NONE),
        };
        let Some(header) = header else {
            let metrics = &self.service.metrics;
            metrics.counts.mine().connections.add(1);
            self.refuse(context, &peer, RejectReason::ProxyHeader);
            return self.count_dropped(DropReason::Rejected, [unit.piece]);
        };
        let (key, named_by) = match header.is_trusted {
            true => (peer.for_client(header.named), Some(peer)),
            false => (peer, None),
        };
        let flow = match self.udp.per_packet {
            true => self.flow_for_datagram(context, key, &header.tlvs),
            false => self.flow_for(context, key, &header.tlvs, *last),
        };
        if let Some(peer) = named_by
            && matches!(flow, Ok(_) | Err(NotBegun::Waits(_)))
        {
            let max = (self.service.plan.max_connections as usize).max(1);
            self.named.insert(peer, header.named, context.ms, max);
        }
        match flow {
            Ok(number) => {
                *last = Some(number);
                self.take_unit(context, number, unit);
            }
            Err(NotBegun::Waits(number)) => self.keep(context, number, unit),
            Err(NotBegun::Dropped(reason)) => self.count_dropped(reason, [unit.piece]),
        }
    }

    /// Takes what has come for a flow, to be delivered.
    pub(super) fn take_unit(&mut self, context: &mut Context, number: u32, unit: Unit) {
        let flow = &mut self.flows[number as usize];
        flow.set_last_ms(context.ms);
        if !flow.admits(Way::Up, unit.piece, context.now) {
            return self.count_dropped(DropReason::Bandwidth, [unit.piece]);
        }
        flow.count_taken(unit.piece.datagrams());
        context.units.push(Taken {
            number,
            serial: flow.serial,
            unit,
        });
        if flow.has_passed_trial(context.now, false) {
            let pool = &flow.service().pool;
            pool.answered(flow.lease.backend(), context.now);
        }
    }

    /// Takes the header off a datagram. `None`: it must not begin with one, or must and does not.
    fn take_header(
        &self,
        context: &Context,
        peer: &Key,
        unit: &mut Unit,
    ) -> Option<DatagramHeader> {
        let bytes = unit.bytes(&context.receive_buffers);
        if !self.service.trusts(Client::Ip(peer.peer)) {
            return (!header::has_signature(bytes)).then_some(DatagramHeader::NONE);
        }
        let keep_tlvs = self.service.send_proxy == SendProxy::V2 { tlvs: true };
        let (named, tlvs) = match header::read(bytes, keep_tlvs) {
            Begins::Header { taken, named, tlvs } => {
                unit.from += taken;
                unit.piece.len -= taken;
                (named, tlvs)
            }
            // A later datagram of a flow whose first had a header.
            Begins::Payload => (self.named.get(peer)?, Vec::new()),
            Begins::Wrong => return None,
        };
        Some(DatagramHeader {
            named,
            tlvs,
            is_trusted: true,
        })
    }

    fn flow_for(
        &mut self,
        context: &mut Context,
        key: Key,
        tlvs: &[u8],
        last: Option<u32>,
    ) -> Result<u32, NotBegun> {
        let is_same = |number: &u32| {
            let flow = self.flows.get(*number as usize);
            flow.is_some_and(|flow| flow.retired.is_none() && flow.key == key)
        };
        let Some(number) = last.filter(is_same).or_else(|| self.find(&key)) else {
            let start = Start {
                tlvs,
                ..Start::default()
            };
            return self.begin(context, key, start);
        };
        let flow = &self.flows[number as usize];
        if flow.requests() > 0 && flow.has_all_requests() {
            return self.begin_next(context, key, number, tlvs);
        }
        match self.reason_to_move(number) {
            Some(reason) => self.move_flow(context, number, reason),
            None => Ok(number),
        }
    }

    pub(super) fn find(&self, key: &Key) -> Option<u32> {
        self.table
            .find(key, |number| &self.flows[number as usize].key)
    }

    /// Begins the flow that follows one which has had all its datagrams.
    fn begin_next(
        &mut self,
        context: &mut Context,
        key: Key,
        number: u32,
        tlvs: &[u8],
    ) -> Result<u32, NotBegun> {
        let flow = &self.flows[number as usize];
        let serial = flow.serial;
        let start = Start {
            tlvs,
            header: flow.header(),
            ..Start::default()
        };
        if self.has_room(&key) {
            let next = self.begin(context, key, start)?;
            self.retire(context, serial, number, CloseReason::Ok);
            return Ok(next);
        }
        // The next flow needs the permits of this one.
        self.deliver_and_close(context, serial, number, CloseReason::Ok);
        self.begin(context, key, start)
    }

    /// Why this flow is to leave its backend, if anything has changed since that was asked.
    fn reason_to_move(&mut self, number: u32) -> Option<CloseReason> {
        let flow = &mut self.flows[number as usize];
        let pool = &flow.permits.service().pool;
        let changes = pool.changes();
        if !flow.is_unreachable && flow.changes == changes && flow.retired.is_none() {
            return None;
        }
        flow.changes = changes;
        let moves = std::mem::take(&mut flow.is_unreachable) && pool.moves_if_unreachable();
        let reason = match moves {
            true => Some(CloseReason::BackendRefused),
            false => pool.must_go(flow.lease.backend()),
        };
        if reason.is_none() {
            // It only waited for replies, and its backend is in use again.
            flow.resume();
        }
        reason
    }

    /// Picks a backend for one datagram alone. Datagrams of one client that go to the same backend
    /// share a flow.
    fn flow_for_datagram(
        &mut self,
        context: &mut Context,
        key: Key,
        tlvs: &[u8],
    ) -> Result<u32, NotBegun> {
        let mut search = self.search(&key);
        let lease = self.service.pool.pick(&mut search, context.now);
        let picked = lease.ok().map(|lease| (lease, search));
        self.flow_on(context, key, picked, tlvs)
    }

    /// For one datagram, the flow of this client to another backend than that of flow `number`.
    pub(super) fn another_flow_for_datagram(
        &mut self,
        context: &mut Context,
        number: u32,
    ) -> Option<u32> {
        let flow = self.flows.get(number as usize)?;
        let key = flow.key.clone();
        let picked = self
            .pick_another(context, &key, flow.lease.backend())
            .ok()?;
        self.flow_on(context, key, Some(picked), &[]).ok()
    }

    fn flow_on(
        &mut self,
        context: &mut Context,
        mut key: Key,
        picked: Option<(Lease, Search)>,
        tlvs: &[u8],
    ) -> Result<u32, NotBegun> {
        if let Some((lease, _)) = &picked {
            key.more = Some(Box::new(More {
                named: key.named(),
                backend: lease.backend().id,
            }));
        }
        // Without a backend a flow is begun all the same: the client may have to be refused before.
        if picked.is_some()
            && let Some(number) = self.find(&key)
        {
            self.flows[number as usize].is_unreachable = false;
            return Ok(number);
        }
        let start = Start {
            tlvs,
            picked,
            ..Start::default()
        };
        self.begin(context, key, start)
    }

    /// Moves a flow to another backend, if there is one, by beginning another flow. The old socket
    /// is kept for replies that are still owed.
    pub(super) fn move_flow(
        &mut self,
        context: &mut Context,
        number: u32,
        reason: CloseReason,
    ) -> Result<u32, NotBegun> {
        if self.is_draining {
            // No flow begins any more: it ends where it is.
            return Ok(number);
        }
        let flow = &self.flows[number as usize];
        let serial = flow.serial;
        let (key, backend) = (flow.key.clone(), Arc::clone(flow.lease.backend()));
        let header = flow.header();
        let start = |picked| Start {
            moves: true,
            picked: Some(picked),
            header: header.clone(),
            ..Start::default()
        };
        let next = match self.pick_another(context, &key, &backend) {
            Ok(picked) if self.has_room(&key) => self.begin(context, key, start(picked)),
            Ok(picked) => {
                // The next flow needs the permits of this one.
                drop(picked);
                self.deliver_and_close(context, serial, number, reason);
                let picked = self.pick_another(context, &key, &backend);
                return self.begin(context, key, start(picked?));
            }
            Err(lacks) if self.waits_to_move(&key, reason, lacks) => {
                let start = Start {
                    moves: true,
                    header: header.clone(),
                    ..Start::default()
                };
                self.begin(context, key, start)
            }
            Err(lacks) => Err(lacks.into()),
        };
        match (next, self.flow(serial, number)) {
            (Ok(next), _) => {
                self.retire(context, serial, number, reason);
                Ok(next)
            }
            // The backend may answer again, or another one may be found for the next datagram.
            (Err(_), Some(flow)) if reason.lets_flow_stay() => {
                flow.resume();
                flow.changes = 0;
                Ok(number)
            }
            // There is no other backend, and this one is to get nothing more. Replies that it owes
            // may come.
            (Err(not_begun), _) => {
                self.deliver_all(context);
                self.retire(context, serial, number, reason);
                Err(not_begun)
            }
        }
    }

    /// Whether a flow that has to leave its backend waits for another one.
    fn waits_to_move(&self, key: &Key, reason: CloseReason, lacks: Shortage) -> bool {
        !reason.lets_flow_stay() && self.service.pool.lets_wait(lacks) && self.has_room(key)
    }

    fn pick_another(
        &self,
        context: &Context,
        key: &Key,
        not: &Backend,
    ) -> Result<(Lease, Search), Shortage> {
        let mut search = self.search(key);
        search.avoid(not);
        let lease = self.service.pool.pick(&mut search, context.now)?;
        Ok((lease, search))
    }

    /// Ends a flow after the datagrams that were taken for it were sent.
    fn deliver_and_close(
        &mut self,
        context: &mut Context,
        serial: u32,
        number: u32,
        reason: CloseReason,
    ) {
        self.deliver_all(context);
        if self.flow(serial, number).is_some() {
            self.close(context, number, reason);
        }
    }
}

impl DatagramHeader {
    /// Of a peer that must not send one.
    const NONE: Self = Self {
        named: None,
        tlvs: Vec::new(),
        is_trusted: false,
    };
}

impl Flow {
    /// The header that the backend gets, for the flow that follows this one.
    fn header(&self) -> Option<Box<[u8]>> {
        self.extras.as_ref().map(|extras| extras.header.clone())
    }
}
