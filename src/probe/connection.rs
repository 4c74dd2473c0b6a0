//! What a dialogue goes over: the stream itself, or TLS inside it.

use crate::{
    plan::Addr,
    runtime::net::{refuse_self_connection, retry_while_queue_is_full},
};
use std::io;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpSocket, UnixStream},
};

pub(crate) trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

pub(crate) type Connection = Box<dyn Duplex>;

pub(crate) async fn connect(addr: &Addr, nodelay: bool) -> io::Result<Connection> {
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
            refuse_self_connection(*address, || stream.local_addr().ok())?;
            Ok(Box::new(stream))
        }
        Addr::Unix(path) => {
            let connect = || UnixStream::connect(path);
            let stream = retry_while_queue_is_full(connect, tokio::time::sleep).await?;
            Ok(Box::new(stream))
        }
    }
}
