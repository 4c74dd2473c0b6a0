//! Connecting to a place.

use super::{Stream, set_options};
use crate::plan::{Place, SocketOptions};
use socket2::{Domain, Protocol, Socket, Type};
use std::{io, net::SocketAddr, path::Path, time::Duration};
use tokio::net::{TcpSocket, UnixStream};

/// A unix socket whose queue is full gives no event when that has changed.
const RETRY: Duration = Duration::from_millis(10);

/// One connect. Dropping the future gives it up.
pub async fn open(place: &Place, options: &SocketOptions) -> io::Result<Stream> {
    match place {
        Place::Tcp(address) => open_tcp(*address, options).await,
        Place::Unix(path) => open_unix(path).await,
    }
}

async fn open_tcp(address: SocketAddr, options: &SocketOptions) -> io::Result<Stream> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    set_options(&socket, options)?;
    let stream = TcpSocket::from_std_stream(socket.into())
        .connect(address)
        .await?;
    // Towards a local port that nobody listens on, the kernel may choose that very port as the
    // source: TCP's simultaneous open then makes the socket talk to itself.
    if stream.local_addr()? == address {
        return Err(io::Error::new(
            io::ErrorKind::ConnectionRefused,
            "connected to itself: nobody listens there",
        ));
    }
    Ok(Stream::Tcp(stream))
}

async fn open_unix(path: &Path) -> io::Result<Stream> {
    loop {
        match UnixStream::connect(path).await {
            Ok(stream) => return Ok(Stream::Unix(stream)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => tokio::time::sleep(RETRY).await,
            Err(e) => return Err(e),
        }
    }
}
