//! Sessions that wait: for a place at a full backend (`queue_timeout`), or for a fit backend
//! (`hold_timeout`).

use crate::harness::{
    bounded, millis,
    net::{self, End, assert_ends_now, connect, echo, read_all, read_line, reset},
    poll, ports,
    proc::{self, text},
    secs,
    server::{Server, named},
    tembuku::{Tembuku, binary},
    wait_until,
};
use rustix::process::Signal;
use std::{
    fs,
    io::Write,
    net::{Shutdown, SocketAddr, TcpStream},
    process::Command,
    thread,
    time::Instant,
};

struct Setup {
    tembuku: Tembuku,
    front: SocketAddr,
}

/// `keys` are those of the upstream, `backends` the elements of its list.
fn setup(process: &str, listener: &str, keys: &str, backends: &str) -> Setup {
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&format!(
        "[process]\nworkers = 2\n{process}\n[log]\nformat = \"json\"\n\
         access = \"{{dir}}/access.log\"\n[admin]\nsocket = \"{{dir}}/admin.sock\"\n\
         [listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n{listener}\n\
         [upstreams.u]\n{keys}\nbackends = [{backends}]\n"
    ));
    Setup { tembuku, front }
}

fn limited(server: &Server, places: usize) -> String {
    format!(
        "{{ address = \"{}\", max_connections = {places} }}, ",
        server.addr
    )
}

impl Setup {
    #[track_caller]
    fn wait_waiting(&self, wait: &str, count: usize) {
        let labels = [("upstream", "u"), ("wait", wait)];
        self.tembuku
            .wait_metric("upstream_waiting_sessions", &labels, |n| n == count as f64);
    }

    #[track_caller]
    fn wait_closed(&self, reason: &str, count: usize) {
        let labels = [("reason", reason)];
        self.tembuku
            .wait_metric("sessions_closed_total", &labels, |n| n == count as f64);
    }

    /// Waits until the states of all sessions, by their age, are these.
    #[track_caller]
    fn wait_states(&self, states: &[&str]) {
        wait_until(&format!("{states:?}"), secs(10), || {
            let json = self.tembuku.succeed(&["sessions", "--json"]);
            let found: serde_json::Value = serde_json::from_str(&json).unwrap();
            let mut found = found["sessions"].as_array().unwrap().clone();
            found.sort_by_key(|session| session["id"].as_u64());
            let found = found.iter().map(|session| session["state"].as_str());
            found.eq(states.iter().map(|state| Some(*state)))
        });
    }

    #[track_caller]
    fn waits(&self, wait: &str, result: &str) -> f64 {
        let labels = [("upstream", "u"), ("wait", wait), ("result", result)];
        self.tembuku.metric("upstream_waits_total", &labels)
    }

    /// Runs `tembuku WORDS`.
    #[track_caller]
    fn command(&self, words: &[&str]) {
        let socket = self.tembuku.dir.file("admin.sock");
        let mut command = Command::new(binary());
        command
            .args(words)
            .args(["--socket", socket.to_str().unwrap()]);
        let output = proc::run(secs(30), command);
        assert!(output.status.success(), "{words:?}: {}", text(&output));
    }

    #[track_caller]
    fn replace(&self, from: &str, to: &str) {
        let path = self.tembuku.dir.file("tembuku.toml");
        let config = fs::read_to_string(&path).unwrap();
        assert!(config.contains(from), "{from} is not in\n{config}");
        fs::write(path, config.replace(from, to)).unwrap();
    }
}

/// Whether a name has come by now.
fn has_name(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let peeked = stream.peek(&mut [0]);
    stream.set_nonblocking(false).unwrap();
    matches!(peeked, Ok(1))
}

