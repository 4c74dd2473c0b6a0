//! When a listener begins to accept after the start.

use crate::harness::{
    http, net, poll, ports,
    programs::Redis,
    secs,
    server::Server,
    tembuku::Tembuku,
    udp::{self, UdpServer},
    wait_until,
};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{Arc, Condvar, Mutex},
};

/// Opened once; what waits for it goes on then.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    fn wait(&self) {
        let mut open = self.0.0.lock().unwrap();
        while !*open {
            open = self.0.1.wait(open).unwrap();
        }
    }
}

/// Answers checks once its gate is open.
fn check_server(gate: &Gate) -> Server {
    let gate = gate.clone();
    Server::start(move |mut stream| {
        gate.wait();
        let _ = stream.write_all(b"fine\n");
        let _ = stream.read(&mut [0; 16]);
    })
}

/// A listener before `backends`, whose checks are answered by `check`.
fn start(process: &str, front: SocketAddr, backends: &[SocketAddr], check: SocketAddr) -> Tembuku {
    let backends: Vec<String> = backends.iter().map(|b| format!("\"{b}\"")).collect();
    Tembuku::start(&format!(
        "[process]\nworkers = 2\n{process}\n[log]\nformat = \"json\"\n\
         [listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
         [upstreams.u]\nbackends = [{}]\n\
         [upstreams.u.check]\nkind = \"send_expect\"\nexpect = \"fine\"\naddress = \"{check}\"\n\
         interval = \"1m\"\ntimeout = \"1m\"\n",
        backends.join(", ")
    ))
}

fn state(tembuku: &Tembuku) -> String {
    let body = tembuku.get("/api/v1/status").body;
    let status: serde_json::Value = serde_json::from_str(&body).unwrap();
    status["process"]["state"].as_str().unwrap().to_owned()
}

fn accepted(tembuku: &Tembuku) -> f64 {
    tembuku.metric("listener_connections_total", &[("listener", "l")])
}

#[track_caller]
fn assert_served(mut client: &TcpStream, name: &str) {
    let mut greeting = vec![0; name.len() + 1];
    client.read_exact(&mut greeting).unwrap();
    assert_eq!(greeting, format!("{name}\n").as_bytes());
}

#[test]
fn clients_wait_in_the_queue_for_the_first_verdicts() {
    let gate = Gate::default();
    let (backend, check) = (Server::named("a"), check_server(&gate));
    let front = ports::free_addr();
    let tembuku = start("start_wait = \"10m\"", front, &[backend.addr], check.addr);
    let client = net::connect(front).unwrap();
    // The check is under way, and has not ended.
    wait_until("a check has begun", secs(10), || check.accepted() == 1);
    let ready = tembuku.get("/readyz");
    assert_eq!(
        (ready.status, state(&tembuku).as_str()),
        (503, "starting"),
        "{ready:?}"
    );
    assert!(ready.body.contains("first checks"), "{ready:?}");
    assert_eq!(accepted(&tembuku), 0.0);
    gate.open();
    assert_served(&client, "a");
    assert_eq!(
        (tembuku.get("/readyz").status, state(&tembuku).as_str()),
        (200, "running")
    );
    assert!(
        tembuku
            .proc
            .stderr()
            .contains("waiting for the first checks")
    );
}

#[test]
fn every_backend_needs_a_verdict() {
    // The second server never answers: its verdict comes when its check times out.
    let backend = Server::named("a");
    let silent = Server::start(|mut stream| {
        let _ = stream.read(&mut [0; 16]);
    });
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&format!(
        "[process]\nstart_wait = \"10m\"\n[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
         [upstreams.u]\nbackends = [\"{}\", \"{}\", {{ address = \"127.0.0.1:9\", down = true }}]\n\
         [upstreams.u.check]\nkind = \"send_expect\"\nexpect = \"a\"\ntimeout = \"2s\"\n\
         fall = 3\n",
        silent.addr, backend.addr,
    ));
    // Round robin begins with the first; it has been found to be down, so no client sees it.
    for _ in 0..4 {
        assert_served(&net::connect(front).unwrap(), "a");
    }
    assert_eq!(tembuku.get("/readyz").status, 200);
}

#[test]
fn start_wait_bounds_the_wait() {
    let gate = Gate::default();
    let (backend, check) = (Server::named("a"), check_server(&gate));
    let front = ports::free_addr();
    let tembuku = start("start_wait = \"300ms\"", front, &[backend.addr], check.addr);
    // `start = "up"` is the default where no role is asked for.
    assert_served(&net::connect(front).unwrap(), "a");
    assert_eq!(tembuku.get("/readyz").status, 200);
    let log = tembuku.proc.stderr();
    let warned = log
        .lines()
        .find(|line| line.contains("start_wait has passed"));
    let warned = warned.unwrap_or_else(|| panic!("no warning:\n{log}"));
    assert!(warned.contains(&backend.addr.to_string()), "{warned}");
    assert!(warned.contains("WARN"), "{warned}");
    gate.open();
}

