//! Flows that wait: for a place at a full backend, for a fit backend, and for the rate. The
//! datagram that began a flow is kept.

use crate::harness::{
    ports, proc, secs,
    server::Server,
    tembuku::{Tembuku, binary},
    udp::{UdpServer, addrs, ask, client, config, named, receive_if_any, receive_text, serve},
    wait_until,
};
use rustix::process::Signal;
use std::{
    net::{SocketAddr, UdpSocket},
    process::Command,
    time::{Duration, Instant},
};

/// One place at its only backend.
fn limited(listener: &str, upstream: &str, server: &UdpServer) -> (SocketAddr, Tembuku) {
    let front = ports::free_addr();
    let config = with_places(
        1,
        &config(front, listener, upstream, &[server.addr]),
        server,
    );
    (front, Tembuku::start(&config))
}

/// The same configuration, with so many places at a backend.
fn with_places(places: usize, config: &str, server: &UdpServer) -> String {
    let addr = server.addr;
    let from = format!("[\"{addr}\"]");
    assert!(config.contains(&from), "{config}");
    let to = format!("[{{ address = \"{addr}\", max_connections = {places} }}]");
    config.replace(&from, &to)
}

impl Tembuku {
    #[track_caller]
    fn wait_flows_waiting(&self, wait: &str, count: usize) {
        let labels = [("upstream", "u"), ("wait", wait)];
        self.wait_metric("upstream_waiting_sessions", &labels, |n| n == count as f64);
    }

    #[track_caller]
    fn operate(&self, words: &[&str]) {
        let mut command = Command::new(binary());
        command.args(words);
        command.arg("--socket").arg(self.dir.file("admin.sock"));
        let output = proc::output(&mut command);
        assert!(output.status.success(), "{words:?}: {output:?}");
    }

    /// Ends the flows that have this backend.
    #[track_caller]
    fn kill_on(&self, server: &UdpServer) {
        self.operate(&["kill", "--backend", &server.addr.to_string()]);
    }
}

#[test]
fn a_flow_waits_for_a_place_with_its_first_datagram() {
    let server = UdpServer::named("b1");
    let (front, tembuku) = limited("", "queue_timeout = \"1m\"", &server);
    let holder = client(front);
    assert_eq!(ask(&holder, "holds"), "b1 holds");
    let waiting: Vec<UdpSocket> = (0..3).map(|_| client(front)).collect();
    for (n, client) in waiting.iter().enumerate() {
        client.send(format!("first {n}").as_bytes()).unwrap();
        tembuku.wait_flows_waiting("queue", n + 1);
        client.send(b"second").unwrap();
        tembuku.wait_dropped("waiting", n as f64 + 1.0);
    }
    assert_eq!(tembuku.get("/readyz").status, 200);
    for (n, client) in waiting.iter().enumerate() {
        assert_eq!(receive_if_any(client), None);
        tembuku.kill_on(&server);
        assert_eq!(receive_text(client), format!("b1 first {n}"));
        // From now on it is a flow like any other.
        assert_eq!(ask(client, "more"), "b1 more");
    }
    tembuku.wait_flows_waiting("queue", 0);
    let served = [("wait", "queue"), ("result", "served")];
    assert_eq!(tembuku.metric("upstream_waits_total", &served), 3.0);
    tembuku.kill_on(&server);
    let records = tembuku.access_log(4);
    let waited = records
        .iter()
        .filter(|r| r["queue_time"].as_f64() > Some(0.0));
    let received: Vec<_> = waited.map(|r| &r["datagrams_received"]).collect();
    assert_eq!(received, [2, 2, 2], "{records:?}");
    assert_eq!(server.peers().len(), 4);
}

#[test]
fn the_wait_of_a_flow_ends_at_its_limit_and_the_line_has_an_end() {
    let server = UdpServer::named("b1");
    let front = ports::free_addr();
    let config = |timeout: &str| {
        let keys = format!("queue_timeout = \"{timeout}\"\nqueue_length = 1");
        with_places(1, &config(front, "", &keys, &[server.addr]), &server)
    };
    let tembuku = Tembuku::start(&config("1m"));
    let holder = client(front);
    ask(&holder, "holds");
    let longer = client(front);
    longer.send(b"longer").unwrap();
    tembuku.wait_flows_waiting("queue", 1);
    client(front).send(b"one too many").unwrap();
    tembuku.wait_closed("backends_full", 1.0);
    tembuku.kill_on(&server);
    assert_eq!(receive_text(&longer), "b1 longer");
    tembuku.reload(&config("400ms"));
    let began = Instant::now();
    let waits = client(front);
    waits.send(b"in vain").unwrap();
    tembuku.wait_closed("queue_timeout", 1.0);
    assert!(began.elapsed() >= Duration::from_millis(400));
    tembuku.wait_dropped("backends_full", 2.0);
    tembuku.wait_flows(1.0);
    assert_eq!(server.taken(), 2);
}

