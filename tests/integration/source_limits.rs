//! `max_connections_per_source` of connections; that of flows is in `udp_limits`.

use crate::harness::{
    net::{End, connect, connect_with, echo, read_all, read_line, reset},
    ports,
    programs::Nginx,
    proxy::{connect_saying, v1, v2},
    secs,
    server::{Server, listener_before, named},
    tembuku::Tembuku,
    wait_until,
};
use std::{
    io::Write,
    net::{IpAddr, SocketAddr, TcpStream},
};

fn at(third: u8, last: u8) -> IpAddr {
    IpAddr::from([127, 7, third, last])
}

/// A session of this source, if it gets one.
fn try_session(source: IpAddr, front: SocketAddr) -> Option<TcpStream> {
    let mut stream = connect_with(front, Some(source), 0, 0).unwrap();
    read_line(&mut stream).ok().map(|_| stream)
}

fn is_served(sessions: &[Option<TcpStream>]) -> Vec<bool> {
    sessions.iter().map(Option::is_some).collect()
}

const REASON: [(&str, &str); 1] = [("reason", "max_connections_per_source")];

#[test]
fn no_source_has_more_than_its_sessions() {
    let servers = named(1);
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&listener_before(
        &servers,
        front,
        "max_connections_per_source = 2",
    ));
    let mut noisy: Vec<_> = (0..4).map(|_| try_session(at(0, 1), front)).collect();
    assert_eq!(is_served(&noisy), [true, true, false, false]);
    assert_eq!(tembuku.metric("listener_rejected_total", &REASON), 2.0);
    let mut other = try_session(at(0, 2), front).expect("another source is served");
    echo(&mut other, "and stays").unwrap();
    let record = tembuku.access_log(2).remove(1);
    assert_eq!(record["close_reason"], "max_connections_per_source");
    assert_eq!(record["remote_addr"], "127.7.0.1", "{record}");
    // A place is free again when a session has ended, and is one place.
    drop(noisy.remove(0));
    tembuku.wait_metric("listener_active_connections", &[], |n| n == 2.0);
    let again: Vec<_> = (0..2).map(|_| try_session(at(0, 1), front)).collect();
    assert_eq!(is_served(&again), [true, false]);
}

#[test]
fn a_network_is_one_source() {
    let servers = named(1);
    let front = ports::free_addr();
    let keys = "max_connections_per_source = 2\nsource_prefix = { v4 = 24 }";
    let _tembuku = Tembuku::start(&listener_before(&servers, front, keys));
    let sessions: Vec<_> = [at(1, 1), at(1, 2), at(1, 3), at(2, 3)]
        .map(|source| try_session(source, front))
        .into();
    assert_eq!(is_served(&sessions), [true, true, false, true]);
}

/// All of them come from one proxy.
#[test]
fn clients_behind_a_proxy_are_distinguished() {
    let servers = named(1);
    let front = ports::free_addr();
    let keys = "max_connections_per_source = 1\naccept_proxy = true";
    let tembuku = Tembuku::start(&listener_before(&servers, front, keys));
    let try_client = |header: &[u8]| {
        let mut stream = connect_saying(front, header);
        read_line(&mut stream).ok().map(|_| stream)
    };
    let local = "127.0.0.1:1";
    let headers = [
        v1("192.0.2.1:5", local),
        v2("192.0.2.1:6", local, &[]),
        v2("192.0.2.2:5", local, &[]),
        v2("[2001:db8::1]:5", "[::1]:1", &[]),
        // The same /64.
        v2("[2001:db8::2]:5", "[::1]:1", &[]),
        v2("[2001:db8:0:1::2]:5", "[::1]:1", &[]),
        // The proxy itself.
        b"PROXY UNKNOWN\r\n".to_vec(),
    ];
    let sessions: Vec<_> = headers.iter().map(|header| try_client(header)).collect();
    let expected = [true, false, true, true, false, true, true];
    assert_eq!(is_served(&sessions), expected);
    assert_eq!(tembuku.metric("listener_rejected_total", &REASON), 2.0);
    let record = tembuku.access_log(1).remove(0);
    assert_eq!(record["close_reason"], "max_connections_per_source");
    assert_eq!(record["remote_addr"], "192.0.2.1", "{record}");
    drop(sessions);
    tembuku.wait_idle();
    let again: Vec<_> = headers.iter().map(|header| try_client(header)).collect();
    assert_eq!(is_served(&again), expected);
}

#[test]
fn a_dry_run_counts_and_lets_pass() {
    let servers = named(1);
    let front = ports::free_addr();
    let keys = "max_connections_per_source = 1";
    let dry = format!("{keys}\nlimits_dry_run = true");
    let tembuku = Tembuku::start(&listener_before(&servers, front, &dry));
    let sessions: Vec<_> = (0..4).map(|_| try_session(at(3, 1), front)).collect();
    assert_eq!(is_served(&sessions), [true; 4]);
    let labels = [
        ("limit", "max_connections_per_source"),
        ("result", "passed"),
    ];
    assert_eq!(tembuku.metric("listener_over_limit_total", &labels), 3.0);
    assert_eq!(tembuku.metric("listener_rejected_total", &REASON), 0.0);
    // In earnest from a reload on: those that were let pass count.
    tembuku.reload(&listener_before(&servers, front, keys));
    assert!(try_session(at(3, 1), front).is_none());
    drop(sessions);
    tembuku.wait_idle();
    assert!(try_session(at(3, 1), front).is_some());
}

