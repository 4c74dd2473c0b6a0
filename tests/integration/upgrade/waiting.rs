//! What becomes of sessions and flows that wait for a backend when another process takes over.

use super::{Succession, listener, upstream};
use crate::harness::{
    net::{self, connect},
    ports,
    proc::text,
    secs,
    server::named,
    tembuku::cli,
    udp::{self, UdpServer, ask, receive_if_any, receive_text},
    wait_until,
};
use std::{
    io::Write as _,
    net::{SocketAddr, TcpStream, UdpSocket},
};

const WAITING: usize = 5;

fn limited(addr: SocketAddr) -> String {
    format!("{{ address = \"{addr}\", max_connections = 1 }}")
}

impl Succession {
    /// How many wait in the process that answers; `line`: `queued` or `held`.
    #[track_caller]
    fn wait_waiting(&self, line: &str, count: usize) {
        wait_until(&format!("{count} {line}"), secs(10), || {
            self.status()["upstreams"][0][line] == count
        });
    }

    #[track_caller]
    fn operate(&self, words: &[&str]) {
        let socket = self.socket();
        let output = cli(&[words, &["--socket", socket.to_str().unwrap()]].concat());
        assert_eq!(
            output.status.code(),
            Some(0),
            "{words:?}: {}",
            text(&output)
        );
    }
}

fn waiting_clients(front: SocketAddr) -> Vec<TcpStream> {
    (0..WAITING).map(|_| connect(front).unwrap()).collect()
}

/// They wait on in the new process, and those that come later wait behind them.
#[test]
fn sessions_in_the_queue_wait_on_in_the_new_process() {
    let servers = named(1);
    let front = ports::free_addr();
    let config = listener("l", &front.to_string(), "u")
        + &upstream("u", &limited(servers[0].addr))
        + "queue_timeout = \"1m\"\n";
    let mut tembuku = Succession::start(&config);
    let (mut holder, _) = net::session(front).unwrap();
    // One after the other, so that their order is known.
    let mut waiting = Vec::new();
    for count in 1..=WAITING {
        waiting.push(connect(front).unwrap());
        tembuku.wait_waiting("queued", count);
    }
    let out = tembuku.upgrade();
    assert!(out.contains("nothing is left behind"), "{out}");
    tembuku.wait_alone();
    tembuku.wait_waiting("queued", WAITING);
    net::echo(&mut holder, "holds").unwrap();
    waiting.push(connect(front).unwrap());
    tembuku.wait_waiting("queued", WAITING + 1);
    drop(holder);
    for (n, mut client) in waiting.into_iter().enumerate() {
        assert_eq!(net::read_line(&mut client).unwrap(), "b1", "client {n}");
        net::echo(&mut client, &format!("client {n}")).unwrap();
    }
}

/// What operators set later reaches them there.
#[test]
fn held_sessions_wait_on_in_the_new_process() {
    let servers = named(1);
    let front = ports::free_addr();
    let config = listener("l", &front.to_string(), "u")
        + &upstream("u", &format!("\"{}\"", servers[0].addr))
        + "hold_timeout = \"1m\"\n";
    let mut tembuku = Succession::start(&config);
    let name = format!("u/{}", servers[0].addr);
    tembuku.operate(&["maint", &name]);
    let mut waiting = waiting_clients(front);
    for client in &mut waiting {
        client.write_all(b"first\n").unwrap();
    }
    tembuku.wait_waiting("held", WAITING);
    let out = tembuku.upgrade();
    assert!(out.contains("nothing is left behind"), "{out}");
    tembuku.wait_alone();
    waiting.push(connect(front).unwrap());
    waiting.last_mut().unwrap().write_all(b"first\n").unwrap();
    tembuku.wait_waiting("held", WAITING + 1);
    tembuku.operate(&["ready", &name]);
    for client in &mut waiting {
        assert_eq!(net::read_line(client).unwrap(), "b1");
        assert_eq!(net::read_line(client).unwrap(), "first");
    }
}

/// Its datagram is dropped; the client repeats it, and waits in the new process.
#[test]
fn flows_that_wait_end_and_begin_again_in_the_new_process() {
    for (keys, line) in [
        ("queue_timeout = \"1m\"\n", "queued"),
        ("hold_timeout = \"1m\"\n", "held"),
    ] {
        let server = UdpServer::named("b1");
        let front = ports::free_addr();
        let name = format!("u/{}", server.addr);
        let backends = match line {
            "queued" => limited(server.addr),
            _ => format!("\"{}\"", server.addr),
        };
        let config = listener("l", &front.to_string(), "u")
            + "protocol = \"udp\"\n"
            + &upstream("u", &backends)
            + keys;
        let mut tembuku = Succession::start(&config);
        let holder = udp::client(front);
        assert_eq!(ask(&holder, "before"), "b1 before");
        if line == "held" {
            tembuku.operate(&["maint", &name]);
        }
        let clients: Vec<UdpSocket> = (0..WAITING).map(|_| udp::client(front)).collect();
        for client in &clients {
            client.send(b"lost").unwrap();
        }
        tembuku.wait_waiting(line, WAITING);
        tembuku.upgrade();
        tembuku.wait_alone();
        tembuku.wait_waiting(line, 0);
        let closed = [("reason", "drained")];
        let ended = tembuku.first.metric("sessions_closed_total", &closed);
        // The first in the queue may get the place of the flow that goes over, and follow.
        let least = if line == "queued" { 1 } else { WAITING };
        assert!((least..=WAITING).contains(&(ended as usize)), "{ended}");
        // The flow that had a backend has gone over.
        if line == "queued" {
            assert_eq!(ask(&holder, "after"), "b1 after");
        }
        let last = clients.last().unwrap();
        last.send(b"again").unwrap();
        tembuku.wait_waiting(line, 1);
        assert_eq!(receive_if_any(last), None);
        match line {
            "queued" => tembuku.operate(&["kill", "--backend", &server.addr.to_string()]),
            _ => tembuku.operate(&["ready", &name]),
        }
        assert_eq!(receive_text(last), "b1 again", "{line}");
        if line == "held" {
            assert_eq!(ask(&clients[0], "too"), "b1 too");
        }
    }
}
