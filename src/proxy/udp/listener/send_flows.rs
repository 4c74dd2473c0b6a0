//! The flows of some addresses go to another process. They are copied while they go on; then all
//! stand still until the other process has what has changed since.

use super::{Listener, Reception, receive_flows::Receiving};
use crate::{
    handover::flows::{
        FlowBatch, FlowChange, FlowFlags, FlowProgress, FlowState, NamedPeer, SocketBegin,
        SocketKey,
    },
    plan::reason::CloseReason,
    proxy::udp::{Port, context::Context, flow::Flow, order::FlowCopies, token::Token},
};
use ahash::{AHashMap, AHashSet};
use rustix::event::epoll::EventFlags;
use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd as _, OwnedFd},
    time::Duration,
};

/// What the other process has of the flows here.
#[derive(Default)]
pub(super) struct Sending {
    /// By their numbers: when each was copied, in milliseconds.
    copied: AHashMap<u32, u64>,
    /// The sessions of those that have ended since.
    ended: Vec<u64>,
    /// The number that the next copy begins with.
    next: u32,
}

impl Sending {
    /// A flow has ended here.
    pub(super) fn note_end(&mut self, number: u32, id: u64) {
        if self.copied.remove(&number).is_some() {
            self.ended.push(id);
        }
    }
}

impl Listener {
    /// Copies of the sockets at which flows begin, with their places among those of the address.
    pub(in crate::proxy::udp) fn copy_sockets(
        &self,
    ) -> impl Iterator<Item = (u16, SocketAddr, io::Result<OwnedFd>)> {
        let ports = self.ports.iter().filter(|(_, open)| !open.is_closing);
        ports.map(|(_, open)| {
            let Port {
                socket,
                address,
                index,
                ..
            } = &open.port;
            (*index, *address, socket.try_clone().map(OwnedFd::from))
        })
    }

    /// The next flows that come to these addresses, at most so many. They go on.
    pub(in crate::proxy::udp) fn copy_flows(
        &mut self,
        context: &Context,
        addresses: &[SocketAddr],
        most: usize,
    ) -> io::Result<FlowCopies> {
        let mut sending = self.sending.take().unwrap_or_default();
        let mut given = FlowCopies::default();
        let end = self.flows.capacity() as u32;
        while sending.next < end && given.batch.flows.len() < most {
            let number = sending.next;
            sending.next += 1;
            if !self.is_to_be_sent(number, addresses) || sending.copied.contains_key(&number) {
                continue;
            }
            if let Err(error) = self.copy_flow(number, &mut given) {
                self.sending = Some(sending);
                return Err(error);
            }
            sending.copied.insert(number, context.ms);
        }
        given.has_more = sending.next < end;
        self.sending = Some(sending);
        Ok(given)
    }

    fn is_to_be_sent(&self, number: u32, addresses: &[SocketAddr]) -> bool {
        self.flows.get(number as usize).is_some_and(|flow| {
            let open = &self.ports[usize::from(flow.key.port)];
            addresses.contains(&open.port.address) && flow.permits.session().must_end().is_none()
        })
    }

    fn copy_flow(&self, number: u32, given: &mut FlowCopies) -> io::Result<()> {
        let flow = &self.flows[number as usize];
        given
            .sockets
            .push(flow.link.socket.as_fd().try_clone_to_owned()?);
        given.batch.flows.push(self.state_of(number, flow));
        Ok(())
    }

