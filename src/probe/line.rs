//! What a conversation goes over: the stream itself, or TLS inside it.

use crate::plan::Addr;
use std::{io, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpSocket, UnixStream},
};

pub(super) trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

pub(super) type Line = Box<dyn Duplex>;

/// A unix socket whose queue is full gives no event when that has changed.
const RETRY: Duration = Duration::from_millis(10);

pub(super) async fn connect(addr: &Addr, nodelay: bool) -> io::Result<Line> {
    match addr {
        Addr::Tcp(address) => {
            let socket = match address.is_ipv4() {
                true => TcpSocket::new_v4()?,
                false => TcpSocket::new_v6()?,
            };
            if nodelay {
                socket.set_nodelay(true)?;
            }
            let stream = socket.connect(*address).await?;
            // As for sessions: TCP's simultaneous open can make a socket talk to itself.
            if stream.local_addr()? == *address {
                let text = "connected to itself: nobody listens there";
                return Err(io::Error::new(io::ErrorKind::ConnectionRefused, text));
            }
            Ok(Box::new(stream))
        }
        Addr::Unix(path) => loop {
            match UnixStream::connect(path).await {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => tokio::time::sleep(RETRY).await,
                connected => return Ok(Box::new(connected?)),
            }
        },
    }
}
