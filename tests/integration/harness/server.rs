//! Small backends inside the test program, one thread per connection.

use super::{
    net::{self, PATIENCE},
    ports,
};
use socket2::{Domain, SockRef, Socket, Type};
use std::{
    fs,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

type Handler = Arc<dyn Fn(TcpStream) + Send + Sync>;

/// Listens until it is dropped; from then on its address refuses.
pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    listeners: Vec<Arc<TcpListener>>,
    accepted: Arc<AtomicUsize>,
    live: Arc<AtomicUsize>,
}

impl Server {
    /// On some port of 127.0.0.1.
    pub(crate) fn start(handler: impl Fn(TcpStream) + Send + Sync + 'static) -> Server {
        Server::on(&[SocketAddr::from(([127, 0, 0, 1], 0))], handler)
    }

    pub(crate) fn on(
        addrs: &[SocketAddr],
        handler: impl Fn(TcpStream) + Send + Sync + 'static,
    ) -> Server {
        let accepted = Arc::new(AtomicUsize::new(0));
        let live = Arc::new(AtomicUsize::new(0));
        let handler: Handler = Arc::new(handler);
        let listeners: Vec<Arc<TcpListener>> = addrs
            .iter()
            .map(|&addr| Arc::new(listen_anywhere(addr)))
            .collect();
        for listener in &listeners {
            let (listener, handler) = (listener.clone(), handler.clone());
            let (accepted, live) = (accepted.clone(), live.clone());
            thread::spawn(move || accept_all(&listener, &handler, &accepted, &live));
        }
        Server {
            addr: listeners[0].local_addr().unwrap(),
            listeners,
            accepted,
            live,
        }
    }

    /// Sends its name in a line, then echoes all bytes.
    pub(crate) fn named(name: &str) -> Server {
        Server::named_on(name, &[SocketAddr::from(([127, 0, 0, 1], 0))])
    }

    pub(crate) fn named_on(name: &str, addrs: &[SocketAddr]) -> Server {
        let greeting = format!("{name}\n");
        Server::on(addrs, move |stream| greet_and_echo(&stream, &greeting))
    }

    /// Does nothing at all: the test gets its connections.
    pub(crate) fn held() -> (Server, mpsc::Receiver<TcpStream>) {
        Server::held_on(SocketAddr::from(([127, 0, 0, 1], 0)), |_| {})
    }

    /// Does this before the test gets the connection.
    pub(crate) fn held_on(
        addr: SocketAddr,
        before: impl Fn(&mut TcpStream) + Send + Sync + 'static,
    ) -> (Server, mpsc::Receiver<TcpStream>) {
        let (held, streams) = mpsc::channel();
        let held = Mutex::new(held);
        let server = Server::on(&[addr], move |mut stream| {
            before(&mut stream);
            held.lock().unwrap().send(stream).unwrap();
        });
        (server, streams)
    }

    /// Connections taken so far.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// Connections whose handler is still at work.
    pub(crate) fn live(&self) -> usize {
        self.live.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for listener in &self.listeners {
            // Wakes the thread in accept, which ends then, and refuses from this moment on.
            let _ = SockRef::from(&**listener).shutdown(Shutdown::Both);
        }
    }
}

pub(crate) fn greet_and_echo(mut stream: &TcpStream, greeting: &str) {
    let mut buffer = vec![0; 64 * 1024];
    if stream.write_all(greeting.as_bytes()).is_err() {
        return;
    }
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..n]).is_err() {
            return;
        }
    }
}

pub(crate) fn listen(addr: SocketAddr) -> TcpListener {
    try_listen(addr).unwrap_or_else(|error| panic!("cannot listen on {addr}: {error}"))
}

fn try_listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&addr.into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}

/// Port 0 stands for one that no other test gets for long: the kernel would give the port of a
/// server that is dead to the next that asks, and a test that counts on a dead server would find
/// that one there.
fn listen_anywhere(addr: SocketAddr) -> TcpListener {
    if addr.port() != 0 {
        return listen(addr);
    }
    let on = |port| try_listen(SocketAddr::new(addr.ip(), port));
    // Another run may be quicker.
    (0..10)
        .find_map(|_| on(ports::free_port()).ok())
        .unwrap_or_else(|| listen(addr))
}

fn accept_all(
    listener: &TcpListener,
    handler: &Handler,
    accepted: &AtomicUsize,
    live: &Arc<AtomicUsize>,
) {
    while let Ok((stream, _)) = listener.accept() {
        accepted.fetch_add(1, Ordering::SeqCst);
        live.fetch_add(1, Ordering::SeqCst);
        stream.set_read_timeout(Some(3 * PATIENCE)).unwrap();
        stream.set_write_timeout(Some(3 * PATIENCE)).unwrap();
        let (handler, live) = (handler.clone(), live.clone());
        thread::spawn(move || {
            handler(stream);
            live.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

/// Accepts nothing before `open`: the kernel drops requests to connect, and the client's kernel
/// repeats them a second later.
pub(crate) struct Crowded {
    listener: TcpListener,
    _first: TcpStream,
}

impl Crowded {
    pub(crate) fn start() -> Self {
        let listener = listen(ports::free_addr());
        // A queue of none holds one all the same.
        SockRef::from(&listener).listen(0).unwrap();
        let first = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        Self {
            listener,
            _first: first,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    /// Whether a request to connect has come and been dropped.
    pub(crate) fn is_asked(&self) -> bool {
        let port = format!(":{:04X}", self.address().port());
        let table = fs::read_to_string("/proc/net/tcp").unwrap();
        table.lines().any(|line| {
            let mut fields = line.split_whitespace().skip(2);
            // 02: sent its SYN and waits.
            fields.next().is_some_and(|remote| remote.ends_with(&port))
                && fields.next() == Some("02")
        })
    }

    pub(crate) fn open(self, name: &str) -> TcpListener {
        SockRef::from(&self.listener).listen(4096).unwrap();
        let (queued, _) = self.listener.accept().unwrap();
        drop(queued);
        let greeting = format!("{name}\n");
        let listener = self.listener.try_clone().unwrap();
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let greeting = greeting.clone();
                thread::spawn(move || greet_and_echo(&stream, &greeting));
            }
        });
        self.listener
    }
}

/// Backends `b1`, `b2` … that send their name.
pub(crate) fn named(count: usize) -> Vec<Server> {
    (1..=count)
        .map(|n| Server::named(&format!("b{n}")))
        .collect()
}

/// As a TOML list of addresses.
pub(crate) fn list(servers: &[Server]) -> String {
    let addrs: Vec<String> = servers
        .iter()
        .map(|server| format!("\"{}\"", server.addr))
        .collect();
    format!("[{}]", addrs.join(", "))
}

/// A listener `l` with these keys before an upstream `u` of these servers, with an access log and
/// an admin socket.
pub(crate) fn listener_before(servers: &[Server], front: SocketAddr, listener: &str) -> String {
    format!(
        "[log]\naccess = \"{{dir}}/access.log\"\n[admin]\nsocket = \"{{dir}}/admin.sock\"\n\
         [listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n{listener}\n\
         [upstreams.u]\nbackends = {}\n",
        list(servers)
    )
}

/// The backends behind a listener, each asked once per new connection, in the order of the
/// connections.
#[track_caller]
pub(crate) fn ask_many(addr: SocketAddr, count: usize) -> Vec<String> {
    (1..=count)
        .map(|n| {
            net::ask(addr).unwrap_or_else(|error| panic!("connection {n} of {count}: {error}"))
        })
        .collect()
}
