//! Log lines, at level info, about clients and datagrams that get no service: the first at once,
//! and in the end all.

use crate::harness::{
    net::{assert_closed_at_once, assert_ends_now, connect, connect_with, session},
    poll, ports,
    proc::{command, run_ok},
    programs::{again_in_own_place, place},
    secs,
    server::{Server, list, named},
    tembuku::Tembuku,
    udp,
};
use serde_json::Value;
use std::net::{SocketAddr, TcpStream};

fn config(front: SocketAddr, listener: &str, backends: &str) -> String {
    format!(
        "[listeners.l]\nbind = \"{front}\"\nupstream = \"u\"\n{listener}\n\
         [upstreams.u]\nbackends = {backends}\n"
    )
}

/// The lines of the log with this message and reason.
fn lines(tembuku: &Tembuku, message: &str, reason: &str) -> Vec<Value> {
    let log = tembuku.log().into_iter();
    log.filter(|line| line["message"] == message && (reason.is_empty() || line["reason"] == reason))
        .collect()
}

#[track_caller]
fn first_line(tembuku: &Tembuku, message: &str, reason: &str) -> Value {
    let first = poll(secs(10), || lines(tembuku, message, reason).pop());
    let first = first.unwrap_or_else(|| {
        panic!(
            "no line \"{message}\" with the reason \"{reason}\" in\n{}",
            tembuku.proc.stderr()
        )
    });
    assert_eq!(first["count"], 1, "the first is logged at once: {first}");
    first
}

/// Ends it, and adds the counts of these lines up.
#[track_caller]
fn total(mut tembuku: Tembuku, message: &str, reason: &str) -> u64 {
    tembuku.terminate();
    let lines = lines(&tembuku, message, reason);
    assert!(lines.len() <= 4, "one line in ten seconds: {lines:?}");
    lines.iter().filter_map(|line| line["count"].as_u64()).sum()
}

#[test]
fn the_only_backend_refuses() {
    let (front, unused) = (ports::free_addr(), ports::free_addr());
    let tembuku = Tembuku::start(&config(front, "", &format!("[\"{unused}\"]")));
    assert_closed_at_once(front);
    let line = first_line(&tembuku, "backend cannot be reached", "refused");
    assert_eq!(line["level"], "WARN");
    assert_eq!(line["upstream"], "u");
    assert_eq!(line["address"], unused.to_string());
    assert!(line["error"].as_str().unwrap().contains("refused"));
    let line = first_line(&tembuku, "no backend could be reached", "connect_failed");
    assert_eq!(
        (&line["listener"], &line["upstream"]),
        (&"l".into(), &"u".into())
    );
    for _ in 0..19 {
        assert_closed_at_once(front);
    }
    tembuku.wait_metric("backend_connect_errors_total", &[], |n| n == 20.0);
    assert_eq!(total(tembuku, "backend cannot be reached", "refused"), 20);
}

#[test]
fn a_pending_count_is_logged_when_no_more_events_come() {
    let (front, unused) = (ports::free_addr(), ports::free_addr());
    let tembuku = Tembuku::start(&config(front, "", &format!("[\"{unused}\"]")));
    for _ in 0..5 {
        assert_closed_at_once(front);
    }
    let message = "backend cannot be reached";
    let second = poll(secs(40), || {
        lines(&tembuku, message, "refused").get(1).cloned()
    });
    let second = second.expect("a second line");
    assert_eq!(second["count"], 4);
    // It does not read as if they had just happened.
    assert!(
        second["last_seconds_ago"].as_f64().unwrap() > 5.0,
        "{second}"
    );
    assert_eq!(
        lines(&tembuku, message, "refused")[0]["last_seconds_ago"],
        Value::Null
    );
    // What comes next is a first event again.
    assert_closed_at_once(front);
    let third = poll(secs(3), || {
        lines(&tembuku, message, "refused").get(2).cloned()
    });
    assert_eq!(third.expect("a third line, at once")["count"], 1);
}

#[test]
fn a_backend_marked_down_is_logged_with_its_address() {
    let (front, port) = (ports::free_addr(), ports::free_port());
    let backends = format!(
        "[\"localhost:{port}\", \"127.0.0.1:{}\"]",
        ports::free_port()
    );
    let tembuku = Tembuku::start(&config(front, "retries = 5", &backends));
    assert_closed_at_once(front);
    let message = "backend marked down";
    let line = poll(secs(10), || {
        let lines = lines(&tembuku, message, "refused");
        lines
            .into_iter()
            .find(|l| l["backend"] == format!("localhost:{port}"))
    });
    let address = line.expect("a line")["address"].to_string();
    assert!(
        address.contains(&format!(":{port}")) && !address.contains("localhost"),
        "{address}"
    );
    // Now there is none to try.
    assert_closed_at_once(front);
    first_line(&tembuku, "no backend is available", "no_backend");
}

fn hold(front: SocketAddr, count: usize) -> Vec<TcpStream> {
    (0..count).map(|_| session(front).unwrap().0).collect()
}

