//! Limits of flows, in all and for each source, and which flow is evicted at the limit.

use crate::{
    harness::{
        millis, ports,
        tembuku::Tembuku,
        udp::{
            UdpServer, addrs, ask_until_answered, client, client_from, config, list, named,
            receive, receive_if_any, serve,
        },
    },
    udp_flows::answering_backend,
};
use rustix::process::Signal;
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    time::Instant,
};

/// One worker: these tests examine which flow is evicted, not on which thread.
#[track_caller]
fn serve_alone(listener: &str, servers: &[UdpServer]) -> (SocketAddr, Tembuku) {
    let front = ports::free_addr();
    let config = config(front, listener, "", &addrs(servers));
    let tembuku = Tembuku::start(&config.replace("workers = 2", "workers = 1"));
    (front, tembuku)
}

#[test]
fn no_more_than_there_may_be() {
    let servers = named(1);
    let (front, tembuku) = serve("max_connections = 2", "", &servers);
    let clients: Vec<UdpSocket> = (0..3).map(|_| client(front)).collect();
    assert_eq!(
        (
            answering_backend(&clients[0]),
            answering_backend(&clients[1])
        ),
        ("b1".into(), "b1".into())
    );
    clients[2].send(b"too many").unwrap();
    tembuku.wait_dropped("rejected", 1.0);
    let labels = [("reason", "max_connections")];
    assert_eq!(tembuku.metric("listener_rejected_total", &labels), 1.0);
    // Those that are there go on.
    assert_eq!(
        (
            answering_backend(&clients[0]),
            answering_backend(&clients[1])
        ),
        ("b1".into(), "b1".into())
    );
    assert_eq!(receive_if_any(&clients[2]), None);
    assert_eq!(servers[0].peers().len(), 2);
}

#[test]
fn a_freed_permit_is_given_again() {
    let servers = named(1);
    let (front, tembuku) = serve("max_connections = 1\nresponses = 1", "", &servers);
    for n in 1..=5 {
        assert_eq!(answering_backend(&client(front)), "b1");
        tembuku.wait_closed("ok", f64::from(n));
        tembuku.wait_flows(0.0);
    }
    assert_eq!(tembuku.metric("listener_rejected_total", &[]), 0.0);
}

/// The new client is served, and the flow that has been silent for longest is evicted.
#[test]
fn the_flow_that_is_idle_longest_is_evicted() {
    let servers = named(1);
    let (front, tembuku) = serve_alone(
        "max_connections = 3\nwhen_full = \"evict\"\nidle_timeout = \"10s\"",
        &servers,
    );
    let clients: Vec<UdpSocket> = (0..4).map(|_| client(front)).collect();
    for at in [0, 1, 2, 0] {
        assert_eq!(answering_backend(&clients[at]), "b1");
        // Silence is what counts, and it is measured in parts of the idle time: there is more than
        // one between any two.
        std::thread::sleep(millis(100));
    }
    // The second is the one now.
    assert_eq!(answering_backend(&clients[3]), "b1");
    tembuku.wait_closed("evicted", 1.0);
    let record = tembuku.access_log(1).remove(0);
    assert_eq!(record["close_reason"], "evicted", "{record}");
    let port = clients[1].local_addr().unwrap().port();
    assert_eq!(record["remote_port"], port, "{record}");
    tembuku.wait_flows(3.0);
    assert_eq!(tembuku.metric("listener_dropped_datagrams_total", &[]), 0.0);
    assert_eq!(servers[0].peers().len(), 4);
}

/// However they fall on the workers: newcomers are served, and there are not more than there may
/// be.
#[test]
fn on_several_workers_new_clients_are_served_too() {
    let servers = named(1);
    let (front, tembuku) = serve("max_connections = 2\nwhen_full = \"evict\"", "", &servers);
    let clients: Vec<UdpSocket> = (0..40).map(|_| client(front)).collect();
    for (n, client) in clients.iter().enumerate() {
        client.send(b"who").unwrap();
        let received = |have| have == n as f64 + 1.0;
        tembuku.wait_metric("listener_received_datagrams_total", &[], received);
        assert_eq!(
            tembuku.metric("listener_rejected_total", &[]),
            0.0,
            "client {n}"
        );
        assert_eq!(receive(client), b"b1 who");
        // A new client is admitted while another worker ends a flow for it.
        tembuku.wait_metric("listener_active_connections", &[], |n| n <= 2.0);
    }
    tembuku.wait_closed("evicted", 38.0);
}

fn at(last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 8, 8, last))
}

#[test]
fn no_source_takes_all() {
    let servers = named(1);
    let (front, tembuku) = serve("max_connections_per_source = 2", "", &servers);
    let clients: Vec<UdpSocket> = (0..3).map(|_| client_from(at(1), front)).collect();
    assert_eq!(
        (
            answering_backend(&clients[0]),
            answering_backend(&clients[1])
        ),
        ("b1".into(), "b1".into())
    );
    clients[2].send(b"too many").unwrap();
    tembuku.wait_dropped("rejected", 1.0);
    let labels = [("reason", "max_connections_per_source")];
    assert_eq!(tembuku.metric("listener_rejected_total", &labels), 1.0);
    for _ in 0..2 {
        let other = client_from(at(2), front);
        assert_eq!(answering_backend(&other), "b1");
    }
    assert_eq!(receive_if_any(&clients[2]), None);
}