    /// Neither receives at these addresses nor from the backends of their flows any more. Returns
    /// what the other process lacks; an error if it cannot have it.
    pub(in crate::proxy::udp) fn freeze(
        &mut self,
        context: &mut Context,
        addresses: &[SocketAddr],
    ) -> io::Result<FlowCopies> {
        let begin = self.freeze_ports(context, addresses);
        self.end_all_waiting(context);
        for number in self.numbers_with(Reception::Held) {
            let flow = &self.flows[number as usize];
            match flow.permits.session().must_end() {
                Some(reason) => self.close(context, number, reason),
                None => drop(context.reactor.deregister(&flow.link.socket)),
            }
        }
        let sending = self.sending.take().unwrap_or_default();
        let mut given = FlowCopies {
            batch: FlowBatch {
                ended: sending.ended,
                peers: self.named_peers(addresses),
                begin,
                ..FlowBatch::default()
            },
            ..FlowCopies::default()
        };
        for number in self.numbers_with(Reception::Held) {
            match sending.copied.get(&number) {
                None => self.copy_flow(number, &mut given)?,
                Some(copied) => given
                    .batch
                    .changes
                    .extend(self.change_since(number, *copied)),
            }
        }
        Ok(given)
    }

    fn freeze_ports(&mut self, context: &Context, addresses: &[SocketAddr]) -> Vec<SocketBegin> {
        // What was dropped up to now is counted here.
        self.has_received = true;
        self.count_kernel_drops();
        let mut begin = Vec::new();
        for (_, open) in &mut self.ports {
            if open.reception != Reception::Open || !addresses.contains(&open.port.address) {
                continue;
            }
            open.failures.clear(&self.service.intake);
            if open.resume_ms.take().is_none() {
                // It was registered, so that this does not fail.
                let _ = context.reactor.deregister(&open.port.socket);
            }
            open.reception = Reception::Held;
            begin.push(SocketBegin {
                socket: SocketKey {
                    address: open.port.address,
                    index: open.port.index,
                },
                drops: open.drops,
            });
        }
        begin
    }

    pub(super) fn numbers_with(&self, reception: Reception) -> Vec<u32> {
        let flows = self.flows.iter();
        let found = flows.filter(|(_, flow)| self.reception_of(flow) == reception);
        found.map(|(number, _)| number as u32).collect()
    }

    pub(super) fn reception_of(&self, flow: &Flow) -> Reception {
        self.ports[usize::from(flow.key.port)].reception
    }

    fn change_since(&self, number: u32, copied: u64) -> Option<FlowChange> {
        let flow = &self.flows[number as usize];
        // Replies to a retired flow do not count as activity.
        let has_changed = flow.last_ms() >= copied || flow.retired.is_some() || flow.is_unreachable;
        has_changed.then(|| FlowChange {
            id: flow.permits.session().id,
            progress: flow.progress(),
        })
    }

    fn named_peers(&self, addresses: &[SocketAddr]) -> Vec<NamedPeer> {
        let peers = self.named.iter().filter_map(|(key, named, last_millis)| {
            let open = self.ports.get(usize::from(key.port))?;
            let address = open.port.address;
            addresses.contains(&address).then_some(NamedPeer {
                socket: SocketKey {
                    address,
                    index: open.port.index,
                },
                peer: key.peer,
                local: key.local,
                named,
                last_millis,
            })
        });
        peers.collect()
    }

    /// The other process receives from now on. Its flows are forgotten here, without a record: they
    /// have not ended. `refused`: the sessions of those that it does not have. They carry replies
    /// until they are silent.
    pub(in crate::proxy::udp) fn release(&mut self, context: &mut Context, refused: &[u64]) {
        let refused: AHashSet<u64> = refused.iter().copied().collect();
        let held = self.numbers_with(Reception::Held);
        for (_, open) in &mut self.ports {
            if open.reception == Reception::Held {
                open.reception = Reception::HandedOver;
            }
        }
        for number in held {
            let flow = &self.flows[number as usize];
            match refused.contains(&flow.permits.session().id) {
                true => self.register_again(context, number),
                false => self.forget(number),
            }
        }
        self.count_flows();
    }

    /// Without a record, and without a count of its end.
    pub(super) fn forget(&mut self, number: u32) {
        let Some(flow) = self.flows.try_remove(number as usize) else {
            return;
        };
        self.wheel.remove(number);
        self.table.remove(&flow.key, number);
        flow.permits.session().set_closing();
    }