#[test]
fn held_flows_go_in_once_there_is_a_backend() {
    let servers = named(1);
    let (front, tembuku) = serve("", "hold_timeout = \"1m\"", &servers);
    let name = format!("u/{}", servers[0].addr);
    let existing = client(front);
    ask(&existing, "before");
    tembuku.operate(&["maint", &name]);
    let clients: Vec<UdpSocket> = (0..20).map(|_| client(front)).collect();
    for (n, client) in clients.iter().enumerate() {
        client.send(n.to_string().as_bytes()).unwrap();
    }
    tembuku.wait_flows_waiting("hold", 20);
    tembuku.operate(&["ready", &name]);
    for (n, client) in clients.iter().enumerate() {
        assert_eq!(receive_text(client), format!("b1 {n}"));
    }
    tembuku.wait_flows_waiting("hold", 0);
    assert_eq!(ask(&existing, "after"), "b1 after");
}

/// Its backend goes away and there is no other: its next datagram is kept, and not lost.
#[test]
fn a_flow_that_must_leave_its_backend_is_held() {
    let servers = named(2);
    let keys = "hold_timeout = \"1m\"\nbalance = \"first\"\non_down = \"close\"\n\
                check = { kind = \"tcp\", interval = \"100ms\", timeout = \"100ms\", \
                fall = 1, rise = 1 }";
    let check = Server::named_on("up", &[servers[0].addr]);
    let (front, tembuku) = serve("", keys, &servers);
    let at = |n: usize| format!("u/{}", servers[n].addr);
    tembuku.wait_metric("upstream_available_backends", &[], |n| n == 1.0);
    let client = client(front);
    assert_eq!(ask(&client, "before"), "b1 before");
    drop(check);
    tembuku.wait_metric("upstream_available_backends", &[], |n| n == 0.0);
    wait_until("the flow has ended or waits", secs(10), || {
        client.send(b"kept").unwrap();
        tembuku.metric("upstream_waiting_sessions", &[("wait", "hold")]) == 1.0
    });
    let _check = Server::named_on("up", &[servers[1].addr]);
    assert_eq!(receive_text(&client), "b2 kept");
    assert_eq!(ask(&client, "after"), "b2 after", "{}", at(1));
}

/// With `requests = 1` each datagram begins a flow.
#[test]
fn each_query_of_a_client_may_wait() {
    let servers = named(1);
    let listener = "requests = 1\nresponses = 1";
    let (front, tembuku) = serve(listener, "hold_timeout = \"1m\"", &servers);
    let name = format!("u/{}", servers[0].addr);
    let client = client(front);
    for n in 0..5 {
        assert_eq!(ask(&client, "at once"), "b1 at once");
        tembuku.operate(&["drain", &name]);
        client.send(n.to_string().as_bytes()).unwrap();
        tembuku.wait_flows_waiting("hold", 1);
        tembuku.operate(&["ready", &name]);
        assert_eq!(receive_text(&client), format!("b1 {n}"));
    }
    tembuku.wait_flows_waiting("hold", 0);
}

#[test]
fn flows_that_begin_too_early_wait_for_their_turn() {
    const FLOWS: usize = 30;
    let servers = named(1);
    let keys = "connection_rate = \"20/s\"\nover_rate = \"delay\"";
    let (front, tembuku) = serve(keys, "", &servers);
    let began = Instant::now();
    let clients: Vec<UdpSocket> = (0..FLOWS).map(|_| client(front)).collect();
    for (n, client) in clients.iter().enumerate() {
        client.send(n.to_string().as_bytes()).unwrap();
    }
    for (n, client) in clients.iter().enumerate() {
        assert_eq!(receive_text(client), format!("b1 {n}"));
    }
    // Twenty at once, and one in 50 ms from then on.
    assert!(began.elapsed() >= Duration::from_millis(450));
    let labels = [("limit", "connection_rate"), ("result", "delayed")];
    let delayed = tembuku.metric("listener_over_limit_total", &labels);
    assert!((1.0..=10.0).contains(&delayed), "{delayed}");
    assert_eq!(tembuku.metric("listener_rejected_total", &[]), 0.0);
}

