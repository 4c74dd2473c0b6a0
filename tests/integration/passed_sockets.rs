//! Sockets that outlive the process: passed by a service manager at the start, and kept in its
//! store over a restart and a crash.

use crate::harness::{
    net::{self, PATIENCE},
    poll, ports,
    proc::text,
    secs,
    server::Server,
    tembuku::{Tembuku, cli},
    temp::TempDir,
    udp::{self, UdpServer, V4},
    wait_until,
};
use rustix::{
    io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd},
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
    process::Signal,
};
use socket2::{Domain, Socket, Type};
use std::{
    fs,
    io::{IoSliceMut, Read},
    mem::MaybeUninit,
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::{UnixDatagram, UnixListener, UnixStream},
    },
};

/// A service manager with a store.
struct Manager {
    socket: UnixDatagram,
    dir: TempDir,
    kept: Vec<(String, OwnedFd)>,
}

impl Manager {
    fn new() -> Manager {
        let dir = TempDir::new();
        let socket = UnixDatagram::bind(dir.file("notify")).unwrap();
        socket.set_nonblocking(true).unwrap();
        Manager {
            socket,
            dir,
            kept: Vec::new(),
        }
    }

    /// Starts a process with everything that is kept.
    #[track_caller]
    fn start(&mut self, config: &str) -> Tembuku {
        let (wrapper, passed) = self.wrapper();
        let tembuku = Tembuku::start_under(&wrapper, config);
        drop(passed);
        self.listen();
        tembuku
    }

    /// A command that passes what is kept, and descriptors that must be open until it runs.
    fn wrapper(&self) -> (String, Vec<OwnedFd>) {
        let mut passed = Vec::new();
        let mut script = String::new();
        for (number, (_, fd)) in (3..).zip(&self.kept) {
            // Far from the numbers that the script fills.
            let copy = fcntl_dupfd_cloexec(fd, 300).unwrap();
            fcntl_setfd(&copy, FdFlags::empty()).unwrap();
            let copied = copy.as_raw_fd();
            script += &format!("exec {number}<&{copied} {copied}<&-\n");
            passed.push(copy);
        }
        let names: Vec<&str> = self.kept.iter().map(|(name, _)| name.as_str()).collect();
        script += &format!(
            "export LISTEN_PID=$$ LISTEN_FDS={} LISTEN_FDNAMES='{}' NOTIFY_SOCKET={} FDSTORE=100\n\
             exec \"$@\"\n",
            names.len(),
            names.join(":"),
            self.dir.file("notify").display()
        );
        let path = self.dir.write("start", &script);
        (format!("bash {}", path.display()), passed)
    }

    /// Reads what the process has sent so far, and waits for its `READY=1`.
    fn listen(&mut self) {
        let ready = poll(secs(10), || {
            let message = self.take_message()?;
            message.contains("READY=1").then_some(())
        });
        ready.expect("READY=1");
    }

    fn take_message(&mut self) -> Option<String> {
        let mut bytes = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(128))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(&self.socket, &mut parts, &mut control, flags).ok()?;
        let message = String::from_utf8(bytes[..received.bytes].to_vec()).unwrap();
        let name = message
            .lines()
            .find_map(|line| line.strip_prefix("FDNAME="));
        let name = name.unwrap_or_default().to_owned();
        if message.contains("FDSTOREREMOVE=1") {
            self.kept.retain(|(kept, _)| *kept != name);
        }
        for part in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = part {
                assert!(message.contains("FDSTORE=1"), "{message}");
                // One that it has already is dropped, as systemd does.
                for fd in fds {
                    if !self.has(&fd) {
                        self.kept.push((name.clone(), fd));
                    }
                }
            }
        }
        Some(message)
    }

    fn has(&self, fd: &OwnedFd) -> bool {
        let inode = |fd: &OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
        self.kept.iter().any(|(_, kept)| inode(kept) == inode(fd))
    }

    fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.kept.iter().map(|(name, _)| name.as_str()).collect();
        names.dedup();
        names
    }
}

struct Fronts {
    tcp: SocketAddr,
    udp: SocketAddr,
    dir: TempDir,
    server: Server,
    echo: UdpServer,
}

impl Fronts {
    fn new() -> Fronts {
        Fronts {
            tcp: ports::free_addr(),
            udp: ports::free_addr(),
            dir: TempDir::new(),
            server: Server::named("a"),
            echo: UdpServer::echo(V4),
        }
    }

