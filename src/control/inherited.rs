//! Listening sockets that the service manager has passed to this process. A start takes them
//! instead of binding their addresses, with the clients that wait in their queues.

use crate::{
    plan::{Addr, Protocol},
    sys::passed::{self, Kind, Passed},
};
use std::{io, net::SocketAddr};

/// Those that no listener has taken.
pub(super) struct Inherited(Vec<Passed>);

impl Inherited {
    /// All that were passed. There are none the second time.
    pub(super) fn take() -> Self {
        Self(passed::take())
    }

    /// Closes, and logs, what is of none of these addresses.
    pub(super) fn close_others<'a>(
        &mut self,
        wanted: impl Iterator<Item = (&'a Addr, Protocol)> + Clone,
    ) {
        self.0.retain(|passed| {
            let is_wanted = wanted
                .clone()
                .any(|(addr, protocol)| is_at(passed, addr, protocol));
            if !is_wanted {
                let Passed { name, kind, .. } = passed;
                let socket = kind
                    .as_ref()
                    .map_or("no socket that listens".to_owned(), shown);
                tracing::warn!(name, socket, "closing what was passed, no listener has it");
            }
            is_wanted
        });
    }

    /// The sockets of this address, at most `most`; what is left is closed and logged.
    pub(super) fn take_for(
        &mut self,
        addr: &Addr,
        protocol: Protocol,
        most: usize,
    ) -> io::Result<Vec<socket2::Socket>> {
        let found = self
            .0
            .extract_if(.., |passed| is_at(passed, addr, protocol));
        let mut found: Vec<Passed> = found.collect();
        if found.is_empty() {
            return Ok(Vec::new());
        }
        let left = found.split_off(most.min(found.len())).len();
        let taken = found.len();
        tracing::info!(%addr, sockets = taken, "taking over sockets that were passed");
        if left > 0 {
            tracing::warn!(%addr, sockets = left, "closing passed sockets, more than workers");
        }
        let sockets = found.into_iter().map(|passed| {
            let socket = socket2::Socket::from(passed.socket);
            socket.set_nonblocking(true)?;
            if let Addr::Tcp(SocketAddr::V6(_)) = addr
                && !socket.only_v6()?
            {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "the socket that was passed takes IPv4 as well: its unit needs \
                     BindIPv6Only=ipv6-only",
                ));
            }
            Ok(socket)
        });
        sockets.collect()
    }

    pub(super) fn has(&self, addr: &Addr, protocol: Protocol) -> bool {
        self.0.iter().any(|passed| is_at(passed, addr, protocol))
    }
}

fn is_at(passed: &Passed, addr: &Addr, protocol: Protocol) -> bool {
    match (&passed.kind, addr, protocol) {
        (Some(Kind::Stream(at)), Addr::Tcp(address), Protocol::Tcp)
        | (Some(Kind::Datagram(at)), Addr::Tcp(address), Protocol::Udp(_)) => at == address,
        (Some(Kind::Unix(at)), Addr::Unix(path), _) => at == path,
        _ => false,
    }
}

fn shown(kind: &Kind) -> String {
    match kind {
        Kind::Stream(address) => format!("tcp {address}"),
        Kind::Datagram(address) => format!("udp {address}"),
        Kind::Unix(path) => format!("unix:{}", path.display()),
    }
}