    /// The other process has not taken over, or has ended: receives again.
    pub(in crate::proxy::udp) fn take_back(&mut self, context: &mut Context) {
        self.sending = None;
        self.receiving = Receiving::default();
        for number in self.numbers_with(Reception::Held) {
            self.register_again(context, number);
        }
        let ports = self.ports.iter_mut();
        let stopped = ports.filter(|(_, open)| open.reception != Reception::Open);
        let stopped = stopped.map(|(port, open)| {
            open.reception = Reception::Open;
            port as u16
        });
        let stopped: Vec<u16> = stopped.collect();
        for port in stopped {
            self.receive_from_now_on(context, port);
        }
    }

    /// Receives from the backend of a flow from now on.
    pub(super) fn register_again(&mut self, context: &mut Context, number: u32) {
        let flow = &self.flows[number as usize];
        let token = Token::flow(self.index, flow.serial, number);
        let socket = &flow.link.socket;
        if let Err(error) = context.reactor.register(socket, token, EventFlags::IN) {
            let service = &self.service;
            service.log_failed_call(crate::session::service::Call::Register, &error, context.now);
            return self.close(context, number, CloseReason::BackendRefused);
        }
        if let Some(reason) = flow.permits.session().must_end() {
            self.close(context, number, reason);
        }
    }

    fn state_of(&self, number: u32, flow: &Flow) -> FlowState {
        let open = &self.ports[usize::from(flow.key.port)];
        let session = flow.permits.session();
        let backend = flow.lease.backend();
        FlowState {
            id: session.id,
            socket: SocketKey {
                address: open.port.address,
                index: open.port.index,
            },
            peer: flow.key.peer,
            local: flow.key.local,
            named: flow.key.named(),
            per_packet: flow.key.more.as_ref().is_some_and(|more| more.backend != 0),
            is_current: self.find(&flow.key) == Some(number),
            backend: backend.text().to_string(),
            backend_address: backend.addr.to_string(),
            began_micros: session.began_micros(),
            header: flow
                .extras
                .as_ref()
                .map_or_else(Vec::new, |extras| extras.header.to_vec()),
            progress: flow.progress(),
        }
    }
}

impl Flow {
    fn progress(&self) -> FlowProgress {
        let session = self.permits.session();
        let extras = self.extras.as_deref();
        let first_reply = extras.and_then(|extras| extras.first_reply);
        FlowProgress {
            active_millis: self.last_ms(),
            taken: self.taken,
            sent: self.sent,
            replies: self.replies,
            bytes: [session.received(), session.sent()],
            datagrams: extras.map_or([0; 2], |extras| extras.datagrams),
            drops: self.drops,
            first_reply_micros: first_reply.map(micros),
            flags: FlowFlags {
                is_unreachable: self.is_unreachable,
                is_proven: !self.is_on_trial,
                is_coalescing: self.is_coalescing,
                header_is_due: extras.is_some_and(|extras| extras.header_is_due),
                never_splits_to_backend: !self.splits_to_backend,
                never_splits_to_client: !self.splits_to_client,
            },
            retired: self.retired.map(|reason| reason.word().to_owned()),
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// A descriptor of its own for each socket of a flow that has ended.
pub(in crate::proxy::udp) fn copy_late(
    context: &Context,
    listener: &str,
    most: usize,
) -> io::Result<FlowCopies> {
    let mut given = FlowCopies::default();
    let late = context.late.iter();
    for late in late
        .filter(|late| late.service.plan.name == listener)
        .take(most)
    {
        let socket: OwnedFd = late.link.socket.as_fd().try_clone_to_owned()?;
        given.sockets.push(socket);
        given.batch.late.push(crate::handover::flows::LateSocket {
            listener: listener.to_owned(),
            until_millis: late.until,
        });
    }
    Ok(given)
}
