//! Hosts that vanish with data on the way, in a network of the test's own; and readers that only
//! pause.

use crate::harness::{
    bounded, millis,
    net::{self, End, connect, connect_with, echo, read_all},
    ports,
    proc::run_ok,
    programs, secs,
    server::Server,
    tembuku::Tembuku,
    wait_until,
};
use std::{
    io::Write,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    process::Command,
    thread,
    time::Instant,
};

const LOST: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 9, 1));

fn nft(rules: &str) {
    let mut command = Command::new("nft");
    command.arg(rules);
    run_ok(secs(10), command);
}

/// Nothing reaches this host any more, and nothing comes from it.
fn vanish(host: IpAddr) {
    nft("add table inet gone");
    nft("add chain inet gone out { type filter hook output priority 0; }");
    nft(&format!("add rule inet gone out ip daddr {host} drop"));
    nft(&format!("add rule inet gone out ip saddr {host} drop"));
}

/// As long as keepalive takes: 4 s.
const KEEPALIVE: &str =
    "keepalive = { idle = \"1s\", interval = \"1s\", count = 3 }\nidle_timeout = \"0s\"";

fn front_of(backend: SocketAddr, listener: &str, upstream: &str) -> (Tembuku, SocketAddr) {
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&format!(
        "[log]\naccess = \"{{dir}}/access.log\"\n\
         [listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n{listener}\n\
         [upstreams.u]\n{upstream}\n\
         backends = [{{ address = \"{backend}\", fail_timeout = \"1m\" }}, {{ address = \
         \"127.0.0.1:1\", backup = true }}]\n"
    ));
    (tembuku, front)
}

fn on_lost() -> Server {
    Server::named_on("b", &[SocketAddr::new(LOST, ports::free_port())])
}

/// Within the first second, too, before keepalive is set at the backend.
#[test]
fn a_request_to_a_host_that_vanished_ends() {
    if programs::place().is_none() {
        return programs::again_in_own_place("dead_host::a_request_to_a_host_that_vanished_ends");
    }
    let server = on_lost();
    let (tembuku, front) = front_of(server.addr, KEEPALIVE, "");
    let (mut client, _) = net::session(front).unwrap();
    echo(&mut client, "before").unwrap();
    vanish(LOST);
    let began = Instant::now();
    client.write_all(b"select\n").unwrap();
    client.set_read_timeout(Some(secs(20))).unwrap();
    assert_eq!(read_all(&mut client), (vec![], End::Reset));
    let lasted = began.elapsed();
    assert!(bounded(lasted, millis(3_900), secs(12)), "{lasted:?}");
    tembuku.assert_closed_as("backend_timed_out");
    // It was a session that failed, not a connect.
    let failed = [("state", "failed")];
    assert_eq!(tembuku.metric("backend_state", &failed), 0.0);
    assert_eq!(tembuku.metric("backend_connect_errors_total", &[]), 0.0);
}

#[test]
fn it_counts_as_a_failed_connect_where_resets_do() {
    if programs::place().is_none() {
        return programs::again_in_own_place(
            "dead_host::it_counts_as_a_failed_connect_where_resets_do",
        );
    }
    let (server, streams) = Server::held_on(SocketAddr::new(LOST, ports::free_port()), |_| {});
    let (tembuku, front) = front_of(server.addr, KEEPALIVE, "fail_on_reset = true");
    let mut client = connect(front).unwrap();
    let _held = streams.recv_timeout(secs(10)).unwrap();
    vanish(LOST);
    client.write_all(b"select\n").unwrap();
    client.set_read_timeout(Some(secs(20))).unwrap();
    assert_eq!(read_all(&mut client), (vec![], End::Reset));
    tembuku.assert_closed_as("backend_timed_out");
    tembuku.wait_metric("backend_state", &[("state", "failed")], |n| n == 1.0);
}

