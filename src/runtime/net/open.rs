//! Connecting to a place.

use crate::{
    plan::{Addr, SocketOptions},
    runtime::executor::{self, Kind, Stream},
    sys::limits::is_local_port,
};
use socket2::{Domain, Protocol, SockAddr, Type};
use std::{future::poll_fn, io, net::SocketAddr, path::Path, time::Duration};

/// A unix socket whose queue is full gives no event when that has changed.
const RETRY: Duration = Duration::from_millis(10);

/// One connect. Dropping the future gives it up. [`super::keep_alive`] is left to be done, since
/// most sessions are over before it means anything.
///
/// `speaks_at_once`: something will be sent as soon as it is connected. Then that takes the last
/// step of the handshake with it: one packet less, and the backend wakes up once, for a client that
/// has already spoken.
pub async fn open(
    place: &Addr,
    options: &SocketOptions,
    speaks_at_once: bool,
) -> io::Result<Stream> {
    match place {
        Addr::Tcp(address) => open_tcp(*address, options, speaks_at_once).await,
        Addr::Unix(path) => open_unix(path).await,
    }
}

async fn open_tcp(
    address: SocketAddr,
    options: &SocketOptions,
    speaks_at_once: bool,
) -> io::Result<Stream> {
    let kind = Type::STREAM.nonblocking();
    let socket = socket2::Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))?;
    if speaks_at_once {
        // The kernel waits for what is to be sent, 200 ms at most. Where it is refused, one
        // packet more is sent.
        let _ = socket.set_tcp_quickack(false);
    }
    let stream = Stream::connecting(socket.into(), Kind::Tcp);
    poll_fn(|_| stream.poll_connect(&address)).await?;
    // Towards a local port that nobody listens on, the kernel may choose that very port as the
    // source: TCP's simultaneous open then makes the socket talk to itself.
    if is_local_port(address.port()) && stream.local_addr() == Some(address) {
        return Err(io::Error::new(
            io::ErrorKind::ConnectionRefused,
            "connected to itself: nobody listens there",
        ));
    }
    if options.nodelay {
        stream.set_nodelay_later();
    }
    Ok(stream)
}

async fn open_unix(path: &Path) -> io::Result<Stream> {
    let address = SockAddr::unix(path)?;
    loop {
        // Anew each time: one that has failed is of no use any more.
        let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
        match socket.connect(&address) {
            Ok(()) => {
                return Ok(Stream::connecting(socket.into(), Kind::Unix));
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => executor::sleep(RETRY).await,
            Err(e) => return Err(e),
        }
    }
}