#[test]
fn a_wait_of_zero_accepts_at_once() {
    let gate = Gate::default();
    let (backend, check) = (Server::named("a"), check_server(&gate));
    let front = ports::free_addr();
    let tembuku = start("start_wait = \"0s\"", front, &[backend.addr], check.addr);
    assert_served(&net::connect(front).unwrap(), "a");
    assert_eq!(state(&tembuku), "running");
    assert!(
        !tembuku
            .proc
            .stderr()
            .contains("waiting for the first checks")
    );
    gate.open();
}

#[test]
fn a_listener_without_checks_does_not_wait_for_another() {
    let gate = Gate::default();
    let (backend, check) = (Server::named("a"), check_server(&gate));
    let (front, plain) = (ports::free_addr(), ports::free_addr());
    let more = format!(
        "start_wait = \"10m\"\n[listeners.p]\nbind = \"{plain}\"\nupstream = \"p\"\n\
         [upstreams.p]\nbackends = [\"{}\"]",
        backend.addr
    );
    let tembuku = start(&more, front, &[backend.addr], check.addr);
    assert_served(&net::connect(plain).unwrap(), "a");
    assert_eq!(accepted(&tembuku), 0.0);
    assert_eq!(state(&tembuku), "starting");
    gate.open();
    assert_served(&net::connect(front).unwrap(), "a");
}

#[test]
fn a_stop_during_the_wait_serves_the_queue_and_ends() {
    let gate = Gate::default();
    let (backend, check) = (Server::named("a"), check_server(&gate));
    let front = ports::free_addr();
    let mut tembuku = start("start_wait = \"10m\"", front, &[backend.addr], check.addr);
    let client = net::connect(front).unwrap();
    tembuku.proc.signal(rustix::process::Signal::TERM);
    assert_served(&client, "a");
    drop(client);
    let ended = tembuku.proc.wait(secs(10)).expect("an end after TERM");
    assert!(ended.success(), "{ended:?}");
    gate.open();
}

#[test]
fn datagrams_wait_as_well() {
    let gate = Gate::default();
    let check = check_server(&gate);
    let backend = UdpServer::named("a");
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&format!(
        "[process]\nstart_wait = \"10m\"\n[listeners.l]\nbind = \"{front}\"\nprotocol = \"udp\"\n\
         upstream = \"u\"\n[upstreams.u]\nbackends = [\"{}\"]\n\
         [upstreams.u.check]\nkind = \"send_expect\"\nexpect = \"fine\"\naddress = \"{}\"\n\
         interval = \"1m\"\ntimeout = \"1m\"\n",
        backend.addr, check.addr,
    ));
    let client = udp::client(front);
    client.send(b"x").unwrap();
    wait_until("a check has begun", secs(10), || check.accepted() == 1);
    assert_eq!(state(&tembuku), "starting");
    assert_eq!(
        tembuku.metric("listener_received_datagrams_total", &[]),
        0.0
    );
    gate.open();
    assert_eq!(udp::receive_text(&client), "a x");
}

/// A writer that comes while the process starts is served by the primary, and never cut.
#[test]
fn a_writer_at_the_start_finds_the_primary() {
    let primary = Redis::start(ports::free_addr());
    let port = primary.addr.port().to_string();
    let replica = Redis::start_with(ports::free_addr(), &["--replicaof", "127.0.0.1", &port]);
    for _ in 0..5 {
        let front = ports::free_addr();
        let config = format!(
            "[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n\
             [upstreams.u]\nbackends = [\"{}\", \"{}\"]\n\
             [upstreams.u.check]\nkind = \"redis\"\nrole = \"primary\"\n",
            replica.addr, primary.addr
        );
        let client = std::thread::spawn(move || {
            let connected = poll(secs(10), || net::connect(front).ok());
            let mut client = connected.expect("a listener");
            client.write_all(b"SET k v\r\n").unwrap();
            let mut answer = [0; 5];
            client.read_exact(&mut answer).map(|()| answer)
        });
        let tembuku = Tembuku::start(&config);
        assert_eq!(&client.join().unwrap().unwrap(), b"+OK\r\n");
        assert!(http::get(tembuku.admin, "/readyz").is_ok_and(|r| r.status == 200));
    }
}
