//! Datagrams: backends inside the test program, clients that do not wait for ever, and what may
//! stand between them.

use super::{
    millis, net::PATIENCE, poll, ports, proc::while_no_child_starts, programs::Nginx,
    tembuku::Tembuku, wait_until,
};
use socket2::SockRef;
use std::{
    collections::BTreeSet,
    io::ErrorKind,
    net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
};

/// The most that a datagram can carry over IPv4.
pub(crate) const LARGEST: usize = 65_507;

pub(crate) const V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
pub(crate) const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// The peers so far, and the answers that are kept back.
#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    taken: AtomicUsize,
    peers: Mutex<BTreeSet<SocketAddr>>,
    holding: AtomicBool,
    held: Mutex<Vec<(SocketAddr, Vec<u8>)>>,
}

/// Takes datagrams until it is dropped; from then on its address refuses.
pub(crate) struct UdpServer {
    pub(crate) addr: SocketAddr,
    socket: Option<Arc<UdpSocket>>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl UdpServer {
    /// On that address; port 0 stands for one that no other test gets for long.
    #[track_caller]
    pub(crate) fn on(
        addr: SocketAddr,
        mut handle: impl FnMut(&UdpSocket, SocketAddr, &[u8]) + Send + 'static,
    ) -> UdpServer {
        UdpServer::start(addr, move |socket, _, peer, bytes| {
            handle(socket, peer, bytes);
        })
    }

    #[track_caller]
    fn start(
        addr: SocketAddr,
        handle: impl FnMut(&UdpSocket, &Shared, SocketAddr, &[u8]) + Send + 'static,
    ) -> UdpServer {
        UdpServer::start_with(bind(addr), handle)
    }

    #[track_caller]
    fn start_with(
        socket: UdpSocket,
        mut handle: impl FnMut(&UdpSocket, &Shared, SocketAddr, &[u8]) + Send + 'static,
    ) -> UdpServer {
        let socket = Arc::new(socket);
        // As much as the system allows: a test that floods is not about this server.
        let _ = SockRef::from(&*socket).set_recv_buffer_size(4 << 20);
        // How soon it notices that it is to stop.
        socket.set_read_timeout(Some(millis(20))).unwrap();
        let shared = Arc::new(Shared::default());
        let (its, own) = (Arc::clone(&socket), Arc::clone(&shared));
        let thread = thread::spawn(move || {
            let mut bytes = vec![0; 65_536];
            while !own.stop.load(SeqCst) {
                let Ok((length, peer)) = its.recv_from(&mut bytes) else {
                    continue;
                };
                own.taken.fetch_add(1, SeqCst);
                own.peers.lock().unwrap().insert(peer);
                handle(&its, &own, peer, &bytes[..length]);
            }
        });
        UdpServer {
            addr: socket.local_addr().unwrap(),
            socket: Some(socket),
            shared,
            thread: Some(thread),
        }
    }

    /// Sends everything back as it came.
    pub(crate) fn echo(ip: IpAddr) -> UdpServer {
        UdpServer::on(SocketAddr::new(ip, 0), |socket, peer, bytes| {
            let _ = socket.send_to(bytes, peer);
        })
    }

    /// Answers with its name, a space, and what it was sent.
    pub(crate) fn named(name: &str) -> UdpServer {
        UdpServer::named_on(name, SocketAddr::new(V4, 0))
    }

    pub(crate) fn named_on(name: &str, addr: SocketAddr) -> UdpServer {
        UdpServer::named_with(name, bind(addr))
    }

    /// On a socket that is bound already.
    #[track_caller]
    pub(crate) fn named_with(name: &str, socket: UdpSocket) -> UdpServer {
        let name = format!("{name} ");
        UdpServer::start_with(socket, move |socket, shared, peer, bytes| {
            let answer = [name.as_bytes(), bytes].concat();
            let mut held = shared.held.lock().unwrap();
            if shared.holding.load(SeqCst) {
                held.push((peer, answer));
            } else {
                let _ = socket.send_to(&answer, peer);
            }
        })
    }

    /// Sends nothing.
    pub(crate) fn sink() -> UdpServer {
        UdpServer::on(SocketAddr::new(V4, 0), |_, _, _| {})
    }

    /// A named one keeps its answers back from now on.
    pub(crate) fn hold(&self) {
        self.shared.holding.store(true, SeqCst);
    }

    /// Waits until there are so many answers kept back.
    #[track_caller]
    pub(crate) fn wait_held(&self, count: usize) {
        wait_until("answers are kept back", PATIENCE, || {
            self.shared.held.lock().unwrap().len() == count
        });
    }

    /// Sends what it kept back, in order, and keeps nothing back any more.
    pub(crate) fn release(&self) {
        let mut held = self.shared.held.lock().unwrap();
        self.shared.holding.store(false, SeqCst);
        for (peer, answer) in held.drain(..) {
            let socket = self.socket.as_ref().unwrap();
            socket.send_to(&answer, peer).unwrap();
        }
    }

    /// Datagrams so far.
    pub(crate) fn taken(&self) -> usize {
        self.shared.taken.load(SeqCst)
    }

    /// Where they came from: each flow has an address of its own.
    pub(crate) fn peers(&self) -> BTreeSet<SocketAddr> {
        self.shared.peers.lock().unwrap().clone()
    }
}

impl Drop for UdpServer {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        let _ = self.thread.take().map(JoinHandle::join);
        while_no_child_starts(|| self.socket = None);
    }
}

