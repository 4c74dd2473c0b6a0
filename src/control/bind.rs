//! Binds the sockets that a plan needs, all or none.

use super::inherited::{HandedSocket, Inherited, Taken, Wanted};
use crate::{
    plan::{self, Addr, Listener},
    proxy::{
        tcp::BoundSocket,
        udp::{Port, PortUsers},
    },
    runtime::net::{FileRights, SocketFile, listen_unix, set_options},
    sys::{blocking, datagram, handshakes, limits},
};
use socket2::{Domain, Protocol, Type};
use std::{
    collections::BTreeSet,
    fmt, io,
    net::SocketAddr,
    os::{fd::OwnedFd, unix::net::UnixListener},
    path::Path,
    sync::Arc,
};
use tokio_util::task::TaskTracker;

/// An address that is to be bound.
pub(super) struct BindRequest {
    pub(super) listener: Listener,
    pub(super) addr: Addr,
    /// Of its file, if it is a unix socket.
    pub(super) rights: FileRights,
}

/// One address, with a socket for each worker.
pub(super) struct Listening<S> {
    /// The name of the listener.
    pub(super) listener: String,
    /// As in the plan.
    pub(super) configured: Addr,
    /// Port 0 has become a number.
    pub(super) bound: Addr,
    pub(super) sockets: Vec<S>,
    pub(super) file: Option<SocketFile>,
    /// Whether its file is still that of the process that this one replaces.
    pub(super) is_file_handed: bool,
}

#[derive(Default)]
pub(super) struct BoundSockets {
    pub(super) streams: Vec<Listening<BoundSocket>>,
    pub(super) datagrams: Vec<Listening<Port>>,
    /// The numbers of the sockets that were handed over and that no address has.
    pub(super) unused: Vec<u64>,
    /// Where those are bound.
    pub(super) left: Vec<(&'static str, Addr)>,
    /// The names of the sockets that were passed by the service manager and that are closed.
    pub(super) closed: BTreeSet<String>,
}

/// Why an address cannot be listened on.
#[derive(Debug)]
pub enum BindError {
    Address {
        listener: String,
        addr: Addr,
        source: io::Error,
    },
    /// The process, or the machine, may not open that many files. `needed`: sockets that the
    /// listeners of the plan need in all.
    Descriptors {
        listener: String,
        addr: Addr,
        needed: usize,
        source: io::Error,
    },
    /// It did not end in time. `addrs`: of the unix sockets, each with its listener.
    Unfinished {
        addrs: Vec<(String, Addr)>,
        source: io::Error,
    },
}

/// Of what clients send and are sent, where the kernel allows it: a burst of small datagrams fills
/// the usual 208 KiB in some hundred.
const BUFFER: usize = 4 << 20;

/// Binds all addresses or none, on another thread: the folder of a unix socket may be one that
/// hangs. `held`: what this process listens on already; `handed`: what it gets from the process
/// that it replaces.
pub(super) async fn bind_all(
    requests: Vec<BindRequest>,
    held: Vec<SocketAddr>,
    handed: Vec<HandedSocket>,
    workers: usize,
) -> Result<BoundSockets, Vec<BindError>> {
    let unix = requests.iter().filter_map(|request| match request.addr {
        Addr::Unix(_) => Some((request.listener.name.clone(), request.addr.clone())),
        Addr::Tcp(_) => None,
    });
    let addrs: Vec<(String, Addr)> = unix.collect();
    let bind = move || bind_requests(&requests, &held, handed, workers);
    let bound = blocking::call(blocking::LIMIT, bind).await;
    bound.unwrap_or_else(|source| Err(vec![BindError::Unfinished { addrs, source }]))
}

fn bind_requests(
    requests: &[BindRequest],
    held: &[SocketAddr],
    handed: Vec<HandedSocket>,
    workers: usize,
) -> Result<BoundSockets, Vec<BindError>> {
    let mut inherited = Inherited::take(handed);
    inherited.close_others(requests.iter().map(BindRequest::wanted));
    // SO_REUSEPORT, with which the workers share an address, would let two processes share it as
    // well, each with half of the clients. So whether another process listens there is looked at
    // first; for all before the first bind, or own wildcard addresses would be in the way.
    let probed = requests.iter().filter_map(|request| match &request.addr {
        _ if inherited.has(request.wanted()) => None,
        Addr::Tcp(address) => {
            let error = probe(&request.listener, *address, held).err()?;
            Some(request.error(error))
        }
        Addr::Unix(_) => None,
    });
    let mut errors: Vec<BindError> = probed.collect();
    let mut bound = BoundSockets::default();
    for request in requests {
        if !errors.is_empty() {
            break;
        }
        let taken = inherited.take_for(request.wanted());
        let result = taken.and_then(|taken| bind(request, taken, workers, &mut bound));
        if let Err(error) = result {
            errors.push(request.error(error));
        }
    }
    // Last: a client that reached a socket of a plan that is not put into effect would be reset.
    if errors.is_empty() {
        errors.extend(listen_all(requests, &bound));
    }
    bound.unused = inherited.unused();
    bound.left = inherited.left();
    bound.closed = inherited.into_closed();
    // Each address has a socket for each worker.
    let needed = requests.len() * workers;
    let errors: Vec<BindError> = errors
        .into_iter()
        .map(|error| error.with_need(needed))
        .collect();
    match errors.is_empty() {
        true => Ok(bound),
        false => Err(errors),
    }
}

/// `bound`: by these requests, in their order. Unix sockets listen already.
fn listen_all(requests: &[BindRequest], bound: &BoundSockets) -> Vec<BindError> {
    let is_tcp = |request: &&BindRequest| request.listener.protocol == plan::Protocol::Tcp;
    let requests = requests.iter().filter(is_tcp).zip(&bound.streams);
    let failed = requests.filter_map(|(request, listening)| {
        let backlog = i32::try_from(request.listener.backlog).unwrap_or(i32::MAX);
        let mut sockets = listening.sockets.iter();
        let listened = sockets.try_for_each(|socket| match socket {
            BoundSocket::Tcp(socket) => rustix::net::listen(socket, backlog),
            BoundSocket::Unix(_) => Ok(()),
        });
        let error = listened.err()?;
        Some(request.error(error.into()))
    });
    failed.collect()
}

impl BindRequest {
    fn wanted(&self) -> Wanted<'_> {
        Wanted {
            listener: &self.listener.name,
            addr: &self.addr,
            protocol: self.listener.protocol,
        }
    }

