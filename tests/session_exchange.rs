//! Sessions move between two servers while bytes flow: nothing is lost, doubled or out of order.

#[path = "session_exchange/streams.rs"]
mod streams;

use std::{
    collections::BTreeMap,
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};
use streams::{Finish, Pairing, Traffic};
use tembuku::internals::{
    admin, config,
    control::{OtherProcess, Prepared, Server, SessionReceiver, SessionSender, SessionsReport},
    handover::{
        channel::{Channel, ChannelError},
        message::Kind,
    },
    plan::{Addr, Plan},
};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(20);

/// Descriptors are counted for the whole process: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Relaxed);
        let name = format!("tembuku-exchange-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(&folder).expect("a folder");
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Two servers, as two processes would be.
struct Servers {
    runtime: Runtime,
    servers: [Server; 2],
    /// Which of them has the sessions.
    current: usize,
    /// Of the format of sessions.
    version: u16,
}

impl Servers {
    fn start(plans: [String; 2]) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let servers = plans.map(|plan| {
            runtime.block_on(async {
                let prepared = Prepared::new(parse(&plan)).await;
                let prepared = prepared.unwrap_or_else(|errors| panic!("{errors}"));
                let server = Server::start(prepared).await;
                server.unwrap_or_else(|errors| panic!("{errors}"))
            })
        });
        Self {
            runtime,
            servers,
            current: 0,
            version: Kind::Sessions.versions()[0],
        }
    }

    fn address(&self, listener: &str) -> Addr {
        let view = self.servers[self.current].state.view();
        let mut listeners = view.listeners.iter();
        let found = listeners.find(|l| l.service.plan.name == listener);
        found.expect("a listener").addresses[0].clone()
    }

    fn ip(&self, listener: &str) -> SocketAddr {
        match self.address(listener) {
            Addr::Tcp(address) => address,
            Addr::Unix(path) => panic!("{} is no IP address", path.display()),
        }
    }

    fn sender(&self) -> SessionSender {
        let server = &self.servers[self.current];
        SessionSender::new(
            &server.state.process.sessions,
            server.carriers(),
            self.version,
        )
    }

    fn receiver(&self) -> SessionReceiver {
        let server = &self.servers[1 - self.current];
        SessionReceiver::new(server.state.view(), server.carriers(), 1)
    }

    /// Moves all sessions that relay to the other server.
    fn move_all(&mut self) -> SessionsReport {
        let (mut sender, receiver) = (self.sender(), self.receiver());
        let (mut channel, other) = Channel::pair().expect("a channel");
        let taken = thread::scope(|scope| {
            let receiving = scope.spawn(|| receive_all(receiver, Channel::new(other)));
            sender.send_all(&mut channel).expect("an answer");
            drop(channel);
            receiving.join().expect("no panic")
        });
        let report = sender.end(None, OtherProcess::Dead);
        assert_eq!(report.taken, taken as u64);
        self.current = 1 - self.current;
        report
    }

    fn connections(&self, server: usize) -> u64 {
        let sessions = &self.servers[server].state.process.sessions;
        sessions.connections().count()
    }

    fn wait_for_connections(&self, counts: [u64; 2]) {
        wait_until(&format!("{counts:?} sessions"), || {
            [self.connections(0), self.connections(1)] == counts
        });
    }

    /// Of both servers together.
    fn metric(&self, name: &str) -> f64 {
        let of = |server: &Server| {
            let text = String::from_utf8(admin::scrape(&server.state).concat()).expect("text");
            let mut series: BTreeMap<String, f64> = BTreeMap::new();
            for line in text.lines().filter(|line| !line.starts_with('#')) {
                let (series_name, value) = line.rsplit_once(' ').expect("a value");
                let name = series_name.split('{').next().unwrap_or_default().to_owned();
                *series.entry(name).or_default() += value.parse::<f64>().unwrap_or_default();
            }
            series
                .get(name)
                .copied()
                .unwrap_or_else(|| panic!("no metric {name}"))
        };
        self.servers.iter().map(of).sum()
    }

    fn stop(self) {
        for server in self.servers {
            let stopped = self.runtime.block_on(server.stop(CancellationToken::new()));
            assert_eq!(stopped, 0, "sessions that were terminated");
        }
    }
}

