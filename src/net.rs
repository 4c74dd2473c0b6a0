//! Streams and addresses, TCP and unix alike.

mod open;
mod socket_file;

pub use open::open;
pub use socket_file::{SocketFile, listen_unix};

use crate::plan::{Place, SocketOptions};
use socket2::{SockRef, TcpKeepalive};
use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, BorrowedFd},
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::{TcpStream, UnixStream},
};

#[derive(Debug)]
pub enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Who a client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    Ip(SocketAddr),
    /// Somebody on a unix socket.
    Unix,
}

macro_rules! either {
    ($self:expr, $s:ident => $do:expr) => {
        match $self {
            Stream::Tcp($s) => $do,
            Stream::Unix($s) => $do,
        }
    };
}

impl Stream {
    /// Reads at most once; 0 is the end.
    pub fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        match self {
            // A short read is taken for an empty socket, which saves the call that would say so.
            Self::Tcp(s) => {
                let mut buf = ReadBuf::new(buf);
                ready!(Pin::new(s).poll_read(cx, &mut buf))?;
                Poll::Ready(Ok(buf.filled().len()))
            }
            // Not on unix sockets: there a read also ends where somebody passed a descriptor.
            Self::Unix(s) => loop {
                ready!(s.poll_read_ready(cx))?;
                match s.try_read(buf) {
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    read => return Poll::Ready(read),
                }
            },
        }
    }

    pub fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        either!(self, s => Pin::new(s).poll_write(cx, buf))
    }

    /// Passes the end of a direction on: the peer sees it after everything written before.
    pub fn shutdown_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, s => Pin::new(s).poll_shutdown(cx))
    }

    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, s => s.poll_read_ready(cx))
    }

    pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, s => s.poll_write_ready(cx))
    }

    /// Runs a system call; "would block" makes the next `poll_…_ready` wait.
    pub fn try_io<R>(
        &self,
        interest: Interest,
        call: impl FnOnce(BorrowedFd<'_>) -> io::Result<R>,
    ) -> io::Result<R> {
        either!(self, s => s.try_io(interest, || call(s.as_fd())))
    }

    /// Where the peer connected to, if that has an IP address. A system call.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(s) => s.local_addr().ok(),
            Self::Unix(_) => None,
        }
    }

    pub fn is_tcp(&self) -> bool {
        matches!(self, Self::Tcp(_))
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        either!(self, s => s.as_fd())
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
    let socket = SockRef::from(&socket);
    if options.nodelay {
        socket.set_tcp_nodelay(true)?;
    }
    if let Some(k) = options.keepalive {
        let keepalive = TcpKeepalive::new()
            .with_time(k.idle)
            .with_interval(k.interval)
            .with_retries(k.count);
        socket.set_tcp_keepalive(&keepalive)?;
    }
    if let Some(timeout) = options.user_timeout {
        socket.set_tcp_user_timeout(Some(timeout))?;
    }
    Ok(())
}