#[test]
fn limits_of_a_listener_and_the_process() {
    for (listener, process, reason) in [
        ("max_connections = 3", "", "max_connections"),
        (
            "",
            "[process]\nmax_connections = 3\n",
            "process_max_connections",
        ),
    ] {
        let (front, servers) = (ports::free_addr(), named(1));
        let config = config(front, listener, &list(&servers));
        let tembuku = Tembuku::start(&format!("{process}{config}"));
        let held = hold(front, 3);
        for _ in 0..7 {
            assert_closed_at_once(front);
        }
        let line = first_line(&tembuku, "client refused", reason);
        assert_eq!(
            (&line["level"], &line["limit"]),
            (&"WARN".into(), &3.into())
        );
        drop(held);
        tembuku.wait_idle();
        assert_eq!(total(tembuku, "client refused", reason), 7);
    }
}

#[test]
fn the_limit_of_a_backend() {
    let (front, servers) = (ports::free_addr(), named(2));
    let [full, other]: [SocketAddr; 2] = [0, 1].map(|n: usize| servers[n].addr);
    let backends = format!("[{{ address = \"{full}\", max_connections = 1 }}, \"{other}\"]");
    let tembuku = Tembuku::start(&config(front, "", &backends));
    let held = hold(front, 6);
    let line = first_line(&tembuku, "backend has reached its max_connections", "");
    assert_eq!(line["address"], full.to_string());
    // The others are served: none of them is logged as refused.
    assert!(lines(&tembuku, "no backend is available", "").is_empty());
    drop(held);
}

#[test]
fn clients_that_the_access_rules_deny() {
    let (front, servers) = (ports::free_addr(), named(1));
    let rules = "access = [\"deny 127.0.0.7\"]";
    let tembuku = Tembuku::start(&config(front, rules, &list(&servers)));
    for _ in 0..5 {
        let denied = Some("127.0.0.7".parse().unwrap());
        assert_ends_now(&mut connect_with(front, denied, 0, 0).unwrap());
    }
    let line = first_line(&tembuku, "client refused", "access");
    assert_eq!(line["level"], "INFO");
    assert!(line["client"].as_str().unwrap().starts_with("127.0.0.7:"));
    assert_eq!(total(tembuku, "client refused", "access"), 5);
}

#[test]
fn descriptors_run_out() {
    let (front, servers) = (ports::free_addr(), named(1));
    let process = "[process]\nmax_connections = 10000\nworkers = 1\n";
    let config = format!("{process}{}", config(front, "", &list(&servers)));
    let tembuku = Tembuku::start(&config);
    let limit = tembuku.proc.descriptors() + 20;
    let pid = tembuku.proc.id();
    let lower = format!("prlimit --pid {pid} --nofile={limit}:");
    run_ok(secs(5), command(&lower));
    let clients: Vec<TcpStream> = (0..60).map(|_| connect(front).unwrap()).collect();
    let line = poll(secs(10), || {
        lines(&tembuku, "cannot accept, waiting", "").pop()
    });
    assert!(
        line.expect("a line")["error"]
            .to_string()
            .contains("open files")
    );
    drop(clients);
}

/// Towards one address and port there are only so many local ports.
#[test]
fn local_ports_run_out() {
    if place().is_none() {
        return again_in_own_place("notices::local_ports_run_out");
    }
    let backend = Server::named_on("b1", &["127.0.0.1:29001".parse().unwrap()]);
    let front: SocketAddr = "127.0.0.1:29000".parse().unwrap();
    let backends = format!("[\"{}\"]", backend.addr);
    let tembuku = Tembuku::start(&config(front, "", &backends));
    std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40007").unwrap();
    let local = |n: u8| Some([127, 0, 1, n].into());
    let mut clients: Vec<TcpStream> = Vec::new();
    let message = "no connect to the backend, a local limit is reached";
    for n in 1..=20 {
        // Each from an address of its own, so that the clients have ports enough.
        clients.push(connect_with(front, local(n), 0, 0).unwrap());
    }
    let line = first_line(&tembuku, message, "no_ports");
    assert_eq!(line["address"], backend.addr.to_string());
    assert!(lines(&tembuku, "backend cannot be reached", "").is_empty());
}

#[test]
fn datagrams_and_flows() {
    let unused = ports::free_addr();
    let front = ports::free_addr();
    let settings = "protocol = \"udp\"\nmax_connections = 2";
    let tembuku = Tembuku::start(&config(front, settings, &format!("[\"{unused}\"]")));
    let clients: Vec<_> = (0..5).map(|_| udp::client(front)).collect();
    // One alone is refused first: two that arrive together are counted by one line.
    for client in &clients[..3] {
        client.send(b"x").unwrap();
    }
    let line = first_line(&tembuku, "client refused", "max_connections");
    assert_eq!(line["limit"], 2);
    for client in &clients[3..] {
        client.send(b"x").unwrap();
    }
    let line = first_line(&tembuku, "backend cannot be reached", "refused");
    assert_eq!(line["address"], unused.to_string());
    tembuku.wait_metric("listener_rejected_total", &[], |n| n == 3.0);
    assert_eq!(total(tembuku, "client refused", "max_connections"), 3);
}
