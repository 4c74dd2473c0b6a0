//! Random plans are applied to a running server with sessions on every listener, over TCP and UDP.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{Read, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        net::UnixStream,
    },
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use tembuku::internals::{
    admin, config,
    control::{Prepared, Server},
    plan::{Plan, diff::Change},
};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

const CHANGES: usize = 1_000;
const PATIENCE: Duration = Duration::from_secs(10);
/// Where listeners are: sockets towards the backends have local ports of another address.
const FRONT: &str = "127.0.2.1";
/// Sessions that are kept on each listener.
const SESSIONS: usize = 3;

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        (!items.is_empty()).then(|| &items[self.below(items.len())])
    }
}

/// A backend that names itself by its address: over TCP at once, and then echoes; over UDP in front
/// of every datagram.
fn start_backend() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let datagrams = UdpSocket::bind(address).expect("the same port");
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let _ = stream.write_all(format!("{address}\n").as_bytes());
                let mut buffer = [0; 256];
                while let Ok(n @ 1..) = stream.read(&mut buffer) {
                    let _ = stream.write_all(&buffer[..n]);
                }
            });
        }
    });
    thread::spawn(move || {
        let mut buffer = [0; 256];
        while let Ok((n, from)) = datagrams.recv_from(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
            let _ = datagrams.send_to(format!("{address}\n{text}").as_bytes(), from);
        }
    });
    address
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Listener {
    is_udp: bool,
    ports: BTreeSet<u16>,
    upstream: String,
    idle_timeout: usize,
    retries: usize,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Upstream {
    balance: &'static str,
    is_checked: bool,
    backends: BTreeMap<SocketAddr, String>,
}

/// A configuration, as far as it changes here.
#[derive(Debug, Clone, Default)]
struct Model {
    drain_timeout: usize,
    listeners: BTreeMap<String, Listener>,
    upstreams: BTreeMap<String, Upstream>,
}

const BALANCE: &[&str] = &[
    "round_robin",
    "least_conn",
    "random_two",
    "ip_hash",
    "maglev",
];

impl Model {
    fn plan(&self) -> Plan {
        let mut text = format!(
            "[process]\nworkers = 2\ndrain_timeout = \"{}s\"\n[log]\nlevel = \"error\"\n",
            self.drain_timeout
        );
        for (name, listener) in &self.listeners {
            let bind = listener
                .ports
                .iter()
                .map(|port| format!("\"{FRONT}:{port}\""));
            text += &format!(
                "[listeners.{name}]\nprotocol = \"{}\"\nbind = [{}]\nupstream = \"{}\"\n\
                 idle_timeout = \"{}s\"\nretries = {}\n",
                if listener.is_udp { "udp" } else { "tcp" },
                bind.collect::<Vec<_>>().join(", "),
                listener.upstream,
                listener.idle_timeout,
                listener.retries,
            );
        }
        for (name, upstream) in &self.upstreams {
            let backends = upstream.backends.iter();
            let backends =
                backends.map(|(at, settings)| format!("{{ address = \"{at}\"{settings} }}"));
            text += &format!(
                "[upstreams.{name}]\nbalance = \"{}\"\nbackends = [{}]\n{}",
                upstream.balance,
                backends.collect::<Vec<_>>().join(", "),
                if upstream.is_checked {
                    "check = { kind = \"tcp\" }\n"
                } else {
                    ""
                },
            );
        }
        config::parse(&text, "model").unwrap_or_else(|problems| panic!("{problems}\n{text}"))
    }

    /// A port that the listener could have. Over UDP flows keep their addresses busy, which other
    /// listeners cannot have meanwhile.
    fn free(&self, ports: &[u16], name: &str, rng: &mut Rng) -> Option<u16> {
        let ports = match is_udp(name) {
            true => &ports[number(name) / 2 * 3..][..3],
            false => &ports[12..],
        };
        let used = |port: &u16| self.listeners.values().any(|l| l.ports.contains(port));
        let free: Vec<u16> = ports.iter().copied().filter(|port| !used(port)).collect();
        rng.pick(&free).copied()
    }

    /// Changes something. `ports`: from which listeners take theirs.
    fn change(&mut self, rng: &mut Rng, ports: &[u16], backends: &[SocketAddr]) {
        let listeners: Vec<String> = self.listeners.keys().cloned().collect();
        let upstreams: Vec<String> = self.upstreams.keys().cloned().collect();
        let listener = rng.pick(&listeners).cloned();
        let upstream = rng
            .pick(&upstreams)
            .cloned()
            .expect("there is one at least");
        match (rng.below(11), listener) {
            (0, _) => {
                let name = format!("l{}", rng.below(8));
                let Some(port) = self.free(ports, &name, rng) else {
                    return;
                };
                // A name stands for one protocol: another one needs an upgrade.
                let listener = Listener {
                    is_udp: is_udp(&name),
                    ports: [port].into(),
                    upstream,
                    idle_timeout: 6,
                    retries: 1,
                };
                self.listeners.entry(name).or_insert(listener);
            }
            (1, Some(name)) if listeners.len() > 1 => {
                self.listeners.remove(&name);
            }
            (2, Some(name)) => {
                let listener = self.listeners.get_mut(&name).expect("a listener");
                listener.upstream = upstream;
            }
            (3, Some(name)) => {
                let listener = self.listeners.get_mut(&name).expect("a listener");
                listener.idle_timeout = 6 + rng.below(3);
                listener.retries = rng.below(5);
            }
            (4, Some(name)) => {
                let port = self.free(ports, &name, rng);
                let listener = self.listeners.get_mut(&name).expect("a listener");
                if listener.ports.len() > 1 && rng.one_in(2) {
                    listener.ports.pop_first();
                } else {
                    listener.ports.extend(port);
                }
            }
            // Another listener takes over the sockets of one.
            (5, Some(name)) => {
                let other = format!("l{}", rng.below(8));
                let both_tcp = !is_udp(&name) && !is_udp(&other);
                if both_tcp && !self.listeners.contains_key(&other) {
                    let listener = self.listeners.remove(&name).expect("a listener");
                    self.listeners.insert(other, listener);
                }
            }
            (6, _) => {
                let backend = *rng.pick(backends).expect("a backend");
                self.upstreams
                    .entry(format!("u{}", rng.below(5)))
                    .or_insert(Upstream {
                        balance: BALANCE[rng.below(BALANCE.len())],
                        is_checked: rng.one_in(8),
                        backends: [(backend, String::new())].into(),
                    });
            }
            (7, _) => {
                let is_used = |name: &str| self.listeners.values().any(|l| l.upstream == name);
                if upstreams.len() > 1 && !is_used(&upstream) {
                    self.upstreams.remove(&upstream);
                }
            }
            (8, _) => {
                let upstream = self.upstreams.get_mut(&upstream).expect("an upstream");
                upstream.balance = BALANCE[rng.below(BALANCE.len())];
            }
            (9, _) => {
                let backend = *rng.pick(backends).expect("a backend");
                let upstream = self.upstreams.get_mut(&upstream).expect("an upstream");
                if upstream.backends.len() > 1 && rng.one_in(2) {
                    upstream.backends.pop_first();
                } else {
                    upstream.backends.entry(backend).or_default();
                }
            }
            (10, _) => {
                let upstream = self.upstreams.get_mut(&upstream).expect("an upstream");
                let settings = upstream.backends.values_mut().next().expect("a backend");
                *settings = format!(
                    ", weight = {}, max_fails = {}, max_connections = {}",
                    1 + rng.below(3),
                    rng.below(3),
                    rng.below(2) * 1_000
                );
            }
            _ => self.drain_timeout = 1 + rng.below(5),
        }
    }
}

fn number(name: &str) -> usize {
    name[1..].parse().expect("a number")
}

fn is_udp(name: &str) -> bool {
    number(name).is_multiple_of(2)
}

fn own_address() -> Ipv4Addr {
    static NEXT: AtomicU32 = AtomicU32::new(0x7f01_0000);
    Ipv4Addr::from_bits(NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A session through the server.
enum Client {
    Stream(TcpStream),
    Flow(UdpSocket),
}

struct Session {
    client: Client,
    listener: String,
    backend: SocketAddr,
    sent: usize,
}

impl Session {
    fn open(name: &str, listener: &Listener) -> Self {
        let port = *listener.ports.last().expect("a port");
        let client = match listener.is_udp {
            true => {
                // An address of its own: flows of clients that are gone are not those of this one.
                let socket = UdpSocket::bind((own_address(), 0)).expect("a socket");
                socket.connect((FRONT, port)).expect("connected");
                socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
                Client::Flow(socket)
            }
            false => {
                let stream = TcpStream::connect((FRONT, port)).expect("connected");
                stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
                Client::Stream(stream)
            }
        };
        let mut session = Self {
            client,
            listener: name.to_owned(),
            backend: SocketAddr::from(([0, 0, 0, 0], 0)),
            sent: 0,
        };
        if let Client::Stream(stream) = &mut session.client {
            let line = read_line(stream, name);
            session.backend = line.parse().expect("an address");
        }
        session.echo();
        session
    }

    /// Sends something and waits for the answer. Whether another backend than before gave it.
    fn echo(&mut self) -> bool {
        self.sent += 1;
        let text = format!("{} {}\n", self.listener, self.sent);
        match &mut self.client {
            Client::Stream(stream) => {
                let written = stream.write_all(text.as_bytes());
                written.unwrap_or_else(|e| panic!("a session of {} ended: {e}", self.listener));
                assert_eq!(read_line(stream, &self.listener) + "\n", text);
                false
            }
            Client::Flow(socket) => {
                socket.send(text.as_bytes()).expect("sent");
                let mut buffer = [0; 256];
                let received = socket.recv(&mut buffer);
                let n = received
                    .unwrap_or_else(|e| panic!("a flow of {} has no reply: {e}", self.listener));
                let reply = String::from_utf8_lossy(&buffer[..n]).into_owned();
                let (backend, echo) = reply.split_once('\n').expect("two lines");
                assert_eq!(echo, text);
                let before = std::mem::replace(&mut self.backend, backend.parse().expect("one"));
                before != self.backend
            }
        }
    }
}

fn read_line(stream: &mut impl Read, name: &str) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        match stream.read(&mut byte) {
            Ok(1) if byte[0] == b'\n' => return String::from_utf8(line).expect("text"),
            Ok(1) => line.push(byte[0]),
            other => panic!("a session of {name} ended: {other:?}"),
        }
    }
}

/// Prints the change at which a test fails.
struct Report(usize, Model);

impl Drop for Report {
    fn drop(&mut self) {
        if thread::panicking() {
            let _ = writeln!(std::io::stderr(), "change {}: {:#?}", self.0, self.1);
        }
    }
}

/// What a scrape shows.
fn scrape(server: &Server) -> BTreeMap<String, f64> {
    let text = String::from_utf8(admin::scrape(&server.state).concat()).expect("text");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let series = lines.filter_map(|line| line.rsplit_once(' '));
    series
        .map(|(name, value)| (name.to_owned(), value.parse().unwrap_or(f64::NAN)))
        .collect()
}

fn is_counter(series: &str) -> bool {
    let name = series.split('{').next().unwrap_or(series);
    ["_total", "_count", "_sum", "_bucket"]
        .iter()
        .any(|end| name.ends_with(end))
}

/// The listener and the upstream of a session.
type Path = (String, String);

/// `opened`: paths of sessions that may still live. What is removed is shown until its last session
/// has ended; a flow may have moved to any backend of its upstream.
fn check_series(
    before: &BTreeMap<String, f64>,
    now: &BTreeMap<String, f64>,
    model: &Model,
    opened: &BTreeSet<Path>,
) {
    let is_used = |is_part: &dyn Fn(&Path) -> bool| opened.iter().any(is_part);
    for (series, value) in now.iter().filter(|(series, _)| is_counter(series)) {
        if let Some(before) = before.get(series) {
            assert!(value >= before, "{series} fell from {before} to {value}");
        }
    }
    for series in now.keys() {
        let label = |name: &str| {
            let (_, rest) = series.split_once(&format!("{name}=\""))?;
            rest.split('"').next()
        };
        let has_listener =
            |l: &str| model.listeners.contains_key(l) || is_used(&|path| path.0 == l);
        let has_upstream =
            |u: &str| model.upstreams.contains_key(u) || is_used(&|path| path.1 == u);
        let is_known = label("listener").is_none_or(has_listener)
            && label("upstream").is_none_or(has_upstream);
        assert!(is_known, "{series} is left");
        if let (Some(upstream), Some(backend)) = (label("upstream"), label("backend")) {
            let mut backends = model.upstreams.get(upstream).into_iter();
            let is_known = backends.any(|u| u.backends.keys().any(|at| at.to_string() == backend))
                || is_used(&|path| path.1 == upstream);
            assert!(is_known, "{series} is left");
        }
    }
}

fn count_descriptors() -> usize {
    fs::read_dir("/proc/self/fd")
        .expect("the descriptors")
        .count()
}

/// Descriptors and tasks.
fn count_all(runtime: &Runtime) -> (usize, usize) {
    (count_descriptors(), runtime.metrics().num_alive_tasks())
}

/// The same once the number has stayed the same for several looks: ends of sessions are not waited
/// for by anything else.
fn count_when_settled(runtime: &Runtime) -> (usize, usize) {
    let mut counts = (count_all(runtime), 0);
    while counts.1 < 10 {
        pause(runtime);
        let now = count_all(runtime);
        counts = (now, if now == counts.0 { counts.1 + 1 } else { 0 });
    }
    counts.0
}

fn pause(runtime: &Runtime) {
    runtime.block_on(async { tokio::time::sleep(Duration::from_millis(50)).await });
}

fn apply(runtime: &Runtime, server: &mut Server, model: &Model) {
    let plan = model.plan();
    runtime.block_on(async {
        let prepared = Prepared::for_change(plan, &server.state.view()).await;
        let prepared = prepared.unwrap_or_else(|errors| panic!("{errors}\n{model:#?}"));
        let applied = server.apply(prepared).await;
        applied.unwrap_or_else(|errors| panic!("{errors}\n{model:#?}"));
        server.accept_when_checked().await;
    });
}

fn control_runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

fn start(runtime: &Runtime, plan: Plan) -> Server {
    runtime.block_on(async {
        let prepared = Prepared::new(plan).await;
        let prepared = prepared.unwrap_or_else(|errors| panic!("{errors}"));
        Server::start(prepared)
            .await
            .unwrap_or_else(|errors| panic!("{errors}"))
    })
}

/// Applies a configuration: what has changed, or the error.
fn try_to_apply(runtime: &Runtime, server: &mut Server, text: &str) -> Result<Vec<Change>, String> {
    let plan = parse(text);
    runtime.block_on(async {
        let prepared = Prepared::for_change(plan, &server.state.view()).await;
        let prepared = prepared.unwrap_or_else(|errors| panic!("{errors}"));
        let applied = server.apply(prepared).await;
        let applied = applied.map_err(|errors| errors.to_string())?;
        Ok(applied.changes)
    })
}

fn parse(text: &str) -> Plan {
    let text = format!("[process]\nworkers = 2\n[log]\nlevel = \"error\"\n{text}");
    config::parse(&text, "test").unwrap_or_else(|problems| panic!("{problems}"))
}

/// Descriptors are counted for the whole process: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((FRONT, 0)).expect("a port");
    listener.local_addr().expect("an address").port()
}