    fn config(&self) -> String {
        format!(
            "[process]\nworkers = 3\ndrain_timeout = \"1s\"\n\
             [admin]\nsocket = \"{{dir}}/admin.sock\"\n[log]\nformat = \"json\"\n\
             [listeners.t]\nbind = \"{}\"\nupstream = \"s\"\n\
             [listeners.x]\nbind = \"unix:{}\"\nupstream = \"s\"\n\
             [listeners.d]\nprotocol = \"udp\"\nbind = \"{}\"\nupstream = \"e\"\n\
             [upstreams.s]\nbackends = [\"{}\"]\n[upstreams.e]\nbackends = [\"{}\"]\n",
            self.tcp,
            self.dir.file("x.sock").display(),
            self.udp,
            self.server.addr,
            self.echo.addr
        )
    }

    #[track_caller]
    fn assert_served(&self) {
        let (client, _) = net::session(self.tcp).unwrap();
        drop(client);
        let client = udp::client(self.udp);
        assert_eq!(udp::ask_until_answered(&client, "hello"), "hello");
        greeted(&mut UnixStream::connect(self.dir.file("x.sock")).unwrap());
    }

    /// Clients of a process that is not there.
    fn early_clients(&self) -> (Vec<TcpStream>, Vec<UnixStream>, Vec<UdpSocket>) {
        let connect = |_| net::connect(self.tcp).expect("no refusal");
        let connect_unix = |_| UnixStream::connect(self.dir.file("x.sock")).expect("no refusal");
        let send = |_| {
            let client = udp::client(self.udp);
            client.send(b"early").expect("no refusal");
            client
        };
        (
            (0..100).map(connect).collect(),
            (0..20).map(connect_unix).collect(),
            (0..20).map(send).collect(),
        )
    }
}

#[track_caller]
fn greeted(stream: &mut impl Read) {
    assert_eq!(net::read_line(stream).unwrap(), "a");
}

#[track_caller]
fn assert_all_served((tcp, unix, udp): (Vec<TcpStream>, Vec<UnixStream>, Vec<UdpSocket>)) {
    for mut client in tcp {
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        greeted(&mut client);
    }
    for mut client in unix {
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        greeted(&mut client);
    }
    for client in udp {
        assert_eq!(udp::receive_text(&client), "early");
    }
}

#[test]
fn no_client_is_refused_over_a_crash_or_a_restart() {
    let (fronts, mut manager) = (Fronts::new(), Manager::new());
    let mut tembuku = manager.start(&fronts.config());
    fronts.assert_served();
    // One of each worker, and one file that the workers share.
    assert_eq!(manager.kept.len(), 3 + 1 + 3, "{:?}", manager.names());
    for end in [Signal::KILL, Signal::TERM] {
        tembuku.proc.signal(end);
        assert!(tembuku.proc.wait(secs(10)).is_some());
        let clients = fronts.early_clients();
        tembuku = manager.start(&fronts.config());
        assert_all_served(clients);
        fronts.assert_served();
        assert_eq!(manager.kept.len(), 7, "{:?}", manager.names());
        let log = tembuku.log();
        let taken = log
            .iter()
            .filter(|line| line["message"] == "taking over sockets that were passed");
        assert_eq!(taken.count(), 3, "{log:?}");
    }
}