    fn error(&self, source: io::Error) -> BindError {
        BindError::Address {
            listener: self.listener.name.clone(),
            addr: self.addr.clone(),
            source,
        }
    }
}

impl BindError {
    fn with_need(self, needed: usize) -> Self {
        match self {
            Self::Address {
                listener,
                addr,
                source,
            } if !limits::describe_shortage(&source).is_empty() => Self::Descriptors {
                listener,
                addr,
                needed,
                source,
            },
            Self::Address { .. } | Self::Descriptors { .. } | Self::Unfinished { .. } => self,
        }
    }
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (listener, addr, source) = match self {
            Self::Address {
                listener,
                addr,
                source,
            } => (listener, addr, source),
            Self::Descriptors {
                listener,
                addr,
                needed,
                source,
            } => {
                let way_out = limits::describe_shortage(source);
                return write!(
                    f,
                    "listener {listener}: cannot listen on {addr}: {source}; the listeners need \
                     {needed} sockets, one for each address and worker{way_out}"
                );
            }
            Self::Unfinished { addrs, source } => {
                let way_out = limits::describe_shortage(source);
                write!(f, "cannot listen: {source}{way_out}")?;
                let mut addrs = addrs.iter();
                return addrs.try_for_each(|(name, addr)| write!(f, "; listener {name}: {addr}"));
            }
        };
        let hint = match source.kind() {
            io::ErrorKind::AddrInUse => "; another process is listening there",
            io::ErrorKind::PermissionDenied if matches!(addr, Addr::Tcp(a) if a.port() < 1024) => {
                "; ports below 1024 need CAP_NET_BIND_SERVICE"
            }
            io::ErrorKind::AddrNotAvailable => {
                "; no interface of this machine has that address; freebind = true binds it all the \
                 same"
            }
            _ => "",
        };
        write!(
            f,
            "listener {listener}: cannot listen on {addr}: {source}{hint}"
        )
    }
}

