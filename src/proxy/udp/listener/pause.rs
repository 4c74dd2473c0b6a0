//! While another process receives from the sockets of a listener. Flows go on: what their backends
//! send reaches their clients.

use super::{Listener, OpenPort};
use crate::proxy::udp::{context::Context, token::Token};
use rustix::event::epoll::EventFlags;
use std::{io, net::SocketAddr, os::fd::OwnedFd};

impl Listener {
    /// What has come and was not received stays in the sockets.
    pub(in crate::proxy::udp) fn stop_receiving(&mut self, context: &Context) {
        self.is_paused = true;
        self.next_resume = None;
        for (_, open) in &mut self.ports {
            open.resume_ms = None;
            // It may be out already.
            let _ = context.reactor.deregister(&open.port.socket);
        }
    }

    pub(in crate::proxy::udp) fn receive_again(&mut self, context: &mut Context) {
        if !std::mem::take(&mut self.is_paused) {
            return;
        }
        let ports: Vec<usize> = self.ports.iter().map(|(port, _)| port).collect();
        for n in ports {
            let port = n as u16;
            let token = Token::port(self.index, port);
            let socket = &self.ports[n].port.socket;
            if let Err(error) = context.reactor.register(socket, token, EventFlags::IN) {
                self.pause(context, port, &error);
            }
        }
    }

    /// Copies of the sockets at which flows begin, with their places.
    pub(in crate::proxy::udp) fn copy_sockets(
        &self,
    ) -> impl Iterator<Item = (usize, SocketAddr, io::Result<OwnedFd>)> {
        let ports = self.ports.iter().filter(|(_, open)| !open.is_closing);
        ports.map(|(place, OpenPort { port, .. })| {
            let copy = port.socket.try_clone().map(OwnedFd::from);
            (place, port.address, copy)
        })
    }
}
