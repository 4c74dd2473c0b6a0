//! Streams and addresses, TCP and unix alike.

mod open;
mod socket_file;

pub use open::open;
pub use socket_file::{SocketFile, listen_unix};

use crate::{
    event_loop::Socket,
    plan::{Keepalive, Place, SocketOptions},
};
use socket2::{SockRef, TcpKeepalive};
use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    task::Poll,
};

/// A connection.
#[derive(Debug)]
pub struct Stream {
    socket: Socket,
    is_tcp: bool,
}

/// Who a client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    Ip(SocketAddr),
    /// Somebody on a unix socket.
    Unix,
}

impl Stream {
    /// Of a connection that was accepted: its client may have said something by now.
    pub fn accepted(socket: OwnedFd, is_tcp: bool) -> Self {
        let socket = Socket::new(socket, true);
        Self { socket, is_tcp }
    }

    /// Reads at most once; 0 is the end.
    pub fn poll_read(&self, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        // On a unix socket a read also ends where somebody passed a descriptor.
        self.socket.poll_read(buf, self.is_tcp)
    }

    pub fn poll_write(&self, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.socket.poll_write(buf)
    }

    /// Passes the end of a direction on: the peer sees it after everything written before.
    pub fn end_writing(&self) -> io::Result<()> {
        self.socket.end_writing()
    }

    pub fn poll_readable(&self) -> Poll<io::Result<()>> {
        self.socket.poll_readable()
    }

    pub fn poll_writable(&self) -> Poll<io::Result<()>> {
        self.socket.poll_writable()
    }

    /// Runs a call that writes; "would block" makes the next [`Self::poll_writable`] wait.
    pub fn try_write<R>(
        &self,
        call: impl FnOnce(BorrowedFd<'_>) -> io::Result<R>,
    ) -> io::Result<R> {
        self.socket.try_write(call)
    }

    /// Where the peer connected to, if that has an IP address. A system call.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        let address = SockRef::from(&self.socket).local_addr().ok()?;
        address.as_socket()
    }

    pub fn is_tcp(&self) -> bool {
        self.is_tcp
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
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

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Sets the options of a session's TCP socket. On Linux what is set on a listening socket is
/// inherited by what it accepts, so that accepted sockets cost no call.
pub fn set_options(socket: impl AsFd, options: &SocketOptions) -> io::Result<()> {
    set_first_options(&socket, options)?;
    if let Some(keepalive) = &options.keepalive {
        keep_alive(&socket, keepalive)?;
    }
    Ok(())
}

/// What must be set before anything is sent.
fn set_first_options(socket: impl AsFd, options: &SocketOptions) -> io::Result<()> {
    let socket = SockRef::from(&socket);
    if options.nodelay {
        socket.set_tcp_nodelay(true)?;
    }
    if let Some(timeout) = options.user_timeout {
        socket.set_tcp_user_timeout(Some(timeout))?;
    }
    Ok(())
}

/// Makes the kernel ask whether the peer is still there. It takes four calls, and counts from when the peer was last heard.
pub fn keep_alive(socket: impl AsFd, k: &Keepalive) -> io::Result<()> {
    let keepalive = TcpKeepalive::new()
        .with_time(k.idle)
        .with_interval(k.interval)
        .with_retries(k.count);
    SockRef::from(&socket).set_tcp_keepalive(&keepalive)
}
