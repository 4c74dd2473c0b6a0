//! A listener gets other settings or sockets while it has flows.

use super::{Listener, OpenPort, takes_singly};
use crate::{
    proxy::udp::{Port, Update, context::Context, flow::idle_ms, token::Token},
    runtime::timer_wheel::TimerWheel,
};
use rustix::event::epoll::EventFlags;
use std::{io, sync::Arc};

impl Listener {
    /// Flows that exist keep the service that they began with.
    pub(in crate::proxy::udp) fn update(&mut self, context: &mut Context, update: Update) {
        let Update {
            service,
            added,
            addresses,
            ..
        } = update;
        let Some(udp) = service.udp() else {
            return;
        };
        let idle_ms = idle_ms(&service);
        if idle_ms < self.idle_ms {
            self.rebuild_wheel(idle_ms, context.ms);
        }
        if idle_ms != self.idle_ms {
            self.named.set_idle_ms(idle_ms);
        }
        self.idle_ms = idle_ms;
        self.udp = *udp;
        self.takes_singly = takes_singly(&service);
        if !Arc::ptr_eq(&service.intake, &self.service.intake) {
            for (_, open) in &mut self.ports {
                open.failures.clear(&self.service.intake);
            }
        }
        self.service = service;
        for port in added {
            if let Err(error) = self.open_port(context, port) {
                let listener = &self.service.plan.name;
                tracing::error!(%listener, %error, "cannot receive datagrams");
            }
        }
        for (_, open) in &mut self.ports {
            open.is_closing = !addresses.contains(&open.port.address);
        }
        self.has_addresses = !addresses.is_empty();
    }

    /// Receives from a socket.
    pub(super) fn open_port(&mut self, context: &Context, port: Port) -> io::Result<()> {
        let entry = self.ports.vacant_entry();
        let number = u16::try_from(entry.key()).map_err(io::Error::other)?;
        if !port.is_held {
            let token = Token::port(self.index, number);
            context
                .reactor
                .register(&port.socket, token, EventFlags::IN)?;
        }
        entry.insert(OpenPort::new(port));
        Ok(())
    }

    pub(super) fn rebuild_wheel(&mut self, idle_ms: u64, ms: u64) {
        self.wheel = TimerWheel::new(idle_ms, ms);
        let numbers: Vec<u32> = self.flows.iter().map(|(number, _)| number as u32).collect();
        for number in numbers {
            self.wheel.insert(number, self.due(number), ms);
        }
    }

    /// Whether sockets are to be closed when their flows have ended.
    pub(in crate::proxy::udp) fn is_closing(&self) -> bool {
        self.ports.iter().any(|(_, open)| open.is_closing)
    }

    /// Closes the sockets that nothing uses on any worker.
    pub(in crate::proxy::udp) fn close_unused_ports(&mut self, context: &Context) {
        let intake = &self.service.intake;
        self.ports.retain(|_, open| {
            let is_over = open.is_closing && open.port.users.close_if_unused();
            if is_over {
                open.failures.clear(intake);
                // It may be deregistered already.
                let _ = context.reactor.deregister(&open.port.socket);
            }
            !is_over
        });
    }

    /// Whether it has a socket, or may get one.
    pub(in crate::proxy::udp) fn is_open(&self) -> bool {
        !self.ports.is_empty() || self.has_addresses
    }
}
