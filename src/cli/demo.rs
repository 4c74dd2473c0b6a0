//! `tembuku demo`: all of it in one process, to be tried without writing a file.

mod roles;

use super::{complain, print};
use crate::{config, plan::Plan, sys::task::boxed};
use std::{
    io,
    net::{SocketAddr, TcpListener, UdpSocket},
    process::ExitCode,
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};

/// A stopped backend stays away for so long.
const AWAY: Duration = Duration::from_secs(15);
/// How long a backend waits for its client to send something or to close.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) fn run() -> ExitCode {
    let prepared = prepare().map_err(|why| format!("error: {why}\n"));
    let printed = prepared.and_then(|(plan, what_to_try)| print(&what_to_try).map(|()| plan));
    match printed {
        Ok(plan) => super::run::run(plan, None),
        Err(why) => {
            complain(&why);
            ExitCode::FAILURE
        }
    }
}

/// The plan, and what there is to try.
fn prepare() -> Result<(Plan, String), String> {
    let mut backends = Vec::new();
    for (name, port) in [("red", 7101), ("green", 7102), ("blue", 7103)] {
        let socket = bind(port, TcpListener::bind);
        let socket = socket.map_err(|e| format!("cannot start the backend {name}: {e}"))?;
        let address = socket.local_addr().map_err(|e| e.to_string())?;
        backends.push((name, address));
        let greet = move |socket| greet_until_stopped(name, socket);
        start(name, address, socket, TcpListener::bind, greet)?;
    }
    let mut answering = Vec::new();
    for (name, port) in [("gold", 7201), ("silver", 7202)] {
        let socket = bind(port, UdpSocket::bind);
        let socket = socket.map_err(|e| format!("cannot start the backend {name}: {e}"))?;
        let address = socket.local_addr().map_err(|e| e.to_string())?;
        answering.push((name, address));
        let answer = move |socket| answer_until_stopped(name, &socket);
        start(name, address, socket, UdpSocket::bind, answer)?;
    }
    let (mut stores, mut servers) = (Vec::new(), Vec::new());
    for (name, port) in [("north", 7301), ("south", 7302)] {
        let socket = bind(port, TcpListener::bind);
        let socket = socket.map_err(|e| format!("cannot start the backend {name}: {e}"))?;
        stores.push((name, socket.local_addr().map_err(|e| e.to_string())?));
        servers.push((name, socket));
    }
    roles::start(servers).map_err(|e| e.to_string())?;
    let addresses = Addresses {
        front_store: free(7300)?,
        front: free(7000)?,
        front_udp: bind(7200, UdpSocket::bind)
            .and_then(|socket| socket.local_addr())
            .map_err(|e| e.to_string())?,
        admin: free(9900)?,
        backends,
        answering,
        stores,
    };
    let text = addresses.config();
    let plan = config::parse(&text, "demo").map_err(|problems| problems.to_string())?;
    Ok((plan, addresses.what_to_try()))
}