/// Backends `b1`, `b2`...
pub(crate) fn named(count: usize) -> Vec<UdpServer> {
    (1..=count)
        .map(|n| UdpServer::named(&format!("b{n}")))
        .collect()
}

#[track_caller]
fn bind(addr: SocketAddr) -> UdpSocket {
    if addr.port() != 0 {
        return UdpSocket::bind(addr).unwrap_or_else(|error| panic!("bind to {addr}: {error}"));
    }
    (0..10)
        .find_map(|_| UdpSocket::bind((addr.ip(), ports::free_port())).ok())
        .expect("a free port")
}

/// A client with a port of its own: it receives datagrams from `front` only.
#[track_caller]
pub(crate) fn client(front: SocketAddr) -> UdpSocket {
    let local: IpAddr = match front.ip() {
        IpAddr::V4(_) => V4,
        IpAddr::V6(_) => V6,
    };
    client_from(local, front)
}

#[track_caller]
pub(crate) fn client_from(source: IpAddr, front: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind((source, 0)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.connect(front).unwrap();
    socket
}

/// What comes next, as long as that takes.
#[track_caller]
pub(crate) fn receive(client: &UdpSocket) -> Vec<u8> {
    let mut bytes = vec![0; 65_536];
    let length = client
        .recv(&mut bytes)
        .unwrap_or_else(|error| panic!("{} hears nothing: {error}", client.local_addr().unwrap()));
    bytes.truncate(length);
    bytes
}

#[track_caller]
pub(crate) fn receive_text(client: &UdpSocket) -> String {
    String::from_utf8(receive(client)).unwrap()
}

/// Sends a datagram, and returns the next that comes back.
#[track_caller]
pub(crate) fn ask(client: &UdpSocket, what: &str) -> String {
    client.send(what.as_bytes()).unwrap();
    receive_text(client)
}

/// What has come already, if anything has.
#[track_caller]
pub(crate) fn receive_if_any(client: &UdpSocket) -> Option<Vec<u8>> {
    let mut bytes = vec![0; 65_536];
    client.set_nonblocking(true).unwrap();
    let result = client.recv(&mut bytes);
    client.set_nonblocking(false).unwrap();
    match result {
        Ok(length) => Some(bytes[..length].to_vec()),
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(error) => panic!("{}: {error}", client.local_addr().unwrap()),
    }
}

/// Sends it again and again until there is an answer, as a client does that allows for losses.
#[track_caller]
pub(crate) fn ask_until_answered(client: &UdpSocket, what: &str) -> String {
    client.set_read_timeout(Some(millis(100))).unwrap();
    let mut bytes = [0; 2_048];
    let answer = poll(PATIENCE, || {
        let _ = client.send(what.as_bytes());
        client.recv(&mut bytes).ok()
    });
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let length = answer.unwrap_or_else(|| panic!("no answer to {what}"));
    String::from_utf8(bytes[..length].to_vec()).unwrap()
}

/// What clients talk to instead of the backends. A test that a plain network, or nginx, does not
/// pass is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Between {
    Nothing,
    Nginx,
    Tembuku,
}