/// What was received before is still delivered.
#[test]
fn bytes_from_the_host_are_delivered_first() {
    if programs::place().is_none() {
        return programs::again_in_own_place("dead_host::bytes_from_the_host_are_delivered_first");
    }
    let payload = vec![7; 2 << 20];
    let (server, streams) = Server::held_on(SocketAddr::new(LOST, ports::free_port()), |_| {});
    let (tembuku, front) = front_of(server.addr, KEEPALIVE, "");
    let mut client = connect_with(front, None, 16 * 1024, 0).unwrap();
    let mut backend = streams.recv_timeout(secs(10)).unwrap();
    backend.write_all(&payload).unwrap();
    net::wait_delivered(&backend).unwrap();
    vanish(LOST);
    client.write_all(b"more?").unwrap();
    tembuku.wait_metric("backend_received_bytes_total", &[], |n| n > 0.0);
    // Longer than it takes to notice.
    thread::sleep(secs(7));
    client.set_read_timeout(Some(secs(20))).unwrap();
    let (got, end) = read_all(&mut client);
    assert_eq!((got.len(), end), (payload.len(), End::Reset));
    tembuku.assert_closed_as("backend_timed_out");
}

#[test]
fn a_client_that_vanished_ends_its_session() {
    if programs::place().is_none() {
        return programs::again_in_own_place("dead_host::a_client_that_vanished_ends_its_session");
    }
    let (server, streams) = Server::held();
    let (tembuku, front) = front_of(server.addr, KEEPALIVE, "");
    let _client = connect_with(front, Some(LOST), 0, 0).unwrap();
    let mut backend: TcpStream = streams.recv_timeout(secs(10)).unwrap();
    vanish(LOST);
    backend.write_all(b"pushed\n").unwrap();
    backend.set_read_timeout(Some(secs(20))).unwrap();
    assert_eq!(read_all(&mut backend), (vec![], End::Reset));
    tembuku.assert_closed_as("client_timed_out");
}

/// Keepalive's own verdict has the same name.
#[test]
fn an_idle_session_of_a_host_that_vanished_has_timed_out() {
    if programs::place().is_none() {
        return programs::again_in_own_place(
            "dead_host::an_idle_session_of_a_host_that_vanished_has_timed_out",
        );
    }
    let server = on_lost();
    let (tembuku, front) = front_of(server.addr, KEEPALIVE, "");
    let (mut client, _) = net::session(front).unwrap();
    vanish(LOST);
    client.set_read_timeout(Some(secs(20))).unwrap();
    assert_eq!(read_all(&mut client), (vec![], End::Reset));
    tembuku.assert_closed_as("backend_timed_out");
}

/// Its host answers every probe: TCP_USER_TIMEOUT would reset it.
#[test]
fn a_reader_that_pauses_is_not_dead() {
    let payload = vec![7; 16 << 20];
    for key in [
        "user_timeout = \"1s\"",
        "keepalive = { idle = \"1s\", interval = \"1s\", count = 1 }",
    ] {
        let sent = payload.clone();
        let server = Server::start(move |mut stream| {
            let _ = stream.write_all(&sent);
        });
        let (tembuku, front) = front_of(server.addr, key, "");
        let mut client = connect(front).unwrap();
        tembuku.wait_metric("listener_sent_bytes_total", &[], |n| n > 0.0);
        // Four times as long as the limit.
        thread::sleep(secs(6));
        let (got, end) = read_all(&mut client);
        assert_eq!((got.len(), end), (payload.len(), End::Fin), "{key}");
        drop(client);
        tembuku.assert_closed_as("ok");
    }
}

/// The kernel probes a closed window at intervals that double while the pause lasts.
#[test]
fn a_client_that_paused_and_then_vanished_ends_its_session() {
    if programs::place().is_none() {
        return programs::again_in_own_place(
            "dead_host::a_client_that_paused_and_then_vanished_ends_its_session",
        );
    }
    let server = Server::start(|mut stream| {
        let _ = stream.write_all(&vec![7; 64 << 20]);
    });
    let (tembuku, front) = front_of(server.addr, KEEPALIVE, "");
    let _client = connect_with(front, Some(LOST), 8 * 1024, 0).unwrap();
    tembuku.wait_metric("listener_sent_bytes_total", &[], |n| n > 0.0);
    // Twice the limit: a reader that only pauses is not cut.
    thread::sleep(secs(8));
    assert_eq!(tembuku.metric("listener_active_connections", &[]), 1.0);
    vanish(LOST);
    let labels = [("reason", "client_timed_out")];
    wait_until("the session is over", secs(25), || {
        tembuku.metric("sessions_closed_total", &labels) == 1.0
    });
}