#[test]
fn places_are_given_in_the_order_of_arrival() {
    const WAITING: usize = 12;
    let servers = named(1);
    let setup = setup("", "", "queue_timeout = \"1m\"", &limited(&servers[0], 1));
    let (mut holder, _) = net::session(setup.front).unwrap();
    let first = holder.local_addr().unwrap().port();
    let mut waiting: Vec<TcpStream> = Vec::new();
    for count in 1..=WAITING {
        waiting.push(connect(setup.front).unwrap());
        setup.wait_waiting("queue", count);
    }
    let status = setup.tembuku.get("/api/v1/status").body;
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["upstreams"][0]["queued"], WAITING);
    assert_eq!(setup.tembuku.get("/readyz").status, 200);
    for next in 0..WAITING {
        drop(holder);
        holder = waiting.remove(0);
        assert_eq!(read_line(&mut holder).unwrap(), "b1");
        echo(&mut holder, "served").unwrap();
        let early = waiting.iter().filter(|stream| has_name(stream)).count();
        assert_eq!(early, 0, "after {next}");
    }
    drop(holder);
    setup.tembuku.wait_idle();
    assert_eq!(setup.waits("queue", "served"), WAITING as f64);
    let records = setup.tembuku.access_log(WAITING + 1);
    let waited = |record: &&serde_json::Value| record["queue_time"].as_f64() > Some(0.0);
    assert_eq!(records.iter().filter(waited).count(), WAITING);
    // A place is free before the record of its session is written.
    let first = records.iter().find(|record| record["remote_port"] == first);
    let first = first.expect("the record of the first session");
    assert!(first.get("queue_time").is_none(), "{first}");
}

#[test]
fn the_wait_ends_at_its_limit_and_the_queue_has_an_end() {
    let servers = named(1);
    let keys = "queue_timeout = \"1m\"\nqueue_length = 1";
    let setup = setup("", "", keys, &limited(&servers[0], 1));
    let (_holder, _) = net::session(setup.front).unwrap();
    let longer = connect(setup.front).unwrap();
    setup.wait_waiting("queue", 1);
    assert_ends_now(&mut connect(setup.front).unwrap());
    setup.wait_closed("backends_full", 1);
    reset(longer);
    setup.wait_closed("client_left", 1);
    setup.replace("queue_timeout = \"1m\"", "queue_timeout = \"300ms\"");
    setup.command(&["reload"]);
    let began = Instant::now();
    let mut first = connect(setup.front).unwrap();
    assert!(matches!(read_all(&mut first), (bytes, End::Fin) if bytes.is_empty()));
    assert!(bounded(began.elapsed(), millis(300), secs(10)));
    setup.wait_closed("queue_timeout", 1);
    assert_eq!(setup.waits("queue", "timed_out"), 1.0);
    // The records of the others may come later, though they have been counted.
    let mut records = setup.tembuku.access_log(3).into_iter();
    let record = records.find(|record| record["close_reason"] == "queue_timeout");
    let record = record.expect("the record of a wait that has ended at its limit");
    assert!(record["queue_time"].as_f64() >= Some(0.3), "{record}");
    assert!(record["backend"].is_null());
}

/// Not that it would get a place.
#[test]
fn explain_says_what_becomes_of_a_client_where_no_place_is_free() {
    let server = &named(1)[0];
    let keys = "queue_timeout = \"1m\"\nqueue_length = 1";
    let setup = setup("", "", keys, &limited(server, 1));
    let file = setup.tembuku.dir.file("tembuku.toml");
    let explain = |client: &str| {
        let file = file.to_str().unwrap();
        setup
            .tembuku
            .succeed(&["explain", "--running", "-c", file, "--client", client])
    };
    let backend = server.addr.to_string();
    let answer = |printed: &str| {
        let line = printed.lines().find(|line| line.starts_with("192.0.2.1"));
        line.expect("the client").to_owned()
    };
    assert!(answer(&explain("192.0.2.1")).contains(&backend));
    let _served = connect(setup.front).unwrap();
    setup
        .tembuku
        .wait_metric("backend_active_connections", &[], |n| n == 1.0);
    let full = "all available backends are full: a client that comes now ";
    let _waiting = [
        format!("{full}waits for up to 1m (queue_timeout), behind 0 of 1"),
        format!("{full}is refused, since 1 of 1 wait already"),
    ]
    .map(|note| {
        let printed = explain("192.0.2.1");
        assert!(printed.contains(&note), "{printed}");
        assert!(
            answer(&printed).contains("no backend can be picked"),
            "{printed}"
        );
        let waiting = connect(setup.front).unwrap();
        setup
            .tembuku
            .wait_metric("upstream_waiting_sessions", &[("wait", "queue")], |n| {
                n == 1.0
            });
        waiting
    });
    setup.tembuku.succeed(&["drain", &backend]);
    let note = "no backend is available: a client that comes now is refused (hold_timeout is 0)";
    let printed = explain("192.0.2.1");
    assert!(printed.contains(note), "{printed}");
}