#[test]
fn the_store_follows_a_reload_and_what_no_listener_has_is_closed() {
    let (fronts, mut manager) = (Fronts::new(), Manager::new());
    let mut tembuku = manager.start(&fronts.config());
    let moved = ports::free_addr();
    let path = tembuku.dir.file("tembuku.toml");
    let config = fs::read_to_string(&path).unwrap();
    let config = config.replace(&fronts.tcp.to_string(), &moved.to_string());
    fs::write(&path, &config).unwrap();
    let socket = tembuku.dir.file("admin.sock");
    let output = cli(&["reload", "--socket", socket.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let name = |addr: SocketAddr| format!("tcp-{}", addr.to_string().replace(':', "_"));
    wait_until("the store has changed", secs(10), || {
        while manager.take_message().is_some() {}
        let names = manager.names();
        names.contains(&name(moved).as_str()) && !names.contains(&name(fronts.tcp).as_str())
    });
    // A program that another test starts may have a copy of the socket for a moment.
    wait_until("its queue is gone", secs(10), || {
        TcpStream::connect(fronts.tcp).is_err()
    });
    tembuku.proc.kill();
    assert!(TcpStream::connect(moved).is_ok(), "its queue is kept");
    // The next process has another configuration: one address is not wanted any more.
    let next = manager.start(&fronts.config());
    fronts.assert_served();
    let log = next.log();
    let closed = log
        .iter()
        .filter(|line| line["message"] == "closing what was passed, no listener has it");
    let closed: Vec<String> = closed
        .map(|line| line["socket"].as_str().unwrap().into())
        .collect();
    assert_eq!(closed, vec![format!("tcp {moved}"); 3], "{log:?}");
    // Otherwise it would listen in the store, and clients would wait there in vain.
    assert!(!manager.names().contains(&name(moved).as_str()));
    wait_until("its queue is gone", secs(10), || {
        TcpStream::connect(moved).is_err()
    });
}

/// The kernel gives clients to all sockets of an address: those that have come wait in each, and a
/// socket that is closed resets them.
#[test]
fn a_start_with_fewer_workers_serves_the_clients_of_all_sockets() {
    let (fronts, mut manager) = (Fronts::new(), Manager::new());
    let mut tembuku = manager.start(&fronts.config());
    tembuku.proc.kill();
    assert_eq!(manager.kept.len(), 7, "{:?}", manager.names());
    let clients = fronts.early_clients();
    let fewer = fronts.config().replace("workers = 3", "workers = 1");
    let _next = manager.start(&fewer);
    assert_all_served(clients);
    for _ in 0..20 {
        fronts.assert_served();
    }
    assert_eq!(manager.kept.len(), 7, "{:?}", manager.names());
}

/// The store gets a copy, which comes beside the socket of the unit at the next start.
#[test]
fn a_socket_that_is_passed_twice_is_used_once() {
    let (fronts, mut manager) = (Fronts::new(), Manager::new());
    let udp = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
    udp.set_reuse_port(true).unwrap();
    udp.bind(&fronts.udp.into()).unwrap();
    let unit: OwnedFd = udp.into();
    manager.kept = vec![("dns".to_owned(), unit.try_clone().unwrap())];
    let mut tembuku = manager.start(&fronts.config());
    fronts.assert_served();
    tembuku.proc.kill();
    // Before those of the store.
    manager.kept.insert(0, ("dns".to_owned(), unit));
    let clients = fronts.early_clients();
    let next = manager.start(&fronts.config());
    assert_all_served(clients);
    for _ in 0..20 {
        fronts.assert_served();
    }
    let log = next.log();
    let closed = log.iter().find(|line| {
        let message = line["message"].as_str().unwrap();
        message.starts_with("closing")
    });
    assert_eq!(closed, None);
}

/// As a socket unit makes them: one for each address, without SO_REUSEPORT.
#[test]
fn sockets_of_a_socket_unit_are_shared_by_the_workers() {
    let (fronts, mut manager) = (Fronts::new(), Manager::new());
    let tcp = TcpListener::bind(fronts.tcp).unwrap();
    let unix = UnixListener::bind(fronts.dir.file("x.sock")).unwrap();
    let udp = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
    udp.set_reuse_port(true).unwrap();
    udp.bind(&fronts.udp.into()).unwrap();
    let stray = TcpStream::connect(fronts.tcp).unwrap();
    let kept: [(&str, OwnedFd); 4] = [
        ("web", tcp.into()),
        ("x", unix.into()),
        ("dns", udp.into()),
        ("stray", stray.into()),
    ];
    manager.kept = kept.map(|(name, fd)| (name.to_owned(), fd)).into();
    let clients = fronts.early_clients();
    let mut tembuku = manager.start(&fronts.config());
    assert_all_served(clients);
    fronts.assert_served();
    let log = tembuku.log();
    let stray = log.iter().find(|line| line["name"] == "stray").unwrap();
    assert_eq!(stray["socket"], "no socket that listens");
    // The file is the service manager's, which goes on listening.
    assert_eq!(tembuku.terminate().code(), Some(0));
    assert!(UnixStream::connect(fronts.dir.file("x.sock")).is_ok());
}

#[test]
fn a_udp_socket_that_cannot_be_shared_is_an_error() {
    let (fronts, mut manager) = (Fronts::new(), Manager::new());
    let udp = UdpSocket::bind(fronts.udp).unwrap();
    manager.kept = vec![("dns".to_owned(), udp.into())];
    let (wrapper, _passed) = manager.wrapper();
    let config = fronts
        .config()
        .replace("{dir}", fronts.dir.path().to_str().unwrap());
    let config = fronts.dir.write("tembuku.toml", &config);
    let mut command = crate::harness::proc::command(&wrapper);
    command.args([crate::harness::tembuku::binary().as_path(), "run".as_ref()]);
    command.args(["-c".as_ref(), config.as_path()]);
    let output = crate::harness::proc::run(secs(10), command);
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("it needs ReusePort=yes"), "{message}");
}
