//! Binding every socket of a plan, or none.

use crate::{
    plan::{self, Addr, Listener},
    proxy::{tcp::Socket, udp::Port},
    runtime::net::{FileRights, SocketFile, listen_unix, set_options},
    sys::{blocking, datagram},
};
use socket2::{Domain, Protocol, Type};
use std::{io, net::SocketAddr, path::Path};

/// One address, with a socket for each worker.
pub(super) struct Listening {
    /// The index of the listener in the plan.
    pub(super) listener: usize,
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

/// Binds on another thread: the folder of a unix socket may be one that hangs. `rights`: of the
/// unix sockets of each listener.
pub(super) async fn all(
    listeners: &[Listener],
    rights: Vec<FileRights>,
    workers: usize,
) -> Result<Vec<Listening>, Vec<String>> {
    let owned = listeners.to_vec();
    let bound = blocking::call(blocking::LIMIT, move || bind_all(&owned, &rights, workers)).await;
    bound.unwrap_or_else(|e| {
        let paths = listeners.iter().flat_map(|listener| {
            let places = listener.bind.iter().flat_map(|bind| &bind.addrs);
            places.filter_map(move |place| match place {
                Addr::Unix(_) => Some(format!("listener {}: {place}", listener.name)),
                Addr::Tcp(_) => None,
            })
        });
        let mut paths: Vec<String> = paths.collect();
        paths.insert(0, format!("cannot listen: {e}"));
        Err(vec![paths.join("; ")])
    })
}

fn bind_all(
    listeners: &[Listener],
    rights: &[FileRights],
    workers: usize,
) -> Result<Vec<Listening>, Vec<String>> {
    let places = || {
        listeners.iter().enumerate().flat_map(|(index, listener)| {
            let places = listener.bind.iter().flat_map(|b| &b.addrs);
            places.map(move |place| (index, listener, place))
        })
    };
    // SO_REUSEPORT, with which the workers share an address, would let two processes share it as
    // well, each getting half of the clients. So look first whether somebody is there; all before
    // the first bind, or our own wildcard addresses would be in the way of our specific ones.
    let mut problems: Vec<String> = places()
        .filter_map(|(_, listener, place)| match place {
            Addr::Tcp(address) => {
                Some(describe(listener, place, &probe(listener, *address).err()?))
            }
            Addr::Unix(_) => None,
        })
        .collect();
    let mut bound = Vec::new();
    for (index, listener, place) in places() {
        if !problems.is_empty() {
            break;
        }
        match bind(listener, &rights[index], place, workers) {
            Ok((place, sockets, file)) => bound.push(Listening {
                listener: index,
                place,
                sockets,
                file,
            }),
            Err(e) => problems.push(describe(listener, place, &e)),
        }
    }
    if problems.is_empty() {
        Ok(bound)
    } else {
        Err(problems)
    }
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