impl std::error::Error for BindError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Address { source, .. }
            | Self::Descriptors { source, .. }
            | Self::Unfinished { source, .. } => Some(source),
        }
    }
}

/// Whether another process listens at the address.
fn probe(listener: &Listener, address: SocketAddr, held: &[SocketAddr]) -> io::Result<()> {
    let overlaps = |held: &SocketAddr| {
        let any = held.ip().is_unspecified() || address.ip().is_unspecified();
        let same = held.ip() == address.ip() || any;
        held.port() == address.port() && held.is_ipv6() == address.is_ipv6() && same
    };
    let socket = match listener.protocol {
        // An own socket that is in the way cannot be distinguished from that of another process;
        // but only processes of the same user can have joined it.
        plan::Protocol::Tcp if held.iter().any(overlaps) => return Ok(()),
        plan::Protocol::Tcp => tcp_socket(listener, address)?,
        plan::Protocol::Udp(_) => udp_socket(listener, address)?,
    };
    socket.bind(&address.into())
}

/// `taken`: the sockets of the address that there are already.
fn bind(
    request: &BindRequest,
    taken: Taken,
    workers: usize,
    bound: &mut BoundSockets,
) -> io::Result<()> {
    let BindRequest { listener, addr, .. } = request;
    match (addr, listener.protocol) {
        (Addr::Tcp(address), plan::Protocol::Tcp) => {
            let (sockets, address) = bind_tcp(listener, *address, taken, workers)?;
            bound.streams.push(request.listening(address, sockets));
        }
        (Addr::Tcp(address), plan::Protocol::Udp(_)) => {
            let (sockets, address) = bind_udp(listener, *address, taken, workers)?;
            bound.datagrams.push(request.listening(address, sockets));
        }
        (Addr::Unix(path), _) => {
            let is_file_handed = taken.owns_file;
            let first = taken.sockets.into_iter().next();
            let (sockets, file) = bind_unix(listener, &request.rights, path, first, workers)?;
            bound.streams.push(Listening {
                listener: listener.name.clone(),
                configured: addr.clone(),
                bound: addr.clone(),
                sockets,
                file,
                is_file_handed,
            });
        }
    }
    Ok(())
}

impl BindRequest {
    fn listening<S>(&self, address: SocketAddr, sockets: Vec<S>) -> Listening<S> {
        Listening {
            listener: self.listener.name.clone(),
            configured: self.addr.clone(),
            bound: Addr::Tcp(address),
            sockets,
            file: None,
            is_file_handed: false,
        }
    }
}

fn bind_tcp(
    listener: &Listener,
    mut address: SocketAddr,
    taken: Taken,
    workers: usize,
) -> io::Result<(Vec<BoundSocket>, SocketAddr)> {
    // Each has a queue with clients: none is closed, also where there are more than workers.
    let count = workers.max(taken.sockets.len());
    let mut sockets = Vec::with_capacity(count);
    let mut inherited = taken.sockets.into_iter();
    let shared = inherited.as_slice().first().map(socket2::Socket::try_clone);
    let shared = shared.transpose()?;
    for _ in 0..count {
        let socket = match (inherited.next(), &shared) {
            (Some(socket), _) => {
                // A process that was drained may have ended, and its sockets have been kept.
                handshakes::detach_filter(&socket);
                socket
            }
            // Without SO_REUSEPORT, or of another user, no second socket can be bound: then the
            // workers share one.
            (None, Some(shared)) => {
                bind_tcp_socket(listener, address).or_else(|_| shared.try_clone())?
            }
            (None, None) => bind_tcp_socket(listener, address)?,
        };
        // Accepted sockets inherit these.
        set_options(&socket, &listener.socket);
        let socket = std::net::TcpListener::from(socket);
        // Port 0 is chosen once, for the first; the others share it.
        address = socket.local_addr()?;
        sockets.push(BoundSocket::Tcp(socket));
    }
    Ok((sockets, address))
}