#[test]
fn what_is_sent_while_waiting_is_delivered() {
    const BYTES: usize = 3_000_000;
    let server = Server::start(|mut stream| {
        let count = read_all(&mut stream).0.len();
        let _ = writeln!(stream, "{count}");
    });
    let setup = setup("", "", "queue_timeout = \"1m\"", &limited(&server, 1));
    let holder = connect(setup.front).unwrap();
    let active = || setup.tembuku.metric("backend_active_connections", &[]);
    wait_until("a session on the backend", secs(10), || active() == 1.0);
    let mut waiting = connect(setup.front).unwrap();
    setup.wait_waiting("queue", 1);
    let rss = setup.tembuku.proc.rss();
    let sender = waiting.try_clone().unwrap();
    let sending = thread::spawn(move || {
        (&sender).write_all(&vec![b'x'; BYTES]).unwrap();
        sender.shutdown(Shutdown::Write).unwrap();
    });
    // A client that has ended its side may wait for an answer.
    let mut half_closed = connect(setup.front).unwrap();
    half_closed.write_all(b"12345").unwrap();
    half_closed.shutdown(Shutdown::Write).unwrap();
    setup.wait_waiting("queue", 2);
    assert!(
        setup.tembuku.proc.rss() < rss + 1_000_000,
        "it is kept in the socket"
    );
    drop(holder);
    assert_eq!(read_line(&mut waiting).unwrap(), BYTES.to_string());
    drop(waiting);
    assert_eq!(read_line(&mut half_closed).unwrap(), "5");
    sending.join().unwrap();
}

#[test]
fn a_client_that_leaves_is_noticed() {
    let servers = named(1);
    let setup = setup("", "", "queue_timeout = \"1m\"", &limited(&servers[0], 1));
    let (holder, _) = net::session(setup.front).unwrap();
    // By an end after nothing, and by a reset after something.
    let silent = connect(setup.front).unwrap();
    let mut resets = connect(setup.front).unwrap();
    resets.write_all(b"request").unwrap();
    let mut stays = connect(setup.front).unwrap();
    setup.wait_waiting("queue", 3);
    let cpu = setup.tembuku.proc.cpu();
    drop(silent);
    reset(resets);
    setup.wait_closed("client_left", 2);
    setup.wait_waiting("queue", 1);
    assert_eq!(setup.waits("queue", "left"), 2.0);
    assert!(setup.tembuku.proc.cpu() - cpu < secs(1), "it does not poll");
    drop(holder);
    assert_eq!(read_line(&mut stays).unwrap(), "b1");
    assert_eq!(servers[0].accepted(), 2);
}

/// Where clients never end their side alone, one that does so has left.
#[test]
fn without_half_close_the_end_of_a_client_ends_its_wait() {
    let servers = named(1);
    let keys = "queue_timeout = \"1m\"";
    let setup = setup("", "half_close = false", keys, &limited(&servers[0], 1));
    let (_holder, _) = net::session(setup.front).unwrap();
    let mut client = connect(setup.front).unwrap();
    client.write_all(b"startup").unwrap();
    setup.wait_waiting("queue", 1);
    drop(client);
    setup.wait_closed("client_left", 1);
    setup.wait_waiting("queue", 0);
}

