//! Addresses, connecting, and socket options, TCP and unix alike.

mod open;
mod socket_file;

pub use open::{connect_datagrams, open, refuse_self_connection, retry_while_queue_is_full};
pub use socket_file::{FileRights, SocketFile, check_listen_unix, listen_unix};

pub use crate::runtime::executor::Stream;

use crate::plan::{Keepalive, SocketOptions};
use nix::net::if_::if_indextoname;
use socket2::{SockRef, TcpKeepalive};
use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
};

/// The address of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    Ip(SocketAddr),
    /// A unix socket has none.
    Unix,
}

impl Client {
    pub fn ip(self) -> Option<IpAddr> {
        match self {
            Self::Ip(address) => Some(address.ip()),
            Self::Unix => None,
        }
    }

    pub fn port(self) -> Option<u16> {
        match self {
            Self::Ip(address) => Some(address.port()),
            Self::Unix => None,
        }
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Unix => f.write_str("unix:"),
        }
    }
}

/// Whether this machine has the interface of a link-local address; other addresses need none.
pub fn has_interface(address: SocketAddr) -> bool {
    match address {
        SocketAddr::V6(v6) if v6.scope_id() > 0 => {
            // For an unknown number nix returns an empty name.
            if_indextoname(v6.scope_id()).is_ok_and(|name| !name.is_empty())
        }
        _ => true,
    }
}

/// Sets the options of a session's TCP socket. On Linux accepted sockets inherit them from the
/// listening socket, and so cost no call. A session works without any of them: an option that the
/// kernel refuses is left out, with a warning.
pub fn set_options(socket: impl AsFd, options: &SocketOptions) {
    let reference = SockRef::from(&socket);
    let warn_of = |option: &'static str, set: io::Result<()>| {
        if let Err(error) = set {
            tracing::warn!(option, %error, "cannot set a socket option, continuing without it");
        }
    };
    warn_of("TCP_NODELAY", reference.set_tcp_nodelay(options.nodelay));
    let keepalive = match &options.keepalive {
        Some(keepalive) => keep_alive(&socket, keepalive),
        None => reference.set_keepalive(false),
    };
    warn_of("SO_KEEPALIVE", keepalive);
}

/// Turns keepalive on. It takes four calls, and counts from when the peer last sent anything.
pub fn keep_alive(socket: impl AsFd, k: &Keepalive) -> io::Result<()> {
    let keepalive = TcpKeepalive::new()
        .with_time(k.idle)
        .with_interval(k.interval)
        .with_retries(k.count);
    SockRef::from(&socket).set_tcp_keepalive(&keepalive)
}
