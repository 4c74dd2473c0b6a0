//! `connection_rate`, `connection_rate_per_source` and `over_rate`.

use crate::harness::{
    net::{connect_with, read_line},
    ports,
    programs::Haproxy,
    proxy::{connect_saying, v1},
    secs,
    server::{listener_before, named},
    tembuku::Tembuku,
    udp::{UdpServer, V4, client, client_from, receive_if_any},
    wait_until,
};
use std::{
    net::{IpAddr, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

fn at(last: u8) -> IpAddr {
    IpAddr::from([127, 6, 6, last])
}

/// Whether a backend greets a client from there.
fn is_served(source: IpAddr, front: SocketAddr) -> bool {
    connect_with(front, Some(source), 0, 0)
        .and_then(|mut stream| read_line(&mut stream))
        .is_ok()
}

/// What a bucket gives that was full at the beginning.
fn most(burst: f64, rate: f64, began: Instant) -> usize {
    (burst + rate * began.elapsed().as_secs_f64()) as usize
}

#[test]
fn connections_over_the_rate_are_refused() {
    let servers = named(1);
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&listener_before(
        &servers,
        front,
        "connection_rate = \"10/s\"",
    ));
    let began = Instant::now();
    let served = (0..40).filter(|n| is_served(at(*n), front)).count();
    let most = most(10.0, 10.0, began);
    assert!((10..=most).contains(&served), "{served} of at most {most}");
    let labels = [("reason", "connection_rate")];
    let refused = tembuku.metric("listener_rejected_total", &labels);
    assert_eq!(refused as usize, 40 - served);
    let records = tembuku.access_log(40);
    let of_rate = records
        .iter()
        .filter(|record| record["close_reason"] == "connection_rate");
    assert_eq!(of_rate.count(), 40 - served);
    // The bucket fills again.
    wait_until("a client is served", secs(10), || is_served(at(1), front));
}

#[test]
fn a_noisy_source_is_refused_alone() {
    let servers = named(1);
    let front = ports::free_addr();
    let keys = "connection_rate_per_source = \"60/m\"";
    let tembuku = Tembuku::start(&listener_before(&servers, front, keys));
    let began = Instant::now();
    let noisy = (0..30).filter(|_| is_served(at(1), front)).count();
    let most = most(1.0, 1.0, began);
    assert!((1..=most).contains(&noisy), "{noisy} of at most {most}");
    assert!((2..20).all(|n| is_served(at(n), front)));
    let labels = [("reason", "connection_rate_per_source")];
    let refused = tembuku.metric("listener_rejected_total", &labels);
    assert_eq!(refused as usize, 30 - noisy);
}

#[test]
fn clients_behind_a_proxy_have_a_rate_each() {
    let servers = named(1);
    let front = ports::free_addr();
    let keys = "connection_rate_per_source = \"1/m\"\naccept_proxy = true";
    let tembuku = Tembuku::start(&listener_before(&servers, front, keys));
    let is_served = |source: &str| {
        let mut stream = connect_saying(front, &v1(source, "127.0.0.1:1"));
        read_line(&mut stream).is_ok()
    };
    let clients = ["192.0.2.1:1", "192.0.2.2:1", "192.0.2.1:2", "192.0.2.3:1"];
    assert_eq!(clients.map(is_served), [true, true, false, true]);
    let labels = [("reason", "connection_rate_per_source")];
    assert_eq!(tembuku.metric("listener_rejected_total", &labels), 1.0);
}

/// Connects all of them, and returns when each was greeted.
fn arrive_together(front: SocketAddr, count: usize) -> Vec<Duration> {
    let began = Instant::now();
    let streams: Vec<TcpStream> = (0..count)
        .map(|_| connect_with(front, None, 0, 0).unwrap())
        .collect();
    let waiting = streams.into_iter().map(|mut stream| {
        thread::spawn(move || {
            read_line(&mut stream).unwrap();
            began.elapsed()
        })
    });
    let waiting: Vec<_> = waiting.collect();
    let mut times: Vec<_> = waiting.into_iter().map(|one| one.join().unwrap()).collect();
    times.sort();
    times
}

#[test]
fn delayed_connections_are_all_served_at_the_rate() {
    let servers = named(1);
    let front = ports::free_addr();
    let keys = "connection_rate = \"20/s\"\nover_rate = \"delay\"";
    let tembuku = Tembuku::start(&listener_before(&servers, front, keys));
    let times = arrive_together(front, 40);
    // The second twenty takes a second.
    let last = times[39].as_secs_f64();
    assert!((0.9..10.0).contains(&last), "{times:?}");
    // Within half of it not all have come.
    let early = times.iter().filter(|time| time.as_secs_f64() < 0.5).count();
    assert!(early <= 31, "{early} {times:?}");
    let labels = [("limit", "connection_rate"), ("result", "delayed")];
    let delayed = tembuku.metric("listener_over_limit_total", &labels);
    assert!((5.0..=20.0).contains(&delayed), "{delayed}");
    assert_eq!(tembuku.metric("listener_rejected_total", &[]), 0.0);
}

/// It leaves such connections in the queue of the kernel. Where many come at once, it may take all
/// of them: here they come one after the other.
#[test]
fn haproxy_takes_as_long_for_clients_in_a_row() {
    let servers = named(1);
    let fronts = [ports::free_addr(), ports::free_addr()];
    let _haproxy = Haproxy::start(
        &fronts[..1],
        &format!(
            "frontend f\n bind {}\n rate-limit sessions 20\n default_backend b\n\
             backend b\n server s {}\n",
            fronts[0], servers[0].addr
        ),
    );
    let keys = "connection_rate = \"20/s\"\nover_rate = \"delay\"";
    let _tembuku = Tembuku::start(&listener_before(&servers, fronts[1], keys));
    let took = fronts.map(|front| {
        thread::spawn(move || {
            let began = Instant::now();
            assert!((0..50).all(|_| is_served(at(1), front)));
            began.elapsed().as_secs_f64()
        })
    });
    let [haproxy, tembuku] = took.map(|took| took.join().unwrap());
    println!("HAProxy {haproxy:.2} s, tembuku {tembuku:.2} s");
    // Twenty at once and thirty at the rate; HAProxy counts in periods of a second.
    assert!((1.4..15.0).contains(&tembuku), "{tembuku}");
    assert!((0.9..15.0).contains(&haproxy), "{haproxy}");
}

#[test]
fn a_delay_is_bounded_and_a_client_may_leave() {
    let servers = named(1);
    let front = ports::free_addr();
    let keys = "connection_rate = \"1/s\"\nover_rate = \"delay\"";
    let tembuku = Tembuku::start(&listener_before(&servers, front, keys));
    let streams: Vec<_> = (0..20)
        .map(|_| connect_with(front, None, 0, 0).unwrap())
        .collect();
    // One at once, ten within ten seconds.
    let labels = [("reason", "connection_rate")];
    tembuku.wait_metric("listener_rejected_total", &labels, |n| {
        (4.0..=9.0).contains(&n)
    });
    drop(streams);
    tembuku.wait_metric("sessions_closed_total", &[("reason", "client_left")], |n| {
        n >= 5.0
    });
    tembuku.wait_idle();
    assert!(servers[0].accepted() <= 6, "{}", servers[0].accepted());
}

#[test]
fn flows_over_the_rate_do_not_begin() {
    let server = UdpServer::echo(V4);
    let front = ports::free_addr();
    let tembuku = Tembuku::start(&format!(
        "[listeners.l]\nbind = \"{front}\"\nprotocol = \"udp\"\nupstream = \"u\"\n\
         connection_rate_per_source = \"3/m\"\n[upstreams.u]\nbackends = [\"{}\"]\n",
        server.addr
    ));
    let first = client(front);
    for n in 1..=5 {
        // What a flow carries does not count.
        first.send(b"more").unwrap();
        tembuku.wait_metric("listener_sent_datagrams_total", &[], |sent| {
            sent == f64::from(n)
        });
    }
    let second = client(front);
    second.send(b"too early").unwrap();
    tembuku.wait_metric(
        "listener_dropped_datagrams_total",
        &[("reason", "rejected")],
        |n| n == 1.0,
    );
    let labels = [("reason", "connection_rate_per_source")];
    assert_eq!(tembuku.metric("listener_rejected_total", &labels), 1.0);
    assert_eq!(receive_if_any(&second), None);
    let other = client_from(at(2), front);
    other.send(b"another source").unwrap();
    tembuku.wait_metric("listener_sent_datagrams_total", &[], |sent| sent == 6.0);
}

#[test]
fn a_reload_changes_the_rate_at_once() {
    let servers = named(1);
    let front = ports::free_addr();
    let keys = |rate: &str| {
        let keys = format!("connection_rate = \"{rate}\"");
        listener_before(&servers, front, &keys)
    };
    let tembuku = Tembuku::start(&keys("1/m"));
    assert!(is_served(at(1), front) && !is_served(at(1), front));
    tembuku.reload(&listener_before(
        &servers,
        front,
        "connection_rate = \"1/m\"\nlimits_dry_run = true",
    ));
    assert!(is_served(at(1), front));
    let labels = [("limit", "connection_rate"), ("result", "passed")];
    assert_eq!(tembuku.metric("listener_over_limit_total", &labels), 1.0);
    tembuku.reload(&keys("1/m"));
    assert!(!is_served(at(1), front));
    tembuku.reload(&keys("0/s"));
    assert!((0..50).all(|_| is_served(at(1), front)));
}
