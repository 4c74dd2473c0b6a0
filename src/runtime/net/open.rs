//! Connecting to an address.

use crate::{
    plan::{Addr, SocketOptions},
    runtime::executor::{self, Stream, StreamKind},
    sys::limits::is_local_port,
};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::{
    future::{Future, poll_fn, ready},
    io,
    net::{SocketAddr, UdpSocket},
    path::Path,
    time::Duration,
};

/// Pause between two attempts to connect to a unix socket whose queue is full: the kernel reports
/// no event when that has changed.
const FULL_QUEUE_PAUSE: Duration = Duration::from_millis(10);

/// Connects once. Dropping the future cancels the attempt. Keepalive is not set, since most
/// sessions end before it matters: see [`super::keep_alive`].
///
/// `sends_at_once`: something will be sent as soon as the connection is made. That takes the last
/// step of the handshake with it: one packet less, and one wake-up of the backend less.
pub async fn open(
    address: &Addr,
    options: &SocketOptions,
    sends_at_once: bool,
) -> io::Result<Stream> {
    match address {
        Addr::Tcp(ip) => open_tcp(*ip, options, sends_at_once).await,
        Addr::Unix(path) => {
            let connect = || ready(connect_unix(path));
            let socket = retry_while_queue_is_full(connect, executor::sleep).await?;
            Ok(Stream::connecting(socket.into(), StreamKind::Unix))
        }
    }
}

async fn open_tcp(
    address: SocketAddr,
    options: &SocketOptions,
    sends_at_once: bool,
) -> io::Result<Stream> {
    let kind = Type::STREAM.nonblocking();
    let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))?;
    if sends_at_once {
        // The kernel waits for what is to be sent, 200 ms at most. Where it is refused, one
        // packet more is sent.
        let _ = socket.set_tcp_quickack(false);
    }
    let stream = Stream::connecting(socket.into(), StreamKind::Tcp);
    poll_fn(|_| stream.poll_connect(&address)).await?;
    refuse_self_connection(address, || stream.local_addr())?;
    if options.nodelay {
        stream.set_nodelay_later();
    }
    Ok(stream)
}

/// Where no socket listens on a local port, the kernel may choose that very port as the source of a
/// connection to it: TCP's simultaneous open then connects the socket to itself.
pub fn refuse_self_connection(
    peer: SocketAddr,
    local: impl FnOnce() -> Option<SocketAddr>,
) -> io::Result<()> {
    if is_local_port(peer.port()) && local() == Some(peer) {
        return Err(io::Error::new(
            io::ErrorKind::ConnectionRefused,
            "connected to itself: no process listens there",
        ));
    }
    Ok(())
}

/// Connects to a unix socket; `pause` sleeps.
pub async fn retry_while_queue_is_full<T, C, P>(
    mut connect: impl FnMut() -> C,
    pause: impl Fn(Duration) -> P,
) -> io::Result<T>
where
    C: Future<Output = io::Result<T>>,
    P: Future<Output = ()>,
{
    loop {
        match connect().await {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => pause(FULL_QUEUE_PAUSE).await,
            connected => return connected,
        }
    }
}

/// Connects without waiting: "would block" means that the queue of the socket is full.
pub(super) fn connect_unix(path: &Path) -> io::Result<Socket> {
    // A socket whose attempt has failed cannot be used again.
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(socket)
}

/// A non-blocking socket with a local port of its own, which receives from this address only.
pub fn connect_datagrams(address: &Addr) -> io::Result<UdpSocket> {
    let Addr::Tcp(address) = address else {
        // The configuration allows none.
        return Err(io::ErrorKind::Unsupported.into());
    };
    let kind = Type::DGRAM.nonblocking();
    let socket = Socket::new(Domain::for_address(*address), kind, Some(Protocol::UDP))?;
    match socket.connect(&(*address).into()) {
        // All local ports are taken.
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
            Err(io::ErrorKind::AddrNotAvailable.into())
        }
        Err(e) => Err(e),
        Ok(()) => Ok(socket.into()),
    }
}