#[test]
fn a_reload_with_more_places_serves_flows_at_once() {
    let server = UdpServer::named("b1");
    let (front, keys) = (ports::free_addr(), "queue_timeout = \"1m\"");
    let config = config(front, "", keys, &[server.addr]);
    let tembuku = Tembuku::start(&with_places(1, &config, &server));
    let holder = client(front);
    ask(&holder, "holds");
    let waiting: Vec<UdpSocket> = (0..4).map(|_| client(front)).collect();
    for (n, client) in waiting.iter().enumerate() {
        client.send(n.to_string().as_bytes()).unwrap();
        tembuku.wait_flows_waiting("queue", n + 1);
    }
    // Other keys, and the same places: nothing changes for those in the line.
    let other = config.replace("queue_timeout", "queue_length = 2\nqueue_timeout");
    tembuku.reload(&with_places(1, &other, &server));
    tembuku.wait_flows_waiting("queue", 4);
    tembuku.reload(&with_places(3, &config, &server));
    for (n, client) in waiting.iter().take(2).enumerate() {
        assert_eq!(receive_text(client), format!("b1 {n}"));
    }
    tembuku.wait_flows_waiting("queue", 2);
    assert_eq!(receive_if_any(&waiting[2]), None);
    tembuku.reload(&with_places(9, &config, &server));
    for (n, client) in waiting.iter().enumerate().skip(2) {
        assert_eq!(receive_text(client), format!("b1 {n}"));
    }
    tembuku.wait_flows_waiting("queue", 0);
    assert_eq!(ask(&holder, "still"), "b1 still");
}

/// The datagrams that were kept go to the backend that the file names now.
#[test]
fn a_reload_with_another_backend_serves_held_flows() {
    let servers = named(2);
    let front = ports::free_addr();
    let keys = "hold_timeout = \"1m\"";
    let with = |backend: usize| config(front, "", keys, &[servers[backend].addr]);
    let tembuku = Tembuku::start(&with(0));
    tembuku.operate(&["maint", &format!("u/{}", servers[0].addr)]);
    let clients: Vec<UdpSocket> = (0..10).map(|_| client(front)).collect();
    for (n, client) in clients.iter().enumerate() {
        client.send(n.to_string().as_bytes()).unwrap();
    }
    tembuku.wait_flows_waiting("hold", 10);
    tembuku.reload(&with(1));
    for (n, client) in clients.iter().enumerate() {
        assert_eq!(receive_text(client), format!("b2 {n}"));
        assert_eq!(ask(client, "more"), "b2 more");
    }
    tembuku.wait_flows_waiting("hold", 0);
    assert_eq!(servers[0].taken(), 0);
}

/// They wait on, as its other flows go on.
#[test]
fn flows_of_a_listener_that_is_removed_are_served_still() {
    let servers = named(1);
    let (front, other) = (ports::free_addr(), ports::free_addr());
    let keys = "hold_timeout = \"1m\"";
    let with = |front| config(front, "", keys, &[servers[0].addr]);
    let tembuku = Tembuku::start(&with(front));
    let name = format!("u/{}", servers[0].addr);
    tembuku.operate(&["maint", &name]);
    let waits = client(front);
    waits.send(b"kept").unwrap();
    tembuku.wait_flows_waiting("hold", 1);
    tembuku.reload(&with(other));
    let late = client(other);
    late.send(b"late").unwrap();
    tembuku.wait_flows_waiting("hold", 2);
    tembuku.operate(&["ready", &name]);
    assert_eq!(receive_text(&waits), "b1 kept");
    assert_eq!(receive_text(&late), "b1 late");
    tembuku.wait_flows_waiting("hold", 0);
}

/// A drain of the node lets no new client in; those that wait are served.
#[test]
fn a_drain_of_the_node_leaves_flows_that_wait_alone() {
    let servers = named(1);
    let (front, tembuku) = serve("", "hold_timeout = \"1m\"", &servers);
    let name = format!("u/{}", servers[0].addr);
    tembuku.operate(&["maint", &name]);
    let waits = client(front);
    waits.send(b"kept").unwrap();
    tembuku.wait_flows_waiting("hold", 1);
    tembuku.operate(&["drain", "--node"]);
    tembuku.operate(&["ready", &name]);
    assert_eq!(receive_text(&waits), "b1 kept");
    assert_eq!(ask(&waits, "more"), "b1 more");
}

#[test]
fn a_stop_does_not_wait_for_flows_that_wait() {
    let servers = named(1);
    let (front, mut tembuku) = serve("", "hold_timeout = \"1m\"", &servers);
    tembuku.operate(&["drain", &format!("u/{}", servers[0].addr)]);
    let waits = client(front);
    waits.send(b"in vain").unwrap();
    tembuku.wait_flows_waiting("hold", 1);
    let began = Instant::now();
    tembuku.proc.signal(Signal::TERM);
    assert!(tembuku.proc.wait(secs(20)).unwrap().success());
    assert!(began.elapsed() < secs(15));
    let record = tembuku.access_log(1).remove(0);
    assert_eq!(record["close_reason"], "drained", "{record}");
    assert_eq!(addrs(&servers).len(), 1);
}
