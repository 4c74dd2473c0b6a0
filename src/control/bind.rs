//! Binding every socket of a plan, or none.

use crate::{
    plan::{self, Addr, Listener},
    proxy::{tcp::Socket, udp::Port},
    runtime::net::{FileRights, SocketFile, listen_unix, set_options},
    sys::{blocking, datagram},
};
use socket2::{Domain, Protocol, Type};
use std::{io, net::SocketAddr, path::Path};

/// An address that is to be bound.
#[derive(Clone)]
pub(super) struct Request {
    pub(super) listener: Listener,
    pub(super) place: Addr,
    /// Of its file, if it is a unix socket.
    pub(super) rights: FileRights,
}

/// One address, with a socket for each worker.
pub(super) struct Listening {
    /// The name of the listener.
    pub(super) listener: String,
    pub(super) place: Addr,
    pub(super) sockets: Sockets,
    pub(super) file: Option<SocketFile>,
}

/// One for each worker.
pub(super) enum Sockets {
    Streams(Vec<Socket>),
    Datagrams(Vec<Port>),
}

/// Of what clients send and are sent, where the kernel allows it: a burst of small datagrams fills
/// the usual 208 KiB in some hundred.
const BUFFER: usize = 4 << 20;

/// Binds on another thread: the folder of a unix socket may be one that hangs.
pub(super) async fn all(
    requests: Vec<Request>,
    workers: usize,
) -> Result<Vec<Listening>, Vec<String>> {
    let unix = requests.iter().filter_map(|request| match &request.place {
        Addr::Unix(_) => Some(format!(
            "listener {}: {}",
            request.listener.name, request.place
        )),
        Addr::Tcp(_) => None,
    });
    let mut paths: Vec<String> = unix.collect();
    let bound = blocking::call(blocking::LIMIT, move || bind_all(&requests, workers)).await;
    bound.unwrap_or_else(|e| {
        paths.insert(0, format!("cannot listen: {e}"));
        Err(vec![paths.join("; ")])
    })
}

fn bind_all(requests: &[Request], workers: usize) -> Result<Vec<Listening>, Vec<String>> {
    // SO_REUSEPORT, with which the workers share an address, would let two processes share it as
    // well, each getting half of the clients. So look first whether somebody is there; all before
    // the first bind, or our own wildcard addresses would be in the way of our specific ones.
    let mut problems: Vec<String> = requests
        .iter()
        .filter_map(|request| {
            let error = match &request.place {
                Addr::Tcp(address) => probe(&request.listener, *address).err()?,
                Addr::Unix(_) => return None,
            };
            Some(describe(&request.listener, &request.place, &error))
        })
        .collect();
    let mut bound = Vec::new();
    for request in requests {
        if !problems.is_empty() {
            break;
        }
        let listener = &request.listener;
        match bind(listener, &request.rights, &request.place, workers) {
            Ok((place, sockets, file)) => bound.push(Listening {
                listener: listener.name.clone(),
                place,
                sockets,
                file,
            }),
            Err(e) => problems.push(describe(listener, &request.place, &e)),
        }
    }
    match problems.is_empty() {
        true => Ok(bound),
        false => Err(problems),
    }
}

/// The addresses of UDP sockets among these.
pub(super) fn udp_addresses(bound: &[Listening]) -> Vec<SocketAddr> {
    let addresses = bound
        .iter()
        .filter_map(|listening| match &listening.sockets {
            Sockets::Datagrams(ports) => ports.first().map(|port| port.address),
            Sockets::Streams(_) => None,
        });
    addresses.collect()
}

fn describe(listener: &Listener, place: &Addr, e: &io::Error) -> String {
    let hint = match e.kind() {
        io::ErrorKind::AddrInUse => "; another process is listening there",
        io::ErrorKind::PermissionDenied if matches!(place, Addr::Tcp(a) if a.port() < 1024) => {
            "; ports below 1024 need CAP_NET_BIND_SERVICE"
        }
        io::ErrorKind::AddrNotAvailable => "; no interface of this machine has that address",
        _ => "",
    };
    format!(
        "listener {}: cannot listen on {place}: {e}{hint}",
        listener.name
    )
}