#[test]
fn the_process_has_a_limit_over_all() {
    let servers = named(1);
    let (one, two) = (ports::free_addr(), ports::free_addr());
    let listener = |name: &str, addr: SocketAddr| {
        format!(
            "[listeners.{name}]\nbind = \"{addr}\"\nprotocol = \"udp\"\nupstream = \"u\"\n\
             max_connections = 3\n"
        )
    };
    let tembuku = Tembuku::start(&format!(
        "[process]\nworkers = 2\nmax_flows = 3\n{}{}[upstreams.u]\nbackends = {}\n",
        listener("one", one),
        listener("two", two),
        list(&addrs(&servers))
    ));
    let clients = [client(one), client(two), client(one)];
    for client in &clients {
        assert_eq!(answering_backend(client), "b1");
    }
    client(two).send(b"too many").unwrap();
    tembuku.wait_dropped("rejected", 1.0);
    let labels = [("reason", "process_max_flows"), ("listener", "two")];
    assert_eq!(tembuku.metric("listener_rejected_total", &labels), 1.0);
    for client in &clients {
        assert_eq!(answering_backend(client), "b1");
    }
}

#[test]
fn a_denied_client_is_dropped() {
    let servers = named(1);
    let access = "access = [\"allow 127.8.8.1\", \"deny 127.8.8.0/24\"]";
    let (front, tembuku) = serve(access, "", &servers);
    let denied = client_from(at(2), front);
    denied.send(b"let me in").unwrap();
    denied.send(b"let me in").unwrap();
    tembuku.wait_dropped("rejected", 2.0);
    let labels = [("reason", "access")];
    assert!(tembuku.metric("listener_rejected_total", &labels) >= 1.0);
    assert_eq!(answering_backend(&client_from(at(1), front)), "b1");
    assert_eq!(answering_backend(&client(front)), "b1");
    assert_eq!(receive_if_any(&denied), None);
    assert_eq!(servers[0].taken(), 2);
}

/// For longer than the idle time, too, which no flow ever reaches here.
#[test]
fn flows_are_evicted_again_and_again() {
    let servers = named(1);
    let listener = "max_connections = 2\nwhen_full = \"evict\"\nidle_timeout = \"300ms\"";
    let (front, tembuku) = serve_alone(listener, &servers);
    let began = Instant::now();
    let mut served = 0.0;
    // The socket of each flow is kept for two seconds: with more than there are descriptors for,
    // new flows are refused.
    while began.elapsed() < millis(1_500) && served < 5_000.0 {
        assert_eq!(answering_backend(&client(front)), "b1", "after {served}");
        served += 1.0;
    }
    // A client may get the port of one that was there just before: then its flow goes on.
    let begun = tembuku.metric("listener_connections_total", &[]);
    assert!(
        begun <= served && begun > 0.9 * served,
        "{begun} of {served}"
    );
    tembuku.wait_metric("sessions_closed_total", &[], |n| n == begun);
    assert_eq!(tembuku.metric("listener_dropped_datagrams_total", &[]), 0.0);
}

/// It needs no second permit for that.
#[test]
fn existing_flows_fail_over_when_all_permits_are_taken() {
    for limit in ["max_connections = 1", "max_connections_per_source = 1"] {
        for when_full in ["refuse", "evict"] {
            let mut servers = named(2);
            let listener = format!("{limit}\nwhen_full = \"{when_full}\"");
            let (front, tembuku) = serve(&listener, "balance = \"first\"", &servers);
            let client = client(front);
            assert_eq!(answering_backend(&client), "b1");
            drop(servers.remove(0));
            client.send(b"lost").unwrap();
            let labels = [("reason", "refused")];
            tembuku.wait_metric("backend_connect_errors_total", &labels, |n| n >= 1.0);
            assert_eq!(answering_backend(&client), "b2", "{limit}, {when_full}");
            tembuku.wait_flows(1.0);
        }
    }
}

/// A flow that fails over may evict another one whose datagrams are waiting to be sent: no other
/// client gets them.
#[test]
fn replies_to_an_evicted_flow_reach_no_other_client() {
    for _ in 0..10 {
        let mut servers = named(2);
        let front = ports::free_addr();
        let listener = "max_connections = 2\nwhen_full = \"evict\"";
        let config = config(front, listener, "balance = \"first\"", &addrs(&servers));
        let tembuku = Tembuku::start(&config.replace("workers = 2", "workers = 1"));
        let clients = [client(front), client(front)];
        for client in &clients {
            assert_eq!(answering_backend(client), "b1");
        }
        drop(servers.remove(0));
        // It finds all of this at once.
        tembuku.proc.signal(Signal::STOP);
        for (n, what) in ["1", "22", "333", "4444"].iter().enumerate() {
            for (name, client) in ["a", "b"].iter().zip(&clients) {
                client.send(format!("{name}{n}{what}").as_bytes()).unwrap();
            }
        }
        tembuku.proc.signal(Signal::CONT);
        for (name, client) in ["a", "b"].iter().zip(&clients) {
            let mut answer = ask_until_answered(client, &format!("{name}-last"));
            loop {
                let own = answer.strip_prefix("b2 ").expect("the one that is left");
                assert!(own.starts_with(name), "{name} hears {answer}");
                match receive_if_any(client) {
                    Some(next) => answer = String::from_utf8(next).unwrap(),
                    None => break,
                }
            }
        }
    }
}