/// Returns how many were taken.
fn receive_all(mut receiver: SessionReceiver, mut channel: Channel) -> usize {
    loop {
        match channel.receive(Instant::now() + PATIENCE) {
            Ok(message) => {
                assert_eq!(message.kind, Kind::Sessions);
                receiver.receive(message, &mut channel).expect("answered");
            }
            Err(ChannelError::Closed) => return receiver.taken(),
            Err(error) => panic!("{error}"),
        }
    }
}

fn parse(text: &str) -> Plan {
    let text = format!("[process]\nworkers = 2\n{text}");
    config::parse(&text, "test").unwrap_or_else(|problems| panic!("{problems}"))
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(
            began.elapsed() < PATIENCE,
            "not within {PATIENCE:?}: {what}"
        );
        thread::sleep(Duration::from_millis(2));
    }
}

fn count_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").expect("a folder").count()
}

/// `more`: keys of the listener.
fn plan(backend: &str, more: &str) -> String {
    format!(
        "[listeners.l]\nbind = \"127.0.0.1:0\"\nupstream = \"u\"\n{more}\n\
         [upstreams.u]\nbackends = [\"{backend}\"]\n"
    )
}

/// A client and the backend's side of its session.
fn connect(to: SocketAddr, backend: &TcpListener) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect(to).expect("connected");
    let (server, _) = backend.accept().expect("accepted");
    for stream in [&client, &server] {
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    }
    (client, server)
}

fn backend() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    (listener, address)
}

#[track_caller]
fn pass(from: &mut TcpStream, to: &mut TcpStream, text: &[u8]) {
    from.write_all(text).expect("written");
    let mut got = vec![0; text.len()];
    to.read_exact(&mut got).expect("read");
    assert_eq!(got, text);
}