#[test]
fn thousands_that_wait_may_all_leave() {
    // Two descriptors each: what most machines allow a process.
    const CLIENTS: usize = 9_500;
    let servers = named(1);
    let keys = "queue_timeout = \"10m\"\nqueue_length = 20000";
    let setup = setup("", "backlog = 20000", keys, &limited(&servers[0], 1));
    let (holder, _) = net::session(setup.front).unwrap();
    let idle = setup.tembuku.proc.rss();
    let clients: Vec<TcpStream> = (0..CLIENTS)
        .map(|n| {
            let source = [127, 1, (n / 250) as u8, (n % 250) as u8 + 1];
            net::connect_with(setup.front, Some(source.into()), 0, 0).unwrap()
        })
        .collect();
    let soon = || {
        let labels = [("upstream", "u"), ("wait", "queue")];
        setup.tembuku.metric("upstream_waiting_sessions", &labels)
    };
    wait_until("all wait", secs(60), || soon() == CLIENTS as f64);
    let each = (setup.tembuku.proc.rss() - idle) / CLIENTS as u64;
    assert!(each < 8_000, "{each} bytes for each");
    drop(clients);
    wait_until("none waits", secs(60), || soon() == 0.0);
    let mut last = connect(setup.front).unwrap();
    setup.wait_waiting("queue", 1);
    drop(holder);
    assert_eq!(read_line(&mut last).unwrap(), "b1");
    assert_eq!(servers[0].accepted(), 2);
}

#[test]
fn a_reload_with_more_places_serves_at_once() {
    let servers = named(1);
    let setup = setup("", "", "queue_timeout = \"1m\"", &limited(&servers[0], 1));
    let (_holder, _) = net::session(setup.front).unwrap();
    let mut waiting: Vec<_> = (0..2).map(|_| connect(setup.front).unwrap()).collect();
    setup.wait_waiting("queue", 2);
    setup.replace("max_connections = 1 ", "max_connections = 3 ");
    setup.command(&["reload"]);
    for client in &mut waiting {
        assert_eq!(read_line(client).unwrap(), "b1");
    }
}

#[test]
fn a_stop_serves_what_waits_until_drain_timeout() {
    let servers = named(1);
    let process = "drain_timeout = \"4s\"";
    let keys = "queue_timeout = \"1m\"";
    let mut setup = setup(process, "", keys, &limited(&servers[0], 1));
    let (holder, _) = net::session(setup.front).unwrap();
    let mut served = connect(setup.front).unwrap();
    setup.wait_waiting("queue", 1);
    let mut cut = connect(setup.front).unwrap();
    setup.wait_waiting("queue", 2);
    setup.tembuku.proc.signal(Signal::TERM);
    wait_until("draining", secs(10), || {
        setup.tembuku.get("/readyz").status == 503
    });
    drop(holder);
    assert_eq!(read_line(&mut served).unwrap(), "b1");
    assert!(read_all(&mut cut).0.is_empty());
    assert!(setup.tembuku.proc.wait(secs(20)).unwrap().success());
    let records = setup.tembuku.access_log(3);
    let drained = records.iter().filter(|r| r["close_reason"] == "drained");
    assert_eq!(drained.count(), 2, "{records:?}");
}

/// All backends drained, and ready again.
#[test]
fn held_sessions_go_in_once_there_is_a_backend() {
    const HELD: usize = 40;
    let servers = named(2);
    let backends = format!("\"{}\", \"{}\"", servers[0].addr, servers[1].addr);
    let setup = setup("", "", "hold_timeout = \"1m\"", &backends);
    let names: Vec<String> = servers.iter().map(|s| format!("u/{}", s.addr)).collect();
    setup.command(&["drain", &names[0], &names[1]]);
    let mut held: Vec<_> = (0..HELD).map(|_| connect(setup.front).unwrap()).collect();
    setup.wait_waiting("hold", HELD);
    assert_eq!(setup.tembuku.get("/readyz").status, 503);
    setup.command(&["ready", &names[1]]);
    for client in &mut held {
        assert_eq!(read_line(client).unwrap(), "b2");
    }
    assert_eq!(setup.waits("hold", "served"), HELD as f64);
}