/// Where everything is.
struct Addresses {
    front: SocketAddr,
    front_udp: SocketAddr,
    front_store: SocketAddr,
    admin: SocketAddr,
    /// Those over TCP, those over UDP, and those that have roles.
    backends: Vec<(&'static str, SocketAddr)>,
    answering: Vec<(&'static str, SocketAddr)>,
    stores: Vec<(&'static str, SocketAddr)>,
}

impl Addresses {
    fn config(&self) -> String {
        let list = |backends: &[(&str, SocketAddr)], fail_timeout: Duration| {
            let seconds = fail_timeout.as_secs();
            let entries: Vec<String> = backends
                .iter()
                .map(|(_, address)| {
                    format!("{{ address = \"{address}\", fail_timeout = \"{seconds}s\" }}")
                })
                .collect();
            entries.join(", ")
        };
        format!(
            "[log]\nformat = \"text\"\naccess = \"stdout\"\n\
             [admin]\nlisten = \"{}\"\n\
             [listeners.demo]\nbind = \"{}\"\nupstream = \"colours\"\n\
             [listeners.demo-udp]\nbind = \"{}\"\nprotocol = \"udp\"\nupstream = \"metals\"\n\
             responses = 1\nidle_timeout = \"2s\"\n\
             [upstreams.colours]\nbackends = [{}]\n\
             [upstreams.metals]\nbackends = [{}]\n\
             [listeners.store]\nbind = \"{}\"\nupstream = \"primary\"\n\
             [upstreams.primary]\non_role_lost = \"close\"\nbackends = [\"{}\", \"{}\"]\n\
             [upstreams.primary.check]\nkind = \"redis\"\nrole = \"primary\"\n\
             interval = \"500ms\"\ntimeout = \"400ms\"\nrise = 1\nfall = 2\n",
            self.admin,
            self.front,
            self.front_udp,
            list(&self.backends, Duration::from_secs(3)),
            // Each try of a backend that is away costs a client a datagram.
            list(&self.answering, AWAY),
            self.front_store,
            self.stores[0].1,
            self.stores[1].1,
        )
    }

    fn what_to_try(&self) -> String {
        let Self {
            front,
            front_udp,
            front_store,
            admin,
            backends,
            answering,
            stores,
        } = self;
        let lines = |backends: &[(&str, SocketAddr)], what: &str| {
            let line =
                |(name, address): &(&str, _)| format!("  backend {name:<10} {address}{what}\n");
            backends.iter().map(line).collect::<String>()
        };
        let (stopped, stopped_udp) = (backends[0], answering[0]);
        format!(
            "\
tembuku demo: two listeners, for TCP and UDP, in front of three backends and two, round robin,
and one in front of two servers of which one is the primary

{}{}{}  listener demo      {front}
  listener demo-udp  {front_udp} (UDP)
  listener store     {front_store}, follows the primary
  status page        http://{admin}/

Try, in another terminal:

  1. The backends alternate:   for i in 1 2 3 4 5 6; do cat < /dev/tcp/{host}/{port}; done
                                (bash; or: nc {host} {port} < /dev/null)
  2. What Prometheus would see: curl -s http://{admin}/metrics
  3. Stop a backend:            echo stop > /dev/tcp/{}/{}
                                then 1. again: no connect fails, {} is marked down;
                                it comes back after {away} s
  4. Flows alternate over UDP: for i in 1 2 3 4; do {{ echo hi >&3; timeout 2 head -n1 <&3; }} \
3<> /dev/udp/{udp_host}/{udp_port}; done
                                (bash; or, each a flow: echo hi | nc -u -w1 {udp_host} {udp_port})
  5. Stop one of those:         echo stop > /dev/udp/{}/{}
                                then 4. again: its port is closed, and ICMP says so. The datagram
                                that finds out is lost, all others {} answers;
                                it comes back after {away} s, and soon takes sessions
  6. Hold a session:            exec 3<> /dev/tcp/{store_host}/{store_port}; \
echo who >&3; head -n1 <&3
                                (bash): it is on the primary, {}
  7. Fail over to the replica:  echo promote > /dev/tcp/{}/{}
                                Look at the status page: {} is up and {} standby within a
                                second, the session of 6. has been cut (cat <&3 says so), and
                                once 6. has been tried again the journal says how long each took

Each session prints its line of the access log here. Ctrl-C ends the demo.

",
            lines(backends, ""),
            lines(answering, " (UDP)"),
            lines(stores, ""),
            stopped.1.ip(),
            stopped.1.port(),
            stopped.0,
            stopped_udp.1.ip(),
            stopped_udp.1.port(),
            answering[1].0,
            stores[0].0,
            stores[1].1.ip(),
            stores[1].1.port(),
            stores[1].0,
            stores[0].0,
            store_host = front_store.ip(),
            store_port = front_store.port(),
            host = front.ip(),
            port = front.port(),
            udp_host = front_udp.ip(),
            udp_port = front_udp.port(),
            away = AWAY.as_secs(),
        )
    }
}

/// A backend, on a thread of its own: serves until it receives "stop", and then goes away for a
/// while.
fn start<S: Send + 'static>(
    name: &'static str,
    address: SocketAddr,
    mut socket: S,
    bind: fn(SocketAddr) -> io::Result<S>,
    serve_until_stopped: impl Fn(S) -> io::Result<()> + Send + 'static,
) -> Result<(), String> {
    let serve = move || loop {
        if let Err(e) = serve_until_stopped(socket) {
            let _ = print(&format!("{name}: {e}\n"));
            return;
        }
        let _ = print(&format!("{name}: stopped, back in {} s\n", AWAY.as_secs()));
        std::thread::sleep(AWAY);
        socket = match bind(address) {
            Ok(socket) => socket,
            Err(e) => {
                let _ = print(&format!("{name}: cannot listen on {address} again: {e}\n"));
                return;
            }
        };
        let _ = print(&format!("{name}: listening again on {address}\n"));
    };
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread.spawn(serve).map(drop).map_err(|e| e.to_string())
}

/// Answers each datagram with its name.
fn answer_until_stopped(name: &str, socket: &UdpSocket) -> io::Result<()> {
    let mut bytes = [0; 64];
    loop {
        let (length, client) = match socket.recv_from(&mut bytes) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            came => came?,
        };
        // A client that does not wait for the answer is no reason to end.
        let _ = socket.send_to(format!("{name}\n").as_bytes(), client);
        if bytes[..length].trim_ascii() == b"stop" {
            return Ok(());
        }
    }
}

/// Sends its name to each client.
fn greet_until_stopped(name: &'static str, socket: TcpListener) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(until_stopped(name, socket))
}

async fn until_stopped(name: &'static str, socket: TcpListener) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(socket)?;
    let stop = tokio_util::sync::CancellationToken::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            accepted = listener.accept() => {
                let stop = stop.clone();
                match accepted {
                    Ok((stream, _)) => {
                        tokio::spawn(boxed(async move {
                            if matches!(greet(name, stream).await, Ok(true)) {
                                stop.cancel();
                            }
                        }));
                    }
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        }
    }
}

/// True when the client sent "stop".
async fn greet(name: &str, mut stream: TcpStream) -> io::Result<bool> {
    stream.write_all(format!("{name}\n").as_bytes()).await?;
    stream.shutdown().await?;
    let mut line = String::new();
    let read = BufReader::new(tokio::io::AsyncReadExt::take(stream, 64));
    let mut read = std::pin::pin!(read);
    match tokio::time::timeout(PATIENCE, read.read_line(&mut line)).await {
        Ok(Ok(_)) => Ok(line.trim() == "stop"),
        Ok(Err(e)) => Err(e),
        Err(_) => Ok(false),
    }
}

/// The port that is wanted, or any other if it is taken.
fn bind<S>(port: u16, bind: fn(SocketAddr) -> io::Result<S>) -> io::Result<S> {
    let at = |port| bind(SocketAddr::from(([127, 0, 0, 1], port)));
    at(port).or_else(|_| at(0))
}

fn free(port: u16) -> Result<SocketAddr, String> {
    bind(port, TcpListener::bind)
        .and_then(|listener| listener.local_addr())
        .map_err(|e| e.to_string())
}
