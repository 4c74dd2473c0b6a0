//! Listening sockets that were passed to this process, by the service manager or by the process
//! that it replaces. A start takes them instead of binding their addresses, with the clients that
//! wait in their queues.

use crate::{
    handover::listeners::{self, ListeningRecord},
    plan::{Addr, Protocol},
    sys::listen_fds::{self, Passed, SocketKind},
};
use std::{collections::BTreeSet, io, net::SocketAddr, os::fd::OwnedFd};

/// A listening socket of the process that this one replaces.
pub(in crate::control) struct HandedSocket {
    pub(in crate::control) record: ListeningRecord,
    /// Where it stood among all that were handed over.
    pub(in crate::control) number: u64,
    pub(in crate::control) socket: OwnedFd,
}

/// Those that no listener has taken.
pub(super) struct Inherited {
    passed: Vec<Passed>,
    handed: Vec<HandedSocket>,
    /// The names of the passed sockets that were closed.
    closed: BTreeSet<String>,
}

/// The sockets that an address gets.
#[derive(Default)]
pub(super) struct Taken {
    pub(super) sockets: Vec<socket2::Socket>,
    /// From the process that this one replaces: they are all that the address is to have.
    pub(super) are_handed: bool,
    /// That process has made the file of the unix socket.
    pub(super) owns_file: bool,
}

/// An address of a listener.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) listener: &'a str,
    pub(super) addr: &'a Addr,
    pub(super) protocol: Protocol,
}

impl Inherited {
    /// All that were passed: there are none of the service manager the second time.
    pub(super) fn take(handed: Vec<HandedSocket>) -> Self {
        Self {
            passed: listen_fds::take(),
            handed,
            closed: BTreeSet::new(),
        }
    }

    /// Closes, and logs, what is of none of these addresses.
    pub(super) fn close_others<'a>(&mut self, wanted: impl Iterator<Item = Wanted<'a>> + Clone) {
        self.passed.retain(|passed| {
            let is_wanted = wanted.clone().any(|wanted| is_at(passed, wanted));
            if !is_wanted {
                let Passed { name, kind, .. } = passed;
                let socket = kind
                    .as_ref()
                    .map_or("no socket that listens".to_owned(), shown);
                tracing::warn!(name, socket, "closing what was passed, no listener has it");
                self.closed.insert(name.clone());
            }
            is_wanted
        });
    }

    /// The sockets of this address. Each has a queue with clients, and the kernel gives it more for
    /// as long as the service manager has a copy.
    pub(super) fn take_for(&mut self, wanted: Wanted<'_>) -> io::Result<Taken> {
        let handed = self.handed.extract_if(.., |handed| is_of(handed, wanted));
        let handed: Vec<HandedSocket> = handed.collect();
        if !handed.is_empty() {
            let owns_file = handed.iter().any(|handed| handed.record.owns_file);
            let sockets = handed.into_iter().map(|handed| handed.socket.into());
            return Ok(Taken {
                sockets: sockets.collect(),
                are_handed: true,
                owns_file,
            });
        }
        let found = self.passed.extract_if(.., |passed| is_at(passed, wanted));
        let found: Vec<Passed> = found.collect();
        if found.is_empty() {
            return Ok(Taken::default());
        }
        let addr = wanted.addr;
        let sockets = found.len();
        tracing::info!(%addr, sockets, "taking over sockets that were passed");
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
        Ok(Taken {
            sockets: sockets.collect::<io::Result<_>>()?,
            are_handed: false,
            owns_file: false,
        })
    }

    pub(super) fn has(&self, wanted: Wanted<'_>) -> bool {
        self.passed.iter().any(|passed| is_at(passed, wanted))
            || self.handed.iter().any(|handed| is_of(handed, wanted))
    }

    /// The handed sockets that no address has taken.
    pub(super) fn unused(&self) -> Vec<u64> {
        self.handed.iter().map(|handed| handed.number).collect()
    }

    /// Where those are bound, with the name of the protocol.
    pub(super) fn left(&self) -> Vec<(&'static str, Addr)> {
        let kinds = self
            .handed
            .iter()
            .map(|handed| listen_fds::kind(&handed.socket));
        let addresses = kinds.flatten().map(|kind| match kind {
            SocketKind::Stream(address) => ("tcp", Addr::Tcp(address)),
            SocketKind::Datagram(address) => ("udp", Addr::Tcp(address)),
            SocketKind::Unix(path) => ("tcp", Addr::Unix(path)),
        });
        addresses.collect()
    }

    pub(super) fn into_closed(self) -> BTreeSet<String> {
        self.closed
    }
}

/// Whether a socket goes on at this address: under another name of the listener only where the
/// address says which socket it is.
fn is_of(handed: &HandedSocket, wanted: Wanted<'_>) -> bool {
    let ListeningRecord {
        listener,
        configured,
        protocol,
        ..
    } = &handed.record;
    let is_same_protocol = match protocol {
        listeners::Protocol::Stream => wanted.protocol == Protocol::Tcp,
        listeners::Protocol::Datagram => matches!(wanted.protocol, Protocol::Udp(_)),
        listeners::Protocol::Admin => false,
    };
    let is_any_port = matches!(wanted.addr, Addr::Tcp(address) if address.port() == 0);
    is_same_protocol
        && *configured == wanted.addr.to_string()
        && (listener == wanted.listener || !is_any_port)
}

fn is_at(passed: &Passed, wanted: Wanted<'_>) -> bool {
    match (&passed.kind, wanted.addr, wanted.protocol) {
        (Some(SocketKind::Stream(at)), Addr::Tcp(address), Protocol::Tcp)
        | (Some(SocketKind::Datagram(at)), Addr::Tcp(address), Protocol::Udp(_)) => at == address,
        (Some(SocketKind::Unix(at)), Addr::Unix(path), _) => at == path,
        _ => false,
    }
}

fn shown(kind: &SocketKind) -> String {
    match kind {
        SocketKind::Stream(address) => format!("tcp {address}"),
        SocketKind::Datagram(address) => format!("udp {address}"),
        SocketKind::Unix(path) => format!("unix:{}", path.display()),
    }
}