/// Without checks and without another backend: nothing but a connect tells that it is back.
#[test]
fn a_held_session_tries_a_refusing_backend_again() {
    let backend = ports::free_addr();
    let setup = setup("", "", "hold_timeout = \"1m\"", &format!("\"{backend}\""));
    let mut held: Vec<_> = (0..20).map(|_| connect(setup.front).unwrap()).collect();
    setup.wait_waiting("hold", held.len());
    let tries = || setup.tembuku.metric("backend_connect_errors_total", &[]);
    // Those that came together, and then one after the other.
    let began = Instant::now();
    let before = tries();
    wait_until("tries", secs(30), || tries() >= before + 5.0);
    assert!(began.elapsed() >= millis(700), "{:?}", began.elapsed());
    let _server = Server::named_on("back", &[backend]);
    for client in &mut held {
        assert_eq!(read_line(client).unwrap(), "back");
    }
    setup.wait_waiting("hold", 0);
    assert_eq!(setup.tembuku.metric("sessions_closed_total", &[]), 0.0);
}

#[test]
fn a_held_session_ends_at_hold_timeout() {
    let setup = setup(
        "",
        "",
        "hold_timeout = \"1m\"\nhold_length = 1",
        "{ address = \"127.0.0.1:1\", down = true }",
    );
    let longer = connect(setup.front).unwrap();
    setup.wait_waiting("hold", 1);
    assert_ends_now(&mut connect(setup.front).unwrap());
    setup.wait_closed("no_backend", 1);
    reset(longer);
    setup.wait_closed("client_left", 1);
    setup.replace("hold_timeout = \"1m\"", "hold_timeout = \"300ms\"");
    setup.command(&["reload"]);
    let mut first = connect(setup.front).unwrap();
    assert!(read_all(&mut first).0.is_empty());
    setup.wait_closed("hold_timeout", 1);
}

/// A backend dies while sessions wait for a place there: they are held, and go to another.
#[test]
fn what_waits_for_a_place_is_held_when_the_backend_dies() {
    let servers = named(2);
    let checked = "queue_timeout = \"1m\"\nhold_timeout = \"1m\"\n\
                   check = { kind = \"tcp\", interval = \"100ms\", timeout = \"100ms\", \
                   fall = 1, rise = 1 }";
    let [first, second] = [&servers[0], &servers[1]].map(|s| limited(s, 1));
    let setup = setup("", "", checked, &format!("{first}{second}"));
    let names: Vec<String> = servers.iter().map(|s| format!("u/{}", s.addr)).collect();
    setup.command(&["drain", &names[1]]);
    let (_holder, name) = poll(secs(10), || net::session(setup.front).ok()).unwrap();
    assert_eq!(name, "b1");
    let mut waiting = connect(setup.front).unwrap();
    setup.wait_waiting("queue", 1);
    setup.wait_states(&["relaying", "queued"]);
    setup.command(&["maint", &names[0]]);
    setup.wait_waiting("hold", 1);
    setup.wait_states(&["relaying", "held"]);
    setup.command(&["ready", &names[1]]);
    assert_eq!(read_line(&mut waiting).unwrap(), "b2");
    setup.wait_states(&["relaying", "relaying"]);
}

/// A key waits for its own backend, then takes another.
#[test]
fn a_client_waits_for_the_backend_of_its_key_first() {
    let servers = named(2);
    let [first, second] = [&servers[0], &servers[1]].map(|s| limited(s, 1));
    let keys = "balance = \"consistent_hash\"\nqueue_timeout = \"1m\"\nqueue_stick = \"400ms\"";
    let setup = setup("", "", keys, &format!("{first}{second}"));
    let (holder, own) = net::session(setup.front).unwrap();
    let began = Instant::now();
    let (other_session, other) = net::session(setup.front).unwrap();
    assert!(bounded(began.elapsed(), millis(400), secs(10)));
    assert_ne!(own, other);
    let mut waits = connect(setup.front).unwrap();
    setup.wait_waiting("queue", 1);
    drop(holder);
    assert_eq!(read_line(&mut waits).unwrap(), own);
    drop(other_session);
}
