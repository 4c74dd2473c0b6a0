//! Receiving what clients send.

use super::{
    super::{batch::Piece, table::Key, token::Token},
    Listener, Reception,
};
use crate::{
    plan::reason::DropReason,
    proxy::udp::context::{Context, Unit},
    session::service::Call,
    sys::datagram::{BATCH, Received},
};
use rustix::event::epoll::EventFlags;
use std::{io, os::fd::AsFd};

impl Listener {
    /// As [`Self::receive`], for an event: it may be about a socket that was closed meanwhile.
    pub(in crate::proxy::udp) fn receive_if_open(&mut self, context: &mut Context, port: u16) {
        if self.ports.contains(usize::from(port)) {
            self.receive(context, port);
        }
    }

    /// Receives one batch from this port, and sends it on. Returns whether there may be more.
    pub(in crate::proxy::udp) fn receive(&mut self, context: &mut Context, port: u16) -> bool {
        let open = &mut self.ports[usize::from(port)];
        if open.reception != Reception::Open {
            return false;
        }
        self.has_received = true;
        let max = open.batch_size.get();
        let count = match context
            .receive_buffers
            .receive(open.port.socket.as_fd(), 0, max)
        {
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => {
                self.pause(context, port, &error);
                return false;
            }
        };
        open.failures.clear(&self.service.intake);
        if count == 0 {
            return false;
        }
        open.batch_size.adapt(count, context.turn, BATCH);
        self.assign_batch(context, port, count);
        self.deliver_all(context);
        count == max
    }

    /// Counts the datagrams in the first slots of the buffers, and assigns them to flows.
    fn assign_batch(&mut self, context: &mut Context, port: u16, slots: usize) {
        let (mut bytes, mut datagrams) = (0, 0);
        let mut last = None;
        for slot in 0..slots {
            let received = context.receive_buffers.get(slot);
            let Some(key) = self.key_of(&received, port) else {
                continue;
            };
            let piece = Piece {
                len: received.payload.len(),
                segment: received.segment.into(),
            };
            bytes += piece.len as u64;
            datagrams += piece.datagrams() as u64;
            if received.truncated {
                self.count_dropped(DropReason::Truncated, [piece]);
            } else if self.own.contains(key.peer, context.now) {
                self.count_dropped(DropReason::OwnAddress, [piece]);
            } else {
                let whole = Unit {
                    slot,
                    from: 0,
                    piece,
                };
                for unit in whole.divided(!self.takes_singly) {
                    self.assign(context, key.clone(), unit, &mut last);
                }
            }
        }
        let counts = self.service.metrics.counts.mine();
        counts.received.add(bytes);
        counts.received_datagrams.add(datagrams);
    }

    /// `None`: the datagram is not for this worker.
    fn key_of(&self, received: &Received<'_>, port: u16) -> Option<Key> {
        let open = &self.ports[usize::from(port)];
        if received.to_many && open.port.index > 0 {
            // The kernel has given it to every socket of the address.
            return None;
        }
        let is_wildcard = open.is_wildcard;
        Some(Key {
            peer: received.from?,
            port,
            // A reply cannot come from a multicast address.
            local: received
                .to
                .filter(|to| is_wildcard && !to.ip.is_multicast()),
            more: None,
        })
    }

    /// The socket of this port cannot receive: the event loop would report it again and again.
    pub(super) fn pause(&mut self, context: &Context, port: u16, error: &io::Error) {
        let service = &self.service;
        service.process.metrics.accept_errors.add(1);
        service.log_failed_call(Call::Receive, error, context.now);
        let open = &mut self.ports[usize::from(port)];
        let pause = open.failures.add(&service.intake).as_millis();
        let resume_ms = context.ms + u64::try_from(pause).unwrap_or(u64::MAX);
        open.resume_ms = Some(resume_ms);
        self.next_resume = Some(
            self.next_resume
                .map_or(resume_ms, |next| next.min(resume_ms)),
        );
        // It may be out already.
        let _ = context.reactor.deregister(&open.port.socket);
    }

    /// Receives again where the pause is over.
    pub(super) fn resume(&mut self, context: &mut Context) {
        if self.next_resume.is_none_or(|at| at > context.ms) {
            return;
        }
        let later = |&at: &u64| at > context.ms;
        let paused = self.ports.iter().filter_map(|(_, open)| open.resume_ms);
        self.next_resume = paused.filter(later).min();
        let ports: Vec<usize> = self.ports.iter().map(|(port, _)| port).collect();
        for n in ports {
            let (port, open) = (n as u16, &mut self.ports[n]);
            if open.resume_ms.is_none_or(|at| at > context.ms) {
                continue;
            }
            open.resume_ms = None;
            self.receive_from_now_on(context, port);
        }
    }

    /// Registers the socket of this port.
    pub(super) fn receive_from_now_on(&mut self, context: &mut Context, port: u16) {
        let open = &mut self.ports[usize::from(port)];
        let token = Token::port(self.index, port);
        let added = context
            .reactor
            .register(&open.port.socket, token, EventFlags::IN);
        match added {
            // Without waiting for an event: that there is nothing is good to know, too.
            Ok(()) => {
                self.receive(context, port);
            }
            Err(error) => self.pause(context, port, &error),
        }
    }
}