fn bind_tcp_socket(listener: &Listener, address: SocketAddr) -> io::Result<socket2::Socket> {
    let socket = tcp_socket(listener, address)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn bind_udp(
    listener: &Listener,
    mut address: SocketAddr,
    taken: Taken,
    workers: usize,
) -> io::Result<(Vec<Port>, SocketAddr)> {
    let users = Arc::<PortUsers>::default();
    let open = TaskTracker::new();
    open.close();
    // With another number of sockets the kernel would assign the flows of all anew.
    let count = match taken.are_handed {
        true => taken.sockets.len(),
        // None of those that were passed is closed, also where there are more than workers.
        false => workers.max(taken.sockets.len()),
    };
    let mut sockets = Vec::with_capacity(count);
    let is_inherited = !taken.sockets.is_empty();
    let mut inherited = taken.sockets.into_iter();
    for index in 0..count {
        let socket = match inherited.next() {
            Some(socket) => socket,
            None => bind_udp_socket(listener, address).map_err(|error| match is_inherited {
                true => cannot_share(workers, &error),
                false => error,
            })?,
        };
        datagram::receive_buffer(&socket, BUFFER);
        datagram::send_buffer(&socket, BUFFER);
        datagram::never_forbid_fragments(&socket, address.is_ipv6())?;
        if address.ip().is_unspecified() {
            datagram::ask_for_destination(&socket, address.is_ipv6())?;
        }
        // Without it each datagram comes on its own.
        let _ = datagram::take_coalesced(&socket);
        let socket = std::net::UdpSocket::from(socket);
        address = socket.local_addr()?;
        sockets.push(Port {
            socket,
            address,
            index: u16::try_from(index).map_err(io::Error::other)?,
            is_held: taken.are_handed,
            users: Arc::clone(&users),
            open: open.token(),
        });
    }
    Ok((sockets, address))
}

fn bind_udp_socket(listener: &Listener, address: SocketAddr) -> io::Result<socket2::Socket> {
    let socket = udp_socket(listener, address)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// The flows of a UDP socket are those of one worker.
fn cannot_share(workers: usize, error: &io::Error) -> io::Error {
    let text = format!(
        "{error}: the UDP socket that was passed cannot be joined by those of {workers} workers; \
         it needs ReusePort=yes and the user of this process, or set workers = 1"
    );
    io::Error::new(io::ErrorKind::Unsupported, text)
}

/// Without SO_REUSEADDR, which for datagrams lets another process take them all.
fn udp_socket(listener: &Listener, address: SocketAddr) -> io::Result<socket2::Socket> {
    let kind = Type::DGRAM.nonblocking();
    let socket = socket2::Socket::new(Domain::for_address(address), kind, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    allow_foreign_address(&socket, listener, address)?;
    Ok(socket)
}

fn tcp_socket(listener: &Listener, address: SocketAddr) -> io::Result<socket2::Socket> {
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
    allow_foreign_address(&socket, listener, address)?;
    Ok(socket)
}

fn allow_foreign_address(
    socket: &socket2::Socket,
    listener: &Listener,
    address: SocketAddr,
) -> io::Result<()> {
    match address {
        _ if !listener.freebind => Ok(()),
        SocketAddr::V4(_) => socket.set_freebind_v4(true),
        SocketAddr::V6(_) => socket.set_freebind_v6(true),
    }
}

fn bind_unix(
    listener: &Listener,
    rights: &FileRights,
    path: &Path,
    inherited: Option<socket2::Socket>,
    workers: usize,
) -> io::Result<(Vec<BoundSocket>, Option<SocketFile>)> {
    let backlog = i32::try_from(listener.backlog).unwrap_or(i32::MAX);
    let (first, file) = match inherited {
        // Its file belongs to the service manager, or to another process still.
        Some(socket) => {
            socket.listen(backlog)?;
            (UnixListener::from(OwnedFd::from(socket)), None)
        }
        None => {
            let (first, file) = listen_unix(path, backlog, rights)?;
            (first, Some(file))
        }
    };
    // Unix sockets know no SO_REUSEPORT: the workers share one queue.
    let mut sockets = Vec::with_capacity(workers);
    for _ in 1..workers {
        sockets.push(BoundSocket::Unix(first.try_clone()?));
    }
    sockets.push(BoundSocket::Unix(first));
    Ok((sockets, file))
}