pub(crate) const ALL: [Between; 3] = [Between::Nothing, Between::Nginx, Between::Tembuku];

pub(crate) struct Front {
    pub(crate) addr: SocketAddr,
    pub(crate) tembuku: Option<Tembuku>,
    _nginx: Option<Nginx>,
}

impl Between {
    /// In front of these backends, reached at this address of the machine.
    #[track_caller]
    pub(crate) fn start(self, ip: IpAddr, backends: &[SocketAddr]) -> Front {
        let addr = SocketAddr::new(ip, ports::free_port());
        let (mut nginx, mut tembuku) = (None, None);
        match self {
            Between::Nothing => {
                return Front {
                    addr: backends[0],
                    tembuku,
                    _nginx: nginx,
                };
            }
            Between::Nginx => {
                let servers: String = backends.iter().map(|b| format!("server {b};")).collect();
                // The other listener is there to see that it works.
                nginx = Some(Nginx::start(
                    addr,
                    &format!(
                        "stream {{ proxy_buffer_size 64k; upstream u {{ {servers} }} server {{ \
                         listen {addr} udp; proxy_pass u; }}\n\
                         server {{ listen {addr}; proxy_pass u; }} }}"
                    ),
                ));
            }
            Between::Tembuku => {
                tembuku = Some(Tembuku::start(&config(addr, "", "", backends)));
            }
        }
        Front {
            addr,
            tembuku,
            _nginx: nginx,
        }
    }
}

/// One listener `l` before the backends, with more keys for it and for its upstream.
pub(crate) fn config(
    front: SocketAddr,
    listener: &str,
    upstream: &str,
    backends: &[SocketAddr],
) -> String {
    format!(
        "[process]\nworkers = 2\n[log]\nformat = \"json\"\naccess = \"{{dir}}/access.log\"\n\
         [admin]\nsocket = \"{{dir}}/admin.sock\"\n\
         [listeners.l]\nbind = \"{front}\"\nprotocol = \"udp\"\nupstream = \"u\"\n{listener}\n\
         [upstreams.u]\nbackends = {}\n{upstream}\n",
        list(backends)
    )
}

/// As a TOML list.
pub(crate) fn list(backends: &[SocketAddr]) -> String {
    let addrs: Vec<String> = backends.iter().map(|addr| format!("\"{addr}\"")).collect();
    format!("[{}]", addrs.join(", "))
}

pub(crate) fn addrs(servers: &[UdpServer]) -> Vec<SocketAddr> {
    servers.iter().map(|server| server.addr).collect()
}

/// A program with one listener.
#[track_caller]
pub(crate) fn serve(
    listener: &str,
    upstream: &str,
    servers: &[UdpServer],
) -> (SocketAddr, Tembuku) {
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&config(front, listener, upstream, &addrs(servers)));
    (front, tembuku)
}

impl Tembuku {
    #[track_caller]
    pub(crate) fn wait_dropped(&self, reason: &str, count: f64) {
        self.wait_metric(
            "listener_dropped_datagrams_total",
            &[("reason", reason)],
            |n| n == count,
        );
    }

    #[track_caller]
    pub(crate) fn wait_flows(&self, count: f64) {
        self.wait_metric("listener_active_connections", &[], |n| n == count);
    }
}