fn probe(listener: &Listener, address: SocketAddr) -> io::Result<()> {
    let socket = match listener.protocol {
        plan::Protocol::Tcp => tcp_socket(address)?,
        plan::Protocol::Udp(_) => udp_socket(address)?,
    };
    socket.bind(&address.into())
}

/// Where, a socket for each worker, and the file if it has one.
type Bound = (Addr, Sockets, Option<SocketFile>);

fn bind(
    listener: &Listener,
    rights: &FileRights,
    place: &Addr,
    workers: usize,
) -> io::Result<Bound> {
    match place {
        Addr::Tcp(address) => match listener.protocol {
            plan::Protocol::Tcp => bind_tcp(listener, *address, workers),
            plan::Protocol::Udp(_) => bind_udp(*address, workers),
        },
        Addr::Unix(path) => bind_unix(listener, rights, path, workers),
    }
}

fn bind_tcp(listener: &Listener, mut address: SocketAddr, workers: usize) -> io::Result<Bound> {
    let mut sockets = Vec::with_capacity(workers);
    for _ in 0..workers {
        let socket = tcp_socket(address)?;
        socket.set_reuse_port(true)?;
        // Accepted sockets inherit these.
        set_options(&socket, &listener.socket);
        socket.bind(&address.into())?;
        socket.listen(i32::try_from(listener.backlog).unwrap_or(i32::MAX))?;
        let socket = std::net::TcpListener::from(socket);
        // Port 0 is chosen once, for the first; the others share it.
        address = socket.local_addr()?;
        sockets.push(Socket::Tcp(socket));
    }
    Ok((Addr::Tcp(address), Sockets::Streams(sockets), None))
}

fn bind_udp(mut address: SocketAddr, workers: usize) -> io::Result<Bound> {
    let mut sockets = Vec::with_capacity(workers);
    for _ in 0..workers {
        let socket = udp_socket(address)?;
        socket.set_reuse_port(true)?;
        datagram::receive_buffer(&socket, BUFFER);
        datagram::send_buffer(&socket, BUFFER);
        datagram::never_forbid_fragments(&socket, address.is_ipv6())?;
        if address.ip().is_unspecified() {
            datagram::ask_for_destination(&socket, address.is_ipv6())?;
        }
        // Without it each datagram comes on its own.
        let _ = datagram::take_coalesced(&socket);
        socket.bind(&address.into())?;
        let socket = std::net::UdpSocket::from(socket);
        address = socket.local_addr()?;
        sockets.push(Port { socket, address });
    }
    Ok((Addr::Tcp(address), Sockets::Datagrams(sockets), None))
}

/// Without SO_REUSEADDR, which for datagrams lets another process take them all.
fn udp_socket(address: SocketAddr) -> io::Result<socket2::Socket> {
    let kind = Type::DGRAM.nonblocking();
    let socket = socket2::Socket::new(Domain::for_address(address), kind, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

fn tcp_socket(address: SocketAddr) -> io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // As in nginx: [::] is IPv6 alone, and an IPv4 client is never seen as ::ffff:a.b.c.d.
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

fn bind_unix(
    listener: &Listener,
    rights: &FileRights,
    path: &Path,
    workers: usize,
) -> io::Result<Bound> {
    let backlog = i32::try_from(listener.backlog).unwrap_or(i32::MAX);
    let (first, file) = listen_unix(path, backlog, rights)?;
    // Unix sockets know no SO_REUSEPORT: the workers share one queue.
    let mut sockets = Vec::with_capacity(workers);
    for _ in 1..workers {
        sockets.push(Socket::Unix(first.try_clone()?));
    }
    sockets.push(Socket::Unix(first));
    let sockets = Sockets::Streams(sockets);
    Ok((Addr::Unix(path.to_owned()), sockets, Some(file)))
}
