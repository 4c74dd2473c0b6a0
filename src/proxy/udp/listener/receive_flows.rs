//! Flows of another process go on here. Until its listening sockets do, nothing is received on
//! them.

use super::{
    super::{
        flow::{Flow, FlowSocket},
        table::{Key, More},
    },
    Listener, Reception,
};
use crate::{
    handover::flows::{
        FlowChange, FlowProgress, FlowState, LateSocket, NamedPeer, SocketBegin, SocketKey,
    },
    plan::reason::CloseReason,
    proxy::udp::{
        context::{Context, Late},
        order::ReceivedFlows,
    },
    runtime::net::Client,
    session::{
        admission,
        registry::{Arrival, Continued},
        summary::{Attempt, AttemptResult},
    },
    upstream::{
        backend::{Backend, Lease},
        pool::ConnectTimer,
    },
};
use ahash::AHashMap;
use std::{
    net::UdpSocket,
    os::fd::OwnedFd,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

/// Flows that were taken over and are not received on yet: their numbers by their sessions.
#[derive(Default)]
pub(super) struct Receiving(AHashMap<u64, u32>);

/// Backends by text and address, as they were found: many flows have the same.
type Backends = AHashMap<(String, String), Option<Arc<Backend>>>;

impl Listener {
    /// Returns the sessions of flows that it does not take.
    pub(in crate::proxy::udp) fn receive_flows(
        &mut self,
        context: &mut Context,
        received: ReceivedFlows,
    ) -> Vec<u64> {
        let ports = self.ports.iter().map(|(number, open)| {
            let key = SocketKey {
                address: open.port.address,
                index: open.port.index,
            };
            (key, number as u16)
        });
        let ports: AHashMap<SocketKey, u16> = ports.collect();
        let mut backends = Backends::default();
        let mut refused = Vec::new();
        for (state, socket) in received.flows {
            let id = state.id;
            let port = ports.get(&state.socket).copied();
            if port.is_none_or(|port| !self.take_flow(context, port, state, socket, &mut backends))
            {
                refused.push(id);
            }
        }
        for change in received.changes {
            self.change_flow(context, &change);
        }
        for id in received.ended {
            if let Some(number) = self.receiving.0.remove(&id) {
                self.forget(number);
            }
        }
        for peer in received.peers {
            self.take_peer(&ports, peer);
        }
        for (late, socket) in received.late {
            self.take_late(context, &late, socket);
        }
        self.count_flows();
        self.begin_taken(context, &ports, &received.begin);
        refused
    }

    fn take_flow(
        &mut self,
        context: &mut Context,
        port: u16,
        state: FlowState,
        socket: OwnedFd,
        backends: &mut Backends,
    ) -> bool {
        let FlowState {
            id,
            socket: _,
            peer,
            local,
            named,
            per_packet,
            is_current,
            backend,
            backend_address,
            began_micros,
            header,
            progress,
        } = state;
        let open = &self.ports[usize::from(port)];
        let service = Arc::clone(&self.service);
        let find = |(text, address): &(String, String)| service.pool.backend_at(text, address);
        let backend = backends.entry((backend, backend_address));
        let backend = backend.or_insert_with_key(find).clone();
        let users = (open.reception == Reception::Held).then(|| open.port.users.take());
        let (Some(backend), Some(port_use)) = (backend, users.flatten()) else {
            return false;
        };
        let key = Key {
            peer,
            port,
            local,
            more: (named.is_some() || per_packet).then(|| {
                Box::new(More {
                    named,
                    backend: if per_packet { backend.id } else { 0 },
                })
            }),
        };
        let arrival = Arrival {
            peer: Client::Ip(peer),
            named: named.map(|(source, _)| Client::Ip(source)),
            server_port: Some(open.port.address.port()),
            at: crate::runtime::time::past_at(began_micros, context.now),
        };
        let continued = Continued {
            id,
            active_millis: progress.active_millis.min(context.ms),
            received: progress.bytes[0],
            sent: progress.bytes[1],
        };
        let (permits, permit) =
            admission::admit_continued_flow(&service, &continued, arrival, &context.sockets);
        let link = FlowSocket {
            socket: UdpSocket::from(socket),
            _permit: permit,
        };
        let has_replies = progress.replies > 0;
        let clock =
            (!has_replies).then(|| ConnectTimer::start(&service.pool, &backend, context.now));
        permits.session().set_backend(backend.id);
        let attempt = service.access_log().is_some().then(|| Attempt {
            backend: Arc::clone(&backend),
            result: AttemptResult::Connected,
            time: Duration::ZERO,
            waited: Duration::ZERO,
        });
        let lease = Lease::new(backend);
        let header = (!header.is_empty()).then(|| header.into_boxed_slice());
        let serial = context.next_serial();
        let mut flow = Flow::new(key, serial, link, port_use, permits, lease, context.now)
            .with_extras(header, clock.flatten(), attempt.into_iter().collect());
        flow.set_progress(&progress);
        let due = flow.due(self.is_draining);
        let number = self.enter(context, flow, due);
        if is_current {
            let flows = &self.flows;
            let key = &flows[number as usize].key;
            self.table.insert(key, number, |n| &flows[n as usize].key);
        }
        self.receiving.0.insert(id, number);
        true
    }

    fn change_flow(&mut self, context: &Context, change: &FlowChange) {
        let Some(&number) = self.receiving.0.get(&change.id) else {
            return;
        };
        let Some(flow) = self.flows.get_mut(number as usize) else {
            return;
        };
        flow.set_progress(&change.progress);
        let session = flow.permits.session();
        session.set_active(change.progress.active_millis.min(context.ms));
        let [received, sent] = change.progress.bytes;
        session.received.store(received, Relaxed);
        session.sent.store(sent, Relaxed);
        let due = self.due(number);
        self.wheel.remove(number);
        self.wheel.insert(number, due, context.ms);
    }

    fn take_peer(&mut self, ports: &AHashMap<SocketKey, u16>, peer: NamedPeer) {
        if let Some(&port) = ports.get(&peer.socket) {
            let key = Key {
                peer: peer.peer,
                port,
                local: peer.local,
                more: None,
            };
            self.named
                .insert(key, peer.named, peer.last_millis, usize::MAX);
        }
    }

    fn take_late(&self, context: &mut Context, late: &LateSocket, socket: OwnedFd) {
        let permit = context.sockets.take_anyway();
        context.late.push_back(Late {
            until: late.until_millis,
            service: Arc::clone(&self.service),
            link: FlowSocket {
                socket: UdpSocket::from(socket),
                _permit: permit,
            },
        });
    }

    /// Receives from these sockets, and from the backends of their flows.
    fn begin_taken(
        &mut self,
        context: &mut Context,
        ports: &AHashMap<SocketKey, u16>,
        begin: &[SocketBegin],
    ) {
        let mut begun = Vec::new();
        for begin in begin {
            let Some(&port) = ports.get(&begin.socket) else {
                continue;
            };
            let open = &mut self.ports[usize::from(port)];
            if open.reception == Reception::Held {
                open.reception = Reception::Open;
                open.drops = begin.drops;
                begun.push(port);
            }
        }
        if begun.is_empty() {
            return;
        }
        let numbers: Vec<u32> = self.receiving.0.values().copied().collect();
        for number in numbers {
            if self.reception_of(&self.flows[number as usize]) == Reception::Open {
                self.register_again(context, number);
            }
        }
        let (flows, all_ports) = (&self.flows, &self.ports);
        self.receiving.0.retain(|_, number| {
            let flow = flows.get(*number as usize);
            flow.is_some_and(|flow| {
                all_ports[usize::from(flow.key.port)].reception == Reception::Held
            })
        });
        for port in begun {
            self.receive_from_now_on(context, port);
        }
    }
}

impl Flow {
    fn set_progress(&mut self, progress: &FlowProgress) {
        let FlowProgress {
            active_millis: _,
            taken,
            sent,
            replies,
            bytes: _,
            datagrams,
            drops,
            first_reply_micros,
            flags,
            retired,
        } = progress;
        self.taken = *taken;
        self.sent = *sent;
        self.replies = *replies;
        self.drops = *drops;
        self.is_unreachable = flags.is_unreachable;
        self.is_on_trial = !flags.is_proven;
        self.is_coalescing = flags.is_coalescing;
        self.splits_to_backend = !flags.never_splits_to_backend;
        self.splits_to_client = !flags.never_splits_to_client;
        self.retired = retired.as_deref().map(|word| {
            // A reason of a later version: it gets no more datagrams in any case.
            CloseReason::of_word(word).unwrap_or(CloseReason::Ok)
        });
        if let Some(extras) = &mut self.extras {
            extras.header_is_due = flags.header_is_due;
            extras.datagrams = *datagrams;
            extras.first_reply = first_reply_micros.map(Duration::from_micros);
            if *replies > 0 {
                extras.clock = None;
            }
        }
    }
}