#[test]
fn a_unix_socket_goes_over_to_a_listener_of_another_name() {
    let _alone = alone();
    let backend = start_backend();
    let folder = std::env::temp_dir().join(format!("tembuku-apply-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder");
    let path = folder.join("socket");
    let text = |name: &str, mode: &str| {
        format!(
            "[listeners.{name}]\nbind = \"unix:{}\"\nunix_mode = \"{mode}\"\nupstream = \"u\"\n\
             [upstreams.u]\nbackends = [\"{backend}\"]\n",
            path.display()
        )
    };
    let mode = || fs::metadata(&path).expect("a file").permissions().mode() & 0o777;
    let inode = || fs::metadata(&path).expect("a file").ino();
    let runtime = control_runtime();
    let mut server = start(&runtime, parse(&text("a", "0600")));
    let before = (inode(), mode());
    assert_eq!(before.1, 0o600);
    let mut session = UnixStream::connect(&path).expect("connected");
    assert_eq!(read_line(&mut session, "a"), backend.to_string());
    try_to_apply(&runtime, &mut server, &text("b", "0660")).expect("applied");
    assert_eq!((inode(), mode()), (before.0, 0o660));
    session.write_all(b"still\n").expect("written");
    assert_eq!(read_line(&mut session, "a"), "still");
    let mut next = UnixStream::connect(&path).expect("connected");
    assert_eq!(read_line(&mut next, "b"), backend.to_string());
    let other_upstream = format!(
        "[listeners.b]\nbind = \"{FRONT}:{}\"\nupstream = \"u\"\n\
         [upstreams.u]\nbackends = [\"{backend}\"]\n",
        free_port()
    );
    try_to_apply(&runtime, &mut server, &other_upstream).expect("applied");
    assert!(!path.exists());
    runtime.block_on(server.stop(CancellationToken::new()));
    let _ = fs::remove_dir_all(folder);
}

#[test]
fn a_plan_that_cannot_be_bound_changes_nothing() {
    let _alone = alone();
    let backend = start_backend();
    let taken = TcpListener::bind((FRONT, 0)).expect("a port");
    let taken = taken.local_addr().map(|address| (taken, address));
    let (_taken, taken) = taken.expect("an address");
    let port = free_port();
    let text = |retries: u32, more: &str| {
        format!(
            "[listeners.a]\nbind = \"{FRONT}:{port}\"\nretries = {retries}\nupstream = \"u\"\n\
             {more}[upstreams.u]\nbackends = [\"{backend}\"]\n"
        )
    };
    let runtime = control_runtime();
    let mut server = start(&runtime, parse(&text(1, "")));
    let more = format!("[listeners.b]\nbind = \"{taken}\"\nupstream = \"u\"\n");
    let error = try_to_apply(&runtime, &mut server, &text(2, &more)).expect_err("it is taken");
    assert!(
        error.contains(&format!("cannot listen on {taken}")),
        "{error}"
    );
    assert_eq!(server.state.view().plan, parse(&text(1, "")));
    try_to_apply(&runtime, &mut server, &text(2, "")).expect("applied");
    assert_eq!(server.state.view().plan, parse(&text(2, "")));
    runtime.block_on(server.stop(CancellationToken::new()));
}

#[test]
fn what_needs_an_upgrade_is_named_and_not_in_effect() {
    let _alone = alone();
    let backend = start_backend();
    let (port, udp_port) = (free_port(), free_port());
    let text = |protocol: &str, more: &str| {
        format!(
            "[listeners.a]\nbind = \"{FRONT}:{port}\"\nprotocol = \"{protocol}\"\n\
             upstream = \"u\"\n{more}[upstreams.u]\nbackends = [\"{backend}\"]\n"
        )
    };
    let runtime = control_runtime();
    let mut server = start(&runtime, parse(&text("tcp", "")));
    let needs_upgrade = |changes: Vec<Change>| {
        let needs = |change: &Change| matches!(change, Change::NeedsUpgrade(_));
        changes.iter().filter(|change| needs(change)).count()
    };
    let changes = try_to_apply(&runtime, &mut server, &text("udp", "")).expect("applied");
    assert_eq!(needs_upgrade(changes), 1);
    // The first UDP listener of a process needs no upgrade.
    let more = format!(
        "[listeners.l0]\nbind = \"{FRONT}:{udp_port}\"\nprotocol = \"udp\"\nupstream = \"u\"\n"
    );
    let changes = try_to_apply(&runtime, &mut server, &text("tcp", &more)).expect("applied");
    assert_eq!(needs_upgrade(changes), 0);
    for (name, port) in [("l0", udp_port), ("l1", port)] {
        let listener = Listener {
            is_udp: is_udp(name),
            ports: [port].into(),
            upstream: "u".to_owned(),
            idle_timeout: 6,
            retries: 1,
        };
        assert_eq!(Session::open(name, &listener).backend, backend);
    }
    runtime.block_on(server.stop(CancellationToken::new()));
}

#[test]
fn no_change_of_the_plan_ends_a_session_or_leaks() {
    let _alone = alone();
    let seed = std::env::var("SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let mut rng = Rng(seed.unwrap_or(0x9e37_79b9_7f4a_7c15));
    let backends: Vec<SocketAddr> = (0..5).map(|_| start_backend()).collect();
    let reserved: Vec<(TcpListener, UdpSocket)> = (0..24)
        .map(|_| {
            let tcp = TcpListener::bind((FRONT, 0)).expect("a port");
            let udp = UdpSocket::bind(tcp.local_addr().expect("an address")).expect("a port");
            (tcp, udp)
        })
        .collect();
    let ports: Vec<u16> = reserved
        .iter()
        .map(|(tcp, _)| tcp.local_addr().expect("an address").port())
        .collect();
    drop(reserved);
    let mut model = Model {
        drain_timeout: 1,
        upstreams: [(
            "u0".to_owned(),
            Upstream {
                balance: "round_robin",
                backends: [(backends[0], String::new())].into(),
                ..Upstream::default()
            },
        )]
        .into(),
        ..Model::default()
    };
    for (name, port) in [("l0", ports[0]), ("l1", ports[12])] {
        let listener = Listener {
            is_udp: is_udp(name),
            ports: [port].into(),
            upstream: "u0".to_owned(),
            idle_timeout: 6,
            retries: 1,
        };
        model.listeners.insert(name.to_owned(), listener);
    }
    let first = model.clone();
    let runtime = control_runtime();
    let mut server = start(&runtime, model.plan());
    // What is made at the first session and then kept.
    drop(Session::open("l1", &model.listeners["l1"]));
    let resting = count_when_settled(&runtime);
    let mut sessions: Vec<Session> = Vec::new();
    let mut opened = BTreeSet::new();
    let mut series = scrape(&server);
    for change in 0..CHANGES {
        (0..=rng.below(3)).for_each(|_| model.change(&mut rng, &ports, &backends));
        let _report = Report(change, model.clone());
        apply(&runtime, &mut server, &model);
        let now = scrape(&server);
        check_series(&series, &now, &model, &opened);
        series = now;
        for session in &mut sessions {
            session.echo();
        }
        for (name, listener) in &model.listeners {
            let backends = &model.upstreams[&listener.upstream].backends;
            let session = Session::open(name, listener);
            assert!(
                backends.contains_key(&session.backend),
                "change {change} of {name}"
            );
            opened.insert((name.clone(), listener.upstream.clone()));
            sessions.push(session);
        }
        while sessions.len() > SESSIONS * 8 {
            sessions.swap_remove(rng.below(sessions.len()));
        }
    }
    drop(sessions);
    apply(&runtime, &mut server, &first);
    let deadline = Instant::now() + 2 * PATIENCE;
    while count_all(&runtime) != resting && Instant::now() < deadline {
        pause(&runtime);
    }
    assert_eq!(count_all(&runtime), resting, "descriptors and tasks");
    check_series(&series, &scrape(&server), &first, &BTreeSet::new());
    runtime.block_on(server.stop(CancellationToken::new()));
}