#[test]
fn a_reload_changes_the_limit_and_the_prefix() {
    let servers = named(1);
    let front = ports::free_addr();
    let keys = |most: u32, prefix: u32| {
        let keys =
            format!("max_connections_per_source = {most}\nsource_prefix = {{ v4 = {prefix} }}");
        listener_before(&servers, front, &keys)
    };
    let tembuku = Tembuku::start(&keys(1, 32));
    let first = try_session(at(4, 0), front).expect("served");
    assert!(try_session(at(4, 0), front).is_none());
    tembuku.reload(&keys(2, 32));
    let second = try_session(at(4, 0), front).expect("served");
    assert!(try_session(at(4, 0), front).is_none());
    // What counted for an address does not count for its network, and is given back as it was
    // taken.
    tembuku.reload(&keys(1, 24));
    let third = try_session(at(4, 0), front).expect("served");
    assert!(try_session(at(4, 9), front).is_none());
    drop((first, second));
    tembuku.wait_metric("listener_active_connections", &[], |n| n == 1.0);
    assert!(try_session(at(4, 9), front).is_none());
    drop(third);
    tembuku.wait_idle();
    assert!(try_session(at(4, 9), front).is_some());
}

/// The same arrivals, with the same settings.
#[test]
fn nginx_serves_the_same_clients() {
    let servers = named(1);
    let fronts = [ports::free_addr(), ports::free_addr()];
    let _nginx = Nginx::start(
        fronts[0],
        &format!(
            "stream {{ limit_conn_zone $binary_remote_addr zone=a:1m;\n\
             server {{ listen {}; limit_conn a 3; proxy_pass {}; }} }}",
            fronts[0], servers[0].addr
        ),
    );
    let tembuku = Tembuku::start(&listener_before(
        &servers,
        fronts[1],
        "max_connections_per_source = 3",
    ));
    let served = fronts.map(|front| {
        let arrive = |n: u8| try_session(at(5, n % 3), front);
        let mut sessions: Vec<_> = (0..12).map(arrive).collect();
        let before = is_served(&sessions);
        // One source leaves.
        for session in sessions.iter_mut().step_by(3) {
            *session = None;
        }
        wait_until("the places are free", secs(10), || {
            let again: Vec<_> = (0..4).map(|_| try_session(at(5, 0), front)).collect();
            is_served(&again) == [true, true, true, false]
        });
        before
    });
    assert_eq!(served[0], served[1]);
    assert_eq!(served[1].iter().filter(|served| **served).count(), 9);
    assert_eq!(tembuku.metric("backend_connect_errors_total", &[]), 0.0);
}

/// What the client has sent is still on its way to the backend, which reads nothing for now.
#[test]
fn a_client_that_has_left_counts_no_more() {
    // More than the kernel receives for a program that does not read.
    const SENT: usize = 200_000;
    let fin: (fn(TcpStream), _) = (drop, End::Fin);
    let endings = [
        ("half_close = false", fin),
        ("half_close = true", (reset, End::Reset)),
    ];
    for (keys, (leave, end)) in endings {
        let (server, streams) = Server::held();
        let front = ports::free_addr();
        let tembuku = Tembuku::start(&format!(
            "[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\nmax_connections = 1\n\
             max_connections_per_source = 1\n{keys}\n\
             [upstreams.u]\nbackends = [\"{}\"]\n",
            server.addr
        ));
        let mut client = connect(front).unwrap();
        client.write_all(&[7; SENT]).unwrap();
        tembuku.wait_metric("backend_sent_bytes_total", &[], |n| n == SENT as f64);
        leave(client);
        tembuku.wait_metric("listener_active_connections", &[], |n| n == 0.0);
        // The place at the backend is taken until its connection is closed.
        assert_eq!(tembuku.metric("backend_active_connections", &[]), 1.0);
        let mut next = connect(front).unwrap();
        next.write_all(b"next").unwrap();
        let [mut first, mut second] = [(); 2].map(|()| streams.recv_timeout(secs(10)).unwrap());
        drop(next);
        let got = read_all(&mut first);
        assert_eq!((got.0.len(), got.1), (SENT, end), "{keys}");
        assert_eq!(read_all(&mut second), (b"next".to_vec(), End::Fin));
        drop((first, second));
        tembuku.wait_metric("backend_active_connections", &[], |n| n == 0.0);
        assert_eq!(tembuku.metric("listener_rejected_total", &[]), 0.0);
    }
}

/// Each comes when the one before has left, and the backend closes none of their connections.
#[test]
fn clients_one_after_another_are_served_as_by_nginx() {
    const CLIENTS: usize = 60;
    let (server, streams) = Server::held_on(SocketAddr::from(([127, 0, 0, 1], 0)), |stream| {
        stream.write_all(b"b\n").unwrap();
    });
    let fronts = [ports::free_addr(), ports::free_addr()];
    let _nginx = Nginx::start(
        fronts[0],
        &format!(
            "stream {{ limit_conn_zone $binary_remote_addr zone=a:1m;\n\
             server {{ listen {}; limit_conn a 3; proxy_pass {}; }} }}",
            fronts[0], server.addr
        ),
    );
    let tembuku = Tembuku::start(&format!(
        "[listeners.l]\nbind = \"{}\"\nupstream = \"u\"\nmax_connections_per_source = 3\n\
         half_close = false\n[upstreams.u]\nbackends = [\"{}\"]\n",
        fronts[1], server.addr
    ));
    for front in fronts {
        let served = (0..CLIENTS).filter(|_| try_session(at(6, 1), front).is_some());
        assert_eq!(served.count(), CLIENTS);
    }
    assert_eq!(tembuku.metric("listener_rejected_total", &[]), 0.0);
    for _ in 0..2 * CLIENTS {
        streams.recv_timeout(secs(10)).unwrap();
    }
}
