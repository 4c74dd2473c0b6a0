//! Streams and addresses, TCP and unix alike.

mod open;
mod socket_file;

pub use open::open;
pub use socket_file::{FileRights, SocketFile, listen_unix};

use crate::{
    plan::{Addr, Keepalive, SocketOptions},
    runtime::executor::{Fresh, Left, Socket},
};
use nix::net::if_::if_indextoname;
use socket2::{SockRef, TcpKeepalive};
use std::{
    cell::Cell,
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
    nodelay: Cell<NoDelay>,
}

/// The first bytes leave at once anyway, and many sessions send no others: TCP_NODELAY is set
/// before the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NoDelay {
    /// Or not wanted.
    Set,
    WithTheNext,
    WithTheSecond,
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
        Self::of(Socket::new(socket, true), is_tcp)
    }

    fn of(socket: Socket, is_tcp: bool) -> Self {
        Self {
            socket,
            is_tcp,
            nodelay: Cell::new(NoDelay::Set),
        }
    }

    fn count_write(&self) {
        match self.nodelay.get() {
            NoDelay::Set => {}
            NoDelay::WithTheSecond => self.nodelay.set(NoDelay::WithTheNext),
            NoDelay::WithTheNext => {
                // It fails only on a socket that is dead.
                let _ = SockRef::from(&self.socket).set_tcp_nodelay(true);
                self.nodelay.set(NoDelay::Set);
            }
        }
    }

    /// Reads at most once; 0 is the end.
    pub fn poll_read(&self, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        // On a unix socket a read also ends where somebody passed a descriptor.
        self.socket.poll_read(buf, self.is_tcp)
    }

    /// Reads at most once, to where it can be written from; empty is the end.
    pub fn poll_read_fresh(&self) -> Poll<io::Result<Fresh>> {
        self.socket.poll_read_fresh(self.is_tcp)
    }

    /// `more`: something else follows at once, be it the end, which is to leave together with this.
    pub fn poll_write(&self, buf: &[u8], more: bool) -> Poll<io::Result<usize>> {
        self.count_write();
        self.socket.poll_write(buf, more)
    }

    /// Whether the peer is known to have said its last: what is there can be read at once, up to a
    /// clean end.
    pub fn has_ended(&self) -> bool {
        self.socket.has_ended()
    }

    /// Takes all of it, to be written at the end of this turn of the event loop.
    /// [`Self::take_left`] comes before anything else is written.
    pub fn write_later(&self, bytes: &[u8]) {
        self.count_write();
        self.socket.write_later(bytes);
    }

    /// The same of what was read last.
    pub fn write_fresh_later(&self, fresh: &Fresh) {
        self.count_write();
        self.socket.write_fresh_later(fresh);
    }

    /// Whether something is to be written at the end of this turn.
    pub fn has_posted(&self) -> bool {
        self.socket.has_posted()
    }

    /// Writes what is to be written at the end of this turn; all that was to be and could not be.
    pub fn take_left(&self) -> Option<Left> {
        self.socket.take_left()
    }

    /// Whether writing at the end of a turn has failed, so that reading does not tell any more how
    /// the connection ended.
    pub fn is_unwritable(&self) -> bool {
        self.socket.is_unwritable()
    }

    /// Passes the end of a direction on: the peer sees it after everything written before.
    pub fn end_writing(&self) -> io::Result<()> {
        self.socket.end_writing()
    }

    /// Whether there was TCP urgent data, before which a read ends, whatever comes after.
    pub fn is_marked(&self) -> bool {
        self.socket.is_marked()
    }

    /// A call that reads has found nothing: the next [`Self::poll_readable`] waits.
    pub fn found_nothing(&self) {
        self.socket.found_nothing();
    }

    /// There is something to read, and nobody to read it now: what comes after it need not wake
    /// anybody.
    pub fn mute(&self) {
        self.socket.mute();
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
        self.count_write();
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

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Whether this machine has the interface of a link-local address; others need none.
pub fn has_interface(address: SocketAddr) -> bool {
    match address {
        SocketAddr::V6(v6) if v6.scope_id() > 0 => {
            // For an unknown number nix returns an empty name.
            if_indextoname(v6.scope_id()).is_ok_and(|name| !name.is_empty())
        }
        _ => true,
    }
}

/// Sets the options of a session's TCP socket. On Linux what is set on a listening socket is
/// inherited by what it accepts, so that accepted sockets cost no call. A session works without any
/// of them: what the kernel refuses is left out, with a warning.
pub fn set_options(socket: impl AsFd, options: &SocketOptions) {
    let reference = SockRef::from(&socket);
    let warn_of = |option: &'static str, set: io::Result<()>| {
        if let Err(error) = set {
            tracing::warn!(option, %error, "cannot set a socket option, continuing without it");
        }
    };
    if options.nodelay {
        warn_of("TCP_NODELAY", reference.set_tcp_nodelay(true));
    }
    if let Some(keepalive) = &options.keepalive {
        warn_of("SO_KEEPALIVE", keep_alive(&socket, keepalive));
    }
}

/// Makes the kernel ask whether the peer is still there. It takes four calls, and counts from when
/// the peer was last heard.
pub fn keep_alive(socket: impl AsFd, k: &Keepalive) -> io::Result<()> {
    let keepalive = TcpKeepalive::new()
        .with_time(k.idle)
        .with_interval(k.interval)
        .with_retries(k.count);
    SockRef::from(&socket).set_tcp_keepalive(&keepalive)
}