/// Sequence-numbered streams in both directions with random stalls, ends and resets, on TCP and
/// unix sockets on both sides.
#[test]
fn no_byte_is_lost_while_sessions_move() {
    let _alone = alone();
    let folder = Folder::new();
    let path = |name: &str| folder.0.join(name).display().to_string();
    let pairing = Pairing::new(&folder.0);
    let text = |n: usize| {
        format!(
            "[log]\naccess = \"{}\"\n\
             [listeners.tcp]\nbind = \"127.0.0.1:0\"\nupstream = \"tcp\"\n\
             [listeners.unix]\nbind = \"unix:{}\"\nupstream = \"tcp\"\n\
             [listeners.to_unix]\nbind = \"127.0.0.1:0\"\nupstream = \"unix\"\n\
             [upstreams.tcp]\nbackends = [\"{}\"]\n\
             [upstreams.unix]\nbackends = [\"unix:{}\"]\n",
            path(&format!("log{n}")),
            path(&format!("front{n}")),
            pairing.tcp_address(),
            pairing.unix_path().display(),
        )
    };
    let before = count_descriptors();
    let mut servers = Servers::start([text(0), text(1)]);
    let traffic = Traffic::new(
        ["tcp", "unix", "to_unix"].map(|listener| (listener, servers.address(listener))),
        &pairing,
        48,
    );
    let seed = traffic.seed();
    let (is_over, steps) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let carrying = thread::spawn({
        let (is_over, steps) = (Arc::clone(&is_over), Arc::clone(&steps));
        move || {
            let carried = traffic.carry(&steps);
            is_over.store(true, Relaxed);
            carried
        }
    });
    let (mut moves, mut taken) = (0, 0);
    while !is_over.load(Relaxed) && !carrying.is_finished() {
        let report = servers.move_all();
        assert!(report.refused.is_empty(), "{report:?}");
        (moves, taken) = (moves + 1, taken + report.taken);
        // A step is a move, and ten sessions or more.
        steps.store(moves.min(taken as usize / 10), Relaxed);
        thread::sleep(Duration::from_millis(1));
    }
    let carried = carrying.join().unwrap_or_else(|_| panic!("seed {seed}"));
    let _ = writeln!(
        std::io::stderr(),
        "{moves} moves, {taken} sessions taken, {} bytes, seed {seed}",
        carried.bytes
    );
    assert!(
        moves >= 10 && taken > 100,
        "{moves} moves of {taken} sessions"
    );
    servers.wait_for_connections([0, 0]);
    // Each session has ended once.
    assert_eq!(servers.metric("tembuku_sessions_closed_total"), 48.0);
    assert_eq!(
        servers.metric("tembuku_session_duration_seconds_count"),
        48.0
    );
    assert_eq!(servers.metric("tembuku_listener_active_connections"), 0.0);
    assert_eq!(servers.metric("tembuku_backend_active_connections"), 0.0);
    let copied = servers.metric("tembuku_listener_sent_bytes_total");
    let counted = servers.metric("tembuku_listener_received_bytes_total") + copied;
    assert!(
        counted >= carried.delivered as f64,
        "{counted} of {carried:?}"
    );
    servers.stop();
    let lines: Vec<String> = (0..2)
        .flat_map(|n| {
            let text = fs::read_to_string(path(&format!("log{n}"))).expect("a log");
            text.lines().map(str::to_owned).collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(lines.len(), 48, "one line for each session");
    drop(pairing);
    wait_until("all descriptors are closed", || {
        count_descriptors() <= before
    });
}

#[test]
fn a_session_stays_what_it_is() {
    let _alone = alone();
    let folder = Folder::new();
    let (listener, address) = backend();
    let log = |n: usize| folder.0.join(format!("log{n}"));
    let text = |n: usize| {
        let keys = "accept_proxy = { trust = [\"127.0.0.1\"] }";
        format!(
            "[log]\naccess = \"{}\"\n{}",
            log(n).display(),
            plan(&address, keys)
        )
    };
    let mut servers = Servers::start([text(0), text(1)]);
    let mut client = TcpStream::connect(servers.ip("l")).expect("connected");
    client
        .write_all(b"PROXY TCP4 192.0.2.7 192.0.2.8 1234 5\r\n")
        .expect("written");
    let (mut server, _) = listener.accept().expect("accepted");
    pass(&mut client, &mut server, b"question");
    pass(&mut server, &mut client, b"answer");
    let find = |servers: &Servers, n: usize| {
        let found = servers.servers[n].state.process.sessions.find(|_| true);
        found.into_iter().next().expect("a session")
    };
    let session = find(&servers, 0);
    let began = servers.servers[0].state.process.sessions.began_at(&session);
    assert_eq!(servers.move_all().taken, 1);
    servers.wait_for_connections([0, 1]);
    let moved = find(&servers, 1);
    assert_eq!((moved.id, moved.peer), (session.id, session.peer));
    assert_eq!(moved.client().to_string(), "192.0.2.7:1234");
    assert_eq!((moved.received(), moved.sent()), (8, 6));
    let began_there = servers.servers[1].state.process.sessions.began_at(&moved);
    let difference = began_there.max(began) - began_there.min(began);
    assert!(difference < Duration::from_millis(1), "{difference:?}");
    assert!(servers.servers[1].state.process.sessions.next_id() > session.id);
    drop(session);
    drop(moved);
    pass(&mut client, &mut server, b"more");
    drop((client, server));
    servers.wait_for_connections([0, 0]);
    servers.stop();
    assert_eq!(fs::read_to_string(log(0)).expect("a log"), "");
    let line = fs::read_to_string(log(1)).expect("a log");
    for part in [
        "\"remote_addr\":\"192.0.2.7\"",
        "\"realip_remote_addr\":\"127.0.0.1\"",
        "\"bytes_received\":12",
        "\"bytes_sent\":6",
        "\"result\":\"ok\"",
        "\"close_reason\":\"ok\"",
        "\"first_byte_time\":0.",
        "\"connect_time\":0.",
    ] {
        assert!(line.contains(part), "{part} is missing: {line}");
    }
}

#[test]
fn a_session_that_has_no_backend_yet_follows() {
    let _alone = alone();
    let (listener, address) = backend();
    let text = plan(&address, "accept_proxy = { trust = [\"127.0.0.1\"] }");
    let mut servers = Servers::start([text.clone(), text]);
    let mut client = TcpStream::connect(servers.ip("l")).expect("connected");
    client.write_all(b"PROXY ").expect("written");
    servers.wait_for_connections([1, 0]);
    let (mut sender, receiver) = (servers.sender(), servers.receiver());
    let (mut channel, other) = Channel::pair().expect("a channel");
    let receiving = thread::spawn(move || receive_all(receiver, Channel::new(other)));
    sender.send_all(&mut channel).expect("nothing to send");
    assert_eq!(sender.report().taken, 0);
    client.write_all(b"UNKNOWN\r\nfirst").expect("written");
    let began = Instant::now();
    while sender.report().taken == 0 {
        assert!(began.elapsed() < PATIENCE, "it does not follow");
        sender.wait(Duration::from_millis(10));
        sender.send_all(&mut channel).expect("sent");
    }
    servers.wait_for_connections([0, 1]);
    let (mut server, _) = listener.accept().expect("accepted");
    let mut got = [0; 5];
    server.read_exact(&mut got).expect("read");
    assert_eq!(&got, b"first");
    pass(&mut server, &mut client, b"answer");
    drop(channel);
    assert_eq!(receiving.join().expect("no panic"), 1);
    sender.end(None, OtherProcess::Dead);
    drop((client, server));
    servers.wait_for_connections([0, 0]);
    servers.current = 1;
    servers.stop();
}

#[test]
fn what_the_other_process_does_not_take_stays() {
    let _alone = alone();
    let (listener, address) = backend();
    let other_listener = plan(&address, "").replace("listeners.l", "listeners.other");
    let other_backend = plan("127.0.0.1:1", "");
    for (other, reason) in [
        (other_listener, "no_listener"),
        (other_backend, "no_backend"),
    ] {
        let mut servers = Servers::start([plan(&address, ""), other]);
        let (mut client, mut server) = connect(servers.ip("l"), &listener);
        pass(&mut client, &mut server, b"before");
        for _ in 0..2 {
            let report = servers.move_all();
            assert_eq!(
                (report.taken, &report.refused),
                (0, &[(reason.to_owned(), 1)].into())
            );
            servers.current = 0;
            pass(&mut client, &mut server, b"to the backend");
            pass(&mut server, &mut client, b"to the client");
        }
        servers.wait_for_connections([1, 0]);
        drop((client, server));
        servers.wait_for_connections([0, 0]);
        servers.stop();
    }
}

/// The session goes on with the upstream that it has, although its listener has another one.
#[test]
fn a_session_keeps_its_upstream() {
    let _alone = alone();
    let (listener, address) = backend();
    let text = |upstream: &str| {
        format!(
            "[listeners.l]\nbind = \"127.0.0.1:0\"\nupstream = \"{upstream}\"\n\
             [upstreams.a]\nbackends = [\"{address}\"]\n\
             [upstreams.b]\nbackends = [\"127.0.0.1:1\"]\n"
        )
    };
    let mut servers = Servers::start([text("a"), text("b")]);
    let (mut client, mut server) = connect(servers.ip("l"), &listener);
    pass(&mut client, &mut server, b"before");
    assert_eq!(servers.move_all().taken, 1);
    pass(&mut client, &mut server, b"after");
    pass(&mut server, &mut client, b"back");
    assert_eq!(servers.metric("tembuku_backend_active_connections"), 1.0);
    drop((client, server));
    servers.wait_for_connections([0, 0]);
    servers.stop();
}

/// The other process dies before it has answered.
#[test]
fn sessions_stay_when_the_other_process_dies() {
    let _alone = alone();
    for version in Kind::Sessions.versions() {
        let (listener, address) = backend();
        let mut servers = Servers::start([plan(&address, ""), plan(&address, "")]);
        servers.version = *version;
        stay_when_the_other_process_dies(servers, &listener);
    }
}

fn stay_when_the_other_process_dies(servers: Servers, listener: &TcpListener) {
    let mut sessions: Vec<_> = (0..100)
        .map(|_| connect(servers.ip("l"), listener))
        .collect();
    let mut left = 100;
    // After so many messages that were answered.
    for answered in 0..3 {
        let (mut sender, mut receiver) = (servers.sender(), servers.receiver());
        let (mut channel, other) = Channel::pair().expect("a channel");
        let dying = thread::spawn(move || {
            let mut channel = Channel::new(other);
            for _ in 0..answered {
                let message = channel
                    .receive(Instant::now() + PATIENCE)
                    .expect("sessions");
                receiver.receive(message, &mut channel).expect("answered");
            }
            let last = channel.receive(Instant::now() + PATIENCE);
            drop((last, channel));
            receiver.taken()
        });
        let sent = sender.send_all(&mut channel);
        let is_over = left <= 40 * answered;
        assert!(
            is_over || matches!(sent, Err(ChannelError::Closed)),
            "{sent:?}"
        );
        drop((sent, ()));
        let taken = {
            let report = sender.end(Some(&mut channel), OtherProcess::Dead);
            drop(channel);
            assert_eq!(report.taken, dying.join().expect("no panic") as u64);
            report.taken
        };
        left -= taken as usize;
        servers.wait_for_connections([left as u64, 100 - left as u64]);
        for (client, server) in &mut sessions {
            pass(client, server, b"to the backend");
            pass(server, client, b"to the client");
        }
    }
    drop(sessions);
    servers.wait_for_connections([0, 0]);
    servers.stop();
}

/// It does not answer for a while: sessions that it has not taken go on here, and follow later.
#[test]
fn sessions_go_on_while_the_other_process_stands_still() {
    let _alone = alone();
    let (listener, address) = backend();
    let mut servers = Servers::start([plan(&address, ""), plan(&address, "")]);
    let mut sessions: Vec<_> = (0..100)
        .map(|_| connect(servers.ip("l"), &listener))
        .collect();
    let (mut sender, mut receiver) = (servers.sender(), servers.receiver());
    let (mut channel, other) = Channel::pair().expect("a channel");
    let (go_on, goes_on) = std::sync::mpsc::channel::<()>();
    let receiving = thread::spawn(move || {
        let mut channel = Channel::new(other);
        let first = channel.receive(Instant::now() + PATIENCE);
        receiver
            .receive(first.expect("sessions"), &mut channel)
            .expect("answered");
        let second = channel.receive(Instant::now() + PATIENCE);
        goes_on.recv().expect("an order");
        receiver
            .receive(second.expect("sessions"), &mut channel)
            .expect("answered");
        receive_all(receiver, channel)
    });
    let sending = thread::spawn(move || {
        sender.send_all(&mut channel).expect("answers");
        sender.end(None, OtherProcess::Dead)
    });
    let pass_all = |sessions: &mut Vec<(TcpStream, TcpStream)>| {
        for (client, server) in sessions {
            pass(client, server, b"to the backend");
            pass(server, client, b"to the client");
        }
    };
    wait_until("the first are taken", || servers.connections(1) > 0);
    pass_all(&mut sessions);
    assert!(!sending.is_finished());
    go_on.send(()).expect("it waits");
    let report = sending.join().expect("no panic");
    assert_eq!((report.taken, report.refused.len()), (100, 0), "{report:?}");
    assert_eq!(receiving.join().expect("no panic"), 100);
    servers.wait_for_connections([0, 100]);
    pass_all(&mut sessions);
    drop(sessions);
    servers.wait_for_connections([0, 0]);
    servers.current = 1;
    servers.stop();
}

/// An end that comes while the session is between two processes is passed on.
#[test]
fn a_limit_on_silence_counts_from_the_last_byte() {
    let _alone = alone();
    let (listener, address) = backend();
    let text = plan(&address, "idle_timeout = \"1s\"");
    let mut servers = Servers::start([text.clone(), text]);
    let (mut client, mut server) = connect(servers.ip("l"), &listener);
    // The byte goes through the server between these two, however late this thread is.
    let before = Instant::now();
    pass(&mut client, &mut server, b"last");
    let last = Instant::now();
    // While it moves, none of the servers may count it: the client tells when it has ended.
    client
        .set_read_timeout(Some(Duration::from_millis(20)))
        .expect("a timeout");
    loop {
        assert!(last.elapsed() < PATIENCE, "it does not end");
        servers.move_all();
        match client.read(&mut [0]) {
            Ok(0) => break,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            other => panic!("{other:?}"),
        }
    }
    let (most, least) = (before.elapsed(), last.elapsed());
    assert!(most >= Duration::from_millis(950), "{most:?}");
    assert!(least < Duration::from_millis(3_000), "{least:?}");
    servers.wait_for_connections([0, 0]);
    servers.stop();
}

/// Sessions of all ways to end are among the traffic.
#[test]
fn every_finish_is_tried() {
    let all: Vec<Finish> = (0..48).map(Finish::of_number).collect();
    for finish in Finish::ALL {
        assert!(all.contains(finish), "{finish:?}");
    }
}
